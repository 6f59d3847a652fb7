//! `kind = "merge-search"` as written: a mergekit YAML, the space of its numbers, how it is searched, and the evaluation that scores a
//! merge. [`MergeSearchStage::checked`] gives the forms that the search and the evaluator take; a search on a reported set is refused here.

use super::eval_stage::EvalStage;
use aloe_eval::EvalConfig;
use aloe_merge::search::{SearchSettings, Space};
use aloe_task::reported;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// The keys of a merge search.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MergeSearchStage {
    /// The YAML text, model names equal to the keys of `from`, or paths.
    pub(crate) yaml: String,
    /// Knobs: path or name to a range.
    pub(crate) space: Map<String, Value>,
    /// How points are proposed.
    pub(crate) search: SearchSettings,
    /// What scores a merge, with the keys of an evaluation stage.
    pub(crate) eval: EvalStage,
    /// Whether the unmerged inputs are scored on the same questions.
    #[serde(default = "yes")]
    pub(crate) score_inputs: bool,
    /// Folder of scored points that other searches find again. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) point_cache: Option<PathBuf>,
    /// What is known and not known about this search; kept in the record.
    pub(crate) note: Option<String>,
    /// Write `model/` and the f32 `master/` of the best merge; otherwise one Hugging Face folder.
    #[serde(default = "yes")]
    pub(crate) master: bool,
    /// Memory budget of a merge in MiB; results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) memory: Option<u64>,
    /// Names that `from` gives; set by the reader.
    #[serde(skip)]
    pub(crate) inputs: Vec<String>,
}

fn yes() -> bool {
    true
}

impl MergeSearchStage {
    /// The space and the evaluator's settings, or every mistake.
    pub(crate) fn checked(&self) -> Result<(Space, EvalConfig), Vec<String>> {
        let mut mistakes = Vec::new();
        let space = Space::new(&self.yaml, &self.space, &self.search).map_err(|found| mistakes.extend(found)).ok();
        let config =
            self.eval.checked().map_err(|found| mistakes.extend(found.iter().map(|one| format!("eval: {one}")))).ok();
        for key in [
            ("tokenizer", self.eval.tokenizer.is_some()),
            ("server_template", self.eval.server_template),
            ("request_timeout", self.eval.request_timeout.is_some() && !self.asks_a_server()),
        ] {
            if let (name, true) = key {
                mistakes.push(format!("eval: {name} is for endpoints, and a merge is asked here: leave it out"));
            }
        }
        for &task in config.iter().flat_map(|config| &config.tasks) {
            if let Some(reason) = config.as_ref().and_then(|config| reported::refusal(task, config.split)) {
                mistakes.push(format!("eval: {reason}; choose with split = \"validation\""));
            }
        }
        match (space, config) {
            (Some(space), Some(config)) if mistakes.is_empty() => Ok((space, config)),
            _ => Err(mistakes),
        }
    }

    /// Whether the encoder that Medprompt finds neighbours by is an endpoint.
    fn asks_a_server(&self) -> bool {
        self.eval.embedder.as_ref().is_some_and(|path| path.to_string_lossy().starts_with("http"))
    }

    /// Models that the YAML names itself, and not by a key of `from`, with their folders.
    pub(crate) fn outside_models(&self) -> Vec<(String, PathBuf)> {
        super::stage_config::outside_models(&self.yaml, &self.inputs)
    }

    /// Files and folders beside the inputs that are read.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.outside_models().into_iter().map(|(_, folder)| folder).chain(self.eval.files()).collect()
    }

    /// How many models are asked, at most: points and unmerged inputs.
    pub(crate) fn n_asked(&self) -> Option<usize> {
        let (space, _) = self.checked().ok()?;
        let inputs = if self.score_inputs { self.inputs.len() + self.outside_models().len() } else { 0 };
        Some(space.n_points(&self.search) + inputs)
    }
}
