//! Cross-entropy through the head, never holding all logits.
//!
//! Rows go in chunks of at most 1024 and the vocabulary in chunks of 2048, so that a chunk of logits (8 MiB) stays in the
//! shared cache between the products. Each row's log-sum-exp takes the vocabulary chunks in order: it depends on the row alone.

use crate::ops::matmul::{Out, multiply_lanes};
use crate::ops::operand::{Input, with_operand};
use crate::ops::rows::{LogSumExp, argmax};
use crate::ops::rows_of;
use crate::pool::SharedMut;
use crate::{Device, Linear, Tensor};
use std::ops::Range;

mod backward;
pub use backward::{HeadGrad, cross_entropy_at_once, cross_entropy_backward};

const ROWS: usize = 1024;
const VOCABULARY: usize = 2048;

/// What the forward pass finds per row.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Natural log-probability of the target `[R]`.
    pub logps: Vec<f32>,
    /// Log-sum-exp of the row's logits `[R]`; the backward pass wants it.
    pub lse: Vec<f32>,
    /// The most probable token `[R]`, the first of equals.
    pub argmax: Vec<u32>,
}

/// What the backward pass needs besides hidden and head.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyInputs<'a> {
    /// Target ids `[R]`.
    pub targets: &'a [u32],
    /// `lse` of the forward pass `[R]`.
    pub lse: &'a [f32],
    /// Gradient of the loss with respect to each `logps[r]` `[R]`: -1/n for a mean loss.
    pub dlogps: &'a [f32],
}

/// One row's walk over the vocabulary.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f64,
    best: u32,
    target: f32,
}

impl Running {
    const START: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, best: 0, target: 0.0 };
}

/// Chunks of `0..n`.
fn chunks(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(size).map(move |from| from..(from + size).min(n))
}

/// Log-probabilities of `targets` under `softmax(hidden W^T + b)`: hidden `[R, D]`, head `[V, D]`. Logits and exponentials are
/// f32, the sum over the vocabulary f64.
pub fn cross_entropy(device: &Device, hidden: &Tensor, head: &Linear, targets: &[u32]) -> CrossEntropy {
    let (r, d) = rows_of(hidden);
    assert_eq!((r, d), (targets.len(), head.in_features()), "hidden {:?}", hidden.shape());
    check_targets(targets, head);
    let mut rows = vec![Running::START; r];
    for part in chunks(r, ROWS) {
        let x = &hidden.as_f32()[part.start * d..part.end * d];
        let mut logits = vec![0.0; part.len() * VOCABULARY.min(head.out_features())];
        for vocabulary in chunks(head.out_features(), VOCABULARY) {
            let logits = &mut logits[..part.len() * vocabulary.len()];
            chunk_logits(device, x, head, &vocabulary, logits);
            continue_rows(device, &mut rows[part.clone()], logits, &vocabulary, &targets[part.clone()]);
        }
    }
    finished(&rows)
}

/// Takes a chunk of logits `[rows, vocabulary]` into each row's walk.
fn continue_rows(device: &Device, rows: &mut [Running], logits: &[f32], vocabulary: &Range<usize>, targets: &[u32]) {
    let n = rows.len();
    let running = SharedMut::new(rows);
    device.for_each(n, &|row| {
        let logits = &logits[row * vocabulary.len()..(row + 1) * vocabulary.len()];
        // SAFETY: each index has its own row.
        let running = unsafe { running.slice(row, 1) };
        continue_row(device, &mut running[0], logits, vocabulary.start, targets[row] as usize);
    });
}

fn finished(rows: &[Running]) -> CrossEntropy {
    let lse = |row: &Running| row.max as f64 + row.sum.ln();
    CrossEntropy {
        logps: rows.iter().map(|row| (row.target as f64 - lse(row)) as f32).collect(),
        lse: rows.iter().map(|row| lse(row) as f32).collect(),
        argmax: rows.iter().map(|row| row.best).collect(),
    }
}

fn check_targets(targets: &[u32], head: &Linear) {
    let v = head.out_features();
    assert!(targets.iter().all(|&t| (t as usize) < v), "a target past the {v} rows of the head");
}

/// Logits of all rows of x against a part of the vocabulary, bias included.
fn chunk_logits(device: &Device, x: &[f32], head: &Linear, vocabulary: &Range<usize>, logits: &mut [f32]) {
    with_operand(device, Input::Plain(x), head, |a| {
        multiply_lanes(device, &a, head, vocabulary.clone(), Out::over(&mut *logits, vocabulary.len()));
    });
    if let Some(bias) = head.bias() {
        let bias = &bias.as_f32()[vocabulary.clone()];
        for row in logits.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(l, b)| *l += b);
        }
    }
}

fn continue_row(device: &Device, running: &mut Running, logits: &[f32], first: usize, target: usize) {
    // SAFETY: the logits of this row.
    let (max, sum) = unsafe { device.isa().run(LogSumExp { row: logits.as_ptr(), n: logits.len() }) };
    if max > running.max {
        running.sum = running.sum * (running.max as f64 - max as f64).exp() + sum;
        running.best = first as u32 + argmax(logits);
        running.max = max;
    } else {
        running.sum += sum * (max as f64 - running.max as f64).exp();
    }
    if let Some(logit) = target.checked_sub(first).and_then(|at| logits.get(at)) {
        running.target = *logit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{argmax_rows, linear, linear_grad_input, linear_grad_weight};
    use crate::reference;
    use crate::testing::{close, devices, normal, same_bits};
    use crate::{Dtype, Isa};

    fn case(r: usize, v: usize, d: usize, dtype: Dtype) -> (Tensor, Linear, Vec<u32>, Vec<f32>) {
        let head = Linear::new(normal("head", &[v, d]).cast(dtype), None);
        let targets = (0..r).map(|i| ((i * 2039 + 11) % v) as u32).collect();
        (normal("hidden", &[r, d]), head, targets, normal("dlogps", &[r]).to_f32_vec())
    }

    #[test]
    fn chunked_loss_and_gradients_equal_those_through_all_logits() {
        for device in devices() {
            // The last vocabulary is too large for the logits of 1,024 rows to be held.
            for (r, v, d) in [(1, 1, 1), (3, 50, 7), (70, 4500, 33), (1030, 2050, 16), (1030, 17_000, 4)] {
                if device.isa() == Isa::Portable && r > 1000 {
                    continue;
                }
                for dtype in [Dtype::F32, Dtype::Bf16] {
                    let what = format!("{device:?} {dtype:?} {r}x{v}x{d}");
                    let (hidden, head, targets, dlogps) = case(r, v, d, dtype);
                    let found = cross_entropy(&device, &hidden, &head, &targets);
                    let logits = linear(&device, &hidden, &head);
                    let logps = reference::log_softmax(logits.as_f32(), v);
                    let expected: Vec<f32> = (0..r).map(|i| logps[i * v + targets[i] as usize]).collect();
                    close(&found.logps, &expected, 1e-6, &what);
                    assert_eq!(found.argmax, argmax_rows(&device, &logits), "{what}");

                    let gradient = (0..r * v).map(|i| {
                        let onehot = if targets[i / v] as usize == i % v { 1.0 } else { 0.0 };
                        dlogps[i / v] * (onehot - logps[i].exp())
                    });
                    let dlogits = Tensor::from_f32(&[r, v], gradient.collect());
                    let inputs = CrossEntropyInputs { targets: &targets, lse: &found.lse, dlogps: &dlogps };
                    let mut dhidden = Tensor::zeros(&[r, d], Dtype::F32);
                    let (mut dhead, mut expected) = (normal("dhead", &[v, d]), normal("dhead", &[v, d]));
                    cross_entropy_backward(&device, &hidden, &head, &inputs, &mut dhidden, Some((&mut dhead, false)));
                    // The last bit of exp may push a gradient over a bf16 rounding step of 2^-9.
                    let tolerance = match dtype {
                        // What is compared with is one chain over the vocabulary.
                        Dtype::F32 if v > 16_384 => 4e-5,
                        Dtype::F32 => 1e-5,
                        Dtype::Bf16 => 4e-3,
                    };
                    close(dhidden.as_f32(), linear_grad_input(&device, &dlogits, &head).as_f32(), tolerance, &what);
                    linear_grad_weight(&device, &dlogits, &hidden, dtype, &mut expected, None);
                    close(dhead.as_f32(), expected.as_f32(), tolerance, &what);

                    let (mut dhidden_at_once, mut dhead_at_once) =
                        (Tensor::zeros(&[r, d], Dtype::F32), normal("dhead", &[v, d]));
                    let out = (&mut dhidden_at_once, Some((&mut dhead_at_once, false)));
                    let at_once = cross_entropy_at_once(&device, &hidden, &head, (&targets, &dlogps), out.0, out.1);
                    assert_eq!(at_once, found, "{what}");
                    same_bits(dhidden_at_once.as_f32(), dhidden.as_f32(), &what);
                    same_bits(dhead_at_once.as_f32(), dhead.as_f32(), &what);
                    let mut fresh = Tensor::zeros(&[v, d], Dtype::F32);
                    cross_entropy_backward(&device, &hidden, &head, &inputs, &mut dhidden, Some((&mut fresh, false)));
                    let inputs = CrossEntropyInputs { targets: &targets, lse: &found.lse, dlogps: &dlogps };
                    cross_entropy_backward(&device, &hidden, &head, &inputs, &mut dhidden, Some((&mut dhead, true)));
                    same_bits(dhead.as_f32(), fresh.as_f32(), &what);
                    let out = (&mut Tensor::zeros(&[r, d], Dtype::F32), Some((&mut dhead, true)));
                    cross_entropy_at_once(&device, &hidden, &head, (&targets, &dlogps), out.0, out.1);
                    same_bits(dhead.as_f32(), fresh.as_f32(), &what);
                }
            }
        }
    }

    #[test]
    fn a_rows_log_probability_does_not_depend_on_the_other_rows_or_the_threads() {
        let (hidden, head, targets, _) = case(70, 4500, 40, Dtype::Bf16);
        let all = cross_entropy(&Device::cpu(2), &hidden, &head, &targets);
        for row in [0, 13, 69] {
            let one = cross_entropy(&Device::cpu(1), &hidden.slice_rows(row, row + 1), &head, &targets[row..row + 1]);
            same_bits(&one.logps, &all.logps[row..row + 1], "logp");
            same_bits(&one.lse, &all.lse[row..row + 1], "lse");
        }
    }

    #[test]
    fn the_gradient_is_the_finite_difference_of_the_loss() {
        let (hidden, head, targets, dlogps) = case(3, 40, 6, Dtype::F32);
        let device = Device::cpu(1);
        let loss = |hidden: &Tensor, head: &Linear| -> f64 {
            let logps = cross_entropy(&device, hidden, head, &targets).logps;
            logps.iter().zip(&dlogps).map(|(l, w)| *l as f64 * *w as f64).sum()
        };
        let lse = cross_entropy(&device, &hidden, &head, &targets).lse;
        let inputs = CrossEntropyInputs { targets: &targets, lse: &lse, dlogps: &dlogps };
        let mut dhidden = Tensor::zeros(&[3, 6], Dtype::F32);
        let mut dhead = Tensor::zeros(&[40, 6], Dtype::F32);
        cross_entropy_backward(&device, &hidden, &head, &inputs, &mut dhidden, Some((&mut dhead, false)));
        let h = 1.0 / 64.0;
        for i in 0..18 {
            let at = |by: f32| {
                let mut x = hidden.clone();
                x.as_f32_mut()[i] += by;
                loss(&x, &head)
            };
            close(&[dhidden.as_f32()[i]], &[((at(h) - at(-h)) / (2.0 * h as f64)) as f32], 2e-3, "dhidden");
        }
        for i in (0..240).step_by(7) {
            let at = |by: f32| {
                let mut w = head.weight();
                w.as_f32_mut()[i] += by;
                loss(&hidden, &Linear::new(w, None))
            };
            close(&[dhead.as_f32()[i]], &[((at(h) - at(-h)) / (2.0 * h as f64)) as f32], 2e-3, "dhead");
        }
    }
}
