//! Standard errors and 95 % intervals of held-out figures, and exact tests of counts. Plain functions on numbers, in f64.
//!
//! Everything is a ratio of sums over rows, R = sum s_i / sum n_i: of a negative log-likelihood s_i is what row i takes and n_i its trained
//! tokens, of a plain mean over rows n_i is 1. Tokens of one row depend on each other, so that the rows are what was drawn and every row
//! is one cluster: by linearisation (the delta method; Cochran 1977, Sampling Techniques, 6.3; cluster-robust errors with the factor
//! k / (k - 1) in econometrics) over k rows
//!
//!   se(R)^2 = k / (k - 1) * sum (s_i - R n_i)^2 / (sum n_i)^2
//!
//! and the interval is R plus and minus Student's 97.5 % quantile of k - 1 degrees of freedom times it. A difference after - before over the
//! same rows has the same n_i: it is that ratio of the rows' own differences, and what both moments share cancels.

use serde::{Deserialize, Serialize};

/// A mean or a difference of means with its error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value.
    pub mean: f64,
    /// Its standard error; none of a single row.
    pub se: Option<f64>,
    /// Its 95 % interval; none where no row differs from another one, as then the error is 0 and says nothing.
    pub interval: Option<[f64; 2]>,
}

impl Estimate {
    /// The ratio of the summed values and the summed weights; `rows` holds both of each row.
    pub(crate) fn of_ratio(rows: &[(f64, f64)]) -> Self {
        let k = rows.len() as f64;
        let n: f64 = rows.iter().map(|(_, n)| n).sum();
        let mean = rows.iter().map(|(sum, _)| sum).sum::<f64>() / n;
        if rows.len() < 2 {
            return Self { mean, ..Self::default() };
        }
        let squares: f64 = rows.iter().map(|(sum, n)| (sum - mean * n).powi(2)).sum();
        let se = (k / (k - 1.0) * squares).sqrt() / n;
        Self { mean, se: Some(se), interval: (se > 0.0).then(|| interval(mean, se, rows.len())) }
    }

    /// The mean of values that each row has one of.
    pub(crate) fn of_mean(values: impl IntoIterator<Item = f64>) -> Self {
        Self::of_ratio(&values.into_iter().map(|value| (value, 1.0)).collect::<Vec<_>>())
    }

    /// The estimate under the names that [`Self::named`] gives its parts, read back by `of`.
    pub(crate) fn read(name: &str, of: impl Fn(&str) -> Option<f64>) -> Option<Self> {
        let part = |suffix: &str| of(&format!("{name}{suffix}"));
        let interval = part("_low").zip(part("_high")).map(|(low, high)| [low, high]);
        Some(Self { mean: part("")?, se: part("_se"), interval })
    }

    /// Its parts as flat numbers, which a metrics line and TensorBoard can hold: `NAME`, `NAME_se`, `NAME_low`, `NAME_high`.
    pub(crate) fn named(&self, name: &str) -> Vec<(String, f64)> {
        let parts = [
            ("", Some(self.mean)),
            ("_se", self.se),
            ("_low", self.interval.map(|[low, _]| low)),
            ("_high", self.interval.map(|[_, high]| high)),
        ];
        parts.into_iter().filter_map(|(suffix, value)| Some((format!("{name}{suffix}"), value?))).collect()
    }
}

/// Two-sided exact test that two outcomes are equally likely: of `n_first + n_second` tosses of a fair coin, the chance of a split at least
/// as uneven. Of rows that only one of two moments got right it is McNemar's exact test; of right and wrong rows the test against one
/// half. Equals `scipy.stats.binomtest(n_first, n_first + n_second, 0.5).pvalue`; 1 without a toss.
pub(crate) fn even_split_p(n_first: usize, n_second: usize) -> f64 {
    let n = n_first + n_second;
    // The logarithm of each split's chance from that of the split before it.
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = ln_term.exp();
    for k in 1..=n_first.min(n_second) {
        ln_term += ((n - k + 1) as f64).ln() - (k as f64).ln();
        tail += ln_term.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Wilson's 95 % interval (1927) of a share of `n` independent rows: it is not empty where all or none are right.
pub(crate) fn wilson(n_right: usize, n: usize) -> [f64; 2] {
    let (p, n) = (n_right as f64 / n as f64, n as f64);
    let (square, scale) = (Z * Z / n, 1.0 + Z * Z / n);
    let middle = (p + square / 2.0) / scale;
    let half = Z * (p * (1.0 - p) / n + square / (4.0 * n)).sqrt() / scale;
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

/// The 95 % interval of a mean over `n` rows: mean plus and minus Student's quantile times the standard error. It takes the
/// rows as drawn independently; pairs that share a prompt are not, and make it too narrow.
pub(crate) fn interval(mean: f64, standard_error: f64, n: usize) -> [f64; 2] {
    let half = student_975(n.saturating_sub(1)) * standard_error;
    [mean - half, mean + half]
}

/// The 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 97.5 % quantile of Student's t: tables for few degrees of freedom, then the expansion of Abramowitz and Stegun 26.7.5.
fn student_975(degrees: usize) -> f64 {
    const FIRST: [f64; 10] = [
        f64::INFINITY,
        12.706_205,
        4.302_653,
        3.182_446,
        2.776_445,
        2.570_582,
        2.446_912,
        2.364_624,
        2.306_004,
        2.262_157,
    ];
    if let Some(&quantile) = FIRST.get(degrees) {
        return quantile;
    }
    let v = degrees as f64;
    let terms = [
        (Z.powi(3) + Z) / 4.0,
        (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0,
        (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / 384.0,
        (79.0 * Z.powi(9) + 776.0 * Z.powi(7) + 1482.0 * Z.powi(5) - 1920.0 * Z.powi(3) - 945.0 * Z) / 92160.0,
    ];
    Z + terms[0] / v + terms[1] / v.powi(2) + terms[2] / v.powi(3) + terms[3] / v.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn close(found: f64, expected: f64, tolerance: f64, what: &str) {
        assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-3), "{what}: {found} is not {expected}");
    }

    /// Every token an observation and every row a cluster in statsmodels' OLS; the quantiles are scipy's. f64 sums in another order differ by
    /// some 1e-13; Student's expansion is good to 2e-6.
    #[test]
    fn ratio_errors_paired_differences_and_exact_tests_equal_statsmodels_and_scipy() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/held_out_statistics.json")).unwrap();
        let numbers = |value: &Value| -> Vec<f64> {
            value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
        };
        for (at, case) in golden["ratios"].as_array().unwrap().iter().enumerate() {
            let n = numbers(&case["n_tokens"]);
            let sums = ["before", "after"].map(|side| numbers(&case[side]));
            let of = |sums: &[f64]| -> Vec<(f64, f64)> { sums.iter().copied().zip(n.iter().copied()).collect() };
            let change: Vec<f64> = sums[1].iter().zip(&sums[0]).map(|(after, before)| after - before).collect();
            for (name, sums) in [("before", &sums[0]), ("after", &sums[1]), ("change", &change)] {
                let (found, expected) = (Estimate::of_ratio(&of(sums)), &case["expected"][name]);
                let what = format!("{name} of case {at}");
                close(found.mean, expected["mean"].as_f64().unwrap(), 1e-10, &what);
                close(found.se.unwrap(), expected["se"].as_f64().unwrap(), 1e-10, &what);
                for (found, expected) in found.interval.unwrap().into_iter().zip(numbers(&expected["interval"])) {
                    close(found, expected, 1e-5, &what);
                }
            }
        }
        for row in golden["even_splits"].as_array().unwrap() {
            let count = |name: &str| row[name].as_u64().unwrap() as usize;
            let found = even_split_p(count("first"), count("second"));
            let expected = row["p"].as_f64().unwrap();
            assert!((found - expected).abs() <= 1e-9 * expected, "{row}: {found}");
        }
        for row in golden["wilson"].as_array().unwrap() {
            let found = wilson(row["right"].as_u64().unwrap() as usize, row["n"].as_u64().unwrap() as usize);
            for (found, expected) in found.into_iter().zip(numbers(&row["interval"])) {
                assert!((found - expected).abs() <= 1e-9, "{row}: {found}");
            }
        }
    }

    #[test]
    fn a_difference_is_as_worked_by_hand_and_rows_that_change_alike_have_no_interval() {
        // Rows of 1 and 3 tokens whose sums change by -1 and -1: -2 / 4 = -0.5; rests -1 + 0.5 and -1 + 1.5, squares 0.5,
        // sqrt(2 / 1 * 0.5) / 4 = 0.25. One degree of freedom: 12.7062.
        let found = Estimate::of_ratio(&[(-1.0, 1.0), (-1.0, 3.0)]);
        assert_eq!((found.mean, found.se), (-0.5, Some(0.25)));
        let [low, high] = found.interval.unwrap();
        assert!((low + 3.676_551).abs() < 1e-5 && (high - 2.676_551).abs() < 1e-5, "{low} {high}");
        assert_eq!(Estimate::of_mean([0.25; 9]), Estimate { mean: 0.25, se: Some(0.0), interval: None });
        assert_eq!(Estimate::of_mean([3.0]), Estimate { mean: 3.0, se: None, interval: None });
        let parts = found.named("x");
        let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x", "x_se", "x_low", "x_high"]);
        let of = |name: &str| parts.iter().find(|(part, _)| part == name).map(|(_, value)| *value);
        assert_eq!(Estimate::read("x", of), Some(found));
        assert_eq!(Estimate::read("y", of), None);
    }

    #[test]
    fn the_interval_uses_students_quantiles_of_the_tables() {
        // Tables of Student's t at 0.975.
        for (degrees, quantile) in [(1, 12.7062), (4, 2.7764), (5, 2.5706), (10, 2.2281), (28, 2.0484), (100, 1.9840)] {
            let found = student_975(degrees);
            assert!((found - quantile).abs() < 5e-5, "{degrees}: {found}");
        }
        let [low, high] = interval(0.2, 0.1, 11);
        assert!((low + 0.0228).abs() < 1e-4 && (high - 0.4228).abs() < 1e-4, "{low} {high}");
    }
}
