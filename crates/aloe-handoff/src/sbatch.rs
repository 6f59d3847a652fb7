//! The scripts of a stage's folder, as text: `job.sbatch` (what Slurm is given), `run.sh` (the work), `check.sh` (what must hold before the
//! stage is done), `inputs.sha256` and `env.lock`.
//!
//! No script names an absolute path: `job.sbatch` finds its run folder by where it was submitted from, and the program in `cluster.toml`.
//! The order of things (lock, state, work, check, DONE; save and requeue before the time limit) is `aloe job`'s, see [`crate::job`].

use crate::cluster::{Cluster, quoted};
use crate::plan::{RunPlan, StagePlan, Trainer, model_folder};
use crate::slurm_time;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// `job.sbatch`: asks for the stage's resources and hands over to `aloe job` in the run folder. What it asks for is what `cluster.toml` said
/// when the run was planned, for those who submit by hand; `aloe run` gives what it says now.
pub fn job_script(plan: &RunPlan, stage: &StagePlan, cluster: &Cluster) -> String {
    let about = format!(
        "# The job of stage {:?} ({} by {}) of run {:?}. `aloe run RUN` submits it after the stages it needs; by hand, once\n\
         # those are done: sbatch {}/job.sbatch",
        stage.name,
        stage.kind,
        stage.trainer.name(),
        plan.name,
        stage.folder.display()
    );
    batch_script(plan, stage, cluster, &about, &stage.name, &stage.name)
}

/// `array.sbatch` of the shards of a stage, of which `shard` is one: the index of the array is the shard's.
pub fn array_script(plan: &RunPlan, shard: &StagePlan, cluster: &Cluster) -> Option<String> {
    let part = shard.shard()?;
    let script = shard.array_script()?;
    let about = format!(
        "# The shards of stage {:?} of run {:?} as one job array. `aloe run RUN` submits those that are not done; by hand: \n\
         # sbatch --array=1-{} {}",
        part.of,
        plan.name,
        part.n,
        script.display()
    );
    let job = format!("\"{}.${{SLURM_ARRAY_TASK_ID}}-of-{}\"", part.of, part.n);
    Some(batch_script(plan, shard, cluster, &about, part.of, &job))
}

fn batch_script(plan: &RunPlan, stage: &StagePlan, cluster: &Cluster, about: &str, name: &str, job: &str) -> String {
    let resources = &stage.resources;
    let gpus = match resources.gpus_per_node {
        0 => String::new(),
        gpus => format!("#SBATCH --gpus-per-node={gpus}\n"),
    };
    let billing: String = cluster.billing(stage).iter().map(|option| format!("#SBATCH {option}\n")).collect();
    format!(
        r#"#!/bin/bash
{about}
#SBATCH --job-name={run}-{name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
{gpus}#SBATCH --time={time}
#SBATCH --signal=B:USR1@{signal}
#SBATCH --requeue
#SBATCH --open-mode=append
{billing}
# Slurm runs a copy of this file, so its own place is asked of the controller: the run folder is two above it.
if [ -z "${{ALOE_RUN:-}}" ]; then
  place=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p' | sed -n 1p)
  ALOE_RUN=$(cd "$(dirname "${{place:-$0}}")/../.." && pwd) || exit 2
fi
cd "$ALOE_RUN" || exit 2
ALOE=${{ALOE:-$(sed -n 's/^aloe *= *"\([^"]*\)".*/\1/p' cluster.toml | sed -n 1p)}}
# The program takes this shell's place, so that the signals of --signal=B: and of the time limit reach it: on USR1 it stops the work with
# SIGTERM, waits until it has saved, and has the job requeued.
exec "$ALOE" job . {job}
"#,
        // A directive ends at a blank.
        run = model_folder(&plan.name),
        nodes = resources.n_nodes,
        cpus = resources.cpus_per_node,
        time = slurm_time::show(resources.time_limit_s),
        signal = cluster.slurm.signal_before_s,
    )
}

/// No stage may reach for the network or report what it does.
const OFFLINE: &str = "export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 \
                       AXOLOTL_DO_NOT_TRACK=1";

/// `run.sh`: verifies the inputs and the versions of env.lock, runs what must come `before`, and `command` in its place. `aloe` as the first word stands for the
/// program, `torchrun` is run on each node with its rank.
pub fn run_script(stage: &StagePlan, before: &[Vec<String>], command: &[String]) -> String {
    let folder = stage.folder.display();
    let mut text = format!(
        "#!/bin/bash\n# The work of stage {:?}, started by `aloe job` in the run folder, with the environment of cluster.toml.\nset -euo pipefail\n\
         {OFFLINE}\nsha256sum --quiet --check {folder}/inputs.sha256\n",
        stage.name
    );
    for command in before {
        let _ = writeln!(text, "{}", words(command));
    }
    if stage.trainer == Trainer::Aloe {
        let _ = writeln!(
            text,
            "# Another version may make something else of it.\n\
             pinned=$(sed -n 's/^aloe==//p' {folder}/env.lock) found=$(\"$ALOE\" --version)\n\
             if [ \"$found\" != \"aloe $pinned\" ]; then echo \"$ALOE is $found, pinned $pinned in {folder}/env.lock\" >&2; exit 78; fi"
        );
        let _ = writeln!(text, "exec {}", words(command));
        return text;
    }
    let work = format!("work/{}", stage.name);
    let cpus = stage.resources.cpus_per_node;
    let resume = match stage.trainer {
        Trainer::Axolotl => "--resume-from-checkpoint",
        _ => "--resume_from_checkpoint",
    };
    let _ = write!(
        text,
        r#"# The engine's versions are those of env.lock, or nothing is run.
python - {folder}/env.lock <<'PINS'
import sys
from importlib.metadata import PackageNotFoundError, version
def found(name):
    try:
        # A build's own mark, as in 2.15.0+cu128, is left out.
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return "is not installed"
pins = [line.split("==") for line in open(sys.argv[1]).read().split("\n") if "==" in line]
# Of torch and flash-attn a later patch release does.
def differs(name, pin):
    n = 2 if name in ("torch", "flash-attn") else 9
    return found(name).split(".")[:n] != pin.split(".")[:n]
other = [f"{{name}} {{found(name)}}, pinned {{pin}}" for name, pin in pins if differs(name, pin)]
sys.exit(f"{{sys.prefix}} has other versions than {{sys.argv[1]}}: " + "; ".join(other) if other else 0)
PINS
mkdir -p {work}
# What an earlier session trained and sealed is not trained again: the engine would append to files whose digests are written down.
if [ -e {work}/MANIFEST.json ]; then
  if "$ALOE" verify {work} --expected {folder}/expected.json; then exit 0; fi
  rm {work}/MANIFEST.json
fi
# ALOE_RESUME: the newest checkpoint whose manifest verifies, where an earlier session left one.
resume=()
if [ -n "${{ALOE_RESUME:-}}" ]; then resume=({resume} "$ALOE_RESUME"); fi
"#
    );
    let end = format!("\"${{resume[@]}}\" >> {work}/engine.log 2>&1");
    match command.split_first() {
        Some((first, rest)) if first == "torchrun" && stage.resources.n_nodes == 1 => {
            let _ = writeln!(text, "exec torchrun --standalone {} {end}", words(rest));
        }
        Some((first, rest)) if first == "torchrun" => {
            let nodes = stage.resources.n_nodes;
            let _ = write!(
                text,
                r#"# The first node's address from the controller: names of nodes need not resolve. `head` would not read to the end, and scontrol, killed by
# that, would end this script.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_ADDR=$(scontrol show node "$head" -o | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
# A step does not inherit --cpus-per-task since Slurm 22.05: without it all ranks of a machine share one core.
exec srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-{cpus}}}" --kill-on-bad-exit=1 bash -c '
exec torchrun --nnodes={nodes} --node_rank="$SLURM_NODEID" --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" "$@"' \
  torchrun {} {end}
"#,
                words(rest)
            );
        }
        _ => {
            let _ = writeln!(text, "exec {} {end}", words(command));
        }
    }
    text
}

/// `check.sh`: each command must end well before the stage is done.
pub fn check_script(stage: &StagePlan, commands: &[Vec<String>]) -> String {
    let mut text = format!(
        "#!/bin/bash\n# What must hold before stage {:?} is done: run by its job after the work, or by hand in the run folder.\nset -euo pipefail\n\
         {OFFLINE}\nALOE=${{ALOE:-$(sed -n 's/^aloe *= *\"\\([^\"]*\\)\".*/\\1/p' cluster.toml | sed -n 1p)}}\n",
        stage.name
    );
    for command in commands {
        let _ = writeln!(text, "{}", words(command));
    }
    text
}

/// `inputs.sha256`, in the form of `sha256sum`: path in the run folder to digest.
pub fn inputs_file(inputs: &BTreeMap<String, String>) -> String {
    inputs.iter().map(|(path, digest)| format!("{digest}  {path}\n")).collect()
}

/// `env.lock`: one `NAME==VERSION` a line.
pub fn env_lock(pins: &[(&str, &str)]) -> String {
    pins.iter().map(|(name, version)| format!("{name}=={version}\n")).collect()
}

/// A command line of the shell: plain words as they are, others quoted, an `aloe` at its beginning or after `--` by its variable.
fn words(command: &[String]) -> String {
    let word = |(at, text): (usize, &String)| {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./=:,+".contains(letter);
        match text.as_str() {
            "aloe" if at == 0 || command[at - 1] == "--" => "\"$ALOE\"".to_owned(),
            text if !text.is_empty() && text.chars().all(plain) => text.to_owned(),
            text => quoted(text),
        }
    };
    command.iter().enumerate().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Resources, Where};
    use std::path::Path;
    use std::process::Command;

    fn stage(trainer: Trainer, n_nodes: u32) -> StagePlan {
        StagePlan {
            name: "sft".into(),
            kind: "sft".into(),
            folder: "stages/01-sft".into(),
            after: vec![],
            trainer,
            resources: Resources { n_nodes, gpus_per_node: 4, cpus_per_node: 80, time_limit_s: 129_600 },
        }
    }

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Writes a program by a child: while this process has it open for writing, the child that another test's thread forks holds it open
    /// too, and running it fails with "text file busy".
    fn write_program(path: &Path, body: &str) {
        let text = format!("#!/bin/bash\n{body}\n");
        let write = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let written = Command::new("sh").args(["-c", write, "sh", &text]).arg(path).status().unwrap();
        assert!(written.success(), "{}", path.display());
    }

    /// Runs a script as bash does, with `programs` (name, body) first on the path.
    fn bash(dir: &Path, script: &str, programs: &[(&str, &str)], variables: &[(&str, &str)]) -> String {
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for (name, body) in programs {
            write_program(&bin.join(name), body);
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.args(["-c", script]).current_dir(dir).env("PATH", path).env_remove("ALOE_RUN").env_remove("ALOE");
        let output = command.envs(variables.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_job_finds_its_run_folder_by_where_it_was_submitted_from_and_its_program_in_cluster_toml() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("my run");
        std::fs::create_dir_all(run.join("stages/01-sft")).unwrap();
        let program = dir.path().join("bin/aloe");
        let cluster = format!("name = \"x\"\naloe = \"{}\" # \"here\"\n", program.display());
        std::fs::write(run.join("cluster.toml"), cluster).unwrap();
        let plan =
            RunPlan { version: 1, name: "r".into(), place: Where::Slurm, recipe_sha256: String::new(), stages: vec![] };
        let script = job_script(&plan, &stage(Trainer::Aloe, 1), &Cluster::default());
        for option in
            ["--time=1-12:00:00", "--signal=B:USR1@300", "--requeue", "--gpus-per-node=4", "--cpus-per-task=80"]
        {
            assert!(script.contains(&format!("#SBATCH {option}\n")), "{script}");
        }
        let scontrol = format!("echo '   Command={}/stages/01-sft/job.sbatch'", run.display());
        let programs = [("scontrol", scontrol.as_str()), ("aloe", "echo $PWD: \"$@\"")];
        let expected = format!("{}: job . sft\n", run.display());
        assert_eq!(bash(dir.path(), &script, &programs, &[("SLURM_JOB_ID", "7")]), expected);
        assert_eq!(bash(dir.path(), &script, &programs, &[("ALOE_RUN", run.to_str().unwrap())]), expected);
    }

    /// sbatch ends the value of a directive at a blank and reads a further option in what follows.
    #[test]
    fn a_recipes_name_with_blanks_is_one_word_of_the_jobs_name() {
        let plan = RunPlan {
            version: 1,
            name: "Llama3 Aloe: 8B".into(),
            place: Where::Slurm,
            recipe_sha256: String::new(),
            stages: vec![],
        };
        let script = job_script(&plan, &stage(Trainer::Aloe, 1), &Cluster::default());
        assert!(script.contains("\n#SBATCH --job-name=Llama3-Aloe--8B-sft\n"), "{script}");
    }

    #[test]
    fn several_nodes_get_their_rank_and_the_first_nodes_address_from_the_controller() {
        let dir = tempfile::tempdir().unwrap();
        let command = argv(&["torchrun", "--nproc_per_node", "4", "-m", "trl.scripts.sft", "--config", "engine.yaml"]);
        let script = run_script(&stage(Trainer::Trl, 2), &[], &command);
        let show = "if [ $2 = hostnames ]; then echo n1; sleep 0.2; echo n2; else echo NodeName=$3 CPUTot=8 NodeAddr=10.0.0.1 NodeHostName=x; fi";
        let programs = [
            ("sha256sum", "exit 0"),
            ("python", "exit 0"),
            ("scontrol", show),
            ("srun", "echo \"$@\" > step; while [[ $1 == --* ]]; do shift; done; SLURM_NODEID=1 exec \"$@\""),
            ("torchrun", "echo torchrun \"$@\""),
        ];
        let resume = ("ALOE_RESUME", "work/sft/checkpoint-4");
        let variables = [("SLURM_JOB_NODELIST", "n[1-2]"), ("SLURM_JOB_ID", "41"), resume];
        bash(dir.path(), &script, &programs, &variables);
        let log = std::fs::read_to_string(dir.path().join("work/sft/engine.log")).unwrap();
        assert_eq!(
            log,
            "torchrun --nnodes=2 --node_rank=1 --master_addr=10.0.0.1 --master_port=20041 --nproc_per_node 4 -m trl.scripts.sft --config \
             engine.yaml --resume_from_checkpoint work/sft/checkpoint-4\n"
        );
        let step = std::fs::read_to_string(dir.path().join("step")).unwrap();
        assert!(step.starts_with("--nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=80 "), "{step}");
    }

    #[test]
    fn what_was_trained_and_sealed_is_not_trained_again_and_a_seal_that_does_not_hold_goes_before_the_training() {
        let dir = tempfile::tempdir().unwrap();
        let script = run_script(&stage(Trainer::Trl, 1), &[], &argv(&["echo", "trained"]));
        let work = dir.path().join("work/sft");
        std::fs::create_dir_all(&work).unwrap();
        let programs =
            [("sha256sum", "exit 0"), ("python", "exit 0"), ("aloe", "echo \"$@\" >> verified; exit $(cat verdict)")];
        let aloe = dir.path().join("bin/aloe");
        let variables = [("ALOE", aloe.to_str().unwrap())];
        for (verdict, is_trained) in [("0", false), ("1", true)] {
            std::fs::write(work.join("MANIFEST.json"), "{}").unwrap();
            std::fs::write(dir.path().join("verdict"), verdict).unwrap();
            bash(dir.path(), &script, &programs, &variables);
            assert_eq!(work.join("engine.log").exists(), is_trained, "verdict {verdict}");
            assert_eq!(work.join("MANIFEST.json").exists(), !is_trained, "verdict {verdict}");
        }
        let asked = "verify work/sft --expected stages/01-sft/expected.json\n".repeat(2);
        assert_eq!(std::fs::read_to_string(dir.path().join("verified")).unwrap(), asked);
        bash(dir.path(), &script, &programs, &variables);
        assert_eq!(std::fs::read_to_string(dir.path().join("verified")).unwrap(), asked, "without a seal nobody asks");
    }

    #[test]
    fn another_version_of_the_program_than_planned_does_not_do_a_stages_work() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("stages/01-sft");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("env.lock"), env_lock(&[("aloe", "0.1.0")])).unwrap();
        let script = run_script(&stage(Trainer::Aloe, 1), &[], &argv(&["aloe", "run", "recipe.toml"]));
        let says = |version: &str| {
            let body = format!("if [ $1 = --version ]; then echo aloe {version}; else echo \"$@\" >> ran; fi");
            write_program(&dir.path().join("aloe"), &body);
            let mut command = Command::new("bash");
            let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
            command.args(["-c", &script]).current_dir(dir.path()).env("ALOE", "aloe").env("PATH", path);
            command.output().unwrap()
        };
        write_program(&dir.path().join("sha256sum"), "exit 0");
        let other = says("0.2.0");
        assert_eq!(other.status.code(), Some(78));
        let said = String::from_utf8(other.stderr).unwrap();
        assert_eq!(said, "aloe is aloe 0.2.0, pinned 0.1.0 in stages/01-sft/env.lock\n");
        assert!(!dir.path().join("ran").exists());
        assert!(says("0.1.0").status.success());
        assert_eq!(std::fs::read_to_string(dir.path().join("ran")).unwrap(), "run recipe.toml\n");
    }

    #[test]
    fn what_must_come_before_an_engine_ends_the_script_where_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let before = argv(&["aloe", "job", ".", "sft", "--render"]);
        let script = run_script(&stage(Trainer::Trl, 1), &[before], &argv(&["echo", "trained"]));
        let aloe = "echo \"$@\" > asked; exit $(cat code)";
        let programs = [("sha256sum", "exit 0"), ("python", "exit 0"), ("aloe", aloe)];
        let program = dir.path().join("bin/aloe");
        std::fs::write(dir.path().join("code"), "0").unwrap();
        bash(dir.path(), &script, &programs, &[("ALOE", program.to_str().unwrap())]);
        assert_eq!(std::fs::read_to_string(dir.path().join("asked")).unwrap(), "job . sft --render\n");
        let log = dir.path().join("work/sft/engine.log");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "trained\n");
        std::fs::remove_file(&log).unwrap();
        std::fs::write(dir.path().join("code"), "2").unwrap();
        let mut failed = Command::new("bash");
        failed.args(["-c", &script]).current_dir(dir.path()).env("ALOE", &program);
        let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        assert_eq!(failed.env("PATH", path).status().unwrap().code(), Some(2));
        assert!(!log.exists());
    }

    #[test]
    fn an_engine_of_other_versions_than_planned_and_inputs_of_other_bytes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("stages/01-sft");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(dir.path().join("a.jsonl"), "abc").unwrap();
        // The digest of "abc" that FIPS 180-2, appendix B.1 gives.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let inputs = [("a.jsonl".to_owned(), digest.to_owned())].into();
        std::fs::write(folder.join("inputs.sha256"), inputs_file(&inputs)).unwrap();
        let pins = [("pip", "0.0.1"), ("no-such-package", "2.8.3")];
        std::fs::write(folder.join("env.lock"), env_lock(&pins)).unwrap();
        let script =
            run_script(&stage(Trainer::Trl, 1), &[], &argv(&["echo", "trained"])).replace("python -", "python3 -");
        let run = || Command::new("bash").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
        let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let other = said(run().stderr);
        for part in
            ["has other versions than stages/01-sft/env.lock: pip ", "no-such-package is not installed, pinned 2.8.3"]
        {
            assert!(other.contains(part) && !other.contains("Traceback"), "{other}");
        }
        std::fs::write(folder.join("env.lock"), "").unwrap();
        assert!(run().status.success());
        assert_eq!(std::fs::read_to_string(dir.path().join("work/sft/engine.log")).unwrap(), "trained\n");
        std::fs::write(dir.path().join("a.jsonl"), "abd").unwrap();
        let changed = run();
        assert!(!changed.status.success());
        assert!(said(changed.stdout).contains("a.jsonl: FAILED"));
    }
}
