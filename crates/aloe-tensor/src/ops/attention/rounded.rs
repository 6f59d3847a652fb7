//! Forward pass over bf16 rows, for training in bf16: operands of both products are bf16, softmax and sums f32.
//!
//! Each document's keys and values are packed once as the pages of a cache, and the walk is that of `paged`: a query's result depends
//! on its keys alone.

use super::keys::padded;
use super::page::KvPage;
use super::paged::{Call, Output, PagedSequence, Queries, attend};
use super::{AttentionPlan, BLOCK, Heads};
use crate::pool::SharedMut;
use crate::simd::{LANES, Simd};
use crate::{Device, Rounded, Tensor};
use std::ops::Range;

/// Queries and the rows of the keys they see.
pub(super) struct Job {
    pub(super) queries: Range<usize>,
    pub(super) keys: Vec<usize>,
    causal: bool,
}

impl Job {
    /// The plan's blocks over `n` queries and `m` keys, checked.
    pub(super) fn all(plan: &AttentionPlan, n: usize, m: usize) -> Vec<Self> {
        let mut next = 0;
        let mut sorted: Vec<_> = plan.blocks.iter().collect();
        sorted.sort_by_key(|block| block.queries.start);
        for block in sorted {
            assert!(next <= block.queries.start && block.queries.end <= n, "queries {:?} of a plan", block.queries);
            next = block.queries.end;
        }
        let job = |block: &super::AttentionBlock| {
            let keys: Vec<usize> = block.keys.iter().cloned().flatten().collect();
            assert!(keys.iter().all(|&key| key < m), "keys {:?} of {m}", block.keys);
            let enough = if plan.causal { block.queries.len().max(1) } else { 1 };
            assert!(
                keys.len() >= enough || block.queries.is_empty(),
                "queries {:?} but {} keys",
                block.queries,
                keys.len()
            );
            Self { queries: block.queries.clone(), keys, causal: plan.causal }
        };
        plan.blocks.iter().map(job).collect()
    }

    /// How many keys the `i`-th query sees.
    #[inline(always)]
    pub(super) fn visible(&self, i: usize) -> usize {
        if self.causal { self.keys.len() - self.queries.len() + i + 1 } else { self.keys.len() }
    }

    /// The first query that sees key `j`.
    pub(super) fn first_query(&self, j: usize) -> usize {
        if self.causal { (j + self.queries.len()).saturating_sub(self.keys.len()) } else { 0 }
    }

    /// The first of the tiles of 64 queries in which some query sees key `j`.
    pub(super) fn first_tile(&self, j: usize) -> usize {
        self.first_query(j) / BLOCK * BLOCK
    }

    /// Up to 64 rows of keys from key `start` on as bits of head `kv`; rows past the last repeat it.
    #[inline(always)]
    pub(super) fn block(&self, x: &Rounded, start: usize, n: usize, first_unit: usize) -> [*const u32; BLOCK] {
        let at = |i: usize| x.row(self.keys[start + i.min(n - 1)]).cast::<u32>().wrapping_add(first_unit);
        std::array::from_fn(at)
    }
}

/// [`super::attention`] over bf16 rows q `[N, H*E]`, k and v `[M, K*E]`: o `[N, H*E]` rounded, and the log-sum-exp of the scaled scores
/// `[N, H]` f32. Queries outside the plan get zeros.
pub fn attention_rounded(
    device: &Device,
    [q, k, v]: [&Rounded; 3],
    heads: Heads,
    plan: &AttentionPlan,
    scale: f32,
) -> (Rounded, Tensor) {
    let n = q.rows();
    check(q, k, v, heads);
    let jobs: Vec<Job> = Job::all(plan, n, k.rows()).into_iter().filter(|job| !job.queries.is_empty()).collect();
    let pages = pages(device, [k, v], heads, &jobs);
    let sequences: Vec<PagedSequence> = std::iter::zip(&jobs, &pages)
        .map(|(job, pages)| PagedSequence {
            queries: job.queries.clone(),
            pages: pages.iter().collect(),
            len_tokens: job.keys.len(),
        })
        .collect();
    let mut lse = vec![0.0; n * heads.h];
    let out_lse = Some(SharedMut::new(&mut lse));
    let o = Rounded::written(n, q.width(), |o| {
        if sequences.is_empty() {
            // SAFETY: rows of the result, which nobody else writes.
            (0..n).for_each(|row| unsafe { o.row(row).write_bytes(0, q.width()) });
            return;
        }
        let (q, sequences, causal) = (Queries::Rounded(q), &sequences, plan.causal);
        attend(device, &Call { q, n, heads, sequences, causal, scale, o: Output::Rounded(o), lse: out_lse });
    });
    (o, Tensor::from_f32(&[n, heads.h], lse))
}

/// The keys and values of each job in pages, packed once for all of its queries.
fn pages<'a>(device: &Device, [k, v]: [&Rounded; 2], heads: Heads, jobs: &'a [Job]) -> Vec<Vec<KvPage>> {
    let starts = |job: &'a Job| (0..job.keys.len()).step_by(BLOCK).map(move |start| (job, start));
    let blocks: Vec<(&'a Job, usize)> = jobs.iter().flat_map(starts).collect();
    let mut made: Vec<Option<KvPage>> = vec![None; blocks.len()];
    let out = SharedMut::new(&mut made);
    device.for_each(blocks.len(), &|i| {
        let (job, start) = blocks[i];
        let n = BLOCK.min(job.keys.len() - start);
        let rows = |head| [k, v].map(|x| job.block(x, start, n, head * heads.e / 2));
        // SAFETY: keys are rows of k and v (checked in `Job::all`), of these heads (checked by the caller); each index has its own page.
        unsafe { out.slice(i, 1)[0] = Some(KvPage::passing(device, (heads.k, heads.e), n, rows)) }
    });
    let mut made = made.into_iter().flatten();
    jobs.iter().map(|job| made.by_ref().take(job.keys.len().div_ceil(BLOCK)).collect()).collect()
}

pub(super) fn check(q: &Rounded, k: &Rounded, v: &Rounded, heads: Heads) {
    let Heads { h, k: kv, e } = heads;
    assert!(e.is_multiple_of(2) && kv > 0 && h.is_multiple_of(kv), "{h} and {kv} heads of {e}");
    assert_eq!((q.width(), k.width(), v.width(), k.rows()), (h * e, kv * e, kv * e, v.rows()), "rows of q, k and v");
}

/// Units of a head, rounded up to whole vectors.
pub(super) fn units(e: usize) -> usize {
    (e / 2).next_multiple_of(LANES)
}

/// Two rows of `e` bf16 a unit: unit j of element x at `out[j * padded(e) + x]`; a missing last row is zero, elements up to `padded(e)`
/// are written.
///
/// # Safety
/// `n` rows of `e` elements to read, `n.div_ceil(2) * padded(e)` units to write; the instruction set is available.
#[inline(always)]
pub(super) unsafe fn pair_rows<S: Simd>(rows: &[*const u32; BLOCK], n: usize, e: usize, out: *mut u32) {
    let mut row = 0;
    while row < n {
        let mut unit = 0;
        while unit < e / 2 {
            let width = (e / 2 - unit).min(LANES);
            let low = S::load_up_to(rows[row].wrapping_add(unit).cast(), width);
            let high =
                if row + 1 < n { S::load_up_to(rows[row + 1].wrapping_add(unit).cast(), width) } else { S::splat(0.0) };
            let (first, second) = S::interleave_bf16(low, high);
            let to = out.wrapping_add(row / 2 * padded(e) + 2 * unit);
            S::store(to.cast(), first);
            S::store(to.wrapping_add(LANES).cast(), second);
            unit += LANES;
        }
        row += 2;
    }
}
