//! axolotl 0.19: our settings as the YAML of `axolotl train`, with FSDP2 in the same file.
//!
//! The rows are ours, packed and in order, so axolotl prepares nothing (`skip_prepare_dataset`), packs nothing (`sample_packing: false`;
//! the documents of a row are kept apart by their positions), truncates nothing and shuffles nothing. What axolotl has no key for,
//! `engine.py` sets in the program itself: f32 masters where the products are bf16, a step's mean over all its targets, pairs as ids and
//! in order, NaN logged as NaN. The values' meaning was read in axolotl 0.19.0; `oracles/engine_axolotl.py` has its own validation take
//! them as on H100s, and trains with them on a processor.

use super::asked::{
    attention, curve, engine_seed, evaluation, first_warmup_steps, layer_class, loop_for, loop_of, losses, n_kept,
    refused_by_all, save_every, shares,
};
use super::yaml::Item;
use super::{HELD_OUT, Settings, TrainSpec};
use aloe_train::{DpoConfig, SftConfig, TrainDtype};

/// What axolotl cannot do of our settings.
pub(super) fn refused(spec: &TrainSpec) -> Vec<String> {
    let mut mistakes = refused_by_all(spec, "axolotl");
    let common = loop_of(&spec.settings);
    let on_processors = spec.resources.gpus_per_node == 0;
    let mut refuse = |is_so: bool, text: String| {
        if is_so {
            mistakes.push(text);
        }
    };
    refuse(
        on_processors && common.dtype == TrainDtype::Bf16,
        "dtype = \"bf16\": axolotl takes it on GPUs alone; use \"f32\" without them".to_owned(),
    );
    refuse(
        on_processors && spec.resources.world_size() > 1,
        format!("nodes = {}: without GPUs axolotl trains in one process alone; use one node", spec.resources.n_nodes),
    );
    refuse(
        common.lora.is_some(),
        "lora: its training by axolotl was not held against our own trainer's; use trainer = \"trl\"".to_owned(),
    );
    mistakes
}

/// The configuration, in the order in which it is read best.
pub(super) fn config(spec: &TrainSpec) -> Vec<(&'static str, Item)> {
    let path = |path: &std::path::Path| Item::Text(path.display().to_string());
    let rows = Item::Map(vec![
        ("path", path(&spec.rows.join("rendered.jsonl"))),
        ("ds_type", "json".into()),
        ("split", "train".into()),
    ]);
    let mut entries: Vec<(&'static str, Item)> = vec![
        ("base_model", path(&spec.model)),
        ("attn_implementation", attention(spec).into()),
        ("datasets", Item::List(vec![rows])),
        ("skip_prepare_dataset", true.into()),
        ("dataset_prepared_path", path(&spec.work.join(".prepared"))),
        ("shuffle_merged_datasets", false.into()),
        ("val_set_size", 0.0.into()),
    ];
    if evaluation(spec).is_some() {
        let rows = Item::Map(vec![
            ("path", path(&spec.rows.join(HELD_OUT))),
            ("ds_type", "json".into()),
            ("split", "train".into()),
        ]);
        entries.push(("test_datasets", Item::List(vec![rows])));
    }
    match &spec.settings {
        Settings::Sft(config) => entries.extend(sft(config, spec.context_len)),
        Settings::Dpo(config) => entries.extend(dpo(config, spec.context_len)),
    }
    entries.extend(common(spec));
    entries.extend(machine(spec));
    entries
}

/// Packed rows, one at a time. No row is longer than the model's context, and axolotl would give the model more positions for a longer
/// `sequence_len`.
fn sft(config: &SftConfig, context_len: usize) -> Vec<(&'static str, Item)> {
    let mut entries = vec![
        ("curriculum_sampling", true.into()),
        ("sequence_len", config.max_len.min(context_len).into()),
        ("sample_packing", false.into()),
        ("pad_to_sequence_len", false.into()),
    ];
    if config.neftune_alpha > 0.0 {
        entries.push(("neftune_noise_alpha", config.neftune_alpha.into()));
    }
    entries
}

fn dpo(config: &DpoConfig, context_len: usize) -> Vec<(&'static str, Item)> {
    let (names, weights) = losses(config);
    let mut entries = vec![
        ("rl", "dpo".into()),
        ("sequence_len", config.max_len.min(context_len).into()),
        ("rl_beta", config.beta.into()),
        ("dpo_loss_type", Item::List(names)),
    ];
    if !weights.is_empty() {
        entries.push(("dpo_loss_weights", Item::List(weights)));
    }
    if config.label_smoothing > 0.0 {
        entries.push(("dpo_label_smoothing", config.label_smoothing.into()));
    }
    entries.push(("precompute_ref_log_probs", true.into()));
    entries
}

fn common(spec: &TrainSpec) -> Vec<(&'static str, Item)> {
    let common = loop_for(spec);
    let (at_once, before_update) =
        shares(common.batch_size, common.micro_batch_size, &spec.resources).unwrap_or((common.micro_batch_size, 1));
    let (curve, curve_settings) = curve(&common);
    let mut entries = vec![
        ("micro_batch_size", at_once.into()),
        ("gradient_accumulation_steps", before_update.into()),
        ("num_epochs", 1.0.into()),
        ("max_steps", spec.n_steps.into()),
        ("learning_rate", common.lr.into()),
        ("lr_scheduler", curve.into()),
    ];
    entries.extend(curve_settings.map(|settings| ("lr_scheduler_kwargs", settings)));
    entries.extend([
        ("warmup_steps", first_warmup_steps(&common, spec).into()),
        ("optimizer", "adamw_torch".into()),
        ("adam_beta1", common.betas[0].into()),
        ("adam_beta2", common.betas[1].into()),
        ("adam_epsilon", common.eps.into()),
        ("weight_decay", common.weight_decay.into()),
        ("max_grad_norm", common.clip.into()),
        ("seed", engine_seed(&common).into()),
        ("logging_steps", 1usize.into()),
    ]);
    if let Some(evaluation) = evaluation(spec) {
        entries.extend([
            ("eval_strategy", "steps".into()),
            ("eval_steps", evaluation.every.into()),
            ("eval_batch_size", at_once.into()),
            ("load_best_model_at_end", evaluation.keep_best.into()),
        ]);
        if evaluation.keep_best {
            entries.extend([("metric_for_best_model", "eval_loss".into()), ("greater_is_better", false.into())]);
        }
    }
    if save_every(spec) > 0 {
        entries.extend([
            ("save_strategy", "steps".into()),
            ("save_steps", save_every(spec).into()),
            ("save_total_limit", n_kept(&common).into()),
        ]);
    } else {
        entries.push(("save_strategy", "no".into()));
    }
    entries.push(("output_dir", spec.work.display().to_string().into()));
    entries
}

/// Precision and sharding.
fn machine(spec: &TrainSpec) -> Vec<(&'static str, Item)> {
    let common = loop_of(&spec.settings);
    if spec.resources.gpus_per_node == 0 {
        return vec![("bf16", false.into()), ("gradient_checkpointing", common.recompute.into())];
    }
    let fsdp = vec![
        ("auto_wrap_policy", "TRANSFORMER_BASED_WRAP".into()),
        ("transformer_layer_cls_to_wrap", layer_class(spec.arch).into()),
        ("reshard_after_forward", true.into()),
        ("cpu_ram_efficient_loading", true.into()),
        // Checkpoints in shards, the model at the end whole: see `trl.rs`.
        ("state_dict_type", "SHARDED_STATE_DICT".into()),
        ("final_state_dict_type", "FULL_STATE_DICT".into()),
        ("activation_checkpointing", common.recompute.into()),
    ];
    vec![
        ("bf16", (common.dtype == TrainDtype::Bf16).into()),
        ("tf32", false.into()),
        ("gradient_checkpointing", false.into()),
        ("fsdp_version", 2usize.into()),
        ("fsdp_config", Item::Map(fsdp)),
    ]
}
