//! TRL 1.16: our settings as the flat YAML of `trl sft --config` and `trl dpo --config`, with FSDP2 in the same file.
//!
//! The rows are ours, packed and in order, so TRL prepares nothing, packs nothing, truncates nothing and shuffles nothing. Weights are
//! loaded as f32 and stay f32 masters; `bf16` is the type of the products. Without GPUs the same file goes without its GPU keys.
//! The values' meaning was read in TRL 1.16.0 and transformers 5.23.0; `oracles/engine_trl.py` has TRL's own parser take them.

use super::yaml::Item;
use super::{Settings, TrainSpec, shares};
use aloe_model::Arch;
use aloe_train::{Decay, DpoConfig, OnNonFinite, OnSpike, PreferenceLoss, ReferenceAt, SftConfig, TrainDtype};

/// The program that `engine.py` runs.
pub(super) fn module(settings: &Settings) -> &'static str {
    match settings {
        Settings::Sft(_) => "trl.scripts.sft",
        Settings::Dpo(_) => "trl.scripts.dpo",
    }
}

/// The settings that SFT and DPO share, as TRL needs them.
pub(super) struct Loop<'a> {
    pub(super) lr: f64,
    pub(super) warmup_steps: u64,
    pub(super) warmup_ratio: f64,
    pub(super) schedule: Decay,
    pub(super) lr_floor: f64,
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
    pub(super) clip: f64,
    pub(super) seed: u64,
    pub(super) dtype: TrainDtype,
    pub(super) recompute: bool,
    pub(super) checkpoint_every: u64,
    pub(super) keep_last: usize,
    pub(super) batch_size: usize,
    pub(super) micro_batch_size: usize,
    eval_every: u64,
    patience: u64,
    keep_best: bool,
    sample_every: u64,
    on_nonfinite: OnNonFinite,
    on_spike: OnSpike,
    has_lora: bool,
    prompts: &'a [String],
}

macro_rules! loop_of {
    ($config:expr) => {{
        let config = $config;
        Loop {
            lr: config.lr,
            warmup_steps: config.warmup_steps,
            warmup_ratio: config.warmup_ratio,
            schedule: config.schedule,
            lr_floor: config.lr_floor,
            betas: config.betas,
            eps: config.eps,
            weight_decay: config.weight_decay,
            clip: config.clip,
            seed: config.seed,
            dtype: config.dtype,
            recompute: config.recompute,
            checkpoint_every: config.checkpoint_every,
            keep_last: config.keep_last,
            batch_size: config.batch_size,
            micro_batch_size: config.micro_batch_size,
            eval_every: config.eval_every,
            patience: config.patience,
            keep_best: config.keep_best,
            sample_every: config.sample_every,
            on_nonfinite: config.on_nonfinite,
            on_spike: config.on_spike,
            has_lora: config.lora.is_some(),
            prompts: &config.sample_prompts,
        }
    }};
}

pub(super) fn loop_of(settings: &Settings) -> Loop<'_> {
    match settings {
        Settings::Sft(config) => loop_of!(config),
        Settings::Dpo(config) => loop_of!(config),
    }
}

/// Steps of the warm-up; a share is rounded up, as our own trainer does.
pub(super) fn warmup_steps(common: &Loop<'_>, n_steps: u64) -> u64 {
    if common.warmup_ratio > 0.0 { (common.warmup_ratio * n_steps as f64).ceil() as u64 } else { common.warmup_steps }
}

/// What no engine does for us, whichever it is.
pub(super) fn refused_by_all(spec: &TrainSpec, engine: &str) -> Vec<String> {
    let common = loop_of(&spec.settings);
    let mut mistakes = Vec::new();
    let mut refuse = |is_so: bool, text: String| {
        if is_so {
            mistakes.push(text);
        }
    };
    let (batch, micro, world) = (common.batch_size, common.micro_batch_size, spec.resources.world_size());
    refuse(
        shares(batch, micro, &spec.resources).is_none(),
        format!(
            "batch_size = {batch}: cannot be shared out over {world} processes of micro_batch_size = {micro}; make it a multiple of {}",
            micro * world as usize
        ),
    );
    refuse(spec.n_steps == 0, "n_steps: there is nothing to train on".to_owned());
    refuse(
        common.seed > u64::from(u32::MAX),
        format!("seed = {}: {engine}'s generators take seeds below 2^32", common.seed),
    );
    refuse(common.has_lora, format!("lora: a stage handed to {engine} trains all weights"));
    refuse(
        common.eval_every > 0 || common.patience > 0 || common.keep_best,
        format!(
            "eval_every, patience, keep_best: {engine} is given no held-out rows; evaluate the stage's output in an eval stage"
        ),
    );
    refuse(
        common.sample_every > 0 || !common.prompts.is_empty(),
        format!("sample_every, sample_prompts: {engine} answers no prompts while it trains"),
    );
    refuse(
        common.on_nonfinite == OnNonFinite::Skip,
        format!("on_nonfinite = \"skip\": {engine} cannot leave a step out; use \"stop\""),
    );
    refuse(
        common.on_spike == OnSpike::Skip,
        format!("on_spike = \"skip\": {engine} cannot leave a step out; use \"stop\" or \"keep\""),
    );
    refuse(
        common.lr_floor > 0.0 && common.schedule == Decay::Linear,
        format!(
            "lr_floor = {} with schedule = \"linear\": {engine} has a floor under the cosine alone",
            common.lr_floor
        ),
    );
    if let Settings::Dpo(config) = &spec.settings {
        refuse(
            config.chunks > 1,
            format!("chunks = {}: {engine} trains once over all pairs; write each chunk as a stage", config.chunks),
        );
        refuse(
            config.reference == ReferenceAt::ChunkStart,
            format!("reference = \"chunk_start\": {engine}'s reference is the start model"),
        );
        refuse(
            config.reference_cache.is_some(),
            format!("reference_cache: {engine} computes the reference's log-probabilities itself"),
        );
    }
    mistakes
}

/// What TRL cannot do of our settings.
pub(super) fn refused(spec: &TrainSpec) -> Vec<String> {
    let mut mistakes = refused_by_all(spec, "TRL");
    match &spec.settings {
        Settings::Sft(config) => {
            if config.neftune_alpha > 0.0 {
                mistakes.push(format!(
                    "neftune_alpha = {}: TRL scales the noise by the packed row's length, not by the document's",
                    config.neftune_alpha
                ));
            }
        }
        Settings::Dpo(config) => {
            if config.loss == PreferenceLoss::Sigmoid && config.label_smoothing > 0.0 {
                mistakes.push(format!(
                    "label_smoothing = {} with loss = \"sigmoid\": TRL's sigmoid loss ignores it; its robust loss does not",
                    config.label_smoothing
                ));
            }
            if config.nll_weight > 0.0 && config.batch_size != config.micro_batch_size {
                mistakes.push(format!(
                    "nll_weight = {}: TRL takes the mean over the tokens of micro_batch_size pairs, not of the step's batch_size",
                    config.nll_weight
                ));
            }
        }
    }
    mistakes
}

/// What the user must be told.
pub(super) fn notices(spec: &TrainSpec) -> Vec<String> {
    let common = loop_of(&spec.settings);
    let mut notices = Vec::new();
    if common.on_spike == OnSpike::Stop {
        notices.push(
            "on_spike = \"stop\": the start script ends the training at a spike, after the update of its step was made"
                .to_owned(),
        );
    }
    if spec.resources.gpus_per_node > 0 && !common.recompute {
        notices.push(
            "recompute = false: all activations are kept on the GPUs; set it to true where they do not fit".to_owned(),
        );
    }
    notices
}

/// The configuration, in the order in which it is read best.
pub(super) fn config(spec: &TrainSpec) -> Vec<(&'static str, Item)> {
    // Flash attention takes half precision alone and raises at the first forward of f32.
    let is_f32 = loop_of(&spec.settings).dtype == TrainDtype::F32;
    let attention = match (spec.resources.gpus_per_node, is_f32) {
        (0, _) => "eager",
        (_, true) => "sdpa",
        (_, false) => "flash_attention_2",
    };
    let path = |path: &std::path::Path| Item::Text(path.display().to_string());
    let rows = Item::Map(vec![
        ("path", "json".into()),
        ("data_files", path(&spec.rows.join("rendered.jsonl"))),
        ("split", "train".into()),
    ]);
    let mut entries: Vec<(&'static str, Item)> = vec![
        ("model_name_or_path", path(&spec.model)),
        ("dtype", "float32".into()),
        ("attn_implementation", attention.into()),
        ("datasets", Item::List(vec![rows])),
    ];
    match &spec.settings {
        Settings::Sft(config) => entries.extend(sft(config)),
        Settings::Dpo(config) => entries.extend(dpo(config)),
    }
    entries.extend(common(spec));
    entries.extend(machine(spec));
    entries
}

/// Packed rows with their documents' lengths: TRL's collator takes them as they are.
fn sft(_: &SftConfig) -> Vec<(&'static str, Item)> {
    vec![
        ("dataset_kwargs", Item::Map(vec![("skip_prepare_dataset", true.into())])),
        ("padding_free", true.into()),
        ("max_length", Item::Null),
    ]
}

fn dpo(config: &DpoConfig) -> Vec<(&'static str, Item)> {
    let name = match config.loss {
        PreferenceLoss::Sigmoid => "sigmoid",
        PreferenceLoss::Robust => "robust",
        PreferenceLoss::Hinge => "hinge",
        PreferenceLoss::Ipo => "ipo",
        PreferenceLoss::SigmoidNorm => "sigmoid_norm",
        PreferenceLoss::ApoZero => "apo_zero",
    };
    let mut entries = vec![("max_length", Item::Null), ("beta", config.beta.into())];
    if config.nll_weight > 0.0 {
        entries.push(("loss_type", Item::List(vec![name.into(), "sft".into()])));
        entries.push(("loss_weights", Item::List(vec![1.0.into(), config.nll_weight.into()])));
    } else {
        entries.push(("loss_type", Item::List(vec![name.into()])));
    }
    entries.push(("label_smoothing", config.label_smoothing.into()));
    entries.push(("precompute_ref_log_probs", true.into()));
    entries
}

fn common(spec: &TrainSpec) -> Vec<(&'static str, Item)> {
    let common = loop_of(&spec.settings);
    let (at_once, before_update) =
        shares(common.batch_size, common.micro_batch_size, &spec.resources).unwrap_or((common.micro_batch_size, 1));
    let (curve, curve_settings) = match common.schedule {
        Decay::Cosine if common.lr_floor > 0.0 => {
            ("cosine_with_min_lr", Some(Item::Map(vec![("min_lr_rate", common.lr_floor.into())])))
        }
        Decay::Cosine => ("cosine", None),
        Decay::Linear => ("linear", None),
        Decay::Constant => ("constant_with_warmup", None),
    };
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
        ("warmup_steps", warmup_steps(&common, spec.n_steps).into()),
        ("optim", "adamw_torch".into()),
        ("adam_beta1", common.betas[0].into()),
        ("adam_beta2", common.betas[1].into()),
        ("adam_epsilon", common.eps.into()),
        ("weight_decay", common.weight_decay.into()),
        ("max_grad_norm", common.clip.into()),
        ("seed", common.seed.into()),
        ("data_seed", common.seed.into()),
        ("logging_steps", 1usize.into()),
        ("logging_nan_inf_filter", false.into()),
        ("disable_tqdm", true.into()),
        ("eval_strategy", "no".into()),
    ]);
    if common.checkpoint_every > 0 {
        entries.extend([
            ("save_strategy", "steps".into()),
            ("save_steps", common.checkpoint_every.into()),
            // The newest one has no digests while they are made: the one before it must still be there.
            ("save_total_limit", common.keep_last.max(2).into()),
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
        ("state_dict_type", "FULL_STATE_DICT".into()),
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

/// transformers' class of one decoder layer.
pub(super) fn layer_class(arch: Arch) -> &'static str {
    match arch {
        Arch::Llama => "LlamaDecoderLayer",
        Arch::Mistral => "MistralDecoderLayer",
        Arch::Qwen2 => "Qwen2DecoderLayer",
    }
}
