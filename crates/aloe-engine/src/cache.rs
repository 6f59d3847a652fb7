//! Answers kept on disk, for several processes at once: what a model was asked before it is not asked again.
//!
//! An entry's key is a digest over everything that decides the answer ([`Key`]), so that a changed weight, template, token or sampling
//! field is a miss. An entry holds a request's whole answer, all `n` samples of it in their order; an answer that does not fit the
//! request, or a line that fails its checksum, is a miss too. Of an endpoint no more is known than its address, what it says of
//! itself and its answers to the canary: these stand in the log, and answers belong to the first that lie as close as those of the
//! same weights. Refuses to keep errors.

use crate::engine::{Take, check_sampling, in_order};
use crate::{
    Call, CanaryAnswers, Completion, Engine, EngineIdentity, Error, GenerateRequest, GenerateResult, Prompt, Result,
    ScoreRequest, ScoreResult, encode,
};
use aloe_record::shared_log::{Place, SharedLog};
use aloe_record::{Cancel, Progress, digest};
use aloe_text::TextModel;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The program version since which the engine gives the same answers to the same requests, bit for bit: part of every key, and of the
/// fingerprints of the stages that ask a model. A change of a kernel's arithmetic sets it.
pub const ANSWERS_SINCE: &str = "0.1.0+3";

/// Requests that are looked up at once: so many answers from disk are held.
const CHUNK: usize = 256;

/// The log's name in the cache's folder.
const FILE: &str = "answers.log";

/// What a cache was asked and knew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounts {
    /// Requests.
    pub n_asked: u64,
    /// Requests answered from the cache.
    pub n_hits: u64,
    /// Lines passed over because they were damaged or torn.
    pub n_damaged: u64,
}

/// A model behind a cache.
pub struct Cached {
    pub(crate) engine: Engine,
    store: Mutex<Store>,
    /// What an endpoint's answers belong to, per call, once found.
    weights_seen: Mutex<HashMap<Call, Option<String>>>,
}

struct Store {
    log: SharedLog,
    places: HashMap<String, Place>,
    /// Further lines under a key, in their order: looked at where the first is no answer to the request.
    later: HashMap<String, Vec<Place>>,
    counts: CacheCounts,
    /// Whether the last answers could not be kept; told once.
    is_full: bool,
}

/// A line of the log.
#[derive(Serialize, Deserialize)]
struct Entry<T> {
    key: String,
    answer: T,
}

/// What an entry's digest is taken over. `None` where a request has no ids or messages to stand for it: it is then not kept.
#[derive(Serialize)]
struct Key<'a> {
    since: &'a str,
    model: &'a Value,
    call: &'a str,
    /// Token ids, or chat messages where the server renders.
    prompt: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuations: Option<Vec<Vec<u32>>>,
    /// Id (it names the random stream), number of samples and sampling of a generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    draws: Option<Value>,
}

/// What a key says of the model: everything of its identity but the name, which of a local model is a label; its config, as the same
/// tensors answer otherwise under another RoPE base; and the ids that end an answer. Of an endpoint also the weights it was seen with.
fn model_key(engine: &Engine, weights_seen: Option<String>) -> Value {
    let EngineIdentity { weights, text, dtype, path, .. } = engine.identity();
    let (served, config) = match engine {
        Engine::Endpoint(endpoint) => {
            (Some(json!({"server": endpoint.cache_identity(), "weights_seen": weights_seen})), None)
        }
        Engine::Local(local) => (None, Some(local.decoder.config.to_json())),
        Engine::Cached(_) => (None, None),
    };
    let stop_ids = engine.text().map(TextModel::stop_ids);
    json!({
        "weights": weights, "text": text, "dtype": dtype, "path": path, "endpoint": served, "config": config,
        "stop_ids": stop_ids,
    })
}

impl Key<'_> {
    fn digest(&self) -> Option<String> {
        serde_json::to_string(self).ok().map(|json| digest::bytes(json.as_bytes()))
    }
}

/// What is looked up: the key, and what an answer under it must hold.
struct Wanted {
    key: String,
    /// The prompt's ids; `None` where the server renders it.
    prompt_ids: Option<Vec<u32>>,
    /// What is scored, the prompt's own tokens where no continuation was asked for.
    continuations: Vec<Vec<u32>>,
}

/// The answer to a request, if it is one to this request.
trait Answer: Serialize + DeserializeOwned {
    type Request: Clone;
    const CALL: Call;
    /// How much of a call's progress the answer is.
    fn n_steps(request: &Self::Request) -> usize;
    /// Whether the answer has the ids and the shape that were asked for.
    fn fits(&self, request: &Self::Request, wanted: &Wanted) -> bool;
    /// The answer under the request's name.
    fn named(self, request: &Self::Request) -> Self;
    /// What to look up; `None` where a request has no ids or messages to stand for it.
    fn wanted(model: &Value, engine: &Engine, request: &Self::Request) -> Option<Wanted>;
}

impl Answer for ScoreResult {
    type Request = ScoreRequest;
    const CALL: Call = Call::Score;

    fn n_steps(_: &ScoreRequest) -> usize {
        1
    }

    fn fits(&self, _: &ScoreRequest, wanted: &Wanted) -> bool {
        let ids = self.continuations.iter().map(|scored| &scored.ids);
        let whole = self.continuations.iter().all(|scored| scored.ids.len() == scored.logps.len());
        whole && Some(&self.prompt_ids) == wanted.prompt_ids.as_ref() && ids.eq(&wanted.continuations)
    }

    fn named(self, request: &ScoreRequest) -> Self {
        Self { id: request.id.clone(), ..self }
    }

    fn wanted(model: &Value, engine: &Engine, request: &ScoreRequest) -> Option<Wanted> {
        let (ids, mut continuations) = encode::score_ids(engine.text()?, request).ok()?;
        let (prompt, scored) = (json!({ "ids": ids }), Some(continuations.clone()));
        let key = Key { since: ANSWERS_SINCE, model, call: "score", prompt, continuations: scored, draws: None };
        if continuations.is_empty() {
            continuations.push(ids.get(1..)?.to_vec());
        }
        Some(Wanted { key: key.digest()?, prompt_ids: Some(ids), continuations })
    }
}

impl Answer for GenerateResult {
    type Request = GenerateRequest;
    const CALL: Call = Call::Generate;

    fn n_steps(request: &GenerateRequest) -> usize {
        request.n
    }

    fn fits(&self, request: &GenerateRequest, wanted: &Wanted) -> bool {
        let whole = |one: &Completion| match (&one.ids, &one.logps) {
            (Some(ids), Some(logps)) => ids.len() == logps.len() && ids.len() <= request.sampling.max_new_tokens,
            (ids, _) => ids.as_ref().is_none_or(|ids| ids.len() <= request.sampling.max_new_tokens),
        };
        self.completions.len() == request.n
            && self.prompt_ids == wanted.prompt_ids
            && self.completions.iter().all(whole)
    }

    fn named(self, request: &GenerateRequest) -> Self {
        Self { id: request.id.clone(), ..self }
    }

    fn wanted(model: &Value, engine: &Engine, request: &GenerateRequest) -> Option<Wanted> {
        check_sampling(request).ok()?;
        let (prompt, prompt_ids) = match (engine, &request.prompt) {
            (Engine::Endpoint(endpoint), Prompt::Messages(messages)) if endpoint.renders() => {
                (json!({ "messages": messages }), None)
            }
            _ => {
                let ids = encode::prompt_ids(engine.text()?, &request.prompt).ok()?;
                (json!({ "ids": ids }), Some(ids))
            }
        };
        let draws = Some(json!({"id": request.id, "n": request.n, "sampling": request.sampling}));
        let key = Key { since: ANSWERS_SINCE, model, call: "generate", prompt, continuations: None, draws };
        Some(Wanted { key: key.digest()?, prompt_ids, continuations: Vec::new() })
    }
}

impl Cached {
    /// Puts the cache in the folder `folder` before `engine`.
    pub fn open(engine: Engine, folder: &Path) -> Result<Self> {
        let log = SharedLog::open(&folder.join(FILE))?;
        let mut store = Store {
            log,
            places: HashMap::new(),
            later: HashMap::new(),
            counts: CacheCounts::default(),
            is_full: false,
        };
        store.read_new()?;
        Ok(Self { engine, store: Mutex::new(store), weights_seen: Mutex::default() })
    }

    pub(crate) fn counts(&self) -> CacheCounts {
        let store = self.lock();
        CacheCounts { n_damaged: store.log.n_damaged(), ..store.counts }
    }

    pub(crate) fn score(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<ScoreResult>> {
        let ask = |missed: &[ScoreRequest]| self.engine.score(missed, progress, cancel);
        in_order(requests.len(), |take| {
            self.answer(requests, (progress, cancel), take, |missed, take| hand_over(ask(missed)?, take))
        })
    }

    pub(crate) fn score_into(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<ScoreResult>,
    ) -> Result<()> {
        let ask = |missed: &[_], take: &mut Take<_>| self.engine.score_into(missed, progress, cancel, take);
        self.answer(requests, (progress, cancel), take, ask)
    }

    pub(crate) fn generate(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        let ask = |missed: &[GenerateRequest]| self.engine.generate(missed, progress, cancel);
        in_order(requests.len(), |take| {
            self.answer(requests, (progress, cancel), take, |missed, take| hand_over(ask(missed)?, take))
        })
    }

    pub(crate) fn generate_into(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<GenerateResult>,
    ) -> Result<()> {
        let ask = |missed: &[_], take: &mut Take<_>| self.engine.generate_into(missed, progress, cancel, take);
        self.answer(requests, (progress, cancel), take, ask)
    }

    /// Hands over what is found, asks the model for the others in one call, and keeps each of its answers as it comes.
    fn answer<A: Answer>(
        &self,
        requests: &[A::Request],
        (progress, cancel): (&Progress, &Cancel),
        take: &mut Take<A>,
        ask: impl FnOnce(&[A::Request], &mut Take<A>) -> Result<()>,
    ) -> Result<()> {
        let model = model_key(&self.engine, self.weights_seen(A::CALL, cancel)?);
        let (mut places, mut missed, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (chunk, requests) in requests.chunks(CHUNK).enumerate() {
            let wanted: Vec<Option<Wanted>> = requests.iter().map(|one| A::wanted(&model, &self.engine, one)).collect();
            let found = self.lock().look_up::<A>(&wanted, requests)?;
            for (at, ((found, wanted), request)) in found.into_iter().zip(wanted).zip(requests).enumerate() {
                let at = chunk * CHUNK + at;
                let Some(found) = found else {
                    places.push(at);
                    missed.push(request.clone());
                    keys.push(wanted.map(|wanted| wanted.key));
                    continue;
                };
                progress.advance(A::n_steps(request) as u64);
                if take(at, Ok(found)).is_break() {
                    return Ok(());
                }
            }
        }
        if missed.is_empty() {
            return Ok(());
        }
        ask(&missed, &mut |at, answer| {
            if let (Ok(answer), Some(key)) = (&answer, keys[at].take())
                && let Ok(line) = serde_json::to_string(&Entry { key, answer })
            {
                self.lock().keep(&[line]);
            }
            take(places[at], answer)
        })
    }

    /// What an endpoint's answers belong to: the digest of the first answers to the canary in the log that lie as close to its own as
    /// those of the same weights do; its own where there are none.
    fn weights_seen(&self, call: Call, cancel: &Cancel) -> Result<Option<String>> {
        let Engine::Endpoint(endpoint) = &self.engine else { return Ok(None) };
        let mut known = self.weights_seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&call) {
            return Ok(known.clone());
        }
        let now = self.engine.canary(call, cancel)?;
        let asked = json!({"canary": format!("{call:?}"), "server": endpoint.cache_identity(), "text": self.engine.identity().text});
        let seen = now.map(|now| self.lock().same_weights(&asked, now)).transpose()?;
        known.insert(call, seen.clone());
        Ok(seen)
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hand_over<A>(answers: Vec<A>, take: &mut Take<A>) -> Result<()> {
    let mut answers = answers.into_iter().enumerate();
    let _ = answers.try_for_each(|(at, answer)| take(at, Ok(answer)));
    Ok(())
}

impl Store {
    /// Adds to the log. Answers that cannot be kept are given all the same: they are worth more than their place in a cache.
    fn keep(&mut self, lines: &[String]) {
        let kept = self.log.append(lines).map_err(Error::from).and_then(|_| self.read_new());
        if let (Err(error), false) = (&kept, self.is_full) {
            aloe_record::tell(&format!("warning: answers are not kept: {error}"));
        }
        self.is_full = kept.is_err();
    }

    /// The digest of the first answers to the canary `asked` that do not differ from `now`, which are added where there are none.
    fn same_weights(&mut self, asked: &Value, now: CanaryAnswers) -> Result<String> {
        for at in 0.. {
            let key = digest::bytes(json!([asked, at]).to_string().as_bytes());
            if self.find::<CanaryAnswers>(&key)?.is_none() {
                let line = serde_json::to_string(&Entry { key: key.clone(), answer: &now });
                self.keep(line.ok().as_slice());
            }
            // Another process may have been first; where nothing could be kept, these answers are nobody else's.
            let Some(then) = self.find::<CanaryAnswers>(&key)? else { break };
            if then.difference(&now).is_none() {
                return Ok(digest::bytes(json!(then).to_string().as_bytes()));
            }
        }
        Ok(digest::bytes(json!(now).to_string().as_bytes()))
    }

    /// What stands under a key, if it can be read.
    fn find<A: DeserializeOwned>(&mut self, key: &str) -> Result<Option<A>> {
        self.read_new()?;
        self.first(key, |_| true)
    }

    /// Takes in what was added to the log, by this process or another.
    fn read_new(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct KeyOnly {
            key: String,
        }
        let (places, later) = (&mut self.places, &mut self.later);
        Ok(self.log.read_new(|place, json| {
            if let Ok(entry) = serde_json::from_slice::<KeyOnly>(json) {
                match places.entry(entry.key) {
                    Slot::Vacant(slot) => {
                        slot.insert(place);
                    }
                    Slot::Occupied(slot) => later.entry(slot.key().clone()).or_default().push(place),
                }
            }
        })?)
    }

    fn look_up<A: Answer>(&mut self, wanted: &[Option<Wanted>], requests: &[A::Request]) -> Result<Vec<Option<A>>> {
        self.read_new()?;
        let mut found = Vec::with_capacity(wanted.len());
        for (wanted, request) in wanted.iter().zip(requests) {
            let fit = |wanted: &Wanted| self.first(&wanted.key, |answer: &A| answer.fits(request, wanted));
            let answer = wanted.as_ref().map(fit).transpose()?.flatten();
            self.counts.n_asked += 1;
            self.counts.n_hits += u64::from(answer.is_some());
            found.push(answer.map(|answer| answer.named(request)));
        }
        Ok(found)
    }

    /// The first answer under the key that is one to the request: a later one never takes its place.
    fn first<A: DeserializeOwned>(&self, key: &str, fits: impl Fn(&A) -> bool) -> Result<Option<A>> {
        let later = self.later.get(key).into_iter().flatten();
        for place in self.places.get(key).into_iter().chain(later) {
            let json = self.log.read(*place)?;
            let entry = json.and_then(|json| serde_json::from_slice::<Entry<A>>(&json).ok());
            if let Some(entry) = entry.filter(|entry| entry.key == key && fits(&entry.answer)) {
                return Ok(Some(entry.answer));
            }
        }
        Ok(None)
    }
}
