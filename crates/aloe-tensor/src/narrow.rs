//! Panels of bf16 weights in twelve bits a number, without loss, for weights that are read often and never changed.
//!
//! The exponents of a weight's numbers are few: sixteen of them hold all but one number in ten thousand, so a panel has a table of its
//! sixteen most frequent exponents, and a number is a sign, seven bits of mantissa and four bits that name an exponent. The others are
//! escapes, kept beside the table with all their bits. A product of one row takes as long as its weights take to come from memory, so
//! this saves it a quarter; the numbers, and so its bits, are those of a plain panel.
//!
//! A panel is a line (64 bytes) of head, lines of escapes, and three lines for each pair of units: two with signs and mantissas, a unit
//! each, and one that names the exponents of both. A unit's line has 16-bit words: word j is what word j of the unit's first and of its
//! second half (16 lanes each) have beside their exponents, the first as it stands in bf16, the second with its bytes swapped. Word j of
//! the third line names their exponents in the order first and second half of the even unit, then of the odd one, lowest bits first.

use crate::gemm::PANEL;
use crate::pack::{Line, ZERO_LINE};
use crate::simd::{Kernel, LANES, Simd};

/// Exponents of a panel's table.
const EXPONENTS: usize = 16;

/// Sign and mantissa of a bf16.
const SIGN_AND_MANTISSA: u16 = 0x807f;

/// Numbers of a panel for which it has one line of escapes.
const NUMBERS_PER_LINE: usize = 8192;

/// Lines of a pair of units.
pub(crate) const PAIR_LINES: usize = 3;

/// Units of 32 bits in a pair of units of a panel.
pub(crate) const PAIR: usize = PAIR_LINES * LANES;

/// Where a panel's number of escapes stands in its head, in units of 32 bits: behind the table.
const COUNT: usize = EXPONENTS / 2;

/// A number whose exponent is not in its panel's table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Escape {
    pub(crate) unit: u32,
    /// Twice the lane, and 1 for the upper half.
    pub(crate) place: u16,
    pub(crate) bits: u16,
}

const ESCAPES_PER_LINE: usize = size_of::<Line>() / size_of::<Escape>();

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

fn exponent(bits: u16) -> usize {
    usize::from(bits >> 7 & 0xff)
}

/// In place of a code: the exponent is not in the table.
const NO_CODE: u8 = 0x80;

/// The sixteen most frequent exponents of a panel, and which of them each exponent is.
fn table(plain: &[Line]) -> ([u16; EXPONENTS], [u8; 256]) {
    // Neighbours count apart, as a count waits for the one before it.
    let mut counts = [[0u32; 256]; 4];
    for line in plain {
        for (at, unit) in line.0.iter().enumerate() {
            counts[at % 2][exponent(*unit as u16)] += 1;
            counts[2 + at % 2][exponent((*unit >> 16) as u16)] += 1;
        }
    }
    let n = |e: usize| counts.iter().map(|counts| counts[e]).sum::<u32>();
    let mut order: [usize; 256] = std::array::from_fn(|e| e);
    order.sort_by_key(|&e| std::cmp::Reverse(n(e)));
    let (mut exponents, mut codes) = ([0; EXPONENTS], [NO_CODE; 256]);
    for (code, &e) in order.iter().enumerate().take(EXPONENTS) {
        exponents[code] = (e as u16) << 7;
        codes[e] = code as u8;
    }
    (exponents, codes)
}

/// Writes a plain panel, two lines a unit, into `out` (all of it). False where it has more escapes than there is room for.
pub(crate) fn narrowed(plain: &[Line], out: &mut [Line]) -> bool {
    let units = plain.len() / 2;
    assert_eq!(out.len(), panel_lines(units), "a narrow panel of {units} units");
    let (exponents, codes) = table(plain);
    let (head, pairs) = out.split_at_mut(1 + escape_lines(units));
    let (head, room) = head.split_at_mut(1);
    room.fill(ZERO_LINE);
    let mut n_escapes = 0;
    for (pair, (from, to)) in plain.chunks(4).zip(pairs.chunks_exact_mut(PAIR_LINES)).enumerate() {
        let mut named = [0u16; PANEL];
        to.fill(ZERO_LINE);
        for (odd, unit) in from.chunks_exact(2).enumerate() {
            let halves = halves_of(unit);
            let mut named_here = halves.map(|bits| codes[exponent(bits)]);
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
            let rest = |at: usize| halves[at] & SIGN_AND_MANTISSA;
            to[odd] = line_of(&std::array::from_fn(|at| rest(at) | rest(PANEL + at).rotate_right(8)));
            for (at, named) in named.iter_mut().enumerate() {
                *named |= u16::from(named_here[at] | named_here[PANEL + at] << 4) << (8 * odd);
            }
        }
        to[2] = line_of(&named);
    }
    head[0] = ZERO_LINE;
    for (unit, pair) in head[0].0.iter_mut().zip(exponents.chunks_exact(2)) {
        *unit = u32::from(pair[0]) | u32::from(pair[1]) << 16;
    }
    head[0].0[COUNT] = n_escapes as u32;
    n_escapes <= room.len() * ESCAPES_PER_LINE
}

fn line_of(words: &[u16; PANEL]) -> Line {
    Line(std::array::from_fn(|at| u32::from(words[2 * at]) | u32::from(words[2 * at + 1]) << 16))
}

/// Bits of one lane's units in order, of the panel at `b`.
///
/// # Safety
/// A narrow panel of so many units begins at `b`.
pub(crate) unsafe fn lane_units(b: *const u32, units: usize, lane: usize) -> Vec<u32> {
    let words = |line: *const u32, at: usize| line.cast::<u16>().wrapping_add(at).read();
    let mut found: Vec<u32> = (0..units)
        .map(|unit| {
            let (pair, odd) = (b.wrapping_add(first_pair(units) + unit / 2 * PAIR), unit % 2);
            let half = |upper: usize| {
                let (word, second) = ((2 * lane + upper) % PANEL, lane / LANES);
                let code = words(pair.wrapping_add(2 * LANES), word) >> (8 * odd + 4 * second) & 0xf;
                let rest = words(pair.wrapping_add(odd * LANES), word).rotate_left(8 * second as u32);
                u32::from(rest & SIGN_AND_MANTISSA | words(b, usize::from(code)))
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
        let exponents = S::exponents(self.b.cast());
        let first = self.b.wrapping_add(first_pair(self.units));
        let mut unit = 0;
        while unit < self.units {
            let pair = S::widen_pair(exponents, first.wrapping_add(unit / 2 * PAIR));
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
