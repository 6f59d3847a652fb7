//! Backward pass over bf16 rows: a task takes one key head and some of a document's keys, some blocks of 64 at a time, and for those the
//! tiles of 64 queries that see them. Scores are recomputed; nothing of size T x T is stored.
//!
//! dk and dv of a key head are summed over its query heads in place. Where the keys of a document are shared out among tasks, each
//! task sums its own dq, and the parts are added in the order of the keys: how the keys are shared depends on their number alone.
//! How many blocks are taken together changes no bit: every sum runs over its queries, or its keys, in order.

mod cell;
mod parts;

use super::backward::add_row;
use super::keys::{padded, transpose_rows};
use super::rounded::{Job, check, pair_rows, units};
use super::{AttentionPlan, BLOCK, Heads};
use crate::gemm::{Gemm, PANEL};
use crate::ops::zeros;
use crate::pack::with_scratch;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, sum_lanes};
use crate::{Device, Dtype, Isa, Rounded, Tensor};
use cell::{Ahead, Cell, HeadRows};
use parts::{QueryParts, tasks};
use std::ops::Range;

/// Units of 32 bits of what belongs to the blocks of keys that are taken together: half of a second-level cache of 1 MiB, as the queries
/// pass through the other half.
const STRETCH_UNITS: usize = 1 << 17;

/// The forward pass's inputs and results.
#[derive(Clone, Copy, Debug)]
pub struct RoundedAttention<'a> {
    /// Queries `[N, H*E]`.
    pub q: &'a Rounded,
    /// Keys `[M, K*E]`.
    pub k: &'a Rounded,
    /// Values `[M, K*E]`.
    pub v: &'a Rounded,
    /// Output `[N, H*E]`.
    pub o: &'a Rounded,
    /// Log-sum-exp of the scaled scores `[N, H]`.
    pub lse: &'a Tensor,
    /// Numbers and size of heads.
    pub heads: Heads,
}

/// Gradients dq `[N, H*E]`, dk and dv `[M, K*E]`, f32, of [`super::attention_rounded`] (Dao et al. 2022, algorithm 4).
pub fn attention_rounded_backward(
    device: &Device,
    dout: &Rounded,
    inputs: &RoundedAttention,
    plan: &AttentionPlan,
    scale: f32,
) -> [Tensor; 3] {
    backward(device, (dout, inputs), plan, scale, Walk::of(inputs.heads))
}

/// How cells follow each other, which changes no bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// Blocks of keys taken together.
    pub(super) blocks: usize,
    /// Whether whole cells take their exponentials beside the products.
    pub(super) beside: bool,
}

impl Walk {
    pub(super) fn of(heads: Heads) -> Self {
        Self { blocks: (STRETCH_UNITS / Buffers::units_of_block(heads)).clamp(1, 8), beside: true }
    }
}

pub(super) fn backward(
    device: &Device,
    (dout, inputs): (&Rounded, &RoundedAttention),
    plan: &AttentionPlan,
    scale: f32,
    walk: Walk,
) -> [Tensor; 3] {
    let RoundedAttention { q, k, v, o, heads, .. } = *inputs;
    check(q, k, v, heads);
    let (n, m) = (q.rows(), k.rows());
    assert!([o, dout].iter().all(|x| (x.rows(), x.width()) == (n, q.width())), "dout of {} rows", dout.rows());
    assert_eq!(inputs.lse.shape(), [n, heads.h]);
    let jobs = Job::all(plan, n, m);
    let delta = output_shares(device, dout, o, heads);
    let tasks = tasks(plan, &jobs, heads.k);
    let dq_parts = QueryParts::new(&tasks, &jobs, n, heads);
    let (mut dk, mut dv) = (zeros(device, &[m, heads.k * heads.e]), zeros(device, &[m, heads.k * heads.e]));
    let (out_dk, out_dv) = (SharedMut::new(dk.as_f32_mut()), SharedMut::new(dv.as_f32_mut()));
    device.for_each(tasks.len(), &|t| {
        let task = &tasks[t];
        with_scratch(Buffers::lines(heads, walk.blocks), |lines| {
            for &j in &task.jobs {
                let part = Part {
                    dout,
                    inputs,
                    delta: &delta,
                    job: &jobs[j],
                    keys: task.keys.start..task.keys.end.min(jobs[j].keys.len()),
                    kv: task.kv,
                    scale,
                    walk,
                    isa: device.isa(),
                    buffers: Buffers::new(lines.as_mut_ptr().cast(), heads, walk.blocks),
                    dq: dq_parts.start(task.part),
                    dk: out_dk.ptr(),
                    dv: out_dv.ptr(),
                };
                // SAFETY: queries and keys are rows of their matrices; a task writes its head's part of dk and dv, of keys that are its
                // own, and of the dq of its part (jobs that share keys are in one task, parts of one job have their own dq).
                unsafe { device.isa().run(part) }
            }
        });
    });
    [dq_parts.sum(device), dk, dv]
}

/// Sum of `dout * o` of each query and head `[N, H]`: what the softmax takes off every score's gradient.
fn output_shares(device: &Device, dout: &Rounded, o: &Rounded, heads: Heads) -> Vec<f32> {
    const ROWS: usize = 16;
    let n = o.rows();
    let mut delta = vec![0.0; n * heads.h];
    let out = SharedMut::new(&mut delta);
    device.for_each(n.div_ceil(ROWS), &|task| {
        for row in task * ROWS..((task + 1) * ROWS).min(n) {
            for head in 0..heads.h {
                let at = |x: &Rounded| x.row(row).cast::<u32>().wrapping_add(head * heads.e / 2);
                // SAFETY: the units of a head of this row; the element of this row and head.
                unsafe {
                    let sum = device.isa().run(Dot { a: at(dout), b: at(o), units: heads.e / 2 });
                    out.ptr().wrapping_add(row * heads.h + head).write(sum);
                }
            }
        }
    });
    delta
}

struct Dot {
    a: *const u32,
    b: *const u32,
    units: usize,
}

impl Kernel for Dot {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < self.units {
            let n = (self.units - i).min(LANES);
            let (a, b) =
                (S::load_up_to(self.a.wrapping_add(i).cast(), n), S::load_up_to(self.b.wrapping_add(i).cast(), n));
            sum = S::fma(S::lower_bf16(a), S::lower_bf16(b), sum);
            sum = S::fma(S::upper_bf16(a), S::upper_bf16(b), sum);
            i += LANES;
        }
        sum_lanes::<S>(sum)
    }
}

/// Scratch of a task; what belongs to a block of keys lies block by block.
#[derive(Clone, Copy)]
struct Buffers {
    p: *mut f32,        // [64, 64] scores
    dp: *mut f32,       // [64, 64] dout v^T
    ds_rows: *mut u32,  // [64, blocks, 32] gradient of the scores, two keys a unit
    q: *mut u32,        // [group, 32, padded e], two queries a unit
    dout: *mut u32,     // [group, 32, padded e], two queries a unit
    p_pairs: *mut u32,  // [blocks, group, 32, 64] weights, two queries a unit
    ds_pairs: *mut u32, // [blocks, group, 32, 64] gradient of the scores, two queries a unit
    kt: *mut u32,       // [blocks, units of e, 64]
    vt: *mut u32,       // [blocks, units of e, 64]
    k: *mut u32,        // [blocks, 32, padded e], two keys a unit
    dk: *mut f32,       // [blocks, 64, e]
    dv: *mut f32,       // [blocks, 64, e]
}

impl Buffers {
    fn sizes(Heads { h, k, e }: Heads, blocks: usize) -> [usize; 12] {
        let (s, half, group) = (BLOCK * BLOCK, BLOCK * BLOCK / 2, h / k);
        let (t, p) = (units(e) * BLOCK, BLOCK / 2 * padded(e));
        let d = (e * BLOCK).next_multiple_of(LANES);
        let (pairs, rows) = (blocks * group * half, group * p);
        [s, s, blocks * half, rows, rows, pairs, pairs, blocks * t, blocks * t, blocks * p, blocks * d, blocks * d]
    }

    /// What one more block of keys takes.
    fn units_of_block(heads: Heads) -> usize {
        let total = |blocks| Self::sizes(heads, blocks).iter().sum::<usize>();
        total(2) - total(1)
    }

    fn lines(heads: Heads, blocks: usize) -> usize {
        Self::sizes(heads, blocks).iter().sum::<usize>() / LANES
    }

    fn new(start: *mut f32, heads: Heads, blocks: usize) -> Self {
        let mut at = 0;
        let [p, dp, ds_rows, q, dout, p_pairs, ds_pairs, kt, vt, k, dk, dv] = Self::sizes(heads, blocks).map(|n| {
            at += n;
            start.wrapping_add(at - n)
        });
        let [ds_rows, q, dout, p_pairs, ds_pairs, kt, vt, k] =
            [ds_rows, q, dout, p_pairs, ds_pairs, kt, vt, k].map(|units| units.cast());
        Self { p, dp, ds_rows, q, dout, p_pairs, ds_pairs, kt, vt, k, dk, dv }
    }
}

/// One key head, some keys of one job.
struct Part<'a> {
    dout: &'a Rounded,
    inputs: &'a RoundedAttention<'a>,
    delta: &'a [f32],
    job: &'a Job,
    keys: Range<usize>,
    kv: usize,
    scale: f32,
    walk: Walk,
    isa: Isa,
    buffers: Buffers,
    dq: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
}

impl Kernel for Part<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let step = self.walk.blocks * BLOCK;
        let mut key = self.keys.start;
        while key < self.keys.end {
            self.stretch::<S>(key..self.keys.end.min(key + step));
            key += step;
        }
    }
}

impl Part<'_> {
    fn group(&self) -> usize {
        self.inputs.heads.h / self.inputs.heads.k
    }

    /// Keys that are taken together, with all queries that see them.
    #[inline(always)]
    unsafe fn stretch<S: Simd>(&self, keys: Range<usize>) {
        let blocks = keys.len().div_ceil(BLOCK);
        for block in 0..blocks {
            self.pack::<S>(&keys, block);
        }
        let n_queries = self.job.queries.len();
        let mut query = self.job.first_tile(keys.start);
        while query < n_queries {
            let sees = |block: &usize| self.job.first_tile(keys.start + block * BLOCK) <= query;
            let seen = keys.start..keys.end.min(keys.start + (0..blocks).take_while(sees).count() * BLOCK);
            self.query_tile::<S>(&seen, query);
            query += BLOCK;
        }
        let Heads { k: kv_heads, e, .. } = self.inputs.heads;
        for i in 0..if n_queries > 0 { keys.len() } else { 0 } {
            let row = (self.job.keys[keys.start + i] * kv_heads + self.kv) * e;
            add_row::<S>(
                self.dk.wrapping_add(row),
                self.sums(self.buffers.dk, i / BLOCK).wrapping_add(i % BLOCK * e),
                e,
            );
            add_row::<S>(
                self.dv.wrapping_add(row),
                self.sums(self.buffers.dv, i / BLOCK).wrapping_add(i % BLOCK * e),
                e,
            );
        }
    }

    /// A block's part of dk or dv.
    #[inline(always)]
    fn sums(&self, all: *mut f32, block: usize) -> *mut f32 {
        all.wrapping_add(block * (self.inputs.heads.e * BLOCK).next_multiple_of(LANES))
    }

    /// A block's part of kt or vt.
    #[inline(always)]
    fn columns(&self, all: *mut u32, block: usize) -> *mut u32 {
        all.wrapping_add(block * units(self.inputs.heads.e) * BLOCK)
    }

    /// The part of a block and the `head`-th head of the group of weights or gradients, `n` queries being in the tile.
    #[inline(always)]
    fn pairs(&self, all: *mut u32, block: usize, head: usize, n: usize) -> *mut u32 {
        all.wrapping_add(block * self.group() * BLOCK / 2 * BLOCK + head * n.div_ceil(2) * BLOCK)
    }

    /// Keys and values of a block as the products read them.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, keys: &Range<usize>, block: usize) {
        let (e, b) = (self.inputs.heads.e, &self.buffers);
        let key = keys.start + block * BLOCK;
        let (n, first_unit) = (BLOCK.min(keys.end - key), self.kv * e / 2);
        let (k, v) =
            (self.job.block(self.inputs.k, key, n, first_unit), self.job.block(self.inputs.v, key, n, first_unit));
        transpose_rows::<S>(&k.map(|row| row.cast()), n, e / 2, self.columns(b.kt, block).cast());
        transpose_rows::<S>(&v.map(|row| row.cast()), n, e / 2, self.columns(b.vt, block).cast());
        pair_rows::<S>(&k, n, e, b.k.wrapping_add(block * BLOCK / 2 * padded(e)));
    }

    /// A tile of queries of a head: rows of q and dout, and where its dq is.
    #[inline(always)]
    fn rows(&self, query: usize, head: usize) -> (HeadRows, HeadRows, *mut f32) {
        let (Heads { h, e, .. }, first) = (self.inputs.heads, self.job.queries.start + query);
        let rows = |x| HeadRows::new(x, first, head * e / 2);
        (rows(self.inputs.q), rows(self.dout), self.dq.wrapping_add((first * h + head) * e))
    }

    /// What comes after a head of a tile: the next head, or the first one of the next tile.
    #[inline(always)]
    fn ahead(&self, query: usize, head: usize) -> Option<Ahead> {
        let Heads { h, e, .. } = self.inputs.heads;
        let is_last = head + 1 == (self.kv + 1) * self.group();
        let (query, head) = if is_last { (query + BLOCK, self.kv * self.group()) } else { (query, head + 1) };
        if query >= self.job.queries.len() {
            return None;
        }
        let (q, dout, dq) = self.rows(query, head);
        Some(Ahead { q, dout, dq, dq_stride: h * e, n: BLOCK.min(self.job.queries.len() - query), e })
    }

    /// All that a tile of queries adds, over the keys of a stretch that some of its queries see.
    #[inline(always)]
    unsafe fn query_tile<S: Simd>(&self, keys: &Range<usize>, query: usize) {
        let (Heads { h, e, .. }, b, group) = (self.inputs.heads, &self.buffers, self.group());
        let (n, blocks) = (BLOCK.min(self.job.queries.len() - query), keys.len().div_ceil(BLOCK));
        let product = Gemm {
            dtype: Dtype::Bf16,
            m: n,
            n: e,
            units: keys.len().div_ceil(2),
            a: b.ds_rows,
            a_stride: self.walk.blocks * BLOCK / 2,
            a_by_unit: false,
            a_panel_stride: 0,
            b: b.k,
            b_panel_stride: PANEL,
            b_unit_stride: padded(e),
            c: self.dq,
            c_stride: h * e,
            accumulate: keys.start > self.keys.start,
            add: std::ptr::null(),
            from_memory: false,
        };
        for of_group in 0..group {
            let head = self.kv * group + of_group;
            let (q, dout, dq) = self.rows(query, head);
            for block in 0..blocks {
                self.cell::<S>(keys, (query, n), block, of_group);
            }
            Gemm { c: dq, ..product }.run_here(self.isa);
            let packed = of_group * n.div_ceil(2) * padded(e);
            pair_rows::<S>(&q.block(n), n, e, b.q.wrapping_add(packed));
            pair_rows::<S>(&dout.block(n), n, e, b.dout.wrapping_add(packed));
        }
        let by_key = Gemm { units: group * n.div_ceil(2), a_by_unit: true, a_stride: BLOCK, c_stride: e, ..product };
        for block in 0..blocks {
            let key = keys.start + block * BLOCK;
            // The first tile that sees the block begins its sums.
            let by_key = Gemm { m: BLOCK.min(keys.end - key), accumulate: query > self.job.first_tile(key), ..by_key };
            let (p, ds) = (self.pairs(b.p_pairs, block, 0, n), self.pairs(b.ds_pairs, block, 0, n));
            Gemm { a: ds, b: b.q, c: self.sums(b.dk, block), ..by_key }.run_here(self.isa);
            Gemm { a: p, b: b.dout, c: self.sums(b.dv, block), ..by_key }.run_here(self.isa);
        }
    }

    /// Weights and gradients of the scores of a block and a head of the group.
    #[inline(always)]
    unsafe fn cell<S: Simd>(&self, keys: &Range<usize>, (query, n): (usize, usize), block: usize, of_group: usize) {
        let (Heads { h, e, .. }, b) = (self.inputs.heads, &self.buffers);
        let (head, key) = (self.kv * self.group() + of_group, keys.start + block * BLOCK);
        let ((q, dout, _), at) = (self.rows(query, head), (self.job.queries.start + query) * h + head);
        let cell = Cell {
            job: self.job,
            query,
            n,
            key,
            n_keys: BLOCK.min(keys.end - key),
            q,
            dout,
            units: e / 2,
            kt: self.columns(b.kt, block),
            vt: self.columns(b.vt, block),
            lse: self.inputs.lse.as_f32()[at..].as_ptr(),
            delta: self.delta[at..].as_ptr(),
            heads: h,
            scale: self.scale,
            isa: self.isa,
            p: b.p,
            dp: b.dp,
            p_pairs: self.pairs(b.p_pairs, block, of_group, n),
            ds_pairs: self.pairs(b.ds_pairs, block, of_group, n),
            ds_rows: b.ds_rows.wrapping_add(block * BLOCK / 2),
            ds_stride: self.walk.blocks * BLOCK / 2,
            ahead: if block == 0 { self.ahead(query, head) } else { None },
        };
        if S::PAIRS_BF16 && self.isa != Isa::Amx && self.walk.beside && cell.is_whole() {
            cell.whole::<S>();
        } else {
            cell.masked::<S>();
        }
    }
}
