//! `aloe synthesis` against a server that answers by a rule: yield, attempts and what the blind reader made of the solutions are counted
//! again here from the questions and the rule; the rows are read by a data stage and by Medprompt; a killed run goes on.

use super::server::{Asked, Reply, Server, text};
use super::{lines, read, starter};
use crate::{aloe, run};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A number of a question, by which the rule decides.
fn number(stem: &str) -> usize {
    stem.bytes().map(usize::from).sum()
}

/// The attempt (from 0) that reaches the key; the fourth kind of question never does.
fn right_at(stem: &str) -> Option<usize> {
    Some(number(stem) % 4).filter(|at| *at < 3)
}

/// Whether its solution says that the answer was given.
fn betrays(stem: &str) -> bool {
    number(stem).is_multiple_of(7)
}

/// What the blind reader does: 0 says nothing readable, 1 picks another option, others pick the key.
fn blind_kind(stem: &str) -> usize {
    (number(stem) % 5).min(2)
}

const BLIND: &str = "Which answer does it lead to?";

fn last_user(asked: &Asked) -> String {
    asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
}

fn stem_of(user: &str) -> &str {
    user.lines().next().unwrap().strip_prefix("Question: ").unwrap()
}

fn other(key: &str) -> &'static str {
    if key == "A" { "B" } else { "A" }
}

/// The writer: right at its attempt; before that first a wrong answer, then the question itself with the right one, then none at all.
fn solution(user: &str, attempt: usize) -> String {
    let (shown, told) = user.split_once("\n\nRight answer: ").unwrap();
    let stem = stem_of(user);
    let reasoning = format!(
        "What decides here is told by the course of the structure named in case {}, and every choice must be held against it in turn before \
         one can be taken.{}",
        number(stem),
        if betrays(stem) { " The given answer fits this." } else { "" }
    );
    let key = &told[..1];
    let options = shown.lines().filter(|line| line.get(1..3) == Some(". "));
    let weighed: String =
        options.map(|line| format!("{line}: this one is weighed for itself and by the findings.\n")).collect();
    match attempt {
        at if right_at(stem) == Some(at) => {
            format!("{reasoning}\n\n{weighed}\nSo [{key}] it is.\n\nAnswer: {key}\n\nQuestion: And what")
        }
        0 => format!("{reasoning}\nAnswer: {}", other(key)),
        1 => format!("{shown}\nAnswer: {key}"),
        _ => reasoning,
    }
}

fn reader(user: &str, keys: &HashMap<String, String>) -> String {
    let stem = stem_of(user);
    let (_, reasoning) = user.split_once("\n\nReasoning:\n").unwrap();
    assert!(!reasoning.contains("\nAnswer:"), "the blind reader must not see the answer's line: {reasoning}");
    match blind_kind(stem) {
        0 => "I would rather not say.".to_owned(),
        1 => format!("Answer: {}", other(&keys[stem])),
        _ => format!("Answer: {}", keys[stem]),
    }
}

fn questions() -> Vec<Value> {
    lines(&Path::new(&starter()).join("mcqa/starter_mcqa_train.jsonl"))
}

fn stem(row: &Value) -> &str {
    row["question"].as_str().unwrap()
}

fn keys() -> HashMap<String, String> {
    let letter = |row: &Value| char::from(b'A' + row["cop"].as_u64().unwrap() as u8).to_string();
    questions().iter().map(|row| (stem(row).to_owned(), letter(row))).collect()
}

/// A server of the rule; after `slow_after` requests each takes half a second, so that a run can be killed in time.
fn server(slow_after: usize) -> Server {
    let (seen, keys) = (Mutex::new(HashMap::<String, usize>::new()), keys());
    Server::start(move |at, asked| {
        if at >= slow_after {
            std::thread::sleep(Duration::from_millis(500));
        }
        let user = last_user(asked);
        if user.ends_with(BLIND) {
            return text(&reader(&user, &keys));
        }
        // The worked examples show the form that is asked for.
        assert_eq!(asked.body["messages"].as_array().unwrap().len(), 8);
        // A request that a killed run never read is asked again: the same attempt, told by its seed.
        let attempt = match asked.body["seed"].as_u64() {
            Some(_) => {
                let mut seen = seen.lock().unwrap();
                let key = format!("{user}{}", asked.body["seed"]);
                match seen.get(&key) {
                    Some(&attempt) => attempt,
                    None => {
                        let attempt = seen.keys().filter(|known| known.starts_with(&user)).count();
                        seen.insert(key, attempt);
                        attempt
                    }
                }
            }
            None => panic!("every request has a seed"),
        };
        text(&solution(&user, attempt))
    })
}

fn synthesis(server: &Server, out: &Path, more: &[&str]) -> (String, String, i32) {
    let (model, out) = (server.model(), out.display().to_string());
    let starter = starter();
    let mut args = vec!["synthesis", &model, "--server-template", "--tasks", "starter_mcqa", "--data", &starter];
    args.extend(["--out", &out, "--set", "attempts=3"]);
    args.extend(more);
    run(&args)
}

#[test]
fn yield_attempts_and_the_blind_reader_are_those_of_the_servers_rule() {
    let dir = tempfile::tempdir().unwrap();
    let (server, out) = (server(usize::MAX), dir.path().join("cot"));
    let (stdout, stderr, code) = synthesis(&server, &out, &[]);
    assert_eq!(code, 0, "{stderr}");
    let questions = questions();
    let stems: Vec<&str> = questions.iter().map(stem).collect();
    let solved: Vec<&str> = stems.iter().copied().filter(|stem| right_at(stem).is_some()).collect();
    let count = |test: &dyn Fn(&str) -> bool| solved.iter().filter(|stem| test(stem)).count();
    let results = read(&out.join("results.json"));
    let found = &results["tasks"][0];
    assert_eq!(found["n_questions"], stems.len());
    assert_eq!(found["n_accepted"], solved.len());
    assert_eq!(found["n_with_explanation"], stems.len());
    for at in 0..3 {
        assert_eq!(found["accepted_at_attempt"][at], count(&|stem| right_at(stem) == Some(at)), "attempt {at}");
    }
    let later = |at: usize| stems.iter().filter(|stem| right_at(stem).is_none_or(|right| right > at)).count();
    assert_eq!(found["attempts"]["wrong"], later(0));
    assert_eq!(found["attempts"]["restated"], later(1));
    assert_eq!(found["attempts"]["unread"], later(2));
    assert_eq!(found["blind"]["n"], solved.len());
    for (name, kind) in [("n_unread", 0), ("n_other", 1), ("n_key", 2)] {
        assert_eq!(found["blind"][name], count(&|stem| blind_kind(stem) == kind), "{name}");
    }
    assert_eq!(found["n_betraying"], count(&betrays));
    assert!(count(&betrays) > 0 && later(2) > 0, "the rule makes every case");
    let n_attempts = solved.len() + later(0) + later(1) + later(2);
    assert_eq!(found["cost"]["n_requests"], n_attempts);
    assert_eq!(server.n_asked(), n_attempts + solved.len(), "nothing is asked twice");
    let words = format!("starter_mcqa: {} of {}", solved.len(), stems.len());
    assert!(stdout.contains(&words) && stderr.contains("does not tell the tokens"), "{stdout}{stderr}");
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("blind reader"));

    let rows = lines(&out.join("train.jsonl"));
    assert_eq!(rows.len(), solved.len());
    for (row, stem) in rows.iter().zip(&solved) {
        let response = row["response"].as_str().unwrap();
        assert!(row["question"].as_str().unwrap().starts_with(&format!("Question: {stem}\nA. ")));
        assert!(response.ends_with(&format!("it is.\nAnswer: {}", keys()[*stem])), "{response}");
        assert_eq!(row["made"], "gold-conditioned");
        assert_eq!(row["support"], "reference explanation");
        assert_eq!(row["attempts"], right_at(stem).unwrap() + 1);
        assert_eq!(row["betrays"].is_string(), betrays(stem));
        assert_eq!(row["blind_reader"], ["unread", "other", "key"][blind_kind(stem)]);
    }
}

#[test]
fn a_data_stage_reads_the_rows_and_medprompt_the_same_solutions_as_its_examples() {
    let dir = tempfile::tempdir().unwrap();
    let (server, out) = (server(usize::MAX), dir.path().join("cot"));
    assert_eq!(synthesis(&server, &out, &["--set", "blind=false"]).2, 0);
    let n_rows = lines(&out.join("train.jsonl")).len();
    let config = dir.path().join("data.toml");
    let source = format!("{{ name = \"cot\", path = \"{}\", licence = \"mit\" }}", out.join("train.jsonl").display());
    std::fs::write(&config, format!("sources = [{source}]\ndedup = {{ exact = false, minhash = false }}\n")).unwrap();
    let data = dir.path().join("data");
    let args = ["data", "run", "--config", config.to_str().unwrap(), "--out", data.to_str().unwrap()];
    let (_, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let train = lines(&data.join("train.jsonl"));
    // Those that betray the given answer do not train.
    let n_betraying = lines(&out.join("train.jsonl")).iter().filter(|row| row["betrays"].is_string()).count();
    assert!(n_betraying > 0);
    assert_eq!(train.len(), n_rows - n_betraying);
    assert!(train.iter().all(|row| row["messages"][1]["content"].as_str().unwrap().contains("\nAnswer: ")));

    // Every question to this model gets one and the same answer; what counts is what stands before it.
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    let answerer = Server::start(move |_, asked: &Asked| -> Reply {
        kept.lock().unwrap().push(asked.body["messages"].clone());
        text("It is so.\nAnswer: [A]")
    });
    let examples = format!("examples={}", out.join("examples.json").display());
    let (starter, eval) = (starter(), dir.path().join("eval"));
    let model = answerer.model();
    let mut args = vec!["eval", &model, "--server-template", "--tasks", "starter_mcqa", "--data", &starter];
    args.extend(["--strategy", "medprompt", "--limit", "3", "--out", eval.to_str().unwrap(), "--set", &examples]);
    args.extend(["--set", "n_samples=1"]);
    let (_, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let notes = read(&eval.join("results.json"))["tasks"][0]["notes"].clone();
    assert_eq!(
        (&notes["pool_solved"], &notes["pool_answers_made"]["gold-conditioned"]),
        (&n_rows.into(), &n_rows.into())
    );
    let asked = asked.lock().unwrap();
    let examples = asked[0].as_array().unwrap().iter().filter(|message| message["role"] == "assistant");
    let texts: Vec<&str> = examples.map(|message| message["content"].as_str().unwrap()).collect();
    assert!(
        texts.len() == 5 && texts.iter().all(|text| text.contains("What decides here") && text.contains("\nAnswer: ["))
    );
}

/// Killed without warning, when a third of the requests were answered.
#[test]
fn a_killed_synthesis_goes_on_and_gives_the_same_bytes_as_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let fast = server(usize::MAX);
    assert_eq!(synthesis(&fast, &whole, &[]).2, 0);
    let slow = server(fast.n_asked() / 3);
    let out = dir.path().join("cot");
    let (model, starter) = (slow.model(), starter());
    let mut child = aloe()
        .args(["synthesis", &model, "--server-template", "--tasks", "starter_mcqa", "--data", &starter])
        .args(["--out", out.to_str().unwrap(), "--set", "attempts=3"])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while slow.n_asked() < fast.n_asked() / 3 + 8 {
        std::thread::yield_now();
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let n_before = slow.n_asked();
    assert!(!out.exists());
    let other = synthesis(&slow, &out, &["--mode", "self"]);
    assert!(other.2 == 2 && other.1.contains("holds an unfinished run"), "{other:?}");
    let (_, stderr, code) = synthesis(&slow, &out, &[]);
    assert_eq!(code, 0, "{stderr}");
    let n_again = slow.n_asked() - n_before;
    assert!(n_before + n_again <= fast.n_asked() + 16 && n_again < fast.n_asked(), "{n_before} and {n_again}");
    for name in ["train.jsonl", "attempts.jsonl", "examples.json", "results.json", "report.html"] {
        let bytes = |folder: &Path| std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(bytes(&whole), bytes(&out), "{name}");
    }
}

/// Answers by the item's place in the file: two turns at once, none at all, two turns at the second attempt.
#[test]
fn genstruct_reads_two_turns_out_of_its_exact_prompt_and_roleplay_marks_variants_for_review() {
    let Some(folder) = models() else { return };
    let dir = tempfile::tempdir().unwrap();
    let passages = dir.path().join("passages.jsonl");
    let rows = ["Gout", "Rickets", "Scurvy"]
        .map(|title| format!("{{\"title\": \"{title}\", \"content\": \"About {title}.\"}}\n"));
    std::fs::write(&passages, rows.concat()).unwrap();
    let tokenizer = format!("{folder}/smollm2-135m-instruct-q4_1/model.gguf");
    let text_of = aloe_engine::Engine::open(&tokenizer, &aloe_engine::EngineOptions::default()).unwrap();
    let seen = Mutex::new(HashMap::<Vec<u32>, usize>::new());
    let prompts = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&prompts);
    let server = Server::start(move |_, asked: &Asked| {
        let ids = super::server::prompt_ids(asked);
        let prompt = text_of.text().unwrap().tokenizer.decode(&ids, false).unwrap();
        kept.lock().unwrap().push((prompt.clone(), asked.body["stop"].clone()));
        let mut seen = seen.lock().unwrap();
        let attempt = seen.entry(ids).or_default();
        *attempt += 1;
        text(match (prompt.contains("] Gout"), prompt.contains("] Scurvy"), *attempt) {
            (true, ..) | (_, true, 2) => "What is it?\n[[[Assistant]]] An illness.",
            _ => "What is it?",
        })
    });
    let out = dir.path().join("genstruct");
    let passages = format!("passages={}", passages.display());
    let model = server.model();
    let mut args = vec!["synthesis", &model, "--tokenizer", &tokenizer, "--out", out.to_str().unwrap()];
    args.extend(["--set", "make=genstruct", "--set", &passages, "--set", "attempts=2"]);
    let (stdout, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let rows = lines(&out.join("train.jsonl"));
    let told: Vec<(&Value, &Value)> = rows.iter().map(|row| (&row["title"], &row["attempts"])).collect();
    assert_eq!(told, [(&json!("Gout"), &json!(1)), (&json!("Scurvy"), &json!(2))]);
    assert_eq!((&rows[0]["question"], &rows[0]["response"]), (&json!("What is it?"), &json!("An illness.")));
    let results = read(&out.join("results.json"));
    assert_eq!((&results["attempts"]["accepted"], &results["attempts"]["no_turns"]), (&json!(2), &json!(3)));
    let prompts = prompts.lock().unwrap();
    let (prompt, stop) = &prompts[0];
    let written = "\n\nThe following is an interaction between a user and an AI assistant that is related to the above text.\n\n[[[User]]] ";
    assert!(prompt.starts_with("[[[Title]]] ") && prompt.ends_with(written), "{prompt:?}");
    assert!(prompts.iter().any(|(prompt, _)| prompt.contains("[[[Title]]] Gout\n[[[Content]]] About Gout.\n\n")));
    assert_eq!(stop, &json!(["[[[User]]]"]));

    let questions = Path::new(&starter()).join("redteam/questions.jsonl");
    let base = lines(&questions);
    let writer = Server::start(|_, asked: &Asked| {
        let user = last_user(asked);
        let question = user.split('"').nth(1).unwrap();
        text(&format!("You keep the harbour of an old city. A traveller comes in and asks you: {question}"))
    });
    let out = dir.path().join("roleplay");
    let questions = format!("questions={}", questions.display());
    let model = writer.model();
    let mut args = vec!["synthesis", &model, "--server-template", "--out", out.to_str().unwrap()];
    args.extend(["--set", "make=roleplay", "--set", &questions, "--set", "limit=7"]);
    let (stdout, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let variants = lines(&out.join("questions.jsonl"));
    assert!(variants.len() >= 5 && stderr.contains("reviewed by hand"), "{stdout}{stderr}");
    for variant in &variants {
        let of = base.iter().find(|row| row["id"] == variant["base_id"]).unwrap();
        assert_eq!(variant["split"], of["split"], "a variant stays with its question");
        assert!(variant["question"].as_str().unwrap().starts_with("You keep the harbour"));
        assert_eq!(variant["review"], "to be reviewed by hand");
    }
    for (more, words) in [
        (vec!["--set", "make=genstruct"], "passages = FILE is missing"),
        (vec!["--set", "make=roleplay", "--tasks", "medqa_4options", "--data", "."], "tasks is for make = \"cot\""),
        (vec!["--tasks", "starter_mcqa", "--data", ".", "--set", "temperature=0"], "the first one again"),
        (vec![], "tasks"),
    ] {
        let none = dir.path().join("none");
        let mut args = vec!["synthesis", &model, "--server-template", "--out", none.to_str().unwrap()];
        args.extend(more);
        let (_, stderr, code) = run(&args);
        assert!(code == 2 && stderr.contains(words), "{args:?}: {stderr}");
    }
}

fn models() -> Option<String> {
    match std::env::var("ALOE_MODELS") {
        Ok(models) => Some(models),
        Err(_) => {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
            eprintln!("not run: ALOE_MODELS is not set");
            None
        }
    }
}

/// The shipped recipe against the server of the rule: what the synthesis stage wrote is what the data stage read, row by row.
#[test]
fn the_shipped_recipe_of_synthetic_rows_runs_and_the_mixture_accounts_for_every_one() {
    let dir = tempfile::tempdir().unwrap();
    let (server, root) = (server(usize::MAX), crate::root().canonicalize().unwrap());
    let shipped = std::fs::read_to_string(root.join("recipes/synthetic-cot.toml")).unwrap();
    let recipe = dir.path().join("recipe.toml");
    let text = shipped
        .replace("$ALOE_WRITER", &server.model())
        .replace("# server_template", "server_template")
        .replace("root = \"..\"", &format!("root = {root:?}"));
    std::fs::write(&recipe, text).unwrap();
    let out = dir.path().join("out");
    let [recipe, folder] = [&recipe, &out].map(|path| path.to_str().unwrap());
    let (_, stderr, code) = run(&["run", recipe, "--out", folder]);
    assert_eq!(code, 0, "{stderr}");
    let n_solved = questions().iter().filter(|row| right_at(stem(row)).is_some()).count();
    assert_eq!(lines(&out.join("cot/train.jsonl")).len(), n_solved);
    let manifest = read(&out.join("mixture/manifest.json"));
    let own = &manifest["sources"][0];
    assert_eq!((&own["name"], &own["n_read"]), (&json!("own-cot"), &json!(n_solved)));
    let n_train = own["n_train"].as_u64().unwrap();
    assert!(n_train > 0 && own["synthetic"]["gold-conditioned"] == n_train, "{own}");
    let dropped: u64 = own["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(n_train + own["n_held_out"].as_u64().unwrap() + dropped, n_solved as u64);
}
