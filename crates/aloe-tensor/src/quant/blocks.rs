//! Stored blocks to codes and scales, 32 elements at a time.
//!
//! Layouts: ggml-common.h. A value is put together exactly as the Python package `gguf` dequantises it.

use super::{BLOCK, BlockFormat, f16_to_f32};

/// Bits of a code in a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// 0..16.
    Four,
    /// 0..64, meaning `code - 32`.
    Six,
    /// 0..256, meaning `code - 128`.
    Eight,
}

/// How codes become numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// `d * w`; four-bit codes mean `code - 8`.
    Half,
    /// `d * w + m`.
    HalfMin,
    /// `(d * s) * w - dmin * m`, s and m of 6 bits, d and dmin shared by 8 blocks.
    Super,
    /// `(d * s) * w`, one signed byte s for each 16 elements, d shared by 8 blocks.
    SuperSplit,
}

/// 32 elements of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block32 {
    /// As a panel stores them.
    pub(crate) codes: [u8; BLOCK],
    /// d, and m or dmin, as halves.
    pub(crate) halves: [u16; 2],
    /// s and m, or both s.
    pub(crate) bytes: [u8; 2],
}

impl BlockFormat {
    /// The panel layout that holds the format without loss.
    pub(crate) fn layout(self) -> (Code, Scale) {
        match self {
            Self::Q4_0 => (Code::Four, Scale::Half),
            Self::Q4_1 => (Code::Four, Scale::HalfMin),
            Self::Q5_0 | Self::Q8_0 => (Code::Eight, Scale::Half),
            Self::Q5_1 => (Code::Eight, Scale::HalfMin),
            Self::Q4_K => (Code::Four, Scale::Super),
            Self::Q5_K => (Code::Eight, Scale::Super),
            Self::Q6_K => (Code::Six, Scale::SuperSplit),
        }
    }

    /// Elements `32 j..32 (j + 1)` of a row given as its stored blocks.
    pub(crate) fn unpack(self, row: &[u8], j: usize) -> Block32 {
        let per_block = self.block_len() / BLOCK;
        let block = &row[j / per_block * self.block_bytes()..][..self.block_bytes()];
        let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        let j = j % per_block;
        let (mut bytes, mut halves) = ([0; 2], [half(0), 0]);
        let codes = match self {
            Self::Q4_0 => nibbles(&block[2..]),
            Self::Q4_1 => nibbles(&block[4..]),
            Self::Q5_0 => five_bits(&block[2..]).map(|q| q + 112),
            Self::Q5_1 => five_bits(&block[4..]).map(|q| q + 128),
            Self::Q8_0 => std::array::from_fn(|i| block[2 + i] ^ 0x80),
            Self::Q4_K => {
                bytes = scale_and_min(&block[4..16], j);
                std::array::from_fn(|i| block[16 + j / 2 * 32 + i] >> (j % 2 * 4) & 15)
            }
            Self::Q5_K => {
                bytes = scale_and_min(&block[4..16], j);
                let code =
                    |i: usize| -> u8 { block[48 + j / 2 * 32 + i] >> (j % 2 * 4) & 15 | (block[16 + i] >> j & 1) << 4 };
                std::array::from_fn(|i| code(i) + 128)
            }
            Self::Q6_K => {
                halves = [half(208), 0];
                bytes = [block[192 + 2 * j], block[193 + 2 * j]];
                // Half n of the block, quarter k: quarters 0 and 1 lie in the low nibbles, 2 and 3 in the high ones.
                let (n, k) = (j / 4, j % 4);
                let low = |i: usize| block[n * 64 + k % 2 * 32 + i] >> (k / 2 * 4) & 15;
                std::array::from_fn(|i| low(i) | (block[128 + n * 32 + i] >> (2 * k) & 3) << 4)
            }
        };
        if matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K) {
            halves[1] = half(2);
        }
        Block32 { codes, halves, bytes }
    }
}

fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// 32 fifth bits, then nibbles.
fn five_bits(bytes: &[u8]) -> [u8; BLOCK] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4)
}

/// Scale and minimum (6 bits each) of sub-block j of a K block, packed in 12 bytes.
fn scale_and_min(packed: &[u8], j: usize) -> [u8; 2] {
    if j < 4 {
        [packed[j] & 63, packed[j + 4] & 63]
    } else {
        let shared = packed[j + 4];
        [shared & 15 | packed[j - 4] >> 2 & 0x30, shared >> 4 | packed[j] >> 2 & 0x30]
    }
}

impl Block32 {
    /// All zero in the given layout.
    pub(crate) fn zero((code, scale): (Code, Scale)) -> Self {
        let middle = match code {
            Code::Four if scale == Scale::Half => 8,
            Code::Four => 0,
            Code::Six => 32,
            Code::Eight => 128,
        };
        Self { codes: [middle; BLOCK], halves: [0; 2], bytes: [0; 2] }
    }

    /// The 32 numbers.
    pub(crate) fn values(&self, (code, scale): (Code, Scale)) -> [f32; BLOCK] {
        let offset = Self::zero((code, scale)).codes[0];
        let [d, m] = self.halves.map(f16_to_f32);
        std::array::from_fn(|i| {
            let w = (i32::from(self.codes[i]) - i32::from(offset)) as f32;
            match scale {
                Scale::Half => d * w,
                Scale::HalfMin => d * w + m,
                Scale::Super => d * f32::from(self.bytes[0]) * w - m * f32::from(self.bytes[1]),
                Scale::SuperSplit => d * f32::from(self.bytes[i / 16] as i8) * w,
            }
        })
    }
}
