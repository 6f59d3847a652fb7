//! Each step on four numbers by hand, the plain twin, and the statistics of random masks.

use crate::config::{MergeDtype, Method, Parameter, ParameterValue, RescaleKind};
use crate::method::tests::{bytes, group_of};
use crate::stats::TensorStats;
use crate::tile::{TILE, round_bf16};
use crate::{Source, merge_group};
use aloe_model::FileDtype;
use aloe_record::CounterRng;

/// The parameters of a merge of task vectors.
struct Case<'a> {
    method: Method,
    weights: &'a [f64],
    densities: &'a [f64],
    normalize: bool,
    lambda: f64,
    rescale: Option<RescaleKind>,
    dtype: MergeDtype,
}

fn parameters<'a>(method: Method, weights: &'a [f64], densities: &'a [f64]) -> Case<'a> {
    Case {
        method,
        weights,
        densities,
        normalize: matches!(method, Method::Ties | Method::Della),
        lambda: 1.0,
        rescale: None,
        dtype: MergeDtype::Float32,
    }
}

fn merged(case: &Case<'_>, base: &[f32], tuned: &[&[f32]]) -> (Vec<f32>, TensorStats) {
    let all: Vec<&[f32]> = std::iter::once(base).chain(tuned.iter().copied()).collect();
    let mut group = group_of(case.method, &all, vec![base.len()], &[]);
    let mut shared = vec![
        (Parameter::Normalize, ParameterValue::Flag(case.normalize)),
        (Parameter::Lambda, ParameterValue::Number(case.lambda)),
        (Parameter::Rescale, ParameterValue::Flag(case.rescale.is_some())),
    ];
    shared.extend(case.rescale.map(|kind| (Parameter::RescaleKind, ParameterValue::Kind(kind))));
    group.parameters.shared = shared;
    for (index, (weight, density)) in case.weights.iter().zip(case.densities).enumerate() {
        let own = &mut group.parameters.inputs[index + 1];
        own.insert(0, (Parameter::Weight, ParameterValue::Number(*weight)));
        own.insert(0, (Parameter::Density, ParameterValue::Number(*density)));
    }
    (group.dtype, group.seed, group.threads) = (case.dtype, 3, 2);
    let (out, stats) = merge_group(case.method, &group).unwrap();
    (out, stats.unwrap())
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
    let mask = crate::dare_mask(3, "t", "m1", 0.25, 0..1000);
    let expected: Vec<f32> = mask.iter().map(|&kept| if kept { 13.0 } else { 1.0 }).collect();
    assert_eq!(merged(&dare, &[1.0; 1000], &[&[4.0; 1000]]).0, expected);
    dare.dtype = MergeDtype::Bfloat16;
    dare.densities = &[0.3];
    let mask = crate::dare_mask(3, "t", "m1", 0.3, 0..1000);
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
    let a = crate::dare_mask(3, "t", "m1", p, 0..n);
    for other in [
        crate::dare_mask(3, "t", "m2", q, 0..n),
        crate::dare_mask(3, "u", "m1", q, 0..n),
        crate::dare_mask(4, "t", "m1", q, 0..n),
    ] {
        let both = a.iter().zip(&other).filter(|(a, b)| **a && **b).count() as f64 / n as f64;
        assert!((both - p * q).abs() < 5.0 * (p * q * (1.0 - p * q) / n as f64).sqrt(), "{both}");
    }
}

#[test]
fn a_mask_can_be_computed_for_any_range_alone() {
    let whole = crate::dare_mask(3, "t", "m3", 0.4, 0..300);
    for range in [0..1, 1..2, 3..9, 7..300, 128..131] {
        assert_eq!(crate::dare_mask(3, "t", "m3", 0.4, range.clone()), whole[range]);
    }
    assert!(crate::dare_mask(3, "t", "m3", 1.0, 0..100).iter().all(|&kept| kept));
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
    let source = Source::in_memory(FileDtype::F16, vec![0x00, 0x3e, 0x00, 0xb4]);
    source.read(0, MergeDtype::Float32, &mut half).unwrap();
    let source = Source::in_memory(FileDtype::BF16, vec![0xc0, 0x3f, 0x80, 0xbe]);
    source.read(0, MergeDtype::Float32, &mut brain).unwrap();
    assert_eq!((half, brain), ([1.5, -0.25], [1.5, -0.25]));
    assert_eq!(bytes(&[1.5]), [0, 0, 0xc0, 0x3f]);
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

/// Changes 1, 8, 2, 7, 3, 6, 4, 5 of eight: density 1/2 keeps four, gamma 1/4 drops the two largest (8, 7), so 3 to 6 remain. Where the
/// density asks for more than gamma leaves, fewer outliers go: density 7/8 drops one alone.
#[test]
fn breadcrumbs_drop_both_ends() {
    let change: &[f32] = &[1.0, 8.0, 2.0, -7.0, 3.0, 6.0, -4.0, 5.0];
    let merged_at = |density: f64, gamma: f64| {
        let mut group = group_of(Method::Breadcrumbs, &[&[0.0; 8], change], vec![8], &[(Parameter::Weight, 1.0)]);
        group.parameters.inputs[1].insert(0, (Parameter::Density, ParameterValue::Number(density)));
        group.parameters.inputs[1].insert(0, (Parameter::Gamma, ParameterValue::Number(gamma)));
        merge_group(Method::Breadcrumbs, &group).unwrap().0
    };
    assert_eq!(merged_at(0.5, 0.25), [0.0, 0.0, 0.0, 0.0, 3.0, 6.0, -4.0, 5.0]);
    assert_eq!(merged_at(0.875, 0.25), [1.0, 0.0, 2.0, -7.0, 3.0, 6.0, -4.0, 5.0]);
    assert_eq!(merged_at(0.5, 0.0), [0.0, 8.0, 0.0, -7.0, 0.0, 6.0, 0.0, 5.0]);
}

/// A row of 1000 rising changes, density 1/2, epsilon 0.4: the lower half is kept with mean probability 0.3, the upper with 0.7; divided by
/// its own probability each change keeps its mean.
#[test]
fn della_keeps_large_changes_likelier_and_the_paper_s_rescale_keeps_the_mean_within_five_sigma() {
    let (rows, cols) = (1000usize, 1000usize);
    let change: Vec<f32> = (0..rows * cols).map(|i| 0.001 * (1 + i % cols) as f32).collect();
    let mut group = group_of(
        Method::DellaLinear,
        &[&vec![0.0; rows * cols], &change],
        vec![rows, cols],
        &[(Parameter::Weight, 1.0)],
    );
    group.parameters.inputs[1].insert(0, (Parameter::Density, ParameterValue::Number(0.5)));
    group.parameters.inputs[1].insert(0, (Parameter::Epsilon, ParameterValue::Number(0.4)));
    group.parameters.shared.insert(0, (Parameter::RescaleKind, ParameterValue::Kind(RescaleKind::Density)));
    group.threads = 2;
    let (out, stats) = merge_group(Method::DellaLinear, &group).unwrap();
    let n = (rows * cols / 2) as f64;
    let kept = |upper: bool| {
        out.iter().enumerate().filter(|(i, v)| (i % cols >= cols / 2) == upper && **v != 0.0).count() as f64 / n
    };
    let sigma = (0.25 / n).sqrt();
    assert!((kept(false) - 0.3).abs() < 5.0 * sigma && (kept(true) - 0.7).abs() < 5.0 * sigma, "{}", kept(false));
    assert_eq!(stats.unwrap().n_kept[0], out.iter().filter(|v| **v != 0.0).count() as u64);
    let mean = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>() / (rows * cols) as f64;
    // The variance of one element is c^2 (1 - p) / p with p from 0.1 to 0.9: at most 9 c^2, of mean square 1/3.
    assert!((mean(&out) - mean(&change)).abs() < 5.0 * (3.0 / (rows * cols) as f64).sqrt(), "{}", mean(&out));
}

/// Without election and normalization the result is the weighted sum: 10 + 0.5 * 4 + 2 * -1.
#[test]
fn task_arithmetic_is_the_weighted_sum_of_changes() {
    let (out, stats) =
        merged(&parameters(Method::TaskArithmetic, &[0.5, 2.0], &[1.0, 1.0]), &[10.0], &[&[14.0], &[9.0]]);
    assert_eq!((out, stats.n_contested, stats.n_agreeing), (vec![10.0], 1, 0));
    let mut normalized = parameters(Method::TaskArithmetic, &[0.5, 1.5], &[1.0, 1.0]);
    normalized.normalize = true;
    assert_eq!(merged(&normalized, &[0.0], &[&[4.0], &[8.0]]).0, [7.0]);
}
