//! Against prompt_engine's `evaluate` (`oracles/prompt_engine.py`): who is elected, what counts as right, ties, unread questions.

#![allow(clippy::unwrap_used, reason = "a test binary")]

use aloe_eval::vote::majority;
use serde_json::Value;

fn place(letter: &Value) -> Option<usize> {
    letter.as_str().filter(|letter| letter.len() == 1).map(|letter| usize::from(letter.as_bytes()[0] - b'A'))
}

#[test]
fn the_vote_the_accuracy_and_the_ties_are_its_own() {
    let golden: Value = serde_json::from_str(include_str!("golden/prompt_engine_votes.json")).unwrap();
    let rows = golden["rows"].as_array().unwrap();
    assert!(rows.len() >= 20, "{}", rows.len());
    // Where no question has a vote, its program ends in an error; ours counts them all wrong.
    for row in rows.iter().filter(|row| row.get("raises").is_none()) {
        let (mut predicted, mut n_right, mut n_unread, mut ties) = (Vec::new(), 0, 0, [0, 0]);
        for question in row["questions"].as_array().unwrap() {
            let votes: Vec<Option<usize>> =
                question["votes"].as_array().into_iter().flatten().map(|vote| place(&vote[0])).collect();
            let outcome = majority(&votes);
            let is_right = outcome.answer == place(&question["gold"]);
            n_right += usize::from(is_right);
            n_unread += usize::from(outcome.answer.is_none());
            ties[usize::from(is_right)] += usize::from(outcome.tie);
            predicted.push(outcome.answer);
        }
        let expected: Vec<Option<usize>> = row["predictions"].as_array().unwrap().iter().map(place).collect();
        assert_eq!(predicted, expected, "{row}");
        let accuracy = n_right as f64 / row["count"].as_f64().unwrap();
        assert!((accuracy - row["accuracy"].as_f64().unwrap()).abs() < 1e-12, "{row}");
        assert_eq!(Some(n_unread as u64), row["no_parsed_answers"].as_u64(), "{row}");
        let draws = &row["draws"];
        assert_eq!([draws["incorrect"].as_u64(), draws["correct"].as_u64()], ties.map(|n| Some(n as u64)), "{row}");
    }
}
