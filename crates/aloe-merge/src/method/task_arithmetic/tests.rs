//! Each step on four numbers by hand, and the plain twin; what a method keeps is tested in its own file.

use crate::config::{MergeDtype, Method, Parameter, ParameterValue, RescaleKind};
use crate::method::tests::{bytes, group_of};
use crate::stats::TensorStats;
use crate::tile::TILE;
use crate::{Source, merge_group};
use aloe_model::FileDtype;
use aloe_record::CounterRng;

/// The parameters of a merge of task vectors.
pub(in crate::method) struct Case<'a> {
    pub(in crate::method) method: Method,
    pub(in crate::method) weights: &'a [f64],
    pub(in crate::method) densities: &'a [f64],
    pub(in crate::method) normalize: bool,
    pub(in crate::method) lambda: f64,
    pub(in crate::method) rescale: Option<RescaleKind>,
    pub(in crate::method) dtype: MergeDtype,
}

pub(in crate::method) fn parameters<'a>(method: Method, weights: &'a [f64], densities: &'a [f64]) -> Case<'a> {
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

pub(in crate::method) fn merged(case: &Case<'_>, base: &[f32], tuned: &[&[f32]]) -> (Vec<f32>, TensorStats) {
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

pub(in crate::method) fn normal(item: u64, n: usize, scale: f32) -> Vec<f32> {
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

/// At density 0 nothing of a model is kept and nothing is rescaled; the other model's change stays: 10 + 0.5 * 4.
#[test]
fn a_density_of_zero_leaves_a_model_out_whatever_the_method() {
    for method in [Method::Ties, Method::DareTies, Method::DareLinear, Method::Breadcrumbs, Method::Della] {
        for rescale in [None, Some(RescaleKind::Density), Some(RescaleKind::L1)] {
            let mut case = parameters(method, &[0.5, 0.5], &[1.0, 0.0]);
            (case.normalize, case.rescale) = (false, rescale);
            let (out, stats) = merged(&case, &[10.0; 4], &[&[14.0; 4], &[9.0; 4]]);
            assert_eq!((out, stats.n_kept), (vec![12.0; 4], vec![4, 0]), "{} {rescale:?}", method.name());
        }
    }
}
