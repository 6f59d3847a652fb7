//! A persistent pool of threads that shares out the indices of a loop.
//!
//! One loop runs at a time; a loop started inside a loop runs inline on its thread. Idle workers spin for a fifth of a
//! millisecond (decoding starts a loop every few microseconds), then sleep. A thread takes indices from a range of its own, in
//! order, so that neighbours in memory stay one stream for the processor's prefetcher; when its range is empty it takes from the
//! others'. Which thread takes an index is therefore not fixed, and a body must write only what its index owns: that is what
//! makes results independent of the number of threads.
//!
//! A loop is started by one store for each thread and an index is taken by one atomic addition, without a lock: the word added
//! to names the loop, the range's length and its next index at once, so a thread that comes late cannot take an index of a loop
//! that is over for one of a loop that runs.

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SPIN: Duration = Duration::from_micros(200);

thread_local! {
    static IN_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// The running loop: its body with the lifetime erased, and how many indices it has.
#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize) + Sync),
    n: usize,
}

/// A loop and the next index of one thread's range, in one word: 16 bits number the loop, 24 are the range's length, 24 the index.
#[derive(Clone, Copy)]
struct Ticket(u64);

impl Ticket {
    const BITS: u32 = 24;
    const MASK: u64 = (1 << Self::BITS) - 1;

    /// Longest loop: indices past the end of a range, one for each thread that finds nothing left, fit too.
    const LONGEST: usize = 1 << (Self::BITS - 1);

    /// The start of the next loop's range of `n`.
    fn next(self, n: usize) -> Self {
        Self(self.number().wrapping_add(1) << (2 * Self::BITS) | (n as u64) << Self::BITS)
    }

    fn number(self) -> u64 {
        self.0 >> (2 * Self::BITS)
    }

    /// The index, unless all of the range are taken.
    fn index(self) -> Option<usize> {
        let (n, index) = (self.0 >> Self::BITS & Self::MASK, self.0 & Self::MASK);
        (index < n).then_some(index as usize)
    }
}

/// One thread's range, in cache lines of its own.
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn seen(&self, order: Ordering) -> Ticket {
        Ticket(self.0.load(order))
    }

    fn take(&self) -> Ticket {
        Ticket(self.0.fetch_add(1, Ordering::AcqRel))
    }

    /// Opens the next loop's range.
    fn open(&self, n: usize) {
        self.0.store(self.seen(Ordering::Relaxed).next(n).0, Ordering::SeqCst);
    }
}

/// Memory that a thread may fetch while it waits, because the next loop will read it there. Written by the thread that starts loops alone.
#[repr(align(128))]
#[derive(Default)]
struct Soon {
    start: AtomicUsize,
    bytes: AtomicUsize,
}

/// What a finishing thread writes.
#[repr(align(128))]
struct Finish {
    /// Indices done.
    done: AtomicUsize,
}

struct Shared {
    /// The caller's share first.
    shares: Vec<Share>,
    /// What each thread may fetch once it is done with the running loop.
    soon: Vec<Soon>,
    /// The same of the loop that starts next.
    pending: Vec<Soon>,
    /// Written only while all indices are taken and done, read only by the holder of an index.
    job: UnsafeCell<Option<Job>>,
    finish: Finish,
    /// Workers that sleep, or are about to: waking nobody would cost a system call per loop.
    sleeping: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

// SAFETY: `job` alone is not `Sync` by itself. It is written by the thread that holds `turn` while no index is left, and read by a
// thread that holds an index; the body it points to is `Sync` and outlives its indices, as `for_each` waits until all are done.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing else in it belongs to a thread.
unsafe impl Send for Shared {}

/// The pool; dropping it ends its threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a loop runs, so that loops from several threads take turns.
    turn: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// `threads` includes the caller: 1 starts no thread.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            shares: (0..threads.max(1)).map(|_| Share(AtomicU64::new(0))).collect(),
            soon: (0..threads.max(1)).map(|_| Soon::default()).collect(),
            pending: (0..threads.max(1)).map(|_| Soon::default()).collect(),
            job: UnsafeCell::new(None),
            finish: Finish { done: AtomicUsize::new(0) },
            sleeping: AtomicUsize::new(0),
            bed: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (1..threads.max(1))
            .map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("kernel-{i}"))
                    .spawn(move || worker(&shared, i))
                    .expect("the system can start a kernel thread")
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Says where each thread's part of the loop after the next will read from: of its first `bytes` a thread fetches what it can between
    /// its last index of the next loop and the start of the one after. Only a hint: addresses are never read from.
    pub(crate) fn soon(&self, bytes: usize, start_of: impl Fn(usize) -> *const u8) {
        if IN_LOOP.get() {
            return;
        }
        for (thread, pending) in self.shared.pending.iter().enumerate() {
            pending.set(start_of(thread).addr(), bytes);
        }
    }

    /// Runs `body(0..n)`, each index once, and returns when all are done. A panic of the body is passed on.
    pub(crate) fn for_each(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        if n <= 1 || self.workers.is_empty() || IN_LOOP.get() {
            (0..n).for_each(body);
            return;
        }
        let _turn = lock(&self.turn);
        let mut from = 0;
        while from < n {
            let part = (n - from).min(Ticket::LONGEST);
            if from == 0 {
                self.shared.run(part, body);
            } else {
                self.shared.run(part, &|i| body(from + i));
            }
            from += part;
        }
    }
}

impl Shared {
    /// First index of a thread's range, of n in all.
    fn start_of(&self, thread: usize, n: usize) -> usize {
        thread * n / self.shares.len()
    }

    /// One loop of at most [`Ticket::LONGEST`] indices; the caller holds the pool's turn.
    fn run(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime is erased; this function waits below until every index is done.
        let erased = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(body) };
        // SAFETY: the loop before is done and its indices are taken, so no thread holds one and none looks at the job.
        unsafe { *self.job.get() = Some(Job { body: erased, n }) };
        self.finish.done.store(0, Ordering::Relaxed);
        for (soon, pending) in self.soon.iter().zip(&self.pending) {
            soon.set(pending.start.load(Ordering::Relaxed), pending.bytes.swap(0, Ordering::Relaxed));
        }
        // The workers' ranges first, as they have some way to come. Sequentially consistent, as are a worker's steps to bed: either
        // it sees this loop or we see it sleeping.
        for thread in (0..self.shares.len()).rev() {
            self.shares[thread].open(self.start_of(thread + 1, n) - self.start_of(thread, n));
        }
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.bed));
            self.wake.notify_all();
        }
        self.take_indices(0);
        let (mut spins, mut ahead) = (0u32, self.soon[0].ahead());
        // A little is asked for in any case: it comes while the caller prepares the next loop.
        ahead.fetch(64);
        while self.finish.done.load(Ordering::Acquire) < n {
            ahead.fetch_or_pause();
            spins += 1;
            if spins > 2000 {
                std::thread::yield_now();
            }
        }
        if self.panicked.swap(false, Ordering::Relaxed)
            && let Some(payload) = lock(&self.panic).take()
        {
            resume_unwind(payload);
        }
    }

    /// Takes indices of whatever loop runs, of a thread's own range and then of the others', until none is left; returns the last
    /// ticket of its own. After a panic the rest is taken and left undone.
    fn take_indices(&self, thread: usize) -> Ticket {
        IN_LOOP.set(true);
        let (mut n_done, mut last) = (0, Ticket(0));
        for victim in (thread..self.shares.len()).chain(0..thread) {
            let ticket = loop {
                match catch_unwind(AssertUnwindSafe(|| self.empty_range(victim, &mut n_done))) {
                    Ok(ticket) => break ticket,
                    Err(payload) => {
                        lock(&self.panic).get_or_insert(payload);
                        self.panicked.store(true, Ordering::Relaxed);
                    }
                }
            };
            if victim == thread {
                last = ticket;
            }
        }
        IN_LOOP.set(false);
        if n_done > 0 {
            self.finish.done.fetch_add(n_done, Ordering::Release);
        }
        last
    }

    /// Runs what is left of a range; returns the ticket that said so.
    fn empty_range(&self, thread: usize, n_done: &mut usize) -> Ticket {
        loop {
            let ticket = self.shares[thread].take();
            let Some(index) = ticket.index() else { return ticket };
            *n_done += 1;
            if self.panicked.load(Ordering::Relaxed) {
                continue;
            }
            // SAFETY: we hold an index that is not done, so the caller waits, and the job and its body stay as they are.
            let (job, body) = unsafe {
                let job = (*self.job.get()).expect("a loop with indices has a body");
                (job, &*job.body)
            };
            body(self.start_of(thread, job.n) + index);
        }
    }

    /// Returns when the thread's range is of another loop than number `seen`, or the pool ends.
    fn wait_after(&self, thread: usize, seen: u64) {
        let share = &self.shares[thread];
        let start = Instant::now();
        let (mut spins, mut ahead) = (0u32, self.soon[thread].ahead());
        // The clock is looked at now and then only: a loop of a few microseconds must not wait for it.
        while share.seen(Ordering::Acquire).number() == seen {
            ahead.fetch_or_pause();
            spins += 1;
            if spins.is_multiple_of(64) && start.elapsed() >= SPIN {
                let mut bed = lock(&self.bed);
                self.sleeping.fetch_add(1, Ordering::SeqCst);
                while share.seen(Ordering::SeqCst).number() == seen && !self.stop.load(Ordering::SeqCst) {
                    bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleeping.fetch_sub(1, Ordering::SeqCst);
                return;
            }
        }
    }
}

const LINE: usize = 64;

/// What of [`Soon`] a waiting thread has not fetched yet.
struct Ahead {
    start: usize,
    bytes: usize,
}

impl Soon {
    fn set(&self, start: usize, bytes: usize) {
        self.start.store(start, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn ahead(&self) -> Ahead {
        Ahead { start: self.start.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

impl Ahead {
    /// A few cache lines, or a short pause when there are none left.
    fn fetch_or_pause(&mut self) {
        if self.bytes == 0 {
            return std::hint::spin_loop();
        }
        self.fetch(8);
    }

    /// At most so many cache lines.
    fn fetch(&mut self, lines: usize) {
        let bytes = self.bytes.min(lines * LINE);
        for at in (0..bytes).step_by(LINE) {
            crate::simd::prefetch_near(std::ptr::without_provenance(self.start.wrapping_add(at)));
        }
        (self.start, self.bytes) = (self.start.wrapping_add(bytes), self.bytes - bytes);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _bed = lock(&self.shared.bed);
            self.shared.stop.store(true, Ordering::SeqCst);
            // A loop of no indices, for those that do not sleep yet.
            self.shared.shares.iter().for_each(|share| share.open(0));
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of bodies; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

fn worker(shared: &Shared, thread: usize) {
    let mut seen = 0;
    loop {
        shared.wait_after(thread, seen);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        seen = shared.take_indices(thread).number();
    }
}

/// A pointer to data of which each loop index writes its own part.
pub(crate) struct SharedMut<T> {
    start: *mut T,
    len: usize,
}

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedMut<T> {}

// SAFETY: every access goes through `slice` or `ptr`, whose callers promise that parts of different indices do not overlap.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(data: &mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len() }
    }

    /// The same over memory that the caller keeps alive while the loop runs.
    pub(crate) fn from_raw(start: *mut T, len: usize) -> Self {
        Self { start, len }
    }

    /// # Safety
    /// No other index may touch `from..from + len` while the slice lives, and the data must outlive it.
    #[inline(always)]
    pub(crate) unsafe fn slice<'a>(self, from: usize, len: usize) -> &'a mut [T] {
        assert!(from + len <= self.len, "part {from}+{len} of {}", self.len);
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    pub(crate) fn ptr(self) -> *mut T {
        self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once_also_in_nested_loops_and_from_several_threads() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in [0, 1, 2, 7, 1000] {
                        let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                        pool.for_each(n, &|i| {
                            pool.for_each(3, &|_| {
                                counts[i].fetch_add(1, Ordering::Relaxed);
                            });
                        });
                        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 3));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_body_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.for_each(10, &|i| assert!(i != 5, "five"))));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.for_each(10, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }

    #[test]
    fn loops_of_every_length_follow_each_other_without_losing_an_index() {
        for threads in [2, 3, 5] {
            let pool = Pool::new(threads);
            let sum = AtomicUsize::new(0);
            // More loops than the 16 bits of a ticket number, so that numbers come again.
            for round in 0..70_000 {
                let n = round % 9;
                pool.for_each(n, &|i| {
                    sum.fetch_add(i + 1, Ordering::Relaxed);
                });
                assert_eq!(sum.swap(0, Ordering::Relaxed), n * (n + 1) / 2, "round {round} of {threads} threads");
                if round % 20_000 == 0 {
                    while pool.shared.sleeping.load(Ordering::SeqCst) < threads - 1 {
                        std::thread::yield_now();
                    }
                }
            }
        }
    }
}
