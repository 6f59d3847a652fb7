//! What a stage asks of any engine: the settings that SFT and DPO share, how a batch is shared out, and what no engine does for us.

use super::yaml::Item;
use super::{Settings, TrainSpec};
use crate::plan::{Resources, Trainer};
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

/// The same as the stage's engine takes it: axolotl keeps the documents of packed rows apart in rows that come alone. How many come at once is
/// a matter of memory and no part of what is asked for.
pub(super) fn loop_for(spec: &TrainSpec) -> Loop<'_> {
    let common = loop_of(&spec.settings);
    match (spec.trainer, &spec.settings) {
        (Trainer::Axolotl, Settings::Sft(_)) => Loop { micro_batch_size: 1, ..common },
        _ => common,
    }
}

/// Held-out evaluations while an engine trains: before the first step, every so many, and after the last.
pub(super) struct Evaluation {
    /// Steps from one to the next.
    pub(super) every: u64,
    /// Whether the weights of the best one are written.
    pub(super) keep_best: bool,
}

/// Those of a stage; `None` where nothing is held out.
pub(super) fn evaluation(spec: &TrainSpec) -> Option<Evaluation> {
    let common = loop_of(&spec.settings);
    let every = if common.eval_every > 0 { common.eval_every } else { spec.n_steps };
    (spec.counts.n_held_out > 0).then_some(Evaluation { every, keep_best: common.keep_best })
}

/// Whether the settings speak of held-out rows, which may not be counted yet.
pub(super) fn asks_for_held_out(settings: &Settings) -> bool {
    let share = match settings {
        Settings::Sft(config) => config.held_out_share,
        Settings::Dpo(config) => config.held_out_share,
    };
    share > 0.0 || loop_of(settings).eval_every > 0
}

/// Steps between checkpoints; 0 for none. Best weights are those of a checkpoint, so with them every evaluation makes one.
pub(super) fn save_every(spec: &TrainSpec) -> u64 {
    let every = loop_of(&spec.settings).checkpoint_every;
    evaluation(spec).filter(|evaluation| evaluation.keep_best).map_or(every, |evaluation| evaluation.every)
}

/// The seed of an engine's own generators, which take 32 bits. It decides nothing but noise and dropout: order, held-out choice and the start
/// of low-rank updates are ours, by the whole seed.
pub(super) fn engine_seed(common: &Loop<'_>) -> u64 {
    common.seed & u64::from(u32::MAX)
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
    let common = loop_for(spec);
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
    if let Settings::Dpo(config) = &spec.settings {
        refuse(
            config.chunks > 1 && config.reference == ReferenceAt::ChunkStart,
            format!(
                "reference = \"chunk_start\": {engine} computes the reference once, with the start model; use \"stage_start\", or write each \
                 chunk as a stage"
            ),
        );
    }
    mistakes
}

/// TRL's names of a stage's losses, with the weight of each where there are several.
///
/// Its sigmoid loss ignores label smoothing. Ours, (1 - e) A + e B with A = -log s(x) and B = -log s(-x), is a sum of two of its losses: its robust
/// loss is ((1 - e) A - e B) / (1 - 2 e), so that 2 (1 - e) A - (1 - 2 e) robust = (1 - e) A + e B.
pub(super) fn losses(config: &DpoConfig) -> (Vec<Item>, Vec<Item>) {
    let smoothing = config.label_smoothing;
    let name = match config.loss {
        PreferenceLoss::Sigmoid => "sigmoid",
        PreferenceLoss::Robust => "robust",
        PreferenceLoss::Hinge => "hinge",
        PreferenceLoss::Ipo => "ipo",
        PreferenceLoss::SigmoidNorm => "sigmoid_norm",
        PreferenceLoss::ApoZero => "apo_zero",
    };
    let mut weighted = match config.loss {
        PreferenceLoss::Sigmoid if smoothing > 0.0 => {
            vec![(name, 2.0 * (1.0 - smoothing)), ("robust", -(1.0 - 2.0 * smoothing))]
        }
        _ => vec![(name, 1.0)],
    };
    if config.nll_weight > 0.0 {
        weighted.push(("sft", config.nll_weight));
    }
    let weights = weighted.iter().map(|&(_, weight)| weight.into()).collect();
    let names: Vec<Item> = weighted.iter().map(|&(name, _)| name.into()).collect();
    let is_one = names.len() == 1;
    (names, if is_one { Vec::new() } else { weights })
}

/// transformers' name of a stage's learning-rate curve, and its settings. It has no floor under a line: the start script puts it there.
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

/// Checkpoints to keep: the newest one has no digests while they are made, and the one before it must still be there. The best one is kept
/// beside them.
pub(super) fn n_kept(common: &Loop<'_>) -> usize {
    common.keep_last.max(2) + usize::from(common.keep_best)
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
    if let Some(evaluation) = evaluation(spec).filter(|evaluation| evaluation.keep_best) {
        notices.push(format!(
            "keep_best: a checkpoint is saved at every held-out evaluation ({} steps) in place of checkpoint_every = {}, since the best weights \
             are those of a checkpoint",
            evaluation.every, common.checkpoint_every
        ));
    }
    if loop_for(spec).micro_batch_size != common.micro_batch_size {
        notices.push(format!(
            "micro_batch_size = {}: {} takes packed rows one at a time",
            common.micro_batch_size,
            spec.trainer.name()
        ));
    }
    if let Settings::Dpo(DpoConfig { reference_cache: Some(_), .. }) = &spec.settings {
        notices.push(format!(
            "reference_cache: {} computes the reference's log-probabilities itself; nothing is read from there or left there",
            spec.trainer.name()
        ));
    }
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
