//! Token rows packed side by side for one forward pass, and who may attend to whom.
//!
//! Documents attend causally within themselves. In the shared-prefix form several continuations stand after one prefix: each
//! attends to the prefix and to itself, and its positions go on where the prefix ends. Chosen and rejected answers of one
//! prompt, or a question's options, so cost their prompt once; the numbers are those of separate documents.

use crate::{Error, Result};
use aloe_tensor::{AttentionBlock, AttentionPlan, Tensor};
use std::ops::Range;

/// A prefix and what may follow it.
#[derive(Clone, Debug)]
pub struct Branches<'a> {
    /// The shared beginning, not empty.
    pub prefix: &'a [u32],
    /// The continuations; empty ones are allowed and take no rows.
    pub continuations: Vec<&'a [u32]>,
}

/// One forward pass's tokens.
#[derive(Clone, Debug)]
pub struct PackedBatch {
    /// Token ids `[N]`.
    pub ids: Vec<u32>,
    /// Position of each token in its own text `[N]`.
    pub positions: Vec<u32>,
    /// Which keys each range of queries sees.
    pub plan: AttentionPlan,
    /// Rows of each document, in the order given; in the shared-prefix form of each prefix and then of its continuations.
    pub pieces: Vec<Range<usize>>,
    /// What the training forward pass adds to the embeddings `[N, D]`; inference does not look at it.
    pub noise: Option<Tensor>,
}

impl PackedBatch {
    /// Documents side by side, each blind to the others.
    pub fn from_documents(documents: &[&[u32]]) -> Self {
        let mut rows = Rows::default();
        for document in documents {
            rows.push(document, 0, None);
        }
        rows.finish()
    }

    /// Prefixes with their continuations side by side.
    pub fn from_branches(groups: &[Branches<'_>]) -> Self {
        let mut rows = Rows::default();
        for group in groups {
            let prefix = rows.push(group.prefix, 0, None);
            for continuation in &group.continuations {
                rows.push(continuation, group.prefix.len(), Some(prefix.clone()));
            }
        }
        rows.finish()
    }

    /// N.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Pairs of a query and a key that attention sees: each token its own text up to itself.
    pub fn n_attended(&self) -> u64 {
        self.positions.iter().map(|&position| u64::from(position) + 1).sum()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Refuses ids outside a vocabulary of `vocab_size` and positions beyond a context of `context` tokens.
    pub fn check(&self, vocab_size: usize, context: usize) -> Result<()> {
        check_ids(&self.ids, vocab_size)?;
        match self.positions.iter().max() {
            Some(&last) if last as usize >= context => Err(Error::Input(format!(
                "a text of {} tokens does not fit the model's context of {context}",
                last + 1
            ))),
            _ => Ok(()),
        }
    }
}

pub(crate) fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        Some(at) => {
            Err(Error::Input(format!("token id {} at row {at} is outside the vocabulary of {vocab_size}", ids[at])))
        }
        None => Ok(()),
    }
}

#[derive(Default)]
struct Rows {
    ids: Vec<u32>,
    positions: Vec<u32>,
    blocks: Vec<AttentionBlock>,
    pieces: Vec<Range<usize>>,
}

impl Rows {
    fn push(&mut self, ids: &[u32], first_position: usize, prefix: Option<Range<usize>>) -> Range<usize> {
        let range = self.ids.len()..self.ids.len() + ids.len();
        self.ids.extend_from_slice(ids);
        self.positions.extend((0..ids.len()).map(|i| (first_position + i) as u32));
        if !range.is_empty() {
            let keys = prefix.into_iter().filter(|r| !r.is_empty()).chain([range.clone()]).collect();
            self.blocks.push(AttentionBlock { queries: range.clone(), keys });
        }
        self.pieces.push(range.clone());
        range
    }

    fn finish(self) -> PackedBatch {
        PackedBatch {
            ids: self.ids,
            positions: self.positions,
            plan: AttentionPlan { blocks: self.blocks, causal: true },
            pieces: self.pieces,
            noise: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_continue_the_positions_of_their_prefix() {
        let batch = PackedBatch::from_branches(&[
            Branches { prefix: &[5, 6, 7], continuations: vec![&[1, 2], &[], &[3]] },
            Branches { prefix: &[8], continuations: vec![&[9]] },
        ]);
        assert_eq!(batch.ids, [5, 6, 7, 1, 2, 3, 8, 9]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 4, 3, 0, 1]);
        assert_eq!(batch.pieces, [0..3, 3..5, 5..5, 5..6, 6..7, 7..8]);
    }

    #[test]
    fn ids_outside_the_vocabulary_and_too_long_texts_are_refused() {
        let batch = PackedBatch::from_documents(&[&[1, 2, 9]]);
        assert!(batch.check(10, 3).is_ok());
        assert_eq!(
            batch.check(9, 3).map_err(|e| e.to_string()),
            Err("token id 9 at row 2 is outside the vocabulary of 9".to_string())
        );
        assert_eq!(
            batch.check(10, 2).map_err(|e| e.to_string()),
            Err("a text of 3 tokens does not fit the model's context of 2".to_string())
        );
    }
}
