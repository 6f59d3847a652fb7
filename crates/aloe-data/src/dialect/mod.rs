//! Rows to conversations and pairs. The layout of a file is found from the columns of its first row; being unsure is an error that
//! names what was found, never a guess.

pub(crate) mod answer_keys;
mod choices;
pub(crate) mod help_steer;
mod instruct;
pub(crate) mod mapped;
mod mcqa;
mod messages;
pub(crate) mod own_answers;
mod own_line;
mod preference;
mod unused;

pub(crate) use unused::Unused;

use crate::{About, Body, Error, Item, Place, Rare, Result, RowError, SourceConfig};
use aloe_task::Question;
use aloe_task::rows::{Row, shown_name};
use aloe_text::{Conversation, Message, Pair, Role};
use messages::message_list;
use serde_json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;
use xxhash_rust::xxh3::xxh3_64;

/// A known layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// `instruction, input, output`: Alpaca, GenMedGPT-5k, Medical Meadow.
    Alpaca,
    /// `conversations[{from, value}]`: airoboros, deita; also Capybara's `conversation[{input, output}]`.
    Sharegpt,
    /// `messages[{role, content}]`.
    Messages,
    /// `question, response` (the published `*-cot` sets), `question, answer` or `prompt, response`; `system_prompt` is kept.
    QuestionResponse,
    /// self-instruct's `instruction, instances[{input, output}]`, each instance a row.
    Instances,
    /// MedQuAD: `question, answer, question_type, document_source`.
    Medquad,
    /// `question, opa..opd, cop` counted from 0, `exp`.
    Medmcqa,
    /// The original MedMCQA files: `cop` counted from 1.
    MedmcqaOneBased,
    /// `question, options{A..}, answer_idx`; options also as a list of `{key, value}`; and `sent1, ending0..3, label`.
    Medqa,
    /// bigbio's `bigbio_qa`: `question, type, choices[], context, answer[]`, the answer as its text.
    BigbioQa,
    /// `question`, `choices` or `options` or `A, B, C ..`, and `answer` as a letter or as the option's text.
    Choices,
    /// PubMedQA, original or Hub columns.
    Pubmedqa,
    /// `qtext, answers[{aid, atext}], ra`.
    Headqa,
    /// `question, op1..op4, cop` counted from 1.
    Careqa,
    /// `input, A, B, C, D, target`.
    Mmlu,
    /// `prompt, chosen, rejected`, each text or messages.
    Dpo,
    /// dpo-mix-7k: `chosen[], rejected[]` with the prompt as their common beginning.
    DpoMix,
    /// `conversations, chosen{from, value}, rejected{from, value}`.
    SharegptRanking,
    /// `question` or `instruction`, `system`, and `chosen, rejected` or `chosen_response, rejected_response` as texts: Orca and
    /// UltraFeedback pairs.
    QuestionPairs,
    /// Transcripts `\n\nHuman: ..\n\nAssistant: ..` with a common beginning.
    HhRlhf,
    /// HelpSteer: `prompt, response` and five ratings; the rows of a prompt become one pair.
    HelpSteer,
    /// MedSafetyBench: `harmful_medical_request, safe_response`.
    MedSafetyBench,
    /// Red-team questions `id, topic, question, split`: only to decontaminate against.
    RedTeam,
    /// Chen et al.'s attacks, `behavior, instruction_with_behavior`, and hh-rlhf's `red-team-attempts`, `transcript, rating`: no safe
    /// answers, only to decontaminate against.
    RedTeamAttempts,
    /// `samples.jsonl` of `aloe redteam`: a model's own answers to train questions with a judge's verdicts, made into pairs.
    RedTeamSamples,
    /// Columns named in the recipe.
    Mapped,
}

impl Dialect {
    /// As a recipe writes it.
    pub(crate) fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(String::from)).unwrap_or_default()
    }

    /// Whether rows become pairs only with other rows, of their file or their source.
    pub(crate) fn is_by_file(self) -> bool {
        matches!(self, Self::HelpSteer | Self::RedTeamSamples)
    }

    /// The layout of rows like `row`, or an error that lists the columns. MedMCQA's rows are taken for the Hub's, whose key counts
    /// from 0: only the whole file can tell, see `answer_keys`.
    pub fn detect(row: &Row) -> Result<Dialect> {
        let has = |names: &[&str]| names.iter().all(|name| row.columns.contains_key(*name));
        let is_list = |name: &str| row.columns.get(name).is_some_and(Value::is_array);
        let found = if has(&["conversations", "chosen", "rejected"]) {
            Self::SharegptRanking
        } else if has(&["prompt", "chosen", "rejected"]) && !is_list("chosen") {
            Self::Dpo
        } else if has(&["prompt", "chosen", "rejected"]) {
            // ultrafeedback-like sets repeat the prompt inside both lists; `dpo` accepts either.
            Self::Dpo
        } else if preference::pair_columns(row).is_some() {
            Self::QuestionPairs
        } else if has(&["question_id", "style", "rendering", "prompt", "response", "verdict"]) {
            Self::RedTeamSamples
        } else if has(&["chosen", "rejected"]) && is_list("chosen") {
            Self::DpoMix
        } else if has(&["chosen", "rejected"]) {
            Self::HhRlhf
        } else if has(&["conversations"]) || has(&["conversation"]) {
            Self::Sharegpt
        } else if has(&["messages"]) {
            Self::Messages
        } else if has(&["question", "opa", "opb", "opc", "opd", "cop"]) {
            Self::Medmcqa
        } else if has(&["question", "op1", "op2", "op3", "op4", "cop"]) {
            Self::Careqa
        } else if has(&["behavior", "instruction_with_behavior"]) || has(&["transcript", "rating", "task_description"])
        {
            Self::RedTeamAttempts
        } else if has(&["question", "type", "choices", "answer"]) && is_list("choices") {
            Self::BigbioQa
        } else if has(&["question", "options", "answer_idx"]) || has(&["sent1", "ending0", "ending3", "label"]) {
            Self::Medqa
        } else if has(&["QUESTION", "CONTEXTS", "final_decision"]) || has(&["question", "context", "final_decision"]) {
            Self::Pubmedqa
        } else if has(&["qtext", "answers", "ra"]) {
            Self::Headqa
        } else if has(&["input", "A", "B", "C", "D", "target"]) {
            Self::Mmlu
        } else if has(&["instruction", "instances"]) {
            Self::Instances
        } else if has(&["instruction", "output"]) {
            Self::Alpaca
        } else if has(&["harmful_medical_request", "safe_response"]) {
            Self::MedSafetyBench
        } else if choices::are_there(row) {
            Self::Choices
        } else if has(&["question", "answer", "question_type"]) {
            Self::Medquad
        } else if has(&["id", "topic", "question", "split"]) {
            Self::RedTeam
        } else if has(&["prompt", "response", "helpfulness", "correctness", "coherence"]) {
            Self::HelpSteer
        } else if instruct::pair_of_columns(row).is_some() {
            Self::QuestionResponse
        } else {
            let columns: Vec<String> = row.columns.keys().map(|name| shown_name(name)).take(20).collect();
            return Err(Error::UnknownDialect { at: row.at.clone(), columns: columns.join(", ") });
        };
        Ok(found)
    }

    /// Whether rows are multiple-choice questions.
    pub fn is_mcqa(self) -> bool {
        use Dialect::*;
        matches!(self, Medmcqa | MedmcqaOneBased | Medqa | BigbioQa | Choices | Pubmedqa | Headqa | Careqa | Mmlu)
    }

    /// The sub-task that the manifest names.
    pub fn task(self) -> &'static str {
        use Dialect::*;
        match self {
            Alpaca | Instances | Messages => "instruction",
            Sharegpt => "dialogue",
            QuestionResponse | Medquad | Mapped => "qa",
            Medmcqa | MedmcqaOneBased | Medqa | BigbioQa | Choices | Pubmedqa | Headqa | Careqa | Mmlu => "mcqa",
            Dpo | DpoMix | SharegptRanking | QuestionPairs | HhRlhf | HelpSteer => "preference",
            MedSafetyBench | RedTeam | RedTeamAttempts | RedTeamSamples => "safety",
        }
    }
}

/// The question of a multiple-choice row.
pub(crate) fn question(dialect: Dialect, row: &Row, index: usize) -> Result<Question, RowError> {
    mcqa::question(dialect, row, index)
}

/// One row as an item. `id` is its name in the outputs, `index` its number in the file.
pub(crate) fn item(
    dialect: Dialect,
    row: &Row,
    index: usize,
    id: String,
    config: &SourceConfig,
) -> Result<Item, RowError> {
    let (body, asked) = body(dialect, row, index, config)?;
    finish(dialect, row, id, config, body, asked)
}

/// The items of a row: one, and self-instruct's further instances, which are a row each. The first is called `id`, the others `id/2` and so on.
pub(crate) fn items(
    dialect: Dialect,
    row: &Row,
    index: usize,
    id: String,
    config: &SourceConfig,
) -> Result<(Item, Vec<Item>), RowError> {
    let parts = if dialect == Dialect::Instances { instruct::each_instance(row) } else { Vec::new() };
    let Some((first, others)) = parts.split_first().filter(|(_, others)| !others.is_empty()) else {
        return Ok((item(dialect, row, index, id, config)?, Vec::new()));
    };
    let others =
        others.iter().zip(2..).map(|(part, number)| item(dialect, part, index, format!("{id}/{number}"), config));
    // What is wrong with an earlier one is told first.
    let first = item(dialect, first, index, id.clone(), config)?;
    Ok((first, others.collect::<Result<_, _>>()?))
}

/// How a pair's published ratings compare: that of the chosen side with that of the rejected one.
pub(crate) fn rated(dialect: Dialect, row: &Row) -> Option<Ordering> {
    if dialect.task() == "preference" { preference::rated(row) } else { None }
}

/// What users ask in a row of HH's transcripts, whose sides need not make a pair.
pub(crate) fn asked_in_transcripts(row: &Row) -> Result<Vec<String>, RowError> {
    preference::asked_in_transcripts(row)
}

/// The text of a row, and its question where it has one.
fn body(
    dialect: Dialect,
    row: &Row,
    index: usize,
    config: &SourceConfig,
) -> Result<(Body, Option<Question>), RowError> {
    let mut asked = None;
    let body = match dialect {
        Dialect::Alpaca => instruct::alpaca(row)?,
        Dialect::Instances => instruct::instances(row)?,
        Dialect::Sharegpt => instruct::sharegpt(row)?,
        Dialect::Messages => instruct::messages(row)?,
        Dialect::QuestionResponse | Dialect::Medquad => instruct::question_response(row)?,
        Dialect::Mapped if config.columns.contains_key("question") => {
            let question = mapped::question(row, &config.columns, index)?;
            let body = mcqa::conversation(&question);
            asked = Some(question);
            body
        }
        Dialect::Mapped => instruct::mapped(row, &config.columns)?,
        Dialect::QuestionPairs => preference::question_pairs(row)?,
        Dialect::Dpo => preference::dpo(row)?,
        Dialect::DpoMix => preference::dpo_mix(row)?,
        Dialect::SharegptRanking => preference::sharegpt_ranking(row)?,
        Dialect::HhRlhf => preference::hh_rlhf(row)?,
        Dialect::MedSafetyBench => preference::med_safety_bench(row, config.rejected_openings)?,
        Dialect::HelpSteer | Dialect::RedTeamSamples => {
            return Err(RowError::new(&row.at, "rated and judged rows become pairs only together"));
        }
        Dialect::RedTeam | Dialect::RedTeamAttempts => {
            return Err(RowError::new(&row.at, "a red-team question without answers is not a training row"));
        }
        _ => {
            let question = mcqa::question(dialect, row, index)?;
            let body = mcqa::conversation(&question);
            asked = Some(question);
            body
        }
    };
    Ok((body, asked))
}

/// Whether a stage of ours wrote the row: `aloe synthesis` says how it was made, a data stage what it is.
pub(crate) fn is_of_stage(row: &Row) -> bool {
    row.has("made") || own_line::is(row)
}

/// Builds the item around its text.
pub(crate) fn finish(
    dialect: Dialect,
    row: &Row,
    id: String,
    config: &SourceConfig,
    mut body: Body,
    asked: Option<Question>,
) -> Result<Item, RowError> {
    if let Some(system) = &config.system {
        add_system(&mut body, system);
    }
    // Rows of `aloe synthesis` and of a data stage say themselves what they are.
    let says = is_of_stage(row);
    let said = |column: &str| match says {
        true => Ok(optional(row, column)?.filter(|text| !text.trim().is_empty())),
        false => Ok(None),
    };
    let subject = match &asked {
        // Of MedQA that is the step of the exam, `step2&3`, which is no subject.
        Some(_) if dialect == Dialect::Medqa => None,
        Some(question) => Some(question.subject.clone()).filter(|subject| !subject.is_empty()),
        None => said("subject")?,
    };
    let task = config.task.clone().or(said("task")?);
    Ok(Item {
        id,
        at: Place::of(&row.at),
        source: 0,
        about: About {
            task: task.map_or(if asked.is_some() { "mcqa" } else { dialect.task() }.into(), Cow::Owned),
            subject: subject.or_else(|| config.subject.clone()).unwrap_or_default(),
            licence: own_line::licence(row)?,
            split: own_line::split(row, config),
        }
        .into(),
        question: asked.map(Box::new),
        rare: Rare {
            stage: row.columns.get("stage").and_then(Value::as_u64),
            group: group(dialect, row)?,
            style: optional(row, "style")?,
            made: said("made")?,
        }
        .boxed(),
        body,
    })
}

/// The base question of a row that is an attack or may be wrapped in one: its id, of MedSafetyBench, which has none, a digest of its text.
/// The text itself would stand in the written rows unmasked.
fn group(dialect: Dialect, row: &Row) -> Result<Option<String>, RowError> {
    match optional(row, "question_id")? {
        None if dialect == Dialect::MedSafetyBench => {
            let digest = |request: String| format!("{:016x}", xxh3_64(crate::simplify(&request).as_bytes()));
            Ok(optional(row, "harmful_medical_request")?.map(digest))
        }
        found => Ok(found),
    }
}

fn add_system(body: &mut Body, system: &str) {
    let messages = match body {
        Body::Conversation(conversation) => &mut conversation.messages,
        Body::Pair(pair) => &mut pair.prompt,
    };
    if messages.first().is_none_or(|message| message.role != Role::System) {
        messages.insert(0, Message::system(system));
    }
}

/// The text of a column.
fn text(row: &Row, column: &str) -> Result<String, RowError> {
    match row.columns.get(column) {
        // An absent answer is the cleaning rules' business, a number is not text.
        Some(Value::Null) => Ok(String::new()),
        _ => row.text(column).map_err(|error| RowError::from_task(&row.at, &error)),
    }
}

fn optional(row: &Row, column: &str) -> Result<Option<String>, RowError> {
    let found = row.optional_text(column).map_err(|error| RowError::from_task(&row.at, &error))?;
    Ok(found.filter(|text| !text.trim().is_empty()))
}

/// The names of speakers that are read, in any case. Beside the three roles: OpenAssistant's `prompter`, ShareGPT's `human`, `gpt`,
/// `chatgpt`, `bing` and `bard`, Gemma's `model`. `doctor` and `patient` are none: which of the two a set wants to train is its user's
/// decision, and a doctor's letter is no assistant.
pub const SPEAKERS: &str =
    "system; user, human, prompter (all user); assistant, gpt, chatgpt, bing, bard, model (all assistant)";

fn is_assistant(name: &str) -> bool {
    let name = name.trim().to_lowercase();
    ["gpt", "assistant", "chatgpt", "bing", "bard", "model"].contains(&name.as_str())
}

/// Names that are refused and may stand in an error; any other may be a person's.
const SHOWN_SPEAKERS: [&str; 14] = [
    "tool",
    "function",
    "observation",
    "developer",
    "doctor",
    "patient",
    "physician",
    "nurse",
    "client",
    "therapist",
    "narrator",
    "bot",
    "ai",
    "critic",
];

/// The role behind a speaker's name; see [`SPEAKERS`].
fn role(row: &Row, name: &str) -> Result<Role, RowError> {
    match name.trim().to_lowercase().as_str() {
        "system" => Ok(Role::System),
        "human" | "user" | "prompter" => Ok(Role::User),
        name if is_assistant(name) => Ok(Role::Assistant),
        other => {
            let other = if SHOWN_SPEAKERS.contains(&other) {
                format!("`{other}`")
            } else {
                format!("(a name of {} characters)", other.chars().count())
            };
            let reason = format!("speaker {other} is neither system, user nor assistant; known names: {SPEAKERS}");
            Err(RowError::new(&row.at, reason))
        }
    }
}

/// Whether a column says anything.
fn is_filled(row: &Row, column: &str) -> bool {
    row.columns.get(column).is_some_and(is_said)
}

fn is_said(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty() && text.trim() != "[]",
        Value::Array(list) => !list.is_empty(),
        Value::Object(parts) => !parts.is_empty(),
        _ => true,
    }
}

/// Refuses a row whose `column` says something that would be lost.
fn refuse(row: &Row, column: &str, what: &str) -> Result<(), RowError> {
    let reason =
        || format!("column `{column}` holds {what}, which this layout does not read; leave it out or write `messages`");
    if is_filled(row, column) { Err(RowError::new(&row.at, reason())) } else { Ok(()) }
}

/// A conversation in which system comes first and somebody answers.
fn conversation(row: &Row, mut messages: Vec<Message>) -> Result<Body, RowError> {
    // Room for messages that do not come is most of a short row's memory.
    messages.shrink_to_fit();
    check_order(row, &messages)?;
    if !messages.iter().any(|message| message.role == Role::Assistant) {
        return Err(RowError::new(&row.at, "no message is the assistant's"));
    }
    Ok(Body::Conversation(Conversation { messages }))
}

/// A pair whose prompt ends with the user and whose sides are one assistant message each.
fn pair(row: &Row, prompt: Vec<Message>, chosen: Vec<Message>, rejected: Vec<Message>) -> Result<Body, RowError> {
    check_order(row, &prompt)?;
    if prompt.last().is_none_or(|message| message.role != Role::User) {
        return Err(RowError::new(&row.at, "the prompt does not end with a user message"));
    }
    for (name, side) in [("chosen", &chosen), ("rejected", &rejected)] {
        if side.len() != 1 || side[0].role != Role::Assistant {
            return Err(RowError::new(
                &row.at,
                format!("`{name}` is not one assistant message ({} found)", side.len()),
            ));
        }
    }
    Ok(Body::Pair(Box::new(Pair { prompt, chosen, rejected })))
}

fn check_order(row: &Row, messages: &[Message]) -> Result<(), RowError> {
    for (index, message) in messages.iter().enumerate() {
        let before = index.checked_sub(1).map(|at| messages[at].role);
        let fits = match message.role {
            Role::System => index == 0,
            Role::User => before != Some(Role::User),
            Role::Assistant => before == Some(Role::User),
        };
        if !fits {
            let reason = format!("message {} ({}) is out of turn", index + 1, message.role.as_str());
            return Err(RowError::new(&row.at, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
