//! The spine of an evaluation: questions -> prompts -> answers -> scores -> files. Where in the walk: called by the `eval`
//! command and by the recipe; everything it does is one call away.

use crate::answers::{self, AnswerLog};
use crate::report::{self, EvalResults, TaskResult};
use crate::strategy::{self, Plan, TaskRun};
use crate::{Error, EvalConfig, Result, Sample, asked, noise, specialty};
use aloe_engine::{Embedder, Engine, Reranker};
use aloe_record::{Cancel, Progress, atomic};
use aloe_task::{Question, Task};
use std::path::Path;

/// The models beside the one under evaluation: what Medprompt's neighbours are found by, and who tells specialties.
#[derive(Clone, Copy, Default)]
pub struct Encoders<'a> {
    /// Ranks the pool by cosine; without one it is ranked by words.
    pub embedder: Option<&'a Embedder>,
    /// Puts the first of the ranking in another order.
    pub reranker: Option<&'a Reranker>,
    /// Tells each question's specialty, under any strategy.
    pub classifier: Option<&'a Engine>,
}

/// Evaluates and writes `results.json`, `samples.jsonl` and `questions.jsonl` into `out`. All depend on model, data and settings alone,
/// byte for byte. An interrupted run is taken up where it stopped: answers stand in the hidden `.answers.log`, which the
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
    let run_of =
        |task: &Task, questions| TaskRun { engine, config, encoders, task: *task, questions, progress, cancel };
    tasks.iter().try_for_each(|(task, questions, _)| strategy::check(&run_of(task, questions)))?;
    let told = strategy::told(engine, config, cancel)?;
    let fingerprint = report::fingerprint(engine.identity(), config, encoders, told)?;
    let (path, n_kept) = answers::kept(engine, out, &fingerprint)?;
    let mut log = AnswerLog::open(&path, &fingerprint)?;
    log.hold(engine.canary(config.strategy.call(told), cancel)?, n_kept)?;
    encoders.classifier.map(|classifier| log.hold_classifier(classifier, cancel)).transpose()?;
    encoders.embedder.map(|embedder| log.hold_embedder(embedder)).transpose()?;
    asked::write(out, &tasks)?;
    progress.set_total(tasks.iter().map(|(_, questions, _)| questions.len() as u64).sum());
    let mut results = Vec::new();
    let mut all_samples = Vec::new();
    for (task, questions, n_whole) in &tasks {
        progress.message(&task.name());
        let run = run_of(task, questions);
        let plan = strategy::prepare(&run, &mut log, out)?;
        let mut samples = answer_all(&run, &plan, &mut log)?;
        mark_trained(&run, &mut samples)?;
        mark_specialties(&run, &mut samples, &mut log)?;
        let mut result = TaskResult::of(*task, &samples, *n_whole, config, plan.notes());
        result.noise_floor = noise::floor(&run, &plan, &samples, &mut log)?;
        results.push(result);
        all_samples.extend(samples);
    }
    let results = EvalResults::new(engine.identity(), config, encoders, told, results);
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
                log.append(&run.questions[sample.index], &sample)?;
            }
            run.progress.advance(1);
            let place = sample.index;
            samples[place] = Some(sample);
            Ok(())
        });
        log.sync(true)?;
        answered.map_err(|error| error.at_question(run.places()))?;
        run.engine.forget_answers()?;
    }
    let samples: Vec<Sample> = samples.into_iter().flatten().collect();
    let n_refused = samples.iter().filter(|sample| sample.refused.is_some()).count();
    if let (true, Some(reason)) = (n_refused == samples.len(), samples.first().and_then(|first| first.refused.clone()))
    {
        return Err(Error::AllRefused { task: run.task.name(), n: n_refused, reason });
    }
    Ok(samples)
}

/// Marks the questions that a training row holds.
fn mark_trained(run: &TaskRun, samples: &mut [Sample]) -> Result<()> {
    let files = &run.config.trained_on;
    if files.is_empty() {
        return Ok(());
    }
    run.progress.message(&format!("{}: compared with the training rows", run.task.name()));
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = aloe_data::trained_on(run.questions, files, n_threads, &Progress::silent(), run.cancel)?;
    for (sample, found) in samples.iter_mut().zip(found) {
        sample.trained = found.as_ref().map(trained_words);
    }
    Ok(())
}

/// Which training row holds a question, and how that was found.
pub(crate) fn trained_words(row: &aloe_data::Trained) -> String {
    format!("{} ({}: {})", row.row_at, row.evidence.test, row.evidence.score)
}

/// Puts each question into its specialty; those told before an interruption stand in the log.
fn mark_specialties(run: &TaskRun, samples: &mut [Sample], log: &mut AnswerLog) -> Result<()> {
    let Some(classifier) = run.encoders.classifier else { return Ok(()) };
    run.progress.message(&format!("{}: specialties", run.task.name()));
    for (sample, told) in samples.iter_mut().zip(log.specialties_of(run.task, run.questions)?) {
        sample.specialty = told.map(|one| one.field).unwrap_or_default();
    }
    let before = samples.to_vec();
    let (task, seed) = (run.task.name(), run.config.seed);
    let told = specialty::classify(classifier, &task, run.questions, &before, seed, run.cancel, |at, field| {
        samples[at].specialty = field.to_owned();
        log.append_specialty(&run.questions[at], &task, at, field)
    });
    log.sync(true)?;
    let places = || strategy::places(format!("specialty/{task}"), run.questions);
    told.map_err(|error| error.at_question(places()))?;
    Ok(classifier.forget_answers()?)
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
