//! The weights of a returned folder: every tensor there, of the right shape, f32, finite, and away from where it started.

use super::curve::Curve;
use super::{Expectation, Facts, Findings};
use aloe_model::{Config, FileDtype, ModelSource, SafeTensorsFile, arch};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const INDEX: &str = "model.safetensors.index.json";

/// Files of weights and which of them holds a tensor.
struct Files {
    files: BTreeMap<String, SafeTensorsFile>,
    places: BTreeMap<String, String>,
}

pub(super) fn check(findings: &mut Findings<'_>, facts: &mut Facts, expected: &Expectation, curve: Option<&Curve>) {
    let start = match ModelSource::open(&expected.start) {
        Ok(start) => start,
        Err(error) => return findings.add("config.json", "start", "a checkpoint", error),
    };
    let files = open(findings);
    let specs = arch::tensors(start.config());
    facts.n_tensors = files.places.len();
    extra(findings, &files, &specs.iter().map(|spec| spec.hf_name.as_str()).collect(), start.config());
    let (mut start_sum, mut update_sum) = (0f64, 0f64);
    for spec in &specs {
        let name = &spec.hf_name;
        let Some(file_name) = files.places.get(name) else {
            findings.add("model.safetensors", name, "there", "missing");
            continue;
        };
        let file = &files.files[file_name];
        let Some(info) = file.info(name) else { continue };
        if info.shape != spec.shape {
            findings.add(file_name, name, format!("shape {:?}", spec.shape), format!("{:?}", info.shape));
            continue;
        }
        if info.dtype != FileDtype::F32 {
            findings.add(file_name, name, "F32, as it was trained", info.dtype.name());
            continue;
        }
        let (before, after) = match (start.load_f32(name), file.load_f32(name)) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(error), _) | (_, Err(error)) => {
                findings.error(file_name, name, &error);
                continue;
            }
        };
        let n_bad = after.iter().filter(|value| !value.is_finite()).count();
        if n_bad > 0 {
            findings.add(file_name, name, "finite numbers", format!("{n_bad} of {} that are not", after.len()));
            continue;
        }
        let moved = Movement::of(&before, &after);
        let farthest = curve.map(|curve| curve.farthest(moved.largest));
        if moved.update_sum == 0.0 {
            findings.add(file_name, name, "moved from where it started", "the start's values");
        } else if let Some(farthest) = farthest.filter(|farthest| moved.farthest > *farthest) {
            let planned =
                format!("within {farthest:.2e} of the start, as far as AdamW goes by the planned learning rates");
            findings.add(file_name, name, planned, format!("a weight {:.2e} away", moved.farthest));
        }
        (start_sum, update_sum) = (start_sum + moved.start_sum, update_sum + moved.update_sum);
    }
    facts.moved = if start_sum > 0.0 { (update_sum / start_sum).sqrt() } else { 0.0 };
}

/// A tensor against its start: sums of squares of the start and of the update, the farthest and the largest weight.
#[derive(Default)]
struct Movement {
    start_sum: f64,
    update_sum: f64,
    farthest: f64,
    largest: f64,
}

impl Movement {
    fn of(before: &[f32], after: &[f32]) -> Self {
        let mut found = Self::default();
        for (&w0, &w) in before.iter().zip(after) {
            let (w0, w) = (f64::from(w0), f64::from(w));
            found.start_sum += w0.powi(2);
            found.update_sum += (w - w0).powi(2);
            found.farthest = found.farthest.max((w - w0).abs());
            found.largest = found.largest.max(w0.abs()).max(w.abs());
        }
        found
    }
}

/// Opens what weight files there are; the index and the shards must say the same.
fn open(findings: &mut Findings<'_>) -> Files {
    let folder = findings.folder.to_path_buf();
    let mut found = Files { files: BTreeMap::new(), places: BTreeMap::new() };
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.ends_with(".safetensors"));
    names.sort();
    if names.is_empty() {
        findings.add("model.safetensors", "file", "there", "no safetensors file");
    }
    for name in names {
        match SafeTensorsFile::open(&folder.join(&name)) {
            Ok(file) => {
                for tensor in file.names() {
                    if let Some(other) = found.places.insert(tensor.clone(), name.clone()) {
                        findings.add(&name, tensor, "in one file", format!("in {other} too"));
                    }
                }
                found.files.insert(name, file);
            }
            Err(error) => findings.error(&name, "file", &error),
        }
    }
    let text = std::fs::read_to_string(folder.join(INDEX));
    let is_single = found.files.len() == 1 && found.files.contains_key("model.safetensors");
    match text.ok().map(|text| serde_json::from_str::<Value>(&text)) {
        Some(Ok(index)) => agree(findings, &found, &index),
        Some(Err(error)) => findings.add(INDEX, "file", "JSON", error),
        None if !is_single && !found.files.is_empty() => {
            findings.add(INDEX, "file", "there, as for all shards", "missing")
        }
        None => {}
    }
    found
}

fn agree(findings: &mut Findings<'_>, files: &Files, index: &Value) {
    let Some(map) = index["weight_map"].as_object() else {
        return findings.add(INDEX, "weight_map", "a map of tensors to shards", "none");
    };
    let listed: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    for shard in listed.iter().filter(|shard| !findings.folder.join(shard).is_file()).copied().collect::<Vec<_>>() {
        findings.add(shard, "file", "there, as in the index", "missing");
    }
    for (tensor, shard) in map {
        let place = files.places.get(tensor).map(String::as_str);
        if place != shard.as_str() {
            findings.add(INDEX, tensor, format!("in {}", place.unwrap_or("no file")), format!("in {shard}"));
        }
    }
    for tensor in files.places.keys().filter(|tensor| !map.contains_key(*tensor)) {
        findings.add(INDEX, tensor, "listed", "missing");
    }
}

/// Tensors that the model does not have. A tied head may be written out as the same numbers as the embedding.
fn extra(findings: &mut Findings<'_>, files: &Files, known: &BTreeSet<&str>, config: &Config) {
    for (name, place) in files.places.iter().filter(|(name, _)| !known.contains(name.as_str())) {
        if config.tie_word_embeddings && name == "lm_head.weight" {
            let bytes = |tensor: &str| files.files.get(files.places.get(tensor)?)?.bytes(tensor).ok();
            if bytes(name) != bytes("model.embed_tokens.weight") {
                findings.add(place, name, "the embedding's values, to which it is tied", "others");
            }
        } else {
            findings.add(place, name, "no such tensor", "one");
        }
    }
}
