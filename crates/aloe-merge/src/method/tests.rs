//! Helpers of the methods' tests, and methods on numbers worked by hand that need a whole tensor.

use super::*;
use crate::Source;
use crate::config::{MergeDtype, Parameter, ParameterValue, Scope, TensorParameters};
use aloe_model::FileDtype;

pub(super) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A group of f32 tensors, the first being the base where the method uses one; defaults but for the given numbers and weights of 1.
pub(super) fn group_of(method: Method, tensors: &[&[f32]], shape: Vec<usize>, numbers: &[(Parameter, f64)]) -> Group {
    let base = (method.base_use() != crate::config::BaseUse::Ignored).then_some(0);
    let value = |spec: &crate::config::ParameterSpec| {
        let given = numbers.iter().find(|(known, _)| *known == spec.parameter);
        let given = given.map(|(_, number)| ParameterValue::Number(*number));
        (spec.parameter, given.or(spec.default).unwrap_or(ParameterValue::Number(1.0)))
    };
    let specs = method.parameters();
    let inputs = (0..tensors.len()).map(|input| {
        let applies = |scope: Scope| scope == Scope::Input || (scope == Scope::NonBase && base != Some(input));
        specs.iter().filter(|spec| applies(spec.scope)).map(value).collect()
    });
    Group {
        name: "t".into(),
        shape,
        dtype: MergeDtype::Float32,
        sources: tensors.iter().map(|values| Source::in_memory(FileDtype::F32, bytes(values))).collect(),
        base,
        reference: base,
        parameters: TensorParameters {
            shared: specs.iter().filter(|spec| spec.scope == Scope::Shared).map(value).collect(),
            inputs: inputs.collect(),
        },
        seed: 3,
        mask_keys: (0..tensors.len()).map(|input| format!("m{input}")).collect(),
        threads: 1,
    }
}

fn merged(method: Method, tensors: &[&[f32]], shape: Vec<usize>, numbers: &[(Parameter, f64)]) -> Vec<f32> {
    merge_group(method, &group_of(method, tensors, shape, numbers)).unwrap().0
}

/// 2 a + 3 b over 5; a sum that is not divided.
#[test]
fn linear_is_the_weighted_mean_by_hand() {
    let mut group = group_of(Method::Linear, &[&[1.0, -2.0], &[6.0, 0.5]], vec![2], &[(Parameter::Weight, 2.0)]);
    group.parameters.inputs[1] = vec![(Parameter::Weight, ParameterValue::Number(3.0))];
    assert_eq!(merge_group(Method::Linear, &group).unwrap().0, [4.0, -0.5]);
    group.parameters.shared = vec![(Parameter::Normalize, ParameterValue::Flag(false))];
    assert_eq!(merge_group(Method::Linear, &group).unwrap().0, [20.0, -2.5]);
}

/// Perpendicular unit vectors half way: both times sin 45 / sin 90.
#[test]
fn slerp_half_way_between_two_axes_is_the_diagonal() {
    let out = merged(Method::Slerp, &[&[1.0, 0.0], &[0.0, 1.0]], vec![2], &[(Parameter::T, 0.5)]);
    assert!(out.iter().all(|value| (value - 0.5f32.sqrt()).abs() < 1e-7), "{out:?}");
}

/// Rows are vectors of their own with `nuslerp_flatten: false`: the first rows are parallel, so a line; the second ones perpendicular.
/// With `nuslerp_row_wise` columns are.
#[test]
fn nuslerp_works_by_tensor_row_or_column() {
    let zero: &[f32] = &[0.0; 4];
    let (a, b): (&[f32], &[f32]) = (&[1.0, 0.0, 1.0, 0.0], &[3.0, 0.0, 0.0, 1.0]);
    let mut group = group_of(Method::Nuslerp, &[zero, a, b], vec![2, 2], &[]);
    let with = |group: &mut Group, flatten: bool, columns: bool| {
        group.parameters.shared = vec![
            (Parameter::NuslerpFlatten, ParameterValue::Flag(flatten)),
            (Parameter::NuslerpRowWise, ParameterValue::Flag(columns)),
        ];
        merge_group(Method::Nuslerp, group).unwrap().0
    };
    let half = 0.5f32.sqrt();
    let close = |out: &[f32], expected: [f32; 4]| {
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{out:?}, expected {expected:?}");
    };
    close(&with(&mut group, false, false), [2.0, 0.0, half, half]);
    // Columns: (1, 1) and (3, 0) at 45 degrees: both times sin 22.5 / sin 45; (0, 0) and (0, 1): cos 0, both times sin 45.
    let factor = (22.5f32).to_radians().sin() / half;
    close(&with(&mut group, false, true), [4.0 * factor, 0.0, factor, half]);
    // Whole: cosine 3 / (sqrt 2 sqrt 10).
    let theta = (3.0f32 / 20.0f32.sqrt()).acos();
    let whole = (theta / 2.0).sin() / theta.sin();
    close(&with(&mut group, true, false), [4.0 * whole, 0.0, whole, whole]);
}

/// In float32 3 * 0.7 is the f32 product; in bfloat16 1.0078125 * 0.7 = 0.70546..., between 0.703125 and 0.70703125, nearer to the latter.
#[test]
fn passthrough_multiplies_by_its_scale_and_rounds_once() {
    let tensor: &[f32] = &[3.0, -0.5, 1.007_812_5];
    let mut group = group_of(Method::Passthrough, &[tensor], vec![3], &[(Parameter::Scale, 0.7)]);
    let scaled = merge_group(Method::Passthrough, &group).unwrap().0;
    assert_eq!(scaled, [3.0 * 0.7f32, -0.35, 1.007_812_5 * 0.7f32]);
    group.dtype = MergeDtype::Bfloat16;
    assert_eq!(merge_group(Method::Passthrough, &group).unwrap().0[2], 0.707_031_25);
    group.parameters.inputs[0] = vec![(Parameter::Scale, ParameterValue::Number(1.0))];
    assert_eq!(merge_group(Method::Passthrough, &group).unwrap().0, tensor);
}

/// Changes over a base of 10: a (4, 1, 2, 1), b (-2, 1, 2, 3). Variances 9, 0, 0, 1: half of the two that are not zero is one element, the
/// first. Energies 16/4 and 4/4 weigh 0.8 and 0.2. The vote 4 - 2 is positive: b is erased there, and a alone over its own weight is +4.
/// With all selected: energies (16 + 1 + 4 + 1)/4 = 5.5 and (4 + 1 + 4 + 9)/4 = 4.5, weights 0.55 and 0.45; a alone in the first column, in
/// the others the weighted mean: 1, 2 and 0.55 + 1.35 = 1.9. Where the vote is negative, the positive change is erased.
#[test]
fn sce_selects_by_variance_votes_and_erases_by_hand() {
    let (base, a, b): (&[f32], &[f32], &[f32]) = (&[10.0; 4], &[14.0, 11.0, 12.0, 11.0], &[8.0, 11.0, 12.0, 13.0]);
    let close = |out: Vec<f32>, expected: [f32; 4]| {
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6), "{out:?}, expected {expected:?}");
    };
    close(merged(Method::Sce, &[base, a, b], vec![4], &[(Parameter::SelectTopk, 0.5)]), [14.0, 10.0, 10.0, 10.0]);
    close(merged(Method::Sce, &[base, a, b], vec![4], &[(Parameter::SelectTopk, 1.0)]), [14.0, 11.0, 12.0, 11.9]);
    let (up, down): (&[f32], &[f32]) = (&[11.0, 10.0, 10.0, 10.0], &[7.0, 10.0, 10.0, 10.0]);
    close(merged(Method::Sce, &[base, up, down], vec![4], &[(Parameter::SelectTopk, 1.0)]), [7.0, 10.0, 10.0, 10.0]);
}

/// Merging a model with itself gives it back, whatever the method, where its weights sum to one.
#[test]
fn a_model_merged_with_itself_comes_back() {
    let base: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
    let model: Vec<f32> = base.iter().enumerate().map(|(i, v)| v + 0.01 * (i as f32).cos()).collect();
    for (method, _) in crate::config::METHODS {
        let (_, most) = method.n_inputs();
        let uses_base = method.base_use() != crate::config::BaseUse::Ignored;
        let n = 2.min(most);
        let mut tensors: Vec<&[f32]> = if uses_base { vec![&base] } else { Vec::new() };
        tensors.extend(std::iter::repeat_n(model.as_slice(), n));
        let t = if method == Method::Slerp { 1.0 } else { 10.0 };
        let numbers = [(Parameter::Weight, 1.0 / n as f64), (Parameter::T, t)];
        let out = merged(method, &tensors, vec![10, 10], &numbers);
        for (out, model) in out.iter().zip(&model) {
            assert!((out - model).abs() < 2e-6, "{}: {out} {model}", method.name());
        }
    }
}

/// Threads change no bit of any method, at any density.
#[test]
fn threads_change_no_bit() {
    let n = 3 * crate::tile::TILE + 1000;
    let tensor = |seed: u64| -> Vec<f32> {
        let mut rng = aloe_record::CounterRng::new(seed, "threads", 0);
        (0..n).map(|_| rng.normal()).collect()
    };
    let tensors: Vec<Vec<f32>> = (0..3).map(tensor).collect();
    for (method, _) in crate::config::METHODS {
        let uses_base = method.base_use() != crate::config::BaseUse::Ignored;
        let n_inputs = 2.min(method.n_inputs().1) + usize::from(uses_base);
        let inputs: Vec<&[f32]> = tensors[..n_inputs].iter().map(Vec::as_slice).collect();
        let numbers =
            [(Parameter::Weight, 0.4), (Parameter::Density, 0.3), (Parameter::SelectTopk, 0.3), (Parameter::T, 0.3)];
        let mut group = group_of(method, &inputs, vec![n / 8, 8], &numbers);
        let one = merge_group(method, &group).unwrap();
        group.threads = 3;
        assert!(one == merge_group(method, &group).unwrap(), "{}", method.name());
    }
}
