//! The rows of a supervised stage as the step loop sees them: packed, and their loss, over all rows and by the data source that a
//! row names.

use crate::guard::{OnNonFinite, OnSpike};
use crate::held_out;
use crate::held_out_rows::Rows;
use crate::learner::{Learner, Targets, target_logps};
use crate::lora::ControlIds;
use crate::metrics::Metrics;
use crate::neftune::noise;
use crate::pack::{Document, epoch_rows, first_fit_decreasing};
use crate::rendered::PackedRow;
use crate::run::{Objective, StepLoss};
use crate::schedule::Schedule;
use crate::settings::{Context, TrainDtype, refuse};
use crate::sft::{SftConfig, SftInputs, SftReport, SourceReport};
use crate::sft_rows::{check_context, check_shares, check_vocabulary, empty_answers, encode, keep_usable, set_apart};
use crate::{Error, Result, finished};
use aloe_model::{Config, Decoder, PackedBatch};
use aloe_record::digest::Hasher;
use aloe_text::TextModel;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What the held-out rows took at the start, to which changes are told.
enum Start {
    /// The start is still to be evaluated.
    ToCome,
    /// Summed negative log-likelihoods in the order of [`Rows`]; none of a checkpoint that an older program wrote.
    Noted(Option<Vec<f64>>),
}

/// Encoded rows and how they are packed.
pub(crate) struct SftData {
    documents: Vec<Document>,
    held_out: Vec<Document>,
    max_len: usize,
    batch_size: usize,
    micro_batch_size: usize,
    seed: u64,
    shuffle: bool,
    neftune_alpha: f64,
    /// Whether the rows name at least two data sources, so that losses are told apart by them.
    has_sources: bool,
    n_rows_per_epoch: usize,
    start: Start,
    /// The packed rows of the epoch last asked for.
    epoch_rows: Option<(u64, Vec<Vec<usize>>)>,
}

impl SftData {
    /// Encodes the rows of a stage; what is held out is set apart before a long row is cut, so that no row lies on both sides.
    pub(crate) fn prepare(
        config: &SftConfig,
        mut inputs: SftInputs,
        text: &TextModel,
        model: &Config,
    ) -> Result<(Self, SftReport)> {
        refuse(config.lora.iter().filter_map(|lora| lora.rank_mistake(model)).collect())?;
        if inputs.held_out.is_empty() {
            inputs.held_out = set_apart(&mut inputs.rows, config.held_out_share, config.seed)?;
        }
        let empty = [empty_answers(&inputs.rows), empty_answers(&inputs.held_out)].concat();
        let (documents, mut cut) = encode(&inputs.rows, text, config)?;
        let (held_out, held_out_cut) = encode(&inputs.held_out, text, config)?;
        let (data, mut report) = Self::from_documents(config, documents, held_out, model)?;
        cut.add(&held_out_cut);
        report.n_split = cut.n_rows;
        report.n_split_inside = cut.n_inside;
        report.n_pieces = cut.n_pieces;
        report.notices.extend(cut.notice(config.max_len));
        report.n_empty_answers = empty.len();
        report.notices.extend(finished::empty_answers_notice(&empty));
        Ok((data, report))
    }

    /// Checks and packs encoded rows. Nothing is set apart here: a piece of a row is none of its own.
    pub(crate) fn from_documents(
        config: &SftConfig,
        mut documents: Vec<Document>,
        mut held_out: Vec<Document>,
        model: &Config,
    ) -> Result<(Self, SftReport)> {
        let mut report = SftReport::default();
        check_shares(documents.iter().chain(&held_out))?;
        let n_held_out = held_out.len();
        keep_usable(&mut documents, config.max_len, &mut report);
        keep_usable(&mut held_out, config.max_len, &mut report);
        if documents.is_empty() {
            let reason = format!(
                "none is left to train on ({} too long for max_len = {}, {} without a trained token)",
                report.n_too_long, config.max_len, report.n_without_target
            );
            return Err(Error::Data { what: "training rows".into(), reason });
        }
        check_vocabulary(documents.iter().chain(&held_out), model.vocab_size)?;
        check_context(documents.iter().chain(&held_out), model.max_position_embeddings)?;
        let settings = config.loop_settings();
        held_out::refuse_none(&settings, held_out.len(), "rows")?;
        let sources: BTreeSet<&str> = documents.iter().chain(&held_out).filter_map(Document::data_source).collect();
        let has_sources = sources.len() > 1;
        let mut data = Self {
            documents,
            held_out,
            max_len: config.max_len,
            batch_size: config.batch_size,
            micro_batch_size: config.micro_batch_size,
            seed: config.seed,
            shuffle: config.shuffle,
            neftune_alpha: config.neftune_alpha,
            has_sources,
            n_rows_per_epoch: 0,
            start: Start::ToCome,
            epoch_rows: None,
        };
        data.n_rows_per_epoch = data.rows_of(0).len();
        report.notices.extend(settings.judge_spans(&[data.n_steps(config)])?);
        report.n_rows = data.documents.len();
        report.n_held_out = data.held_out.len();
        let n_kept = report.n_rows + report.n_held_out;
        let why = "without a trained token";
        report.notices.extend(finished::dropped_notice(
            "rows",
            n_kept,
            report.n_too_long,
            report.n_without_target,
            why,
        ));
        report.notices.extend(held_out::none_left(n_held_out, report.n_held_out, "rows"));
        report.n_tokens = data.tokens_per_epoch();
        report.n_targets = data.documents.iter().map(|document| document.n_targets() as u64).sum();
        report.n_packed_rows = data.n_rows_per_epoch;
        report.packing_fill = report.n_tokens as f64 / (data.n_rows_per_epoch * config.max_len) as f64;
        report.n_held_out_targets = data.held_out.iter().map(Document::n_targets).sum();
        report.by_source = data.source_counts();
        Ok((data, report))
    }

    /// Rows and trained tokens of each data source; empty where losses are not told apart.
    fn source_counts(&self) -> BTreeMap<String, SourceReport> {
        let mut found = BTreeMap::<String, SourceReport>::new();
        for (at, document) in self.documents.iter().chain(&self.held_out).enumerate() {
            let Some(source) = document.data_source().filter(|_| self.has_sources) else { continue };
            let of = found.entry(source.to_owned()).or_default();
            let is_held_out = at >= self.documents.len();
            let (rows, targets) = match is_held_out {
                true => (&mut of.n_held_out, &mut of.n_held_out_targets),
                false => (&mut of.n_rows, &mut of.n_targets),
            };
            (*rows, *targets) = (*rows + 1, *targets + document.n_targets() as u64);
        }
        found
    }

    fn tokens_per_epoch(&self) -> u64 {
        self.documents.iter().map(|document| document.ids.len() as u64).sum()
    }

    fn steps_per_epoch(&self) -> u64 {
        self.n_rows_per_epoch.div_ceil(self.batch_size) as u64
    }

    fn n_steps(&self, config: &SftConfig) -> u64 {
        let by_epochs = config.epochs.map(|epochs| epochs.saturating_mul(self.steps_per_epoch()));
        [by_epochs, config.max_steps].into_iter().flatten().min().unwrap_or(0)
    }

    pub(crate) fn schedule(&self, config: &SftConfig) -> Schedule {
        config.loop_settings().curve(self.n_steps(config))
    }

    /// For the progress bar: exact for whole epochs.
    pub(crate) fn total_tokens(&self, n_steps: u64) -> u64 {
        self.tokens_per_epoch().saturating_mul(n_steps) / self.steps_per_epoch().max(1)
    }

    fn rows_of(&self, epoch: u64) -> Vec<Vec<usize>> {
        let lens: Vec<usize> = self.documents.iter().map(|document| document.ids.len()).collect();
        let packing = if self.shuffle {
            epoch_rows(&lens, self.max_len, self.seed, epoch)
        } else {
            first_fit_decreasing(&lens, &(0..lens.len()).collect::<Vec<_>>(), self.max_len)
        };
        packing.rows
    }

    /// The packed rows of a step, as indices of documents.
    fn batch(&mut self, epoch: u64, step_in_epoch: u64) -> Vec<Vec<usize>> {
        if self.epoch_rows.as_ref().is_none_or(|(held, _)| *held != epoch) {
            self.epoch_rows = Some((epoch, self.rows_of(epoch)));
        }
        let rows = self.epoch_rows.as_ref().map_or(&[][..], |(_, rows)| rows);
        let first = step_in_epoch as usize * self.batch_size;
        rows[first..rows.len().min(first + self.batch_size)].to_vec()
    }

    /// The packed rows of a step, counted from 0, as ids.
    pub(crate) fn packed_rows(&mut self, step: u64) -> Vec<PackedRow> {
        let (epoch, in_epoch) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let rows = self.batch(epoch, in_epoch);
        rows.iter().map(|row| packed_row(row.iter().map(|&at| &self.documents[at]))).collect()
    }

    /// Where the documents came from.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &str> {
        self.documents.iter().map(|document| document.source.as_str())
    }

    pub(crate) fn fingerprint(&self, config: &SftConfig, start: &str, text: &TextModel, context: &Context) -> String {
        // Checkpoints and recomputation change no bit, nor does the split into micro-batches in f32, so that a state is not told apart by them;
        // in bf16 two rows enter a product together, and a split after an odd row rounds otherwise. What a stage of the program may change between
        // restarts is decided before (`resumable` in its `stage.rs`) and is less: no split.
        let micro_batch_size = if config.dtype == TrainDtype::F32 { 1 } else { config.micro_batch_size };
        // How faults are met may change too, as long as none has been (see `Run::open`).
        let (on_spike, on_nonfinite) = (OnSpike::Stop, OnNonFinite::Stop);
        let (checkpoint_every, keep_last, recompute) = (0, 1, false);
        let config = SftConfig {
            micro_batch_size,
            recompute,
            checkpoint_every,
            keep_last,
            on_spike,
            on_nonfinite,
            ..config.clone()
        };
        let mut hasher = Hasher::default();
        for field in ["sft", &json!(config).to_string(), start, &text.digest(), &finished::compute(context)] {
            hasher.field(field.as_bytes());
        }
        for document in self.documents.iter().chain(&self.held_out) {
            hasher.field(&document.ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
            hasher.field(&document.loss_mask.iter().map(|&trained| u8::from(trained)).collect::<Vec<u8>>());
        }
        hasher.field(&(self.documents.len() as u64).to_le_bytes());
        hasher.hex()
    }

    /// The chat template's tokens in the rows.
    pub(crate) fn control_ids(&self, text: &TextModel) -> ControlIds {
        let mut ids = ControlIds::default();
        for document in &self.documents {
            ids.add(text, document.ids.iter().copied(), false);
            ids.add(text, document.targets().map(|(_, id)| id), true);
        }
        ids
    }

    /// A row to look at: the first held out, or the first.
    pub(crate) fn probe(&self) -> &[u32] {
        self.held_out.first().or(self.documents.first()).map_or(&[], |document| &document.ids)
    }

    /// The held-out documents in packed rows, as indices.
    fn held_out_packing(&self) -> Vec<Vec<usize>> {
        let lens: Vec<usize> = self.held_out.iter().map(|document| document.ids.len()).collect();
        first_fit_decreasing(&lens, &(0..lens.len()).collect::<Vec<_>>(), self.max_len).rows
    }

    /// The same as ids.
    pub(crate) fn held_out_rows(&self) -> Vec<PackedRow> {
        let rows = self.held_out_packing();
        rows.iter().map(|row| packed_row(row.iter().map(|&at| &self.held_out[at]))).collect()
    }

    /// Of all held-out documents together, and of each one.
    fn held_out_nll(&self, decoder: &Decoder, context: &Context) -> Result<(Nll<'_>, Vec<f64>)> {
        let (mut found, mut each) = (Nll::default(), vec![0.0; self.held_out.len()]);
        for row in self.held_out_packing() {
            context.cancel.check()?;
            let documents: Vec<&Document> = row.iter().map(|&at| &self.held_out[at]).collect();
            let (batch, targets) = packed(&documents);
            for (at, sum) in row.iter().zip(found.add(&documents, &target_logps(decoder, &batch, targets)?)) {
                each[*at] = sum;
            }
        }
        Ok((found, each))
    }
}

/// A summed negative log-likelihood, in f64, and its trained tokens: of all rows, and by data source.
#[derive(Default)]
struct Nll<'a> {
    sum: f64,
    n_targets: usize,
    by_source: BTreeMap<&'a str, (f64, usize)>,
}

impl<'a> Nll<'a> {
    /// Adds the log-probabilities of the documents' targets, in their order; gives what each document takes.
    fn add(&mut self, documents: &[&'a Document], logps: &[f32]) -> Vec<f64> {
        let (mut rest, mut each) = (logps, Vec::with_capacity(documents.len()));
        for document in documents {
            let (own, others) = rest.split_at(document.n_targets());
            let source = document.data_source().map(|source| self.by_source.entry(source).or_default());
            let mut sum = 0f64;
            for &logp in own {
                self.sum -= f64::from(logp);
                sum -= f64::from(logp);
            }
            if let Some(of) = source {
                *of = (of.0 + sum, of.1 + own.len());
            }
            self.n_targets += own.len();
            each.push(sum);
            rest = others;
        }
        each
    }

    fn mean(&self) -> f64 {
        self.sum / self.n_targets as f64
    }

    fn means_by_source(&self) -> Value {
        self.by_source.iter().map(|(source, (sum, n))| ((*source).to_owned(), json!(sum / *n as f64))).collect()
    }
}

impl Objective for SftData {
    const JUDGED: &'static str = "held_out_nll";

    fn accumulate(&mut self, learner: &mut Learner, step: u64, context: &Context) -> Result<StepLoss> {
        let (epoch, in_epoch) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let rows = self.batch(epoch, in_epoch);
        let documents: Vec<&Document> = rows.iter().flatten().map(|&at| &self.documents[at]).collect();
        let n_targets: usize = documents.iter().map(|document| document.n_targets()).sum();
        let (mut nll, mut found) = (Nll::default(), StepLoss::default());
        for micro in rows.chunks(self.micro_batch_size) {
            context.cancel.check()?;
            let numbers: Vec<usize> = micro.iter().flatten().copied().collect();
            let documents: Vec<&Document> = numbers.iter().map(|&at| &self.documents[at]).collect();
            let (mut batch, targets) = packed(&documents);
            found.n_tokens += batch.len() as u64;
            found.n_attended += batch.n_attended();
            if self.neftune_alpha > 0.0 {
                let hidden_size = learner.params().config.hidden_size;
                batch.noise = Some(noise(&documents, &numbers, hidden_size, self.neftune_alpha, (self.seed, step)));
            }
            let dlogps = vec![-1.0 / n_targets as f32; targets.rows.len()];
            let logps = learner.forward_backward(batch, targets, &dlogps)?;
            found.suspects.extend(non_finite_sources(&documents, &logps));
            nll.add(&documents, &logps);
        }
        found.fields.insert("epoch".into(), json!(epoch));
        if self.has_sources {
            found.fields.insert(LOSS_BY_SOURCE.into(), nll.means_by_source());
        }
        found.loss = nll.mean();
        found.n_targets = n_targets as u64;
        found.n_units = found.n_tokens;
        found.rows = documents.iter().map(|document| document.source.clone()).collect();
        Ok(found)
    }

    fn evaluate(&mut self, learner: &Learner, context: &Context) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        if !self.held_out.is_empty() {
            let (nll, each) = self.held_out_nll(learner.decoder(), context)?;
            fields.insert("held_out_nll".into(), json!(nll.mean()));
            fields.insert("held_out_targets".into(), json!(nll.n_targets));
            if self.has_sources {
                fields.insert(HELD_OUT_BY_SOURCE.into(), nll.means_by_source());
            }
            let rows = Rows::of(&self.held_out, &each);
            let start = match &self.start {
                Start::ToCome => {
                    fields.insert(HELD_OUT_ROWS.into(), json!(rows.sums()));
                    None
                }
                Start::Noted(sums) => sums.as_deref(),
            };
            fields.extend(rows.errors(start, self.has_sources));
        }
        Ok(fields)
    }

    fn started(&mut self, metrics: &Metrics) {
        self.start = Start::Noted(metrics.array_at(0, HELD_OUT_ROWS));
    }
}

/// Mean loss of a step's rows by data source.
pub(crate) const LOSS_BY_SOURCE: &str = "loss_by_source";
/// Held-out negative log-likelihood by data source.
pub(crate) const HELD_OUT_BY_SOURCE: &str = "held_out_nll_by_source";
/// What each held-out row takes at the start.
const HELD_OUT_ROWS: &str = "held_out_rows_nll";

/// Documents side by side, with the rows that predict trained tokens.
fn packed(documents: &[&Document]) -> (PackedBatch, Targets) {
    let ids: Vec<&[u32]> = documents.iter().map(|document| document.ids.as_slice()).collect();
    let batch = PackedBatch::from_documents(&ids);
    let mut targets = Targets::default();
    for (document, rows) in documents.iter().zip(&batch.pieces) {
        for (row, id) in document.targets() {
            targets.push(rows.start + row, id);
        }
    }
    (batch, targets)
}

fn packed_row<'a>(documents: impl Iterator<Item = &'a Document>) -> PackedRow {
    let mut row = PackedRow::default();
    for document in documents {
        row.ids.extend(&document.ids);
        row.is_target.extend(document.loss_mask.iter().enumerate().map(|(at, &is_target)| at > 0 && is_target));
        row.lens.push(document.ids.len());
    }
    row
}

/// Sources of the documents among whose targets one has a non-finite log-probability.
fn non_finite_sources(documents: &[&Document], logps: &[f32]) -> Vec<String> {
    let mut rest = logps;
    let mut found = Vec::new();
    for document in documents {
        let (own, others) = rest.split_at(document.n_targets());
        if own.iter().any(|logp| !logp.is_finite()) {
            found.push(document.source.clone());
        }
        rest = others;
    }
    found
}
