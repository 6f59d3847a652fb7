//! Rows of a table by id, and the gradient of the table.

use crate::pool::SharedMut;
use crate::{Device, Dtype, Tensor};

/// Rows `ids` of table `[V, D]` as f32 `[N, D]`.
pub fn embedding(_device: &Device, table: &Tensor, ids: &[u32]) -> Tensor {
    let rows: Vec<usize> = ids.iter().map(|&i| i as usize).collect();
    table.gather_rows(&rows).cast(Dtype::F32)
}

/// Adds the rows of dy `[N, D]` to rows `ids` of dtable `[V, D]`, in row order.
pub fn embedding_grad(device: &Device, dy: &Tensor, ids: &[u32], dtable: &mut Tensor) {
    let &[n, d] = dy.shape() else { panic!("gradient {:?} of an embedding", dy.shape()) };
    let &[v, d_table] = dtable.shape() else { panic!("table {:?}", dtable.shape()) };
    assert_eq!((n, d), (ids.len(), d_table), "dy {:?}, dtable {:?}", dy.shape(), dtable.shape());
    // Rows of one id together, in row order: each id belongs to one task.
    let mut rows: Vec<usize> = (0..n).collect();
    rows.sort_by_key(|&row| ids[row]);
    let runs: Vec<&[usize]> = rows.chunk_by(|&a, &b| ids[a] == ids[b]).collect();
    let (dy, out) = (dy.as_f32(), SharedMut::new(dtable.as_f32_mut()));
    device.for_each(runs.len(), &|run| {
        let id = ids[runs[run][0]] as usize;
        assert!(id < v, "id {id} of {v} rows");
        // SAFETY: each index has its own id, hence its own row.
        let sum = unsafe { out.slice(id * d, d) };
        for &row in runs[run] {
            sum.iter_mut().zip(&dy[row * d..(row + 1) * d]).for_each(|(s, g)| *s += g);
        }
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
        for (row, &id) in ids.iter().enumerate() {
            for i in 0..3 {
                expected[id as usize * 3 + i] += dy.as_f32()[row * 3 + i];
            }
        }
        same_bits(found.as_f32(), &expected, "dtable");
        assert_eq!(embedding(&device, &table, &[3, 1]).as_f32(), table.gather_rows(&[3, 1]).as_f32());
    }
}
