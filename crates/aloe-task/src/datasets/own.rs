//! A user's own multiple-choice set, described by a small TOML file: which files, which columns.
//!
//! ```toml
//! name = "ward_exam"              # letters, digits, - and _
//! version = "1"                   # stands in the results; raise it when the file changes
//! test = "ward_exam.csv"          # beside this file; JSON, JSONL, CSV, Parquet, also .gz
//! train = "ward_exam_train.csv"   # optional, as are validation and dev: where examples come from
//!
//! [columns]
//! id = "nr"                       # optional: the row's number otherwise
//! question = "text"
//! context = "abstract"            # optional: a text, or a list of them
//! options = ["a", "b", "c"]       # columns; or one column that holds a list, or an object by letter
//! answer = "key"
//! answer_is = "letter"            # A, B, ..; or index (from 0), number (from 1), text (the option itself)
//! subject = "field"               # optional
//! explanation = "why"             # optional
//! ```

use crate::question::letter;
use crate::rows::{self, Row};
use crate::{Error, Question, Result, Split};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The description of a set.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnTask {
    /// Its name in results.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The TOML file.
    pub path: PathBuf,
    /// File of each split, beside the TOML file.
    files: Vec<(String, String)>,
    columns: Columns,
}

#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
struct Columns {
    id: Option<String>,
    question: String,
    context: Option<String>,
    options: Options,
    answer: String,
    answer_is: AnswerIs,
    subject: Option<String>,
    explanation: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
enum Options {
    Column(String),
    Columns(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AnswerIs {
    Letter,
    Index,
    Number,
    Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    version: String,
    test: String,
    train: Option<String>,
    validation: Option<String>,
    dev: Option<String>,
    columns: Columns,
}

/// Descriptions read so far. A task is copied about as a name is, so its description lives as long as the program.
static READ: Mutex<Vec<&'static OwnTask>> = Mutex::new(Vec::new());

impl OwnTask {
    /// Reads a description. `taken` are the names that it must not have.
    pub fn read(path: &Path, taken: &[String]) -> Result<&'static Self> {
        let refuse = |reason: String| Error::TaskFile { path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
        let raw: Raw = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if raw.name.is_empty() || !raw.name.chars().all(is_plain) {
            return Err(refuse(format!("name {:?} must be letters, digits, - and _", raw.name)));
        }
        if taken.contains(&raw.name) {
            return Err(refuse(format!("name {:?} is that of a task of this program", raw.name)));
        }
        let splits = [("test", Some(raw.test)), ("train", raw.train), ("validation", raw.validation), ("dev", raw.dev)];
        let files: Vec<(String, String)> =
            splits.into_iter().filter_map(|(split, file)| Some((split.to_owned(), file?))).collect();
        let folder = path.parent().unwrap_or(Path::new(""));
        if let Some((split, file)) = files.iter().find(|(_, file)| !folder.join(file).is_file()) {
            return Err(refuse(format!("{split} = {file:?}: there is no such file beside it")));
        }
        for (at, (split, file)) in files.iter().enumerate() {
            let whole = |file: &String| folder.join(file).canonicalize().ok();
            if let Some((other, _)) = files[..at].iter().find(|(_, other)| whole(other) == whole(file)) {
                let text =
                    format!("{split} and {other} are the same file: examples would come from the questions themselves");
                return Err(refuse(text));
            }
        }
        let task = Self { name: raw.name, version: raw.version, path: path.to_owned(), files, columns: raw.columns };
        let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = read.iter().find(|known| ***known == task) {
            return Ok(known);
        }
        let task: &'static Self = Box::leak(Box::new(task));
        read.push(task);
        Ok(task)
    }

    /// The files of all splits.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(_, file)| self.folder().join(file)).collect()
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Loads a split.
    pub fn load(&self, split: Split) -> Result<Vec<Question>> {
        let file = self.files.iter().find(|(name, _)| name == split.name()).map(|(_, file)| file);
        let file = file.ok_or_else(|| Error::NoSplit {
            task: self.name.clone(),
            split: split.name().into(),
            hint: format!("{} names no file for it", self.path.display()),
        })?;
        let rows = rows::read(self.folder(), file)?;
        rows.iter().enumerate().map(|(index, row)| self.question(row, split, index)).collect()
    }

    fn question(&self, row: &Row, split: Split, index: usize) -> Result<Question> {
        let columns = &self.columns;
        let optional = |name: &Option<String>| name.as_ref().map_or(Ok(None), |name| row.optional_text(name));
        let choices = self.choices(row)?;
        Question {
            id: match &columns.id {
                Some(name) => plain(row, name)?,
                None => format!("{}_{}_{}", self.name, split.name(), index + 1),
            },
            stem: row.text(&columns.question)?,
            context: match &columns.context {
                Some(name) if matches!(row.columns.get(name), Some(Value::Array(_))) => {
                    Some(row.texts(name)?.join("\n"))
                }
                name => optional(name)?.filter(|text| !text.is_empty()),
            },
            key: self.key(row, &choices)?,
            choices,
            subject: optional(&columns.subject)?.unwrap_or_default(),
            explanation: optional(&columns.explanation)?,
            source: row.at.clone(),
        }
        .checked()
    }

    fn choices(&self, row: &Row) -> Result<Vec<String>> {
        let name = match &self.columns.options {
            Options::Columns(names) => return names.iter().map(|name| row.text(name)).collect(),
            Options::Column(name) => name,
        };
        let Some(Value::Object(by_letter)) = row.columns.get(name) else { return row.texts(name) };
        let mut lettered: Vec<(&String, &Value)> = by_letter.iter().collect();
        lettered.sort_by_key(|(letter, _)| *letter);
        let text = |(at, (name, text)): (usize, (&String, &Value))| {
            let in_sequence = at < 26 && *name == letter(at).to_string();
            text.as_str().filter(|_| in_sequence).map(String::from)
        };
        let texts: Option<Vec<String>> = lettered.into_iter().enumerate().map(text).collect();
        texts.ok_or_else(|| row.unexpected(name, "texts by letter, A first", row.columns.get(name)))
    }

    fn key(&self, row: &Row, choices: &[String]) -> Result<usize> {
        let name = &self.columns.answer;
        let found = match self.columns.answer_is {
            AnswerIs::Letter => {
                let letter = row.text(name)?;
                let mut letters = letter.trim().chars();
                match (letters.next(), letters.next()) {
                    (Some(c), None) if c.is_ascii_alphabetic() => {
                        Some(usize::from(c.to_ascii_uppercase() as u8 - b'A'))
                    }
                    _ => None,
                }
            }
            AnswerIs::Index => usize::try_from(row.integer(name)?).ok(),
            AnswerIs::Number => usize::try_from(row.integer(name)? - 1).ok(),
            AnswerIs::Text => {
                let text = row.text(name)?;
                choices.iter().position(|choice| choice.trim() == text.trim())
            }
        };
        let shown = || match row.columns.get(name) {
            Some(Value::String(text)) => rows::shown_key(text),
            Some(Value::Number(number)) => number.as_i64().map_or_else(|| number.to_string(), rows::shown_number),
            other => other.map_or_else(String::new, rows::shown),
        };
        found.filter(|key| *key < choices.len()).ok_or_else(|| Error::Key {
            at: row.at.clone(),
            key: shown(),
            n_choices: choices.len(),
        })
    }
}

/// An id: a text or a whole number.
fn plain(row: &Row, name: &str) -> Result<String> {
    match row.columns.get(name) {
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => row.text(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    const HEAD: &str = "name = \"ward_exam\"\nversion = \"1\"\n";

    /// Reads `rows` under `file` with a description of `columns`.
    fn load(file: &str, rows: &str, columns: &str) -> Result<Vec<Question>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file), rows).unwrap();
        let path = dir.path().join("exam.toml");
        std::fs::write(&path, format!("{HEAD}test = \"{file}\"\n[columns]\n{columns}")).unwrap();
        let tasks = Task::parse(path.to_str().unwrap())?;
        tasks[0].load(Path::new("nowhere"), Split::Test)
    }

    #[test]
    fn csv_columns_lists_and_objects_give_the_same_question() {
        let csv = load(
            "a.csv",
            "nr,text,a,b,key,field\n7,Which bone?,Ulna,Femur,b,anatomy\n",
            "id = \"nr\"\nquestion = \"text\"\noptions = [\"a\", \"b\"]\nanswer = \"key\"\nanswer_is = \"letter\"\nsubject = \"field\"",
        );
        let list = load(
            "a.jsonl",
            r#"{"nr": 7, "text": "Which bone?", "o": ["Ulna", "Femur"], "key": 2, "field": "anatomy"}"#,
            "id = \"nr\"\nquestion = \"text\"\noptions = \"o\"\nanswer = \"key\"\nanswer_is = \"number\"\nsubject = \"field\"",
        );
        let object = load(
            "a.json",
            r#"[{"nr": "7", "text": "Which bone?", "o": {"A": "Ulna", "B": "Femur"}, "key": "Femur", "field": "anatomy"}]"#,
            "id = \"nr\"\nquestion = \"text\"\noptions = \"o\"\nanswer = \"key\"\nanswer_is = \"text\"\nsubject = \"field\"",
        );
        for found in [csv, list, object] {
            let one = &found.unwrap()[0];
            assert_eq!((one.id.as_str(), one.key, one.subject.as_str()), ("7", 1, "anatomy"));
            assert_eq!(one.choices, ["Ulna", "Femur"]);
        }
    }

    #[test]
    fn what_is_wrong_with_a_row_or_a_description_is_named() {
        let columns = "question = \"q\"\noptions = [\"a\", \"b\"]\nanswer = \"k\"\nanswer_is = \"index\"";
        let check = |rows: &str, columns: &str, parts: &[&str]| {
            let error = load("a.csv", rows, columns).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        check("q,a,b,k\n?,1,2,2\n", columns, &["a.csv:2", "answer key 2"]);
        check("q,a,k\n?,1,0\n", columns, &["a.csv:2", "column `b`", "no such column"]);
        check("q,a,b,k\n?,1,,0\n", columns, &["a.csv:2", "option B is empty"]);
        let many = columns.replace("[\"a\", \"b\"]", &format!("{:?}", vec!["a"; 27]));
        check("q,a,b,k\n?,,2,0\n", &many, &["a.csv:2", "more than 26 options"]);
        check("q,a,b,k\n", columns, &["a.csv"]);
        check("q,a,b,k\n?,1,2,0\n", &columns.replace("index", "place"), &["exam.toml", "answer_is"]);
        check("q,a,b,k\n?,1,2,0\n", &format!("{columns}\ncolour = \"c\""), &["exam.toml", "colour"]);
        let ids = format!("id = \"q\"\n{columns}");
        check("q,a,b,k\nx,1,2,0\ny,1,2,0\nx,3,4,1\n", &ids, &["a.csv:4", "a.csv:2", "id"]);
    }

    #[test]
    fn a_name_of_this_programs_and_a_file_that_is_not_there_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exam.toml");
        let columns = "[columns]\nquestion = \"q\"\noptions = \"o\"\nanswer = \"k\"\nanswer_is = \"index\"\n";
        std::fs::write(&path, format!("name = \"medmcqa\"\nversion = \"1\"\ntest = \"a.csv\"\n{columns}")).unwrap();
        let refused = |part: &str| {
            let error = Task::parse(path.to_str().unwrap()).unwrap_err().to_string();
            assert!(error.contains("exam.toml") && error.contains(part), "{error}");
        };
        refused("is that of a task");
        std::fs::write(&path, format!("{HEAD}test = \"a.csv\"\n{columns}")).unwrap();
        refused("no such file");
        std::fs::write(dir.path().join("a.csv"), "q\n").unwrap();
        std::fs::write(&path, format!("{HEAD}test = \"a.csv\"\ntrain = \"./a.csv\"\n{columns}")).unwrap();
        refused("train and test are the same file");
        let other = dir.path().join("other.toml");
        let text = format!("{HEAD}test = \"a.csv\"\n{columns}");
        std::fs::write(&path, &text).unwrap();
        std::fs::write(&other, &text).unwrap();
        let error = Task::parse_all(&[path.to_str().unwrap(), other.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("other.toml") && error.contains("ward_exam"), "{error}");
    }
}
