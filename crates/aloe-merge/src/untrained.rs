//! Rows of the template's tokens that no model trained: the merged model would read or emit tokens that it never learned, such as
//! `<|im_end|>` in models of which only matrices were tuned.
//!
//! A row counts as untrained by the rule of `aloe_model::lora::untrained_rows`: near zero, or equal to another row. That function reads
//! whole matrices; here the median norm is that of 512 rows spread over the matrix and twins are sought among these and the control
//! tokens, so that a merge is not slower for it.

use crate::Result;
use crate::beside::Beside;
use crate::config::MergeDtype;
use crate::plan::{MergePlan, PlannedTensor};
use crate::source::Source;
use crate::tokenizer::template_of;
use crate::vocabulary::Row;
use aloe_model::Role;
use aloe_model::lora::NEAR_ZERO;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Rows whose norms give the median.
const N_SAMPLED: usize = 512;

/// A control token of the result's template.
struct Control {
    token: String,
    /// Whether a model is to emit it; the token that begins a text is only read.
    is_predicted: bool,
}

/// A note per matrix and kind of row.
pub(crate) fn notes(plan: &MergePlan) -> Result<Vec<String>> {
    let controls = controls(plan)?;
    let mut notes = Vec::new();
    if controls.is_empty() {
        return Ok(notes);
    }
    let tied = plan.config.tie_word_embeddings;
    for tensor in plan.tensors.iter().filter(|tensor| matches!(tensor.spec.role, Role::Embed | Role::Head)) {
        let slice = &plan.slices[tensor.slice];
        if slice.models.iter().any(|model| !plan.models[*model].is_merged()) {
            continue;
        }
        let needs = |control: &Control| tensor.spec.role == Role::Embed || control.is_predicted || tied;
        let ids: Vec<u32> = controls.iter().filter(|(_, control)| needs(control)).map(|(id, _)| *id).collect();
        notes.extend(of_matrix(plan, tensor, &ids, &controls)?);
    }
    Ok(notes)
}

fn of_matrix(
    plan: &MergePlan,
    tensor: &PlannedTensor,
    ids: &[u32],
    controls: &BTreeMap<u32, Control>,
) -> Result<Vec<String>> {
    let (n_rows, n_cols) = (tensor.spec.shape[0], tensor.spec.shape[1]);
    let sources = plan.sources(tensor)?;
    let base = plan.slices[tensor.slice].reference.filter(|_| sources.len() > 1);
    let of_base = base.map(|base| rows(&sources[base], ids, n_cols)).transpose()?;
    // A row that the base borrows from another model is equal to it and says nothing about training.
    let map = plan.row_map(&tensor.spec);
    let base_has = |id: u32| base.zip(map).is_none_or(|(base, map)| matches!(map.row(base, id as usize), Row::Own(_)));
    let mut reasons: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut unchanged: BTreeMap<u32, usize> = BTreeMap::new();
    let n_others = sources.len() - usize::from(base.is_some());
    for (index, source) in sources.iter().enumerate() {
        let own = rows(source, ids, n_cols)?;
        // The base too: every method takes its row in, as a model like the others or as what changes are added to.
        for (id, reason) in untrained(source, ids, &own, n_rows, n_cols)? {
            reasons.entry(id).or_default().push(reason);
        }
        if Some(index) == base {
            continue;
        }
        for (at, id) in ids.iter().enumerate().filter(|(_, id)| base_has(**id)) {
            if of_base.as_ref().is_some_and(|of_base| of_base[at] == own[at]) {
                *unchanged.entry(*id).or_default() += 1;
            }
        }
    }
    let name = &tensor.spec.hf_name;
    let token = |id: &u32| format!("{} (id {id})", controls[id].token);
    let mut notes = Vec::new();
    let never: Vec<u32> =
        ids.iter().copied().filter(|id| reasons.get(id).is_some_and(|r| r.len() == sources.len())).collect();
    if let Some(first) = never.first() {
        notes.push(format!(
            "no model trained the rows of these tokens of the template in {name}: {}; {} has {}",
            never.iter().map(token).collect::<Vec<_>>().join(", "),
            controls[first].token,
            reasons[first][0]
        ));
    }
    let same = |id: &&u32| unchanged.get(id) == Some(&n_others) && !never.contains(id);
    let same: Vec<String> = ids.iter().filter(same).map(token).collect();
    if !same.is_empty() {
        notes.push(format!(
            "no model changed the rows of these tokens of the template in {name} from the base's: {}",
            same.join(", ")
        ));
    }
    Ok(notes)
}

fn rows(source: &Source, ids: &[u32], n_cols: usize) -> Result<Vec<Vec<u32>>> {
    ids.iter().map(|id| row(source, *id as usize, n_cols)).collect()
}

/// The bits of a row.
fn row(source: &Source, at: usize, n_cols: usize) -> Result<Vec<u32>> {
    let mut values = vec![0.0f32; n_cols];
    source.read(at * n_cols, MergeDtype::Float32, &mut values)?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

fn norm(row: &[u32]) -> f64 {
    row.iter().map(|bits| f64::from(f32::from_bits(*bits)).powi(2)).sum::<f64>().sqrt()
}

/// Which of the rows are untrained in this model, and what they look like.
fn untrained(
    source: &Source,
    ids: &[u32],
    own: &[Vec<u32>],
    n_rows: usize,
    n_cols: usize,
) -> Result<Vec<(u32, String)>> {
    let mut first_of: HashMap<Vec<u32>, usize> = HashMap::new();
    let mut norms = Vec::with_capacity(N_SAMPLED);
    for at in (0..n_rows).step_by(n_rows.div_ceil(N_SAMPLED)) {
        let row = row(source, at, n_cols)?;
        norms.push(norm(&row));
        first_of.insert(row, at);
    }
    norms.sort_by(f64::total_cmp);
    let median = norms[norms.len() / 2];
    let mut found = Vec::new();
    for (place, (id, row)) in ids.iter().zip(own).enumerate() {
        let sampled = first_of.get(row).filter(|at| **at != *id as usize).copied();
        let control = || ids.iter().zip(own).enumerate().find(|(other, (_, r))| *other != place && *r == row);
        let twin = sampled.or_else(|| control().map(|(_, (id, _))| *id as usize));
        let reason = match twin {
            _ if norm(row) <= NEAR_ZERO * median => {
                format!("a row of norm {:.1e} where the median row's is {median:.1e}", norm(row))
            }
            Some(twin) => format!("the same numbers as row {twin}"),
            None => continue,
        };
        found.push((*id, reason));
    }
    Ok(found)
}

/// The added tokens that the result's template writes, and those that begin and end a text.
fn controls(plan: &MergePlan) -> Result<BTreeMap<u32, Control>> {
    #[derive(serde::Deserialize)]
    struct AddedOnly {
        #[serde(default)]
        added_tokens: Vec<Value>,
    }
    let files = Beside::Planned(Arc::new(plan.files.clone()));
    let (Some(template), Some(added)) = (template_of(&files)?, files.read_json::<AddedOnly>("tokenizer.json")?) else {
        return Ok(BTreeMap::new());
    };
    let mut controls = BTreeMap::new();
    for entry in &added.added_tokens {
        let (Some(id), Some(token)) = (entry["id"].as_u64(), entry["content"].as_str()) else { continue };
        let id = id as u32;
        let begins = plan.config.bos_token_id == Some(id);
        let ends = plan.config.eos_token_ids.contains(&id);
        let is_written = template.contains(token) || ends || (begins && template.contains("bos_token"));
        if is_written && !token.trim().is_empty() && (id as usize) < plan.config.vocab_size {
            controls.insert(id, Control { token: token.to_owned(), is_predicted: ends || !begins });
        }
    }
    Ok(controls)
}
