//! `/v1/completions`: raw prompts, by text or by ids, with their own log-probabilities where `echo` asks for them.
//!
//! A prompt given as text stays text: nothing in it becomes a control token. Whoever renders a conversation sends ids.

use crate::app::{App, BodyRoom};
use crate::asking::{Answer, Ear, Heard, check_count, finish_word, hear_all};
use crate::events::{Events, Shape};
use crate::fields::{self, Fields, IsOff};
use crate::refusal::{Refusal, json_response};
use crate::sampling::{MAX_TOKENS, MAX_TOP, Manner, check_told};
use aloe_engine::{Ask, Prompt, ScoredPrompt};
use aloe_text::TextModel;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

/// New tokens where a request does not say, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u64 = 16;

/// A request, read and checked.
struct Completions {
    prompts: Vec<Given>,
    /// The prompts' tokens.
    ids: Vec<Vec<u32>>,
    manner: Manner,
    max_tokens: usize,
    echo: bool,
    /// Tokens told beside each one; `None` tells no log-probabilities.
    n_top: Option<usize>,
    adds_special: bool,
}

/// A prompt as it was given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Given {
    Text(String),
    Ids(Vec<u32>),
}

/// Fields beside those of [`Manner`] that are not honoured.
const OFF: [(&str, IsOff); 3] =
    [("best_of", IsOff::Number(1.0)), ("suffix", IsOff::Empty), ("truncate_prompt_tokens", IsOff::Empty)];

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, mut fields: Fields, room: BodyRoom) -> Result<Response, Refusal> {
    app.take_model(&mut fields)?;
    let mut asked = Completions::read(fields)?;
    let n_jobs = usize::from(asked.scores()) + usize::from(asked.generates());
    check_count(&app, "prompt", asked.prompts.len(), n_jobs)?;
    let (adds_special, n_more) = (asked.adds_special, usize::from(asked.generates()));
    let encode = move |text: &TextModel, given: Given| match given {
        Given::Ids(ids) => Ok(ids),
        Given::Text(prompt) if adds_special => text.encode_prompt_text(&prompt),
        Given::Text(prompt) => text.tokenizer.encode_plain(&prompt),
    };
    asked.ids = app.encode("prompt", asked.prompts.clone(), n_more, encode).await?;
    check_told(asked.n_places(&app), asked.n_top.unwrap_or(0))?;
    if let Some(stream) = asked.manner.stream {
        let n = asked.manner.n;
        let asks = asked.ids.iter().map(|ids| asked.generate(ids, true)).collect();
        let shape = Shape::completions(asked.n_top, &asked.manner);
        return Events::respond(app.clone(), Ear::ask(&app, asks, room)?, shape, n, stream).await;
    }
    let (mut asks, mut n_answers) = (Vec::new(), Vec::new());
    for ids in &asked.ids {
        if asked.scores() {
            asks.push(asked.score(ids));
            n_answers.push(0);
        }
        if asked.generates() {
            asks.push(asked.generate(ids, false));
            n_answers.push(asked.manner.n);
        }
    }
    let mut ear = Ear::ask(&app, asks, room)?;
    let heard = hear_all(&mut ear, &n_answers).await?;
    // Naming the tokens of long prompts takes its time, which other connections need not wait for.
    let built = tokio::task::spawn_blocking(move || asked.body(&app, heard)).await;
    built.map(|body| json_response(&body)).map_err(|_| Refusal::broken("the answer could not be written"))
}

impl Completions {
    fn read(mut fields: Fields) -> Result<Self, Refusal> {
        let given = fields.take("prompt").ok_or_else(|| Refusal::field("prompt", "is missing"))?;
        let prompts = prompts("prompt", &given)?;
        let max_tokens = fields.whole("max_tokens", MAX_TOKENS)?.unwrap_or(DEFAULT_MAX_TOKENS) as usize;
        let echo = fields.flag("echo")?.unwrap_or(false);
        let n_top = fields.whole("logprobs", MAX_TOP)?.map(|n| n as usize);
        let adds_special = fields.flag("add_special_tokens")?.unwrap_or(true);
        let mut manner = Manner::take(&mut fields)?;
        fields.refuse_unless_off(&OFF)?;
        fields.finish()?;
        if max_tokens == 0 && !echo {
            return Err(Refusal::field("max_tokens", "must be at least 1 where the prompt is not told (echo)"));
        }
        if echo && manner.stream.is_some() {
            return Err(Refusal::field("echo", "does not go with stream"));
        }
        if echo && max_tokens == 0 && manner.n > 1 {
            return Err(Refusal::field("n", "must be 1 where nothing is drawn"));
        }
        Arc::make_mut(&mut manner.sampling).max_new_tokens = max_tokens.max(1);
        Ok(Self { prompts, ids: Vec::new(), manner, max_tokens, echo, n_top, adds_special })
    }

    /// Whether the prompts' own tokens are scored.
    fn scores(&self) -> bool {
        self.echo && (self.n_top.is_some() || self.max_tokens == 0)
    }

    /// Whether the one token that is wanted is the most probable one, which scoring the prompt finds on its way.
    fn wants_next(&self) -> bool {
        let sampling = &self.manner.sampling;
        let is_plain = sampling.temperature == 0.0 && sampling.repetition_penalty == 1.0 && sampling.stop.is_empty();
        self.scores() && self.max_tokens == 1 && self.manner.n == 1 && is_plain
    }

    fn generates(&self) -> bool {
        self.max_tokens > 0 && !self.wants_next()
    }

    /// The most tokens whose log-probabilities are told.
    fn n_places(&self, app: &App) -> usize {
        let (scores, draws) = (self.scores(), self.generates() && self.n_top.is_some());
        let places = |ids: &Vec<u32>| {
            let n_scored = if scores { ids.len() } else { 0 };
            let n_drawn = if draws { app.most_new(ids.len(), self.max_tokens) } else { 0 };
            n_scored + self.manner.n * n_drawn
        };
        self.ids.iter().map(places).sum()
    }

    fn score(&self, ids: &[u32]) -> Ask {
        let (prompt, n_top) = (Prompt::Ids(ids.to_vec()), self.n_top.unwrap_or(0));
        Ask::Score { prompt, n_top, wants_next: self.wants_next() }
    }

    fn generate(&self, ids: &[u32], streams: bool) -> Ask {
        let Manner { sampling, n, ignores_eos, .. } = self.manner.clone();
        let (prompt, n_top) = (Prompt::Ids(ids.to_vec()), self.n_top.unwrap_or(0));
        Ask::Generate { prompt, n, sampling, ignores_eos, n_top, streams }
    }

    /// The answer, from what was heard of the jobs, which are in the order of the prompts.
    fn body(&self, app: &App, heard: Vec<Heard>) -> Value {
        let mut heard = heard.into_iter();
        let (mut choices, mut n_prompt, mut n_new) = (Vec::new(), 0, 0);
        for given in &self.prompts {
            let scored = if self.scores() { heard.next().and_then(|one| one.scored) } else { None };
            let answers =
                if self.generates() { heard.next().map_or_else(Vec::new, |one| one.answers) } else { Vec::new() };
            let mut answers: Vec<Answer> = answers.into_iter().flatten().collect();
            if let (Some(scored), true) = (&scored, answers.is_empty()) {
                answers.push(self.after_scored(app, scored));
            }
            n_prompt += answers.first().map_or(0, |answer| answer.prompt_ids.len());
            for answer in &answers {
                n_new += answer.gained.ids.len();
                let choice = self.choice(app, choices.len(), given, answer, scored.as_ref());
                choices.push(choice);
            }
        }
        let mut body = app.head("cmpl", "text_completion");
        body["choices"] = choices.into();
        body["usage"] = usage(n_prompt, n_new);
        body
    }

    /// What follows a scored prompt where nothing else was generated: nothing, or the most probable token.
    fn after_scored(&self, app: &App, scored: &ScoredPrompt) -> Answer {
        let mut gained = aloe_engine::Gained::default();
        let mut finish_reason = aloe_engine::FinishReason::Length;
        if let Some(id) = scored.next {
            gained.ids.push(id);
            let stops = self.manner.sampling.stop_ids.contains(&id)
                || (!self.manner.ignores_eos && app.text.stop_ids().contains(&id));
            if stops {
                finish_reason = aloe_engine::FinishReason::Stop;
            } else {
                gained.text = app.text.tokenizer.decode(&[id], true).unwrap_or_default();
            }
        }
        Answer { gained, finish_reason, prompt_ids: Arc::new(scored.prompt_ids.clone()) }
    }

    fn choice(&self, app: &App, index: usize, given: &Given, answer: &Answer, scored: Option<&ScoredPrompt>) -> Value {
        let mut text = String::new();
        if self.echo {
            match given {
                Given::Text(prompt) => text.push_str(prompt),
                Given::Ids(ids) => text.push_str(&app.text.tokenizer.decode(ids, false).unwrap_or_default()),
            }
        }
        text.push_str(&answer.gained.text);
        let logprobs = self.n_top.map(|n_top| {
            let mut table = Table { by_id: self.manner.names_by_id, n_top, ..Table::default() };
            if let Some(scored) = scored {
                let skips_special = matches!(given, Given::Text(_));
                table.prompt(app, scored, skips_special);
                table.next(app, scored);
            }
            if scored.is_none_or(|scored| scored.next.is_none()) {
                table.drawn(app, answer);
            }
            table.into_value()
        });
        let mut choice = json!({
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_word(answer.finish_reason),
        });
        if self.manner.tells_ids {
            choice["prompt_token_ids"] = json!(*answer.prompt_ids);
            choice["token_ids"] = json!(answer.gained.ids);
        }
        choice
    }
}

/// OpenAI's four lists, one entry a token.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) by_id: bool,
    pub(crate) n_top: usize,
    /// Characters of the text so far.
    pub(crate) n_chars: usize,
    tokens: Vec<String>,
    logps: Vec<Value>,
    tops: Vec<Value>,
    offsets: Vec<usize>,
}

impl Table {
    /// A scored prompt: its first token follows nothing and has no log-probability.
    fn prompt(&mut self, app: &App, scored: &ScoredPrompt, skips_special: bool) {
        let ids = &scored.prompt_ids;
        let (offsets, end) = app.names.offsets(ids, skips_special, self.n_chars);
        (self.offsets, self.n_chars) = (offsets, end);
        for (at, &id) in ids.iter().enumerate() {
            self.tokens.push(app.names.name(id, self.by_id));
            if at == 0 {
                self.logps.push(Value::Null);
                self.tops.push(Value::Null);
            } else {
                self.entry(app, id, scored.logps[at - 1], scored.tops[at - 1].iter().copied());
            }
        }
    }

    /// The token that follows a scored prompt.
    fn next(&mut self, app: &App, scored: &ScoredPrompt) {
        if let (Some(id), Some(&logp), Some(tops)) = (scored.next, scored.logps.last(), scored.tops.last()) {
            self.tokens.push(app.names.name(id, self.by_id));
            self.offsets.push(self.n_chars);
            self.entry(app, id, logp, tops.iter().copied());
        }
    }

    /// Drawn tokens.
    fn drawn(&mut self, app: &App, answer: &Answer) {
        let (offsets, end) = app.names.offsets(&answer.gained.ids, true, self.n_chars);
        self.offsets.extend(offsets);
        self.n_chars = end;
        self.gained(app, &answer.gained);
    }

    /// Drawn tokens whose places are known.
    fn gained(&mut self, app: &App, gained: &aloe_engine::Gained) {
        for (at, (&id, &logp)) in gained.ids.iter().zip(&gained.logps).enumerate() {
            self.tokens.push(app.names.name(id, self.by_id));
            let tops = gained.tops.get(at).into_iter().flatten();
            self.entry(app, id, f64::from(logp), tops.map(|&(id, logp)| (id, f64::from(logp))));
        }
    }

    /// Tokens of a stream, and where they stand in the whole text.
    pub(crate) fn streamed(
        app: &App,
        by_id: bool,
        n_top: usize,
        offsets: Vec<usize>,
        gained: &aloe_engine::Gained,
    ) -> Value {
        let mut table = Self { by_id, n_top, offsets, ..Self::default() };
        table.gained(app, gained);
        table.into_value()
    }

    /// The most probable ones first, and the token itself in any case. JSON has no word for one that cannot follow.
    fn entry(&mut self, app: &App, id: u32, logp: f64, tops: impl Iterator<Item = (u32, f64)>) {
        let mut map = serde_json::Map::new();
        for (top, logp) in tops.take(self.n_top).filter(|top| top.1.is_finite()) {
            map.entry(app.names.name(top, self.by_id)).or_insert(json!(logp));
        }
        map.entry(app.names.name(id, self.by_id)).or_insert(json!(logp));
        self.logps.push(json!(logp));
        self.tops.push(Value::Object(map));
    }

    fn into_value(self) -> Value {
        json!({"tokens": self.tokens, "token_logprobs": self.logps, "top_logprobs": self.tops, "text_offset": self.offsets})
    }
}

/// Counts of tokens.
pub(crate) fn usage(n_prompt: usize, n_new: usize) -> Value {
    json!({"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new})
}

/// One text, one list of ids, a list of texts or a list of lists of ids.
pub(crate) fn prompts(name: &str, given: &Value) -> Result<Vec<Given>, Refusal> {
    let expected = "a string, a list of strings, a list of token ids or a list of such lists, none of them empty";
    let one = |value: &Value| match value {
        Value::String(text) => Some(Given::Text(text.clone())),
        value => fields::ids(value).filter(|ids| !ids.is_empty()).map(Given::Ids),
    };
    let found = match given {
        Value::Array(list) if list.first().is_some_and(Value::is_number) => one(given).map(|ids| vec![ids]),
        Value::Array(list) if !list.is_empty() => {
            let same = list.iter().all(|other| other.is_string() == list[0].is_string());
            if same { list.iter().map(one).collect() } else { None }
        }
        Value::String(_) => one(given).map(|text| vec![text]),
        _ => None,
    };
    found.ok_or_else(|| fields::wrong(name, expected, given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_given_in_four_forms_and_a_mixture_of_them_is_refused() {
        let text = |text: &str| Given::Text(text.to_owned());
        let check = |value: Value, expected: &[Given]| assert_eq!(prompts("prompt", &value).unwrap(), expected);
        check(json!("a"), &[text("a")]);
        check(json!(["a", "b"]), &[text("a"), text("b")]);
        check(json!([1, 2]), &[Given::Ids(vec![1, 2])]);
        check(json!([[1], [2, 3]]), &[Given::Ids(vec![1]), Given::Ids(vec![2, 3])]);
        for bad in [json!([]), json!([[]]), json!(["a", [1]]), json!([1, "a"]), json!([[1], 2]), json!([-1]), json!({})]
        {
            assert!(prompts("prompt", &bad).is_err(), "{bad}");
        }
    }
}
