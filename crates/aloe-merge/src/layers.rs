//! Layers of the result: which layers of which input each slice takes, and where a tensor stands among them. Part of making the plan.
//!
//! Refuses layers that a model does not have, and sources of a slice with other numbers of them.

use crate::config::MergeConfig;
use crate::inputs::PlannedModel;
use crate::{Error, Mistake, Result};
use aloe_model::{Config, Role};

/// First layer and end per source of every slice; all layers where the configuration says nothing.
pub(crate) fn layer_ranges(config: &MergeConfig, models: &[PlannedModel]) -> Result<Vec<Vec<(usize, usize)>>> {
    let mut mistakes = Vec::new();
    let mut ranges = Vec::new();
    for slice in &config.slices {
        let mut of_slice = Vec::new();
        for source in &slice.sources {
            let model = &models[source.model];
            let n_layers = model.config.num_hidden_layers;
            let (first, end) = source.layers.unwrap_or((0, n_layers));
            if end > n_layers {
                let text = format!("layer_range [{first}, {end}] of {}, which has {n_layers} layers", model.name);
                mistakes.push(Mistake { line: source.line, text });
            }
            of_slice.push((first, end));
        }
        let odd = of_slice.iter().zip(&slice.sources).find(|(r, _)| r.1 - r.0 != of_slice[0].1 - of_slice[0].0);
        if let Some((range, source)) = odd {
            let (found, expected) = (range.1 - range.0, of_slice[0].1 - of_slice[0].0);
            let (name, first) = (&models[source.model].name, &models[slice.sources[0].model].name);
            let text = format!("num_hidden_layers of {name} is {found}, that of {first} is {expected}: use slices");
            mistakes.push(Mistake { line: source.line, text });
        }
        ranges.push(of_slice);
    }
    if mistakes.is_empty() { Ok(ranges) } else { Err(Error::Config { path: config.path.clone(), mistakes }) }
}

/// Sets the number of layers, also in lists of the source's config.json that have one entry per layer.
pub(crate) fn set_layers(config: &mut Config, n_layers: usize) {
    let before = config.num_hidden_layers;
    config.num_hidden_layers = n_layers;
    if n_layers == before {
        return;
    }
    if let Some(types) = config.raw.get_mut("layer_types").and_then(serde_json::Value::as_array_mut) {
        let last = types.last().cloned().unwrap_or_else(|| "full_attention".into());
        types.resize(n_layers, last);
    }
}

/// Where a tensor stands: its slice, its layer within, and the place `t` of gradients.
pub(crate) struct Place {
    pub(crate) slice: usize,
    pub(crate) offset: usize,
    pub(crate) t: f64,
}

/// `t` runs from 0 to 1 over the layers of a slice, is 1 in a slice of one layer, and 0 before and after the layers (mergekit, `plan.py`).
pub(crate) fn place(role: Role, ranges: &[Vec<(usize, usize)>]) -> Place {
    match role {
        Role::Embed => Place { slice: 0, offset: 0, t: 0.0 },
        Role::FinalNorm | Role::Head => Place { slice: ranges.len() - 1, offset: 0, t: 0.0 },
        Role::Layer(index, _) | Role::LoraA(index, _) | Role::LoraB(index, _) => {
            let mut offset = index;
            for (slice, sources) in ranges.iter().enumerate() {
                let n = sources[0].1 - sources[0].0;
                if offset < n {
                    let t = if n == 1 { 1.0 } else { offset as f64 / (n - 1) as f64 };
                    return Place { slice, offset, t };
                }
                offset -= n;
            }
            unreachable!("the result has as many layers as its slices")
        }
    }
}
