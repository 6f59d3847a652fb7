//! RMSNorm forward and backward, LayerNorm forward.

use crate::{Device, Tensor, reference};

/// `y = x / sqrt(mean(x^2) + eps) * w` over the last axis; returns y and `1 / sqrt(..)` per row `[N]`.
pub fn rms_norm(_device: &Device, x: &Tensor, w: &Tensor, eps: f32) -> (Tensor, Tensor) {
    let (y, rstd) = reference::rms_norm(x.as_f32(), w.as_f32(), eps);
    (Tensor::from_f32(x.shape(), y), Tensor::from_f32(&[rstd.len()], rstd))
}

/// Gradient of [`rms_norm`]: returns dx; adds to `dw` in row order.
pub fn rms_norm_backward(
    _device: &Device,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
    dw: &mut Tensor,
) -> Tensor {
    let (dx, add) = reference::rms_norm_backward(dy.as_f32(), x.as_f32(), w.as_f32(), rstd.as_f32());
    for (a, b) in dw.as_f32_mut().iter_mut().zip(add) {
        *a += b;
    }
    Tensor::from_f32(x.shape(), dx)
}

/// `(x - mean) / sqrt(var + eps) * w + b` over the last axis.
pub fn layer_norm(_device: &Device, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Tensor {
    Tensor::from_f32(x.shape(), reference::layer_norm(x.as_f32(), w.as_f32(), b.as_f32(), eps))
}
