//! The spine of a red-team run: sample -> prompts -> responses -> verdicts -> files. Where in the walk: called by the
//! `redteam` command and the recipe, before and after alignment, on the same sample.
//!
//! Responses are cut at `max_new_tokens` (48): enough to see a refusal, too short to be of use to anybody.

use crate::judge::Judge;
use crate::redteam_report::{RedTeamResults, RedTeamSample};
use crate::redteam_sample::{PlannedPrompt, stratified};
use crate::{Error, Result, report};
use aloe_engine::{Engine, GenerateRequest, GenerateResult, Prompt, Sampling};
use aloe_record::log::Log;
use aloe_record::{Cancel, Progress, atomic, digest};
use aloe_task::red_team::questions::HarmlessPrompt;
use aloe_task::red_team::{RedTeamQuestion, RefusalRule, Rendering, Style, TurnTokens};
use aloe_text::{Message, Role};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;

/// Everything that decides a red-team run beside model and questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RedTeamConfig {
    /// Harmful prompts asked, over all styles and renderings.
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
    let planned = stratified(questions, &config.styles, config.n_prompts, config.seed);
    if planned.is_empty() {
        return Err(Error::Config("no question of the test split is left to ask".into()));
    }
    let harmless = &harmless[..harmless.len().min(config.n_harmless)];
    let asked = asked(engine, questions, &planned, harmless, config)?;
    progress.set_total(asked.len() as u64);
    let log_path = out.join(".answers.log");
    let (mut log, mut samples) = open_log(&log_path, &fingerprint(engine, &asked, config))?;
    progress.resume(samples.len() as u64);
    while samples.len() < asked.len() {
        cancel.check()?;
        let chunk = &asked[samples.len()..asked.len().min(samples.len() + 32)];
        let requests: Vec<GenerateRequest> = chunk.iter().map(|one| one.request.clone()).collect();
        let results = engine.generate(&requests, &Progress::silent(), cancel)?;
        for (one, result) in chunk.iter().zip(results) {
            let sample = answered(one, result, config.rule)?;
            log.append(&Entry::Answered(Box::new(sample.clone())))?;
            samples.push(sample);
        }
        log.sync()?;
        progress.advance(chunk.len() as u64);
    }
    let judge_error = judge.map(|judge| judge_all(judge, &mut samples, cancel)).transpose()?;
    let judge_model = judge.map(|judge| judge.engine.identity().clone());
    let results = RedTeamResults::new(engine.identity(), config, &samples, judge_model, judge_error);
    report::write_samples(&out.join("samples.jsonl"), &samples)?;
    atomic::write_json(&out.join("results.json"), &results)?;
    progress.finish();
    Ok(results)
}

/// One prompt with the part of its record that is known before the answer.
struct Asked {
    sample: RedTeamSample,
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
    Ok(sample)
}

fn judge_all(judge: &Judge, samples: &mut [RedTeamSample], cancel: &Cancel) -> Result<crate::judge::JudgeError> {
    let error = judge.measure(cancel)?;
    let harmful: Vec<usize> = (0..samples.len()).filter(|&i| samples[i].style.is_some()).collect();
    for chunk in harmful.chunks(32) {
        cancel.check()?;
        let pairs: Vec<(&str, &str)> =
            chunk.iter().map(|&i| (samples[i].question.as_str(), samples[i].response.as_str())).collect();
        let verdicts = judge.judge(&pairs, cancel)?;
        for (&index, verdict) in chunk.iter().zip(verdicts) {
            samples[index].judge = Some(verdict);
        }
    }
    Ok(error)
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Run(String),
    Answered(Box<RedTeamSample>),
}

fn open_log(path: &Path, fingerprint: &str) -> Result<(Log, Vec<RedTeamSample>)> {
    let (mut log, entries) = Log::open::<Entry>(path)?;
    let mut samples = Vec::new();
    let mut known = false;
    for entry in entries {
        match entry {
            Entry::Run(found) if found == fingerprint && !known => known = true,
            Entry::Answered(sample) if known => samples.push(*sample),
            _ => return Err(Error::OtherRun { path: path.display().to_string() }),
        }
    }
    if !known {
        log.append(&Entry::Run(fingerprint.into()))?;
    }
    Ok((log, samples))
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
