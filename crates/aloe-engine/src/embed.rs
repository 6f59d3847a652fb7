//! Sentence embeddings by a BERT-type encoder (all-MiniLM-L6-v2 and its kind): mean pooling, unit length.

use crate::local::available_threads;
use crate::{Error, Result};
use aloe_model::BertEncoder;
use aloe_record::{Cancel, Progress};
use aloe_tensor::Device;
use aloe_text::Tokenizer;
use std::path::Path;

/// A sentence encoder with its tokenizer.
pub struct Embedder {
    encoder: BertEncoder,
    tokenizer: Tokenizer,
    max_len_tokens: usize,
    name: String,
}

impl Embedder {
    /// Opens a folder with `config.json`, `model.safetensors` and `tokenizer.json`.
    pub fn open(folder: &Path, threads: usize) -> Result<Self> {
        if !folder.join("config.json").exists() {
            return Err(Error::Open {
                model: folder.display().to_string(),
                reason: "no config.json in it; an embedding model is a Hugging Face folder of a BERT-type encoder"
                    .into(),
            });
        }
        let threads = if threads == 0 { available_threads() } else { threads };
        let device = Device::cpu(threads);
        let encoder = BertEncoder::open(folder, &device)?;
        let tokenizer = Tokenizer::open(folder)?;
        let name = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let max_len_tokens = encoder.max_len_tokens;
        Ok(Self { encoder, tokenizer, max_len_tokens, name })
    }

    /// The folder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One unit vector per text; texts are cut at the encoder's length, as sentence-transformers does.
    pub fn embed(&self, texts: &[String], progress: &Progress, cancel: &Cancel) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(16) {
            cancel.check()?;
            let ids: Vec<Vec<u32>> = chunk.iter().map(|text| self.framed(text)).collect::<Result<_>>()?;
            let inputs: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
            vectors.extend(self.encoder.embed(&inputs)?);
            progress.advance(chunk.len() as u64);
        }
        Ok(vectors)
    }

    /// The ids with the tokenizer's frame (`[CLS]` ... `[SEP]`); a text that is too long loses its end, not its frame.
    fn framed(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_framed(text)?;
        if ids.len() > self.max_len_tokens {
            let last = ids[ids.len() - 1];
            ids.truncate(self.max_len_tokens - 1);
            ids.push(last);
        }
        Ok(ids)
    }
}
