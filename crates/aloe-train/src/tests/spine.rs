//! The two stages whole: from conversations and a model folder to the folders that the next stage and the user read.

use super::context;
use crate::dpo::{DpoConfig, DpoInputs, DpoRow, ReferenceAt, dpo};
use crate::guard::OnSpike;
use crate::lora::{open_learner, start_decoder};
use crate::measure::{dpo_size, sft_size};
use crate::settings::{Context, TrainDtype};
use crate::sft::{LongRows, SftConfig, SftInputs, SftReport, SftRow, sft};
use crate::statistics::Estimate;
use crate::{Error, Result};
use aloe_model::testing::{Tiny, tiny_random};
use aloe_model::{CheckpointWriter, Decoder, ModelSource, PackedBatch};
use aloe_record::{CounterRng, digest};
use aloe_tensor::{Dtype, rounded_by_place};
use aloe_text::{Conversation, Message, Pair, TextModel};
use serde_json::json;
use std::path::Path;

/// A tiny decoder's folder with a tokenizer of one id per word: `w0` to `w57` and ChatML's markers and roles.
pub(super) fn write_model(dir: &Path) {
    let fixed = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system"];
    let words = (0..58).map(|word| format!("w{word}"));
    let vocab: serde_json::Map<_, _> =
        fixed.iter().map(|word| (*word).to_owned()).chain(words).zip((0..64).map(|id| json!(id))).collect();
    let added = |id: usize| {
        json!({"id": id, "content": fixed[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0), added(1), added(2)], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}});
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "unk_token": "<unk>"});
    let params = tiny_random(Tiny::Llama, 0);
    let mut writer = CheckpointWriter::create(dir, &params.config, Dtype::F32).unwrap();
    for (spec, tensor) in params.specs().iter().zip(params.tensors()) {
        writer.add(&spec.hf_name, tensor.as_f32()).unwrap();
    }
    let file = |name: &str, value: &serde_json::Value| (name.to_owned(), value.to_string().into_bytes());
    writer.finish(&[file("tokenizer.json", &tokenizer), file("tokenizer_config.json", &config)]).unwrap();
}

pub(super) fn words(first: usize, n: usize) -> String {
    (0..n).map(|at| format!("w{}", (first * 7 + at * 3) % 58)).collect::<Vec<_>>().join(" ")
}

pub(super) fn sft_rows(n: usize) -> Vec<SftRow> {
    let row = |at: usize| SftRow {
        source: format!("rows.jsonl:{}", at + 1),
        data_source: Some(["even", "odd"][at % 2].into()),
        conversation: Conversation {
            messages: vec![Message::user(words(at, 3 + at % 4)), Message::assistant(words(at + 1, 2 + at % 5))],
        },
    };
    (0..n).map(row).collect()
}

pub(super) fn dpo_rows(n: usize) -> Vec<DpoRow> {
    let row = |at: usize| DpoRow {
        source: format!("pairs.jsonl:{}", at + 1),
        set: if at.is_multiple_of(3) { "a".into() } else { "b".into() },
        pair: Pair {
            prompt: vec![Message::user(words(at, 3 + at % 4))],
            chosen: vec![Message::assistant(words(at + 1, 2 + at % 3))],
            rejected: vec![Message::assistant(words(at + 2, 1 + at % 4))],
        },
    };
    (0..n).map(row).collect()
}

pub(super) fn sft_config() -> SftConfig {
    SftConfig {
        lr: 1e-3,
        epochs: Some(3),
        max_len: 32,
        batch_size: 4,
        dtype: TrainDtype::F32,
        chat_template: Some("chatml".into()),
        held_out_share: 0.2,
        eval_every: 4,
        keep_best: true,
        sample_every: 3,
        sample_prompts: vec!["w1 w2 w3".into(), "w9".into()],
        sample_tokens: 6,
        checkpoint_every: 2,
        ..SftConfig::default()
    }
}

/// Without held-out rows and what depends on them.
fn plain_sft_config() -> SftConfig {
    SftConfig {
        held_out_share: 0.0,
        eval_every: 0,
        keep_best: false,
        sample_every: 0,
        sample_prompts: Vec::new(),
        ..sft_config()
    }
}

pub(super) fn dpo_config() -> DpoConfig {
    DpoConfig {
        lr: 1e-3,
        chunks: 2,
        max_len: 32,
        batch_size: 4,
        dtype: TrainDtype::F32,
        held_out_share: 0.2,
        checkpoint_every: 2,
        ..DpoConfig::default()
    }
}

/// What the user gets: the folder's digest without records and hidden files.
fn digest_of(out: &Path) -> String {
    assert!(!out.join("state").exists());
    digest::folder(out).unwrap()
}

#[test]
fn sft_then_dpo_write_loadable_folders_and_report_what_they_did() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_model(&at("base"));
    let inputs = SftInputs { start: at("base"), rows: sft_rows(40), held_out: Vec::new() };
    let report = sft(&sft_config(), inputs, &at("sft"), &context(2)).unwrap();
    assert_eq!((report.n_rows, report.n_held_out, report.n_too_long), (32, 8, 0));
    assert!(report.held_out_nll_after.unwrap() < report.held_out_nll_before.unwrap());
    check_change(report.held_out_nll_change, report.held_out_nll_before, report.held_out_nll_after);
    assert!(report.loss_last_tenth < report.loss_first_tenth);
    assert!(report.n_targets > 0 && report.n_targets < report.n_tokens);
    assert!(report.export.update_norm > 0.0 && report.export.master_changed_share > 0.9);
    check_sources_and_samples(&report, &at("sft"));
    let text = TextModel::open(&at("sft/model")).unwrap();
    let config = read(&at("base")).config().clone();
    let inputs = SftInputs { start: at("base"), rows: sft_rows(40), held_out: Vec::new() };
    let size = sft_size(&sft_config(), inputs, &text, &config).unwrap();
    assert_eq!((size.n_rows, size.n_tokens, size.n_steps), (32, report.n_tokens, report.n_steps));
    let (master, model) = (read(&at("sft/master")), read(&at("sft/model")));
    let load = |source: &ModelSource| source.load("model.norm.weight", Dtype::F32).unwrap();
    assert_eq!(rounded_by_place(load(&master).as_f32()), load(&model).as_f32());
    assert!(at("sft/model/tokenizer.json").is_file());

    // The second stage starts from the first one's masters and finds the template written there.
    let inputs = DpoInputs { start: at("sft"), rows: dpo_rows(30), held_out: Vec::new() };
    let aligned = dpo(&dpo_config(), inputs, &at("dpo"), &context(2)).unwrap();
    assert_eq!(aligned.start_digest, master.digest().unwrap());
    assert_eq!((aligned.n_pairs, aligned.n_held_out, aligned.steps_per_chunk.clone()), (24, 6, vec![3, 3]));
    let inputs = || DpoInputs { start: at("sft"), rows: dpo_rows(30), held_out: Vec::new() };
    let size = dpo_size(&dpo_config(), inputs(), &text, &config).unwrap();
    assert_eq!(
        (size.n_pairs, size.n_tokens, size.n_trained, size.n_steps),
        (24, aligned.n_tokens, aligned.n_tokens, 6)
    );
    // One pair a micro-batch here; with four, batches of four.
    let together = DpoConfig { micro_batch_size: 4, ..dpo_config() };
    let together = dpo_size(&together, inputs(), &text, &config).unwrap();
    assert!(
        together.n_largest > 2 * size.n_largest && together.n_largest <= 4 * size.n_largest,
        "{size:?} {together:?}"
    );
    assert!((aligned.held_out_loss_before.unwrap() - std::f64::consts::LN_2).abs() < 1e-12);
    check_change(aligned.held_out_nll_change, aligned.held_out_nll_before, aligned.held_out_nll_after);
    let accuracies = (aligned.held_out_logp_accuracy_before, aligned.held_out_logp_accuracy_after);
    assert!(
        (aligned.held_out_logp_accuracy_change.unwrap().mean - (accuracies.1.unwrap() - accuracies.0.unwrap())).abs()
            < 1e-12
    );
    assert_eq!(aligned.n_steps, 6);
    assert_eq!(aligned.notices.len(), 1, "{:?}", aligned.notices);
    assert!(aligned.notices[0].contains("moments and the learning-rate schedule"), "{:?}", aligned.notices);
}

/// A start whose weights no bf16 number holds: the reference of a resumed run has the copies that training began with, which are
/// not those of a model that is loaded for inference.
#[test]
fn a_reference_opened_again_has_the_copies_that_training_began_with() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let source = read(dir.path());
    let device = context(1).device;
    let hidden = |decoder: &Decoder| {
        let ids: Vec<u32> = (0..40).map(|at| at * 7 % 64).collect();
        decoder.hidden(&PackedBatch::from_documents(&[&ids])).unwrap().to_f32_vec()
    };
    let learner = open_learner(&source, None, 0, TrainDtype::Bf16, &device).unwrap();
    let again = start_decoder(&source, None, 0, TrainDtype::Bf16, &device).unwrap();
    assert_eq!(hidden(&again), hidden(learner.decoder()));
    assert_ne!(hidden(&Decoder::open(&source, Dtype::Bf16, &device).unwrap()), hidden(&again));
}

/// The paired difference is that of the means, and lies inside its interval.
pub(super) fn check_change(change: Option<Estimate>, before: Option<f64>, after: Option<f64>) {
    let change = change.unwrap();
    assert!((change.mean - (after.unwrap() - before.unwrap())).abs() < 1e-9, "{change:?} {before:?} {after:?}");
    let [low, high] = change.interval.unwrap();
    assert!(low < change.mean && change.mean < high && change.se.unwrap() > 0.0, "{change:?}");
}

fn check_sources_and_samples(report: &SftReport, out: &Path) {
    let sums = report.by_source.values().fold((0, 0, 0), |sums, of| {
        assert!(of.held_out_nll_after.unwrap() < of.held_out_nll_before.unwrap(), "{of:?}");
        check_change(of.held_out_nll_change, of.held_out_nll_before, of.held_out_nll_after);
        assert!(of.loss_last_tenth < of.loss_first_tenth, "{of:?}");
        (sums.0 + of.n_rows, sums.1 + of.n_held_out, sums.2 + of.n_targets)
    });
    assert_eq!(report.by_source.keys().collect::<Vec<_>>(), ["even", "odd"]);
    assert_eq!(sums, (32, 8, report.n_targets));
    let samples = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = samples.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    let mut expected: Vec<u64> = (0..=report.n_steps).filter(|step| step % 3 == 0).collect();
    if expected.last() != Some(&report.n_steps) {
        expected.push(report.n_steps);
    }
    assert_eq!(steps, expected.iter().flat_map(|&step| [step, step]).collect::<Vec<_>>());
    assert!(lines.iter().all(|line| line["n_tokens"].as_u64().unwrap() <= 6), "{samples}");
    assert_eq!(lines[1]["prompt"], "w9");
}

/// A row of three exchanges of 4 + 6 words, and one whose single answer is longer than a packed row.
#[test]
fn long_rows_are_split_so_that_every_answer_token_is_trained_on_once() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let mut rows = sft_rows(6);
    let exchange = |at: usize| [Message::user(words(at, 4)), Message::assistant(words(at + 1, 6))];
    rows[2].conversation.messages = [vec![Message::system(words(3, 2))], (0..3).flat_map(exchange).collect()].concat();
    rows[4].conversation.messages = vec![Message::user(words(5, 3)), Message::assistant(words(6, 40))];
    let run = |name: &str, max_len: usize, long_rows: LongRows| {
        let inputs = SftInputs { start: dir.path().join("base"), rows: rows.clone(), held_out: Vec::new() };
        let config = SftConfig { max_len, long_rows, epochs: Some(1), ..plain_sft_config() };
        sft(&config, inputs, &dir.path().join(name), &context(1)).unwrap()
    };
    let whole = run("whole", 64, LongRows::Drop);
    let split = run("split", 32, LongRows::Split);
    assert_eq!((whole.n_rows, whole.n_too_long, whole.n_split), (6, 0, 0));
    // ChatML takes 3 tokens a message here: two exchanges of 7 + 9 behind the system message's 5 exceed 32, so each stands alone
    // behind it. The long answer makes 6 + 43 tokens: 0..32, then 16..48 and 32..49.
    assert_eq!((split.n_split, split.n_split_inside, split.n_too_long), (2, 1, 0));
    assert_eq!(split.n_pieces, 3 + 3, "{:?}", split.notices);
    assert_eq!(split.n_rows, 4 + split.n_pieces);
    assert_eq!(split.n_targets, whole.n_targets);
    assert!(split.notices[0].starts_with("2 rows longer than max_len were cut into 6 pieces"), "{:?}", split.notices);
    let dropped = run("dropped", 32, LongRows::Drop);
    assert_eq!((dropped.n_rows, dropped.n_too_long, dropped.n_split), (4, 2, 0));
}

#[test]
fn rows_and_sample_prompts_beyond_the_models_context_are_refused_by_name() {
    let mut rows = sft_rows(5);
    rows[3].conversation.messages[0].content = words(0, 70);
    let text = refused(&SftConfig { max_len: 128, ..plain_sft_config() }, rows);
    assert!(text.starts_with("rows.jsonl:4: has ") && text.contains("context of 64; set max_len = 64"), "{text}");
    let long =
        SftConfig { sample_prompts: vec![words(0, 40)], sample_tokens: 30, sample_every: 2, ..plain_sft_config() };
    let text = refused(&long, sft_rows(5));
    assert!(text.starts_with("sample_prompts: ") && text.contains("context of 64"), "{text}");
}

pub(super) fn read(dir: &Path) -> ModelSource {
    ModelSource::open(dir).unwrap()
}

#[test]
fn stages_stopped_again_and_again_leave_the_same_bytes_as_uninterrupted_ones() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base);
    let run_sft = |out: &Path, context: &Context| {
        let inputs = SftInputs { start: base.clone(), rows: sft_rows(40), held_out: Vec::new() };
        sft(&sft_config(), inputs, out, context).map(|_| ())
    };
    check_stops(dir.path(), "sft", &run_sft);
    let start = dir.path().join("sft whole");
    let run_dpo = |out: &Path, context: &Context| {
        let inputs = DpoInputs { start: start.clone(), rows: dpo_rows(30), held_out: Vec::new() };
        dpo(&dpo_config(), inputs, out, context).map(|_| ())
    };
    check_stops(dir.path(), "dpo", &run_dpo);
}

pub(super) fn check_stops(dir: &Path, name: &str, run: &dyn Fn(&Path, &Context) -> Result<()>) {
    let whole = dir.join(format!("{name} whole"));
    run(&whole, &context(2)).unwrap();
    let stopped = dir.join(format!("{name} stopped"));
    let mut n_stops = 0;
    for attempt in 0..100 {
        let context = context(1 + attempt % 2);
        let cancel = context.cancel.clone();
        let timer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(4 + 3 * attempt as u64));
            cancel.request(15);
        });
        let found = run(&stopped, &context);
        timer.join().unwrap();
        match found {
            Ok(()) => break,
            Err(Error::Record(aloe_record::Error::Cancelled)) => n_stops += 1,
            Err(error) => panic!("{name}: {error}"),
        }
    }
    assert!(n_stops > 0, "{name}: no run was stopped");
    assert_eq!(digest_of(&stopped), digest_of(&whole), "{name} after {n_stops} stops");
    // Asked again, a finished stage answers from its report and changes nothing.
    run(&stopped, &context(2)).unwrap();
    assert_eq!(digest_of(&stopped), digest_of(&whole));
}

const CHILD: &str = "ALOE_TRAIN_TEST_CHILD";

/// Not a test of its own: the process that the next test starts and kills. Without the variable it does nothing.
#[test]
fn child_process_of_the_kill_test() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let rows = SftInputs { start: dir.join("base"), rows: sft_rows(40), held_out: Vec::new() };
    let config = SftConfig { checkpoint_every: 1, ..sft_config() };
    sft(&config, rows, &dir.join("sft"), &context(1)).unwrap();
    let pairs = DpoInputs { start: dir.join("sft"), rows: dpo_rows(30), held_out: Vec::new() };
    let config = DpoConfig { checkpoint_every: 1, reference: ReferenceAt::ChunkStart, ..dpo_config() };
    dpo(&config, pairs, &dir.join("dpo"), &context(1)).unwrap();
}

fn child(dir: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::spine::child_process_of_the_kill_test"])
        .env(CHILD, dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// How often the process was killed, after random shares of `whole_time`, until one ended by itself.
fn kills_until_the_end(dir: &Path, whole_time: std::time::Duration) -> usize {
    let mut rng = CounterRng::new(11, "test", 0);
    for n_kills in 0..200 {
        let mut process = child(dir);
        // Later attempts live longer, so that the run ends even on a slow machine.
        std::thread::sleep(whole_time.mul_f64((0.1 + 0.03 * n_kills as f64) * rng.uniform_f64()));
        if let Some(status) = process.try_wait().unwrap() {
            assert!(status.success());
            return n_kills;
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
    panic!("no end after 200 kills");
}

#[test]
fn sft_and_dpo_killed_at_random_moments_leave_the_same_bytes_as_uninterrupted_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    write_model(&whole.join("base"));
    let started = std::time::Instant::now();
    assert!(child(&whole).wait().unwrap().success());
    let whole_time = started.elapsed();
    // The moments are shares of the time that this machine needs. Where it sped up in between and the run ended before five
    // kills, the same is done again with shorter lives.
    let n_kills = (0..8)
        .find_map(|halvings| {
            let _ = std::fs::remove_dir_all(&killed);
            write_model(&killed.join("base"));
            let n_kills = kills_until_the_end(&killed, whole_time / (1 << halvings));
            (n_kills >= 5).then_some(n_kills)
        })
        .expect("a run that is killed five times before it ends");
    for stage in ["sft", "dpo"] {
        assert_eq!(digest_of(&killed.join(stage)), digest_of(&whole.join(stage)), "{stage} after {n_kills} kills");
    }
    println!("{n_kills} kills");
}

#[test]
fn an_unfinished_run_of_other_settings_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base);
    let out = dir.path().join("out");
    let stopped = context(2);
    stopped.cancel.request(2);
    let inputs = || SftInputs { start: base.clone(), rows: sft_rows(40), held_out: Vec::new() };
    let config = plain_sft_config();
    assert!(matches!(sft(&config, inputs(), &out, &stopped), Err(Error::Record(_))));
    let other = SftConfig { lr: 2e-3, ..config.clone() };
    assert!(matches!(sft(&other, inputs(), &out, &context(2)), Err(Error::OtherRun { .. })));
    let split = SftConfig { micro_batch_size: 4, checkpoint_every: 7, on_spike: OnSpike::Skip, ..config };
    sft(&split, inputs(), &out, &context(2)).unwrap();
}

fn refused(config: &SftConfig, rows: Vec<SftRow>) -> String {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let inputs = SftInputs { start: dir.path().join("base"), rows, held_out: Vec::new() };
    sft(config, inputs, &dir.path().join("out"), &context(1)).unwrap_err().to_string()
}

#[test]
fn unusable_rows_and_settings_are_refused_with_the_reason() {
    assert_eq!(refused(&sft_config(), Vec::new()), "training rows: there are none");
    let too_long = refused(&SftConfig { max_len: 4, ..plain_sft_config() }, sft_rows(5));
    assert!(too_long.contains("none is left to train on (5 too long for max_len = 4"), "{too_long}");
    let mut rows = sft_rows(3);
    rows.iter_mut().for_each(|row| row.conversation.messages.truncate(1));
    let masked = refused(&plain_sft_config(), rows);
    assert!(masked.starts_with("training rows: 0 % of the tokens"), "{masked}");
    let none = refused(&SftConfig { chat_template: None, ..plain_sft_config() }, sft_rows(3));
    assert!(none.contains("no chat template"), "{none}");
    // Of a share that is less than a row nothing would be held out, and nothing be evaluated.
    let few = refused(&sft_config(), sft_rows(4));
    assert!(few.starts_with("held-out rows: held_out_share = 0.2 of 4 rows") && few.contains("0.25 or more"), "{few}");
    let unheld = refused(&SftConfig { eval_every: 2, ..plain_sft_config() }, sft_rows(4));
    assert!(unheld.starts_with("held-out rows: there are none to evaluate for eval_every;"), "{unheld}");
    // 4 rows make one step of batch_size = 4: the first of a warm-up, whose rate is 0.
    let one_step = SftConfig { epochs: Some(1), warmup_ratio: 0.03, ..plain_sft_config() };
    let unwarmed = refused(&one_step, sft_rows(4));
    assert!(unwarmed.contains("leaves nothing to train") && unwarmed.contains("warmup_ratio to 0"), "{unwarmed}");
    let mistakes = SftConfig { lr: 0.0, epochs: None, betas: [0.9, 1.0], ..sft_config() }.mistakes();
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    assert!(serde_json::from_str::<SftConfig>(r#"{"learning_rate": 1e-5}"#).is_err());
}

/// Three rows of which each is cut: pieces of one row are no rows that could be set apart from each other.
#[test]
fn no_piece_of_a_held_out_row_is_trained_on_and_the_plan_counts_alike() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let exchange = |row: usize, at: usize| [Message::user(words(row, 4)), Message::assistant(words(row * 9 + at, 6))];
    let mut rows = sft_rows(3);
    for (row, of) in rows.iter_mut().enumerate() {
        of.conversation.messages = (0..4).flat_map(|at| exchange(row, at)).collect();
    }
    let config = SftConfig {
        long_rows: LongRows::Split,
        max_len: 20,
        held_out_share: 0.3,
        epochs: Some(1),
        ..plain_sft_config()
    };
    let text = TextModel::open(&dir.path().join("base")).unwrap().with_template("chatml").unwrap();
    let few = refused(&config, rows.clone());
    assert!(few.contains("held_out_share = 0.3 of 3 rows") && few.contains("0.34 or more"), "{few}");
    let model = read(&dir.path().join("base")).config().clone();
    let inputs = || SftInputs { start: dir.path().join("base"), rows: rows.clone(), held_out: Vec::new() };
    assert!(sft_size(&config, inputs(), &text, &model).is_err());
    let config = SftConfig { held_out_share: 0.34, ..config };
    let report = sft(&config, inputs(), &dir.path().join("out"), &context(1)).unwrap();
    // Each row of 4 exchanges of 7 + 9 tokens becomes four pieces.
    assert_eq!((report.n_pieces, report.n_rows, report.n_held_out), (12, 8, 4));
    let size = sft_size(&config, inputs(), &text, &model).unwrap();
    assert_eq!((size.n_rows, size.n_tokens, size.n_steps), (8, report.n_tokens, report.n_steps));
}

#[test]
fn rows_without_an_answer_are_dropped_and_empty_answers_trained_on_both_counted_and_named() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let mut rows = sft_rows(8);
    rows[2].conversation.messages.truncate(1);
    rows[5].conversation.messages[1].content = String::new();
    let inputs = SftInputs { start: dir.path().join("base"), rows, held_out: Vec::new() };
    let config = SftConfig { epochs: Some(1), ..plain_sft_config() };
    let report = sft(&config, inputs, &dir.path().join("out"), &context(1)).unwrap();
    assert_eq!((report.n_rows, report.n_without_target, report.n_empty_answers), (7, 1, 1));
    assert_eq!(report.dropped, ["rows.jsonl:3"]);
    let said = |part: &str| report.notices.iter().any(|notice| notice.contains(part));
    assert!(said("1 of 8 rows dropped: 0 longer than max_len, 1 without a trained token"), "{:?}", report.notices);
    assert!(said("1 rows have an empty answer") && said("(rows.jsonl:6)"), "{:?}", report.notices);
}

/// f32 has steps of 1.9e-9 at a weight of 0.02: updates of 1e-12 are lost in the masters too, but for weights near 0.
#[test]
fn updates_that_vanish_in_the_export_or_altogether_are_told_by_both_stages() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let start = || dir.path().join("base");
    let told = |notices: &[String]| {
        let is_told = |notice: &String| notice.contains("changed no weight") || notice.contains("is that of the start");
        notices.iter().filter(|notice| is_told(notice)).count()
    };
    let config = SftConfig { lr: 1e-12, epochs: Some(1), ..plain_sft_config() };
    let inputs = SftInputs { start: start(), rows: sft_rows(8), held_out: Vec::new() };
    let report = sft(&config, inputs, &dir.path().join("sft"), &context(1)).unwrap();
    assert_eq!(told(&report.notices), 1, "{:?} {:?}", report.notices, report.export);
    let config = DpoConfig { lr: 1e-12, chat_template: Some("chatml".into()), chunks: 1, ..dpo_config() };
    let inputs = DpoInputs { start: start(), rows: dpo_rows(10), held_out: Vec::new() };
    let report = dpo(&config, inputs, &dir.path().join("dpo"), &context(1)).unwrap();
    assert_eq!(told(&report.notices), 1, "{:?} {:?}", report.notices, report.export);
}

#[test]
fn dropped_rows_are_counted_and_named() {
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("base"));
    let mut rows = sft_rows(10);
    rows[3].conversation.messages[0].content = words(0, 40);
    let inputs = SftInputs { start: dir.path().join("base"), rows, held_out: Vec::new() };
    let config = SftConfig { epochs: Some(1), ..plain_sft_config() };
    let report = sft(&config, inputs, &dir.path().join("out"), &context(1)).unwrap();
    assert_eq!((report.n_rows, report.n_too_long), (9, 1));
    assert_eq!(report.dropped, ["rows.jsonl:4"]);

    assert_eq!(report.notices[0], "1 of 10 rows dropped: 1 longer than max_len, 0 without a trained token");

    let mut pairs = dpo_rows(10);
    pairs[5].pair.rejected = pairs[5].pair.chosen.clone();
    let inputs = DpoInputs { start: dir.path().join("out"), rows: pairs, held_out: Vec::new() };
    let config = DpoConfig { held_out_share: 0.0, ..dpo_config() };
    let report = dpo(&config, inputs, &dir.path().join("dpo"), &context(1)).unwrap();
    assert_eq!((report.n_pairs, report.n_equal, report.dropped), (9, 1, vec!["pairs.jsonl:6".to_owned()]));
    assert!(report.notices[0].contains("1 with two equal answers (pairs.jsonl:6)"), "{:?}", report.notices);
}
