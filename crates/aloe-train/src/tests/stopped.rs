//! What a run that ends too early leaves behind: a damaged checkpoint harms no later one, no step that was made is made again, and weights
//! that cannot be trained are refused before the first of them.

use super::laws::{documents, dpo_config, pairs, sft_config};
use super::spine::{dpo_config as dpo_stage, dpo_rows, read, sft_config as sft_stage, sft_rows, write_model};
use super::{Outcome, context, run_dpo, run_sft, tiny};
use crate::dpo::{DpoConfig, DpoInputs, ReferenceAt, dpo};
use crate::dpo_data::DpoData;
use crate::guard::{OnSpike, first_spike};
use crate::learner::Learner;
use crate::lora::{LoraConfig, Start, hand_over};
use crate::pairs::Example;
use crate::run::Run;
use crate::schedule::Decay;
use crate::settings::TrainDtype;
use crate::sft::{SftConfig, SftInputs, sft};
use crate::{Error, Result, state};
use aloe_model::{CheckpointWriter, ModelSource};
use aloe_tensor::Dtype;
use aloe_text::{EncodedPair, TextModel};
use std::path::Path;

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// 12 steps with one checkpoint kept, which is damaged; a second run makes 6 steps, and the third must find them.
#[test]
fn a_damaged_only_checkpoint_costs_its_own_steps_and_none_of_the_runs_after_it() {
    let of = |n: u64| SftConfig {
        max_steps: Some(n),
        keep_last: 1,
        schedule: Decay::Constant,
        ..sft_config(TrainDtype::F32)
    };
    let run = |n: u64, out: &Path| run_sft(tiny("llama"), &documents(), &of(n), out, &context(2)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("damaged"));
    let whole = run(12, &whole);
    run(12, &out);
    let weights = out.join("state/step-0000000012/weights.f32");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[99] ^= 8;
    std::fs::write(&weights, bytes).unwrap();
    let second = run(6, &out);
    assert_eq!((second.resumed_from, second.notices.len()), (0, 1));
    assert!(second.notices[0].contains("checkpoint not used: ") && second.notices[0].contains("weights.f32"));
    assert_eq!(names(&out.join("state")), ["step-0000000006"]);
    let third = run(12, &out);
    assert_eq!((third.resumed_from, third.notices.len()), (6, 0));
    third.assert_same_bits(&whole, "after a damaged checkpoint");
}

fn chunked(out: &Path, config: &DpoConfig) -> Result<Outcome> {
    run_dpo(tiny("llama"), &pairs(), config, out, &context(2))
}

/// Both chunks of a run without regular checkpoints, interrupted when the second one's reference is to be computed.
#[test]
fn an_interruption_in_the_reference_pass_of_a_later_chunk_loses_no_step() {
    let config = DpoConfig { checkpoint_every: 0, ..dpo_config() };
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("stopped"));
    let whole = chunked(&whole, &config).unwrap();
    let context = context(2);
    let (mut data, _) = DpoData::from_pairs(&config, pairs(), Vec::new()).unwrap();
    let learner = Learner::new(tiny("llama"), config.dtype.tensor(), &context.device);
    let start = learner.decoder().clone();
    let mut run = Run::open(learner, config.loop_settings(), "test".into(), &out, &context).unwrap();
    data.stage_references(&out, &|| Ok(start.clone()), "start", &context).unwrap();
    let (first, schedule) = data.enter_chunk(0);
    data.chunk_reference(&out, &mut run, first, &context).unwrap();
    run.span(&mut data, first, &schedule).unwrap();
    let (first, _) = data.enter_chunk(1);
    assert!(first > 0 && !names(&out.join("state")).iter().any(|name| name.starts_with("step-")));
    context.cancel.request(2);
    let stopped = data.chunk_reference(&out, &mut run, first, &context);
    assert!(matches!(stopped, Err(Error::Record(aloe_record::Error::Cancelled))), "{stopped:?}");
    assert!(state::has(&out.join("state"), first));
    drop((run, data));
    let resumed = chunked(&out, &config).unwrap();
    assert_eq!(resumed.resumed_from, first);
    resumed.assert_same_bits(&whole, "interrupted between chunks");
}

/// Four pairs again and again, in two chunks of 280 steps: in the first one the loss falls to almost 0, far below the ln 2 at which, with a
/// reference of its own, the second one starts. By the stage's reference it does not jump.
#[test]
fn a_chunk_with_its_own_reference_is_not_judged_by_the_losses_of_the_one_before() {
    let pair = |at: usize| {
        let last = (at % 4) as u32;
        let ids =
            EncodedPair { prompt_ids: vec![50, last], chosen_ids: vec![last, 2], rejected_ids: vec![last + 7, 2] };
        Example { source: format!("rule:{at}"), set: "rule".into(), ids, n_turns_removed: 0 }
    };
    let pairs: Vec<Example> = (0..560).map(pair).collect();
    let run = |reference: ReferenceAt, on_spike: OnSpike| {
        let (lr, dtype) = (2e-3, TrainDtype::F32);
        let config = DpoConfig { lr, batch_size: 1, chunks: 2, reference, on_spike, dtype, ..DpoConfig::default() };
        let out = tempfile::tempdir().unwrap();
        run_dpo(tiny("llama"), &pairs, &config, out.path(), &context(2)).unwrap()
    };
    let found = run(ReferenceAt::ChunkStart, OnSpike::Stop);
    let (losses, norms) = (found.numbers("loss"), found.numbers("grad_norm"));
    assert!((losses[280] - std::f64::consts::LN_2).abs() < 1e-6, "{}", losses[280]);
    let spike = first_spike(losses.iter().copied().zip(norms));
    assert_eq!(spike.map(|(at, _)| at), Some(280), "a guard that remembers stops there");
    let whole = run(ReferenceAt::StageStart, OnSpike::Keep);
    assert!(whole.numbers("loss")[280] < 0.1, "{}", whole.numbers("loss")[280]);
}

/// The last of 11 steps falls on no regular checkpoint.
#[test]
fn the_last_step_is_saved_before_the_model_is_written_where_checkpoints_are_made_at_all() {
    for (checkpoint_every, saved) in
        [(100, vec!["step-0000000011"]), (5, vec!["step-0000000010", "step-0000000011"]), (0, vec![])]
    {
        let out = tempfile::tempdir().unwrap();
        let config = SftConfig { checkpoint_every, max_steps: Some(11), ..sft_config(TrainDtype::F32) };
        let run = || run_sft(tiny("llama"), &documents(), &config, out.path(), &context(2)).unwrap();
        let first = run();
        assert_eq!(names(&out.path().join("state")), saved, "checkpoint_every = {checkpoint_every}");
        let again = run();
        assert_eq!(again.resumed_from, if checkpoint_every == 0 { 0 } else { 11 });
        again.assert_same_bits(&first, "taken up at its last step");
    }
}

#[test]
fn a_last_step_whose_checkpoint_leaves_no_room_for_the_model_is_not_saved() {
    let out = tempfile::tempdir().unwrap();
    let context = context(1);
    let learner = Learner::new(tiny("llama"), Dtype::F32, &context.device);
    let n = learner.params().config.n_parameters() as u64;
    let config = sft_config(TrainDtype::F32);
    let run = Run::open(learner, config.loop_settings(), "test".into(), out.path(), &context).unwrap();
    // Two and four bytes a weight for the model; weights and two moments of four for a checkpoint.
    let alone = [6 * n - 1, 6 * n, 18 * n - 1, 18 * n].map(|free| run.has_room_for_the_model_alone(free));
    assert_eq!(alone, [false, true, true, false]);
}

#[test]
fn a_model_that_cannot_be_written_whole_is_not_left_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base"), dir.path().join("out"));
    write_model(&base);
    // A folder cannot take the name of a file that is there: `master` is written, `model` is not.
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join(".model.partial"), "in the way").unwrap();
    let (source, text) = (read(&base), TextModel::open(&base).unwrap());
    let learner = Learner::load(&source, Dtype::F32, &context(1).device).unwrap();
    let start = Start { source: &source, digest: "0", text: &text, named: &base };
    assert!(hand_over(learner, None, &start, &[], &out).is_err());
    assert_eq!(names(&out), [".model.partial"]);
}

/// One weight of the start model is NaN: with LoRA it would be frozen and found when the merged model is written, after all steps.
#[test]
fn a_start_model_with_a_weight_that_is_not_finite_is_refused_before_the_first_step_by_tensor_and_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (base, bad) = (dir.path().join("base"), dir.path().join("bad"));
    write_model(&base);
    spoil(&read(&base), &bad, "model.layers.1.mlp.up_proj.weight");
    let check = |case: &str, found: Result<()>, out: &Path| {
        let Err(Error::Data { what, reason }) = found else { panic!("{case}: {found:?}") };
        assert_eq!(what, bad.display().to_string(), "{case}");
        assert!(reason.contains("model.layers.1.mlp.up_proj.weight: element 5 is NaN"), "{case}: {reason}");
        assert!(!out.join("metrics.jsonl").exists() && !out.join("state").exists(), "{case}");
    };
    for lora in [None, Some(LoraConfig { rank: 2, ..LoraConfig::default() })] {
        let out = dir.path().join("sft");
        let inputs = SftInputs { start: bad.clone(), rows: sft_rows(20), held_out: Vec::new() };
        let config = SftConfig { lora: lora.clone(), ..sft_stage() };
        check("sft", sft(&config, inputs, &out, &context(1)).map(|_| ()), &out);
        let out = dir.path().join("dpo");
        let inputs = DpoInputs { start: bad.clone(), rows: dpo_rows(20), held_out: Vec::new() };
        let config = DpoConfig { lora, chat_template: Some("chatml".into()), ..dpo_stage() };
        check("dpo", dpo(&config, inputs, &out, &context(1)).map(|_| ()), &out);
    }
}

/// Copies a model with element 5 of one tensor NaN, which no writer of ours would write.
fn spoil(source: &ModelSource, to: &Path, tensor: &str) {
    let mut writer = CheckpointWriter::create(to, source.config(), Dtype::F32).unwrap();
    const MARK: f32 = 12345.679;
    for spec in source.specs() {
        let mut values = source.load_f32(&spec.hf_name).unwrap();
        if spec.hf_name == tensor {
            values[5] = MARK;
        }
        writer.add(&spec.hf_name, &values).unwrap();
    }
    let files = ["tokenizer.json", "tokenizer_config.json"];
    let files = files.map(|name| (name.to_owned(), std::fs::read(source.path.join(name)).unwrap()));
    writer.finish(&files).unwrap();
    let path = to.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|word| word == MARK.to_le_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
}
