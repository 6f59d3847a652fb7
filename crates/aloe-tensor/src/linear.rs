//! A weight matrix as the kernels want it: packed once, multiplied often.

use crate::reference;
use crate::{Device, Dtype, Tensor};

/// The weight `[O, K]` and bias of `y = x W^T + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From a weight `[O, K]`, f32 or bf16, and an optional f32 bias `[O]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        assert_eq!(weight.shape().len(), 2, "weight {:?}", weight.shape());
        if let Some(bias) = &bias {
            assert_eq!(bias.shape(), &weight.shape()[..1], "bias against weight {:?}", weight.shape());
        }
        Self { weight, bias: bias.map(|b| b.cast(Dtype::F32)) }
    }

    /// O, the number of rows of the weight.
    pub fn out_features(&self) -> usize {
        self.weight.shape()[0]
    }

    /// K, the number of columns of the weight.
    pub fn in_features(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Type of the operands of the product.
    pub fn dtype(&self) -> Dtype {
        self.weight.dtype()
    }

    /// The bias `[O]`, f32.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// A copy of the weight `[O, K]`, unpacked.
    pub fn weight(&self) -> Tensor {
        self.weight.clone()
    }

    /// Rows of the weight as f32 `[N, K]`: the embedding of `ids` when the head is tied to it.
    pub fn rows(&self, _device: &Device, ids: &[u32]) -> Tensor {
        let rows: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
        self.weight.gather_rows(&rows).cast(Dtype::F32)
    }

    /// Replaces the weight by f32 masters `[O * K]`, rounded to this layer's type, packing included.
    pub fn update_from_f32(&mut self, _device: &Device, masters: &[f32]) {
        let shape = self.weight.shape().to_vec();
        self.weight = Tensor::from_f32(&shape, masters.to_vec()).cast(self.dtype());
    }

    /// Replaces the bias `[O]`.
    pub fn set_bias(&mut self, bias: &[f32]) {
        assert_eq!(bias.len(), self.out_features());
        self.bias = Some(Tensor::from_f32(&[bias.len()], bias.to_vec()));
    }

    pub(crate) fn reference(&self) -> reference::Matrix {
        reference::Matrix { rows: self.out_features(), columns: self.in_features(), data: self.weight.to_f32_vec() }
    }
}
