//! What is found out about servers before they are asked anything: how they give the log-probabilities of a prompt, and how they
//! answer the canary.

use super::Endpoint;
use super::canary::Canary;
use super::prompt_logps::Form;
use super::replicas::{Asking, Reply};
use super::watch::Watch;
use crate::Result;
use aloe_record::Cancel;
use aloe_text::TextModel;
use std::sync::{Arc, PoisonError};

impl Endpoint {
    /// Sends a known prompt in each form until every token but the first comes back with a usable log-probability; then holds
    /// the other servers' answers against it.
    pub(super) fn probe(&self, text: &TextModel, cancel: &Cancel) -> Result<(Form, Arc<Watch>)> {
        let mut known = self.scored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((form, watch)) = &*known {
            return Ok((*form, Arc::clone(watch)));
        }
        let mut found = Vec::new();
        for form in Form::ALL {
            let canary = Canary::scored(&self.model, form, text)?;
            let question = &canary.questions[0];
            let reason = match self.replicas.ask(question.path, &question.body, &Asking::new(cancel))? {
                Reply::Refused(reason) => reason,
                Reply::Json(answer, at) => {
                    self.check_model(&answer, at)?;
                    match question.read(&answer) {
                        Ok(first) => {
                            let watch = self.replicas.establish(canary, vec![first], at, cancel)?;
                            *known = Some((form, Arc::clone(&watch)));
                            return Ok((form, watch));
                        }
                        Err(reason) => reason,
                    }
                }
            };
            found.push(format!("{}: {reason}", form.name()));
        }
        let server = match self.is_llama_server {
            true => {
                "the server is llama-server, by its list of models, which takes requests for text and tells nothing of a prompt's tokens. It"
            }
            false => "the server",
        };
        Err(self.unusable(format!(
            "{server} gives no usable prompt log-probabilities, which scoring needs on /v1/completions, as vLLM has them. \
             Nothing was scored. Tried {}. `aloe eval --strategy next-letter` is another protocol, of figures of its own, that takes a server's \
             most probable next tokens",
            found.join("; ")
        )))
    }

    /// The greedy answers to known prompts, rendered as the requests are. `None`, said once, where the server does not take them.
    pub(super) fn watch_drawn(&self, cancel: &Cancel) -> Result<Option<Arc<Watch>>> {
        let mut known = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = &*known {
            return Ok(watch.clone());
        }
        let mut reason = String::new();
        for with_logprobs in [true, false] {
            let canary = match &self.text {
                _ if self.server_template => Canary::chat(&self.model, with_logprobs),
                Some(text) => Canary::drawn(&self.model, text, with_logprobs)?,
                None => return Ok(None),
            };
            match self.replicas.watch(canary, cancel)? {
                Ok(watch) => {
                    *known = Some(Some(Arc::clone(&watch)));
                    return Ok(Some(watch));
                }
                Err(refused) => reason = refused,
            }
        }
        let bases = self.replicas.bases();
        aloe_record::tell(&format!(
            "{bases}: {reason}; greedy answers to known prompts are refused, so a change of weights behind the address cannot be noticed"
        ));
        *known = Some(None);
        Ok(None)
    }
}
