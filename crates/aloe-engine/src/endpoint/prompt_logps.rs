//! The log-probabilities of a prompt's own tokens, in the forms servers have them on `/v1/completions`. The probe of
//! `endpoint` takes the first form that the server answers whole; nothing here guesses a missing value.
//!
//! `echo` with `logprobs` is OpenAI's (vLLM, SGLang): entry `i` of `token_logprobs` belongs to id `i`, the first is null.
//! Some servers demand at least one new token, whose entry is then left off. `prompt_logprobs` is vLLM's own: entry `i`
//! maps token ids to values, so that an answer about other tokens is seen.

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

    /// The request for the log-probabilities of `ids`.
    pub(super) fn body(self, model: &str, ids: &[u32]) -> Value {
        let max_tokens = i32::from(self != Self::Echo);
        let mut body = json!({"model": model, "prompt": ids, "max_tokens": max_tokens, "temperature": 0.0});
        if self == Self::PromptLogprobs {
            body["prompt_logprobs"] = json!(1);
        } else {
            body["echo"] = json!(true);
            body["logprobs"] = json!(1);
        }
        body
    }

    /// (log-probability, was the most probable) for each id from the second on, or what is wrong with the answer.
    pub(super) fn read(self, answer: &Value, ids: &[u32]) -> Result<Vec<(f64, bool)>, String> {
        if let Some(counted) = answer["usage"]["prompt_tokens"].as_u64()
            && counted != ids.len() as u64
        {
            return Err(format!("the server counts {counted} prompt tokens where {} were sent", ids.len()));
        }
        let choice = &answer["choices"][0];
        match self {
            Self::Echo => read_echo(&choice["logprobs"], ids.len(), ids.len()),
            Self::EchoAndOne => read_echo(&choice["logprobs"], ids.len(), ids.len() + 1),
            Self::PromptLogprobs => read_by_id(&choice["prompt_logprobs"], ids),
        }
    }
}

/// Reads the first `n_ids` of `n_entries` parallel entries.
fn read_echo(logprobs: &Value, n_ids: usize, n_entries: usize) -> Result<Vec<(f64, bool)>, String> {
    let list = |name: &str| {
        let entries = logprobs[name].as_array().ok_or_else(|| format!("`{name}` is absent"))?;
        if entries.len() == n_entries {
            return Ok(entries);
        }
        Err(format!("{} entries of `{name}` where {n_entries} are due", entries.len()))
    };
    let (logps, tops) = (list("token_logprobs")?, list("top_logprobs")?);
    let entries = logps[..n_ids].iter().zip(tops).enumerate().skip(1);
    entries
        .map(|(at, (value, top))| {
            let logp = usable(at, value)?;
            let values = top.as_object().map(|top| top.values().filter_map(Value::as_f64));
            let best = values.and_then(|values| values.reduce(f64::max));
            let best = best.ok_or_else(|| format!("entry {at} of `top_logprobs` is {top}"))?;
            Ok((logp, logp >= best))
        })
        .collect()
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
        let tops: Vec<Value> = logps.as_array().unwrap().iter().map(|logp| json!({"a": logp, "b": -1.0})).collect();
        json!({"choices": [{"logprobs": {"token_logprobs": logps, "top_logprobs": tops}}]})
    }

    #[test]
    fn the_entry_of_a_new_token_is_left_off_and_never_taken_for_a_prompt_token() {
        let ids = [7, 8, 9];
        let three = echo(json!([null, -0.5, -2.0]));
        assert_eq!(Form::Echo.read(&three, &ids).unwrap(), [(-0.5, true), (-2.0, false)]);
        let four = echo(json!([null, -0.5, -2.0, -0.1]));
        assert_eq!(Form::EchoAndOne.read(&four, &ids).unwrap(), [(-0.5, true), (-2.0, false)]);
        assert!(Form::Echo.read(&four, &ids).unwrap_err().contains("4 entries"));
        assert!(Form::EchoAndOne.read(&three, &ids).unwrap_err().contains("3 entries"));
    }

    #[test]
    fn values_by_token_id_must_be_about_the_tokens_that_were_sent() {
        let entries = json!([null, {"8": {"logprob": -1.5, "rank": 2}, "3": {"logprob": -0.5, "rank": 1}},
                             {"9": {"logprob": -0.25, "rank": 1}}]);
        let answer = json!({"choices": [{ "prompt_logprobs": entries }]});
        let read = |ids: &[u32]| Form::PromptLogprobs.read(&answer, ids);
        assert_eq!(read(&[7, 8, 9]).unwrap(), [(-1.5, false), (-0.25, true)]);
        assert!(read(&[7, 8, 4]).unwrap_err().contains("the token 4"));
        assert!(read(&[7, 8]).unwrap_err().contains("3 entries"));
    }

    #[test]
    fn a_server_that_counts_other_tokens_or_gives_no_number_is_not_believed() {
        let mut answer = echo(json!([null, -0.5]));
        answer["usage"] = json!({"prompt_tokens": 3});
        assert!(Form::Echo.read(&answer, &[7, 8]).unwrap_err().contains("counts 3 prompt tokens where 2 were sent"));
        for bad in [json!(null), json!("x"), json!(0.5)] {
            assert!(Form::Echo.read(&echo(json!([null, bad])), &[7, 8]).is_err(), "{bad}");
        }
        assert!(Form::Echo.read(&json!({"choices": []}), &[7, 8]).is_err());
    }
}
