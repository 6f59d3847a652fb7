//! `dare_linear` and `dare_ties`: each element of a task vector is kept with probability `density`, and what is kept is divided by it (or
//! scaled to the vector's sum of magnitudes, `rescale_kind: l1`); weighted and summed, `dare_ties` with the election of `ties`.
//! Parameters: `weight` and `density` (1) per model; `normalize` (off), `rescale` (on), `rescale_kind` (density), `lambda` (1).
//! The order of the models does not matter but to rounding; their names do, which key the masks.
//!
//! Source: arXiv 2311.03099; mergekit 0.1.5, `sparsify.py` (`bernoulli`), whose masks come from torch's generator: here from
//! [`crate::dare_mask`], the same at any thread count, order and shard layout.

use super::task_arithmetic::TaskArithmetic;
use crate::Result;
use crate::group::Group;
use crate::sparsify::{Keep, Mask};

pub(super) fn prepare(group: &Group, elects: bool) -> Result<TaskArithmetic> {
    TaskArithmetic::with(group, elects, |vector, density| {
        let model = &group.mask_keys[vector.input];
        Ok(Keep::Random(Mask::new(group.seed, &group.name, model, density)))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::{MergeDtype, Method, RescaleKind};
    use crate::method::task_arithmetic::tests::{merged, normal, parameters};
    use crate::tile::round_bf16;

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
}
