//! JSON over HTTP with the patience an inference server needs: time-outs, back-off, `Retry-After`. Only requests that
//! can be repeated without harm go through here.

use crate::{Error, Result};
use aloe_record::Cancel;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How often a request is tried when the server is busy or cannot be reached.
const TRIES: u32 = 5;

/// The longest `Retry-After` that is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// A client of one server.
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    key: Option<String>,
}

/// What a server that is alive said to a request.
pub(crate) enum Reply {
    /// Status 200 and JSON.
    Json(Value),
    /// A status that says the request itself is not taken (400, 404, 422, 501 ...), with its text.
    Refused(String),
}

/// An answer that is not a success.
struct Failure {
    reason: String,
    retry_after: Option<Duration>,
    kind: Kind,
}

/// What may be done about a failure.
enum Kind {
    /// Ask again later.
    Passing,
    /// The server is alive and will not take this request.
    Refused,
    /// Anything else: wrong key, no JSON, a broken protocol.
    Final,
}

impl Client {
    /// `base` is the address up to and including `/v1`. The key comes from `ALOE_API_KEY` or `OPENAI_API_KEY`.
    pub(crate) fn new(base: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .tls_config(ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build())
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_global(Some(Duration::from_secs(600)))
            .http_status_as_error(false)
            .build();
        let key = ["ALOE_API_KEY", "OPENAI_API_KEY"].iter().find_map(|name| std::env::var(name).ok());
        Self { agent: config.into(), base: base.trim_end_matches('/').to_owned(), key }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let sent = || {
            let mut request = self.agent.get(format!("{}{path}", self.base));
            if let Some(key) = &self.key {
                request = request.header("Authorization", format!("Bearer {key}"));
            }
            read(request.call())
        };
        self.or_error(self.with_retries(&Cancel::default(), sent)?)
    }

    /// Posts `body`; a refusal is an error.
    pub(crate) fn post(&self, path: &str, body: &Value, cancel: &Cancel) -> Result<Value> {
        self.or_error(self.ask(path, body, cancel)?)
    }

    /// Posts `body`; a refusal is a value, so that another form of the request can be tried.
    pub(crate) fn ask(&self, path: &str, body: &Value, cancel: &Cancel) -> Result<Reply> {
        self.with_retries(cancel, || {
            let mut request = self.agent.post(format!("{}{path}", self.base));
            if let Some(key) = &self.key {
                request = request.header("Authorization", format!("Bearer {key}"));
            }
            read(request.send_json(body))
        })
    }

    fn or_error(&self, reply: Reply) -> Result<Value> {
        match reply {
            Reply::Json(value) => Ok(value),
            Reply::Refused(reason) => Err(self.error(reason)),
        }
    }

    /// An error about this server.
    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Endpoint { url: self.base.clone(), reason: reason.into() }
    }

    /// A retry is never silent; the library has no other way to a person.
    fn tell(&self, turn: u32, reason: &str, wait: Duration) {
        let seconds = wait.as_secs_f64();
        aloe_record::tell(&format!("{}: {reason}; trying again in {seconds} s ({} of {TRIES})", self.base, turn + 1));
    }

    fn with_retries(
        &self,
        cancel: &Cancel,
        attempt: impl Fn() -> std::result::Result<Value, Failure>,
    ) -> Result<Reply> {
        let mut wait = Duration::from_millis(250);
        for turn in 1.. {
            let failure = match attempt() {
                Ok(value) => return Ok(Reply::Json(value)),
                Err(Failure { kind: Kind::Refused, reason, .. }) => return Ok(Reply::Refused(reason)),
                Err(failure) => failure,
            };
            let asked = failure.retry_after.unwrap_or(wait);
            if asked > LONGEST_WAIT {
                let text = format!("{}; it asks to come back in {} s", failure.reason, asked.as_secs());
                return Err(self.error(text));
            }
            if matches!(failure.kind, Kind::Final) || turn == TRIES {
                let tries = if turn > 1 { format!(" (after {turn} tries)") } else { String::new() };
                return Err(self.error(format!("{}{tries}", failure.reason)));
            }
            self.tell(turn, &failure.reason, asked);
            sleep(asked, cancel)?;
            wait *= 2;
        }
        Err(self.error("no try was made"))
    }
}

/// Waits, but no longer than until somebody asks to stop.
fn sleep(wait: Duration, cancel: &Cancel) -> Result<()> {
    let until = Instant::now() + wait;
    loop {
        cancel.check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

fn read(
    sent: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> std::result::Result<Value, Failure> {
    let failure = |reason, kind| Failure { reason, retry_after: None, kind };
    let mut response = sent.map_err(|error| {
        let kind = match error {
            ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => Kind::Passing,
            _ => Kind::Final,
        };
        failure(error.to_string(), kind)
    })?;
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let read = response.body_mut().with_config().limit(256 << 20).read_to_string();
    let text = read.map_err(|error| failure(format!("the answer cannot be read: {error}"), Kind::Passing))?;
    if status != 200 {
        let shown: String = text.chars().take(300).collect();
        let kind = match status {
            408 | 429 | 500 | 502 | 503 | 504 => Kind::Passing,
            400 | 404 | 405 | 413 | 422 | 501 => Kind::Refused,
            _ => Kind::Final,
        };
        let retry_after = retry_after.map(Duration::from_secs);
        return Err(Failure { reason: format!("HTTP status {status}: {shown}"), retry_after, kind });
    }
    serde_json::from_str(&text).map_err(|error| failure(format!("the answer is not JSON: {error}"), Kind::Final))
}
