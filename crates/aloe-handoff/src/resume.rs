//! Which checkpoint an engine goes on from. The orchestrator picks it, not the engine: the newest one whose manifest verifies.

use crate::plan::{StagePlan, Trainer};
use crate::verify;
use std::path::{Path, PathBuf};

/// The newest checkpoint of a foreign trainer's earlier session that can be trusted, relative to the run folder; our own trainer finds
/// its own. Newer ones that were passed over are told.
pub(crate) fn newest(run: &Path, stage: &StagePlan) -> Option<PathBuf> {
    if stage.trainer == Trainer::Aloe {
        return None;
    }
    let newest = verify::newest_checkpoint(&run.join("work").join(&stage.name));
    for passed_over in &newest.passed_over {
        aloe_record::tell(&format!("note: not gone on from {passed_over}"));
    }
    let (folder, step) = newest.found?;
    aloe_record::tell(&format!("{}: goes on after step {step}", stage.name));
    folder.strip_prefix(run).ok().map(Path::to_path_buf)
}
