//! What a plan holds its jobs to: settings that are refused before anything is made, inputs that changed, a site that asks for other
//! things than were planned, and what is said of rows that nobody evaluates.

use super::chain::{cluster_file, digests_of_plan, plan, states};
use crate::{run, stories};
use std::path::{Path, PathBuf};

/// A folder that looks like an engine's: each of its programs writes its name and words to `asked` and ends with `code`.
fn engine(dir: &Path, code: i32) -> PathBuf {
    let bin = dir.join("engine/bin");
    std::fs::create_dir_all(&bin).unwrap();
    for (name, code) in [("python", 0), ("torchrun", code)] {
        let script = format!("#!/bin/sh\necho {name} \"$@\" >> {}\nexit {code}\n", dir.join("asked").display());
        write_program(&bin.join(name), &script);
    }
    dir.join("engine")
}

/// By a child: a program that this process has open for writing cannot be run.
fn write_program(path: &Path, script: &str) {
    let write = "printf '%s' \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let written = std::process::Command::new("sh").args(["-c", write, "sh", script]).arg(path).status();
    assert!(written.unwrap().success());
}

/// How often the engine was started.
fn n_started(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("asked"))
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("torchrun"))
        .count()
}

/// A site with that engine as TRL; `more` stands before it.
fn site(dir: &Path, more: &str) -> PathBuf {
    let engine = engine(dir, 9);
    cluster_file(dir, &format!("{more}[engines]\ntrl = {:?}\n", engine.display().to_string()))
}

/// `aloe plan` once more, of the recipe as it stands now.
fn plan_again(dir: &Path, out: &Path) -> (String, i32) {
    let [recipe, cluster] = ["tiny.toml", "cluster.toml"].map(|name| dir.join(name));
    let [recipe, cluster, out] = [recipe.as_path(), &cluster, out].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["plan", recipe, "--where", "local", "--cluster", cluster, "--out", out]);
    (said, code)
}

fn swap(path: &Path, old: &str, new: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(old), "{old} is not in {}", path.display());
    std::fs::write(path, text.replace(old, new)).unwrap();
}

const BY_TRL: (&str, &str) = ("trainer = \"aloe\"", "trainer = \"trl\"");

#[test]
fn what_an_engine_refuses_is_told_before_anything_is_made_and_leaves_an_earlier_plan_whole() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    site(dir.path(), "");
    plan(dir.path(), &stories, &out, "local", &[BY_TRL]);
    let before = digests_of_plan(&out);
    let recipe = dir.path().join("tiny.toml");
    let whole = std::fs::read_to_string(&recipe).unwrap();
    swap(&recipe, "batch_size = 8", "batch_size = 8\nchunks = 2\nreference = \"chunk_start\"");
    swap(&recipe, "epochs = 1\nmax_len = 256", "epochs = 1\non_spike = \"skip\"\nmax_len = 256");
    for folder in [&out, &dir.path().join("fresh")] {
        let (said, code) = plan_again(dir.path(), folder);
        assert_eq!(code, 2, "{said}");
        for part in
            ["stage \"sft-a\": on_spike", "stage \"sft-b\": on_spike", "stage \"dpo\": reference = \"chunk_start\""]
        {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
    assert_eq!(digests_of_plan(&out), before);
    assert!(!dir.path().join("fresh").exists(), "something was made");
    // What the finished data stage's rows show is such a thing.
    let short = whole.replace("max_len = 256", "max_len = 2");
    std::fs::write(&recipe, &short).unwrap();
    let (said, code) = plan_again(dir.path(), &out);
    assert!(code == 2 && said.contains("none is left to train on"), "{said}");
    assert_eq!(digests_of_plan(&out), before);
    // What shows only when rows are made anew and rendered leaves no plan that could be run.
    std::fs::write(&recipe, short.replace("max_rows = 30", "max_rows = 29")).unwrap();
    let (said, code) = plan_again(dir.path(), &out);
    assert!(code != 0 && said.contains("none is left to train on"), "{said}");
    let (_, said, code) = run(&["resume", out.to_str().unwrap()]);
    assert!(code == 2 && said.contains("is no run folder"), "{said}");
    // And the next plan finds its place free.
    std::fs::write(&recipe, whole).unwrap();
    let (said, code) = plan_again(dir.path(), &out);
    assert_eq!(code, 0, "{said}");
    assert_eq!(digests_of_plan(&out), before);
}

#[test]
fn rows_that_are_held_out_are_handed_over_and_evaluated() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    site(dir.path(), "");
    let swaps = [
        BY_TRL,
        ("hold_out = 0.2\ndecontaminate", "decontaminate"),
        ("lr = 1e-3\nepochs = 1", "lr = 1e-3\nheld_out_share = 0.3\nepochs = 1"),
    ];
    plan(dir.path(), &stories, &out, "local", &swaps);
    let (said, code) = plan_again(dir.path(), &out);
    assert_eq!(code, 0, "{said}");
    let counts = |stage: &str| {
        let expected = std::fs::read_to_string(out.join("stages").join(stage).join("expected.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
        expected["stage"]["counts"]["n_held_out"].as_u64()
    };
    // Of thirty rows nine are set apart; one may be too long to be evaluated.
    let n_held_out = counts("10-sft-a").unwrap();
    assert!((8..=9).contains(&n_held_out), "{n_held_out}");
    // sft-b sets none apart; the pairs are held out by their data stage.
    assert_eq!(counts("20-sft-b"), Some(0));
    let n_pairs = counts("40-dpo").unwrap();
    assert!(n_pairs > 0);
    for (stage, name, n_rows) in
        [("10-sft-a", "sft-a", n_held_out), ("20-sft-b", "sft-b", 0), ("40-dpo", "dpo", n_pairs)]
    {
        let rows = std::fs::read_to_string(out.join("data").join(name).join("held_out.jsonl")).unwrap_or_default();
        // Several rows may stand in one packed row; pairs do not.
        let n_lines = rows.lines().count() as u64;
        assert!(
            if name == "dpo" { n_lines == n_rows } else { (n_lines > 0) == (n_rows > 0) && n_lines <= n_rows },
            "{name}: {n_lines}"
        );
        let text = |file: &str| std::fs::read_to_string(out.join("stages").join(stage).join(file)).unwrap();
        assert_eq!(text("engine.yaml").contains("\neval_strategy: steps\n"), n_rows > 0, "{name}");
        // The job refuses other ones.
        assert_eq!(text("inputs.sha256").contains("held_out.jsonl"), n_rows > 0, "{name}");
    }
}

/// A copy of stories260K as the site has it.
fn site_model(dir: &Path, stories: &Path) -> PathBuf {
    let folder = dir.join("site model");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(stories).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    folder
}

const FROM_SITE: &str = "name = \"of the site\"\nseed = 3\ndtype = \"f32\"\n[[stage]]\nkind = \"data\"\nname = \"rows\"\n\
    sources = [{ name = \"general\", path = \"@STARTER@/sft/general.jsonl\", licence = \"mit\", max_rows = 8 }]\n\
    [[stage]]\nkind = \"sft\"\nname = \"sft\"\ntrainer = \"trl\"\nfrom = { model = \"@MODEL@\", data = \"rows\" }\nlr = 1e-3\nepochs = 1\n\
    max_len = 256\nbatch_size = 1\n";

#[test]
fn a_model_of_the_site_with_other_weights_or_another_template_than_planned_starts_no_engine() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = site_model(dir.path(), &stories);
    let config = model.join("tokenizer_config.json");
    let template = "{% for message in messages %}### {{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}### assistant: {% endif %}";
    let mut value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    value["chat_template"] = template.into();
    std::fs::write(&config, value.to_string()).unwrap();
    let name = model.display().to_string();
    site(dir.path(), &format!("[models]\n{name:?} = {name:?}\n"));
    let starter = crate::root().join("starter").canonicalize().unwrap();
    let text = FROM_SITE.replace("@STARTER@", starter.to_str().unwrap()).replace("@MODEL@", &name);
    std::fs::write(dir.path().join("tiny.toml"), text).unwrap();
    let out = dir.path().join("run");
    let (said, code) = plan_again(dir.path(), &out);
    assert_eq!(code, 0, "{said}");
    let failed = |is_changed: &str, n_expected: usize| {
        let (_, said, code) = run(&["resume", out.to_str().unwrap()]);
        assert_eq!((code, n_started(dir.path())), (1, n_expected), "{is_changed}: {said}");
        said
    };
    // As planned the engine is started; it is one that fails.
    assert!(failed("nothing", 1).contains("run.sh: exit code 9"));
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let mut other = whole.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, other).unwrap();
    let said = failed("the weights", 1);
    assert!(said.contains("model.safetensors is not the file that was planned with"), "{said}");
    std::fs::write(&weights, whole).unwrap();
    swap(&config, "### ", "<<USER>> ");
    let said = failed("the template", 1);
    assert!(said.contains("tokenizer_config.json: FAILED") || said.contains("did NOT match"), "{said}");
    swap(&config, "<<USER>> ", "### ");
    failed("nothing any more", 2);
}

#[test]
fn an_earlier_jobs_output_that_was_changed_starts_no_engine() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    site(dir.path(), "");
    let by_trl = "max_len = 500\nbatch_size = 8\ncheckpoint_every = 1\ntrainer = \"trl\"";
    plan(dir.path(), &stories, &out, "local", &[("max_len = 500\nbatch_size = 8\ncheckpoint_every = 1", by_trl)]);
    let (_, said, code) = run(&["run", out.to_str().unwrap()]);
    assert!(code == 1 && said.contains("stage dpo: failed: run.sh: exit code 9"), "{said}");
    assert_eq!((states(&out, None)[2].1.as_str(), n_started(dir.path())), ("done", 1));
    // What the rows of pairs were rendered with, before the merge was there, is what its folder has.
    let expected = std::fs::read_to_string(out.join("stages/40-dpo/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let text = aloe_text::TextModel::open(&out.join("out/merge/master")).unwrap();
    let found = aloe_handoff::verify::digest_of_template(text.template.unwrap().source());
    assert_eq!(expected["template_sha256"].as_str(), Some(found.as_str()));
    let weights = out.join("out/merge/master/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    let (_, said, code) = run(&["resume", out.to_str().unwrap()]);
    assert!(code == 1 && said.contains("is not what the stage wrote"), "{said}");
    assert_eq!(n_started(dir.path()), 1, "the engine was started on other weights");
}

#[test]
fn what_a_site_asks_for_now_is_held_against_the_plan_before_anything_is_submitted() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    site(dir.path(), "");
    plan(dir.path(), &stories, &out, "local", &[BY_TRL]);
    let cluster = out.join("cluster.toml");
    swap(&cluster, "gpus_per_node = 0\n", "gpus_per_node = 2\n");
    let (_, said, code) = run(&["run", out.to_str().unwrap()]);
    assert!(code == 2 && said.contains("stage \"sft-a\" was planned with gpus_per_node = 0, not 2"), "{said}");
    assert!(!said.contains("stage \"merge\""), "{said}");
    assert!(states(&out, None).iter().all(|(_, phase)| phase == "planned"));
    swap(&cluster, "gpus_per_node = 2\n", "gpus_per_node = 0\n");
    // A limit of three seconds for an engine that takes a minute.
    swap(&cluster, "signal_before = 30", "signal_before = 1");
    swap(&cluster, "time = \"0:10:00\"", "time = 3");
    write_program(&dir.path().join("engine/bin/torchrun"), "#!/bin/sh\nexec sleep 60\n");
    let (_, said, code) = run(&["run", out.to_str().unwrap()]);
    assert!(code == 1 && said.contains("the time limit of 3 s"), "{said}");
}

/// A Python that takes what names a made-up number of steps, and nothing else.
#[test]
fn a_stage_whose_rows_a_job_makes_is_validated_with_steps_made_up() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    site(dir.path(), "[resources.data]\nshards = 2\n");
    plan(dir.path(), &stories, &out, "local", &[BY_TRL]);
    assert!(
        !out.join("stages/10-sft-a/engine.yaml").exists() && !out.join("out/rows").exists(),
        "rows were made while planning"
    );
    let python = dir.path().join("engine/bin/python");
    let validate = |key: &str| {
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\ngrep -q '^{key}: ' \"$last\" || {{ echo no {key} in $last >&2; exit 1; }}\n"
        );
        write_program(&python, &script);
        let [recipe, cluster] = ["tiny.toml", "cluster.toml"].map(|name| dir.path().join(name));
        let [recipe, cluster, out] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
        let (_, said, code) =
            run(&["plan", recipe, "--where", "local", "--cluster", cluster, "--out", out, "--validate"]);
        (said, code)
    };
    let (said, code) = validate("max_steps");
    assert_eq!(code, 0, "{said}");
    for stage in ["sft-a", "sft-b", "dpo"] {
        let accepted = format!("{stage}: accepted by trl's own parser, with a number of steps made up");
        assert!(said.contains(&accepted), "{said}");
    }
    let (said, code) = validate("no_such_key");
    assert!(code == 2 && said.contains("stage \"sft-a\": no no_such_key in"), "{said}");
    let left = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let own = format!("aloe-validate-{}-", std::process::id());
    assert!(!left.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(&own)));
}
