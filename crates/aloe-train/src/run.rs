//! The step loop that SFT and DPO share: accumulate, judge, update, note, evaluate, sample, checkpoint.
//!
//! Every step leaves the run in a state that a checkpoint can hold exactly. Nothing is saved with a non-finite value in it; an interruption,
//! a spike and a step whose loss or gradient is not finite save the state before they end the run, and so does the last step, as writing the
//! model may fail.

use crate::guard::{OnNonFinite, Spike, Verdict};
use crate::learner::Learner;
use crate::metrics::Metrics;
use crate::sampler::Sampler;
use crate::schedule::Schedule;
use crate::settings::{Context, LoopSettings};
use crate::sight::{Sight, Speed};
use crate::state::{self, Cursor, Damaged, Logs};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What one step's forward and backward passes found.
#[derive(Default)]
pub(crate) struct StepLoss {
    /// The value that is minimised.
    pub(crate) loss: f64,
    /// Tokens passed forward.
    pub(crate) n_tokens: u64,
    /// Tokens trained on.
    pub(crate) n_targets: u64,
    /// Pairs of a query and a key that attention saw, over all tokens.
    pub(crate) n_attended: u64,
    /// Further numbers for the metrics line.
    pub(crate) fields: Map<String, Value>,
    /// Sources of the step's rows.
    pub(crate) rows: Vec<String>,
    /// Sources of rows with a non-finite log-probability.
    pub(crate) suspects: Vec<String>,
    /// What the progress bar advances by.
    pub(crate) n_units: u64,
}

/// What is trained: the two stages differ in these.
pub(crate) trait Objective {
    /// The held-out number that `patience` and `keep_best` judge by: lower is better.
    const JUDGED: &'static str;
    /// Adds the gradients of step `step` of the current span (from 0) to the learner's.
    fn accumulate(&mut self, learner: &mut Learner, step: u64, context: &Context) -> Result<StepLoss>;
    /// Held-out numbers under the present weights; empty when nothing is held out.
    fn evaluate(&mut self, learner: &Learner, context: &Context) -> Result<Map<String, Value>>;
    /// Takes up what the evaluation of the start has noted, in this session or an earlier one: what is told as a change is so the same
    /// after a restart.
    fn started(&mut self, _metrics: &Metrics) {}
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
    /// Who answers `sample_prompts`; `None` when nothing is asked.
    pub(crate) sampler: Option<Sampler>,
    samples: Option<Metrics>,
    sight: Sight,
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
        let policy = format!("on_nonfinite {:?}, on_spike {:?}", settings.on_nonfinite, settings.on_spike);
        let (loaded, damaged) = state::load_newest(&state, &fingerprint, &learner.layout())?;
        let (mut cursor, metrics, samples) = match loaded {
            Some(loaded) => {
                learner.restore(loaded.arrays);
                (loaded.cursor, loaded.metrics, loaded.samples)
            }
            None => (Cursor { fingerprint, ..Cursor::default() }, Vec::new(), Vec::new()),
        };
        refuse_older_skips(&cursor, &metrics, &state)?;
        if cursor.guard.has_judged() && cursor.policy != policy {
            let mistake = format!(
                "on_nonfinite and on_spike: the unfinished run in {} has treated a step by {}; now they are {policy}; restore them to go \
                 on, or remove that folder to start over",
                state.display(),
                cursor.policy
            );
            return Err(Error::Config { mistakes: vec![mistake] });
        }
        cursor.policy = policy;
        state::set_aside(&damaged)?;
        tell_damaged(&damaged, cursor.step);
        let sight = Sight::open(out, &metrics, cursor.step, context.peak_flops)?;
        let metrics = Metrics::start(&out.join("metrics.jsonl"), metrics)?;
        let samples = match settings.sample_every {
            0 => None,
            _ => Some(Metrics::start(&out.join("samples.jsonl"), samples)?),
        };
        let resumed_from = cursor.step;
        Ok(Self {
            learner,
            cursor,
            metrics,
            notices: damaged.into_iter().map(|one| one.notice).collect(),
            resumed_from,
            sampler: None,
            samples,
            sight,
            settings,
            state,
            context,
        })
    }

    /// Notes the held-out numbers and the answers before the first step, once.
    pub(crate) fn evaluate_start(&mut self, objective: &mut impl Objective) -> Result<()> {
        let is_new = self.cursor.step == 0 && self.metrics.text().is_empty();
        if is_new {
            self.evaluate(objective)?;
        }
        objective.started(&self.metrics);
        if is_new { self.sample() } else { Ok(()) }
    }

    /// Steps `first..first + schedule.total_steps`, from where the cursor stands. `first` belongs to a fresh optimizer.
    pub(crate) fn span(&mut self, objective: &mut impl Objective, first: u64, schedule: &Schedule) -> Result<()> {
        if self.cursor.step == first {
            self.learner.reset_moments();
            self.cursor.n_updates = Some(0);
        }
        let done = self.steps(objective, first, schedule);
        self.saved_if_stopped(done)
    }

    fn steps(&mut self, objective: &mut impl Objective, first: u64, schedule: &Schedule) -> Result<()> {
        let end = first + schedule.total_steps;
        // An interruption may have come between a step and what follows it.
        self.look(objective, first..end)?;
        while self.cursor.step < end && !self.cursor.held_out.has_stopped {
            self.step(objective, first, schedule)?;
            self.look(objective, first..end)?;
            if self.is_due(self.settings.checkpoint_every) {
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    /// What follows a step of a span, if it is due and not done yet. The last step's is [`Self::evaluate_end`]'s.
    fn look(&mut self, objective: &mut impl Objective, span: std::ops::Range<u64>) -> Result<()> {
        let step = self.cursor.step;
        if step == span.start || !span.contains(&step) {
            return Ok(());
        }
        if self.is_due(self.settings.eval_every) && self.cursor.held_out.last_step != Some(step) {
            self.evaluate(objective)?;
        }
        if self.is_due(self.settings.sample_every) { self.sample() } else { Ok(()) }
    }

    /// Notes the held-out numbers and the answers after the last step, and takes the best weights where they are asked for.
    pub(crate) fn evaluate_end(&mut self, objective: &mut impl Objective) -> Result<()> {
        let done = self.end(objective);
        self.saved_if_stopped(done)
    }

    fn end(&mut self, objective: &mut impl Objective) -> Result<()> {
        if self.cursor.held_out.last_step != Some(self.cursor.step) {
            self.evaluate(objective)?;
        }
        self.sample()?;
        self.save_last_step()?;
        if self.exported_step() != self.cursor.step {
            let weights = &self.learner.layout()[0];
            let best = state::load_best(&self.state, self.exported_step(), weights)?;
            self.learner.restore(vec![best]);
        }
        Ok(())
    }

    /// Saves the last step, where checkpoints are made at all and it has none: until the model is written, a kill or a full disk would lose
    /// every step since the one before. Where the disk has room for the model alone, or takes no checkpoint, the model goes first.
    fn save_last_step(&mut self) -> Result<()> {
        if self.settings.checkpoint_every == 0 || state::has(&self.state, self.cursor.step) {
            return Ok(());
        }
        let free = aloe_record::disk::free_bytes(&self.state);
        let not_saved = match free.filter(|&free| self.has_room_for_the_model_alone(free)) {
            Some(free) => format!("the disk has {} MB free, which is room for the model alone", free / 1_000_000),
            None => match self.checkpoint() {
                Err(Error::Record(error)) if error.is_storage() => error.to_string(),
                done => return done,
            },
        };
        let step = self.cursor.step;
        let notice = format!("no checkpoint of step {step} was made before the model is written: {not_saved}");
        aloe_record::tell(&format!("note: {notice}"));
        self.notices.push(notice);
        Ok(())
    }

    /// Whether so many bytes hold the model in bf16 and f32, and not a checkpoint beside it.
    pub(crate) fn has_room_for_the_model_alone(&self, free: u64) -> bool {
        let model = 6 * self.learner.params().config.n_parameters() as u64;
        let checkpoint = 4 * self.learner.layout().iter().flat_map(|(_, lens)| lens).sum::<usize>() as u64;
        free >= model && free < model + checkpoint
    }

    /// The step whose weights are written: the last one, or with `keep_best` that of the best evaluation.
    pub(crate) fn exported_step(&self) -> u64 {
        match self.cursor.held_out.best {
            Some((step, _)) if self.settings.keep_best => step,
            _ => self.cursor.step,
        }
    }

    /// A held-out number of the weights that are written.
    pub(crate) fn held_out_after(&self, field: &str) -> Option<f64> {
        self.metrics.number_at(self.exported_step(), field)
    }

    /// An interruption and a spike save first: every step so far is done, and what follows it is made up for on resuming. So does a value
    /// that is not finite, unless it is one of those to be saved.
    pub(crate) fn saved_if_stopped<T>(&self, done: Result<T>) -> Result<T> {
        match done {
            Err(Error::Record(aloe_record::Error::Cancelled) | Error::Spike { .. }) => {
                self.checkpoint()?;
                done
            }
            Err(Error::NonFinite { step, what, rows, goes_on }) => match self.checkpoint() {
                Ok(()) => Err(Error::NonFinite { step, what, rows, goes_on: self.after_non_finite(step) }),
                Err(Error::NonFinite { .. }) => Err(Error::NonFinite { step, what, rows, goes_on }),
                Err(error) => Err(error),
            },
            done => done,
        }
    }

    /// What to do about a step that was not made.
    fn after_non_finite(&self, step: u64) -> String {
        let saved = "The state before it is saved";
        match self.settings.on_nonfinite {
            _ if step != self.cursor.step + 1 => saved.into(),
            OnNonFinite::Stop => {
                format!("{saved}: look at these rows, then go on with on_nonfinite = \"skip\" (leave the step out)")
            }
            OnNonFinite::Skip => {
                format!(
                    "{saved}; it is the third such step in a row, at which on_nonfinite = \"skip\" stops: look at the rows of all three"
                )
            }
        }
    }

    fn is_due(&self, every: u64) -> bool {
        every > 0 && self.cursor.step.is_multiple_of(every)
    }

    fn step(&mut self, objective: &mut impl Objective, first: u64, schedule: &Schedule) -> Result<()> {
        self.context.cancel.check()?;
        let began = Instant::now();
        let at = self.cursor.step - first;
        self.learner.begin_step(self.cursor.step);
        let found = objective.accumulate(&mut self.learner, at, self.context)?;
        let grad_norm = self.learner.grad_norm();
        let lr = schedule.lr(at);
        let verdict =
            self.cursor.guard.judge(found.loss, grad_norm, self.settings.on_nonfinite, self.settings.on_spike);
        match verdict {
            Verdict::Stop => return Err(self.non_finite(found)),
            Verdict::StopAtSpike(spike) => return Err(self.spike(spike, found)),
            Verdict::Apply => {
                // A checkpoint without the count is of an older program and has skipped no step.
                let n_updates = self.cursor.n_updates.unwrap_or(at) + 1;
                self.learner.update(lr, grad_norm, n_updates, &self.settings);
                self.cursor.n_updates = Some(n_updates);
            }
            Verdict::Skip => {}
        }
        self.cursor.step += 1;
        self.cursor.n_tokens += found.n_tokens;
        self.cursor.n_targets += found.n_targets;
        let mut line = json!({"step": self.cursor.step, "loss": found.loss, "lr": lr, "grad_norm": grad_norm,
            "n_targets": found.n_targets, "tokens": found.n_tokens});
        let flops = self.learner.flops(found.n_tokens, found.n_targets, found.n_attended);
        if let Some(fields) = line.as_object_mut() {
            fields.extend(found.fields);
            if verdict == Verdict::Skip {
                fields.insert("skipped".into(), Value::Bool(true));
            }
        }
        self.metrics.append(&line)?;
        let speed = Speed { step_s: began.elapsed().as_secs_f64(), n_tokens: found.n_tokens, flops };
        let live = self.sight.stepped(&line, &speed)?;
        self.context.progress.advance(found.n_units);
        self.context.progress.message(&live);
        Ok(())
    }

    fn non_finite(&self, found: StepLoss) -> Error {
        let what = if found.loss.is_finite() { "gradient" } else { "loss" };
        let rows = if found.suspects.is_empty() { found.rows } else { found.suspects };
        Error::NonFinite { step: self.cursor.step + 1, what: what.into(), rows, goes_on: String::new() }
    }

    fn spike(&self, spike: Spike, found: StepLoss) -> Error {
        let Spike { what, value, limit } = spike;
        Error::Spike { step: self.cursor.step + 1, what: what.into(), value, limit, rows: found.rows }
    }

    fn evaluate<O: Objective>(&mut self, objective: &mut O) -> Result<()> {
        let fields = objective.evaluate(&self.learner, self.context)?;
        if !fields.is_empty() {
            let judged = fields.get(O::JUDGED).and_then(Value::as_f64);
            let mut line = Map::new();
            line.insert("step".into(), json!(self.cursor.step));
            line.extend(fields);
            let line = Value::Object(line);
            self.judge_held_out(judged)?;
            self.metrics.append(&line)?;
            self.sight.evaluated(&line)?;
        }
        self.cursor.held_out.last_step = Some(self.cursor.step);
        Ok(())
    }

    /// Counts evaluations without a better one, and keeps the weights of a better one where they are asked for. The start does not
    /// take part: what is written has been trained. A value that is not a number is never better.
    fn judge_held_out(&mut self, value: Option<f64>) -> Result<()> {
        if self.cursor.step == 0 {
            return Ok(());
        }
        let value = value.unwrap_or(f64::INFINITY);
        let is_better = self.cursor.held_out.best.is_none_or(|(_, bits)| value < f64::from_bits(bits));
        if is_better && self.settings.keep_best {
            self.learner.check_finite(self.cursor.step)?;
            state::save_best(&self.state, self.cursor.step, &self.learner.arrays()[..1])?;
        }
        let held_out = &mut self.cursor.held_out;
        held_out.is_kept = self.settings.keep_best;
        if is_better {
            held_out.best = Some((self.cursor.step, value.to_bits()));
        }
        held_out.n_without_better = if is_better { 0 } else { held_out.n_without_better + 1 };
        held_out.has_stopped = self.settings.patience > 0 && held_out.n_without_better >= self.settings.patience;
        Ok(())
    }

    /// Notes the answers to `sample_prompts` under the present weights, unless this step's stand there.
    fn sample(&mut self) -> Result<()> {
        let (Some(sampler), Some(samples)) = (&self.sampler, &mut self.samples) else { return Ok(()) };
        let step = self.cursor.step;
        if samples.last_step() == Some(step) {
            return Ok(());
        }
        for answer in sampler.answers(self.learner.decoder(), step, self.context)? {
            samples.append(&answer)?;
        }
        Ok(())
    }

    fn checkpoint(&self) -> Result<()> {
        self.learner.check_finite(self.cursor.step)?;
        let samples = self.samples.as_ref().map_or(&[][..], Metrics::text);
        let logs = Logs { metrics: self.metrics.text(), samples };
        state::save(&self.state, &self.cursor, &self.learner.arrays(), logs, self.settings.keep_last)
    }
}

/// Refuses a checkpoint of an older program that has skipped a step: it counted the step as one of AdamW's, so that neither its updates since
/// nor ours to come would be those of an uninterrupted run.
fn refuse_older_skips(cursor: &Cursor, metrics: &[u8], state: &Path) -> Result<()> {
    const SKIPPED: &[u8] = b"\"skipped\":true";
    let has_skipped = || metrics.windows(SKIPPED.len()).any(|part| part == SKIPPED);
    if cursor.step == 0 || cursor.n_updates.is_some() || !has_skipped() {
        return Ok(());
    }
    let mistake = format!(
        "{}: the unfinished run has skipped a step under an older version of this program, which counted it in AdamW's bias correction; remove \
         that folder to start over, or finish the run with that version",
        state.display()
    );
    Err(Error::Config { mistakes: vec![mistake] })
}

/// Tells at once what is wrong with the newest checkpoints, and where the run goes on instead: hours may pass before its report.
fn tell_damaged(damaged: &[Damaged], step: u64) {
    if damaged.is_empty() {
        return;
    }
    let goes_on = match step {
        0 => "there is no other one: the training starts over".to_owned(),
        step => format!("the training goes on after step {step}"),
    };
    for Damaged { notice, .. } in damaged {
        aloe_record::tell(&format!("note: {notice}; {goes_on}"));
    }
}
