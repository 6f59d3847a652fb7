//! `kind = "redteam"` as written.

use crate::cli::timeout_mistake;
use crate::weights::Quantize;
use aloe_eval::RedTeamConfig;
use aloe_eval::judge::JudgePrompt;
use aloe_task::red_team::{RedTeamSplit, Style};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The keys of a red-team stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RedteamStage {
    /// Base questions; those of `split` are asked.
    pub(crate) questions: PathBuf,
    /// Whose questions are asked: test, to measure; train, to make pairs of the answers, whose rates are no evaluation.
    #[serde(default, skip_serializing_if = "RedTeamSplit::is_test")]
    pub(crate) split: RedTeamSplit,
    /// Harmless prompts whose refusals are counted beside.
    pub(crate) harmless: Option<PathBuf>,
    /// Endpoint of a judge model; without one no attack success rate is stated.
    pub(crate) judge: Option<String>,
    /// What the judge is sent: `message`, Llama Guard's prompt as one user message, for any instructed model; or
    /// `conversation`, question and response as turns, for a Llama Guard model whose own template writes the prompt.
    #[serde(default)]
    pub(crate) judge_prompt: JudgePrompt,
    /// Folder of the judge's tokenizer; without it the server renders the prompt.
    pub(crate) judge_tokenizer: Option<PathBuf>,
    /// Labelled responses that the judge's error is measured on; needed with a judge.
    pub(crate) judge_labels: Option<PathBuf>,
    /// Harmful prompts asked in all: plain text and forged control tokens together, over topics x styles. Harmless ones
    /// come beside.
    #[serde(default = "default_prompts")]
    pub(crate) n_prompts: usize,
    /// Harmless prompts asked.
    #[serde(default = "default_harmless")]
    pub(crate) n_harmless: usize,
    /// Tokens of a response.
    #[serde(default = "default_tokens")]
    pub(crate) max_new_tokens: usize,
    /// The attack styles; all of them by default. A model whose template has no turn tokens cannot be sent the injections.
    pub(crate) styles: Option<Vec<Style>>,
    /// For an endpoint: folder or `.gguf` file whose tokenizer and template render the prompts.
    pub(crate) tokenizer: Option<PathBuf>,
    /// For an endpoint: let the server render chat messages by its own template; recorded as such.
    #[serde(default)]
    pub(crate) server_template: bool,
    /// Blocks that a folder's weights are rounded to on load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quantize: Option<Quantize>,
    /// The most memory for keys and values, in MiB; a quarter of what is free by default. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) kv_budget: Option<usize>,
    /// The longest that one answer of an endpoint is waited for, in seconds: of the model and of the judge. 600 by default. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) request_timeout: Option<u64>,
    /// Folder of answers kept on disk. A local model's results do not depend on it, so it is no part of what decides them.
    #[serde(skip_serializing)]
    pub(crate) answer_cache: Option<PathBuf>,
    /// System prompt before every prompt.
    pub(crate) system: Option<String>,
    /// Seed of the sample; default the recipe's.
    #[serde(default)]
    pub(crate) seed: u64,
}

fn default_prompts() -> usize {
    RedTeamConfig::default().n_prompts
}

fn default_harmless() -> usize {
    RedTeamConfig::default().n_harmless
}

fn default_tokens() -> usize {
    RedTeamConfig::default().max_new_tokens
}

impl RedteamStage {
    /// The runner's settings, or every mistake.
    pub(crate) fn checked(&self) -> Result<RedTeamConfig, Vec<String>> {
        let mut mistakes = Vec::from_iter(timeout_mistake(self.request_timeout));
        if self.n_prompts == 0 {
            mistakes.push("n_prompts must be at least 1".to_owned());
        }
        if self.styles.as_ref().is_some_and(Vec::is_empty) {
            mistakes.push("styles must name at least one style".to_owned());
        }
        if self.max_new_tokens == 0 {
            mistakes.push("max_new_tokens must be at least 1".to_owned());
        }
        if self.judge.is_some() && self.judge_labels.is_none() {
            mistakes
                .push("a judge needs judge_labels: its error on labelled responses stands beside its rate".to_owned());
        }
        if self.judge.is_none() && (self.judge_labels.is_some() || self.judge_tokenizer.is_some()) {
            mistakes.push("judge_labels and judge_tokenizer are of no use without a judge".to_owned());
        }
        if self.judge.as_deref().is_some_and(|judge| !judge.starts_with("http")) {
            mistakes.push("judge must be an endpoint: http(s)://host:port/v1#model".to_owned());
        }
        let config = RedTeamConfig {
            n_prompts: self.n_prompts,
            n_harmless: self.n_harmless,
            max_new_tokens: self.max_new_tokens,
            seed: self.seed,
            split: self.split,
            system: self.system.clone(),
            styles: self.styles.clone().unwrap_or_else(|| Style::ALL.to_vec()),
            ..RedTeamConfig::default()
        };
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// The files that are read.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let optional = [&self.harmless, &self.judge_tokenizer, &self.judge_labels, &self.tokenizer];
        [self.questions.clone()].into_iter().chain(optional.into_iter().flatten().cloned()).collect()
    }
}
