//! A task learned from nothing by the commands a user has: random weights, `aloe sft`, `aloe generate`, exact answers counted on
//! prompts that were never trained on.

use crate::run;
use aloe_model::{CheckpointWriter, Config, Params, TensorSpec};
use aloe_record::CounterRng;
use aloe_tensor::{Dtype, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

const N_DIGITS: usize = 5;
const N_ROWS: usize = 2000;
const N_HELD_OUT: usize = 200;

/// A prompt of digits and the same digits in order.
fn row(digits: &[usize]) -> (String, String) {
    let text = |digits: &[usize]| digits.iter().map(|digit| format!("d{digit}")).collect::<Vec<_>>().join(" ");
    let mut sorted = digits.to_vec();
    sorted.sort_unstable();
    (text(digits), text(&sorted))
}

/// A decoder of 2 layers and some 100,000 random weights, with a tokenizer of one id per word.
fn write_base(dir: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
        "rope_theta": 10000.0
    });
    let config = Config::from_json(&config).unwrap();
    let params = Params::from_fn(&config, random);
    let mut writer = CheckpointWriter::create(dir, &config, Dtype::F32).unwrap();
    for (spec, tensor) in params.specs().iter().zip(params.tensors()) {
        writer.add(&spec.hf_name, tensor.as_f32()).unwrap();
    }
    let fixed = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system"].map(str::to_owned);
    let words = fixed.iter().cloned().chain((0..10).map(|digit| format!("d{digit}")));
    let vocab: serde_json::Map<String, Value> = words.zip((0..16).map(|id| json!(id))).collect();
    let added = |id: usize| {
        json!({"id": id, "content": fixed[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0), added(1), added(2)], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}});
    let settings =
        json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "unk_token": "<unk>"});
    let file = |name: &str, value: &Value| (name.to_owned(), value.to_string().into_bytes());
    writer.finish(&[file("tokenizer.json", &tokenizer), file("tokenizer_config.json", &settings)]).unwrap();
}

/// Norms of 1, an embedding of unit variance, matrices of variance 1/(4 columns).
fn random(spec: &TensorSpec) -> Tensor {
    let mut rng = CounterRng::new(1, &spec.hf_name, 0);
    let scale = match &spec.hf_name {
        name if name.contains("norm") => return Tensor::from_f32(&spec.shape, vec![1.0; spec.n_elements()]),
        name if name.contains("embed") => 1.0,
        _ => 0.5 / (spec.shape[1] as f32).sqrt(),
    };
    Tensor::from_f32(&spec.shape, (0..spec.n_elements()).map(|_| scale * rng.normal()).collect())
}

#[test]
fn random_weights_learn_to_sort_five_digits_in_19_of_20_cases_never_seen() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    write_base(&dir.path().join("base"));
    let mut rng = CounterRng::new(7, "toy", 0);
    let mut prompts = BTreeSet::new();
    while prompts.len() < N_ROWS + N_HELD_OUT {
        prompts.insert((0..N_DIGITS).map(|_| rng.below(10)).collect::<Vec<_>>());
    }
    let mut prompts: Vec<Vec<usize>> = prompts.into_iter().collect();
    rng.shuffle(&mut prompts);
    let rows: Vec<(String, String)> = prompts.iter().map(|digits| row(digits)).collect();
    let (trained, held_out) = rows.split_at(N_ROWS);
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let lines = |values: Vec<Value>| values.iter().map(|value| format!("{value}\n")).collect::<String>();
    let chat =
        |(prompt, answer): &(String, String)| json!({"messages": [turn("user", prompt), turn("assistant", answer)]});
    let ask = |(at, (prompt, _)): (usize, &(String, String))| json!({"id": at.to_string(), "messages": [turn("user", prompt)], "temperature": 0, "max_new_tokens": 12});
    std::fs::write(at("rows.jsonl"), lines(trained.iter().map(chat).collect())).unwrap();
    std::fs::write(at("asked.jsonl"), lines(held_out.iter().enumerate().map(ask).collect())).unwrap();

    let settings = "lr=5e-3 epochs=6 max_len=64 batch_size=8 micro_batch_size=8 warmup_steps=20 betas=[0.9,0.98] seed=3 checkpoint_every=0 \
                    chat_template=chatml";
    let (base, data, out) = (at("base"), at("rows.jsonl"), at("sorted"));
    let mut args = vec!["sft", "--model", &base, "--data", &data, "--out", &out, "--dtype", "f32"];
    args.extend(settings.split_whitespace().flat_map(|setting| ["--set", setting]));
    let (_, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let (answers, stderr, code) = run(&["generate", &out, "--requests", &at("asked.jsonl"), "--dtype", "f32"]);
    assert_eq!(code, 0, "{stderr}");
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), N_HELD_OUT);
    let is_exact = |(answer, (_, wanted)): &(&Value, &(String, String))| answer["completions"][0]["text"] == **wanted;
    let n_exact = answers.iter().zip(held_out).filter(is_exact).count();
    // Guessing the order of five digits is right in 1 of up to 120 cases.
    assert!(n_exact * 20 >= N_HELD_OUT * 19, "{n_exact} of {N_HELD_OUT} exact, as {}", answers[0]);
}
