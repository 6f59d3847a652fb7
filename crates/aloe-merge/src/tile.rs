//! Tiles: a tensor is read, merged and written in pieces of 65,536 elements, so that threads share one tensor and scratch memory
//! does not grow with it. Results per tile come back in tile order, whatever the threads did.

use crate::config::MergeDtype;
use aloe_model::FileDtype;
use aloe_model::float::{bf16_to_f32, f16_to_f32, f32_to_bf16};
use std::ops::Range;
use std::sync::Mutex;

/// Elements per tile; a multiple of 4, so that a tile begins at a block of the mask generator.
pub(crate) const TILE: usize = 1 << 16;

/// A tensor as its file holds it: little-endian, row-major.
#[derive(Clone, Copy, Debug)]
pub struct TensorBytes<'a> {
    /// Element type: F32, F16 or BF16.
    pub dtype: FileDtype,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl TensorBytes<'_> {
    /// Reads the elements from `start` on as `dtype` (rounded where the file holds more) into `out`.
    pub(crate) fn read(&self, start: usize, dtype: MergeDtype, out: &mut [f32]) {
        let size = self.dtype.size_bytes();
        let bytes = &self.bytes[start * size..(start + out.len()) * size];
        match self.dtype {
            FileDtype::F32 => {
                for (value, four) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*four);
                }
            }
            FileDtype::BF16 => {
                for (value, two) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = bf16_to_f32(u16::from_le_bytes(*two));
                }
            }
            FileDtype::F16 => {
                for (value, two) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f16_to_f32(u16::from_le_bytes(*two));
                }
            }
            other => unreachable!("the reader lets no {other:?} weights pass"),
        }
        if dtype == MergeDtype::Bfloat16 && self.dtype != FileDtype::BF16 {
            out.iter_mut().for_each(|value| *value = round_bf16(*value));
        }
    }
}

/// The nearest bfloat16, ties to even.
pub(crate) fn round_bf16(value: f32) -> f32 {
    bf16_to_f32(f32_to_bf16(value))
}

/// Rounds to the merge dtype, as torch does after every operation.
#[inline]
pub(crate) fn round<const BF16: bool>(value: f32) -> f32 {
    if BF16 { round_bf16(value) } else { value }
}

/// [`round`] where the dtype is known at run time only.
pub(crate) fn round_to(dtype: MergeDtype, value: f32) -> f32 {
    match dtype {
        MergeDtype::Bfloat16 => round_bf16(value),
        MergeDtype::Float32 => value,
    }
}

/// The tiles of a tensor of `n_elements`.
pub(crate) fn tiles(n_elements: usize) -> Vec<Range<usize>> {
    (0..n_elements).step_by(TILE).map(|start| start..(start + TILE).min(n_elements)).collect()
}

/// The tiles of an output, each with its place.
pub(crate) fn output_tiles(out: &mut [f32]) -> Vec<(usize, &mut [f32])> {
    out.chunks_mut(TILE).enumerate().map(|(index, tile)| (index * TILE, tile)).collect()
}

/// Runs `work` on every job, on at most `threads` threads; the results stand in the order of the jobs.
pub(crate) fn run<J: Send, R: Send>(threads: usize, jobs: Vec<J>, work: impl Fn(J) -> R + Sync) -> Vec<R> {
    let threads = threads.min(jobs.len());
    if threads <= 1 {
        return jobs.into_iter().map(work).collect();
    }
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let take = || queue.lock().map_or(None, |mut queue| queue.next());
    let worker = || {
        let mut done = Vec::new();
        while let Some((index, job)) = take() {
            done.push((index, work(job)));
        }
        done
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        handles
            .into_iter()
            .flat_map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_job_order_at_any_thread_count() {
        for threads in [1, 2, 5, 64] {
            assert_eq!(
                run(threads, (0..37).collect(), |job: usize| job * job),
                (0..37).map(|job| job * job).collect::<Vec<_>>()
            );
        }
        assert_eq!(run(4, Vec::<usize>::new(), |job| job), Vec::<usize>::new());
    }

    #[test]
    fn tiles_cover_a_tensor_once_and_in_order() {
        for n in [0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 7] {
            let covered: Vec<usize> = tiles(n).into_iter().flatten().collect();
            assert_eq!(covered, (0..n).collect::<Vec<_>>());
        }
    }
}
