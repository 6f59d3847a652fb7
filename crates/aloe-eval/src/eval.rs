//! The spine of an evaluation: questions -> prompts -> answers -> scores -> files. Where in the walk: called by the `eval`
//! command and by the recipe; everything it does is one call away.

use crate::answers::AnswerLog;
use crate::report::{self, EvalResults, TaskResult};
use crate::strategy::{self, Plan, TaskRun};
use crate::{Error, EvalConfig, Result, Sample, noise};
use aloe_engine::{Embedder, Engine, Reranker};
use aloe_record::{Cancel, Progress, atomic};
use aloe_task::{Question, Task};
use std::path::Path;

/// What Medprompt's neighbours are found by.
#[derive(Clone, Copy, Default)]
pub struct Encoders<'a> {
    /// Ranks the pool by cosine; without one it is ranked by words.
    pub embedder: Option<&'a Embedder>,
    /// Puts the first of the ranking in another order.
    pub reranker: Option<&'a Reranker>,
}

/// Evaluates and writes `results.json` and `samples.jsonl` into `out`. Both depend on model, data and settings alone, byte
/// for byte. An interrupted run is taken up where it stopped: answers stand in the hidden `.answers.log`, which the
/// caller removes once the folder is complete.
/// `encoders` serve Medprompt's neighbour search; without an embedder a lexical search is used, and named in the results.
pub fn eval(
    engine: &Engine,
    config: &EvalConfig,
    encoders: Encoders,
    out: &Path,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<EvalResults> {
    config.check()?;
    let tasks = load(config)?;
    let fingerprint = report::fingerprint(engine.identity(), config, encoders, &tasks);
    let mut log = AnswerLog::open(&out.join(".answers.log"), &fingerprint)?;
    log.hold(engine.canary(config.strategy.call(), cancel)?)?;
    progress.set_total(tasks.iter().map(|(_, questions, _)| questions.len() as u64).sum());
    let mut results = Vec::new();
    let mut all_samples = Vec::new();
    for (task, questions, n_whole) in &tasks {
        progress.message(&task.name());
        let run = TaskRun { engine, config, encoders, task: *task, questions, progress, cancel };
        let plan = strategy::prepare(&run, &mut log)?;
        let samples = answer_all(&run, &plan, &mut log)?;
        let mut result = TaskResult::of(*task, &samples, *n_whole, config, plan.notes());
        result.noise_floor = noise::floor(&run, &plan, &samples, &mut log)?;
        results.push(result);
        all_samples.extend(samples);
    }
    let results = EvalResults::new(engine.identity(), config, encoders, results);
    report::write_samples(&out.join("samples.jsonl"), &all_samples)?;
    atomic::write_json(&out.join("results.json"), &results)?;
    progress.finish();
    Ok(results)
}

/// The answers to all questions of a task, in their order: those in the log, and the others as they come. A question that the model
/// or its server refuses counts as wrong; where all are refused, that is an error.
fn answer_all(run: &TaskRun, plan: &Plan, log: &mut AnswerLog) -> Result<Vec<Sample>> {
    let mut samples = log.samples_of(run.task, run.questions)?;
    let missing: Vec<usize> = (0..samples.len()).filter(|&at| samples[at].is_none()).collect();
    run.progress.resume((samples.len() - missing.len()) as u64);
    for window in missing.chunks(plan.window_len(run.engine)) {
        run.cancel.check()?;
        let answered = plan.answer(run, window, &mut |sample| {
            if sample.refused.is_none() {
                log.append(&sample)?;
            }
            run.progress.advance(1);
            let place = sample.index;
            samples[place] = Some(sample);
            Ok(())
        });
        log.sync(true)?;
        answered?;
    }
    let samples: Vec<Sample> = samples.into_iter().flatten().collect();
    let n_refused = samples.iter().filter(|sample| sample.refused.is_some()).count();
    if let (true, Some(reason)) = (n_refused == samples.len(), samples.first().and_then(|first| first.refused.clone()))
    {
        return Err(Error::AllRefused { task: run.task.name(), n: n_refused, reason });
    }
    Ok(samples)
}

/// Each task with its questions up to the limit, and how many its file holds.
pub(crate) fn load(config: &EvalConfig) -> Result<Vec<(Task, Vec<Question>, usize)>> {
    let mut tasks = Vec::new();
    for &task in &config.tasks {
        let mut questions = task.load(&config.data_dir, config.split)?;
        let n_whole = questions.len();
        questions.truncate(config.limit.unwrap_or(n_whole));
        tasks.push((task, questions, n_whole));
    }
    Ok(tasks)
}
