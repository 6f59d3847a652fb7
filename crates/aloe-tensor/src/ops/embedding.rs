//! Rows of a table by id, and the gradient of the table.

use crate::{Device, Dtype, Tensor};

/// Rows `ids` of table `[V, D]` as f32 `[N, D]`.
pub fn embedding(_device: &Device, table: &Tensor, ids: &[u32]) -> Tensor {
    let rows: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
    table.gather_rows(&rows).cast(Dtype::F32)
}

/// Adds the rows of dy `[N, D]` to rows `ids` of dtable `[V, D]`, in row order.
pub fn embedding_grad(_device: &Device, dy: &Tensor, ids: &[u32], dtable: &mut Tensor) {
    let d = dy.shape()[1];
    assert_eq!((dy.shape()[0], dtable.shape()[1]), (ids.len(), d));
    let out = dtable.as_f32_mut();
    for (row, &id) in dy.as_f32().chunks(d).zip(ids) {
        for (o, &g) in out[id as usize * d..][..d].iter_mut().zip(row) {
            *o += g;
        }
    }
}
