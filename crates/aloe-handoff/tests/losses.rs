//! Our trainer's losses against those that TRL and axolotl logged from the run folder that we wrote, and what the rendered rows hold.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod engine_run;

use aloe_handoff::Trainer;
use aloe_text::TextModel;
use aloe_train::{DpoBatches, DpoConfig, DpoInputs};
use engine_run::{Kind, dpo_rows, sft_rows, train, write_base, write_run};
use serde_json::Value;

/// Losses that an engine logged against our own trainer's on the same rows. The bound is 1e-4 relative.
fn compare(golden: &str, trainer: Trainer, kinds: &[Kind]) {
    let golden: Value = serde_json::from_str(golden).unwrap();
    for &kind in kinds {
        let (run, name) = (tempfile::tempdir().unwrap(), kind.name());
        write_run(trainer, run.path(), kind, 1);
        let lines = train(run.path(), kind);
        held_out(name, &lines, &golden[format!("{name}, held out")]);
        let ours: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
        let theirs: Vec<f64> = golden[name].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
        let n_steps = if kind == Kind::Patience { PATIENCE_ENDS_AT } else { 10 };
        assert_eq!((ours.len(), theirs.len()), (n_steps, n_steps), "{name}");
        for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let error = (ours - theirs).abs() / theirs.abs();
            assert!(error <= 1e-4, "{name}: step {}: {ours} is not {theirs} ({error:.1e})", step + 1);
        }
    }
}

/// The step at which our own trainer's patience ends that stage.
const PATIENCE_ENDS_AT: usize = 6;

/// Held-out figures that an engine logged against our own trainer's at the same steps, by the same bound: of what is no mean of losses relative
/// to 1 where it is smaller.
fn held_out(name: &str, lines: &[Value], golden: &Value) {
    let ours: Vec<&Value> =
        lines.iter().filter(|line| line.as_object().unwrap().keys().any(|key| key.starts_with("held_out"))).collect();
    let theirs = golden.as_array().map(Vec::as_slice).unwrap_or_default();
    assert_eq!(ours.is_empty(), !name.contains("held") && name != "patience", "{name}");
    assert_eq!(ours.len(), theirs.len(), "{name}: {ours:?}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours["step"], theirs["step"], "{name}");
        let pairs: &[(&str, &str)] = match ours.get("held_out_nll") {
            Some(_) => &[("nll", "loss"), ("targets", "targets")],
            None => &[
                ("loss", "loss"),
                ("nll_loss", "nll"),
                ("margin", "margin"),
                ("margin_se", "margin_se"),
                ("reward_accuracy", "reward_accuracy"),
                ("logp_accuracy", "logp_accuracy"),
                ("pairs", "pairs"),
            ],
        };
        for (own, their) in pairs {
            let ours = ours[format!("held_out_{own}")].as_f64().unwrap();
            let theirs = theirs[format!("eval_{their}")].as_f64().unwrap();
            assert!((ours - theirs).abs() <= 1e-4 * theirs.abs().max(1.0), "{name}: {own}: {ours} is not {theirs}");
        }
    }
}

/// `tests/golden/trl_losses.json` is written by `oracles/engine_trl.py losses`: TRL 1.16 started by `engine.py` with `engine.yaml` on the
/// rendered rows, f32, CPU.
#[test]
fn the_first_ten_losses_of_trl_on_our_rows_are_those_of_our_own_trainer() {
    compare(include_str!("golden/trl_losses.json"), Trainer::Trl, &Kind::ALL);
}

/// `tests/golden/axolotl_losses.json` is written by `oracles/engine_axolotl.py losses`: axolotl 0.19 in the same way.
#[test]
fn the_first_ten_losses_of_axolotl_on_our_rows_are_those_of_our_own_trainer() {
    compare(include_str!("golden/axolotl_losses.json"), Trainer::Axolotl, &Kind::OF_ALL);
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect()
}

/// 10 steps of 4 rows of at most 64 tokens; longer conversations are dropped. An epoch holds each conversation once, so the documents of its steps are those of the rows.
#[test]
fn rendered_rows_hold_every_document_of_an_epoch_once_with_our_mask_and_whole_steps() {
    let run = tempfile::tempdir().unwrap();
    let (_, rendered) = write_run(Trainer::Trl, run.path(), Kind::Sft, 1);
    let rows = lines(&run.path().join("data/sft/rendered.jsonl"));
    assert_eq!((rendered.n_steps, rows.len()), (10, 40));
    let text = TextModel::open(&run.path().join("out/base")).unwrap();
    let mut expected: Vec<(Vec<i64>, Vec<i64>)> = Vec::new();
    for row in sft_rows() {
        let encoded = text.encode_conversation(&row.conversation).unwrap();
        if encoded.ids.len() > 64 {
            continue;
        }
        let ids: Vec<i64> = encoded.ids.iter().map(|&id| i64::from(id)).collect();
        let labels =
            ids.iter().zip(&encoded.loss_mask).map(|(&id, &trained)| if trained { id } else { -100 }).collect();
        expected.push((ids, labels));
    }
    let n_tokens: usize = expected.iter().map(|(ids, _)| ids.len()).sum();
    let (mut found, mut n_fillers, mut n_read) = (Vec::new(), 0, 0);
    for row in &rows {
        let (ids, labels) = (numbers(&row["input_ids"]), numbers(&row["labels"]));
        assert!(ids.len() == labels.len() && ids.len() <= 64);
        let mut at = 0;
        for len in numbers(&row["seq_lengths"]) {
            let range = at..at + len as usize;
            at = range.end;
            if labels[range.clone()].iter().all(|&label| label == -100) {
                assert_eq!(len, 2, "only fillers have no target");
                n_fillers += 1;
            } else if n_read < n_tokens {
                n_read += len as usize;
                found.push((ids[range.clone()].to_vec(), labels[range].to_vec()));
            }
        }
        assert_eq!(at, ids.len());
    }
    found.sort();
    expected.sort();
    assert!(found == expected, "{} documents, expected {}", found.len(), expected.len());
    assert!(n_fillers > 0, "the last step of the first epoch is filled up");
}

#[test]
fn message_rows_and_a_marked_template_stand_beside_the_ids() {
    let run = tempfile::tempdir().unwrap();
    let (_, rendered) = write_run(Trainer::Trl, run.path(), Kind::Sft, 1);
    let rows = lines(&run.path().join("data/sft/messages.jsonl"));
    let text = TextModel::open(&run.path().join("out/base")).unwrap();
    let is_used = |row: &aloe_train::SftRow| text.encode_conversation(&row.conversation).unwrap().ids.len() <= 64;
    let used = sft_rows().into_iter().filter(is_used);
    let expected: Vec<Value> = used.map(|row| serde_json::to_value(&row.conversation).unwrap()).collect();
    assert!(rows == expected && (30..60).contains(&rows.len()), "{} rows, expected {}", rows.len(), expected.len());
    let template = std::fs::read_to_string(run.path().join("data/sft/template.jinja")).unwrap();
    assert!(
        template.contains("{% generation %}") && rendered.notices.iter().all(|notice| !notice.contains("generation"))
    );
}

#[test]
fn the_same_stage_gives_the_same_bytes_in_another_folder() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for kind in Kind::ALL {
        for run in [&first, &second] {
            write_run(Trainer::Trl, run.path(), kind, 1);
        }
        let digest = |run: &tempfile::TempDir| {
            let digest = |part: &str| aloe_record::digest::folder(&run.path().join(part)).unwrap();
            (digest("data"), digest("stages"))
        };
        assert_eq!(digest(&first), digest(&second), "{kind:?}");
    }
}

/// 20 pairs. Two chunks of 10 hold, with 5 to a step, those of one epoch in its order; with 4 to a step the last two of each are left out.
#[test]
fn chunks_of_pairs_are_cut_from_the_order_of_one_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let model = write_base(dir.path().join("base").as_path());
    let text = TextModel::open(&dir.path().join("base")).unwrap();
    let of = |chunks: usize, batch_size: usize| {
        let config = DpoConfig { chunks, batch_size, seed: 3, ..DpoConfig::default() };
        let inputs = DpoInputs { start: "".into(), rows: dpo_rows(), held_out: Vec::new() };
        let batches = DpoBatches::prepare(&config, inputs, &text, &model).unwrap();
        let pairs = (0..batches.n_steps).flat_map(|step| batches.batch(step)).map(|pair| format!("{pair:?}"));
        (pairs.collect::<Vec<_>>(), batches.chunk_steps.clone(), batches.n_left_out)
    };
    let (whole, steps, n_left_out) = of(1, 5);
    assert_eq!((whole.len(), steps, n_left_out), (20, vec![4], 0));
    assert_eq!(of(2, 5), (whole.clone(), vec![2, 2], 0));
    assert_eq!(of(2, 4), ([&whole[..8], &whole[10..18]].concat(), vec![2, 2], 4));
}
