//! A real Slurm for one test, by `oracles/slurm_rig.py`: two emulated nodes with four fake GPUs each. Needs root and Debian's packages.

use super::chain::states;
use crate::{aloe, root};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A running Slurm; dropping it ends all of it.
pub(super) struct Rig {
    dir: tempfile::TempDir,
    /// For `SLURM_CONF`.
    pub(super) conf: PathBuf,
}

impl Rig {
    /// Starts it, or says why not: slow tests are not asked for, or Slurm is not installed.
    pub(super) fn start() -> Option<Self> {
        if std::env::var_os("ALOE_SLOW").is_none() {
            eprintln!("not run: ALOE_SLOW is not set");
            return None;
        }
        let is_there =
            Command::new("sh").args(["-c", "command -v sbatch"]).output().is_ok_and(|output| output.status.success());
        if !is_there {
            assert!(
                std::env::var_os("ALOE_REQUIRE").is_none(),
                "Slurm is not installed: python3 oracles/slurm_rig.py install"
            );
            eprintln!("not run: Slurm is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let output = rig(&["start", dir.path().to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let conf = dir.path().join("conf/slurm.conf");
        Some(Self { dir, conf })
    }

    /// One of Slurm's commands; its standard output.
    pub(super) fn slurm(&self, command: &str, arguments: &[&str]) -> String {
        let output = Command::new(command).args(arguments).env("SLURM_CONF", &self.conf).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `aloe` as a user of this cluster.
    pub(super) fn aloe(&self, arguments: &[&str]) -> Command {
        let mut command = aloe();
        command.args(arguments).env("SLURM_CONF", &self.conf);
        command
    }

    pub(super) fn aloe_ok(&self, arguments: &[&str]) {
        let output = self.aloe(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Asks `aloe status` until `is_there`.
    pub(super) fn wait_until(&self, run: &Path, patience: Duration, is_there: impl Fn(&[String]) -> bool) {
        let started = Instant::now();
        loop {
            let phases: Vec<String> = states(run, Some(self)).into_iter().map(|(_, phase)| phase).collect();
            if is_there(&phases) {
                return;
            }
            // Jobs need the processors that questions take.
            std::thread::sleep(Duration::from_millis(500));
            let jobs = self.slurm("squeue", &["--states=all", "--Format=JobID,Name:40,State,Reason:40"]);
            assert!(started.elapsed() < patience, "after {patience:?}: {phases:?}\n{jobs}\n{}", logs(run));
        }
    }

    /// Name and state of `n` jobs that ended, by Slurm's own completion file, which is a moment later than the jobs' own word.
    pub(super) fn completed(&self, n: usize) -> Vec<(String, String)> {
        let started = Instant::now();
        loop {
            let found = self.completed_so_far();
            if found.len() >= n || started.elapsed() > Duration::from_secs(60) {
                return found;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn completed_so_far(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.dir.path().join("log/jobcomp.txt")).unwrap_or_default();
        let field = |line: &str, key: &str| {
            let found = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_default().to_owned()
        };
        text.lines().map(|line| (field(line, "Name"), field(line, "JobState"))).collect()
    }

    /// Kills a daemon with SIGKILL: `slurmctld`, or `n1/slurmd`.
    pub(super) fn kill(&self, daemon: &str) {
        let pid = std::fs::read_to_string(self.dir.path().join(format!("{daemon}.pid"))).unwrap();
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
    }

    /// Waits until the controller has written its jobs to its disk once more.
    pub(super) fn wait_until_saved(&self) {
        let now = std::time::SystemTime::now();
        let started = Instant::now();
        let saved = || self.dir.path().join("ctld/job_state").metadata().and_then(|file| file.modified());
        // It saves after a change of its jobs: one more, that never runs, written after all others.
        self.slurm("sbatch", &["--hold", "--output=/dev/null", "--wrap=true"]);
        while !saved().is_ok_and(|at| at > now) {
            assert!(started.elapsed() < Duration::from_secs(60), "the controller saves nothing");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Starts a daemon again.
    pub(super) fn start_again(&self, daemon: &str) {
        let conf = self.conf.to_str().unwrap();
        let (program, node) = match daemon.split_once('/') {
            Some((node, _)) => ("/usr/sbin/slurmd", vec!["-f", conf, "-N", node]),
            None => ("/usr/sbin/slurmctld", vec!["-f", conf]),
        };
        assert!(Command::new(program).args(node).env("SLURM_CONF", conf).status().unwrap().success());
    }

    /// Starts the controller without its memory: it knows no job of before.
    pub(super) fn forget(&self) {
        let conf = self.conf.to_str().unwrap();
        let started = Command::new("/usr/sbin/slurmctld").args(["-c", "-f", conf]).env("SLURM_CONF", conf).status();
        assert!(started.unwrap().success());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        rig(&["stop", self.dir.path().to_str().unwrap()]);
    }
}

fn rig(arguments: &[&str]) -> Output {
    Command::new("python3").arg(root().join("oracles/slurm_rig.py")).args(arguments).output().unwrap()
}

/// The ends of the jobs' logs, for a failure's message.
fn logs(run: &Path) -> String {
    let mut text = String::new();
    for stage in std::fs::read_dir(run.join("state")).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(stage.path()).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.ends_with(".log") {
                let log = std::fs::read_to_string(file.path()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                text.push_str(&format!(
                    "{}:\n{}\n",
                    file.path().display(),
                    lines[lines.len().saturating_sub(8)..].join("\n")
                ));
            }
        }
    }
    text
}
