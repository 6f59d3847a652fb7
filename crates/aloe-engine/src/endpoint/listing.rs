//! What servers say about themselves on `/v1/models`: which model is meant, and that all of several servers have the same.
//!
//! An address is one or more bases with commas between, then `#` and the model's name: `http://a:1/v1,http://b:2/v1#model`.

use crate::http::{Client, Outcome};
use crate::{EngineOptions, Error, Result};
use aloe_record::Cancel;
use serde_json::Value;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often the list is asked for before the servers are given up, and the first wait between.
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// How often an interrupt is looked for.
const POLL: Duration = Duration::from_millis(50);

/// How long a server may take to say what it serves: a list costs it nothing.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// The servers of an address and what they serve.
pub(super) struct Opened {
    pub(super) clients: Vec<Arc<Client>>,
    /// The model's name.
    pub(super) model: String,
    /// What the servers say of it, the same for all.
    pub(super) listed: String,
    /// Whether the program is llama.cpp's, by its list.
    pub(super) is_llama_server: bool,
    /// Its context in tokens, where the list tells (vLLM's `max_model_len`).
    pub(super) context_len: Option<u64>,
    /// Servers that did not answer, and why; at least one answered.
    pub(super) out: Vec<(usize, String)>,
}

/// What the servers of `address` say of its model now; asked once, no server is waited for.
pub fn listed(address: &str, cancel: &Cancel) -> Result<String> {
    let options = EngineOptions { cancel: cancel.clone(), ..EngineOptions::default() };
    Ok(open_in(address, &options, 1)?.listed)
}

/// Asks every server of `address` for its models.
pub(super) fn open(address: &str, options: &EngineOptions) -> Result<Opened> {
    open_in(address, options, TRIES)
}

fn open_in(address: &str, options: &EngineOptions, tries: u32) -> Result<Opened> {
    let (bases, wanted) = address.split_once('#').unwrap_or((address, ""));
    let bases: Vec<&str> = bases.split(',').map(|base| base.trim().trim_end_matches('/')).collect();
    for (at, base) in bases.iter().enumerate() {
        let is_address = base.starts_with("http://") || base.starts_with("https://");
        if !is_address || bases[..at].contains(base) {
            let reason = format!(
                "{base:?} is {}; several servers of one model are written http://a:1/v1,http://b:2/v1#model",
                if is_address { "named twice" } else { "no address of a server" }
            );
            return Err(Error::Open { model: address.to_owned(), reason });
        }
    }
    let timeout = options.request_timeout;
    let clients: Vec<_> = bases.iter().map(|base| Arc::new(Client::new(base, options.connections, timeout))).collect();
    let (listings, out) = ask_all(&clients, timeout.min(LIST_TIMEOUT), tries, &options.cancel)?;
    let mut found: Option<(&Client, &Value, String, String)> = None;
    for (at, listing) in &listings {
        let client = &clients[*at];
        let model = choose_model(client, listing, wanted)?;
        let listed = describe(listing, &model);
        match &found {
            Some((first, _, _, other)) if *other != listed => {
                let reason = format!(
                    "the servers do not serve the same model: {} lists {other:?}, {} lists {listed:?}",
                    first.base(),
                    client.base()
                );
                return Err(Error::Open { model: address.to_owned(), reason });
            }
            Some(_) => {}
            None => found = Some((client, listing, model, listed)),
        }
    }
    let (_, listing, model, listed) =
        found.ok_or_else(|| Error::Open { model: address.to_owned(), reason: "no server answers".to_owned() })?;
    let entry = entry(listing, &model);
    let (context_len, is_llama_server) = (entry["max_model_len"].as_u64(), entry["owned_by"] == "llamacpp");
    Ok(Opened { clients, model, listed, is_llama_server, context_len, out })
}

type Listings = (Vec<(usize, Value)>, Vec<(usize, String)>);

/// The lists of the servers that answer, and why the others do not. While none answers they are asked again a few times.
fn ask_all(clients: &[Arc<Client>], timeout: Duration, tries: u32, cancel: &Cancel) -> Result<Listings> {
    let mut wait = FIRST_WAIT;
    for turn in 1.. {
        let (mut listings, mut out) = (Vec::new(), Vec::new());
        for (at, outcome) in ask_once(clients, timeout, cancel)?.into_iter().enumerate() {
            match outcome {
                Outcome::Json(listing) => listings.push((at, listing)),
                Outcome::Refused(reason) | Outcome::Final(reason) => return Err(clients[at].error(reason)),
                Outcome::Busy { reason, .. } | Outcome::Broken(reason) | Outcome::Lost(reason) => {
                    out.push((at, reason))
                }
            }
        }
        let is_up = !listings.is_empty();
        for (at, reason) in &out {
            let (base, seconds) = (clients[*at].base(), wait.as_secs_f64());
            match (is_up, turn == tries) {
                (true, _) => aloe_record::tell(&format!("{base}: {reason}; the other servers are asked")),
                (false, true) => return Err(clients[*at].error(format!("{reason} (after {tries} tries)"))),
                (false, false) => {
                    let next = turn + 1;
                    aloe_record::tell(&format!("{base}: {reason}; trying again in {seconds} s ({next} of {tries})"));
                }
            }
        }
        if is_up {
            return Ok((listings, out));
        }
        let until = Instant::now() + wait;
        while Instant::now() < until {
            cancel.check()?;
            std::thread::sleep(POLL.min(wait));
        }
        wait *= 2;
    }
    Ok((Vec::new(), Vec::new()))
}

/// What each server says, all asked at once from threads that an interrupt leaves behind.
fn ask_once(clients: &[Arc<Client>], timeout: Duration, cancel: &Cancel) -> Result<Vec<Outcome>> {
    let waiting: Vec<_> = clients
        .iter()
        .map(|client| {
            let ((send, receive), client) = (mpsc::channel(), Arc::clone(client));
            std::thread::spawn(move || {
                let _ = send.send(client.get("/models", timeout));
            });
            receive
        })
        .collect();
    waiting
        .into_iter()
        .map(|receive| {
            loop {
                match receive.recv_timeout(POLL) {
                    Ok(outcome) => return Ok(outcome),
                    Err(RecvTimeoutError::Timeout) => cancel.check()?,
                    Err(RecvTimeoutError::Disconnected) => {
                        return Ok(Outcome::Lost("the connection was lost".to_owned()));
                    }
                }
            }
        })
        .collect()
}

fn choose_model(client: &Client, listed: &Value, wanted: &str) -> Result<String> {
    let names: Vec<&str> = listed["data"]
        .as_array()
        .map(|models| models.iter().filter_map(|model| model["id"].as_str()).collect())
        .unwrap_or_default();
    let error = |reason| Err(Error::Open { model: format!("{}#{wanted}", client.base()), reason });
    match (wanted, names.as_slice()) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", _) => error(format!("name one of its models after `#`: {}", names.join(", "))),
        (wanted, names) if names.contains(&wanted) => Ok(wanted.to_owned()),
        (_, names) => {
            let served = if names.is_empty() { "none that it names".to_owned() } else { names.join(", ") };
            error(format!("the server does not serve it; it serves {served}"))
        }
    }
}

fn entry<'a>(listed: &'a Value, model: &str) -> &'a Value {
    let entry = listed["data"].as_array().and_then(|models| models.iter().find(|entry| entry["id"] == model));
    entry.unwrap_or(&Value::Null)
}

/// What identifies the model in the list: its id, and the `root` it was loaded from (vLLM).
pub(super) fn describe(listed: &Value, model: &str) -> String {
    let entry = entry(listed, model);
    if entry.is_null() { String::new() } else { format!("{} {}", entry["id"], entry["root"]) }
}

/// Whether an answer that names `said` may come from the model asked for: the same name, what it was loaded from, or the name
/// with a date, as OpenAI answers for an alias.
pub(super) fn may_be(said: &str, model: &str, listed: &str) -> bool {
    let dated = |rest: &str| rest.starts_with('-') && rest.chars().all(|c| c == '-' || c.is_ascii_digit());
    said == model || listed.ends_with(&format!(" \"{said}\"")) || said.strip_prefix(model).is_some_and(dated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_name_the_model_its_root_or_the_model_with_a_date_and_nothing_else() {
        let listed = "\"m\" \"/models/m-8b\"";
        for said in ["m", "/models/m-8b", "m-2024-08-06", "m-0613"] {
            assert!(may_be(said, "m", listed), "{said}");
        }
        for said in ["", "n", "m-mini", "m-8b", "models/m-8b", "m2", "M"] {
            assert!(!may_be(said, "m", listed), "{said}");
        }
    }

    #[test]
    fn an_address_with_a_part_that_is_none_or_twice_the_same_is_refused_before_anything_is_asked() {
        for (address, words) in [
            ("http://127.0.0.1:9/v1,127.0.0.1:8/v1#m", "\"127.0.0.1:8/v1\" is no address"),
            ("http://127.0.0.1:9/v1,http://127.0.0.1:9/v1/#m", "named twice"),
            ("http://127.0.0.1:9/v1,#m", "\"\" is no address"),
        ] {
            let error = open(address, &EngineOptions::default()).err().unwrap().to_string();
            assert!(error.contains(words) && error.contains("http://a:1/v1,http://b:2/v1#model"), "{error}");
        }
    }
}
