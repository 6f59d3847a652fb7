//! Opening what the spine of open answers needs, one model at a time: the model that answers, then each judge. `aloe eval` with open tasks
//! and `aloe rejudge` come through here.

use super::stages::{Opened, note_cache, note_memory, open_engine};
use super::timeout_of;
use crate::commands::run::is_address;
use crate::commands::stages::check_served;
use crate::failure::Failure;
use crate::recipe::eval_stage::EvalStage;
use crate::recipe::open_stage::RejudgeStage;
use crate::stage::{Context, Inputs, checked_model, single};
use aloe_engine::Engine;
use aloe_eval::open::labels::{Label, read_labels};
use aloe_eval::open::report::{OpenResults, OpenTaskResult};
use aloe_eval::open::{self, OpenRun};
use aloe_record::{Progress, Record};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An evaluation of open tasks.
pub(super) fn eval(
    stage: &EvalStage,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let config = stage.checked_open().map_err(|mistakes| Failure::usage(mistakes.join("\n")))?;
    let model = single(inputs, "model", "eval")?;
    let labels = labels(stage.labels.as_deref())?;
    let asked = Asked { tokens: stage.judge_tokens(), timeout: timeout_of(stage.request_timeout), context };
    check_served(stage.request_timeout, stage.connections, [model].into_iter().chain(judges_of(inputs)), context)?;
    let mut judges = asked.judges(inputs)?;
    if judges.is_empty() && !labels.is_empty() {
        let text =
            "labels measure judges, and none is named: give --judge, or label the answers first and run aloe rejudge";
        return Err(Failure::usage(text).into());
    }
    let opened = Opened {
        tokenizer: &stage.tokenizer,
        server_template: stage.server_template,
        quantize: stage.quantize,
        answer_cache: &stage.answer_cache,
        kv_budget: stage.kv_budget,
        request_timeout: asked.timeout,
        connections: stage.connections,
    };
    let progress = Progress::new("eval", 0, "answers");
    let engine = open_engine(model, opened, context)?;
    let mut run = open::answer(&engine, &config, folder, &progress, &context.cancel)?;
    run.check_labels(&labels)?;
    note_cache(&engine, &stage.answer_cache, record)?;
    note_memory(&engine, record)?;
    drop(engine);
    asked.judge(&mut run, &mut judges, &progress)?;
    note(run.finish(&labels, folder, &progress)?, record)
}

/// The answers of a finished run before other judges, or its verdicts beside labels.
pub(super) fn rejudge(
    stage: &RejudgeStage,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let labels = labels(stage.labels.as_deref())?;
    let asked = Asked { tokens: stage.judge_max_new_tokens, timeout: timeout_of(stage.request_timeout), context };
    check_served(stage.request_timeout, None, judges_of(inputs), context)?;
    let mut judges = asked.judges(inputs)?;
    if judges.is_empty() && labels.is_empty() {
        return Err(Failure::usage("nothing to do: give --judge MODEL, --labels FILE, or both").into());
    }
    let progress = Progress::new("rejudge", 0, "verdicts");
    let mut run = open::take_up(single(inputs, "answers", "rejudge")?, folder, &progress)?;
    run.check_labels(&labels)?;
    if judges.is_empty() && !run.has_judges() {
        let text = "labels measure judges, and the run has none: give --judge MODEL";
        return Err(Failure::usage(text).into());
    }
    if !judges.is_empty() {
        run.clear_verdicts();
    }
    asked.judge(&mut run, &mut judges, &progress)?;
    note(run.finish(&labels, folder, &progress)?, record)
}

fn labels(path: Option<&Path>) -> anyhow::Result<Vec<Label>> {
    Ok(path.map(read_labels).transpose()?.unwrap_or_default())
}

fn judges_of(inputs: &Inputs) -> impl Iterator<Item = &Path> {
    inputs.get("judge").into_iter().flatten().map(PathBuf::as_path)
}

/// How judges are asked.
struct Asked<'a> {
    tokens: usize,
    timeout: Duration,
    context: &'a Context,
}

/// A judge before its turn: a server is opened at once, so that one that cannot be used is found before anything is asked; a model in
/// this process when its turn comes, because two may not fit into memory.
enum Seat {
    Server(Box<Engine>),
    Folder(PathBuf),
}

impl Asked<'_> {
    fn judges(&self, inputs: &Inputs) -> anyhow::Result<Vec<Seat>> {
        let mut seats: Vec<Seat> = Vec::new();
        for (at, path) in judges_of(inputs).enumerate() {
            if judges_of(inputs).take(at).any(|earlier| earlier == path) {
                return Err(Failure::usage(format!("the judge {} is named twice", path.display())).into());
            }
            seats.push(if is_address(path) {
                Seat::Server(Box::new(self.open(path)?))
            } else {
                checked_model(path)?;
                Seat::Folder(path.to_path_buf())
            });
        }
        Ok(seats)
    }

    fn open(&self, path: &Path) -> anyhow::Result<Engine> {
        let opened = Opened {
            tokenizer: &None,
            server_template: is_address(path),
            quantize: None,
            answer_cache: &None,
            kv_budget: None,
            request_timeout: self.timeout,
            connections: None,
        };
        // The servers of the job hold the model that answers.
        open_engine(path, opened, &Context { servers: None, ..self.context.clone() })
    }

    fn judge(&self, run: &mut OpenRun, judges: &mut Vec<Seat>, progress: &Progress) -> anyhow::Result<()> {
        for seat in judges.drain(..) {
            let engine = match seat {
                Seat::Server(engine) => *engine,
                Seat::Folder(path) => self.open(&path)?,
            };
            run.judge(&engine, self.tokens, progress, &self.context.cancel)?;
        }
        Ok(())
    }
}

fn note(results: OpenResults, record: &mut Record) -> anyhow::Result<()> {
    let parts: Vec<String> = results.tasks.iter().map(OpenTaskResult::words).collect();
    record.result("table", results.table())?;
    record.result("open", &results)?;
    record.result("summary", parts.join("; "))?;
    Ok(())
}
