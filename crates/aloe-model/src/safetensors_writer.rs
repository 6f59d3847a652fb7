//! Writes one safetensors file tensor by tensor: the header comes first, from names and shapes known beforehand, so that no
//! more than one tensor is in memory.
//!
//! Refuses unknown and repeated names, wrong sizes, values that are not finite after rounding, and a finish with tensors missing.
//! The bytes depend on the names' order, shapes, type and values alone.

use crate::float::{f32_to_bf16, first_non_finite};
use crate::{Error, Result};
use aloe_tensor::Dtype;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Writing goes in pieces of this many elements.
const PIECE: usize = 1 << 18;

/// A file being filled. Tensors may come in any order.
pub struct SafeTensorsWriter {
    path: PathBuf,
    file: File,
    dtype: Dtype,
    slots: HashMap<String, Slot>,
}

struct Slot {
    offset: u64,
    n_elements: usize,
    written: bool,
}

impl SafeTensorsWriter {
    /// Creates the file and writes its header; `tensors` are names and shapes in the order of their bytes.
    pub fn create(path: &Path, tensors: &[(String, Vec<usize>)], dtype: Dtype) -> Result<Self> {
        let (header, slots, total) = layout(path, tensors, dtype)?;
        let mut file = File::create(path).map_err(Error::io("create", path))?;
        file.write_all(&header).map_err(Error::io("write", path))?;
        // Reserving the length first turns most full disks into an error before hours of work.
        file.set_len(total).map_err(Error::io("extend", path))?;
        Ok(Self { path: path.to_path_buf(), file, dtype, slots })
    }

    /// Writes one tensor, rounding to the file's type.
    pub fn add(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let offset = self.claim(name, values.len())?;
        self.seek(offset)?;
        let mut bytes = Vec::with_capacity(PIECE.min(values.len()) * self.dtype.size_bytes());
        for (piece, values) in values.chunks(PIECE).enumerate() {
            if let Some((at, value)) = first_non_finite(values) {
                return Err(Error::NonFinite { name: name.into(), index: piece * PIECE + at, value });
            }
            bytes.clear();
            match self.dtype {
                Dtype::F32 => values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),
                Dtype::Bf16 => {
                    for (at, value) in values.iter().enumerate() {
                        let bits = f32_to_bf16(*value);
                        if bits & 0x7f80 == 0x7f80 {
                            return Err(overflow(&self.path, name, piece * PIECE + at, *value));
                        }
                        bytes.extend_from_slice(&bits.to_le_bytes());
                    }
                }
            }
            self.write(&bytes)?;
        }
        Ok(())
    }

    /// Writes one tensor given as bfloat16 bits; exact in both types of file.
    pub fn add_bf16(&mut self, name: &str, bits: &[u16]) -> Result<()> {
        if self.dtype == Dtype::F32 {
            let values: Vec<f32> = bits.iter().map(|bits| crate::float::bf16_to_f32(*bits)).collect();
            return self.add(name, &values);
        }
        if let Some(index) = bits.iter().position(|bits| bits & 0x7f80 == 0x7f80) {
            return Err(Error::NonFinite { name: name.into(), index, value: crate::float::bf16_to_f32(bits[index]) });
        }
        let offset = self.claim(name, bits.len())?;
        self.seek(offset)?;
        for piece in bits.chunks(PIECE) {
            let bytes: Vec<u8> = piece.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            self.write(&bytes)?;
        }
        Ok(())
    }

    /// Checks that every tensor was written, and syncs the file.
    pub fn finish(self) -> Result<()> {
        let mut missing: Vec<&str> =
            self.slots.iter().filter(|(_, slot)| !slot.written).map(|(name, _)| name.as_str()).collect();
        missing.sort_unstable();
        if let Some(first) = missing.first() {
            let reason = format!("was never written, and {} others", missing.len() - 1);
            return Err(Error::tensor(&self.path, first, reason));
        }
        self.file.sync_all().map_err(Error::io("sync", &self.path))
    }

    fn claim(&mut self, name: &str, n_elements: usize) -> Result<u64> {
        let Some(slot) = self.slots.get_mut(name) else {
            return Err(Error::tensor(&self.path, name, "does not belong into this file"));
        };
        if slot.n_elements != n_elements {
            let reason = format!("has {n_elements} elements, expected {}", slot.n_elements);
            return Err(Error::tensor(&self.path, name, reason));
        }
        if std::mem::replace(&mut slot.written, true) {
            return Err(Error::tensor(&self.path, name, "is written twice"));
        }
        Ok(slot.offset)
    }

    fn seek(&mut self, offset: u64) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).map_err(Error::io("seek in", &self.path))?;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }
}

fn overflow(path: &Path, name: &str, index: usize, value: f32) -> Error {
    Error::tensor(path, name, format!("element {index} is {value:e}, beyond the range of bfloat16"))
}

/// Header bytes, padded with spaces so that the data begin at a multiple of 8, where each tensor goes, and the file's length.
fn layout(
    path: &Path,
    tensors: &[(String, Vec<usize>)],
    dtype: Dtype,
) -> Result<(Vec<u8>, HashMap<String, Slot>, u64)> {
    let dtype_name = match dtype {
        Dtype::F32 => "F32",
        Dtype::Bf16 => "BF16",
    };
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut slots = HashMap::with_capacity(tensors.len());
    let mut at = 0u64;
    for (name, shape) in tensors {
        let n_elements: usize = shape.iter().product();
        let end = at + (n_elements * dtype.size_bytes()) as u64;
        let entry = serde_json::json!({"dtype": dtype_name, "shape": shape, "data_offsets": [at, end]});
        if n_elements == 0 || header.insert(name.clone(), entry).is_some() {
            return Err(Error::tensor(path, name, "stands twice, or has no elements"));
        }
        slots.insert(name.clone(), Slot { offset: at, n_elements, written: false });
        at = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let base = 8 + text.len() as u64;
    slots.values_mut().for_each(|slot| slot.offset += base);
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    Ok((out, slots, base + at))
}
