//! Written folders open again with the same numbers; what is missing, repeated, misshapen or not finite is refused.

use super::*;
use crate::ModelSource;
use crate::float::{bf16_to_f32, f32_to_bf16};
use aloe_record::CounterRng;

/// A small Llama: D 8, two heads of 4, one key/value head, F 6, V 10, two layers.
pub(crate) fn tiny(tied: bool) -> Config {
    let value = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 6,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": [2, 3],
        "pad_token_id": 0, "torch_dtype": "float16", "some_key_of_the_source": "kept"
    });
    Config::from_json(&value).unwrap()
}

/// Values of a tensor: normal, with a few subnormals, zeros of both signs and large ones.
pub(crate) fn values(name: &str, n: usize) -> Vec<f32> {
    let mut rng = CounterRng::new(5, name, 0);
    let mut out: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
    for (slot, special) in out.iter_mut().zip([0.0, -0.0, 1e-40, -3.0e38]) {
        *slot = special;
    }
    out
}

fn write_all(mut writer: CheckpointWriter, config: &Config) -> Result<()> {
    // Any order will do: here the reverse.
    for spec in arch::tensors(config).iter().rev() {
        writer.add(&spec.hf_name, &values(&spec.hf_name, spec.n_elements()))?;
    }
    writer.finish(&[("tokenizer.json".into(), b"{}".to_vec())])
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_written_folder_gives_back_every_bit_in_f32_and_the_rounded_bits_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    for (tied, dtype) in [(true, Dtype::F32), (false, Dtype::F32), (true, Dtype::Bf16), (false, Dtype::Bf16)] {
        let (config, target) = (tiny(tied), dir.path().join(format!("{tied}-{dtype:?}")));
        write_all(CheckpointWriter::create(&target, &config, dtype).unwrap(), &config).unwrap();
        let source = ModelSource::open(&target).unwrap();
        source.check_finite().unwrap();
        for spec in source.specs() {
            let expected = values(&spec.hf_name, spec.n_elements());
            let found = source.load_f32(&spec.hf_name).unwrap();
            let rounded: Vec<f32> = expected.iter().map(|value| bf16_to_f32(f32_to_bf16(*value))).collect();
            assert_eq!(bits(&found), bits(if dtype == Dtype::F32 { &expected } else { &rounded }), "{}", spec.hf_name);
            let halves: Vec<u16> = expected.iter().map(|value| f32_to_bf16(*value)).collect();
            assert_eq!(source.load_bf16(&spec.hf_name).unwrap(), halves);
            assert_eq!(source.load(&spec.hf_name, Dtype::Bf16).unwrap().shape(), spec.shape);
        }
    }
}

#[test]
fn the_configs_say_what_was_written_and_keep_the_sources_keys() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("m");
    let config = tiny(true);
    write_all(CheckpointWriter::create(&target, &config, Dtype::Bf16).unwrap(), &config).unwrap();
    let written: Value = aloe_record::atomic::read_json(&target.join("config.json")).unwrap();
    assert_eq!(written["torch_dtype"], "bfloat16");
    assert_eq!(written["architectures"], json!(["LlamaForCausalLM"]));
    assert_eq!(written["some_key_of_the_source"], "kept");
    assert_eq!(written["head_dim"], 4);
    let generation: Value = aloe_record::atomic::read_json(&target.join("generation_config.json")).unwrap();
    assert_eq!(generation["eos_token_id"], json!([2, 3]));
    assert_eq!(generation["pad_token_id"], 0);
    assert_eq!(std::fs::read(target.join("tokenizer.json")).unwrap(), b"{}");
}

#[test]
fn two_writings_are_byte_identical_and_their_digests_do_not_depend_on_sharding() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(false);
    let mut digests = Vec::new();
    for (name, max_shard) in [("a", MAX_SHARD_BYTES), ("b", MAX_SHARD_BYTES), ("sharded", 700)] {
        let target = dir.path().join(name);
        std::fs::create_dir(&target).unwrap();
        let writer = CheckpointWriter::start(target.clone(), None, &config, FileDtype::F32, max_shard).unwrap();
        write_all(writer, &config).unwrap();
        digests.push(ModelSource::open(&target).unwrap().digest().unwrap());
    }
    let read = |name: &str| std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
    assert_eq!(read("a"), read("b"));
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
    let index: Value =
        aloe_record::atomic::read_json(&dir.path().join("sharded/model.safetensors.index.json")).unwrap();
    assert_eq!(index["metadata"]["total_size"], config.n_parameters() * 4);
    // By hand, at most 700 bytes each: embed 320 + q 256 | k 128, v 128, o 256 | gate, up, down 192 each, norms 32 + 32 |
    // q 256, k 128, v 128 | o 256, gate 192, up 192 | down 192, norms 3 x 32, head 320: six shards.
    assert!(dir.path().join("sharded/model-00006-of-00006.safetensors").is_file());
}

#[test]
fn nothing_is_visible_before_the_end_and_a_failure_leaves_the_older_folder() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("m");
    let config = tiny(true);
    write_all(CheckpointWriter::create(&target, &config, Dtype::F32).unwrap(), &config).unwrap();
    let before = std::fs::read(target.join("model.safetensors")).unwrap();
    let mut writer = CheckpointWriter::create(&target, &config, Dtype::Bf16).unwrap();
    writer.add(arch::EMBED, &[1.0; 80]).unwrap();
    let message = writer.finish(&[]).unwrap_err().to_string();
    assert!(message.contains("was never written"), "{message}");
    assert_eq!(std::fs::read(target.join("model.safetensors")).unwrap(), before);
}

#[test]
fn non_finite_misshapen_repeated_and_unknown_tensors_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let writer = |dtype| CheckpointWriter::create(&dir.path().join("m"), &tiny(true), dtype).unwrap();
    let refused = |dtype, name: &str, values: &[f32], expected: &str| {
        let message = writer(dtype).add(name, values).unwrap_err().to_string();
        assert!(message.contains(expected), "expected \"{expected}\" in: {message}");
    };
    let norm = "model.norm.weight";
    refused(Dtype::F32, norm, &[0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0], "model.norm.weight: element 2 is NaN");
    refused(Dtype::F32, norm, &[f32::INFINITY; 8], "element 0 is inf");
    refused(Dtype::Bf16, norm, &[f32::MAX; 8], "beyond the range of bfloat16");
    refused(Dtype::F32, norm, &[0.0; 7], "has 7 elements, expected 8");
    refused(Dtype::F32, "lm_head.weight", &[0.0; 80], "is not a tensor of this config");
    let mut twice = writer(Dtype::F32);
    twice.add(norm, &[1.0; 8]).unwrap();
    assert!(twice.add(norm, &[1.0; 8]).unwrap_err().to_string().contains("written twice"));
    assert!(writer(Dtype::Bf16).add_bf16(norm, &[0x7f80; 8]).is_err());
}

#[test]
fn extra_files_cannot_leave_the_folder_or_replace_weights() {
    for name in ["../x", "/etc/x", "config.json", "model.safetensors", "model.safetensors.index.json", "a/../../x", ""]
    {
        let dir = tempfile::tempdir().unwrap();
        assert!(write_extra(dir.path(), name, b"x").is_err(), "{name}");
    }
}

#[test]
fn a_tensor_written_in_pieces_by_two_threads_equals_one_written_whole_and_a_gap_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(true);
    let (whole, pieces) = (dir.path().join("whole"), dir.path().join("pieces"));
    write_all(CheckpointWriter::create(&whole, &config, Dtype::F32).unwrap(), &config).unwrap();
    let fill = |skip: usize| {
        let mut writer = CheckpointWriter::create_stored(&pieces, &config, FileDtype::F32).unwrap();
        for spec in arch::tensors(&config) {
            let slot = writer.slot(&spec.hf_name).unwrap();
            let values = values(&spec.hf_name, spec.n_elements());
            std::thread::scope(|scope| {
                for (index, piece) in values.chunks(3).enumerate().skip(skip) {
                    let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
                    let slot = &slot;
                    scope.spawn(move || slot.write_at(3 * index, &bytes).unwrap());
                }
            });
            assert!(slot.write_at(spec.n_elements(), &[0; 4]).is_err(), "beyond the tensor");
        }
        writer.finish(&[("tokenizer.json".into(), b"{}".to_vec())])
    };
    fill(0).unwrap();
    assert_eq!(aloe_record::digest::folder(&pieces).unwrap(), aloe_record::digest::folder(&whole).unwrap());
    let error = fill(1).unwrap_err().to_string();
    assert!(error.contains("bytes written"), "{error}");
}

#[test]
fn a_folder_of_half_floats_says_so_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiny(true);
    let mut writer = CheckpointWriter::create_stored(dir.path(), &config, FileDtype::F16).unwrap();
    for spec in arch::tensors(&config) {
        // 1.5 as f16 is 0x3e00.
        let bytes: Vec<u8> = std::iter::repeat_n([0x00, 0x3e], spec.n_elements()).flatten().collect();
        writer.slot(&spec.hf_name).unwrap().write_at(0, &bytes).unwrap();
    }
    assert!(writer.add("model.norm.weight", &[0.0; 8]).is_err());
    writer.finish(&[]).unwrap();
    let written: Value = aloe_record::atomic::read_json(&dir.path().join("config.json")).unwrap();
    assert_eq!(written["torch_dtype"], "float16");
    assert_eq!(ModelSource::open(dir.path()).unwrap().load_f32("model.norm.weight").unwrap(), [1.5; 8]);
    assert!(CheckpointWriter::create_stored(dir.path(), &config, FileDtype::I8).is_err());
}
