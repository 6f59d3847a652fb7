//! Texts by the block: some hundred rows of JSON, deflated, unpacked by the browser when one of them is opened.

use super::pack;
use serde::Serialize;

/// The texts of a file in the order of its rows, as the page holds them: a block is some hundred rows, packed. Which of them a sample has
/// is said by their numbers, so that two runs in another order share nothing but those.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    /// The first row of each block.
    starts: Vec<u32>,
    packed: Vec<Vec<u8>>,
    n_rows: usize,
}

impl Texts {
    /// Adds the next `n_rows` rows, at least one, as [`pack_rows`] packed them.
    pub fn push_block(&mut self, n_rows: usize, packed: Vec<u8>) {
        self.starts.push(u32::try_from(self.n_rows).unwrap_or(u32::MAX));
        self.packed.push(packed);
        self.n_rows += n_rows;
    }

    /// How many rows there are.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The first rows of the blocks that hold one of `rows`, and those blocks: a run that still grows has questions that nothing is
    /// said of yet.
    pub(super) fn used(&self, rows: impl Iterator<Item = u32>) -> Vec<(u32, &[u8])> {
        let mut is_used = vec![false; self.starts.len()];
        for row in rows {
            if let Some(at) = self.starts.partition_point(|&start| start <= row).checked_sub(1) {
                is_used[at] = true;
            }
        }
        let blocks = self.starts.iter().zip(&self.packed).zip(is_used);
        blocks.filter(|(_, is_used)| *is_used).map(|((&start, packed), _)| (start, packed.as_slice())).collect()
    }
}

/// Rows as a block of [`Texts`]. Texts, numbers and lists always serialise; a log-probability that is no number becomes null.
pub fn pack_rows(rows: &[impl Serialize]) -> Vec<u8> {
    pack::deflate(&serde_json::to_vec(rows).unwrap_or_else(|_| b"[]".to_vec()))
}

/// Packed bytes as an element that no browser runs.
pub(super) fn element(id: &str, packed: &[u8]) -> String {
    format!("<script type=\"text/plain\" id=\"{id}\">{}</script>\n", pack::base64(packed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_know_their_first_rows_and_those_that_nothing_points_to_are_left_out() {
        let mut texts = Texts::default();
        [3, 1, 4].into_iter().for_each(|n_rows| texts.push_block(n_rows, vec![n_rows as u8]));
        assert_eq!(texts.n_rows(), 8);
        assert_eq!(texts.used([0, 3, 7].into_iter()), [(0, &[3u8][..]), (3, &[1][..]), (4, &[4][..])]);
        assert_eq!(texts.used([2, 6, 4].into_iter()), [(0, &[3u8][..]), (4, &[4][..])]);
        assert_eq!(texts.used([].into_iter()), []);
    }
}
