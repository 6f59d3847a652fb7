//! The rows of one JSON array, or of one JSON object whose values are the rows, cut out one at a time with their line. A list under
//! one of [`WRAPPERS`] in such an object gives its elements, each a row.
//!
//! Only brackets and strings are followed here; each element is parsed by serde_json afterwards, so that one broken row is one
//! error and the rest is still read. Of an element beyond [`MAX_ROW_BYTES`] no more than that is kept.

use std::io::{BufRead, Bytes};
use std::iter::Peekable;

/// The longest row that is read.
pub(crate) const MAX_ROW_BYTES: usize = 1 << 20;

/// Keys under which one object holds all rows in a list: Chen et al.'s red-team files, and exports that wrap their rows.
pub(crate) const WRAPPERS: [&str; 4] = ["harmful_behaviors", "data", "rows", "examples"];

/// One element's bytes.
pub(crate) struct Element {
    /// The JSON text; longer than [`MAX_ROW_BYTES`] when the row is too long, and then cut off.
    pub(crate) bytes: Vec<u8>,
    /// 1-based line of its first byte.
    pub(crate) line: usize,
    /// 1-based column of its first byte, in bytes.
    pub(crate) column: usize,
    /// The key, in an object of rows.
    pub(crate) key: Option<String>,
}

/// Why no further element can be cut out.
pub(crate) enum Stop {
    /// The system refused to read on.
    Io(std::io::Error),
    /// The brackets do not fit: line, column, reason.
    Syntax(usize, usize, &'static str),
}

/// Iterates over the elements.
pub(crate) struct Elements<R: BufRead> {
    source: Peekable<Bytes<R>>,
    line: usize,
    column: usize,
    opened: Option<u8>,
    /// Inside the list of a wrapper.
    is_nested: bool,
    done: bool,
}

impl<R: BufRead> Elements<R> {
    pub(crate) fn new(source: R) -> Self {
        Elements { source: source.bytes().peekable(), line: 1, column: 1, opened: None, is_nested: false, done: false }
    }

    fn peek(&mut self) -> Result<Option<u8>, Stop> {
        match self.source.peek() {
            None => Ok(None),
            Some(Ok(byte)) => Ok(Some(*byte)),
            Some(Err(_)) => match self.source.next() {
                Some(Err(error)) => Err(Stop::Io(error)),
                _ => Ok(None),
            },
        }
    }

    fn take(&mut self) -> Result<Option<u8>, Stop> {
        let byte = self.peek()?;
        if byte.is_some() {
            self.source.next();
        }
        if byte == Some(b'\n') {
            self.line += 1;
            self.column = 1;
        } else if byte.is_some() {
            self.column += 1;
        }
        Ok(byte)
    }

    fn skip(&mut self, also: &[u8]) -> Result<Option<u8>, Stop> {
        while let Some(byte) = self.peek()? {
            // EF BB BF is the byte order mark that some exporters write.
            if byte.is_ascii_whitespace() || also.contains(&byte) || [0xEF, 0xBB, 0xBF].contains(&byte) {
                self.take()?;
            } else {
                return Ok(Some(byte));
            }
        }
        Ok(None)
    }

    fn syntax<T>(&self, reason: &'static str) -> Result<T, Stop> {
        Err(Stop::Syntax(self.line, self.column, reason))
    }

    fn next_element(&mut self) -> Result<Option<Element>, Stop> {
        let open = match self.opened {
            Some(open) => open,
            None => {
                self.skip(&[])?;
                let Some(open) = self.take()? else { return Ok(None) };
                self.opened = Some(open);
                open
            }
        };
        let close = if open == b'[' { b']' } else { b'}' };
        match self.skip(b",")? {
            None => return self.syntax("the file ends before its closing bracket"),
            Some(byte) if byte == close && self.is_nested => {
                self.take()?;
                (self.is_nested, self.opened) = (false, Some(b'{'));
                return self.next_element();
            }
            Some(byte) if byte == close => {
                self.take()?;
                return match self.skip(&[])? {
                    None => Ok(None),
                    Some(_) => self.syntax("text after the closing bracket"),
                };
            }
            Some(_) => {}
        }
        let key = if open == b'{' { Some(self.key()?) } else { None };
        if key.as_deref().is_some_and(|key| WRAPPERS.contains(&key)) && self.peek()? == Some(b'[') {
            self.take()?;
            (self.is_nested, self.opened) = (true, Some(b'['));
            return self.next_element();
        }
        let (line, column) = (self.line, self.column);
        let bytes = self.value(close)?;
        Ok(Some(Element { bytes, line, column, key }))
    }

    fn key(&mut self) -> Result<String, Stop> {
        let bytes = self.value(b':')?;
        if self.skip(&[])? != Some(b':') {
            return self.syntax("expected `:` after a key");
        }
        self.take()?;
        self.skip(&[])?;
        match serde_json::from_slice(&bytes) {
            Ok(key) => Ok(key),
            Err(_) => self.syntax("a key that is not a string"),
        }
    }

    /// The bytes up to the comma or closing bracket that ends the value.
    fn value(&mut self, close: u8) -> Result<Vec<u8>, Stop> {
        let (mut bytes, mut depth, mut in_string, mut escaped) = (Vec::new(), 0usize, false, false);
        loop {
            let Some(byte) = self.peek()? else { return self.syntax("the file ends inside a row") };
            if !in_string && depth == 0 && (byte == b',' || byte == close) {
                return Ok(bytes);
            }
            self.take()?;
            if bytes.len() <= MAX_ROW_BYTES {
                bytes.push(byte);
            }
            if in_string {
                in_string = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => depth -= 1,
                _ => {}
            }
        }
    }
}

impl<R: BufRead> Iterator for Elements<R> {
    type Item = Result<Element, Stop>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.next_element().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
