//! Duplicates: text equal but for case and marks of writing, the system message with it, and shared MinHash buckets joined by union-find. The first row of a
//! cluster stays, or the longest.
//!
//! Rows of one turn and dialogues are compared among themselves, each with its banding. As in Datatrove, sharing a bucket is the
//! whole test; the exact Jaccard similarity is written beside each dropped row, to be read. Datatrove's text has lost all signs and does
//! not know system messages; here rows of different system messages share no bucket, nor do rows of at most [`N_SHORT`] words that
//! differ in their signs: `O+` is no near copy of `O-`. In longer rows a sign is one difference among many.

use crate::minhash::{Banding, MinHash, jaccard};
use crate::page::N_SHOWN;
use crate::simplify::{signs_alone, to_the_sign};
use crate::{Dedup, Item, Keep, parallel, simplify};
use aloe_record::{Cancel, Progress};
use std::cell::LazyCell;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

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
    /// The two texts, of those that the page shows.
    #[serde(skip)]
    pub(crate) texts: (String, String),
}

/// What two rows are compared by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signature {
    /// Hash of the text with its numbers; simplified text has lost them, and 2 + 2 is no copy of 3 + 3. `None` where exact
    /// duplicates are not looked for.
    pub(crate) exact: Option<u128>,
    /// Dialogues are compared with dialogues alone.
    pub(crate) is_dialogue: bool,
    /// Characters of the text, by which the longest row of a cluster is told.
    pub(crate) n_chars: u32,
    /// One 64-bit hash a bucket, which stands for the bucket's hashes: among 10^6 rows two buckets that differ have the same one with a
    /// chance of 4e-7, among 10^8 of 4e-3. Empty below five words and where near duplicates are not looked for.
    pub(crate) buckets: Vec<u64>,
}

/// The signatures of all rows side by side, in row order: of a million rows a vector each would take as much as its hashes.
#[derive(Default)]
pub(crate) struct Signatures {
    /// Empty where exact duplicates are not looked for; else one a row.
    exact: Vec<u128>,
    is_dialogue: Vec<bool>,
    n_chars: Vec<u32>,
    buckets: Vec<u64>,
    /// Where the next row's buckets begin.
    ends: Vec<usize>,
}

impl Signatures {
    /// Room for the signatures of `n_rows` rows of one turn, so that it is asked for once.
    pub(crate) fn with_capacity(n_rows: usize, dedup: &Dedup) -> Signatures {
        let n_buckets = if dedup.minhash { Banding::SINGLE_TURN.n_buckets } else { 0 };
        Signatures {
            exact: Vec::with_capacity(if dedup.exact { n_rows } else { 0 }),
            is_dialogue: Vec::with_capacity(n_rows),
            n_chars: Vec::with_capacity(n_rows),
            buckets: Vec::with_capacity(n_buckets * n_rows),
            ends: Vec::with_capacity(n_rows),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Adds the next row's; either all rows have an `exact` hash or none.
    pub(crate) fn push(&mut self, one: &Signature) {
        self.exact.extend(one.exact);
        self.is_dialogue.push(one.is_dialogue);
        self.n_chars.push(one.n_chars);
        self.buckets.extend_from_slice(&one.buckets);
        self.ends.push(self.buckets.len());
        assert!(
            self.exact.is_empty() || self.exact.len() == self.len(),
            "some rows have an exact hash, some have none"
        );
    }

    fn buckets(&self, row: usize) -> &[u64] {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.buckets[start..self.ends[row]]
    }
}

impl FromIterator<Signature> for Signatures {
    fn from_iter<I: IntoIterator<Item = Signature>>(rows: I) -> Signatures {
        let mut signatures = Signatures::default();
        rows.into_iter().for_each(|one| signatures.push(&one));
        signatures
    }
}

/// Rows of at most so many words are told apart by their signs: one changed word there leaves less than the threshold's share of
/// shingles, so that two near copies differ in little more than signs and numbers.
const N_SHORT: usize = 20;

/// Makes signatures, each of one row alone: whoever makes them, on whatever thread or machine, makes the same.
pub(crate) struct Signer {
    dedup: Dedup,
    single_turn: MinHash,
    dialogue: MinHash,
}

impl Signer {
    pub(crate) fn new(dedup: &Dedup) -> Signer {
        let (single_turn, dialogue) = (MinHash::new(Banding::SINGLE_TURN), MinHash::new(Banding::DIALOGUE));
        Signer { dedup: *dedup, single_turn, dialogue }
    }

    pub(crate) fn sign(&self, item: &Item) -> Signature {
        let text = item.dedup_text();
        let is_dialogue = item.is_dialogue();
        // Of long rows that are not compared to the letter nobody needs it.
        let signed = LazyCell::new(|| to_the_sign(&text));
        let system = item.system().filter(|text| !text.trim().is_empty()).map(to_the_sign);
        let exact = self.dedup.exact.then(|| match &system {
            Some(system) => xxh3_128(format!("{system}\n{}", *signed).as_bytes()),
            None => xxh3_128(signed.as_bytes()),
        });
        let n_chars = text.chars().count() as u32;
        if !self.dedup.minhash {
            return Signature { exact, is_dialogue, n_chars, buckets: Vec::new() };
        }
        let hash = if is_dialogue { &self.dialogue } else { &self.single_turn };
        let simple = simplify(&text);
        let is_short = simple.split(' ').nth(N_SHORT).is_none();
        let signs = if is_short { signs_alone(&signed) } else { String::new() };
        // Rows without either have the buckets that Datatrove's hashes make.
        let apart = match (&system, signs.is_empty()) {
            (None, true) => String::new(),
            _ => format!("{}\n{signs}", system.as_deref().unwrap_or_default()),
        };
        let mut bytes = Vec::with_capacity(8 * hash.banding().n_hashes + apart.len());
        let mut bucket = |hashes: &[u64]| {
            bytes.clear();
            bytes.extend_from_slice(apart.as_bytes());
            hashes.iter().for_each(|hash| bytes.extend_from_slice(&hash.to_le_bytes()));
            xxh3_64(&bytes)
        };
        let signature = hash.signature(&simple);
        let buckets = signature.chunks(hash.banding().n_hashes).map(&mut bucket).collect();
        Signature { exact, is_dialogue, n_chars, buckets }
    }
}

/// Finds the rows to drop, in order.
pub(crate) fn find(
    items: &[Item],
    dedup: &Dedup,
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> crate::Result<Vec<Duplicate>> {
    let signer = Signer::new(dedup);
    let mut signatures = Signatures::with_capacity(items.len(), dedup);
    for block in items.chunks(N_BLOCK) {
        cancel.check()?;
        parallel::map(n_threads, block, |item| signer.sign(item)).iter().for_each(|one| signatures.push(one));
        progress.advance(block.len() as u64);
    }
    let found = cluster(signatures, dedup.keep);
    Ok(described(items, &found, n_threads))
}

/// What [`cluster`] found, with ids and the similarity of each pair. Texts are made again for the rows found alone: all of them side
/// by side would double the memory of the stage.
pub(crate) fn described(items: &[Item], found: &[(usize, usize, &'static str)], n_threads: usize) -> Vec<Duplicate> {
    let mut described = parallel::map(n_threads, found, |&(dropped_index, kept, rule)| {
        let simple = |index: usize| simplify(&items[index].dedup_text());
        Duplicate {
            dropped_index,
            dropped: items[dropped_index].id.clone(),
            kept: items[kept].id.clone(),
            rule,
            jaccard: (jaccard(&simple(dropped_index), &simple(kept)) * 1e4).round() / 1e4,
            texts: Default::default(),
        }
    });
    for (one, &(dropped, kept, _)) in described.iter_mut().zip(found).take(N_SHOWN) {
        one.texts = (items[dropped].dedup_text(), items[kept].dedup_text());
    }
    described
}

/// Rows between two looks at the stop request.
const N_BLOCK: usize = 1 << 13;

/// The rows that others cover, in order: the row, the one of its cluster that stays, and the rule.
pub(crate) fn cluster(mut signatures: Signatures, keep: Keep) -> Vec<(usize, usize, &'static str)> {
    // Each row's first equal one, itself where there is none. Sorted, equal rows stand side by side, the first of them first; a table of
    // all rows would take several times the memory.
    let mut first_of: Vec<u32> = (0..signatures.len() as u32).collect();
    let mut exact: Vec<(u128, u32)> = std::mem::take(&mut signatures.exact).into_iter().zip(0..).collect();
    drop_singles(&mut exact, |hash| hash as usize);
    exact.sort_unstable();
    for same in exact.chunk_by(|first, second| first.0 == second.0) {
        for &(_, index) in &same[1..] {
            first_of[index as usize] = same[0].1;
        }
    }
    drop(exact);
    let mut clusters = UnionFind::new(signatures.len());
    let n_buckets = (0..signatures.len()).map(|row| signatures.buckets(row).len()).max().unwrap_or(0);
    let mut rows: Vec<(u64, u32)> = Vec::new();
    for (bucket, is_dialogue) in (0..n_buckets).flat_map(|bucket| [(bucket, false), (bucket, true)]) {
        rows.clear();
        let of_kind =
            |row: &u32| signatures.is_dialogue[*row as usize] == is_dialogue && first_of[*row as usize] == *row;
        let hash = |row: u32| Some((*signatures.buckets(row as usize).get(bucket)?, row));
        rows.extend((0..signatures.len() as u32).filter(of_kind).filter_map(hash));
        drop_singles(&mut rows, |hash| hash as usize);
        rows.sort_unstable();
        for pair in rows.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            clusters.join(pair[0].1 as usize, pair[1].1 as usize);
        }
    }
    drop(rows);
    let roots: Vec<usize> = first_of.iter().map(|&first| clusters.root(first as usize)).collect();
    drop(clusters);
    let kept = stays(&roots, keep, |index| signatures.n_chars[index] as usize);
    // Of equal rows one is no copy: the one that stays, else the first.
    let rule = |index: usize| {
        let stays_among_equals = first_of[kept[index]] == first_of[index];
        let is_copy = stays_among_equals || first_of[index] as usize != index;
        if is_copy { "exact_duplicate" } else { "near_duplicate" }
    };
    let dropped = (0..signatures.len()).filter(|&index| kept[index] != index);
    dropped.map(|index| (index, kept[index], rule(index))).collect()
}

/// Drops most of the rows whose hash no other row has, so that they need not be sorted: those with a place of their own in a table by the
/// lower bits of their hashes.
fn drop_singles<H: Copy>(rows: &mut Vec<(H, u32)>, low: impl Fn(H) -> usize) {
    let mut n_in_place = vec![0u8; (4 * rows.len()).next_power_of_two()];
    let mask = n_in_place.len() - 1;
    for (hash, _) in &*rows {
        let n = &mut n_in_place[low(*hash) & mask];
        *n = n.saturating_add(1);
    }
    rows.retain(|(hash, _)| n_in_place[low(*hash) & mask] > 1);
}

/// For each row the one of its cluster that stays; `roots` names the first of each.
pub(crate) fn stays(roots: &[usize], keep: Keep, n_chars: impl Fn(usize) -> usize) -> Vec<usize> {
    let mut best: Vec<usize> = roots.to_vec();
    if keep == Keep::Longest {
        for (index, &root) in roots.iter().enumerate() {
            if n_chars(index) > n_chars(best[root]) {
                best[root] = index;
            }
        }
    }
    roots.iter().map(|&root| best[root]).collect()
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
        Item::plain(index.to_string(), Body::Conversation(Conversation { messages }))
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
    fn rows_that_differ_in_a_sign_or_in_their_system_message_are_no_copies() {
        let found = check(&[
            &["Which blood group is this?", "O+"],
            &["Which blood group is this?", "O-"],
            &["Interpret: Na > 145", "high"],
            &["Interpret: Na < 145", "high"],
            &["What does a base excess of -5 mean here?", "It is low."],
            &["What does a base excess of +5 mean here?", "It is low."],
            &["What does a base excess of +5 mean, here?", "it is low"],
            &["n=2", "y"],
            &["n≠2", "y"],
            &["😀?", "😢"],
            &["😂?", "🙂"],
        ]);
        assert_eq!(found, [(6, "5".to_owned(), "exact_duplicate")]);
        let long = |sign: &str| format!("{LONG} The value was {sign} 145 on that day.");
        let found = check(&[&["Which nerve?", &long(">")], &["Which nerve?", &long("<")]]);
        assert_eq!(found, [(1, "0".to_owned(), "near_duplicate")], "in a long row a sign is one difference among many");
        let with = |index: usize, system: &str| {
            let mut item = item(index, &["Which nerve?", LONG]);
            let Body::Conversation(conversation) = &mut item.body else { unreachable!("made as one") };
            conversation.messages.insert(0, Message::system(system));
            item
        };
        let items = [with(0, "Be brief."), with(1, "Be kind."), item(2, &["Which nerve?", LONG]), with(3, "be brief")];
        let found = find(&items, &Dedup::default(), 2, &Progress::silent(), &Cancel::default()).unwrap();
        let found: Vec<_> = found.iter().map(|one| (one.dropped_index, one.kept.as_str(), one.rule)).collect();
        assert_eq!(found, [(3, "0", "exact_duplicate")]);
    }

    #[test]
    fn a_dialogue_and_a_single_turn_with_the_same_words_are_not_duplicates() {
        assert!(check(&[&["Which nerve?", LONG], &["Which nerve?", LONG, "Sure?", "Yes."]]).is_empty());
    }

    /// The signatures made in shares and put together are those made at once, so that no shard changes a cluster.
    #[test]
    fn a_signature_is_a_matter_of_its_row_alone_and_joins_do_not_cross_kinds_of_rows() {
        let signer = Signer::new(&Dedup::default());
        let (one, again) =
            (signer.sign(&item(0, &["Which nerve?", LONG])), signer.sign(&item(9, &["Which nerve?", LONG])));
        assert_eq!((one.buckets.len(), &one), (14, &again));
        let dialogue = signer.sign(&item(1, &["Which nerve?", LONG, "Sure?", "Yes."]));
        assert_eq!((dialogue.buckets.len(), dialogue.is_dialogue), (11, true));
        let alike = Signature { exact: None, is_dialogue: true, n_chars: 1, buckets: one.buckets.clone() };
        let rows = [Signature { exact: None, ..one.clone() }, alike, Signature { exact: None, ..one }];
        let found = cluster(rows.into_iter().collect(), Keep::First);
        assert_eq!(found, [(2, 0, "near_duplicate")]);
    }

    /// Rows 0, 1 and 3 share a bucket, 1, 2 and 4 are equal; lengths as given. With `first` row 0 stays, with `longest` row 2, of whose
    /// equals 1 and 4 are exact copies and of which 0 and 3 are near.
    #[test]
    fn the_longest_row_of_a_cluster_stays_when_asked_for_and_the_first_of_equally_long_ones() {
        let row = |exact: u128, bucket: u64, n_chars: u32| Signature {
            exact: Some(exact),
            is_dialogue: false,
            n_chars,
            buckets: vec![bucket],
        };
        let rows = [row(10, 1, 5), row(11, 1, 7), row(11, 1, 9), row(12, 1, 9), row(11, 1, 8), row(13, 2, 3)];
        let rows = || rows.iter().cloned().collect::<Signatures>();
        let (exact, near) = ("exact_duplicate", "near_duplicate");
        assert_eq!(cluster(rows(), Keep::First), [(1, 0, near), (2, 0, exact), (3, 0, near), (4, 0, exact)]);
        assert_eq!(cluster(rows(), Keep::Longest), [(0, 2, near), (1, 2, exact), (3, 2, near), (4, 2, exact)]);
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
