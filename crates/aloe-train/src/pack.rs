//! Rows to batches: whole documents packed first-fit-decreasing into rows of `max_len` tokens, in an order that depends on
//! (seed, epoch) alone.
//!
//! Documents are never truncated: one that is longer than a row was dropped or cut before, and counted. Each document
//! attends to itself only and its positions restart at 0 (the block-diagonal plan of `PackedBatch`), so the packing
//! changes which documents share a step and nothing else. The first token of a document is never a target, because no
//! token of its own document comes before it.

use crate::sft::SftRow;
use aloe_record::CounterRng;
use aloe_text::Encoded;

/// Between a row's place and the number of its piece.
pub(crate) const PIECE: &str = " (piece ";

/// One encoded training row.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// Where it came from: `file:line`.
    pub(crate) source: String,
    /// Name of the data source, where the row names one.
    pub(crate) data_source: Option<String>,
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// Whether each token is trained on.
    pub(crate) loss_mask: Vec<bool>,
}

impl Document {
    /// A row, or a piece of it called `source`, encoded.
    pub(crate) fn new(row: &SftRow, source: String, encoded: Encoded) -> Self {
        assert_eq!(encoded.ids.len(), encoded.loss_mask.len(), "{source}: ids and loss mask");
        Self { source, data_source: row.data_source.clone(), ids: encoded.ids, loss_mask: encoded.loss_mask }
    }

    /// Where its row stands: pieces that a long row was cut into have one.
    pub(crate) fn row(&self) -> &str {
        let piece = self.source.strip_suffix(')').and_then(|whole| whole.rsplit_once(PIECE));
        piece.filter(|(_, n)| n.bytes().all(|byte| byte.is_ascii_digit())).map_or(&self.source, |(row, _)| row)
    }

    /// Name of the data source, where the row names one.
    pub(crate) fn data_source(&self) -> Option<&str> {
        self.data_source.as_deref()
    }

    /// Pairs (row, target): the position whose hidden state predicts, and the token to predict.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        (1..self.ids.len()).filter(|&at| self.loss_mask[at]).map(|at| (at - 1, self.ids[at]))
    }

    /// How many tokens are trained on.
    pub(crate) fn n_targets(&self) -> usize {
        self.targets().count()
    }
}

/// Which documents share a row, and which fit none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Packing {
    /// Per row the indices of its documents.
    pub(crate) rows: Vec<Vec<usize>>,
    /// Documents longer than a row.
    pub(crate) too_long: Vec<usize>,
}

/// First-fit-decreasing: documents from long to short (equal lengths in the order given), each into the first row that
/// still has room for it.
pub(crate) fn first_fit_decreasing(lens_tokens: &[usize], order: &[usize], max_len: usize) -> Packing {
    let (mut fitting, too_long): (Vec<usize>, Vec<usize>) =
        order.iter().partition(|&&document| lens_tokens[document] <= max_len);
    fitting.sort_by_key(|&document| std::cmp::Reverse(lens_tokens[document]));
    let mut room = Room::new(fitting.len(), max_len);
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for document in fitting {
        let row = room.take_first(lens_tokens[document]);
        if row == rows.len() {
            rows.push(Vec::new());
        }
        rows[row].push(document);
    }
    Packing { rows, too_long }
}

/// The rows of one epoch: documents shuffled, packed, and the rows shuffled.
pub(crate) fn epoch_rows(lens_tokens: &[usize], max_len: usize, seed: u64, epoch: u64) -> Packing {
    let mut rng = CounterRng::new(seed, "sft-order", epoch);
    let mut order: Vec<usize> = (0..lens_tokens.len()).collect();
    rng.shuffle(&mut order);
    let mut packing = first_fit_decreasing(lens_tokens, &order, max_len);
    rng.shuffle(&mut packing.rows);
    packing.too_long.sort_unstable();
    packing
}

/// The room left in each row, as a tree of maxima: finding the first row with room takes log2(rows) steps.
struct Room {
    tree: Vec<usize>,
    n_leaves: usize,
}

impl Room {
    /// As many empty rows as could ever be needed.
    fn new(n_rows: usize, max_len: usize) -> Self {
        let n_leaves = n_rows.next_power_of_two();
        Self { tree: vec![max_len; 2 * n_leaves], n_leaves }
    }

    /// The first row with room for `len_tokens`, which it then loses.
    fn take_first(&mut self, len_tokens: usize) -> usize {
        let mut node = 1;
        while node < self.n_leaves {
            node = if self.tree[2 * node] >= len_tokens { 2 * node } else { 2 * node + 1 };
        }
        self.tree[node] -= len_tokens;
        let row = node - self.n_leaves;
        while node > 1 {
            node /= 2;
            self.tree[node] = self.tree[2 * node].max(self.tree[2 * node + 1]);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_textbook_example_of_first_fit_decreasing_packs_as_by_hand() {
        // Room 10; sorted 8 7 5 4 3 2 1: 8 | 7 | 5 | 5+4 | 7+3 | 8+2 | 5+4+1.
        let lens = [5, 4, 8, 1, 7, 3, 2, 11];
        let packing = first_fit_decreasing(&lens, &[0, 1, 2, 3, 4, 5, 6, 7], 10);
        assert_eq!(packing.rows, [vec![2, 6], vec![4, 5], vec![0, 1, 3]]);
        assert_eq!(packing.too_long, [7]);
    }

    #[test]
    fn the_tree_packs_as_the_plain_search_does() {
        let mut rng = CounterRng::new(3, "test", 0);
        for n_documents in [1, 2, 3, 17, 100] {
            let lens: Vec<usize> = (0..n_documents).map(|_| 1 + rng.below(64)).collect();
            let order: Vec<usize> = (0..n_documents).collect();
            assert_eq!(first_fit_decreasing(&lens, &order, 64).rows, plain(&lens, 64), "{lens:?}");
        }
    }

    fn plain(lens: &[usize], max_len: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lens.len()).collect();
        order.sort_by_key(|&document| std::cmp::Reverse(lens[document]));
        let mut rows: Vec<Vec<usize>> = Vec::new();
        for document in order {
            let fits =
                |row: &Vec<usize>| row.iter().map(|&other| lens[other]).sum::<usize>() + lens[document] <= max_len;
            match rows.iter_mut().find(|row| fits(row)) {
                Some(row) => row.push(document),
                None => rows.push(vec![document]),
            }
        }
        rows
    }

    #[test]
    fn an_epoch_holds_every_document_once_and_depends_on_seed_and_epoch_alone() {
        let lens: Vec<usize> = (0..200).map(|at| 1 + (at * 37) % 90).collect();
        let rows = epoch_rows(&lens, 100, 7, 2).rows;
        assert_eq!(rows, epoch_rows(&lens, 100, 7, 2).rows);
        assert_ne!(rows, epoch_rows(&lens, 100, 7, 3).rows);
        assert_ne!(rows, epoch_rows(&lens, 100, 8, 2).rows);
        assert_eq!(rows.len(), epoch_rows(&lens, 100, 7, 3).rows.len());
        let mut seen: Vec<usize> = rows.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
        assert!(rows.iter().all(|row| row.iter().map(|&document| lens[document]).sum::<usize>() <= 100));
    }

    #[test]
    fn the_first_token_of_a_document_is_no_target_even_when_its_mask_says_so() {
        let document = Document {
            source: "a:1".into(),
            data_source: None,
            ids: vec![9, 8, 7],
            loss_mask: vec![true, false, true],
        };
        assert_eq!(document.targets().collect::<Vec<_>>(), [(1, 7)]);
    }
}
