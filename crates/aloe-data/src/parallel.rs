//! A function over many rows on the threads that the user allows. Results come back in row order, whatever their number.

use std::thread;

fn chunk_size(n_items: usize, n_threads: usize) -> usize {
    n_items.div_ceil(n_threads.max(1)).max(1)
}

/// `f` of every item.
pub(crate) fn map<T: Sync, R: Send>(n_threads: usize, items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if n_threads <= 1 {
        return items.iter().map(f).collect();
    }
    thread::scope(|scope| {
        let parts = items.chunks(chunk_size(items.len(), n_threads));
        let running: Vec<_> = parts.map(|part| scope.spawn(|| part.iter().map(&f).collect::<Vec<R>>())).collect();
        running.into_iter().flat_map(join).collect()
    })
}

/// `f` of every item, which it may change.
pub(crate) fn map_mut<T: Send, R: Send>(n_threads: usize, items: &mut [T], f: impl Fn(&mut T) -> R + Sync) -> Vec<R> {
    if n_threads <= 1 {
        return items.iter_mut().map(f).collect();
    }
    let size = chunk_size(items.len(), n_threads);
    thread::scope(|scope| {
        let parts = items.chunks_mut(size);
        let running: Vec<_> = parts.map(|part| scope.spawn(|| part.iter_mut().map(&f).collect::<Vec<R>>())).collect();
        running.into_iter().flat_map(join).collect()
    })
}

fn join<R>(running: thread::ScopedJoinHandle<'_, Vec<R>>) -> Vec<R> {
    running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items_for_any_number_of_threads() {
        for (n, n_threads) in [0usize, 1, 2, 3, 1000].into_iter().flat_map(|n| [1, 2, 3, 16].map(|t| (n, t))) {
            let mut items: Vec<usize> = (0..n).collect();
            assert_eq!(map(n_threads, &items, |i| i * 2), (0..n).map(|i| i * 2).collect::<Vec<_>>());
            let before = map_mut(n_threads, &mut items, |i| std::mem::replace(i, *i + 1));
            assert_eq!((before, items), ((0..n).collect(), (1..=n).collect()));
        }
    }

    #[test]
    fn no_more_threads_run_than_are_allowed() {
        let items: Vec<usize> = (0..64).collect();
        for n_threads in [1, 2, 3] {
            let seen = map(n_threads, &items, |_| thread::current().id());
            let distinct: std::collections::HashSet<_> = seen.into_iter().collect();
            assert_eq!(distinct.len(), n_threads);
        }
        let own = map(1, &items, |_| thread::current().id());
        assert!(own.iter().all(|id| *id == thread::current().id()), "one thread is the caller's");
    }
}
