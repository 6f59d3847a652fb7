//! A weight matrix as the kernels want it: packed once, multiplied often.
//!
//! The packed form serves `linear` and the row lookup of a tied embedding; the form for `linear_grad_input` is packed at its
//! first use and kept. There is no third copy: `weight` unpacks.

use crate::pack::{Panels, Source};
use crate::pool::SharedMut;
use crate::tensor::f32_from_bf16;
use crate::{Device, Dtype, Tensor};
use std::sync::OnceLock;

/// The weight `[O, K]` and bias of `y = x W^T + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    out_features: usize,
    in_features: usize,
    forward: Panels,            // lanes O, units over K
    backward: OnceLock<Panels>, // lanes K, units over O
    bias: Option<Tensor>,       // [O] f32
}

impl Linear {
    /// From a weight `[O, K]`, f32 or bf16, and an optional bias `[O]`; packs on this thread.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::new_on(&Device::cpu(1), weight, bias)
    }

    /// The same, packing on the device's threads.
    pub fn new_on(device: &Device, weight: Tensor, bias: Option<Tensor>) -> Self {
        let &[out_features, in_features] = weight.shape() else { panic!("weight {:?}", weight.shape()) };
        if let Some(bias) = &bias {
            assert_eq!(bias.shape(), [out_features], "bias against weight {:?}", weight.shape());
        }
        let mut forward = Panels::new(weight.dtype(), out_features, in_features);
        forward.fill_from_rows(device, source(&weight), in_features);
        let bias = bias.map(|b| b.cast(Dtype::F32));
        Self { out_features, in_features, forward, backward: OnceLock::new(), bias }
    }

    /// O, the number of rows of the weight.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// K, the number of columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Type of the operands of the product.
    pub fn dtype(&self) -> Dtype {
        self.forward.dtype
    }

    /// The bias `[O]`, f32.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// A copy of the weight `[O, K]`, unpacked.
    pub fn weight(&self) -> Tensor {
        let shape = [self.out_features, self.in_features];
        let lanes = 0..self.out_features;
        match self.dtype() {
            Dtype::F32 => {
                Tensor::from_f32(&shape, lanes.flat_map(|o| self.forward.lane_units(o)).map(f32::from_bits).collect())
            }
            Dtype::Bf16 => {
                let row =
                    |o| self.forward.lane_units(o).flat_map(|u| [u as u16, (u >> 16) as u16]).take(self.in_features);
                Tensor::from_bf16_bits(&shape, lanes.flat_map(row).collect())
            }
        }
    }

    /// Rows of the weight as f32 `[N, K]`: the embedding of `ids` when the head is tied to it.
    pub fn rows(&self, device: &Device, ids: &[u32]) -> Tensor {
        let k = self.in_features;
        let mut out = vec![0.0f32; ids.len() * k];
        let rows = SharedMut::new(&mut out);
        device.for_each(ids.len(), &|n| {
            // SAFETY: each index has its own row.
            let row = unsafe { rows.slice(n * k, k) };
            assert!((ids[n] as usize) < self.out_features, "id {} of {} rows", ids[n], self.out_features);
            let units = self.forward.lane_units(ids[n] as usize);
            match self.dtype() {
                Dtype::F32 => row.iter_mut().zip(units).for_each(|(r, u)| *r = f32::from_bits(u)),
                Dtype::Bf16 => row.chunks_mut(2).zip(units).for_each(|(r, u)| {
                    r[0] = f32_from_bf16(u as u16);
                    if let Some(r) = r.get_mut(1) {
                        *r = f32_from_bf16((u >> 16) as u16);
                    }
                }),
            }
        });
        Tensor::from_f32(&[ids.len(), k], out)
    }

    /// Replaces the weight by f32 masters `[O * K]`, rounded to this layer's type, packing included.
    pub fn update_from_f32(&mut self, device: &Device, masters: &[f32]) {
        self.forward.fill_from_rows(device, Source::F32(masters), self.in_features);
        if let Some(backward) = self.backward.get_mut() {
            backward.fill_from_columns(device, Source::F32(masters), self.out_features);
        }
    }

    /// Replaces the bias `[O]`.
    pub fn set_bias(&mut self, bias: &[f32]) {
        assert_eq!(bias.len(), self.out_features);
        self.bias = Some(Tensor::from_f32(&[bias.len()], bias.to_vec()));
    }

    pub(crate) fn forward(&self) -> &Panels {
        &self.forward
    }

    pub(crate) fn backward(&self, device: &Device) -> &Panels {
        self.backward.get_or_init(|| {
            let mut panels = Panels::new(self.dtype(), self.in_features, self.out_features);
            panels.fill_from_columns(device, source(&self.weight()), self.out_features);
            panels
        })
    }
}

fn source(tensor: &Tensor) -> Source<'_> {
    match tensor.dtype() {
        Dtype::F32 => Source::F32(tensor.as_f32()),
        Dtype::Bf16 => Source::Bf16(tensor.as_bf16_bits()),
    }
}
