//! Attention over pages: prefill, packed rows and decoding in one kernel; rows that share a page are processed together.
//!
//! A tile of queries walks the page indices in step. At each index, neighbouring queries with the same page (a shared prefix)
//! become one product over that page. A row's chains run over its own keys in order, page by page from position 0, whatever
//! rows share the tile: the same bits in any company, in any batch, on any number of threads.

mod whole;

use super::keys::copy_row;
use super::page::KvPage;
use super::soften::{RowState, normalise, normalise_rounded, soften_rows};
use super::{BLOCK, Heads};
use crate::gemm::{Gemm, PANEL, units_of};
use crate::pack::{round_row, with_scratch};
use crate::pool::SharedMut;
use crate::rounded::RowsOut;
use crate::simd::{Kernel, LANES, Simd};
use crate::{Device, Dtype, Isa, Rounded, Tensor};
use std::ops::Range;
use whole::{ROWS, Scored, queries_of_tiles};

/// Rows of a tile: queries times query heads of one key head.
const TILE_ROWS: usize = 96;

/// Rows that go through both products and the softmax together: their scores stay in the first-level cache beside a page.
const PART_ROWS: usize = 24;

/// New queries of one sequence against its pages, which already hold the new keys.
#[derive(Clone, Debug)]
pub struct PagedSequence<'a> {
    /// Rows of q; the sequence's last `queries.len()` positions are theirs.
    pub queries: Range<usize>,
    /// Pages of this layer from position 0 on; all but the last are full. Sequences that share a prefix share its pages.
    pub pages: Vec<&'a KvPage>,
    /// Positions filled, the new ones included.
    pub len_tokens: usize,
}

#[derive(Clone, Copy)]
struct Query {
    row: usize,
    sequence: usize,
    visible: usize,
}

/// Causal `softmax(scale q k^T) v` of q `[N, H, E]` over pages of K heads, H a multiple of K; returns o `[N, H, E]`. Over f32 pages
/// equal bit for bit to [`super::attention`]; over bf16 pages the operands of both products are bf16, sums and softmax f32.
/// Queries of no sequence get zeros.
pub fn attention_paged(device: &Device, q: &Tensor, sequences: &[PagedSequence], scale: f32) -> Tensor {
    if sequences.iter().all(|s| s.pages.is_empty()) {
        return Tensor::zeros(q.shape(), Dtype::F32);
    }
    // SAFETY: each (row, head) is written by its task, or zeroed where the row is of no sequence.
    unsafe {
        Tensor::written(q.shape(), |o| {
            let o = Output::F32(SharedMut::from_raw(o, q.len()));
            attend(device, &Call::causal(q, sequences, scale, o));
        })
    }
}

/// [`attention_paged`] rounded to bf16, as a layer's product rounds it: `[N, H*E]`.
pub fn attention_paged_rounded(device: &Device, q: &Tensor, sequences: &[PagedSequence], scale: f32) -> Rounded {
    let &[n, h, e] = q.shape() else { panic!("q {:?}", q.shape()) };
    if sequences.iter().all(|s| s.pages.is_empty()) || !e.is_multiple_of(LANES) {
        return Rounded::new(device, &attention_paged(device, q, sequences, scale));
    }
    Rounded::written(n, h * e, |o| attend(device, &Call::causal(q, sequences, scale, Output::Rounded(o))))
}

/// Where queries come from: N rows of H heads.
#[derive(Clone, Copy)]
pub(super) enum Queries<'a> {
    F32(&'a [f32]),
    /// For bf16 pages.
    Rounded(&'a Rounded),
}

/// Where the result goes: N rows of H heads.
#[derive(Clone, Copy)]
pub(super) enum Output {
    F32(SharedMut<f32>),
    /// From bf16 pages, or of whole vectors.
    Rounded(RowsOut),
}

/// Attention over pages, whole.
pub(super) struct Call<'a> {
    pub(super) q: Queries<'a>,
    /// N.
    pub(super) n: usize,
    pub(super) heads: Heads,
    pub(super) sequences: &'a [PagedSequence<'a>],
    /// Otherwise a query sees all of its sequence.
    pub(super) causal: bool,
    pub(super) scale: f32,
    pub(super) o: Output,
    /// Where the log-sum-exp of the scaled scores `[N, H]` of queries of a sequence goes.
    pub(super) lse: Option<SharedMut<f32>>,
}

impl<'a> Call<'a> {
    fn causal(q: &'a Tensor, sequences: &'a [PagedSequence<'a>], scale: f32, o: Output) -> Self {
        let &[n, h, e] = q.shape() else { panic!("q {:?}", q.shape()) };
        let page = sequences.iter().flat_map(|s| &s.pages).next().expect("there is a page");
        let heads = Heads { h, k: page.kv_heads(), e };
        Self { q: Queries::F32(q.as_f32()), n, heads, sequences, causal: true, scale, o, lse: None }
    }
}

/// All rows of the output, for at least one page.
pub(super) fn attend(device: &Device, call: &Call<'_>) {
    let &Call { q, n, heads, sequences, causal, scale, o, lse } = call;
    let Heads { h, k, e } = heads;
    let dtype = sequences.iter().flat_map(|s| &s.pages).next().expect("there is a page").dtype();
    for page in sequences.iter().flat_map(|s| &s.pages) {
        let of_page = (page.dtype(), page.kv_heads(), page.head_dim());
        assert!(of_page == (dtype, k, e) && h % k == 0, "pages of {of_page:?} for {heads:?}");
    }
    let (queries, idle) = queries(sequences, n, causal);
    let group = h / k;
    let tile = tile_queries(queries.len(), group, device.threads(), k);
    let tiles: Vec<&[Query]> = queries.chunks(tile).collect();
    for row in idle {
        match o {
            // SAFETY: a row of o that no task writes.
            Output::F32(o) => unsafe { o.slice(row * h * e, h * e) }.fill(0.0),
            // SAFETY: as above.
            Output::Rounded(o) => unsafe { o.row(row).write_bytes(0, h * e) },
        }
    }
    let isa = device.isa();
    device.for_each(tiles.len() * k, &|task| {
        // A head's tasks follow each other, so that its pages stay in the second-level cache; late tiles of a prefill see most keys
        // and go first.
        let (queries, kv) = (tiles[tiles.len() - 1 - task % tiles.len()], task / tiles.len());
        let rows = queries.len() * group;
        with_scratch(Buffers::lines(rows, group, e, dtype), |lines| {
            let buffers = Buffers::new(lines.as_mut_ptr().cast(), rows, group, e, dtype);
            let tile = Tile { q, queries, sequences, kv, heads, scale, dtype, isa, buffers, o, lse };
            // SAFETY: rows of q and o are below N and distinct (checked in `queries`), pages have these heads; each (row,
            // head) belongs to one task.
            unsafe { isa.run(tile) }
        });
    });
}

/// Every query with the number of keys it sees, sequences with common pages next to each other; and the rows of no sequence.
fn queries(sequences: &[PagedSequence], n: usize, causal: bool) -> (Vec<Query>, Vec<usize>) {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_cached_key(|&s| sequences[s].pages.iter().map(|p| *p as *const KvPage as usize).collect::<Vec<_>>());
    let mut taken = vec![false; n];
    let mut all = Vec::with_capacity(n);
    for sequence in order {
        let PagedSequence { queries, pages, len_tokens } = &sequences[sequence];
        assert!(pages.len() * BLOCK >= *len_tokens, "{len_tokens} positions in {} pages", pages.len());
        let enough = if causal { queries.len() } else { 1 };
        assert!(*len_tokens >= enough && queries.end <= n, "queries {queries:?} of {n}, {len_tokens} keys");
        for (i, row) in queries.clone().enumerate() {
            assert!(!std::mem::replace(&mut taken[row], true), "row {row} in two sequences");
            let visible = if causal { len_tokens - queries.len() + i + 1 } else { *len_tokens };
            all.push(Query { row, sequence, visible });
        }
    }
    (all, (0..n).filter(|&row| !taken[row]).collect())
}

/// Queries of a tile: as many as fit, but enough tiles for the threads, and of few tiles (k tasks each) an equal number for each.
fn tile_queries(n: usize, group: usize, threads: usize, k: usize) -> usize {
    let most = (TILE_ROWS / group).max(1);
    let wanted = (2 * threads).div_ceil(k).max(n.div_ceil(most)).max(1);
    let is_even = |tiles: &usize| (tiles * k).is_multiple_of(threads);
    let tiles = (wanted..wanted + threads).find(is_even).unwrap_or(wanted);
    let even = n.div_ceil(tiles).clamp(1, most);
    // Rows over whole pages go six at a time: of many tiles none leaves some over.
    let of_tiles = queries_of_tiles(group);
    if n > most && most >= of_tiles { even.next_multiple_of(of_tiles).min(most - most % of_tiles) } else { even }
}

/// Queries that go through a page together.
fn part_queries(group: usize) -> usize {
    (PART_ROWS / group).max(1)
}

/// Scratch of a tile, each part a multiple of a cache line.
#[derive(Clone, Copy)]
struct Buffers {
    q: *mut u32,        // [rows, stride of q] units
    weights: *mut u32,  // [rows of a part, 32] units, bf16 only
    scores: *mut f32,   // [rows of a part, 64]
    row_sums: *mut f32, // [rows of a part, 16]
    o: *mut f32,        // [rows, e]
    max: *mut f32,      // [rows]
    sum: *mut f32,      // [rows]
}

/// Units of a row of q, rounded up to whole vectors for the rounding kernel.
fn q_stride(e: usize, dtype: Dtype) -> usize {
    units_of(dtype, e).next_multiple_of(LANES)
}

impl Buffers {
    fn sizes(rows: usize, group: usize, e: usize, dtype: Dtype) -> [usize; 7] {
        // Two tiles of whole pages have scores at once.
        let part = rows.min(part_queries(group) * group).max(2 * ROWS);
        let weights = if dtype == Dtype::Bf16 { part * BLOCK / 2 } else { 0 };
        [rows * q_stride(e, dtype), weights, part * BLOCK, part * LANES, rows * e, rows, rows]
            .map(|n| n.next_multiple_of(LANES))
    }

    fn lines(rows: usize, group: usize, e: usize, dtype: Dtype) -> usize {
        Self::sizes(rows, group, e, dtype).iter().sum::<usize>() / LANES
    }

    fn new(start: *mut f32, rows: usize, group: usize, e: usize, dtype: Dtype) -> Self {
        let mut at = 0;
        let [q, weights, scores, row_sums, o, max, sum] = Self::sizes(rows, group, e, dtype).map(|n| {
            at += n;
            start.wrapping_add(at - n)
        });
        Self { q: q.cast(), weights: weights.cast(), scores, row_sums, o, max, sum }
    }
}

struct Tile<'a> {
    q: Queries<'a>,
    queries: &'a [Query],
    sequences: &'a [PagedSequence<'a>],
    kv: usize,
    heads: Heads,
    scale: f32,
    dtype: Dtype,
    isa: Isa,
    buffers: Buffers,
    o: Output,
    lse: Option<SharedMut<f32>>,
}

impl Kernel for Tile<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        self.start::<S>();
        let last = self.queries.iter().fold(0, |last, q| last.max(q.visible.div_ceil(BLOCK)));
        let (mut next, mut scored) = (self.run_from(0, 0, last), None);
        while let Some(run) = next {
            next = self.run_from(run.index, run.queries.end, last);
            self.step::<S>(&run, next.as_ref(), &mut scored);
        }
        self.weigh_scored::<S>(&mut scored);
        self.finish::<S>();
    }
}

/// Neighbouring queries of a tile that see the same page.
struct Run<'a> {
    index: usize,
    page: &'a KvPage,
    queries: Range<usize>,
}

impl<'a> Tile<'a> {
    fn group(&self) -> usize {
        self.heads.h / self.heads.k
    }

    /// The page with index `page` of a query, when it sees a key there.
    #[inline(always)]
    fn page_of(&self, query: usize, page: usize) -> Option<&'a KvPage> {
        let q = &self.queries[query];
        if q.visible <= page * BLOCK {
            return None;
        }
        Some(self.sequences[q.sequence].pages[page])
    }

    /// The first run from query `from` of page index `index` on, page after page.
    #[inline(always)]
    fn run_from(&self, mut index: usize, mut from: usize, last: usize) -> Option<Run<'a>> {
        while index < last {
            while from < self.queries.len() {
                if let Some(page) = self.page_of(from, index) {
                    let same = |to: usize| self.page_of(to, index).is_some_and(|p| std::ptr::eq(p, page));
                    let mut to = from + 1;
                    while to < self.queries.len() && same(to) {
                        to += 1;
                    }
                    return Some(Run { index, page, queries: from..to });
                }
                from += 1;
            }
            (index, from) = (index + 1, 0);
        }
        None
    }

    /// Keys of page `index` that some of these queries see.
    #[inline(always)]
    fn seen(&self, index: usize, queries: Range<usize>) -> usize {
        self.queries[queries].iter().fold(0, |n, q| n.max((q.visible - index * BLOCK).min(BLOCK)))
    }

    /// Brings parts `part` of `parts` of what a run reads of its page nearer.
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&self, run: &Run<'_>, n_keys: usize, part: Range<usize>, parts: usize) {
        let share = |n: usize| part.start * n / parts..part.end * n / parts;
        let (per_unit, used, keys) = (BLOCK / LANES, n_keys.next_multiple_of(PANEL) / LANES, run.page.keys(self.kv));
        for unit in share(run.page.key_units()) {
            for line in 0..used {
                S::prefetch(keys.wrapping_add((unit * per_unit + line) * LANES).cast());
            }
        }
        let values = run.page.values(self.kv);
        for line in share(units_of(self.dtype, n_keys) * run.page.value_lanes() / LANES) {
            S::prefetch(values.wrapping_add(line * LANES).cast());
        }
    }

    /// Index of tile row `r` among all (row, head) pairs.
    #[inline(always)]
    fn global(&self, r: usize) -> usize {
        self.queries[r / self.group()].row * self.heads.h + self.kv * self.group() + r % self.group()
    }

    /// Where the query of tile row `r` lies, and its bytes.
    #[inline(always)]
    fn query(&self, r: usize) -> (*const f32, usize) {
        let e = self.heads.e;
        match self.q {
            Queries::F32(q) => (q.as_ptr().wrapping_add(self.global(r) * e), size_of::<f32>() * e),
            Queries::Rounded(q) => {
                let head = self.kv * self.group() + r % self.group();
                (q.row(self.queries[r / self.group()].row).wrapping_add(head * e).cast(), e * size_of::<u16>())
            }
        }
    }

    /// The state of tile row `r`, which is the first of its part.
    #[inline(always)]
    fn state(&self, r: usize) -> RowState {
        let (e, b) = (self.heads.e, &self.buffers);
        RowState {
            scores: b.scores,
            max: b.max.wrapping_add(r),
            sum: b.sum.wrapping_add(r),
            o: b.o.wrapping_add(r * e),
            e,
        }
    }

    #[inline(always)]
    unsafe fn start<S: Simd>(&self) {
        let (e, b, stride) = (self.heads.e, &self.buffers, q_stride(self.heads.e, self.dtype));
        let rows = self.queries.len() * self.group();
        // All at once, as each row waits for memory.
        for r in 0..rows {
            let (from, bytes) = self.query(r);
            for line in (0..bytes).step_by(size_of::<f32>() * LANES) {
                S::prefetch(from.cast::<u8>().wrapping_add(line));
            }
        }
        for r in 0..rows {
            let (from, to) = (self.query(r).0, b.q.wrapping_add(r * stride));
            match (self.q, self.dtype) {
                (Queries::F32(_), Dtype::F32) => copy_row::<S>(from, e, to.cast()),
                (Queries::F32(_), Dtype::Bf16) => round_row::<S>(from, e, to.cast()),
                (Queries::Rounded(_), _) => copy_row::<S>(from, e / 2, to.cast()),
            }
            b.max.wrapping_add(r).write(f32::NEG_INFINITY);
            b.sum.wrapping_add(r).write(0.0);
        }
        let mut i = 0;
        while i < (rows * e).next_multiple_of(LANES) {
            S::store(b.o.wrapping_add(i), S::splat(0.0));
            i += LANES;
        }
    }

    /// The queries of a run over the keys of its page, part by part; meanwhile what the next run reads comes nearer.
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, run: &Run<'_>, next: Option<&Run<'_>>, scored: &mut Option<Scored>) {
        let next = next.map(|next| (next, self.seen(next.index, next.queries.clone())));
        let (first, n) = (run.queries.start, run.queries.len());
        let mut from = 0;
        while from < n {
            let n_whole =
                if S::PAIRS_BF16 && self.isa != Isa::Amx { self.n_whole(run, first + from..first + n) } else { 0 };
            let to = if n_whole > 0 { from + n_whole } else { (from + part_queries(self.group())).min(n) };
            if let Some((next, n_keys)) = next {
                self.fetch::<S>(next, n_keys, from..to, n);
            }
            if n_whole > 0 {
                for row in ((first + from) * self.group()..(first + to) * self.group()).step_by(ROWS) {
                    self.whole::<S>(run.page, row, scored);
                }
            } else {
                self.weigh_scored::<S>(scored);
                self.part::<S>(run, first + from..first + to);
            }
            from = to;
        }
    }

    /// Some queries of a run over the keys of its page.
    #[inline(always)]
    unsafe fn part<S: Simd>(&self, run: &Run<'_>, queries: Range<usize>) {
        let (e, b, group) = (self.heads.e, &self.buffers, self.group());
        let (page, n_keys) = (run.page, self.seen(run.index, queries.clone()));
        let (first, stride) = (queries.start * group, q_stride(e, self.dtype));
        let scores = Gemm {
            dtype: self.dtype,
            m: queries.len() * group,
            n: n_keys,
            units: page.key_units(),
            a: b.q.wrapping_add(first * stride),
            a_stride: stride,
            a_by_unit: false,
            a_panel_stride: 0,
            b: page.keys(self.kv),
            b_panel_stride: PANEL,
            b_unit_stride: BLOCK,
            c: b.scores,
            c_stride: BLOCK,
            accumulate: false,
            add: std::ptr::null(),
            from_memory: false,
        };
        scores.run_here(self.isa);
        let seen = |at: usize| (self.queries[queries.start + at / group].visible - run.index * BLOCK).min(BLOCK);
        let rounded = (self.dtype == Dtype::Bf16).then(|| b.weights.cast());
        soften_rows::<S>(&self.state(first), scores.m, self.scale, seen, (b.row_sums, rounded));
        let (weights, weights_stride) = match self.dtype {
            Dtype::F32 => (b.scores.cast::<u32>(), BLOCK),
            Dtype::Bf16 => (b.weights, BLOCK / 2),
        };
        let values = Gemm {
            n: e,
            units: units_of(self.dtype, n_keys),
            a: weights,
            a_stride: weights_stride,
            b: page.values(self.kv),
            b_unit_stride: page.value_lanes(),
            c: b.o.wrapping_add(first * e),
            c_stride: e,
            accumulate: true,
            ..scores
        };
        values.run_here(self.isa);
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self) {
        let (e, group, b) = (self.heads.e, self.group(), &self.buffers);
        for r in 0..self.queries.len() * group {
            let state = self.state(r);
            match self.o {
                Output::F32(o) => normalise::<S>(&state, o.ptr().wrapping_add(self.global(r) * e)),
                Output::Rounded(o) => {
                    let head = self.kv * group + r % group;
                    let to = o.row(self.queries[r / group].row).wrapping_add(head * e);
                    if e.is_multiple_of(LANES) {
                        normalise_rounded::<S>(&state, to);
                    } else {
                        // By way of buffers: whole vectors would write over the next head, which is another task's.
                        assert!(e <= 2 * ROWS * BLOCK, "heads of {e}");
                        normalise::<S>(&state, b.scores);
                        round_row::<S>(b.scores, e, b.weights.cast());
                        to.copy_from_nonoverlapping(b.weights.cast(), e);
                    }
                }
            }
            if let Some(lse) = self.lse {
                lse.ptr().wrapping_add(self.global(r)).write(state.max.read() + state.sum.read().ln());
            }
        }
    }
}
