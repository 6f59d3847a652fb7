//! HelpSteer: several rated answers a prompt become one pair a prompt. The published way is not known; ours: the best answer by
//! (helpfulness, correctness, coherence, shorter) against the worst, when their helpfulness differs by at least one point, or by the source's
//! `rating_gap`.

use super::{Body, pair, text};
use crate::RowError;
use aloe_task::rows::Row;
use aloe_text::Message;
use std::collections::HashMap;

/// What became of the rows, by their index.
#[derive(Debug, Default)]
pub(crate) struct Grouped {
    /// Index of the chosen row and the pair.
    pub(crate) pairs: Vec<(usize, Body)>,
    /// Rows that are the other side of a pair, or neither side.
    pub(crate) merged: Vec<usize>,
    /// Rows of prompts without a gap.
    pub(crate) no_gap: Vec<usize>,
    /// Broken rows and their index.
    pub(crate) broken: Vec<(usize, RowError)>,
}

struct Answer {
    row: usize,
    response: String,
    rank: (i64, i64, i64, i64),
}

fn rated(rows: &[Row], index: usize) -> Result<(String, Answer), RowError> {
    let row = &rows[index];
    let rating = |column: &str| {
        let value = row.integer(column).map_err(|error| RowError::from_task(&row.at, &error))?;
        let fits = (0..=4).contains(&value);
        fits.then_some(value)
            .ok_or_else(|| RowError::new(&row.at, format!("column `{column}`: expected 0 to 4, found another number")))
    };
    let response = text(row, "response")?;
    let rank =
        (rating("helpfulness")?, rating("correctness")?, rating("coherence")?, -(response.chars().count() as i64));
    Ok((text(row, "prompt")?, Answer { row: index, response, rank }))
}

/// Pairs of all rows of a source whose sides lie at least `gap` points apart, in the order of the prompts' first rows.
pub(crate) fn group(rows: &[Row], gap: u8) -> Grouped {
    let mut grouped = Grouped::default();
    let mut prompts: Vec<(String, Vec<Answer>)> = Vec::new();
    let mut place: HashMap<String, usize> = HashMap::new();
    for index in 0..rows.len() {
        match rated(rows, index) {
            Ok((prompt, answer)) => {
                let at = *place.entry(prompt.clone()).or_insert_with(|| {
                    prompts.push((prompt, Vec::new()));
                    prompts.len() - 1
                });
                prompts[at].1.push(answer);
            }
            Err(error) => grouped.broken.push((index, error)),
        }
    }
    for (prompt, answers) in prompts {
        add_pair(rows, prompt, &answers, gap, &mut grouped);
    }
    grouped
}

fn add_pair(rows: &[Row], prompt: String, answers: &[Answer], gap: u8, grouped: &mut Grouped) {
    let best = answers.iter().max_by_key(|answer| (answer.rank, std::cmp::Reverse(answer.row)));
    let worst = answers.iter().min_by_key(|answer| (answer.rank, answer.row));
    let (Some(best), Some(worst)) = (best, worst) else { return };
    if best.rank.0 - worst.rank.0 < i64::from(gap) {
        grouped.no_gap.extend(answers.iter().map(|answer| answer.row));
        return;
    }
    let side = |answer: &Answer| vec![Message::assistant(answer.response.clone())];
    match pair(&rows[best.row], vec![Message::user(prompt)], side(best), side(worst)) {
        Ok(body) => {
            grouped.pairs.push((best.row, body));
            grouped.merged.extend(answers.iter().map(|answer| answer.row).filter(|row| *row != best.row));
        }
        Err(error) => grouped.broken.extend(answers.iter().map(|answer| (answer.row, error.clone()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(line: usize, prompt: &str, response: &str, helpfulness: i64) -> Row {
        let value = json!({"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 2, "coherence": 4,
            "complexity": 1, "verbosity": 1});
        Row { columns: value.as_object().unwrap().clone(), at: format!("h.jsonl:{line}") }
    }

    #[test]
    fn the_best_and_the_worst_answer_of_a_prompt_make_its_pair() {
        let rows = [
            row(1, "P", "middle", 2),
            row(2, "Q", "same", 3),
            row(3, "P", "best", 4),
            row(4, "P", "worst, and long", 0),
            row(5, "Q", "same too", 3),
            row(6, "P", "broken", 9),
        ];
        let grouped = group(&rows, 1);
        assert_eq!(grouped.pairs.len(), 1);
        let (chosen_row, Body::Pair(pair)) = &grouped.pairs[0] else { panic!("a pair") };
        assert_eq!(
            (*chosen_row, pair.chosen[0].content.as_str(), pair.rejected[0].content.as_str()),
            (2, "best", "worst, and long")
        );
        assert_eq!((grouped.merged, grouped.no_gap), (vec![0, 3], vec![1, 4]));
        assert_eq!(
            grouped.broken[0].1.to_string(),
            "h.jsonl:6: column `helpfulness`: expected 0 to 4, found another number"
        );
        for (gap, n_pairs) in [(1, 1), (4, 1)] {
            assert_eq!(group(&rows, gap).pairs.len(), n_pairs, "4 and 0 lie four points apart");
        }
        let mut floats = [row(1, "P", "good", 3), row(2, "P", "bad", 1)];
        floats[0].columns["helpfulness"] = json!(3.0);
        floats[1].columns["helpfulness"] = json!(0.5);
        let grouped = group(&floats, 1);
        assert_eq!(grouped.broken.len(), 1, "a whole number is one however it is written, a half is none");
        assert_eq!(grouped.broken[0].0, 1);
        let closer = [row(1, "P", "good", 3), row(2, "P", "bad", 1)];
        assert_eq!((group(&closer, 2).pairs.len(), group(&closer, 3).no_gap), (1, vec![0, 1]));
    }
}
