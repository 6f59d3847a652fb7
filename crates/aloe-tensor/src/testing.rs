//! What the tests of this crate share: devices to try, random numbers, comparisons.

use crate::{Device, Isa, Tensor};
use aloe_record::rng::CounterRng;

/// Every instruction set this machine has, on two threads.
pub(crate) fn devices() -> Vec<Device> {
    Isa::ALL.into_iter().filter(|isa| isa.available()).map(|isa| Device::cpu_with(isa, 2)).collect()
}

/// Normal numbers that depend on the name alone.
pub(crate) fn normal(name: &str, shape: &[usize]) -> Tensor {
    let item = name.bytes().fold(0, |h: u64, b| h * 257 + b as u64);
    let mut rng = CounterRng::new(7, "tensor tests", item);
    let n = shape.iter().product();
    let data = (0..n).map(|_| rng.normal()).collect();
    Tensor::from_f32(shape, data)
}

/// Largest difference at most `tolerance` times the larger of 1 and the expected magnitude.
#[track_caller]
pub(crate) fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * e.abs().max(1.0), "{what}: element {i} is {f}, expected {e}");
    }
}

/// Equal in every bit.
#[track_caller]
pub(crate) fn same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "{what}: element {i} is {a} and {b}");
    }
}
