//! Memory for weights: in large pages where the system gives them, because a product of one row reads every weight once, and with
//! pages of 4 KiB the search for their addresses takes longer than the reading (55 against 34 GB/s on a virtual machine).
//!
//! Weights are laid one after the other into regions of 64 MiB, as most are smaller than a large page. A region goes back to the
//! system when the last weight in it is dropped. Pages of keys and values come and go: they lie in regions of their own, by size,
//! where a place is used again. Memory that is needed for one operation only stays with the allocator.

use crate::pack::{Line, ZERO_LINE};
use memmap2::{MmapMut, MmapRaw};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What the system calls large.
const LARGE: usize = 2 << 20;

/// Address space of a region; only what is written takes memory.
const REGION: usize = 64 << 20;

/// A mapping whose parts belong to [`Lines`], each its own.
struct Region {
    map: MmapRaw,
    /// Where its parts begin: at a large page.
    first: usize,
    /// Lines of each part, where parts are alike and places are used again.
    alike: usize,
    places: Mutex<Places>,
}

/// Places of parts that are alike.
#[derive(Default)]
struct Places {
    n_used: usize,
    free: Vec<usize>,
}

/// The regions of parts that are alike.
static ALIKE: Mutex<Vec<Weak<Region>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Region {
    /// At least `bytes` from a large page on; `None` where the system maps nothing.
    fn new(bytes: usize, alike: usize) -> Option<Arc<Self>> {
        let map = MmapRaw::from(MmapMut::map_anon(bytes.max(REGION) + LARGE).ok()?);
        // A system without large pages has small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let first = map.as_ptr().align_offset(LARGE);
        Some(Arc::new(Self { map, first, alike, places: Mutex::default() }))
    }

    /// A place for a part of a region whose parts are alike: one given back, then one never used.
    fn place(&self) -> Option<usize> {
        let mut places = lock(&self.places);
        if let Some(place) = places.free.pop() {
            return Some(place);
        }
        let end = self.first + (places.n_used + 1) * self.alike * size_of::<Line>();
        (end <= self.map.len()).then(|| {
            places.n_used += 1;
            places.n_used - 1
        })
    }

    /// Not looked at through the region: each part belongs to one [`Lines`].
    fn address(&self, from: usize) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(from)
    }
}

/// The region that is being filled, and where its free part begins.
static FILLING: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));

/// Zeroed lines that are kept for long or pass soon.
pub(crate) struct Lines {
    start: *mut Line,
    len: usize,
    owner: Owner,
}

#[expect(dead_code, reason = "what is in it keeps the lines mapped")]
enum Owner {
    Allocator(Vec<Line>),
    Region(Arc<Region>),
    Place(Arc<Region>, usize),
}

// SAFETY: the lines belong to this value alone, as a vector's do; a region only keeps them mapped.
unsafe impl Send for Lines {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Lines {}

impl Lines {
    /// For one operation.
    pub(crate) fn passing(len: usize) -> Self {
        let mut lines = vec![ZERO_LINE; len];
        Self { start: lines.as_mut_ptr(), len, owner: Owner::Allocator(lines) }
    }

    /// For one operation, and not zeroed: `write` writes all of them.
    ///
    /// # Safety
    /// `write` writes every byte of `len` lines.
    pub(crate) unsafe fn written(len: usize, write: impl FnOnce(*mut Line)) -> Self {
        let mut lines = Vec::with_capacity(len);
        write(lines.as_mut_ptr());
        // SAFETY: within the capacity, and written as the caller promised.
        unsafe { lines.set_len(len) };
        Self { start: lines.as_mut_ptr(), len, owner: Owner::Allocator(lines) }
    }

    /// For weights.
    pub(crate) fn kept(len: usize) -> Self {
        match in_region(len * size_of::<Line>()) {
            Some((region, start)) => Self { start: start.cast(), len, owner: Owner::Region(region) },
            None => Self::passing(len),
        }
    }

    /// For pages of a cache, of which many have the same length.
    pub(crate) fn paged(len: usize) -> Self {
        let mut lines = Self::paged_as_left(len);
        lines.fill(ZERO_LINE);
        lines
    }

    /// The same with what a page before left there.
    fn paged_as_left(len: usize) -> Self {
        match if len > 0 { in_place(len) } else { None } {
            Some((region, place)) => {
                let start = region.address(region.first + place * len * size_of::<Line>()).cast();
                Self { start, len, owner: Owner::Place(region, place) }
            }
            None => Self::passing(len),
        }
    }
}

/// Zeroed bytes at the address of a cache line, in the region that is being filled or a new one.
fn in_region(bytes: usize) -> Option<(Arc<Region>, *mut u8)> {
    let mut filling = lock(&FILLING);
    let (region, from) = match filling.0.upgrade() {
        Some(region) if filling.1 + bytes <= region.map.len() => (region, filling.1),
        _ => {
            let region = Region::new(bytes, 0)?;
            let first = region.first;
            (region, first)
        }
    };
    // Parts do not overlap, since each begins where the one before ended.
    let start = region.address(from);
    *filling = (Arc::downgrade(&region), (from + bytes).next_multiple_of(size_of::<Line>()));
    Some((region, start))
}

/// A place for `len` lines among others of that length.
fn in_place(len: usize) -> Option<(Arc<Region>, usize)> {
    let mut regions = lock(&ALIKE);
    regions.retain(|region| region.strong_count() > 0);
    for region in regions.iter().filter_map(Weak::upgrade).filter(|region| region.alike == len) {
        if let Some(place) = region.place() {
            return Some((region, place));
        }
    }
    let region = Region::new(len * size_of::<Line>(), len)?;
    regions.push(Arc::downgrade(&region));
    region.place().map(|place| (region, place))
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Owner::Place(region, place) = &self.owner {
            lock(&region.places).free.push(*place);
        }
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `len` lines, mapped or allocated as long as `owner` lives, all bits of which are valid lines.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above, and no other value has these lines.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut copy = match self.owner {
            Owner::Allocator(_) => Self::passing(self.len),
            Owner::Region(_) => Self::kept(self.len),
            Owner::Place(..) => Self::paged_as_left(self.len),
        };
        copy.copy_from_slice(self);
        copy
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} lines", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_lie_apart_and_are_zero_at_first_whatever_was_there_before() {
        for round in 0..3u32 {
            let sizes = [1, 1000, 0, 7, 40_000, 1_200_000, 3];
            let mut all: Vec<Lines> = sizes.iter().map(|&len| Lines::kept(len)).collect();
            for (i, lines) in all.iter_mut().enumerate() {
                assert!(lines.len() == sizes[i] && lines.as_ptr().addr().is_multiple_of(64));
                assert!(lines.iter().all(|line| line.0 == [0; 16]), "round {round}");
                lines.fill(Line([i as u32 + 1; 16]));
            }
            let copies = all.clone();
            for (i, lines) in all.iter().chain(&copies).enumerate() {
                assert!(lines.iter().all(|line| line.0 == [(i % sizes.len()) as u32 + 1; 16]));
            }
        }
    }

    #[test]
    fn pages_of_a_cache_are_zero_at_first_also_in_a_place_that_was_used() {
        let filled = |len: usize, with: u32| {
            let mut lines = Lines::paged(len);
            assert!(lines.iter().all(|line| line.0 == [0; 16]) && lines.len() == len);
            lines.fill(Line([with; 16]));
            lines
        };
        // 3000 pages of 48 KiB: more than two regions hold. No cache has pages of these lengths.
        for len in [771, 13, 0] {
            let mut all: Vec<Lines> = (0..3000).map(|i| filled(len, i + 1)).collect();
            let addresses: Vec<usize> = all.iter().map(|lines| lines.as_ptr().addr()).collect();
            let mut i = 0;
            all.retain(|_| {
                i += 1;
                i % 3 == 0
            });
            let again: Vec<Lines> = (0..2000).map(|i| filled(len, 10_000 + i)).collect();
            assert!(len == 0 || again.iter().all(|lines| addresses.contains(&lines.as_ptr().addr())));
            for (i, lines) in all.iter().enumerate() {
                assert!(lines.iter().all(|line| line.0 == [3 * i as u32 + 3; 16]));
            }
            for (i, lines) in again.iter().enumerate() {
                assert!(lines.iter().all(|line| line.0 == [10_000 + i as u32; 16]));
            }
        }
    }
}
