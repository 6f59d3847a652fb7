//! Weights in blocks: the stored blocks of real GGUF files against their dequantised values, and logits against f32.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a test that did not run says so")]

use aloe_model::{Decoder, ModelSource, PackedBatch, WeightFormat};
use aloe_tensor::{Device, Dtype, Isa, Linear};
use std::path::PathBuf;

/// The packaged model, or `None` (said on stderr) when `ALOE_MODELS` is not set; `ALOE_REQUIRE=1` makes that a failure.
fn model(name: &str) -> Option<ModelSource> {
    let Some(dir) = std::env::var_os("ALOE_MODELS") else {
        assert!(std::env::var("ALOE_REQUIRE").as_deref() != Ok("1"), "ALOE_MODELS is not set");
        eprintln!("did not run: ALOE_MODELS is not set, {name} was not read");
        return None;
    };
    let path = PathBuf::from(dir).join(name).join("model.gguf");
    Some(ModelSource::open(&path).unwrap_or_else(|e| panic!("{e}")))
}

const SMOLLM2: &str = "smollm2-135m-instruct-q4_1";
const QWEN: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m";

#[test]
fn rows_of_stored_blocks_are_the_rows_of_the_dequantised_tensor_bit_for_bit() {
    for name in [SMOLLM2, QWEN] {
        let Some(source) = model(name) else { return };
        let mut seen = std::collections::BTreeMap::new();
        for spec in source.specs().iter().filter(|spec| spec.hf_name.contains("layers.0.") || spec.shape[0] < 2000) {
            let Some((format, rows)) = source.block_rows(&spec.hf_name).unwrap() else { continue };
            *seen.entry(format.name()).or_insert(0) += 1;
            let layer = Linear::from_blocks(&Device::cpu(1), format, spec.shape[1], &rows, None);
            let expected = source.load_f32(&spec.hf_name).unwrap();
            let found = layer.weight().into_f32_vec();
            let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && found.len() == expected.len(), "{name}: {} ({})", spec.hf_name, format.name());
        }
        assert!(seen.values().sum::<i32>() > 20, "{name}: {seen:?}");
    }
}

/// Relative norm of the difference of two rows of numbers.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn logits_of_weights_in_blocks_are_near_those_of_their_f32_values() {
    let Some(source) = model(SMOLLM2) else { return };
    let device = Device::cpu(0);
    let ids: Vec<u32> = (0..96).map(|i| 100 + i * 397 % 40_000).collect();
    let logits = |format: WeightFormat| {
        let decoder = Decoder::open_as(&source, format, &device).unwrap_or_else(|e| panic!("{e}"));
        let hidden = decoder.hidden(&PackedBatch::from_documents(&[&ids])).unwrap();
        (decoder.logits(&hidden).into_f32_vec(), decoder.weights.nbytes())
    };
    let (expected, f32_bytes) = logits(WeightFormat::Dense(Dtype::F32));
    // The file's weights are 4-bit already: eight bits hold them almost exactly, Q4_0 rounds them once more.
    for (format, bits, most) in [
        (WeightFormat::Dense(Dtype::Bf16), 16.0, 0.02),
        (WeightFormat::Stored, 8.6, 0.04),
        (WeightFormat::Q8, 8.6, 0.04),
        (WeightFormat::Q4, 5.5, 0.35),
    ] {
        let (found, bytes) = logits(format);
        let far = distance(&found, &expected);
        println!("{}: {far:.4} of the f32 logits' norm, {} MB", format.name(), bytes >> 20);
        assert!(far < most, "{}: {far}", format.name());
        assert!((bytes as f64) < f32_bytes as f64 * bits / 32.0 * 1.01, "{}: {bytes} of {f32_bytes}", format.name());
    }
}

#[test]
fn a_model_that_only_answers_holds_less_and_computes_the_same_bits_whatever_the_rows_and_threads() {
    let Some(source) = model(SMOLLM2) else { return };
    let ids: Vec<u32> = (0..70).map(|i| 100 + i * 397 % 40_000).collect();
    for isa in [Isa::Amx, Isa::Avx512Bf16, Isa::Avx2].into_iter().filter(|isa| isa.available()) {
        let plain = Decoder::open_as(&source, WeightFormat::Dense(Dtype::Bf16), &Device::cpu_with(isa, 2)).unwrap();
        for threads in [1, 2] {
            let device = Device::cpu_with(isa, threads);
            let narrow = Decoder::open_to_answer(&source, WeightFormat::Dense(Dtype::Bf16), &device).unwrap();
            let share = narrow.weights.nbytes() as f64 / plain.weights.nbytes() as f64;
            let expected = if isa.pairs_bf16() { 0.75..0.77 } else { 1.0..1.0001 };
            assert!(expected.contains(&share), "{isa:?}: {share}");
            for n in [1, 2, 5, 16, 40, 70] {
                let logits = |decoder: &Decoder| {
                    let hidden = decoder.hidden(&PackedBatch::from_documents(&[&ids[..n]])).unwrap();
                    decoder.logits(&hidden).into_f32_vec()
                };
                let same = logits(&narrow).iter().zip(&logits(&plain)).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{isa:?}, {threads} threads, {n} tokens");
            }
        }
    }
}
