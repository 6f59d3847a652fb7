//! One open question's record: a line of `samples.jsonl`. It holds what a person needs to label the answer, and what a judge needs to
//! judge it again. No times, no paths.

use super::overlap::{Overlap, overlap};
use aloe_engine::{Completion, FinishReason};
use aloe_task::Protocol;
use aloe_task::extract::without_reasoning;
use aloe_task::open::OpenQuestion;
use aloe_task::wording::open::OpenVerdict;
use serde::{Deserialize, Serialize};

/// A question, what the model said, and what the judges say of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenSample {
    /// The task's name.
    pub task: String,
    /// The question's id.
    pub id: String,
    /// The question's place in its file, from 0.
    pub index: usize,
    /// Category; empty where the set names none.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub category: String,
    /// The question.
    pub question: String,
    /// The reference answer.
    pub reference: String,
    /// What the model said, a reasoning block included.
    pub answer: String,
    /// Why it ended; none where the question was refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finish_reason: Option<FinishReason>,
    /// Whether a reasoning block was cut out before judging (and, under our protocol, before comparing words).
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub reasoning_removed: bool,
    /// The prompt as the model saw it; empty where a server renders it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub prompt_ids: Vec<u32>,
    /// Words shared with the reference; none where the answer is empty.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub overlap: Option<Overlap>,
    /// One entry a judge, in the panel's order; none where the answer is empty, which is wrong without asking.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub verdicts: Vec<JudgeReply>,
    /// Whether more than half of the judges call the answer right; none without judges.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub majority: Option<bool>,
    /// Whether all do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub full_agreement: Option<bool>,
    /// Why the model or its server did not take the question; it then has an empty answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

/// What one judge replied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgeReply {
    /// The judge's name in the results.
    pub judge: String,
    /// The verdict read from the reply.
    pub verdict: OpenVerdict,
    /// The reply.
    pub text: String,
    /// Why the judge or its server did not take the request; there is then no verdict.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

impl OpenSample {
    /// The record of a question without an answer yet.
    pub(crate) fn unanswered(task: &str, index: usize, question: &OpenQuestion) -> Self {
        Self {
            task: task.to_owned(),
            id: question.id.clone(),
            index,
            category: question.category.clone(),
            question: question.question.clone(),
            reference: question.reference.clone(),
            answer: String::new(),
            finish_reason: None,
            reasoning_removed: false,
            prompt_ids: Vec::new(),
            overlap: None,
            verdicts: Vec::new(),
            majority: None,
            full_agreement: None,
            refused: None,
        }
    }

    /// Puts the answer in and compares its words with the reference's.
    pub(crate) fn answered(&mut self, protocol: Protocol, completion: Completion) {
        let Completion { text: answer, finish_reason, reasoning_apart, .. } = completion;
        let (visible, is_cut) = without_reasoning(&answer);
        // The harness compares the text as it came.
        let compared = if protocol == Protocol::LmEval { answer.as_str() } else { visible.trim() };
        self.overlap = (!compared.is_empty()).then(|| overlap(compared, &self.reference));
        (self.reasoning_removed, self.finish_reason) = (is_cut || reasoning_apart, Some(finish_reason));
        self.answer = answer;
    }

    /// What the judges see: the answer without a reasoning block.
    pub fn visible(&self) -> String {
        without_reasoning(&self.answer).0.trim().to_owned()
    }

    /// Whether there is nothing to judge.
    pub fn is_empty(&self) -> bool {
        self.visible().is_empty()
    }
}
