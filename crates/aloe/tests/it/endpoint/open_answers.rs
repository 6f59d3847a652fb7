//! Open answers with judges behind endpoints, driven through the binary: model and judges are loopback servers whose rules are written
//! here, and every figure is counted again from those rules.

use super::server::{Asked, Server, text};
use super::{lines, read, starter, stories_with_template};
use crate::{aloe, root, run, stories};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The model answers with the length of the question.
fn answer(question: &str) -> String {
    format!("It is number {}.", question.len())
}

fn model() -> Server {
    Server::start(|_, asked| {
        let messages = asked.body["messages"].as_array().unwrap();
        assert_eq!((&messages[0]["role"], messages.len()), (&json!("system"), 2));
        text(&answer(messages[1]["content"].as_str().unwrap()))
    })
}

/// The number that stands in the answer of a judge's request; question, reference and answer must each be in their place.
fn number(asked: &Asked) -> usize {
    assert_eq!(asked.path, "/chat/completions");
    assert_eq!((&asked.body["temperature"], &asked.body["max_tokens"]), (&json!(0.0), &json!(1500)));
    let prompt = asked.body["messages"][0]["content"].as_str().unwrap();
    let part = |from: &str, to: &str| prompt.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    let question = part("[Question]\n", "\n[End of question]");
    let given = part("[Answer to grade]\n", "\n[End of answer to grade]");
    assert_eq!(given, answer(&question));
    let row = questions().into_iter().find(|row| row["question"] == question).unwrap();
    assert_eq!(row["correct_answer"], part("[Reference answer]\n", "\n[End of reference answer]"));
    question.len()
}

fn questions() -> Vec<Value> {
    lines(&root().join("starter/open/starter_open_test.jsonl"))
}

/// What the judges say of a question of this length: right, wrong, or no verdict.
fn first(n: usize) -> Option<bool> {
    Some(n.is_multiple_of(2))
}

fn second(n: usize) -> Option<bool> {
    (!n.is_multiple_of(5)).then_some(n.is_multiple_of(3))
}

fn third(n: usize) -> Option<bool> {
    Some(n.is_multiple_of(2) || n.is_multiple_of(3))
}

type Rule = fn(usize) -> Option<bool>;

fn reply(said: Option<bool>) -> String {
    match said {
        Some(true) => "They agree.\n<verdict> 1 </verdict>".to_owned(),
        Some(false) => "They differ.\n<VERDICT>0</VERDICT>".to_owned(),
        None => "I would rather not say.".to_owned(),
    }
}

fn judge(rule: Rule) -> Server {
    Server::start(move |_, asked| text(&reply(rule(number(asked)))))
}

/// Runs `aloe eval` on the starter's open questions.
fn eval(model: &Server, judges: &[&Server], out: &Path, more: &[&str]) -> (String, String, i32) {
    let (model, starter, out) = (model.model(), starter(), out.display().to_string());
    let judges: Vec<String> = judges.iter().map(|judge| judge.model()).collect();
    let mut args =
        vec!["eval", &model, "--server-template", "--tasks", "starter_open", "--data", &starter, "--out", &out];
    args.extend(judges.iter().flat_map(|judge| ["--judge", judge]));
    args.extend(more);
    run(&args)
}

fn share(value: &Value, n_right: usize) {
    assert!((value["value"].as_f64().unwrap() - n_right as f64 / 12.0).abs() < 1e-12, "{value} is not {n_right} of 12");
    assert!(value["interval"]["low"].as_f64() < value["interval"]["high"].as_f64(), "{value}");
}

fn lengths() -> Vec<usize> {
    questions().iter().map(|row| row["question"].as_str().unwrap().len()).collect()
}

fn n_right(rule: impl Fn(usize) -> bool) -> usize {
    lengths().into_iter().filter(|&n| rule(n)).count()
}

#[test]
fn a_panel_of_judges_gives_each_ones_accuracy_the_majority_and_full_agreement_and_keeps_what_they_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("open");
    let (model, judges) = (model(), [judge(first), judge(second), judge(third)]);
    let (stdout, stderr, code) = eval(&model, &[&judges[0], &judges[1], &judges[2]], &out, &[]);
    assert_eq!(code, 0, "{stderr}");
    let results = read(&out.join("results.json"));
    let panel = &results["tasks"][0]["panel"];
    let says = |rule: Rule| move |n: usize| rule(n) == Some(true);
    for (at, rule) in [first as Rule, second, third].into_iter().enumerate() {
        share(&panel["judges"][at]["accuracy"], n_right(says(rule)));
        assert_eq!(panel["judges"][at]["n_unparsed"], json!(n_right(|n| rule(n).is_none())));
    }
    let votes = |n: usize| [first as Rule, second, third].into_iter().filter(|rule| rule(n) == Some(true)).count();
    share(&panel["majority"], n_right(|n| votes(n) >= 2));
    share(&panel["full_agreement"], n_right(|n| votes(n) == 3));
    assert!(panel["judges"][1]["n_unparsed"].as_u64().unwrap() > 0, "the second judge must be silent somewhere");
    let whole = n_right(|n| second(n).is_some());
    assert_eq!(panel["fleiss_kappa"]["n"], json!(whole));
    let names: Vec<&str> =
        panel["judges"].as_array().unwrap().iter().map(|judge| judge["judge"].as_str().unwrap()).collect();
    assert_eq!(names, ["m", "m (2)", "m (3)"]);
    for (sample, row) in lines(&out.join("samples.jsonl")).iter().zip(questions()) {
        let question = row["question"].as_str().unwrap();
        assert_eq!((&sample["question"], &sample["reference"]), (&row["question"], &row["correct_answer"]));
        assert_eq!(sample["answer"], answer(question));
        assert_eq!(sample["verdicts"][1]["text"], reply(second(question.len())));
        assert_eq!(sample["majority"], json!(votes(question.len()) >= 2));
    }
    assert_eq!(model.n_asked(), 12);
    assert!(judges.iter().all(|judge| judge.n_asked() == 12), "no verdict is asked for twice");
    for words in [
        "ROUGE-L %",
        "judge m (2): right",
        "no verdict on",
        "majority of 3 judges",
        "Fleiss' kappa",
        "not clinically reviewed",
    ] {
        assert!(stdout.contains(words), "{words:?} is not in {stdout}");
    }
    let text = std::fs::read_to_string(out.join("results.json")).unwrap();
    assert!(!text.contains("127.0.0.1"), "results.json holds a host: {text}");
    let record = read(&out.join("record.json"));
    assert_eq!(record["results"]["open"], results);
    assert_eq!(record["config_used"]["judge_prompt_version"], 1);
    let (again, stderr, code) = eval(&model, &[&judges[0], &judges[1], &judges[2]], &out, &[]);
    assert!(code == 0 && again.contains("(was done already)"), "{again}{stderr}");
    assert_eq!(model.n_asked(), 12);
}

/// One model says yes, the other no. Every judge calls yes right where the question's length is even, and no where it is a multiple of five.
#[test]
fn two_runs_are_compared_by_what_one_panel_calls_right_and_runs_of_other_panels_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let reader = || {
        Server::start(|_, asked| {
            let prompt = asked.body["messages"][0]["content"].as_str().unwrap();
            let part = |from: &str, to: &str| prompt.split_once(from).unwrap().1.split_once(to).unwrap().0;
            let n = part("[Question]\n", "\n[End of question]").len();
            let is_yes = part("[Answer to grade]\n", "\n[End of answer to grade]") == "Yes.";
            text(&reply(Some(if is_yes { n.is_multiple_of(2) } else { n.is_multiple_of(5) })))
        })
    };
    let run_of = |name: &str, says: &'static str, judges: &[&Server]| {
        let (model, out) = (Server::start(move |_, _| text(says)), dir.path().join(name));
        let (_, stderr, code) = eval(&model, judges, &out, &[]);
        assert_eq!(code, 0, "{stderr}");
        out.display().to_string()
    };
    let (one, other) = (reader(), reader());
    let (yes, no) = (run_of("yes", "Yes.", &[&one]), run_of("no", "No.", &[&other]));
    let (stdout, stderr, code) = run(&["compare", &yes, &no, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    let row = &found["runs"][0]["rows"][0];
    let only_yes = n_right(|n| n.is_multiple_of(2) && !n.is_multiple_of(5));
    let only_no = n_right(|n| !n.is_multiple_of(2) && n.is_multiple_of(5));
    assert!(only_yes > 0 && only_no > 0 && only_yes != only_no, "{only_yes} and {only_no} of twelve tell nothing");
    assert_eq!([&row["n_only_first"], &row["n_only_second"]], [&json!(only_yes), &json!(only_no)]);
    let first = n_right(|n| n.is_multiple_of(2)) as f64 / 12.0;
    assert!(row["n"] == 12 && (row["first"].as_f64().unwrap() - first).abs() < 1e-12, "{row}");
    let (stdout, _, _) = run(&["compare", &yes, &no]);
    assert!(stdout.contains("right by judge m, question by question (12)"), "{stdout}");
    let refused = |run_b: &str, words: &str| {
        let (_, stderr, code) = run(&["compare", &yes, run_b]);
        assert!(code == 2 && stderr.contains(words), "{words:?} is not in {code} {stderr}");
    };
    let (_, stderr, code) = run(&["export", &yes, "--format", "csv"]);
    assert!(code == 2 && stderr.contains("holds answers to open questions"), "{code} {stderr}");
    let (stdout, stderr, code) = run(&["view", &no, "--against", &yes]);
    assert_eq!(code, 0, "{stderr}");
    let page = std::fs::read_to_string(stdout.trim_end()).unwrap();
    let only = format!("<td class=\"n\">{only_no}</td><td class=\"n\">{only_yes}</td>");
    assert!(page.contains("right by judge m") && page.contains(&only), "{only}");
    refused(&run_of("alone", "No.", &[]), "no judge has read the answers");
    refused(&run_of("two", "No.", &[&one, &other]), "was judged by m and");
    let closed = Server::start(|_, _| text("Answer: [A]"));
    let (model, starter, out) = (closed.model(), starter(), dir.path().join("closed").display().to_string());
    let args = ["eval", &model, "--server-template", "--tasks", "starter_mcqa", "--data", &starter, "--out", &out];
    let (_, stderr, code) = run(&[&args[..], &["--strategy", "cot", "--shots", "0", "--limit", "2"]].concat());
    assert_eq!(code, 0, "{stderr}");
    refused(&out, "are open");
}

/// Labels say that even lengths up to 100 are right: of them and of the others the figures are counted again from the rules.
#[test]
fn answers_are_judged_again_and_judges_are_measured_by_labels_without_asking_the_model_anything() {
    let dir = tempfile::tempdir().unwrap();
    let [out, again, labelled] = ["open", "again", "labelled"].map(|name| dir.path().join(name));
    let (model, panel, other) = (model(), [judge(first), judge(third)], judge(second));
    assert_eq!(eval(&model, &[&panel[0], &panel[1]], &out, &[]).2, 0);
    let before = std::fs::read(out.join("results.json")).unwrap();
    let (source, judge_name) = (out.display().to_string(), other.model());
    let to = again.display().to_string();
    let (stdout, stderr, code) = run(&["rejudge", &source, "--judge", &judge_name, "--out", &to]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("starter_open right by judge m "), "{stdout}");
    assert_eq!((model.n_asked(), other.n_asked(), panel[0].n_asked()), (12, 12, 12));
    let (first_run, second_run) = (read(&out.join("results.json")), read(&again.join("results.json")));
    share(&second_run["tasks"][0]["panel"]["majority"], n_right(|n| second(n) == Some(true)));
    for kept in ["model", "settings", "answers_sha256"] {
        assert_eq!(first_run[kept], second_run[kept]);
    }
    assert_eq!(first_run["tasks"][0]["overlap"], second_run["tasks"][0]["overlap"]);
    assert_eq!(std::fs::read(out.join("results.json")).unwrap(), before, "the judged run is not changed");

    let is_right = |n: usize| n.is_multiple_of(2) && n < 100;
    let labels: String = questions()
        .iter()
        .map(|row| {
            let n = row["question"].as_str().unwrap().len();
            let label = json!({ "task": "starter_open", "id": row["id"], "label": u8::from(is_right(n)), "answer": format!("It is number {n}.") });
            format!("{label}\n")
        })
        .collect();
    let file = dir.path().join("labels.jsonl");
    std::fs::write(&file, &labels).unwrap();
    let to = labelled.display().to_string();
    let (stdout, stderr, code) = run(&["rejudge", &source, "--labels", file.to_str().unwrap(), "--out", &to]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((model.n_asked(), panel[0].n_asked(), panel[1].n_asked()), (12, 12, 12), "the verdicts stand");
    let results = read(&labelled.join("results.json"));
    assert_eq!(results["tasks"][0]["panel"], first_run["tasks"][0]["panel"]);
    let errors = results["tasks"][0]["judge_errors"].as_array().unwrap();
    let votes = |n: usize| first(n) == Some(true) && third(n) == Some(true);
    let rules: [(&str, &dyn Fn(usize) -> bool); 3] =
        [("m", &|n| first(n) == Some(true)), ("m (2)", &|n| third(n) == Some(true)), ("majority", &votes)];
    for (error, (name, says_right)) in errors.iter().zip(rules) {
        let of = |label: bool, said: bool| n_right(|n| is_right(n) == label && says_right(n) == said) as f64;
        let (hit, spared) = (
            of(true, true) / (of(true, true) + of(true, false)),
            of(false, false) / (of(false, false) + of(false, true)),
        );
        assert_eq!((&error["judge"], &error["n_labelled"]), (&json!(name), &json!(12)));
        assert_eq!(error["sensitivity"]["value"].as_f64().unwrap(), hit);
        assert_eq!(error["specificity"]["value"].as_f64().unwrap(), spared);
        let corrected = (n_right(says_right) as f64 / 12.0 + spared - 1.0) / (hit + spared - 1.0);
        assert!((error["corrected"]["value"].as_f64().unwrap() - corrected.clamp(0.0, 1.0)).abs() < 1e-12, "{error}");
    }
    assert!(errors.len() == 3 && stdout.contains("the majority on 12 labelled answers"), "{stdout}");

    // A label of another answer, and one of a question that the run has not.
    for (bad, words) in [
        (labels.replacen("It is number", "It was number", 1), "labels.jsonl:1: the label is of another answer"),
        (labels.replacen("starter-open-02", "nobody", 1), "labels.jsonl:2: the run has no question nobody"),
    ] {
        std::fs::write(&file, bad).unwrap();
        let to = dir.path().join("refused").display().to_string();
        let (_, stderr, code) = run(&["rejudge", &source, "--labels", file.to_str().unwrap(), "--out", &to]);
        assert!(code != 0 && stderr.contains(words), "{stderr}");
        assert!(!dir.path().join("refused").exists());
    }
    let (_, stderr, code) = run(&["rejudge", &source, "--out", &to]);
    assert!(code == 2 && stderr.contains("nothing to do: give --judge MODEL"), "{stderr}");
}

/// A judge that takes every request and never answers, and whether it was asked.
fn silent() -> (Server, Arc<AtomicBool>) {
    let is_asked = Arc::new(AtomicBool::new(false));
    let inside = Arc::clone(&is_asked);
    let server = Server::start(move |_, _| {
        inside.store(true, Ordering::SeqCst);
        loop {
            std::thread::park();
        }
    });
    (server, is_asked)
}

/// Starts an evaluation before two judges of which the second never answers.
fn started(model: &Server, judges: [&Server; 2], out: &Path, stderr: Stdio) -> Child {
    let mut command = aloe();
    command.args(["eval", &model.model(), "--server-template", "--tasks", "starter_open", "--data", &starter()]);
    command.args(["--judge", &judges[0].model(), "--judge", &judges[1].model(), "--out", out.to_str().unwrap()]);
    command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap()
}

/// Kills it while it waits for the second judge: all answers and the first judge's verdicts stand in its log.
fn killed(model: &Server, judge: &Server, out: &Path) {
    let (silent, is_asked) = silent();
    let mut child = started(model, [judge, &silent], out, Stdio::null());
    while !is_asked.load(Ordering::SeqCst) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_asks_neither_model_nor_judge_again_what_they_have_said_and_another_judge_costs_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, out, changed] = ["whole", "open", "changed"].map(|name| dir.path().join(name));
    let model = model();
    assert_eq!(eval(&model, &[&judge(first), &judge(third)], &whole, &[]).2, 0);
    let killed_judge = judge(first);
    killed(&model, &killed_judge, &out);
    assert_eq!((model.n_asked(), killed_judge.n_asked()), (24, 12));
    // The same judge on another port: it knows nothing of what was asked before the kill.
    let (moved, last) = (judge(first), judge(third));
    let (_, stderr, code) = eval(&model, &[&moved, &last], &out, &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("going on from an interrupted run"), "{stderr}");
    assert_eq!((model.n_asked(), moved.n_asked(), last.n_asked()), (24, 0, 12));
    for name in ["results.json", "samples.jsonl"] {
        let bytes = |folder: &Path| std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(bytes(&whole), bytes(&out), "{name} of the killed run is another");
    }
    killed(&model, &judge(first), &changed);
    let other = judge(third);
    other.lists("other weights");
    let (_, stderr, code) = eval(&model, &[&other], &changed, &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((model.n_asked(), other.n_asked()), (36, 12), "another judge is no reason to answer again");
    let panel = &read(&changed.join("results.json"))["tasks"][0]["panel"];
    share(&panel["majority"], n_right(|n| third(n) == Some(true)));
}

#[test]
fn an_interrupt_while_a_judge_is_asked_says_where_the_same_command_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (silent, is_asked) = silent();
    let child = started(&model(), [&judge(first), &silent], &dir.path().join("open"), Stdio::piped());
    while !is_asked.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("the same command goes on from 12 answered questions"), "{stderr}");
}

/// Question texts go out as they stand in the file.
#[test]
fn openmedqa_is_asked_as_prompt_engine_asks_it_without_examples() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("openmedqa")).unwrap();
    let row = json!({"x": {"id": "medqa_4opt_test_0", "question": " Which organ?\n", "correct_answer": "The liver"}});
    std::fs::write(dir.path().join("openmedqa/openmedqa_test.json"), row.to_string()).unwrap();
    let model = Server::start(|_, _| text("The liver."));
    let (address, data, out) = (model.model(), dir.path().display().to_string(), dir.path().join("out"));
    let args = ["eval", &address, "--server-template", "--tasks", "openmedqa", "--protocol", "prompt-engine"];
    let (_, stderr, code) = run(&[&args[..], &["--data", &data, "--out", out.to_str().unwrap()]].concat());
    assert_eq!(code, 0, "{stderr}");
    let asked = &model.asked()[0].body;
    let system = "You are an expert medical assistant, dedicated to offering helpful, respectful, and truthful guidance. Your task is \
                  to carefully address the medical question provided below.";
    let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": " Which organ?\n"}]);
    assert_eq!((&asked["messages"], &asked["max_tokens"]), (&messages, &json!(1000)));
    assert_eq!(read(&out.join("results.json"))["settings"]["protocol"], "prompt-engine");
}

/// Stories260K answers; its context of 512 is too small to judge with, and SmolLM2 writes no whole verdict in six tokens.
#[test]
fn a_judge_in_this_process_that_gives_no_verdict_is_counted_and_two_local_runs_are_byte_for_byte_alike() {
    let (Some(stories), Ok(models)) = (stories(), std::env::var("ALOE_MODELS")) else {
        assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
        return eprintln!("not run: ALOE_MODELS is not set");
    };
    let dir = tempfile::tempdir().unwrap();
    let small = stories_with_template(&stories, &dir.path().join("small")).display().to_string();
    let judge = format!("{models}/smollm2-135m-instruct-q4_1/model.gguf");
    let run_into = |judge: &str, name: &str| {
        let (stories, starter, to) =
            (stories.display().to_string(), starter(), dir.path().join(name).display().to_string());
        let args =
            ["eval", &stories, "--tasks", "starter_open", "--data", &starter, "--protocol", "lm-eval", "--limit", "2"];
        let more = ["--set", "max_new_tokens=12", "--set", "judge_max_new_tokens=6", "--judge", judge, "--out", &to];
        run(&[&args[..], &more].concat())
    };
    let (_, stderr, code) = run_into(&small, "a");
    assert!(code == 2 && stderr.contains("the judge small refused all 2 answers"), "{stderr}");
    let files = ["a", "b"].map(|name| {
        let (stdout, stderr, code) = run_into(&judge, name);
        assert_eq!(code, 0, "{stderr}");
        assert!(
            stdout.contains("judge model.gguf: right not stated: 0.0 to 100.0 %")
                && stdout.contains("no verdict on 2 of 2"),
            "{stdout}"
        );
        assert_eq!(stderr.contains("going on from an interrupted run"), name == "a", "answers were kept: {stderr}");
        ["results.json", "samples.jsonl"].map(|file| std::fs::read_to_string(dir.path().join(name).join(file)).unwrap())
    });
    assert_eq!(files[0], files[1]);
    for sample in files[0][1].lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(!sample["answer"].as_str().unwrap().contains("\n\n"), "{sample}");
        assert!(sample["prompt_ids"].as_array().unwrap().len() > 20, "{sample}");
    }
}

#[test]
fn what_does_not_go_together_is_refused_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (out, model, one) = (dir.path().join("open"), model(), judge(first));
    let refused = |judges: &[&Server], more: &[&str], words: &str| {
        let (_, stderr, code) = eval(&model, judges, &out, more);
        assert!(code == 2 && stderr.contains(words), "{words:?} is not in {stderr}");
    };
    refused(&[], &["--tasks", "starter_mcqa"], "starter_mcqa has options");
    refused(&[&one, &one], &[], "is named twice");
    refused(&[], &["--strategy", "cot"], "strategy \"cot\" reads an option");
    refused(&[], &["--protocol", "prompt-engine"], "use --protocol aloe");
    let labels = root().join("starter/open/starter_open_test.jsonl").display().to_string();
    refused(&[], &["--labels", &labels], "starter_open_test.jsonl:1: column `label`");
    let choices = ["eval", &model.model(), "--tasks", "starter_mcqa", "--data", &starter(), "--judge", &one.model()];
    let (_, stderr, code) = run(&[&choices[..], &["--out", out.to_str().unwrap()]].concat());
    assert!(code == 2 && stderr.contains("--judge is for open answers, tasks openmedqa"), "{stderr}");
    assert_eq!((model.n_asked(), one.n_asked()), (0, 0));
    assert!(!out.exists());
}
