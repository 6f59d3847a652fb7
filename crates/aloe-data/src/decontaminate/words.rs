//! Runs of words: the hash of any run of a text in one step, and the runs of all questions behind a filter that most runs of a row
//! do not pass.
//!
//! A text's words are hashed once (XXH64). With prefix sums `S_i = S_(i-1) B + w_i` modulo 2^64 the run of `n` words from `i` has the sum
//! `S_(i+n) - S_i B^n` (Rabin and Karp's fingerprint over words), whose bits are mixed before they are used.

use xxhash_rust::xxh64::xxh64;

/// The base of the sums: odd, and one less is divided by 2 only once, so that swapped words do not meet.
const BASE: u64 = 0x9e37_79b9_7f4a_7c17;

/// A simplified text and its words.
pub(crate) struct Words<'a> {
    text: &'a str,
    /// Byte at which each word starts, and one past the last word's following space.
    starts: Vec<usize>,
    sums: Vec<u64>,
}

impl<'a> Words<'a> {
    /// `text` has single spaces between words and none at its ends.
    pub(crate) fn of(text: &'a str) -> Self {
        let mut words = Self { text, starts: vec![0], sums: vec![0] };
        let mut sum = 0u64;
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            sum = sum.wrapping_mul(BASE).wrapping_add(xxh64(word.as_bytes(), 0));
            words.sums.push(sum);
            words.starts.push(words.starts[words.starts.len() - 1] + word.len() + 1);
        }
        words
    }

    pub(crate) fn len(&self) -> usize {
        self.sums.len() - 1
    }

    /// The words from `first` on, `n` of them, as they stand in the text.
    pub(crate) fn run(&self, first: usize, n: usize) -> &'a str {
        &self.text[self.starts[first]..self.starts[first + n] - 1]
    }

    /// Hash of the words from `first` on, `n` of them: that of any equal run of any text.
    pub(crate) fn hash(&self, first: usize, n: usize) -> u64 {
        mixed(self.sums[first + n].wrapping_sub(self.sums[first].wrapping_mul(power(n))))
    }

    /// Hash of all words.
    pub(crate) fn whole_hash(&self) -> u64 {
        self.hash(0, self.len())
    }

    /// Places and hashes of all runs of `n` words, in order.
    pub(crate) fn runs(&self, n: usize) -> impl Iterator<Item = (usize, u64)> {
        let power = power(n);
        let sums = self.sums.iter().zip(self.sums.iter().skip(n));
        sums.map(move |(before, after)| mixed(after.wrapping_sub(before.wrapping_mul(power)))).enumerate()
    }
}

fn power(n: usize) -> u64 {
    (0..n).fold(1u64, |power, _| power.wrapping_mul(BASE))
}

/// The last step of XXH64: every bit depends on every other.
fn mixed(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(0x1656_67b1_9e37_79f9);
    hash ^ (hash >> 32)
}

/// Hashes to the questions that hold the run. What it holds is set once; then most lookups of other runs end at one bit, and a run takes
/// some 20 bytes: in a table of lists it would take four times as much.
#[derive(Default)]
pub(crate) struct Runs {
    /// What was added; empty after `close`.
    added: Vec<(u64, u32)>,
    /// Sorted, each once.
    hashes: Vec<u64>,
    /// Where the questions of each hash begin in `ids`, and one past the last's end.
    starts: Vec<u32>,
    ids: Vec<u32>,
    /// For each value of a hash's upper bits the place of its first hash, and one past the last.
    heads: Vec<u32>,
    head_shift: u32,
    /// A bit for each value of the hash's upper bits, 16 to a run; empty until `close`.
    filter: Vec<u64>,
    shift: u32,
}

impl Runs {
    /// Question `id` holds the run. Before `close`, in the order of the questions.
    pub(crate) fn add(&mut self, hash: u64, id: u32) {
        assert!(self.filter.is_empty(), "runs are added before the filter is made");
        self.added.push((hash, id));
    }

    /// Keeps the runs whose questions, each once, `is_kept` takes, and makes the filter.
    pub(crate) fn close(&mut self, mut is_kept: impl FnMut(&[u32]) -> bool) {
        let mut added = std::mem::take(&mut self.added);
        added.sort_unstable();
        added.dedup();
        let n_hashes = added.chunk_by(|one, other| one.0 == other.0).count();
        (self.hashes, self.ids) = (Vec::with_capacity(n_hashes), Vec::with_capacity(added.len()));
        self.starts = Vec::with_capacity(n_hashes + 1);
        for run in added.chunk_by(|one, other| one.0 == other.0) {
            let start = self.ids.len();
            self.ids.extend(run.iter().map(|(_, id)| *id));
            if is_kept(&self.ids[start..]) {
                self.hashes.push(run[0].0);
                self.starts.push(start as u32);
            } else {
                self.ids.truncate(start);
            }
        }
        self.starts.push(self.ids.len() as u32);
        let bits_of = |n: usize| n.max(64).next_power_of_two();
        let (n_heads, n_bits) = (bits_of(self.hashes.len()), bits_of(16 * self.hashes.len()));
        (self.head_shift, self.shift) = (64 - n_heads.trailing_zeros(), 64 - n_bits.trailing_zeros());
        self.heads = Vec::with_capacity(n_heads + 1);
        self.filter = vec![0; n_bits / 64];
        for (place, &hash) in self.hashes.iter().enumerate() {
            let head = (hash >> self.head_shift) as usize;
            self.heads.resize(self.heads.len().max(head + 1), place as u32);
            let bit = (hash >> self.shift) as usize;
            self.filter[bit / 64] |= 1 << (bit % 64);
        }
        self.heads.resize(n_heads + 1, self.hashes.len() as u32);
    }

    /// The questions that hold the run, in the order in which they were added. After `close`.
    pub(crate) fn get(&self, hash: u64) -> &[u32] {
        let bit = (hash >> self.shift) as usize;
        if self.filter.get(bit / 64).is_none_or(|bits| bits >> (bit % 64) & 1 == 0) {
            return &[];
        }
        let head = (hash >> self.head_shift) as usize;
        let (first, last) = (self.heads[head] as usize, self.heads[head + 1] as usize);
        match self.hashes[first..last].binary_search(&hash) {
            Ok(at) => &self.ids[self.starts[first + at] as usize..self.starts[first + at + 1] as usize],
            Err(_) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shingles::windows;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn runs_are_the_windows_of_words_and_equal_runs_have_one_hash_wherever_they_stand() {
        let texts = [
            "a b a b c a b",
            "one",
            "",
            "c a b",
            "x a b a b c",
            "b a",
            "a b",
            "a a b b",
            "b b a a",
            "ab",
            "a bc",
            "ab c",
        ];
        let mut by_hash: HashMap<u64, String> = HashMap::new();
        let mut seen = HashSet::new();
        for text in texts {
            let words = Words::of(text);
            for n in 1..=4 {
                let found: Vec<(&str, u64)> = words.runs(n).map(|(at, hash)| (words.run(at, n), hash)).collect();
                assert_eq!(
                    found.iter().map(|(run, _)| *run).collect::<Vec<_>>(),
                    windows(text, n).collect::<Vec<_>>(),
                    "{text:?}, {n}"
                );
                for (at, (run, hash)) in found.into_iter().enumerate() {
                    assert_eq!(hash, words.hash(at, n));
                    assert_eq!(by_hash.entry(hash).or_insert_with(|| run.to_owned()), run, "two runs of one hash");
                    seen.insert(run.to_owned());
                }
            }
        }
        assert_eq!(by_hash.len(), seen.len(), "a run has two hashes");
    }

    #[test]
    fn a_closed_index_finds_what_was_kept_and_nothing_else() {
        let text: String = (0..5_000).map(|n| format!("w{n} ")).collect();
        let words = Words::of(text.trim_end());
        let mut runs = Runs::default();
        for (at, hash) in words.runs(3) {
            runs.add(hash, at as u32);
        }
        runs.close(|ids| ids[0] % 2 == 0);
        for (at, hash) in words.runs(3) {
            let wanted: &[u32] = if at % 2 == 0 { &[at as u32] } else { &[] };
            assert_eq!(runs.get(hash), wanted, "run {at}");
        }
        assert!(words.runs(4).all(|(_, hash)| runs.get(hash).is_empty()));
        assert!(Runs::default().get(7).is_empty(), "nothing was added");
    }
}
