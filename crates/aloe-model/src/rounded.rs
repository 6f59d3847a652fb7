//! A layer in bf16: every operand of a product is rounded once, shared by the products that read it, and kept as it is for the backward
//! pass. The residual stream, norms, softmax and all sums are f32.
//!
//! The numbers of the forward pass are those that a cache of bf16 pages gives, bit for bit.

use crate::arch::Part;
use crate::backward::LayerGrads;
use crate::batch::PackedBatch;
use crate::decoder::Decoder;
use crate::weights::LayerWeights;
use aloe_tensor::reference::Heads;
use aloe_tensor::{Dtype, Linear, Rotation, Rounded, RoundedAttention, SwigluRounded, Tensor, lap, ops};

/// What the backward pass needs of a layer; the normed inputs and the SwiGLU product are computed again where they are needed.
pub(crate) struct RoundedLayer {
    input: Tensor, // [N, D] f32
    mid: Tensor,   // [N, D] f32, after attention
    lse: Tensor,   // [N, H] f32
    q: Rounded,    // [N, H*E], rotated
    k: Rounded,    // [N, K*E], rotated
    v: Rounded,    // [N, K*E]
    o: Rounded,    // [N, H*E]
    gate: Rounded, // [N, F]
    up: Rounded,   // [N, F]
}

/// What of a layer is kept where the rest is computed again: at long context attention is most of a layer's forward pass, and its output
/// is a twelfth of what a layer keeps.
pub(crate) struct RoundedInput {
    input: Tensor, // [N, D] f32
    lse: Tensor,   // [N, H] f32
    o: Rounded,    // [N, H*E]
}

impl RoundedInput {
    /// Bytes held.
    pub(crate) fn nbytes(&self) -> usize {
        self.input.nbytes() + self.lse.nbytes() + self.o.nbytes()
    }
}

impl RoundedLayer {
    /// Without what is computed again.
    pub(crate) fn into_input(self) -> RoundedInput {
        RoundedInput { input: self.input, lse: self.lse, o: self.o }
    }

    /// Bytes held.
    pub(crate) fn nbytes(&self) -> usize {
        [&self.input, &self.mid, &self.lse].map(Tensor::nbytes).iter().sum::<usize>()
            + [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up].map(Rounded::nbytes).iter().sum::<usize>()
    }
}

impl Decoder {
    /// Whether the layers are those of this file: all their weights are plain bf16 without low-rank updates, which take f32 inputs.
    pub(crate) fn rounds_once(&self) -> bool {
        let plain = |linear: &Linear| {
            linear.dtype() == Dtype::Bf16 && linear.block_format().is_none() && linear.lora().is_none()
        };
        self.dtype == Dtype::Bf16
            && self
                .weights
                .layers
                .iter()
                .all(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].into_iter().all(plain))
    }

    fn head_sizes(&self) -> Heads {
        let config = &self.config;
        Heads { h: config.num_attention_heads, k: config.num_key_value_heads, e: config.head_dim }
    }

    /// A layer's input `[N, D]` to what its backward pass needs and the next layer's input.
    pub(crate) fn rounded_layer(
        &self,
        weights: &LayerWeights,
        input: Tensor,
        batch: &PackedBatch,
        rotation: &Rotation,
    ) -> (RoundedLayer, Tensor) {
        let dev = &self.device;
        let [q, k, v] = self.rounded_heads(weights, &input, rotation);
        let (o, lse) =
            ops::attention_rounded(dev, [&q, &k, &v], self.head_sizes(), &batch.plan, self.attention_scale());
        lap("attention");
        let (mid, SwigluRounded { product, gate, up }) = self.rounded_gates(weights, &input, &o);
        let next = ops::linear_rounded_onto(dev, &product, &weights.down, &mid);
        lap("feed-forward");
        (RoundedLayer { input, mid, lse, q, k, v, o, gate, up }, next)
    }

    /// What of a layer was not kept.
    pub(crate) fn rounded_layer_again(
        &self,
        weights: &LayerWeights,
        kept: RoundedInput,
        rotation: &Rotation,
    ) -> RoundedLayer {
        let RoundedInput { input, lse, o } = kept;
        let [q, k, v] = self.rounded_heads(weights, &input, rotation);
        let (mid, SwigluRounded { gate, up, .. }) = self.rounded_gates(weights, &input, &o);
        RoundedLayer { input, mid, lse, q, k, v, o, gate, up }
    }

    /// A layer's input to rotated q and k, and v.
    fn rounded_heads(&self, weights: &LayerWeights, input: &Tensor, rotation: &Rotation) -> [Rounded; 3] {
        let (dev, eps) = (&self.device, self.config.rms_norm_eps);
        let (normed, _) = ops::rms_norm_rounded(dev, input, &weights.input_norm, eps);
        lap("norms");
        let qkv = ops::linears_rounded(dev, &normed, &[&weights.q, &weights.k, &weights.v]);
        drop(normed);
        lap("projections");
        let [q, k] = [&qkv[0], &qkv[1]].map(|x| ops::rope_rounded(dev, x, rotation, false));
        let v = Rounded::new(dev, &qkv[2]);
        lap("rotation");
        [q, k, v]
    }

    /// A layer's input and its attention's output to `mid` and what the last product reads.
    fn rounded_gates(&self, weights: &LayerWeights, input: &Tensor, o: &Rounded) -> (Tensor, SwigluRounded) {
        let (dev, eps) = (&self.device, self.config.rms_norm_eps);
        let mid = ops::linear_rounded_onto(dev, o, &weights.o, input);
        lap("projections");
        let (normed, _) = ops::rms_norm_rounded(dev, &mid, &weights.post_norm, eps);
        lap("norms");
        let both = ops::linears_rounded(dev, &normed, &[&weights.gate, &weights.up]);
        drop(normed);
        lap("feed-forward");
        let gates = ops::swiglu_rounded(dev, &both[0], &both[1]);
        lap("activation");
        (mid, gates)
    }

    /// From the gradient of the layer's output, f32 and rounded, to that of its input.
    pub(crate) fn rounded_backward(
        &self,
        weights: &LayerWeights,
        kept: RoundedLayer,
        (dx, dx_rounded): (Tensor, Rounded),
        (batch, rotation): (&PackedBatch, &Rotation),
        layer: &mut LayerGrads<'_>,
    ) -> (Tensor, Rounded) {
        let dev = &self.device;
        let RoundedLayer { input, mid, lse, q, k, v, o, gate, up } = kept;
        let (dmid, dmid_rounded) = self.rounded_feed_forward(weights, (mid, gate, up), (dx, dx_rounded), layer);
        let [(dw, fresh)] = layer.parts([Part::Output]);
        ops::grad_weights_rounded(dev, &o, &mut [(&dmid_rounded, dw, fresh)]);
        let dout = ops::grad_input_rounded(dev, &[(&dmid_rounded, &weights.o)]);
        drop(dmid_rounded);
        lap("projections backward");
        let dout = Rounded::new(dev, &dout);
        let inputs = RoundedAttention { q: &q, k: &k, v: &v, o: &o, lse: &lse, heads: self.head_sizes() };
        let [dq, dk, dv] = ops::attention_rounded_backward(dev, &dout, &inputs, &batch.plan, self.attention_scale());
        drop((dout, q, k, v, o, lse));
        lap("attention backward");
        self.rounded_projections(weights, input, [dq, dk, dv], rotation, dmid, layer)
    }

    /// From the gradient of the layer's output to that of `mid`.
    fn rounded_feed_forward(
        &self,
        weights: &LayerWeights,
        (mid, gate, up): (Tensor, Rounded, Rounded),
        (mut dx, dx_rounded): (Tensor, Rounded),
        layer: &mut LayerGrads<'_>,
    ) -> (Tensor, Rounded) {
        let (dev, eps) = (&self.device, self.config.rms_norm_eps);
        let dproduct = ops::grad_input_rounded(dev, &[(&dx_rounded, &weights.down)]);
        lap("feed-forward backward");
        let [dgate, dup, product] = ops::swiglu_rounded_backward(dev, &dproduct, &gate, &up);
        drop((dproduct, gate, up));
        lap("activation backward");
        let [(dw, fresh)] = layer.parts([Part::Down]);
        ops::grad_weights_rounded(dev, &product, &mut [(&dx_rounded, dw, fresh)]);
        drop((product, dx_rounded));
        lap("feed-forward backward");
        let (normed, rstd) = ops::rms_norm_rounded(dev, &mid, &weights.post_norm, eps);
        lap("norms backward");
        let [(dw_gate, fresh_gate), (dw_up, fresh_up)] = layer.parts([Part::Gate, Part::Up]);
        ops::grad_weights_rounded(dev, &normed, &mut [(&dgate, dw_gate, fresh_gate), (&dup, dw_up, fresh_up)]);
        drop(normed);
        let dnormed = ops::grad_input_rounded(dev, &[(&dgate, &weights.gate), (&dup, &weights.up)]);
        drop((dgate, dup));
        lap("feed-forward backward");
        let norm = (&mid, &weights.post_norm, &rstd);
        let rounded = ops::rms_norm_backward_onto(dev, &dnormed, norm, layer.norm(Part::PostNorm), &mut dx);
        lap("norms backward");
        (dx, rounded)
    }

    /// From the gradients of rotated q and k and of v to that of the layer's input, to which `dx` already leads around the attention.
    fn rounded_projections(
        &self,
        weights: &LayerWeights,
        input: Tensor,
        [dq, dk, dv]: [Tensor; 3],
        rotation: &Rotation,
        mut dx: Tensor,
        layer: &mut LayerGrads<'_>,
    ) -> (Tensor, Rounded) {
        let (dev, eps) = (&self.device, self.config.rms_norm_eps);
        let [dq, dk] = [dq, dk].map(|dx| ops::rope_rounded(dev, &dx, rotation, true));
        let dv = Rounded::new(dev, &dv);
        for (dy, bias) in [(&dq, Part::QueryBias), (&dk, Part::KeyBias), (&dv, Part::ValueBias)] {
            if let Some(db) = layer.bias(bias) {
                ops::grad_bias_rounded(dev, dy, db);
            }
        }
        lap("rotation backward");
        let (normed, rstd) = ops::rms_norm_rounded(dev, &input, &weights.input_norm, eps);
        lap("norms backward");
        let [(dw_q, fresh_q), (dw_k, fresh_k), (dw_v, fresh_v)] = layer.parts([Part::Query, Part::Key, Part::Value]);
        ops::grad_weights_rounded(
            dev,
            &normed,
            &mut [(&dq, dw_q, fresh_q), (&dk, dw_k, fresh_k), (&dv, dw_v, fresh_v)],
        );
        drop(normed);
        let dnormed = ops::grad_input_rounded(dev, &[(&dq, &weights.q), (&dk, &weights.k), (&dv, &weights.v)]);
        lap("projections backward");
        let norm = (&input, &weights.input_norm, &rstd);
        let rounded = ops::rms_norm_backward_onto(dev, &dnormed, norm, layer.norm(Part::InputNorm), &mut dx);
        lap("norms backward");
        (dx, rounded)
    }
}
