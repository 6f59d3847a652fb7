//! Runs over some of the tasks each, made by as many processes, as one run over all of them, byte for byte what one process writes.
//!
//! No model is asked and nothing is scored anew: a task's figures depend on its own answers alone, so they are taken as they are, and what
//! is of several tasks (averages, expectations) is made here. The parts must be by the same model and settings, and have each task once.

use crate::report::{EvalResults, TaskResult};
use crate::{Error, EvalConfig, Result, asked};
use aloe_record::atomic;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What a line of `samples.jsonl` or `questions.jsonl` belongs to.
#[derive(Deserialize)]
struct OfTask {
    task: String,
}

/// Writes `results.json`, `samples.jsonl`, `questions.jsonl` and the files of examples into `out`, from the folders `parts`.
pub fn gather(parts: &[PathBuf], config: &EvalConfig, out: &Path) -> Result<EvalResults> {
    let names: Vec<String> = config.tasks.iter().map(|task| task.name()).collect();
    let mut found: BTreeMap<String, (&Path, TaskResult)> = BTreeMap::new();
    let mut head: Option<EvalResults> = None;
    for part in parts {
        let wrong = |reason: String| Error::Unpaired(format!("{}: {reason}", part.display()));
        let mut results: EvalResults = atomic::read_json(&part.join("results.json"))?;
        for result in std::mem::take(&mut results.tasks) {
            let task = result.task.clone();
            if !names.contains(&task) || found.insert(task.clone(), (part, result)).is_some() {
                return Err(wrong(format!("{task} is of no part or of two")));
            }
        }
        match &head {
            Some(first) if (&first.model, &first.settings) != (&results.model, &results.settings) => {
                return Err(wrong("another model or other settings than in the first part".to_owned()));
            }
            Some(_) => {}
            None => head = Some(results),
        }
    }
    if let Some(missing) = names.iter().find(|name| !found.contains_key(*name)) {
        return Err(Error::Unpaired(format!("no part has {missing}")));
    }
    let Some(mut whole) = head else { return Err(Error::Unpaired("there are no parts".to_owned())) };
    for file in ["samples.jsonl", asked::FILE] {
        join(parts, file, &names, out)?;
    }
    for name in &names {
        copy_examples(found[name].0, name, names.len(), out)?;
    }
    whole.tasks = names.iter().filter_map(|name| found.remove(name).map(|(_, result)| result)).collect();
    whole.regroup(&config.expect);
    atomic::write_json(&out.join("results.json"), &whole)?;
    Ok(whole)
}

/// The lines of a file of all parts, by task in the order of `names`; within a task in the order of its part.
fn join(parts: &[PathBuf], file: &str, names: &[String], out: &Path) -> Result<()> {
    let mut lines: BTreeMap<String, String> = BTreeMap::new();
    for part in parts {
        let path = part.join(file);
        let text = std::fs::read_to_string(&path).map_err(aloe_record::Error::io("read", &path))?;
        for line in text.lines() {
            let of: OfTask = serde_json::from_str(line)
                .map_err(|error| aloe_record::Error::Json { path: path.clone(), reason: error.to_string() })?;
            let of_task = lines.entry(of.task).or_default();
            of_task.push_str(line);
            of_task.push('\n');
        }
    }
    let path = out.join(file);
    atomic::write_with(&path, |output| {
        for name in names {
            let text = lines.get(name).map_or("", String::as_str);
            output.write_all(text.as_bytes()).map_err(aloe_record::Error::io("write", &path))?;
        }
        Ok::<(), Error>(())
    })
}

/// Medprompt's examples: `examples.json` of a run over one task, `examples_TASK.json` where there are several.
fn copy_examples(part: &Path, task: &str, n_tasks: usize, out: &Path) -> Result<()> {
    let of_several = format!("examples_{task}.json");
    let mut sources = [part.join(&of_several), part.join("examples.json")].into_iter();
    if let Some(source) = sources.find(|path| path.is_file()) {
        let target = out.join(if n_tasks > 1 { of_several.as_str() } else { "examples.json" });
        let bytes = std::fs::read(&source).map_err(aloe_record::Error::io("read", &source))?;
        atomic::write(&target, &bytes)?;
    }
    Ok(())
}
