//! The pairs of a preference stage as the step loop sees them: encoded, ordered, cut into chunks, with their reference.

use crate::dpo::{DpoConfig, DpoInputs, ReferenceAt};
use crate::dpo_report::DpoReport;
use crate::finished::{self, first_named};
use crate::guard::{OnNonFinite, OnSpike};
use crate::held_out;
use crate::learner::Learner;
use crate::lora::{ControlIds, LoraConfig};
use crate::pairs::{Example, Limits, encode, keep_usable, packed, refuse_beyond_context, set_apart, summed};
use crate::preference::PairLogps;
use crate::reference::{ReferencePass, References, logps_in_batches};
use crate::run::{Objective, Run, StepLoss};
use crate::schedule::Schedule;
use crate::settings::{Context, TrainDtype, refuse};
use crate::tally::Tally;
use crate::{Error, Result};
use aloe_model::{Config, Decoder};
use aloe_record::CounterRng;
use aloe_record::digest::Hasher;
use aloe_text::{EncodedPair, TextModel};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Encoded pairs, their order, and the reference of the present chunk.
pub(crate) struct DpoData {
    config: DpoConfig,
    pairs: Vec<Example>,
    held_out: Vec<Example>,
    /// Reference log-probabilities of `pairs` (those of the present chunk are valid) and of `held_out`.
    reference: Vec<PairLogps>,
    held_out_reference: Vec<PairLogps>,
    chunk: usize,
    /// Whether the weights are still those of the stage's start, under which the held-out pairs have their reference.
    is_at_start: bool,
    pub(crate) n_references_reused: usize,
    pub(crate) notices: Vec<String>,
}

impl DpoData {
    /// Encodes the pairs of a stage.
    pub(crate) fn prepare(
        config: &DpoConfig,
        inputs: DpoInputs,
        text: &TextModel,
        model: &Config,
    ) -> Result<(Self, DpoReport)> {
        refuse(config.lora.iter().filter_map(|lora| lora.rank_mistake(model)).collect())?;
        text.check_end_of_turn()?;
        let limits = Limits { max_len: config.max_len, truncate: config.truncate, vocab_size: model.vocab_size };
        let pairs = encode(&inputs.rows, text, &limits)?;
        let held_out = encode(&inputs.held_out, text, &limits)?;
        let (data, report) = Self::from_pairs(config, pairs, held_out)?;
        let all = data.pairs.iter().chain(&data.held_out);
        refuse_beyond_context(all, model.max_position_embeddings, config.max_len)?;
        Ok((data, report))
    }

    /// Checks and orders encoded pairs.
    pub(crate) fn from_pairs(
        config: &DpoConfig,
        mut pairs: Vec<Example>,
        mut held_out: Vec<Example>,
    ) -> Result<(Self, DpoReport)> {
        let mut report = DpoReport::default();
        if held_out.is_empty() {
            held_out = set_apart(&mut pairs, config.held_out_share, config.seed)?;
        }
        let n_held_out = held_out.len();
        keep_usable(&mut pairs, config.max_len, &mut report);
        keep_usable(&mut held_out, config.max_len, &mut report);
        if pairs.len() < config.chunks {
            let reason = format!(
                "{} left to train on for {} chunks ({} too long for max_len = {}, {} of them by the prompt alone; {} with equal \
                 answers)",
                pairs.len(),
                config.chunks,
                report.n_too_long,
                config.max_len,
                report.n_prompt_too_long,
                report.n_equal
            );
            return Err(Error::Data { what: "preference pairs".into(), reason });
        }
        let settings = config.loop_settings();
        held_out::refuse_none(&settings, held_out.len(), "pairs")?;
        report.n_pairs = pairs.len();
        report.n_held_out = held_out.len();
        report.notices.extend(length_notices(config, &report));
        report.notices.extend(held_out::none_left(n_held_out, report.n_held_out, "pairs"));
        report.n_tokens = pairs.iter().map(|pair| pair.n_tokens() as u64).sum();
        report.n_targets = pairs.iter().map(|pair| pair.n_targets() as u64).sum();
        let reference = vec![PairLogps::default(); pairs.len()];
        let data = Self {
            config: config.clone(),
            pairs,
            held_out,
            reference,
            held_out_reference: Vec::new(),
            chunk: 0,
            is_at_start: false,
            n_references_reused: 0,
            notices: Vec::new(),
        };
        report.notices.extend(settings.judge_spans(&data.steps_per_chunk())?);
        report.notices.extend(data.chunks_notice());
        Ok((data, report))
    }

    pub(crate) fn fingerprint(&self, start: &str, text: &TextModel, context: &Context) -> String {
        // Checkpoints and recomputation change no bit, nor does the split into micro-batches in f32, so that a state is not told apart by them;
        // in bf16 two rows enter a product together, and a split after an odd row rounds otherwise. What a stage of the program may change between
        // restarts is decided before (`resumable` in its `stage.rs`) and is less: no split.
        let micro_batch_size = if self.config.dtype == TrainDtype::F32 { 1 } else { self.config.micro_batch_size };
        // How faults are met may change too, as long as none has been (see `Run::open`).
        let (on_spike, on_nonfinite) = (OnSpike::Stop, OnNonFinite::Stop);
        let (checkpoint_every, keep_last, recompute) = (0, 1, false);
        let config = DpoConfig {
            micro_batch_size,
            recompute,
            checkpoint_every,
            keep_last,
            on_spike,
            on_nonfinite,
            ..self.config.clone()
        };
        let mut hasher = Hasher::default();
        for field in ["dpo", &json!(config).to_string(), start, &text.digest(), &finished::compute(context)] {
            hasher.field(field.as_bytes());
        }
        for pair in self.pairs.iter().chain(&self.held_out) {
            for ids in [&pair.ids.prompt_ids, &pair.ids.chosen_ids, &pair.ids.rejected_ids] {
                hasher.field(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        hasher.field(&(self.pairs.len() as u64).to_le_bytes());
        hasher.hex()
    }

    /// The chat template's tokens in the pairs.
    pub(crate) fn control_ids(&self, text: &TextModel) -> ControlIds {
        let mut ids = ControlIds::default();
        for pair in &self.pairs {
            ids.add(text, pair.ids.prompt_ids.iter().copied(), false);
            for answer in [&pair.ids.chosen_ids, &pair.ids.rejected_ids] {
                ids.add(text, answer.iter().copied(), false);
                ids.add(text, answer.iter().copied(), true);
            }
        }
        ids
    }

    /// A row to look at: prompt and chosen answer of the first pair held out, or of the first.
    pub(crate) fn probe(&self) -> Vec<u32> {
        let pair = self.held_out.first().or(self.pairs.first());
        pair.map_or_else(Vec::new, |pair| [pair.ids.prompt_ids.as_slice(), &pair.ids.chosen_ids].concat())
    }

    /// Pairs of the whole run for the progress bar: trained ones and those whose reference is computed.
    pub(crate) fn total_units(&self) -> u64 {
        let n_steps: u64 = self.steps_per_chunk().iter().sum();
        self.pairs_done(n_steps) + self.pairs.len() as u64 + self.held_out.len() as u64
    }

    /// Pairs trained on in the first `step` steps.
    pub(crate) fn pairs_done(&self, step: u64) -> u64 {
        let mut left = step;
        let mut done = 0;
        for (chunk, steps) in self.steps_per_chunk().into_iter().enumerate() {
            let (now, per_epoch) = (left.min(steps), self.steps_per_epoch(chunk));
            let n_pairs = self.range(chunk).len() as u64;
            done += now / per_epoch * n_pairs + now % per_epoch * self.config.batch_size as u64;
            left -= now;
        }
        done
    }

    /// Positions in the shuffled order that belong to a chunk.
    fn range(&self, chunk: usize) -> Range<usize> {
        let bound = |chunk: usize| self.pairs.len() * chunk / self.config.chunks;
        bound(chunk)..bound(chunk + 1)
    }

    fn steps_per_epoch(&self, chunk: usize) -> u64 {
        self.range(chunk).len().div_ceil(self.config.batch_size) as u64
    }

    /// Optimizer steps of each chunk.
    pub(crate) fn steps_per_chunk(&self) -> Vec<u64> {
        let limit = self.config.max_steps.unwrap_or(u64::MAX);
        let steps = |chunk| self.config.epochs.saturating_mul(self.steps_per_epoch(chunk)).min(limit);
        (0..self.config.chunks).map(steps).collect()
    }

    /// Turns to a chunk: its first step and its schedule.
    pub(crate) fn enter_chunk(&mut self, chunk: usize) -> (u64, Schedule) {
        self.chunk = chunk;
        let steps = self.steps_per_chunk();
        let schedule = self.config.loop_settings().curve(steps[chunk]);
        (steps[..chunk].iter().sum(), schedule)
    }

    /// Indices of the present chunk's pairs in the order of an epoch.
    fn order(&self, epoch: u64) -> Vec<usize> {
        self.order_of(self.chunk, epoch)
    }

    /// Indices of a chunk's pairs in the order of an epoch. With chunks, one order is cut.
    fn order_of(&self, chunk: usize, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.pairs.len()).collect();
        if self.config.shuffle {
            CounterRng::new(self.config.seed, "dpo-order", epoch).shuffle(&mut order);
        }
        order[self.range(chunk)].to_vec()
    }

    /// Where the pairs came from.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|pair| pair.source.as_str())
    }

    /// A chunk's pairs in the order of an epoch.
    pub(crate) fn ordered(&self, chunk: usize, epoch: u64) -> Vec<&EncodedPair> {
        self.order_of(chunk, epoch).into_iter().map(|at| &self.pairs[at].ids).collect()
    }

    /// The held-out pairs.
    pub(crate) fn held_out(&self) -> impl Iterator<Item = &EncodedPair> {
        self.held_out.iter().map(|pair| &pair.ids)
    }

    /// Pairs of each chunk.
    pub(crate) fn chunk_sizes(&self) -> Vec<usize> {
        (0..self.config.chunks).map(|chunk| self.range(chunk).len()).collect()
    }

    /// What a run in chunks does at the start of each, because the field's tools differ in it.
    fn chunks_notice(&self) -> Option<String> {
        let n = self.config.chunks;
        let sizes = self.chunk_sizes();
        let reference = match self.config.reference {
            ReferenceAt::StageStart => "the reference is the stage's start model throughout",
            ReferenceAt::ChunkStart => {
                "the reference is the model each chunk starts from; that of held-out figures is the stage's start model throughout"
            }
        };
        let (smallest, largest) = (sizes.iter().min()?, sizes.iter().max()?);
        let size = if smallest == largest { smallest.to_string() } else { format!("{smallest} or {largest}") };
        (n > 1).then(|| {
            format!(
                "{n} chunks of {size} pairs, one epoch each, one after the other: AdamW's moments and the learning-rate \
                 schedule (warm-up included) start anew with each, the weights go on; {reference}"
            )
        })
    }

    /// Tells whether the weights that come are those of the stage's start: a run that resumes at a later step has others.
    pub(crate) fn starts_at(&mut self, step: u64) {
        self.is_at_start = step == 0;
    }

    /// Sources of pairs, each with its numbers of training and of held-out pairs.
    pub(crate) fn sets(&self) -> BTreeMap<&str, (usize, usize)> {
        let mut sets = BTreeMap::<&str, (usize, usize)>::new();
        self.pairs.iter().for_each(|pair| sets.entry(&pair.set).or_default().0 += 1);
        self.held_out.iter().for_each(|pair| sets.entry(&pair.set).or_default().1 += 1);
        sets
    }

    /// Whether figures are also told by source: with one source they are those of all pairs.
    pub(crate) fn is_by_set(&self) -> bool {
        self.sets().len() > 1
    }

    /// The stage's reference: of the held-out pairs always, of the training pairs unless each chunk has its own. `identity`
    /// names the start weights and the tokenizer; `start` opens those weights if something is still to be computed.
    pub(crate) fn stage_references(
        &mut self,
        out: &Path,
        start: &dyn Fn() -> Result<Decoder>,
        identity: &str,
        context: &Context,
    ) -> Result<()> {
        let base = self.config.lora.as_ref().map_or_else(String::new, LoraConfig::start_name);
        let compute = format!("{:?} {base}{}", self.config.dtype, finished::compute(context));
        let run = |pairs: &[Example], name: &str| {
            let pairs: Vec<&Example> = pairs.iter().collect();
            let store = out.join("state").join(name);
            let cache = self.config.reference_cache.as_deref();
            ReferencePass { identity, compute: &compute, store: &store, cache, decoder: start }.run(&pairs, context)
        };
        let held_out = run(&self.held_out, "reference-held-out.log")?;
        let training = match self.config.reference {
            ReferenceAt::StageStart => Some(run(&self.pairs, "reference.log")?),
            ReferenceAt::ChunkStart => None,
        };
        self.held_out_reference = self.take_over(held_out);
        if let Some(training) = training {
            self.reference = self.take_over(training);
        }
        if self.n_references_reused > 0 {
            let n = self.n_references_reused;
            self.notices.push(format!("reference log-probabilities of {n} pairs taken from reference_cache"));
        }
        Ok(())
    }

    fn take_over(&mut self, found: References) -> Vec<PairLogps> {
        self.n_references_reused += found.n_reused;
        self.notices.extend(found.notice);
        found.logps
    }

    /// The reference of the present chunk, when each chunk has its own: the model at the chunk's first step. No other run has
    /// that model, so nothing of it is kept beyond this one. Losses start from it anew, so those of the chunk before are nothing to judge
    /// them by.
    pub(crate) fn chunk_reference(
        &mut self,
        out: &Path,
        run: &mut Run<'_>,
        first: u64,
        context: &Context,
    ) -> Result<()> {
        if self.config.reference == ReferenceAt::StageStart {
            return Ok(());
        }
        if run.cursor.step == first {
            run.cursor.guard.forget();
        }
        let order = self.order(0);
        let found = self.chunk_pass(&order, out, run, first, context);
        let found = self.take_over(run.saved_if_stopped(found)?);
        for (at, logps) in order.into_iter().zip(found) {
            self.reference[at] = logps;
        }
        Ok(())
    }

    fn chunk_pass(
        &self,
        order: &[usize],
        out: &Path,
        run: &Run<'_>,
        first: u64,
        context: &Context,
    ) -> Result<References> {
        let pairs: Vec<&Example> = order.iter().map(|&at| &self.pairs[at]).collect();
        let store = out.join(format!("state/reference-chunk-{}.log", self.chunk));
        let start = || match run.cursor.step == first {
            true => Ok(run.learner.decoder().clone()),
            false => Err(Error::State {
                path: store.clone(),
                reason: format!(
                    "the reference of chunk {} is incomplete and its start weights are gone; remove the state folder \
                     to start over",
                    self.chunk
                ),
            }),
        };
        let identity = format!("{} chunk {}", run.cursor.fingerprint, self.chunk);
        let pass = ReferencePass { identity: &identity, compute: "", store: &store, cache: None, decoder: &start };
        pass.run(&pairs, context)
    }
}

/// What became of the pairs that are too long or say nothing, so that nobody takes the rest for the whole.
fn length_notices(config: &DpoConfig, report: &DpoReport) -> Vec<String> {
    let n_dropped = report.n_too_long + report.n_equal;
    let n_all = report.n_pairs + report.n_held_out + n_dropped;
    let mut notices = Vec::new();
    if n_dropped > 0 {
        notices.push(format!(
            "{n_dropped} of {n_all} pairs dropped: {} longer than max_len ({} of them by the prompt alone), {} with two equal \
             answers{}",
            report.n_too_long,
            report.n_prompt_too_long,
            report.n_equal,
            first_named(&report.equal, report.n_equal)
        ));
    }
    if report.n_shortened > 0 {
        notices.push(format!(
            "{} of {n_all} pairs shortened to max_len = {}: {} oldest turns taken out of their prompts",
            report.n_shortened, config.max_len, report.n_turns_removed
        ));
    }
    notices
}

impl Objective for DpoData {
    const JUDGED: &'static str = "held_out_loss";

    fn accumulate(&mut self, learner: &mut Learner, step: u64, context: &Context) -> Result<StepLoss> {
        let per_epoch = self.steps_per_epoch(self.chunk);
        let order = self.order(step / per_epoch);
        let first = (step % per_epoch) as usize * self.config.batch_size;
        let batch = &order[first..order.len().min(first + self.config.batch_size)];
        let preference = self.config.preference();
        let n_chosen_tokens: usize = batch.iter().map(|&at| self.pairs[at].ids.chosen_ids.len()).sum();
        let nll_slope = -self.config.nll_weight / n_chosen_tokens as f64;
        self.is_at_start = false;
        let mut tally = Tally::new(self.config.nll_weight);
        let mut found = StepLoss::default();
        for micro in batch.chunks(self.config.micro_batch_size) {
            context.cancel.check()?;
            let pairs: Vec<&Example> = micro.iter().map(|&at| &self.pairs[at]).collect();
            let (packed, targets) = packed(&pairs);
            found.n_tokens += packed.len() as u64;
            found.n_attended += packed.n_attended();
            found.n_targets += targets.rows.len() as u64;
            let forward = learner.forward(packed, targets)?;
            let policies = summed(&pairs, forward.logps());
            let mut dlogps = Vec::with_capacity(forward.logps().len());
            for ((pair, &policy), &at) in pairs.iter().zip(&policies).zip(micro) {
                let (n_chosen, n_rejected) = (pair.ids.chosen_ids.len(), pair.ids.rejected_ids.len());
                let outcome = preference.outcome(policy, self.reference[at], n_chosen, n_rejected);
                tally.add(pair, &policy, &self.reference[at], &outcome);
                let scaled = |grad: f64| grad / batch.len() as f64;
                let by_chosen = scaled(outcome.grad_chosen) + nll_slope;
                dlogps.extend(std::iter::repeat_n(by_chosen as f32, n_chosen));
                dlogps.extend(std::iter::repeat_n(scaled(outcome.grad_rejected) as f32, n_rejected));
                if !outcome.loss.is_finite() {
                    found.suspects.push(pair.source.clone());
                }
            }
            learner.backward(forward, &dlogps);
        }
        found.loss = tally.loss();
        found.fields = tally.step_fields(self.is_by_set());
        if self.config.chunks > 1 {
            found.fields.insert("chunk".into(), json!(self.chunk));
        }
        found.rows = batch.iter().map(|&at| self.pairs[at].source.clone()).collect();
        found.n_units = batch.len() as u64;
        Ok(found)
    }

    fn evaluate(&mut self, learner: &Learner, context: &Context) -> Result<Map<String, Value>> {
        if self.held_out.is_empty() {
            return Ok(Map::new());
        }
        let preference = self.config.preference();
        let pairs: Vec<&Example> = self.held_out.iter().collect();
        let policies = if self.is_at_start {
            self.held_out_reference.clone()
        } else {
            logps_in_batches(learner.decoder(), &pairs, context)?
        };
        let mut tally = Tally::new(self.config.nll_weight);
        for ((pair, policy), reference) in pairs.iter().zip(&policies).zip(&self.held_out_reference) {
            let (n_chosen, n_rejected) = (pair.ids.chosen_ids.len(), pair.ids.rejected_ids.len());
            let outcome = preference.outcome(*policy, *reference, n_chosen, n_rejected);
            tally.add(pair, policy, reference, &outcome);
        }
        Ok(tally.held_out_fields(self.is_by_set()))
    }
}
