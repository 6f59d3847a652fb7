//! Opening a model and the three calls. Where in the walk: strategies build requests, this answers them.

use crate::endpoint::Journal;
use crate::endpoint::announced::SERVERS;
use crate::{
    CacheCounts, Cached, CanaryAnswers, Completion, Continuation, Endpoint, EngineCounts, Error, GenerateRequest,
    GenerateResult, Local, MAX_SAMPLES, NextRequest, NextResult, NextTold, Queue, Result, ScoreRequest, ScoreResult,
};
use aloe_model::WeightFormat;
use aloe_record::{Cancel, Progress};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a model is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Form of the weights in memory; activations and sums are f32 in all. `None` takes bf16, and the blocks of a `.gguf` file
    /// as they are. Weights are rounded to blocks on load from a folder only: a `.gguf` file has its own.
    pub format: Option<WeightFormat>,
    /// Threads; 0 takes all cores.
    pub threads: usize,
    /// The most memory for keys and values, in bytes; `None` takes a quarter of the memory that is free at opening.
    pub kv_budget_bytes: Option<usize>,
    /// The most sequences decoded in one step.
    pub max_batch: usize,
    /// Folder or `.gguf` file whose tokenizer and template render prompts for an endpoint.
    pub tokenizer: Option<PathBuf>,
    /// Let an endpoint apply its own chat template. Its rendering is unknown to us and recorded as "server template".
    pub server_template: bool,
    /// The longest an endpoint's one answer is waited for.
    pub request_timeout: Duration,
    /// Requests that an endpoint's server is sent at once, at least 1.
    pub connections: usize,
    /// The digest of the weights that servers found by their files must announce; `None` takes what they announce.
    pub model_sha256: Option<String>,
    /// Ends the wait for servers that do not answer while they are opened.
    pub cancel: Cancel,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            format: None,
            threads: 0,
            kv_budget_bytes: None,
            max_batch: 32,
            tokenizer: None,
            server_template: false,
            request_timeout: Duration::from_secs(600),
            connections: 16,
            model_sha256: None,
            cancel: Cancel::default(),
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
    /// `f32`, `bf16`, `q8`, `q4`, `gguf` (the blocks of the file), or `unknown` for an endpoint.
    pub dtype: String,
    /// The CPU path without the number of threads, or the endpoint's address.
    pub path: String,
}

/// What is asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Log-probabilities of given continuations.
    Score,
    /// Answers.
    Generate,
}

/// Takes an answer as it comes: the request's place in the call, and the answer or, where the request itself cannot be answered, its
/// error. A `Break` ends the call; it is no error.
pub type Take<'a, R> = dyn FnMut(usize, Result<R>) -> ControlFlow<()> + 'a;

/// A model that answers.
pub enum Engine {
    /// Weights in this process.
    Local(Box<Local>),
    /// An OpenAI-compatible server.
    Endpoint(Box<Endpoint>),
    /// One of the two, asked only for what a cache on disk does not hold.
    Cached(Box<Cached>),
}

impl Engine {
    /// Opens a Hugging Face folder, a `.gguf` file, or `http(s)://host:port/v1#model`; several servers of one model are written
    /// with commas between their addresses, `http://a:1/v1,http://b:2/v1#model`; servers that announced themselves by files in a folder
    /// `servers:FOLDER`.
    pub fn open(model: &str, options: &EngineOptions) -> Result<Self> {
        let announced = model.strip_prefix(SERVERS).map(Path::new);
        if announced.is_some() || model.starts_with("http://") || model.starts_with("https://") {
            if matches!(options.format, Some(WeightFormat::Q8 | WeightFormat::Q4)) {
                let reason = "an endpoint's weights are its server's; leave --quantize out".to_owned();
                return Err(Error::Open { model: model.to_owned(), reason });
            }
            let endpoint = match announced {
                Some(folder) => Endpoint::open_announced(folder, options)?,
                None => Endpoint::open(model, options)?,
            };
            return Ok(Self::Endpoint(Box::new(endpoint)));
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

    /// Puts a cache in the folder `cache` before the model: what it was asked before, by whichever process, it is not asked again.
    pub fn with_answer_cache(self, cache: &Path) -> Result<Self> {
        Ok(Self::Cached(Box::new(Cached::open(self, cache)?)))
    }

    /// What the answer cache was asked and knew; `None` without one.
    pub fn cache_counts(&self) -> Option<CacheCounts> {
        match self {
            Self::Cached(cached) => Some(cached.counts()),
            Self::Local(_) | Self::Endpoint(_) => None,
        }
    }

    /// The log-probability of each continuation of each request, in the order of the requests. A request that cannot be
    /// answered fails the call before anything is computed.
    pub fn score(&self, requests: &[ScoreRequest], progress: &Progress, cancel: &Cancel) -> Result<Vec<ScoreResult>> {
        match self {
            Self::Local(local) => local.score(requests, progress, cancel),
            Self::Endpoint(_) => self.score_each(requests, progress, cancel)?.into_iter().collect(),
            Self::Cached(cached) => cached.score(requests, progress, cancel),
        }
    }

    /// As [`Engine::score`], but a request that cannot be answered gets its error in its place and the others go on. An
    /// error of the whole call is an interrupt or a fault of the model. A fault of a server stands in the places of the requests
    /// that it left without an answer; what was answered is there.
    pub fn score_each(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<Result<ScoreResult>>> {
        each(requests.len(), |take| self.score_into(requests, progress, cancel, take))
    }

    /// `n` answers to each request, in the order of the requests. A request that cannot be answered fails the call before
    /// anything is computed.
    pub fn generate(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        requests.iter().try_for_each(check_sampling)?;
        match self {
            Self::Local(local) => local.generate(requests, progress, cancel),
            Self::Endpoint(_) => self.generate_each(requests, progress, cancel)?.into_iter().collect(),
            Self::Cached(cached) => cached.generate(requests, progress, cancel),
        }
    }

    /// As [`Engine::generate`], but a request that cannot be answered gets its error in its place and the others go on.
    pub fn generate_each(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<Result<GenerateResult>>> {
        each(requests.len(), |take| self.generate_into(requests, progress, cancel, take))
    }

    /// Hands each answer to `take` as it comes, in any order. A request that cannot be answered hands its error over and the others go
    /// on. A fault of model or servers, or an interrupt, is the call's error, after everything that was answered.
    pub fn score_into(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<ScoreResult>,
    ) -> Result<()> {
        match self {
            Self::Local(local) => local.score_into(requests, progress, cancel, take),
            Self::Endpoint(endpoint) => endpoint.score_into(requests, progress, cancel, take),
            Self::Cached(cached) => cached.score_into(requests, progress, cancel, take),
        }
    }

    /// As [`Engine::score_into`] for [`Engine::generate`].
    pub fn generate_into(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<GenerateResult>,
    ) -> Result<()> {
        match self {
            Self::Local(local) => local.generate_into(requests, progress, cancel, take),
            Self::Endpoint(endpoint) => endpoint.generate_into(requests, progress, cancel, take),
            Self::Cached(cached) => cached.generate_into(requests, progress, cancel, take),
        }
    }

    /// Whether the model can be scored: a server may give no log-probabilities of prompts, or be sent no ids.
    pub fn gives_prompt_logps(&self, cancel: &Cancel) -> Result<bool> {
        match self.without_cache() {
            Self::Endpoint(endpoint) => endpoint.gives_prompt_logps(cancel),
            Self::Local(_) | Self::Cached(_) => Ok(true),
        }
    }

    /// How [`Engine::next_into`] is told of next tokens, found out by a probe of a server: exactly where the model can be scored, else among
    /// the most probable tokens that the server names. `is_chat` says whether the prompts are conversations. The server's own template
    /// renders those, and a raw text as a user's message, only where it was opened to do so.
    pub fn next_told(&self, is_chat: bool, cancel: &Cancel) -> Result<NextTold> {
        match self.without_cache() {
            Self::Endpoint(endpoint) => endpoint.next_told(is_chat, cancel),
            Self::Local(_) | Self::Cached(_) => Ok(NextTold::Scored),
        }
    }

    /// As [`Engine::score_into`], the log-probabilities of texts as the next token, as [`Engine::next_told`] said. No cache is asked for what
    /// a server names.
    pub fn next_into(
        &self,
        requests: &[NextRequest],
        told: NextTold,
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<NextResult>,
    ) -> Result<()> {
        if let (Self::Endpoint(endpoint), NextTold::Completions | NextTold::Chat) = (self.without_cache(), told) {
            return endpoint.next_into(requests, told, progress, cancel, take);
        }
        let scored = |request: &NextRequest| ScoreRequest {
            id: request.id.clone(),
            prompt: request.prompt.clone(),
            continuations: request.wanted.iter().cloned().map(Continuation::Text).collect(),
        };
        let scored: Vec<ScoreRequest> = requests.iter().map(scored).collect();
        self.score_into(&scored, progress, cancel, &mut |at, answer| {
            let told = |result: ScoreResult| NextResult {
                id: result.id,
                logps: result.continuations.iter().map(|one| Some(one.sum())).collect(),
                n_prompt_tokens: Some(result.prompt_ids.len()),
                prompt_ids: Some(result.prompt_ids),
                told: NextTold::Scored,
            };
            take(at, answer.map(told))
        })
    }

    /// What a local model computed since it was opened; `None` for an endpoint.
    pub fn counts(&self) -> Option<EngineCounts> {
        match self {
            Self::Local(local) => Some(local.counts()),
            Self::Endpoint(_) => None,
            Self::Cached(cached) => cached.engine.counts(),
        }
    }

    /// One answer, its text handed to `on_text` as it grows. An endpoint hands it over at once. No cache is asked.
    pub fn generate_streaming(
        &self,
        request: &GenerateRequest,
        cancel: &Cancel,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion> {
        check_sampling(request)?;
        match self {
            Self::Local(local) => local.generate_streaming(request, cancel, on_text),
            Self::Endpoint(_) => {
                let mut results = self.generate_each(std::slice::from_ref(request), &Progress::silent(), cancel)?;
                let completion = results.pop().transpose()?.and_then(|result| result.completions.into_iter().next());
                let completion = completion.ok_or_else(|| Error::Request {
                    id: request.id.clone(),
                    reason: "the endpoint returned no completion".to_owned(),
                })?;
                on_text(&completion.text);
                Ok(completion)
            }
            Self::Cached(cached) => cached.engine.generate_streaming(request, cancel, on_text),
        }
    }

    /// Answers what `queue` holds, as it comes, until the queue is closed and empty. A request that cannot be answered is told so and the
    /// others go on. A model in this process only; no cache is asked.
    pub fn serve(&self, queue: &Queue, cancel: &Cancel) -> Result<()> {
        match self.without_cache() {
            Self::Local(local) => local.serve(queue, cancel),
            Self::Endpoint(_) | Self::Cached(_) => Err(Error::Open {
                model: self.identity().name.clone(),
                reason: "servers answer for it already; serve a folder or a .gguf file".to_owned(),
            }),
        }
    }

    /// The context of a local model in tokens, and of these as many as the memory budget of keys and values has room for.
    pub fn context_len(&self) -> Option<(usize, usize)> {
        match self.without_cache() {
            Self::Local(local) => Some((local.context_len(), local.room_tokens())),
            Self::Endpoint(_) | Self::Cached(_) => None,
        }
    }

    /// An endpoint's first answers to known questions, asked now if it was not before; `None` for a local model and for servers that
    /// do not take them. Answers of an earlier process may be gone on with when [`CanaryAnswers::difference`] finds none.
    pub fn canary(&self, call: Call, cancel: &Cancel) -> Result<Option<CanaryAnswers>> {
        match self {
            Self::Local(_) => Ok(None),
            Self::Endpoint(endpoint) => endpoint.canary(call, cancel),
            Self::Cached(cached) => cached.engine.canary(call, cancel),
        }
    }

    /// Keeps each answer of an endpoint in the file at `path` as it comes, before a canary vouches for it: what a kill would lose.
    /// Returns how many answers of the same `run` an earlier process left there: they are given in their requests' place, each
    /// once, and hold as long as [`Engine::canary`] answers as it did then. Nothing is kept of a local model, which computes the same
    /// again.
    pub fn keep_answers(&self, path: &Path, run: &str) -> Result<usize> {
        self.journal().map_or(Ok(0), |journal| journal.open(path, run))
    }

    /// What the requests from now on are for: an answer that is kept is given to the same request for the same end alone.
    pub fn ask_for(&self, what: &str) {
        if let Some(journal) = self.journal() {
            journal.ask_for(what);
        }
    }

    /// The caller has kept all answers that it was handed: what [`Engine::keep_answers`] kept of them may go.
    pub fn forget_answers(&self) -> Result<()> {
        self.journal().map_or(Ok(()), Journal::forget)
    }

    fn journal(&self) -> Option<&Journal> {
        match self.without_cache() {
            Self::Endpoint(endpoint) => Some(endpoint.journal()),
            Self::Local(_) | Self::Cached(_) => None,
        }
    }

    /// How many requests to hand over at once: so many that those at the end, which leave connections and places in the batch empty, are
    /// few; what it bounds is the prompts held.
    pub fn window_requests(&self) -> usize {
        match self {
            Self::Local(_) => 512,
            Self::Endpoint(endpoint) => (32 * endpoint.connections()).max(512),
            Self::Cached(cached) => cached.engine.window_requests(),
        }
    }

    /// The model itself, asked whatever a cache knows.
    pub fn without_cache(&self) -> &Self {
        match self {
            Self::Cached(cached) => &cached.engine,
            Self::Local(_) | Self::Endpoint(_) => self,
        }
    }

    /// What decides the answers beside the requests.
    pub fn identity(&self) -> &EngineIdentity {
        match self {
            Self::Local(local) => &local.identity,
            Self::Endpoint(endpoint) => &endpoint.identity,
            Self::Cached(cached) => cached.engine.identity(),
        }
    }

    /// Gives the model another name in results, such as the stage that made it. Answers do not depend on it.
    pub fn rename(&mut self, name: &str) {
        let identity = match self {
            Self::Local(local) => &mut local.identity,
            Self::Endpoint(endpoint) => &mut endpoint.identity,
            Self::Cached(cached) => return cached.engine.rename(name),
        };
        name.clone_into(&mut identity.name);
    }

    /// Tokenizer and template, where this side has them.
    pub fn text(&self) -> Option<&aloe_text::TextModel> {
        match self {
            Self::Local(local) => Some(&local.text),
            Self::Endpoint(endpoint) => endpoint.text.as_ref(),
            Self::Cached(cached) => cached.engine.text(),
        }
    }
}

/// A call of an engine whose answers go to `take`, in the caller's own error; an error of `take` ends the call, and is then its error.
pub fn handed<R, E: From<Error>>(
    call: impl FnOnce(&mut Take<R>) -> Result<()>,
    mut take: impl FnMut(usize, Result<R>) -> Result<(), E>,
) -> Result<(), E> {
    let mut failed = None;
    let called = call(&mut |at, answer| match take(at, answer) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    });
    failed.map_or(Ok(()), Err)?;
    Ok(called?)
}

/// The answers of a call in the order of its `n` requests. A fault of servers stands in the place of every request that it left without
/// an answer, whether it was asked or not.
fn each<R>(n: usize, call: impl FnOnce(&mut Take<R>) -> Result<()>) -> Result<Vec<Result<R>>> {
    let mut found: Vec<Option<Result<R>>> = (0..n).map(|_| None).collect();
    let called = call(&mut |at, answer| {
        found[at] = Some(answer);
        ControlFlow::Continue(())
    });
    let (url, id, reason) = match called {
        Ok(()) => Default::default(),
        Err(Error::Endpoint { url, reason }) => (url, None, reason),
        Err(Error::Answer { url, id, reason }) => (url, Some(id), reason),
        Err(error) => return Err(error),
    };
    let fault = || {
        let (url, reason) = (url.clone(), reason.clone());
        Err(match id.clone() {
            Some(id) => Error::Answer { url, id, reason },
            None => Error::Endpoint { url, reason },
        })
    };
    Ok(found.into_iter().map(|answer| answer.unwrap_or_else(fault)).collect())
}

/// The answers of a call that has all of them, in the order of its `n` requests.
pub(crate) fn in_order<R>(n: usize, call: impl FnOnce(&mut Take<R>) -> Result<()>) -> Result<Vec<R>> {
    each(n, call)?.into_iter().collect()
}

pub(crate) fn check_sampling(request: &GenerateRequest) -> Result<()> {
    let too_many = (request.n > MAX_SAMPLES).then(|| format!("n must be at most {MAX_SAMPLES}, found {}", request.n));
    match request.sampling.mistakes().into_iter().chain(too_many).next() {
        Some(reason) => Err(Error::Request { id: request.id.clone(), reason }),
        None => Ok(()),
    }
}
