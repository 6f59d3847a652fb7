//! One JSON exchange with one server and what came of it. Nothing is repeated here: `endpoint/replicas` decides, from the
//! kind of outcome, whether, when and where to ask again.

mod names;
mod shown;

use crate::Error;
use names::Names;
use serde_json::Value;
use shown::shown;
use std::time::{Duration, SystemTime};
use ureq::unversioned::transport::DefaultConnector;

/// Bytes of a connection's two buffers; the larger holds a reply's headers. Larger ones come from the heap's large pages, which cost more
/// to clear than a small request does.
const BUFFER_BYTES: usize = 32 << 10;

/// The longest answer that is read.
const LONGEST_ANSWER_BYTES: u64 = 256 << 20;

/// A client of one server.
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    key: Option<String>,
    timeout: Duration,
}

/// What came of one exchange.
pub(crate) enum Outcome {
    /// Status 200 and JSON.
    Json(Value),
    /// A status that says the request itself is not taken (400, 404, 422, 501 ...), with its text: the server is well.
    Refused(String),
    /// 429 or 503: the server is alive and wants to be asked later.
    Busy { reason: String, retry_after: Option<Duration> },
    /// No answer in time, no JSON, or a server's own error: another try may go better.
    Broken(String),
    /// No connection, or one that broke off: what answers there next may be another process.
    Lost(String),
    /// Anything else, such as a wrong key: asking again changes nothing.
    Final(String),
}

impl Client {
    /// `base` is the address up to and including `/v1`; `connections` are kept open. The key comes from `ALOE_API_KEY` or
    /// `OPENAI_API_KEY`.
    pub(crate) fn new(base: &str, connections: usize, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .tls_config(ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build())
            .timeout_connect(Some(Duration::from_secs(10).min(timeout)))
            .timeout_global(Some(timeout))
            .max_idle_connections(connections)
            .max_idle_connections_per_host(connections)
            .http_status_as_error(false)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .build();
        let key = ["ALOE_API_KEY", "OPENAI_API_KEY"].iter().find_map(|name| std::env::var(name).ok());
        let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), Names::default());
        Self { agent, base: base.trim_end_matches('/').to_owned(), key, timeout }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Fetches `path`, waiting no longer than `timeout` where one is given.
    pub(crate) fn get(&self, path: &str, timeout: Duration) -> Outcome {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        read(request.config().timeout_global(Some(timeout)).build().call(), b"")
    }

    /// Posts `body`.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Outcome {
        self.post_within(path, body, self.timeout)
    }

    /// Posts `body`, waiting no longer than `timeout`.
    pub(crate) fn post_within(&self, path: &str, body: &Value, timeout: Duration) -> Outcome {
        self.send(path, body.to_string().as_bytes(), timeout)
    }

    /// Posts `body`, a JSON text.
    pub(crate) fn post_json(&self, path: &str, body: &[u8]) -> Outcome {
        self.send(path, body, self.timeout)
    }

    fn send(&self, path: &str, body: &[u8], timeout: Duration) -> Outcome {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        request = request.header("Content-Type", "application/json");
        read(request.config().timeout_global(Some(timeout.min(self.timeout))).build().send(body), body)
    }

    /// An error about this server.
    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Endpoint { url: self.base.clone(), reason: reason.into() }
    }
}

/// What came of sending `body`; no reason holds what it says.
fn read(sent: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>, body: &[u8]) -> Outcome {
    let mut response = match sent {
        Ok(response) => response,
        Err(error @ ureq::Error::Timeout(_)) => return Outcome::Broken(error.to_string()),
        Err(error) if is_lost(&error) => return Outcome::Lost(error.to_string()),
        Err(error) => return Outcome::Final(error.to_string()),
    };
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (retry_after, kind) = (header("retry-after"), header("content-type").unwrap_or_default());
    let text = match response.body_mut().with_config().limit(LONGEST_ANSWER_BYTES).read_to_string() {
        Ok(text) => text,
        Err(error @ ureq::Error::Timeout(_)) => {
            return Outcome::Broken(format!("the answer cannot be read: {error}"));
        }
        Err(error) => return Outcome::Lost(format!("the answer cannot be read: {error}")),
    };
    if status == 200 {
        return match serde_json::from_str(&text) {
            Ok(answer) if is_error(&answer) => {
                Outcome::Broken(format!("status 200 and an error in place of an answer: {}", shown(&text, body)))
            }
            Ok(answer) => Outcome::Json(answer),
            Err(error) => not_json(&text, &kind, &error, body),
        };
    }
    let reason = format!("HTTP status {status}: {}", shown(&text, body));
    match status {
        429 | 503 => {
            let retry_after = retry_after.and_then(|value| pause(&value, SystemTime::now()));
            Outcome::Busy { reason, retry_after }
        }
        408 | 500 | 504 => Outcome::Broken(reason),
        // A proxy before a server that is gone.
        502 => Outcome::Lost(reason),
        400 | 404 | 405 | 413 | 422 | 501 => Outcome::Refused(reason),
        _ => Outcome::Final(reason),
    }
}

/// Whether a server, or the proxy before it, says under status 200 what is wrong in place of an answer.
fn is_error(answer: &Value) -> bool {
    let is_answer = ["choices", "data"].iter().any(|key| answer.get(key).is_some());
    !is_answer && answer.get("error").is_some_and(|error| !error.is_null())
}

/// How long `Retry-After` asks to wait: seconds, or the time until a date in one of HTTP's three forms, none where it is past.
fn pause(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let until = || Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default());
    value.parse().ok().map(Duration::from_secs).or_else(until)
}

/// Whether the network or the server's process failed, rather than the request.
fn is_lost(error: &ureq::Error) -> bool {
    use ureq::Error::{ConnectionFailed, Io, Protocol};
    matches!(error, Io(_) | ConnectionFailed | Protocol(_))
}

/// The beginning of what came instead tells a proxy's page from a cut answer.
fn not_json(text: &str, kind: &str, error: &serde_json::Error, body: &[u8]) -> Outcome {
    let shown: String = shown(text, body).chars().take(60).collect();
    Outcome::Broken(format!("the answer is not JSON ({error}; content type {kind:?}, it begins {shown:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// RFC 9110, 5.6.7: one moment in its three forms, 784,111,777 s after 1970.
    #[test]
    fn a_pause_is_asked_for_in_seconds_or_by_a_date_in_each_of_https_three_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 40);
        for date in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(pause(date, now), Some(Duration::from_secs(40)), "{date}");
            assert_eq!(pause(date, now + Duration::from_secs(41)), Some(Duration::ZERO), "{date}");
        }
        assert_eq!(pause(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!((pause("soon", now), pause("", now), pause("-1", now)), (None, None, None));
    }

    #[test]
    fn an_error_in_place_of_an_answer_is_told_from_an_answer() {
        assert!(is_error(&json!({"error": {"message": "overloaded", "code": 503}})));
        assert!(is_error(&json!({"error": "overloaded"})));
        assert!(!is_error(&json!({"error": null, "choices": []})));
        assert!(!is_error(&json!({"choices": [], "error": {}})));
        assert!(!is_error(&json!({"object": "list", "data": []})) && !is_error(&json!([])));
    }
}
