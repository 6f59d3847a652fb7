//! Forward pass over bf16 rows, for training in bf16: operands of both products are bf16, softmax and sums f32.
//!
//! The walk is that of `forward`: a tile of queries takes its keys in blocks of 64 counted from the first, so that a query's result
//! depends on its keys alone.

use super::keys::{padded, transpose_rows};
use super::soften::{RowState, normalise, soften_rows};
use super::{AttentionPlan, BLOCK, Heads};
use crate::gemm::{Gemm, PANEL};
use crate::pack::{round_row, with_scratch};
use crate::pool::SharedMut;
use crate::rounded::RowsOut;
use crate::simd::{Kernel, LANES, Simd};
use crate::{Device, Dtype, Rounded, Tensor};
use std::ops::Range;

/// Rows of a tile: queries times query heads of one key head.
const TILE_ROWS: usize = 96;

/// Rows whose scores become weights together; they stay in the first-level cache.
const SOFTENED_ROWS: usize = 24;

/// Queries and the rows of the keys they see.
pub(super) struct Job {
    pub(super) queries: Range<usize>,
    pub(super) keys: Vec<usize>,
    causal: bool,
}

impl Job {
    /// The plan's blocks over `n` queries and `m` keys, checked.
    pub(super) fn all(plan: &AttentionPlan, n: usize, m: usize) -> Vec<Self> {
        let mut next = 0;
        let mut sorted: Vec<_> = plan.blocks.iter().collect();
        sorted.sort_by_key(|block| block.queries.start);
        for block in sorted {
            assert!(next <= block.queries.start && block.queries.end <= n, "queries {:?} of a plan", block.queries);
            next = block.queries.end;
        }
        let job = |block: &super::AttentionBlock| {
            let keys: Vec<usize> = block.keys.iter().cloned().flatten().collect();
            assert!(keys.iter().all(|&key| key < m), "keys {:?} of {m}", block.keys);
            let enough = if plan.causal { block.queries.len().max(1) } else { 1 };
            assert!(
                keys.len() >= enough || block.queries.is_empty(),
                "queries {:?} but {} keys",
                block.queries,
                keys.len()
            );
            Self { queries: block.queries.clone(), keys, causal: plan.causal }
        };
        plan.blocks.iter().map(job).collect()
    }

    /// How many keys the `i`-th query sees.
    #[inline(always)]
    pub(super) fn visible(&self, i: usize) -> usize {
        if self.causal { self.keys.len() - self.queries.len() + i + 1 } else { self.keys.len() }
    }

    /// The first query that sees key `j`.
    pub(super) fn first_query(&self, j: usize) -> usize {
        if self.causal { (j + self.queries.len()).saturating_sub(self.keys.len()) } else { 0 }
    }

    /// The first of the tiles of 64 queries in which some query sees key `j`.
    pub(super) fn first_tile(&self, j: usize) -> usize {
        self.first_query(j) / BLOCK * BLOCK
    }

    /// Up to 64 rows of keys from key `start` on as bits of head `kv`; rows past the last repeat it.
    #[inline(always)]
    pub(super) fn block(&self, x: &Rounded, start: usize, n: usize, first_unit: usize) -> [*const u32; BLOCK] {
        let at = |i: usize| x.row(self.keys[start + i.min(n - 1)]).cast::<u32>().wrapping_add(first_unit);
        std::array::from_fn(at)
    }
}

/// [`super::attention`] over bf16 rows q `[N, H*E]`, k and v `[M, K*E]`: o `[N, H*E]` rounded, and the log-sum-exp of the scaled scores
/// `[N, H]` f32. Queries outside the plan get zeros.
pub fn attention_rounded(
    device: &Device,
    [q, k, v]: [&Rounded; 3],
    heads: Heads,
    plan: &AttentionPlan,
    scale: f32,
) -> (Rounded, Tensor) {
    let n = q.rows();
    check(q, k, v, heads);
    let jobs = Job::all(plan, n, k.rows());
    let group = heads.h / heads.k;
    let tile = (TILE_ROWS / group).max(1);
    let mut tasks = Vec::new();
    for job in &jobs {
        for from in (0..job.queries.len()).step_by(tile) {
            tasks.extend((0..heads.k).map(|kv| (job, from, kv)));
        }
    }
    // Late queries see most keys: the long tasks go first.
    tasks.reverse();
    let mut lse = vec![0.0; n * heads.h];
    let out_lse = SharedMut::new(&mut lse);
    let o = Rounded::written(n, q.width(), |out| {
        let mut covered = vec![false; n];
        jobs.iter().for_each(|job| covered[job.queries.clone()].fill(true));
        for row in (0..n).filter(|&row| !covered[row]) {
            // SAFETY: a row of the result, not written elsewhere.
            unsafe { out.row(row).write_bytes(0, q.width()) };
        }
        device.for_each(tasks.len(), &|t| {
            let (job, from, kv) = tasks[t];
            let n = tile.min(job.queries.len() - from);
            with_scratch(Buffers::lines(n * group, heads.e), |lines| {
                let buffers = Buffers::new(lines.as_mut_ptr().cast(), n * group, heads.e);
                let tile = Tile { q, k, v, job, from, n, kv, heads, scale, buffers, o: out, lse: out_lse.ptr() };
                // SAFETY: queries and keys are rows of their matrices (checked in `Job::all`); queries of different tasks or heads of
                // one query are different parts of o and lse.
                unsafe { device.isa().run(tile) }
            });
        });
    });
    (o, Tensor::from_f32(&[n, heads.h], lse))
}

pub(super) fn check(q: &Rounded, k: &Rounded, v: &Rounded, heads: Heads) {
    let Heads { h, k: kv, e } = heads;
    assert!(e.is_multiple_of(2) && kv > 0 && h.is_multiple_of(kv), "{h} and {kv} heads of {e}");
    assert_eq!((q.width(), k.width(), v.width(), k.rows()), (h * e, kv * e, kv * e, v.rows()), "rows of q, k and v");
}

/// Scratch of a tile, each part a multiple of a cache line.
#[derive(Clone, Copy)]
struct Buffers {
    q: *mut u32,        // [rows, units of e]
    scores: *mut f32,   // [rows, 64]
    weights: *mut u32,  // [rows, 32]
    o: *mut f32,        // [rows, e]
    max: *mut f32,      // [rows]
    sum: *mut f32,      // [rows]
    kt: *mut u32,       // [units of e, 64]
    v: *mut u32,        // [32, padded e]
    row: *mut f32,      // [e]
    bits: *mut u16,     // [e]
    row_sums: *mut f32, // [24, 16]
}

/// Units of a head, rounded up to whole vectors.
pub(super) fn units(e: usize) -> usize {
    (e / 2).next_multiple_of(LANES)
}

impl Buffers {
    fn sizes(rows: usize, e: usize) -> [usize; 11] {
        [
            rows * units(e),
            rows * BLOCK,
            rows * BLOCK / 2,
            rows * e,
            rows,
            rows,
            units(e) * BLOCK,
            BLOCK / 2 * padded(e),
            e,
            e,
            SOFTENED_ROWS * LANES,
        ]
        .map(|n| n.next_multiple_of(LANES))
    }

    fn lines(rows: usize, e: usize) -> usize {
        Self::sizes(rows, e).iter().sum::<usize>() / LANES
    }

    fn new(start: *mut f32, rows: usize, e: usize) -> Self {
        let mut at = 0;
        let [q, scores, weights, o, max, sum, kt, v, row, bits, row_sums] = Self::sizes(rows, e).map(|n| {
            at += n;
            start.wrapping_add(at - n)
        });
        let (q, weights, kt, v, bits) = (q.cast(), weights.cast(), kt.cast(), v.cast(), bits.cast());
        Self { q, scores, weights, o, max, sum, kt, v, row, bits, row_sums }
    }
}

struct Tile<'a> {
    q: &'a Rounded,
    k: &'a Rounded,
    v: &'a Rounded,
    job: &'a Job,
    from: usize,
    n: usize,
    kv: usize,
    heads: Heads,
    scale: f32,
    buffers: Buffers,
    o: RowsOut,
    lse: *mut f32,
}

impl Kernel for Tile<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.start::<S>();
        let last = self.job.visible(self.from + self.n - 1);
        let mut key = 0;
        while key < last {
            self.step::<S>(key, BLOCK.min(last - key));
            key += BLOCK;
        }
        self.finish::<S>();
    }
}

impl Tile<'_> {
    fn rows(&self) -> usize {
        self.n * self.heads.h / self.heads.k
    }

    /// Query and query head of row `r`: all queries of a head, then those of the next.
    #[inline(always)]
    fn of(&self, r: usize) -> (usize, usize) {
        let group = self.heads.h / self.heads.k;
        (self.job.queries.start + self.from + r % self.n, self.kv * group + r / self.n)
    }

    #[inline(always)]
    unsafe fn start<S: Simd>(&self) {
        let (e, b) = (self.heads.e, &self.buffers);
        for r in 0..self.rows() {
            let (query, head) = self.of(r);
            let from = self.q.row(query).cast::<u32>().wrapping_add(head * e / 2);
            super::keys::copy_row::<S>(from.cast(), e / 2, b.q.wrapping_add(r * units(e)).cast());
            b.max.wrapping_add(r).write(f32::NEG_INFINITY);
            b.sum.wrapping_add(r).write(0.0);
        }
        let mut i = 0;
        while i < (self.rows() * e).next_multiple_of(LANES) {
            S::store(b.o.wrapping_add(i), S::splat(0.0));
            i += LANES;
        }
    }

    #[inline(always)]
    unsafe fn step<S: Simd>(&self, key: usize, n_keys: usize) {
        let (e, b, rows) = (self.heads.e, &self.buffers, self.rows());
        let first_unit = self.kv * e / 2;
        let k = self.job.block(self.k, key, n_keys, first_unit);
        transpose_rows::<S>(&k.map(|row| row.cast()), n_keys, e / 2, b.kt.cast());
        let scores = Gemm {
            dtype: Dtype::Bf16,
            m: rows,
            n: n_keys,
            units: e / 2,
            a: b.q,
            a_stride: units(e),
            a_by_unit: false,
            a_panel_stride: 0,
            b: b.kt,
            b_panel_stride: PANEL,
            b_unit_stride: BLOCK,
            c: b.scores,
            c_stride: BLOCK,
            accumulate: false,
            add: std::ptr::null(),
            from_memory: false,
        };
        scores.run_inside::<S>();
        let mut first = 0;
        while first < rows {
            let n = (rows - first).min(SOFTENED_ROWS);
            let seen = |r: usize| self.job.visible(self.from + (first + r) % self.n).saturating_sub(key).min(n_keys);
            let weights = Some(b.weights.wrapping_add(first * BLOCK / 2).cast());
            soften_rows::<S>(&self.state(first), n, self.scale, seen, (b.row_sums, weights));
            first += n;
        }
        pair_rows::<S>(&self.job.block(self.v, key, n_keys, first_unit), n_keys, e, b.v);
        let values = Gemm {
            n: e,
            units: n_keys.div_ceil(2),
            a: b.weights,
            a_stride: BLOCK / 2,
            b: b.v,
            b_unit_stride: padded(e),
            c: b.o,
            c_stride: e,
            accumulate: true,
            ..scores
        };
        values.run_inside::<S>();
    }

    #[inline(always)]
    fn state(&self, r: usize) -> RowState {
        let (e, b) = (self.heads.e, &self.buffers);
        RowState {
            scores: b.scores.wrapping_add(r * BLOCK),
            max: b.max.wrapping_add(r),
            sum: b.sum.wrapping_add(r),
            o: b.o.wrapping_add(r * e),
            e,
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self) {
        let (e, b) = (self.heads.e, &self.buffers);
        for r in 0..self.rows() {
            let (query, head) = self.of(r);
            let lse = b.max.wrapping_add(r).read() + b.sum.wrapping_add(r).read().ln();
            self.lse.wrapping_add(query * self.heads.h + head).write(lse);
            normalise::<S>(&self.state(r), b.row);
            // By way of a buffer: whole vectors would write over the next head, which is another task's.
            round_row::<S>(b.row, e, b.bits);
            self.o.row(query).wrapping_add(head * e).copy_from_nonoverlapping(b.bits, e);
        }
    }
}

/// Two rows of `e` bf16 a unit: unit j of element x at `out[j * padded(e) + x]`; a missing last row is zero, elements up to `padded(e)`
/// are written.
///
/// # Safety
/// `n` rows of `e` elements to read, `n.div_ceil(2) * padded(e)` units to write; the instruction set is available.
#[inline(always)]
pub(super) unsafe fn pair_rows<S: Simd>(rows: &[*const u32; BLOCK], n: usize, e: usize, out: *mut u32) {
    let mut row = 0;
    while row < n {
        let mut unit = 0;
        while unit < e / 2 {
            let width = (e / 2 - unit).min(LANES);
            let low = S::load_up_to(rows[row].wrapping_add(unit).cast(), width);
            let high =
                if row + 1 < n { S::load_up_to(rows[row + 1].wrapping_add(unit).cast(), width) } else { S::splat(0.0) };
            let (first, second) = S::interleave_bf16(low, high);
            let to = out.wrapping_add(row / 2 * padded(e) + 2 * unit);
            S::store(to.cast(), first);
            S::store(to.wrapping_add(LANES).cast(), second);
            unit += LANES;
        }
        row += 2;
    }
}
