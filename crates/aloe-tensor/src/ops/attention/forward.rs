//! Forward pass: a tile of queries walks its keys in blocks of 64, keeping a running maximum and sum per row.

use super::keys::{Job, padded, transpose_rows};
use super::soften::{RowState, normalise, soften};
use super::{BLOCK, Heads};
use crate::gemm::{Gemm, PANEL};
use crate::pack::with_scratch;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd};
use crate::{Device, Dtype};

/// Rows of a tile: queries times query heads of one key head.
const TILE_ROWS: usize = 96;

pub(super) fn run(device: &Device, q: &[f32], jobs: &[Job], heads: Heads, scale: f32, out: (&mut [f32], &mut [f32])) {
    let group = heads.h / heads.k;
    let tile = (TILE_ROWS / group).max(1);
    let mut tasks = Vec::new();
    for (j, job) in jobs.iter().enumerate() {
        for from in (0..job.queries.len()).step_by(tile) {
            tasks.extend((0..heads.k).map(|kv| (j, from, kv)));
        }
    }
    // Late queries see most keys: the long tasks go first.
    tasks.reverse();
    let (o, lse, isa) = (SharedMut::new(out.0), SharedMut::new(out.1), device.isa());
    device.for_each(tasks.len(), &|t| {
        let (j, from, kv) = tasks[t];
        let job = &jobs[j];
        let n = tile.min(job.queries.len() - from);
        with_scratch(Buffers::lines(n * group, heads.e), |lines| {
            let buffers = Buffers::new(lines.as_mut_ptr().cast(), n * group, heads.e);
            let tile = Tile { q: q.as_ptr(), job, from, n, kv, heads, scale, buffers, o: o.ptr(), lse: lse.ptr() };
            assert!((job.queries.end * heads.h) * heads.e <= q.len());
            // SAFETY: queries and keys lie in their slices (asserted here and in `Job::new`); queries of different tasks
            // or heads of one query are different parts of o and lse.
            unsafe { isa.run(tile) }
        });
    });
}

/// Scratch of a tile, each part a multiple of a cache line.
#[derive(Clone, Copy)]
struct Buffers {
    q: *mut f32,      // [rows, e]
    scores: *mut f32, // [rows, 64]
    o: *mut f32,      // [rows, e]
    max: *mut f32,    // [rows]
    sum: *mut f32,    // [rows]
    kt: *mut f32,     // [e, 64]
    v: *mut f32,      // [64, padded e]
}

impl Buffers {
    fn sizes(rows: usize, e: usize) -> [usize; 7] {
        let e16 = e.next_multiple_of(LANES);
        [rows * e, rows * BLOCK, rows * e, rows, rows, e16 * BLOCK, BLOCK * padded(e)]
            .map(|n| n.next_multiple_of(LANES))
    }

    fn lines(rows: usize, e: usize) -> usize {
        Self::sizes(rows, e).iter().sum::<usize>() / LANES
    }

    fn new(start: *mut f32, rows: usize, e: usize) -> Self {
        let mut at = 0;
        let [q, scores, o, max, sum, kt, v] = Self::sizes(rows, e).map(|n| {
            at += n;
            start.wrapping_add(at - n)
        });
        Self { q, scores, o, max, sum, kt, v }
    }
}

struct Tile<'a> {
    q: *const f32,
    job: &'a Job<'a>,
    from: usize,
    n: usize,
    kv: usize,
    heads: Heads,
    scale: f32,
    buffers: Buffers,
    o: *mut f32,
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
            self.step::<S>(key);
            key += BLOCK;
        }
        self.finish::<S>();
    }
}

impl Tile<'_> {
    fn rows(&self) -> usize {
        self.n * self.heads.h / self.heads.k
    }

    /// Index of row `r` among all (query, head) pairs.
    #[inline(always)]
    fn global(&self, r: usize) -> usize {
        let group = self.heads.h / self.heads.k;
        (self.job.queries.start + self.from + r / group) * self.heads.h + self.kv * group + r % group
    }

    #[inline(always)]
    unsafe fn start<S: Simd>(&self) {
        let (e, b) = (self.heads.e, &self.buffers);
        for r in 0..self.rows() {
            super::keys::copy_row::<S>(self.q.wrapping_add(self.global(r) * e), e, b.q.wrapping_add(r * e));
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
    unsafe fn step<S: Simd>(&self, key: usize) {
        let (e, b, rows) = (self.heads.e, &self.buffers, self.rows());
        let block = self.job.block(key, self.kv * e);
        transpose_rows::<S>(&block.k, block.n, e, b.kt);
        let scores = Gemm {
            dtype: Dtype::F32,
            m: rows,
            n: block.n,
            units: e,
            a: b.q.cast(),
            a_stride: e,
            a_by_unit: false,
            a_panel_stride: 0,
            b: b.kt.cast(),
            b_panel_stride: PANEL,
            b_unit_stride: BLOCK,
            c: b.scores,
            c_stride: BLOCK,
            accumulate: false,
            add: std::ptr::null(),
            from_memory: false,
        };
        scores.run_inside::<S>();
        let group = self.heads.h / self.heads.k;
        for r in 0..rows {
            let seen = self.job.visible(self.from + r / group).saturating_sub(key).min(block.n);
            soften::<S>(&self.state(r), self.scale, seen);
        }
        let v = block.rows::<S>(&block.v, self.job.stride, e, b.v);
        let values = Gemm {
            n: e,
            units: block.n,
            a: b.scores.cast(),
            a_stride: BLOCK,
            b: v.start.cast(),
            b_unit_stride: v.stride,
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
            let lse = b.max.wrapping_add(r).read() + b.sum.wrapping_add(r).read().ln();
            self.lse.wrapping_add(self.global(r)).write(lse);
            normalise::<S>(&self.state(r), self.o.wrapping_add(self.global(r) * e));
        }
    }
}
