//! Block formats against the Python package `gguf`, the product against exact sums, and the laws of rows and threads.

use super::*;
use crate::ops::{linear, linears};
use crate::testing::{close, devices, normal, same_bits};
use crate::{Device, Dtype, Isa, Linear, Tensor};

/// Written by oracles/block_formats.py.
const GOLDEN: &[u8] = include_bytes!("../../tests/golden/blocks.bin");

struct Golden {
    format: BlockFormat,
    rows: Vec<&'static [u8]>,
    values: Vec<f32>,
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The golden blocks of each format, 4 rows of 256, and what follows them.
fn golden() -> (Vec<Golden>, &'static [u8]) {
    let mut rest = GOLDEN;
    let mut take = |n: usize| {
        let (part, after) = rest.split_at(n);
        rest = after;
        part
    };
    let all = BlockFormat::ALL.map(|format| {
        let row = 256 / format.block_len() * format.block_bytes();
        Golden { format, rows: take(4 * row).chunks_exact(row).collect(), values: floats(take(4 * 256 * 4)) }
    });
    (all.into_iter().collect(), rest)
}

#[test]
fn stored_blocks_have_the_values_that_the_gguf_package_gives_them() {
    let device = Device::cpu(2);
    for g in golden().0 {
        let layer = Linear::from_blocks(&device, g.format, 256, &g.rows, None);
        same_bits(layer.weight().as_f32(), &g.values, g.format.name());
        let rows = layer.rows(&device, &[3, 0]);
        same_bits(rows.as_f32(), &[&g.values[768..], &g.values[..256]].concat(), g.format.name());
    }
}

#[test]
fn eight_bit_blocks_are_written_as_the_gguf_package_writes_them() {
    let rest = golden().1;
    let (x, expected) = rest.split_at(2 * 256 * 4);
    let found: Vec<u8> = floats(x).chunks_exact(256).flat_map(|row| encode(BlockFormat::Q8_0, row)).collect();
    // ggml divides by the step before it is rounded to a half: codes may differ by one where x / d is within 2^-11 of a half.
    let differ = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    assert!(differ <= 6, "{differ} of {} bytes differ", expected.len());
    assert_eq!(found.len(), expected.len());
}

#[test]
fn halves_convert_exactly_and_back_to_the_nearest() {
    for bits in 0..=u16::MAX {
        let value = f16_to_f32(bits);
        if value.is_finite() {
            assert_eq!(f16_from_f32(value), bits, "{value}");
            let next = f16_to_f32(bits + 1);
            if next.is_finite() && bits & 0x7fff < 0x7bff {
                let even = if bits % 2 == 0 { bits } else { bits + 1 };
                assert_eq!(f16_from_f32((value + next) / 2.0), even, "between {value} and {next}");
            }
        }
    }
    assert_eq!((f16_to_f32(0x3c00), f16_to_f32(0xc000), f16_to_f32(1)), (1.0, -2.0, 5.960_464_5e-8));
}

/// Any number of rows and columns out of the golden rows of 256.
fn weight(g: &Golden, o: usize, k: usize) -> (Vec<Vec<u8>>, Tensor) {
    let per = g.format.block_len();
    let row_bytes = k.div_ceil(per) * g.format.block_bytes();
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for lane in 0..o {
        let bytes = g.rows.iter().cycle().skip(lane % 4).flat_map(|r| r.iter().copied());
        rows.push(bytes.skip(lane / 4 % 3 * g.format.block_bytes()).take(row_bytes).collect::<Vec<u8>>());
        let all = g.values.chunks_exact(256).cycle().skip(lane % 4).flatten().copied();
        values.extend(all.skip(lane / 4 % 3 * per).take(k));
    }
    (rows, Tensor::from_f32(&[o, k], values))
}

fn layer(device: &Device, g: &Golden, o: usize, k: usize) -> (Linear, Tensor) {
    let (rows, values) = weight(g, o, k);
    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    (Linear::from_blocks(device, g.format, k, &rows, Some(normal("bias", &[o]))), values)
}

/// `x` rounded as the product rounds it: int8 in blocks of 32, the step the largest size over 127.
fn rounded(x: &Tensor) -> Vec<f64> {
    let k = x.shape()[1];
    let block = |block: &[f32]| {
        let largest = block.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let step = f64::from(largest / 127.0);
        block.iter().map(|x| f64::from((x * inverse).round_ties_even()) * step).collect::<Vec<_>>()
    };
    x.as_f32().chunks_exact(k).flat_map(|row| row.chunks(32).flat_map(block).collect::<Vec<_>>()).collect()
}

#[test]
fn the_product_agrees_with_exact_sums_over_the_dequantised_weight_on_every_instruction_set() {
    for device in devices() {
        for g in golden().0 {
            for (n, o, k) in [(1, 1, 256), (2, 33, 256), (7, 70, 512), (13, 32, 1280), (40, 5, 768), (1, 161, 3072)] {
                let what = format!("{device:?} {} {n}x{o}x{k}", g.format.name());
                let (layer, values) = layer(&device, &g, o, k);
                let x = normal("x", &[n, k]);
                let (x_rounded, bias) = (rounded(&x), normal("bias", &[o]));
                let mut expected = Vec::new();
                for i in 0..n {
                    for lane in 0..o {
                        let w = &values.as_f32()[lane * k..(lane + 1) * k];
                        let sum: f64 = w.iter().zip(&x_rounded[i * k..]).map(|(w, x)| f64::from(*w) * x).sum();
                        expected.push((sum + f64::from(bias.as_f32()[lane])) as f32);
                    }
                }
                // At most 80 f32 roundings per chain; with a minimum, two terms some 30 times the result cancel.
                let scale = expected.iter().fold(1.0f32, |a, e| a.max(e.abs()));
                close(linear(&device, &x, &layer).as_f32(), &expected, 3e-5 * scale, &what);
            }
        }
    }
}

#[test]
fn rounding_an_activation_moves_it_by_half_a_step_at_most() {
    let x = normal("x", &[3, 96]);
    for (row, found) in x.as_f32().chunks_exact(96).zip(rounded(&x).chunks_exact(96)) {
        for (block, found) in row.chunks_exact(32).zip(found.chunks_exact(32)) {
            let step = block.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
            assert!(block.iter().zip(found).all(|(x, f)| (f64::from(*x) - f).abs() <= f64::from(step) * 0.500_01));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company_on_any_number_of_threads_and_beside_other_layers() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let (one, three) = (Device::cpu_with(isa, 1), Device::cpu_with(isa, 3));
        for g in golden().0 {
            let what = format!("{isa:?} {}", g.format.name());
            let (layer, _) = layer(&one, &g, 97, 512);
            let x = normal("x", &[205, 512]);
            let all = linear(&three, &x, &layer);
            same_bits(linear(&one, &x, &layer).as_f32(), all.as_f32(), &what);
            for (from, to) in [(0, 1), (204, 205), (3, 5), (7, 10), (50, 54), (60, 65), (100, 106), (13, 20), (1, 200)]
            {
                let part = linear(&three, &x.slice_rows(from, to), &layer);
                same_bits(part.as_f32(), all.slice_rows(from, to).as_f32(), &format!("{what} rows {from}..{to}"));
            }
            let dense = Linear::new(normal("w", &[40, 512]), None);
            let beside = linears(&three, &x, &[&layer, &layer, &dense]);
            same_bits(beside[1].as_f32(), all.as_f32(), &what);
            same_bits(beside[2].as_f32(), linear(&one, &x, &dense).as_f32(), &what);
        }
    }
}

/// Of 3072 numbers one row reads four panels beside each other, more rows one after the other; 161 outputs are four panels, one and a part.
#[test]
fn one_long_row_has_the_same_bits_as_beside_others() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let device = Device::cpu_with(isa, 1);
        for g in golden().0 {
            let (layer, _) = layer(&device, &g, 161, 3072);
            let x = normal("x", &[3, 3072]);
            let (all, one) = (linear(&device, &x, &layer), linear(&device, &x.slice_rows(1, 2), &layer));
            same_bits(one.as_f32(), all.slice_rows(1, 2).as_f32(), &format!("{isa:?} {}", g.format.name()));
        }
    }
}

#[test]
fn every_instruction_set_with_fused_steps_gives_the_same_bits() {
    let sets: Vec<Isa> =
        [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2].into_iter().filter(|isa| isa.available()).collect();
    for g in golden().0 {
        let x = normal("x", &[9, 512]);
        let run = |isa: &Isa| {
            let device = Device::cpu_with(*isa, 1);
            linear(&device, &x, &layer(&device, &g, 50, 512).0)
        };
        for pair in sets.windows(2) {
            same_bits(run(&pair[0]).as_f32(), run(&pair[1]).as_f32(), &format!("{pair:?} {}", g.format.name()));
        }
    }
}

#[test]
fn a_number_that_is_not_finite_is_seen_in_its_row_and_nowhere_else() {
    for device in devices() {
        let (layer, _) = layer(&device, &golden().0[0], 40, 256);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = normal("x", &[3, 256]);
            let clean = linear(&device, &x, &layer);
            x.as_f32_mut()[256 + 77] = bad;
            let y = linear(&device, &x, &layer);
            assert!(y.as_f32()[40..80].iter().all(|y| !y.is_finite()), "{device:?} {bad}: {:?}", &y.as_f32()[40..44]);
            same_bits(&y.as_f32()[..40], &clean.as_f32()[..40], "the row before");
            same_bits(&y.as_f32()[80..], &clean.as_f32()[80..], "the row after");
        }
    }
}

/// SwiGLU gives such blocks where its gate is strongly negative: -90 e^-90 is -7e-38. Beside the sum of a row of ordinary numbers they are
/// nothing, and alone they are zero.
#[test]
fn a_block_of_numbers_too_small_for_a_step_is_zero_and_not_infinite() {
    for device in devices() {
        for g in &golden().0 {
            let (layer, _) = layer(&device, g, 40, 256);
            let mut x = normal("x", &[2, 256]);
            let (tiny, ordinary) = x.as_f32_mut().split_at_mut(256);
            for (at, value) in [1e-38, -7e-38, 1e-40, 3.7e-37].into_iter().cycle().enumerate().take(256) {
                tiny[at] = value;
            }
            ordinary[32..64].fill(1e-38);
            let mut zeroed = x.clone();
            zeroed.as_f32_mut()[..256].fill(0.0);
            zeroed.as_f32_mut()[256 + 32..256 + 64].fill(0.0);
            let (found, expected) = (linear(&device, &x, &layer), linear(&device, &zeroed, &layer));
            same_bits(found.as_f32(), expected.as_f32(), &format!("{device:?} {}", g.format.name()));
        }
    }
}

fn quantized(device: &Device, weight: &Tensor, format: BlockFormat) -> Linear {
    let (values, k) = (weight.to_f32_vec(), weight.shape()[1]);
    let read = |row: usize, out: &mut [f32]| out.copy_from_slice(&values[row * k..(row + 1) * k]);
    Linear::quantize(device, [weight.shape()[0], k], &read, format, None)
}

#[test]
fn a_quantised_layer_is_near_its_weight_and_knows_its_size() {
    let device = Device::cpu(2);
    for (format, bits, error) in [(BlockFormat::Q8_0, 8.5, 0.008), (BlockFormat::Q4_0, 4.5, 0.09)] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            // 100 columns: the last block is filled up with zeros.
            for (o, k) in [(64, 96), (33, 100)] {
                let w = normal("w", &[o, k]).cast(dtype);
                let layer = quantized(&device, &w, format);
                let (w, found) = (w.to_f32_vec(), layer.weight().into_f32_vec());
                let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let relative = norm(&mut w.iter().zip(&found).map(|(a, b)| a - b)) / norm(&mut w.iter().copied());
                // Uniform rounding of normal numbers: steps of 2.3 sigma / 127 and / 8, over sqrt 12, and a margin.
                assert!(relative < error, "{} {dtype:?} {relative}", format.name());
                let x = normal("x", &[2, k]);
                let dense = linear(&device, &x, &Linear::new(layer.weight(), None));
                close(linear(&device, &x, &layer).as_f32(), dense.as_f32(), 0.2, "rounded activations");
                if (o, k) == (64, 96) {
                    assert_eq!(layer.nbytes() as f64 * 8.0 / (o * k) as f64, bits);
                    assert_eq!(layer.block_format(), Some(format));
                }
            }
        }
    }
}

#[test]
fn a_zero_block_stays_zero() {
    let device = Device::cpu(1);
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_0] {
        let layer = quantized(&device, &Tensor::zeros(&[3, 64], Dtype::F32), format);
        assert_eq!(layer.weight().as_f32(), [0.0; 192]);
        assert_eq!(linear(&device, &normal("x", &[1, 64]), &layer).as_f32(), [0.0; 3]);
        let ones = quantized(&device, &Tensor::from_f32(&[1, 64], vec![1.0; 64]), format);
        assert_eq!(linear(&device, &Tensor::zeros(&[1, 64], Dtype::F32), &ones).as_f32(), [0.0]);
    }
}
