//! From any error to an exit code and the lines a user sees.
//!
//! 0 done, 1 failed, 2 wrong usage or input, 3 stopped on non-finite training values or a spike of them, 4 storage, 130 interrupted,
//! 143 terminated.

use std::fmt;

/// An error with the exit code it asks for.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// Wrong usage or input: exit code 2.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    /// The exit code of another command that was run.
    pub(crate) fn coded(code: u8, text: String) -> Self {
        Self { code, text }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The exit code of an error: the first cause in its chain that asks for one decides.
pub(crate) fn exit_code(error: &anyhow::Error, signal: usize) -> u8 {
    error.chain().find_map(|cause| code_of(cause, signal)).unwrap_or(1)
}

/// Whether our output's reader went away.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The code of one cause. The stage crates' transparent variants hide the inner error from the chain, so they are opened.
fn code_of(cause: &(dyn std::error::Error + 'static), signal: usize) -> Option<u8> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.code);
    }
    if let Some(error) = cause.downcast_ref::<aloe_record::Error>() {
        return code_of_record(error, signal);
    }
    if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        return aloe_record::is_storage(error).then_some(4);
    }
    if let Some(error) = cause.downcast_ref::<aloe_model::Error>() {
        return code_of_model(error, signal);
    }
    if let Some(error) = cause.downcast_ref::<aloe_engine::Error>() {
        return code_of_engine(error, signal);
    }
    code_of_stage(cause, signal)
}

fn code_of_record(error: &aloe_record::Error, signal: usize) -> Option<u8> {
    match error {
        aloe_record::Error::Cancelled => Some(if signal == 15 { 143 } else { 130 }),
        error if error.is_storage() => Some(4),
        aloe_record::Error::Io { source, .. } if is_missing(source) => Some(2),
        aloe_record::Error::Json { .. } => Some(2),
        aloe_record::Error::Io { .. } | aloe_record::Error::Log { .. } => None,
    }
}

fn code_of_model(error: &aloe_model::Error, signal: usize) -> Option<u8> {
    match error {
        aloe_model::Error::Record(inner) => code_of_record(inner, signal),
        aloe_model::Error::Io { source, .. } => Some(if aloe_record::is_storage(source) { 4 } else { 2 }),
        _ => Some(2),
    }
}

fn code_of_engine(error: &aloe_engine::Error, signal: usize) -> Option<u8> {
    match error {
        aloe_engine::Error::Model(inner) => code_of_model(inner, signal),
        aloe_engine::Error::Record(inner) => code_of_record(inner, signal),
        aloe_engine::Error::Endpoint { .. } | aloe_engine::Error::Answer { .. } | aloe_engine::Error::NonFinite => None,
        aloe_engine::Error::Text(_) | aloe_engine::Error::Request { .. } | aloe_engine::Error::Open { .. } => Some(2),
    }
}

fn code_of_stage(cause: &(dyn std::error::Error + 'static), signal: usize) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<aloe_train::Error>() {
        return match error {
            aloe_train::Error::NonFinite { .. } | aloe_train::Error::Spike { .. } => Some(3),
            aloe_train::Error::Sample(inner) => code_of_engine(inner, signal),
            aloe_train::Error::Record(inner) => code_of_record(inner, signal),
            aloe_train::Error::Model(inner) => code_of_model(inner, signal),
            _ => Some(2),
        };
    }
    if let Some(error) = cause.downcast_ref::<aloe_merge::Error>() {
        return match error {
            aloe_merge::Error::Record(inner) => code_of_record(inner, signal),
            aloe_merge::Error::Checkpoint(inner) => code_of_model(inner, signal),
            aloe_merge::Error::Disk { .. } => Some(4),
            _ => Some(2),
        };
    }
    if let Some(error) = cause.downcast_ref::<aloe_data::Error>() {
        return match error {
            aloe_data::Error::Record(inner) => code_of_record(inner, signal),
            aloe_data::Error::Engine(inner) => code_of_engine(inner, signal),
            aloe_data::Error::OtherWeights { .. } => None,
            _ => Some(2),
        };
    }
    if let Some(error) = cause.downcast_ref::<aloe_eval::Error>() {
        return match error {
            aloe_eval::Error::Record(inner) => code_of_record(inner, signal),
            aloe_eval::Error::Engine(inner) | aloe_eval::Error::Asked { error: inner, .. } => {
                code_of_engine(inner, signal)
            }
            aloe_eval::Error::OtherWeights { .. } => None,
            _ => Some(2),
        };
    }
    if let Some(error) = cause.downcast_ref::<aloe_handoff::Error>() {
        return match error {
            aloe_handoff::Error::Record(inner) => code_of_record(inner, signal),
            aloe_handoff::Error::State { .. }
            | aloe_handoff::Error::Scheduler { .. }
            | aloe_handoff::Error::Server { .. } => None,
            _ => Some(2),
        };
    }
    let is_input = cause.is::<aloe_text::Error>() || cause.is::<aloe_task::Error>();
    is_input.then_some(2)
}

/// A path that is not what was promised: the user's mistake, not the disk's.
fn is_missing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | IsADirectory | NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn exit_codes_follow_the_table_through_any_context() {
        let wrap = |error: anyhow::Error| Err::<(), _>(error).context("while testing").unwrap_err();
        assert_eq!(exit_code(&wrap(Failure::usage("x").into()), 0), 2);
        assert_eq!(exit_code(&wrap(aloe_record::Error::Cancelled.into()), 2), 130);
        assert_eq!(exit_code(&wrap(aloe_record::Error::Cancelled.into()), 15), 143);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(exit_code(&wrap(full.into()), 0), 4);
        assert_eq!(exit_code(&anyhow::anyhow!("other"), 0), 1);
    }
}
