//! Questions that are answered in free text: which files hold them, and a row of each to an [`OpenQuestion`].
//!
//! Walk: `aloe eval` with an open task reads its questions here, words them with `wording::open`, and `aloe-eval`'s `open` takes them
//! on. Refused with file and row: a missing column, an empty question or reference answer, an id that stands twice.

use crate::rows::{self, Row};
use crate::{Error, Result, Split};
use std::collections::HashMap;
use std::path::Path;

/// A question with the answer it should get.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct OpenQuestion {
    /// Unique within its task; the source's own id where it has one.
    pub id: String,
    /// The question, as written.
    pub question: String,
    /// The reference answer, as written.
    pub reference: String,
    /// Category, as the source names it; empty when it names none.
    pub category: String,
    /// `file:line` (or `file#row`), relative to the data folder.
    pub source: String,
}

/// A set of open questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OpenTask {
    /// OpenMedQA: MedQA's test questions rewritten without options (HPAI-BSC/prompt_engine).
    Openmedqa,
    /// CareQA's open questions, English (`CareQA_en_open`); lm-evaluation-harness's `careqa_open`.
    CareqaOpen,
    /// The starter set's open questions.
    StarterOpen,
}

impl OpenTask {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Openmedqa, Self::CareqaOpen, Self::StarterOpen];

    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openmedqa => "openmedqa",
            Self::CareqaOpen => "careqa_open",
            Self::StarterOpen => "starter_open",
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name.trim())
    }

    /// How many questions the published set has; a smaller file is a subset, its score "not comparable".
    pub fn published_len(self) -> Option<usize> {
        match self {
            Self::Openmedqa => Some(1272),
            // The Hub's file. The harness's README says 3,730, which no published file has.
            Self::CareqaOpen => Some(2769),
            Self::StarterOpen => None,
        }
    }

    /// The files that may hold it, relative to the data folder; the first that exists is read.
    fn candidates(self) -> &'static [&'static str] {
        match self {
            Self::Openmedqa => &["openmedqa/openmedqa_test.json", "openmedqa/openmedqa_test.jsonl"],
            Self::CareqaOpen => &[
                "careqa/CareQA_en_open.json",
                "careqa/CareQA_en_open.jsonl",
                "careqa/CareQA_en_open/test.jsonl",
                "careqa/CareQA_en_open/test-00000-of-00001.parquet",
            ],
            Self::StarterOpen => {
                &["open/starter_open_test.jsonl", "starter/open/starter_open_test.jsonl", "starter_open_test.jsonl"]
            }
        }
    }

    /// The file that is read, below the data folder.
    pub fn file(self, data_dir: &Path) -> Result<&'static str> {
        let file = self.candidates().iter().find(|name| data_dir.join(name).is_file());
        file.copied().ok_or_else(|| Error::Missing {
            task: self.name().into(),
            split: Split::Test.name().into(),
            dir: data_dir.display().to_string(),
            tried: self.candidates().join(", "),
        })
    }

    /// Loads all questions, in file order. These sets have a test split only.
    pub fn load(self, data_dir: &Path) -> Result<Vec<OpenQuestion>> {
        self.read(data_dir, self.file(data_dir)?)
    }

    /// Reads the questions of `dir/relative`.
    fn read(self, dir: &Path, relative: &str) -> Result<Vec<OpenQuestion>> {
        let rows = rows::read(dir, relative)?;
        let mut first: HashMap<String, String> = HashMap::new();
        let mut questions = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let question = self.question(row, index)?;
            if let Some(earlier) = first.insert(question.id.clone(), row.at.clone()) {
                return Err(row.refuse(format!("the id stands in {earlier} already")));
            }
            questions.push(question);
        }
        Ok(questions)
    }

    /// One row. prompt_engine's files and ours: `id, question, correct_answer`. CareQA's: `question, answer` and, where they are there,
    /// `unique_id, category` (the Hub's other columns, `exam_id, year, answer_explanation`, are not read, as the harness reads none).
    pub fn question(self, row: &Row, index: usize) -> Result<OpenQuestion> {
        let (id, reference, category) = match self {
            Self::Openmedqa | Self::StarterOpen => (Some(row.text("id")?), "correct_answer", ""),
            Self::CareqaOpen => (row.optional_text("unique_id")?, "answer", "category"),
        };
        let text = |column: &str| -> Result<String> {
            let text = row.text(column)?;
            if text.trim().is_empty() {
                return Err(row.refuse(format!("column `{column}` is empty")));
            }
            Ok(text)
        };
        let id = id.unwrap_or_else(|| format!("row {}", index + 1));
        if id.trim().is_empty() {
            return Err(row.refuse("the id is empty"));
        }
        let category = if category.is_empty() { None } else { row.optional_text(category)? };
        Ok(OpenQuestion {
            id,
            question: text("question")?,
            reference: text(reference)?,
            category: category.unwrap_or_default(),
            source: row.at.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn check(task: OpenTask, content: &str) -> Result<Vec<OpenQuestion>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("q.jsonl"), content).unwrap();
        task.read(dir.path(), "q.jsonl")
    }

    fn refused(task: OpenTask, content: &str) -> String {
        check(task, content).unwrap_err().to_string()
    }

    /// 891 rows, as the data's README says; the first one is read in the file itself.
    #[test]
    fn the_real_openmedqa_file_has_the_questions_that_its_readme_says() {
        let Some(data) = std::env::var_os("ALOE_DATA").map(PathBuf::from) else {
            assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_REQUIRE is set but ALOE_DATA is not");
            return eprintln!("not run: ALOE_DATA is not set");
        };
        let questions = OpenTask::Openmedqa.load(&data).unwrap();
        assert_eq!(questions.len(), 891);
        let first = &questions[0];
        assert_eq!(first.id, "medqa_4opt_test_0");
        assert!(first.question.starts_with("A junior orthopaedic surgery resident is completing a carpal tunnel"));
        assert_eq!(first.reference, "Tell the attending that he cannot fail to disclose this mistake");
        assert!(first.source.starts_with("openmedqa/openmedqa_test.json#"), "{}", first.source);
    }

    #[test]
    fn the_starter_questions_are_twelve_and_marked_as_not_reviewed() {
        let starter = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../starter");
        let questions = OpenTask::StarterOpen.load(&starter).unwrap();
        assert_eq!(questions.len(), 12);
        let text = std::fs::read_to_string(starter.join("open/starter_open_test.jsonl")).unwrap();
        assert_eq!(text.matches("\"review\": \"not clinically reviewed\"").count(), 12);
    }

    /// Made-up rows in the columns of the Hub's `CareQA_en_open`.
    #[test]
    fn careqa_open_rows_are_read_by_the_published_columns_with_or_without_an_id() {
        let rows = "{\"exam_id\": 7, \"question\": \"Which ion enters?\", \"answer\": \"Sodium.\", \"year\": 2021, \"category\": \
                    \"Biology\", \"unique_id\": \"u-1\", \"answer_explanation\": \"Fast channels open.\"}\n\
                    {\"question\": \"Which cell?\", \"answer\": \"The B cell.\"}\n";
        let found = check(OpenTask::CareqaOpen, rows).unwrap();
        assert_eq!((found[0].id.as_str(), found[1].id.as_str()), ("u-1", "row 2"));
        assert_eq!((found[0].reference.as_str(), found[0].category.as_str()), ("Sodium.", "Biology"));
        assert_eq!((found[1].category.as_str(), found[1].source.as_str()), ("", "q.jsonl:2"));
    }

    /// A made row that pyarrow wrote (`oracles/parquet_layouts.py`).
    #[test]
    fn careqas_open_questions_are_read_from_the_hubs_parquet_file() {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet");
        let found = OpenTask::CareqaOpen.load(&golden).unwrap();
        let one = &found[0];
        assert_eq!((found.len(), one.id.as_str(), one.category.as_str()), (1, "u-1", "Medicine"));
        assert_eq!((one.question.as_str(), one.reference.as_str()), ("Which bone is in the thigh?", "The femur."));
        assert_eq!(one.source, "careqa/CareQA_en_open/test-00000-of-00001.parquet#1");
    }

    #[test]
    fn a_missing_column_an_empty_text_and_an_id_twice_are_refused_with_file_and_row() {
        let row = |id: &str, answer: &str| {
            format!("{{\"id\": \"{id}\", \"question\": \"q?\", \"correct_answer\": \"{answer}\"}}\n")
        };
        let (open, good) = (OpenTask::Openmedqa, row("a", "x"));
        assert_eq!(check(open, &good).unwrap().len(), 1);
        let missing = refused(open, &format!("{good}{{\"id\": \"b\", \"question\": \"q?\", \"answer\": \"x\"}}\n"));
        assert!(
            missing.starts_with("q.jsonl:2: column `correct_answer`: expected text, found no such column"),
            "{missing}"
        );
        assert_eq!(refused(open, &format!("{good}{}", row("b", " "))), "q.jsonl:2: column `correct_answer` is empty");
        let twice = refused(open, &format!("{good}{}{good}", row("b", "y")));
        assert_eq!(twice, "q.jsonl:3: the id stands in q.jsonl:1 already");
        assert_eq!(refused(open, &row(" ", "x")), "q.jsonl:1: the id is empty");
        let null = refused(OpenTask::CareqaOpen, "{\"question\": null, \"answer\": \"x\"}\n");
        assert!(null.starts_with("q.jsonl:1: column `question`"), "{null}");
    }

    #[test]
    fn a_data_folder_without_the_file_is_told_what_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let error = OpenTask::CareqaOpen.load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("`careqa_open`") && error.contains("careqa/CareQA_en_open.json"), "{error}");
    }
}
