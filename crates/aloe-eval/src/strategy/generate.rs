//! Generated answers: prompts with examples and option orders, sampling, reading, majority vote. Shared by cot, sc-cot and
//! medprompt, which differ in the examples and orders they choose.

use super::{TaskRun, handed, item};
use crate::vote::majority;
use crate::{Error, Result, Sample, Vote};
use aloe_engine::{Completion, GenerateRequest, GenerateResult, Prompt};
use aloe_record::{CounterRng, Progress, digest};
use aloe_task::extract::extract;
use aloe_task::wording::{cot_messages, fixed_shots};
use aloe_task::{Answer, ChoiceOrder, CotShot, Question};
use serde_json::{Map, Value};

/// Where a question's examples come from.
pub(crate) enum Shots {
    /// The first `k` fixed worked examples for questions of its kind.
    Fixed(usize),
    /// Its own, by its place among the questions.
    PerQuestion(Vec<Vec<CotShot>>),
}

/// What to ask.
pub(crate) struct Plan {
    pub(crate) shots: Shots,
    pub(crate) n_samples: usize,
    pub(crate) shuffle: bool,
    pub(crate) notes: Map<String, Value>,
}

/// The requests of one question: one per sample when options are shuffled, else one for all samples.
pub(crate) struct Asked {
    orders: Vec<ChoiceOrder>,
    shot_ids: Vec<String>,
    requests: Vec<GenerateRequest>,
    prompt_sha256: String,
}

/// Words the requests for `question`. `id` names the random streams, together with the sample's number.
pub(crate) fn ask(
    run: &TaskRun,
    question: &Question,
    shots: &[CotShot],
    n: usize,
    shuffle: bool,
    id: &str,
) -> Result<Asked> {
    let protocol = run.config.protocol;
    let orders = if shuffle {
        let mut rng = CounterRng::new(run.config.seed, "option-order", item(run.task, id));
        ChoiceOrder::draw(question.choices.len(), n, &mut rng, protocol.exhausted())
    } else {
        vec![ChoiceOrder::natural(question.choices.len()); n]
    };
    let mut sampling = run.config.sampling.clone();
    sampling.seed = run.config.seed;
    let request = |order: &ChoiceOrder, id: String, n: usize| -> Result<GenerateRequest> {
        let messages = cot_messages(protocol, question, order, shots)?;
        Ok(GenerateRequest { id, prompt: Prompt::Messages(messages), n, sampling: sampling.clone() })
    };
    let requests = if shuffle {
        let numbered = orders.iter().enumerate();
        numbered.map(|(i, order)| request(order, format!("{id}/{i}"), 1)).collect::<Result<Vec<_>>>()?
    } else {
        vec![request(&orders[0], id.to_string(), n)?]
    };
    let prompt_sha256 = match &requests[0].prompt {
        Prompt::Messages(messages) => digest::bytes(serde_json::to_string(messages).unwrap_or_default().as_bytes()),
        _ => String::new(),
    };
    let shot_ids = shots.iter().map(|shot| shot.question.id.clone()).collect();
    Ok(Asked { orders, shot_ids, requests, prompt_sha256 })
}

/// One question's votes in sample order, and the ids of the prompt where all samples share it.
pub(crate) type Votes = (Vec<Vote>, Vec<u32>);

/// The votes on a question, or why it was refused.
pub(crate) type Voted = std::result::Result<Votes, String>;

/// What has come of one question's requests.
struct Pending {
    results: Vec<Option<GenerateResult>>,
    n_missing: usize,
    refused: Option<String>,
}

/// Asks the engine, reads the answers of each asked question and hands them over, with the question's place in `asked`, once they are
/// all there.
pub(crate) fn collect(run: &TaskRun, asked: &[Asked], take: &mut dyn FnMut(usize, Voted) -> Result<()>) -> Result<()> {
    let requests: Vec<GenerateRequest> = asked.iter().flat_map(|one| one.requests.iter().cloned()).collect();
    let place = |(at, one): (usize, &Asked)| (0..one.requests.len()).map(|part| (at, part)).collect::<Vec<_>>();
    let places: Vec<(usize, usize)> = asked.iter().enumerate().flat_map(place).collect();
    let pending = |one: &Asked| {
        let n_missing = one.requests.len();
        Pending { results: (0..n_missing).map(|_| None).collect(), n_missing, refused: None }
    };
    let mut pending: Vec<Pending> = asked.iter().map(pending).collect();
    handed(
        |take| run.engine.generate_into(&requests, &Progress::silent(), run.cancel, take),
        |request, answered| {
            let (at, part) = places[request];
            let one = &mut pending[at];
            one.n_missing -= 1;
            match answered {
                Ok(result) => one.results[part] = Some(result),
                Err(refused) => one.refused = one.refused.take().or_else(|| Some(refused.to_string())),
            }
            if one.n_missing > 0 {
                return Ok(());
            }
            match one.refused.take() {
                Some(reason) => take(at, Err(reason)),
                None => {
                    let results = std::mem::take(&mut one.results).into_iter().flatten().collect();
                    take(at, Ok(read(run, &asked[at], results)?))
                }
            }
        },
    )
}

/// The votes of one question's answers.
fn read(run: &TaskRun, asked: &Asked, results: Vec<GenerateResult>) -> Result<Votes> {
    let (mut votes, mut shared_ids) = (Vec::new(), Vec::new());
    for result in results {
        let ids = result.prompt_ids.unwrap_or_default();
        let own_ids = if asked.requests.len() == 1 {
            shared_ids = ids;
            Vec::new()
        } else {
            ids
        };
        for completion in result.completions {
            let order = &asked.orders[votes.len().min(asked.orders.len() - 1)];
            votes.push(vote(run, completion, order, &asked.shot_ids, own_ids.clone()));
        }
    }
    if votes.len() != asked.orders.len() {
        let reason = format!("{} answers asked for, {} returned", asked.orders.len(), votes.len());
        return Err(Error::Answer { id: asked.requests[0].id.clone(), reason });
    }
    Ok((votes, shared_ids))
}

fn vote(run: &TaskRun, completion: Completion, order: &ChoiceOrder, shots: &[String], prompt_ids: Vec<u32>) -> Vote {
    let extracted = extract(&completion.text, order, run.config.protocol.answer_rule());
    let answer = match extracted.answer {
        Answer::Choice(index) => Some(index),
        Answer::Unparsed => None,
    };
    Vote {
        order: order.indices().to_vec(),
        shots: shots.to_vec(),
        prompt_ids,
        logp: completion.logps.as_ref().map(|logps| logps.iter().map(|&logp| f64::from(logp)).sum()),
        ids: completion.ids,
        text: completion.text,
        finish_reason: completion.finish_reason,
        answer,
        reasoning_removed: extracted.reasoning_removed,
    }
}

impl Plan {
    /// Requests that a question takes: with shuffled options each sample has a prompt of its own.
    pub(crate) fn n_requests(&self) -> usize {
        if self.shuffle { self.n_samples } else { 1 }
    }

    pub(crate) fn answer(
        &self,
        run: &TaskRun,
        indices: &[usize],
        take: &mut dyn FnMut(Sample) -> Result<()>,
    ) -> Result<()> {
        let asked: Vec<Asked> = indices.iter().map(|&index| self.ask(run, index)).collect::<Result<_>>()?;
        collect(run, &asked, &mut |at, voted| {
            let index = indices[at];
            take(match voted {
                Ok((votes, ids)) => sample(run, index, &asked[at], votes, ids),
                Err(reason) => Sample::refused(run.task.name(), index, &run.questions[index], reason),
            })
        })
    }

    fn ask(&self, run: &TaskRun, index: usize) -> Result<Asked> {
        let question = &run.questions[index];
        let id = format!("{}/{}", run.task.name(), question.id);
        let shots = match &self.shots {
            Shots::Fixed(k) => &fixed_shots(run.config.protocol, question, *k)?,
            Shots::PerQuestion(all) => &all[index],
        };
        ask(run, question, shots, self.n_samples, self.shuffle, &id)
    }
}

fn sample(run: &TaskRun, index: usize, asked: &Asked, votes: Vec<Vote>, prompt_ids: Vec<u32>) -> Sample {
    let question = &run.questions[index];
    let outcome = majority(&votes.iter().map(|vote| vote.answer).collect::<Vec<_>>());
    Sample {
        task: run.task.name(),
        id: question.id.clone(),
        index,
        subject: question.subject.clone(),
        n_choices: question.choices.len(),
        key: question.key,
        predicted: outcome.answer,
        correct: outcome.answer == Some(question.key),
        correct_norm: None,
        prompt_sha256: asked.prompt_sha256.clone(),
        prompt_ids,
        choices: Vec::new(),
        votes,
        tie: outcome.tie,
        refused: None,
    }
}
