//! The engine's calls against an OpenAI-compatible server (vLLM, SGLang, llama-server).
//!
//! Prompts go out as token ids that we rendered, so both sides see the same tokens and a user's text cannot become a
//! control token. A server that gives no prompt log-probabilities is found by a probe and refused for scoring. Chat
//! requests that the server renders happen only on request and are recorded as "server template".

use crate::engine::EngineIdentity;
use crate::http::Client;
use crate::{
    Completion, Continuation, EngineOptions, Error, FinishReason, GenerateRequest, GenerateResult, Prompt, Result,
    Sampling, ScoreRequest, ScoreResult, Scored,
};
use aloe_record::{Cancel, Progress};
use aloe_text::TextModel;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests under way at once.
const CONNECTIONS: usize = 8;

/// A server and the model asked for.
pub struct Endpoint {
    client: Client,
    model: String,
    server_template: bool,
    pub(crate) text: Option<TextModel>,
    pub(crate) identity: EngineIdentity,
    probed: Mutex<bool>,
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
            path: client.base().to_owned(),
        };
        let probed = Mutex::new(false);
        Ok(Self { client, model, server_template: options.server_template, text, identity, probed })
    }

    pub(crate) fn score(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<ScoreResult>> {
        let text = self.text.as_ref().ok_or_else(|| {
            self.client.error("scoring sends token ids; name the model's tokenizer folder with --tokenizer")
        })?;
        self.probe(text)?;
        self.in_parallel(requests, progress, cancel, |request| self.score_one(text, request))
    }

    pub(crate) fn generate(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        self.in_parallel(requests, progress, cancel, |request| match (&self.text, &request.prompt) {
            (Some(text), prompt) if !self.server_template => self.complete_ids(text, request, prompt),
            (_, Prompt::Messages(messages)) if self.server_template => {
                self.chat(request, &serde_json::to_value(messages).unwrap_or_default())
            }
            _ => Err(self.client.error(
                "prompts are sent as token ids; name the model's tokenizer folder with --tokenizer, or let the server \
                 render chat messages with --server-template",
            )),
        })
    }

    /// Sends a known prompt and checks that every token but the first comes back with a usable log-probability.
    fn probe(&self, text: &TextModel) -> Result<()> {
        let mut probed = self.probed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *probed {
            return Ok(());
        }
        let ids = text.encode_prompt_text("The patient has a fever and a cough.")?;
        let logps = self.echo(&ids)?;
        if logps.iter().all(|&(logp, _)| logp == 0.0) {
            return Err(self.missing_logps("every log-probability in the answer is 0"));
        }
        *probed = true;
        Ok(())
    }

    fn missing_logps(&self, found: &str) -> Error {
        self.client.error(format!(
            "the server gives no prompt log-probabilities ({found}); scoring needs `echo` with `logprobs` on \
             /v1/completions, as vLLM has it. Nothing was scored"
        ))
    }

    /// (log-probability, was the most probable) for each id of `ids` from the second on.
    fn echo(&self, ids: &[u32]) -> Result<Vec<(f64, bool)>> {
        let body = json!({"model": self.model, "prompt": ids, "echo": true, "max_tokens": 0, "logprobs": 1,
                          "temperature": 0.0});
        let answer = self.client.post("/completions", &body)?;
        let logprobs = &answer["choices"][0]["logprobs"];
        let token_logps = logprobs["token_logprobs"]
            .as_array()
            .ok_or_else(|| self.missing_logps("`choices[0].logprobs.token_logprobs` is absent"))?;
        if token_logps.len() != ids.len() {
            let found = format!("{} entries for {} tokens", token_logps.len(), ids.len());
            return Err(self.missing_logps(&found));
        }
        let tops = &logprobs["top_logprobs"];
        token_logps[1..]
            .iter()
            .enumerate()
            .map(|(at, value)| {
                let logp = value.as_f64().filter(|logp| logp.is_finite() && *logp <= 1e-4);
                let logp = logp.ok_or_else(|| self.missing_logps(&format!("entry {} is {value}", at + 1)))?;
                let best =
                    tops[at + 1].as_object().and_then(|top| top.values().filter_map(Value::as_f64).reduce(f64::max));
                Ok((logp, best.is_none_or(|best| logp >= best)))
            })
            .collect()
    }

    fn score_one(&self, text: &TextModel, request: &ScoreRequest) -> Result<ScoreResult> {
        let mut prompt_ids = ids_of(text, &request.prompt)?;
        let mut continuations = Vec::new();
        let refuse = |reason: &str| Error::Request { id: request.id.clone(), reason: reason.to_owned() };
        if prompt_ids.is_empty() {
            return Err(refuse("the prompt has no tokens"));
        }
        if request.continuations.is_empty() {
            let scored = self.echo(&prompt_ids)?;
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
            let scored = self.echo(&whole)?;
            let n_ids = ids.len();
            continuations.push(to_scored(ids, &scored[scored.len() - n_ids..]));
        }
        Ok(ScoreResult { id: request.id.clone(), prompt_ids, continuations })
    }

    fn complete_ids(&self, text: &TextModel, request: &GenerateRequest, prompt: &Prompt) -> Result<GenerateResult> {
        let prompt_ids = ids_of(text, prompt)?;
        let mut body = sampling_body(&request.sampling, request.n);
        body["model"] = json!(self.model);
        body["prompt"] = json!(prompt_ids);
        let mut stop_ids = text.stop_ids();
        stop_ids.extend(&request.sampling.stop_ids);
        body["stop_token_ids"] = json!(stop_ids);
        let answer = self.client.post("/completions", &body)?;
        let completions = self.completions(request, &answer, |choice| choice["text"].as_str(), prompt_ids.len())?;
        Ok(GenerateResult { id: request.id.clone(), prompt_ids: Some(prompt_ids), completions })
    }

    fn chat(&self, request: &GenerateRequest, messages: &Value) -> Result<GenerateResult> {
        let mut body = sampling_body(&request.sampling, request.n);
        body["model"] = json!(self.model);
        body["messages"] = messages.clone();
        let answer = self.client.post("/chat/completions", &body)?;
        let completions = self.completions(request, &answer, |choice| choice["message"]["content"].as_str(), 0)?;
        Ok(GenerateResult { id: request.id.clone(), prompt_ids: None, completions })
    }

    fn completions<'a>(
        &self,
        request: &GenerateRequest,
        answer: &'a Value,
        text_of: impl Fn(&'a Value) -> Option<&'a str>,
        prompt_len_tokens: usize,
    ) -> Result<Vec<Completion>> {
        let choices = answer["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
        if choices.len() != request.n {
            return Err(self.client.error(format!("asked for {} answers, got {}", request.n, choices.len())));
        }
        choices
            .iter()
            .map(|choice| {
                let text = text_of(choice).ok_or_else(|| self.client.error("a choice holds no text"))?;
                let finish_reason = match choice["finish_reason"].as_str() {
                    Some("stop") => FinishReason::Stop,
                    Some("length") => FinishReason::Length,
                    _ => FinishReason::Other,
                };
                Ok(Completion { ids: None, logps: None, text: text.to_owned(), finish_reason, prompt_len_tokens })
            })
            .collect()
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
        ("", _) => Err(client.error(format!("name one of its models after `#`: {}", names.join(", ")))),
        (wanted, names) if names.contains(&wanted) => Ok(wanted.to_owned()),
        (wanted, names) => Err(client.error(format!("it serves no model {wanted:?}, but {}", names.join(", ")))),
    }
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

fn sampling_body(sampling: &Sampling, n: usize) -> Value {
    let mut body = json!({
        "n": n, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "seed": sampling.seed,
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
