//! Opening a model and the three calls. Where in the walk: strategies build requests, this answers them.

use crate::{Completion, Endpoint, Error, GenerateRequest, GenerateResult, Local, Result, ScoreRequest, ScoreResult};
use aloe_record::{Cancel, Progress};
use aloe_tensor::Dtype;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How a model is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Type of the weights in memory; activations and sums are f32 in both.
    pub dtype: Dtype,
    /// Threads; 0 takes all cores.
    pub threads: usize,
    /// The most memory for keys and values, in bytes.
    pub kv_budget_bytes: usize,
    /// The most sequences decoded in one step.
    pub max_batch: usize,
    /// Folder or `.gguf` file whose tokenizer and template render prompts for an endpoint.
    pub tokenizer: Option<PathBuf>,
    /// Let an endpoint apply its own chat template. Its rendering is unknown to us and recorded as "server template".
    pub server_template: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            dtype: Dtype::Bf16,
            threads: 0,
            kv_budget_bytes: 2 << 30,
            max_batch: 32,
            tokenizer: None,
            server_template: false,
        }
    }
}

/// Everything that decides an answer beside the request: part of every cache key and record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineIdentity {
    /// The model's name: folder name, file name, or the endpoint's model.
    pub name: String,
    /// Digest of the weights; of an endpoint, what its `/v1/models` says.
    pub weights: String,
    /// Digest of tokenizer and chat template; `server template` where the server renders.
    pub text: String,
    /// `f32`, `bf16`, or `unknown` for an endpoint.
    pub dtype: String,
    /// The CPU path without the number of threads, or the endpoint's address.
    pub path: String,
}

/// A model that answers.
pub enum Engine {
    /// Weights in this process.
    Local(Box<Local>),
    /// An OpenAI-compatible server.
    Endpoint(Box<Endpoint>),
}

impl Engine {
    /// Opens a Hugging Face folder, a `.gguf` file, or `http(s)://host:port/v1#model`.
    pub fn open(model: &str, options: &EngineOptions) -> Result<Self> {
        if model.starts_with("http://") || model.starts_with("https://") {
            return Ok(Self::Endpoint(Box::new(Endpoint::open(model, options)?)));
        }
        let path = Path::new(model);
        if !path.exists() {
            return Err(Error::Open {
                model: model.to_owned(),
                reason: "no such folder or file; fetch one with `aloe pull SOURCE --out DIR`".to_owned(),
            });
        }
        Ok(Self::Local(Box::new(Local::open(path, options)?)))
    }

    /// The log-probability of each continuation of each request, in the order of the requests.
    pub fn score(&self, requests: &[ScoreRequest], progress: &Progress, cancel: &Cancel) -> Result<Vec<ScoreResult>> {
        match self {
            Self::Local(local) => local.score(requests, progress, cancel),
            Self::Endpoint(endpoint) => endpoint.score(requests, progress, cancel),
        }
    }

    /// `n` answers to each request, in the order of the requests.
    pub fn generate(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        for request in requests {
            if let Some(mistake) = request.sampling.mistakes().into_iter().next() {
                return Err(Error::Request { id: request.id.clone(), reason: mistake });
            }
        }
        match self {
            Self::Local(local) => local.generate(requests, progress, cancel),
            Self::Endpoint(endpoint) => endpoint.generate(requests, progress, cancel),
        }
    }

    /// One answer, its text handed to `on_text` as it grows. An endpoint hands it over at once.
    pub fn generate_streaming(
        &self,
        request: &GenerateRequest,
        cancel: &Cancel,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion> {
        if let Some(mistake) = request.sampling.mistakes().into_iter().next() {
            return Err(Error::Request { id: request.id.clone(), reason: mistake });
        }
        match self {
            Self::Local(local) => local.generate_streaming(request, cancel, on_text),
            Self::Endpoint(endpoint) => {
                let results = endpoint.generate(std::slice::from_ref(request), &Progress::silent(), cancel)?;
                let completion = results.into_iter().flat_map(|result| result.completions).next();
                let completion = completion.ok_or_else(|| Error::Request {
                    id: request.id.clone(),
                    reason: "the endpoint returned no completion".to_owned(),
                })?;
                on_text(&completion.text);
                Ok(completion)
            }
        }
    }

    /// What decides the answers beside the requests.
    pub fn identity(&self) -> &EngineIdentity {
        match self {
            Self::Local(local) => &local.identity,
            Self::Endpoint(endpoint) => &endpoint.identity,
        }
    }

    /// Gives the model another name in results, such as the stage that made it. Answers do not depend on it.
    pub fn rename(&mut self, name: &str) {
        let identity = match self {
            Self::Local(local) => &mut local.identity,
            Self::Endpoint(endpoint) => &mut endpoint.identity,
        };
        name.clone_into(&mut identity.name);
    }

    /// Tokenizer and template, where this side has them.
    pub fn text(&self) -> Option<&aloe_text::TextModel> {
        match self {
            Self::Local(local) => Some(&local.text),
            Self::Endpoint(endpoint) => endpoint.text.as_ref(),
        }
    }
}
