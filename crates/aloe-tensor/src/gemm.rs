//! The matrix product that everything rests on: `C (+)= A B` in units of 32 bits, a unit being one f32 or a pair of bf16.
//!
//! B lies in panels of 32 lanes; A gives one unit at a time, spread to all lanes. Each element of C is one f32 chain over the
//! units in index order: blocks of units continue the chain through C, tails use masks, and the tile's height changes nothing.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod narrow;
mod tasks;
mod tile;

use crate::device::{Device, Isa};
use crate::pack::ZERO_LINE;
use crate::simd::{Kernel, LANES, Simd};
use crate::tensor::Dtype;
pub(crate) use tasks::{Tasks, even_share};
pub(crate) use tile::each_row;
use tile::{Bf16Product, F32Product, Product, Tile, WidenedProduct};

/// Lanes of a panel.
pub(crate) const PANEL: usize = 32;

/// Most units of a block, of which a product takes equal ones: a panel's block stays in the first two cache levels while rows of A
/// stream by, and C is not taken up again for a short rest.
const BLOCK_UNITS: usize = 384;

/// Rows up to which weights are expected in memory rather than in a cache; more rows compute for longer than memory takes.
pub(crate) const FEW_ROWS: usize = 48;

/// Units after which a few rows in more than one tile take their next tile: what the first tile read is in the first-level
/// cache still, and what comes next has time to arrive.
const STREAM_UNITS: usize = 96;

/// How far ahead such a stream is fetched, in units.
const STREAM_DISTANCE: usize = 96;

/// Units of a chain, such as attention's, that is hardly longer than setting out on it: a tile of rows goes through all panels at once.
const SHORT_CHAIN: usize = 64;

/// What to fetch while a tile computes: `step` units of 32 bits for each unit of the product, from `from` on. Whole steps of a panel are
/// wanted in the nearest cache, single lines in the second-level one.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u32,
    step: usize,
    /// Tiles of rows that fetch, each where the one before ended.
    tiles: usize,
}

impl Ahead {
    fn none(g: &Gemm) -> Self {
        Self { from: g.b, step: 0, tiles: 0 }
    }

    /// What is left to the tiles after the next `n`, each of so many units.
    #[inline(always)]
    fn after(self, n: usize, units: usize) -> Self {
        let n = n.min(self.tiles);
        let (from, tiles) = (self.from.wrapping_add(n * units * self.step), self.tiles - n);
        Self { from, tiles, step: if tiles > 0 { self.step } else { 0 } }
    }
}

/// In place of the stride of units: the panels of B are narrow.
pub(crate) const NARROW: usize = 0;

/// One product. Pointers are in units of 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct Gemm {
    /// Type of the operands; bf16 units hold elements 2u (low half) and 2u + 1.
    pub(crate) dtype: Dtype,
    /// Rows of A and C.
    pub(crate) m: usize,
    /// Columns of C; B has `n.div_ceil(32)` panels.
    pub(crate) n: usize,
    pub(crate) units: usize,
    /// Unit u of row i is at `i * a_stride + u`, or when `a_by_unit` at `u * a_stride + i`.
    pub(crate) a: *const u32,
    pub(crate) a_stride: usize,
    pub(crate) a_by_unit: bool,
    /// With `a_by_unit`: rows lie in panels of 32, this far apart; 0 when all lie side by side.
    pub(crate) a_panel_stride: usize,
    /// Unit u of lane l of panel p is at `p * b_panel_stride + u * b_unit_stride + l`; a stride of units of [`NARROW`] says that the panels
    /// are narrow ones (`narrow.rs`) and begin at multiples of their stride.
    pub(crate) b: *const u32,
    pub(crate) b_panel_stride: usize,
    pub(crate) b_unit_stride: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_stride: usize,
    /// Continue from C's values; otherwise start from zero.
    pub(crate) accumulate: bool,
    /// What is added to each finished element, laid out as C; null for nothing.
    pub(crate) add: *const f32,
    /// B is a weight: few rows find it in memory rather than in a cache, and fetch it ahead of its use.
    pub(crate) from_memory: bool,
}

// SAFETY: the pointers are only followed inside `run`, whose callers uphold their validity for the whole parallel loop.
unsafe impl Send for Gemm {}
// SAFETY: as above; tasks write disjoint parts of C.
unsafe impl Sync for Gemm {}

impl Gemm {
    /// The product on all threads of the device.
    ///
    /// # Safety
    /// `a` and `b` are readable and `c` writable as the strides say (all 32 lanes of B's last panel included), and nobody
    /// else touches `c` meanwhile.
    pub(crate) unsafe fn run(self, device: &Device) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        let share = even_share(&[self.n.div_ceil(PANEL)], device.threads());
        let (tasks, isa) = (self.tasks(device, share), device.isa());
        device.for_each(tasks.n, &|task| {
            // SAFETY: a part of this product; parts of different tasks write different elements of C.
            unsafe { self.run_task(tasks, task, isa) }
        });
    }

    /// One task of the product, on this thread.
    ///
    /// # Safety
    /// As for [`Gemm::run`]; different tasks write different elements of C.
    pub(crate) unsafe fn run_task(&self, tasks: Tasks, task: usize, isa: Isa) {
        let (rows, lanes) = self.extent(tasks, task);
        let part = self.part(rows, lanes.start / PANEL..lanes.end.div_ceil(PANEL));
        part.run_here(isa);
    }

    fn part(&self, rows: std::ops::Range<usize>, panels: std::ops::Range<usize>) -> Self {
        let a_start = match (self.a_by_unit, self.a_panel_stride) {
            (true, 0) => rows.start,
            (true, stride) => rows.start / PANEL * stride,
            (false, _) => rows.start * self.a_stride,
        };
        let c_start = rows.start * self.c_stride + panels.start * PANEL;
        Self {
            m: rows.len(),
            n: self.n.min(panels.end * PANEL) - panels.start * PANEL,
            a: self.a.wrapping_add(a_start),
            b: self.b.wrapping_add(panels.start * self.b_panel_stride),
            c: self.c.wrapping_add(c_start),
            add: moved(self.add, c_start),
            ..*self
        }
    }

    /// Some rows of one panel, which go to `c` `[rows, 32]`.
    pub(crate) fn panel_into(&self, rows: std::ops::Range<usize>, panel: usize, c: *mut f32) -> Self {
        Self { c, c_stride: PANEL, ..self.part(rows, panel..panel + 1) }
    }

    /// The product on this thread.
    ///
    /// # Safety
    /// As for [`Gemm::run`].
    pub(crate) unsafe fn run_here(self, isa: Isa) {
        match (isa, self.dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Dtype::Bf16) => isa.run(amx::Tiles(self)),
            _ => isa.run(Blocks(self)),
        }
    }

    /// The product from inside a kernel, by vectors: one over a weight has other bits by tiles, and goes through [`Gemm::run_here`].
    ///
    /// # Safety
    /// As for [`Gemm::run`], and the instruction set is available.
    #[inline(always)]
    pub(crate) unsafe fn run_inside<S: Simd>(self) {
        S::call(Blocks(self));
    }
}

/// All of one task, block of units by block of units.
struct Blocks(Gemm);

impl Kernel for Blocks {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let g = self.0;
        if g.b_unit_stride == NARROW {
            return S::call(Narrow(g));
        }
        if g.from_memory && g.m > S::TILE_ROWS && g.m <= FEW_ROWS && !g.a_by_unit {
            return match g.dtype {
                Dtype::F32 => stream::<S, F32Product>(&g),
                Dtype::Bf16 => stream::<S, Bf16Product>(&g),
            };
        }
        // With one pass over the rows a panel is not read twice: streaming it whole is what memory likes best.
        let step = match g.dtype {
            _ if g.m <= S::TILE_ROWS => g.units.max(1),
            Dtype::Bf16 if Bf16Product::widens::<S>() => WIDE_UNITS,
            _ => g.units.div_ceil(g.units.div_ceil(BLOCK_UNITS).max(1)).max(1),
        };
        let mut unit = 0;
        loop {
            let is_last = unit + step >= g.units;
            let block = Gemm {
                add: if is_last { g.add } else { std::ptr::null() },
                units: step.min(g.units - unit),
                a: g.a.wrapping_add(if g.a_by_unit { unit * g.a_stride } else { unit }),
                b: g.b.wrapping_add(unit * g.b_unit_stride),
                accumulate: g.accumulate || unit > 0,
                ..g
            };
            match (g.dtype, g.a_by_unit) {
                (Dtype::F32, false) => panels::<S, F32Product, false>(&block),
                (Dtype::F32, true) => panels::<S, F32Product, true>(&block),
                (Dtype::Bf16, false) => panels::<S, Bf16Product, false>(&block),
                (Dtype::Bf16, true) => panels::<S, Bf16Product, true>(&block),
            }
            unit += step;
            if is_last {
                break;
            }
        }
    }
}

/// Narrow panels, in a function of its own: the block that they are widened into lies on the stack, all pages of which are looked at when
/// the function begins, and attention's small products, which never need it, would look at them too (7 % of its time).
struct Narrow(Gemm);

impl Kernel for Narrow {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        narrow::run::<S>(&self.0);
    }
}

/// Where what is added stands, when there is anything.
#[inline(always)]
fn moved(add: *const f32, by: usize) -> *const f32 {
    if add.is_null() { add } else { add.wrapping_add(by) }
}

/// Few rows, but more than one tile of them: all tiles follow each other down a panel, part by part, so that the panel comes
/// from memory once and in one stream.
#[inline(always)]
unsafe fn stream<S: Simd, P: Product>(g: &Gemm) {
    let mut lane = 0;
    while lane < g.n {
        let mut unit = 0;
        while unit < g.units {
            let part = Gemm {
                units: STREAM_UNITS.min(g.units - unit),
                a: g.a.wrapping_add(unit),
                b: g.b.wrapping_add(lane / PANEL * g.b_panel_stride + unit * g.b_unit_stride),
                c: g.c.wrapping_add(lane),
                n: (g.n - lane).min(PANEL),
                accumulate: g.accumulate || unit > 0,
                add: if unit + STREAM_UNITS >= g.units { moved(g.add, lane) } else { std::ptr::null() },
                ..*g
            };
            rows_of_panel::<S, P, false>(&part);
            unit += STREAM_UNITS;
        }
        lane += PANEL;
    }
}

/// A block of B is widened once where more rows than these meet it.
const WIDEN_ROWS: usize = 12;

/// Units of a widened block: with 32 lanes of two f32 it fills the first-level cache as a block of pairs does.
const WIDE_UNITS: usize = 128;

/// All rows of one panel's block, widened first.
#[inline(always)]
unsafe fn rows_of_widened<S: Simd, const BY_UNIT: bool>(g: &Gemm) {
    let mut wide = [ZERO_LINE; WIDE_UNITS * 2 * PANEL / LANES];
    let out: *mut f32 = wide.as_mut_ptr().cast();
    assert!(g.units <= WIDE_UNITS, "a block of {} units", g.units);
    for unit in 0..g.units {
        for lane in [0, LANES] {
            let bits = S::load(g.b.wrapping_add(unit * g.b_unit_stride + lane).cast());
            let to = out.wrapping_add(unit * 2 * PANEL + lane);
            S::store(to, S::upper_bf16(bits));
            S::store(to.wrapping_add(PANEL), S::lower_bf16(bits));
        }
    }
    let block = Gemm { b: out.cast(), b_unit_stride: 2 * PANEL, from_memory: false, ..*g };
    rows_of_panel::<S, WidenedProduct, BY_UNIT>(&block);
}

/// One block of units over all panels and rows. Few rows take several panels at a time, which keeps more chains in flight; from
/// memory they take one after the other instead, all in one tile: a single stream, which the processor fetches ahead by itself.
#[inline(always)]
unsafe fn panels<S: Simd, P: Product, const BY_UNIT: bool>(g: &Gemm) {
    let mut lane = 0;
    while lane < g.n {
        let left = g.n - lane;
        let wide = match g.m {
            _ if S::TILE_ROWS < 12 || BY_UNIT => 1,
            _ if g.from_memory && g.m <= S::TILE_ROWS => left.div_ceil(PANEL),
            1..=3 if left > 3 * PANEL => 4,
            1..=6 if left > PANEL => 2,
            _ if g.units <= SHORT_CHAIN && !P::widens::<S>() => left.div_ceil(PANEL),
            _ => 1,
        };
        let part = Gemm {
            b: g.b.wrapping_add(lane / PANEL * g.b_panel_stride),
            c: g.c.wrapping_add(lane),
            add: moved(g.add, lane),
            n: left.min(wide * PANEL),
            ..*g
        };
        match wide {
            _ if P::widens::<S>() && g.m > WIDEN_ROWS => rows_of_widened::<S, BY_UNIT>(&part),
            4 if g.m <= 3 && !g.from_memory => few_rows_4::<S, P>(&part),
            2 if g.m <= 6 && !g.from_memory => few_rows_2::<S, P>(&part),
            _ => rows_of_panel::<S, P, BY_UNIT>(&part),
        }
        lane += wide * PANEL;
    }
}

macro_rules! tile {
    ($s:ident, $p:ident, $by:expr, $rows:literal, $vectors:literal, $g:expr, $ahead:expr) => {
        $s::call(Tile::<$p, $by, $rows, $vectors> { g: $g, ahead: $ahead, product: std::marker::PhantomData })
    };
}

/// Six rows of bf16 over lanes of B that lie side by side in one cache, of which whole panels are read and no more.
///
/// # Safety
/// As for [`Gemm::run`], and the instruction set is available.
#[inline(always)]
pub(crate) unsafe fn six_rows<S: Simd>(g: Gemm) {
    assert!(g.m == 6 && g.dtype == Dtype::Bf16 && !g.a_by_unit, "{} rows of {:?}", g.m, g.dtype);
    assert!(g.n.next_multiple_of(PANEL) <= g.b_unit_stride, "{} lanes in units of {}", g.n, g.b_unit_stride);
    let rest = g.n % (2 * PANEL);
    // A tile of four vectors reads two panels, also where it is asked for less: a last single one has its own.
    let wide = if rest > PANEL { g.n } else { g.n - rest };
    if wide > 0 {
        tile!(S, Bf16Product, false, 6, 4, Gemm { n: wide, ..g }, Ahead::none(&g));
    }
    if wide < g.n {
        let last = Gemm {
            n: g.n - wide,
            b: g.b.wrapping_add(wide / PANEL * g.b_panel_stride),
            c: g.c.wrapping_add(wide),
            add: moved(g.add, wide),
            ..g
        };
        tile!(S, Bf16Product, false, 6, 2, last, Ahead::none(&last));
    }
}

#[inline(always)]
unsafe fn few_rows_4<S: Simd, P: Product>(g: &Gemm) {
    let ahead = Ahead::none(g);
    match g.m {
        1 => tile!(S, P, false, 1, 8, *g, ahead),
        2 => tile!(S, P, false, 2, 8, *g, ahead),
        _ => tile!(S, P, false, 3, 8, *g, ahead),
    }
}

#[inline(always)]
unsafe fn few_rows_2<S: Simd, P: Product>(g: &Gemm) {
    let ahead = Ahead::none(g);
    match g.m {
        1 => tile!(S, P, false, 1, 4, *g, ahead),
        2 => tile!(S, P, false, 2, 4, *g, ahead),
        3 => tile!(S, P, false, 3, 4, *g, ahead),
        4 => tile!(S, P, false, 4, 4, *g, ahead),
        5 => tile!(S, P, false, 5, 4, *g, ahead),
        _ => tile!(S, P, false, 6, 4, *g, ahead),
    }
}

#[inline(always)]
unsafe fn rows_of_panel<S: Simd, P: Product, const BY_UNIT: bool>(g: &Gemm) {
    let mut ahead = if BY_UNIT || !g.from_memory || g.m <= S::TILE_ROWS {
        Ahead::none(g)
    } else if g.m > FEW_ROWS {
        // Many rows find the next panel in the second-level cache: the first two tiles fetch it, half each.
        Ahead { from: g.b.wrapping_add(g.b_panel_stride), step: LANES, tiles: 2 }
    } else {
        // Few rows in several tiles wait for memory, but look at a part too long for the processor to see a stream: the first tile
        // fetches what comes next.
        Ahead { from: g.b.wrapping_add(STREAM_DISTANCE * PANEL), step: PANEL, tiles: 1 }
    };
    let mut row = 0;
    while row < g.m {
        // Tiles of even height: 16 rows go as 8 and 8, which keeps more chains in flight than 12 and 4. Those of one height go together.
        let in_panels = BY_UNIT && g.a_panel_stride > 0;
        let left = if in_panels { (g.m - row).min(PANEL - row % PANEL) } else { g.m - row };
        let tiles = left.div_ceil(S::TILE_ROWS);
        let rows = left.div_ceil(tiles);
        let together = if S::TILE_ROWS == 12 && !in_panels { left - tiles * (rows - 1) } else { 1 };
        let a_start = match BY_UNIT {
            true if in_panels => row / PANEL * g.a_panel_stride + row % PANEL,
            true => row,
            false => row * g.a_stride,
        };
        let part = Gemm {
            a: g.a.wrapping_add(a_start),
            c: g.c.wrapping_add(row * g.c_stride),
            add: moved(g.add, row * g.c_stride),
            m: rows * together,
            ..*g
        };
        if S::TILE_ROWS == 12 {
            match rows {
                1 => tile!(S, P, BY_UNIT, 1, 2, part, ahead),
                2 => tile!(S, P, BY_UNIT, 2, 2, part, ahead),
                3 => tile!(S, P, BY_UNIT, 3, 2, part, ahead),
                4 => tile!(S, P, BY_UNIT, 4, 2, part, ahead),
                5 => tile!(S, P, BY_UNIT, 5, 2, part, ahead),
                6 => tile!(S, P, BY_UNIT, 6, 2, part, ahead),
                7 => tile!(S, P, BY_UNIT, 7, 2, part, ahead),
                8 => tile!(S, P, BY_UNIT, 8, 2, part, ahead),
                9 => tile!(S, P, BY_UNIT, 9, 2, part, ahead),
                10 => tile!(S, P, BY_UNIT, 10, 2, part, ahead),
                11 => tile!(S, P, BY_UNIT, 11, 2, part, ahead),
                _ => tile!(S, P, BY_UNIT, 12, 2, part, ahead),
            }
        } else {
            match rows {
                1 => tile!(S, P, BY_UNIT, 1, 2, part, ahead),
                2 => tile!(S, P, BY_UNIT, 2, 2, part, ahead),
                _ => half_panels::<S, P, BY_UNIT>(part, ahead),
            }
        }
        row += rows * together;
        ahead = ahead.after(together, g.units);
    }
}

/// A tile of half a panel's lanes and twice the rows, for sets of 16 registers: fewer lanes of B are held beside C.
#[inline(always)]
unsafe fn half_panels<S: Simd, P: Product, const BY_UNIT: bool>(part: Gemm, ahead: Ahead) {
    let mut lane = 0;
    while lane < part.n.min(PANEL) {
        let half = Gemm {
            b: part.b.wrapping_add(lane),
            c: part.c.wrapping_add(lane),
            add: moved(part.add, lane),
            n: (part.n - lane).min(LANES),
            ..part
        };
        let ahead = if lane == 0 { ahead } else { Ahead { step: 0, ..ahead } };
        match half.m {
            3 => tile!(S, P, BY_UNIT, 3, 1, half, ahead),
            _ => tile!(S, P, BY_UNIT, 4, 1, half, ahead),
        }
        lane += LANES;
    }
}

/// Units of `k` elements.
pub(crate) fn units_of(dtype: Dtype, k: usize) -> usize {
    match dtype {
        Dtype::F32 => k,
        Dtype::Bf16 => k.div_ceil(2),
    }
}
