//! One file per operation: what it computes, its shapes, forward and backward.
//!
//! The first argument is the device. Activations are f32, rows first. Every operation allocates its outputs; gradients of
//! parameters accumulate into the tensor given.

mod activation;
pub mod attention;
pub mod distribution;
mod embedding;
mod gated;
mod lora;
pub mod loss;
mod matmul;
mod norm;
mod operand;
pub mod optimizer;
pub mod rope;
mod rounded;
mod rows;

pub use activation::{
    SwigluRounded, add_in_place, gelu, scale, swiglu, swiglu_backward, swiglu_rounded, swiglu_rounded_backward,
};
pub use attention::{
    attention, attention_backward, attention_cached, attention_paged, attention_paged_rounded, attention_rounded,
    attention_rounded_backward, expect_page, write_pages,
};
pub use embedding::{embedding, embedding_grad, embedding_grads};
pub use gated::norm_swiglu_linear_add;
pub use lora::lora_grad;
pub use loss::{cross_entropy, cross_entropy_at_once, cross_entropy_backward};
pub use matmul::{
    expect_layers, linear, linear_add, linear_grad_input, linear_grad_weight, linears, norm_linears, swiglu_linear_add,
};
pub use norm::{layer_norm, rms_norm, rms_norm_backward, rms_norm_backward_onto, rms_norm_rounded};
pub use optimizer::{adamw_step, sum_of_squares};
pub use rope::{rope, rope_backward, rope_rounded};
pub use rounded::{grad_bias_rounded, grad_input_rounded, grad_weights_rounded, linear_rounded_onto, linears_rounded};
pub use rows::{argmax_rows, log_softmax_rows, top_k_rows};

/// Rows and row width of a tensor seen as `[rows, width]`, the last axis being the width.
pub(crate) fn rows_of(x: &crate::Tensor) -> (usize, usize) {
    let width = *x.shape().last().expect("a tensor of rows has at least one axis");
    (x.len().checked_div(width).unwrap_or(0), width)
}

/// Runs `body(from, n)` over parts of `0..n`, in parallel.
pub(crate) fn elementwise(device: &crate::Device, n: usize, body: &(dyn Fn(usize, usize) + Sync)) {
    const PART: usize = 16384;
    device.for_each(n.div_ceil(PART), &|part| body(part * PART, PART.min(n - part * PART)));
}

/// Zeros in f32, written by all threads: a buffer that was used before has to be cleared.
pub(crate) fn zeros(device: &crate::Device, shape: &[usize]) -> crate::Tensor {
    // SAFETY: the parts of the loop are all of the elements, and do not overlap.
    unsafe {
        crate::Tensor::written(shape, |out| {
            let out = crate::pool::SharedMut::from_raw(out, shape.iter().product());
            elementwise(device, shape.iter().product(), &|from, n| out.ptr().wrapping_add(from).write_bytes(0, n));
        })
    }
}
