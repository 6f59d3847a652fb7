//! Block weights in panels of 32 lanes (rows of the weight), one block of 32 elements after the other.
//!
//! A chunk is one block of all 32 lanes: lines of codes of lanes 0..16 and 16..32 in turn, then scales. In a code line, bytes
//! `4 l..4 l + 4` belong to lane l and are four elements in a row, as the byte dot product wants them. Lines lie in the order in
//! which the product reads them: eight-bit codes in halves made it a third slower on Zen 4, whose prefetcher then saw no stream. Chunks of a panel follow each other, so a
//! product reads its weights as one stream. Bits per weight are those of the stored format (Q5: eight instead of five).

use super::blocks::{Block32, Code, Scale};
use super::{BLOCK, BlockFormat, encode};
use crate::Device;
use crate::gemm::PANEL;
use crate::pack::Line;
use crate::pages::Lines;
use crate::pool::SharedMut;

/// Bytes of a line.
pub(super) const LINE: usize = 64;

impl Code {
    /// Lines of the codes of 16 lanes.
    pub(super) const fn half_lines(self) -> usize {
        match self {
            Code::Four => 4,
            Code::Six => 6,
            Code::Eight => 8,
        }
    }
}

impl Scale {
    /// Lines of a chunk's scales.
    pub(super) const fn lines(self) -> usize {
        match self {
            Scale::HalfMin => 2,
            _ => 1,
        }
    }

    /// Chunks that share a header, and its lines.
    pub(super) const fn header(self) -> (usize, usize) {
        match self {
            Scale::Half | Scale::HalfMin => (1, 0),
            Scale::Super => (8, 2),
            Scale::SuperSplit => (8, 1),
        }
    }
}

/// The weight `[lanes, k]` in panels.
#[derive(Clone, Debug)]
pub(crate) struct BlockPanels {
    pub(crate) format: BlockFormat,
    pub(crate) lanes: usize,
    pub(crate) k: usize,
    lines: Lines,
}

/// Where a chunk lies in its panel, in lines.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) header: usize,
    pub(super) chunk: usize,
}

/// Line `which` of the codes of one half of the lanes, in its chunk.
#[inline(always)]
pub(super) const fn code_line(half: usize, which: usize) -> usize {
    2 * which + half
}

/// Place of chunk `block`.
#[inline(always)]
pub(super) const fn place(code: Code, scale: Scale, block: usize) -> Place {
    let (shared, header) = scale.header();
    let chunk = 2 * code.half_lines() + scale.lines();
    let start = block / shared * (header + shared * chunk);
    Place { header: start, chunk: start + header + block % shared * chunk }
}

impl BlockPanels {
    /// From the stored blocks of each row, in row order; a row's last block may reach past k, with zeros.
    pub(crate) fn new(device: &Device, format: BlockFormat, (lanes, k): (usize, usize), rows: &[&[u8]]) -> Self {
        let row_bytes = k.div_ceil(format.block_len()) * format.block_bytes();
        assert!(rows.len() == lanes && rows.iter().all(|r| r.len() == row_bytes), "rows of {row_bytes} bytes");
        Self::filled(device, format, (lanes, k), &|lines, panel| {
            for (lane, row) in rows.iter().skip(panel * PANEL).take(PANEL).enumerate() {
                put_row(lines, format, lane, row, k);
            }
        })
    }

    /// Rounds rows to blocks as they are put in; `read` fills one row `[k]`.
    pub(crate) fn encode(
        device: &Device,
        format: BlockFormat,
        (lanes, k): (usize, usize),
        read: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Self {
        Self::filled(device, format, (lanes, k), &|lines, panel| {
            let mut values = vec![0.0; k.next_multiple_of(BLOCK)];
            for lane in 0..PANEL.min(lanes - panel * PANEL) {
                read(panel * PANEL + lane, &mut values[..k]);
                put_row(lines, format, lane, &encode(format, &values), k);
            }
        })
    }

    /// Panels whose lanes `fill` puts in, panel by panel; lanes past the last are zero.
    fn filled(
        device: &Device,
        format: BlockFormat,
        (lanes, k): (usize, usize),
        fill: &(dyn Fn(&mut [Line], usize) + Sync),
    ) -> Self {
        let size = panel_lines(format, k.div_ceil(BLOCK));
        let lines = Lines::kept(lanes.div_ceil(PANEL) * size);
        let mut panels = Self { format, lanes, k, lines };
        let shared = SharedMut::new(&mut panels.lines);
        device.for_each(lanes.div_ceil(PANEL), &|panel| {
            // SAFETY: each index has its own panel.
            let lines = unsafe { shared.slice(panel * size, size) };
            fill(lines, panel);
            for lane in lanes - (panel * PANEL).min(lanes)..PANEL {
                for block in 0..k.div_ceil(BLOCK) {
                    put(lines, format.layout(), (lane, block), &Block32::zero(format.layout()));
                }
            }
        });
        panels
    }

    /// Blocks of a row.
    pub(crate) fn blocks(&self) -> usize {
        self.k.div_ceil(BLOCK)
    }

    /// Lines of one panel.
    pub(crate) fn panel_lines(&self) -> usize {
        panel_lines(self.format, self.blocks())
    }

    pub(crate) fn panel(&self, panel: usize) -> *const u8 {
        self.lines[panel * self.panel_lines()..].as_ptr().cast()
    }

    pub(crate) fn nbytes(&self) -> usize {
        self.lines.len() * LINE
    }

    /// Elements `32 block..32 (block + 1)` of row `lane` as f32, zero past k.
    pub(crate) fn block(&self, lane: usize, block: usize, out: &mut [f32; BLOCK]) {
        let (layout, size) = (self.format.layout(), self.panel_lines());
        let lines = &self.lines[lane / PANEL * size..][..size];
        if layout != (Code::Eight, Scale::Half) {
            *out = get(lines, layout, (lane % PANEL, block)).values(layout);
            return;
        }
        // The format of `--quantize q8` and of training, read by words: a word holds four elements of a lane.
        let (lane, chunk) = (lane % PANEL, place(layout.0, layout.1, block).chunk);
        let codes = (0..8).map(|which| &lines[chunk + code_line(lane / 16, which)]);
        let scale = lines[chunk + 16].0[lane / 2] >> (lane % 2 * 16) & 0xffff;
        let d = super::f16_to_f32(scale as u16);
        for (out, line) in out.chunks_exact_mut(4).zip(codes) {
            let word = line.0[lane % 16];
            out.iter_mut().enumerate().for_each(|(i, o)| *o = d * ((word >> (8 * i) & 0xff) as i32 - 128) as f32);
        }
    }

    /// Row `lane` of the weight as f32.
    pub(crate) fn row(&self, lane: usize, out: &mut [f32]) {
        let (layout, size) = (self.format.layout(), self.panel_lines());
        let lines = &self.lines[lane / PANEL * size..][..size];
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            out.copy_from_slice(&get(lines, layout, (lane % PANEL, block)).values(layout)[..out.len()]);
        }
    }
}

fn panel_lines(format: BlockFormat, blocks: usize) -> usize {
    let (code, scale) = format.layout();
    place(code, scale, blocks.next_multiple_of(scale.header().0)).header
}

fn byte(lines: &mut [Line], line: usize, at: usize) -> (&mut u32, u32) {
    (&mut lines[line].0[at / 4], at as u32 % 4 * 8)
}

fn put_bits(lines: &mut [Line], line: usize, at: usize, bits: u32) {
    let (word, shift) = byte(lines, line, at);
    *word |= bits << shift;
}

fn get_byte(lines: &[Line], line: usize, at: usize) -> u8 {
    (lines[line].0[at / 4] >> (at % 4 * 8)) as u8
}

fn put_row(lines: &mut [Line], format: BlockFormat, lane: usize, row: &[u8], k: usize) {
    for block in 0..k.div_ceil(BLOCK) {
        put(lines, format.layout(), (lane, block), &format.unpack(row, block));
    }
}

/// Writes a block into lines that are still zero there.
fn put(lines: &mut [Line], (code, scale): (Code, Scale), (lane, block): (usize, usize), b: &Block32) {
    let Place { header, chunk } = place(code, scale, block);
    for i in 0..BLOCK {
        let (unit, at, value) = (i / 4, lane % 16 * 4 + i % 4, b.codes[i] as u32);
        let line = |which| chunk + code_line(lane / 16, which);
        if code == Code::Eight {
            put_bits(lines, line(unit), at, value);
            continue;
        }
        put_bits(lines, line(unit % 4), at, (value & 15) << (unit / 4 * 4));
        if code == Code::Six {
            put_bits(lines, line(4 + unit / 4), at, (value >> 4) << (unit % 4 * 2));
        }
    }
    let scales = chunk + 2 * code.half_lines();
    let [d, m] = b.halves.map(u32::from);
    match scale {
        Scale::Half => put_bits(lines, scales, 2 * lane, d),
        Scale::HalfMin => {
            put_bits(lines, scales, 2 * lane, d);
            put_bits(lines, scales + 1, 2 * lane, m);
        }
        Scale::Super | Scale::SuperSplit => {
            put_bits(lines, scales, lane, b.bytes[0] as u32);
            put_bits(lines, scales, PANEL + lane, b.bytes[1] as u32);
            if block.is_multiple_of(8) {
                put_bits(lines, header, 2 * lane, d);
                if scale == Scale::Super {
                    put_bits(lines, header + 1, 2 * lane, m);
                }
            }
        }
    }
}

fn get(lines: &[Line], (code, scale): (Code, Scale), (lane, block): (usize, usize)) -> Block32 {
    let Place { header, chunk } = place(code, scale, block);
    let codes = std::array::from_fn(|i| {
        let (unit, at) = (i / 4, lane % 16 * 4 + i % 4);
        let line = |which| chunk + code_line(lane / 16, which);
        if code == Code::Eight {
            return get_byte(lines, line(unit), at);
        }
        let low = get_byte(lines, line(unit % 4), at) >> (unit / 4 * 4) & 15;
        match code {
            Code::Six => low | (get_byte(lines, line(4 + unit / 4), at) >> (unit % 4 * 2) & 3) << 4,
            _ => low,
        }
    });
    let scales = chunk + 2 * code.half_lines();
    let half = |line: usize| u16::from_le_bytes([get_byte(lines, line, 2 * lane), get_byte(lines, line, 2 * lane + 1)]);
    let (mut halves, mut bytes) = ([0; 2], [0; 2]);
    match scale {
        Scale::Half => halves[0] = half(scales),
        Scale::HalfMin => halves = [half(scales), half(scales + 1)],
        Scale::Super | Scale::SuperSplit => {
            bytes = [get_byte(lines, scales, lane), get_byte(lines, scales, PANEL + lane)];
            halves[0] = half(header);
            if scale == Scale::Super {
                halves[1] = half(header + 1);
            }
        }
    }
    Block32 { codes, halves, bytes }
}
