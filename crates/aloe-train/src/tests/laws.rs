//! What may change nothing: micro-batches, threads, interruptions. And what must change: a loss that can be learnt.

use super::{Outcome, context, run_dpo, run_sft, tiny};
use crate::Error;
use crate::dpo::{DpoConfig, ReferenceAt};
use crate::guard::OnNonFinite;
use crate::pack::Document;
use crate::pairs::Example;
use crate::settings::{Context, TrainDtype};
use crate::sft::SftConfig;
use aloe_model::Params;
use aloe_model::testing::fill;
use aloe_record::CounterRng;
use aloe_text::EncodedPair;
use std::path::Path;

fn ids(name: &str, n: usize) -> Vec<u32> {
    fill(name, n).iter().map(|value| ((value + 1.0) * 32.0) as u32).collect()
}

pub(super) fn documents() -> Vec<Document> {
    let document = |at: usize| {
        let n = 4 + (at * 7) % 19;
        let source = format!("rows.jsonl:{}", at + 1);
        let loss_mask = (0..n).map(|token| token >= n / 3).collect();
        Document { ids: ids(&source, n), source, data_source: Some(["a", "b"][at % 2].into()), loss_mask }
    };
    (0..30).map(document).collect()
}

pub(super) fn pairs() -> Vec<Example> {
    let pair = |at: usize| {
        let part = |name: &str, n: usize| ids(&format!("{name} {at}"), n);
        Example {
            source: format!("pairs.jsonl:{}", at + 1),
            set: format!("set {}", at % 2),
            ids: EncodedPair {
                prompt_ids: part("prompt", 3 + at % 7),
                chosen_ids: part("chosen", 2 + at % 5),
                rejected_ids: part("rejected", 1 + at % 6),
            },
            n_turns_removed: 0,
        }
    };
    (0..20).map(pair).collect()
}

pub(super) fn sft_config(dtype: TrainDtype) -> SftConfig {
    SftConfig {
        lr: 2e-3,
        max_steps: Some(12),
        max_len: 40,
        batch_size: 4,
        warmup_steps: 2,
        weight_decay: 0.1,
        dtype,
        checkpoint_every: 3,
        ..SftConfig::default()
    }
}

pub(super) fn dpo_config() -> DpoConfig {
    DpoConfig {
        lr: 1e-3,
        chunks: 2,
        max_len: 40,
        batch_size: 3,
        dtype: TrainDtype::F32,
        checkpoint_every: 2,
        reference: ReferenceAt::ChunkStart,
        ..DpoConfig::default()
    }
}

fn sft(params: Params, config: &SftConfig, out: &Path, context: &Context) -> crate::Result<Outcome> {
    run_sft(params, &documents(), config, out, context)
}

fn fresh_sft(model: &str, config: &SftConfig, threads: usize) -> Outcome {
    let out = tempfile::tempdir().unwrap();
    sft(tiny(model), config, out.path(), &context(threads)).unwrap()
}

#[test]
fn in_f32_another_split_into_micro_batches_changes_no_bit_of_weights_or_metrics() {
    for model in ["llama", "qwen2"] {
        let whole = fresh_sft(model, &SftConfig { micro_batch_size: 4, ..sft_config(TrainDtype::F32) }, 2);
        for micro_batch_size in [1, 3] {
            let split = fresh_sft(model, &SftConfig { micro_batch_size, ..sft_config(TrainDtype::F32) }, 2);
            split.assert_same_bits(&whole, &format!("{model}, {micro_batch_size} rows at a time"));
        }
        let noisy =
            |micro_batch_size| SftConfig { micro_batch_size, neftune_alpha: 5.0, ..sft_config(TrainDtype::F32) };
        fresh_sft(model, &noisy(3), 2)
            .assert_same_bits(&fresh_sft(model, &noisy(4), 1), &format!("{model} with noise"));
    }
}

#[test]
fn in_bf16_a_split_into_micro_batches_stays_within_bf16_rounding() {
    // Two rows enter a bf16 product together; a split after an odd row pairs others. The losses stay together.
    let whole = fresh_sft("llama", &SftConfig { micro_batch_size: 4, ..sft_config(TrainDtype::Bf16) }, 2);
    let split = fresh_sft("llama", &sft_config(TrainDtype::Bf16), 2);
    for (one, other) in whole.numbers("loss").iter().zip(split.numbers("loss")) {
        assert!((one - other).abs() < 1e-3 * one, "{one} {other}");
    }
    println!("same bits: {}", whole.metrics == split.metrics);
}

#[test]
fn one_thread_and_two_give_the_same_bits_in_f32_and_bf16() {
    for dtype in [TrainDtype::F32, TrainDtype::Bf16] {
        let (one, two) = (fresh_sft("llama", &sft_config(dtype), 1), fresh_sft("llama", &sft_config(dtype), 2));
        one.assert_same_bits(&two, &format!("{dtype:?}"));
    }
}

#[test]
fn activations_computed_again_change_no_bit_of_weights_or_metrics() {
    for dtype in [TrainDtype::F32, TrainDtype::Bf16] {
        let kept = fresh_sft("qwen2", &sft_config(dtype), 2);
        let again = fresh_sft("qwen2", &SftConfig { recompute: true, ..sft_config(dtype) }, 2);
        again.assert_same_bits(&kept, &format!("{dtype:?}"));
    }
    let run = |recompute| {
        let out = tempfile::tempdir().unwrap();
        run_dpo(tiny("llama"), &pairs(), &DpoConfig { recompute, ..dpo_config() }, out.path(), &context(2)).unwrap()
    };
    run(true).assert_same_bits(&run(false), "dpo");
}

#[test]
fn a_run_stopped_at_random_moments_ends_with_the_bits_of_an_uninterrupted_one() {
    let plain = sft_config(TrainDtype::F32);
    let noisy = SftConfig {
        neftune_alpha: 5.0,
        held_out_share: 0.3,
        eval_every: 1,
        keep_best: true,
        patience: 3,
        lr: 2e-2,
        ..plain.clone()
    };
    for (config, model) in [(plain, "qwen2"), (sft_config(TrainDtype::Bf16), "qwen2"), (noisy, "llama")] {
        let whole = fresh_sft(model, &config, 2);
        let out = tempfile::tempdir().unwrap();
        let stopped = until_done(5, |context| sft(tiny(model), &config, out.path(), context));
        stopped.assert_same_bits(&whole, &format!("{config:?}"));
    }
}

#[test]
fn a_dpo_run_in_chunks_stopped_at_random_moments_ends_with_the_bits_of_an_uninterrupted_one() {
    let run = |out: &Path, context: &Context| run_dpo(tiny("llama"), &pairs(), &dpo_config(), out, context);
    let out = tempfile::tempdir().unwrap();
    let whole = run(out.path(), &context(2)).unwrap();
    let out = tempfile::tempdir().unwrap();
    let stopped = until_done(9, |context| run(out.path(), context));
    stopped.assert_same_bits(&whole, "stopped");
}

/// Starts a run again and again, each time with a timer that stops it a little later.
pub(super) fn until_done(seed: u64, run: impl Fn(&Context) -> crate::Result<Outcome>) -> Outcome {
    let mut rng = CounterRng::new(seed, "test", 0);
    let mut n_stops = 0;
    for attempt in 0..400u64 {
        let context = context(2);
        let cancel = context.cancel.clone();
        let wait = std::time::Duration::from_micros(200 * attempt + rng.below(2000) as u64);
        let timer = std::thread::spawn(move || {
            std::thread::sleep(wait);
            cancel.request(2);
        });
        let found = run(&context);
        timer.join().unwrap();
        match found {
            Ok(outcome) => {
                assert!(n_stops > 0 && outcome.resumed_from > 0, "{n_stops} stops");
                return outcome;
            }
            Err(Error::Record(aloe_record::Error::Cancelled)) => n_stops += 1,
            Err(error) => panic!("attempt {attempt}: {error}"),
        }
    }
    panic!("the run never ended");
}

#[test]
fn a_damaged_newest_checkpoint_is_reported_and_the_run_resumed_from_the_older_one_has_the_same_bits() {
    let config = sft_config(TrainDtype::F32);
    let whole = fresh_sft("llama", &config, 2);
    for damage in ["flip", "truncate", "remove"] {
        let out = tempfile::tempdir().unwrap();
        sft(tiny("llama"), &config, out.path(), &context(2)).unwrap();
        damage_file(&out.path().join("state/step-0000000012/moment2.f32"), damage);
        let resumed = sft(tiny("llama"), &config, out.path(), &context(2)).unwrap();
        assert_eq!(resumed.resumed_from, 9, "{damage}");
        assert_eq!(resumed.notices.len(), 1, "{damage}");
        assert!(resumed.notices[0].contains("moment2.f32"), "{:?}", resumed.notices);
        resumed.assert_same_bits(&whole, damage);
    }
}

fn damage_file(path: &Path, damage: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    match damage {
        "flip" => bytes[middle] ^= 4,
        "truncate" => bytes.truncate(middle),
        _ => return std::fs::remove_file(path).unwrap(),
    }
    std::fs::write(path, bytes).unwrap();
}

/// A token whose embedding is NaN: every row with it has a non-finite loss.
fn with_nan(token: usize) -> Params {
    let mut params = tiny("llama");
    let width = params.config.hidden_size;
    params.tensors_mut()[0].as_f32_mut()[token * width] = f32::NAN;
    params
}

#[test]
fn a_row_with_a_non_finite_loss_stops_the_run_by_name_with_nothing_saved() {
    let mut documents = documents();
    for document in &mut documents {
        document.ids.iter_mut().for_each(|id| *id = (*id).min(62));
    }
    documents[17].ids[0] = 63;
    let out = tempfile::tempdir().unwrap();
    let config = SftConfig { checkpoint_every: 1, ..sft_config(TrainDtype::F32) };
    // The weights hold a NaN from the start, so no checkpoint may appear, whichever step meets the row.
    let found = run_sft(with_nan(63), &documents, &config, out.path(), &context(2));
    let Err(Error::NonFinite { step, what, rows, goes_on }) = found else { panic!("the run went on") };
    assert!(goes_on.is_empty(), "{goes_on}");
    assert!(step <= 1, "step {step}");
    match what.as_str() {
        "loss" => assert_eq!(rows, ["rows.jsonl:18"]),
        other => assert!(other.starts_with("weight model.embed_tokens"), "{other}"),
    }
    assert!(!out.path().join("state/step-0000000001").exists());
}

#[test]
fn the_row_with_the_non_finite_loss_is_named_among_its_batch_mates() {
    let mut documents = documents();
    for document in &mut documents {
        document.ids.iter_mut().for_each(|id| *id = (*id).min(62));
    }
    documents[4].ids[0] = 63;
    let out = tempfile::tempdir().unwrap();
    let config = SftConfig { batch_size: 100, checkpoint_every: 0, ..sft_config(TrainDtype::F32) };
    let found = run_sft(with_nan(63), &documents, &config, out.path(), &context(2));
    let Err(Error::NonFinite { step, what, rows, .. }) = found else { panic!("the run went on") };
    assert_eq!((step, what.as_str(), rows), (1, "loss", vec!["rows.jsonl:5".to_owned()]));
}

#[test]
fn with_skipping_on_three_non_finite_steps_in_a_row_still_stop_the_run() {
    let mut documents = documents();
    documents.iter_mut().for_each(|document| document.ids[0] = 63);
    let out = tempfile::tempdir().unwrap();
    let config = SftConfig { on_nonfinite: OnNonFinite::Skip, checkpoint_every: 0, ..sft_config(TrainDtype::F32) };
    let found = run_sft(with_nan(63), &documents, &config, out.path(), &context(2));
    assert!(matches!(found, Err(Error::NonFinite { step: 3, .. })));
}

/// Documents that count up by a step given in their first token: after it, each token decides the next.
fn counting(at: usize) -> Document {
    let (first, step) = ((at * 5) % 48, 1 + at % 3);
    let ids = [60 + step as u32].into_iter().chain((0..14).map(|token| ((first + token * step) % 48) as u32)).collect();
    let loss_mask = (0..15).map(|token| token >= 2).collect();
    Document { source: format!("count:{at}"), data_source: None, ids, loss_mask }
}

#[test]
fn the_loss_of_a_learnable_task_falls_below_a_tenth_of_a_nat_in_f32_and_bf16() {
    let documents: Vec<Document> = (0..48).map(counting).collect();
    for dtype in [TrainDtype::F32, TrainDtype::Bf16] {
        let config =
            SftConfig { lr: 5e-3, max_steps: Some(150), batch_size: 6, checkpoint_every: 0, ..sft_config(dtype) };
        let out = tempfile::tempdir().unwrap();
        let losses = run_sft(tiny("llama"), &documents, &config, out.path(), &context(2)).unwrap().numbers("loss");
        // The task is deterministic given the first two tokens, so its entropy is 0; chance is ln 64 = 4.2.
        assert!(losses[0] > 3.0, "{dtype:?}: {}", losses[0]);
        assert!(losses[149] < 0.1, "{dtype:?}: {}", losses[149]);
    }
}

#[test]
fn dpo_learns_to_rank_pairs_that_differ_by_a_rule() {
    // The chosen answer repeats the prompt's last token, the rejected one does not.
    let pair = |at: usize| {
        let last = (at % 40) as u32;
        let ids = EncodedPair {
            prompt_ids: vec![50, last],
            chosen_ids: vec![last, 2],
            rejected_ids: vec![(last + 7) % 40, 2],
        };
        Example { source: format!("rule:{at}"), set: "rule".into(), ids, n_turns_removed: 0 }
    };
    let pairs: Vec<Example> = (0..40).map(pair).collect();
    let config = DpoConfig { lr: 1e-3, epochs: 8, batch_size: 8, dtype: TrainDtype::F32, ..DpoConfig::default() };
    let out = tempfile::tempdir().unwrap();
    let found = run_dpo(tiny("llama"), &pairs, &config, out.path(), &context(2)).unwrap();
    let (losses, accuracies) = (found.numbers("loss"), found.numbers("rewards/accuracies"));
    assert!(
        (losses[0] - std::f64::consts::LN_2).abs() < 1e-12,
        "before any update the loss is ln 2, not {}",
        losses[0]
    );
    assert_eq!(*accuracies.last().unwrap(), 1.0);
    assert!(*losses.last().unwrap() < 0.5, "{losses:?}");
}

#[test]
fn in_f32_dpo_by_single_pairs_or_by_three_at_a_time_gives_the_same_bits() {
    // The same law as micro-batches, through other plans: one pair per forward pass or all together, bit for bit.
    let outcomes: Vec<Outcome> = [1, 3]
        .into_iter()
        .map(|micro_batch_size| {
            let out = tempfile::tempdir().unwrap();
            let config = DpoConfig { micro_batch_size, ..dpo_config() };
            run_dpo(tiny("qwen2"), &pairs(), &config, out.path(), &context(2)).unwrap()
        })
        .collect();
    outcomes[0].assert_same_bits(&outcomes[1], "one or three pairs at a time");
}
