//! An adapter folder as PEFT's `PeftModel.from_pretrained` loads it: `adapter_config.json` and `adapter_model.safetensors` (f32).
//!
//! Holds no path and no time, so that its bytes depend on the training alone; the base is named, and its weights' digest stands in the
//! metadata of the tensor file.

use super::read::{BASE_DIGEST, CONFIG, PREFIX, WEIGHTS};
use super::{LORA_TARGETS, LoraShape};
use crate::arch::{HEAD, Role};
use crate::safetensors::FileDtype;
use crate::safetensors_writer::SafeTensorsWriter;
use crate::{Params, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Writes `dir` with the trained masters. `base` names the model they were trained on, `base_digest` is that of its weights.
pub fn write_adapter(
    dir: &Path,
    shape: &LoraShape,
    dropout: f32,
    masters: &Params,
    base: &str,
    base_digest: &str,
) -> Result<()> {
    let output = aloe_record::atomic::OutputDir::fresh(dir)?;
    let tied = shape.embeddings && masters.config.tie_word_embeddings;
    let name = |hf_name: &str| format!("{PREFIX}{hf_name}");
    let mut tensors: Vec<_> =
        masters.specs().iter().zip(masters.tensors()).map(|(spec, tensor)| (name(&spec.hf_name), tensor)).collect();
    if tied {
        // PEFT trains and loads copies of both uses of a tied matrix.
        tensors.extend(masters.role(Role::Embed).map(|embed| (name(HEAD), embed)));
    }
    let layout: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let path = output.path().join(WEIGHTS);
    let mut file = SafeTensorsWriter::create_described(&path, &layout, FileDtype::F32, &[(BASE_DIGEST, base_digest)])?;
    for (name, tensor) in &tensors {
        file.add(name, tensor.as_f32())?;
    }
    file.finish()?;
    aloe_record::atomic::write_json(&output.path().join(CONFIG), &config(shape, dropout, base, tied))?;
    Ok(output.commit()?)
}

fn config(shape: &LoraShape, dropout: f32, base: &str, tied: bool) -> Value {
    let targets: Vec<&str> =
        LORA_TARGETS.into_iter().filter(|(_, part)| shape.targets.contains(part)).map(|(name, _)| name).collect();
    let whole = shape.embeddings.then_some(["embed_tokens", "lm_head"]);
    json!({
        "alpha_pattern": {},
        "base_model_name_or_path": base,
        "bias": "none",
        "ensure_weight_tying": tied,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": shape.alpha,
        "lora_dropout": dropout,
        "modules_to_save": whole,
        "peft_type": "LORA",
        "r": shape.rank,
        "rank_pattern": {},
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    })
}
