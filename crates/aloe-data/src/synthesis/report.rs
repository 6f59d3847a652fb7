//! What a synthesis came to: yield, attempts, the blind reader, betraying phrases, cost; and its files.

use super::verdict::{Verdict, betrayal, discusses_all};
use super::{Case, SynthesisConfig, page};
use crate::Result;
use crate::asking::Cost;
use crate::data::lines;
use aloe_engine::EngineIdentity;
use aloe_record::atomic;
use aloe_task::wording::synthesis::{SYNTHESIS_PROMPT_VERSION, Told, answer_line, explanation, shown};
use aloe_task::worked::{self, Made, Worked};
use aloe_task::{ChoiceOrder, Task, letter};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What the second reader picked from kept reasonings without their answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlindCounts {
    /// Reasonings shown to it.
    pub n: usize,
    /// It picked the key.
    pub n_key: usize,
    /// It picked another option.
    pub n_other: usize,
    /// No option could be read from its reply.
    pub n_unread: usize,
    /// The model or its server refused the request.
    pub n_refused: usize,
}

/// One task's solutions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SynthesisYield {
    /// Its name.
    pub task: String,
    /// Train questions asked.
    pub n_questions: usize,
    /// Those with a solution that was kept.
    pub n_accepted: usize,
    /// `n_accepted / n_questions`.
    pub rate: f64,
    /// Questions for which the set has an explanation, which the writer was shown in mode `gold`; the others were written without.
    pub n_with_explanation: usize,
    /// Questions that the model or its server refused.
    pub n_refused: usize,
    /// Solutions kept at the first, second, .. attempt.
    pub accepted_at_attempt: Vec<usize>,
    /// Attempts by what became of them.
    pub attempts: BTreeMap<Verdict, usize>,
    /// Of kept solutions; absent where no second reader was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blind: Option<BlindCounts>,
    /// Kept solutions with a phrase that betrays an answer known beforehand.
    pub n_betraying: usize,
    /// The same by kind of phrase, the first of each solution.
    pub betraying: BTreeMap<&'static str, usize>,
    /// Kept solutions that discuss every option (of PubMedQA all).
    pub n_discussing_every_option: usize,
    /// Of attempts.
    pub cost: Cost,
    /// Of the second reader.
    pub blind_cost: Cost,
}

/// The whole account; `results.json` holds it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SynthesisReport {
    /// The writer, which is the second reader too.
    pub model: EngineIdentity,
    /// What decided the texts beside the questions.
    pub settings: Value,
    /// One entry a task.
    pub tasks: Vec<SynthesisYield>,
    /// What the user must be told, a sentence each.
    pub notices: Vec<String>,
    /// Seconds of asking, over all sessions. Not in `results.json`, which is the same each time.
    #[serde(skip)]
    pub seconds: f64,
}

impl SynthesisReport {
    pub(super) fn of(model: &EngineIdentity, config: &SynthesisConfig, cases: &[Case], seconds: f64) -> Self {
        let yield_of = |task: &Task| {
            let of_task: Vec<&Case> = cases.iter().filter(|case| case.task == *task).collect();
            SynthesisYield::of(*task, config, &of_task)
        };
        let tasks: Vec<SynthesisYield> = config.tasks.iter().map(yield_of).collect();
        let settings = json!({
            "mode": config.mode, "shots": config.shots, "attempts": config.attempts, "limit": config.limit,
            "in_parts": config.in_parts, "sampling": config.sampling, "seed": config.seed, "prompt_version": SYNTHESIS_PROMPT_VERSION,
        });
        let notices = tasks.iter().flat_map(|one| one.notices(config.mode)).collect();
        Self { model: model.clone(), settings, tasks, notices, seconds }
    }

    /// One sentence: yield, attempts, blind reader, betraying phrases and cost of each task.
    pub fn summary(&self) -> String {
        let tasks: Vec<String> = self.tasks.iter().map(SynthesisYield::words).collect();
        format!("{}; {:.0} s of asking", tasks.join("; "), self.seconds)
    }
}

/// `a of b (c %)`.
pub(super) fn share(n: usize, of: usize) -> String {
    match of {
        0 => format!("{n} of 0"),
        _ => format!("{n} of {of} ({:.1} %)", 100.0 * n as f64 / of as f64),
    }
}

impl SynthesisYield {
    fn of(task: Task, config: &SynthesisConfig, cases: &[&Case]) -> Self {
        let kept: Vec<(&Case, &str)> =
            cases.iter().filter_map(|case| Some((*case, case.accepted()?.reasoning.as_str()))).collect();
        let mut accepted_at_attempt = vec![0; config.attempts];
        kept.iter().for_each(|(case, _)| accepted_at_attempt[case.judged.len() - 1] += 1);
        let (mut attempts, mut betraying) = (BTreeMap::new(), BTreeMap::new());
        let (mut cost, mut blind_cost) = (Cost::default(), Cost::default());
        for case in cases {
            case.judged.iter().for_each(|judged| *attempts.entry(judged.verdict).or_default() += 1);
            case.item.attempts.iter().for_each(|answered| cost.add(answered));
            case.blind.iter().flat_map(|item| &item.attempts).for_each(|answered| blind_cost.add(answered));
        }
        let phrases = kept.iter().filter_map(|(_, reasoning)| betrayal(reasoning));
        phrases.for_each(|phrase| *betraying.entry(phrase).or_default() += 1);
        Self {
            task: task.name(),
            n_questions: cases.len(),
            n_accepted: kept.len(),
            rate: kept.len() as f64 / cases.len().max(1) as f64,
            n_with_explanation: cases.iter().filter(|case| explanation(&case.question).is_some()).count(),
            n_refused: cases.iter().filter(|case| case.item.refused.is_some()).count(),
            accepted_at_attempt,
            attempts,
            blind: config.blind.then(|| blind_counts(&kept)),
            n_betraying: betraying.values().sum(),
            betraying,
            n_discussing_every_option: kept.iter().filter(|(case, text)| discusses_all(&case.question, text)).count(),
            cost,
            blind_cost,
        }
    }

    /// Attempts in all.
    pub fn n_attempts(&self) -> usize {
        self.attempts.values().sum()
    }

    fn words(&self) -> String {
        let mut text = format!(
            "{}: {} questions solved in {} attempts",
            self.task,
            share(self.n_accepted, self.n_questions),
            self.n_attempts()
        );
        if let Some(blind) = self.blind {
            text += &format!(", a blind reader reached the key from {}", share(blind.n_key, blind.n));
        }
        let n_tokens = self.cost.n_tokens + self.blind_cost.n_tokens;
        let n_prompt = self.cost.n_prompt_tokens + self.blind_cost.n_prompt_tokens;
        let n_requests = self.cost.n_requests + self.blind_cost.n_requests;
        text +=
            &format!(", {} betray a known answer; {n_requests} requests, ", share(self.n_betraying, self.n_accepted));
        match self.cost.n_untold + self.blind_cost.n_untold {
            n if n == n_requests && n > 0 => text + "tokens not told",
            _ => text + &format!("{n_prompt} prompt and {n_tokens} new tokens"),
        }
    }

    fn notices(&self, mode: Told) -> Vec<String> {
        let mut notices = Vec::new();
        let n_without = self.n_questions - self.n_with_explanation;
        if mode == Told::Gold && n_without > 0 {
            notices.push(format!(
                "{}: the set has no reference explanation for {}, so their solutions were written from the right answer alone",
                self.task,
                share(n_without, self.n_questions)
            ));
        }
        let of_parts = [Verdict::NoQuestionPart, Verdict::NoOptionsPart, Verdict::NoChoicePart, Verdict::NoParts];
        let n_unparted: usize = of_parts.iter().filter_map(|verdict| self.attempts.get(verdict)).sum();
        if 2 * n_unparted > self.n_attempts() {
            notices.push(format!(
                "{}: {} attempts reached the key without the three parts (question, each option, final choice), which small models often \
                 fail; `in_parts = false` keeps such solutions",
                self.task,
                share(n_unparted, self.n_attempts())
            ));
        }
        if self.n_accepted == 0 {
            notices.push(format!("{}: no attempt was kept, so there is no training row", self.task));
        }
        if self.n_refused > 0 {
            notices.push(format!("{}: the model refused {} questions", self.task, self.n_refused));
        }
        let n_untold = self.cost.n_untold + self.blind_cost.n_untold;
        if n_untold > 0 {
            notices.push(format!("{}: the endpoint does not tell the tokens of {n_untold} answers", self.task));
        }
        notices
    }
}

fn blind_counts(kept: &[(&Case, &str)]) -> BlindCounts {
    let mut counts = BlindCounts { n: kept.len(), ..BlindCounts::default() };
    for (case, _) in kept {
        match case.picked() {
            None => counts.n_refused += 1,
            Some(None) => counts.n_unread += 1,
            Some(Some(picked)) if picked == case.question.key => counts.n_key += 1,
            Some(Some(_)) => counts.n_other += 1,
        }
    }
    counts
}

/// Who wrote a solution, and what it had seen.
fn made(mode: Told) -> Made {
    if mode == Told::Gold { Made::GoldConditioned } else { Made::SelfGenerated }
}

/// Writes all files.
pub(super) fn write(out: &Path, config: &SynthesisConfig, cases: &[Case], report: &SynthesisReport) -> Result<()> {
    lines(&out.join("train.jsonl"), cases.iter().filter_map(|case| row(config, case)))?;
    lines(&out.join("attempts.jsonl"), cases.iter().flat_map(attempt_lines))?;
    for task in &config.tasks {
        let name = match config.tasks.len() {
            1 => "examples.json".to_owned(),
            _ => format!("examples_{}.json", task.name()),
        };
        let of_task = cases.iter().filter(|case| case.task == *task);
        let solved: Vec<(&Case, Vec<Worked>)> =
            of_task.filter_map(|case| Some((case, vec![worked_answer(config.mode, case)?]))).collect();
        let entries = solved.iter().map(|(case, right)| worked::Entry {
            question: &case.question,
            n_attempts: case.judged.len(),
            right,
        });
        worked::write(&out.join(name), entries)?;
    }
    atomic::write_json(&out.join("results.json"), report)?;
    Ok(page::draw(config, report, cases).write(&out.join("report.html"))?)
}

/// A training row: the published columns first.
fn row(config: &SynthesisConfig, case: &Case) -> Option<Value> {
    let judged = case.accepted()?;
    let question = &case.question;
    let is_shown = config.mode == Told::Gold && explanation(question).is_some();
    let blind = case.blind.as_ref().map(|_| match case.picked() {
        None => "refused",
        Some(None) => "unread",
        Some(Some(picked)) if picked == question.key => "key",
        Some(Some(_)) => "other",
    });
    Some(json!({
        "question": shown(question), "response": format!("{}\n{}", judged.reasoning, answer_line(question)),
        "id": format!("{}/{}", case.task.name(), question.id), "subject": question.subject,
        "task": if question.is_yes_no_maybe() { "pubmedqa_cot" } else { "mcqa_cot" },
        "made": made(config.mode).words(), "support": if is_shown { "reference explanation" } else { "none" },
        "attempts": case.judged.len(), "blind_reader": blind, "betrays": betrayal(&judged.reasoning),
    }))
}

fn attempt_lines(case: &Case) -> Vec<Value> {
    let attempts = case.item.attempts.iter().zip(&case.judged);
    let line = |(answered, judged): (&super::Answered, &super::Judged)| {
        json!({
            "id": format!("{}/{}", case.task.name(), case.question.id), "attempt": answered.number + 1,
            "verdict": judged.verdict, "answer": judged.answer.map(|at| letter(at).to_string()),
            "key": letter(case.question.key).to_string(), "finish_reason": answered.finish_reason,
            "n_prompt_tokens": answered.n_prompt_tokens, "n_tokens": answered.n_tokens, "text": answered.text,
        })
    };
    let mut lines: Vec<Value> = attempts.map(line).collect();
    if let Some(reason) = &case.item.refused {
        lines.push(json!({"id": format!("{}/{}", case.task.name(), case.question.id), "refused": reason}));
    }
    lines
}

/// The solution as Medprompt's example, with the answer line that its prompt asks for.
fn worked_answer(mode: Told, case: &Case) -> Option<Worked> {
    let judged = case.accepted()?;
    let answered = case.item.attempts.last()?;
    let order = ChoiceOrder::natural(case.question.choices.len()).indices().to_vec();
    let text = format!("{}\nAnswer: [{}]", judged.reasoning, letter(case.question.key));
    Some(Worked { order, text, n_tokens: answered.n_prompt_tokens.zip(answered.n_tokens), made: made(mode) })
}
