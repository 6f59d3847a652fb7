//! A request's token ids by a tokenizer and template at hand. Checks against a model's vocabulary and context are the model's.

use crate::{Continuation, Error, Prompt, Result, ScoreRequest};
use aloe_text::TextModel;

/// The ids of a prompt.
pub(crate) fn prompt_ids(text: &TextModel, prompt: &Prompt) -> Result<Vec<u32>> {
    Ok(match prompt {
        Prompt::Ids(ids) => ids.clone(),
        Prompt::Text(raw) => text.encode_prompt_text(raw)?,
        Prompt::Messages(messages) => text.encode_prompt(messages)?,
        Prompt::StrippedMessages(messages) => text.encode_prompt_stripped(messages)?,
        Prompt::ForgedMessages(messages) => text.encode_prompt_forged(messages)?,
    })
}

/// The ids of prompt and continuations. Texts that follow a text are tokenised with it, others where they ask for it.
pub(crate) fn score_ids(text: &TextModel, request: &ScoreRequest) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
    let mut joint_prompt = None;
    let mut continuations = Vec::with_capacity(request.continuations.len());
    for continuation in &request.continuations {
        if let Some((after, joint)) = joint(text, &request.prompt, continuation) {
            let (before, ids) = joint?;
            if joint_prompt.as_ref().is_some_and(|known| *known != before) {
                let reason = format!(
                    "continuation {after:?} changes how the prompt before it is tokenised; score it in a request of its own"
                );
                return Err(Error::Request { id: request.id.clone(), reason });
            }
            joint_prompt = Some(before);
            continuations.push(ids);
            continue;
        }
        continuations.push(match continuation {
            Continuation::Ids(ids) => ids.clone(),
            Continuation::Text(after) | Continuation::Joint(after) if after.is_empty() => Vec::new(),
            Continuation::Text(after) | Continuation::Joint(after) => text.tokenizer.encode_continuation(after)?,
        });
    }
    let ids = match joint_prompt {
        Some(ids) if !ids.is_empty() => ids,
        _ => prompt_ids(text, &request.prompt)?,
    };
    Ok((ids, continuations))
}

type Joint<'a> = (&'a str, aloe_text::Result<(Vec<u32>, Vec<u32>)>);

/// Prompt and continuation tokenised together; `None` where they are not to be, or where the continuation is empty.
fn joint<'a>(text: &TextModel, prompt: &Prompt, continuation: &'a Continuation) -> Option<Joint<'a>> {
    let (Continuation::Text(after) | Continuation::Joint(after)) = continuation else { return None };
    match prompt {
        _ if after.is_empty() => None,
        Prompt::Text(before) => Some((after, text.encode_joint(before, after))),
        Prompt::Messages(messages) if matches!(continuation, Continuation::Joint(_)) => {
            Some((after, text.encode_chat_joint(messages, after)))
        }
        _ => None,
    }
}
