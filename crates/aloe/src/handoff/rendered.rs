//! Rows that a job renders for a foreign trainer: noted with what they were made of, so that the next session of the job takes them as they
//! are, and with their digests, which are part of what tells the checkpoints of a training from those of another.
//!
//! Two files beside the stage's scripts: `rendered.sha256` (as sha256sum reads it) and `rendered.from`, one digest.

use crate::failure::Failure;
use crate::input_digests::digest_of_stage;
use aloe_handoff::resume::RENDERED;
use aloe_handoff::{StagePlan, sbatch};
use aloe_record::{atomic, digest};
use aloe_text::TextModel;
use std::collections::BTreeMap;
use std::path::Path;

const MADE_OF: &str = "rendered.from";

/// Digest of all that decides what a job renders: the plan's own inputs, the data stage's results, tokenizer and template, this program.
pub(super) fn made_of(planned: &StagePlan, data: &Path, text: &TextModel) -> anyhow::Result<String> {
    let mut hasher = digest::Hasher::default();
    let rows = match digest_of_stage(data) {
        Some(digest) => digest,
        None => digest::file(data)?,
    };
    let inputs = digest::file(&planned.folder.join("inputs.sha256"))?;
    let resources = serde_json::to_string(planned)?;
    for field in [env!("CARGO_PKG_VERSION"), &inputs, &resources, &rows, &text.digest()] {
        hasher.field(field.as_bytes());
    }
    Ok(hasher.hex())
}

/// Whether an earlier session rendered the same, and its files are what it wrote.
pub(super) fn is_there(planned: &StagePlan, made_of: &str) -> bool {
    let noted = std::fs::read_to_string(planned.folder.join(MADE_OF)).unwrap_or_default();
    let files = std::fs::read_to_string(planned.folder.join(RENDERED)).unwrap_or_default();
    let is_whole = |line: &str| {
        let file = line.split_once("  ");
        file.is_some_and(|(expected, name)| digest::file(Path::new(name)).is_ok_and(|found| found == expected))
    };
    noted.trim() == made_of && !files.is_empty() && files.lines().all(is_whole)
}

/// Notes what was rendered. A session that was to go on from a checkpoint of other rows ends here: the next one passes that checkpoint over.
pub(super) fn note(planned: &StagePlan, made_of: &str, files: &[String]) -> anyhow::Result<()> {
    let digests: BTreeMap<String, String> =
        files.iter().map(|file| Ok((file.clone(), digest::file(Path::new(file))?))).collect::<anyhow::Result<_>>()?;
    let (path, text) = (planned.folder.join(RENDERED), sbatch::inputs_file(&digests));
    let earlier = std::fs::read_to_string(&path).ok();
    atomic::write(&path, text.as_bytes())?;
    atomic::write(&planned.folder.join(MADE_OF), made_of.as_bytes())?;
    let checkpoint = std::env::var("ALOE_RESUME").ok().filter(|folder| !folder.is_empty());
    let are_others = earlier.is_some_and(|earlier| earlier != text);
    match checkpoint.filter(|_| are_others) {
        Some(checkpoint) => Err(Failure::usage(format!(
            "the rows of {} are others than those that {checkpoint} was trained with: `aloe resume` trains from the start",
            planned.name
        ))
        .into()),
        None => Ok(()),
    }
}
