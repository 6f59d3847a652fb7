//! The server, asked over its socket as clients ask it: its answers are the local engine's own, what it cannot honour is refused by
//! name, and neither slow, absent nor greedy clients keep it from others.

mod answers;
mod command;
mod limits;
mod refusals;
mod streams;
mod wire;

use crate::stories;
use aloe_engine::{Engine, EngineOptions};
use aloe_record::Cancel;
use aloe_serve::{Limits, ServeOptions, Server};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use wire::Reply;

/// Opens a model for this process.
fn open(path: &Path) -> Engine {
    Engine::open(path.to_str().unwrap(), &EngineOptions { threads: 1, ..EngineOptions::default() }).unwrap()
}

/// A server of this process; it ends when it is dropped.
struct Served {
    address: SocketAddr,
    engine: Arc<Engine>,
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Stories260K as `m`, without a key, with the default bounds; `None` where the data is not at hand.
    fn stories() -> Option<Self> {
        Some(Self::start(&stories()?, ServeOptions::default()))
    }

    fn with_limits(limits: Limits) -> Option<Self> {
        Some(Self::start(&stories()?, ServeOptions { limits, ..ServeOptions::default() }))
    }

    fn start(path: &Path, options: ServeOptions) -> Self {
        Self::start_with(path, options, &EngineOptions { threads: 1, ..EngineOptions::default() })
    }

    fn start_with(path: &Path, options: ServeOptions, opening: &EngineOptions) -> Self {
        let engine = Arc::new(Engine::open(path.to_str().unwrap(), opening).unwrap());
        let options = ServeOptions { name: "m".to_owned(), ..options };
        let server = Server::bind("127.0.0.1", 0, options.key.as_deref()).unwrap();
        let (cancel, address) = (Cancel::default(), server.address());
        let (send, ready) = mpsc::channel();
        let (shared, ended) = (Arc::clone(&engine), cancel.clone());
        let thread = std::thread::spawn(move || {
            server.run(&shared, &options, &ended, |address| send.send(address).unwrap()).unwrap();
        });
        assert_eq!(ready.recv().unwrap(), address);
        Self { address, engine, cancel, thread: Some(thread) }
    }

    /// The answer to a request with these fields; the model's name is added.
    fn post(&self, path: &str, fields: Value) -> Reply {
        wire::post(self.address, path, &with_model(fields).to_string())
    }

    /// The answer's body, which must be 200.
    fn answer(&self, path: &str, fields: Value) -> Value {
        let reply = self.post(path, fields);
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }

    fn complete(&self, fields: Value) -> Value {
        self.answer("/v1/completions", fields)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.cancel.request(15);
        let joined = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            joined.unwrap().unwrap();
        }
    }
}

fn with_model(mut fields: Value) -> Value {
    fields["model"] = json!("m");
    fields
}
