//! The random masks of DELLA: within a row, the probability of being kept rises linearly with the rank of the magnitude, from
//! `density - epsilon` for the smallest to `density + epsilon` for the largest.
//!
//! Source: arXiv 2406.11617 (MagPrune); mergekit 0.1.5, `sparsify.py`, `della_magprune`. There ranks are numbers of the merge dtype, so that in
//! bfloat16 ranks past 256 coincide; here they are exact. Of equal magnitudes the lower index ranks higher. A row of one is kept with
//! `density`, where mergekit divides by zero.

use super::TaskVector;
use super::random::bound;
use crate::Result;
use aloe_record::CounterRng;

#[derive(Debug)]
pub(crate) struct RankMask {
    rng: CounterRng,
    density: f64,
    epsilon: f64,
}

impl RankMask {
    /// The mask of `tensor` for the model of this [`super::mask_key`].
    pub(crate) fn new(seed: u64, tensor: &str, model: &str, density: f64, epsilon: f64) -> Self {
        let rng = CounterRng::new(seed, &format!("della-mask/{tensor}/{model}"), 0);
        Self { rng, density, epsilon }
    }

    /// Whether each element from `start` on is kept.
    pub(crate) fn fill(&self, vector: &TaskVector<'_>, start: usize, kept: &mut [bool]) -> Result<()> {
        let probabilities = self.probabilities(vector, start, kept.len())?;
        for (offset, (kept, probability)) in kept.iter_mut().zip(probabilities).enumerate() {
            *kept = u64::from(self.rng.at((start + offset) as u64)) < bound(probability);
        }
        Ok(())
    }

    /// The probability of each element from `start` on: whole rows are read and ranked.
    pub(crate) fn probabilities(&self, vector: &TaskVector<'_>, start: usize, n: usize) -> Result<Vec<f64>> {
        let n_cols = vector.group.n_cols();
        let (first, last) = (start / n_cols, (start + n).div_ceil(n_cols));
        let mut out = Vec::with_capacity(n);
        for row in first..last {
            let values = vector.read(&(row * n_cols..(row + 1) * n_cols))?;
            let ranked = self.of_row(&values);
            let (from, to) = ((row * n_cols).max(start), ((row + 1) * n_cols).min(start + n));
            out.extend_from_slice(&ranked[from - row * n_cols..to - row * n_cols]);
        }
        Ok(out)
    }

    fn of_row(&self, values: &[f32]) -> Vec<f64> {
        if values.len() < 2 {
            return vec![self.density; values.len()];
        }
        let mut order: Vec<u64> = values
            .iter()
            .enumerate()
            .map(|(index, value)| u64::from(value.abs().to_bits()) << 32 | u64::from(!(index as u32)))
            .collect();
        order.sort_unstable();
        let step = 2.0 * self.epsilon / (values.len() - 1) as f64;
        let mut out = vec![0.0; values.len()];
        for (rank, key) in order.into_iter().enumerate() {
            out[!(key as u32) as usize] = self.density - self.epsilon + rank as f64 * step;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Magnitudes 3, 1, 2, 1 have ranks 3, 1, 2, 0 (of the equal ones the lower index ranks higher): 0.5 - 0.3 + rank * 0.2.
    #[test]
    fn probabilities_follow_the_ranks() {
        let mask = RankMask::new(0, "t", "m", 0.5, 0.3);
        let found = mask.of_row(&[-3.0, 1.0, 2.0, -1.0]);
        let expected = [0.8, 0.4, 0.6, 0.2];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        assert_eq!(mask.of_row(&[9.0]), [0.5]);
    }
}
