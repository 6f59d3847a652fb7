//! The log that lets an interrupted evaluation go on: answered questions and Medprompt's solved examples, as they came.
//!
//! Answers come in any order; each says which question it belongs to, by task, place, id and digest, so that a run over more or fewer
//! questions or tasks takes them up too. A question that was refused is not kept: it costs nothing to
//! ask again. The first entry is the run's fingerprint; a log of another run is refused, never mixed in.

use crate::{Error, Result, Sample};
use aloe_engine::{Call, CanaryAnswers, Embedder, Engine};
use aloe_record::log::Log;
use aloe_record::{Cancel, digest};
use aloe_task::worked::Worked;
use aloe_task::{Question, Task};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long answers may stay unforced to the disk: a kill loses none of them, a loss of power at most these.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The name of this log and of those like it.
const LOG: &str = ".answers.log";

/// The file of what the engine keeps of a server's answers before a log like this one has them.
const KEPT: &str = ".requests.log";

/// The log of the run in `out` that is to be opened, and how many answers of a server an earlier process left beside it, which the engine
/// keeps from now on as they come. Without a log there is no canary to hold them against: they are dropped.
pub(crate) fn kept(engine: &Engine, out: &Path, fingerprint: &str) -> Result<(PathBuf, usize)> {
    let (log, kept) = (out.join(LOG), out.join(KEPT));
    if log.metadata().map_or(true, |file| file.len() == 0) {
        let _ = std::fs::remove_file(&kept);
    }
    Ok((log, engine.keep_answers(&kept, fingerprint)?))
}

/// As [`kept`], of a model beside the one under evaluation, whose answers stand in the same log: a judge, a classifier. `who` is all that
/// decides its answers; `is_held` says whether the log has what it once answered to known questions, to hold it against.
pub(crate) fn kept_beside(engine: &Engine, log: &Path, who: &str, is_held: bool) -> Result<usize> {
    Ok(engine.keep_answers(&beside(log, who, is_held), who)?)
}

/// Where that is.
fn beside(log: &Path, who: &str, is_held: bool) -> PathBuf {
    let kept = log.with_file_name(format!(".requests-{}.log", &digest::bytes(who.as_bytes())[..16]));
    if !is_held {
        let _ = std::fs::remove_file(&kept);
    }
    kept
}

/// Refuses to go on with the answers at `path` when the endpoint answers known questions otherwise than it did for them.
pub(crate) fn check_same(then: &CanaryAnswers, now: &CanaryAnswers, path: &Path) -> Result<()> {
    match then.difference(now) {
        Some(difference) => Err(Error::OtherWeights { path: path.display().to_string(), difference }),
        None => Ok(()),
    }
}

/// The error of an endpoint that does not take the known questions any more which it answered for the log at `path`.
pub(crate) fn takes_no_canary(path: &Path) -> Error {
    let difference = "it takes no known prompts now, which it then did".to_owned();
    Error::OtherWeights { path: path.display().to_string(), difference }
}

/// A pool question's attempts: those that reached the gold answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Solved {
    /// The task under evaluation.
    pub(crate) task: String,
    /// The pool question's place in the pool.
    pub(crate) index: usize,
    /// The pool question's id.
    pub(crate) id: String,
    /// Attempts in all.
    pub(crate) n_attempts: usize,
    /// Right answers.
    pub(crate) right: Vec<Worked>,
}

/// The specialty that a classifier put a question into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Specialty {
    task: String,
    index: usize,
    pub(crate) field: String,
}

/// What is kept with the question it belongs to.
#[derive(Clone, Serialize, Deserialize)]
struct Kept<T> {
    /// Digest of the question's content.
    question: String,
    #[serde(flatten)]
    what: T,
}

/// Of everything in a question but where it stood.
fn content_digest(question: &Question) -> String {
    let text = serde_json::to_string(&Question { source: String::new(), ..question.clone() }).unwrap_or_default();
    digest::bytes(text.as_bytes())[..16].to_owned()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Run(String),
    /// What an endpoint answered to known questions before what follows.
    Canary(CanaryAnswers),
    /// The same of the one that tells specialties.
    ClassifierCanary(CanaryAnswers),
    /// The same of the one that finds Medprompt's neighbours.
    EmbedderCanary(CanaryAnswers),
    Solved(Kept<Solved>),
    Specialty(Kept<Specialty>),
    Answered(Box<Kept<Sample>>),
    /// A question's second answer, for the noise floor.
    Again(Box<Kept<Sample>>),
}

fn of_question<T: Clone>(question: &Question, what: &T) -> Kept<T> {
    Kept { question: content_digest(question), what: what.clone() }
}

/// The answer on a line of the log, without its line break; `None` on a line that says something else.
pub(crate) fn answered(line: &[u8]) -> Result<Option<Sample>, String> {
    match aloe_record::log::entry::<Entry>(line) {
        Some(Entry::Answered(kept)) => Ok(Some(kept.what)),
        Some(_) => Ok(None),
        None => Err(aloe_record::log::DAMAGED.into()),
    }
}

/// The open log with what it held.
pub(crate) struct AnswerLog {
    log: Log,
    path: PathBuf,
    canary: Option<CanaryAnswers>,
    classifier_canary: Option<CanaryAnswers>,
    embedder_canary: Option<CanaryAnswers>,
    samples: Vec<Kept<Sample>>,
    again: Vec<Kept<Sample>>,
    solved: Vec<Kept<Solved>>,
    specialties: Vec<Kept<Specialty>>,
    synced: Instant,
}

impl AnswerLog {
    pub(crate) fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        let (mut log, entries) = Log::open::<Entry>(path)?;
        let mut entries = entries.into_iter();
        match entries.next() {
            None => log.append(&Entry::Run(fingerprint.into()))?,
            Some(Entry::Run(found)) if found == fingerprint => {}
            Some(_) => return Err(Error::OtherRun { path: path.display().to_string() }),
        }
        let path = path.to_path_buf();
        let (samples, again, solved, specialties) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (canary, classifier_canary, embedder_canary, synced) = (None, None, None, Instant::now());
        let mut found =
            Self { log, path, canary, classifier_canary, embedder_canary, samples, again, solved, specialties, synced };
        for entry in entries {
            match entry {
                Entry::Run(_) => return Err(Error::OtherRun { path: found.path.display().to_string() }),
                Entry::Canary(canary) => found.canary = Some(canary),
                Entry::ClassifierCanary(canary) => found.classifier_canary = Some(canary),
                Entry::EmbedderCanary(canary) => found.embedder_canary = Some(canary),
                Entry::Solved(solved) => found.solved.push(solved),
                Entry::Specialty(specialty) => found.specialties.push(specialty),
                Entry::Answered(kept) => found.samples.push(*kept),
                Entry::Again(kept) => found.again.push(*kept),
            }
        }
        Ok(found)
    }

    /// Holds an endpoint against what it answered to known questions when the answers in the log were given, and the `n_kept` that the
    /// engine kept, or notes it.
    pub(crate) fn hold(&mut self, now: Option<CanaryAnswers>, n_kept: usize) -> Result<()> {
        let has_answers = !self.samples.is_empty() || !self.solved.is_empty() || n_kept > 0;
        match (&self.canary, now) {
            (Some(then), Some(now)) if has_answers => {
                check_same(then, &now, &self.path)?;
            }
            (Some(_), None) if has_answers => return Err(takes_no_canary(&self.path)),
            (_, Some(now)) => {
                self.log.append(&Entry::Canary(now.clone()))?;
                self.canary = Some(now);
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// Lets the classifier keep its answers as they come, those of an earlier process first, and holds its server against what it answered
    /// to known questions then, or notes it.
    pub(crate) fn hold_classifier(&mut self, classifier: &Engine, cancel: &Cancel) -> Result<()> {
        let who = serde_json::to_string(classifier.identity()).unwrap_or_default();
        let n_kept = kept_beside(classifier, &self.path, &who, self.classifier_canary.is_some())?;
        let Some(now) = classifier.canary(Call::Generate, cancel)? else { return Ok(()) };
        match &self.classifier_canary {
            Some(then) if !self.specialties.is_empty() || n_kept > 0 => check_same(then, &now, &self.path),
            _ => {
                self.log.append(&Entry::ClassifierCanary(now.clone()))?;
                self.classifier_canary = Some(now);
                Ok(())
            }
        }
    }

    /// As [`Self::hold_classifier`], of an embedder, whose vectors stand in the file of what it answered alone, until the run is finished.
    pub(crate) fn hold_embedder(&mut self, embedder: &Embedder) -> Result<()> {
        let kept = beside(&self.path, embedder.name(), self.embedder_canary.is_some());
        let n_kept = embedder.keep_answers(&kept, embedder.name())?;
        match (&self.embedder_canary, embedder.canary()) {
            (Some(then), Some(now)) if n_kept > 0 => check_same(then, &now, &self.path),
            (_, Some(now)) => {
                self.log.append(&Entry::EmbedderCanary(now.clone()))?;
                self.embedder_canary = Some(now);
                Ok(())
            }
            (_, None) => Ok(()),
        }
    }

    /// The answers to `task` so far, by the places of its questions.
    pub(crate) fn samples_of(&self, task: Task, questions: &[Question]) -> Result<Vec<Option<Sample>>> {
        self.answers_of(&self.samples, task, questions)
    }

    /// The second answers to `task` so far, by the places of its questions.
    pub(crate) fn again_of(&self, task: Task, questions: &[Question]) -> Result<Vec<Option<Sample>>> {
        self.answers_of(&self.again, task, questions)
    }

    fn answers_of(&self, kept: &[Kept<Sample>], task: Task, questions: &[Question]) -> Result<Vec<Option<Sample>>> {
        let name = task.name();
        let of_task = kept.iter().filter(|kept| kept.what.task == name);
        self.placed(questions, of_task.map(|kept| (kept.what.index, kept)))
    }

    /// The solved pool questions of `task` so far, by their places in the pool.
    pub(crate) fn solved_of(&self, task: Task, pool: &[Question]) -> Result<Vec<Option<Solved>>> {
        let name = task.name();
        let of_task = self.solved.iter().filter(|kept| kept.what.task == name);
        self.placed(pool, of_task.map(|kept| (kept.what.index, kept)))
    }

    /// The specialties told so far, by the places of the questions of `task`.
    pub(crate) fn specialties_of(&self, task: Task, questions: &[Question]) -> Result<Vec<Option<Specialty>>> {
        let name = task.name();
        let of_task = self.specialties.iter().filter(|kept| kept.what.task == name);
        self.placed(questions, of_task.map(|kept| (kept.what.index, kept)))
    }

    /// Those beyond the last of `questions` are of a run over more.
    fn placed<'a, T: Clone + 'a>(
        &self,
        questions: &[Question],
        entries: impl Iterator<Item = (usize, &'a Kept<T>)>,
    ) -> Result<Vec<Option<T>>> {
        let digests: Vec<String> = questions.iter().map(content_digest).collect();
        let mut found: Vec<Option<T>> = questions.iter().map(|_| None).collect();
        for (index, kept) in entries {
            match digests.get(index) {
                None => {}
                Some(digest) if *digest == kept.question => found[index] = Some(kept.what.clone()),
                Some(_) => return Err(Error::OtherRun { path: self.path.display().to_string() }),
            }
        }
        Ok(found)
    }

    pub(crate) fn append(&mut self, question: &Question, sample: &Sample) -> Result<()> {
        self.log.append(&Entry::Answered(Box::new(of_question(question, sample))))?;
        self.sync(false)
    }

    pub(crate) fn append_again(&mut self, question: &Question, sample: &Sample) -> Result<()> {
        self.log.append(&Entry::Again(Box::new(of_question(question, sample))))?;
        self.sync(false)
    }

    pub(crate) fn append_solved(&mut self, question: &Question, solved: &Solved) -> Result<()> {
        self.log.append(&Entry::Solved(of_question(question, solved)))?;
        self.sync(false)
    }

    pub(crate) fn append_specialty(
        &mut self,
        question: &Question,
        task: &str,
        index: usize,
        field: &str,
    ) -> Result<()> {
        let told = Specialty { task: task.to_owned(), index, field: field.to_owned() };
        self.log.append(&Entry::Specialty(of_question(question, &told)))?;
        self.sync(false)
    }

    /// Forces what was appended to the disk, now or when it is time again.
    pub(crate) fn sync(&mut self, now: bool) -> Result<()> {
        if now || self.synced.elapsed() >= SYNC_EVERY {
            self.log.sync()?;
            self.synced = Instant::now();
        }
        Ok(())
    }
}
