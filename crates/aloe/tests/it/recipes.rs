//! Recipes: the shipped ones parse, and every mistake of a bad one is shown before anything runs.

use crate::{root, run};

fn mistakes(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.toml");
    std::fs::write(&path, text).unwrap();
    let out = dir.path().join("out");
    let (_, stderr, code) = run(&["run", path.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(code, 2, "{stderr}");
    assert!(!out.exists(), "a recipe with mistakes left files");
    stderr
}

#[test]
fn every_shipped_recipe_is_planned_without_a_mistake() {
    for name in ["quickstart", "llama3-aloe-8b", "llama3-aloe-70b", "smollm2-medical", "qwen-control"] {
        let needs: &[&str] = match name {
            "smollm2-medical" => &["ALOE_DATA"],
            "qwen-control" => &["ALOE_DATA", "ALOE_MODELS"],
            _ => &[],
        };
        if let Some(missing) = needs.iter().find(|variable| std::env::var(variable).is_err()) {
            eprintln!("not run: {missing} is not set");
            continue;
        }
        let path = root().join("recipes").join(format!("{name}.toml"));
        let (stdout, stderr, code) = run(&["plan", path.to_str().unwrap()]);
        assert_eq!(code, 0, "{name}: {stderr}");
        assert!(stdout.contains("no mistakes") && stdout.contains("dpo-2"), "{stdout}");
    }
}

/// 16 bytes x 70.55e9 / 32 GPUs = 35.3 GB, and 36 GB that are not divided (`oracles/scale_on_paper.py`), where 0.92 x 64 are there.
#[test]
fn a_plan_says_what_a_recipe_costs_on_a_site_and_what_does_not_fit_there() {
    let cluster = root().join("recipes/cluster-4xh100.toml");
    let plan = |name: &str, more: &[&str]| {
        let path = root().join("recipes").join(name);
        let args = [&["plan", path.to_str().unwrap(), "--cluster", cluster.to_str().unwrap()], more].concat();
        let (stdout, stderr, code) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        stdout
    };
    let text = plan("llama3-aloe-70b.toml", &[]);
    assert!(text.contains("sft: needs 71 GB of each GPU, which has 64; ask for more nodes"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&plan("llama3-aloe-8b.toml", &["--json"])).unwrap();
    let stages = json["at_site"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["sft", "dpo-1", "dpo-2", "eval", "medprompt", "redteam"]);
    // 4 epochs of 0.5 G tokens at 6 x 8.03e9 + 6 x 32 x 4096 x 8192 FLOP on 32 x 0.25 x 989e12: 3,800 s or so.
    let seconds = stages[0]["seconds"].as_f64().unwrap();
    let expected = 2e9 * (6.0 * 8.030_261_248e9 + 6.0 * 32.0 * 4096.0 * 8192.0) / (32.0 * 0.25 * 989e12);
    assert!((seconds / expected - 1.0).abs() < 0.01, "{seconds} {expected}");
}

#[test]
fn three_mistakes_of_a_recipe_are_all_shown_with_their_lines() {
    let text = "name = \"x\"\n\n[[stage]]\nkind = \"sft\"\nname = \"a\"\nfrom = { model = \"nowhere\", data = \"d/\" }\nlr = \"fast\"\nepochz = 2\n";
    let stderr = mistakes(text);
    for (line, word) in [(6, "nowhere"), (7, "lr"), (8, "epochz")] {
        assert!(
            stderr.lines().any(|found| found.contains(&format!(":{line}:")) && found.contains(word)),
            "{word}: {stderr}"
        );
    }
}

#[test]
fn an_unknown_kind_a_reused_name_and_a_missing_input_are_named() {
    let text = "name = \"x\"\n[[stage]]\nkind = \"bake\"\nname = \"a\"\n[[stage]]\nkind = \"pull\"\nname = \"a\"\nsource = \"x.gguf\"\n\
                [[stage]]\nkind = \"eval\"\nname = \"e\"\ntasks = [\"medqa_4options\"]\ndata = \"d\"\n";
    let stderr = mistakes(text);
    assert!(stderr.contains("\"bake\"") && stderr.contains("two stages are called \"a\""), "{stderr}");
    assert!(stderr.contains("needs the input `model`"), "{stderr}");
}

#[test]
fn a_data_file_that_is_not_there_stops_the_run_before_its_first_stage() {
    let text = "name = \"x\"\n[[stage]]\nkind = \"pull\"\nname = \"base\"\nsource = \"x.gguf\"\n[[stage]]\nkind = \"data\"\nname = \"d\"\n\
                sources = [{ name = \"s\", path = \"nothing.jsonl\", licence = \"mit\" }]\n";
    let stderr = mistakes(text);
    assert!(stderr.contains("nothing.jsonl") && stderr.contains("nothing was run"), "{stderr}");
}

#[test]
fn an_unset_environment_variable_is_one_mistake_however_often_it_is_named() {
    let text = "name = \"x\"\n[[stage]]\nkind = \"pull\"\nname = \"base\"\nsource = \"$ALOE_NO_SUCH_VARIABLE/x\"\n[[stage]]\nkind = \"data\"\n\
                name = \"d\"\ndecontaminate = [\"$ALOE_NO_SUCH_VARIABLE/a\",\n  \"$ALOE_NO_SUCH_VARIABLE/b\"]\nepochz = 1\nsources = []\n";
    let stderr = mistakes(text);
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("ALOE_NO_SUCH_VARIABLE")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    for part in [":5:", "3 lines name it", "export ALOE_NO_SUCH_VARIABLE=/"] {
        assert!(lines[0].contains(part), "{part}: {stderr}");
    }
    assert!(stderr.contains("epochz"), "the other mistakes are shown too: {stderr}");
}

fn plan(arguments: &[&str]) -> serde_json::Value {
    let path = root().join("recipes/quickstart.toml");
    let (stdout, stderr, code) = run(&[&["plan", path.to_str().unwrap(), "--json"], arguments].concat());
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

/// Against what the quickstart took (LOG.md, 2026-11-23): 78 questions, 120 + 30 prompts, 2 min 54 s in all; 160, 89, 67 and 59 rows after
/// cleaning, of which the plan knows only caps and hold-out. Memory of training: 2026-11-30, nothing but the number of weights being known.
/// That of evaluations is of weights of two bytes, which a plan counts; a processor that multiplies bf16 holds 1.5 (328 MiB where 387 stands).
#[test]
fn a_plan_of_the_quickstart_agrees_with_what_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let plan = plan(&["--out", out.to_str().unwrap()]);
    assert!(!out.exists(), "a plan writes nothing");
    let stage =
        |name: &str| plan["stages"].as_array().unwrap().iter().find(|row| row["stage"] == name).unwrap().clone();
    let number = |name: &str, key: &str| stage(name)[key].as_f64().unwrap_or_else(|| panic!("{name} has no {key}"));
    assert_eq!((number("eval-before", "rows"), number("eval-before", "generated")), (78.0, 0.0));
    assert_eq!((number("sc-cot-after", "rows"), number("sc-cot-after", "generated")), (20.0, 20.0 * 5.0 * 80.0));
    assert_eq!(number("medprompt-after", "generated"), (20.0 * 5.0 + 16.0 * 2.0) * 80.0);
    assert_eq!((number("redteam-after", "rows"), number("redteam-after", "generated")), (150.0, 150.0 * 48.0));
    for (name, rows) in [("data-medical", 160.0), ("data-general", 89.0), ("pairs-1", 67.0), ("pairs-2", 59.0)] {
        let share = number(name, "rows") / rows;
        assert!((0.8..1.25).contains(&share), "{name}: {share}");
    }
    assert_eq!(number("sft-medical", "tokens"), 2.0 * number("data-medical", "tokens"));
    for (name, mib) in [
        ("sft-medical", 3185.0),
        ("dpo-1", 3104.0),
        // From f32 masters, whose file is twice as large.
        ("dpo-2", 3259.0),
        ("merge", 63.0),
        ("eval-before", 387.0),
        ("medprompt-after", 511.0),
    ] {
        let share = number(name, "memory_bytes") / (mib * 1024.0 * 1024.0);
        assert!((0.85..1.15).contains(&share), "{name}: {share} of the measured memory");
    }
    assert_eq!(plan["peak_bytes"].as_f64().unwrap(), number("dpo-2", "memory_bytes"), "the largest stage decides");
    let total: f64 = plan["stages"].as_array().unwrap().iter().filter_map(|row| row["local_s"].as_f64()).sum();
    assert!((87.0..348.0).contains(&total), "{total} s, measured 174 s");
}

#[test]
fn a_finished_data_stage_is_planned_as_it_wrote_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, out) = (root().join("recipes/quickstart.toml"), dir.path().to_str().unwrap().to_owned());
    let args = ["data", "run", "--recipe", recipe.to_str().unwrap(), "--stage", "data-medical", "--out", &out];
    let (_, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let n_rows = std::fs::read_to_string(dir.path().join("data-medical/train.jsonl")).unwrap().lines().count();
    let plan = plan(&["--out", &out]);
    let row = plan["stages"].as_array().unwrap().iter().find(|row| row["stage"] == "data-medical").unwrap();
    assert_eq!((row["rows"].as_u64(), row["has_output"].as_bool()), (Some(n_rows as u64), Some(true)));
}

/// By hand: 60 questions of the starter, one token each where a server is asked; here letters are scored, and nothing is drawn. A data folder
/// that is not at hand is counted by what the recipe expects.
#[test]
fn a_plan_counts_the_token_that_a_server_draws_for_a_next_letter() {
    let dir = tempfile::tempdir().unwrap();
    let starter = root().join("starter").display().to_string();
    let generated = |model: &str, data: &str, strategy: &str| {
        let text = format!(
            "name = \"x\"\n[[stage]]\nkind = \"eval\"\nname = \"e\"\nfrom = {{ model = \"{model}\" }}\ndata = \"{data}\"\n\
             tasks = [\"starter_mcqa\"]\nstrategy = \"{strategy}\"\nexpect = {{ rows = 7 }}\n"
        );
        let path = dir.path().join("x.toml");
        std::fs::write(&path, text).unwrap();
        let (stdout, stderr, code) = run(&["plan", path.to_str().unwrap(), "--json"]);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap()["stages"][0]["generated"].clone()
    };
    let served = "http://127.0.0.1:9/v1#m";
    assert_eq!(generated(served, &starter, "next-letter"), 60);
    assert_eq!(generated(served, "/nowhere", "next-letter"), 7);
    assert_eq!(generated(served, &starter, "loglikelihood"), 0);
    assert_eq!(generated("/nowhere/model", &starter, "next-letter"), 0);
}

/// A finished stage that took ten times as long as the reference machine would: the others of its kind are planned ten times slower,
/// other kinds are not.
#[test]
fn a_plan_takes_its_speed_from_finished_stages_of_the_same_kind() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap().to_owned();
    let seconds = |plan: &serde_json::Value, name: &str| {
        let rows = plan["stages"].as_array().unwrap();
        rows.iter().find(|row| row["stage"] == name).unwrap()["local_s"].as_f64().unwrap()
    };
    let before = plan(&["--out", &out]);
    let text = std::fs::read_to_string(root().join("recipes/quickstart.toml")).unwrap();
    let recipe = serde_json::to_value(toml::from_str::<toml::Table>(&text).unwrap()).unwrap();
    let written = recipe["stage"].as_array().unwrap().iter().find(|stage| stage["name"] == "sft-medical").unwrap();
    let mut record = aloe_record::Record::start("sft", "sft-medical");
    record.config_written = written.clone();
    record.elapsed_s = 10.0 * seconds(&before, "sft-medical");
    std::fs::create_dir(dir.path().join("sft-medical")).unwrap();
    aloe_record::atomic::write_json(&dir.path().join("sft-medical/record.json"), &record).unwrap();
    let after = plan(&["--out", &out]);
    assert_eq!(after["measured_speed"], true);
    for (name, factor) in [("sft-medical", 10.0), ("sft-general", 10.0), ("dpo-1", 1.0), ("eval-before", 1.0)] {
        let found = seconds(&after, name) / seconds(&before, name);
        assert!((found - factor).abs() < 1e-9, "{name}: {found}");
    }
}

#[test]
fn the_table_of_a_plan_has_a_total_and_says_that_it_is_an_estimate() {
    let path = root().join("recipes/quickstart.toml");
    let (stdout, _, _) = run(&["plan", path.to_str().unwrap()]);
    assert!(stdout.lines().any(|line| line.starts_with("total ")), "{stdout}");
    assert!(stdout.contains("an estimate, not a measurement"), "{stdout}");
    let data_lines: Vec<&str> = stdout.lines().filter(|line| line.split_whitespace().nth(1) == Some("data")).collect();
    assert!(data_lines.len() == 4 && data_lines.iter().all(|line| !line.contains("unknown")), "{stdout}");
}

#[test]
fn a_reader_that_stops_early_is_no_error() {
    let aloe = env!("CARGO_BIN_EXE_aloe");
    let script = format!("{aloe} plan {} | head -1", root().join("recipes/quickstart.toml").display());
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
