//! What of an evaluation row is compared with training rows: its question, and its options where it has some. No answer key is
//! needed, so that sets without public keys are read too, and sets of prompts alone.
//!
//! Refuses rows in which no column is known to hold a question.

use crate::dialect::{self, Dialect};
use crate::{RowError, SourceConfig};
use aloe_task::rows::{Row, shown_name};
use aloe_text::Role;
use serde_json::Value;

/// One text to look for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) stem: String,
    /// An abstract or passage, which counts as well.
    pub(crate) context: Option<String>,
    pub(crate) options: Vec<String>,
}

impl Held {
    /// The same with every text changed by `change`.
    pub(crate) fn map(&self, change: impl Fn(&str) -> String) -> Held {
        let options = self.options.iter().map(|option| change(option)).collect();
        Held { stem: change(&self.stem), context: self.context.as_deref().map(&change), options }
    }
}

/// Columns of one text each, of which the first that a row has is its question: HH's `transcript`, AdvBench's `goal`, Chen et al.,
/// HarmBench, ETHICS, and lines of a text file.
const SINGLE: [&str; 16] = [
    "question",
    "QUESTION",
    "prompt",
    "goal",
    "harmful_medical_request",
    "harmful_prompt",
    "behavior",
    "Behavior",
    "query",
    "scenario",
    "transcript",
    "input",
    "text",
    "sentence",
    "instruction",
    "sent1",
];

/// Columns that stand side by side: CrowS-Pairs, and files without a header.
const DOUBLE: [[&str; 2]; 2] = [["sent_more", "sent_less"], ["column_1", "column_2"]];

/// The texts of a row; `index` is its number in the file.
pub(crate) fn texts(row: &Row, index: usize) -> Result<Vec<Held>, RowError> {
    let found = Dialect::detect(row).ok();
    let held = match found {
        Some(dialect) if dialect.is_mcqa() && dialect != Dialect::Medmcqa => {
            match dialect::question(dialect, row, index) {
                Ok(question) => {
                    let options = if question.is_yes_no_maybe() { Vec::new() } else { question.choices };
                    vec![Held { stem: question.stem, context: question.context, options }]
                }
                // Its key may be hidden; what it asks is there all the same.
                Err(error) => by_columns(row).ok_or(error)?,
            }
        }
        Some(Dialect::Alpaca | Dialect::Instances) => by_messages(found, row)?,
        _ => match by_columns(row) {
            Some(held) => held,
            None => by_messages(found, row)?,
        },
    };
    if held.iter().all(|held| held.stem.trim().is_empty()) {
        return Err(RowError::new(&row.at, "the question text is empty"));
    }
    Ok(held)
}

fn text<'a>(row: &'a Row, column: &str) -> Option<&'a str> {
    row.columns.get(column).and_then(Value::as_str)
}

fn by_columns(row: &Row) -> Option<Vec<Held>> {
    if let Some([first, second]) = DOUBLE.iter().find_map(|[a, b]| Some([text(row, a)?, text(row, b)?])) {
        return Some([first, second].map(|stem| Held { stem: stem.into(), ..Held::default() }).to_vec());
    }
    let stem = ["qtext"].iter().chain(&SINGLE).find_map(|column| text(row, column))?.to_owned();
    let options = options(row);
    let context = match row.columns.get("context").or_else(|| row.columns.get("CONTEXTS")) {
        // BBQ's question says nothing without its scene.
        Some(Value::String(scene)) if row.has("ans0") => {
            return Some(vec![Held { stem: format!("{scene} {stem}"), context: None, options }]);
        }
        Some(Value::String(context)) => Some(context.clone()),
        Some(Value::Object(context)) => context.get("contexts").and_then(joined),
        Some(list) => joined(list),
        None => None,
    };
    Some(vec![Held { stem, context: context.filter(|text| !text.is_empty()), options }])
}

fn joined(list: &Value) -> Option<String> {
    let texts: Vec<&str> = list.as_array()?.iter().filter_map(Value::as_str).collect();
    Some(texts.join("\n"))
}

/// Options in any of the known layouts; none where there are none.
fn options(row: &Row) -> Vec<String> {
    let columns: [&[&str]; 6] = [
        &["opa", "opb", "opc", "opd"],
        &["op1", "op2", "op3", "op4"],
        &["ending0", "ending1", "ending2", "ending3"],
        &["A", "B", "C", "D"],
        &["ans0", "ans1", "ans2"],
        &["choice_a", "choice_b", "choice_c", "choice_d"],
    ];
    let by_name: Option<Vec<String>> =
        columns.iter().find_map(|names| names.iter().map(|name| text(row, name).map(String::from)).collect());
    by_name.unwrap_or_else(|| {
        let one = |value: &Value| {
            let inside = ["value", "atext", "text"].iter().find_map(|name| value.get(*name));
            inside.unwrap_or(value).as_str().map(String::from)
        };
        match ["options", "choices", "answers"].iter().find_map(|name| row.columns.get(*name)) {
            Some(Value::Object(by_letter)) => by_letter.values().filter_map(one).collect(),
            Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
            _ => Vec::new(),
        }
    })
}

/// What users say in a conversation or a pair.
fn by_messages(dialect: Option<Dialect>, row: &Row) -> Result<Vec<Held>, RowError> {
    let Some(dialect) = dialect.filter(|dialect| !dialect.is_by_file()) else {
        let names: Vec<String> = row.columns.keys().map(|name| shown_name(name)).take(12).collect();
        let known = SINGLE.join(", ");
        let reason = format!("no question to decontaminate against: looked for {known}, found {}", names.join(", "));
        return Err(RowError::new(&row.at, reason));
    };
    if dialect == Dialect::HhRlhf {
        // Sides that differ before their last message are no pair; what is asked in them is there all the same.
        let asked = dialect::asked_in_transcripts(row)?;
        return Ok(asked.into_iter().map(|stem| Held { stem, ..Held::default() }).collect());
    }
    let config = SourceConfig::plain();
    let item = dialect::item(dialect, row, 0, String::new(), &config)?;
    let asked = item.messages().into_iter().filter(|message| message.role == Role::User);
    Ok(asked.map(|message| Held { stem: message.content.clone(), ..Held::default() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: Value) -> Vec<(String, String)> {
        let row = Row { columns: value.as_object().unwrap().clone(), at: "f:1".into() };
        let held = texts(&row, 0).unwrap();
        held.into_iter().map(|held| (held.stem, held.options.join("|"))).collect()
    }

    #[test]
    fn a_question_is_found_in_every_published_layout_with_or_without_its_key() {
        let cases = [
            (json!({"goal": "Q", "target": "Sure"}), "Q", ""),
            (json!({"prompt": "Q", "intents": ["x"]}), "Q", ""),
            (json!({"prompt": "Q"}), "Q", ""),
            (json!({"id": "1", "prompt": "Q", "type": "t", "label": "safe"}), "Q", ""),
            (json!({"id": "1", "question": "Q", "correct_answer": "x"}), "Q", ""),
            (json!({"Behavior": "Q", "SemanticCategory": "s"}), "Q", ""),
            (json!({"source": "s", "harmful_prompt": "Q", "jailbreak_output": "x"}), "Q", ""),
            (
                json!({"id": "1", "question": "Q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": -1}),
                "Q",
                "w|x|y|z",
            ),
            (json!({"id": "1", "question": "Q", "opa": "w", "opb": "x", "opc": "y", "opd": "z"}), "Q", "w|x|y|z"),
            (json!({"question": "Q", "options": {"A": "w", "B": "x"}, "answer_idx": "Z"}), "Q", "w|x"),
            (json!({"question": "Q", "options": [{"key": "A", "value": "w"}, {"key": "B", "value": "x"}]}), "Q", "w|x"),
            (json!({"question": "Q", "choices": ["w", "x"], "answer": ["w"], "type": "multiple_choice"}), "Q", "w|x"),
            (
                json!({"sent1": "Q", "sent2": "", "ending0": "w", "ending1": "x", "ending2": "y", "ending3": "z"}),
                "Q",
                "w|x|y|z",
            ),
            (json!({"question": "Q", "context": "Scene.", "ans0": "w", "ans1": "x", "ans2": "y"}), "Scene. Q", "w|x|y"),
            (json!({"QUESTION": "Q", "CONTEXTS": ["c"], "LONG_ANSWER": "x"}), "Q", ""),
            (json!({"label": "1", "scenario": "Q", "excuse": "x"}), "Q", ""),
            (json!({"text": "Q"}), "Q", ""),
            (json!({"instruction": "Q", "input": "", "output": "A"}), "Q", ""),
            (json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}), "Q", ""),
            (json!({"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}), "Q", ""),
        ];
        for (value, stem, options) in cases {
            assert_eq!(check(value.clone()), [(stem.to_owned(), options.to_owned())], "{value}");
        }
        assert_eq!(check(json!({"sent_more": "P", "sent_less": "Q"})).len(), 2);
        let no_pair = json!({"chosen": "\n\nHuman: Q\n\nAssistant: a\n\nHuman: R\n\nAssistant: b", "rejected": "\n\nHuman: Q\n\nAssistant: c"});
        assert_eq!(check(no_pair), [("Q".to_owned(), String::new()), ("R".to_owned(), String::new())]);
    }

    #[test]
    fn a_row_without_a_question_is_refused_with_its_columns() {
        let row = Row { columns: json!({"frage": "Q"}).as_object().unwrap().clone(), at: "f:1".into() };
        assert!(texts(&row, 0).unwrap_err().to_string().ends_with("found frage"));
        let empty = Row { columns: json!({"question": " "}).as_object().unwrap().clone(), at: "f:1".into() };
        assert_eq!(texts(&empty, 0).unwrap_err().to_string(), "f:1: the question text is empty");
    }
}
