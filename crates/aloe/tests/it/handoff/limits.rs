//! What a partition cannot give is told before anything is submitted, by a real Slurm: a job that asks for more time than its partition has
//! would wait for ever, and says nothing.

use super::rig::Rig;
use crate::{run, stories};
use std::path::{Path, PathBuf};

/// One merge-free run of one evaluation for a site of this `slurm` table and these resources.
fn planned(dir: &Path, name: &str, partition: &str, resources: &str) -> PathBuf {
    let (model, starter) = (stories().unwrap(), crate::root().join("starter").canonicalize().unwrap());
    let recipe = dir.join("one.toml");
    let text = format!(
        "name = \"one thing\"\n[[stage]]\nkind = \"eval\"\nname = \"scores\"\nfrom = {{ model = {model:?} }}\ntasks = [\"starter_mcqa\"]\n\
         limit = 4\ndata = {starter:?}\n"
    );
    std::fs::write(&recipe, text).unwrap();
    let cluster = dir.join("cluster.toml");
    let text = format!(
        "name = \"here\"\naloe = \"{}\"\n[slurm]\npartition = \"{partition}\"\n[resources.default]\nnodes = 1\ncpus_per_node = 2\n{resources}\n",
        env!("CARGO_BIN_EXE_aloe")
    );
    std::fs::write(&cluster, text).unwrap();
    let out = dir.join(name);
    let [recipe, cluster, folder] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["plan", recipe, "--where", "slurm", "--cluster", cluster, "--out", folder]);
    assert_eq!(code, 0, "{said}");
    out
}

#[test]
fn under_slurm_what_a_partition_does_not_give_is_refused_and_nothing_is_submitted() {
    let (Some(_), Some(rig)) = (stories(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, partition: &str, resources: &str, part: &str| {
        let out = planned(dir.path(), name, partition, resources);
        let output = rig.aloe(&["run", out.to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some_and(|code| code != 0) && said.contains(part), "{name}: {said}");
    };
    let hour = "gpus_per_node = 0\ntime = \"1:00:00\"";
    refused("long", "debug", hour, "stage \"scores\" asks for 0-01:00:00, partition debug gives 0-00:30:00 at most");
    let gpus = "gpus_per_node = 8\ntime = 600";
    refused("wide", "acc", gpus, "stage \"scores\" asks for 8 GPUs a node; nodes of the partition have 4 at most");
    refused("lost", "nowhere", "gpus_per_node = 0\ntime = 600", "invalid partition specified: nowhere");
    let jobs = rig.slurm("squeue", &["--noheader", "--states=all"]);
    assert_eq!(jobs, "", "something was submitted");
    // The same within the limits is run, under a name that is one word.
    let out = planned(dir.path(), "well", "debug", "gpus_per_node = 0\ntime = \"0:30:00\"");
    rig.aloe_ok(&["run", out.to_str().unwrap()]);
    rig.wait_until(&out, std::time::Duration::from_secs(120), |phases| phases == ["done"]);
}
