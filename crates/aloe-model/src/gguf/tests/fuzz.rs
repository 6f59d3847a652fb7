//! A quarter of a million damaged files from a seed: no panic, no memory beyond the file and 64 MiB, and what is accepted keeps the
//! promises that every later reader relies on.

use super::*;
use crate::own_process::{peaks_bytes, reset_peak, within_memory_of_its_own};
use aloe_record::CounterRng;

const N_SMALL: u64 = 250_000;
const N_LARGE: u64 = 300;

/// Numbers at which counts, lengths, sizes and products go wrong.
const NUMBERS: [u64; 14] =
    [0, 1, 2, 31, 33, 255, 1 << 16, 1 << 20, 1 << 24, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX];

/// One change of a file. The table's numbers stand at no alignment, so any byte may begin one.
fn damage(bytes: &mut Vec<u8>, rng: &mut CounterRng) {
    if bytes.len() < 32 {
        return bytes.push(0);
    }
    let at = rng.below(bytes.len() - 8);
    match rng.below(8) {
        0 | 1 => bytes[at..at + 8].copy_from_slice(&NUMBERS[rng.below(NUMBERS.len())].to_le_bytes()),
        2 => bytes[at..at + 4].copy_from_slice(&(rng.below(40) as u32).to_le_bytes()),
        3 => bytes[at] = rng.next_u32() as u8,
        4 => bytes[at] = bytes[at].wrapping_add(1),
        5 => drop(bytes.splice(at..at, [0u8; 8])),
        6 => drop(bytes.drain(at..at + 1 + rng.below(8))),
        _ => {
            let copied = bytes[at..(at + rng.below(64)).min(bytes.len())].to_vec();
            let to = rng.below(bytes.len());
            bytes.splice(to..to, copied);
        }
    }
}

fn mutant(good: &[u8], item: u64) -> Vec<u8> {
    let mut rng = CounterRng::new(19, "gguf-fuzz", item);
    let mut bytes = good.to_vec();
    // The header is the smaller part of a file but the one that is parsed: half of the changes stay within its first 200 bytes.
    let tail = if rng.below(2) == 0 && bytes.len() > 200 { bytes.split_off(200) } else { Vec::new() };
    for _ in 0..=rng.below(3) {
        damage(&mut bytes, &mut rng);
    }
    bytes.extend(tail);
    bytes
}

/// Whether the file is accepted; then every tensor lies inside it, alone, and has the size of its shape.
fn check(bytes: &[u8]) -> bool {
    let Ok(header) = parse(bytes) else { return false };
    let mut end = 0;
    for name in &header.names {
        let tensor = &header.tensors[name];
        assert!(tensor.range.start >= end && tensor.range.end <= bytes.len(), "{name}: {:?}", tensor.range);
        let n_elements: u128 = tensor.shape.iter().map(|&size| size as u128).product();
        let (block_len, block_bytes) = (tensor.ggml_type.block_len() as u128, tensor.ggml_type.block_bytes() as u128);
        assert_eq!(tensor.range.len() as u128 * block_len, n_elements * block_bytes, "{name}");
        end = tensor.range.end;
    }
    true
}

#[test]
fn a_quarter_of_a_million_damaged_files_neither_panic_nor_take_memory() {
    within_memory_of_its_own(
        "gguf::tests::fuzz::a_quarter_of_a_million_damaged_files_neither_panic_nor_take_memory",
        || {
            let good = small().bytes();
            let mut vocabulary = small();
            let tokens: Vec<u8> = (0..20_000).flat_map(|at| string(&format!("token {at}"))).collect();
            vocabulary.metadata[3].2 = [8u32.to_le_bytes().to_vec(), 20_000u64.to_le_bytes().to_vec(), tokens].concat();
            let large = vocabulary.bytes();
            assert!(check(&good) && check(&large));
            reset_peak();
            let before = peaks_bytes();
            let (mut n_accepted, mut longest) = (0u64, 0usize);
            for item in 0..N_SMALL + N_LARGE {
                let bytes = mutant(if item < N_SMALL { &good } else { &large }, item);
                longest = longest.max(bytes.len());
                n_accepted += u64::from(check(&bytes));
            }
            let after = peaks_bytes();
            let grown = [after[0] - before[0], after[1] - before[1]];
            println!("{n_accepted} accepted, {grown:?} bytes more, the longest file has {longest}");
            assert!(n_accepted > 100, "{n_accepted} of {N_SMALL}: nothing but noise");
            assert!(n_accepted < N_SMALL / 2, "{n_accepted} of {N_SMALL}: the damage is too small");
            assert!(
                grown.iter().all(|&bytes| bytes <= longest as u64 + (64 << 20)),
                "{grown:?} bytes for files of up to {longest}"
            );
        },
    );
}
