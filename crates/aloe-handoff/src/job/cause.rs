//! What a job that failed is told to have ended with: the words of the program that did the work.

use super::{Job, RUN};
use crate::plan::{StagePlan, Trainer};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// How a process ended, in words.
pub(crate) fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended without a code".to_owned(),
    }
}

/// What a foreign trainer says, in the run folder.
fn engine_log(stage: &StagePlan) -> PathBuf {
    Path::new("work").join(&stage.name).join("engine.log")
}

/// What the job and its scripts say, in the run folder.
fn own_log(job: &Job<'_>, stage: &StagePlan) -> PathBuf {
    let state = Path::new("state").join(&stage.name);
    match job.id.starts_with("local-") {
        true => state.join("local.log"),
        false => state.join(format!("slurm-{}.log", job.id)),
    }
}

/// Bytes of both logs before the work: what stands there is an earlier attempt's.
pub(super) struct LogsBefore {
    engine: u64,
    own: u64,
}

impl LogsBefore {
    pub(super) fn of(job: &Job<'_>, stage: &StagePlan) -> Self {
        let n_bytes = |path: PathBuf| job.run.join(path).metadata().map_or(0, |file| file.len());
        Self { engine: n_bytes(engine_log(stage)), own: n_bytes(own_log(job, stage)) }
    }
}

/// Where the cause of a script's failure stands, with its last words: the engine's log where a foreign trainer has said something since
/// `before`, the job's otherwise. What comes before the engine speaks there.
pub(super) fn cause(job: &Job<'_>, stage: &StagePlan, script: &str, before: &LogsBefore) -> String {
    let is_foreign = script == RUN && stage.trainer != Trainer::Aloe;
    let said = |log: PathBuf, before: u64| last_words(&job.run.join(&log), before).map(|words| (log, words));
    let engine = || said(engine_log(stage), before.engine).filter(|_| is_foreign);
    let found = engine().or_else(|| said(own_log(job, stage), before.own));
    found.map_or_else(String::new, |(log, words)| format!("; {} ends with: {words}", log.display()))
}

/// The last lines of a file behind its first `before` bytes, in one; `None` where there are none.
fn last_words(path: &Path, before: u64) -> Option<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    const MOST_BYTES: u64 = 4096;
    const MOST_LETTERS: usize = 500;
    let mut file = std::fs::File::open(path).ok()?;
    let n_bytes = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(n_bytes.saturating_sub(MOST_BYTES).max(before))).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let cut = |line: &&str| line.chars().take(MOST_LETTERS).collect::<String>();
    let last: Vec<String> = lines[lines.len().saturating_sub(3)..].iter().map(cut).collect();
    (!last.is_empty()).then(|| last.join(" | "))
}
