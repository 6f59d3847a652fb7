//! Rotary position embedding, half-split as in Hugging Face Llama.

use crate::pack::round_row;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd};
use crate::{Device, Rounded, Tensor};

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
    cos: Vec<f32>, // [N, E/2]
    sin: Vec<f32>, // [N, E/2]
}

impl RopeTable {
    /// The rotations of `positions` `[N]`.
    pub fn rotation(&self, device: &Device, positions: &[u32]) -> Rotation {
        let half = self.inv_freq.len();
        let (mut cos, mut sin) = (vec![0.0; positions.len() * half], vec![0.0; positions.len() * half]);
        let (out_cos, out_sin) = (SharedMut::new(&mut cos), SharedMut::new(&mut sin));
        device.for_each(positions.len().div_ceil(ROWS), &|task| {
            let rows = task * ROWS..((task + 1) * ROWS).min(positions.len());
            for (row, &position) in rows.clone().zip(&positions[rows]) {
                // SAFETY: each index has its own rows.
                let (cos, sin) = unsafe { (out_cos.slice(row * half, half), out_sin.slice(row * half, half)) };
                for ((cos, sin), inv_freq) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
                    // The angle is the f32 product, as in transformers; its sine and cosine are exact to f32.
                    let (s, c) = ((position as f32 * inv_freq) as f64).sin_cos();
                    (*cos, *sin) = (c as f32, s as f32);
                }
            }
        });
        Rotation { half, cos, sin }
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
    assert_eq!((n * half, e), (rotation.cos.len(), 2 * half), "positions and head size of {:?}", x.shape());
    let out = SharedMut::new(x.as_f32_mut());
    device.for_each(n.div_ceil(ROWS), &|task| {
        for row in task * ROWS..((task + 1) * ROWS).min(n) {
            // SAFETY: each index has its own rows.
            let heads = unsafe { out.slice(row * h * e, h * e) }.as_mut_ptr();
            let turn = Turn { x: heads, sign, width: h * e, turned: heads, ..rotation.of_row(row) };
            // SAFETY: a row of x, in place, and its E/2 turns.
            unsafe { device.isa().run(turn) }
        }
    });
}

/// [`rope`] of x `[N, heads * E]`, rounded to bf16 afterwards; with `back` [`rope_backward`].
pub fn rope_rounded(device: &Device, x: &Tensor, rotation: &Rotation, back: bool) -> Rounded {
    let &[n, width] = x.shape() else { panic!("rows to rotate, found {:?}", x.shape()) };
    let half = rotation.half;
    assert!(
        n * half == rotation.cos.len() && width.is_multiple_of(2 * half),
        "heads of {} in {:?}",
        2 * half,
        x.shape()
    );
    let data = x.as_f32();
    Rounded::written(n, width, |out| {
        device.for_each(n.div_ceil(ROWS), &|task| {
            let mut turned = vec![0.0f32; width];
            for row in task * ROWS..((task + 1) * ROWS).min(n) {
                let sign = if back { -1.0 } else { 1.0 };
                let x = data[row * width..(row + 1) * width].as_ptr();
                let turn = Turn { x, sign, width, turned: turned.as_mut_ptr(), ..rotation.of_row(row) };
                // SAFETY: a row of x, its E/2 turns, a buffer of a row's length, and this index's own row of the result.
                unsafe { device.isa().run(TurnRounded { turn, out: out.row(row) }) }
            }
        });
    })
}

impl Rotation {
    /// The rotations of the given rows, in the given order.
    pub fn gather_rows(&self, rows: &[usize]) -> Self {
        let of = |table: &[f32]| {
            rows.iter().flat_map(|row| &table[row * self.half..(row + 1) * self.half]).copied().collect()
        };
        Self { half: self.half, cos: of(&self.cos), sin: of(&self.sin) }
    }

    /// The turns of row `row`, without what is turned.
    fn of_row(&self, row: usize) -> Turn {
        let turns = row * self.half..(row + 1) * self.half;
        let (cos, sin) = (self.cos[turns.clone()].as_ptr(), self.sin[turns].as_ptr());
        Turn { x: std::ptr::null(), cos, sin, sign: 1.0, half: self.half, width: 0, turned: std::ptr::null_mut() }
    }
}

/// One row, all heads.
struct Turn {
    x: *const f32,
    cos: *const f32,
    sin: *const f32,
    sign: f32,
    half: usize,
    width: usize,
    /// Of a row's length; x itself, to turn it in place.
    turned: *mut f32,
}

impl Kernel for Turn {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut head = 0;
        while head < self.width {
            let mut i = 0;
            while i < self.half {
                let n = (self.half - i).min(LANES);
                let (low, high) = (head + i, head + self.half + i);
                let (a, b) = (S::load_up_to(self.x.wrapping_add(low), n), S::load_up_to(self.x.wrapping_add(high), n));
                let cos = S::load_up_to(self.cos.wrapping_add(i), n);
                let sin = S::mul(S::load_up_to(self.sin.wrapping_add(i), n), S::splat(self.sign));
                S::store_up_to(self.turned.wrapping_add(low), S::sub(S::mul(a, cos), S::mul(b, sin)), n);
                S::store_up_to(self.turned.wrapping_add(high), S::add(S::mul(b, cos), S::mul(a, sin)), n);
                i += LANES;
            }
            head += 2 * self.half;
        }
    }
}

/// The same rounded to bf16.
struct TurnRounded {
    turn: Turn,
    out: *mut u16,
}

impl Kernel for TurnRounded {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (turned, width) = (self.turn.turned, self.turn.width);
        self.turn.run::<S>();
        round_row::<S>(turned, width, self.out);
    }
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
                let flat = x.clone().reshape(&[n, h * e]);
                let rounded = rope_rounded(&device, &flat, &rotation, false).to_tensor();
                let expected = y.clone().cast(crate::Dtype::Bf16).to_f32_vec();
                crate::testing::same_bits(rounded.as_f32(), &expected, "rounded");
                rope_backward(&device, &mut y, &rotation);
                close(y.as_f32(), x.as_f32(), 1e-6, "back");
                let mut back = x.clone();
                rope_backward(&device, &mut back, &rotation);
                let rounded = rope_rounded(&device, &flat, &rotation, true).to_tensor();
                crate::testing::same_bits(
                    rounded.as_f32(),
                    &back.cast(crate::Dtype::Bf16).to_f32_vec(),
                    "rounded back",
                );
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
