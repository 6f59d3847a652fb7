//! The engine's calls against an OpenAI-compatible server (vLLM, SGLang, llama-server).
//!
//! Prompts go out as token ids that we rendered, so both sides see the same tokens and a user's text cannot become a
//! control token. A server that gives no prompt log-probabilities is found by a probe and refused for scoring. Chat
//! requests that the server renders happen only on request and are recorded as "server template". Every sample is a
//! request of its own with a seed of its own, since not every server knows `n`.

mod prompt_logps;

use crate::endpoint::prompt_logps::Form;
use crate::engine::EngineIdentity;
use crate::http::{Client, Reply};
use crate::{
    Completion, Continuation, EngineOptions, Error, FinishReason, GenerateRequest, GenerateResult, Prompt, Result,
    Sampling, ScoreRequest, ScoreResult, Scored,
};
use aloe_record::{Cancel, Progress, digest};
use aloe_text::{Message, TextModel};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests under way at once.
const CONNECTIONS: usize = 8;

/// Where the text stands in a choice.
type TextOf = fn(&Value) -> Option<&str>;

/// A server and the model asked for.
pub struct Endpoint {
    client: Client,
    model: String,
    server_template: bool,
    pub(crate) text: Option<TextModel>,
    pub(crate) identity: EngineIdentity,
    /// How the server gives prompt log-probabilities, once the probe has found out.
    form: Mutex<Option<Form>>,
}

impl Endpoint {
    /// Opens `http(s)://host:port/v1#model`; without `#model` the server's only model is taken.
    pub fn open(address: &str, options: &EngineOptions) -> Result<Self> {
        let (base, wanted) = address.split_once('#').unwrap_or((address, ""));
        let client = Client::new(base);
        let listed = client.get("/models")?;
        let model = choose_model(&client, &listed, wanted)?;
        let text = options.tokenizer.as_deref().map(open_text).transpose()?;
        let identity = EngineIdentity {
            name: model.clone(),
            weights: format!("endpoint {}", describe(&listed, &model)),
            text: text.as_ref().map_or_else(|| "server template".to_owned(), TextModel::digest),
            dtype: "unknown".to_owned(),
            path: "endpoint".to_owned(),
        };
        let form = Mutex::new(None);
        Ok(Self { client, model, server_template: options.server_template, text, identity, form })
    }

    pub(crate) fn score(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<ScoreResult>> {
        let text = self.text.as_ref().ok_or_else(|| {
            self.unusable("scoring sends token ids; name the model's tokenizer folder with --tokenizer")
        })?;
        let form = self.probe(text, cancel)?;
        self.in_parallel(requests, progress, cancel, |request| self.score_one(text, form, request, cancel))
    }

    pub(crate) fn generate(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        self.in_parallel(requests, progress, cancel, |request| match (&self.text, &request.prompt) {
            (Some(text), prompt) if !self.server_template => self.complete_ids(text, request, prompt, cancel),
            (_, Prompt::Messages(messages)) if self.server_template => self.chat(request, messages, cancel),
            _ => Err(self.unusable(
                "prompts are sent as token ids; name the model's tokenizer folder with --tokenizer, or let the server \
                 render chat messages with --server-template",
            )),
        })
    }

    /// The server cannot be used for what was asked: the user's to change, so the exit code of wrong input.
    fn unusable(&self, reason: impl Into<String>) -> Error {
        Error::Open { model: format!("{}#{}", self.client.base(), self.model), reason: reason.into() }
    }

    /// Sends a known prompt in each form until every token but the first comes back with a usable log-probability.
    fn probe(&self, text: &TextModel, cancel: &Cancel) -> Result<Form> {
        let mut known = self.form.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(form) = *known {
            return Ok(form);
        }
        let ids = text.encode_prompt_text("The patient has a fever and a cough.")?;
        let mut found = Vec::new();
        for form in Form::ALL {
            let reason = match self.client.ask("/completions", &form.body(&self.model, &ids), cancel)? {
                Reply::Refused(reason) => reason,
                Reply::Json(answer) => match form.read(&answer, &ids) {
                    Ok(logps) if logps.iter().any(|&(logp, _)| logp != 0.0) => {
                        *known = Some(form);
                        return Ok(form);
                    }
                    Ok(_) => "every log-probability is 0".to_owned(),
                    Err(reason) => reason,
                },
            };
            found.push(format!("{}: {reason}", form.name()));
        }
        Err(self.unusable(format!(
            "the server gives no usable prompt log-probabilities, which scoring needs on /v1/completions, as vLLM has them. \
             Nothing was scored. Tried {}",
            found.join("; ")
        )))
    }

    /// (log-probability, was the most probable) for each id of `ids` from the second on.
    fn prompt_logps(&self, form: Form, ids: &[u32], cancel: &Cancel) -> Result<Vec<(f64, bool)>> {
        let answer = self.client.post("/completions", &form.body(&self.model, ids), cancel)?;
        let wrong = |reason| format!("the answer to a prompt of {} tokens cannot be used: {reason}", ids.len());
        form.read(&answer, ids).map_err(|reason| self.client.error(wrong(reason)))
    }

    fn score_one(&self, text: &TextModel, form: Form, request: &ScoreRequest, cancel: &Cancel) -> Result<ScoreResult> {
        let mut prompt_ids = ids_of(text, &request.prompt)?;
        let mut continuations = Vec::new();
        let refuse = |reason: &str| Error::Request { id: request.id.clone(), reason: reason.to_owned() };
        if prompt_ids.is_empty() {
            return Err(refuse("the prompt has no tokens"));
        }
        if request.continuations.is_empty() {
            let scored = self.prompt_logps(form, &prompt_ids, cancel)?;
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
            let scored = self.prompt_logps(form, &whole, cancel)?;
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
        let body = json!({"prompt": prompt_ids, "stop_token_ids": stop_ids});
        let text_of: TextOf = |choice| choice["text"].as_str();
        let completions = self.samples(request, "/completions", &body, text_of, prompt_ids.len(), cancel)?;
        Ok(GenerateResult { id: request.id.clone(), prompt_ids: Some(prompt_ids), completions })
    }

    fn chat(&self, request: &GenerateRequest, messages: &[Message], cancel: &Cancel) -> Result<GenerateResult> {
        let body = json!({ "messages": messages });
        let text_of: TextOf = |choice| choice["message"]["content"].as_str();
        let completions = self.samples(request, "/chat/completions", &body, text_of, 0, cancel)?;
        Ok(GenerateResult { id: request.id.clone(), prompt_ids: None, completions })
    }

    /// `request.n` answers, one request each.
    fn samples(
        &self,
        request: &GenerateRequest,
        path: &str,
        prompt: &Value,
        text_of: TextOf,
        prompt_len_tokens: usize,
        cancel: &Cancel,
    ) -> Result<Vec<Completion>> {
        let one = |sample: usize| {
            cancel.check()?;
            let mut body = sampling_body(&request.sampling, &request.id, sample);
            body["model"] = json!(self.model);
            for (key, value) in prompt.as_object().into_iter().flatten() {
                body[key] = value.clone();
            }
            let answer = self.client.post(path, &body, cancel)?;
            let choices = answer["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
            let [choice] = choices else {
                let text = format!("request {}: asked for 1 answer, got {}", request.id, choices.len());
                return Err(self.client.error(text));
            };
            let text = text_of(choice)
                .ok_or_else(|| self.client.error(format!("request {}: the answer holds no text", request.id)))?;
            let finish_reason = match choice["finish_reason"].as_str() {
                Some("stop") => FinishReason::Stop,
                Some("length") => FinishReason::Length,
                _ => FinishReason::Other,
            };
            Ok(Completion { ids: None, logps: None, text: text.to_owned(), finish_reason, prompt_len_tokens })
        };
        (0..request.n).map(one).collect()
    }

    /// Runs `work` for every request over a few connections; results in the order of the requests.
    fn in_parallel<Q: Sync, R: Send>(
        &self,
        requests: &[Q],
        progress: &Progress,
        cancel: &Cancel,
        work: impl Fn(&Q) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<R>>>> = Mutex::new(requests.iter().map(|_| None).collect());
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(requests.len()) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::SeqCst);
                        let Some(request) = requests.get(at) else { break };
                        let result = cancel.check().map_err(Error::from).and_then(|()| work(request));
                        let failed = result.is_err();
                        results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[at] = Some(result);
                        progress.advance(1);
                        if failed {
                            next.store(requests.len(), Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut finished = Vec::with_capacity(requests.len());
        for result in results.into_iter().flatten() {
            finished.push(result?);
        }
        Ok(finished)
    }
}

fn choose_model(client: &Client, listed: &Value, wanted: &str) -> Result<String> {
    let names: Vec<&str> = listed["data"]
        .as_array()
        .map(|models| models.iter().filter_map(|model| model["id"].as_str()).collect())
        .unwrap_or_default();
    match (wanted, names.as_slice()) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", _) => Err(open_error(client, wanted, format!("name one of its models after `#`: {}", names.join(", ")))),
        (wanted, names) if names.contains(&wanted) => Ok(wanted.to_owned()),
        (wanted, names) => {
            let served = if names.is_empty() { "none that it names".to_owned() } else { names.join(", ") };
            Err(open_error(client, wanted, format!("the server does not serve it; it serves {served}")))
        }
    }
}

fn open_error(client: &Client, wanted: &str, reason: String) -> Error {
    Error::Open { model: format!("{}#{wanted}", client.base()), reason }
}

fn describe(listed: &Value, model: &str) -> String {
    let entry = listed["data"].as_array().and_then(|models| models.iter().find(|entry| entry["id"] == model));
    entry.map_or_else(String::new, |entry| format!("{} {}", entry["id"], entry["root"]))
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

/// The sampling fields of one sample's request.
fn sampling_body(sampling: &Sampling, id: &str, sample: usize) -> Value {
    let mut body = json!({
        "n": 1, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "seed": sample_seed(sampling.seed, id, sample),
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

/// The seed that a server is given for one sample: 31 bits, which every server takes, from (seed, request id, sample).
fn sample_seed(seed: u64, id: &str, sample: usize) -> u32 {
    let digest = digest::bytes(format!("{seed}/{id}/{sample}").as_bytes());
    u32::from_str_radix(&digest[..8], 16).unwrap_or_default() >> 1
}
