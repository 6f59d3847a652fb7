//! Merging a checkpoint with itself returns it: every tensor, as the merge reads and computes it, is the tensor that training and
//! inference read, bit for bit. Nothing is written.

use super::{Check, Subject};
use aloe_merge::{MergeConfig, MergeOptions, merge_tensor, plan};
use std::path::Path;

pub(super) fn check(subject: &Subject) -> anyhow::Result<Check> {
    let what = "weights: merged with itself and read";
    if subject.source.gguf_metadata().is_some() {
        return Ok(Check::not_made(what, "merging reads folders, not .gguf files"));
    }
    let path = std::path::absolute(&subject.path)?;
    // A configuration names each model once; the same folder under another spelling is the second one.
    let entry = |path: &Path| -> anyhow::Result<String> {
        let model = serde_json::to_string(&path.to_string_lossy())?;
        Ok(format!("  - model: {model}\n    parameters: {{weight: 0.5}}\n"))
    };
    let (one, other) = (entry(&path)?, entry(Path::new(&format!("{}/.", path.display())))?);
    let yaml = format!("merge_method: linear\nmodels:\n{one}{other}dtype: float32\n");
    let config = MergeConfig::parse(&yaml, Path::new("parity"))?;
    let options = MergeOptions { threads: subject.threads, ..MergeOptions::default() };
    let plan = plan(&config, &options)?;
    let (mut n_values, mut found) = (0, None);
    for tensor in &plan.tensors {
        subject.cancel.check()?;
        let (merged, _) = merge_tensor(&config, &plan, tensor)?;
        let read = subject.source.load_f32(&tensor.spec.hf_name)?;
        n_values += read.len();
        let differs =
            merged.len() != read.len() || merged.iter().zip(&read).any(|(a, b)| a.to_bits() != b.to_bits() && a != b);
        if differs {
            found = found.or_else(|| Some(tensor.spec.hf_name.clone()));
        }
    }
    let n_read = subject.source.specs().len();
    if plan.tensors.len() != n_read {
        found = found.or_else(|| Some(format!("{} tensors against {n_read}", plan.tensors.len())));
    }
    Ok(Check::equal(what, n_values, found))
}
