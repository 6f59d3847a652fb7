//! Generated answers: prompts with examples and option orders, sampling, reading, majority vote. Shared by cot, sc-cot and
//! medprompt, which differ in the examples and orders they choose; `retry` asks again what named no option, where that is wanted.

use super::{TaskRun, handed, item, retry};
use crate::vote::elected;
use crate::{Error, Result, Retry, Sample, Vote};
use aloe_engine::{Completion, FinishReason, GenerateRequest, GenerateResult, Prompt};
use aloe_record::{CounterRng, Progress, digest};
use aloe_task::extract::{Reading, extract};
use aloe_task::wording::{cot_messages, fixed_shots, plain_text};
use aloe_task::{Answer, ChoiceOrder, CotShot, Protocol, Question};
use aloe_text::{Message, Role};
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
    /// Medprompt: how many pool questions are each question itself, by its place.
    pub(crate) n_same: Option<Vec<usize>>,
    pub(crate) notes: Map<String, Value>,
}

/// The requests of one question: one per sample when options are shuffled, else one for all samples.
pub(crate) struct Asked {
    pub(crate) orders: Vec<ChoiceOrder>,
    pub(crate) requests: Vec<GenerateRequest>,
    choices: Vec<String>,
    shot_ids: Vec<String>,
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
        let messages = with_system(cot_messages(protocol, question, order, shots)?, run.config.system.as_deref());
        Ok(GenerateRequest { id, prompt: prompt(run, messages), n, sampling: sampling.clone() })
    };
    let requests = if shuffle {
        let numbered = orders.iter().enumerate();
        numbered.map(|(i, order)| request(order, format!("{id}/{i}"), 1)).collect::<Result<Vec<_>>>()?
    } else {
        vec![request(&orders[0], id.to_string(), n)?]
    };
    let prompt_sha256 = match &requests[0].prompt {
        Prompt::Messages(messages) | Prompt::StrippedMessages(messages) => {
            digest::bytes(serde_json::to_string(messages).unwrap_or_default().as_bytes())
        }
        Prompt::Text(text) => digest::bytes(text.as_bytes()),
        _ => String::new(),
    };
    let shot_ids = shots.iter().map(|shot| shot.question.id.clone()).collect();
    Ok(Asked { orders, requests, choices: question.choices.clone(), shot_ids, prompt_sha256 })
}

/// The user's system prompt in place of the protocol's.
fn with_system(mut messages: Vec<Message>, system: Option<&str>) -> Vec<Message> {
    if let (Some(system), Some(first)) = (system, messages.first_mut().filter(|first| first.role == Role::System)) {
        first.content = system.to_owned();
    }
    messages.retain(|message| message.role != Role::System || !message.content.is_empty());
    messages
}

/// A server that renders by its own template takes plain messages only.
fn prompt(run: &TaskRun, messages: Vec<Message>) -> Prompt {
    let renders = run.engine.text().is_some();
    match run.config.protocol {
        _ if !run.config.chat_template => Prompt::Text(plain_text(&messages)),
        Protocol::PromptEngine if renders => Prompt::StrippedMessages(messages),
        _ => Prompt::Messages(messages),
    }
}

/// Whether the first question's prompt is rendered in ChatML in place of the model's template.
pub(crate) fn falls_back(run: &TaskRun) -> Result<bool> {
    let (Some(question), Some(text)) = (run.questions.first(), run.engine.text()) else { return Ok(false) };
    if run.config.protocol != Protocol::PromptEngine || !run.config.chat_template {
        return Ok(false);
    }
    let order = ChoiceOrder::natural(question.choices.len());
    let messages = cot_messages(run.config.protocol, question, &order, &[])?;
    Ok(text.falls_back_to_chatml(&with_system(messages, run.config.system.as_deref())))
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
            votes.push(vote(run, completion, asked, order, own_ids.clone()));
        }
    }
    if votes.len() != asked.orders.len() {
        let reason = format!("{} answers asked for, {} returned", asked.orders.len(), votes.len());
        return Err(Error::Answer { id: asked.requests[0].id.clone(), reason });
    }
    Ok((votes, shared_ids))
}

/// What a completion says.
pub(crate) fn vote(
    run: &TaskRun,
    completion: Completion,
    asked: &Asked,
    order: &ChoiceOrder,
    prompt_ids: Vec<u32>,
) -> Vote {
    let is_cut = completion.finish_reason != FinishReason::Stop;
    let reading = Reading { text: &completion.text, choices: &asked.choices, order, is_cut };
    let extracted = extract(reading, run.config.protocol.answer_rule());
    let answer = match extracted.answer {
        Answer::Choice(index) => Some(index),
        Answer::Unparsed => None,
    };
    Vote {
        order: order.indices().to_vec(),
        shots: asked.shot_ids.clone(),
        prompt_ids,
        logp: completion.logps.as_ref().map(|logps| logps.iter().map(|&logp| f64::from(logp)).sum()),
        ids: completion.ids,
        text: completion.text,
        finish_reason: completion.finish_reason,
        answer,
        n_retries: 0,
        reasoning_removed: extracted.reasoning_removed || completion.reasoning_apart,
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
        let take = &mut |at: usize, voted: Voted| {
            let index = indices[at];
            take(match voted {
                Ok((votes, ids)) => self.sample(run, index, &asked[at], votes, ids),
                Err(reason) => Sample::refused(run.task.name(), index, &run.questions[index], reason),
            })
        };
        match run.config.retry {
            Retry::None => collect(run, &asked, take),
            Retry::PromptEngine => retry::collect(run, &asked, retry::TEST_PASSES, take),
        }
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

impl Plan {
    fn sample(&self, run: &TaskRun, index: usize, asked: &Asked, votes: Vec<Vote>, prompt_ids: Vec<u32>) -> Sample {
        let question = &run.questions[index];
        let outcome = elected(&votes);
        Sample {
            predicted: outcome.answer,
            correct: outcome.answer == Some(question.key),
            prompt_sha256: asked.prompt_sha256.clone(),
            prompt_ids,
            votes,
            tie: outcome.tie,
            n_same_in_pool: self.n_same.as_ref().map(|all| all[index]),
            ..Sample::unanswered(run.task.name(), index, question)
        }
    }
}
