//! What a stage asks of any engine: the settings that SFT and DPO share, how a batch is shared out, and what no engine does for us.

use super::yaml::Item;
use super::{Settings, TrainSpec};
use crate::plan::Resources;
use aloe_model::Arch;
use aloe_model::lora::LORA_TARGETS;
use aloe_train::{
    Decay, DpoConfig, LoraBase, LoraConfig, OnNonFinite, OnSpike, PreferenceLoss, ReferenceAt, TrainDtype,
};

/// The settings that SFT and DPO share, as engines need them.
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
    pub(super) on_spike: OnSpike,
    pub(super) lora: Option<&'a LoraConfig>,
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
            lora: config.lora.as_ref(),
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

/// The warm-up that the configuration states: that of the stage, or of its first chunk.
pub(super) fn first_warmup_steps(common: &Loop<'_>, spec: &TrainSpec) -> u64 {
    warmup_steps(common, spec.chunk_steps.first().copied().unwrap_or(spec.n_steps))
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
    if let Some(lora) = common.lora {
        refuse(lora.base != LoraBase::Dense, format!("lora.base = \"q8\": {engine} holds the frozen weights as f32"));
        refuse(
            lora.train_embeddings,
            format!(
                "lora.train_embeddings: a stage handed to {engine} trains updates alone; train all weights, or here"
            ),
        );
        refuse(
            lora.alpha.fract() != 0.0,
            format!("lora.alpha = {}: {engine}'s configuration takes whole numbers", lora.alpha),
        );
    }
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
            config.chunks > 1 && config.reference == ReferenceAt::ChunkStart,
            format!(
                "reference = \"chunk_start\": {engine} computes the reference once, with the start model; use \"stage_start\", or write each \
                 chunk as a stage"
            ),
        );
        refuse(
            config.reference_cache.is_some(),
            format!("reference_cache: {engine} computes the reference's log-probabilities itself"),
        );
    }
    mistakes
}

/// What the preference losses of TRL, which axolotl calls too, do not do.
pub(super) fn refused_of_pairs(config: &DpoConfig, engine: &str) -> Vec<String> {
    let mut mistakes = Vec::new();
    if config.loss == PreferenceLoss::Sigmoid && config.label_smoothing > 0.0 {
        mistakes.push(format!(
            "label_smoothing = {} with loss = \"sigmoid\": {engine}'s sigmoid loss ignores it; its robust loss does not",
            config.label_smoothing
        ));
    }
    if config.nll_weight > 0.0 && config.batch_size != config.micro_batch_size {
        mistakes.push(format!(
            "nll_weight = {}: {engine} takes the mean over the tokens of micro_batch_size pairs, not of the step's batch_size",
            config.nll_weight
        ));
    }
    mistakes
}

/// TRL's names of a stage's losses, with the weight of each where there are two.
pub(super) fn losses(config: &DpoConfig) -> (Vec<Item>, Vec<Item>) {
    let name = match config.loss {
        PreferenceLoss::Sigmoid => "sigmoid",
        PreferenceLoss::Robust => "robust",
        PreferenceLoss::Hinge => "hinge",
        PreferenceLoss::Ipo => "ipo",
        PreferenceLoss::SigmoidNorm => "sigmoid_norm",
        PreferenceLoss::ApoZero => "apo_zero",
    };
    match config.nll_weight > 0.0 {
        true => (vec![name.into(), "sft".into()], vec![1.0.into(), config.nll_weight.into()]),
        false => (vec![name.into()], Vec::new()),
    }
}

/// transformers' name of a stage's learning-rate curve, and its settings.
pub(super) fn curve(common: &Loop<'_>) -> (&'static str, Option<Item>) {
    match common.schedule {
        Decay::Cosine if common.lr_floor > 0.0 => {
            ("cosine_with_min_lr", Some(Item::Map(vec![("min_lr_rate", common.lr_floor.into())])))
        }
        Decay::Cosine => ("cosine", None),
        Decay::Linear => ("linear", None),
        Decay::Constant => ("constant_with_warmup", None),
    }
}

/// The kernels of attention: flash attention takes half precision alone and raises at the first forward of f32.
pub(super) fn attention(spec: &TrainSpec) -> &'static str {
    match (spec.resources.gpus_per_node, loop_of(&spec.settings).dtype) {
        (0, _) => "eager",
        (_, TrainDtype::F32) => "sdpa",
        (_, TrainDtype::Bf16) => "flash_attention_2",
    }
}

/// Checkpoints to keep: the newest one has no digests while they are made, and the one before it must still be there.
pub(super) fn n_kept(common: &Loop<'_>) -> usize {
    common.keep_last.max(2)
}

/// The names of the matrices that get an update.
pub(super) fn lora_targets(lora: &LoraConfig) -> Item {
    let targets = lora.shape().targets;
    let names = LORA_TARGETS.into_iter().filter(|(_, part)| targets.contains(part));
    Item::List(names.map(|(name, _)| name.into()).collect())
}

/// A share as it is written: the f32 that is nearest to a decimal number is that number.
pub(super) fn lora_dropout(lora: &LoraConfig) -> Item {
    lora.dropout.to_string().parse::<f64>().unwrap_or_else(|_| f64::from(lora.dropout)).into()
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
    if common.lora.is_some() {
        notices.push(
            "lora: rows of the embedding that no training has touched are not looked for here, where our own trainer refuses a chat template \
             with such tokens; dropout, if any, draws other masks than our own trainer's"
                .to_owned(),
        );
    }
    notices
}

/// transformers' class of one decoder layer.
pub(super) fn layer_class(arch: Arch) -> &'static str {
    match arch {
        Arch::Llama => "LlamaDecoderLayer",
        Arch::Mistral => "MistralDecoderLayer",
        Arch::Qwen2 => "Qwen2DecoderLayer",
    }
}

/// Rows or pairs that each process takes at once, and how often before an update; `None` where `batch_size` cannot be shared out.
pub(super) fn shares(batch_size: usize, micro_batch_size: usize, resources: &Resources) -> Option<(usize, usize)> {
    let at_once = micro_batch_size * resources.world_size() as usize;
    (batch_size.is_multiple_of(at_once) && batch_size > 0).then(|| (micro_batch_size, batch_size / at_once))
}
