//! Attention with online softmax, forward and backward, over packed batches and over caches.
//!
//! A query's keys are the concatenation of its block's ranges (or of its sequence's segments). Softmax walks them in fixed
//! blocks of 64 counted from the first key, so a query's result depends on its keys alone.

use crate::reference::{self, Heads};
use crate::{Device, Tensor};
use std::ops::Range;

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

fn heads(q: &Tensor, k: &Tensor) -> Heads {
    let ([_, h, e], [_, kv, e_k]) = (q.shape(), k.shape()) else { panic!("q {:?}, k {:?}", q.shape(), k.shape()) };
    assert!(e == e_k && h % kv == 0, "q {:?}, k {:?}", q.shape(), k.shape());
    Heads { h: *h, k: *kv, e: *e }
}

/// `softmax(scale q k^T) v`: q `[N, H, E]`, k and v `[M, K, E]`, H a multiple of K; returns o `[N, H, E]` and lse `[N, H]`.
pub fn attention(
    _device: &Device,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    plan: &AttentionPlan,
    scale: f32,
) -> (Tensor, Tensor) {
    let heads = heads(q, k);
    let (o, lse) = reference::attention(q.as_f32(), k.as_f32(), v.as_f32(), heads, plan, scale);
    (Tensor::from_f32(q.shape(), o), Tensor::from_f32(&q.shape()[..2], lse))
}

/// The same over caches with `kv_heads` heads: decoding steps and prefills of several sequences in one call; returns o `[N, H, E]`.
pub fn attention_cached(
    device: &Device,
    q: &Tensor,
    sequences: &[CachedSequence],
    kv_heads: usize,
    scale: f32,
) -> Tensor {
    let [_, h, e] = q.shape() else { panic!("q {:?}", q.shape()) };
    let mut out = Tensor::zeros(q.shape(), crate::Dtype::F32);
    for sequence in sequences {
        let join = |part: fn(&KvSegment) -> Vec<f32>| {
            let data: Vec<f32> = sequence.segments.iter().flat_map(part).collect();
            Tensor::from_f32(&[data.len() / (kv_heads * e), kv_heads, *e], data)
        };
        let (k, v) = (join(|s| s.k.to_vec()), join(|s| s.v.to_vec()));
        let rows = sequence.queries.clone();
        let queries = 0..rows.len();
        let blocks = vec![AttentionBlock { queries, keys: std::iter::once(0..k.shape()[0]).collect() }];
        let plan = AttentionPlan { blocks, causal: true };
        let o = attention(device, &q.slice_rows(rows.start, rows.end), &k, &v, &plan, scale).0;
        out.as_f32_mut()[rows.start * h * e..rows.end * h * e].copy_from_slice(o.as_f32());
    }
    out
}

/// Gradients (dq, dk, dv) of [`attention`]. Keys shared by several blocks get the sum.
pub fn attention_backward(
    _device: &Device,
    dout: &Tensor,
    inputs: &AttentionInputs,
    plan: &AttentionPlan,
    scale: f32,
) -> (Tensor, Tensor, Tensor) {
    let heads = heads(inputs.q, inputs.k);
    let qkv = (inputs.q.as_f32(), inputs.k.as_f32(), inputs.v.as_f32());
    let (dq, dk, dv) = reference::attention_backward(dout.as_f32(), qkv, heads, plan, scale);
    let (q, k) = (inputs.q.shape(), inputs.k.shape());
    (Tensor::from_f32(q, dq), Tensor::from_f32(k, dk), Tensor::from_f32(k, dv))
}
