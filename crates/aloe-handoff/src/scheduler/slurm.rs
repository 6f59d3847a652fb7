//! Slurm by its own commands: sbatch, squeue, scontrol, scancel, and sacct where there is one. Tried with 22.05.
//!
//! What is known of the traps: `--test-only` accepts a time limit that its partition does not have, so that is held against `scontrol show
//! partition` here; sbatch may fail after the controller took the job, so a job is looked for by its name before it is submitted again;
//! a finished job leaves scontrol's memory after some minutes, so sacct and the job completion file are asked next.

use super::{Array, Observed, Scheduler, Submission};
use crate::cluster::Cluster;
use crate::plan::StagePlan;
use crate::{Error, Result, slurm_time, state};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Submits to Slurm as `cluster` says.
#[derive(Debug)]
pub struct Slurm {
    cluster: Cluster,
}

/// Name and longest time of a partition, and the most GPUs of one of its nodes.
type Limits = (Option<(String, Option<u64>)>, Option<u32>);

/// What a command said.
struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Slurm {
    /// A scheduler for the site.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    fn script(submission_run: &Path, stage: &StagePlan) -> String {
        submission_run.join(&stage.folder).join("job.sbatch").to_string_lossy().into_owned()
    }

    /// The limits of a partition, or of the one that jobs go to where none is named: the longest time in seconds, where it has one. Of a list of
    /// partitions the longest of all: a job goes to one that takes it.
    fn partition(named: Option<&str>) -> Result<Option<(String, Option<u64>)>> {
        let Some(names) = named.filter(|named| named.contains(',')) else { return Self::one_partition(named) };
        let mut longest = Some(0);
        for name in names.split(',').filter(|name| !name.is_empty()) {
            // --test-only names one that is not there.
            let Some((_, most_s)) = Self::one_partition(Some(name))? else { return Ok(None) };
            longest = longest.zip(most_s).map(|(one, other)| one.max(other));
        }
        Ok(Some((names.to_owned(), longest)))
    }

    fn one_partition(named: Option<&str>) -> Result<Option<(String, Option<u64>)>> {
        let mut arguments = vec!["show", "partition", "-o"];
        arguments.extend(named);
        let said = call("scontrol", &arguments)?;
        if !said.ok {
            // --test-only names the partition that is not there.
            return Ok(None);
        }
        let is_default = |line: &&str| named.is_some() || field(line, "Default") == Some("YES");
        let Some(line) = said.out.lines().find(is_default) else { return Ok(None) };
        let name = field(line, "PartitionName").unwrap_or_default().to_owned();
        Ok(Some((name, field(line, "MaxTime").and_then(slurm_time::parse))))
    }

    /// Submits a script and returns its job's id.
    fn sbatch(run: &Path, name: &str, after: &[String], options: Vec<String>, script: String) -> Result<String> {
        let mut arguments = vec![
            "--parsable".to_owned(),
            format!("--job-name={name}"),
            format!("--chdir={}", run.display()),
            "--export=ALL".to_owned(),
        ];
        arguments.extend(options);
        if !after.is_empty() {
            arguments.push(format!("--dependency=afterok:{}", after.join(":")));
            arguments.push("--kill-on-invalid-dep=yes".to_owned());
        }
        arguments.push(script);
        let output = Command::new("sbatch").args(&arguments).env("ALOE_RUN", run).env_remove("ALOE").output();
        let output = output.map_err(|error| failed("sbatch", format!("cannot be run: {error}")))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // `ID` or `ID;CLUSTER`.
        let id = said.split(';').next().unwrap_or_default().to_owned();
        if output.status.success() && !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(id);
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed("sbatch", if reason.is_empty() { format!("said {said:?}") } else { reason }))
    }

    /// What a stage asks for now, over what its script says of the time when it was planned.
    fn options(&self, stage: &StagePlan) -> Vec<String> {
        let asked = &stage.resources;
        let mut options = vec![
            format!("--nodes={}", asked.n_nodes),
            format!("--cpus-per-task={}", asked.cpus_per_node),
            format!("--time={}", slurm_time::show(asked.time_limit_s)),
            format!("--signal=B:USR1@{}", self.cluster.slurm.signal_before_s),
        ];
        if asked.gpus_per_node > 0 {
            options.push(format!("--gpus-per-node={}", asked.gpus_per_node));
        }
        options.extend(self.cluster.billing(stage));
        options
    }

    /// The most GPUs of one node of a partition, or of any.
    fn gpus_of_a_node(named: Option<&str>) -> Result<Option<u32>> {
        let mut arguments = vec!["--noheader", "--format=%G"];
        let partition = named.map(|name| format!("--partition={name}"));
        arguments.extend(partition.as_deref());
        let said = call("sinfo", &arguments)?;
        let counts = said.out.lines().map(|line| line.split(',').filter_map(gpus).sum());
        Ok(counts.max().filter(|_| said.ok))
    }
}

/// The least index of the shards of a stage.
fn first_shard(stages: &[&StagePlan], of: &str) -> u32 {
    let shards = stages.iter().filter_map(|stage| stage.shard()).filter(|shard| shard.of == of);
    shards.map(|shard| shard.index).min().unwrap_or(1)
}

/// The count of `gpu:4`, `gpu:h100:4(S:0-1)`; `None` for other resources.
fn gpus(text: &str) -> Option<u32> {
    let rest = text.trim().strip_prefix("gpu:")?;
    let plain = rest.split('(').next()?;
    plain.rsplit(':').next()?.parse().ok()
}

/// The value of `KEY=VALUE` in a line of `scontrol ... -o`.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn call(command: &str, arguments: &[&str]) -> Result<Said> {
    let output = Command::new(command).args(arguments).env("SLURM_TIME_FORMAT", "standard").output();
    let output = output.map_err(|error| failed(command, format!("cannot be run: {error}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Said { ok: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
}

fn failed(command: &str, reason: String) -> Error {
    Error::Scheduler { command: command.to_owned(), reason }
}

/// A job's state in Slurm's words to ours.
fn observed(state: &str, reason: &str, exit_code: &str) -> Observed {
    // sacct says `CANCELLED by 0`.
    let state = state.split_whitespace().next().unwrap_or_default().trim_end_matches('+');
    match state {
        "PENDING" if reason == "DependencyNeverSatisfied" => {
            Observed::Cancelled("an earlier stage did not end well".to_owned())
        }
        // Nobody but a person releases these.
        "PENDING" | "REQUEUE_HOLD" | "SPECIAL_EXIT" if state != "PENDING" || reason.to_lowercase().contains("held") => {
            let why = if reason.is_empty() || reason == "None" { state } else { reason };
            Observed::Held(why.to_owned())
        }
        "PENDING" if is_of_a_limit(reason) => Observed::Delayed(format!("Slurm says {reason}")),
        "PENDING" | "REQUEUED" | "REQUEUE_FED" | "RESV_DEL_HOLD" => Observed::Waiting,
        "RUNNING" | "COMPLETING" | "CONFIGURING" | "SUSPENDED" | "STOPPED" | "SIGNALING" | "STAGE_OUT" | "RESIZING" => {
            Observed::Running
        }
        "COMPLETED" => Observed::EndedWell,
        "CANCELLED" | "REVOKED" => {
            Observed::Cancelled("cancelled in Slurm, or an earlier stage did not end well".into())
        }
        "TIMEOUT" => Observed::Failed("Slurm ended it at its time limit".to_owned()),
        "FAILED" => Observed::Failed(format!("Slurm says FAILED, exit code {exit_code}")),
        "" => Observed::Unknown,
        other => Observed::Failed(format!("Slurm says {other}")),
    }
}

/// Whether a job pends for a reason that other jobs' ends may never take away: a limit, an account, a partition that is down.
fn is_of_a_limit(reason: &str) -> bool {
    const REASONS: [&str; 8] =
        ["Account", "Assoc", "BadConstraints", "Invalid", "Licenses", "Partition", "QOS", "ReqNodeNotAvail"];
    REASONS.into_iter().any(|beginning| reason.starts_with(beginning))
}

/// A path as `--output` takes it, where a `%` begins a pattern.
fn in_pattern(path: &Path) -> String {
    path.display().to_string().replace('%', "%%")
}

/// The fields of a line of sacct.
fn three(line: &str) -> Option<[&str; 3]> {
    line.splitn(3, '|').collect::<Vec<_>>().try_into().ok()
}

/// What the job completion file knows: lines of `JobId=.. JobState=..`.
fn of_completion_file(wanted: &[(&str, &str)]) -> Result<Option<String>> {
    let said = call("scontrol", &["show", "config"])?;
    let setting = |name: &str| {
        let line = said.out.lines().find(|line| line.split_whitespace().next() == Some(name))?;
        line.split_once('=').map(|(_, value)| value.trim().to_owned())
    };
    if !setting("JobCompType").is_some_and(|kind| kind.ends_with("filetxt")) {
        return Ok(None);
    }
    let Some(text) = setting("JobCompLoc").and_then(|path| std::fs::read_to_string(path).ok()) else { return Ok(None) };
    let is_it = |line: &&str| wanted.iter().all(|(key, value)| field(line, key) == Some(*value));
    Ok(text.lines().rfind(is_it).map(str::to_owned))
}

impl Scheduler for Slurm {
    fn holds_back(&self) -> bool {
        true
    }

    fn preflight(&self, run: &Path, stages: &[&StagePlan]) -> Result<Vec<String>> {
        let mut mistakes = Vec::new();
        // Asked once for each partition that stages name.
        let mut known: Vec<(Option<String>, Limits)> = Vec::new();
        // Shards of a stage ask for the same.
        let is_first =
            |stage: &&&StagePlan| stage.shard().is_none_or(|shard| shard.index == first_shard(stages, shard.of));
        for stage in stages.iter().filter(is_first) {
            let asked = &stage.resources;
            let named = self.cluster.partition(stage);
            let at = match known.iter().position(|(other, _)| *other == named) {
                Some(at) => at,
                None => {
                    let limits = (Self::partition(named.as_deref())?, Self::gpus_of_a_node(named.as_deref())?);
                    known.push((named, limits));
                    known.len() - 1
                }
            };
            let (partition, most_gpus) = &known[at].1;
            if let Some((name, Some(most_s))) = partition
                && asked.time_limit_s > *most_s
            {
                mistakes.push(format!(
                    "stage {:?} asks for {}, partition {name} gives {} at most: it would wait for ever",
                    stage.name,
                    slurm_time::show(asked.time_limit_s),
                    slurm_time::show(*most_s)
                ));
            }
            if let Some(most) = most_gpus.as_ref().filter(|most| asked.gpus_per_node > **most) {
                mistakes.push(format!(
                    "stage {:?} asks for {} GPUs a node; nodes of the partition have {most} at most",
                    stage.name, asked.gpus_per_node
                ));
                continue;
            }
            let options = self.options(stage);
            let script = Self::script(run, stage);
            let mut arguments = vec!["--test-only"];
            arguments.extend(options.iter().map(String::as_str));
            arguments.push(&script);
            let said = call("sbatch", &arguments)?;
            if !said.ok {
                let reason = said.err.replace("allocation failure: ", "");
                mistakes.push(format!("stage {:?}: sbatch --test-only: {reason}", stage.name));
            }
        }
        Ok(mistakes)
    }

    fn submit(&self, submission: &Submission<'_>) -> Result<String> {
        let folder = state::folder(submission.run, &submission.stage.name);
        std::fs::create_dir_all(&folder).map_err(aloe_record::Error::io("create", &folder))?;
        let mut options = vec![format!("--output={}/slurm-%j.log", in_pattern(&folder))];
        options.extend(self.options(submission.stage));
        let script = Self::script(submission.run, submission.stage);
        Self::sbatch(submission.run, submission.name, submission.after, options, script)
    }

    fn has_arrays(&self) -> bool {
        true
    }

    fn submit_array(&self, array: &Array<'_>) -> Result<String> {
        let no_shard = || failed("sbatch", "no shards of a stage were given".to_owned());
        let (mut indices, mut output) = (Vec::new(), PathBuf::new());
        for stage in array.shards {
            let folder = state::folder(array.run, &stage.name);
            std::fs::create_dir_all(&folder).map_err(aloe_record::Error::io("create", &folder))?;
            let shard = stage.shard().ok_or_else(no_shard)?;
            indices.push(shard.index.to_string());
            output = PathBuf::from(in_pattern(&folder)).with_file_name(format!("{}.%a-of-{}", shard.of, shard.n));
        }
        let first = array.shards.first().ok_or_else(no_shard)?;
        let script = first.array_script().ok_or_else(no_shard)?;
        let mut options =
            vec![format!("--array={}", indices.join(",")), format!("--output={}/slurm-%A_%a.log", output.display())];
        options.extend(self.options(first));
        let script = array.run.join(script).to_string_lossy().into_owned();
        Self::sbatch(array.run, array.name, array.after, options, script)
    }

    fn find(&self, name: &str) -> Result<Option<String>> {
        let said = call("squeue", &["--noheader", "--states=all", "--format=%F", &format!("--name={name}")])?;
        if !said.ok {
            return Err(failed("squeue", said.err));
        }
        if let Some(id) = said.out.lines().next() {
            return Ok(Some(id.trim().to_owned()));
        }
        let line = of_completion_file(&[("Name", name)])?;
        Ok(line.and_then(|line| field(&line, "ArrayJobId").or(field(&line, "JobId")).map(str::to_owned)))
    }

    fn observe(&self, job: &str, name: Option<&str>) -> Result<Observed> {
        let is_other = |found: &str| name.is_some_and(|name| name != found);
        let said = call("scontrol", &["show", "job", job, "-o"])?;
        if !said.ok && !said.err.contains("Invalid job id") {
            return Err(failed("scontrol", said.err));
        }
        let line = said.out.lines().next().unwrap_or_default();
        let get = |key: &str| field(line, key).unwrap_or_default();
        if said.ok && !is_other(get("JobName")) {
            return Ok(match observed(get("JobState"), get("Reason"), get("ExitCode")) {
                Observed::Held(why) => Observed::Held(format!("{why}: `scontrol release {job}` lets it go on")),
                found => found,
            });
        }
        let accounted =
            call("sacct", &["-X", "--noheader", "--parsable2", "--format=State,ExitCode,JobName", "-j", job]);
        if let Ok(said) = accounted
            && said.ok
            && let Some([state, exit_code, found]) = said.out.lines().next().and_then(three)
            && !is_other(found)
        {
            return Ok(observed(state, "", exit_code));
        }
        let array = job.split_once('_');
        let mut wanted = match (name, array) {
            (Some(name), _) => vec![("Name", name)],
            (None, Some((array, _))) => vec![("ArrayJobId", array)],
            (None, None) => vec![("JobId", job)],
        };
        wanted.extend(array.map(|(_, index)| ("ArrayTaskId", index)));
        let line = of_completion_file(&wanted)?;
        let line = line.unwrap_or_default();
        let get = |key: &str| field(&line, key).unwrap_or_default();
        Ok(observed(get("JobState"), "", get("ExitCode")))
    }

    fn cancel(&self, job: &str) -> Result<()> {
        let said = call("scancel", &[job])?;
        match said.ok || said.err.contains("Invalid job id") || said.err.contains("already completing or completed") {
            true => Ok(()),
            false => Err(failed("scancel", said.err)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slurms_words_are_read() {
        // Lines as `scontrol show job -o`, `scontrol show partition -o` and the completion file of Slurm 22.05 print them.
        let line = "JobId=7 JobName=x UserId=root(0) JobState=PENDING Reason=DependencyNeverSatisfied ExitCode=0:0";
        assert_eq!((field(line, "JobState"), field(line, "State")), (Some("PENDING"), None));
        assert_eq!(observed("PENDING", "Dependency", ""), Observed::Waiting);
        assert!(matches!(observed("PENDING", "DependencyNeverSatisfied", ""), Observed::Cancelled(_)));
        for reason in ["JobHeldUser", "JobHeldAdmin", "launch_failed_requeued_held"] {
            assert_eq!(observed("PENDING", reason, ""), Observed::Held(reason.into()));
        }
        assert_eq!(observed("REQUEUE_HOLD", "None", ""), Observed::Held("REQUEUE_HOLD".into()));
        assert_eq!(observed("PENDING", "Resources", ""), Observed::Waiting);
        for reason in ["PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit", "AssocGrpCPUMinutesLimit"] {
            assert_eq!(observed("PENDING", reason, ""), Observed::Delayed(format!("Slurm says {reason}")));
        }
        assert_eq!(in_pattern(Path::new("/a/r %x 2")), "/a/r %%x 2");
        assert!(matches!(observed("CANCELLED by 0", "", ""), Observed::Cancelled(_)));
        assert_eq!(observed("COMPLETING", "", ""), Observed::Running);
        assert!(matches!(observed("NODE_FAIL", "", ""), Observed::Failed(_)));
        assert_eq!(observed("", "", ""), Observed::Unknown);
        assert_eq!((gpus("gpu:4"), gpus("gpu:h100:8(S:0-1)"), gpus("craynetwork:4")), (Some(4), Some(8), None));
    }
}
