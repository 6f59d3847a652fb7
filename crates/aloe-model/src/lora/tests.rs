//! Updates in a whole decoder: what they compute, what merging them gives, their gradients, and their folders.

use super::*;
use crate::testing::{Tiny, fill, tiny_config, tiny_random};
use crate::{CheckpointWriter, Decoder, Error, Grads, Keep, PackedBatch};
use aloe_tensor::Device;

fn shape(targets: &[Part], embeddings: bool) -> LoraShape {
    LoraShape { rank: 3, alpha: 4.5, targets: targets.to_vec(), embeddings }
}

fn all() -> Vec<Part> {
    LORA_TARGETS.into_iter().map(|(_, part)| part).collect()
}

/// Trained masters: a B that is not zero.
fn masters(base: &Params, shape: &LoraShape) -> Params {
    let whole = |spec: &TensorSpec| Ok(base.role(spec.role).unwrap().clone());
    let mut masters = shape.masters(&base.config, 3, whole).unwrap();
    let names: Vec<String> = masters.specs().iter().map(|spec| spec.hf_name.clone()).collect();
    for (name, tensor) in names.iter().zip(masters.tensors_mut()) {
        let values = fill(&format!("lora {name}"), tensor.len());
        tensor.as_f32_mut().iter_mut().zip(values).for_each(|(value, add)| *value += 0.1 * add);
    }
    masters
}

fn adapted(base: &Params, shape: &LoraShape, masters: &Params) -> Decoder {
    let mut decoder = Decoder::from_params(base, Dtype::F32, &Device::cpu(2));
    decoder.attach_lora(shape, masters, &|_| None);
    decoder
}

fn batch() -> PackedBatch {
    let ids = |name: &str, n| -> Vec<u32> { fill(name, n).iter().map(|value| ((value + 1.0) * 32.0) as u32).collect() };
    PackedBatch::from_documents(&[&ids("one", 13), &ids("two", 6)])
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    decoder.logits(&decoder.hidden(&batch()).unwrap()).to_f32_vec()
}

/// The base with the updates added to its weights.
fn merged(base: &Params, shape: &LoraShape, masters: &Params) -> Params {
    Params::from_fn(&base.config, |spec| shape.merged(masters, spec, base.role(spec.role).unwrap().clone()).unwrap())
}

#[test]
fn base_with_adapter_and_merged_model_have_the_same_logits() {
    for kind in [Tiny::Llama, Tiny::Qwen2] {
        for (targets, embeddings) in [(all(), false), (vec![Part::Query, Part::Down], true), (all(), true)] {
            let (base, shape) = (tiny_random(kind, 0), shape(&targets, embeddings));
            let masters = masters(&base, &shape);
            let found = logits(&adapted(&base, &shape, &masters));
            let whole = Decoder::from_params(&merged(&base, &shape, &masters), Dtype::F32, &Device::cpu(2));
            let expected = logits(&whole);
            let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let size = expected.iter().map(|value| value.abs()).fold(0.0, f32::max);
            assert!(error < 1e-5 * size, "{kind:?} {targets:?}: {error:e} of {size}");
            let start = logits(&Decoder::from_params(&base, Dtype::F32, &Device::cpu(2)));
            assert!(found.iter().zip(&start).any(|(a, b)| (a - b).abs() > 1e-2 * size), "the updates change nothing");
        }
    }
}

#[test]
fn an_update_at_its_start_changes_no_bit_and_is_uniform_within_pefts_bound() {
    let (base, shape) = (tiny_random(Tiny::Llama, 0), shape(&all(), false));
    let start = shape.masters(&base.config, 5, |_| unreachable!()).unwrap();
    assert_eq!(
        logits(&adapted(&base, &shape, &start)),
        logits(&Decoder::from_params(&base, Dtype::F32, &Device::cpu(2)))
    );
    for (spec, tensor) in start.specs().iter().zip(start.tensors()) {
        let (n, bound) = (tensor.len() as f64, 1.0 / (spec.shape[1] as f64).sqrt());
        let squares = tensor.as_f32().iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / n;
        match spec.role {
            Role::LoraA(..) => {
                assert!(tensor.as_f32().iter().all(|value| f64::from(value.abs()) <= bound));
                // The variance of a uniform distribution is bound^2 / 3; that of its square, 4/45 bound^4.
                let sigma = bound.powi(2) * (4.0 / 45.0 / n).sqrt();
                assert!((squares - bound.powi(2) / 3.0).abs() < 5.0 * sigma, "{}", spec.hf_name);
            }
            _ => assert_eq!(squares, 0.0),
        }
    }
    assert_eq!(start.specs().len(), 2 * 7 * 2);
}

/// Mean log-probability of the batch's own next tokens.
fn objective(decoder: &Decoder) -> f64 {
    let (rows, targets) = targets();
    let found = decoder.token_logps(&decoder.hidden(&batch()).unwrap(), rows, targets);
    found.logps.iter().map(|logp| f64::from(*logp)).sum::<f64>() / found.logps.len() as f64
}

fn targets() -> (Vec<usize>, Vec<u32>) {
    let ids = batch().ids;
    (0..ids.len() - 1).filter(|&row| row != 12).map(|row| (row, ids[row + 1])).unzip()
}

fn gradients(decoder: &Decoder, masters: &Params) -> Grads {
    let mut grads = Grads::of(masters);
    let activations = decoder.forward_train(batch(), Keep::All).unwrap();
    let (rows, targets) = targets();
    let n = rows.len();
    let found = decoder.token_logps(&activations.hidden, rows, targets);
    let dhidden = decoder.token_logps_backward(&activations.hidden, &found, &vec![1.0 / n as f32; n], &mut grads);
    decoder.backward(activations, &dhidden, &mut grads);
    grads
}

#[test]
fn the_gradient_of_every_trained_tensor_agrees_with_a_difference_along_it() {
    for kind in [Tiny::Llama, Tiny::Qwen2] {
        let (base, shape) = (tiny_random(kind, 0), shape(&all(), true));
        let masters = masters(&base, &shape);
        let grads = gradients(&adapted(&base, &shape, &masters), &masters);
        assert_eq!(grads.specs(), masters.specs());
        for (at, (spec, grad)) in grads.specs().iter().zip(grads.tensors()).enumerate() {
            // Along the gradient the objective rises by the gradient's square norm; both sides, so the error is of third order.
            let square: f64 = grad.as_f32().iter().map(|g| f64::from(*g).powi(2)).sum();
            let step = 2e-3 / square.sqrt();
            let value = |sign: f64| {
                let mut moved = masters.clone();
                let tensor = moved.tensors_mut()[at].as_f32_mut();
                tensor.iter_mut().zip(grad.as_f32()).for_each(|(v, g)| *v += (sign * step) as f32 * g);
                objective(&adapted(&base, &shape, &moved))
            };
            let found = (value(1.0) - value(-1.0)) / (2.0 * step);
            // The objective's f32 rounding, 1e-7, over a rise of about 2e-3 times the gradient's norm.
            assert!(
                (found - square).abs() < 5e-3 * square + 2e-4 * square.sqrt(),
                "{kind:?} {}: {found} {square}",
                spec.hf_name
            );
        }
    }
}

#[test]
fn gradients_of_what_is_trained_do_not_depend_on_what_else_is_trained() {
    let base = tiny_random(Tiny::Llama, 0);
    let (few, shape) = (shape(&[Part::Value, Part::Up], true), shape(&[Part::Value, Part::Up], false));
    let masters = masters(&base, &few);
    let decoder = adapted(&base, &few, &masters);
    let (with_embeddings, whole) = (gradients(&decoder, &masters), gradients(&decoder, &base));
    let updates = gradients(&decoder, &shape.masters(&base.config, 0, |_| unreachable!()).unwrap());
    for (spec, found) in with_embeddings.specs().iter().zip(with_embeddings.tensors()) {
        let other = whole.get(&spec.hf_name).or(updates.get(&spec.hf_name)).unwrap();
        assert_eq!(found.as_f32(), other.as_f32(), "{}", spec.hf_name);
        assert!(found.as_f32().iter().any(|value| *value != 0.0), "{}", spec.hf_name);
    }
}

#[test]
fn an_adapter_folder_reads_back_as_the_same_updates_and_is_bound_to_its_base() {
    for (kind, embeddings) in [(Tiny::Llama, false), (Tiny::Llama, true), (Tiny::Qwen2, true)] {
        let dir = tempfile::tempdir().unwrap();
        let (base, shape) = (tiny_random(kind, 0), shape(&all(), embeddings));
        let masters = masters(&base, &shape);
        let folder = dir.path().join("adapter");
        write_adapter(&folder, &shape, 0.0, &masters, "base", "0123").unwrap();
        let adapter = LoraAdapter::open(&folder).unwrap();
        adapter.check(base.specs()).unwrap();
        assert_eq!(adapter.base_digest(), Some("0123"));
        for spec in base.specs() {
            let expected = shape.merged(&masters, spec, base.role(spec.role).unwrap().clone()).unwrap();
            let mut found = base.role(spec.role).unwrap().to_f32_vec();
            if let Some(delta) = adapter.delta(spec).unwrap() {
                delta.add(0, &mut found);
            }
            match adapter.replacement(spec) {
                Some(_) => assert!(matches!(spec.role, Role::Embed | Role::Head) && embeddings),
                None => assert_eq!(found, expected.as_f32(), "{}", spec.hf_name),
            }
        }
        let other = tiny_config(if kind == Tiny::Llama { Tiny::Qwen2 } else { Tiny::Llama });
        let error = adapter.check(&arch::tensors(&other)).unwrap_err().to_string();
        assert!(error.contains("adapter_model.safetensors"), "{error}");
    }
}

/// A folder with the tiny Llama's weights, of which `change` may change the embedding and head.
fn folder(dir: &std::path::Path, change: impl Fn(&str, &mut [f32])) -> ModelSource {
    let params = tiny_random(Tiny::Llama, 0);
    let mut writer = CheckpointWriter::create(dir, &params.config, Dtype::F32).unwrap();
    for (spec, tensor) in params.specs().iter().zip(params.tensors()) {
        let mut values = tensor.to_f32_vec();
        change(&spec.hf_name, &mut values);
        writer.add(&spec.hf_name, &values).unwrap();
    }
    writer.finish(&[]).unwrap();
    ModelSource::open(dir).unwrap()
}

#[test]
fn rows_near_zero_and_rows_that_equal_another_are_untrained_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let source = folder(dir.path(), |name, values| match name {
        arch::EMBED => values[7 * 64..8 * 64].iter_mut().for_each(|value| *value *= 1e-3),
        arch::HEAD => values.copy_within(60 * 64..61 * 64, 9 * 64),
        _ => {}
    });
    let find = |read: &[u32], predicted: &[u32]| {
        untrained_rows(&source, &read.iter().copied().collect(), &predicted.iter().copied().collect()).unwrap()
    };
    let found = find(&[5, 7, 9], &[5, 7, 9]);
    let names: Vec<(u32, &str)> = found.iter().map(|row| (row.id, row.tensor.as_str())).collect();
    assert_eq!(names, [(7, arch::EMBED), (9, arch::HEAD)]);
    assert!(found[1].reason.contains("row 60"), "{}", found[1].reason);
    // The twin is as untrained as the row asked for.
    assert_eq!(find(&[60], &[60]).len(), 1);
    assert!(find(&[0, 1, 2, 63], &[0, 1, 2, 63]).is_empty());
    assert!(find(&[9, 60], &[7]).is_empty(), "a row of the head matters to what is predicted alone");
}

#[test]
fn a_folder_that_holds_an_adapter_as_a_pickle_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("adapter_model.bin"), b"x").unwrap();
    let Err(Error::File { reason, .. }) = LoraAdapter::open(dir.path()) else { panic!("opened") };
    assert!(reason.contains("pickle"));
}
