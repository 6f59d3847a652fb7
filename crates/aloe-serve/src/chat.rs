//! `/v1/chat/completions`: a conversation through the model's own template. Whatever a message says stays text: no control token can
//! come out of it.

use crate::app::{App, BodyRoom};
use crate::asking::{Answer, Ear, finish_word, hear_all};
use crate::completions::usage;
use crate::events::{Events, Shape};
use crate::fields::{Fields, IsOff, wrong};
use crate::refusal::{Refusal, json_response};
use crate::sampling::{MAX_TOKENS, MAX_TOP, Manner, check_told};
use aloe_engine::{Ask, Gained, Prompt};
use aloe_text::{Message, Role, TextModel};
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

/// Fields beside those of [`Manner`] that are not honoured.
const OFF: [(&str, IsOff); 12] = [
    ("tools", IsOff::Empty),
    ("tool_choice", IsOff::Text(&["none"])),
    ("functions", IsOff::Empty),
    ("function_call", IsOff::Text(&["none"])),
    ("parallel_tool_calls", IsOff::Always),
    ("echo", IsOff::Flag(false)),
    ("add_special_tokens", IsOff::Flag(false)),
    ("add_generation_prompt", IsOff::Flag(true)),
    ("continue_final_message", IsOff::Flag(false)),
    ("chat_template_kwargs", IsOff::Empty),
    ("documents", IsOff::Empty),
    ("truncate_prompt_tokens", IsOff::Empty),
];

/// Answers a request.
pub(crate) async fn answer(app: Arc<App>, mut fields: Fields, room: BodyRoom) -> Result<Response, Refusal> {
    app.take_model(&mut fields)?;
    let messages = messages(&mut fields)?;
    let max_tokens = max_tokens(&mut fields)?;
    let n_top = n_top(&mut fields)?;
    let mut manner = Manner::take(&mut fields)?;
    fields.refuse_unless_off(&OFF)?;
    fields.finish()?;
    let encode = |text: &TextModel, messages: Vec<Message>| text.encode_prompt(&messages);
    let ids = app.encode("messages", vec![messages], 1, encode).await?.concat();
    let max_tokens = max_tokens.unwrap_or_else(|| app.room_behind(ids.len()));
    Arc::make_mut(&mut manner.sampling).max_new_tokens = max_tokens;
    if let Some(n_top) = n_top {
        check_told(manner.n * app.most_new(ids.len(), max_tokens), n_top)?;
    }
    let ask = Ask::Generate {
        prompt: Prompt::Ids(ids),
        n: manner.n,
        sampling: Arc::clone(&manner.sampling),
        ignores_eos: manner.ignores_eos,
        n_top: n_top.unwrap_or(0),
        streams: manner.stream.is_some(),
    };
    let mut ear = Ear::ask(&app, vec![ask], room)?;
    if let Some(stream) = manner.stream {
        return Events::respond(app, ear, Shape::chat(n_top, &manner), manner.n, stream).await;
    }
    let heard = hear_all(&mut ear, &[manner.n]).await?;
    let answers: Vec<Answer> = heard.into_iter().flat_map(|one| one.answers).flatten().collect();
    let choice = |(index, answer): (usize, &Answer)| {
        let logprobs = n_top.map(|n_top| logprobs(&app, manner.names_by_id, n_top, &answer.gained));
        let message = json!({"role": "assistant", "content": answer.gained.text, "refusal": null});
        let finish_reason = finish_word(answer.finish_reason);
        let mut choice =
            json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason});
        if manner.tells_ids {
            choice["prompt_token_ids"] = json!(*answer.prompt_ids);
            choice["token_ids"] = json!(answer.gained.ids);
        }
        choice
    };
    let mut body = app.head("chatcmpl", "chat.completion");
    body["choices"] = answers.iter().enumerate().map(choice).collect();
    let n_prompt = answers.first().map_or(0, |answer| answer.prompt_ids.len());
    body["usage"] = usage(n_prompt, answers.iter().map(|answer| answer.gained.ids.len()).sum());
    Ok(json_response(&body))
}

/// `max_tokens` is the older name.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, Refusal> {
    let (older, newer) = (fields.whole("max_tokens", MAX_TOKENS)?, fields.whole("max_completion_tokens", MAX_TOKENS)?);
    match (older, newer) {
        (Some(0), _) => Err(Refusal::field("max_tokens", "must be at least 1")),
        (_, Some(0)) => Err(Refusal::field("max_completion_tokens", "must be at least 1")),
        (Some(older), Some(newer)) if older != newer => {
            Err(Refusal::field("max_completion_tokens", "says otherwise than max_tokens"))
        }
        (older, newer) => Ok(newer.or(older).map(|n| n as usize)),
    }
}

/// How many tokens are told beside each one; `None` tells no log-probabilities.
fn n_top(fields: &mut Fields) -> Result<Option<usize>, Refusal> {
    let (is_on, n_top) = (fields.flag("logprobs")?.unwrap_or(false), fields.whole("top_logprobs", MAX_TOP)?);
    match (is_on, n_top) {
        (false, Some(1..)) => Err(Refusal::field("top_logprobs", "goes with logprobs: true alone")),
        (false, _) => Ok(None),
        (true, n_top) => Ok(Some(n_top.unwrap_or(0) as usize)),
    }
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, Refusal> {
    let given = fields.take("messages").ok_or_else(|| Refusal::field("messages", "is missing"))?;
    match given {
        Value::Array(list) if !list.is_empty() => {
            list.into_iter().enumerate().map(|(at, one)| message(&format!("messages[{at}]"), one)).collect()
        }
        other => Err(wrong("messages", "a list of messages, not empty", &other)),
    }
}

fn message(place: &str, given: Value) -> Result<Message, Refusal> {
    let within = |refusal: Refusal| Refusal::field(place, refusal.message);
    let mut fields = Fields::of(given).ok_or_else(|| Refusal::field(place, "must be an object"))?;
    let role = match fields.text("role").map_err(within)?.as_deref() {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => return Err(Refusal::field(place, "role: must be system, user or assistant")),
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts.into_iter().map(|part| text_of(place, part)).collect::<Result<_, _>>()?,
        _ => return Err(Refusal::field(place, "content: must be a string or a list of text parts")),
    };
    fields.refuse_unless_off(&[("tool_calls", IsOff::Empty)]).and_then(|()| fields.finish()).map_err(within)?;
    Ok(Message { role, content })
}

/// The text of a part.
fn text_of(place: &str, part: Value) -> Result<String, Refusal> {
    let refuse = || Refusal::field(place, "content: a part must be {\"type\": \"text\", \"text\": ...}");
    let mut fields = Fields::of(part).ok_or_else(refuse)?;
    let (kind, text) = (fields.text("type").map_err(|_| refuse())?, fields.text("text").map_err(|_| refuse())?);
    fields.finish().map_err(|refusal| Refusal::field(place, refusal.message))?;
    text.filter(|_| kind.as_deref() == Some("text")).ok_or_else(refuse)
}

/// OpenAI's list of tokens with their log-probabilities.
pub(crate) fn logprobs(app: &App, by_id: bool, n_top: usize, gained: &Gained) -> Value {
    let token = |id: u32, logp: f32| {
        let bytes = app.names.with(id, |named| named.bytes.clone());
        json!({"token": app.names.name(id, by_id), "logprob": f64::from(logp), "bytes": bytes})
    };
    let content = gained.ids.iter().zip(&gained.logps).enumerate().map(|(at, (&id, &logp))| {
        let mut one = token(id, logp);
        // JSON has no word for a token that cannot follow.
        let tops = gained.tops.get(at).into_iter().flatten().take(n_top).filter(|top| top.1.is_finite());
        one["top_logprobs"] = tops.map(|&(id, logp)| token(id, logp)).collect();
        one
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}
