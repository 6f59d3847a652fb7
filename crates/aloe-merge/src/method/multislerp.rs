//! Barycentric interpolation on a hypersphere, of the models or, with a base, of their task vectors.
//!
//! Source: mergekit 0.1.5, `merge_methods/multislerp.py`: unit vectors `u_i = x_i / (|x_i| + eps)`, their weighted mean `m` scaled to the
//! sphere, tangents `u_i - (u_i . m) m`, their weighted sum `T`, and back by `cos|T| m + sin|T| T/|T|`, times the weighted mean norm.
//! mergekit computes each step in the merge dtype and so loses digits in bfloat16; here one rounding stands at the end. Where every vector
//! is zero (a tensor that no model changed) the mean is zero, so the base comes back; mergekit stops there with three models or more.
//! Parameters: `weight` per model; `normalize_weights` (on: over their sum), `eps` (1e-8: added to norms, and below it a mean direction has
//! vanished). The order of the models does not matter.

use super::combination::{Combination, inner, products};
use crate::config::Parameter;
use crate::group::Group;
use crate::{Error, Result};

pub(super) fn prepare(group: &Group) -> Result<Combination> {
    let inputs = group.others();
    if inputs.len() == 1 {
        return Ok(Combination { inputs, coefficients: vec![1.0] });
    }
    let mut weights: Vec<f64> = inputs.iter().map(|&i| group.parameters.input(i, Parameter::Weight)).collect();
    if group.parameters.flag(Parameter::NormalizeWeights) {
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    let gram = products(group, &inputs)?;
    let coefficients = coefficients(&gram, &weights, group.parameters.number(Parameter::Eps));
    let coefficients = coefficients.ok_or_else(|| {
        let reason = "the weighted directions cancel out, so they have no mean on the sphere: give other weights";
        Error::tensor(&group.name, "multislerp", reason)
    })?;
    Ok(Combination { inputs, coefficients })
}

/// What each vector is multiplied by; none where the mean direction vanishes.
fn coefficients(gram: &[Vec<f64>], weights: &[f64], eps: f64) -> Option<Vec<f64>> {
    let norms: Vec<f64> = gram.iter().enumerate().map(|(index, row)| row[index].sqrt()).collect();
    if norms.iter().all(|norm| *norm == 0.0) {
        return Some(vec![0.0; norms.len()]);
    }
    let mut mean: Vec<f64> = weights.iter().zip(&norms).map(|(weight, norm)| weight / (norm + eps)).collect();
    let length = inner(gram, &mean, &mean).max(0.0).sqrt();
    if length < eps {
        return (weights.len() == 2).then(|| weights.to_vec());
    }
    mean.iter_mut().for_each(|c| *c /= length);
    // T = sum(w_i u_i) - (sum(w_i u_i . m)) m, as coefficients of the x_i.
    let mut tangent: Vec<f64> = mean.iter().map(|c| c * length).collect();
    let along = inner(gram, &tangent, &mean);
    tangent.iter_mut().zip(&mean).for_each(|(t, m)| *t -= along * m);
    let step = inner(gram, &tangent, &tangent).max(0.0).sqrt() + eps;
    let norm: f64 = norms.iter().zip(weights).map(|(norm, weight)| norm * weight).sum();
    let point = |(m, t): (&f64, &f64)| norm * (m * step.cos() + t * step.sin() / step);
    Some(mean.iter().zip(&tangent).map(point).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Method;
    use crate::merge_group;
    use crate::method::tests::group_of;

    /// x = (2, 0), y = (0, 4), weights 1/2: mean direction (1, 1)/sqrt 2, mean norm 3, so (3, 3)/sqrt 2: coefficients 3/(2 sqrt 2) and
    /// 3/(4 sqrt 2). Opposite vectors have no mean direction; two of them are interpolated on the line.
    #[test]
    fn two_perpendicular_vectors_meet_half_way_at_their_mean_norm() {
        let found = coefficients(&[vec![4.0, 0.0], vec![0.0, 16.0]], &[0.5, 0.5], 1e-12).unwrap();
        let expected = [3.0 / (2.0 * 2.0f64.sqrt()), 3.0 / (4.0 * 2.0f64.sqrt())];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        assert_eq!(coefficients(&[vec![1.0, -1.0], vec![-1.0, 1.0]], &[0.5, 0.5], 1e-8), Some(vec![0.5, 0.5]));
        let three = [vec![1.0, -1.0, 0.0], vec![-1.0, 1.0, 0.0], vec![0.0, 0.0, 0.0]];
        assert_eq!(coefficients(&three, &[0.5, 0.5, 0.0], 1e-8), None);
    }

    /// mergekit 0.1.5 raises an error for the second tensor.
    #[test]
    fn a_tensor_that_no_model_changed_is_the_base_s_unlike_in_mergekit() {
        let base: &[f32] = &[0.5, -2.0];
        let group = group_of(Method::Multislerp, &[base, base, base, base], vec![2], &[]);
        assert_eq!(merge_group(Method::Multislerp, &group).unwrap().0, base);
    }
}
