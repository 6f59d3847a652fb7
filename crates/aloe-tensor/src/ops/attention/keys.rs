//! Keys and values of one job, wherever their rows lie, brought into the layouts of the matrix product block by block.

use super::{AttentionPlan, BLOCK, KvSegment};
use crate::gemm::PANEL;
use crate::simd::{LANES, Simd};
use std::ops::Range;

/// Queries and the keys they see.
pub(super) struct Job<'a> {
    pub(super) queries: Range<usize>,
    pub(super) segments: Vec<KvSegment<'a>>,
    /// Numbers from one key to the next: K * E.
    pub(super) stride: usize,
    pub(super) n_keys: usize,
    causal: bool,
}

impl<'a> Job<'a> {
    pub(super) fn new(queries: Range<usize>, segments: Vec<KvSegment<'a>>, stride: usize, causal: bool) -> Self {
        let mut n_keys = 0;
        for s in &segments {
            assert!(
                s.k.len() == s.v.len() && s.k.len().is_multiple_of(stride),
                "segment of {} and {}",
                s.k.len(),
                s.v.len()
            );
            n_keys += s.k.len() / stride;
        }
        assert!(!causal || n_keys >= queries.len(), "{} queries but {n_keys} keys", queries.len());
        assert!(queries.is_empty() || n_keys > 0, "queries {queries:?} without a key");
        Self { queries, segments, stride, n_keys, causal }
    }

    /// How many keys the `i`-th query sees.
    #[inline(always)]
    pub(super) fn visible(&self, i: usize) -> usize {
        if self.causal { self.n_keys - self.queries.len() + i + 1 } else { self.n_keys }
    }

    /// The first query that sees key `j`.
    pub(super) fn first_query(&self, j: usize) -> usize {
        if self.causal { (j + self.queries.len()).saturating_sub(self.n_keys) } else { 0 }
    }

    /// Rows of keys `start..` of a block, at `offset` (a head) within each row. Rows past the last repeat it.
    pub(super) fn block(&self, start: usize, offset: usize) -> KeyBlock {
        let n = BLOCK.min(self.n_keys - start);
        let first = self.segments.first().expect("a job with keys has a segment");
        let mut block = KeyBlock { n, k: [first.k.as_ptr(); BLOCK], v: [first.v.as_ptr(); BLOCK], contiguous: false };
        let (mut filled, mut skip, mut pieces) = (0, start, 0);
        for s in &self.segments {
            let len = s.k.len() / self.stride;
            if skip >= len {
                skip -= len;
                continue;
            }
            pieces += 1;
            let take = (len - skip).min(n - filled);
            for i in 0..take {
                let at = (skip + i) * self.stride + offset;
                block.k[filled + i] = s.k.as_ptr().wrapping_add(at);
                block.v[filled + i] = s.v.as_ptr().wrapping_add(at);
            }
            filled += take;
            skip = 0;
            if filled == n {
                break;
            }
        }
        for i in n..BLOCK {
            (block.k[i], block.v[i]) = (block.k[n - 1], block.v[n - 1]);
        }
        block.contiguous = pieces == 1;
        block
    }
}

/// Up to 64 keys and values of one head.
pub(super) struct KeyBlock {
    pub(super) n: usize,
    pub(super) k: [*const f32; BLOCK],
    pub(super) v: [*const f32; BLOCK],
    /// All in one segment: rows are evenly spaced.
    contiguous: bool,
}

/// Operand B with units over rows: where it starts and how far rows are apart.
#[derive(Clone, Copy)]
pub(super) struct RowOperand {
    pub(super) start: *const f32,
    pub(super) stride: usize,
}

impl KeyBlock {
    /// The rows where they lie when the product can read them there, else copied to `scratch` (64 rows of `padded(e)`).
    ///
    /// # Safety
    /// `rows` is `self.k` or `self.v`; scratch is writable; the instruction set is available.
    #[inline(always)]
    pub(super) unsafe fn rows<S: Simd>(
        &self,
        rows: &[*const f32; BLOCK],
        stride: usize,
        e: usize,
        scratch: *mut f32,
    ) -> RowOperand {
        if self.contiguous && e.is_multiple_of(PANEL) {
            return RowOperand { start: rows[0], stride };
        }
        for (i, row) in rows.iter().enumerate().take(self.n) {
            copy_row::<S>(*row, e, scratch.wrapping_add(i * padded(e)));
        }
        RowOperand { start: scratch, stride: padded(e) }
    }
}

/// E rounded up to whole panels.
pub(super) fn padded(e: usize) -> usize {
    e.next_multiple_of(PANEL)
}

/// Copies `e` numbers.
///
/// # Safety
/// Both are valid for `e` numbers; the instruction set is available.
#[inline(always)]
pub(super) unsafe fn copy_row<S: Simd>(from: *const f32, e: usize, to: *mut f32) {
    let mut x = 0;
    while x < e {
        let n = (e - x).min(LANES);
        S::store_up_to(to.wrapping_add(x), S::load_up_to(from.wrapping_add(x), n), n);
        x += LANES;
    }
}

/// Writes 64 rows of `e` numbers as columns: `out[x * 64 + key]`.
///
/// # Safety
/// All rows are readable, `out` holds `e.next_multiple_of(16) * 64` numbers; the instruction set is available.
#[inline(always)]
pub(super) unsafe fn transpose_rows<S: Simd>(rows: &[*const f32; BLOCK], n: usize, e: usize, out: *mut f32) {
    let mut key = 0;
    while key < n {
        let mut x = 0;
        while x < e {
            let width = (e - x).min(LANES);
            let mut block = [S::splat(0.0); LANES];
            let mut i = 0;
            while i < LANES {
                block[i] = S::load_up_to(rows[key + i].wrapping_add(x), width);
                i += 1;
            }
            S::transpose(&mut block);
            i = 0;
            while i < LANES {
                S::store(out.wrapping_add((x + i) * BLOCK + key), block[i]);
                i += 1;
            }
            x += LANES;
        }
        key += LANES;
    }
}

/// Jobs of a plan in groups that share no key: each group's gradients can be summed on their own.
pub(super) struct Shared<'a> {
    pub(super) jobs: Vec<Job<'a>>,
    /// Rows of k of each job, in order.
    pub(super) rows: Vec<Vec<usize>>,
    /// Jobs of each group, in plan order.
    pub(super) groups: Vec<Vec<usize>>,
}

impl<'a> Shared<'a> {
    pub(super) fn new(plan: &AttentionPlan, jobs: Vec<Job<'a>>) -> Self {
        let groups = groups(plan);
        let rows = plan.blocks.iter().map(|b| b.keys.iter().cloned().flatten().collect()).collect();
        Self { jobs, rows, groups }
    }
}

/// Blocks of a plan in groups that share no key, each group in plan order.
pub(super) fn groups(plan: &AttentionPlan) -> Vec<Vec<usize>> {
    let mut ranges: Vec<(Range<usize>, usize)> = Vec::new();
    for (j, block) in plan.blocks.iter().enumerate() {
        ranges.extend(block.keys.iter().filter(|r| !r.is_empty()).map(|r| (r.clone(), j)));
    }
    ranges.sort_by_key(|(r, _)| r.start);
    let mut group: Vec<usize> = (0..plan.blocks.len()).collect();
    let (mut end, mut last) = (0, 0);
    for (range, j) in ranges {
        if range.start < end && group[j] != group[last] {
            let (from, to) = (group[j].max(group[last]), group[j].min(group[last]));
            group.iter_mut().filter(|g| **g == from).for_each(|g| *g = to);
        }
        if range.end > end {
            (end, last) = (range.end, j);
        }
    }
    let members = |g: usize| (0..plan.blocks.len()).filter(|&j| group[j] == g).collect::<Vec<_>>();
    (0..plan.blocks.len()).map(members).filter(|m| !m.is_empty()).collect()
}
