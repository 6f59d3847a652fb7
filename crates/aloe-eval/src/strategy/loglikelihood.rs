//! The option with the highest summed log-probability after the prompt; the first wins a tie, as in numpy's argmax.

use super::{TaskRun, first_best, handed, item};
use crate::{Error, Result, Sample, ScoredChoice};
use aloe_engine::{Continuation, Prompt, ScoreRequest, ScoreResult};
use aloe_record::{CounterRng, Progress, digest};
use aloe_task::wording::{choice_prompt, lm_eval};
use aloe_task::{ChoicePrompt, Protocol, Question};

/// One prompt per question.
pub(crate) struct Plan {
    prompts: Vec<ChoicePrompt>,
}

/// Words every prompt; with shots, draws the examples.
pub(crate) fn prepare(run: &TaskRun) -> Result<Plan> {
    let k = run.config.shots;
    let pool = if k == 0 { Vec::new() } else { run.task.load_shot_pool(&run.config.data_dir)? };
    let chosen = match run.config.protocol {
        _ if k == 0 => vec![Vec::new(); run.questions.len()],
        Protocol::LmEval => lm_eval::shot_indices(run.task, pool.len(), run.questions.len(), k)?,
        _ => run.questions.iter().map(|question| own_shots(run, &pool, question)).collect::<Result<_>>()?,
    };
    let prompts = run.questions.iter().zip(&chosen).map(|(question, indices)| {
        let shots: Vec<&Question> = indices.iter().map(|&index| &pool[index]).collect();
        Ok(choice_prompt(run.task, run.config.protocol, question, &shots)?)
    });
    Ok(Plan { prompts: prompts.collect::<Result<_>>()? })
}

/// Our rule: `k` pool questions drawn for this question alone; one with the same text is passed over.
fn own_shots(run: &TaskRun, pool: &[Question], question: &Question) -> Result<Vec<usize>> {
    let mut indices: Vec<usize> = (0..pool.len()).filter(|&index| pool[index].stem != question.stem).collect();
    let k = run.config.shots;
    if indices.len() < k {
        return Err(aloe_task::Error::Pool { task: run.task.name(), n_shots: k, n_pool: indices.len() }.into());
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
            prompt: Prompt::Text(prompt.text.clone()),
            continuations: prompt.continuations.iter().map(|text| Continuation::Text(text.clone())).collect(),
        }
    }

    fn sample(&self, run: &TaskRun, index: usize, result: ScoreResult) -> Result<Sample> {
        let (question, prompt) = (&run.questions[index], &self.prompts[index]);
        let choices: Vec<ScoredChoice> = result
            .continuations
            .into_iter()
            .map(|scored| ScoredChoice { logp: scored.sum(), ids: scored.ids, logps: scored.logps })
            .collect();
        let finite = choices.iter().all(|choice| choice.logp.is_finite());
        if choices.len() != prompt.choices.len() || !finite {
            let reason = format!("{} options, {} finite log-probabilities", prompt.choices.len(), choices.len());
            return Err(Error::Answer { id: result.id, reason });
        }
        let predicted = first_best(choices.iter().map(|choice| choice.logp));
        let by_length = choices.iter().zip(&prompt.choices).map(|(c, text)| c.logp / text.chars().count() as f64);
        Ok(Sample {
            task: run.task.name(),
            id: question.id.clone(),
            index,
            subject: question.subject.clone(),
            n_choices: question.choices.len(),
            key: question.key,
            predicted: Some(predicted),
            correct: predicted == question.key,
            correct_norm: Some(first_best(by_length) == question.key),
            prompt_sha256: digest::bytes(prompt.text.as_bytes()),
            prompt_ids: result.prompt_ids,
            choices,
            votes: Vec::new(),
            tie: false,
            refused: None,
        })
    }
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
