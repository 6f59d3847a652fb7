//! A stopwatch for programs that measure: which part of a step the time goes to.
//!
//! Off unless a thread starts it; then each [`lap`] of that thread books the time since the last one on its part. Parts are marked in
//! `aloe-model` and `aloe-train` after the operations they name; nothing reads the laps but measurements, and results do not depend on them.

use std::cell::RefCell;
use std::time::{Duration, Instant};

struct Laps {
    last: Instant,
    parts: Vec<(&'static str, Duration)>,
}

thread_local! {
    static LAPS: RefCell<Option<Laps>> = const { RefCell::new(None) };
}

/// Starts booking this thread's time.
pub fn start_laps() {
    LAPS.set(Some(Laps { last: Instant::now(), parts: Vec::new() }));
}

/// Books the time since the last lap of this thread on `part`; does nothing when the stopwatch is off.
pub fn lap(part: &'static str) {
    LAPS.with_borrow_mut(|laps| {
        let Some(laps) = laps else { return };
        let now = Instant::now();
        let spent = now - laps.last;
        laps.last = now;
        match laps.parts.iter_mut().find(|(name, _)| *name == part) {
            Some((_, sum)) => *sum += spent,
            None => laps.parts.push((part, spent)),
        }
    });
}

/// Stops, and gives each part's time in the order of their first laps.
pub fn take_laps() -> Vec<(&'static str, Duration)> {
    LAPS.take().map_or_else(Vec::new, |laps| laps.parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_booked_on_the_part_that_ends_only_while_the_watch_runs() {
        lap("before");
        assert!(take_laps().is_empty());
        start_laps();
        lap("one");
        lap("two");
        lap("one");
        let found: Vec<&str> = take_laps().into_iter().map(|(part, _)| part).collect();
        assert_eq!(found, ["one", "two"]);
        lap("after");
        assert!(take_laps().is_empty());
    }
}
