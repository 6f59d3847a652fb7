//! The products of a linear layer: output, gradient of the input, gradient of the weight.
//!
//! bf16 layers round both operands to bf16 and sum in f32; f32 layers stay f32. Each output element is one f32 chain over
//! the summed axis in index order, whatever the number of rows or threads.

use crate::gemm::{Gemm, PANEL};
use crate::ops::rows_of;
use crate::pack::{Panels, Rows, Source, with_columns, with_rows};
use crate::pool::SharedMut;
use crate::{Device, Dtype, Linear, Tensor};

/// `y = x W^T + b`: x `[N, K]` to `[N, O]`.
pub fn linear(device: &Device, x: &Tensor, layer: &Linear) -> Tensor {
    let (n, k) = rows_of(x);
    let o = layer.out_features();
    assert_eq!(k, layer.in_features(), "input {:?} of a layer", x.shape());
    let mut y = vec![0.0; n * o];
    with_rows(device, x.as_f32(), k, layer.dtype(), |a| {
        multiply(
            device,
            &a,
            layer.forward(),
            Lanes::all(layer.forward()),
            Out { c: &mut y, stride: o, accumulate: false },
        );
    });
    if let Some(bias) = layer.bias() {
        add_bias(device, &mut y, bias.as_f32());
    }
    Tensor::from_f32(&[n, o], y)
}

/// `dx = dy W`: dy `[N, O]` to `[N, K]`.
pub fn linear_grad_input(device: &Device, dy: &Tensor, layer: &Linear) -> Tensor {
    let (n, o) = rows_of(dy);
    let k = layer.in_features();
    assert_eq!(o, layer.out_features(), "gradient {:?} of a layer", dy.shape());
    let mut dx = vec![0.0; n * k];
    let panels = layer.backward(device);
    with_rows(device, dy.as_f32(), o, layer.dtype(), |a| {
        multiply(device, &a, panels, Lanes::all(panels), Out { c: &mut dx, stride: k, accumulate: false });
    });
    Tensor::from_f32(&[n, k], dx)
}

/// `dw += dy^T x` (`[O, K]`, operands rounded to `compute`) and `db += sum of dy's rows`, in row order.
pub fn linear_grad_weight(
    device: &Device,
    dy: &Tensor,
    x: &Tensor,
    compute: Dtype,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
) {
    let ((n, o), (n_x, k)) = (rows_of(dy), rows_of(x));
    assert_eq!((n, dw.shape()), (n_x, &[o, k][..]), "dy {:?}, x {:?}, dw {:?}", dy.shape(), x.shape(), dw.shape());
    let mut panels = Panels::new(compute, k, n);
    panels.fill_from_columns(device, Source::F32(x.as_f32()), n);
    grad_weight_part(device, dy.as_f32(), o, &panels, dw.as_f32_mut());
    if let Some(db) = db {
        add_column_sums(device, dy.as_f32(), db.as_f32_mut());
    }
}

/// Adds `dy^T x` to dw `[o, K]`, x already packed over its columns.
pub(crate) fn grad_weight_part(device: &Device, dy: &[f32], o: usize, x: &Panels, dw: &mut [f32]) {
    with_columns(device, dy, o, x.dtype, |a| {
        multiply(device, &a, x, Lanes::all(x), Out { c: dw, stride: x.lanes, accumulate: true });
    });
}

/// Which part of packed panels enters a product.
#[derive(Clone, Copy)]
pub(crate) struct Lanes {
    /// First lane, a multiple of 32.
    pub(crate) first: usize,
    pub(crate) n: usize,
    /// First unit; the number of units is A's.
    pub(crate) unit: usize,
}

impl Lanes {
    pub(crate) fn all(panels: &Panels) -> Self {
        Self { first: 0, n: panels.lanes, unit: 0 }
    }
}

/// Where a product goes.
pub(crate) struct Out<'a> {
    pub(crate) c: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) accumulate: bool,
}

/// `C (+)= A B` for as many rows as C has.
pub(crate) fn multiply(device: &Device, a: &Rows, b: &Panels, lanes: Lanes, out: Out) {
    let m = out.c.len().checked_div(out.stride).unwrap_or(0);
    assert!(lanes.first.is_multiple_of(PANEL) && lanes.first + lanes.n <= b.lanes && lanes.unit + a.units <= b.units);
    assert!(lanes.n <= out.stride);
    let gemm = Gemm {
        dtype: b.dtype,
        m,
        n: lanes.n,
        units: a.units,
        a: a.a,
        a_stride: a.stride,
        a_by_unit: a.by_unit,
        b: b.as_ptr().wrapping_add(lanes.first / PANEL * b.panel_stride() + lanes.unit * PANEL),
        b_panel_stride: b.panel_stride(),
        b_unit_stride: PANEL,
        c: out.c.as_mut_ptr(),
        c_stride: out.stride,
        accumulate: out.accumulate,
    };
    // SAFETY: A was made for these rows and units, the panels hold the lanes and units asked for (asserted), C is ours.
    unsafe { gemm.run(device) }
}

fn add_bias(device: &Device, y: &mut [f32], bias: &[f32]) {
    let o = bias.len();
    let rows = SharedMut::new(y);
    let n = y.len() / o.max(1);
    device.for_each(n, &|row| {
        // SAFETY: each index has its own row.
        let row = unsafe { rows.slice(row * o, o) };
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    });
}

fn add_column_sums(device: &Device, dy: &[f32], db: &mut [f32]) {
    const WIDTH: usize = 256;
    let o = db.len();
    let columns = SharedMut::new(db);
    device.for_each(o.div_ceil(WIDTH), &|task| {
        let (from, n) = (task * WIDTH, WIDTH.min(o - task * WIDTH));
        // SAFETY: each index has its own columns.
        let db = unsafe { columns.slice(from, n) };
        for row in dy.chunks_exact(o) {
            db.iter_mut().zip(&row[from..from + n]).for_each(|(b, g)| *b += g);
        }
    });
}

#[cfg(test)]
mod tests;
