//! Which evaluation questions a training set holds: the marks by which an evaluation scores clean and dirty questions apart. The same four
//! tests as decontamination (`decontaminate`), looked at from the question's side.

use crate::decontaminate::{Evidence, Index};
use crate::item::{Body, Item, Place};
use crate::{Error, Result, parallel};
use aloe_record::{Cancel, Progress};
use aloe_task::Question;
use aloe_text::{Conversation, Message, Pair};
use serde::{Deserialize, Serialize};
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A training row that holds an evaluation question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trained {
    /// `folder/train.jsonl:line`, its last two parts.
    pub row_at: String,
    /// Why.
    #[serde(flatten)]
    pub evidence: Evidence,
}

/// Rows that are compared at once.
const N_BLOCK: usize = 1 << 12;

#[derive(Deserialize)]
#[serde(untagged)]
enum Row {
    Conversation { messages: Vec<Message> },
    Pair { prompt: Vec<Message>, chosen: Vec<Message>, rejected: Vec<Message> },
}

/// For each question the first training row that holds it; a row may hold several. `files` are `train.jsonl` of data stages: rows of `messages`, or of `prompt`,
/// `chosen` and `rejected`.
pub fn trained_on(
    questions: &[Question],
    files: &[PathBuf],
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<Option<Trained>>> {
    let index = Index::of(questions);
    let mut found: Vec<Option<Trained>> = questions.iter().map(|_| None).collect();
    for path in files {
        let mut rows = Rows::open(path)?;
        loop {
            cancel.check()?;
            let items = rows.block()?;
            if items.is_empty() {
                break;
            }
            let held = parallel::map(n_threads, &items, |item| index.trained(item));
            for (item, hits) in items.iter().zip(held) {
                for (at, evidence) in hits {
                    found[at].get_or_insert_with(|| Trained { row_at: item.id.clone(), evidence });
                }
            }
            progress.advance(items.len() as u64);
        }
    }
    Ok(found)
}

/// The rows of a file, some at a time.
struct Rows {
    lines: std::io::Lines<std::io::BufReader<std::fs::File>>,
    path: PathBuf,
    n_read: usize,
}

impl Rows {
    fn open(path: &Path) -> Result<Self> {
        let read = |source| Error::Io { action: "read", path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(read)?;
        Ok(Self { lines: std::io::BufReader::new(file).lines(), path: path.to_owned(), n_read: 0 })
    }

    fn block(&mut self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        while items.len() < N_BLOCK {
            let Some(line) = self.lines.next() else { break };
            let line = line.map_err(|source| Error::Io { action: "read", path: self.path.clone(), source })?;
            self.n_read += 1;
            if !line.trim().is_empty() {
                items.push(self.item(&line)?);
            }
        }
        Ok(items)
    }

    fn item(&self, line: &str) -> Result<Item> {
        let at = format!("{}:{}", self.path.display(), self.n_read);
        let row: Row = serde_json::from_str(line).map_err(|_| Error::TrainingRow { at: at.clone() })?;
        let body = match row {
            Row::Conversation { messages } => Body::Conversation(Conversation { messages }),
            Row::Pair { prompt, chosen, rejected } => Body::Pair(Box::new(Pair { prompt, chosen, rejected })),
        };
        Ok(Item {
            id: crate::decontaminate::last_two(&at),
            at: Place::of(&at),
            source: 0,
            about: Arc::default(),
            question: None,
            rare: None,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(stem: &str, choices: [&str; 4]) -> Question {
        Question {
            id: stem.into(),
            stem: stem.into(),
            context: None,
            choices: choices.map(String::from).to_vec(),
            key: 0,
            subject: String::new(),
            explanation: None,
            source: "f:1".into(),
        }
    }

    /// The options in another order, the whole question in a pair's prompt, and a question that only shares its topic.
    #[test]
    fn a_question_is_marked_when_a_row_or_a_pair_holds_it_and_not_when_the_topic_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [
            r#"{"messages": [{"role": "user", "content": "Which cranial nerve supplies the superior oblique muscle of the eye?\nA. Optic\nB. Abducens\nC. Trochlear\nD. Facial"}, {"role": "assistant", "content": "C"}]}"#,
            r#"{"messages": [{"role": "user", "content": "What does metformin do?"}, {"role": "assistant", "content": "It lowers glucose output of the liver."}]}"#,
        ];
        let pair = r#"{"prompt": [{"role": "user", "content": "Which organ makes the hormone glucagon in adults?"}], "chosen": [{"role": "assistant", "content": "The pancreas."}], "rejected": [{"role": "assistant", "content": "x"}]}"#;
        let (sft, pairs) = (dir.path().join("sft.jsonl"), dir.path().join("pairs.jsonl"));
        std::fs::write(&sft, rows.join("\n")).unwrap();
        std::fs::write(&pairs, pair).unwrap();
        let questions = [
            question(
                "Which cranial nerve supplies the superior oblique muscle of the eye?",
                ["Trochlear", "Abducens", "Facial", "Optic"],
            ),
            question(
                "Which drug is first choice in type 2 diabetes?",
                ["Metformin", "Insulin", "Glipizide", "Acarbose"],
            ),
            question("Which organ makes the hormone glucagon in adults?", ["Pancreas", "Liver", "Kidney", "Spleen"]),
        ];
        let found = trained_on(&questions, &[sft, pairs], 2, &Progress::silent(), &Cancel::default()).unwrap();
        let told: Vec<Option<(&str, &str)>> = found
            .iter()
            .map(|one| one.as_ref().map(|one| (one.row_at.rsplit('/').next().unwrap(), one.evidence.test)))
            .collect();
        assert_eq!(told, [Some(("sft.jsonl:1", "options")), None, Some(("pairs.jsonl:1", "ngram_8"))]);
    }

    /// A row of three turns, each a question; a row behind it whose one question stands in the set a second time, in other punctuation; and
    /// the first question again, whose mark stays the first row's.
    #[test]
    fn a_row_marks_every_question_that_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let questions = [
            question(
                "Which cranial nerve supplies the superior oblique muscle of the eye?",
                ["Trochlear", "Abducens", "Facial", "Optic"],
            ),
            question("Which organ makes the hormone glucagon in adults?", ["Pancreas", "Liver", "Kidney", "Spleen"]),
            question("Which vitamin deficiency causes night blindness?", ["A", "B", "C", "D"]),
            question("Which bone holds the foramen ovale?", ["Sphenoid", "Frontal", "Ethmoid", "Parietal"]),
            question("What most often causes acute pancreatitis?", ["Gallstones", "Alcohol", "Trauma", "Mumps"]),
            question("what most often causes acute pancreatitis", ["Alcohol", "Gallstones", "Mumps", "Trauma"]),
        ];
        let row = |asked: &[usize]| {
            let turns = asked.iter().flat_map(|at| {
                let one = &questions[*at];
                let options: String =
                    ('A'..).zip(&one.choices).map(|(letter, text)| format!("\n{letter}. {text}")).collect();
                let user = serde_json::json!({"role": "user", "content": format!("{}{options}", one.stem)});
                [user, serde_json::json!({"role": "assistant", "content": "A"})]
            });
            serde_json::json!({"messages": turns.collect::<Vec<_>>()}).to_string()
        };
        let path = dir.path().join("train.jsonl");
        std::fs::write(&path, [row(&[0, 1, 3]), row(&[4]), row(&[0])].join("\n")).unwrap();
        let found = trained_on(&questions, &[path], 2, &Progress::silent(), &Cancel::default()).unwrap();
        let line = |one: &Trained| one.row_at.rsplit(':').next().unwrap().to_owned();
        let lines: Vec<Option<String>> = found.iter().map(|one| one.as_ref().map(line)).collect();
        assert_eq!(lines, ["1", "1", "", "1", "2", "2"].map(|at| (!at.is_empty()).then(|| at.to_owned())));
    }

    /// The row as `identifiers = "mask"` writes it; behind it a question without identifiers, whose number must not move.
    #[test]
    fn a_question_whose_identifiers_the_row_has_masked_is_marked() {
        let dir = tempfile::tempdir().unwrap();
        let stem = "Mrs. Hargreaves, seen on 3 March 2019, reports that Mr. Hargreaves snores since 4 May 2018; call 555-213-4567. What now?";
        let masked = crate::identifiers::masked(stem);
        assert!(!masked.contains("Hargreaves"));
        let row = serde_json::json!({"messages": [{"role": "user", "content": masked}, {"role": "assistant", "content": "x"}]});
        let path = dir.path().join("train.jsonl");
        std::fs::write(&path, row.to_string()).unwrap();
        let options = ["Sleep study", "Surgery", "Nothing", "Tablets"];
        let questions =
            [question("Which organ makes the hormone glucagon in adults?", options), question(stem, options)];
        let found = trained_on(&questions, &[path], 1, &Progress::silent(), &Cancel::default()).unwrap();
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_line_that_is_no_training_row_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.jsonl");
        std::fs::write(&path, "\n{\"text\": \"x\"}\n").unwrap();
        let error = trained_on(&[], &[path], 1, &Progress::silent(), &Cancel::default()).unwrap_err().to_string();
        assert!(error.contains("train.jsonl:2") && error.contains("no training row"), "{error}");
    }
}
