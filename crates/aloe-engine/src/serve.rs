//! The worker of a server: it runs the model over whatever its queue holds. Generations run as one schedule that admits new ones
//! between two passes; the scorings of the moment are one tree; they and the embeddings take turns, pass by pass. Where
//! memory is too small for both, one side gives up its keys and values and then has its turn. Nothing of that changes a bit of any
//! answer.

use crate::queue::{Ask, Held, Job, Queue, Told};
use crate::schedule::{Entry, Manner, PREFILL_TOKENS, Schedule};
use crate::score::{Plan, Scoring};
use crate::sequence::{Gained, Sequence};
use crate::{Error, GenerateRequest, Local, Result, Sampling};
use aloe_model::{KvCache, unit};
use aloe_record::Cancel;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The name of every request of a server: what it draws depends on its own seed alone.
pub const SERVED_ID: &str = "served";

/// The most scorings that make up one tree: those that come later wait for its end.
const MAX_SCORINGS: usize = 256;

/// A generation under way.
struct Generation {
    held: Held,
    prompt_ids: Arc<Vec<u32>>,
    streams: bool,
}

/// Who keeps what it holds until something of it has ended. Without that both sides would take the memory from each other after every
/// pass, and a text that takes several passes to come back would never get on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// They gave way: the scorings and embeddings make no room until an answer has ended.
    Answers,
    /// They took the memory: the answers wait until a text is scored.
    Scorings,
}

/// Everything under way.
struct Worker<'a> {
    local: &'a Local,
    schedule: Schedule<'a>,
    generations: BTreeMap<usize, Generation>,
    scoring: Option<(Scoring<'a>, HashMap<usize, Held>)>,
    /// An embedding that waits for memory.
    embedding: Option<Held>,
    turn: Option<Turn>,
}

impl Local {
    /// See [`crate::Engine::serve`].
    pub(crate) fn serve(&self, queue: &Queue, cancel: &Cancel) -> Result<()> {
        let (schedule, generations) = (Schedule::taking_turns(self), BTreeMap::new());
        let mut worker = Worker { local: self, schedule, generations, scoring: None, embedding: None, turn: None };
        loop {
            cancel.check()?;
            worker.drop_gone();
            queue.drop_gone();
            worker.admit(queue);
            let has_embedded = worker.embed(queue);
            if worker.is_idle() && !has_embedded {
                if !queue.wait() {
                    return Ok(());
                }
                continue;
            }
            if let Err(error) = worker.generate() {
                worker.fail_generations(&error);
            }
            if let Err(error) = worker.score() {
                worker.fail_scorings(&error);
            }
        }
    }

    fn served_entry(&self, ask: &Ask) -> Result<(Entry, bool)> {
        let Ask::Generate { prompt, n, sampling, ignores_eos, n_top, streams } = ask else {
            return Err(Error::Request { id: String::new(), reason: "no generation".to_owned() });
        };
        let manner = Manner { unstopped: *ignores_eos, n_top: *n_top, counts_seeds: true };
        let request = GenerateRequest {
            id: SERVED_ID.to_owned(),
            prompt: prompt.clone(),
            n: *n,
            sampling: Sampling::clone(sampling),
        };
        Ok((self.entry(&request, manner)?, *streams))
    }

    fn served_plan(&self, ask: &Ask) -> Result<Plan> {
        match ask {
            Ask::Score { prompt, n_top, wants_next } => self.plan_prompt(SERVED_ID, prompt, *n_top, *wants_next),
            _ => Err(Error::Request { id: String::new(), reason: "no scoring".to_owned() }),
        }
    }

    /// The state of the last token after the final norm, of unit length, and the number of tokens. `make_room` is asked to free memory
    /// where the text's keys and values would not fit; where it says no, there is no answer yet.
    pub(crate) fn served_embedding(
        &self,
        ask: &Ask,
        make_room: impl FnOnce() -> bool,
    ) -> Result<Option<(Vec<f32>, usize)>> {
        let Ask::Embed { prompt } = ask else {
            return Err(Error::Request { id: String::new(), reason: "no embedding".to_owned() });
        };
        let ids = self.prompt_ids(SERVED_ID, prompt)?;
        self.check_context(SERVED_ID, &ids, &[])?;
        self.check_kv_budget(SERVED_ID, ids.len())?;
        let needed = KvCache::bytes_of(&self.decoder, ids.len());
        let is_over = || self.kv_meter.bytes() + needed > self.kv_budget_bytes;
        if is_over() {
            self.free_prefixes(true);
        }
        if is_over() && !make_room() {
            return Ok(None);
        }
        let (mut cache, mut last) = (KvCache::metered(&self.kv_meter), Vec::new());
        for piece in ids.chunks(self.pack_tokens) {
            let row = [piece.len() - 1];
            let hidden = self.pass(&[], &[piece], &mut [&mut cache], &row)?.hidden_of(&row);
            last = hidden.as_f32().iter().map(|value| f64::from(*value)).collect();
        }
        if last.iter().any(|value| !value.is_finite()) {
            return Err(Error::NonFinite);
        }
        Ok(Some((unit(&last), ids.len())))
    }
}

impl Worker<'_> {
    fn is_idle(&self) -> bool {
        self.generations.is_empty() && self.scoring.is_none() && self.embedding.is_none()
    }

    /// Ends what nobody waits for any more.
    fn drop_gone(&mut self) {
        let is_gone = |held: &Held| held.job.cancel.is_requested();
        let gone = self.generations.iter().filter(|(_, one)| is_gone(&one.held)).map(|(&key, _)| key);
        for key in gone.collect::<Vec<_>>() {
            self.schedule.drop_request(key);
            self.generations.remove(&key);
        }
        if let Some((scoring, jobs)) = &mut self.scoring {
            jobs.retain(|&at, held| {
                let stays = !is_gone(held);
                if !stays {
                    scoring.drop_request(at);
                }
                stays
            });
            if jobs.is_empty() {
                self.scoring = None;
            }
        }
        self.embedding.take_if(|held| is_gone(held));
        self.end_turn();
    }

    /// A side that has nothing left needs no turn.
    fn end_turn(&mut self) {
        let is_over = match self.turn {
            Some(Turn::Answers) => !self.schedule.is_unfinished(),
            Some(Turn::Scorings) => self.scoring.is_none(),
            None => false,
        };
        if is_over {
            self.turn = None;
        }
    }

    /// Takes from the queue what there is room for.
    fn admit(&mut self, queue: &Queue) {
        let n_free = self.schedule.n_free();
        let (mut entries, mut taken) = (Vec::new(), Vec::new());
        for mut held in queue.take_generate(n_free) {
            match self.local.served_entry(&held.job.ask) {
                Ok((entry, streams)) => {
                    let prompt_ids = Arc::new(entry.prompt().to_vec());
                    taken.push(Generation { held, prompt_ids, streams });
                    entries.push(entry);
                }
                Err(error) => fail(&mut held.job, &error),
            }
        }
        if !entries.is_empty() {
            let first = self.schedule.admit(entries);
            self.generations.extend((first..).zip(taken));
        }
        if self.scoring.is_none() {
            let (mut plans, mut jobs) = (Vec::new(), HashMap::new());
            for mut held in queue.take_score(MAX_SCORINGS) {
                match self.local.served_plan(&held.job.ask) {
                    Ok(plan) => {
                        jobs.insert(plans.len(), held);
                        plans.push(plan);
                    }
                    Err(error) => fail(&mut held.job, &error),
                }
            }
            self.scoring =
                (!plans.is_empty()).then(|| (Scoring::new(self.local, plans, piece_tokens(self.local)), jobs));
        }
    }

    /// One embedding, whole; `false` where none waits.
    fn embed(&mut self, queue: &Queue) -> bool {
        let Some(mut held) = self.embedding.take().or_else(|| queue.take_embed()) else { return false };
        let embedded = self.local.served_embedding(&held.job.ask, || {
            if self.turn == Some(Turn::Answers) {
                return false;
            }
            if let Some((scoring, _)) = &mut self.scoring {
                scoring.give_way();
            }
            self.schedule.give_way();
            if self.turn.is_none() && self.schedule.is_unfinished() {
                self.turn = Some(Turn::Answers);
            }
            true
        });
        match embedded {
            Ok(Some((vector, n_tokens))) => (held.job.tell)(Told::Embedded { vector, n_tokens }),
            Ok(None) => self.embedding = Some(held),
            Err(error) => fail(&mut held.job, &error),
        }
        true
    }

    /// One pass of the generations, and what it gave is told.
    fn generate(&mut self) -> Result<()> {
        if self.schedule.is_unfinished() && self.turn != Some(Turn::Scorings) {
            let scoring = &mut self.scoring;
            self.schedule.step(&mut || {
                if let Some((scoring, _)) = scoring {
                    scoring.give_way();
                }
            })?;
        }
        for sequence in self.schedule.running() {
            if let Some(generation) = self.generations.get_mut(&sequence.request) {
                generation.tell(sequence);
            }
        }
        if self.schedule.retire() > 0 && self.turn == Some(Turn::Answers) {
            self.turn = None;
        }
        for key in self.schedule.take_failed() {
            if let Some(mut generation) = self.generations.remove(&key) {
                fail(&mut generation.held.job, &Error::NonFinite);
            }
        }
        while let Some((key, ..)) = self.schedule.take_finished() {
            self.generations.remove(&key);
        }
        Ok(())
    }

    /// One pass of the scorings, and what it gave is told.
    fn score(&mut self) -> Result<()> {
        let Some((scoring, jobs)) = &mut self.scoring else { return Ok(()) };
        if !scoring.is_done() {
            // Answers that run beside it wait no longer for their next token than for a piece of a prompt.
            let n_tokens = if self.generations.is_empty() { self.local.pack_tokens } else { piece_tokens(self.local) };
            scoring.step(n_tokens, || {
                if self.turn == Some(Turn::Answers) {
                    return false;
                }
                if self.schedule.is_unfinished() {
                    self.schedule.give_way();
                    self.turn = Some(Turn::Scorings);
                }
                true
            })?;
        }
        for at in scoring.take_failed() {
            if let Some(mut held) = jobs.remove(&at) {
                fail(&mut held.job, &Error::NonFinite);
                scoring.drop_request(at);
            }
        }
        while let Some((at, plan, scores)) = scoring.take_finished() {
            if self.turn == Some(Turn::Scorings) {
                self.turn = Some(Turn::Answers);
            }
            if let Some(mut held) = jobs.remove(&at) {
                (held.job.tell)(Told::Scored(plan.collect_prompt(scores)));
            }
        }
        if jobs.is_empty() {
            self.scoring = None;
        }
        Ok(())
    }

    fn fail_generations(&mut self, error: &Error) {
        self.schedule = Schedule::taking_turns(self.local);
        for generation in std::mem::take(&mut self.generations).values_mut() {
            fail(&mut generation.held.job, error);
        }
    }

    fn fail_scorings(&mut self, error: &Error) {
        if let Some((_, mut jobs)) = self.scoring.take() {
            jobs.values_mut().for_each(|held| fail(&mut held.job, error));
        }
    }
}

impl Generation {
    fn tell(&mut self, sequence: &mut Sequence) {
        let sample = sequence.sample;
        match sequence.finish() {
            Some(finish_reason) => {
                let (gained, prompt_ids) = (sequence.gained(), Arc::clone(&self.prompt_ids));
                (self.held.job.tell)(Told::Ended { sample, gained, finish_reason, prompt_ids });
            }
            None if self.streams => match sequence.gained() {
                gained if gained == Gained::default() => {}
                gained => (self.held.job.tell)(Told::Grew { sample, gained }),
            },
            None => {}
        }
    }
}

/// The most tokens of a text that are run beside running answers.
fn piece_tokens(local: &Local) -> usize {
    PREFILL_TOKENS.min(local.pack_tokens)
}

fn fail(job: &mut Job, error: &Error) {
    let is_request = matches!(error, Error::Request { .. } | Error::Text(_));
    let reason = match error {
        Error::Request { reason, .. } => reason.clone(),
        error => error.to_string(),
    };
    (job.tell)(Told::Failed { is_request, reason });
}
