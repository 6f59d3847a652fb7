//! The weights as the kernels want them: f32 or bf16 copies, shared by every decoder that uses the model.
//!
//! Norm weights and biases stay f32 in both types, as their operations are f32.

use crate::Result;
use crate::arch::{self, Part, Role, TensorSpec};
use crate::config::Config;
use crate::params::Params;
use crate::source::ModelSource;
use aloe_tensor::{Device, Dtype, Linear, Tensor, ops};

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

/// A decoder's weights.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Token embedding `[V, D]`; `None` when tied: the head's rows.
    pub embed: Option<Tensor>,
    /// The layers, first to last.
    pub layers: Vec<LayerWeights>,
    /// RMSNorm after the last layer `[D]` f32.
    pub norm: Tensor,
    /// Output head `[V, D]`; the embedding's numbers when tied.
    pub head: Linear,
}

impl Weights {
    /// Reads a checkpoint folder or GGUF file into compute copies of `dtype`.
    pub fn load(source: &ModelSource, dtype: Dtype) -> Result<Self> {
        Self::build(source.config(), dtype, &mut |spec, dtype| source.load(&spec.hf_name, dtype))
    }

    /// Compute copies of master weights.
    pub fn from_params(params: &Params, dtype: Dtype) -> Self {
        Self::build(&params.config, dtype, &mut |spec, dtype| {
            let tensor = params.role(spec.role).expect("masters hold every tensor of the table");
            Ok(tensor.cast(dtype))
        })
        .expect("casting cannot fail")
    }

    /// Overwrites the compute copies with the masters, after an optimizer step.
    pub fn refresh(&mut self, device: &Device, params: &Params) {
        for (spec, master) in params.specs().iter().zip(params.tensors()) {
            match (spec.role, &mut self.embed) {
                (Role::Embed, Some(embed)) => *embed = master.cast(embed.dtype()),
                (Role::Embed, None) | (Role::Head, _) => self.head.update_from_f32(device, master.as_f32()),
                (Role::FinalNorm, _) => self.norm = master.clone(),
                (Role::Layer(i, part), _) => refresh_part(&mut self.layers[i], device, part, master),
            }
        }
    }

    /// The embeddings of `ids`, `[N, D]` f32.
    pub fn embedding(&self, device: &Device, ids: &[u32]) -> Tensor {
        match &self.embed {
            Some(table) => ops::embedding(device, table, ids),
            None => self.head.rows(device, ids),
        }
    }

    /// Bytes of the compute copies as stored (packed copies of the kernels not counted).
    pub fn nbytes(&self) -> usize {
        let linear = |l: &Linear| l.out_features() * l.in_features() * l.dtype().size_bytes();
        let layer =
            |l: &LayerWeights| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].into_iter().map(linear).sum::<usize>();
        self.embed.as_ref().map_or(0, Tensor::nbytes)
            + linear(&self.head)
            + self.layers.iter().map(layer).sum::<usize>()
    }

    fn build(
        config: &Config,
        dtype: Dtype,
        load: &mut dyn FnMut(&TensorSpec, Dtype) -> Result<Tensor>,
    ) -> Result<Self> {
        let specs = arch::tensors(config);
        let mut get = |role: Role, dtype: Dtype| match specs.iter().find(|spec| spec.role == role) {
            Some(spec) => load(spec, dtype).map(Some),
            None => Ok(None),
        };
        let mut need = |role: Role, dtype: Dtype| {
            get(role, dtype).map(|found| found.expect("every role of the architecture is in its table"))
        };
        let embed = need(Role::Embed, dtype)?;
        let norm = need(Role::FinalNorm, Dtype::F32)?;
        let (embed, head) =
            if config.tie_word_embeddings { (None, embed) } else { (Some(embed), need(Role::Head, dtype)?) };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let mut matrix = |part: Part, bias: Option<Part>| -> Result<Linear> {
                let weight = need(Role::Layer(i, part), dtype)?;
                let bias = match bias {
                    Some(bias) if config.attention_bias => Some(need(Role::Layer(i, bias), Dtype::F32)?),
                    _ => None,
                };
                Ok(Linear::new(weight, bias))
            };
            layers.push(LayerWeights {
                q: matrix(Part::Query, Some(Part::QueryBias))?,
                k: matrix(Part::Key, Some(Part::KeyBias))?,
                v: matrix(Part::Value, Some(Part::ValueBias))?,
                o: matrix(Part::Output, None)?,
                gate: matrix(Part::Gate, None)?,
                up: matrix(Part::Up, None)?,
                down: matrix(Part::Down, None)?,
                input_norm: need(Role::Layer(i, Part::InputNorm), Dtype::F32)?,
                post_norm: need(Role::Layer(i, Part::PostNorm), Dtype::F32)?,
            });
        }
        Ok(Self { embed, layers, norm, head: Linear::new(head, None) })
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
