//! The engine's calls against OpenAI-compatible servers (vLLM, SGLang, llama-server).
//!
//! Prompts go out as token ids that we rendered, so both sides see the same tokens and a user's text cannot become a
//! control token. A server that gives no prompt log-probabilities is found by a probe and refused for scoring. Chat
//! requests that the server renders happen only on request and are recorded as "server template". The samples of a prompt are
//! asked for together where the server takes that; sample `i` has the seed of the first plus `i`, as vLLM and
//! llama-server count them.
//!
//! Reading order: `listing` (which servers, which model), `announced` (servers of a job, found by files), `probe` (what they can do), `samples`, `replicas` (one request through to
//! its answer), `health`, `prompt_logps`, `next_token`, `answer` and `vectors` (what is believed), `canary` and `watch` (whether the weights are still
//! the same), `journal` (what a kill must not lose); `embeddings`.

pub mod announced;
mod answer;
mod canary;
mod embeddings;
#[cfg(test)]
mod embeddings_tests;
mod health;
mod identity;
mod journal;
mod listing;
mod next_token;
mod probe;
mod prompt_logps;
mod replicas;
mod samples;
#[cfg(test)]
mod scoring_tests;
mod senders;
#[cfg(test)]
mod tests;
mod vectors;
mod watch;
#[cfg(test)]
mod watch_tests;

pub use crate::endpoint::canary::CanaryAnswers;
pub(crate) use crate::endpoint::embeddings::Embeddings;
pub(crate) use crate::endpoint::journal::Journal;
pub use crate::endpoint::listing::listed;

use crate::encode;
use crate::endpoint::answer::{chatted, completed};
use crate::endpoint::prompt_logps::Form;
use crate::endpoint::replicas::{Asking, Replicas, Reply};
use crate::endpoint::watch::Watch;
use crate::engine::{EngineIdentity, Take};
use crate::{
    Call, EngineOptions, Error, GenerateRequest, GenerateResult, NextTold, Prompt, Result, ScoreRequest, ScoreResult,
    Scored,
};
use aloe_record::{Cancel, Progress};
use aloe_text::{Message, TextModel};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

/// A conversation that neither side may render.
const UNRENDERED: &str = "prompts are sent as token ids; name the model's tokenizer folder with --tokenizer, or let the server \
                          render chat messages with --server-template";

/// Servers with one model, and the model asked for.
pub struct Endpoint {
    replicas: Replicas,
    model: String,
    /// What the servers' lists say of it.
    listed: String,
    is_llama_server: bool,
    context_len: Option<u64>,
    server_template: bool,
    pub(crate) text: Option<TextModel>,
    pub(crate) identity: EngineIdentity,
    /// How the server gives prompt log-probabilities, once the probe has found out, and those of the canary.
    scored: Mutex<Option<(Form, Arc<Watch>)>>,
    /// How the server tells probable next tokens after raw texts and after conversations, once found out.
    next_told: Mutex<[Option<NextTold>; 2]>,
    /// The canary of generated answers, once asked; none where the server does not take it.
    drawn: Mutex<Option<Option<Arc<Watch>>>>,
    /// The model that the first answer named.
    said: Mutex<Option<String>>,
    /// Sampling fields that the server does not know and that are off.
    unknown_fields: Mutex<Vec<&'static str>>,
    /// The most samples that are asked for in one request.
    n_at_once: AtomicUsize,
    /// Whether several samples came in one answer.
    knows_n: AtomicBool,
}

impl Endpoint {
    /// Opens `http(s)://host:port/v1#model`, or several servers of one model with commas between their addresses; without
    /// `#model` the only model served is taken.
    pub fn open(address: &str, options: &EngineOptions) -> Result<Self> {
        let opened = listing::open(address, options)?;
        let text = options.tokenizer.as_deref().map(open_text).transpose()?;
        let identity = EngineIdentity {
            name: opened.model.clone(),
            weights: format!("endpoint {}", opened.listed),
            text: rendered_by(text.as_ref().filter(|_| !options.server_template)),
            dtype: "unknown".to_owned(),
            path: "endpoint".to_owned(),
        };
        Ok(Self {
            replicas: Replicas::new(opened.clients, &opened.model, &opened.listed, options.connections, &opened.out),
            model: opened.model,
            listed: opened.listed,
            is_llama_server: opened.is_llama_server,
            context_len: opened.context_len,
            server_template: options.server_template,
            text,
            identity,
            scored: Mutex::new(None),
            next_told: Mutex::default(),
            drawn: Mutex::new(None),
            said: Mutex::new(None),
            unknown_fields: Mutex::default(),
            n_at_once: AtomicUsize::new(usize::MAX),
            knows_n: AtomicBool::new(false),
        })
    }

    /// Opens the servers announced in `folder`. They are known by the digest of their weights, since where they listen, and what they
    /// call their model, is another thing in the next job.
    pub(crate) fn open_announced(folder: &Path, options: &EngineOptions) -> Result<Self> {
        let job = std::env::var(announced::JOB_VARIABLE).ok().filter(|job| !job.is_empty());
        let servers = announced::read(folder, options.model_sha256.as_deref(), job.as_deref())?;
        let mut endpoint = Self::open(&announced::address(&servers), options)?;
        if let Some(first) = servers.first() {
            let name = Path::new(&first.model).file_name().map(|name| name.to_string_lossy().into_owned());
            endpoint.identity.name = name.unwrap_or_else(|| first.model.clone());
            endpoint.identity.weights = format!("served {}", first.model_sha256);
        }
        Ok(endpoint)
    }

    /// How many requests are under way at once, at most.
    pub(crate) fn connections(&self) -> usize {
        self.replicas.connections()
    }

    /// See [`crate::Engine::keep_answers`].
    pub(crate) fn journal(&self) -> &Journal {
        self.replicas.journal()
    }

    /// The first answers to the canary of scores or of generated answers; `None` where it is not taken.
    pub(crate) fn canary(&self, call: Call, cancel: &Cancel) -> Result<Option<CanaryAnswers>> {
        let watch = match (call, &self.text) {
            (Call::Score, Some(text)) => Some(self.probe(text, cancel)?.1),
            (Call::Score, None) => None,
            (Call::Generate, _) => self.watch_drawn(cancel)?,
        };
        Ok(watch.map(|watch| watch.first_answers()))
    }

    /// See [`crate::Engine::score_into`]. After a fault of the servers no further request is sent.
    pub(crate) fn score_into(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<ScoreResult>,
    ) -> Result<()> {
        let text = self.text.as_ref().ok_or_else(|| {
            self.unusable("scoring sends token ids; name the model's tokenizer folder with --tokenizer")
        })?;
        let (form, watch) = self.probe(text, cancel)?;
        self.replicas.for_each(requests, Some(&watch), cancel, take, |request, asking| {
            asking.request(&request.id);
            let scored = self.score_one(text, form, request, asking);
            progress.advance(1);
            scored
        })
    }

    /// See [`crate::Engine::generate_into`].
    pub(crate) fn generate_into(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<GenerateResult>,
    ) -> Result<()> {
        let watch = self.watch_drawn(cancel)?;
        self.replicas.for_each(requests, watch.as_deref(), cancel, take, |request, asking| {
            crate::engine::check_sampling(request)?;
            asking.request(&request.id);
            let answered = match (&self.text, &request.prompt) {
                (Some(text), prompt) if !self.server_template => self.complete_ids(text, request, prompt, asking),
                (_, Prompt::Messages(messages)) if self.server_template => self.chat(request, messages, asking),
                _ if self.server_template => Err(Error::Request {
                    id: request.id.clone(),
                    reason:
                        "a server's template renders chat messages only: give messages, or leave out --server-template"
                            .to_owned(),
                }),
                _ => Err(self.unusable(UNRENDERED)),
            };
            progress.advance(request.n as u64);
            answered
        })
    }

    /// The server cannot be used for what was asked: the user's to change, so the exit code of wrong input.
    fn unusable(&self, reason: impl Into<String>) -> Error {
        Error::Open { model: format!("{}#{}", self.replicas.bases(), self.model), reason: reason.into() }
    }

    /// An answer must name the model asked for, and the same as every answer before.
    fn check_model(&self, answer: &Value, at: usize) -> Result<()> {
        let Some(name) = answer["model"].as_str() else { return Ok(()) };
        if !listing::may_be(name, &self.model, &self.listed) {
            let reason = format!("the answer is by the model {name:?}, {:?} was asked", self.model);
            return Err(self.replicas.error(at, reason));
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.as_deref() {
            Some(first) if first != name => Err(self
                .replicas
                .error(at, format!("the model changed: an answer was by {first:?}, this one by {name:?}"))),
            Some(_) => Ok(()),
            None => {
                *said = Some(name.to_owned());
                Ok(())
            }
        }
    }

    /// (log-probability, was the most probable) for each id of `ids` from the second on.
    fn prompt_logps(
        &self,
        text: &TextModel,
        form: Form,
        ids: &[u32],
        id: &str,
        asking: &Asking,
    ) -> Result<Vec<(f64, bool)>> {
        let body = form.body(&self.model, ids);
        let kept = self.replicas.journal().request("/completions", &body);
        if let Some(scored) = kept.found() {
            return Ok(scored);
        }
        match self.replicas.ask("/completions", &body, asking)? {
            Reply::Refused(reason) => Err(Error::Request { id: id.to_owned(), reason }),
            Reply::Json(answer, at) => {
                self.check_model(&answer, at)?;
                let wrong = |reason| {
                    let reason = format!("the answer to a prompt of {} tokens cannot be used: {reason}", ids.len());
                    self.replicas.unusable(at, asking, reason)
                };
                let scored = form.read(&answer, ids, |id| text.tokenizer.token(id)).map_err(wrong)?;
                kept.keep(&scored, self.replicas.base(at));
                Ok(scored)
            }
        }
    }

    fn score_one(&self, text: &TextModel, form: Form, request: &ScoreRequest, asking: &Asking) -> Result<ScoreResult> {
        let (prompt_ids, ids_of_all) = encode::score_ids(text, request)?;
        let mut continuations = Vec::new();
        let refuse = |reason: &str| Error::Request { id: request.id.clone(), reason: reason.to_owned() };
        if prompt_ids.is_empty() {
            return Err(refuse("the prompt has no tokens"));
        }
        if request.continuations.is_empty() {
            let scored = self.prompt_logps(text, form, &prompt_ids, &request.id, asking)?;
            continuations.push(to_scored(prompt_ids[1..].to_vec(), &scored));
        }
        for ids in ids_of_all {
            if ids.is_empty() {
                return Err(refuse("a continuation has no tokens"));
            }
            let whole: Vec<u32> = prompt_ids.iter().chain(&ids).copied().collect();
            let scored = self.prompt_logps(text, form, &whole, &request.id, asking)?;
            let n_ids = ids.len();
            continuations.push(to_scored(ids, &scored[scored.len() - n_ids..]));
        }
        Ok(ScoreResult { id: request.id.clone(), prompt_ids, continuations })
    }

    fn complete_ids(
        &self,
        text: &TextModel,
        request: &GenerateRequest,
        prompt: &Prompt,
        asking: &Asking,
    ) -> Result<GenerateResult> {
        let prompt_ids = encode::prompt_ids(text, prompt)?;
        let mut stop_ids = text.stop_ids();
        stop_ids.extend(&request.sampling.stop_ids);
        let body = json!({"prompt": prompt_ids, "stop_token_ids": stop_ids, "return_token_ids": true});
        let completions = self.samples(request, "/completions", &body, completed, Some(&prompt_ids), asking)?;
        Ok(GenerateResult { id: request.id.clone(), prompt_ids: Some(prompt_ids), completions })
    }

    fn chat(&self, request: &GenerateRequest, messages: &[Message], asking: &Asking) -> Result<GenerateResult> {
        let mut body = json!({ "messages": messages });
        if !request.sampling.stop_ids.is_empty() {
            body["stop_token_ids"] = json!(request.sampling.stop_ids);
        }
        let completions = self.samples(request, "/chat/completions", &body, chatted, None, asking)?;
        Ok(GenerateResult { id: request.id.clone(), prompt_ids: None, completions })
    }
}

/// Who turns messages into tokens: this side's tokenizer and template, or the server.
fn rendered_by(text: Option<&TextModel>) -> String {
    text.map_or_else(|| "server template".to_owned(), TextModel::digest)
}

fn open_text(path: &Path) -> Result<TextModel> {
    let source = aloe_model::ModelSource::open(path);
    match source.as_ref().ok().and_then(aloe_model::ModelSource::gguf_metadata) {
        Some(metadata) => Ok(TextModel::from_gguf(metadata)?),
        None => Ok(TextModel::open(path)?),
    }
}

fn to_scored(ids: Vec<u32>, scored: &[(f64, bool)]) -> Scored {
    Scored {
        ids,
        logps: scored.iter().map(|&(logp, _)| logp).collect(),
        is_greedy: scored.iter().all(|&(_, greedy)| greedy),
    }
}
