//! AdamW and the norm of gradients.

use crate::{Device, Tensor, reference};

/// Settings of one step (Loshchilov & Hutter 2019; PyTorch's `torch.optim.AdamW`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added outside the square root.
    pub eps: f32,
    /// Decoupled: the parameter is multiplied by `1 - lr * weight_decay`.
    pub weight_decay: f32,
    /// 1 for the first step.
    pub step: u64,
    /// The gradient is multiplied by this first (clipping, averaging).
    pub grad_scale: f32,
}

/// One step on f32 masters: updates `param`, `m` and `v` from `grad`.
pub fn adamw_step(
    _device: &Device,
    param: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    grad: &Tensor,
    settings: &AdamW,
) {
    assert!(settings.step >= 1, "the first step is 1");
    assert!(param.shape() == m.shape() && param.shape() == v.shape() && param.shape() == grad.shape());
    reference::adamw((param.as_f32_mut(), m.as_f32_mut(), v.as_f32_mut()), grad.as_f32(), settings);
}

/// Sum of the squares of all elements in f64, in an order that does not depend on the threads.
pub fn sum_of_squares(_device: &Device, x: &Tensor) -> f64 {
    x.as_f32().iter().map(|&v| v as f64 * v as f64).sum()
}
