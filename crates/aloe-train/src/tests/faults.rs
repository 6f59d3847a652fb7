//! Faults planted in a running step: a gradient that is 10,000 times too large, one that is infinite, a flipped bit of a weight.
//! None may reach a checkpoint, and a normal run may not be mistaken for one of them.

use super::{context, run_sft, tiny};
use crate::guard::{OnNonFinite, OnSpike};
use crate::learner::Learner;
use crate::pack::Document;
use crate::run::{Objective, Run, StepLoss};
use crate::schedule::Decay;
use crate::settings::{Context, TrainDtype};
use crate::sft::SftConfig;
use crate::sft_data::SftData;
use crate::state;
use crate::{Error, Result};
use aloe_record::CounterRng;
use serde_json::{Map, Value};
use std::path::Path;

/// Sequences that count up by a step given in their first token, with one random token in five: learnable but never to 0.
fn documents(n: usize) -> Vec<Document> {
    let document = |at: usize| {
        let mut rng = CounterRng::new(31, "noisy counting", at as u64);
        let (first, step) = (rng.below(48), 1 + at % 3);
        let mut token = |at: usize| if rng.below(5) == 0 { rng.below(48) } else { (first + at * step) % 48 };
        let ids = [60 + step as u32].into_iter().chain((0..14).map(|at| token(at) as u32)).collect();
        let source = format!("rows.jsonl:{}", at + 1);
        Document { source, data_source: None, ids, loss_mask: (0..15).map(|at| at >= 2).collect() }
    };
    (0..n).map(document).collect()
}

fn config(max_steps: u64) -> SftConfig {
    SftConfig {
        lr: 1e-3,
        schedule: Decay::Constant,
        max_steps: Some(max_steps),
        max_len: 64,
        batch_size: 2,
        dtype: TrainDtype::F32,
        on_spike: OnSpike::Skip,
        checkpoint_every: 5,
        keep_last: 100,
        ..SftConfig::default()
    }
}

/// What is done to the learner after the gradients of one step (counted from 1) have been gathered.
struct Faulty<'a> {
    inner: SftData,
    step: u64,
    fault: &'a dyn Fn(&mut Learner),
}

impl Objective for Faulty<'_> {
    const JUDGED: &'static str = SftData::JUDGED;

    fn accumulate(&mut self, learner: &mut Learner, step: u64, context: &Context) -> Result<StepLoss> {
        let found = self.inner.accumulate(learner, step, context)?;
        if step + 1 == self.step {
            (self.fault)(learner);
        }
        Ok(found)
    }

    fn evaluate(&mut self, learner: &Learner, context: &Context) -> Result<Map<String, Value>> {
        self.inner.evaluate(learner, context)
    }
}

/// A finished run: its weights' bits, the steps that were skipped, and how it ended.
struct Ended {
    bits: Vec<u32>,
    skipped: Vec<u64>,
    result: Result<()>,
}

fn run_faulty(config: &SftConfig, step: u64, fault: &dyn Fn(&mut Learner), out: &Path) -> Ended {
    let context = context(1);
    let params = tiny("qwen2");
    let (inner, _) = SftData::from_documents(config, documents(60), Vec::new(), &params.config).unwrap();
    let schedule = inner.schedule(config);
    let learner = Learner::new(params, config.dtype.tensor(), &context.device);
    let mut run = Run::open(learner, config.loop_settings(), "test".into(), out, &context).unwrap();
    let result = run.span(&mut Faulty { inner, step, fault }, 0, &schedule);
    let lines = String::from_utf8(run.metrics.text().to_vec()).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let skipped = lines.filter(|line| line["skipped"] == true).map(|line| line["step"].as_u64().unwrap()).collect();
    let bits = bits(&run.learner);
    Ended { bits, skipped, result }
}

/// The newest checkpoint on the disk: its step, and whether all it holds is finite.
fn newest(out: &Path) -> (u64, bool) {
    let layout = Learner::new(tiny("qwen2"), aloe_tensor::Dtype::F32, &aloe_tensor::Device::cpu(1)).layout();
    let (loaded, notices) = state::load_newest(&out.join("state"), "test", &layout).unwrap();
    let loaded = loaded.unwrap();
    assert!(notices.is_empty(), "{notices:?}");
    (loaded.cursor.step, loaded.arrays.iter().flatten().flatten().all(|value| value.is_finite()))
}

#[test]
fn a_gradient_ten_thousand_times_too_large_is_skipped_and_leaves_no_trace_in_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let whole = run_faulty(&config(79), 0, &|_| {}, &dir.path().join("whole"));
    assert!(whole.skipped.is_empty() && whole.result.is_ok());
    let faulty = run_faulty(&config(80), 80, &|learner| learner.scale_grads(1e4), &dir.path().join("faulty"));
    assert!(faulty.result.is_ok());
    assert_eq!(faulty.skipped, [80]);
    assert!(faulty.bits == whole.bits, "the skipped step changed a weight");
    // Where the recipe says so, a spike is counted and the clipped update made.
    let kept = SftConfig { on_spike: OnSpike::Keep, ..config(80) };
    let kept = run_faulty(&kept, 80, &|learner| learner.scale_grads(1e4), &dir.path().join("kept"));
    assert!(kept.skipped.is_empty() && kept.bits != whole.bits);
}

/// The same data with one step left out: step `step` (counted from 1) is that behind it, and so on.
struct Without {
    inner: SftData,
    step: u64,
}

impl Objective for Without {
    const JUDGED: &'static str = SftData::JUDGED;

    fn accumulate(&mut self, learner: &mut Learner, step: u64, context: &Context) -> Result<StepLoss> {
        self.inner.accumulate(learner, if step + 1 < self.step { step } else { step + 1 }, context)
    }

    fn evaluate(&mut self, learner: &Learner, context: &Context) -> Result<Map<String, Value>> {
        self.inner.evaluate(learner, context)
    }
}

fn bits(learner: &Learner) -> Vec<u32> {
    learner.params().tensors().iter().flat_map(|tensor| tensor.as_f32()).map(|value| value.to_bits()).collect()
}

/// The schedule is constant, so that the one step more in it makes no difference. AdamW's bias correction is largest at the start.
#[test]
fn a_skipped_step_leaves_the_weights_of_a_run_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let skipping = SftConfig { on_nonfinite: OnNonFinite::Skip, ..config(20) };
    for step in [1, 2, 9] {
        let out = dir.path().join(format!("skipped {step}"));
        let fault = |learner: &mut Learner| learner.scale_grads(f32::INFINITY);
        let faulty = run_faulty(&skipping, step, &fault, &out);
        assert!(faulty.result.is_ok() && faulty.skipped == [step]);

        let context = context(1);
        let params = tiny("qwen2");
        let one_less = config(19);
        let (inner, _) = SftData::from_documents(&one_less, documents(60), Vec::new(), &params.config).unwrap();
        let schedule = inner.schedule(&one_less);
        let learner = Learner::new(params, one_less.dtype.tensor(), &context.device);
        let folder = dir.path().join(format!("without {step}"));
        let mut run = Run::open(learner, one_less.loop_settings(), "test".into(), &folder, &context).unwrap();
        run.span(&mut Without { inner, step }, 0, &schedule).unwrap();
        assert!(faulty.bits == bits(&run.learner), "step {step}: the skipped step left a trace");

        // Resumed behind the skipped step.
        for late in ["step-0000000015", "step-0000000020"] {
            std::fs::remove_dir_all(out.join("state").join(late)).unwrap();
        }
        let resumed = run_faulty(&skipping, step, &fault, &out);
        assert!(resumed.result.is_ok() && resumed.bits == faulty.bits, "step {step}: resumed");
    }
}

/// Checkpoints of an older program do not say how many updates were made: each step without a skip, and with one neither number is right.
#[test]
fn a_checkpoint_of_an_older_program_goes_on_unless_it_has_skipped_a_step() {
    let dir = tempfile::tempdir().unwrap();
    let skipping = SftConfig { on_nonfinite: OnNonFinite::Skip, ..config(20) };
    for step in [0, 3] {
        let out = dir.path().join(format!("{step}"));
        let fault = |learner: &mut Learner| learner.scale_grads(f32::NAN);
        let whole = run_faulty(&skipping, step, &fault, &out);
        for later in ["step-0000000015", "step-0000000020"] {
            std::fs::remove_dir_all(out.join("state").join(later)).unwrap();
        }
        let layout = Learner::new(tiny("qwen2"), aloe_tensor::Dtype::F32, &aloe_tensor::Device::cpu(1)).layout();
        let loaded = state::load_newest(&out.join("state"), "test", &layout).unwrap().0.unwrap();
        assert_eq!(loaded.cursor.n_updates, Some(10 - u64::from(step > 0)));
        let older = state::Cursor { n_updates: None, ..loaded.cursor };
        let arrays: Vec<(&str, Vec<&[f32]>)> = layout
            .iter()
            .zip(&loaded.arrays)
            .map(|((name, _), parts)| (*name, parts.iter().map(Vec::as_slice).collect()))
            .collect();
        let logs = state::Logs { metrics: &loaded.metrics, samples: &loaded.samples };
        std::fs::remove_dir_all(out.join("state/step-0000000010")).unwrap();
        state::save(&out.join("state"), &older, &arrays, logs, 100).unwrap();
        let cursor = std::fs::read_to_string(out.join("state/step-0000000010/cursor.json")).unwrap();
        assert!(!cursor.contains("n_updates"), "{cursor}");
        if step == 0 {
            assert!(run_faulty(&skipping, step, &fault, &out).bits == whole.bits);
            continue;
        }
        let learner = Learner::new(tiny("qwen2"), aloe_tensor::Dtype::F32, &aloe_tensor::Device::cpu(1));
        let error = Run::open(learner, skipping.loop_settings(), "test".into(), &out, &context(1)).err().unwrap();
        assert!(error.to_string().contains("older version of this program"), "{error}");
    }
}

#[test]
fn an_infinite_gradient_stops_the_run_with_its_rows_named_and_the_state_before_it_saved_and_the_run_goes_on_without_it()
{
    let dir = tempfile::tempdir().unwrap();
    for factor in [f32::INFINITY, f32::NAN] {
        let out = dir.path().join(format!("{factor}"));
        let ended = run_faulty(&config(60), 13, &|learner| learner.scale_grads(factor), &out);
        let Err(error) = ended.result else { panic!("{factor}: the run went on") };
        let said = error.to_string();
        let Error::NonFinite { step, what, rows, .. } = error else { panic!("{factor}: {said}") };
        assert_eq!((step, what.as_str()), (13, "gradient"));
        assert!(!rows.is_empty() && rows.iter().all(|row| row.starts_with("rows.jsonl:")), "{rows:?}");
        assert!(said.contains("The state before it is saved") && said.contains("on_nonfinite = \"skip\""), "{said}");
        assert_eq!(newest(&out), (12, true));
        let skipping = SftConfig { on_nonfinite: OnNonFinite::Skip, ..config(60) };
        let never_stopped = run_faulty(&skipping, 13, &|learner| learner.scale_grads(factor), &out.join("skipping"));
        let gone_on = run_faulty(&skipping, 13, &|learner| learner.scale_grads(factor), &out);
        for ended in [&never_stopped, &gone_on] {
            assert!(ended.result.is_ok(), "{:?}", ended.result);
            assert_eq!(ended.skipped, [13]);
        }
        assert!(gone_on.bits == never_stopped.bits, "stopping and going on changed a weight");
    }
}

#[test]
fn a_weight_that_a_flipped_bit_makes_infinite_or_huge_is_never_saved() {
    let dir = tempfile::tempdir().unwrap();
    let start = tiny("qwen2");
    let mut causes = std::collections::BTreeMap::<String, usize>::new();
    let config = SftConfig { checkpoint_every: 12, ..config(48) };
    for (tensor, values) in start.tensors().iter().enumerate() {
        let at = CounterRng::new(37, "flip", tensor as u64).below(values.len());
        // The highest bit of the exponent: NaN or infinite where the magnitude is 1 to 2, about 10^38 times itself below.
        let out = dir.path().join(format!("{tensor}"));
        let ended = run_faulty(&config, 38, &|learner| learner.flip_bit(tensor, at, 30), &out);
        let Err(Error::NonFinite { step, what, .. }) = ended.result else { panic!("tensor {tensor}: the run went on") };
        assert!((38..=48).contains(&step), "step {step}");
        assert_eq!(newest(&out), (36, true), "tensor {tensor}: saved after the flip");
        *causes.entry(what.split(" model").next().unwrap().to_owned()).or_default() += 1;
    }
    println!("{causes:?}");
}

#[test]
fn two_thousand_steps_of_a_real_run_hold_no_spike() {
    let out = tempfile::tempdir().unwrap();
    let config = SftConfig { checkpoint_every: 0, schedule: Decay::Cosine, ..config(2000) };
    let began = std::time::Instant::now();
    let found = run_sft(tiny("llama"), &documents(300), &config, out.path(), &context(2)).unwrap();
    let losses = found.numbers("loss");
    let mean = |range: std::ops::Range<usize>| losses[range].iter().sum::<f64>() / 100.0;
    println!("loss {:.2} -> {:.2} in {:.1} s", mean(0..100), mean(1900..2000), began.elapsed().as_secs_f64());
    assert!(mean(1900..2000) < 0.7 * mean(0..100), "the run learnt nothing");
    assert!(
        !found.metrics.contains("skipped"),
        "{}",
        found.metrics.lines().find(|line| line.contains("skipped")).unwrap()
    );
}
