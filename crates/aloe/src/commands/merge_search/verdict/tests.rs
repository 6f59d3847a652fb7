//! Outcomes made by hand, with what may be said of them.

use super::super::TaskShare;
use super::*;
use aloe_merge::search::{Proposer, ScoredPoint, SearchSettings};
use serde_json::json;

const YAML: &str = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n";

fn answers(right: &str) -> Answers {
    let n_right = right.bytes().filter(|&digit| digit == b'1').count();
    let tasks = vec![TaskShare { task: "t".into(), n: right.len(), n_right }];
    Answers { weights: String::new(), tasks, right: right.into() }
}

fn verdict(points: &[&str], inputs: &[(&str, &str)]) -> (Verdict, String) {
    let settings = SearchSettings { method: Proposer::Grid, evaluations: 100, sigma: None, population: None, seed: 0 };
    let values: Vec<usize> = (1..=points.len()).collect();
    let knobs = json!({"models.0.parameters.weight": {"values": values}});
    let space = Space::new(YAML, knobs.as_object().unwrap(), &settings).unwrap();
    let scored = points.iter().enumerate().map(|(at, right)| {
        let detail = answers(right);
        ScoredPoint { values: vec![(at + 1) as f64], score: detail.n_right() as f64 / detail.n() as f64, detail }
    });
    let found = Searched { points: scored.collect(), refused: Vec::new(), n_asked: points.len(), ended: String::new() };
    let unmerged: Vec<(String, Answers)> =
        inputs.iter().map(|(name, right)| ((*name).to_owned(), answers(right))).collect();
    let verdict = Verdict::of(&space, &found, &unmerged);
    let table = verdict.table(&space, &found).text();
    (verdict, table)
}

/// By hand: 12 questions, point 2 has two more right than point 1 and loses none: p = 2 * (1/2)^2 = 0.5.
#[test]
fn a_winner_by_noise_is_called_not_distinguishable() {
    let (found, table) = verdict(&["111000000000", "111110000000"], &[("base", "111000000000")]);
    assert_eq!((found.best, found.tied.as_slice()), (1, &[1][..]));
    let against = found.points[0].best_against.as_ref().unwrap();
    assert_eq!((against.n_only_best, against.n_only_other, against.p_value, against.p_holm), (2, 0, 0.5, 1.0));
    // Differences 1, 1 and ten 0: mean 1/6, sum of squares 2 - 12/36 = 5/3, stderr sqrt(12/11 * 5/3) / 12 = 0.112367.
    assert!((against.stderr - 0.112367).abs() < 1e-6, "{}", against.stderr);
    let said = found.words.join("\n");
    assert!(
        said.contains(
            "Not distinguishable from 1 of the 1 other points and 1 of the 1 unmerged inputs (2 exact McNemar tests"
        ),
        "{said}"
    );
    assert!(said.contains("biased upward") && !said.contains("No merge scored above"), "{said}");
    assert!(table.find("point 2") < table.find("point 1"), "{table}");
}

#[test]
fn a_tie_is_called_a_tie_and_the_first_of_it_is_written() {
    let (found, table) = verdict(&["0001", "1100", "0011", "1100"], &[]);
    assert_eq!((found.best, found.tied.as_slice()), (1, &[1, 2, 3][..]));
    assert!(found.words[0].starts_with("A tie: 3 points have 50.00 %"), "{}", found.words[0]);
    assert!(found.words[0].contains("points 2, 3, 4") && found.words[0].contains("point 2 ("), "{}", found.words[0]);
    assert_eq!(table.matches("tied for best").count(), 3, "{table}");
}

/// By hand: 20 of 20 against 0 of 20: p = 2 * (1/2)^20 = 1.9e-6, times 2 tests.
#[test]
fn a_real_difference_is_said_too() {
    let (all, none) = ("1".repeat(20), "0".repeat(20));
    let (found, _) = verdict(&[&none, &all, &none], &[]);
    let against = found.points[0].best_against.as_ref().unwrap();
    assert!((against.p_holm - 4.0 * 0.5f64.powi(20)).abs() < 1e-12 && against.differs());
    assert!(found.words[1].starts_with("Distinguishable from every other point"), "{}", found.words[1]);
}

/// Six right of the best alone is p = 2 / 64 = 0.03125: it would speak alone, and does not among nine.
#[test]
fn what_would_speak_alone_does_not_among_many_tests() {
    let (best, other) = ("1111110000", "0000000000");
    let (alone, _) = verdict(&[best, other], &[]);
    assert!(alone.points[1].best_against.as_ref().unwrap().differs());
    let points: Vec<&str> = [best].into_iter().chain([other; 9]).collect();
    let (many, _) = verdict(&points, &[]);
    assert!(!many.points[1].best_against.as_ref().unwrap().differs());
    assert!(many.words[1].contains("9 of the 9 other points"), "{}", many.words[1]);
}

#[test]
fn a_single_point_is_compared_with_the_inputs_alone() {
    let (found, _) = verdict(&["1010"], &[("a", "1010")]);
    let said = found.words.join("\n");
    assert_eq!(found.words[1], "No merge scored above the unmerged a (50.00 %).");
    assert!(
        said.contains("1 of the 1 unmerged inputs") && !said.contains("runner-up") && !said.contains("biased"),
        "{said}"
    );
}
