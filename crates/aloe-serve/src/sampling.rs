//! The fields that both routes have: how answers are drawn, and how they are told.

use crate::fields::{Fields, IsOff};
use crate::refusal::Refusal;
use aloe_engine::Sampling;
use aloe_record::CounterRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The most answers to one prompt, as OpenAI has it.
pub(crate) const MAX_N: u64 = 128;

/// The most tokens told beside each one, as vLLM has it.
pub(crate) const MAX_TOP: u64 = 20;

/// The most stop texts, their longest in bytes, and the most stop ids: each is looked for after every token.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_IDS: usize = 1024;

/// The most tokens an answer may ask for; the model's context ends it earlier.
pub(crate) const MAX_TOKENS: u64 = 1 << 24;

/// The most log-probabilities that one answer may hold: it is made in memory, some hundred bytes for each.
const MAX_TOLD: usize = 1 << 22;

/// Refuses a request whose answer could have too many log-probabilities: `n_places` tokens, and `n_top` others beside each.
pub(crate) fn check_told(n_places: usize, n_top: usize) -> Result<(), Refusal> {
    let n_told = n_places.saturating_mul(n_top + 1);
    if n_told > MAX_TOLD {
        let message = format!(
            "{n_places} tokens with {n_top} others beside each would be {n_told} log-probabilities in one answer, {MAX_TOLD} are \
             told at most; ask for fewer prompts, answers, tokens or others"
        );
        return Err(Refusal::field("logprobs", message));
    }
    Ok(())
}

/// What both routes read.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// How answers are drawn; `max_new_tokens` is the route's.
    pub(crate) sampling: Arc<Sampling>,
    pub(crate) n: usize,
    pub(crate) ignores_eos: bool,
    /// Set where the answer is streamed.
    pub(crate) stream: Option<StreamManner>,
    /// Tokens are named by their ids, as `token_id:5`.
    pub(crate) names_by_id: bool,
    /// The ids of prompt and answer are told.
    pub(crate) tells_ids: bool,
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamManner {
    /// The last event counts the tokens.
    pub(crate) counts: bool,
}

/// Fields of OpenAI and vLLM that are not honoured, with the value that asks for nothing.
const OFF: [(&str, IsOff); 27] = [
    ("presence_penalty", IsOff::Number(0.0)),
    ("frequency_penalty", IsOff::Number(0.0)),
    ("logit_bias", IsOff::Empty),
    ("length_penalty", IsOff::Number(1.0)),
    ("use_beam_search", IsOff::Flag(false)),
    ("min_tokens", IsOff::Number(0.0)),
    ("skip_special_tokens", IsOff::Flag(true)),
    ("spaces_between_special_tokens", IsOff::Always),
    ("include_stop_str_in_output", IsOff::Flag(false)),
    ("prompt_logprobs", IsOff::Empty),
    ("response_format", IsOff::PlainText),
    ("priority", IsOff::Number(0.0)),
    ("service_tier", IsOff::Text(&["auto", "default"])),
    ("store", IsOff::Flag(false)),
    ("metadata", IsOff::Empty),
    ("user", IsOff::Always),
    ("safety_identifier", IsOff::Always),
    ("request_id", IsOff::Always),
    ("cache_salt", IsOff::Empty),
    ("bad_words", IsOff::Empty),
    ("structured_outputs", IsOff::Empty),
    ("guided_json", IsOff::Empty),
    ("guided_regex", IsOff::Empty),
    ("guided_choice", IsOff::Empty),
    ("guided_grammar", IsOff::Empty),
    ("logits_processors", IsOff::Empty),
    ("cache_prompt", IsOff::Always),
];

impl Manner {
    /// Takes the common fields out.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, Refusal> {
        let mut sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        if let Some(temperature) = fields.number("temperature")? {
            sampling.temperature = temperature as f32;
        }
        if let Some(top_p) = fields.number("top_p")? {
            sampling.top_p = top_p as f32;
        }
        if let Some(min_p) = fields.number("min_p")? {
            sampling.min_p = min_p as f32;
        }
        sampling.top_k = top_k(fields)?;
        sampling.repetition_penalty = penalty(fields)?;
        sampling.seed = fields.whole("seed", i64::MAX as u64)?.unwrap_or_else(fresh_seed);
        sampling.stop = fields.texts("stop")?;
        let is_good = |text: &String| (1..=MAX_STOP_BYTES).contains(&text.len());
        if sampling.stop.len() > MAX_STOPS || !sampling.stop.iter().all(is_good) {
            let message = format!("must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_BYTES} bytes");
            return Err(Refusal::field("stop", message));
        }
        sampling.stop_ids = fields.ids("stop_token_ids")?;
        if sampling.stop_ids.len() > MAX_STOP_IDS {
            return Err(Refusal::field("stop_token_ids", format!("must be at most {MAX_STOP_IDS} ids")));
        }
        if let Some(mistake) = sampling.mistakes().into_iter().next() {
            let name = mistake.split(' ').next().unwrap_or_default().to_owned();
            return Err(Refusal::field(&name, mistake.trim_start_matches(&name).trim_start()));
        }
        let n = fields.whole("n", MAX_N)?.unwrap_or(1) as usize;
        if n == 0 {
            return Err(Refusal::field("n", "must be at least 1"));
        }
        let manner = Self {
            sampling: Arc::new(sampling),
            n,
            ignores_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            stream: stream(fields)?,
            names_by_id: fields.flag("return_tokens_as_token_ids")?.unwrap_or(false),
            tells_ids: fields.flag("return_token_ids")?.unwrap_or(false),
        };
        fields.refuse_unless_off(&OFF)?;
        Ok(manner)
    }
}

/// 0 and -1 keep all tokens.
fn top_k(fields: &mut Fields) -> Result<usize, Refusal> {
    match fields.number("top_k")? {
        None => Ok(0),
        Some(-1.0) => Ok(0),
        Some(k) if k.fract() == 0.0 && (0.0..=1e9).contains(&k) => Ok(k as usize),
        Some(k) => Err(Refusal::field("top_k", format!("must be a whole number, or -1 for all tokens, found {k}"))),
    }
}

/// vLLM and SGLang say `repetition_penalty`, llama-server `repeat_penalty`.
fn penalty(fields: &mut Fields) -> Result<f32, Refusal> {
    match (fields.number("repetition_penalty")?, fields.number("repeat_penalty")?) {
        (Some(one), Some(other)) if one != other => {
            Err(Refusal::field("repeat_penalty", "says otherwise than repetition_penalty"))
        }
        (one, other) => Ok(one.or(other).map_or(1.0, |penalty| penalty as f32)),
    }
}

fn stream(fields: &mut Fields) -> Result<Option<StreamManner>, Refusal> {
    let streams = fields.flag("stream")?.unwrap_or(false);
    let Some(options) = fields.take("stream_options") else { return Ok(streams.then(StreamManner::default)) };
    if !streams {
        return Err(Refusal::field("stream_options", "goes with stream: true alone"));
    }
    let inner = |refusal: Refusal| Refusal::field("stream_options", refusal.message);
    let mut options = Fields::of(options).ok_or_else(|| Refusal::field("stream_options", "must be an object"))?;
    let counts = options.flag("include_usage").map_err(inner)?.unwrap_or(false);
    options
        .refuse_unless_off(&[
            ("continuous_usage_stats", IsOff::Flag(false)),
            ("include_obfuscation", IsOff::Flag(false)),
        ])
        .and_then(|()| options.finish())
        .map_err(inner)?;
    Ok(Some(StreamManner { counts }))
}

/// A seed for a request that names none: another one each time.
fn fresh_seed() -> u64 {
    static N_DRAWN: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let mut rng = CounterRng::new(now, "served/seed", N_DRAWN.fetch_add(1, Ordering::SeqCst));
    (rng.uniform_f64() * (1u64 << 53) as f64) as u64
}
