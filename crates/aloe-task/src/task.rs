//! The named tasks: which files hold them, under which split, and with which reader.
//!
//! Names are lm-evaluation-harness's where it has the task. A split that would mix reported and chosen data is refused.

use crate::datasets::own::OwnTask;
use crate::datasets::{careqa, headqa, medmcqa, medqa, mmlu, prompt_engine, pubmedqa};
use crate::{Error, Protocol, Question, Result, Split};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// MMLU's six medical subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// anatomy
    Anatomy,
    /// clinical_knowledge
    ClinicalKnowledge,
    /// college_biology
    CollegeBiology,
    /// college_medicine
    CollegeMedicine,
    /// medical_genetics
    MedicalGenetics,
    /// professional_medicine
    ProfessionalMedicine,
}

impl Subject {
    /// All six, in the order of the names.
    pub const ALL: [Self; 6] = [
        Self::Anatomy,
        Self::ClinicalKnowledge,
        Self::CollegeBiology,
        Self::CollegeMedicine,
        Self::MedicalGenetics,
        Self::ProfessionalMedicine,
    ];

    /// MMLU's file name part: `college_biology`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anatomy => "anatomy",
            Self::ClinicalKnowledge => "clinical_knowledge",
            Self::CollegeBiology => "college_biology",
            Self::CollegeMedicine => "college_medicine",
            Self::MedicalGenetics => "medical_genetics",
            Self::ProfessionalMedicine => "professional_medicine",
        }
    }
}

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// MedQA, US, four options.
    Medqa4,
    /// MedQA, US, five options.
    Medqa5,
    /// MedMCQA; its validation split is the reported one.
    Medmcqa,
    /// PubMedQA, expert-labelled.
    Pubmedqa,
    /// One MMLU subject.
    Mmlu(Subject),
    /// CareQA, English, closed.
    CareqaEn,
    /// CareQA, Spanish, closed.
    CareqaEs,
    /// HEAD-QA, English.
    HeadqaEn,
    /// HEAD-QA, Spanish.
    HeadqaEs,
    /// The starter set's four-option questions.
    StarterMcqa,
    /// The starter set's yes/no/maybe questions.
    StarterPubmedqa,
    /// A user's own, described by a TOML file.
    Own(&'static OwnTask),
}

impl Task {
    /// Every task of this program.
    pub fn all() -> Vec<Self> {
        let mut tasks = vec![Self::Medqa4, Self::Medqa5, Self::Medmcqa, Self::Pubmedqa];
        tasks.extend(Subject::ALL.map(Self::Mmlu));
        tasks.extend([Self::CareqaEn, Self::CareqaEs, Self::HeadqaEn, Self::HeadqaEs]);
        tasks.extend([Self::StarterMcqa, Self::StarterPubmedqa]);
        tasks
    }

    /// The name on the command line and in results.
    pub fn name(self) -> String {
        match self {
            Self::Medqa4 => "medqa_4options".into(),
            Self::Medqa5 => "medqa_5options".into(),
            Self::Medmcqa => "medmcqa".into(),
            Self::Pubmedqa => "pubmedqa".into(),
            Self::Mmlu(subject) => format!("mmlu_{}", subject.name()),
            Self::CareqaEn => "careqa_en".into(),
            Self::CareqaEs => "careqa_es".into(),
            Self::HeadqaEn => "headqa_en".into(),
            Self::HeadqaEs => "headqa_es".into(),
            Self::StarterMcqa => "starter_mcqa".into(),
            Self::StarterPubmedqa => "starter_pubmedqa".into(),
            Self::Own(own) => own.name.clone(),
        }
    }

    /// The version of its reader, or of the user's own description: figures of different versions are not to be set side by side.
    pub fn version(self) -> &'static str {
        match self {
            Self::Own(own) => &own.version,
            _ => "1",
        }
    }

    /// The files that a user's own task names, its description among them.
    pub fn own_files(self) -> Vec<PathBuf> {
        match self {
            Self::Own(own) => [own.path.clone()].into_iter().chain(own.files()).collect(),
            _ => Vec::new(),
        }
    }

    /// One name, or a group: `mmlu_medical` (six subjects), `multimedqa` (lm-eval's group of nine), `starter` (two); or the path of a TOML
    /// file that describes a user's own set.
    pub fn parse(name: &str) -> Result<Vec<Self>> {
        let mmlu = || Subject::ALL.map(Self::Mmlu).to_vec();
        if name.ends_with(".toml") {
            let taken: Vec<String> = Self::all().into_iter().map(Self::name).collect();
            return Ok(vec![Self::Own(OwnTask::read(Path::new(name), &taken)?)]);
        }
        match name {
            "mmlu_medical" => Ok(mmlu()),
            "multimedqa" => Ok([vec![Self::Pubmedqa, Self::Medmcqa, Self::Medqa4], mmlu()].concat()),
            "starter" => Ok(vec![Self::StarterMcqa, Self::StarterPubmedqa]),
            "careqa" => Ok(vec![Self::CareqaEn]),
            _ => Self::all().into_iter().find(|task| task.name() == name).map(|task| vec![task]).ok_or_else(|| {
                let mut known: Vec<String> = Self::all().into_iter().map(Self::name).collect();
                known.extend(
                    ["mmlu_medical", "multimedqa", "starter", "careqa", "a .toml file of your own"].map(String::from),
                );
                Error::UnknownTask { name: name.into(), known: known.join(", ") }
            }),
        }
    }

    /// Several names; a task named twice counts once.
    pub fn parse_all<S: AsRef<str>>(names: &[S]) -> Result<Vec<Self>> {
        let mut tasks = Vec::new();
        for name in names {
            for task in Self::parse(name.as_ref().trim())? {
                if tasks.contains(&task) {
                    continue;
                }
                if let Some(other) = tasks.iter().find(|known| known.name() == task.name()) {
                    let path = task.own_files().first().map_or_else(String::new, |path| path.display().to_string());
                    let reason = format!("another task of this run has the name {:?} too", other.name());
                    return Err(Error::TaskFile { path, reason });
                }
                tasks.push(task);
            }
        }
        Ok(tasks)
    }

    /// How many questions the published reported set has; a smaller file is a subset, its score "not comparable".
    pub fn published_test_len(self) -> Option<usize> {
        match self {
            Self::Medqa4 | Self::Medqa5 => Some(1273),
            Self::Medmcqa => Some(4183),
            Self::Pubmedqa => Some(500),
            Self::Mmlu(subject) => Some(match subject {
                Subject::Anatomy => 135,
                Subject::ClinicalKnowledge => 265,
                Subject::CollegeBiology => 144,
                Subject::CollegeMedicine => 173,
                Subject::MedicalGenetics => 100,
                Subject::ProfessionalMedicine => 272,
            }),
            Self::CareqaEn | Self::CareqaEs => Some(5621),
            Self::HeadqaEn | Self::HeadqaEs => Some(2742),
            Self::StarterMcqa | Self::StarterPubmedqa | Self::Own(_) => None,
        }
    }

    /// Whether scores on it check the program only (our own starter questions, not clinically reviewed).
    pub fn is_starter(self) -> bool {
        matches!(self, Self::StarterMcqa | Self::StarterPubmedqa)
    }

    /// Loads one split from `data_dir`, in file order: the set's own files, or prompt_engine's where those are not there. Two questions
    /// with the same id are an error.
    pub fn load(self, data_dir: &Path, split: Split) -> Result<Vec<Question>> {
        let files = self.files(data_dir, split)?;
        let questions = match prompt_engine::file(self, split) {
            Some(theirs) if files == [theirs.as_str()] => prompt_engine::load(data_dir, &theirs)?,
            _ => self.load_published(data_dir, split, &files)?,
        };
        let mut seen: HashMap<&str, &Question> = HashMap::new();
        for question in &questions {
            if let Some(first) = seen.insert(&question.id, question) {
                return Err(Error::DuplicateId { first: first.source.clone(), second: question.source.clone() });
            }
        }
        Ok(questions)
    }

    /// The files below `data_dir` that [`Task::load`] reads for a split, its questions' first: the set's own, or prompt_engine's where those are
    /// not there. None of a user's own task, whose files are [`Task::own_files`].
    pub fn files(self, data_dir: &Path, split: Split) -> Result<Vec<String>> {
        match (self.published_files(data_dir, split), prompt_engine::file(self, split)) {
            (Err(Error::Missing { .. } | Error::NoSplit { .. }), Some(file)) if data_dir.join(&file).is_file() => {
                Ok(vec![file])
            }
            (Err(Error::Missing { task, split, dir, tried }), Some(file)) => {
                Err(Error::Missing { task, split, dir, tried: format!("{tried}, {file}") })
            }
            (found, _) => found,
        }
    }

    fn published_files(self, data_dir: &Path, split: Split) -> Result<Vec<String>> {
        let file = match self {
            Self::Medqa4 => medqa::file(data_dir, split, medqa::Options::Four),
            Self::Medqa5 => medqa::file(data_dir, split, medqa::Options::Five),
            Self::Medmcqa => medmcqa::file(data_dir, split),
            Self::Pubmedqa => return pubmedqa::files(data_dir, split),
            Self::Mmlu(subject) => mmlu::file(data_dir, split, subject),
            Self::CareqaEn | Self::CareqaEs => careqa::file(data_dir, split, self),
            Self::HeadqaEn | Self::HeadqaEs => headqa::file(data_dir, split, self),
            Self::StarterMcqa => medmcqa::starter_file(data_dir, split),
            Self::StarterPubmedqa => pubmedqa::starter_file(data_dir, split),
            Self::Own(_) => return Ok(Vec::new()),
        };
        Ok(vec![file?])
    }

    fn load_published(self, data_dir: &Path, split: Split, files: &[String]) -> Result<Vec<Question>> {
        let file = files.first().map_or("", String::as_str);
        match self {
            Self::Medqa4 => medqa::load(data_dir, split, medqa::Options::Four, file),
            Self::Medqa5 => medqa::load(data_dir, split, medqa::Options::Five, file),
            Self::Medmcqa => medmcqa::load(data_dir, split, file),
            Self::Pubmedqa => pubmedqa::load(data_dir, files),
            Self::Mmlu(subject) => mmlu::load(data_dir, split, subject, file),
            Self::CareqaEn | Self::CareqaEs => careqa::load(data_dir, file),
            Self::HeadqaEn | Self::HeadqaEs => headqa::load(data_dir, file),
            Self::StarterMcqa => medmcqa::load_starter(data_dir, file),
            Self::StarterPubmedqa => pubmedqa::load_starter(data_dir, file),
            Self::Own(own) => own.load(split),
        }
    }

    /// The pool of few-shot examples for questions of `split`. lm-evaluation-harness: MMLU's dev split, else the whole train split, for
    /// CareQA, which has none, the test questions themselves. Under any other protocol never the split under evaluation.
    pub fn load_shot_pool(self, data_dir: &Path, split: Split, protocol: Protocol) -> Result<Vec<Question>> {
        match self {
            Self::Medmcqa if split == Split::Test => medmcqa::load_whole_train(data_dir),
            _ => self.load(data_dir, self.shot_split(protocol)),
        }
    }

    /// The split whose files that pool is read from.
    pub fn shot_split(self, protocol: Protocol) -> Split {
        match self {
            Self::Mmlu(_) => Split::Dev,
            Self::CareqaEn | Self::CareqaEs if protocol == Protocol::LmEval => Split::Test,
            _ => Split::Train,
        }
    }

    /// Whether lm-evaluation-harness takes this task's examples from the questions under evaluation.
    pub fn shots_from_test(self) -> bool {
        matches!(self, Self::CareqaEn | Self::CareqaEs)
    }

    /// The refusal for a split the task has not.
    pub(crate) fn no_split(self, split: Split, hint: &str) -> Error {
        Error::NoSplit { task: self.name(), split: split.name().into(), hint: hint.into() }
    }

    /// The first of `candidates` that exists under `data_dir`.
    pub(crate) fn find(self, data_dir: &Path, split: Split, candidates: &[String]) -> Result<String> {
        candidates.iter().find(|name| data_dir.join(name).is_file()).cloned().ok_or_else(|| Error::Missing {
            task: self.name(),
            split: split.name().into(),
            dir: data_dir.display().to_string(),
            tried: candidates.join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_to_its_task_and_groups_open() {
        for task in Task::all() {
            assert_eq!(Task::parse(&task.name()).unwrap(), [task]);
        }
        let sizes: usize =
            Task::parse("multimedqa").unwrap().iter().map(|task| task.published_test_len().unwrap()).sum();
        assert_eq!(sizes, 7045);
        assert!(Task::parse("medqa").unwrap_err().to_string().contains("medqa_4options"));
        assert_eq!(Task::parse_all(&["mmlu_medical", "mmlu_anatomy"]).unwrap().len(), 6);
    }

    /// Whatever else lies in the folder: the names are those of the layouts that the readers take.
    #[test]
    fn the_files_of_a_split_are_those_that_it_is_read_from() {
        let dir = tempfile::tempdir().unwrap();
        let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../starter");
        let test = std::fs::read_to_string(starter.join("mcqa/starter_mcqa_test.jsonl")).unwrap();
        std::fs::create_dir(dir.path().join("medmcqa")).unwrap();
        for name in ["starter_mcqa_test.jsonl", "README.md", "medmcqa/validation.jsonl", "medmcqa/train.jsonl"] {
            std::fs::write(dir.path().join(name), &test).unwrap();
        }
        let files = |task: Task, split| task.files(dir.path(), split).unwrap();
        assert_eq!(files(Task::StarterMcqa, Split::Test), ["starter_mcqa_test.jsonl"]);
        assert_eq!(files(Task::Medmcqa, Split::Test), ["medmcqa/validation.jsonl"]);
        // A tenth of train.
        assert_eq!(files(Task::Medmcqa, Split::Validation), ["medmcqa/train.jsonl"]);
        let theirs = "careqa/careqa_val.json";
        assert!(Task::CareqaEn.files(dir.path(), Split::Validation).is_err());
        std::fs::create_dir(dir.path().join("careqa")).unwrap();
        let entry = r#"{"q": {"question": "?", "correct_answer": "A", "options": {"A": "1", "B": "2"}}}"#;
        std::fs::write(dir.path().join(theirs), entry).unwrap();
        assert_eq!(files(Task::CareqaEn, Split::Validation), [theirs]);
        assert_eq!(Task::CareqaEn.load(dir.path(), Split::Validation).unwrap()[0].source, "careqa/careqa_val.json#q");
        let read = Task::Medmcqa.load(dir.path(), Split::Test).unwrap();
        assert!(read.iter().all(|question| question.source.starts_with("medmcqa/validation.jsonl:")));
    }

    /// The labelled questions are test, train and validation: a list of ids tells which are test.
    #[test]
    fn pubmedqas_test_questions_are_read_from_two_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pubmedqa")).unwrap();
        std::fs::write(dir.path().join("pubmedqa/ori_pqal.json"), "{}").unwrap();
        let files = Task::Pubmedqa.files(dir.path(), Split::Test).unwrap();
        assert_eq!(files, ["pubmedqa/ori_pqal.json", "pubmedqa/test_ground_truth.json"]);
    }
}
