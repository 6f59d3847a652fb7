//! Digests of pieces that come in any order, against those of all bytes at once; and whole merges, whose files have the digests that reading
//! them gives.

use super::*;
use crate::MergeConfig;
use crate::merge::merge_folder;
use aloe_model::Config;
use aloe_record::{Cancel, Progress, digest};
use serde_json::json;

fn bytes(n: usize) -> Vec<u8> {
    (0..n as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// The file on the disk holds zeros where bytes are brought: a digest of the brought bytes was not read from it.
#[test]
fn pieces_brought_by_several_threads_are_hashed_without_reading_the_file_and_what_nobody_brings_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights");
    let all = bytes(1_000_003);
    let tensors = [1_000..400_000u64, 400_000..900_001];
    let mut stored = all.clone();
    tensors.iter().for_each(|tensor| stored[tensor.start as usize..tensor.end as usize].fill(0));
    std::fs::write(&path, &stored).unwrap();
    let file = Arc::new(HashedFile::new(&path, all.len() as u64, 1 << 20, None).unwrap());
    tensors.iter().for_each(|tensor| file.expect(tensor));
    file.catch_up().unwrap();
    for tensor in &tensors {
        file.begin(tensor);
        let starts: Vec<u64> = (tensor.start..tensor.end).step_by(10_007).collect();
        run(3, starts, |start| {
            let range = start..(start + 10_007).min(tensor.end);
            // Every piece twice, as a method that looks twice at its base.
            for _ in 0..2 {
                if file.wants(&range) {
                    hold(&file, range.start, all[range.start as usize..range.end as usize].to_vec());
                }
            }
            deliver(3, Vec::new());
            Ok(())
        })
        .unwrap();
        end([(file.clone(), tensor.clone())].iter());
        let n_behind = locked(&file.order).n_behind();
        assert_eq!(n_behind, if tensor.end == 900_001 { 100_002 } else { 0 });
    }
    file.catch_up().unwrap();
    assert_eq!(file.n_waiting.load(Ordering::Relaxed), 0);
    assert_eq!(locked(&file.order).sha.clone().hex(), digest::bytes(&all));
}

/// Budgets that end inside a piece, pieces of other lengths in each file, two tensors: what is put back is taken up again, and what a tensor leaves waiting
/// is hashed beside the next one. The files hold zeros: nothing is read from them.
#[test]
fn hashing_that_stops_inside_a_piece_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    let all = bytes(60_000);
    let tensors = [0..25_013u64, 25_013..60_000];
    for budget in [1, 63, 64, 10_006] {
        let files: Vec<Arc<HashedFile>> = (0..3)
            .map(|at| {
                let path = dir.path().join(at.to_string());
                std::fs::write(&path, vec![0; all.len()]).unwrap();
                let file = HashedFile::new(&path, all.len() as u64, 1 << 20, None).unwrap();
                tensors.iter().for_each(|tensor| file.expect(tensor));
                Arc::new(file)
            })
            .collect();
        for tensor in &tensors {
            files.iter().for_each(|file| file.begin(tensor));
            for (at, file) in files.iter().enumerate() {
                let step = [1_000, 777, 20_000][at];
                for start in (tensor.start..tensor.end).step_by(step) {
                    let range = start..(start + step as u64).min(tensor.end);
                    assert!(file.wants(&range));
                    let bytes = Arc::new(all[range.start as usize..range.end as usize].to_vec());
                    file.bring(Piece { at: start, bytes });
                }
            }
            let open: Vec<&HashedFile> = files.iter().map(Arc::as_ref).collect();
            for _ in 0..7 {
                try_hash(&open, budget);
            }
            let hashed = locked(&files[0].order).sha.n_bytes();
            assert!(hashed >= (7 * budget as u64).min(tensor.end), "{budget}: {hashed}");
            let places: Vec<Place> = files.iter().map(|file| (file.clone(), tensor.clone())).collect();
            assert_eq!(end(places.iter()).len(), if budget == 10_006 && hashed == tensor.end { 0 } else { 3 });
        }
        for file in files {
            file.catch_up().unwrap();
            assert_eq!(locked(&file.order).sha.clone().hex(), digest::bytes(&all), "{budget}");
            assert_eq!(file.n_waiting.load(Ordering::Relaxed), 0);
        }
    }
}

/// A hole in what is brought: no more than the bound waits, and the file gives the rest.
#[test]
fn what_comes_too_early_waits_within_its_bound_and_is_then_read_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights");
    let all = bytes(300_000);
    std::fs::write(&path, &all).unwrap();
    let file = Arc::new(HashedFile::new(&path, all.len() as u64, 20_000, None).unwrap());
    let tensor = 0..300_000u64;
    file.expect(&tensor);
    file.begin(&tensor);
    for start in (1..300_000).step_by(9_000) {
        let range = start..(start + 9_000).min(300_000);
        if file.wants(&range) {
            hold(&file, range.start, all[range.start as usize..range.end as usize].to_vec());
            deliver(1, Vec::new());
        }
        assert!(file.n_waiting.load(Ordering::Relaxed) <= 20_000);
    }
    assert!(!file.wants(&(0..1)), "given up");
    end([(file.clone(), tensor)].iter());
    assert_eq!(locked(&file.order).n_behind(), 300_000);
    file.catch_up().unwrap();
    assert_eq!(locked(&file.order).sha.clone().hex(), digest::bytes(&all));
}

const N_LAYERS: usize = 3;

/// A model whose file holds its tensors in this order and one that no merge reads.
fn write_model(dir: &Path, seed: u32, alphabetical: bool, dtype: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 300,
        "num_hidden_layers": N_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 9_001,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let specs = aloe_model::arch::tensors(&Config::from_json(&config).unwrap());
    let mut tensors: Vec<(String, Vec<usize>)> = specs.into_iter().map(|spec| (spec.hf_name, spec.shape)).collect();
    if alphabetical {
        tensors.sort();
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let begin = data.len();
        for at in 0..shape.iter().product::<usize>() as u32 {
            let hash = at.wrapping_mul(0x9e37_79b9).wrapping_add(seed.wrapping_mul(0x85eb_ca6b)) ^ name.len() as u32;
            let value = (f32::from((hash >> 17) as u16) - 16384.0) / 65536.0;
            match dtype {
                "F32" => data.extend_from_slice(&value.to_le_bytes()),
                _ => data.extend_from_slice(&aloe_model::float::f32_to_bf16(value).to_le_bytes()),
            }
        }
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let file = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
}

fn stamp(path: &Path) -> Stamp {
    Stamp::of(path).unwrap()
}

/// Merges and compares every digest that was told with that of the file's bytes; the result's digest.
fn check(dir: &Path, yaml: &str, threads: usize, hashed_models: &[&str]) -> String {
    let weights = |name: &str| dir.join(name).join("model.safetensors");
    // Other files to the process than before: what it knows of them is of no use.
    for name in hashed_models {
        let copy = dir.join("copy");
        std::fs::copy(weights(name), &copy).unwrap();
        std::fs::rename(&copy, weights(name)).unwrap();
    }
    let options = MergeOptions {
        threads,
        hashed: true,
        write_master: true,
        hash_inputs: hashed_models.iter().map(|name| stamp(&weights(name)).inode()).collect(),
        folders: ["base", "a", "b"].map(|name| (name.to_owned(), dir.join(name))).into_iter().collect(),
        ..MergeOptions::default()
    };
    let config = MergeConfig::parse(yaml, Path::new("merge.yml")).unwrap();
    let out = dir.join("out");
    std::fs::remove_dir_all(&out).ok();
    merge_folder(&config, &out, &options, &Progress::silent(), &Cancel::default()).unwrap();
    let outputs = ["out/model", "out/master"];
    for name in hashed_models.iter().chain(&outputs) {
        let told = hashed::remembered(&stamp(&weights(name))).unwrap_or_else(|| panic!("{name} was not hashed"));
        assert_eq!(told, digest::file(&weights(name)).unwrap(), "{name}, {threads} threads, {yaml}");
    }
    digest::file(&weights("out/model")).unwrap()
}

/// Files in table order and in the alphabetical one of Hugging Face, both types; methods that read the whole before, frankenmerges that read
/// some layers twice and others never; one thread and more.
#[test]
fn the_files_of_a_merge_have_the_digests_of_their_bytes_in_any_order_and_the_result_does_not_depend_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let models = "models: [{model: a, parameters: {weight: 0.4, density: 0.5}}, {model: b, parameters: {weight: 0.6, density: 0.3}}]\n";
    let based = |method: &str| format!("{models}base_model: base\nmerge_method: {method}\ndtype: bfloat16\n");
    let slerp = "models: [{model: base}, {model: a}]\nbase_model: base\nmerge_method: slerp\nparameters: {t: 0.4}\ndtype: float32\n";
    let franken = "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources: [{model: b, layer_range: [1, 2]}]\n\
                   - sources: [{model: a, layer_range: [1, 3]}]\ndtype: float32\n";
    let cases = [
        (based("dare_ties"), &["base", "a", "b"][..]),
        (based("ties"), &["base", "a", "b"]),
        (
            format!(
                "{}merge_method: linear\ndtype: bfloat16\n",
                models.replace(", density: 0.5", "").replace(", density: 0.3", "")
            ),
            &["a", "b"],
        ),
        (slerp.to_owned(), &["base", "a"]),
        (franken.to_owned(), &["a", "b"]),
    ];
    for (yaml, all) in cases {
        let mut results = Vec::new();
        for alphabetical in [[false; 3], [true; 3], [true, false, true]] {
            for (at, name) in ["base", "a", "b"].into_iter().enumerate() {
                write_model(&path.join(name), at as u32, alphabetical[at], if name == "b" { "F32" } else { "BF16" });
            }
            for threads in [1, 3] {
                results.push(check(path, &yaml, threads, all));
                results.push(check(path, &yaml, threads, &all[1..]));
            }
        }
        assert!(results.iter().all(|result| *result == results[0]), "{yaml}");
    }
}

#[test]
fn an_input_that_is_written_to_while_it_is_merged_is_refused_and_its_digest_is_not_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights");
    std::fs::write(&path, bytes(100)).unwrap();
    let before = Stamp::settled(&path).unwrap();
    let file = Arc::new(HashedFile::new(&path, 100, 0, Some(before)).unwrap());
    let hashing = Hashing { inputs: vec![file], threads: 1, ..Hashing::default() };
    hashing.catch_up().unwrap();
    std::fs::write(&path, bytes(101)).unwrap();
    let error = hashing.finish().unwrap_err().to_string();
    assert!(error.contains("weights was changed while it was merged"), "{error}");
    assert!(hashed::remembered(&stamp(&path)).is_none());
}
