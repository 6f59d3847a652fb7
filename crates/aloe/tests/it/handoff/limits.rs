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
    // The longest of a list is acc's three days.
    let days = "gpus_per_node = 0\ntime = \"5-00:00:00\"";
    let part = "stage \"scores\" asks for 5-00:00:00, partition debug,acc gives 3-00:00:00 at most";
    refused("list", "debug,acc", days, part);
    let jobs = rig.slurm("squeue", &["--noheader", "--states=all"]);
    assert_eq!(jobs, "", "something was submitted");
    // The same within the limits is run, under a name that is one word.
    let out = planned(dir.path(), "well", "debug", "gpus_per_node = 0\ntime = \"0:30:00\"");
    rig.aloe_ok(&["run", out.to_str().unwrap()]);
    rig.wait_until(&out, std::time::Duration::from_secs(120), |phases| phases == ["done"]);
}

/// A folder whose name holds what Slurm takes for a pattern, at a site that gives more time and processors than were planned.
#[test]
fn under_slurm_a_job_asks_for_what_its_site_says_now_from_a_folder_of_any_name() {
    let (Some(_), Some(rig)) = (stories(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = planned(dir.path(), "r %x 2", "debug,acc", "gpus_per_node = 0\ntime = \"0:10:00\"");
    let cluster = out.join("cluster.toml");
    let text = std::fs::read_to_string(&cluster).unwrap();
    let text =
        text.replace("time = \"0:10:00\"", "time = \"0:20:00\"").replace("cpus_per_node = 2", "cpus_per_node = 4");
    std::fs::write(&cluster, text).unwrap();
    rig.aloe_ok(&["run", out.to_str().unwrap()]);
    let asked = rig.slurm("squeue", &["--noheader", "--states=all", "--format=%l %C"]);
    assert_eq!(asked.trim(), "20:00 4");
    rig.wait_until(&out, std::time::Duration::from_secs(120), |phases| phases == ["done"]);
    let logs = std::fs::read_dir(out.join("state/scores")).unwrap().flatten();
    assert!(logs.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with("slurm-")));
}
