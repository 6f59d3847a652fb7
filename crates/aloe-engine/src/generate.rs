//! Generation with a local model, all requests of a call at once: they are admitted to one [`Schedule`], which is run to its end.

use crate::engine::{Take, check_sampling, in_order};
use crate::schedule::{Entry, Manner, Schedule};
use crate::{Completion, Error, FinishReason, GenerateRequest, GenerateResult, Local, Result, Sampling};
use aloe_record::{Cancel, Progress};

impl Local {
    /// See [`crate::Engine::generate`].
    pub(crate) fn generate(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        let entry = |request: &GenerateRequest| self.entry(request, Manner::default());
        let entries = requests.iter().map(entry).collect::<Result<Vec<_>>>()?;
        self.run_entries(entries, progress, cancel)
    }

    /// See [`crate::Engine::generate_into`].
    pub(crate) fn generate_into(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<GenerateResult>,
    ) -> Result<()> {
        let (mut places, mut entries) = (Vec::new(), Vec::new());
        for (at, request) in requests.iter().enumerate() {
            match self.entry(request, Manner::default()) {
                Ok(entry) => {
                    places.push(at);
                    entries.push(entry);
                }
                Err(error) => {
                    if take(at, Err(error)).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        self.run_entries_into(entries, progress, cancel, &mut |at, result| take(places[at], result))
    }

    /// See [`crate::Engine::generate_streaming`].
    pub(crate) fn generate_streaming(
        &self,
        request: &GenerateRequest,
        cancel: &Cancel,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion> {
        let request = GenerateRequest { n: 1, ..request.clone() };
        let mut schedule = Schedule::new(self);
        schedule.admit(vec![self.entry(&request, Manner::default())?]);
        let mut n_shown = 0;
        while schedule.is_unfinished() {
            cancel.check()?;
            schedule.step(&mut || ())?;
            if let Some(sequence) = schedule.running().next() {
                let settled = sequence.settled_text();
                on_text(&settled[n_shown..]);
                n_shown = settled.len();
            }
            schedule.retire();
        }
        let completion = schedule.take_finished().and_then(|(_, _, _, answers)| answers.into_iter().next());
        let completion = completion
            .ok_or_else(|| Error::Request { id: request.id.clone(), reason: "no sample was asked for".to_owned() })?;
        on_text(completion.text.get(n_shown..).unwrap_or_default());
        Ok(completion)
    }

    /// A request to be admitted, checked.
    pub(crate) fn entry(&self, request: &GenerateRequest, manner: Manner) -> Result<Entry> {
        Ok(Entry::new(self, request, self.checked_prompt(request)?, manner))
    }

    /// Runs requests to their end; the results in their order.
    pub(crate) fn run_entries(
        &self,
        entries: Vec<Entry>,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        in_order(entries.len(), |take| self.run_entries_into(entries, progress, cancel, take))
    }

    /// Hands each result over when its last sample is done.
    fn run_entries_into(
        &self,
        entries: Vec<Entry>,
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<GenerateResult>,
    ) -> Result<()> {
        let mut schedule = Schedule::new(self);
        schedule.admit(entries);
        loop {
            while let Some((at, id, prompt, completions)) = schedule.take_finished() {
                if take(at, Ok(GenerateResult { id, prompt_ids: Some(prompt), completions })).is_break() {
                    return Ok(());
                }
            }
            if !schedule.is_unfinished() {
                return Ok(());
            }
            cancel.check()?;
            schedule.step(&mut || ())?;
            progress.advance(schedule.retire());
        }
    }

    /// The prompt's ids, with everything checked that could stop the request later.
    pub(crate) fn checked_prompt(&self, request: &GenerateRequest) -> Result<Vec<u32>> {
        check_sampling(request)?;
        let prompt = self.prompt_ids(&request.id, &request.prompt)?;
        let limit = self.context_len();
        if prompt.len() >= limit {
            return Err(Error::Request {
                id: request.id.clone(),
                reason: format!("the prompt's {} tokens fill the model's context of {limit}", prompt.len()),
            });
        }
        self.check_kv_budget(&request.id, prompt.len() + self.room(request, prompt.len()))?;
        Ok(prompt)
    }

    /// The most tokens a request may add, given its prompt and the model's context.
    pub(crate) fn room(&self, request: &GenerateRequest, prompt_len: usize) -> usize {
        request.sampling.max_new_tokens.min(self.context_len() - prompt_len)
    }
}

/// Why a sequence that used up its room ended: its own limit, or the model's context.
pub(crate) fn full_reason(sampling: &Sampling, room: usize) -> FinishReason {
    if room < sampling.max_new_tokens { FinishReason::Context } else { FinishReason::Length }
}
