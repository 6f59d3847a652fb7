//! What every stage opens: a checkpoint folder or a `.gguf` file, as a config and tensors under their Hugging Face names.

use crate::gguf::GgufModel;
use crate::safetensors::FileDtype;
use crate::{Checkpoint, Config, Error, Result, RowPermute, TensorSpec, float};
use aloe_record::digest::Hasher;
use aloe_tensor::{BlockFormat, Dtype, Tensor};
use std::path::{Path, PathBuf};

/// A matrix in blocks: the format, and the bytes of each row.
pub type BlockRows<'a> = (BlockFormat, Vec<&'a [u8]>);

/// Fills a row of a matrix, given its number and the place for it.
pub(crate) type RowReader<'a> = Box<dyn Fn(usize, &mut [f32]) + Sync + 'a>;

/// An opened model, its weights still in their file.
pub struct ModelSource {
    /// The folder or file.
    pub path: PathBuf,
    files: Files,
}

enum Files {
    Folder(Checkpoint),
    Gguf(GgufModel),
}

impl ModelSource {
    /// Opens a checkpoint folder or a `.gguf` file and checks every name, shape and type. Loads no weight yet.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::file(path, "does not exist; expected a checkpoint folder or a .gguf file"));
        }
        let files =
            if path.is_dir() { Files::Folder(Checkpoint::open(path)?) } else { Files::Gguf(GgufModel::open(path)?) };
        Ok(Self { path: path.to_path_buf(), files })
    }

    /// The model's config.
    pub fn config(&self) -> &Config {
        match &self.files {
            Files::Folder(checkpoint) => &checkpoint.config,
            Files::Gguf(model) => &model.config,
        }
    }

    /// The metadata of a GGUF file (tokenizer and chat template included); none for a folder.
    pub fn gguf_metadata(&self) -> Option<&serde_json::Map<String, serde_json::Value>> {
        match &self.files {
            Files::Folder(_) => None,
            Files::Gguf(model) => Some(model.gguf.metadata()),
        }
    }

    /// The tensors of the model in table order; a tied head is not among them.
    pub fn specs(&self) -> &[TensorSpec] {
        match &self.files {
            Files::Folder(checkpoint) => checkpoint.specs(),
            Files::Gguf(model) => model.specs(),
        }
    }

    /// The Hugging Face names of [`Self::specs`].
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.specs().iter().map(|spec| spec.hf_name.as_str())
    }

    /// The table's entry of `name`.
    pub fn spec(&self, name: &str) -> Result<&TensorSpec> {
        let found = self.specs().iter().find(|spec| spec.hf_name == name);
        found.ok_or_else(|| Error::tensor(&self.path, name, "is not a tensor of this model"))
    }

    /// The tensor in the wanted type: f32 is exact, bf16 is as stored or rounded to nearest even.
    pub fn load(&self, name: &str, dtype: Dtype) -> Result<Tensor> {
        let shape = self.spec(name)?.shape.clone();
        Ok(match dtype {
            Dtype::F32 => Tensor::from_f32(&shape, self.load_f32(name)?),
            Dtype::Bf16 => Tensor::from_bf16_bits(&shape, self.load_bf16(name)?),
        })
    }

    /// The tensor as f32, row-major, in Hugging Face row order.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        match &self.files {
            Files::Folder(checkpoint) => checkpoint.load_f32(name),
            Files::Gguf(model) => model.load_f32(name),
        }
    }

    /// The tensor as bfloat16 bits.
    pub fn load_bf16(&self, name: &str) -> Result<Vec<u16>> {
        match &self.files {
            Files::Folder(checkpoint) => checkpoint.load_bf16(name),
            Files::Gguf(model) => Ok(model.load_f32(name)?.into_iter().map(float::f32_to_bf16).collect()),
        }
    }

    /// The rows of a matrix as a GGUF file stores them in blocks, in Hugging Face row order; `None` when it is not stored so.
    pub fn block_rows(&self, name: &str) -> Result<Option<BlockRows<'_>>> {
        let spec = self.spec(name)?;
        let Files::Gguf(model) = &self.files else { return Ok(None) };
        let stored = model.gguf.tensor(&spec.gguf_name).map_or("", |tensor| tensor.ggml_type.name());
        let (Some(format), &[rows, _]) =
            (BlockFormat::ALL.into_iter().find(|f| f.name() == stored), spec.shape.as_slice())
        else {
            return Ok(None);
        };
        let bytes = model.gguf.bytes(&spec.gguf_name)?;
        let stored: Vec<&[u8]> = bytes.chunks_exact(bytes.len() / rows).collect();
        let RowPermute::RopeHeads(n_heads) = spec.permute else { return Ok(Some((format, stored))) };
        // llama.cpp's order: file row `2 i + s` of a head is row `s * E/2 + i` here.
        let half = rows / n_heads / 2;
        let from = |row: usize| row / (2 * half) * (2 * half) + 2 * (row % half) + row / half % 2;
        Ok(Some((format, (0..rows).map(|row| stored[from(row)]).collect())))
    }

    /// The bytes of a matrix that its file holds in bf16 and row order; `None` for another type or a GGUF file.
    pub(crate) fn bf16_bytes(&self, name: &str) -> Result<Option<&[u8]>> {
        match &self.files {
            Files::Folder(checkpoint) if checkpoint.file_dtype(name) == Some(FileDtype::BF16) => {
                checkpoint.bytes(name).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The rows of a matrix as f32, each decoded when it is read; a GGUF file's are decoded at once.
    pub(crate) fn rows_f32(&self, name: &str) -> Result<RowReader<'_>> {
        let whole = |values: Vec<f32>| -> RowReader<'static> {
            Box::new(move |row, out| out.copy_from_slice(&values[row * out.len()..(row + 1) * out.len()]))
        };
        let Files::Folder(checkpoint) = &self.files else { return Ok(whole(self.load_f32(name)?)) };
        let bytes = checkpoint.bytes(name)?;
        let halves = |decode: fn(u16) -> f32| -> RowReader<'_> {
            Box::new(move |row, out| {
                let (pairs, _) = bytes[2 * row * out.len()..2 * (row + 1) * out.len()].as_chunks::<2>();
                out.iter_mut().zip(pairs).for_each(|(o, pair)| *o = decode(u16::from_le_bytes(*pair)));
            })
        };
        Ok(match checkpoint.file_dtype(name) {
            Some(FileDtype::BF16) => halves(float::bf16_to_f32),
            Some(FileDtype::F16) => halves(float::f16_to_f32),
            _ => whole(checkpoint.load_f32(name)?),
        })
    }

    /// Says that a tensor's bytes will not be read again soon, so that the pages of its file stop counting as this process's memory.
    pub(crate) fn release(&self, name: &str) -> Result<()> {
        match &self.files {
            Files::Folder(checkpoint) => checkpoint.release(name),
            Files::Gguf(model) => model.release(name),
        }
    }

    /// Reads every weight once and refuses NaN and infinity, naming the tensor and the element.
    pub fn check_finite(&self) -> Result<()> {
        for spec in self.specs() {
            if let Some((index, value)) = float::first_non_finite(&self.load_f32(&spec.hf_name)?) {
                return Err(Error::NonFinite { name: spec.hf_name.clone(), index, value });
            }
            self.release(&spec.hf_name)?;
        }
        Ok(())
    }

    /// SHA-256 over every tensor's name, type, shape and bytes as stored, in table order: the identity of the weights,
    /// independent of sharding, of metadata and of the folder's name.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = Hasher::default();
        for spec in self.specs() {
            let (dtype, bytes) = self.stored(&spec.hf_name)?;
            hasher.field(spec.hf_name.as_bytes());
            hasher.field(dtype.as_bytes());
            hasher.field(format!("{:?}", spec.shape).as_bytes());
            hasher.field(bytes);
            self.release(&spec.hf_name)?;
        }
        Ok(hasher.hex())
    }

    /// Bytes of all tensors as the files hold them.
    pub fn stored_bytes(&self) -> Result<u64> {
        self.tensor_names().map(|name| Ok(self.stored(name)?.1.len() as u64)).sum()
    }

    fn stored(&self, name: &str) -> Result<(&'static str, &[u8])> {
        match &self.files {
            Files::Folder(checkpoint) => {
                let dtype = checkpoint.file_dtype(name).map_or("?", |dtype| dtype.name());
                Ok((dtype, checkpoint.bytes(name)?))
            }
            Files::Gguf(model) => model.stored(name),
        }
    }
}
