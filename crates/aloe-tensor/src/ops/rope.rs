//! Rotary position embedding, half-split as in Hugging Face Llama.

use crate::pool::SharedMut;
use crate::{Device, Tensor};

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

/// The rotations of some positions: computed once, used by every layer.
#[derive(Clone, Debug)]
pub struct Rotation {
    half: usize,
    turns: Vec<(f32, f32)>, // [N, E/2], cosine and sine
}

impl RopeTable {
    /// The rotations of `positions` `[N]`.
    pub fn rotation(&self, device: &Device, positions: &[u32]) -> Rotation {
        let half = self.inv_freq.len();
        let mut turns = vec![(0.0, 0.0); positions.len() * half];
        let out = SharedMut::new(&mut turns);
        device.for_each(positions.len().div_ceil(ROWS), &|task| {
            let rows = task * ROWS..((task + 1) * ROWS).min(positions.len());
            for (row, &position) in rows.clone().zip(&positions[rows]) {
                // SAFETY: each index has its own rows.
                let turns = unsafe { out.slice(row * half, half) };
                for (turn, inv_freq) in turns.iter_mut().zip(&self.inv_freq) {
                    // The angle is the f32 product, as in transformers; its sine and cosine are exact to f32.
                    let (sin, cos) = ((position as f32 * inv_freq) as f64).sin_cos();
                    *turn = (cos as f32, sin as f32);
                }
            }
        });
        Rotation { half, turns }
    }
}

/// Rows of one task.
const ROWS: usize = 8;

/// Rotates x `[N, H, E]` in place: pairs `(i, i + E/2)` by `position * inv_freq[i]` (Su et al. 2021).
pub fn rope(device: &Device, x: &mut Tensor, rotation: &Rotation) {
    rotate(device, x, rotation, 1.0);
}

/// Gradient of [`rope`]: the inverse rotation, in place.
pub fn rope_backward(device: &Device, dx: &mut Tensor, rotation: &Rotation) {
    rotate(device, dx, rotation, -1.0);
}

fn rotate(device: &Device, x: &mut Tensor, rotation: &Rotation, sign: f32) {
    let &[n, h, e] = x.shape() else { panic!("rope wants [N, H, E], found {:?}", x.shape()) };
    let half = rotation.half;
    assert_eq!((n * half, e), (rotation.turns.len(), 2 * half), "positions and head size of {:?}", x.shape());
    let out = SharedMut::new(x.as_f32_mut());
    device.for_each(n.div_ceil(ROWS), &|task| {
        for row in task * ROWS..((task + 1) * ROWS).min(n) {
            // SAFETY: each index has its own rows.
            let heads = unsafe { out.slice(row * h * e, h * e) };
            let turns = &rotation.turns[row * half..(row + 1) * half];
            for head in heads.chunks_exact_mut(e) {
                let (low, high) = head.split_at_mut(half);
                for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                    let sin = sin * sign;
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{close, devices, normal};

    #[test]
    fn rope_agrees_with_the_plain_loops_and_its_backward_undoes_it() {
        for device in devices() {
            for (n, h, e) in [(1, 1, 2), (20, 3, 64), (5, 2, 10)] {
                let table = RopeTable::new((0..e / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / e as f32)).collect());
                let positions: Vec<u32> = (0..n as u32).map(|p| p * 397 % 8192).collect();
                let x = normal("x", &[n, h, e]);
                let mut y = x.clone();
                let rotation = table.rotation(&device, &positions);
                rope(&device, &mut y, &rotation);
                let mut expected = x.to_f32_vec();
                reference::rope(&mut expected, h, &positions, &table.inv_freq, 1.0);
                close(y.as_f32(), &expected, 1e-6, "rope");
                rope_backward(&device, &mut y, &rotation);
                close(y.as_f32(), x.as_f32(), 1e-6, "back");
            }
        }
    }

    #[test]
    fn a_quarter_turn_moves_the_first_half_onto_the_second() {
        // Position 1, frequency pi/2: (1, 0) becomes (0, 1).
        let mut x = Tensor::from_f32(&[1, 1, 2], vec![1.0, 0.0]);
        let device = Device::cpu(1);
        let rotation = RopeTable::new(vec![std::f32::consts::FRAC_PI_2]).rotation(&device, &[1]);
        rope(&device, &mut x, &rotation);
        close(x.as_f32(), &[0.0, 1.0], 1e-6, "quarter turn");
    }
}
