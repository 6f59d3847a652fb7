//! Rows of a table by id, and the gradient of the table.

use crate::pool::SharedMut;
use crate::{Device, Dtype, Tensor};

/// Rows `ids` of table `[V, D]` as f32 `[N, D]`.
pub fn embedding(_device: &Device, table: &Tensor, ids: &[u32]) -> Tensor {
    let rows: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
    table.gather_rows(&rows).cast(Dtype::F32)
}

/// Adds the rows of dy `[N, D]` to rows `ids` of dtable `[V, D]`: the rows of an id are summed first, in row order.
pub fn embedding_grad(device: &Device, dy: &Tensor, ids: &[u32], dtable: &mut Tensor) {
    embedding_grads(device, &[(ids, dy)], dtable);
}

/// The same for the rows of several passes, one after the other: however they are split, the sums are the same.
pub fn embedding_grads(device: &Device, parts: &[(&[u32], &Tensor)], dtable: &mut Tensor) {
    let &[v, d] = dtable.shape() else { panic!("table {:?}", dtable.shape()) };
    let mut rows: Vec<(u32, &[f32])> = Vec::new();
    for (ids, dy) in parts {
        assert_eq!(dy.shape(), [ids.len(), d], "gradient of an embedding {:?}", dtable.shape());
        rows.extend(ids.iter().copied().zip(dy.as_f32().chunks_exact(d)));
    }
    // Rows of one id together, in row order: each id belongs to one task.
    rows.sort_by_key(|(id, _)| *id);
    let runs: Vec<&[(u32, &[f32])]> = rows.chunk_by(|a, b| a.0 == b.0).collect();
    let out = SharedMut::new(dtable.as_f32_mut());
    device.for_each(runs.len(), &|run| {
        let id = runs[run][0].0 as usize;
        assert!(id < v, "id {id} of {v} rows");
        let mut sum = vec![0.0f32; d];
        for (_, row) in runs[run] {
            sum.iter_mut().zip(*row).for_each(|(s, g)| *s += g);
        }
        // SAFETY: each index has its own id, hence its own row.
        let row = unsafe { out.slice(id * d, d) };
        row.iter_mut().zip(&sum).for_each(|(r, s)| *r += s);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{normal, same_bits};

    #[test]
    fn the_table_gradient_is_the_sum_of_each_ids_rows_in_row_order() {
        let device = Device::cpu(2);
        let (dy, table) = (normal("dy", &[6, 3]), normal("table", &[4, 3]));
        let ids = [2, 0, 2, 3, 2, 0];
        let mut found = table.clone();
        embedding_grad(&device, &dy, &ids, &mut found);
        let mut expected = table.to_f32_vec();
        for id in 0..4 {
            for i in 0..3 {
                let rows = (0..6).filter(|&row| ids[row] == id);
                expected[id as usize * 3 + i] += rows.fold(0.0, |sum, row| sum + dy.as_f32()[row * 3 + i]);
            }
        }
        same_bits(found.as_f32(), &expected, "dtable");
        let mut split = table.clone();
        let (first, rest) = (dy.slice_rows(0, 1), dy.slice_rows(1, 6));
        embedding_grads(&device, &[(&ids[..1], &first), (&ids[1..], &rest)], &mut split);
        same_bits(split.as_f32(), &expected, "in two passes");
        assert_eq!(embedding(&device, &table, &[3, 1]).as_f32(), table.gather_rows(&[3, 1]).as_f32());
    }
}
