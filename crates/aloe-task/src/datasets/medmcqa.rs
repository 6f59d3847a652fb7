//! MedMCQA (Pal et al. 2022), and the starter set's questions, which have the same columns.
//!
//! Columns `id, question, opa..opd, cop, choice_type, exp, subject_name, topic_name`. In the Hugging Face files `cop` is
//! 0-based; in the original `dev.json`/`train.json` it is 1-based: the file name decides, and a key outside either range is
//! an error. The test split has no public key (`cop` -1), so the validation split is what everyone reports.
//! Selection uses a held-out tenth of train (every row whose number ends in 9), which the train split then lacks.

use crate::rows::{self, Row};
use crate::{Error, Question, Result, Split, Task};
use std::path::Path;

/// The file of a split, below the data folder. `Test` is the published validation split.
pub fn file(data_dir: &Path, split: Split) -> Result<String> {
    let (split, names): (_, &[&str]) = match split {
        Split::Test => (split, &["validation-00000-of-00001.parquet", "validation.jsonl", "dev.json"]),
        Split::Train | Split::Validation => {
            let names = &["train-00000-of-00001.parquet", "train.jsonl", "train_sample.jsonl", "train.json"];
            (Split::Train, names)
        }
        Split::Dev => return Err(Task::Medmcqa.no_split(split, "examples come from the train split")),
    };
    let candidates: Vec<String> = names.iter().map(|name| format!("medmcqa/{name}")).collect();
    Task::Medmcqa.find(data_dir, split, &candidates)
}

/// Loads a split from its file.
pub fn load(data_dir: &Path, split: Split, file: &str) -> Result<Vec<Question>> {
    let questions = load_file(data_dir, file)?;
    Ok(match split {
        Split::Train => train_part(questions, |index| index % 10 != 9),
        Split::Validation => train_part(questions, |index| index % 10 == 9),
        Split::Test | Split::Dev => questions,
    })
}

/// All train questions: lm-evaluation-harness's pool of examples.
pub fn load_whole_train(data_dir: &Path) -> Result<Vec<Question>> {
    load_file(data_dir, &file(data_dir, Split::Train)?)
}

/// The file of a split of the starter set: `starter_mcqa_{train,dev,test}.jsonl`.
pub fn starter_file(data_dir: &Path, split: Split) -> Result<String> {
    let name = match split {
        Split::Train => "train",
        Split::Validation => "dev",
        Split::Test => "test",
        Split::Dev => return Err(Task::StarterMcqa.no_split(split, "examples come from the train split")),
    };
    let file = format!("starter_mcqa_{name}.jsonl");
    let candidates = [format!("mcqa/{file}"), format!("starter/mcqa/{file}"), file];
    Task::StarterMcqa.find(data_dir, split, &candidates)
}

/// Loads a split of the starter set from its file.
pub fn load_starter(data_dir: &Path, file: &str) -> Result<Vec<Question>> {
    read(data_dir, file, 0)
}

fn train_part(questions: Vec<Question>, keep: impl Fn(usize) -> bool) -> Vec<Question> {
    questions.into_iter().enumerate().filter(|(index, _)| keep(*index)).map(|(_, question)| question).collect()
}

fn load_file(data_dir: &Path, file: &str) -> Result<Vec<Question>> {
    let rows = rows::read(data_dir, file)?;
    let first_key = first_key(&rows, file)?;
    rows.iter().map(|row| question(row, first_key)).collect()
}

/// The number of option A, as the keys of the whole file tell: 0 is found only in the Hub's columns, 4 only in the original files. A
/// file with neither, which must be a small cut, is taken for what its published name says.
fn first_key(rows: &[Row], file: &str) -> Result<i64> {
    let has = |key: i64| rows.iter().any(|row| row.integer("cop").is_ok_and(|cop| cop == key));
    match (has(0) || has(-1), has(4)) {
        (true, true) => {
            let reason = "column `cop` holds both 0 and 4, so that its first option is neither 0 nor 1";
            Err(Error::Row { at: file.into(), reason: reason.into() })
        }
        (true, false) => Ok(0),
        (false, true) => Ok(1),
        (false, false) => Ok(i64::from(file.ends_with("dev.json") || file.ends_with("train.json"))),
    }
}

fn read(data_dir: &Path, file: &str, first_key: i64) -> Result<Vec<Question>> {
    rows::read(data_dir, file)?.iter().map(|row| question(row, first_key)).collect()
}

/// One row; `first_key` is the number of option A (0 in the Hugging Face columns, 1 in the original files).
pub fn question(row: &Row, first_key: i64) -> Result<Question> {
    let choices = ["opa", "opb", "opc", "opd"].iter().map(|name| row.text(name)).collect::<Result<Vec<_>>>()?;
    let cop = row.integer("cop")?;
    if cop == -1 {
        return Err(row.refuse("column `cop` is -1: this split's key is not public; use the validation split"));
    }
    let key = usize::try_from(cop - first_key).ok().filter(|key| *key < 4).ok_or_else(|| Error::Key {
        at: row.at.clone(),
        key: format!("{} (the first option is {first_key})", rows::shown_number(cop)),
        n_choices: 4,
    })?;
    Question {
        id: row.text("id")?,
        stem: row.text("question")?,
        context: None,
        choices,
        key,
        subject: row.optional_text("subject_name")?.unwrap_or_default(),
        explanation: row.optional_text("exp")?,
        source: row.at.clone(),
    }
    .checked()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_file_and_not_its_name_tell_where_they_count_from() {
        let first = |keys: &[i64], file: &str| {
            let row = |key: &i64| Row {
                columns: serde_json::Map::from_iter([("cop".to_owned(), (*key).into())]),
                at: String::new(),
            };
            first_key(&keys.iter().map(row).collect::<Vec<_>>(), file).map_err(|error| error.to_string())
        };
        assert_eq!(first(&[1, 4], "medmcqa/other.jsonl"), Ok(1));
        assert_eq!(first(&[1, 0], "medmcqa/dev.json"), Ok(0));
        assert_eq!((first(&[2], "dev.json"), first(&[2], "validation.jsonl")), (Ok(1), Ok(0)));
        assert!(first(&[0, 4], "dev.json").unwrap_err().contains("both 0 and 4"));
    }
}
