//! Element-wise operations: SwiGLU, GELU, addition, scaling.

use crate::{Device, Tensor, reference};

fn same_shape(a: &Tensor, b: &Tensor) {
    assert_eq!(a.shape(), b.shape(), "operands differ in shape");
}

/// `silu(gate) * up`, element by element (Shazeer 2020, eq. 6).
pub fn swiglu(_device: &Device, gate: &Tensor, up: &Tensor) -> Tensor {
    same_shape(gate, up);
    Tensor::from_f32(gate.shape(), reference::swiglu(gate.as_f32(), up.as_f32()))
}

/// Gradients of [`swiglu`]: (dgate, dup).
pub fn swiglu_backward(_device: &Device, dh: &Tensor, gate: &Tensor, up: &Tensor) -> (Tensor, Tensor) {
    same_shape(gate, up);
    same_shape(gate, dh);
    let (dgate, dup) = reference::swiglu_backward(dh.as_f32(), gate.as_f32(), up.as_f32());
    (Tensor::from_f32(gate.shape(), dgate), Tensor::from_f32(gate.shape(), dup))
}

/// GELU with the exact error function, as BERT has it.
pub fn gelu(_device: &Device, x: &Tensor) -> Tensor {
    Tensor::from_f32(x.shape(), reference::gelu(x.as_f32()))
}

/// `a += b`.
pub fn add_in_place(_device: &Device, a: &mut Tensor, b: &Tensor) {
    same_shape(a, b);
    for (a, &b) in a.as_f32_mut().iter_mut().zip(b.as_f32()) {
        *a += b;
    }
}

/// `a *= factor`.
pub fn scale(_device: &Device, a: &mut Tensor, factor: f32) {
    for a in a.as_f32_mut() {
        *a *= factor;
    }
}
