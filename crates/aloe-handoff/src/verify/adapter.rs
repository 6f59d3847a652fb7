//! The adapter of a returned folder: every A and B there, of the right shape, f32, finite, and away from where it started; its settings those
//! of the plan.

use super::{Expectation, Facts, Findings};
use aloe_model::lora::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA_TARGETS, name_in_adapter};
use aloe_model::{FileDtype, LoraAdapter, ModelSource, Role, SafeTensorsFile, TensorSpec, arch};
use aloe_train::LoraConfig;
use serde_json::Value;
use std::collections::BTreeSet;

pub(super) fn check(findings: &mut Findings<'_>, facts: &mut Facts, expected: &Expectation, lora: &LoraConfig) {
    let start = match ModelSource::open(&expected.start) {
        Ok(start) => start,
        Err(error) => return findings.add("config.json", "start", "a checkpoint", error),
    };
    settings(findings, lora);
    let file = match SafeTensorsFile::open(&findings.folder.join(ADAPTER_WEIGHTS)) {
        Ok(file) => file,
        Err(error) => return findings.error(ADAPTER_WEIGHTS, "file", &error),
    };
    let seed = expected.stage.config["seed"].as_u64().unwrap_or(0);
    let shape = lora.shape();
    // No weight is trained whole, so none is asked for.
    let masters = match shape.start(&start, seed) {
        Ok(masters) => masters,
        Err(error) => return findings.add("config.json", "start", "updates of its layers", error),
    };
    facts.n_tensors = file.names().len();
    let known: BTreeSet<String> = masters.specs().iter().map(|spec| name_in_adapter(&spec.hf_name)).collect();
    for name in file.names().iter().filter(|name| !known.contains(*name)) {
        findings.add(ADAPTER_WEIGHTS, name, "no such tensor", "one");
    }
    let n_before = findings.list.len();
    for (spec, before) in masters.specs().iter().zip(masters.tensors()) {
        // B begins as zero, so the first step's gradient of A is zero.
        let must_move = expected.n_steps > 1 || matches!(spec.role, Role::LoraB(..));
        one(findings, &file, spec, before.as_f32(), must_move);
    }
    if findings.list.len() == n_before {
        match moved(findings, &start) {
            Ok(moved) => facts.moved = moved,
            Err(error) => findings.error(ADAPTER_WEIGHTS, "updates", &error),
        }
    }
}

fn one(findings: &mut Findings<'_>, file: &SafeTensorsFile, spec: &TensorSpec, before: &[f32], must_move: bool) {
    let name = name_in_adapter(&spec.hf_name);
    let Some(info) = file.info(&name) else { return findings.add(ADAPTER_WEIGHTS, name, "there", "missing") };
    if info.shape != spec.shape {
        return findings.add(ADAPTER_WEIGHTS, name, format!("shape {:?}", spec.shape), format!("{:?}", info.shape));
    }
    if info.dtype != FileDtype::F32 {
        return findings.add(ADAPTER_WEIGHTS, name, "F32, as it was trained", info.dtype.name());
    }
    let after = match file.load_f32(&name) {
        Ok(after) => after,
        Err(error) => return findings.error(ADAPTER_WEIGHTS, &name, &error),
    };
    let n_bad = after.iter().filter(|value| !value.is_finite()).count();
    if n_bad > 0 {
        let found = format!("{n_bad} of {} that are not", after.len());
        findings.add(ADAPTER_WEIGHTS, name, "finite numbers", found);
    } else if must_move && after == before {
        findings.add(ADAPTER_WEIGHTS, name, "moved from where it started", "the start's values");
    }
}

/// |dW| / |W| over all weights of the model.
fn moved(findings: &Findings<'_>, start: &ModelSource) -> aloe_model::Result<f64> {
    let adapter = LoraAdapter::open(findings.folder)?;
    let specs = arch::tensors(start.config());
    adapter.check(&specs)?;
    let squares = |values: &[f32]| values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
    let (mut start_sum, mut update_sum) = (0f64, 0f64);
    for spec in &specs {
        start_sum += squares(&start.load_f32(&spec.hf_name)?);
        if let Some(delta) = adapter.delta(spec)? {
            let mut update = vec![0f32; spec.n_elements()];
            delta.add(0, &mut update);
            update_sum += squares(&update);
        }
    }
    Ok(if start_sum > 0.0 { (update_sum / start_sum).sqrt() } else { 0.0 })
}

/// `adapter_config.json` says how the updates are scaled and what they are beside.
fn settings(findings: &mut Findings<'_>, lora: &LoraConfig) {
    let found: Value = match aloe_record::atomic::read_json(&findings.folder.join(ADAPTER_CONFIG)) {
        Ok(found) => found,
        Err(error) => return findings.error(ADAPTER_CONFIG, "file", &error),
    };
    let targets: BTreeSet<&str> =
        found["target_modules"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let parts = lora.shape().targets;
    let planned: BTreeSet<&str> =
        LORA_TARGETS.into_iter().filter(|(_, part)| parts.contains(part)).map(|(name, _)| name).collect();
    if targets != planned {
        findings.add(ADAPTER_CONFIG, "target_modules", format!("{planned:?}"), format!("{targets:?}"));
    }
    for (key, planned) in [("r", lora.rank as f64), ("lora_alpha", lora.alpha)] {
        if found[key].as_f64() != Some(planned) {
            findings.add(ADAPTER_CONFIG, key, planned, &found[key]);
        }
    }
    let is_set = |key: &str| match &found[key] {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    for key in ["use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "modules_to_save", "lora_bias"] {
        if is_set(key) {
            findings.add(ADAPTER_CONFIG, key, "nothing", &found[key]);
        }
    }
}
