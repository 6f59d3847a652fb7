//! Attention with online softmax, forward and backward, over packed batches and over caches.
//!
//! A query's keys are the concatenation of its block's ranges (or of its sequence's segments). Softmax walks them in fixed
//! blocks of 64 counted from the first key, so a query's result depends on its keys alone.

mod backward;
mod forward;
mod keys;
mod page;
mod paged;
mod rounded;
mod rounded_backward;
mod soften;

use crate::pool::SharedMut;
use crate::reference::Heads;
use crate::{Device, Dtype, Tensor};
use keys::Job;
pub use page::{KvPage, PageWrite, expect_page, write_pages};
pub use paged::{PagedSequence, attention_paged, attention_paged_rounded};
pub use rounded::attention_rounded;
pub use rounded_backward::{RoundedAttention, attention_rounded_backward};
use std::ops::Range;

/// Keys of a softmax step, and of a block of the backward pass.
const BLOCK: usize = 64;

/// Queries that see the same keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionBlock {
    /// Rows of q.
    pub queries: Range<usize>,
    /// Rows of k and v, concatenated. In a causal plan the last `queries.len()` keys are the queries' own positions.
    pub keys: Vec<Range<usize>>,
}

/// Which query sees which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Disjoint in `queries`; key ranges may be shared.
    pub blocks: Vec<AttentionBlock>,
    /// Causal: query i of n sees all but the last `n - 1 - i` keys of its block. Otherwise it sees all.
    pub causal: bool,
}

impl AttentionPlan {
    /// Documents of the given lengths, packed one after the other, each causal within itself.
    pub fn causal(len_tokens: &[usize]) -> Self {
        Self { blocks: packed(len_tokens), causal: true }
    }

    /// Documents of the given lengths, each token seeing its whole document (BERT).
    pub fn full(len_tokens: &[usize]) -> Self {
        Self { blocks: packed(len_tokens), causal: false }
    }
}

fn packed(len_tokens: &[usize]) -> Vec<AttentionBlock> {
    let mut start = 0;
    let block = |&len: &usize| {
        let range = start..start + len;
        start += len;
        AttentionBlock { queries: range.clone(), keys: vec![range] }
    };
    len_tokens.iter().map(block).collect()
}

/// Rows of one sequence's keys and values: `[len, K, E]` each.
#[derive(Clone, Copy, Debug)]
pub struct KvSegment<'a> {
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
}

/// New queries of one sequence against its cache, which already holds the new keys at its end.
#[derive(Clone, Debug)]
pub struct CachedSequence<'a> {
    /// Rows of q; the cache's last `queries.len()` keys are theirs.
    pub queries: Range<usize>,
    /// The cache in order: a shared prefix, then the sequence's own part.
    pub segments: Vec<KvSegment<'a>>,
}

/// The forward pass's inputs and results, for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Queries `[N, H, E]`.
    pub q: &'a Tensor,
    /// Keys `[M, K, E]`.
    pub k: &'a Tensor,
    /// Values `[M, K, E]`.
    pub v: &'a Tensor,
    /// Output `[N, H, E]`.
    pub o: &'a Tensor,
    /// Log-sum-exp of the scaled scores `[N, H]`.
    pub lse: &'a Tensor,
}

fn heads(q: &Tensor, k: &Tensor, v: &Tensor) -> Heads {
    let ([_, h, e], [_, kv, e_k]) = (q.shape(), k.shape()) else { panic!("q {:?}, k {:?}", q.shape(), k.shape()) };
    assert!(
        e == e_k && h % kv == 0 && k.shape() == v.shape(),
        "q {:?}, k {:?}, v {:?}",
        q.shape(),
        k.shape(),
        v.shape()
    );
    Heads { h: *h, k: *kv, e: *e }
}

/// The plan as jobs over rows of k and v, checked.
fn jobs<'a>(plan: &AttentionPlan, k: &'a Tensor, v: &'a Tensor, n_queries: usize) -> Vec<Job<'a>> {
    let width = k.shape()[1] * k.shape()[2];
    let (k, v) = (k.as_f32(), v.as_f32());
    let part =
        |r: &Range<usize>| KvSegment { k: &k[r.start * width..r.end * width], v: &v[r.start * width..r.end * width] };
    let mut next = 0;
    let mut sorted: Vec<&AttentionBlock> = plan.blocks.iter().collect();
    sorted.sort_by_key(|b| b.queries.start);
    for block in sorted {
        assert!(next <= block.queries.start && block.queries.end <= n_queries, "queries {:?} of a plan", block.queries);
        next = block.queries.end;
    }
    plan.blocks
        .iter()
        .map(|b| Job::new(b.queries.clone(), b.keys.iter().map(part).collect(), width, plan.causal))
        .collect()
}

/// `softmax(scale q k^T) v`: q `[N, H, E]`, k and v `[M, K, E]`, H a multiple of K; returns o `[N, H, E]` and the log-sum-exp
/// of the scaled scores `[N, H]` (Dao et al. 2022, algorithm 1; Dao 2023). Queries outside the plan get zeros.
pub fn attention(
    device: &Device,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    plan: &AttentionPlan,
    scale: f32,
) -> (Tensor, Tensor) {
    let heads = heads(q, k, v);
    let n = q.shape()[0];
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; n * heads.h]);
    forward::run(device, q.as_f32(), &jobs(plan, k, v, n), heads, scale, (&mut o, &mut lse));
    (Tensor::from_f32(q.shape(), o), Tensor::from_f32(&[n, heads.h], lse))
}

/// The same over caches with `kv_heads` heads: decoding steps and prefills of several sequences in one call, each equal bit
/// for bit to [`attention`] over the whole sequence. Returns o `[N, H, E]`.
pub fn attention_cached(
    device: &Device,
    q: &Tensor,
    sequences: &[CachedSequence],
    kv_heads: usize,
    scale: f32,
) -> Tensor {
    let &[n, h, e] = q.shape() else { panic!("q {:?}", q.shape()) };
    assert!(h % kv_heads == 0, "{h} query heads over {kv_heads} key heads");
    let mut jobs = Vec::with_capacity(sequences.len());
    for s in sequences {
        assert!(s.queries.end <= n, "queries {:?} of {n}", s.queries);
        jobs.push(Job::new(s.queries.clone(), s.segments.clone(), kv_heads * e, true));
    }
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; n * h]);
    forward::run(device, q.as_f32(), &jobs, Heads { h, k: kv_heads, e }, scale, (&mut o, &mut lse));
    Tensor::from_f32(q.shape(), o)
}

/// Gradients (dq, dk, dv) of [`attention`] (Dao et al. 2022, algorithm 4). Keys shared by several blocks get the sum, in plan order.
pub fn attention_backward(
    device: &Device,
    dout: &Tensor,
    inputs: &AttentionInputs,
    plan: &AttentionPlan,
    scale: f32,
) -> (Tensor, Tensor, Tensor) {
    let heads = heads(inputs.q, inputs.k, inputs.v);
    let (q, k) = (inputs.q.shape(), inputs.k.shape());
    assert!(
        dout.shape() == q && inputs.o.shape() == q && inputs.lse.shape() == &q[..2],
        "dout {:?}, q {q:?}",
        dout.shape()
    );
    let jobs = jobs(plan, inputs.k, inputs.v, q[0]);
    let mut dq = Tensor::zeros(q, Dtype::F32);
    // Each query head sums its own dk and dv; heads that share keys are added up at the end, in head order.
    let per_head = [k[0], heads.h, heads.e];
    let (mut dk, mut dv) = (Tensor::zeros(&per_head, Dtype::F32), Tensor::zeros(&per_head, Dtype::F32));
    let out = backward::Out {
        dq: SharedMut::new(dq.as_f32_mut()),
        dk: SharedMut::new(dk.as_f32_mut()),
        dv: SharedMut::new(dv.as_f32_mut()),
    };
    backward::run(device, dout.as_f32(), inputs, &keys::Shared::new(plan, jobs), scale, out);
    (dq, sum_heads(device, dk, heads), sum_heads(device, dv, heads))
}

/// `[M, H, E]` to `[M, K, E]`: the sum over the query heads of each key head.
fn sum_heads(device: &Device, x: Tensor, heads: Heads) -> Tensor {
    let (m, group, e) = (x.shape()[0], heads.h / heads.k, heads.e);
    if group == 1 {
        return x;
    }
    let mut out = Tensor::zeros(&[m, heads.k, e], Dtype::F32);
    let (from, to) = (x.as_f32(), SharedMut::new(out.as_f32_mut()));
    device.for_each(m, &|row| {
        // SAFETY: each index has its own row.
        let row_out = unsafe { to.slice(row * heads.k * e, heads.k * e) };
        for (kv, sum) in row_out.chunks_exact_mut(e).enumerate() {
            for h in kv * group..(kv + 1) * group {
                let part = &from[(row * heads.h + h) * e..][..e];
                sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
            }
        }
    });
    out
}

#[cfg(test)]
mod paged_tests;
#[cfg(test)]
mod rounded_tests;
#[cfg(test)]
mod tests;
