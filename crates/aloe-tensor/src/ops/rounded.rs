//! The products of a linear layer over operands that were rounded once: output, gradient of the input, gradient of the weight.
//!
//! The numbers are those of `matmul`'s bf16 products; what differs is who rounds, and how often. A sum of several products is one chain.

use crate::gemm::{Gemm, PANEL, even_share};
use crate::linear::Packed;
use crate::ops::add_in_place;
use crate::ops::matmul::{add_bias, add_column_sums, linear_grad_input, linears};
use crate::pack::Panels;
use crate::{Device, Dtype, Linear, Rounded, Tensor};

/// Several layers over the same x `[N, K]`: f32 outputs `[N, O]`, all products in one parallel loop.
pub fn linears_rounded(device: &Device, x: &Rounded, layers: &[&Linear]) -> Vec<Tensor> {
    let n = x.rows();
    if layers.iter().any(|layer| dense(layer).is_none()) {
        return linears(device, &x.to_tensor(), layers);
    }
    let mut outputs: Vec<Vec<f32>> = layers.iter().map(|layer| Vec::with_capacity(n * layer.out_features())).collect();
    let wide: Vec<Option<Panels>> = layers.iter().map(|layer| layer.widened_for(device, n)).collect();
    let product = |((layer, wide), y): ((&&Linear, &Option<Panels>), &mut Vec<f32>)| {
        forward(x, (layer, wide.as_ref()), y.as_mut_ptr(), std::ptr::null())
    };
    let products: Vec<Gemm> = layers.iter().zip(&wide).zip(&mut outputs).map(product).collect();
    // SAFETY: operands and outputs fit each other; outputs are apart.
    unsafe { run_all(device, &products) };
    let finish = |(layer, mut y): (&&Linear, Vec<f32>)| {
        let o = layer.out_features();
        // SAFETY: the product wrote all n rows of o numbers.
        unsafe { y.set_len(n * o) };
        if let Some(bias) = layer.bias() {
            add_bias(device, &mut y, bias.as_f32());
        }
        Tensor::from_f32(&[n, o], y)
    };
    layers.iter().zip(outputs).map(finish).collect()
}

/// `onto + x W^T` for a layer without bias, `onto` being f32 `[N, O]`: each element's product is summed on its own and then added.
pub fn linear_rounded_onto(device: &Device, x: &Rounded, layer: &Linear, onto: &Tensor) -> Tensor {
    let shape = [x.rows(), layer.out_features()];
    assert_eq!(onto.shape(), shape, "what a product of {shape:?} is added to");
    if dense(layer).is_none() || layer.bias().is_some() {
        let mut y = linears_rounded(device, x, &[layer]).pop().expect("one layer gives one output");
        add_in_place(device, &mut y, onto);
        return y;
    }
    let wide = layer.widened_for(device, x.rows());
    // SAFETY: the product writes every element of y; `onto` has y's shape.
    unsafe {
        Tensor::written(&shape, |y| run_all(device, &[forward(x, (layer, wide.as_ref()), y, onto.as_f32().as_ptr())]))
    }
}

/// Sum over (dy, layer) of `dy W`: `[N, K]` f32, all layers having the same K.
pub fn grad_input_rounded(device: &Device, parts: &[(&Rounded, &Linear)]) -> Tensor {
    let (n, k) = (parts[0].0.rows(), parts[0].1.in_features());
    if parts.iter().any(|(_, layer)| dense(layer).is_none()) {
        let mut sums = parts.iter().map(|(dy, layer)| linear_grad_input(device, &dy.to_tensor(), layer));
        let mut first = sums.next().expect("there is a product");
        sums.for_each(|sum| add_in_place(device, &mut first, &sum));
        return first;
    }
    let weights: Vec<Panels> = parts.iter().map(|(_, layer)| layer.backward(device, 0..layer.out_features())).collect();
    // SAFETY: the first product writes every element, the others continue; operands fit (asserted in `product`).
    unsafe {
        Tensor::written(&[n, k], |c| {
            for (i, ((dy, layer), weight)) in parts.iter().zip(&weights).enumerate() {
                assert!(dy.rows() == n && layer.in_features() == k && dy.width() == layer.out_features());
                run_all(device, &[Gemm { accumulate: i > 0, ..product(dy, weight, c) }]);
            }
        })
    }
}

/// `dw += dy^T x` for each (dy, dw, fresh): dy `[N, O]`, x `[N, K]`, dw `[O, K]`; where `fresh`, dw is written, whatever it held.
pub fn grad_weights_rounded(device: &Device, x: &Rounded, parts: &mut [(&Rounded, &mut Tensor, bool)]) {
    let (b, k) = (x.paired(device), x.width());
    let rows: Vec<Panels> = parts.iter().map(|(dy, ..)| dy.paired(device)).collect();
    let products: Vec<Gemm> = parts
        .iter_mut()
        .zip(&rows)
        .map(|((dy, dw, fresh), a)| {
            let o = dy.width();
            assert!(dy.rows() == x.rows() && dw.shape() == [o, k], "dy of {o}, x of {k}, dw {:?}", dw.shape());
            weight_product(a, &b, dw.as_f32_mut().as_mut_ptr(), *fresh)
        })
        .collect();
    // SAFETY: operands of as many units, gradients of their shape (asserted); each product has its own.
    unsafe { run_all(device, &products) };
}

/// `db += sum of dy's rows`, in row order: dy `[N, O]`, db `[O]`.
pub fn grad_bias_rounded(device: &Device, dy: &Rounded, db: &mut Tensor) {
    add_column_sums(device, dy.to_tensor().as_f32(), db.as_f32_mut());
}

/// `c (+)= a^T b`, both operands paired over the same rows: c `[lanes of a, lanes of b]`.
pub(crate) fn weight_product(a: &Panels, b: &Panels, c: *mut f32, fresh: bool) -> Gemm {
    assert_eq!((a.units, a.dtype), (b.units, b.dtype), "operands over other rows");
    Gemm {
        dtype: Dtype::Bf16,
        m: a.lanes,
        n: b.lanes,
        units: b.units,
        a: a.as_ptr(),
        a_stride: PANEL,
        a_by_unit: true,
        a_panel_stride: a.panel_stride(),
        b: b.as_ptr(),
        b_panel_stride: b.panel_stride(),
        b_unit_stride: b.unit_stride(),
        c,
        c_stride: b.lanes,
        accumulate: !fresh,
        add: std::ptr::null(),
        from_memory: false,
    }
}

/// The panels of a dense bf16 layer; f32 layers and blocks round otherwise.
pub(crate) fn dense(layer: &Linear) -> Option<&Panels> {
    match layer.packed() {
        Packed::Dense(panels) if panels.dtype == Dtype::Bf16 => Some(panels),
        _ => None,
    }
}

/// Over the layer's panels, or over those that it was widened to.
fn forward(x: &Rounded, (layer, wide): (&Linear, Option<&Panels>), c: *mut f32, add: *const f32) -> Gemm {
    let panels = dense(layer).expect("the caller asked");
    Gemm { add, ..product(x, wide.unwrap_or(panels), c) }
}

/// `c = x B`, all lanes of B.
pub(crate) fn product(x: &Rounded, b: &Panels, c: *mut f32) -> Gemm {
    let a = x.operand();
    assert_eq!(a.units, b.units, "rows of {} against panels", x.width());
    Gemm {
        dtype: Dtype::Bf16,
        m: x.rows(),
        n: b.lanes,
        units: a.units,
        a: a.a,
        a_stride: a.stride,
        a_by_unit: false,
        a_panel_stride: 0,
        b: b.as_ptr(),
        b_panel_stride: b.panel_stride(),
        b_unit_stride: b.unit_stride(),
        c,
        c_stride: b.lanes,
        accumulate: false,
        add: std::ptr::null(),
        from_memory: true,
    }
}

/// Products with outputs of their own, in one parallel loop.
///
/// # Safety
/// As for [`Gemm::run`], for each of them.
pub(crate) unsafe fn run_all(device: &Device, products: &[Gemm]) {
    let isa = device.isa();
    debug_assert!(products.iter().all(|gemm| gemm.units > 0), "a product over no numbers writes nothing");
    let panels: Vec<usize> = products.iter().map(|gemm| gemm.n.div_ceil(PANEL)).collect();
    let share = even_share(&panels, device.threads());
    let works: Vec<_> = products
        .iter()
        .filter(|gemm| gemm.m > 0 && gemm.n > 0)
        .map(|gemm| (*gemm, gemm.tasks(device, share)))
        .collect();
    device.for_each(works.iter().map(|(_, tasks)| tasks.n).sum(), &|mut task| {
        for (gemm, tasks) in &works {
            if task < tasks.n {
                // SAFETY: tasks of one product write different elements, products write elsewhere.
                unsafe { gemm.run_task(*tasks, task, isa) };
                return;
            }
            task -= tasks.n;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{linear_grad_weight, linears};
    use crate::testing::{close, devices, normal, same_bits};

    #[test]
    fn products_of_rounded_rows_are_those_of_the_rows_bit_for_bit() {
        for device in devices() {
            for (n, o, k) in [(1, 1, 2), (3, 5, 7), (17, 65, 31), (40, 31, 515), (61, 97, 1030), (130, 300, 96)] {
                let what = format!("{device:?} {n}x{o}x{k}");
                let (x, dy) = (normal("x", &[n, k]), normal("dy", &[n, o]));
                let layer = |name| Linear::new(normal(name, &[o, k]).cast(Dtype::Bf16), None);
                let (one, two) = (layer("one"), layer("two"));
                let (rx, rdy) = (Rounded::new(&device, &x), Rounded::new(&device, &dy));
                let expected = linears(&device, &x, &[&one, &two]);
                let found = linears_rounded(&device, &rx, &[&one, &two]);
                found.iter().zip(&expected).for_each(|(a, b)| same_bits(a.as_f32(), b.as_f32(), &what));
                let mut sum = expected[0].clone();
                add_in_place(&device, &mut sum, &dy);
                same_bits(linear_rounded_onto(&device, &rx, &one, &dy).as_f32(), sum.as_f32(), &what);

                let once = linear_grad_input(&device, &dy, &one);
                same_bits(grad_input_rounded(&device, &[(&rdy, &one)]).as_f32(), once.as_f32(), &what);
                let mut twice = once.clone();
                add_in_place(&device, &mut twice, &linear_grad_input(&device, &dy, &two));
                let both = grad_input_rounded(&device, &[(&rdy, &one), (&rdy, &two)]);
                close(both.as_f32(), twice.as_f32(), 1e-6 * (o as f32).max(16.0), &what);

                for fresh in [false, true] {
                    let mut expected = if fresh { Tensor::zeros(&[o, k], Dtype::F32) } else { normal("dw", &[o, k]) };
                    let mut found = normal("dw", &[o, k]);
                    linear_grad_weight(&device, &dy, &x, Dtype::Bf16, &mut expected, None);
                    grad_weights_rounded(&device, &rx, &mut [(&rdy, &mut found, fresh)]);
                    same_bits(found.as_f32(), expected.as_f32(), &what);
                }
            }
        }
    }
}
