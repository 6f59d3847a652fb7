//! Columns of rows that say something and that their layout does not read: a rationale in a column of another name trains nobody, and a
//! user hears of it here alone. They are gathered over all rows of a file, on any number of threads.

use super::{Dialect, is_filled, own_line};
use crate::{SourceConfig, licence};
use aloe_task::datasets::medqa;
use aloe_task::rows::{Row, shown_name};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// What every layout may say, and what is said of a synthetic row.
const ANY: [&str; 15] = [
    "stage",
    "style",
    "question_id",
    "made",
    "subject",
    "task",
    "chosen_rating",
    "rejected_rating",
    "_key",
    "split",
    "title",
    "attempts",
    "support",
    "blind_reader",
    "betrays",
];

/// A text of so many words is a sentence that may have been meant for training.
const N_WORDS: usize = 8;

/// What a layout reads, and what its publishers say about a row beside its text; `None` of rows that are read as a whole file.
fn known(dialect: Dialect) -> Option<&'static [&'static str]> {
    Some(match dialect {
        Dialect::Alpaca => &["instruction", "input", "output", "system", "history"],
        Dialect::Instances => &["instruction", "instances"],
        Dialect::Sharegpt => &["conversations", "conversation", "system"],
        Dialect::Messages => &["messages", "system"],
        Dialect::QuestionResponse | Dialect::Medquad => {
            &["question", "prompt", "response", "answer", "completion", "context", "system", "system_prompt"]
        }
        Dialect::Dpo | Dialect::DpoMix | Dialect::HhRlhf => &["prompt", "chosen", "rejected"],
        Dialect::SharegptRanking => &["conversations", "chosen", "rejected", "system"],
        Dialect::QuestionPairs => &[
            "question",
            "instruction",
            "input",
            "system",
            "chosen",
            "rejected",
            "chosen_response",
            "rejected_response",
            "history",
        ],
        Dialect::HelpSteer => {
            &["prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"]
        }
        Dialect::MedSafetyBench => &["harmful_medical_request", "safe_response"],
        Dialect::Medmcqa | Dialect::MedmcqaOneBased => {
            &["id", "question", "opa", "opb", "opc", "opd", "cop", "exp", "subject_name", "topic_name", "choice_type"]
        }
        Dialect::Medqa => &[
            "id",
            "question",
            "options",
            "answer",
            "answer_idx",
            "meta_info",
            "metamap_phrases",
            "sent1",
            "sent2",
            "ending0",
            "ending1",
            "ending2",
            "ending3",
            "label",
        ],
        Dialect::BigbioQa => &["id", "document_id", "question", "type", "choices", "context", "answer"],
        Dialect::Choices => &[
            "id",
            "question",
            "choices",
            "options",
            "A",
            "B",
            "C",
            "D",
            "E",
            "F",
            "G",
            "H",
            "answer",
            "context",
            "explanation",
        ],
        Dialect::Pubmedqa => &[
            "QUESTION",
            "CONTEXTS",
            "LABELS",
            "MESHES",
            "YEAR",
            "reasoning_required_pred",
            "reasoning_free_pred",
            "final_decision",
            "LONG_ANSWER",
            "question",
            "context",
            "long_answer",
            "pubid",
            "id",
        ],
        Dialect::Headqa => &["qid", "qtext", "answers", "ra", "name", "year", "category"],
        Dialect::Careqa => &["exam_id", "unique_id", "question", "op1", "op2", "op3", "op4", "cop", "year", "category"],
        Dialect::Mmlu => &["input", "A", "B", "C", "D", "target"],
        Dialect::Mapped => &[],
        Dialect::RedTeam | Dialect::RedTeamAttempts | Dialect::RedTeamSamples => return None,
    })
}

/// A row's columns that say something and are not read.
fn unused<'a>(
    dialect: Dialect,
    row: &'a Row,
    config: &'a SourceConfig,
) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
    let rationale = if dialect == Dialect::Medqa { medqa::explanation_column(row) } else { None };
    let (own, licence) = (own_line::is(row), own_line::licence_column(row));
    let known = known(dialect);
    let is_read = move |name: &str| {
        known.is_none_or(|known| known.contains(&name))
            || ANY.contains(&name)
            || [rationale, licence].contains(&Some(name))
            || (own && own_line::COLUMNS.contains(&name))
            || config.columns.values().any(|column| column == name)
    };
    let unread = row.columns.iter().filter(move |(name, _)| !is_read(name) && is_filled(row, name));
    unread.map(|(name, value)| (name.as_str(), value))
}

/// Whether it is more than a few words or a number.
fn is_sentence(value: &Value) -> bool {
    match value {
        Value::String(text) => text.split_whitespace().nth(N_WORDS - 1).is_some(),
        Value::Array(parts) => parts.iter().any(|part| part.is_object() || is_sentence(part)),
        Value::Object(parts) => parts.values().any(is_sentence),
        _ => false,
    }
}

/// Whether a row says a licence that the table does not know: it goes under its source's, which somebody must look at.
fn is_unknown_licence(name: &str, value: &Value) -> bool {
    ["licence", "license"].contains(&name)
        && value.as_str().is_some_and(|said| !said.trim().is_empty() && !licence::is_unstated(said))
}

/// The unread columns of a file's rows, by name as written.
#[derive(Debug, Default)]
pub(crate) struct Unused(RwLock<BTreeMap<String, bool>>);

impl Unused {
    /// Adds those of a row. The columns are the same for most rows, so that nothing is written for them, and no text is split where a sentence
    /// was seen in its column.
    pub(crate) fn note(&self, dialect: Dialect, row: &Row, config: &SourceConfig) {
        for (name, value) in unused(dialect, row, config) {
            let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
            if known == Some(true) {
                continue;
            }
            let is_sentence = is_sentence(value) || is_unknown_licence(name, value);
            if is_sentence || known.is_none() {
                let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
                *all.entry(name.to_owned()).or_default() |= is_sentence;
            }
        }
    }

    /// By name, as it may be shown; whether a row holds a sentence there.
    pub(crate) fn into_columns(self) -> BTreeMap<String, bool> {
        let mut shown: BTreeMap<String, bool> = BTreeMap::new();
        for (name, is_sentence) in self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            *shown.entry(shown_name(&name)).or_default() |= is_sentence;
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(rows: &[Value]) -> Vec<(String, bool)> {
        let config: SourceConfig = serde_json::from_value(json!({"name": "s", "path": "x", "licence": "MIT"})).unwrap();
        let unused = Unused::default();
        for value in rows {
            let row = Row { columns: value.as_object().unwrap().clone(), at: "f.jsonl:3".into() };
            unused.note(Dialect::detect(&row).unwrap(), &row, &config);
        }
        unused.into_columns().into_iter().collect()
    }

    fn named(found: &[(String, bool)]) -> Vec<(&str, bool)> {
        found.iter().map(|(name, is_sentence)| (name.as_str(), *is_sentence)).collect()
    }

    #[test]
    fn columns_of_any_row_that_say_something_and_are_not_read_are_named() {
        let long = "Since the vessel is blocked, blood backs up into the lungs.";
        let rows = [
            json!({"question": "Q", "answer": "A", "note": "", "id": 7, "context": "C"}),
            json!({"question": "Q", "answer": "A", "reasoning": "Short.", "a name with spaces": "x"}),
            json!({"question": "Q", "answer": "A", "reasoning": long}),
            json!({"question": "Q", "answer": "A", "license": "proprietary"}),
            json!({"question": "Q", "answer": "A", "licence": "unknown"}),
            json!({"question": "Q", "answer": "A", "licence": "MIT License"}),
        ];
        let expected = [
            ("(a name of 18 characters)", false),
            ("id", false),
            ("licence", false),
            ("license", true),
            ("reasoning", true),
        ];
        assert_eq!(named(&check(&rows)), expected);
    }

    /// MMedBench's row and two of other copies: the rationale is read once, what else explains is named.
    #[test]
    fn multiple_choice_layouts_name_what_they_do_not_read_but_not_what_their_set_always_has() {
        let medqa = |more: Value| {
            let mut row = json!({"question": "Q?", "options": {"A": "w", "B": "x"}, "answer_idx": "A", "answer": "w", "meta_info": "step1"});
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            row
        };
        assert_eq!(check(&[medqa(json!({"rationale": "R", "metamap_phrases": ["q"]}))]), []);
        let both = medqa(json!({"rationale": "R", "explanation": "one two three four five six seven eight"}));
        assert_eq!(named(&check(&[both])), [("explanation", true)]);
        let medmcqa = json!({"id": "1", "question": "Q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 0, "exp": "E",
            "choice_type": "single", "subject_name": "s", "topic_name": "t", "review": "by nobody"});
        assert_eq!(named(&check(&[medmcqa])), [("review", false)]);
    }
}
