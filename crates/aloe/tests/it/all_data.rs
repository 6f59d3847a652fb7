//! The recipe of every published file, through the binary: each file of the folder trains or is compared with, and every row is accounted for.
//! What is printed is the account of LOG.md.

use crate::{aloe, root};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The manifest's line of a source.
fn tell(source: &Value) {
    let name = source["name"].as_str().unwrap();
    let parts = ["account", "dropped", "changed", "n_tokens", "n_target_tokens", "identifiers", "without_template"];
    let told: Vec<String> = parts.iter().map(|part| format!("{part} {}", source[*part])).collect();
    eprintln!("{name}: {}", told.join("; "));
}

fn n_lines(path: &Path) -> u64 {
    std::fs::read_to_string(path).unwrap().lines().count() as u64
}

/// A folder with Llama 3's tokenizer, whose own files have no template.
fn tokenizer(models: &Path, folder: PathBuf) -> PathBuf {
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(models.join("llama3-tokenizer/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let special = serde_json::json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"});
    std::fs::write(folder.join("tokenizer_config.json"), special.to_string()).unwrap();
    folder
}

/// Runs a data stage of the recipe and holds its files against its manifest, which it gives.
fn stage(name: &str, tokenizer: &Path, dir: &Path) -> Value {
    let (recipe, out) = (root().join("recipes/all-data.toml"), dir.join(name));
    let args = ["data", "run", "--recipe", recipe.to_str().unwrap(), "--stage", name, "--out", dir.to_str().unwrap()];
    let start = std::time::Instant::now();
    let ended = aloe().args(args).env("TOKENIZER", tokenizer).output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{stderr}");
    let manifest = read(&out.join("manifest.json"));
    eprintln!("{name}: {:.1} s\n{stderr}", start.elapsed().as_secs_f64());
    for key in
        ["account", "licences", "tasks", "tokens_by_task", "n_held_apart_questions", "duplicate_clusters", "notices"]
    {
        eprintln!("{key}: {}", manifest[key]);
    }
    let count = |account: &Value, key: &str| account[key].as_u64().unwrap_or(0);
    let mut n_read = 0;
    for source in manifest["sources"].as_array().unwrap() {
        tell(source);
        let n_dropped: u64 = source["dropped"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        let n_kept = count(source, "n_train") + count(source, "n_held_out") + count(source, "n_broken") + n_dropped;
        assert_eq!(count(source, "n_read") + count(source, "n_made"), n_kept, "{source}");
        assert_eq!(count(source, "n_tokens") > 0, count(source, "n_train") > 0, "{source}");
        n_read += count(source, "n_read");
    }
    assert_eq!(count(&manifest["account"], "n_read"), n_read);
    for (file, key) in [("train.jsonl", "n_train"), ("rendered.jsonl", "n_train"), ("hold_out.jsonl", "n_held_out")] {
        assert_eq!(n_lines(&out.join(file)), count(&manifest, key), "{file}");
    }
    manifest
}

/// The files of a manifest that trained or were compared with, as they end.
fn files(manifest: &Value, found: &mut BTreeSet<String>) {
    for source in manifest["sources"].as_array().unwrap() {
        found.extend(source["files"].as_object().unwrap().keys().cloned());
    }
    found.extend(manifest["held_apart_rows"].as_object().unwrap().keys().cloned());
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

#[test]
fn every_published_file_goes_through_the_data_stages_of_one_recipe_and_every_row_is_accounted_for() {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(data), Some(models)) = (folder("ALOE_DATA"), folder("ALOE_MODELS")) else {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_DATA or ALOE_MODELS is not set");
        eprintln!("not run: ALOE_DATA or ALOE_MODELS is not set");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(&models, dir.path().join("tokenizer"));
    let (mixture, pairs) = (stage("mixture", &tokenizer, dir.path()), stage("pairs", &tokenizer, dir.path()));
    assert_eq!(mixture["account"]["n_read"], 30_233, "the sum of the READMEs' counts");
    assert_eq!((&pairs["account"]["n_read"], &pairs["account"]["n_quarantined"]), (&3812.into(), &9.into()));
    let mut read = BTreeSet::new();
    files(&mixture, &mut read);
    files(&pairs, &mut read);
    let mut all = Vec::new();
    for folder in std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()) {
        if folder.is_dir() && !folder.ends_with("models") {
            walk(&folder, &mut all);
        }
    }
    let is_read = |path: &Path| {
        let inside = path.strip_prefix(&data).unwrap();
        read.iter().any(|name| inside.ends_with(name))
    };
    let is_document = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        ["README", "LICENSE", "SHA256SUMS", "test_ground_truth"].iter().any(|start| name.starts_with(start))
    };
    let mut unread: Vec<String> = all
        .iter()
        .filter(|path| !is_read(path) && !is_document(path))
        .map(|path| path.strip_prefix(&data).unwrap().display().to_string())
        .collect();
    unread.sort();
    // PubMedQA's rows in another form, train rows among them: `ori_pqal.json` is read, with the list of what is tested.
    assert_eq!(unread, ["pubmedqa/pqa_labeled/train-00000-of-00001.parquet"]);
}
