//! What the plots of a run show: how sure the model was against how often it was right, how the votes fell, which positions were
//! chosen. Plain functions on samples and counts.

use crate::Sample;
use crate::calibration::probabilities;
use crate::metrics::Counts;
use crate::stats::{Interval, wilson};

/// Bins of equal width over 0 to 1.
const N_BINS: usize = 10;

/// A bin of the reliability diagram (DeGroot and Fienberg 1983; Guo et al. 2017, section 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// Mean confidence of its answers, 0 to 1.
    pub confidence: f64,
    /// Share of right ones.
    pub right: f64,
    /// Wilson's 95 % interval of that share.
    pub interval: Interval,
    /// Its answers.
    pub n: usize,
}

/// How sure answers were and how often they were right.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// The bins that hold an answer, lowest confidence first.
    pub bins: Vec<Bin>,
    /// Expected calibration error: the bins' |right - confidence|, weighted by their answers (Guo et al. 2017, equation 3).
    pub error: f64,
    /// Answers in all.
    pub n: usize,
}

/// How sure an answer was: where options are weighed the highest softmax probability over their summed log-probabilities; of several
/// votes the winner's share of all, unparsed ones included. `None` where there is no answer, one vote alone, or a letter that is not told.
pub fn confidence(sample: &Sample) -> Option<f64> {
    let predicted = sample.predicted?;
    if !sample.choices.is_empty() {
        return probabilities(sample)?.get(predicted).copied();
    }
    (sample.votes.len() > 1).then(|| n_agree(sample) as f64 / sample.votes.len() as f64)
}

/// Votes for the predicted option.
pub(super) fn n_agree(sample: &Sample) -> usize {
    sample.votes.iter().filter(|vote| vote.answer.is_some() && vote.answer == sample.predicted).count()
}

/// The calibration of `samples`, whatever their tasks; `None` where no answer has a confidence. Counted as in `results.json`
/// (`crate::calibration`).
pub fn calibration<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Option<Calibration> {
    let taken = samples.into_iter().filter(|sample| sample.refused.is_none());
    let rows: Vec<(Vec<f64>, usize, bool)> =
        taken.filter_map(|sample| Some((probabilities(sample)?, sample.key, sample.correct))).collect();
    if rows.is_empty() {
        return None;
    }
    let found = crate::calibration::Calibration::of_rows("", &rows);
    let bin = |bin: &crate::calibration::Bin| Bin {
        confidence: bin.confidence,
        right: bin.accuracy,
        interval: wilson(bin.accuracy, bin.n as f64),
        n: bin.n,
    };
    Some(Calibration { bins: found.bins.iter().map(bin).collect(), error: found.ece, n: found.n })
}

/// Questions by how many of their votes went to the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// A bar's name, its questions that were right and those that were wrong; the fewest votes first.
    pub bars: Vec<(String, usize, usize)>,
    /// Questions in all.
    pub n: usize,
}

/// How the votes of `samples` fell; `None` where no question has several. By number of votes where all questions have the same, few
/// one; by tenths otherwise.
pub fn agreement<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Option<Agreement> {
    let voted: Vec<&Sample> = samples.into_iter().filter(|sample| sample.votes.len() > 1).collect();
    let n_votes = voted.first()?.votes.len();
    let by_number = n_votes <= N_BINS && voted.iter().all(|sample| sample.votes.len() == n_votes);
    let n_bars = if by_number { n_votes } else { N_BINS };
    let mut bars: Vec<(String, usize, usize)> = (0..=n_bars)
        .map(|bar| match (bar, by_number) {
            (0, _) => "no answer".to_owned(),
            (bar, true) => format!("{bar} of {n_votes}"),
            (bar, false) => format!("up to {} %", 100 * bar / N_BINS),
        })
        .map(|name| (name, 0, 0))
        .collect();
    for sample in &voted {
        let bar = (n_agree(sample) * n_bars).div_ceil(sample.votes.len());
        let (_, right, wrong) = &mut bars[bar];
        *(if sample.correct { right } else { wrong }) += 1;
    }
    Some(Agreement { bars, n: voted.len() })
}

/// How often each shown position was chosen and held the key, summed over tasks: (chosen, key).
pub fn positions<'a>(counts: impl IntoIterator<Item = &'a Counts>) -> Vec<(usize, usize)> {
    let mut sums: Vec<(usize, usize)> = Vec::new();
    for one in counts {
        sums.resize(sums.len().max(one.chosen_positions.len()), (0, 0));
        let pairs = one.chosen_positions.iter().zip(&one.key_positions);
        sums.iter_mut().zip(pairs).for_each(|(sum, (chosen, key))| *sum = (sum.0 + chosen, sum.1 + key));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(json: serde_json::Value) -> Sample {
        let mut row = serde_json::json!({ "task": "t", "id": "1", "index": 0, "subject": "", "n_choices": 4, "key": 0,
            "predicted": 0, "correct": true, "prompt_sha256": "" });
        json.as_object().unwrap().iter().for_each(|(key, value)| row[key] = value.clone());
        serde_json::from_value(row).unwrap()
    }

    fn scored(logps: &[f64], predicted: usize, correct: bool) -> Sample {
        let choices: Vec<_> =
            logps.iter().map(|logp| serde_json::json!({ "ids": [], "logps": [], "logp": logp })).collect();
        sample(serde_json::json!({ "choices": choices, "predicted": predicted, "correct": correct }))
    }

    fn voted(answers: &[Option<usize>], predicted: Option<usize>, correct: bool) -> Sample {
        let vote = |answer: &Option<usize>| serde_json::json!({ "order": [0, 1, 2, 3], "shots": [], "text": "", "finish_reason": "stop", "answer": answer });
        let votes: Vec<_> = answers.iter().map(vote).collect();
        sample(serde_json::json!({ "votes": votes, "predicted": predicted, "correct": correct }))
    }

    /// By hand: softmax of (ln 3, 0, ln 2) is (3, 1, 2) / 6.
    #[test]
    fn confidence_is_the_softmax_of_the_answer_or_its_share_of_all_votes() {
        let found = confidence(&scored(&[3f64.ln(), 0.0, 2f64.ln()], 0, true)).unwrap();
        assert!((found - 0.5).abs() < 1e-12);
        assert_eq!(confidence(&scored(&[-1000.0, -2000.0], 0, true)), Some(1.0));
        assert_eq!(confidence(&voted(&[Some(1), Some(1), None, Some(0), None], Some(1), false)), Some(0.4));
        assert_eq!(confidence(&voted(&[None, None], None, false)), None);
        assert_eq!(confidence(&voted(&[Some(1)], Some(1), false)), None, "one vote says nothing of how sure");
    }

    /// By hand: one question without an answer, three answers of confidence 0.6 with two right, one of 1.0 and wrong: bins of 1, 3 and 1;
    /// the error is (0 + 3 |2/3 - 0.6| + |0 - 1|) / 5 = (0.2 + 1) / 5 = 0.24.
    #[test]
    fn calibration_bins_answers_by_confidence_and_weighs_the_error_by_their_number() {
        let three = [Some(0), Some(0), Some(0), None, Some(1)];
        let mut samples =
            vec![voted(&three, Some(0), true), voted(&three, Some(0), true), voted(&three, Some(0), false)];
        samples.push(voted(&[Some(0); 5], Some(0), false));
        samples.push(voted(&[None; 5], None, false));
        let found = calibration(&samples).unwrap();
        assert_eq!(found.bins.iter().map(|bin| bin.n).collect::<Vec<_>>(), [1, 3, 1]);
        assert!((found.bins[1].right - 2.0 / 3.0).abs() < 1e-12 && (found.bins[1].confidence - 0.6).abs() < 1e-12);
        assert!((found.error - 0.24).abs() < 1e-12 && found.n == 5, "{found:?}");
        assert_eq!(calibration(&[voted(&[Some(0)], Some(0), true)]), None);
    }

    #[test]
    fn agreement_counts_questions_by_votes_for_the_answer_or_by_tenths_where_numbers_differ() {
        let mut samples = vec![
            voted(&[Some(0), Some(0), Some(1)], Some(0), true),
            voted(&[Some(1), Some(1), Some(1)], Some(1), false),
            voted(&[None, None, None], None, false),
        ];
        let found = agreement(&samples).unwrap();
        let bar = |name: &str, right, wrong| (name.to_owned(), right, wrong);
        assert_eq!(found.bars, [bar("no answer", 0, 1), bar("1 of 3", 0, 0), bar("2 of 3", 1, 0), bar("3 of 3", 0, 1)]);
        samples.push(voted(&[Some(0), Some(1)], Some(0), true));
        let found = agreement(&samples).unwrap();
        assert_eq!((found.bars.len(), found.n), (11, 4));
        assert_eq!(found.bars[5], bar("up to 50 %", 1, 0), "1 of 2");
        assert_eq!(found.bars[7], bar("up to 70 %", 1, 0), "2 of 3 is 67 %");
        assert_eq!(agreement(&[scored(&[0.0, 1.0], 1, true)]), None);
    }

    #[test]
    fn positions_of_tasks_with_other_numbers_of_options_add_up() {
        let counts = |chosen: &[usize], key: &[usize]| Counts {
            chosen_positions: chosen.to_vec(),
            key_positions: key.to_vec(),
            ..Counts::of(&[scored(&[0.0, 1.0], 1, true)])
        };
        let found = positions([&counts(&[1, 2], &[2, 1]), &counts(&[3, 4, 5], &[4, 4, 4])]);
        assert_eq!(found, [(4, 6), (6, 5), (5, 4)]);
    }
}
