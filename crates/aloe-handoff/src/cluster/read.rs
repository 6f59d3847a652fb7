//! The text of `cluster.toml` to a [`Cluster`], every mistake with its line.

use super::{Asked, Cluster, Environment, Node, Slurm};
use crate::plan::Trainer;
use crate::serving::Serving;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What `[resources.KIND]` may be of.
const KINDS: [&str; 12] = [
    "default",
    "pull",
    "data",
    "sft",
    "dpo",
    "merge",
    "merge-search",
    "eval",
    "rejudge",
    "redteam",
    "synthesis",
    "card",
];

/// Seconds that a server has to load its model, where the file does not say: 140 GB at 100 MB/s.
const READY_S: u64 = 1800;

/// Beginnings of sbatch's options that are not the site's to say, and where they are said: they would be given to every job, over what the
/// run folder's plan holds.
const OURS: [(&str, &str); 17] = [
    ("partition", "write partition under [slurm]"),
    ("account", "write account under [slurm]"),
    ("qos", "write qos under [slurm]"),
    ("time", "write time under [resources]"),
    ("nodes", "write nodes under [resources]"),
    ("ntasks", "a job has one task a node"),
    ("gpus", "write gpus_per_node under [resources]"),
    ("gres", "write gpus_per_node under [resources]"),
    ("cpus-per-task", "write cpus_per_node under [resources]"),
    ("signal", "write signal_before under [slurm]"),
    ("array", "a stage is one job"),
    ("dependency", "the order of stages is the recipe's"),
    ("job-name", "jobs are found by the names they are given"),
    ("chdir", "jobs start in the run folder"),
    ("output", "logs lie in state/"),
    ("no-requeue", "a job goes back into the queue before its limit"),
    ("wrap", "the script is job.sbatch"),
];

type Value<'i> = Spanned<DeValue<'i>>;

/// Reads the whole text.
pub(super) fn cluster(text: &str) -> Result<Cluster, Vec<String>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { text, mistakes: Vec::new() };
    for error in &errors {
        reader.mistake(error.span().map_or(0, |span| span.start), error.message().to_owned());
    }
    let cluster = reader.whole(document.into_inner());
    reader.plain_program(&cluster.aloe);
    reader.mistakes.sort();
    reader.mistakes.dedup();
    if reader.mistakes.is_empty() {
        return Ok(cluster);
    }
    Err(reader.mistakes.into_iter().map(|(line, text)| format!("line {line}: {text}")).collect())
}

struct Reader<'t> {
    text: &'t str,
    mistakes: Vec<(usize, String)>,
}

impl Reader<'_> {
    fn mistake(&mut self, at: usize, text: String) {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        self.mistakes.push((line, text));
    }

    fn whole(&mut self, mut top: DeTable<'_>) -> Cluster {
        let mut cluster = Cluster {
            name: self.required(&mut top, "name").unwrap_or_default(),
            aloe: self.required(&mut top, "aloe").map(PathBuf::from).unwrap_or_default(),
            ..Cluster::default()
        };
        let mut after = Vec::new();
        for (key, value) in top {
            let at = key.span().start;
            if key.get_ref() == "aloe" || key.get_ref() == "name" {
                continue;
            }
            let Some(table) = self.table(key.get_ref(), at, value) else { continue };
            match key.get_ref().as_ref() {
                "slurm" => cluster.slurm = self.slurm(table),
                "environment" => cluster.environment = self.environment(table),
                "engines" => cluster.engines = self.engines(table),
                "node" => cluster.node = self.node(table),
                "models" => cluster.models = self.models(table),
                "serving" => cluster.serving = self.serving(at, table),
                other => after.push((other.to_owned(), at, table)),
            }
        }
        // Resources are held against the node, wherever it stands in the file.
        for (key, at, table) in after {
            match key.as_str() {
                "resources" => cluster.resources = self.resources("resources", table, &cluster),
                "stages" => cluster.stages = self.resources("stages", table, &cluster),
                other => {
                    let known = "slurm, environment, engines, node, models, serving, resources, stages";
                    self.mistake(at, format!("there is no [{other}]; tables are {known}"));
                }
            }
        }
        cluster
    }

    /// Scripts of jobs read the line of `aloe` with sed, which knows one form of it: see [`crate::sbatch`].
    fn plain_program(&mut self, program: &Path) {
        let value = |line: &str| {
            let rest = line.strip_prefix("aloe")?.trim_start_matches(' ').strip_prefix('=')?.trim_start_matches(' ');
            Some(rest.strip_prefix('"')?.split_once('"')?.0.to_owned())
        };
        let found = self.text.lines().find_map(value);
        if !program.as_os_str().is_empty() && found.as_deref() != program.to_str() {
            let text = "`aloe` must stand as a line of its own, aloe = \"/path\", before any table: the scripts of jobs read it so";
            self.mistake(0, text.to_owned());
        }
    }

    /// A text of the head that must be there; `aloe` must be an absolute path.
    fn required(&mut self, top: &mut DeTable<'_>, key: &str) -> Option<String> {
        let Some(value) = top.remove(key) else {
            self.mistake(0, format!("`{key}` is missing"));
            return None;
        };
        if key == "aloe" {
            return self.path(key, value).map(|path| path.to_string_lossy().into_owned());
        }
        self.string(key, value)
    }

    fn table<'i>(&mut self, key: &str, at: usize, value: Value<'i>) -> Option<DeTable<'i>> {
        match value.into_inner() {
            DeValue::Table(table) => Some(table),
            _ => {
                self.mistake(at, format!("`{key}` must be a table, or is no key of the file"));
                None
            }
        }
    }

    fn unknown(&mut self, table: &str, key: &Spanned<std::borrow::Cow<'_, str>>, keys: &str) {
        let text = format!("[{table}] has no key `{}`; its keys are {keys}", key.get_ref());
        self.mistake(key.span().start, text);
    }

    fn string(&mut self, key: &str, value: Value<'_>) -> Option<String> {
        let at = value.span().start;
        match value.into_inner() {
            DeValue::String(text) if !text.trim().is_empty() && !text.contains('\n') => Some(text.into_owned()),
            _ => {
                self.mistake(at, format!("`{key}` must be a text"));
                None
            }
        }
    }

    fn strings(&mut self, key: &str, value: Value<'_>) -> Vec<(usize, String)> {
        let at = value.span().start;
        match value.into_inner() {
            DeValue::Array(items) => items
                .into_iter()
                .filter_map(|item| {
                    let at = item.span().start;
                    self.string(key, item).map(|text| (at, text))
                })
                .collect(),
            _ => {
                self.mistake(at, format!("`{key}` must be a list of texts"));
                Vec::new()
            }
        }
    }

    fn path(&mut self, key: &str, value: Value<'_>) -> Option<PathBuf> {
        let at = value.span().start;
        let text = self.string(key, value)?;
        if !(Path::new(&text).is_absolute() || is_beside(&text)) || text.contains('"') {
            self.mistake(at, format!("`{key}` must be an absolute path, found {text:?}"));
            return None;
        }
        Some(text.into())
    }

    fn number(&mut self, key: &str, value: Value<'_>) -> Option<f64> {
        let at = value.span().start;
        let found = match value.into_inner() {
            DeValue::Integer(number) => number.as_str().replace('_', "").parse::<f64>().ok(),
            DeValue::Float(number) => number.as_str().replace('_', "").parse::<f64>().ok(),
            _ => None,
        };
        let found = found.filter(|number| number.is_finite() && *number > 0.0);
        if found.is_none() {
            self.mistake(at, format!("`{key}` must be a number above 0"));
        }
        found
    }

    fn count(&mut self, key: &str, least: u32, value: Value<'_>) -> Option<u32> {
        let at = value.span().start;
        let found = match value.into_inner() {
            DeValue::Integer(number) => number.as_str().replace('_', "").parse::<u32>().ok(),
            _ => None,
        };
        let found = found.filter(|number| *number >= least);
        if found.is_none() {
            self.mistake(at, format!("`{key}` must be at least {least}"));
        }
        found
    }

    /// A word that goes to the command line of sbatch.
    fn word(&mut self, key: &str, value: Value<'_>) -> Option<String> {
        let at = value.span().start;
        let text = self.string(key, value)?;
        if text.starts_with('-')
            || !text.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-.,:/@".contains(letter))
        {
            self.mistake(at, format!("`{key}` must be a name without blanks, found {text:?}"));
            return None;
        }
        Some(text)
    }

    fn slurm(&mut self, table: DeTable<'_>) -> Slurm {
        let mut slurm = Slurm::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "partition" => slurm.partition = self.word("partition", value),
                "account" => slurm.account = self.word("account", value),
                "qos" => slurm.qos = self.word("qos", value),
                "signal_before" => {
                    let at = value.span().start;
                    match seconds(&value) {
                        Some(found) => slurm.signal_before_s = found,
                        None => self.mistake(at, "`signal_before` must be a number of seconds".to_owned()),
                    }
                }
                "options" => {
                    for (at, text) in self.strings("options", value) {
                        if !text.starts_with("--") || text.contains(['"', '\'']) {
                            self.mistake(at, format!("`options` must begin with `--`, found {text:?}"));
                        }
                        let name = text.trim_start_matches('-').split(['=', ' ']).next().unwrap_or_default();
                        if let Some((_, instead)) = OURS.iter().find(|(ours, _)| name.starts_with(ours)) {
                            self.mistake(at, format!("`options` may not have --{name}: {instead}"));
                        }
                        slurm.options.push(text);
                    }
                }
                _ => self.unknown("slurm", &key, "partition, account, qos, signal_before, options"),
            }
        }
        slurm
    }

    fn environment(&mut self, table: DeTable<'_>) -> Environment {
        let mut environment = Environment::default();
        let texts = |found: Vec<(usize, String)>| found.into_iter().map(|(_, text)| text).collect();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "modules" => {
                    for (at, text) in self.strings("modules", value) {
                        if !text.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-./+ ".contains(letter)) {
                            self.mistake(at, format!("`modules` must be names of modules, found {text:?}"));
                        }
                        environment.modules.push(text);
                    }
                }
                "lines" => environment.lines = texts(self.strings("lines", value)),
                "variables" => {
                    let at = value.span().start;
                    for (name, value) in self.table("variables", at, value).unwrap_or_default() {
                        let is_name =
                            name.get_ref().chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
                        if !is_name || name.get_ref().starts_with(|letter: char| letter.is_ascii_digit()) {
                            self.mistake(name.span().start, format!("{:?} is no name of a variable", name.get_ref()));
                        }
                        if let Some(text) = self.string(name.get_ref(), value) {
                            environment.variables.insert(name.get_ref().to_string(), text);
                        }
                    }
                }
                _ => self.unknown("environment", &key, "lines, modules, variables"),
            }
        }
        environment
    }

    fn engines(&mut self, table: DeTable<'_>) -> BTreeMap<&'static str, PathBuf> {
        let mut engines = BTreeMap::new();
        for (key, value) in table {
            match [Trainer::Trl, Trainer::Axolotl].into_iter().find(|trainer| trainer.name() == key.get_ref()) {
                Some(trainer) => {
                    engines.extend(self.path(trainer.name(), value).map(|path| (trainer.name(), path)));
                }
                None => self.unknown("engines", &key, "trl, axolotl"),
            }
        }
        engines
    }

    fn node(&mut self, table: DeTable<'_>) -> Node {
        let mut node = Node::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "cpus" => node.cpus = self.count("cpus", 1, value),
                "gpus" => node.gpus = self.count("gpus", 0, value),
                "memory_gb" => node.memory_gb = self.number("memory_gb", value),
                "gpu_memory_gb" => node.gpu_memory_gb = self.number("gpu_memory_gb", value),
                "gpu_watts" => node.gpu_watts = self.number("gpu_watts", value),
                _ => self.unknown("node", &key, "cpus, gpus, memory_gb, gpu_memory_gb, gpu_watts"),
            }
        }
        node
    }

    fn serving(&mut self, at: usize, table: DeTable<'_>) -> Option<Serving> {
        let mut serving = Serving { command: Vec::new(), replicas: 1, gpus: 0, ready_s: READY_S };
        let mut is_told = false;
        for (key, value) in table {
            let place = value.span().start;
            match key.get_ref().as_ref() {
                "command" => {
                    is_told = true;
                    serving.command = self.strings("command", value).into_iter().map(|(_, text)| text).collect();
                    for mark in ["{model}", "{port}"] {
                        if !serving.command.iter().any(|word| word.contains(mark)) {
                            self.mistake(place, format!("`command` must hold {mark}"));
                        }
                    }
                }
                "replicas" => serving.replicas = self.count("replicas", 1, value).unwrap_or(1),
                "gpus" => serving.gpus = self.count("gpus", 0, value).unwrap_or(0),
                "ready" => match seconds(&value).filter(|found| *found > 0) {
                    Some(found) => serving.ready_s = found,
                    None => self.mistake(place, "`ready` must be seconds or [DAYS-]HOURS:MINUTES:SECONDS".to_owned()),
                },
                _ => self.unknown("serving", &key, "command, replicas, gpus, ready"),
            }
        }
        if !is_told {
            self.mistake(at, "[serving] needs `command`, the server's program and arguments".to_owned());
        }
        Some(serving)
    }

    fn models(&mut self, table: DeTable<'_>) -> BTreeMap<String, PathBuf> {
        let mut models: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (key, value) in table {
            let name = key.get_ref().to_string();
            let folder = crate::plan::model_folder(&name);
            if let Some(other) = models.keys().find(|other| crate::plan::model_folder(other) == folder) {
                let text = format!(
                    "{name:?} and {other:?} would both be models/{folder} in the run folder; rename one of them"
                );
                self.mistake(key.span().start, text);
            }
            models.extend(self.path(&name, value).map(|path| (name, path)));
        }
        models
    }

    fn resources(&mut self, table: &str, found: DeTable<'_>, cluster: &Cluster) -> BTreeMap<String, Asked> {
        let mut resources = BTreeMap::new();
        for (key, value) in found {
            let at = key.span().start;
            let name = format!("{table}.{}", key.get_ref());
            if table == "resources" && !KINDS.contains(&key.get_ref().as_ref()) {
                self.mistake(at, format!("[{name}] is no kind of stage; kinds are {}", KINDS.join(", ")));
            }
            let Some(inner) = self.table(&name, at, value) else { continue };
            let asked = self.asked(&name, inner, cluster);
            resources.insert(key.get_ref().to_string(), asked);
        }
        resources
    }

    fn asked(&mut self, name: &str, table: DeTable<'_>, cluster: &Cluster) -> Asked {
        let mut asked = Asked::default();
        for (key, value) in table {
            let at = key.span().start;
            match key.get_ref().as_ref() {
                "partition" => asked.partition = self.word("partition", value),
                "account" => asked.account = self.word("account", value),
                "qos" => asked.qos = self.word("qos", value),
                "nodes" => asked.nodes = self.count("nodes", 1, value),
                "gpus_per_node" => {
                    asked.gpus_per_node = self.count("gpus_per_node", 0, value);
                    if let (Some(asked), Some(has)) = (asked.gpus_per_node, cluster.node.gpus)
                        && asked > has
                    {
                        self.mistake(at, format!("[{name}] asks for {asked} GPUs of a node with {has}"));
                    }
                }
                "cpus_per_node" => {
                    asked.cpus_per_node = self.count("cpus_per_node", 1, value);
                    if let (Some(asked), Some(has)) = (asked.cpus_per_node, cluster.node.cpus)
                        && asked > has
                    {
                        self.mistake(at, format!("[{name}] asks for {asked} processors of a node with {has}"));
                    }
                }
                "time" => {
                    let found = seconds(&value).filter(|found| *found > 0);
                    asked.time_limit_s = found;
                    let text = match found {
                        None => "`time` must be seconds or [DAYS-]HOURS:MINUTES:SECONDS".to_owned(),
                        Some(found) if found <= cluster.slurm.signal_before_s => format!(
                            "`time` ({found} s) must be longer than signal_before ({} s)",
                            cluster.slurm.signal_before_s
                        ),
                        Some(_) => continue,
                    };
                    self.mistake(at, text);
                }
                "shards" => {
                    let of_kind = name.strip_prefix("resources.");
                    if of_kind.is_some_and(|kind| crate::shard::kind_of_shards(kind).is_none()) {
                        self.mistake(at, format!("[{name}] has `shards`, which are of evaluations and data"));
                    }
                    asked.shards = self.count("shards", 1, value);
                }
                _ => self.unknown(
                    name,
                    &key,
                    "nodes, gpus_per_node, cpus_per_node, time, partition, account, qos, shards",
                ),
            }
        }
        asked
    }
}

/// Whether a path begins with `./` and stays below the file's folder: so an unpacked bundle names what it brings.
fn is_beside(text: &str) -> bool {
    let is_plain = |part| matches!(part, std::path::Component::Normal(_));
    text.strip_prefix("./").is_some_and(|rest| !rest.is_empty() && Path::new(rest).components().all(is_plain))
}

/// Seconds of a number or of Slurm's `[DAYS-]HOURS:MINUTES:SECONDS`.
fn seconds(value: &Value<'_>) -> Option<u64> {
    match value.get_ref() {
        DeValue::Integer(number) => number.as_str().replace('_', "").parse().ok(),
        DeValue::String(text) => crate::slurm_time::parse(text),
        _ => None,
    }
}
