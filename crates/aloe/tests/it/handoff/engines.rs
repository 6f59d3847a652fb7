//! Stages that TRL trains, on processors, under a real Slurm: the chain SFT, merge, DPO 1, DPO 2, evaluations, red-teaming, card; and a
//! training over two nodes. Stages that axolotl trains, on this machine. Needs the environments of `oracles/`: `ALOE_TRL` and
//! `ALOE_AXOLOTL`, or trl and axolotl in ~/.cache/aloe-venvs; with `ALOE_REQUIRE_ENGINES=1` their absence fails, and that of what they are given
//! (`ALOE_DATA`) and of what else a test here waits for (`ALOE_SLOW`).

mod llama_server;
mod time_limit;
mod vllm;

use super::chain::{plan, states};
use super::rig::Rig;
use crate::run;
use aloe_record::Record;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn is_required() -> bool {
    std::env::var_os("ALOE_REQUIRE_ENGINES").is_some_and(|asked| asked != "0")
}

/// Whether a variable is set; said aloud where it is not, and failed where engines are required.
fn is_set(variable: &str) -> bool {
    let is_set = std::env::var_os(variable).is_some();
    let may_be_missing = !is_required() && std::env::var_os("ALOE_REQUIRE").is_none();
    assert!(is_set || may_be_missing, "{variable} is not set, but what needs it is required");
    if !is_set {
        eprintln!("not run: {variable} is not set");
    }
    is_set
}

/// Whether a server of others may be asked the shared questions.
fn may_ask_shared_questions() -> bool {
    if std::env::var_os("ALOE_SLOW").is_none() && !is_required() {
        eprintln!("not run: ALOE_SLOW is not set");
        return false;
    }
    is_set("ALOE_DATA")
}

/// What the engines train here.
fn stories() -> Option<PathBuf> {
    if is_set("ALOE_DATA") { crate::stories() } else { None }
}

/// The folder of an engine's environment, or `None` (said aloud).
fn environment(engine: &str) -> Option<PathBuf> {
    let variable = format!("ALOE_{}", engine.to_uppercase());
    let named = std::env::var_os(&variable).map(PathBuf::from);
    let cached = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/aloe-venvs").join(engine));
    let found = [named, cached].into_iter().flatten().find(|folder| folder.join("bin/torchrun").is_file());
    if found.is_none() {
        assert!(std::env::var_os(&variable).is_none(), "{variable} holds no bin/torchrun");
        assert!(!is_required(), "no environment of {engine}: .ci/engines makes one");
        eprintln!("not run: no environment of {engine}");
    }
    found
}

fn trl() -> Option<PathBuf> {
    environment("trl")
}

/// A site with an engine that has `more` to say.
fn site_of(engine: &str, dir: &Path, folder: &Path, more: &str) {
    let more = format!("{more}[engines]\n{engine} = \"{}\"\n", folder.display());
    super::chain::cluster_file(dir, &more);
}

/// A site with TRL that has `more` to say.
fn site(dir: &Path, trl: &Path, more: &str) {
    site_of("trl", dir, trl, more);
}

/// The second alignment, from the first one's model.
const DPO_2: (&str, &str) = (
    "[[stage]]\nkind = \"eval\"\nname = \"before\"",
    "[[stage]]\nkind = \"dpo\"\nname = \"dpo-2\"\nfrom = { model = \"dpo\", data = \"pairs\" }\nlr = 1e-5\nmax_len = 500\nbatch_size = 8\n\n\
     [[stage]]\nkind = \"eval\"\nname = \"before\"",
);

/// Settings that every stage may have here as by our own trainer: the best of several evaluations, a line that ends at a floor.
const HELD_OUT: (&str, &str) = (
    "lr = 1e-3\nepochs = 1\nmax_len = 256\nbatch_size = 1\ncheckpoint_every = 1",
    "lr = 1e-3\nepochs = 1\nmax_len = 256\nbatch_size = 1\neval_every = 8\nkeep_best = true\npatience = 3\nschedule = \"linear\"\nlr_floor = 0.1",
);

/// Label smoothing, and a likelihood term over a step of several batches.
const SMOOTHED: (&str, &str) = (
    "lr = 1e-5\nmax_len = 500\nbatch_size = 8\ncheckpoint_every = 1",
    "lr = 1e-5\nmax_len = 500\nbatch_size = 8\nlabel_smoothing = 0.1\nnll_weight = 0.2\neval_every = 2",
);

/// What an engine's record must say, and what it leaves.
fn assert_trained_by((engine, version): (&str, &str), run: &Path, stage: &str, n_nodes: u64) {
    let record = Record::read(&run.join("out").join(stage)).unwrap();
    let found = &record.results["handoff"];
    assert_eq!((&found["engine"], &found["versions"][engine]), (&engine.into(), &version.into()), "{stage}");
    assert_eq!(found["world_size"].as_u64(), Some(n_nodes), "{stage}");
    // What our own trainer's record has of an epoch, and what only the engine's folder tells.
    let figures = &record.results[record.kind.as_str()];
    assert!(figures["n_tokens"].as_u64() > figures["n_targets"].as_u64(), "{stage}: {figures}");
    // Rows of the stage's data are held out in every chain here, and were evaluated before and after.
    let names = if record.kind == "sft" { "held_out_nll" } else { "held_out_loss" };
    let [before, after] = ["before", "after"].map(|when| figures[format!("{names}_{when}")].as_f64().unwrap());
    assert!(figures["n_held_out"].as_u64() > Some(0) && before.is_finite() && after.is_finite(), "{stage}: {figures}");
    assert!(before != after, "{stage}: {figures}");
    for weights in ["model/model.safetensors", "master/model.safetensors"] {
        assert!(run.join("out").join(stage).join(weights).is_file(), "{stage}: {weights}");
    }
}

fn assert_trained_by_trl(run: &Path, stage: &str, n_nodes: u64) {
    assert_trained_by(("trl", "1.16.0"), run, stage, n_nodes);
}

/// `aloe plan --validate` by the engines' own parsers.
#[test]
fn the_configurations_of_a_plan_are_accepted_by_the_parsers_of_trl_and_axolotl() {
    let Some(stories) = stories() else { return };
    for engine in ["trl", "axolotl"] {
        let Some(folder) = environment(engine) else { continue };
        let dir = tempfile::tempdir().unwrap();
        site_of(engine, dir.path(), &folder, "");
        let trainer = format!("trainer = \"{engine}\"");
        let swaps = [("trainer = \"aloe\"", trainer.as_str()), HELD_OUT, SMOOTHED];
        let out = dir.path().join("run");
        plan(dir.path(), &stories, &out, "local", &swaps);
        let [recipe, cluster] = ["tiny.toml", "cluster.toml"].map(|name| dir.path().join(name));
        let [recipe, cluster, out] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
        let (_, said, code) =
            run(&["plan", recipe, "--where", "local", "--cluster", cluster, "--out", out, "--validate"]);
        assert_eq!(code, 0, "{said}");
        for stage in ["sft-a", "sft-b", "dpo"] {
            assert!(said.contains(&format!("{stage}: accepted by {engine}'s own parser")), "{said}");
        }
    }
}

#[test]
fn under_slurm_the_whole_chain_completes_with_trl() {
    let (Some(stories), Some(trl), Some(rig)) = (stories(), trl(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    site(dir.path(), &trl, "");
    let swaps = [
        ("trainer = \"aloe\"", "trainer = \"trl\""),
        HELD_OUT,
        SMOOTHED,
        DPO_2,
        ("from = { model = \"dpo\", compare = \"before\" }", "from = { model = \"dpo-2\", compare = \"before\" }"),
        ("from = { model = \"dpo\" }", "from = { model = \"dpo-2\" }"),
        ("model = \"dpo\"\nrecords = [", "model = \"dpo-2\"\nrecords = [\"dpo-2\", "),
    ];
    plan(dir.path(), &stories, &run, "slurm", &swaps);
    rig.aloe_ok(&["run", run.to_str().unwrap()]);
    rig.wait_until(&run, Duration::from_secs(1500), |phases| phases.iter().all(|phase| phase == "done"));
    let jobs = rig.completed(9);
    assert!(jobs.len() == 9 && jobs.iter().all(|(_, state)| state == "COMPLETED"), "{jobs:?}");
    for stage in ["sft-a", "sft-b", "dpo", "dpo-2"] {
        assert_trained_by_trl(&run, stage, 1);
    }
    let card = std::fs::read_to_string(run.join("out/card/README.md")).unwrap();
    assert!(card.contains("#### dpo-2: direct preference optimisation by trl"), "{card}");
    // As a finished stage it is taken as it is.
    let record = std::fs::read(run.join("out/dpo-2/record.json")).unwrap();
    let again =
        rig.aloe(&["run", "recipe.toml", "--stage", "dpo-2", "--out", "out"]).current_dir(&run).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(std::fs::read(run.join("out/dpo-2/record.json")).unwrap(), record);
}

#[test]
fn under_slurm_trl_trains_on_two_nodes_as_one() {
    let (Some(stories), Some(trl), Some(rig)) = (stories(), trl(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    site(dir.path(), &trl, "[stages.sft-a]\nnodes = 2\n");
    let swaps = [(
        "lr = 1e-3\nepochs = 1\nmax_len = 256\nbatch_size = 1",
        "trainer = \"trl\"\nlr = 1e-3\nepochs = 1\nmax_len = 256\nbatch_size = 2",
    )];
    plan(dir.path(), &stories, &run, "slurm", &swaps);
    rig.aloe_ok(&["run", run.to_str().unwrap()]);
    rig.wait_until(&run, Duration::from_secs(900), |phases| phases[0] == "done" || phases[0] == "failed");
    assert_eq!(states(&run, Some(&rig))[0], ("sft-a".to_owned(), "done".to_owned()));
    assert_trained_by_trl(&run, "sft-a", 2);
}

/// Two supervised stages, a merge, and an alignment in two chunks: 32 pairs in 4 steps of 8.
#[test]
fn on_this_machine_axolotl_trains_and_what_it_returns_is_checked_and_taken_over() {
    let (Some(stories), Some(axolotl)) = (stories(), environment("axolotl")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    site_of("axolotl", dir.path(), &axolotl, "");
    let swaps = [
        ("trainer = \"aloe\"", "trainer = \"axolotl\""),
        HELD_OUT,
        ("max_len = 500\nbatch_size = 8", "max_len = 500\nbatch_size = 8\nchunks = 2"),
    ];
    plan(dir.path(), &stories, &out, "local", &swaps);
    let (_, said, code) = run(&["run", out.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert!(states(&out, None).iter().all(|(_, phase)| phase == "done"), "{said}");
    for stage in ["sft-a", "sft-b", "dpo"] {
        assert_trained_by(("axolotl", "0.19.0"), &out, stage, 1);
    }
    let record = Record::read(&out.join("out/dpo")).unwrap();
    assert_eq!(record.results["handoff"]["n_steps"].as_u64(), Some(4));
    let card = std::fs::read_to_string(out.join("out/card/README.md")).unwrap();
    assert!(card.contains("#### dpo: direct preference optimisation by axolotl"), "{card}");
}

/// Both supervised stages train updates of rank 4. What comes back merges as `model+adapter` to what was taken over, and is what the merge,
/// the alignment and the evaluations of the chain start from.
#[test]
fn on_this_machine_trl_trains_low_rank_updates_that_enter_merge_and_evaluation() {
    let (Some(stories), Some(folder)) = (stories(), trl()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    site(dir.path(), &folder, "");
    let updates = "max_len = 256\nbatch_size = 1\ntrainer = \"trl\"\nlora = { rank = 4, alpha = 8, targets = [\"q_proj\", \"down_proj\"] }";
    let swaps = [("max_len = 256\nbatch_size = 1", updates), ("warmup_steps = 1", "warmup_steps = 2")];
    plan(dir.path(), &stories, &out, "local", &swaps);
    let (_, said, code) = run(&["run", out.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert!(states(&out, None).iter().all(|(_, phase)| phase == "done"), "{said}");
    for stage in ["sft-a", "sft-b"] {
        assert_trained_by_trl(&out, stage, 1);
    }
    let adapter = out.join("out/sft-a/adapter");
    let config = dir.path().join("merge.yml");
    let text = format!(
        "merge_method: linear\nmodels:\n- model: {}+{}\n  parameters: {{weight: 1.0}}\ndtype: float32\n",
        out.join("out/base").display(),
        adapter.display()
    );
    std::fs::write(&config, text).unwrap();
    let merged = dir.path().join("merged");
    let (_, said, code) = run(&["merge", config.to_str().unwrap(), merged.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let open = |folder: &Path| aloe_model::SafeTensorsFile::open(&folder.join("model.safetensors")).unwrap();
    let (merged, taken) = (open(&merged), open(&out.join("out/sft-a/master")));
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"] {
        assert_eq!(merged.load_f32(name).unwrap(), taken.load_f32(name).unwrap(), "{name}");
    }
}
