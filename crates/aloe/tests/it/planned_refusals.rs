//! What `aloe plan` refuses because `aloe run` would: training stages over rows that are at hand, rendered as they will be.

use crate::{root, run, stories};
use serde_json::json;
use std::path::Path;

/// Twelve rows, the last of 700 words and more, and 24 pairs.
fn write_rows(dir: &Path) {
    let turn = |role: &str, content: String| json!({"role": role, "content": content});
    let row = |at: usize| {
        let answer = if at == 11 { "word ".repeat(700) } else { format!("It is one more than {}.", at + 1) };
        let messages = [turn("user", format!("What is {at}?")), turn("assistant", answer)];
        format!("{}\n", json!({"id": format!("q{at}"), "messages": messages}))
    };
    let pair = |at: usize| {
        let prompt = [turn("user", format!("What is {at}?"))];
        let answer = |text: &str| [turn("assistant", format!("{text} {at}."))];
        format!("{}\n", json!({"prompt": prompt, "chosen": answer("It is"), "rejected": answer("No idea about")}))
    };
    let equal = |at: usize| pair(at).replace("No idea about", "It is");
    let open = json!({"id": "open", "messages": [turn("user", "hi".into())]});
    for (name, text) in [
        ("rows.jsonl", (0..12).map(row).collect::<String>()),
        ("open.jsonl", format!("{open}\n")),
        ("pairs.jsonl", (0..24).map(pair).collect()),
        ("equal.jsonl", (0..24).map(equal).collect()),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

/// The stage of supervised training stands on line 4, that of preferences on line 12.
fn recipe(model: &Path) -> String {
    format!(
        "name = \"r\"\nseed = 0\ndtype = \"f32\"\n[[stage]]\nkind = \"sft\"\nname = \"s\"\nfrom = {{ model = {model:?}, data = \"./rows.jsonl\" }}\n\
         chat_template = \"alpaca\"\nmax_len = 110\nbatch_size = 2\nepochs = 1\n[[stage]]\nkind = \"dpo\"\nname = \"d\"\n\
         from = {{ model = \"s\", data = \"./pairs.jsonl\" }}\nmax_len = 200\nchunks = 3\n"
    )
}

fn plan(dir: &Path, text: &str) -> (String, String, i32) {
    let path = dir.join("r.toml");
    std::fs::write(&path, text).unwrap();
    run(&["plan", path.to_str().unwrap(), "--out", dir.join("out").to_str().unwrap()])
}

#[test]
fn a_plan_refuses_by_the_line_of_the_stage_what_the_run_would_refuse_of_rows_at_hand() {
    let Some(model) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_rows(dir);
    let whole = recipe(&model);
    // The second stage takes the template that the first one is given.
    let (stdout, stderr, code) = plan(dir, &whole);
    assert!(code == 0 && stdout.contains("no mistakes") && !stdout.contains("Note:"), "{stdout}{stderr}");
    let cases = [
        ("chat_template = \"alpaca\"\n", "", 4, "stage \"s\": ", "has no chat template"),
        ("\"alpaca\"", "\"alpacca\"", 4, "stage \"s\": ", "alpacca"),
        ("./rows.jsonl", "./open.jsonl", 4, "stage \"s\": training rows: 0 % of the tokens are trained on", ""),
        ("max_len = 110", "max_len = 4000", 4, "rows.jsonl:12 (q11): has ", "more than the model's context of 512"),
        ("max_len = 110", "max_len = 8", 4, "none is left to train on (12 too long for max_len = 8", ""),
        ("epochs = 1\n", "epochs = 1\nlora = { rank = 65 }\n", 4, "stage \"s\": lora.rank = 65", "_proj.weight ("),
        ("./pairs.jsonl", "./equal.jsonl", 12, "stage \"d\": preference pairs: 0 left", "24 with equal answers"),
        ("chunks = 3", "chunks = 30", 12, "stage \"d\": preference pairs: 24 left to train on for 30 chunks", ""),
        ("max_len = 200", "max_len = 20", 12, "24 too long for max_len = 20", ""),
        ("./pairs.jsonl", "./rows.jsonl", 12, "rows.jsonl:1: missing field `prompt`", ""),
    ];
    for (from, to, line, told, more) in cases {
        let (stdout, stderr, code) = plan(dir, &whole.replace(from, to));
        let place = format!("r.toml:{line}: stage ");
        let found = stderr.lines().find(|found| found.contains(told)).unwrap_or_default();
        assert!(code == 2 && found.contains(&place) && found.contains(more), "{from} -> {to}: {code} {stdout}{stderr}");
    }
    // Without a template neither stage can begin.
    let (_, stderr, _) = plan(dir, &whole.replace("chat_template = \"alpaca\"\n", ""));
    assert!(stderr.contains("2 mistakes in the recipe") && stderr.contains("r.toml:11: stage \"d\": "), "{stderr}");
    assert!(!dir.join("out").exists(), "a plan writes nothing");
}

/// A whole run ends before its first stage where a later one is sure to be refused; the first stage alone runs.
#[test]
fn a_run_begins_no_stage_where_a_later_one_would_be_refused() {
    let Some(model) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_rows(dir);
    let (path, out) = (dir.join("r.toml"), dir.join("out"));
    let start = |more: &[&str]| run(&[&["run", path.to_str().unwrap(), "--out", out.to_str().unwrap()], more].concat());
    std::fs::write(&path, recipe(&model).replace("./pairs.jsonl", "./equal.jsonl")).unwrap();
    let (stdout, stderr, code) = start(&[]);
    let told =
        stderr.contains("nothing was run") && stderr.contains("r.toml:12: stage \"d\": preference pairs: 0 left");
    assert!(code == 2 && told && !out.exists(), "{code} {stdout}{stderr}");
    let (stdout, stderr, code) = start(&["--stage", "s"]);
    assert!(code == 0 && out.join("s/record.json").exists(), "{stdout}{stderr}");
    let (stdout, stderr, code) = start(&["--stage", "d"]);
    assert!(code == 2 && stderr.contains("preference pairs: 0 left"), "{stdout}{stderr}");
    // What is done is not refused, and is told apart in the plan from what will be made anew.
    std::fs::write(&path, recipe(&model)).unwrap();
    let (stdout, stderr, code) = start(&[]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let has_output = |text: &str| {
        let (stdout, stderr, code) = plan(dir, text);
        assert_eq!(code, 0, "{stderr}");
        let note = |stage: &str| {
            let line = stdout.lines().find(|line| line.starts_with(stage)).unwrap_or_default();
            line.split_once("has output").map(|(_, rest)| rest.to_owned())
        };
        [note("s "), note("d ")].map(|note| note.expect("each has output"))
    };
    let (current, other) = (String::new(), ", of other settings".to_owned());
    assert_eq!(has_output(&recipe(&model)), [current.clone(), current.clone()]);
    assert_eq!(has_output(&recipe(&model).replace("max_len = 200", "max_len = 199")), [current, other.clone()]);
    assert_eq!(has_output(&recipe(&model).replace("epochs = 1", "epochs = 2")), [other.clone(), other]);
}

/// Rows that a data stage made count as the run's as long as it would not make them anew.
#[test]
fn a_plan_refuses_by_a_finished_data_stages_rows_and_tells_by_those_that_are_to_be_made() {
    let Some(model) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::copy(root().join("starter/sft/general.jsonl"), dir.join("source.jsonl")).unwrap();
    std::fs::copy(root().join("starter/dpo/pairs.jsonl"), dir.join("preferences.jsonl")).unwrap();
    let data = |name: &str, more: &str, file: &str| {
        format!(
            "[[stage]]\nkind = \"data\"\nname = \"{name}\"\ndecontaminate = []\n{more}\
             sources = [{{ name = \"g\", path = \"{file}\", licence = \"mit\", max_rows = 10 }}]\n"
        )
    };
    let text = format!(
        "name = \"r\"\ndtype = \"f32\"\n{}{}[[stage]]\nkind = \"sft\"\nname = \"s\"\nfrom = {{ model = {model:?}, data = \"rows\" }}\n\
         chat_template = \"alpaca\"\nmax_len = 8\nepochs = 1\n[[stage]]\nkind = \"dpo\"\nname = \"d\"\n\
         from = {{ model = \"s\", data = \"pairs\" }}\nchunks = 1000\n",
        data("rows", "", "source.jsonl"),
        data("pairs", "output = \"pairs\"\n", "preferences.jsonl")
    );
    let (stdout, stderr, code) = plan(dir, &text);
    assert!(code == 0 && !stdout.contains("stage \"s\": "), "nothing is known of its rows: {stdout}{stderr}");
    assert!(stdout.contains("Note: stage \"d\": about 10 pairs for 1000 chunks"), "{stdout}");
    let (path, out) = (dir.join("r.toml"), dir.join("out"));
    let made = ["data", "run", "--recipe", path.to_str().unwrap(), "--stage", "rows", "--out", out.to_str().unwrap()];
    let (_, stderr, code) = run(&made);
    assert_eq!(code, 0, "{stderr}");
    let (stdout, stderr, code) = plan(dir, &text);
    assert!(code == 2 && stderr.contains("r.toml:14: stage \"s\": training rows: none is left"), "{stdout}{stderr}");
    let mut source = std::fs::read_to_string(dir.join("source.jsonl")).unwrap();
    source.push_str("{\"instruction\": \"Name a colour.\", \"output\": \"Blue.\"}\n");
    std::fs::write(dir.join("source.jsonl"), source).unwrap();
    let (stdout, stderr, code) = plan(dir, &text);
    let told = "Note: stage \"s\": training rows: none is left to train on";
    assert!(code == 0 && stdout.contains(told) && stdout.contains("the run may refuse it"), "{stdout}{stderr}");
}
