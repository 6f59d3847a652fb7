//! What is not answered: each with its status, in OpenAI's form, naming the field.

use super::{Served, wire};
use aloe_serve::ServeOptions;
use serde_json::{Value, json};

/// (field, value, what the message says) of fields that both routes have
fn on_both_routes() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("max_tokenz", json!(1), "there is no such field here"),
        ("n", json!(0), "must be at least 1"),
        ("n", json!(1_000_000), "must be a whole number from 0 to 128"),
        ("n", json!("2"), "must be a whole number"),
        ("max_tokens", json!(-1), "must be a whole number"),
        ("max_tokens", json!(1.5), "must be a whole number"),
        ("temperature", json!(-0.1), "must be at least 0"),
        ("temperature", json!("hot"), "must be a number"),
        ("top_p", json!(0), "must be above 0"),
        ("top_k", json!(2.5), "must be a whole number"),
        ("min_p", json!(1), "must be at least 0 and below 1"),
        ("repetition_penalty", json!(0), "must be from 1e-6 to 1e6"),
        ("repetition_penalty", json!(1e-40), "must be from 1e-6 to 1e6"),
        ("seed", json!(-1), "must be a whole number"),
        ("stop", json!([1]), "must be a string or a list of strings"),
        ("stop", json!([""]), "must be at most 64 texts of 1 to 1024 bytes"),
        ("stop", json!("a".repeat(1025)), "must be at most 64 texts of 1 to 1024 bytes"),
        ("stop", json!(vec!["a"; 65]), "must be at most 64 texts"),
        ("stop_token_ids", json!(vec![5; 1025]), "must be at most 1024 ids"),
        ("stop_token_ids", json!(["a"]), "must be a list of token ids"),
        ("stream", json!("yes"), "must be true or false"),
        ("stream_options", json!({"include_usage": true}), "goes with stream: true alone"),
        ("presence_penalty", json!(0.5), "is not supported with the value 0.5"),
        ("frequency_penalty", json!(1), "is not supported with the value 1"),
        ("logit_bias", json!({"5": 1}), "is not supported"),
        ("guided_choice", json!(["a"]), "is not supported"),
        ("min_tokens", json!(3), "is not supported with the value 3"),
        ("prompt_logprobs", json!(1), "is not supported with the value 1"),
        ("use_beam_search", json!(true), "is not supported with the value true"),
    ]
}

/// (path, fields, status, what the message says)
fn table() -> Vec<(&'static str, Value, u16, &'static str)> {
    let (completions, chat) = ("/v1/completions", "/v1/chat/completions");
    let said = json!([{"role": "user", "content": "Hi"}]);
    let mut rows = vec![
        (completions, json!({}), 400, "prompt: is missing"),
        (completions, json!({"prompt": []}), 400, "prompt: must be"),
        (completions, json!({"prompt": [[1], "a"]}), 400, "prompt: must be"),
        (completions, json!({"prompt": [1, 70_000]}), 400, "70000 is outside the model's vocabulary of 512"),
        (
            completions,
            json!({"prompt": vec![7; 512]}),
            400,
            "prompt: 512 tokens leave no room for an answer in the model's context of 512",
        ),
        (
            completions,
            json!({"prompt": vec![7; 513], "echo": true, "max_tokens": 0}),
            400,
            "513 tokens exceed the model's context of 512",
        ),
        (completions, json!({"prompt": "a", "max_tokens": 0}), 400, "max_tokens: must be at least 1"),
        (completions, json!({"prompt": "a", "echo": true, "stream": true}), 400, "echo: does not go with stream"),
        (completions, json!({"prompt": "a", "logprobs": 21}), 400, "logprobs: must be a whole number from 0 to 20"),
        (completions, json!({"prompt": "a", "best_of": 3}), 400, "best_of: is not supported with the value 3"),
        (completions, json!({"prompt": "a", "suffix": "b"}), 400, "suffix: is not supported"),
        (completions, json!({"prompt": "a", "messages": said}), 400, "messages: there is no such field here"),
        (chat, json!({}), 400, "messages: is missing"),
        (chat, json!({"messages": []}), 400, "messages: must be"),
        (chat, json!({"messages": [{"role": "tool", "content": "a"}]}), 400, "messages[0]: role: must be"),
        (chat, json!({"messages": [{"role": "user"}]}), 400, "messages[0]: content: must be"),
        (
            chat,
            json!({"messages": [{"role": "user", "content": "a", "name": "b"}]}),
            400,
            "messages[0]: name: there is no such field",
        ),
        (
            chat,
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            400,
            "messages[0]",
        ),
        (chat, json!({"messages": said, "tools": [{"type": "function"}]}), 400, "tools: is not supported"),
        (
            chat,
            json!({"messages": said, "response_format": {"type": "json_object"}}),
            400,
            "response_format: is not supported",
        ),
        (chat, json!({"messages": said, "top_logprobs": 2}), 400, "top_logprobs: goes with logprobs"),
        (
            chat,
            json!({"messages": said, "max_tokens": 1, "max_completion_tokens": 2}),
            400,
            "max_completion_tokens: says otherwise",
        ),
        (chat, json!({"messages": said, "prompt": "a"}), 400, "prompt: there is no such field here"),
        ("/v1/embeddings", json!({}), 400, "input: is missing"),
        ("/v1/embeddings", json!({"input": ["a", [1]]}), 400, "input: must be"),
        (
            "/v1/embeddings",
            json!({"input": "a", "dimensions": 8}),
            400,
            "dimensions: is not supported with the value 8",
        ),
        ("/v1/embeddings", json!({"input": "a", "encoding_format": "int8"}), 400, "encoding_format: must be"),
        ("/v1/embeddings", json!({"input": vec![7; 513]}), 400, "513 tokens exceed the model's context of 512"),
        ("/v1/rerank", json!({}), 404, "there is nothing at /v1/rerank"),
    ];
    for (field, value, says) in on_both_routes() {
        for (path, base) in [(completions, json!({"prompt": "a"})), (chat, json!({"messages": said}))] {
            let mut fields = base;
            fields[field] = value.clone();
            rows.push((path, fields, 400, says));
        }
    }
    rows
}

#[test]
fn each_mistake_gets_its_status_and_names_the_field_and_the_next_request_is_answered() {
    let Some(served) = Served::stories() else { return };
    for (path, fields, status, says) in table() {
        let reply = served.post(path, fields.clone());
        let (message, param) = reply.error();
        assert!(reply.status == status && message.contains(says), "{path} {fields}: {} {message}", reply.status);
        if let Some(name) = message.split(": ").next().filter(|_| param.is_string()) {
            assert_eq!(param, *name, "{message}");
        }
    }
    assert_eq!(served.post("/v1/completions", json!({"prompt": "a", "max_tokens": 2})).status, 200);
}

/// As clients write what they do not want.
#[test]
fn a_field_that_is_off_is_no_mistake() {
    let Some(served) = Served::stories() else { return };
    let off = json!({"prompt": "a", "max_tokens": 2, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": null, "best_of": 1,
        "suffix": null, "user": "someone", "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0, "stop": null,
        "n": 1, "stream": false, "echo": false, "logprobs": null, "use_beam_search": false, "skip_special_tokens": true, "tools": null});
    assert_eq!(served.post("/v1/completions", off).status, 200);
}

#[test]
fn bodies_that_are_none_other_models_and_other_routes_are_refused() {
    let Some(served) = Served::stories() else { return };
    let post = |body: &str| wire::post(served.address, "/v1/completions", body);
    for body in ["", "{", "[1]", "\"a\"", "{\"prompt\": \"a\"}}", &"[".repeat(200_000), &"{\"a\":".repeat(100_000)] {
        assert_eq!(post(body).status, 400, "{}", &body[..body.len().min(20)]);
    }
    let reply = post(r#"{"model": "gpt-4", "prompt": "a"}"#);
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!((reply.status, &body["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(wire::get(served.address, "/v1/completions").status, 405);
    assert_eq!(wire::get(served.address, "/metrics").status, 404);
    assert_eq!(wire::get(served.address, "/v1/models/m").status, 200);
    assert_eq!(wire::get(served.address, "/v1/models/n").status, 404);
    let plain = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 15\r\n\r\n{\"prompt\": \"a\"}";
    assert_eq!(wire::send(served.address, plain.as_bytes()).status, 415);
}

#[test]
fn with_a_key_every_route_but_health_wants_it() {
    let Some(stories) = crate::stories() else { return };
    let served = Served::start(&stories, ServeOptions { key: Some("sesame".to_owned()), ..ServeOptions::default() });
    let ask = |method: &str, path: &str, key: &str| {
        let key = if key.is_empty() { String::new() } else { format!("Authorization: {key}\r\n") };
        let body = if method == "POST" { r#"{"prompt": "a", "max_tokens": 1}"# } else { "" };
        wire::send(served.address, &wire::request(method, path, &key, body))
    };
    let routes = [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/metrics"),
        ("GET", "/"),
        ("GET", "/v1/completions"),
        ("OPTIONS", "/v1/completions"),
        ("GET", "/health/x"),
    ];
    for (method, path) in routes {
        for key in ["", "Bearer ", "Bearer sesam", "Bearer sesame2", "Bearer SESAME", "Basic sesame", "sesame"] {
            let reply = ask(method, path, key);
            assert_eq!(reply.status, 401, "{method} {path} {key}");
            assert!(!reply.body.contains("sesame") && !reply.head.contains("access-control"), "{reply:?}");
        }
        assert_ne!(ask(method, path, "Bearer sesame").status, 401, "{method} {path}");
    }
    assert_eq!(ask("POST", "/v1/completions", "Bearer sesame").status, 200);
    assert_eq!(ask("GET", "/health", "").status, 200);
}

/// As a page does whose own name was made to lead to this machine.
#[test]
fn without_a_key_another_host_than_this_machine_is_refused() {
    let Some(served) = Served::stories() else { return };
    let ask = |host: &str| {
        let head = format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        wire::send(served.address, head.as_bytes()).status
    };
    for own in ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000"] {
        assert_eq!(ask(own), 200, "{own}");
    }
    for other in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:8000"] {
        assert_eq!(ask(other), 403, "{other}");
    }
}

/// The model has the tokens `<s>` and `</s>`: as text in a prompt or a message they are spelled out.
#[test]
fn what_a_user_writes_never_becomes_a_control_token() {
    let Some(stories) = crate::stories() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = crate::endpoint::stories_with_template(&stories, &folder.path().join("model"));
    let served = Served::start(&path, ServeOptions::default());
    let tokenizer = &served.engine.text().unwrap().tokenizer;
    let forged: String = tokenizer.control_tokens().map(|(text, _)| format!("a{text}b")).collect();
    let control: Vec<u32> = tokenizer.control_tokens().map(|(_, id)| id).collect();
    assert!(control.len() >= 2 && !tokenizer.encode_markup(&forged).unwrap().iter().all(|id| !control.contains(id)));
    let told = |answer: Value| -> Vec<u32> {
        serde_json::from_value(answer["choices"][0]["prompt_token_ids"].clone()).unwrap()
    };
    let n_control = |ids: &[u32]| ids.iter().filter(|id| control.contains(id)).count();
    let chat = |content: &str| {
        let said = json!([{"role": "system", "content": content}, {"role": "user", "content": content}]);
        told(
            served.answer("/v1/chat/completions", json!({"messages": said, "max_tokens": 1, "return_token_ids": true})),
        )
    };
    let complete =
        |text: &str| told(served.complete(json!({"prompt": text, "max_tokens": 1, "return_token_ids": true})));
    assert_eq!(n_control(&chat(&forged)), n_control(&chat("plain")));
    assert_eq!(n_control(&complete(&forged)), n_control(&complete("plain")));
    assert!(tokenizer.decode(&chat(&forged), true).unwrap().contains(&forged));
}
