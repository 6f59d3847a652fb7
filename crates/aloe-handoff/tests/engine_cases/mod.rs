//! Stages whose configurations are held against the engines: `oracles/engine_trl.py` has TRL's own parser take each,
//! `oracles/engine_axolotl.py` axolotl's own validation, and `tests/engine.rs` pins their bytes.

use aloe_handoff::engine::{Settings, TrainSpec};
use aloe_handoff::verify::Counts;
use aloe_handoff::{Resources, Trainer};
use aloe_model::Arch;
use aloe_train::{Decay, DpoConfig, LoraConfig, LoraTarget, OnSpike, PreferenceLoss, SftConfig, TrainDtype};

fn spec(settings: Settings, n_nodes: u32, gpus_per_node: u32) -> TrainSpec {
    let name = if matches!(settings, Settings::Sft(_)) { "sft" } else { "dpo" };
    TrainSpec {
        trainer: Trainer::Trl,
        settings,
        arch: Arch::Llama,
        context_len: 8192,
        stage: format!("stages/01-{name}").into(),
        model: "out/base/master".into(),
        rows: format!("data/{name}").into(),
        work: format!("work/{name}").into(),
        n_steps: 240,
        chunk_steps: Vec::new(),
        counts: Counts::default(),
        resources: Resources { n_nodes, gpus_per_node, cpus_per_node: 16, time_limit_s: 3600 },
    }
}

/// Name and stage of each case: both kinds, every loss and curve, both types, with and without GPUs, 1 to 64 processes.
pub(crate) fn cases() -> Vec<(String, TrainSpec)> {
    let mut found = Vec::new();
    let mut add = |name: &str, spec: TrainSpec| found.push((name.to_owned(), spec));
    let sft = SftConfig { epochs: Some(3), batch_size: 64, ..SftConfig::default() };
    let of_sft = |config: SftConfig, nodes, gpus| spec(Settings::Sft(config), nodes, gpus);
    add("sft-1-node", of_sft(sft.clone(), 1, 4));
    add("sft-8b-4-nodes", of_sft(SftConfig { recompute: true, max_len: 8192, ..sft.clone() }, 4, 4));
    add("sft-16-nodes", of_sft(SftConfig { recompute: true, ..sft.clone() }, 16, 4));
    add("sft-cpu-f32", of_sft(SftConfig { dtype: TrainDtype::F32, ..sft.clone() }, 1, 0));
    add("sft-cpu-2-nodes", of_sft(SftConfig { recompute: true, ..sft.clone() }, 2, 0));
    add("sft-gpu-f32", of_sft(SftConfig { dtype: TrainDtype::F32, ..sft.clone() }, 1, 1));
    add("sft-micro-batch", of_sft(SftConfig { micro_batch_size: 4, ..sft.clone() }, 2, 8));
    add("sft-warmup-steps", of_sft(SftConfig { warmup_steps: 100, clip: 0.0, ..sft.clone() }, 1, 4));
    add("sft-warmup-share", of_sft(SftConfig { warmup_ratio: 0.03, weight_decay: 0.1, ..sft.clone() }, 1, 4));
    add("sft-floor", of_sft(SftConfig { lr_floor: 0.1, ..sft.clone() }, 1, 4));
    add("sft-linear", of_sft(SftConfig { schedule: Decay::Linear, ..sft.clone() }, 1, 4));
    add("sft-constant", of_sft(SftConfig { schedule: Decay::Constant, ..sft.clone() }, 1, 4));
    add("sft-no-checkpoints", of_sft(SftConfig { checkpoint_every: 0, seed: 7, ..sft.clone() }, 1, 4));
    add("sft-keep-spikes", of_sft(SftConfig { on_spike: OnSpike::Keep, keep_last: 5, ..sft.clone() }, 1, 4));
    add("sft-neftune", of_sft(SftConfig { neftune_alpha: 5.0, ..sft.clone() }, 1, 4));
    let lora = LoraConfig { rank: 8, alpha: 16.0, dropout: 0.05, ..LoraConfig::default() };
    add("sft-lora", of_sft(SftConfig { lora: Some(lora.clone()), ..sft.clone() }, 1, 4));
    add("sft-lora-cpu", of_sft(SftConfig { lora: Some(lora.clone()), dtype: TrainDtype::F32, ..sft.clone() }, 1, 0));
    add("sft-linear-floor", of_sft(SftConfig { schedule: Decay::Linear, lr_floor: 0.1, ..sft.clone() }, 1, 4));
    let held = Counts { n_held_out: 40, n_held_out_targets: 4000, ..Counts::default() };
    let with_held = |spec: TrainSpec| TrainSpec { counts: held, ..spec };
    add("sft-held-out", with_held(of_sft(SftConfig { eval_every: 20, patience: 3, ..sft.clone() }, 2, 4)));
    add("sft-held-out-cpu", with_held(of_sft(SftConfig { dtype: TrainDtype::F32, ..sft.clone() }, 1, 0)));
    add("sft-best", with_held(of_sft(SftConfig { eval_every: 20, keep_best: true, ..sft.clone() }, 2, 4)));
    add("sft-qwen2", TrainSpec { arch: Arch::Qwen2, ..of_sft(sft.clone(), 1, 4) });
    add("sft-mistral", TrainSpec { arch: Arch::Mistral, ..of_sft(SftConfig { betas: [0.9, 0.95], ..sft }, 1, 4) });
    let dpo = DpoConfig { batch_size: 32, ..DpoConfig::default() };
    let of_dpo = |config: DpoConfig, nodes, gpus| spec(Settings::Dpo(config), nodes, gpus);
    add("dpo-1-node", of_dpo(dpo.clone(), 1, 4));
    add("dpo-8-nodes", of_dpo(DpoConfig { recompute: true, lr: 5e-7, ..dpo.clone() }, 8, 4));
    add("dpo-cpu-f32", of_dpo(DpoConfig { dtype: TrainDtype::F32, ..dpo.clone() }, 1, 0));
    for (name, loss) in [
        ("robust", PreferenceLoss::Robust),
        ("hinge", PreferenceLoss::Hinge),
        ("ipo", PreferenceLoss::Ipo),
        ("sigmoid-norm", PreferenceLoss::SigmoidNorm),
        ("apo-zero", PreferenceLoss::ApoZero),
    ] {
        let label_smoothing = if loss == PreferenceLoss::Robust { 0.1 } else { 0.0 };
        add(&format!("dpo-{name}"), of_dpo(DpoConfig { loss, label_smoothing, beta: 0.05, ..dpo.clone() }, 1, 4));
    }
    let few = LoraConfig { targets: vec![LoraTarget::QProj, LoraTarget::VProj], dropout: 0.0, ..lora.clone() };
    add("dpo-lora", of_dpo(DpoConfig { lora: Some(few), ..dpo.clone() }, 1, 4));
    add("dpo-lora-dropout", of_dpo(DpoConfig { lora: Some(lora), ..dpo.clone() }, 1, 4));
    let chunks = of_dpo(DpoConfig { chunks: 3, warmup_ratio: 0.1, ..dpo.clone() }, 8, 4);
    add("dpo-chunks", TrainSpec { chunk_steps: vec![80; 3], ..chunks });
    let best = DpoConfig { eval_every: 24, patience: 2, keep_best: true, ..dpo.clone() };
    add("dpo-best", with_held(of_dpo(best, 4, 4)));
    add("dpo-smoothed", of_dpo(DpoConfig { label_smoothing: 0.15, ..dpo.clone() }, 1, 4));
    let nll = DpoConfig { nll_weight: 0.2, batch_size: 32, micro_batch_size: 4, ..dpo };
    add("dpo-nll", of_dpo(nll, 1, 1));
    found
}

/// The same stages for axolotl, but for those that it refuses: several processes and bf16 without GPUs, LoRA.
#[allow(dead_code, reason = "each user takes a part of this file")]
pub(crate) fn axolotl_cases() -> Vec<(String, TrainSpec)> {
    let refused = |name: &str| name == "sft-cpu-2-nodes" || name.contains("lora");
    let of = |(name, spec): (String, TrainSpec)| (name, TrainSpec { trainer: Trainer::Axolotl, ..spec });
    cases().into_iter().filter(|(name, _)| !refused(name)).map(of).collect()
}
