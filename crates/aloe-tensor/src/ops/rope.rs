//! Rotary position embedding, half-split as in Hugging Face Llama.

use crate::{Device, Tensor, reference};

/// Frequencies of the rotation; the caller computes them (theta, Llama-3 scaling).
#[derive(Clone, Debug)]
pub struct RopeTable {
    inv_freq: Vec<f32>, // [E/2]
}

impl RopeTable {
    /// From the E/2 inverse frequencies, in radians per position.
    pub fn new(inv_freq: Vec<f32>) -> Self {
        Self { inv_freq }
    }

    /// E, the head size it serves.
    pub fn head_dim(&self) -> usize {
        2 * self.inv_freq.len()
    }
}

fn rotate(x: &mut Tensor, positions: &[u32], table: &RopeTable, sign: f64) {
    let [n, h, e] = x.shape() else { panic!("rope wants [N, H, E], found {:?}", x.shape()) };
    let (n, h, e) = (*n, *h, *e);
    assert_eq!((n, e), (positions.len(), table.head_dim()), "positions and head size of {:?}", x.shape());
    reference::rope(x.as_f32_mut(), h, positions, &table.inv_freq, sign);
}

/// Rotates x `[N, H, E]` in place: pairs `(i, i + E/2)` by `position * inv_freq[i]` (Su et al. 2021).
pub fn rope(_device: &Device, x: &mut Tensor, positions: &[u32], table: &RopeTable) {
    rotate(x, positions, table, 1.0);
}

/// Gradient of [`rope`]: the inverse rotation, in place.
pub fn rope_backward(_device: &Device, dx: &mut Tensor, positions: &[u32], table: &RopeTable) {
    rotate(dx, positions, table, -1.0);
}
