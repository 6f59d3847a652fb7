//! LoRA: which low-rank updates a model gets, their masters, and the adapter folders that PEFT reads and writes.
//!
//! Source: arXiv 2106.09685; names, scaling and initial values as in PEFT. Reading order: this file (shape and masters), `attach`
//! (updates beside a decoder's weights), `write` and `read` (adapter folders), `untrained` (rows that a frozen embedding must not have).

mod attach;
mod read;
mod untrained;
mod write;

pub use read::{CONFIG as ADAPTER_CONFIG, LoraAdapter, LoraDelta, WEIGHTS as ADAPTER_WEIGHTS, name_in_adapter};
pub use untrained::{NEAR_ZERO, Untrained, untrained_rows};
pub use write::write_adapter;

use crate::arch::{self, Part, Role, TensorSpec};
use crate::{Config, ModelSource, Params, Result, SafeTensorsFile};
use aloe_record::CounterRng;
use aloe_tensor::{Dtype, Tensor};
use std::path::Path;

/// The matrices of a layer that can get an update, by the names that PEFT's `target_modules` has for them.
pub const LORA_TARGETS: [(&str, Part); 7] = [
    ("q_proj", Part::Query),
    ("k_proj", Part::Key),
    ("v_proj", Part::Value),
    ("o_proj", Part::Output),
    ("gate_proj", Part::Gate),
    ("up_proj", Part::Up),
    ("down_proj", Part::Down),
];

/// Which weights LoRA trains.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraShape {
    /// Inner size of the updates.
    pub rank: usize,
    /// Updates are scaled by `alpha / rank`.
    pub alpha: f64,
    /// The matrices that get one, in every layer.
    pub targets: Vec<Part>,
    /// Whether embedding and head are trained too, whole.
    pub embeddings: bool,
}

impl LoraShape {
    /// `alpha / rank`.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// The trained tensors in the order of the model's table: A then B beside each target, the embedding first and the head last
    /// where they are trained. Names are those of PEFT's files without the prefix `base_model.model.`.
    pub fn tensors(&self, config: &Config) -> Vec<TensorSpec> {
        let mut table = Vec::new();
        for spec in arch::tensors(config) {
            match spec.role {
                Role::Layer(layer, part) if self.targets.contains(&part) => {
                    table.extend(self.factors(&spec, layer, part))
                }
                Role::Embed | Role::Head if self.embeddings => table.push(spec),
                _ => {}
            }
        }
        table
    }

    fn factors(&self, spec: &TensorSpec, layer: usize, part: Part) -> [TensorSpec; 2] {
        let factor = |name: &str, gguf: &str, shape: [usize; 2], role: Role| TensorSpec {
            hf_name: format!("{}.{name}.weight", module(&spec.hf_name)),
            gguf_name: format!("{}.{gguf}", spec.gguf_name),
            shape: shape.to_vec(),
            role,
            ..spec.clone()
        };
        let (rows, columns) = (spec.shape[0], spec.shape[1]);
        [
            factor("lora_A", "lora_a", [self.rank, columns], Role::LoraA(layer, part)),
            factor("lora_B", "lora_b", [rows, self.rank], Role::LoraB(layer, part)),
        ]
    }

    /// Masters at the start: B zero, A uniform within `1 / sqrt(K)` (PEFT's `kaiming_uniform_` with a = sqrt 5) from the counter
    /// generator, one item per tensor; embedding and head as `source` has them.
    pub fn start(&self, source: &ModelSource, seed: u64) -> Result<Params> {
        self.masters(source.config(), seed, |spec| source.load(&spec.hf_name, Dtype::F32))
    }

    /// The same with embedding and head from `whole`.
    pub fn masters(
        &self,
        config: &Config,
        seed: u64,
        mut whole: impl FnMut(&TensorSpec) -> Result<Tensor>,
    ) -> Result<Params> {
        let mut item = 0;
        Params::of_table(config, self.tensors(config), |spec| match spec.role {
            Role::LoraA(..) => {
                let mut rng = CounterRng::new(seed, "lora-init", item);
                item += 1;
                let bound = 1.0 / (spec.shape[1] as f32).sqrt();
                let values = (0..spec.n_elements()).map(|_| (2.0 * rng.uniform() - 1.0) * bound).collect();
                Ok(Tensor::from_f32(&spec.shape, values))
            }
            Role::LoraB(..) => Ok(Tensor::zeros(&spec.shape, Dtype::F32)),
            _ => whole(spec),
        })
    }

    /// Those of an adapter folder whose tensors are those of this shape.
    pub fn read(&self, config: &Config, dir: &Path) -> Result<Params> {
        let file = SafeTensorsFile::open(&dir.join(ADAPTER_WEIGHTS))?;
        Params::of_table(config, self.tensors(config), |spec| {
            Ok(Tensor::from_f32(&spec.shape, file.load_f32(&name_in_adapter(&spec.hf_name))?))
        })
    }
}

/// A weight's name without `.weight`: what PEFT calls a module.
fn module(hf_name: &str) -> &str {
    hf_name.strip_suffix(".weight").unwrap_or(hf_name)
}

#[cfg(test)]
mod tests;
