//! GGUF element types and their dequantisation to f32, block by block.
//!
//! Layouts: `block_q*` of ggml-common.h; every value must equal, bit for bit, the `dequantize` of the Python package `gguf`
//! (0.19.0), so the order of multiplications and additions below is part of the contract. Types without a line in the table are
//! refused by name; nothing is ever approximated.

use crate::float::{bf16_to_f32, f16_to_f32};

/// An element type that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types, reason = "the names are the format's own")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Number in the file, type, name, elements of a block, bytes of a block.
const TYPES: [(u32, GgmlType, &str, usize, usize); 11] = [
    (0, GgmlType::F32, "F32", 1, 4),
    (1, GgmlType::F16, "F16", 1, 2),
    (30, GgmlType::BF16, "BF16", 1, 2),
    (2, GgmlType::Q4_0, "Q4_0", 32, 18),
    (3, GgmlType::Q4_1, "Q4_1", 32, 20),
    (6, GgmlType::Q5_0, "Q5_0", 32, 22),
    (7, GgmlType::Q5_1, "Q5_1", 32, 24),
    (8, GgmlType::Q8_0, "Q8_0", 32, 34),
    (12, GgmlType::Q4_K, "Q4_K", 256, 144),
    (13, GgmlType::Q5_K, "Q5_K", 256, 176),
    (14, GgmlType::Q6_K, "Q6_K", 256, 210),
];

/// Types of ggml that are known by name only, for the message.
const UNSUPPORTED: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl GgmlType {
    /// The type of a number in the file, or what to call it in the refusal.
    pub(crate) fn from_number(number: u32) -> Result<Self, String> {
        match TYPES.iter().find(|row| row.0 == number) {
            Some(row) => Ok(row.1),
            None => {
                let name = UNSUPPORTED.iter().find(|row| row.0 == number).map_or("unknown", |row| row.1);
                let known: Vec<&str> = TYPES.iter().map(|row| row.2).collect();
                Err(format!("type {number} ({name}) is not supported; expected one of {}", known.join(", ")))
            }
        }
    }

    fn row(self) -> &'static (u32, GgmlType, &'static str, usize, usize) {
        TYPES.iter().find(|row| row.1 == self).unwrap_or(&TYPES[0])
    }

    /// The name that ggml gives the type.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements of one block.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Dequantises whole blocks; `bytes` must be a multiple of [`Self::block_bytes`].
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        assert_eq!(bytes.len() % self.block_bytes(), 0, "{} bytes of {}", bytes.len(), self.name());
        let n_blocks = bytes.len() / self.block_bytes();
        let mut out = vec![0.0f32; n_blocks * self.block_len()];
        let unpack = match self {
            GgmlType::F32 => f32_block,
            GgmlType::F16 => f16_block,
            GgmlType::BF16 => bf16_block,
            GgmlType::Q4_0 => q4_0,
            GgmlType::Q4_1 => q4_1,
            GgmlType::Q5_0 => q5_0,
            GgmlType::Q5_1 => q5_1,
            GgmlType::Q8_0 => q8_0,
            GgmlType::Q4_K => q4_k,
            GgmlType::Q5_K => q5_k,
            GgmlType::Q6_K => q6_k,
        };
        for (block, out) in bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len())) {
            unpack(block, out);
        }
        out
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn f32_block(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

fn f16_block(block: &[u8], out: &mut [f32]) {
    out[0] = half(block, 0);
}

fn bf16_block(block: &[u8], out: &mut [f32]) {
    out[0] = bf16_to_f32(u16::from_le_bytes([block[0], block[1]]));
}

/// d (half), 16 bytes: elements 0..16 in the low nibbles, 16..32 in the high ones, minus 8.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, byte) in block[2..18].iter().enumerate() {
        out[i] = d * (i32::from(byte & 15) - 8) as f32;
        out[i + 16] = d * (i32::from(byte >> 4) - 8) as f32;
    }
}

/// d, m (halves), nibbles as Q4_0: d * q + m.
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, byte) in block[4..20].iter().enumerate() {
        out[i] = d * f32::from(byte & 15) + m;
        out[i + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// d, 32 fifth bits, nibbles: d * (q - 16).
fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (i, byte) in block[6..22].iter().enumerate() {
        let (low, upper) = with_fifth_bit(*byte, high, i);
        out[i] = d * (i32::from(low) - 16) as f32;
        out[i + 16] = d * (i32::from(upper) - 16) as f32;
    }
}

/// d, m, 32 fifth bits, nibbles: d * q + m.
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (i, byte) in block[8..24].iter().enumerate() {
        let (low, upper) = with_fifth_bit(*byte, high, i);
        out[i] = d * f32::from(low) + m;
        out[i + 16] = d * f32::from(upper) + m;
    }
}

fn with_fifth_bit(byte: u8, high: u32, i: usize) -> (u8, u8) {
    let bit = |at: usize| (((high >> at) & 1) as u8) << 4;
    ((byte & 15) | bit(i), (byte >> 4) | bit(i + 16))
}

/// d, 32 signed bytes.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (value, byte) in out.iter_mut().zip(&block[2..34]) {
        *value = f32::from(*byte as i8) * d;
    }
}

/// Scale and minimum (6 bits each) of the eight sub-blocks of a K block, packed in 12 bytes.
fn scales_and_mins(packed: &[u8]) -> [(f32, f32); 8] {
    std::array::from_fn(|j| {
        let (scale, min) = if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            let shared = packed[j + 4];
            ((shared & 15) | ((packed[j - 4] >> 2) & 0x30), (shared >> 4) | ((packed[j] >> 2) & 0x30))
        };
        (f32::from(scale), f32::from(min))
    })
}

/// d, dmin, packed scales, 128 bytes: sub-blocks 2k and 2k+1 in the low and high nibbles of bytes 32k..32k+32.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let scales = scales_and_mins(&block[4..16]);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = (d * scales[j].0, dmin * scales[j].1);
        let bytes = &block[16 + j / 2 * 32..][..32];
        for (value, byte) in out.iter_mut().zip(bytes) {
            *value = scale * f32::from((byte >> (j % 2 * 4)) & 15) - min;
        }
    }
}

/// As Q4_K with a fifth bit: bit j of the 32 bytes of high bits belongs to sub-block j.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let scales = scales_and_mins(&block[4..16]);
    let high = &block[16..48];
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = (d * scales[j].0, dmin * scales[j].1);
        let bytes = &block[48 + j / 2 * 32..][..32];
        for (i, value) in out.iter_mut().enumerate() {
            let q = ((bytes[i] >> (j % 2 * 4)) & 15) | (((high[i] >> j) & 1) << 4);
            *value = scale * f32::from(q) - min;
        }
    }
}

/// 128 bytes of low nibbles, 64 of two high bits, 16 signed scales, d: (d * scale) * (q - 32). Two halves of 128 elements.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = half(block, 208);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        // Sub-block j of 32: half n, quarter k. Quarters 0 and 1 lie in the low nibbles, 2 and 3 in the high ones.
        let (n, k) = (j / 4, j % 4);
        let low = &block[n * 64 + k % 2 * 32..][..32];
        let high = &block[128 + n * 32..][..32];
        for (i, value) in out.iter_mut().enumerate() {
            let q = ((low[i] >> (k / 2 * 4)) & 15) | (((high[i] >> (k * 2)) & 3) << 4);
            let scale = f32::from(block[192 + j * 2 + i / 16] as i8);
            *value = (d * scale) * (i32::from(q) - 32) as f32;
        }
    }
}
