//! What SFT and DPO have in common: the optimizer's settings as one struct, their checks, and what a spine is handed.

use crate::guard::{OnNonFinite, OnSpike};
use crate::schedule::{Decay, Schedule};
use crate::{Error, Result};
use aloe_model::Gguf;
use aloe_record::{Cancel, Progress};
use aloe_tensor::{Device, Dtype};
use aloe_text::TextModel;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a spine computes on and reports to.
pub struct Context {
    /// Processor and threads.
    pub device: Device,
    /// Told the total, each step's share of it, and the loss.
    pub progress: Progress,
    /// Asked between micro-batches; a stop saves the state first.
    pub cancel: Cancel,
}

/// Type of the weights' compute copies; masters, moments, gradients and sums are f32 or wider in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainDtype {
    /// Matrix products on operands rounded to bf16, accumulated in f32.
    #[default]
    Bf16,
    /// All in f32: the mode that is compared with PyTorch.
    F32,
}

impl TrainDtype {
    pub(crate) fn tensor(self) -> Dtype {
        match self {
            TrainDtype::Bf16 => Dtype::Bf16,
            TrainDtype::F32 => Dtype::F32,
        }
    }
}

/// The part of a stage's settings that the step loop needs.
#[derive(Clone, Debug)]
pub(crate) struct LoopSettings {
    pub(crate) lr: f64,
    pub(crate) warmup_steps: u64,
    pub(crate) schedule: Decay,
    pub(crate) lr_floor: f64,
    pub(crate) betas: [f64; 2],
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    pub(crate) clip: f64,
    pub(crate) eval_every: u64,
    pub(crate) checkpoint_every: u64,
    pub(crate) keep_last: usize,
    pub(crate) on_nonfinite: OnNonFinite,
    pub(crate) on_spike: OnSpike,
}

impl LoopSettings {
    /// The learning rates of `total_steps`.
    pub(crate) fn curve(&self, total_steps: u64) -> Schedule {
        Schedule {
            peak: self.lr,
            warmup_steps: self.warmup_steps,
            total_steps,
            decay: self.schedule,
            floor: self.lr_floor,
        }
    }

    /// All mistakes of these settings.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut need = |holds: bool, text: String| {
            if !holds {
                mistakes.push(text);
            }
        };
        need(self.lr > 0.0 && self.lr.is_finite(), format!("lr = {}: must be above 0", self.lr));
        need(
            (0.0..=1.0).contains(&self.lr_floor),
            format!("lr_floor = {}: must be a share of lr in 0..=1", self.lr_floor),
        );
        for beta in self.betas {
            need((0.0..1.0).contains(&beta), format!("betas: {beta} must be in 0..1"));
        }
        need(self.eps > 0.0, format!("eps = {}: must be above 0", self.eps));
        need(self.weight_decay >= 0.0, format!("weight_decay = {}: must be 0 or more", self.weight_decay));
        need(self.clip >= 0.0, format!("clip = {}: must be 0 (off) or more", self.clip));
        need(self.keep_last > 0, "keep_last = 0: must be 1 or more".into());
        mistakes
    }
}

/// The error that lists `mistakes`, if there are any.
pub(crate) fn refuse(mistakes: Vec<String>) -> Result<()> {
    if mistakes.is_empty() { Ok(()) } else { Err(Error::Config { mistakes }) }
}

/// The tokenizer and template of a model folder or GGUF file, with another template where one is named.
pub(crate) fn open_text(start: &Path, chat_template: Option<&str>) -> Result<TextModel> {
    let is_gguf = start.extension().is_some_and(|extension| extension == "gguf");
    let text = if is_gguf { TextModel::from_gguf(Gguf::open(start)?.metadata())? } else { TextModel::open(start)? };
    match chat_template {
        Some(name) => Ok(text.with_template(name)?),
        None => Ok(text),
    }
}

/// The folder whose weights a stage starts from: the f32 `master` beside or inside `dir` where there is one, because an
/// update below half a bf16 step is lost in the `model` export; otherwise `dir` itself.
pub fn start_weights(dir: &Path) -> PathBuf {
    let inside = dir.join("master");
    let beside = dir.with_file_name("master");
    let is_export = dir.file_name().is_some_and(|name| name == "model");
    if inside.join("config.json").is_file() {
        inside
    } else if is_export && beside.join("config.json").is_file() {
        beside
    } else {
        let export = dir.join("model");
        if !dir.join("config.json").is_file() && export.join("config.json").is_file() {
            export
        } else {
            dir.to_path_buf()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_starts_from_the_f32_masters_where_there_are_any() {
        let dir = tempfile::tempdir().unwrap();
        let stage = dir.path().join("stage");
        for name in ["model", "master"] {
            std::fs::create_dir_all(stage.join(name)).unwrap();
            std::fs::write(stage.join(name).join("config.json"), "{}").unwrap();
        }
        assert_eq!(start_weights(&stage), stage.join("master"));
        assert_eq!(start_weights(&stage.join("model")), stage.join("master"));
        std::fs::remove_file(stage.join("master/config.json")).unwrap();
        assert_eq!(start_weights(&stage.join("model")), stage.join("model"));
        assert_eq!(start_weights(&stage), stage.join("model"));
    }
}
