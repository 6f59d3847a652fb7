//! Tiles: a tensor is read, merged and written in pieces of 8,192 elements, so that threads share one tensor, memory does not grow
//! with it, and a piece of every input lies in the second-level cache together. Results per tile come back in tile order, whatever the threads did: reductions have one order.

use crate::Result;
use crate::config::MergeDtype;
use crate::half::f32_to_f16;
use aloe_model::float::{bf16_to_f32, f16_to_f32, f32_to_bf16};
use aloe_tensor::Isa;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Elements per tile; a multiple of 4, so that a tile begins at a block of the mask generator.
pub(crate) const TILE: usize = 1 << 13;

/// The nearest bfloat16, ties to even.
pub(crate) fn round_bf16(value: f32) -> f32 {
    bf16_to_f32(f32_to_bf16(value))
}

/// Rounding to the merge dtype, as torch does after every operation.
pub(crate) trait Rounding {
    /// The nearest value of the dtype. What is not finite stays so: of NaN, those that arithmetic makes and those that [`round_read`] gives;
    /// the addition that rounds would carry the payload of another into its sign.
    fn round(value: f32) -> f32;

    /// [`Rounding::round`] of one operation that was computed in float64 from values of the dtype, the same as of what float32 gives; in float32 itself
    /// nothing is rounded here, so that the errors of several steps do not add up.
    #[inline]
    fn round_wide(value: f64) -> f64 {
        f64::from(Self::round(value as f32))
    }
}

/// float32: nothing is lost.
pub(crate) struct InF32;
/// bfloat16.
pub(crate) struct InBf16;
/// float16.
pub(crate) struct InF16;

impl Rounding for InF32 {
    #[inline]
    fn round(value: f32) -> f32 {
        value
    }

    #[inline]
    fn round_wide(value: f64) -> f64 {
        value
    }
}

impl Rounding for InBf16 {
    #[inline]
    fn round(value: f32) -> f32 {
        let bits = value.to_bits();
        f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
    }
}

impl Rounding for InF16 {
    #[inline]
    fn round(value: f32) -> f32 {
        f16_to_f32(f32_to_f16(value))
    }
}

/// Calls a function that is generic over the rounding with that of a dtype.
macro_rules! with_rounding {
    ($dtype:expr, $function:ident ( $($argument:expr),* $(,)? )) => {
        match $dtype {
            $crate::config::MergeDtype::Float32 => $function::<$crate::tile::InF32>($($argument),*),
            $crate::config::MergeDtype::Bfloat16 => $function::<$crate::tile::InBf16>($($argument),*),
            $crate::config::MergeDtype::Float16 => $function::<$crate::tile::InF16>($($argument),*),
        }
    };
}
pub(crate) use with_rounding;

/// [`Rounding::round`] where the dtype is known at run time only.
pub(crate) fn round_to(dtype: MergeDtype, value: f32) -> f32 {
    match dtype {
        MergeDtype::Bfloat16 => round_bf16(value),
        MergeDtype::Float16 => InF16::round(value),
        MergeDtype::Float32 => value,
    }
}

/// [`Rounding::round`] of what a file holds, where a NaN may have any payload: it becomes the usual one.
#[inline(always)]
pub(crate) fn round_read<R: Rounding>(value: f32) -> f32 {
    let rounded = R::round(value);
    if value.is_nan() { f32::NAN } else { rounded }
}

/// The tiles of a tensor of `n_elements`.
pub(crate) fn tiles(n_elements: usize) -> Vec<Range<usize>> {
    (0..n_elements).step_by(TILE).map(|start| start..(start + TILE).min(n_elements)).collect()
}

const LANES: usize = 8;

/// Sum of products in f64, in eight lanes: one order on every machine.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    Isa::wide(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; LANES];
            let (a_chunks, a_rest) = a.as_chunks::<LANES>();
            let (b_chunks, b_rest) = b.as_chunks::<LANES>();
            for (a, b) in a_chunks.iter().zip(b_chunks) {
                for lane in 0..LANES {
                    lanes[lane] += f64::from(a[lane]) * f64::from(b[lane]);
                }
            }
            let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            lanes.iter().sum::<f64>() + rest
        },
    )
}

/// [`dot`] of `a` with itself, of `a` and `b`, and of `b` with itself, in one pass.
pub(crate) fn dots(a: &[f32], b: &[f32]) -> [f64; 3] {
    Isa::wide(
        #[inline(always)]
        || {
            let mut lanes = [[0.0f64; LANES]; 3];
            let (a_chunks, a_rest) = a.as_chunks::<LANES>();
            let (b_chunks, b_rest) = b.as_chunks::<LANES>();
            for (a, b) in a_chunks.iter().zip(b_chunks) {
                let (a, b) = (a.map(f64::from), b.map(f64::from));
                for lane in 0..LANES {
                    lanes[0][lane] += a[lane] * a[lane];
                    lanes[1][lane] += a[lane] * b[lane];
                    lanes[2][lane] += b[lane] * b[lane];
                }
            }
            let rest = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            let rests = [rest(a_rest, a_rest), rest(a_rest, b_rest), rest(b_rest, b_rest)];
            std::array::from_fn(|at| lanes[at].iter().sum::<f64>() + rests[at])
        },
    )
}

/// Sum in f64, in eight lanes.
pub(crate) fn sum<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    Isa::wide(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; LANES];
            let (chunks, rest) = values.as_chunks::<LANES>();
            for chunk in chunks {
                for lane in 0..LANES {
                    lanes[lane] += Into::<f64>::into(chunk[lane]);
                }
            }
            lanes.iter().sum::<f64>() + rest.iter().map(|value| Into::<f64>::into(*value)).sum::<f64>()
        },
    )
}

/// Sum of magnitudes in f64, in eight lanes.
pub(crate) fn sum_of_magnitudes(values: &[f32]) -> f64 {
    Isa::wide(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; LANES];
            let (chunks, rest) = values.as_chunks::<LANES>();
            for chunk in chunks {
                for lane in 0..LANES {
                    lanes[lane] += f64::from(chunk[lane].abs());
                }
            }
            lanes.iter().sum::<f64>() + rest.iter().map(|value| f64::from(value.abs())).sum::<f64>()
        },
    )
}

/// Runs `work` on every job, on at most `threads` threads, the caller's among them; the results stand in the order of the jobs. The first error in job order among
/// those met is returned, and no new job is begun after one.
pub(crate) fn run<J: Send, R: Send>(
    threads: usize,
    jobs: Vec<J>,
    work: impl Fn(J) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let threads = threads.min(jobs.len());
    if threads <= 1 {
        return jobs.into_iter().map(work).collect();
    }
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let failed = AtomicBool::new(false);
    let take = || queue.lock().map_or(None, |mut queue| queue.next()).filter(|_| !failed.load(Ordering::Relaxed));
    let worker = || {
        let mut done = Vec::new();
        while let Some((index, job)) = take() {
            let result = work(job);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            done.push((index, result));
        }
        done
    };
    let mut done: Vec<(usize, Result<R>)> = std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mut done = worker();
        for handle in handles {
            done.extend(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
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
            let squares = run(threads, (0..37).collect(), |job: usize| Ok(job * job)).unwrap();
            assert_eq!(squares, (0..37).map(|job| job * job).collect::<Vec<_>>());
        }
        assert_eq!(run(4, Vec::<usize>::new(), Ok).unwrap(), Vec::<usize>::new());
    }

    #[test]
    fn a_failed_job_fails_the_run() {
        let fail = |job: usize| if job == 5 { Err(crate::Error::model("m", "bad")) } else { Ok(job) };
        for threads in [1, 3] {
            assert!(run(threads, (0..9).collect(), fail).is_err());
        }
    }

    #[test]
    fn tiles_cover_a_tensor_once_and_in_order() {
        for n in [0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 7] {
            let covered: Vec<usize> = tiles(n).into_iter().flatten().collect();
            assert_eq!(covered, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn sums_in_lanes_equal_the_plain_ones_of_whole_numbers() {
        for n in [0, 1, 7, 8, 9, 100] {
            let values: Vec<f32> = (0..n).map(|i| (i as f32) - 20.0).collect();
            assert_eq!(dot(&values, &values), values.iter().map(|v| f64::from(v * v)).sum::<f64>());
            let others: Vec<f32> = values.iter().map(|v| v * 0.37).collect();
            let expected = [dot(&values, &values), dot(&values, &others), dot(&others, &others)];
            assert_eq!(dots(&values, &others), expected);
            assert_eq!(sum_of_magnitudes(&values), values.iter().map(|v| f64::from(v.abs())).sum::<f64>());
        }
    }

    /// The payloads: what arithmetic makes on x86 and on ARM, and what reading leaves of a file's.
    #[test]
    fn the_quick_bf16_rounding_equals_the_careful_one_and_keeps_every_nan_it_can_meet() {
        let others = [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0xff80_0001, 0x7fc0_0000, 0xffc0_0000, 0x7fff_0000];
        for bits in (0..=u32::MAX).step_by(9973).chain(others) {
            let value = f32::from_bits(bits);
            let read = round_read::<InBf16>(value);
            match value.is_nan() {
                true => assert!(read.is_nan(), "{bits:#x} became {read}"),
                false => assert_eq!(read.to_bits(), round_bf16(value).to_bits()),
            }
            if !value.is_nan() {
                assert_eq!(InBf16::round(value).to_bits(), read.to_bits());
            }
        }
        for bits in [0x7fc0_0000, 0xffc0_0000, 0x7fff_0000, 0xffff_0000, 0x7f81_0000] {
            assert!(InBf16::round(f32::from_bits(bits)).is_nan(), "{bits:#x}");
        }
    }
}
