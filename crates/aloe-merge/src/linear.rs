//! The weighted mean of one tensor over all models.
//!
//! Source: mergekit 0.1.5, `merge_methods/linear.py`: the inputs are read in the merge dtype, multiplied and added in f32 in the order
//! of the configuration, divided by the sum of the weights, and rounded once.

use crate::config::MergeDtype;
use crate::tile::{TensorBytes, output_tiles, round_to, run};

/// Merges `tensors` into `out` (f32 values of the merge dtype).
pub fn linear(
    weights: &[f64],
    normalize: bool,
    dtype: MergeDtype,
    tensors: &[TensorBytes<'_>],
    threads: usize,
    out: &mut [f32],
) {
    let weights: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
    let total: f32 = weights.iter().sum();
    run(threads, output_tiles(out), |(start, tile)| {
        let mut values = vec![0.0f32; tile.len()];
        tile.fill(0.0);
        for (tensor, weight) in tensors.iter().zip(&weights) {
            tensor.read(start, dtype, &mut values);
            // torch's addcmul is compiled to a fused multiply-add; the product is exact in f64, so this rounds once as well.
            let weight = f64::from(*weight);
            tile.iter_mut()
                .zip(&values)
                .for_each(|(sum, value)| *sum = (f64::from(*sum) + weight * f64::from(*value)) as f32);
        }
        for value in tile.iter_mut() {
            *value = round_to(dtype, if normalize { *value / total } else { *value });
        }
    });
}
