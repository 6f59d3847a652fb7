//! MinHash signatures as Datatrove computes them (`pipeline/dedup/minhash.py`, 0.6.0): xxHash64 of 5-word shingles, affine
//! permutations modulo 2^61 - 1 whose parameters come from numpy's `RandomState(1)`.
//!
//! Differs from Datatrove in one thing: words are split at spaces of the simplified text, where Datatrove runs spaCy's English
//! tokenizer, which also splits a few words such as `cannot`. Texts under five words have no shingle, hence no signature.

use xxhash_rust::xxh64::xxh64;

const MERSENNE_PRIME: u64 = (1 << 61) - 1;
const N_WORDS: usize = 5;
const SEED: u32 = 1;

/// How a signature is cut: two texts match when any bucket's hashes are all equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Banding {
    /// Buckets.
    pub n_buckets: usize,
    /// Hashes a bucket.
    pub n_hashes: usize,
}

impl Banding {
    /// 14 x 8: Datatrove's default, threshold (1/14)^(1/8) = 0.72.
    pub const SINGLE_TURN: Banding = Banding { n_buckets: 14, n_hashes: 8 };
    /// 11 x 9: threshold (1/11)^(1/9) = 0.766, for the 0.77 that Aloe-Beta states for dialogues. Its own banding is not published.
    pub const DIALOGUE: Banding = Banding { n_buckets: 11, n_hashes: 9 };
}

/// The permutations of one banding.
pub struct MinHash {
    banding: Banding,
    a: Vec<u64>,
    b: Vec<u64>,
}

impl MinHash {
    /// With Datatrove's seed.
    pub fn new(banding: Banding) -> MinHash {
        let n = banding.n_buckets * banding.n_hashes;
        let mut random = Mt19937::new(SEED);
        let a = (0..n).map(|_| 1 + random.below(MERSENNE_PRIME - 1)).collect();
        let b = (0..n).map(|_| random.below(MERSENNE_PRIME)).collect();
        MinHash { banding, a, b }
    }

    /// The banding.
    pub fn banding(&self) -> Banding {
        self.banding
    }

    /// [n_buckets * n_hashes] minima over the shingles of simplified text; empty below five words.
    pub fn signature(&self, simplified: &str) -> Vec<u64> {
        let shingles = shingles(simplified);
        if shingles.is_empty() {
            return Vec::new();
        }
        self.a.iter().zip(&self.b).map(|(&a, &b)| minimum(&shingles, a, b)).collect()
    }
}

/// The least of the permuted hashes. Four at a time, each with a minimum of its own, so that no comparison waits for the one before it.
fn minimum(hashes: &[u64], a: u64, b: u64) -> u64 {
    // numpy multiplies and adds modulo 2^64 before it takes the remainder; so do we.
    let permuted = |hash: u64| remainder(hash.wrapping_mul(a).wrapping_add(b));
    let (fours, rest) = hashes.as_chunks::<4>();
    let mut least = [u64::MAX; 4];
    for four in fours {
        for (least, &hash) in least.iter_mut().zip(four) {
            *least = (*least).min(permuted(hash));
        }
    }
    let least = least.into_iter().fold(u64::MAX, u64::min);
    rest.iter().fold(least, |least, &hash| least.min(permuted(hash)))
}

/// `value` modulo 2^61 - 1, without a division.
fn remainder(value: u64) -> u64 {
    let folded = (value & MERSENNE_PRIME) + (value >> 61);
    if folded >= MERSENNE_PRIME { folded - MERSENNE_PRIME } else { folded }
}

/// Hashes of all 5-word windows, in order.
pub(crate) fn shingles(simplified: &str) -> Vec<u64> {
    windows(simplified, N_WORDS).map(|window| xxh64(window.as_bytes(), 0)).collect()
}

/// All windows of `n` words as slices of text whose words are parted by single spaces.
pub(crate) fn windows(simplified: &str, n: usize) -> impl Iterator<Item = &str> {
    let mut starts = vec![0];
    starts.extend(simplified.bytes().enumerate().filter(|(_, byte)| *byte == b' ').map(|(at, _)| at + 1));
    let n_words = if simplified.is_empty() { 0 } else { starts.len() };
    (0..(n_words + 1).saturating_sub(n)).map(move |first| {
        let end = starts.get(first + n).map_or(simplified.len(), |next| next - 1);
        &simplified[starts[first]..end]
    })
}

/// Jaccard similarity of two texts' shingle sets.
pub(crate) fn jaccard(first: &str, second: &str) -> f64 {
    let set = |text: &str| shingles(text).into_iter().collect::<std::collections::HashSet<u64>>();
    let (first, second) = (set(first), set(second));
    let common = first.intersection(&second).count();
    common as f64 / (first.len() + second.len() - common).max(1) as f64
}

/// The Mersenne twister of numpy's `RandomState` (Matsumoto and Nishimura 1998), with its masked bounded integers.
struct Mt19937 {
    state: [u32; 624],
    at: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Mt19937 {
        let mut state = [0u32; 624];
        state[0] = seed;
        for i in 1..624 {
            let before: u32 = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Mt19937 { state, at: 624 }
    }

    fn next_u32(&mut self) -> u32 {
        if self.at == 624 {
            for i in 0..624 {
                let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let twist = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (mixed >> 1) ^ twist;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// In `0..bound`, by masking and rejection; numpy's 64-bit form draws the upper half first.
    fn below(&mut self, bound: u64) -> u64 {
        let mask = u64::MAX >> (bound - 1).leading_zeros();
        loop {
            let value = ((u64::from(self.next_u32()) << 32) | u64::from(self.next_u32())) & mask;
            if value < bound {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> serde_json::Value {
        serde_json::from_str(include_str!("../tests/golden/minhash.json")).unwrap()
    }

    #[test]
    fn permutations_equal_datatroves() {
        let golden = golden();
        let ours = MinHash::new(Banding::SINGLE_TURN);
        for (name, values) in [("a", &ours.a), ("b", &ours.b)] {
            let theirs: Vec<u64> =
                golden[name].as_array().unwrap().iter().map(|v| v.as_str().unwrap().parse().unwrap()).collect();
            assert_eq!(*values, theirs, "{name}");
        }
    }

    #[test]
    fn simplified_texts_and_signatures_equal_datatroves() {
        let ours = MinHash::new(Banding::SINGLE_TURN);
        for case in golden()["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let simplified = crate::simplify(text);
            assert_eq!(simplified, case["simplified"].as_str().unwrap(), "{text}");
            let theirs: Vec<u64> =
                case["signature"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().parse().unwrap()).collect();
            assert_eq!(ours.signature(&simplified), theirs, "{text}");
        }
    }

    /// Against the definition, for numbers of hashes about the four that are taken at a time.
    #[test]
    fn the_minimum_is_that_of_all_permuted_hashes_however_many_there_are() {
        let hashes: Vec<u64> = (1..=9u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        for n in 1..=hashes.len() {
            for (a, b) in [(1, 0), (3, MERSENNE_PRIME), (0x1234_5678_9abc_def1, 77)] {
                let values = hashes[..n].iter().map(|hash| hash.wrapping_mul(a).wrapping_add(b) % MERSENNE_PRIME);
                assert_eq!(minimum(&hashes[..n], a, b), values.min().unwrap(), "{n} hashes, {a}, {b}");
            }
        }
    }

    #[test]
    fn the_folded_remainder_is_the_remainder() {
        for value in [
            0,
            1,
            MERSENNE_PRIME - 1,
            MERSENNE_PRIME,
            MERSENNE_PRIME + 1,
            2 * MERSENNE_PRIME,
            7 * MERSENNE_PRIME,
            u64::MAX,
        ] {
            assert_eq!(remainder(value), value % MERSENNE_PRIME, "{value}");
        }
    }

    #[test]
    fn windows_are_all_runs_of_n_words() {
        assert_eq!(windows("a bb c", 2).collect::<Vec<_>>(), ["a bb", "bb c"]);
        assert_eq!(windows("a bb c", 3).collect::<Vec<_>>(), ["a bb c"]);
        assert_eq!(windows("a bb c", 4).count(), 0);
        assert_eq!(windows("", 1).count(), 0);
    }
}
