//! Each step on four numbers by hand, the plain twin, and the statistics of random masks.

use super::*;
use crate::tile::{TILE, round_bf16};
use aloe_model::FileDtype;
use aloe_record::CounterRng;

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn tensor(bytes: &[u8]) -> TensorBytes<'_> {
    TensorBytes { dtype: FileDtype::F32, bytes }
}

fn parameters<'a>(method: Method, weights: &'a [f64], densities: &'a [f64]) -> Consensus<'a> {
    Consensus {
        method,
        weights,
        densities,
        normalize: method == Method::Ties,
        lambda: 1.0,
        rescale: None,
        dtype: MergeDtype::Float32,
        seed: 3,
    }
}

fn merged(parameters: &Consensus<'_>, base: &[f32], tuned: &[&[f32]]) -> (Vec<f32>, TensorStats) {
    let base_bytes = bytes(base);
    let tuned_bytes: Vec<Vec<u8>> = tuned.iter().map(|values| bytes(values)).collect();
    let tuned: Vec<TensorBytes<'_>> = tuned_bytes.iter().map(|bytes| tensor(bytes)).collect();
    let mut out = vec![0.0; base.len()];
    let stats = consensus(parameters, "t", tensor(&base_bytes), &tuned, 2, &mut out);
    (out, stats)
}

/// Base 10 everywhere. Changes: a = (4, -1, 2, 1), b = (-1, 3, 2, -4). Density 1/2 keeps the two largest of each: a (4, 0, 2, 0),
/// b (0, 3, 0, -4). Votes of the sums: +4, +3, +2, -4, so a alone in columns 0 and 2, b alone in 1 and 3. Normalized by its own weight
/// each change returns whole: (14, 13, 12, 6).
#[test]
fn the_ties_trim_keeps_the_largest_half_of_each_change() {
    let (out, stats) = merged(
        &parameters(Method::Ties, &[0.5, 0.5], &[0.5, 0.5]),
        &[10.0; 4],
        &[&[14.0, 9.0, 12.0, 11.0], &[9.0, 13.0, 12.0, 6.0]],
    );
    assert_eq!(out, [14.0, 13.0, 12.0, 6.0]);
    assert_eq!((stats.n_kept, stats.n_contested), (vec![2, 2], 0));
    assert_eq!(stats.norms, [22.0f64.sqrt(), 30.0f64.sqrt()]);
    assert_eq!(stats.base_norm, 20.0);
}

/// No trim. Changes a = (4, -1, 2, 0), b = (-1, -3, 2, -4), weights 1 and 2: weighted a = (4, -1, 2, 0), b = (-2, -6, 4, -8). Votes +2, -7,
/// +6, -8. Column 0: only a agrees, 4 / 1. Column 1: both, -7 / 3. Column 2: both, 6 / 3. Column 3: b, -8 / 2; a's zero never agrees.
#[test]
fn the_sign_is_elected_by_weighted_sum_and_zero_never_agrees() {
    let base = [0.0; 4];
    let tuned: [&[f32]; 2] = [&[4.0, -1.0, 2.0, 0.0], &[-1.0, -3.0, 2.0, -4.0]];
    let mut ties = parameters(Method::Ties, &[1.0, 2.0], &[1.0, 1.0]);
    let (out, stats) = merged(&ties, &base, &tuned);
    assert_eq!(out, [4.0, -7.0 / 3.0, 2.0, -4.0]);
    assert_eq!((stats.n_contested, stats.n_agreeing), (3, 2));
    ties.normalize = false;
    assert_eq!(merged(&ties, &base, &tuned).0, [4.0, -7.0, 6.0, -8.0]);
    ties.lambda = 0.5;
    assert_eq!(merged(&ties, &base, &tuned).0, [2.0, -3.5, 3.0, -4.0]);
}

/// A vote of exactly zero counts as positive (mergekit's `>= 0`; the TIES paper would ask the whole tensor): (+3, -3) gives +3.
#[test]
fn a_tied_vote_goes_to_plus_as_in_mergekit_unlike_the_paper() {
    let ties = parameters(Method::Ties, &[1.0, 1.0], &[1.0, 1.0]);
    assert_eq!(merged(&ties, &[0.0, 0.0], &[&[3.0, 0.0], &[-3.0, 0.0]]).0, [3.0, 0.0]);
}

/// The divisor's zero becomes one: weights 1 and -1 with equal signs after weighting: 2 * 1 and -2 * -1 agree on +4, divisor 0.
#[test]
fn a_divisor_of_zero_counts_as_one() {
    let ties = parameters(Method::Ties, &[1.0, -1.0], &[1.0, 1.0]);
    assert_eq!(merged(&ties, &[0.0], &[&[2.0], &[-2.0]]).0, [4.0]);
}

/// |a| sums to 1 + 2 + 3 + 4 = 10; the largest half 3 + 4 = 7 is scaled by 10 / 7.
#[test]
fn l1_rescale_restores_the_sum_of_magnitudes() {
    let mut ties = parameters(Method::Ties, &[1.0], &[0.5]);
    ties.rescale = Some(RescaleKind::L1);
    let ratio = 10.0f32 / 7.0;
    assert_eq!(merged(&ties, &[0.0; 4], &[&[1.0, -2.0, 3.0, -4.0]]).0, [0.0, 0.0, 3.0 * ratio, -4.0 * ratio]);
}

/// Which elements are kept comes from the mask; kept ones are divided by the density: 3 / 0.25 = 12 in f32, and in bfloat16 every step is
/// rounded.
#[test]
fn dare_divides_what_the_mask_keeps_by_the_density() {
    let mut dare = parameters(Method::DareTies, &[1.0], &[0.25]);
    dare.rescale = Some(RescaleKind::Density);
    let mask = crate::dare_mask(3, "t", 0, 0.25, 0..1000);
    let expected: Vec<f32> = mask.iter().map(|&kept| if kept { 13.0 } else { 1.0 }).collect();
    assert_eq!(merged(&dare, &[1.0; 1000], &[&[4.0; 1000]]).0, expected);
    dare.dtype = MergeDtype::Bfloat16;
    dare.densities = &[0.3];
    let mask = crate::dare_mask(3, "t", 0, 0.3, 0..1000);
    let kept = round_bf16(1.0 + round_bf16(3.0 / 0.3f32));
    let expected: Vec<f32> = mask.iter().map(|&kept_here| if kept_here { kept } else { 1.0 }).collect();
    assert_eq!(merged(&dare, &[1.0; 1000], &[&[4.0; 1000]]).0, expected);
}

fn normal(item: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut rng = CounterRng::new(11, "merge-test", item);
    (0..n).map(|_| rng.normal() * scale).collect()
}

/// The merge of one element after another, written from the formula without tiles, histograms or buffers.
fn plain_ties(weights: &[f64], densities: &[f64], normalize: bool, base: &[f32], tuned: &[&[f32]]) -> Vec<f32> {
    let mut deltas: Vec<Vec<f32>> =
        tuned.iter().map(|x| x.iter().zip(base).map(|(x, base)| x - base).collect()).collect();
    for (delta, density) in deltas.iter_mut().zip(densities) {
        let k = ((density * delta.len() as f64) as usize).max(1);
        let mut order: Vec<usize> = (0..delta.len()).collect();
        order.sort_by(|&i, &j| delta[j].abs().total_cmp(&delta[i].abs()).then(i.cmp(&j)));
        order[k.min(delta.len())..].iter().for_each(|&index| delta[index] = 0.0);
    }
    (0..base.len())
        .map(|at| {
            let weighted: Vec<f32> =
                deltas.iter().zip(weights).map(|(delta, weight)| delta[at] * *weight as f32).collect();
            let sign = if weighted.iter().sum::<f32>() >= 0.0 { 1.0 } else { -1.0 };
            let agreeing: Vec<usize> = (0..weighted.len()).filter(|&model| weighted[model] * sign > 0.0).collect();
            let sum: f32 = agreeing.iter().map(|&model| weighted[model]).sum();
            let divisor: f32 = agreeing.iter().map(|&model| weights[model] as f32).sum();
            base[at] + if normalize && divisor != 0.0 { sum / divisor } else { sum }
        })
        .collect()
}

#[test]
fn tiles_and_histograms_equal_the_plain_twin_at_any_size() {
    for n in [1, 2, 3, 7, 1000, TILE, TILE + 1, 2 * TILE + 5] {
        let base = normal(0, n, 1.0);
        let mut tuned: Vec<Vec<f32>> = (1..4).map(|model| normal(model, n, 1.0)).collect();
        // Equal magnitudes across tile borders: which are kept must not depend on tiles.
        tuned[0].iter_mut().zip(&base).step_by(3).for_each(|(x, base)| *x = base + 0.5);
        let tuned: Vec<&[f32]> = tuned.iter().map(Vec::as_slice).collect();
        for (densities, normalize) in [([0.01, 0.5, 1.0], true), ([0.7, 0.999, 0.3], false)] {
            let weights = [0.5, 0.25, -0.75];
            let mut ties = parameters(Method::Ties, &weights, &densities);
            ties.normalize = normalize;
            let (out, stats) = merged(&ties, &base, &tuned);
            assert_eq!(out, plain_ties(&weights, &densities, normalize, &base, &tuned), "{n} elements");
            let expected: Vec<u64> = densities.iter().map(|density| ((density * n as f64) as u64).max(1)).collect();
            assert_eq!(stats.n_kept, expected, "{n} elements");
        }
    }
}

/// A million elements with change d: a kept one becomes d / p, so that the mean of the merged change is d with variance
/// d^2 (1 - p) / p per element.
#[test]
fn dare_is_unbiased_within_five_sigma() {
    let n = 1_000_000;
    for density in [0.1, 0.5, 0.9] {
        let densities = [density];
        let mut dare = parameters(Method::DareTies, &[1.0], &densities);
        dare.rescale = Some(RescaleKind::Density);
        let (out, stats) = merged(&dare, &vec![0.0; n], &[&vec![0.01; n]]);
        let kept = stats.n_kept[0] as f64 / n as f64;
        let sigma = (density * (1.0 - density) / n as f64).sqrt();
        assert!((kept - density).abs() < 5.0 * sigma, "kept {kept} of {density}");
        let mean = out.iter().map(|&value| f64::from(value)).sum::<f64>() / n as f64;
        let sigma = 0.01 * ((1.0 - density) / density / n as f64).sqrt();
        assert!((mean - 0.01).abs() < 5.0 * sigma, "mean {mean} at density {density}");
    }
}

/// Independent masks: both models keep an element with probability p * q.
#[test]
fn masks_of_two_models_and_of_two_tensors_are_independent_within_five_sigma() {
    let n = 1_000_000;
    let (p, q) = (0.5, 0.3);
    let a = crate::dare_mask(3, "t", 0, p, 0..n);
    for other in [
        crate::dare_mask(3, "t", 1, q, 0..n),
        crate::dare_mask(3, "u", 0, q, 0..n),
        crate::dare_mask(4, "t", 0, q, 0..n),
    ] {
        let both = a.iter().zip(&other).filter(|(a, b)| **a && **b).count() as f64 / n as f64;
        assert!((both - p * q).abs() < 5.0 * (p * q * (1.0 - p * q) / n as f64).sqrt(), "{both}");
    }
}

#[test]
fn a_mask_can_be_computed_for_any_range_alone() {
    let whole = crate::dare_mask(3, "t", 2, 0.4, 0..300);
    for range in [0..1, 1..2, 3..9, 7..300, 128..131] {
        assert_eq!(crate::dare_mask(3, "t", 2, 0.4, range.clone()), whole[range]);
    }
    assert!(crate::dare_mask(3, "t", 2, 1.0, 0..100).iter().all(|&kept| kept));
}

/// 1 + 2^-9 lies between the bfloat16 values 1 and 1 + 2^-7 and rounds to 1: the change is lost when it is read, as in torch.
#[test]
fn inputs_are_rounded_to_the_merge_dtype_before_the_difference() {
    let mut ties = parameters(Method::Ties, &[1.0], &[1.0]);
    let tuned: &[f32] = &[1.0 + 2.0f32.powi(-9), 1.0 + 2.0f32.powi(-7)];
    assert_eq!(merged(&ties, &[1.0, 1.0], &[tuned]).0, tuned);
    ties.dtype = MergeDtype::Bfloat16;
    assert_eq!(merged(&ties, &[1.0, 1.0], &[tuned]).0, [1.0, 1.0 + 2.0f32.powi(-7)]);
}

#[test]
fn half_precision_files_read_as_their_values() {
    // 1.5 as f16 is 0x3e00, as bfloat16 0x3fc0; -0.25 is 0xb400 and 0xbe80.
    let (mut half, mut brain) = ([0.0; 2], [0.0; 2]);
    TensorBytes { dtype: FileDtype::F16, bytes: &[0x00, 0x3e, 0x00, 0xb4] }.read(0, MergeDtype::Float32, &mut half);
    TensorBytes { dtype: FileDtype::BF16, bytes: &[0xc0, 0x3f, 0x80, 0xbe] }.read(0, MergeDtype::Float32, &mut brain);
    assert_eq!((half, brain), ([1.5, -0.25], [1.5, -0.25]));
}

/// 2 a + 3 b over 5 in f32; a sum that is not divided.
#[test]
fn linear_is_the_weighted_mean_by_hand() {
    let (a, b) = (bytes(&[1.0, -2.0]), bytes(&[6.0, 0.5]));
    let mut out = [0.0; 2];
    crate::linear(&[2.0, 3.0], true, MergeDtype::Float32, &[tensor(&a), tensor(&b)], 1, &mut out);
    assert_eq!(out, [4.0, -0.5]);
    crate::linear(&[2.0, 3.0], false, MergeDtype::Float32, &[tensor(&a), tensor(&b)], 1, &mut out);
    assert_eq!(out, [20.0, -2.5]);
}

/// Two models that pull apart, +1 with weight 0.6 and -1 with weight 0.4, each kept with probability 1/2 and doubled. Four equally likely
/// cases: both kept, vote +1.2 - 0.8, so +1.2 remains; only the first, +1.2; only the second, -0.8; none, 0. Mean 1.6 / 4 = 0.4, mean
/// square (1.44 + 1.44 + 0.64) / 4 = 0.88, variance 0.72.
#[test]
fn dare_ties_of_two_opposed_models_has_the_mean_of_its_four_cases_within_five_sigma() {
    let n = 1_000_000;
    let mut dare = parameters(Method::DareTies, &[0.6, 0.4], &[0.5, 0.5]);
    dare.rescale = Some(RescaleKind::Density);
    let (out, stats) = merged(&dare, &vec![0.0; n], &[&vec![1.0; n], &vec![-1.0; n]]);
    let mean = out.iter().map(|&value| f64::from(value)).sum::<f64>() / n as f64;
    assert!((mean - 0.4).abs() < 5.0 * (0.72 / n as f64).sqrt(), "mean {mean}");
    assert_eq!(stats.n_agreeing, 0, "kept together, they never agree");
    let contested = stats.n_contested as f64 / n as f64;
    assert!((contested - 0.25).abs() < 5.0 * (0.25 * 0.75 / n as f64).sqrt(), "{contested}");
}

/// With the L1 rescale the sum of magnitudes survives any mask, up to the rounding of each f32 product.
#[test]
fn dare_with_l1_rescale_keeps_the_sum_of_magnitudes() {
    let change = normal(5, 200_000, 0.01);
    for density in [0.05, 0.5] {
        let densities = [density];
        let mut dare = parameters(Method::DareTies, &[1.0], &densities);
        dare.rescale = Some(RescaleKind::L1);
        let (out, _) = merged(&dare, &vec![0.0; change.len()], &[&change]);
        let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value.abs())).sum::<f64>();
        assert!((sum(&out) / sum(&change) - 1.0).abs() < 1e-6, "{} {}", sum(&out), sum(&change));
    }
}
