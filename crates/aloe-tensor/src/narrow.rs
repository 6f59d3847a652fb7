//! Panels of bf16 weights in twelve bits a number, without loss, for weights that are read often and never changed.
//!
//! The upper byte of a number is its sign and its exponent but for the last bit. Those of a weight are few: sixteen of them hold all but some
//! numbers in a hundred thousand, so a panel has a table of its sixteen most frequent ones, and a number is its lower byte and four bits that
//! name an upper one. The others are escapes, kept beside the table with all their bits. A product of one row takes as long as its weights
//! take to come from memory, so this saves it a quarter; the numbers, and so its bits, are those of a plain panel.
//!
//! A panel is a line (64 bytes) of head, lines of escapes, and three lines for each pair of units: two with lower bytes, a unit each, and
//! one that names the upper bytes of both, in the lowest four bits of each byte those of the even unit. A unit's numbers are in the order
//! in which the two interleavings of bytes, of the lower and of the upper half of each 16, give those of its first and second 16 lanes.

use crate::gemm::PANEL;
use crate::pack::{Line, ZERO_LINE};
use crate::simd::{Kernel, LANES, Simd};

/// Upper bytes of a panel's table.
const UPPERS: usize = 16;

/// Numbers of a panel for which it has one line of escapes.
const NUMBERS_PER_LINE: usize = 8192;

/// Lines of a pair of units.
pub(crate) const PAIR_LINES: usize = 3;

/// Units of 32 bits in a pair of units of a panel.
pub(crate) const PAIR: usize = PAIR_LINES * LANES;

/// Where a panel's number of escapes stands in its head, in units of 32 bits: behind the table.
const COUNT: usize = UPPERS / 4;

/// A number whose upper byte is not in its panel's table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Escape {
    pub(crate) unit: u32,
    /// Twice the lane, and 1 for the upper half.
    pub(crate) place: u16,
    pub(crate) bits: u16,
}

const ESCAPES_PER_LINE: usize = size_of::<Line>() / size_of::<Escape>();

/// Where in a line is what belongs to a number of a unit: numbers 0 to 31 are two for each of the first 16 lanes, the others those of the
/// second 16.
#[inline(always)]
pub(crate) fn byte_of(number: usize) -> usize {
    let (second, word) = (number / PANEL, number % PANEL);
    16 * (word / 8) + 8 * second + word % 8
}

fn escape_lines(units: usize) -> usize {
    (units * 2 * PANEL).div_ceil(NUMBERS_PER_LINE)
}

/// Lines of a panel of so many units.
pub(crate) fn panel_lines(units: usize) -> usize {
    1 + escape_lines(units) + units.div_ceil(2) * PAIR_LINES
}

/// From a panel's start to its first pair of units, in units of 32 bits.
#[inline(always)]
pub(crate) fn first_pair(units: usize) -> usize {
    (1 + escape_lines(units)) * LANES
}

/// The escapes of the panel at `b`, in the order of their units.
///
/// # Safety
/// A narrow panel begins at `b` and outlives the slice.
#[inline(always)]
pub(crate) unsafe fn escapes<'a>(b: *const u32) -> &'a [Escape] {
    std::slice::from_raw_parts(b.wrapping_add(LANES).cast(), b.wrapping_add(COUNT).read() as usize)
}

/// The two bf16 of each lane of a unit.
type Halves = [u16; 2 * PANEL];

/// The numbers of a panel that is plain, two lines a unit.
fn halves_of(unit: &[Line]) -> Halves {
    std::array::from_fn(|at| (unit[at / PANEL].0[at % PANEL / 2] >> (16 * (at % 2))) as u16)
}

/// In place of a code: the upper byte is not in the table.
const NO_CODE: u8 = 0x80;

/// The sixteen most frequent upper bytes of a panel, and which of them each one is.
fn table(plain: &[Line]) -> ([u8; UPPERS], [u8; 256]) {
    // Neighbours count apart, as a count waits for the one before it.
    let mut counts = [[0u32; 256]; 4];
    for line in plain {
        for (at, unit) in line.0.iter().enumerate() {
            let [_, low, _, high] = unit.to_le_bytes();
            counts[at % 2][usize::from(low)] += 1;
            counts[2 + at % 2][usize::from(high)] += 1;
        }
    }
    let n = |upper: &u8| counts.iter().map(|counts| counts[usize::from(*upper)]).sum::<u32>();
    let mut order: [u8; 256] = std::array::from_fn(|upper| upper as u8);
    order.sort_by_key(|upper| std::cmp::Reverse(n(upper)));
    let (mut uppers, mut codes) = ([0; UPPERS], [NO_CODE; 256]);
    for (code, &upper) in order.iter().enumerate().take(UPPERS) {
        uppers[code] = upper;
        codes[usize::from(upper)] = code as u8;
    }
    (uppers, codes)
}

/// Writes a plain panel, two lines a unit, into `out` (all of it). False where it has more escapes than there is room for.
pub(crate) fn narrowed(plain: &[Line], out: &mut [Line]) -> bool {
    let units = plain.len() / 2;
    assert_eq!(out.len(), panel_lines(units), "a narrow panel of {units} units");
    let (uppers, codes) = table(plain);
    let (head, pairs) = out.split_at_mut(1 + escape_lines(units));
    let (head, room) = head.split_at_mut(1);
    room.fill(ZERO_LINE);
    let mut n_escapes = 0;
    for (pair, (from, to)) in plain.chunks(4).zip(pairs.chunks_exact_mut(PAIR_LINES)).enumerate() {
        let mut named = [0u8; 2 * PANEL];
        to.fill(ZERO_LINE);
        for (odd, unit) in from.chunks_exact(2).enumerate() {
            let halves = halves_of(unit);
            let mut named_here = halves.map(|bits| codes[usize::from(bits >> 8)]);
            if named_here.iter().fold(0, |all, code| all | code) & NO_CODE != 0 {
                for (at, code) in named_here.iter_mut().enumerate().filter(|(_, code)| **code == NO_CODE) {
                    *code = 0;
                    if let Some(line) = room.get_mut(n_escapes / ESCAPES_PER_LINE) {
                        let slot = n_escapes % ESCAPES_PER_LINE * 2;
                        line.0[slot] = (2 * pair + odd) as u32;
                        line.0[slot + 1] = at as u32 | u32::from(halves[at]) << 16;
                    }
                    n_escapes += 1;
                }
            }
            let mut lower = [0u8; 2 * PANEL];
            for (at, (bits, code)) in halves.iter().zip(named_here).enumerate() {
                lower[byte_of(at)] = *bits as u8;
                named[byte_of(at)] |= code << (4 * odd);
            }
            to[odd] = line_of(&lower);
        }
        to[2] = line_of(&named);
    }
    head[0] = ZERO_LINE;
    for (unit, four) in head[0].0.iter_mut().zip(uppers.as_chunks().0) {
        *unit = u32::from_le_bytes(*four);
    }
    head[0].0[COUNT] = n_escapes as u32;
    n_escapes <= room.len() * ESCAPES_PER_LINE
}

fn line_of(bytes: &[u8; 2 * PANEL]) -> Line {
    let mut line = ZERO_LINE;
    line.0.iter_mut().zip(bytes.as_chunks().0).for_each(|(unit, four)| *unit = u32::from_le_bytes(*four));
    line
}

/// Bits of one lane's units in order, of the panel at `b`.
///
/// # Safety
/// A narrow panel of so many units begins at `b`.
pub(crate) unsafe fn lane_units(b: *const u32, units: usize, lane: usize) -> Vec<u32> {
    let byte = |line: *const u32, at: usize| line.cast::<u8>().wrapping_add(at).read();
    let mut found: Vec<u32> = (0..units)
        .map(|unit| {
            let (pair, odd) = (b.wrapping_add(first_pair(units) + unit / 2 * PAIR), unit % 2);
            let half = |upper: usize| {
                let at = byte_of(2 * lane + upper);
                let code = byte(pair.wrapping_add(2 * LANES), at) >> (4 * odd) & 0xf;
                u32::from(u16::from_le_bytes([byte(pair.wrapping_add(odd * LANES), at), byte(b, usize::from(code))]))
            };
            half(0) | half(1) << 16
        })
        .collect();
    for escape in escapes(b) {
        if usize::from(escape.place) / 2 == lane {
            let (unit, shift) = (&mut found[escape.unit as usize], 16 * u32::from(escape.place % 2));
            *unit = *unit & !(0xffff << shift) | u32::from(escape.bits) << shift;
        }
    }
    found
}

/// Writes the panel at `b` to `out` as a plain one, with a unit more where their number is odd.
pub(crate) struct Widen {
    pub(crate) b: *const u32,
    pub(crate) units: usize,
    pub(crate) out: *mut u32,
}

impl Kernel for Widen {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let uppers = S::upper_bytes(self.b.cast());
        let first = self.b.wrapping_add(first_pair(self.units));
        let mut unit = 0;
        while unit < self.units {
            let pair = S::widen_pair(uppers, first.wrapping_add(unit / 2 * PAIR));
            store_pair::<S>(pair, self.out.wrapping_add(unit * PANEL));
            unit += 2;
        }
        escapes(self.b).iter().for_each(|escape| put(escape, self.out.wrapping_add(escape.unit as usize * PANEL)));
    }
}

/// Both units of a pair, as a plain panel has them.
#[inline(always)]
pub(crate) unsafe fn store_pair<S: Simd>(pair: [[S::V; 2]; 2], out: *mut u32) {
    let mut odd = 0;
    while odd < 2 {
        S::store(out.wrapping_add(odd * PANEL).cast(), pair[odd][0]);
        S::store(out.wrapping_add(odd * PANEL + LANES).cast(), pair[odd][1]);
        odd += 1;
    }
}

/// Puts an escape into its unit.
#[inline(always)]
pub(crate) unsafe fn put(escape: &Escape, unit: *mut u32) {
    unit.cast::<u16>().wrapping_add(usize::from(escape.place)).write(escape.bits);
}

#[cfg(test)]
mod tests;
