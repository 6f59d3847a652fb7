//! How the keys of documents are shared out among tasks, and dq, which each part of them sums on its own.

use super::super::backward::add_row;
use super::super::keys::groups;
use super::super::rounded::Job;
use super::super::{AttentionPlan, BLOCK, Heads};
use crate::pool::SharedMut;
use crate::simd::{Kernel, Simd};
use crate::{Device, Tensor};
use std::ops::Range;

/// Keys of a task at least, and tasks that a document's keys are shared among at most.
const PART_KEYS: usize = 256;
const PARTS: usize = 4;

/// One task: these keys of these jobs, for one key head.
pub(super) struct Task {
    pub(super) jobs: Vec<usize>,
    pub(super) kv: usize,
    pub(super) keys: Range<usize>,
    pub(super) part: usize,
}

/// Long tasks first.
pub(super) fn tasks(plan: &AttentionPlan, jobs: &[Job], n_heads: usize) -> Vec<Task> {
    let mut tasks = Vec::new();
    for members in groups(plan) {
        let n_keys = members.iter().map(|&j| jobs[j].keys.len()).max().unwrap_or(0);
        // Jobs that share keys write the same rows: one task takes them all.
        let n_parts = if members.len() > 1 { 1 } else { (n_keys / PART_KEYS).clamp(1, PARTS) };
        let size = n_keys.div_ceil(n_parts).next_multiple_of(BLOCK);
        for part in 0..n_parts {
            let keys = part * size..if part + 1 == n_parts { n_keys } else { ((part + 1) * size).min(n_keys) };
            for kv in 0..n_heads {
                tasks.push(Task { jobs: members.clone(), kv, keys: keys.clone(), part });
            }
        }
    }
    let seen = |task: &Task| -> usize {
        let of = |&j: &usize| jobs[j].queries.len().saturating_sub(jobs[j].first_query(task.keys.start));
        task.jobs.iter().map(of).sum::<usize>() * task.keys.len()
    };
    tasks.sort_by_cached_key(|task| std::cmp::Reverse(seen(task)));
    tasks
}

/// dq by parts of the keys, each `[N, H*E]`. A part writes the rows of queries that see some of its keys, and no others.
pub(super) struct QueryParts {
    memory: Vec<Vec<f32>>,
    all: Vec<SharedMut<f32>>,
    /// How many of the parts, from the first on, write a row.
    n_written: Vec<usize>,
    width: usize,
}

impl QueryParts {
    pub(super) fn new(tasks: &[Task], jobs: &[Job], n: usize, heads: Heads) -> Self {
        let (mut n_written, width) = (vec![0; n], heads.h * heads.e);
        for task in tasks.iter().filter(|task| task.kv == 0) {
            for job in task.jobs.iter().map(|&j| &jobs[j]) {
                let rows = job.queries.start + job.first_tile(task.keys.start)..job.queries.end;
                n_written[rows].iter_mut().for_each(|n| *n = (*n).max(task.part + 1));
            }
        }
        let n_parts = n_written.iter().copied().max().unwrap_or(0).max(1);
        let mut memory: Vec<Vec<f32>> = (0..n_parts).map(|_| Vec::with_capacity(n * width)).collect();
        let all = memory.iter_mut().map(|part| SharedMut::from_raw(part.as_mut_ptr(), n * width)).collect();
        Self { memory, all, n_written, width }
    }

    /// Where part `part` begins.
    pub(super) fn start(&self, part: usize) -> *mut f32 {
        self.all[part].ptr()
    }

    /// The sum of all parts, once they are written.
    pub(super) fn sum(mut self, device: &Device) -> Tensor {
        let (n, width) = (self.n_written.len(), self.width);
        device.for_each(n.div_ceil(16), &|task| {
            for row in task * 16..(task * 16 + 16).min(n) {
                let at = |part: &SharedMut<f32>| part.ptr().wrapping_add(row * width);
                // SAFETY: a row of this index alone, within the memory of all parts, of which those read are written.
                unsafe {
                    match &self.all[..self.n_written[row]] {
                        [] => at(&self.all[0]).write_bytes(0, width),
                        [first, others @ ..] => {
                            for other in others {
                                device.isa().run(AddRow { to: at(first), from: at(other), n: width });
                            }
                        }
                    }
                }
            }
        });
        let mut first = self.memory.swap_remove(0);
        // SAFETY: within the capacity; every row is written, by its tasks or above.
        unsafe { first.set_len(n * width) };
        Tensor::from_f32(&[n, width], first)
    }
}

struct AddRow {
    to: *mut f32,
    from: *const f32,
    n: usize,
}

impl Kernel for AddRow {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        add_row::<S>(self.to, self.from, self.n);
    }
}
