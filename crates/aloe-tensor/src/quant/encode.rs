//! f32 weights to stored blocks, for `--quantize`: Q8_0 and Q4_0.

use super::{BLOCK, BlockFormat, f16_from_f32, f16_to_f32};

/// The stored blocks of one row; its length is a multiple of 32.
///
/// Q8_0 rounds `x / d`, d the largest size over 127, as ggml does. Q4_0 tries scales around ggml's (the largest element becomes
/// -8) and keeps the one with the least squared error: the format is the same, the numbers are closer.
pub(crate) fn encode(format: BlockFormat, row: &[f32]) -> Vec<u8> {
    assert!(row.len().is_multiple_of(BLOCK), "{} elements in blocks of 32", row.len());
    let mut out = Vec::with_capacity(row.len() / BLOCK * format.block_bytes());
    for block in row.as_chunks::<BLOCK>().0 {
        match format {
            BlockFormat::Q8_0 => q8_0(block, &mut out),
            BlockFormat::Q4_0 => q4_0(block, &mut out),
            other => panic!("{} is read, not written", other.name()),
        }
    }
    out
}

fn q8_0(block: &[f32; BLOCK], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let d = f16_from_f32(largest / 127.0);
    let step = f16_to_f32(d);
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    out.extend(d.to_le_bytes());
    out.extend(block.iter().map(|x| nearest((x * inverse).clamp(-127.0, 127.0)) as i8 as u8));
}

fn q4_0(block: &[f32; BLOCK], out: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0f32, |a, &x| if x.abs() > a.abs() { x } else { a });
    let (mut best, mut best_error) = (0u16, f32::INFINITY);
    // From -8 of 8.5 to -8 of 7: a smaller step cuts the largest element and rounds the others better.
    for shrink in 0..13 {
        let d = f16_from_f32(largest / -(7.0 + shrink as f32 * 0.125));
        let error = squared_error(block, f16_to_f32(d));
        if error < best_error {
            (best, best_error) = (d, error);
        }
    }
    out.extend(best.to_le_bytes());
    let step = f16_to_f32(best);
    let codes = block.map(|x| (level(x, inverse(step)) + 8.0) as u8);
    out.extend((0..BLOCK / 2).map(|i| codes[i] | codes[i + BLOCK / 2] << 4));
}

/// What rounding to multiples of `step` costs, summed in eight interleaved parts.
fn squared_error(block: &[f32; BLOCK], step: f32) -> f32 {
    let (mut parts, inverse) = ([0.0f32; 8], inverse(step));
    for eight in block.as_chunks::<8>().0 {
        for (part, x) in parts.iter_mut().zip(eight) {
            let off = x - step * level(*x, inverse);
            *part += off * off;
        }
    }
    parts.iter().sum()
}

fn inverse(step: f32) -> f32 {
    if step == 0.0 { 0.0 } else { 1.0 / step }
}

/// The integer of -8..=7 nearest to `x / d`.
fn level(x: f32, inverse: f32) -> f32 {
    nearest((x * inverse).clamp(-8.0, 7.0))
}

/// The nearest integer of a number below 2^22, ties to even: the sum with 1.5 x 2^23 has no room for a fraction. Unlike
/// `round_ties_even` it is no call on processors without an instruction for it.
fn nearest(x: f32) -> f32 {
    const NO_FRACTION: f32 = 12_582_912.0;
    (x + NO_FRACTION) - NO_FRACTION
}
