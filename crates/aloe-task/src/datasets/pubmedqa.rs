//! PubMedQA, expert-labelled (Jin et al. 2019), and the starter set's questions in the same layout.
//!
//! Layouts: the original dictionary by PMID (`QUESTION, CONTEXTS, .., final_decision, LONG_ANSWER`), the same rows as JSON
//! lines, qiaojin/PubMedQA's columns (`pubid, question, context{contexts}, final_decision, long_answer`), and bigbio's Parquet files,
//! which are split already and have the original columns.
//! A row belongs to the reported test set if and only if its PMID is in `test_ground_truth.json`.

use crate::rows::{self, Row};
use crate::{Error, Question, Result, Split, Task};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;

/// bigbio/pubmed_qa's folder of the split that lm-evaluation-harness takes.
const BIGBIO: &str = "pubmed_qa_labeled_fold0_source";

/// The ids of the test questions.
const TEST_IDS: &str = "pubmedqa/test_ground_truth.json";

/// The files of a split, below the data folder: its questions', and of a file of all labelled ones that of the test's ids.
pub fn files(data_dir: &Path, split: Split) -> Result<Vec<String>> {
    let names: &[&str] = match split {
        Split::Test => &["test_set.json", "ori_pqal.json", "pqa_labeled/train-00000-of-00001.parquet"],
        Split::Train => &["pqal_fold0/train_set.json"],
        Split::Validation => &["pqal_fold0/dev_set.json"],
        Split::Dev => return Err(Task::Pubmedqa.no_split(split, "examples come from the train split")),
    };
    let mut candidates: Vec<String> = names.iter().map(|name| format!("pubmedqa/{name}")).collect();
    let whole = format!("pubmedqa/{BIGBIO}/{}-00000-of-00001.parquet", split.name());
    candidates.push(whole.clone());
    let file = Task::Pubmedqa.find(data_dir, split, &candidates)?;
    let ids = (split == Split::Test && file != whole).then(|| TEST_IDS.to_owned());
    Ok([file].into_iter().chain(ids).collect())
}

/// Loads a split from its files: test by PMID, train and validation from fold 0.
pub fn load(data_dir: &Path, files: &[String]) -> Result<Vec<Question>> {
    let (file, ids) = (&files[0], files.get(1));
    let questions = read(data_dir, file)?;
    let Some(ids) = ids else { return Ok(questions) };
    let test_ids = test_ids(data_dir, ids)?;
    let tested: Vec<Question> = questions.into_iter().filter(|question| test_ids.contains(&question.id)).collect();
    if tested.is_empty() { Err(Error::Empty { path: format!("{file}, test rows") }) } else { Ok(tested) }
}

/// The file of a split of the starter set: `starter_pubmedqa_{train,dev,test}.jsonl`.
pub fn starter_file(data_dir: &Path, split: Split) -> Result<String> {
    let name = match split {
        Split::Train => "train",
        Split::Validation => "dev",
        Split::Test => "test",
        Split::Dev => return Err(Task::StarterPubmedqa.no_split(split, "examples come from the train split")),
    };
    let file = format!("starter_pubmedqa_{name}.jsonl");
    let candidates = [format!("mcqa/{file}"), format!("starter/mcqa/{file}"), file];
    Task::StarterPubmedqa.find(data_dir, split, &candidates)
}

/// Loads a split of the starter set from its file.
pub fn load_starter(data_dir: &Path, file: &str) -> Result<Vec<Question>> {
    read(data_dir, file)
}

fn test_ids(data_dir: &Path, file: &str) -> Result<HashSet<String>> {
    let text =
        std::fs::read_to_string(data_dir.join(file)).map_err(|source| Error::Io { path: file.into(), source })?;
    let map: serde_json::Map<String, Value> = serde_json::from_str(&text).map_err(|error| Error::Row {
        at: format!("{file}:{}:{}", error.line(), error.column()),
        reason: error.to_string(),
    })?;
    Ok(map.into_iter().map(|(pmid, _)| pmid).collect())
}

fn read(data_dir: &Path, file: &str) -> Result<Vec<Question>> {
    rows::read(data_dir, file)?.iter().enumerate().map(|(index, row)| question(row, index)).collect()
}

/// One row; `index` names rows that have no PMID.
pub fn question(row: &Row, index: usize) -> Result<Question> {
    let original = row.has("QUESTION");
    let (question, decision, long) = if original {
        ("QUESTION", "final_decision", "LONG_ANSWER")
    } else {
        ("question", "final_decision", "long_answer")
    };
    let contexts = if original { row.texts("CONTEXTS")? } else { nested_contexts(row)? };
    let answer = row.text(decision)?;
    let choices: Vec<String> = ["yes", "no", "maybe"].map(String::from).to_vec();
    let key = choices
        .iter()
        .position(|choice| *choice == answer)
        .ok_or_else(|| row.unexpected(decision, "yes, no or maybe", row.columns.get(decision)))?;
    Question {
        id: id(row, index)?,
        stem: row.text(question)?,
        context: Some(contexts.join("\n")),
        choices,
        key,
        subject: String::new(),
        explanation: row.optional_text(long)?,
        source: row.at.clone(),
    }
    .checked()
}

fn id(row: &Row, index: usize) -> Result<String> {
    if row.has("pubid") {
        return Ok(row.integer("pubid")?.to_string());
    }
    for name in ["_key", "id", "PMID"] {
        if let Some(text) = row.optional_text(name)? {
            return Ok(text);
        }
    }
    Ok(format!("pubmedqa_{index}"))
}

fn nested_contexts(row: &Row) -> Result<Vec<String>> {
    let found = row.columns.get("context");
    found
        .and_then(|context| context.get("contexts"))
        .and_then(Value::as_array)
        .and_then(|list| list.iter().map(|item| item.as_str().map(String::from)).collect::<Option<Vec<_>>>())
        .ok_or_else(|| row.unexpected("context", "an object with a list `contexts`", found))
}
