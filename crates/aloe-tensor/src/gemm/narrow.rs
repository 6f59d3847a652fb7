//! The product with narrow panels (`crate::narrow`). One to four rows widen pairs of units in registers on their way to the sums. With
//! more there are no registers left to widen in beside the sums, so a tile writes what it widens to a block of a plain panel, a pair of
//! units before its rows need it, and reads it there; where more rows follow, they read the same block. Sums are those of plain panels,
//! bit for bit: the same numbers in the same order.

use super::tile::{Bf16Product, each_row};
use super::{BLOCK_UNITS, FEW_ROWS, Gemm, PANEL, STREAM_DISTANCE, STREAM_UNITS, moved, rows_of_panel};
use crate::narrow::{Escape, PAIR, escapes, first_pair, put, store_pair};
use crate::pack::Line;
use crate::simd::{Kernel, LANES, Simd, prefetch_near};
use std::mem::MaybeUninit;

/// Most rows of a tile that widens in registers alone.
const MOST_IN_REGISTERS: usize = 4;

/// Most rows of a tile: those of plain panels.
const MOST_ROWS: usize = 12;

/// How far ahead one tile alone fetches, in pairs of units: about a small page.
const FETCH_PAIRS: usize = 21;

/// Units of the block in which one tile alone has what it widens; a power of two, and used again and again.
const ROUND: usize = 16;

/// The same of tiles of sixteen units, of which one is read while the next is widened.
const TILE_ROUND: usize = 64;

/// All rows and panels of g.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(g: &Gemm) {
    assert!(!g.a_by_unit, "rows by unit meet plain panels alone");
    if S::PAIRS_BF16 && g.m <= MOST_IN_REGISTERS {
        return in_registers::<S>(g);
    }
    let mut block = [const { MaybeUninit::<Line>::uninit() }; BLOCK_UNITS * PANEL / LANES];
    let block: *mut u32 = block.as_mut_ptr().cast();
    let step = match g.m {
        ..=MOST_ROWS if S::PAIRS_BF16 => g.units,
        ..=FEW_ROWS => STREAM_UNITS,
        _ => g.units.div_ceil(g.units.div_ceil(BLOCK_UNITS).max(1)).next_multiple_of(2),
    };
    // Few rows take a panel whole, as they wait for memory; of many rows a block stays in the cache for all panels.
    let n_panels = g.n.div_ceil(PANEL);
    let n_blocks = g.units.div_ceil(step.max(1)).max(1);
    let mut at = 0;
    while at < n_panels * n_blocks {
        let (panel, part) =
            if g.m <= FEW_ROWS { (at / n_blocks, at % n_blocks) } else { (at % n_panels, at / n_panels) };
        some_units::<S>(g, panel, (part * step, step.min(g.units - part * step)), block);
        at += 1;
    }
}

/// All rows against `n` units of a panel, from unit `first` on.
#[inline(always)]
unsafe fn some_units<S: Simd>(g: &Gemm, panel: usize, (first, n): (usize, usize), block: *mut u32) {
    let is_last = first + n == g.units;
    let part = Gemm {
        a: g.a.wrapping_add(first),
        c: g.c.wrapping_add(panel * PANEL),
        add: if is_last { moved(g.add, panel * PANEL) } else { std::ptr::null() },
        n: (g.n - panel * PANEL).min(PANEL),
        units: n,
        accumulate: g.accumulate || first > 0,
        b: block,
        b_panel_stride: 0,
        b_unit_stride: PANEL,
        from_memory: false,
        ..*g
    };
    let b = g.b.wrapping_add(panel * g.b_panel_stride);
    // Tiles as high as those of plain panels; the first one widens.
    let rows = if S::PAIRS_BF16 { g.m.div_ceil(g.m.div_ceil(MOST_ROWS).max(1)) } else { 0 };
    // What comes next: further down the panel, or for many rows the block of the next panel.
    let (ahead, is_near) = match g.m {
        m if m == rows => (FETCH_PAIRS * PAIR, true),
        ..=FEW_ROWS => (STREAM_DISTANCE / 2 * PAIR, true),
        _ => (g.b_panel_stride, false),
    };
    let widened = Widened {
        panel: b,
        from: b.wrapping_add(first_pair(g.units) + first / 2 * PAIR),
        escapes: escapes(b),
        first_unit: first,
        block,
        round: if g.m == rows { ROUND - 1 } else { usize::MAX },
        ahead,
        is_near,
    };
    match rows {
        0 => S::call(Tile::<0>(part, widened)),
        5 => S::call(Tile::<5>(part, widened)),
        6 => S::call(Tile::<6>(part, widened)),
        7 => S::call(Tile::<7>(part, widened)),
        8 => S::call(Tile::<8>(part, widened)),
        9 => S::call(Tile::<9>(part, widened)),
        10 => S::call(Tile::<10>(part, widened)),
        11 => S::call(Tile::<11>(part, widened)),
        _ => S::call(Tile::<12>(part, widened)),
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

/// Units of a narrow panel on their way to a block of a plain one.
#[derive(Clone, Copy)]
pub(super) struct Widened<'a> {
    /// Where the panel begins, with its table.
    panel: *const u32,
    /// Its first pair of units that is wanted.
    from: *const u32,
    escapes: &'a [Escape],
    first_unit: usize,
    block: *mut u32,
    /// Unit u goes to place `u & round` of the block.
    round: usize,
    /// How far ahead of what is read as much is fetched: into the nearest cache, or the second one.
    ahead: usize,
    is_near: bool,
}

impl Widened<'_> {
    /// Units from `first` on of a panel of g, to a block of their own or, of one that is read at once, to a few places of it in turn.
    #[inline(always)]
    pub(super) unsafe fn new(g: &Gemm, panel: usize, first: usize, block: *mut u32, is_read_at_once: bool) -> Self {
        let b = g.b.wrapping_add(panel * g.b_panel_stride);
        Self {
            panel: b,
            from: b.wrapping_add(first_pair(g.units) + first / 2 * PAIR),
            escapes: escapes(b),
            first_unit: first,
            block,
            round: if is_read_at_once { TILE_ROUND - 1 } else { usize::MAX },
            ahead: FETCH_PAIRS * PAIR,
            is_near: true,
        }
    }

    /// Passes over the escapes of units before the first; gives what the others are widened with.
    #[inline(always)]
    pub(super) unsafe fn start<S: Simd>(&mut self) -> S::V {
        while let [escape, rest @ ..] = self.escapes
            && (escape.unit as usize) < self.first_unit
        {
            self.escapes = rest;
        }
        S::upper_bytes(self.panel.cast())
    }

    /// Widens `n` units from the even one `unit` on; of an odd number one more.
    #[inline(always)]
    pub(super) unsafe fn units<S: Simd>(&mut self, uppers: S::V, unit: usize, n: usize) {
        let mut at = unit;
        while at < unit + n {
            self.pair::<S>(uppers, at);
            at += 2;
        }
    }

    /// Where a unit is.
    #[inline(always)]
    pub(super) fn place(&self, unit: usize) -> *mut u32 {
        self.block.wrapping_add((unit & self.round) * PANEL)
    }

    /// Widens the pair of units from `unit` on, and fetches another.
    #[inline(always)]
    unsafe fn pair<S: Simd>(&mut self, uppers: S::V, unit: usize) {
        let pair = self.from.wrapping_add(unit / 2 * PAIR);
        fetch::<S>(pair.wrapping_add(self.ahead), self.is_near);
        store_pair::<S>(S::widen_pair(uppers, pair), self.place(unit));
        while let [escape, rest @ ..] = self.escapes
            && (escape.unit as usize) < self.first_unit + unit + 2
        {
            put(escape, self.place(escape.unit as usize - self.first_unit));
            self.escapes = rest;
        }
    }
}

/// `ROWS` rows over 32 lanes, whose units are widened on the way. Without rows that is all.
struct Tile<'a, const ROWS: usize>(Gemm, Widened<'a>);

impl<const ROWS: usize> Kernel for Tile<'_, ROWS> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(g, mut widened) = self;
        let mut acc = started::<S, ROWS>(&g);
        let uppers = widened.start::<S>();
        let (mut unit, mut a) = (0, g.a);
        if g.units > 0 {
            widened.pair::<S>(uppers, 0);
        }
        while unit + 2 < g.units {
            widened.pair::<S>(uppers, unit + 2);
            let b = widened.place(unit);
            step_from::<S, ROWS>(&g, a, b, &mut acc);
            step_from::<S, ROWS>(&g, a.wrapping_add(1), b.wrapping_add(PANEL), &mut acc);
            (unit, a) = (unit + 2, a.wrapping_add(2));
        }
        while unit < g.units {
            step_from::<S, ROWS>(&g, a, widened.place(unit), &mut acc);
            (unit, a) = (unit + 1, a.wrapping_add(1));
        }
        finished::<S, ROWS>(&g, &acc);
    }
}

/// A few rows against one panel after the other, in one stream.
#[inline(always)]
unsafe fn in_registers<S: Simd>(g: &Gemm) {
    match g.m {
        1 => S::call(InRegisters::<1>(*g)),
        2 => S::call(InRegisters::<2>(*g)),
        3 => S::call(InRegisters::<3>(*g)),
        _ => S::call(InRegisters::<4>(*g)),
    }
}

struct InRegisters<const ROWS: usize>(Gemm);

impl<const ROWS: usize> Kernel for InRegisters<ROWS> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut g = self.0;
        loop {
            let mut acc = started::<S, ROWS>(&g);
            chain_in_registers::<S, ROWS>(&g, self.0.units, &mut acc);
            finished::<S, ROWS>(&g, &acc);
            if g.n <= PANEL {
                return;
            }
            g.b = g.b.wrapping_add(g.b_panel_stride);
            g.c = g.c.wrapping_add(PANEL);
            g.add = moved(g.add, PANEL);
            g.n -= PANEL;
        }
    }
}

/// The units of a panel, up to one with an escape or a last odd one at full speed.
#[inline(always)]
unsafe fn chain_in_registers<S: Simd, const ROWS: usize>(g: &Gemm, units: usize, acc: &mut [[S::V; 2]; ROWS]) {
    let uppers = S::upper_bytes(g.b.cast());
    let mut escapes = escapes(g.b);
    let (mut unit, mut pair, mut a) = (0, g.b.wrapping_add(first_pair(units)), g.a);
    loop {
        let next = escapes.first().map_or(units, |escape| escape.unit as usize);
        let stop = next.min(units) & !1;
        while unit < stop {
            let wide = S::widen_pair(uppers, pair);
            step::<S, ROWS>(g, a, wide[0], acc);
            step::<S, ROWS>(g, a.wrapping_add(1), wide[1], acc);
            (unit, pair, a) = (unit + 2, pair.wrapping_add(PAIR), a.wrapping_add(2));
        }
        if unit >= units {
            return;
        }
        let mut own = [[[0u32; LANES]; 2]; 2];
        let plain: *mut u32 = own.as_mut_ptr().cast();
        store_pair::<S>(S::widen_pair(uppers, pair), plain);
        while let [escape, rest @ ..] = escapes
            && (escape.unit as usize) < unit + 2
        {
            put(escape, plain.wrapping_add((escape.unit as usize - unit) * PANEL));
            escapes = rest;
        }
        for odd in 0..(units - unit).min(2) {
            step_from::<S, ROWS>(g, a.wrapping_add(odd), plain.wrapping_add(odd * PANEL), acc);
        }
        (unit, pair, a) = (unit + 2, pair.wrapping_add(PAIR), a.wrapping_add(2));
    }
}

/// The sums that the first panel of g begins with.
#[inline(always)]
unsafe fn started<S: Simd, const ROWS: usize>(g: &Gemm) -> [[S::V; 2]; ROWS] {
    let lanes = lanes(g);
    let mut acc = [[S::splat(0.0); 2]; ROWS];
    if g.accumulate {
        each_row!(ROWS, i => {
            let row = g.c.wrapping_add(i * g.c_stride);
            acc[i] = [S::load_up_to(row, lanes[0]), S::load_up_to(row.wrapping_add(LANES), lanes[1])];
        });
    }
    acc
}

/// Writes the sums of the first panel of g, with what is added to them.
#[inline(always)]
unsafe fn finished<S: Simd, const ROWS: usize>(g: &Gemm, acc: &[[S::V; 2]; ROWS]) {
    let lanes = lanes(g);
    let mut acc = *acc;
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

/// Lanes of both halves of the first panel.
fn lanes(g: &Gemm) -> [usize; 2] {
    [g.n.min(LANES), g.n.min(PANEL).saturating_sub(LANES)]
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

/// The same of a unit as a plain panel has it.
#[inline(always)]
unsafe fn step_from<S: Simd, const ROWS: usize>(g: &Gemm, a: *const u32, b: *const u32, acc: &mut [[S::V; 2]; ROWS]) {
    step::<S, ROWS>(g, a, [S::load(b.cast()), S::load(b.wrapping_add(LANES).cast())], acc);
}
