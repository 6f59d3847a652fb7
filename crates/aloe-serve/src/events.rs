//! An answer as server-sent events, while it grows: one JSON object an event, then `[DONE]`. When the client goes away, the body is
//! dropped and with it the ear, and the answer ends at its next token.

use crate::app::App;
use crate::asking::{Ear, finish_word};
use crate::chat;
use crate::completions::{Table, usage};
use crate::names::offsets_in;
use crate::refusal::Refusal;
use crate::sampling::{Manner, StreamManner};
use aloe_engine::{FinishReason, Gained, Told};
use aloe_text::DecodeStream;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// What an event holds.
pub(crate) struct Shape {
    is_chat: bool,
    /// Tokens told beside each one; `None` tells no log-probabilities.
    n_top: Option<usize>,
    by_id: bool,
    tells_ids: bool,
}

impl Shape {
    pub(crate) fn completions(n_top: Option<usize>, manner: &Manner) -> Self {
        Self { is_chat: false, n_top, by_id: manner.names_by_id, tells_ids: manner.tells_ids }
    }

    pub(crate) fn chat(n_top: Option<usize>, manner: &Manner) -> Self {
        Self { is_chat: true, ..Self::completions(n_top, manner) }
    }
}

/// A choice of the answer so far.
#[derive(Default)]
struct Choice {
    is_begun: bool,
    /// Where the next token begins in the text, whether that was told or is held back, in characters.
    n_chars: usize,
    /// The text of the tokens so far, where places in it are told.
    text: Option<DecodeStream>,
}

/// The body of a streamed answer.
pub(crate) struct Events {
    app: Arc<App>,
    ear: Ear,
    shape: Shape,
    stream: StreamManner,
    /// What every event has.
    head: Value,
    /// Answers to each job.
    n: usize,
    choices: Vec<Choice>,
    n_due: usize,
    n_new: usize,
    /// The prompt's length of each job, once told.
    n_prompt: Vec<usize>,
    ready: VecDeque<Bytes>,
    is_over: bool,
}

impl Events {
    /// Waits for the first thing that is told, so that a request that cannot be answered gets its status, and answers. Each of the ear's jobs
    /// has `n` answers.
    pub(crate) async fn respond(
        app: Arc<App>,
        mut ear: Ear,
        shape: Shape,
        n: usize,
        stream: StreamManner,
    ) -> Result<Response, Refusal> {
        let (job, told) = ear.hear().await?;
        let n_jobs = ear.n_jobs();
        let head = match shape.is_chat {
            true => app.head("chatcmpl", "chat.completion.chunk"),
            false => app.head("cmpl", "text_completion"),
        };
        let choices: Vec<Choice> = (0..n_jobs * n).map(|_| Choice::default()).collect();
        let (n_due, n_prompt) = (choices.len(), vec![0; n_jobs]);
        let (ready, is_over) = (VecDeque::new(), false);
        let mut events = Self { app, ear, shape, stream, head, n, choices, n_due, n_new: 0, n_prompt, ready, is_over };
        events.tell(job, told);
        let mut response = Response::new(Body::new(events));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(response)
    }

    fn tell(&mut self, job: usize, told: Told) {
        match told {
            Told::Grew { sample, gained } => self.grow(job * self.n + sample, &gained, None, None),
            Told::Ended { sample, gained, finish_reason, prompt_ids } => {
                self.n_prompt[job] = prompt_ids.len();
                self.grow(job * self.n + sample, &gained, Some(finish_reason), Some(&prompt_ids));
                self.n_due -= 1;
                if self.n_due == 0 {
                    self.end();
                }
            }
            Told::Scored(_) | Told::Embedded { .. } | Told::Failed { .. } => {}
        }
    }

    /// The events of a choice that gained something, or ended.
    fn grow(&mut self, at: usize, gained: &Gained, ended: Option<FinishReason>, prompt_ids: Option<&[u32]>) {
        self.n_new += gained.ids.len();
        if self.shape.is_chat && !self.choices[at].is_begun {
            let delta = json!({"role": "assistant", "content": ""});
            self.event(json!({"index": at, "delta": delta, "logprobs": null, "finish_reason": null}));
        }
        self.choices[at].is_begun = true;
        let finish_reason = ended.map(finish_word);
        // A token whose text is held back is told with the text, unless its id or log-probability is wanted.
        let says_more = (self.shape.n_top.is_some() || self.shape.tells_ids) && !gained.ids.is_empty();
        let logprobs = self.shape.n_top.filter(|_| !gained.ids.is_empty()).map(|n_top| match self.shape.is_chat {
            true => chat::logprobs(&self.app, self.shape.by_id, n_top, gained),
            false => {
                let Choice { text, n_chars, .. } = &mut self.choices[at];
                let text = text.get_or_insert_with(|| self.app.names.stream(true));
                let (offsets, end) = offsets_in(text, &gained.ids, *n_chars);
                *n_chars = end;
                Table::streamed(&self.app, self.shape.by_id, n_top, offsets, gained)
            }
        });
        if self.shape.is_chat {
            if !gained.text.is_empty() || says_more {
                let delta = json!({"content": gained.text});
                let mut choice = json!({"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": null});
                self.tell_ids(&mut choice, gained, None);
                self.event(choice);
            }
            if finish_reason.is_some() {
                let mut choice = json!({"index": at, "delta": {}, "logprobs": null, "finish_reason": finish_reason});
                self.tell_ids(&mut choice, &Gained::default(), prompt_ids);
                self.event(choice);
            }
        } else if !gained.text.is_empty() || says_more || finish_reason.is_some() {
            let mut choice =
                json!({"index": at, "text": gained.text, "logprobs": logprobs, "finish_reason": finish_reason});
            self.tell_ids(&mut choice, gained, prompt_ids);
            self.event(choice);
        }
    }

    fn tell_ids(&self, choice: &mut Value, gained: &Gained, prompt_ids: Option<&[u32]>) {
        if self.shape.tells_ids {
            choice["token_ids"] = json!(gained.ids);
            choice["prompt_token_ids"] = json!(prompt_ids);
        }
    }

    fn event(&mut self, choice: Value) {
        let mut event = self.head.clone();
        event["choices"] = json!([choice]);
        if self.stream.counts {
            event["usage"] = Value::Null;
        }
        self.data(&event.to_string());
    }

    fn end(&mut self) {
        if self.stream.counts {
            let mut event = self.head.clone();
            event["choices"] = json!([]);
            event["usage"] = usage(self.n_prompt.iter().sum(), self.n_new);
            self.data(&event.to_string());
        }
        self.data("[DONE]");
        self.is_over = true;
    }

    fn data(&mut self, text: &str) {
        self.ready.push_back(Bytes::from(format!("data: {text}\n\n")));
    }
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let events = &mut *self;
        loop {
            if let Some(data) = events.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if events.is_over {
                return Poll::Ready(None);
            }
            match events.ear.poll_hear(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok((job, told))) => events.tell(job, told),
                Poll::Ready(Err(refusal)) => {
                    events.data(&refusal.body().to_string());
                    events.is_over = true;
                }
            }
        }
    }
}
