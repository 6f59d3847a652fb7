//! IEEE half precision: the rounding that `dtype: float16` asks for. The other direction stands in `aloe_model::float`.

/// The bits of the half nearest to `value`, ties to even; overflow gives infinity, a NaN stays one.
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    // 65520 lies half way between the largest half and the next power: from there on it is infinity.
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Below 2^-14 halves are multiples of 2^-24: adding 0.5 aligns the last place of f32 (2^-24 in [0.5, 1)) and rounds to even.
        let aligned = (f32::from_bits(magnitude) + 0.5).to_bits();
        return sign | (aligned - 0.5f32.to_bits()) as u16;
    }
    let odd = (magnitude >> 13) & 1;
    let rounded = magnitude - (112 << 23) + 0x0fff + odd;
    sign | (rounded >> 13) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_model::float::f16_to_f32;

    #[test]
    fn every_half_returns_to_its_own_bits() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            if !value.is_nan() {
                assert_eq!(f32_to_f16(value), bits, "{bits:#06x}");
            } else {
                assert!(f16_to_f32(f32_to_f16(value)).is_nan());
            }
        }
    }

    #[test]
    fn between_two_halves_the_nearer_one_is_taken_and_of_two_the_even_one() {
        for bits in (0..0x7bffu16).step_by(7) {
            let (low, high) = (f64::from(f16_to_f32(bits)), f64::from(f16_to_f32(bits + 1)));
            let middle = 0.5 * (low + high);
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(f32_to_f16(middle as f32), even, "{bits:#06x}");
            assert_eq!(f32_to_f16((middle as f32).next_down()), bits);
            assert_eq!(f32_to_f16((middle as f32).next_up()), bits + 1);
            assert_eq!(f32_to_f16(-(middle as f32).next_up()), 0x8000 | (bits + 1));
        }
        assert_eq!((f32_to_f16(65519.9), f32_to_f16(65520.0), f32_to_f16(f32::INFINITY)), (0x7bff, 0x7c00, 0x7c00));
    }
}
