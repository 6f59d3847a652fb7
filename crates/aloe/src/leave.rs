//! What a stage that did not end leaves behind: work that the same command can take up, and a sentence that says from where.
//! Anything else is removed, so that a failed command writes nothing.

use aloe_record::Error;
use std::path::Path;

/// Removes a partial folder without work worth keeping; an interruption is told where the same command goes on.
pub(crate) fn behind(kind: &str, partial: &Path, error: anyhow::Error) -> anyhow::Error {
    let goes_on = resume_point(kind, partial);
    if goes_on.is_none() && !holds_evidence(kind, partial) {
        let _ = std::fs::remove_dir_all(partial);
    }
    if !is_interruption(&error) {
        return error;
    }
    let place = goes_on.unwrap_or_else(|| "starts this stage over".to_owned());
    error.context(format!("interrupted; the same command {place}"))
}

fn is_interruption(error: &anyhow::Error) -> bool {
    let code = crate::failure::exit_code(error, 2);
    code == 130 || error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Cancelled)))
}

/// Where the same command goes on, in words; `None` when it would start over.
fn resume_point(kind: &str, partial: &Path) -> Option<String> {
    match kind {
        "sft" | "dpo" => {
            let step = newest_step(&partial.join("state"))?;
            Some(format!("goes on after step {step}"))
        }
        "eval" | "redteam" => {
            let log = std::fs::read_to_string(partial.join(".answers.log")).ok()?;
            let count = |what: &str| {
                log.lines().filter(|line| line.get(9..).is_some_and(|json| json.starts_with(what))).count()
            };
            let (answered, solved) = (count("{\"answered\""), count("{\"solved\""));
            let noun = if kind == "eval" { "question" } else { "prompt" };
            match (answered, solved) {
                (0, 0) => None,
                (0, solved) => Some(format!("goes on after worked example {solved} of the pool")),
                _ => Some(format!("goes on from {noun} {}", answered + 1)),
            }
        }
        _ => None,
    }
}

/// The step of the newest complete checkpoint.
fn newest_step(state: &Path) -> Option<u64> {
    let names = std::fs::read_dir(state).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max()
}

/// Files beside the working ones that a reader or the next try can use: metrics of a run that stopped, reference
/// log-probabilities. Stages that start over anyway have none.
fn holds_evidence(kind: &str, partial: &Path) -> bool {
    matches!(kind, "sft" | "dpo" | "eval" | "redteam") && has_content(partial)
}

fn has_content(folder: &Path) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return has_content(&path);
        }
        let is_working_file = [".fingerprint", ".session", ".answers.log"].iter().any(|name| path.ends_with(name));
        !is_working_file && entry.metadata().is_ok_and(|metadata| metadata.len() > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_says_where_the_same_command_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let say = |kind: &str| behind(kind, dir.path(), Error::Cancelled.into()).to_string();
        std::fs::create_dir_all(dir.path().join("state/step-0000000012")).unwrap();
        std::fs::create_dir_all(dir.path().join("state/.step-0000000013.partial")).unwrap();
        std::fs::create_dir_all(dir.path().join("state/step-0000000009")).unwrap();
        assert_eq!(say("sft"), "interrupted; the same command goes on after step 12");
        let log = "01234567 {\"run\":\"x\"}\n01234567 {\"answered\":{}}\n01234567 {\"answered\":{}}\n";
        std::fs::write(dir.path().join(".answers.log"), log).unwrap();
        assert_eq!(say("eval"), "interrupted; the same command goes on from question 3");
        assert_eq!(say("redteam"), "interrupted; the same command goes on from prompt 3");
        assert_eq!(say("merge"), "interrupted; the same command starts this stage over");
        assert!(!dir.path().exists(), "a merge's partial folder is of no use");
    }

    #[test]
    fn other_errors_keep_their_words() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(behind("sft", dir.path(), anyhow::anyhow!("no")).to_string(), "no");
    }
}
