//! Sentence embeddings with a log in the stage's hidden `.vectors.log`, so that a killed run embeds no text again. Of calls of more than
//! [`MAX_LOGGED`] texts nothing is logged: a vector takes 3 kB there, and taking a log up holds it in memory.
//!
//! Before the log is gone on with, a text that it holds is embedded again: an embedder that answers otherwise is refused.

use crate::meaning::cosine;
use crate::{Error, Result};
use aloe_engine::{Embedder, Embedding};
use aloe_record::log::Log;
use aloe_record::{Cancel, Progress, digest};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// See the file's head.
pub(crate) const MAX_LOGGED: usize = 100_000;

/// Texts between two syncs.
const AT_ONCE: usize = 512;

/// Cosine under which the same text is embedded otherwise; a server's batches move the last bits.
const SAME: f64 = 0.999;

#[derive(Serialize, Deserialize)]
struct Entry {
    /// Digest of embedder and text.
    vector_of: String,
    /// The bits of each number, eight hexadecimal digits.
    bits: String,
    n_tokens: Option<usize>,
    n_cut_tokens: usize,
}

impl Entry {
    fn of(key: &str, embedding: &Embedding) -> Self {
        let bits = embedding.vector.iter().map(|number| format!("{:08x}", number.to_bits())).collect();
        let (n_tokens, n_cut_tokens) = (embedding.n_tokens, embedding.n_cut_tokens);
        Self { vector_of: key.to_owned(), bits, n_tokens, n_cut_tokens }
    }

    fn embedding(&self) -> Option<Embedding> {
        let number = |at: usize| Some(f32::from_bits(u32::from_str_radix(self.bits.get(at..at + 8)?, 16).ok()?));
        let vector: Option<Vec<f32>> = (0..self.bits.len()).step_by(8).map(number).collect();
        Some(Embedding { vector: vector?, n_tokens: self.n_tokens, n_cut_tokens: self.n_cut_tokens })
    }
}

/// The embedding of each text; one that stands there twice is embedded once.
pub(crate) fn embed(
    embedder: &Embedder,
    texts: &[String],
    out: &Path,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<Embedding>> {
    if texts.len() > MAX_LOGGED {
        return Ok(embedder.embed(texts, progress, cancel)?);
    }
    let path = out.join(".vectors.log");
    let (mut log, entries) = Log::open::<Entry>(&path)?;
    let held = entries.into_iter().filter_map(|entry| Some((entry.embedding()?, entry.vector_of)));
    let mut known: HashMap<String, Embedding> = held.map(|(embedding, key)| (key, embedding)).collect();
    let key = |text: &String| {
        let mut hasher = digest::Hasher::default();
        hasher.field(embedder.name().as_bytes());
        hasher.field(text.as_bytes());
        hasher.hex()
    };
    let keys: Vec<String> = texts.iter().map(key).collect();
    if let Some(at) = (0..texts.len()).find(|at| known.contains_key(&keys[*at])) {
        let now = embedder.embed(&texts[at..=at], &Progress::silent(), cancel)?;
        let alike = now.first().map_or(0.0, |now| cosine(&now.vector, &known[&keys[at]].vector));
        if alike < SAME {
            return Err(Error::OtherWeights {
                path,
                difference: format!("a text's embedding has moved to a cosine of {alike:.3}"),
            });
        }
    }
    let mut due: Vec<usize> = (0..texts.len()).filter(|at| !known.contains_key(&keys[*at])).collect();
    due.sort_by_key(|at| &keys[*at]);
    due.dedup_by_key(|at| &keys[*at]);
    due.sort_unstable();
    progress.resume((texts.len() - due.len()) as u64);
    for chunk in due.chunks(AT_ONCE) {
        let wanted: Vec<String> = chunk.iter().map(|at| texts[*at].clone()).collect();
        for (at, embedding) in chunk.iter().zip(embedder.embed(&wanted, progress, cancel)?) {
            log.append(&Entry::of(&keys[*at], &embedding))?;
            known.insert(keys[*at].clone(), embedding);
        }
        log.sync()?;
    }
    Ok(keys.iter().filter_map(|key| known.get(key).cloned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_comes_back_from_the_log_bit_for_bit() {
        let vector = vec![0.1f32, -0.0, f32::MIN_POSITIVE, 1.0 / 3.0];
        let embedding = Embedding { vector, n_tokens: Some(4), n_cut_tokens: 1 };
        let text = serde_json::to_string(&Entry::of("k", &embedding)).unwrap();
        let back = serde_json::from_str::<Entry>(&text).unwrap().embedding().unwrap();
        let bits = |one: &Embedding| one.vector.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(&back), back.n_tokens, back.n_cut_tokens), (bits(&embedding), Some(4), 1));
        let broken = Entry { bits: "3f8".into(), ..Entry::of("k", &embedding) };
        assert!(broken.embedding().is_none());
    }
}
