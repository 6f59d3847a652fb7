//! Against mergekit's outputs of `oracles/mergekit_methods.py`: every deterministic method, and configurations of its documentation.

use super::*;
use aloe_model::SafeTensorsFile;

const LAYERS: usize = 4;

fn config(vocab_size: usize) -> Config {
    let mut json = config_json(vocab_size, false);
    json["num_hidden_layers"] = json!(LAYERS);
    Config::from_json(&json).unwrap()
}

fn write(dir: &Path, model: &str, vocab_size: usize) {
    let config = config(vocab_size);
    let mut writer = CheckpointWriter::create(dir, &config, Dtype::F32).unwrap();
    for spec in aloe_model::arch::tensors(&config) {
        let (name, n) = (&spec.hf_name, spec.n_elements());
        let values = match model {
            "far" => noise(&format!("far/{name}"), n).into_iter().map(|value| value * 2.0f32.powi(-5)).collect(),
            _ => value(model, name, n),
        };
        writer.add(name, &values).unwrap();
    }
    writer.finish(&[]).unwrap();
}

/// The oracle's models and adapter.
pub(super) fn inputs() -> (tempfile::TempDir, MergeOptions) {
    let dir = tempfile::tempdir().unwrap();
    let mut folders = std::collections::BTreeMap::new();
    for (name, rows) in
        [("base", 64), ("a", 64), ("b", 64), ("far", 64), ("tok_base", 32), ("tok_a", 29), ("tok_b", 27)]
    {
        let folder = dir.path().join(name);
        write(&folder, name, rows);
        if name.starts_with("tok") {
            std::fs::copy(format!("{GOLDEN}/{name}.json"), folder.join("tokenizer.json")).unwrap();
        }
        folders.insert(name.to_owned(), folder);
    }
    let folder = dir.path().join("adapter");
    write_adapter(&folder);
    folders.insert("adapter".into(), folder);
    let options = MergeOptions { folders, threads: 2, ..MergeOptions::default() };
    (dir, options)
}

fn write_adapter(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    put(dir, "adapter_config.json", r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none"}"#);
    let mut tensors = Vec::new();
    for layer in 0..LAYERS {
        for (module, rows, cols) in [("self_attn.q_proj", 32, 32), ("mlp.down_proj", 32, 64)] {
            for (part, shape) in [("lora_A", [4, cols]), ("lora_B", [rows, 4])] {
                let name = format!("base_model.model.model.layers.{layer}.{module}.{part}.weight");
                let values = noise(&format!("adapter/{layer}/{module}/{part}"), shape[0] * shape[1]);
                tensors.push((name, shape.to_vec(), values.into_iter().map(|v| v * 0.05).collect::<Vec<f32>>()));
            }
        }
    }
    let layout: Vec<_> = tensors.iter().map(|(name, shape, _)| (name.clone(), shape.clone())).collect();
    let path = dir.join("adapter_model.safetensors");
    let mut writer = aloe_model::safetensors_writer::SafeTensorsWriter::create(&path, &layout, Dtype::F32).unwrap();
    tensors.iter().for_each(|(name, _, values)| writer.add(name, values).unwrap());
    writer.finish().unwrap();
}

/// Largest distance of two tensors in units of 1e-6 times the size of the values (f32), or of the last place of bfloat16, of float16. What is no
/// number is infinitely far.
pub(super) fn distance(ours: &[f32], theirs: &[f32], dtype: &str) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let size = theirs.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() / (theirs.len() as f64).sqrt();
    let unit = |value: f32| match dtype {
        // Differences of near values lose digits: relative to the value, or to the tensor where the value is smaller.
        "float32" => 1e-6 * f64::from(value.abs()).max(size),
        _ => {
            let places = if dtype == "bfloat16" { 7 } else { 10 };
            2.0f64.powi(f64::from(value.abs()).max(size).log2().floor() as i32 - places)
        }
    };
    let steps = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() / unit(*b));
    steps.fold(0.0, |most, step| if step.is_nan() { f64::INFINITY } else { most.max(step) })
}

#[test]
fn what_is_no_number_is_far_from_every_number() {
    assert_eq!(distance(&[1.0, f32::NAN, 1.0], &[1.0; 3], "float32"), f64::INFINITY);
    assert_eq!(distance(&[1.0, 1.0078125], &[1.0; 2], "bfloat16"), 1.0);
}

/// Methods that mergekit rounds to bfloat16 at every step, so that its result is farther than one rounding from its own formula in float64: by this
/// many units here, or the exception is not needed. Ours rounds once and must be that formula rounded.
const ROUNDED_AT_EVERY_STEP: [(&str, f64); 2] = [("multislerp_free", 1.968), ("karcher", 2.553)];
/// Methods that take the largest of values, of which many are equal in bfloat16: which of those at the threshold is open in torch's sort.
const THRESHOLDS: [&str; 4] = ["ties", "sce", "breadcrumbs", "breadcrumbs_ties"];

/// The k-th largest, k from 1.
fn kth(values: &[f32], k: usize) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[k - 1]
}

/// In bfloat16: the elements at a threshold of the method, found by sorting, and how many of each task vector are kept. The numbers are those
/// of `DENSE` and the settings in the oracle.
fn thresholds(method: &str, name: &str, n: usize) -> (Vec<bool>, Vec<u64>) {
    let bf16 = crate::tile::round_bf16;
    let far = || noise(&format!("far/{name}"), n).into_iter().map(|v| v * 2.0f32.powi(-5)).collect::<Vec<f32>>();
    let models = match method {
        "sce" => vec![value("a", name, n), value("b", name, n), far()],
        _ => vec![value("a", name, n), value("b", name, n)],
    };
    let base = value("base", name, n);
    let change = |model: &Vec<f32>| model.iter().zip(&base).map(|(x, base)| bf16(bf16(*x) - bf16(*base))).collect();
    let changes: Vec<Vec<f32>> = models.iter().map(change).collect();
    if method == "sce" {
        let variance = |at: usize| {
            let mean = changes.iter().map(|change| f64::from(change[at])).sum::<f64>() / 3.0;
            let squares = changes.iter().map(|change| (f64::from(change[at]) - mean).powi(2)).sum::<f64>();
            bf16((squares / 3.0) as f32)
        };
        let variances: Vec<f32> = (0..n).map(variance).collect();
        let k = (variances.iter().filter(|variance| **variance != 0.0).count() as f32 * 0.6) as usize;
        let last = kth(&variances, k);
        return (variances.iter().map(|variance| *variance == last).collect(), Vec::new());
    }
    let (mut at_threshold, mut n_kept) = (vec![false; n], Vec::new());
    for (change, density) in changes.iter().zip([0.5, 0.3]) {
        let sizes: Vec<f32> = change.iter().map(|change| change.abs()).collect();
        let target = (density * n as f64) as usize;
        let n_top = if method == "ties" { 0 } else { ((0.05 * n as f64) as usize).min(n - target) };
        n_kept.push(target.max(usize::from(method == "ties")) as u64);
        for k in [n_top, n_top + target].into_iter().filter(|k| *k > 0) {
            let last = kth(&sizes, k);
            at_threshold.iter_mut().zip(&sizes).for_each(|(at, size)| *at |= *size == last);
        }
    }
    (at_threshold, n_kept)
}

#[test]
fn every_deterministic_method_equals_mergekit() {
    let (dir, options) = inputs();
    let texts: serde_json::Map<String, serde_json::Value> =
        atomic::read_json(Path::new(&format!("{GOLDEN}/methods.json"))).unwrap();
    let golden = SafeTensorsFile::open(Path::new(&format!("{GOLDEN}/methods.safetensors"))).unwrap();
    let mut wrong = Vec::new();
    for (method, text) in &texts {
        for dtype in ["float32", "bfloat16"] {
            let text = format!("{}dtype: {dtype}\n", text.as_str().unwrap());
            let out = dir.path().join("out");
            let report = run(&text, &out, &options).unwrap_or_else(|error| panic!("{method}: {error}"));
            let merged = Checkpoint::open(&out.join("model")).unwrap();
            let prefix = format!("{method}.{dtype}/");
            let (mut n, mut apart, mut n_open) = (0, 0, 0);
            for name in golden.names().iter().filter(|name| name.starts_with(&prefix)) {
                let (ours, theirs) = (merged.load_f32(&name[prefix.len()..]).unwrap(), golden.load_f32(name).unwrap());
                n += ours.len();
                apart += (0..ours.len()).filter(|&i| distance(&ours[i..=i], &theirs[i..=i], dtype) > 1.0).count();
                let mut compared = ours.clone();
                if dtype == "bfloat16" && THRESHOLDS.contains(&method.as_str()) {
                    let spec = &name[prefix.len()..];
                    let (is_open, n_kept) = thresholds(method, spec, ours.len());
                    n_open += is_open.iter().filter(|open| **open).count();
                    let places = compared.iter_mut().zip(&theirs).zip(is_open);
                    places.filter(|(_, open)| *open).for_each(|((ours, theirs), _)| *ours = *theirs);
                    let found = report.tensors.iter().find(|tensor| tensor.name == spec).unwrap();
                    assert!(n_kept.is_empty() || found.n_kept == n_kept, "{name}: {:?}, {n_kept:?}", found.n_kept);
                }
                let far = distance(&compared, &theirs, dtype);
                let excepted = ROUNDED_AT_EVERY_STEP.iter().find(|(name, _)| dtype == "bfloat16" && name == method);
                if far > excepted.map_or(1.0, |(_, theirs)| theirs + 1.0) {
                    wrong.push(format!("{name}: {far:.2}"));
                }
            }
            println!(
                "{method} {dtype}: {apart} of {n} elements differ by more than the unit, {n_open} stand at a threshold"
            );
            assert!(n > 1000 && n_open * 8 <= n, "{method} {dtype}: {n_open} of {n} stand at a threshold");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// In f32 the nearest number of float32, which the file holds rounded as well; in bf16 that of bfloat16, but where two are equally near within what
/// float32 tells apart.
#[test]
fn where_mergekit_rounds_every_step_the_result_is_its_formula_in_float64() {
    let (dir, options) = inputs();
    let texts: serde_json::Map<String, serde_json::Value> =
        atomic::read_json(Path::new(&format!("{GOLDEN}/methods.json"))).unwrap();
    let open = |name: &str| SafeTensorsFile::open(Path::new(&format!("{GOLDEN}/{name}.safetensors"))).unwrap();
    let (golden, in_float64) = (open("methods"), open("exact"));
    for method in ["multislerp", "multislerp_free", "karcher", "model_stock_rows"] {
        for dtype in ["float32", "bfloat16"] {
            // model_stock is rounded at every step here too, and is held against mergekit.
            if (method, dtype) == ("model_stock_rows", "bfloat16") {
                continue;
            }
            let text = format!("{}dtype: {dtype}\n", texts[method].as_str().unwrap());
            let out = dir.path().join("out");
            run(&text, &out, &options).unwrap();
            let merged = Checkpoint::open(&out.join("model")).unwrap();
            let prefix = format!("{method}.{dtype}/");
            let (mut n, mut theirs_most) = (0, 0.0f64);
            for name in in_float64.names().iter().filter(|name| name.starts_with(&prefix)) {
                let ours = merged.load_f32(&name[prefix.len()..]).unwrap();
                let [exact, theirs] = [&in_float64, &golden].map(|file| file.load_f32(name).unwrap());
                n += ours.len();
                theirs_most = theirs_most.max(distance(&theirs, &exact, dtype));
                if dtype == "float32" {
                    let far = distance(&ours, &exact, dtype);
                    assert!(far < 0.15, "{name}: {far:.2}e-6 from float64");
                }
                for (at, (ours, exact)) in ours.iter().zip(&exact).enumerate().filter(|_| dtype == "bfloat16") {
                    let step = 2.0f64.powi(f64::from(exact.abs().max(f32::MIN_POSITIVE)).log2().floor() as i32 - 7);
                    let far = (f64::from(*ours) - f64::from(*exact)).abs() / step;
                    assert!(far < 0.501, "{name} {at}: {far:.3} steps from float64");
                }
            }
            println!("{method} {dtype}: mergekit {theirs_most:.2} units from float64");
            let excepted = ROUNDED_AT_EVERY_STEP.iter().find(|(name, _)| dtype == "bfloat16" && *name == method);
            let is_as_far = excepted.map_or(theirs_most <= 1.0, |(_, said)| (theirs_most - said).abs() < 0.001);
            assert!(n > 1000 && is_as_far, "{method} {dtype}: {theirs_most}");
        }
    }
}

#[test]
fn configurations_of_the_documentation_give_mergekits_plan_and_tensors() {
    let (dir, options) = inputs();
    let described: serde_json::Map<String, serde_json::Value> =
        atomic::read_json(Path::new(&format!("{GOLDEN}/configurations.json"))).unwrap();
    let golden = SafeTensorsFile::open(Path::new(&format!("{GOLDEN}/configurations.safetensors"))).unwrap();
    assert_eq!(described.len(), 20);
    let mut wrong = Vec::new();
    for (name, expected) in &described {
        let text = expected["yaml"].as_str().unwrap();
        let out = dir.path().join("out");
        run(text, &out, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
        let merged = Checkpoint::open(&out.join("model")).unwrap();
        let (layers, rows) = (merged.config.num_hidden_layers, merged.config.vocab_size);
        assert_eq!(json!([layers, rows]), json!([expected["num_hidden_layers"], expected["vocab_size"]]), "{name}");
        let mut names: Vec<&str> = merged.specs().iter().map(|spec| spec.hf_name.as_str()).collect();
        names.sort_unstable();
        let mut theirs: Vec<&str> = match &expected["tensors"] {
            serde_json::Value::Object(map) => map.keys().map(String::as_str).collect(),
            list => list.as_array().unwrap().iter().filter_map(|name| name.as_str()).collect(),
        };
        theirs.sort_unstable();
        assert_eq!(names, theirs, "{name}");
        if let Some(vocab) = expected["vocab"].as_object() {
            check_vocabulary(name, &out.join("model/tokenizer.json"), vocab);
        }
        let prefix = format!("{name}/");
        for tensor in golden.names().iter().filter(|tensor| tensor.starts_with(&prefix)) {
            let mut theirs = golden.load_f32(tensor).unwrap();
            let mut ours = merged.load_f32(&tensor[prefix.len()..]).unwrap();
            assert_eq!(ours.len(), theirs.len(), "{tensor}");
            if name == "tokenizer_tokens" {
                // With `source: base` mergekit appends a new token to the base's own tokenizer object, then takes the base's spare row for
                // its row. Here every model that lacks the token takes the row that the configuration names.
                ours.truncate(27 * 32);
                theirs.truncate(27 * 32);
            }
            let dtype = match golden.info(tensor).unwrap().dtype {
                FileDtype::F32 => "float32",
                FileDtype::BF16 => "bfloat16",
                _ => "float16",
            };
            let far = distance(&ours, &theirs, dtype);
            if far > 1.0 {
                wrong.push(format!("{tensor}: {far:.2}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Ids and tokens of the written tokenizer.
fn check_vocabulary(name: &str, path: &Path, expected: &serde_json::Map<String, serde_json::Value>) {
    let written: serde_json::Value = atomic::read_json(path).unwrap();
    let mut found = written["model"]["vocab"].as_object().unwrap().clone();
    for entry in written["added_tokens"].as_array().unwrap() {
        found.insert(entry["content"].as_str().unwrap().to_owned(), entry["id"].clone());
    }
    let sorted = |map: &serde_json::Map<String, serde_json::Value>| {
        let mut all: Vec<(u64, String)> = map.iter().map(|(token, id)| (id.as_u64().unwrap(), token.clone())).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&found), sorted(expected), "{name}");
}

#[test]
fn adapters_that_cannot_be_merged_are_refused() {
    let (dir, options) = inputs();
    let text = "models: [{model: base+adapter, parameters: {weight: 1}}]\nmerge_method: linear\n";
    let adapter = dir.path().join("adapter");
    for (settings, expected) in [
        (r#"{"peft_type": "IA3", "lora_alpha": 6}"#, "is a IA3 adapter"),
        (r#"{"peft_type": "LORA", "lora_alpha": 6, "use_dora": true}"#, "use_dora is set"),
        (r#"{"peft_type": "LORA", "lora_alpha": 6, "bias": "all"}"#, "bias is all"),
        (r#"{"peft_type": "LORA"}"#, "no lora_alpha"),
    ] {
        put(&adapter, "adapter_config.json", settings);
        let error = run(text, &dir.path().join("out"), &options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    std::fs::rename(adapter.join("adapter_model.safetensors"), adapter.join("adapter_model.bin")).unwrap();
    let error = run(text, &dir.path().join("out"), &options).unwrap_err().to_string();
    assert!(error.contains("pickle"), "{error}");
}

#[test]
fn documents_that_use_earlier_ones_merge_in_one_go() {
    let (dir, options) = inputs();
    let out = dir.path().join("out");
    let text = "name: half\nmodels: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\ndtype: float32\n---\n\
                models: [{model: half, parameters: {weight: 2}}, {model: far, parameters: {weight: 1}}]\nmerge_method: linear\ndtype: float32\n";
    run(text, &out, &options).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let [a, b, far] =
        ["a", "b", "far"].map(|model| Checkpoint::open(&dir.path().join(model)).unwrap().load_f32(name).unwrap());
    for (at, merged) in Checkpoint::open(&out.join("model")).unwrap().load_f32(name).unwrap().iter().enumerate() {
        assert!((merged - (a[at] + b[at] + far[at]) / 3.0).abs() < 1e-8);
    }
    assert!(!out.join("earlier").exists());
}
