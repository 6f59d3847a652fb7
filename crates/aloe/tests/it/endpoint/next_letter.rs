//! `--strategy next-letter`: what servers that cannot be scored are asked instead, when the user names it. The mocks answer by a rule, so that
//! every figure is known beforehand; a local model's letters are those of its log-likelihoods.

use super::server::{Asked, Reply, Server, prompt_ids, text};
use super::{eval, lines, read, same, starter, stories_with_template};
use crate::{run, stories};
use serde_json::{Value, json};
use std::path::Path;

/// One drawn token with the most probable ones, as llama-server lists them on both paths.
pub(super) fn named(tops: &[(&str, f64)]) -> Reply {
    let tops: Vec<Value> = tops.iter().map(|(token, p)| json!({"id": 1, "token": token, "logprob": p.ln()})).collect();
    let content = json!([{"id": 1, "token": "x", "logprob": -1.0, "top_logprobs": tops}]);
    Reply::Json(
        json!({"choices": [{"text": "x", "message": {"content": "x"}, "logprobs": {"content": content}, "finish_reason": "length"}]}),
    )
}

/// What the mock makes of a prompt's ids: an option, and which letters it names.
fn rule(ids: &[u32]) -> (usize, u32) {
    let sum: u32 = ids.iter().sum();
    ((sum % 4) as usize, sum % 7)
}

const LETTERS: [&str; 4] = [" A", " B", " C", " D"];

/// The right letter has 0.4 and the others 0.1; with 3 as the rest of a division by 7 the letter after it is not named, with 5 none is.
fn by_ids(asked: &Asked) -> Reply {
    let (option, names) = rule(&prompt_ids(asked));
    let left_out = (option + 1) % 4;
    let letters = (0..4).filter(|&at| names != 5 && !(names == 3 && at == left_out));
    let mut tops: Vec<(&str, f64)> = letters.map(|at| (LETTERS[at], if at == option { 0.4 } else { 0.1 })).collect();
    tops.push(("The", 0.2));
    named(&tops)
}

fn started(mock: &Server, out: &Path, more: &[&str]) -> (String, String, i32) {
    eval(&mock.model(), out, &[&["--tasks", "starter_mcqa"], more].concat())
}

/// The refusal names the strategy; with it each question is one request of our ids, and the figures are the rule's.
#[test]
fn a_server_that_cannot_be_scored_is_refused_with_the_strategy_that_takes_it_which_gives_its_rules_figures() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (out, tokenizer) = (dir.path().join("out"), ["--tokenizer", stories.to_str().unwrap()]);
    let server = Server::start(|_, asked| by_ids(asked));
    let (_, stderr, code) = started(&server, &out, &tokenizer);
    assert!(code == 2 && stderr.contains("no usable prompt log-probabilities"), "{code} {stderr}");
    assert!(stderr.contains("`aloe eval --strategy next-letter` is another protocol"), "{stderr}");
    assert!(!out.exists());
    let n_before = server.n_asked();

    let more = [&tokenizer[..], &["--strategy", "next-letter", "--shots", "1"]].concat();
    let (stdout, stderr, code) = started(&server, &out, &more);
    assert_eq!(code, 0, "{stderr}");
    let asked = server.asked();
    // The next token's probe (the mock does not count the score's again), and each question twice, for the noise floor.
    assert_eq!(asked.len() - n_before, 1 + 2 * 60);
    let letters = &asked[n_before + 1..];
    assert!(letters.iter().all(|one| one.path == "/completions" && one.body["max_tokens"] == 1), "{}", letters[0].body);
    let samples = lines(&out.join("samples.jsonl"));
    let sent: Vec<Value> = letters.iter().map(|one| one.body["prompt"].clone()).collect();
    let (mut n_right, mut n_none, mut n_partial) = (0, 0, 0);
    for sample in &samples {
        assert_eq!(sent.iter().filter(|ids| **ids == sample["prompt_ids"]).count(), 2);
        let ids: Vec<u32> = serde_json::from_value(sample["prompt_ids"].clone()).unwrap();
        let (option, names) = rule(&ids);
        let predicted = if names == 5 { Value::Null } else { json!(option) };
        assert_eq!(sample["predicted"], predicted);
        n_right += usize::from(names != 5 && sample["key"] == option);
        n_none += usize::from(names == 5);
        n_partial += usize::from(names == 5 || names == 3);
        let logps: Vec<Option<f64>> =
            sample["choices"].as_array().unwrap().iter().map(|one| one["logp"].as_f64()).collect();
        let due = |at: usize| match (names, at == option) {
            (5, _) => None,
            (3, _) if at == (option + 1) % 4 => None,
            (_, is_right) => Some(if is_right { 0.4f64 } else { 0.1 }.ln()),
        };
        assert_eq!(logps, (0..4).map(due).collect::<Vec<_>>());
        assert!(sample.get("correct_norm").is_none(), "{sample}");
    }
    assert!(n_right > 5 && n_none > 2 && n_partial > n_none + 2, "{n_right} {n_none} {n_partial} say little");
    let results = read(&out.join("results.json"));
    let settings = &results["settings"];
    assert_eq!((&settings["strategy"], &settings["told"]), (&json!("next-letter"), &json!("completions")));
    let task = &results["tasks"][0];
    assert!(same(&task["acc"]["value"], &json!(n_right as f64 / 60.0)), "{task}");
    assert_eq!((&task["n_unparsed"], &task["n_partial"]), (&json!(n_none), &json!(n_partial)));
    // Four sevenths of each answer that has all letters: 0.4 of 0.7.
    assert_eq!((&task["calibration"]["n"], task.get("acc_norm")), (&json!(60 - n_partial), None));
    assert!(same(&task["calibration"]["bins"][0]["confidence"], &json!(4.0 / 7.0)), "{}", task["calibration"]);
    assert_eq!(task["noise_floor"]["n_predictions_changed"], 0);
    assert!(
        stdout.contains("next-letter: letters among the most probable next tokens that /v1/completions"),
        "{stdout}"
    );
    assert!(stdout.contains(&format!("letter: {n_partial} (left out of the calibration)")), "{stdout}");
    let record = read(&out.join("record.json"));
    assert_eq!(
        (&record["config_used"]["strategy"], &record["results"]["eval"]["settings"]),
        (&json!("next-letter"), settings)
    );
    afterwards(&out, &results, &stories);
}

/// A finished run is read again, shown, exported and compared as others are, and the comparison says what it is of.
fn afterwards(out: &Path, results: &Value, stories: &Path) {
    let beside = |name: &str| out.with_file_name(name).display().to_string();
    let shown = out.display().to_string();
    let (_, stderr, code) = run(&["rescore", &shown, "--out", &beside("again")]);
    assert_eq!(code, 0, "{stderr}");
    let mut first = results["tasks"][0].clone();
    first.as_object_mut().unwrap().remove("noise_floor");
    assert_eq!(read(&out.with_file_name("again").join("results.json"))["tasks"][0], first);
    let (_, stderr, code) = run(&["view", &shown, "--out", &beside("page.html")]);
    assert_eq!(code, 0, "{stderr}");
    let page = std::fs::read_to_string(beside("page.html")).unwrap();
    assert!(page.contains("next-letter") && page.contains("completions"));
    let (stdout, stderr, code) = run(&["export", &shown, "--format", "markdown"]);
    assert!(code == 0 && stdout.contains("aloe, next-letter, 1 shots, letters among the most"), "{stdout}{stderr}");
    let (stdout, stderr, code) = run(&["export", &shown, "--format", "csv"]);
    assert!(code == 0 && stdout.contains("aloe,\"next-letter, letters among the most"), "{stdout}{stderr}");
    let scored = out.with_file_name("scored");
    let more = ["--tasks", "starter_mcqa", "--shots", "1"];
    assert_eq!(eval(stories.to_str().unwrap(), &scored, &more).2, 0);
    let (stdout, stderr, code) = run(&["compare", scored.to_str().unwrap(), &shown]);
    assert!(
        code == 0 && stdout.contains("strategy loglikelihood and next-letter; told none and completions"),
        "{stdout}{stderr}"
    );
}

/// Where only `/chat/completions` lists tokens, the server's own template must be allowed. It answers right but for every third question,
/// the letter behind a space or not.
#[test]
fn a_server_of_chat_alone_is_asked_for_letters_only_where_its_own_template_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let rows = lines(&Path::new(&starter()).join("mcqa/starter_mcqa_test.jsonl"));
    let stems: Vec<(String, usize)> = rows
        .iter()
        .map(|row| (row["question"].as_str().unwrap().to_owned(), row["cop"].as_u64().unwrap() as usize))
        .collect();
    let server = Server::start(move |_, asked| {
        if asked.path == "/completions" {
            return text("no lists here");
        }
        let asked = asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
        let Some(at) = stems.iter().position(|(stem, _)| asked.contains(stem.as_str())) else {
            return named(&[("2", 0.9)]);
        };
        assert!(asked.contains("\nA. ") && asked.ends_with("\nAnswer:"), "{asked}");
        let option = (stems[at].1 + usize::from(at % 3 == 2)) % 4;
        let letter = if at % 2 == 0 { LETTERS[option] } else { LETTERS[option].trim() };
        named(&[(letter, 0.3), ("Sure", 0.6)])
    });
    let out = dir.path().join("out");
    let next = ["--strategy", "next-letter"];
    let (_, stderr, code) = started(&server, &out, &next);
    assert!(code == 2 && stderr.contains("is asked with --server-template alone"), "{code} {stderr}");
    assert!(server.asked().iter().all(|one| one.path == "/completions"), "chat is asked on request only");
    let refused = |more: &[&str], words: &str| {
        let (_, stderr, code) = started(&server, &out, &[&next, more].concat());
        assert!(code == 2 && stderr.contains(words) && !out.exists(), "{code} {stderr}");
    };
    refused(
        &["--set", "chat_template=true"],
        "--tokenizer, or let the server render chat messages with --server-template",
    );
    refused(&["--server-template", "--set", "chat_template=false"], "server_template renders conversations");
    refused(&["--protocol", "lm-eval"], "protocol lm-eval has loglikelihood scoring only, no next-letter");
    refused(&["--protocol", "prompt-engine"], "protocol prompt-engine has no next-letter scoring");
    refused(&["--set", "shuffle=true", "--set", "n_samples=2"], "next-letter takes one answer per question");

    let more = [&next[..], &["--server-template", "--shots", "1", "--set", "system=\"Be brief.\""]].concat();
    let (stdout, stderr, code) = started(&server, &out, &more);
    assert_eq!(code, 0, "{stderr}");
    let results = read(&out.join("results.json"));
    let settings = &results["settings"];
    assert_eq!((&settings["told"], &settings["chat_template"]), (&json!("chat"), &json!(true)));
    assert_eq!((&results["model"]["text"], settings.get("sampling")), (&json!("server template"), None));
    let task = &results["tasks"][0];
    assert!(same(&task["acc"]["value"], &json!(40.0 / 60.0)), "{task}");
    // One letter of four is no distribution over them.
    assert_eq!((&task["n_unparsed"], &task["n_partial"], task.get("calibration")), (&json!(0), &json!(60), None));
    assert!(stdout.contains("/v1/chat/completions names (server template)"), "{stdout}");
    let last = server.asked().pop().unwrap();
    let roles: Vec<&str> =
        last.body["messages"].as_array().unwrap().iter().map(|one| one["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert_eq!((&last.body["top_logprobs"], &last.body["max_tokens"]), (&json!(20), &json!(1)));
}

/// On a set whose options are scored by letters the local model is asked the same twice. Its yes, no and maybe get letters.
#[test]
fn a_local_models_next_letters_are_those_of_its_log_likelihoods_from_the_same_ids() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let chat = stories_with_template(&stories, &dir.path().join("model"));
    let of = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let (stdout, stderr, code) = eval(chat.to_str().unwrap(), &out, more);
        assert_eq!(code, 0, "{stderr}");
        (lines(&out.join("samples.jsonl")), read(&out.join("results.json")), stdout)
    };
    let more = ["--tasks", "starter_mcqa", "--limit", "20", "--shots", "2"];
    let (scored, by_scores, _) = of("scored", &more);
    let (letters, by_letters, stdout) = of("letters", &[&more[..], &["--strategy", "next-letter"]].concat());
    for (a, b) in scored.iter().zip(&letters) {
        assert_eq!((&a["prompt_ids"], &a["predicted"]), (&b["prompt_ids"], &b["predicted"]));
        let logps = |sample: &Value| -> Vec<Value> {
            sample["choices"].as_array().unwrap().iter().map(|one| one["logp"].clone()).collect()
        };
        assert_eq!(logps(a), logps(b), "the same bits");
    }
    assert_eq!(letters.len(), 20);
    assert_eq!((&by_letters["settings"]["told"], by_scores["settings"].get("told")), (&json!("scored"), None));
    assert_eq!(by_letters["tasks"][0]["calibration"], by_scores["tasks"][0]["calibration"]);
    assert!(stdout.contains("next-letter: each letter scored"), "{stdout}");
    let more =
        ["--tasks", "starter_pubmedqa", "--limit", "2", "--strategy", "next-letter", "--set", "chat_template=true"];
    let (samples, ..) = of("pubmedqa", &more);
    assert!(samples.iter().all(|one| one["choices"].as_array().unwrap().len() == 3 && one["predicted"].is_u64()));
}
