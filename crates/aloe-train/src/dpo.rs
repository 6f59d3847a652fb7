//! Direct preference optimisation: preference pairs in, a checkpoint folder out. The spine is [`dpo`].
//!
//! The reference is the model the stage starts from (or, if so configured, the model each chunk starts from); its
//! log-probabilities are computed once and kept across restarts, with `reference_cache` across runs. The prompt of a pair is computed
//! once for both answers. No dropout. Pairs longer than `max_len` and pairs with equal answers are dropped, counted and named;
//! nothing is truncated unless `truncate` says so. A second alignment stage is this stage again, started from the first one's
//! output, which then is its reference.

use crate::dpo_data::DpoData;
use crate::dpo_report::DpoReport;
use crate::lora::{LoraConfig, Start, hand_over, open_learner, refuse_untrained, start_decoder};
use crate::pairs::Truncate;
use crate::preference::{Preference, PreferenceLoss};
use crate::run::Run;
use crate::sampler::Sampler;
use crate::settings::{
    Context, MOST, declare_config, is_positive, keep, loop_fields, open_text, refuse, refuse_non_finite_start,
    start_weights,
};
use crate::{Result, finished};
use aloe_model::ModelSource;
use aloe_text::Pair;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Whose log-probabilities are the reference when the data is cut into chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceAt {
    /// The stage's start model, for every chunk.
    #[default]
    StageStart,
    /// The model each chunk starts from, as when OpenRLHF is run once per chunk. Held-out figures keep the stage's start model.
    ChunkStart,
}

loop_fields! { declare_config! {
    /// Settings of a preference stage; absent ones have the values of `Default`.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct DpoConfig {
        /// Passes over the pairs; must be 1 with more than one chunk.
        pub epochs: u64 = 1,
        /// Most optimizer steps; not with more than one chunk.
        pub max_steps: Option<u64> = None,
        /// The shuffled pairs are cut into this many chunks, trained one after the other for one epoch each. Optimizer moments
        /// and schedule start anew with each chunk.
        pub chunks: usize = 1,
        /// Whose log-probabilities are the reference.
        pub reference: ReferenceAt = ReferenceAt::StageStart,
        /// The loss.
        pub loss: PreferenceLoss = PreferenceLoss::Sigmoid,
        /// Strength of the tie to the reference.
        pub beta: f64 = 0.1,
        /// Assumed share of flipped labels.
        pub label_smoothing: f64 = 0.0,
        /// Weight of the mean negative log-probability of a chosen token, which is added to the loss: with it the chosen answers do
        /// not become less likely while the margin grows. 0 is none. As TRL's `loss_type = [LOSS, "sft"], loss_weights = [1, W]`; the
        /// mean is over the chosen tokens of the whole optimizer step.
        pub nll_weight: f64 = 0.0,
        /// Longest prompt plus answer, in tokens.
        pub max_len: usize = 2048,
        /// What becomes of longer pairs.
        pub truncate: Truncate = Truncate::Off,
        /// Pairs per optimizer step.
        pub batch_size: usize = 8,
        /// Pairs per forward pass: a matter of memory; in f32 it changes no bit of the result.
        pub micro_batch_size: usize = 1,
        /// Folder of reference log-probabilities that other runs find again. Results do not depend on it, so it is no part of what
        /// decides them.
        #[serde(skip_serializing)]
        pub reference_cache: Option<PathBuf> = None,
        /// Train low-rank updates beside frozen weights; without it all weights are trained. The reference is the model without
        /// them.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub lora: Option<LoraConfig> = None,
    }
    defaults { lr: 2e-7, betas: [0.9, 0.95] }
} }

impl DpoConfig {
    /// All mistakes, each with the field's name; empty when the settings can be used.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = self.loop_settings().mistakes();
        let mut need = |holds: bool, text: &str| {
            if !holds {
                mistakes.push(text.to_owned());
            }
        };
        let fits = |count: u64| (1..=MOST).contains(&count);
        need(fits(self.epochs), &format!("epochs must be 1 to {MOST}"));
        need(self.max_steps.is_none_or(fits), &format!("max_steps must be 1 to {MOST}"));
        need(self.chunks >= 1, "chunks must be 1 or more");
        need(self.chunks == 1 || self.epochs == 1, "epochs must be 1 with chunks: each chunk is one epoch");
        need(self.chunks == 1 || self.max_steps.is_none(), "max_steps cannot be combined with chunks");
        need(is_positive(self.beta), "beta must be above 0, as a number of f32 too");
        need((0.0..0.5).contains(&self.label_smoothing), "label_smoothing must be in 0..0.5");
        let takes_smoothing = matches!(self.loss, PreferenceLoss::Sigmoid | PreferenceLoss::Robust);
        need(takes_smoothing || self.label_smoothing == 0.0, "label_smoothing applies to sigmoid and robust only");
        need(self.nll_weight >= 0.0 && (self.nll_weight as f32).is_finite(), "nll_weight must be 0 (none) or more");
        need(self.max_len >= 2, "max_len must be 2 or more");
        need(self.batch_size >= 1, "batch_size must be 1 or more");
        need(self.micro_batch_size >= 1, "micro_batch_size must be 1 or more");
        need(
            self.chunks == 1 || !self.loop_settings().needs_held_out(),
            "patience and keep_best cannot be combined with chunks",
        );
        let is_named = self.reference_cache.as_ref().is_none_or(|folder| !folder.as_os_str().is_empty());
        need(is_named, "reference_cache names no folder: give one, or leave it out");
        let drops = self.lora.as_ref().is_some_and(|lora| lora.dropout != 0.0);
        need(
            !drops,
            "lora.dropout must be 0: dropout would change the policy's log-probabilities and not the reference's",
        );
        mistakes.extend(self.lora.iter().flat_map(|lora| lora.mistakes(self.dtype)));
        mistakes
    }

    pub(crate) fn preference(&self) -> Preference {
        Preference { loss: self.loss, beta: self.beta, label_smoothing: self.label_smoothing }
    }
}

/// One pair with where it came from.
#[derive(Clone, Debug)]
pub struct DpoRow {
    /// `file:line`.
    pub source: String,
    /// The data source the row belongs to; results are also told by it.
    pub set: String,
    /// The pair.
    pub pair: Pair,
}

/// What a preference stage reads.
#[derive(Clone, Debug)]
pub struct DpoInputs {
    /// A stage folder, its `model`, or any checkpoint folder; f32 masters are preferred (see [`start_weights`]).
    pub start: PathBuf,
    /// Pairs to train on.
    pub rows: Vec<DpoRow>,
    /// Pairs to evaluate on; when empty, `held_out_share` of `rows` is set apart.
    pub held_out: Vec<DpoRow>,
}

/// Aligns and writes `out/model`, `out/master`, with LoRA `out/adapter`, and `out/metrics.jsonl`; `out` is the partial folder of the stage, in which
/// an interrupted run is resumed. The caller writes the record and commits the folder.
pub fn dpo(config: &DpoConfig, inputs: DpoInputs, out: &Path, context: &Context) -> Result<DpoReport> {
    refuse(config.mistakes())?;
    let named = inputs.start.clone();
    let start = start_weights(&named);
    let source = ModelSource::open(&start)?;
    let text = open_text(&start, config.chat_template.as_deref())?;
    // Pairs before weights: what is wrong with them is told before 16 GB are read.
    let (mut data, mut report) = DpoData::prepare(config, inputs, &text, source.config())?;
    let start_digest = source.digest()?;
    let settings = config.loop_settings();
    let sampler = Sampler::open(&settings, &text, source.config().max_position_embeddings)?;
    let fingerprint = data.fingerprint(&start_digest, &text, context);
    if let Some(report) = finished::read(out, &fingerprint)? {
        return Ok(report);
    }
    refuse_non_finite_start(&source)?;
    refuse_untrained(config.lora.as_ref(), &source, &text, &data.control_ids(&text))?;
    let (lora, dtype, device) = (config.lora.as_ref(), config.dtype, &context.device);
    let learner = open_learner(&source, lora, config.seed, dtype, device)?.keeping(keep(config.recompute));
    let started = Instant::now();
    let mut run = Run::open(learner, settings, fingerprint.clone(), out, context)?;
    run.sampler = sampler;
    context.progress.set_total(data.total_units());
    let pairs_before = data.pairs_done(run.cursor.step);
    context.progress.resume(pairs_before);
    // A resumed run's weights are no longer the start's: they are read again if the store is incomplete.
    let reference = || match run.cursor.step {
        0 => Ok(run.learner.decoder().clone()),
        _ => start_decoder(&source, lora, config.seed, dtype, device),
    };
    let identity = format!("{start_digest} {} {}", source.config().to_json(), text.digest());
    data.stage_references(out, &reference, &identity, context)?;
    data.starts_at(run.cursor.step);
    run.evaluate_start(&mut data)?;
    for chunk in 0..config.chunks {
        let (first, schedule) = data.enter_chunk(chunk);
        if run.cursor.step < first + schedule.total_steps {
            data.chunk_reference(out, &mut run, first, context)?;
            run.span(&mut data, first, &schedule)?;
        }
    }
    run.evaluate_end(&mut data)?;
    run.learner.check_finite(run.cursor.step)?;
    let pairs_done = data.pairs_done(run.cursor.step) - pairs_before;
    report.pairs_per_s = pairs_done as f64 / started.elapsed().as_secs_f64();
    report.fill(&run, &data);
    let start = Start { source: &source, digest: &start_digest, text: &text, named: &named };
    let lora = lora.map(|lora| (lora, dtype));
    (report.export, report.lora) = hand_over(run.learner, lora, &start, &data.probe(), out)?;
    report.notices.extend(report.export.notice());
    report.start_digest = start_digest;
    finished::write(out, &fingerprint, &report)?;
    context.progress.finish();
    Ok(report)
}
