//! TRL 1.16: our settings as the flat YAML of `trl sft --config` and `trl dpo --config`, with FSDP2 in the same file.
//!
//! The rows are ours, packed and in order, so TRL prepares nothing, packs nothing, truncates nothing and shuffles nothing. Weights are
//! loaded as f32 and stay f32 masters; `bf16` is the type of the products. Without GPUs the same file goes without its GPU keys.
//! The values' meaning was read in TRL 1.16.0 and transformers 5.23.0; `oracles/engine_trl.py` has TRL's own parser take them.

use super::asked::{
    attention, curve, engine_seed, evaluation, first_warmup_steps, layer_class, loop_of, lora_dropout, lora_targets,
    losses, n_kept, refused_by_all, save_every, shares,
};
use super::yaml::Item;
use super::{Settings, TrainSpec};
use aloe_train::{DpoConfig, LoraConfig, SftConfig, TrainDtype};

/// What TRL cannot do of our settings.
pub(super) fn refused(spec: &TrainSpec) -> Vec<String> {
    refused_by_all(spec, "TRL")
}

/// The configuration, in the order in which it is read best.
pub(super) fn config(spec: &TrainSpec) -> Vec<(&'static str, Item)> {
    let path = |path: &std::path::Path| Item::Text(path.display().to_string());
    let rows = Item::Map(vec![
        ("path", "json".into()),
        ("data_files", path(&spec.rows.join("rendered.jsonl"))),
        ("split", "train".into()),
    ]);
    let mut entries: Vec<(&'static str, Item)> = vec![
        ("model_name_or_path", path(&spec.model)),
        ("dtype", "float32".into()),
        ("attn_implementation", attention(spec).into()),
        ("datasets", Item::List(vec![rows])),
    ];
    match &spec.settings {
        Settings::Sft(config) => entries.extend(sft(config)),
        Settings::Dpo(config) => entries.extend(dpo(config)),
    }
    entries.extend(loop_of(&spec.settings).lora.into_iter().flat_map(lora));
    entries.extend(common(spec));
    entries.extend(machine(spec));
    entries
}

/// PEFT's updates; the start script gives them our own trainer's values to begin with.
fn lora(lora: &LoraConfig) -> Vec<(&'static str, Item)> {
    vec![
        ("use_peft", true.into()),
        ("lora_r", lora.rank.into()),
        // Whole, or refused.
        ("lora_alpha", (lora.alpha as u64).into()),
        ("lora_dropout", lora_dropout(lora)),
        ("lora_target_modules", lora_targets(lora)),
    ]
}

/// Packed rows with their documents' lengths: TRL's collator takes them as they are.
fn sft(config: &SftConfig) -> Vec<(&'static str, Item)> {
    let mut entries = vec![
        ("dataset_kwargs", Item::Map(vec![("skip_prepare_dataset", true.into())])),
        ("padding_free", true.into()),
        ("max_length", Item::Null),
    ];
    if config.neftune_alpha > 0.0 {
        entries.push(("neftune_noise_alpha", config.neftune_alpha.into()));
    }
    entries
}

fn dpo(config: &DpoConfig) -> Vec<(&'static str, Item)> {
    let (names, weights) = losses(config);
    let mut entries = vec![("max_length", Item::Null), ("beta", config.beta.into()), ("loss_type", Item::List(names))];
    if !weights.is_empty() {
        entries.push(("loss_weights", Item::List(weights)));
    }
    entries.push(("label_smoothing", config.label_smoothing.into()));
    entries.push(("precompute_ref_log_probs", true.into()));
    if config.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0) {
        // TRL turns all dropout off, that of the updates too.
        entries.push(("disable_dropout", false.into()));
    }
    entries
}

fn common(spec: &TrainSpec) -> Vec<(&'static str, Item)> {
    let common = loop_of(&spec.settings);
    let (at_once, before_update) =
        shares(common.batch_size, common.micro_batch_size, &spec.resources).unwrap_or((common.micro_batch_size, 1));
    let (curve, curve_settings) = curve(&common);
    let mut entries = vec![
        ("train_sampling_strategy", "sequential".into()),
        ("per_device_train_batch_size", at_once.into()),
        ("gradient_accumulation_steps", before_update.into()),
        ("num_train_epochs", 1.0.into()),
        ("max_steps", spec.n_steps.into()),
        ("learning_rate", common.lr.into()),
        ("lr_scheduler_type", curve.into()),
    ];
    entries.extend(curve_settings.map(|settings| ("lr_scheduler_kwargs", settings)));
    entries.extend([
        ("warmup_steps", first_warmup_steps(&common, spec).into()),
        ("optim", "adamw_torch".into()),
        ("adam_beta1", common.betas[0].into()),
        ("adam_beta2", common.betas[1].into()),
        ("adam_epsilon", common.eps.into()),
        ("weight_decay", common.weight_decay.into()),
        ("max_grad_norm", common.clip.into()),
        ("seed", engine_seed(&common).into()),
        ("data_seed", engine_seed(&common).into()),
        ("logging_steps", 1usize.into()),
        ("logging_nan_inf_filter", false.into()),
        ("disable_tqdm", true.into()),
    ]);
    match evaluation(spec) {
        Some(evaluation) => {
            entries.extend([
                ("eval_strategy", "steps".into()),
                ("eval_steps", evaluation.every.into()),
                ("eval_on_start", true.into()),
                ("per_device_eval_batch_size", at_once.into()),
            ]);
            if evaluation.keep_best {
                entries.extend([
                    ("load_best_model_at_end", true.into()),
                    ("metric_for_best_model", "eval_loss".into()),
                    ("greater_is_better", false.into()),
                ]);
            }
        }
        None => entries.push(("eval_strategy", "no".into())),
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
    entries.extend([
        ("report_to", "none".into()),
        ("push_to_hub", false.into()),
        ("output_dir", spec.work.display().to_string().into()),
    ]);
    entries
}

/// Precision and sharding.
fn machine(spec: &TrainSpec) -> Vec<(&'static str, Item)> {
    let common = loop_of(&spec.settings);
    let is_bf16 = common.dtype == TrainDtype::Bf16;
    if spec.resources.gpus_per_node == 0 {
        return vec![
            ("bf16", is_bf16.into()),
            ("gradient_checkpointing", common.recompute.into()),
            ("use_cpu", true.into()),
        ];
    }
    let fsdp = vec![
        ("version", 2usize.into()),
        ("auto_wrap_policy", "TRANSFORMER_BASED_WRAP".into()),
        ("transformer_layer_cls_to_wrap", Item::List(vec![layer_class(spec.arch).into()])),
        ("reshard_after_forward", true.into()),
        ("cpu_ram_efficient_loading", true.into()),
        // Each process writes its own shards: whole, the optimizer's 8 bytes a parameter would have to fit the first one's machine. The start
        // script has the model itself written whole at the end.
        ("state_dict_type", "SHARDED_STATE_DICT".into()),
        ("activation_checkpointing", common.recompute.into()),
    ];
    vec![
        ("bf16", is_bf16.into()),
        ("tf32", false.into()),
        ("gradient_checkpointing", false.into()),
        ("fsdp", true.into()),
        ("fsdp_config", Item::Map(fsdp)),
    ]
}
