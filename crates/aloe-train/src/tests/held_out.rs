//! What the held-out rows decide, the noise that they never see, and losses told apart by data source.

use super::spine::{check_change, sft_config, words, write_model};
use super::{Outcome, context, run_sft, tiny};
use crate::learner::{Learner, Targets};
use crate::neftune::noise;
use crate::pack::Document;
use crate::schedule::Decay;
use crate::settings::TrainDtype;
use crate::sft::{SftConfig, SftInputs, SftRow, sft};
use crate::sft_data::SftData;
use crate::{Error, Result};
use aloe_model::testing::fill;
use aloe_model::{PackedBatch, Role};
use aloe_tensor::Dtype;
use aloe_text::{Conversation, Message};
use serde_json::Value;

/// Random tokens: what is learnt of the training rows is wrong for the others.
fn documents(n: usize) -> Vec<Document> {
    let document = |at: usize| {
        let (source, len) = (format!("rows.jsonl:{}", at + 1), 9 + at % 5);
        let ids = fill(&source, len).iter().map(|value| ((value + 1.0) * 32.0) as u32).collect();
        let data_source = Some(["short", "long"][usize::from(len > 11)].to_owned());
        Document { source, data_source, ids, loss_mask: (0..len).map(|token| token >= 2).collect() }
    };
    (0..n).map(document).collect()
}

fn config() -> SftConfig {
    SftConfig {
        lr: 3e-3,
        schedule: Decay::Constant,
        max_steps: Some(80),
        max_len: 64,
        batch_size: 1,
        dtype: TrainDtype::F32,
        held_out_share: 0.5,
        eval_every: 2,
        checkpoint_every: 5,
        ..SftConfig::default()
    }
}

fn run(config: &SftConfig) -> Result<Outcome> {
    let out = tempfile::tempdir().unwrap();
    run_sft(tiny("llama"), &documents(12), config, out.path(), &context(2))
}

#[test]
fn patience_ends_the_training_and_keep_best_writes_the_weights_of_the_best_evaluation() {
    let whole = run(&config()).unwrap();
    let held_out = whole.numbers("held_out_nll");
    // The start does not count; evaluation n stands after step 2 * n.
    let best = (1..held_out.len()).min_by(|&a, &b| held_out[a].total_cmp(&held_out[b])).unwrap();
    let first_rise = (1..held_out.len()).find(|&at| {
        let best = held_out[1..at].iter().copied().fold(f64::INFINITY, f64::min);
        at > 3 && held_out[at - 2..=at].iter().all(|value| *value > best)
    });
    assert!(best < held_out.len() - 3, "the task does not overfit: {held_out:?}");
    let stopped = run(&SftConfig { patience: 3, keep_best: true, ..config() }).unwrap();
    assert_eq!(stopped.n_steps, 2 * first_rise.unwrap() as u64, "{held_out:?}");
    assert!(stopped.metrics.len() < whole.metrics.len() && whole.metrics.starts_with(&stopped.metrics));
    let exported = stopped.exported_step;
    assert!(exported < stopped.n_steps && exported > 0);
    let shorter = run(&SftConfig { max_steps: Some(exported), ..config() }).unwrap();
    for (one, other) in stopped.params.tensors().iter().zip(shorter.params.tensors()) {
        assert_eq!(one.as_f32(), other.as_f32(), "the weights are not those of step {exported}");
    }
    // Without `keep_best` the last weights are written.
    let last = run(&SftConfig { patience: 3, ..config() }).unwrap();
    assert_eq!(last.exported_step, last.n_steps);
    assert_eq!(last.metrics, stopped.metrics);
    assert_ne!(last.params.tensors()[0].as_f32(), stopped.params.tensors()[0].as_f32());
}

#[test]
fn patience_keep_best_and_evaluations_without_held_out_rows_are_refused() {
    let none = SftConfig { patience: 3, held_out_share: 0.0, ..config() };
    assert!(matches!(run(&none), Err(Error::Data { what, .. }) if what == "held-out rows"));
    let evaluated = SftConfig { held_out_share: 0.0, ..config() };
    let Err(Error::Data { what, reason }) = run(&evaluated) else { panic!("evaluations of nothing") };
    assert!(what == "held-out rows" && reason.starts_with("there are none to evaluate for eval_every;"), "{reason}");
    let never = SftConfig { keep_best: true, patience: 1, eval_every: 0, ..config() };
    assert_eq!(never.mistakes().len(), 2, "{:?}", never.mistakes());
}

/// The plain forward pass over an embedding to which the noise was added by hand: each token stands in one place of one document.
#[test]
fn noise_enters_the_loss_as_if_it_stood_in_the_embedding_and_the_held_out_numbers_not_at_all() {
    let mut document = documents(1).remove(0);
    document.ids = (5..16).collect();
    document.loss_mask = (0..11).map(|token| token >= 3).collect();
    let config =
        SftConfig { neftune_alpha: 10.0, max_steps: Some(1), held_out_share: 0.0, eval_every: 0, seed: 7, ..config() };
    let (data, _) =
        SftData::from_documents(&config, vec![document.clone()], Vec::new(), &tiny("llama").config).unwrap();
    drop(data);
    let out = tempfile::tempdir().unwrap();
    let found = run_sft(tiny("llama"), std::slice::from_ref(&document), &config, out.path(), &context(1)).unwrap();

    let mut params = tiny("llama");
    let d = params.config.hidden_size;
    let added = noise(&[&document], &[0], d, 10.0, (7, 0));
    let at = params.specs().iter().position(|spec| spec.role == Role::Embed).unwrap();
    for (row, &id) in added.as_f32().chunks_exact(d).zip(&document.ids) {
        let embedding = &mut params.tensors_mut()[at].as_f32_mut()[id as usize * d..][..d];
        embedding.iter_mut().zip(row).for_each(|(value, noise)| *value += noise);
    }
    let mut learner = Learner::new(params, Dtype::F32, &context(1).device);
    let mut targets = Targets::default();
    document.targets().for_each(|(row, id)| targets.push(row, id));
    let forward = learner.forward(PackedBatch::from_documents(&[&document.ids]), targets).unwrap();
    let sum: f64 = forward.logps().iter().map(|&logp| -f64::from(logp)).sum();
    assert_eq!(found.numbers("loss"), [sum / document.n_targets() as f64]);

    let (noisy, plain) =
        (run(&SftConfig { neftune_alpha: 10.0, ..super::held_out::config() }), run(&super::held_out::config()));
    let (noisy, plain) = (noisy.unwrap(), plain.unwrap());
    assert_eq!(noisy.numbers("held_out_nll")[0], plain.numbers("held_out_nll")[0]);
    assert_ne!(noisy.numbers("loss")[0], plain.numbers("loss")[0]);
}

#[test]
fn the_losses_of_the_data_sources_weighted_by_their_tokens_give_the_loss() {
    let found = run(&SftConfig { batch_size: 2, ..config() }).unwrap();
    let documents = documents(12);
    for line in found.metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let Some(parts) = line["held_out_nll_by_source"].as_object() else {
            assert!(line["loss_by_source"].is_object(), "{line}");
            continue;
        };
        // Which rows are held out is not told here; the parts and the whole fix the tokens of each.
        let [long, short] = ["long", "short"].map(|name| parts[name].as_f64().unwrap());
        let (whole, n) = (line["held_out_nll"].as_f64().unwrap(), line["held_out_targets"].as_f64().unwrap());
        let n_long = n * (whole - short) / (long - short);
        assert!((n_long - n_long.round()).abs() < 1e-6 && n_long > 0.0 && n_long < n, "{line}");
    }
    let one_source: Vec<Document> =
        documents.into_iter().map(|document| Document { data_source: Some("a".into()), ..document }).collect();
    let out = tempfile::tempdir().unwrap();
    let alone = run_sft(tiny("llama"), &one_source, &config(), out.path(), &context(2)).unwrap();
    assert!(!alone.metrics.contains("by_source"));
}

/// A source that only the held-out rows have is what training forgets: its rows are random words behind an answer that the training rows
/// never give.
#[test]
fn a_source_that_is_only_held_out_has_its_change_with_an_error_and_getting_worse_is_told() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let row = |of: &str, at: usize, answer: String| SftRow {
        source: format!("{of}.jsonl:{}", at + 1),
        data_source: Some(of.into()),
        conversation: Conversation { messages: vec![Message::user(words(at, 4)), Message::assistant(answer)] },
    };
    let medical = |at: usize| row("medical", at, "w1 w2 w3 w4 w5".into());
    let general = |at: usize| row("general", at, format!("w{} w{} w{}", 20 + at, 30 + at, 40 + at));
    let held_out = (40..48).map(medical).chain((0..8).map(general)).collect();
    let inputs = SftInputs { start: dir.path().join("base"), rows: (0..40).map(medical).collect(), held_out };
    let config = SftConfig {
        epochs: Some(8),
        lr: 3e-3,
        keep_best: false,
        sample_every: 0,
        sample_prompts: Vec::new(),
        ..sft_config()
    };
    let report = sft(&config, inputs, &dir.path().join("out"), &context(2)).unwrap();
    let (medical, general) = (&report.by_source["medical"], &report.by_source["general"]);
    assert_eq!((general.n_rows, general.n_held_out, medical.n_rows, medical.n_held_out), (0, 8, 40, 8));
    for of in [medical, general] {
        check_change(of.held_out_nll_change, of.held_out_nll_before, of.held_out_nll_after);
    }
    assert!(medical.held_out_nll_change.unwrap().interval.unwrap()[1] < 0.0, "{medical:?}");
    assert!(general.held_out_nll_change.unwrap().interval.unwrap()[0] > 0.0, "{general:?}");
    let told: Vec<&String> = report.notices.iter().filter(|notice| notice.contains(" got worse: ")).collect();
    assert!(matches!(told.as_slice(), [one] if one.contains("rows of general got worse: +")), "{:?}", report.notices);
}
