//! Cross-entropy through the head, never holding all logits.

use crate::ops::matmul::{linear, linear_grad_input, linear_grad_weight};
use crate::ops::rows::argmax;
use crate::{Device, Linear, Tensor, reference};

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
    /// Gradient of the loss with respect to each `logps[r]` `[R]`: -1/n for a mean loss. Rows with 0 cost nothing in value.
    pub dlogps: &'a [f32],
}

/// Log-probabilities of `targets` under `softmax(hidden W^T + b)`: hidden `[R, D]`, head `[V, D]`.
pub fn cross_entropy(device: &Device, hidden: &Tensor, head: &Linear, targets: &[u32]) -> CrossEntropy {
    let mut out = CrossEntropy { logps: Vec::new(), lse: Vec::new(), argmax: Vec::new() };
    for (r, &target) in targets.iter().enumerate() {
        let logits = linear(device, &hidden.slice_rows(r, r + 1), head);
        let row = logits.as_f32();
        let lse = reference::log_sum_exp(row);
        out.logps.push((row[target as usize] as f64 - lse) as f32);
        out.lse.push(lse as f32);
        out.argmax.push(argmax(row));
    }
    out
}

/// Adds to `dhidden` `[R, D]` and `dhead` `[V, D]` (f32): `dlogits = dlogp (onehot - softmax)`.
pub fn cross_entropy_backward(
    device: &Device,
    hidden: &Tensor,
    head: &Linear,
    inputs: &CrossEntropyInputs,
    dhidden: &mut Tensor,
    dhead: Option<&mut Tensor>,
) {
    let mut logits = linear(device, hidden, head);
    let v = head.out_features();
    for (r, row) in logits.as_f32_mut().chunks_mut(v).enumerate() {
        for (i, l) in row.iter_mut().enumerate() {
            let onehot = if i == inputs.targets[r] as usize { 1.0 } else { 0.0 };
            *l = inputs.dlogps[r] * (onehot - (*l - inputs.lse[r]).exp());
        }
    }
    crate::ops::add_in_place(device, dhidden, &linear_grad_input(device, &logits, head));
    if let Some(dhead) = dhead {
        linear_grad_weight(device, &logits, hidden, head.dtype(), dhead, None);
    }
}
