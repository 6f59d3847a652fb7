//! Stages that TRL trains, on processors, under a real Slurm: the chain SFT, merge, DPO 1, DPO 2, evaluations, red-teaming, card; and a
//! training over two nodes. Needs the environment of `oracles/` for TRL: `ALOE_TRL`, or ~/.cache/aloe-venvs/trl.

use super::chain::{plan, states};
use super::rig::Rig;
use crate::stories;
use aloe_record::Record;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder of TRL's environment, or `None` (said aloud).
fn trl() -> Option<PathBuf> {
    let named = std::env::var_os("ALOE_TRL").map(PathBuf::from);
    let cached = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/aloe-venvs/trl"));
    let found = [named, cached].into_iter().flatten().find(|folder| folder.join("bin/torchrun").is_file());
    if found.is_none() {
        assert!(std::env::var_os("ALOE_TRL").is_none(), "ALOE_TRL holds no bin/torchrun");
        let is_required = std::env::var_os("ALOE_REQUIRE_ENGINES").is_some();
        assert!(!is_required, "no environment of TRL: .ci/engines makes one");
        eprintln!("not run: no environment of TRL");
    }
    found
}

/// A site with TRL that has `more` to say.
fn site(dir: &Path, trl: &Path, more: &str) {
    let more = format!("{more}[engines]\ntrl = \"{}\"\n", trl.display());
    super::chain::cluster_file(dir, &more);
}

/// stories260K as a model that transformers takes as it is: under its class `LlamaTokenizer` transformers 5 makes another tokenizer of the
/// file when it loads it, and `aloe verify` refuses what comes back.
fn base(dir: &Path, stories: &Path) -> PathBuf {
    let base = dir.join("base");
    std::fs::create_dir(&base).unwrap();
    for entry in std::fs::read_dir(stories).unwrap().flatten() {
        let target = base.join(entry.file_name());
        match entry.file_name() == "tokenizer_config.json" {
            true => {
                let text = std::fs::read_to_string(entry.path()).unwrap();
                std::fs::write(target, text.replace("\"LlamaTokenizer\"", "\"PreTrainedTokenizerFast\"")).unwrap();
            }
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    base
}

/// The second alignment, from the first one's model.
const DPO_2: (&str, &str) = (
    "[[stage]]\nkind = \"eval\"\nname = \"before\"",
    "[[stage]]\nkind = \"dpo\"\nname = \"dpo-2\"\nfrom = { model = \"dpo\", data = \"pairs\" }\nlr = 1e-5\nmax_len = 500\nbatch_size = 8\n\n\
     [[stage]]\nkind = \"eval\"\nname = \"before\"",
);

/// What TRL's record must say, and what follows from it in the card.
fn assert_trained_by_trl(run: &Path, stage: &str, n_nodes: u64) {
    let record = Record::read(&run.join("out").join(stage)).unwrap();
    let found = &record.results["handoff"];
    assert_eq!((&found["engine"], &found["versions"]["trl"]), (&"trl".into(), &"1.16.0".into()), "{stage}");
    assert_eq!(found["world_size"].as_u64(), Some(n_nodes), "{stage}");
    for weights in ["model/model.safetensors", "master/model.safetensors"] {
        assert!(run.join("out").join(stage).join(weights).is_file(), "{stage}: {weights}");
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
        DPO_2,
        ("from = { model = \"dpo\", compare = \"before\" }", "from = { model = \"dpo-2\", compare = \"before\" }"),
        ("from = { model = \"dpo\" }", "from = { model = \"dpo-2\" }"),
        ("model = \"dpo\"\nrecords = [", "model = \"dpo-2\"\nrecords = [\"dpo-2\", "),
    ];
    plan(dir.path(), &base(dir.path(), &stories), &run, "slurm", &swaps);
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
    plan(dir.path(), &base(dir.path(), &stories), &run, "slurm", &swaps);
    rig.aloe_ok(&["run", run.to_str().unwrap()]);
    rig.wait_until(&run, Duration::from_secs(900), |phases| phases[0] == "done" || phases[0] == "failed");
    assert_eq!(states(&run, Some(&rig))[0], ("sft-a".to_owned(), "done".to_owned()));
    assert_trained_by_trl(&run, "sft-a", 2);
}
