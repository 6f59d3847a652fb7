//! Request files of `aloe score`, `generate`, `embed` and `rerank`: JSON lines, every row checked before any model is opened.

use crate::failure::Failure;
use aloe_engine::{Continuation, Prompt, Sampling};
use aloe_text::Message;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::path::Path;

/// One row of a request file. Unknown keys are mistakes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) id: String,
    prompt: Option<String>,
    prompt_ids: Option<Vec<u32>>,
    messages: Option<Vec<Message>>,
    pub(crate) continuations: Option<Vec<RawContinuation>>,
    pub(crate) n: Option<usize>,
    max_new_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<u64>,
    #[serde(default, deserialize_with = "stop_list")]
    stop: Vec<String>,
    #[serde(default)]
    stop_ids: Vec<u32>,
}

/// A continuation as text or as ids.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a continuation is text or a list of token ids")]
pub(crate) enum RawContinuation {
    /// Text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// A list of texts; a text alone, as some servers take it, is answered with the list to write.
fn stop_list<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    match Value::deserialize(input)? {
        Value::String(text) => {
            Err(D::Error::custom(format!("`stop` is a list of texts: write \"stop\": [{}]", Value::String(text))))
        }
        list => Vec::deserialize(list).map_err(|error| D::Error::custom(format!("`stop` is a list of texts: {error}"))),
    }
}

impl Row {
    /// The prompt; exactly one of the three forms must be there.
    pub(crate) fn prompt(&self) -> Result<Prompt, String> {
        match (&self.prompt, &self.prompt_ids, &self.messages) {
            (Some(text), None, None) => Ok(Prompt::Text(text.clone())),
            (None, Some(ids), None) => Ok(Prompt::Ids(ids.clone())),
            (None, None, Some(messages)) => Ok(Prompt::Messages(messages.clone())),
            _ => Err("give exactly one of `prompt`, `prompt_ids` and `messages`".to_owned()),
        }
    }

    /// The continuations of a score request. Scoring draws nothing, so keys of sampling are refused, not ignored.
    pub(crate) fn continuations(&self) -> Result<Vec<Continuation>, String> {
        let numbers = [self.n, self.max_new_tokens, self.top_k];
        let shares = [self.temperature, self.top_p, self.min_p, self.repetition_penalty];
        let samples = numbers.iter().any(Option::is_some)
            || shares.iter().any(Option::is_some)
            || self.seed.is_some()
            || !self.stop.is_empty()
            || !self.stop_ids.is_empty();
        if samples {
            return Err("sampling keys belong to `aloe generate`; scoring draws nothing".to_owned());
        }
        let given = self.continuations.as_ref().ok_or("`continuations` is missing; [] scores the prompt itself")?;
        let one = |continuation: &RawContinuation| match continuation {
            RawContinuation::Text(text) => Continuation::Text(text.clone()),
            RawContinuation::Ids(ids) => Continuation::Ids(ids.clone()),
        };
        Ok(given.iter().map(one).collect())
    }

    /// The sampling fields over greedy defaults; `seed` where the row has none.
    pub(crate) fn sampling(&self, seed: u64) -> Result<Sampling, String> {
        let base = Sampling::default();
        let sampling = Sampling {
            max_new_tokens: self.max_new_tokens.unwrap_or(base.max_new_tokens),
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            seed: self.seed.unwrap_or(seed),
            stop: self.stop.clone(),
            stop_ids: self.stop_ids.clone(),
        };
        match sampling.mistakes().into_iter().next() {
            Some(mistake) => Err(mistake),
            None => Ok(sampling),
        }
    }
}

/// Reads all rows and turns each with `convert`; the mistakes of all rows are shown together, 20 at most.
pub(crate) fn read<R: DeserializeOwned, T>(
    path: &Path,
    convert: impl Fn(R) -> Result<T, String>,
) -> anyhow::Result<Vec<T>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let mut requests = Vec::new();
    let mut mistakes = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let parsed = serde_json::from_str::<R>(line).map_err(|error| json_mistake(&error));
        match parsed.and_then(|row| convert(row).map_err(|reason| format!(" {reason}"))) {
            Ok(request) => requests.push(request),
            Err(reason) => mistakes.push(format!("{}:{}:{reason}", path.display(), at + 1)),
        }
    }
    if !mistakes.is_empty() {
        let n_mistakes = mistakes.len();
        mistakes.truncate(20);
        if n_mistakes > 20 {
            mistakes.push(format!("... and {} more", n_mistakes - 20));
        }
        return Err(Failure::usage(mistakes.join("\n")).into());
    }
    if requests.is_empty() {
        return Err(Failure::usage(format!("{} holds no requests", path.display())).into());
    }
    Ok(requests)
}

/// `COLUMN: what is wrong` of one line; whether it is no JSON at all, or JSON of another shape.
fn json_mistake(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = text.strip_suffix(&place).unwrap_or(&text);
    let kind = if error.is_data() { "" } else { "not JSON: " };
    if error.line() == 0 { format!(" {kind}{reason}") } else { format!("{}: {kind}{reason}", error.column()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r4.jsonl");
        std::fs::write(&path, text).unwrap();
        let error = read(&path, |row: Row| {
            if row.continuations.is_some() { row.continuations().map(|_| ()) } else { row.sampling(0).map(|_| ()) }
        });
        error.unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
    }

    #[test]
    fn a_line_that_is_not_json_is_named_with_file_line_and_column() {
        let good = r#"{"id": "a", "prompt": "x"}"#;
        assert_eq!(
            mistakes(&format!("{good}\n\nnot\n{{\"id\": ")),
            "r4.jsonl:3:2: not JSON: expected ident\nr4.jsonl:4:7: not JSON: EOF while parsing a value"
        );
        let unknown = mistakes(r#"{"id": "a", "promt": "x"}"#);
        assert!(unknown.starts_with("r4.jsonl:1:19: unknown field `promt`"), "{unknown}");
    }

    #[test]
    fn a_continuation_that_is_neither_text_nor_ids_is_named() {
        let text = "{\"id\": \"q7\", \"prompt\": \"x\", \"continuations\": [\" A\", 3]}";
        assert!(mistakes(text).contains("a continuation is text or a list of token ids"));
    }

    #[test]
    fn a_stop_text_is_answered_with_the_list_to_write() {
        let found = mistakes(r#"{"id": "a", "prompt": "x", "stop": "."}"#);
        assert!(found.starts_with("r4.jsonl:1:") && found.ends_with(r#"write "stop": ["."]"#), "{found}");
        let found = mistakes(r#"{"id": "a", "prompt": "x", "stop": [1]}"#);
        assert!(found.contains("`stop` is a list of texts: invalid type"), "{found}");
    }
}
