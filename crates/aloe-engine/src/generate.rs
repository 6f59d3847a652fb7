//! Generation with a local model: continuous batching over one decode step.
//!
//! Every (request, sample) is one sequence. A request's prompt is computed once and its samples branch from it. New
//! sequences join as others end, within the batch limit and the memory budget for keys and values. Which sequences share
//! a step changes no bit of any of them.

use crate::local::PACK_TOKENS;
use crate::sequence::{Sequence, SequencePlan, StopRules};
use crate::{Completion, Error, FinishReason, GenerateRequest, GenerateResult, Local, Result};
use aloe_model::KvCache;
use aloe_record::{Cancel, Progress};
use std::collections::{BTreeMap, VecDeque};

/// A prompt whose keys and values are computed, with the logits after its last token, `[V]` f32.
struct Root {
    cache: KvCache,
    logits: Vec<f32>,
    samples_left: usize,
}

/// The state of one call of [`crate::Engine::generate`].
struct Schedule<'a> {
    local: &'a Local,
    requests: &'a [GenerateRequest],
    prompts: Vec<Vec<u32>>,
    unstarted: VecDeque<usize>,
    roots: BTreeMap<usize, Root>,
    active: Vec<Sequence>,
    answers: Vec<Vec<Option<Completion>>>,
}

impl Local {
    /// See [`crate::Engine::generate`].
    pub(crate) fn generate(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        let mut schedule = Schedule::new(self, requests)?;
        while schedule.is_unfinished() {
            cancel.check()?;
            schedule.admit()?;
            schedule.step()?;
            progress.advance(schedule.retire());
        }
        Ok(schedule.into_results())
    }

    /// See [`crate::Engine::generate_streaming`].
    pub(crate) fn generate_streaming(
        &self,
        request: &GenerateRequest,
        cancel: &Cancel,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion> {
        let request = GenerateRequest { n: 1, ..request.clone() };
        let requests = std::slice::from_ref(&request);
        let mut schedule = Schedule::new(self, requests)?;
        let mut n_shown = 0;
        while schedule.is_unfinished() {
            cancel.check()?;
            schedule.admit()?;
            schedule.step()?;
            if let Some(sequence) = schedule.active.first() {
                let settled = sequence.settled_text();
                on_text(&settled[n_shown..]);
                n_shown = settled.len();
            }
            schedule.retire();
        }
        let completion = schedule.into_results().into_iter().flat_map(|result| result.completions).next();
        let completion = completion
            .ok_or_else(|| Error::Request { id: request.id.clone(), reason: "no sample was asked for".to_owned() })?;
        on_text(completion.text.get(n_shown..).unwrap_or_default());
        Ok(completion)
    }

    /// The most tokens one request may add, given its prompt and the model's context.
    fn room(&self, request: &GenerateRequest, prompt_len: usize) -> Result<usize> {
        let limit = self.context_len();
        if prompt_len >= limit {
            return Err(Error::Request {
                id: request.id.clone(),
                reason: format!("the prompt's {prompt_len} tokens fill the model's context of {limit}"),
            });
        }
        Ok(request.sampling.max_new_tokens.min(limit - prompt_len))
    }
}

impl<'a> Schedule<'a> {
    fn new(local: &'a Local, requests: &'a [GenerateRequest]) -> Result<Self> {
        let mut prompts = Vec::with_capacity(requests.len());
        for request in requests {
            let ids = local.prompt_ids(&request.id, &request.prompt)?;
            local.room(request, ids.len())?;
            prompts.push(ids);
        }
        Ok(Self {
            local,
            requests,
            prompts,
            unstarted: (0..requests.len()).filter(|&at| requests[at].n > 0).collect(),
            roots: BTreeMap::new(),
            active: Vec::new(),
            answers: requests.iter().map(|request| vec![None; request.n]).collect(),
        })
    }

    fn is_unfinished(&self) -> bool {
        !self.unstarted.is_empty() || !self.roots.is_empty() || !self.active.is_empty()
    }

    /// Starts sequences until the batch or the memory is full; one always runs, however long.
    fn admit(&mut self) -> Result<()> {
        while self.active.len() < self.local.max_batch {
            if self.roots.is_empty() && !self.prefill()? {
                break;
            }
            let Some((&at, root)) = self.roots.iter_mut().next() else { break };
            let request = &self.requests[at];
            root.samples_left -= 1;
            let sample = request.n - 1 - root.samples_left;
            let prompt = &self.prompts[at];
            let stops = StopRules::new(&request.sampling, &self.local.text.stop_ids());
            let room = self.local.room(request, prompt.len())?;
            let plan = SequencePlan { request: at, sample, prompt, stops, room };
            let stream = self.local.text.tokenizer.decode_stream(true);
            let mut sequence = Sequence::new(plan, request, root.cache.fork(), stream);
            sequence.accept(&root.logits)?;
            self.active.push(sequence);
            if root.samples_left == 0 {
                self.roots.remove(&at);
            }
        }
        Ok(())
    }

    /// Computes the prompts of the next requests in one packed batch, as many as the budgets allow. False when there is
    /// nothing to do or no memory for it now.
    fn prefill(&mut self) -> Result<bool> {
        let mut chosen = Vec::new();
        let mut n_tokens = 0;
        let mut planned_bytes = 0;
        let used_bytes: usize = self.active.iter().map(|sequence| sequence.planned_bytes(self.local)).sum();
        let mut n_samples = self.active.len();
        while let Some(&at) = self.unstarted.front() {
            let prompt_len = self.prompts[at].len();
            let room = self.local.room(&self.requests[at], prompt_len)?;
            let bytes = self.local.kv_bytes(prompt_len + room * self.requests[at].n);
            let over = n_tokens + prompt_len > PACK_TOKENS
                || n_samples >= self.local.max_batch
                || used_bytes + planned_bytes + bytes > self.local.kv_budget_bytes;
            if over && !(chosen.is_empty() && self.active.is_empty()) {
                break;
            }
            self.unstarted.pop_front();
            n_tokens += prompt_len;
            planned_bytes += bytes;
            n_samples += self.requests[at].n;
            chosen.push(at);
        }
        if chosen.is_empty() {
            return Ok(false);
        }
        let decoder = &self.local.decoder;
        let mut caches: Vec<KvCache> = chosen.iter().map(|_| KvCache::new(decoder)).collect();
        let prompts: Vec<&[u32]> = chosen.iter().map(|&at| self.prompts[at].as_slice()).collect();
        let logits = decoder.prefill(&prompts, &mut caches.iter_mut().collect::<Vec<_>>())?;
        let vocab_size = decoder.config.vocab_size;
        for ((at, cache), logits) in chosen.into_iter().zip(caches).zip(logits.as_f32().chunks(vocab_size)) {
            self.roots.insert(at, Root { cache, logits: logits.to_vec(), samples_left: self.requests[at].n });
        }
        Ok(true)
    }

    /// One token for every sequence that has not ended.
    fn step(&mut self) -> Result<()> {
        let tokens: Vec<u32> = self.active.iter().filter(|s| !s.is_done()).map(Sequence::last_token).collect();
        if tokens.is_empty() {
            return Ok(());
        }
        let mut running: Vec<&mut Sequence> = self.active.iter_mut().filter(|s| !s.is_done()).collect();
        let mut caches: Vec<&mut KvCache> = running.iter_mut().map(|s| &mut s.cache).collect();
        let logits = self.local.decoder.decode_step(&tokens, &mut caches)?;
        let vocab_size = self.local.decoder.config.vocab_size;
        for (sequence, row) in running.into_iter().zip(logits.as_f32().chunks(vocab_size)) {
            sequence.accept(row)?;
        }
        Ok(())
    }

    /// Takes ended sequences out and returns how many.
    fn retire(&mut self) -> u64 {
        let (done, active): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.active).into_iter().partition(Sequence::is_done);
        self.active = active;
        let n_done = done.len() as u64;
        for sequence in done {
            let (at, sample) = (sequence.request, sequence.sample);
            self.answers[at][sample] = Some(sequence.into_completion(self.prompts[at].len()));
        }
        n_done
    }

    fn into_results(self) -> Vec<GenerateResult> {
        let Self { requests, prompts, answers, .. } = self;
        requests
            .iter()
            .zip(prompts)
            .zip(answers)
            .map(|((request, prompt_ids), answers)| GenerateResult {
                id: request.id.clone(),
                prompt_ids: Some(prompt_ids),
                completions: answers.into_iter().flatten().collect(),
            })
            .collect()
    }
}

/// Why a sequence that used up its room ended: its own limit, or the model's context.
pub(crate) fn full_reason(request: &GenerateRequest, room: usize) -> FinishReason {
    if room < request.sampling.max_new_tokens { FinishReason::Context } else { FinishReason::Length }
}
