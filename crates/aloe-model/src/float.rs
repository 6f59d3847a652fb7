//! Conversions between the number formats of weight files: IEEE half, bfloat16 and f32.
//!
//! Rounding is to nearest, ties to even, in every direction that loses bits; NaNs stay NaNs.

/// The f32 of a bfloat16's bits; exact.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bits of the bfloat16 nearest to `value`, ties to even. Overflow gives infinity; a NaN keeps its sign and upper payload
/// and becomes quiet (as `ggml_compute_fp32_to_bf16` and the `half` crate do).
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return ((bits >> 16) as u16) | 0x0040;
    }
    let round = 0x7fff + ((bits >> 16) & 1);
    (bits.wrapping_add(round) >> 16) as u16
}

/// The f32 of an IEEE 754 half's bits; exact, subnormals included.
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits & 0x3ff);
    match exponent {
        0 => {
            // Subnormal or zero: fraction * 2^-24, exact in f32.
            let magnitude = fraction as f32 * (1.0 / 16_777_216.0);
            f32::from_bits(magnitude.to_bits() | sign)
        }
        // Infinity, or a NaN with its payload shifted (quieted, as numpy's hardware conversion does).
        31 if fraction == 0 => f32::from_bits(sign | 0x7f80_0000),
        31 => f32::from_bits(sign | 0x7fc0_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

/// Position and value of the first element that is NaN or infinite.
#[inline]
pub fn first_non_finite(values: &[f32]) -> Option<(usize, f32)> {
    // A branch-free pass per block first: finite weights, the usual case, vectorise.
    const BLOCK: usize = 4096;
    for (block, part) in values.chunks(BLOCK).enumerate() {
        let all_finite = part.iter().fold(true, |ok, value| ok & value.is_finite());
        if !all_finite {
            let at = part.iter().position(|value| !value.is_finite())?;
            return Some((block * BLOCK + at, part[at]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_with_hand_worked_bits() {
        // (f32 bits, expected bf16 bits); the lower 16 bits against 0x8000 decide, a tie looks at bit 16.
        let cases: [(u32, u16); 20] = [
            (0x3f80_0000, 0x3f80), // 1.0
            (0x3f80_7fff, 0x3f80), // below the tie: down
            (0x3f80_8000, 0x3f80), // tie, even below
            (0x3f80_8001, 0x3f81), // above the tie: up
            (0x3f81_8000, 0x3f82), // tie, odd below: up
            (0x3f81_7fff, 0x3f81),
            (0xbf81_8000, 0xbf82), // sign does not matter
            (0x3fff_8000, 0x4000), // carry into the exponent
            (0x0000_0000, 0x0000),
            (0x8000_0000, 0x8000), // -0 stays -0
            (0x0000_8000, 0x0000), // subnormal tie to even zero
            (0x0000_8001, 0x0001), // smallest bf16 subnormal
            (0x007f_8000, 0x0080), // largest subnormal rounds into the normals
            (0x7f7f_7fff, 0x7f7f), // largest value that does not overflow
            (0x7f7f_8000, 0x7f80), // tie at the top: infinity
            (0x7f7f_ffff, 0x7f80), // f32::MAX overflows
            (0x7f80_0000, 0x7f80), // infinity
            (0xff80_0000, 0xff80),
            (0x7f80_0001, 0x7fc0), // a signalling NaN with a low payload must not become infinity
            (0xffc0_1234, 0xffc0), // a quiet NaN keeps its sign
        ];
        for (input, expected) in cases {
            assert_eq!(f32_to_bf16(f32::from_bits(input)), expected, "input {input:#010x}");
        }
    }

    #[test]
    fn every_bf16_value_survives_the_way_through_f32() {
        for bits in 0..=u16::MAX {
            let value = bf16_to_f32(bits);
            let back = f32_to_bf16(value);
            assert_eq!(back, if value.is_nan() { bits | 0x40 } else { bits });
        }
    }

    #[test]
    fn bf16_rounding_is_the_nearest_of_the_two_neighbours() {
        let mut rng = aloe_record::CounterRng::new(1, "bf16-neighbours", 0);
        for _ in 0..100_000 {
            let value = f32::from_bits(rng.next_u32());
            if !value.is_finite() || value.abs() > 3.38e38 {
                continue;
            }
            let down = (value.to_bits() >> 16) as u16;
            let (a, b) = (f64::from(bf16_to_f32(down)), f64::from(bf16_to_f32(down + 1)));
            let (to_a, to_b) = ((f64::from(value) - a).abs(), (f64::from(value) - b).abs());
            let expected = if to_a < to_b || (to_a == to_b && down.is_multiple_of(2)) { down } else { down + 1 };
            assert_eq!(f32_to_bf16(value), expected, "{value:e}");
        }
    }

    #[test]
    fn every_half_equals_its_definition() {
        // IEEE 754: (-1)^s * 2^(e-15) * (1 + f/1024), or (-1)^s * 2^-14 * f/1024 for e = 0.
        for bits in 0..=u16::MAX {
            let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let value = f16_to_f32(bits);
            assert_eq!(value.is_sign_negative(), sign == 1);
            let magnitude = match exponent {
                31 if fraction > 0.0 => {
                    assert!(value.is_nan());
                    continue;
                }
                31 => f64::INFINITY,
                0 => 2f64.powi(-14) * fraction / 1024.0,
                e => 2f64.powi(e - 15) * (1.0 + fraction / 1024.0),
            };
            assert_eq!(f64::from(value).abs(), magnitude, "bits {bits:#06x}");
        }
    }

    #[test]
    fn the_first_non_finite_value_is_found_in_any_block() {
        let mut values = vec![0.5f32; 10_000];
        assert_eq!(first_non_finite(&values), None);
        values[9_999] = f32::NEG_INFINITY;
        values[4_097] = f32::NAN;
        assert_eq!(first_non_finite(&values).map(|(at, _)| at), Some(4_097));
    }
}
