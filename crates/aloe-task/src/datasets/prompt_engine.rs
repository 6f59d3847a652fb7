//! prompt_engine's data files, which its adopters have at hand: one object by id, `{question, correct_answer: "A", options: {A: ..},
//! context: [..]}`. Names as in its `datasets/`; its `_val` is our validation split, for MedMCQA a sample of train.

use crate::question::letter;
use crate::rows::{self, Row};
use crate::{Error, Question, Result, Split, Task};
use serde_json::Value;
use std::path::Path;

/// The file of a split in its layout, below the data folder; `None` for a set that it has not.
pub fn file(task: Task, split: Split) -> Option<String> {
    let part = match split {
        Split::Test => "test",
        Split::Validation => "val",
        Split::Train => "train",
        Split::Dev => return None,
    };
    let (folder, name) = match task {
        Task::Medqa4 => ("medqa_4opt", "medqa_4opt".to_owned()),
        Task::Medqa5 => ("medqa_5opt", "medqa_5opt".to_owned()),
        Task::Medmcqa => ("medmcqa", "medmcqa".to_owned()),
        Task::Pubmedqa => ("pubmedqa", "pubmedqa".to_owned()),
        Task::CareqaEn => ("careqa", "careqa".to_owned()),
        Task::Mmlu(subject) => ("mmlu", format!("mmlu_{}", subject.name())),
        _ => return None,
    };
    Some(format!("{folder}/{name}_{part}.json"))
}

/// Loads a split.
pub fn load(data_dir: &Path, file: &str) -> Result<Vec<Question>> {
    rows::read(data_dir, file)?.iter().map(question).collect()
}

/// One entry; its name is the id.
pub fn question(row: &Row) -> Result<Question> {
    let found = row.columns.get("options");
    let options =
        found.and_then(Value::as_object).ok_or_else(|| row.unexpected("options", "options by letter", found))?;
    let mut lettered: Vec<(&String, &Value)> = options.iter().collect();
    lettered.sort_by_key(|(letter, _)| *letter);
    let in_sequence = lettered.iter().enumerate().all(|(i, (key, _))| i < 26 && **key == letter(i).to_string());
    let texts = lettered.iter().map(|(_, text)| text.as_str().map(String::from)).collect::<Option<Vec<_>>>();
    let choices = texts.filter(|_| in_sequence).ok_or_else(|| row.unexpected("options", "options by letter", found))?;
    let answer = row.text("correct_answer")?;
    let key = lettered.iter().position(|(letter, _)| **letter == answer).ok_or_else(|| Error::Key {
        at: row.at.clone(),
        key: rows::shown_key(&answer),
        n_choices: choices.len(),
    })?;
    let context = if row.has("context") { Some(row.texts("context")?.join("\n")) } else { None };
    Question {
        id: row.text("_key")?,
        stem: row.text("question")?,
        context,
        choices,
        key,
        subject: String::new(),
        explanation: None,
        source: row.at.clone(),
    }
    .checked()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<Question>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.json"), json).unwrap();
        load(dir.path(), "x.json")
    }

    #[test]
    fn an_entry_is_a_question_with_its_name_as_id() {
        let found = read(
            r#"{"q7": {"question": "Does it?", "correct_answer": "B", "options": {"A": "yes", "B": "no", "C": "maybe"}, "context": ["x", "y"]}}"#,
        )
        .unwrap();
        let one = &found[0];
        assert_eq!((one.id.as_str(), one.key, one.context.as_deref()), ("q7", 1, Some("x\ny")));
        assert!(one.is_yes_no_maybe());
    }

    #[test]
    fn a_letter_that_no_option_has_is_refused_with_the_entry() {
        let error = read(r#"{"q7": {"question": "?", "correct_answer": "E", "options": {"A": "1", "B": "2"}}}"#);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("x.json#q7") && error.contains("answer key E"), "{error}");
        let error = read(r#"{"q7": {"question": "?", "correct_answer": "B", "options": {"A": "1", "C": "2"}}}"#);
        assert!(error.unwrap_err().to_string().contains("options by letter"));
    }
}
