//! Attention over bf16 rows: against the plain twin and the pages of a cache, and the laws of company, parts and threads.

use super::rounded_backward::{Walk, backward};
use super::*;
use crate::reference;
use crate::testing::{close, devices, normal, same_bits};
use crate::{Isa, Rounded};

const HEADS: [Heads; 4] =
    [Heads { h: 1, k: 1, e: 8 }, Heads { h: 9, k: 3, e: 64 }, Heads { h: 4, k: 2, e: 50 }, Heads { h: 2, k: 2, e: 32 }];

fn plans() -> Vec<(AttentionPlan, usize)> {
    let block = |queries: Range<usize>, keys: &[Range<usize>]| AttentionBlock { queries, keys: keys.to_vec() };
    let first = 0..70;
    let shared = vec![
        block(0..70, std::slice::from_ref(&first)),
        block(70..80, &[0..70, 70..80]),
        block(80..145, &[0..70, 80..145]),
    ];
    // Not in order, with queries and keys of neither before, between and behind.
    let apart = vec![block(90..100, &[80..85, 85..100]), block(5..75, &[4..5, 5..75])];
    vec![
        (AttentionPlan::causal(&[1]), 1),
        (AttentionPlan::causal(&[64, 1, 65, 3]), 133),
        (AttentionPlan::full(&[5, 130]), 135),
        // Long enough that its keys are shared out among tasks.
        (AttentionPlan::causal(&[600, 31]), 631),
        (AttentionPlan { blocks: shared, causal: true }, 145),
        (AttentionPlan { blocks: apart, causal: true }, 110),
    ]
}

struct Case {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    rounded: [Rounded; 4],
    heads: Heads,
}

/// Inputs that are bf16 already: the twin sees what the kernel sees.
fn case(device: &Device, n: usize, heads: Heads) -> Case {
    let make = |name: &str, h: usize| normal(name, &[n, h, heads.e]).cast(Dtype::Bf16).cast(Dtype::F32);
    let (q, k, v, dout) = (make("q", heads.h), make("k", heads.k), make("v", heads.k), make("dout", heads.h));
    let rounded = [&q, &k, &v, &dout].map(|x| Rounded::new(device, x));
    Case { q, k, v, dout, rounded, heads }
}

impl Case {
    fn run(&self, device: &Device, plan: &AttentionPlan, scale: f32) -> (Rounded, Tensor, [Tensor; 3]) {
        let [q, k, v, dout] = &self.rounded;
        let (o, lse) = attention_rounded(device, [q, k, v], self.heads, plan, scale);
        let inputs = RoundedAttention { q, k, v, o: &o, lse: &lse, heads: self.heads };
        let gradients = attention_rounded_backward(device, dout, &inputs, plan, scale);
        (o, lse, gradients)
    }
}

/// |a - b| / |b|.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v as f64 * v as f64).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

#[test]
fn forward_and_backward_agree_with_the_plain_loops_within_bf16_on_every_instruction_set() {
    for device in devices() {
        for (plan, n) in plans() {
            if device.isa() == Isa::Portable && n > 200 {
                continue;
            }
            for heads in HEADS {
                let what = format!("{device:?} {n} queries, {heads:?}");
                let case = case(&device, n, heads);
                let scale = 1.0 / (heads.e as f32).sqrt();
                let (o, lse, [dq, dk, dv]) = case.run(&device, &plan, scale);
                let qkv = (case.q.as_f32(), case.k.as_f32(), case.v.as_f32());
                let expected = reference::attention(qkv.0, qkv.1, qkv.2, heads, &plan, scale);
                // Weights, output and score gradients are each rounded by 2^-9 at most, independently: some 2^-9 of the norm.
                close(lse.as_f32(), &expected.1, 1e-5, &what);
                assert!(apart(o.to_tensor().as_f32(), &expected.0) < 4e-3, "o, {what}");
                let expected = reference::attention_backward(case.dout.as_f32(), qkv, heads, &plan, scale);
                for (name, found, expected) in [("dq", dq, expected.0), ("dk", dk, expected.1), ("dv", dv, expected.2)]
                {
                    let found = apart(found.as_f32(), &expected);
                    // One key: dq and dk are zero but for rounding.
                    assert!(n == 1 || found < 8e-3, "{name}, {what}: {found}");
                }
            }
        }
    }
}

#[test]
fn packed_rows_give_the_bits_of_bf16_pages() {
    for device in devices() {
        for heads in HEADS {
            for t in [1, 2, 63, 64, 65, 150] {
                let case = case(&device, t, heads);
                let (o, _, _) = case.run(&device, &AttentionPlan::causal(&[t]), 0.3);
                let mut pages: Vec<KvPage> =
                    (0..t.div_ceil(64)).map(|_| KvPage::new(Dtype::Bf16, heads.k, heads.e)).collect();
                for (i, page) in pages.iter_mut().enumerate() {
                    let rows = i * 64..t.min(i * 64 + 64);
                    let part = |x: &Tensor| x.slice_rows(rows.start, rows.end).to_f32_vec();
                    page.write(0, &part(&case.k), &part(&case.v));
                }
                let sequence = PagedSequence { queries: 0..t, pages: pages.iter().collect(), len_tokens: t };
                let paged = attention_paged(&device, &case.q, &[sequence], 0.3).cast(Dtype::Bf16);
                same_bits(o.to_tensor().as_f32(), &paged.to_f32_vec(), &format!("{device:?} {heads:?} {t}"));
            }
        }
    }
}

#[test]
fn documents_packed_together_give_the_bits_they_give_alone() {
    let device = Device::cpu(2);
    let heads = Heads { h: 6, k: 2, e: 64 };
    let lens = [33, 1, 300];
    let packed = case(&device, 334, heads);
    let (o, lse, gradients) = packed.run(&device, &AttentionPlan::causal(&lens), 0.2);
    let mut start = 0;
    for len in lens {
        let cut = |x: &Tensor| x.slice_rows(start, start + len);
        let [q, k, v, dout] = [&packed.q, &packed.k, &packed.v, &packed.dout].map(cut);
        let rounded = [&q, &k, &v, &dout].map(|x| Rounded::new(&device, x));
        let alone = Case { q, k, v, dout, rounded, heads };
        let (o_alone, lse_alone, alone) = alone.run(&device, &AttentionPlan::causal(&[len]), 0.2);
        same_bits(o_alone.to_tensor().as_f32(), cut(&o.to_tensor()).as_f32(), "o");
        same_bits(lse_alone.as_f32(), cut(&lse).as_f32(), "lse");
        for (found, whole) in alone.iter().zip(&gradients) {
            same_bits(found.as_f32(), cut(whole).as_f32(), "gradients");
        }
        start += len;
    }
}

#[test]
fn keys_taken_together_and_exponentials_beside_products_change_no_bit_of_a_gradient() {
    for device in devices() {
        for (plan, n) in plans() {
            if device.isa() == Isa::Portable && n > 200 {
                continue;
            }
            for heads in HEADS {
                let case = case(&device, n, heads);
                let [q, k, v, dout] = &case.rounded;
                let (o, lse) = attention_rounded(&device, [q, k, v], heads, &plan, 0.2);
                let inputs = RoundedAttention { q, k, v, o: &o, lse: &lse, heads };
                let run = |blocks, beside| backward(&device, (dout, &inputs), &plan, 0.2, Walk { blocks, beside });
                let one_by_one = run(1, false);
                for (blocks, beside) in [(1, true), (2, true), (3, false), (4, true), (8, true)] {
                    for (found, expected) in run(blocks, beside).iter().zip(&one_by_one) {
                        let what = format!("{device:?} {n} queries, {heads:?}, {blocks} blocks, {beside}");
                        same_bits(found.as_f32(), expected.as_f32(), &what);
                    }
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (plan, n) in plans() {
        let run = |threads| {
            let device = Device::cpu(threads);
            let (o, lse, [dq, dk, dv]) = case(&device, n, HEADS[1]).run(&device, &plan, 0.125);
            [o.to_tensor(), lse, dq, dk, dv]
        };
        for (a, b) in run(1).iter().zip(&run(3)) {
            same_bits(a.as_f32(), b.as_f32(), &format!("{n}"));
        }
    }
}
