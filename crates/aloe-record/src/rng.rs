//! The one source of randomness: a counter-based generator keyed by (seed, purpose, item), so that no result depends on
//! threads, order or batch mates.
//!
//! Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"); the key comes from SHA-256 of
//! seed and purpose, the upper half of the counter is the item, the lower half the position in the item's stream.

use crate::digest;

/// The random stream of one (seed, purpose, item).
#[derive(Clone, Debug)]
pub struct CounterRng {
    key: [u32; 2],
    item: u64,
    position: u64,
}

impl CounterRng {
    /// The stream for `item` under `purpose`. Purposes are short fixed names: `"dare-mask/model.norm.weight"`.
    pub fn new(seed: u64, purpose: &str, item: u64) -> Self {
        let digest = digest::bytes(format!("{seed}/{purpose}").as_bytes());
        let word = |at: usize| u32::from_str_radix(&digest[at..at + 8], 16).unwrap_or_default();
        Self { key: [word(0), word(8)], item, position: 0 }
    }

    /// The stream of another item of the same seed and purpose, from its beginning: their digest is not made again.
    pub fn of_item(&self, item: u64) -> Self {
        Self { item, position: 0, ..*self }
    }

    /// The value at `index` of the stream, without moving: four of them share one Philox block.
    pub fn at(&self, index: u64) -> u32 {
        let block = self.block(index / 4);
        block[(index % 4) as usize]
    }

    /// The four values of block `index`, that is the stream's values `4 * index ..= 4 * index + 3`.
    pub fn block(&self, index: u64) -> [u32; 4] {
        philox([index as u32, (index >> 32) as u32, self.item as u32, (self.item >> 32) as u32], self.key)
    }

    /// The blocks from `index` on, side by side: `[w][l]` is value `w` of block `index + l`. Plain loops over lanes, for the caller's
    /// vector instructions: with a hundred lanes or more compilers keep the loops and use them.
    #[inline(always)]
    pub fn blocks<const LANES: usize>(&self, index: u64) -> [[u32; LANES]; 4] {
        let (mut c0, mut c1) = ([0u32; LANES], [0u32; LANES]);
        let (mut c2, mut c3) = ([self.item as u32; LANES], [(self.item >> 32) as u32; LANES]);
        for lane in 0..LANES {
            let index = index + lane as u64;
            c0[lane] = index as u32;
            c1[lane] = (index >> 32) as u32;
        }
        let mut key = self.key;
        for _ in 0..10 {
            for lane in 0..LANES {
                [c0[lane], c1[lane], c2[lane], c3[lane]] = round([c0[lane], c1[lane], c2[lane], c3[lane]], key);
            }
            key = next_key(key);
        }
        [c0, c1, c2, c3]
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let value = self.at(self.position);
        self.position += 1;
        value
    }

    /// The next value in `[0, 1)`, 24 bits, exact in f32.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 / 16_777_216.0
    }

    /// The next value in `[0, 1)` with 53 bits.
    pub fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        ((high << 21) | (low >> 11)) as f64 / 9_007_199_254_740_992.0
    }

    /// An integer in `0..bound`, without bias (Lemire's rejection).
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0 && bound <= u32::MAX as usize, "below({bound}): the bound must be in 1..=u32::MAX");
        let bound = bound as u32;
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(bound);
            if product as u32 >= threshold {
                return (product >> 32) as usize;
            }
        }
    }

    /// A standard normal value (Box-Muller, cosine branch).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform_f64()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform_f64()).cos()) as f32
    }

    /// Shuffles in place (Fisher-Yates from the end).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        counter = round(counter, key);
        key = next_key(key);
    }
    counter
}

#[inline(always)]
fn round(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let first = u64::from(counter[0]) * 0xD251_1F53;
    let second = u64::from(counter[2]) * 0xCD9E_8D57;
    [
        (second >> 32) as u32 ^ counter[1] ^ key[0],
        second as u32,
        (first >> 32) as u32 ^ counter[3] ^ key[1],
        first as u32,
    ]
}

#[inline(always)]
fn next_key(key: [u32; 2]) -> [u32; 2] {
    [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123's kat_vectors for philox4x32-10.
    #[test]
    fn philox_meets_the_known_answers_of_random123() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn a_stream_read_in_order_equals_its_values_by_index_and_differs_between_items() {
        let mut stream = CounterRng::new(7, "test", 3);
        let in_order: Vec<u32> = (0..9).map(|_| stream.next_u32()).collect();
        let by_index: Vec<u32> = (0..9).map(|i| CounterRng::new(7, "test", 3).at(i)).collect();
        assert_eq!(in_order, by_index);
        assert_ne!(in_order[0], CounterRng::new(7, "test", 4).at(0));
        assert_eq!(stream.of_item(4).next_u32(), CounterRng::new(7, "test", 4).next_u32());
        assert_ne!(in_order[0], CounterRng::new(7, "other", 3).at(0));
    }

    #[test]
    fn blocks_side_by_side_are_the_blocks_one_by_one() {
        let rng = CounterRng::new(7, "test", 3);
        for index in [0, 5, u64::from(u32::MAX) - 3] {
            for (word, lanes) in rng.blocks::<8>(index).iter().enumerate() {
                for (lane, value) in lanes.iter().enumerate() {
                    assert_eq!(*value, rng.block(index + lane as u64)[word]);
                }
            }
        }
    }

    #[test]
    fn bounded_integers_are_even_within_five_sigma() {
        let mut rng = CounterRng::new(1, "even", 0);
        let mut counts = [0f64; 6];
        for _ in 0..60_000 {
            counts[rng.below(6)] += 1.0;
        }
        let sigma = (60_000.0f64 * (1.0 / 6.0) * (5.0 / 6.0)).sqrt();
        assert!(counts.iter().all(|count| (count - 10_000.0).abs() < 5.0 * sigma), "{counts:?}");
    }
}
