//! The product with narrow panels (`crate::narrow`): a tile widens pairs of units in registers on their way to the sums. Where more rows
//! follow, the first tile also keeps what it widened, as a block of a plain panel for the others. Sums are those of plain panels, bit for
//! bit: the same numbers in the same order.

use super::tile::{Bf16Product, each_row};
use super::{BLOCK_UNITS, FEW_ROWS, Gemm, PANEL, STREAM_DISTANCE, STREAM_UNITS, moved, rows_of_panel};
use crate::narrow::{PAIR, escapes, first_pair, put, store_pair};
use crate::pack::Line;
use crate::simd::{Kernel, LANES, Simd, prefetch_near};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Most rows of a tile that widens, and of one that keeps what it widens: with more, there are not enough registers left to widen in.
const MOST_ROWS: usize = 10;
const MOST_KEPT: usize = 8;

/// Fewest rows of a first tile that others follow: more rows than go into one are shared out evenly.
const FEWEST_KEPT: usize = 6;

/// Fewest rows of a tile by itself that fetches ahead: fewer wait for memory and nothing else, and the processor fetches for them.
const FEWEST_FETCHING: usize = 5;

/// How far ahead, in pairs of units: about a small page.
const FETCH_PAIRS: usize = 21;

/// All rows and panels of g.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(g: &Gemm) {
    assert!(!g.a_by_unit, "rows by unit meet plain panels alone");
    if S::PAIRS_BF16 && g.m <= MOST_ROWS {
        return one_tile::<S>(g);
    }
    let step = match g.m {
        ..=FEW_ROWS => STREAM_UNITS,
        _ => g.units.div_ceil(g.units.div_ceil(BLOCK_UNITS).max(1)).max(1).next_multiple_of(2),
    };
    let mut kept = [const { MaybeUninit::<Line>::uninit() }; BLOCK_UNITS * PANEL / LANES];
    let kept: *mut u32 = kept.as_mut_ptr().cast();
    // Few rows take a panel whole, as they wait for memory; of many rows a block stays in the cache for all panels.
    let n_panels = g.n.div_ceil(PANEL);
    let n_blocks = g.units.div_ceil(step).max(1);
    let mut at = 0;
    while at < n_panels * n_blocks {
        let (panel, block) =
            if g.m <= FEW_ROWS { (at / n_blocks, at % n_blocks) } else { (at % n_panels, at / n_panels) };
        some_units::<S>(g, panel, block * step..((block + 1) * step).min(g.units), kept);
        at += 1;
    }
}

/// All rows against some units of a panel.
#[inline(always)]
unsafe fn some_units<S: Simd>(g: &Gemm, panel: usize, units: Range<usize>, kept: *mut u32) {
    let is_last = units.end == g.units;
    let part = Gemm {
        a: g.a.wrapping_add(units.start),
        c: g.c.wrapping_add(panel * PANEL),
        add: if is_last { moved(g.add, panel * PANEL) } else { std::ptr::null() },
        n: (g.n - panel * PANEL).min(PANEL),
        units: units.len(),
        accumulate: g.accumulate || units.start > 0,
        b: kept,
        b_panel_stride: 0,
        b_unit_stride: PANEL,
        from_memory: false,
        ..*g
    };
    let b = g.b.wrapping_add(panel * g.b_panel_stride);
    let from = b.wrapping_add(first_pair(g.units) + units.start / 2 * PAIR);
    // What comes next: further down the panel, or for many rows the block of the next panel.
    let (ahead, is_near) = if g.m <= FEW_ROWS { (STREAM_DISTANCE / 2 * PAIR, true) } else { (g.b_panel_stride, false) };
    let first = First { part, b, from, first_unit: units.start, kept, ahead, is_near };
    let rows = g.m.div_ceil(g.m.div_ceil(MOST_KEPT).max(1));
    let rows = if rows < FEWEST_KEPT || !S::PAIRS_BF16 { 0 } else { rows };
    match rows {
        0 => S::call(Narrow::<true, 0>(first)),
        6 => S::call(Narrow::<true, 6>(first)),
        7 => S::call(Narrow::<true, 7>(first)),
        _ => S::call(Narrow::<true, 8>(first)),
    }
    if rows < g.m {
        let rest = Gemm {
            m: g.m - rows,
            a: part.a.wrapping_add(rows * g.a_stride),
            c: part.c.wrapping_add(rows * g.c_stride),
            add: moved(part.add, rows * g.c_stride),
            ..part
        };
        if S::PAIRS_BF16 {
            rows_of_panel::<S, Bf16Product, false>(&rest);
        } else {
            rest.run_inside::<S>();
        }
    }
}

/// As many rows as go into a tile: one panel after the other, in one stream.
#[inline(always)]
unsafe fn one_tile<S: Simd>(g: &Gemm) {
    let (from, kept) = (g.b.wrapping_add(first_pair(g.units)), std::ptr::null_mut());
    let first = First { part: *g, b: g.b, from, first_unit: 0, kept, ahead: FETCH_PAIRS * PAIR, is_near: true };
    match g.m {
        1 => S::call(Narrow::<false, 1>(first)),
        2 => S::call(Narrow::<false, 2>(first)),
        3 => S::call(Narrow::<false, 3>(first)),
        4 => S::call(Narrow::<false, 4>(first)),
        5 => S::call(Narrow::<false, 5>(first)),
        6 => S::call(Narrow::<false, 6>(first)),
        7 => S::call(Narrow::<false, 7>(first)),
        8 => S::call(Narrow::<false, 8>(first)),
        9 => S::call(Narrow::<false, 9>(first)),
        _ => S::call(Narrow::<false, 10>(first)),
    }
}

/// A tile of the first rows.
#[derive(Clone, Copy)]
struct First {
    /// Rows, lanes and units that it is of.
    part: Gemm,
    /// Where the panel begins.
    b: *const u32,
    /// Its first pair of units.
    from: *const u32,
    first_unit: usize,
    /// Where a tile that keeps what it widens puts it.
    kept: *mut u32,
    /// How far ahead of what it reads it fetches as much: into the nearest cache, or the second one.
    ahead: usize,
    is_near: bool,
}

/// `ROWS` rows over 32 lanes after the other; where `KEEP`, over 32 lanes alone, and what was widened is kept. Without rows that is all.
struct Narrow<const KEEP: bool, const ROWS: usize>(First);

impl<const KEEP: bool, const ROWS: usize> Kernel for Narrow<KEEP, ROWS> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut first = self.0;
        loop {
            Self(first).panel::<S>();
            if first.part.n <= PANEL {
                return;
            }
            let step = first.part.b_panel_stride;
            (first.b, first.from) = (first.b.wrapping_add(step), first.from.wrapping_add(step));
            first.part.c = first.part.c.wrapping_add(PANEL);
            first.part.add = moved(first.part.add, PANEL);
            first.part.n -= PANEL;
        }
    }
}

impl<const KEEP: bool, const ROWS: usize> Narrow<KEEP, ROWS> {
    #[inline(always)]
    unsafe fn panel<S: Simd>(&self) {
        let g = &self.0.part;
        let lanes = [g.n.min(LANES), (g.n.min(PANEL)).saturating_sub(LANES)];
        let mut acc = [[S::splat(0.0); 2]; ROWS];
        if g.accumulate {
            each_row!(ROWS, i => {
                let row = g.c.wrapping_add(i * g.c_stride);
                acc[i] = [S::load_up_to(row, lanes[0]), S::load_up_to(row.wrapping_add(LANES), lanes[1])];
            });
        }
        self.chain::<S>(&mut acc);
        if !g.add.is_null() {
            each_row!(ROWS, i => {
                let row = g.add.wrapping_add(i * g.c_stride);
                acc[i][0] = S::add(acc[i][0], S::load_up_to(row, lanes[0]));
                acc[i][1] = S::add(acc[i][1], S::load_up_to(row.wrapping_add(LANES), lanes[1]));
            });
        }
        each_row!(ROWS, i => {
            let row = g.c.wrapping_add(i * g.c_stride);
            S::store_up_to(row, acc[i][0], lanes[0]);
            S::store_up_to(row.wrapping_add(LANES), acc[i][1], lanes[1]);
        });
    }

    /// The units of a panel, up to one with an escape or a last odd one at full speed.
    #[inline(always)]
    unsafe fn chain<S: Simd>(&self, acc: &mut [[S::V; 2]; ROWS]) {
        let First { part: g, b, from, first_unit, kept, ahead, is_near } = self.0;
        let exponents = S::exponents(b.cast());
        let mut escapes = escapes(b);
        while let [escape, rest @ ..] = escapes
            && (escape.unit as usize) < first_unit
        {
            escapes = rest;
        }
        let (mut unit, mut pair, mut a) = (0, from, g.a);
        loop {
            let next = escapes.first().map_or(g.units, |escape| escape.unit as usize - first_unit);
            let stop = next.min(g.units) & !1;
            while unit < stop {
                if KEEP || ROWS >= FEWEST_FETCHING {
                    fetch::<S>(pair.wrapping_add(ahead), is_near);
                }
                let wide = S::widen_pair(exponents, pair);
                if KEEP {
                    store_pair::<S>(wide, kept.wrapping_add(unit * PANEL));
                }
                step::<S, ROWS>(&g, a, wide[0], acc);
                step::<S, ROWS>(&g, a.wrapping_add(1), wide[1], acc);
                (unit, pair, a) = (unit + 2, pair.wrapping_add(PAIR), a.wrapping_add(2));
            }
            if unit >= g.units {
                return;
            }
            let mut own = [[[0u32; LANES]; 2]; 2];
            let plain = if KEEP { kept.wrapping_add(unit * PANEL) } else { own.as_mut_ptr().cast() };
            store_pair::<S>(S::widen_pair(exponents, pair), plain);
            while let [escape, rest @ ..] = escapes
                && (escape.unit as usize) < first_unit + unit + 2
            {
                put(escape, plain.wrapping_add((escape.unit as usize - first_unit - unit) * PANEL));
                escapes = rest;
            }
            for odd in 0..(g.units - unit).min(2) {
                let half = plain.wrapping_add(odd * PANEL);
                let wide = [S::load(half.cast()), S::load(half.wrapping_add(LANES).cast())];
                step::<S, ROWS>(&g, a.wrapping_add(odd), wide, acc);
            }
            (unit, pair, a) = (unit + 2, pair.wrapping_add(PAIR), a.wrapping_add(2));
        }
    }
}

/// A pair of units.
#[inline(always)]
unsafe fn fetch<S: Simd>(from: *const u32, is_near: bool) {
    for line in 0..PAIR / LANES {
        let line = from.wrapping_add(line * LANES);
        if is_near {
            S::prefetch(line.cast());
        } else {
            prefetch_near(line.cast());
        }
    }
}

/// What one unit adds to the rows' sums.
#[inline(always)]
unsafe fn step<S: Simd, const ROWS: usize>(g: &Gemm, a: *const u32, wide: [S::V; 2], acc: &mut [[S::V; 2]; ROWS]) {
    let mut i = 0;
    while i < ROWS {
        let unit = S::splat_at(a.wrapping_add(i * g.a_stride));
        acc[i][0] = S::dot_bf16(acc[i][0], unit, wide[0]);
        acc[i][1] = S::dot_bf16(acc[i][1], unit, wide[1]);
        i += 1;
    }
}
