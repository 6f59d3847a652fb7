//! Sums over the whole tensor, over each row or over each column: what nuslerp and model_stock take angles of. Memory is one number per
//! fibre; the order of additions is fixed.

use crate::Result;
use crate::group::Group;
use crate::tile::{TILE, run, sum};
use std::ops::Range;

/// How a tensor is cut into vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fibres {
    /// One vector.
    Whole,
    /// One per row, of this length.
    Rows(usize),
    /// One per column; this many columns.
    Columns(usize),
}

/// Columns are summed in this many stretches of rows, whatever the threads.
pub(crate) const STRETCHES: usize = 16;

impl Fibres {
    /// The vector that an element belongs to.
    #[inline]
    pub(crate) fn of(self, element: usize) -> usize {
        match self {
            Self::Whole => 0,
            Self::Rows(n_cols) => element / n_cols,
            Self::Columns(n_cols) => element % n_cols,
        }
    }

    fn count(self, n_elements: usize) -> usize {
        match self {
            Self::Whole => 1,
            Self::Rows(n_cols) => n_elements / n_cols,
            Self::Columns(n_cols) => n_cols,
        }
    }

    /// The pieces that are summed one by one: whole rows, tiles, or long stretches of rows.
    fn pieces(self, n_elements: usize) -> Vec<Range<usize>> {
        let length = match self {
            Self::Whole => TILE,
            Self::Rows(n_cols) => n_cols * (TILE / n_cols).max(1),
            Self::Columns(n_cols) => n_cols * (n_elements / n_cols).div_ceil(STRETCHES),
        };
        (0..n_elements).step_by(length.max(1)).map(|start| start..(start + length).min(n_elements)).collect()
    }
}

/// Per value that `read` gives for each element, its sums over the fibres: `[values][fibres]`.
pub(crate) fn sums<T: Copy + Into<f64>>(
    group: &Group,
    fibres: Fibres,
    read: impl Fn(&Range<usize>) -> Result<Vec<Vec<T>>> + Sync,
) -> Result<Vec<Vec<f64>>> {
    let n_elements = group.n_elements();
    let parts = run(group.threads, fibres.pieces(n_elements), |piece| match fibres {
        Fibres::Whole => Ok((0, read(&piece)?.iter().map(|values| vec![sum(values)]).collect::<Vec<_>>())),
        Fibres::Rows(n_cols) => {
            let rows = |values: &Vec<T>| values.chunks(n_cols).map(sum).collect::<Vec<f64>>();
            Ok((piece.start / n_cols, read(&piece)?.iter().map(rows).collect()))
        }
        Fibres::Columns(n_cols) => Ok((0, column_sums(n_cols, piece, &read)?)),
    })?;
    let n_values = parts.first().map_or(0, |(_, part)| part.len());
    let mut total = vec![vec![0.0f64; fibres.count(n_elements)]; n_values];
    for (first, part) in parts {
        for (sums, values) in total.iter_mut().zip(part) {
            sums[first..].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
    Ok(total)
}

fn column_sums<T: Copy + Into<f64>>(
    n_cols: usize,
    piece: Range<usize>,
    read: impl Fn(&Range<usize>) -> Result<Vec<Vec<T>>>,
) -> Result<Vec<Vec<f64>>> {
    let mut total: Vec<Vec<f64>> = Vec::new();
    let step = n_cols * (TILE / n_cols).max(1);
    for start in piece.clone().step_by(step) {
        let values = read(&(start..(start + step).min(piece.end)))?;
        total.resize(values.len(), vec![0.0; n_cols]);
        for (sums, values) in total.iter_mut().zip(&values) {
            for row in values.chunks(n_cols) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += Into::<f64>::into(*value));
            }
        }
    }
    Ok(total)
}
