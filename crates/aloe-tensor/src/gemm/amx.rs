//! The product by tiles of AMX, for processors that have them: sixteen rows by sixteen units of A against sixteen units by sixteen lanes
//! of B, an instruction.
//!
//! Such an instruction sums the first numbers of its sixteen pairs in one f32 chain from zero and the second ones in another, and adds the sum
//! of both to C (Intel SDM, TDPBF16PS; to nearest, subnormal numbers as zero). So an element of C is one chain over groups of sixteen
//! units, which begin at multiples of sixteen units of the product: neither rows, lanes, blocks nor tasks change a bit of it. Units that are
//! missing in the last group are zeros.
//!
//! Instructions are written out: the compiler's own are not stable, and it never touches a tile by itself. Shapes of tiles are a thread's
//! and stay from product to product (`Room`), as nothing else here uses tiles.

use super::narrow::Widened;
use super::{FEW_ROWS, Gemm, NARROW, PANEL, moved};
use crate::pack::{Line, ZERO_LINE};
use crate::simd::{Kernel, LANES, Simd};
use std::arch::asm;
use std::cell::UnsafeCell;

/// Units of a group: a tile of A has so many in a row, one of B so many rows.
const GROUP: usize = 16;

/// Rows of a tile of A and of C.
const TILE: usize = 16;

/// Rows that go together, two tiles of them: with two tiles of lanes, four sums are in flight.
const ROWS: usize = 2 * TILE;

/// Most units of a block: its panel, and the rows that meet it, stay in the second-level cache.
const BLOCK_UNITS: usize = 24 * GROUP;

/// How far ahead few rows fetch, in groups.
const FETCH_GROUPS: usize = 4;

/// Asks the system for the tiles, once for the process; false where it, or the processor, has none.
pub(crate) fn available() -> bool {
    static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
        let features = std::arch::x86_64::__cpuid(0).eax >= 7;
        features && std::arch::x86_64::__cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES && permitted()
    })
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`: without it the first tile is an illegal instruction.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const REQUEST: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of ours.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") REQUEST, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Shapes of the eight tiles: C is 0 to 3 (two of rows by two of lanes), A is 4 and 5, B 6 and 7.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shape {
    /// For so many rows of C, 32 at most.
    #[inline(always)]
    unsafe fn set(rows: usize) {
        let (first, second) = (rows.min(TILE) as u8, rows.saturating_sub(TILE).max(1) as u8);
        let mut shape = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, rows) in
            [first, first, second, second, first, second, TILE as u8, TILE as u8].into_iter().enumerate()
        {
            (shape.row_bytes[tile], shape.rows[tile]) = (64, rows);
        }
        asm!("ldtilecfg [{}]", in(reg) &raw const shape, options(nostack, readonly));
    }

    /// [`Self::set`] where the rows are not those that it was set for in this thread.
    #[inline(always)]
    unsafe fn change(set: &mut usize, rows: usize) {
        if *set != rows {
            *set = rows;
            Self::set(rows);
        }
    }
}

/// `rounds` times four products of tiles whose numbers are all one, on this thread; gives the sum of C, which is the number of products of two
/// numbers.
///
/// # Safety
/// The tiles are available.
pub(crate) unsafe fn peak(rounds: usize) -> f64 {
    let ones = [0x3f80_3f80u32; TILE * GROUP];
    let mut sums = [0.0f32; TILE * LANES];
    let mut total = 0.0;
    Shape::change(&mut (*room()).shape, ROWS);
    asm!(
        "tileloadd tmm4, [{a} + {s}]", "tileloadd tmm5, [{a} + {s}]", "tileloadd tmm6, [{a} + {s}]", "tileloadd tmm7, [{a} + {s}]",
        "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
        "2:",
        "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
        "dec {n}", "jnz 2b",
        a = in(reg) ones.as_ptr(), s = in(reg) 64usize, n = inout(reg) rounds.max(1) => _, options(nostack, readonly)
    );
    macro_rules! add {
        ($tile:literal) => {
            asm!(concat!("tilestored [{c} + {s}], ", $tile), c = in(reg) sums.as_mut_ptr(), s = in(reg) 64usize, options(nostack));
            total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
        };
    }
    add!("tmm0");
    add!("tmm1");
    add!("tmm2");
    add!("tmm3");
    total
}

/// A product of bf16 numbers, on this thread.
pub(super) struct Tiles(pub(super) Gemm);

/// What a thread keeps from product to product: for small ones, room on the stack and new shapes would take longer than the sums.
struct Room {
    /// Rows that the tiles are shaped for; 0 before the first product.
    shape: usize,
    scratch: Scratch,
}

/// What does not lie as tiles want it is brought together here.
struct Scratch {
    /// A block of a panel that was narrow, `[units, 32]`.
    panel: [Line; BLOCK_UNITS * PANEL / LANES],
    /// Rows that lay by unit, `[32, units]`.
    rows: [Line; ROWS * ROW_LINES],
    /// The last units of a panel and of rows, with zeros behind them.
    last_of_panel: [Line; GROUP * PANEL / LANES],
    last_of_rows: [Line; ROWS * GROUP / LANES],
    /// Rows of C that are not 32 lanes wide.
    c: [Line; ROWS * PANEL / LANES],
}

thread_local! {
    static ROOM: Box<UnsafeCell<Room>> = Box::new(UnsafeCell::new(Room {
        shape: 0,
        scratch: Scratch {
            panel: [ZERO_LINE; _],
            rows: [ZERO_LINE; _],
            last_of_panel: [ZERO_LINE; _],
            last_of_rows: [ZERO_LINE; _],
            c: [ZERO_LINE; _],
        },
    }));
}

/// This thread's room, of which only one product at a time makes use: none calls another.
fn room() -> *mut Room {
    ROOM.with(|room| room.get())
}

/// Lines of a row of a block that was turned over: an odd number, so that rows do not fall on the same cache sets.
const ROW_LINES: usize = (BLOCK_UNITS / LANES) | 1;

impl Kernel for Tiles {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let g = self.0;
        // SAFETY: nothing else in this thread uses it before this product ends.
        let Room { shape, scratch } = &mut *room();
        let is_narrow = g.b_unit_stride == NARROW;
        if is_narrow || g.m <= FEW_ROWS && !g.a_by_unit {
            panel_by_panel::<S>(&g, is_narrow, shape, scratch);
        } else {
            rows_by_rows::<S>(&g, shape, scratch);
        }
    }
}

/// Few rows take a panel whole, as they wait for memory; of many rows a block of narrow panels stays in the cache for all panels.
#[inline(always)]
unsafe fn panel_by_panel<S: Simd>(g: &Gemm, is_narrow: bool, shape: &mut usize, scratch: &mut Scratch) {
    let step = if g.m <= ROWS || !is_narrow { g.units.max(1) } else { block_units(g.units) };
    let (n_panels, n_blocks) = (g.n.div_ceil(PANEL), g.units.div_ceil(step).max(1));
    let rows_together = g.m.div_ceil(g.m.div_ceil(ROWS));
    for at in 0..n_panels * n_blocks {
        let (panel, block) =
            if g.m <= FEW_ROWS { (at / n_blocks, at % n_blocks) } else { (at % n_panels, at / n_panels) };
        let (first, units) = (block * step, step.min(g.units - block * step));
        let plain = if is_narrow {
            scratch.panel.as_ptr().cast()
        } else {
            g.b.wrapping_add(panel * g.b_panel_stride + first * g.b_unit_stride)
        };
        let mut widened =
            is_narrow.then(|| Widened::new(g, panel, first, scratch.panel.as_mut_ptr().cast(), g.m <= rows_together));
        let mut row = 0;
        while row < g.m {
            let m = rows_together.min(g.m - row);
            Shape::change(shape, m);
            let a = (g.a.wrapping_add(row * g.a_stride + first), g.a_stride);
            let part = part_of(g, (row, m), panel, (first, units), a, plain);
            sums::<S>(&part, widened.take(), scratch);
            row += m;
        }
    }
}

/// Many rows: as many of them as go together meet all panels of a block.
#[inline(always)]
unsafe fn rows_by_rows<S: Simd>(g: &Gemm, shape: &mut usize, scratch: &mut Scratch) {
    let step = block_units(g.units);
    for first in (0..g.units.max(1)).step_by(step) {
        let units = step.min(g.units - first);
        for row in (0..g.m).step_by(ROWS) {
            let m = ROWS.min(g.m - row);
            Shape::change(shape, m);
            let a = if g.a_by_unit {
                let rows: *mut u32 = scratch.rows.as_mut_ptr().cast();
                turned_over::<S>(g, (row, m), (first, units), rows);
                (rows.cast_const(), ROW_LINES * LANES)
            } else {
                (g.a.wrapping_add(row * g.a_stride + first), g.a_stride)
            };
            for panel in 0..g.n.div_ceil(PANEL) {
                let b = g.b.wrapping_add(panel * g.b_panel_stride + first * g.b_unit_stride);
                sums::<S>(&part_of(g, (row, m), panel, (first, units), a, b), None, scratch);
            }
        }
    }
}

/// Units of a block: equal ones, whole groups.
fn block_units(units: usize) -> usize {
    units.div_ceil(units.div_ceil(BLOCK_UNITS).max(1)).next_multiple_of(GROUP).max(GROUP)
}

/// Up to 32 rows of one panel's block, with A and the plain B given.
#[inline(always)]
fn part_of(
    g: &Gemm,
    (row, m): (usize, usize),
    panel: usize,
    (first, units): (usize, usize),
    (a, a_stride): (*const u32, usize),
    b: *const u32,
) -> Gemm {
    let c = row * g.c_stride + panel * PANEL;
    Gemm {
        m,
        n: (g.n - panel * PANEL).min(PANEL),
        units,
        a,
        a_stride,
        a_by_unit: false,
        b,
        b_unit_stride: if g.b_unit_stride == NARROW { PANEL } else { g.b_unit_stride },
        c: g.c.wrapping_add(c),
        add: if first + units == g.units { moved(g.add, c) } else { std::ptr::null() },
        accumulate: g.accumulate || first > 0,
        ..*g
    }
}

/// Rows of a block that lie by unit, side by side: `m` rows from `row` on, of `units` units from `first` on.
#[inline(always)]
unsafe fn turned_over<S: Simd>(g: &Gemm, (row, m): (usize, usize), (first, units): (usize, usize), to: *mut u32) {
    let start = match g.a_panel_stride {
        0 => row,
        stride => row / PANEL * stride + row % PANEL,
    };
    let from = g.a.wrapping_add(start + first * g.a_stride);
    for half in (0..m).step_by(LANES) {
        let n_rows = LANES.min(m - half);
        for unit in (0..units).step_by(GROUP) {
            let mut block = [S::splat(0.0); LANES];
            for (i, of_unit) in block.iter_mut().enumerate().take(units - unit) {
                *of_unit = S::load_up_to(from.wrapping_add((unit + i) * g.a_stride + half).cast(), n_rows);
            }
            S::transpose(&mut block);
            for (i, of_row) in block.iter().enumerate().take(n_rows) {
                S::store(to.wrapping_add((half + i) * ROW_LINES * LANES + unit).cast(), *of_row);
            }
        }
    }
}

/// C of up to 32 rows and 32 lanes over a block of units, whose panel may have to be widened on the way.
#[inline(always)]
unsafe fn sums<S: Simd>(g: &Gemm, widened: Option<Widened>, scratch: &mut Scratch) {
    let c = if g.n == PANEL { (g.c, g.c_stride) } else { (scratch.c.as_mut_ptr().cast::<f32>(), PANEL) };
    let lanes = [g.n.min(LANES), g.n.saturating_sub(LANES)];
    if g.accumulate && g.n < PANEL {
        for row in 0..g.m {
            for (half, &n) in lanes.iter().enumerate() {
                let sums = S::load_up_to(g.c.wrapping_add(row * g.c_stride + half * LANES), n);
                S::store(c.0.wrapping_add(row * c.1 + half * LANES), sums);
            }
        }
    }
    let groups = g.units / GROUP;
    let last = (!g.units.is_multiple_of(GROUP)).then_some(groups * GROUP);
    if let Some(unit) = last {
        last_rows::<S>(g, unit, scratch.last_of_rows.as_mut_ptr().cast());
    }
    if g.m > TILE {
        chain::<S, true>(g, c, (groups, last), widened, scratch);
    } else {
        chain::<S, false>(g, c, (groups, last), widened, scratch);
    }
    if g.n == PANEL && g.add.is_null() {
        return;
    }
    for row in 0..g.m {
        for (half, &n) in lanes.iter().enumerate() {
            let at = row * g.c_stride + half * LANES;
            let mut sums = S::load(c.0.wrapping_add(row * c.1 + half * LANES));
            if !g.add.is_null() {
                sums = S::add(sums, S::load_up_to(g.add.wrapping_add(at), n));
            }
            S::store_up_to(g.c.wrapping_add(at), sums, n);
        }
    }
}

/// The units of all rows from `unit` on, fewer than a group, with zeros behind them.
#[inline(always)]
unsafe fn last_rows<S: Simd>(g: &Gemm, unit: usize, to: *mut u32) {
    for row in 0..g.m {
        let units = S::load_n(g.a.wrapping_add(row * g.a_stride + unit).cast(), g.units - unit);
        S::store(to.wrapping_add(row * GROUP).cast(), units);
    }
}

/// Those of a panel.
#[inline(always)]
unsafe fn last_of_panel<S: Simd>(b: *const u32, stride: usize, n: usize, to: *mut u32) {
    for unit in 0..n {
        for lane in [0, LANES] {
            let units = S::load(b.wrapping_add(unit * stride + lane).cast());
            S::store(to.wrapping_add(unit * PANEL + lane).cast(), units);
        }
    }
    for unit in n..GROUP {
        for lane in [0, LANES] {
            S::store(to.wrapping_add(unit * PANEL + lane).cast(), S::splat(0.0));
        }
    }
}

/// From C or zero through all groups to C, in tiles.
#[inline(always)]
unsafe fn chain<S: Simd, const TWO: bool>(
    g: &Gemm,
    (c, c_stride): (*mut f32, usize),
    (groups, last): (usize, Option<usize>),
    mut widened: Option<Widened>,
    scratch: &mut Scratch,
) {
    let (c_bytes, a_bytes, b_bytes) = (4 * c_stride, 4 * g.a_stride, 4 * g.b_unit_stride);
    let c_second = c.wrapping_add(TILE * c_stride);
    if g.accumulate {
        asm!("tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]", c = in(reg) c, s = in(reg) c_bytes, options(nostack, readonly));
        if TWO {
            asm!("tileloadd tmm2, [{c} + {s}]", "tileloadd tmm3, [{c} + {s} + 64]", c = in(reg) c_second, s = in(reg) c_bytes, options(nostack, readonly));
        }
    } else {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
    }
    let mut uppers = S::splat(0.0);
    if let Some(widened) = &mut widened {
        uppers = widened.start::<S>();
        widened.units::<S>(uppers, 0, GROUP.min(g.units));
    }
    let is_few = g.from_memory && g.m <= ROWS && widened.is_none();
    for group in 0..groups {
        let unit = group * GROUP;
        let b = match &mut widened {
            Some(widened) => {
                if unit + GROUP < g.units {
                    widened.units::<S>(uppers, unit + GROUP, GROUP.min(g.units - unit - GROUP));
                }
                widened.place(unit).cast_const()
            }
            None => g.b.wrapping_add(unit * g.b_unit_stride),
        };
        if is_few {
            let ahead = b.wrapping_add(FETCH_GROUPS * GROUP * PANEL);
            for line in 0..GROUP * PANEL / LANES {
                S::prefetch(ahead.wrapping_add(line * LANES).cast());
            }
        }
        step::<TWO>((g.a.wrapping_add(unit), a_bytes), (b, b_bytes));
    }
    if let Some(unit) = last {
        let b = match &widened {
            Some(widened) => widened.place(unit).cast_const(),
            None => g.b.wrapping_add(unit * g.b_unit_stride),
        };
        let to: *mut u32 = scratch.last_of_panel.as_mut_ptr().cast();
        last_of_panel::<S>(b, g.b_unit_stride, g.units - unit, to);
        step::<TWO>((scratch.last_of_rows.as_ptr().cast(), 4 * GROUP), (to, 4 * PANEL));
    }
    asm!("tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 64], tmm1", c = in(reg) c, s = in(reg) c_bytes, options(nostack));
    if TWO {
        asm!("tilestored [{c} + {s}], tmm2", "tilestored [{c} + {s} + 64], tmm3", c = in(reg) c_second, s = in(reg) c_bytes, options(nostack));
    }
}

/// One group of units of one or two tiles of rows, strides in bytes.
#[inline(always)]
unsafe fn step<const TWO: bool>((a, a_bytes): (*const u32, usize), (b, b_bytes): (*const u32, usize)) {
    if TWO {
        asm!(
            "tileloadd tmm6, [{b} + {bs}]", "tileloadd tmm4, [{a} + {s}]", "tileloadd tmm7, [{b} + {bs} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tileloadd tmm5, [{a2} + {s}]", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            a = in(reg) a, a2 = in(reg) a.wrapping_byte_add(TILE * a_bytes), s = in(reg) a_bytes, b = in(reg) b, bs = in(reg) b_bytes,
            options(nostack, readonly)
        );
    } else {
        asm!(
            "tileloadd tmm4, [{a} + {s}]", "tileloadd tmm6, [{b} + {bs}]", "tileloadd tmm7, [{b} + {bs} + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            a = in(reg) a, s = in(reg) a_bytes, b = in(reg) b, bs = in(reg) b_bytes, options(nostack, readonly)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{linear, linear_grad_input, linear_grad_weight};
    use crate::tensor::{bf16_from_f32, f32_from_bf16};
    use crate::testing::{normal, same_bits};
    use crate::{Device, Dtype, Isa, Linear, Tensor};

    fn rounded(x: &Tensor) -> Vec<f32> {
        x.as_f32().iter().map(|&x| f32_from_bf16(bf16_from_f32(x))).collect()
    }

    /// What the manual says: `c[i][j] (+)= sum over k of a(i, k) b(k, j)` in groups of 32 numbers, the even and the odd ones apart.
    fn by_hand(
        (m, n, k): (usize, usize, usize),
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        c: &mut [f32],
    ) {
        for i in 0..m {
            for j in 0..n {
                for group in (0..k).step_by(2 * GROUP) {
                    let mut halves = [0.0f32; 2];
                    for at in group..k.min(group + 2 * GROUP) {
                        halves[at % 2] = a(i, at).mul_add(b(at, j), halves[at % 2]);
                    }
                    c[i * n + j] += halves[0] + halves[1];
                }
            }
        }
    }

    #[test]
    fn tiles_sum_in_the_order_of_the_manual_for_every_height_width_and_length() {
        if !Isa::Amx.available() {
            eprintln!("not run: this machine has no tiles");
            return;
        }
        let shapes = [
            (1, 31, 2),
            (2, 32, 33),
            (16, 64, 32),
            (17, 65, 95),
            (32, 33, 512),
            (33, 40, 515),
            (48, 96, 1030),
            (49, 70, 64),
            (130, 300, 801),
        ];
        for (n, o, k) in shapes {
            let (x, dy, w) = (normal("x", &[n, k]), normal("dy", &[n, o]), normal("w", &[o, k]));
            let [rx, rdy, rw] = [&x, &dy, &w].map(rounded);
            for threads in [1, 3] {
                let device = Device::cpu_with(Isa::Amx, threads);
                let what = |of: &str| format!("{of} of {n} x {o} x {k}, {threads} threads");
                let layers = [
                    Linear::new(w.clone().cast(Dtype::Bf16), None),
                    Linear::narrow_of(&device, &w.clone().cast(Dtype::Bf16), None),
                ];
                let mut expected = vec![0.0; n * o];
                by_hand((n, o, k), |i, at| rx[i * k + at], |at, j| rw[j * k + at], &mut expected);
                for layer in &layers {
                    same_bits(linear(&device, &x, layer).as_f32(), &expected, &what("output"));
                }
                let mut expected = vec![0.0; n * k];
                by_hand((n, k, o), |i, at| rdy[i * o + at], |at, j| rw[at * k + j], &mut expected);
                same_bits(linear_grad_input(&device, &dy, &layers[0]).as_f32(), &expected, &what("gradient of x"));
                let mut dw = normal("dw", &[o, k]);
                let mut expected = dw.as_f32().to_vec();
                by_hand((o, k, n), |i, at| rdy[at * o + i], |at, j| rx[at * k + j], &mut expected);
                linear_grad_weight(&device, &dy, &x, Dtype::Bf16, &mut dw, None);
                same_bits(dw.as_f32(), &expected, &what("gradient of w"));
            }
        }
    }
}
