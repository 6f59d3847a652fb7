//! A quarter of a million damaged files from a seed: no panic, no memory beyond the file and 64 MiB, and what is accepted keeps the
//! promises that every later reader relies on.

use super::*;
use crate::own_process::{peaks_bytes, reset_peak, within_memory_of_its_own};
use aloe_record::CounterRng;

const N_SMALL: u64 = 250_000;
const N_LARGE: u64 = 300;

/// Numbers at which sizes, offsets and products go wrong.
const NUMBERS: [&str; 16] = [
    "0",
    "1",
    "2",
    "3",
    "7",
    "8",
    "255",
    "65536",
    "2147483648",
    "4294967296",
    "4611686018427387904",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "-1",
    "1e3",
];

const WORDS: [&str; 14] = [
    "\"F32\"",
    "\"I64\"",
    "\"F8_E4M3\"",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "\"a\"",
    "null",
    "{}",
    "[]",
    "[[",
    "\"\\ud800\"",
    ",",
];

/// Places of a header at which a number stands.
fn numbers(header: &[u8]) -> Vec<Range<usize>> {
    let digit = |at: usize| header.get(at).is_some_and(u8::is_ascii_digit);
    let starts = (0..header.len()).filter(|&at| digit(at) && (at == 0 || !digit(at - 1)));
    starts.map(|at| at..(at..=header.len()).find(|&end| !digit(end)).unwrap_or(header.len())).collect()
}

/// One change of a header.
fn damage(header: &mut Vec<u8>, rng: &mut CounterRng) {
    let places = numbers(header);
    if header.is_empty() || places.is_empty() {
        return header.push(b'{');
    }
    let at = rng.below(header.len());
    match rng.below(8) {
        0..=2 => {
            let place = places[rng.below(places.len())].clone();
            header.splice(place, NUMBERS[rng.below(NUMBERS.len())].bytes());
        }
        3 => header[at] = rng.next_u32() as u8,
        4 => drop(header.splice(at..at, WORDS[rng.below(WORDS.len())].bytes())),
        5 => drop(header.remove(at)),
        6 => {
            let end = (at + rng.below(60)).min(header.len());
            let copied = header[at..end].to_vec();
            let to = rng.below(header.len());
            header.splice(to..to, copied);
        }
        _ => {
            let other = places[rng.below(places.len())].clone();
            let number = header[other].to_vec();
            header.splice(places[rng.below(places.len())].clone(), number);
        }
    }
}

/// A damaged file: mostly with a length field that fits its header, so that the damage is reached.
fn mutant(header: &str, n_data: usize, item: u64) -> Vec<u8> {
    let mut rng = CounterRng::new(17, "safetensors-fuzz", item);
    let mut header = header.as_bytes().to_vec();
    for _ in 0..=rng.below(3) {
        damage(&mut header, &mut rng);
    }
    let n_header = match rng.below(12) {
        0 => u64::from(rng.next_u32()) << rng.below(33),
        1 => header.len() as u64 + rng.below(3) as u64 - 1,
        _ => header.len() as u64,
    };
    let n_data = if rng.below(4) == 0 { rng.below(3 * n_data) } else { n_data };
    let mut bytes = n_header.to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + n_data, 0);
    bytes
}

/// Whether the file is accepted; then every tensor lies inside it, alone, and has the size of its shape.
fn check(bytes: &[u8]) -> bool {
    let Ok(found) = parsed(bytes) else { return false };
    let mut end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for name in &found.names {
        let info = &found.tensors[name];
        assert_eq!(info.range.start, end, "{name} does not follow the tensor before it");
        let n_elements: u128 = info.shape.iter().map(|&size| size as u128).product();
        assert_eq!(info.range.len() as u128, n_elements * info.dtype.size_bytes() as u128, "{name}");
        end = info.range.end;
    }
    assert_eq!(end, bytes.len());
    true
}

#[test]
fn a_quarter_of_a_million_damaged_headers_neither_panic_nor_take_memory() {
    within_memory_of_its_own(
        "safetensors::tests::fuzz::a_quarter_of_a_million_damaged_headers_neither_panic_nor_take_memory",
        || {
            let entry = |at: usize| {
                format!(
                    r#""model.layers.{at}.w":{{"dtype":"F32","shape":[2,3],"data_offsets":[{},{}]}}"#,
                    24 * at,
                    24 * at + 24
                )
            };
            let large = format!("{{{}}}", (0..4000).map(entry).collect::<Vec<_>>().join(","));
            reset_peak();
            let before = peaks_bytes();
            let (mut n_accepted, mut longest) = (0u64, 0usize);
            for item in 0..N_SMALL + N_LARGE {
                let bytes = if item < N_SMALL { mutant(GOOD, 32, item) } else { mutant(&large, 96_000, item) };
                longest = longest.max(bytes.len());
                n_accepted += u64::from(check(&bytes));
            }
            let after = peaks_bytes();
            let grown = [after[0] - before[0], after[1] - before[1]];
            println!("{n_accepted} accepted, {grown:?} bytes more, the longest file has {longest}");
            assert!(n_accepted > 100, "{n_accepted} of {N_SMALL}: nothing but noise");
            assert!(n_accepted < N_SMALL / 10, "{n_accepted} of {N_SMALL}: the damage is too small");
            assert!(
                grown.iter().all(|&bytes| bytes <= longest as u64 + (64 << 20)),
                "{grown:?} bytes for files of up to {longest}"
            );
        },
    );
}
