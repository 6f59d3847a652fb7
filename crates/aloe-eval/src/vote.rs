//! Majority vote over the samples of one question.
//!
//! Written rule: the option with the most votes; of several, the one that was voted for first (prompt_engine's rule);
//! unparsed samples do not vote; no vote at all is no answer, which counts as wrong.

use crate::Vote;

/// The outcome of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The elected option.
    pub answer: Option<usize>,
    /// Whether another option had as many votes.
    pub tie: bool,
}

/// Counts `votes` (one per sample, in sample order).
pub fn majority(votes: &[Option<usize>]) -> Outcome {
    let mut tally: Vec<(usize, usize)> = Vec::new(); // (option, votes), in order of first vote
    for &option in votes.iter().flatten() {
        match tally.iter_mut().find(|(known, _)| *known == option) {
            Some((_, n_votes)) => *n_votes += 1,
            None => tally.push((option, 1)),
        }
    }
    let most = tally.iter().map(|(_, n_votes)| *n_votes).max();
    let winners: Vec<usize> = tally.iter().filter(|(_, n)| Some(*n) == most).map(|(option, _)| *option).collect();
    Outcome { answer: winners.first().copied(), tie: winners.len() > 1 }
}

/// The outcome of a question's samples. Those that were asked again stand behind those that answered earlier, as in prompt_engine's files:
/// of tied options the one that was read first wins.
pub(crate) fn elected(votes: &[Vote]) -> Outcome {
    let mut by_pass: Vec<&Vote> = votes.iter().collect();
    by_pass.sort_by_key(|vote| vote.n_retries);
    majority(&by_pass.into_iter().map(|vote| vote.answer).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(answer: usize, n_retries: usize) -> Vote {
        serde_json::from_value(serde_json::json!({
            "order": [], "shots": [], "text": "", "finish_reason": "stop", "answer": answer, "n_retries": n_retries,
        }))
        .unwrap()
    }

    #[test]
    fn a_sample_that_was_asked_again_votes_after_those_that_answered_at_once() {
        assert_eq!(elected(&[vote(2, 1), vote(1, 0)]), Outcome { answer: Some(1), tie: true });
        assert_eq!(elected(&[vote(2, 0), vote(1, 0)]), Outcome { answer: Some(2), tie: true });
    }

    fn check(votes: &[Option<usize>], answer: Option<usize>, tie: bool) {
        assert_eq!(majority(votes), Outcome { answer, tie }, "{votes:?}");
    }

    #[test]
    fn the_majority_wins_and_a_tie_goes_to_the_first_seen() {
        check(&[Some(2), Some(1), Some(1)], Some(1), false);
        check(&[Some(3), Some(1), Some(1), Some(3)], Some(3), true);
        check(&[None, Some(1), Some(0), None], Some(1), true);
    }

    #[test]
    fn unparsed_samples_do_not_vote_and_no_vote_is_no_answer() {
        check(&[None, None, Some(2)], Some(2), false);
        check(&[None, None], None, false);
        check(&[], None, false);
    }
}
