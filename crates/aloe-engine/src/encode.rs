//! A request's token ids by a tokenizer and template at hand. Checks against a model's vocabulary and context are the model's.

use crate::{Continuation, Error, Prompt, Result, ScoreRequest};
use aloe_text::TextModel;

/// The ids of a prompt.
pub(crate) fn prompt_ids(text: &TextModel, prompt: &Prompt) -> Result<Vec<u32>> {
    Ok(match prompt {
        Prompt::Ids(ids) => ids.clone(),
        Prompt::Text(raw) => text.encode_prompt_text(raw)?,
        Prompt::Messages(messages) => text.encode_prompt(messages)?,
        Prompt::ForgedMessages(messages) => text.encode_prompt_forged(messages)?,
    })
}

/// The ids of prompt and continuations. Texts that follow a text are tokenised with it.
pub(crate) fn score_ids(text: &TextModel, request: &ScoreRequest) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
    let mut joint_prompt = None;
    let mut continuations = Vec::with_capacity(request.continuations.len());
    for continuation in &request.continuations {
        continuations.push(match (&request.prompt, continuation) {
            (_, Continuation::Ids(ids)) => ids.clone(),
            (_, Continuation::Text(after)) if after.is_empty() => Vec::new(),
            (Prompt::Text(prompt), Continuation::Text(after)) => {
                let (before, ids) = text.encode_joint(prompt, after)?;
                if joint_prompt.as_ref().is_some_and(|known| *known != before) {
                    let reason = format!(
                        "continuation {after:?} changes how the prompt before it is tokenised; score it in a request of its own"
                    );
                    return Err(Error::Request { id: request.id.clone(), reason });
                }
                joint_prompt = Some(before);
                ids
            }
            (_, Continuation::Text(after)) => text.tokenizer.encode_continuation(after)?,
        });
    }
    let ids = match joint_prompt {
        Some(ids) if !ids.is_empty() => ids,
        _ => prompt_ids(text, &request.prompt)?,
    };
    Ok((ids, continuations))
}
