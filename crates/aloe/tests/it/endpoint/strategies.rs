//! Strategies, prompts and scores of an evaluation as a user drives them, against a server that answers by rule.

use super::server::{Asked, Reply, Server, text};
use super::{eval, lines, read, starter};
use crate::{root, run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Question texts of the starter set with the text of their right option.
fn keys() -> Vec<(String, String)> {
    let read = |name: &str| std::fs::read_to_string(root().join("starter/mcqa").join(name)).unwrap();
    let all = read("starter_mcqa_test.jsonl") + &read("starter_mcqa_train.jsonl");
    all.lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            let option = ["opa", "opb", "opc", "opd"][row["cop"].as_u64().unwrap() as usize];
            (row["question"].as_str().unwrap().to_owned(), row[option].as_str().unwrap().to_owned())
        })
        .collect()
}

fn shown(asked: &Asked) -> String {
    asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
}

/// The letter under which the right option of the last question is shown.
fn right_letter(keys: &[(String, String)], asked: &Asked) -> char {
    let shown = shown(asked);
    let (_, option) =
        keys.iter().filter(|(question, _)| shown.contains(question.as_str())).max_by_key(|k| k.0.len()).unwrap();
    let line = shown.lines().rev().find(|line| line.get(3..).is_some_and(|text| text.trim() == option.trim())).unwrap();
    line.chars().next().unwrap()
}

pub(super) fn several(asked: &Asked, one: impl Fn(usize) -> String) -> Reply {
    let n = asked.body["n"].as_u64().unwrap_or(1) as usize;
    super::server::texts(&(0..n).map(one).collect::<Vec<_>>())
}

/// A server that knows every answer.
fn knowing() -> Server {
    let keys = keys();
    Server::start(move |_, asked| {
        let letter = right_letter(&keys, asked);
        several(asked, |_| format!("It is so.\nAnswer: [{letter}]"))
    })
}

pub(super) fn ask(server: &Server, out: &Path, more: &[&str]) -> Value {
    let args = [&["--tasks", "starter_mcqa", "--server-template"], more].concat();
    let args: Vec<&str> = args.into_iter().collect();
    let (_, stderr, code) = eval_plain(&server.model(), out, &args);
    assert_eq!(code, 0, "{stderr}");
    read(&out.join("results.json"))
}

/// As `eval`, without a dtype, which a server decides.
pub(super) fn eval_plain(model: &str, out: &Path, more: &[&str]) -> (String, String, i32) {
    let (starter, out) = (starter(), out.display().to_string());
    let args = [&["eval", model, "--data", &starter, "--out", &out], more].concat();
    run(&args)
}

#[test]
fn a_model_by_rule_gets_exactly_the_score_it_must_under_every_strategy() {
    let dir = tempfile::tempdir().unwrap();
    let n = 24;
    let rows = std::fs::read_to_string(root().join("starter/mcqa/starter_mcqa_test.jsonl")).unwrap();
    let n_first = rows.lines().take(n).filter(|line| line.contains("\"cop\": 0") || line.contains("\"cop\":0")).count();
    assert!(n_first > 0 && n_first < n);
    let (always_a, right) = (Server::start(|_, asked| several(asked, |_| "Answer: A".into())), knowing());
    let limit = n.to_string();
    let common = ["--limit", limit.as_str()];
    for (name, strategy) in [
        ("cot", vec!["--strategy", "cot", "--shots", "0"]),
        ("sc", vec!["--strategy", "sc-cot", "--set", "n_samples=3"]),
        ("med", vec!["--strategy", "medprompt", "--set", "pool_limit=8", "--set", "pool_attempts=1", "--shots", "2"]),
    ] {
        let args = [&common[..], &strategy].concat();
        let found = ask(&right, &dir.path().join(format!("right-{name}")), &args);
        assert_eq!(found["tasks"][0]["acc"]["value"], 1.0, "{name}");
        if name != "med" {
            let found = ask(&always_a, &dir.path().join(format!("a-{name}")), &args);
            assert_eq!(found["tasks"][0]["acc"]["value"], json!(n_first as f64 / n as f64), "{name}");
            assert_eq!(found["tasks"][0]["n_unparsed"], 0, "{name}: an A alone is an answer");
        }
    }
    let told: Value = read(&dir.path().join("right-sc/results.json"));
    let calibration = &told["tasks"][0]["calibration"];
    assert_eq!((&calibration["ece"], &calibration["brier"]), (&json!(0.0), &json!(0.0)), "sure and right");
}

/// The first run writes the examples it made; the second takes them from the file and asks the server for none.
#[test]
fn medprompts_examples_are_written_and_serve_another_run_and_the_ablations() {
    let dir = tempfile::tempdir().unwrap();
    let server = knowing();
    let common = ["--strategy", "medprompt", "--limit", "3", "--shots", "2"];
    let pool = ["--set", "pool_limit=6", "--set", "pool_attempts=2"];
    let first = ask(&server, &dir.path().join("first"), &[&common[..], &pool].concat());
    let made = read(&dir.path().join("first/examples.json"));
    assert_eq!(made.as_object().unwrap().len(), 6);
    let entry = made.as_object().unwrap().values().next().unwrap();
    assert_eq!((&entry["generations"][0]["made"], &entry["attempts"]), (&json!("self-generated"), &json!(2)));
    assert_eq!(entry["generations"][0]["result"], entry["correct_answer"]);
    assert_eq!(first["tasks"][0]["notes"]["pool_answers_made"], json!({"self-generated": 12}));
    let from_file = format!("examples=\"{}\"", dir.path().join("first/examples.json").display());
    let n_before = server.n_asked();
    let second = ask(&server, &dir.path().join("second"), &[&common[..], &["--set", &from_file]].concat());
    assert_eq!(server.n_asked() - n_before, 3 * 5 * 2, "three questions of five samples, twice for the noise floor");
    let notes = &second["tasks"][0]["notes"];
    assert!(notes["pool"].as_str().unwrap().starts_with("a file with sha256"), "{notes}");
    assert!(!dir.path().join("second/examples.json").exists());
    let shots = |name: &str| -> Vec<String> {
        lines(&dir.path().join(name).join("samples.jsonl")).iter().map(|s| s["votes"][0]["shots"].to_string()).collect()
    };
    assert_eq!(shots("first"), shots("second"));
    for mode in ["random", "static"] {
        let setting = format!("neighbours=\"{mode}\"");
        let found =
            ask(&server, &dir.path().join(mode), &[&common[..], &["--set", &from_file, "--set", &setting]].concat());
        assert!(found["tasks"][0]["notes"]["neighbour_search"].as_str().unwrap().starts_with("none"), "{mode}");
    }
    let fixed = shots("static");
    assert!(fixed.iter().all(|one| *one == fixed[0]), "{fixed:?}");
    let drawn = shots("random");
    assert!(drawn.iter().any(|one| *one != drawn[0]), "{drawn:?}");
    let (_, stderr, code) =
        run(&["compare", dir.path().join("first").to_str().unwrap(), dir.path().join("random").to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
}

/// The server answers from the third asking on.
#[test]
fn the_retry_rule_asks_again_hotter_and_longer_and_only_when_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let rule = |_: usize, asked: &Asked| {
        let is_late = asked.body["max_tokens"].as_u64().unwrap() >= 700;
        several(asked, |_| if is_late { "Answer: [B]".into() } else { "No idea.".into() })
    };
    let common = ["--strategy", "cot", "--protocol", "prompt-engine", "--limit", "2"];
    let server = Server::start(rule);
    let plain = ask(&server, &dir.path().join("plain"), &common);
    assert_eq!((plain["tasks"][0]["n_unparsed"].clone(), server.n_asked()), (json!(2), 4));
    let server = Server::start(rule);
    let retried =
        ask(&server, &dir.path().join("retried"), &[&common[..], &["--set", "retry=\"prompt-engine\""]].concat());
    assert_eq!(retried["tasks"][0]["n_unparsed"], 0);
    assert_eq!(retried["settings"]["retry"], "prompt-engine");
    let vote = &lines(&dir.path().join("retried/samples.jsonl"))[0]["votes"][0];
    assert_eq!(vote["n_retries"], 2);
    let mut seen: BTreeMap<u64, f64> = BTreeMap::new();
    for one in server.asked() {
        seen.insert(one.body["max_tokens"].as_u64().unwrap(), one.body["temperature"].as_f64().unwrap());
    }
    let seen: Vec<(u64, f64)> = seen.into_iter().map(|(n, t)| (n, (t * 100.0).round() / 100.0)).collect();
    assert_eq!(seen, [(500, 0.0), (600, 0.05), (700, 0.1)]);
}

#[test]
fn system_prompt_stop_texts_and_plain_prompts_reach_the_server() {
    let Some(stories) = crate::stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "Answer: [A]".into()));
    let set = [
        "--strategy",
        "cot",
        "--shots",
        "1",
        "--limit",
        "1",
        "--set",
        "system=\"Be kind.\"",
        "--set",
        "stop=[\"###\"]",
    ];
    ask(&server, &dir.path().join("chat"), &set);
    let asked = &server.asked()[0].body;
    assert_eq!((&asked["messages"][0]["content"], &asked["stop"]), (&json!("Be kind."), &json!(["###"])), "{asked}");
    let plain = ["--set", "chat_template=false", "--tokenizer", stories.to_str().unwrap(), "--tasks", "starter_mcqa"];
    let n_before = server.n_asked();
    let (_, stderr, code) = eval_plain(&server.model(), &dir.path().join("plain"), &[&set[..], &plain].concat());
    assert_eq!(code, 0, "{stderr}");
    let asked = &server.asked()[n_before];
    assert_eq!(asked.path, "/completions");
    assert_eq!(read(&dir.path().join("plain/results.json"))["settings"]["chat_template"], false);
}

#[test]
fn settings_that_only_medprompt_reads_are_refused_under_another_strategy_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "Answer: [A]".into()));
    let common = ["--tasks", "starter_mcqa", "--server-template", "--strategy", "cot", "--limit", "1"];
    for setting in ["neighbours=\"random\"", "include_same=true", "rerank_factor=2", "pool_limit=5", "pool_attempts=1"]
    {
        let args = [&common[..], &["--set", setting]].concat();
        let (_, stderr, code) = eval_plain(&server.model(), &dir.path().join("out"), &args);
        let key = setting.split('=').next().unwrap();
        assert!(code == 2 && stderr.contains(&format!("{key} is for medprompt, and the strategy is cot")), "{stderr}");
    }
    assert_eq!(server.n_asked(), 0);
}

/// The option named within the block is not the answer; a block that never ends has none.
#[test]
fn reasoning_blocks_are_cut_before_answers_are_read_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let server = Server::start(|_, asked| several(asked, |_| "<think>Answer: [B]</think>\nAnswer: [A]".into()));
    let args = ["--tasks", "starter_mcqa", "--server-template", "--strategy", "cot", "--shots", "0", "--limit", "3"];
    let (stdout, stderr, code) = eval_plain(&server.model(), &out, &args);
    assert_eq!(code, 0, "{stderr}");
    let task = &read(&out.join("results.json"))["tasks"][0];
    assert_eq!((&task["n_reasoning_removed"], &task["n_unparsed"]), (&json!(3), &json!(0)), "{task}");
    assert!(lines(&out.join("samples.jsonl")).iter().all(|sample| sample["predicted"] == 0));
    assert!(stdout.contains("3 answers with reasoning cut out"), "{stdout}");
}

/// As vLLM and SGLang answer with a reasoning parser: the known prompts' few tokens are all thought, and so are one question's five hundred.
fn parsed(asked: &Asked, thinks_on: &str, says: &str) -> Reply {
    let is_canary = asked.body["seed"] == super::server::CANARY;
    let last = asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
    let is_cut = is_canary || last.contains(thinks_on);
    let (content, ended) = if is_cut { (Value::Null, "length") } else { (json!(says), "stop") };
    let message = json!({"role": "assistant", "content": content, "reasoning_content": "Hmm, the", "tool_calls": []});
    Reply::Json(json!({"choices": [{"index": 0, "message": message, "finish_reason": ended}]}))
}

#[test]
fn an_answer_that_ended_in_its_reasoning_is_unparsed_and_reasoning_that_the_server_kept_apart_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let first = lines(&crate::root().join("starter/mcqa/starter_mcqa_test.jsonl"))[0]["question"].clone();
    let server = Server::with_canary(move |_, asked| parsed(asked, first.as_str().unwrap(), "Answer: [A]"));
    let out = dir.path().join("mcqa");
    let args = ["--tasks", "starter_mcqa", "--server-template", "--strategy", "cot", "--shots", "0", "--limit", "3"];
    let (stdout, stderr, code) = eval_plain(&server.model(), &out, &args);
    assert_eq!(code, 0, "{stderr}");
    let task = &read(&out.join("results.json"))["tasks"][0];
    assert_eq!((&task["n_reasoning_removed"], &task["n_unparsed"]), (&json!(3), &json!(1)), "{task}");
    assert!(stdout.contains("3 answers with reasoning cut out"), "{stdout}");
    let predicted: Vec<Value> =
        lines(&out.join("samples.jsonl")).iter().map(|sample| sample["predicted"].clone()).collect();
    assert_eq!(predicted, [Value::Null, json!(0), json!(0)]);
    // Read again by the same rule, it is the same.
    let again = dir.path().join("again");
    let (_, stderr, code) = crate::run(&["rescore", out.to_str().unwrap(), "--out", again.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let task = &read(&again.join("results.json"))["tasks"][0];
    assert_eq!((&task["n_reasoning_removed"], &task["n_unparsed"]), (&json!(3), &json!(1)), "{task}");

    let first = lines(&crate::root().join("starter/open/starter_open_test.jsonl"))[0]["question"].clone();
    let server = Server::with_canary(move |_, asked| parsed(asked, first.as_str().unwrap(), "It is so."));
    let out = dir.path().join("open");
    let (_, stderr, code) =
        eval_plain(&server.model(), &out, &["--tasks", "starter_open", "--server-template", "--limit", "2"]);
    assert_eq!(code, 0, "{stderr}");
    let samples = lines(&out.join("samples.jsonl"));
    assert!(samples.iter().all(|sample| sample["reasoning_removed"] == true), "{samples:?}");
    assert_eq!((&samples[0]["answer"], &samples[1]["answer"]), (&json!(""), &json!("It is so.")));
}

/// The run's folder holds what its record lists and nothing else; by the index and without it the page is the same.
#[test]
fn a_run_of_some_megabytes_leaves_the_index_beside_its_folder_by_which_view_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let server = Server::start(|_, asked| several(asked, |_| format!("{}\nAnswer: [A]", "so ".repeat(30_000))));
    let args = ["--tasks", "starter_mcqa", "--server-template", "--strategy", "cot", "--shots", "0"];
    let (_, stderr, code) = eval_plain(&server.model(), &out, &args);
    assert_eq!(code, 0, "{stderr}");
    let names = |folder: &Path| {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&out), ["questions.jsonl", "record.json", "results.json", "samples.jsonl"]);
    assert_eq!(names(dir.path()), [".out.index", "out"]);
    let page = || {
        let (_, stderr, code) = run(&["view", out.to_str().unwrap()]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{stderr}");
        std::fs::read(dir.path().join("out.html")).unwrap()
    };
    let (index, by_index) = (dir.path().join(".out.index"), page());
    let written = index.metadata().unwrap().modified().unwrap();
    assert!(page() == by_index && index.metadata().unwrap().modified().unwrap() == written, "nothing to write");
    std::fs::remove_file(&index).unwrap();
    assert!(page() == by_index && index.exists());
}

/// A set of the user's own, as CSV with a TOML beside it; and what is wrong with it is told before anything is asked.
#[test]
fn a_set_of_the_users_own_is_asked_and_its_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let toml = dir.path().join("exam.toml");
    std::fs::write(
        &toml,
        "name = \"exam\"\nversion = \"3\"\ntest = \"exam.csv\"\n[columns]\nid = \"nr\"\nquestion = \"q\"\noptions = [\"a\", \"b\", \"c\"]\n\
         answer = \"k\"\nanswer_is = \"letter\"\nsubject = \"s\"\n",
    )
    .unwrap();
    std::fs::write(dir.path().join("exam.csv"), "nr,q,a,b,c,k,s\n1,Which?,x,y,z,B,one\n2,What?,x,y,z,A,two\n").unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "Answer: [B]".into()));
    let out = dir.path().join("out");
    let asking = |out: &Path| {
        let (model, out) = (server.model(), out.display().to_string());
        let args = [
            "eval",
            &model,
            "--server-template",
            "--tasks",
            toml.to_str().unwrap(),
            "--strategy",
            "cot",
            "--shots",
            "0",
        ];
        run(&[&args[..], &["--out", &out]].concat())
    };
    let (stdout, stderr, code) = asking(&out);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("exam") && stdout.contains("not comparable: a set of your own"), "{stdout}");
    let task = &read(&out.join("results.json"))["tasks"][0];
    assert_eq!((&task["version"], &task["acc"]["value"]), (&json!("3"), &json!(0.5)));
    assert_eq!(task["by_subject"].as_array().unwrap().len(), 2);
    std::fs::write(dir.path().join("exam.csv"), "nr,q,a,b,c,k,s\n1,Which?,x,y,z,B,one\n1,What?,x,y,z,A,two\n").unwrap();
    let n_before = server.n_asked();
    let (_, stderr, code) = asking(&dir.path().join("twice"));
    assert!(code == 2 && stderr.contains("exam.csv:3") && stderr.contains("exam.csv:2"), "{code} {stderr}");
    std::fs::write(dir.path().join("exam.csv"), "nr,q,a,b,k,s\n1,Which?,x,y,B,one\n").unwrap();
    let (_, stderr, code) = asking(&dir.path().join("short"));
    assert!(code == 2 && stderr.contains("exam.csv:2") && stderr.contains("`c`"), "{code} {stderr}");
    assert_eq!(server.n_asked(), n_before);
}

/// The server dies after ten answers; the run goes on over more questions, and what was answered is not asked again.
#[test]
fn an_interrupted_run_goes_on_over_more_questions_and_other_settings_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let is_up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let up = std::sync::Arc::clone(&is_up);
    let server = Server::start(move |at, _| match at < 10 || up.load(std::sync::atomic::Ordering::Relaxed) {
        true => text("Answer: [A]"),
        false => Reply::Status("401 Unauthorized", ""),
    });
    let asking = |more: &[&str]| {
        let common = ["--tasks", "starter_mcqa", "--server-template", "--strategy", "cot", "--shots", "0"];
        eval_plain(&server.model(), &out, &[&common[..], more].concat())
    };
    let (_, stderr, code) = asking(&["--limit", "20"]);
    assert_ne!(code, 0, "{stderr}");
    is_up.store(true, std::sync::atomic::Ordering::Relaxed);
    let n_before = server.n_asked();
    let (_, stderr, code) = asking(&["--limit", "20", "--set", "max_new_tokens=77"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.contains("max_new_tokens was null, is now 77") && stderr.contains("Nothing was changed"),
        "{stderr}"
    );
    assert_eq!(server.n_asked(), n_before);
    let (_, stderr, code) = asking(&["--limit", "24"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(lines(&out.join("samples.jsonl")).len(), 24);
    let n_floor = read(&out.join("results.json"))["tasks"][0]["noise_floor"]["n_requests"].as_u64().unwrap() as usize;
    assert_eq!(server.n_asked() - n_before, 14 + n_floor, "ten were answered before");
}

/// Rows in the form of a data stage that hold the second and fourth question.
#[test]
fn questions_that_the_training_rows_hold_are_scored_apart() {
    let dir = tempfile::tempdir().unwrap();
    let test = std::fs::read_to_string(root().join("starter/mcqa/starter_mcqa_test.jsonl")).unwrap();
    let row = |at: usize| {
        let row: Value = serde_json::from_str(test.lines().nth(at).unwrap()).unwrap();
        let options: Vec<String> = ["opa", "opb", "opc", "opd"]
            .iter()
            .zip("ABCD".chars())
            .map(|(o, l)| format!("{l}. {}", row[*o].as_str().unwrap()))
            .collect();
        let asked = format!("{}\n{}", row["question"].as_str().unwrap(), options.join("\n"));
        json!({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "A"}]}).to_string()
    };
    let rows = dir.path().join("seen.jsonl");
    std::fs::write(&rows, format!("{}\n{}\n", row(1), row(3))).unwrap();
    let server = knowing();
    let setting = format!("trained_on=[\"{}\"]", rows.display());
    let found = ask(&server, &dir.path().join("out"), &["--strategy", "cot", "--limit", "6", "--set", &setting]);
    let parts = found["tasks"][0]["by_training"].as_array().unwrap();
    let told: Vec<(&str, u64)> = parts
        .iter()
        .map(|part| (part["part"].as_str().unwrap().split(':').next().unwrap(), part["n"].as_u64().unwrap()))
        .collect();
    assert_eq!(told, [("clean", 4), ("dirty", 2)], "{parts:?}");
    let samples = lines(&dir.path().join("out/samples.jsonl"));
    assert!(samples[1]["trained"].as_str().unwrap().contains("seen.jsonl:1 ("), "{}", samples[1]["trained"]);
    assert!(samples[0]["trained"].is_null());
    let record = read(&dir.path().join("out/record.json"));
    let words = record["results"]["trained_on"].as_str().unwrap();
    assert!(words.contains("training rows of 1 data sets"), "{words}");
    let out = dir.path().join("out");
    let (csv, stderr, code) = run(&["export", out.to_str().unwrap(), "--format", "csv"]);
    let rows = ["(clean),1,test,4,", "(dirty),1,test,2,"].map(|row| csv.contains(&format!("\nstarter_mcqa {row}")));
    assert!(code == 0 && rows == [true; 2], "{csv} {stderr}");
    let (_, stderr, code) = run(&["view", out.to_str().unwrap()]);
    let html = std::fs::read_to_string(dir.path().join("out.html")).unwrap();
    assert!(code == 0 && html.contains("<td>starter_mcqa (dirty)</td><td class=\"n\">2</td>"), "{stderr}");
}

/// Three runs by rules of 60, 40 and 10 answers right of 60.
#[test]
fn several_runs_are_compared_with_one_and_verdicts_hold_for_all_tests_together() {
    let dir = tempfile::tempdir().unwrap();
    let keys = std::sync::Arc::new(keys());
    let mut runs = Vec::new();
    for (name, n_right) in [("all", 60), ("most", 56), ("few", 10)] {
        let keys = std::sync::Arc::clone(&keys);
        let server = Server::start(move |_, asked| {
            let right = right_letter(&keys, asked);
            // Which question it is, whatever the order in which they come.
            let at = keys.iter().position(|(question, _)| shown(asked).contains(question.as_str())).unwrap();
            let letter = if at < n_right { right } else { char::from(b'A' + (right as u8 - b'A' + 1) % 4) };
            several(asked, |_| format!("Answer: [{letter}]"))
        });
        let out = dir.path().join(name);
        ask(&server, &out, &["--strategy", "cot"]);
        runs.push(out.display().to_string());
    }
    let (stdout, stderr, code) = run(&["compare", &runs[0], &runs[1], &runs[2], "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    let row = |at: usize| found["runs"][at]["rows"][0].clone();
    // By hand: 4 against 0 is p = 2 / 16 = 0.125, Holm's of two tests the same (the larger); 50 against 0 is 2^-49, times two.
    assert_eq!((row(0)["n_only_first"].clone(), row(0)["p_value"].clone()), (json!(4), json!(0.125)));
    assert_eq!(
        (row(0)["p_holm"].clone(), row(0)["verdict"].clone()),
        (json!(0.125), json!("no_difference_can_be_concluded"))
    );
    assert!(row(1)["p_holm"].as_f64().unwrap() < 1e-13 && row(1)["verdict"] == "first_is_better", "{}", row(1));
    assert!(row(1)["smallest"].as_f64().unwrap() > 0.1);
    let (stdout, _, code) = run(&["compare", &runs[0], &runs[1], &runs[2]]);
    assert!(code == 0 && stdout.contains("p (Holm)") && stdout.contains("2 tests were made"), "{stdout}");
    let (_, stderr, code) = run(&["compare", &runs[0], dir.path().to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("results.json"), "{code} {stderr}");
}

/// Of a part of the set nothing is judged.
#[test]
fn a_finished_run_is_held_against_expected_accuracies_without_asking_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "Answer: [A]".into()));
    let (whole, part) = (dir.path().join("whole"), dir.path().join("part"));
    ask(&server, &whole, &["--strategy", "cot"]);
    ask(&server, &part, &["--strategy", "cot", "--limit", "8"]);
    let n_asked = server.n_asked();
    let held = |from: &Path, name: &str, expect: &str| {
        let (from, out) = (from.display().to_string(), dir.path().join(name).display().to_string());
        let (stdout, stderr, code) = run(&["rescore", &from, "--out", &out, "--expect", expect]);
        (code, stdout + &stderr)
    };
    let (code, text) = held(&whole, "pass", "starter_mcqa=0..100");
    assert!(code == 0 && text.contains(" pass: "), "{text}");
    assert_eq!(read(&dir.path().join("pass/results.json"))["expected"][0]["passed"], true);
    let (code, text) = held(&whole, "fail", "starter_mcqa=99.9..100");
    assert!(code == 1 && text.contains("what was expected did not come out\nstarter_mcqa"), "{text}");
    let (code, text) = held(&part, "of-part", "starter_mcqa=0..100");
    assert!(code == 1 && text.contains("not judged: 8 of 60"), "{text}");
    let (code, text) = held(&whole, "unknown", "medqa_4options=1..2");
    assert!(code == 2 && text.contains("no task or average of the run has that name"), "{text}");
    assert_eq!(held(&whole, "wrong", "starter_mcqa=60..50").0, 2);
    assert_eq!(server.n_asked(), n_asked, "no model is asked");
}

/// `Answer: [A] not [B]` is A by position and B by prompt_engine's rule, which takes the latest in the order of options.
#[test]
fn a_finished_run_is_scored_again_by_another_rule_and_written_as_prompt_engines_folder() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "So.\nAnswer: [A] not [B]".into()));
    let run_folder = dir.path().join("run");
    let first = ask(&server, &run_folder, &["--strategy", "sc-cot", "--set", "n_samples=2", "--limit", "8"]);
    let n_asked = server.n_asked();
    let again = |name: &str, more: &[&str]| {
        let (from, out) = (run_folder.display().to_string(), dir.path().join(name).display().to_string());
        let (stdout, stderr, code) = run(&[&["rescore", &from, "--out", &out, "--json"], more].concat());
        assert_eq!(code, 0, "{stderr}");
        let changed: Value = serde_json::from_str(&stdout).unwrap();
        (changed["n_answers_changed"].as_u64().unwrap(), read(&dir.path().join(name).join("results.json")))
    };
    let (n_changed, same) = again("same", &[]);
    let mut expected = first["tasks"].clone();
    expected[0].as_object_mut().unwrap().remove("noise_floor");
    assert_eq!((n_changed, &same["tasks"]), (0, &expected));
    let samples = |folder: &Path| std::fs::read(folder.join("samples.jsonl")).unwrap();
    assert_eq!(samples(&dir.path().join("same")), samples(&run_folder));
    let (n_changed, theirs) = again("theirs", &["--rule", "prompt-engine"]);
    assert_eq!((n_changed, theirs["settings"]["rescored"]["rule"].as_str()), (16, Some("prompt_engine")));
    assert!(lines(&dir.path().join("theirs/samples.jsonl")).iter().all(|sample| sample["predicted"] == 1));
    let first_question = &lines(&run_folder.join("questions.jsonl"))[0];
    let rows = dir.path().join("rows.jsonl");
    let stem = first_question["stem"].as_str().unwrap();
    let options: Vec<&str> = first_question["choices"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let user = format!("{stem}\n{}", options.join("\n"));
    let row = json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": "The first."}]});
    std::fs::write(&rows, format!("{row}\n")).unwrap();
    let (_, held) = again("held", &["--trained-on", rows.to_str().unwrap()]);
    let parts = held["tasks"][0]["by_training"].as_array().unwrap();
    let counts: Vec<(bool, &Value)> =
        parts.iter().map(|part| (part["part"].as_str().unwrap().starts_with("dirty"), &part["n"])).collect();
    assert_eq!(counts, [(false, &json!(7)), (true, &json!(1))]);
    assert!(held["settings"]["rescored"]["trained_on_sha256"][0].is_string());
    assert_eq!(server.n_asked(), n_asked, "no model is asked");
    let theirs = dir.path().join("theirs").display().to_string();
    let exported = |form: &str| {
        let (stdout, stderr, code) = run(&["export", &theirs, "--format", form]);
        assert_eq!(code, 0, "{stderr}");
        stdout
    };
    let words = "answers read again by the rule of prompt-engine";
    assert!(exported("csv").contains(&format!(",aloe ({words}),sc-cot,")) && exported("markdown").contains(words));
    let form: Value = serde_json::from_str(&exported("lm-eval")).unwrap();
    let asked_at = read(&run_folder.join("record.json"))["started_unix_s"].as_u64().unwrap();
    assert!(form["date"].as_u64().unwrap() >= asked_at, "{}", form["date"]);
    let (_, stderr, code) = run(&["view", &theirs]);
    assert!(code == 0 && stderr.is_empty(), "{code} {stderr}");
    let (_, stderr, code) =
        run(&["rescore", run_folder.to_str().unwrap(), "--out", dir.path().join("same").to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("exists already"), "{code} {stderr}");
    let tree = dir.path().join("outputs");
    let args = ["export", run_folder.to_str().unwrap(), "--format", "prompt-engine", "--out", tree.to_str().unwrap()];
    let (stdout, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let folder = tree.join("m/SC-COT/starter_mcqa/2/3k");
    assert!(stdout.contains(folder.to_str().unwrap()), "{stdout}");
    assert_eq!(read(&folder.join("generations.json")).as_object().unwrap().len(), 8);
    let evaluation = read(&folder.join("evaluation.json"));
    assert_eq!((&evaluation["count"], &evaluation["options"]), (&json!(8), &json!({"A": 16})));
    assert_eq!(evaluation["accuracy"], first["tasks"][0]["acc"]["value"]);
    let (stdout, stderr, code) = run(&["export", run_folder.to_str().unwrap(), "--format", "csv"]);
    assert!(code == 0 && stdout.contains("starter_mcqa,1,test,8,"), "{stdout} {stderr}");
    let (_, stderr, code) = run(&["export", run_folder.to_str().unwrap(), "--format", "eval-results"]);
    assert!(code == 2 && stderr.contains("starter_mcqa is left out"), "{code} {stderr}");
}

/// The classifier names a field by a word of the question.
#[test]
fn a_classifier_tells_specialties_and_accuracy_is_told_by_them() {
    let dir = tempfile::tempdir().unwrap();
    let answers = knowing();
    let fields = Server::start(|_, asked| {
        let field = if shown(asked).contains("nerve") { "Neurology" } else { "Surgery" };
        several(asked, |_| format!("It is about that. The category is: {field}"))
    });
    let setting = format!("specialties=\"{}\"", fields.model());
    let found = ask(&answers, &dir.path().join("out"), &["--strategy", "cot", "--limit", "60", "--set", &setting]);
    let parts = found["tasks"][0]["by_specialty"].as_array().unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part["part"].as_str().unwrap()).collect();
    assert_eq!(names, ["Surgery", "Neurology"], "the larger first");
    assert_eq!(parts.iter().map(|part| part["n"].as_u64().unwrap()).sum::<u64>(), 60);
    assert_eq!(fields.n_asked(), 60);
    let (_, stderr, code) = run(&["view", dir.path().join("out").to_str().unwrap()]);
    let html = std::fs::read_to_string(dir.path().join("out.html")).unwrap();
    let row = format!("<td>specialty</td><td>Neurology</td><td class=\"n\">{}</td>", parts[1]["n"]);
    assert!(code == 0 && html.contains(&row), "{stderr}");
}

#[test]
fn a_run_of_the_local_engine_takes_the_chat_template_for_scoring() {
    let Some(stories) = crate::stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = super::stories_with_template(&stories, &dir.path().join("model"));
    let more = ["--tasks", "starter_mcqa", "--protocol", "lm-eval", "--limit", "2", "--set", "chat_template=true"];
    let (_, stderr, code) = eval(folder.to_str().unwrap(), &dir.path().join("chat"), &more);
    assert_eq!(code, 0, "{stderr}");
    let samples = lines(&dir.path().join("chat/samples.jsonl"));
    // The template ends in a space, which lm-evaluation-harness moves to the option: `▁A` is one token and none of the prompt's.
    let ids = samples[0]["choices"][0]["ids"].as_array().unwrap();
    assert!(!ids.is_empty());
    let (_, stderr, code) = eval(stories.to_str().unwrap(), &dir.path().join("none"), &more);
    assert!(code == 2 && stderr.contains("template"), "{code} {stderr}");
}
