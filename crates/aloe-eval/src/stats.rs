//! Standard errors, exact McNemar and clustered intervals. Plain functions on numbers, in f64. The bootstrap is in `bootstrap`.

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
    let ln_choose = ln_factorial(n) - ln_factorial(fewer) - ln_factorial(n - fewer);
    let most = (ln_choose - n as f64 * std::f64::consts::LN_2).exp();
    // The tail from its largest term down, each k / (n - k + 1) of the one before.
    let (mut term, mut sum) = (1.0, 1.0);
    for k in (1..=fewer).rev() {
        term *= k as f64 / (n - k + 1) as f64;
        sum += term;
        if term < 1e-18 * sum {
            break;
        }
    }
    // By symmetry of the fair coin the two-sided sum is twice the smaller tail, at most 1.
    (2.0 * most * sum).min(1.0)
}

/// Holm's step-down adjustment (1979): the adjusted p of the i-th smallest of m is the largest of (m - j) p_j up to it, at most 1. What
/// is below a level then holds together with all others below it at that level, whatever depends on what. As statsmodels'
/// `multipletests(.., method="holm")`.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest = 0.0f64;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max((p_values.len() - rank) as f64 * p_values[index]).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}

/// The smallest difference of two accuracies on the same `n` questions that the tests here would find in 80 % of such comparisons,
/// where `n_discordant` questions are answered rightly by one run only: Connor 1987 (Biometrics 43, 207),
/// n d^2 = (z_0.975 sqrt(psi) + z_0.8 sqrt(psi - d^2))^2 with psi = n_discordant / n, solved for d. Fewer discordant questions than six
/// never speak (two-sided exact test at 0.05), so six are taken at least; and where even a difference of psi is not found, psi grows
/// with d.
pub fn smallest_difference(n: usize, n_discordant: usize) -> f64 {
    let size = n as f64;
    let fewest = 6.0 / size;
    if n <= 6 {
        return 1.0;
    }
    let found = |d: f64, psi: f64| {
        let need = Z * psi.sqrt() + Z_POWER * (psi - d * d).max(0.0).sqrt();
        size * d * d >= need * need
    };
    let psi = (n_discordant as f64 / size).max(fewest);
    let psi_of = |d: f64| if found(psi, psi) { psi } else { d };
    let (mut low, mut high) = (0.0, if found(psi, psi) { psi } else { 1.0 });
    // Sixty halvings are below f64's resolution.
    for _ in 0..60 {
        let d = 0.5 * (low + high);
        if found(d, psi_of(d)) { high = d } else { low = d }
    }
    high.max(fewest).min(1.0)
}

/// ln n!: a table of products up to 20, Stirling's series with three terms above (its error is below 1e-12 there).
pub(crate) fn ln_factorial(n: usize) -> f64 {
    if n <= 20 {
        return (2..=n).map(|k| k as f64).product::<f64>().ln();
    }
    let n = n as f64;
    let series = 1.0 / (12.0 * n) - 1.0 / (360.0 * n.powi(3)) + 1.0 / (1260.0 * n.powi(5));
    n * n.ln() - n + 0.5 * (std::f64::consts::TAU * n).ln() + series
}

/// A 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// As percentages with `places` decimal places: `3.1 to 24.9`.
    pub fn percent(self, places: usize) -> String {
        format!("{:.places$} to {:.places$}", 100.0 * self.low, 100.0 * self.high)
    }
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

/// The 0.975 quantile of the standard normal distribution.
pub(crate) const Z: f64 = 1.959_963_984_540_054;
/// The 0.8 quantile of the standard normal distribution.
const Z_POWER: f64 = 0.841_621_233_572_914_3;

/// A 95 % interval of a rate over clusters: Wilson's at the effective number of observations p (1 - p) / stderr^2, with Student's t at
/// clusters - 1 degrees of freedom for the normal quantile (the modified Wilson interval of Franco, Little, Louis and Slud 2019, J. Surv.
/// Stat. Methodol. 7, 334). Where every cluster is alike the standard error says nothing, and the clusters are the observations.
pub fn clustered_rate_interval(clusters: &[(f64, f64)]) -> Interval {
    let (mean, stderr) = clustered_mean(clusters);
    let has_spread = stderr.is_finite() && stderr > 0.0;
    let n = if has_spread { mean * (1.0 - mean) / (stderr * stderr) } else { clusters.len() as f64 };
    wilson_at(mean, n, if clusters.len() > 1 { t_975(clusters.len() - 1) } else { Z })
}

/// The 0.975 quantile of Student's t with `n_freedom` (at least 1) degrees of freedom: the angle at which the two-sided
/// probability is 0.95, by bisection.
pub fn t_975(n_freedom: usize) -> f64 {
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2);
    // Sixty halvings of pi/2 are below f64's resolution.
    for _ in 0..60 {
        let angle = 0.5 * (low + high);
        if t_within(angle, n_freedom) < 0.95 { low = angle } else { high = angle }
    }
    (n_freedom as f64).sqrt() * (0.5 * (low + high)).tan()
}

/// P(|T| < sqrt(n) tan(angle)) of Student's t with n degrees of freedom, by the finite series of Abramowitz and Stegun 26.7.3
/// (odd n) and 26.7.4 (even n).
fn t_within(angle: f64, n_freedom: usize) -> f64 {
    let (sin, cos) = angle.sin_cos();
    let is_odd = n_freedom % 2 == 1;
    // Terms cos^k, each (k - 1) / k times cos^2 of the one before; k runs 1, 3, .. n - 2 or 0, 2, .. n - 2.
    let mut term = if is_odd { cos } else { 1.0 };
    let mut sum = 0.0;
    let mut k = usize::from(is_odd);
    while k + 2 <= n_freedom && term > 1e-18 {
        sum += term;
        k += 2;
        term *= cos * cos * (k as f64 - 1.0) / k as f64;
    }
    if is_odd { std::f64::consts::FRAC_2_PI * (angle + sin * sum) } else { sin * sum }
}

/// Wilson's 95 % interval of a proportion `p` of `n`. It starts at exactly 0 where p is 0 and ends at exactly 1 where p is 1.
pub fn wilson(p: f64, n: f64) -> Interval {
    wilson_at(p, n, Z)
}

/// Wilson's interval of a proportion `p` of `n` at the quantile `z`.
fn wilson_at(p: f64, n: f64, z: f64) -> Interval {
    let z2 = z * z;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Interval {
        low: if p <= 0.0 { 0.0 } else { (centre - half).max(0.0) },
        high: if p >= 1.0 { 1.0 } else { (centre + half).min(1.0) },
    }
}

/// The normal 95 % interval of an average with a standard error: value +- z_0.975 standard errors within [0, 1]. `None` where the
/// standard error is 0: all its parts are all right or all wrong, and it says nothing of what is not known.
pub fn normal(value: f64, stderr: f64) -> Option<Interval> {
    let half = Z * stderr;
    (half > 0.0).then(|| Interval { low: (value - half).max(0.0), high: (value + half).min(1.0) })
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

    /// Python: math.lgamma(22), math.lgamma(1001), math.lgamma(200001).
    #[test]
    fn logarithms_of_factorials_are_pythons() {
        for (n, expected) in [(0, 0.0), (1, 0.0), (5, 120f64.ln()), (21, 45.380_138_898_476_91)] {
            assert!((ln_factorial(n) - expected).abs() < 1e-12, "{n}: {}", ln_factorial(n));
        }
        for (n, expected) in [(1000, 5_912.128_178_488_163), (200_000, 2_241_221.551_081_307_7)] {
            assert!((ln_factorial(n) / expected - 1.0).abs() < 1e-13, "{n}: {}", ln_factorial(n));
        }
    }

    /// By hand: sorted 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06 (not above the 0.06 before), 0.5 * 1; and 0.4 * 3 is cut to 1.
    #[test]
    fn holms_adjustment_steps_down_from_the_smallest() {
        let adjusted = holm(&[0.02, 0.5, 0.01, 0.03]);
        for (found, expected) in adjusted.into_iter().zip([0.06, 0.5, 0.04, 0.06]) {
            close(found, expected);
        }
        assert_eq!(holm(&[0.4, 0.4, 0.9]), [1.0, 1.0, 1.0]);
        assert_eq!(holm(&[]), [0.0; 0]);
    }

    /// By bisection of the equation in Python: n 200, psi 0.3 gives 0.107867; n 1273, psi 255/1273 gives 0.035111. By hand: of 100
    /// questions none discordant, six at least must be, and they all on one side; of six questions nothing less than all.
    #[test]
    fn the_smallest_difference_that_a_set_can_show_is_connors() {
        assert!((smallest_difference(200, 60) - 0.107_866_579_6).abs() < 1e-9);
        assert!((smallest_difference(1273, 255) - 0.035_111_004_8).abs() < 1e-9);
        let none = smallest_difference(100, 0);
        assert!((0.06..0.10).contains(&none), "{none}");
        assert_eq!(smallest_difference(6, 3), 1.0);
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

    /// scipy 1.17: stats.t.ppf(0.975, df); of 1 degree of freedom it is tan(0.475 pi).
    #[test]
    fn the_t_quantile_agrees_with_scipy_from_one_degree_of_freedom_to_thousands() {
        let table = [
            (1, 12.7062047),
            (2, 4.3026527),
            (3, 3.1824463),
            (4, 2.7764451),
            (10, 2.2281389),
            (36, 2.0280940),
            (1000, 1.9623391),
        ];
        for (n_freedom, expected) in table {
            let found = t_975(n_freedom);
            assert!((found - expected).abs() < 6e-8, "{n_freedom}: {found} is not {expected}");
        }
        assert!((t_975(1) - (0.475 * std::f64::consts::PI).tan()).abs() < 1e-9);
        assert!((t_975(1_000_000) - Z).abs() < 3e-6 && t_975(1_000_000) > Z);
    }

    /// By hand: five clusters of 10 with 4, 5, 5, 5, 6 events: mean 0.5, residuals -1, 0, 0, 0, 1, standard error
    /// sqrt(5/4 * 2) / 50 = 0.031623, so that 0.25 / 0.001 = 250 observations tell as much; t of 4 degrees is 2.776445:
    /// 0.5 -+ t / (2 sqrt(250 + t^2)) = 2.776445 / (2 * 16.053306) = 0.086476. Two clusters that differ wholly are one observation:
    /// t of 1 degree is 12.706205, 0.5 -+ 12.706205 / (2 * 12.745495) = 0.498459.
    #[test]
    fn few_clusters_widen_the_interval_by_students_t_and_it_stays_within_0_and_1() {
        let interval = clustered_rate_interval(&[(4.0, 10.0), (5.0, 10.0), (5.0, 10.0), (5.0, 10.0), (6.0, 10.0)]);
        assert!((interval.low - 0.413524).abs() < 1e-6 && (interval.high - 0.586476).abs() < 1e-6, "{interval:?}");
        let two = clustered_rate_interval(&[(2.0, 2.0), (0.0, 2.0)]);
        assert!((two.low - 0.001541).abs() < 1e-6 && (two.high - 0.998459).abs() < 1e-6, "{two:?}");
    }

    /// By hand, z^2 = 3.841459: 0 of 20 ends at z^2 / (n + z^2) = 3.841459 / 23.841459 = 0.161125; 10 of 20 is 0.5 -+
    /// z / (2 sqrt(n + z^2)) = 1.959964 / (2 * 4.882772) = 0.200702. statsmodels' proportion_confint gives the same.
    #[test]
    fn the_wilson_interval_is_the_one_of_the_textbook() {
        let none = wilson(0.0, 20.0);
        assert!(none.low == 0.0 && (none.high - 0.161125).abs() < 1e-6, "{none:?}");
        let half = wilson(0.5, 20.0);
        assert!((half.low - 0.299298).abs() < 1e-6 && (half.high - 0.700702).abs() < 1e-6, "{half:?}");
        let all = wilson(1.0, 20.0);
        assert!((all.low - 0.838875).abs() < 1e-6 && all.high == 1.0, "{all:?}");
    }

    /// By hand: 0.5 -+ 1.959964 * 0.01 is 0.480400 to 0.519600; 0.99 + 0.0196 is cut at 1.
    #[test]
    fn the_normal_interval_of_an_average_is_1_96_standard_errors_and_there_is_none_without_one() {
        let half = normal(0.5, 0.01).unwrap();
        assert!((half.low - 0.480400).abs() < 1e-6 && (half.high - 0.519600).abs() < 1e-6, "{half:?}");
        assert_eq!(normal(0.99, 0.01).unwrap().high, 1.0);
        assert_eq!((normal(1.0, 0.0), normal(0.5, f64::NAN)), (None, None));
    }

    /// By hand: t of 9 degrees is 2.262157, and the upper end of 0 in 10 is (t^2/n) / (1 + t^2/n) = 0.511736 / 1.511736 = 0.338509.
    #[test]
    fn a_rate_without_a_single_event_still_has_an_upper_bound() {
        let interval = clustered_rate_interval(&[(0.0, 3.0); 10]);
        assert_eq!(interval.low, 0.0);
        assert!((interval.high - 0.338509).abs() < 1e-6, "{interval:?}");
    }

    /// One event more never lowers an end, from none to all of 30.
    #[test]
    fn ends_of_the_interval_rise_with_the_events() {
        let of = |n_events: usize| {
            let clusters: Vec<_> = (0..30).map(|i| (f64::from(u8::from(i < n_events)), 1.0)).collect();
            clustered_rate_interval(&clusters)
        };
        for n_events in 0..30 {
            let (fewer, more) = (of(n_events), of(n_events + 1));
            assert!(fewer.low <= more.low && fewer.high <= more.high, "{n_events}: {fewer:?} {more:?}");
        }
    }
}
