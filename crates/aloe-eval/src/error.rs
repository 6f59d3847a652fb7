//! Every way an evaluation can fail.

/// A failure of an evaluation or of a comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Questions, wording or their files.
    #[error(transparent)]
    Task(#[from] aloe_task::Error),
    /// The model.
    #[error(transparent)]
    Engine(#[from] aloe_engine::Error),
    /// Training rows that cannot be compared.
    #[error(transparent)]
    Data(#[from] aloe_data::Error),
    /// Storage, or an interrupt.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
    /// Settings that do not go together.
    #[error("{0}")]
    Config(String),
    /// The answers of another run lie in the output folder.
    #[error("{path} holds answers of other settings, another model or other questions; choose another output folder")]
    OtherRun {
        /// The log.
        path: String,
    },
    /// The servers answer otherwise than when the answers so far were given.
    #[error(
        "the endpoint no longer answers as it did for the answers in {path}: {difference}. Load the same weights there, or choose \
         another output folder to start over"
    )]
    OtherWeights {
        /// The log.
        path: String,
        /// How far the answers to known questions lie apart.
        difference: String,
    },
    /// Not one question of a task was taken.
    #[error("{task}: all {n} questions were refused, so there is nothing to report; the first: {reason}")]
    AllRefused {
        /// The task.
        task: String,
        /// Its questions.
        n: usize,
        /// Why the first was refused.
        reason: String,
    },
    /// Two runs that cannot be paired.
    #[error("cannot compare: {0}")]
    Unpaired(String),
    /// A line of a run's file that is not whole, or not what it should be.
    #[error("{path}:{line}: {reason}; the file was cut or edited")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A finished run whose files do not belong together.
    #[error("cannot score again: {0}")]
    Torn(String),
    /// The engine's answer does not fit the request.
    #[error("question {id}: {reason}")]
    Answer {
        /// Task and question.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// What a server answered to a question cannot be used.
    #[error("{error}; the question stands in {at}")]
    Asked {
        /// `file:line` (or `file#row`) of the question, relative to the data folder.
        at: String,
        /// The engine's error, which names the request.
        error: aloe_engine::Error,
    },
}

impl Error {
    /// The engine's fault at a request of one of `questions`, with where the question stands; they are (id of its requests, place). Of several
    /// requests of one question each has more behind a stroke.
    pub(crate) fn at_question<'a>(self, questions: impl Iterator<Item = (String, &'a str)>) -> Self {
        let Self::Engine(error @ aloe_engine::Error::Answer { .. }) = self else { return self };
        let aloe_engine::Error::Answer { id, .. } = &error else { return Self::Engine(error) };
        let is_of = |asked: &str| id.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let found = questions.filter(|(asked, _)| is_of(asked)).max_by_key(|(asked, _)| asked.len());
        match found {
            Some((_, at)) if !at.is_empty() => Self::Asked { at: at.to_owned(), error },
            _ => Self::Engine(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_at_one_request_of_a_question_names_where_the_question_stands() {
        let said = |id: &str| {
            let (url, reason) = ("http://a/v1".to_owned(), "got 0".to_owned());
            let error = Error::Engine(aloe_engine::Error::Answer { url, id: id.to_owned(), reason });
            let places = [("t/1", "a:1"), ("t/1/2", "a:2"), ("t/12", "a:3")];
            error.at_question(places.into_iter().map(|(id, at)| (id.to_owned(), at))).to_string()
        };
        assert_eq!(said("t/1"), "endpoint http://a/v1: request t/1: got 0; the question stands in a:1");
        // The third sample of question `1/2`, and its first sample's retry.
        for id in ["t/1/2/3", "t/1/2/0/retry1"] {
            assert!(said(id).ends_with("stands in a:2"), "{}", said(id));
        }
        assert!(said("t/12").ends_with("stands in a:3"));
        assert_eq!(said("t/13"), "endpoint http://a/v1: request t/13: got 0");
    }
}
