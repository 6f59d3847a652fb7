//! Stages whose model is served inside their job: what is asked, what is refused, and that nothing is left, however the job ends.

use super::rig::Rig;
use crate::{aloe, root, run, stories};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A planned run of one evaluation and what its servers leave behind.
struct Served {
    dir: tempfile::TempDir,
    run: PathBuf,
}

const N_QUESTIONS: usize = 24;

/// Plans an evaluation of stories260K on two servers of this behaviour; `more` goes to the end of cluster.toml.
fn planned(stories: &Path, place: &str, behaviour: &str, more: &str) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let served = Served { run: dir.path().join("run"), dir };
    std::fs::create_dir(served.seen()).unwrap();
    let starter = root().join("starter").canonicalize().unwrap();
    let recipe = served.dir.path().join("served.toml");
    let text = format!(
        "name = \"served\"\nseed = 3\n[[stage]]\nkind = \"eval\"\nname = \"scores\"\nfrom = {{ model = {:?} }}\ntasks = [\"starter_mcqa\"]\n\
         protocol = \"lm-eval\"\nlimit = {N_QUESTIONS}\nconnections = 2\ndata = {starter:?}\n",
        stories.display().to_string()
    );
    std::fs::write(&recipe, text).unwrap();
    let mock = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/handoff/mock_server.py");
    let command = ["python3", mock.to_str().unwrap(), "{port}", "{model}", served.seen().to_str().unwrap(), behaviour]
        .map(|word| format!("{word:?}"))
        .join(", ");
    let cluster = served.dir.path().join("cluster.toml");
    let text = format!(
        "name = \"here\"\naloe = \"{}\"\n[slurm]\npartition = \"acc\"\nsignal_before = 2\n[resources.default]\nnodes = 1\ncpus_per_node = 2\n\
         {more}\n[serving]\ncommand = [{command}]\nreplicas = 2\nready = 60\n{}",
        env!("CARGO_BIN_EXE_aloe"),
        if more.contains("gpus_per_node = 2") { "gpus = 1\n" } else { "" }
    );
    std::fs::write(&cluster, text).unwrap();
    let arguments =
        ["plan", recipe.to_str().unwrap(), "--where", place, "--cluster", cluster.to_str().unwrap(), "--out"];
    let (_, said, code) = run(&[&arguments[..], &[served.run.to_str().unwrap()]].concat());
    assert_eq!(code, 0, "{said}");
    served
}

const QUICK: &str = "gpus_per_node = 0\ntime = 600";

impl Served {
    fn seen(&self) -> PathBuf {
        self.dir.path().join("seen")
    }

    fn run_it(&self, command: &str) -> (String, i32) {
        let (_, said, code) = run(&[command, self.run.to_str().unwrap()]);
        (said, code)
    }

    /// What the servers wrote into files of this ending, in the order of the ports.
    fn written(&self, ending: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.seen()).unwrap().flatten().map(|entry| entry.path());
        let mut paths: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|found| found == ending)).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    fn n_asked(&self) -> usize {
        self.written("asked").iter().map(String::len).sum()
    }

    /// No announcement and no server's process.
    fn assert_nothing_is_left(&self) {
        let files = std::fs::read_dir(self.run.join("work/scores/servers")).unwrap().flatten();
        let names: Vec<String> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert!(!names.is_empty() && names.iter().all(|name| name.ends_with(".log")), "{names:?}");
        let pids = self.written("pid");
        assert!(!pids.is_empty());
        for pid in pids {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            assert!(!command.contains("mock_server.py"), "process {pid} is left: {command}");
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.run.join("state/scores/local.log")).unwrap()
    }

    fn samples(&self) -> String {
        std::fs::read_to_string(self.run.join("out/scores/samples.jsonl")).unwrap()
    }

    fn state(&self, rig: Option<&Rig>) -> String {
        super::chain::states(&self.run, rig)[0].1.clone()
    }

    /// Waits until answers are written down.
    fn wait_for_answers(&self) {
        let (log, started) = (self.run.join("out/.scores.partial/.answers.log"), Instant::now());
        while !std::fs::read_to_string(&log).unwrap_or_default().contains("{\"answered\"") {
            assert!(started.elapsed() < Duration::from_secs(120), "{} requests came\n{}", self.n_asked(), self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A server of the mock by its address, as users had them before: the answers that served stages must give.
fn samples_by_address(stories: &Path) -> String {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mock = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/handoff/mock_server.py");
    let mut server = Command::new("python3")
        .args([mock.to_str().unwrap(), &port, "m", dir.path().to_str().unwrap(), "good"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let (out, starter) = (dir.path().join("out"), root().join("starter").canonicalize().unwrap());
    let model = format!("http://127.0.0.1:{port}/v1#m");
    let limit = N_QUESTIONS.to_string();
    let (_, said, code) = run(&[
        "eval",
        &model,
        "--tokenizer",
        stories.to_str().unwrap(),
        "--tasks",
        "starter_mcqa",
        "--protocol",
        "lm-eval",
        "--limit",
        &limit,
        "--seed",
        "3",
        "--data",
        starter.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(code, 0, "{said}");
    std::fs::read_to_string(out.join("samples.jsonl")).unwrap()
}

#[test]
fn a_served_stage_asks_both_servers_of_its_job_gives_what_an_address_gives_and_leaves_nothing() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "good", QUICK);
    let script = std::fs::read_to_string(served.run.join("stages/10-scores/run.sh")).unwrap();
    let command = "exec \"$ALOE\" with-servers --model ./files/01-stories260K --servers work/scores/servers -- \"$ALOE\" run recipe.toml \
                   --stage scores --out out --servers work/scores/servers\n";
    assert!(script.ends_with(command), "{script}");
    let (said, code) = served.run_it("run");
    assert_eq!(code, 0, "{said}\n{}", served.log());
    let asked = served.written("asked");
    assert!(asked.len() == 2 && asked.iter().all(|one| one.len() > 4), "{asked:?}");
    assert_eq!(served.written("pid").len(), 2, "a server was started twice");
    assert_eq!(served.samples(), samples_by_address(&stories));
    served.assert_nothing_is_left();
    let record = std::fs::read_to_string(served.run.join("out/scores/record.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert!(record["config_used"]["served_by"].as_str().unwrap().ends_with(" good"), "{}", record["config_used"]);
    let results = std::fs::read_to_string(served.run.join("out/scores/results.json")).unwrap();
    let results: Value = serde_json::from_str(&results).unwrap();
    let weights = results["model"]["weights"].as_str().unwrap();
    assert!(weights.strip_prefix("served ").is_some_and(|digest| digest.len() == 64), "{weights}");
    assert_eq!(results["model"]["name"], "01-stories260K");
}

/// Two tasks with another number of options each, by two rules of reading an answer.
#[test]
fn a_model_is_loaded_once_a_server_for_all_tasks_of_its_stage() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "good", QUICK);
    let recipe = served.dir.path().join("served.toml");
    let text = std::fs::read_to_string(&recipe).unwrap();
    let tasks = text.replace("tasks = [\"starter_mcqa\"]", "tasks = [\"starter_mcqa\", \"starter_pubmedqa\"]");
    assert_ne!(tasks, text);
    std::fs::write(&recipe, tasks).unwrap();
    let cluster = served.dir.path().join("cluster.toml");
    let [recipe, cluster] = [&recipe, &cluster].map(|path| path.to_str().unwrap());
    let out = served.run.to_str().unwrap();
    let (_, said, code) = run(&["plan", recipe, "--where", "local", "--cluster", cluster, "--out", out]);
    assert_eq!(code, 0, "{said}");
    let (said, code) = served.run_it("run");
    assert_eq!(code, 0, "{said}\n{}", served.log());
    let samples = served.samples();
    for task in ["starter_mcqa", "starter_pubmedqa"] {
        assert!(
            samples.contains(&format!("\"task\":\"{task}\"")),
            "{task}: {}",
            samples.lines().next().unwrap_or_default()
        );
    }
    // A process of the mock is one load of the model.
    assert_eq!(served.written("pid").len(), 2, "two replicas, whatever the tasks");
    served.assert_nothing_is_left();
}

#[test]
fn a_server_that_dies_before_it_is_ready_fails_its_stage_with_the_end_of_its_log() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "early", QUICK);
    let (said, code) = served.run_it("run");
    assert!(code == 1 && said.contains("run.sh: exit code 1"), "{said}");
    let log = served.log();
    for part in
        ["the server ended (exit code 1) before it was ready; its log ends:", "loading shard 19", "CUDA out of memory"]
    {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    assert_eq!((served.n_asked(), served.state(None)), (0, "failed".to_owned()));
    served.assert_nothing_is_left();
}

#[test]
fn a_server_that_dies_in_the_middle_is_told_and_the_other_answers_the_rest() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "late", QUICK);
    let (said, code) = served.run_it("run");
    assert_eq!(code, 0, "{said}\n{}", served.log());
    let log = served.log();
    assert!(log.contains("the server ended (exit code 9)") && log.contains("the GPU fell off the bus"), "{log}");
    assert_eq!(served.samples(), samples_by_address(&stories));
    served.assert_nothing_is_left();
}

#[test]
fn a_server_of_another_model_is_refused_before_anything_is_asked() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "other", QUICK);
    let (said, code) = served.run_it("run");
    assert_eq!(code, 1, "{said}");
    let log = served.log();
    assert!(log.contains("it serves \"/other/model\" \"/other/model\", and not the model"), "{log}");
    assert_eq!(served.n_asked(), 0);
    served.assert_nothing_is_left();
}

#[test]
fn a_cancelled_stage_ends_its_servers_keeps_its_answers_and_goes_on_from_them() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "slow", QUICK);
    let mut client = aloe();
    client.args(["run", served.run.to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut client = client.spawn().unwrap();
    // What is answered counts once its server has given the canary's answer after it, every ten seconds.
    served.wait_for_answers();
    assert_eq!(served.run_it("cancel").1, 0);
    client.wait().unwrap();
    assert_eq!(served.state(None), "cancelled");
    served.assert_nothing_is_left();
    let n_before = served.n_asked();
    let kept = std::fs::read_to_string(served.run.join("out/.scores.partial/.answers.log")).unwrap();
    let n_kept = kept.matches("{\"answered\"").count();
    assert!(n_kept > 0, "{kept}");
    let (said, code) = served.run_it("resume");
    assert_eq!(code, 0, "{said}\n{}", served.log());
    assert!(served.log().contains("going on from an interrupted run"), "{}", served.log());
    // Four options and the second asking of each question. Of what was answered before the signal only what was written down counts, and
    // of that all does: each question in the log saves its four options.
    let n_whole = 2 * 4 * N_QUESTIONS;
    let n_again = served.n_asked() - n_before;
    assert!(
        n_again + 4 * n_kept <= n_whole,
        "{n_again} of {n_whole} were asked again, though {n_kept} questions had been answered and kept"
    );
    assert_eq!(served.samples(), samples_by_address(&stories));
    served.assert_nothing_is_left();
}

#[test]
fn at_its_time_limit_a_served_stage_fails_and_its_servers_end() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "slow", "gpus_per_node = 0\ntime = 6");
    let (said, code) = served.run_it("run");
    assert!(code == 1 && said.contains("the time limit of 6 s"), "{said}\n{}", served.log());
    served.assert_nothing_is_left();
}

/// SIGKILL leaves no time for anything: the servers end because whoever started them is gone.
#[test]
fn servers_end_when_the_process_that_started_them_is_killed() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "slow", QUICK);
    let servers = served.run.join("work/scores/servers");
    let mut owner = aloe()
        .args([
            "with-servers",
            "--model",
            "files/01-stories260K",
            "--servers",
            "work/scores/servers",
            "--",
            "sleep",
            "600",
        ])
        .current_dir(&served.run)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !(servers.join("1.json").exists() && servers.join("2.json").exists()) {
        assert!(started.elapsed() < Duration::from_secs(60), "the servers did not come up");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Any command can ask them by their folder.
    let requests = served.dir.path().join("requests.jsonl");
    std::fs::write(&requests, "{\"id\": \"a\", \"prompt\": \"Once upon a time\", \"continuations\": [\" zebra\"]}\n")
        .unwrap();
    let model = format!("servers:{}", servers.display());
    let (scores, said, code) =
        run(&["score", &model, "--tokenizer", stories.to_str().unwrap(), "--requests", requests.to_str().unwrap()]);
    assert!(code == 0 && scores.contains("\"sum\""), "{scores} {said}");
    // In another job they are refused.
    let mut other = aloe();
    other.args(["score", &model, "--tokenizer", stories.to_str().unwrap(), "--requests", requests.to_str().unwrap()]);
    let refused = other.env("ALOE_JOB", "another").output().unwrap();
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("this is job another; start servers in this job"), "{refused}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    // A dying process has no command line any more while it still counts as a process: its state is what says that it has ended.
    let is_left = || {
        served.written("pid").iter().any(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
        })
    };
    let started = Instant::now();
    while is_left() {
        assert!(started.elapsed() < Duration::from_secs(30), "a server outlives its owner");
        std::thread::sleep(Duration::from_millis(50));
    }
    let (_, said, code) =
        run(&["score", &model, "--tokenizer", stories.to_str().unwrap(), "--requests", requests.to_str().unwrap()]);
    assert!(code == 2 && said.contains("has ended; it is left out") && said.contains("no living server"), "{said}");
}

#[test]
fn more_gpus_for_servers_than_a_job_has_are_refused_when_it_is_planned() {
    let Some(stories) = stories() else { return };
    let served = planned(&stories, "local", "good", QUICK);
    let cluster = served.dir.path().join("cluster.toml");
    let text = std::fs::read_to_string(&cluster).unwrap();
    std::fs::write(&cluster, format!("{text}gpus = 4\n")).unwrap();
    let recipe = served.dir.path().join("served.toml");
    let out = served.dir.path().join("other");
    let arguments =
        ["plan", recipe.to_str().unwrap(), "--where", "local", "--cluster", cluster.to_str().unwrap(), "--out"];
    let (_, said, code) = run(&[&arguments[..], &[out.to_str().unwrap()]].concat());
    assert!(code == 2 && said.contains("asks 2 servers with 4 GPUs each, its job has 0"), "{said}");
}

#[test]
fn under_slurm_each_server_has_its_own_gpus_and_a_cancelled_job_leaves_none() {
    let (Some(stories), Some(rig)) = (stories(), Rig::start()) else { return };
    let two_gpus = "gpus_per_node = 2\ntime = 600";
    let served = planned(&stories, "slurm", "good", two_gpus);
    rig.aloe_ok(&["run", served.run.to_str().unwrap()]);
    rig.wait_until(&served.run, Duration::from_secs(300), |phases| phases == ["done"]);
    let mut gpus = served.written("gpus");
    gpus.sort();
    assert_eq!(gpus, ["0", "1"]);
    assert_eq!(served.samples(), samples_by_address(&stories));
    served.assert_nothing_is_left();
    let slow = planned(&stories, "slurm", "slow", two_gpus);
    rig.aloe_ok(&["run", slow.run.to_str().unwrap()]);
    let started = Instant::now();
    while slow.n_asked() < 20 {
        assert!(started.elapsed() < Duration::from_secs(300), "{} requests came", slow.n_asked());
        std::thread::sleep(Duration::from_millis(50));
    }
    let job = super::chain::status(&slow.run, Some(&rig))["stages"][0]["job"].as_str().unwrap().to_owned();
    rig.slurm("scancel", &[&job]);
    rig.wait_until(&slow.run, Duration::from_secs(300), |phases| phases == ["cancelled"]);
    let started = Instant::now();
    // The state is written before Slurm has seen the last process off.
    while slow.run.join("work/scores/servers/1.json").exists() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(200));
    }
    slow.assert_nothing_is_left();
}
