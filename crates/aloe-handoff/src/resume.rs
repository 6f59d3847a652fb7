//! Which checkpoint an engine goes on from. The orchestrator picks it, not the engine: the newest one whose manifest verifies.

use crate::plan::{StagePlan, Trainer};
use crate::verify;
use std::path::{Path, PathBuf};

/// Where a session begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Beginning {
    /// The checkpoint to go on from, relative to the run folder.
    pub(crate) checkpoint: Option<PathBuf>,
    /// The step after which it goes on, 0 at the start; `None` where our own trainer finds that out.
    pub(crate) step: Option<u64>,
}

/// The newest checkpoint of a foreign trainer's earlier session that can be trusted; our own trainer finds its own. Newer ones that were
/// passed over are told, and so are those of other inputs: what was planned in this folder before is not gone on with.
pub(crate) fn newest(run: &Path, stage: &StagePlan) -> Beginning {
    if stage.trainer == Trainer::Aloe {
        return Beginning::default();
    }
    let inputs = aloe_record::digest::file(&run.join(&stage.folder).join("inputs.sha256")).ok();
    let newest = verify::newest_checkpoint_of(&run.join("work").join(&stage.name), inputs.as_deref());
    for passed_over in &newest.passed_over {
        aloe_record::tell(&format!("note: not gone on from {passed_over}"));
    }
    let Some((folder, step)) = newest.found else { return Beginning { checkpoint: None, step: Some(0) } };
    aloe_record::tell(&format!("{}: goes on after step {step}", stage.name));
    Beginning { checkpoint: folder.strip_prefix(run).ok().map(Path::to_path_buf), step: Some(step) }
}
