//! Rendering that remembers which bytes came from a message. Contents go through the template between private-use marks; when the
//! rendering without the marks equals the plain rendering, the marks tell exactly what a person wrote, whatever it looks like.
//!
//! A template that trims contents is met by marks inside the white space. One that cuts, splits or rearranges contents is
//! refused; one that changes letters in place (`upper`) is followed, as transformers would.

use crate::chat_template::{ChatTemplate, Context};
use crate::{Error, Message, Result};
use std::ops::Range;

/// A rendered chat.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// Bytes that came from messages, in order, not overlapping.
    pub(crate) contents: Vec<Content>,
}

impl Rendered {
    /// Cuts white space off both ends.
    pub(crate) fn strip(&mut self) {
        let n_lead = self.text.len() - self.text.trim_start().len();
        self.text.drain(..n_lead);
        self.text.truncate(self.text.trim_end().len());
        let len = self.text.len();
        for content in &mut self.contents {
            let moved = |at: usize| at.saturating_sub(n_lead).min(len);
            content.range = moved(content.range.start)..moved(content.range.end);
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) range: Range<usize>,
    pub(crate) message: usize,
}

/// Message numbers are written as one private-use character each, from here.
const NUMBERS: u32 = 0xF_0000;
const MAX_MESSAGES: usize = 60_000;

/// Renders `messages` and finds their contents again.
pub(crate) fn render(template: &ChatTemplate, messages: &[Message], context: &Context<'_>) -> Result<Rendered> {
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        let message = format!("a chat has 1 to {MAX_MESSAGES} messages, found {}", messages.len());
        return Err(Error::Messages { index: 0, message });
    }
    let plain: Vec<(&str, &str)> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
    let text = template.render(&plain, context)?;
    let rewrites = || Error::TemplateRewritesContent { origin: template.origin().to_owned() };
    let (open, close) = unused_marks(&text, messages, template.source()).ok_or_else(rewrites)?;
    for inside_white_space in [false, true] {
        let marked: Vec<String> =
            messages.iter().enumerate().map(|(i, m)| mark(&m.content, i, (open, close), inside_white_space)).collect();
        let marked: Vec<(&str, &str)> =
            messages.iter().zip(&marked).map(|(m, c)| (m.role.as_str(), c.as_str())).collect();
        // A template may fail on the marks where it passed without them, for example on a length check.
        let Ok(with_marks) = template.render(&marked, context) else { continue };
        if let Some(rendered) = read_marks(&with_marks, (open, close))
            && rendered.text == text
        {
            return Ok(rendered);
        }
    }
    Err(rewrites())
}

/// Two private-use characters that occur nowhere in the chat.
fn unused_marks(text: &str, messages: &[Message], source: &str) -> Option<(char, char)> {
    let free = |c: &char| {
        !text.contains(*c) && !source.contains(*c) && messages.iter().all(|message| !message.content.contains(*c))
    };
    let mut free = (0x10_0000..0x10_FFF0).filter_map(char::from_u32).filter(free);
    Some((free.next()?, free.next()?))
}

fn mark(content: &str, index: usize, (open, close): (char, char), inside_white_space: bool) -> String {
    let number =
        char::from_u32(NUMBERS + index as u32).expect("the number of messages is below the private-use plane's size");
    if !inside_white_space {
        return format!("{open}{number}{content}{close}");
    }
    let core = content.trim();
    if core.is_empty() {
        return content.to_owned();
    }
    let head = content.len() - content.trim_start().len();
    let tail = head + core.len();
    format!("{}{open}{number}{core}{close}{}", &content[..head], &content[tail..])
}

/// Takes the marks out; None when one is lost, doubled or nested.
fn read_marks(marked: &str, (open, close): (char, char)) -> Option<Rendered> {
    let mut text = String::with_capacity(marked.len());
    let mut contents = Vec::new();
    let mut current: Option<(usize, usize)> = None;
    let mut chars = marked.chars();
    while let Some(c) = chars.next() {
        if c == open {
            let number = (chars.next()? as u32).checked_sub(NUMBERS)?;
            if current.replace((number as usize, text.len())).is_some() {
                return None;
            }
        } else if c == close {
            let (message, start) = current.take()?;
            contents.push(Content { range: start..text.len(), message });
        } else {
            text.push(c);
        }
    }
    current.is_none().then_some(Rendered { text, contents })
}
