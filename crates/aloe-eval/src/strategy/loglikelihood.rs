//! The option with the highest summed log-probability after the prompt; the first wins a tie, as in numpy's argmax. The prompts, the draw of
//! their examples and a question's record are `next_letter`'s too.

use super::{TaskRun, best_told, first_best, handed, item};
use crate::same::SameQuestions;
use crate::{Error, Result, Sample, ScoredChoice};
use aloe_engine::{Continuation, Prompt, ScoreRequest, ScoreResult};
use aloe_record::{CounterRng, Progress, digest};
use aloe_task::wording::{Shown, lm_eval};
use aloe_task::{ChoicePrompt, Protocol, Question, Task};

/// One prompt per question.
pub(crate) struct Plan {
    pub(super) prompts: Vec<ChoicePrompt>,
}

/// Words every prompt; with shots, draws the examples.
pub(crate) fn prepare(run: &TaskRun) -> Result<Plan> {
    let k = run.config.shots;
    let (dir, split, protocol) = (&run.config.data_dir, run.config.split, run.config.protocol);
    let pool = if k == 0 { Vec::new() } else { run.task.load_shot_pool(dir, split, protocol)? };
    let chosen = match run.config.protocol {
        _ if k == 0 => vec![Vec::new(); run.questions.len()],
        Protocol::LmEval => lm_eval::shot_indices(run.task, &pool, run.questions.len(), k)?,
        _ => {
            let same = SameQuestions::of(&pool.iter().collect::<Vec<_>>(), run.config.medprompt.same_question_jaccard);
            run.questions.iter().map(|question| own_shots(run, &pool, &same, question)).collect::<Result<_>>()?
        }
    };
    let prompts = run.questions.iter().zip(&chosen).map(|(question, indices)| {
        let shots: Vec<&Question> = indices.iter().map(|&index| &pool[index]).collect();
        run.config.choice_prompt(run.task, question, &shots)
    });
    Ok(Plan { prompts: prompts.collect::<Result<_>>()? })
}

/// Our rule: `k` pool questions drawn for this question alone; those that are the question itself are passed over.
fn own_shots(run: &TaskRun, pool: &[Question], same: &SameQuestions, question: &Question) -> Result<Vec<usize>> {
    let passed_over = same.places(question);
    let mut indices: Vec<usize> = (0..pool.len()).filter(|index| !passed_over.contains(index)).collect();
    let k = run.config.shots;
    if indices.len() < k {
        let (task, file) = (run.task.name(), pool.first().map_or_else(String::new, |one| one.source.clone()));
        return Err(aloe_task::Error::Pool { task, n_shots: k, n_pool: indices.len(), file }.into());
    }
    CounterRng::new(run.config.seed, "few-shot", item(run.task, &question.id)).shuffle(&mut indices);
    indices.truncate(k);
    Ok(indices)
}

impl Plan {
    pub(crate) fn answer(
        &self,
        run: &TaskRun,
        indices: &[usize],
        take: &mut dyn FnMut(Sample) -> Result<()>,
    ) -> Result<()> {
        let requests: Vec<ScoreRequest> = indices.iter().map(|&index| self.request(run, index)).collect();
        handed(
            |take| run.engine.score_into(&requests, &Progress::silent(), run.cancel, take),
            |at, scored| {
                let index = indices[at];
                take(match scored {
                    Ok(result) => self.sample(run, index, result)?,
                    Err(refused) => Sample::refused(run.task.name(), index, &run.questions[index], refused.to_string()),
                })
            },
        )
    }

    fn request(&self, run: &TaskRun, index: usize) -> ScoreRequest {
        let prompt = &self.prompts[index];
        ScoreRequest {
            id: format!("{}/{}", run.task.name(), run.questions[index].id),
            prompt: shown(prompt),
            continuations: prompt.continuations.iter().map(|text| Continuation::Joint(text.clone())).collect(),
        }
    }

    fn sample(&self, run: &TaskRun, index: usize, result: ScoreResult) -> Result<Sample> {
        let (question, prompt) = (&run.questions[index], &self.prompts[index]);
        let sums: Vec<f64> = result.continuations.iter().map(|scored| scored.sum()).collect();
        let choices = result
            .continuations
            .into_iter()
            .map(|scored| ScoredChoice { logp: Some(scored.sum()), ids: scored.ids, logps: scored.logps })
            .collect();
        let sample = weighed(run.task, index, question, prompt, result.prompt_ids, choices)?;
        let by_length = sums.iter().zip(&prompt.choices).map(|(logp, text)| logp / text.chars().count() as f64);
        Ok(Sample { correct_norm: Some(first_best(by_length) == question.key), ..sample })
    }
}

/// The prompt as the engine takes it.
pub(super) fn shown(prompt: &ChoicePrompt) -> Prompt {
    match &prompt.shown {
        Shown::Text(text) => Prompt::Text(text.clone()),
        Shown::Messages(messages) => Prompt::Messages(messages.clone()),
    }
}

/// A question's record by what its options weigh. One that weighs no number is a fault of the model's answer, one that is not told is not.
pub(super) fn weighed(
    task: Task,
    index: usize,
    question: &Question,
    prompt: &ChoicePrompt,
    prompt_ids: Vec<u32>,
    choices: Vec<ScoredChoice>,
) -> Result<Sample> {
    let n_usable = choices.iter().filter(|choice| choice.logp.is_none_or(f64::is_finite)).count();
    if choices.len() != prompt.choices.len() || n_usable != choices.len() {
        let (n, from) = (prompt.choices.len(), &question.source);
        let reason = format!("{n} options, but {n_usable} finite log-probabilities (asked from {from})");
        return Err(Error::Answer { id: format!("{}/{}", task.name(), question.id), reason });
    }
    let predicted = best_told(&choices);
    Ok(Sample {
        predicted,
        correct: predicted == Some(question.key),
        prompt_sha256: digest::bytes(prompt.shown.to_digest().as_bytes()),
        prompt_ids,
        choices,
        ..Sample::unanswered(task.name(), index, question)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_scores_wins() {
        assert_eq!(first_best([-2.0, -1.0, -1.0].into_iter()), 1);
        assert_eq!(first_best([-1.0, -1.0].into_iter()), 0);
    }
}
