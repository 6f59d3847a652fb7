//! The spine of open answers: questions -> answers -> words in common -> judges, one after the other -> panel -> files.
//!
//! Reading order: this file, `sample` (one question's record), `overlap` (ROUGE and BLEU), `judge` (one judge), `panel` (several), `labels`
//! (their error by a person's labels), `report` (files and table), `log` (what an interrupted run goes on from), `paired` (two finished runs).
//! Called by the commands `eval` (with open tasks) and `rejudge`: models are opened and closed there, one at a time, because judges are large.

mod judge;
pub mod labels;
mod log;
pub mod overlap;
pub(crate) mod paired;
pub mod panel;
pub mod report;
mod sample;

use crate::answers;
use crate::strategy::handed;
use crate::{Error, Result, report as files, score};
use aloe_engine::{Call, Engine, EngineIdentity, GenerateRequest, Prompt, Sampling};
use aloe_record::{Cancel, Progress, atomic, digest};
use aloe_task::Protocol;
use aloe_task::open::{OpenQuestion, OpenTask};
use aloe_task::wording::open::{LM_EVAL_STOP, OpenPrompt, check, prompt};
use labels::Label;
use log::OpenLog;
use report::{OpenResults, TaskHead};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use judge::{JUDGE_TOKENS, PanelJudge};
pub(crate) use log::logged;
pub use sample::{JudgeReply, OpenSample};

/// Everything that decides the answers beside the model.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenConfig {
    /// The tasks, in the order of the results.
    pub tasks: Vec<OpenTask>,
    /// Where their files are.
    pub data_dir: PathBuf,
    /// Whose wording and whose rules for words in common.
    pub protocol: Protocol,
    /// Only the first so many questions of each task; the result is then not comparable.
    pub limit: Option<usize>,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

impl OpenConfig {
    /// The file that each task reads, by its name; one that is missing is left out: reading says so.
    pub fn task_files(&self) -> BTreeMap<String, Vec<PathBuf>> {
        let file = |task: &OpenTask| Some(vec![self.data_dir.join(task.file(&self.data_dir).ok()?)]);
        self.tasks.iter().map(|task| (task.name().to_owned(), file(task).unwrap_or_default())).collect()
    }

    /// The defaults: greedy, at most 256 tokens; under the harness's protocol an answer ends at an empty line, as in its `careqa_open`
    /// (256 tokens are its own limit where a task names none). Under prompt_engine's at most 1,000, as there, where the model's
    /// `generation_config.json` says how they are drawn.
    pub fn new(tasks: Vec<OpenTask>, data_dir: PathBuf, protocol: Protocol) -> Self {
        let mut sampling = Sampling::greedy(if protocol == Protocol::PromptEngine { 1000 } else { 256 });
        if protocol == Protocol::LmEval {
            sampling.stop = vec![LM_EVAL_STOP.to_owned()];
        }
        Self { tasks, data_dir, protocol, limit: None, sampling }
    }

    /// Refuses settings that do not go together, all at once.
    pub fn check(&self) -> Result<()> {
        let mut mistakes = self.sampling.mistakes();
        if self.tasks.is_empty() {
            mistakes.push("no task is named".to_owned());
        }
        if self.limit == Some(0) {
            mistakes.push("limit must be at least 1".to_owned());
        }
        let refused = self.tasks.iter().filter_map(|&task| check(task, self.protocol).err());
        mistakes.extend(refused.map(|error| error.to_string()));
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config(mistakes.join("; "))) }
    }

    fn settings(&self) -> Map<String, Value> {
        let sampling = &self.sampling;
        let mut settings = Map::new();
        settings.insert("protocol".into(), json!(self.protocol));
        settings.insert("strategy".into(), json!("open"));
        settings.insert("limit".into(), json!(self.limit));
        settings.insert("seed".into(), json!(sampling.seed));
        settings.insert(
            "sampling".into(),
            json!({ "max_new_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
                    "stop": sampling.stop }),
        );
        settings
    }
}

/// A run between its steps: what was answered, and what the judges so far say.
pub struct OpenRun {
    model: EngineIdentity,
    settings: Map<String, Value>,
    protocol: Protocol,
    tasks: Vec<TaskHead>,
    judges: Vec<PanelJudge>,
    samples: Vec<OpenSample>,
    log: OpenLog,
}

/// Answers all questions; those whose answers stand in the hidden `.answers.log` of `out` are not asked again. A question that the model or
/// its server refuses has an empty answer; where all are refused, that is an error.
pub fn answer(
    engine: &Engine,
    config: &OpenConfig,
    out: &Path,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<OpenRun> {
    config.check()?;
    let mut asked = Vec::new();
    let mut tasks = Vec::new();
    for &task in &config.tasks {
        let mut questions = task.load(&config.data_dir)?;
        let n_whole = questions.len();
        questions.truncate(config.limit.unwrap_or(n_whole));
        tasks.push(TaskHead::new(task, questions.len(), n_whole, config));
        asked.extend(questions.into_iter().enumerate().map(|(index, question)| (task, index, question)));
    }
    check_template(engine, config, &asked)?;
    let settings = config.settings();
    let fingerprint = fingerprint(engine.identity(), &settings, &asked);
    let (path, n_kept) = answers::kept(engine, out, &fingerprint)?;
    let mut log = OpenLog::open(&path, &fingerprint)?;
    progress.set_total(asked.len() as u64);
    progress.resume(log.samples.len() as u64);
    log.hold(engine.canary(Call::Generate, cancel)?, n_kept)?;
    let samples = answer_all(engine, config, &asked, &mut log, progress, cancel)?;
    let (model, protocol) = (engine.identity().clone(), config.protocol);
    Ok(OpenRun { model, settings, protocol, tasks, judges: Vec::new(), samples, log })
}

type Asked = (OpenTask, usize, OpenQuestion);

/// Refuses a model without a template of its own that takes prompt_engine's conversation: ChatML in its place would be said nowhere.
fn check_template(engine: &Engine, config: &OpenConfig, asked: &[Asked]) -> Result<()> {
    let (Some(text), Some((_, _, question))) = (engine.text(), asked.first()) else { return Ok(()) };
    match prompt(config.protocol, question) {
        OpenPrompt::Messages(messages)
            if config.protocol == Protocol::PromptEngine && text.falls_back_to_chatml(&messages) =>
        {
            let reason =
                "the model has no chat template that takes a system message and a question, which prompt_engine sends";
            Err(Error::Config(reason.to_owned()))
        }
        _ => Ok(()),
    }
}

fn answer_all(
    engine: &Engine,
    config: &OpenConfig,
    asked: &[Asked],
    log: &mut OpenLog,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<OpenSample>> {
    let mut samples: Vec<OpenSample> =
        asked.iter().map(|(task, index, question)| OpenSample::unanswered(task.name(), *index, question)).collect();
    let missing: Vec<usize> = (0..asked.len()).filter(|at| !log.samples.contains_key(at)).collect();
    for window in missing.chunks(engine.window_requests()) {
        cancel.check()?;
        let requests: Vec<GenerateRequest> =
            window.iter().map(|&at| request(config, engine.text().is_some(), &asked[at])).collect();
        let answered = handed(
            |take| engine.generate_into(&requests, &Progress::silent(), cancel, take),
            |of, result| {
                progress.advance(1);
                let at = window[of];
                let completion = match result {
                    Err(error) => {
                        samples[at].refused = Some(error.to_string());
                        return Ok(());
                    }
                    Ok(result) => {
                        samples[at].prompt_ids = result.prompt_ids.unwrap_or_default();
                        result.completions.into_iter().next().ok_or_else(|| Error::Answer {
                            id: requests[of].id.clone(),
                            reason: "the engine returned no completion".into(),
                        })?
                    }
                };
                samples[at].answered(config.protocol, completion);
                log.answered(at, &samples[at])
            },
        );
        log.sync()?;
        answered.map_err(|error: Error| error.at_question(places(asked)))?;
        engine.forget_answers()?;
    }
    for (&at, sample) in &log.samples {
        samples[at] = sample.clone();
    }
    let refused: Vec<&OpenSample> = samples.iter().filter(|sample| sample.refused.is_some()).collect();
    match refused.first() {
        Some(first) if refused.len() == samples.len() => Err(Error::AllRefused {
            task: first.task.clone(),
            n: refused.len(),
            reason: first.refused.clone().unwrap_or_default(),
        }),
        _ => Ok(samples),
    }
}

/// The ids of the questions' requests, and where each question stands.
fn places(asked: &[Asked]) -> impl Iterator<Item = (String, &str)> {
    asked.iter().map(|(task, _, question)| (format!("{}/{}", task.name(), question.id), question.source.as_str()))
}

/// A server that renders by its own template takes plain messages only; prompt_engine strips what it has rendered.
fn request(config: &OpenConfig, is_rendered_here: bool, (task, _, question): &Asked) -> GenerateRequest {
    let prompt = match prompt(config.protocol, question) {
        OpenPrompt::Messages(messages) if is_rendered_here && config.protocol == Protocol::PromptEngine => {
            Prompt::StrippedMessages(messages)
        }
        OpenPrompt::Messages(messages) => Prompt::Messages(messages),
        OpenPrompt::Text(text) => Prompt::Text(text),
    };
    GenerateRequest { id: format!("{}/{}", task.name(), question.id), prompt, n: 1, sampling: config.sampling.clone() }
}

fn fingerprint(model: &EngineIdentity, settings: &Map<String, Value>, asked: &[Asked]) -> String {
    let mut hasher = digest::Hasher::default();
    hasher.field(json!(model).to_string().as_bytes());
    hasher.field(json!(settings).to_string().as_bytes());
    for (task, _, question) in asked {
        hasher.field(task.name().as_bytes());
        hasher.field(json!(question).to_string().as_bytes());
    }
    hasher.hex()
}

/// Takes up the answers of a finished run in `folder`, to be judged anew into `out`: the model is not asked anything. Without a further
/// judge its verdicts stand.
pub fn take_up(folder: &Path, out: &Path, progress: &Progress) -> Result<OpenRun> {
    let path = folder.join("results.json");
    let results: OpenResults = atomic::read_json(&path).map_err(|error| {
        Error::Config(format!("{}: not the results of an evaluation with open answers ({error})", path.display()))
    })?;
    let samples: Vec<OpenSample> = score::read_lines(&folder.join("samples.jsonl"))?;
    if report::answers_sha256(&samples) != results.answers_sha256 {
        let text = format!("{}: the answers in samples.jsonl are not those of results.json", folder.display());
        return Err(Error::Config(text));
    }
    let log = OpenLog::open(&out.join(".answers.log"), &results.answers_sha256)?;
    progress.set_total(0);
    let protocol = results.protocol();
    let OpenResults { model, settings, judges, tasks, .. } = results;
    let tasks = tasks.into_iter().map(|task| task.head).collect();
    Ok(OpenRun { model, settings, protocol, tasks, judges, samples, log })
}

/// Refuses the finished run in `folder` where its questions are open and what reads it knows questions with options alone.
pub fn refuse_open(folder: &Path) -> Result<()> {
    match paired::is_open(folder)? {
        false => Ok(()),
        true => Err(Error::Config(format!(
            "{} holds answers to open questions, which aloe compare, aloe rejudge and aloe view read; this command reads questions with options",
            folder.display()
        ))),
    }
}

impl OpenRun {
    /// Whether a panel has judged the answers.
    pub fn has_judges(&self) -> bool {
        !self.judges.is_empty()
    }

    /// Puts away the verdicts of an earlier panel.
    pub fn clear_verdicts(&mut self) {
        self.judges.clear();
        for sample in &mut self.samples {
            sample.verdicts.clear();
        }
    }

    /// Asks one more judge about every answer.
    pub fn judge(
        &mut self,
        engine: &Engine,
        max_new_tokens: usize,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<()> {
        let judge = PanelJudge::new(engine, max_new_tokens, &self.judges);
        let replies = judge::judge_all(engine, &judge, &self.samples, &mut self.log, progress, cancel)?;
        for (sample, reply) in self.samples.iter_mut().zip(replies) {
            sample.verdicts.extend(reply);
        }
        self.judges.push(judge);
        Ok(())
    }

    /// Refuses labels of answers that this run has not.
    pub fn check_labels(&self, labels: &[Label]) -> Result<()> {
        report::labelled(&self.samples, labels).map(drop)
    }

    /// Counts and writes `results.json` and `samples.jsonl` into `out`, which depend on model, judges, data, labels and settings alone.
    pub fn finish(mut self, labels: &[Label], out: &Path, progress: &Progress) -> Result<OpenResults> {
        for sample in &mut self.samples {
            let row: panel::Row = sample.verdicts.iter().map(|reply| reply.verdict).collect();
            let is_judged = !self.judges.is_empty();
            sample.majority = is_judged.then(|| panel::majority(&row));
            sample.full_agreement = is_judged.then(|| panel::full_agreement(&row));
        }
        let results = OpenResults::new(&self, labels)?;
        files::write_samples(&out.join("samples.jsonl"), &self.samples)?;
        atomic::write_json(&out.join("results.json"), &results)?;
        progress.finish();
        Ok(results)
    }
}
