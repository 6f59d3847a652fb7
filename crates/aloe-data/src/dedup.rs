//! Duplicates: text equal but for case and punctuation, and shared MinHash buckets joined by union-find. The first row of a cluster stays.
//!
//! Rows of one turn and dialogues are compared among themselves, each with its banding. As in Datatrove, sharing a bucket is the
//! whole test; the exact Jaccard similarity is written beside each dropped row, to be read.

use crate::minhash::{Banding, MinHash, jaccard};
use crate::simplify::plain;
use crate::{Dedup, Item, parallel, simplify};
use aloe_record::{Cancel, Progress};
use std::collections::HashMap;
use xxhash_rust::xxh3::xxh3_128;

/// A row that another one covers.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Duplicate {
    /// Index of the dropped row.
    #[serde(skip)]
    pub(crate) dropped_index: usize,
    /// The dropped row.
    pub(crate) dropped: String,
    /// The row of the same cluster that stays.
    pub(crate) kept: String,
    /// `exact_duplicate`, `near_duplicate` or `semantic_duplicate`.
    pub(crate) rule: &'static str,
    /// Jaccard similarity of the two rows' 5-word shingles; below the threshold when the rows are linked by a third.
    pub(crate) jaccard: f64,
}

/// Finds the rows to drop, in order.
pub(crate) fn find(
    items: &[Item],
    dedup: &Dedup,
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> crate::Result<Vec<Duplicate>> {
    let texts: Vec<String> = parallel::map(n_threads, items, |item| simplify(&item.dedup_text()));
    let mut exact_of: Vec<Option<usize>> = vec![None; items.len()];
    if dedup.exact {
        let mut first: HashMap<u128, usize> = HashMap::new();
        // Simplified text has lost its numbers, and 2 + 2 is no copy of 3 + 3.
        for (index, text) in parallel::map(n_threads, items, |item| xxh3_128(plain(&item.dedup_text()).as_bytes()))
            .into_iter()
            .enumerate()
        {
            match first.entry(text) {
                std::collections::hash_map::Entry::Occupied(entry) => exact_of[index] = Some(*entry.get()),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(index);
                }
            }
        }
    }
    let mut clusters = UnionFind::new(items.len());
    if dedup.minhash {
        for (banding, dialogue) in [(Banding::SINGLE_TURN, false), (Banding::DIALOGUE, true)] {
            let rows = (0..items.len()).filter(|&row| exact_of[row].is_none() && items[row].is_dialogue() == dialogue);
            let rows: Vec<usize> = rows.collect();
            join_buckets(&mut clusters, &MinHash::new(banding), &texts, &rows, n_threads, progress, cancel)?;
        }
    }
    let mut found = Vec::new();
    for index in 0..items.len() {
        let near = clusters.root(index);
        let (kept, rule) = match exact_of[index] {
            Some(first) => (clusters.root(first), "exact_duplicate"),
            None if near != index => (near, "near_duplicate"),
            None => continue,
        };
        found.push(Duplicate {
            dropped_index: index,
            dropped: items[index].id.clone(),
            kept: items[kept].id.clone(),
            rule,
            jaccard: (jaccard(&texts[index], &texts[kept]) * 1e4).round() / 1e4,
        });
    }
    Ok(found)
}

/// Rows whose signatures are in memory at a time.
const N_BLOCK: usize = 1 << 14;

fn join_buckets(
    clusters: &mut UnionFind,
    hash: &MinHash,
    texts: &[String],
    rows: &[usize],
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> crate::Result<()> {
    let mut buckets: HashMap<(u8, u128), usize> = HashMap::new();
    for block in rows.chunks(N_BLOCK) {
        cancel.check()?;
        for (&row, signature) in block.iter().zip(bucket_hashes(hash, texts, block, n_threads)) {
            for (bucket, hashes) in signature.into_iter().enumerate() {
                let first = *buckets.entry((bucket as u8, hashes)).or_insert(row);
                clusters.join(first, row);
            }
        }
        progress.advance(block.len() as u64);
    }
    Ok(())
}

/// Each row's buckets, one 128-bit hash a bucket, computed by all threads. 128 bits stand for the bucket's hashes: a false match
/// needs 2^64 rows. Rows are independent, so the result does not depend on their number.
fn bucket_hashes(hash: &MinHash, texts: &[String], rows: &[usize], n_threads: usize) -> Vec<Vec<u128>> {
    let n_hashes = hash.banding().n_hashes;
    let one = |row: &usize| -> Vec<u128> {
        let signature = hash.signature(&texts[*row]);
        let bytes = |hashes: &[u64]| hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect::<Vec<u8>>();
        signature.chunks(n_hashes).map(|hashes| xxh3_128(&bytes(hashes))).collect()
    };
    parallel::map(n_threads, rows, one)
}

/// Clusters whose root is their smallest index, so that the first row stays.
pub(crate) struct UnionFind {
    parent: Vec<usize>,
}

impl UnionFind {
    pub(crate) fn new(n: usize) -> UnionFind {
        UnionFind { parent: (0..n).collect() }
    }

    pub(crate) fn root(&mut self, mut index: usize) -> usize {
        while self.parent[index] != index {
            self.parent[index] = self.parent[self.parent[index]];
            index = self.parent[index];
        }
        index
    }

    pub(crate) fn join(&mut self, first: usize, second: usize) {
        let (first, second) = (self.root(first), self.root(second));
        self.parent[first.max(second)] = first.min(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Body;
    use aloe_text::{Conversation, Message};

    fn item(index: usize, turns: &[&str]) -> Item {
        let messages = turns.iter().enumerate();
        let messages = messages
            .map(|(i, text)| if i % 2 == 0 { Message::user(*text) } else { Message::assistant(*text) })
            .collect();
        Item {
            id: index.to_string(),
            at: String::new(),
            source: 0,
            task: String::new(),
            subject: String::new(),
            question: None,
            stage: None,
            group: None,
            style: None,
            body: Body::Conversation(Conversation { messages }),
        }
    }

    fn check(rows: &[&[&str]]) -> Vec<(usize, String, &'static str)> {
        let items: Vec<Item> = rows.iter().enumerate().map(|(index, turns)| item(index, turns)).collect();
        let found = find(&items, &Dedup::default(), 2, &Progress::silent(), &Cancel::default()).unwrap();
        found.into_iter().map(|duplicate| (duplicate.dropped_index, duplicate.kept, duplicate.rule)).collect()
    }

    const LONG: &str = "The axillary nerve winds around the surgical neck of the humerus together with the posterior circumflex \
        humeral artery and supplies the deltoid and the teres minor, and the skin over the lower part of the deltoid muscle.";

    #[test]
    fn planted_duplicates_are_found_and_nothing_else_and_the_first_stays() {
        let changed = LONG.replace("lower part", "lowest part");
        let other = "Iron deficiency makes small pale red cells because too little haemoglobin can be made in the marrow each day.";
        let found = check(&[
            &["Which nerve?", LONG],
            &["Which anaemia?", other],
            &["which NERVE", LONG],
            &["Which nerve?", &changed],
            &["Short", "No"],
            &["Short?", "no."],
            &["Short", "Yes"],
            &["2 + 2?", "4"],
            &["3 + 3?", "6"],
        ]);
        let expected = [
            (2, "0".to_owned(), "exact_duplicate"),
            (3, "0".to_owned(), "near_duplicate"),
            (5, "4".to_owned(), "exact_duplicate"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_dialogue_and_a_single_turn_with_the_same_words_are_not_duplicates() {
        assert!(check(&[&["Which nerve?", LONG], &["Which nerve?", LONG, "Sure?", "Yes."]]).is_empty());
    }

    #[test]
    fn clusters_are_transitive_and_independent_of_the_order_of_joins() {
        let mut clusters = UnionFind::new(5);
        for (a, b) in [(3, 4), (1, 3), (4, 0)] {
            clusters.join(a, b);
        }
        assert_eq!((0..5).map(|i| clusters.root(i)).collect::<Vec<_>>(), [0, 0, 2, 0, 0]);
    }
}
