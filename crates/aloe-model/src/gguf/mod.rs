//! GGUF files, versions 2 and 3: header, metadata as JSON, tensor table; tensors are dequantised on demand.
//!
//! Format: ggml's docs/gguf.md. Every count and length is compared with the file before anything is allocated from it. Refuses
//! big-endian files, nested arrays, duplicate keys and names, tensors outside the file or not where the alignment puts them, and
//! element types that cannot be dequantised here. `model` turns an opened file into a decoder's config and tensors.

mod dequant;
mod model;

pub use dequant::GgmlType;
pub use model::GgufModel;

use crate::error::shortened;
use crate::{Error, Result};
use aloe_tensor::Mmap;
use serde_json::{Map, Number, Value};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAX_STRING_BYTES: u64 = 16 << 20;
const MAX_METADATA_BYTES: usize = 256 << 20;
/// Elements of all arrays together. The largest published vocabularies have 262,144 tokens with scores, types and merges.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 21;
/// What arrays may take in memory beyond the size of their file: an element of one byte becomes a JSON value of 80 or so.
const MAX_ARRAY_OVERHEAD_BYTES: usize = 48 << 20;
const MAX_KEYS: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 16;
const MAX_NAME_BYTES: u64 = 512;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Its element type.
    pub ggml_type: GgmlType,
    /// Its shape, rows first (the file stores it the other way round).
    pub shape: Vec<usize>,
    range: Range<usize>,
}

/// An opened, fully checked GGUF file.
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    metadata: Map<String, Value>,
    names: Vec<String>,
    tensors: HashMap<String, GgufTensor>,
}

impl Gguf {
    /// Maps the file and reads its header.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mmap::open(path)?;
        crate::pickle::refuse(path, &map)?;
        let header = parse(&map).map_err(|reason| Error::file(path, reason))?;
        let Header { metadata, names, tensors } = header;
        Ok(Self { path: path.to_path_buf(), map, metadata, names, tensors })
    }

    /// All metadata; integers, floats (f32 as their shortest decimal; NaN and infinity as null), strings and flat arrays.
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// Tensor names in file order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The entry of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A tensor's bytes as stored.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(&self.map[self.entry(name)?.range.clone()])
    }

    /// Lets the pages of a tensor go that were read.
    pub(crate) fn release(&self, name: &str) -> Result<()> {
        self.map.release(self.entry(name)?.range.clone());
        Ok(())
    }

    /// A tensor dequantised to f32, row-major, rows in the file's order.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        Ok(entry.ggml_type.dequantize(&self.map[entry.range.clone()]))
    }

    fn entry(&self, name: &str) -> Result<&GgufTensor> {
        self.tensors.get(name).ok_or_else(|| Error::tensor(&self.path, name, "is not in the file"))
    }
}

#[derive(Debug)]
struct Header {
    metadata: Map<String, Value>,
    names: Vec<String>,
    tensors: HashMap<String, GgufTensor>,
}

type Parsed<T> = std::result::Result<T, String>;

fn parse(bytes: &[u8]) -> Parsed<Header> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4).map_err(|_| "is not a GGUF file: it is shorter than its magic")? != b"GGUF" {
        return Err("is not a GGUF file: it does not begin with GGUF".into());
    }
    match cursor.u32()? {
        2 | 3 => {}
        0x0200_0000 | 0x0300_0000 => return Err("is a big-endian GGUF file, which is not supported".into()),
        other => return Err(format!("is GGUF version {other}; versions 2 and 3 are supported")),
    }
    let n_tensors = cursor.count("tensor count", MAX_TENSORS, 24)?;
    let n_keys = cursor.count("metadata count", MAX_KEYS, 13)?;
    let metadata = read_metadata(&mut cursor, n_keys)?;
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => match value.as_u64() {
            Some(n) if n.is_power_of_two() && n <= MAX_ALIGNMENT => n as usize,
            _ => return Err(format!("general.alignment is {value}, expected a power of two up to {MAX_ALIGNMENT}")),
        },
    };
    let (names, mut tensors, offsets) = read_table(&mut cursor, n_tensors)?;
    let base = padded(cursor.at, alignment).ok_or("the header's length overflows")?;
    place(&names, &mut tensors, &offsets, base, alignment, bytes.len())?;
    Ok(Header { metadata, names, tensors })
}

fn read_metadata(cursor: &mut Cursor, n_keys: u64) -> Parsed<Map<String, Value>> {
    let mut metadata = Map::new();
    let element_bytes = size_of::<Value>() + 24;
    let mut budget = MAX_ARRAY_ELEMENTS.min(((cursor.bytes.len() + MAX_ARRAY_OVERHEAD_BYTES) / element_bytes) as u64);
    let begin = cursor.at;
    for _ in 0..n_keys {
        let key = cursor.string(u64::from(u16::MAX))?;
        let value = read_value(cursor, &key, &mut budget)?;
        if cursor.at - begin > MAX_METADATA_BYTES {
            return Err(format!("metadata is longer than {MAX_METADATA_BYTES} bytes"));
        }
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("metadata key \"{}\" stands twice", shortened(&key)));
        }
    }
    Ok(metadata)
}

fn read_value(cursor: &mut Cursor, key: &str, budget: &mut u64) -> Parsed<Value> {
    let kind = cursor.u32()?;
    if kind != 9 {
        return read_scalar(cursor, kind).map_err(|reason| format!("metadata \"{}\": {reason}", shortened(key)));
    }
    let inner = cursor.u32()?;
    let least_bytes = match inner {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => return Err(format!("metadata \"{}\" is an array of arrays, which is not supported", shortened(key))),
        other => return Err(format!("metadata \"{}\" has elements of unknown type {other}", shortened(key))),
    };
    let n = cursor.count(&format!("length of array \"{}\"", shortened(key)), *budget, least_bytes)?;
    *budget -= n;
    let mut values = Vec::with_capacity(n as usize);
    for _ in 0..n {
        values.push(read_scalar(cursor, inner).map_err(|reason| format!("metadata \"{}\": {reason}", shortened(key)))?);
    }
    Ok(Value::Array(values))
}

fn read_scalar(cursor: &mut Cursor, kind: u32) -> Parsed<Value> {
    Ok(match kind {
        0 => Value::from(cursor.array::<1>()?[0]),
        1 => Value::from(cursor.array::<1>()?[0] as i8),
        2 => Value::from(u16::from_le_bytes(cursor.array()?)),
        3 => Value::from(i16::from_le_bytes(cursor.array()?)),
        4 => Value::from(cursor.u32()?),
        5 => Value::from(i32::from_le_bytes(cursor.array()?)),
        6 => {
            let value = f32::from_le_bytes(cursor.array()?);
            Number::from_f64(crate::config::widened(value)).map_or(Value::Null, Value::Number)
        }
        7 => match cursor.array::<1>()?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(format!("a boolean is {other}")),
        },
        8 => Value::String(cursor.string(MAX_STRING_BYTES)?),
        10 => Value::from(cursor.u64()?),
        11 => Value::from(i64::from_le_bytes(cursor.array()?)),
        12 => Number::from_f64(f64::from_le_bytes(cursor.array()?)).map_or(Value::Null, Value::Number),
        other => return Err(format!("unknown value type {other}")),
    })
}

type Table = (Vec<String>, HashMap<String, GgufTensor>, Vec<u64>);

fn read_table(cursor: &mut Cursor, n_tensors: u64) -> Parsed<Table> {
    let (mut names, mut tensors, mut offsets) = (Vec::new(), HashMap::new(), Vec::new());
    for _ in 0..n_tensors {
        let name = cursor.string(MAX_NAME_BYTES)?;
        let bad = |reason: String| format!("tensor {}: {reason}", shortened(&name));
        let n_dims = cursor.u32()?;
        if !(1..=4).contains(&n_dims) {
            return Err(bad(format!("has {n_dims} dimensions, expected 1 to 4")));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            shape.push(cursor.u64()?);
        }
        let ggml_type = GgmlType::from_number(cursor.u32()?).map_err(bad)?;
        offsets.push(cursor.u64()?);
        let n_bytes = size_bytes(&shape, ggml_type).map_err(bad)?;
        shape.reverse();
        let shape = shape.iter().map(|dim| *dim as usize).collect();
        if tensors.insert(name.clone(), GgufTensor { ggml_type, shape, range: 0..n_bytes }).is_some() {
            return Err(bad("stands twice".into()));
        }
        names.push(name);
    }
    Ok((names, tensors, offsets))
}

/// Bytes of a tensor; `shape` in file order, columns first.
fn size_bytes(shape: &[u64], ggml_type: GgmlType) -> Parsed<usize> {
    let columns = shape[0];
    if shape.contains(&0) {
        return Err(format!("shape {shape:?} has no elements"));
    }
    if !columns.is_multiple_of(ggml_type.block_len() as u64) {
        let block = ggml_type.block_len();
        return Err(format!("rows of {columns} elements do not divide into {} blocks of {block}", ggml_type.name()));
    }
    let n_elements = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let n_bytes =
        n_elements.and_then(|n| (n / ggml_type.block_len() as u64).checked_mul(ggml_type.block_bytes() as u64));
    n_bytes.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| format!("shape {shape:?} overflows"))
}

/// Puts every tensor where its offset says; tensors stand one after another, each padded to the alignment.
fn place(
    names: &[String],
    tensors: &mut HashMap<String, GgufTensor>,
    offsets: &[u64],
    base: usize,
    alignment: usize,
    file_len: usize,
) -> Parsed<()> {
    let mut expected = 0usize;
    let mut end = base;
    for (name, offset) in names.iter().zip(offsets) {
        let Some(tensor) = tensors.get_mut(name) else { continue };
        let bad = |reason: String| format!("tensor {}: {reason}", shortened(name));
        if *offset != expected as u64 {
            return Err(bad(format!("begins at offset {offset}, expected {expected}")));
        }
        let n_bytes = tensor.range.end;
        let begin = base.checked_add(expected).ok_or_else(|| bad("offset overflows".into()))?;
        end = begin.checked_add(n_bytes).filter(|end| *end <= file_len).ok_or_else(|| {
            bad(format!("needs {n_bytes} bytes at byte {begin}, the file ends at {file_len} (is it truncated?)"))
        })?;
        tensor.range = begin..end;
        expected = padded(expected + n_bytes, alignment).ok_or_else(|| bad("offset overflows".into()))?;
    }
    let last = padded(end, alignment).unwrap_or(end);
    if file_len > last {
        return Err(format!("{} bytes follow the last tensor", file_len - last));
    }
    Ok(())
}

fn padded(at: usize, alignment: usize) -> Option<usize> {
    at.checked_next_multiple_of(alignment)
}

/// A reader that never goes past the end and never allocates more than the file can hold.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(format!(
                "is truncated: {n} bytes wanted at byte {}, the file ends at {}",
                self.at,
                self.bytes.len()
            ));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things of at least `least_bytes` each: at most `limit`, and no more than the rest of the file can hold.
    fn count(&mut self, what: &str, limit: u64, least_bytes: u64) -> Parsed<u64> {
        let n = self.u64()?;
        if n > limit {
            return Err(format!("{what} is {n}, the limit is {limit}"));
        }
        let left = (self.bytes.len() - self.at) as u64;
        if n.saturating_mul(least_bytes) > left {
            return Err(format!("is truncated: {what} is {n}, but only {left} bytes follow"));
        }
        Ok(n)
    }

    fn string(&mut self, limit: u64) -> Parsed<String> {
        let at = self.at;
        let n = self.count(&format!("string length at byte {at}"), limit, 1)?;
        let bytes = self.take(n as usize)?;
        let text =
            std::str::from_utf8(bytes).map_err(|error| format!("the string at byte {at} is not UTF-8: {error}"))?;
        Ok(text.to_string())
    }
}

#[cfg(test)]
mod tests;
