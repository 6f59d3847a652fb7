//! One stage from the command line: by its entry in a recipe, or by flags that are turned into the same entry, so that both
//! are checked and run by the same code.

use crate::cli::{
    AskedArgs, Common, DataRunArgs, EntryArgs, EvalArgs, MergeArgs, MergeSearchArgs, PullArgs, RedteamArgs,
    RejudgeArgs, StageArgs, SynthesisArgs,
};
use crate::commands::run::{enter_root, output_folder, run_stage};
use crate::commands::settings::set_all;
use crate::commands::stages::check_expected;
use crate::commands::threads_of;
use crate::failure::Failure;
use crate::recipe::checked::{COMMAND_LINE, Recipe, is_of_stage_name};
use crate::recipe::stage_config::source_mistake;
use crate::replaced;
use crate::stage::{Context, Done};
use crate::weights::{self, DtypeName};
use aloe_record::Cancel;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// `aloe sft|dpo|card` and `aloe data run`.
pub(crate) fn stage(kind: &str, args: &StageArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.entry.recipe.is_some() {
        return from_recipe(kind, &args.entry, args.out.as_deref(), cancel);
    }
    let out =
        args.out.as_deref().ok_or_else(|| Failure::usage("--out DIR is missing (or give --recipe and --stage)"))?;
    if args.dtype.is_some() && matches!(kind, "data" | "card") {
        return Err(Failure::usage(format!("--dtype: `aloe {kind}` computes with no model")).into());
    }
    let mut entry = match &args.config {
        Some(path) => read_table(path)?,
        None => Table::new(),
    };
    set_all(&mut entry, &args.set)?;
    let mut from = Table::new();
    for (key, path) in [("model", &args.model), ("data", &args.data)] {
        if let Some(path) = path {
            from.insert(key.into(), path_value(path)?);
        }
    }
    let request = Request { kind, entry, from, out, common: &common(&args.entry), dtype: args.dtype };
    let done = run(request, cancel)?;
    report(&done, out, args.entry.json)
}

/// `aloe data run`.
pub(crate) fn data(mut args: DataRunArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.rendered {
        args.stage.set.push("rendered=true".into());
    }
    if let Some(path) = &args.quarantine {
        args.stage.set.push(format!("quarantine={}", Value::String(absolute(path)?)));
    }
    stage("data", &args.stage, cancel)
}

/// `aloe pull`.
pub(crate) fn pull(args: &PullArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if let Some(mistake) = source_mistake(&args.source) {
        return Err(Failure::usage(mistake).into());
    }
    let mut entry = Table::new();
    let source = if args.source.contains(':') { args.source.clone() } else { absolute(Path::new(&args.source))? };
    entry.insert("source".into(), Value::String(source));
    if let Some(n) = args.expect_rows {
        entry.insert("expect_rows".into(), Value::Integer(i64::try_from(n)?));
    }
    let request =
        Request { kind: "pull", entry, from: Table::new(), out: &args.out, common: &args.common, dtype: None };
    let done = run(request, cancel)?;
    report(&done, &args.out, args.common.json)
}

/// `aloe merge CONFIG OUT`: the YAML's models are paths, as for mergekit.
pub(crate) fn merge(args: &MergeArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.entry.recipe.is_some() {
        return from_recipe("merge", &args.entry, args.run_folder.as_deref(), cancel);
    }
    let path = args.config.as_deref().ok_or_else(|| Failure::usage("mergekit's YAML is missing"))?;
    let yaml = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let config = aloe_merge::MergeConfig::parse(&yaml, path)?;
    let folders = cached_models(&config)?;
    let Some(out) = args.out.as_ref().filter(|_| !args.check) else { return merge_dry(&config, folders, args) };
    let mut entry = Table::new();
    entry.insert("yaml".into(), Value::String(yaml));
    entry.insert("master".into(), Value::Boolean(false));
    if args.memory << 20 != aloe_merge::DEFAULT_MEMORY {
        entry.insert("memory".into(), Value::Integer(i64::try_from(args.memory)?));
    }
    let from = folders
        .into_iter()
        .map(|(name, folder)| Ok((name, path_value(&folder)?)))
        .collect::<anyhow::Result<Table>>()?;
    let request = Request { kind: "merge", entry, from, out, common: &common(&args.entry), dtype: None };
    let done = run(request, cancel).map_err(|mut error| {
        // The stage has the YAML's text alone; its lines are those of this file.
        if let Some(aloe_merge::Error::Config { path: named, .. }) = error.downcast_mut() {
            *named = path.to_path_buf();
        }
        error
    })?;
    report(&done, out, args.entry.json)
}

/// Snapshots in the Hugging Face cache of the models that are named as on the hub and are no paths. What is found nowhere is refused with
/// its line and what to do.
fn cached_models(config: &aloe_merge::MergeConfig) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let (mut folders, mut mistakes) = (BTreeMap::new(), Vec::new());
    for name in config.outside_models().into_iter().filter(|name| !Path::new(name).exists()) {
        match crate::sources::cached(&name) {
            Some(folder) => {
                folders.insert(name, folder);
            }
            None => {
                let line = config.line_of(&name);
                mistakes.push(aloe_merge::Mistake { line, text: aloe_merge::no_folder(&name) });
            }
        }
    }
    mistakes.sort_by_key(|mistake| mistake.line);
    match mistakes.is_empty() {
        true => Ok(folders),
        false => Err(aloe_merge::Error::Config { path: config.path.clone(), mistakes }.into()),
    }
}

/// `aloe merge --check` and `--tensor NAME`: the plan, or one tensor with its figures, on standard output.
fn merge_dry(
    config: &aloe_merge::MergeConfig,
    folders: BTreeMap<String, PathBuf>,
    args: &MergeArgs,
) -> anyhow::Result<()> {
    let options = aloe_merge::MergeOptions {
        seed: args.entry.seed.unwrap_or(0),
        threads: threads_of(args.entry.threads),
        memory: args.memory << 20,
        folders,
        ..aloe_merge::MergeOptions::default()
    };
    let plan = aloe_merge::plan(config, &options)?;
    let mut out = std::io::stdout();
    let Some(name) = &args.tensor else {
        match args.entry.json {
            true => writeln!(out, "{}", serde_json::to_string_pretty(&plan.json(config, &options))?)?,
            false => write!(out, "{}", plan.table(&options))?,
        }
        return args.out.as_deref().map_or(Ok(()), |out| check_out(&plain(out)?, config, &plan, &options));
    };
    let tensor = plan.tensors.iter().find(|tensor| &tensor.spec.hf_name == name);
    let tensor = tensor.ok_or_else(|| {
        let names = plan.tensors.iter().map(|tensor| tensor.spec.hf_name.as_str());
        let like: Vec<&str> = names.clone().filter(|known| known.contains(name.as_str())).collect();
        let examples = if like.is_empty() { names.collect() } else { like };
        let shown = examples.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        Failure::usage(format!(
            "--tensor {name}: the result has no such tensor; it has {shown}, ... ({} such)",
            examples.len()
        ))
    })?;
    let (sha256, stats) = aloe_merge::tensor_digest(config, &plan, tensor)?;
    let found = serde_json::json!({
        "tensor": name,
        "shape": tensor.spec.shape,
        "dtype": plan.out_dtype.name(),
        "sha256": sha256,
        "task_vectors": stats,
    });
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?)
}

/// Whether the result could be written there: what the merge itself would refuse.
fn check_out(
    out: &Path,
    config: &aloe_merge::MergeConfig,
    plan: &aloe_merge::MergePlan,
    options: &aloe_merge::MergeOptions,
) -> anyhow::Result<()> {
    let out = replaced::followed(out)?;
    let names = config.outside_models();
    let inputs = names.iter().map(|name| options.folders.get(name).map_or(Path::new(name), PathBuf::as_path));
    replaced::refuse_inputs("merge", &out, inputs)?;
    replaced::refuse_foreign("merge", &out)?;
    Ok(plan.check_disk(&out, options)?)
}

/// `aloe merge-search SETTINGS OUT`: `config` names the YAML, whose models are paths, as for mergekit.
pub(crate) fn merge_search(args: &MergeSearchArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.entry.recipe.is_some() {
        return from_recipe("merge-search", &args.entry, args.run_folder.as_deref(), cancel);
    }
    let path = args.config.as_deref().ok_or_else(|| Failure::usage("the settings file is missing"))?;
    let out = args.out.as_deref().ok_or_else(|| Failure::usage("OUT is missing"))?;
    let mut entry = read_table(path)?;
    set_all(&mut entry, &args.set)?;
    match (entry.remove("config"), entry.contains_key("yaml")) {
        (Some(Value::String(name)), false) => {
            let yaml = std::fs::read_to_string(&name)
                .map_err(|error| Failure::usage(format!("{}: config: cannot read {name}: {error}", path.display())))?;
            entry.insert("yaml".into(), Value::String(yaml));
        }
        (None, true) => {}
        _ => return Err(Failure::usage(format!("{}: write config = \"merge.yml\"", path.display())).into()),
    }
    entry.entry("master").or_insert(Value::Boolean(false));
    let common = common(&args.entry);
    let request = Request { kind: "merge-search", entry, from: Table::new(), out, common: &common, dtype: args.dtype };
    let done = run(request, cancel)?;
    report(&done, out, args.entry.json)
}

/// `aloe eval MODEL`.
pub(crate) fn eval(args: &EvalArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.asked.entry.recipe.is_some() {
        return from_recipe("eval", &args.asked.entry, args.asked.out.as_deref(), cancel);
    }
    let mut entry = Table::new();
    entry.insert("tasks".into(), tasks_value(&args.tasks)?);
    entry.insert("data".into(), path_value(&data_folder(args.data.as_deref(), &args.tasks)?)?);
    entry.insert("protocol".into(), Value::String(args.protocol.clone()));
    entry.insert("strategy".into(), Value::String(args.strategy.clone()));
    for (key, number) in [("shots", args.shots), ("limit", args.limit)] {
        if let Some(number) = number {
            entry.insert(key.into(), Value::Integer(i64::try_from(number)?));
        }
    }
    if let Some(labels) = &args.labels {
        entry.insert("labels".into(), path_value(labels)?);
    }
    let is_open = args.tasks.iter().any(|name| aloe_task::open::OpenTask::parse(name).is_some());
    if !is_open && !args.judge.is_empty() {
        let text = format!("--judge is for open answers, tasks {}", crate::recipe::open_stage::open_names());
        return Err(Failure::usage(text).into());
    }
    if is_open && args.asked.compare.is_some() {
        return Err(Failure::usage("--compare: open answers of two runs are not compared here; leave it out").into());
    }
    ask("eval", entry, &args.asked, judges(&args.judge)?, cancel)
}

/// `aloe rejudge RUN`.
pub(crate) fn rejudge(args: &RejudgeArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.entry.recipe.is_some() {
        return from_recipe("rejudge", &args.entry, args.out.as_deref(), cancel);
    }
    let run_folder = args.run.as_deref().ok_or_else(|| Failure::usage("RUN is missing"))?;
    let out = args.out.as_deref().ok_or_else(|| Failure::usage("--out DIR is missing"))?;
    let mut entry = Table::new();
    if let Some(labels) = &args.labels {
        entry.insert("labels".into(), path_value(labels)?);
    }
    set_all(&mut entry, &args.set)?;
    let mut from = judges(&args.judge)?;
    from.insert("answers".into(), path_value(run_folder)?);
    let common = common(&args.entry);
    let request = Request { kind: "rejudge", entry, from, out, common: &common, dtype: args.dtype };
    let done = run(request, cancel)?;
    report(&done, out, args.entry.json)
}

/// The input `judge`, where a judge is named.
fn judges(names: &[String]) -> anyhow::Result<Table> {
    let mut from = Table::new();
    let paths = names.iter().map(|name| model_name(name).map(Value::String)).collect::<anyhow::Result<Vec<_>>>()?;
    if !paths.is_empty() {
        from.insert("judge".into(), Value::Array(paths));
    }
    Ok(from)
}

/// `aloe redteam MODEL`.
pub(crate) fn redteam(args: &RedteamArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.asked.entry.recipe.is_some() {
        return from_recipe("redteam", &args.asked.entry, args.asked.out.as_deref(), cancel);
    }
    let mut entry = Table::new();
    let questions = args.questions.as_deref().ok_or_else(|| Failure::usage("--questions FILE is missing"))?;
    entry.insert("questions".into(), path_value(questions)?);
    if let Some(harmless) = &args.harmless {
        entry.insert("harmless".into(), path_value(harmless)?);
    }
    ask("redteam", entry, &args.asked, Table::new(), cancel)
}

/// `aloe synthesis MODEL`.
pub(crate) fn synthesis(args: &SynthesisArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.asked.entry.recipe.is_some() {
        return from_recipe("synthesis", &args.asked.entry, args.asked.out.as_deref(), cancel);
    }
    if args.asked.compare.is_some() {
        return Err(Failure::usage("--compare: two syntheses are not compared here; leave it out").into());
    }
    let mut entry = Table::new();
    // Passages and red-team questions are named by --set.
    if args.data.is_some() || !args.tasks.is_empty() {
        entry.insert("tasks".into(), tasks_value(&args.tasks)?);
        entry.insert("data".into(), path_value(&data_folder(args.data.as_deref(), &args.tasks)?)?);
    }
    entry.insert("mode".into(), Value::String(args.mode.clone()));
    if let Some(limit) = args.limit {
        entry.insert("limit".into(), Value::Integer(i64::try_from(limit)?));
    }
    ask("synthesis", entry, &args.asked, Table::new(), cancel)
}

/// Task names; descriptions of the user's own sets by their absolute paths.
fn tasks_value(tasks: &[String]) -> anyhow::Result<Value> {
    let tasks = tasks.iter().map(|task| match task.ends_with(".toml") {
        true => absolute(Path::new(task)).map(Value::String),
        false => Ok(Value::String(task.clone())),
    });
    Ok(Value::Array(tasks.collect::<anyhow::Result<_>>()?))
}

/// The folder with the benchmarks' files: as given, else the environment's.
fn data_folder(given: Option<&Path>, tasks: &[String]) -> anyhow::Result<PathBuf> {
    match given {
        Some(data) => Ok(data.to_owned()),
        // Tasks of the user's own name their files themselves.
        None if !tasks.is_empty() && tasks.iter().all(|task| task.ends_with(".toml")) => Ok(folder_of(&tasks[0])),
        None => std::env::var_os("ALOE_DATA")
            .map(PathBuf::from)
            .ok_or_else(|| Failure::usage("--data DIR is missing and ALOE_DATA is not set").into()),
    }
}

fn folder_of(file: &str) -> PathBuf {
    match Path::new(file).parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Runs a stage that asks a model; `entry` and `from` hold what is the kind's own.
fn ask(kind: &str, mut entry: Table, args: &AskedArgs, mut from: Table, cancel: &Cancel) -> anyhow::Result<()> {
    let model = args.model.as_deref().ok_or_else(|| Failure::usage("MODEL is missing"))?;
    let out = args.out.as_deref().ok_or_else(|| Failure::usage("--out DIR is missing"))?;
    if let Some(tokenizer) = &args.tokenizer {
        entry.insert("tokenizer".into(), path_value(tokenizer)?);
    }
    if args.server_template {
        entry.insert("server_template".into(), Value::Boolean(true));
    }
    if let Some(mistake) = weights::mistake(args.dtype, args.quantize, Some(model)) {
        return Err(Failure::usage(format!("--{mistake}")).into());
    }
    if let Some(folder) = &args.answer_cache {
        entry.insert("answer_cache".into(), path_value(folder)?);
    }
    if let Some(mebibytes) = args.kv_budget {
        entry.insert("kv_budget".into(), Value::Integer(i64::try_from(mebibytes)?));
    }
    if let Some(seconds) = args.request_timeout {
        entry.insert("request_timeout".into(), Value::Integer(i64::try_from(seconds)?));
    }
    if let Some(quantize) = args.quantize {
        entry.insert("quantize".into(), Value::String(quantize.name().into()));
    }
    set_all(&mut entry, &args.set)?;
    from.extend(model_and_compare(model, args.compare.as_deref())?);
    let request = Request { kind, entry, from, out, common: &common(&args.entry), dtype: args.dtype };
    let done = run(request, cancel)?;
    report(&done, out, args.entry.json)
}

/// The flags of a stage that stands in no recipe.
fn common(args: &EntryArgs) -> Common {
    Common { seed: args.seed.unwrap_or(0), threads: args.threads, json: args.json }
}

/// What the flags said, as a recipe entry.
struct Request<'a> {
    kind: &'a str,
    entry: Table,
    from: Table,
    out: &'a Path,
    common: &'a Common,
    dtype: Option<DtypeName>,
}

fn run(request: Request<'_>, cancel: &Cancel) -> anyhow::Result<Done> {
    let out = plain(request.out)?;
    let name = out
        .file_name()
        .and_then(|name| name.to_str())
        .map(str::to_owned)
        .ok_or_else(|| Failure::usage(format!("{} is not a folder's name in UTF-8", request.out.display())))?;
    let parent = out.parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut entry = request.entry;
    entry.insert("kind".into(), Value::String(request.kind.to_owned()));
    // The names of a recipe's stages are narrower than those of folders: the folder's own name comes back below.
    let narrow = name.replace(|letter| !is_of_stage_name(letter), "-");
    let narrow = narrow.strip_prefix('.').map_or(narrow.clone(), |rest| format!("-{rest}"));
    entry.insert("name".into(), Value::String(narrow));
    if !request.from.is_empty() {
        entry.insert("from".into(), Value::Table(request.from));
    }
    let mut document = Table::new();
    document.insert("name".into(), Value::String("command-line".into()));
    if let Some(dtype) = request.dtype {
        document.insert("dtype".into(), Value::String(dtype.name().into()));
    }
    document.insert("stage".into(), Value::Array(vec![Value::Table(entry)]));
    let text = toml::to_string(&document)?;
    let mut recipe = Recipe::parse(Path::new(COMMAND_LINE), &text)?;
    // TOML's whole numbers end at 2^63; a seed does not.
    recipe.set_seed(request.common.seed);
    recipe.stages[0].name = name;
    let threads = threads_of(request.common.threads);
    let context = Context { seed: recipe.seed, threads, dtype: recipe.dtype, servers: None, cancel: cancel.clone() };
    run_stage(&recipe, &recipe.stages[0], &parent, &context)
}

/// `--recipe FILE --stage NAME`: what `aloe run` would do for this stage, into the same folder. `out` is the run's.
fn from_recipe(kind: &str, args: &EntryArgs, out: Option<&Path>, cancel: &Cancel) -> anyhow::Result<()> {
    let (Some(path), Some(name)) = (args.recipe.as_deref(), args.stage.as_deref()) else {
        return Err(Failure::usage("--recipe FILE and --stage NAME go together").into());
    };
    let mut recipe = Recipe::read(path)?;
    recipe.set_seed(args.seed.unwrap_or(recipe.seed));
    let at = recipe.position(name)?;
    let stage = &recipe.stages[at];
    if stage.config.kind() != kind {
        return Err(Failure::usage(format!("stage {name:?} is of kind {}, not {kind}", stage.config.kind())).into());
    }
    let out = output_folder(&recipe, out)?;
    enter_root(&recipe)?;
    let threads = threads_of(if args.threads == 0 { recipe.threads } else { args.threads });
    let context = Context { seed: recipe.seed, threads, dtype: recipe.dtype, servers: None, cancel: cancel.clone() };
    let done = run_stage(&recipe, stage, &out, &context)?;
    report(&done, &out.join(name), args.json)
}

fn report(done: &Done, out: &Path, as_json: bool) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    if as_json {
        writeln!(output, "{}", serde_json::to_string_pretty(&done.record.results)?)?;
        return check_expected(&done.record.name, &done.record);
    }
    let summary = done.record.results.get("summary").and_then(|value| value.as_str()).unwrap_or("done");
    let state = if done.was_done { " (was done already)" } else { "" };
    if let Some(table) = done.record.results.get("table").and_then(|value| value.as_str()) {
        writeln!(output, "{table}")?;
    }
    writeln!(output, "{summary}{state}\nfiles and record.json: {}", out.display())?;
    check_expected(&done.record.name, &done.record)
}

fn model_and_compare(model: &str, compare: Option<&Path>) -> anyhow::Result<Table> {
    let mut from = Table::new();
    from.insert("model".into(), Value::String(model_name(model)?));
    if let Some(compare) = compare {
        from.insert("compare".into(), path_value(compare)?);
    }
    Ok(from)
}

/// An address as it is, a path absolute.
fn model_name(model: &str) -> anyhow::Result<String> {
    if model.starts_with("http") { Ok(model.to_owned()) } else { absolute(Path::new(model)) }
}

/// The absolute path with `..` taken out, so that nothing is created on the way to a folder that is then refused.
fn plain(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))?;
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    Ok(plain)
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

fn path_value(path: &Path) -> anyhow::Result<Value> {
    Ok(Value::String(absolute(path)?))
}

pub(crate) fn read_table(path: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())).into())
}
