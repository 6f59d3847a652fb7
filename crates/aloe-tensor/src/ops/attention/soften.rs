//! One step of the online softmax: a row of up to 64 scores becomes weights, the running maximum, sum and output follow.

use super::BLOCK;
use crate::simd::{LANES, Simd, exp, exp_all, max_lanes, sum_lanes};

/// The state of one query and head on its walk over the keys.
#[derive(Clone, Copy)]
pub(super) struct RowState {
    pub(super) scores: *mut f32, // [64]: scores in, weights out
    pub(super) max: *mut f32,
    pub(super) sum: *mut f32,
    pub(super) o: *mut f32, // [e]
    pub(super) e: usize,
}

impl RowState {
    /// The state `n` rows on.
    #[inline(always)]
    pub(super) fn later(&self, n: usize) -> Self {
        Self {
            scores: self.scores.wrapping_add(n * BLOCK),
            max: self.max.wrapping_add(n),
            sum: self.sum.wrapping_add(n),
            o: self.o.wrapping_add(n * self.e),
            e: self.e,
        }
    }
}

/// Scores of a row to weights, in place; the running output shrinks when the maximum grows. Keys past `seen` get weight 0, which
/// leaves the chains of the product as they were.
///
/// # Safety
/// The state's pointers are valid for the lengths it names; the instruction set is available.
#[inline(always)]
pub(super) unsafe fn soften<S: Simd>(state: &RowState, scale: f32, seen: usize) {
    let p = weights::<S>(state, scale, seen);
    let mut i = 0;
    while i < 4 {
        S::store(state.scores.wrapping_add(i * LANES), p[i]);
        i += 1;
    }
}

#[inline(always)]
unsafe fn weights<S: Simd>(state: &RowState, scale: f32, seen: usize) -> [S::V; 4] {
    let row = state.scores;
    for i in seen..BLOCK {
        row.wrapping_add(i).write(f32::NEG_INFINITY);
    }
    if seen == 0 {
        return [S::splat(0.0); 4];
    }
    let scale = S::splat(scale);
    // Written out: a closure's body would not be compiled with the kernel's instructions.
    let s = [
        S::mul(S::load(row), scale),
        S::mul(S::load(row.wrapping_add(LANES)), scale),
        S::mul(S::load(row.wrapping_add(2 * LANES)), scale),
        S::mul(S::load(row.wrapping_add(3 * LANES)), scale),
    ];
    let before = state.max.read();
    let block_max = max_lanes::<S>(S::max(S::max(s[0], s[1]), S::max(s[2], s[3])));
    let now = if block_max > before { block_max } else { before };
    let shift = S::splat(now);
    let p = [
        exp::<S>(S::sub(s[0], shift)),
        exp::<S>(S::sub(s[1], shift)),
        exp::<S>(S::sub(s[2], shift)),
        exp::<S>(S::sub(s[3], shift)),
    ];
    let added = sum_lanes::<S>(S::add(S::add(p[0], p[1]), S::add(p[2], p[3])));
    if now == before {
        state.sum.write(state.sum.read() + added);
        return p;
    }
    let shrink = exp::<S>(S::sub(S::splat(before), shift));
    state.sum.write(state.sum.read() * max_lanes::<S>(shrink) + added);
    state.max.write(now);
    scale_output::<S>(state, shrink);
    p
}

/// [`soften`] of rows that follow each other, `first` being the first: all maxima, then all weights, then all sums, as one row alone waits
/// for its own steps most of the time. The bits are those of the rows one by one. Where `rounded` is given the weights go there, in bf16.
/// A row that sees none of the block's keys has seen one before. `sums` has room for 16 numbers a row.
///
/// # Safety
/// As [`soften`] for each row, with states one row apart; `sums` and `rounded` are writable for 16 and 64 numbers a row.
#[inline(always)]
pub(super) unsafe fn soften_rows<S: Simd>(
    first: &RowState,
    n: usize,
    scale: f32,
    seen: impl Fn(usize) -> usize,
    (sums, rounded): (*mut f32, Option<*mut u16>),
) {
    let factor = S::splat(scale);
    for at in 0..n {
        let row = first.later(at);
        for i in seen(at)..BLOCK {
            row.scores.wrapping_add(i).write(f32::NEG_INFINITY);
        }
        let mut max = S::mul(S::load(row.scores), factor);
        let mut i = LANES;
        while i < BLOCK {
            max = S::max(max, S::mul(S::load(row.scores.wrapping_add(i)), factor));
            i += LANES;
        }
        raise::<S>(&row, max_lanes::<S>(max));
    }
    for at in 0..n {
        let (row, shift) = (first.later(at), S::splat(first.later(at).max.read()));
        let mut p = [shift; 4];
        let mut i = 0;
        while i < 4 {
            p[i] = S::sub(S::mul(S::load(row.scores.wrapping_add(i * LANES)), factor), shift);
            i += 1;
        }
        p = exp_all::<S, 4>(p);
        S::store(sums.wrapping_add(at * LANES), S::add(S::add(p[0], p[1]), S::add(p[2], p[3])));
        i = 0;
        while i < 4 {
            match rounded {
                Some(out) => S::store_bf16(out.wrapping_add(at * BLOCK + i * LANES), p[i]),
                None => S::store(row.scores.wrapping_add(i * LANES), p[i]),
            }
            i += 1;
        }
    }
    for at in 0..n {
        let sum = first.later(at).sum;
        sum.write(sum.read() + sum_lanes::<S>(S::load(sums.wrapping_add(at * LANES))));
    }
}

/// A row's state after scores of which `block_max` is the largest: where that is a new maximum, sum and output shrink.
///
/// # Safety
/// As [`soften`].
#[inline(always)]
pub(super) unsafe fn raise<S: Simd>(row: &RowState, block_max: f32) {
    let before = row.max.read();
    if block_max > before {
        let shrink = exp::<S>(S::sub(S::splat(before), S::splat(block_max)));
        row.sum.write(row.sum.read() * max_lanes::<S>(shrink));
        row.max.write(block_max);
        scale_output::<S>(row, shrink);
    }
}

#[inline(always)]
unsafe fn scale_output<S: Simd>(state: &RowState, factor: S::V) {
    let mut x = 0;
    while x < state.e {
        let n = (state.e - x).min(LANES);
        let o = state.o.wrapping_add(x);
        S::store_up_to(o, S::mul(S::load_up_to(o, n), factor), n);
        x += LANES;
    }
}

/// Writes the output divided by the sum of the weights.
///
/// # Safety
/// As [`soften`], and `to` is writable for `e` numbers.
#[inline(always)]
pub(super) unsafe fn normalise<S: Simd>(state: &RowState, to: *mut f32) {
    let divisor = S::splat(state.sum.read());
    let mut x = 0;
    while x < state.e {
        let n = (state.e - x).min(LANES);
        S::store_up_to(to.wrapping_add(x), S::div(S::load_up_to(state.o.wrapping_add(x), n), divisor), n);
        x += LANES;
    }
}

/// [`normalise`], rounded to bf16, for whole vectors.
///
/// # Safety
/// As [`normalise`].
#[inline(always)]
pub(super) unsafe fn normalise_rounded<S: Simd>(state: &RowState, to: *mut u16) {
    let divisor = S::splat(state.sum.read());
    for x in (0..state.e).step_by(LANES) {
        S::store_bf16(to.wrapping_add(x), S::div(S::load(state.o.wrapping_add(x)), divisor));
    }
}
