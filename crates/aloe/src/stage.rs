//! One stage: is it already done, where does it write, what does its record say. Every kind goes through [`execute`].
//!
//! A finished stage whose fingerprint and outputs are unchanged is not run again; an interrupted one resumes from its
//! partial folder when its fingerprint is the same, and starts over otherwise.

use crate::failure::Failure;
use aloe_record::atomic::OutputDir;
use aloe_record::{Cancel, Record, atomic, digest};
use aloe_tensor::{Device, Dtype};
use anyhow::Context as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What every stage is given beside its own settings.
#[derive(Clone)]
pub(crate) struct Context {
    /// Seed of the recipe or the command line.
    pub(crate) seed: u64,
    /// Threads, at least 1.
    pub(crate) threads: usize,
    /// Type of weights where the stage computes with a model.
    pub(crate) dtype: Dtype,
    /// Set by Ctrl-C and SIGTERM.
    pub(crate) cancel: Cancel,
}

impl Context {
    /// The device all computing runs on.
    pub(crate) fn device(&self) -> Device {
        Device::cpu(self.threads)
    }
}

/// The named inputs of a stage: folders or files.
pub(crate) type Inputs = BTreeMap<String, Vec<PathBuf>>;

/// Name and settings of a stage that is about to run.
pub(crate) struct Job<'a> {
    /// Kind, equal to the subcommand.
    pub(crate) kind: &'a str,
    /// Name, equal to the folder.
    pub(crate) name: &'a str,
    /// Settings as written.
    pub(crate) written: Value,
    /// Settings with defaults.
    pub(crate) used: Value,
    /// Inputs by name.
    pub(crate) inputs: &'a Inputs,
    /// Files and folders beside the inputs that the settings name: data sources, task folders.
    pub(crate) extra_files: Vec<PathBuf>,
    /// The output folder.
    pub(crate) out: &'a Path,
}

/// What came of a stage.
pub(crate) struct Done {
    /// Its record.
    pub(crate) record: Record,
    /// Whether it was there already.
    pub(crate) was_done: bool,
}

/// Runs `work` unless the stage is done. `work` writes into the folder it is given and puts its figures into the record;
/// the entry `summary` of the results is what the closing table shows.
pub(crate) fn execute(
    context: &Context,
    job: &Job<'_>,
    work: impl FnOnce(&Path, &mut Record) -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let inputs = input_digests(job)?;
    let device = context.device();
    let fingerprint = fingerprint(context, job, &inputs, device.isa().name())?;
    if let Some(record) = finished(job.out, &fingerprint)? {
        return Ok(Done { record, was_done: true });
    }
    if let Some(parent) = job.out.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let folder = open_partial(job.out, &fingerprint)?;
    reset_peak_memory();
    let started = Instant::now();
    let mut record = Record::start(job.kind, job.name);
    record.config_written = job.written.clone();
    record.config_used = job.used.clone();
    record.fingerprint = fingerprint;
    record.inputs = inputs;
    record.seed = context.seed;
    record.device = device.name();
    work(folder.path(), &mut record)?;
    std::fs::remove_file(folder.path().join(MARK)).context("cannot remove the stage's mark")?;
    record.outputs = output_digests(folder.path())?;
    record.finish(folder.path(), started)?;
    folder.commit()?;
    Ok(Done { record, was_done: false })
}

/// The Hugging Face folder of an input: a stage's `model/`, or the folder (or `.gguf` file) itself.
pub(crate) fn model_of(input: &Path) -> PathBuf {
    let inner = input.join("model");
    if inner.join("config.json").exists() { inner } else { input.to_path_buf() }
}

/// The f32 master of an input where it has one, else its model: what training and merging start from.
pub(crate) fn master_of(input: &Path) -> PathBuf {
    let inner = input.join("master");
    if inner.join("config.json").exists() { inner } else { model_of(input) }
}

/// The only path under `name`, or a usage error that says which stage needs it.
pub(crate) fn single<'a>(inputs: &'a Inputs, name: &str, kind: &str) -> anyhow::Result<&'a Path> {
    match inputs.get(name).map(Vec::as_slice) {
        Some([only]) => Ok(only),
        Some(_) => Err(Failure::usage(format!("{kind}: input `{name}` takes one value")).into()),
        None => {
            Err(Failure::usage(format!("{kind}: input `{name}` is missing; write from = {{ {name} = \"...\" }}"))
                .into())
        }
    }
}

/// Name of the file that tells which fingerprint a partial folder belongs to.
const MARK: &str = ".fingerprint";

fn open_partial(out: &Path, fingerprint: &str) -> anyhow::Result<OutputDir> {
    let folder = OutputDir::resume(out)?;
    let mark = folder.path().join(MARK);
    if std::fs::read_to_string(&mark).is_ok_and(|found| found == fingerprint) {
        return Ok(folder);
    }
    let folder = OutputDir::fresh(out)?;
    atomic::write(&mark, fingerprint.as_bytes())?;
    Ok(folder)
}

/// The record of a finished stage with this fingerprint whose outputs are what it says; `None` means: run it.
fn finished(out: &Path, fingerprint: &str) -> anyhow::Result<Option<Record>> {
    if !out.join("record.json").exists() {
        return Ok(None);
    }
    let Ok(record) = Record::read(out) else { return Ok(None) };
    let unchanged = record.fingerprint == fingerprint && output_digests(out)? == record.outputs;
    Ok(unchanged.then_some(record))
}

fn fingerprint(context: &Context, job: &Job<'_>, inputs: &Map<String, Value>, isa: &str) -> anyhow::Result<String> {
    let dtype = format!("{:?}", context.dtype);
    let decides = json!({
        "kind": job.kind, "config": job.used, "inputs": inputs, "seed": context.seed, "dtype": dtype, "isa": isa,
        "version": env!("CARGO_PKG_VERSION"),
    });
    Ok(digest::bytes(serde_json::to_string(&decides)?.as_bytes()))
}

fn input_digests(job: &Job<'_>) -> anyhow::Result<Map<String, Value>> {
    let mut digests = Map::new();
    for (name, paths) in job.inputs {
        let found: Vec<Value> = paths.iter().map(|path| digest_of(path).map(Value::from)).collect::<Result<_, _>>()?;
        digests.insert(name.clone(), if found.len() == 1 { found[0].clone() } else { Value::from(found) });
    }
    for (at, path) in job.extra_files.iter().enumerate() {
        digests.insert(format!("file {}", at + 1), Value::from(digest_of(path)?));
    }
    Ok(digests)
}

/// Digest of a stage folder from its record, of anything else from its bytes.
fn digest_of(path: &Path) -> anyhow::Result<String> {
    if path.to_string_lossy().starts_with("http") {
        return Ok(path.to_string_lossy().into_owned());
    }
    if let Ok(record) = Record::read(path) {
        return Ok(digest::bytes(serde_json::to_string(&record.outputs)?.as_bytes()));
    }
    if path.is_dir() {
        return Ok(digest::folder(path)?);
    }
    if !path.exists() {
        return Err(Failure::usage(format!("{} does not exist", path.display())).into());
    }
    Ok(digest::file(path)?)
}

fn output_digests(folder: &Path) -> anyhow::Result<Map<String, Value>> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .filter(|name| name != "record.json" && !name.starts_with('.'))
        .collect();
    names.sort();
    let mut digests = Map::new();
    for name in names {
        let path = folder.join(&name);
        let found = if path.is_dir() { digest::folder(&path)? } else { digest::file(&path)? };
        digests.insert(name, Value::from(found));
    }
    Ok(digests)
}

/// Starts the peak-memory count of this process anew, where the kernel lets us.
fn reset_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context { seed: 1, threads: 1, dtype: Dtype::F32, cancel: Cancel::default() }
    }

    fn run(out: &Path, input: &Path, value: u32) -> bool {
        let inputs = Inputs::from([("data".to_owned(), vec![input.to_path_buf()])]);
        let used = json!({ "value": value });
        let job =
            Job { kind: "data", name: "d", written: used.clone(), used, inputs: &inputs, extra_files: vec![], out };
        let done = execute(&context(), &job, |folder, _| Ok(std::fs::write(folder.join("x"), value.to_string())?));
        done.unwrap().was_done
    }

    #[test]
    fn a_stage_runs_again_only_when_settings_inputs_or_outputs_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (out, input) = (dir.path().join("stage"), dir.path().join("in.txt"));
        std::fs::write(&input, "a").unwrap();
        assert!(!run(&out, &input, 1));
        assert!(run(&out, &input, 1), "nothing changed");
        assert!(!run(&out, &input, 2), "a setting changed");
        std::fs::write(&input, "b").unwrap();
        assert!(!run(&out, &input, 2), "an input changed");
        std::fs::write(out.join("x"), "damaged").unwrap();
        assert!(!run(&out, &input, 2), "an output was damaged");
        assert!(run(&out, &input, 2));
    }

    #[test]
    fn a_partial_folder_of_other_settings_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("stage");
        let first = open_partial(&out, "one").unwrap();
        std::fs::write(first.path().join("half"), "x").unwrap();
        assert!(open_partial(&out, "one").unwrap().path().join("half").exists());
        assert!(!open_partial(&out, "two").unwrap().path().join("half").exists());
    }
}
