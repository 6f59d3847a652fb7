//! Helpers over rows of logits `[R, V]`.

use crate::ops::rows_of;
use crate::{Device, Tensor, reference};

/// Log-softmax of each row, in place.
pub fn log_softmax_rows(_device: &Device, logits: &mut Tensor) {
    let (_, v) = rows_of(logits);
    let out = reference::log_softmax(logits.as_f32(), v);
    logits.as_f32_mut().copy_from_slice(&out);
}

/// Index of the largest logit of each row, the first of equals.
pub fn argmax_rows(_device: &Device, logits: &Tensor) -> Vec<u32> {
    let (_, v) = rows_of(logits);
    logits.as_f32().chunks(v).map(argmax).collect()
}

pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &value) in row.iter().enumerate() {
        if value > row[best] {
            best = i;
        }
    }
    best as u32
}

/// The k largest of each row, largest first, the first of equals first.
pub fn top_k_rows(_device: &Device, logits: &Tensor, k: usize) -> Vec<Vec<(u32, f32)>> {
    let (_, v) = rows_of(logits);
    logits.as_f32().chunks(v).map(|row| top_k(row, k)).collect()
}

fn top_k(row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut all: Vec<(u32, f32)> = row.iter().enumerate().map(|(i, &l)| (i as u32, l)).collect();
    let k = k.min(all.len());
    if k > 0 && k < all.len() {
        all.select_nth_unstable_by(k - 1, order);
    }
    all.truncate(k);
    all.sort_by(order);
    all
}
