//! `/v1/embeddings`: the state of a text's last token after the model's final norm, of unit length, as `aloe embed` has it of a causal model. A
//! text that is too long is refused and never cut.

use crate::app::{App, BodyRoom};
use crate::asking::{Ear, check_count, hear_all};
use crate::completions::{Given, prompts};
use crate::fields::{Fields, IsOff};
use crate::refusal::{Refusal, json_response};
use aloe_engine::{Ask, Prompt};
use aloe_text::TextModel;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields that are not honoured.
const OFF: [(&str, IsOff); 3] =
    [("dimensions", IsOff::Empty), ("user", IsOff::Always), ("truncate_prompt_tokens", IsOff::Empty)];

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, mut fields: Fields, room: BodyRoom) -> Result<Response, Refusal> {
    app.take_model(&mut fields)?;
    let given = fields.take("input").ok_or_else(|| Refusal::field("input", "is missing"))?;
    let texts = prompts("input", &given)?;
    let is_base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Refusal::field("encoding_format", "must be float or base64")),
    };
    fields.refuse_unless_off(&OFF)?;
    fields.finish()?;
    check_count(&app, "input", texts.len(), 1)?;
    let encode = |text: &TextModel, given: Given| match given {
        Given::Ids(ids) => Ok(ids),
        Given::Text(words) => text.tokenizer.encode_framed(&words),
    };
    let ids = app.encode("input", texts, 0, encode).await?;
    let asks: Vec<Ask> = ids.into_iter().map(|ids| Ask::Embed { prompt: Prompt::Ids(ids) }).collect();
    let n_answers = vec![0; asks.len()];
    let mut ear = Ear::ask(&app, asks, room)?;
    let vectors = hear_all(&mut ear, &n_answers).await?.into_iter().filter_map(|heard| heard.vector);
    let (mut data, mut n_tokens) = (Vec::new(), 0);
    for (index, (vector, n)) in vectors.enumerate() {
        n_tokens += n;
        let embedding = if is_base64 { json!(base64(&bytes(&vector))) } else { json!(vector) };
        data.push(json!({"object": "embedding", "index": index, "embedding": embedding}));
    }
    let mut body = app.head("embd", "list");
    body["data"] = Value::Array(data);
    body["usage"] = json!({"prompt_tokens": n_tokens, "total_tokens": n_tokens});
    Ok(json_response(&body))
}

/// Little-endian f32, as numpy reads them.
fn bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&bytes(&[1.0, -2.5])), "AACAPwAAIMA=");
    }
}
