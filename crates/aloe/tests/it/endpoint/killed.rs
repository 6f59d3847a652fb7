//! A client that is killed in mid-run: no request that a server answered is sent again.

use super::server::{Model, Reply, Server, text};
use super::{eval, lines, starter};
use crate::{aloe, root, run, stories};
use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bodies with how often each was answered.
type Answered = Arc<Mutex<HashMap<String, usize>>>;

/// A server that falls silent after `n_answers` requests, until it is told to go on.
fn falls_silent(
    n_answers: usize,
    reply: impl Fn(&super::Asked) -> Reply + Send + Sync + 'static,
) -> (Server, Answered, Arc<AtomicBool>) {
    let (answered, goes_on) = (Answered::default(), Arc::new(AtomicBool::new(false)));
    let (counts, is_on) = (Arc::clone(&answered), Arc::clone(&goes_on));
    let server = Server::start(move |at, asked| {
        while at >= n_answers && !is_on.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let reply = reply(asked);
        *counts.lock().unwrap().entry(asked.body.to_string()).or_default() += 1;
        reply
    });
    (server, answered, goes_on)
}

/// Starts `aloe eval MODEL` with `more` and kills it when all of its 16 connections wait for an answer.
fn killed(server: &Server, n_answers: usize, out: &Path, more: &[&str]) {
    let starter = starter();
    let model = server.model();
    let args = ["eval", &model, "--data", &starter, "--dtype", "f32", "--out", out.to_str().unwrap()];
    killed_at(server, n_answers + 16, &[&args[..], more].concat());
}

/// Starts `aloe` and kills it when `server` was asked `n_asked` times.
fn killed_at(server: &Server, n_asked: usize, args: &[&str]) {
    let mut child = aloe().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while server.n_asked() < n_asked {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        assert!(started.elapsed().as_secs() < 60, "{} requests came", server.n_asked());
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// An evaluation killed after `n_answers` answers and gone on with: what is asked again, but for the noise floor's second asking, are
/// the 16 requests that were under way; and the files are those of a run that nobody killed.
fn check(
    n_answers: usize,
    more: &[&str],
    n_twice: usize,
    reply: impl Fn(&super::Asked) -> Reply + Clone + Send + Sync + 'static,
) {
    let dir = tempfile::tempdir().unwrap();
    let (server, answered, goes_on) = falls_silent(n_answers, reply.clone());
    let out = dir.path().join("killed");
    killed(&server, n_answers, &out, more);
    let first: Vec<String> = answered.lock().unwrap().keys().cloned().collect();
    goes_on.store(true, Ordering::SeqCst);
    // Those whose client is gone are answered now.
    std::thread::sleep(Duration::from_millis(1500));
    answered.lock().unwrap().retain(|body, _| first.contains(body));
    let (_, stderr, code) = eval(&server.model(), &out, more);
    assert_eq!(code, 0, "{stderr}");
    let answered = answered.lock().unwrap().clone();
    let n_again: usize = first.iter().filter(|body| answered[*body] > 2).count();
    assert_eq!(n_again, 0, "answered before the kill, and asked again beside the noise floor");
    let n_asked: usize = answered.values().sum();
    assert_eq!(n_asked - answered.len(), n_twice, "of {} requests", answered.len());
    let whole = Server::start(move |_, asked| reply(asked));
    let unbroken = dir.path().join("unbroken");
    assert_eq!(eval(&whole.model(), &unbroken, more).2, 0);
    assert_eq!(lines(&unbroken.join("samples.jsonl")), lines(&out.join("samples.jsonl")));
}

#[test]
fn scores_that_a_killed_client_was_given_are_not_asked_for_again() {
    let Some(stories) = stories() else { return };
    let model = Arc::new(Model::open(&stories));
    let tokenizer = ["--tokenizer", stories.to_str().unwrap()];
    let more = [&["--tasks", "starter_mcqa", "--protocol", "lm-eval"][..], &tokenizer].concat();
    // All 60 questions of four options each are scored a second time.
    let of_first = Arc::clone(&model);
    check(101, &more, 240, move |asked| of_first.echo(asked));
    // Killed in the second task: 18 questions of three options, behind the probe and twice 240 of the first.
    let of_both = [&["--tasks", "starter_mcqa,starter_pubmedqa", "--protocol", "lm-eval"][..], &tokenizer].concat();
    check(1 + 480 + 20, &of_both, 240 + 54, move |asked| model.echo(asked));
}

/// As many answers as are asked for, by what was sent alone.
fn lettered(asked: &super::Asked) -> Reply {
    let number = |name: &str| asked.body[name].as_u64();
    let first = asked.body["messages"].to_string().len() as u64 + number("seed").unwrap_or_default();
    let letter = |at: u64| format!("Answer: {}", ["A", "B", "C", "D"][((first + at) % 4) as usize]);
    super::server::texts(&(0..number("n").unwrap_or(1)).map(letter).collect::<Vec<_>>())
}

#[test]
fn votes_that_a_killed_client_was_given_are_not_asked_for_again() {
    let more = ["--server-template", "--tasks", "starter_mcqa", "--strategy", "sc-cot", "--set", "n_samples=3"];
    // One request asks for a question's three votes; each question is asked twice.
    check(20, &more, 60, lettered);
}

/// The letter is by the length of what was sent. The server is asked what it can tell by each process, beside thirty questions.
#[test]
fn next_letters_that_a_killed_client_was_given_are_not_asked_for_again() {
    let more = ["--server-template", "--tasks", "starter_mcqa", "--strategy", "next-letter", "--limit", "30"];
    let letter = |asked: &super::Asked| {
        let at = asked.body["messages"].to_string().len() % 4;
        super::next_letter::named(&[(["A", "B", "C", "D"][at], 0.5), ("A", 0.1)])
    };
    check(1 + 8, &more, 30 + 1, letter);
}

/// No first try names an option, every second one does; killed among the second tries, when no question has a vote yet that stands in the
/// run's own log.
#[test]
fn tries_of_the_retry_rule_that_a_killed_client_was_given_are_not_asked_for_again() {
    let cot = ["--server-template", "--tasks", "starter_mcqa", "--strategy", "cot", "--protocol", "prompt-engine"];
    let more = [&cot[..], &["--limit", "30", "--set", "retry=\"prompt-engine\""]].concat();
    let answer = |asked: &super::Asked| match asked.body["max_tokens"].as_u64() >= Some(600) {
        true => text("Answer: [B]"),
        false => text("No idea."),
    };
    check(30 + 10, &more, 60, answer);
}

/// Two attempts at each of twenty pool questions, then two votes on each of ten questions, which are asked twice.
const MEDPROMPT: [&str; 15] = [
    "--server-template",
    "--tasks",
    "starter_mcqa",
    "--strategy",
    "medprompt",
    "--limit",
    "10",
    "--shots",
    "2",
    "--set",
    "pool_limit=20",
    "--set",
    "pool_attempts=2",
    "--set",
    "n_samples=2",
];

/// Killed in the midst of the pool, and of the votes.
#[test]
fn examples_and_votes_of_medprompt_that_a_killed_client_was_given_are_not_asked_for_again() {
    check(15, &MEDPROMPT, 20, lettered);
    check(40 + 4, &MEDPROMPT, 20, lettered);
}

/// The solved questions of the pool are one batch of texts, the ten questions another. The known text that every client asks for first is
/// none of them.
#[test]
fn vectors_that_a_killed_client_was_given_are_not_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let embedder = Server::start(|_, asked| {
        let vector = |(at, text): (usize, &serde_json::Value)| {
            let length = text.as_str().unwrap().len();
            serde_json::json!({"index": at, "embedding": [length % 7, length % 11, 1.0]})
        };
        let inputs = asked.body["input"].as_array().unwrap().iter().enumerate();
        Reply::Json(serde_json::json!({ "data": inputs.map(vector).collect::<Vec<_>>() }))
    });
    let address = format!("embedder={}", embedder.model());
    let more = [&MEDPROMPT[..], &["--set", &address]].concat();
    let n_batches = || {
        let asked = embedder.asked();
        asked.iter().filter(|one| one.body != asked[0].body).count()
    };
    let (server, _, goes_on) = falls_silent(40 + 4, lettered);
    let out = dir.path().join("killed");
    killed(&server, 40 + 4, &out, &more);
    assert_eq!(n_batches(), 2);
    goes_on.store(true, Ordering::SeqCst);
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!((code, n_batches()), (0, 2), "{stderr}");
    let (whole, unbroken) = (Server::start(|_, asked| lettered(asked)), dir.path().join("unbroken"));
    assert_eq!(eval(&whole.model(), &unbroken, &more).2, 0);
    assert_eq!(lines(&unbroken.join("samples.jsonl")), lines(&out.join("samples.jsonl")));
    assert_eq!(n_batches(), 4, "another run embeds for itself");
}

/// The client is killed when it was asked `n_at_kill` times: it then waits on all of its connections for the model beside the one under
/// evaluation, which has given `n_answers` answers, and is asked for none of them again. Nor is `model` asked again what it answered
/// before; `n_again` are the noise floor's. `n_asked` tells from the finished run how often the one beside must be asked in all.
fn check_beside(
    model: &Server,
    (n_answers, n_at_kill, n_again): (usize, usize, usize),
    beside: impl Fn(&super::Asked) -> Reply + Send + Sync + 'static,
    args: impl Fn(&str, &str) -> Vec<String>,
    n_asked: impl Fn(&Path) -> usize,
) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (server, answered, goes_on) = falls_silent(n_answers, beside);
    let args = args(&server.model(), out.to_str().unwrap());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    killed_at(&server, n_at_kill, &args);
    let first = answered.lock().unwrap().clone();
    assert_eq!(first.values().sum::<usize>(), n_answers);
    let n_model = model.n_asked();
    goes_on.store(true, Ordering::SeqCst);
    // Those whose client is gone are answered now.
    std::thread::sleep(Duration::from_millis(1500));
    answered.lock().unwrap().clone_from(&first);
    let (_, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let n_answered: usize = answered.lock().unwrap().values().sum();
    assert_eq!(n_answered, n_asked(&out), "answers beside, {n_answers} of them before the kill");
    assert_eq!(model.n_asked(), n_model + n_again, "the model's answers stand");
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

#[test]
fn verdicts_that_a_killed_client_was_given_are_not_asked_for_again() {
    let model = Server::start(|_, _| text("It is so."));
    let beside = |_: &super::Asked| text("They agree.\n<VERDICT>1</VERDICT>");
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("open")).unwrap();
    let row = |at: usize| {
        let row = serde_json::json!({ "id": at.to_string(), "question": format!("Is {at} a number?"), "correct_answer": "It is." });
        format!("{row}\n")
    };
    let rows: String = (0..40).map(row).collect();
    std::fs::write(data.path().join("open/starter_open_test.jsonl"), rows).unwrap();
    let args = |judge: &str, out: &str| {
        let args = ["eval", &model.model(), "--server-template", "--tasks", "starter_open", "--judge", judge];
        owned(&[&args[..], &["--data", data.path().to_str().unwrap(), "--out", out]].concat())
    };
    check_beside(&model, (7, 7 + 16, 0), beside, args, |_| 40);
}

/// No answer names an option, so every train question is asked of the writer twice. No model is under evaluation.
#[test]
fn attempts_of_a_killed_synthesis_that_the_writer_has_answered_are_not_asked_for_again() {
    let none = Server::start(|_, _| text(""));
    let args = |writer: &str, out: &str| {
        let args = ["synthesis", writer, "--server-template", "--tasks", "starter_mcqa", "--set", "attempts=2"];
        owned(&[&args[..], &["--data", &starter(), "--out", out]].concat())
    };
    let n_asked = |out: &Path| {
        let n_attempts = lines(&out.join("attempts.jsonl")).len();
        assert_eq!(n_attempts, 2 * lines(&root().join("starter/mcqa/starter_mcqa_train.jsonl")).len());
        n_attempts
    };
    check_beside(&none, (20, 20 + 16, 0), |_| text("I do not know."), args, n_asked);
}

#[test]
fn specialties_that_a_killed_client_was_told_are_not_asked_for_again() {
    let model = Server::start(|_, asked| {
        let n = asked.body["n"].as_u64().unwrap_or(1);
        super::server::texts(&(0..n).map(|_| "Answer: [A]".to_owned()).collect::<Vec<_>>())
    });
    let beside = |_: &super::Asked| text("The category is: Surgery");
    let args = |classifier: &str, out: &str| {
        let args = ["eval", &model.model(), "--server-template", "--tasks", "starter_mcqa", "--strategy", "cot"];
        let set = ["--limit", "20", "--set", &format!("specialties=\"{classifier}\"")];
        owned(&[&args[..], &set, &["--data", &starter(), "--out", out]].concat())
    };
    check_beside(&model, (4, 4 + 16, 20), beside, args, |_| 20);
}

/// The judge of a red-team run is asked about its labelled responses first.
#[test]
fn verdicts_on_attacks_that_a_killed_client_was_given_are_not_asked_for_again() {
    let Some(tokenizer) = super::judge::tokenizer() else { return };
    let starter = root().join("starter/redteam").canonicalize().unwrap();
    let file = |name: &str| starter.join(name).display().to_string();
    let (questions, harmless, labels) = (file("questions.jsonl"), file("harmless.jsonl"), file("judge_labels.jsonl"));
    let model = Server::start(|_, asked| super::judge::attacked(asked));
    let n_labels = lines(Path::new(&labels)).len();
    let args = |judge: &str, out: &str| {
        let set = ["n_prompts=40", "n_harmless=2", &format!("judge={judge}"), &format!("judge_labels={labels}")];
        let set: Vec<&str> = set.iter().flat_map(|one| ["--set", *one]).collect();
        let args = ["redteam", &model.model(), "--questions", &questions, "--harmless", &harmless, "--out", out];
        owned(&[&args[..], &["--tokenizer", &tokenizer], &set].concat())
    };
    let n_asked = |out: &Path| {
        let samples = lines(&out.join("samples.jsonl"));
        n_labels + samples.iter().filter(|sample| !sample["style"].is_null()).count()
    };
    check_beside(&model, (n_labels + 6, n_labels + 6 + 16, 0), |_| text("safe"), args, n_asked);
}

/// The address of several servers of the model `m`.
fn together(servers: &[&Server]) -> String {
    let bases: Vec<String> = servers.iter().map(|server| server.model().replace("#m", "")).collect();
    format!("{}#m", bases.join(","))
}

/// Two other servers of the same weights take up what one has answered; one of other weights does not, and the record names all that were asked.
#[test]
fn a_run_goes_on_at_other_addresses_where_the_known_prompts_are_answered_alike() {
    let more = ["--server-template", "--tasks", "starter_mcqa", "--strategy", "sc-cot", "--set", "n_samples=3"];
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (server, ..) = falls_silent(20, lettered);
    killed(&server, 20, &out, &more);
    let others = Server::with_canary(|_, asked| {
        if asked.body["seed"] == super::server::CANARY { text("of others") } else { lettered(asked) }
    });
    let (_, stderr, code) = eval(&others.model(), &out, &more);
    assert!(code == 1 && stderr.contains("no longer answers as it did for the answers in"), "{stderr}");
    let is_canary = |asked: &super::Asked| asked.body["seed"] == super::server::CANARY;
    assert!(others.asked().iter().all(is_canary), "it was asked for an answer");
    let (one, two) = (Server::start(|_, asked| lettered(asked)), Server::start(|_, asked| lettered(asked)));
    let both = together(&[&one, &two]);
    let (_, stderr, code) = eval(&both, &out, &more);
    assert!(code == 0 && stderr.contains("going on from an interrupted run"), "{stderr}");
    assert_eq!(one.n_asked() + two.n_asked(), 2 * 60 - 20);
    let inputs = super::read(&out.join("record.json"))["inputs"].clone();
    assert_eq!(inputs["model"], serde_json::json!(both));
    let asked: Vec<&String> = inputs["served"].as_object().unwrap().keys().collect();
    assert!(asked.contains(&&both) && asked.contains(&&server.model()), "{asked:?}");
    let whole = dir.path().join("whole");
    assert_eq!(eval(&one.model(), &whole, &more).2, 0);
    assert_eq!(lines(&whole.join("samples.jsonl")), lines(&out.join("samples.jsonl")));
}

/// A folder of benchmarks holds more than a run reads of it.
#[test]
fn a_run_goes_on_whatever_changed_in_the_data_folder_but_the_files_that_its_tasks_read() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("d"), dir.path().join("out"));
    std::fs::create_dir_all(data.join("mcqa")).unwrap();
    for name in ["starter_mcqa_test.jsonl", "starter_mcqa_train.jsonl", "starter_pubmedqa_test.jsonl", "README.md"] {
        std::fs::copy(root().join("starter/mcqa").join(name), data.join("mcqa").join(name)).unwrap();
    }
    let is_dead = Arc::new(AtomicBool::new(true));
    let dies = Arc::clone(&is_dead);
    let server = Server::start(move |at, asked| match at >= 20 && dies.load(Ordering::SeqCst) {
        true => Reply::Dies,
        false => lettered(asked),
    });
    let go = |tasks: &str| {
        let args = ["eval", &server.model(), "--server-template", "--strategy", "cot", "--tasks", tasks];
        let (data, out) = (data.display().to_string(), out.display().to_string());
        run(&[&args[..], &["--data", &data, "--out", &out]].concat())
    };
    let (_, stderr, code) = go("starter_mcqa");
    assert!(code == 1 && stderr.contains("(after 5 tries)"), "{stderr}");
    is_dead.store(false, Ordering::SeqCst);
    let append = |name: &str, text: &str| {
        let path = data.join("mcqa").join(name);
        let before = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{before}{text}")).unwrap();
        (path, before)
    };
    append("README.md", "Moved to the new disk.\n");
    append("starter_mcqa_train.jsonl", "\n");
    let (path, before) = append("starter_mcqa_test.jsonl", "\n");
    let (_, stderr, code) = go("starter_mcqa");
    let named = format!("started otherwise: the input `{}` has other content. Nothing was changed", path.display());
    assert!(code == 2 && stderr.contains(&named), "{named} is not in {stderr}");
    std::fs::write(&path, before).unwrap();
    let n = server.n_asked();
    // Further tasks take up the answers, and their files belong to the run from then on.
    let (_, stderr, code) = go("starter_mcqa,starter_pubmedqa");
    assert!(code == 0 && stderr.contains("going on from an interrupted run"), "{stderr}");
    let n_questions: usize = ["starter_mcqa_test.jsonl", "starter_pubmedqa_test.jsonl"]
        .map(|name| lines(&data.join("mcqa").join(name)).len())
        .iter()
        .sum();
    assert!(server.n_asked() - n <= 2 * n_questions - 20, "{} requests", server.n_asked() - n);
    append("README.md", "And back.\n");
    let n = server.n_asked();
    let (stdout, stderr, code) = go("starter_mcqa,starter_pubmedqa");
    assert!(code == 0 && stdout.contains("was done already") && server.n_asked() == n, "{stdout}{stderr}");
}
