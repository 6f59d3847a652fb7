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
pub(super) fn engine_log(stage: &StagePlan) -> PathBuf {
    Path::new("work").join(&stage.name).join("engine.log")
}

pub(super) fn n_bytes(path: &Path) -> u64 {
    path.metadata().map_or(0, |file| file.len())
}

/// Where the cause of a script's failure stands, with its last words: the engine's log where a foreign trainer has said something since it
/// held `said_before` bytes, the job's otherwise. What comes before the engine speaks there.
pub(super) fn cause(job: &Job<'_>, stage: &StagePlan, script: &str, said_before: u64) -> String {
    let state = Path::new("state").join(&stage.name);
    let engine = engine_log(stage);
    let has_spoken = n_bytes(&job.run.join(&engine)) > said_before;
    let log = match script == RUN && stage.trainer != Trainer::Aloe && has_spoken {
        true => engine,
        false if job.id.starts_with("local-") => state.join("local.log"),
        false => state.join(format!("slurm-{}.log", job.id)),
    };
    last_words(&job.run.join(&log)).map_or_else(String::new, |words| format!("; {} ends with: {words}", log.display()))
}

/// The last lines of a file, in one; `None` where there are none.
fn last_words(path: &Path) -> Option<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    const MOST_BYTES: u64 = 4096;
    let mut file = std::fs::File::open(path).ok()?;
    let n_bytes = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(n_bytes.saturating_sub(MOST_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let cut = |line: &&str| line.chars().take(200).collect::<String>();
    let last: Vec<String> = lines[lines.len().saturating_sub(3)..].iter().map(cut).collect();
    (!last.is_empty()).then(|| last.join(" | "))
}
