//! lm-eval's rule for scoring a continuation after a raw-text prompt (`_encode_pair` of lm-eval 0.4.13): white space at the end of the
//! prompt moves to the continuation, both are tokenised together, and the prompt's own length is cut off.

use crate::provenance::Content;
use crate::{Error, Message, Result, TextModel};

impl TextModel {
    /// Ids of a prompt and of what continues it. BOS as the tokenizer adds it (lm-eval's default). An empty prompt is the BOS token, or
    /// EOS without one (`prefix_token_id`). Unlike lm-eval, text that spells a control token stays text.
    pub fn encode_joint(&self, prompt: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let context = prompt.trim_end_matches(python_space);
        let moved = format!("{}{continuation}", &prompt[context.len()..]);
        if context.is_empty() {
            let prefix = self.tokenizer.bos().or_else(|| self.tokenizer.eos_ids().first().copied());
            let prefix = prefix.ok_or_else(|| Error::NoPrefixToken { origin: self.tokenizer.origin().to_owned() })?;
            return non_empty(vec![prefix], self.tokenizer.encode_plain(&moved)?);
        }
        let whole = self.encode_prompt_text(&format!("{context}{moved}"))?;
        let prompt_ids = self.encode_prompt_text(context)?;
        let continuation_ids = whole.get(prompt_ids.len()..).unwrap_or_default().to_vec();
        non_empty(prompt_ids, continuation_ids)
    }

    /// The same after a chat, as lm-eval does with `--apply_chat_template`: white space at the end of the generation prompt moves to the
    /// continuation. The continuation is content: it never becomes a control token.
    pub fn encode_chat_joint(&self, messages: &[Message], continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
        let mut rendered = self.render(messages, true)?;
        let (n_whole, n_context) = (rendered.text.len(), rendered.text.trim_end_matches(python_space).len());
        rendered.text.truncate(n_context);
        let prompt_ids = self.tokenise_fast(&rendered)?;
        self.check_bos(&prompt_ids)?;
        rendered = self.render(messages, true)?;
        rendered.text.push_str(continuation);
        rendered.contents.push(Content { range: n_whole..rendered.text.len(), message: messages.len() });
        let whole = self.tokenise_fast(&rendered)?;
        let continuation_ids = whole.get(prompt_ids.len()..).unwrap_or_default().to_vec();
        non_empty(prompt_ids, continuation_ids)
    }
}

fn non_empty(prompt: Vec<u32>, continuation: Vec<u32>) -> Result<(Vec<u32>, Vec<u32>)> {
    if continuation.is_empty() { Err(Error::EmptyContinuation) } else { Ok((prompt, continuation)) }
}

/// What Python's `str.rstrip` strips.
fn python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
