//! Texts by the block: some hundred rows of JSON, deflated, unpacked by the browser when one of them is opened.

use super::pack;
use serde::Serialize;

/// A block is closed once it holds so many bytes or rows: one is unpacked in some milliseconds.
const BLOCK_BYTES: usize = 1 << 18;
const BLOCK_ROWS: usize = 512;

/// Rows in the order they came.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The first row of each block.
    pub(super) starts: Vec<usize>,
    packed: Vec<Vec<u8>>,
    open: String,
    n_open: usize,
    n_closed: usize,
}

impl Blocks {
    /// Adds a row.
    pub(super) fn push(&mut self, row: &impl Serialize) {
        self.open.push(if self.n_open == 0 { '[' } else { ',' });
        // Texts, numbers and lists always serialise; a log-probability that is no number becomes null.
        self.open += &serde_json::to_string(row).unwrap_or_else(|_| "null".into());
        self.n_open += 1;
        if self.open.len() >= BLOCK_BYTES || self.n_open == BLOCK_ROWS {
            self.close();
        }
    }

    /// Ends the open block; the next row begins another.
    pub(super) fn close(&mut self) {
        if self.n_open > 0 {
            self.open.push(']');
            self.packed.push(pack::deflate(self.open.as_bytes()));
            self.starts.push(self.n_closed);
            self.n_closed += self.n_open;
            self.n_open = 0;
            self.open.clear();
        }
    }

    /// The closed blocks as elements that no browser runs; their ids are `name` and a number.
    pub(super) fn elements(&self, name: &str) -> impl Iterator<Item = String> {
        self.packed.iter().enumerate().map(move |(at, bytes)| element(&format!("{name}{at}"), bytes))
    }
}

/// Packed bytes as an element.
pub(super) fn element(id: &str, packed: &[u8]) -> String {
    format!("<script type=\"text/plain\" id=\"{id}\">{}</script>\n", pack::base64(packed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_close_by_rows_and_by_bytes_and_know_their_first_rows() {
        let mut blocks = Blocks::default();
        (0..BLOCK_ROWS + 3).for_each(|at| blocks.push(&at));
        blocks.push(&"x".repeat(BLOCK_BYTES));
        blocks.push(&1);
        blocks.close();
        blocks.close();
        assert_eq!(blocks.starts, [0, BLOCK_ROWS, BLOCK_ROWS + 4]);
        let ids: Vec<String> = blocks.elements("q").map(|one| one.split('"').nth(3).unwrap().to_owned()).collect();
        assert_eq!(ids, ["q0", "q1", "q2"]);
    }
}
