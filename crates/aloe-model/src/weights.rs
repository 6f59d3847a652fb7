//! The weights as the kernels want them: f32 or bf16 copies, or blocks (read by `weight_format`), shared by every decoder that uses the model.
//!
//! Norm weights and biases stay f32 in both types, as their operations are f32.

use crate::Result;
use crate::arch::{self, Part, Role, TensorSpec};
use crate::config::Config;
use crate::params::Params;
use aloe_tensor::{Device, Dtype, Linear, Lora, Tensor};

/// One layer's weights.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Query projection `[H*E, D]`.
    pub q: Linear,
    /// Key projection `[K*E, D]`.
    pub k: Linear,
    /// Value projection `[K*E, D]`.
    pub v: Linear,
    /// Output projection of attention `[D, H*E]`.
    pub o: Linear,
    /// SwiGLU's gate `[F, D]`.
    pub gate: Linear,
    /// SwiGLU's other input `[F, D]`.
    pub up: Linear,
    /// Back to the hidden size `[D, F]`.
    pub down: Linear,
    /// RMSNorm before attention `[D]` f32.
    pub input_norm: Tensor,
    /// RMSNorm before the feed-forward part `[D]` f32.
    pub post_norm: Tensor,
}

impl LayerWeights {
    /// The matrix of a part; none for norms and biases.
    pub fn matrix(&self, part: Part) -> Option<&Linear> {
        Some(match part {
            Part::Query => &self.q,
            Part::Key => &self.k,
            Part::Value => &self.v,
            Part::Output => &self.o,
            Part::Gate => &self.gate,
            Part::Up => &self.up,
            Part::Down => &self.down,
            _ => return None,
        })
    }

    /// The same, to be changed.
    pub(crate) fn matrix_mut(&mut self, part: Part) -> Option<&mut Linear> {
        Some(match part {
            Part::Query => &mut self.q,
            Part::Key => &mut self.k,
            Part::Value => &mut self.v,
            Part::Output => &mut self.o,
            Part::Gate => &mut self.gate,
            Part::Up => &mut self.up,
            Part::Down => &mut self.down,
            _ => return None,
        })
    }
}

/// A decoder's weights.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Token embedding `[V, D]`, looked up by row; `None` when tied: the head's rows.
    pub embed: Option<Linear>,
    /// The layers, first to last.
    pub layers: Vec<LayerWeights>,
    /// RMSNorm after the last layer `[D]` f32.
    pub norm: Tensor,
    /// Output head `[V, D]`; the embedding's numbers when tied.
    pub head: Linear,
}

impl Weights {
    /// Compute copies of master weights.
    pub fn from_params(params: &Params, dtype: Dtype, device: &Device) -> Self {
        let master = |spec: &TensorSpec| params.role(spec.role).expect("masters hold every tensor of the table");
        Self::build(&params.config, &mut |spec| Ok(master(spec).clone()), &mut |spec, bias| {
            Ok(Linear::of_master(device, master(spec), dtype, bias))
        })
        .expect("casting cannot fail")
    }

    /// Overwrites the compute copies with the masters, after an optimizer step.
    pub fn refresh(&mut self, device: &Device, params: &Params) {
        (0..params.specs().len()).for_each(|at| self.refresh_at(device, params, at));
    }

    /// The same for the master at `at` of the table alone.
    pub fn refresh_at(&mut self, device: &Device, params: &Params, at: usize) {
        let (spec, master) = (&params.specs()[at], &params.tensors()[at]);
        match (spec.role, &mut self.embed) {
            (Role::Embed, Some(embed)) => embed.update_from_f32(device, master.as_f32()),
            (Role::Embed, None) | (Role::Head, _) => self.head.update_from_f32(device, master.as_f32()),
            (Role::FinalNorm, _) => self.norm = master.clone(),
            (Role::Layer(i, part), _) => refresh_part(&mut self.layers[i], device, part, master),
            (Role::LoraA(i, part), _) => self.update_of(i, part).update_a(device, master.as_f32()),
            (Role::LoraB(i, part), _) => self.update_of(i, part).update_b(device, master.as_f32()),
        }
    }

    fn update_of(&mut self, layer: usize, part: Part) -> &mut Lora {
        let linear = self.layers[layer].matrix_mut(part).expect("updates stand beside matrices");
        linear.lora_mut().expect("the update was put there with its masters")
    }

    /// The matrix of a role as the kernels hold it; none for norms and biases.
    pub fn matrix(&self, role: Role) -> Option<&Linear> {
        match role {
            Role::Embed => self.embed.as_ref().or(Some(&self.head)),
            Role::Head => Some(&self.head),
            Role::Layer(i, part) => self.layers.get(i)?.matrix(part),
            Role::FinalNorm | Role::LoraA(..) | Role::LoraB(..) => None,
        }
    }

    /// The embeddings of `ids`, `[N, D]` f32.
    pub fn embedding(&self, device: &Device, ids: &[u32]) -> Tensor {
        self.embed.as_ref().unwrap_or(&self.head).rows(device, ids)
    }

    /// Bytes of the weights as the kernels hold them.
    pub fn nbytes(&self) -> usize {
        let layers = self.layer_matrices().map(Linear::nbytes).sum::<usize>();
        self.embed.as_ref().map_or(0, Linear::nbytes) + self.head.nbytes() + layers
    }

    /// Bytes that every pass reads: all but a table that is only looked up, of which a pass reads its tokens' rows.
    pub fn streamed_nbytes(&self) -> usize {
        self.nbytes() - self.embed.as_ref().map_or(0, Linear::nbytes)
    }

    /// The matrices that every token goes through, layer by layer; the head, which only some rows meet, is not among them.
    pub fn layer_matrices(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down])
    }

    /// Puts the weights together: `vector` loads norms and biases as f32, `linear` makes a layer of a matrix and its bias.
    pub(crate) fn build(
        config: &Config,
        vector: &mut dyn FnMut(&TensorSpec) -> Result<Tensor>,
        linear: &mut dyn FnMut(&TensorSpec, Option<Tensor>) -> Result<Linear>,
    ) -> Result<Self> {
        let specs = arch::tensors(config);
        let spec = |role: Role| {
            specs.iter().find(|spec| spec.role == role).expect("every role of the architecture is in its table")
        };
        let embed = linear(spec(Role::Embed), None)?;
        let norm = vector(spec(Role::FinalNorm))?;
        let (embed, head) =
            if config.tie_word_embeddings { (None, embed) } else { (Some(embed), linear(spec(Role::Head), None)?) };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let mut matrix = |part: Part, bias: Option<Part>| -> Result<Linear> {
                let bias = match bias {
                    Some(bias) if config.attention_bias => Some(vector(spec(Role::Layer(i, bias)))?),
                    _ => None,
                };
                linear(spec(Role::Layer(i, part)), bias)
            };
            layers.push(LayerWeights {
                q: matrix(Part::Query, Some(Part::QueryBias))?,
                k: matrix(Part::Key, Some(Part::KeyBias))?,
                v: matrix(Part::Value, Some(Part::ValueBias))?,
                o: matrix(Part::Output, None)?,
                gate: matrix(Part::Gate, None)?,
                up: matrix(Part::Up, None)?,
                down: matrix(Part::Down, None)?,
                input_norm: vector(spec(Role::Layer(i, Part::InputNorm)))?,
                post_norm: vector(spec(Role::Layer(i, Part::PostNorm)))?,
            });
        }
        Ok(Self { embed, layers, norm, head })
    }
}

fn refresh_part(layer: &mut LayerWeights, device: &Device, part: Part, master: &Tensor) {
    let values = master.as_f32();
    match part {
        Part::Query => layer.q.update_from_f32(device, values),
        Part::QueryBias => layer.q.set_bias(values),
        Part::Key => layer.k.update_from_f32(device, values),
        Part::KeyBias => layer.k.set_bias(values),
        Part::Value => layer.v.update_from_f32(device, values),
        Part::ValueBias => layer.v.set_bias(values),
        Part::Output => layer.o.update_from_f32(device, values),
        Part::Gate => layer.gate.update_from_f32(device, values),
        Part::Up => layer.up.update_from_f32(device, values),
        Part::Down => layer.down.update_from_f32(device, values),
        Part::InputNorm => layer.input_norm = master.clone(),
        Part::PostNorm => layer.post_norm = master.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tiny, tiny_random};

    /// By hand, D 64, F 96, 4 query and 2 key/value heads of 16, V 64, 2 layers: a layer has 64 x 16 x 12 + 3 x 64 x 96 = 30,720
    /// elements, head and embedding 4,096 each. All widths are whole panels of 32, so nothing is padded.
    #[test]
    fn a_pass_reads_a_table_that_is_looked_up_row_by_row_not_whole() {
        let llama = Weights::from_params(&tiny_random(Tiny::Llama, 0), Dtype::F32, &Device::cpu(1));
        assert_eq!(llama.streamed_nbytes(), 4 * (2 * 30_720 + 4096));
        assert_eq!(llama.nbytes(), llama.streamed_nbytes() + 4 * 4096);
        let tied = Weights::from_params(&tiny_random(Tiny::Qwen2, 0), Dtype::F32, &Device::cpu(1));
        assert_eq!(tied.streamed_nbytes(), tied.nbytes(), "a tied table is the head, which is read whole");
    }
}
