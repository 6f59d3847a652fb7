//! Against scipy, statsmodels, scikit-learn and lm-evaluation-harness: `oracles/evaluation_statistics.py`.

#![allow(clippy::unwrap_used, reason = "a test binary")]

use aloe_eval::bootstrap::cluster_bootstrap;
use aloe_eval::calibration::Calibration;
use aloe_eval::stats;
use serde_json::Value;

/// Six digits and more.
fn close(found: f64, expected: f64, what: &Value) {
    let tolerance = 1e-7 * expected.abs().max(1e-3);
    assert!((found - expected).abs() <= tolerance, "{found} is not {expected}: {what}");
}

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/statistics.json")).unwrap()
}

fn rows(name: &str, least: usize) -> Vec<Value> {
    let rows = golden()[name].as_array().unwrap().clone();
    assert!(rows.len() >= least, "{name}: {}", rows.len());
    rows
}

fn count(row: &Value, key: &str) -> usize {
    row[key].as_u64().unwrap() as usize
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn pairs(value: &Value) -> Vec<(f64, f64)> {
    value.as_array().unwrap().iter().map(|pair| (number(&pair[0]), number(&pair[1]))).collect()
}

#[test]
fn the_exact_mcnemar_test_is_statsmodels() {
    for row in rows("mcnemar_exact", 16) {
        close(stats::mcnemar_exact(count(&row, "first"), count(&row, "second")), number(&row["p"]), &row);
    }
}

#[test]
fn wilsons_interval_is_statsmodels() {
    for row in rows("wilson", 60) {
        let n = count(&row, "n") as f64;
        let found = stats::wilson(count(&row, "right") as f64 / n, n);
        close(found.low, number(&row["low"]), &row);
        close(found.high, number(&row["high"]), &row);
    }
}

#[test]
fn standard_errors_of_tasks_and_groups_are_the_harness_ones() {
    for row in rows("stderrs", 30) {
        close(stats::proportion_stderr(count(&row, "right"), count(&row, "n")), number(&row["stderr"]), &row);
    }
    for row in rows("grouped_stderrs", 5) {
        let each = numbers(&row["stderrs"]);
        let sizes: Vec<usize> = numbers(&row["sizes"]).into_iter().map(|n| n as usize).collect();
        if sizes.len() > 1 {
            close(stats::pooled_stderr(&each, &sizes), number(&row["pooled"]), &row);
        }
        close(stats::macro_stderr(&each), number(&row["unweighted"]), &row);
    }
}

/// Where a percentile may fall by the drawing alone: the golden bands, beyond which it is but for a chance of 1 in 16,000.
#[test]
fn the_bootstraps_ends_are_scipys_within_what_drawing_explains() {
    for row in rows("bootstrap", 5) {
        let n = count(&row, "n");
        let clusters = match &row["clusters"] {
            Value::Null => (0..n).map(|i| (f64::from(u8::from(i < count(&row, "right"))), 1.0)).collect(),
            given => pairs(given),
        };
        for n_draws in [1000, 2000, 10_000] {
            let band = &row["bands"][n_draws.to_string()];
            let found = cluster_bootstrap(&clusters, n_draws, 3, "golden");
            for (found, band) in [(found.low, &band["low"]), (found.high, &band["high"])] {
                let (from, to) = (number(&band[0]) - 1e-9, number(&band[1]) + 1e-9);
                assert!((from..=to).contains(&found), "{found} is not in {from}..{to}: {n_draws} draws of {n}");
            }
        }
    }
}

/// scipy's own bootstrap, given the draws that our generator makes (the oracle makes them anew in Python): paired differences of two runs,
/// shares of right answers, abstracts of several questions.
#[test]
fn the_bootstraps_ends_are_scipys_to_nine_digits_on_the_same_draws() {
    let golden = rows("bootstrap_drawn", 8);
    for row in &golden {
        let kinds = row["kinds"].as_array().unwrap().iter();
        let clusters: Vec<(f64, f64)> = kinds
            .flat_map(|kind| vec![(number(&kind[0]), number(&kind[1])); kind[2].as_u64().unwrap() as usize])
            .collect();
        let seed = row["seed"].as_u64().unwrap();
        let found = cluster_bootstrap(&clusters, count(row, "n_draws"), seed, row["purpose"].as_str().unwrap());
        for (found, expected) in [(found.low, number(&row["low"])), (found.high, number(&row["high"]))] {
            assert!((found - expected).abs() <= 1e-9, "{found} is not {expected}: {}", row["kinds"]);
        }
    }
}

#[test]
fn calibration_error_and_brier_score_are_those_of_numpy_and_scikit_learn() {
    for row in rows("calibration", 5) {
        let keys = numbers(&row["key"]).into_iter().map(|key| key as usize);
        let probabilities = row["probabilities"].as_array().unwrap().iter().map(numbers);
        let right = row["right"].as_array().unwrap().iter().map(|right| right.as_bool().unwrap());
        let given: Vec<(Vec<f64>, usize, bool)> =
            probabilities.zip(keys).zip(right).map(|((p, key), right)| (p, key, right)).collect();
        let found = Calibration::of_rows("", &given);
        close(found.ece, number(&row["ece"]), &row["kind"]);
        close(found.brier, number(&row["brier"]), &row["kind"]);
        let bins = row["bins"].as_array().unwrap();
        assert_eq!(found.bins.len(), bins.len(), "{}", row["kind"]);
        for (bin, expected) in found.bins.iter().zip(bins) {
            assert_eq!((bin.bin, bin.n), (count(expected, "bin"), count(expected, "n")), "{}", row["kind"]);
            close(bin.confidence, number(&expected["confidence"]), expected);
            close(bin.accuracy, number(&expected["accuracy"]), expected);
        }
    }
}

#[test]
fn clustered_standard_errors_are_statsmodels() {
    for row in rows("clustered", 5) {
        let (mean, stderr) = stats::clustered_mean(&pairs(&row["clusters"]));
        close(mean, number(&row["mean"]), &row);
        close(stderr, number(&row["corrected"]), &row);
    }
}

#[test]
fn holms_adjustment_is_statsmodels() {
    for row in rows("holm", 9) {
        let found = stats::holm(&numbers(&row["p"]));
        for (found, expected) in found.into_iter().zip(numbers(&row["adjusted"])) {
            close(found, expected, &row);
        }
    }
}

#[test]
fn students_quantile_is_scipys() {
    for row in rows("student", 10) {
        close(stats::t_975(count(&row, "freedom")), number(&row["t"]), &row);
    }
}

/// Where Connor's equation has a solution below the discordant share, and no rule of ours steps in.
#[test]
fn the_smallest_difference_is_the_root_that_scipy_finds() {
    let mut n_solved = 0;
    for row in rows("smallest_difference", 50) {
        let (n, discordant) = (count(&row, "n"), count(&row, "discordant"));
        if let Some(d) = row["d"].as_f64().filter(|d| discordant >= 6 && *d * n as f64 > 6.0) {
            close(stats::smallest_difference(n, discordant), d, &row);
            n_solved += 1;
        }
    }
    assert!(n_solved >= 20, "{n_solved}");
}
