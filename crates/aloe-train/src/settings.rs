//! What SFT and DPO have in common: the optimizer's settings as one struct, their checks, and what a spine is handed.

use crate::schedule::Schedule;
use crate::{Error, Result};
use aloe_model::{Gguf, Keep};
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
    /// The most floating point operations a second that this machine does, where it was measured: the limit that a step's speed is
    /// a share of.
    pub peak_flops: Option<f64>,
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

/// What of a forward pass is kept under the setting `recompute`.
pub(crate) fn keep(recompute: bool) -> Keep {
    if recompute { Keep::Inputs } else { Keep::All }
}

/// The settings that every training stage has, written once: hands the list to the macro `$then`.
macro_rules! loop_fields {
    ($then:ident! { $($given:tt)* }) => {
        $then! {
            { $($given)* }
            {
                /// Peak learning rate.
                lr: f64 = 2e-5,
                /// Steps of the linear rise from 0.
                warmup_steps: u64 = 0,
                /// The same as a share of all steps, rounded up; 0 takes `warmup_steps`.
                warmup_ratio: f64 = 0.0,
                /// The curve after the warm-up.
                schedule: $crate::schedule::Decay = $crate::schedule::Decay::Cosine,
                /// Where the curve ends, as a share of `lr`.
                lr_floor: f64 = 0.0,
                /// AdamW's betas.
                betas: [f64; 2] = [0.9, 0.999],
                /// AdamW's epsilon.
                eps: f64 = 1e-8,
                /// Decoupled weight decay; norm weights and biases never decay.
                weight_decay: f64 = 0.0,
                /// Largest norm of the gradient; 0 turns clipping off.
                clip: f64 = 1.0,
                /// Seed of order and held-out choice.
                seed: u64 = 0,
                /// Type of the compute copies.
                dtype: $crate::settings::TrainDtype = $crate::settings::TrainDtype::Bf16,
                /// Keep each layer's input for the backward pass, in bf16 also its attention's output, and compute the rest again: up to a
                /// third more time, less memory, the same bits.
                recompute: bool = false,
                /// A built-in template's name or a `.jinja` file in place of the start model's own; written to the output.
                chat_template: Option<String> = None,
                /// Whether epochs are shuffled; off keeps the order of the file before packing.
                shuffle: bool = true,
                /// Share of the rows set apart and never trained on, when no held-out rows are given; rounded down, to a row or more.
                held_out_share: f64 = 0.0,
                /// Steps between held-out evaluations, which need held-out rows; 0 for the start and the end only.
                eval_every: u64 = 0,
                /// Held-out evaluations in a row without a better one that end the training; 0 never does.
                patience: u64 = 0,
                /// Whether the weights with the best held-out evaluation are written, and not the last ones.
                keep_best: bool = false,
                /// Steps between answers to `sample_prompts`; 0 for none.
                sample_every: u64 = 0,
                /// User messages that the model in training answers, greedily.
                sample_prompts: Vec<String> = Vec::new(),
                /// The most tokens of such an answer.
                sample_tokens: usize = 64,
                /// Steps between checkpoints; 0 for none but at an interruption.
                checkpoint_every: u64 = 100,
                /// Checkpoints kept.
                keep_last: usize = 2,
                /// What a non-finite loss or gradient does.
                on_nonfinite: $crate::guard::OnNonFinite = $crate::guard::OnNonFinite::Stop,
                /// What a loss or gradient norm six standard deviations above the recent ones does.
                on_spike: $crate::guard::OnSpike = $crate::guard::OnSpike::Stop,
            }
        }
    };
}

/// The step loop's part alone.
macro_rules! declare_loop {
    ({} { $($(#[$about:meta])* $field:ident: $kind:ty = $default:expr,)* }) => {
        /// The part of a stage's settings that the step loop needs.
        #[derive(Clone, Debug)]
        pub(crate) struct LoopSettings {
            $($(#[$about])* pub(crate) $field: $kind,)*
        }

        impl Default for LoopSettings {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

loop_fields! { declare_loop! {} }

/// A stage's settings: its own fields, those of the loop, and under `defaults` the loop's values that differ in this stage.
macro_rules! declare_config {
    (
        {
            $(#[$attribute:meta])*
            pub struct $name:ident { $($(#[$own_about:meta])* pub $own:ident: $own_kind:ty = $own_default:expr,)* }
            defaults { $($changed:ident: $value:expr),* $(,)? }
        }
        { $($(#[$about:meta])* $field:ident: $kind:ty = $default:expr,)* }
    ) => {
        $(#[$attribute])*
        pub struct $name {
            $($(#[$own_about])* pub $own: $own_kind,)*
            $($(#[$about])* pub $field: $kind,)*
        }

        impl Default for $name {
            fn default() -> Self {
                #[allow(clippy::needless_update, reason = "a stage may change every value of the loop, or none")]
                let common =
                    $crate::settings::LoopSettings { $($changed: $value,)* ..$crate::settings::LoopSettings::default() };
                Self { $($own: $own_default,)* $($field: common.$field,)* }
            }
        }

        impl $name {
            pub(crate) fn loop_settings(&self) -> $crate::settings::LoopSettings {
                $crate::settings::LoopSettings { $($field: self.$field.clone(),)* }
            }
        }
    };
}

pub(crate) use {declare_config, loop_fields};

impl LoopSettings {
    /// The learning rates of `total_steps`. A warm-up given as a share is rounded up, as transformers does.
    pub(crate) fn curve(&self, total_steps: u64) -> Schedule {
        let share = (self.warmup_ratio * total_steps as f64).ceil() as u64;
        Schedule {
            peak: self.lr,
            warmup_steps: if self.warmup_ratio > 0.0 { share } else { self.warmup_steps },
            total_steps,
            decay: self.schedule,
            floor: self.lr_floor,
        }
    }

    /// Whether the training depends on held-out evaluations.
    pub(crate) fn needs_held_out(&self) -> bool {
        self.patience > 0 || self.keep_best
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
        need((0.0..1.0).contains(&self.warmup_ratio), format!("warmup_ratio = {}: must be in 0..1", self.warmup_ratio));
        need(
            self.warmup_ratio == 0.0 || self.warmup_steps == 0,
            "warmup_ratio and warmup_steps: give one of them".into(),
        );
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
        need((0.0..1.0).contains(&self.held_out_share), "held_out_share must be in 0..1".into());
        need(self.keep_last > 0, "keep_last = 0: must be 1 or more".into());
        need(
            self.patience == 0 || self.eval_every > 0,
            format!("patience = {}: needs eval_every, the steps between held-out evaluations", self.patience),
        );
        need(
            !self.keep_best || self.eval_every > 0,
            "keep_best: needs eval_every, the steps between held-out evaluations".into(),
        );
        need(
            (self.sample_every > 0) != self.sample_prompts.is_empty(),
            "sample_every and sample_prompts: give both of them, or none".into(),
        );
        need(self.sample_tokens > 0, "sample_tokens = 0: must be 1 or more".into());
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
