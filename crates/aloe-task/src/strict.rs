//! JSON text to a value, refusing what serde_json lets pass: a key that stands twice (the last would win in silence) and, in training
//! rows, the character U+0000, which no text means and which cuts strings short in other programs. Rows and training rows are read by it.

use crate::rows::shown_name;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Error, Map, Number, Value};
use std::fmt;

/// Parses `text`, which must be one JSON value without repeated keys and without U+0000.
pub fn parse(text: &str) -> Result<Value, Error> {
    Strict { takes_null: false }.parse(text)
}

/// Parses `text`, which must be one JSON value without repeated keys: a published set may hold any character.
pub(crate) fn parse_any_character(text: &str) -> Result<Value, Error> {
    Strict { takes_null: true }.parse(text)
}

#[derive(Clone, Copy)]
struct Strict {
    /// Whether U+0000 is taken.
    takes_null: bool,
}

impl Strict {
    fn parse(self, text: &str) -> Result<Value, Error> {
        let mut source = serde_json::Deserializer::from_str(text);
        let value = self.deserialize(&mut source)?;
        source.end()?;
        Ok(value)
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    /// A text as it stands in the file, in which serde_json lets no character below U+0020 pass.
    fn visit_borrowed_str<E: serde::de::Error>(self, value: &'de str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        if !self.takes_null && value.contains('\0') {
            Err(E::custom("the text holds the character U+0000"))
        } else {
            Ok(value.into())
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            match values.entry(key) {
                Entry::Vacant(place) => place.insert(map.next_value_seed(self)?),
                Entry::Occupied(earlier) => {
                    return Err(A::Error::custom(format!("a key stands twice: {}", shown_name(earlier.key()))));
                }
            };
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_repeated_keys_is_read_as_serde_json_reads_it() {
        let text = r#"{"a": [1, -2, 3.5e-3, 18446744073709551615, true, null, "é\n\ud83d\ude42", {}], "b": {"a": [], "c": "\u0001"}}"#;
        assert_eq!(parse(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_key_that_stands_twice_at_any_depth_and_a_null_character_are_refused_with_their_place() {
        for (text, message) in [
            (r#"{"a": 1, "a": 1}"#, "a key stands twice: a at line 1 column 12"),
            (r#"{"a": [{"b": 1, "b": 2}]}"#, "a key stands twice: b at line 1 column 19"),
            (r#"{"a": "x\u0000"}"#, "the text holds the character U+0000 at line 1 column 15"),
            ("{\"a\": \"x\0\"}", "control character (\\u0000-\\u001F) found while parsing a string at line 1 column 9"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
        assert_eq!(parse_any_character(r#"{"a": "x\u0000"}"#).unwrap()["a"], "x\0");
        assert!(parse_any_character(r#"{"a": {"b": 1, "b": 1}}"#).is_err());
        assert!(parse("{} {}").is_err() && parse(&"[".repeat(200)).is_err());
    }
}
