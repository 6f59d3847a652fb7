//! Products against the plain twin, and the laws of rows, threads and layouts.

use super::*;
use crate::reference::Matrix;
use crate::testing::{close, devices, normal, same_bits};
use crate::{BlockFormat, Isa};

const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (3, 5, 7),
    (2, 130, 33),
    (13, 32, 64),
    (17, 65, 31),
    (5, 200, 600),
    (40, 31, 515),
    (250, 70, 96),
    (61, 97, 1030),
];

fn matrix(t: &Tensor) -> Matrix {
    Matrix::new(t.shape()[0], t.shape()[1], &t.to_f32_vec())
}

/// A sum of k products of standard normals, each rounded once to f32: about k times half a unit in the last place of its size.
fn tolerance(k: usize) -> f32 {
    1e-6 * (k as f32).max(16.0)
}

#[test]
fn linear_and_both_gradients_agree_with_the_plain_loops_on_every_instruction_set() {
    for device in devices() {
        for (n, o, k) in SIZES {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let what = format!("{device:?} {dtype:?} {n}x{o}x{k}");
                let (x, w, b) = (normal("x", &[n, k]), normal("w", &[o, k]).cast(dtype), normal("b", &[o]));
                let (dy, dw0) = (normal("dy", &[n, o]), normal("dw", &[o, k]));
                let layer = Linear::new(w.clone(), Some(b.clone()));
                let round = |t: &Tensor| matrix(t).rounded(dtype);

                let mut y = round(&x).times_transposed(&matrix(&w));
                y.data.chunks_mut(o).for_each(|row| row.iter_mut().zip(b.as_f32()).for_each(|(y, b)| *y += b));
                close(linear(&device, &x, &layer).as_f32(), &y.data, tolerance(k), &what);

                let dx = round(&dy).times_transposed(&matrix(&w).transposed());
                close(linear_grad_input(&device, &dy, &layer).as_f32(), &dx.data, tolerance(o), &what);

                let (mut dw, mut db) = (dw0.clone(), Tensor::zeros(&[o], Dtype::F32));
                linear_grad_weight(&device, &dy, &x, dtype, &mut dw, Some(&mut db));
                let add = round(&dy).transposed().times_transposed(&round(&x).transposed());
                let expected: Vec<f32> = dw0.as_f32().iter().zip(&add.data).map(|(a, b)| a + b).collect();
                close(dw.as_f32(), &expected, tolerance(n), &what);
                let ones = Matrix::new(1, n, &vec![1.0; n]);
                close(db.as_f32(), &ones.times_transposed(&matrix(&dy).transposed()).data, tolerance(n), &what);
            }
        }
    }
}

#[test]
fn products_as_long_and_as_wide_as_those_of_an_eight_billion_model_agree_with_the_plain_loops() {
    for device in devices() {
        for (n, o, k) in [(1, 70, 14336), (5, 70, 4096), (40, 70, 14336), (9, 4096, 64), (2, 14336, 64)] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let (x, w) = (normal("x", &[n, k]), normal("w", &[o, k]).cast(dtype));
                let expected = matrix(&x).rounded(dtype).times_transposed(&matrix(&w));
                let found = linear(&device, &x, &Linear::new(w.clone(), None));
                close(found.as_f32(), &expected.data, tolerance(k), &format!("{device:?} {dtype:?} {n}x{o}x{k}"));
            }
        }
    }
}

#[test]
fn a_row_of_the_output_does_not_depend_on_the_other_rows() {
    for device in devices() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let (n, o, k) = (27, 161, 1091);
            let x = normal("x", &[n, k]);
            let layer = Linear::new(normal("w", &[o, k]).cast(dtype), Some(normal("b", &[o])));
            let all = linear(&device, &x, &layer);
            for rows in 1..n {
                let some = linear(&device, &x.slice_rows(n - rows, n), &layer);
                same_bits(
                    some.as_f32(),
                    all.slice_rows(n - rows, n).as_f32(),
                    &format!("{device:?} {dtype:?} {rows} rows"),
                );
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for isa in [Isa::best(), Isa::Portable] {
        let (one, three) = (Device::cpu_with(isa, 1), Device::cpu_with(isa, 3));
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let (n, o, k) = (333, 290, 600);
            let (x, dy) = (normal("x", &[n, k]), normal("dy", &[n, o]));
            let layer = Linear::new(normal("w", &[o, k]).cast(dtype), None);
            let run = |device: &Device| {
                let mut dw = normal("dw", &[o, k]);
                linear_grad_weight(device, &dy, &x, dtype, &mut dw, None);
                [linear(device, &x, &layer), linear_grad_input(device, &dy, &layer), dw]
            };
            for (a, b) in run(&one).iter().zip(&run(&three)) {
                same_bits(a.as_f32(), b.as_f32(), &format!("{isa:?} {dtype:?}"));
            }
        }
    }
}

#[test]
fn tokens_added_in_two_parts_give_the_weight_gradient_of_the_whole() {
    let (n, o, k) = (64, 40, 50);
    let (x, dy) = (normal("x", &[n, k]), normal("dy", &[n, o]));
    for (device, dtype) in
        devices().into_iter().flat_map(|device| [Dtype::F32, Dtype::Bf16].map(|dtype| (device.clone(), dtype)))
    {
        // A unit is two rows of bf16, and tiles take sixteen units at a time.
        let half = if device.isa() == Isa::Amx { 32 } else { 22 };
        let mut whole = Tensor::zeros(&[o, k], Dtype::F32);
        linear_grad_weight(&device, &dy, &x, dtype, &mut whole, None);
        let mut parts = Tensor::zeros(&[o, k], Dtype::F32);
        for (from, to) in [(0, half), (half, 64)] {
            linear_grad_weight(&device, &dy.slice_rows(from, to), &x.slice_rows(from, to), dtype, &mut parts, None);
        }
        same_bits(whole.as_f32(), parts.as_f32(), "an even split continues the same chain");
    }
}

#[test]
fn packing_loses_nothing_and_an_update_equals_a_new_layer() {
    let device = Device::cpu(2);
    for (o, k) in [(1, 1), (33, 7), (64, 50), (100, 129)] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let (w, masters) = (normal("w", &[o, k]).cast(dtype), normal("masters", &[o, k]));
            let mut layer = Linear::new_on(&device, w.clone(), None);
            same_bits(layer.weight().cast(Dtype::F32).as_f32(), &w.to_f32_vec(), "unpacked");
            let ids = [(o - 1) as u32, 0];
            let expected = w.gather_rows(&[o - 1, 0]).to_f32_vec();
            same_bits(layer.rows(&device, &ids).as_f32(), &expected, "rows");
            let dy = normal("dy", &[3, o]);
            linear_grad_input(&device, &dy, &layer);
            layer.update_from_f32(&device, masters.as_f32());
            let fresh = Linear::of_master(&device, &masters, dtype, None);
            same_bits(layer.weight().cast(Dtype::F32).as_f32(), &fresh.weight().to_f32_vec(), "updated");
            let (a, b) = (linear_grad_input(&device, &dy, &layer), linear_grad_input(&device, &dy, &fresh));
            same_bits(a.as_f32(), b.as_f32(), "updated, for the gradient");
        }
    }
}

#[test]
fn the_native_bf16_dot_product_is_two_fused_steps() {
    // If the instruction kept more bits inside, the two AVX-512 paths would differ, and so would results between machines.
    if !Isa::Avx512Bf16.available() {
        return;
    }
    let (x, w) = (normal("x", &[9, 500]), normal("w", &[70, 500]).cast(Dtype::Bf16));
    let layer = Linear::new(w, None);
    let run = |isa| linear(&Device::cpu_with(isa, 1), &x, &layer);
    same_bits(run(Isa::Avx512Bf16).as_f32(), run(Isa::Avx512).as_f32(), "native against widened");
    same_bits(run(Isa::Avx2).as_f32(), run(Isa::Avx512).as_f32(), "AVX2 against AVX-512");
}

/// Dense and block layers `[o, k]` with and without a bias.
fn layers(device: &Device, o: usize, k: usize) -> Vec<(String, Linear)> {
    let w = normal("w", &[o, k]);
    let mut all = Vec::new();
    for bias in [None, Some(normal("b", &[o]))] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            all.push((format!("{dtype:?}"), Linear::new(w.cast(dtype), bias.clone())));
        }
        for format in [BlockFormat::Q8_0, BlockFormat::Q4_0] {
            let read = |row: usize, out: &mut [f32]| out.copy_from_slice(&w.as_f32()[row * k..(row + 1) * k]);
            all.push((format.name().into(), Linear::quantize(device, [o, k], &read, format, bias.clone())));
        }
    }
    all
}

#[test]
fn norms_gates_and_residuals_taken_on_the_way_have_the_bits_of_the_separate_operations() {
    use crate::ops::{add_in_place, rms_norm, swiglu};
    for device in devices() {
        for (n, o, k) in [(1, 33, 576), (1, 1, 1), (3, 70, 100), (17, 97, 33), (50, 40, 64), (200, 130, 47)] {
            let (x, up, w) = (normal("x", &[n, k]), normal("up", &[n, k]), normal("norm", &[k]));
            let residual = normal("residual", &[n, o]);
            let plus = |mut y: Tensor| {
                add_in_place(&device, &mut y, &residual);
                y
            };
            for (name, layer) in layers(&device, o, k) {
                let what = format!("{device:?} {name} {n}x{o}x{k} bias {}", layer.bias().is_some());
                let normed = rms_norm(&device, &x, &w, 1e-5).0;
                let found = norm_linears(&device, &x, &w, 1e-5, &[&layer, &layer]);
                same_bits(found[1].as_f32(), linear(&device, &normed, &layer).as_f32(), &what);
                let found = linear_add(&device, &x, &layer, &residual);
                same_bits(found.as_f32(), plus(linear(&device, &x, &layer)).as_f32(), &what);
                let found = swiglu_linear_add(&device, &x, &up, &layer, &residual);
                let expected = plus(linear(&device, &swiglu(&device, &x, &up), &layer));
                same_bits(found.as_f32(), expected.as_f32(), &what);
            }
        }
    }
}

#[test]
fn tasks_over_few_rows_give_every_thread_the_same_number_of_panels_where_they_can() {
    // SmolLM2's query, key and value: 18, 6 and 6 panels. Shares of 5 would be tasks of 5 5 5 3 | 5 1 5 1, of 3 five threes each.
    assert_eq!(even_share(&[18, 6, 6], 2), 3);
    assert_eq!(even_share(&[48, 48], 2), 16);
    assert_eq!(even_share(&[18], 2), 3);
    assert_eq!(even_share(&[1536], 2), 64);
    // 128 panels: from 22 down to 17 one thread has more than half; 16 gives four tasks to each.
    assert_eq!(even_share(&[128], 2), 16);
    assert_eq!((even_share(&[1], 2), even_share(&[7], 1), even_share(&[0], 3)), (1, 3, 1));
}

#[test]
#[should_panic(expected = "narrow panels are multiplied whole")]
fn a_part_of_the_units_of_narrow_panels_is_refused() {
    let (device, k) = (Device::cpu(1), 600);
    let weight = normal("w", &[32, k]).to_bf16_bits();
    let panels = Panels::narrowed(&device, Source::Bf16(&weight), (32, k)).expect("few enough escapes");
    let (row, mut y) = (vec![0u32; k / 2], vec![0.0; 32]);
    let rows = Rows::new(row.as_ptr(), k / 2, k / 2);
    multiply(&device, &rows.units(0, 256), &panels, Lanes::all(&panels), Out::over(&mut y, 32));
}
