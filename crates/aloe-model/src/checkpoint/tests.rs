//! Folders whose files, index and config disagree.

use super::*;
use crate::writer::tests::{tiny, values};
use aloe_record::atomic::write_json;
use serde_json::json;

/// A file with tensors of the given names, types and shapes, its bytes made from the f32 values of [`values`].
fn write_file(path: &Path, tensors: &[(&str, &str, Vec<usize>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape) in tensors {
        let begin = data.len();
        for value in values(name, shape.iter().product()) {
            match *dtype {
                "F32" => data.extend(value.to_le_bytes()),
                "BF16" => data.extend(crate::float::f32_to_bf16(value).to_le_bytes()),
                // 1.5 in IEEE half.
                "F16" => data.extend(0x3e00u16.to_le_bytes()),
                _ => data.push(0),
            }
        }
        header.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let bytes = [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), &data].concat();
    std::fs::write(path, bytes).unwrap();
}

type Tensors = Vec<(String, &'static str, Vec<usize>)>;

fn tensors(tied: bool, dtype: &'static str) -> Tensors {
    arch::tensors(&tiny(tied)).into_iter().map(|spec| (spec.hf_name, dtype, spec.shape)).collect()
}

fn borrowed(tensors: &Tensors) -> Vec<(&str, &str, Vec<usize>)> {
    tensors.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.clone())).collect()
}

/// A folder of the small model after `damage` to its list of tensors.
fn folder(tied: bool, damage: impl FnOnce(&mut Tensors)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_json(&dir.path().join("config.json"), &tiny(tied).to_json()).unwrap();
    let mut list = tensors(tied, "F32");
    damage(&mut list);
    write_file(&dir.path().join("model.safetensors"), &borrowed(&list));
    dir
}

fn refused(dir: &Path, expected: &str) {
    let message = Checkpoint::open(dir).err().map_or("was accepted".into(), |error| error.to_string());
    assert!(message.contains(expected), "expected \"{expected}\" in: {message}");
}

#[test]
fn all_three_weight_types_load_as_f32_and_as_bf16() {
    for dtype in ["F32", "BF16", "F16"] {
        let dir = folder(true, |list| list.iter_mut().for_each(|entry| entry.1 = dtype));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let (name, n) = ("model.layers.1.mlp.up_proj.weight", 48);
        let exact = values(name, n);
        let halves: Vec<u16> = exact.iter().map(|value| crate::float::f32_to_bf16(*value)).collect();
        let (found, rounded) = (checkpoint.load_f32(name).unwrap(), checkpoint.load_bf16(name).unwrap());
        match dtype {
            "F32" => assert_eq!((found, rounded), (exact, halves)),
            "BF16" => {
                assert_eq!((found, &rounded), (halves.iter().map(|b| crate::float::bf16_to_f32(*b)).collect(), &halves))
            }
            _ => assert_eq!((found, rounded), (vec![1.5; n], vec![0x3fc0; n])),
        }
    }
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_named() {
    refused(
        folder(true, |list| drop(list.remove(3))).path(),
        "1 of 20 tensors are missing: model.layers.0.self_attn.v_proj.weight",
    );
    refused(folder(true, |list| list.clear()).path(), "20 of 20 tensors are missing");
    let extra = |name: &str| folder(true, |list| list.push((name.into(), "F32", vec![4])));
    refused(
        extra("model.layers.2.mlp.up_proj.weight").path(),
        "do not belong to a llama of this config: model.layers.2",
    );
    refused(extra("model.layers.0.self_attn.q_proj.bias").path(), "q_proj.bias");
    refused(folder(true, |list| list[0].2 = vec![8, 10]).path(), "has shape [8, 10], the config expects [10, 8]");
    refused(folder(true, |list| list[0].1 = "I8").path(), "dtype I8 is not supported");
    assert!(Checkpoint::open(extra("model.layers.0.self_attn.rotary_emb.inv_freq").path()).is_ok());
}

#[test]
fn a_tied_head_that_is_stored_must_be_the_embedding() {
    let with_head = |name: &'static str| {
        let dir = folder(true, |_| {});
        let mut list = tensors(true, "F32");
        list.push((HEAD.into(), "F32", vec![10, 8]));
        write_file(&dir.path().join("model.safetensors"), &borrowed(&list));
        if name == "same" {
            // The same values under both names: the generator is keyed by name, so the bytes are copied by hand.
            let path = dir.path().join("model.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            let file = SafeTensorsFile::open(&path).unwrap();
            let embed = file.bytes(EMBED).unwrap().to_vec();
            let at = bytes.len() - embed.len();
            drop(file);
            bytes[at..].copy_from_slice(&embed);
            std::fs::write(&path, bytes).unwrap();
        }
        dir
    };
    assert!(Checkpoint::open(with_head("same").path()).is_ok());
    refused(with_head("other").path(), "tie_word_embeddings = true");
    refused(folder(false, |list| drop(list.pop())).path(), "1 of 21 tensors are missing: lm_head.weight");
}

/// The small model in two shards, after `damage` to the index.
fn sharded(damage: impl FnOnce(&Path, &mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_json(&dir.path().join("config.json"), &tiny(true).to_json()).unwrap();
    let list = tensors(true, "F32");
    let (first, second) = list.split_at(7);
    let mut map = serde_json::Map::new();
    for (name, part) in [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)] {
        write_file(&dir.path().join(name), &borrowed(&part.to_vec()));
        map.extend(part.iter().map(|(tensor, ..)| (tensor.clone(), json!(name))));
    }
    let mut index = json!({"metadata": {}, "weight_map": map});
    damage(dir.path(), &mut index);
    write_json(&dir.path().join("model.safetensors.index.json"), &index).unwrap();
    dir
}

#[test]
fn shards_are_checked_against_their_index() {
    let ok = sharded(|_, _| {});
    assert_eq!(Checkpoint::open(ok.path()).unwrap().load_f32("model.norm.weight").unwrap().len(), 8);
    let lost = |name: &'static str| sharded(move |dir, _| std::fs::remove_file(dir.join(name)).unwrap());
    refused(lost("model-00002-of-00002.safetensors").path(), "model-00002-of-00002.safetensors: is missing");
    let with = |key: &'static str, value: Value| sharded(move |_, index| index["weight_map"][key] = value);
    refused(with("ghost", json!("model-00001-of-00002.safetensors")).path(), "tensor ghost: is listed, but");
    refused(with("model.norm.weight", json!("model-00001-of-00002.safetensors")).path(), "places it in");
    refused(with(EMBED, json!(7)).path(), "is not a string");
    let unlisted =
        sharded(|_, index| drop(index["weight_map"].as_object_mut().unwrap().shift_remove("model.norm.weight")));
    refused(unlisted.path(), "model.norm.weight: is not in the index");
    for evil in ["../model-00001-of-00002.safetensors", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "model\0"] {
        refused(with("ghost", json!(evil)).path(), "is not a file name of this folder");
    }
    refused(sharded(|_, index| *index = json!({})).path(), "has no weight_map");
}

#[test]
fn folders_without_weights_say_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), "config.json");
    write_json(&dir.path().join("config.json"), &tiny(true).to_json()).unwrap();
    refused(dir.path(), "holds no model.safetensors");
    std::fs::write(dir.path().join("pytorch_model.bin"), b"\x80\x02}q\x00.").unwrap();
    refused(dir.path(), "pytorch_model.bin is a Python pickle");
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    refused(dir.path(), "config.json");
    assert!(crate::ModelSource::open(&dir.path().join("nowhere")).is_err());
}

#[test]
fn the_reference_readers_file_of_stories260k_opens() {
    let root = std::env::var_os("ALOE_DATA").map(|root| PathBuf::from(root).join("models/stories260K"));
    let Some(dir) = root.filter(|dir| dir.is_dir()) else {
        assert!(std::env::var("ALOE_REQUIRE").map_or(true, |value| value != "1"), "stories260K is not in ALOE_DATA");
        println!("not run: stories260K is not in ALOE_DATA");
        return;
    };
    let source = crate::ModelSource::open(&dir).unwrap();
    assert_eq!(source.config().hidden_size, 64);
    source.check_finite().unwrap();
}
