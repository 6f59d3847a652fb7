//! The backward pass: from the gradient of the hidden states to the gradient of every weight.
//!
//! Layers in reverse; gradients add to what `grads` holds, in row order, so that splitting a batch into micro-batches adds the
//! same numbers in the same order; an embedding's are summed by id first, which [`Decoder::backward_layers`] leaves to the caller. Each step is the derivative of one line of `forward`.

use crate::arch::{Part, Role};
use crate::batch::PackedBatch;
use crate::decoder::Decoder;
use crate::forward::{Activations, Kept, LayerActivations};
use crate::params::Grads;
use crate::weights::LayerWeights;
use aloe_tensor::{AttentionInputs, Dtype, Linear, Rotation, Rounded, Tensor, ops};

/// The gradient of the embedded tokens.
pub struct EmbeddingGrad {
    /// Token ids `[N]`.
    pub ids: Vec<u32>,
    /// Gradients of their embeddings `[N, D]`.
    pub dx: Tensor,
}

/// Where the layer being walked stands, and where its gradients go. Weights that are not trained have none.
pub(crate) struct LayerGrads<'a> {
    index: usize,
    grads: &'a mut Grads,
    /// Takes the gradients of norms that are not trained `[D]`.
    unused: Tensor,
}

impl LayerGrads<'_> {
    /// Gradients of several parts, and whether each is the first of its step.
    pub(crate) fn parts<const M: usize>(&mut self, parts: [Part; M]) -> [(&mut Tensor, bool); M] {
        self.grads.fresh_mut(parts.map(|part| Role::Layer(self.index, part)))
    }

    /// The bias's gradient, if the model has one.
    pub(crate) fn bias(&mut self, part: Part) -> Option<&mut Tensor> {
        self.grads.role_if_any(Role::Layer(self.index, part))
    }

    pub(crate) fn norm(&mut self, part: Part) -> &mut Tensor {
        self.grads.role_if_any(Role::Layer(self.index, part)).unwrap_or(&mut self.unused)
    }

    /// Adds the gradients of a matrix, its bias and its low-rank update, as far as they are trained.
    fn add(&mut self, decoder: &Decoder, dy: &Tensor, x: &Tensor, linear: &Linear, (part, bias): (Part, Option<Part>)) {
        let (dev, at) = (&decoder.device, |part| Role::Layer(self.index, part));
        let own = match bias {
            Some(bias) => self.grads.pair_mut(at(part), at(bias)),
            None => self.grads.role_if_any(at(part)).map(|dw| (dw, None)),
        };
        if let Some((dw, db)) = own {
            ops::linear_grad_weight(dev, dy, x, decoder.dtype, dw, db);
        }
        let factors = self.grads.pair_mut(Role::LoraA(self.index, part), Role::LoraB(self.index, part));
        if let Some((da, Some(db))) = factors {
            ops::lora_grad(dev, dy, x, linear, da, db);
        }
    }
}

impl Decoder {
    /// Adds the gradient of every weight that has one in `grads`, given that of `activations.hidden`, `[N, D]`. The head's part
    /// comes from `token_logps_backward`. Layers' activations are freed as they are used.
    pub fn backward(&self, activations: Activations, dhidden: &Tensor, grads: &mut Grads) {
        let EmbeddingGrad { ids, dx } = self.backward_layers(activations, dhidden, grads);
        grads.add_embedded(&self.device, &[(&ids, &dx)]);
    }

    /// The same without the embedding's part, whose rows are returned: a tied head can gather its gradient in the same tensor first.
    pub fn backward_layers(&self, activations: Activations, dhidden: &Tensor, grads: &mut Grads) -> EmbeddingGrad {
        let dev = &self.device;
        let Activations { batch, last, last_rstd, mut layers, .. } = activations;
        let mut unused = Tensor::zeros(self.weights.norm.shape(), Dtype::F32);
        let dnorm = grads.role_if_any(Role::FinalNorm).unwrap_or(&mut unused);
        let mut dx = ops::rms_norm_backward(dev, dhidden, &last, &self.weights.norm, &last_rstd, dnorm);
        drop(last);
        let rotation = self.rope.rotation(dev, &batch.positions);
        let mut dx_rounded = None;
        let mut layer = LayerGrads { index: 0, grads, unused };
        while let Some(kept) = layers.pop() {
            layer.index = layers.len();
            let weights = &self.weights.layers[layer.index];
            let kept = match kept {
                Kept::Input(input) => self.layer_kept(weights, input, &batch, &rotation).0,
                Kept::RoundedInput(kept) => Kept::Rounded(self.rounded_layer_again(weights, kept, &rotation)),
                kept => kept,
            };
            match kept {
                Kept::Rounded(kept) => {
                    let rounded = dx_rounded.take().unwrap_or_else(|| Rounded::new(dev, &dx));
                    let (next, rounded) =
                        self.rounded_backward(weights, kept, (dx, rounded), (&batch, &rotation), &mut layer);
                    (dx, dx_rounded) = (next, Some(rounded));
                }
                Kept::Whole(kept) => dx = self.layer_backward(weights, &kept, dx, (&batch, &rotation), &mut layer),
                Kept::Input(_) | Kept::RoundedInput(_) => unreachable!("computed again above"),
            }
        }
        EmbeddingGrad { ids: batch.ids, dx }
    }

    fn layer_backward(
        &self,
        weights: &LayerWeights,
        kept: &LayerActivations,
        dx: Tensor,
        (batch, rotation): (&PackedBatch, &Rotation),
        layer: &mut LayerGrads<'_>,
    ) -> Tensor {
        let dx = self.feed_forward_backward(weights, kept, dx, layer);
        let (dq, dk, dv) = self.attention_backward(weights, kept, &dx, (batch, rotation), layer);
        self.projections_backward(weights, kept, [&dq, &dk, &dv], dx, layer)
    }

    /// From the gradient of the layer's output to that of `mid`.
    fn feed_forward_backward(
        &self,
        weights: &LayerWeights,
        kept: &LayerActivations,
        mut dx: Tensor,
        layer: &mut LayerGrads<'_>,
    ) -> Tensor {
        let dev = &self.device;
        let product = ops::swiglu(dev, &kept.gate, &kept.up);
        layer.add(self, &dx, &product, &weights.down, (Part::Down, None));
        drop(product);
        let dproduct = ops::linear_grad_input(dev, &dx, &weights.down);
        let (dgate, dup) = ops::swiglu_backward(dev, &dproduct, &kept.gate, &kept.up);
        drop(dproduct);
        let (normed, rstd) = ops::rms_norm(dev, &kept.mid, &weights.post_norm, self.config.rms_norm_eps);
        layer.add(self, &dgate, &normed, &weights.gate, (Part::Gate, None));
        layer.add(self, &dup, &normed, &weights.up, (Part::Up, None));
        let mut dnormed = ops::linear_grad_input(dev, &dgate, &weights.gate);
        ops::add_in_place(dev, &mut dnormed, &ops::linear_grad_input(dev, &dup, &weights.up));
        let dnorm = layer.norm(Part::PostNorm);
        let through = ops::rms_norm_backward(dev, &dnormed, &kept.mid, &weights.post_norm, &rstd, dnorm);
        ops::add_in_place(dev, &mut dx, &through);
        dx
    }

    /// From the gradient of `mid` to those of q, k (before rotation) and v, each `[N, heads * E]`.
    fn attention_backward(
        &self,
        weights: &LayerWeights,
        kept: &LayerActivations,
        dmid: &Tensor,
        (batch, rotation): (&PackedBatch, &Rotation),
        layer: &mut LayerGrads<'_>,
    ) -> (Tensor, Tensor, Tensor) {
        let dev = &self.device;
        let o = self.flat(kept.o.clone());
        layer.add(self, dmid, &o, &weights.o, (Part::Output, None));
        let dout = self.heads(ops::linear_grad_input(dev, dmid, &weights.o), self.config.num_attention_heads);
        let inputs = AttentionInputs { q: &kept.q, k: &kept.k, v: &kept.v, o: &kept.o, lse: &kept.lse };
        let (mut dq, mut dk, dv) = ops::attention_backward(dev, &dout, &inputs, &batch.plan, self.attention_scale());
        ops::rope_backward(dev, &mut dq, rotation);
        ops::rope_backward(dev, &mut dk, rotation);
        (self.flat(dq), self.flat(dk), self.flat(dv))
    }

    /// From the gradients of q, k and v to that of the layer's input, to which `dx` already leads around the attention.
    fn projections_backward(
        &self,
        weights: &LayerWeights,
        kept: &LayerActivations,
        dqkv: [&Tensor; 3],
        mut dx: Tensor,
        layer: &mut LayerGrads<'_>,
    ) -> Tensor {
        let dev = &self.device;
        let (normed, rstd) = ops::rms_norm(dev, &kept.input, &weights.input_norm, self.config.rms_norm_eps);
        let parts: [(&Linear, Part, Part); 3] = [
            (&weights.q, Part::Query, Part::QueryBias),
            (&weights.k, Part::Key, Part::KeyBias),
            (&weights.v, Part::Value, Part::ValueBias),
        ];
        let mut dnormed: Option<Tensor> = None;
        for ((linear, part, bias), dy) in parts.into_iter().zip(dqkv) {
            layer.add(self, dy, &normed, linear, (part, Some(bias)));
            let through = ops::linear_grad_input(dev, dy, linear);
            match &mut dnormed {
                None => dnormed = Some(through),
                Some(sum) => ops::add_in_place(dev, sum, &through),
            }
        }
        let dnormed = dnormed.expect("there are three projections");
        let dnorm = layer.norm(Part::InputNorm);
        let through = ops::rms_norm_backward(dev, &dnormed, &kept.input, &weights.input_norm, &rstd, dnorm);
        ops::add_in_place(dev, &mut dx, &through);
        dx
    }
}
