//! Real models against stored logits and greedy texts.

use crate::{floats, ids, largest_difference, open, outside, read_json};
use aloe_model::{Decoder, KvCache, PackedBatch};
use aloe_tensor::{Dtype, ops};
use serde_json::Value;

/// Greedy continuation through the cache until a stop id or `n` tokens.
fn greedy(decoder: &Decoder, prompt: &[u32], n: usize, stop: &[u32]) -> Vec<u32> {
    let mut cache = KvCache::new(decoder);
    let mut logits = decoder.prefill(&[prompt], &mut [&mut cache]).expect("the prompt fits");
    let mut out = Vec::new();
    while out.len() < n {
        let next = ops::argmax_rows(&decoder.device, &logits)[0];
        out.push(next);
        if stop.contains(&next) || out.len() == n {
            break;
        }
        logits = decoder.decode_step(&[next], &mut [&mut cache]).expect("the text fits");
    }
    out
}

fn last_logits(decoder: &Decoder, prompt: &[u32]) -> Vec<f32> {
    let hidden = decoder.hidden(&PackedBatch::from_documents(&[prompt])).expect("the prompt fits");
    decoder.logits(&hidden.slice_rows(prompt.len() - 1, prompt.len())).into_f32_vec()
}

/// The stored best tokens come in the same order (gaps within the tolerance may swap) and with the same logits.
fn check_top(decoder: &Decoder, case: &Value, key: &str, tolerance: f64) {
    let prompt = ids(&case["ids"]);
    let logits = last_logits(decoder, &prompt);
    let stored: Vec<(usize, f64)> = case[key]
        .as_array()
        .expect("the best tokens")
        .iter()
        .map(|pair| (pair[0].as_u64().expect("an id") as usize, pair[1].as_f64().expect("a logit")))
        .collect();
    let worst = stored.iter().map(|(id, logit)| (f64::from(logits[*id]) - logit).abs()).fold(0.0, f64::max);
    eprintln!("{}: best tokens' logits differ by {worst:.2e} at most", case["prompt"]);
    assert!(worst <= tolerance, "{}: {worst} > {tolerance}", case["prompt"]);
    let last = stored.last().map_or(0.0, |pair| pair.1);
    let beyond = logits
        .iter()
        .enumerate()
        .filter(|(id, l)| f64::from(**l) > last + tolerance && !stored.iter().any(|(stored, _)| stored == id));
    assert_eq!(beyond.count(), 0, "{}: a token outside the stored best is better", case["prompt"]);
}

#[test]
fn stories260k_logits_nlls_and_greedy_text_equal_the_float64_forward() {
    let Some(dir) = outside("ALOE_DATA", "models/stories260K") else { return };
    let golden = read_json(&dir.join("golden.json"));
    let decoder = open(&dir, Dtype::F32);
    for case in golden["forward"].as_array().expect("cases") {
        let tokens = ids(&case["ids"]);
        let hidden = decoder.hidden(&PackedBatch::from_documents(&[&tokens])).expect("the text fits");
        let logits = decoder.logits(&hidden);
        let row = |t: usize| logits.as_f32()[t * 512..(t + 1) * 512].iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let first = largest_difference(row(0), floats(&case["logits_first_pos"]));
        let last = largest_difference(row(tokens.len() - 1), floats(&case["logits_last_pos"]));
        let found = decoder.token_logps(&hidden, (0..tokens.len() - 1).collect(), tokens[1..].to_vec());
        let nlls = largest_difference(found.logps.iter().map(|v| -f64::from(*v)), floats(&case["token_nll"]));
        eprintln!("{}: logits {first:.1e} {last:.1e}, nll {nlls:.1e}", case["text"]);
        assert!(first.max(last).max(nlls) <= 1e-4, "{}: {first} {last} {nlls}", case["text"]);
        assert_eq!(ops::argmax_rows(&decoder.device, &logits), ids(&case["argmax"]));
    }
    let stored = ids(&golden["greedy"]["ids"]);
    assert_eq!(greedy(&decoder, &stored[..1], stored.len() - 1, &[]), stored[1..]);
}

#[test]
fn smollm2_best_tokens_and_greedy_ids_equal_the_numpy_forward() {
    let Some(path) = outside("ALOE_MODELS", "smollm2-135m-instruct-q4_1/model.gguf") else { return };
    let Some(stored) = outside("ALOE_DATA", "models/smollm2-135m-instruct-q4_1/golden.json") else { return };
    let decoder = open(&path, Dtype::F32);
    for case in read_json(&stored)["cases"].as_array().expect("cases") {
        check_top(&decoder, case, "top10_last", 1e-2);
        let expected = ids(&case["greedy_ids"]);
        assert_eq!(greedy(&decoder, &ids(&case["ids"]), expected.len(), &[2]), expected, "{}", case["prompt"]);
    }
}

fn check_qwen(name: &str) {
    let Some(path) = outside("ALOE_MODELS", &format!("{name}/model.gguf")) else { return };
    let Some(stored) = outside("ALOE_DATA", &format!("models/{name}/golden.json")) else { return };
    let decoder = open(&path, Dtype::F32);
    for case in read_json(&stored).as_array().expect("cases") {
        check_top(&decoder, case, "top5", 1e-2);
        let expected = ids(&case["greedy_ids"]);
        assert_eq!(greedy(&decoder, &ids(&case["ids"]), expected.len(), &[]), expected, "{}", case["prompt"]);
    }
}

#[test]
fn qwen_half_billion_best_tokens_and_greedy_ids_equal_the_numpy_forward() {
    check_qwen("qwen2.5-coder-0.5b-instruct-q4_k_m");
}

#[test]
fn qwen_one_and_a_half_billion_best_tokens_and_greedy_ids_equal_the_numpy_forward() {
    if std::env::var("ALOE_SLOW").is_err() {
        eprintln!("not run: wants ALOE_SLOW=1 and 7 GB");
        return;
    }
    check_qwen("qwen2.5-coder-1.5b-instruct-q4_k_m");
}
