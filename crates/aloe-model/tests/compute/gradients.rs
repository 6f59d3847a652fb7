//! The backward pass against PyTorch and against finite differences.

use crate::{documents, floats, golden, slices, targets};
use aloe_model::testing::{Tiny, fill, tiny_config, tiny_random};
use aloe_model::{Activations, Branches, Config, Decoder, Grads, Keep, PackedBatch, Params};
use aloe_tensor::{Device, Dtype, Tensor};
use serde_json::Value;

/// Loss (mean over targets of -logp) and its gradients.
pub(crate) fn loss_and_grads(
    decoder: &Decoder,
    batch: PackedBatch,
    rows: Vec<usize>,
    targets: Vec<u32>,
    grads: &mut Grads,
) -> f64 {
    let n = targets.len() as f32;
    let activations = decoder.forward_train(batch, Keep::All).expect("the batch fits");
    let found = decoder.token_logps(&activations.hidden, rows, targets);
    let dlogps = vec![-1.0 / n; found.logps.len()];
    let dhidden = decoder.token_logps_backward(&activations.hidden, &found, &dlogps, grads);
    decoder.backward(activations, &dhidden, grads);
    -found.logps.iter().map(|v| f64::from(*v)).sum::<f64>() / f64::from(n)
}

/// The error of a gradient relative to its norm, from its norm and 16 projections on vectors of the formula: a projection on
/// independent values of variance 1/3 has the mean square |difference|^2 / 3.
pub(crate) fn relative_error(name: &str, gradient: &Tensor, stored: &Value) -> f64 {
    let values = gradient.as_f32();
    let stored_norm = stored["norm"].as_f64().expect("a norm");
    let norm = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    let projections = floats(&stored["projections"]);
    let square = |(j, expected): (usize, &f64)| {
        let vector = fill(&format!("projection {j} {name}"), values.len());
        let found: f64 = values.iter().zip(&vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        (found - expected).powi(2)
    };
    let n = projections.len() as f64;
    let difference = (3.0 * projections.iter().enumerate().map(square).sum::<f64>() / n).sqrt();
    difference.max((norm - stored_norm).abs()) / stored_norm.max(1e-12)
}

/// Gradients of a batch with a shared prefix, two packed documents and targets at most rows, as bits.
fn gradient_bits(kind: Tiny, dtype: Dtype, keep: Keep, threads: usize) -> Vec<Vec<u32>> {
    let decoder = Decoder::from_params(&tiny_random(kind, 3), dtype, &Device::cpu(threads));
    let (one, two, tail) = (crate::laws::text("one", 33), crate::laws::text("two", 30), crate::laws::text("tail", 21));
    let batch = PackedBatch::from_branches(&[
        Branches { prefix: &one, continuations: vec![&tail, &[5, 6]] },
        Branches { prefix: &two, continuations: Vec::new() },
    ]);
    let rows: Vec<usize> = (0..batch.len() - 1).collect();
    let targets: Vec<u32> = rows.iter().map(|&row| batch.ids[row + 1]).collect();
    let activations = decoder.forward_train(batch, keep).expect("the batch fits");
    let found = decoder.token_logps(&activations.hidden, rows, targets);
    let dlogps: Vec<f32> = fill("dlogps", found.logps.len());
    let mut grads = Grads::zeros(&decoder.config);
    let dhidden = decoder.token_logps_backward(&activations.hidden, &found, &dlogps, &mut grads);
    decoder.backward(activations, &dhidden, &mut grads);
    grads.tensors().iter().map(crate::laws::bits).collect()
}

#[test]
fn activations_computed_again_and_other_threads_change_no_bit_of_a_gradient() {
    for kind in [Tiny::Llama, Tiny::Qwen2] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let kept = gradient_bits(kind, dtype, Keep::All, 2);
            for (keep, threads) in [(Keep::Inputs, 2), (Keep::All, 1)] {
                let found = gradient_bits(kind, dtype, keep, threads);
                assert!(found == kept, "{kind:?} {dtype:?} {keep:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn activations_take_the_bytes_that_a_plan_counts_on() {
    for kind in [Tiny::Llama, Tiny::Qwen2] {
        let all = [Dtype::F32, Dtype::Bf16].into_iter().flat_map(|d| [(d, Keep::All), (d, Keep::Inputs)]);
        for (dtype, keep) in all {
            let decoder = Decoder::from_params(&tiny_random(kind, 3), dtype, &Device::cpu(1));
            let batch = PackedBatch::from_documents(&[&crate::laws::text("bytes", 64)]);
            let held = decoder.forward_train(batch, keep).expect("the batch fits").nbytes();
            let counted = 64 * Activations::bytes_per_token(&decoder.config, dtype, keep);
            assert_eq!(held, counted, "{kind:?} {dtype:?} {keep:?}");
        }
    }
}

#[test]
fn gradients_written_over_old_ones_are_those_written_over_zeros() {
    for kind in [Tiny::Llama, Tiny::Qwen2] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let decoder = Decoder::from_params(&tiny_random(kind, 3), dtype, &Device::cpu(2));
            let mut grads = Grads::zeros(&decoder.config);
            let mut run = |name: &str| {
                let ids = crate::laws::text(name, 33);
                let batch = PackedBatch::from_documents(&[&ids]);
                grads.zero();
                loss_and_grads(&decoder, batch, (0..32).collect(), ids[1..].to_vec(), &mut grads);
                grads.settle();
                grads.tensors().iter().map(crate::laws::bits).collect::<Vec<_>>()
            };
            let first = run("first");
            assert!(run("second") != first);
            assert!(run("first") == first, "{kind:?} {dtype:?}");
        }
    }
}

fn check_against_pytorch(case: &Value, kind: Tiny) {
    let config = Config::from_json(&case["config"]).expect("transformers wrote the config");
    let ours = tiny_config(kind);
    assert_eq!((&config.rope_scaling, config.tie_word_embeddings), (&ours.rope_scaling, ours.tie_word_embeddings));
    assert_eq!((config.rope_theta, config.rms_norm_eps), (ours.rope_theta, ours.rms_norm_eps));
    let params = tiny_random(kind, 0);
    let decoder = Decoder::from_params(&params, Dtype::F32, &Device::cpu(2));
    let documents = documents(&case["documents"]);
    let batch = PackedBatch::from_documents(&slices(&documents));
    let logits = decoder.logits(&decoder.hidden(&batch).expect("the batch fits"));
    let expected: Vec<f64> = case["logits"]
        .as_array()
        .expect("logits")
        .iter()
        .flat_map(|d| d.as_array().expect("rows"))
        .flat_map(floats)
        .collect();
    assert_eq!(expected.len(), logits.len());
    let worst = crate::largest_difference(logits.as_f32().iter().map(|v| f64::from(*v)), expected);
    assert!(worst < 1e-4, "logits differ by {worst}");
    let (rows, wanted) = targets(&batch.pieces, &documents, &case["masks"]);
    let mut grads = Grads::zeros(&config);
    let loss = loss_and_grads(&decoder, batch, rows, wanted, &mut grads);
    let stored = case["loss"].as_f64().expect("a loss");
    assert!((loss - stored).abs() < 1e-5 * stored, "loss {loss}, expected {stored}");
    let mut largest = 0.0_f64;
    for (spec, gradient) in grads.specs().iter().zip(grads.tensors()) {
        let error = relative_error(&spec.hf_name, gradient, &case["gradients"][&spec.hf_name]);
        assert!(error < 1e-4, "{}: relative error {error}", spec.hf_name);
        largest = largest.max(error);
    }
    assert_eq!(case["gradients"].as_object().map(|map| map.len()), Some(grads.tensors().len()));
    eprintln!("{kind:?}: logits {worst:.1e}, loss {loss} against {stored}, gradients {largest:.1e} relative");
}

#[test]
fn packed_llama_logits_loss_and_gradients_equal_pytorch_on_separate_documents() {
    check_against_pytorch(&golden("decoder_grads.json")["llama"], Tiny::Llama);
}

#[test]
fn packed_qwen2_logits_loss_and_gradients_equal_pytorch_on_separate_documents() {
    check_against_pytorch(&golden("decoder_grads.json")["qwen2"], Tiny::Qwen2);
}

/// Central differences in the direction of random vectors, one tensor at a time, through a shared-prefix batch.
fn check_finite_differences(kind: Tiny) {
    let params = tiny_random(kind, 3);
    let batch = || {
        PackedBatch::from_branches(&[
            Branches { prefix: &[5, 6, 7, 9, 11], continuations: vec![&[1, 2, 60], &[33], &[8, 8, 4, 2]] },
            Branches { prefix: &[40, 3], continuations: vec![] },
        ])
    };
    let (rows, wanted) = (vec![1, 4, 5, 6, 4, 4, 9, 10, 13], vec![7, 1, 2, 60, 33, 8, 4, 2, 3]);
    let device = Device::cpu(1);
    let loss = |params: &Params| {
        let decoder = Decoder::from_params(params, Dtype::F32, &device);
        let hidden = decoder.hidden(&batch()).expect("the batch fits");
        let found = decoder.token_logps(&hidden, rows.clone(), wanted.clone());
        -found.logps.iter().map(|v| f64::from(*v)).sum::<f64>() / wanted.len() as f64
    };
    let mut grads = Grads::zeros(&params.config);
    let decoder = Decoder::from_params(&params, Dtype::F32, &device);
    loss_and_grads(&decoder, batch(), rows.clone(), wanted.clone(), &mut grads);
    for (i, spec) in params.specs().iter().enumerate() {
        let gradient = grads.tensors()[i].as_f32();
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        // Half along the gradient, so that the slope is large against f32's noise, half random, so that wrong parts show.
        let n = gradient.len();
        let random = fill(&format!("direction {}", spec.hf_name), n);
        let size = (n as f64 / 3.0).sqrt();
        let direction: Vec<f32> = gradient
            .iter()
            .zip(&random)
            .map(|(g, r)| (f64::from(*g) / norm.max(1e-9) + f64::from(*r) / size) as f32)
            .collect();
        let h = 4e-3_f32;
        let at = |sign: f32| {
            let mut moved = params.clone();
            let values = moved.tensors_mut()[i].as_f32_mut();
            values.iter_mut().zip(&direction).for_each(|(v, d)| *v += sign * h * d);
            loss(&moved)
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * f64::from(h));
        let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let error = (slope - expected).abs() / expected.abs().max(0.02);
        assert!(error < 1e-2, "{}: slope {slope}, gradient {expected}", spec.hf_name);
    }
}

#[test]
fn llama_gradients_equal_finite_differences_in_a_shared_prefix_batch() {
    check_finite_differences(Tiny::Llama);
}

#[test]
fn qwen2_gradients_equal_finite_differences_in_a_shared_prefix_batch() {
    check_finite_differences(Tiny::Qwen2);
}

#[test]
fn gradients_of_two_micro_batches_add_to_those_of_the_whole() {
    let params = tiny_random(Tiny::Qwen2, 5);
    let decoder = Decoder::from_params(&params, Dtype::F32, &Device::cpu(2));
    let (a, b): (&[u32], &[u32]) = (&[1, 5, 9, 3, 3], &[8, 2, 60, 7]);
    let run = |batch: PackedBatch, rows: Vec<usize>, wanted: Vec<u32>, grads: &mut Grads| {
        let activations = decoder.forward_train(batch, Keep::All).expect("the batch fits");
        let found = decoder.token_logps(&activations.hidden, rows, wanted);
        let dhidden =
            decoder.token_logps_backward(&activations.hidden, &found, &vec![-0.125; found.logps.len()], grads);
        decoder.backward(activations, &dhidden, grads);
    };
    let (mut whole, mut parts) = (Grads::zeros(&params.config), Grads::zeros(&params.config));
    run(PackedBatch::from_documents(&[a, b]), vec![0, 1, 3, 6, 7], vec![5, 9, 3, 60, 7], &mut whole);
    run(PackedBatch::from_documents(&[a]), vec![0, 1, 3], vec![5, 9, 3], &mut parts);
    run(PackedBatch::from_documents(&[b]), vec![1, 2], vec![60, 7], &mut parts);
    for (spec, (x, y)) in whole.specs().iter().zip(whole.tensors().iter().zip(parts.tensors())) {
        let scale = x.as_f32().iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let worst = x.as_f32().iter().zip(y.as_f32()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5 * scale.max(1e-3), "{}: {worst} of {scale}", spec.hf_name);
    }
}

#[test]
fn refreshed_weights_equal_weights_built_anew() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for kind in [Tiny::Llama, Tiny::Qwen2] {
            let mut decoder = Decoder::from_params(&tiny_random(kind, 1), dtype, &Device::cpu(1));
            let other = tiny_random(kind, 2);
            decoder.refresh(&other);
            let anew = Decoder::from_params(&other, dtype, &Device::cpu(1));
            let batch = PackedBatch::from_documents(&[&[1, 2, 3, 4, 5]]);
            let logits = |d: &Decoder| d.logits(&d.hidden(&batch).expect("the batch fits")).into_f32_vec();
            assert_eq!(logits(&decoder), logits(&anew));
        }
    }
}
