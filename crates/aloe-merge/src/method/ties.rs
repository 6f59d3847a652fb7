//! `ties`: of each task vector the `int(density n)` elements of largest magnitude are kept (at least one; of equal ones the lowest index
//! first), each weighted by `w_i`; per element the sign of their sum is elected, and what agrees with it is summed, over the sum of its
//! weights with `normalize`. Parameters: `weight` and `density` (1) per model; `normalize` (on), `rescale` (off), `lambda` (1).
//! The order of the models does not matter but to rounding.
//!
//! Source: arXiv 2306.01708; mergekit 0.1.5, `sparsify.py` (`magnitude`), `generalized_task_arithmetic.py`.

use super::task_arithmetic::TaskArithmetic;
use crate::Result;
use crate::group::Group;
use crate::sparsify::{Keep, Top};

pub(super) fn prepare(group: &Group) -> Result<TaskArithmetic> {
    TaskArithmetic::with(group, true, |vector, density| {
        let k = (density * group.n_elements() as f64) as usize;
        Ok(Keep::Largest(Top::of(group, k.max(1), |range| vector.read(range))?))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::Method;
    use crate::method::task_arithmetic::tests::{merged, parameters};

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

    /// A vote of exactly zero counts as positive (mergekit's `>= 0`; the TIES paper would ask the whole tensor): (+3, -3) gives +3.
    #[test]
    fn a_tied_vote_goes_to_plus_as_in_mergekit_unlike_the_paper() {
        let ties = parameters(Method::Ties, &[1.0, 1.0], &[1.0, 1.0]);
        assert_eq!(merged(&ties, &[0.0, 0.0], &[&[3.0, 0.0], &[-3.0, 0.0]]).0, [3.0, 0.0]);
    }
}
