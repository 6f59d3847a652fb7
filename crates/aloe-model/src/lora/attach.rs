//! Updates put beside a decoder's weights, and the weights that result when they are added in.

use super::{LoraDelta, LoraShape};
use crate::arch::{Role, TensorSpec};
use crate::{Decoder, Params, Result};
use aloe_tensor::{Dtype, Linear, Lora, LoraDropout, Tensor};
use std::sync::Arc;

impl Decoder {
    /// Puts an update beside each target, multiplied in f32; trained embeddings and heads replace those that were
    /// loaded. `dropout` gives a module's dropout by its number.
    pub fn attach_lora(&mut self, shape: &LoraShape, masters: &Params, dropout: &dyn Fn(u64) -> Option<LoraDropout>) {
        let (dtype, device) = (self.dtype, self.device.clone());
        let weights = Arc::make_mut(&mut self.weights);
        let mut n_modules = 0;
        for (spec, master) in masters.specs().iter().zip(masters.tensors()) {
            let whole = || Linear::of_master(&device, master, dtype, None);
            match spec.role {
                Role::LoraA(layer, part) => {
                    let b = masters.role(Role::LoraB(layer, part)).expect("both factors of an update are masters");
                    let lora = Lora::new(master, b, shape.scale(), dropout(n_modules));
                    n_modules += 1;
                    let linear = weights.layers[layer].matrix_mut(part).expect("targets are matrices");
                    linear.set_lora(Some(lora));
                }
                Role::Embed if weights.embed.is_some() => weights.embed = Some(whole()),
                Role::Embed | Role::Head => weights.head = whole(),
                _ => {}
            }
        }
    }
}

impl LoraShape {
    /// The weight of the merged model for one row of its table: `base` is that weight in f32 as training saw it, or for a quantised
    /// base dequantised. Computed in f32: `W + scale * (B A)`.
    pub fn merged(&self, masters: &Params, spec: &TensorSpec, mut base: Tensor) -> Result<Tensor> {
        if let Role::Embed | Role::Head = spec.role {
            return Ok(masters.role(spec.role).cloned().unwrap_or(base));
        }
        let Role::Layer(layer, part) = spec.role else { return Ok(base) };
        let factors = (masters.role(Role::LoraA(layer, part)), masters.role(Role::LoraB(layer, part)));
        if let (Some(a), Some(b)) = factors {
            assert_eq!(base.dtype(), Dtype::F32, "{}", spec.hf_name);
            let delta = LoraDelta::new(a.to_f32_vec(), b.to_f32_vec(), self.rank, self.scale());
            delta.add(0, base.as_f32_mut());
        }
        Ok(base)
    }
}
