//! This machine as a scheduler: each job is a child process of its own group, `aloe job`, that outlives its client. Its id is
//! `local-PID-START`, so that another process which later gets the number is not taken for it.

use super::{Observed, Scheduler, Submission};
use crate::plan::StagePlan;
use crate::{Error, Result, state};
use rustix::process::{Pid, Signal, kill_process};
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Runs jobs as child processes.
#[derive(Debug)]
pub struct Local {
    aloe: PathBuf,
    /// Reaped when they are looked at.
    children: RefCell<Vec<Child>>,
}

impl Local {
    /// A scheduler whose jobs are run by the program `aloe`.
    pub fn new(aloe: PathBuf) -> Self {
        Self { aloe, children: RefCell::default() }
    }
}

/// The id of the process `pid`, while it lives.
pub fn job_id(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the name in parentheses may hold anything; the state follows it as field 3, the start time is field 22.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (state, start) = (fields.first()?, fields.get(19)?);
    (*state != "Z" && *state != "X").then(|| format!("local-{pid}-{start}"))
}

fn pid_of(job: &str) -> Option<u32> {
    let (pid, _) = job.strip_prefix("local-")?.split_once('-')?;
    pid.parse().ok()
}

impl Scheduler for Local {
    fn holds_back(&self) -> bool {
        false
    }

    fn preflight(&self, _: &Path, stages: &[&StagePlan]) -> Result<Vec<String>> {
        let several = stages.iter().filter(|stage| stage.resources.n_nodes > 1);
        Ok(several
            .map(|stage| {
                format!("stage {:?} asks for {} machines; --where local has one", stage.name, stage.resources.n_nodes)
            })
            .collect())
    }

    fn submit(&self, submission: &Submission<'_>) -> Result<String> {
        let folder = state::folder(submission.run, &submission.stage.name);
        std::fs::create_dir_all(&folder).map_err(aloe_record::Error::io("create", &folder))?;
        let path = folder.join("local.log");
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(aloe_record::Error::io("open", &path))?;
        let copy = log.try_clone().map_err(aloe_record::Error::io("open", &path))?;
        let mut command = Command::new(&self.aloe);
        command.args(["job", ".", &submission.stage.name, "--name", submission.name]);
        command.args(["--time-limit", &submission.stage.resources.time_limit_s.to_string()]);
        // Inside an allocation of Slurm's it is no job of Slurm's: it must neither take that id nor requeue it.
        for name in ["SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_RESTART_COUNT", "SLURMD_NODENAME"] {
            command.env_remove(name);
        }
        command.current_dir(submission.run).stdin(Stdio::null()).stdout(log).stderr(copy).process_group(0);
        let child = command.spawn().map_err(aloe_record::Error::io("run", &self.aloe))?;
        // A child that has ended already stays in the table until it is reaped, with its start time.
        let id = job_id(child.id()).unwrap_or_else(|| format!("local-{}-0", child.id()));
        self.children.borrow_mut().push(child);
        Ok(id)
    }

    /// A client that died while it submitted: its job says its own id when it starts, within the time of a process' start.
    fn find(&self, name: &str) -> Result<Option<String>> {
        let entries = std::fs::read_dir("/proc").map_err(aloe_record::Error::io("list", Path::new("/proc")))?;
        for entry in entries.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let mut words = line.split(|&byte| byte == 0);
            let is_job = words.clone().nth(1) == Some(b"job".as_slice());
            if is_job && words.any(|word| word == name.as_bytes()) {
                return Ok(job_id(pid));
            }
        }
        Ok(None)
    }

    /// The start time in the id tells processes of one number apart.
    fn observe(&self, job: &str, _: Option<&str>) -> Result<Observed> {
        self.children.borrow_mut().retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        let lives = pid_of(job).and_then(job_id).is_some_and(|id| id == job);
        // A job writes how it ended; one that is gone without a word was killed.
        Ok(if lives { Observed::Running } else { Observed::Unknown })
    }

    fn cancel(&self, job: &str) -> Result<()> {
        if self.observe(job, None)? != Observed::Running {
            return Ok(());
        }
        let pid = pid_of(job).and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(()) };
        match kill_process(pid, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::Scheduler { command: "kill".into(), reason: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Resources, Trainer};
    use std::os::unix::fs::PermissionsExt as _;

    /// The variables are those of a job: the test's own process may not set them, so a child does that submits.
    #[test]
    fn a_job_of_this_machine_is_none_of_slurms_where_its_client_stands_in_an_allocation() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("aloe");
        std::fs::write(&program, "#!/bin/sh\nenv > seen.partial; mv seen.partial seen\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        if std::env::var_os("ALOE_TEST_RUN").is_none() {
            let name = "scheduler::local::tests::a_job_of_this_machine_is_none_of_slurms_where_its_client_stands_in_an_allocation";
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name])
                .envs([("ALOE_TEST_RUN", dir.path().as_os_str()), ("SLURM_JOB_ID", "77".as_ref())])
                .envs([("SLURM_JOB_NAME", "mine"), ("SLURM_RESTART_COUNT", "1"), ("SLURMD_NODENAME", "n1")])
                .stdout(Stdio::null())
                .status();
            assert!(status.unwrap().success());
            return;
        }
        assert_eq!(std::env::var("SLURM_JOB_ID").unwrap(), "77");
        let stage = StagePlan {
            name: "a".into(),
            kind: "merge".into(),
            folder: "stages/a".into(),
            after: vec![],
            trainer: Trainer::Aloe,
            resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 60 },
        };
        let local = Local::new(program);
        let job = local.submit(&Submission { run: dir.path(), stage: &stage, name: "x", after: &[] }).unwrap();
        while local.observe(&job, None).unwrap() == Observed::Running {
            std::thread::yield_now();
        }
        let seen = std::fs::read_to_string(dir.path().join("seen")).unwrap();
        assert!(seen.contains("PATH=") && !seen.contains("SLURM"), "{seen}");
    }
}
