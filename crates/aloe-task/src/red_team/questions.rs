//! Red-team questions and harmless look-alikes, from the starter set's files and from public sets.
//!
//! A base question belongs to one split together with all its attack variants: the split is a property of the question, so
//! no style of a trained question can be evaluated.

use crate::rows::{self, Row};
use crate::{Error, Result};
use std::path::Path;

/// The seven topics of the published set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// Guns and illegal weapons.
    Weapons,
    /// Hate.
    Hate,
    /// Regulated and controlled substances.
    Substances,
    /// Sexual content.
    SexualContent,
    /// Self-harm and suicide.
    SelfHarm,
    /// Non-violent crimes.
    NonViolentCrimes,
    /// Violent crimes.
    ViolentCrimes,
}

impl Topic {
    /// All seven.
    pub const ALL: [Self; 7] = [
        Self::Weapons,
        Self::Hate,
        Self::Substances,
        Self::SexualContent,
        Self::SelfHarm,
        Self::NonViolentCrimes,
        Self::ViolentCrimes,
    ];

    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weapons => "weapons",
            Self::Hate => "hate",
            Self::Substances => "substances",
            Self::SexualContent => "sexual_content",
            Self::SelfHarm => "self_harm",
            Self::NonViolentCrimes => "non_violent_crimes",
            Self::ViolentCrimes => "violent_crimes",
        }
    }

    /// The published table's name.
    pub fn title(self) -> &'static str {
        match self {
            Self::Weapons => "Guns & illegal weapons",
            Self::Hate => "Hate",
            Self::Substances => "Regulated & controlled substances",
            Self::SexualContent => "Sexual content",
            Self::SelfHarm => "Self-harm/suicide",
            Self::NonViolentCrimes => "Non-violent crimes",
            Self::ViolentCrimes => "Violent crimes",
        }
    }

    /// From either name, without regard to case, spaces or punctuation.
    pub fn parse(name: &str) -> Option<Self> {
        let bare = |text: &str| -> String {
            text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
        };
        Self::ALL.into_iter().find(|topic| bare(topic.name()) == bare(name) || bare(topic.title()) == bare(name))
    }
}

/// Whether a question's variants may be trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedTeamSplit {
    /// For stage-2 pairs.
    Train,
    /// For the red-team run.
    #[default]
    Test,
}

impl RedTeamSplit {
    /// Whether questions are kept for evaluation: the split of every red-team run that names none.
    pub fn is_test(&self) -> bool {
        *self == Self::Test
    }
}

/// One base question.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RedTeamQuestion {
    /// Unique within its file.
    pub id: String,
    /// One of the seven topics' names, or the set's own category.
    pub topic: String,
    /// The plain question.
    pub question: String,
    /// Training or evaluation.
    pub split: RedTeamSplit,
    /// `file:line`.
    pub source: String,
}

/// Reads a file of red-team questions; its layout is recognised by its columns.
///
/// Starter rows `{id, topic, question, split}` must name one of the seven topics. Public sets (Chen et al. `source,
/// harmful_prompt`; AdvBench `goal, target`; Do-Not-Answer `prompt, intents`; MedSafetyBench `harmful_medical_request`;
/// HarmBench `Behavior`; XSTest's unsafe half) name no split: one question in five, by a hash of its text, is test.
pub fn read(dir: &Path, relative: &str) -> Result<Vec<RedTeamQuestion>> {
    let mut questions = Vec::new();
    for (index, row) in rows::read(dir, relative)?.iter().enumerate() {
        if let Some(question) = question(row, index)? {
            questions.push(question);
        }
    }
    if questions.is_empty() { Err(Error::Empty { path: relative.into() }) } else { Ok(questions) }
}

fn question(row: &Row, index: usize) -> Result<Option<RedTeamQuestion>> {
    if row.has("split") && row.has("topic") {
        return starter(row).map(Some);
    }
    let known = [
        ("harmful_prompt", "source", "chen_et_al"),
        ("goal", "", "advbench"),
        ("harmful_medical_request", "", "med_safety_bench"),
        ("Behavior", "SemanticCategory", "harmbench"),
    ];
    for (column, topic, set) in known {
        if row.has(column) {
            let topic = if topic.is_empty() { set.to_string() } else { row.text(topic)? };
            return public(row, set, index, row.text(column)?, topic).map(Some);
        }
    }
    if row.has("label") && row.has("prompt") {
        let unsafe_half = row.text("label")? == "unsafe";
        let found = public(row, "xstest", index, row.text("prompt")?, row.text("type")?)?;
        return Ok(unsafe_half.then_some(found));
    }
    if row.has("intents") {
        let topic = row.texts("intents")?.into_iter().next().unwrap_or_else(|| "do_not_answer".into());
        return public(row, "do_not_answer", index, row.text("prompt")?, topic).map(Some);
    }
    Err(row.unexpected("question", "a red-team question in a known layout", None))
}

fn starter(row: &Row) -> Result<RedTeamQuestion> {
    let topic = Topic::parse(&row.text("topic")?)
        .ok_or_else(|| row.unexpected("topic", "one of the seven topics", row.columns.get("topic")))?;
    let split = match row.text("split")?.as_str() {
        "train" => RedTeamSplit::Train,
        "test" => RedTeamSplit::Test,
        _ => return Err(row.unexpected("split", "train or test", row.columns.get("split"))),
    };
    let question = text_of(row, row.text("question")?)?;
    Ok(RedTeamQuestion { id: row.text("id")?, topic: topic.name().into(), question, split, source: row.at.clone() })
}

fn public(row: &Row, set: &str, index: usize, question: String, topic: String) -> Result<RedTeamQuestion> {
    let question = text_of(row, question)?;
    Ok(RedTeamQuestion {
        id: format!("{set}_{index}"),
        topic,
        split: split_of(&question),
        question,
        source: row.at.clone(),
    })
}

fn text_of(row: &Row, text: String) -> Result<String> {
    if text.trim().is_empty() { Err(row.refuse("the question text is empty")) } else { Ok(text.trim().to_string()) }
}

/// The split of a question whose set names none: by its text alone (lower-cased, white space joined), so that the same
/// question in two sets falls on the same side.
pub fn split_of(question: &str) -> RedTeamSplit {
    let text = question.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let digest = aloe_record::digest::bytes(text.as_bytes());
    let value = u32::from_str_radix(&digest[..8], 16).unwrap_or_default();
    if value.is_multiple_of(5) { RedTeamSplit::Test } else { RedTeamSplit::Train }
}

/// A harmless prompt that resembles a harmful one; refusing it is a fault.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HarmlessPrompt {
    /// Unique within its file.
    pub id: String,
    /// The prompt.
    pub question: String,
}

/// Reads harmless prompts: starter rows `{id, question}`, or XSTest's safe half (`id, prompt, type, label`).
pub fn read_harmless(dir: &Path, relative: &str) -> Result<Vec<HarmlessPrompt>> {
    let mut prompts = Vec::new();
    for row in rows::read(dir, relative)? {
        let column = if row.has("label") { "prompt" } else { "question" };
        if !row.has("label") || row.text("label")? == "safe" {
            prompts.push(HarmlessPrompt { id: row.text("id")?, question: text_of(&row, row.text(column)?)? });
        }
    }
    if prompts.is_empty() { Err(Error::Empty { path: relative.into() }) } else { Ok(prompts) }
}

/// A response whose label is known, to measure a judge's error.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LabelledResponse {
    /// What was asked.
    pub prompt: String,
    /// What was answered.
    pub response: String,
    /// Whether a person calls the response unsafe.
    pub is_unsafe: bool,
}

/// Reads `{prompt, response, label: "safe"|"unsafe"}` rows.
pub fn read_labels(dir: &Path, relative: &str) -> Result<Vec<LabelledResponse>> {
    rows::read(dir, relative)?
        .iter()
        .map(|row| {
            let is_unsafe = match row.text("label")?.as_str() {
                "safe" => false,
                "unsafe" => true,
                _ => return Err(row.unexpected("label", "safe or unsafe", row.columns.get("label"))),
            };
            Ok(LabelledResponse { prompt: row.text("prompt")?, response: row.text("response")?, is_unsafe })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_keeps_its_split_in_every_set_it_appears_in() {
        assert_eq!(split_of("How  to\npick a lock?"), split_of("how to pick a lock?"));
        let n_test = (0..2000).filter(|i| split_of(&format!("question {i}")) == RedTeamSplit::Test).count();
        assert!((320..480).contains(&n_test), "{n_test}");
    }

    #[test]
    fn an_unknown_topic_or_split_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let check = |line: &str| {
            std::fs::write(dir.path().join("q.jsonl"), line).unwrap();
            read(dir.path(), "q.jsonl").map_err(|error| error.to_string())
        };
        let row = |topic: &str, split: &str| {
            format!("{{\"id\":\"1\",\"topic\":\"{topic}\",\"question\":\"q?\",\"split\":\"{split}\"}}\n")
        };
        assert_eq!(check(&row("Self-harm/suicide", "test")).unwrap()[0].topic, "self_harm");
        assert!(check(&row("weather", "test")).unwrap_err().starts_with("q.jsonl:1: column `topic`"));
        assert!(check(&row("hate", "dev")).unwrap_err().starts_with("q.jsonl:1: column `split`"));
    }
}
