//! Training as a user drives it: what a stage writes to be watched, what it refuses and why, and what it never loses.

use crate::road::digests;
use crate::{aloe, root, run, stories};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A folder with rows, and the model they are trained on.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) model: PathBuf,
}

fn row(question: &str, answer: &str) -> String {
    let messages = serde_json::json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
    format!("{}\n", serde_json::json!({ "messages": messages }))
}

impl Bench {
    pub(crate) fn new(rows: &str) -> Option<Self> {
        let bench = Self { dir: tempfile::tempdir().unwrap(), model: stories()? };
        std::fs::write(bench.at("rows.jsonl"), rows).unwrap();
        Some(bench)
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn args(&self, out: &str, settings: &[&str]) -> Vec<String> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut args =
            vec!["sft".into(), "--model".into(), text(&self.model), "--data".into(), text(&self.at("rows.jsonl"))];
        args.extend(["--out".into(), text(&self.at(out)), "--dtype".into(), "f32".into(), "--json".into()]);
        let common = ["chat_template=alpaca", "max_len=64", "batch_size=1", "max_steps=6"];
        let is_given =
            |setting: &&&str| !settings.iter().any(|other| other.split('=').next() == setting.split('=').next());
        for setting in common.iter().filter(is_given).chain(settings) {
            args.extend(["--set".to_owned(), (*setting).to_owned()]);
        }
        args
    }

    /// Standard output, standard error and exit code.
    pub(crate) fn sft(&self, out: &str, settings: &[&str]) -> (String, String, i32) {
        let args = self.args(out, settings);
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn some_rows() -> String {
    (0..12).map(|at| row(&format!("What is {at}?"), &format!("It is one more than {}.", at + 1))).collect()
}

#[test]
fn a_training_is_told_by_the_step_and_all_but_its_clock_times_is_written_again_byte_for_byte() {
    let Some(bench) = Bench::new(&some_rows()) else { return };
    let settings = ["sample_every=3", "sample_prompts=[\"What is 3?\"]", "sample_tokens=5", "neftune_alpha=5.0"];
    for out in ["one/sft", "two/sft"] {
        let (_, stderr, code) = bench.sft(out, &settings);
        assert_eq!(code, 0, "{stderr}");
    }
    assert_eq!(digests(&bench.at("one")), digests(&bench.at("two")));
    let out = bench.at("one/sft");
    let (metrics, timing) = (lines(&out.join("metrics.jsonl")), lines(&out.join("timing.jsonl")));
    let steps: Vec<&Value> = metrics.iter().filter(|line| line.get("lr").is_some()).collect();
    assert_eq!((steps.len(), timing.len()), (6, 6));
    for (at, (step, time)) in steps.iter().zip(&timing).enumerate() {
        assert!(step["step"] == at + 1 && time["step"] == at + 1);
        assert!(step["loss"].as_f64().unwrap() > 0.0 && step["grad_norm"].as_f64().unwrap() > 0.0);
        let tokens_per_s = step["tokens"].as_f64().unwrap() / time["step_s"].as_f64().unwrap();
        assert!((tokens_per_s - time["tokens_per_s"].as_f64().unwrap()).abs() < 1e-6 * tokens_per_s);
        let share = time["share_of_limit"].as_f64().unwrap();
        assert!(share > 0.0 && share < 1.5, "{share}");
    }
    assert_eq!(std::fs::read_dir(out.join("tensorboard")).unwrap().count(), 1);
    let samples = lines(&out.join("samples.jsonl"));
    assert_eq!(samples.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 3, 6]);
    // The stage's folder is one checkpoint to all its readers, and merging and evaluating it goes through the same ids.
    let (stdout, stderr, code) = run(&["parity", out.to_str().unwrap(), "--json"]);
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 0, "{stdout}{stderr}");
    let made = found["checks"].as_array().unwrap().iter().filter(|check| check["agrees"] == true).count();
    assert_eq!((made, &found["n_disagreements"]), (12, &Value::from(0)), "{stdout}");
}

/// A child that trains until it has noted three steps, then is interrupted.
fn interrupted(bench: &Bench, settings: &[&str]) {
    let child = aloe().args(bench.args("sft", settings)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let started = std::time::Instant::now();
    let path = bench.at(".sft.partial/metrics.jsonl");
    while std::fs::read_to_string(&path).unwrap_or_default().lines().count() < 3 {
        assert!(started.elapsed().as_secs() < 60, "{} does not grow", path.display());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_unfinished_training_is_never_lost_to_other_settings_or_other_data_and_goes_on_with_its_own() {
    let Some(bench) = Bench::new(&some_rows()) else { return };
    let own = ["max_steps=400", "checkpoint_every=0", "lr=1e-4"];
    interrupted(&bench, &own);
    let state = || digests(&bench.at(".sft.partial/state"));
    let before = state();
    let check = |settings: &[&str], said: &str| {
        let (_, stderr, code) = bench.sft("sft", settings);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(said) && stderr.contains("goes on after step"), "{stderr}");
        assert_eq!(state(), before, "{said}: the checkpoint was touched");
    };
    check(&["max_steps=400", "checkpoint_every=0", "lr=2e-4"], "lr was 0.0001, is now 0.0002");
    check(
        &["max_steps=400", "checkpoint_every=0", "lr=1e-4", "neftune_alpha=5.0"],
        "neftune_alpha was 0.0, is now 5.0",
    );
    let rows = some_rows();
    std::fs::write(bench.at("rows.jsonl"), rows.replace("It is", "Is it")).unwrap();
    check(&own, "the input `data` has other content");
    std::fs::write(bench.at("rows.jsonl"), rows).unwrap();
    // How often it saves may change.
    let (stdout, stderr, code) = bench.sft("sft", &["max_steps=400", "checkpoint_every=50", "lr=1e-4"]);
    assert_eq!(code, 0, "{stderr}");
    let results: Value = serde_json::from_str(&stdout).unwrap();
    assert!(results["sft"]["resumed_from_step"].as_u64().unwrap() > 0);
    let timing = lines(&bench.at("sft/timing.jsonl"));
    assert_eq!(
        timing.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        (1..=400).collect::<Vec<_>>()
    );
}

#[test]
fn rows_and_settings_that_cannot_be_trained_on_are_refused_early_with_the_reason_and_leave_nothing() {
    let Some(bench) = Bench::new("") else { return };
    let no_end = bench.at("no-end.jinja");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    std::fs::write(&no_end, template).unwrap();
    let no_end = format!("chat_template={}", no_end.display());
    let good = row("Who?", "Lily.");
    let no_prompt = bench.at("no-prompt.jinja");
    std::fs::write(&no_prompt, "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}")
        .unwrap();
    let no_prompt = format!("chat_template={}", no_prompt.display());
    let masked = "{\"messages\": [{\"role\": \"user\", \"content\": \"Who?\"}]}\n";
    let long = |n: usize| row(&"a little girl ".repeat(n), "Lily.");
    let cases: [(&str, String, &[&str], &[&str]); 12] = [
        (
            "no prompt of a chat",
            good.clone(),
            &[&no_prompt],
            &["rows.jsonl:1: ", "no-prompt.jinja", "add_generation_prompt"],
        ),
        ("a share of no row", good.repeat(3), &["held_out_share=0.3"], &["held_out_share = 0.3 of 3 rows", "0.34"]),
        ("a rate of 0", good.clone(), &["max_steps=1", "warmup_steps=1"], &["leaves nothing to train"]),
        (
            "evaluations of nothing",
            good.clone(),
            &["eval_every=1"],
            &["held-out rows: there are none to evaluate for eval_every;"],
        ),
        ("all masked", masked.repeat(3), &[], &["training rows: 0 % of the tokens"]),
        ("no end of turn", good.clone(), &[&no_end], &["no-end.jinja", "end-of-turn"]),
        ("prompts fill the row", long(60), &[], &["none is left to train on (1 too long for max_len = 64"]),
        (
            "a prompt fills the context",
            good.clone() + &long(300),
            &["max_len=4096"],
            &["rows.jsonl:2: has ", "context of 512"],
        ),
        (
            "a sample prompt fills the context",
            good.clone(),
            &["sample_every=1", "sample_tokens=510", "sample_prompts=[\"x\"]"],
            &["sample_prompts: \"x\"", "context of 512"],
        ),
        ("patience without evaluations", good.clone(), &["patience=2"], &["patience = 2: needs eval_every"]),
        (
            "patience without held-out rows",
            good.clone(),
            &["patience=2", "eval_every=1"],
            &["held-out rows: ", "held_out_share"],
        ),
        ("two warm-ups", good, &["warmup_steps=2", "warmup_ratio=0.1"], &["warmup_ratio and warmup_steps"]),
    ];
    for (case, rows, settings, said) in cases {
        std::fs::write(bench.at("rows.jsonl"), rows).unwrap();
        let (_, stderr, code) = bench.sft("runs/sft", settings);
        assert_eq!(code, 2, "{case}: {stderr}");
        assert!(stderr.starts_with("error: ") && said.iter().all(|part| stderr.contains(part)), "{case}: {stderr}");
        assert!(!bench.at("runs").exists(), "{case}: something was left");
    }
}

/// Ids of a file that no data stage wrote may repeat: each line is a row all the same, and an error has more than one.
#[test]
fn rows_that_share_an_id_are_rows_of_their_own_in_the_errors_of_held_out_figures() {
    let rows = |same: bool| -> String {
        let with_id = |(at, line): (usize, &str)| {
            let id = if same { "q".to_owned() } else { format!("q{at}") };
            format!("{{\"id\": \"{id}\", {}\n", &line[1..])
        };
        some_rows().lines().enumerate().map(with_id).collect()
    };
    let Some(bench) = Bench::new(&rows(true)) else { return };
    let errors = |out: &str| {
        let (stdout, stderr, code) = bench.sft(out, &["held_out_share=0.5"]);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<Value>(&stdout).unwrap()["sft"]["held_out_nll_se_before"].clone()
    };
    let same = errors("same");
    std::fs::write(bench.at("rows.jsonl"), rows(false)).unwrap();
    assert!(same.as_f64().unwrap() > 0.0 && same == errors("unique"), "{same}");
}

#[test]
fn values_that_are_not_finite_stop_with_exit_code_3_and_the_rows_and_save_no_weights() {
    let Some(bench) = Bench::new(&some_rows()) else { return };
    let (_, stderr, code) = bench.sft("sft", &["lr=1e30", "max_steps=20", "checkpoint_every=1"]);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("is not finite") && stderr.contains("step "), "{stderr}");
    assert!(!bench.at("sft").exists());
}

/// 80 rows of one kind, each a packed row of its own, and a last, shorter one of noise.
#[test]
fn a_spike_stops_with_its_rows_and_the_state_before_it_and_the_same_command_goes_on_without_it() {
    let tale = "Once upon a time, there was a little girl named Lily. She loved to play";
    let mut rows: String = (0..80).map(|_| row("Tell me a tale.", tale)).collect();
    rows.push_str(&row("Tell me a tale.", "Q#9 zX! kK@ 77"));
    let Some(bench) = Bench::new(&rows) else { return };
    let settings = |policy: &'static str| {
        ["max_len=110", "max_steps=81", "shuffle=false", "schedule=constant", "checkpoint_every=0", "lr=1e-3", policy]
    };
    let (_, stderr, code) = bench.sft("sft", &settings("on_spike=stop"));
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("step 81: the loss is") && stderr.contains("rows.jsonl:81"), "{stderr}");
    let (stdout, stderr, code) = bench.sft("sft", &settings("on_spike=skip"));
    assert_eq!(code, 0, "{stderr}");
    let results: Value = serde_json::from_str(&stdout).unwrap();
    let found = ["resumed_from_step", "n_steps", "n_spikes"].map(|key| results["sft"][key].as_u64().unwrap());
    assert_eq!(found, [80, 81, 1]);
}

#[test]
fn parity_holds_a_checkpoint_against_transformers_and_fails_where_an_id_or_a_number_differs() {
    let Some(stories) = stories() else { return };
    let golden = root().join("crates/aloe/tests/golden/parity_stories260k.json");
    let text = std::fs::read_to_string(&golden).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let path = dir.path().join("fixture.json");
        std::fs::write(&path, text).unwrap();
        let args = ["parity", stories.to_str().unwrap(), "--fixture", path.to_str().unwrap(), "--json"];
        let (stdout, stderr, code) = run(&args);
        let wrong: Vec<String> = serde_json::from_str::<Value>(&stdout).map_or(Vec::new(), |found| {
            let checks = found["checks"].as_array().unwrap().iter().filter(|check| check["agrees"] == false);
            checks.map(|check| format!("{} {}", check["what"], check["dtype"])).collect()
        });
        (wrong, stderr, code)
    };
    let (wrong, stderr, code) = check(&text);
    assert_eq!((wrong.len(), code), (0, 0), "{wrong:?}{stderr}");
    let mut fixture: Value = serde_json::from_str(&text).unwrap();
    let last = fixture["cases"][0]["ids"].as_array().unwrap().len() - 1;
    fixture["cases"][0]["ids"][last] = 7.into();
    let (wrong, _, code) = check(&fixture.to_string());
    assert!(code == 1 && wrong.len() == 1 && wrong[0].contains("ids: transformers"), "{wrong:?}");
    let mut fixture: Value = serde_json::from_str(&text).unwrap();
    let logit = fixture["cases"][1]["rows"][4]["logits"][2].as_f64().unwrap();
    fixture["cases"][1]["rows"][4]["logits"][2] = (logit + 0.01).into();
    let (wrong, stderr, code) = check(&fixture.to_string());
    assert!(
        code == 1 && wrong.len() == 1 && wrong[0].contains("transformers") && wrong[0].contains("f32"),
        "{wrong:?}"
    );
    assert!(stderr.contains("1 of"), "{stderr}");
    let (_, stderr, code) = check("{\"format\": \"x\"}");
    assert!(code == 2 && stderr.contains("oracles/parity_fixture.py"), "{stderr}");
}
