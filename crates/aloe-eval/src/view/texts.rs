//! What a page shows of a line: the texts of a question or an answer, packed by the segment, and the rest as it is counted and filtered by.

use super::index::Lines;
use crate::asked::AskedQuestion;
use crate::{Sample, Vote, answers};
use aloe_engine::FinishReason;
use aloe_report::{AnswerText, QuestionText, VoteText, pack_rows};
use serde::de::DeserializeOwned;

/// `samples.jsonl`.
pub(super) const SAMPLES: Lines<Sample, Sample> = Lines { parse: json, pack: pack_answers, light, is_growing: false };
/// The log of answers of a run under way.
pub(super) const ANSWERS: Lines<Sample, Sample> =
    Lines { parse: answers::answered, pack: pack_answers, light, is_growing: true };
/// `questions.jsonl`.
pub(super) const QUESTIONS: Lines<AskedQuestion, (String, String)> =
    Lines { parse: json, pack: pack_questions, light: light_question, is_growing: false };

pub(super) fn json<T: DeserializeOwned>(line: &[u8]) -> Result<Option<T>, String> {
    serde_json::from_slice(line).map(Some).map_err(|error| error.to_string())
}

/// A sample without its texts, and without what no reader looks at: ids of tokens, and log-probabilities by token.
fn light(mut sample: Sample) -> Sample {
    sample.prompt_ids = Vec::new();
    sample.prompt_sha256 = String::new();
    for choice in &mut sample.choices {
        (choice.ids, choice.logps) = (Vec::new(), Vec::new());
    }
    for vote in &mut sample.votes {
        (vote.ids, vote.prompt_ids, vote.shots, vote.text) = (None, Vec::new(), Vec::new(), String::new());
    }
    sample
}

fn pack_answers(samples: &[Sample]) -> Vec<u8> {
    pack_rows(&samples.iter().map(answer).collect::<Vec<_>>())
}

fn answer(sample: &Sample) -> AnswerText<'_> {
    AnswerText {
        refused: sample.refused.as_deref(),
        prompt_sha256: &sample.prompt_sha256,
        logps: sample.choices.iter().map(|choice| choice.logp).collect(),
        votes: sample.votes.iter().map(vote).collect(),
    }
}

fn vote(vote: &Vote) -> VoteText<'_> {
    VoteText {
        order: &vote.order,
        answer: vote.answer,
        text: &vote.text,
        finish_reason: reason(vote.finish_reason),
        logp: vote.logp,
        shots: &vote.shots,
        reasoning_removed: vote.reasoning_removed,
    }
}

pub(super) fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "a stop token or text",
        FinishReason::Length => "the limit of new tokens",
        FinishReason::Context => "the end of the model's context",
        FinishReason::Other => "another reason of the server",
    }
}

/// Task and id, by which a sample finds its question's texts.
fn light_question(question: AskedQuestion) -> (String, String) {
    (question.task, question.id)
}

fn pack_questions(questions: &[AskedQuestion]) -> Vec<u8> {
    pack_rows(&questions.iter().map(question).collect::<Vec<_>>())
}

fn question(asked: &AskedQuestion) -> QuestionText<'_> {
    QuestionText { stem: &asked.stem, context: asked.context.as_deref(), choices: &asked.choices }
}
