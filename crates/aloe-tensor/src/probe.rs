//! How fast this machine reads memory: what a product of one row could reach at most, for benches.

use crate::Device;
use crate::pages::Lines;
use crate::simd::LANES;
use std::hint::black_box;

/// Memory of the kind that weights lie in, written once.
#[derive(Debug)]
pub struct ReadProbe {
    lines: Lines,
}

impl ReadProbe {
    /// So many bytes, rounded up to cache lines; more than all caches hold, if memory is meant.
    pub fn new(device: &Device, bytes: usize) -> Self {
        let mut lines = Lines::kept(bytes.div_ceil(size_of::<[u32; LANES]>()));
        let (len, shared) = (lines.len(), crate::pool::SharedMut::new(&mut lines));
        device.for_each(len.div_ceil(Self::PART), &|part| {
            let from = part * Self::PART;
            // SAFETY: each index has its own lines.
            let lines = unsafe { shared.slice(from, Self::PART.min(len - from)) };
            lines.iter_mut().for_each(|line| line.0[0] = 1);
        });
        Self { lines }
    }

    /// Lines of a task: 2 MiB.
    const PART: usize = 1 << 15;

    /// Bytes that [`ReadProbe::read`] reads.
    pub fn nbytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// Reads every byte once, each thread its own stretch in order.
    pub fn read(&self, device: &Device) {
        self.read_part(device, 0, self.nbytes());
    }

    /// The same for `n` bytes from byte `from` on, both rounded to cache lines.
    pub fn read_part(&self, device: &Device, from: usize, n: usize) {
        let size = size_of::<[u32; LANES]>();
        let lines = &self.lines[from / size..][..n / size];
        let share = lines.len().div_ceil(2 * device.threads()).clamp(1, Self::PART);
        device.for_each(lines.len().div_ceil(share), &|part| {
            let mut sum = [0; LANES];
            for line in &lines[part * share..lines.len().min((part + 1) * share)] {
                sum.iter_mut().zip(&line.0).for_each(|(sum, word)| *sum ^= word);
            }
            black_box(sum);
        });
    }
}
