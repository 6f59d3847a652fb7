//! Plain-loop twins of every operation: the judges. They stay slow and obvious; sums are in f64.
//!
//! bf16 operands are rounded where the operation says so, and nowhere else.

mod attention;
mod rowwise;

pub use attention::{Heads, attention, attention_backward};
pub use rowwise::*;

use crate::Dtype;
use crate::tensor::{bf16_from_f32, f32_from_bf16};

/// A row-major matrix.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows * columns` numbers.
    pub data: Vec<f32>,
}

impl Matrix {
    /// From its numbers.
    pub fn new(rows: usize, columns: usize, data: &[f32]) -> Self {
        assert_eq!(rows * columns, data.len());
        Self { rows, columns, data: data.to_vec() }
    }

    /// Every number rounded to `dtype`.
    pub fn rounded(&self, dtype: Dtype) -> Self {
        let round = |v: &f32| match dtype {
            Dtype::F32 => *v,
            Dtype::Bf16 => f32_from_bf16(bf16_from_f32(*v)),
        };
        Self { data: self.data.iter().map(round).collect(), ..*self }
    }

    /// Rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        let mut data = vec![0.0; self.data.len()];
        for r in 0..self.rows {
            for c in 0..self.columns {
                data[c * self.rows + r] = self.data[r * self.columns + c];
            }
        }
        Self { rows: self.columns, columns: self.rows, data }
    }

    /// `self * other^T`: `[M, K] x [O, K] -> [M, O]`.
    pub fn times_transposed(&self, other: &Self) -> Self {
        assert_eq!(self.columns, other.columns);
        let k = self.columns;
        let mut data = vec![0.0; self.rows * other.rows];
        for r in 0..self.rows {
            for o in 0..other.rows {
                let sum: f64 = (0..k).map(|i| self.data[r * k + i] as f64 * other.data[o * k + i] as f64).sum();
                data[r * other.rows + o] = sum as f32;
            }
        }
        Self { rows: self.rows, columns: other.rows, data }
    }
}
