//! Sentence embeddings by OpenAI-compatible servers on `/v1/embeddings`. Texts go out as texts, and the server's own tokenizer reads
//! them: what it refuses as too long is an error here and never cut.

use super::canary::{Canary, CanaryAnswers};
use super::journal::Journal;
use super::listing;
use super::replicas::{Asking, Replicas, Reply};
use super::vectors;
use super::watch::Watch;
use crate::engine::in_order;
use crate::{EngineOptions, Error, Result};
use aloe_record::{Cancel, Progress};
use serde_json::json;
use std::sync::Arc;

/// Texts in one request.
const BATCH: usize = 32;

/// Answers that the journal takes at most: 131,072 texts, of which one takes some 3 kB there (384 numbers).
const MOST_KEPT: usize = 4096;

/// Servers of one embedding model.
pub(crate) struct Embeddings {
    replicas: Replicas,
    model: String,
    name: String,
    watch: Arc<Watch>,
    /// The length of a vector.
    dim: usize,
}

impl Embeddings {
    /// Opens `http(s)://host:port/v1#model`, or several servers with commas between their addresses, and asks for one vector: a
    /// server without embeddings is refused here.
    pub(crate) fn open(address: &str, options: &EngineOptions) -> Result<Self> {
        let opened = listing::open(address, options)?;
        let replicas = Replicas::new(opened.clients, &opened.model, &opened.listed, options.connections, &opened.out);
        let watch = replicas.watch(Canary::vector(&opened.model), &options.cancel)?.map_err(|reason| Error::Open {
            model: format!("{}#{}", replicas.bases(), opened.model),
            reason: format!(
                "the server gives no embeddings on /v1/embeddings (llama-server wants --embeddings, vLLM an embedding model): {reason}"
            ),
        })?;
        let name = format!("{}, endpoint {}", opened.model, opened.listed);
        Ok(Self { dim: watch.dim(), replicas, model: opened.model, name, watch })
    }

    /// The model's name and what the servers' lists say of it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// See [`crate::Embedder::keep_answers`].
    pub(crate) fn journal(&self) -> &Journal {
        self.replicas.journal()
    }

    /// The first answer to the canary.
    pub(crate) fn canary(&self) -> CanaryAnswers {
        self.watch.first_answers()
    }

    /// One unit vector per text.
    pub(crate) fn embed(&self, texts: &[String], progress: &Progress, cancel: &Cancel) -> Result<Vec<Vec<f32>>> {
        if let Some(at) = texts.iter().position(String::is_empty) {
            return Err(refused(at, "", "a text without tokens has no embedding"));
        }
        let starts: Vec<usize> = (0..texts.len()).step_by(BATCH).collect();
        let batches = in_order(starts.len(), |take| {
            self.replicas.for_each(&starts, Some(&self.watch), cancel, take, |&start, asking| {
                let batch = &texts[start..texts.len().min(start + BATCH)];
                let vectors = self.batch(start, batch, asking);
                progress.advance(batch.len() as u64);
                vectors
            })
        })?;
        Ok(batches.concat())
    }

    /// Vectors as the journal has them; `None` where they are not of this model's length.
    fn read_bits(&self, all: &[String]) -> Option<Vec<Vec<f32>>> {
        let number = |digits: &str| Some(f32::from_bits(u32::from_str_radix(digits, 16).ok()?));
        let vector = |bits: &String| -> Option<Vec<f32>> {
            let found: Vec<f32> =
                (0..bits.len()).step_by(8).map(|at| number(bits.get(at..at + 8)?)).collect::<Option<_>>()?;
            (found.len() == self.dim).then_some(found)
        };
        all.iter().map(vector).collect()
    }

    /// The vectors of the texts from number `start` on. Of a batch that is refused each text is sent alone, to name the one.
    fn batch(&self, start: usize, texts: &[String], asking: &Asking) -> Result<Vec<Vec<f32>>> {
        let body = json!({"model": self.model, "input": texts, "encoding_format": "float"});
        let journal = self.replicas.journal();
        let kept = journal.request("/embeddings", &body);
        if let Some(vectors) = kept.found::<Vec<String>>().and_then(|all| self.read_bits(&all)) {
            return Ok(vectors);
        }
        match self.replicas.ask("/embeddings", &body, asking)? {
            Reply::Json(answer, at) => {
                let vectors = vectors::read(&answer, texts.len(), Some(self.dim))
                    .map_err(|reason| self.replicas.error(at, format!("the embeddings cannot be used: {reason}")))?;
                if journal.n_answers() < MOST_KEPT {
                    kept.keep(&vectors.iter().map(|vector| bits(vector)).collect::<Vec<_>>(), self.replicas.base(at));
                }
                Ok(vectors)
            }
            Reply::Refused(reason) if texts.len() == 1 => Err(refused(start, &texts[0], &reason)),
            Reply::Refused(_) => {
                let each = (0..texts.len()).map(|at| self.batch(start + at, &texts[at..=at], asking));
                Ok(each.collect::<Result<Vec<_>>>()?.concat())
            }
        }
    }
}

/// The bits of each number, eight hexadecimal digits: the same numbers when they are read again.
fn bits(vector: &[f32]) -> String {
    vector.iter().map(|number| format!("{:08x}", number.to_bits())).collect()
}

/// A text that is not taken.
fn refused(at: usize, text: &str, reason: &str) -> Error {
    let n_chars = text.chars().count();
    Error::Request {
        id: String::new(),
        reason: format!("text {at} (of {n_chars} characters) has no embedding: {reason}"),
    }
}
