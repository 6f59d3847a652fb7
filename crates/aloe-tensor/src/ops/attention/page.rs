//! A page of a cache: keys and values of 64 positions of one layer, in the layouts the matrix product reads.
//!
//! Keys lie as columns (one lane per position, units over E), values as rows (one lane per element, units over positions), so
//! attention packs nothing when it reads. A page knows its capacity only; how many positions are filled is the caller's count.
//! Unwritten positions are zero: weights of unseen keys are zero, and zero times a finite number adds nothing.

use super::BLOCK;
use super::keys::{padded, transpose_rows};
use super::rounded::pair_rows;
use crate::gemm::{PANEL, units_of};
use crate::pack::{Line, PairRows, round_row, with_scratch};
use crate::pages::Lines;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd};
use crate::tensor::bf16_from_f32;
use crate::{Device, Dtype, Tensor};
use std::ops::Range;

/// Keys and values of [`KvPage::POSITIONS`] positions of one layer, all key heads.
#[derive(Clone, Debug)]
pub struct KvPage {
    dtype: Dtype,
    heads: usize,
    e: usize,
    lines: Lines,
}

impl KvPage {
    /// Positions of a page; pages of a sequence start at positions 0, 64, 128, ...
    pub const POSITIONS: usize = super::BLOCK;

    /// An empty page for `kv_heads` heads of size `head_dim`, its numbers rounded to `dtype`. Products over a bf16 page round
    /// queries and softmax weights to bf16 too; over an f32 page everything is f32.
    pub fn new(dtype: Dtype, kv_heads: usize, head_dim: usize) -> Self {
        let mut page = Self { dtype, heads: kv_heads, e: head_dim, lines: Lines::passing(0) };
        page.lines = Lines::paged(kv_heads * page.head_units() / LANES);
        page
    }

    /// A page for one operation, in bf16, of `n` positions whose keys and values of each head are rows of bf16. Keys past them are of no
    /// meaning, but finite where the others are.
    ///
    /// # Safety
    /// The first `n` rows have the `head_dim` numbers of the head to read, and the others are such rows too.
    pub(super) unsafe fn passing(
        device: &Device,
        (kv_heads, head_dim): (usize, usize),
        n: usize,
        rows: impl Fn(usize) -> [[*const u32; BLOCK]; 2],
    ) -> Self {
        assert!(head_dim.is_multiple_of(2) && n <= BLOCK, "{n} rows of {head_dim}");
        let mut page = Self { dtype: Dtype::Bf16, heads: kv_heads, e: head_dim, lines: Lines::passing(0) };
        let (head_units, keys) = (page.head_units(), page.key_units() * BLOCK);
        page.lines = Lines::written(kv_heads * head_units / LANES, |out| {
            for head in 0..kv_heads {
                let (keys_of, [k, v]) = (out.cast::<u32>().wrapping_add(head * head_units), rows(head));
                device.isa().run(WriteRows { k, v, n, e: head_dim, keys: keys_of, values: keys_of.wrapping_add(keys) });
            }
        });
        page
    }

    /// Type of the numbers held.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// K, the number of key heads.
    pub fn kv_heads(&self) -> usize {
        self.heads
    }

    /// E, the size of a head.
    pub fn head_dim(&self) -> usize {
        self.e
    }

    /// Bytes held, filled or not.
    pub fn nbytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Writes positions `at..at + n` of the page from keys and values `[n, K, E]`.
    pub fn write(&mut self, at: usize, k: &[f32], v: &[f32]) {
        let width = self.heads * self.e;
        let n = k.len().checked_div(width).unwrap_or(0);
        assert!(k.len() == v.len() && k.len() == n * width, "{} and {} numbers of {width}", k.len(), v.len());
        assert!(at + n <= Self::POSITIONS, "positions {at}..{} of a page", at + n);
        for i in 0..n {
            for h in 0..self.heads {
                let from = (i * self.heads + h) * self.e;
                self.write_head(at + i, h, &k[from..from + self.e], &v[from..from + self.e]);
            }
        }
    }

    /// Whether [`KvPage::fill`] can: rows of whole vectors of pairs.
    fn fills(&self) -> bool {
        self.dtype == Dtype::Bf16 && self.e.is_multiple_of(PANEL)
    }

    /// [`KvPage::write`] of all positions, in vectors.
    fn fill(&mut self, device: &Device, k: &[f32], v: &[f32]) {
        let width = self.heads * self.e;
        assert!(k.len() == Self::POSITIONS * width && v.len() == k.len() && self.fills(), "{} numbers", k.len());
        let (head_units, keys) = (self.head_units(), self.key_units() * Self::POSITIONS);
        let page = self.lines.as_mut_ptr().cast::<u32>();
        with_scratch(keys / LANES, |rows| {
            for head in 0..self.heads {
                let from = head * self.e;
                let (k, v, to) = (k[from..].as_ptr(), v[from..].as_ptr(), page.wrapping_add(head * head_units));
                let rows = rows.as_mut_ptr().cast();
                let values = PairRows { x: v, stride: width, rows: Self::POSITIONS, width: self.e, out_stride: self.e };
                // SAFETY: 64 rows of this head's E numbers, the page's place for them (E is its own row of values), and a buffer for the
                // keys' units.
                unsafe {
                    device.isa().run(FillKeys { k, stride: width, e: self.e, rows, out: to });
                    device.isa().run(values.onto(to.wrapping_add(keys)));
                }
            }
        });
    }

    fn write_head(&mut self, at: usize, head: usize, k: &[f32], v: &[f32]) {
        let (first, lanes, keys) = (head * self.head_units(), self.value_lanes(), self.key_units() * Self::POSITIONS);
        // SAFETY: lines are arrays of u32 without padding.
        let units =
            unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<u32>(), self.lines.len() * LANES) };
        let (keys, values) = units[first..].split_at_mut(keys);
        match self.dtype {
            Dtype::F32 => {
                keys[at..].iter_mut().step_by(Self::POSITIONS).zip(k).for_each(|(u, k)| *u = k.to_bits());
                values[at * lanes..].iter_mut().zip(v).for_each(|(u, v)| *u = v.to_bits());
            }
            Dtype::Bf16 => {
                let pair =
                    |k: &[f32]| bf16_from_f32(k[0]) as u32 | k.get(1).map_or(0, |k| (bf16_from_f32(*k) as u32) << 16);
                keys[at..].iter_mut().step_by(Self::POSITIONS).zip(k.chunks(2)).for_each(|(u, k)| *u = pair(k));
                let (shift, keep) = if at.is_multiple_of(2) { (0, 0xffff_0000) } else { (16, 0xffff) };
                for (u, v) in values[at / 2 * lanes..].iter_mut().zip(v) {
                    *u = *u & keep | (bf16_from_f32(*v) as u32) << shift;
                }
            }
        }
    }

    /// Units of one key: E, or pairs of it.
    pub(super) fn key_units(&self) -> usize {
        units_of(self.dtype, self.e)
    }

    /// Lanes of a row of values: E rounded up to whole panels.
    pub(super) fn value_lanes(&self) -> usize {
        self.e.next_multiple_of(PANEL)
    }

    fn head_units(&self) -> usize {
        self.key_units() * Self::POSITIONS + units_of(self.dtype, Self::POSITIONS) * self.value_lanes()
    }

    /// Unit u of position p of a head's keys is at `u * 64 + p`.
    pub(super) fn keys(&self, head: usize) -> *const u32 {
        self.lines.as_ptr().cast::<u32>().wrapping_add(head * self.head_units())
    }

    /// Unit u (positions 2u and 2u + 1 in bf16) of element x of a head's values is at `u * value_lanes + x`.
    pub(super) fn values(&self, head: usize) -> *const u32 {
        self.keys(head).wrapping_add(self.key_units() * Self::POSITIONS)
    }
}

/// Keys of 64 positions of one head as columns.
struct FillKeys {
    k: *const f32,
    stride: usize,
    e: usize,
    rows: *mut u32, // [64, E/2]
    out: *mut u32,  // [E/2, 64]
}

impl Kernel for FillKeys {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut rows = [std::ptr::null::<f32>(); BLOCK];
        let mut i = 0;
        while i < BLOCK {
            let row = self.rows.wrapping_add(i * self.e / 2);
            round_row::<S>(self.k.wrapping_add(i * self.stride), self.e, row.cast());
            rows[i] = row.cast_const().cast();
            i += 1;
        }
        transpose_rows::<S>(&rows, BLOCK, self.e / 2, self.out.cast());
    }
}

/// Keys and values of a head from rows of bf16; the values past them are zero.
struct WriteRows {
    k: [*const u32; BLOCK],
    v: [*const u32; BLOCK],
    n: usize,
    e: usize,
    keys: *mut u32,   // [E/2, 64]
    values: *mut u32, // [32, padded E], right behind
}

impl Kernel for WriteRows {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (units, lanes, pairs) = (self.e / 2, padded(self.e), self.n.div_ceil(2));
        if self.n < BLOCK {
            self.keys.write_bytes(0, units * BLOCK);
        }
        // Up to 15 units too many: they lie where the values go, which are more.
        transpose_rows::<S>(&self.k.map(|row| row.cast()), self.n, units, self.keys.cast());
        pair_rows::<S>(&self.v, self.n, self.e, self.values);
        self.values.wrapping_add(pairs * lanes).write_bytes(0, (BLOCK / 2 - pairs) * lanes);
    }
}

/// Says, before a product, that attention comes after it and begins with this page: each thread fetches the head it will take first, as
/// soon as it waits for the others. A hint, as [`crate::ops::expect_layers`].
pub fn expect_page(device: &Device, page: &KvPage) {
    let bytes = page.head_units() * size_of::<u32>();
    device.soon(bytes, |thread| page.keys(thread * page.heads / device.threads()).cast());
}

/// Rows of new keys and values for one page.
#[derive(Debug)]
pub struct PageWrite<'a> {
    /// Where they go.
    pub page: &'a mut KvPage,
    /// First position in the page.
    pub at: usize,
    /// Rows of k and v.
    pub rows: Range<usize>,
}

/// Writes rows of k and v `[N, K, E]` into pages, on all threads of the device.
pub fn write_pages(device: &Device, k: &Tensor, v: &Tensor, mut writes: Vec<PageWrite>) {
    assert_eq!(k.shape(), v.shape(), "keys against values");
    let width: usize = k.shape()[1..].iter().product();
    let (k, v, n) = (k.as_f32(), v.as_f32(), writes.len());
    let part = |w: &mut PageWrite<'_>| {
        let range = w.rows.start * width..w.rows.end * width;
        let (k, v) = (&k[range.clone()], &v[range]);
        if w.rows.len() == KvPage::POSITIONS && w.page.fills() {
            w.page.fill(device, k, v);
        } else {
            w.page.write(w.at, k, v);
        }
    };
    let shared = SharedMut::new(&mut writes);
    // Two rows cost as much as sharing the work out.
    const WRITES: usize = 2;
    device.for_each(n.div_ceil(WRITES), &|task| {
        let from = task * WRITES;
        // SAFETY: each index has its own writes, and each write its own page by the exclusive borrow.
        unsafe { shared.slice(from, WRITES.min(n - from)) }.iter_mut().for_each(part);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{devices, normal};

    #[test]
    fn a_page_filled_at_once_is_the_page_written_position_by_position() {
        for device in devices() {
            for (heads, e) in [(1, 32), (3, 64), (2, 128)] {
                let (k, v) = (normal("k", &[64, heads, e]), normal("v", &[64, heads, e]));
                let [mut filled, mut written] = [(); 2].map(|()| KvPage::new(Dtype::Bf16, heads, e));
                assert!(filled.fills());
                filled.fill(&device, k.as_f32(), v.as_f32());
                for at in 0..64 {
                    let row = |x: &Tensor| x.slice_rows(at, at + 1);
                    written.write(at, row(&k).as_f32(), row(&v).as_f32());
                }
                assert!(filled.lines.iter().zip(&*written.lines).all(|(a, b)| a.0 == b.0), "{device:?} {heads}x{e}");
            }
        }
        assert!(!KvPage::new(Dtype::Bf16, 1, 48).fills() && !KvPage::new(Dtype::F32, 1, 64).fills());
    }
}
