//! How much a stage will read and write: rows of data files, questions of benchmarks, prompts of a red-team run, each with
//! its tokens. For the plan only: rows are counted, their tokens are taken from a sample.
//!
//! Counts stand before cleaning, duplicates and overlaps, which only the stage itself finds; so they are upper bounds. What
//! cannot be read (a file that is not there, or too large to read for a plan) has no size here, and the plan takes `expect`.

use aloe_data::{DataConfig, SourceConfig};
use aloe_eval::{EvalConfig, Strategy, redteam_sample};
use aloe_task::red_team::{Style, TurnTokens, questions};
use aloe_task::rows::Row;
use aloe_task::{ChoiceOrder, Protocol, Question, Split, Task, wording};
use aloe_text::{Conversation, Message, TextModel};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Characters per token of text that no tokenizer at hand counts.
pub(crate) const CHARS_PER_TOKEN: f64 = 4.2;
/// Tokens of a turn's frame where no template at hand tells.
const TURN_TOKENS: f64 = 5.0;
/// Rows or questions whose tokens are counted.
const SAMPLE: usize = 200;
/// Larger data files are not read for a plan.
const LARGEST_BYTES: u64 = 512 << 20;

/// Size of what a stage works on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Size {
    /// Rows, pairs, questions or prompts.
    pub(crate) rows: u64,
    /// Tokens read in one pass.
    pub(crate) tokens: u64,
    /// The most tokens generated.
    pub(crate) generated: u64,
}

impl Size {
    /// The same work on so many models.
    pub(super) fn times(self, n: u64) -> Self {
        Self { rows: self.rows * n, tokens: self.tokens * n, generated: self.generated * n }
    }
}

/// Counts tokens: with the base model's tokenizer where it is at hand, by characters otherwise.
pub(crate) struct Meter(pub(crate) Option<TextModel>);

impl Meter {
    pub(super) fn text(&self, text: &str) -> f64 {
        let counted = self.0.as_ref().and_then(|model| model.tokenizer.encode_plain(text).ok());
        counted.map_or_else(|| text.chars().count() as f64 / CHARS_PER_TOKEN, |ids| ids.len() as f64)
    }

    /// A prompt with its template.
    pub(super) fn prompt(&self, messages: &[Message]) -> f64 {
        let counted = self.0.as_ref().and_then(|model| model.encode_prompt(messages).ok());
        counted.map_or_else(
            || messages.iter().map(|message| self.text(&message.content) + TURN_TOKENS).sum(),
            |ids| ids.len() as f64,
        )
    }

    /// What the template adds to a row of one question and one answer: turn tokens and a default system prompt.
    fn frame(&self) -> f64 {
        let row = Conversation { messages: vec![Message::user("a"), Message::assistant("a")] };
        let counted = self.0.as_ref().and_then(|model| model.encode_conversation(&row).ok());
        counted.map_or(2.0 * TURN_TOKENS, |encoded| encoded.ids.len() as f64 - 2.0)
    }
}

/// Rows that a data stage hands on in one epoch.
pub(crate) fn data(config: &DataConfig, meter: &Meter) -> Option<Size> {
    let mut total = Size::default();
    for source in &config.sources {
        let rows = rows_of(&source.path)?;
        let wanted: Vec<&Row> = rows.iter().filter(|row| is_wanted(row, config)).collect();
        let made = if source.attack_styles { variants(&wanted) } else { 0 };
        let left = ((wanted.len() + made) as f64 * (1.0 - config.hold_out)).round();
        let capped = source.max_rows.map_or(left, |most| left.min(most as f64));
        let n_rows = capped * source.weight;
        total.rows += n_rows as u64;
        total.tokens += (n_rows * mean(&wanted, |row| row_tokens(row, Some(source), meter))) as u64;
    }
    Some(total)
}

/// Rows of a training stage's input that no stage of the recipe makes: a data folder or a file.
pub(crate) fn written_data(path: &Path, meter: &Meter) -> Option<Size> {
    let file = if path.is_dir() { path.join("train.jsonl") } else { path.to_path_buf() };
    let rows = rows_of(&file)?;
    let all: Vec<&Row> = rows.iter().collect();
    let tokens = rows.len() as f64 * mean(&all, |row| row_tokens(row, None, meter));
    Some(Size { rows: rows.len() as u64, tokens: tokens as u64, generated: 0 })
}

fn is_wanted(row: &Row, config: &DataConfig) -> bool {
    let stage = row.columns.get("stage").and_then(Value::as_u64);
    config.stage.is_none_or(|wanted| stage.is_none_or(|stage| stage == wanted))
}

/// Rows that `attack_styles` adds: each plain red-team question (`question_id`, or a request of MedSafetyBench, which has no ids) in each
/// style that is neither plain nor held out.
fn variants(rows: &[&Row]) -> usize {
    let n_styles = Style::ALL.iter().filter(|style| !style.is_held_out() && **style != Style::Baseline).count();
    // Rows of a data stage have all columns, empty where nothing is known.
    let said = |row: &Row, column| row.optional_text(column).ok().flatten().filter(|text| !text.trim().is_empty());
    let is_plain = |row: &Row| said(row, "style").is_none_or(|style| style == Style::Baseline.name());
    let is_asked = |row: &Row| said(row, "question_id").is_some() || row.has("harmful_medical_request");
    let is_wrapped = |row: &Row| is_asked(row) && is_plain(row);
    rows.iter().filter(|row| is_wrapped(row)).count() * n_styles
}

/// The rows of a file, or of all data files below a folder.
fn rows_of(path: &Path) -> Option<Vec<Row>> {
    let mut files = Vec::new();
    if path.is_dir() {
        data_files(path, &mut files)
    } else {
        files.push(path.to_path_buf())
    }
    files.sort();
    let mut rows = Vec::new();
    for file in &files {
        if file.metadata().ok()?.len() > LARGEST_BYTES {
            return None;
        }
        let name = file.file_name()?.to_str()?;
        rows.extend(aloe_task::rows::read(file.parent()?, name).ok()?);
    }
    (!rows.is_empty()).then_some(rows)
}

fn data_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let stem = name.strip_suffix(".gz").unwrap_or(&name).to_owned();
        if path.is_dir() {
            data_files(&path, found);
        } else if [".jsonl", ".json", ".csv", ".parquet"].iter().any(|end| stem.ends_with(end)) {
            found.push(path);
        }
    }
}

/// Columns that hold text a model is trained on, over all layouts that `aloe data` knows.
const TEXT_COLUMNS: [&str; 37] = [
    "A",
    "B",
    "C",
    "D",
    "answer",
    "answers",
    "chosen",
    "context",
    "CONTEXTS",
    "conversation",
    "conversations",
    "exp",
    "harmful_medical_request",
    "input",
    "instances",
    "instruction",
    "LONG_ANSWER",
    "long_answer",
    "messages",
    "op1",
    "op2",
    "op3",
    "op4",
    "opa",
    "opb",
    "opc",
    "opd",
    "options",
    "output",
    "prompt",
    "qtext",
    "question",
    "QUESTION",
    "rationale",
    "rejected",
    "response",
    "safe_response",
];

/// Tokens of a row with its template: the text of its columns and a frame for each exchange.
fn row_tokens(row: &Row, source: Option<&SourceConfig>, meter: &Meter) -> f64 {
    let mapped: Vec<&str> = source.iter().flat_map(|source| source.columns.values().map(String::as_str)).collect();
    let mut pieces = Vec::new();
    for (name, value) in &row.columns {
        let counts =
            if mapped.is_empty() { TEXT_COLUMNS.contains(&name.as_str()) } else { mapped.contains(&name.as_str()) };
        if counts {
            texts(value, &mut pieces);
        }
    }
    // A transcript pair repeats its prompt in both columns; it is read once.
    if let (Some(Value::String(chosen)), Some(Value::String(rejected))) =
        (row.columns.get("chosen"), row.columns.get("rejected"))
    {
        let common = chosen.bytes().zip(rejected.bytes()).take_while(|(left, right)| left == right).count();
        let rest = rejected.get(common..).unwrap_or(rejected);
        pieces.retain(|piece| *piece != rejected.as_str());
        pieces.push(rest);
    }
    let turns = row.columns.get("messages").or(row.columns.get("conversations")).and_then(Value::as_array);
    let extra_turns = turns.map_or(0, |turns| turns.len().saturating_sub(2)) as f64;
    pieces.iter().map(|text| meter.text(text)).sum::<f64>() + meter.frame() + extra_turns * TURN_TOKENS
}

/// The strings in a value; of a message only its text.
fn texts<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(map) => {
            let is_label = |key: &str| matches!(key, "role" | "from" | "aid");
            map.iter().filter(|(key, _)| !is_label(key)).for_each(|(_, item)| texts(item, found));
        }
        _ => {}
    }
}

/// The mean of `of` over a sample spread evenly.
fn mean<T>(items: &[T], of: impl Fn(&T) -> f64) -> f64 {
    let step = items.len().div_ceil(SAMPLE).max(1);
    let sample: Vec<f64> = items.iter().step_by(step).map(of).collect();
    if sample.is_empty() { 0.0 } else { sample.iter().sum::<f64>() / sample.len() as f64 }
}

/// Questions of an evaluation, the prompts it reads and the most it generates. An option's tokens count as read.
pub(crate) fn eval(config: &EvalConfig, meter: &Meter) -> Option<Size> {
    let mut total = Size::default();
    for &task in &config.tasks {
        let size = task.load(&config.data_dir, config.split).ok().and_then(|mut questions| {
            questions.truncate(config.limit.unwrap_or(questions.len()));
            task_size(config, task, &questions, meter)
        })?;
        total.rows += size.rows;
        total.tokens += size.tokens;
        total.generated += size.generated;
    }
    Some(total)
}

fn task_size(config: &EvalConfig, task: Task, questions: &[Question], meter: &Meter) -> Option<Size> {
    let n_questions = questions.len() as u64;
    if config.strategy.weighs_options() {
        let read = mean(&(0..questions.len()).collect::<Vec<_>>(), |&at| {
            let shots: Vec<&Question> =
                (1..=config.shots).map(|further| &questions[(at + further) % questions.len()]).collect();
            config.choice_prompt(task, &questions[at], &shots).map_or(0.0, |prompt| {
                let before = match &prompt.shown {
                    wording::Shown::Text(text) => meter.text(text),
                    wording::Shown::Messages(messages) => meter.prompt(messages),
                };
                before + prompt.continuations.iter().map(|text| meter.text(text)).sum::<f64>()
            })
        });
        return Some(Size { rows: n_questions, tokens: (n_questions as f64 * read) as u64, generated: 0 });
    }
    let (plain, shot) = worked_prompt(config, questions, meter);
    let n_samples = config.n_samples as u64;
    // Samples in one order share their prompt; each shuffled one has its own.
    let n_prompts = n_questions * if config.shuffle { n_samples } else { 1 };
    let mut tokens = n_prompts as f64 * (plain + config.shots as f64 * shot);
    let mut n_answers = n_questions * n_samples;
    if config.strategy == Strategy::Medprompt {
        let n_attempts = pool_len(config, task)? * config.medprompt.pool_attempts as u64;
        tokens += n_attempts as f64 * (plain + config.shots.min(3) as f64 * shot);
        n_answers += n_attempts;
    }
    let generated = n_answers * config.sampling.max_new_tokens as u64;
    Some(Size { rows: n_questions, tokens: tokens as u64, generated })
}

/// Tokens of a question's prompt without examples, and of one worked example.
fn worked_prompt(config: &EvalConfig, questions: &[Question], meter: &Meter) -> (f64, f64) {
    let tokens = |question: &Question, n_shots: usize| {
        let shots = wording::fixed_shots(config.protocol, question, n_shots).unwrap_or_default();
        let order = ChoiceOrder::natural(question.choices.len());
        wording::cot_messages(config.protocol, question, &order, &shots).map_or(0.0, |messages| meter.prompt(&messages))
    };
    let plain = mean(questions, |question| tokens(question, 0));
    let one = mean(questions, |question| tokens(question, 1));
    (plain, (one - plain).max(0.0))
}

/// Questions that Medprompt's pool holds and that are to be solved.
fn pool_len(config: &EvalConfig, task: Task) -> Option<u64> {
    if config.examples.is_some() {
        return Some(0);
    }
    let own = if config.protocol == Protocol::PromptEngine { Split::Validation } else { Split::Train };
    let (task, split) = match task {
        Task::Mmlu(_) => (task, Split::Validation),
        Task::CareqaEn | Task::CareqaEs => (Task::Medmcqa, own),
        task => (task, own),
    };
    let n_pool = task.load(&config.data_dir, split).ok()?.len();
    Some(n_pool.min(config.medprompt.pool_limit.unwrap_or(n_pool)) as u64)
}

/// Prompts of a red-team run, harmless ones included, and the most it generates.
pub(crate) fn redteam(stage: &super::redteam_stage::RedteamStage, meter: &Meter) -> Option<Size> {
    let config = stage.checked().ok()?;
    let split = |path: &Path| {
        (path.parent().unwrap_or(Path::new("")).to_path_buf(), path.file_name().unwrap_or_default().to_owned())
    };
    let (folder, file) = split(&stage.questions);
    let mut asked = questions::read(&folder, file.to_str()?).ok()?;
    asked.retain(|question| question.split == config.split);
    let planned = redteam_sample::stratified(&asked, config.split, &config.styles, config.n_prompts, config.seed);
    let harmful = mean(&planned, |prompt| {
        meter.prompt(&prompt.style.messages(&asked[prompt.question].question, TurnTokens::ChatMl))
    });
    let mut rows = planned.len() as u64;
    let mut tokens = rows as f64 * harmful;
    if let Some(path) = &stage.harmless {
        let (folder, file) = split(path);
        let mut harmless = questions::read_harmless(&folder, file.to_str()?).ok()?;
        harmless.truncate(config.n_harmless);
        rows += harmless.len() as u64;
        tokens += harmless.iter().map(|prompt| meter.prompt(&[Message::user(&prompt.question)])).sum::<f64>();
    }
    Some(Size { rows, tokens: tokens as u64, generated: rows * config.max_new_tokens as u64 })
}

#[cfg(test)]
mod tests;
