//! A decoder ready to run: config, shared weights, device, RoPE frequencies; logits and log-probabilities from hidden states.
//!
//! `forward` turns a packed batch into hidden states, `kv` does so with caches, `backward` turns gradients back. Ids outside
//! the vocabulary and texts beyond the context are refused where they enter.

use crate::config::{Config, RopeScaling};
use crate::params::{Grads, Params};
use crate::source::ModelSource;
use crate::weight_format::WeightFormat;
use crate::weights::Weights;
use crate::{Result, Role};
use aloe_tensor::{CrossEntropy, CrossEntropyInputs, Device, Dtype, RopeTable, Tensor, ops};
use std::sync::Arc;

/// A model of the Llama family on a device.
#[derive(Clone)]
pub struct Decoder {
    /// Hyperparameters.
    pub config: Config,
    /// Weights; clones of the decoder share them.
    pub weights: Arc<Weights>,
    /// Who computes.
    pub device: Device,
    /// Operand type of the matrix products.
    pub dtype: Dtype,
    pub(crate) rope: RopeTable,
}

/// Log-probabilities of chosen tokens at chosen rows of a forward pass.
#[derive(Clone, Debug)]
pub struct TokenLogps {
    /// Rows of the hidden states, those that predict `[R]`.
    pub rows: Vec<usize>,
    /// The predicted tokens `[R]`.
    pub targets: Vec<u32>,
    /// Natural log-probability of each target `[R]`.
    pub logps: Vec<f32>,
    /// The most probable token `[R]`, the first of equals.
    pub argmax: Vec<u32>,
    lse: Vec<f32>,
}

impl Decoder {
    /// Loads a checkpoint folder or GGUF file.
    pub fn open(source: &ModelSource, dtype: Dtype, device: &Device) -> Result<Self> {
        Self::open_as(source, WeightFormat::Dense(dtype), device)
    }

    /// The same with the weights in a form of their own: for inference in blocks.
    pub fn open_as(source: &ModelSource, format: WeightFormat, device: &Device) -> Result<Self> {
        let weights = Weights::load_as(source, format, device)?;
        Ok(Self::new(source.config().clone(), weights, format.dtype(), device))
    }

    /// The same for weights that training goes on from, as [`Weights::load_to_train`] holds them.
    pub fn open_to_train(source: &ModelSource, format: WeightFormat, device: &Device) -> Result<Self> {
        let weights = Weights::load_to_train(source, format, device)?;
        Ok(Self::new(source.config().clone(), weights, format.dtype(), device))
    }

    /// The same for a model that is never trained, with the weights as [`Weights::load_to_answer`] holds them.
    pub fn open_to_answer(source: &ModelSource, format: WeightFormat, device: &Device) -> Result<Self> {
        let weights = Weights::load_to_answer(source, format, device)?;
        Ok(Self::new(source.config().clone(), weights, format.dtype(), device))
    }

    /// A decoder over given weights.
    pub fn new(config: Config, weights: Weights, dtype: Dtype, device: &Device) -> Self {
        let rope = RopeTable::new(inv_freq(&config));
        Self { config, weights: Arc::new(weights), device: device.clone(), dtype, rope }
    }

    /// A decoder over compute copies of master weights.
    pub fn from_params(params: &Params, dtype: Dtype, device: &Device) -> Self {
        Self::new(params.config.clone(), Weights::from_params(params, dtype, device), dtype, device)
    }

    /// Takes over changed masters. Other decoders that shared the weights keep the old ones.
    pub fn refresh(&mut self, params: &Params) {
        Arc::make_mut(&mut self.weights).refresh(&self.device, params);
    }

    /// The same for the master at `at` of the table alone.
    pub fn refresh_at(&mut self, params: &Params, at: usize) {
        Arc::make_mut(&mut self.weights).refresh_at(&self.device, params, at);
    }

    /// Logits `[R, V]` of hidden states `[R, D]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        ops::linear(&self.device, hidden, &self.weights.head)
    }

    /// Log-probabilities of `targets[i]` predicted at `rows[i]` of `hidden` `[N, D]`; the logits are never held at once.
    pub fn token_logps(&self, hidden: &Tensor, rows: Vec<usize>, targets: Vec<u32>) -> TokenLogps {
        assert_eq!(rows.len(), targets.len(), "rows against targets");
        let picked = hidden.gather_rows(&rows);
        let CrossEntropy { logps, lse, argmax } =
            ops::cross_entropy(&self.device, &picked, &self.weights.head, &targets);
        TokenLogps { rows, targets, logps, argmax, lse }
    }

    /// Gradient of the hidden states `[N, D]` from the gradients of `logps` `[R]`; adds the head's gradient to `grads` where it
    /// is trained.
    pub fn token_logps_backward(
        &self,
        hidden: &Tensor,
        found: &TokenLogps,
        dlogps: &[f32],
        grads: &mut Grads,
    ) -> Tensor {
        assert_eq!(found.rows.len(), dlogps.len(), "rows against gradients");
        let picked = hidden.gather_rows(&found.rows);
        let mut dpicked = Tensor::zeros(picked.shape(), Dtype::F32);
        let inputs = CrossEntropyInputs { targets: &found.targets, lse: &found.lse, dlogps };
        let dhead = grads.fresh_if_any(self.head_role());
        ops::cross_entropy_backward(&self.device, &picked, &self.weights.head, &inputs, &mut dpicked, dhead);
        scattered(hidden, &found.rows, &dpicked)
    }

    /// [`Self::token_logps`] and [`Self::token_logps_backward`] in one, bit for bit, for gradients `dlogps` `[R]` that do not depend on
    /// the log-probabilities: the logits are computed once.
    pub fn token_logps_at_once(
        &self,
        hidden: &Tensor,
        (rows, targets): (Vec<usize>, Vec<u32>),
        dlogps: &[f32],
        grads: &mut Grads,
    ) -> (TokenLogps, Tensor) {
        let picked = hidden.gather_rows(&rows);
        let mut dpicked = Tensor::zeros(picked.shape(), Dtype::F32);
        let dhead = grads.fresh_if_any(self.head_role());
        let found = (targets.as_slice(), dlogps);
        let CrossEntropy { logps, lse, argmax } =
            ops::cross_entropy_at_once(&self.device, &picked, &self.weights.head, found, &mut dpicked, dhead);
        let dhidden = scattered(hidden, &rows, &dpicked);
        (TokenLogps { rows, targets, logps, argmax, lse }, dhidden)
    }

    /// Whose gradient is the head's.
    fn head_role(&self) -> Role {
        if self.config.tie_word_embeddings { Role::Embed } else { Role::Head }
    }

    /// `1 / sqrt(E)`.
    pub(crate) fn attention_scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }
}

/// Zeros of `hidden`'s shape with the rows of `dpicked` added at `rows`.
fn scattered(hidden: &Tensor, rows: &[usize], dpicked: &Tensor) -> Tensor {
    let mut dhidden = Tensor::zeros(hidden.shape(), Dtype::F32);
    let (d, out) = (hidden.shape()[1], dhidden.as_f32_mut());
    for (row, from) in rows.iter().zip(dpicked.as_f32().chunks_exact(d)) {
        out[row * d..(row + 1) * d].iter_mut().zip(from).for_each(|(o, g)| *o += g);
    }
    dhidden
}

/// Inverse frequencies `[E/2]` in radians per position, in f32 as `ROPE_INIT_FUNCTIONS` of transformers computes them.
pub fn inv_freq(config: &Config) -> Vec<f32> {
    let e = config.head_dim;
    let plain = |i: usize| {
        let exponent = (2 * i) as f32 / e as f32;
        1.0_f32 / config.rope_theta.powf(f64::from(exponent)) as f32
    };
    let mut table: Vec<f32> = (0..e / 2).map(plain).collect();
    match config.rope_scaling {
        None => {}
        Some(RopeScaling::Linear { factor }) => table.iter_mut().for_each(|f| *f /= factor as f32),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
            let stretch = Llama3 {
                factor: factor as f32,
                low: low_freq_factor as f32,
                high: high_freq_factor as f32,
                original: original_max_position_embeddings as f32,
            };
            table.iter_mut().for_each(|f| *f = stretch.apply(*f));
        }
    }
    table
}

struct Llama3 {
    factor: f32,
    low: f32,
    high: f32,
    original: f32,
}

impl Llama3 {
    /// Low frequencies divided by the factor, high ones kept, those between interpolated.
    fn apply(&self, f: f32) -> f32 {
        let wavelength = 2.0 * std::f32::consts::PI / f;
        if wavelength > self.original / self.low {
            f / self.factor
        } else if wavelength < self.original / self.high {
            f
        } else {
            let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * f / self.factor + smooth * f
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Tiny, tiny_config};

    fn table(theta: f64, scaling: Option<RopeScaling>) -> Vec<f32> {
        let mut config = tiny_config(Tiny::Llama);
        (config.head_dim, config.rope_theta, config.rope_scaling) = (4, theta, scaling);
        inv_freq(&config)
    }

    /// Worked by hand: E = 4, theta = 6.25 gives 1 and 6.25^-0.5 = 0.4; wavelengths 6.283 and 15.708.
    #[test]
    fn frequencies_are_stretched_as_worked_by_hand() {
        let close =
            |a: Vec<f32>, b: [f32; 2]| assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?}, {b:?}");
        close(table(6.25, None), [1.0, 0.4]);
        close(table(6.25, Some(RopeScaling::Linear { factor: 2.0 })), [0.5, 0.2]);
        let llama3 = |original| RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: original,
        };
        // Original 32: 6.283 < 32/4 is kept; 15.708 lies between 8 and 32: smooth = (32/15.708 - 1)/3 = 0.345727, and
        // 0.654273 * 0.4/8 + 0.345727 * 0.4 = 0.171004.
        close(table(6.25, Some(llama3(32))), [1.0, 0.171_004]);
        // Original 6: both wavelengths are above 6/1, so both are divided by 8.
        close(table(6.25, Some(llama3(6))), [0.125, 0.05]);
    }
}
