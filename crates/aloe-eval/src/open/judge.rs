//! One judge at a time over all answers of a run. Its replies are kept as they come; what is no verdict is counted and never asked again.

use super::log::OpenLog;
use super::sample::{JudgeReply, OpenSample};
use crate::strategy::handed;
use crate::{Error, Result};
use aloe_engine::{Engine, EngineIdentity, GenerateRequest, Prompt, Sampling};
use aloe_record::{Cancel, Progress, digest};
use aloe_task::wording::open::{JUDGE_PROMPT_VERSION, OpenVerdict, judge_messages, verdict};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The most tokens of a judge's reply: prompt_engine's number, enough for a judge that reasons first.
pub const JUDGE_TOKENS: usize = 1500;

/// A judge of a panel, as the results name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PanelJudge {
    /// The model's name; of several judges of one name the later ones have a number.
    pub name: String,
    /// The model.
    pub model: EngineIdentity,
    /// The version of the prompt it was sent and of how its verdict is read.
    pub prompt_version: u32,
    /// The most tokens of its reply.
    pub max_new_tokens: usize,
}

impl PanelJudge {
    /// The judge behind `engine`, after `earlier` ones.
    pub(crate) fn new(engine: &Engine, max_new_tokens: usize, earlier: &[Self]) -> Self {
        let model = engine.identity().clone();
        let n_alike = earlier.iter().filter(|judge| judge.model.name == model.name).count();
        let name = if n_alike == 0 { model.name.clone() } else { format!("{} ({})", model.name, n_alike + 1) };
        Self { name, model, prompt_version: JUDGE_PROMPT_VERSION, max_new_tokens }
    }

    /// Digest of everything that decides a verdict beside the answer; the name tells servers of one model apart.
    pub(crate) fn key(&self) -> String {
        digest::bytes(json!(self).to_string().as_bytes())
    }
}

/// Asks `engine` about every answer that the log holds no verdict on, and returns the replies by the answers' places. A request that the
/// judge does not take gives no verdict; where that is all of them, it is an error.
pub(crate) fn judge_all(
    engine: &Engine,
    judge: &PanelJudge,
    samples: &[OpenSample],
    log: &mut OpenLog,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<Option<JudgeReply>>> {
    let key = judge.key();
    let judged: Vec<usize> = (0..samples.len()).filter(|&at| !samples[at].is_empty()).collect();
    let mut replies: Vec<Option<JudgeReply>> = vec![None; samples.len()];
    for (at, reply) in log.said(&key) {
        // Judged under the same key, so only the name can differ: it follows the panel's order.
        replies[at] = Some(JudgeReply { judge: judge.name.clone(), ..reply });
    }
    let missing: Vec<usize> = judged.iter().copied().filter(|&at| replies[at].is_none()).collect();
    progress.message(&format!("judge {}", judge.name));
    progress.grow(judged.len() as u64);
    progress.resume((judged.len() - missing.len()) as u64);
    log.hold_judge(&key, engine, cancel)?;
    for window in missing.chunks(engine.window_requests()) {
        cancel.check()?;
        let requests: Vec<GenerateRequest> = window.iter().map(|&at| request(&samples[at], judge)).collect();
        let asked: Result<()> = handed(
            |take| engine.generate_into(&requests, &Progress::silent(), cancel, take),
            |of, answered| {
                progress.advance(1);
                let (text, refused) = match answered {
                    Ok(result) => (result.completions.into_iter().next().map(|one| one.text), None),
                    Err(error) => (None, Some(error.to_string())),
                };
                let text = text.unwrap_or_default();
                let verdict = if refused.is_some() { OpenVerdict::Unparsed } else { verdict(&text) };
                let reply = JudgeReply { judge: judge.name.clone(), verdict, text, refused };
                if reply.refused.is_none() {
                    log.judged(&key, window[of], &reply)?;
                }
                replies[window[of]] = Some(reply);
                Ok(())
            },
        );
        log.sync()?;
        asked?;
        engine.forget_answers()?;
    }
    let refused: Vec<&String> = replies.iter().flatten().filter_map(|reply| reply.refused.as_ref()).collect();
    if let (Some(reason), true) = (refused.first(), refused.len() == judged.len()) {
        let n = refused.len();
        return Err(Error::Config(format!("the judge {} refused all {n} answers; the first: {reason}", judge.name)));
    }
    Ok(replies)
}

fn request(sample: &OpenSample, judge: &PanelJudge) -> GenerateRequest {
    GenerateRequest {
        id: format!("judge/{}/{}", sample.task, sample.id),
        prompt: Prompt::Messages(judge_messages(&sample.question, &sample.reference, &sample.visible())),
        n: 1,
        sampling: Sampling::greedy(judge.max_new_tokens),
    }
}
