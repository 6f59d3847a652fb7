//! Answers as they grow: the pieces, joined, are the whole answer, and no half character or half stop text is among them.

use super::{Served, wire};
use serde_json::{Value, json};

/// The events of a request, without the usage event's being asked for unless `fields` do.
fn stream(served: &Served, path: &str, fields: &Value) -> Vec<Value> {
    let mut fields = fields.clone();
    fields["stream"] = json!(true);
    let reply = served.post(path, fields);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.head.contains("content-type: text/event-stream"), "{}", reply.head);
    wire::events(&reply.body)
}

/// Text, ids and log-probabilities of each choice, and how each ended.
fn joined(events: &[Value], n: usize, piece: fn(&Value) -> &Value) -> Vec<Value> {
    let mut found = vec![json!({"text": "", "ids": [], "logps": [], "offsets": [], "finish_reason": null}); n];
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let one = &mut found[choice["index"].as_u64().unwrap() as usize];
        assert!(one["finish_reason"].is_null(), "something follows the end: {choice}");
        let text = format!("{}{}", one["text"].as_str().unwrap(), piece(choice).as_str().unwrap_or_default());
        one["text"] = json!(text);
        let logprobs = &choice["logprobs"];
        let lists = [
            ("ids", &choice["token_ids"]),
            ("logps", &logprobs["token_logprobs"]),
            ("offsets", &logprobs["text_offset"]),
        ];
        for (to, from) in lists {
            one[to].as_array_mut().unwrap().extend(from.as_array().into_iter().flatten().cloned());
        }
        one["finish_reason"] = choice["finish_reason"].clone();
    }
    found
}

/// At temperature 2 the small model draws single bytes too, so characters of several tokens and broken ones come by.
#[test]
fn a_streamed_completion_is_the_whole_one_in_pieces() {
    let Some(served) = Served::stories() else { return };
    for (seed, temperature, stop) in [(1, 0.7, json!(["Lily", "was a"])), (2, 2.0, json!([])), (3, 0.0, json!(" time"))]
    {
        let fields = json!({"prompt": ["Once upon", "Tom saw"], "n": 3, "seed": seed, "temperature": temperature, "max_tokens": 80,
            "stop": stop, "logprobs": 1, "return_token_ids": true, "ignore_eos": seed == 2});
        let whole = served.complete(fields.clone());
        let mut counted = fields;
        counted["stream_options"] = json!({"include_usage": true});
        let events = stream(&served, "/v1/completions", &counted);
        let (last, events) = events.split_last().unwrap();
        assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
        let told = joined(events, 6, |choice| &choice["text"]);
        for (at, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let expected = json!({"text": choice["text"], "ids": choice["token_ids"],
                "logps": choice["logprobs"]["token_logprobs"], "offsets": choice["logprobs"]["text_offset"],
                "finish_reason": choice["finish_reason"]});
            assert_eq!(told[at], expected);
        }
        let pieces = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
        let longest = pieces.map(|choice| choice["token_ids"].as_array().unwrap().len()).max();
        assert!(longest < Some(10), "{longest:?} tokens came at once");
    }
}

/// The stop text is `b` of a text that the model writes, so the piece before its end begins like it again and again.
#[test]
fn the_beginning_of_a_stop_text_is_held_back_until_it_is_none() {
    let Some(served) = Served::stories() else { return };
    let free = json!({"prompt": "Once upon a time", "temperature": 0, "max_tokens": 60});
    let text = served.complete(free.clone())["choices"][0]["text"].as_str().unwrap().to_owned();
    let word: String = text.chars().skip(30).take(9).collect();
    let mut fields = free;
    fields["stop"] = json!([word, format!(" {word}never")]);
    let events = stream(&served, "/v1/completions", &fields);
    let told = joined(&events, 1, |choice| &choice["text"]);
    let expected = &text[..text.find(&word).unwrap()];
    assert_eq!((&told[0]["text"], &told[0]["finish_reason"]), (&json!(expected), &json!("stop")));
}

#[test]
fn a_streamed_chat_names_the_role_first_and_says_what_the_whole_one_says() {
    let Some(stories) = crate::stories() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = crate::endpoint::stories_with_template(&stories, &folder.path().join("model"));
    let served = Served::start(&path, aloe_serve::ServeOptions::default());
    let fields = json!({"messages": [{"role": "user", "content": "Once upon a time"}], "n": 2, "seed": 4, "max_completion_tokens": 40,
        "logprobs": true, "top_logprobs": 2});
    let whole = served.answer("/v1/chat/completions", fields.clone());
    let mut asked = fields.clone();
    asked["stream_options"] = json!({"include_usage": true});
    let events = stream(&served, "/v1/chat/completions", &asked);
    let (last, events) = events.split_last().unwrap();
    assert_eq!(last["usage"], whole["usage"]);
    let told = joined(events, 2, |choice| &choice["delta"]["content"]);
    for (at, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(told[at]["text"], choice["message"]["content"]);
        assert_eq!(told[at]["finish_reason"], choice["finish_reason"]);
        let own = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
        let own: Vec<&Value> = own.filter(|one| one["index"] == at).collect();
        assert_eq!(own[0]["delta"], json!({"role": "assistant", "content": ""}));
        assert!(own[1..].iter().all(|one| one["delta"].get("role").is_none()));
        let tokens: Vec<Value> =
            own.iter().flat_map(|one| one["logprobs"]["content"].as_array().cloned().unwrap_or_default()).collect();
        assert_eq!(json!(tokens), choice["logprobs"]["content"]);
        assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    }
    // The contents as a list of parts are the same prompt.
    let mut parts = fields;
    parts["messages"][0]["content"] =
        json!([{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]);
    assert_eq!(served.answer("/v1/chat/completions", parts)["choices"], whole["choices"]);
}

/// Memory for a few pages of 64 tokens, of the context of 512: without a limit of its own an answer ends where it does, and one that asks
/// for more is refused.
#[test]
fn a_chat_without_a_limit_ends_where_the_memory_does() {
    let Some(stories) = crate::stories() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = crate::endpoint::stories_with_template(&stories, &folder.path().join("model"));
    let page_bytes = {
        let served = Served::start(&path, aloe_serve::ServeOptions::default());
        served.complete(json!({"prompt": [1], "max_tokens": 1}));
        served.engine.counts().unwrap().peak_kv_bytes
    };
    let budget = Some(2 * page_bytes as usize + 1);
    let opening = aloe_engine::EngineOptions { threads: 1, kv_budget_bytes: budget, ..Default::default() };
    let served = Served::start_with(&path, aloe_serve::ServeOptions::default(), &opening);
    let said = json!([{"role": "user", "content": "Once upon a time"}]);
    let fields = json!({"messages": said, "temperature": 0, "ignore_eos": true});
    let answer = served.answer("/v1/chat/completions", fields.clone());
    let total = answer["usage"]["total_tokens"].as_u64().unwrap();
    assert!(total < 512 && total.is_multiple_of(64), "{total}");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let mut more = fields;
    more["max_tokens"] = json!(total + 1);
    assert_eq!(served.post("/v1/chat/completions", more).status, 400);
}

/// A request that cannot be answered has its status also where a stream was asked for.
#[test]
fn a_stream_that_cannot_begin_is_an_error_with_its_status() {
    let Some(served) = Served::stories() else { return };
    let reply = served.post("/v1/completions", json!({"prompt": vec![5; 600], "stream": true}));
    assert_eq!(reply.status, 400);
    let (message, _) = reply.error();
    assert!(message.contains("600") && message.contains("512"), "{message}");
}
