//! Operands of the matrix product laid out as `gemm` reads them: panels of 32 lanes for B, padded rows for A.

use crate::device::{Device, Isa};
use crate::dither::{DitherRow, dithered};
use crate::gemm::{NARROW, PANEL, units_of};
use crate::narrow;
use crate::pages::Lines;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd};
use crate::tensor::{Dtype, bf16_from_f32, f32_from_bf16};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A cache line of units; a vector of lines is aligned for the vector loads.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; LANES]);

pub(crate) const ZERO_LINE: Line = Line([0; LANES]);

/// Numbers to pack.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    F32(&'a [f32]),
    /// f32 masters: in bf16 by [`crate::dither`].
    Masters(&'a [f32]),
    Bf16(&'a [u16]),
    /// bf16 as a file holds it: little-endian pairs of bytes, at any address.
    Bf16Bytes(&'a [u8]),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Source::F32(data) | Source::Masters(data) => data.len(),
            Source::Bf16(data) => data.len(),
            Source::Bf16Bytes(data) => data.len() / 2,
        }
    }

    /// Elements `from..from + n` in the product's type, as units; a missing last half is zero.
    fn units(&self, dtype: Dtype, from: usize, n: usize, out: &mut [u32]) {
        let bf16 = |i: usize| match self {
            Source::F32(data) => bf16_from_f32(data[from + i]),
            Source::Masters(data) => bf16_from_f32(dithered(data[from + i], (from + i) as u32)),
            Source::Bf16(data) => data[from + i],
            Source::Bf16Bytes(data) => u16::from_le_bytes([data[2 * (from + i)], data[2 * (from + i) + 1]]),
        };
        match dtype {
            Dtype::F32 => match self {
                Source::F32(data) | Source::Masters(data) => {
                    out.iter_mut().zip(&data[from..from + n]).for_each(|(o, v)| *o = v.to_bits());
                }
                Source::Bf16(_) | Source::Bf16Bytes(_) => {
                    out.iter_mut().take(n).enumerate().for_each(|(i, o)| *o = f32_from_bf16(bf16(i)).to_bits());
                }
            },
            Dtype::Bf16 => {
                if let Source::Bf16Bytes(data) = self {
                    let (pairs, last) = data[2 * from..2 * (from + n)].as_chunks::<4>();
                    out.iter_mut().zip(pairs).for_each(|(o, pair)| *o = u32::from_le_bytes(*pair));
                    if let [low, high] = last {
                        out[n / 2] = u32::from(u16::from_le_bytes([*low, *high]));
                    }
                    return;
                }
                for (u, o) in out[..n.div_ceil(2)].iter_mut().enumerate() {
                    let high = if 2 * u + 1 < n { bf16(2 * u + 1) } else { 0 };
                    *o = bf16(2 * u) as u32 | (high as u32) << 16;
                }
            }
        }
    }
}

/// The B operand in panels of 32 lanes: unit u of lane l of panel p at `(p * units + u) * 32 + l`, zero past the last lane; or in twelve
/// bits a number, as `narrow.rs` says.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    pub(crate) dtype: Dtype,
    pub(crate) lanes: usize,
    pub(crate) units: usize,
    is_narrow: bool,
    lines: Lines,
}

impl Panels {
    /// Empty panels for `lanes` lanes of `elements` numbers each, for one operation.
    pub(crate) fn new(dtype: Dtype, lanes: usize, elements: usize) -> Self {
        Self::over(dtype, lanes, elements, Lines::passing)
    }

    /// The same for a weight.
    pub(crate) fn kept(dtype: Dtype, lanes: usize, elements: usize) -> Self {
        Self::over(dtype, lanes, elements, Lines::kept)
    }

    fn over(dtype: Dtype, lanes: usize, elements: usize, lines: impl FnOnce(usize) -> Lines) -> Self {
        let units = units_of(dtype, elements);
        Self { dtype, lanes, units, is_narrow: false, lines: lines(lanes.div_ceil(PANEL) * units * PANEL / LANES) }
    }

    /// Panels that `write` fills entirely, given their start and the units from one panel to the next.
    ///
    /// # Safety
    /// `write` writes all 32 lanes of every unit of every panel.
    pub(crate) unsafe fn written(
        dtype: Dtype,
        lanes: usize,
        elements: usize,
        write: impl FnOnce(SharedMut<u32>, usize),
    ) -> Self {
        let units = units_of(dtype, elements);
        let n = lanes.div_ceil(PANEL) * units * PANEL / LANES;
        let lines = Lines::written(n, |start| write(SharedMut::from_raw(start.cast(), n * LANES), units * PANEL));
        Self { dtype, lanes, units, is_narrow: false, lines }
    }

    /// The rows of a bf16 matrix `[lanes, k]` in narrow panels, for a weight; `None` where a panel has too many numbers beside its table.
    pub(crate) fn narrowed(device: &Device, source: Source, (lanes, k): (usize, usize)) -> Option<Self> {
        assert_eq!(source.len(), lanes * k, "packing rows");
        let units = units_of(Dtype::Bf16, k);
        let size = narrow::panel_lines(units);
        let mut lines = Lines::kept(lanes.div_ceil(PANEL) * size);
        let (out, all_fit) = (SharedMut::new(&mut lines), AtomicBool::new(true));
        device.for_each(lanes.div_ceil(PANEL), &|panel| {
            if !all_fit.load(Ordering::Relaxed) {
                return;
            }
            let rows = panel * PANEL..lanes.min((panel + 1) * PANEL);
            let mut plain = vec![ZERO_LINE; units * PANEL / LANES];
            rows_into_panel(device.isa(), (source, Dtype::Bf16), rows, k, &mut plain);
            // SAFETY: each index has its own panel.
            if !narrow::narrowed(&plain, unsafe { out.slice(panel * size, size) }) {
                all_fit.store(false, Ordering::Relaxed);
            }
        });
        all_fit.into_inner().then_some(Self { dtype: Dtype::Bf16, lanes, units, is_narrow: true, lines })
    }

    /// Whether the panels are narrow.
    pub(crate) fn is_narrow(&self) -> bool {
        self.is_narrow
    }

    /// Narrow panels as plain ones, for one operation.
    pub(crate) fn widened(&self, device: &Device) -> Self {
        assert!(self.is_narrow, "panels that are plain");
        let (isa, units) = (device.isa(), self.units);
        // SAFETY: the loop writes all units of all panels.
        unsafe {
            Self::written(self.dtype, self.lanes, 2 * units, |out, size| {
                device.for_each(self.lanes.div_ceil(PANEL), &|panel| {
                    let b = self.as_ptr().wrapping_add(panel * self.panel_stride());
                    let out = out.ptr().wrapping_add(panel * size);
                    if units.is_multiple_of(2) {
                        return isa.run(narrow::Widen { b, units, out });
                    }
                    // A pair has two units, of which the last is not wanted: it is the next panel's place.
                    let mut lines = vec![ZERO_LINE; (units + 1) * PANEL / LANES];
                    isa.run(narrow::Widen { b, units, out: lines.as_mut_ptr().cast() });
                    out.copy_from_nonoverlapping(lines.as_ptr().cast(), size);
                });
            })
        }
    }

    pub(crate) fn as_ptr(&self) -> *const u32 {
        self.lines.as_ptr().cast()
    }

    pub(crate) fn nbytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Units of 32 bits from one panel to the next.
    pub(crate) fn panel_stride(&self) -> usize {
        if self.is_narrow { narrow::panel_lines(self.units) * LANES } else { self.units * PANEL }
    }

    /// Of a plain panel from one unit to the next; narrow ones say so.
    pub(crate) fn unit_stride(&self) -> usize {
        if self.is_narrow { NARROW } else { PANEL }
    }

    /// Bits of the units of one lane, in order.
    pub(crate) fn lane_units(&self, lane: usize) -> impl Iterator<Item = u32> + '_ {
        let (panel, at) = (lane / PANEL, lane % PANEL);
        let narrow = self.is_narrow.then(|| {
            let b = self.as_ptr().wrapping_add(panel * self.panel_stride());
            // SAFETY: the panel is one of ours.
            unsafe { narrow::lane_units(b, self.units, at) }
        });
        let first = panel * self.units * PANEL / LANES + at / LANES;
        (0..self.units).map(move |u| match &narrow {
            Some(units) => units[u],
            None => self.lines[first + u * PANEL / LANES].0[at % LANES],
        })
    }

    fn panels_mut(&mut self) -> (SharedMut<Line>, usize) {
        assert!(!self.is_narrow, "narrow panels are written once");
        let size = self.units * PANEL / LANES;
        (SharedMut::new(&mut self.lines), size)
    }

    /// Lanes are the rows of a `[lanes, k]` matrix.
    pub(crate) fn fill_from_rows(&mut self, device: &Device, source: Source, k: usize) {
        assert_eq!((source.len(), self.units), (self.lanes * k, units_of(self.dtype, k)), "packing rows");
        let (lanes, dtype, isa) = (self.lanes, self.dtype, device.isa());
        let (out, size) = self.panels_mut();
        device.for_each(lanes.div_ceil(PANEL), &|panel| {
            // SAFETY: each index has its own panel.
            let lines = unsafe { out.slice(panel * size, size) };
            rows_into_panel(isa, (source, dtype), panel * PANEL..lanes.min((panel + 1) * PANEL), k, lines);
        });
    }

    /// Lanes are the columns of a `[r, lanes]` matrix.
    pub(crate) fn fill_from_columns(&mut self, device: &Device, source: Source, r: usize) {
        assert_eq!((source.len(), self.units), (self.lanes * r, units_of(self.dtype, r)), "packing columns");
        let (lanes, dtype, units, isa) = (self.lanes, self.dtype, self.units, device.isa());
        let (out, size) = self.panels_mut();
        device.for_each(lanes.div_ceil(PANEL), &|panel| {
            // SAFETY: each index has its own panel.
            let lines = unsafe { out.slice(panel * size, size) };
            let (first, width) = (panel * PANEL, PANEL.min(lanes - panel * PANEL));
            if let (Source::F32(x), Dtype::Bf16) = (source, dtype) {
                let pairs = PairRows { x: x[first..].as_ptr(), stride: lanes, rows: r, width, out_stride: PANEL };
                // SAFETY: `width` columns of all r rows, and all units of the panel.
                unsafe { isa.run(pairs.onto(lines.as_mut_ptr().cast())) };
                return;
            }
            for u in 0..units {
                let unit = &mut lines[u * PANEL / LANES..(u + 1) * PANEL / LANES];
                let mut bits = [0u32; PANEL];
                column_units(source, dtype, (u, r), (first, width, lanes), &mut bits);
                unit[0].0.copy_from_slice(&bits[..LANES]);
                unit[1].0.copy_from_slice(&bits[LANES..]);
            }
        });
    }

    /// bf16 panels of a `[r, lanes]` matrix that is read 32 elements at a time: `read` gives those of (panel, row).
    pub(crate) fn fill_blocks(
        &mut self,
        device: &Device,
        r: usize,
        read: &(dyn Fn(usize, usize, &mut [f32; PANEL]) + Sync),
    ) {
        assert_eq!((self.dtype, self.units), (Dtype::Bf16, units_of(Dtype::Bf16, r)), "packing blocks");
        let (lanes, isa) = (self.lanes, device.isa());
        let (out, size) = self.panels_mut();
        device.for_each(lanes.div_ceil(PANEL), &|panel| {
            // SAFETY: each index has its own panel.
            let lines = unsafe { out.slice(panel * size, size) };
            let mut rows = vec![[0.0f32; PANEL]; r];
            rows.iter_mut().enumerate().for_each(|(row, values)| read(panel, row, values));
            let width = PANEL.min(lanes - panel * PANEL);
            let x = rows.as_ptr().cast();
            let pairs = PairRows { x, stride: PANEL, rows: r, width, out_stride: PANEL };
            // SAFETY: `width` columns of all r rows, and all units of the panel.
            unsafe { isa.run(pairs.onto(lines.as_mut_ptr().cast())) }
        });
    }
}

/// Rows of a matrix with k columns, 32 at most, as a panel.
fn rows_into_panel(isa: Isa, (source, dtype): (Source, Dtype), rows: Range<usize>, k: usize, lines: &mut [Line]) {
    let units = units_of(dtype, k);
    let stride = units.next_multiple_of(LANES);
    assert_eq!(lines.len(), units * PANEL / LANES, "a panel of {units} units");
    let mut units_of_rows = vec![0u32; PANEL * stride];
    let mut row_of_copies = vec![0f32; if matches!(source, Source::Masters(_)) { k } else { 0 }];
    for (i, row) in rows.zip(units_of_rows.chunks_exact_mut(stride.max(1))) {
        let from = i * k;
        match (source, dtype) {
            (Source::F32(data), Dtype::Bf16) => {
                let x = data[from..from + k].as_ptr();
                // SAFETY: k elements to read; a row's stride holds k rounded up to 32.
                unsafe { isa.run(RoundRow { source: PlainRow(x), k, out: row.as_mut_ptr().cast() }) }
            }
            (Source::Masters(data), Dtype::Bf16) => {
                let copies = &mut row_of_copies[..];
                // SAFETY: safe code; the copies are numbers of bf16, which rounding leaves as they are (subnormal ones may become zero); a row's
                // stride holds k rounded up to 32.
                unsafe {
                    isa.run(DitherRow { values: &data[from..from + k], first: from, out: &mut *copies });
                    isa.run(RoundRow { source: PlainRow(copies.as_ptr()), k, out: row.as_mut_ptr().cast() });
                }
            }
            _ => source.units(dtype, from, k, row),
        }
    }
    // SAFETY: 32 rows of `stride` units are there to read, and `units` pairs of lines to write.
    unsafe { isa.run(RowsToPanel { rows: units_of_rows.as_ptr(), stride, units, out: lines.as_mut_ptr().cast() }) }
}

/// Unit `u` of columns `first..first + width` of a matrix with `r` rows of `stride` elements.
#[inline(always)]
fn column_units(
    source: Source,
    dtype: Dtype,
    (u, r): (usize, usize),
    (first, width, stride): (usize, usize, usize),
    out: &mut [u32],
) {
    match (dtype, source) {
        (Dtype::F32, _) => source.units(dtype, u * stride + first, width, out),
        (Dtype::Bf16, Source::F32(_)) => unreachable!("f32 rows are paired by `PairRows`"),
        (Dtype::Bf16, Source::Bf16Bytes(_) | Source::Masters(_)) => {
            unreachable!("bytes of a file and masters are packed by rows alone")
        }
        (Dtype::Bf16, Source::Bf16(data)) => {
            let low = &data[2 * u * stride + first..][..width];
            let high = (2 * u + 1 < r).then(|| &data[(2 * u + 1) * stride + first..][..width]);
            (0..width).for_each(|i| out[i] = low[i] as u32 | high.map_or(0, |h| (h[i] as u32) << 16));
        }
    }
}

/// Transposes 32 rows into a panel, 16 units at a time.
struct RowsToPanel {
    rows: *const u32,
    stride: usize,
    units: usize,
    out: *mut u32,
}

impl Kernel for RowsToPanel {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for half in 0..PANEL / LANES {
            let mut unit = 0;
            while unit < self.units {
                let mut block = [S::splat(0.0); LANES];
                for (i, row) in block.iter_mut().enumerate() {
                    *row = S::load(self.rows.wrapping_add((half * LANES + i) * self.stride + unit).cast());
                }
                S::transpose(&mut block);
                for (i, row) in block.iter().enumerate().take(self.units - unit) {
                    S::store(self.out.wrapping_add((unit + i) * PANEL + half * LANES).cast(), *row);
                }
                unit += LANES;
            }
        }
    }
}

/// The A operand: what to pass to `Gemm` as `a`, `a_stride` and `a_by_unit`.
pub(crate) struct Rows<'a> {
    pub(crate) a: *const u32,
    pub(crate) stride: usize,
    pub(crate) by_unit: bool,
    pub(crate) units: usize,
    _owner: std::marker::PhantomData<&'a [u32]>,
}

impl Rows<'_> {
    /// Rows `stride` units apart, each with `units` units.
    pub(crate) fn new(a: *const u32, stride: usize, units: usize) -> Self {
        Self { a, stride, by_unit: false, units, _owner: std::marker::PhantomData }
    }

    /// The same rows with units `first..first + n` alone.
    pub(crate) fn units(&self, first: usize, n: usize) -> Self {
        assert!(first + n <= self.units && !self.by_unit, "units {first}..{} of {}", first + n, self.units);
        Self { a: self.a.wrapping_add(first), units: n, ..*self }
    }
}

thread_local! {
    /// Reused, because fresh memory costs more than the rounding itself.
    static SCRATCH: std::cell::RefCell<Vec<Line>> = const { std::cell::RefCell::new(Vec::new()) };
}

pub(crate) fn with_scratch<R>(lines: usize, body: impl FnOnce(&mut [Line]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < lines {
            scratch.clear();
            scratch.resize(lines, ZERO_LINE);
        }
        body(&mut scratch[..lines])
    })
}

/// Units of a padded row: an odd number of cache lines, so that rows do not fall on the same cache sets.
pub(crate) fn padded(units: usize) -> usize {
    (units.div_ceil(LANES) | 1) * LANES
}

/// One row of an operand before it is rounded: where its numbers come from, 16 at a time.
pub(crate) trait RowSource: Copy {
    /// What the whole row has to say before its first lanes are asked for.
    ///
    /// # Safety
    /// The instruction set is available; the row has `k` numbers to read.
    #[inline(always)]
    unsafe fn begin<S: Simd>(self, k: usize) -> f32 {
        let _ = k;
        0.0
    }

    /// Elements `at..at + n`, `n <= 16`, the lanes past them zero; `begun` is what `begin` returned.
    ///
    /// # Safety
    /// As for `begin`, and the elements belong to the row.
    unsafe fn lanes<S: Simd>(self, begun: f32, at: usize, n: usize) -> S::V;
}

/// A row that lies in memory as it is.
#[derive(Clone, Copy)]
pub(crate) struct PlainRow(pub(crate) *const f32);

impl RowSource for PlainRow {
    #[inline(always)]
    unsafe fn lanes<S: Simd>(self, _begun: f32, at: usize, n: usize) -> S::V {
        S::load_up_to(self.0.wrapping_add(at), n)
    }
}

/// Rows of x `[m, k]` as operand A; f32 is used where it lies.
pub(crate) fn with_rows<R>(device: &Device, x: &[f32], k: usize, dtype: Dtype, body: impl FnOnce(Rows) -> R) -> R {
    if dtype == Dtype::F32 {
        let (units, _owner) = (units_of(dtype, k), std::marker::PhantomData);
        return body(Rows { a: x.as_ptr().cast(), stride: k, by_unit: false, units, _owner });
    }
    let m = x.len().checked_div(k).unwrap_or(0);
    with_made_rows(device, (m, k), dtype, &|row| PlainRow(x[row * k..(row + 1) * k].as_ptr()), body)
}

/// Rows `[m, k]` as operand A, each from its source.
pub(crate) fn with_made_rows<T: RowSource, R>(
    device: &Device,
    (m, k): (usize, usize),
    dtype: Dtype,
    source: &(dyn Fn(usize) -> T + Sync),
    body: impl FnOnce(Rows) -> R,
) -> R {
    let units = units_of(dtype, k);
    let stride = padded(units);
    with_scratch(m * stride / LANES, |lines| {
        let out = SharedMut::new(lines);
        let isa = device.isa();
        let rows_per_task = (16384 / k.max(1)).max(1);
        device.for_each(m.div_ceil(rows_per_task), &|task| {
            for row in task * rows_per_task..((task + 1) * rows_per_task).min(m) {
                // SAFETY: each index has its own rows.
                let line = unsafe { out.slice(row * stride / LANES, stride / LANES) };
                let (source, out) = (source(row), line.as_mut_ptr());
                match dtype {
                    // SAFETY: k elements to read, of a source that borrows them; the padded row holds k rounded up to 16 units.
                    Dtype::Bf16 => unsafe { isa.run(RoundRow { source, k, out: out.cast() }) },
                    // SAFETY: as above.
                    Dtype::F32 => unsafe { isa.run(CopyRow { source, k, out: out.cast() }) },
                }
            }
        });
        body(Rows { a: out.ptr().cast(), stride, by_unit: false, units, _owner: std::marker::PhantomData })
    })
}

/// Columns of x `[r, m]` as the rows of operand A: A's units run over r.
pub(crate) fn with_columns<R>(device: &Device, x: &[f32], m: usize, dtype: Dtype, body: impl FnOnce(Rows) -> R) -> R {
    let r = x.len().checked_div(m).unwrap_or(0);
    let units = units_of(dtype, r);
    if dtype == Dtype::F32 {
        return body(Rows { a: x.as_ptr().cast(), stride: m, by_unit: true, units, _owner: std::marker::PhantomData });
    }
    let stride = padded(m);
    with_scratch(units * stride / LANES, |lines| {
        let out = SharedMut::new(lines);
        let (per_task, isa) = ((16384 / m.max(1)).max(1), device.isa());
        device.for_each(units.div_ceil(per_task), &|task| {
            for u in task * per_task..((task + 1) * per_task).min(units) {
                // SAFETY: each index has its own units.
                let line = unsafe { out.slice(u * stride / LANES, stride / LANES) };
                let rows = &x[2 * u * m..r.min(2 * u + 2) * m];
                let pairs = PairRows {
                    x: rows.as_ptr(),
                    stride: m,
                    rows: r.min(2 * u + 2) - 2 * u,
                    width: m,
                    out_stride: stride,
                };
                // SAFETY: one or two whole rows, and a padded row to write.
                unsafe { isa.run(pairs.onto(line.as_mut_ptr().cast())) }
            }
        });
        body(Rows { a: out.ptr().cast(), stride, by_unit: true, units, _owner: std::marker::PhantomData })
    })
}

/// Rounds a row to bf16 and fills it up with a zero to whole pairs.
pub(crate) struct RoundRow<T> {
    pub(crate) source: T,
    pub(crate) k: usize,
    pub(crate) out: *mut u16,
}

impl<T: RowSource> Kernel for RoundRow<T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let begun = self.source.begin::<S>(self.k);
        let mut i = 0;
        while i < self.k {
            S::store_bf16(self.out.wrapping_add(i), self.source.lanes::<S>(begun, i, (self.k - i).min(LANES)));
            i += LANES;
        }
    }
}

/// Writes a row as it is.
struct CopyRow<T> {
    source: T,
    k: usize,
    out: *mut f32,
}

impl<T: RowSource> Kernel for CopyRow<T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let begun = self.source.begin::<S>(self.k);
        let mut i = 0;
        while i < self.k {
            S::store(self.out.wrapping_add(i), self.source.lanes::<S>(begun, i, (self.k - i).min(LANES)));
            i += LANES;
        }
    }
}

/// Rounds `k` numbers to bf16; writes up to the next multiple of 16, the surplus zero.
///
/// # Safety
/// `k` numbers to read, `k` rounded up to 16 to write; the instruction set is available.
#[inline(always)]
pub(crate) unsafe fn round_row<S: Simd>(x: *const f32, k: usize, out: *mut u16) {
    let mut i = 0;
    while i < k {
        S::store_bf16(out.wrapping_add(i), S::load_up_to(x.wrapping_add(i), (k - i).min(LANES)));
        i += LANES;
    }
}

/// Pairs of rows rounded to bf16 and interleaved, one unit per column; an odd last row is paired with zero.
pub(crate) struct PairRows {
    pub(crate) x: *const f32,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) out_stride: usize,
}

impl PairRows {
    /// Writes unit u of column c at `out + u * out_stride + c`.
    pub(crate) fn onto(self, out: *mut u32) -> PairOnto {
        PairOnto { rows: self, out: out.cast() }
    }
}

pub(crate) struct PairOnto {
    rows: PairRows,
    out: *mut f32,
}

impl Kernel for PairOnto {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let PairRows { x, stride, rows, width, out_stride } = self.rows;
        let mut row = 0;
        while row < rows {
            let (low, out) = (x.wrapping_add(row * stride), self.out.wrapping_add(row / 2 * out_stride));
            let mut c = 0;
            while c < width {
                let n = (width - c).min(LANES);
                let a = S::load_up_to(low.wrapping_add(c), n);
                let b = if row + 1 < rows { S::load_up_to(low.wrapping_add(stride + c), n) } else { S::splat(0.0) };
                S::store_up_to(out.wrapping_add(c), S::pair_bf16(a, b), n);
                c += LANES;
            }
            row += 2;
        }
    }
}
