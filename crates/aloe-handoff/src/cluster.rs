//! `cluster.toml`: what is particular to a site. Where the program, the engines and the models lie, how jobs are billed, what a kind of
//! stage asks for. The only file of a run folder with absolute paths; exchanged, it moves the run to another site.
//!
//! Read whole and checked whole: unknown keys are mistakes, and all mistakes are told together with their lines. Nothing is guessed: a
//! stage without resources is refused.

mod read;

use crate::plan::{Resources, StagePlan, Trainer, Where};
use crate::serving::Serving;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A site.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// What people call it.
    pub name: String,
    /// The `aloe` binary on its nodes.
    pub aloe: PathBuf,
    /// How jobs are submitted.
    pub slurm: Slurm,
    /// What a job sets up before it works.
    pub environment: Environment,
    /// Folder of the Python environment of each engine: `bin/python` lies in it.
    pub engines: BTreeMap<&'static str, PathBuf>,
    /// One of its machines.
    pub node: Node,
    /// How servers of a model are started, where what asks a model asks servers.
    pub serving: Option<Serving>,
    /// Folders of models by the name or source that recipes use.
    pub models: BTreeMap<String, PathBuf>,
    /// What a kind of stage asks for; `default` for all kinds.
    resources: BTreeMap<String, Asked>,
    /// What one stage asks for instead.
    stages: BTreeMap<String, Asked>,
}

/// Settings of submission.
#[derive(Clone, Debug, PartialEq)]
pub struct Slurm {
    /// `--partition`.
    pub partition: Option<String>,
    /// `--account`.
    pub account: Option<String>,
    /// `--qos`.
    pub qos: Option<String>,
    /// Seconds before the time limit at which a job is told to save.
    pub signal_before_s: u64,
    /// Further options of sbatch, each beginning with `--`.
    pub options: Vec<String>,
}

impl Default for Slurm {
    fn default() -> Self {
        Self { partition: None, account: None, qos: None, signal_before_s: 300, options: Vec::new() }
    }
}

/// What every job sets up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `module load` of each.
    pub modules: Vec<String>,
    /// Lines of shell before that.
    pub lines: Vec<String>,
    /// Variables.
    pub variables: BTreeMap<String, String>,
}

/// A machine of the site. What is not stated is not checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Processors.
    pub cpus: Option<u32>,
    /// GPUs.
    pub gpus: Option<u32>,
    /// Memory, 10^9 bytes.
    pub memory_gb: Option<f64>,
    /// Memory of one GPU, 10^9 bytes.
    pub gpu_memory_gb: Option<f64>,
    /// Power of one GPU in watts, for the carbon estimate.
    pub gpu_watts: Option<f64>,
}

/// What is asked for, as far as one table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    partition: Option<String>,
    account: Option<String>,
    qos: Option<String>,
    nodes: Option<u32>,
    gpus_per_node: Option<u32>,
    cpus_per_node: Option<u32>,
    time_limit_s: Option<u64>,
    shards: Option<u32>,
}

impl Asked {
    /// `self`, where it says nothing `other`.
    fn or(self, other: Self) -> Self {
        Self {
            partition: self.partition.or(other.partition),
            account: self.account.or(other.account),
            qos: self.qos.or(other.qos),
            nodes: self.nodes.or(other.nodes),
            gpus_per_node: self.gpus_per_node.or(other.gpus_per_node),
            cpus_per_node: self.cpus_per_node.or(other.cpus_per_node),
            time_limit_s: self.time_limit_s.or(other.time_limit_s),
            shards: self.shards.or(other.shards),
        }
    }
}

impl Cluster {
    /// Reads and checks the file. Paths that begin with `./` start where it lies: those of an unpacked bundle.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(aloe_record::Error::io("read", path))?;
        let parsed = Self::parse(&text);
        let mut cluster = parsed.map_err(|mistakes| Error::Mistakes { path: path.to_path_buf(), mistakes })?;
        let whole = std::path::absolute(path).map_err(aloe_record::Error::io("resolve", path))?;
        let home = whole.parent().unwrap_or(Path::new("/"));
        for path in cluster.paths_mut().filter(|path| path.is_relative()) {
            // Joined part by part: `./` is not kept.
            *path = home.join(&*path).components().collect();
        }
        Ok(cluster)
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        std::iter::once(&mut self.aloe).chain(self.engines.values_mut()).chain(self.models.values_mut())
    }

    /// The first path that starts where the file lies, which a copy of the file elsewhere would not find.
    pub fn relative_path(text: &str) -> Option<PathBuf> {
        Self::parse(text).ok()?.paths_mut().find(|path| path.is_relative()).cloned()
    }

    /// Checks the text of the file; the mistakes in the order of their lines.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        read::cluster(text)
    }

    fn asked(&self, kind: &str, stage: &str) -> Asked {
        let of = |tables: &BTreeMap<String, Asked>, name: &str| tables.get(name).cloned().unwrap_or_default();
        of(&self.stages, stage).or(of(&self.resources, kind)).or(of(&self.resources, "default"))
    }

    /// Into how many jobs an evaluation or a data stage is divided.
    pub fn shards(&self, kind: &str, stage: &str) -> u32 {
        self.asked(kind, stage).shards.unwrap_or(1)
    }

    /// What a stage asks for: its own table, then its kind's, then `default`.
    pub fn resources(&self, kind: &str, stage: &str) -> Result<Resources, String> {
        let asked = self.asked(kind, stage);
        let (Some(n_nodes), Some(gpus_per_node), Some(cpus_per_node), Some(time_limit_s)) =
            (asked.nodes, asked.gpus_per_node, asked.cpus_per_node, asked.time_limit_s)
        else {
            let keys = [
                ("nodes", asked.nodes.is_none()),
                ("gpus_per_node", asked.gpus_per_node.is_none()),
                ("cpus_per_node", asked.cpus_per_node.is_none()),
                ("time", asked.time_limit_s.is_none()),
            ];
            let missing: Vec<&str> = keys.iter().filter(|(_, is_missing)| *is_missing).map(|(key, _)| *key).collect();
            return Err(format!(
                "stage {stage:?}: cluster.toml does not say {}; write it under [resources.{kind}] or [resources.default]",
                missing.join(", ")
            ));
        };
        Ok(Resources { n_nodes, gpus_per_node, cpus_per_node, time_limit_s })
    }

    /// Who trains where a recipe does not say: under Slurm the site's engine, TRL where it has both; on this machine the program itself.
    pub fn usual_trainer(&self, place: Where) -> Trainer {
        let has = |trainer: Trainer| self.engines.contains_key(trainer.name());
        match place {
            Where::Local => Trainer::Aloe,
            Where::Slurm if has(Trainer::Axolotl) && !has(Trainer::Trl) => Trainer::Axolotl,
            Where::Slurm => Trainer::Trl,
        }
    }

    /// Names of stages that the file speaks of, so that a slip can be told from a setting.
    pub fn named_stages(&self) -> impl Iterator<Item = &str> {
        self.stages.keys().map(String::as_str)
    }

    /// Shell that sets up a job: lines, modules, variables, and the engine's programs first on the path.
    pub fn prelude(&self, trainer: Trainer) -> String {
        let mut text = String::new();
        for line in &self.environment.lines {
            text.push_str(line);
            text.push('\n');
        }
        for module in &self.environment.modules {
            text.push_str(&format!("module load {module} || exit 78\n"));
        }
        for (name, value) in &self.environment.variables {
            text.push_str(&format!("export {name}={}\n", quoted(value)));
        }
        if let Some(folder) = self.engines.get(trainer.name()) {
            // Without this the job would take whatever python comes next on the path.
            let python = folder.join("bin/python").to_string_lossy().into_owned();
            let said = format!("cluster.toml: {} of [engines] has no {python} on this node", trainer.name());
            text.push_str(&format!("[ -x {} ] || {{ echo {} >&2; exit 78; }}\n", quoted(&python), quoted(&said)));
            text.push_str(&format!("export PATH={}:\"$PATH\"\n", quoted(&folder.join("bin").to_string_lossy())));
        }
        text
    }

    /// Partition, account and qos of a stage's job: its own table's, its kind's, then those under `[slurm]`.
    fn place(&self, stage: &StagePlan) -> [(&'static str, Option<String>); 3] {
        let Asked { partition, account, qos, .. } = self.asked(stage.kind_in_recipe(), stage.in_recipe());
        let slurm = &self.slurm;
        [
            ("partition", partition.or(slurm.partition.clone())),
            ("account", account.or(slurm.account.clone())),
            ("qos", qos.or(slurm.qos.clone())),
        ]
    }

    /// The partition of a stage's job, where the site names one.
    pub fn partition(&self, stage: &StagePlan) -> Option<String> {
        self.place(stage).into_iter().find_map(|(name, value)| value.filter(|_| name == "partition"))
    }

    /// The options of sbatch that bill and place a stage's job.
    pub fn billing(&self, stage: &StagePlan) -> Vec<String> {
        let named = self.place(stage).into_iter().filter_map(|(name, value)| Some(format!("--{name}={}", value?)));
        named.chain(self.slurm.options.iter().cloned()).collect()
    }
}

/// `text` as one word of the shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const WHOLE: &str = r#"
name = "acc"
aloe = "/opt/aloe/bin/aloe"
[slurm]
partition = "acc"
account = "bsc99"
signal_before = 120
options = ["--exclusive"]
[environment]
lines = ["source /etc/profile.d/modules.sh"]
modules = ["cuda/12.8"]
variables = { NCCL_DEBUG = "it's WARN" }
[engines]
trl = "/opt/trl"
[node]
cpus = 80
gpus = 4
memory_gb = 512
gpu_watts = 700
[models]
"llama 3" = "/gpfs/llama3"
[resources.default]
nodes = 1
gpus_per_node = 0
cpus_per_node = 20
time = "1:00:00"
[resources.sft]
nodes = 2
gpus_per_node = 4
cpus_per_node = 80
time = "1-12:00:00"
[stages.short]
time = 600
"#;

    #[test]
    fn a_stage_asks_for_what_its_own_table_says_then_its_kinds_then_the_default() {
        let cluster = Cluster::parse(WHOLE).unwrap();
        let of = |kind, stage| cluster.resources(kind, stage).unwrap();
        let resources = |n_nodes, gpus_per_node, cpus_per_node, time_limit_s| Resources {
            n_nodes,
            gpus_per_node,
            cpus_per_node,
            time_limit_s,
        };
        assert_eq!(of("merge", "m"), resources(1, 0, 20, 3600));
        // A day and 12 hours: 36 x 3600 s.
        assert_eq!(of("sft", "long"), resources(2, 4, 80, 129_600));
        assert_eq!(of("sft", "short"), resources(2, 4, 80, 600));
        assert_eq!((cluster.shards("eval", "e"), cluster.shards("eval", "short")), (1, 1));
        let text = format!("{WHOLE}shards = 7\n[resources.eval]\nshards = 3\n");
        let cluster = Cluster::parse(&text).unwrap();
        assert_eq!((cluster.shards("eval", "e"), cluster.shards("eval", "short")), (3, 7));
        let of_data = Cluster::parse(&text.replace("resources.eval", "resources.data")).unwrap();
        assert_eq!((of_data.shards("data", "d"), of_data.shards("eval", "e")), (3, 1));
        let misplaced = Cluster::parse(&text.replace("resources.eval", "resources.redteam")).unwrap_err();
        assert_eq!(misplaced, ["line 36: [resources.redteam] has `shards`, which are of evaluations and data"]);
    }

    fn stage(kind: &str, name: &str) -> StagePlan {
        StagePlan {
            name: name.into(),
            kind: kind.into(),
            folder: "stages/10-x".into(),
            after: vec![],
            trainer: Trainer::Aloe,
            resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 60 },
        }
    }

    #[test]
    fn a_stage_goes_to_the_partition_of_its_own_table_then_its_kinds_then_the_sites_and_its_shards_with_it() {
        let text = format!(
            "{WHOLE}[resources.merge]\npartition = \"gpp\"\nqos = \"gp_bscls\"\n[resources.eval]\npartition = \"one\"\n[stages.big]\npartition = \"two\"\n"
        );
        let cluster = Cluster::parse(&text).unwrap();
        let of = |kind, name| cluster.partition(&stage(kind, name)).unwrap();
        assert_eq!(
            [of("sft", "s"), of("merge", "m"), of("eval", "e"), of("eval", "big")],
            ["acc", "gpp", "one", "two"]
        );
        assert_eq!(of(crate::shard::EVAL_SHARD, "big.1-of-2"), "two");
        assert_eq!(of(crate::shard::EVAL_SHARD, "e.1-of-2"), "one");
        let expected = ["--partition=gpp", "--account=bsc99", "--qos=gp_bscls", "--exclusive"];
        assert_eq!(cluster.billing(&stage("merge", "m")), expected);
        let mistakes = Cluster::parse(&text.replace("\"gpp\"", "\"g p p\"")).unwrap_err();
        assert!(
            mistakes.len() == 1 && mistakes[0].contains("`partition` must be a name without blanks"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn a_site_with_one_engine_trains_with_it_where_a_recipe_does_not_say() {
        let usual = |engines: &str, place| {
            Cluster::parse(&WHOLE.replace("trl = \"/opt/trl\"", engines)).unwrap().usual_trainer(place)
        };
        for (engines, expected) in [
            ("trl = \"/opt/trl\"", Trainer::Trl),
            ("axolotl = \"/opt/axolotl\"", Trainer::Axolotl),
            ("trl = \"/opt/trl\"\naxolotl = \"/opt/axolotl\"", Trainer::Trl),
            ("", Trainer::Trl),
        ] {
            assert_eq!(
                (usual(engines, Where::Slurm), usual(engines, Where::Local)),
                (expected, Trainer::Aloe),
                "{engines}"
            );
        }
    }

    #[test]
    fn a_stage_without_resources_is_refused_by_the_name_of_what_is_missing() {
        let text = WHOLE.replace("[resources.default]\nnodes = 1\ngpus_per_node = 0", "[resources.default]");
        let refused = Cluster::parse(&text).unwrap().resources("merge", "m").unwrap_err();
        assert!(refused.contains("does not say nodes, gpus_per_node; write it under [resources.merge]"), "{refused}");
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_line() {
        let wrong = "name = 3\naloe = \"bin/aloe\"\n[slurm]\npartitoin = \"acc\"\nsignal_before = -1\noptions = [\"-N 3\"]\n\
                     [node]\ngpus = 4\n[resources.sft]\ngpus_per_node = 8\ntime = \"soon\"\n[resources.sfd]\nnodes = 0\n[modles]\n";
        let mistakes = Cluster::parse(wrong).unwrap_err();
        let expected = [
            "line 1: `name` must be a text",
            "line 2: `aloe` must be an absolute path, found \"bin/aloe\"",
            "line 4: [slurm] has no key `partitoin`; its keys are partition, account, qos, signal_before, options",
            "line 5: `signal_before` must be a number of seconds",
            "line 6: `options` must begin with `--`, found \"-N 3\"",
            "line 10: [resources.sft] asks for 8 GPUs of a node with 4",
            "line 11: `time` must be seconds or [DAYS-]HOURS:MINUTES:SECONDS",
            "line 12: [resources.sfd] is no kind of stage; kinds are default, pull, data, sft, dpo, merge, merge-search, eval, rejudge, redteam, synthesis, card",
            "line 13: `nodes` must be at least 1",
            "line 14: there is no [modles]; tables are slurm, environment, engines, node, models, serving, resources, stages",
        ];
        assert_eq!(mistakes, expected);
    }

    /// What sed reads in job.sbatch must be what the program reads.
    #[test]
    fn a_program_that_the_scripts_of_jobs_would_not_find_is_a_mistake() {
        let plain = "`aloe` must stand as a line of its own";
        for line in
            ["aloe = '/opt/aloe'", "\"aloe\" = \"/opt/aloe\"", "aloe\t= \"/opt/aloe\"", "aloe = \"\"\"/opt/aloe\"\"\""]
        {
            for more in ["", "[models]\naloe = \"/gpfs/aloe\"\n"] {
                let mistakes = Cluster::parse(&format!("name = \"x\"\n{line}\n{more}")).unwrap_err();
                assert!(mistakes.len() == 1 && mistakes[0].contains(plain), "{line}: {mistakes:?}");
            }
        }
        for line in ["aloe = \"/opt/aloe\" # here", "aloe=\"/opt/aloe\"", "aloe   =  \"/opt/aloe\""] {
            Cluster::parse(&format!("name = \"x\"\n{line}\n[models]\naloe = \"/gpfs/aloe\"\n")).unwrap();
        }
    }

    #[test]
    fn models_that_would_share_a_link_and_options_that_belong_elsewhere_are_mistakes() {
        let text = "name = \"x\"\naloe = \"/opt/aloe\"\n[slurm]\noptions = [\"--partition=a\", \"--gpus-per-task=1\", \"--time=5\", \
                    \"--array=1-4\", \"--nodes 2\", \"--exclusive\", \"--mem=0\", \"--constraint=x\", \"--nodelist=n1\"]\n\
                    [models]\n\"hf:a/b\" = \"/one\"\n\"hf-a-b\" = \"/two\"\n\"hf:a/c\" = \"/three\"\n";
        let mistakes = Cluster::parse(text).unwrap_err();
        let expected = [
            "--partition: write partition",
            "--gpus-per-task: write gpus_per_node",
            "--time: write time",
            "--array:",
            "--nodes:",
        ];
        assert_eq!(mistakes.len(), expected.len() + 1, "{mistakes:#?}");
        for part in expected {
            assert!(mistakes.iter().any(|one| one.contains(part)), "{part}: {mistakes:#?}");
        }
        assert!(mistakes.iter().any(|one| one.contains("would both be models/hf-a-b")), "{mistakes:#?}");
    }

    #[test]
    fn servers_need_a_command_that_is_told_model_and_port_and_all_mistakes_are_told() {
        let of = |table: &str| Cluster::parse(&format!("name = \"x\"\naloe = \"/a\"\n[serving]\n{table}"));
        let found =
            of("command = [\"vllm\", \"serve\", \"{model}\", \"--port={port}\"]\nready = \"0:20:00\"\ngpus = 2\n")
                .unwrap();
        let serving = found.serving.unwrap();
        assert_eq!((serving.command.len(), serving.replicas, serving.gpus, serving.ready_s), (4, 1, 2, 1200));
        assert_eq!(
            of("command = [\"vllm\", \"{prot}\"]\nreplicas = 0\nready = \"soon\"\ngpu = 2\n").unwrap_err(),
            [
                "line 4: `command` must hold {model}",
                "line 4: `command` must hold {port}",
                "line 5: `replicas` must be at least 1",
                "line 6: `ready` must be seconds or [DAYS-]HOURS:MINUTES:SECONDS",
                "line 7: [serving] has no key `gpu`; its keys are command, replicas, gpus, ready",
            ]
        );
        assert_eq!(
            of("replicas = 2\n").unwrap_err(),
            ["line 3: [serving] needs `command`, the server's program and arguments"]
        );
    }

    #[test]
    fn a_path_that_begins_with_a_dot_starts_where_the_file_lies_and_never_leads_out_of_there() {
        let dir = tempfile::tempdir().unwrap();
        let text = WHOLE.replace("/opt/aloe/bin/aloe", "./bin/aloe").replace("/gpfs/llama3", "./weights/llama3");
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, &text).unwrap();
        let cluster = Cluster::read(&path).unwrap();
        assert_eq!(cluster.aloe, dir.path().join("bin/aloe"));
        assert_eq!(cluster.models["llama 3"], dir.path().join("weights/llama3"));
        assert_eq!(cluster.engines["trl"], Path::new("/opt/trl"));
        assert_eq!(Cluster::relative_path(&text).unwrap(), Path::new("./bin/aloe"));
        assert_eq!(Cluster::relative_path(WHOLE), None);
        for out in ["./../aloe", "bin/aloe", "."] {
            let mistakes = Cluster::parse(&WHOLE.replace("/opt/aloe/bin/aloe", out)).unwrap_err();
            assert_eq!(mistakes, [format!("line 3: `aloe` must be an absolute path, found {out:?}")]);
        }
    }

    #[test]
    fn what_a_job_sets_up_survives_the_shell() {
        let dir = tempfile::tempdir().unwrap();
        let trl = dir.path().join("it's trl");
        let text = WHOLE.replace("\"/opt/trl\"", &format!("{:?}", trl.display().to_string()));
        let cluster = Cluster::parse(&text).unwrap();
        let prelude = cluster.prelude(Trainer::Trl);
        let script = format!(
            "module() {{ echo \"module $*\"; }}\n{}\necho \"$NCCL_DEBUG\"; echo \"${{PATH%%:*}}\"",
            prelude.replace("source /etc/profile.d/modules.sh", ":")
        );
        let run = || std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let missing = run();
        assert_eq!(missing.status.code(), Some(78));
        let expected = format!("cluster.toml: trl of [engines] has no {}/bin/python on this node\n", trl.display());
        assert_eq!(said(missing.stderr), expected);
        std::fs::create_dir_all(trl.join("bin")).unwrap();
        std::os::unix::fs::symlink("/bin/true", trl.join("bin/python")).unwrap();
        let expected = format!("module load cuda/12.8\nit's WARN\n{}/bin\n", trl.display());
        assert_eq!(said(run().stdout), expected);
        assert_eq!(cluster.billing(&stage("merge", "m")), ["--partition=acc", "--account=bsc99", "--exclusive"]);
    }
}
