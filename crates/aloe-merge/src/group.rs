//! The inputs of one output tensor, and what a method learns about the whole of it before tiles are merged.

use crate::config::{MergeDtype, TensorParameters};
use crate::scratch::Scratch;
use crate::source::Source;
use crate::tile::{Rounding, dot, dots, run, tiles};
use crate::{Error, Result};
use aloe_tensor::Isa;
use std::ops::Range;

/// The inputs that contribute to one output tensor.
pub struct Group {
    /// The tensor's name in the result; it keys the masks.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What is computed in.
    pub dtype: MergeDtype,
    /// The inputs, in the order of the slice, the base among them.
    pub sources: Vec<Source>,
    /// Index of the base in `sources`, where the method takes differences.
    pub base: Option<usize>,
    /// Index of the base model in `sources`, which figures are taken against where the method itself takes no differences.
    pub reference: Option<usize>,
    /// The parameters.
    pub parameters: TensorParameters,
    /// Seed of the masks.
    pub seed: u64,
    /// Who each source is to its random mask: [`crate::mask_key`].
    pub mask_keys: Vec<String>,
    /// Threads; no effect on the result.
    pub threads: usize,
}

impl Group {
    /// Elements of the tensor.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Row length; a vector is one row.
    pub(crate) fn n_cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Indices of the inputs other than the base.
    pub(crate) fn others(&self) -> Vec<usize> {
        (0..self.sources.len()).filter(|index| Some(*index) != self.base).collect()
    }

    /// The base's index, for methods that are never run without.
    pub(crate) fn base_index(&self) -> Result<usize> {
        self.base.ok_or_else(|| Error::model(&self.name, "has no base model"))
    }

    /// A stretch of one input in the merge dtype.
    pub(crate) fn read(&self, input: usize, range: &Range<usize>) -> Result<Scratch> {
        let mut values = Scratch::of(range.len());
        self.sources[input].read(range.start, self.dtype, &mut values)?;
        Ok(values)
    }

    /// A stretch of the base, or zeros.
    pub(crate) fn read_base(&self, range: &Range<usize>) -> Result<Scratch> {
        match self.base {
            Some(base) => self.read(base, range),
            None => {
                let mut zeros = Scratch::of(range.len());
                zeros.fill(0.0);
                Ok(zeros)
            }
        }
    }

    /// A stretch of an input's difference to the base, rounded to the dtype `R` stands for; the input itself without a base.
    pub(crate) fn delta<R: Rounding>(&self, input: usize, base: &[f32], range: &Range<usize>) -> Result<Scratch> {
        let mut values = self.read(input, range)?;
        if self.base.is_some() {
            Isa::wide(
                #[inline(always)]
                || values.iter_mut().zip(base).for_each(|(value, base)| *value = R::round(*value - base)),
            );
        }
        Ok(values)
    }

    /// Runs `work` on every tile; the results stand in tile order.
    pub(crate) fn fold<T: Send>(&self, work: impl Fn(Range<usize>) -> Result<T> + Sync) -> Result<Vec<T>> {
        run(self.threads, tiles(self.n_elements()), work)
    }

    /// The dot products of vectors of the tensor's length, which `read` gives by stretches: `[n][n]`, in f64.
    pub(crate) fn gram(&self, read: impl Fn(&Range<usize>) -> Result<Vec<Scratch>> + Sync) -> Result<Vec<Vec<f64>>> {
        let parts = self.fold(|range| {
            let vectors = read(&range)?;
            if let [a, b] = &vectors[..] {
                let [of_a, mixed, of_b] = dots(a, b);
                return Ok(vec![vec![of_a, mixed], vec![mixed, of_b]]);
            }
            let mut products = vec![vec![0.0f64; vectors.len()]; vectors.len()];
            for (i, a) in vectors.iter().enumerate() {
                for (j, b) in vectors.iter().enumerate().take(i + 1) {
                    products[i][j] = dot(a, b);
                    products[j][i] = products[i][j];
                }
            }
            Ok(products)
        })?;
        let n = parts.first().map_or(0, Vec::len);
        let mut total = vec![vec![0.0f64; n]; n];
        for part in parts {
            for (sums, values) in total.iter_mut().zip(part) {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        Ok(total)
    }
}
