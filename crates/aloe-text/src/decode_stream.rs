//! Ids to text one by one, for a person who watches. A character is given out when it is whole: never half of its UTF-8 bytes.

use crate::{Result, Tokenizer};

/// Tokens kept back at most. A character has four bytes, so more waiting tokens than this mean bytes that are no UTF-8 at all.
const MAX_WAITING: usize = 16;

/// Incremental decoder. The pieces, joined, equal `decode` of all ids wherever those are UTF-8.
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// `ids[..read]` are given out; decoding restarts at `prefix` so that spaces between tokens come out right.
    prefix: usize,
    read: usize,
}

impl DecodeStream {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special: bool) -> DecodeStream {
        DecodeStream { tokenizer, skip_special, ids: Vec::new(), prefix: 0, read: 0 }
    }

    /// Takes one id; gives the text that is now whole, possibly none.
    pub fn step(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let waiting = self.ids.len() - self.read;
        self.emit(waiting >= MAX_WAITING)
    }

    /// Gives what was kept back; broken bytes come as U+FFFD.
    pub fn finish(&mut self) -> Result<String> {
        self.emit(true)
    }

    fn emit(&mut self, even_if_broken: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.prefix..self.read], self.skip_special)?;
        let now = self.tokenizer.decode(&self.ids[self.prefix..], self.skip_special)?;
        if now.ends_with('\u{FFFD}') && !even_if_broken {
            return Ok(String::new());
        }
        let new = match now.strip_prefix(before.as_str()) {
            Some(new) => new.to_owned(),
            // A broken character that was given out has become whole: what is new is decoded by itself.
            None => self.tokenizer.decode(&self.ids[self.read..], self.skip_special)?,
        };
        self.prefix = self.read;
        self.read = self.ids.len();
        self.ids.drain(..self.prefix);
        self.read -= self.prefix;
        self.prefix = 0;
        Ok(new)
    }
}
