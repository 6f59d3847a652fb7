//! `della_linear` and `della`: each element is kept with a probability that rises with the rank of its magnitude in the row, from `density -
//! epsilon` to `density + epsilon`, and what is kept is scaled to the vector's sum of magnitudes (or divided by its own probability, the
//! paper's, `rescale_kind: density`); weighted and summed, `della` with the election of `ties`. Parameters: `weight`, `density` (1) and
//! `epsilon` (0.15) per model; `normalize` (on for `della`), `rescale` (on), `rescale_kind` (l1), `lambda` (1).
//! The order of the models does not matter but to rounding; their names do, which key the masks.
//!
//! Source: arXiv 2406.11617; mergekit 0.1.5, `sparsify.py` (`della_magprune`).

use super::task_arithmetic::TaskArithmetic;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::sparsify::{Keep, RankMask};

pub(super) fn prepare(group: &Group, elects: bool) -> Result<TaskArithmetic> {
    TaskArithmetic::with(group, elects, |vector, density| {
        let epsilon = group.parameters.input(vector.input, Parameter::Epsilon);
        let model = &group.mask_keys[vector.input];
        Ok(Keep::ByRank(RankMask::new(group.seed, &group.name, model, density, epsilon)))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{Method, Parameter, ParameterValue, RescaleKind};
    use crate::merge_group;
    use crate::method::tests::group_of;

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
}
