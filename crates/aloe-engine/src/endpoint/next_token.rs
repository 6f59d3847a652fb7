//! Log-probabilities of given texts as the next token, for servers that tell none of a prompt's own tokens (llama-server, chat alone): one
//! token is drawn and the most probable ones that the server names with it are read. A text that is not among them has none: that is a value,
//! and the caller's to weigh.
//!
//! The prompt is sent as ids where the tokenizer is here, a raw text as text otherwise. `/chat/completions`, where the server's own template
//! makes another prompt of it, is asked on request only, and named so.

use super::replicas::{Asking, Reply};
use super::{Endpoint, UNRENDERED};
use crate::engine::Take;
use crate::{Error, NextRequest, NextResult, NextTold, Prompt, Result, encode};
use aloe_record::{Cancel, Progress};
use serde_json::{Value, json};
use std::sync::PoisonError;

/// As many as vLLM and OpenAI's chat give at most by default.
const N_TOLD: usize = 20;

/// Sums of probabilities may go so far over 1 by rounding.
const SLACK: f64 = 1e-3;

/// Tokens with their log-probabilities.
type Told = Vec<(String, f64)>;

impl Endpoint {
    /// Whether scoring is possible, found out by a probe.
    pub(crate) fn gives_prompt_logps(&self, cancel: &Cancel) -> Result<bool> {
        let Some(text) = &self.text else { return Ok(false) };
        match self.probe(text, cancel) {
            Ok(_) => Ok(true),
            Err(Error::Open { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// See [`crate::Engine::next_told`]. A conversation that the server is to render is never scored: what it would score is our rendering.
    pub(crate) fn next_told(&self, is_chat: bool, cancel: &Cancel) -> Result<NextTold> {
        let mut known = self.next_told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = known[usize::from(is_chat)] {
            return Ok(told);
        }
        let forms: &[NextTold] = match (is_chat, self.server_template) {
            (true, true) => &[NextTold::Chat],
            (true, false) if self.text.is_none() => return Err(self.unusable(UNRENDERED)),
            (false, true) => &[NextTold::Completions, NextTold::Chat],
            (_, false) => &[NextTold::Completions],
        };
        let is_rendered_there = is_chat && self.server_template;
        let told = match !is_rendered_there && self.gives_prompt_logps(cancel)? {
            true => NextTold::Scored,
            false => self.next_form(forms, cancel)?,
        };
        known[usize::from(is_chat)] = Some(told);
        Ok(told)
    }

    /// See [`crate::Engine::next_into`].
    pub(crate) fn next_into(
        &self,
        requests: &[NextRequest],
        form: NextTold,
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<NextResult>,
    ) -> Result<()> {
        let watch = self.watch_drawn(cancel)?;
        self.replicas.for_each(requests, watch.as_deref(), cancel, take, |request, asking| {
            asking.request(&request.id);
            let told = self.next_one(form, request, asking);
            progress.advance(1);
            told
        })
    }

    /// The first of `forms` that gives a list for a known prompt.
    fn next_form(&self, forms: &[NextTold], cancel: &Cancel) -> Result<NextTold> {
        let mut found = Vec::new();
        for &form in forms {
            let (path, body) = self.next_body(form, &Prompt::Text("One and one is".to_owned()))?;
            let reason = match self.replicas.ask(path, &body, &Asking::new(cancel))? {
                Reply::Refused(reason) => reason,
                Reply::Json(answer, at) => {
                    self.check_model(&answer, at)?;
                    match told(&answer) {
                        Ok(_) => return Ok(form),
                        Err(reason) => reason,
                    }
                }
            };
            found.push(format!("/v1{path}: {reason}"));
        }
        let chat = match self.server_template {
            true => "",
            false => {
                ". /v1/chat/completions, where the server's own template renders the prompt, is asked with --server-template alone"
            }
        };
        Err(self.unusable(format!(
            "the server gives no log-probabilities of the most probable next tokens, so nothing can be scored. Tried {}{chat}",
            found.join("; ")
        )))
    }

    fn next_body(&self, form: NextTold, prompt: &Prompt) -> Result<(&'static str, Value)> {
        let mut body = json!({"model": self.model, "max_tokens": 1, "temperature": 0});
        if form == NextTold::Chat {
            body["messages"] = match prompt {
                Prompt::Messages(messages) => json!(messages),
                Prompt::Text(text) => json!([{"role": "user", "content": text}]),
                _ => return Err(self.unusable(UNRENDERED)),
            };
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(N_TOLD);
            return Ok(("/chat/completions", body));
        }
        body["prompt"] = match (&self.text, prompt) {
            (Some(text), prompt) => json!(encode::prompt_ids(text, prompt)?),
            (None, Prompt::Text(text)) => json!(text),
            (None, _) => return Err(self.unusable(UNRENDERED)),
        };
        body["logprobs"] = json!(N_TOLD);
        Ok(("/completions", body))
    }

    fn next_one(&self, form: NextTold, request: &NextRequest, asking: &Asking) -> Result<NextResult> {
        let (path, body) = self.next_body(form, &request.prompt)?;
        let kept = self.replicas.journal().request(path, &body);
        let (told, n_prompt_tokens): (Told, Option<usize>) = match kept.found() {
            Some(known) => known,
            None => match self.replicas.ask(path, &body, asking)? {
                Reply::Refused(reason) => return Err(Error::Request { id: request.id.clone(), reason }),
                Reply::Json(answer, at) => {
                    self.check_model(&answer, at)?;
                    let told = told(&answer).map_err(|reason| self.replicas.unusable(at, asking, reason))?;
                    let found = (told, answer["usage"]["prompt_tokens"].as_u64().map(|n| n as usize));
                    kept.keep(&found, self.replicas.base(at));
                    found
                }
            },
        };
        let logps = request.wanted.iter().map(|wanted| of(wanted, &told)).collect();
        // Only ids are a list there.
        let prompt_ids = serde_json::from_value(body["prompt"].clone()).ok();
        Ok(NextResult { id: request.id.clone(), logps, prompt_ids, n_prompt_tokens, told: form })
    }
}

/// The tokens that an answer names for its first place. OpenAI's older layout (vLLM, SGLang) maps tokens to log-probabilities; the newer one
/// of chat, which llama-server uses on both paths, lists them.
fn told(answer: &Value) -> std::result::Result<Told, String> {
    let logprobs = &answer["choices"][0]["logprobs"];
    let pairs: Option<Told> = match (&logprobs["top_logprobs"][0], &logprobs["content"][0]["top_logprobs"]) {
        (Value::Object(tops), _) => tops.iter().map(|(token, logp)| Some((token.clone(), logp.as_f64()?))).collect(),
        (_, Value::Array(tops)) => {
            tops.iter().map(|top| Some((top["token"].as_str()?.to_owned(), top["logprob"].as_f64()?))).collect()
        }
        _ => return Err("the answer lists no probable tokens (`top_logprobs`)".to_owned()),
    };
    let pairs = pairs.filter(|pairs| !pairs.is_empty()).ok_or("`top_logprobs` is empty or holds no numbers")?;
    let sum: f64 = pairs.iter().map(|(_, logp)| logp.exp()).sum();
    match pairs.iter().find(|(_, logp)| !logp.is_finite() || *logp > SLACK) {
        Some((_, logp)) => Err(format!("`top_logprobs` holds {logp}, which is no log-probability")),
        None if sum > 1.0 + SLACK => Err(format!("the probabilities of `top_logprobs` sum to {sum:.3}")),
        None => Ok(pairs),
    }
}

/// Of the token that is `wanted`, or else of the most probable one that is it with or without a space before it: servers name a token that
/// begins with a space in several ways.
fn of(wanted: &str, told: &[(String, f64)]) -> Option<f64> {
    let bare = |token: &str| {
        token.trim_matches(|c: char| c.is_whitespace() || c == '\u{2581}' || c == '\u{120}') == wanted.trim()
    };
    let exact = told.iter().find(|(token, _)| token == wanted).map(|(_, logp)| *logp);
    exact.or_else(|| told.iter().filter(|(token, _)| bare(token)).map(|(_, logp)| *logp).max_by(f64::total_cmp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(logprobs: Value) -> std::result::Result<Told, String> {
        told(&json!({"choices": [{"logprobs": logprobs}]}))
    }

    #[test]
    fn probable_tokens_are_read_in_both_published_layouts_and_lists_that_are_none_are_refused() {
        let expected = vec![("1".to_owned(), -1.5), (" 2".to_owned(), -0.5)];
        assert_eq!(check(json!({"top_logprobs": [{"1": -1.5, " 2": -0.5}], "tokens": [" 2"]})).unwrap(), expected);
        let listed = json!([{"token": "1", "logprob": -1.5}, {"token": " 2", "logprob": -0.5}]);
        assert_eq!(check(json!({"content": [{"token": " 2", "top_logprobs": listed}]})).unwrap(), expected);
        for (logprobs, words) in [
            (Value::Null, "lists no probable tokens"),
            (json!({"content": []}), "lists no probable tokens"),
            (json!({"top_logprobs": [{}]}), "empty"),
            (json!({"top_logprobs": [{"1": "x"}]}), "no numbers"),
            (json!({"top_logprobs": [{"1": 0.7}]}), "no log-probability"),
            (json!({"top_logprobs": [{"1": -0.1, "2": -0.1}]}), "sum to 1.810"),
        ] {
            let error = check(logprobs.clone()).unwrap_err();
            assert!(error.contains(words), "{logprobs}: {error}");
        }
    }

    #[test]
    fn a_text_is_found_as_the_token_itself_before_one_behind_a_space_and_may_be_missing() {
        let told =
            [(" 1".to_owned(), -0.5), ("1".to_owned(), -3.0), ("\u{2581}2".to_owned(), -4.0), ("\n2".to_owned(), -2.0)];
        assert_eq!((of("1", &told), of("2", &told), of("3", &told)), (Some(-3.0), Some(-2.0), None));
        // The letter behind "Answer:" has a space, which some servers leave out.
        let told = [("1".to_owned(), -0.5), (" 1".to_owned(), -3.0), ("2".to_owned(), -4.0), ("A1".to_owned(), -1.0)];
        assert_eq!((of(" 1", &told), of(" 2", &told), of(" 3", &told)), (Some(-3.0), Some(-4.0), None));
    }
}
