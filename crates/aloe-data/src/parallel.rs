//! A function over many rows on all cores. Results come back in row order, whatever the number of cores.

use std::thread;

fn n_threads() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn chunk_size(n_items: usize) -> usize {
    n_items.div_ceil(n_threads()).max(1)
}

/// `f` of every item.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let parts = items.chunks(chunk_size(items.len()));
        let running: Vec<_> = parts.map(|part| scope.spawn(|| part.iter().map(&f).collect::<Vec<R>>())).collect();
        running.into_iter().flat_map(join).collect()
    })
}

/// `f` of every item, which it may change.
pub(crate) fn map_mut<T: Send, R: Send>(items: &mut [T], f: impl Fn(&mut T) -> R + Sync) -> Vec<R> {
    let size = chunk_size(items.len());
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
    fn results_keep_the_order_of_the_items() {
        for n in [0usize, 1, 2, 3, 1000] {
            let mut items: Vec<usize> = (0..n).collect();
            assert_eq!(map(&items, |i| i * 2), (0..n).map(|i| i * 2).collect::<Vec<_>>());
            let before = map_mut(&mut items, |i| std::mem::replace(i, *i + 1));
            assert_eq!((before, items), ((0..n).collect(), (1..=n).collect()));
        }
    }
}
