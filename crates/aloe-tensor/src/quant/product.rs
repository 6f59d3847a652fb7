//! The product of int8 rows with block panels: exact i32 sums per block, one f32 chain over the blocks.
//!
//! One kernel serves one row and thousands: the height of a tile changes nothing, so a row has the same bits in any company.

use super::BLOCK;
use super::blocks::{Code, Scale};
use super::panels::{BlockPanels, LINE, code_line, place};
use super::rows::{BlockRows, BlockScale};
use crate::gemm::PANEL;
use crate::simd::{Kernel, LANES, Simd};
use std::ops::Range;

/// `C = A W^T` over lanes `first..first + n` of the panels.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) a: BlockRows,
    pub(crate) weight: &'a BlockPanels,
    /// A multiple of 32.
    pub(crate) first: usize,
    pub(crate) n: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_stride: usize,
}

// SAFETY: the pointers are only followed by `Task`, whose callers uphold their validity for the whole parallel loop.
unsafe impl Send for Product<'_> {}
// SAFETY: as above; tasks write disjoint parts of C.
unsafe impl Sync for Product<'_> {}

/// Rows of one task: their bytes and scales stay in the second-level cache while panels stream by.
const TASK_ROWS: usize = 192;

/// Rows up to which weights are expected in memory rather than in a cache, and every thread gets the same share of them.
const FEW_ROWS: usize = 48;

impl Product<'_> {
    /// How many tasks this product has and of how many panels, with few rows of `share`.
    pub(crate) fn tasks(&self, threads: usize, share: usize) -> (usize, usize) {
        let panels = self.n.div_ceil(PANEL);
        let row_parts = self.a.m.div_ceil(TASK_ROWS);
        if self.a.m <= FEW_ROWS && threads > 1 {
            return (panels.div_ceil(share) * row_parts, share);
        }
        // About eight tasks a thread, so that a disturbed thread does not hold up the rest.
        let wanted = if threads == 1 { 1 } else { (8 * threads).div_ceil(row_parts.max(1)) };
        let per_task = (panels / wanted.max(1)).clamp(1, 64);
        (panels.div_ceil(per_task) * row_parts, per_task)
    }

    /// Rows and lanes of C that a task writes.
    pub(crate) fn extent(&self, task: usize, per_task: usize) -> (Range<usize>, Range<usize>) {
        let row_parts = self.a.m.div_ceil(TASK_ROWS);
        let (row, lane) = (task % row_parts * TASK_ROWS, task / row_parts * per_task * PANEL);
        (row..(row + TASK_ROWS).min(self.a.m), lane..(lane + per_task * PANEL).min(self.n))
    }
}

/// Panels of 4-bit weights that one row reads side by side where they are long. Several streams keep more lines under way than one: Zen 4,
/// both threads, rows of 4,096 and 14,336 numbers, 65 to 75 % of a plain read with one stream, 82 with two, 83 with four where memory
/// gives 56 to 59 GB/s, and 87 to 93, 86 to 96, 93 to 97 where it gives 35. 8-bit weights gain nothing.
const STREAMS: usize = 4;

/// Blocks of a row from which on they are long: panels of 18 blocks are too short for the processor to see streams, of 48 gain nothing.
const LONG_BLOCKS: usize = 96;

/// Some panels and rows of a product.
pub(crate) struct Task<'a> {
    pub(crate) product: Product<'a>,
    pub(crate) task: usize,
    pub(crate) per_task: usize,
}

impl Kernel for Task<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let p = &self.product;
        let (rows, lanes) = p.extent(self.task, self.per_task);
        let panels = lanes.start / PANEL..lanes.end.div_ceil(PANEL);
        if rows.len() <= S::BLOCK_ROWS {
            // One tile reads all panels as one stream, which the processor fetches ahead by itself: asking for lines in advance made
            // it slower (16 to 18 instead of 25 GB/s a thread on Zen 4).
            return p.tile::<S>(panels, rows, Ahead::NONE);
        }
        for panel in panels {
            p.panel::<S>(panel, rows.clone());
        }
    }
}

impl Product<'_> {
    /// One panel against more rows than a tile has, tile by tile.
    #[inline(always)]
    unsafe fn panel<S: Simd>(&self, panel: usize, rows: Range<usize>) {
        let panel_bytes = self.weight.panel_lines() * LINE;
        let (mut row, mut tile) = (rows.start, 0);
        while row < rows.end {
            // Tiles of even height, as in `gemm`.
            let left = rows.end - row;
            let height = left.div_ceil(left.div_ceil(S::BLOCK_ROWS));
            // Few rows wait for memory, but look at a panel too long for the processor to see a stream: the first two tiles fetch
            // the next panel, half each.
            let ahead = if self.a.m <= FEW_ROWS && tile < 2 {
                let next = self.weight.panel(self.first / PANEL + panel).wrapping_add(panel_bytes);
                Ahead { from: next.wrapping_add(tile * panel_bytes / 2), fetch: true }
            } else {
                Ahead::NONE
            };
            self.tile::<S>(panel..panel + 1, row..row + height, ahead);
            (row, tile) = (row + height, tile + 1);
        }
    }

    /// At most [`Simd::BLOCK_ROWS`] rows against neighbouring panels.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, panels: Range<usize>, rows: Range<usize>, ahead: Ahead) {
        let tile = Tile {
            weight: self.weight.panel(self.first / PANEL + panels.start),
            panel_bytes: self.weight.panel_lines() * LINE,
            ahead,
            blocks: self.a.blocks,
            bytes: self.a.bytes.wrapping_add(rows.start * self.a.stride),
            stride: self.a.stride,
            scales: self.a.scales.wrapping_add(rows.start * self.a.blocks),
            c: self.c.wrapping_add(rows.start * self.c_stride + panels.start * PANEL),
            c_stride: self.c_stride,
            n: self.n.min(panels.end * PANEL) - panels.start * PANEL,
        };
        tile.dispatch::<S>(self.weight.format.layout(), rows.len());
    }
}

/// What a tile fetches while it computes: for each of its blocks half a block of the weights from `from` on, or nothing.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u8,
    fetch: bool,
}

impl Ahead {
    const NONE: Self = Self { from: std::ptr::null(), fetch: false };
}

/// Up to six rows against panels that follow each other.
#[derive(Clone, Copy)]
struct Tile {
    weight: *const u8,
    /// From one panel to the next.
    panel_bytes: usize,
    ahead: Ahead,
    blocks: usize,
    bytes: *const i8,
    stride: usize,
    scales: *const BlockScale,
    c: *mut f32,
    c_stride: usize,
    /// Lanes, 32 a panel.
    n: usize,
}

/// A tile of `ROWS` rows in a layout; numbers, because constants of enum type are not to be had.
struct Sized<const CODE: u8, const SCALE: u8, const ROWS: usize>(Tile);

const FOUR: u8 = Code::Four as u8;
const SIX: u8 = Code::Six as u8;
const EIGHT: u8 = Code::Eight as u8;
const HALF: u8 = Scale::Half as u8;
const HALF_MIN: u8 = Scale::HalfMin as u8;
const SUPER: u8 = Scale::Super as u8;
const SUPER_SPLIT: u8 = Scale::SuperSplit as u8;

impl Tile {
    #[inline(always)]
    unsafe fn dispatch<S: Simd>(self, layout: (Code, Scale), rows: usize) {
        match layout {
            (Code::Four, Scale::Half) => self.height::<S, FOUR, HALF>(rows),
            (Code::Four, Scale::HalfMin) => self.height::<S, FOUR, HALF_MIN>(rows),
            (Code::Four, _) => self.height::<S, FOUR, SUPER>(rows),
            (Code::Six, _) => self.height::<S, SIX, SUPER_SPLIT>(rows),
            (Code::Eight, Scale::Half) => self.height::<S, EIGHT, HALF>(rows),
            (Code::Eight, Scale::HalfMin) => self.height::<S, EIGHT, HALF_MIN>(rows),
            (Code::Eight, _) => self.height::<S, EIGHT, SUPER>(rows),
        }
    }

    #[inline(always)]
    unsafe fn height<S: Simd, const CODE: u8, const SCALE: u8>(self, rows: usize) {
        match (rows, S::BLOCK_ROWS) {
            (1, _) => S::call(Sized::<CODE, SCALE, 1>(self)),
            (2, _) | (.., 2) => S::call(Sized::<CODE, SCALE, 2>(self)),
            (3, _) => S::call(Sized::<CODE, SCALE, 3>(self)),
            (4, _) => S::call(Sized::<CODE, SCALE, 4>(self)),
            (5, _) => S::call(Sized::<CODE, SCALE, 5>(self)),
            _ => S::call(Sized::<CODE, SCALE, 6>(self)),
        }
    }
}

const fn code_of(code: u8) -> Code {
    match code {
        FOUR => Code::Four,
        SIX => Code::Six,
        _ => Code::Eight,
    }
}

const fn scale_of(scale: u8) -> Scale {
    match scale {
        HALF => Scale::Half,
        HALF_MIN => Scale::HalfMin,
        SUPER => Scale::Super,
        _ => Scale::SuperSplit,
    }
}

impl<const CODE: u8, const SCALE: u8, const ROWS: usize> Kernel for Sized<CODE, SCALE, ROWS> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let t = self.0;
        let (mut weight, mut c, mut left) = (t.weight, t.c, t.n);
        if ROWS == 1 && CODE == FOUR && t.blocks >= LONG_BLOCKS {
            while left >= STREAMS * PANEL {
                self.panels_beside::<S>(weight, c);
                weight = weight.wrapping_add(STREAMS * t.panel_bytes);
                c = c.wrapping_add(STREAMS * PANEL);
                left -= STREAMS * PANEL;
            }
        }
        // Between two panels nothing but the sums changes, so that the processor runs into the next one while it ends this one.
        while left > 0 {
            let mut acc = [[S::splat(0.0); 2]; ROWS];
            let mut block = 0;
            while block < t.blocks {
                if t.ahead.fetch {
                    self.fetch::<S>(block);
                }
                self.block::<S>(block, weight, &mut acc);
                block += 1;
            }
            let mut r = 0;
            while r < ROWS {
                let row = c.wrapping_add(r * t.c_stride);
                if left >= PANEL {
                    S::store(row, acc[r][0]);
                    S::store(row.wrapping_add(LANES), acc[r][1]);
                } else {
                    S::store_up_to(row, acc[r][0], left.min(LANES));
                    S::store_up_to(row.wrapping_add(LANES), acc[r][1], left.saturating_sub(LANES));
                }
                r += 1;
            }
            weight = weight.wrapping_add(t.panel_bytes);
            c = c.wrapping_add(PANEL);
            left = left.saturating_sub(PANEL);
        }
    }
}

impl<const CODE: u8, const SCALE: u8, const ROWS: usize> Sized<CODE, SCALE, ROWS> {
    const CODE_KIND: Code = code_of(CODE);
    const SCALE_KIND: Scale = scale_of(SCALE);
    /// Parts of a block with a scale of their own.
    const PARTS: usize = if SCALE == SUPER_SPLIT { 2 } else { 1 };

    /// One row against [`STREAMS`] whole panels: the same sums in the same order as one after the other.
    #[inline(always)]
    unsafe fn panels_beside<S: Simd>(&self, weight: *const u8, c: *mut f32) {
        let mut acc = [[[S::splat(0.0); 2]; ROWS]; STREAMS];
        let mut block = 0;
        while block < self.0.blocks {
            let mut panel = 0;
            while panel < STREAMS {
                self.block::<S>(block, weight.wrapping_add(panel * self.0.panel_bytes), &mut acc[panel]);
                panel += 1;
            }
            block += 1;
        }
        let mut panel = 0;
        while panel < STREAMS {
            S::store(c.wrapping_add(panel * PANEL), acc[panel][0][0]);
            S::store(c.wrapping_add(panel * PANEL + LANES), acc[panel][0][1]);
            panel += 1;
        }
    }

    /// Lines of a chunk.
    const CHUNK: usize = 2 * Self::CODE_KIND.half_lines() + Self::SCALE_KIND.lines();

    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, block: usize) {
        let half = Self::CHUNK.div_ceil(2);
        let from = self.0.ahead.from.wrapping_add(block * Self::CHUNK * LINE / 2);
        let mut line = 0;
        while line < half {
            S::prefetch(from.wrapping_add(line * LINE));
            line += 1;
        }
    }

    #[inline(always)]
    unsafe fn block<S: Simd>(&self, block: usize, weight: *const u8, acc: &mut [[S::V; 2]; ROWS]) {
        let t = &self.0;
        let at = place(Self::CODE_KIND, Self::SCALE_KIND, block);
        let (header, chunk) = (weight.wrapping_add(at.header * LINE), weight.wrapping_add(at.chunk * LINE));
        let scales = [Self::scales::<S>(header, chunk, 0), Self::scales::<S>(header, chunk, 1)];
        let mut part = 0;
        while part < Self::PARTS {
            let sums = self.sums::<S>(chunk, block, part);
            let mut r = 0;
            while r < ROWS {
                let a = &*t.scales.wrapping_add(r * t.blocks + block);
                let step = S::splat(a.step);
                let mut v = 0;
                while v < 2 {
                    acc[r][v] = S::fma(S::to_f32(sums[r][v]), S::mul(scales[v][part], step), acc[r][v]);
                    match Self::SCALE_KIND {
                        Scale::HalfMin => acc[r][v] = S::fma(scales[v][1], S::splat(a.sum), acc[r][v]),
                        Scale::Super => acc[r][v] = S::fma(scales[v][1], S::splat(-a.sum), acc[r][v]),
                        _ => {}
                    }
                    v += 1;
                }
                r += 1;
            }
            part += 1;
        }
    }

    /// The i32 sums of one part of a block, all rows and both halves of the lanes.
    #[inline(always)]
    unsafe fn sums<S: Simd>(&self, chunk: *const u8, block: usize, part: usize) -> [[S::I; 2]; ROWS] {
        let t = &self.0;
        let mut sums = [[S::splat_i32(0); 2]; ROWS];
        let mut r = 0;
        while r < ROWS {
            let a = &*t.scales.wrapping_add(r * t.blocks + block);
            let start = match (Self::CODE_KIND, Self::SCALE_KIND) {
                (Code::Four, Scale::Half) => a.minus_8,
                (Code::Four, _) => 0,
                (Code::Six, _) => a.minus_32[part],
                (Code::Eight, _) if S::OFFSET_TAKEN => 0,
                (Code::Eight, _) => a.minus_128,
            };
            sums[r] = [S::splat_i32(start); 2];
            r += 1;
        }
        let (mut unit, end) = (part * (8 / Self::PARTS), (part + 1) * (8 / Self::PARTS));
        while unit < end {
            let codes = [Self::codes::<S>(chunk, 0, unit), Self::codes::<S>(chunk, 1, unit)];
            r = 0;
            while r < ROWS {
                let s = S::splat_bytes(t.bytes.wrapping_add(r * t.stride + block * BLOCK + unit * 4));
                let mut v = 0;
                while v < 2 {
                    sums[r][v] = match Self::CODE_KIND {
                        Code::Eight => S::dot_offset(sums[r][v], codes[v], s),
                        _ => S::dot(sums[r][v], codes[v], s),
                    };
                    v += 1;
                }
                r += 1;
            }
            unit += 1;
        }
        sums
    }

    /// Four codes of each of 16 lanes: elements `4 unit..4 unit + 4`.
    #[inline(always)]
    unsafe fn codes<S: Simd>(chunk: *const u8, half: usize, unit: usize) -> S::I {
        let line = |which| chunk.wrapping_add(code_line(half, which) * LINE);
        if CODE == EIGHT {
            return S::load_bytes(line(unit));
        }
        let both = S::load_bytes(line(unit % 4));
        let low = if unit < 4 { S::low_nibbles(both) } else { S::high_nibbles(both) };
        if CODE == FOUR {
            return low;
        }
        S::join_bits(low, S::load_bytes(line(4 + unit / 4)), unit % 4)
    }

    /// Scale and minimum, or both scales, of 16 lanes.
    #[inline(always)]
    unsafe fn scales<S: Simd>(header: *const u8, chunk: *const u8, half: usize) -> [S::V; 2] {
        let line = chunk.wrapping_add(2 * Self::CODE_KIND.half_lines() * LINE);
        let halves = |line: *const u8| line.wrapping_add(half * 2 * LANES).cast::<u16>();
        let byte = |line: *const u8, which: usize| line.wrapping_add(which * PANEL + half * LANES);
        match Self::SCALE_KIND {
            Scale::Half => [S::load_f16(halves(line)), S::splat(0.0)],
            Scale::HalfMin => [S::load_f16(halves(line)), S::load_f16(halves(line.wrapping_add(LINE)))],
            Scale::Super => {
                let (d, dmin) = (S::load_f16(halves(header)), S::load_f16(halves(header.wrapping_add(LINE))));
                [S::mul(d, S::load_u8(byte(line, 0))), S::mul(dmin, S::load_u8(byte(line, 1)))]
            }
            Scale::SuperSplit => {
                let d = S::load_f16(halves(header));
                [S::mul(d, S::load_i8(byte(line, 0).cast())), S::mul(d, S::load_i8(byte(line, 1).cast()))]
            }
        }
    }
}
