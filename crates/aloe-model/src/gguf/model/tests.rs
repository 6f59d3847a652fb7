//! Configs from metadata and row order, on small files made here and on the packaged models.

use super::super::tests::{Builder, string};
use super::*;
use crate::ModelSource;
use crate::config::{Arch, RopeScaling};
use std::path::PathBuf;

fn u32_key(key: &str, value: u32) -> (String, u32, Vec<u8>) {
    (key.into(), 4, value.to_le_bytes().to_vec())
}

fn f32_tensor(name: &str, shape: &[u64], first: usize) -> (String, Vec<u64>, u32, Vec<u8>) {
    let n = shape.iter().product::<u64>() as usize;
    (name.into(), shape.to_vec(), 0, (0..n).flat_map(|i| ((first + i) as f32).to_le_bytes()).collect())
}

/// One layer, D = 8, two heads of 4, one key/value head, F = 6, V = 5, tied. Each tensor counts up from 0.
fn tiny() -> Builder {
    let shapes: [(&str, &[u64]); 9] = [
        ("attn_q.weight", &[8, 8]),
        ("attn_k.weight", &[8, 4]),
        ("attn_v.weight", &[8, 4]),
        ("attn_output.weight", &[8, 8]),
        ("ffn_gate.weight", &[8, 6]),
        ("ffn_up.weight", &[8, 6]),
        ("ffn_down.weight", &[6, 8]),
        ("attn_norm.weight", &[8]),
        ("ffn_norm.weight", &[8]),
    ];
    let mut tensors = vec![f32_tensor("token_embd.weight", &[8, 5], 0), f32_tensor("output_norm.weight", &[8], 0)];
    tensors.extend(shapes.map(|(name, shape)| f32_tensor(&format!("blk.0.{name}"), shape, 0)));
    Builder {
        version: 3,
        metadata: vec![
            ("general.architecture".into(), 8, string("llama")),
            u32_key("llama.block_count", 1),
            u32_key("llama.context_length", 64),
            u32_key("llama.embedding_length", 8),
            u32_key("llama.feed_forward_length", 6),
            u32_key("llama.attention.head_count", 2),
            u32_key("llama.attention.head_count_kv", 1),
            ("llama.attention.layer_norm_rms_epsilon".into(), 6, 1e-5f32.to_le_bytes().to_vec()),
            u32_key("tokenizer.ggml.bos_token_id", 1),
            u32_key("tokenizer.ggml.eos_token_id", 2),
        ],
        tensors,
    }
}

fn opened(file: &Builder) -> Result<GgufModel> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    GgufModel::open(&path)
}

fn refused(expected: &str, damage: impl FnOnce(&mut Builder)) {
    let mut file = tiny();
    damage(&mut file);
    let message = opened(&file).err().expect(expected).to_string();
    assert!(message.contains(expected), "expected \"{expected}\" in: {message}");
}

#[test]
fn q_and_k_rows_of_a_llama_file_return_to_hugging_face_order() {
    let model = opened(&tiny()).unwrap();
    assert!(model.config.tie_word_embeddings);
    // By hand: head size 4, file rows of a head hold Hugging Face rows 0, 2, 1, 3. Row r of the file begins with 8 r.
    let q = model.load_f32("model.layers.0.self_attn.q_proj.weight").unwrap();
    let first_of_rows: Vec<f32> = q.chunks(8).map(|row| row[0]).collect();
    assert_eq!(first_of_rows, [0.0, 16.0, 8.0, 24.0, 32.0, 48.0, 40.0, 56.0]);
    let k = model.load_f32("model.layers.0.self_attn.k_proj.weight").unwrap();
    assert_eq!(k.chunks(8).map(|row| row[0]).collect::<Vec<_>>(), [0.0, 16.0, 8.0, 24.0]);
    let v = model.load_f32("model.layers.0.self_attn.v_proj.weight").unwrap();
    assert_eq!(v, (0..32).map(|i| i as f32).collect::<Vec<_>>());
}

#[test]
fn q_rows_of_a_qwen2_file_stay_as_they_are() {
    let mut file = tiny();
    file.metadata[0].2 = string("qwen2");
    for (key, ..) in &mut file.metadata {
        *key = key.replace("llama.", "qwen2.");
    }
    for (name, n) in [("attn_q.bias", 8), ("attn_k.bias", 4), ("attn_v.bias", 4)] {
        file.tensors.push(f32_tensor(&format!("blk.0.{name}"), &[n], 0));
    }
    let model = opened(&file).unwrap();
    assert_eq!(model.config.arch, Arch::Qwen2);
    assert!(model.config.attention_bias);
    let q = model.load_f32("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!(q, (0..64).map(|i| i as f32).collect::<Vec<_>>());
}

#[test]
fn unsupported_metadata_are_refused_by_key() {
    refused("general.architecture", |file| file.metadata[0].2 = string("mamba"));
    refused("llama.expert_count", |file| file.metadata.push(u32_key("llama.expert_count", 8)));
    refused("llama.rope.dimension_count", |file| file.metadata.push(u32_key("llama.rope.dimension_count", 2)));
    refused("yarn", |file| file.metadata.push(("llama.rope.scaling.type".into(), 8, string("yarn"))));
    refused("sliding_window", |file| file.metadata.push(u32_key("llama.attention.sliding_window", 63)));
    refused("llama.block_count", |file| file.metadata[1].0 = "llama.bloc_count".into());
    refused("llama.embedding_length", |file| file.metadata[3].2 = 0u32.to_le_bytes().to_vec());
    refused("blk.1.attn_q.weight", |file| file.metadata[1].2 = 2u32.to_le_bytes().to_vec());
    refused("num_hidden_layers", |file| {
        file.metadata[1] = ("llama.block_count".into(), 10, (1u64 << 26).to_le_bytes().to_vec())
    });
}

#[test]
fn missing_unexpected_and_wrongly_shaped_tensors_are_named() {
    refused("token_embd.weight", |file| drop(file.tensors.remove(0)));
    refused("output_norm.weight: is missing", |file| drop(file.tensors.remove(1)));
    refused("blk.0.attn_q.bias", |file| file.tensors.push(f32_tensor("blk.0.attn_q.bias", &[8], 0)));
    refused("blk.0.attn_v.weight: has shape [8, 4]", |file| file.tensors[4].1 = vec![4, 8]);
}

#[test]
fn llama_3_1_divisors_are_recognised_and_others_refused() {
    // From the definition of Llama 3.1's scaling with head size 4, theta 10000: wavelengths 2 pi and 200 pi are both below
    // 8192 / 4, so nothing is divided; with theta 1e12 the second wavelength is 2 pi 1e6 > 8192, so it is divided by 8.
    let with = |divisors: [f32; 2], theta: f32| {
        let mut file = tiny();
        file.metadata.push(("llama.rope.freq_base".into(), 6, theta.to_le_bytes().to_vec()));
        let bytes = divisors.iter().flat_map(|d| d.to_le_bytes()).collect();
        file.tensors.push(("rope_freqs.weight".into(), vec![2], 0, bytes));
        opened(&file)
    };
    assert_eq!(with([1.0, 1.0], 1e4).unwrap().config.rope_scaling, None);
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(with([1.0, 8.0], 1e12).unwrap().config.rope_scaling, Some(expected));
    let message = with([1.0, 7.0], 1e12).err().unwrap().to_string();
    assert!(message.contains("rope_freqs.weight"), "{message}");
}

/// A packaged model, or `None` after a note when the tests run without them.
fn packaged(folder: &str) -> Option<PathBuf> {
    let path = std::env::var_os("ALOE_MODELS").map(|root| PathBuf::from(root).join(folder).join("model.gguf"));
    match path.filter(|path| path.is_file()) {
        Some(path) => Some(path),
        None if std::env::var("ALOE_REQUIRE").is_ok_and(|value| value == "1") => {
            panic!("{folder} is not in ALOE_MODELS")
        }
        None => {
            println!("not run: {folder} is not in ALOE_MODELS");
            None
        }
    }
}

#[test]
fn the_packaged_smollm2_has_the_published_config() {
    let Some(path) = packaged("smollm2-135m-instruct-q4_1") else { return };
    let source = ModelSource::open(&path).unwrap();
    let config = source.config();
    // Values of HuggingFaceTB/SmolLM2-135M-Instruct/config.json.
    let sizes = [
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.max_position_embeddings,
    ];
    assert_eq!(sizes, [49_152, 576, 1536, 30, 9, 3, 64, 8192]);
    assert_eq!((config.rope_theta, config.rms_norm_eps), (100_000.0, 1e-5));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), [2].as_slice()));
    assert!(config.tie_word_embeddings);
    assert_eq!(config.n_parameters(), 134_515_008);
    source.check_finite().unwrap();
    assert_eq!(source.gguf_metadata().unwrap()["tokenizer.ggml.tokens"].as_array().unwrap().len(), 49_152);
}

#[test]
fn the_packaged_qwen_opens_with_its_biases_and_separate_head() {
    let Some(path) = packaged("qwen2.5-coder-0.5b-instruct-q4_k_m") else { return };
    let source = ModelSource::open(&path).unwrap();
    assert_eq!(source.config().arch, Arch::Qwen2);
    assert!(!source.config().tie_word_embeddings);
    assert_eq!(source.specs().len(), 291);
    assert_eq!(source.load_f32("model.layers.3.self_attn.q_proj.bias").unwrap().len(), 896);
}
