//! Strict reader of safetensors files: header checks before any tensor is touched, bytes borrowed from the mapping.
//!
//! Format: <https://huggingface.co/docs/safetensors>: u64 LE header length, JSON header, tensor bytes, little-endian, row-major.
//! Refuses what the format forbids (header over 100 MB, not beginning with `{`, holes, overlaps, trailing bytes, sizes that
//! contradict shapes) and what the reference reader lets through: duplicate keys (there the last wins), tensors without elements,
//! and absurd counts, ranks and names. Memory stays within the file's size plus a few MB.

use crate::error::{shortened, shortened_message};
use crate::float::{bf16_to_f32, f16_to_f32, f32_to_bf16};
use crate::{Error, Result, pickle};
use aloe_tensor::Mmap;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The format's own limit of the header.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// More tensors than any single published shard has (about 3,000), by far; times the longest name it stays within memory.
const MAX_TENSORS: usize = 16_384;
/// Longest accepted string of the header. The parser unescapes one string at a time into memory.
const MAX_STRING_BYTES: usize = 16 << 20;
/// All of `__metadata__` together.
const MAX_METADATA_BYTES: usize = 16 << 20;
/// Longest accepted tensor name.
const MAX_NAME_BYTES: usize = 512;
/// Highest accepted number of dimensions.
const MAX_RANK: usize = 8;

/// Element types of the format. Only F32, F16 and BF16 can be loaded as weights; the others are sized and named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the format's own")]
pub enum FileDtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    F8E5M2,
    F8E4M3,
}

const DTYPES: [(&str, FileDtype, usize); 15] = [
    ("F64", FileDtype::F64, 8),
    ("F32", FileDtype::F32, 4),
    ("F16", FileDtype::F16, 2),
    ("BF16", FileDtype::BF16, 2),
    ("I64", FileDtype::I64, 8),
    ("I32", FileDtype::I32, 4),
    ("I16", FileDtype::I16, 2),
    ("I8", FileDtype::I8, 1),
    ("U64", FileDtype::U64, 8),
    ("U32", FileDtype::U32, 4),
    ("U16", FileDtype::U16, 2),
    ("U8", FileDtype::U8, 1),
    ("BOOL", FileDtype::Bool, 1),
    ("F8_E5M2", FileDtype::F8E5M2, 1),
    ("F8_E4M3", FileDtype::F8E4M3, 1),
];

impl FileDtype {
    /// The name in the header.
    pub fn name(self) -> &'static str {
        DTYPES.iter().find(|row| row.1 == self).map_or("?", |row| row.0)
    }

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        DTYPES.iter().find(|row| row.1 == self).map_or(0, |row| row.2)
    }
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its element type.
    pub dtype: FileDtype,
    /// Its shape, rows first.
    pub shape: Vec<usize>,
    /// Where its bytes stand in the file.
    range: Range<usize>,
}

/// An opened, fully checked safetensors file.
pub struct SafeTensorsFile {
    path: PathBuf,
    map: Mmap,
    names: Vec<String>,
    tensors: HashMap<String, TensorInfo>,
    metadata: HashMap<String, String>,
}

impl SafeTensorsFile {
    /// Maps the file and checks its whole header.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mmap::open(path)?;
        let parsed = parse(path, &map)?;
        Ok(Self {
            path: path.to_path_buf(),
            map,
            names: parsed.names,
            tensors: parsed.tensors,
            metadata: parsed.metadata,
        })
    }

    /// Tensor names in the order of their bytes.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The entry of `name`, if the file has it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The raw little-endian bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(&self.map[self.entry(name)?.range.clone()])
    }

    /// Lets the pages of a tensor go that were read.
    pub(crate) fn release(&self, name: &str) -> Result<()> {
        self.map.release(self.entry(name)?.range.clone());
        Ok(())
    }

    /// The tensor as f32; exact for all three weight formats.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.entry(name)?;
        let bytes = &self.map[info.range.clone()];
        let pairs = || bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        match info.dtype {
            FileDtype::F32 => Ok(quads(bytes).collect()),
            FileDtype::F16 => Ok(pairs().map(f16_to_f32).collect()),
            FileDtype::BF16 => Ok(pairs().map(bf16_to_f32).collect()),
            other => Err(self.unsupported(name, other)),
        }
    }

    /// The tensor as bfloat16 bits: as stored, or rounded to nearest even.
    pub fn load_bf16(&self, name: &str) -> Result<Vec<u16>> {
        let info = self.entry(name)?;
        let bytes = &self.map[info.range.clone()];
        let pairs = || bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        match info.dtype {
            FileDtype::BF16 => Ok(pairs().collect()),
            FileDtype::F16 => Ok(pairs().map(|half| f32_to_bf16(f16_to_f32(half))).collect()),
            FileDtype::F32 => Ok(quads(bytes).map(f32_to_bf16).collect()),
            other => Err(self.unsupported(name, other)),
        }
    }

    fn entry(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| Error::tensor(&self.path, name, "is not in the file"))
    }

    fn unsupported(&self, name: &str, dtype: FileDtype) -> Error {
        let reason = format!("dtype {} is not supported for weights; expected F32, F16 or BF16", dtype.name());
        Error::tensor(&self.path, name, reason)
    }
}

fn quads(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]))
}

struct Parsed {
    names: Vec<String>,
    tensors: HashMap<String, TensorInfo>,
    metadata: HashMap<String, String>,
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed> {
    pickle::refuse(path, bytes)?;
    let bad = |reason: String| Error::file(path, reason);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(bad(format!("is {} bytes long, too short for a safetensors file", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES as u64 {
        return Err(bad(format!(
            "is not a safetensors file: the header claims {length} bytes, the limit is {MAX_HEADER_BYTES}"
        )));
    }
    let length = length as usize;
    if length > rest.len() {
        return Err(bad(format!("is truncated: the header claims {length} bytes, {} are there", rest.len())));
    }
    let (header, data) = rest.split_at(length);
    if header.first() != Some(&b'{') {
        return Err(bad("is not a safetensors file: the header does not begin with {".into()));
    }
    if has_long_string(header) {
        return Err(bad(format!("the header holds a string of more than {MAX_STRING_BYTES} bytes")));
    }
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| bad(format!("the header is not valid: {}", shortened_message(&error.to_string()))))?;
    let mut tensors = HashMap::with_capacity(header.entries.len());
    let mut spans = Vec::with_capacity(header.entries.len());
    for (name, entry) in header.entries {
        let info = check_entry(path, &name, &entry, 8 + length, data.len())?;
        spans.push((info.range.clone(), name.clone()));
        tensors.insert(name, info);
    }
    spans.sort_by_key(|(range, _)| (range.start, range.end));
    check_cover(path, &spans, 8 + length, bytes.len())?;
    Ok(Parsed { names: spans.into_iter().map(|(_, name)| name).collect(), tensors, metadata: header.metadata })
}

/// Whether any string of a JSON text is longer than [`MAX_STRING_BYTES`], escapes counted as they stand.
fn has_long_string(json: &[u8]) -> bool {
    let (mut inside, mut begin, mut at) = (false, 0, 0);
    while at < json.len() {
        match json[at] {
            b'\\' if inside => at += 1,
            b'"' => {
                if inside && at - begin > MAX_STRING_BYTES {
                    return true;
                }
                inside = !inside;
                begin = at;
            }
            _ => {}
        }
        at += 1;
    }
    inside && at - begin > MAX_STRING_BYTES
}

fn check_entry(path: &Path, name: &str, entry: &Entry, base: usize, n_data: usize) -> Result<TensorInfo> {
    let bad = |reason: String| Error::tensor(path, name, reason);
    if name.is_empty() {
        return Err(bad("the name is empty".into()));
    }
    let Some((_, dtype, size)) = DTYPES.iter().find(|row| row.0 == entry.dtype.0) else {
        return Err(bad(format!("dtype \"{}\" is unknown", shortened(&entry.dtype.0))));
    };
    if entry.shape.0.contains(&0) {
        return Err(bad(format!("shape {:?} has no elements", entry.shape.0)));
    }
    let n_bytes = entry.shape.0.iter().try_fold(*size as u64, |product, dim| product.checked_mul(*dim));
    let Some(n_bytes) = n_bytes else {
        return Err(bad(format!("shape {:?} overflows", entry.shape.0)));
    };
    let (begin, end) = entry.data_offsets;
    if begin > end || end > n_data as u64 {
        return Err(bad(format!(
            "data_offsets [{begin}, {end}] lie outside the {n_data} bytes of data (is the file truncated?)"
        )));
    }
    if end - begin != n_bytes {
        let found = end - begin;
        return Err(bad(format!(
            "shape {:?} of {} needs {n_bytes} bytes, data_offsets hold {found}",
            entry.shape.0, entry.dtype.0
        )));
    }
    let shape = entry.shape.0.iter().map(|dim| *dim as usize).collect();
    Ok(TensorInfo { dtype: *dtype, shape, range: base + begin as usize..base + end as usize })
}

/// The sorted spans must cover the data exactly: no hole, no overlap, nothing after the last.
fn check_cover(path: &Path, spans: &[(Range<usize>, String)], base: usize, end: usize) -> Result<()> {
    let mut at = base;
    for (range, name) in spans {
        if range.start != at {
            let what = if range.start < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(Error::tensor(path, name, format!("{what}: it begins at byte {}, expected {at}", range.start)));
        }
        at = range.end;
    }
    if at != end {
        return Err(Error::file(path, format!("{} bytes follow the last tensor", end - at)));
    }
    Ok(())
}

/// The JSON header, read without losing duplicate keys.
struct Header {
    entries: HashMap<String, Entry>,
    metadata: HashMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Name,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape that stops growing at [`MAX_RANK`], whatever the header holds.
struct Shape(Vec<u64>);

/// A string of at most [`MAX_NAME_BYTES`], checked before it is copied out of the header.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
                out.write_str("a name")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Name, E> {
                if text.len() > MAX_NAME_BYTES {
                    let (begin, n) = (shortened(text), text.len());
                    return Err(E::custom(format!("\"{begin}\" is {n} bytes long, the limit is {MAX_NAME_BYTES}")));
                }
                Ok(Name(text.to_string()))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        out.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut header = Header { entries: HashMap::new(), metadata: HashMap::new() };
        let mut has_metadata = false;
        while let Some(Name(name)) = map.next_key::<Name>()? {
            if header.entries.contains_key(&name) || (has_metadata && name == "__metadata__") {
                return Err(A::Error::custom(format!("key \"{}\" stands twice", shortened(&name))));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value::<Metadata>()?.0;
                has_metadata = true;
                continue;
            }
            if header.entries.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let entry = map.next_value::<Entry>()?;
            header.entries.insert(name, entry);
        }
        Ok(header)
    }
}

struct Metadata(HashMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MetadataVisitor;
        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
                out.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Metadata, A::Error> {
                let mut found = HashMap::new();
                let mut n_bytes = 0;
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    // Each entry costs memory beside its text, so that many empty ones are refused too.
                    n_bytes += key.len() + value.len() + 64;
                    if n_bytes > MAX_METADATA_BYTES {
                        return Err(A::Error::custom(format!(
                            "__metadata__ is larger than {MAX_METADATA_BYTES} bytes"
                        )));
                    }
                    if found.contains_key(&key) {
                        return Err(A::Error::custom(format!("__metadata__ has \"{}\" twice", shortened(&key))));
                    }
                    found.insert(key, value);
                }
                Ok(Metadata(found))
            }
        }
        deserializer.deserialize_map(MetadataVisitor)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
                out.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Shape, A::Error> {
                let mut sizes = Vec::with_capacity(MAX_RANK);
                while let Some(size) = seq.next_element::<u64>()? {
                    if sizes.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

#[cfg(test)]
mod tests;
