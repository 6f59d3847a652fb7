//! What a merge holds at once, and how many threads a budget allows. Counted from shapes, before anything is read.

use crate::config::{Method, Parameter};
use crate::fibres::STRETCHES;
use crate::merge::{QUEUED, WRITTEN_TOGETHER};
use crate::plan::{MergeOptions, MergePlan, PlannedTensor};
use crate::tile::TILE;
use crate::vocabulary::Vocabulary;
use crate::{Error, PlannedModel, Result};

/// What the program, the tokenizers and the plan take beside tiles.
const RESIDENT: u64 = 64 << 20;
/// Bytes of a file that wait to be hashed, per thread that may be ahead: those of sixteen tiles in f32.
pub(crate) const WAITING: usize = 16 * TILE * 4;
/// Bytes that an opened tokenizer takes per byte of its file, merges above all, and per token, whose name stands in the file's tree, by name and by
/// id. Measured on those of SmolLM2 (49,152 tokens, 1.6 MB) and Llama 3 (128,256, 10.2 MB).
const PER_BYTE: u64 = 3;
const PER_TOKEN: u64 = 640;
/// Bytes per byte of its file that a tokenizer takes while it is compared with another one, beside what `RESIDENT` has for it.
const COMPARED: u64 = 2;

impl MergePlan {
    /// Bytes that a merge with so many threads holds: tiles of every input and a few more per thread, pieces to be written, what methods note per row and per
    /// tile, where the rows of a chosen vocabulary come from, the tokenizers of all models where their vocabularies are compared, and the factors of LoRA adapters.
    pub fn memory_bytes(&self, threads: usize) -> u64 {
        let n_inputs = self.slices.iter().map(|slice| slice.models.len()).max().unwrap_or(1) as u64;
        let shapes = self.tensors.iter().map(|tensor| &tensor.spec.shape);
        let n_cols = shapes.map(|shape| shape.last().copied().unwrap_or(0) as u64).max().unwrap_or(0);
        let tile = (TILE as u64).max(n_cols) * 4;
        // Offsets of all models, and the squares and products of all pairs, in f64.
        let products = if self.method == Method::ModelStock { n_inputs * (n_inputs + 2) } else { 0 };
        let per_thread = tile * (3 * n_inputs + 8 + products) + (3 << 20) + 40 * n_cols;
        let of_tensor = |tensor: &PlannedTensor| self.fibre_bytes(tensor, n_inputs) + tile_bytes(tensor, n_inputs);
        let noted = self.tensors.iter().map(of_tensor).max().unwrap_or(0) + self.row_bytes();
        // Pieces that wait to be written and those that are, of model/ and master/.
        let queued = if threads > 1 { ((QUEUED + 1) * WRITTEN_TOGETHER * TILE * 8) as u64 } else { 0 };
        // What is read and written waits for its turn to be hashed; with one thread nothing does, and a tile of each input is held.
        let hashed = match threads {
            1 => n_inputs * tile,
            _ => (n_inputs + 2) * ((2 * threads + 1) * WAITING) as u64,
        };
        RESIDENT + queued + hashed + noted + self.tokenizer_bytes + self.adapter_bytes() + threads as u64 * per_thread
    }

    /// What methods that work by row or column note of each: sums in f64, of the pieces and of the whole, and what is made of them.
    fn fibre_bytes(&self, tensor: &PlannedTensor, n_inputs: u64) -> u64 {
        let shape = &tensor.spec.shape;
        let (n_rows, n_cols) = (shape[0] as u64, shape.last().copied().unwrap_or(0) as u64);
        let is_set = |parameter| tensor.parameters.flag(parameter);
        match self.method {
            _ if shape.len() < 2 => 0,
            // Squares of the offsets and products of all pairs.
            Method::ModelStock if is_set(Parameter::FilterWise) => n_rows * (8 * n_inputs * (n_inputs + 1) + 4),
            Method::Nuslerp if is_set(Parameter::NuslerpFlatten) => 0,
            // Two squares, two norms, a cosine and an arc; columns are summed in stretches of rows.
            Method::Nuslerp if is_set(Parameter::NuslerpRowWise) => n_cols * (16 * STRETCHES as u64 + 80),
            Method::Nuslerp => n_rows * 80,
            _ => 0,
        }
    }

    /// Where the rows of a chosen vocabulary come from.
    fn row_bytes(&self) -> u64 {
        self.rows.iter().flatten().map(|map| map.size_bytes()).sum()
    }

    /// The factors of one tensor's updates of all inputs.
    fn adapter_bytes(&self) -> u64 {
        let of_tensor = |tensor: &PlannedTensor| {
            self.slices[tensor.slice].models.iter().map(|model| self.models[*model].update_bytes).sum::<u64>()
        };
        self.tensors.iter().map(of_tensor).max().unwrap_or(0)
    }

    /// The threads that the budget allows.
    pub(crate) fn fit(&self, options: &MergeOptions) -> Result<usize> {
        let wanted = options.threads.max(1);
        match (1..=wanted).rev().find(|threads| self.memory_bytes(*threads) <= options.memory) {
            Some(threads) => Ok(threads),
            None => Err(Error::Memory { budget: options.memory, needed: self.memory_bytes(1) }),
        }
    }
}

/// The figures of each tile of a tensor, and what a trim notes of each tile of each input.
fn tile_bytes(tensor: &PlannedTensor, n_inputs: u64) -> u64 {
    tensor.spec.n_elements().div_ceil(TILE) as u64 * (192 + 32 * n_inputs)
}

/// What the tokenizers of the models take while a vocabulary is made of them: all are open at once.
pub(crate) fn tokenizer_bytes(models: &[PlannedModel], vocabulary: &Vocabulary) -> u64 {
    let of_model = |(at, model): (usize, &PlannedModel)| {
        PER_BYTE * model.beside.size_bytes("tokenizer.json") + PER_TOKEN * vocabulary.n_tokens_of(at) as u64
    };
    models.iter().enumerate().map(of_model).sum()
}

/// What they take where each is compared with the leading model's, one after the other; that one is opened whole to be `shortened`.
pub(crate) fn compared_bytes(models: &[PlannedModel], leader: usize, shortened: bool) -> u64 {
    let size = |model: &PlannedModel| model.beside.size_bytes("tokenizer.json");
    let others = models.iter().enumerate().filter(|(at, _)| *at != leader).map(|(_, model)| size(model));
    let compared = COMPARED * (size(&models[leader]) + others.max().unwrap_or(0));
    // A token and its merges take about 20 bytes of the file at least.
    let opened = if shortened { (PER_BYTE + PER_TOKEN / 20) * size(&models[leader]) } else { 0 };
    compared.max(opened)
}
