//! The products of a linear layer: output, gradient of the input, gradient of the weight.
//!
//! bf16 layers round both operands to bf16 and sum in f32; f32 layers stay f32; layers in block formats round their input to int8
//! blocks (`quant`). Each output element is one f32 chain over
//! the summed axis in index order, whatever the number of rows or threads.

use crate::gemm::{Gemm, PANEL, Tasks, even_share, units_of};
use crate::linear::Packed;
use crate::ops::operand::{Input, Operand, with_operand};
use crate::ops::{lora, rows_of};
use crate::pack::{Panels, Rows, Source, with_columns, with_rows};
use crate::pool::SharedMut;
use crate::quant::{Product, Task};
use crate::{Device, Dtype, Linear, Tensor};
use std::mem::MaybeUninit;

/// `y = x W^T + b`: x `[N, K]` to `[N, O]`.
pub fn linear(device: &Device, x: &Tensor, layer: &Linear) -> Tensor {
    let mut all = linears(device, x, &[layer]);
    all.pop().expect("one layer gives one output")
}

/// Several layers over the same x `[N, K]`, each as [`linear`] gives it: x is rounded once, and all products are one parallel loop.
pub fn linears(device: &Device, x: &Tensor, layers: &[&Linear]) -> Vec<Tensor> {
    match has_updates(layers) {
        true => lora::adapted(device, x, layers),
        false => products(device, x, layers),
    }
}

/// The same without the layers' low-rank updates.
pub(crate) fn products(device: &Device, x: &Tensor, layers: &[&Linear]) -> Vec<Tensor> {
    products_of(device, (Input::Plain(x.as_f32()), rows_of(x).1), layers, None)
}

fn has_updates(layers: &[&Linear]) -> bool {
    layers.iter().any(|layer| layer.lora().is_some())
}

/// [`linears`] over the RMS-normed rows of x `[N, K]`, as [`super::rms_norm`] gives them; they are never written.
pub fn norm_linears(device: &Device, x: &Tensor, w: &Tensor, eps: f32, layers: &[&Linear]) -> Vec<Tensor> {
    assert_eq!(w.shape(), [rows_of(x).1], "weight of a norm over {:?}", x.shape());
    if has_updates(layers) {
        return lora::adapted(device, &super::rms_norm(device, x, w, eps).0, layers);
    }
    products_of(device, (Input::Normed { x: x.as_f32(), w: w.as_f32(), eps }, rows_of(x).1), layers, None)
}

/// `x W^T + b + residual`: x `[N, K]`, residual `[N, O]`.
pub fn linear_add(device: &Device, x: &Tensor, layer: &Linear, residual: &Tensor) -> Tensor {
    if has_updates(&[layer]) {
        let mut sum = linear(device, x, layer);
        super::add_in_place(device, &mut sum, residual);
        return sum;
    }
    let mut all = products_of(device, (Input::Plain(x.as_f32()), rows_of(x).1), &[layer], Some(residual));
    all.pop().expect("one layer gives one output")
}

/// [`linear_add`] of `swiglu(gate, up)`, which is never written: gate and up `[N, K]`, residual `[N, O]`.
pub fn swiglu_linear_add(device: &Device, gate: &Tensor, up: &Tensor, layer: &Linear, residual: &Tensor) -> Tensor {
    assert_eq!(gate.shape(), up.shape(), "gate against up");
    if has_updates(&[layer]) {
        return linear_add(device, &super::swiglu(device, gate, up), layer, residual);
    }
    let input = Input::Gated { gate: gate.as_f32(), up: up.as_f32() };
    let mut all = products_of(device, (input, rows_of(gate).1), &[layer], Some(residual));
    all.pop().expect("one layer gives one output")
}

/// Says, before a product, that the one after it will be of these layers with few rows: each thread fetches the weights it will begin
/// with as soon as it waits for the others, as such a product waits for memory and nothing else. A hint, without which nothing changes
/// but the time.
pub fn expect_layers(device: &Device, layers: &[&Linear]) {
    /// About what comes while threads meet and the next rows are made.
    const BYTES: usize = 32 << 10;
    let panels: Vec<usize> = layers.iter().map(|layer| layer.out_features().div_ceil(PANEL)).collect();
    let share = even_share(&panels, device.threads());
    let n_tasks: usize = panels.iter().map(|n| n.div_ceil(share)).sum();
    device.soon(BYTES, |thread| {
        let mut task = thread * n_tasks / device.threads();
        for (layer, n) in layers.iter().zip(&panels) {
            if task < n.div_ceil(share) {
                return layer.panel_start(task * share);
            }
            task -= n.div_ceil(share);
        }
        std::ptr::null()
    });
}

/// The outputs `[N, O]` of layers over one input `[N, k]`; `residual` is added to each.
fn products_of(
    device: &Device,
    (input, k): (Input, usize),
    layers: &[&Linear],
    residual: Option<&Tensor>,
) -> Vec<Tensor> {
    let n = input.n_rows(k);
    let mut outputs = Vec::with_capacity(layers.len());
    // Layers in a row that take the same operand go together.
    for part in layers.chunk_by(|a, b| a.operand() == b.operand()) {
        assert!(part.iter().all(|layer| layer.in_features() == k), "an input of {k} numbers a row for another layer");
        // Not zeroed: the products write every number, and clearing on one thread would hold up the others.
        let mut part_outputs: Vec<Vec<f32>> =
            part.iter().map(|layer| Vec::with_capacity(n * layer.out_features())).collect();
        let panels: Vec<usize> = part.iter().map(|layer| layer.out_features().div_ceil(PANEL)).collect();
        let share = even_share(&panels, device.threads());
        let wide: Vec<Option<Panels>> = part.iter().map(|layer| layer.widened_for(device, n)).collect();
        with_operand(device, input, part[0], |a| {
            let works = part.iter().zip(&wide).zip(&mut part_outputs).map(|((layer, wide), y)| {
                let stride = layer.out_features();
                // A bias comes before the residual, which is then added below.
                let add = residual.filter(|_| layer.bias().is_none()).map(Tensor::as_f32);
                let out = Out::filling(y, n * stride, stride);
                Work::new((device, share), &a, (layer, wide.as_ref()), 0..stride, out).adding(add)
            });
            run_works(device, &works.collect::<Vec<_>>());
        });
        for (layer, mut y) in part.iter().zip(part_outputs) {
            // SAFETY: the products above wrote all n rows.
            unsafe { y.set_len(n * layer.out_features()) };
            if let Some(bias) = layer.bias() {
                add_bias(device, &mut y, bias.as_f32());
            }
            let mut y = Tensor::from_f32(&[n, layer.out_features()], y);
            if let Some(residual) = residual.filter(|_| layer.bias().is_some()) {
                super::add_in_place(device, &mut y, residual);
            }
            outputs.push(y);
        }
    }
    outputs
}

/// Rows `lanes` of the layer's weight against an operand made for it; starts at a multiple of 32.
pub(crate) fn multiply_lanes(device: &Device, a: &Operand, layer: &Linear, lanes: std::ops::Range<usize>, out: Out) {
    let share = even_share(&[lanes.len().div_ceil(PANEL)], device.threads());
    run_works(device, &[Work::new((device, share), a, (layer, None), lanes, out)]);
}

/// One product, ready to be shared out, and what is added to its result (as C lies, `[N, O]`).
struct Work<'a> {
    kind: Kind<'a>,
    add: Option<&'a [f32]>,
}

enum Kind<'a> {
    Dense(Gemm, Tasks),
    Blocks(Product<'a>, (usize, usize)),
}

impl<'a> Work<'a> {
    /// With few rows, `share` panels are a task. A narrow layer may have been widened.
    fn new(
        (device, share): (&Device, usize),
        a: &Operand,
        (layer, wide): (&'a Linear, Option<&Panels>),
        lanes: std::ops::Range<usize>,
        out: Out,
    ) -> Self {
        let kind = match (a, layer.packed()) {
            (Operand::Dense(a), Packed::Dense(panels)) => {
                let gemm = dense(a, wide.unwrap_or(panels), Lanes { first: lanes.start, n: lanes.len(), unit: 0 }, out);
                Kind::Dense(gemm, gemm.tasks(device, share))
            }
            (Operand::Blocks(a), Packed::Blocks(weight)) => {
                assert!(lanes.start.is_multiple_of(PANEL) && lanes.end <= weight.lanes && lanes.len() <= out.stride);
                assert!(a.blocks == weight.blocks() && out.c.len() == a.m * out.stride && !out.accumulate);
                let (first, n) = (lanes.start, lanes.len());
                let product = Product { a: *a, weight, first, n, c: out.c.as_mut_ptr().cast(), c_stride: out.stride };
                let tasks = product.tasks(device.threads(), share);
                Kind::Blocks(product, tasks)
            }
            _ => panic!("an operand made for another type of weight"),
        };
        Self { kind, add: None }
    }

    /// Adds numbers to the finished result, of which it has as many.
    fn adding(mut self, add: Option<&'a [f32]>) -> Self {
        let (m, stride) = match &mut self.kind {
            Kind::Dense(gemm, _) => {
                gemm.add = add.map_or(std::ptr::null(), <[f32]>::as_ptr);
                (gemm.m, gemm.c_stride)
            }
            Kind::Blocks(product, _) => (product.a.m, product.c_stride),
        };
        assert!(add.is_none_or(|add| add.len() == m * stride), "{m} x {stride} and a residual of another size");
        Self { add, ..self }
    }

    fn tasks(&self) -> usize {
        match &self.kind {
            Kind::Dense(gemm, tasks) if gemm.m > 0 && gemm.n > 0 => tasks.n,
            Kind::Dense(..) => 0,
            Kind::Blocks(_, (n, _)) => *n,
        }
    }

    /// One task of the product, and the residual's part of it.
    ///
    /// # Safety
    /// C is writable as the product says, and nobody else touches this task's part of it.
    unsafe fn run(&self, task: usize, isa: crate::Isa) {
        let (product, per_task) = match &self.kind {
            // A dense product adds while its sums are in registers.
            Kind::Dense(gemm, tasks) => return gemm.run_task(*tasks, task, isa),
            Kind::Blocks(product, (_, per_task)) => (product, *per_task),
        };
        isa.run(Task { product: *product, task, per_task });
        let Some(add) = self.add else { return };
        let (rows, lanes) = product.extent(task, per_task);
        for row in rows {
            let from = row * product.c_stride + lanes.start;
            let c = std::slice::from_raw_parts_mut(product.c.wrapping_add(from), lanes.len());
            c.iter_mut().zip(&add[from..from + lanes.len()]).for_each(|(c, add)| *c += add);
        }
    }
}

fn run_works(device: &Device, works: &[Work]) {
    let isa = device.isa();
    device.for_each(works.iter().map(Work::tasks).sum(), &|task| {
        let mut task = task;
        for work in works {
            if task < work.tasks() {
                // SAFETY: operand and weight fit each other and C (asserted when the work was made); works have their own C, and tasks
                // of one work write different elements of it.
                unsafe { work.run(task, isa) };
                return;
            }
            task -= work.tasks();
        }
    });
}

/// `dx = dy W`: dy `[N, O]` to `[N, K]`, the layer's low-rank update included.
pub fn linear_grad_input(device: &Device, dy: &Tensor, layer: &Linear) -> Tensor {
    let mut dx = grad_input(device, dy, layer);
    if let Some(lora) = layer.lora() {
        lora::add_grad_input(device, dy, lora, &mut dx);
    }
    dx
}

/// Rows of a weight in blocks that are widened at a time: with K of 14,336 a part is 7 MiB.
const WIDENED_ROWS: usize = 256;

/// `dy W` without the update. A weight in blocks is widened to bf16 part by part; each sum is one chain over O all the same.
pub(crate) fn grad_input(device: &Device, dy: &Tensor, layer: &Linear) -> Tensor {
    let (n, o) = rows_of(dy);
    let k = layer.in_features();
    assert_eq!(o, layer.out_features(), "gradient {:?} of a layer", dy.shape());
    let mut dx = vec![0.0; n * k];
    let in_blocks = layer.block_format().is_some();
    let rows_at_a_time = if in_blocks { WIDENED_ROWS } else { o.max(1) };
    let whole = (!in_blocks).then(|| layer.backward(device, 0..o));
    with_rows(device, dy.as_f32(), o, layer.dtype(), |a| {
        for start in (0..o).step_by(rows_at_a_time) {
            let part = start..(start + rows_at_a_time).min(o);
            let a = a.units(units_of(layer.dtype(), start), units_of(layer.dtype(), part.len()));
            let out = if start > 0 { Out::onto(&mut dx, k) } else { Out::over(&mut dx, k) };
            match &whole {
                Some(panels) => multiply(device, &a, panels, Lanes::all(panels), out),
                None => {
                    let panels = layer.backward(device, part);
                    multiply(device, &a, &panels, Lanes::all(&panels), out);
                }
            }
        }
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
        multiply(device, &a, x, Lanes::all(x), Out::onto(dw, x.lanes));
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

/// Where a product goes: numbers that it continues, or memory that it fills.
pub(crate) struct Out<'a> {
    c: &'a mut [MaybeUninit<f32>],
    stride: usize,
    accumulate: bool,
}

impl<'a> Out<'a> {
    /// Added to what is there, in rows of `stride` numbers.
    pub(crate) fn onto(c: &'a mut [f32], stride: usize) -> Self {
        Self { accumulate: true, ..Self::over(c, stride) }
    }

    /// In place of what is there.
    pub(crate) fn over(c: &'a mut [f32], stride: usize) -> Self {
        // SAFETY: a number is a number that may not be one yet, and products write nothing but numbers.
        let c = unsafe { &mut *(std::ptr::from_mut(c) as *mut [MaybeUninit<f32>]) };
        Self { c, stride, accumulate: false }
    }

    /// The first `n` numbers of a vector that holds none yet, but has room for them.
    fn filling(c: &'a mut Vec<f32>, n: usize, stride: usize) -> Self {
        Self { c: &mut c.spare_capacity_mut()[..n], stride, accumulate: false }
    }
}

/// `C (+)= A B` for as many rows as C has.
pub(crate) fn multiply(device: &Device, a: &Rows, b: &Panels, lanes: Lanes, out: Out) {
    let gemm = dense(a, b, lanes, out);
    // SAFETY: A was made for these rows and units, the panels hold the lanes and units asked for (asserted), C is ours.
    unsafe { gemm.run(device) }
}

fn dense(a: &Rows, b: &Panels, lanes: Lanes, out: Out) -> Gemm {
    let m = out.c.len().checked_div(out.stride).unwrap_or(0);
    assert!(lanes.first.is_multiple_of(PANEL) && lanes.first + lanes.n <= b.lanes && lanes.unit + a.units <= b.units);
    assert!(lanes.n <= out.stride);
    // Where a narrow panel's units begin depends on their number.
    assert!((lanes.unit, a.units) == (0, b.units) || !b.is_narrow(), "narrow panels are multiplied whole");
    Gemm {
        dtype: b.dtype,
        m,
        n: lanes.n,
        units: a.units,
        a: a.a,
        a_stride: a.stride,
        a_by_unit: a.by_unit,
        a_panel_stride: 0,
        b: b.as_ptr().wrapping_add(lanes.first / PANEL * b.panel_stride() + lanes.unit * PANEL),
        b_panel_stride: b.panel_stride(),
        b_unit_stride: b.unit_stride(),
        c: out.c.as_mut_ptr().cast(),
        c_stride: out.stride,
        accumulate: out.accumulate,
        add: std::ptr::null(),
        from_memory: true,
    }
}

pub(crate) fn add_bias(device: &Device, y: &mut [f32], bias: &[f32]) {
    let o = bias.len();
    let rows = SharedMut::new(y);
    let n = y.len() / o.max(1);
    device.for_each(n, &|row| {
        // SAFETY: each index has its own row.
        let row = unsafe { rows.slice(row * o, o) };
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    });
}

pub(crate) fn add_column_sums(device: &Device, dy: &[f32], db: &mut [f32]) {
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
