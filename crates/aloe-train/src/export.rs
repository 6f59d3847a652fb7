//! The end of a training stage: `model/` (bf16, what users load) and `master/` (f32, what the next stage reads), and how much
//! of the update the bf16 rounding keeps.
//!
//! Weights are rounded as the compute copies of bf16 training are, up or down by a fixed threshold of each: to nearest, an update
//! smaller than half a gap between bf16 numbers would be lost with every weight.

use crate::Result;
use aloe_model::{CheckpointWriter, Config, ModelSource, TensorSpec, arch};
use aloe_tensor::{Dtype, Tensor, rounded_by_place};
use aloe_text::TextModel;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The update W - W0 of a stage and what its bf16 export keeps of it. Norms are Euclidean over all weights, in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExportReport {
    /// |W0|.
    pub start_norm: f64,
    /// |W - W0|.
    pub update_norm: f64,
    /// |round(W) - W0| / |W - W0|: near 1 when the rounding is small beside the update, above it where few of
    /// many small steps are made whole.
    pub export_norm_ratio: f64,
    /// <round(W) - round(W0), W - W0> / |W - W0|^2: the share of the update that the export makes, near 1 when it is kept.
    pub export_update_kept: f64,
    /// Share of weights whose bf16 value differs from the start's.
    pub export_changed_share: f64,
    /// Share of f32 masters that changed at all.
    pub master_changed_share: f64,
}

/// The shares of an update that an export may make without a word: less, and most of it has vanished; more, and rounding has made a larger one.
const KEPT: std::ops::RangeInclusive<f64> = 0.5..=1.5;

impl ExportReport {
    /// A line on an update that is none, or that `model/` does not make.
    pub fn notice(&self) -> Option<String> {
        let Self { update_norm, export_update_kept: kept, export_changed_share, .. } = self;
        let advice =
            "master/ has all of it and is what later stages start from; a larger lr or more steps bring it into bf16";
        if *update_norm == 0.0 {
            Some("the training changed no weight: what is written is the start".to_owned())
        } else if *export_changed_share == 0.0 {
            Some(format!(
                "the bf16 export in model/ is that of the start: the whole update (norm {update_norm:.3e}) is lost in rounding; {advice}"
            ))
        } else if !KEPT.contains(kept) {
            Some(format!(
                "the bf16 export in model/ makes {kept:.2} times the update (norm {update_norm:.3e}), not 0.5 to 1.5 times as usual; {advice}"
            ))
        } else {
            None
        }
    }
}

/// Writes `out/model` and `out/master` with the tokenizer's files, tensor by tensor, and compares start and end. `weight` gives both
/// in f32 for one row of the model's table.
pub(crate) fn write_folders(
    config: &Config,
    text: &TextModel,
    out: &Path,
    weight: &mut dyn FnMut(&TensorSpec) -> Result<(Tensor, Tensor)>,
) -> Result<ExportReport> {
    let files: Vec<(String, Vec<u8>)> = text.files().into_iter().map(|file| (file.name, file.bytes)).collect();
    let mut master = CheckpointWriter::create(&out.join("master"), config, Dtype::F32)?;
    let mut model = CheckpointWriter::create(&out.join("model"), config, Dtype::Bf16)?;
    let mut sums = Sums::default();
    for spec in arch::tensors(config) {
        let (start, end) = weight(&spec)?;
        master.add(&spec.hf_name, end.as_f32())?;
        model.add(&spec.hf_name, &rounded_by_place(end.as_f32()))?;
        sums.add(&start, &end);
    }
    master.finish(&files)?;
    model.finish(&files)?;
    Ok(sums.report())
}

/// Writes `out/model` and `out/master` of a stage that another program trained from `start` to `trained`, both checkpoint folders of the
/// same shape; the caller has checked them. `text` is written beside the weights.
pub fn hand_back(start: &Path, trained: &Path, text: &TextModel, out: &Path) -> Result<ExportReport> {
    let (start, trained) = (ModelSource::open(start)?, ModelSource::open(trained)?);
    let load = |source: &ModelSource, spec: &TensorSpec| -> Result<Tensor> {
        Ok(Tensor::from_f32(&spec.shape, source.load_f32(&spec.hf_name)?))
    };
    write_folders(start.config(), text, out, &mut |spec| Ok((load(&start, spec)?, load(&trained, spec)?)))
}

#[derive(Default)]
struct Sums {
    start: f64,
    update: f64,
    export: f64,
    product: f64,
    n_export_changed: u64,
    n_master_changed: u64,
    n: u64,
}

impl Sums {
    fn add(&mut self, start: &Tensor, end: &Tensor) {
        let (start_bf16, end_bf16) = (rounded_by_place(start.as_f32()), rounded_by_place(end.as_f32()));
        let values = start.as_f32().iter().zip(end.as_f32()).zip(start_bf16.iter().zip(&end_bf16));
        for ((&w0, &w), (&copy0, &copy)) in values {
            let update = f64::from(w) - f64::from(w0);
            let (rounded0, rounded) = (f64::from(copy0), f64::from(copy));
            self.start += f64::from(w0) * f64::from(w0);
            self.update += update * update;
            self.export += (rounded - f64::from(w0)).powi(2);
            self.product += (rounded - rounded0) * update;
            self.n_export_changed += u64::from(copy.to_bits() != copy0.to_bits());
            self.n_master_changed += u64::from(w.to_bits() != w0.to_bits());
        }
        self.n += start.len() as u64;
    }

    fn report(&self) -> ExportReport {
        let share = |count: u64| count as f64 / self.n.max(1) as f64;
        let over_update = |value: f64| if self.update > 0.0 { value / self.update } else { 0.0 };
        ExportReport {
            start_norm: self.start.sqrt(),
            update_norm: self.update.sqrt(),
            export_norm_ratio: over_update(self.export).sqrt(),
            export_update_kept: over_update(self.product),
            export_changed_share: share(self.n_export_changed),
            master_changed_share: share(self.n_master_changed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(start: &[f32], end: &[f32]) -> ExportReport {
        let tensor = |values: &[f32]| Tensor::from_f32(&[values.len()], values.to_vec());
        let mut sums = Sums::default();
        sums.add(&tensor(start), &tensor(end));
        sums.report()
    }

    /// 4,096 weights that a bf16 number holds, or does not, each moved by an eighth of the gap of 2^-7: the sum of what is kept is that of
    /// the update, though most weights stay where they were.
    #[test]
    fn an_update_below_half_a_bf16_step_is_kept_on_average() {
        for start in [1.0, 1.0 + 1.0 / 512.0] {
            let found = report(&[start; 4096], &[start + 1.0 / 1024.0; 4096]);
            assert!((found.export_update_kept - 1.0).abs() < 0.02, "{found:?}");
            assert!((found.export_changed_share - 0.125).abs() < 0.01, "{found:?}");
            assert_eq!(found.master_changed_share, 1.0);
        }
    }

    #[test]
    fn an_export_that_makes_less_than_half_of_the_update_or_half_as_much_again_is_told() {
        let of = |kept: f64| ExportReport {
            update_norm: 1.0,
            export_update_kept: kept,
            export_changed_share: 0.1,
            ..ExportReport::default()
        };
        for kept in [0.5, 1.0, 1.5] {
            assert_eq!(of(kept).notice(), None);
        }
        for kept in [0.4, 1.6, -0.1] {
            assert!(of(kept).notice().unwrap().contains("times the update (norm 1.000e0)"));
        }
        // A step of f32 that no threshold of bf16 lies in.
        let lost = report(&[1.5; 8], &[1.5 + f32::EPSILON; 8]).notice().unwrap();
        assert!(lost.contains("is that of the start") && lost.contains("master/"), "{lost}");
        assert!(report(&[1.5; 8], &[1.5; 8]).notice().unwrap().contains("changed no weight"));
        assert_eq!(report(&[1.0; 8], &[1.25; 8]).notice(), None);
    }

    #[test]
    fn an_update_of_whole_bf16_steps_is_kept_whole() {
        let step = 1.0 / 128.0;
        let found = report(&[1.0, 1.5, 0.0], &[1.0 + 3.0 * step, 1.5 - step, 0.0]);
        assert!((found.export_update_kept - 1.0).abs() < 1e-12);
        assert!((found.export_norm_ratio - 1.0).abs() < 1e-12);
        assert!((found.export_changed_share - 2.0 / 3.0).abs() < 1e-12);
    }
}
