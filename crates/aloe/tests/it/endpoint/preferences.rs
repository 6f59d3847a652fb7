//! Preference pairs out of models' own answers: a red-team run over train questions with a judge becomes the source of a data stage, and
//! `aloe synthesis` with make = "rejections" sets own answers against better sides. What must come out is counted here from the servers' rules.

use super::judge::{COMPLIES, REFUSES, attacked, judge, tokenizer, verdict};
use super::server::{Asked, Server, text};
use super::{lines, read};
use crate::{aloe, root, run};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A recipe of a red-team run on `split` and a data stage over its answers.
fn recipe(dir: &Path, model: &Server, judge: Option<&Server>, split: &str, source: &str) -> (String, String, i32) {
    let starter = root().join("starter").canonicalize().unwrap();
    let starter = starter.display();
    let judge = judge.map(|judge| {
        format!("judge = \"{}\"\njudge_labels = \"{starter}/redteam/judge_labels.jsonl\"\n", judge.model())
    });
    let text = format!(
        "name = \"x\"\n[[stage]]\nkind = \"redteam\"\nname = \"own\"\nfrom = {{ model = \"{}\" }}\ntokenizer = \"{}\"\n\
         questions = \"{starter}/redteam/questions.jsonl\"\nsplit = \"{split}\"\nn_prompts = 120\n{}\
         [[stage]]\nkind = \"data\"\nname = \"pairs\"\noutput = \"pairs\"\nhold_out = 0.3\n\
         dedup = {{ exact = false, minhash = false }}\nsources = [{{ name = \"own\", path = \"stage:own\", licence = \"mit\"{} }}]\n",
        model.model(),
        tokenizer().unwrap(),
        judge.unwrap_or_default(),
        source.replace("STARTER", &starter.to_string()),
    );
    std::fs::write(dir.join("recipe.toml"), text).unwrap();
    run(&["run", dir.join("recipe.toml").to_str().unwrap(), "--out", dir.join("out").to_str().unwrap()])
}

/// What the rules make of an answer: the name under which it is left out, or `unsafe`.
fn fate(sample: &Value) -> &'static str {
    let said = verdict(sample["question"].as_str().unwrap(), sample["response"].as_str().unwrap());
    match (sample["style"].is_null(), sample["rendering"] == "forged_tokens", said) {
        (true, ..) => "harmless_prompt",
        (_, true, _) => "forged_rendering",
        (_, _, "safe") => "judged_safe",
        (_, _, said) if said.starts_with("unsafe") => "unsafe",
        _ => "judge_unread",
    }
}

#[test]
fn judged_answers_to_train_questions_become_pairs_with_each_answer_accounted_for() {
    if tokenizer().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let model = Server::start(|_, asked| attacked(asked));
    let safe = ", safe_answers = \"STARTER/dpo/pairs.jsonl\"";
    let (stdout, stderr, code) = recipe(dir.path(), &model, Some(&judge()), "train", safe);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("these rates are no evaluation"), "{stdout}");
    let samples = lines(&dir.path().join("out/own/samples.jsonl"));
    assert!(samples.iter().filter(|sample| !sample["style"].is_null()).all(|sample| sample["split"] == "train"));
    let (mut expected, mut prompts) = (BTreeMap::new(), Vec::new());
    for sample in &samples {
        match (fate(sample), sample["held_out"] == true) {
            ("unsafe", false) => prompts.push(sample["prompt"].as_str().unwrap().trim().to_owned()),
            ("unsafe", true) => *expected.entry("held_out_style").or_insert(0) += 1,
            (rule, _) => *expected.entry(rule).or_insert(0) += 1,
        }
    }
    let manifest = read(&dir.path().join("out/pairs/manifest.json"));
    assert_eq!(manifest["sources"][0]["dropped"], json!(expected));
    assert!(expected["forged_rendering"] > 0 && expected["judged_safe"] > 0 && prompts.len() > 10, "{expected:?}");
    assert_eq!(manifest["account"]["n_read"], samples.len());
    let part = |name: &str| lines(&dir.path().join("out/pairs").join(name));
    let (train, held) = (part("train.jsonl"), part("hold_out.jsonl"));
    let given: Vec<Value> = lines(&root().join("starter/dpo/pairs.jsonl"));
    let plain = |id: &str| given.iter().find(|row| row["question_id"] == id && row["style"] == "baseline").unwrap();
    let question_of = |row: &Value| -> String {
        let number: usize = row["id"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        samples[number - 1]["question_id"].as_str().unwrap().to_owned()
    };
    let mut found = Vec::new();
    for row in train.iter().chain(&held) {
        assert_eq!(row["rejected"][0]["content"], COMPLIES);
        assert_eq!(row["chosen"], plain(&question_of(row))["chosen"]);
        found.push(row["prompt"][0]["content"].as_str().unwrap().to_owned());
    }
    found.sort();
    prompts.sort();
    assert_eq!(found, prompts, "the prompts are those that were asked");
    let sides = |rows: &[Value]| rows.iter().map(question_of).collect::<std::collections::BTreeSet<String>>();
    assert!(!held.is_empty() && sides(&train).is_disjoint(&sides(&held)));

    // Without given answers the model's own safe ones are chosen, where it has some to the same question.
    std::fs::remove_dir_all(dir.path().join("out/pairs")).unwrap();
    let (stdout, stderr, code) = recipe(dir.path(), &model, Some(&judge()), "train", "");
    assert_eq!(code, 0, "{stdout}{stderr}");
    let rows: Vec<Value> = part("train.jsonl").into_iter().chain(part("hold_out.jsonl")).collect();
    let has_safe = |question: &str| {
        samples
            .iter()
            .any(|one| one["question_id"] == question && fate(one) == "judged_safe" && one["held_out"] != true)
    };
    let n_with = samples
        .iter()
        .filter(|one| {
            fate(one) == "unsafe" && one["held_out"] != true && has_safe(one["question_id"].as_str().unwrap())
        })
        .count();
    assert!(rows.len() == n_with && n_with > 0, "{} and {n_with}", rows.len());
    assert!(rows.iter().all(|row| row["chosen"][0]["content"] == REFUSES));
}

#[test]
fn answers_to_test_questions_and_answers_without_a_judge_are_no_source_of_pairs() {
    if tokenizer().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let model = Server::start(|_, asked| attacked(asked));
    let (_, stderr, code) = recipe(dir.path(), &model, Some(&judge()), "test", "");
    assert!(code != 0 && stderr.contains("the question is of the test split"), "{stderr}");
    let dir = tempfile::tempdir().unwrap();
    let (_, stderr, code) = recipe(dir.path(), &model, None, "train", "");
    assert!(code != 0 && stderr.contains("unjudged"), "{stderr}");
}

fn better(n: usize) -> Value {
    json!({"question_id": format!("q{n}"), "prompt": format!("What is number {n} on the list of ills?"),
        "chosen": format!("It is the ill of kind {n}, known since long."), "rejected": "Old.", "style": null})
}

/// The writer, by the row's number: right away an own answer; at first the better side itself; at first nothing; always the better side.
fn own(n: usize, attempt: usize) -> String {
    match (n % 4, attempt) {
        (0, _) | (1 | 2, 1) => format!("I believe it is a fever, answer {n}."),
        (2, _) => String::new(),
        _ => better(n)["chosen"].as_str().unwrap().to_uppercase(),
    }
}

const N_ROWS: usize = 40;

/// Question and seed to the attempt's number and how often it was answered.
type Answers = Arc<Mutex<HashMap<String, (usize, usize)>>>;

/// A server of that rule; it counts what it answered, by question and seed, and is slow from `slow_from` requests on.
fn writer(slow_from: usize) -> (Server, Answers) {
    let answered = Answers::default();
    let seen = Arc::clone(&answered);
    let server = Server::start(move |at, asked: &Asked| {
        if at >= slow_from {
            std::thread::sleep(Duration::from_millis(500));
        }
        let messages = asked.body["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 1, "the better side is not shown");
        let user = messages[0]["content"].as_str().unwrap();
        let n: usize = user.split(' ').nth(3).unwrap().parse().unwrap();
        let mut seen = seen.lock().unwrap();
        let begins = format!("{n}/");
        let key = format!("{begins}{}", asked.body["seed"]);
        let n_before = seen.keys().filter(|known| known.starts_with(&begins)).count();
        // What a killed run never read is asked again: the same attempt, told by its seed.
        let (attempt, n_answers) = seen.entry(key).or_insert((n_before, 0));
        *n_answers += 1;
        text(&own(n, *attempt))
    });
    (server, answered)
}

fn rejections<'a>(model: &'a str, rows: &'a str, out: &'a str) -> Vec<&'a str> {
    let mut args =
        vec!["synthesis", model, "--server-template", "--out", out, "--set", "make=rejections", "--set", rows];
    args.extend(["--set", "attempts=2"]);
    args
}

#[test]
fn own_answers_become_rejected_sides_and_a_killed_run_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let all: String = (0..N_ROWS).map(|n| format!("{}\n", better(n))).collect();
    std::fs::write(dir.path().join("rows.jsonl"), all).unwrap();
    let rows = format!("rows={}", dir.path().join("rows.jsonl").display());
    let (fast, answered) = writer(usize::MAX);
    let (model, whole) = (fast.model(), dir.path().join("whole"));
    let (stdout, stderr, code) = run(&rejections(&model, &rows, whole.to_str().unwrap()));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stderr.contains("nobody has judged them worse") && stdout.contains("30 of 40"), "{stdout}{stderr}");
    let results = read(&whole.join("results.json"));
    let quarter = N_ROWS / 4;
    assert_eq!(results["accepted_at_attempt"], json!([quarter, 2 * quarter]));
    assert_eq!(results["attempts"], json!({"accepted": 3 * quarter, "empty": quarter, "same": 3 * quarter}));
    assert_eq!(results["cost"]["n_requests"], 7 * quarter);
    assert_eq!(fast.n_asked(), 7 * quarter);
    assert!(answered.lock().unwrap().values().all(|(_, n)| *n == 1), "nothing is asked twice");
    let found = lines(&whole.join("train.jsonl"));
    let kept: Vec<usize> = (0..N_ROWS).filter(|n| n % 4 != 3).collect();
    assert_eq!(found.len(), kept.len());
    for (row, n) in found.iter().zip(&kept) {
        let of = better(*n);
        let talk =
            |side: &Value| json!([{"role": "user", "content": of["prompt"]}, {"role": "assistant", "content": side}]);
        assert_eq!((&row["chosen"], &row["rejected"]), (&talk(&of["chosen"]), &talk(&json!(own(*n, 1)))));
        assert_eq!((&row["made"], &row["question_id"]), (&json!("self-generated rejection"), &of["question_id"]));
        assert_eq!(row["attempts"], usize::from(n % 4 != 0) + 1);
    }

    // A data stage reads the stage's folder.
    let config = dir.path().join("data.toml");
    let source = format!("{{ name = \"own\", path = \"{}\", licence = \"mit\" }}", whole.display());
    std::fs::write(&config, format!("output = \"pairs\"\nsources = [{source}]\ndedup = {{ minhash = false }}\n"))
        .unwrap();
    let data = dir.path().join("data");
    let (_, stderr, code) =
        run(&["data", "run", "--config", config.to_str().unwrap(), "--out", data.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let manifest = read(&data.join("manifest.json"));
    assert_eq!(manifest["sources"][0]["dialects"], json!({"dpo_mix": kept.len()}));
    assert_eq!(manifest["sources"][0]["synthetic"], json!({"self-generated rejection": kept.len()}));
    assert_eq!(lines(&data.join("train.jsonl")).len(), kept.len());

    // Answers are held for ten seconds in the midst of a call, for the server to be vouched for; those of a whole call are logged. The kill
    // comes in the second, the second attempts.
    let (slow, answered) = writer(N_ROWS);
    let (model, out) = (slow.model(), dir.path().join("out"));
    let args = rejections(&model, &rows, out.to_str().unwrap());
    let null = std::process::Stdio::null;
    let mut child = aloe().args(&args).stderr(null()).stdout(null()).spawn().unwrap();
    while slow.n_asked() < N_ROWS + 8 {
        std::thread::yield_now();
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.exists());
    let (stdout, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let n_twice: usize = answered.lock().unwrap().values().map(|(_, n)| n - 1).sum();
    assert!(n_twice <= 16, "only what was under way is asked again: {n_twice}");
    for name in ["train.jsonl", "attempts.jsonl", "results.json", "report.html"] {
        let bytes = |folder: &Path| std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(bytes(&whole), bytes(&out), "{name}");
    }
}
