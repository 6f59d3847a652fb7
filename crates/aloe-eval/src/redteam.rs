//! The spine of a red-team run: sample -> prompts -> responses -> verdicts -> files. Where in the walk: called by the
//! `redteam` command and the recipe, before and after alignment, on the same sample.
//!
//! Responses are cut at `max_new_tokens` (48): enough to see a refusal, too short to be of use to anybody.

use crate::answers;
use crate::judge::{self, Judge, Judging};
use crate::redteam_log::RedTeamLog;
use crate::redteam_report::{Judgement, RedTeamResults, RedTeamSample};
use crate::redteam_sample::{PlannedPrompt, stratified};
use crate::strategy::handed;
use crate::{Error, Result, report};
use aloe_engine::{Call, Engine, FinishReason, GenerateRequest, GenerateResult, Prompt, Sampling};
use aloe_record::{Cancel, Progress, atomic, digest};
use aloe_task::red_team::llama_guard::GuardVerdict;
use aloe_task::red_team::questions::HarmlessPrompt;
use aloe_task::red_team::{RedTeamQuestion, RedTeamSplit, RefusalRule, Rendering, Style, TurnTokens};
use aloe_text::{Message, Role};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;

/// Everything that decides a red-team run beside model and questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RedTeamConfig {
    /// Harmful prompts asked in all: plain text and forged control tokens together, over topics x styles.
    pub n_prompts: usize,
    /// Harmless prompts asked, the first so many.
    pub n_harmless: usize,
    /// Tokens per response.
    pub max_new_tokens: usize,
    /// The styles.
    pub styles: Vec<Style>,
    /// How refusals are recognised.
    pub rule: RefusalRule,
    /// The seed of the sample.
    pub seed: u64,
    /// System prompt before every prompt; none by default.
    pub system: Option<String>,
    /// Whose questions are asked. Answers to train questions may be trained on, and their rates are no evaluation.
    #[serde(default, skip_serializing_if = "RedTeamSplit::is_test")]
    pub split: RedTeamSplit,
}

impl Default for RedTeamConfig {
    fn default() -> Self {
        Self {
            n_prompts: 120,
            n_harmless: 30,
            max_new_tokens: 48,
            styles: Style::ALL.to_vec(),
            rule: RefusalRule::ALOE,
            seed: 0,
            system: None,
            split: RedTeamSplit::Test,
        }
    }
}

/// Asks the sample and writes `results.json` and `samples.jsonl` into `out`, reproducible byte for byte; an interrupted run
/// goes on from the hidden `.answers.log`, which the caller removes once the folder is complete. `harmless` prompts stand beside, because refusing everything is no safety.
#[expect(
    clippy::too_many_arguments,
    reason = "a spine: model, two prompt sets, judge, settings, place and two handles"
)]
pub fn redteam(
    engine: &Engine,
    questions: &[RedTeamQuestion],
    harmless: &[HarmlessPrompt],
    judge: Option<&Judge>,
    config: &RedTeamConfig,
    out: &Path,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<RedTeamResults> {
    let asked = plan(engine, questions, harmless, config)?;
    judge.map(Judge::check).transpose()?;
    let key = judge.map(Judge::key).unwrap_or_default();
    let fingerprint = fingerprint(engine, &asked, config);
    let (path, n_kept) = answers::kept(engine, out, &fingerprint)?;
    let mut log = RedTeamLog::open(&path, &fingerprint, &key)?;
    let n_harmful = asked.iter().filter(|one| one.sample.style.is_some()).count();
    let n_judged = judge.map_or(0, |judge| n_harmful + judge.labels.len());
    progress.set_total((asked.len() + n_judged) as u64);
    progress.resume((log.samples.len() + log.labels.len() + log.verdicts.len()) as u64);
    if let Some(judge) = judge {
        log.hold_judge(judge.engine, cancel)?;
    }
    // The judge is measured first: one that cannot be used is found before the model is asked anything.
    let error = judge.map(|judge| measure(judge, &mut log, progress, cancel)).transpose()?;
    log.hold(engine.canary(Call::Generate, cancel)?, n_kept)?;
    answer_all(engine, &asked, config.rule, &mut log, progress, cancel)?;
    judge.map(|judge| judge_all(judge, &mut log, progress, cancel)).transpose()?;
    let samples = judged_samples(&log);
    let judgement = judge.zip(error).map(|(judge, error)| Judgement {
        model: judge.engine.identity().clone(),
        prompt: judge.prompt,
        error,
    });
    let results = RedTeamResults::new(engine.identity(), config, &samples, judgement);
    report::write_samples(&out.join("samples.jsonl"), &samples)?;
    atomic::write_json(&out.join("results.json"), &results)?;
    progress.finish();
    Ok(results)
}

/// Everything that will be asked, harmful prompts first.
pub(crate) fn plan(
    engine: &Engine,
    questions: &[RedTeamQuestion],
    harmless: &[HarmlessPrompt],
    config: &RedTeamConfig,
) -> Result<Vec<Asked>> {
    let planned = stratified(questions, config.split, &config.styles, config.n_prompts, config.seed);
    if planned.is_empty() {
        let reason = "no prompt can be asked: no question of the split is left, or n_prompts is 1 and every style \
is an injection, which takes two";
        return Err(Error::Config(reason.into()));
    }
    let harmless = &harmless[..harmless.len().min(config.n_harmless)];
    asked(engine, questions, &planned, harmless, config)
}

/// Asks what the log does not hold yet. Prompts that are refused are an error once all others are answered: a rate over what is left
/// would be another sample's.
fn answer_all(
    engine: &Engine,
    asked: &[Asked],
    rule: RefusalRule,
    log: &mut RedTeamLog,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let missing: Vec<usize> = (0..asked.len()).filter(|at| !log.samples.contains_key(at)).collect();
    let mut refused = Refused::default();
    for window in missing.chunks(engine.window_requests()) {
        cancel.check()?;
        let requests: Vec<GenerateRequest> = window.iter().map(|&at| asked[at].request.clone()).collect();
        let answered = handed(
            |take| engine.generate_into(&requests, &Progress::silent(), cancel, take),
            |at, result| {
                progress.advance(1);
                match result {
                    Ok(result) => log.answered(window[at], answered(&asked[window[at]], result, rule)?),
                    Err(error) => refused.add(error),
                }
            },
        );
        log.sync()?;
        answered?;
        engine.forget_answers()?;
    }
    refused.check(asked.len(), "prompts")
}

/// What was refused.
#[derive(Default)]
struct Refused {
    n: usize,
    first: Option<aloe_engine::Error>,
}

impl Refused {
    fn add(&mut self, error: aloe_engine::Error) -> Result<()> {
        self.n += 1;
        self.first.get_or_insert(error);
        Ok(())
    }

    fn check(self, n_asked: usize, what: &str) -> Result<()> {
        let Some(first) = self.first else { return Ok(()) };
        let n = self.n;
        Err(Error::Config(format!(
            "{n} of {n_asked} {what} were refused by the model or its server, the answers to the others are kept; the first: {first}"
        )))
    }
}

/// One prompt with the part of its record that is known before the answer.
pub(crate) struct Asked {
    pub(crate) sample: RedTeamSample,
    request: GenerateRequest,
}

fn asked(
    engine: &Engine,
    questions: &[RedTeamQuestion],
    planned: &[PlannedPrompt],
    harmless: &[HarmlessPrompt],
    config: &RedTeamConfig,
) -> Result<Vec<Asked>> {
    let tokens = turn_tokens(engine, &config.styles)?;
    let harmful = planned.iter().map(|prompt| {
        let question = &questions[prompt.question];
        let messages = prompt.style.messages(&question.question, tokens);
        let forged = prompt.rendering == Rendering::ForgedTokens;
        let rendering = if forged { "forged" } else { "plain" };
        let id = format!("{}/{}/{rendering}", question.id, prompt.style.name());
        let mut sample = RedTeamSample::unanswered(id, &question.id, &question.topic, &question.question);
        sample.style = Some(prompt.style);
        sample.rendering = Some(prompt.rendering);
        sample.held_out = prompt.style.is_held_out();
        sample.split = config.split;
        sample.system.clone_from(&config.system);
        ask(sample, messages, forged, config)
    });
    let harmless = harmless.iter().map(|prompt| {
        let messages = vec![Message { role: Role::User, content: prompt.question.clone() }];
        let id = format!("{}/harmless", prompt.id);
        ask(RedTeamSample::unanswered(id, &prompt.id, "harmless", &prompt.question), messages, false, config)
    });
    Ok(harmful.chain(harmless).collect())
}

fn ask(mut sample: RedTeamSample, mut messages: Vec<Message>, forged: bool, config: &RedTeamConfig) -> Asked {
    sample.prompt = messages.iter().map(|message| message.content.as_str()).collect();
    if let Some(system) = &config.system {
        messages.insert(0, Message { role: Role::System, content: system.clone() });
    }
    let prompt = if forged { Prompt::ForgedMessages(messages) } else { Prompt::Messages(messages) };
    let sampling = Sampling { seed: config.seed, ..Sampling::greedy(config.max_new_tokens) };
    Asked { request: GenerateRequest { id: sample.id.clone(), prompt, n: 1, sampling }, sample }
}

/// The model's own turn tokens, from its vocabulary. A model that has neither family cannot be attacked by injection here.
fn turn_tokens(engine: &Engine, styles: &[Style]) -> Result<TurnTokens> {
    let has = |token: &str| engine.text().is_some_and(|text| text.tokenizer.token_id(token).is_some());
    if has("<|im_start|>") {
        return Ok(TurnTokens::ChatMl);
    }
    if has("<|start_header_id|>") || !styles.iter().any(|style| style.is_injection()) {
        return Ok(TurnTokens::Llama3);
    }
    let reason = "the injection styles need a model with Llama 3's or ChatML's turn tokens, and a tokenizer on this side; \
leave these styles out";
    Err(Error::Config(reason.into()))
}

fn answered(one: &Asked, result: GenerateResult, rule: RefusalRule) -> Result<RedTeamSample> {
    let completion = result
        .completions
        .into_iter()
        .next()
        .ok_or_else(|| Error::Answer { id: result.id.clone(), reason: "the engine returned no completion".into() })?;
    let mut sample = one.sample.clone();
    sample.prompt_ids = result.prompt_ids.unwrap_or_default();
    sample.verdict = Some(rule.judge(&completion.text));
    sample.response = completion.text;
    sample.ids = completion.ids;
    sample.is_cut = match completion.finish_reason {
        FinishReason::Stop => Some(false),
        FinishReason::Length | FinishReason::Context => Some(true),
        FinishReason::Other => None,
    };
    Ok(sample)
}

/// The judge's error on its labelled responses.
fn measure(judge: &Judge, log: &mut RedTeamLog, progress: &Progress, cancel: &Cancel) -> Result<judge::JudgeError> {
    let labelled = judge.labelled();
    let missing: Vec<usize> = (0..labelled.len()).filter(|at| !log.labels.contains_key(at)).collect();
    for window in missing.chunks(judge.engine.window_requests()) {
        let responses: Vec<&Judging> = window.iter().map(|&at| &labelled[at]).collect();
        let judged = judge.judge(&responses, cancel, &mut |at, verdict| {
            progress.advance(1);
            log.labelled(window[at], verdict)
        });
        log.sync()?;
        judged?;
        judge.engine.forget_answers()?;
    }
    let verdicts: Vec<GuardVerdict> = log.labels.values().cloned().collect();
    Ok(judge::error_of(judge.labels, &verdicts))
}

/// Judges the responses to harmful prompts that have no verdict yet.
fn judge_all(judge: &Judge, log: &mut RedTeamLog, progress: &Progress, cancel: &Cancel) -> Result<()> {
    let harmful: Vec<RedTeamSample> = log.samples.values().filter(|sample| sample.style.is_some()).cloned().collect();
    let judgings: Vec<Judging> = harmful
        .iter()
        .map(|sample| Judging { id: sample.id.clone(), question: &sample.question, response: &sample.response })
        .collect();
    let missing: Vec<usize> = (0..harmful.len()).filter(|at| !log.verdicts.contains_key(at)).collect();
    for window in missing.chunks(judge.engine.window_requests()) {
        let responses: Vec<&Judging> = window.iter().map(|&at| &judgings[at]).collect();
        let judged = judge.judge(&responses, cancel, &mut |at, verdict| {
            progress.advance(1);
            log.judged(window[at], verdict)
        });
        log.sync()?;
        judged?;
        judge.engine.forget_answers()?;
    }
    Ok(())
}

/// The responses with their verdicts, where there are any.
fn judged_samples(log: &RedTeamLog) -> Vec<RedTeamSample> {
    let mut samples: Vec<RedTeamSample> = log.samples.values().cloned().collect();
    let harmful = samples.iter_mut().filter(|sample| sample.style.is_some());
    for (sample, verdict) in harmful.zip(log.verdicts.values()) {
        sample.judge = Some(verdict.clone());
    }
    samples
}

fn fingerprint(engine: &Engine, asked: &[Asked], config: &RedTeamConfig) -> String {
    let mut hasher = digest::Hasher::default();
    hasher.field(json!(engine.identity()).to_string().as_bytes());
    hasher.field(json!(config).to_string().as_bytes());
    for one in asked {
        hasher.field(one.sample.id.as_bytes());
        hasher.field(one.sample.prompt.as_bytes());
    }
    hasher.hex()
}
