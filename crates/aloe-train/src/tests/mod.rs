//! Runs of tiny decoders on encoded rows: parity with PyTorch and TRL, learning, and the laws of determinism.

mod faults;
mod held_out;
mod laws;
mod lora;
mod pairs;
mod parity;
mod spine;
mod stopped;

use crate::Result;
use crate::dpo::DpoConfig;
use crate::dpo_data::DpoData;
use crate::held_out::take_apart;
use crate::learner::Learner;
use crate::metrics::Metrics;
use crate::pack::Document;
use crate::pairs::Example;
use crate::run::Run;
use crate::settings::Context;
use crate::sft::SftConfig;
use crate::sft_data::SftData;
use aloe_model::Params;
use aloe_model::testing::{Tiny, tiny_random};
use aloe_record::{Cancel, CounterRng, Progress};
use aloe_tensor::Device;
use std::path::{Path, PathBuf};

/// What a run leaves behind.
pub(crate) struct Outcome {
    pub(crate) params: Params,
    pub(crate) metrics: String,
    pub(crate) notices: Vec<String>,
    pub(crate) resumed_from: u64,
    pub(crate) n_steps: u64,
    pub(crate) exported_step: u64,
}

impl Outcome {
    fn of(run: Run<'_>) -> Self {
        Self {
            n_steps: run.cursor.step,
            exported_step: run.exported_step(),
            params: run.learner.params().clone(),
            metrics: String::from_utf8(run.metrics.text().to_vec()).unwrap(),
            notices: run.notices,
            resumed_from: run.resumed_from,
        }
    }

    pub(crate) fn numbers(&self, field: &str) -> Vec<f64> {
        let dir = tempfile::tempdir().unwrap();
        Metrics::start(&dir.path().join("m"), self.metrics.clone().into_bytes()).unwrap().numbers(field)
    }

    /// Fails with the names of the tensors and the first metrics line that differ in any bit.
    pub(crate) fn assert_same_bits(&self, other: &Self, case: &str) {
        let bits = |params: &Params, at: usize| -> Vec<u32> {
            params.tensors()[at].as_f32().iter().map(|value| value.to_bits()).collect()
        };
        let specs = self.params.specs().iter().enumerate();
        let differs = |at: usize| bits(&self.params, at) != bits(&other.params, at);
        let names: Vec<&str> = specs.filter(|&(at, _)| differs(at)).map(|(_, spec)| spec.hf_name.as_str()).collect();
        assert!(names.is_empty(), "{case}: {} tensors differ: {names:?}", names.len());
        for (left, right) in self.metrics.lines().zip(other.metrics.lines()) {
            assert_eq!(left, right, "{case}");
        }
        assert_eq!(self.metrics.len(), other.metrics.len(), "{case}");
    }
}

pub(crate) fn context(threads: usize) -> Context {
    Context { device: Device::cpu(threads), progress: Progress::silent(), cancel: Cancel::default(), peak_flops: None }
}

pub(crate) fn tiny(name: &str) -> Params {
    tiny_random(if name == "llama" { Tiny::Llama } else { Tiny::Qwen2 }, 0)
}

/// The spine of `sft` from encoded rows on, without files of a model.
pub(crate) fn run_sft(
    params: Params,
    documents: &[Document],
    config: &SftConfig,
    out: &Path,
    context: &Context,
) -> Result<Outcome> {
    let learner = Learner::new(params, config.dtype.tensor(), &context.device);
    run_learner(learner.keeping(crate::settings::keep(config.recompute)), documents, config, out, context)
}

/// The same with the learner that is to train.
pub(crate) fn run_learner(
    learner: Learner,
    documents: &[Document],
    config: &SftConfig,
    out: &Path,
    context: &Context,
) -> Result<Outcome> {
    let model = learner.params().config.clone();
    let mut documents = documents.to_vec();
    let rng = CounterRng::new(config.seed, "sft-held-out", 0);
    let held_out = take_apart(&mut documents, config.held_out_share, rng, "rows")?;
    let (mut data, _) = SftData::from_documents(config, documents, held_out, &model)?;
    let mut run = Run::open(learner, config.loop_settings(), "test".into(), out, context)?;
    let schedule = data.schedule(config);
    run.evaluate_start(&mut data)?;
    run.span(&mut data, 0, &schedule)?;
    run.evaluate_end(&mut data)?;
    Ok(Outcome::of(run))
}

/// The spine of `dpo` from encoded pairs on, without files of a model.
pub(crate) fn run_dpo(
    params: Params,
    pairs: &[Example],
    config: &DpoConfig,
    out: &Path,
    context: &Context,
) -> Result<Outcome> {
    let (mut data, _) = DpoData::from_pairs(config, pairs.to_vec(), Vec::new())?;
    let start = params.clone();
    let learner =
        Learner::new(params, config.dtype.tensor(), &context.device).keeping(crate::settings::keep(config.recompute));
    let mut run = Run::open(learner, config.loop_settings(), "test".into(), out, context)?;
    let reference = || Ok(aloe_model::Decoder::from_params(&start, config.dtype.tensor(), &context.device));
    data.stage_references(out, &reference, "start", context)?;
    run.evaluate_start(&mut data)?;
    for chunk in 0..config.chunks {
        let (first, schedule) = data.enter_chunk(chunk);
        if run.cursor.step < first + schedule.total_steps {
            data.chunk_reference(out, &mut run, first, context)?;
            run.span(&mut data, first, &schedule)?;
        }
    }
    run.evaluate_end(&mut data)?;
    Ok(Outcome::of(run))
}

/// `$NAME` as a path; its absence skips a test, or fails it with ALOE_REQUIRE=1.
pub(crate) fn folder_of(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os(name).map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var("ALOE_REQUIRE").as_deref() != Ok("1"), "{name} is not set");
    }
    found
}
