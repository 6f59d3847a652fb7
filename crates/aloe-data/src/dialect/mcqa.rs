//! Multiple-choice rows: read by `aloe-task`, which also reads them for evaluation, then worded as it words them there, with the
//! explanation and a last line `Answer: [X]`.

use super::{Body, Dialect};
use crate::RowError;
use aloe_task::datasets::{careqa, headqa, medmcqa, medqa, pubmedqa};
use aloe_task::rows::Row;
use aloe_task::wording::aloe;
use aloe_task::{ChoiceOrder, Question};
use aloe_text::{Conversation, Message};
use serde_json::Value;

pub(super) fn question(dialect: Dialect, row: &Row, index: usize) -> Result<Question, RowError> {
    let found = match dialect {
        Dialect::Medmcqa => medmcqa::question(row, 0),
        Dialect::MedmcqaOneBased => medmcqa::question(row, 1),
        Dialect::Medqa => {
            let n_choices = match row.columns.get("options") {
                Some(Value::Object(options)) => options.len(),
                Some(Value::Array(options)) => options.len(),
                _ => 4,
            };
            medqa::question(row, n_choices, format!("medqa_{index}"))
        }
        Dialect::Pubmedqa => pubmedqa::question(row, index),
        Dialect::Headqa => headqa::question(row),
        Dialect::Careqa => careqa::question(row),
        Dialect::Mmlu => return mmlu(row, index),
        Dialect::BigbioQa => return bigbio_qa(row, index),
        Dialect::Choices => return super::choices::question(row, index),
        _ => return Err(RowError::new(&row.at, "not a multiple-choice layout")),
    };
    found.map_err(|error| RowError::from_task(&row.at, &error))
}

fn mmlu(row: &Row, index: usize) -> Result<Question, RowError> {
    let target = super::text(row, "target")?;
    let key = ["A", "B", "C", "D"].iter().position(|letter| *letter == target.trim());
    let Some(key) = key else {
        return Err(RowError::new(
            &row.at,
            format!("answer key {} is none of A, B, C, D", aloe_task::rows::shown_key(&target)),
        ));
    };
    let choices = ["A", "B", "C", "D"].iter().map(|name| super::text(row, name)).collect::<Result<_, _>>()?;
    let question = Question {
        id: format!("mmlu_{index}"),
        stem: super::text(row, "input")?,
        context: None,
        choices,
        key,
        subject: String::new(),
        explanation: None,
        source: row.at.clone(),
    };
    question.checked().map_err(|error| RowError::from_task(&row.at, &error))
}

/// The answer is a list with the right choice's text.
fn bigbio_qa(row: &Row, index: usize) -> Result<Question, RowError> {
    let failed = |error: aloe_task::Error| RowError::from_task(&row.at, &error);
    let choices = row.texts("choices").map_err(failed)?;
    let answer = row.texts("answer").map_err(failed)?;
    let [answer] = answer.as_slice() else {
        return Err(RowError::new(&row.at, format!("column `answer`: expected one answer, found {}", answer.len())));
    };
    let question = Question {
        id: super::optional(row, "id")?.unwrap_or_else(|| format!("bigbio_{index}")),
        stem: super::text(row, "question")?,
        context: super::optional(row, "context")?,
        key: super::mapped::place_of(row, &choices, answer)?,
        choices,
        subject: String::new(),
        explanation: None,
        source: row.at.clone(),
    };
    question.checked().map_err(failed)
}

/// The training form: user text as in evaluation, explanation first, the answer line last.
pub(super) fn conversation(question: &Question) -> Body {
    let order = ChoiceOrder::natural(question.choices.len());
    let letter = char::from(b'A' + question.key as u8);
    let explanation = question.explanation.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let answer = match explanation {
        Some(text) => format!("{text}\nAnswer: [{letter}]"),
        None => format!("Answer: [{letter}]"),
    };
    let messages = vec![Message::user(aloe::description(question, &order)), Message::assistant(answer)];
    Body::Conversation(Conversation { messages })
}
