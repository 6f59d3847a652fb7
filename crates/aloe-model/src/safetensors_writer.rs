//! Writes one safetensors file tensor by tensor, or piece by piece from several threads ([`TensorSlot`]): the header comes first, from
//! names and shapes known beforehand, so that no more than one tensor, or one piece of it, is in memory.
//!
//! Refuses unknown and repeated names, wrong sizes, values that are not finite after rounding, and a finish with tensors missing.
//! The bytes depend on the names' order, shapes, type and values alone.

use crate::float::{f32_to_bf16, first_non_finite};
use crate::safetensors::FileDtype;
use crate::{Error, Result};
use aloe_tensor::Dtype;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Writing goes in pieces of this many elements.
const PIECE: usize = 1 << 18;

/// A file being filled. Tensors may come in any order.
pub struct SafeTensorsWriter {
    path: PathBuf,
    file: File,
    dtype: FileDtype,
    slots: HashMap<String, Slot>,
}

struct Slot {
    offset: u64,
    n_elements: usize,
    claimed: bool,
    written_bytes: Arc<AtomicU64>,
}

/// The place of one tensor in its file, to be filled in pieces, in any order and from any thread.
pub struct TensorSlot {
    path: PathBuf,
    name: String,
    file: File,
    dtype: FileDtype,
    offset: u64,
    size_bytes: u64,
    written_bytes: Arc<AtomicU64>,
}

impl TensorSlot {
    /// Writes little-endian bytes of the file's type from `element` on; every element must be written exactly once before the file is
    /// finished. The caller vouches that they are finite.
    pub fn write_at(&self, element: usize, bytes: &[u8]) -> Result<()> {
        let start = (element * self.dtype.size_bytes()) as u64;
        if start + bytes.len() as u64 > self.size_bytes {
            let reason = format!("{} bytes at {start} do not fit into {}", bytes.len(), self.size_bytes);
            return Err(Error::tensor(&self.path, &self.name, reason));
        }
        self.file.write_all_at(bytes, self.offset + start).map_err(Error::io("write", &self.path))?;
        self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until what was written to the file so far, of all its tensors, stands on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }

    /// Bytes of the tensor.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The type of the elements.
    pub fn dtype(&self) -> FileDtype {
        self.dtype
    }
}

impl SafeTensorsWriter {
    /// Creates the file and writes its header; `tensors` are names and shapes in the order of their bytes.
    pub fn create(path: &Path, tensors: &[(String, Vec<usize>)], dtype: Dtype) -> Result<Self> {
        Self::create_stored(path, tensors, stored(dtype))
    }

    /// [`Self::create`] for any type of weights: F32, F16 or BF16. F16 is written through [`Self::slot`] alone.
    pub fn create_stored(path: &Path, tensors: &[(String, Vec<usize>)], dtype: FileDtype) -> Result<Self> {
        Self::create_described(path, tensors, dtype, &[])
    }

    /// The same with further entries of the header's metadata.
    pub(crate) fn create_described(
        path: &Path,
        tensors: &[(String, Vec<usize>)],
        dtype: FileDtype,
        metadata: &[(&str, &str)],
    ) -> Result<Self> {
        let (header, slots, total) = layout(path, tensors, dtype, metadata)?;
        let mut file = File::create(path).map_err(Error::io("create", path))?;
        file.write_all(&header).map_err(Error::io("write", path))?;
        // Reserving the length first turns most full disks into an error before hours of work.
        file.set_len(total).map_err(Error::io("extend", path))?;
        Ok(Self { path: path.to_path_buf(), file, dtype, slots })
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the bytes of a tensor stand.
    pub(crate) fn bytes_of(&self, name: &str) -> Option<Range<u64>> {
        let slot = self.slots.get(name)?;
        Some(slot.offset..slot.offset + (slot.n_elements * self.dtype.size_bytes()) as u64)
    }

    /// The place of a tensor that is to be written in pieces.
    pub fn slot(&mut self, name: &str) -> Result<TensorSlot> {
        let Some(n_elements) = self.slots.get(name).map(|slot| slot.n_elements) else {
            return Err(Error::tensor(&self.path, name, "does not belong into this file"));
        };
        let offset = self.claim(name, n_elements)?;
        Ok(TensorSlot {
            path: self.path.clone(),
            name: name.to_owned(),
            file: self.file.try_clone().map_err(Error::io("open", &self.path))?,
            dtype: self.dtype,
            offset,
            size_bytes: (n_elements * self.dtype.size_bytes()) as u64,
            written_bytes: self.slots[name].written_bytes.clone(),
        })
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
                FileDtype::F32 => values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),
                FileDtype::BF16 => {
                    for (at, value) in values.iter().enumerate() {
                        let bits = f32_to_bf16(*value);
                        if bits & 0x7f80 == 0x7f80 {
                            return Err(overflow(&self.path, name, piece * PIECE + at, *value));
                        }
                        bytes.extend_from_slice(&bits.to_le_bytes());
                    }
                }
                other => {
                    let reason = format!("whole tensors are not written as {}", other.name());
                    return Err(Error::tensor(&self.path, name, reason));
                }
            }
            self.write(name, &bytes)?;
        }
        Ok(())
    }

    /// Writes one tensor given as bfloat16 bits; exact in both types of file.
    pub fn add_bf16(&mut self, name: &str, bits: &[u16]) -> Result<()> {
        if self.dtype != FileDtype::BF16 {
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
            self.write(name, &bytes)?;
        }
        Ok(())
    }

    /// Checks that every tensor was written, and syncs the file.
    pub fn finish(self) -> Result<()> {
        let mut missing: Vec<&str> =
            self.slots.iter().filter(|(_, slot)| !slot.claimed).map(|(name, _)| name.as_str()).collect();
        missing.sort_unstable();
        if let Some(first) = missing.first() {
            let reason = format!("was never written, and {} others", missing.len() - 1);
            return Err(Error::tensor(&self.path, first, reason));
        }
        for (name, slot) in &self.slots {
            let (expected, found) =
                ((slot.n_elements * self.dtype.size_bytes()) as u64, slot.written_bytes.load(Ordering::Relaxed));
            if found != expected {
                return Err(Error::tensor(&self.path, name, format!("has {found} of {expected} bytes written")));
            }
        }
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        Ok(())
    }

    fn claim(&mut self, name: &str, n_elements: usize) -> Result<u64> {
        let Some(slot) = self.slots.get_mut(name) else {
            return Err(Error::tensor(&self.path, name, "does not belong into this file"));
        };
        if slot.n_elements != n_elements {
            let reason = format!("has {n_elements} elements, expected {}", slot.n_elements);
            return Err(Error::tensor(&self.path, name, reason));
        }
        if std::mem::replace(&mut slot.claimed, true) {
            return Err(Error::tensor(&self.path, name, "is written twice"));
        }
        Ok(slot.offset)
    }

    fn seek(&mut self, offset: u64) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).map_err(Error::io("seek in", &self.path))?;
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))?;
        if let Some(slot) = self.slots.get(name) {
            slot.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The file type of a tensor type.
pub(crate) fn stored(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::F32 => FileDtype::F32,
        Dtype::Bf16 => FileDtype::BF16,
    }
}

fn overflow(path: &Path, name: &str, index: usize, value: f32) -> Error {
    Error::tensor(path, name, format!("element {index} is {value:e}, beyond the range of bfloat16"))
}

/// Header bytes, padded with spaces so that the data begin at a multiple of 8, where each tensor goes, and the file's length.
fn layout(
    path: &Path,
    tensors: &[(String, Vec<usize>)],
    dtype: FileDtype,
    metadata: &[(&str, &str)],
) -> Result<(Vec<u8>, HashMap<String, Slot>, u64)> {
    if !matches!(dtype, FileDtype::F32 | FileDtype::F16 | FileDtype::BF16) {
        return Err(Error::file(path, format!("weights are not written as {}", dtype.name())));
    }
    let dtype_name = dtype.name();
    let mut header = serde_json::Map::new();
    let mut described = serde_json::json!({"format": "pt"});
    metadata.iter().for_each(|(key, value)| described[*key] = serde_json::json!(value));
    header.insert("__metadata__".into(), described);
    let mut slots = HashMap::with_capacity(tensors.len());
    let mut at = 0u64;
    for (name, shape) in tensors {
        let n_elements: usize = shape.iter().product();
        let end = at + (n_elements * dtype.size_bytes()) as u64;
        let entry = serde_json::json!({"dtype": dtype_name, "shape": shape, "data_offsets": [at, end]});
        if n_elements == 0 || header.insert(name.clone(), entry).is_some() {
            return Err(Error::tensor(path, name, "stands twice, or has no elements"));
        }
        slots.insert(name.clone(), Slot { offset: at, n_elements, claimed: false, written_bytes: Arc::default() });
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
