//! Low-rank updates of linear layers: output, gradient of the input, gradients of both factors.
//!
//! `y += scale * (drop(x) A^T) B^T` (PEFT's `lora.Linear.forward`), all of it in f32 whatever the type of the weight: with a small rank
//! the products cost less than rounding and packing their operands would, and the update is the one that is merged. Rows of a batch add
//! to a gradient in row order, as in `matmul`.

use crate::gemm::{Gemm, PANEL};
use crate::lora::{Lora, Mask};
use crate::ops::matmul::{Lanes, Out, grad_input, multiply, products};
use crate::ops::{linear_grad_weight, rows_of};
use crate::pack::{Panels, with_rows};
use crate::pool::SharedMut;
use crate::{Device, Dtype, Linear, Tensor};

/// The layers' outputs over one x `[N, K]`, updates included. All A's are multiplied in the same parallel loop as the weights.
pub(crate) fn adapted(device: &Device, x: &Tensor, layers: &[&Linear]) -> Vec<Tensor> {
    let together = |lora: &Lora| lora.mask().is_none();
    let shared = layers.iter().filter_map(|layer| layer.lora()).filter(|lora| together(lora)).map(Lora::a);
    let mut outputs = products(device, x, &layers.iter().copied().chain(shared).collect::<Vec<_>>());
    let mut inner = outputs.split_off(layers.len()).into_iter();
    for (layer, y) in layers.iter().zip(&mut outputs) {
        let Some(lora) = layer.lora() else { continue };
        let h =
            if together(lora) { inner.next() } else { products(device, &dropped(device, x, lora), &[lora.a()]).pop() };
        let h = scaled(h.expect("each A gives an output"), lora.scale());
        let o = layer.out_features();
        add_product(device, &h, forward_panels(lora.b()), Out::onto(y.as_f32_mut(), o));
    }
    outputs
}

/// Adds to `dx` `[N, K]` what the update of the layer contributes: `scale * (dy B) A`, through the dropout.
pub(crate) fn add_grad_input(device: &Device, dy: &Tensor, lora: &Lora, dx: &mut Tensor) {
    let dh = scaled(grad_input(device, dy, lora.b()), lora.scale());
    let k = lora.a().in_features();
    let Some(mask) = lora.mask() else {
        let out = Out::onto(dx.as_f32_mut(), k);
        return add_product(device, &dh, &lora.a().backward(device, 0..lora.a().out_features()), out);
    };
    let mut through = grad_input(device, &dh, lora.a());
    apply(device, &mask, &mut through);
    crate::ops::add_in_place(device, dx, &through);
}

/// Adds the gradients of A `[rank, K]` and B `[O, rank]` for a layer with an update, given its input x `[N, K]` and the gradient dy
/// `[N, O]` of its output. Gradients are f32.
pub fn lora_grad(device: &Device, dy: &Tensor, x: &Tensor, layer: &Linear, da: &mut Tensor, db: &mut Tensor) {
    let lora = layer.lora().expect("a layer with an update");
    let masked;
    let x = match lora.mask() {
        None => x,
        Some(_) => {
            masked = dropped(device, x, lora);
            &masked
        }
    };
    let h = products(device, x, &[lora.a()]).pop().expect("one layer gives one output");
    let mut db_columns = transposed(db);
    add_outer(device, &scaled(h, lora.scale()), dy, &mut db_columns);
    *db = transposed(&db_columns);
    let dh = scaled(grad_input(device, dy, lora.b()), lora.scale());
    add_outer(device, &dh, x, da);
}

/// `out += left^T right` in f32, rows in order: left `[N, m]`, right `[N, n]`, out `[m, n]`. Neither is packed where n fills its panels.
fn add_outer(device: &Device, left: &Tensor, right: &Tensor, out: &mut Tensor) {
    let ((n_rows, m), (_, n)) = (rows_of(left), rows_of(right));
    if !n.is_multiple_of(PANEL) {
        return linear_grad_weight(device, left, right, Dtype::F32, out, None);
    }
    assert!(right.len() == n_rows * n && out.len() == m * n, "{:?} x {:?}", left.shape(), right.shape());
    let gemm = Gemm {
        dtype: Dtype::F32,
        m,
        n,
        units: n_rows,
        a: left.as_f32().as_ptr().cast(),
        a_stride: m,
        a_by_unit: true,
        a_panel_stride: 0,
        b: right.as_f32().as_ptr().cast(),
        b_panel_stride: PANEL,
        b_unit_stride: n,
        c: out.as_f32_mut().as_mut_ptr(),
        c_stride: n,
        accumulate: true,
        add: std::ptr::null(),
        from_memory: false,
    };
    // SAFETY: units are the rows of both operands, n is whole panels, so every lane read is an element; out is ours (asserted).
    unsafe { gemm.run(device) }
}

fn transposed(x: &Tensor) -> Tensor {
    let (n, width) = rows_of(x);
    let mut out = vec![0.0; x.len()];
    for (row, values) in x.as_f32().chunks_exact(width).enumerate() {
        values.iter().enumerate().for_each(|(column, value)| out[column * n + row] = *value);
    }
    Tensor::from_f32(&[width, n], out)
}

fn forward_panels(layer: &Linear) -> &Panels {
    match layer.packed() {
        crate::linear::Packed::Dense(panels) => panels,
        crate::linear::Packed::Blocks(_) => unreachable!("factors are dense"),
    }
}

/// `C += x B` for x `[N, rank]`.
fn add_product(device: &Device, x: &Tensor, panels: &Panels, out: Out) {
    with_rows(device, x.as_f32(), rows_of(x).1, panels.dtype, |a| {
        multiply(device, &a, panels, Lanes::all(panels), out)
    });
}

fn scaled(mut x: Tensor, scale: f32) -> Tensor {
    x.as_f32_mut().iter_mut().for_each(|value| *value *= scale);
    x
}

fn dropped(device: &Device, x: &Tensor, lora: &Lora) -> Tensor {
    let mut x = x.clone();
    if let Some(mask) = lora.mask() {
        apply(device, &mask, &mut x);
    }
    x
}

fn apply(device: &Device, mask: &Mask, x: &mut Tensor) {
    let (n, k) = rows_of(x);
    let rows = SharedMut::new(x.as_f32_mut());
    device.for_each(n, &|row| {
        // SAFETY: each index has its own row.
        mask.apply(row, unsafe { rows.slice(row * k, k) });
    });
}

#[cfg(test)]
mod tests;
