//! Supervised fine-tuning: conversations in, a checkpoint folder out. The spine is [`sft`].
//!
//! Trains on assistant turns and their end-of-turn tokens only; the loss of a step is the mean over all its trained tokens,
//! whatever the micro-batches. Refuses data in which nothing or everything is trained on. Rows longer than `max_len` and rows
//! without a trained token are dropped, counted and named; nothing is truncated.

use crate::export::{ExportReport, export};
use crate::guard::{OnNonFinite, OnSpike};
use crate::learner::Learner;
use crate::run::Run;
use crate::schedule::Decay;
use crate::settings::{Context, LoopSettings, TrainDtype, open_text, refuse, start_weights};
use crate::sft_data::SftData;
use crate::{Result, finished};
use aloe_model::ModelSource;
use aloe_text::Conversation;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Settings of a supervised stage; absent ones have the values of `Default`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SftConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Passes over the data. At least one of `epochs` and `max_steps` is needed; the smaller decides.
    pub epochs: Option<u64>,
    /// Most optimizer steps.
    pub max_steps: Option<u64>,
    /// Tokens of a packed row, and the longest row trained on.
    pub max_len: usize,
    /// Packed rows per optimizer step.
    pub batch_size: usize,
    /// Packed rows per forward pass: a matter of memory; in f32 it changes no bit of the result.
    pub micro_batch_size: usize,
    /// Steps of the linear rise from 0.
    pub warmup_steps: u64,
    /// The curve after the warm-up.
    pub schedule: Decay,
    /// Where the curve ends, as a share of `lr`.
    pub lr_floor: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// Decoupled weight decay; norm weights and biases never decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 turns clipping off.
    pub clip: f64,
    /// Seed of order and held-out choice.
    pub seed: u64,
    /// Type of the compute copies.
    pub dtype: TrainDtype,
    /// A built-in template's name or a `.jinja` file in place of the start model's own; written to the output.
    pub chat_template: Option<String>,
    /// Whether epochs are shuffled; off keeps the order of the file before packing.
    pub shuffle: bool,
    /// Share of the rows set apart and never trained on, when no held-out rows are given.
    pub held_out_share: f64,
    /// Steps between held-out evaluations; 0 for the start and the end only.
    pub eval_every: u64,
    /// Steps between checkpoints; 0 for none but at an interruption.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep_last: usize,
    /// What a non-finite loss or gradient does.
    pub on_nonfinite: OnNonFinite,
    /// What a loss or gradient norm six standard deviations above the recent ones does.
    pub on_spike: OnSpike,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            lr: 2e-5,
            epochs: None,
            max_steps: None,
            max_len: 2048,
            batch_size: 8,
            micro_batch_size: 1,
            warmup_steps: 0,
            schedule: Decay::Cosine,
            lr_floor: 0.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            seed: 0,
            dtype: TrainDtype::Bf16,
            chat_template: None,
            shuffle: true,
            held_out_share: 0.0,
            eval_every: 0,
            checkpoint_every: 100,
            keep_last: 2,
            on_nonfinite: OnNonFinite::Stop,
            on_spike: OnSpike::Keep,
        }
    }
}

impl SftConfig {
    /// All mistakes, each with the field's name; empty when the settings can be used.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = self.loop_settings().mistakes();
        let mut need = |holds: bool, text: &str| {
            if !holds {
                mistakes.push(text.to_owned());
            }
        };
        need(self.epochs.is_some() || self.max_steps.is_some(), "epochs or max_steps: one of them is needed");
        need(self.epochs != Some(0) && self.max_steps != Some(0), "epochs and max_steps must be 1 or more");
        need(self.max_len >= 2, "max_len must be 2 or more");
        need(self.batch_size >= 1, "batch_size must be 1 or more");
        need(self.micro_batch_size >= 1, "micro_batch_size must be 1 or more");
        need((0.0..1.0).contains(&self.held_out_share), "held_out_share must be in 0..1");
        mistakes
    }

    pub(crate) fn loop_settings(&self) -> LoopSettings {
        LoopSettings {
            lr: self.lr,
            warmup_steps: self.warmup_steps,
            schedule: self.schedule,
            lr_floor: self.lr_floor,
            betas: self.betas,
            eps: self.eps,
            weight_decay: self.weight_decay,
            clip: self.clip,
            eval_every: self.eval_every,
            checkpoint_every: self.checkpoint_every,
            keep_last: self.keep_last,
            on_nonfinite: self.on_nonfinite,
            on_spike: self.on_spike,
        }
    }
}

/// One row with where it came from.
#[derive(Clone, Debug)]
pub struct SftRow {
    /// `file:line`.
    pub source: String,
    /// The row.
    pub conversation: Conversation,
}

/// What a supervised stage reads.
#[derive(Clone, Debug)]
pub struct SftInputs {
    /// A stage folder, its `model`, or any checkpoint folder; f32 masters are preferred (see [`start_weights`]).
    pub start: PathBuf,
    /// Rows to train on.
    pub rows: Vec<SftRow>,
    /// Rows to evaluate on; when empty, `held_out_share` of `rows` is set apart.
    pub held_out: Vec<SftRow>,
}

/// What a supervised stage found: the content of its record's results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SftReport {
    /// Rows trained on.
    pub n_rows: usize,
    /// Rows held out.
    pub n_held_out: usize,
    /// Rows dropped because they are longer than `max_len` (training and held-out).
    pub n_too_long: usize,
    /// Rows dropped because no token of theirs is trained on.
    pub n_without_target: usize,
    /// Sources of dropped rows, the first 100.
    pub dropped: Vec<String>,
    /// Tokens of the training rows (one epoch).
    pub n_tokens: u64,
    /// Trained tokens among them.
    pub n_targets: u64,
    /// Packed rows of one epoch.
    pub n_packed_rows: usize,
    /// Share of the packed rows' room that is filled.
    pub packing_fill: f64,
    /// Optimizer steps.
    pub n_steps: u64,
    /// Mean loss over the first tenth of the steps.
    pub loss_first_tenth: f64,
    /// Mean loss over the last tenth of the steps.
    pub loss_last_tenth: f64,
    /// Held-out negative log-likelihood per trained token before training; none when nothing is held out.
    pub held_out_nll_before: Option<f64>,
    /// The same after training.
    pub held_out_nll_after: Option<f64>,
    /// Held-out tokens that are predicted.
    pub n_held_out_targets: usize,
    /// Steps skipped as non-finite.
    pub n_non_finite: u64,
    /// Steps judged as spikes.
    pub n_spikes: u64,
    /// The update and what the bf16 export keeps of it.
    pub export: ExportReport,
    /// SHA-256 of the start weights.
    pub start_digest: String,
    /// The step this process resumed from.
    pub resumed_from_step: u64,
    /// Tokens per second of this process's steps, evaluations included.
    pub tokens_per_s: f64,
    /// What the user must be told.
    pub notices: Vec<String>,
}

/// Trains and writes `out/model`, `out/master` and `out/metrics.jsonl`; `out` is the partial folder of the stage, in which
/// an interrupted run is resumed. The caller writes the record and commits the folder.
pub fn sft(config: &SftConfig, inputs: SftInputs, out: &Path, context: &Context) -> Result<SftReport> {
    refuse(config.mistakes())?;
    let start = start_weights(&inputs.start);
    let source = ModelSource::open(&start)?;
    let text = open_text(&start, config.chat_template.as_deref())?;
    let start_digest = source.digest()?;
    let (mut data, mut report) = SftData::prepare(config, inputs, &text, source.config().vocab_size)?;
    let fingerprint = data.fingerprint(config, &start_digest, &text, context);
    if let Some(report) = finished::read(out, &fingerprint)? {
        return Ok(report);
    }
    let learner = Learner::load(&source, config.dtype.tensor(), &context.device)?;
    let started = Instant::now();
    let mut run = Run::open(learner, config.loop_settings(), fingerprint.clone(), out, context)?;
    let schedule = data.schedule(config);
    context.progress.set_total(data.total_tokens(schedule.total_steps));
    context.progress.resume(run.cursor.n_tokens);
    let tokens_before = run.cursor.n_tokens;
    run.evaluate_start(&mut data)?;
    run.span(&mut data, 0, &schedule)?;
    run.evaluate_end(&mut data)?;
    run.learner.check_finite(run.cursor.step)?;
    report.tokens_per_s = (run.cursor.n_tokens - tokens_before) as f64 / started.elapsed().as_secs_f64();
    report.start_digest = start_digest;
    report.fill(&run);
    report.export = export(run.learner.params(), &source, &text, out)?;
    report.notices.extend(finished::export_notice(&report.export));
    finished::write(out, &fingerprint, &report)?;
    context.progress.finish();
    Ok(report)
}

impl SftReport {
    /// What the metrics and the guard know at the end.
    fn fill(&mut self, run: &Run<'_>) {
        let losses = run.metrics.numbers("loss");
        let held_out = run.metrics.numbers("held_out_nll");
        self.n_steps = run.cursor.step;
        (self.loss_first_tenth, self.loss_last_tenth) = finished::tenths(&losses);
        self.held_out_nll_before = held_out.first().copied();
        self.held_out_nll_after = held_out.last().copied();
        self.n_non_finite = run.cursor.guard.n_non_finite;
        self.n_spikes = run.cursor.guard.n_spikes;
        self.resumed_from_step = run.resumed_from;
        self.notices.extend(run.notices.iter().cloned());
    }
}
