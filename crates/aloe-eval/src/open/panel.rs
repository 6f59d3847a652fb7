//! A panel of judges: accuracy by each, by majority and by full agreement, and how far the judges agree. Numbers in, numbers out.
//!
//! A missing verdict is no vote for right; a tie is wrong (prompt_engine: more than half of the judges). An empty answer is wrong
//! without asking, and the measures of agreement are over the answers that were judged.

use crate::metrics::Estimate;
use aloe_task::wording::open::OpenVerdict;
use serde::{Deserialize, Serialize};

/// The verdicts on one answer, in the judges' order.
pub type Row = Vec<OpenVerdict>;

/// What a panel says of a task's answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PanelResult {
    /// Questions.
    pub n: usize,
    /// Of them, those whose answer was judged.
    pub n_judged: usize,
    /// One entry a judge.
    pub judges: Vec<JudgeResult>,
    /// Answers that more than half of the judges call right.
    pub majority: Estimate,
    /// Answers with as many judges for as against them, at least one each; they are wrong. One without any verdict is no tie.
    pub n_ties: usize,
    /// The majority's accuracy if every missing verdict were a vote for right; absent where none is missing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub majority_at_most: Option<f64>,
    /// Answers that all judges call right.
    pub full_agreement: Estimate,
    /// Cohen's kappa (1960) of each two judges.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub cohens_kappa: Vec<PairKappa>,
    /// Fleiss' kappa (1971) of three judges and more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fleiss_kappa: Option<Kappa>,
}

/// What one judge says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgeResult {
    /// The judge's name, as in the samples.
    pub judge: String,
    /// Answers that it calls right; one without a verdict is wrong. prompt_engine leaves those without a verdict out.
    pub accuracy: Estimate,
    /// Replies without a verdict.
    pub n_unparsed: usize,
    /// Accuracy if each of these meant right; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at_most: Option<f64>,
    /// Of its verdicts, those that are the majority's, in which its own vote counts; none with a single judge.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub with_majority: Option<Estimate>,
}

/// Agreement beyond chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kappa {
    /// Answers on which all these judges gave a verdict.
    pub n: usize,
    /// The kappa; none where every verdict is the same, which chance explains as well.
    pub kappa: Option<f64>,
}

/// Cohen's kappa of two judges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairKappa {
    /// One judge.
    pub first: String,
    /// The other.
    pub second: String,
    /// Their agreement.
    #[serde(flatten)]
    pub kappa: Kappa,
}

/// Whether more than half of the judges call the answer right.
pub fn majority(row: &[OpenVerdict]) -> bool {
    2 * n_right(row) > row.len()
}

/// Whether all judges call the answer right.
pub fn full_agreement(row: &[OpenVerdict]) -> bool {
    !row.is_empty() && n_right(row) == row.len()
}

/// Whether as many judges are for the answer as against it, at least one each.
pub(crate) fn is_tie(row: &[OpenVerdict]) -> bool {
    n_right(row) > 0 && n_right(row) == count(row, OpenVerdict::Wrong)
}

fn n_right(row: &[OpenVerdict]) -> usize {
    count(row, OpenVerdict::Right)
}

fn count(row: &[OpenVerdict], what: OpenVerdict) -> usize {
    row.iter().filter(|&&verdict| verdict == what).count()
}

/// Counts `rows`, the judged answers of `n` questions; each row holds one verdict of each of `judges`.
pub fn panel(judges: &[String], n: usize, rows: &[Row]) -> PanelResult {
    let share = |n_right: usize| Estimate::share(n_right, n);
    let n_of = |keep: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| keep(row)).count();
    let is_missing = rows.iter().any(|row| row.contains(&OpenVerdict::Unparsed));
    // Every missing verdict a vote for right.
    let at_most = n_of(&|row| 2 * (row.len() - count(row, OpenVerdict::Wrong)) > row.len());
    let judged = judges.iter().enumerate().map(|(at, name)| judge(name, at, n, rows, judges.len() > 1)).collect();
    PanelResult {
        n,
        n_judged: rows.len(),
        judges: judged,
        majority: share(n_of(&|row| majority(row))),
        n_ties: n_of(&|row| is_tie(row)),
        majority_at_most: is_missing.then(|| at_most as f64 / n as f64),
        full_agreement: share(n_of(&|row| full_agreement(row))),
        cohens_kappa: pairs(judges, rows),
        fleiss_kappa: (judges.len() > 2).then(|| fleiss(rows)),
    }
}

fn judge(name: &str, at: usize, n: usize, rows: &[Row], has_others: bool) -> JudgeResult {
    let of = |what: OpenVerdict| rows.iter().filter(|row| row[at] == what).count();
    let (n_right, n_unparsed) = (of(OpenVerdict::Right), of(OpenVerdict::Unparsed));
    let given: Vec<&Row> = rows.iter().filter(|row| row[at] != OpenVerdict::Unparsed).collect();
    let n_same = given.iter().filter(|row| (row[at] == OpenVerdict::Right) == majority(row)).count();
    JudgeResult {
        judge: name.to_owned(),
        accuracy: Estimate::share(n_right, n),
        n_unparsed,
        at_most: (n_unparsed > 0).then(|| (n_right + n_unparsed) as f64 / n as f64),
        with_majority: (has_others && !given.is_empty()).then(|| Estimate::share(n_same, given.len())),
    }
}

fn pairs(judges: &[String], rows: &[Row]) -> Vec<PairKappa> {
    let mut found = Vec::new();
    for first in 0..judges.len() {
        for second in first + 1..judges.len() {
            let kappa = cohen(rows.iter().map(|row| (row[first], row[second])));
            found.push(PairKappa { first: judges[first].clone(), second: judges[second].clone(), kappa });
        }
    }
    found
}

/// (observed - chance) / (1 - chance); none where chance alone makes all agree.
fn beyond(observed: f64, chance: f64) -> Option<f64> {
    (chance < 1.0).then(|| (observed - chance) / (1.0 - chance))
}

/// Cohen (1960): chance is that of the two judges' own shares.
fn cohen(verdicts: impl Iterator<Item = (OpenVerdict, OpenVerdict)>) -> Kappa {
    let given: Vec<(bool, bool)> = verdicts
        .filter(|pair| pair.0 != OpenVerdict::Unparsed && pair.1 != OpenVerdict::Unparsed)
        .map(|pair| (pair.0 == OpenVerdict::Right, pair.1 == OpenVerdict::Right))
        .collect();
    let n = given.len();
    let share = |keep: &dyn Fn(&(bool, bool)) -> bool| given.iter().filter(|pair| keep(pair)).count() as f64 / n as f64;
    let (first, second) = (share(&|pair| pair.0), share(&|pair| pair.1));
    let kappa = if n == 0 {
        None
    } else {
        beyond(share(&|pair| pair.0 == pair.1), first * second + (1.0 - first) * (1.0 - second))
    };
    Kappa { n, kappa }
}

/// Fleiss (1971) with two categories, over the rows in which no verdict is missing.
fn fleiss(rows: &[Row]) -> Kappa {
    let whole: Vec<&Row> = rows.iter().filter(|row| !row.contains(&OpenVerdict::Unparsed)).collect();
    let (n, Some(m)) = (whole.len(), whole.first().map(|row| row.len() as f64)) else {
        return Kappa { n: 0, kappa: None };
    };
    let right: Vec<f64> = whole.iter().map(|row| n_right(row) as f64).collect();
    let agreement = |r: &f64| (r * (r - 1.0) + (m - r) * (m - r - 1.0)) / (m * (m - 1.0));
    let observed = right.iter().map(agreement).sum::<f64>() / n as f64;
    let share = right.iter().sum::<f64>() / (n as f64 * m);
    Kappa { n, kappa: beyond(observed, share * share + (1.0 - share) * (1.0 - share)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` right, `-` wrong, `?` no verdict; one word an answer.
    fn rows(text: &str) -> Vec<Row> {
        let verdict = |c: char| match c {
            '+' => OpenVerdict::Right,
            '-' => OpenVerdict::Wrong,
            _ => OpenVerdict::Unparsed,
        };
        text.split(' ').map(|word| word.chars().map(verdict).collect()).collect()
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|at| format!("j{at}")).collect()
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    /// By hand, of 5 questions one is unanswered. Judge 0: right on 1, 2, 4 = 3/5. Judge 1: on 1, 3 = 2/5, silent on 4. Judge 2: on 1, 2.
    /// Majority: answer 1 (3), 2 (2 of 3), not 3 (1), not 4 (1 of 3: a missing verdict is no vote). All agree on 1.
    #[test]
    fn the_majority_is_more_than_half_of_the_judges_and_full_agreement_all_of_them() {
        let found = panel(&names(3), 5, &rows("+++ +-+ -+- +?-"));
        let accuracies: Vec<f64> = found.judges.iter().map(|judge| judge.accuracy.value).collect();
        assert_eq!(accuracies, [0.6, 0.4, 0.4]);
        assert_eq!((found.n, found.n_judged), (5, 4));
        close(found.majority.value, 0.4);
        close(found.full_agreement.value, 0.2);
        // Answer 4 with the missing vote for right: 2 of 3.
        assert_eq!(found.majority_at_most, Some(0.6));
        assert_eq!((found.judges[1].n_unparsed, found.judges[1].at_most), (1, Some(0.6)));
        assert_eq!((found.judges[0].n_unparsed, found.judges[0].at_most), (0, None));
        // Judge 0 agrees with the majority on 1, 2, 3 of 4; judge 1 on 1 of its 3 (not on 2 nor on 3).
        close(found.judges[0].with_majority.unwrap().value, 0.75);
        close(found.judges[1].with_majority.unwrap().value, 1.0 / 3.0);
    }

    #[test]
    fn a_tie_of_two_judges_is_wrong_and_counted() {
        let found = panel(&names(2), 4, &rows("++ +- -+ +?"));
        close(found.majority.value, 0.25);
        assert_eq!(found.n_ties, 2, "one vote and a missing one are no tie");
        assert_eq!(panel(&names(2), 3, &rows("?? +- ??")).n_ties, 1, "where no judge gave a verdict nothing is tied");
        assert_eq!(panel(&names(1), 3, &rows("? + -")).n_ties, 0, "one judge ties with nobody");
        assert!(found.fleiss_kappa.is_none() && found.cohens_kappa.len() == 1);
        let alone = panel(&names(1), 2, &rows("+ -"));
        assert!(alone.judges[0].with_majority.is_none() && alone.cohens_kappa.is_empty());
        close(alone.majority.value, 0.5);
    }

    /// By hand: both right 2, both wrong 1, one each way 1 + 1, of 5: observed 0.6; shares 3/5 and 3/5: chance 0.36 + 0.16 = 0.52; kappa
    /// 0.08 / 0.48 = 1/6.
    #[test]
    fn cohens_kappa_is_agreement_beyond_the_judges_own_shares() {
        let kappa = panel(&names(2), 6, &rows("++ ++ -- +- -+ ?+")).cohens_kappa.remove(0).kappa;
        assert_eq!(kappa.n, 5);
        close(kappa.kappa.unwrap(), 1.0 / 6.0);
        assert_eq!(panel(&names(2), 2, &rows("++ ++")).cohens_kappa[0].kappa.kappa, None, "no verdict differs");
    }

    /// By hand, three judges, four answers with 3, 2, 1, 0 votes: agreements 1, 1/3, 1/3, 1: 2/3; share 6/12: chance 0.5; kappa 1/3.
    #[test]
    fn fleiss_kappa_of_three_judges_is_the_one_of_the_textbook() {
        let kappa = panel(&names(3), 5, &rows("+++ ++- --+ --- ?++")).fleiss_kappa.unwrap();
        assert_eq!(kappa.n, 4);
        close(kappa.kappa.unwrap(), 1.0 / 3.0);
    }
}
