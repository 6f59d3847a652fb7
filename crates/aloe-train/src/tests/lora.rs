//! LoRA against PEFT (the golden runs of `oracles/lora_steps.py`), its laws of determinism, and its stages whole.

use super::laws::{documents, sft_config, until_done};
use super::parity::{check_steps, golden, settings};
use super::spine::{check_stops, dpo_config, dpo_rows, read, sft_config as sft_stage, sft_rows, write_model};
use super::{Outcome, context, parity, run_learner, tiny};
use crate::dpo::{DpoConfig, DpoInputs, dpo};
use crate::learner::{Learner, Targets};
use crate::lora::{LoraBase, LoraConfig, start_decoder, with_updates};
use crate::settings::{Context, TrainDtype};
use crate::sft::{SftConfig, SftInputs, sft};
use aloe_model::testing::fill;
use aloe_model::{Activations, CheckpointWriter, Decoder, Keep, LoraAdapter, PackedBatch, Params, Role, TensorSpec};
use aloe_tensor::{Device, Dtype, Tensor};
use serde_json::json;
use std::path::Path;

fn learner(base: &Params, masters: Params, lora: &LoraConfig, dtype: TrainDtype, device: &Device) -> Learner {
    with_updates(Decoder::from_params(base, dtype.tensor(), device), masters, lora, 0)
}

/// Updates as a stage starts with them, beside the weights of `base`.
fn start(base: &Params, lora: &LoraConfig) -> Params {
    let whole = |spec: &TensorSpec| Ok(base.role(spec.role).unwrap().clone());
    lora.shape().masters(&base.config, 0, whole).unwrap()
}

#[test]
fn fifteen_lora_steps_equal_peft_in_every_loss_and_in_the_movement_of_every_tensor() {
    let golden = golden(include_str!("../../tests/golden/lora_steps.json"));
    for (name, case) in golden["cases"].as_object().unwrap() {
        let lora: LoraConfig = serde_json::from_value(case["lora"].clone()).unwrap();
        let config: SftConfig = settings(&golden, json!({"lora": case["lora"]}));
        let base = tiny(name);
        let mut masters = start(&base, &lora);
        let specs = masters.specs().to_vec();
        for (spec, tensor) in specs.iter().zip(masters.tensors_mut()) {
            if matches!(spec.role, Role::LoraA(..)) {
                let bound = 1.0 / (spec.shape[1] as f64).sqrt();
                let values = fill(&format!("lora {}", spec.hf_name), spec.n_elements());
                let values = values.iter().map(|value| (f64::from(*value) * bound) as f32).collect();
                *tensor = Tensor::from_f32(&spec.shape, values);
            }
        }
        let (before, device) = (masters.clone(), Device::cpu(2));
        let out = tempfile::tempdir().unwrap();
        let learner = learner(&base, masters, &lora, TrainDtype::F32, &device);
        let found = run_learner(learner, &parity::documents(&golden), &config, out.path(), &context(2)).unwrap();
        check_steps(&found, &case["steps"], &[("loss", 1e-4), ("grad_norm", 1e-3)], name);
        let tensors = case["tensors"].as_object().unwrap();
        assert_eq!(tensors.len(), specs.len(), "{name}: PEFT trains the same tensors");
        for (at, spec) in specs.iter().enumerate() {
            let expected = tensors[&spec.hf_name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap());
            let (mut error, mut movement) = (0.0, 0.0);
            let ours = found.params.tensors()[at].as_f32().iter().zip(before.tensors()[at].as_f32());
            for ((&now, &then), expected) in ours.zip(expected) {
                error += (f64::from(now) - expected).powi(2);
                movement += (expected - f64::from(then)).powi(2);
            }
            assert!(
                movement > 0.0 && (error / movement).sqrt() < 1e-2,
                "{name} {}: {error:e} {movement:e}",
                spec.hf_name
            );
        }
    }
}

/// To nearest, the small updates of the stage before would be lost to the frozen weights, and the merged model, whose export keeps them, would be
/// another than the one that was trained.
#[test]
fn frozen_weights_of_f32_masters_are_the_copies_that_training_of_all_weights_has() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let (source, device) = (read(dir.path()), Device::cpu(1));
    let open = |lora: Option<&LoraConfig>| start_decoder(&source, lora, 0, TrainDtype::Bf16, &device).unwrap();
    let (whole, beside) = (open(None), open(Some(&lora())));
    let mut n_others = 0;
    for spec in source.specs().iter().filter(|spec| spec.shape.len() == 2) {
        let values = |decoder: &Decoder| decoder.weights.matrix(spec.role).unwrap().weight().into_f32_vec();
        let (expected, found) = (values(&whole), values(&beside));
        assert_eq!(found, expected, "{}", spec.hf_name);
        let nearest = source.load(&spec.hf_name, Dtype::Bf16).unwrap().into_f32_vec();
        n_others += found.iter().zip(&nearest).filter(|(copy, nearest)| copy != nearest).count();
    }
    assert!(n_others > 1000, "the masters are bf16 already: {n_others}");
}

/// Layers with updates take f32 inputs whatever the frozen weights are: as `TrainMemory` counts them.
#[test]
fn activations_beside_updates_are_f32_in_both_types() {
    let base = tiny("llama");
    for dtype in [TrainDtype::F32, TrainDtype::Bf16] {
        let mut learner = learner(&base, start(&base, &lora()), &lora(), dtype, &Device::cpu(1));
        let ids: Vec<u32> = (0..20).collect();
        let forward = learner.forward(PackedBatch::from_documents(&[&ids]), Targets::default()).unwrap();
        assert_eq!(
            forward.nbytes(),
            20 * Activations::bytes_per_token(&base.config, Dtype::F32, Keep::All),
            "{dtype:?}"
        );
    }
}

fn lora() -> LoraConfig {
    LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() }
}

fn run(model: &str, lora: &LoraConfig, config: &SftConfig, out: &Path, context: &Context) -> crate::Result<Outcome> {
    let base = tiny(model);
    let learner = learner(&base, start(&base, lora), lora, config.dtype, &context.device);
    let learner = learner.keeping(crate::settings::keep(config.recompute));
    run_learner(learner, &documents(), config, out, context)
}

fn fresh(model: &str, lora: &LoraConfig, config: &SftConfig, threads: usize) -> Outcome {
    let out = tempfile::tempdir().unwrap();
    run(model, lora, config, out.path(), &context(threads)).unwrap()
}

/// Without and with dropout, embeddings frozen and trained.
fn variants() -> [(&'static str, LoraConfig); 3] {
    [
        ("llama", lora()),
        ("llama", LoraConfig { dropout: 0.2, ..lora() }),
        ("qwen2", LoraConfig { dropout: 0.1, train_embeddings: true, ..lora() }),
    ]
}

#[test]
fn threads_recomputation_and_in_f32_micro_batches_change_no_bit_of_a_lora_run_dropout_included() {
    for (model, lora) in variants() {
        for dtype in [TrainDtype::F32, TrainDtype::Bf16] {
            let (one, two) = (fresh(model, &lora, &sft_config(dtype), 1), fresh(model, &lora, &sft_config(dtype), 2));
            one.assert_same_bits(&two, &format!("{model} {dtype:?}"));
            let recomputed = fresh(model, &lora, &SftConfig { recompute: true, ..sft_config(dtype) }, 2);
            recomputed.assert_same_bits(&one, &format!("{model} {dtype:?}, activations computed again"));
        }
        let whole = fresh(model, &lora, &SftConfig { micro_batch_size: 4, ..sft_config(TrainDtype::F32) }, 2);
        for micro_batch_size in [1, 3] {
            let split = fresh(model, &lora, &SftConfig { micro_batch_size, ..sft_config(TrainDtype::F32) }, 2);
            split.assert_same_bits(&whole, &format!("{model}, {micro_batch_size} rows at a time"));
        }
    }
}

#[test]
fn dropout_changes_the_losses_of_training_and_not_those_of_an_evaluation() {
    let config = SftConfig { max_steps: Some(3), ..sft_config(TrainDtype::F32) };
    let (without, with) = (fresh("llama", &lora(), &config, 2), fresh("llama", &variants()[1].1, &config, 2));
    assert_eq!(without.numbers("loss")[0], with.numbers("loss")[0], "with B at zero nothing that is dropped counts");
    // The warm-up's first step has a rate of 0.
    assert_ne!(without.numbers("loss")[2], with.numbers("loss")[2]);
}

#[test]
fn a_lora_run_stopped_at_random_moments_ends_with_the_bits_of_an_uninterrupted_one() {
    for (model, lora) in variants() {
        let config = sft_config(TrainDtype::F32);
        let whole = fresh(model, &lora, &config, 2);
        let out = tempfile::tempdir().unwrap();
        let stopped = until_done(7, |context| run(model, &lora, &config, out.path(), context));
        stopped.assert_same_bits(&whole, model);
    }
}

fn dpo_stage() -> DpoConfig {
    DpoConfig { chat_template: Some("chatml".into()), ..dpo_config() }
}

fn logits(decoder: &Decoder, ids: &[u32]) -> Vec<f32> {
    decoder.logits(&decoder.hidden(&PackedBatch::from_documents(&[ids])).unwrap()).to_f32_vec()
}

#[test]
fn lora_stages_write_an_adapter_that_makes_their_master_of_the_base_and_report_what_merging_changed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_model(&at("base"));
    for (name, more) in [("plain", lora()), ("embeddings", LoraConfig { train_embeddings: true, ..lora() })] {
        let config = SftConfig { lora: Some(more.clone()), lr: 1e-2, ..sft_stage() };
        let inputs = SftInputs { start: at("base"), rows: sft_rows(40), held_out: Vec::new() };
        let report = sft(&config, inputs, &at(name), &context(2)).unwrap();
        assert!(report.held_out_nll_after.unwrap() < report.held_out_nll_before.unwrap());
        let (base, master) = (read(&at("base")), read(&at(name).join("master")));
        let adapter = LoraAdapter::open(&at(name).join("adapter")).unwrap();
        adapter.check(base.specs()).unwrap();
        assert_eq!(adapter.base_digest(), Some(report.start_digest.as_str()));
        for spec in base.specs() {
            let mut expected = base.load_f32(&spec.hf_name).unwrap();
            if let Some(delta) = adapter.delta(spec).unwrap() {
                delta.add(0, &mut expected);
            }
            let found = master.load_f32(&spec.hf_name).unwrap();
            assert_eq!(found == expected, adapter.replacement(spec).is_none(), "{}", spec.hf_name);
        }
        let lora = report.lora.unwrap();
        // Rank 4 over two layers of q, o (64 + 64), k, v (64 + 32), gate, up, down (64 + 96): 928 a rank; embeddings 2 x 64 x 64.
        let embeddings = if more.train_embeddings { 2 * 64 * 64 } else { 0 };
        assert_eq!((lora.n_trained, lora.base.as_str()), (4 * 2 * 928 + embeddings, "f32"));
        // Rounding weights to bf16 moves each by up to 2^-9 of itself; a logit by some of that.
        assert!(
            lora.logit_difference_mean > 0.0 && lora.logit_difference_mean < 0.01 * lora.logit_size_mean,
            "{lora:?}"
        );
        assert!(lora.logit_difference_max < 0.1 * lora.logit_size_mean && lora.same_argmax_share > 0.9, "{lora:?}");
        assert!(lora.n_positions > 4);
        let ids: Vec<u32> = (6..30).collect();
        let decoder = |name: &str| Decoder::open(&read(&at(name)), Dtype::F32, &Device::cpu(2)).unwrap();
        assert_ne!(logits(&decoder(&format!("{name}/master")), &ids), logits(&decoder("base"), &ids));
    }
}

#[test]
fn lora_over_eight_bit_weights_is_merged_into_the_dequantised_base() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_model(&at("base"));
    let quantised = LoraConfig { base: LoraBase::Q8, ..lora() };
    let config = SftConfig { lora: Some(quantised), lr: 1e-2, dtype: TrainDtype::Bf16, ..sft_stage() };
    let inputs = SftInputs { start: at("base"), rows: sft_rows(40), held_out: Vec::new() };
    let report = sft(&config, inputs, &at("sft"), &context(2)).unwrap();
    assert!(report.held_out_nll_after.unwrap() < report.held_out_nll_before.unwrap());
    let (base, master) = (read(&at("base")), read(&at("sft/master")));
    let adapter = LoraAdapter::open(&at("sft/adapter")).unwrap();
    for spec in base.specs().iter().filter(|spec| spec.shape.len() == 2) {
        let original = base.load_f32(&spec.hf_name).unwrap();
        let mut found = master.load_f32(&spec.hf_name).unwrap();
        if let Some(delta) = adapter.delta(spec).unwrap() {
            let mut update = vec![0.0; found.len()];
            delta.add(0, &mut update);
            found.iter_mut().zip(update).for_each(|(value, update)| *value -= update);
        }
        // What is left is the base in blocks of 32: each value within half a step of its block, an embedding exact or in bf16.
        for (found, original) in found.chunks(32).zip(original.chunks(32)) {
            let largest = original.iter().map(|value| value.abs()).fold(0.0, f32::max);
            let near = found.iter().zip(original).all(|(a, b)| (a - b).abs() <= largest * (0.5 / 127.0 + 1e-3));
            assert!(near, "{}", spec.hf_name);
        }
    }
    let lora = report.lora.unwrap();
    assert_eq!(lora.base, "q8");
    // Activations in int8 blocks are coarser than bf16: half a step of 1/127 of the largest in 32.
    assert!(lora.logit_difference_mean < 0.05 * lora.logit_size_mean, "{lora:?}");
}

#[test]
fn lora_stages_stopped_again_and_again_leave_the_same_bytes_as_uninterrupted_ones() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base);
    let quantised = LoraConfig { base: LoraBase::Q8, train_embeddings: true, ..lora() };
    let config = SftConfig {
        lora: Some(LoraConfig { dropout: 0.1, ..quantised.clone() }),
        dtype: TrainDtype::Bf16,
        ..sft_stage()
    };
    let run_sft = |out: &Path, context: &Context| {
        let inputs = SftInputs { start: base.clone(), rows: sft_rows(40), held_out: Vec::new() };
        sft(&config, inputs, out, context).map(|_| ())
    };
    check_stops(dir.path(), "sft", &run_sft);
    let config = DpoConfig { lora: Some(quantised), dtype: TrainDtype::Bf16, ..dpo_stage() };
    let run_dpo = |out: &Path, context: &Context| {
        let inputs = DpoInputs { start: base.clone(), rows: dpo_rows(30), held_out: Vec::new() };
        dpo(&config, inputs, out, context).map(|_| ())
    };
    check_stops(dir.path(), "dpo", &run_dpo);
}

#[test]
fn dpo_with_lora_starts_from_the_base_as_its_reference_and_learns() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_model(&at("base"));
    let config = DpoConfig { lora: Some(lora()), lr: 5e-3, chunks: 1, epochs: 6, ..dpo_stage() };
    let inputs = DpoInputs { start: at("base"), rows: dpo_rows(30), held_out: Vec::new() };
    let report = dpo(&config, inputs, &at("dpo"), &context(2)).unwrap();
    assert!((report.held_out_loss_before.unwrap() - std::f64::consts::LN_2).abs() < 1e-12);
    assert!(report.loss_last_tenth < 0.8 * report.loss_first_tenth, "{report:?}");
    let (base, adapter) = (read(&at("base")), LoraAdapter::open(&at("dpo/adapter")).unwrap());
    adapter.check(base.specs()).unwrap();
    let error = DpoConfig { lora: Some(LoraConfig { dropout: 0.1, ..lora() }), ..config }.mistakes();
    assert!(error[0].contains("lora.dropout must be 0"), "{error:?}");
}

/// The model with the row of token `id` at a hundred-thousandth of its size, in embedding and head.
fn shrink_row(dir: &Path, id: usize) {
    let source = read(dir);
    let text: Vec<(String, Vec<u8>)> = ["tokenizer.json", "tokenizer_config.json"]
        .map(|name| (name.to_owned(), std::fs::read(dir.join(name)).unwrap()))
        .to_vec();
    let tensors: Vec<Vec<f32>> = source.tensor_names().map(|name| source.load_f32(name).unwrap()).collect();
    let (config, names) = (source.config().clone(), source.specs().to_vec());
    drop(source);
    std::fs::remove_dir_all(dir).unwrap();
    let mut writer = CheckpointWriter::create(dir, &config, Dtype::F32).unwrap();
    for (spec, mut values) in names.iter().zip(tensors) {
        if matches!(spec.role, Role::Embed | Role::Head) {
            let width = spec.shape[1];
            values[id * width..(id + 1) * width].iter_mut().for_each(|value| *value *= 1e-5);
        }
        writer.add(&spec.hf_name, &values).unwrap();
    }
    writer.finish(&text).unwrap();
}

#[test]
fn both_stages_refuse_a_rank_that_a_target_has_no_room_for_before_any_row() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    write_model(&base);
    let wide = |lora: LoraConfig| Some(LoraConfig { rank: 33, ..lora });
    let expected = "lora.rank = 33 is larger than the smaller side of model.layers.0.self_attn.k_proj.weight (32 x 64)";
    let config = SftConfig { lora: wide(lora()), ..sft_stage() };
    let inputs = SftInputs { start: base.clone(), rows: Vec::new(), held_out: Vec::new() };
    let refused = sft(&config, inputs, &dir.path().join("sft"), &context(1)).unwrap_err().to_string();
    assert!(refused.starts_with(expected), "{refused}");
    let config = DpoConfig { lora: wide(lora()), ..dpo_stage() };
    let inputs = DpoInputs { start: base, rows: Vec::new(), held_out: Vec::new() };
    let refused = dpo(&config, inputs, &dir.path().join("dpo"), &context(1)).unwrap_err().to_string();
    assert!(refused.starts_with(expected), "{refused}");
}

#[test]
fn lora_over_untrained_template_tokens_is_refused_before_training_unless_embeddings_are_trained_too() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_model(&at("base"));
    // <|im_end|>, ChatML's end of a turn.
    shrink_row(&at("base"), 2);
    let inputs = || SftInputs { start: at("base"), rows: sft_rows(40), held_out: Vec::new() };
    let config = |lora: Option<LoraConfig>| SftConfig { lora, ..sft_stage() };
    let error = sft(&config(Some(lora())), inputs(), &at("out"), &context(1)).unwrap_err().to_string();
    for part in ["<|im_end|> (2)", "model.embed_tokens.weight", "lora.train_embeddings = true"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!at("out/state").exists() && !at("out/model").exists());
    let pairs = DpoInputs { start: at("base"), rows: dpo_rows(10), held_out: Vec::new() };
    let refused = dpo(&DpoConfig { lora: Some(lora()), ..dpo_stage() }, pairs, &at("dpo"), &context(1));
    assert!(refused.unwrap_err().to_string().contains("<|im_end|>"));
    sft(&config(Some(LoraConfig { train_embeddings: true, ..lora() })), inputs(), &at("whole"), &context(1)).unwrap();
    sft(&config(None), inputs(), &at("full"), &context(1)).unwrap();
}
