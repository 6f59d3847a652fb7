//! Updates against plain matrix arithmetic and finite differences, and blocks against their dequantised weight.

use super::*;
use crate::lora::{DropoutAt, LoraDropout};
use crate::ops::{linear, linear_grad_input, linears};
use crate::reference::Matrix;
use crate::testing::{close, devices, normal, same_bits};
use crate::{BlockFormat, Dtype};
use std::sync::Arc;

const SCALE: f32 = 1.5;

fn matrix(t: &Tensor) -> Matrix {
    Matrix::new(t.shape()[0], t.shape()[1], &t.to_f32_vec())
}

/// A layer `[o, k]` with an update of the given rank, and its parts W, A, B.
fn layer(o: usize, k: usize, rank: usize, dropout: Option<LoraDropout>) -> (Linear, [Tensor; 3]) {
    let (w, a, b) = (normal("w", &[o, k]), normal("a", &[rank, k]), normal("b", &[o, rank]));
    let mut layer = Linear::new(w.clone(), None);
    layer.set_lora(Some(Lora::new(&a, &b, SCALE, dropout)));
    (layer, [w, a, b])
}

/// `W + scale B A`, in plain loops.
fn merged([w, a, b]: &[Tensor; 3]) -> Tensor {
    let update = matrix(b).times_transposed(&matrix(a).transposed());
    let values = w.as_f32().iter().zip(&update.data).map(|(w, u)| w + SCALE * u);
    Tensor::from_f32(w.shape(), values.collect())
}

#[test]
fn an_update_beside_the_weight_is_the_weight_with_the_update_added() {
    for device in devices() {
        for (n, o, k, rank) in [(1, 1, 1, 1), (5, 7, 3, 2), (33, 65, 40, 16), (70, 96, 130, 40)] {
            let what = format!("{device:?} {n}x{o}x{k} rank {rank}");
            let (adapted, parts) = layer(o, k, rank, None);
            let whole = Linear::new(merged(&parts), None);
            let (x, dy) = (normal("x", &[n, k]), normal("dy", &[n, o]));
            let plain = Linear::new(normal("w2", &[o, k]), None);
            let found = linears(&device, &x, &[&plain, &adapted, &plain]);
            // A sum of rank * k products of normals of size about rank * k.
            let tolerance = 2e-6 * (rank * k.max(o)).max(16) as f32;
            close(found[1].as_f32(), linear(&device, &x, &whole).as_f32(), tolerance, &what);
            same_bits(found[0].as_f32(), linear(&device, &x, &plain).as_f32(), &what);
            same_bits(found[2].as_f32(), found[0].as_f32(), &what);
            let (dx, expected) = (linear_grad_input(&device, &dy, &adapted), linear_grad_input(&device, &dy, &whole));
            close(dx.as_f32(), expected.as_f32(), tolerance, &what);
        }
    }
}

/// `sum(dy * y)`, whose gradients are those that the backward pass is given dy for.
fn objective(device: &Device, x: &Tensor, dy: &Tensor, layer: &Linear) -> f64 {
    let y = linear(device, x, layer);
    y.as_f32().iter().zip(dy.as_f32()).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
}

#[test]
fn gradients_of_both_factors_and_of_the_input_agree_with_finite_differences_with_and_without_dropout() {
    let device = Device::cpu(2);
    // The second shape has whole panels.
    for (share, (n, o, k, rank)) in
        [(0.0, (6, 9, 10, 3)), (0.4, (6, 9, 10, 3)), (0.0, (40, 32, 64, 16)), (0.4, (40, 32, 64, 5))]
    {
        let at = Arc::new(DropoutAt::default());
        at.enter(3, 5);
        let dropout = (share > 0.0).then_some(LoraDropout { share, seed: 1, module: 2, at });
        let (x, dy) = (normal("x", &[n, k]), normal("dy", &[n, o]));
        let (whole, [w, a, b]) = layer(o, k, rank, dropout.clone());
        let (mut da, mut db) = (Tensor::zeros(&[rank, k], Dtype::F32), Tensor::zeros(&[o, rank], Dtype::F32));
        lora_grad(&device, &dy, &x, &whole, &mut da, &mut db);
        let dx = linear_grad_input(&device, &dy, &whole);
        // The objective is linear in each of the three, so a wide step has no error but rounding.
        let step = 0.5;
        for (name, tensor, found) in [("a", &a, &da), ("b", &b, &db), ("x", &x, &dx)] {
            for i in 0..tensor.len() {
                let value = |by: f32| {
                    let mut moved = tensor.clone();
                    moved.as_f32_mut()[i] += by;
                    let [x, a, b] = [("x", &x), ("a", &a), ("b", &b)].map(|(n, t)| if n == name { &moved } else { t });
                    let mut layer = Linear::new(w.clone(), None);
                    layer.set_lora(Some(Lora::new(a, b, SCALE, dropout.clone())));
                    objective(&device, x, &dy, &layer)
                };
                let expected = (value(step) - value(-step)) / f64::from(2.0 * step);
                let error = (f64::from(found.as_f32()[i]) - expected).abs();
                assert!(error < 1e-2, "{name}[{i}] with dropout {share}: {} {expected}", found.as_f32()[i]);
            }
        }
    }
}

#[test]
fn a_mask_drops_its_share_depends_on_the_row_of_the_step_and_is_off_outside_training() {
    let device = Device::cpu(2);
    let at = Arc::new(DropoutAt::default());
    let dropout = LoraDropout { share: 0.25, seed: 4, module: 0, at: at.clone() };
    let (_, [_, a, b]) = layer(8, 64, 4, None);
    let lora = Lora::new(&a, &b, SCALE, Some(dropout));
    let ones = Tensor::from_f32(&[256, 64], vec![1.0; 256 * 64]);
    same_bits(dropped(&device, &ones, &lora).as_f32(), ones.as_f32(), "outside training");
    at.enter(7, 100);
    let all = dropped(&device, &ones, &lora);
    let n_dropped = all.as_f32().iter().filter(|value| **value == 0.0).count() as f64;
    let (mean, sigma) = (0.25 * all.len() as f64, (0.25 * 0.75 * all.len() as f64).sqrt());
    assert!((n_dropped - mean).abs() < 5.0 * sigma, "{n_dropped} of {}", all.len());
    assert!(all.as_f32().iter().all(|&value| value == 0.0 || value == 1.0 / 0.75));
    // The second half of the rows as a micro-batch of its own.
    at.enter(7, 228);
    same_bits(dropped(&device, &ones.slice_rows(128, 256), &lora).as_f32(), all.slice_rows(128, 256).as_f32(), "half");
    at.enter(8, 100);
    assert_ne!(dropped(&device, &ones, &lora).as_f32(), all.as_f32(), "another step has another mask");
    at.leave();
    same_bits(dropped(&device, &ones, &lora).as_f32(), ones.as_f32(), "after training");
}

#[test]
fn gradients_flow_through_blocks_as_through_the_dequantised_weight_in_bf16() {
    for device in devices() {
        for format in [BlockFormat::Q8_0, BlockFormat::Q4_0] {
            // More than one part of rows, an odd number of them, and a last panel that is not full.
            for (n, o, k) in [(1, 1, 32), (5, 301, 64), (40, 515, 96)] {
                let w = normal("w", &[o, k]);
                let read = |row: usize, out: &mut [f32]| out.copy_from_slice(&w.as_f32()[row * k..(row + 1) * k]);
                let blocks = Linear::quantize(&device, [o, k], &read, format, None);
                let dense = Linear::new(blocks.weight().cast(Dtype::Bf16), None);
                let dy = normal("dy", &[n, o]);
                let (found, expected) =
                    (linear_grad_input(&device, &dy, &blocks), linear_grad_input(&device, &dy, &dense));
                same_bits(found.as_f32(), expected.as_f32(), &format!("{device:?} {format:?} {n}x{o}x{k}"));
            }
        }
    }
}
