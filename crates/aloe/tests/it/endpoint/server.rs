//! A loopback server with OpenAI's paths for the tests of endpoints: it answers by a function, or by a real small model
//! through our own engine, and remembers what it was asked.

use aloe_engine::{Continuation, Engine, EngineOptions, GenerateRequest, Prompt, Sampling, ScoreRequest};
use aloe_record::{Cancel, Progress};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// What the server does with a request.
pub(crate) enum Reply {
    /// Status 200.
    Json(Value),
    /// Status 200 with this content type and text, whatever it is.
    Raw(&'static str, String),
    /// Another status, with a header line that may be empty.
    Status(&'static str, &'static str),
    /// Status 400 with this text.
    Refused(String),
    /// The connection is closed without an answer, as by a process that died.
    Dies,
}

/// One request as it came.
#[derive(Clone)]
pub(crate) struct Asked {
    /// `/completions` or `/chat/completions`.
    pub(crate) path: String,
    /// The body.
    pub(crate) body: Value,
}

type Answer = dyn Fn(usize, &Asked) -> Reply + Send + Sync;

/// The seed of the client's canary questions (`aloe-engine/src/endpoint/canary.rs`).
pub(crate) const CANARY: u64 = 20_261_128;

/// A server that lives until the test ends. It serves the model `m`.
pub(crate) struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    root: Arc<Mutex<String>>,
}

/// What the connections of a server share.
struct Served {
    answer: Box<Answer>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// What its list says that the model was loaded from.
    root: Arc<Mutex<String>>,
    /// The canary's questions and the answers that they keep; `None` where `answer` gives them too.
    canaries: Option<Mutex<Vec<(Value, Value)>>>,
}

impl Server {
    /// Answers the n-th request (from 0; `/models` is not counted) by `answer`. The canary is answered the same each time and not
    /// counted, but for the probe of the log-probabilities, which `answer` is asked.
    pub(crate) fn start(answer: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(Box::new(answer), Some(Mutex::default()))
    }

    /// As `start`, but `answer` is asked the canary too, each time.
    pub(crate) fn with_canary(answer: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(Box::new(answer), None)
    }

    fn serve(answer: Box<Answer>, canaries: Option<Mutex<Vec<(Value, Value)>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let root = Arc::new(Mutex::new("weights".to_owned()));
        let served = Arc::new(Served { answer, asked: Arc::clone(&asked), root: Arc::clone(&root), canaries });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                std::thread::spawn(move || while serve(&stream, &served).is_some() {});
            }
        });
        Self { address, asked, root }
    }

    /// From now on the list says that the model was loaded from `root`.
    pub(crate) fn lists(&self, root: &str) {
        root.clone_into(&mut self.root.lock().unwrap());
    }

    /// `http://host:port/v1#m`.
    pub(crate) fn model(&self) -> String {
        format!("{}#m", self.address)
    }

    /// Everything asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many requests came so far.
    pub(crate) fn n_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Served {
    fn reply(&self, asked: Asked) -> Reply {
        let is_canary = asked.body["seed"] == CANARY;
        let Some(canaries) = self.canaries.as_ref().filter(|_| is_canary) else { return self.count(asked) };
        if let Some((_, known)) = canaries.lock().unwrap().iter().find(|(body, _)| *body == asked.body) {
            return Reply::Json(known.clone());
        }
        let is_probe = asked.body["echo"] == true || asked.body.get("prompt_logprobs").is_some();
        if !is_probe {
            return text("canary");
        }
        let body = asked.body.clone();
        let reply = self.count(asked);
        if let Reply::Json(answer) = &reply {
            canaries.lock().unwrap().push((body, answer.clone()));
        }
        reply
    }

    fn count(&self, asked: Asked) -> Reply {
        let at = {
            let mut seen = self.asked.lock().unwrap();
            seen.push(asked.clone());
            seen.len() - 1
        };
        (self.answer)(at, &asked)
    }
}

fn serve(mut stream: &TcpStream, served: &Served) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|&n| n > 0)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let path = first.split(' ').nth(1)?.strip_prefix("/v1")?.to_owned();
    let reply = if path == "/models" {
        Reply::Json(json!({"data": [{"id": "m", "root": *served.root.lock().unwrap()}]}))
    } else {
        served.reply(Asked { path, body: serde_json::from_slice(&body).ok()? })
    };
    let json = "application/json";
    let (status, header, kind, text) = match reply {
        Reply::Json(value) => ("200 OK", "", json, value.to_string()),
        Reply::Raw(kind, text) => ("200 OK", "", kind, text),
        Reply::Status(status, header) => (status, header, json, json!({ "error": status }).to_string()),
        Reply::Refused(text) => ("400 Bad Request", "", json, text),
        Reply::Dies => {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return None;
        }
    };
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{header}content-length: {}\r\n\r\n", text.len());
    stream.write_all(format!("{head}{text}").as_bytes()).ok()
}

/// A completion or chat answer that holds `text`.
pub(crate) fn text(text: &str) -> Reply {
    texts(&[text.to_owned()])
}

/// An answer with several choices.
pub(crate) fn texts(texts: &[String]) -> Reply {
    let choice = |(at, text): (usize, &String)| json!({"index": at, "text": text, "message": {"content": text}, "finish_reason": "stop"});
    Reply::Json(json!({"choices": texts.iter().enumerate().map(choice).collect::<Vec<_>>()}))
}

/// The ids of a request's prompt.
pub(crate) fn prompt_ids(asked: &Asked) -> Vec<u32> {
    asked.body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A real model behind the server, in f32.
pub(crate) struct Model {
    engine: Mutex<Engine>,
}

impl Model {
    pub(crate) fn open(folder: &Path) -> Self {
        let format = Some(aloe_engine::WeightFormat::Dense(aloe_tensor::Dtype::F32));
        let options = EngineOptions { format, threads: 1, ..EngineOptions::default() };
        Self { engine: Mutex::new(Engine::open(folder.to_str().unwrap(), &options).unwrap()) }
    }

    /// Log-probabilities in the form of `echo`, with an entry more where a new token was asked for.
    pub(crate) fn echo(&self, asked: &Asked) -> Reply {
        let scored = self.score(&prompt_ids(asked));
        let mut logps: Vec<Value> = vec![Value::Null];
        let mut tops = vec![Value::Null];
        for (logp, is_best) in &scored {
            logps.push(json!(logp));
            tops.push(json!({ "best": if *is_best { *logp } else { logp + 0.5 } }));
        }
        if asked.body["max_tokens"] == 1 {
            logps.push(json!(-0.25));
            tops.push(json!({"best": -0.25}));
        }
        let mut names: Vec<String> = prompt_ids(asked).iter().map(|id| format!("token_id:{id}")).collect();
        names.resize(logps.len(), "new".to_owned());
        let usage = json!({"prompt_tokens": prompt_ids(asked).len()});
        let logprobs = json!({"token_logprobs": logps, "top_logprobs": tops, "tokens": names});
        Reply::Json(json!({"model": "m", "choices": [{"text": "", "logprobs": logprobs}], "usage": usage}))
    }

    /// Log-probabilities in the form of vLLM's `prompt_logprobs`.
    pub(crate) fn by_id(&self, asked: &Asked) -> Reply {
        let ids = prompt_ids(asked);
        let mut entries = vec![Value::Null];
        for (id, (logp, is_best)) in ids[1..].iter().zip(self.score(&ids)) {
            let mut entry = json!({ id.to_string(): {"logprob": logp, "rank": if is_best { 1 } else { 2 }} });
            if !is_best {
                entry["x"] = json!({"logprob": logp + 0.5, "rank": 1});
            }
            entries.push(entry);
        }
        Reply::Json(json!({"choices": [{"text": "", "prompt_logprobs": entries}]}))
    }

    /// The answers, drawn as the request says; sample `i` has the seed plus `i`, as vLLM counts.
    pub(crate) fn complete(&self, asked: &Asked) -> Reply {
        let n = asked.body["n"].as_u64().unwrap();
        texts(&(0..n).map(|sample| self.draw(&asked.body, sample, prompt_ids(asked))).collect::<Vec<_>>())
    }

    fn draw(&self, body: &Value, sample: u64, prompt_ids: Vec<u32>) -> String {
        let stop_ids = body["stop_token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        let sampling = Sampling {
            max_new_tokens: body["max_tokens"].as_u64().unwrap() as usize,
            temperature: body["temperature"].as_f64().unwrap() as f32,
            top_p: body["top_p"].as_f64().unwrap() as f32,
            seed: body["seed"].as_u64().unwrap() + sample,
            stop_ids: stop_ids.collect(),
            ..Sampling::default()
        };
        let request = GenerateRequest { id: "served".into(), prompt: Prompt::Ids(prompt_ids), n: 1, sampling };
        let engine = self.engine.lock().unwrap();
        let result = engine.generate(&[request], &Progress::silent(), &Cancel::default()).unwrap().remove(0);
        result.completions[0].text.clone()
    }

    /// (log-probability, is the most probable) of each id from the second on.
    fn score(&self, ids: &[u32]) -> Vec<(f64, bool)> {
        let requests: Vec<ScoreRequest> = (1..ids.len())
            .map(|at| ScoreRequest {
                id: at.to_string(),
                prompt: Prompt::Ids(ids[..at].to_vec()),
                continuations: vec![Continuation::Ids(vec![ids[at]])],
            })
            .collect();
        let engine = self.engine.lock().unwrap();
        let results = engine.score(&requests, &Progress::silent(), &Cancel::default()).unwrap();
        results.iter().map(|result| (result.continuations[0].logps[0], result.continuations[0].is_greedy)).collect()
    }
}
