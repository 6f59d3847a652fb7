//! The local engine against golden values and its own laws, on stories260K (float32, real weights).

use crate::{Continuation, Engine, EngineOptions, GenerateRequest, Prompt, Sampling, ScoreRequest, WeightFormat};
use aloe_record::{Cancel, Progress};
use aloe_tensor::Dtype;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// The folder of the model, or `None` (said aloud) where the data is not at hand.
pub(crate) fn folder() -> Option<PathBuf> {
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
    open(folder, F32, threads, None)
}

pub(crate) const F32: WeightFormat = WeightFormat::Dense(Dtype::F32);
pub(crate) const BF16: WeightFormat = WeightFormat::Dense(Dtype::Bf16);

/// Every form that a folder's weights can have: the laws below hold for each.
pub(crate) const FORMATS: [WeightFormat; 4] = [F32, BF16, WeightFormat::Q8, WeightFormat::Q4];

pub(crate) fn open(
    folder: &std::path::Path,
    format: WeightFormat,
    threads: usize,
    kv_budget_bytes: Option<usize>,
) -> Engine {
    let format = Some(format);
    let options = EngineOptions { format, threads, kv_budget_bytes, max_batch: 4, ..EngineOptions::default() };
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
fn a_model_with_a_weight_that_is_no_number_is_an_error_and_never_an_answer() {
    let Some(folder) = folder() else { return };
    let broken = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder.join(name), broken.path().join(name)).unwrap();
    }
    let mut bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    let at = data + header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(broken.path().join("model.safetensors"), bytes).unwrap();
    let engine = engine(broken.path(), 1);
    let (progress, cancel) = (Progress::silent(), Cancel::default());
    let score = ScoreRequest { id: "x".into(), prompt: Prompt::Ids(vec![1, 5, 6]), continuations: vec![] };
    let refused = engine.score(&[score], &progress, &cancel).unwrap_err().to_string();
    assert!(refused.contains("not finite"), "{refused}");
    for temperature in [0.0, 0.7] {
        let sampling = Sampling { temperature, ..Sampling::greedy(4) };
        let request = GenerateRequest { id: "x".into(), prompt: Prompt::Ids(vec![1, 5, 6]), n: 1, sampling };
        let refused = engine.generate(&[request], &progress, &cancel).unwrap_err().to_string();
        assert!(refused.contains("not finite"), "{refused}");
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
    for format in FORMATS {
        let one = open(&folder, format, 1, None);
        let together = run(&one, &requests(3));
        let mut reversed = requests(3);
        reversed.reverse();
        let mut backwards = run(&open(&folder, format, 2, None), &reversed);
        backwards.reverse();
        assert_eq!(together, backwards, "{format:?}");
        for (request, result) in requests(1).iter().zip(&together) {
            let alone = run(&one, std::slice::from_ref(request)).remove(0);
            assert_eq!(alone.completions[0], result.completions[0], "{format:?}");
            assert_ne!(result.completions[0].ids, result.completions[1].ids, "two samples of one prompt are alike");
        }
    }
}

#[test]
fn scores_do_not_depend_on_batch_mates_and_equal_those_of_generation() {
    let Some(folder) = folder() else { return };
    for format in FORMATS {
        let engine = open(&folder, format, 2, None);
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
            assert_eq!(alone[0], *scored, "{format:?}");
            for (scored, completion) in scored.continuations.iter().zip(&generated.completions) {
                let logps: Vec<f32> = scored.logps.iter().map(|&logp| logp as f32).collect();
                assert_eq!(Some(logps), completion.logps, "{format:?}: decoding differs from the packed forward");
            }
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

/// Prompts with beginnings in common, of lengths that leave pages in the middle.
fn shared_prompts() -> Vec<Prompt> {
    let header: Vec<u32> = (0..100).map(|i| 3 + (i * 7 + 1) % 500).collect();
    let with = |n: usize, tail: &[u32]| Prompt::Ids([&header[..n], tail].concat());
    vec![with(100, &[9]), with(100, &[9, 10, 11]), with(70, &[20; 30]), with(100, &[9]), with(3, &[7])]
}

fn sampled(n: usize) -> Vec<GenerateRequest> {
    let sampling = Sampling { temperature: 0.9, top_p: 0.95, seed: 5, ..Sampling::greedy(200) };
    let request =
        |(at, prompt): (usize, Prompt)| GenerateRequest { id: at.to_string(), prompt, n, sampling: sampling.clone() };
    shared_prompts().into_iter().enumerate().map(request).collect()
}

#[test]
fn a_small_memory_budget_changes_no_answer_and_is_kept() {
    let Some(folder) = folder() else { return };
    for format in FORMATS {
        let wide = open(&folder, format, 2, None);
        let expected = wide.generate(&sampled(3), &Progress::silent(), &Cancel::default()).unwrap();
        let whole = wide.counts().unwrap();
        assert_eq!(whole.n_evictions, 0);
        // The longest text has 303 tokens: 5 pages. Four running sequences want up to three times that.
        let mut n_evictions = 0;
        for pages in [5, 8, 11] {
            let budget = pages * page_bytes(&wide);
            let narrow = open(&folder, format, 1, Some(budget as usize));
            assert_eq!(narrow.generate(&sampled(3), &Progress::silent(), &Cancel::default()).unwrap(), expected);
            let counts = narrow.counts().unwrap();
            assert!(counts.peak_kv_bytes <= budget, "{counts:?} of {budget}");
            assert!(counts.n_evictions == 0 || counts.n_computed_tokens > whole.n_computed_tokens, "{counts:?}");
            n_evictions += counts.n_evictions;
        }
        assert!(n_evictions > 0, "no budget was small enough");
    }
}

/// Longest text 107 tokens: 2 pages are the least.
#[test]
fn a_small_memory_budget_changes_no_score_and_is_kept() {
    let Some(folder) = folder() else { return };
    let options: Vec<Continuation> = (1..6).map(|n| Continuation::Ids((40..40 + n).collect())).collect();
    let request = |prompt| ScoreRequest { id: "s".into(), prompt, continuations: options.clone() };
    let requests: Vec<ScoreRequest> = shared_prompts().into_iter().map(request).collect();
    let wide = open(&folder, BF16, 2, None);
    let expected = wide.score(&requests, &Progress::silent(), &Cancel::default()).unwrap();
    let page_bytes = page_bytes(&wide);
    for pages in [2, 3, 4] {
        let narrow = open(&folder, BF16, 2, Some((pages * page_bytes) as usize));
        assert_eq!(narrow.score(&requests, &Progress::silent(), &Cancel::default()).unwrap(), expected);
        let counts = narrow.counts().unwrap();
        assert!(counts.peak_kv_bytes <= pages * page_bytes, "{counts:?} of {pages} pages");
    }
}

/// A request of one token holds one page.
pub(crate) fn page_bytes(engine: &Engine) -> u64 {
    let Engine::Local(local) = engine else { panic!("a local engine") };
    aloe_model::KvCache::bytes_of(&local.decoder, 1) as u64
}

/// By hand: the prompts have 101, 103, 100, 101 and 4 tokens; as a tree 100 + 1 + 2, of the third 30 after the shared 70, of the
/// last 1 after the shared 3: 134. With `Sampling::greedy(1)` the prompt alone is run.
#[test]
fn what_prompts_share_is_computed_once() {
    let Some(folder) = folder() else { return };
    let engine = engine(&folder, 2);
    let requests: Vec<GenerateRequest> =
        sampled(3).into_iter().map(|request| GenerateRequest { sampling: Sampling::greedy(1), ..request }).collect();
    engine.generate(&requests, &Progress::silent(), &Cancel::default()).unwrap();
    let counts = engine.counts().unwrap();
    assert_eq!((counts.n_computed_tokens, counts.n_requested_tokens, counts.n_drawn_tokens), (134, 3 * 409, 15));
    let continuations =
        vec![Continuation::Ids(vec![5, 6]), Continuation::Ids(vec![5, 7, 8]), Continuation::Ids(vec![1])];
    let requests: Vec<ScoreRequest> = shared_prompts()
        .into_iter()
        .map(|prompt| ScoreRequest { id: "s".into(), prompt, continuations: continuations.clone() })
        .collect();
    let engine = self::engine(&folder, 2);
    engine.score(&requests, &Progress::silent(), &Cancel::default()).unwrap();
    let scored = engine.counts().unwrap();
    // Of each continuation all but the last token: 5, then 5 7, then nothing; 2 tokens after each of 4 distinct prompts.
    assert_eq!((scored.n_computed_tokens, scored.n_requested_tokens), (134 + 4 * 2, 3 * 409 + 5 * 3));
}

#[test]
fn scores_are_the_same_alone_together_in_any_order_and_on_any_number_of_threads() {
    let Some(folder) = folder() else { return };
    let options: Vec<Continuation> = (1..5).map(|n| Continuation::Ids((40..40 + n).collect())).collect();
    let requests: Vec<ScoreRequest> = shared_prompts()
        .into_iter()
        .enumerate()
        .map(|(at, prompt)| ScoreRequest {
            id: at.to_string(),
            prompt,
            continuations: if at == 2 { Vec::new() } else { options[..=at.min(3)].to_vec() },
        })
        .collect();
    for format in FORMATS {
        let (one, two) = (open(&folder, format, 1, None), open(&folder, format, 2, None));
        let score = |engine: &Engine, requests: &[ScoreRequest]| {
            engine.score(requests, &Progress::silent(), &Cancel::default()).unwrap()
        };
        let together = score(&two, &requests);
        let mut backwards = requests.clone();
        backwards.reverse();
        let mut found = score(&one, &backwards);
        found.reverse();
        assert_eq!(found, together);
        for (request, expected) in requests.iter().zip(&together) {
            assert_eq!(score(&one, std::slice::from_ref(request))[0], *expected);
        }
    }
}

#[test]
fn a_request_that_cannot_be_answered_gets_its_error_and_the_others_go_on() {
    let Some(folder) = folder() else { return };
    let engine = engine(&folder, 2);
    let good = ScoreRequest {
        id: "good".into(),
        prompt: Prompt::Ids(vec![1, 5, 6]),
        continuations: vec![Continuation::Ids(vec![7])],
    };
    let bad = |id: &str, prompt: Vec<u32>, continuation: Vec<u32>| ScoreRequest {
        id: id.into(),
        prompt: Prompt::Ids(prompt),
        continuations: vec![Continuation::Ids(continuation)],
    };
    let asked = [
        bad("long", vec![1; 512], vec![2]),
        good.clone(),
        bad("empty", vec![1], vec![]),
        bad("unknown", vec![1], vec![512]),
        good.clone(),
    ];
    let found = engine.score_each(&asked, &Progress::silent(), &Cancel::default()).unwrap();
    let alone = engine.score(&[good], &Progress::silent(), &Cancel::default()).unwrap().remove(0);
    for (at, word) in [(0, "context"), (2, "no tokens"), (3, "vocabulary")] {
        let error = found[at].as_ref().unwrap_err().to_string();
        assert!(error.contains(&asked[at].id) && error.contains(word), "{error}");
    }
    assert_eq!((found[1].as_ref().unwrap(), found[4].as_ref().unwrap()), (&alone, &alone));
}

#[test]
fn a_generation_that_exceeds_the_memory_budget_alone_is_refused_and_the_others_go_on() {
    let Some(folder) = folder() else { return };
    let wide = open(&folder, F32, 2, None);
    let narrow = open(&folder, F32, 2, Some(2 * page_bytes(&wide) as usize));
    let request = |id: &str, n_new| GenerateRequest {
        id: id.into(),
        prompt: Prompt::Ids(vec![1, 9]),
        n: 2,
        sampling: Sampling::greedy(n_new),
    };
    let mut hot = request("hot", 5);
    hot.sampling.temperature = f32::NAN;
    let many = GenerateRequest { n: 10_000_000_000_000, ..request("many", 5) };
    let asked = [request("big", 200), request("small", 20), hot, many];
    let found = narrow.generate_each(&asked, &Progress::silent(), &Cancel::default()).unwrap();
    let error = found[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("big") && error.contains("budget"), "{error}");
    assert!(found[2].as_ref().unwrap_err().to_string().contains("temperature"));
    assert!(found[3].as_ref().unwrap_err().to_string().contains("n must be at most 65536"));
    let expected = wide.generate(&asked[1..2], &Progress::silent(), &Cancel::default()).unwrap().remove(0);
    assert_eq!(found[1].as_ref().unwrap(), &expected);
    assert!(narrow.generate(&asked[..2], &Progress::silent(), &Cancel::default()).is_err());
}

/// Whether a request may be asked is decided before any of its answers is.
#[test]
fn sixty_five_thousand_five_hundred_and_thirty_six_answers_may_be_asked_for_and_not_one_more() {
    let Some(folder) = folder() else { return };
    let Engine::Local(local) = engine(&folder, 1) else { panic!("not local") };
    let ask = |n: usize| {
        let (prompt, sampling) = (Prompt::Ids(vec![1, 9]), Sampling::greedy(4));
        local.checked_prompt(&GenerateRequest { id: "many".into(), prompt, n, sampling })
    };
    assert_eq!(ask(65_536).unwrap(), [1, 9]);
    assert!(ask(65_537).unwrap_err().to_string().contains("n must be at most 65536, found 65537"));
}

/// On real weights, in bf16 and in the blocks of their file: two chats with a system prompt in common, together on two threads against alone on one; then the
/// drawn ids scored, which must give the log-probabilities of the drawing.
#[test]
fn smollm2_answers_and_scores_are_the_same_alone_and_together_in_bf16_and_in_blocks() {
    let Ok(models) = std::env::var("ALOE_MODELS") else {
        assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
        eprintln!("not run: ALOE_MODELS is not set");
        return;
    };
    let model = PathBuf::from(models).join("smollm2-135m-instruct-q4_1/model.gguf");
    let chat = |question: &str| {
        let message = |role, content: &str| aloe_text::Message { role, content: content.into() };
        Prompt::Messages(vec![
            message(aloe_text::Role::System, "You are a helpful medical assistant. Answer in one sentence."),
            message(aloe_text::Role::User, question),
        ])
    };
    let sampling = Sampling { temperature: 0.8, top_p: 0.9, seed: 3, ..Sampling::greedy(6) };
    let requests: Vec<GenerateRequest> = ["What does insulin do?", "What does aspirin do?"]
        .iter()
        .map(|question| GenerateRequest {
            id: (*question).into(),
            prompt: chat(question),
            n: 2,
            sampling: sampling.clone(),
        })
        .collect();
    let silent = Progress::silent();
    for format in [BF16, WeightFormat::Stored] {
        let two = open(&model, format, 2, None);
        let together = two.generate(&requests, &silent, &Cancel::default()).unwrap();
        let one = open(&model, format, 1, None);
        for (request, expected) in requests.iter().zip(&together) {
            let alone = one.generate(std::slice::from_ref(request), &silent, &Cancel::default()).unwrap();
            assert_eq!(alone[0], *expected);
        }
        let asked = |result: &crate::GenerateResult| ScoreRequest {
            id: result.id.clone(),
            prompt: Prompt::Ids(result.prompt_ids.clone().unwrap()),
            continuations: result.completions.iter().map(|c| Continuation::Ids(c.ids.clone().unwrap())).collect(),
        };
        let asked: Vec<ScoreRequest> = together.iter().map(asked).collect();
        let scored = one.score(&asked, &silent, &Cancel::default()).unwrap();
        for (scored, generated) in scored.iter().zip(&together) {
            for (scored, completion) in scored.continuations.iter().zip(&generated.completions) {
                let logps: Vec<f32> = scored.logps.iter().map(|&logp| logp as f32).collect();
                assert_eq!(Some(logps), completion.logps);
            }
        }
        let counts = two.counts().unwrap();
        assert!(counts.n_computed_tokens < counts.n_requested_tokens * 2 / 3, "{counts:?}");
    }
}

/// The first answer is there long before the last: a caller that keeps answers as they come loses none of them.
#[test]
fn each_answer_is_handed_over_when_it_is_done_and_a_break_ends_the_call() {
    let Some(folder) = folder() else { return };
    let (progress, cancel) = (Progress::silent(), Cancel::default());
    let mut asked = sampled(2);
    asked[3].sampling.max_new_tokens = 2;
    let engine = self::engine(&folder, 2);
    let expected = self::engine(&folder, 1).generate(&asked, &progress, &cancel).unwrap();
    let (mut found, mut n_drawn) = (Vec::new(), Vec::new());
    engine
        .generate_into(&asked, &progress, &cancel, &mut |at, answer| {
            n_drawn.push(engine.counts().unwrap().n_drawn_tokens);
            found.push((at, answer.unwrap()));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(found[0].0 == 3 && n_drawn[0] < 100, "{n_drawn:?}");
    found.sort_by_key(|(at, _)| *at);
    assert_eq!(found.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>(), expected);
    let mut n_handed = 0;
    engine
        .generate_into(&asked, &progress, &cancel, &mut |_, _| {
            n_handed += 1;
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(n_handed, 1);
    let scored = |at: usize| ScoreRequest {
        id: at.to_string(),
        prompt: Prompt::Ids((0..400).map(|i| ((i * 7 + at * 31) % 509 + 3) as u32).collect()),
        continuations: vec![Continuation::Ids(vec![9, 10])],
    };
    let asked: Vec<ScoreRequest> = (0..12).map(scored).collect();
    let n_before = engine.counts().unwrap().n_computed_tokens;
    let mut n_computed = Vec::new();
    engine
        .score_into(&asked, &progress, &cancel, &mut |_, answer| {
            assert!(answer.is_ok());
            n_computed.push(engine.counts().unwrap().n_computed_tokens - n_before);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((n_computed.len(), n_computed[11]), (12, 12 * 401));
    assert!(n_computed[0] <= 2048, "the first passes alone: {n_computed:?}");
}

/// Two-token options after one prompt: 500 leaves of a token each, whose pages are held for one layer of five at a time, 100 pages beside
/// those of the prompt. All of it counts.
#[test]
fn the_pages_of_leaves_are_within_the_memory_budget() {
    let Some(folder) = folder() else { return };
    let options = (0..500).map(|at| Continuation::Ids(vec![3 + at, 5])).collect();
    let asked = [ScoreRequest { id: "s".into(), prompt: Prompt::Ids(vec![1; 70]), continuations: options }];
    let wide = open(&folder, BF16, 2, None);
    let expected = wide.score(&asked, &Progress::silent(), &Cancel::default()).unwrap();
    let page_bytes = page_bytes(&wide);
    let peak = wide.counts().unwrap().peak_kv_bytes;
    assert!(peak >= 100 * page_bytes, "{peak}: the leaves are not counted");
    for pages in [2, 5, 20] {
        let narrow = open(&folder, BF16, 2, Some((pages * page_bytes) as usize));
        assert_eq!(narrow.score(&asked, &Progress::silent(), &Cancel::default()).unwrap(), expected);
        let counts = narrow.counts().unwrap();
        assert!(counts.peak_kv_bytes <= pages * page_bytes, "{counts:?} of {pages} pages");
        assert_eq!(counts.kv_budget_bytes, pages * page_bytes);
    }
}

/// A text that must be run alone is run in pieces too: 450 tokens in a budget of its own 8 pages, 128 tokens a pass.
#[test]
fn a_long_text_that_is_run_alone_goes_through_the_decoder_in_pieces() {
    let Some(folder) = folder() else { return };
    let prompt = |at: u32| Prompt::Ids((0..450).map(|i| (i * 7 + at * 31) % 509 + 3).collect());
    let score = |at: u32| ScoreRequest {
        id: at.to_string(),
        prompt: prompt(at),
        continuations: vec![Continuation::Ids(vec![9, 10]), Continuation::Ids(vec![9, 11, 12])],
    };
    let generate = |at: u32| GenerateRequest {
        id: at.to_string(),
        prompt: prompt(at),
        n: 2,
        sampling: Sampling { temperature: 0.8, ..Sampling::greedy(8) },
    };
    let (scores, answers) = ([score(0), score(1)], [generate(0), generate(1)]);
    for format in [F32, BF16] {
        let wide = open(&folder, format, 2, None);
        let budget = 8 * page_bytes(&wide);
        let Engine::Local(mut narrow) = open(&folder, format, 1, Some(budget as usize)) else { panic!("a folder") };
        narrow.pack_tokens = 128;
        let (progress, cancel) = (Progress::silent(), Cancel::default());
        let expected = wide.score(&scores, &progress, &cancel).unwrap();
        assert_eq!(narrow.score(&scores, &progress, &cancel).unwrap(), expected);
        assert!(wide.counts().unwrap().largest_pass_tokens > 450, "the whole text at once");
        let expected = wide.generate(&answers, &progress, &cancel).unwrap();
        assert_eq!(narrow.generate(&answers, &progress, &cancel).unwrap(), expected);
        let counts = narrow.counts();
        // The last piece begins on a page, so it may be up to 63 tokens longer.
        assert!(counts.largest_pass_tokens < 128 + 64 && counts.peak_kv_bytes <= budget, "{counts:?}");
    }
}
