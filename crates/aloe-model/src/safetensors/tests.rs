//! Hand-made files that break one rule each, and pickles under other names.

mod fuzz;

use super::*;
use std::time::{Duration, Instant};

/// A file from its header text and data.
fn file(header: &str, n_data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + n_data, 0);
    out
}

fn parsed(bytes: &[u8]) -> Result<Parsed> {
    parse(Path::new("m.safetensors"), bytes)
}

fn refused(what: &str, bytes: &[u8], expected: &str) {
    let began = Instant::now();
    let message = parsed(bytes).err().unwrap_or_else(|| panic!("{what} was accepted")).to_string();
    assert!(message.contains("m.safetensors"), "{what}: {message}");
    assert!(message.contains(expected), "{what}: expected \"{expected}\" in: {message}");
    assert!(message.len() < 1200, "{what}: the message has {} bytes", message.len());
    assert!(began.elapsed() < Duration::from_secs(1), "{what} took {:?}", began.elapsed());
}

const GOOD: &str = r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;

#[test]
fn a_good_file_is_read_as_it_was_built() {
    let mut bytes = file(GOOD, 0);
    (0..6).for_each(|i| bytes.extend((i as f32).to_le_bytes()));
    [0x3f80u16, 0xbf80, 0x4000, 0x0000].iter().for_each(|bits| bytes.extend(bits.to_le_bytes()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let opened = SafeTensorsFile::open(&path).unwrap();
    assert_eq!(opened.names(), ["a", "b"]);
    assert_eq!(opened.info("a").unwrap().shape, [2, 3]);
    assert_eq!(opened.load_f32("a").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(opened.load_f32("b").unwrap(), [1.0, -1.0, 2.0, 0.0]);
    assert_eq!(opened.load_bf16("a").unwrap()[1], 0x3f80);
    assert!(opened.load_f32("c").is_err());
}

#[test]
fn padding_metadata_scalars_and_any_order_of_entries_are_fine() {
    let header = r#"{"__metadata__":{"format":"pt"},"z":{"dtype":"F16","shape":[],"data_offsets":[4,6]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}   "#;
    let found = parsed(&file(header, 6)).unwrap();
    assert_eq!(found.names, ["a", "z"]);
    assert_eq!(found.metadata["format"], "pt");
    assert!(parsed(&file("{}", 0)).is_ok());
}

/// One entry with the given fields over 8 bytes of data.
fn entry(fields: &str) -> Vec<u8> {
    file(&format!("{{\"a\":{{{fields}}}}}"), 8)
}

#[test]
fn twenty_five_files_that_break_one_rule_each_are_refused() {
    let f32x2 = r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#;
    assert!(parsed(&entry(f32x2)).is_ok());
    refused("an empty file", b"", "too short");
    refused("seven bytes", b"1234567", "too short");
    refused("no header", &8u64.to_le_bytes(), "is truncated");
    refused("a header length of 2^64 - 1", &[0xff; 16], "the limit is 100000000");
    refused(
        "a header length above 100 MB",
        &[100_000_001u64.to_le_bytes().as_slice(), &[b'{'; 64]].concat(),
        "the limit",
    );
    refused("a header longer than the file", &[99u64.to_le_bytes().as_slice(), b"{}"].concat(), "is truncated");
    refused("a header of zero bytes", &file("", 8), "does not begin with {");
    refused("a header that is a list", &file("[]", 0), "does not begin with {");
    refused("a header with a space before it", &file(" {}", 0), "does not begin with {");
    refused("a header that is not JSON", &file("{nonsense", 0), "header is not valid");
    refused("a header cut in a key", &file("{\"a", 0), "header is not valid");
    refused("two headers", &file("{}{}", 0), "header is not valid");
    refused(
        "a header that is not UTF-8",
        &[5u64.to_le_bytes().as_slice(), b"{\"\xff\"}"].concat(),
        "header is not valid",
    );
    refused("an entry that is a number", &file("{\"a\":1}", 0), "header is not valid");
    refused("no dtype", &entry(r#""shape":[2],"data_offsets":[0,8]"#), "missing field");
    refused("no shape", &entry(r#""dtype":"F32","data_offsets":[0,8]"#), "missing field");
    refused("no offsets", &entry(r#""dtype":"F32","shape":[2]"#), "missing field");
    refused("an unknown field", &entry(&format!("{f32x2},\"x\":1")), "unknown field");
    refused("a field twice", &entry(&format!("{f32x2},\"dtype\":\"I32\"")), "duplicate field");
    refused("an unknown dtype", &entry(r#""dtype":"Q4","shape":[2],"data_offsets":[0,8]"#), "dtype \"Q4\" is unknown");
    refused("a negative size", &entry(r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#), "header is not valid");
    refused("a fractional size", &entry(r#""dtype":"F32","shape":[2.0],"data_offsets":[0,8]"#), "header is not valid");
    refused("a size as text", &entry(r#""dtype":"F32","shape":["2"],"data_offsets":[0,8]"#), "header is not valid");
    refused("three offsets", &entry(r#""dtype":"F32","shape":[2],"data_offsets":[0,8,8]"#), "header is not valid");
    refused("metadata that are not text", &file(r#"{"__metadata__":{"n":1}}"#, 0), "header is not valid");
}

#[test]
fn twenty_files_with_lying_sizes_and_places_are_refused() {
    let at = |shape: &str, begin: &str, end: &str| {
        entry(&format!(r#""dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]"#))
    };
    refused("too many elements", &at("[3]", "0", "8"), "needs 12 bytes, data_offsets hold 8");
    refused("too few elements", &at("[1]", "0", "8"), "needs 4 bytes");
    refused("an overflowing shape", &at("[4294967296,4294967296]", "0", "8"), "overflows");
    refused("a shape that overflows to 8 bytes", &at("[4611686018427387906]", "0", "8"), "overflows");
    refused("u64::MAX elements", &at("[18446744073709551615]", "0", "8"), "overflows");
    refused("more than u64::MAX", &at("[18446744073709551616]", "0", "8"), "header is not valid");
    refused("nine dimensions", &at("[1,1,1,1,1,1,1,1,2]", "0", "8"), "more than 8 dimensions");
    refused("a zero dimension", &at("[0]", "0", "0"), "has no elements");
    refused("backward offsets", &at("[2]", "8", "0"), "lie outside");
    refused("offsets beyond the data", &at("[2]", "8", "16"), "lie outside");
    refused("offsets at u64::MAX", &at("[2]", "18446744073709551608", "18446744073709551615"), "lie outside");
    refused("a hole at the start", &at("[1]", "4", "8"), "leaves a hole");
    refused("bytes behind the last tensor", &at("[1]", "0", "4"), "4 bytes follow the last tensor");
    refused("data without tensors", &file("{}", 8), "8 bytes follow");
    let two = |a: (usize, usize), b: (usize, usize), n: usize| {
        let one = |(begin, end): (usize, usize)| {
            format!(r#"{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
        };
        file(&format!(r#"{{"a":{},"b":{}}}"#, one(a), one(b)), n)
    };
    refused("an overlap", &two((0, 6), (4, 8), 8), "overlaps");
    refused("the same bytes twice", &two((0, 8), (0, 8), 8), "overlaps");
    refused("a tensor inside another", &two((0, 8), (2, 4), 8), "overlaps");
    refused("a hole between", &two((0, 2), (4, 8), 8), "leaves a hole");
    refused("a zero-sized tensor on another's bytes", &two((0, 8), (4, 4), 8), "has no elements");
    refused("truncated data", &two((0, 4), (4, 8), 7), "is the file truncated?");
}

#[test]
fn duplicate_keys_are_refused_where_the_reference_reader_takes_the_last() {
    let f32s = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let i32s = r#"{"dtype":"I32","shape":[2],"data_offsets":[0,8]}"#;
    refused("a tensor twice", &file(&format!(r#"{{"a":{f32s},"a":{i32s}}}"#), 8), "key \"a\" stands twice");
    refused("the same by an escape", &file(&format!(r#"{{"a":{f32s},"\u0061":{i32s}}}"#), 8), "stands twice");
    refused("metadata twice", &file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "stands twice");
    refused("a metadata key twice", &file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0), "twice");
}

#[test]
fn huge_counts_names_and_depths_are_refused_quickly() {
    let many: Vec<String> = (0..100_000)
        .map(|i| format!(r#""t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1))
        .collect();
    refused("100,000 tensors", &file(&format!("{{{}}}", many.join(",")), 100_000), "more than 16384 tensors");
    let long = "n".repeat(1 << 20);
    let fields = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    refused(
        "a name of 1 MB",
        &file(&format!(r#"{{"{long}":{fields}}}"#), 1),
        "is 1048576 bytes long, the limit is 512",
    );
    refused("an empty name", &file(&format!(r#"{{"":{fields}}}"#), 1), "the name is empty");
    refused(
        "a dtype of 1 MB",
        &file(&format!(r#"{{"a":{{"dtype":"{long}","shape":[1],"data_offsets":[0,1]}}}}"#), 1),
        "the limit is 512",
    );
    refused("100,000 brackets", &file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0), "header is not valid");
    refused(
        "a shape of a million sizes",
        &entry(&format!(r#""dtype":"F32","shape":[{}1],"data_offsets":[0,8]"#, "1,".repeat(1 << 20))),
        "more than 8",
    );
    refused("100 MB of spaces", &file(&" ".repeat(100_000_000), 0), "does not begin");
    let mut padded = String::from("{");
    padded.push_str(&" ".repeat(99_999_998));
    padded.push('}');
    let began = Instant::now();
    assert!(parsed(&file(&padded, 0)).is_ok());
    assert!(began.elapsed() < Duration::from_secs(1), "100 MB header took {:?}", began.elapsed());
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let good = file(GOOD, 32);
    assert!(parsed(&good).is_ok());
    for n in 0..good.len() {
        assert!(parsed(&good[..n]).is_err(), "cut at {n}");
    }
}

#[test]
fn random_damage_never_panics() {
    let good = file(GOOD, 32);
    for item in 0..50_000 {
        let mut rng = aloe_record::CounterRng::new(3, "safetensors-damage", item);
        let mut bytes = good.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(bytes.len());
            bytes[at] = rng.next_u32() as u8;
        }
        let _ = parsed(&bytes);
    }
}

#[test]
fn other_types_are_sized_but_not_loaded_as_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    for (name, _, size) in DTYPES {
        let bytes =
            file(&format!(r#"{{"a":{{"dtype":"{name}","shape":[2],"data_offsets":[0,{}]}}}}"#, 2 * size), 2 * size);
        std::fs::write(&path, bytes).unwrap();
        let opened = SafeTensorsFile::open(&path).unwrap();
        let loads = matches!(name, "F32" | "F16" | "BF16");
        assert_eq!(opened.load_f32("a").is_ok(), loads, "{name}");
        assert_eq!(opened.load_bf16("a").is_ok(), loads, "{name}");
    }
}

#[test]
fn ten_pickles_under_any_name_are_refused_with_the_way_out() {
    let zip = b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00\x00\x00archive/data.pkl".as_slice();
    let old = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".as_slice();
    let global = b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.".as_slice();
    let mut tar = vec![0u8; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let cases: [(&str, &[u8]); 10] = [
        ("pytorch_model.bin", zip),
        ("model.safetensors", zip),
        ("model.safetensors", old),
        ("model.gguf", old),
        ("weights.pt", b"\x80\x03}q\x00."),
        ("weights.pth", global),
        ("model.ckpt", b"\x80\x05\x95\x00\x00\x00\x00\x00\x00\x00\x00}."),
        ("model.safetensors", b"PK\x05\x06\x00\x00\x00\x00"),
        ("model.safetensors", b"(dp0\nS'a'\np1\nI1\ns."),
        ("model.safetensors", &tar),
    ];
    for (name, bytes) in cases {
        let error = parse(Path::new(name), bytes).err().unwrap_or_else(|| panic!("{name} was accepted"));
        assert!(matches!(error, Error::Pickle { .. }), "{name}: {error}");
        let message = error.to_string();
        assert!(
            message.contains(name) && message.contains("any code") && message.contains("safe_serialization=True"),
            "{message}"
        );
    }
    // A header of 640 bytes begins with 0x80 0x02 too: that is no pickle.
    let header = format!("{{{}}}", " ".repeat(638));
    assert!(parsed(&file(&header, 0)).is_ok());
}

#[test]
fn long_strings_and_large_metadata_are_refused_before_they_are_copied() {
    let long = "x".repeat(MAX_STRING_BYTES + 1);
    refused(
        "a string above 16 MiB",
        &file(&format!(r#"{{"__metadata__":{{"a":"{long}"}}}}"#), 0),
        "holds a string of more than",
    );
    refused("a string that never ends", &file(&format!("{{\"{long}"), 0), "holds a string of more than");
    let escaped = "\\\"".repeat(MAX_STRING_BYTES / 2 + 1);
    refused("a string of escaped quotes", &file(&format!(r#"{{"{escaped}":1}}"#), 0), "holds a string of more than");
    let part = "x".repeat(4 << 20);
    let entries: Vec<String> = (0..5).map(|i| format!(r#""{i}":"{part}""#)).collect();
    refused(
        "20 MiB of metadata",
        &file(&format!(r#"{{"__metadata__":{{{}}}}}"#, entries.join(",")), 0),
        "__metadata__ is larger",
    );
}
