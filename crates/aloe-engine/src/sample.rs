//! From rows of logits to tokens: penalty, temperature, top-k, top-p, min-p, then one draw each.
//!
//! The order is that of transformers' logits processors and warpers. A draw uses one value of the caller's stream, so
//! that a sample depends on (weights, ids, seed, id, sample number) alone. Tokens are ranked only as far as the draw needs.

use crate::Sampling;
use aloe_tensor::{Device, ops::distribution};
use std::sync::OnceLock;

/// One row of logits `[V]` and how its token is drawn.
pub(crate) struct Draw<'a> {
    pub(crate) logits: &'a [f32],
    /// The ids of prompt and answer so far, for the repetition penalty.
    pub(crate) seen: &'a [u32],
    pub(crate) sampling: &'a Sampling,
    /// A number in [0, 1); unused when greedy.
    pub(crate) uniform: f64,
}

/// The tokens drawn, each with its log-probability under the unmodified logits.
///
/// Greedy (temperature 0) takes the highest logit after the penalty; the lowest id wins a tie.
pub(crate) fn draw_tokens(device: &Device, draws: &[Draw<'_>]) -> Vec<(u32, f32)> {
    let tokens: Vec<OnceLock<(u32, f32)>> = draws.iter().map(|_| OnceLock::new()).collect();
    device.for_each(draws.len(), &|at| {
        tokens[at].get_or_init(|| draws[at].token(device));
    });
    tokens.into_iter().map(|token| token.into_inner().expect("each row was drawn")).collect()
}

impl Draw<'_> {
    fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0
    }

    /// Whether the token is drawn from other numbers than the plain log-probabilities.
    fn is_changed(&self) -> bool {
        self.sampling.repetition_penalty != 1.0 || !(self.is_greedy() || self.sampling.temperature == 1.0)
    }

    /// Logits after penalty and temperature.
    fn scores(&self) -> Vec<f32> {
        let mut scores = self.logits.to_vec();
        penalise(&mut scores, self.seen, self.sampling.repetition_penalty);
        if !self.is_greedy() {
            scores.iter_mut().for_each(|score| *score /= self.sampling.temperature);
        }
        scores
    }

    fn token(&self, device: &Device) -> (u32, f32) {
        let lse = distribution::log_sum_exp(device, self.logits);
        let token = match (self.is_greedy(), self.is_changed()) {
            // Rounding in the softmax may make two logits alike: the logits themselves decide.
            (true, false) => argmax(self.logits),
            (true, true) => argmax(&self.scores()),
            (false, false) => self.token_of(device, self.logits.to_vec(), lse),
            (false, true) => {
                let scores = self.scores();
                let lse = distribution::log_sum_exp(device, &scores);
                self.token_of(device, scores, lse)
            }
        };
        (token, (f64::from(self.logits[token as usize]) - lse) as f32)
    }

    /// A token of the distribution of `scores`, whose log-sum-exp is given.
    fn token_of(&self, device: &Device, scores: Vec<f32>, lse: f64) -> u32 {
        let mut logps = scores;
        distribution::subtract_lse(device, &mut logps, lse);
        draw(device, &logps, self.sampling, self.uniform)
    }
}

/// The index of the highest value; the lowest index wins a tie.
pub(crate) fn argmax(values: &[f32]) -> u32 {
    let highest = highest(values);
    values.iter().position(|&value| value == highest).unwrap_or(0) as u32
}

/// The `n` most probable tokens of a row of logits `[V]`, most probable first (the lowest id first among equals), with their
/// log-probabilities as [`draw_tokens`] gives them.
pub(crate) fn most_probable(device: &Device, logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let lse = distribution::log_sum_exp(device, logits);
    let logp = |id: u32| (f64::from(logits[id as usize]) - lse) as f32;
    highest_ids(logits, n).into_iter().map(|id| (id, logp(id))).collect()
}

/// The indices of the `n` highest values, highest first; the lowest index first among equals.
pub(crate) fn highest_ids(values: &[f32], n: usize) -> Vec<u32> {
    if n == 0 {
        return Vec::new();
    }
    let mut found: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    let mut floor = f32::NEG_INFINITY;
    for (id, &value) in values.iter().enumerate() {
        if found.len() == n && value <= floor {
            continue;
        }
        let at = found.partition_point(|&(_, other)| other >= value);
        found.insert(at, (id as u32, value));
        found.truncate(n);
        if let (true, Some(last)) = (found.len() == n, found.last()) {
            floor = last.1;
        }
    }
    found.into_iter().map(|(id, _)| id).collect()
}

/// The highest value, in lanes so that the compiler can use vectors.
fn highest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
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

/// The tokens of a distribution, most probable first (the lowest id first among equals), ranked a step at a time.
struct Ranked<'a> {
    logps: &'a [f32],
    highest: f32,
    sorted: Vec<(u32, f32)>,
    n_steps: usize,
}

impl Ranked<'_> {
    /// How far below the highest log-probability each step reaches.
    const STEPS: [f32; 9] = [1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 28.0, f32::INFINITY];

    /// The token of a rank and its probability; `None` past the last token that has one.
    fn get(&mut self, rank: usize) -> Option<(u32, f64)> {
        while rank >= self.sorted.len() {
            let floor = self.highest - Self::STEPS.get(self.n_steps)?;
            let ceiling = if self.n_steps == 0 { f32::INFINITY } else { self.highest - Self::STEPS[self.n_steps - 1] };
            let from = self.sorted.len();
            collect_within(self.logps, floor, ceiling, |id, logp| self.sorted.push((id as u32, logp)));
            sort(&mut self.sorted[from..]);
            self.n_steps += 1;
        }
        let (id, logp) = self.sorted[rank];
        Some((id, f64::from(logp).exp()))
    }
}

/// Keeps top-k, then of these the smallest set that reaches top-p (Holtzman et al. 2020), then what min-p leaves; at least
/// one. Draws among them by their probabilities.
fn draw(device: &Device, logps: &[f32], sampling: &Sampling, uniform: f64) -> u32 {
    // Without any truncation the whole distribution sums to 1 and need not be ranked.
    if sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p == 0.0 {
        return draw_of_all(device, logps, uniform);
    }
    let mut ranked = Ranked { logps, highest: highest(logps), sorted: Vec::new(), n_steps: 0 };
    let k = if sampling.top_k == 0 { usize::MAX } else { sampling.top_k };
    let total = if k == usize::MAX { 1.0 } else { sum(&mut ranked, k) };
    let first = ranked.get(0).map_or(0.0, |one| one.1);
    let (mut n_kept, mut kept) = (0, 0.0);
    while n_kept < k {
        let Some((_, probability)) = ranked.get(n_kept) else { break };
        if n_kept > 0 && probability < f64::from(sampling.min_p) * first {
            break;
        }
        n_kept += 1;
        kept += probability;
        if sampling.top_p < 1.0 && kept / total >= f64::from(sampling.top_p) {
            break;
        }
    }
    pick(&mut ranked, n_kept, uniform * kept)
}

fn sum(ranked: &mut Ranked<'_>, n: usize) -> f64 {
    (0..n).map_while(|rank| ranked.get(rank)).map(|one| one.1).sum()
}

/// The first of the `n` tokens at which the running sum passes `target`.
fn pick(ranked: &mut Ranked<'_>, n: usize, target: f64) -> u32 {
    let (mut sum, mut last) = (0.0, 0);
    for rank in 0..n {
        let Some((id, probability)) = ranked.get(rank) else { break };
        sum += probability;
        last = id;
        if target < sum {
            break;
        }
    }
    last
}

/// Most probable first; the lowest id first among equals.
fn sort(tokens: &mut [(u32, f32)]) {
    tokens.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

/// Visits the finite values in `floor..ceiling`, in order of their index.
fn collect_within(values: &[f32], floor: f32, ceiling: f32, mut visit: impl FnMut(usize, f32)) {
    let within = |value: f32| value >= floor && value < ceiling && value > f32::NEG_INFINITY;
    for (part, chunk) in values.chunks(64).enumerate() {
        // Counted first, which the compiler does in vectors: most chunks hold none.
        if chunk.iter().map(|value| u32::from(within(*value))).sum::<u32>() == 0 {
            continue;
        }
        for (i, value) in chunk.iter().enumerate().filter(|(_, value)| within(**value)) {
            visit(part * 64 + i, *value);
        }
    }
}

/// Tokens that are sorted at once.
const FEW: usize = 192;

/// The token at which the running sum, over tokens most probable first, passes `uniform`. Nothing is ranked but the tokens
/// of about its probability: sums above a few floors say between which two it lies, and so again for what lies there. These
/// sums are in f32 and only guide; what decides is summed in f64.
fn draw_of_all(device: &Device, logps: &[f32], uniform: f64) -> u32 {
    let mut found = Within { before: 0.0, ceiling: f32::INFINITY, ids: Vec::new(), logps: Vec::new() };
    found = narrow(device, logps, 1.0, uniform, found);
    let mut width = 1.0;
    // Equal ones cannot be told apart by any floor.
    while found.ids.len() > FEW && width > 1e-4 {
        width /= distribution::FLOORS as f32;
        let logps = std::mem::take(&mut found.logps);
        found = narrow(device, &logps, width, uniform, found);
    }
    let mut sum = 0.0;
    collect_within(logps, found.ceiling, f32::INFINITY, |_, logp| sum += f64::from(logp).exp());
    let mut tokens: Vec<(u32, f32)> = found.ids.into_iter().zip(found.logps).collect();
    sort(&mut tokens);
    let is_below = uniform >= sum;
    let passed = |token: &&(u32, f32)| {
        sum += f64::from(token.1).exp();
        uniform < sum
    };
    match tokens.iter().find(passed) {
        Some(token) if is_below => token.0,
        // The guides were off by their rounding, or the whole sum is below `uniform`.
        _ => pick(&mut Ranked { logps, highest: highest(logps), sorted: Vec::new(), n_steps: 0 }, usize::MAX, uniform),
    }
}

/// Tokens of about one probability: all those below `ceiling` and above some floor.
struct Within {
    /// About the sum of all probabilities from `ceiling` up.
    before: f64,
    ceiling: f32,
    /// In order; empty for all tokens.
    ids: Vec<u32>,
    logps: Vec<f32>,
}

/// Of the tokens with these log-probabilities, those between the two floors where the sum passes `uniform`.
fn narrow(device: &Device, logps: &[f32], width: f32, uniform: f64, all: Within) -> Within {
    let floors = distribution::floors(highest(logps), width);
    let masses = distribution::masses(device, logps, &floors);
    let class = masses.iter().position(|mass| uniform < all.before + mass).unwrap_or(distribution::FLOORS - 1);
    let (before, ceiling) = if class == 0 { (0.0, all.ceiling) } else { (masses[class - 1], floors[class - 1]) };
    let mut found = Within { before: all.before + before, ceiling, ids: Vec::new(), logps: Vec::new() };
    collect_within(logps, floors[class], ceiling, |at, logp| {
        found.ids.push(all.ids.get(at).copied().unwrap_or(at as u32));
        found.logps.push(logp);
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_record::CounterRng;

    /// One row, drawn with the item's number.
    fn sample(logits: &[f32], sampling: &Sampling, item: u64) -> (u32, f32) {
        let uniform = CounterRng::new(1, "sample-test", item).uniform_f64();
        draw_tokens(&Device::cpu(1), &[Draw { logits, seen: &[], sampling, uniform }])[0]
    }

    /// Two equal ones stand in the order of their ids, also at the end of the list.
    #[test]
    fn the_most_probable_tokens_come_highest_first_and_the_lowest_id_first_among_equals() {
        let values = [0.5, 2.0, -1.0, 2.0, 0.5, 3.0];
        assert_eq!(highest_ids(&values, 4), [5, 1, 3, 0]);
        assert_eq!(highest_ids(&values, 9), [5, 1, 3, 0, 4, 2]);
        assert_eq!(highest_ids(&values, 0), [0; 0]);
        // ln softmax of [0, ln 3] is [ln 1/4, ln 3/4].
        let tops = most_probable(&Device::cpu(1), &[0.0, 3f32.ln()], 2);
        assert_eq!((tops[0].0, tops[1].0), (1, 0));
        assert!((tops[0].1 - 0.75f32.ln()).abs() < 1e-6 && (tops[1].1 - 0.25f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn greedy_takes_the_highest_logit_and_the_lowest_id_on_a_tie() {
        assert_eq!(sample(&[0.0, 2.0, 2.0, 1.0], &Sampling::greedy(1), 0).0, 1);
    }

    /// ln softmax of [0, ln 3] is [ln 1/4, ln 3/4].
    #[test]
    fn the_log_probability_is_that_of_the_unmodified_logits() {
        let sampling = Sampling { temperature: 0.1, ..Sampling::default() };
        let (token, logp) = sample(&[0.0, 3f32.ln()], &sampling, 0);
        assert_eq!(token, 1);
        assert!((f64::from(logp) - 0.75f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn drawn_shares_follow_the_softmax_within_five_sigma() {
        let logits = [0.0f32, 2f32.ln(), 5f32.ln()];
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut counts = [0f64; 3];
        for item in 0..8000 {
            counts[sample(&logits, &sampling, item).0 as usize] += 1.0;
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
                seen[sample(&logits, sampling, item).0 as usize] = true;
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

    /// The plain way: rank all, cut, draw. 500 rows of 300 logits with every combination of truncations.
    #[test]
    fn ranking_as_far_as_needed_draws_what_ranking_everything_draws() {
        for case in 0..500u64 {
            let mut rng = CounterRng::new(case, "rank-test", 0);
            let spread = 1.0 + 20.0 * rng.uniform();
            let logits: Vec<f32> = (0..300).map(|_| spread * rng.normal()).collect();
            let sampling = Sampling {
                temperature: 1.0,
                top_k: [0, 1, 7, 400][rng.below(4)],
                top_p: [1.0, 0.9, 0.3][rng.below(3)],
                min_p: [0.0, 0.05][rng.below(2)],
                ..Sampling::default()
            };
            let uniform = rng.uniform_f64();
            let found =
                draw_tokens(&Device::cpu(1), &[Draw { logits: &logits, seen: &[], sampling: &sampling, uniform }]);
            assert_eq!(found[0].0, plain_draw(&logits, &sampling, uniform), "case {case}: {sampling:?}");
        }
    }

    /// 20,000 logits, some of them equal: the walk down all of them, most probable first, finds the same tokens.
    #[test]
    fn narrowing_down_by_floors_draws_what_ranking_everything_draws() {
        for case in 0..60u64 {
            let mut rng = CounterRng::new(case, "narrow-test", 0);
            let spread = [0.0, 0.01, 1.0, 3.0, 12.0][rng.below(5)];
            let logits: Vec<f32> = (0..20_000).map(|_| (8.0 * spread * rng.normal()).round() / 8.0).collect();
            let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
            for uniform in [0.0, rng.uniform_f64(), rng.uniform_f64(), 1.0 - 1e-5] {
                let draw = Draw { logits: &logits, seen: &[], sampling: &sampling, uniform };
                let found = draw_tokens(&Device::cpu(1), &[draw])[0].0;
                // Far down the list the rounding of the log-probabilities to f32 shows, so they are what is ranked.
                let mut logps = aloe_tensor::Tensor::from_f32(&[1, logits.len()], logits.clone());
                aloe_tensor::ops::log_softmax_rows(&Device::cpu(1), &mut logps);
                // They sum to one but for that rounding; the plain way divides by their sum.
                let total: f64 = logps.as_f32().iter().map(|logp| f64::from(*logp).exp()).sum();
                let expected = plain_draw(logps.as_f32(), &sampling, uniform / total);
                assert_eq!(found, expected, "case {case}, spread {spread}, {uniform}");
            }
        }
    }

    #[test]
    fn a_number_next_to_one_draws_the_least_probable_token_that_has_any_probability() {
        let logits = [3.0, f32::NEG_INFINITY, 9.0, -4.0];
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let uniform = 1.0 - f64::EPSILON;
        let draw = Draw { logits: &logits, seen: &[], sampling: &sampling, uniform };
        assert_eq!(draw_tokens(&Device::cpu(1), &[draw])[0].0, 3);
    }

    fn drawn(logits: &[f32], seen: &[u32], sampling: &Sampling, uniform: f64) -> u32 {
        draw_tokens(&Device::cpu(1), &[Draw { logits, seen, sampling, uniform }])[0].0
    }

    /// Draws at 1000 numbers that lie evenly in [0, 1) with the weights 2, 0.5, 8, 1 and 4, which are those of ids 0 to 4 before the
    /// sampling changes them; `expected` are the ids drawn, most probable first, each with its weight after that.
    fn check_drawn(sampling: Sampling, seen: &[u32], expected: &[(u32, f64)]) {
        let logits = [2f32, 0.5, 8.0, 1.0, 4.0].map(f32::ln);
        let total: f64 = expected.iter().map(|one| one.1).sum();
        let ends = expected.iter().scan(0.0, |sum, one| {
            *sum += one.1 / total;
            Some(*sum)
        });
        let ends: Vec<f64> = ends.collect();
        for k in 0..1000 {
            let uniform = (f64::from(k) + 0.5) / 1000.0;
            // Logarithms in f32 put an end off by less than this.
            if ends.iter().any(|end| (end - uniform).abs() < 1e-6) {
                continue;
            }
            let rank = ends.iter().position(|end| uniform < *end).unwrap();
            assert_eq!(drawn(&logits, seen, &sampling, uniform), expected[rank].0, "{uniform}: {sampling:?}");
        }
    }

    /// By hand. Temperature 0.5 squares the weights. top_p 0.8: 8 and 4 are 77 % of 15.5, with 2 they are 90 %. min_p 0.2 and 0.3 ask for
    /// 1.6 and 2.4. The penalty 2 halves the logarithm of 4, which becomes 2 and stands behind the 2 of the lower id, and doubles that of
    /// 0.5, which becomes 0.25; 64, 4 and 4 are its squares, of which top_k 3 and then top_p 0.9 (64 and 4 of 72 are 94 %) keep two.
    #[test]
    fn the_token_drawn_at_each_of_a_thousand_numbers_is_that_of_the_distribution_worked_by_hand() {
        let base = Sampling { temperature: 1.0, ..Sampling::default() };
        let (all, five) =
            ([(2, 8.0), (4, 4.0), (0, 2.0), (3, 1.0), (1, 0.5)], [(2, 64.0), (4, 16.0), (0, 4.0), (3, 1.0), (1, 0.25)]);
        check_drawn(base.clone(), &[], &all);
        check_drawn(Sampling { temperature: 0.5, ..base.clone() }, &[], &five);
        check_drawn(Sampling { top_k: 2, ..base.clone() }, &[], &all[..2]);
        check_drawn(Sampling { top_p: 0.8, ..base.clone() }, &[], &all[..3]);
        check_drawn(Sampling { min_p: 0.2, ..base.clone() }, &[], &all[..3]);
        check_drawn(Sampling { min_p: 0.3, ..base.clone() }, &[], &all[..2]);
        let penalised = Sampling { repetition_penalty: 2.0, ..base };
        check_drawn(penalised.clone(), &[4, 1, 4], &[(2, 8.0), (0, 2.0), (4, 2.0), (3, 1.0), (1, 0.25)]);
        let many = Sampling { temperature: 0.5, top_k: 3, top_p: 0.9, ..penalised };
        check_drawn(many.clone(), &[1, 4], &[(2, 64.0), (0, 4.0)]);
        check_drawn(Sampling { top_p: 1.0, ..many }, &[1, 4], &[(2, 64.0), (0, 4.0), (4, 4.0)]);
    }

    /// Weights 1, r, r^2, ... of 4096 tokens in mixed order: at `u` the token of rank ln(1 - u (1 - r^4096)) / ln(r), rounded down, is
    /// drawn. The class that narrowing goes on with holds it: a shifted choice would draw the same by the way back, which ranks all.
    #[test]
    fn a_geometric_distribution_is_drawn_by_its_inverse_and_narrowing_chooses_the_class_that_holds_the_token() {
        const V: u32 = 4096;
        let (id_of, ln_r) = (|rank: u32| (rank * 1237 + 5) % V, -0.01f64);
        let mut logits = vec![0f32; V as usize];
        (0..V).for_each(|rank| logits[id_of(rank) as usize] = (ln_r * f64::from(rank)) as f32);
        let mut logps = aloe_tensor::Tensor::from_f32(&[1, V as usize], logits.clone());
        aloe_tensor::ops::log_softmax_rows(&Device::cpu(1), &mut logps);
        let mut n_checked = 0;
        for k in 0..997 {
            let uniform = (f64::from(k) + 0.5) / 997.0;
            let place = (1.0 - uniform * (1.0 - (ln_r * f64::from(V)).exp())).ln() / ln_r;
            // Log-probabilities in f32 move the end of a token by less than a thousandth of the token.
            if (place - place.round()).abs() < 1e-3 {
                continue;
            }
            n_checked += 1;
            let expected = id_of(place as u32);
            for temperature in [1.0, 2.0] {
                // Logits twice as high at temperature 2 are the same distribution.
                let logits: Vec<f32> = logits.iter().map(|logit| logit * temperature).collect();
                let sampling = Sampling { temperature, ..Sampling::default() };
                assert_eq!(drawn(&logits, &[], &sampling, uniform), expected, "{uniform}");
            }
            for width in [1.0, 0.1] {
                let all = Within { before: 0.0, ceiling: f32::INFINITY, ids: Vec::new(), logps: Vec::new() };
                let found = narrow(&Device::cpu(1), logps.as_f32(), width, uniform, all);
                assert!(found.ids.contains(&expected), "{uniform}, {width}: not among {} tokens", found.ids.len());
            }
        }
        assert!(n_checked > 980, "{n_checked}");
    }

    fn plain_draw(logits: &[f32], sampling: &Sampling, uniform: f64) -> u32 {
        let mut all: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(i, &l)| (i as u32, f64::from(l).exp())).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if sampling.top_k > 0 {
            all.truncate(sampling.top_k);
        }
        let total: f64 = all.iter().map(|one| one.1).sum();
        let mut sum = 0.0;
        let within = all.iter().take_while(|one| {
            let before = sum;
            sum += one.1;
            sampling.top_p >= 1.0 || before / total < f64::from(sampling.top_p)
        });
        let n = within.count();
        all.truncate(n);
        let first = all[0].1;
        all.retain(|one| one.1 >= f64::from(sampling.min_p) * first);
        let total: f64 = all.iter().map(|one| one.1).sum();
        let mut sum = 0.0;
        let passed = |one: &&(u32, f64)| {
            sum += one.1;
            uniform * total < sum
        };
        all.iter().find(passed).map_or(all[all.len() - 1].0, |one| one.0)
    }
}
