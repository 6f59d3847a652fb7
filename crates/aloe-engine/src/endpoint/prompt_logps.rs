//! The log-probabilities of a prompt's own tokens, in the forms servers have them on `/v1/completions`. The probe of
//! `endpoint` takes the first form that the server answers whole; nothing here guesses a missing value.
//!
//! `echo` with `logprobs` is OpenAI's (vLLM, SGLang): entry `i` of `token_logprobs` belongs to id `i`, the first is null.
//! Some servers demand at least one new token, whose entry is then left off. `prompt_logprobs` is vLLM's own: entry `i`
//! maps token ids to values. In each form an answer about other tokens than those sent is seen and refused.

use super::answer::{check_usage, choices};
use serde_json::{Value, json};

/// How a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `echo` without a new token.
    Echo,
    /// `echo` with one new token.
    EchoAndOne,
    /// `prompt_logprobs`.
    PromptLogprobs,
}

impl Form {
    pub(super) const ALL: [Self; 3] = [Self::Echo, Self::EchoAndOne, Self::PromptLogprobs];

    /// The name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Echo => "`echo` with `logprobs`",
            Self::EchoAndOne => "the same with `max_tokens` 1",
            Self::PromptLogprobs => "`prompt_logprobs`",
        }
    }

    /// The request for the log-probabilities of `ids`. vLLM then names tokens by id; others pass the key over.
    pub(super) fn body(self, model: &str, ids: &[u32]) -> Value {
        let max_tokens = i32::from(self != Self::Echo);
        let mut body = json!({"model": model, "prompt": ids, "max_tokens": max_tokens, "temperature": 0.0});
        if self == Self::PromptLogprobs {
            body["prompt_logprobs"] = json!(1);
        } else {
            body["echo"] = json!(true);
            body["logprobs"] = json!(1);
            body["return_tokens_as_token_ids"] = json!(true);
        }
        body
    }

    /// (log-probability, was the most probable) for each id from the second on, or what is wrong with the answer. `word` is the
    /// text of one id.
    pub(super) fn read(
        self,
        answer: &Value,
        ids: &[u32],
        word: impl Fn(u32) -> Option<String>,
    ) -> Result<Vec<(f64, bool)>, String> {
        let choice = &choices(answer, 1)?[0];
        check_usage(answer, Some(ids.len()))?;
        let scored = match self {
            Self::Echo => read_echo(&choice["logprobs"], ids, ids.len(), word),
            Self::EchoAndOne => read_echo(&choice["logprobs"], ids, ids.len() + 1, word),
            Self::PromptLogprobs => read_by_id(&choice["prompt_logprobs"], ids),
        }?;
        if scored.len() > 1 && scored.iter().all(|&(logp, _)| logp == 0.0) {
            return Err("every log-probability is 0".to_owned());
        }
        Ok(scored)
    }
}

/// Reads the first entries, one for each of `ids`, of `n_entries` parallel ones.
fn read_echo(
    logprobs: &Value,
    ids: &[u32],
    n_entries: usize,
    word: impl Fn(u32) -> Option<String>,
) -> Result<Vec<(f64, bool)>, String> {
    let list = |name: &str| {
        let entries = logprobs[name].as_array().ok_or_else(|| format!("`{name}` is absent"))?;
        if entries.len() == n_entries {
            return Ok(entries);
        }
        Err(format!("{} entries of `{name}` where {n_entries} are due", entries.len()))
    };
    let (logps, tops, tokens) = (list("token_logprobs")?, list("top_logprobs")?, list("tokens")?);
    for (at, (token, &id)) in tokens.iter().zip(ids).enumerate() {
        check_token(token, id, &word).map_err(|reason| format!("entry {at} is about another token: {reason}"))?;
    }
    let entries = logps[..ids.len()].iter().zip(tops).zip(tokens).enumerate().skip(1);
    entries
        .map(|(at, ((value, top), token))| {
            let logp = usable(at, value)?;
            let values = top.as_object().map(|top| top.values().filter_map(Value::as_f64));
            let best = values.and_then(|values| values.reduce(f64::max));
            let best = best.ok_or_else(|| format!("entry {at} of `top_logprobs` is {top}"))?;
            let own = token.as_str().filter(|name| name.starts_with(BY_ID)).and_then(|name| top[name].as_f64());
            if let Some(own) = own.filter(|own| (own - logp).abs() > 1e-4) {
                return Err(format!("entry {at} has the log-probability {logp} and, among the most probable, {own}"));
            }
            Ok((logp, logp >= best))
        })
        .collect()
}

/// How vLLM names a token by its id.
const BY_ID: &str = "token_id:";

/// Holds the name that the server gives a token against the id that was sent. A name by id is exact; a name by text must be
/// the same where ours has plain letters and digits: servers write spaces, bytes and control tokens in their own ways.
fn check_token(token: &Value, id: u32, word: impl Fn(u32) -> Option<String>) -> Result<(), String> {
    let name = token.as_str().ok_or_else(|| format!("{token} is no token"))?;
    if let Some(found) = name.strip_prefix(BY_ID) {
        return if found == id.to_string() { Ok(()) } else { Err(format!("{found} where {id} was sent")) };
    }
    let sent = word(id).unwrap_or_default();
    match plain(&sent) {
        Some(sent) if plain(name) != Some(sent) => Err(format!("{name:?} where {sent:?} was sent")),
        _ => Ok(()),
    }
}

/// The letters and digits of a token without the marks for a space before it; `None` where it holds anything else.
fn plain(name: &str) -> Option<&str> {
    let word = name.trim_start_matches(['\u{2581}', '\u{120}', ' ']);
    (!word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric())).then_some(word)
}

fn read_by_id(entries: &Value, ids: &[u32]) -> Result<Vec<(f64, bool)>, String> {
    let entries = entries.as_array().ok_or("`prompt_logprobs` is absent")?;
    if entries.len() != ids.len() {
        return Err(format!("{} entries of `prompt_logprobs` for {} tokens", entries.len(), ids.len()));
    }
    let pairs = entries.iter().zip(ids).enumerate().skip(1);
    pairs
        .map(|(at, (entry, id))| {
            let tops = entry.as_object().ok_or_else(|| format!("entry {at} is {entry}"))?;
            let own = tops.get(&id.to_string()).ok_or_else(|| format!("entry {at} does not hold the token {id}"))?;
            let logp = usable(at, &own["logprob"])?;
            let best = tops.values().filter_map(|top| top["logprob"].as_f64()).fold(f64::NEG_INFINITY, f64::max);
            Ok((logp, logp >= best))
        })
        .collect()
}

/// A log-probability: finite and not above 0, but for rounding.
fn usable(at: usize, value: &Value) -> Result<f64, String> {
    let logp = value.as_f64().filter(|logp| logp.is_finite() && *logp <= 1e-4);
    logp.ok_or_else(|| format!("the log-probability of entry {at} is {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(logps: Value) -> Value {
        let n = logps.as_array().unwrap().len() as u32;
        let names: Vec<String> = (0..n).map(|at| format!("token_id:{}", 7 + at)).collect();
        let tops: Vec<Value> = logps.as_array().unwrap().iter().map(|logp| json!({"a": logp, "b": -1.0})).collect();
        json!({"choices": [{"logprobs": {"token_logprobs": logps, "top_logprobs": tops, "tokens": names}}]})
    }

    fn read(form: Form, answer: &Value, ids: &[u32]) -> Result<Vec<(f64, bool)>, String> {
        form.read(answer, ids, |_| None)
    }

    #[test]
    fn the_entry_of_a_new_token_is_left_off_and_never_taken_for_a_prompt_token() {
        let ids = [7, 8, 9];
        let three = echo(json!([null, -0.5, -2.0]));
        assert_eq!(read(Form::Echo, &three, &ids).unwrap(), [(-0.5, true), (-2.0, false)]);
        let four = echo(json!([null, -0.5, -2.0, -0.1]));
        assert_eq!(read(Form::EchoAndOne, &four, &ids).unwrap(), [(-0.5, true), (-2.0, false)]);
        assert!(read(Form::Echo, &four, &ids).unwrap_err().contains("4 entries"));
        assert!(read(Form::EchoAndOne, &three, &ids).unwrap_err().contains("3 entries"));
    }

    #[test]
    fn values_by_token_id_must_be_about_the_tokens_that_were_sent() {
        let entries = json!([null, {"8": {"logprob": -1.5, "rank": 2}, "3": {"logprob": -0.5, "rank": 1}},
                             {"9": {"logprob": -0.25, "rank": 1}}]);
        let answer = json!({"choices": [{ "prompt_logprobs": entries }]});
        let read = |ids: &[u32]| read(Form::PromptLogprobs, &answer, ids);
        assert_eq!(read(&[7, 8, 9]).unwrap(), [(-1.5, false), (-0.25, true)]);
        assert!(read(&[7, 8, 4]).unwrap_err().contains("the token 4"));
        assert!(read(&[7, 8]).unwrap_err().contains("3 entries"));
    }

    /// Servers write the space before a word as itself, as U+2581 or as U+0120, or leave it off; a byte or a control token in
    /// ways of their own.
    #[test]
    fn a_token_named_by_text_is_held_against_ours_where_that_is_a_plain_word() {
        let check = |ours: &str, name: &str, fits: bool| {
            let found = check_token(&json!(name), 3, |_| Some(ours.to_owned()));
            assert_eq!(found.is_ok(), fits, "{ours:?} {name:?} {found:?}");
        };
        for name in ["the", " the", "\u{2581}the", "\u{120}the", "token_id:3"] {
            check("\u{120}the", name, true);
        }
        for name in ["a", " then", "The", "", ",", "token_id:4"] {
            check("\u{120}the", name, false);
        }
        for name in ["\u{fffd}", "", "<s>", "A"] {
            check("<0x41>", name, true);
        }
    }

    #[test]
    fn a_server_that_counts_other_tokens_or_gives_no_number_is_not_believed() {
        let mut answer = echo(json!([null, -0.5]));
        answer["usage"] = json!({"prompt_tokens": 3});
        let error = read(Form::Echo, &answer, &[7, 8]).unwrap_err();
        assert!(error.contains("counts 3 prompt tokens where 2 were sent"), "{error}");
        for bad in [json!(null), json!("x"), json!(0.5)] {
            assert!(read(Form::Echo, &echo(json!([null, bad])), &[7, 8]).is_err(), "{bad}");
        }
        assert!(read(Form::Echo, &json!({"choices": []}), &[7, 8]).is_err());
    }
}
