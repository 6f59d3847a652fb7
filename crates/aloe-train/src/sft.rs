//! Supervised fine-tuning: conversations in, a checkpoint folder out. The spine is [`sft`].
//!
//! Trains on assistant turns and their end-of-turn tokens only; the loss of a step is the mean over all its trained tokens,
//! whatever the micro-batches. Refuses data in which nothing or everything is trained on. Rows longer than `max_len` are dropped,
//! or cut into pieces where that is asked for; those, rows without a trained token and rows with an empty answer are counted and named;
//! nothing is truncated.

use crate::export::ExportReport;
use crate::held_out_rows::{HELD_OUT_SE, change_at, changes_at};
use crate::lora::{LoraConfig, LoraReport, Start, hand_over, open_learner, refuse_untrained};
use crate::run::Run;
use crate::sampler::Sampler;
use crate::settings::{
    Context, MOST, declare_config, keep, loop_fields, open_text, refuse, refuse_non_finite_start, start_weights,
};
use crate::sft_data::{HELD_OUT_BY_SOURCE, LOSS_BY_SOURCE, SftData};
use crate::statistics::Estimate;
use crate::{Result, finished};
use aloe_model::ModelSource;
use aloe_text::Conversation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What is done with a row of more than `max_len` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongRows {
    /// Left out, counted and named.
    #[default]
    Drop,
    /// Cut into pieces at turns, and inside an exchange that is too long by itself; counted.
    Split,
}

loop_fields! { declare_config! {
    /// Settings of a supervised stage; absent ones have the values of `Default`.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct SftConfig {
        /// Passes over the data. At least one of `epochs` and `max_steps` is needed; the smaller decides.
        pub epochs: Option<u64> = None,
        /// Most optimizer steps.
        pub max_steps: Option<u64> = None,
        /// Tokens of a packed row, and the longest row trained on.
        pub max_len: usize = 2048,
        /// What is done with longer rows.
        pub long_rows: LongRows = LongRows::Drop,
        /// Packed rows per optimizer step.
        pub batch_size: usize = 8,
        /// Packed rows per forward pass: a matter of memory; in f32 it changes no bit of the result.
        pub micro_batch_size: usize = 1,
        /// NEFTune's alpha (arXiv 2310.05914): noise on the embeddings while training, 0 for none.
        pub neftune_alpha: f64 = 0.0,
        /// Train low-rank updates beside frozen weights; without it all weights are trained.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub lora: Option<LoraConfig> = None,
    }
    defaults {}
} }

/// Far more noise than the paper's: an embedding has some thousandths of such a size.
const MOST_NOISE: f64 = 1000.0;

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
        let fits = |count: Option<u64>| count.is_none_or(|count| (1..=MOST).contains(&count));
        need(fits(self.epochs) && fits(self.max_steps), &format!("epochs and max_steps must be 1 to {MOST}"));
        need(self.max_len >= 2, "max_len must be 2 or more");
        need(self.batch_size >= 1, "batch_size must be 1 or more");
        need(self.micro_batch_size >= 1, "micro_batch_size must be 1 or more");
        need(
            (0.0..=MOST_NOISE).contains(&self.neftune_alpha),
            &format!("neftune_alpha must be 0 (off) to {MOST_NOISE}; the paper has 5 to 15"),
        );
        mistakes.extend(self.lora.iter().flat_map(|lora| lora.mistakes(self.dtype)));
        mistakes
    }
}

/// One row with where it came from.
#[derive(Clone, Debug)]
pub struct SftRow {
    /// `file:line`.
    pub source: String,
    /// Name of the data source, where the row names one: losses are told apart by it.
    pub data_source: Option<String>,
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

/// The part of one data source. Losses are means over its own trained tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Rows trained on.
    pub n_rows: u64,
    /// Trained tokens of one epoch.
    pub n_targets: u64,
    /// Rows held out.
    pub n_held_out: u64,
    /// Held-out tokens that are predicted.
    pub n_held_out_targets: u64,
    /// Mean over the first tenth of the steps that held rows of it.
    pub loss_first_tenth: f64,
    /// Mean over the last tenth of those steps.
    pub loss_last_tenth: f64,
    /// Held-out negative log-likelihood per token before training.
    pub held_out_nll_before: Option<f64>,
    /// The same under the weights that are written.
    pub held_out_nll_after: Option<f64>,
    /// Standard errors of both, each row a cluster of tokens.
    pub held_out_nll_se_before: Option<f64>,
    /// See before.
    pub held_out_nll_se_after: Option<f64>,
    /// After minus before over the same rows: above 0 is forgetting.
    pub held_out_nll_change: Option<Estimate>,
}

/// What a supervised stage found: the content of its record's results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SftReport {
    /// Rows trained on; each piece of a cut row is one.
    pub n_rows: usize,
    /// Rows held out; each piece of a cut row is one.
    pub n_held_out: usize,
    /// Rows longer than `max_len` that were cut (training and held-out).
    pub n_split: usize,
    /// Those among them of which one exchange was too long by itself and was cut into windows.
    pub n_split_inside: usize,
    /// What they were cut into.
    pub n_pieces: usize,
    /// Rows dropped because they are longer than `max_len` (training and held-out).
    pub n_too_long: usize,
    /// Rows dropped because no token of theirs is trained on.
    pub n_without_target: usize,
    /// Rows with an empty answer, which train on the bare end of a turn (training and held-out).
    #[serde(default)]
    pub n_empty_answers: usize,
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
    /// The same under the weights that are written.
    pub held_out_nll_after: Option<f64>,
    /// Standard errors of both, each row a cluster of tokens.
    pub held_out_nll_se_before: Option<f64>,
    /// See before.
    pub held_out_nll_se_after: Option<f64>,
    /// After minus before over the same rows: above 0 is forgetting.
    pub held_out_nll_change: Option<Estimate>,
    /// The step whose weights are written: the last one, or with `keep_best` that of the best evaluation.
    pub exported_step: u64,
    /// Whether `patience` ended the training before its last step.
    pub stopped_early: bool,
    /// The same by data source; empty where the rows name fewer than two.
    pub by_source: BTreeMap<String, SourceReport>,
    /// Held-out tokens that are predicted.
    pub n_held_out_targets: usize,
    /// Steps skipped as non-finite.
    pub n_non_finite: u64,
    /// Steps judged as spikes.
    pub n_spikes: u64,
    /// The update and what the bf16 export keeps of it.
    pub export: ExportReport,
    /// What LoRA trained and what merging changed; none when all weights were trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraReport>,
    /// SHA-256 of the start weights.
    pub start_digest: String,
    /// The step this process resumed from.
    pub resumed_from_step: u64,
    /// Tokens per second of this process's steps, evaluations included.
    pub tokens_per_s: f64,
    /// What the user must be told.
    pub notices: Vec<String>,
}

/// Trains and writes `out/model`, `out/master`, with LoRA `out/adapter`, and `out/metrics.jsonl`; `out` is the partial folder of the stage, in which
/// an interrupted run is resumed. The caller writes the record and commits the folder.
pub fn sft(config: &SftConfig, inputs: SftInputs, out: &Path, context: &Context) -> Result<SftReport> {
    refuse(config.mistakes())?;
    let named = inputs.start.clone();
    let start = start_weights(&named);
    let source = ModelSource::open(&start)?;
    let text = open_text(&start, config.chat_template.as_deref())?;
    let start_digest = source.digest()?;
    let settings = config.loop_settings();
    let sampler = Sampler::open(&settings, &text, source.config().max_position_embeddings)?;
    let (mut data, mut report) = SftData::prepare(config, inputs, &text, source.config())?;
    let fingerprint = data.fingerprint(config, &start_digest, &text, context);
    if let Some(report) = finished::read(out, &fingerprint)? {
        return Ok(report);
    }
    refuse_non_finite_start(&source)?;
    refuse_untrained(config.lora.as_ref(), &source, &text, &data.control_ids(&text))?;
    let learner = open_learner(&source, config.lora.as_ref(), config.seed, config.dtype, &context.device)?
        .keeping(keep(config.recompute));
    let started = Instant::now();
    let mut run = Run::open(learner, settings, fingerprint.clone(), out, context)?;
    run.sampler = sampler;
    let schedule = data.schedule(config);
    context.progress.set_total(data.total_tokens(schedule.total_steps));
    context.progress.resume(run.cursor.n_tokens);
    let tokens_before = run.cursor.n_tokens;
    run.evaluate_start(&mut data)?;
    run.span(&mut data, 0, &schedule)?;
    run.evaluate_end(&mut data)?;
    run.learner.check_finite(run.cursor.step)?;
    report.tokens_per_s = (run.cursor.n_tokens - tokens_before) as f64 / started.elapsed().as_secs_f64();
    report.fill(&run);
    let start = Start { source: &source, digest: &start_digest, text: &text, named: &named };
    let lora = config.lora.as_ref().map(|lora| (lora, config.dtype));
    (report.export, report.lora) = hand_over(run.learner, lora, &start, data.probe(), out)?;
    report.notices.extend(report.export.notice());
    report.start_digest = start_digest;
    finished::write(out, &fingerprint, &report)?;
    context.progress.finish();
    Ok(report)
}

impl SftReport {
    /// What the metrics and the guard know at the end.
    fn fill(&mut self, run: &Run<'_>) {
        let held_out = run.metrics.numbers("held_out_nll");
        self.n_steps = run.cursor.step;
        (self.loss_first_tenth, self.loss_last_tenth) = finished::tenths(&run.metrics.numbers("loss"));
        self.held_out_nll_before = held_out.first().copied();
        self.held_out_nll_after = run.held_out_after("held_out_nll");
        self.held_out_nll_se_before = run.metrics.number_at(0, HELD_OUT_SE);
        self.held_out_nll_se_after = run.held_out_after(HELD_OUT_SE);
        self.exported_step = run.exported_step();
        self.held_out_nll_change = change_at(&run.metrics, self.exported_step);
        self.stopped_early = run.cursor.held_out.has_stopped;
        self.notices.extend(finished::held_out_notice(run, self.held_out_nll_before.zip(self.held_out_nll_after)));
        let losses = run.metrics.numbers_in(LOSS_BY_SOURCE);
        let (before, after) = (
            run.metrics.numbers_at(0, HELD_OUT_BY_SOURCE),
            run.metrics.numbers_at(self.exported_step, HELD_OUT_BY_SOURCE),
        );
        let errors_at = |step| run.metrics.numbers_at(step, &format!("{HELD_OUT_SE}_by_source"));
        let errors = (errors_at(0), errors_at(self.exported_step));
        let changes = changes_at(&run.metrics, self.exported_step);
        for (source, of) in &mut self.by_source {
            (of.loss_first_tenth, of.loss_last_tenth) =
                losses.get(source).map_or((0.0, 0.0), |losses| finished::tenths(losses));
            of.held_out_nll_before = before.get(source).copied();
            of.held_out_nll_after = after.get(source).copied();
            (of.held_out_nll_se_before, of.held_out_nll_se_after) =
                (errors.0.get(source).copied(), errors.1.get(source).copied());
            of.held_out_nll_change = changes.get(source).copied();
        }
        self.notices.extend(self.by_source.iter().filter_map(|(source, of)| forgotten(source, of)));
        self.n_non_finite = run.cursor.guard.n_non_finite;
        self.n_spikes = run.cursor.guard.n_spikes;
        self.resumed_from_step = run.resumed_from;
        self.notices.extend(run.notices.iter().cloned());
    }
}

/// A line on a data source whose held-out rows have got worse, where the interval of the change says so: it can hide in the mean of all.
fn forgotten(source: &str, of: &SourceReport) -> Option<String> {
    let change = of.held_out_nll_change?;
    let [low, high] = change.interval.filter(|[low, _]| *low > 0.0)?;
    Some(format!(
        "held-out rows of {source} got worse: {:+.4} a token (95 % interval {low:+.4} to {high:+.4}, {} rows)",
        change.mean, of.n_held_out
    ))
}
