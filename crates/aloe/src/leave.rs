//! What a stage that did not end leaves behind: work that the same command can take up, and a sentence that says from where.
//! A folder that provably holds no work is removed, so that a failed command writes nothing; a file that cannot be read or was
//! cut in the middle of a character is no proof.

use aloe_record::Error;
use std::path::{Path, PathBuf};

/// The log of a merge search's scored points.
pub(crate) const POINTS: &str = ".points.log";

/// The file that holds the path of that log, where it lies in a folder that outlives the search.
pub(crate) const POINT_CACHE: &str = ".point-cache";

/// Removes a partial folder without work worth keeping; an interruption and a fault of storage are told where the same command goes on.
pub(crate) fn behind(kind: &str, partial: &Path, error: anyhow::Error) -> anyhow::Error {
    let goes_on = resume_point(kind, partial);
    if goes_on.is_none() && !may_hold_work(kind, partial) {
        let _ = std::fs::remove_dir_all(partial);
    }
    if !is_interruption(&error) {
        // The folder that the disk had no room for is not the one that the user named.
        if crate::failure::exit_code(&error, 0) != 4 {
            return error;
        }
        let target = aloe_record::atomic::target(partial);
        let place = goes_on.or_else(|| partial.exists().then(|| STARTS_OVER.to_owned()));
        let place = place.map_or_else(String::new, |place| format!("; the same command {place}"));
        return error.context(format!("{} was not written{place}", target.display()));
    }
    let place = goes_on.unwrap_or_else(|| STARTS_OVER.to_owned());
    error.context(format!("interrupted; the same command {place}"))
}

const STARTS_OVER: &str = "starts this stage over";

fn is_interruption(error: &anyhow::Error) -> bool {
    let code = crate::failure::exit_code(error, 2);
    code == 130 || error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Cancelled)))
}

/// Where the same command goes on, in words; `None` when it would start over.
pub(crate) fn resume_point(kind: &str, partial: &Path) -> Option<String> {
    match kind {
        "sft" => training_point(partial),
        "dpo" => training_point(partial).or_else(|| reference_point(&partial.join("state"))),
        // The log may hold scores of other settings too, so no number is promised.
        "merge-search" => {
            let cache = std::fs::read_to_string(partial.join(POINT_CACHE)).map(PathBuf::from);
            let says = || Some("goes on from the models that were scored".to_owned());
            match std::fs::read(cache.unwrap_or_else(|_| partial.join(POINTS))) {
                Ok(log) if log.contains(&b'\n') => says(),
                Ok(_) => None,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(_) => says(),
            }
        }
        "rejudge" => {
            let log = std::fs::read(partial.join(".answers.log")).ok()?;
            let entries = log.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
            let is_verdict = |line: &&[u8]| line.get(9..).is_some_and(|json| json.starts_with(b"{\"judged\""));
            let n_verdicts = entries.filter(is_verdict).count();
            (n_verdicts > 0).then(|| format!("goes on from {n_verdicts} verdicts"))
        }
        "data" => data_point(partial),
        "eval" | "redteam" | "synthesis" => {
            let log = match std::fs::read(partial.join(".answers.log")) {
                Ok(log) => log,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
                Err(_) => return Some("goes on from its log of answers".to_owned()),
            };
            // Whole lines only: a full disk cuts the last one anywhere, and the next run drops it.
            let whole = log.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            let lines = log[..whole].split(|&byte| byte == b'\n');
            let entries: Vec<&[u8]> = lines.filter_map(|line| line.get(9..)).collect();
            let count = |what: &str| entries.iter().filter(|json| json.starts_with(what.as_bytes())).count();
            let kept = std::fs::read(partial.join(".requests.log")).unwrap_or_default();
            let is_kept = |line: &&[u8]| line.get(9..).is_some_and(|json| json.starts_with(b"{\"answered\""));
            let n_kept = kept.split(|&byte| byte == b'\n').filter(is_kept).count();
            let (answered, solved) = (count("{\"answered\""), count("{\"solved\""));
            let noun = match kind {
                "eval" => "answered question",
                "redteam" => "answered prompt",
                _ => "answer",
            };
            match (answered, solved) {
                (0, 0) => (n_kept > 0).then(|| format!("goes on from {n_kept} answered requests")),
                (0, solved) => Some(format!("goes on after worked example {solved} of the pool")),
                _ => Some(format!("goes on from {answered} {noun}s")),
            }
        }
        _ => None,
    }
}

/// What models said to a data stage: a judge's replies, scores, embeddings.
fn data_point(partial: &Path) -> Option<String> {
    let mut n_answers = 0;
    for name in [".answers.log", ".complexity.log", ".quality.log", ".vectors.log"] {
        let log = match std::fs::read(partial.join(name)) {
            Ok(log) => log,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(_) => return Some("goes on from its log of answers".to_owned()),
        };
        let whole = log.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let is_answer = |json: &[u8]| json.starts_with(b"{\"answered\"") || json.starts_with(b"{\"vector_of\"");
        n_answers += whole.filter(|line| line.get(9..).is_some_and(is_answer)).count();
    }
    (n_answers > 0).then(|| format!("goes on from {n_answers} answers"))
}

/// Where a training goes on by its checkpoints; those that fail a check are set aside under another name when it is taken up.
pub(crate) fn training_point(partial: &Path) -> Option<String> {
    if partial.join(".finished.json").exists() {
        return Some("writes the record of the finished training".into());
    }
    newest_step(&partial.join("state")).map(|step| format!("goes on after step {step}"))
}

/// The logs of a reference that depends on the start model, the pairs and the template alone, and on no setting of the training.
pub(crate) const REFERENCES: [&str; 2] = ["reference.log", "reference-held-out.log"];

/// How much of the reference of a preference stage is there before its first step.
fn reference_point(state: &Path) -> Option<String> {
    let n_pairs: usize = REFERENCES
        .into_iter()
        .chain(["reference-chunk-0.log"])
        .filter_map(|name| std::fs::read(state.join(name)).ok())
        .map(|log| log.split_inclusive(|&byte| byte == b'\n').filter(|line| is_reference(line)).count())
        .sum();
    (n_pairs > 0).then(|| format!("goes on from the reference of {n_pairs} pairs"))
}

/// Removes all of a partial folder but its references and the files called `marks`; false where there are no references.
pub(crate) fn keep_references(partial: &Path, marks: &[&str]) -> aloe_record::Result<bool> {
    let state = partial.join("state");
    let kept: Vec<PathBuf> = REFERENCES.iter().map(|name| state.join(name)).collect();
    if !kept.iter().any(|path| path.exists()) {
        return Ok(false);
    }
    let is_kept = |path: &Path| *path == state || kept.iter().any(|one| one == path);
    for folder in [partial, &state] {
        for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
            let path = entry.map_err(Error::io("list", folder))?.path();
            if is_kept(&path) || marks.iter().any(|mark| path == partial.join(mark)) {
                continue;
            }
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(Error::io("remove", &path))?;
        }
    }
    Ok(true)
}

fn is_reference(line: &[u8]) -> bool {
    line.ends_with(b"\n") && line.get(9..).is_some_and(|json| json.starts_with(b"{\"pair\""))
}

/// The step of the newest complete checkpoint.
fn newest_step(state: &Path) -> Option<u64> {
    let names = std::fs::read_dir(state).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max()
}

/// Files that a reader or the next try can use: answers, checkpoints, metrics of a run that stopped, reference
/// log-probabilities. Stages that start over anyway have none.
fn may_hold_work(kind: &str, partial: &Path) -> bool {
    matches!(kind, "sft" | "dpo" | "merge-search" | "eval" | "rejudge" | "redteam" | "synthesis")
        && has_content(partial)
}

/// Whether a file beside the marks and what a person watches holds a byte, or cannot be told not to.
fn has_content(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return true };
    entries.into_iter().any(|entry| {
        let Ok(entry) = entry else { return true };
        let path = entry.path();
        if aloe_record::digest::bears_time(&entry.file_name().to_string_lossy()) {
            return false;
        }
        if path.is_dir() {
            return has_content(&path);
        }
        let is_mark = [".fingerprint", ".decides.json", ".session", crate::served::ASKED, POINT_CACHE]
            .iter()
            .any(|name| path.ends_with(name));
        !is_mark && entry.metadata().map_or(true, |metadata| metadata.len() > 0)
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
        assert_eq!(say("eval"), "interrupted; the same command goes on from 2 answered questions");
        assert_eq!(say("redteam"), "interrupted; the same command goes on from 2 answered prompts");
        let vectors = "01234567 {\"vector_of\":\"x\"}\n01234567 {\"vector_of\"";
        std::fs::write(dir.path().join(".vectors.log"), vectors).unwrap();
        assert_eq!(say("data"), "interrupted; the same command goes on from 3 answers");
        let log = "01234567 {\"run\":\"x\"}\n01234567 {\"judged\":{}}\n01234567 {\"judged\":{}}\n01234567 {\"judged\"";
        std::fs::write(dir.path().join(".answers.log"), log).unwrap();
        assert_eq!(say("rejudge"), "interrupted; the same command goes on from 2 verdicts");
        assert_eq!(say("merge-search"), "interrupted; the same command starts this stage over");
        let cache = tempfile::tempdir().unwrap();
        let scored = cache.path().join("points.log");
        std::fs::write(dir.path().join(POINT_CACHE), scored.to_str().unwrap()).unwrap();
        std::fs::write(&scored, "01234567 {}\n").unwrap();
        assert_eq!(say("merge-search"), "interrupted; the same command goes on from the models that were scored");
        assert_eq!(say("merge"), "interrupted; the same command starts this stage over");
        assert!(!dir.path().exists(), "a merge's partial folder is of no use");
    }

    #[test]
    fn a_reference_that_was_begun_is_where_a_preference_stage_goes_on_until_it_has_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let say = |kind: &str| behind(kind, dir.path(), Error::Cancelled.into()).to_string();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let pair = "01234567 {\"pair\":{\"at\":1}}\n";
        let header = "01234567 {\"header\":{}}\n";
        std::fs::write(state.join("reference-held-out.log"), header).unwrap();
        assert_eq!(say("dpo"), "interrupted; the same command starts this stage over");
        std::fs::write(state.join("reference-held-out.log"), format!("{header}{pair}")).unwrap();
        std::fs::write(state.join("reference.log"), format!("{header}{pair}{pair}01234567 {{\"pair\"")).unwrap();
        assert_eq!(say("dpo"), "interrupted; the same command goes on from the reference of 3 pairs");
        std::fs::create_dir(state.join("damaged-0000000040")).unwrap();
        assert_eq!(say("dpo"), "interrupted; the same command goes on from the reference of 3 pairs");
        std::fs::create_dir(state.join("step-0000000020")).unwrap();
        assert_eq!(say("dpo"), "interrupted; the same command goes on after step 20");
    }

    #[test]
    fn a_fault_of_storage_says_where_the_same_command_goes_on_or_that_it_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join(".sft.partial");
        let say = || {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            behind("sft", &partial, Error::io("write", &partial.join("x"))(full).into()).to_string()
        };
        let expected = |place: &str| format!("{} was not written{place}", dir.path().join("sft").display());
        std::fs::create_dir_all(partial.join("state/step-0000000012")).unwrap();
        assert_eq!(say(), expected("; the same command goes on after step 12"));
        std::fs::remove_dir(partial.join("state/step-0000000012")).unwrap();
        std::fs::write(partial.join("metrics.jsonl"), "{}\n").unwrap();
        assert_eq!(say(), expected("; the same command starts this stage over"));
        std::fs::remove_file(partial.join("metrics.jsonl")).unwrap();
        assert_eq!(say(), expected(""), "nothing is left");
    }

    #[test]
    fn other_errors_keep_their_words() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(behind("sft", dir.path(), anyhow::anyhow!("no")).to_string(), "no");
    }

    /// A log as a full disk leaves it: cut at any byte, within a character too.
    #[test]
    fn a_log_of_answers_cut_at_any_byte_stays_and_only_its_whole_lines_count() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join(".eval.partial");
        std::fs::create_dir(&partial).unwrap();
        let log = "01234567 {\"run\":\"\u{fc}\"}\n01234567 {\"answered\":\"\u{bf}D\u{f3}nde? 37 \u{b0}C\"}\n\
                   01234567 {\"answered\":\"\u{1f9e0} \u{8840}\u{7cd6}\"}\n";
        let whole = |cut: usize| log.as_bytes()[..cut].iter().filter(|&&byte| byte == b'\n').count();
        for cut in 1..=log.len() {
            for mark in [".fingerprint", ".session"] {
                std::fs::write(partial.join(mark), "x").unwrap();
            }
            std::fs::write(partial.join(".answers.log"), &log.as_bytes()[..cut]).unwrap();
            let said = behind("eval", &partial, Error::Cancelled.into()).to_string();
            assert_eq!(std::fs::read(partial.join(".answers.log")).unwrap().len(), cut, "cut at {cut}");
            let place = match whole(cut) {
                0 | 1 => "starts this stage over".to_owned(),
                n_lines => format!("goes on from {} answered questions", n_lines - 1),
            };
            assert_eq!(said, format!("interrupted; the same command {place}"), "cut at {cut}");
        }
        std::fs::write(partial.join(".answers.log"), "").unwrap();
        behind("eval", &partial, anyhow::anyhow!("no"));
        assert!(!partial.exists(), "marks and an empty log are no work");
    }

    /// A folder in the log's place: reading it fails with another error than "not found", as a bad block does.
    #[test]
    fn a_log_that_cannot_be_read_is_no_proof_that_nothing_was_answered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".answers.log")).unwrap();
        let said = behind("eval", dir.path(), Error::Cancelled.into()).to_string();
        assert!(dir.path().exists() && said.contains("goes on from its log of answers"), "{said}");
    }
}
