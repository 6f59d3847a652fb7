//! The reported sets, on which nothing may be chosen (design decision 9): MedQA test, MedMCQA validation, PubMedQA test, MMLU test and
//! CareQA. A search asks here before its first merge.
//!
//! A set is recognised in two ways. By name: a task's `test` split is what its reader reads from the files that hold the reported set
//! (MedMCQA's published validation file included), so that split is refused, of every task: what HEAD-QA and the starter set call test
//! is for reporting as well. By content: a reported file under another name. Where the task's reported file lies in the data folder,
//! each question is looked up in it; in any case each is looked up among the marks of every eighth question of the reported sets,
//! `reported.txt`. A set of which a tenth or more is found is refused; a few questions that two splits share are counted.
//!
//! What is not recognised: a part of fewer than about 50 reported questions without the reported file beside it, questions that were
//! reworded, and those of the published sets that were not at hand when the marks were made (`reported.txt` says how many were).

use crate::{Question, Result, Split, Task};
use aloe_record::digest;
use std::collections::HashSet;
use std::path::Path;
use std::sync::LazyLock;

/// One of so many reported questions has a mark.
const EVERY: usize = 8;
/// From this part on (one in so many) a set is the reported one.
const REFUSED: usize = 10;

/// Why nothing may be chosen on a task's split; `None` where it may.
pub fn refusal(task: Task, split: Split) -> Option<String> {
    if split != Split::Test {
        return None;
    }
    let set = match task {
        Task::Medqa4 | Task::Medqa5 => "MedQA's test set",
        Task::Medmcqa => "MedMCQA's published validation set",
        Task::Pubmedqa => "PubMedQA's test set",
        Task::Mmlu(_) => "MMLU's test set",
        Task::CareqaEn | Task::CareqaEs => "CareQA, which has no other split",
        Task::HeadqaEn | Task::HeadqaEs => "HEAD-QA's test set",
        Task::Own(_) => "what its task file calls the test set",
        Task::StarterMcqa | Task::StarterPubmedqa => "the starter set's test questions",
    };
    let name = task.name();
    Some(format!("{name}, test split, is {set}: results are reported on it, so nothing may be chosen on it"))
}

/// How much of a set is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Questions in the set.
    pub n: usize,
    /// Of them, in the reported file of the same task; none where it is not at hand.
    pub n_in_file: Option<usize>,
    /// Of them, with a mark of any reported set: about an eighth of those that are reported.
    pub n_marked: usize,
}

impl Overlap {
    /// Looks up `questions`, which are called `task` in `data_dir`.
    pub fn of(task: Task, questions: &[Question], data_dir: &Path) -> Result<Self> {
        static MARKS: LazyLock<HashSet<&str>> = LazyLock::new(|| {
            include_str!("reported.txt")
                .lines()
                .filter(|line| !line.starts_with('#'))
                .flat_map(str::split_whitespace)
                .collect()
        });
        // A reported file that cannot be read is as one that is not there: only its own evaluation needs it.
        let reported = task.load(data_dir, Split::Test).ok();
        let reported: Option<HashSet<String>> = reported.map(|all| all.iter().map(identity).collect());
        let identities: Vec<String> = questions.iter().map(identity).collect();
        Ok(Self {
            n: questions.len(),
            n_in_file: reported.map(|known| identities.iter().filter(|one| known.contains(*one)).count()),
            n_marked: identities.iter().filter(|one| MARKS.contains(&one[..12])).count(),
        })
    }

    /// Whether this is a reported set, or largely.
    pub fn is_reported(&self) -> bool {
        let by_file = self.n_in_file.is_some_and(|found| found > 0 && found * REFUSED >= self.n);
        // Real selection sets share two marked questions with reported sets of other tasks.
        by_file || (self.n_marked > 2 && self.n_marked * EVERY * REFUSED >= self.n)
    }

    /// What was found, in words; `None` where nothing was.
    pub fn words(&self) -> Option<String> {
        match (self.n_in_file, self.n_marked) {
            (Some(found), _) if found > 0 => {
                Some(format!("{found} of its {} questions stand in the task's reported set", self.n))
            }
            (_, 0) => None,
            (_, marked) => {
                Some(format!("{marked} of its {} questions are among the marked eighth of the reported sets", self.n))
            }
        }
    }
}

/// Digest of stem and right option, reduced to the letters a to z and digits: other distractors, order, case and punctuation make no
/// other question.
fn identity(question: &Question) -> String {
    let plain = |text: &str| -> String {
        text.chars().flat_map(char::to_lowercase).filter(char::is_ascii_alphanumeric).collect()
    };
    let right = question.choices.get(question.key).map_or_else(String::new, |text| plain(text));
    digest::bytes(format!("{}\n{right}", plain(&question.stem)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Option<std::path::PathBuf> {
        let data = std::env::var_os("ALOE_DATA").map(std::path::PathBuf::from);
        assert!(data.is_some() || std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_DATA is not set");
        data
    }

    #[test]
    fn the_five_reported_sets_are_refused_by_name_and_the_sets_for_choosing_are_not() {
        for task in Task::all() {
            assert!(refusal(task, Split::Test).is_some_and(|words| words.contains(&task.name())));
            assert_eq!(refusal(task, Split::Validation), None);
        }
        assert!(refusal(Task::Medmcqa, Split::Test).unwrap().contains("published validation"));
    }

    /// The real files: each reported set is known by its marks alone, from an empty folder; each set for choosing is not.
    #[test]
    fn the_real_reported_files_are_known_by_their_content_under_any_name_and_the_real_selection_files_are_let_through()
    {
        let Some(data) = data() else { return };
        let elsewhere = tempfile::tempdir().unwrap();
        let has_marks =
            |task: &Task| !task.is_starter() && !matches!(task, Task::HeadqaEn | Task::HeadqaEs | Task::CareqaEs);
        for task in Task::all().into_iter().filter(has_marks) {
            let questions = task.load(&data, Split::Test).unwrap();
            let found = Overlap::of(task, &questions, elsewhere.path()).unwrap();
            assert!(found.is_reported() && found.n_in_file.is_none(), "{task:?}: {found:?}");
            let part = Overlap::of(task, &questions[..questions.len().min(12)], &data).unwrap();
            assert!(part.is_reported() && part.n_in_file == Some(12), "{task:?}: {part:?}");
            let Ok(selection) = task.load(&data, Split::Validation) else { continue };
            let found = Overlap::of(task, &selection, &data).unwrap();
            assert!(!found.is_reported(), "{task:?}: {found:?}");
        }
    }

    /// By hand: the eighth rule refuses from 3 marks on, and 3 of 240 are 3 * 8 / 240 = a tenth.
    #[test]
    fn a_tenth_is_refused_and_less_is_told() {
        let found = |n, n_in_file, n_marked| Overlap { n, n_in_file, n_marked };
        assert!(found(240, None, 3).is_reported() && !found(241, None, 3).is_reported());
        assert!(!found(8, None, 2).is_reported(), "two marks may be questions that sets share");
        assert!(found(100, Some(10), 0).is_reported() && !found(100, Some(9), 0).is_reported());
        assert_eq!(found(100, Some(0), 0).words(), None);
        assert!(found(100, Some(3), 1).words().unwrap().contains("3 of its 100"));
    }
}
