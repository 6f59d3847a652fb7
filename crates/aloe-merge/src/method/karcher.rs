//! The Riemannian (Karcher) mean of the models' directions on the unit sphere, times their mean norm; all models weigh the same.
//!
//! Source: arXiv 2603.04972; mergekit 0.1.5, `merge_methods/karcher.py`: from the normalized mean, at most `max_iter` steps along the mean
//! of the logarithms `theta/sin(theta) (u_i - cos(theta) m)`, until the step is shorter than `tol`. Every step stays in the span of the
//! inputs, so the iteration runs on coefficients in f64; mergekit iterates on whole tensors in the merge dtype.
//!
//! Parameters: `max_iter` (10), `tol` (1e-5: shorter steps end the iteration, and vectors of a smaller norm are left out of the direction). The
//! order of the models does not matter, unless their directions cancel out: the first one's is then the start.

use super::combination::{Combination, inner, products};
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;

pub(super) fn prepare(group: &Group) -> Result<Combination> {
    let inputs: Vec<usize> = (0..group.sources.len()).collect();
    if inputs.len() == 1 {
        return Ok(Combination { inputs, coefficients: vec![1.0] });
    }
    let gram = products(group, &inputs)?;
    let parameters = &group.parameters;
    let coefficients = mean(&gram, parameters.number(Parameter::MaxIter) as usize, parameters.number(Parameter::Tol));
    Ok(Combination { inputs, coefficients })
}

/// The coefficients of the mean.
fn mean(gram: &[Vec<f64>], max_iter: usize, tol: f64) -> Vec<f64> {
    let n = gram.len();
    let norms: Vec<f64> = (0..n).map(|i| gram[i][i].sqrt()).collect();
    let valid: Vec<usize> = (0..n).filter(|&i| norms[i] > tol).collect();
    let Some(&first) = valid.first() else { return vec![0.0; n] };
    let alpha = 1.0 / valid.len() as f64;
    let unit = |i: usize| -> Vec<f64> { (0..n).map(|j| if i == j { 1.0 / norms[i] } else { 0.0 }).collect() };
    let norm = |x: &[f64]| inner(gram, x, x).max(0.0).sqrt();
    let mut mean = vec![0.0f64; n];
    valid.iter().for_each(|&i| mean[i] += alpha / norms[i]);
    match norm(&mean) {
        length if length < tol => mean = unit(first),
        length => mean.iter_mut().for_each(|c| *c /= length),
    }
    for _ in 0..max_iter {
        let mut tangent = vec![0.0f64; n];
        for &i in &valid {
            let unit = unit(i);
            let cosine = inner(gram, &mean, &unit).clamp(-1.0, 1.0);
            let theta = cosine.acos();
            if theta < tol {
                continue;
            }
            let factor = alpha * theta / theta.sin();
            tangent.iter_mut().zip(unit.iter().zip(&mean)).for_each(|(t, (u, m))| *t += factor * (u - cosine * m));
        }
        let step = norm(&tangent);
        if step < tol {
            break;
        }
        mean.iter_mut().zip(&tangent).for_each(|(m, t)| *m = step.cos() * *m + step.sin() * t / step);
        let length = norm(&mean);
        if length > tol {
            mean.iter_mut().for_each(|c| *c /= length);
        }
    }
    let scale = norms.iter().sum::<f64>() / n as f64;
    mean.iter().map(|c| scale * c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three unit vectors along the axes: the mean is (1, 1, 1)/sqrt 3. Of a vector and its half, the direction with the mean norm 3/4.
    #[test]
    fn the_mean_of_three_axes_is_the_diagonal() {
        let axes = [vec![1.0, 0.0, 0.0], vec![0.0, 1.0, 0.0], vec![0.0, 0.0, 1.0]];
        let found = mean(&axes, 10, 1e-5);
        assert!(found.iter().all(|c| (c - 1.0 / 3.0f64.sqrt()).abs() < 1e-12), "{found:?}");
        let parallel = mean(&[vec![1.0, 0.5], vec![0.5, 0.25]], 10, 1e-5);
        assert!((parallel[0] + 0.5 * parallel[1] - 0.75).abs() < 1e-12, "{parallel:?}");
        assert_eq!(mean(&[vec![0.0]], 10, 1e-5), [0.0]);
    }

    /// On a circle the Karcher mean of angles 0, 0 and 90 degrees is the mean angle, 30 degrees; the chord mean would be 26.57.
    #[test]
    fn on_a_circle_it_is_the_mean_angle() {
        let gram = [vec![1.0, 1.0, 0.0], vec![1.0, 1.0, 0.0], vec![0.0, 0.0, 1.0]];
        let found = mean(&gram, 10, 1e-9);
        let (x, y) = (found[0] + found[1], found[2]);
        assert!((y.atan2(x).to_degrees() - 30.0).abs() < 1e-6, "{}", y.atan2(x).to_degrees());
    }
}
