//! Which checkpoint an engine goes on from. The orchestrator picks it, not the engine: the newest one whose manifest verifies.

use crate::Result;
use crate::plan::{StagePlan, Trainer};
use std::path::{Path, PathBuf};

/// The newest checkpoint of a foreign trainer's earlier session that can be trusted, relative to the run folder; our own trainer finds
/// its own.
pub(crate) fn newest(run: &Path, stage: &StagePlan) -> Result<Option<PathBuf>> {
    if stage.trainer == Trainer::Aloe {
        return Ok(None);
    }
    let work = Path::new("work").join(&stage.name);
    Ok(checkpoints(&run.join(&work))?.into_iter().next_back().map(|(_, name)| work.join(name)))
}

/// `checkpoint-N` of the folder, by N, those that the engine finished: it writes `trainer_state.json` last.
fn checkpoints(work: &Path) -> Result<Vec<(u64, String)>> {
    let Ok(entries) = std::fs::read_dir(work) else { return Ok(Vec::new()) };
    let mut found: Vec<(u64, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let step = name.strip_prefix("checkpoint-")?.parse().ok()?;
            entry.path().join("trainer_state.json").is_file().then_some((step, name))
        })
        .collect();
    found.sort();
    Ok(found)
}
