//! Servers of one model inside a job: started as `[serving]` of `cluster.toml` says, announced by files once they have answered the
//! canary, and gone with their job, however it ends.
//!
//! Each server is the group of a small shell, the guard, whose standard input this process holds: when this process ends in whatever way,
//! the guard ends its group. What a server is asked, and whether its answers are sane, is the caller's ([`TryOut`]); here is what
//! processes do. One that dies before it is ready fails the whole; one that dies later is told and its file withdrawn, the others go on.

use crate::plan::StagePlan;
use crate::{Error, Result};
use aloe_engine::announced::{Announcement, node_name, start_of_process};
use aloe_record::atomic;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// `[serving]` of `cluster.toml`: what asks a model in a folder asks servers of it instead, started in the same job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Program and arguments; `{model}`, `{name}`, `{host}`, `{port}` and `{gpus}` are filled in.
    pub command: Vec<String>,
    /// Servers on the machine.
    pub replicas: u32,
    /// GPUs of each.
    pub gpus: u32,
    /// Seconds until each must have answered the canary.
    pub ready_s: u64,
}

impl Serving {
    /// GPUs that all servers need together must be the job's.
    pub fn mistake(&self, stage: &str, gpus_per_node: u32) -> Option<String> {
        let wanted = self.replicas * self.gpus;
        (wanted > gpus_per_node).then(|| {
            format!(
                "stage {stage:?} asks {} servers with {} GPUs each, its job has {gpus_per_node}: write gpus_per_node = {wanted} under \
                 [stages.{stage}] or its kind",
                self.replicas, self.gpus
            )
        })
    }
}

/// Where a stage's servers announce themselves, below the run folder; their logs lie there too.
pub fn folder_of(stage: &StagePlan) -> PathBuf {
    Path::new("work").join(&stage.name).join("servers")
}

/// The address that servers listen on: who asks them is on the same machine.
const HOST: &str = "127.0.0.1";

/// How long servers have to end after SIGTERM before they are killed; a scheduler gives a job about twice that.
const GRACE: Duration = Duration::from_secs(12);

/// How often servers are looked at.
const POLL: Duration = Duration::from_millis(200);

/// Runs its arguments in its own group and ends with their exit code; ends the group when standard input closes, which is when
/// the process that started it is gone.
const GUARD: &str = r#"exec 3<&0 < /dev/null
trap : TERM
"$@" 3<&- &
child=$!
(
  trap '' TERM
  read -r _ <&3
  kill -TERM -- -$$
  sleep 12
  kill -KILL -- -$$
) &
while :; do
  wait $child
  code=$?
  kill -0 $child 2> /dev/null || break
done
exit $code
"#;

/// A process group that ends with its owner.
struct Guarded {
    child: Child,
}

impl Guarded {
    /// Starts `command`; its output goes where `log` says.
    fn start(command: &[String], variables: &[(&str, String)], log: Option<&File>) -> std::io::Result<Self> {
        let mut guard = Command::new("bash");
        guard.args(["-c", GUARD, "guard"]).args(command).stdin(Stdio::piped()).process_group(0);
        guard.envs(variables.iter().map(|(name, value)| (name, value)));
        if let Some(log) = log {
            guard.stdout(log.try_clone()?).stderr(log.try_clone()?);
        }
        Ok(Self { child: guard.spawn()? })
    }

    fn send(&self, signal: Signal) {
        // The group may just have ended.
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, signal));
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten();
        if status.is_some() {
            // What it left behind in its group, the guard's own watch too.
            self.send(Signal::KILL);
        }
        status
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.send(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// What is started.
pub struct Launch<'a> {
    /// How.
    pub serving: &'a Serving,
    /// The model's folder, absolute.
    pub model: &'a Path,
    /// Its name in results.
    pub name: &'a str,
    /// Where servers announce themselves.
    pub folder: &'a Path,
    /// The job's id.
    pub job: &'a str,
    /// The GPUs that this process may use, as CUDA counts them.
    pub gpus: &'a [String],
}

/// Whether the server at an address is up and answers as the model: the model's name in its list; `None` while it does not answer yet; an
/// error where it answers otherwise.
pub type TryOut<'a> = dyn Fn(&str) -> std::result::Result<Option<String>, String> + 'a;

struct Replica {
    server: Guarded,
    port: u16,
    log: PathBuf,
    file: PathBuf,
    is_announced: bool,
}

/// Running servers; dropping them ends them and withdraws their files.
pub struct Servers {
    replicas: Vec<Replica>,
}

impl Servers {
    /// Starts every server. Announcements of an earlier session are removed first.
    pub fn start(launch: &Launch<'_>) -> Result<Self> {
        let Launch { serving, folder, .. } = launch;
        let wanted = (serving.replicas * serving.gpus) as usize;
        if launch.gpus.len() < wanted {
            let reason = format!(
                "{} servers with {} GPUs each need {wanted}, this job sees {}",
                serving.replicas,
                serving.gpus,
                launch.gpus.len()
            );
            return Err(Error::Server { log: folder.to_path_buf(), reason });
        }
        std::fs::create_dir_all(folder).map_err(aloe_record::Error::io("create", folder))?;
        for entry in std::fs::read_dir(folder).map_err(aloe_record::Error::io("list", folder))?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "json") {
                std::fs::remove_file(entry.path()).map_err(aloe_record::Error::io("remove", &entry.path()))?;
            }
        }
        let mut servers = Self { replicas: Vec::new() };
        for (at, port) in free_ports(serving.replicas)?.into_iter().enumerate() {
            let log = folder.join(format!("{}.log", at + 1));
            let file = folder.join(format!("{}.json", at + 1));
            let output = OpenOptions::new().create(true).append(true).open(&log);
            let output = output.map_err(aloe_record::Error::io("open", &log))?;
            let mut variables = Vec::new();
            if serving.gpus > 0 {
                let n = serving.gpus as usize;
                variables.push(("CUDA_VISIBLE_DEVICES", launch.gpus[at * n..(at + 1) * n].join(",")));
            }
            let command = filled(launch, port);
            let server =
                Guarded::start(&command, &variables, Some(&output)).map_err(aloe_record::Error::io("run", &log))?;
            servers.replicas.push(Replica { server, port, log, file, is_announced: false });
        }
        Ok(servers)
    }

    /// Waits until every server has been tried out, and announces each with the digest of the model's folder. `false` where `goes_on`
    /// said otherwise first.
    pub fn announce(
        &mut self,
        launch: &Launch<'_>,
        model_sha256: &str,
        try_out: &TryOut<'_>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<bool> {
        let (started, ready) = (Instant::now(), Duration::from_secs(launch.serving.ready_s));
        loop {
            for replica in self.replicas.iter_mut().filter(|replica| !replica.is_announced) {
                let failed = |reason: String| Error::Server { log: replica.log.clone(), reason };
                if let Some(status) = replica.server.ended() {
                    return Err(failed(format!(
                        "the server {} before it was ready{}",
                        how(status),
                        last_lines(&replica.log)
                    )));
                }
                let base = format!("http://{HOST}:{}/v1", replica.port);
                match try_out(&base) {
                    Ok(Some(model)) => replica.announce(launch, model, model_sha256)?,
                    Ok(None) if started.elapsed() > ready => {
                        let seconds = ready.as_secs();
                        let text = format!("the server was not ready within {seconds} s{}", last_lines(&replica.log));
                        return Err(failed(text));
                    }
                    Ok(None) => {}
                    Err(reason) => return Err(failed(format!("{reason}{}", last_lines(&replica.log)))),
                }
            }
            if self.replicas.iter().all(|replica| replica.is_announced) {
                return Ok(true);
            }
            if !goes_on() {
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Withdraws the files of servers that have ended, and says so. How many live.
    pub fn look(&mut self) -> usize {
        let mut n_living = 0;
        for replica in &mut self.replicas {
            let Some(status) = replica.server.ended() else {
                n_living += 1;
                continue;
            };
            if std::mem::take(&mut replica.is_announced) {
                let _ = std::fs::remove_file(&replica.file);
                let lines = last_lines(&replica.log);
                aloe_record::tell(&format!("note: {}: the server {}{lines}", replica.log.display(), how(status)));
            }
        }
        n_living
    }

    /// Runs `command` beside the servers until it ends, and then ends them; told to stop it is sent SIGTERM once. Its exit code.
    pub fn run(mut self, command: &[String], variables: &[(&str, String)], goes_on: &dyn Fn() -> bool) -> Result<i32> {
        let program = PathBuf::from(command.first().map_or("", String::as_str));
        let client = Guarded::start(command, variables, None);
        let mut client = client.map_err(aloe_record::Error::io("run", &program))?;
        let mut is_told = false;
        loop {
            if let Some(status) = client.ended() {
                return Ok(status.code().unwrap_or(1));
            }
            if !is_told && !goes_on() {
                client.send(Signal::TERM);
                is_told = true;
            }
            self.look();
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Servers {
    /// The files first: nobody shall begin to ask a server that ends.
    fn drop(&mut self) {
        for replica in &mut self.replicas {
            let _ = std::fs::remove_file(&replica.file);
            replica.server.send(Signal::TERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < GRACE && self.replicas.iter_mut().any(|replica| replica.server.ended().is_none()) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Replica {
    fn announce(&mut self, launch: &Launch<'_>, model: String, model_sha256: &str) -> Result<()> {
        let pid = self.server.child.id();
        let announcement = Announcement {
            host: HOST.to_owned(),
            port: self.port,
            model,
            model_sha256: model_sha256.to_owned(),
            job: launch.job.to_owned(),
            node: node_name(),
            pid,
            started: start_of_process(pid).unwrap_or_default(),
            command: launch.serving.command.clone(),
        };
        atomic::write_json(&self.file, &announcement)?;
        self.is_announced = true;
        Ok(())
    }
}

/// Ports that nobody listens on, each another one. Whoever takes one before its server does makes that server fail, which is told.
fn free_ports(n: u32) -> Result<Vec<u16>> {
    let failed = || aloe_record::Error::io("find a free port on", Path::new(HOST));
    let listeners: Vec<TcpListener> =
        (0..n).map(|_| TcpListener::bind((HOST, 0))).collect::<std::io::Result<_>>().map_err(failed())?;
    let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<std::io::Result<_>>();
    Ok(ports.map_err(failed())?)
}

/// The command of the server on `port`.
fn filled(launch: &Launch<'_>, port: u16) -> Vec<String> {
    let values = [
        ("{model}", launch.model.to_string_lossy().into_owned()),
        ("{name}", launch.name.to_owned()),
        ("{host}", HOST.to_owned()),
        ("{port}", port.to_string()),
        ("{gpus}", launch.serving.gpus.to_string()),
    ];
    let fill = |word: &String| values.iter().fold(word.clone(), |word, (mark, value)| word.replace(mark, value));
    launch.serving.command.iter().map(fill).collect()
}

/// The GPUs of this process: those that the scheduler gave it, or as many as its job asked for.
pub fn visible_gpus(variable: Option<&str>, n: u32) -> Vec<String> {
    match variable.filter(|text| !text.trim().is_empty()) {
        Some(text) => text.split(',').map(|one| one.trim().to_owned()).collect(),
        None => (0..n).map(|at| at.to_string()).collect(),
    }
}

fn how(status: ExitStatus) -> String {
    format!("ended ({})", crate::job::how(status))
}

/// The end of a log, for a message.
fn last_lines(log: &Path) -> String {
    const N: usize = 10;
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len() {
        0 => "; its log is empty".to_owned(),
        n => format!("; its log ends:\n  {}", lines[n.saturating_sub(N)..].join("\n  ")),
    }
}

#[cfg(test)]
mod tests;
