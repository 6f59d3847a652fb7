//! The engine's calls against OpenAI-compatible servers (vLLM, SGLang, llama-server).
//!
//! Prompts go out as token ids that we rendered, so both sides see the same tokens and a user's text cannot become a
//! control token. A server that gives no prompt log-probabilities is found by a probe and refused for scoring. Chat
//! requests that the server renders happen only on request and are recorded as "server template". The samples of a prompt are
//! asked for together where the server takes that; sample `i` has the seed of the first plus `i`, as vLLM and
//! llama-server count them.
//!
//! Reading order: `listing` (which servers, which model), `replicas` (one request through to its answer), `prompt_logps` and
//! `answer` (what is believed).

mod answer;
mod identity;
mod listing;
mod prompt_logps;
mod replicas;
#[cfg(test)]
mod scoring_tests;
#[cfg(test)]
mod tests;

use crate::endpoint::answer::{Asked, TextOf};
use crate::endpoint::prompt_logps::Form;
use crate::endpoint::replicas::{Replicas, Reply};
use crate::engine::EngineIdentity;
use crate::{
    Completion, Continuation, EngineOptions, Error, GenerateRequest, GenerateResult, Prompt, Result, Sampling,
    ScoreRequest, ScoreResult, Scored,
};
use aloe_record::{Cancel, Progress, digest};
use aloe_text::{Message, TextModel};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Log-probabilities of one prompt by two servers with the same weights differ by less than this, in nat: measured between
/// vLLM in bf16 and f32 are 0.18, between bf16 and f32 of one implementation 0.30.
const SAME_MODEL_NAT: f64 = 0.5;

/// Servers with one model, and the model asked for.
pub struct Endpoint {
    replicas: Replicas,
    model: String,
    /// What the servers' lists say of it.
    listed: String,
    context_len: Option<u64>,
    server_template: bool,
    pub(crate) text: Option<TextModel>,
    pub(crate) identity: EngineIdentity,
    /// How the server gives prompt log-probabilities, once the probe has found out.
    form: Mutex<Option<Form>>,
    /// The model that the first answer named.
    said: Mutex<Option<String>>,
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
            text: text.as_ref().map_or_else(|| "server template".to_owned(), TextModel::digest),
            dtype: "unknown".to_owned(),
            path: "endpoint".to_owned(),
        };
        Ok(Self {
            replicas: Replicas::new(opened.clients, &opened.model, &opened.listed, &opened.out),
            model: opened.model,
            listed: opened.listed,
            context_len: opened.context_len,
            server_template: options.server_template,
            text,
            identity,
            form: Mutex::new(None),
            said: Mutex::new(None),
            n_at_once: AtomicUsize::new(usize::MAX),
            knows_n: AtomicBool::new(false),
        })
    }

    pub(crate) fn n_servers(&self) -> usize {
        self.replicas.len()
    }

    /// The scores in the order of the requests. A request that cannot be answered has its error in its place and the others go
    /// on; after a fault of the servers no further request is sent, and what was answered is there.
    pub(crate) fn score_each(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<Result<ScoreResult>>> {
        let text = self.text.as_ref().ok_or_else(|| {
            self.unusable("scoring sends token ids; name the model's tokenizer folder with --tokenizer")
        })?;
        let form = self.probe(text, cancel)?;
        self.in_parallel(requests, cancel, |request| {
            let scored = self.score_one(text, form, request, cancel);
            progress.advance(1);
            scored
        })
    }

    /// The answers in the order of the requests; errors as those of `score_each`.
    pub(crate) fn generate_each(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<Result<GenerateResult>>> {
        self.in_parallel(requests, cancel, |request| {
            crate::engine::check_sampling(request)?;
            let answered = match (&self.text, &request.prompt) {
                (Some(text), prompt) if !self.server_template => self.complete_ids(text, request, prompt, cancel),
                (_, Prompt::Messages(messages)) if self.server_template => self.chat(request, messages, cancel),
                _ => Err(self.unusable(
                    "prompts are sent as token ids; name the model's tokenizer folder with --tokenizer, or let the server \
                     render chat messages with --server-template",
                )),
            };
            progress.advance(request.n as u64);
            answered
        })
    }

    /// The server cannot be used for what was asked: the user's to change, so the exit code of wrong input.
    fn unusable(&self, reason: impl Into<String>) -> Error {
        Error::Open { model: format!("{}#{}", self.replicas.bases(), self.model), reason: reason.into() }
    }

    /// Sends a known prompt in each form until every token but the first comes back with a usable log-probability; then holds
    /// the other servers' answers against it.
    fn probe(&self, text: &TextModel, cancel: &Cancel) -> Result<Form> {
        let mut known = self.form.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(form) = *known {
            return Ok(form);
        }
        let ids = text.encode_prompt_text("The patient has a fever and a cough.")?;
        let mut found = Vec::new();
        for form in Form::ALL {
            let body = form.body(&self.model, &ids);
            let reason = match self.replicas.ask("/completions", &body, cancel)? {
                Reply::Refused(reason) => reason,
                Reply::Json(answer, at) => {
                    self.check_model(&answer, at)?;
                    match form.read(&answer, &ids, |id| text.tokenizer.token(id)) {
                        Ok(logps) => {
                            self.compare_others(form, text, &ids, &logps, at)?;
                            *known = Some(form);
                            return Ok(form);
                        }
                        Err(reason) => reason,
                    }
                }
            };
            found.push(format!("{}: {reason}", form.name()));
        }
        Err(self.unusable(format!(
            "the server gives no usable prompt log-probabilities, which scoring needs on /v1/completions, as vLLM has them. \
             Nothing was scored. Tried {}",
            found.join("; ")
        )))
    }

    /// Other weights under the same name are told by the log-probabilities of the known prompt.
    fn compare_others(
        &self,
        form: Form,
        text: &TextModel,
        ids: &[u32],
        logps: &[(f64, bool)],
        first: usize,
    ) -> Result<()> {
        for (at, answer) in self.replicas.ask_others(first, "/completions", &form.body(&self.model, ids)) {
            self.check_model(&answer, at)?;
            let others = form.read(&answer, ids, |id| text.tokenizer.token(id));
            let others = others.map_err(|reason| self.replicas.error(at, format!("the probe's answer: {reason}")))?;
            let farthest = logps.iter().zip(&others).map(|(a, b)| (a.0 - b.0).abs()).fold(0.0, f64::max);
            if farthest > SAME_MODEL_NAT {
                return Err(self.unusable(format!(
                    "the servers do not serve the same weights: log-probabilities of one prompt differ by up to {farthest:.2} nat \
                     between {} and {}",
                    self.replicas.base(first),
                    self.replicas.base(at)
                )));
            }
        }
        Ok(())
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
        cancel: &Cancel,
    ) -> Result<Vec<(f64, bool)>> {
        match self.replicas.ask("/completions", &form.body(&self.model, ids), cancel)? {
            Reply::Refused(reason) => Err(Error::Request { id: id.to_owned(), reason }),
            Reply::Json(answer, at) => {
                self.check_model(&answer, at)?;
                let wrong = |reason| {
                    let reason = format!(
                        "request {id}: the answer to a prompt of {} tokens cannot be used: {reason}",
                        ids.len()
                    );
                    self.replicas.error(at, reason)
                };
                form.read(&answer, ids, |id| text.tokenizer.token(id)).map_err(wrong)
            }
        }
    }

    fn score_one(&self, text: &TextModel, form: Form, request: &ScoreRequest, cancel: &Cancel) -> Result<ScoreResult> {
        let mut prompt_ids = ids_of(text, &request.prompt)?;
        let mut continuations = Vec::new();
        let refuse = |reason: &str| Error::Request { id: request.id.clone(), reason: reason.to_owned() };
        if prompt_ids.is_empty() {
            return Err(refuse("the prompt has no tokens"));
        }
        if request.continuations.is_empty() {
            let scored = self.prompt_logps(text, form, &prompt_ids, &request.id, cancel)?;
            continuations.push(to_scored(prompt_ids[1..].to_vec(), &scored));
        }
        for continuation in &request.continuations {
            let ids = match (&request.prompt, continuation) {
                (_, Continuation::Ids(ids)) => ids.clone(),
                (Prompt::Text(before), Continuation::Text(after)) => {
                    let (joint_prompt, ids) = text.encode_joint(before, after)?;
                    if !continuations.is_empty() && joint_prompt != prompt_ids {
                        return Err(refuse(
                            "a continuation changes how the prompt before it is tokenised; score it alone",
                        ));
                    }
                    prompt_ids = joint_prompt;
                    ids
                }
                (_, Continuation::Text(after)) => text.tokenizer.encode_continuation(after)?,
            };
            if ids.is_empty() {
                return Err(refuse("a continuation has no tokens"));
            }
            let whole: Vec<u32> = prompt_ids.iter().chain(&ids).copied().collect();
            let scored = self.prompt_logps(text, form, &whole, &request.id, cancel)?;
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
        cancel: &Cancel,
    ) -> Result<GenerateResult> {
        let prompt_ids = ids_of(text, prompt)?;
        let mut stop_ids = text.stop_ids();
        stop_ids.extend(&request.sampling.stop_ids);
        let body = json!({"prompt": prompt_ids, "stop_token_ids": stop_ids, "return_token_ids": true});
        let text_of: TextOf = |choice| choice["text"].as_str();
        let completions = self.samples(request, "/completions", &body, text_of, Some(&prompt_ids), cancel)?;
        Ok(GenerateResult { id: request.id.clone(), prompt_ids: Some(prompt_ids), completions })
    }

    fn chat(&self, request: &GenerateRequest, messages: &[Message], cancel: &Cancel) -> Result<GenerateResult> {
        let body = json!({ "messages": messages });
        let text_of: TextOf = |choice| choice["message"]["content"].as_str();
        let completions = self.samples(request, "/chat/completions", &body, text_of, None, cancel)?;
        Ok(GenerateResult { id: request.id.clone(), prompt_ids: None, completions })
    }

    /// `request.n` answers: all in one request, or in as few as the server takes (llama-server gives no more than it has slots).
    fn samples(
        &self,
        request: &GenerateRequest,
        path: &str,
        prompt: &Value,
        text_of: TextOf,
        prompt_ids: Option<&[u32]>,
        cancel: &Cancel,
    ) -> Result<Vec<Completion>> {
        let (mut done, mut most) = (Vec::with_capacity(request.n), usize::MAX);
        while done.len() < request.n {
            let n = (request.n - done.len()).min(most).min(self.n_at_once.load(Ordering::SeqCst));
            let mut body = sampling_body(&request.sampling, &request.id, done.len(), n);
            body["model"] = json!(self.model);
            for (key, value) in prompt.as_object().into_iter().flatten() {
                body[key] = value.clone();
            }
            let (answer, at) = match self.replicas.ask(path, &body, cancel)? {
                Reply::Json(answer, at) => (answer, at),
                Reply::Refused(_) if n > 1 => {
                    most = largest_power_of_two_below(n);
                    continue;
                }
                Reply::Refused(reason) => return Err(Error::Request { id: request.id.clone(), reason }),
            };
            self.check_model(&answer, at)?;
            if n > 1 && self.ignores_n(&answer) {
                most = 1;
                self.at_once(1, at, "it answers once whatever `n` is");
                continue;
            }
            let max_new_tokens = request.sampling.max_new_tokens;
            let asked = Asked { n, max_new_tokens, prompt_ids, context_len: self.context_len, text_of };
            let completions = answer::completions(&answer, &asked)
                .map_err(|reason| self.replicas.error(at, format!("request {}: {reason}", request.id)))?;
            if most != usize::MAX && n == most {
                self.at_once(most, at, "it refuses more");
            }
            if n > 1 {
                self.knows_n.store(true, Ordering::SeqCst);
            }
            done.extend(completions);
        }
        Ok(done)
    }

    /// Whether the server passes `n` over: one answer where several were asked for, and never yet more than one.
    fn ignores_n(&self, answer: &Value) -> bool {
        let n_choices = answer["choices"].as_array().map_or(0, Vec::len);
        n_choices == 1 && !self.knows_n.load(Ordering::SeqCst)
    }

    /// From now on no more than `n` samples are asked for at once.
    fn at_once(&self, n: usize, at: usize, reason: &str) {
        if self.n_at_once.fetch_min(n, Ordering::SeqCst) > n {
            let (base, samples) = (self.replicas.base(at), if n == 1 { "sample" } else { "samples" });
            aloe_record::tell(&format!("{base}: {reason}; each request asks for {n} {samples} at most"));
        }
    }

    /// Runs `work` for every request over the connections; results in the order of the requests. After a fault of the servers
    /// or an interrupt no further request is begun.
    fn in_parallel<Q: Sync, R: Send>(
        &self,
        requests: &[Q],
        cancel: &Cancel,
        work: impl Fn(&Q) -> Result<R> + Sync,
    ) -> Result<Vec<Result<R>>> {
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<R>>>> = Mutex::new(requests.iter().map(|_| None).collect());
        std::thread::scope(|scope| {
            for _ in 0..self.replicas.connections().min(requests.len()) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::SeqCst);
                        let Some(request) = requests.get(at) else { break };
                        let result = work(request);
                        if result.as_ref().is_err_and(ends_the_run) {
                            next.store(requests.len(), Ordering::SeqCst);
                        }
                        results.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(result);
                    }
                });
            }
        });
        cancel.check()?;
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let not_asked = || Err(self.replicas.error(0, "not asked after an earlier request failed"));
        Ok(results.into_iter().map(|result| result.unwrap_or_else(not_asked)).collect())
    }
}

/// Whether an error is the servers' or ours and not one request's.
fn ends_the_run(error: &Error) -> bool {
    !matches!(error, Error::Request { .. } | Error::Text(_))
}

fn largest_power_of_two_below(n: usize) -> usize {
    1 << (n - 1).ilog2()
}

fn open_text(path: &Path) -> Result<TextModel> {
    let source = aloe_model::ModelSource::open(path);
    match source.as_ref().ok().and_then(aloe_model::ModelSource::gguf_metadata) {
        Some(metadata) => Ok(TextModel::from_gguf(metadata)?),
        None => Ok(TextModel::open(path)?),
    }
}

fn ids_of(text: &TextModel, prompt: &Prompt) -> Result<Vec<u32>> {
    Ok(match prompt {
        Prompt::Ids(ids) => ids.clone(),
        Prompt::Text(raw) => text.encode_prompt_text(raw)?,
        Prompt::Messages(messages) => text.encode_prompt(messages)?,
        Prompt::ForgedMessages(messages) => text.encode_prompt_forged(messages)?,
    })
}

fn to_scored(ids: Vec<u32>, scored: &[(f64, bool)]) -> Scored {
    Scored {
        ids,
        logps: scored.iter().map(|&(logp, _)| logp).collect(),
        is_greedy: scored.iter().all(|&(_, greedy)| greedy),
    }
}

/// The sampling fields of a request for `n` samples from the `first` on.
fn sampling_body(sampling: &Sampling, id: &str, first: usize, n: usize) -> Value {
    let mut body = json!({
        "n": n, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "seed": sample_seed(sampling.seed, id, first),
    });
    if sampling.top_k > 0 {
        body["top_k"] = json!(sampling.top_k);
    }
    if sampling.min_p > 0.0 {
        body["min_p"] = json!(sampling.min_p);
    }
    if sampling.repetition_penalty != 1.0 {
        body["repetition_penalty"] = json!(sampling.repetition_penalty);
    }
    if !sampling.stop.is_empty() {
        body["stop"] = json!(sampling.stop);
    }
    body
}

/// The seed that a server is given for a sample: that of (seed, request id), of 31 bits, which every server takes, plus the
/// sample's number. A server that counts on from the seed of the first, as vLLM and llama-server do, draws the same however `n` is split.
fn sample_seed(seed: u64, id: &str, sample: usize) -> u32 {
    let digest = digest::bytes(format!("{seed}/{id}").as_bytes());
    let first = u32::from_str_radix(&digest[..8], 16).unwrap_or_default() >> 1;
    (first as usize + sample) as u32 & (u32::MAX >> 1)
}
