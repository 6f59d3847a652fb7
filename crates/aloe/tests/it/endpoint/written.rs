//! What `aloe synthesis` keeps and says, against servers that write by a rule: solutions made without the key, PubMedQA's, those that lack one
//! of the three parts, questions without a reference rationale, the cost as the server counts it, and a server that dies at half.

use super::server::{Asked, Reply, Server, text};
use super::{lines, read, starter};
use crate::run;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

fn last_user(asked: &Asked) -> String {
    asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
}

fn stem_of(user: &str) -> &str {
    user.lines().next().unwrap().strip_prefix("Question: ").unwrap()
}

fn number(text: &str) -> usize {
    text.bytes().map(usize::from).sum()
}

/// The keys of the starter's train questions, by stem.
fn keys() -> HashMap<String, String> {
    let rows = lines(&Path::new(&starter()).join("mcqa/starter_mcqa_train.jsonl"));
    let letter = |row: &Value| char::from(b'A' + row["cop"].as_u64().unwrap() as u8).to_string();
    rows.iter().map(|row| (row["question"].as_str().unwrap().to_owned(), letter(row))).collect()
}

const ASKED: &str =
    "What is asked here is which structure the findings of this case point to, and how the one is told from the other.";
const END: &str = "Taken together only one of them remains.";

fn weighed(user: &str) -> String {
    let options = user.lines().filter(|line| line.get(1..3) == Some(". "));
    options.map(|line| format!("{line}: weighed for itself and by the findings.\n")).collect()
}

fn solved(user: &str, letter: &str) -> String {
    format!("{ASKED}\n\n{}\n{END}\nAnswer: {letter}", weighed(user))
}

fn synthesis(model: &str, task: &str, data: &str, out: &Path, more: &[&str]) -> (String, String, i32) {
    let out = out.display().to_string();
    let mut args = vec!["synthesis", model, "--server-template", "--tasks", task, "--data", data, "--out", &out];
    args.extend(more);
    run(&args)
}

/// Of every question but each third the writer finds the key by itself.
#[test]
fn solutions_made_without_the_key_are_a_database_of_medprompt_beside_those_made_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys();
    let is_found = |stem: &str| !number(stem).is_multiple_of(3);
    let of_server = keys.clone();
    let server = Server::start(move |_, asked| {
        let user = last_user(asked);
        let is_told = user.contains("\n\nRight answer: ");
        let all = asked.body["messages"].to_string();
        assert_eq!(is_told, all.contains("Right answer") && all.contains("given the right answer"), "{all}");
        let key = &of_server[stem_of(&user)];
        let wrong = if key == "A" { "B" } else { "A" };
        text(&solved(&user, if is_told || is_found(stem_of(&user)) { key } else { wrong }))
    });
    let n_found = keys.keys().filter(|stem| is_found(stem)).count();
    assert!(n_found > 20 && n_found < keys.len());
    let answerer = Server::start(|_, _| text("It is so.\nAnswer: [A]"));
    let (starter, model) = (starter(), answerer.model());
    for (mode, made, n_kept, n_attempts) in [
        ("self", "self-generated", n_found, n_found + 2 * (keys.len() - n_found)),
        ("gold", "gold-conditioned", keys.len(), keys.len()),
    ] {
        let out = dir.path().join(mode);
        let more = ["--mode", mode, "--set", "attempts=2", "--set", "blind=false"];
        let (stdout, stderr, code) = synthesis(&server.model(), "starter_mcqa", &starter, &out, &more);
        assert_eq!(code, 0, "{stdout}{stderr}");
        let rows = lines(&out.join("train.jsonl"));
        assert_eq!(rows.len(), n_kept, "{mode}");
        let support = if mode == "self" { "none" } else { "reference explanation" };
        assert!(rows.iter().all(|row| row["made"] == made && row["support"] == support), "{mode}");
        for row in &rows {
            let key = &keys[stem_of(row["question"].as_str().unwrap())];
            assert!(row["response"].as_str().unwrap().ends_with(&format!("\nAnswer: {key}")));
        }
        let found = &read(&out.join("results.json"))["tasks"][0];
        assert_eq!(found["cost"]["n_requests"], n_attempts);
        assert_eq!(found["attempts"]["wrong"].as_u64().unwrap_or(0) as usize, n_attempts - n_kept);

        let examples = format!("examples={}", out.join("examples.json").display());
        let eval = dir.path().join(format!("eval-{mode}"));
        let mut args = vec!["eval", &model, "--server-template", "--tasks", "starter_mcqa", "--data", &starter];
        args.extend(["--strategy", "medprompt", "--limit", "2", "--out", eval.to_str().unwrap(), "--set", &examples]);
        args.extend(["--set", "n_samples=1"]);
        let (_, stderr, code) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        let notes = read(&eval.join("results.json"))["tasks"][0]["notes"].clone();
        assert_eq!(notes["pool_answers_made"], json!({ made: n_kept }), "{notes}");
    }
}

/// By the number of the abstract: right at once in three paragraphs; at first the wrong answer; at first all in one line.
#[test]
fn pubmedqas_solutions_are_summary_reasoning_and_verdict_with_the_published_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Mutex::new(HashMap::<String, usize>::new());
    let kind = |user: &str| number(user.split("\n\nRight answer: ").next().unwrap()) % 3;
    let server = Server::start(move |_, asked| {
        let user = last_user(asked);
        if let Some((_, reasoning)) = user.split_once("\n\nReasoning:\n") {
            assert!(!reasoning.contains("\nAnswer:"), "{reasoning}");
            return text("Answer: yes");
        }
        let (shown, told) = user.split_once("\n\nRight answer: ").unwrap();
        assert!(shown.contains("Constructed example") && told.contains("\nReference explanation: "), "{user}");
        let key = told.lines().next().unwrap();
        let mut seen = seen.lock().unwrap();
        let attempt = seen.entry(user.clone()).or_default();
        *attempt += 1;
        let parts = [
            "Groups were compared and their outcomes counted.",
            "The difference is plain and chance unlikely.",
            "Hence the verdict.",
        ];
        text(&match (kind(&user), *attempt) {
            (1, 1) => format!("{}\nAnswer: {}", parts.join("\n\n"), if key == "yes" { "no" } else { "yes" }),
            (2, 1) => format!("{}\nAnswer: {key}", parts.join(" ")),
            _ => format!("{}\nAnswer: {key}", parts.join("\n\n")),
        })
    });
    let out = dir.path().join("cot");
    let (stdout, stderr, code) =
        synthesis(&server.model(), "starter_pubmedqa", &starter(), &out, &["--set", "attempts=2"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let questions = lines(&Path::new(&starter()).join("mcqa/starter_pubmedqa_train.jsonl"));
    let rows = lines(&out.join("train.jsonl"));
    assert_eq!(rows.len(), questions.len());
    let mut n_by_kind = [0; 3];
    for (row, question) in rows.iter().zip(&questions) {
        let asked = row["question"].as_str().unwrap();
        assert!(asked.contains(question["QUESTION"].as_str().unwrap()));
        assert!(
            asked.contains(question["CONTEXTS"][1].as_str().unwrap()),
            "the abstract stands in the question: {asked}"
        );
        let response = row["response"].as_str().unwrap();
        let verdict = format!("\nAnswer: {}", question["final_decision"].as_str().unwrap());
        assert!(response.ends_with(&verdict) && response.split("\n\n").count() == 3, "{response}");
        assert_eq!((&row["task"], &row["support"]), (&json!("pubmedqa_cot"), &json!("reference explanation")));
        n_by_kind[kind(asked)] += 1;
        assert_eq!(row["attempts"], usize::from(kind(asked) != 0) + 1);
        assert_eq!(row["blind_reader"], if question["final_decision"] == "yes" { "key" } else { "other" });
    }
    let found = &read(&out.join("results.json"))["tasks"][0];
    let of = |name: &str| found["attempts"][name].as_u64().unwrap_or(0) as usize;
    assert_eq!((of("accepted"), of("wrong"), of("no_parts")), (rows.len(), n_by_kind[1], n_by_kind[2]));
    assert!(n_by_kind.iter().all(|n| *n > 0), "{n_by_kind:?}");

    let config = dir.path().join("data.toml");
    let source = format!("{{ name = \"cot\", path = \"{}\", licence = \"mit\" }}", out.display());
    std::fs::write(&config, format!("sources = [{source}]\ndedup = {{ exact = false, minhash = false }}\n")).unwrap();
    let data = dir.path().join("data");
    let (_, stderr, code) =
        run(&["data", "run", "--config", config.to_str().unwrap(), "--out", data.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(read(&data.join("manifest.json"))["sources"][0]["tasks"], json!({"pubmedqa_cot": rows.len()}));
}

/// Each question gets five attempts, of which only the last has all parts; the server counts 11 tokens in and 7 out of each.
#[test]
fn attempts_without_one_of_the_three_parts_are_counted_by_the_part_and_the_servers_tokens_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, seen) = (keys(), Mutex::new(HashMap::<String, usize>::new()));
    let server = Server::start(move |_, asked| {
        let user = last_user(asked);
        let key = &keys[stem_of(&user)];
        let mut seen = seen.lock().unwrap();
        let attempt = seen.entry(user.clone()).or_default();
        *attempt += 1;
        let weighed = weighed(&user);
        let all = weighed.trim().replace('\n', " ");
        let said = match *attempt {
            1 => format!("{weighed}\n{END}"),
            2 => format!("{ASKED}\n\nIt must be [{key}] by the findings.\n\n{END}"),
            3 => format!("{ASKED}\n\n{weighed}"),
            4 => format!("{ASKED} {all} {END}"),
            _ => format!("{ASKED}\n\n{weighed}\n{END}"),
        };
        let Reply::Json(mut answer) = text(&format!("{}\nAnswer: {key}", said.trim())) else { panic!("an answer") };
        answer["usage"] = json!({"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18});
        Reply::Json(answer)
    });
    let (out, starter) = (dir.path().join("cot"), starter());
    let limit = ["--set", "limit=6", "--set", "blind=false"];
    let (stdout, stderr, code) = synthesis(&server.model(), "starter_mcqa", &starter, &out, &limit);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stderr.contains("without the three parts") && stderr.contains("in_parts = false"), "{stderr}");
    let results = read(&out.join("results.json"));
    let found = &results["tasks"][0];
    let expected =
        json!({"accepted": 6, "no_question_part": 6, "no_options_part": 6, "no_choice_part": 6, "no_parts": 6});
    assert_eq!(found["attempts"], expected);
    assert_eq!(found["accepted_at_attempt"], json!([0, 0, 0, 0, 6]));
    assert_eq!(found["cost"], json!({"n_requests": 30, "n_prompt_tokens": 330, "n_tokens": 210, "n_untold": 0}));
    assert!(stdout.contains("6 of 6 (100.0 %) questions solved in 30 attempts"), "{stdout}");
    assert!(stdout.contains("30 requests, 330 prompt and 210 new tokens"), "{stdout}");
    let record = read(&out.join("record.json"));
    assert!(record["results"]["seconds_of_asking"].as_f64().unwrap() > 0.0);
    let verdicts: Vec<Value> = lines(&out.join("attempts.jsonl")).iter().map(|one| one["verdict"].clone()).collect();
    assert_eq!(
        verdicts[..5],
        ["no_question_part", "no_options_part", "no_choice_part", "no_parts", "accepted"].map(Value::from)
    );

    // Switched off, the check keeps a solution in one line.
    let fresh = {
        let keys = self::keys();
        Server::start(move |_, asked| {
            let user = last_user(asked);
            text(&format!("{ASKED} {END}\nAnswer: {}", keys[stem_of(&user)]))
        })
    };
    let out = dir.path().join("loose");
    let more = [&limit[..], &["--set", "in_parts=false"]].concat();
    let (stdout, stderr, code) = synthesis(&fresh.model(), "starter_mcqa", &starter, &out, &more);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!(read(&out.join("results.json"))["tasks"][0]["accepted_at_attempt"], json!([6, 0, 0, 0, 0]));
}

#[test]
fn questions_without_a_reference_rationale_are_solved_from_the_key_alone_and_the_user_is_told_how_many() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = lines(&Path::new(&starter()).join("mcqa/starter_mcqa_train.jsonl"));
    rows.truncate(5);
    for row in &mut rows[1..4] {
        row["exp"] = Value::Null;
    }
    std::fs::create_dir_all(dir.path().join("mcqa")).unwrap();
    let all: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(dir.path().join("mcqa/starter_mcqa_train.jsonl"), all).unwrap();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&shown);
    let keys = keys();
    let server = Server::start(move |_, asked| {
        let user = last_user(asked);
        kept.lock().unwrap().push(user.contains("Reference explanation: "));
        text(&solved(&user, &keys[stem_of(&user)]))
    });
    let (out, data) = (dir.path().join("cot"), dir.path().display().to_string());
    let (stdout, stderr, code) = synthesis(&server.model(), "starter_mcqa", &data, &out, &["--set", "blind=false"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let told =
        "no reference explanation for 3 of 5 (60.0 %), so their solutions were written from the right answer alone";
    assert!(stderr.contains(told), "{stderr}");
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains(told));
    assert_eq!(shown.lock().unwrap().iter().filter(|is_shown| **is_shown).count(), 2);
    let support: Vec<Value> = lines(&out.join("train.jsonl")).iter().map(|row| row["support"].clone()).collect();
    let (with, without) = ("reference explanation", "none");
    assert_eq!(support, [with, without, without, without, with].map(Value::from));
}

/// The server answers a third of the requests and closes every connection from then on, until it is started again.
#[test]
fn a_server_that_dies_in_mid_synthesis_loses_no_answer_and_is_asked_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let answered = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let (limit, seen, keys) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::clone(&answered), keys());
    let bound = Arc::clone(&limit);
    let server = Server::start(move |_, asked| {
        let user = last_user(asked);
        let mut seen = seen.lock().unwrap();
        if seen.values().sum::<usize>() >= bound.load(Ordering::SeqCst) {
            return Reply::Dies;
        }
        *seen.entry(format!("{user}{}", asked.body["seed"])).or_default() += 1;
        match user.ends_with("Which answer does it lead to?") {
            true => text(&format!("Answer: {}", keys[stem_of(&user)])),
            false => text(&solved(&user, &keys[stem_of(&user)])),
        }
    });
    let starter = starter();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("cot"));
    let (_, stderr, code) = synthesis(&server.model(), "starter_mcqa", &starter, &whole, &[]);
    assert_eq!(code, 0, "{stderr}");
    let n_whole: usize = answered.lock().unwrap().drain().map(|(_, n)| n).sum();
    limit.store(n_whole / 3, Ordering::SeqCst);
    let (_, stderr, code) = synthesis(&server.model(), "starter_mcqa", &starter, &out, &[]);
    assert!(code == 1 && stderr.contains("after 5 tries"), "{code} {stderr}");
    assert!(!out.exists(), "half a folder is no result");
    assert_eq!(answered.lock().unwrap().values().sum::<usize>(), n_whole / 3);
    limit.store(usize::MAX, Ordering::SeqCst);
    let (_, stderr, code) = synthesis(&server.model(), "starter_mcqa", &starter, &out, &[]);
    assert_eq!(code, 0, "{stderr}");
    let answered = answered.lock().unwrap();
    assert_eq!(answered.values().sum::<usize>(), n_whole);
    assert!(answered.values().all(|n| *n == 1), "every answer was kept");
    for name in ["train.jsonl", "attempts.jsonl", "examples.json", "results.json", "report.html"] {
        let bytes = |folder: &Path| std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(bytes(&whole), bytes(&out), "{name}");
    }
}
