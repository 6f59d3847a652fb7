//! Answers in free text: the texts of a question and of what a run and its judges said, each a row of a block.

use serde::Serialize;

/// A question's texts: a row of the questions'.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OpenQuestionText<'a> {
    /// The question.
    pub stem: &'a str,
    /// The reference answer.
    pub reference: &'a str,
}

/// An answer in free text: a row of the run's.
#[derive(Clone, Debug, Serialize)]
pub struct OpenAnswerText<'a> {
    /// Why the question was refused.
    pub refused: Option<&'a str>,
    /// The answer.
    pub answer: &'a str,
    /// Why it ended; none where the question was refused.
    pub finish_reason: Option<&'a str>,
    /// Whether a reasoning block was cut out before judging.
    pub reasoning_removed: bool,
    /// Words in common with the reference, each measure by its name, 0 to 1.
    pub overlap: Vec<(&'a str, f64)>,
    /// What the judges said, in the panel's order.
    pub verdicts: Vec<VerdictText<'a>>,
}

/// One judge's reply.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct VerdictText<'a> {
    /// The judge's name.
    pub judge: &'a str,
    /// The verdict in words.
    pub verdict: &'a str,
    /// The reply, or why the judge did not take the request.
    pub text: &'a str,
}
