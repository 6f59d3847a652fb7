//! Whole answers: the same bits as the local engine's, alone and in company.

use super::{Served, open, wire};
use crate::stories;
use aloe_engine::{
    Completion, Continuation, Embedder, Engine, EngineOptions, GenerateRequest, Prompt, SERVED_ID, Sampling,
    ScoreRequest, WeightFormat,
};
use aloe_record::{Cancel, Progress};
use aloe_serve::ServeOptions;
use aloe_tensor::Dtype;
use serde_json::{Value, json};

/// What the local engine draws as the only sample of a seed.
fn local(engine: &Engine, prompt: Prompt, sampling: Sampling) -> Completion {
    let request = GenerateRequest { id: SERVED_ID.to_owned(), prompt, n: 1, sampling };
    let mut results = engine.generate(&[request], &Progress::silent(), &Cancel::default()).unwrap();
    results.remove(0).completions.remove(0)
}

fn text(prompt: &str) -> Prompt {
    Prompt::Text(prompt.to_owned())
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|one| one.as_f64().unwrap()).collect()
}

fn score_requests() -> Vec<ScoreRequest> {
    let request = |(at, prompt): (usize, &str)| ScoreRequest {
        id: at.to_string(),
        prompt: text(prompt),
        continuations: [" a dog.", " the big red ball", ", there was a little girl named Lily.", " zebra"]
            .map(|one| Continuation::Text(one.to_owned()))
            .to_vec(),
    };
    ["Once upon a time", "The little girl was happy. She saw", "Tom and"].into_iter().enumerate().map(request).collect()
}

/// Our own client, probe and canary included.
#[test]
fn option_scores_through_our_own_client_are_the_local_engines_to_the_bit() {
    let Some(served) = Served::stories() else { return };
    let stories = stories().unwrap();
    let address = format!("http://{}/v1#m", served.address);
    let options = EngineOptions { tokenizer: Some(stories.clone()), ..EngineOptions::default() };
    let client = Engine::open(&address, &options).unwrap();
    let requests = score_requests();
    let score = |engine: &Engine| engine.score(&requests, &Progress::silent(), &Cancel::default()).unwrap();
    assert!(client.gives_prompt_logps(&Cancel::default()).unwrap());
    assert_eq!(score(&client), score(&open(&stories)));
    let whole = [ScoreRequest { continuations: Vec::new(), ..requests[1].clone() }];
    let score = |engine: &Engine| engine.score(&whole, &Progress::silent(), &Cancel::default()).unwrap();
    assert_eq!(score(&client), score(&open(&stories)));
}

/// 7 samples in one request, and over our own client, which asks for them by a seed of its own.
#[test]
fn sampled_texts_with_a_seed_are_the_same_twice_and_the_local_engines() {
    let Some(served) = Served::stories() else { return };
    let engine = open(&stories().unwrap());
    let fields = json!({"prompt": "Once upon a time", "n": 7, "seed": 5, "temperature": 0.9, "top_p": 0.95, "top_k": 50,
        "max_tokens": 40, "stop": ["Lily", "."], "logprobs": 2, "return_token_ids": true});
    let (first, second) = (served.complete(fields.clone()), served.complete(fields));
    assert_eq!((&first["choices"], &first["usage"]), (&second["choices"], &second["usage"]));
    let mut n_new = 0;
    for (at, choice) in first["choices"].as_array().unwrap().iter().enumerate() {
        let sampling = Sampling {
            max_new_tokens: 40,
            temperature: 0.9,
            top_k: 50,
            top_p: 0.95,
            seed: 5 + at as u64,
            stop: vec!["Lily".into(), ".".into()],
            ..Sampling::default()
        };
        let expected = local(&engine, text("Once upon a time"), sampling);
        let drawn = expected.ids.unwrap();
        n_new += drawn.len();
        assert_eq!((choice["text"].as_str(), ids(&choice["token_ids"])), (Some(expected.text.as_str()), drawn));
        let logps: Vec<f64> = expected.logps.unwrap().into_iter().map(f64::from).collect();
        assert_eq!(numbers(&choice["logprobs"]["token_logprobs"]), logps);
    }
    assert_eq!(first["usage"]["completion_tokens"], n_new);
    let address = format!("http://{}/v1#m", served.address);
    let client = Engine::open(&address, &EngineOptions { tokenizer: stories(), ..EngineOptions::default() }).unwrap();
    let sampling = Sampling { max_new_tokens: 30, seed: 3, ..Sampling::card() };
    let request = GenerateRequest { id: "a".to_owned(), prompt: text("Tom had a"), n: 4, sampling };
    let draw = || client.generate(std::slice::from_ref(&request), &Progress::silent(), &Cancel::default()).unwrap();
    assert_eq!(draw(), draw());
    let greedy = GenerateRequest { n: 1, sampling: Sampling::greedy(30), ..request };
    let asked =
        |engine: &Engine| engine.generate(std::slice::from_ref(&greedy), &Progress::silent(), &Cancel::default());
    let (far, near) = (asked(&client).unwrap(), asked(&engine).unwrap());
    assert_eq!(
        (&far[0].completions[0].ids, &far[0].completions[0].text),
        (&near[0].completions[0].ids, &near[0].completions[0].text)
    );
}

/// The classic form, as lm-evaluation-harness reads it: a leading null, a token of what was drawn at the end.
#[test]
fn echo_tells_the_prompts_own_log_probabilities_with_and_without_a_new_token() {
    let Some(served) = Served::stories() else { return };
    let engine = open(&stories().unwrap());
    let prompt = "The dog was happy.";
    let request = ScoreRequest { id: "a".into(), prompt: text(prompt), continuations: Vec::new() };
    let scored = engine.score(&[request], &Progress::silent(), &Cancel::default()).unwrap().remove(0);
    let next = local(&engine, text(prompt), Sampling::greedy(1));
    for max_tokens in [0usize, 1, 3] {
        for logprobs in [0, 1, 5] {
            let fields = json!({"prompt": prompt, "echo": true, "logprobs": logprobs, "max_tokens": max_tokens, "temperature": 0});
            let answer = served.complete(fields);
            let choice = &answer["choices"][0];
            let told = &choice["logprobs"];
            let n = scored.prompt_ids.len() + max_tokens;
            for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(told[list].as_array().unwrap().len(), n, "{list} of {max_tokens}: {told}");
            }
            let logps = told["token_logprobs"].as_array().unwrap();
            assert!(logps[0].is_null() && told["top_logprobs"][0].is_null());
            let own: Vec<f64> = logps[1..scored.prompt_ids.len()].iter().map(|one| one.as_f64().unwrap()).collect();
            assert_eq!(own, scored.continuations[0].logps);
            if max_tokens > 0 {
                let first = f64::from(next.logps.as_ref().unwrap()[0]);
                assert_eq!(logps[scored.prompt_ids.len()].as_f64(), Some(first), "of {max_tokens}");
            }
            // The text of a token stands where its offset says.
            let whole = choice["text"].as_str().unwrap();
            assert!(whole.starts_with(prompt), "{whole}");
            let words: Vec<&str> = told["tokens"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
            let chars: Vec<char> = whole.chars().collect();
            for (at, word) in words.iter().enumerate().skip(2) {
                let from = told["text_offset"][at].as_u64().unwrap() as usize;
                let there: String = chars[from..].iter().take(word.chars().count()).collect();
                // The first drawn one comes without the space that the vocabulary writes before it.
                assert!(at == scored.prompt_ids.len() || &there == word, "token {at} of {words:?}: {there:?}");
                let tops = told["top_logprobs"][at].as_object().unwrap();
                assert!((logprobs..=logprobs + 1).contains(&tops.len()) && tops.contains_key(*word), "{tops:?}");
                let best = tops.values().map(|top| top.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
                assert!(logps[at].as_f64().unwrap() <= best);
            }
            let usage =
                json!({"prompt_tokens": scored.prompt_ids.len(), "completion_tokens": max_tokens, "total_tokens": n});
            assert_eq!(answer["usage"], usage);
        }
    }
}

#[test]
fn a_list_of_prompts_is_answered_in_its_order_and_texts_and_ids_alike() {
    let Some(served) = Served::stories() else { return };
    let engine = open(&stories().unwrap());
    let prompts = ["Once upon a time", "Tom had a red ball", "Once upon a"];
    let fields = |prompts: Value| json!({"prompt": prompts, "max_tokens": 12, "temperature": 0, "n": 2});
    let by_text = served.complete(fields(json!(prompts)));
    let ids: Vec<Vec<u32>> =
        prompts.iter().map(|one| engine.text().unwrap().encode_prompt_text(one).unwrap()).collect();
    let by_ids = served.complete(fields(json!(ids)));
    assert_eq!((&by_text["choices"], &by_text["usage"]), (&by_ids["choices"], &by_ids["usage"]));
    assert_eq!(by_text["usage"]["prompt_tokens"], ids.iter().map(Vec::len).sum::<usize>());
    for (at, choice) in by_text["choices"].as_array().unwrap().iter().enumerate() {
        let expected = local(&engine, text(prompts[at / 2]), Sampling::greedy(12)).text;
        assert_eq!((choice["index"].as_u64(), choice["text"].as_str()), (Some(at as u64), Some(expected.as_str())));
    }
    let bare = json!({"prompt": "Tom", "max_tokens": 1, "add_special_tokens": false, "return_token_ids": true});
    let bos = engine.text().unwrap().tokenizer.bos().unwrap();
    let told = served.complete(bare)["choices"][0]["prompt_token_ids"].clone();
    assert!(!super::answers::ids(&told).contains(&bos), "{told}");
}

/// As `aloe embed` has them of the same folder in f32; base64 is how OpenAI's library asks.
#[test]
fn embeddings_are_those_of_the_local_embedder_in_every_form() {
    let Some(stories) = stories() else { return };
    let options =
        EngineOptions { format: Some(WeightFormat::Dense(Dtype::F32)), threads: 1, ..EngineOptions::default() };
    let served = Served::start_with(&stories, ServeOptions::default(), &options);
    let texts = ["Once upon a time".to_owned(), "Tom had a red ball. ".repeat(9), "a".to_owned()];
    let embedder = Embedder::open(stories.to_str().unwrap(), &options).unwrap();
    let expected = embedder.embed(&texts, &Progress::silent(), &Cancel::default()).unwrap();
    let answer = served.answer("/v1/embeddings", json!({"input": texts}));
    for (at, expected) in expected.iter().enumerate() {
        let found: Vec<f32> = serde_json::from_value(answer["data"][at]["embedding"].clone()).unwrap();
        assert_eq!(found, expected.vector);
    }
    assert_eq!(answer["usage"]["prompt_tokens"], expected.iter().map(|one| one.n_tokens.unwrap()).sum::<usize>());
    let coded = served.answer("/v1/embeddings", json!({"input": texts[0], "encoding_format": "base64"}));
    assert_eq!(coded["data"][0]["embedding"].as_str().unwrap().len(), (expected[0].vector.len() * 4).div_ceil(3) * 4);
    let client = Embedder::open(&format!("http://{}/v1#m", served.address), &EngineOptions::default()).unwrap();
    let far = client.embed(&texts, &Progress::silent(), &Cancel::default()).unwrap();
    for (far, expected) in far.iter().zip(&expected) {
        let cosine: f64 = far.vector.iter().zip(&expected.vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((cosine - 1.0).abs() < 1e-6, "{cosine}");
    }
}

/// Every request of a mixture alone, then all at once from as many threads, three times.
#[test]
fn an_answer_is_the_same_bits_whatever_else_is_served() {
    let Some(served) = Served::stories() else { return };
    let mixture: Vec<Value> = (0..12u64)
        .map(|at| {
            let prompt = ["Once upon a time", "Tom", "The little girl was happy. She saw a big"][at as usize % 3];
            match at % 4 {
                0 => json!({"prompt": prompt, "echo": true, "logprobs": 3, "max_tokens": at % 2, "temperature": 0}),
                1 => json!({"prompt": prompt, "n": 5, "seed": at, "max_tokens": 60, "logprobs": 2}),
                2 => json!({"prompt": [prompt, "A"], "seed": at, "max_tokens": 90, "temperature": 1.5, "ignore_eos": true}),
                _ => json!({"prompt": prompt, "max_tokens": 200, "temperature": 0, "repetition_penalty": 1.2, "logprobs": 0}),
            }
        })
        .collect();
    let alone: Vec<Value> = mixture.iter().map(|fields| served.complete(fields.clone())["choices"].clone()).collect();
    for _ in 0..3 {
        let together: Vec<Value> = std::thread::scope(|scope| {
            let ask = |fields: &Value| served.complete(fields.clone())["choices"].clone();
            let threads: Vec<_> = mixture.iter().map(|fields| scope.spawn(move || ask(fields))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(together, alone);
    }
    assert!(served.engine.counts().unwrap().n_drawn_tokens > 1000);
    assert_eq!(wire::get(served.address, "/health").status, 200);
}
