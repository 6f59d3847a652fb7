//! 64 queries of one head against 64 keys: their scores and `dout v^T` become weights and the gradient of the scores, in the layouts that
//! the three products of the backward pass read.
//!
//! Queries that see all 64 keys go four at a time: while the scores of four are summed, the gradients of the four before are finished,
//! and while their `dout v^T` is summed their scores become weights. Other queries take the same steps one after the other, with the
//! same bits.

use super::super::BLOCK;
use super::super::rounded::Job;
use crate::gemm::{Gemm, PANEL, each_row};
use crate::simd::{Exp, Kernel, LANES, Simd, exp, prefetch_near};
use crate::{Dtype, Isa, Rounded};

/// Rows of queries that are summed together: with four vectors of keys each, 16 sums, which is more than a product waits for.
const ROWS: usize = 4;

/// Vectors of a row's scores.
const PER_ROW: usize = BLOCK / LANES;

/// Rows of bf16 of one head, evenly spaced.
#[derive(Clone, Copy)]
pub(super) struct HeadRows {
    pub(super) start: *const u32,
    pub(super) stride: usize, // units
}

impl HeadRows {
    /// Rows from `first` on of the head whose units begin at `unit`.
    pub(super) fn new(x: &Rounded, first: usize, unit: usize) -> Self {
        Self { start: x.row(first).cast::<u32>().wrapping_add(unit), stride: x.stride() }
    }

    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> *const u32 {
        self.start.wrapping_add(i * self.stride)
    }

    /// Up to 64 rows; those past the last repeat it.
    #[inline(always)]
    pub(super) fn block(&self, n: usize) -> [*const u32; BLOCK] {
        std::array::from_fn(|i| self.row(i.min(n - 1)))
    }
}

/// What a later tile of queries of one head reads, for the second-level cache.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) q: HeadRows,
    pub(super) dout: HeadRows,
    pub(super) dq: *const f32,
    pub(super) dq_stride: usize,
    pub(super) n: usize,
    pub(super) e: usize,
}

impl Ahead {
    /// Fetches one row.
    #[inline(always)]
    fn row(&self, i: usize) {
        if i >= self.n {
            return;
        }
        for line in (0..self.e).step_by(2 * LANES) {
            prefetch_near(self.q.row(i).wrapping_add(line / 2).cast());
            prefetch_near(self.dout.row(i).wrapping_add(line / 2).cast());
            prefetch_near(self.dq.wrapping_add(i * self.dq_stride + line).cast());
            prefetch_near(self.dq.wrapping_add(i * self.dq_stride + line + LANES).cast());
        }
    }
}

/// A cell's inputs and where its results go.
#[derive(Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) job: &'a Job,
    /// First query of the tile within the job, and their number.
    pub(super) query: usize,
    pub(super) n: usize,
    /// First key of the block within the job, and their number.
    pub(super) key: usize,
    pub(super) n_keys: usize,
    pub(super) q: HeadRows,
    pub(super) dout: HeadRows,
    /// Units of a head.
    pub(super) units: usize,
    pub(super) kt: *const u32, // [units, 64]
    pub(super) vt: *const u32, // [units, 64]
    /// Log-sum-exp and `dout o` of the tile's first query; those of the next are `heads` further on.
    pub(super) lse: *const f32,
    pub(super) delta: *const f32,
    pub(super) heads: usize,
    pub(super) scale: f32,
    pub(super) isa: Isa,
    pub(super) p: *mut f32,        // [64, 64] scratch
    pub(super) dp: *mut f32,       // [64, 64] scratch
    pub(super) p_pairs: *mut u32,  // [n / 2, 64] weights, two queries a unit
    pub(super) ds_pairs: *mut u32, // [n / 2, 64] gradient of the scores, two queries a unit
    pub(super) ds_rows: *mut u32,  // [n, ds_stride] the same, two keys a unit, of which 32 are written
    pub(super) ds_stride: usize,
    pub(super) ahead: Option<Ahead>,
}

impl Cell<'_> {
    /// Whether all queries of a whole tile see all keys of a whole block.
    pub(super) fn is_whole(&self) -> bool {
        self.n == BLOCK && self.n_keys == BLOCK && self.job.visible(self.query) >= self.key + BLOCK
    }

    /// A cell of which keys are masked, or with fewer rows or keys.
    ///
    /// # Safety
    /// The pointers are valid for the numbers named beside them; the instruction set is available.
    #[inline(always)]
    pub(super) unsafe fn masked<S: Simd>(&self) {
        if let Some(ahead) = self.ahead {
            (0..ahead.n).for_each(|i| ahead.row(i));
        }
        let scores = Gemm {
            dtype: Dtype::Bf16,
            m: self.n,
            n: self.n_keys,
            units: self.units,
            a: self.q.start,
            a_stride: self.q.stride,
            a_by_unit: false,
            a_panel_stride: 0,
            b: self.kt,
            b_panel_stride: PANEL,
            b_unit_stride: BLOCK,
            c: self.p,
            c_stride: BLOCK,
            accumulate: false,
            add: std::ptr::null(),
            from_memory: false,
        };
        scores.run_here(self.isa);
        Gemm { a: self.dout.start, a_stride: self.dout.stride, b: self.vt, c: self.dp, ..scores }.run_here(self.isa);
        let mut i = 0;
        while i < self.n {
            self.two_rows::<S>(i, i + 1 < self.n);
            i += 2;
        }
    }

    /// Weights and gradients of rows `i` and `i + 1`, if there is such a one.
    #[inline(always)]
    unsafe fn two_rows<S: Simd>(&self, i: usize, has_second: bool) {
        self.mask(i);
        if has_second {
            self.mask(i + 1);
        }
        let mut x = 0;
        while x < BLOCK {
            let (p, ds) = self.gradient::<S>(i, x);
            self.put_row::<S>(i, x, ds);
            let (mut p2, mut ds2) = (S::splat(0.0), S::splat(0.0));
            if has_second {
                (p2, ds2) = self.gradient::<S>(i + 1, x);
                self.put_row::<S>(i + 1, x, ds2);
            }
            self.put_pairs::<S>(i / 2, x, [p, p2], [ds, ds2]);
            x += LANES;
        }
    }

    /// Scores that row `i` does not see are below all others, and their gradient is nothing.
    #[inline(always)]
    unsafe fn mask(&self, i: usize) {
        let seen = self.job.visible(self.query + i).saturating_sub(self.key).min(self.n_keys);
        for x in i * BLOCK + seen..(i + 1) * BLOCK {
            self.p.wrapping_add(x).write(f32::NEG_INFINITY);
            self.dp.wrapping_add(x).write(0.0);
        }
    }

    /// Weights of 16 keys and the gradient of their q k^T.
    #[inline(always)]
    unsafe fn gradient<S: Simd>(&self, i: usize, x: usize) -> (S::V, S::V) {
        let (at, row) = (i * BLOCK + x, i * self.heads);
        let lse = S::splat_at(self.lse.wrapping_add(row).cast());
        let p = exp::<S>(S::sub(S::mul(S::load(self.p.wrapping_add(at)), S::splat(self.scale)), lse));
        (p, self.through_softmax::<S>(row, p, S::load(self.dp.wrapping_add(at))))
    }

    /// The gradient of q k^T from weights and the gradient of weights.
    #[inline(always)]
    unsafe fn through_softmax<S: Simd>(&self, row: usize, p: S::V, dp: S::V) -> S::V {
        let delta = S::splat_at(self.delta.wrapping_add(row).cast());
        S::mul(S::mul(p, S::sub(dp, delta)), S::splat(self.scale))
    }

    #[inline(always)]
    unsafe fn put_row<S: Simd>(&self, i: usize, x: usize, ds: S::V) {
        S::store_bf16(self.ds_rows.wrapping_add(i * self.ds_stride).cast::<u16>().wrapping_add(x), ds);
    }

    #[inline(always)]
    unsafe fn put_pairs<S: Simd>(&self, pair: usize, x: usize, p: [S::V; 2], ds: [S::V; 2]) {
        let to = pair * BLOCK + x;
        S::store(self.p_pairs.wrapping_add(to).cast(), S::pair_bf16(p[0], p[1]));
        S::store(self.ds_pairs.wrapping_add(to).cast(), S::pair_bf16(ds[0], ds[1]));
    }

    /// [`Cell::masked`] of a cell that is whole.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn whole<S: Simd>(&self) {
        let mut row = 0;
        while row < BLOCK {
            if let Some(ahead) = &self.ahead {
                (row..row + ROWS).for_each(|i| ahead.row(i));
            }
            let scores = Product { a: self.q, row, units: self.units, b: self.kt, out: self.weights_of(row) };
            if row == 0 {
                S::call(Alone(scores));
            } else {
                S::call(BesideGradients(scores, *self, row - ROWS));
            }
            let dp = Product { a: self.dout, row, units: self.units, b: self.vt, out: self.dp };
            S::call(BesideWeights(dp, *self, row));
            row += ROWS;
        }
        for at in 0..PIECES {
            let piece = Piece { at, row: BLOCK - ROWS };
            let (first, second) = (piece.half::<S>(self, 0), piece.half::<S>(self, 1));
            piece.put::<S>(self, first, second);
        }
    }

    /// Scores and weights of four rows, apart from those of the four before.
    #[inline(always)]
    fn weights_of(&self, row: usize) -> *mut f32 {
        self.p.wrapping_add(row / ROWS % 2 * ROWS * BLOCK)
    }

    /// The exponent of vector `at` of the weights of four rows from `row` on.
    #[inline(always)]
    unsafe fn exponent<S: Simd>(&self, row: usize, at: usize) -> S::V {
        let lse = S::splat_at(self.lse.wrapping_add((row + at / PER_ROW) * self.heads).cast());
        S::sub(S::mul(S::load(self.weights_of(row).wrapping_add(at * LANES)), S::splat(self.scale)), lse)
    }
}

/// 16 keys of two of four rows, whose gradients are finished together.
#[derive(Clone, Copy)]
struct Piece {
    at: usize,
    row: usize,
}

/// Pieces of four rows.
const PIECES: usize = ROWS / 2 * PER_ROW;

impl Piece {
    fn x(self) -> usize {
        self.at % PER_ROW * LANES
    }

    /// Weights and gradients of one row.
    #[inline(always)]
    unsafe fn half<S: Simd>(self, cell: &Cell<'_>, second: usize) -> (S::V, S::V) {
        let row = self.at / PER_ROW * 2 + second;
        let at = row * BLOCK + self.x();
        let p = S::load(cell.weights_of(self.row).wrapping_add(at));
        (p, cell.through_softmax::<S>((self.row + row) * cell.heads, p, S::load(cell.dp.wrapping_add(at))))
    }

    #[inline(always)]
    unsafe fn put<S: Simd>(self, cell: &Cell<'_>, (p, ds): (S::V, S::V), (p2, ds2): (S::V, S::V)) {
        let row = self.row + self.at / PER_ROW * 2;
        cell.put_row::<S>(row, self.x(), ds);
        cell.put_row::<S>(row + 1, self.x(), ds2);
        cell.put_pairs::<S>(row / 2, self.x(), [p, p2], [ds, ds2]);
    }
}

/// Four rows, from `row` on, against 64 columns.
#[derive(Clone, Copy)]
struct Product {
    a: HeadRows,
    row: usize,
    units: usize,
    b: *const u32, // [units, 64]
    out: *mut f32, // [4, 64]
}

type Sums<S> = [[<S as crate::simd::Vectors>::V; PER_ROW]; ROWS];

impl Product {
    #[inline(always)]
    unsafe fn columns<S: Simd>(&self, unit: usize) -> [S::V; PER_ROW] {
        let columns = self.b.wrapping_add(unit * BLOCK).cast::<f32>();
        [
            S::load(columns),
            S::load(columns.wrapping_add(LANES)),
            S::load(columns.wrapping_add(2 * LANES)),
            S::load(columns.wrapping_add(3 * LANES)),
        ]
    }

    /// What a unit adds to a row's sums.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, i: usize, unit: usize, columns: &[S::V; PER_ROW], sums: &mut Sums<S>) {
        let a = S::splat_at(self.a.row(self.row + i).wrapping_add(unit));
        let mut v = 0;
        while v < PER_ROW {
            sums[i][v] = S::dot_bf16(sums[i][v], a, columns[v]);
            v += 1;
        }
    }

    /// What a unit adds to all rows' sums.
    #[inline(always)]
    unsafe fn unit<S: Simd>(&self, unit: usize, sums: &mut Sums<S>) {
        let columns = self.columns::<S>(unit);
        each_row!(ROWS, i => {
            self.add::<S>(i, unit, &columns, sums);
        });
    }

    /// The units from `unit` on, and the sums.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, mut unit: usize, mut sums: Sums<S>) {
        while unit < self.units {
            self.unit::<S>(unit, &mut sums);
            unit += 1;
        }
        each_row!(ROWS, i => {
            let mut v = 0;
            while v < PER_ROW {
                S::store(self.out.wrapping_add(i * BLOCK + v * LANES), sums[i][v]);
                v += 1;
            }
        });
    }
}

struct Alone(Product);

impl Kernel for Alone {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.0.finish::<S>(0, [[S::splat(0.0); PER_ROW]; ROWS]);
    }
}

/// A product, and meanwhile the weights of the four rows from the last on, a vector of them every two units.
struct BesideWeights<'a>(Product, Cell<'a>, usize);

impl Kernel for BesideWeights<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(product, cell, row) = self;
        let (mut sums, mut at) = ([[S::splat(0.0); PER_ROW]; ROWS], 0);
        let weights = cell.weights_of(row);
        while at < (product.units / 2).min(ROWS * PER_ROW) {
            let mut exp = Exp::<S>::of(cell.exponent::<S>(row, at));
            let columns = product.columns::<S>(2 * at);
            each_row!(ROWS, i => {
                product.add::<S>(i, 2 * at, &columns, &mut sums);
                exp.step(i);
            });
            product.unit::<S>(2 * at + 1, &mut sums);
            exp.step(ROWS);
            S::store(weights.wrapping_add(at * LANES), exp.found());
            at += 1;
        }
        product.finish::<S>(2 * at, sums);
        while at < ROWS * PER_ROW {
            S::store(weights.wrapping_add(at * LANES), exp::<S>(cell.exponent::<S>(row, at)));
            at += 1;
        }
    }
}

/// A product, and meanwhile the gradients of the four rows from the last on, a piece of them every four units.
struct BesideGradients<'a>(Product, Cell<'a>, usize);

impl Kernel for BesideGradients<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(product, cell, row) = self;
        let (mut sums, mut at) = ([[S::splat(0.0); PER_ROW]; ROWS], 0);
        while at < (product.units / 4).min(PIECES) {
            let piece = Piece { at, row };
            product.unit::<S>(4 * at, &mut sums);
            let first = piece.half::<S>(&cell, 0);
            product.unit::<S>(4 * at + 1, &mut sums);
            let second = piece.half::<S>(&cell, 1);
            product.unit::<S>(4 * at + 2, &mut sums);
            piece.put::<S>(&cell, first, second);
            product.unit::<S>(4 * at + 3, &mut sums);
            at += 1;
        }
        product.finish::<S>(4 * at, sums);
        while at < PIECES {
            let piece = Piece { at, row };
            let (first, second) = (piece.half::<S>(&cell, 0), piece.half::<S>(&cell, 1));
            piece.put::<S>(&cell, first, second);
            at += 1;
        }
    }
}
