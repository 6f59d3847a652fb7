//! The backward pass: from the gradient of the hidden states to the gradient of every weight.
//!
//! Layers in reverse; gradients add to what `grads` holds, in row order, so that splitting a batch into micro-batches adds the
//! same numbers in the same order. Each step is the derivative of one line of `forward`.

use crate::arch::{Part, Role};
use crate::decoder::Decoder;
use crate::forward::{Activations, LayerActivations};
use crate::params::Grads;
use crate::weights::LayerWeights;
use aloe_tensor::{AttentionInputs, Linear, Tensor, ops};

/// Where the layer being walked stands, and where its gradients go.
struct LayerGrads<'a> {
    index: usize,
    grads: &'a mut Grads,
}

impl LayerGrads<'_> {
    fn part(&mut self, part: Part) -> &mut Tensor {
        self.grads.role_mut(Role::Layer(self.index, part))
    }

    fn with_bias(&mut self, part: Part, bias: Part) -> (&mut Tensor, Option<&mut Tensor>) {
        self.grads.pair_mut(Role::Layer(self.index, part), Role::Layer(self.index, bias))
    }
}

impl Decoder {
    /// Adds the gradient of every weight to `grads`, given that of `activations.hidden`, `[N, D]`. The head's part comes from
    /// `token_logps_backward`. Layers' activations are freed as they are used.
    pub fn backward(&self, mut activations: Activations, dhidden: &Tensor, grads: &mut Grads) {
        let dev = &self.device;
        let Activations { batch, last, last_rstd, .. } = &activations;
        let dnorm = grads.role_mut(Role::FinalNorm);
        let mut dx = ops::rms_norm_backward(dev, dhidden, last, &self.weights.norm, last_rstd, dnorm);
        let batch = batch.clone();
        while let Some(kept) = activations.layers.pop() {
            let index = activations.layers.len();
            let weights = &self.weights.layers[index];
            let mut layer = LayerGrads { index, grads };
            dx = self.feed_forward_backward(weights, &kept, dx, &mut layer);
            let (dq, dk, dv) = self.attention_backward(weights, &kept, &dx, &batch, &mut layer);
            dx = self.projections_backward(weights, &kept, [&dq, &dk, &dv], dx, &mut layer);
        }
        ops::embedding_grad(dev, &dx, &batch.ids, grads.role_mut(Role::Embed));
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
        ops::linear_grad_weight(dev, &dx, &product, self.dtype, layer.part(Part::Down), None);
        drop(product);
        let dproduct = ops::linear_grad_input(dev, &dx, &weights.down);
        let (dgate, dup) = ops::swiglu_backward(dev, &dproduct, &kept.gate, &kept.up);
        drop(dproduct);
        let (normed, rstd) = ops::rms_norm(dev, &kept.mid, &weights.post_norm, self.config.rms_norm_eps);
        ops::linear_grad_weight(dev, &dgate, &normed, self.dtype, layer.part(Part::Gate), None);
        ops::linear_grad_weight(dev, &dup, &normed, self.dtype, layer.part(Part::Up), None);
        let mut dnormed = ops::linear_grad_input(dev, &dgate, &weights.gate);
        ops::add_in_place(dev, &mut dnormed, &ops::linear_grad_input(dev, &dup, &weights.up));
        let dnorm = layer.part(Part::PostNorm);
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
        batch: &crate::PackedBatch,
        layer: &mut LayerGrads<'_>,
    ) -> (Tensor, Tensor, Tensor) {
        let dev = &self.device;
        let o = self.flat(kept.o.clone());
        ops::linear_grad_weight(dev, dmid, &o, self.dtype, layer.part(Part::Output), None);
        let dout = self.heads(ops::linear_grad_input(dev, dmid, &weights.o), self.config.num_attention_heads);
        let inputs = AttentionInputs { q: &kept.q, k: &kept.k, v: &kept.v, o: &kept.o, lse: &kept.lse };
        let (mut dq, mut dk, dv) = ops::attention_backward(dev, &dout, &inputs, &batch.plan, self.attention_scale());
        let rotation = self.rope.rotation(dev, &batch.positions);
        ops::rope_backward(dev, &mut dq, &rotation);
        ops::rope_backward(dev, &mut dk, &rotation);
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
            let (dw, db) = layer.with_bias(part, bias);
            ops::linear_grad_weight(dev, dy, &normed, self.dtype, dw, db);
            let through = ops::linear_grad_input(dev, dy, linear);
            match &mut dnormed {
                None => dnormed = Some(through),
                Some(sum) => ops::add_in_place(dev, sum, &through),
            }
        }
        let dnormed = dnormed.expect("there are three projections");
        let dnorm = layer.part(Part::InputNorm);
        let through = ops::rms_norm_backward(dev, &dnormed, &kept.input, &weights.input_norm, &rstd, dnorm);
        ops::add_in_place(dev, &mut dx, &through);
        dx
    }
}
