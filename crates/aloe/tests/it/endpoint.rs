//! Models behind an OpenAI-compatible server, driven through the binary: scores and answers equal the local engine's where
//! the server holds the same weights, and a server that cannot score, lies, is busy or dies is told from one that can.

mod by_model;
mod cached;
mod changed;
mod embedder;
mod finished;
mod handing;
mod interrupt;
mod judge;
mod killed;
mod lies;
mod next_letter;
mod noise;
mod open_answers;
mod pool;
mod preferences;
mod replicas;
mod reproduce;
mod scorers;
mod server;
mod strategies;
mod synthesis;
mod timeouts;
mod written;

use crate::{root, run, stories};
use serde_json::{Value, json};
use server::{Asked, Model, Reply, Server, prompt_ids, text};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn starter() -> String {
    root().join("starter").canonicalize().unwrap().display().to_string()
}

/// Runs `aloe eval MODEL` over the starter questions, f32, with further flags.
fn eval(model: &str, out: &Path, more: &[&str]) -> (String, String, i32) {
    let (starter, out) = (starter(), out.display().to_string());
    let mut args = vec!["eval", model, "--data", &starter, "--out", &out, "--dtype", "f32"];
    args.extend(more);
    run(&args)
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Stories260K with a chat template of plain text, since it has no turn tokens.
pub(crate) fn stories_with_template(stories: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(stories.join(name), to.join(name)).unwrap();
    }
    let mut config = read(&stories.join("tokenizer_config.json"));
    config["chat_template"] = json!(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant: {% endif %}"
    );
    std::fs::write(to.join("tokenizer_config.json"), config.to_string()).unwrap();
    to.to_path_buf()
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() < 1e-12,
        _ => a == b,
    }
}

#[test]
fn option_scores_of_an_endpoint_equal_the_local_engines() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let more = ["--tasks", "starter_mcqa", "--protocol", "lm-eval", "--limit", "3"];
    let (local_text, stderr, code) = eval(stories.to_str().unwrap(), &dir.path().join("local"), &more);
    assert_eq!(code, 0, "{stderr}");
    let model = Model::open(&stories);
    let server = Server::start(move |_, asked| model.echo(asked));
    let mut more = more.to_vec();
    more.extend(["--tokenizer", stories.to_str().unwrap()]);
    let (served_text, stderr, code) = eval(&server.model(), &dir.path().join("served"), &more);
    assert_eq!(code, 0, "{stderr}");
    let local = lines(&dir.path().join("local/samples.jsonl"));
    let served = lines(&dir.path().join("served/samples.jsonl"));
    assert_eq!(served.len(), 3);
    for (a, b) in local.iter().zip(&served) {
        assert_eq!(a["prompt_ids"], b["prompt_ids"]);
        assert_eq!((&a["predicted"], &a["correct_norm"]), (&b["predicted"], &b["correct_norm"]));
        for (x, y) in a["choices"].as_array().unwrap().iter().zip(b["choices"].as_array().unwrap()) {
            assert_eq!(x["ids"], y["ids"]);
            let pairs = x["logps"].as_array().unwrap().iter().zip(y["logps"].as_array().unwrap());
            assert!(pairs.clone().count() > 0 && pairs.clone().all(|(p, q)| same(p, q)), "{x} {y}");
            assert!(same(&x["logp"], &y["logp"]), "{x} {y}");
        }
    }
    let table = |text: &str| text.lines().take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(table(&local_text), table(&served_text));
    let results = std::fs::read_to_string(dir.path().join("served/results.json")).unwrap();
    assert!(!results.contains("127.0.0.1"), "results.json holds a host: {results}");
    assert!(std::fs::read_to_string(dir.path().join("served/record.json")).unwrap().contains("127.0.0.1"));
    for asked in server.asked() {
        assert_eq!((asked.path.as_str(), &asked.body["echo"]), ("/completions", &json!(true)));
    }
}

/// A server takes one form of the question only, as vLLM's versions and llama-server's forks differ.
#[test]
fn each_form_of_prompt_log_probabilities_gives_the_scores_of_the_local_engine() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let requests = dir.path().join("requests.jsonl");
    let rows = "{\"id\": \"a\", \"prompt\": \"Once upon a time\", \"continuations\": [\", there was\", \" zebra\"]}\n\
                {\"id\": \"b\", \"prompt\": \"The little girl was happy.\", \"continuations\": []}\n";
    std::fs::write(&requests, rows).unwrap();
    let score = |model: &str, name: &str| {
        let out = dir.path().join(name);
        let args = ["score", model, "--requests", requests.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let more = match model.starts_with("http") {
            true => ["--tokenizer", stories.to_str().unwrap()],
            false => ["--dtype", "f32"],
        };
        let (_, stderr, code) = run(&[&args[..], &more].concat());
        assert_eq!(code, 0, "{name}: {stderr}");
        lines(&out)
    };
    let local = score(stories.to_str().unwrap(), "local");
    type Form = fn(&Model, &Asked) -> Reply;
    let forms: [(&str, Form); 3] = [
        ("echo", |model, asked| match asked.body["max_tokens"].as_u64() {
            Some(0) => model.echo(asked),
            _ => Reply::Status("400 Bad Request", ""),
        }),
        ("echo and a token", |model, asked| match asked.body["max_tokens"].as_u64() {
            Some(1) if asked.body["echo"] == true => model.echo(asked),
            _ => Reply::Status("422 Unprocessable Entity", ""),
        }),
        ("by id", |model, asked| match asked.body.get("prompt_logprobs") {
            Some(_) => model.by_id(asked),
            None => text("an unknown field is passed over by many servers"),
        }),
    ];
    for (name, form) in forms {
        let model = Model::open(&stories);
        let server = Server::start(move |_, asked| form(&model, asked));
        let served = score(&server.model(), name);
        for (a, b) in local.iter().zip(&served) {
            assert_eq!((&a["id"], &a["prompt_ids"]), (&b["id"], &b["prompt_ids"]), "{name}");
            for (x, y) in a["continuations"].as_array().unwrap().iter().zip(b["continuations"].as_array().unwrap()) {
                assert_eq!((&x["ids"], &x["is_greedy"]), (&y["ids"], &y["is_greedy"]), "{name}");
                assert!(same(&x["sum"], &y["sum"]), "{name}: {x} {y}");
            }
        }
    }
}

#[test]
fn a_greedy_worked_answer_of_an_endpoint_equals_the_local_engines() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = stories_with_template(&stories, &dir.path().join("model"));
    let more =
        ["--tasks", "starter_mcqa", "--strategy", "cot", "--shots", "0", "--limit", "3", "--set", "max_new_tokens=8"];
    let (_, stderr, code) = eval(folder.to_str().unwrap(), &dir.path().join("local"), &more);
    assert_eq!(code, 0, "{stderr}");
    let model = Model::open(&folder);
    let server = Server::start(move |_, asked| model.complete(asked));
    let tokenizer = ["--tokenizer", folder.to_str().unwrap()];
    let (_, stderr, code) = eval(&server.model(), &dir.path().join("served"), &[&more[..], &tokenizer].concat());
    assert_eq!(code, 0, "{stderr}");
    let local = lines(&dir.path().join("local/samples.jsonl"));
    let served = lines(&dir.path().join("served/samples.jsonl"));
    for (a, b) in local.iter().zip(&served) {
        assert_eq!(a["prompt_ids"], b["prompt_ids"]);
        assert_eq!(a["votes"][0]["text"], b["votes"][0]["text"]);
        assert_eq!(a["prompt_sha256"], b["prompt_sha256"]);
    }
    assert!(served.iter().any(|sample| sample["votes"][0]["text"] != ""));
}

/// Self-consistency needs samples that differ; a seed that all share would make them alike.
#[test]
fn sampled_answers_of_an_endpoint_have_seeds_of_their_own_and_repeat() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = stories_with_template(&stories, &dir.path().join("model"));
    let model = Model::open(&folder);
    let server = Server::start(move |_, asked| model.complete(asked));
    let more = ["--tasks", "starter_mcqa", "--strategy", "sc-cot", "--shots", "0", "--limit", "2"];
    let settings = ["--set", "max_new_tokens=6", "--set", "n_samples=3", "--tokenizer", folder.to_str().unwrap()];
    let mut found = Vec::new();
    for name in ["one", "two"] {
        let out = dir.path().join(name);
        let (_, stderr, code) = eval(&server.model(), &out, &[&more[..], &settings, &["--seed", "4"]].concat());
        assert_eq!(code, 0, "{stderr}");
        found.push(std::fs::read(out.join("samples.jsonl")).unwrap());
    }
    assert_eq!(found[0], found[1]);
    let asked = server.asked();
    assert_eq!(asked.len(), 2 * 2 * 2, "the samples of a question come from one request, which is sent twice");
    let mut seeds: Vec<u64> = asked.iter().map(|one| one.body["seed"].as_u64().unwrap()).collect();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 2, "two runs of two questions, alike in both");
    for one in &asked {
        let temperature = one.body["temperature"].as_f64().unwrap();
        assert!(
            (temperature - 0.7).abs() < 1e-6 && one.body["n"] == 3 && one.body["stop_token_ids"] == json!([2]),
            "{}",
            one.body
        );
    }
    let votes = lines(&dir.path().join("one/samples.jsonl"))[0]["votes"].clone();
    assert_ne!(votes[0]["text"], votes[1]["text"]);
}

/// The pool of six holds the second test question word for word; the server renders the chat and always knows the right
/// answer. Six examples are asked for: that question has five neighbours and is given one fixed example, the others six.
#[test]
fn medprompt_leaves_the_test_question_itself_out_of_its_examples_and_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let mcqa = dir.path().join("data/mcqa");
    std::fs::create_dir_all(&mcqa).unwrap();
    let from = |name: &str| std::fs::read_to_string(root().join("starter/mcqa").join(name)).unwrap();
    let (test, train) = (from("starter_mcqa_test.jsonl"), from("starter_mcqa_train.jsonl"));
    std::fs::write(mcqa.join("starter_mcqa_test.jsonl"), &test).unwrap();
    let mut copy: Value = serde_json::from_str(test.lines().nth(1).unwrap()).unwrap();
    copy["id"] = json!("the-test-question-again");
    let pool: Vec<String> = [copy.to_string()].into_iter().chain(train.lines().take(5).map(str::to_owned)).collect();
    std::fs::write(mcqa.join("starter_mcqa_train.jsonl"), pool.join("\n")).unwrap();
    let rows: Vec<Value> =
        test.lines().chain(pool.iter().map(String::as_str)).map(|row| serde_json::from_str(row).unwrap()).collect();
    let right: Vec<(String, String)> = rows
        .iter()
        .map(|row| {
            let option = ["opa", "opb", "opc", "opd"][row["cop"].as_u64().unwrap() as usize];
            (row["question"].as_str().unwrap().to_owned(), row[option].as_str().unwrap().to_owned())
        })
        .collect();
    let server = Server::start(move |_, asked| {
        let shown = asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
        let (_, option) = right.iter().max_by_key(|(question, _)| shown.rfind(question.as_str())).unwrap();
        let line = shown.lines().rev().find(|line| line.trim_end().ends_with(option.as_str())).unwrap();
        let letter = line.chars().find(|c| "ABCD".contains(*c)).unwrap();
        text(&format!("It is so.\nAnswer: [{letter}]"))
    });
    let out = dir.path().join("out");
    let data = dir.path().join("data");
    let args = ["eval", &server.model(), "--server-template", "--tasks", "starter_mcqa", "--strategy", "medprompt"];
    let more = ["--shots", "6", "--limit", "4", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (_, stderr, code) = run(&[&args[..], &more].concat());
    assert_eq!(code, 0, "{stderr}");
    let results = read(&out.join("results.json"));
    let notes = &results["tasks"][0]["notes"];
    assert_eq!(notes["excluded_as_the_question_itself"], 1, "{notes}");
    assert_eq!(
        (&notes["pool_questions"], &notes["pool_solved"], &notes["filled_with_fixed_examples"]),
        (&json!(6), &json!(6), &json!(1))
    );
    assert!(notes["neighbour_search"].as_str().unwrap().starts_with("lexical"), "{notes}");
    assert_eq!(results["tasks"][0]["acc"]["value"], 1.0);
    let floor = &results["tasks"][0]["noise_floor"];
    assert_eq!((&floor["n_requests"], &floor["n_requests_changed"]), (&json!(4 * 5), &json!(0)), "{floor}");
    assert_eq!(results["model"]["text"], "server template");
    let samples = lines(&out.join("samples.jsonl"));
    let shots = |sample: &Value| sample["votes"][0]["shots"].to_string();
    assert!(!shots(&samples[1]).contains("again"), "{}", shots(&samples[1]));
    assert!([0, 2, 3].iter().all(|&at| shots(&samples[at]).contains("again")), "the copy serves other questions");
    // The compatibility switch lets it in, says so, and still tells such questions apart.
    let out = dir.path().join("included");
    let more = ["--shots", "6", "--limit", "4", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (_, stderr, code) = run(&[&args[..], &more, &["--set", "include_same=true"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let task = &read(&out.join("results.json"))["tasks"][0];
    let notes = &task["notes"];
    assert_eq!(notes["excluded_as_the_question_itself"], 0, "{notes}");
    assert_eq!(notes["included_although_the_question_itself"], 1, "{notes}");
    assert_eq!(notes["filled_with_fixed_examples"], 0, "{notes}");
    let sample = &lines(&out.join("samples.jsonl"))[1];
    assert!(sample["votes"][0]["shots"].as_array().unwrap().last().unwrap() == "the-test-question-again", "{sample}");
    assert_eq!(task["by_pool"].as_array().unwrap().len(), 2, "{task}");
}

#[test]
fn a_server_that_cannot_score_is_refused_with_what_it_lacks_and_nothing_is_written() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let refuse = |server: &Server, more: &[&str], words: &[&str]| {
        let (_, stderr, code) =
            eval(&server.model(), &out, &[&["--tasks", "starter_mcqa", "--limit", "2"], more].concat());
        assert_eq!(code, 2, "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{word:?} is not in {stderr}");
        }
        assert!(!out.exists());
    };
    let tokenizer = ["--tokenizer", stories.to_str().unwrap()];
    type Lie = fn(&Asked) -> Value;
    let lies: [(&str, Lie); 4] = [
        ("`token_logprobs` is absent", |_| json!({"choices": [{"text": "x", "logprobs": null}]})),
        (
            "0 entries of `token_logprobs`",
            |_| json!({"choices": [{"logprobs": {"token_logprobs": [], "top_logprobs": [], "tokens": []}}]}),
        ),
        (
            "prompt tokens where",
            |asked| json!({"choices": [{}], "usage": {"prompt_tokens": prompt_ids(asked).len() + 1}}),
        ),
        ("every log-probability is 0", |asked| {
            let n = prompt_ids(asked).len() + asked.body["max_tokens"].as_u64().unwrap() as usize;
            let tops = vec![json!({"x": 0.0}); n];
            let mut names: Vec<String> = prompt_ids(asked).iter().map(|id| format!("token_id:{id}")).collect();
            names.resize(n, "new".to_owned());
            json!({"choices": [{"logprobs": {"token_logprobs": vec![0.0; n], "top_logprobs": tops, "tokens": names}}]})
        }),
    ];
    for (words, lie) in lies {
        let server = Server::start(move |_, asked| Reply::Json(lie(asked)));
        refuse(&server, &tokenizer, &["no usable prompt log-probabilities", words, "Nothing was scored"]);
        assert_eq!(server.n_asked(), 3, "the probe, once in each form");
    }
    let server = Server::start(|_, _| text("x"));
    refuse(&server, &[], &["--tokenizer"]);
    assert_eq!(server.n_asked(), 0);
    let (_, stderr, code) =
        eval(&server.model().replace("#m", "#other"), &out, &[&["--tasks", "starter_mcqa"][..], &tokenizer].concat());
    assert!(code == 2 && stderr.contains("#other") && stderr.contains("it serves m"), "{stderr}");
}

/// The probe is answered well; later answers hold one entry too many, as when a server adds a token of its own.
#[test]
fn a_server_that_lies_after_the_probe_stops_the_run() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let model = Model::open(&stories);
    let server = Server::start(move |at, asked| {
        let mut asked = asked.clone();
        if at > 0 {
            asked.body["prompt"].as_array_mut().unwrap().insert(0, json!(1));
        }
        let Reply::Json(mut answer) = model.echo(&asked) else { return Reply::Dies };
        answer.as_object_mut().unwrap().remove("usage");
        Reply::Json(answer)
    });
    let more = ["--tasks", "starter_mcqa", "--limit", "2", "--tokenizer", stories.to_str().unwrap()];
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("cannot be used") && stderr.contains("are due"), "{stderr}");
    assert!(!out.exists());
}

/// Waits of 0.25, 0.5, 1 and 2 s lie between five tries. The same command goes on when the server is back.
#[test]
fn a_server_that_dies_is_tried_five_times_with_growing_waits_and_the_run_goes_on_when_it_is_back() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let is_up = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (up, model) = (is_up.clone(), Model::open(&stories));
    let server = Server::start(move |at, asked| match at {
        0 => model.echo(asked),
        _ if up.load(std::sync::atomic::Ordering::SeqCst) => model.echo(asked),
        _ => Reply::Dies,
    });
    let out = dir.path().join("out");
    let more = ["--tasks", "starter_mcqa", "--limit", "1", "--tokenizer", stories.to_str().unwrap()];
    let started = Instant::now();
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 1, "{stderr}");
    assert!(started.elapsed() >= Duration::from_millis(3750), "{:?}", started.elapsed());
    assert!(stderr.contains("trying again in 2 s (5 of 5)") && stderr.contains("(after 5 tries)"), "{stderr}");
    assert_eq!(server.n_asked(), 1 + 5, "the probe, and five tries of the first request");
    assert!(!out.exists());
    is_up.store(true, std::sync::atomic::Ordering::SeqCst);
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert!(code == 0 && out.join("results.json").exists(), "{stderr}");
}

#[test]
fn a_busy_server_is_given_the_time_it_asks_for() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(&stories);
    let server = Server::start(move |at, asked| match at {
        0 => Reply::Status("429 Too Many Requests", "retry-after: 2"),
        _ => model.echo(asked),
    });
    let started = Instant::now();
    let more = ["--tasks", "starter_mcqa", "--limit", "1", "--tokenizer", stories.to_str().unwrap()];
    let (_, stderr, code) = eval(&server.model(), &dir.path().join("out"), &more);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("HTTP status 429") && stderr.contains("asked again in 2 s"), "{stderr}");
    assert!(started.elapsed() >= Duration::from_secs(2));
    let server = Server::start(|_, _| Reply::Status("429 Too Many Requests", "retry-after: 86400"));
    let (_, stderr, code) = eval(&server.model(), &dir.path().join("never"), &more);
    assert!(code == 1 && stderr.contains("it asks to come back in 86400 s"), "{stderr}");
}

#[test]
fn runs_that_cannot_be_compared_are_refused_before_the_model_is_asked_anything() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let tokenizer = ["--tokenizer", stories.to_str().unwrap()];
    let (_, stderr, code) = eval(stories.to_str().unwrap(), &first, &["--tasks", "starter_mcqa", "--limit", "3"]);
    assert_eq!(code, 0, "{stderr}");
    let out = dir.path().join("second");
    let server = Server::start(|_, _| text("x"));
    let compare = ["--compare", first.to_str().unwrap()];
    let check = |more: &[&str], words: &[&str]| {
        let (_, stderr, code) = eval(&server.model(), &out, &[more, &compare, &tokenizer].concat());
        assert_eq!(code, 2, "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{word:?} is not in {stderr}");
        }
        assert!(!out.exists());
    };
    check(
        &["--tasks", "starter_mcqa,starter_pubmedqa", "--limit", "3", "--protocol", "lm-eval"],
        &["tasks: starter_mcqa there, starter_mcqa, starter_pubmedqa here", "protocol: aloe there, lm-eval here"],
    );
    check(
        &["--tasks", "starter_mcqa", "--set", "split=validation"],
        &["split: test there, validation here", "limit: 3 there, none here"],
    );
    let path = first.join("samples.jsonl");
    let text = std::fs::read_to_string(&path).unwrap().replace("starter-test-002", "starter-test-999");
    std::fs::write(&path, text).unwrap();
    check(&["--tasks", "starter_mcqa", "--limit", "3"], &["samples.jsonl is not what the stage wrote"]);
    let mut record = read(&first.join("record.json"));
    record["outputs"]["samples.jsonl"] = json!(aloe_record::digest::file(&path).unwrap());
    std::fs::write(first.join("record.json"), record.to_string()).unwrap();
    check(&["--tasks", "starter_mcqa", "--limit", "3"], &["the data files differ"]);
    assert_eq!(server.n_asked(), 0);
}

/// Another strategy over the same questions may be compared; what differs is said.
#[test]
fn a_comparison_says_in_what_else_the_runs_differ() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let model = stories.to_str().unwrap();
    let more = ["--tasks", "starter_mcqa", "--limit", "3"];
    assert_eq!(eval(model, &first, &more).2, 0);
    let compare = ["--shots", "1", "--compare", first.to_str().unwrap()];
    let (stdout, stderr, code) = eval(model, &second, &[&more[..], &compare].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("(the runs differ in shots 0 and 1)"), "{stdout}");
    let record = read(&second.join("record.json"));
    let note = record["results"]["comparison_note"].as_str().unwrap();
    assert_eq!(note, "accuracy, question by question (3) (the runs differ in shots 0 and 1)");
    assert_eq!(record["results"]["comparison"][0]["n"], 3);
}
