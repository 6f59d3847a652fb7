//! TIES and DARE-TIES on one tensor: differences to the base, sparsified, weighted, a sign elected per element, what agrees summed.
//!
//! Source: mergekit 0.1.5, `generalized_task_arithmetic.py`, whose order of operations and rounding this follows: every line of
//! [`mix_tile`] that calls `round` is one torch operation in the merge dtype; sums over models run in f32 and are rounded once.

use crate::config::{MergeDtype, Method, RescaleKind};
use crate::sparsify::{self, Keep, Mask, Scale, TaskVector};
use crate::tile::{TensorBytes, output_tiles, round, run};
use serde::{Deserialize, Serialize};

/// The parameters of one tensor; see [`crate::config::TensorParameters::Consensus`].
#[derive(Clone, Debug)]
pub struct Consensus<'a> {
    /// `ties` or `dare_ties`.
    pub method: Method,
    /// One per model.
    pub weights: &'a [f64],
    /// One per model, in (0, 1].
    pub densities: &'a [f64],
    /// Divide by the sum of the weights that agree.
    pub normalize: bool,
    /// Factor of the merged task vector.
    pub lambda: f64,
    /// How to scale up what was kept.
    pub rescale: Option<RescaleKind>,
    /// What to compute in.
    pub dtype: MergeDtype,
    /// Seed of the masks.
    pub seed: u64,
}

/// What merging one tensor showed about its task vectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorStats {
    /// The tensor.
    pub name: String,
    /// Its elements.
    pub n_elements: u64,
    /// Euclidean norm of the base tensor.
    pub base_norm: f64,
    /// Euclidean norm of each model's task vector before anything is dropped, in the configuration's order without the base.
    pub norms: Vec<f64>,
    /// Elements kept of each task vector.
    pub n_kept: Vec<u64>,
    /// Elements that at least two models kept and changed.
    pub n_contested: u64,
    /// Of those, elements where all of them changed in the same direction.
    pub n_agreeing: u64,
    /// Model (index as in `norms`) whose difference is not finite, if any.
    #[serde(skip)]
    pub non_finite: Option<usize>,
}

/// Merges `tuned` over `base` into `out` (f32 values of the merge dtype). `name` keys the masks.
pub fn consensus(
    parameters: &Consensus<'_>,
    name: &str,
    base: TensorBytes<'_>,
    tuned: &[TensorBytes<'_>],
    threads: usize,
    out: &mut [f32],
) -> TensorStats {
    let models = prepare(parameters, name, base, tuned, threads, out.len());
    let parts = run(threads, output_tiles(out), |(start, tile)| match parameters.dtype {
        MergeDtype::Bfloat16 => mix_tile::<true>(parameters, base, &models, start, tile),
        MergeDtype::Float32 => mix_tile::<false>(parameters, base, &models, start, tile),
    });
    let mut sums = TileSums::new(tuned.len());
    parts.iter().for_each(|part| sums.add(part));
    TensorStats {
        name: name.to_owned(),
        n_elements: out.len() as u64,
        base_norm: sums.base_squares.sqrt(),
        norms: sums.squares.iter().map(|sum| sum.sqrt()).collect(),
        n_kept: sums.n_kept,
        n_contested: sums.n_contested,
        n_agreeing: sums.n_agreeing,
        non_finite: sums.squares.iter().position(|sum| !sum.is_finite()),
    }
}

/// One model with what was decided about it for the whole tensor.
struct Prepared<'a> {
    vector: TaskVector<'a>,
    keep: Keep,
    scale: Scale,
    weight: f32,
}

fn prepare<'a>(
    parameters: &Consensus<'_>,
    name: &str,
    base: TensorBytes<'a>,
    tuned: &[TensorBytes<'a>],
    threads: usize,
    n_elements: usize,
) -> Vec<Prepared<'a>> {
    let dtype = parameters.dtype;
    let settings = parameters.weights.iter().zip(parameters.densities);
    tuned
        .iter()
        .zip(settings)
        .enumerate()
        .map(|(index, (&tuned, (&weight, &density)))| {
            let vector = TaskVector { base, tuned, dtype, n_elements };
            let keep = match parameters.method {
                _ if density >= 1.0 => Keep::All,
                Method::DareTies => Keep::Random(Mask::new(parameters.seed, name, index, density)),
                _ => sparsify::largest(threads, &vector, density),
            };
            let scale = sparsify::scale(threads, &vector, &keep, parameters.rescale, density);
            Prepared { vector, keep, scale, weight: crate::tile::round_to(dtype, weight as f32) }
        })
        .collect()
}

/// What a tile adds to the statistics; summed in tile order.
struct TileSums {
    base_squares: f64,
    squares: Vec<f64>,
    n_kept: Vec<u64>,
    n_contested: u64,
    n_agreeing: u64,
}

impl TileSums {
    fn new(n_models: usize) -> Self {
        let (squares, n_kept) = (vec![0.0; n_models], vec![0; n_models]);
        Self { base_squares: 0.0, squares, n_kept, n_contested: 0, n_agreeing: 0 }
    }

    fn add(&mut self, part: &Self) {
        self.base_squares += part.base_squares;
        self.squares.iter_mut().zip(&part.squares).for_each(|(sum, part)| *sum += part);
        self.n_kept.iter_mut().zip(&part.n_kept).for_each(|(sum, part)| *sum += part);
        self.n_contested += part.n_contested;
        self.n_agreeing += part.n_agreeing;
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

fn mix_tile<const BF16: bool>(
    parameters: &Consensus<'_>,
    base_bytes: TensorBytes<'_>,
    models: &[Prepared<'_>],
    start: usize,
    out: &mut [f32],
) -> TileSums {
    let n = out.len();
    let mut sums = TileSums::new(models.len());
    let mut base = vec![0.0f32; n];
    base_bytes.read(start, parameters.dtype, &mut base);
    sums.base_squares = squares(&base);
    let mut votes = vec![0.0f32; n];
    let mut weighted: Vec<Vec<f32>> = Vec::with_capacity(models.len());
    for (index, model) in models.iter().enumerate() {
        let delta = weighted_delta::<BF16>(model, start, &base, &mut sums, index);
        votes.iter_mut().zip(&delta).for_each(|(vote, delta)| *vote += delta);
        weighted.push(delta);
    }
    // The elected sign: a vote of exactly zero counts as positive, in mergekit and here (the TIES paper asks the whole tensor).
    let positive: Vec<bool> = votes.iter().map(|&vote| round::<BF16>(vote) >= 0.0).collect();
    let mut mixed = vec![0.0f32; n];
    let mut divisor = vec![0.0f32; n];
    let mut changed = vec![0u16; n];
    let mut agreeing = vec![0u16; n];
    for (model, delta) in models.iter().zip(&weighted) {
        for at in 0..n {
            let agrees = delta[at] != 0.0 && (delta[at] > 0.0) == positive[at];
            mixed[at] += if agrees { delta[at] } else { 0.0 };
            divisor[at] += if agrees { model.weight } else { 0.0 };
            changed[at] += u16::from(delta[at] != 0.0);
            agreeing[at] += u16::from(agrees);
        }
    }
    for (changed, agreeing) in changed.iter().zip(&agreeing).filter(|(changed, _)| **changed >= 2) {
        sums.n_contested += 1;
        sums.n_agreeing += u64::from(changed == agreeing);
    }
    let lambda = parameters.lambda as f32;
    for at in 0..n {
        let mut change = round::<BF16>(mixed[at]);
        if parameters.normalize {
            let sum = round::<BF16>(divisor[at]);
            change = round::<BF16>(change / if sum == 0.0 { 1.0 } else { sum });
        }
        if parameters.lambda != 1.0 {
            change = round::<BF16>(change * lambda);
        }
        out[at] = round::<BF16>(base[at] + change);
    }
    sums
}

/// Steps 1 to 3: difference, sparsify and rescale, weight.
fn weighted_delta<const BF16: bool>(
    model: &Prepared<'_>,
    start: usize,
    base: &[f32],
    sums: &mut TileSums,
    index: usize,
) -> Vec<f32> {
    let mut delta = vec![0.0f32; base.len()];
    model.vector.delta(start, base, &mut delta);
    sums.squares[index] = squares(&delta);
    let mut kept = vec![true; base.len()];
    model.keep.fill(start, &delta, &mut kept);
    sums.n_kept[index] = kept.iter().map(|&kept| u64::from(kept)).sum();
    for (delta, kept) in delta.iter_mut().zip(kept) {
        let masked = if kept { *delta } else { 0.0 };
        let scaled = match model.scale {
            Scale::None => masked,
            Scale::Divide(density) => round::<BF16>(masked / density),
            Scale::Multiply(ratio) => round::<BF16>(masked * ratio),
        };
        *delta = round::<BF16>(scaled * model.weight);
    }
    delta
}

#[cfg(test)]
mod tests;
