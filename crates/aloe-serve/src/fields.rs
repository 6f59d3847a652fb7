//! The fields of a request. Each is taken out by the one that honours it; what is left at the end is not known here, and refused by
//! name. `null` stands for "not given", as OpenAI's clients write it.

use crate::refusal::Refusal;
use axum::http::StatusCode;
use serde_json::{Map, Value};

/// What a request holds.
pub(crate) struct Fields(Map<String, Value>);

type Result<T> = std::result::Result<T, Refusal>;

impl Fields {
    /// Reads a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Refusal::bad("the body must be a JSON object")),
            // Its words name a place and never repeat what stands there.
            Err(error) => Err(Refusal::of_body(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))),
        }
    }

    /// The fields of an object within a request.
    pub(crate) fn of(value: Value) -> Option<Self> {
        if let Value::Object(fields) = value { Some(Self(fields)) } else { None }
    }

    /// A field that was given.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| wrong(name, "a number", &value))
    }

    /// A whole number from 0 to `most`.
    pub(crate) fn whole(&mut self, name: &str, most: u64) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match whole(&value) {
            Some(number) if number <= most => Ok(Some(number)),
            _ => Err(wrong(name, &format!("a whole number from 0 to {most}"), &value)),
        }
    }

    /// The values of a field that is one string, or a list of strings.
    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        let expected = "a string or a list of strings";
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(list)) => list
                .into_iter()
                .map(|one| match one {
                    Value::String(text) => Ok(text),
                    other => Err(wrong(name, expected, &other)),
                })
                .collect(),
            Some(other) => Err(wrong(name, expected, &other)),
        }
    }

    /// A list of token ids.
    pub(crate) fn ids(&mut self, name: &str) -> Result<Vec<u32>> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(value) => ids(&value).ok_or_else(|| wrong(name, "a list of token ids", &value)),
        }
    }

    /// Fields that are not honoured here: each may be given with a value that asks for nothing.
    pub(crate) fn refuse_unless_off(&mut self, fields: &[(&str, IsOff)]) -> Result<()> {
        for (name, is_off) in fields {
            if let Some(value) = self.take(name).filter(|value| !is_off.holds(value)) {
                let message = format!("is not supported with the value {}; leave it out", shown(&value));
                return Err(Refusal::field(name, message));
            }
        }
        Ok(())
    }

    /// Everything was taken, or what was not is refused.
    pub(crate) fn finish(self) -> Result<()> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(Refusal::field(&shown_name(&name), "there is no such field here; leave it out")),
            None => Ok(()),
        }
    }
}

/// Which value of a field asks for nothing.
#[derive(Clone, Copy)]
pub(crate) enum IsOff {
    /// This number.
    Number(f64),
    /// This flag.
    Flag(bool),
    /// One of these texts.
    Text(&'static [&'static str]),
    /// An empty list, object or text.
    Empty,
    /// `{"type": "text"}`.
    PlainText,
    /// Any: it says something of the caller, or of a thing that is not asked for.
    Always,
}

impl IsOff {
    fn holds(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Number(off), value) => value.as_f64() == Some(off),
            (Self::Flag(off), value) => value.as_bool() == Some(off),
            (Self::Text(off), Value::String(text)) => off.contains(&text.as_str()),
            (Self::Empty, Value::Array(list)) => list.is_empty(),
            (Self::Empty, Value::Object(map)) => map.is_empty(),
            (Self::Empty, Value::String(text)) => text.is_empty(),
            (Self::PlainText, Value::Object(map)) => map.len() == 1 && map.get("type").is_some_and(|one| one == "text"),
            (Self::Always, _) => true,
            _ => false,
        }
    }
}

/// A whole number that is not below 0; clients may write 5 as 5.0.
fn whole(value: &Value) -> Option<u64> {
    let float = || value.as_f64().filter(|number| number.fract() == 0.0 && *number >= 0.0 && *number < 9e15);
    value.as_u64().or_else(|| float().map(|number| number as u64))
}

/// A list of token ids.
pub(crate) fn ids(value: &Value) -> Option<Vec<u32>> {
    let one = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array()?.iter().map(one).collect()
}

pub(crate) fn wrong(name: &str, expected: &str, found: &Value) -> Refusal {
    Refusal::field(name, format!("must be {expected}, found {}", shown(found)))
}

/// A value in an error: numbers and flags as they are, of the rest only what it is.
fn shown(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The name of a field that nobody knows; a long one is cut.
fn shown_name(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_field_that_nobody_took_is_refused_by_its_name_unless_it_is_null() {
        let mut known = fields(r#"{"n": 1, "tools": null}"#);
        assert_eq!(known.whole("n", 9).unwrap(), Some(1));
        known.finish().unwrap();
        let error = fields(r#"{"max_tokenz": 1}"#).finish().unwrap_err();
        assert_eq!(error.body()["error"]["param"], "max_tokenz");
        assert!(error.message.contains("max_tokenz"), "{error:?}");
    }

    #[test]
    fn a_field_that_is_not_honoured_may_be_given_where_it_is_off() {
        let off =
            [("logit_bias", IsOff::Empty), ("best_of", IsOff::Number(1.0)), ("tool_choice", IsOff::Text(&["none"]))];
        fields(r#"{"logit_bias": {}, "best_of": 1, "tool_choice": "none"}"#).refuse_unless_off(&off).unwrap();
        for on in [r#"{"logit_bias": {"5": 1}}"#, r#"{"best_of": 2}"#, r#"{"tool_choice": "auto"}"#] {
            assert!(fields(on).refuse_unless_off(&off).is_err(), "{on}");
        }
        let plain = [("response_format", IsOff::PlainText)];
        fields(r#"{"response_format": {"type": "text"}}"#).refuse_unless_off(&plain).unwrap();
        assert!(fields(r#"{"response_format": {"type": "json_object"}}"#).refuse_unless_off(&plain).is_err());
    }

    #[test]
    fn a_wrong_type_is_named_and_the_value_of_a_text_is_not_repeated() {
        let error = fields(r#"{"n": "secret words"}"#).whole("n", 9).unwrap_err();
        assert!(error.message.contains("n: must be a whole number") && !error.message.contains("secret"), "{error:?}");
        assert_eq!(fields(r#"{"n": 5.0}"#).whole("n", 9).unwrap(), Some(5));
        for bad in ["-1", "1.5", "10", "[1]", "1e300"] {
            assert!(fields(&format!(r#"{{"n": {bad}}}"#)).whole("n", 9).is_err(), "{bad}");
        }
        assert!(Fields::parse(b"{\"a\": [1,").is_err_and(|error| error.status == StatusCode::BAD_REQUEST));
        assert!(Fields::parse(&[b'['; 200_000]).is_err(), "as deep as a stack would be");
    }
}
