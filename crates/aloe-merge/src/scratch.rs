//! Space for the values of a tile, kept by the thread that gave it back: what is written whole anyway is not zeroed first.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    /// What is not in use.
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Values that a thread keeps beyond their use: those of the tiles of a few inputs.
const MOST_KEPT: usize = 16;

/// Values of any content, until they are written.
pub(crate) struct Scratch(Vec<f32>);

impl Scratch {
    /// `n` values of any content.
    pub(crate) fn of(n: usize) -> Self {
        let mut values = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
        values.resize(n, 0.0);
        Self(values)
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        KEPT.with_borrow_mut(|kept| {
            if kept.len() < MOST_KEPT {
                kept.push(std::mem::take(&mut self.0));
            }
        });
    }
}

impl FromIterator<f32> for Scratch {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        let mut scratch = Self::of(0);
        scratch.0.extend(values);
        scratch
    }
}

impl<'a> IntoIterator for &'a Scratch {
    type Item = &'a f32;
    type IntoIter = std::slice::Iter<'a, f32>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}
