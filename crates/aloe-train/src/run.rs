//! The step loop that SFT and DPO share: accumulate, judge, update, note, evaluate, checkpoint.
//!
//! Every step leaves the run in a state that a checkpoint can hold exactly. Nothing is saved after a non-finite value.

use crate::guard::Verdict;
use crate::learner::Learner;
use crate::metrics::Metrics;
use crate::schedule::Schedule;
use crate::settings::{Context, LoopSettings};
use crate::state::{self, Cursor};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What one step's forward and backward passes found.
#[derive(Default)]
pub(crate) struct StepLoss {
    /// The value that is minimised.
    pub(crate) loss: f64,
    /// Tokens passed forward.
    pub(crate) n_tokens: u64,
    /// Tokens trained on.
    pub(crate) n_targets: u64,
    /// Further numbers for the metrics line.
    pub(crate) fields: Map<String, Value>,
    /// Sources of the step's rows.
    pub(crate) rows: Vec<String>,
    /// Sources of rows with a non-finite log-probability.
    pub(crate) suspects: Vec<String>,
    /// What the progress bar advances by.
    pub(crate) n_units: u64,
}

/// What is trained: the two stages differ in these two calls.
pub(crate) trait Objective {
    /// Adds the gradients of step `step` of the current span (from 0) to the learner's.
    fn accumulate(&mut self, learner: &mut Learner, step: u64, context: &Context) -> Result<StepLoss>;
    /// Held-out numbers under the present weights; empty when nothing is held out.
    fn evaluate(&mut self, learner: &Learner, context: &Context) -> Result<Map<String, Value>>;
}

/// A run in progress.
pub(crate) struct Run<'a> {
    pub(crate) learner: Learner,
    pub(crate) cursor: Cursor,
    pub(crate) metrics: Metrics,
    /// What the user must be told: damaged checkpoints, stale references.
    pub(crate) notices: Vec<String>,
    /// The step this process began at.
    pub(crate) resumed_from: u64,
    settings: LoopSettings,
    state: PathBuf,
    context: &'a Context,
}

impl<'a> Run<'a> {
    /// Takes up the newest valid checkpoint under `out/state`, or starts at step 0.
    pub(crate) fn open(
        mut learner: Learner,
        settings: LoopSettings,
        fingerprint: String,
        out: &Path,
        context: &'a Context,
    ) -> Result<Self> {
        let state = out.join("state");
        let (loaded, notices) = state::load_newest(&state, &fingerprint, &learner.layout())?;
        let (cursor, text) = match loaded {
            Some(loaded) => {
                learner.restore(loaded.arrays);
                (loaded.cursor, loaded.metrics)
            }
            None => (Cursor { fingerprint, ..Cursor::default() }, Vec::new()),
        };
        let metrics = Metrics::start(&out.join("metrics.jsonl"), text)?;
        let resumed_from = cursor.step;
        Ok(Self { learner, cursor, metrics, notices, resumed_from, settings, state, context })
    }

    /// Notes the held-out numbers before the first step, once.
    pub(crate) fn evaluate_start(&mut self, objective: &mut impl Objective) -> Result<()> {
        if self.cursor.step == 0 && self.metrics.text().is_empty() { self.evaluate(objective) } else { Ok(()) }
    }

    /// Steps `first..first + schedule.total_steps`, from where the cursor stands. `first` belongs to a fresh optimizer.
    pub(crate) fn span(&mut self, objective: &mut impl Objective, first: u64, schedule: &Schedule) -> Result<()> {
        let end = first + schedule.total_steps;
        if self.cursor.step == first {
            self.learner.reset_moments();
        }
        while self.cursor.step < end {
            let done = self.step(objective, first, schedule);
            if let Err(Error::Record(aloe_record::Error::Cancelled)) = done {
                self.checkpoint()?;
            }
            done?;
            if self.is_due(self.settings.eval_every) && self.cursor.step < end {
                self.evaluate(objective)?;
            }
            if self.is_due(self.settings.checkpoint_every) {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    /// Notes the held-out numbers after the last step.
    pub(crate) fn evaluate_end(&mut self, objective: &mut impl Objective) -> Result<()> {
        self.evaluate(objective)
    }

    fn is_due(&self, every: u64) -> bool {
        every > 0 && self.cursor.step.is_multiple_of(every)
    }

    fn step(&mut self, objective: &mut impl Objective, first: u64, schedule: &Schedule) -> Result<()> {
        self.context.cancel.check()?;
        let at = self.cursor.step - first;
        self.learner.zero_grads();
        let found = objective.accumulate(&mut self.learner, at, self.context)?;
        let grad_norm = self.learner.grad_norm();
        let lr = schedule.lr(at);
        let verdict =
            self.cursor.guard.judge(found.loss, grad_norm, self.settings.on_nonfinite, self.settings.on_spike);
        match verdict {
            Verdict::Stop => return Err(self.non_finite(found)),
            Verdict::Apply => self.learner.update(lr, grad_norm, at + 1, &self.settings),
            Verdict::Skip => {}
        }
        self.cursor.step += 1;
        self.cursor.n_tokens += found.n_tokens;
        self.cursor.n_targets += found.n_targets;
        self.context.progress.advance(found.n_units);
        self.context.progress.message(&format!("loss {:.4}", found.loss));
        let mut line = json!({"step": self.cursor.step, "loss": found.loss, "lr": lr, "grad_norm": grad_norm,
            "n_targets": found.n_targets, "tokens": found.n_tokens});
        if let Some(fields) = line.as_object_mut() {
            fields.extend(found.fields);
            if verdict == Verdict::Skip {
                fields.insert("skipped".into(), Value::Bool(true));
            }
        }
        self.metrics.append(&line)
    }

    fn non_finite(&self, found: StepLoss) -> Error {
        let what = if found.loss.is_finite() { "gradient" } else { "loss" };
        let rows = if found.suspects.is_empty() { found.rows } else { found.suspects };
        Error::NonFinite { step: self.cursor.step + 1, what: what.into(), rows }
    }

    fn evaluate(&mut self, objective: &mut impl Objective) -> Result<()> {
        let fields = objective.evaluate(&self.learner, self.context)?;
        if fields.is_empty() {
            return Ok(());
        }
        let mut line = Map::new();
        line.insert("step".into(), json!(self.cursor.step));
        line.extend(fields);
        self.metrics.append(&line)
    }

    fn checkpoint(&self) -> Result<()> {
        self.learner.check_finite(self.cursor.step)?;
        state::save(&self.state, &self.cursor, &self.learner.arrays(), self.metrics.text(), self.settings.keep_last)
    }
}
