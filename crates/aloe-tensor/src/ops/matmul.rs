//! The products of a linear layer: output, gradient of the input, gradient of the weight.
//!
//! bf16 layers round both operands to bf16 and sum in f32; f32 layers stay f32. Each output element is one f32 chain over
//! the summed axis in index order, whatever the number of rows or threads.

use crate::ops::rows_of;
use crate::reference::Matrix;
use crate::{Device, Dtype, Linear, Tensor};

/// `y = x W^T + b`: x `[N, K]` to `[N, O]`.
pub fn linear(_device: &Device, x: &Tensor, layer: &Linear) -> Tensor {
    let (n, k) = rows_of(x);
    assert_eq!(k, layer.in_features(), "input {:?} of a layer", x.shape());
    let mut y = Matrix::new(n, k, x.as_f32()).rounded(layer.dtype()).times_transposed(&layer.reference()).data;
    if let Some(bias) = layer.bias() {
        for row in y.chunks_mut(layer.out_features()) {
            row.iter_mut().zip(bias.as_f32()).for_each(|(y, b)| *y += b);
        }
    }
    Tensor::from_f32(&[n, layer.out_features()], y)
}

/// `dx = dy W`: dy `[N, O]` to `[N, K]`.
pub fn linear_grad_input(_device: &Device, dy: &Tensor, layer: &Linear) -> Tensor {
    let (n, o) = rows_of(dy);
    assert_eq!(o, layer.out_features(), "gradient {:?} of a layer", dy.shape());
    let dx = Matrix::new(n, o, dy.as_f32()).rounded(layer.dtype()).times_transposed(&layer.reference().transposed());
    Tensor::from_f32(&[n, layer.in_features()], dx.data)
}

/// `dw += dy^T x` (`[O, K]`, operands rounded to `compute`) and `db += sum of dy's rows`, in row order.
pub fn linear_grad_weight(
    _device: &Device,
    dy: &Tensor,
    x: &Tensor,
    compute: Dtype,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
) {
    let ((n, o), (n_x, k)) = (rows_of(dy), rows_of(x));
    assert_eq!((n, dw.shape()), (n_x, &[o, k][..]), "dy {:?}, x {:?}, dw {:?}", dy.shape(), x.shape(), dw.shape());
    let a = Matrix::new(n, o, dy.as_f32()).rounded(compute).transposed();
    let b = Matrix::new(n, k, x.as_f32()).rounded(compute).transposed();
    for (w, add) in dw.as_f32_mut().iter_mut().zip(a.times_transposed(&b).data) {
        *w += add;
    }
    if let Some(db) = db {
        let db = db.as_f32_mut();
        for row in dy.as_f32().chunks(o) {
            db.iter_mut().zip(row).for_each(|(b, g)| *b += g);
        }
    }
}
