//! What SFT and DPO have in common: the optimizer's settings as one struct, their checks, and what a spine is handed.

use crate::schedule::{Decay, Schedule};
use crate::{Error, Result};
use aloe_model::{Gguf, Keep, ModelSource};
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
                /// Where the curve ends, as a share of `lr`; a constant one has no end.
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
                /// Whether epochs are shuffled; off keeps the order of the file, in SFT that of packing: rows from long to short.
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
                /// Steps between checkpoints; the last step has one too, before the model is written. 0 for none but where a run is stopped.
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

    /// Refuses a span of steps in which the rate is never above 0, and tells what keeps `lr` and `weight_decay` from acting. A span has moments
    /// and a schedule of its own.
    pub(crate) fn judge_spans(&self, n_steps: &[u64]) -> Result<Vec<String>> {
        let schedules = || n_steps.iter().map(|&n_steps| self.curve(n_steps));
        refuse(schedules().filter_map(|schedule| schedule.mistake()).take(1).collect())?;
        let warm_up = schedules().find_map(|schedule| schedule.notice());
        Ok(warm_up.into_iter().chain(self.decay_notice()).collect())
    }

    /// A line on a weight decay that f32 does not see, not even at the peak rate. The factor is that of `aloe_tensor`'s AdamW, and of PyTorch's.
    fn decay_notice(&self) -> Option<String> {
        let (lr, decay) = (self.lr as f32, self.weight_decay as f32);
        let keeps = (1.0 - f64::from(lr) * f64::from(decay)) as f32;
        (decay > 0.0 && keeps == 1.0).then(|| {
            format!(
                "weight_decay = {decay} has no effect at lr = {lr:e}: 1 - lr * weight_decay is 1 in f32, here as in PyTorch's AdamW; it acts where \
                 lr * weight_decay is above 3e-8"
            )
        })
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
        need(is_positive(self.lr), format!("lr = {}: must be above 0, as a number of f32 too", self.lr));
        need((0.0..1.0).contains(&self.warmup_ratio), format!("warmup_ratio = {}: must be in 0..1", self.warmup_ratio));
        need(
            self.warmup_ratio == 0.0 || self.warmup_steps == 0,
            "warmup_ratio and warmup_steps: give one of them".into(),
        );
        need(
            (0.0..=1.0).contains(&self.lr_floor),
            format!("lr_floor = {}: must be a share of lr in 0..=1", self.lr_floor),
        );
        need(
            self.lr_floor == 0.0 || self.schedule != Decay::Constant,
            format!(
                "lr_floor = {}: a constant schedule does not fall; set it to 0, or schedule to cosine or linear",
                self.lr_floor
            ),
        );
        for beta in self.betas {
            need((0.0..1.0).contains(&(beta as f32)), format!("betas: {beta} must be in 0..1, as a number of f32 too"));
        }
        need(is_positive(self.eps), format!("eps = {}: must be above 0, as a number of f32 too", self.eps));
        need(
            self.weight_decay >= 0.0 && (self.weight_decay as f32).is_finite(),
            format!("weight_decay = {}: must be 0 or more, and finite in f32", self.weight_decay),
        );
        need(self.clip >= 0.0 && self.clip.is_finite(), format!("clip = {}: must be 0 (off) or more", self.clip));
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

/// The most epochs or steps that settings may ask for: products with them fit into 64 bits.
pub(crate) const MOST: u64 = u32::MAX as u64;

/// Whether a setting is above 0 and finite as the f32 that is computed with.
pub(crate) fn is_positive(value: f64) -> bool {
    value as f32 > 0.0 && (value as f32).is_finite()
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

/// Refuses a start model with a weight that is NaN or infinite, by tensor and folder: no step can make it finite, and what is trained from it
/// cannot be written.
pub(crate) fn refuse_non_finite_start(source: &ModelSource) -> Result<()> {
    match source.check_finite() {
        Err(error @ aloe_model::Error::NonFinite { .. }) => {
            let reason = format!("{error}; it cannot be trained from: pull it again, or start from another model");
            Err(Error::Data { what: source.path.display().to_string(), reason })
        }
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_nothing_or_infinite_in_f32_are_refused() {
        let mistakes = |change: &dyn Fn(&mut LoopSettings)| {
            let mut settings = LoopSettings::default();
            change(&mut settings);
            settings.mistakes()
        };
        assert!(mistakes(&|_| {}).is_empty());
        let check = |name: &str, change: &dyn Fn(&mut LoopSettings)| {
            let found = mistakes(change);
            assert!(matches!(found.as_slice(), [one] if one.starts_with(name)), "{name}: {found:?}");
        };
        for value in [0.0, 1e-50, 1e39, f64::NAN, f64::INFINITY] {
            check("lr = ", &|settings| settings.lr = value);
            check("eps = ", &|settings| settings.eps = value);
        }
        for value in [1e39, f64::NAN, f64::INFINITY, -1.0] {
            check("weight_decay = ", &|settings| settings.weight_decay = value);
        }
        check("clip = ", &|settings| settings.clip = f64::INFINITY);
        // 1 - 1e-9 is 1 in f32, and AdamW would divide by 1 - 1.
        for value in [1.0 - 1e-9, f64::NAN, -0.1] {
            check("betas: ", &|settings| settings.betas[1] = value);
        }
        check("lr_floor = 0.1: a constant schedule", &|settings| {
            (settings.lr_floor, settings.schedule) = (0.1, Decay::Constant);
        });
        let sft = |change: &dyn Fn(&mut crate::SftConfig)| {
            let mut config = crate::SftConfig { epochs: Some(1), ..Default::default() };
            change(&mut config);
            config.mistakes().len()
        };
        assert_eq!(sft(&|config| config.neftune_alpha = 15.0), 0);
        assert_eq!(sft(&|config| config.neftune_alpha = 1e6), 1);
        assert_eq!(sft(&|config| config.epochs = Some(1 << 62)), 1);
        let dpo = |change: &dyn Fn(&mut crate::DpoConfig)| {
            let mut config = crate::DpoConfig::default();
            change(&mut config);
            config.mistakes().len()
        };
        assert_eq!(dpo(&|_| {}), 0);
        assert_eq!(dpo(&|config| config.beta = 1e-60), 1);
        assert_eq!(dpo(&|config| config.epochs = 1 << 62), 1);
    }

    #[test]
    fn a_warm_up_without_a_rate_above_0_is_refused_and_one_without_an_end_or_a_decay_without_effect_is_told() {
        let settings =
            |warmup_steps, lr, weight_decay| LoopSettings { warmup_steps, lr, weight_decay, ..Default::default() };
        let told =
            |settings: LoopSettings, n_steps: &[u64]| settings.judge_spans(n_steps).map_err(|error| error.to_string());
        assert_eq!(told(settings(0, 1e-3, 0.0), &[1, 1]).unwrap(), [""; 0]);
        assert_eq!(told(settings(2, 1e-3, 0.1), &[3]).unwrap(), [""; 0]);
        let refused = told(settings(1, 1e-3, 0.0), &[2, 1]).unwrap_err();
        assert!(refused.starts_with("the warm-up (1 steps) leaves nothing to train"), "{refused}");
        let share = LoopSettings { warmup_ratio: 0.03, ..Default::default() };
        assert!(told(share, &[1]).is_err());
        // Rates 0, 1/4 and 2/4 of 1e-3.
        let unfinished = told(settings(4, 1e-3, 0.0), &[3]).unwrap();
        assert!(matches!(unfinished.as_slice(), [one] if one.contains("the highest rate is 5e-4")), "{unfinished:?}");
        // f32 has 2^-24 = 6e-8 below 1: 1 - 2e-8 is rounded to 1, 1 - 4e-8 is not.
        let decays = |decay| told(settings(0, 2e-7, decay), &[3]).unwrap();
        assert!(matches!(decays(0.1).as_slice(), [one] if one.starts_with("weight_decay = 0.1 has no effect")));
        assert_eq!((decays(0.2).len(), decays(0.0).len()), (0, 0));
    }

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
