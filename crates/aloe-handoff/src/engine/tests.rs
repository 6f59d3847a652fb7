//! What is refused and what a stage's files look like; that engines take them is `oracles/engine_trl.py`, whose findings are pinned in
//! `tests/engine.rs`.

use super::*;
use aloe_train::{LoraConfig, OnNonFinite, OnSpike, PreferenceLoss, ReferenceAt, TrainDtype};

fn resources(n_nodes: u32, gpus_per_node: u32) -> Resources {
    Resources { n_nodes, gpus_per_node, cpus_per_node: 2, time_limit_s: 60 }
}

fn spec(settings: Settings) -> TrainSpec {
    TrainSpec {
        trainer: Trainer::Trl,
        settings,
        arch: Arch::Llama,
        stage: "stages/01-tune".into(),
        model: "out/base".into(),
        rows: "data/tune".into(),
        work: "work/tune".into(),
        n_steps: 12,
        counts: Counts::default(),
        resources: resources(1, 0),
    }
}

fn sft() -> SftConfig {
    SftConfig { epochs: Some(1), dtype: TrainDtype::F32, ..SftConfig::default() }
}

#[test]
fn every_setting_that_trl_lacks_is_refused_by_its_name_and_all_are_told_together() {
    let dpo = DpoConfig::default();
    let sft_cases = [
        ("lora", SftConfig { lora: Some(LoraConfig::default()), ..sft() }),
        ("eval_every", SftConfig { eval_every: 5, ..sft() }),
        ("patience", SftConfig { patience: 1, ..sft() }),
        ("keep_best", SftConfig { keep_best: true, ..sft() }),
        ("sample_every", SftConfig { sample_every: 5, sample_prompts: vec!["x".into()], ..sft() }),
        ("on_nonfinite", SftConfig { on_nonfinite: OnNonFinite::Skip, ..sft() }),
        ("on_spike", SftConfig { on_spike: OnSpike::Skip, ..sft() }),
        ("lr_floor", SftConfig { lr_floor: 0.1, schedule: aloe_train::Decay::Linear, ..sft() }),
        ("neftune_alpha", SftConfig { neftune_alpha: 5.0, ..sft() }),
        ("batch_size", SftConfig { batch_size: 7, micro_batch_size: 2, ..sft() }),
    ];
    let dpo_cases = [
        ("chunks", DpoConfig { chunks: 4, ..dpo.clone() }),
        ("reference", DpoConfig { reference: ReferenceAt::ChunkStart, ..dpo.clone() }),
        ("reference_cache", DpoConfig { reference_cache: Some("x".into()), ..dpo.clone() }),
        ("label_smoothing", DpoConfig { label_smoothing: 0.1, ..dpo.clone() }),
        ("nll_weight", DpoConfig { nll_weight: 0.2, ..dpo.clone() }),
    ];
    let cases = sft_cases.into_iter().map(|(name, config)| (name, Settings::Sft(config)));
    let cases = cases.chain(dpo_cases.into_iter().map(|(name, config)| (name, Settings::Dpo(config))));
    for (name, settings) in cases {
        let error = config(&spec(settings)).expect_err(name).to_string();
        assert!(error.contains(name) && error.lines().count() == 1, "{name}: {error}");
    }
    let both = SftConfig { on_spike: OnSpike::Skip, neftune_alpha: 5.0, ..sft() };
    assert_eq!(config(&spec(Settings::Sft(both))).unwrap_err().to_string().lines().count(), 2);
    // TRL's robust loss smooths, and one pair a step needs no mean over several.
    let robust = DpoConfig { loss: PreferenceLoss::Robust, label_smoothing: 0.1, ..dpo.clone() };
    assert!(config(&spec(Settings::Dpo(robust))).is_ok());
    assert!(config(&spec(Settings::Dpo(DpoConfig { nll_weight: 0.2, batch_size: 1, ..dpo }))).is_ok());
}

/// 2 nodes of 4 GPUs: 8 processes of 1 row, 4 times for 32; of 2 rows, twice; 12 rows cannot be shared out.
#[test]
fn the_global_batch_is_shared_out_over_all_processes_or_refused() {
    let of = |batch_size, micro_batch_size| {
        let settings = Settings::Sft(SftConfig { batch_size, micro_batch_size, ..sft() });
        config(&TrainSpec { resources: resources(2, 4), ..spec(settings) })
    };
    for (micro, accumulated) in [(1, 4), (2, 2), (4, 1)] {
        let text = of(32, micro).unwrap();
        assert!(text.contains(&format!("\nper_device_train_batch_size: {micro}\n")), "{text}");
        assert!(text.contains(&format!("\ngradient_accumulation_steps: {accumulated}\n")), "{text}");
    }
    let error = of(12, 1).unwrap_err().to_string();
    assert!(error.contains("batch_size = 12") && error.contains("a multiple of 8"), "{error}");
}

#[test]
fn a_stage_without_gpus_has_none_of_their_keys_and_no_path_is_absolute() {
    let on_gpus = TrainSpec { resources: resources(1, 8), ..spec(Settings::Sft(sft())) };
    for (spec, expected) in [(spec(Settings::Sft(sft())), false), (on_gpus, true)] {
        let text = config(&spec).unwrap();
        for key in ["fsdp:", "fsdp_config:", "tf32:", "flash_attention_2"] {
            assert_eq!(text.contains(key), expected, "{key}: {text}");
        }
        assert_eq!(text.contains("use_cpu: true"), !expected);
        assert!(!text.contains(" /") && !text.contains("\"/"), "{text}");
        assert!(text.contains("\nlogging_nan_inf_filter: false\n"));
    }
}

#[test]
fn the_files_of_a_stage_are_written_with_a_command_that_starts_them_from_the_run_folder() {
    let run = tempfile::tempdir().unwrap();
    let spec = TrainSpec { resources: resources(2, 4), ..spec(Settings::Dpo(DpoConfig::default())) };
    let written = write(&spec, &run.path().join(&spec.stage)).unwrap();
    let command =
        "torchrun --nproc-per-node=4 stages/01-tune/engine.py trl.scripts.dpo --config stages/01-tune/engine.yaml";
    assert_eq!(written.command.join(" "), command);
    for name in ["engine.yaml", "engine.py"] {
        assert!(written.files.contains(&name.to_owned()) && run.path().join("stages/01-tune").join(name).is_file());
    }
    assert_eq!(std::fs::read_to_string(run.path().join("stages/01-tune/engine.yaml")).unwrap(), config(&spec).unwrap());
}

#[test]
fn the_start_script_pins_the_versions_that_configurations_are_checked_for() {
    let pinned: Vec<String> = TRL_VERSIONS.iter().map(|(name, version)| format!("\"{name}\": \"{version}\"")).collect();
    assert!(LAUNCHER.contains(&format!("PINNED = {{{}}}", pinned.join(", "))));
}
