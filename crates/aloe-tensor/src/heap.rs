//! Memory of buffers: one space in large pages, whose freed parts the next operation gets.
//!
//! The C library gives large buffers back to the system at once, and the system clears every page of the next one; and its pages of 4 KiB
//! cost a search for an address each, which on a virtual machine takes longer than the reading. [`Heap`] is for a program's
//! `#[global_allocator]`: small things stay with the system's allocator, buffers come from one mapping, best fit, neighbours joined.
//! Where the system refuses the mapping all stays with its allocator.

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes from which on something is a buffer.
const BUFFER: usize = 64 << 10;

/// Address space asked for, halved twice where the system has less to give; only what is written takes memory. A limit on address
/// space below that leaves all of it to the system's allocator.
const MOST_SPACE: usize = 1 << 39;
const LEAST_SPACE: usize = 1 << 37;

/// What the system calls a large page.
const LARGE_PAGE: usize = 2 << 20;

/// Parts begin and end at multiples of this, which no system's page exceeds.
const PAGE: usize = 64 << 10;

/// The allocator of a program that computes with tensors.
pub struct Heap;

/// The mapping's first address (0 before it is made, 1 when there is none) and its end: what tells our buffers from the system's.
static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
static SPACE: Mutex<Space> = Mutex::new(Space { map: None, top: 0, free: BTreeMap::new() });

struct Space {
    map: Option<MmapRaw>,
    /// Below this, memory has been used and is not zero.
    top: usize,
    /// Freed parts below `top`, length by address; no two of them touch.
    free: BTreeMap<usize, usize>,
}

/// Has the C library keep what is freed at the end of its arenas, up to 64 MiB each, as loops over small buffers want it back at once:
/// a merge in tiles spent a third of its time in pages that came and went.
fn keep_small_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        const M_TRIM_THRESHOLD: i32 = -1;
        // SAFETY: may be called at any time and takes no pointers.
        let _ = unsafe { mallopt(M_TRIM_THRESHOLD, 64 << 20) };
    }
}

fn space() -> MutexGuard<'static, Space> {
    SPACE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Space {
    /// Makes the mapping at the first call. What is allocated here is small, and so does not come back here.
    fn open(&mut self) {
        keep_small_buffers();
        let mut len = MOST_SPACE;
        while self.map.is_none() && len >= LEAST_SPACE {
            self.map = MmapOptions::new().len(len).no_reserve_swap().map_anon().ok().map(MmapMut::into);
            len /= 2;
        }
        let Some(map) = &self.map else { return START.store(1, Ordering::Release) };
        // A system without large pages has small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = (map.as_ptr() as usize).next_multiple_of(LARGE_PAGE);
        self.top = start;
        END.store(map.as_ptr() as usize + map.len(), Ordering::Release);
        START.store(start, Ordering::Release);
    }

    /// The address of `size` bytes (whole pages), and how many of them may not be zero.
    fn take(&mut self, size: usize) -> Option<(usize, usize)> {
        let fits = self.free.iter().filter(|(_, len)| **len >= size).min_by_key(|(_, len)| **len);
        if let Some((&at, &len)) = fits {
            self.free.remove(&at);
            if len > size {
                self.free.insert(at + size, len - size);
            }
            return Some((at, size));
        }
        // What is free at the end is continued.
        let last = self.free.last_key_value().filter(|(at, len)| **at + **len == self.top).map(|(at, len)| (*at, *len));
        let (at, used) = last.unwrap_or((self.top, 0));
        if at + size > END.load(Ordering::Acquire) {
            return None;
        }
        if used > 0 {
            self.free.remove(&at);
        }
        self.top = at + size;
        Some((at, used))
    }

    fn give(&mut self, at: usize, size: usize) {
        let (mut at, mut size) = (at, size);
        if let Some(next) = self.free.remove(&(at + size)) {
            size += next;
        }
        if let Some((&before, &len)) = self.free.range(..at).next_back()
            && before + len == at
        {
            (at, size) = (before, len + size);
        }
        self.free.insert(at, size);
    }

    /// Lets the system have the memory of the free parts.
    fn give_back(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            for (&at, &len) in &self.free {
                let offset = at - map.as_ptr() as usize;
                // SAFETY: nobody holds a free part; what it held may go. A system that cannot keeps it.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
            }
        }
    }
}

/// Memory for a buffer, and how many bytes of it may not be zero; `None` where it is the system allocator's.
fn buffer(layout: Layout) -> Option<(*mut u8, usize)> {
    if layout.size() < BUFFER || layout.align() > PAGE {
        return None;
    }
    let mut space = space();
    if START.load(Ordering::Acquire) == 0 {
        space.open();
    }
    let (at, used) = space.take(layout.size().next_multiple_of(PAGE))?;
    let map = space.map.as_ref()?;
    Some((map.as_mut_ptr().wrapping_add(at - map.as_ptr() as usize), used))
}

fn is_ours(ptr: *mut u8) -> bool {
    // The end stands before the start does.
    let start = START.load(Ordering::Acquire);
    start > 1 && (start..END.load(Ordering::Acquire)).contains(&(ptr as usize))
}

// SAFETY: a buffer is a part of the mapping that is in no other buffer and not free, page-aligned, as long as asked for; everything else is
// the system allocator's, which gets back what it gave.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        buffer(layout).map_or_else(|| System.alloc(layout), |(ptr, _)| ptr)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some((ptr, used)) = buffer(layout) else { return System.alloc_zeroed(layout) };
        ptr.write_bytes(0, used.min(layout.size()));
        ptr
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if is_ours(ptr) {
            space().give(ptr as usize, layout.size().next_multiple_of(PAGE));
        } else {
            System.dealloc(ptr, layout);
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !is_ours(ptr) && new_size < BUFFER {
            return System.realloc(ptr, layout, new_size);
        }
        let (pages, new_pages) = (layout.size().next_multiple_of(PAGE), new_size.next_multiple_of(PAGE));
        if is_ours(ptr) && new_size >= BUFFER && new_pages <= pages {
            if new_pages < pages {
                space().give(ptr as usize + new_pages, pages - new_pages);
            }
            return ptr;
        }
        let new = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
        if !new.is_null() {
            new.copy_from_nonoverlapping(ptr, layout.size().min(new_size));
            self.dealloc(ptr, layout);
        }
        new
    }
}

/// Gives all freed memory back to the system: between works of different kinds, whose peaks are told apart.
pub fn give_back_freed_memory() {
    space().give_back();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: the C library's function, as its manual declares it; memory in use stays where it is.
        let _ = unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_record::CounterRng;

    /// The allocator as a program has it: threads that take and free buffers and small things at once share no byte.
    fn allocate_in_threads() {
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                scope.spawn(move || {
                    for round in 0..300usize {
                        let size = [64, BUFFER - 1, BUFFER, 3 * BUFFER + 1][round % 4];
                        let layout = Layout::from_size_align(size, 16).unwrap();
                        // SAFETY: of a size above zero, written and read within it, freed once with its layout.
                        unsafe {
                            let ptr = Heap.alloc(layout);
                            ptr.write_bytes(thread, size);
                            std::thread::yield_now();
                            let held = std::slice::from_raw_parts(ptr, size);
                            assert!(held.iter().all(|&byte| byte == thread));
                            Heap.dealloc(ptr, layout);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn buffers_never_overlap_are_zero_when_asked_for_and_leave_no_hole_when_all_are_freed() {
        allocate_in_threads();
        let mut rng = CounterRng::new(1, "heap", 0);
        let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let check = |(ptr, layout, mark): (*mut u8, Layout, u8)| {
            // SAFETY: allocated below with this layout.
            let bytes = unsafe { std::slice::from_raw_parts(ptr, layout.size()) };
            assert!(
                bytes.iter().all(|&byte| byte == mark),
                "a buffer of {} holds other bytes than {mark}",
                layout.size()
            );
        };
        for round in 0..400u32 {
            let size = BUFFER / 2 + rng.below(4 * BUFFER);
            let layout = Layout::from_size_align(size, 64).unwrap();
            let mark = (round % 255) as u8 + 1;
            // SAFETY: of a size above zero; written within it.
            let ptr = unsafe {
                let ptr = if round % 3 == 0 { Heap.alloc_zeroed(layout) } else { Heap.alloc(layout) };
                assert!(!ptr.is_null() && (ptr as usize).is_multiple_of(64));
                if round % 3 == 0 {
                    check((ptr, layout, 0));
                }
                ptr.write_bytes(mark, size);
                ptr
            };
            held.push((ptr, layout, mark));
            while held.len() > 12 {
                let (ptr, layout, mark) = held.swap_remove(rng.below(held.len()));
                check((ptr, layout, mark));
                let (size, new_size) = (layout.size(), BUFFER / 2 + rng.below(2 * BUFFER));
                // SAFETY: allocated with this layout, and not used afterwards.
                unsafe {
                    let ptr = Heap.realloc(ptr, layout, new_size);
                    let layout = Layout::from_size_align(new_size, 64).unwrap();
                    check((ptr, Layout::from_size_align(size.min(new_size), 64).unwrap(), mark));
                    Heap.dealloc(ptr, layout);
                }
            }
        }
        for (ptr, layout, mark) in held {
            check((ptr, layout, mark));
            // SAFETY: as above.
            unsafe { Heap.dealloc(ptr, layout) };
        }
        let space = space();
        let parts: Vec<(usize, usize)> = space.free.iter().map(|(at, len)| (*at, *len)).collect();
        assert_eq!(parts, [(START.load(Ordering::Acquire), space.top - START.load(Ordering::Acquire))]);
        space.give_back();
    }
}
