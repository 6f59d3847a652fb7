//! Sentence embeddings of unit length: by a BERT-type encoder (all-MiniLM-L6-v2 and its kind; mean or CLS pooling, as the folder
//! says), by the last token's state of a causal model, or by an OpenAI-compatible server. Local weights and sums are f32.

use crate::endpoint::Embeddings;
use crate::local::available_threads;
use crate::{CanaryAnswers, EngineOptions, Error, Result};
use aloe_model::{Arch, BertEncoder, Decoder, ModelSource, PackedBatch, Pooling, unit};
use aloe_record::{Cancel, Progress};
use aloe_tensor::{Device, Dtype};
use aloe_text::Tokenizer;
use std::path::Path;

/// One text's embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Of unit length.
    pub vector: Vec<f32>,
    /// Tokens read, the frame included; `None` where a server does not tell.
    pub n_tokens: Option<usize>,
    /// Tokens at the end of the text that were not read.
    pub n_cut_tokens: usize,
}

/// What turns texts into vectors.
pub enum Embedder {
    /// Weights in this process.
    Local(Box<LocalEmbedder>),
    /// A server's `/v1/embeddings`.
    Endpoint(Box<EndpointEmbedder>),
}

/// A sentence encoder with its tokenizer.
pub struct LocalEmbedder {
    model: Model,
    tokenizer: Tokenizer,
    max_len_tokens: usize,
    name: String,
}

/// Servers with one embedding model.
pub struct EndpointEmbedder(Embeddings);

enum Model {
    Bert(Box<BertEncoder>),
    Causal(Box<Decoder>),
}

impl Embedder {
    /// Opens a folder, or `http(s)://host:port/v1#model`; of the options the threads are used, or those of endpoints.
    pub fn open(model: &str, options: &EngineOptions) -> Result<Self> {
        if model.starts_with("http://") || model.starts_with("https://") {
            return Ok(Self::Endpoint(Box::new(EndpointEmbedder(Embeddings::open(model, options)?))));
        }
        Ok(Self::Local(Box::new(LocalEmbedder::open(Path::new(model), options.threads)?)))
    }

    /// The folder's name, or the served model's and what the servers' lists say of it.
    pub fn name(&self) -> &str {
        match self {
            Self::Local(local) => &local.name,
            Self::Endpoint(endpoint) => endpoint.0.name(),
        }
    }

    /// Keeps each answer of a server in the file at `path` as it comes, up to some hundred thousand texts, as
    /// [`crate::Engine::keep_answers`] does, and returns how many an earlier process left there. Nothing is kept of a local encoder.
    pub fn keep_answers(&self, path: &Path, run: &str) -> Result<usize> {
        match self {
            Self::Local(_) => Ok(0),
            Self::Endpoint(endpoint) => endpoint.0.journal().open(path, run),
        }
    }

    /// A server's first answer to a known text; `None` for a local encoder.
    pub fn canary(&self) -> Option<CanaryAnswers> {
        match self {
            Self::Local(_) => None,
            Self::Endpoint(endpoint) => Some(endpoint.0.canary()),
        }
    }

    /// One unit vector per text. A text beyond a local encoder's length loses its end, as in sentence-transformers, and that is told;
    /// what a server refuses as too long is an error.
    pub fn embed(&self, texts: &[String], progress: &Progress, cancel: &Cancel) -> Result<Vec<Embedding>> {
        self.embed_each(texts, progress, cancel)?.into_iter().collect()
    }

    /// As [`Embedder::embed`], but a text that has no embedding by a local encoder gets its error in its place and the others go on.
    pub fn embed_each(&self, texts: &[String], progress: &Progress, cancel: &Cancel) -> Result<Vec<Result<Embedding>>> {
        let endpoint = match self {
            Self::Local(local) => return local.embed_each(texts, progress, cancel),
            Self::Endpoint(endpoint) => endpoint,
        };
        let vectors = endpoint.0.embed(texts, progress, cancel)?;
        Ok(vectors.into_iter().map(|vector| Ok(Embedding { vector, n_tokens: None, n_cut_tokens: 0 })).collect())
    }
}

impl LocalEmbedder {
    /// Opens a folder with `config.json`, `model.safetensors` and `tokenizer.json`. A folder whose `1_Pooling` takes the last
    /// token, or whose model is no BERT, is a causal model.
    fn open(folder: &Path, threads: usize) -> Result<Self> {
        let device = Device::cpu(if threads == 0 { available_threads() } else { threads });
        let model = if is_bert(folder)? {
            Model::Bert(Box::new(BertEncoder::open(folder, &device)?))
        } else {
            if let Some(pooling @ (Pooling::Mean | Pooling::Cls)) =
                Pooling::read(&folder.join("1_Pooling/config.json"))?
            {
                let reason = format!("a causal model pools its last token; 1_Pooling asks for {pooling:?}");
                return Err(Error::Open { model: folder.display().to_string(), reason });
            }
            Model::Causal(Box::new(Decoder::open(&ModelSource::open(folder)?, Dtype::F32, &device)?))
        };
        let tokenizer = Tokenizer::open(folder)?;
        let max_len_tokens = match &model {
            Model::Bert(encoder) => encoder.max_len_tokens,
            Model::Causal(decoder) => decoder.config.max_position_embeddings,
        };
        Ok(Self { model, tokenizer, max_len_tokens, name: name_of(folder) })
    }

    fn embed_each(&self, texts: &[String], progress: &Progress, cancel: &Cancel) -> Result<Vec<Result<Embedding>>> {
        let mut found = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(16) {
            cancel.check()?;
            let framed: Vec<Result<(Vec<u32>, usize)>> = chunk.iter().map(|text| self.framed(text)).collect();
            let inputs: Vec<&[u32]> = framed.iter().flatten().map(|(ids, _)| ids.as_slice()).collect();
            let mut vectors = if inputs.is_empty() { Vec::new() } else { self.embed_ids(&inputs)? }.into_iter();
            found.extend(framed.into_iter().map(|framed| {
                let (ids, n_cut_tokens) = framed?;
                let vector = vectors.next().expect("a vector for each list of ids");
                Ok(Embedding { vector, n_tokens: Some(ids.len()), n_cut_tokens })
            }));
            progress.advance(chunk.len() as u64);
        }
        Ok(found)
    }

    /// One unit vector per list of ids.
    fn embed_ids(&self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let decoder = match &self.model {
            Model::Bert(encoder) => return Ok(encoder.embed(inputs)?),
            Model::Causal(decoder) => decoder,
        };
        let batch = PackedBatch::from_documents(inputs);
        let (hidden, d) = (decoder.hidden(&batch)?, decoder.config.hidden_size);
        let last = |row: usize| hidden.as_f32()[row * d..][..d].iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        Ok(batch.pieces.iter().map(|rows| unit(&last(rows.end - 1))).collect())
    }

    /// The ids with the tokenizer's frame (`[CLS]` ... `[SEP]`), and how many were cut off: a text that is too long loses its end, not
    /// its frame.
    fn framed(&self, text: &str) -> Result<(Vec<u32>, usize)> {
        let mut ids = self.tokenizer.encode_framed(text)?;
        let n_before = self.tokenizer.with_bos(Vec::new()).len();
        let n_after = self.tokenizer.encode_framed("")?.len() - n_before;
        let n_cut = ids.len().saturating_sub(self.max_len_tokens);
        if n_cut > 0 {
            ids.drain(self.max_len_tokens - n_after..ids.len() - n_after);
        }
        if ids.is_empty() {
            let reason = "a text without tokens has no embedding".to_owned();
            return Err(Error::Request { id: String::new(), reason });
        }
        Ok((ids, n_cut))
    }
}

/// Whether the folder's model is a BERT.
fn is_bert(folder: &Path) -> Result<bool> {
    let path = folder.join("config.json");
    if !path.exists() {
        let reason = "no config.json in it; an embedding model is a Hugging Face folder of a BERT-type encoder or a causal model";
        return Err(Error::Open { model: folder.display().to_string(), reason: reason.into() });
    }
    let config: serde_json::Value = aloe_record::atomic::read_json(&path)?;
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let causal = Arch::ALL.map(Arch::model_type);
    if model_type != "bert" && !causal.contains(&model_type) {
        let reason = format!(
            "{}: model_type: \"{model_type}\" is not supported; an embedder is bert, {} or {}",
            path.display(),
            causal[..causal.len() - 1].join(", "),
            causal[causal.len() - 1]
        );
        return Err(Error::Open { model: folder.display().to_string(), reason });
    }
    Ok(model_type == "bert")
}

pub(crate) fn name_of(folder: &Path) -> String {
    folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_folder_of_another_architecture_is_refused_with_its_file_and_what_is_supported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for (config, found) in [("{\"model_type\": \"roberta\"}", "roberta"), ("{}", "")] {
            std::fs::write(&path, config).unwrap();
            let error = LocalEmbedder::open(dir.path(), 1).err().unwrap().to_string();
            let expected = format!(
                "{}: model_type: \"{found}\" is not supported; an embedder is bert, llama, qwen2 or mistral",
                path.display()
            );
            assert!(error.ends_with(&expected), "{error}");
        }
    }

    /// Golden: transformers' last hidden state of stories260K in f32 (`oracles/tiny_encoders.py`).
    #[test]
    fn the_last_token_of_a_causal_model_gives_the_embedding_of_transformers() {
        let Ok(data) = std::env::var("ALOE_DATA") else {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_DATA is not set");
            eprintln!("not run: ALOE_DATA is not set");
            return;
        };
        let embedder = LocalEmbedder::open(&Path::new(&data).join("models/stories260K"), 2).unwrap();
        let golden: Value =
            serde_json::from_str(include_str!("../../aloe-model/tests/golden/tiny_encoders.json")).unwrap();
        let cases = golden["last"].as_array().unwrap();
        let ids = |case: &Value| -> Vec<u32> { serde_json::from_value(case["ids"].clone()).unwrap() };
        let inputs: Vec<Vec<u32>> = cases.iter().map(ids).collect();
        let found = embedder.embed_ids(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        for (case, found) in cases.iter().zip(found) {
            let expected: Vec<f32> = serde_json::from_value(case["embedding"].clone()).unwrap();
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == expected.len() && worst < 1e-5, "{}: {worst}", case["ids"]);
        }
    }
}
