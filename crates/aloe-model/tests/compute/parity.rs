//! SmolLM2 dequantised to f32 against transformers: a 512-token prompt, and the gradients of a packed SFT batch.
//!
//! The gradients' oracle multiplies in f64: PyTorch's own f32 gradients of this batch are up to 2.5e-4 from it. It gives the
//! embedding of the padding token its gradient, which `nn.Embedding(padding_idx)` drops: SmolLM2 pads with `<|im_end|>`.

use crate::gradients::{loss_and_grads, relative_error};
use crate::{documents, floats, golden, ids, largest_difference, open, outside, slices, targets};
use aloe_model::{Decoder, Grads, ModelSource, PackedBatch, WeightFormat};
use aloe_tensor::{Device, Dtype};

const MODEL: &str = "smollm2-135m-instruct-q4_1/model.gguf";

#[test]
fn smollm2_logits_over_512_tokens_equal_transformers() {
    let Some(path) = outside("ALOE_MODELS", MODEL) else { return };
    let golden = golden("smollm2_parity.json");
    let decoder = open(&path, Dtype::F32);
    let tokens = ids(&golden["forward"]["ids"]);
    let hidden = decoder.hidden(&PackedBatch::from_documents(&[&tokens])).expect("the prompt fits");
    let found = decoder.token_logps(&hidden, (0..511).collect(), tokens[1..].to_vec());
    let nlls = found.logps.iter().map(|v| -f64::from(*v));
    let worst_nll = largest_difference(nlls, floats(&golden["forward"]["token_nll"]));
    let logits = decoder.logits(&hidden);
    let v = decoder.config.vocab_size;
    let mut worst = 0.0_f64;
    for row in golden["forward"]["rows"].as_array().expect("rows") {
        let t = row["position"].as_u64().expect("a position") as usize;
        let ours = &logits.as_f32()[t * v..(t + 1) * v];
        let picked = ids(&row["ids"]).into_iter().map(|id| f64::from(ours[id as usize]));
        worst = worst.max(largest_difference(picked, floats(&row["logits"])));
    }
    eprintln!("chosen logits differ by {worst:.2e}, token log-probabilities by {worst_nll:.2e}");
    if let Ok(bytes) = std::fs::read(path.with_file_name("../../golden/smollm2_logits.f32")) {
        let all = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        let every = largest_difference(logits.as_f32().iter().map(|v| f64::from(*v)), all);
        eprintln!("all 512 x {v} logits differ by {every:.2e} at most");
        worst = worst.max(every);
    }
    assert!(worst < 2e-3 && worst_nll < 2e-3, "{worst} {worst_nll}");
}

#[test]
fn smollm2_logits_in_fewer_bits_stay_near_those_of_transformers_in_f32() {
    let Some(path) = outside("ALOE_MODELS", MODEL) else { return };
    let golden = golden("smollm2_parity.json");
    let source = ModelSource::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let tokens = ids(&golden["forward"]["ids"]);
    for (format, most) in
        [(WeightFormat::Dense(Dtype::Bf16), 0.02), (WeightFormat::Stored, 0.04), (WeightFormat::Q8, 0.04)]
    {
        let decoder = Decoder::open_as(&source, format, &Device::cpu(0)).unwrap_or_else(|e| panic!("{e}"));
        let logits =
            decoder.logits(&decoder.hidden(&PackedBatch::from_documents(&[&tokens])).expect("the prompt fits"));
        let v = decoder.config.vocab_size;
        let (mut apart, mut whole, mut n) = (0.0, 0.0, 0);
        for row in golden["forward"]["rows"].as_array().expect("rows") {
            let t = row["position"].as_u64().expect("a position") as usize;
            for (id, expected) in ids(&row["ids"]).into_iter().zip(floats(&row["logits"])) {
                apart += (f64::from(logits.as_f32()[t * v + id as usize]) - expected).powi(2);
                whole += expected.powi(2);
                n += 1;
            }
        }
        let far = f64::sqrt(apart / whole);
        eprintln!("{}: {far:.4} of the norm of {n} stored logits", format.name());
        assert!(n > 100 && far < most, "{}: {far} over {n}", format.name());
    }
}

#[test]
fn smollm2_gradients_of_a_packed_sft_batch_equal_pytorch() {
    let Some(path) = outside("ALOE_MODELS", MODEL) else { return };
    let golden = golden("smollm2_parity.json");
    let case = &golden["sft"];
    let decoder = open(&path, Dtype::F32);
    let documents = documents(&case["documents"]);
    let batch = PackedBatch::from_documents(&slices(&documents));
    let (rows, wanted) = targets(&batch.pieces, &documents, &case["masks"]);
    let mut grads = Grads::zeros(&decoder.config);
    let loss = loss_and_grads(&decoder, batch, rows, wanted, &mut grads);
    let stored = case["loss"].as_f64().expect("a loss");
    let mut worst = (0.0_f64, "");
    for (spec, gradient) in grads.specs().iter().zip(grads.tensors()) {
        let error = relative_error(&spec.hf_name, gradient, &case["gradients"][&spec.hf_name]);
        if error > worst.0 {
            worst = (error, &spec.hf_name);
        }
    }
    eprintln!("loss {loss} against {stored}; worst gradient {:.2e} relative ({})", worst.0, worst.1);
    assert!((loss - stored).abs() < 1e-5 * stored, "loss {loss}, expected {stored}");
    assert!(worst.0 < 1e-4, "{worst:?}");
}
