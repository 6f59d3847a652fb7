//! Golden blocks, and files that lie about themselves.

mod fuzz;

use super::*;
use std::time::{Duration, Instant};

/// A small well-formed file in pieces, so that a test can break one of them.
pub(super) struct Builder {
    pub(super) version: u32,
    pub(super) metadata: Vec<(String, u32, Vec<u8>)>,
    /// Name, shape in file order (columns first), type number, bytes.
    pub(super) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

pub(super) fn string(text: &str) -> Vec<u8> {
    [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

impl Builder {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0u64;
        for (name, shape, kind, bytes) in &self.tensors {
            out.extend(string(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (bytes.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(bytes);
        }
        out
    }
}

fn small() -> Builder {
    let array = [8u32.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec(), string("a"), string("bc")].concat();
    Builder {
        version: 3,
        metadata: vec![
            ("general.architecture".into(), 8, string("llama")),
            ("n".into(), 4, 7u32.to_le_bytes().to_vec()),
            ("eps".into(), 6, 1e-5f32.to_le_bytes().to_vec()),
            ("tokens".into(), 9, array),
            ("flag".into(), 7, vec![1]),
        ],
        tensors: vec![
            ("a".into(), vec![2, 3], 0, (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect()),
            ("b".into(), vec![32], 8, [vec![0x00, 0x3c], (0..32).collect()].concat()),
        ],
    }
}

/// The reason why these bytes are refused, which must be found within 10 ms. On a busy machine the fastest of ten tries counts.
fn reason_within_10_ms(bytes: &[u8], what: &str) -> String {
    let mut fastest = Duration::MAX;
    for _ in 0..10 {
        let began = Instant::now();
        let reason = parse(bytes).expect_err(what);
        fastest = fastest.min(began.elapsed());
        if fastest < Duration::from_millis(10) {
            return reason;
        }
    }
    panic!("{what}: took {fastest:?}");
}

fn refused(bytes: &[u8], expected: &str) {
    let reason = reason_within_10_ms(bytes, expected);
    assert!(reason.contains(expected), "expected \"{expected}\" in: {reason}");
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn every_type_dequantises_bit_for_bit_as_the_gguf_package_does() {
    let golden: Value = serde_json::from_str(include_str!("../../tests/golden/gguf_dequant.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 11);
    for case in cases {
        let name = case["type"].as_str().unwrap();
        let ggml_type = (0..64).filter_map(|n| GgmlType::from_number(n).ok()).find(|t| t.name() == name).unwrap();
        let found = ggml_type.dequantize(&hex(case["bytes"].as_str().unwrap()));
        let expected = hex(case["f32_le"].as_str().unwrap());
        assert_eq!(found.len() * 4, expected.len(), "{name}");
        for (i, (value, bytes)) in found.iter().zip(expected.chunks_exact(4)).enumerate() {
            let expected = u32::from_le_bytes(bytes.try_into().unwrap());
            assert_eq!(value.to_bits(), expected, "{name}, element {i}: {value} against {}", f32::from_bits(expected));
        }
    }
}

#[test]
fn a_small_file_is_read_as_it_was_built() {
    let bytes = small().bytes();
    let header = parse(&bytes).unwrap();
    let expected = serde_json::json!({
        "general.architecture": "llama", "n": 7, "eps": 0.00001, "tokens": ["a", "bc"], "flag": true
    });
    assert_eq!(Value::Object(header.metadata), expected);
    assert_eq!(header.names, ["a", "b"]);
    // Three rows of two columns; the file says columns first.
    assert_eq!(header.tensors["a"].shape, [3, 2]);
    let b = &header.tensors["b"];
    let values = b.ggml_type.dequantize(&bytes[b.range.clone()]);
    assert_eq!(values, (0..32).map(|i| i as f32).collect::<Vec<_>>());
}

#[test]
fn a_file_cut_at_any_byte_is_an_error_within_10_ms() {
    let bytes = small().bytes();
    for n in 0..bytes.len() {
        reason_within_10_ms(&bytes[..n], &format!("cut at {n} of {}", bytes.len()));
    }
    assert!(parse(&bytes).is_ok());
}

#[test]
fn the_three_evil_headers_of_llama_cpps_history_are_refused_at_once() {
    let head = |n_tensors: u64, n_keys: u64| {
        [b"GGUF".to_vec(), 3u32.to_le_bytes().to_vec(), n_tensors.to_le_bytes().to_vec(), n_keys.to_le_bytes().to_vec()]
            .concat()
    };
    // An array of 2^63 elements, the one that hangs gguf 0.19.0.
    let array =
        [string("a"), 9u32.to_le_bytes().to_vec(), 4u32.to_le_bytes().to_vec(), (1u64 << 63).to_le_bytes().to_vec()];
    refused(&[head(0, 1), array.concat()].concat(), "length of array \"a\" is 9223372036854775808");
    let text = [string("a"), 8u32.to_le_bytes().to_vec(), (1u64 << 62).to_le_bytes().to_vec()];
    refused(&[head(0, 1), text.concat()].concat(), "string length");
    refused(&head(0, 1 << 63), "metadata count is 9223372036854775808");
    refused(&head(1 << 63, 0), "tensor count is 9223372036854775808");
    refused(&head(u64::MAX, u64::MAX), "tensor count");
}

#[test]
fn counts_within_the_limits_are_still_compared_with_the_file() {
    let head = |n_tensors: u64, n_keys: u64| {
        [b"GGUF".to_vec(), 3u32.to_le_bytes().to_vec(), n_tensors.to_le_bytes().to_vec(), n_keys.to_le_bytes().to_vec()]
            .concat()
    };
    refused(&head(60_000, 0), "only");
    refused(&head(0, 60_000), "only");
    let array =
        [string("a"), 9u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec(), (1u64 << 18).to_le_bytes().to_vec()];
    refused(&[head(0, 1), array.concat()].concat(), "only 0 bytes follow");
}

#[test]
fn an_array_that_would_grow_far_beyond_its_file_is_refused() {
    let n = 1u64 << 20;
    let array = [
        string("a"),
        9u32.to_le_bytes().to_vec(),
        0u32.to_le_bytes().to_vec(),
        n.to_le_bytes().to_vec(),
        vec![0; n as usize],
    ];
    let head =
        [b"GGUF".to_vec(), 3u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()];
    refused(&[head.concat(), array.concat()].concat(), "length of array \"a\" is 1048576, the limit is");
}

/// Breaks the small file in one way and expects one message.
fn broken(expected: &str, damage: impl FnOnce(&mut Builder)) {
    let mut file = small();
    damage(&mut file);
    refused(&file.bytes(), expected);
}

#[test]
fn lies_in_the_metadata_are_named() {
    broken("version 1", |file| file.version = 1);
    broken("big-endian", |file| file.version = 0x0300_0000);
    broken("stands twice", |file| file.metadata[1].0 = "eps".into());
    broken("unknown value type 13", |file| file.metadata[1].1 = 13);
    broken("a boolean is 2", |file| file.metadata[4].2 = vec![2]);
    broken("not UTF-8", |file| file.metadata[0].2 = [1u64.to_le_bytes().to_vec(), vec![0xff]].concat());
    broken("array of arrays", |file| file.metadata[3].2 = [9u32.to_le_bytes().to_vec(), vec![0; 8]].concat());
    broken("elements of unknown type 77", |file| {
        file.metadata[3].2 = [77u32.to_le_bytes().to_vec(), vec![0; 8]].concat()
    });
    for alignment in [0u32, 3, 33, 1 << 21] {
        broken("general.alignment", |file| {
            file.metadata[1] = ("general.alignment".into(), 4, alignment.to_le_bytes().to_vec());
        });
    }
    broken("general.alignment", |file| file.metadata[0].0 = "general.alignment".into());
}

#[test]
fn lies_in_the_tensor_table_are_named() {
    broken("stands twice", |file| file.tensors[1].0 = "a".into());
    broken("0 dimensions", |file| file.tensors[0].1 = vec![]);
    broken("5 dimensions", |file| file.tensors[0].1 = vec![1; 5]);
    broken("no elements", |file| file.tensors[0].1 = vec![0, 3]);
    broken("overflows", |file| file.tensors[0].1 = vec![1 << 32, 1 << 32, 1 << 32]);
    broken("overflows", |file| file.tensors[0].1 = vec![1 << 63, 2]);
    broken("is it truncated?", |file| file.tensors[0].1 = vec![1 << 61]);
    broken("is it truncated?", |file| file.tensors[1].1 = vec![64]);
    broken("do not divide", |file| file.tensors[1].1 = vec![31]);
    broken("Q2_K", |file| file.tensors[1].2 = 10);
    broken("unknown", |file| file.tensors[1].2 = u32::MAX);
    broken("string length", |file| file.tensors[1].0 = "n".repeat(513));
    // One more column in the first tensor moves the place where the second must begin.
    broken("begins at offset 32, expected 64", |file| file.tensors[0].1 = vec![4, 3]);
}

#[test]
fn bytes_behind_the_last_tensor_are_refused_but_padding_is_not() {
    let mut bytes = small().bytes();
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    assert!(parse(&bytes).is_ok());
    bytes.push(0);
    refused(&bytes, "follow the last tensor");
}

#[test]
fn random_damage_never_panics_and_never_takes_long() {
    let good = small().bytes();
    let began = Instant::now();
    for item in 0..20_000 {
        let mut rng = aloe_record::CounterRng::new(7, "gguf-damage", item);
        let mut bytes = good.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len());
            bytes[at] = rng.next_u32() as u8;
        }
        if let Ok(header) = parse(&bytes) {
            for tensor in header.tensors.values() {
                tensor.ggml_type.dequantize(&bytes[tensor.range.clone()]);
            }
        }
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
