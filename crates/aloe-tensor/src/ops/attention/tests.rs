//! Attention against the plain twin and finite differences, and the laws of caches, batch mates and threads.

use super::*;
use crate::Isa;
use crate::reference;
use crate::testing::{close, devices, normal, same_bits};

fn plans() -> Vec<(AttentionPlan, usize, usize)> {
    let block = |queries: Range<usize>, keys: &[Range<usize>]| AttentionBlock { queries, keys: keys.to_vec() };
    let first = 0..70;
    let shared = vec![
        block(0..70, std::slice::from_ref(&first)),
        block(70..80, &[0..70, 70..80]),
        block(80..145, &[0..70, 80..145]),
    ];
    vec![
        (AttentionPlan::causal(&[1]), 1, 1),
        (AttentionPlan::causal(&[64, 1, 65, 3]), 133, 133),
        (AttentionPlan::full(&[5, 130]), 135, 135),
        (AttentionPlan::causal(&[200]), 200, 200),
        (AttentionPlan { blocks: shared, causal: true }, 145, 145),
    ]
}

const HEADS: [Heads; 4] =
    [Heads { h: 1, k: 1, e: 8 }, Heads { h: 9, k: 3, e: 64 }, Heads { h: 4, k: 2, e: 50 }, Heads { h: 2, k: 2, e: 32 }];

fn inputs(n: usize, m: usize, heads: Heads) -> (Tensor, Tensor, Tensor, Tensor) {
    let (q, k) = ([n, heads.h, heads.e], [m, heads.k, heads.e]);
    (normal("q", &q), normal("k", &k), normal("v", &k), normal("dout", &q))
}

#[test]
fn forward_and_backward_agree_with_the_plain_loops_on_every_instruction_set() {
    for device in devices() {
        for (plan, n, m) in plans() {
            for heads in HEADS {
                let what = format!("{device:?} {n} queries, {heads:?}");
                let (q, k, v, dout) = inputs(n, m, heads);
                let scale = 1.0 / (heads.e as f32).sqrt();
                let (o, lse) = attention(&device, &q, &k, &v, &plan, scale);
                let expected = reference::attention(q.as_f32(), k.as_f32(), v.as_f32(), heads, &plan, scale);
                // Sums of up to 200 products in f32: some 1e-6 relative, and exp of a score off by that.
                close(o.as_f32(), &expected.0, 1e-5, &what);
                close(lse.as_f32(), &expected.1, 1e-5, &what);
                let saved = AttentionInputs { q: &q, k: &k, v: &v, o: &o, lse: &lse };
                let (dq, dk, dv) = attention_backward(&device, &dout, &saved, &plan, scale);
                let qkv = (q.as_f32(), k.as_f32(), v.as_f32());
                let expected = reference::attention_backward(dout.as_f32(), qkv, heads, &plan, scale);
                close(dq.as_f32(), &expected.0, 3e-5, &format!("dq, {what}"));
                close(dk.as_f32(), &expected.1, 3e-5, &format!("dk, {what}"));
                close(dv.as_f32(), &expected.2, 3e-5, &format!("dv, {what}"));
            }
        }
    }
}

#[test]
fn the_plain_backward_is_the_finite_difference_of_the_plain_forward() {
    let heads = Heads { h: 4, k: 2, e: 6 };
    let plan = AttentionPlan {
        blocks: vec![
            AttentionBlock { queries: 0..3, keys: std::iter::once(0..3).collect() },
            AttentionBlock { queries: 3..5, keys: vec![0..3, 3..5] },
        ],
        causal: true,
    };
    let (q, k, v, dout) = inputs(5, 5, heads);
    let loss = |q: &[f32], k: &[f32], v: &[f32]| -> f64 {
        let o = reference::attention(q, k, v, heads, &plan, 0.4).0;
        o.iter().zip(dout.as_f32()).map(|(o, g)| *o as f64 * *g as f64).sum()
    };
    let qkv = (q.as_f32(), k.as_f32(), v.as_f32());
    let (dq, dk, dv) = reference::attention_backward(dout.as_f32(), qkv, heads, &plan, 0.4);
    // Step 2^-7: the f32 outputs carry 1e-7, so the quotient carries some 1e-5; the second-order error is of size 1e-4.
    let h = 1.0 / 128.0;
    for (part, gradient) in [dq, dk, dv].iter().enumerate() {
        for i in 0..gradient.len() {
            let at = |step: f32| {
                let mut x = [qkv.0.to_vec(), qkv.1.to_vec(), qkv.2.to_vec()];
                x[part][i] += step;
                loss(&x[0], &x[1], &x[2])
            };
            let quotient = ((at(h) - at(-h)) / (2.0 * h as f64)) as f32;
            close(&[gradient[i]], &[quotient], 2e-3, &format!("part {part}, element {i}"));
        }
    }
}

#[test]
fn decoding_over_a_cache_in_pieces_equals_the_whole_sequence_bit_for_bit() {
    for device in devices() {
        for heads in HEADS {
            let t = 150;
            let (q, k, v, _) = inputs(t, t, heads);
            let width = heads.k * heads.e;
            let whole = attention(&device, &q, &k, &v, &AttentionPlan::causal(&[t]), 0.3).0;
            let part = |from: usize, to: usize| KvSegment {
                k: &k.as_f32()[from * width..to * width],
                v: &v.as_f32()[from * width..to * width],
            };
            // One query at a time, and a late prefill, over caches cut at different places, all in one call.
            let positions = [0, 1, 62, 63, 64, 65, 127, 128, 149];
            let single = |(row, &p): (usize, &usize)| CachedSequence {
                queries: row..row + 1,
                segments: if p == 0 { vec![part(0, 1)] } else { vec![part(0, p.min(70)), part(p.min(70), p + 1)] },
            };
            let mut sequences: Vec<CachedSequence> = positions.iter().enumerate().map(single).collect();
            sequences.push(CachedSequence { queries: 9..59, segments: vec![part(0, 33), part(33, 150)] });
            let rows: Vec<usize> = positions.iter().cloned().chain(100..150).collect();
            let found = attention_cached(&device, &q.gather_rows(&rows), &sequences, heads.k, 0.3);
            same_bits(found.as_f32(), whole.gather_rows(&rows).as_f32(), &format!("{device:?} {heads:?}"));
        }
    }
}

#[test]
fn documents_packed_together_give_the_bits_they_give_alone() {
    let device = Device::cpu(2);
    let heads = Heads { h: 6, k: 2, e: 64 };
    let lens = [33, 1, 90];
    let (q, k, v, _) = inputs(124, 124, heads);
    let (packed, packed_lse) = attention(&device, &q, &k, &v, &AttentionPlan::causal(&lens), 0.2);
    let mut start = 0;
    for len in lens {
        let cut = |t: &Tensor| t.slice_rows(start, start + len);
        let (o, lse) = attention(&device, &cut(&q), &cut(&k), &cut(&v), &AttentionPlan::causal(&[len]), 0.2);
        same_bits(o.as_f32(), cut(&packed).as_f32(), "o");
        same_bits(lse.as_f32(), cut(&packed_lse).as_f32(), "lse");
        start += len;
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for isa in [Isa::best(), Isa::Portable] {
        for (plan, n, m) in plans() {
            let heads = HEADS[1];
            let (q, k, v, dout) = inputs(n, m, heads);
            let run = |threads| {
                let device = Device::cpu_with(isa, threads);
                let (o, lse) = attention(&device, &q, &k, &v, &plan, 0.125);
                let saved = AttentionInputs { q: &q, k: &k, v: &v, o: &o, lse: &lse };
                let (dq, dk, dv) = attention_backward(&device, &dout, &saved, &plan, 0.125);
                [o, lse, dq, dk, dv]
            };
            for (a, b) in run(1).iter().zip(&run(2)) {
                same_bits(a.as_f32(), b.as_f32(), &format!("{isa:?} {n}"));
            }
        }
    }
}

#[test]
fn scores_far_apart_neither_overflow_nor_lose_the_winner() {
    // Query 1000 against keys 1000 and -1000: the softmax is 1 and 0 exactly.
    let device = Device::cpu(1);
    let one = |values: &[f32]| Tensor::from_f32(&[values.len(), 1, 1], values.to_vec());
    let (q, k, v) = (one(&[1000.0, 1000.0]), one(&[-1000.0, 1000.0]), one(&[3.0, 5.0]));
    let (o, lse) = attention(&device, &q, &k, &v, &AttentionPlan::causal(&[2]), 1.0);
    assert_eq!(o.as_f32(), [3.0, 5.0]);
    assert_eq!(lse.as_f32(), [-1e6, 1e6]);
}
