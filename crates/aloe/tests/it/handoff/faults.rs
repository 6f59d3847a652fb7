//! Thirty runs under a real Slurm, six ways of breaking them: each ends in the right state, no stage is lost, and none runs twice at once.
//!
//! A run has three stages whose work is a shell that notes when it begins and ends, and cries out when a process of an earlier beginning of its
//! stage still works. Whoever is told to save (SIGTERM) notes that and goes on from there.

use super::chain::{states, status};
use super::rig::Rig;
use aloe_handoff::{Cluster, Resources, RunPlan, StagePlan, Trainer, Where, sbatch};
use aloe_record::{atomic, digest};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The work of a stage: `@SECONDS@` of it, less what an earlier session saved. A process is known by its number and its start time: the number
/// alone is soon another's on a busy machine (and `kill -0` also answers for the threads of others), and what is dead and not reaped yet (Z)
/// does not work. Both are noted, neither is a second beginning.
const WORK: &str = r#"
stage=$(basename "$(dirname "$0")")
# State and start time of a process: fields 3 and 22 of proc(5), counted from behind the name.
seen() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 1,20; }
if [ -e "$stage.alive" ]; then
  while read -r pid start; do
    now=$(seen "$pid")
    case "$now" in
      "") ;;
      "Z $start") echo "note $stage: process $pid is dead and not reaped" >> trace ;;
      *" $start") echo "TWICE $stage: process $pid of its earlier beginning is there: $now $(tr '\0' ' ' < "/proc/$pid/cmdline")" >> trace ;;
      *) echo "note $stage: $pid is another process now" >> trace ;;
    esac
  done < "$stage.alive"
fi
echo "$$ $(seen $$ | cut -d ' ' -f 2)" > "$stage.alive"
echo "begin $stage" >> trace
trap 'echo "saved $stage" >> trace; touch "$stage.saved"; kill $!; exit 143' TERM
if [ ! -e "$stage.saved" ]; then
  sleep @SECONDS@ &
  echo "$! $(seen $! | cut -d ' ' -f 2)" >> "$stage.alive"
  wait
fi
rm "$stage.alive"
echo "end $stage" >> trace
"#;

/// Whether a way of breaking runs is asked for: `ALOE_FAULTS=6` or `ALOE_FAULTS=1,3`; all without it.
fn is_asked(way: &str) -> bool {
    std::env::var("ALOE_FAULTS").map_or(true, |ways| ways.split(',').any(|asked| asked == way))
}

/// A run folder of the stages a, b and c, each after the one before it, whose work takes `seconds`.
fn run_folder(dir: &Path, name: &str, seconds: [u32; 3], time_limit_s: u64) -> PathBuf {
    let run = dir.join(name);
    let text = format!("name = \"here\"\naloe = \"{}\"\n[slurm]\nsignal_before = 20\n", env!("CARGO_BIN_EXE_aloe"));
    atomic::write(&run.join("cluster.toml"), text.as_bytes()).unwrap();
    atomic::write(&run.join("recipe.toml"), b"").unwrap();
    let stage = |name: &str, after: &[&str]| StagePlan {
        name: name.into(),
        kind: "merge".into(),
        folder: format!("stages/{name}").into(),
        after: after.iter().map(|name| (*name).to_owned()).collect(),
        trainer: Trainer::Aloe,
        resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s },
    };
    let stages = vec![stage("a", &[]), stage("b", &["a"]), stage("c", &["b"])];
    let plan =
        RunPlan { version: 1, name: name.into(), place: Where::Slurm, recipe_sha256: digest::bytes(b""), stages };
    let cluster = Cluster::parse(&text).unwrap();
    for (stage, seconds) in plan.stages.iter().zip(seconds) {
        let folder = run.join(&stage.folder);
        let work = WORK.replace("@SECONDS@", &seconds.to_string());
        atomic::write(&folder.join("run.sh"), work.as_bytes()).unwrap();
        atomic::write(&folder.join("check.sh"), b"exit 0\n").unwrap();
        atomic::write(&folder.join("job.sbatch"), sbatch::job_script(&plan, stage, &cluster).as_bytes()).unwrap();
    }
    atomic::write_json(&run.join("run.json"), &plan).unwrap();
    run
}

fn phases(run: &Path, rig: &Rig) -> Vec<String> {
    states(run, Some(rig)).into_iter().map(|(_, phase)| phase).collect()
}

fn is_over(phases: &[String]) -> bool {
    phases.iter().all(|phase| ["done", "failed", "cancelled"].contains(&phase.as_str()))
}

fn trace(run: &Path) -> Vec<String> {
    std::fs::read_to_string(run.join("trace")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn count(run: &Path, line: &str) -> usize {
    trace(run).iter().filter(|found| *found == line).count()
}

/// Waits until stage `a` of every run has begun.
fn wait_for_begin(runs: &[PathBuf]) {
    let started = Instant::now();
    while !runs.iter().all(|run| count(run, "begin a") > 0) {
        assert!(started.elapsed() < Duration::from_secs(120), "not all began");
        std::thread::yield_now();
    }
}

fn assert_states(runs: &[PathBuf], rig: &Rig, expected: [&str; 3]) {
    for run in runs {
        assert_eq!(phases(run, rig), expected, "{}: {:?}", run.display(), trace(run));
        let twice: Vec<String> = trace(run).into_iter().filter(|line| line.starts_with("TWICE")).collect();
        assert!(twice.is_empty(), "{}: {twice:?}", run.display());
    }
}

/// Takes six minutes and more, most of them Slurm's own waiting, and counts on a machine that is not busy: `ALOE_SLOW=faults` asks for it.
/// `ALOE_FAULTS` chooses ways by their numbers.
#[test]
fn thirty_broken_runs_end_in_the_right_state_and_no_stage_runs_twice() {
    if std::env::var_os("ALOE_SLOW").is_none_or(|asked| asked != "faults") {
        eprintln!("not run: ALOE_SLOW is not faults");
        return;
    }
    let Some(rig) = Rig::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let five = |way: &str, name: &str, seconds: [u32; 3], limit_s: u64| -> Vec<PathBuf> {
        let n_runs = if is_asked(way) { 5 } else { 0 };
        (0..n_runs).map(|at| run_folder(dir.path(), &format!("{name}-{at}"), seconds, limit_s)).collect()
    };
    let submit = |runs: &[PathBuf]| runs.iter().for_each(|run| rig.aloe_ok(&["run", run.to_str().unwrap()]));

    // 1: told to save 20 s before a limit of a minute, requeued, gone on with. 2: the same limit without the warning.
    let saves = five("1", "saves", [300, 0, 0], 60);
    let limited = five("2", "limited", [300, 0, 0], 60);
    for run in &limited {
        let script = run.join("stages/a/job.sbatch");
        let text = std::fs::read_to_string(&script).unwrap().replace("#SBATCH --signal", "# no signal");
        std::fs::write(&script, text).unwrap();
    }
    submit(&saves);
    submit(&limited);
    // 3: the client is killed at some moment of its submission, and started again.
    let clients = five("3", "client", [3, 0, 0], 600);
    let mut rng = aloe_record::CounterRng::new(5, "kill", 0);
    for run in &clients {
        let mut client = rig.aloe(&["run", run.to_str().unwrap()]).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(0.25 * rng.uniform_f64()));
        client.kill().unwrap();
        client.wait().unwrap();
        rig.aloe_ok(&["run", run.to_str().unwrap()]);
    }
    // 4: cancelled by hand in the middle.
    let cancelled = five("4", "cancelled", [300, 0, 0], 600);
    submit(&cancelled);
    wait_for_begin(&cancelled);
    for run in &cancelled {
        rig.slurm("scancel", &[status(run, Some(&rig))["stages"][0]["job"].as_str().unwrap()]);
    }
    for run in limited.iter().chain(&clients).chain(&cancelled) {
        rig.wait_until(run, Duration::from_secs(300), is_over);
    }
    assert!(saves.iter().all(|run| count(run, "saved a") == 1), "{:?}", trace(&saves[0]));

    // 5: a node's daemon is killed while jobs run there: they work on as orphans, and the controller starts them on the other node while
    // they still do. The controller dies too, and comes back.
    let orphans = five("5", "orphan", [200, 0, 0], 600);
    submit(&orphans);
    wait_for_begin(&orphans);
    if is_asked("5") {
        rig.kill("n1/slurmd");
        // What it has not written down yet it would forget: that is the sixth way.
        rig.wait_until_saved();
        rig.kill("slurmctld");
        rig.start_again("slurmctld");
    }
    for run in orphans.iter().chain(&saves) {
        rig.wait_until(run, Duration::from_secs(600), is_over);
    }
    assert_states(&saves, &rig, ["done"; 3]);
    assert!(saves.iter().all(|run| count(run, "saved a") == 1 && count(run, "begin a") == 2), "{:?}", trace(&saves[0]));
    assert_states(&limited, &rig, ["failed", "cancelled", "cancelled"]);
    assert_states(&clients, &rig, ["done"; 3]);
    assert!(clients.iter().all(|run| count(run, "begin a") == 1), "a stage ran again after its client was killed");
    assert_states(&cancelled, &rig, ["cancelled"; 3]);
    assert_states(&orphans, &rig, ["done"; 3]);
    assert!(
        orphans.iter().all(|run| count(run, "begin a") == 1 && count(run, "end a") == 1),
        "{:?}",
        trace(&orphans[0])
    );
    if is_asked("5") {
        rig.start_again("n1/slurmd");
    }

    // 6: the controller forgets everything: jobs vanish.
    let vanished = five("6", "vanished", [300, 0, 0], 600);
    submit(&vanished);
    wait_for_begin(&vanished);
    if is_asked("6") {
        rig.kill("slurmctld");
        rig.forget();
    }
    for run in &vanished {
        rig.wait_until(run, Duration::from_secs(300), is_over);
    }
    assert_states(&vanished, &rig, ["failed", "cancelled", "cancelled"]);
    // Nothing is lost: each can be taken up again and completes.
    for run in vanished.iter().chain(&limited).chain(&cancelled) {
        std::fs::write(run.join("a.saved"), "").unwrap();
        rig.aloe_ok(&["resume", run.to_str().unwrap()]);
    }
    for run in vanished.iter().chain(&limited).chain(&cancelled) {
        rig.wait_until(run, Duration::from_secs(300), is_over);
        assert_states(std::slice::from_ref(run), &rig, ["done"; 3]);
    }
    let all = [&saves, &limited, &clients, &cancelled, &orphans, &vanished];
    for (run, line) in all.into_iter().flatten().flat_map(|run| trace(run).into_iter().map(move |line| (run, line))) {
        if line.starts_with("note") {
            eprintln!("{}: {line}", run.file_name().unwrap().to_string_lossy());
        }
    }
}
