//! The local engine against golden values and its own laws, on stories260K (float32, real weights).

use crate::{Continuation, Engine, EngineOptions, GenerateRequest, Prompt, Sampling, ScoreRequest};
use aloe_record::{Cancel, Progress};
use aloe_tensor::Dtype;
use serde_json::Value;
use std::path::PathBuf;

/// The folder of the model, or `None` (said aloud) where the data is not at hand.
fn folder() -> Option<PathBuf> {
    match std::env::var("ALOE_DATA") {
        Ok(data) => Some(PathBuf::from(data).join("models/stories260K")),
        Err(_) => {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_DATA is not set");
            eprintln!("not run: ALOE_DATA is not set");
            None
        }
    }
}

fn engine(folder: &std::path::Path, threads: usize) -> Engine {
    let options = EngineOptions { dtype: Dtype::F32, threads, max_batch: 4, ..EngineOptions::default() };
    Engine::open(&folder.to_string_lossy(), &options).unwrap()
}

fn golden(folder: &std::path::Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn a_prompt_scored_alone_meets_the_golden_negative_log_likelihoods() {
    let Some(folder) = folder() else { return };
    let engine = engine(&folder, 2);
    for case in golden(&folder)["forward"].as_array().unwrap() {
        let prompt = Prompt::Ids(ids(&case["ids"]));
        let request = ScoreRequest { id: "x".into(), prompt, continuations: vec![] };
        let result = engine.score(&[request], &Progress::silent(), &Cancel::default()).unwrap().remove(0);
        let expected: Vec<f64> =
            case["token_nll"].as_array().unwrap().iter().map(|nll| nll.as_f64().unwrap()).collect();
        let found = &result.continuations[0].logps;
        assert_eq!(found.len(), expected.len());
        for (logp, nll) in found.iter().zip(expected) {
            assert!((logp + nll).abs() < 1e-4, "{logp} against {nll}");
        }
    }
}

#[test]
fn greedy_generation_meets_the_golden_text() {
    let Some(folder) = folder() else { return };
    let golden = golden(&folder);
    let greedy = &golden["greedy"];
    let expected = ids(&greedy["ids"]);
    let prompt_ids = ids(&greedy["prompt_ids"]);
    let n_new = greedy["steps"].as_u64().unwrap() as usize;
    let request = GenerateRequest {
        id: "g".into(),
        prompt: Prompt::Ids(prompt_ids.clone()),
        n: 1,
        sampling: Sampling::greedy(n_new),
    };
    let result = engine(&folder, 1).generate(&[request], &Progress::silent(), &Cancel::default()).unwrap().remove(0);
    let found = result.completions[0].ids.clone().unwrap();
    assert_eq!(prompt_ids.into_iter().chain(found).collect::<Vec<_>>(), expected);
}

fn requests(n: usize) -> Vec<GenerateRequest> {
    let texts = ["Once upon a time", "The dog", "Lily wanted to play in the park with her mom", "One day", "He saw"];
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: 5, ..Sampling::greedy(24) };
    texts
        .iter()
        .map(|text| GenerateRequest {
            id: (*text).into(),
            prompt: Prompt::Text((*text).into()),
            n,
            sampling: sampling.clone(),
        })
        .collect()
}

#[test]
fn a_sample_does_not_depend_on_batch_mates_order_threads_or_how_many_samples_are_drawn() {
    let Some(folder) = folder() else { return };
    let run = |engine: &Engine, requests: &[GenerateRequest]| {
        engine.generate(requests, &Progress::silent(), &Cancel::default()).unwrap()
    };
    let one = engine(&folder, 1);
    let together = run(&one, &requests(3));
    let mut reversed = requests(3);
    reversed.reverse();
    let mut backwards = run(&engine(&folder, 2), &reversed);
    backwards.reverse();
    assert_eq!(together, backwards);
    for (request, result) in requests(1).iter().zip(&together) {
        let alone = run(&one, std::slice::from_ref(request)).remove(0);
        assert_eq!(alone.completions[0], result.completions[0]);
        assert_ne!(result.completions[0].ids, result.completions[1].ids, "two samples of one prompt are alike");
    }
}

#[test]
fn scores_do_not_depend_on_batch_mates_and_equal_those_of_generation() {
    let Some(folder) = folder() else { return };
    let engine = engine(&folder, 2);
    let generated = engine.generate(&requests(2), &Progress::silent(), &Cancel::default()).unwrap();
    let asked: Vec<ScoreRequest> = generated
        .iter()
        .map(|result| ScoreRequest {
            id: result.id.clone(),
            prompt: Prompt::Ids(result.prompt_ids.clone().unwrap()),
            continuations: result.completions.iter().map(|c| Continuation::Ids(c.ids.clone().unwrap())).collect(),
        })
        .collect();
    let together = engine.score(&asked, &Progress::silent(), &Cancel::default()).unwrap();
    for ((request, scored), generated) in asked.iter().zip(&together).zip(&generated) {
        let alone = engine.score(std::slice::from_ref(request), &Progress::silent(), &Cancel::default()).unwrap();
        assert_eq!(alone[0], *scored);
        for (scored, completion) in scored.continuations.iter().zip(&generated.completions) {
            let logps: Vec<f32> = scored.logps.iter().map(|&logp| logp as f32).collect();
            assert_eq!(Some(logps), completion.logps, "decoding with a cache differs from the packed forward");
        }
    }
}

#[test]
fn a_stop_text_ends_the_answer_and_is_not_part_of_it() {
    let Some(folder) = folder() else { return };
    let mut request = requests(1).remove(0);
    request.sampling = Sampling { stop: vec![".".into()], ..Sampling::greedy(60) };
    let engine = engine(&folder, 2);
    let mut streamed = String::new();
    let completion =
        engine.generate_streaming(&request, &Cancel::default(), &mut |piece| streamed.push_str(piece)).unwrap();
    assert!(!completion.text.contains('.') && !completion.text.is_empty());
    assert_eq!(completion.finish_reason, crate::FinishReason::Stop);
    assert_eq!(streamed, completion.text);
}

#[test]
fn a_prompt_beyond_the_context_and_an_id_beyond_the_vocabulary_are_refused_by_name() {
    let Some(folder) = folder() else { return };
    let engine = engine(&folder, 1);
    for (prompt, word) in [(vec![1u32; 600], "context"), (vec![1, 512], "vocabulary")] {
        let request = ScoreRequest { id: "bad".into(), prompt: Prompt::Ids(prompt), continuations: vec![] };
        let error = engine.score(&[request], &Progress::silent(), &Cancel::default()).unwrap_err().to_string();
        assert!(error.contains("bad") && error.contains(word), "{error}");
    }
}
