//! One answer while it grows: its ids, text, random stream and stop rules.

use crate::generate::full_reason;
use crate::sample::Draw;
use crate::{Completion, FinishReason, Result, Sampling};
use aloe_model::KvCache;
use aloe_record::CounterRng;
use aloe_text::DecodeStream;

/// What ends an answer beside its length.
#[derive(Clone)]
pub(crate) struct StopRules {
    ids: Vec<u32>,
    texts: Vec<String>,
}

impl StopRules {
    /// The model's own stop ids and those of the request.
    pub(crate) fn new(sampling: &Sampling, model_stop_ids: &[u32]) -> Self {
        let mut ids = model_stop_ids.to_vec();
        ids.extend(&sampling.stop_ids);
        Self { ids, texts: sampling.stop.iter().filter(|text| !text.is_empty()).cloned().collect() }
    }

    /// Where the earliest stop text begins.
    fn find(&self, text: &str) -> Option<usize> {
        self.texts.iter().filter_map(|stop| text.find(stop.as_str())).min()
    }

    /// How much of `text` no later text can turn into a stop text.
    fn settled_len(&self, text: &str) -> usize {
        let mut settled = text.len();
        for stop in &self.texts {
            for (cut, _) in stop.char_indices().skip(1) {
                if text.ends_with(&stop[..cut]) {
                    settled = settled.min(text.len() - cut);
                }
            }
        }
        settled
    }
}

/// Which sequence starts, and within what bounds.
pub(crate) struct SequencePlan<'a> {
    /// Index of the request.
    pub(crate) request: usize,
    /// Number of the sample within it.
    pub(crate) sample: usize,
    /// The prompt's ids.
    pub(crate) prompt: &'a [u32],
    /// How it is drawn.
    pub(crate) sampling: &'a Sampling,
    /// What ends the answer.
    pub(crate) stops: StopRules,
    /// Its random stream.
    pub(crate) rng: CounterRng,
    /// The most tokens it may add.
    pub(crate) room: usize,
    /// Tokens told beside each drawn one.
    pub(crate) n_top: usize,
}

/// What an answer gained since it was last asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gained {
    /// The ids drawn.
    pub ids: Vec<u32>,
    /// Log-probability of each, as in [`Completion`].
    pub logps: Vec<f32>,
    /// The most probable tokens at each place, where they were asked for.
    pub tops: Vec<Vec<(u32, f32)>>,
    /// Text that no later token changes.
    pub text: String,
}

/// One (request, sample) in the batch.
pub(crate) struct Sequence {
    /// Index of the request.
    pub(crate) request: usize,
    /// Number of the sample within it.
    pub(crate) sample: usize,
    /// Keys and values of the beginning of the text; the ids beyond are still to be run.
    pub(crate) cache: KvCache,
    sampling: Sampling,
    stops: StopRules,
    rng: CounterRng,
    seen: Vec<u32>,
    prompt_len: usize,
    room: usize,
    full_reason: FinishReason,
    logps: Vec<f32>,
    n_top: usize,
    tops: Vec<Vec<(u32, f32)>>,
    /// Tokens and bytes of text that [`Sequence::gained`] gave out.
    n_gained: (usize, usize),
    stream: DecodeStream,
    text: String,
    finish: Option<FinishReason>,
}

impl Sequence {
    pub(crate) fn new(plan: SequencePlan<'_>, cache: KvCache, stream: DecodeStream) -> Self {
        let SequencePlan { request, sample, prompt, sampling, stops, rng, room, n_top } = plan;
        Self {
            request,
            sample,
            cache,
            sampling: sampling.clone(),
            stops,
            rng,
            seen: prompt.to_vec(),
            prompt_len: prompt.len(),
            room,
            full_reason: full_reason(sampling, room),
            logps: Vec::new(),
            n_top,
            tops: Vec::new(),
            n_gained: (0, 0),
            stream,
            text: String::new(),
            finish: None,
        }
    }

    /// How the next token is drawn from its logits `[V]`.
    pub(crate) fn draw<'a>(&'a self, logits: &'a [f32]) -> Draw<'a> {
        // One value of the stream per token, whatever else happens: an evicted sequence goes on where it was.
        let uniform = self.rng.clone().uniform_f64();
        Draw { logits, seen: &self.seen, sampling: &self.sampling, uniform }
    }

    /// Takes the token drawn and notes whether the answer ends.
    pub(crate) fn accept(&mut self, (token, logp): (u32, f32)) -> Result<()> {
        self.rng.uniform_f64();
        self.seen.push(token);
        self.logps.push(logp);
        if self.stops.ids.contains(&token) {
            self.text.push_str(&self.stream.finish()?);
            self.finish = Some(FinishReason::Stop);
        } else {
            self.text.push_str(&self.stream.step(token)?);
            if self.logps.len() >= self.room {
                self.text.push_str(&self.stream.finish()?);
                self.finish = Some(self.full_reason);
            }
        }
        if let Some(at) = self.stops.find(&self.text) {
            self.text.truncate(at);
            self.finish = Some(FinishReason::Stop);
        }
        Ok(())
    }

    /// Tokens told beside each drawn one.
    pub(crate) fn n_top(&self) -> usize {
        self.n_top
    }

    /// The most probable tokens at the place of the next token.
    pub(crate) fn note_tops(&mut self, tops: Vec<(u32, f32)>) {
        self.tops.push(tops);
    }

    /// What is new since the last call.
    pub(crate) fn gained(&mut self) -> Gained {
        let text = self.settled_text();
        let (n_ids, n_bytes) = (self.logps.len(), text.len());
        let text = text.get(self.n_gained.1..).unwrap_or_default().to_owned();
        let from = self.n_gained.0;
        self.n_gained = (n_ids, n_bytes.max(self.n_gained.1));
        Gained {
            ids: self.seen[self.prompt_len + from..].to_vec(),
            logps: self.logps[from..].to_vec(),
            tops: std::mem::take(&mut self.tops),
            text,
        }
    }

    /// Why it ended; `None` while it goes on.
    pub(crate) fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    pub(crate) fn is_done(&self) -> bool {
        self.finish.is_some()
    }

    /// The ids whose keys and values are not held: after a step the last one, after an eviction more.
    pub(crate) fn pending(&self) -> &[u32] {
        &self.seen[self.cache.len()..]
    }

    /// The text that can be shown: nothing that may still turn out to begin a stop text.
    pub(crate) fn settled_text(&self) -> &str {
        let len = if self.is_done() { self.text.len() } else { self.stops.settled_len(&self.text) };
        &self.text[..len]
    }

    pub(crate) fn into_completion(mut self, prompt_len_tokens: usize) -> Completion {
        Completion {
            ids: Some(self.seen.split_off(self.prompt_len)),
            logps: Some(self.logps),
            text: self.text,
            finish_reason: self.finish.unwrap_or(FinishReason::Length),
            prompt_len_tokens,
            n_counted: None,
            reasoning_apart: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_may_begin_a_stop_text_is_held_back_and_the_earliest_stop_wins() {
        let sampling = Sampling { stop: vec!["\nUser:".into(), "END".into()], ..Sampling::default() };
        let rules = StopRules::new(&sampling, &[]);
        assert_eq!(rules.settled_len("hello\nUs"), 5);
        assert_eq!(rules.settled_len("hello"), 5);
        assert_eq!(rules.settled_len("helloEN"), 5);
        assert_eq!(rules.find("a END b\nUser:"), Some(2));
    }
}
