//! Backward pass over bf16 rows: a task takes one key head and some of a document's keys, block by block of 64, and for each block the
//! tiles of 64 queries that see it. Scores are recomputed; nothing of size T x T is stored.
//!
//! dk and dv of a key head are summed over its query heads in place. Where the keys of a document are shared out among tasks, each
//! task sums its own dq, and the parts are added in the order of the keys: how the keys are shared depends on their number alone.

use super::keys::{groups, padded, transpose_rows};
use super::rounded::{Job, check, pair_rows, units};
use super::{AttentionPlan, BLOCK, Heads};
use crate::gemm::{Gemm, PANEL};
use crate::ops::zeros;
use crate::pack::with_scratch;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, exp, sum_lanes};
use crate::{Device, Dtype, Rounded, Tensor};
use std::ops::Range;

/// Keys of a task at least, and tasks that a document's keys are shared among at most.
const PART_KEYS: usize = 256;
const PARTS: usize = 4;

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
    let RoundedAttention { q, k, v, o, heads, .. } = *inputs;
    check(q, k, v, heads);
    let (n, m) = (q.rows(), k.rows());
    assert!([o, dout].iter().all(|x| (x.rows(), x.width()) == (n, q.width())), "dout of {} rows", dout.rows());
    assert_eq!(inputs.lse.shape(), [n, heads.h]);
    let jobs = Job::all(plan, n, m);
    let delta = output_shares(device, dout, o, heads);
    let tasks = tasks(plan, &jobs, heads.k);
    let mut dq = zeros(device, &[n, heads.h * heads.e]);
    let n_parts = tasks.iter().map(|task| task.part + 1).max().unwrap_or(1);
    let mut parts: Vec<Tensor> = (1..n_parts).map(|_| zeros(device, dq.shape())).collect();
    let (mut dk, mut dv) = (zeros(device, &[m, heads.k * heads.e]), zeros(device, &[m, heads.k * heads.e]));
    let out_dq: Vec<SharedMut<f32>> =
        std::iter::once(&mut dq).chain(&mut parts).map(|part| SharedMut::new(part.as_f32_mut())).collect();
    let (out_dk, out_dv) = (SharedMut::new(dk.as_f32_mut()), SharedMut::new(dv.as_f32_mut()));
    device.for_each(tasks.len(), &|t| {
        let task = &tasks[t];
        with_scratch(Buffers::lines(heads.e), |lines| {
            for &j in &task.jobs {
                let part = Part {
                    dout,
                    inputs,
                    delta: &delta,
                    job: &jobs[j],
                    keys: task.keys.start..task.keys.end.min(jobs[j].keys.len()),
                    kv: task.kv,
                    scale,
                    buffers: Buffers::new(lines.as_mut_ptr().cast(), heads.e),
                    dq: out_dq[task.part].ptr(),
                    dk: out_dk.ptr(),
                    dv: out_dv.ptr(),
                };
                // SAFETY: queries and keys are rows of their matrices; a task writes its head's part of dk and dv, of keys that are its
                // own, and of the dq of its part (jobs that share keys are in one task, parts of one job have their own dq).
                unsafe { device.isa().run(part) }
            }
        });
    });
    parts.iter().for_each(|part| crate::ops::add_in_place(device, &mut dq, part));
    [dq, dk, dv]
}

/// One task: these keys of these jobs, for one key head.
struct Task {
    jobs: Vec<usize>,
    kv: usize,
    keys: Range<usize>,
    part: usize,
}

/// Long tasks first.
fn tasks(plan: &AttentionPlan, jobs: &[Job], n_heads: usize) -> Vec<Task> {
    let mut tasks = Vec::new();
    for members in groups(plan) {
        let n_keys = members.iter().map(|&j| jobs[j].keys.len()).max().unwrap_or(0);
        // Jobs that share keys write the same rows: one task takes them all.
        let n_parts = if members.len() > 1 { 1 } else { (n_keys / PART_KEYS).clamp(1, PARTS) };
        let size = n_keys.div_ceil(n_parts).next_multiple_of(BLOCK);
        for part in 0..n_parts {
            let keys = part * size..if part + 1 == n_parts { n_keys } else { ((part + 1) * size).min(n_keys) };
            for kv in 0..n_heads {
                tasks.push(Task { jobs: members.clone(), kv, keys: keys.clone(), part });
            }
        }
    }
    let seen = |task: &Task| -> usize {
        let of = |&j: &usize| jobs[j].queries.len().saturating_sub(jobs[j].first_query(task.keys.start));
        task.jobs.iter().map(of).sum::<usize>() * task.keys.len()
    };
    tasks.sort_by_cached_key(|task| std::cmp::Reverse(seen(task)));
    tasks
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

#[derive(Clone, Copy)]
struct Buffers {
    p: *mut f32,        // [64, 64] scores
    ds: *mut f32,       // [64, 64] dout v^T
    p_pairs: *mut u32,  // [32, 64] weights, two queries a unit
    ds_pairs: *mut u32, // [32, 64] gradient of the scores, two queries a unit
    ds_rows: *mut u32,  // [64, 32] the same, two keys a unit
    kt: *mut u32,       // [units of e, 64]
    vt: *mut u32,       // [units of e, 64]
    k: *mut u32,        // [32, padded e]
    q: *mut u32,        // [32, padded e]
    dout: *mut u32,     // [32, padded e]
    dk: *mut f32,       // [64, e]
    dv: *mut f32,       // [64, e]
}

impl Buffers {
    fn sizes(e: usize) -> [usize; 12] {
        let (s, half, t, p) = (BLOCK * BLOCK, BLOCK * BLOCK / 2, units(e) * BLOCK, BLOCK / 2 * padded(e));
        let d = (e * BLOCK).next_multiple_of(LANES);
        [s, s, half, half, half, t, t, p, p, p, d, d]
    }

    fn lines(e: usize) -> usize {
        Self::sizes(e).iter().sum::<usize>() / LANES
    }

    fn new(start: *mut f32, e: usize) -> Self {
        let mut at = 0;
        let [p, ds, p_pairs, ds_pairs, ds_rows, kt, vt, k, q, dout, dk, dv] = Self::sizes(e).map(|n| {
            at += n;
            start.wrapping_add(at - n)
        });
        let [p_pairs, ds_pairs, ds_rows, kt, vt, k, q, dout] =
            [p_pairs, ds_pairs, ds_rows, kt, vt, k, q, dout].map(|units| units.cast());
        Self { p, ds, p_pairs, ds_pairs, ds_rows, kt, vt, k, q, dout, dk, dv }
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
    buffers: Buffers,
    dq: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
}

impl Kernel for Part<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut key = self.keys.start;
        while key < self.keys.end {
            self.key_block::<S>(key, BLOCK.min(self.keys.end - key));
            key += BLOCK;
        }
    }
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn key_block<S: Simd>(&self, key: usize, n: usize) {
        let Heads { h, k: kv_heads, e } = self.inputs.heads;
        let (b, first_unit, group) = (&self.buffers, self.kv * e / 2, h / kv_heads);
        let (k, v) =
            (self.job.block(self.inputs.k, key, n, first_unit), self.job.block(self.inputs.v, key, n, first_unit));
        transpose_rows::<S>(&k.map(|row| row.cast()), n, e / 2, b.kt.cast());
        transpose_rows::<S>(&v.map(|row| row.cast()), n, e / 2, b.vt.cast());
        pair_rows::<S>(&k, n, e, b.k);
        let mut i = 0;
        while i < (e * BLOCK).next_multiple_of(LANES) {
            S::store(b.dk.wrapping_add(i), S::splat(0.0));
            S::store(b.dv.wrapping_add(i), S::splat(0.0));
            i += LANES;
        }
        let mut query = self.job.first_query(key) / BLOCK * BLOCK;
        while query < self.job.queries.len() {
            for head in self.kv * group..(self.kv + 1) * group {
                self.query_tile::<S>((key, n), query, head);
            }
            query += BLOCK;
        }
        for i in 0..n {
            let row = (self.job.keys[key + i] * kv_heads + self.kv) * e;
            super::backward::add_row::<S>(self.dk.wrapping_add(row), b.dk.wrapping_add(i * e), e);
            super::backward::add_row::<S>(self.dv.wrapping_add(row), b.dv.wrapping_add(i * e), e);
        }
    }

    /// Rows of a head of the tile's queries, as bits; rows past the last repeat it.
    #[inline(always)]
    fn rows(&self, x: &Rounded, query: usize, n: usize, head: usize) -> [*const u32; BLOCK] {
        let first = self.job.queries.start + query;
        let at = |i: usize| x.row(first + i.min(n - 1)).cast::<u32>().wrapping_add(head * self.inputs.heads.e / 2);
        std::array::from_fn(at)
    }

    #[inline(always)]
    unsafe fn query_tile<S: Simd>(&self, (key, n_keys): (usize, usize), query: usize, head: usize) {
        let Heads { h, e, .. } = self.inputs.heads;
        let (b, n) = (&self.buffers, BLOCK.min(self.job.queries.len() - query));
        let (q, dout) = (self.rows(self.inputs.q, query, n, head), self.rows(self.dout, query, n, head));
        let scores = Gemm {
            dtype: Dtype::Bf16,
            m: n,
            n: n_keys,
            units: e / 2,
            a: q[0],
            a_stride: self.inputs.q.stride(),
            a_by_unit: false,
            a_panel_stride: 0,
            b: b.kt,
            b_panel_stride: PANEL,
            b_unit_stride: BLOCK,
            c: b.p,
            c_stride: BLOCK,
            accumulate: false,
            add: std::ptr::null(),
            from_memory: false,
        };
        scores.run_inside::<S>();
        Gemm { a: dout[0], a_stride: self.dout.stride(), b: b.vt, c: b.ds, ..scores }.run_inside::<S>();
        let mut i = 0;
        while i < n {
            self.score_gradients::<S>((key, n_keys), query, i, i + 1 < n, head);
            i += 2;
        }
        let dq = Gemm {
            n: e,
            units: n_keys.div_ceil(2),
            a: b.ds_rows,
            a_stride: BLOCK / 2,
            b: b.k,
            b_unit_stride: padded(e),
            c: self.dq.wrapping_add(((self.job.queries.start + query) * h + head) * e),
            c_stride: h * e,
            accumulate: true,
            ..scores
        };
        dq.run_inside::<S>();
        pair_rows::<S>(&q, n, e, b.q);
        pair_rows::<S>(&dout, n, e, b.dout);
        let by_key = Gemm { m: n_keys, units: n.div_ceil(2), a_by_unit: true, a_stride: BLOCK, c_stride: e, ..dq };
        Gemm { a: b.ds_pairs, b: b.q, c: b.dk, ..by_key }.run_inside::<S>();
        Gemm { a: b.p_pairs, b: b.dout, c: b.dv, ..by_key }.run_inside::<S>();
    }

    /// Scores and dout v^T of two rows to weights and the gradient of q k^T, as the products want them.
    #[inline(always)]
    unsafe fn score_gradients<S: Simd>(
        &self,
        (key, n_keys): (usize, usize),
        query: usize,
        i: usize,
        has_second: bool,
        head: usize,
    ) {
        let b = &self.buffers;
        let one = self.score_row::<S>((key, n_keys), query, i, head);
        let other = if has_second { self.score_row::<S>((key, n_keys), query, i + 1, head) } else { one };
        let mut x = 0;
        while x < BLOCK {
            let (p, ds) = one.at::<S>(x, self.scale);
            S::store_bf16(b.ds_rows.wrapping_add(i * BLOCK / 2).cast::<u16>().wrapping_add(x), ds);
            let (mut p2, mut ds2) = (S::splat(0.0), S::splat(0.0));
            if has_second {
                (p2, ds2) = other.at::<S>(x, self.scale);
                S::store_bf16(b.ds_rows.wrapping_add((i + 1) * BLOCK / 2).cast::<u16>().wrapping_add(x), ds2);
            }
            let to = i / 2 * BLOCK + x;
            S::store(b.p_pairs.wrapping_add(to).cast(), S::pair_bf16(p, p2));
            S::store(b.ds_pairs.wrapping_add(to).cast(), S::pair_bf16(ds, ds2));
            x += LANES;
        }
    }

    /// Row `i` of the tile, what it does not see masked.
    #[inline(always)]
    unsafe fn score_row<S: Simd>(
        &self,
        (key, n_keys): (usize, usize),
        query: usize,
        i: usize,
        head: usize,
    ) -> ScoreRow {
        let (scores, dp) = (self.buffers.p.wrapping_add(i * BLOCK), self.buffers.ds.wrapping_add(i * BLOCK));
        let seen = self.job.visible(query + i).saturating_sub(key).min(n_keys);
        for x in seen..BLOCK {
            scores.wrapping_add(x).write(f32::NEG_INFINITY);
            dp.wrapping_add(x).write(0.0);
        }
        let at = (self.job.queries.start + query + i) * self.inputs.heads.h + head;
        ScoreRow { scores, dp, lse: self.inputs.lse.as_f32()[at], delta: self.delta[at] }
    }
}

#[derive(Clone, Copy)]
struct ScoreRow {
    scores: *const f32,
    dp: *const f32,
    lse: f32,
    delta: f32,
}

impl ScoreRow {
    /// Weights of 16 keys and the gradient of their q k^T.
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, x: usize, scale: f32) -> (S::V, S::V) {
        let scale = S::splat(scale);
        let p = exp::<S>(S::sub(S::mul(S::load(self.scores.wrapping_add(x)), scale), S::splat(self.lse)));
        let ds = S::mul(S::mul(p, S::sub(S::load(self.dp.wrapping_add(x)), S::splat(self.delta))), scale);
        (p, ds)
    }
}
