//! The product of int8 rows with block panels: exact i32 sums per block, one f32 chain over the blocks.
//!
//! One kernel serves one row and thousands: the height of a tile changes nothing, so a row has the same bits in any company.

use super::BLOCK;
use super::blocks::{Code, Scale};
use super::panels::{BlockPanels, LINE, place};
use super::rows::{BlockRows, BlockScale};
use crate::gemm::{PANEL, even_share};
use crate::simd::{Kernel, LANES, Simd};

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

/// Rows up to which weights are expected in memory rather than in a cache, and fetched ahead of their use.
const FEW_ROWS: usize = 48;

/// How far ahead of its use a stream is fetched, in bytes.
const DISTANCE: usize = 8192;

impl Product<'_> {
    /// Panels and row parts of this product's tasks.
    pub(crate) fn tasks(&self, threads: usize) -> (usize, usize) {
        let panels = self.n.div_ceil(PANEL);
        let row_parts = self.a.m.div_ceil(TASK_ROWS);
        if self.a.m <= FEW_ROWS && threads > 1 {
            let per_task = even_share(panels, threads);
            return (panels.div_ceil(per_task) * row_parts, per_task);
        }
        // About eight tasks a thread, so that a disturbed thread does not hold up the rest.
        let wanted = if threads == 1 { 1 } else { (8 * threads).div_ceil(row_parts.max(1)) };
        let per_task = (panels / wanted.max(1)).clamp(1, 64);
        (panels.div_ceil(per_task) * row_parts, per_task)
    }
}

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
        let row_parts = p.a.m.div_ceil(TASK_ROWS);
        let (part, panels) = (self.task % row_parts, self.task / row_parts * self.per_task);
        let rows = part * TASK_ROWS..((part + 1) * TASK_ROWS).min(p.a.m);
        let end = (panels + self.per_task).min(p.n.div_ceil(PANEL));
        let mut panel = panels;
        while panel < end {
            // One or two rows take several panels at a time: more chains in flight, and more streams from memory.
            let wide = match rows.len() {
                1 if end - panel >= 4 => 4,
                1 | 2 if end - panel >= 2 => 2,
                _ => 1,
            };
            p.panels::<S>(panel, wide, rows.clone());
            panel += wide;
        }
    }
}

impl Product<'_> {
    /// `wide` panels from `panel` on against `rows`, tile by tile.
    #[inline(always)]
    unsafe fn panels<S: Simd>(&self, panel: usize, wide: usize, rows: std::ops::Range<usize>) {
        let panel_bytes = self.weight.panel_lines() * LINE;
        let weight = self.weight.panel(self.first / PANEL + panel);
        let (tiles, mut row) = (rows.len().div_ceil(S::BLOCK_ROWS), rows.start);
        while row < rows.end {
            // Tiles of even height, as in `gemm`.
            let left = rows.end - row;
            let height = left.div_ceil(left.div_ceil(S::BLOCK_ROWS));
            // Few rows wait for memory: the first two tiles fetch the next panel, half each; a single tile fetches the next
            // panels when they are short, else some way down these.
            let half = (row - rows.start) / S::BLOCK_ROWS;
            let (ahead, fetch) = match tiles {
                1 if panel_bytes <= 2 * DISTANCE => (weight.wrapping_add(wide * panel_bytes), Fetch::All),
                1 => (weight.wrapping_add(DISTANCE), Fetch::All),
                _ if self.a.m > FEW_ROWS || half > 1 => (weight, Fetch::Nothing),
                _ => (weight.wrapping_add(panel_bytes + half * panel_bytes / 2), Fetch::Half),
            };
            let tile = Tile {
                weight,
                panel_bytes,
                ahead,
                fetch,
                blocks: self.a.blocks,
                bytes: self.a.bytes.wrapping_add(row * self.a.stride),
                stride: self.a.stride,
                scales: self.a.scales.wrapping_add(row * self.a.blocks),
                c: self.c.wrapping_add(row * self.c_stride + panel * PANEL),
                c_stride: self.c_stride,
                n: (self.n - panel * PANEL).min(wide * PANEL),
            };
            tile.dispatch::<S>(self.weight.format.layout(), height, wide);
            row += height;
        }
    }
}

/// How much of the weights ahead a tile fetches for each block it computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fetch {
    Nothing,
    Half,
    All,
}

/// Up to six rows against one panel, or one or two against several.
#[derive(Clone, Copy)]
struct Tile {
    weight: *const u8,
    /// From one panel to the next.
    panel_bytes: usize,
    ahead: *const u8,
    fetch: Fetch,
    blocks: usize,
    bytes: *const i8,
    stride: usize,
    scales: *const BlockScale,
    c: *mut f32,
    c_stride: usize,
    n: usize,
}

/// A tile of `ROWS` rows and `PANELS` panels in a layout; numbers, because constants of enum type are not to be had.
struct Sized<const CODE: u8, const SCALE: u8, const ROWS: usize, const PANELS: usize>(Tile);

const FOUR: u8 = Code::Four as u8;
const SIX: u8 = Code::Six as u8;
const EIGHT: u8 = Code::Eight as u8;
const HALF: u8 = Scale::Half as u8;
const HALF_MIN: u8 = Scale::HalfMin as u8;
const SUPER: u8 = Scale::Super as u8;
const SUPER_SPLIT: u8 = Scale::SuperSplit as u8;

impl Tile {
    #[inline(always)]
    unsafe fn dispatch<S: Simd>(self, layout: (Code, Scale), rows: usize, wide: usize) {
        match layout {
            (Code::Four, Scale::Half) => self.height::<S, FOUR, HALF>(rows, wide),
            (Code::Four, Scale::HalfMin) => self.height::<S, FOUR, HALF_MIN>(rows, wide),
            (Code::Four, _) => self.height::<S, FOUR, SUPER>(rows, wide),
            (Code::Six, _) => self.height::<S, SIX, SUPER_SPLIT>(rows, wide),
            (Code::Eight, Scale::Half) => self.height::<S, EIGHT, HALF>(rows, wide),
            (Code::Eight, Scale::HalfMin) => self.height::<S, EIGHT, HALF_MIN>(rows, wide),
            (Code::Eight, _) => self.height::<S, EIGHT, SUPER>(rows, wide),
        }
    }

    #[inline(always)]
    unsafe fn height<S: Simd, const CODE: u8, const SCALE: u8>(self, rows: usize, wide: usize) {
        match (rows, wide, S::BLOCK_ROWS) {
            (1, 4, _) => S::call(Sized::<CODE, SCALE, 1, 4>(self)),
            (1, 2, _) => S::call(Sized::<CODE, SCALE, 1, 2>(self)),
            (2, 2, _) => S::call(Sized::<CODE, SCALE, 2, 2>(self)),
            (1, ..) => S::call(Sized::<CODE, SCALE, 1, 1>(self)),
            (2, ..) | (.., 2) => S::call(Sized::<CODE, SCALE, 2, 1>(self)),
            (3, ..) => S::call(Sized::<CODE, SCALE, 3, 1>(self)),
            (4, ..) => S::call(Sized::<CODE, SCALE, 4, 1>(self)),
            (5, ..) => S::call(Sized::<CODE, SCALE, 5, 1>(self)),
            _ => S::call(Sized::<CODE, SCALE, 6, 1>(self)),
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

impl<const CODE: u8, const SCALE: u8, const ROWS: usize, const PANELS: usize> Kernel
    for Sized<CODE, SCALE, ROWS, PANELS>
{
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let t = self.0;
        let mut acc = [[[S::splat(0.0); 2]; ROWS]; PANELS];
        let mut block = 0;
        while block < t.blocks {
            let mut p = 0;
            while p < PANELS {
                self.fetch::<S>(block, p * t.panel_bytes);
                self.block::<S>(block, t.weight.wrapping_add(p * t.panel_bytes), &mut acc[p]);
                p += 1;
            }
            block += 1;
        }
        let mut p = 0;
        while p < PANELS {
            let mut r = 0;
            while r < ROWS {
                let mut v = 0;
                while v < 2 {
                    let lane = p * PANEL + v * LANES;
                    let n = t.n.saturating_sub(lane).min(LANES);
                    S::store_up_to(t.c.wrapping_add(r * t.c_stride + lane), acc[p][r][v], n);
                    v += 1;
                }
                r += 1;
            }
            p += 1;
        }
    }
}

impl<const CODE: u8, const SCALE: u8, const ROWS: usize, const PANELS: usize> Sized<CODE, SCALE, ROWS, PANELS> {
    const CODE_KIND: Code = code_of(CODE);
    const SCALE_KIND: Scale = scale_of(SCALE);
    /// Parts of a block with a scale of their own.
    const PARTS: usize = if SCALE == SUPER_SPLIT { 2 } else { 1 };

    /// Lines of a chunk.
    const CHUNK: usize = 2 * Self::CODE_KIND.half_lines() + Self::SCALE_KIND.lines();

    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, block: usize, panel: usize) {
        let t = &self.0;
        if t.fetch == Fetch::Nothing {
            return;
        }
        let half = Self::CHUNK.div_ceil(2);
        let (mut line, lines) = (0, if t.fetch == Fetch::All { 2 } else { 1 });
        let from = t.ahead.wrapping_add(panel + block * Self::CHUNK * LINE * lines / 2);
        while line < half {
            S::prefetch(from.wrapping_add(line * LINE));
            if lines == 2 {
                S::prefetch(from.wrapping_add((half + line) * LINE));
            }
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
        let lines = chunk.wrapping_add(half * Self::CODE_KIND.half_lines() * LINE);
        if CODE == EIGHT {
            return S::load_bytes(lines.wrapping_add(unit * LINE));
        }
        let both = S::load_bytes(lines.wrapping_add(unit % 4 * LINE));
        let low = if unit < 4 { S::low_nibbles(both) } else { S::high_nibbles(both) };
        if CODE == FOUR {
            return low;
        }
        S::join_bits(low, S::load_bytes(lines.wrapping_add((4 + unit / 4) * LINE)), unit % 4)
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
