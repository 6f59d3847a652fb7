//! `aloe parity`: whether all ways through the program see the same token ids and the same numbers of one checkpoint, and whether
//! they are those of transformers, as a stored fixture tells them.
//!
//! Reading order: `mod` (what is checked and how far values may lie apart), `ids`, `paths` (training, packed, scoring, generation),
//! `merging`, `fixture`. A check that cannot be made (no chat template, no fixture) is listed as not made, never as agreeing.

mod fixture;
mod ids;
mod merging;
mod paths;

use crate::weights::DtypeName;
use aloe_engine::{Engine, EngineOptions, WeightFormat};
use aloe_model::{Decoder, ModelSource};
use aloe_record::Cancel;
use aloe_tensor::{Device, Dtype};
use aloe_text::TextModel;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How far two ways may lie apart: differences of log-probabilities, natural logarithm.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Tolerance {
    /// Of all values on average.
    pub(crate) mean: f64,
    /// Of each.
    pub(crate) max: f64,
}

/// Bit for bit: f32 ways through this program.
const EXACT: Tolerance = Tolerance { mean: 0.0, max: 0.0 };
/// The same number summed in f32 by one way and in f64 by another.
const F32_SUMS: Tolerance = Tolerance { mean: 1e-6, max: 1e-4 };
/// f32 here against f32 of transformers: other orders of summation in every product.
const F32_PEER: Tolerance = Tolerance { mean: 1e-4, max: 2e-3 };
/// Where one side rounds operands to bf16 that the other does not: scale-and-reliability.md's contract, measured there between vLLM and
/// transformers.
const BF16: Tolerance = Tolerance { mean: 0.10, max: 0.35 };
/// The most probable token must be the same where the reference's lead is larger than this, in nats.
const MARGIN: f64 = 0.5;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// What is compared with what.
    pub(crate) what: String,
    /// `f32` or `bf16`; none for ids.
    pub(crate) dtype: Option<&'static str>,
    /// Whether they agree; none where the check could not be made, and `note` says why.
    pub(crate) agrees: Option<bool>,
    /// Values compared.
    pub(crate) n_values: usize,
    /// Mean difference.
    pub(crate) mean: f64,
    /// Largest difference.
    pub(crate) max: f64,
    /// What was allowed.
    pub(crate) tolerance: Tolerance,
    /// The first disagreement, or why there is no check.
    pub(crate) note: String,
}

impl Check {
    /// Ids or other values that are equal or not; `found` is the first difference in words.
    fn equal(what: impl Into<String>, n_values: usize, found: Option<String>) -> Self {
        let agrees = Some(found.is_none());
        let note = found.unwrap_or_default();
        Self { what: what.into(), dtype: None, agrees, n_values, mean: 0.0, max: 0.0, tolerance: EXACT, note }
    }

    fn not_made(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { agrees: None, note: why.into(), ..Self::equal(what, 0, None) }
    }

    /// Numbers beside their reference. A value that is no number disagrees.
    fn near(what: impl Into<String>, dtype: Dtype, pairs: &[(f64, f64)], tolerance: Tolerance) -> Self {
        let differences: Vec<f64> = pairs.iter().map(|(a, b)| (a - b).abs()).collect();
        let max = differences.iter().copied().fold(0.0, f64::max);
        let mean = differences.iter().sum::<f64>() / differences.len().max(1) as f64;
        let is_number = differences.iter().all(|difference| difference.is_finite());
        let agrees = is_number && !pairs.is_empty() && mean <= tolerance.mean && max <= tolerance.max;
        let worst = differences.iter().position(|difference| !difference.is_finite());
        let worst = worst.or_else(|| differences.iter().position(|difference| *difference == max));
        let note = match worst {
            _ if agrees => String::new(),
            Some(at) => format!("value {at}: {:.6} against {:.6}", pairs[at].0, pairs[at].1),
            None => "nothing was compared".to_owned(),
        };
        let dtype = Some(name_of(dtype));
        Self { what: what.into(), dtype, agrees: Some(agrees), n_values: pairs.len(), mean, max, tolerance, note }
    }

    /// Adds the first place where the most probable token differs although the reference's lead is clear.
    fn with_argmax(mut self, differs: Option<String>) -> Self {
        if let Some(differs) = differs {
            (self.agrees, self.note) = (Some(false), differs);
        }
        self
    }
}

/// A checkpoint with everything that the checks share.
pub(crate) struct Subject {
    /// The folder of the weights, or a `.gguf` file.
    pub(crate) path: PathBuf,
    pub(crate) source: ModelSource,
    pub(crate) text: TextModel,
    pub(crate) threads: usize,
    pub(crate) cancel: Cancel,
}

impl Subject {
    pub(crate) fn open(path: &Path, threads: usize, cancel: &Cancel) -> anyhow::Result<Self> {
        let path = crate::stage::checked_model(path)?;
        let source = ModelSource::open(&path)?;
        source.check_finite()?;
        let text = crate::commands::open_text(&path)?;
        Ok(Self { path, source, text, threads, cancel: cancel.clone() })
    }

    /// The model as training computes with it.
    fn decoder(&self, dtype: Dtype) -> anyhow::Result<Decoder> {
        Ok(Decoder::open(&self.source, dtype, &Device::cpu(self.threads))?)
    }

    /// The model as evaluation and chat ask it.
    fn engine(&self, dtype: Dtype) -> anyhow::Result<Engine> {
        let format = Some(WeightFormat::Dense(dtype));
        let options = EngineOptions { format, threads: self.threads, ..EngineOptions::default() };
        Ok(Engine::open(&self.path.to_string_lossy(), &options)?)
    }

    /// Token ids of the texts that the ways are compared on, short enough for the model's context.
    fn samples(&self) -> anyhow::Result<Vec<Vec<u32>>> {
        let most = self.source.config().max_position_embeddings.min(160);
        let texts = ids::TEXTS.iter().map(|text| self.text.encode_prompt_text(text));
        let mut found: Vec<Vec<u32>> = texts.collect::<Result<_, _>>()?;
        if self.text.template.is_some() {
            match self.text.encode_conversation(&ids::conversation()) {
                // What is wrong with such a template is told by a check of its own.
                Err(aloe_text::Error::NotPrefixConsistent { .. }) => {}
                encoded => found.push(encoded?.ids),
            }
        }
        found.iter_mut().for_each(|ids| ids.truncate(most));
        Ok(found)
    }
}

/// All checks of a checkpoint.
pub(crate) fn checks(subject: &Subject, dtypes: &[DtypeName], fixture: Option<&Path>) -> anyhow::Result<Vec<Check>> {
    let fixture = fixture.map(fixture::Fixture::read).transpose()?;
    let mut checks = ids::checks(subject)?;
    match &fixture {
        Some(fixture) => checks.extend(fixture.ids(subject)?),
        None => checks.push(Check::not_made("ids and logits: transformers", "no --fixture was given")),
    }
    checks.push(merging::check(subject)?);
    for dtype in dtypes.iter().map(|dtype| dtype.dtype()) {
        subject.cancel.check()?;
        let decoder = subject.decoder(dtype)?;
        checks.extend(paths::checks(subject, &decoder)?);
        if let Some(fixture) = &fixture {
            checks.push(fixture.logits(&decoder)?);
        }
    }
    Ok(checks)
}

fn name_of(dtype: Dtype) -> &'static str {
    if dtype == Dtype::F32 { "f32" } else { "bf16" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_beyond_mean_or_maximum_and_a_value_that_is_no_number_disagree() {
        let check = |pairs: &[(f64, f64)]| Check::near("x", Dtype::Bf16, pairs, BF16);
        assert_eq!(check(&[(1.0, 1.05), (2.0, 2.0)]).agrees, Some(true));
        assert_eq!(check(&[(1.0, 1.36), (2.0, 2.0), (2.0, 2.0), (2.0, 2.0)]).agrees, Some(false));
        assert_eq!(check(&[(1.0, 1.2), (2.0, 2.2)]).agrees, Some(false));
        let no_number = check(&[(1.0, 1.0), (f64::NAN, 2.0)]);
        assert!(no_number.agrees == Some(false) && no_number.note.starts_with("value 1"), "{no_number:?}");
        assert_eq!(check(&[]).agrees, Some(false));
        assert_eq!(Check::not_made("x", "y").agrees, None);
    }
}
