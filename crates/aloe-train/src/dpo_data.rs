//! The pairs of a preference stage as the step loop sees them: encoded, ordered, cut into chunks, with their reference.

use crate::dpo::{DpoConfig, DpoInputs, DpoReport, ReferenceAt};
use crate::guard::{OnNonFinite, OnSpike};
use crate::learner::Learner;
use crate::pairs::{Example, encode, ids_of, keep_usable, logps_of, packed, refuse_non_finite, set_apart, summed};
use crate::preference::{PairLogps, PairOutcome};
use crate::reference::{Fingerprint, ReferenceStore};
use crate::run::{Objective, Run, StepLoss};
use crate::schedule::Schedule;
use crate::settings::{Context, TrainDtype};
use crate::{Error, Result, finished};
use aloe_model::Decoder;
use aloe_record::CounterRng;
use aloe_record::digest::Hasher;
use aloe_text::TextModel;
use serde_json::{Map, Value, json};
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
    pub(crate) notices: Vec<String>,
}

impl DpoData {
    /// Encodes the pairs of a stage.
    pub(crate) fn prepare(
        config: &DpoConfig,
        inputs: DpoInputs,
        text: &TextModel,
        vocab_size: usize,
    ) -> Result<(Self, DpoReport)> {
        let pairs = encode(&inputs.rows, text, vocab_size)?;
        let held_out = encode(&inputs.held_out, text, vocab_size)?;
        Self::from_pairs(config, pairs, held_out)
    }

    /// Checks and orders encoded pairs.
    pub(crate) fn from_pairs(
        config: &DpoConfig,
        mut pairs: Vec<Example>,
        mut held_out: Vec<Example>,
    ) -> Result<(Self, DpoReport)> {
        let mut report = DpoReport::default();
        if held_out.is_empty() {
            held_out = set_apart(&mut pairs, config.held_out_share, config.seed);
        }
        keep_usable(&mut pairs, config.max_len, &mut report);
        keep_usable(&mut held_out, config.max_len, &mut report);
        if pairs.len() < config.chunks {
            let reason = format!(
                "{} left to train on for {} chunks ({} too long for max_len = {}, {} with equal answers)",
                pairs.len(),
                config.chunks,
                report.n_too_long,
                config.max_len,
                report.n_equal
            );
            return Err(Error::Data { what: "preference pairs".into(), reason });
        }
        if held_out.is_empty() && config.loop_settings().needs_held_out() {
            let reason = "patience and keep_best judge by held-out pairs and there are none; set held_out_share, or hold_out in the data stage";
            return Err(Error::Data { what: "held-out pairs".into(), reason: reason.into() });
        }
        report.n_pairs = pairs.len();
        report.n_held_out = held_out.len();
        let n_kept = report.n_pairs + report.n_held_out;
        let why = "with two equal answers";
        report.notices.extend(finished::dropped_notice("pairs", n_kept, report.n_too_long, report.n_equal, why));
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
            notices: Vec::new(),
        };
        Ok((data, report))
    }

    pub(crate) fn fingerprint(&self, start: &str, text: &TextModel, context: &Context) -> String {
        // Checkpoints change no bit, nor does the split into micro-batches in f32: they may change between restarts. In bf16
        // two rows enter a product together, so a split after an odd row rounds otherwise.
        let micro_batch_size = if self.config.dtype == TrainDtype::F32 { 1 } else { self.config.micro_batch_size };
        // How faults are met may change too, as long as none has been (see `Run::open`).
        let (on_spike, on_nonfinite) = (OnSpike::Stop, OnNonFinite::Stop);
        let (checkpoint_every, keep_last) = (0, 1);
        let config =
            DpoConfig { micro_batch_size, checkpoint_every, keep_last, on_spike, on_nonfinite, ..self.config.clone() };
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
        (0..self.config.chunks).map(|chunk| (self.config.epochs * self.steps_per_epoch(chunk)).min(limit)).collect()
    }

    /// Turns to a chunk: its first step and its schedule.
    pub(crate) fn enter_chunk(&mut self, chunk: usize) -> (u64, Schedule) {
        self.chunk = chunk;
        let steps = self.steps_per_chunk();
        let schedule = self.config.loop_settings().curve(steps[chunk]);
        (steps[..chunk].iter().sum(), schedule)
    }

    /// Indices of the present chunk's pairs in the order of an epoch. With chunks, one order is cut.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.pairs.len()).collect();
        if self.config.shuffle {
            CounterRng::new(self.config.seed, "dpo-order", epoch).shuffle(&mut order);
        }
        order[self.range(self.chunk)].to_vec()
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
        let compute = format!("{:?} {}", self.config.dtype, finished::compute(context));
        let reference_of = |pairs: &[Example], name: &str| {
            let pairs: Vec<&Example> = pairs.iter().collect();
            let fingerprint = Fingerprint::of(identity, &compute, &ids_of(&pairs));
            self.reference_of(&pairs, &out.join("state").join(name), fingerprint, start, context)
        };
        let (held_out, held_out_notice) = reference_of(&self.held_out, "reference-held-out.log")?;
        let mut notices: Vec<String> = held_out_notice.into_iter().collect();
        if self.config.reference == ReferenceAt::StageStart {
            let (found, notice) = reference_of(&self.pairs, "reference.log")?;
            notices.extend(notice);
            self.reference = found;
        }
        self.held_out_reference = held_out;
        self.notices.extend(notices);
        Ok(())
    }

    /// The reference of the present chunk, when each chunk has its own: the model at the chunk's first step.
    pub(crate) fn chunk_reference(&mut self, out: &Path, run: &Run<'_>, first: u64, context: &Context) -> Result<()> {
        if self.config.reference == ReferenceAt::StageStart {
            return Ok(());
        }
        let order = self.order(0);
        let pairs: Vec<&Example> = order.iter().map(|&at| &self.pairs[at]).collect();
        let path = out.join(format!("state/reference-chunk-{}.log", self.chunk));
        let start = || match run.cursor.step == first {
            true => Ok(run.learner.decoder().clone()),
            false => Err(Error::State {
                path: path.clone(),
                reason: format!(
                    "the reference of chunk {} is incomplete and its start weights are gone; remove the state folder \
                     to start over",
                    self.chunk
                ),
            }),
        };
        let identity = format!("{} chunk {}", run.cursor.fingerprint, self.chunk);
        let fingerprint = Fingerprint::of(&identity, "", &ids_of(&pairs));
        let (found, notice) = self.reference_of(&pairs, &path, fingerprint, &start, context)?;
        for (at, logps) in order.into_iter().zip(found) {
            self.reference[at] = logps;
        }
        self.notices.extend(notice);
        Ok(())
    }

    /// Reads the stored log-probabilities and computes those still missing.
    fn reference_of(
        &self,
        pairs: &[&Example],
        path: &Path,
        fingerprint: Fingerprint,
        decoder: &dyn Fn() -> Result<Decoder>,
        context: &Context,
    ) -> Result<(Vec<PairLogps>, Option<String>)> {
        let (mut store, notice) = ReferenceStore::open(path, fingerprint, pairs.len())?;
        let n_stored = store.n_stored();
        context.progress.resume(n_stored as u64);
        if n_stored < pairs.len() {
            let decoder = decoder()?;
            for micro in pairs[n_stored..].chunks(self.config.micro_batch_size) {
                context.cancel.check()?;
                let found = logps_of(&decoder, micro)?;
                refuse_non_finite(micro, &found, "reference log-probability")?;
                store.append(&found)?;
                context.progress.advance(micro.len() as u64);
            }
        }
        Ok((store.finish()?, notice))
    }
}

impl Objective for DpoData {
    const JUDGED: &'static str = "held_out_loss";

    fn accumulate(&mut self, learner: &mut Learner, step: u64, context: &Context) -> Result<StepLoss> {
        let per_epoch = self.steps_per_epoch(self.chunk);
        let order = self.order(step / per_epoch);
        let first = (step % per_epoch) as usize * self.config.batch_size;
        let batch = &order[first..order.len().min(first + self.config.batch_size)];
        let preference = self.config.preference();
        let mut sums = Sums::default();
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
                sums.add(&policy, &outcome);
                let scaled = |grad: f64| (grad / batch.len() as f64) as f32;
                dlogps.extend(std::iter::repeat_n(scaled(outcome.grad_chosen), n_chosen));
                dlogps.extend(std::iter::repeat_n(scaled(outcome.grad_rejected), n_rejected));
                if !outcome.loss.is_finite() {
                    found.suspects.push(pair.source.clone());
                }
            }
            learner.backward(forward, &dlogps);
        }
        found.loss = sums.mean(sums.loss);
        found.fields = sums.fields();
        found.rows = batch.iter().map(|&at| self.pairs[at].source.clone()).collect();
        found.n_units = batch.len() as u64;
        Ok(found)
    }

    fn evaluate(&mut self, learner: &Learner, context: &Context) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        if self.held_out.is_empty() {
            return Ok(fields);
        }
        let preference = self.config.preference();
        let pairs: Vec<&Example> = self.held_out.iter().collect();
        let mut sums = Sums::default();
        let mut references = self.held_out_reference.iter();
        for micro in pairs.chunks(self.config.micro_batch_size) {
            context.cancel.check()?;
            let policies = logps_of(learner.decoder(), micro)?;
            for ((pair, policy), reference) in micro.iter().zip(&policies).zip(&mut references) {
                let (n_chosen, n_rejected) = (pair.ids.chosen_ids.len(), pair.ids.rejected_ids.len());
                sums.add(policy, &preference.outcome(*policy, *reference, n_chosen, n_rejected));
            }
        }
        fields.insert("held_out_loss".into(), json!(sums.mean(sums.loss)));
        fields.insert("held_out_logp_accuracy".into(), json!(sums.mean(sums.n_logp_right as f64)));
        fields.insert("held_out_reward_accuracy".into(), json!(sums.mean(sums.n_reward_right as f64)));
        fields.insert("held_out_margin".into(), json!(sums.mean(sums.reward_chosen - sums.reward_rejected)));
        fields.insert("held_out_pairs".into(), json!(sums.n));
        Ok(fields)
    }
}

/// Sums over pairs, under TRL's names for the metrics.
#[derive(Default)]
struct Sums {
    n: usize,
    loss: f64,
    reward_chosen: f64,
    reward_rejected: f64,
    n_reward_right: usize,
    n_logp_right: usize,
    logps_chosen: f64,
    logps_rejected: f64,
}

impl Sums {
    fn add(&mut self, policy: &PairLogps, outcome: &PairOutcome) {
        self.n += 1;
        self.loss += outcome.loss;
        self.reward_chosen += outcome.reward_chosen;
        self.reward_rejected += outcome.reward_rejected;
        self.n_reward_right += usize::from(outcome.reward_chosen > outcome.reward_rejected);
        self.n_logp_right += usize::from(policy.chosen > policy.rejected);
        self.logps_chosen += policy.chosen;
        self.logps_rejected += policy.rejected;
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.n as f64
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        for (name, sum) in [
            ("rewards/chosen", self.reward_chosen),
            ("rewards/rejected", self.reward_rejected),
            ("rewards/margins", self.reward_chosen - self.reward_rejected),
            ("rewards/accuracies", self.n_reward_right as f64),
            ("logps/chosen", self.logps_chosen),
            ("logps/rejected", self.logps_rejected),
        ] {
            fields.insert(name.into(), json!(self.mean(sum)));
        }
        fields
    }
}
