//! One input tensor as a method sees it: any stretch of its elements, in the merge dtype, read when it is needed.
//!
//! Files are read by position, not mapped: what a merge holds is what it allocated. A source is a stored tensor, one with a LoRA
//! adapter added, or one whose rows follow another vocabulary. First step of the arithmetic; never holds a tensor.

use crate::config::MergeDtype;
use crate::hashing::{self, HashedFile, Place as HashedPlace};
use crate::tile::{Rounding, round_read, round_to, with_rounding};
use crate::vocabulary::{Row, RowMap};
use crate::{Error, Result};
use aloe_model::float::{bf16_to_f32, f16_to_f32};
use aloe_model::{FileDtype, LoraDelta};
use aloe_record::stamp::Stamp;
use aloe_tensor::Isa;
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Bytes read at once.
const PIECE: usize = 1 << 15;

thread_local! {
    /// What was read last, of [`PIECE`] bytes: kept, so that it is not zeroed for every read.
    static PIECES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An input tensor; cheap to clone.
#[derive(Clone)]
pub enum Source {
    /// As its file holds it.
    Stored(Stored),
    /// A stored tensor `W` plus an adapter: `W + scale * B A`, rounded to the type of `W`, as PEFT's `merge_and_unload` leaves it.
    Adapted(Stored, Arc<LoraDelta>),
    /// Rows in the order of another vocabulary.
    Rows(Arc<Rows>),
}

/// A tensor in a file or in memory: little-endian, row-major, F32, F16 or BF16.
#[derive(Clone)]
pub struct Stored {
    dtype: FileDtype,
    place: Place,
}

#[derive(Clone)]
enum Place {
    File { file: Arc<Opened>, offset: u64, n_bytes: u64 },
    Memory(Arc<[u8]>),
}

/// An opened weight file.
pub(crate) struct Opened {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    data_start: u64,
    header: serde_json::Value,
    /// Who hashes what is read, if anybody does.
    hashed: OnceLock<Arc<HashedFile>>,
}

impl Opened {
    /// Opens a safetensors file whose header was already checked by `aloe_model`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut length = [0u8; 8];
        file.read_exact_at(&mut length, 0).map_err(Error::io("read", path))?;
        let length = u64::from_le_bytes(length);
        let mut header = vec![0u8; length as usize];
        file.read_exact_at(&mut header, 8).map_err(Error::io("read", path))?;
        let header = serde_json::from_slice(&header)
            .map_err(|error| aloe_record::Error::Json { path: path.to_path_buf(), reason: error.to_string() })?;
        Ok(Self { path: path.to_path_buf(), file, data_start: 8 + length, header, hashed: OnceLock::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is now.
    pub(crate) fn stamp(&self) -> Result<Stamp> {
        Stamp::of(&self.path).map_err(Error::io("read", &self.path))
    }

    /// From now on what is read of it goes to its digest, too.
    pub(crate) fn hash_with(&self, hashed: Arc<HashedFile>) {
        // The first stays: a plan is merged once.
        let _ = self.hashed.set(hashed);
    }
}

impl Stored {
    /// The tensor `name` of an opened file.
    pub(crate) fn in_file(file: &Arc<Opened>, name: &str, dtype: FileDtype) -> Result<Self> {
        let at = |end: usize| file.header[name]["data_offsets"][end].as_u64();
        let (begin, end) = at(0)
            .zip(at(1))
            .ok_or_else(|| Error::tensor(name, &file.path.display().to_string(), "is not in the file"))?;
        let (offset, n_bytes) = (file.data_start + begin, end.saturating_sub(begin));
        Ok(Self { dtype, place: Place::File { file: file.clone(), offset, n_bytes } })
    }

    /// A tensor held in memory.
    pub fn in_memory(dtype: FileDtype, bytes: Vec<u8>) -> Self {
        Self { dtype, place: Place::Memory(bytes.into()) }
    }

    /// Reads the elements from `start` on as their f32 values, exactly.
    pub(crate) fn read_exact(&self, start: usize, out: &mut [f32]) -> Result<()> {
        let size = self.dtype.size_bytes();
        match &self.place {
            Place::Memory(bytes) => decode(self.dtype, &bytes[start * size..(start + out.len()) * size], out),
            Place::File { file, offset, .. } => {
                let at = offset + (start * size) as u64;
                let n_bytes = out.len() * size;
                if let Some(hashed) = file.hashed.get().filter(|hashed| hashed.wants(&(at..at + n_bytes as u64))) {
                    let mut bytes = hashing::buffer(n_bytes);
                    file.file.read_exact_at(&mut bytes, at).map_err(Error::io("read", &file.path))?;
                    decode(self.dtype, &bytes, out);
                    hashing::hold(hashed, at, bytes);
                    return Ok(());
                }
                PIECES.with_borrow_mut(|buffer| {
                    buffer.resize(PIECE, 0);
                    let mut at = at;
                    for piece in out.chunks_mut(PIECE / size) {
                        let bytes = &mut buffer[..piece.len() * size];
                        file.file.read_exact_at(bytes, at).map_err(Error::io("read", &file.path))?;
                        decode(self.dtype, bytes, piece);
                        at += bytes.len() as u64;
                    }
                    Ok::<(), Error>(())
                })?;
            }
        }
        Ok(())
    }

    /// Where it stands, if its file is hashed.
    fn place(&self) -> Option<HashedPlace> {
        let Place::File { file, offset, n_bytes } = &self.place else { return None };
        file.hashed.get().map(|hashed| (hashed.clone(), *offset..offset + n_bytes))
    }
}

fn decode(dtype: FileDtype, bytes: &[u8], out: &mut [f32]) {
    Isa::wide(
        #[inline(always)]
        || match dtype {
            FileDtype::F32 => {
                for (value, four) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*four);
                }
            }
            FileDtype::BF16 => {
                for (value, two) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = bf16_to_f32(u16::from_le_bytes(*two));
                }
            }
            FileDtype::F16 => {
                for (value, two) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f16_to_f32(u16::from_le_bytes(*two));
                }
            }
            other => unreachable!("the reader lets no {other:?} weights pass"),
        },
    );
}

/// A tensor `[rows, n_cols]` whose rows follow a vocabulary that is not its file's.
pub struct Rows {
    /// The tensors of all inputs, before their rows moved: rows may come from another input.
    pub(crate) inputs: Vec<Source>,
    /// Which of them this is.
    pub(crate) own: usize,
    /// Row length.
    pub(crate) n_cols: usize,
    /// Where each row comes from.
    pub(crate) map: Arc<RowMap>,
    /// The row that pads the vocabulary.
    pub(crate) padding: Vec<f32>,
}

impl Rows {
    fn row(&self, row: usize, dtype: MergeDtype, out: &mut [f32]) -> Result<()> {
        match self.map.row(self.own, row) {
            Row::Own(at) => self.inputs[self.own].read(at * self.n_cols, dtype, out),
            Row::Of(input, at) => self.inputs[input].read(at * self.n_cols, dtype, out),
            Row::Zero => {
                out.fill(0.0);
                Ok(())
            }
            Row::Padding => {
                out.copy_from_slice(&self.padding);
                Ok(())
            }
            Row::Average(donors) => with_rounding!(dtype, average(self, donors, dtype, out)),
        }
    }

    /// The mean of the rows that hold a token, in the merge dtype: what pads the vocabulary.
    pub(crate) fn mean(&self, dtype: MergeDtype) -> Result<Vec<f32>> {
        let mut sums = vec![0.0f64; self.n_cols];
        let mut line = vec![0.0f32; self.n_cols];
        let n_tokens = self.map.n_tokens();
        for row in 0..n_tokens {
            self.row(row, dtype, &mut line)?;
            sums.iter_mut().zip(&line).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        Ok(sums.into_iter().map(|sum| round_to(dtype, (sum / n_tokens.max(1) as f64) as f32)).collect())
    }

    fn read(&self, start: usize, dtype: MergeDtype, out: &mut [f32]) -> Result<()> {
        let n = self.n_cols;
        let (first, last) = (start / n, (start + out.len()).div_ceil(n));
        let mut line = vec![0.0f32; n];
        for row in first..last {
            self.row(row, dtype, &mut line)?;
            let (from, to) = ((row * n).max(start), ((row + 1) * n).min(start + out.len()));
            out[from - start..to - start].copy_from_slice(&line[from - row * n..to - row * n]);
        }
        Ok(())
    }
}

/// The mean of the donors' rows, added one after the other and rounded after each step, as mergekit does.
fn average<R: Rounding>(rows: &Rows, donors: &[(usize, usize)], dtype: MergeDtype, out: &mut [f32]) -> Result<()> {
    let mut line = vec![0.0f32; rows.n_cols];
    out.fill(0.0);
    for &(input, at) in donors {
        rows.inputs[input].read(at * rows.n_cols, dtype, &mut line)?;
        out.iter_mut().zip(&line).for_each(|(sum, value)| *sum = R::round(*sum + value));
    }
    out.iter_mut().for_each(|sum| *sum = R::round(*sum / donors.len() as f32));
    Ok(())
}

impl Source {
    /// The same with the row that pads the vocabulary: the mean of the others.
    pub(crate) fn padded(self, dtype: MergeDtype) -> Result<Self> {
        let Self::Rows(rows) = &self else { return Ok(self) };
        if !rows.map.needs_padding() {
            return Ok(self);
        }
        let (inputs, map) = (rows.inputs.clone(), rows.map.clone());
        let padding = rows.mean(dtype)?;
        Ok(Self::Rows(Arc::new(Rows { inputs, own: rows.own, n_cols: rows.n_cols, map, padding })))
    }

    /// Adds where its tensors stand in files that are hashed.
    pub(crate) fn places(&self, found: &mut Vec<HashedPlace>) {
        match self {
            Self::Stored(stored) | Self::Adapted(stored, _) => found.extend(stored.place()),
            // All inputs are in each of them: the own one.
            Self::Rows(rows) => rows.inputs[rows.own].places(found),
        }
    }

    /// A tensor held in memory, for tests and for merging without files.
    pub fn in_memory(dtype: FileDtype, bytes: Vec<u8>) -> Self {
        Self::Stored(Stored::in_memory(dtype, bytes))
    }

    /// Reads the elements from `start` on into `out`, rounded to `dtype` where the file holds more.
    pub(crate) fn read(&self, start: usize, dtype: MergeDtype, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Stored(stored) => {
                stored.read_exact(start, out)?;
                if !is_exact(stored.dtype, dtype) {
                    with_rounding!(dtype, round_all(out));
                }
            }
            Self::Adapted(stored, delta) => {
                stored.read_exact(start, out)?;
                delta.add(start, out);
                match stored.dtype {
                    FileDtype::BF16 => round_all::<crate::tile::InBf16>(out),
                    FileDtype::F16 => round_all::<crate::tile::InF16>(out),
                    _ => {}
                }
                if !is_exact(stored.dtype, dtype) {
                    with_rounding!(dtype, round_all(out));
                }
            }
            Self::Rows(rows) => rows.read(start, dtype, out)?,
        }
        Ok(())
    }
}

fn round_all<R: Rounding>(values: &mut [f32]) {
    Isa::wide(
        #[inline(always)]
        || values.iter_mut().for_each(|value| *value = round_read::<R>(*value)),
    );
}

/// Whether every value of the file is one of the dtype.
fn is_exact(stored: FileDtype, dtype: MergeDtype) -> bool {
    match dtype {
        MergeDtype::Float32 => true,
        MergeDtype::Bfloat16 => stored == FileDtype::BF16,
        MergeDtype::Float16 => stored == FileDtype::F16,
    }
}
