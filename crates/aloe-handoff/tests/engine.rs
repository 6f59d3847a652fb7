//! Configurations against the engines themselves: those that we write are the bytes that TRL's own parser took, and mutated ones are
//! refused by our check alone.

mod engine_cases;

use aloe_handoff::engine::check::{Manifest, Program, check_config};
use aloe_handoff::engine::{self, Settings, TrainSpec};

/// `tests/golden/engine_trl.json` is written by `oracles/engine_trl.py` after TRL 1.16 took every text.
#[test]
fn every_configuration_is_byte_for_byte_one_that_trl_itself_took() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/engine_trl.json")).unwrap();
    for (package, version) in engine::TRL_VERSIONS {
        assert_eq!(golden["versions"][package], version, "the golden file is of another version");
    }
    let cases = engine_cases::cases();
    assert_eq!(golden["accepted"].as_object().unwrap().len(), cases.len());
    for (name, spec) in cases {
        assert_eq!(golden["accepted"][&name].as_str(), Some(engine::config(&spec).unwrap().as_str()), "{name}");
    }
}

/// `tests/golden/engine_axolotl.json` is written by `oracles/engine_axolotl.py validate` after axolotl 0.19 took every text as on H100s.
#[test]
fn every_configuration_for_axolotl_is_byte_for_byte_one_that_its_own_validation_took() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/engine_axolotl.json")).unwrap();
    for (package, version) in engine::AXOLOTL_VERSIONS {
        assert_eq!(golden["versions"][package], version, "the golden file is of another version");
    }
    let cases = engine_cases::axolotl_cases();
    assert!(cases.len() >= 12 && golden["accepted"].as_object().unwrap().len() == cases.len(), "{}", cases.len());
    for (name, spec) in cases {
        assert_eq!(golden["accepted"][&name].as_str(), Some(engine::config(&spec).unwrap().as_str()), "{name}");
    }
}

#[test]
fn no_configuration_holds_an_absolute_path_and_the_same_stage_gives_the_same_bytes() {
    for (name, spec) in engine_cases::cases().into_iter().chain(engine_cases::axolotl_cases()) {
        let text = engine::config(&spec).unwrap();
        assert_eq!(text, engine::config(&spec.clone()).unwrap(), "{name}");
        let absolute = |word: &str| word.trim_start_matches(['"', '[', '{']).starts_with('/');
        assert!(!text.split_whitespace().any(absolute), "{name}: {text}");
    }
}

/// The training stages of both, on the 8 nodes of four GPUs that `recipes/cluster-4xh100.toml` gives them; chunks of 5 in the first alignment.
#[test]
fn no_training_stage_of_the_published_recipes_is_refused_by_trl_or_axolotl() {
    let mut n_chunks = 0;
    for recipe in
        [include_str!("../../../recipes/llama3-aloe-8b.toml"), include_str!("../../../recipes/llama3-aloe-70b.toml")]
    {
        let recipe: toml::Table = recipe.parse().unwrap();
        for stage in recipe["stage"].as_array().unwrap() {
            let mut table = stage.as_table().unwrap().clone();
            let kind = table["kind"].as_str().unwrap().to_owned();
            table.retain(|key, _| !["kind", "name", "from", "expect", "trainer"].contains(&key));
            let settings = match kind.as_str() {
                "sft" => Settings::Sft(table.try_into().unwrap()),
                "dpo" => Settings::Dpo(table.try_into().unwrap()),
                _ => continue,
            };
            let (_, like) = engine_cases::cases().into_iter().find(|(name, _)| name == "dpo-8-nodes").unwrap();
            for trainer in [aloe_handoff::Trainer::Trl, aloe_handoff::Trainer::Axolotl] {
                let chunk_steps = match &settings {
                    Settings::Dpo(config) if config.chunks > 1 => vec![48; config.chunks],
                    _ => Vec::new(),
                };
                n_chunks += chunk_steps.len();
                let spec = TrainSpec { trainer, settings: settings.clone(), chunk_steps, ..like.clone() };
                engine::config(&spec).unwrap_or_else(|error| panic!("{trainer:?}: {kind}: {error}"));
            }
        }
    }
    assert_eq!(n_chunks, 20, "both recipes cut the first alignment's pairs into 5 chunks");
}

/// What stands in a configuration, what a slip of the pen makes of it, and a part of what is said.
const MUTATIONS: [(&str, &str, &str); 36] = [
    // Keys misspelt, at the top and inside.
    ("learning_rate:", "learnin_rate:", "unknown key learnin_rate; did you mean learning_rate?"),
    ("gradient_accumulation_steps:", "gradient_accumulation_step:", "did you mean gradient_accumulation_steps?"),
    ("output_dir:", "outputdir:", "unknown key outputdir"),
    ("padding_free:", "paddingfree:", "did you mean padding_free?"),
    ("max_steps:", "maxsteps:", "did you mean max_steps?"),
    ("warmup_steps:", "warmup_step:", "did you mean warmup_steps?"),
    ("weight_decay:", "weight-decay:", "unknown key weight-decay"),
    ("save_total_limit:", "save_limit_total:", "unknown key save_limit_total"),
    ("fsdp_config:", "fdsp_config:", "did you mean fsdp_config?"),
    ("reshard_after_forward:", "reshard_after_foward:", "unknown key fsdp_config.reshard_after_foward; did you mean"),
    ("state_dict_type:", "statedict_type:", "unknown key fsdp_config.statedict_type"),
    ("activation_checkpointing:", "activation_checkpoint:", "unknown key fsdp_config.activation_checkpoint"),
    ("skip_prepare_dataset:", "skip_prepare:", "unknown key dataset_kwargs.skip_prepare"),
    ("data_files:", "data_file:", "unknown key datasets[0].data_file; did you mean data_files?"),
    // Types.
    ("learning_rate: 2.0e-5", "learning_rate: fast", "learning_rate is \"fast\", expected float"),
    ("learning_rate: 2.0e-5", "learning_rate: 2e-5", "has a point and a sign"),
    ("learning_rate: 2.0e-5", "learning_rate: [2.0e-5]", "learning_rate is a list"),
    ("max_steps: 240", "max_steps: 240.5", "max_steps is"),
    ("max_steps: 240", "max_steps: all", "max_steps is \"all\", expected int"),
    ("bf16: true", "bf16: 1", "bf16 is"),
    ("padding_free: true", "padding_free: \"true\"", "padding_free is \"true\", expected bool"),
    ("seed: 0", "seed: random", "seed is \"random\""),
    ("data_files: data/sft/rendered.jsonl", "data_files: 5", "datasets[0].data_files is"),
    ("reshard_after_forward: true", "reshard_after_forward: FULL_SHARD", "fsdp_config.reshard_after_forward is"),
    ("version: 2", "version: two", "fsdp_config.version is \"two\""),
    ("{skip_prepare_dataset: true}", "true", "dataset_kwargs is"),
    // Choices.
    ("lr_scheduler_type: cosine", "lr_scheduler_type: cosinus", "lr_scheduler_type is \"cosinus\", expected one of"),
    ("save_strategy: steps", "save_strategy: step", "save_strategy is \"step\", expected one of"),
    ("dtype: float32", "dtype: fp32", "dtype is \"fp32\", expected one of auto, bfloat16"),
    ("optim: adamw_torch", "optim: adamw", "optim is \"adamw\""),
    ("auto_wrap_policy: TRANSFORMER_BASED_WRAP", "auto_wrap_policy: TRANSFORMER", "fsdp_config.auto_wrap_policy is"),
    ("attn_implementation: flash_attention_2", "attn_implementation: flash", "attn_implementation is \"flash\""),
    // Missing, and what must stay as it is.
    ("model_name_or_path: out/base/master\n", "", "model_name_or_path is missing"),
    ("datasets:", "# datasets:", "datasets is missing"),
    ("logging_nan_inf_filter: false\n", "", "logging_nan_inf_filter must be false"),
    ("report_to: \"none\"", "report_to: wandb", "report_to must be \"none\""),
];

#[test]
fn thirty_six_mutated_configurations_are_refused_by_our_check_alone_and_say_what_is_meant() {
    let manifest = Manifest::trl();
    let spec = engine_cases::cases().into_iter().find(|(name, _)| name == "sft-1-node").unwrap().1;
    let text = engine::config(&spec).unwrap();
    assert_eq!(check_config(&text, &manifest, Program::Sft), [""; 0]);
    // As they would lie in a run folder.
    let dir = tempfile::tempdir().unwrap();
    let stage = aloe_handoff::StagePlan {
        name: "sft".into(),
        kind: "sft".into(),
        folder: "stages/10-sft".into(),
        after: vec![],
        trainer: spec.trainer,
        resources: spec.resources,
    };
    let folder = dir.path().join(&stage.folder);
    std::fs::create_dir_all(&folder).unwrap();
    let digest = aloe_record::digest::bytes(text.as_bytes());
    std::fs::write(folder.join("inputs.sha256"), format!("{digest}  stages/10-sft/engine.yaml\n")).unwrap();
    let written = |text: &str| {
        std::fs::write(folder.join("engine.yaml"), text).unwrap();
        engine::mistakes_of_written(dir.path(), &stage).unwrap()
    };
    for (from, to, expected) in MUTATIONS {
        assert!(text.contains(from), "{from} is not in {text}");
        let mutated = text.replacen(from, to, 1);
        let mistakes = check_config(&mutated, &manifest, Program::Sft);
        assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{to}: {mistakes:?}");
        let changed = "it was changed since it was planned; change the recipe, and plan anew".to_owned();
        let named: Vec<String> = std::iter::once(changed)
            .chain(mistakes)
            .map(|mistake| format!("stages/10-sft/engine.yaml: {mistake}"))
            .collect();
        assert_eq!(written(&mutated), named);
    }
    assert_eq!(written(&text), [""; 0]);
    // What its own job writes is no part of the plan; what the plan names must be there.
    let digests = std::fs::read(folder.join("inputs.sha256")).unwrap();
    std::fs::write(folder.join("inputs.sha256"), "").unwrap();
    assert_eq!(written("learnin_rate: 1\n"), [""; 0]);
    std::fs::write(folder.join("inputs.sha256"), &digests).unwrap();
    std::fs::remove_file(folder.join("engine.yaml")).unwrap();
    let missing = || engine::mistakes_of_written(dir.path(), &stage).unwrap();
    assert_eq!(missing(), ["stages/10-sft/engine.yaml: it is missing; plan anew"]);
    std::fs::remove_file(folder.join("inputs.sha256")).unwrap();
    assert_eq!(missing(), ["stages/10-sft/inputs.sha256: it is missing; plan anew"]);
    std::fs::write(folder.join("inputs.sha256"), digests).unwrap();
    let other = written(&text.replacen("learning_rate: 2.0e-5", "learning_rate: 3.0e-5", 1));
    assert!(other.len() == 1 && other[0].contains("changed since it was planned"), "{other:?}");
    let all = MUTATIONS[..14].iter().fold(text, |text, (from, to, _)| text.replacen(from, to, 1));
    let n_unknown = check_config(&all, &manifest, Program::Sft).iter().filter(|text| text.contains("unknown")).count();
    assert!(n_unknown >= 11, "all mistakes are told at once: {n_unknown}");
}

#[test]
fn keys_of_the_other_program_and_losses_that_trl_lacks_are_refused() {
    let manifest = Manifest::trl();
    for (name, spec) in engine_cases::cases() {
        let text = engine::config(&spec).unwrap();
        let is_sft = matches!(spec.settings, Settings::Sft(_));
        let other = if is_sft { Program::Dpo } else { Program::Sft };
        let mistakes = check_config(&text, &manifest, other);
        let key = if is_sft { "dataset_kwargs" } else { "beta" };
        assert!(mistakes.iter().any(|mistake| mistake.contains(&format!("unknown key {key}"))), "{name}: {mistakes:?}");
        if !is_sft {
            let text = text.replacen("loss_type: [", "loss_type: [simpo, ", 1);
            let mistakes = check_config(&text, &manifest, Program::Dpo);
            assert!(mistakes.iter().any(|mistake| mistake.contains("loss_type[0] is \"simpo\"")), "{mistakes:?}");
        }
    }
}

/// A configuration as sites write them for axolotl on H100s.
const AXOLOTL: &str = "\
base_model: out/base/master
datasets:
  - path: data/sft/messages.jsonl
    ds_type: json
    type: chat_template
    field_messages: messages
    roles_to_train: [assistant]
    train_on_eos: turn
    message_property_mappings: {role: role, content: content}
sequence_len: 8192
sample_packing: true
attn_implementation: flash_attention_2
micro_batch_size: 1
gradient_accumulation_steps: 4
max_steps: 240
learning_rate: 2.0e-5
lr_scheduler: cosine
optimizer: adamw_torch_fused
bf16: true
fsdp_version: 2
fsdp_config:
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
  transformer_layer_cls_to_wrap: LlamaDecoderLayer
  reshard_after_forward: true
  state_dict_type: FULL_STATE_DICT
lora_r: 16
output_dir: work/sft
";

/// axolotl 0.19 lets every one of these through, as `oracles/engine_axolotl.py` shows: its model ignores keys that it does not know.
#[test]
fn ten_misspelt_keys_that_axolotl_lets_through_are_refused_with_the_key_that_is_meant() {
    let manifest = Manifest::axolotl();
    assert_eq!(check_config(AXOLOTL, &manifest, Program::Sft), [""; 0]);
    let typos = [
        ("roles_to_train", "roles_to_trane", "datasets[0].roles_to_trane; did you mean roles_to_train?"),
        ("train_on_eos", "train_on_eot_s", "datasets[0].train_on_eot_s"),
        ("field_messages", "field_message", "datasets[0].field_message; did you mean field_messages?"),
        ("ds_type", "dstype", "datasets[0].dstype; did you mean ds_type?"),
        ("message_property_mappings", "message_property_mapping", "datasets[0].message_property_mapping"),
        (
            "reshard_after_forward",
            "reshard_after_foward",
            "fsdp_config.reshard_after_foward; did you mean reshard_after_forward?",
        ),
        ("state_dict_type", "state_dict_typ", "fsdp_config.state_dict_typ; did you mean state_dict_type?"),
        ("auto_wrap_policy", "auto_wrap", "unknown key fsdp_config.auto_wrap"),
        ("sample_packing", "sample_pack", "unknown key sample_pack"),
        ("fsdp_version", "fdsp_version", "unknown key fdsp_version; did you mean fsdp_version?"),
    ];
    for (from, to, expected) in typos {
        let mistakes =
            check_config(&AXOLOTL.replacen(&format!("{from}:"), &format!("{to}:"), 1), &manifest, Program::Sft);
        assert!(mistakes.len() == 1 && mistakes[0].contains(expected), "{to}: {mistakes:?}");
    }
    for (from, to, expected) in [
        ("learning_rate: 2.0e-5", "learning_rate: fast", "learning_rate is \"fast\""),
        ("bf16: true", "bf16: maybe", "bf16 is \"maybe\""),
        ("[assistant]", "{assistant: 1}", "datasets[0].roles_to_train is a mapping"),
        ("FULL_STATE_DICT", "FULL", "fsdp_config.state_dict_type is \"FULL\""),
        ("base_model: out/base/master\n", "", "base_model is missing"),
    ] {
        let mistakes = check_config(&AXOLOTL.replacen(from, to, 1), &manifest, Program::Sft);
        assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{to}: {mistakes:?}");
    }
}

#[test]
fn a_file_that_is_no_mapping_or_no_yaml_is_one_mistake() {
    for text in ["", "- a\n", "a: [1\n", "a: 1\na: 2\n"] {
        assert!(!check_config(text, &Manifest::trl(), Program::Sft).is_empty(), "{text:?}");
    }
}
