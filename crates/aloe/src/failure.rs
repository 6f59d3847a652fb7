//! From any error to an exit code and the lines a user sees.
//!
//! 0 done, 1 failed, 2 wrong usage or input, 3 stopped on non-finite training values, 4 storage, 130 interrupted,
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
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The exit code of an error: the first cause in its chain that asks for one decides.
pub(crate) fn exit_code(error: &anyhow::Error, signal: usize) -> u8 {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.code;
        }
        if let Some(record) = cause.downcast_ref::<aloe_record::Error>() {
            if matches!(record, aloe_record::Error::Cancelled) {
                return if signal == 15 { 143 } else { 130 };
            }
            if record.is_storage() {
                return 4;
            }
            if let aloe_record::Error::Json { .. } = record {
                return 2;
            }
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && (matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
                || io.raw_os_error() == Some(5))
        {
            return 4;
        }
        if let Some(code) = code_of_stage(cause) {
            return code;
        }
    }
    1
}

/// Exit codes of the stage crates' own errors.
fn code_of_stage(_cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    None
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
