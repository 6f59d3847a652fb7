//! What is refused and what a stage's files look like; that engines take them is `oracles/engine_trl.py`, whose findings are pinned in
//! `tests/engine.rs`.

use super::*;
use aloe_train::{LoraBase, LoraConfig, LoraTarget, OnNonFinite, OnSpike, PreferenceLoss, ReferenceAt, TrainDtype};

fn resources(n_nodes: u32, gpus_per_node: u32) -> Resources {
    Resources { n_nodes, gpus_per_node, cpus_per_node: 2, time_limit_s: 60 }
}

fn spec(settings: Settings) -> TrainSpec {
    TrainSpec {
        trainer: Trainer::Trl,
        settings,
        arch: Arch::Llama,
        context_len: 8192,
        stage: "stages/01-tune".into(),
        model: "out/base".into(),
        rows: "data/tune".into(),
        work: "work/tune".into(),
        n_steps: 12,
        chunk_steps: Vec::new(),
        counts: Counts::default(),
        resources: resources(1, 0),
    }
}

fn sft() -> SftConfig {
    SftConfig { epochs: Some(1), dtype: TrainDtype::F32, ..SftConfig::default() }
}

fn with_lora(lora: LoraConfig) -> SftConfig {
    SftConfig { lora: Some(lora), ..sft() }
}

#[test]
fn every_setting_that_trl_lacks_is_refused_by_its_name_and_all_are_told_together() {
    let dpo = DpoConfig::default();
    let sft_cases = [
        ("lora.base", with_lora(LoraConfig { base: LoraBase::Q8, ..LoraConfig::default() })),
        ("lora.train_embeddings", with_lora(LoraConfig { train_embeddings: true, ..LoraConfig::default() })),
        ("lora.alpha = 1.5", with_lora(LoraConfig { alpha: 1.5, ..LoraConfig::default() })),
        ("sample_every", SftConfig { sample_every: 5, sample_prompts: vec!["x".into()], ..sft() }),
        ("on_nonfinite", SftConfig { on_nonfinite: OnNonFinite::Skip, ..sft() }),
        ("on_spike", SftConfig { on_spike: OnSpike::Skip, ..sft() }),
        ("batch_size", SftConfig { batch_size: 7, micro_batch_size: 2, ..sft() }),
    ];
    let dpo_cases = [("reference", DpoConfig { chunks: 4, reference: ReferenceAt::ChunkStart, ..dpo.clone() })];
    let cases = sft_cases.into_iter().map(|(name, config)| (name, Settings::Sft(config)));
    let cases = cases.chain(dpo_cases.into_iter().map(|(name, config)| (name, Settings::Dpo(config))));
    for (name, settings) in cases {
        let error = config(&spec(settings)).expect_err(name).to_string();
        assert!(error.contains(name) && error.lines().count() == 1, "{name}: {error}");
    }
    let one_chunk = DpoConfig { reference: ReferenceAt::ChunkStart, ..dpo.clone() };
    assert!(config(&spec(Settings::Dpo(one_chunk))).is_ok(), "the start of the only chunk is that of the stage");
    let both = SftConfig { on_spike: OnSpike::Skip, on_nonfinite: OnNonFinite::Skip, ..sft() };
    assert_eq!(config(&spec(Settings::Sft(both))).unwrap_err().to_string().lines().count(), 2);
}

/// With e = 0.1: 2 (1 - e) = 1.8 times the sigmoid loss less (1 - 2 e) = 0.8 times the robust one, as `losses` derives.
#[test]
fn smoothing_of_the_sigmoid_loss_and_the_likelihood_term_are_weighted_sums_of_trls_losses() {
    let of = |config: DpoConfig, trainer| config_of(Settings::Dpo(config), trainer);
    let smoothed = DpoConfig { label_smoothing: 0.1, dtype: TrainDtype::F32, ..DpoConfig::default() };
    let text = of(smoothed.clone(), Trainer::Trl);
    let expected = "\nloss_type: [sigmoid, robust]\nloss_weights: [1.8, -0.8]\nlabel_smoothing: 0.1\n";
    assert!(text.contains(expected), "{text}");
    let text = of(DpoConfig { nll_weight: 0.2, ..smoothed }, Trainer::Axolotl);
    assert!(text.contains("\ndpo_loss_type: [sigmoid, robust, sft]\ndpo_loss_weights: [1.8, -0.8, 0.2]\n"), "{text}");
    let robust = DpoConfig { loss: PreferenceLoss::Robust, label_smoothing: 0.1, ..DpoConfig::default() };
    assert!(of(robust, Trainer::Trl).contains("\nloss_type: [robust]\nlabel_smoothing: 0.1\n"));
}

fn config_of(settings: Settings, trainer: Trainer) -> String {
    let gpus = resources(1, 1);
    config(&TrainSpec { trainer, resources: gpus, ..spec(settings) }).unwrap()
}

/// An evaluation makes a checkpoint where the best weights are asked for, since they are taken from one; otherwise both go their own way.
#[test]
fn held_out_rows_are_evaluated_every_so_many_steps_and_the_best_weights_come_from_a_checkpoint() {
    let of = |config: SftConfig, trainer, n_held_out| {
        let counts = Counts { n_held_out, ..Counts::default() };
        let spec = TrainSpec { trainer, counts, resources: resources(1, 1), ..spec(Settings::Sft(config)) };
        config_with_notices(&spec)
    };
    let asked = SftConfig { eval_every: 5, checkpoint_every: 7, ..sft() };
    let (text, _) = of(asked.clone(), Trainer::Trl, 3);
    let evaluated = "\neval_strategy: steps\neval_steps: 5\neval_on_start: true\nper_device_eval_batch_size: 1\n";
    assert!(text.contains(&format!("{evaluated}save_strategy: steps\nsave_steps: 7\nsave_total_limit: 2\n")), "{text}");
    let (text, notices) = of(SftConfig { keep_best: true, ..asked.clone() }, Trainer::Trl, 3);
    let best = "load_best_model_at_end: true\nmetric_for_best_model: eval_loss\ngreater_is_better: false\n";
    let saved = "save_strategy: steps\nsave_steps: 5\nsave_total_limit: 3\n";
    assert!(text.contains(&format!("{evaluated}{best}{saved}")), "{text}");
    assert!(notices.iter().any(|notice| notice.contains("in place of checkpoint_every = 7")), "{notices:?}");
    let (text, _) = of(SftConfig { keep_best: true, ..asked.clone() }, Trainer::Axolotl, 3);
    assert!(text.contains("\ntest_datasets: [") && text.contains("data/tune/held_out.jsonl"), "{text}");
    assert!(text.contains("\neval_steps: 5\n") && text.contains("\nload_best_model_at_end: true\n"), "{text}");
    // Without a number of steps at the start and the end, and without rows never.
    let (text, _) = of(SftConfig { eval_every: 0, ..asked.clone() }, Trainer::Trl, 3);
    assert!(text.contains("\neval_steps: 12\n"), "{text}");
    for trainer in [Trainer::Trl, Trainer::Axolotl] {
        let (text, _) = of(asked.clone(), trainer, 0);
        assert!(!text.contains("eval_steps") && !text.contains("held_out"), "{text}");
    }
}

fn config_with_notices(spec: &TrainSpec) -> (String, Vec<String>) {
    (config(spec).unwrap(), asked::notices(spec))
}

#[test]
fn a_seed_beyond_32_bits_and_a_cache_of_references_hinder_no_engine() {
    let text = config_of(Settings::Sft(SftConfig { seed: (7 << 32) + 5, ..sft() }), Trainer::Trl);
    assert!(text.contains("\nseed: 5\ndata_seed: 5\n"), "{text}");
    let cached = DpoConfig { reference_cache: Some("x".into()), ..DpoConfig::default() };
    let (_, notices) = config_with_notices(&spec(Settings::Dpo(cached)));
    assert!(notices.iter().any(|notice| notice.contains("nothing is read from there")), "{notices:?}");
}

/// Flash attention has no f32 (its kernels raise), and of two checkpoints the older one is whole while the newer one's digests are made.
#[test]
fn f32_on_gpus_takes_no_flash_attention_and_one_whole_checkpoint_is_always_kept() {
    let of = |dtype, keep_last| {
        let settings = Settings::Sft(SftConfig { dtype, keep_last, ..sft() });
        config(&TrainSpec { resources: resources(1, 1), ..spec(settings) }).unwrap()
    };
    assert!(of(TrainDtype::F32, 1).contains("\nattn_implementation: sdpa\n"));
    assert!(of(TrainDtype::Bf16, 1).contains("\nattn_implementation: flash_attention_2\n"));
    for (keep_last, expected) in [(1, 2), (2, 2), (5, 5)] {
        let text = of(TrainDtype::Bf16, keep_last);
        assert!(text.contains(&format!("\nsave_total_limit: {expected}\n")), "{text}");
    }
}

/// The rule in the start script's Python against the one in our trainer's guard, over series with and without spikes.
#[test]
fn the_start_script_stops_at_the_step_at_which_our_own_trainer_would() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("engine.py"), LAUNCHER).unwrap();
    let mut rng = aloe_record::CounterRng::new(5, "spikes", 0);
    let mut series: Vec<Vec<(f64, f64)>> = Vec::new();
    for at in 0..12 {
        let steps = (0..200).map(|_| {
            let (loss, norm) = (1.5 + 0.1 * f64::from(rng.normal()), (0.3 * f64::from(rng.normal())).exp());
            (loss, norm)
        });
        let mut steps: Vec<(f64, f64)> = steps.collect();
        match at % 4 {
            0 => {}
            1 => steps[20 * at].0 = 9.0,
            2 => steps[19 * at].1 = 900.0,
            _ => (steps[5].0, steps[180].1, steps[190].0) = (f64::NAN, 0.0, 8.0),
        }
        series.push(steps);
    }
    let expected: Vec<Option<usize>> =
        series.iter().map(|steps| aloe_train::first_spike(steps.iter().copied()).map(|(at, _)| at)).collect();
    // The first three and every fourth: none, 20 and 38; a spike before 64 steps is none.
    assert!(expected.iter().flatten().count() >= 5 && expected[0].is_none() && expected[1].is_none(), "{expected:?}");
    let text: Vec<String> = series
        .iter()
        .map(|steps| steps.iter().map(|(loss, norm)| format!("{loss:?} {norm:?}")).collect::<Vec<_>>().join(","))
        .collect();
    std::fs::write(dir.path().join("series"), text.join("\n")).unwrap();
    let script = "import engine\nfor line in open('series'):\n    rule = engine.Spikes()\n    steps = [tuple(map(float, step.split())) for step in line.split(',')]\n    print(next((at for at, step in enumerate(steps) if rule.judge(*step)), None))\n";
    let output = std::process::Command::new("python3").args(["-c", script]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Vec<Option<usize>> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().ok()).collect();
    assert_eq!(said, expected);
}

/// Keys of TRL's ModelConfig; names as PEFT has them, in the model's order.
#[test]
fn rank_alpha_targets_and_dropout_of_lora_become_trls_keys() {
    let targets = vec![LoraTarget::DownProj, LoraTarget::QProj];
    let lora = LoraConfig { rank: 8, alpha: 24.0, dropout: 0.05, targets, ..LoraConfig::default() };
    let keys = "\nlora_r: 8\nlora_alpha: 24\nlora_dropout: 0.05\nlora_target_modules: [q_proj, down_proj]\n";
    let text = config(&spec(Settings::Sft(with_lora(lora.clone())))).unwrap();
    assert!(text.contains(&format!("\nuse_peft: true{keys}")), "{text}");
    let pairs = DpoConfig { lora: Some(lora), dtype: TrainDtype::F32, ..DpoConfig::default() };
    assert!(config(&spec(Settings::Dpo(pairs))).unwrap().contains("\ndisable_dropout: false\n"));
    let without = DpoConfig { lora: Some(LoraConfig::default()), dtype: TrainDtype::F32, ..DpoConfig::default() };
    assert!(!config(&spec(Settings::Dpo(without))).unwrap().contains("disable_dropout"));
}

#[test]
fn what_axolotl_lacks_beyond_trl_is_refused_by_its_name() {
    let of = |settings, resources| TrainSpec { trainer: Trainer::Axolotl, resources, ..spec(settings) };
    let (gpus, none) = (resources(1, 4), resources(1, 0));
    let sft_of = |config: SftConfig| Settings::Sft(SftConfig { batch_size: 8, ..config });
    for (name, found) in [
        ("dtype = \"bf16\"", of(sft_of(SftConfig { dtype: TrainDtype::Bf16, ..sft() }), none)),
        ("nodes = 2", of(sft_of(sft()), resources(2, 0))),
        ("lora: ", of(sft_of(with_lora(LoraConfig::default())), gpus)),
    ] {
        let error = config(&found).expect_err(name).to_string();
        assert!(error.contains(name) && error.lines().count() == 1, "{name}: {error}");
        assert!(error.contains("axolotl"), "{error}");
    }
    assert!(config(&of(sft_of(sft()), none)).is_ok());
    // Packed rows come alone there, and as many make a step: 8 by 4 processes are 2 each.
    let (text, notices) = config_with_notices(&of(sft_of(SftConfig { micro_batch_size: 2, ..sft() }), gpus));
    assert!(text.contains("\nmicro_batch_size: 1\ngradient_accumulation_steps: 2\n"), "{text}");
    assert!(notices.iter().any(|notice| notice.contains("takes packed rows one at a time")), "{notices:?}");
    // A longer one makes axolotl give the model more positions, which `aloe verify` refuses on return.
    let longer = of(sft_of(SftConfig { max_len: 9000, ..sft() }), none);
    assert!(config(&longer).unwrap().contains("\nsequence_len: 8192\n"));
}

/// 5 steps and 4, each with a tenth of warm-up, rounded up.
#[test]
fn chunks_of_pairs_are_one_job_whose_start_script_is_told_where_each_begins() {
    let dpo = DpoConfig { chunks: 2, warmup_ratio: 0.1, dtype: TrainDtype::F32, ..DpoConfig::default() };
    let spec = TrainSpec { n_steps: 9, chunk_steps: vec![5, 4], ..spec(Settings::Dpo(dpo)) };
    let run = tempfile::tempdir().unwrap();
    write(&spec, run.path()).unwrap();
    let expected = std::fs::read_to_string(run.path().join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let chunk = |n_steps: u64| serde_json::json!({"n_steps": n_steps, "warmup_steps": 1});
    assert_eq!(expected["chunks"], serde_json::json!([chunk(5), chunk(4)]));
    let text = std::fs::read_to_string(run.path().join("engine.yaml")).unwrap();
    assert!(text.contains("\nmax_steps: 9\n") && text.contains("\nwarmup_steps: 1\n"), "{text}");
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
        for key in ["fsdp:", "fsdp_config:", "tf32:", "sdpa"] {
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
    for trainer in [Trainer::Trl, Trainer::Axolotl] {
        let pinned: Vec<String> =
            versions(trainer).iter().map(|(name, version)| format!("\"{name}\": \"{version}\"")).collect();
        assert!(LAUNCHER.contains(&format!("\"{}\": {{{}}},", trainer.name(), pinned.join(", "))), "{trainer:?}");
    }
}
