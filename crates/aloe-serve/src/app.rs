//! Routes, key and bodies. Every route but `/health` wants the key, those that do not exist too.

use crate::fields::Fields;
use crate::names::Names;
use crate::refusal::{Refusal, json_response};
use crate::server::Limits;
use crate::{chat, completions, embeddings};
use aloe_engine::{Engine, EngineIdentity, Queue};
use aloe_record::{Cancel, digest};
use aloe_text::TextModel;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a refused body that are still read and forgotten: a client that writes before it reads would not see the answer.
const MAX_FORGOTTEN: u64 = 256 << 20;

/// What all requests share.
pub(crate) struct App {
    pub(crate) queue: Arc<Queue>,
    pub(crate) text: TextModel,
    pub(crate) names: Names,
    context_len: usize,
    /// Tokens of the longest text that there is memory for.
    room_tokens: usize,
    /// The name under which the model is served.
    name: String,
    /// What was loaded: digest of the weights, their type and the CPU path.
    root: String,
    created_s: u64,
    /// Digest of the key.
    key: Option<String>,
    limits: Limits,
    /// Bytes of bodies that may be held.
    bodies: Arc<Semaphore>,
    n_answers: AtomicU64,
    /// Set when the server ends.
    stopping: Cancel,
}

/// Room for a body, given back when the request is answered.
pub(crate) struct BodyRoom(
    #[allow(dead_code, reason = "held, and given back when it is dropped")] Option<OwnedSemaphorePermit>,
);

impl App {
    pub(crate) fn new(
        engine: &Engine,
        queue: Arc<Queue>,
        name: &str,
        key: Option<&str>,
        limits: Limits,
        stopping: Cancel,
    ) -> Option<Self> {
        let text = engine.text()?.clone();
        let EngineIdentity { weights, dtype, path, .. } = engine.identity();
        let (context_len, room_tokens) = engine.context_len()?;
        Some(Self {
            queue,
            names: Names::new(text.clone()),
            text,
            context_len,
            room_tokens,
            name: name.to_owned(),
            root: format!("{weights}/{dtype}/{path}"),
            created_s: now_s(),
            key: key.map(|key| digest::bytes(key.as_bytes())),
            bodies: Arc::new(Semaphore::new(limits.max_held_bytes as usize)),
            limits,
            n_answers: AtomicU64::new(0),
            stopping,
        })
    }

    /// What every answer begins with.
    pub(crate) fn head(&self, id: &str, object: &str) -> Value {
        let number = self.n_answers.fetch_add(1, Ordering::SeqCst);
        json!({
            "id": format!("{id}-{}-{number}", self.created_s), "object": object, "created": now_s(), "model": self.name,
            "system_fingerprint": self.root,
        })
    }

    /// Takes the model's name out; without one the only model served is meant.
    pub(crate) fn take_model(&self, fields: &mut Fields) -> Result<(), Refusal> {
        match fields.text("model")? {
            Some(asked) if asked != self.name => Err(Refusal::model(&asked, &self.name)),
            _ => Ok(()),
        }
    }

    /// The ids of prompts, made beside the model's thread, so that a long text holds up no answers. A prompt that does not fit, with
    /// `n_more` tokens behind it, is refused before it takes a place among those that wait.
    pub(crate) async fn encode<T: Send + 'static>(
        self: &Arc<Self>,
        name: &str,
        prompts: Vec<T>,
        n_more: usize,
        encode: impl Fn(&TextModel, T) -> aloe_text::Result<Vec<u32>> + Send + 'static,
    ) -> Result<Vec<Vec<u32>>, Refusal> {
        let app = Arc::clone(self);
        let encoded = tokio::task::spawn_blocking(move || {
            prompts.into_iter().map(|prompt| encode(&app.text, prompt)).collect::<aloe_text::Result<Vec<_>>>()
        });
        let encoded = encoded.await.map_err(|_| Refusal::broken("the prompt could not be read"))?;
        let encoded = encoded.map_err(|error| Refusal::bad(error.to_string()))?;
        let longest = encoded.iter().map(Vec::len).max().unwrap_or(0);
        if longest + n_more > self.context_len {
            let context = self.context_len;
            let message = match n_more {
                0 => format!("{longest} tokens exceed the model's context of {context}"),
                _ => format!("{longest} tokens leave no room for an answer in the model's context of {context}"),
            };
            return Err(Refusal::field(name, message));
        }
        Ok(encoded)
    }

    /// New tokens behind a prompt where the request does not say how many: what the context and the memory have room for.
    pub(crate) fn room_behind(&self, prompt_len: usize) -> usize {
        self.room_tokens.saturating_sub(prompt_len).max(1)
    }

    /// The most new tokens that there may be behind a prompt, of those asked for.
    pub(crate) fn most_new(&self, prompt_len: usize, asked: usize) -> usize {
        asked.min(self.context_len.saturating_sub(prompt_len))
    }

    fn entry(&self) -> Value {
        json!({
            "id": self.name, "object": "model", "created": self.created_s, "owned_by": "aloe", "root": self.root, "parent": null,
            "max_model_len": self.context_len,
        })
    }

    /// Whether the request has the key. Digests are compared, all of both: the time says nothing of the key.
    fn has_key(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.key else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let given = digest::bytes(given.strip_prefix("Bearer ").unwrap_or_default().as_bytes());
        given.bytes().zip(key.bytes()).fold(0, |found, (a, b)| found | (a ^ b)) == 0
    }

    /// The fields of a request's body.
    async fn fields(&self, request: Request) -> Result<(Fields, BodyRoom), Refusal> {
        let kind =
            request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
            let message = "the body's Content-Type must be application/json";
            return Err(Refusal::of_body(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let mut body = request.into_body();
        let read = tokio::time::timeout(self.limits.body_timeout, self.read(&mut body)).await;
        let too_slow = || {
            let seconds = self.limits.body_timeout.as_secs();
            Refusal::of_body(StatusCode::REQUEST_TIMEOUT, format!("the body took longer than {seconds} s"))
        };
        let read = read.unwrap_or_else(|_| Err(too_slow()));
        match read {
            Ok((bytes, room)) => Ok((Fields::parse(&bytes)?, room)),
            Err(refusal) => {
                if refusal.status == StatusCode::PAYLOAD_TOO_LARGE {
                    let _ = tokio::time::timeout(self.limits.body_timeout, forget(&mut body)).await;
                }
                Err(refusal)
            }
        }
    }

    async fn read(&self, body: &mut Body) -> Result<(Vec<u8>, BodyRoom), Refusal> {
        let most = self.limits.max_body_bytes;
        let too_large =
            || Refusal::of_body(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {most} bytes"));
        if body.size_hint().lower() > most {
            return Err(too_large());
        }
        let (mut bytes, mut room): (Vec<u8>, Option<OwnedSemaphorePermit>) = (Vec::new(), None);
        while let Some(data) = next_data(body).await? {
            if (bytes.len() + data.len()) as u64 > most {
                return Err(too_large());
            }
            let more = Arc::clone(&self.bodies).try_acquire_many_owned(data.len() as u32);
            let more = more.map_err(|_| Refusal::full("the requests under way hold as much as they may"))?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, BodyRoom(room)))
    }
}

async fn next_data(body: &mut Body) -> Result<Option<Bytes>, Refusal> {
    loop {
        match std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(_)) => return Err(Refusal::bad("the body broke off")),
        }
    }
}

async fn forget(body: &mut Body) {
    let mut n_bytes = 0;
    while let Ok(Some(data)) = next_data(body).await {
        n_bytes += data.len() as u64;
        if n_bytes > MAX_FORGOTTEN {
            break;
        }
    }
}

/// The routes.
pub(crate) fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/embeddings", post(embed))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(app), with_key))
        .with_state(Arc::clone(app))
}

async fn with_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if request.uri().path() == "/health" {
        return next.run(request).await;
    }
    if app.key.is_none() && !is_own_host(headers) {
        return Refusal::host().into_response();
    }
    if !app.has_key(headers) {
        return Refusal::key().into_response();
    }
    next.run(request).await
}

/// Whether the client asked for this machine by an address or as localhost. A page in a browser can make a name of its own lead here, and
/// would then be let in as if it came from here; an address cannot be made to.
fn is_own_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let host = host.to_str().unwrap_or_default();
    let name = host.split(':').next().unwrap_or_default();
    host.starts_with('[') || name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok()
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.stopping.is_requested() {
        return Refusal::stopping().into_response();
    }
    json_response(&json!({"status": "ok"}))
}

async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(&json!({"object": "list", "data": [app.entry()]}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    if name == app.name { json_response(&app.entry()) } else { Refusal::model(&name, &app.name).into_response() }
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Response {
    let answered = match app.fields(request).await {
        Ok((fields, room)) => completions::answer(app, fields, room).await,
        Err(refusal) => Err(refusal),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    let answered = match app.fields(request).await {
        Ok((fields, room)) => chat::answer(app, fields, room).await,
        Err(refusal) => Err(refusal),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

async fn embed(State(app): State<Arc<App>>, request: Request) -> Response {
    let answered = match app.fields(request).await {
        Ok((fields, room)) => embeddings::answer(app, fields, room).await,
        Err(refusal) => Err(refusal),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

async fn no_route(uri: Uri) -> Refusal {
    Refusal::route(&uri.path().chars().take(200).collect::<String>())
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    Refusal::method(method.as_str(), uri.path())
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).as_ref().map_or(0, Duration::as_secs)
}
