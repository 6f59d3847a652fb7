//! JSON over HTTP with the patience an inference server needs: time-outs, back-off, `Retry-After`. Only requests that
//! can be repeated without harm go through here.

use crate::{Error, Result};
use serde_json::Value;
use std::time::Duration;

/// How often a request is tried when the server is busy or cannot be reached.
const TRIES: u32 = 5;

/// A client of one server.
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    key: Option<String>,
}

/// An answer that is not a success.
struct Failure {
    reason: String,
    retry_after: Option<Duration>,
    is_final: bool,
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
        self.with_retries(|| {
            let mut request = self.agent.get(format!("{}{path}", self.base));
            if let Some(key) = &self.key {
                request = request.header("Authorization", format!("Bearer {key}"));
            }
            read(request.call())
        })
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.with_retries(|| {
            let mut request = self.agent.post(format!("{}{path}", self.base));
            if let Some(key) = &self.key {
                request = request.header("Authorization", format!("Bearer {key}"));
            }
            read(request.send_json(body))
        })
    }

    /// An error about this server.
    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Endpoint { url: self.base.clone(), reason: reason.into() }
    }

    #[allow(clippy::print_stderr, reason = "a retry is never silent; the library has no other way to a person")]
    fn tell(&self, turn: u32, reason: &str) {
        eprintln!("{}: {reason}; trying again ({} of {TRIES})", self.base, turn + 1);
    }

    fn with_retries(&self, attempt: impl Fn() -> std::result::Result<Value, Failure>) -> Result<Value> {
        let mut wait = Duration::from_millis(250);
        for turn in 1.. {
            let failure = match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            if failure.is_final || turn == TRIES {
                let tries = if turn > 1 { format!(" (after {turn} tries)") } else { String::new() };
                return Err(self.error(format!("{}{tries}", failure.reason)));
            }
            self.tell(turn, &failure.reason);
            std::thread::sleep(failure.retry_after.unwrap_or(wait).min(Duration::from_secs(60)));
            wait *= 2;
        }
        Err(self.error("no try was made"))
    }
}

fn read(
    sent: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> std::result::Result<Value, Failure> {
    let mut response = sent.map_err(|error| Failure {
        reason: error.to_string(),
        retry_after: None,
        is_final: !matches!(error, ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed),
    })?;
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    let text = response.body_mut().with_config().limit(256 << 20).read_to_string().map_err(|error| Failure {
        reason: format!("the answer cannot be read: {error}"),
        retry_after: None,
        is_final: false,
    })?;
    if status != 200 {
        let shown: String = text.chars().take(300).collect();
        let is_final = !matches!(status, 408 | 429 | 500 | 502 | 503 | 504);
        let retry_after = retry_after.map(Duration::from_secs);
        return Err(Failure { reason: format!("HTTP status {status}: {shown}"), retry_after, is_final });
    }
    serde_json::from_str(&text).map_err(|error| Failure {
        reason: format!("the answer is not JSON: {error}"),
        retry_after: None,
        is_final: true,
    })
}
