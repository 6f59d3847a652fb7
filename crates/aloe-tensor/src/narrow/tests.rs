//! Narrow panels against plain ones: the same numbers, the same products, bit for bit.

use super::*;
use crate::ops::{
    linear, linear_add, linear_grad_input, linears, linears_rounded, norm_linears, norm_swiglu_linear_add,
    swiglu_linear_add,
};
use crate::pack::{Panels, Source};
use crate::testing::{devices, normal, same_bits};
use crate::{Device, Dtype, Isa, Linear, Rounded, Tensor};
use aloe_record::CounterRng;

/// Normal numbers, of which one in 1500 has any bits: zeros of both signs, subnormal ones, infinities and NaN, all exponents.
fn bits(name: &str, n: usize) -> Vec<u16> {
    let special = [0u16, 0x8000, 1, 0x8001, 0x007f, 0x0080, 0x7f7f, 0x7f80, 0xff80, 0x7fc1, 0xff81, 0x7fff];
    let mut bits = normal(name, &[n]).to_bf16_bits();
    let mut rng = CounterRng::new(3, "narrow", n as u64);
    for at in 0..n.div_ceil(1500) {
        let (place, any) = (rng.next_u32() as usize % n, rng.next_u32() as u16);
        bits[place] = if at % 3 == 0 { any } else { special[at % special.len()] };
    }
    bits
}

/// The same without infinities and NaN, as sums of such are not told apart by their bits.
fn finite(name: &str, n: usize) -> Vec<u16> {
    bits(name, n).into_iter().map(|b| if b & 0x7f80 == 0x7f80 { b & 0x80ff } else { b }).collect()
}

fn narrow(device: &Device, bits: &[u16], o: usize, k: usize, bias: Option<Tensor>) -> Linear {
    let panels = Panels::narrowed(device, Source::Bf16(bits), (o, k)).expect("few enough escapes");
    Linear::of_panels(panels, (o, k), bias)
}

const SHAPES: [(usize, usize); 10] =
    [(1, 1), (31, 2), (33, 7), (64, 96), (32, 390), (97, 1091), (40, 1030), (200, 576), (65, 1281), (33, 4096)];

#[test]
fn a_narrow_weight_holds_the_numbers_bit_for_bit() {
    for device in devices() {
        for (o, k) in SHAPES {
            let what = format!("{device:?} {o}x{k}");
            let all = bits("numbers", o * k);
            let found = narrow(&device, &all, o, k, None);
            assert!(found.is_narrow(), "{what}");
            assert_eq!(found.weight().to_bf16_bits(), all, "{what}");
            let ids: Vec<u32> = (0..o as u32).rev().collect();
            let plain = Linear::new(Tensor::from_bf16_bits(&[o, k], all), None);
            same_bits(found.rows(&device, &ids).as_f32(), plain.rows(&device, &ids).as_f32(), &what);
        }
    }
}

#[test]
fn products_with_a_narrow_weight_have_the_bits_of_those_with_a_plain_one() {
    let threads = [1, 3].map(|threads| Device::cpu_with(Isa::best(), threads));
    for device in devices().into_iter().chain(threads) {
        for (o, k) in SHAPES {
            let all = finite("products", o * k);
            let plain = |bias| Linear::new(Tensor::from_bf16_bits(&[o, k], all.clone()), bias);
            let narrow = |bias| narrow(&device, &all, o, k, bias);
            for m in (1..=16).chain([24, 25, 37, 48, 49, 100, 251, 300]) {
                let what = format!("{device:?} {m}x{o}x{k}");
                let (x, residual) = (normal("x", &[m, k]), normal("r", &[m, o]));
                let same = |found: &Linear, expected: &Linear| {
                    let (y, expected_y) = (linear(&device, &x, found), linear(&device, &x, expected));
                    same_bits(y.as_f32(), expected_y.as_f32(), &what);
                    let (y, expected_y) =
                        (linear_add(&device, &x, found, &residual), linear_add(&device, &x, expected, &residual));
                    same_bits(y.as_f32(), expected_y.as_f32(), &what);
                };
                same(&narrow(None), &plain(None));
                let bias = Some(normal("b", &[o]));
                same(&narrow(bias.clone()), &plain(bias));
            }
            let dy = normal("dy", &[5, o]);
            let (dx, expected) =
                (linear_grad_input(&device, &dy, &narrow(None)), linear_grad_input(&device, &dy, &plain(None)));
            same_bits(dx.as_f32(), expected.as_f32(), "the gradient of the input");
        }
    }
}

/// A model's q, k and v where one of them has too many upper bytes for a table.
#[test]
fn narrow_and_plain_weights_over_one_input_give_the_bits_of_plain_ones() {
    let threads = [1, 3].map(|threads| Device::cpu_with(Isa::best(), threads));
    for device in devices().into_iter().chain(threads) {
        for k in [7, 576, 1091] {
            let sizes = [("q", 97), ("k", 33), ("v", 33), ("gate", 320)];
            let plain = sizes.map(|(name, o)| Linear::new(Tensor::from_bf16_bits(&[o, k], finite(name, o * k)), None));
            for is_narrow in [[true, false, true, true], [false, true, true, false], [false, false, false, true]] {
                let mixed: [Linear; 4] = std::array::from_fn(|at| match (is_narrow[at], sizes[at]) {
                    (true, (name, o)) => narrow(&device, &finite(name, o * k), o, k, None),
                    (false, _) => plain[at].clone(),
                });
                for n in [1, 3, 8, 12, 15, 48, 49, 130, 260] {
                    let what = format!("{device:?} {is_narrow:?} {n}x{k}");
                    let (x, w) = (normal("x", &[n, k]), normal("w", &[k]));
                    let rounded = Rounded::new(&device, &x);
                    let all = |layers: &[Linear; 4]| {
                        let layers = layers.each_ref();
                        let mut all = linears(&device, &x, &layers);
                        all.extend(norm_linears(&device, &x, &w, 1e-5, &layers));
                        all.extend(linears_rounded(&device, &rounded, &layers));
                        all
                    };
                    let (found, expected) = (all(&mixed), all(&plain));
                    assert_eq!(found.len(), 12, "{what}");
                    found.iter().zip(&expected).for_each(|(a, b)| same_bits(a.as_f32(), b.as_f32(), &what));
                }
            }
        }
    }
}

#[test]
fn a_feed_forward_block_of_narrow_weights_has_the_bits_of_plain_ones() {
    for device in devices() {
        for (n, d, f) in [
            (1, 576, 1536),
            (4, 96, 200),
            (11, 576, 200),
            (16, 33, 97),
            (49, 33, 97),
            (130, 576, 200),
            (251, 40, 1030),
            (290, 33, 97),
            (300, 576, 200),
        ] {
            let what = format!("{device:?} {n}x{d}x{f}");
            let layers = |make: &dyn Fn(&str, usize, usize) -> Linear| {
                [make("gate", f, d), make("up", f, d), make("down", d, f)]
            };
            let plain = layers(&|name, o, k| Linear::new(Tensor::from_bf16_bits(&[o, k], finite(name, o * k)), None));
            let narrow = layers(&|name, o, k| narrow(&device, &finite(name, o * k), o, k, None));
            let (x, w) = (normal("x", &[n, d]), normal("w", &[d]));
            let block = |[gate, up, down]: [&Linear; 3]| {
                let both = norm_linears(&device, &x, &w, 1e-5, &[gate, up]);
                let apart = swiglu_linear_add(&device, &both[0], &both[1], down, &x);
                (apart, norm_swiglu_linear_add(&device, &x, (&w, 1e-5), [gate, up, down]))
            };
            let expected = block(plain.each_ref());
            let mixes = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]];
            for mix in mixes {
                let found = block(std::array::from_fn(|at| [&narrow, &plain][mix[at]].get(at).expect("three layers")));
                same_bits(found.0.as_f32(), expected.0.as_f32(), &what);
                assert_eq!(found.1.is_some(), n > 48, "{what}");
                if let (Some(found), Some(expected)) = (&found.1, &expected.1) {
                    same_bits(found.as_f32(), expected.as_f32(), &what);
                }
            }
        }
    }
}

/// Numbers of one panel: 16 upper bytes far more often than any other, and `n` numbers of other ones, from the end on.
fn with_escapes(k: usize, n: usize) -> Vec<u16> {
    let mut all: Vec<u16> = (0..PANEL * k).map(|i| ((50 + i % UPPERS) * 256 + i % 251) as u16).collect();
    let end = all.len();
    all[end - n..].iter_mut().enumerate().for_each(|(i, bits)| *bits = ((i % 45) * 256 + 5) as u16);
    all
}

#[test]
fn a_panel_holds_as_many_escapes_as_it_has_room_for_and_no_more() {
    for device in devices() {
        for k in [96usize, 576, 1001] {
            let room = escape_lines(k.div_ceil(2)) * ESCAPES_PER_LINE;
            // An odd row is filled up with zeros, whose upper byte is none of the sixteen.
            let zeros = if k % 2 == 1 { PANEL } else { 0 };
            let full = with_escapes(k, room - zeros);
            assert_eq!(narrow(&device, &full, PANEL, k, None).weight().to_bf16_bits(), full);
            let more = with_escapes(k, room - zeros + 1);
            assert!(Panels::narrowed(&device, Source::Bf16(&more), (PANEL, k)).is_none(), "{k}");
        }
    }
}

#[test]
fn numbers_of_any_exponent_stay_plain_and_so_does_what_an_instruction_set_gains_nothing_by() {
    let (o, k) = (70, 64);
    let any: Vec<u16> = (0..o * k).map(|i| CounterRng::new(5, "any", i as u64).at(0) as u16 & 0x7f7f).collect();
    let some = normal("some", &[o, k]).to_bf16_bits();
    for device in devices() {
        for (all, is_fit) in [(&any, false), (&some, true)] {
            let weight = Tensor::from_bf16_bits(&[o, k], all.clone());
            let bytes: Vec<u8> = [9].into_iter().chain(all.iter().flat_map(|b| b.to_le_bytes())).collect();
            for found in [
                Linear::narrow_of(&device, &weight, None),
                Linear::narrow_from_bf16_bytes(&device, [o, k], &bytes[1..], None),
            ] {
                assert_eq!(found.is_narrow(), is_fit && device.isa().pairs_bf16(), "{device:?}");
                assert_eq!(found.weight().to_bf16_bits(), *all, "{device:?}");
                assert_eq!(found.dtype(), Dtype::Bf16);
            }
        }
    }
}

#[test]
fn a_narrow_weight_takes_three_quarters_of_the_memory() {
    let device = Device::cpu(1);
    let (o, k) = (320, 4096);
    let all = normal("memory", &[o, k]).to_bf16_bits();
    let found = narrow(&device, &all, o, k, None).nbytes() as f64 / (2 * o * k) as f64;
    assert!((0.75..0.76).contains(&found), "{found}");
}
