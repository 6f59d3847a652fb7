//! One stage from the command line: by its recipe entry, or by flags that are turned into the same entry, so that both
//! are checked and run by the same code.

use crate::cli::{Common, DtypeArg, EvalArgs, MergeArgs, ModelArgs, PullArgs, RedteamArgs, StageArgs};
use crate::commands::run::{enter_root, output_folder, run_stage};
use crate::commands::threads_of;
use crate::failure::Failure;
use crate::recipe::checked::Recipe;
use crate::recipe::stage_config::source_mistake;
use crate::stage::{Context, Done};
use aloe_record::Cancel;
use anyhow::Context as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// `aloe sft|dpo|card` and `aloe data run`.
pub(crate) fn stage(kind: &str, args: &StageArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if let (Some(path), Some(name)) = (&args.recipe, &args.stage) {
        return from_recipe(kind, path, name, args, cancel);
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
    let common = Common { seed: args.seed.unwrap_or(0), threads: args.threads, json: args.json };
    let request = Request { kind, entry, from, out, common: &common, dtype: args.dtype };
    let done = run(request, cancel)?;
    report(&done, out, args.json)
}

/// `aloe pull`.
pub(crate) fn pull(args: &PullArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if let Some(mistake) = source_mistake(&args.source) {
        return Err(Failure::usage(mistake).into());
    }
    let mut entry = Table::new();
    let source = if args.source.contains(':') { args.source.clone() } else { absolute(Path::new(&args.source))? };
    entry.insert("source".into(), Value::String(source));
    let request =
        Request { kind: "pull", entry, from: Table::new(), out: &args.out, common: &args.common, dtype: None };
    let done = run(request, cancel)?;
    report(&done, &args.out, args.common.json)
}

/// `aloe merge CONFIG OUT`: the YAML's models are paths, as for mergekit.
pub(crate) fn merge(args: &MergeArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let yaml = std::fs::read_to_string(&args.config)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", args.config.display())))?;
    let config = aloe_merge::MergeConfig::parse(&yaml, &args.config)?;
    let Some(out) = &args.out else { return merge_dry(&config, args) };
    let mut entry = Table::new();
    entry.insert("yaml".into(), Value::String(yaml));
    entry.insert("master".into(), Value::Boolean(false));
    if args.memory << 20 != aloe_merge::DEFAULT_MEMORY {
        entry.insert("memory".into(), Value::Integer(i64::try_from(args.memory)?));
    }
    let request = Request { kind: "merge", entry, from: Table::new(), out, common: &args.common, dtype: None };
    let done = run(request, cancel)?;
    report(&done, out, args.common.json)
}

/// `aloe merge --check` and `--tensor NAME`: the plan, or one tensor with its figures, on standard output.
fn merge_dry(config: &aloe_merge::MergeConfig, args: &MergeArgs) -> anyhow::Result<()> {
    let options = aloe_merge::MergeOptions {
        seed: args.common.seed,
        threads: threads_of(args.common.threads),
        memory: args.memory << 20,
        ..aloe_merge::MergeOptions::default()
    };
    if !config.earlier.is_empty() {
        return Err(Failure::usage(
            "--check and --tensor take a file of one document: a later one needs merged models",
        )
        .into());
    }
    let plan = aloe_merge::plan(config, &options)?;
    let mut out = std::io::stdout();
    let Some(name) = &args.tensor else { return Ok(write!(out, "{}", plan.table(&options))?) };
    let tensor = plan.tensors.iter().find(|tensor| &tensor.spec.hf_name == name);
    let tensor = tensor.ok_or_else(|| Failure::usage(format!("--tensor {name}: the result has no such tensor")))?;
    let (values, stats) = aloe_merge::merge_tensor(config, &plan, tensor)?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let found = serde_json::json!({
        "tensor": name,
        "shape": tensor.spec.shape,
        "dtype": plan.dtype.name(),
        "sha256_of_float32_values": aloe_record::digest::bytes(&bytes),
        "task_vectors": stats,
    });
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?)
}

/// `aloe eval MODEL`.
pub(crate) fn eval(args: &EvalArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let mut entry = Table::new();
    entry.insert("tasks".into(), Value::Array(args.tasks.iter().cloned().map(Value::String).collect()));
    let data = match &args.data {
        Some(data) => data.clone(),
        None => std::env::var_os("ALOE_DATA")
            .map(PathBuf::from)
            .ok_or_else(|| Failure::usage("--data DIR is missing and ALOE_DATA is not set"))?,
    };
    entry.insert("data".into(), path_value(&data)?);
    entry.insert("protocol".into(), Value::String(args.protocol.clone()));
    entry.insert("strategy".into(), Value::String(args.strategy.clone()));
    for (key, number) in [("shots", args.shots), ("limit", args.limit)] {
        if let Some(number) = number {
            entry.insert(key.into(), Value::Integer(i64::try_from(number)?));
        }
    }
    served(&mut entry, &args.model)?;
    set_all(&mut entry, &args.set)?;
    let from = model_and_compare(&args.model.model, args.compare.as_deref())?;
    let common = &args.model.common;
    let request = Request { kind: "eval", entry, from, out: &args.out, common, dtype: Some(args.model.dtype) };
    let done = run(request, cancel)?;
    report(&done, &args.out, common.json)
}

/// `aloe redteam MODEL`.
pub(crate) fn redteam(args: &RedteamArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let mut entry = Table::new();
    entry.insert("questions".into(), path_value(&args.questions)?);
    if let Some(harmless) = &args.harmless {
        entry.insert("harmless".into(), path_value(harmless)?);
    }
    served(&mut entry, &args.model)?;
    set_all(&mut entry, &args.set)?;
    let from = model_and_compare(&args.model.model, args.compare.as_deref())?;
    let common = &args.model.common;
    let request = Request { kind: "redteam", entry, from, out: &args.out, common, dtype: Some(args.model.dtype) };
    let done = run(request, cancel)?;
    report(&done, &args.out, common.json)
}

/// What the flags said, as a recipe entry.
struct Request<'a> {
    kind: &'a str,
    entry: Table,
    from: Table,
    out: &'a Path,
    common: &'a Common,
    dtype: Option<DtypeArg>,
}

fn run(request: Request<'_>, cancel: &Cancel) -> anyhow::Result<Done> {
    let out = plain(request.out)?;
    let name = out
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .ok_or_else(|| Failure::usage(format!("--out {} is not a folder's name", request.out.display())))?;
    let parent = out.parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut entry = request.entry;
    entry.insert("kind".into(), Value::String(request.kind.to_owned()));
    entry.insert("name".into(), Value::String(name));
    if !request.from.is_empty() {
        entry.insert("from".into(), Value::Table(request.from));
    }
    let mut document = Table::new();
    document.insert("name".into(), Value::String("command-line".into()));
    document.insert("seed".into(), Value::Integer(i64::try_from(request.common.seed)?));
    let dtype = if matches!(request.dtype, Some(DtypeArg::F32)) { "f32" } else { "bf16" };
    document.insert("dtype".into(), Value::String(dtype.into()));
    document.insert("stage".into(), Value::Array(vec![Value::Table(entry)]));
    let text = toml::to_string(&document)?;
    let recipe = Recipe::parse(Path::new("command line"), &text)?;
    let threads = threads_of(request.common.threads);
    let context = Context { seed: recipe.seed, threads, dtype: recipe.dtype, cancel: cancel.clone() };
    run_stage(&recipe, &recipe.stages[0], &parent, &context)
}

fn from_recipe(kind: &str, path: &Path, name: &str, args: &StageArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let mut recipe = Recipe::read(path)?;
    recipe.set_seed(args.seed.unwrap_or(recipe.seed));
    let at = recipe.position(name)?;
    let stage = &recipe.stages[at];
    if stage.config.kind() != kind {
        return Err(Failure::usage(format!("stage {name:?} is of kind {}, not {kind}", stage.config.kind())).into());
    }
    let out = output_folder(&recipe, args.out.as_deref())?;
    enter_root(&recipe)?;
    let threads = threads_of(if args.threads == 0 { recipe.threads } else { args.threads });
    let context = Context { seed: recipe.seed, threads, dtype: recipe.dtype, cancel: cancel.clone() };
    let done = run_stage(&recipe, stage, &out, &context)?;
    report(&done, &out.join(name), args.json)
}

fn report(done: &Done, out: &Path, as_json: bool) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    if as_json {
        writeln!(output, "{}", serde_json::to_string_pretty(&done.record.results)?)?;
        return Ok(());
    }
    let summary = done.record.results.get("summary").and_then(|value| value.as_str()).unwrap_or("done");
    let state = if done.was_done { " (was done already)" } else { "" };
    if let Some(table) = done.record.results.get("table").and_then(|value| value.as_str()) {
        writeln!(output, "{table}")?;
    }
    writeln!(output, "{summary}{state}\nfiles and record.json: {}", out.display())?;
    Ok(())
}

fn model_and_compare(model: &str, compare: Option<&Path>) -> anyhow::Result<Table> {
    let mut from = Table::new();
    let model = if model.starts_with("http") { model.to_owned() } else { absolute(Path::new(model))? };
    from.insert("model".into(), Value::String(model));
    if let Some(compare) = compare {
        from.insert("compare".into(), path_value(compare)?);
    }
    Ok(from)
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

/// How an endpoint's prompts are rendered.
fn served(entry: &mut Table, model: &ModelArgs) -> anyhow::Result<()> {
    if let Some(tokenizer) = &model.tokenizer {
        entry.insert("tokenizer".into(), path_value(tokenizer)?);
    }
    if model.server_template {
        entry.insert("server_template".into(), Value::Boolean(true));
    }
    Ok(())
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

fn path_value(path: &Path) -> anyhow::Result<Value> {
    Ok(Value::String(absolute(path)?))
}

fn read_table(path: &Path) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())).into())
}

/// Adds each `KEY=VALUE`; a value that is no TOML is taken as a string.
fn set_all(entry: &mut Table, settings: &[String]) -> anyhow::Result<()> {
    for setting in settings {
        let (key, value) =
            setting.split_once('=').ok_or_else(|| Failure::usage(format!("--set {setting}: write --set KEY=VALUE")))?;
        let parsed =
            toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
        entry.insert(key.trim().to_owned(), parsed.unwrap_or_else(|| Value::String(value.to_owned())));
    }
    Ok(())
}
