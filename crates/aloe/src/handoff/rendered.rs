//! Rows that a job renders for a foreign trainer: noted with what they were made of, so that the next session of the job takes them as they
//! are, and with the digests of what decides the training, which tell its checkpoints and its finished model from those of other rows.
//!
//! Two files beside the stage's scripts. `rendered.sha256` (as sha256sum reads it) has the ids and labels, those of held-out rows too (by them
//! the best weights are chosen), and the engine's configuration, and nothing else: a checkpoint is known by it, and another version's start script makes no other rows. `rendered.json` has every file.

use crate::failure::Failure;
use crate::input_digests::digest_of_stage;
use aloe_handoff::engine::{CONFIG, HELD_OUT, ROWS};
use aloe_handoff::resume::RENDERED;
use aloe_handoff::{StagePlan, sbatch, verify};
use aloe_record::{atomic, digest};
use aloe_text::TextModel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const NOTED: &str = "rendered.json";

/// What a job rendered.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    /// Digest of all that decides it.
    made_of: String,
    /// Digest of the data stage's results.
    data: String,
    /// Every file that was written, with its digest.
    files: BTreeMap<String, String>,
}

/// What rows are made of.
pub(super) struct MadeOf {
    all: String,
    data: String,
}

impl MadeOf {
    /// Of the plan's own inputs, the data stage's results, tokenizer and template, this program.
    pub(super) fn of(planned: &StagePlan, data: &Path, text: &TextModel) -> anyhow::Result<Self> {
        let mut hasher = digest::Hasher::default();
        let data = digest_of_data(data)?;
        let inputs = digest::file(&planned.folder.join("inputs.sha256"))?;
        let resources = serde_json::to_string(planned)?;
        for field in [env!("CARGO_PKG_VERSION"), &inputs, &resources, &data, &text.digest()] {
            hasher.field(field.as_bytes());
        }
        Ok(Self { all: hasher.hex(), data })
    }
}

fn digest_of_data(data: &Path) -> anyhow::Result<String> {
    match digest_of_stage(data) {
        Some(digest) => Ok(digest),
        None => Ok(digest::file(data)?),
    }
}

fn is_as_noted(file: &str, expected: &str) -> bool {
    digest::file(Path::new(file)).is_ok_and(|found| found == expected)
}

/// Whether an earlier session rendered the same, and its files are what it wrote.
pub(super) fn is_there(planned: &StagePlan, made_of: &MadeOf) -> bool {
    let noted: Option<Noted> = atomic::read_json(&planned.folder.join(NOTED)).ok();
    let is_same = noted.is_some_and(|noted| {
        noted.made_of == made_of.all && noted.files.iter().all(|(file, expected)| is_as_noted(file, expected))
    });
    is_same && planned.folder.join(RENDERED).is_file()
}

/// Notes what was rendered. Of other rows than before, a model that is trained and sealed is trained again, and a session that was to go on
/// from a checkpoint ends here: the next one passes that checkpoint over.
pub(super) fn note(planned: &StagePlan, made_of: MadeOf, files: &[String]) -> anyhow::Result<()> {
    let files: BTreeMap<String, String> =
        files.iter().map(|file| Ok((file.clone(), digest::file(Path::new(file))?))).collect::<anyhow::Result<_>>()?;
    let decides =
        |file: &str| Path::new(file).file_name().is_some_and(|name| name == ROWS || name == HELD_OUT || name == CONFIG);
    let mut trained_with = files.clone();
    trained_with.retain(|file, _| decides(file));
    let lines = sbatch::inputs_file(&trained_with);
    let path = planned.folder.join(RENDERED);
    let earlier = std::fs::read_to_string(&path).ok();
    let is_known = |line: &&str| earlier.iter().flat_map(|text| text.lines()).any(|known| known == *line);
    let others: Vec<&str> = lines.lines().filter(|line| !is_known(line)).filter_map(|line| line.get(66..)).collect();
    if !others.is_empty() {
        // First: a session that is killed here finds the earlier digests and comes by again.
        if verify::unseal(&Path::new("work").join(&planned.name))? {
            aloe_record::tell(&format!("note: {} was trained with other rows; it is trained again", planned.name));
        }
        atomic::write(&path, lines.as_bytes())?;
    }
    // A file of an earlier version that names more than these stays: its checkpoints are known by it.
    atomic::write_json(&planned.folder.join(NOTED), &Noted { made_of: made_of.all, data: made_of.data, files })?;
    let checkpoint = std::env::var("ALOE_RESUME").ok().filter(|folder| !folder.is_empty());
    match (checkpoint.filter(|_| !others.is_empty()), earlier) {
        (Some(checkpoint), Some(_)) => Err(Failure::usage(format!(
            "{} of {} are others than those that {checkpoint} was trained with: `aloe resume` trains from the start",
            others.join(" and "),
            planned.name
        ))
        .into()),
        (Some(checkpoint), None) => Err(Failure::usage(format!(
            "an earlier version of aloe saved {checkpoint} without a note of the rows that it was trained with: `aloe resume` trains {} from \
             the start",
            planned.name
        ))
        .into()),
        (None, _) => Ok(()),
    }
}

/// Refuses to take over what was trained with other inputs than those that lie here now: files of the plan, or rows that a job rendered.
pub(super) fn refuse_others(planned: &StagePlan, data: &Path) -> anyhow::Result<()> {
    let name = &planned.name;
    let inputs = planned.folder.join("inputs.sha256");
    let lines = std::fs::read_to_string(&inputs).map_err(aloe_record::Error::io("read", &inputs))?;
    let changed =
        lines.lines().filter_map(|line| line.split_once("  ")).find(|(digest, file)| !is_as_noted(file, digest));
    if let Some((_, file)) = changed {
        let text = format!("{file} is not what {name} was planned with ({})", inputs.display());
        return Err(Failure::usage(text).into());
    }
    let path = planned.folder.join(NOTED);
    if !path.exists() {
        return Ok(());
    }
    let noted: Noted = atomic::read_json(&path)?;
    if noted.data != digest_of_data(data)? {
        let text = format!(
            "{} was made anew since the job of {name} rendered its rows: it is trained again by its job, see `aloe resume`",
            data.display()
        );
        return Err(Failure::usage(text).into());
    }
    Ok(())
}
