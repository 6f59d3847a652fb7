//! MinHash signatures as Datatrove computes them (`pipeline/dedup/minhash.py`, 0.6.0): xxHash64 of 5-word shingles, affine
//! permutations modulo 2^61 - 1 whose parameters come from numpy's `RandomState(1)`.
//!
//! Differs from Datatrove in one thing: words are split at spaces of the simplified text, where Datatrove runs spaCy's English
//! tokenizer, which also splits a few words such as `cannot`. Texts under five words have no shingle, hence no signature.

use crate::shingles::shingles;
use aloe_tensor::Isa;

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

/// Permutations that are computed side by side: those of either banding, so that a text's hashes are gone through once.
const N_LANES: usize = 112;

/// Below this the least of [`Lanes::least`] may be wrong.
const N_UNSURE: u64 = 8;

/// The permutations of one banding.
pub struct MinHash {
    banding: Banding,
    a: Vec<u64>,
    b: Vec<u64>,
    /// The same for vector instructions.
    lanes: Vec<Lanes>,
}

impl MinHash {
    /// With Datatrove's seed.
    pub fn new(banding: Banding) -> MinHash {
        let n = banding.n_buckets * banding.n_hashes;
        let mut random = Mt19937::new(SEED);
        let a: Vec<u64> = (0..n).map(|_| 1 + random.below(MERSENNE_PRIME - 1)).collect();
        let b: Vec<u64> = (0..n).map(|_| random.below(MERSENNE_PRIME)).collect();
        let lanes = a.chunks(N_LANES).zip(b.chunks(N_LANES)).map(|(a, b)| Lanes::new(a, b)).collect();
        MinHash { banding, a, b, lanes }
    }

    /// The banding.
    pub fn banding(&self) -> Banding {
        self.banding
    }

    /// [n_buckets * n_hashes] minima over the shingles of simplified text; empty below five words.
    pub fn signature(&self, simplified: &str) -> Vec<u64> {
        self.minima(&shingles(simplified, N_WORDS))
    }

    /// The least of the permuted hashes, for each permutation; of no hashes none.
    fn minima(&self, hashes: &[u64]) -> Vec<u64> {
        if hashes.is_empty() {
            return Vec::new();
        }
        let mut minima = Vec::with_capacity(N_LANES * self.lanes.len());
        for lanes in &self.lanes {
            minima.extend(Isa::wide(|| lanes.least(hashes)));
        }
        minima.truncate(self.a.len());
        for (at, least) in minima.iter_mut().enumerate() {
            *least = if *least < N_UNSURE { minimum(hashes, self.a[at], self.b[at]) } else { *least - 1 };
        }
        minima
    }
}

/// Permutations side by side; what is left over at the end has zeros.
struct Lanes {
    a: [u64; N_LANES],
    /// One more than each `b`.
    above_b: [u64; N_LANES],
}

impl Lanes {
    fn new(a: &[u64], b: &[u64]) -> Lanes {
        let mut lanes = Lanes { a: [0; N_LANES], above_b: [1; N_LANES] };
        lanes.a[..a.len()].copy_from_slice(a);
        lanes.above_b.iter_mut().zip(b).for_each(|(above, b)| *above = b + 1);
        lanes
    }

    /// One more than the least of the permuted hashes, for each permutation; a value below [`N_UNSURE`] tells nothing.
    ///
    /// With x = q 2^61 + l (q < 8) the remainder modulo P = 2^61 - 1 is that of l + q. Where l + q < P it is l + q itself, and the lower
    /// 61 bits of (x + 1) + q are one more than it, without a comparison. Where l + q >= P they are below 8: the remainder then is so small
    /// that only a minimum which is as small can be wrong, one text in 10^15.
    #[inline(always)]
    fn least(&self, hashes: &[u64]) -> [u64; N_LANES] {
        let mut least = [i64::MAX; N_LANES];
        // Four hashes at a time, so that the minima seldom go to memory and back.
        let (fours, rest) = hashes.as_chunks::<4>();
        fours.iter().for_each(|four| self.lower(&mut least, four));
        rest.iter().for_each(|hash| self.lower(&mut least, &[*hash]));
        least.map(|least| least as u64)
    }

    /// Signed numbers, of which more processors have a minimum; all are below 2^61.
    #[inline(always)]
    fn lower<const N: usize>(&self, least: &mut [i64; N_LANES], hashes: &[u64; N]) {
        for ((least, &a), &above_b) in least.iter_mut().zip(&self.a).zip(&self.above_b) {
            for hash in hashes {
                // numpy multiplies and adds modulo 2^64 before it takes the remainder; so do we.
                let above = hash.wrapping_mul(a).wrapping_add(above_b);
                let folded = above.wrapping_add(above >> 61) & MERSENNE_PRIME;
                *least = (*least).min(folded as i64);
            }
        }
    }
}

/// The least of the permuted hashes, by the definition.
fn minimum(hashes: &[u64], a: u64, b: u64) -> u64 {
    let permuted = hashes.iter().map(|hash| hash.wrapping_mul(a).wrapping_add(b) % MERSENNE_PRIME);
    permuted.min().unwrap_or(u64::MAX)
}

/// Jaccard similarity of two texts' shingle sets.
pub(crate) fn jaccard(first: &str, second: &str) -> f64 {
    let set = |text: &str| {
        let mut hashes = shingles(text, N_WORDS);
        hashes.sort_unstable();
        hashes.dedup();
        hashes
    };
    let (first, second) = (set(first), set(second));
    let (mut common, mut rest) = (0, &second[..]);
    for hash in &first {
        rest = &rest[rest.iter().take_while(|other| *other < hash).count()..];
        common += usize::from(rest.first() == Some(hash));
    }
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

    /// Against the definition, for numbers of hashes about the four that are taken at a time, and for permuted hashes about the values at
    /// which the remainder turns, where the short cut must give up.
    #[test]
    fn the_minimum_is_that_of_all_permuted_hashes_at_the_turn_of_the_remainder_too() {
        let turns: Vec<u64> = (0..8u64)
            .flat_map(|q| (0..12u64).map(move |d| (q << 61).wrapping_sub(10).wrapping_add(d)))
            .chain([0, 1, 7, 8, 9, MERSENNE_PRIME, u64::MAX])
            .collect();
        let spread: Vec<u64> = (1..=9u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let mut ours = MinHash::new(Banding::DIALOGUE);
        // Hashes as they are, moved, and spread.
        for (at, (a, b)) in
            [(1, 0), (1, 7), (3, MERSENNE_PRIME - 1), (0x1234_5678_9abc_def1, 77)].into_iter().enumerate()
        {
            (ours.a[at], ours.b[at]) = (a, b);
        }
        ours.lanes = vec![Lanes::new(&ours.a, &ours.b)];
        let sets = turns.windows(1).chain(turns.windows(3)).chain((1..=9).map(|n| &spread[..n]));
        for hashes in sets.chain([&turns[..]]) {
            let expected: Vec<u64> = ours.a.iter().zip(&ours.b).map(|(a, b)| minimum(hashes, *a, *b)).collect();
            assert_eq!(ours.minima(hashes), expected, "{hashes:?}");
        }
    }

    #[test]
    fn the_similarity_is_the_share_of_common_runs_of_five_words_each_counted_once() {
        let (first, second) = ("a b c d e f a b c d e", "x a b c d e f y");
        // abcde, bcdef, cdefa, defab, efabc, fabcd; xabcd, abcde, bcdef, cdefy.
        for (one, other) in [(first, second), (second, first)] {
            assert_eq!(jaccard(one, other), 2.0 / 8.0);
        }
        assert_eq!((jaccard(first, first), jaccard(first, "a b"), jaccard("", "")), (1.0, 0.0, 0.0));
    }
}
