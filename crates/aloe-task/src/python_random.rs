//! Python's `random.Random(seed).sample`, needed to draw the few-shot examples that lm-evaluation-harness draws.
//!
//! MT19937 (Matsumoto and Nishimura 1998) seeded by `init_by_array` as CPython seeds from an integer below 2^32, and the
//! sampling of CPython 3.11's `random.py`. Used for that parity only: everything of ours comes from the counter generator.

const N: usize = 624;
const M: usize = 397;

/// Python's generator.
#[derive(Clone)]
pub struct PythonRandom {
    state: [u32; N],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = mix(state[i - 1], 1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        for _ in 0..N {
            state[i] = (state[i] ^ mix(state[i - 1], 1_664_525)).wrapping_add(seed);
            i = advance(i, &mut state);
        }
        for _ in 0..N - 1 {
            state[i] = (state[i] ^ mix(state[i - 1], 1_566_083_941)).wrapping_sub(i as u32);
            i = advance(i, &mut state);
        }
        state[0] = 0x8000_0000;
        Self { state, next: N }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut value = self.state[self.next];
        self.next += 1;
        value ^= value >> 11;
        value ^= (value << 7) & 0x9d2c_5680;
        value ^= (value << 15) & 0xefc6_0000;
        value ^ (value >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// `_randbelow(n)`: the top bits, drawn again while too large.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.next_u32() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// The indices that `random.sample(range(n), k)` returns, in order.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n && n < 1 << 31, "sample of {k} from {n}");
        let mut set_size = 21;
        if k > 5 {
            set_size += 4usize.pow(((k * 3) as f64).log(4.0).ceil() as u32);
        }
        if n <= set_size { self.sample_by_pool(n, k) } else { self.sample_by_set(n, k) }
    }

    fn sample_by_pool(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut pool: Vec<usize> = (0..n).collect();
        let mut result = Vec::with_capacity(k);
        for i in 0..k {
            let j = self.below(n - i);
            result.push(pool[j]);
            pool[j] = pool[n - i - 1];
        }
        result
    }

    fn sample_by_set(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut result: Vec<usize> = Vec::with_capacity(k);
        while result.len() < k {
            let j = self.below(n);
            if !result.contains(&j) {
                result.push(j);
            }
        }
        result
    }
}

fn mix(previous: u32, factor: u32) -> u32 {
    (previous ^ (previous >> 30)).wrapping_mul(factor)
}

fn advance(i: usize, state: &mut [u32; N]) -> usize {
    if i + 1 >= N {
        state[0] = state[N - 1];
        1
    } else {
        i + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    /// Values of CPython 3.11: `r = random.Random(1234)`, `getrandbits(32)` 1,000 times; then a fresh generator and
    /// `r.sample(range(n), k)` for each row in turn.
    #[test]
    fn the_generator_and_its_samples_are_pythons() {
        let mut random = PythonRandom::new(1234);
        let drawn: Vec<u32> = (0..1000).map(|_| random.next_u32()).collect();
        assert_eq!(drawn[..4], [4150886329, 3342196574, 1892932127, 501869158]);
        assert_eq!(drawn[999], 3677914080);
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(10178, 5), [7220, 1914, 122, 1485, 9539]);
        assert_eq!(random.sample(5, 5), [0, 4, 3, 1, 2]);
        assert_eq!(random.sample(777, 5), [17, 31, 16, 354, 663]);
        assert_eq!(random.sample(20, 6), [19, 15, 14, 4, 2, 18]);
        assert_eq!(random.sample(200, 6), [182, 29, 3, 128, 124, 63]);
        assert_eq!(random.sample(777, 3), [66, 683, 554]);
        assert_eq!(random.sample(21, 5), [14, 2, 19, 16, 1]);
        assert_eq!(random.sample(22, 5), [8, 17, 2, 20, 9]);
        assert_eq!(random.sample(450, 10), [246, 435, 181, 136, 127, 335, 102, 232, 448, 271]);
    }
}
