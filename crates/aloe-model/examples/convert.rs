//! Writes a model (folder or .gguf) as a Hugging Face folder: `convert MODEL OUT f32|bf16`. Weights and configs only; `aloe pull`
//! adds the tokenizer. Used by oracles/check_gguf_folder.py.

use aloe_model::{CheckpointWriter, ModelSource};
use aloe_tensor::Dtype;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, dtype] = arguments.as_slice() else { return Err("usage: convert MODEL OUT f32|bf16".into()) };
    let dtype = match dtype.as_str() {
        "f32" => Dtype::F32,
        "bf16" => Dtype::Bf16,
        other => return Err(format!("dtype {other} is not f32 or bf16").into()),
    };
    let source = ModelSource::open(Path::new(model))?;
    let mut writer = CheckpointWriter::create(Path::new(out), source.config(), dtype)?;
    for name in source.tensor_names() {
        writer.add(name, &source.load_f32(name)?)?;
    }
    writer.finish(&[])?;
    Ok(())
}
