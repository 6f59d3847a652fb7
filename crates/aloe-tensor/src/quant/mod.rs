//! Weights in blocks of small integers with scales: the formats of GGUF, used as they are.
//!
//! Reading order: `blocks` (a stored block of 32 weights to codes and scales), `panels` (the layout the kernel reads), `encode`
//! (f32 weights to Q8_0 or Q4_0), `rows` (activations to int8), `product` (the kernel), `widen` (blocks to bf16, for gradients).
//! Weights and activations meet as exact i32 sums over 32 elements; these are scaled and added in f32, block after block, one chain
//! per output element.

mod blocks;
mod encode;
mod panels;
mod product;
mod rows;
#[cfg(test)]
mod tests;
mod widen;

pub(crate) use encode::encode;
pub(crate) use panels::BlockPanels;
pub(crate) use product::{Product, Task};
pub(crate) use rows::{BlockRows, with_block_rows};

/// Elements that share a scale, in weights and activations.
pub(crate) const BLOCK: usize = 32;

/// How weights are stored in blocks: the names are GGUF's (`block_q*` of ggml-common.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types, reason = "the names are the format's own")]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4_K, Self::Q5_K, Self::Q6_K];

    /// Name, elements of a stored block, its bytes.
    fn row(self) -> (&'static str, usize, usize) {
        match self {
            Self::Q4_0 => ("Q4_0", 32, 18),
            Self::Q4_1 => ("Q4_1", 32, 20),
            Self::Q5_0 => ("Q5_0", 32, 22),
            Self::Q5_1 => ("Q5_1", 32, 24),
            Self::Q8_0 => ("Q8_0", 32, 34),
            Self::Q4_K => ("Q4_K", 256, 144),
            Self::Q5_K => ("Q5_K", 256, 176),
            Self::Q6_K => ("Q6_K", 256, 210),
        }
    }

    /// The name that ggml gives the format.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Elements of one stored block.
    pub fn block_len(self) -> usize {
        self.row().1
    }

    /// Bytes of one stored block.
    pub fn block_bytes(self) -> usize {
        self.row().2
    }
}

/// The f32 of an IEEE half; exact.
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let (sign, exponent, fraction) = ((bits as u32 & 0x8000) << 16, bits as u32 >> 10 & 31, bits as u32 & 0x3ff);
    match exponent {
        0 => f32::from_bits((fraction as f32 / 16_777_216.0).to_bits() | sign),
        31 if fraction == 0 => f32::from_bits(sign | 0x7f80_0000),
        31 => f32::from_bits(sign | 0x7fc0_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// The half nearest to a finite number, ties to even; infinity past 65519.
pub(crate) fn f16_from_f32(value: f32) -> u16 {
    let (sign, size) = ((value.to_bits() >> 16 & 0x8000) as u16, value.abs());
    if size >= 65520.0 {
        return sign | 0x7c00;
    }
    if size < 6.103_515_6e-5 {
        // Below 2^-14 halves are multiples of 2^-24: adding 2^-1 in f32 rounds there, ties to even.
        return sign | ((size + 0.5).to_bits() & 0x7ff) as u16;
    }
    let bits = size.to_bits();
    let rounded = bits + 0xfff + (bits >> 13 & 1);
    sign | ((rounded >> 13) - (112 << 10)) as u16
}
