//! Models in several files, with tensors of different types in one model, as input and as output.

use super::*;
use aloe_model::{SafeTensorsFile, TensorSpec};
use aloe_record::hashed;
use aloe_record::stamp::Stamp;

/// Whether a tensor is stored in bfloat16: every second one.
fn is_half(at: usize) -> bool {
    at % 2 == 1
}

/// Writes a file of the safetensors format by hand: the length of the header, the header, the bytes of the tensors.
fn write_file(path: &Path, model: &str, tensors: &[(usize, TensorSpec)]) {
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (at, spec) in tensors {
        let start = bytes.len();
        for value in value(model, &spec.hf_name, spec.n_elements()) {
            let half = (crate::tile::round_bf16(value).to_bits() >> 16) as u16;
            match is_half(*at) {
                true => bytes.extend(half.to_le_bytes()),
                false => bytes.extend(value.to_le_bytes()),
            }
        }
        let dtype = if is_half(*at) { "BF16" } else { "F32" };
        let entry = json!({"dtype": dtype, "shape": spec.shape, "data_offsets": [start, bytes.len()]});
        header.insert(spec.hf_name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], &header, &bytes].concat()).unwrap();
}

/// A model in `n_files` files; tensor i of the table stands in file i modulo their number, so that neighbours are apart.
fn write_sharded(dir: &Path, model: &str, n_files: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let config = config_json(64, false);
    put(dir, "config.json", config.to_string());
    let specs = aloe_model::arch::tensors(&Config::from_json(&config).unwrap());
    let mut index = serde_json::Map::new();
    for file in 0..n_files {
        let name = match n_files {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n_files:05}.safetensors", file + 1),
        };
        let of_file: Vec<(usize, TensorSpec)> =
            specs.iter().cloned().enumerate().filter(|(at, _)| at % n_files == file).collect();
        of_file.iter().for_each(|(_, spec)| drop(index.insert(spec.hf_name.clone(), json!(name))));
        write_file(&dir.join(name), model, &of_file);
    }
    if n_files > 1 {
        put(dir, "model.safetensors.index.json", json!({"metadata": {}, "weight_map": index}).to_string());
    }
}

/// The bytes of every tensor that the index names in the file that it names, as a program reads them that knows only the index.
fn by_index(dir: &Path) -> Vec<(String, String)> {
    let index: serde_json::Value = atomic::read_json(&dir.join("model.safetensors.index.json")).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let mut total = 0;
    let mut found: Vec<(String, String)> = map
        .iter()
        .map(|(tensor, file)| {
            let file = SafeTensorsFile::open(&dir.join(file.as_str().unwrap())).unwrap();
            let bytes = file.bytes(tensor).unwrap();
            total += bytes.len();
            (tensor.clone(), aloe_record::digest::bytes(bytes))
        })
        .collect();
    found.sort();
    assert_eq!(index["metadata"]["total_size"], total);
    found
}

/// Digests of the tensors of a folder with one file.
fn whole(dir: &Path) -> Vec<(String, String)> {
    let file = SafeTensorsFile::open(&dir.join("model.safetensors")).unwrap();
    let mut found: Vec<(String, String)> = (file.names().iter())
        .map(|name| ((*name).to_owned(), aloe_record::digest::bytes(file.bytes(name).unwrap())))
        .collect();
    found.sort();
    found
}

#[test]
fn one_file_or_three_of_mixed_types_in_and_any_number_out_give_the_same_bytes() {
    let (dir, mut options) = models();
    for model in ["base", "a", "b"] {
        for n_files in [1, 3] {
            write_sharded(&dir.path().join(format!("{model}{n_files}")), model, n_files);
        }
    }
    let text = "models:\n- {model: a, parameters: {weight: 0.4, density: 0.5}}\n- {model: b, parameters: {weight: 0.6, density: 0.3}}\n\
                base_model: base\nmerge_method: METHOD\n";
    for method in ["ties", "dare_ties", "task_arithmetic"] {
        let text = text.replace("METHOD", method);
        let mut expected = None;
        for (n_files, threads) in [(1, 1), (3, 1), (3, 3)] {
            for model in ["base", "a", "b"] {
                options.folders.insert(model.into(), dir.path().join(format!("{model}{n_files}")));
            }
            (options.threads, options.max_shard_bytes, options.hashed) = (threads, u64::MAX, false);
            let config = parse(&text).unwrap();
            assert_eq!(plan(&config, &options).unwrap().dtype, MergeDtype::Float32, "the widest of the inputs");
            let out = dir.path().join("out");
            run(&text, &out, &options).unwrap();
            let found = whole(&out.join("model"));
            assert_eq!(&found, expected.get_or_insert_with(|| found.clone()), "{method} {n_files} {threads}");

            // Files of at most 30 kB: the largest tensor has 8,192 bytes, all of them 90,752.
            (options.max_shard_bytes, options.hashed) = (30_000, true);
            let sharded = dir.path().join(format!("sharded-{method}-{n_files}-{threads}"));
            run(&text, &sharded, &options).unwrap();
            let model = sharded.join("model");
            assert_eq!(Some(&by_index(&model)), expected.as_ref(), "{method} {n_files} {threads}");
            let shards: Vec<PathBuf> = (std::fs::read_dir(&model).unwrap().flatten())
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
                .collect();
            assert!(shards.len() >= 4 && !model.join("model.safetensors").exists(), "{shards:?}");
            for shard in &shards {
                assert!(shard.metadata().unwrap().len() < 34_000, "{shard:?}");
                let stamp = Stamp::of(shard).unwrap();
                let told = hashed::remembered(&stamp).unwrap_or_else(|| panic!("{shard:?} was not hashed"));
                assert_eq!(told, aloe_record::digest::file(shard).unwrap(), "{shard:?}");
            }
            assert_eq!(load(&model), load(&out.join("model")), "our own loader");
        }
    }
}
