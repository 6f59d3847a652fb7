//! Forward pass: a tile of queries walks its keys in blocks of 64, keeping a running maximum and sum per row.

use super::keys::{Job, padded, transpose_rows};
use super::{BLOCK, Heads};
use crate::gemm::{Gemm, PANEL};
use crate::pack::with_scratch;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, exp, max_lanes, sum_lanes};
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
            b: b.kt.cast(),
            b_panel_stride: PANEL,
            b_unit_stride: BLOCK,
            c: b.scores,
            c_stride: BLOCK,
            accumulate: false,
        };
        scores.run_inside::<S>();
        let group = self.heads.h / self.heads.k;
        for r in 0..rows {
            let seen = self.job.visible(self.from + r / group).saturating_sub(key).min(block.n);
            self.soften::<S>(r, seen);
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

    /// Scores of a row to weights; the running output shrinks when the maximum grows. Keys past `seen` get weight 0, which
    /// leaves the chains of the product as they were.
    #[inline(always)]
    unsafe fn soften<S: Simd>(&self, r: usize, seen: usize) {
        let row = self.buffers.scores.wrapping_add(r * BLOCK);
        let (max, sum) = (self.buffers.max.wrapping_add(r), self.buffers.sum.wrapping_add(r));
        for i in seen..BLOCK {
            row.wrapping_add(i).write(f32::NEG_INFINITY);
        }
        if seen == 0 {
            (0..BLOCK).for_each(|i| row.wrapping_add(i).write(0.0));
            return;
        }
        let scale = S::splat(self.scale);
        // Written out: a closure's body would not be compiled with the kernel's instructions.
        let at = [row, row.wrapping_add(LANES), row.wrapping_add(2 * LANES), row.wrapping_add(3 * LANES)];
        let s = [
            S::mul(S::load(at[0]), scale),
            S::mul(S::load(at[1]), scale),
            S::mul(S::load(at[2]), scale),
            S::mul(S::load(at[3]), scale),
        ];
        let before = max.read();
        let block_max = max_lanes::<S>(S::max(S::max(s[0], s[1]), S::max(s[2], s[3])));
        let now = if block_max > before { block_max } else { before };
        let shift = S::splat(now);
        let p = [
            exp::<S>(S::sub(s[0], shift)),
            exp::<S>(S::sub(s[1], shift)),
            exp::<S>(S::sub(s[2], shift)),
            exp::<S>(S::sub(s[3], shift)),
        ];
        let mut i = 0;
        while i < 4 {
            S::store(at[i], p[i]);
            i += 1;
        }
        let added = sum_lanes::<S>(S::add(S::add(p[0], p[1]), S::add(p[2], p[3])));
        if now == before {
            sum.write(sum.read() + added);
            return;
        }
        let shrink = exp::<S>(S::sub(S::splat(before), shift));
        sum.write(sum.read() * max_lanes::<S>(shrink) + added);
        max.write(now);
        self.scale_output::<S>(r, shrink);
    }

    #[inline(always)]
    unsafe fn scale_output<S: Simd>(&self, r: usize, factor: S::V) {
        let e = self.heads.e;
        let o = self.buffers.o.wrapping_add(r * e);
        let mut x = 0;
        while x < e {
            let n = (e - x).min(LANES);
            S::store_up_to(o.wrapping_add(x), S::mul(S::load_up_to(o.wrapping_add(x), n), factor), n);
            x += LANES;
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self) {
        let (e, b) = (self.heads.e, &self.buffers);
        for r in 0..self.rows() {
            let sum = b.sum.wrapping_add(r).read();
            self.lse.wrapping_add(self.global(r)).write(b.max.wrapping_add(r).read() + sum.ln());
            let divisor = S::splat(sum);
            let mut x = 0;
            while x < e {
                let n = (e - x).min(LANES);
                let o = S::load_up_to(b.o.wrapping_add(r * e + x), n);
                S::store_up_to(self.o.wrapping_add(self.global(r) * e + x), S::div(o, divisor), n);
                x += LANES;
            }
        }
    }
}
