//! What merging one tensor shows about its task vectors: norms, shares kept, agreement in direction.

use crate::scratch::Scratch;
use crate::tile::dot;
use aloe_tensor::Isa;
use serde::{Deserialize, Serialize};

/// Elements compared at a time.
const BLOCK: usize = 256;

/// The figures of one tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorStats {
    /// The tensor.
    pub name: String,
    /// Its elements.
    pub n_elements: u64,
    /// Euclidean norm of the base tensor.
    pub base_norm: f64,
    /// Whose figures stand in `norms` and `n_kept`, where these are not the report's models: a slice that merges others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Euclidean norm of each model's task vector before anything is dropped, in the order of the report's models.
    pub norms: Vec<f64>,
    /// Elements kept of each task vector.
    pub n_kept: Vec<u64>,
    /// Elements that at least two models kept and changed.
    pub n_contested: u64,
    /// Of those, elements where all of them changed in the same direction.
    pub n_agreeing: u64,
}

impl TensorStats {
    /// Whether base and task vectors hold numbers alone.
    pub(crate) fn is_finite(&self) -> bool {
        self.base_norm.is_finite() && self.norms.iter().all(|norm| norm.is_finite())
    }
}

/// What a tile adds; summed in tile order.
pub(crate) struct TileSums {
    pub(crate) base_squares: f64,
    pub(crate) squares: Vec<f64>,
    pub(crate) n_kept: Vec<u64>,
    pub(crate) n_contested: u64,
    pub(crate) n_agreeing: u64,
}

impl TileSums {
    pub(crate) fn new(n_models: usize) -> Self {
        let (squares, n_kept) = (vec![0.0; n_models], vec![0; n_models]);
        Self { base_squares: 0.0, squares, n_kept, n_contested: 0, n_agreeing: 0 }
    }

    /// The figures of whole task vectors, nothing dropped.
    pub(crate) fn of(base: &[f32], deltas: &[Scratch]) -> Self {
        Self { base_squares: dot(base, base), ..Self::of_deltas(base.len(), deltas) }
    }

    /// [`TileSums::of`] `n` elements whose base is summed elsewhere.
    pub(crate) fn of_deltas(n: usize, deltas: &[Scratch]) -> Self {
        let mut sums = Self::new(deltas.len());
        for (index, delta) in deltas.iter().enumerate() {
            sums.squares[index] = dot(delta, delta);
            sums.n_kept[index] = delta.len() as u64;
        }
        Isa::wide(
            #[inline(always)]
            || sums.compare(deltas.iter().map(|delta| &delta[..]), n),
        );
        sums
    }

    /// Counts where at least two of the vectors of `n` elements are not zero, and where these have one sign.
    #[inline(always)]
    pub(crate) fn compare<'a>(&mut self, deltas: impl Iterator<Item = &'a [f32]> + Clone, n: usize) {
        if deltas.clone().nth(1).is_none() {
            return;
        }
        for start in (0..n).step_by(BLOCK) {
            let block = start..(start + BLOCK).min(n);
            let (mut positive, mut negative) = ([0u32; BLOCK], [0u32; BLOCK]);
            for delta in deltas.clone() {
                for ((positive, negative), delta) in positive.iter_mut().zip(&mut negative).zip(&delta[block.clone()]) {
                    *positive += u32::from(*delta > 0.0);
                    *negative += u32::from(*delta < 0.0);
                }
            }
            // Sums of 32 bits hold a block's counts, and fill vectors. Past the block's end all are zero.
            let (mut contested, mut agreeing) = (0u32, 0u32);
            for (positive, negative) in positive.into_iter().zip(negative) {
                let is_contested = positive + negative >= 2;
                contested += u32::from(is_contested);
                agreeing += u32::from(is_contested & ((positive == 0) | (negative == 0)));
            }
            self.n_contested += u64::from(contested);
            self.n_agreeing += u64::from(agreeing);
        }
    }

    /// Adds the figures of the next tile.
    pub(crate) fn add(&mut self, part: &Self) {
        self.base_squares += part.base_squares;
        self.squares.iter_mut().zip(&part.squares).for_each(|(sum, part)| *sum += part);
        self.n_kept.iter_mut().zip(&part.n_kept).for_each(|(sum, part)| *sum += part);
        self.n_contested += part.n_contested;
        self.n_agreeing += part.n_agreeing;
    }

    /// The figures of the tensor.
    pub(crate) fn finish(self, name: &str, n_elements: usize) -> TensorStats {
        TensorStats {
            name: name.to_owned(),
            n_elements: n_elements as u64,
            base_norm: self.base_squares.sqrt(),
            models: Vec::new(),
            norms: self.squares.iter().map(|sum| sum.sqrt()).collect(),
            n_kept: self.n_kept,
            n_contested: self.n_contested,
            n_agreeing: self.n_agreeing,
        }
    }
}
