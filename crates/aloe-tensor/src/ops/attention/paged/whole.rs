//! Rows that see all keys of a page, six at a time: while the scores of six rows are summed, those of the six before become weights.
//!
//! An exponential is a chain of some twenty steps, of which products leave the units for eight idle: a vector takes 12 cycles beside them
//! and 18 alone, where its products take 64 (Zen 4). Each row takes the steps of `soften_rows` in the same order, and so has the same bits.

use super::{Run, Tile, part_queries, q_stride};
use crate::Dtype;
use crate::gemm::{Gemm, PANEL, each_row, six_rows};
use crate::ops::attention::BLOCK;
use crate::ops::attention::page::KvPage;
use crate::ops::attention::soften::{RowState, raise};
use crate::simd::{Exp, Kernel, LANES, Simd, max_lanes, sum_lanes};
use std::ops::Range;

/// Rows of a tile: with four vectors of scores each, their sums leave eight registers of 32.
pub(super) const ROWS: usize = 6;

/// Vectors of a row's scores.
const PER_ROW: usize = BLOCK / LANES;

/// Vectors of a tile's scores.
const VECTORS: usize = ROWS * PER_ROW;

/// Six rows of a tile with scores over a whole page that are not yet weights.
#[derive(Clone, Copy)]
pub(super) struct Scored {
    row: usize,
    /// The page's values for the tile's head.
    values: *const u32,
    scores: *mut f32,
}

/// Queries whose rows are whole tiles.
pub(super) fn queries_of_tiles(group: usize) -> usize {
    (1..ROWS).find(|n| (n * group).is_multiple_of(ROWS)).unwrap_or(ROWS)
}

impl Tile<'_> {
    /// How many of the first of these queries, no more than a part of them, see the whole page and are tiles of six rows.
    #[inline(always)]
    pub(super) fn n_whole(&self, run: &Run<'_>, queries: Range<usize>) -> usize {
        let of_tiles = queries_of_tiles(self.group());
        let most = part_queries(self.group()).next_multiple_of(of_tiles);
        if self.dtype != Dtype::Bf16 || self.scale <= 0.0 {
            return 0;
        }
        let sees_all = |at: &usize| self.queries[*at].visible >= (run.index + 1) * BLOCK;
        let n = queries.take(most).take_while(sees_all).count();
        n - n % of_tiles
    }

    /// Six rows from `row` on over a whole page: their scores, while those before become weights and meet their values.
    #[inline(always)]
    pub(super) unsafe fn whole<S: Simd>(&self, page: &KvPage, row: usize, scored: &mut Option<Scored>) {
        let (b, stride) = (&self.buffers, q_stride(self.heads.e, self.dtype));
        let other = b.scores.wrapping_add(ROWS * BLOCK);
        let before = scored.take();
        let scores = if before.is_some_and(|before| before.scores == b.scores) { other } else { b.scores };
        let tile = Scores {
            q: b.q.wrapping_add(row * stride),
            stride,
            units: page.key_units(),
            keys: page.keys(self.kv),
            scores,
            largest: b.row_sums,
        };
        score::<S>(tile, before.map(|before| self.weights(&before)));
        if let Some(before) = before {
            self.meet_values::<S>(&before);
        }
        // Only now, as the rows may be the same: their output so far shrinks with a new maximum.
        raise_rows::<S>(&self.state(row), b.row_sums, self.scale);
        *scored = Some(Scored { row, values: page.values(self.kv), scores });
    }

    /// What [`Tile::whole`] left.
    #[inline(always)]
    pub(super) unsafe fn weigh_scored<S: Simd>(&self, scored: &mut Option<Scored>) {
        if let Some(scored) = scored.take() {
            weigh::<S>(self.weights(&scored));
            self.meet_values::<S>(&scored);
        }
    }

    fn weights(&self, scored: &Scored) -> Weights {
        let (b, scores) = (&self.buffers, scored.scores);
        Weights { scores, max: b.max.wrapping_add(scored.row), scale: self.scale, rounded: b.weights.cast() }
    }

    /// Adds the weights of six rows to their sums, and the page's values to their outputs.
    #[inline(always)]
    unsafe fn meet_values<S: Simd>(&self, scored: &Scored) {
        let (e, b) = (self.heads.e, &self.buffers);
        sum_rows::<S>(&self.state(scored.row), scored.scores);
        let values = Gemm {
            dtype: self.dtype,
            m: ROWS,
            n: e,
            units: BLOCK / 2,
            a: b.weights,
            a_stride: BLOCK / 2,
            a_by_unit: false,
            a_panel_stride: 0,
            b: scored.values,
            b_panel_stride: PANEL,
            b_unit_stride: e.next_multiple_of(PANEL),
            c: b.o.wrapping_add(scored.row * e),
            c_stride: e,
            accumulate: true,
            add: std::ptr::null(),
            from_memory: false,
        };
        six_rows::<S>(values);
    }
}

/// Six rows against the keys of a page.
#[derive(Clone, Copy)]
struct Scores {
    q: *const u32, // [6, stride]
    stride: usize,
    units: usize,
    keys: *const u32, // [units, 64]
    scores: *mut f32, // [6, 64]
    /// The largest of each row's scores, by lanes.
    largest: *mut f32, // [6, 16]
}

/// Six rows of scores that become weights, in place and rounded.
#[derive(Clone, Copy)]
struct Weights {
    scores: *mut f32, // [6, 64]
    max: *const f32,  // [6]
    scale: f32,
    rounded: *mut u16, // [6, 64]
}

/// The scores of six rows, and meanwhile the weights of six others.
///
/// # Safety
/// The pointers are valid for the numbers named beside them, those of `scores` apart from those of `weights`; the instruction set is
/// available.
#[inline(always)]
unsafe fn score<S: Simd>(scores: Scores, weights: Option<Weights>) {
    match weights {
        Some(weights) => S::call(Beside(scores, weights)),
        None => S::call(Alone(scores)),
    }
}

/// The weights of six rows.
///
/// # Safety
/// As [`score`].
#[inline(always)]
unsafe fn weigh<S: Simd>(weights: Weights) {
    for at in 0..VECTORS {
        weight::<S>(&weights, at);
    }
}

/// The maxima of six rows after their scores, `first` being the first row.
///
/// # Safety
/// As [`score`]; the states of six rows are valid.
#[inline(always)]
unsafe fn raise_rows<S: Simd>(first: &RowState, largest: *const f32, scale: f32) {
    for at in 0..ROWS {
        // A positive factor does not change which score is the largest.
        let block_max = max_lanes::<S>(S::load(largest.wrapping_add(at * LANES))) * scale;
        raise::<S>(&first.later(at), block_max);
    }
}

/// Adds six rows of weights, `[6, 64]`, to their sums.
///
/// # Safety
/// As [`raise_rows`].
#[inline(always)]
unsafe fn sum_rows<S: Simd>(first: &RowState, weights: *const f32) {
    for at in 0..ROWS {
        let p = |i: usize| weights.wrapping_add((at * PER_ROW + i) * LANES);
        let both = S::add(S::load(p(0)), S::load(p(1)));
        let row = S::add(both, S::add(S::load(p(2)), S::load(p(3))));
        let sum = first.later(at).sum;
        sum.write(sum.read() + sum_lanes::<S>(row));
    }
}

struct Beside(Scores, Weights);

impl Kernel for Beside {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(scores, weights) = self;
        let mut sums = [[S::splat(0.0); PER_ROW]; ROWS];
        let mut at = 0;
        while at < scores.units.min(VECTORS) {
            unit_beside::<S>(&scores, &weights, at, &mut sums);
            at += 1;
        }
        let mut rest = at;
        while at < scores.units {
            unit::<S>(&scores, at, &mut sums);
            at += 1;
        }
        finish::<S>(&scores, &sums);
        while rest < VECTORS {
            weight::<S>(&weights, rest);
            rest += 1;
        }
    }
}

struct Alone(Scores);

impl Kernel for Alone {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut sums = [[S::splat(0.0); PER_ROW]; ROWS];
        let mut at = 0;
        while at < self.0.units {
            unit::<S>(&self.0, at, &mut sums);
            at += 1;
        }
        finish::<S>(&self.0, &sums);
    }
}

/// What one unit of the keys adds.
#[inline(always)]
unsafe fn unit<S: Simd>(s: &Scores, unit: usize, sums: &mut [[S::V; PER_ROW]; ROWS]) {
    let keys = keys_of::<S>(s, unit);
    each_row!(ROWS, i => {
        sums[i] = row::<S>(s, (i, unit), &keys, sums[i]);
    });
}

/// The same, and meanwhile vector `unit` of the weights, whose steps lie between the rows. Half of the keys at a time is no better: the
/// compiler then keeps the queries, and sums of three rows go to memory and back.
#[inline(always)]
unsafe fn unit_beside<S: Simd>(s: &Scores, w: &Weights, unit: usize, sums: &mut [[S::V; PER_ROW]; ROWS]) {
    let keys = keys_of::<S>(s, unit);
    let mut exp = Exp::<S>::of(above::<S>(w, unit));
    each_row!(ROWS, i => {
        sums[i] = row::<S>(s, (i, unit), &keys, sums[i]);
        if i < Exp::<S>::STEPS {
            exp.step(i);
        }
    });
    put::<S>(w, unit, exp.found());
}

#[inline(always)]
unsafe fn keys_of<S: Simd>(s: &Scores, unit: usize) -> [S::V; PER_ROW] {
    let keys = s.keys.wrapping_add(unit * BLOCK).cast::<f32>();
    [
        S::load(keys),
        S::load(keys.wrapping_add(LANES)),
        S::load(keys.wrapping_add(2 * LANES)),
        S::load(keys.wrapping_add(3 * LANES)),
    ]
}

/// What a unit adds to one row's sums.
#[inline(always)]
unsafe fn row<S: Simd>(
    s: &Scores,
    (row, unit): (usize, usize),
    keys: &[S::V; PER_ROW],
    sums: [S::V; PER_ROW],
) -> [S::V; PER_ROW] {
    let q = S::splat_at(s.q.wrapping_add(row * s.stride + unit));
    [
        S::dot_bf16(sums[0], q, keys[0]),
        S::dot_bf16(sums[1], q, keys[1]),
        S::dot_bf16(sums[2], q, keys[2]),
        S::dot_bf16(sums[3], q, keys[3]),
    ]
}

/// Writes the scores and the largest of each row.
#[inline(always)]
unsafe fn finish<S: Simd>(s: &Scores, sums: &[[S::V; PER_ROW]; ROWS]) {
    each_row!(ROWS, i => {
        let row = s.scores.wrapping_add(i * BLOCK);
        let mut v = 0;
        while v < PER_ROW {
            S::store(row.wrapping_add(v * LANES), sums[i][v]);
            v += 1;
        }
        let largest = S::max(S::max(S::max(sums[i][0], sums[i][1]), sums[i][2]), sums[i][3]);
        S::store(s.largest.wrapping_add(i * LANES), largest);
    });
}

/// One vector of weights.
#[inline(always)]
unsafe fn weight<S: Simd>(w: &Weights, at: usize) {
    let mut exp = Exp::<S>::of(above::<S>(w, at));
    for step in 0..Exp::<S>::STEPS {
        exp.step(step);
    }
    put::<S>(w, at, exp.found());
}

/// A vector of scores, as far as they are above the row's largest: not at all.
#[inline(always)]
unsafe fn above<S: Simd>(w: &Weights, at: usize) -> S::V {
    let shift = S::splat_at(w.max.wrapping_add(at / PER_ROW).cast());
    S::sub(S::mul(S::load(w.scores.wrapping_add(at * LANES)), S::splat(w.scale)), shift)
}

#[inline(always)]
unsafe fn put<S: Simd>(w: &Weights, at: usize, p: S::V) {
    S::store(w.scores.wrapping_add(at * LANES), p);
    S::store_bf16(w.rounded.wrapping_add(at * LANES), p);
}
