//! Medprompt's worked examples as a file: prompt_engine's `generations.json`, read and written, so that a database made by either serves the
//! other. An object by id: `{question, correct_answer: "A", options: {A: ..}, context: [..], generations: [{description, response,
//! original_answer, result, order, retries, tokens}]}`. Ours adds to each generation `made`: `self-generated`, or `gold-conditioned` where the
//! writer was told the answer.

use crate::datasets::prompt_engine;
use crate::wording::prompt_engine::description;
use crate::{ChoiceOrder, Error, Question, Result, letter, rows};
use aloe_record::{atomic, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A worked answer to a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worked {
    /// Original option index by shown position.
    pub order: Vec<usize>,
    /// The answer's text.
    pub text: String,
    /// Tokens of prompt and answer, where the engine tells.
    pub n_tokens: Option<(usize, usize)>,
    /// Who wrote it and what it had seen.
    pub made: Made,
}

/// How a worked answer came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Made {
    /// By a model that did not know the answer, kept because it reached it.
    SelfGenerated,
    /// By a model that was told the answer.
    GoldConditioned,
    /// A file does not say.
    NotStated,
}

impl Made {
    /// In words, for results.
    pub fn words(self) -> &'static str {
        match self {
            Self::SelfGenerated => "self-generated",
            Self::GoldConditioned => "gold-conditioned",
            Self::NotStated => "not-stated",
        }
    }
}

/// A question of a pool with its right answers.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The question.
    pub question: &'a Question,
    /// Attempts at it in all.
    pub n_attempts: usize,
    /// Those that reached its key.
    pub right: &'a [Worked],
}

/// Pool questions with the number of attempts at each and its worked answers, in the file's order. Generations that do not end at the right answer are left out, as in
/// prompt_engine's `load_solutions`; a file without a single right one is refused.
pub fn read(path: &Path) -> Result<Vec<(Question, usize, Vec<Worked>)>> {
    let shown = path.display().to_string();
    let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
    let rows = rows::read(folder, &name.to_string_lossy())?;
    let mut found = Vec::new();
    for row in &rows {
        let question = prompt_engine::question(row)?;
        let generations = match row.columns.get("generations") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list.clone(),
            other => return Err(row.unexpected("generations", "a list", other)),
        };
        let mut right = Vec::new();
        for (number, generation) in generations.iter().enumerate() {
            let refuse = |reason: &str| row.refuse(format!("generation {}: {reason}", number + 1));
            right.extend(worked(generation, &question).map_err(|reason| refuse(&reason))?);
        }
        // prompt_engine's files hold every answer that was read, ours the right ones and how many there were.
        let n_attempts = row.columns.get("attempts").and_then(Value::as_u64).map_or(generations.len(), |n| n as usize);
        found.push((question, n_attempts, right));
    }
    if found.iter().all(|(_, _, right)| right.is_empty()) {
        let reason = "holds no generation whose result is the correct answer".to_owned();
        return Err(Error::Row { at: shown, reason });
    }
    Ok(found)
}

/// A generation that reached the key; `None` for another.
fn worked(generation: &Value, question: &Question) -> std::result::Result<Option<Worked>, String> {
    let text = |name: &str| generation.get(name).and_then(Value::as_str);
    let result = text("result").ok_or("`result` is not a letter")?;
    if result != letter(question.key).to_string() {
        return Ok(None);
    }
    let natural: String = (0..question.choices.len()).map(letter).collect();
    let order: Vec<usize> = text("order")
        .unwrap_or(&natural)
        .chars()
        .map(|c| natural.find(c).ok_or(format!("`order` names {c}, which is no option")))
        .collect::<std::result::Result<_, _>>()?;
    if order.len() != question.choices.len() || ChoiceOrder::from_indices(order.clone()).is_none() {
        return Err("`order` is no permutation of the options".to_owned());
    }
    let made = match text("made") {
        Some("self-generated") => Made::SelfGenerated,
        Some("gold-conditioned") => Made::GoldConditioned,
        Some(other) => return Err(format!("`made` is {other:?}, neither self-generated nor gold-conditioned")),
        None => Made::NotStated,
    };
    let response = text("response").ok_or("`response` is not a text")?;
    Ok(Some(Worked { order, text: response.trim().to_owned(), n_tokens: None, made }))
}

/// Writes the pool and its right answers.
pub fn write<'a>(path: &Path, entries: impl Iterator<Item = Entry<'a>>) -> aloe_record::Result<()> {
    let mut written = Map::new();
    for Entry { question, n_attempts, right } in entries.filter(|entry| !entry.right.is_empty()) {
        let lettered = question.choices.iter().enumerate();
        let options: Map<String, Value> = lettered.map(|(i, choice)| (letter(i).to_string(), json!(choice))).collect();
        let generations: Vec<Value> = right.iter().map(|one| generation(question, one)).collect();
        let mut entry = json!({
            "question": question.stem, "correct_answer": letter(question.key).to_string(), "options": options,
        });
        if let Some(context) = &question.context {
            entry["context"] = json!(context.split('\n').collect::<Vec<_>>());
        }
        entry["attempts"] = json!(n_attempts);
        entry["generations"] = Value::from(generations);
        written.insert(question.id.clone(), entry);
    }
    atomic::write_json(path, &written)
}

fn generation(question: &Question, worked: &Worked) -> Value {
    let order = ChoiceOrder::from_indices(worked.order.clone());
    let order = order.unwrap_or_else(|| ChoiceOrder::natural(question.choices.len()));
    let (n_prompt, n_generated) = worked.n_tokens.unwrap_or_default();
    json!({
        "description": description(question, &order), "response": worked.text,
        "original_answer": letter(order.shown(question.key)).to_string(), "result": letter(question.key).to_string(),
        "order": order.letters(), "retries": 1, "tokens": {"prompt": n_prompt, "generated": n_generated},
        "metrics": null, "made": worked.made.words(),
    })
}

/// What of a file decides the answers.
pub fn file_digest(path: &Path) -> aloe_record::Result<String> {
    let bytes = std::fs::read(path).map_err(aloe_record::Error::io("read", path))?;
    Ok(digest::bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question {
            id: "q1".into(),
            stem: "Which nerve?".into(),
            context: Some("a\nb".into()),
            choices: ["Phrenic", "Vagus", "Ulnar"].map(String::from).to_vec(),
            key: 1,
            subject: String::new(),
            explanation: None,
            source: String::new(),
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_has_prompt_engines_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("examples.json");
        let worked = |made| Worked { order: vec![2, 1, 0], text: "It is.\nAnswer: [B]".into(), n_tokens: None, made };
        let right = vec![worked(Made::SelfGenerated), worked(Made::GoldConditioned)];
        let entry = Entry { question: &question(), n_attempts: 5, right: &right };
        write(&path, [entry].into_iter()).unwrap();
        let found = read(&path).unwrap();
        assert_eq!((found[0].0.context.as_deref(), found[0].2.as_slice()), (Some("a\nb"), right.as_slice()));
        assert_eq!(found[0].1, 5);
        let json: Value = atomic::read_json(&path).unwrap();
        let generation = &json["q1"]["generations"][0];
        assert_eq!((generation["order"].as_str(), generation["original_answer"].as_str()), (Some("CBA"), Some("B")));
        let described = "Abstract: a\nb\nQuestion: Which nerve?\nOptions:\nA. Ulnar\nB. Vagus\nC. Phrenic\n";
        assert_eq!(generation["description"].as_str(), Some(described));
    }

    /// The files that prompt_engine's two revisions wrote for the same made-up run (`oracles/prompt_engine.py`).
    #[test]
    fn its_own_generations_are_read_and_right_ones_only() {
        let golden: Value =
            serde_json::from_str(include_str!("../../aloe-eval/tests/golden/prompt_engine_generations.json")).unwrap();
        for (revision, content) in golden["files"].as_object().unwrap() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("generations.json");
            atomic::write_json(&path, content).unwrap();
            let found = read(&path).unwrap();
            assert_eq!(found.len(), content.as_object().unwrap().len(), "{revision}");
            for ((question, _, right), entry) in found.iter().zip(content.as_object().unwrap().values()) {
                let generations = entry["generations"].as_array().into_iter().flatten();
                let expected: Vec<&Value> =
                    generations.filter(|one| one["result"] == entry["correct_answer"]).collect();
                assert_eq!(right.len(), expected.len(), "{revision} {}", question.id);
                for (one, generation) in right.iter().zip(expected) {
                    let order = ChoiceOrder::from_indices(one.order.clone()).unwrap();
                    assert_eq!(description(question, &order), generation["description"].as_str().unwrap());
                }
            }
        }
    }

    fn refused(json: &str, part: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generations.json");
        std::fs::write(&path, json).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("generations.json") && error.contains(part), "{error}");
    }

    /// The form of prompt_engine's shipped databases: no `order`, no `description`, no label; wrong generations among the right.
    #[test]
    fn a_database_without_orders_is_read_and_wrong_generations_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generations.json");
        let generations = r#"[{"response": " so\nAnswer: [A]", "result": "A"}, {"response": "no", "result": "B"}]"#;
        let entry = r#"{"question": "Q", "correct_answer": "A", "options": {"A": "1", "B": "2"}, "generations": "#;
        std::fs::write(&path, format!("{{\"7\": {entry}{generations}}}, \"8\": {entry}[]}}}}")).unwrap();
        let found = read(&path).unwrap();
        let expected =
            Worked { order: vec![0, 1], text: "so\nAnswer: [A]".into(), n_tokens: None, made: Made::NotStated };
        assert_eq!((&found[0].2, found[1].2.len(), found[0].1), (&vec![expected], 0, 2));
        refused(&format!("{{\"8\": {entry}[]}}}}"), "no generation whose result");
        let bad = r#"[{"response": "x", "result": "A", "order": "AA"}]"#;
        refused(&format!("{{\"8\": {entry}{bad}}}}}"), "generation 1: `order` is no permutation");
        let label = r#"[{"response": "x", "result": "A", "made": "by hand"}]"#;
        refused(&format!("{{\"8\": {entry}{label}}}}}"), "#8");
    }
}
