//! Which checkpoint an engine goes on from. The orchestrator picks it, not the engine: the newest one whose manifest verifies.

use crate::plan::{StagePlan, Trainer};
use crate::verify::{self, TrainedWith};
use aloe_record::digest;
use std::path::{Path, PathBuf};

/// Digests of the rows and the configuration that the stage's own job wrote for its engine, beside `inputs.sha256`: of rows that an earlier
/// job made.
pub const RENDERED: &str = "rendered.sha256";

/// What a checkpoint of the stage in `folder` was trained with, as the start script writes it into the checkpoint's manifest.
pub(crate) fn trained_with(folder: &Path) -> Option<TrainedWith> {
    let plan = std::fs::read(folder.join("inputs.sha256")).ok()?;
    Some(match std::fs::read(folder.join(RENDERED)) {
        Ok(rendered) => TrainedWith {
            digest: digest::bytes(&[plan.as_slice(), &rendered].concat()),
            of_plan: Some(digest::bytes(&plan)),
        },
        Err(_) => TrainedWith { digest: digest::bytes(&plan), of_plan: None },
    })
}

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
    let inputs = trained_with(&run.join(&stage.folder));
    let newest = verify::newest_checkpoint_of(&run.join("work").join(&stage.name), inputs.as_ref());
    for passed_over in &newest.passed_over {
        aloe_record::tell(&format!("note: not gone on from {passed_over}"));
    }
    let Some((folder, step)) = newest.found else { return Beginning { checkpoint: None, step: Some(0) } };
    aloe_record::tell(&format!("{}: goes on after step {step}", stage.name));
    Beginning { checkpoint: folder.strip_prefix(run).ok().map(Path::to_path_buf), step: Some(step) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The lines of the start script that tell what a checkpoint was trained with.
    const OF_SCRIPT: &str = "import hashlib, pathlib, sys, textwrap\n\
        stage = pathlib.Path(sys.argv[1])\n\
        lines = open(sys.argv[2], encoding='utf-8').read().split('    known = [')[1].split('\\n\\n')[0]\n\
        exec(textwrap.dedent('    known = [' + lines))\n\
        print(inputs)";

    #[test]
    fn rows_that_a_job_rendered_are_part_of_what_a_checkpoint_was_trained_with_here_and_in_the_start_script() {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/launcher.py");
        let of_script = || {
            let output = Command::new("python3").args(["-c", OF_SCRIPT]).arg(dir.path()).arg(&script).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let here = || trained_with(dir.path()).map(|with| (with.digest, with.of_plan));
        assert_eq!((here(), of_script().as_str()), (None, "None"));
        std::fs::write(dir.path().join("inputs.sha256"), "abc").unwrap();
        // SHA-256 of "abc", FIPS 180-2 appendix B.1.
        let of_inputs = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((here().unwrap(), of_script().as_str()), ((of_inputs.to_owned(), None), of_inputs));
        std::fs::write(dir.path().join(RENDERED), "dbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq").unwrap();
        // Of both together, its appendix B.2 (which begins "abcd", so "abc" is its head).
        let of_both = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1";
        let of_inputs = Some(of_inputs.to_owned());
        assert_eq!((here().unwrap(), of_script().as_str()), ((of_both.to_owned(), of_inputs), of_both));
    }
}
