//! `aloe with-servers`: servers of one model as `[serving]` of `cluster.toml` says, a command beside them, and then neither is left. A job
//! of a run folder runs a stage that asks a model through here.

use crate::cli::jobs::WithServersArgs;
use crate::failure::Failure;
use crate::stage::{checked_model, name_of_model};
use aloe_engine::announced::{self, JOB_VARIABLE};
use aloe_handoff::Cluster;
use aloe_handoff::scheduler::job_id;
use aloe_handoff::serving::{Launch, Servers, visible_gpus};
use aloe_record::Cancel;
use anyhow::Context as _;

/// Starts, waits, runs the command, ends all.
pub(crate) fn run(args: &WithServersArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let cluster = Cluster::read(&args.cluster)?;
    let serving = cluster.serving.as_ref().ok_or_else(|| {
        let text = format!("{} has no [serving] table; `aloe plan --help` shows it", args.cluster.display());
        Failure::usage(text)
    })?;
    let folder = std::path::absolute(checked_model(&args.model)?).context("where is the model?")?;
    let name = name_of_model(&args.model);
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let job = [JOB_VARIABLE, "SLURM_JOB_ID"].iter().find_map(|name| variable(name));
    let job = job.or_else(|| job_id(std::process::id())).unwrap_or_default();
    let gpus = visible_gpus(variable("CUDA_VISIBLE_DEVICES").as_deref(), serving.replicas * serving.gpus);
    let launch = Launch { serving, model: &folder, name: &name, folder: &args.servers, job: &job, gpus: &gpus };
    let goes_on = || !cancel.is_requested();
    let mut servers = Servers::start(&launch)?;
    aloe_record::tell(&format!(
        "{} of {name}: loading; logs are in {}",
        counted(serving.replicas),
        args.servers.display()
    ));
    let model_sha256 = crate::stage::digest_of_model(&args.model)?;
    let try_out = |base: &str| announced::try_out(base, &folder, &name, cancel).map_err(|error| error.to_string());
    if !servers.announce(&launch, &model_sha256, &try_out, &goes_on)? {
        cancel.check()?;
    }
    aloe_record::tell(&format!("{} of {name}: ready", counted(serving.replicas)));
    let code = servers.run(&args.command, &[(JOB_VARIABLE, job.clone())], &goes_on)?;
    match u8::try_from(code) {
        Ok(0) => Ok(()),
        code => {
            let code = code.unwrap_or(1);
            let program = args.command.first().map_or("", String::as_str);
            Err(Failure::coded(code, format!("{program} ended with exit code {code}")).into())
        }
    }
}

fn counted(n: u32) -> String {
    if n == 1 { "1 server".to_owned() } else { format!("{n} servers") }
}
