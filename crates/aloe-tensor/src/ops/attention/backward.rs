//! Backward pass: each query head walks blocks of 64 keys, and for each block the tiles of 64 queries that see it. Scores are
//! recomputed; nothing of size T x T is stored.

use super::keys::{Job, KeyBlock, RowOperand, Shared, copy_row, padded, transpose_rows};
use super::{AttentionInputs, BLOCK, Heads, heads};
use crate::gemm::{Gemm, PANEL};
use crate::pack::with_scratch;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, exp, sum_lanes};
use crate::{Device, Dtype};

/// Where gradients go: dq `[N, H, E]`, dk and dv `[M, H, E]`, one part per query head.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) dq: SharedMut<f32>,
    pub(super) dk: SharedMut<f32>,
    pub(super) dv: SharedMut<f32>,
}

pub(super) fn run(device: &Device, dout: &[f32], inputs: &AttentionInputs, plan: &Shared, scale: f32, out: Out) {
    let heads = heads(inputs.q, inputs.k, inputs.v);
    let isa = device.isa();
    device.for_each(plan.groups.len() * heads.h, &|task| {
        let (group, h) = (&plan.groups[task / heads.h], task % heads.h);
        with_scratch(Buffers::lines(heads.e), |lines| {
            for &j in group {
                let job = Head {
                    dout: dout.as_ptr(),
                    q: inputs.q.as_f32().as_ptr(),
                    o: inputs.o.as_f32().as_ptr(),
                    lse: inputs.lse.as_f32().as_ptr(),
                    job: &plan.jobs[j],
                    rows: &plan.rows[j],
                    h,
                    heads,
                    scale,
                    buffers: Buffers::new(lines.as_mut_ptr().cast(), heads.e),
                    out,
                };
                // SAFETY: `jobs` checked queries and keys against the tensors, whose shapes agree; a head writes its own
                // part of dq, dk and dv, and jobs that share keys are in one group, hence on one thread.
                unsafe { isa.run(job) }
            }
        });
    });
}

#[derive(Clone, Copy)]
struct Buffers {
    p: *mut f32,    // [64, 64] weights
    ds: *mut f32,   // [64, 64] gradient of the scores
    kt: *mut f32,   // [e, 64]
    vt: *mut f32,   // [e, 64]
    k: *mut f32,    // [64, padded e], for `KeyBlock::rows`
    q: *mut f32,    // [64, padded e]
    dout: *mut f32, // [64, padded e]
    dk: *mut f32,   // [64, e]
    dv: *mut f32,   // [64, e]
}

impl Buffers {
    fn sizes(e: usize) -> [usize; 9] {
        let (t, p) = (e.next_multiple_of(LANES) * BLOCK, BLOCK * padded(e));
        [BLOCK * BLOCK, BLOCK * BLOCK, t, t, p, p, p, t, t]
    }

    fn lines(e: usize) -> usize {
        Self::sizes(e).iter().sum::<usize>() / LANES
    }

    fn new(start: *mut f32, e: usize) -> Self {
        let mut at = 0;
        let [p, ds, kt, vt, k, q, dout, dk, dv] = Self::sizes(e).map(|n| {
            at += n;
            start.wrapping_add(at - n)
        });
        Self { p, ds, kt, vt, k, q, dout, dk, dv }
    }
}

/// One query head of one job.
struct Head<'a> {
    dout: *const f32,
    q: *const f32,
    o: *const f32,
    lse: *const f32,
    job: &'a Job<'a>,
    rows: &'a [usize],
    h: usize,
    heads: Heads,
    scale: f32,
    buffers: Buffers,
    out: Out,
}

impl Kernel for Head<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // sum(dout * o) of each query: what the softmax takes off every score's gradient.
        let mut delta = vec![0.0f32; self.job.queries.len()];
        for (i, delta) in delta.iter_mut().enumerate() {
            *delta = self.dot::<S>(self.at(self.dout, i), self.at(self.o, i));
        }
        let mut key = 0;
        while key < self.job.n_keys {
            self.key_block::<S>(key, &delta);
            key += BLOCK;
        }
    }
}

impl Head<'_> {
    /// This head's row of the `i`-th query in a `[N, H, E]` tensor.
    #[inline(always)]
    fn at(&self, start: *const f32, i: usize) -> *const f32 {
        start.wrapping_add(((self.job.queries.start + i) * self.heads.h + self.h) * self.heads.e)
    }

    #[inline(always)]
    unsafe fn dot<S: Simd>(&self, a: *const f32, b: *const f32) -> f32 {
        let mut sum = S::splat(0.0);
        let mut x = 0;
        while x < self.heads.e {
            let n = (self.heads.e - x).min(LANES);
            sum = S::fma(S::load_up_to(a.wrapping_add(x), n), S::load_up_to(b.wrapping_add(x), n), sum);
            x += LANES;
        }
        sum_lanes::<S>(sum)
    }

    #[inline(always)]
    unsafe fn key_block<S: Simd>(&self, key: usize, delta: &[f32]) {
        let (e, b) = (self.heads.e, &self.buffers);
        let block = self.job.block(key, self.h / (self.heads.h / self.heads.k) * e);
        transpose_rows::<S>(&block.k, block.n, e, b.kt);
        transpose_rows::<S>(&block.v, block.n, e, b.vt);
        let k = block.rows::<S>(&block.k, self.job.stride, e, b.k);
        let mut i = 0;
        while i < e.next_multiple_of(LANES) * BLOCK {
            S::store(b.dk.wrapping_add(i), S::splat(0.0));
            S::store(b.dv.wrapping_add(i), S::splat(0.0));
            i += LANES;
        }
        let mut query = self.job.first_query(key) / BLOCK * BLOCK;
        while query < self.job.queries.len() {
            self.query_tile::<S>((key, &block, k), query, delta);
            query += BLOCK;
        }
        for i in 0..block.n {
            let row = (self.rows[key + i] * self.heads.h + self.h) * e;
            add_row::<S>(self.out.dk.ptr().wrapping_add(row), b.dk.wrapping_add(i * e), e);
            add_row::<S>(self.out.dv.ptr().wrapping_add(row), b.dv.wrapping_add(i * e), e);
        }
    }

    /// Rows of q or dout as operand B: where they lie, or copied when the last panel would read past a row.
    #[inline(always)]
    unsafe fn query_rows<S: Simd>(&self, start: *const f32, query: usize, n: usize, scratch: *mut f32) -> RowOperand {
        let e = self.heads.e;
        if e.is_multiple_of(PANEL) {
            return RowOperand { start: self.at(start, query), stride: self.heads.h * e };
        }
        for i in 0..n {
            copy_row::<S>(self.at(start, query + i), e, scratch.wrapping_add(i * padded(e)));
        }
        RowOperand { start: scratch, stride: padded(e) }
    }

    #[inline(always)]
    unsafe fn query_tile<S: Simd>(&self, (key, block, k): (usize, &KeyBlock, RowOperand), query: usize, delta: &[f32]) {
        let (e, b, width) = (self.heads.e, &self.buffers, self.heads.h * self.heads.e);
        let n = BLOCK.min(self.job.queries.len() - query);
        let scores = Gemm {
            dtype: Dtype::F32,
            m: n,
            n: block.n,
            units: e,
            a: self.at(self.q, query).cast(),
            a_stride: width,
            a_by_unit: false,
            a_panel_stride: 0,
            b: b.kt.cast(),
            b_panel_stride: PANEL,
            b_unit_stride: BLOCK,
            c: b.p,
            c_stride: BLOCK,
            accumulate: false,
            add: std::ptr::null(),
            from_memory: false,
        };
        scores.run_inside::<S>();
        Gemm { a: self.at(self.dout, query).cast(), b: b.vt.cast(), c: b.ds, ..scores }.run_inside::<S>();
        for i in 0..n {
            let seen = self.job.visible(query + i).saturating_sub(key).min(block.n);
            let lse = self.lse.wrapping_add((self.job.queries.start + query + i) * self.heads.h + self.h).read();
            self.score_gradient::<S>(i, seen, lse, delta[query + i]);
        }
        let dq = Gemm {
            n: e,
            units: block.n,
            a: b.ds.cast(),
            a_stride: BLOCK,
            b: k.start.cast(),
            b_unit_stride: k.stride,
            c: self.at(self.out.dq.ptr(), query).cast_mut(),
            c_stride: width,
            accumulate: true,
            ..scores
        };
        dq.run_inside::<S>();
        let (q, dout) =
            (self.query_rows::<S>(self.q, query, n, b.q), self.query_rows::<S>(self.dout, query, n, b.dout));
        let by_key = Gemm { m: block.n, units: n, a_by_unit: true, c_stride: e, ..dq };
        Gemm { b: q.start.cast(), b_unit_stride: q.stride, c: b.dk, ..by_key }.run_inside::<S>();
        Gemm { a: b.p.cast(), b: dout.start.cast(), b_unit_stride: dout.stride, c: b.dv, ..by_key }.run_inside::<S>();
    }

    /// Scores and dout v^T of a row to weights and the gradient of q k^T.
    #[inline(always)]
    unsafe fn score_gradient<S: Simd>(&self, i: usize, seen: usize, lse: f32, delta: f32) {
        let (p, ds) = (self.buffers.p.wrapping_add(i * BLOCK), self.buffers.ds.wrapping_add(i * BLOCK));
        for x in seen..BLOCK {
            p.wrapping_add(x).write(f32::NEG_INFINITY);
            ds.wrapping_add(x).write(0.0);
        }
        let (scale, lse, delta) = (S::splat(self.scale), S::splat(lse), S::splat(delta));
        let mut x = 0;
        while x < BLOCK {
            let weight = exp::<S>(S::sub(S::mul(S::load(p.wrapping_add(x)), scale), lse));
            let gradient = S::mul(weight, S::sub(S::load(ds.wrapping_add(x)), delta));
            S::store(p.wrapping_add(x), weight);
            S::store(ds.wrapping_add(x), S::mul(gradient, scale));
            x += LANES;
        }
    }
}

/// `to += from`, `e` numbers.
///
/// # Safety
/// Both are valid for `e` numbers; the instruction set is available.
#[inline(always)]
pub(super) unsafe fn add_row<S: Simd>(to: *mut f32, from: *const f32, e: usize) {
    let mut x = 0;
    while x < e {
        let n = (e - x).min(LANES);
        let sum = S::add(S::load_up_to(to.wrapping_add(x), n), S::load_up_to(from.wrapping_add(x), n));
        S::store_up_to(to.wrapping_add(x), sum, n);
        x += LANES;
    }
}
