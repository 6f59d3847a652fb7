//! Standard errors, exact McNemar, bootstrap and clustered intervals. Plain functions on numbers, in f64.

use aloe_record::CounterRng;

/// Standard error of a proportion as lm-evaluation-harness has it: sample standard deviation over sqrt(n), that is
/// sqrt(p (1 - p) / (n - 1)). Zero for fewer than two observations.
pub fn proportion_stderr(n_right: usize, n: usize) -> f64 {
    if n < 2 {
        return 0.0;
    }
    let p = n_right as f64 / n as f64;
    (p * (1.0 - p) / (n as f64 - 1.0)).sqrt()
}

/// Standard error of the unweighted mean of independent estimates.
pub fn macro_stderr(stderrs: &[f64]) -> f64 {
    stderrs.iter().map(|stderr| stderr * stderr).sum::<f64>().sqrt() / stderrs.len() as f64
}

/// lm-evaluation-harness's pooled standard error of a size-weighted group (`pooled_sample_stderr`):
/// sqrt( sum((n-1) se^2 n) / (N - k) / N ). Zero where no task has two questions.
pub fn pooled_stderr(stderrs: &[f64], sizes: &[usize]) -> f64 {
    let n_all: usize = sizes.iter().sum();
    if n_all <= sizes.len() {
        return 0.0; // one question a task has no spread to pool
    }
    let within: f64 = stderrs.iter().zip(sizes).map(|(se, &n)| (n as f64 - 1.0) * se * se * n as f64).sum();
    (within / (n_all - sizes.len()) as f64 / n_all as f64).sqrt()
}

/// Two-sided exact McNemar test: among `n_first + n_second` discordant pairs each side is equally likely. Equals
/// `scipy.stats.binomtest(n_first, n_first + n_second, 0.5).pvalue`; 1 without discordant pairs.
pub fn mcnemar_exact(n_first: usize, n_second: usize) -> f64 {
    let n = n_first + n_second;
    let fewer = n_first.min(n_second);
    // By symmetry of the fair coin the two-sided sum is twice the smaller tail, at most 1.
    let tail: f64 = (0..=fewer).map(|k| (ln_choose(n, k) - n as f64 * std::f64::consts::LN_2).exp()).sum();
    (2.0 * tail).min(1.0)
}

fn ln_choose(n: usize, k: usize) -> f64 {
    (1..=k).map(|i| ((n - k + i) as f64).ln() - (i as f64).ln()).sum()
}

/// A 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Percentile bootstrap of a mean over clusters: whole clusters are drawn with replacement. `clusters` holds (sum, count)
/// of each; the statistic is the ratio of the summed sums and counts.
pub fn cluster_bootstrap(clusters: &[(f64, f64)], n_draws: usize, seed: u64, purpose: &str) -> Interval {
    let mut means: Vec<f64> = (0..n_draws)
        .map(|draw| {
            let mut rng = CounterRng::new(seed, purpose, draw as u64);
            let (mut sum, mut count) = (0.0, 0.0);
            for _ in 0..clusters.len() {
                let (s, c) = clusters[rng.below(clusters.len())];
                sum += s;
                count += c;
            }
            sum / count
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((share * n_draws as f64) as usize).min(n_draws - 1)];
    Interval { low: at(0.025), high: at(0.975) }
}

/// A ratio over clusters with its cluster-robust standard error (Taylor linearisation with the G/(G-1) correction):
/// `clusters` holds (sum, count) of each.
pub fn clustered_mean(clusters: &[(f64, f64)]) -> (f64, f64) {
    let n: f64 = clusters.iter().map(|(_, count)| count).sum();
    let mean = clusters.iter().map(|(sum, _)| sum).sum::<f64>() / n;
    let g = clusters.len() as f64;
    if clusters.len() < 2 {
        return (mean, f64::NAN);
    }
    let squares: f64 = clusters.iter().map(|(sum, count)| (sum - mean * count).powi(2)).sum();
    (mean, (g / (g - 1.0) * squares).sqrt() / n)
}

/// A 95 % interval of a rate over clusters: mean +- 1.96 standard errors within [0, 1]; where every observation is alike the
/// standard error says nothing, and Wilson's interval over the number of clusters stands instead.
pub fn clustered_rate_interval(clusters: &[(f64, f64)]) -> Interval {
    let (mean, stderr) = clustered_mean(clusters);
    if stderr.is_finite() && stderr > 0.0 {
        return Interval { low: (mean - 1.96 * stderr).max(0.0), high: (mean + 1.96 * stderr).min(1.0) };
    }
    wilson(mean, clusters.len() as f64)
}

/// Wilson's 95 % interval of a proportion.
pub fn wilson(p: f64, n: f64) -> Interval {
    let z2 = 1.96f64 * 1.96;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = 1.96 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found} is not {expected}");
    }

    /// scipy 1.17: binomtest(a, a + b, 0.5).pvalue.
    #[test]
    fn the_exact_mcnemar_test_agrees_with_scipy() {
        close(mcnemar_exact(1, 5), 0.21875);
        close(mcnemar_exact(10, 10), 1.0);
        close(mcnemar_exact(3, 17), 2.576828002929688e-03);
        close(mcnemar_exact(40, 61), 4.604406692934278e-02);
        close(mcnemar_exact(300, 380), 2.424868707699884e-03);
        close(mcnemar_exact(0, 7), 0.015625);
        close(mcnemar_exact(1200, 1100), 3.896685268382023e-02);
        assert_eq!(mcnemar_exact(0, 0), 1.0);
    }

    /// By hand: 3 right of 5 is p = 0.6; sqrt(0.6 * 0.4 / 4) = sqrt(0.06).
    #[test]
    fn the_standard_error_is_the_harness_one() {
        close(proportion_stderr(3, 5), 0.06f64.sqrt());
        assert_eq!(proportion_stderr(1, 1), 0.0);
        close(macro_stderr(&[0.03, 0.04]), 0.025);
        // One group: sqrt((n-1) se^2 n / (n-1) / n) = se.
        close(pooled_stderr(&[0.1], &[10]), 0.1);
        assert_eq!(pooled_stderr(&[0.0, 0.0], &[1, 1]), 0.0);
    }

    /// By hand: clusters (2 of 2), (0 of 2): mean 0.5, residuals 1 and -1, variance 2/1 * 2 / 16 = 0.25.
    #[test]
    fn a_cluster_that_moves_as_one_counts_as_one() {
        let (mean, stderr) = clustered_mean(&[(2.0, 2.0), (0.0, 2.0)]);
        close(mean, 0.5);
        close(stderr, 0.5);
        // Singleton clusters: the usual standard error, sqrt(p(1-p)/(n-1)).
        let single: Vec<(f64, f64)> = (0..5).map(|i| (f64::from(u8::from(i < 3)), 1.0)).collect();
        close(clustered_mean(&single).1, proportion_stderr(3, 5));
    }

    /// By hand: Wilson's upper end of 0 in 10 is (z^2/n) / (1 + z^2/n) = 0.38416 / 1.38416 = 0.27754.
    #[test]
    fn a_rate_without_a_single_event_still_has_an_upper_bound() {
        let interval = clustered_rate_interval(&[(0.0, 3.0); 10]);
        assert_eq!(interval.low, 0.0);
        assert!((interval.high - 0.27754).abs() < 1e-5, "{interval:?}");
    }

    #[test]
    fn the_bootstrap_covers_the_mean_and_repeats_bit_for_bit() {
        let clusters: Vec<(f64, f64)> = (0..200).map(|i| (f64::from(u8::from(i % 4 == 0)), 1.0)).collect();
        let interval = cluster_bootstrap(&clusters, 2000, 1, "test");
        assert_eq!(interval, cluster_bootstrap(&clusters, 2000, 1, "test"));
        let half = (interval.high - interval.low) / 2.0;
        let normal = 1.96 * (0.25f64 * 0.75 / 200.0).sqrt();
        assert!((half - normal).abs() < 0.1 * normal, "{half} {normal}");
    }
}
