//! What the model in training answers to given prompts: greedy answers by the engine over the weights of the moment.
//!
//! Prompts that do not fit are refused before the training starts. An answer depends on the weights and the prompt alone.

use crate::Result;
use crate::settings::{Context, LoopSettings};
use aloe_engine::{Engine, GenerateRequest, Local, Prompt, Sampling};
use aloe_model::Decoder;
use aloe_record::Progress;
use aloe_text::{Message, TextModel};
use serde_json::{Value, json};

/// The prompts and the tokenizer that renders them.
pub(crate) struct Sampler {
    text: TextModel,
    prompts: Vec<String>,
    n_tokens: usize,
}

impl Sampler {
    /// `None` when nothing is to be asked. A prompt that the template refuses, or that with its answer exceeds the model's context of
    /// `context_len` tokens, is an error.
    pub(crate) fn open(settings: &LoopSettings, text: &TextModel, context_len: usize) -> Result<Option<Self>> {
        if settings.sample_every == 0 {
            return Ok(None);
        }
        let mut mistakes = Vec::new();
        for prompt in &settings.sample_prompts {
            let len = text.encode_prompt(&[Message::user(prompt)])?.len();
            if len + settings.sample_tokens > context_len {
                mistakes.push(format!(
                    "sample_prompts: {:?} has {len} tokens; with sample_tokens = {} it exceeds the model's context of {context_len}",
                    prompt.chars().take(60).collect::<String>(),
                    settings.sample_tokens
                ));
            }
        }
        crate::settings::refuse(mistakes)?;
        let prompts = settings.sample_prompts.clone();
        Ok(Some(Self { text: text.clone(), prompts, n_tokens: settings.sample_tokens }))
    }

    /// One object per prompt: step, prompt, text, how many tokens were drawn and why the answer ended.
    pub(crate) fn answers(&self, decoder: &Decoder, step: u64, context: &Context) -> Result<Vec<Value>> {
        // Dropped before the next update: the decoder changes weights in place that nobody else holds, and copies others.
        let engine = Engine::Local(Box::new(Local::over(decoder.clone(), self.text.clone(), "in training")));
        let request = |(at, prompt): (usize, &String)| GenerateRequest {
            id: at.to_string(),
            prompt: Prompt::Messages(vec![Message::user(prompt)]),
            n: 1,
            sampling: Sampling::greedy(self.n_tokens),
        };
        let requests: Vec<GenerateRequest> = self.prompts.iter().enumerate().map(request).collect();
        let results = engine.generate(&requests, &Progress::silent(), &context.cancel)?;
        let answer = |(prompt, result): (&String, aloe_engine::GenerateResult)| {
            let completion = result.completions.into_iter().next();
            let completion = completion.expect("one answer was asked for");
            json!({"step": step, "prompt": prompt, "text": completion.text, "finish_reason": completion.finish_reason,
                "n_tokens": completion.ids.map_or(0, |ids| ids.len())})
        };
        Ok(self.prompts.iter().zip(results).map(answer).collect())
    }
}
