//! The rows of a supervised stage as the step loop sees them: encoded, checked, packed, and their loss.
//!
//! Refuses data of which nothing or everything is trained on; drops, counts and names rows that are too long or empty.

use crate::learner::{Learner, Targets, target_logps};
use crate::pack::{Document, epoch_rows, first_fit_decreasing};
use crate::run::{Objective, StepLoss};
use crate::schedule::Schedule;
use crate::settings::{Context, TrainDtype};
use crate::sft::{SftConfig, SftInputs, SftReport, SftRow};
use crate::{Error, Result, finished};
use aloe_model::{Decoder, PackedBatch};
use aloe_record::CounterRng;
use aloe_record::digest::Hasher;
use aloe_text::TextModel;
use serde_json::{Map, Value, json};

/// Encoded rows and how they are packed.
pub(crate) struct SftData {
    documents: Vec<Document>,
    held_out: Vec<Document>,
    max_len: usize,
    batch_size: usize,
    micro_batch_size: usize,
    seed: u64,
    shuffle: bool,
    n_rows_per_epoch: usize,
    /// The packed rows of the epoch last asked for.
    epoch_rows: Option<(u64, Vec<Vec<usize>>)>,
}

impl SftData {
    /// Encodes the rows of a stage.
    pub(crate) fn prepare(
        config: &SftConfig,
        inputs: SftInputs,
        text: &TextModel,
        vocab_size: usize,
    ) -> Result<(Self, SftReport)> {
        let documents = encode(&inputs.rows, text)?;
        let held_out = encode(&inputs.held_out, text)?;
        Self::from_documents(config, documents, held_out, vocab_size)
    }

    /// Checks and packs encoded rows.
    pub(crate) fn from_documents(
        config: &SftConfig,
        mut documents: Vec<Document>,
        mut held_out: Vec<Document>,
        vocab_size: usize,
    ) -> Result<(Self, SftReport)> {
        let mut report = SftReport::default();
        check_shares(&documents)?;
        if held_out.is_empty() {
            held_out = set_apart(&mut documents, config.held_out_share, config.seed);
        }
        keep_usable(&mut documents, config.max_len, &mut report);
        keep_usable(&mut held_out, config.max_len, &mut report);
        if documents.is_empty() {
            let reason = format!(
                "none is left to train on ({} too long for max_len = {}, {} without a trained token)",
                report.n_too_long, config.max_len, report.n_without_target
            );
            return Err(Error::Data { what: "training rows".into(), reason });
        }
        check_vocabulary(documents.iter().chain(&held_out), vocab_size)?;
        let mut data = Self {
            documents,
            held_out,
            max_len: config.max_len,
            batch_size: config.batch_size,
            micro_batch_size: config.micro_batch_size,
            seed: config.seed,
            shuffle: config.shuffle,
            n_rows_per_epoch: 0,
            epoch_rows: None,
        };
        data.n_rows_per_epoch = data.rows_of(0).len();
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
        report.n_tokens = data.tokens_per_epoch();
        report.n_targets = data.documents.iter().map(|document| document.n_targets() as u64).sum();
        report.n_packed_rows = data.n_rows_per_epoch;
        report.packing_fill = report.n_tokens as f64 / (data.n_rows_per_epoch * config.max_len) as f64;
        report.n_held_out_targets = data.held_out.iter().map(Document::n_targets).sum();
        Ok((data, report))
    }

    fn tokens_per_epoch(&self) -> u64 {
        self.documents.iter().map(|document| document.ids.len() as u64).sum()
    }

    fn steps_per_epoch(&self) -> u64 {
        self.n_rows_per_epoch.div_ceil(self.batch_size) as u64
    }

    pub(crate) fn schedule(&self, config: &SftConfig) -> Schedule {
        let by_epochs = config.epochs.map(|epochs| epochs * self.steps_per_epoch());
        let total_steps = [by_epochs, config.max_steps].into_iter().flatten().min().unwrap_or(0);
        config.loop_settings().curve(total_steps)
    }

    /// For the progress bar: exact for whole epochs.
    pub(crate) fn total_tokens(&self, n_steps: u64) -> u64 {
        self.tokens_per_epoch() * n_steps / self.steps_per_epoch().max(1)
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

    pub(crate) fn fingerprint(&self, config: &SftConfig, start: &str, text: &TextModel, context: &Context) -> String {
        // Checkpoints change no bit, nor does the split into micro-batches in f32: they may change between restarts. In bf16
        // two rows enter a product together, so a split after an odd row rounds otherwise.
        let micro_batch_size = if config.dtype == TrainDtype::F32 { 1 } else { config.micro_batch_size };
        let config = SftConfig { micro_batch_size, checkpoint_every: 0, keep_last: 1, ..config.clone() };
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

    fn held_out_nll(&self, decoder: &Decoder, context: &Context) -> Result<(f64, usize)> {
        let lens: Vec<usize> = self.held_out.iter().map(|document| document.ids.len()).collect();
        let rows = first_fit_decreasing(&lens, &(0..lens.len()).collect::<Vec<_>>(), self.max_len).rows;
        let (mut sum, mut n_targets) = (0f64, 0);
        for row in rows {
            context.cancel.check()?;
            let documents: Vec<&Document> = row.iter().map(|&at| &self.held_out[at]).collect();
            let (batch, targets) = packed(&documents);
            let logps = target_logps(decoder, &batch, targets)?;
            n_targets += logps.len();
            sum -= logps.iter().map(|&logp| f64::from(logp)).sum::<f64>();
        }
        Ok((sum / n_targets as f64, n_targets))
    }
}

impl Objective for SftData {
    fn accumulate(&mut self, learner: &mut Learner, step: u64, context: &Context) -> Result<StepLoss> {
        let (epoch, in_epoch) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let rows = self.batch(epoch, in_epoch);
        let documents: Vec<&Document> = rows.iter().flatten().map(|&at| &self.documents[at]).collect();
        let n_targets: usize = documents.iter().map(|document| document.n_targets()).sum();
        let (mut nll, mut n_tokens, mut suspects) = (0f64, 0u64, Vec::new());
        for micro in rows.chunks(self.micro_batch_size) {
            context.cancel.check()?;
            let documents: Vec<&Document> = micro.iter().flatten().map(|&at| &self.documents[at]).collect();
            let (batch, targets) = packed(&documents);
            n_tokens += batch.len() as u64;
            let forward = learner.forward(batch, targets)?;
            suspects.extend(non_finite_sources(&documents, forward.logps()));
            for &logp in forward.logps() {
                nll -= f64::from(logp);
            }
            let dlogps = vec![-1.0 / n_targets as f32; forward.logps().len()];
            learner.backward(forward, &dlogps);
        }
        let mut fields = Map::new();
        fields.insert("epoch".into(), json!(epoch));
        Ok(StepLoss {
            loss: nll / n_targets as f64,
            n_tokens,
            n_targets: n_targets as u64,
            fields,
            rows: documents.iter().map(|document| document.source.clone()).collect(),
            suspects,
            n_units: n_tokens,
        })
    }

    fn evaluate(&mut self, learner: &Learner, context: &Context) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        if !self.held_out.is_empty() {
            let (nll, n_targets) = self.held_out_nll(learner.decoder(), context)?;
            fields.insert("held_out_nll".into(), json!(nll));
            fields.insert("held_out_targets".into(), json!(n_targets));
        }
        Ok(fields)
    }
}

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

fn encode(rows: &[SftRow], text: &TextModel) -> Result<Vec<Document>> {
    let encode = |row: &SftRow| {
        let encoded = text
            .encode_conversation(&row.conversation)
            .map_err(|error| Error::Data { what: row.source.clone(), reason: error.to_string() })?;
        Ok(Document::new(row.source.clone(), encoded))
    };
    rows.iter().map(encode).collect()
}

/// Refuses data in which no token or every token is trained on: a template without a working mask.
fn check_shares(documents: &[Document]) -> Result<()> {
    let refuse = |reason: &str| Err(Error::Data { what: "training rows".into(), reason: reason.into() });
    let n_tokens: usize = documents.iter().map(|document| document.ids.len()).sum();
    let n_trained: usize =
        documents.iter().flat_map(|document| &document.loss_mask).filter(|&&trained| trained).count();
    if documents.is_empty() {
        refuse("there are none")
    } else if n_trained == 0 {
        refuse("0 % of the tokens are trained on; look at a row with show-mask")
    } else if n_trained == n_tokens {
        refuse("100 % of the tokens are trained on, prompts included; look at a row with show-mask")
    } else {
        Ok(())
    }
}

fn check_vocabulary<'a>(mut documents: impl Iterator<Item = &'a Document>, vocab_size: usize) -> Result<()> {
    let beyond = |document: &&Document| document.ids.iter().any(|&id| id as usize >= vocab_size);
    match documents.find(beyond) {
        None => Ok(()),
        Some(document) => Err(Error::Data {
            what: document.source.clone(),
            reason: format!("holds a token id beyond the model's vocabulary of {vocab_size}"),
        }),
    }
}

/// Takes a share of the documents out, chosen by the seed, and keeps the order of both parts.
fn set_apart(documents: &mut Vec<Document>, share: f64, seed: u64) -> Vec<Document> {
    let mut order: Vec<usize> = (0..documents.len()).collect();
    CounterRng::new(seed, "sft-held-out", 0).shuffle(&mut order);
    order.truncate((documents.len() as f64 * share) as usize);
    order.sort_unstable();
    let mut apart: Vec<Document> = order.iter().rev().map(|&at| documents.remove(at)).collect();
    apart.reverse();
    apart
}

/// Drops, counts and names what is too long or has nothing to train on.
fn keep_usable(documents: &mut Vec<Document>, max_len: usize, report: &mut SftReport) {
    documents.retain(|document| {
        let too_long = document.ids.len() > max_len;
        let empty = document.n_targets() == 0;
        report.n_too_long += usize::from(too_long);
        report.n_without_target += usize::from(!too_long && empty);
        if (too_long || empty) && report.dropped.len() < 100 {
            report.dropped.push(document.source.clone());
        }
        !too_long && !empty
    });
}
