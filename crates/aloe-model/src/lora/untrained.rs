//! Rows of embedding and head that no training has touched: near zero, or the same as another row.
//!
//! A base model's template tokens often are such rows (`<|eot_id|>` of Llama 3's base models). With embedding and head frozen, LoRA
//! cannot learn them: the model never emits its end-of-turn token.

use crate::arch::{EMBED, HEAD};
use crate::{ModelSource, Result};
use std::collections::{BTreeSet, HashMap};

/// A row whose norm is below this share of the median row's is untrained. Rows that training has touched lie above a tenth.
pub const NEAR_ZERO: f64 = 1e-2;

/// An untrained row.
#[derive(Clone, Debug, PartialEq)]
pub struct Untrained {
    /// The token.
    pub id: u32,
    /// The tensor that holds the row.
    pub tensor: String,
    /// What it looks like.
    pub reason: String,
}

/// Which rows of the embedding for the tokens `read`, and of the head for the tokens `predicted`, are untrained; a tied matrix must
/// know both. A token that is only read may have an untrained row in the head: no model predicts its begin-of-text token.
pub fn untrained_rows(source: &ModelSource, read: &BTreeSet<u32>, predicted: &BTreeSet<u32>) -> Result<Vec<Untrained>> {
    let mut found = Vec::new();
    for name in [EMBED, HEAD] {
        let Some(spec) = source.specs().iter().find(|spec| spec.hf_name == name) else { continue };
        let ids: BTreeSet<u32> = match name {
            EMBED if source.config().tie_word_embeddings => read | predicted,
            EMBED => read.clone(),
            _ => predicted.clone(),
        };
        let (n_rows, width) = (spec.shape[0], spec.shape[1]);
        let read = source.rows_f32(name)?;
        let (mut norms, mut first_of) = (Vec::with_capacity(n_rows), HashMap::new());
        let mut twins: HashMap<usize, usize> = HashMap::new();
        let mut row = vec![0.0f32; width];
        for at in 0..n_rows {
            read(at, &mut row);
            norms.push(row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt());
            let bits: Vec<u8> = row.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect();
            match first_of.insert(aloe_record::digest::bytes(&bits), at) {
                None => {}
                Some(other) => {
                    twins.insert(at, other);
                    twins.entry(other).or_insert(at);
                }
            }
        }
        source.release(name)?;
        let mut sorted = norms.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted[n_rows / 2];
        for &id in ids.iter().filter(|&&id| (id as usize) < n_rows) {
            let at = id as usize;
            let reason = match twins.get(&at) {
                _ if norms[at] <= NEAR_ZERO * median => {
                    format!("norm {:.1e}, the median row's is {median:.1e}", norms[at])
                }
                Some(other) => format!("the same numbers as row {other}"),
                None => continue,
            };
            found.push(Untrained { id, tensor: name.to_owned(), reason });
        }
    }
    Ok(found)
}
