//! From one row of logits to one token: penalty, temperature, top-k, top-p, min-p, then one draw.
//!
//! The order is that of transformers' logits processors and warpers. A draw uses one value of the caller's stream, so
//! that a sample depends on (weights, ids, seed, id, sample number) alone.

use crate::Sampling;
use aloe_record::CounterRng;

/// The token drawn and its log-probability under the unmodified logits.
///
/// `logits` `[V]` f32; `seen` are the ids of prompt and answer so far, for the repetition penalty. Greedy (temperature 0)
/// takes the highest logit after the penalty; the lowest id wins a tie.
pub fn sample_token(logits: &[f32], seen: &[u32], sampling: &Sampling, rng: &mut CounterRng) -> (u32, f32) {
    let mut scores = logits.to_vec();
    penalise(&mut scores, seen, sampling.repetition_penalty);
    let token = if sampling.temperature == 0.0 { argmax(&scores) } else { draw(&scores, sampling, rng) };
    (token, logp_of(logits, token) as f32)
}

/// The index of the highest value; the lowest index wins a tie.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, &value) in logits.iter().enumerate() {
        if value > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// The log-probability of `token`: its logit less the log of the sum of exponentials, summed in f64.
pub(crate) fn logp_of(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}

/// Divides positive and multiplies negative logits of every id seen, once per id (Keskar et al. 2019, CTRL).
fn penalise(scores: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut ids = seen.to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
        }
    }
}

fn draw(scores: &[f32], sampling: &Sampling, rng: &mut CounterRng) -> u32 {
    let mut ranked: Vec<(u32, f32)> =
        scores.iter().enumerate().map(|(id, &score)| (id as u32, score / sampling.temperature)).collect();
    let by_rank = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if sampling.top_k > 0 && sampling.top_k < ranked.len() {
        ranked.select_nth_unstable_by(sampling.top_k - 1, by_rank);
        ranked.truncate(sampling.top_k);
    }
    let max = ranked.iter().map(|entry| entry.1).fold(f32::NEG_INFINITY, f32::max);
    let mut weighted: Vec<(u32, f64)> =
        ranked.into_iter().map(|(id, score)| (id, f64::from(score - max).exp())).filter(|one| one.1 > 0.0).collect();
    weighted.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    nucleus(&mut weighted, f64::from(sampling.top_p));
    // Weights are relative to the most probable token, which every truncation keeps.
    weighted.retain(|one| one.1 >= f64::from(sampling.min_p));
    pick(&weighted, rng.uniform_f64())
}

/// Keeps the smallest prefix whose share reaches `top_p` (Holtzman et al. 2020); at least one.
fn nucleus(weighted: &mut Vec<(u32, f64)>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let total: f64 = weighted.iter().map(|entry| entry.1).sum();
    let mut sum = 0.0;
    let kept = weighted.iter().position(|&(_, weight)| {
        sum += weight / total;
        sum >= top_p
    });
    weighted.truncate(kept.map_or(weighted.len(), |last| last + 1));
}

fn pick(weighted: &[(u32, f64)], uniform: f64) -> u32 {
    let total: f64 = weighted.iter().map(|entry| entry.1).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    for &(id, weight) in weighted {
        sum += weight;
        if target < sum {
            return id;
        }
    }
    weighted.last().map_or(0, |entry| entry.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng(item: u64) -> CounterRng {
        CounterRng::new(1, "sample-test", item)
    }

    #[test]
    fn greedy_takes_the_highest_logit_and_the_lowest_id_on_a_tie() {
        assert_eq!(sample_token(&[0.0, 2.0, 2.0, 1.0], &[], &Sampling::greedy(1), &mut rng(0)).0, 1);
    }

    /// ln softmax of [0, ln 3] is [ln 1/4, ln 3/4].
    #[test]
    fn the_log_probability_is_that_of_the_unmodified_logits() {
        let sampling = Sampling { temperature: 0.1, ..Sampling::default() };
        let (token, logp) = sample_token(&[0.0, 3f32.ln()], &[], &sampling, &mut rng(0));
        assert_eq!(token, 1);
        assert!((f64::from(logp) - 0.75f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn drawn_shares_follow_the_softmax_within_five_sigma() {
        let logits = [0.0f32, 2f32.ln(), 5f32.ln()];
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut counts = [0f64; 3];
        for item in 0..8000 {
            counts[sample_token(&logits, &[], &sampling, &mut rng(item)).0 as usize] += 1.0;
        }
        for (count, share) in counts.iter().zip([0.125, 0.25, 0.625]) {
            let sigma = (8000.0f64 * share * (1.0 - share)).sqrt();
            assert!((count - 8000.0 * share).abs() < 5.0 * sigma, "{counts:?}");
        }
    }

    /// Shares 0.5, 0.3, 0.2: top_p 0.6 keeps the first two, top_k 1 the first, min_p 0.5 the first two (0.3 / 0.5 = 0.6).
    #[test]
    fn truncations_keep_exactly_the_tokens_of_their_definitions() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let kept = |sampling: &Sampling| {
            let mut seen = [false; 3];
            for item in 0..400 {
                seen[sample_token(&logits, &[], sampling, &mut rng(item)).0 as usize] = true;
            }
            seen
        };
        let base = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(kept(&Sampling { top_p: 0.6, ..base.clone() }), [true, true, false]);
        assert_eq!(kept(&Sampling { top_k: 1, ..base.clone() }), [true, false, false]);
        assert_eq!(kept(&Sampling { min_p: 0.5, ..base.clone() }), [true, true, false]);
        // Nucleus first: 0.5 and 0.3 reach 0.8; then 0.3 / 0.5 is below 0.7. The other order would keep one token of one.
        assert_eq!(kept(&Sampling { top_p: 0.8, min_p: 0.7, ..base.clone() }), [true, false, false]);
        assert_eq!(kept(&base), [true, true, true]);
    }

    /// 2 / 2 = 1 falls below 1.5; -1 * 2 = -2.
    #[test]
    fn the_repetition_penalty_divides_positive_and_multiplies_negative_logits_once() {
        let mut scores = [2.0, 1.5, -1.0];
        penalise(&mut scores, &[0, 0, 2], 2.0);
        assert_eq!(scores, [1.0, 1.5, -2.0]);
    }
}
