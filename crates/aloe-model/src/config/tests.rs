//! Published configs, written down from the facts, and everything that must be refused by name.

use super::*;
use serde_json::json;

fn read(value: Value) -> Config {
    Config::from_json(&value).unwrap()
}

fn smollm2() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041_666_666_666_666_664,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_interleaved": false, "rope_scaling": null,
        "rope_theta": 100_000, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
        "use_cache": true, "vocab_size": 49152
    })
}

fn llama3_8b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128_000,
        "eos_token_id": 128_009, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null,
        "rope_theta": 500_000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
        "vocab_size": 128_256
    })
}

fn llama3_1_8b() -> Value {
    let mut value = llama3_8b();
    value["max_position_embeddings"] = json!(131_072);
    value["eos_token_id"] = json!([128_001, 128_008, 128_009]);
    value["rope_scaling"] = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"
    });
    value
}

fn qwen2_5_0_5b() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643, "eos_token_id": 151_645,
        "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151_936
    })
}

fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0, "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32768
    })
}

#[test]
fn published_configs_have_their_published_parameter_counts() {
    // Totals of the models' safetensors as their pages state them.
    assert_eq!(read(smollm2()).n_parameters(), 134_515_008);
    assert_eq!(read(qwen2_5_0_5b()).n_parameters(), 494_032_768);
    assert_eq!(read(llama3_8b()).n_parameters(), 8_030_261_248);
    assert_eq!(read(llama3_1_8b()).n_parameters(), 8_030_261_248);
    assert_eq!(read(mistral()).n_parameters(), 7_248_023_552);
}

#[test]
fn published_configs_are_read_field_by_field() {
    let config = read(smollm2());
    assert_eq!((config.head_dim, config.num_key_value_heads, config.rope_theta), (64, 3, 100_000.0));
    assert_eq!((config.rms_norm_eps, config.tie_word_embeddings, config.attention_bias), (1e-5, true, false));
    let config = read(qwen2_5_0_5b());
    assert_eq!((config.arch, config.head_dim, config.attention_bias), (Arch::Qwen2, 64, true));
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(151_643), vec![151_645]));
    let config = read(llama3_1_8b());
    assert_eq!(config.eos_token_ids, [128_001, 128_008, 128_009]);
    assert_eq!(config.max_position_embeddings, 131_072);
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.rope_scaling, Some(expected));
}

#[test]
fn the_layout_of_transformers_5_says_the_same_as_that_of_4() {
    let mut new = llama3_1_8b();
    let mut parameters = new["rope_scaling"].clone();
    parameters["rope_theta"] = json!(500_000.0);
    let object = new.as_object_mut().unwrap();
    object.remove("rope_scaling");
    object.remove("rope_theta");
    object.insert("rope_parameters".into(), parameters);
    object.insert("dtype".into(), json!("bfloat16"));
    let (new, old) = (read(new), read(llama3_1_8b()));
    assert_eq!((new.rope_theta, &new.rope_scaling), (old.rope_theta, &old.rope_scaling));
    // What we write carries both layouts, so that transformers 4 does not fall back to theta 10000.
    let written = new.to_json();
    assert_eq!(written["rope_theta"], json!(500_000.0));
    assert_eq!(written["rope_parameters"]["rope_theta"], json!(500_000.0));
    assert_eq!(written["rope_scaling"]["rope_type"], "llama3");
    let default = json!({"rope_theta": 10_000.0, "rope_type": "default"});
    let mut plain = smollm2();
    plain["rope_theta"] = Value::Null;
    plain["rope_parameters"] = default;
    assert_eq!((read(plain.clone()).rope_theta, read(plain).rope_scaling), (10_000.0, None));
}

#[test]
fn writing_and_reading_again_gives_the_same_config_and_loses_no_key() {
    for value in [smollm2(), llama3_8b(), llama3_1_8b(), qwen2_5_0_5b(), mistral()] {
        let config = read(value.clone());
        let written = config.to_json();
        let mut again = read(written.clone());
        again.raw = config.raw.clone();
        assert_eq!(again, config);
        for (key, old) in value.as_object().unwrap() {
            let same = written[key] == *old || written[key].as_f64().is_some_and(|number| Some(number) == old.as_f64());
            assert!(same, "{key}: {old} became {}", written[key]);
        }
    }
}

#[test]
fn absent_keys_take_the_defaults_of_the_transformers_classes() {
    let mut value = llama3_8b();
    for key in ["num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings"] {
        value.as_object_mut().unwrap().remove(key);
    }
    let config = read(value);
    assert_eq!((config.num_key_value_heads, config.rms_norm_eps, config.rope_theta), (32, 1e-6, 10_000.0));
    assert_eq!((config.max_position_embeddings, config.tie_word_embeddings), (2048, false));
}

fn refused(base: Value, key: &str, value: Value, expected: &str) {
    let mut changed = base;
    changed[key] = value.clone();
    let message = Config::from_json(&changed).err().map_or("was accepted".into(), |error| error.to_string());
    assert!(message.contains(expected), "{key} = {value}: expected \"{expected}\" in: {message}");
}

#[test]
fn what_would_change_the_numbers_is_refused_by_name() {
    refused(smollm2(), "model_type", json!("gemma2"), "\"gemma2\" is not supported");
    refused(smollm2(), "architectures", json!(["LlamaForSequenceClassification"]), "LlamaForSequenceClassification");
    refused(mistral(), "num_local_experts", json!(8), "num_local_experts");
    refused(smollm2(), "hidden_act", json!("gelu"), "hidden_act: \"gelu\"");
    refused(smollm2(), "attention_bias", json!(true), "attention_bias");
    refused(smollm2(), "mlp_bias", json!(true), "mlp_bias");
    refused(smollm2(), "partial_rotary_factor", json!(0.5), "partial_rotary_factor");
    refused(smollm2(), "quantization_config", json!({"quant_method": "gptq"}), "quantization_config");
    refused(smollm2(), "auto_map", json!({"AutoModel": "x.Y"}), "auto_map");
    refused(smollm2(), "attention_dropout", json!(0.1), "attention_dropout");
    refused(smollm2(), "layer_types", json!(["full_attention", "sliding_attention"]), "layer_types");
    refused(mistral(), "sliding_window", json!(4096), "sliding_window");
    refused(qwen2_5_0_5b(), "use_sliding_window", json!(true), "was accepted");
    for kind in ["dynamic", "yarn", "longrope", "su"] {
        refused(
            smollm2(),
            "rope_scaling",
            json!({"type": kind, "factor": 2.0}),
            &format!("\"{kind}\" is not supported"),
        );
    }
    refused(smollm2(), "rope_scaling", json!({"type": "linear"}), "rope_scaling.factor");
    refused(smollm2(), "rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "rope_scaling.low_freq_factor");
    refused(smollm2(), "rope_parameters", json!({"rope_theta": 5.0}), "rope_parameters says 5");
}

#[test]
fn a_mistral_whose_window_covers_the_context_is_accepted() {
    let mut value = mistral();
    value["sliding_window"] = json!(32768);
    assert_eq!(read(value).arch, Arch::Mistral);
}

#[test]
fn sizes_that_no_model_has_are_refused_before_anything_is_allocated() {
    let missing = Value::Null;
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"] {
        refused(smollm2(), key, missing.clone(), &format!("{key}: is missing"));
        for bad in [json!(0), json!(-1), json!(1.5), json!("576"), json!(1u64 << 40)] {
            refused(smollm2(), key, bad, key);
        }
    }
    refused(smollm2(), "num_hidden_layers", json!(5000), "num_hidden_layers");
    refused(smollm2(), "num_key_value_heads", json!(2), "does not divide num_attention_heads 9");
    refused(smollm2(), "num_attention_heads", json!(7), "num_");
    refused(smollm2(), "head_dim", json!(63), "odd");
    refused(smollm2(), "rope_theta", json!(-1.0), "rope_theta");
    refused(smollm2(), "rms_norm_eps", json!("tiny"), "rms_norm_eps");
    refused(smollm2(), "eos_token_id", json!([2, 60_000]), "outside the vocabulary");
    refused(smollm2(), "eos_token_id", json!("</s>"), "not a token id");
    assert!(Config::from_json(&json!([])).is_err());
}
