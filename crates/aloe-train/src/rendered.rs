//! The batches of a training stage as ids, in the order in which the local trainer would take them: what another trainer is given in
//! place of conversations, so that tokenizer, template, mask, packing, order and held-out choice stay ours.
//!
//! Computes nothing and opens no weights: the model may not exist yet. A supervised step holds the local trainer's packed rows. A
//! preference step is always full: where the pairs of an epoch (of a chunk) do not fill its last step, the local trainer takes a short
//! one and the pairs at the end of the order are left out here, which [`DpoBatches::n_left_out`] tells.

use crate::dpo::{DpoConfig, DpoInputs, DpoRow};
use crate::dpo_data::DpoData;
use crate::dpo_report::DpoReport;
use crate::settings::refuse;
use crate::sft::{SftConfig, SftInputs, SftReport, SftRow};
use crate::sft_data::SftData;
use crate::sft_rows::set_apart;
use crate::{Error, Result};
use aloe_model::Config;
use aloe_text::{Conversation, EncodedPair, Pair, TextModel};
use std::collections::HashSet;

/// A row of whole documents side by side; each attends to itself and its positions start at 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedRow {
    /// Ids of all documents.
    pub ids: Vec<u32>,
    /// Whether each of them is predicted; never the first of a document.
    pub is_target: Vec<bool>,
    /// Tokens of each document.
    pub lens: Vec<usize>,
}

/// A supervised stage's batches.
pub struct SftBatches {
    data: SftData,
    rows: Vec<SftRow>,
    /// What was counted: rows, tokens, what was dropped.
    pub report: SftReport,
    /// Optimizer steps.
    pub n_steps: u64,
}

impl SftBatches {
    /// Encodes, drops, sets apart and packs as [`crate::sft()`] does; `model` gives vocabulary and context length.
    pub fn prepare(config: &SftConfig, mut inputs: SftInputs, text: &TextModel, model: &Config) -> Result<Self> {
        refuse(config.mistakes())?;
        if inputs.held_out.is_empty() {
            inputs.held_out = set_apart(&mut inputs.rows, config.held_out_share, config.seed)?;
        }
        let rows = inputs.rows.clone();
        let (data, report) = SftData::prepare(config, inputs, text, model)?;
        let n_steps = data.schedule(config).total_steps;
        Ok(Self { data, rows, report, n_steps })
    }

    /// The conversations that are trained on whole: not held out, dropped or cut.
    pub fn conversations(&self) -> impl Iterator<Item = &Conversation> {
        let used: HashSet<&str> = self.data.sources().collect();
        let rows = self.rows.iter().filter(move |row| used.contains(row.source.as_str()));
        rows.map(|row| &row.conversation)
    }

    /// The packed rows of a step, counted from 0; the last step of an epoch may have fewer than `batch_size`.
    pub fn batch(&mut self, step: u64) -> Vec<PackedRow> {
        self.data.packed_rows(step)
    }

    /// The held-out rows, packed as the local trainer evaluates them.
    pub fn held_out(&self) -> Vec<PackedRow> {
        self.data.held_out_rows()
    }
}

/// A preference stage's batches.
pub struct DpoBatches {
    data: DpoData,
    rows: Vec<DpoRow>,
    batch_size: usize,
    /// What was counted: pairs, tokens, what was dropped.
    pub report: DpoReport,
    /// Optimizer steps.
    pub n_steps: u64,
    /// Optimizer steps of each chunk: one number where the pairs are not cut.
    pub chunk_steps: Vec<u64>,
    /// Pairs of each epoch, over all chunks, that do not fill a step.
    pub n_left_out: usize,
}

impl DpoBatches {
    /// Encodes, drops, sets apart, orders and cuts as [`crate::dpo()`] does; `model` gives vocabulary and context length.
    pub fn prepare(config: &DpoConfig, inputs: DpoInputs, text: &TextModel, model: &Config) -> Result<Self> {
        refuse(config.mistakes())?;
        let rows = inputs.rows.clone();
        let (data, report) = DpoData::prepare(config, inputs, text, model)?;
        let sizes = data.chunk_sizes();
        if let Some(size) = sizes.iter().find(|&&size| size < config.batch_size) {
            let of = if sizes.len() > 1 { format!(" of a chunk ({} in all)", report.n_pairs) } else { String::new() };
            let reason = format!("{size}{of} do not fill one step of batch_size = {}", config.batch_size);
            return Err(Error::Data { what: "preference pairs".into(), reason });
        }
        let steps = |size: &usize| {
            ((size / config.batch_size) as u64 * config.epochs).min(config.max_steps.unwrap_or(u64::MAX))
        };
        let chunk_steps: Vec<u64> = sizes.iter().map(steps).collect();
        // Without the pairs that do not fill a step there may be fewer steps than here.
        config.loop_settings().judge_spans(&chunk_steps)?;
        let n_steps = chunk_steps.iter().sum();
        let n_left_out = sizes.iter().map(|size| size % config.batch_size).sum();
        Ok(Self { data, rows, batch_size: config.batch_size, report, n_steps, chunk_steps, n_left_out })
    }

    /// The pairs that are trained on: not held out or dropped. A prompt that was shortened stands there whole.
    pub fn pairs(&self) -> impl Iterator<Item = &Pair> {
        let used: HashSet<&str> = self.data.sources().collect();
        self.rows.iter().filter(move |row| used.contains(row.source.as_str())).map(|row| &row.pair)
    }

    /// The pairs of a step, counted from 0.
    pub fn batch(&self, step: u64) -> Vec<&EncodedPair> {
        let (mut chunk, mut step) = (0, step);
        while step >= self.chunk_steps[chunk] {
            step -= self.chunk_steps[chunk];
            chunk += 1;
        }
        let per_epoch = (self.data.chunk_sizes()[chunk] / self.batch_size) as u64;
        let order = self.data.ordered(chunk, step / per_epoch);
        let first = (step % per_epoch) as usize * self.batch_size;
        order[first..first + self.batch_size].to_vec()
    }

    /// The held-out pairs.
    pub fn held_out(&self) -> impl Iterator<Item = &EncodedPair> {
        self.data.held_out()
    }
}
