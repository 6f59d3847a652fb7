//! The forward pass over a packed batch: for inference, and keeping what the backward pass needs.
//!
//! Pre-norm layers as in Llama: `x += o(attention(rope(q), rope(k), v))`, `x += down(silu(gate) * up)`, both on RMS-normed x.
//! Nothing of size T x T or N x V is ever held. In bf16 the layers are those of `rounded`, which round each operand once and keep it.

use crate::Result;
use crate::batch::PackedBatch;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::rounded::{RoundedInput, RoundedLayer};
use crate::weights::LayerWeights;
use aloe_tensor::{Dtype, Linear, Rotation, Rounded, Tensor, lap, ops};

/// What the backward pass needs of one forward pass.
pub struct Activations {
    /// The batch that was run.
    pub batch: PackedBatch,
    /// After the final norm, `[N, D]`.
    pub hidden: Tensor,
    /// Before the final norm, `[N, D]`.
    pub(crate) last: Tensor,
    /// `1 / rms` of `last` `[N]`.
    pub(crate) last_rstd: Tensor,
    pub(crate) layers: Vec<Kept>,
}

/// What of a layer is kept for its backward pass.
pub(crate) enum Kept {
    /// All in f32.
    Whole(LayerActivations),
    /// In bf16 what only bf16 products read.
    Rounded(RoundedLayer),
    /// The layer's input `[N, D]`: the rest is computed again.
    Input(Tensor),
    /// The same in bf16, with what attention gave.
    RoundedInput(RoundedInput),
}

impl Kept {
    /// Without what is computed again.
    fn into_input(self) -> Self {
        match self {
            Self::Whole(layer) => Self::Input(layer.input),
            Self::Rounded(layer) => Self::RoundedInput(layer.into_input()),
            input => input,
        }
    }
}

/// How much memory a training pass may take for its activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All that the backward pass needs.
    #[default]
    All,
    /// Each layer's input, in bf16 also its attention's output: up to a third more time, the same bits.
    Inputs,
}

/// One layer's part in f32; the normed inputs and the SwiGLU product are computed again where they are needed.
pub(crate) struct LayerActivations {
    pub(crate) input: Tensor, // [N, D]
    pub(crate) q: Tensor,     // [N, H, E], rotated
    pub(crate) k: Tensor,     // [N, K, E], rotated
    pub(crate) v: Tensor,     // [N, K, E]
    pub(crate) o: Tensor,     // [N, H, E]
    pub(crate) lse: Tensor,   // [N, H]
    pub(crate) mid: Tensor,   // [N, D], after attention
    pub(crate) gate: Tensor,  // [N, F]
    pub(crate) up: Tensor,    // [N, F]
}

impl Activations {
    /// Bytes that a token's activations take in a decoder of `config` that computes in `dtype`, all weights being plain.
    pub fn bytes_per_token(config: &Config, dtype: Dtype, keep: Keep) -> usize {
        let d = config.hidden_size;
        let row = |width: usize| if dtype == Dtype::Bf16 { Rounded::row_bytes(width) } else { 4 * width };
        // q and o, k and v, gate and up: what only products read.
        let heads = row(config.num_attention_heads * config.head_dim);
        let key_heads = row(config.num_key_value_heads * config.head_dim);
        let operands = 2 * (heads + key_heads + row(config.intermediate_size));
        let lse = 4 * config.num_attention_heads;
        let layer = match keep {
            Keep::Inputs if dtype == Dtype::Bf16 => 4 * d + lse + heads,
            Keep::Inputs => 4 * d,
            Keep::All => 4 * 2 * d + lse + operands,
        };
        config.num_hidden_layers * layer + 8 * d
    }

    /// Bytes held.
    pub fn nbytes(&self) -> usize {
        let layer = |kept: &Kept| match kept {
            Kept::Whole(l) => {
                let all = [&l.input, &l.q, &l.k, &l.v, &l.o, &l.lse, &l.mid, &l.gate, &l.up];
                all.iter().map(|t| t.nbytes()).sum::<usize>()
            }
            Kept::Rounded(layer) => layer.nbytes(),
            Kept::Input(input) => input.nbytes(),
            Kept::RoundedInput(layer) => layer.nbytes(),
        };
        self.hidden.nbytes() + self.last.nbytes() + self.layers.iter().map(layer).sum::<usize>()
    }
}

impl Decoder {
    /// Hidden states after the final norm, `[N, D]` f32.
    pub fn hidden(&self, batch: &PackedBatch) -> Result<Tensor> {
        batch.check(self.config.vocab_size, self.config.max_position_embeddings)?;
        let mut x = self.weights.embedding(&self.device, &batch.ids);
        let rotation = self.rope.rotation(&self.device, &batch.positions);
        let rounds_once = self.rounds_once();
        for layer in &self.weights.layers {
            if rounds_once {
                x = self.rounded_layer(layer, x, batch, &rotation).1;
                continue;
            }
            let (q, k, v) = self.project(layer, &x, &rotation);
            let (o, _) = ops::attention(&self.device, &q, &k, &v, &batch.plan, self.attention_scale());
            x = self.after_attention(layer, o, x, &[]);
        }
        Ok(self.final_norm(&x).0)
    }

    /// The same hidden states, with what `backward` needs.
    pub fn forward_train(&self, mut batch: PackedBatch, keep: Keep) -> Result<Activations> {
        batch.check(self.config.vocab_size, self.config.max_position_embeddings)?;
        let mut x = self.weights.embedding(&self.device, &batch.ids);
        if let Some(noise) = batch.noise.take() {
            ops::add_in_place(&self.device, &mut x, &noise);
        }
        let rotation = self.rope.rotation(&self.device, &batch.positions);
        lap("embedding");
        let mut layers = Vec::with_capacity(self.weights.layers.len());
        for weights in &self.weights.layers {
            let (kept, next) = self.layer_kept(weights, x, &batch, &rotation);
            layers.push(if keep == Keep::Inputs { kept.into_input() } else { kept });
            x = next;
        }
        let (hidden, last_rstd) = self.final_norm(&x);
        lap("norms");
        Ok(Activations { batch, hidden, last: x, last_rstd, layers })
    }

    /// A layer's input to what its backward pass needs and the next layer's input.
    pub(crate) fn layer_kept(
        &self,
        weights: &LayerWeights,
        input: Tensor,
        batch: &PackedBatch,
        rotation: &Rotation,
    ) -> (Kept, Tensor) {
        if self.rounds_once() {
            let (kept, next) = self.rounded_layer(weights, input, batch, rotation);
            return (Kept::Rounded(kept), next);
        }
        let (kept, next) = self.layer_train(weights, input, batch, rotation);
        (Kept::Whole(kept), next)
    }

    fn layer_train(
        &self,
        weights: &LayerWeights,
        input: Tensor,
        batch: &PackedBatch,
        rotation: &Rotation,
    ) -> (LayerActivations, Tensor) {
        let (q, k, v) = self.project(weights, &input, rotation);
        let (o, lse) = ops::attention(&self.device, &q, &k, &v, &batch.plan, self.attention_scale());
        let o = self.flat(o);
        let mid = ops::linear_add(&self.device, &o, &weights.o, &input);
        let (gate, up) = self.gate_up(weights, &mid);
        let next = ops::swiglu_linear_add(&self.device, &gate, &up, &weights.down, &mid);
        let o = self.heads(o, self.config.num_attention_heads);
        (LayerActivations { input, q, k, v, o, lse, mid, gate, up }, next)
    }

    /// Rotated q `[N, H, E]`, rotated k and v `[N, K, E]` of x `[N, D]`.
    pub(crate) fn project(&self, layer: &LayerWeights, x: &Tensor, rotation: &Rotation) -> (Tensor, Tensor, Tensor) {
        let dev = &self.device;
        let (h, kv) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let (norm, eps) = (&layer.input_norm, self.config.rms_norm_eps);
        let mut qkv = ops::norm_linears(dev, x, norm, eps, &[&layer.q, &layer.k, &layer.v]).into_iter();
        let mut next = |n_heads| self.heads(qkv.next().expect("three layers give three outputs"), n_heads);
        let (mut q, mut k, v) = (next(h), next(kv), next(kv));
        lap("projections");
        ops::rope(dev, &mut q, rotation);
        ops::rope(dev, &mut k, rotation);
        lap("rotation");
        (q, k, v)
    }

    /// [`Self::project`] with q of rows `wanted` alone.
    pub(crate) fn project_for(
        &self,
        layer: &LayerWeights,
        x: &Tensor,
        rotation: &Rotation,
        wanted: &[usize],
    ) -> (Tensor, Tensor, Tensor) {
        let (dev, kv) = (&self.device, self.config.num_key_value_heads);
        let (norm, eps) = (&layer.input_norm, self.config.rms_norm_eps);
        let project = |x: &Tensor, layers: &[&Linear]| ops::norm_linears(dev, x, norm, eps, layers);
        let mut q = project(&x.gather_rows(wanted), &[&layer.q]).into_iter();
        let mut both = project(x, &[&layer.k, &layer.v]).into_iter();
        let next = |all: &mut std::vec::IntoIter<Tensor>, n_heads| {
            self.heads(all.next().expect("each layer gives an output"), n_heads)
        };
        let mut q = next(&mut q, self.config.num_attention_heads);
        let (mut k, v) = (next(&mut both, kv), next(&mut both, kv));
        ops::rope(dev, &mut q, &rotation.gather_rows(wanted));
        ops::rope(dev, &mut k, rotation);
        (q, k, v)
    }

    /// The rest of a layer for inference: o `[N, H, E]` and the layer's input `[N, D]` to the next layer's input, whose first products will
    /// be of the layers `next`.
    pub(crate) fn after_attention(&self, layer: &LayerWeights, o: Tensor, input: Tensor, next: &[&Linear]) -> Tensor {
        self.expect(&input, &[&layer.gate, &layer.up]);
        let mid = ops::linear_add(&self.device, &self.flat(o), &layer.o, &input);
        drop(input);
        lap("output");
        self.feed_forward(layer, mid, next)
    }

    /// What follows attention over rows of which there are many: o `[N, H*E]` rounded once for a plain layer in bf16.
    pub(crate) fn after_rounded_attention(&self, layer: &LayerWeights, o: &Rounded, input: Tensor) -> Tensor {
        let mid = ops::linear_rounded_onto(&self.device, o, &layer.o, &input);
        drop(input);
        lap("output");
        self.feed_forward(layer, mid, &[])
    }

    /// A layer's second half.
    fn feed_forward(&self, layer: &LayerWeights, mid: Tensor, next: &[&Linear]) -> Tensor {
        let dev = &self.device;
        let (norm, layers) = ((&layer.post_norm, self.config.rms_norm_eps), [&layer.gate, &layer.up, &layer.down]);
        if let Some(next) = ops::norm_swiglu_linear_add(dev, &mid, norm, layers) {
            lap("feed-forward");
            return next;
        }
        self.expect(&mid, &[&layer.down]);
        let (gate, up) = self.gate_up(layer, &mid);
        self.expect(&mid, next);
        ops::swiglu_linear_add(dev, &gate, &up, &layer.down, &mid)
    }

    /// Rows whose products wait for memory.
    pub(crate) const FEW_ROWS: usize = 8;

    /// Says of which layers the product after the next is, when x `[N, ..]` has few rows.
    pub(crate) fn expect(&self, x: &Tensor, layers: &[&Linear]) {
        if x.shape()[0] <= Self::FEW_ROWS && !layers.is_empty() {
            ops::expect_layers(&self.device, layers);
        }
    }

    /// The final norm's output `[N, D]` and `1 / rms` `[N]`.
    pub(crate) fn final_norm(&self, x: &Tensor) -> (Tensor, Tensor) {
        ops::rms_norm(&self.device, x, &self.weights.norm, self.config.rms_norm_eps)
    }

    fn gate_up(&self, layer: &LayerWeights, mid: &Tensor) -> (Tensor, Tensor) {
        let (norm, eps) = (&layer.post_norm, self.config.rms_norm_eps);
        let mut both = ops::norm_linears(&self.device, mid, norm, eps, &[&layer.gate, &layer.up]);
        let up = both.pop().expect("two layers give two outputs");
        (both.pop().expect("two layers give two outputs"), up)
    }

    pub(crate) fn heads(&self, x: Tensor, n_heads: usize) -> Tensor {
        let n = x.shape()[0];
        x.reshape(&[n, n_heads, self.config.head_dim])
    }

    /// `[N, H, E]` as `[N, H*E]`.
    pub(crate) fn flat(&self, x: Tensor) -> Tensor {
        let shape = [x.shape()[0], x.shape()[1..].iter().product()];
        x.reshape(&shape)
    }
}
