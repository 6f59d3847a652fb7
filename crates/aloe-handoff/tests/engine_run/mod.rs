//! A tiny stage of each kind, whole: base model, rows, run folder, and our own trainer's run on the same rows. `oracles/engine_trl.py`
//! has TRL train from the run folder, `oracles/engine_axolotl.py` axolotl; `tests/losses.rs` holds our losses against what they logged.

#![allow(clippy::unwrap_used, reason = "test code, which an example shares")]
#![allow(dead_code, reason = "each user takes a part of it")]

use aloe_handoff::engine::{self, Rendered, Rows, RowsInput, Settings, TrainSpec};
use aloe_handoff::{Resources, Trainer};
use aloe_model::testing::formula_params;
use aloe_model::{CheckpointWriter, Config};
use aloe_record::{Cancel, CounterRng, Progress};
use aloe_tensor::{Device, Dtype};
use aloe_text::{Conversation, Message, Pair, TextModel};
use aloe_train::{Context, Decay, DpoConfig, DpoInputs, DpoRow, LoraConfig, SftConfig, SftInputs, SftRow, TrainDtype};
use serde_json::{Value, json};
use std::path::Path;

/// Which stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sft,
    Dpo,
    /// Pairs in two chunks.
    Chunks,
    /// Conversations, low-rank updates alone.
    Lora,
    /// Pairs, the same.
    LoraDpo,
    /// Conversations of which some are held out: the weights of the best evaluation are kept.
    Held,
    /// The same, ended by patience.
    Patience,
    /// Pairs of which some are held out, with smoothing and a likelihood term.
    HeldDpo,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] =
        [Self::Sft, Self::Dpo, Self::Chunks, Self::Lora, Self::LoraDpo, Self::Held, Self::Patience, Self::HeldDpo];

    /// Those that axolotl trains too.
    pub(crate) const OF_ALL: [Self; 6] =
        [Self::Sft, Self::Dpo, Self::Chunks, Self::Held, Self::Patience, Self::HeldDpo];

    /// The stage's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::Chunks => "chunks",
            Self::Lora => "lora",
            Self::LoraDpo => "lora-dpo",
            Self::Held => "held",
            Self::Patience => "patience",
            Self::HeldDpo => "held-dpo",
        }
    }
}

/// A Llama of 2 layers with a tokenizer of one id per word, in f32.
pub(crate) fn write_base(dir: &Path) -> Config {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
        "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false
    });
    let config = Config::from_json(&config).unwrap();
    let params = formula_params(&config, 0);
    let mut writer = CheckpointWriter::create(dir, &config, Dtype::F32).unwrap();
    for (spec, tensor) in params.specs().iter().zip(params.tensors()) {
        writer.add(&spec.hf_name, tensor.as_f32()).unwrap();
    }
    let fixed = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system"].map(str::to_owned);
    let words = fixed.iter().cloned().chain((0..58).map(|word| format!("w{word}")));
    let vocab: serde_json::Map<String, Value> = words.zip((0..64).map(|id| json!(id))).collect();
    let added = |id: usize| {
        json!({"id": id, "content": fixed[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0), added(1), added(2)], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}});
    let chatml = include_str!("../../src/engine/templates/chatml.jinja").trim_end();
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "unk_token": "<unk>",
        "chat_template": chatml});
    let file = |name: &str, value: &Value| (name.to_owned(), value.to_string().into_bytes());
    writer.finish(&[file("tokenizer.json", &tokenizer), file("tokenizer_config.json", &settings)]).unwrap();
    config
}

fn words(rng: &mut CounterRng, least: usize) -> String {
    let n = least + rng.below(10);
    (0..n).map(|_| format!("w{}", rng.below(58))).collect::<Vec<_>>().join(" ")
}

/// 60 conversations of one to three exchanges, some with a system message.
pub(crate) fn sft_rows() -> Vec<SftRow> {
    let row = |at: usize| {
        let mut rng = CounterRng::new(11, "engine-rows", at as u64);
        let mut messages = Vec::new();
        if at.is_multiple_of(3) {
            messages.push(Message::system(words(&mut rng, 1)));
        }
        for _ in 0..1 + at % 3 {
            messages.push(Message::user(words(&mut rng, 1)));
            messages.push(Message::assistant(words(&mut rng, 1)));
        }
        SftRow { source: format!("rows:{}", at + 1), data_source: None, conversation: Conversation { messages } }
    };
    (0..60).map(row).collect()
}

/// 20 pairs.
pub(crate) fn dpo_rows() -> Vec<DpoRow> {
    let row = |at: usize| {
        let mut rng = CounterRng::new(12, "engine-pairs", at as u64);
        let prompt = vec![Message::user(words(&mut rng, 2))];
        let chosen = vec![Message::assistant(words(&mut rng, 2))];
        let rejected = vec![Message::assistant(words(&mut rng, 3))];
        DpoRow { source: format!("pairs:{}", at + 1), set: "pairs".into(), pair: Pair { prompt, chosen, rejected } }
    };
    (0..20).map(row).collect()
}

/// 10 steps, in f32: over more than one epoch, or two chunks of 5 (10 pairs each).
pub(crate) fn settings(kind: Kind) -> Settings {
    match kind {
        Kind::Sft => Settings::Sft(SftConfig {
            max_steps: Some(10),
            max_len: 64,
            batch_size: 4,
            micro_batch_size: 2,
            lr: 1e-3,
            warmup_steps: 2,
            weight_decay: 0.1,
            betas: [0.9, 0.95],
            seed: 3,
            dtype: TrainDtype::F32,
            checkpoint_every: 4,
            ..SftConfig::default()
        }),
        Kind::Dpo => Settings::Dpo(DpoConfig {
            epochs: 2,
            batch_size: 4,
            micro_batch_size: 2,
            lr: 1e-3,
            warmup_ratio: 0.2,
            seed: 3,
            dtype: TrainDtype::F32,
            checkpoint_every: 4,
            ..DpoConfig::default()
        }),
        // Of a rate at which updates move the losses by more than what they are held to.
        Kind::Lora => match settings(Kind::Sft) {
            Settings::Sft(config) => Settings::Sft(SftConfig { lora: Some(lora()), lr: 2e-2, ..config }),
            other => other,
        },
        Kind::LoraDpo => match settings(Kind::Dpo) {
            Settings::Dpo(config) => Settings::Dpo(DpoConfig { lora: Some(lora()), lr: 2e-2, ..config }),
            other => other,
        },
        // A floor under a line, a warm-up of one step, a seed beyond 32 bits: what an engine has no key for.
        Kind::Held => match settings(Kind::Sft) {
            Settings::Sft(config) => Settings::Sft(SftConfig {
                held_out_share: 0.25,
                eval_every: 3,
                keep_best: true,
                schedule: Decay::Linear,
                lr_floor: 0.3,
                warmup_steps: 1,
                seed: (1 << 32) + 3,
                // At which held-out rows get worse before the end.
                lr: 2e-2,
                ..config
            }),
            other => other,
        },
        Kind::Patience => match settings(Kind::Held) {
            Settings::Sft(config) => {
                Settings::Sft(SftConfig { eval_every: 2, patience: 1, keep_best: false, lr: 5e-2, ..config })
            }
            other => other,
        },
        Kind::HeldDpo => match settings(Kind::Dpo) {
            Settings::Dpo(config) => Settings::Dpo(DpoConfig {
                epochs: 3,
                max_steps: Some(10),
                held_out_share: 0.2,
                eval_every: 4,
                label_smoothing: 0.1,
                nll_weight: 0.3,
                ..config
            }),
            other => other,
        },
        Kind::Chunks => Settings::Dpo(DpoConfig {
            chunks: 2,
            batch_size: 2,
            micro_batch_size: 1,
            lr: 1e-3,
            warmup_ratio: 0.3,
            seed: 3,
            dtype: TrainDtype::F32,
            checkpoint_every: 4,
            ..DpoConfig::default()
        }),
    }
}

fn lora() -> LoraConfig {
    use aloe_train::LoraTarget::*;
    LoraConfig { rank: 4, alpha: 12.0, targets: vec![QProj, VProj, OProj, DownProj], ..LoraConfig::default() }
}

/// Writes base, rows, configuration and start script into `run`, for `n_nodes` machines without GPUs.
pub(crate) fn write_run(trainer: Trainer, run: &Path, kind: Kind, n_nodes: u32) -> (TrainSpec, Rendered) {
    let base = run.join("out/base");
    let model = write_base(&base);
    let text = TextModel::open(&base).unwrap();
    let rows = match kind {
        Kind::Sft | Kind::Lora | Kind::Held | Kind::Patience => Rows::Sft(sft_rows(), Vec::new()),
        Kind::Dpo | Kind::Chunks | Kind::LoraDpo | Kind::HeldDpo => Rows::Dpo(dpo_rows(), Vec::new()),
    };
    let settings = settings(kind);
    let input = RowsInput { trainer, settings: &settings, text: &text, model: &model, rows };
    let rendered = engine::render_rows(input, &run.join("data").join(kind.name())).unwrap();
    let spec = TrainSpec {
        trainer,
        settings,
        arch: model.arch,
        context_len: model.max_position_embeddings,
        stage: format!("stages/01-{}", kind.name()).into(),
        model: "out/base".into(),
        rows: format!("data/{}", kind.name()).into(),
        work: format!("work/{}", kind.name()).into(),
        n_steps: rendered.n_steps,
        chunk_steps: rendered.chunk_steps.clone(),
        counts: rendered.counts,
        resources: Resources { n_nodes, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 600 },
    };
    engine::write(&spec, &run.join(&spec.stage)).unwrap();
    (spec, rendered)
}

/// Our own trainer on the same rows, into `run/ours`: its metrics line by line.
pub(crate) fn train(run: &Path, kind: Kind) -> Vec<Value> {
    let device = Device::cpu(2);
    let context = Context { device, progress: Progress::silent(), cancel: Cancel::default(), peak_flops: None };
    let (start, out) = (run.join("out/base"), run.join("ours"));
    std::fs::create_dir_all(&out).unwrap();
    match settings(kind) {
        Settings::Sft(config) => {
            let inputs = SftInputs { start, rows: sft_rows(), held_out: Vec::new() };
            aloe_train::sft(&config, inputs, &out, &context).unwrap();
        }
        Settings::Dpo(config) => {
            let inputs = DpoInputs { start, rows: dpo_rows(), held_out: Vec::new() };
            aloe_train::dpo(&config, inputs, &out, &context).unwrap();
        }
    }
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
