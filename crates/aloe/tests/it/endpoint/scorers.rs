//! DEITA's scores from the three kinds of scorer: a local model, whose numbers are computed again here from the engine's own; servers that name
//! only the most probable next tokens, by hand; and one that dies at half and loses no score.

use super::by_model::{data, model, row, scores, write_lines};
use super::server::{Asked, CANARY, Reply, Server};
use super::{lines, read};
use aloe_engine::{Continuation, Engine, EngineOptions, Prompt, ScoreRequest};
use aloe_record::{Cancel, Progress};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

fn rows(n: usize) -> Vec<Value> {
    let organs = ["heart", "liver", "spleen", "kidney", "lung", "pancreas"];
    let organ = |n: usize| organs[n % organs.len()];
    let word = |n: usize| "abcdefghij".chars().nth(n / organs.len()).unwrap();
    (0..n)
        .map(|n| {
            row(&format!("What does the {} do in case {}?", organ(n), word(n)), &format!("It is the {}.", organ(n)))
        })
        .collect()
}

fn evols(out: &std::path::Path) -> Vec<f64> {
    lines(&out.join("d/scores.jsonl")).iter().map(|row| row["evol"].as_f64().unwrap()).collect()
}

/// The published prompts, written out once more; the mean of 1 to 6 by the plain formula.
#[test]
fn a_local_scorers_numbers_are_the_mean_of_one_to_six_under_the_models_own_log_probabilities() {
    let Some(folder) = model("smollm2-135m-instruct-q4_1") else { return };
    let gguf = format!("{folder}/model.gguf");
    let dir = tempfile::tempdir().unwrap();
    let rows = rows(3);
    let more = format!(
        "from = {{ scorer = \"{gguf}\" }}\nquality = {{ drop_lowest = 0.0 }}\ndedup = {{ exact = false, minhash = false }}"
    );
    let (stdout, stderr, code) = data(dir.path(), &rows, &more);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let engine = Engine::open(&gguf, &EngineOptions::default()).unwrap();
    let mean = |prompt: String| -> f64 {
        let continuations = ["1", "2", "3", "4", "5", "6"].map(|digit| Continuation::Text(digit.into())).to_vec();
        let request = ScoreRequest { id: "q".into(), prompt: Prompt::Text(prompt), continuations };
        let result = engine.score(&[request], &Progress::silent(), &Cancel::default()).unwrap().remove(0);
        let weights: Vec<f64> = result.continuations.iter().map(|one| one.sum().exp()).collect();
        let weighed: f64 = weights.iter().enumerate().map(|(at, weight)| (at + 1) as f64 * weight).sum();
        weighed / weights.iter().sum::<f64>()
    };
    let expected: Vec<f64> = rows
        .iter()
        .map(|row| {
            let (asked, answer) = (row["instruction"].as_str().unwrap(), row["output"].as_str().unwrap());
            let complexity = format!(
                "You are a helpful assistant. Please identify the complexity score of the following user query. \n##Query: {asked}  \n##Complexity: "
            );
            let quality = format!(
                "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. \n #Question#:\n{asked}\n#Response#:\n{answer} \n##Quality: "
            );
            mean(complexity) * mean(quality)
        })
        .collect();
    let found = evols(&dir.path().join("out"));
    assert_eq!(found.len(), 3);
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?} {expected:?}");
    let quality = read(&dir.path().join("out/d/manifest.json"))["quality"].clone();
    assert_eq!((&quality["complexity_told"], &quality["n_partial"]), (&json!("scored"), &json!(0)));
}

/// By hand: complexity has 1 at 0.5 and 3 (behind a space) at 0.25 alone, (0.5 + 0.75) / 0.75 = 5/3; quality has the six alike, 3.5. The second
/// row's server names no digit at all.
#[test]
fn servers_that_name_probable_tokens_alone_score_by_the_digits_among_them_and_the_report_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let complexity = Server::start(|_, asked: &Asked| {
        assert_eq!(asked.path, "/completions", "{}", asked.body);
        let prompt = asked.body["prompt"].as_str().expect("without a tokenizer the prompt goes out as text");
        assert_eq!((&asked.body["max_tokens"], &asked.body["temperature"]), (&json!(1), &json!(0)));
        let tops = match prompt.contains("silent") {
            true => json!({"The": f64::ln(0.9)}),
            false => json!({"1": f64::ln(0.5), " 3": f64::ln(0.25), "The": f64::ln(0.2)}),
        };
        Reply::Json(
            json!({"choices": [{"text": "1", "logprobs": {"top_logprobs": [tops]}, "finish_reason": "length"}]}),
        )
    });
    let quality = Server::start(|_, asked: &Asked| {
        if asked.path == "/completions" {
            return Reply::Status("404 Not Found", "");
        }
        assert_eq!((&asked.body["logprobs"], asked.body["messages"].as_array().unwrap().len()), (&json!(true), 1));
        let tops: Vec<Value> =
            (1..=6).map(|digit| json!({"token": digit.to_string(), "logprob": f64::ln(0.15)})).collect();
        let content = json!([{"token": "4", "logprob": f64::ln(0.15), "top_logprobs": tops}]);
        Reply::Json(
            json!({"choices": [{"message": {"content": "4"}, "logprobs": {"content": content}, "finish_reason": "length"}]}),
        )
    });
    let rows = [row("What does the heart do?", "It beats."), row("What does the silent gland do?", "Nothing.")];
    let from = format!("from = {{ scorer = [\"{}\", \"{}\"] }}", complexity.model(), quality.model());
    let (stdout, stderr, code) = data(dir.path(), &rows, &format!("{from}\nquality = {{ drop_lowest = 0.0 }}"));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let found = lines(&dir.path().join("out/d/scores.jsonl"));
    assert!((found[0]["evol"].as_f64().unwrap() - 3.5 * 5.0 / 3.0).abs() < 1e-9, "{}", found[0]);
    assert_eq!(found[1]["dropped"], "unscored");
    assert!(found[1]["reason"].as_str().unwrap().contains("none of the six digits"), "{}", found[1]);
    let manifest = read(&dir.path().join("out/d/manifest.json"));
    let quality = &manifest["quality"];
    assert_eq!((&quality["complexity_told"], &quality["quality_told"]), (&json!("completions"), &json!("chat")));
    assert_eq!((&quality["n_partial"], &quality["n_unscored"]), (&json!(2), &json!(1)));
    assert!(stderr.contains("among the most probable first tokens") && stderr.contains("another prompt"), "{stderr}");

    let none = Server::start(|_, _| Reply::Json(json!({"choices": [{"text": "4", "finish_reason": "length"}]})));
    let from = format!("from = {{ scorer = \"{}\" }}", none.model());
    let other = tempfile::tempdir().unwrap();
    let (_, stderr, code) = data(other.path(), &rows, &format!("{from}\nquality = {{}}"));
    assert!(
        code == 2 && stderr.contains("nothing can be scored") && stderr.contains("/v1/chat/completions"),
        "{stderr}"
    );
}

/// Each digit is a request of its own; those of a prompt that was not yet whole when the server died are asked again, others are not.
#[test]
fn a_scorer_that_dies_at_half_is_asked_only_for_the_rest() {
    let Some(folder) = model("smollm2-135m-instruct-q4_1") else { return };
    let gguf = format!("{folder}/model.gguf");
    let (limit, answered) =
        (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(Mutex::new(HashMap::<String, usize>::new())));
    let (bound, seen) = (Arc::clone(&limit), Arc::clone(&answered));
    let server = Server::start(move |_, asked: &Asked| {
        if asked.body["seed"] != CANARY {
            let mut seen = seen.lock().unwrap();
            if seen.values().sum::<usize>() >= bound.load(Ordering::SeqCst) {
                return Reply::Dies;
            }
            *seen.entry(asked.body["prompt"].to_string()).or_default() += 1;
        }
        scores(asked, |ids| Some(-1.0 - f64::from(ids.iter().sum::<u32>() % 7)))
    });
    let rows = rows(40);
    let more = format!(
        "from = {{ scorer = \"{}\" }}\nquality = {{ drop_lowest = 0.1, tokenizer = \"{gguf}\" }}\ndedup = {{ exact = false, minhash = false }}",
        server.model()
    );
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_lines(&whole.path().join("rows.jsonl"), &rows);
    let (stdout, stderr, code) = data(whole.path(), &rows, &more);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let n_whole: usize = answered.lock().unwrap().drain().map(|(_, n)| n).sum();
    assert_eq!(n_whole, 2 * 6 * rows.len());
    limit.store(n_whole / 2, Ordering::SeqCst);
    let (_, stderr, code) = data(broken.path(), &rows, &more);
    assert!(code == 1 && stderr.contains("after 5 tries"), "{code} {stderr}");
    limit.store(usize::MAX, Ordering::SeqCst);
    let (stdout, stderr, code) = data(broken.path(), &rows, &more);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let answered = answered.lock().unwrap();
    let n_twice: usize = answered.values().map(|n| n - 1).sum();
    assert!(answered.len() == n_whole && n_twice <= 16 * 5, "{n_twice} of {n_whole} were asked twice");
    let bytes =
        |dir: &tempfile::TempDir, name: &str| std::fs::read_to_string(dir.path().join("out/d").join(name)).unwrap();
    for name in ["scores.jsonl", "train.jsonl"] {
        assert_eq!(bytes(&whole, name), bytes(&broken, name), "{name}");
    }
    let cost = |dir: &tempfile::TempDir| read(&dir.path().join("out/d/manifest.json"))["quality"]["cost"].clone();
    assert_eq!(cost(&whole), cost(&broken));
}

/// 512 texts are logged together: of 640 that were answered the last 128 are embedded again, and one more to see that the weights are the same.
#[test]
fn an_embedder_that_dies_is_asked_only_for_what_no_log_holds_and_one_with_other_weights_is_refused() {
    let (limit, turned) = (Arc::new(AtomicUsize::new(640)), Arc::new(AtomicUsize::new(0)));
    let answered = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let (bound, turns, seen) = (Arc::clone(&limit), Arc::clone(&turned), Arc::clone(&answered));
    let server = Server::start(move |_, asked: &Asked| {
        let inputs = asked.body["input"].as_array().unwrap();
        let mut seen = seen.lock().unwrap();
        if seen.values().sum::<usize>() >= bound.load(Ordering::SeqCst) {
            return Reply::Dies;
        }
        let one = |(at, text): (usize, &Value)| {
            let text = text.as_str().unwrap();
            let number = text.split('-').nth(1).and_then(|number| number.parse::<usize>().ok());
            if number.is_some() {
                *seen.entry(text.to_owned()).or_default() += 1;
            }
            let angle = (number.unwrap_or(0) + turns.load(Ordering::SeqCst)) as f64 * 0.002;
            json!({"index": at, "embedding": [angle.cos(), angle.sin()]})
        };
        Reply::Json(json!({"data": inputs.iter().enumerate().map(one).collect::<Vec<_>>()}))
    });
    let rows: Vec<Value> = (0..700).map(|n| row(&format!("Case-{n}-"), "Yes.")).collect();
    let more = format!(
        "from = {{ embedder = \"{}\" }}\ndedup = {{ exact = false, minhash = false, semantic = 1.0 }}\nrules = {{ drop_listed_answers = false }}",
        server.model()
    );
    let dir = tempfile::tempdir().unwrap();
    let (_, stderr, code) = data(dir.path(), &rows, &more);
    assert!(code == 1 && stderr.contains("after 5 tries"), "{code} {stderr}");
    limit.store(usize::MAX, Ordering::SeqCst);
    turned.store(500, Ordering::SeqCst);
    let (_, stderr, code) = data(dir.path(), &rows, &more);
    assert!(code == 1 && stderr.contains("no longer answers as it did"), "{code} {stderr}");
    turned.store(0, Ordering::SeqCst);
    answered.lock().unwrap().clear();
    let (stdout, stderr, code) = data(dir.path(), &rows, &more);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let n_again: usize = answered.lock().unwrap().values().sum();
    assert_eq!(n_again, 700 - 512 + 1);
    assert!(!dir.path().join("out/d/.vectors.log").exists());
}
