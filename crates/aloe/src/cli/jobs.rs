//! Flags and help of the commands of a run folder.

use aloe_handoff::Where;
use clap::Args;
use std::path::PathBuf;

/// `slurm` or `local`.
pub(crate) fn place(text: &str) -> Result<Where, String> {
    match text {
        "slurm" => Ok(Where::Slurm),
        "local" => Ok(Where::Local),
        _ => Err("there are slurm, local".to_owned()),
    }
}

/// Help of `aloe plan`.
pub(crate) const PLAN_HELP: &str = r#"Examples:
  aloe plan recipes/llama3-aloe-8b.toml
  aloe plan recipes/quickstart.toml --measure
  aloe plan recipe.toml --where slurm --cluster cluster.toml --out /gpfs/runs/aloe-8b

Steps and tokens of a training stage are exact where its rows are written and the model's tokenizer is at hand; what the stage would refuse of them
is a mistake of the recipe. Where rows or model are yet to be made they are estimates, and such a mistake is a note.

With --where (or `where` at the recipe's head) models and data are made at once, and every other stage becomes a job of a run folder that can be
copied to another place or site; `aloe run RUN` submits them. sft and dpo stages are trained by the recipe's or the stage's `trainer`: aloe, trl
(the default under slurm) or axolotl (the default there where [engines] names it alone).

cluster.toml holds what is particular to a site, and the only absolute paths:
  name = "acc"
  aloe = "/gpfs/apps/aloe/bin/aloe"       # this program on the nodes
  [slurm]                                  # all optional
  partition = "acc"
  account = "bsc99"
  qos = "acc_bscls"
  signal_before = 300                      # seconds before the time limit to save and go back into the queue: a step, a
                                           # checkpoint and its digests must fit; two sessions without a newer one fail the stage
  options = ["--exclusive"]                # further options of sbatch
  [environment]                            # what a job sets up, in this order
  lines = ["source /etc/profile.d/modules.sh"]
  modules = ["cuda/12.8"]
  variables = { NCCL_DEBUG = "WARN" }
  [engines]                                # folders of Python environments
  trl = "/gpfs/envs/trl"                   # TRL 1.16; or, and:
  axolotl = "/gpfs/envs/axolotl"           # axolotl 0.19
  [node]                                   # one machine: asking for more is a mistake
  cpus = 80
  gpus = 4
  memory_gb = 512
  gpu_memory_gb = 64
  gpu_watts = 700                          # for the carbon estimate
  [serving]                                # eval, redteam and synthesis stages ask servers of their model, started in their job
  command = ["/gpfs/envs/vllm/bin/vllm", "serve", "{model}", "--host", "{host}", "--port", "{port}", "--tensor-parallel-size", "{gpus}"]
  replicas = 2                             # servers on the node; their GPUs are the stage's gpus_per_node
  gpus = 2                                 # of each server
  ready = "0:30:00"                        # each must answer by then
  [models]                                 # models of the site, by the source or path that recipes name
  "hf:meta-llama/Meta-Llama-3-8B" = "/gpfs/models/Meta-Llama-3-8B"
  [resources.default]                      # of a kind of stage; [stages.NAME] for one stage
  nodes = 1
  gpus_per_node = 0
  cpus_per_node = 20
  time = "2:00:00"
  [resources.eval]
  shards = 4                               # jobs (an array) that have some of the tasks each, and one that gathers their answers
  [resources.data]
  shards = 4                               # jobs that sign some of the rows each, and one that writes the stage; without it data is made while planning
  [resources.merge]
  partition = "gpp"                        # also account and qos, where they are not those of [slurm]: GPU partitions refuse jobs without GPUs
  [resources.sft]
  gpus_per_node = 4
  cpus_per_node = 80
  time = "2-00:00:00"
"#;

/// Help of `aloe status`.
pub(crate) const STATUS_HELP: &str = "Example:\n  aloe status /gpfs/runs/aloe-8b\n\nAsks the scheduler about every open job and writes down what became \
    of it. States: planned, submitting, submitted, running, done, failed, cancelled. Seconds are those of all sessions of work. With --json: run, name and \
    stages, each with stage, kind, trainer, phase, attempts, job_name, job, host, reason, sessions (seconds since 1970 at start and end) and worked_s.";

/// Help of `aloe resume`.
pub(crate) const RESUME_HELP: &str = "Example:\n  aloe resume /gpfs/runs/aloe-8b\n\nWhat is done stays; work that a stage had saved is gone on with. A stage \
    that another job works on is never started twice.";

/// Help of `aloe cancel`.
pub(crate) const CANCEL_HELP: &str = "Example:\n  aloe cancel /gpfs/runs/aloe-8b\n\nA running stage of our own saves first; one of trl goes on from its last checkpoint. `aloe resume` goes on.";

/// Help of `aloe collect`.
pub(crate) const COLLECT_HELP: &str = "Example:\n  aloe collect /gpfs/runs/aloe-8b --out runs/aloe-8b\n\nChecks that every stage is done and that its outputs \
    are those of its record. With --json a list of the records.";

/// Help of `aloe with-servers`.
pub(crate) const WITH_SERVERS_HELP: &str = "Example, in a run folder:\n  aloe with-servers --model out/merge --servers work/eval/servers -- \
    aloe run recipe.toml --stage eval --out out --servers work/eval/servers\n\nReads [serving] of cluster.toml (see aloe plan --help): {model}, \
    {name}, {host}, {port} and {gpus} of its command are filled in. A server is announced by a file DIR/N.json (host, port, model, model_sha256, job, \
    node, pid, started, command) once it lists the model and has answered known prompts, sent as token ids; its log is DIR/N.log. One that dies before \
    that fails the whole; one that dies later is told, and the others go on. The command begins when all are ready and finds them by the files: with \
    `aloe run --servers DIR`, or as the model servers:DIR of aloe generate and score. When it ends, or on SIGTERM, or when this process is killed, \
    servers end and files go. The exit code is the command's.";

/// `aloe with-servers`.
#[derive(Args)]
pub(crate) struct WithServersArgs {
    /// The model: a stage's folder or a Hugging Face folder
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// Folder where the servers announce themselves
    #[arg(long, value_name = "DIR")]
    pub(crate) servers: PathBuf,
    /// The file that says how servers are started
    #[arg(long, value_name = "FILE", default_value = "cluster.toml")]
    pub(crate) cluster: PathBuf,
    /// What is run beside them
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// A run folder, and what runs its jobs.
#[derive(Args)]
pub(crate) struct StatusArgs {
    /// The run folder
    pub(crate) run: PathBuf,
    /// What runs the jobs, slurm or local; default what it was planned for
    #[arg(long = "where", value_name = "WHERE", value_parser = place)]
    pub(crate) place: Option<Where>,
    /// Print the state as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a run folder's jobs are waited for.
#[derive(Args, Clone, Copy)]
pub(crate) struct WaitArgs {
    /// Of a run folder: wait until every job has ended (--where local always does)
    #[arg(long)]
    pub(crate) wait: bool,
    /// Of a run folder: seconds between two questions to the scheduler while waiting
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) poll: u64,
}

#[derive(Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) of: StatusArgs,
    #[command(flatten)]
    pub(crate) waits: WaitArgs,
}

#[derive(Args)]
pub(crate) struct CollectArgs {
    /// The run folder
    pub(crate) run: PathBuf,
    /// Only this stage, done or not yet: its job asks so
    #[arg(long)]
    pub(crate) stage: Option<String>,
    /// Folder to copy all stages' folders to
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Print the records as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct JobArgs {
    /// The run folder
    pub(crate) run: PathBuf,
    /// The stage's name
    pub(crate) stage: String,
    /// The job's name, where no scheduler tells it
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Seconds until the work is stopped, where no scheduler does it
    #[arg(long)]
    pub(crate) time_limit: Option<u64>,
    /// Of a training stage of another engine: only hold its start and other inputs against the plan, and render rows that an earlier job made
    #[arg(long, conflicts_with_all = ["name", "time_limit"])]
    pub(crate) render: bool,
}
