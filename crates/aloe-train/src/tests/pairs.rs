//! What becomes of a pair on its way to a step: refused, shortened, dropped, told by source, its reference kept and found again.

use super::context;
use super::spine::{dpo_config, dpo_rows, words, write_model};
use crate::dpo::{DpoConfig, DpoInputs, DpoRow, ReferenceAt, dpo};
use crate::dpo_report::DpoReport;
use crate::pairs::{Example, Limits, Truncate, encode, logps_of};
use crate::{Error, Result};
use aloe_model::Decoder;
use aloe_model::testing::{Tiny, tiny_random};
use aloe_record::digest;
use aloe_tensor::{Device, Dtype};
use aloe_text::{Message, Pair, TextModel};
use std::path::Path;

fn chatml(dir: &Path) -> TextModel {
    write_model(dir);
    TextModel::open(dir).unwrap().with_template("chatml").unwrap()
}

/// A system message and three turns, the last of which the pair's two answers answer.
fn dialogue() -> DpoRow {
    let prompt = vec![
        Message::system("w1 w2"),
        Message::user("w3 w4 w5"),
        Message::assistant("w6 w7"),
        Message::user("w8"),
        Message::assistant("w9 w10"),
        Message::user("w11 w12"),
    ];
    let pair =
        Pair { prompt, chosen: vec![Message::assistant("w13 w14 w15")], rejected: vec![Message::assistant("w16")] };
    DpoRow { source: "talk.jsonl:1".into(), set: "talk".into(), pair }
}

fn limits(max_len: usize, truncate: Truncate) -> Limits {
    Limits { max_len, truncate, vocab_size: 64 }
}

#[test]
fn a_long_prompt_loses_whole_oldest_turns_and_keeps_its_system_message_and_headers() {
    let dir = tempfile::tempdir().unwrap();
    let text = chatml(dir.path());
    let row = dialogue();
    let n_tokens = |row: &DpoRow| {
        let ids = text.encode_pair(&row.pair).unwrap();
        ids.prompt_ids.len() + ids.chosen_ids.len()
    };
    // The prompts expected are written out here, message by message, and rendered by the same template.
    let without = |first: usize| {
        let mut shorter = row.clone();
        shorter.pair.prompt.drain(1..first);
        shorter
    };
    let (whole, two_turns, one_turn) = (n_tokens(&row), n_tokens(&without(3)), n_tokens(&without(5)));
    assert!(whole > two_turns && two_turns > one_turn);
    let cases = [(whole, 1, 0), (whole - 1, 3, 1), (two_turns, 3, 1), (two_turns - 1, 5, 2), (one_turn, 5, 2)];
    for (max_len, first, n_turns_removed) in cases {
        let found = encode(std::slice::from_ref(&row), &text, &limits(max_len, Truncate::Prompt)).unwrap();
        assert_eq!(found[0].ids, text.encode_pair(&without(first).pair).unwrap(), "max_len {max_len}");
        assert_eq!(found[0].n_turns_removed, n_turns_removed, "max_len {max_len}");
    }
    // Not even the last turn fits: the pair stays whole, to be dropped and counted. Nothing is ever cut inside a turn.
    for (max_len, truncate) in [(one_turn - 1, Truncate::Prompt), (whole - 1, Truncate::Off)] {
        let found = encode(std::slice::from_ref(&row), &text, &limits(max_len, truncate)).unwrap();
        assert_eq!(found[0].ids, text.encode_pair(&row.pair).unwrap());
        assert_eq!(found[0].n_turns_removed, 0);
    }
}

fn run(base: &Path, out: &Path, config: &DpoConfig, rows: Vec<DpoRow>) -> Result<DpoReport> {
    let inputs = DpoInputs { start: base.to_path_buf(), rows, held_out: Vec::new() };
    let config = DpoConfig { chat_template: Some("chatml".into()), ..config.clone() };
    dpo(&config, inputs, out, &context(2))
}

#[test]
fn shortened_dropped_and_hopeless_pairs_are_counted_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let text = chatml(&dir.path().join("base"));
    let one_turn = {
        let mut pair = dialogue().pair;
        pair.prompt.drain(1..5);
        let ids = text.encode_pair(&pair).unwrap();
        ids.prompt_ids.len() + ids.chosen_ids.len()
    };
    let mut rows = dpo_rows(10);
    rows.iter_mut().for_each(|row| row.pair.prompt[0].content = "w1".into());
    rows.push(dialogue());
    rows[2].pair.prompt[0].content = words(0, 40);
    rows[4].pair.rejected[0].content = words(0, 30);
    let config =
        DpoConfig { max_len: one_turn, truncate: Truncate::Prompt, chunks: 1, held_out_share: 0.0, ..dpo_config() };
    let report = run(&dir.path().join("base"), &dir.path().join("out"), &config, rows).unwrap();
    assert_eq!((report.n_pairs, report.n_too_long, report.n_prompt_too_long), (9, 2, 1));
    assert_eq!((report.n_shortened, report.n_turns_removed), (1, 2));
    assert_eq!(report.dropped, ["pairs.jsonl:3", "pairs.jsonl:5"]);
    assert!(
        report.notices[0].starts_with("2 of 11 pairs dropped: 2 longer than max_len (1 of them by the prompt alone)")
    );
    assert!(report.notices[1].starts_with("1 of 11 pairs shortened"), "{:?}", report.notices);
}

fn refused(change: impl Fn(&mut Vec<DpoRow>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let mut rows = dpo_rows(12);
    change(&mut rows);
    run(&dir.path().join("base"), &dir.path().join("out"), &dpo_config(), rows).unwrap_err().to_string()
}

#[test]
fn pairs_of_another_form_are_refused_before_any_computing_by_file_and_line() {
    let check = |change: &dyn Fn(&mut Pair), expected: &str| {
        let found = refused(|rows| change(&mut rows[3].pair));
        assert!(found.starts_with("pairs.jsonl:4: ") && found.contains(expected), "{found}");
    };
    check(&|pair| pair.chosen.clear(), "`chosen` has no message");
    check(&|pair| pair.rejected[0].content = " \n".into(), "`rejected` is an empty answer");
    check(&|pair| pair.rejected[0] = Message::user("w1"), "`rejected` is a message of user");
    check(&|pair| pair.prompt.clear(), "`prompt` has no message");
    check(&|pair| pair.prompt.push(Message::assistant("w1")), "must end with a user message");
    let repeat = |pair: &mut Pair| pair.chosen = [pair.prompt.as_slice(), &pair.chosen].concat();
    check(&repeat, "`chosen` repeats the prompt");
    // Another prompt before each answer: what a pair's two whole conversations look like when they differ.
    let other = |pair: &mut Pair| pair.rejected = [&[Message::user("w9")], pair.rejected.as_slice()].concat();
    let told = "turns before the answer belong to `prompt`, which is the same for both answers; `aloe data run` cuts";
    check(&other, told);
}

#[test]
fn a_cache_without_a_folder_is_a_mistake_and_not_a_file_in_the_current_folder() {
    let config = DpoConfig { reference_cache: Some("".into()), ..dpo_config() };
    assert_eq!(config.mistakes(), ["reference_cache names no folder: give one, or leave it out"]);
}

#[test]
fn with_a_reference_at_each_chunks_start_it_is_told_that_held_out_figures_keep_the_stages() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let told = |reference: ReferenceAt| {
        let config = DpoConfig { reference, chunks: 2, ..dpo_config() };
        let report =
            run(&dir.path().join("base"), &dir.path().join(format!("{reference:?}")), &config, dpo_rows(30)).unwrap();
        report.notices[0].ends_with("that of held-out figures is the stage's start model throughout")
    };
    assert!(told(ReferenceAt::ChunkStart) && !told(ReferenceAt::StageStart));
}

#[test]
fn several_unusable_rows_are_named_together() {
    let found = refused(|rows| {
        rows[1].pair.chosen.clear();
        rows[7].pair.rejected[0].content.clear();
    });
    assert!(found.starts_with("preference pairs: 2 of 12 cannot be used"), "{found}");
    assert!(
        found.contains("\n  pairs.jsonl:2: `chosen`") && found.contains("\n  pairs.jsonl:8: `rejected`"),
        "{found}"
    );
    let equal = refused(|rows| rows.iter_mut().for_each(|row| row.pair.rejected = row.pair.chosen.clone()));
    assert!(equal.contains("12 with equal answers"), "{equal}");
}

#[test]
fn a_template_without_an_end_of_turn_token_is_refused_before_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base);
    let template = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }} {% endfor %}";
    let config = std::fs::read_to_string(base.join("tokenizer_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["chat_template"] = template.into();
    std::fs::write(base.join("tokenizer_config.json"), config.to_string()).unwrap();
    let inputs = DpoInputs { start: base, rows: dpo_rows(4), held_out: Vec::new() };
    let error = dpo(&dpo_config(), inputs, &dir.path().join("out"), &context(1)).unwrap_err();
    assert!(matches!(error, Error::Text(aloe_text::Error::NoEndOfTurn { .. })), "{error}");
}

#[test]
fn a_pair_beyond_the_models_context_is_refused_early_with_the_key_to_change() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let mut rows = dpo_rows(8);
    rows[5].pair.prompt[0].content = words(0, 60);
    // The tiny model's context is 64 positions.
    let config = DpoConfig { max_len: 200, held_out_share: 0.0, ..dpo_config() };
    let out = dir.path().join("out");
    let error = run(&dir.path().join("base"), &out, &config, rows).unwrap_err().to_string();
    assert!(error.starts_with("pairs.jsonl:6: ") && error.contains("context of 64; max_len = 200"), "{error}");
    assert!(!out.join("state").exists());
}

#[test]
fn figures_by_source_add_up_to_those_of_all_pairs() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let config = DpoConfig { held_out_share: 0.4, epochs: 3, chunks: 1, ..dpo_config() };
    let report = run(&dir.path().join("base"), &dir.path().join("out"), &config, dpo_rows(40)).unwrap();
    let names: Vec<&str> = report.by_source.iter().map(|source| source.source.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(report.by_source.iter().map(|source| source.n_pairs).sum::<usize>(), report.n_pairs);
    let held_out = |of: fn(&crate::PairSourceHeldOut) -> f64| {
        let sum: f64 = report.by_source.iter().map(|s| s.n_held_out as f64 * of(s.held_out.as_ref().unwrap())).sum();
        sum / report.n_held_out as f64
    };
    let close = |found: f64, expected: Option<f64>| assert!((found - expected.unwrap()).abs() < 1e-12, "{found}");
    close(held_out(|s| s.margin_after), report.held_out_margin_after);
    close(held_out(|s| s.reward_accuracy_after), report.held_out_reward_accuracy_after);
    close(held_out(|s| s.logp_accuracy_before), report.held_out_logp_accuracy_before);
    for source in report.by_source.iter().filter_map(|source| source.held_out.as_ref()) {
        assert!((source.reward_chosen_after - source.reward_rejected_after - source.margin_after).abs() < 1e-12);
        // A reward is beta times the log-probability's change, as beta = 0.1 and the reference is the start.
        let change = 0.1 * (source.logps_chosen_after - source.logps_chosen_before);
        assert!((change - source.reward_chosen_after).abs() < 1e-9, "{change} {}", source.reward_chosen_after);
    }
    let [low, high] = report.held_out_margin_interval_after.unwrap();
    let margin = report.held_out_margin_after.unwrap();
    assert!(low < margin && margin < high && ((low + high) / 2.0 - margin).abs() < 1e-12);
    let metrics = std::fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
    for name in ["rewards/margins/a", "rewards/accuracies/b", "logps/chosen/a", "held_out_margin_se/b", "pairs/b"] {
        assert!(metrics.contains(&format!("\"{name}\":")), "{name}");
    }
}

#[test]
fn another_run_finds_the_reference_in_the_cache_and_ends_with_the_bytes_of_one_without() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base);
    let cached = DpoConfig { reference_cache: Some(dir.path().join("cache")), ..dpo_config() };
    let first = run(&base, &dir.path().join("first"), &cached, dpo_rows(30)).unwrap();
    assert_eq!(first.n_references_reused, 0);
    let other = |cache: &DpoConfig, out: &str| {
        let config = DpoConfig { beta: 0.3, lr: 2e-3, ..cache.clone() };
        run(&base, &dir.path().join(out), &config, dpo_rows(33)).unwrap()
    };
    let second = other(&cached, "second");
    assert_eq!(second.n_references_reused, 30, "three of 33 pairs are new");
    let without = other(&dpo_config(), "without");
    assert_eq!(without.n_references_reused, 0);
    let bytes = |out: &str| digest::folder(&dir.path().join(out)).unwrap();
    assert_eq!(bytes("second"), bytes("without"));
    // A file that disagrees with the model is an error, and nothing is trained from it.
    let file = std::fs::read_dir(dir.path().join("cache")).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let mut log = aloe_record::shared_log::SharedLog::open(&file).unwrap();
    let flipped: Vec<String> = text
        .lines()
        .map(|line| {
            let mut value: serde_json::Value = serde_json::from_str(&line[9..]).unwrap();
            value["chosen"] = (value["chosen"].as_u64().unwrap() ^ 1).into();
            value.to_string()
        })
        .collect();
    log.append(&flipped).unwrap();
    let error = run(&base, &dir.path().join("third"), &cached, dpo_rows(30)).unwrap_err().to_string();
    assert!(error.contains(".log: holds ") && error.contains("the model gives"), "{error}");
}

#[test]
fn a_pairs_log_probabilities_are_the_same_bits_whatever_its_batch_mates_in_f32_and_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let text = chatml(dir.path());
    let examples = encode(&dpo_rows(9), &text, &limits(60, Truncate::Off)).unwrap();
    let all: Vec<&Example> = examples.iter().collect();
    for tiny in [Tiny::Llama, Tiny::Qwen2] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let decoder = Decoder::from_params(&tiny_random(tiny, 0), dtype, &Device::cpu(2));
            let together = logps_of(&decoder, &all).unwrap();
            let alone: Vec<_> = all.iter().flat_map(|pair| logps_of(&decoder, &[pair]).unwrap()).collect();
            let reversed: Vec<&Example> = all.iter().rev().copied().collect();
            let mut backwards = logps_of(&decoder, &reversed).unwrap();
            backwards.reverse();
            assert_eq!(together, alone, "{dtype:?}");
            assert_eq!(together, backwards, "{dtype:?}");
        }
    }
}
