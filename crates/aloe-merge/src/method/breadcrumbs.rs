//! `breadcrumbs` and `breadcrumbs_ties`: of each task vector the `int(gamma n)` elements of largest magnitude are dropped, and of the others
//! the `int(density n)` largest kept; fewer are dropped where the density could not be had otherwise. Weighted and summed,
//! `breadcrumbs_ties` with the election of `ties`. Parameters: `weight`, `density` (1) and `gamma` (0.01) per model; `normalize` (off),
//! `rescale` (off), `lambda` (1).
//! The order of the models does not matter but to rounding.
//!
//! Source: arXiv 2312.06795; mergekit 0.1.5, `sparsify.py` (`magnitude_outliers`).

use super::task_arithmetic::TaskArithmetic;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::sparsify::{Keep, Top};

pub(super) fn prepare(group: &Group, elects: bool) -> Result<TaskArithmetic> {
    TaskArithmetic::with(group, elects, |vector, density| {
        let n = group.n_elements();
        let target = (density * n as f64) as usize;
        let n_top = (group.parameters.input(vector.input, Parameter::Gamma) * n as f64) as usize;
        let n_top = n_top.min(n - target);
        let largest = |k| Top::of(group, k, |range| vector.read(range));
        Ok(Keep::Between(largest(n_top + target)?, largest(n_top)?))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{Method, Parameter, ParameterValue};
    use crate::merge_group;
    use crate::method::tests::group_of;

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
}
