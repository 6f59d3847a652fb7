//! How weights are held while a model runs: dense, rounded to blocks on load, or in the blocks of their GGUF file.
//!
//! Blocks are for inference only. The head (with it a tied embedding) keeps eight bits when the layers get four, as llama.cpp's
//! quantiser does: its errors go straight into the logits. A table that is only looked up keeps bf16.

use crate::source::ModelSource;
use crate::weights::Weights;
use crate::{Config, Error, Result, Role, TensorSpec};
use aloe_tensor::{BlockFormat, Device, Dtype, Linear, Tensor};

/// The form of a running model's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// f32 or bf16.
    Dense(Dtype),
    /// Rounded on load to 8-bit blocks (Q8_0).
    Q8,
    /// Rounded on load to 4-bit blocks (Q4_0), the head to 8-bit blocks.
    Q4,
    /// The blocks of the GGUF file as they are; what the file holds in f32, f16 or bf16 becomes bf16.
    Stored,
}

impl WeightFormat {
    /// For records, identities and cache keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense(Dtype::F32) => "f32",
            Self::Dense(Dtype::Bf16) => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
            Self::Stored => "gguf",
        }
    }

    /// Type of everything that is not a matrix of weights: keys and values of the cache.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Dense(dtype) => dtype,
            Self::Q8 | Self::Q4 | Self::Stored => Dtype::Bf16,
        }
    }
}

/// How the kernels hold bf16 matrices.
#[derive(Clone, Copy)]
enum Bf16 {
    /// So that they can be trained; of f32 numbers to nearest.
    Plain,
    /// The same, but of f32 numbers the copies that [`Linear::of_master`] makes.
    Copies,
    /// In twelve bits a number, the same numbers, where the device's kernels are faster so.
    Narrow,
}

impl Weights {
    /// Reads a checkpoint folder or GGUF file in the wanted form. `Stored` refuses a folder: it has no blocks.
    pub fn load_as(source: &ModelSource, format: WeightFormat, device: &Device) -> Result<Self> {
        Self::load(source, format, device, Bf16::Plain)
    }

    /// As [`Self::load_as`], for weights that training goes on from: what a file holds in f32 are masters, and their bf16 copies are those that
    /// training of all weights computes with and that a stage's export holds. To nearest, most of an earlier stage's small updates would be lost.
    pub fn load_to_train(source: &ModelSource, format: WeightFormat, device: &Device) -> Result<Self> {
        Self::load(source, format, device, Bf16::Copies)
    }

    /// As [`Self::load_as`], for a model that is never trained: bf16 matrices take three quarters of the memory, and of the time in which one
    /// token reads them, on processors with products of bf16. The same numbers, products and answers.
    pub fn load_to_answer(source: &ModelSource, format: WeightFormat, device: &Device) -> Result<Self> {
        Self::load(source, format, device, Bf16::Narrow)
    }

    fn load(source: &ModelSource, format: WeightFormat, device: &Device, bf16: Bf16) -> Result<Self> {
        if format == WeightFormat::Stored && source.gguf_metadata().is_none() {
            return Err(Error::file(
                &source.path,
                "has no stored blocks; expected a .gguf file, or another weight format",
            ));
        }
        let config = source.config();
        Self::build(config, &mut |spec| source.load(&spec.hf_name, Dtype::F32), &mut |spec, bias| {
            linear(source, (form_of(config, format, spec), bf16), device, spec, bias)
        })
    }
}

fn linear(
    source: &ModelSource,
    (form, bf16): (Form, Bf16),
    device: &Device,
    spec: &TensorSpec,
    bias: Option<Tensor>,
) -> Result<Linear> {
    let made = match form {
        Form::Dense(Dtype::Bf16) => dense_bf16(source, bf16, device, spec, bias)?,
        Form::Dense(dtype) => Linear::new_on(device, source.load(&spec.hf_name, dtype)?, bias),
        Form::Stored => match source.block_rows(&spec.hf_name)? {
            Some((blocks, rows)) => Linear::from_blocks(device, blocks, spec.shape[1], &rows, bias),
            None => dense_bf16(source, bf16, device, spec, bias)?,
        },
        Form::Rounded(blocks) => {
            let rows = source.rows_f32(&spec.hf_name)?;
            Linear::quantize(device, [spec.shape[0], spec.shape[1]], &*rows, blocks, bias)
        }
    };
    source.release(&spec.hf_name)?;
    Ok(made)
}

fn dense_bf16(
    source: &ModelSource,
    bf16: Bf16,
    device: &Device,
    spec: &TensorSpec,
    bias: Option<Tensor>,
) -> Result<Linear> {
    let shape = [spec.shape[0], spec.shape[1]];
    Ok(match (source.bf16_bytes(&spec.hf_name)?, bf16) {
        (Some(bytes), Bf16::Plain | Bf16::Copies) => Linear::from_bf16_bytes(device, shape, bytes, bias),
        (Some(bytes), Bf16::Narrow) => Linear::narrow_from_bf16_bytes(device, shape, bytes, bias),
        (None, Bf16::Copies) => Linear::of_master(device, &source.load(&spec.hf_name, Dtype::F32)?, Dtype::Bf16, bias),
        (None, Bf16::Plain) => Linear::new_on(device, source.load(&spec.hf_name, Dtype::Bf16)?, bias),
        (None, Bf16::Narrow) => Linear::narrow_of(device, &source.load(&spec.hf_name, Dtype::Bf16)?, bias),
    })
}

/// How one matrix is held.
enum Form {
    Dense(Dtype),
    Stored,
    Rounded(BlockFormat),
}

fn form_of(config: &Config, format: WeightFormat, spec: &TensorSpec) -> Form {
    let only_looked_up = spec.role == Role::Embed && !config.tie_word_embeddings;
    match format {
        WeightFormat::Dense(dtype) => Form::Dense(dtype),
        WeightFormat::Stored => Form::Stored,
        WeightFormat::Q8 | WeightFormat::Q4 if only_looked_up => Form::Dense(Dtype::Bf16),
        WeightFormat::Q4 if !matches!(spec.role, Role::Embed | Role::Head) => Form::Rounded(BlockFormat::Q4_0),
        WeightFormat::Q8 | WeightFormat::Q4 => Form::Rounded(BlockFormat::Q8_0),
    }
}
