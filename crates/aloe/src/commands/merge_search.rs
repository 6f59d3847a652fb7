//! `aloe merge-search`: the unmerged inputs and point after point of the space are asked the same questions, each merge in a scratch
//! folder that is gone afterwards; the best one is merged again into the output. What the scores allow to say is in `verdict`, the
//! files are in `page`.
//!
//! Every scored model is one line of a log, so that a killed search goes on after the last one, and all of it is deterministic: the
//! same command gives the same table and the same bytes.

mod page;
mod verdict;

use super::stages::{MergeSummary, Opened, move_up, open_engine, tell};
use super::timeout_of;
use crate::failure::Failure;
use crate::leave::{POINT_CACHE, POINTS};
use crate::recipe::search_stage::MergeSearchStage;
use crate::stage::{Context, Inputs, results_since};
use aloe_engine::{Embedder, EngineOptions, Reranker};
use aloe_eval::{Encoders, EvalConfig};
use aloe_merge::search::{Outcome, PointCheck, PointLog, Proposer, Searched, Space, search};
use aloe_merge::{MergeConfig, MergeOptions, MergeReport};
use aloe_record::{Progress, Record, atomic, digest};
use aloe_task::Split;
use aloe_task::reported::Overlap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use verdict::Verdict;

/// What a model answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Answers {
    /// Digest of the weights that were asked.
    weights: String,
    /// Right answers by task.
    tasks: Vec<TaskShare>,
    /// A digit for each question in the order asked: 1 right, 0 wrong.
    right: String,
}

/// Right answers to a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct TaskShare {
    task: String,
    n: usize,
    n_right: usize,
}

impl Answers {
    fn n(&self) -> usize {
        self.right.len()
    }

    fn n_right(&self) -> usize {
        self.right.bytes().filter(|&digit| digit == b'1').count()
    }
}

/// The spine.
pub(super) fn run(
    stage: &MergeSearchStage,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let (space, config) = stage.checked().map_err(|mistakes| Failure::usage(mistakes.join("\n")))?;
    let notes = check_selection(&config)?;
    tell(&notes);
    let (embedder, reranker) = open_encoders(stage, context)?;
    let encoders = Encoders { embedder: embedder.as_ref(), reranker: reranker.as_ref(), classifier: None };
    leave_the_log_alone(folder)?;
    let scratch = Scratch(folder.join(".scratch"));
    let mut check = PointCheck::new(merge_options(stage, inputs, context, false));
    if stage.search.method == Proposer::Grid {
        check.all(&space.grid(), &space, &context.cancel)?;
    }
    let asker = Asker { stage, config: &config, encoders, inputs, scratch: &scratch.0, context };
    let mut log = PointLog::open(&log_path(stage, folder)?)?;
    take_over_finished(&mut log, folder)?;
    let scope = scope(stage, record, context)?;
    let named = if stage.score_inputs { asker.named_inputs()? } else { Vec::new() };
    let total = named.len() + space.n_points(&stage.search);
    let progress = Progress::new("search", total as u64, "models");
    let unmerged = asker.score_inputs(&named, &mut log, &scope, &progress)?;
    let found = search(&space, &stage.search, (&mut log, &scope), (&progress, &context.cancel), |_, yaml| match check
        .refusal(yaml)?
    {
        Some(reason) => Ok(Outcome::Refused(reason)),
        None => asker.score_merge(yaml).map(Outcome::from),
    })?;
    let unmerged_texts = named.iter().map(|name| unmerged_yaml(name));
    let merged_texts = found.points.iter().map(|point| space.yaml(&point.values));
    keep_scores(&log, &scope, unmerged_texts.chain(merged_texts), folder)?;
    drop(log);
    if let ([], Some(refused)) = (&found.points[..], found.refused.first()) {
        let point = space.describe(&refused.values);
        return Err(Failure::usage(format!("no point can be merged; the first, {point}: {}", refused.reason)).into());
    }
    let verdict = Verdict::of(&space, &found, &unmerged);
    let report = asker.write_best(&space, &found, &verdict, folder)?;
    drop(scratch);
    progress.finish();
    tell(&report.notes);
    page::write(stage, (&space, &config), (&found, &verdict), &notes, folder)?;
    page::add_to_card(stage, &verdict, folder)?;
    record.result("summary", verdict.summary(&space, &found, &config))?;
    record.result("table", format!("{}\n{}\n", verdict.table(&space, &found).text(), verdict.words.join("\n")))?;
    record.result("note", &stage.note)?;
    record.result("yaml", space.yaml(&found.points[verdict.best].values))?;
    record.result("merge", MergeSummary::from(&report))?;
    record.result("search", page::figures(&space, &found, &verdict))?;
    Ok(())
}

/// Refuses a reported set under another name, before the first merge. Questions that two splits share are told.
fn check_selection(config: &EvalConfig) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    for &task in &config.tasks {
        let mut questions = task.load(&config.data_dir, config.split)?;
        questions.truncate(config.limit.unwrap_or(questions.len()));
        let overlap = Overlap::of(task, &questions, &config.data_dir)?;
        let Some(words) = overlap.words() else { continue };
        let text = format!("{}, {} split: {words}", task.name(), config.split.name());
        if overlap.is_reported() {
            let text = format!(
                "{text}: this is a reported set under another name, and nothing may be chosen on it. Put the set's own {} file into {}",
                Split::Validation.name(),
                config.data_dir.display()
            );
            return Err(Failure::usage(text).into());
        }
        notes.push(text);
    }
    Ok(notes)
}

fn merge_options(stage: &MergeSearchStage, inputs: &Inputs, context: &Context, write_master: bool) -> MergeOptions {
    let folders = inputs.iter().filter_map(|(name, paths)| Some((name.clone(), paths.first()?.clone())));
    MergeOptions {
        seed: context.seed,
        threads: context.threads,
        memory: stage.memory.map_or(aloe_merge::DEFAULT_MEMORY, |mebibytes| mebibytes << 20),
        write_master,
        folders: folders.chain(stage.outside_models()).collect(),
        ..MergeOptions::default()
    }
}

/// What finds examples for the questions, where the evaluation has some.
fn open_encoders(stage: &MergeSearchStage, context: &Context) -> anyhow::Result<(Option<Embedder>, Option<Reranker>)> {
    let options = EngineOptions {
        threads: context.threads,
        request_timeout: timeout_of(stage.eval.request_timeout),
        cancel: context.cancel.clone(),
        ..EngineOptions::default()
    };
    let embedder = stage.eval.embedder.as_deref();
    let embedder = embedder.map(|model| Embedder::open(&model.to_string_lossy(), &options)).transpose()?;
    let reranker = stage.eval.reranker.as_deref().map(|path| Reranker::open(path, context.threads)).transpose()?;
    Ok((embedder, reranker))
}

/// Where scores are kept: in the stage's own partial folder, or in the folder asked for, which is noted there for who is told where an
/// interrupted search goes on.
fn log_path(stage: &MergeSearchStage, folder: &Path) -> anyhow::Result<PathBuf> {
    let Some(cache) = &stage.point_cache else {
        let _ = std::fs::remove_file(folder.join(POINT_CACHE));
        return Ok(folder.join(POINTS));
    };
    let whole = |path: &Path| std::path::absolute(path).map_err(aloe_record::Error::io("find", path));
    let target = atomic::target(folder);
    if whole(cache)?.starts_with(whole(&target)?) {
        let text = format!(
            "point_cache {} lies in {}, which a search replaces whole: give a folder outside of it",
            cache.display(),
            target.display()
        );
        return Err(Failure::usage(text).into());
    }
    std::fs::create_dir_all(cache).map_err(aloe_record::Error::io("create", cache))?;
    let path = cache.join(SCORED);
    atomic::write(&folder.join(POINT_CACHE), path.to_string_lossy().as_bytes())?;
    Ok(path)
}

/// The log of scores in a point cache; and of a finished search's scores, in the order asked for. A search with more points begins with it.
const SCORED: &str = "points.log";

/// Writes the scores of the models that these texts stand for, and tells how many of them were there before.
fn keep_scores(
    log: &PointLog<Answers>,
    scope: &str,
    texts: impl Iterator<Item = String>,
    folder: &Path,
) -> anyhow::Result<()> {
    let keys: Vec<String> = texts.map(|text| PointLog::<Answers>::key(scope, &text)).collect();
    log.write(&keys, &folder.join(SCORED))?;
    if log.n_new() < keys.len() {
        tell(&[format!("{} of {} models were asked now, the others had been before", log.n_new(), keys.len())]);
    }
    Ok(())
}

/// What a finished search in the place of this one scored: its keys say what of it this one may use.
fn take_over_finished(log: &mut PointLog<Answers>, folder: &Path) -> anyhow::Result<()> {
    let finished = atomic::target(folder);
    let scored = finished.join(SCORED);
    let Ok(record) = Record::read(&finished) else { return Ok(()) };
    if record.kind != "merge-search" || !scored.is_file() {
        return Ok(());
    }
    if record.outputs.get(SCORED) != Some(&json!(digest::file(&scored)?)) {
        tell(&[format!("{} was changed since it was written; its scores are not used", scored.display())]);
        return Ok(());
    }
    Ok(log.take_over(&scored)?)
}

/// What stands for the YAML of a model that is asked as it is.
fn unmerged_yaml(name: &str) -> String {
    format!("unmerged {name}")
}

/// Digest of everything but the YAML that decides what a merge scores.
fn scope(stage: &MergeSearchStage, record: &Record, context: &Context) -> anyhow::Result<String> {
    let decides = json!({
        "inputs": record.inputs, "eval": stage.eval, "seed": context.seed, "isa": context.device().isa().name(),
        "dtype": format!("{:?}", context.dtype.unwrap_or_default()), "version": results_since("merge-search"),
    });
    Ok(digest::bytes(serde_json::to_string(&decides)?.as_bytes()))
}

/// Removes from the partial folder what a kill left of the best merge, which may be another one now, and of a scratch folder: all but
/// the hidden files, the log of scores and the stage's own.
fn leave_the_log_alone(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).map_err(aloe_record::Error::io("list", folder))? {
        let path = entry.map_err(aloe_record::Error::io("list", folder))?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false if is_hidden => Ok(()),
            false => std::fs::remove_file(&path),
        }
        .map_err(aloe_record::Error::io("remove", &path))?;
    }
    Ok(())
}

/// The hidden folder that merges are made in; it goes however the search ends, and what a kill left goes at the next start.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Merges and asks.
struct Asker<'a> {
    stage: &'a MergeSearchStage,
    config: &'a EvalConfig,
    encoders: Encoders<'a>,
    inputs: &'a Inputs,
    scratch: &'a Path,
    context: &'a Context,
}

impl Asker<'_> {
    /// The models that go into the merges: the name in the YAML, and the YAML that merges it alone where it carries an adapter.
    fn named_inputs(&self) -> anyhow::Result<Vec<String>> {
        let config = MergeConfig::parse(&self.stage.yaml, Path::new("yaml"))?;
        let own: Vec<&str> = config.earlier.iter().filter_map(|document| document.name.as_deref()).collect();
        let mut names: Vec<String> = Vec::new();
        for model in config.earlier.iter().chain([&config]).flat_map(|document| &document.models) {
            // What gives its tokenizer alone may have no weights to ask.
            if !model.gives_tokenizer_only && !own.contains(&model.name.as_str()) && !names.contains(&model.name) {
                names.push(model.name.clone());
            }
        }
        Ok(names)
    }

    fn score_inputs(
        &self,
        names: &[String],
        log: &mut PointLog<Answers>,
        scope: &str,
        progress: &Progress,
    ) -> anyhow::Result<Vec<(String, Answers)>> {
        let mut scored = Vec::new();
        for name in names {
            self.context.cancel.check()?;
            progress.message(&format!("unmerged {name}"));
            let key = PointLog::<Answers>::key(scope, &unmerged_yaml(name));
            let answers = match log.get(&key) {
                Some((_, answers)) => {
                    progress.resume(1);
                    answers
                }
                None => {
                    let found = self.score_input(name)?;
                    log.put(&key, &found)?;
                    progress.advance(1);
                    found.1
                }
            };
            scored.push((name.clone(), answers));
        }
        Ok(scored)
    }

    /// A model as it is; one with an adapter is merged with it.
    fn score_input(&self, name: &str) -> anyhow::Result<(f64, Answers)> {
        let path = match self.inputs.get(name).and_then(|paths| paths.first()) {
            Some(path) => path.clone(),
            None => PathBuf::from(name),
        };
        if path.is_dir() {
            return self.ask(&path);
        }
        let alone = format!("merge_method: passthrough\nmodels:\n  - model: {}\n", serde_json::to_string(name)?);
        self.score_merge(&alone)
    }

    fn score_merge(&self, yaml: &str) -> anyhow::Result<(f64, Answers)> {
        let folder = self.scratch.join("merge");
        self.merge(yaml, &folder, false)?;
        let answers = self.ask(&folder)?;
        std::fs::remove_dir_all(&folder).map_err(aloe_record::Error::io("remove", &folder))?;
        Ok(answers)
    }

    fn merge(&self, yaml: &str, folder: &Path, master: bool) -> anyhow::Result<MergeReport> {
        let config = MergeConfig::parse(yaml, Path::new("yaml"))?;
        let options = merge_options(self.stage, self.inputs, self.context, master);
        Ok(aloe_merge::merge(&config, folder, &options, &Progress::silent(), &self.context.cancel)?)
    }

    /// The share of right answers of the model in `folder`, and the answers.
    fn ask(&self, folder: &Path) -> anyhow::Result<(f64, Answers)> {
        let eval = &self.stage.eval;
        let opened = Opened {
            tokenizer: &None,
            server_template: false,
            quantize: eval.quantize,
            answer_cache: &eval.answer_cache,
            kv_budget: eval.kv_budget,
            request_timeout: timeout_of(None),
            connections: None,
        };
        let out = self.scratch.join("eval");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir_all(&out).map_err(aloe_record::Error::io("create", &out))?;
        let engine = open_engine(folder, opened, self.context)?;
        let quiet = Progress::silent();
        let results = aloe_eval::eval(&engine, self.config, self.encoders, &out, &quiet, &self.context.cancel)?;
        let samples = aloe_eval::read_samples(&out.join("samples.jsonl"))?;
        let share = |task: &str| {
            let of_task = || samples.iter().filter(|sample| sample.task == task);
            TaskShare {
                task: task.to_owned(),
                n: of_task().count(),
                n_right: of_task().filter(|one| one.correct).count(),
            }
        };
        let answers = Answers {
            weights: engine.identity().weights.clone(),
            tasks: results.tasks.iter().map(|result| share(&result.task)).collect(),
            right: samples.iter().map(|sample| if sample.correct { '1' } else { '0' }).collect(),
        };
        Ok((answers.n_right() as f64 / answers.n() as f64, answers))
    }

    /// Merges the best point into the output; its weights must be those that were asked.
    fn write_best(
        &self,
        space: &Space,
        found: &Searched<Answers>,
        verdict: &Verdict,
        folder: &Path,
    ) -> anyhow::Result<MergeReport> {
        let best = &found.points[verdict.best];
        let report = self.merge(&space.yaml(&best.values), folder, self.stage.master)?;
        let source = aloe_model::ModelSource::open(&folder.join("model"))?;
        let written = source.digest()?;
        if written != best.detail.weights {
            anyhow::bail!(
                "the best merge was made again and its weights are others (sha256 {written}) than those that were asked ({}): an input or \
                 the point cache changed meanwhile",
                best.detail.weights
            );
        }
        if !self.stage.master {
            move_up(&folder.join("model"), folder)?;
        }
        Ok(report)
    }
}
