//! A persistent pool of threads that shares out the indices of a loop.
//!
//! One loop runs at a time; a loop started inside a loop runs inline on its thread. Idle workers spin for a tenth of a
//! millisecond (decoding starts a loop every few microseconds), then sleep. Which thread takes an index is not fixed, so a
//! body must write only what its index owns: that is what makes results independent of the number of threads.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SPIN: Duration = Duration::from_micros(100);

thread_local! {
    static IN_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// The running loop: its body with the lifetime erased, and how many indices it has.
#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize) + Sync),
    n: usize,
}

// SAFETY: the body is `Sync`, and `for_each` does not return before every worker that entered the job has left it, so the pointer outlives its use.
unsafe impl Send for Job {}

struct Shared {
    /// Raised once per job; a worker looks at each epoch once.
    epoch: AtomicU64,
    job: Mutex<Option<Job>>,
    wake: Condvar,
    /// Workers that sleep; changes only under `job`'s lock. Waking nobody would cost a system call per loop.
    sleeping: AtomicUsize,
    next: AtomicUsize,
    /// Workers inside the job; rises only while they hold `job`'s lock.
    running: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

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
            epoch: AtomicU64::new(0),
            job: Mutex::new(None),
            wake: Condvar::new(),
            sleeping: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (1..threads.max(1))
            .map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("kernel-{i}"))
                    .spawn(move || worker(&shared))
                    .expect("the system can start a kernel thread")
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body(0..n)`, each index once, and returns when all are done. A panic of the body is passed on.
    pub(crate) fn for_each(&self, n: usize, body: &(dyn Fn(usize) + Sync)) {
        if n <= 1 || self.workers.is_empty() || IN_LOOP.get() {
            (0..n).for_each(body);
            return;
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased; this function waits below until no worker holds the job.
        let erased = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(body) };
        let job = Job { body: erased, n };
        let sleeping = {
            let mut slot = lock(&shared.job);
            shared.next.store(0, Ordering::Relaxed);
            *slot = Some(job);
            shared.epoch.fetch_add(1, Ordering::Release);
            shared.sleeping.load(Ordering::Relaxed)
        };
        if sleeping > 0 {
            shared.wake.notify_all();
        }
        take_indices(shared, job);
        // Workers that have not come yet find the slot empty: a slow one is not waited for.
        *lock(&shared.job) = None;
        let mut spins = 0u32;
        while shared.running.load(Ordering::Acquire) != 0 {
            std::hint::spin_loop();
            spins += 1;
            if spins > 2000 {
                std::thread::yield_now();
            }
        }
        if let Some(payload) = lock(&shared.panic).take() {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _slot = lock(&self.shared.job);
            self.shared.stop.store(true, Ordering::Release);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of bodies; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

fn worker(shared: &Shared) {
    let mut seen = 0;
    loop {
        let job = wait_for_job(shared, &mut seen);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        if let Some(job) = job {
            take_indices(shared, job);
            shared.running.fetch_sub(1, Ordering::Release);
        }
    }
}

fn wait_for_job(shared: &Shared, seen: &mut u64) -> Option<Job> {
    let start = Instant::now();
    let mut spins = 0u32;
    // The clock is looked at now and then only: a loop of a few microseconds must not wait for it.
    while shared.epoch.load(Ordering::Acquire) == *seen && (!spins.is_multiple_of(64) || start.elapsed() < SPIN) {
        std::hint::spin_loop();
        spins += 1;
    }
    let mut slot = lock(&shared.job);
    while shared.epoch.load(Ordering::Acquire) == *seen {
        shared.sleeping.fetch_add(1, Ordering::Relaxed);
        slot = shared.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
        shared.sleeping.fetch_sub(1, Ordering::Relaxed);
    }
    *seen = shared.epoch.load(Ordering::Acquire);
    if slot.is_some() {
        shared.running.fetch_add(1, Ordering::Relaxed);
    }
    *slot
}

fn take_indices(shared: &Shared, job: Job) {
    IN_LOOP.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `for_each` keeps the body alive until `running` is zero, and we have not counted down yet.
        let body = unsafe { &*job.body };
        loop {
            let i = shared.next.fetch_add(1, Ordering::Relaxed);
            if i >= job.n {
                break;
            }
            body(i);
        }
    }));
    IN_LOOP.set(false);
    if let Err(payload) = result {
        shared.next.store(job.n, Ordering::Relaxed);
        lock(&shared.panic).get_or_insert(payload);
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
}
