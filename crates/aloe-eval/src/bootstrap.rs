//! The percentile bootstrap of a mean over clusters. Plain functions on numbers, in f64.
//!
//! Most clusters look alike: single questions that are right or wrong, or that two runs answer alike or not. A draw is therefore not made
//! cluster by cluster but kind by kind: how often each kind comes up in n draws with replacement is multinomial, and is drawn as such, by
//! one binomial count after another. 200,000 questions take 10,000 draws in a fraction of a second, and the order of the clusters changes
//! no bit.

use crate::stats::{Interval, ln_factorial};
use aloe_record::CounterRng;

/// Percentile bootstrap of a mean over clusters: whole clusters are drawn with replacement. `clusters` holds (sum, count)
/// of each; the statistic is the ratio of the summed sums and counts. The ends are numpy's percentiles 2.5 and 97.5 (linear between two
/// draws), as in `scipy.stats.bootstrap(method="percentile")`.
pub fn cluster_bootstrap(clusters: &[(f64, f64)], n_draws: usize, seed: u64, purpose: &str) -> Interval {
    let kinds = kinds(clusters);
    let stream = CounterRng::new(seed, purpose, 0);
    let mut means: Vec<f64> =
        (0..n_draws).map(|draw| drawn_mean(&kinds, clusters.len(), &mut stream.of_item(draw as u64))).collect();
    means.sort_by(f64::total_cmp);
    Interval { low: percentile(&means, 0.025), high: percentile(&means, 0.975) }
}

/// Clusters of one sum and one count.
struct Kind {
    sum: f64,
    count: f64,
    n: usize,
}

fn kinds(clusters: &[(f64, f64)]) -> Vec<Kind> {
    let mut sorted = clusters.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut kinds: Vec<Kind> = Vec::new();
    for (sum, count) in sorted {
        match kinds.last_mut() {
            Some(last) if last.sum == sum && last.count == count => last.n += 1,
            _ => kinds.push(Kind { sum, count, n: 1 }),
        }
    }
    kinds
}

/// The mean of `n` clusters drawn with replacement.
fn drawn_mean(kinds: &[Kind], n: usize, rng: &mut CounterRng) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    // Draws and clusters that are not yet told.
    let (mut n_draws, mut n_left) = (n, n);
    for kind in kinds {
        let n_drawn = binomial(n_draws, kind.n, n_left, rng);
        sum += n_drawn as f64 * kind.sum;
        count += n_drawn as f64 * kind.count;
        n_draws -= n_drawn;
        n_left -= kind.n;
    }
    sum / count
}

/// How many of `n` draws fall on `part` of `whole`: the distribution is turned over from its mode outwards, above and below in turn, so
/// that it takes some standard deviations of steps. One uniform number of 53 bits a call; none where there is nothing to draw.
fn binomial(n: usize, part: usize, whole: usize, rng: &mut CounterRng) -> usize {
    if n == 0 || part == whole {
        return n;
    }
    let (size, p) = (n as f64, part as f64 / whole as f64);
    let odds = part as f64 / (whole - part) as f64;
    let mode = (((size + 1.0) * p) as usize).min(n);
    let ln_choose = ln_factorial(n) - ln_factorial(mode) - ln_factorial(n - mode);
    let at_mode = (ln_choose + mode as f64 * p.ln() + (n - mode) as f64 * (-p).ln_1p()).exp();
    let mut left = rng.uniform_f64() - at_mode;
    let (mut above, mut p_above) = (mode, at_mode);
    let (mut below, mut p_below) = (mode, at_mode);
    // What is left below this was lost to rounding.
    const NOTHING: f64 = 1e-18;
    while left >= 0.0 && (p_above > NOTHING || p_below > NOTHING) {
        p_above *= odds * (n - above) as f64 / (above as f64 + 1.0);
        left -= p_above;
        if left < 0.0 {
            return above + 1;
        }
        above += usize::from(above < n);
        p_below *= below as f64 / (odds * (n - below + 1) as f64);
        left -= p_below;
        if left < 0.0 {
            return below - 1;
        }
        below = below.saturating_sub(1);
    }
    mode
}

/// numpy's default percentile of sorted values: linear between the two neighbours of place `share * (n - 1)`.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() as f64 - 1.0);
    let low = place as usize;
    let (a, b) = (sorted[low], sorted[(low + 1).min(sorted.len() - 1)]);
    a + (b - a) * (place - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: 2.5 % of 0..=40 lies at place 1, of 0..=20 at place 0.5.
    #[test]
    fn percentiles_lie_linearly_between_two_values() {
        let of = |n: usize| percentile(&(0..=n).map(|i| i as f64).collect::<Vec<_>>(), 0.025);
        assert!((of(40) - 1.0).abs() < 1e-12 && (of(20) - 0.5).abs() < 1e-12);
        assert_eq!(percentile(&[3.0], 0.975), 3.0);
    }

    /// Every count of 12 draws with p = 0.3 as often as the textbook has it, within four standard deviations of 40,000 draws.
    #[test]
    fn binomial_counts_come_as_often_as_they_must() {
        let n_draws = 40_000;
        let mut counts = [0usize; 13];
        for draw in 0..n_draws {
            counts[binomial(12, 3, 10, &mut CounterRng::new(1, "test", draw))] += 1;
        }
        let mut p = 0.7f64.powi(12);
        for (k, &found) in counts.iter().enumerate() {
            let (expected, spread) = (p * n_draws as f64, (p * (1.0 - p) * n_draws as f64).sqrt());
            assert!((found as f64 - expected).abs() <= 4.0 * spread + 1.0, "{k}: {found} for {expected}");
            p *= (12 - k) as f64 / (k as f64 + 1.0) * 3.0 / 7.0;
        }
        let rng = &mut CounterRng::new(1, "test", 0);
        assert_eq!((binomial(0, 1, 2, rng), binomial(7, 2, 2, rng)), (0, 7));
        assert!((0..500).all(|draw| binomial(3, 1, 1_000_000, &mut CounterRng::new(2, "test", draw)) <= 3));
    }

    #[test]
    fn the_bootstrap_covers_the_mean_repeats_bit_for_bit_and_does_not_see_the_order_of_clusters() {
        let mut clusters: Vec<(f64, f64)> = (0..200).map(|i| (f64::from(u8::from(i % 4 == 0)), 1.0)).collect();
        let interval = cluster_bootstrap(&clusters, 2000, 1, "test");
        assert_eq!(interval, cluster_bootstrap(&clusters, 2000, 1, "test"));
        let half = (interval.high - interval.low) / 2.0;
        let normal = 1.96 * (0.25f64 * 0.75 / 200.0).sqrt();
        assert!((half - normal).abs() < 0.1 * normal, "{half} {normal}");
        clusters.reverse();
        assert_eq!(interval, cluster_bootstrap(&clusters, 2000, 1, "test"));
    }
}
