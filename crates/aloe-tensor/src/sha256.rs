//! SHA-256 (FIPS 180-4) of several streams of bytes at once. Within one stream every instruction waits for the one before, and the unit for
//! them is idle half of the time; further streams fill it (an EPYC with Zen 3: 1.4 GB/s of one, 2.1 of two, 2.5 of three, 2.7 of four). Where the
//! processor has no such instructions the streams are hashed one after the other by the `sha2` crate, which also does what is left over of
//! a single one.
//!
//! It stands here because it needs `unsafe`; who hashes what is decided by those who read files.

use sha2::block_api::compress256;

/// Bytes of a block.
const BLOCK: usize = 64;

/// FIPS 180-4, section 5.3.3.
const START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The digest of a stream of bytes that come piece by piece.
#[derive(Clone)]
pub struct Sha256 {
    state: [u32; 8],
    /// The block that is not full yet: its first `n_bytes % 64` bytes.
    begun: [u8; BLOCK],
    n_bytes: u64,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self { state: START, begun: [0; BLOCK], n_bytes: 0 }
    }
}

impl Sha256 {
    /// Bytes so far.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        sha256_all(&mut [(self, bytes)]);
    }

    /// The digest as 64 lower-case hexadecimal digits.
    pub fn hex(mut self) -> String {
        let n_bits = 8 * self.n_bytes;
        // A one, zeros, and the number of bits in the last eight bytes of a block.
        let n_zeros = (2 * BLOCK - 9 - self.n_begun()) % BLOCK;
        let mut end = vec![0x80u8];
        end.resize(1 + n_zeros, 0);
        end.extend_from_slice(&n_bits.to_be_bytes());
        self.update(&end);
        self.state.iter().map(|word| format!("{word:08x}")).collect()
    }

    fn n_begun(&self) -> usize {
        (self.n_bytes % BLOCK as u64) as usize
    }

    /// Completes the begun block, and begins one with what is left after the whole blocks that are still to be hashed: these.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [[u8; BLOCK]] {
        let n_begun = self.n_begun();
        self.n_bytes += bytes.len() as u64;
        let (first, others) = bytes.split_at(if n_begun == 0 { 0 } else { bytes.len().min(BLOCK - n_begun) });
        self.begun[n_begun..n_begun + first.len()].copy_from_slice(first);
        if n_begun + first.len() == BLOCK {
            compress256(&mut self.state, &[self.begun]);
        } else if !first.is_empty() {
            return &[];
        }
        let (blocks, rest) = others.as_chunks();
        self.begun[..rest.len()].copy_from_slice(rest);
        blocks
    }
}

/// A stream's state, and its blocks that are still to be hashed.
struct Open<'a> {
    state: &'a mut [u32; 8],
    blocks: &'a [[u8; BLOCK]],
}

/// Adds bytes to each of several streams, up to four of them side by side where the processor can.
pub fn sha256_all(streams: &mut [(&mut Sha256, &[u8])]) {
    let mut open = Vec::with_capacity(streams.len());
    for (stream, bytes) in streams.iter_mut() {
        let blocks = stream.take(bytes);
        open.push(Open { state: &mut stream.state, blocks });
    }
    loop {
        open.retain(|stream| !stream.blocks.is_empty());
        open.sort_by_key(|stream| std::cmp::Reverse(stream.blocks.len()));
        match &mut open[..] {
            [] => return,
            [a, b, c, d, ..] if has_instructions() => side_by_side([a, b, c, d]),
            [a, b, c] if has_instructions() => side_by_side([a, b, c]),
            [a, b] if has_instructions() => side_by_side([a, b]),
            [first, ..] => compress256(first.state, std::mem::take(&mut first.blocks)),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_instructions() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn side_by_side<const N: usize>(streams: [&mut Open<'_>; N]) {
    for stream in streams {
        compress256(stream.state, std::mem::take(&mut stream.blocks));
    }
}

#[cfg(target_arch = "x86_64")]
fn has_instructions() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3")
}

/// Hashes as many blocks of each as the shortest has.
#[cfg(target_arch = "x86_64")]
fn side_by_side<const N: usize>(mut streams: [&mut Open<'_>; N]) {
    let n_blocks = streams.iter().map(|stream| stream.blocks.len()).min().unwrap_or(0);
    let blocks = streams.each_mut().map(|stream| {
        let (now, later) = stream.blocks.split_at(n_blocks);
        stream.blocks = later;
        now
    });
    // SAFETY: `has_instructions` was asked by the only caller.
    unsafe { x86::compress(streams.map(|stream| &mut *stream.state), blocks) };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The instructions of Intel's SHA extensions (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2): the state is kept
    //! as the words a, b, e, f and c, d, g, h; one instruction does two rounds, two compute four words of the schedule.

    use super::BLOCK;
    use std::arch::x86_64::*;

    /// FIPS 180-4, section 4.2.2.
    #[rustfmt::skip]
    const K: [u32; 64] = [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ];

    /// Hashes blocks, of all streams equally many, into their states.
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn compress<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[[u8; BLOCK]]; N]) {
        let mut abef = [_mm_setzero_si128(); N];
        let mut cdgh = abef;
        for n in 0..N {
            let s = states[n].map(u32::cast_signed);
            abef[n] = _mm_set_epi32(s[0], s[1], s[4], s[5]);
            cdgh[n] = _mm_set_epi32(s[2], s[3], s[6], s[7]);
        }
        for at in 0..blocks[0].len() {
            one_block(&mut abef, &mut cdgh, blocks.map(|blocks| &blocks[at]));
        }
        for (n, state) in states.into_iter().enumerate() {
            let (a, c) = (words(abef[n]), words(cdgh[n]));
            *state = [a[3], a[2], c[3], c[2], a[1], a[0], c[1], c[0]];
        }
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    #[expect(clippy::needless_range_loop, reason = "one stream of four words at a time")]
    fn one_block<const N: usize>(abef: &mut [__m128i; N], cdgh: &mut [__m128i; N], blocks: [&[u8; BLOCK]; N]) {
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let before = (*abef, *cdgh);
        let mut schedule = [[_mm_setzero_si128(); N]; 4];
        for (i, words) in schedule.iter_mut().enumerate() {
            for n in 0..N {
                // SAFETY: the block holds 64 bytes, four times 16.
                let loaded = unsafe { _mm_loadu_si128(blocks[n].as_ptr().cast::<__m128i>().add(i)) };
                words[n] = _mm_shuffle_epi8(loaded, big_endian);
            }
        }
        for i in 0..16 {
            if i >= 4 {
                for n in 0..N {
                    let w = |ahead: usize| schedule[(i + ahead) % 4][n];
                    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w(0), w(1)), _mm_alignr_epi8(w(3), w(2), 4));
                    schedule[i % 4][n] = _mm_sha256msg2_epu32(sum, w(3));
                }
            }
            // SAFETY: there are 64 constants, 16 times four.
            let k = unsafe { _mm_loadu_si128(K.as_ptr().add(4 * i).cast()) };
            four_rounds(abef, cdgh, schedule[i % 4], k);
        }
        for n in 0..N {
            abef[n] = _mm_add_epi32(abef[n], before.0[n]);
            cdgh[n] = _mm_add_epi32(cdgh[n], before.1[n]);
        }
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    fn four_rounds<const N: usize>(abef: &mut [__m128i; N], cdgh: &mut [__m128i; N], words: [__m128i; N], k: __m128i) {
        let mut sums = words;
        for n in 0..N {
            sums[n] = _mm_add_epi32(words[n], k);
        }
        for n in 0..N {
            cdgh[n] = _mm_sha256rnds2_epu32(cdgh[n], abef[n], sums[n]);
        }
        for n in 0..N {
            abef[n] = _mm_sha256rnds2_epu32(abef[n], cdgh[n], _mm_shuffle_epi32(sums[n], 0x0e));
        }
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn words(vector: __m128i) -> [u32; 4] {
        let mut words = [0u32; 4];
        // SAFETY: the array holds 16 bytes.
        unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), vector) };
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> String {
        let mut sha = Sha256::default();
        sha.update(bytes);
        sha.hex()
    }

    #[test]
    fn sha256_agrees_with_the_fips_180_examples() {
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let two_blocks = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        assert_eq!(digest(two_blocks), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
        assert_eq!(digest(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    /// The twin is `sha2` on all bytes at once. Lengths around a block, pieces of any size, streams of equal and of other lengths.
    #[test]
    fn streams_hashed_side_by_side_in_pieces_have_the_digests_of_each_alone() {
        let bytes: Vec<u8> = (0..5000u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        for lengths in [&[0, 1, 63, 64, 65][..], &[1000, 1000, 1000], &[4999, 640, 640, 3], &[128, 4000], &[777]] {
            for pieces in [&[5000][..], &[1, 62, 64, 65, 700], &[64], &[13, 640]] {
                let mut all = vec![Sha256::default(); lengths.len()];
                let mut at = 0;
                for piece in pieces.iter().cycle() {
                    if at >= 5000 {
                        break;
                    }
                    let end = at + piece;
                    let part = |n: &usize| &bytes[at.min(*n)..end.min(*n)];
                    let mut streams: Vec<(&mut Sha256, &[u8])> = all.iter_mut().zip(lengths.iter().map(part)).collect();
                    sha256_all(&mut streams);
                    at = end;
                }
                for (n, sha) in lengths.iter().zip(all) {
                    assert_eq!(sha.n_bytes(), *n as u64);
                    assert_eq!(
                        sha.hex(),
                        aloe_record::digest::bytes(&bytes[..*n]),
                        "{n} bytes in pieces of {pieces:?}"
                    );
                }
            }
        }
    }
}
