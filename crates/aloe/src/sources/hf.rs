//! `hf:ORG/NAME[@REVISION]`, of data sets `hf:datasets/ORG/NAME[@REVISION]`: a small client of the Hugging Face hub over the cache layout of `huggingface_hub`, so that what Python
//! tools downloaded is used, and the other way round.
//!
//! Honours `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` (or the token file), `HF_HUB_OFFLINE` and the proxy variables. Downloads
//! resume after a break; sizes and sha256 are compared with what the hub lists. Repositories with only pickles are refused.

use super::is_wanted;
use super::rows::is_row_file;
use aloe_record::{Cancel, Progress, atomic, digest};
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Reconnections within one file before giving up; each one continues where the last stopped and is announced.
const MAX_RESUMES: usize = 5;
/// The list of files of a repository is never larger.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// Where and as whom to download.
pub(super) struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
    agent: ureq::Agent,
}

impl Hub {
    /// From the environment variables that `huggingface_hub` knows.
    pub(super) fn from_env() -> anyhow::Result<Self> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = match var("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => {
                let cache = var("XDG_CACHE_HOME").map(PathBuf::from);
                let cache = cache.or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".cache")));
                cache.context("none of HF_HOME, XDG_CACHE_HOME and HOME is set")?.join("huggingface")
            }
        };
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = var("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
        let offline = var("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));
        Ok(Self::new(
            var("HF_ENDPOINT").as_deref().unwrap_or("https://huggingface.co"),
            var("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline,
        ))
    }

    fn new(endpoint: &str, cache: PathBuf, token: Option<String>, offline: bool) -> Self {
        let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("aloe/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { endpoint: endpoint.trim_end_matches('/').into(), cache, token, offline, agent: config.into() }
    }

    fn get(&self, url: &str, range_from: u64) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if range_from > 0 {
            request = request.header("Range", format!("bytes={range_from}-"));
        }
        request.call().with_context(|| format!("cannot reach {url}; HF_HUB_OFFLINE=1 uses the cache alone"))
    }
}

/// One file of a repository.
struct Listed {
    path: String,
    size: Option<u64>,
    /// SHA-256 of files in large-file storage.
    sha256: Option<String>,
    /// The git object's id of the others.
    git_id: Option<String>,
}

/// Whether a repository is one of data: its name then begins as in the hub's addresses.
pub(super) fn is_data(name: &str) -> bool {
    name.strip_prefix("datasets/").is_some_and(|rest| rest.contains('/'))
}

/// The repository's folder in the cache, as `huggingface_hub` names it.
fn cache_folder(name: &str, hub: &Hub) -> PathBuf {
    let kind = if is_data(name) { "" } else { "models--" };
    hub.cache.join(format!("{kind}{}", name.replace('/', "--")))
}

/// The snapshot folder of a repository in the cache, and its origin in words; downloads what is not there.
pub(super) fn fetch(repository: &str, hub: &Hub, cancel: &Cancel) -> anyhow::Result<(PathBuf, String)> {
    let (name, revision) = repository.split_once('@').unwrap_or((repository, "main"));
    check_name(repository, name, revision)?;
    let folder = cache_folder(name, hub);
    if hub.offline {
        return from_cache(&folder, name, revision);
    }
    let (commit, files) = list(hub, name, revision)?;
    let wanted = choose(name, files)?;
    let snapshot = folder.join("snapshots").join(&commit);
    for file in &wanted {
        cancel.check()?;
        let target = snapshot.join(&file.path);
        if !target.is_file() {
            download(hub, name, &commit, file, &folder, cancel)?;
        }
    }
    if revision != commit {
        atomic::write(&folder.join("refs").join(revision), commit.as_bytes())?;
    }
    Ok((snapshot, format!("hf:{name}@{commit}")))
}

fn check_name(repository: &str, name: &str, revision: &str) -> anyhow::Result<()> {
    let plain = |text: &str| {
        !text.is_empty()
            && !text.starts_with('.')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !text.contains("..")
    };
    let parts: Vec<&str> = if is_data(name) { name.split('/').skip(1).collect() } else { name.split('/').collect() };
    if parts.len() > 2 || !parts.iter().all(|part| plain(part)) || !revision.split('/').all(plain) {
        bail!("hf:{repository} is not hf:ORG/NAME, hf:datasets/ORG/NAME or one of these with @REVISION");
    }
    Ok(())
}

fn from_cache(folder: &Path, name: &str, revision: &str) -> anyhow::Result<(PathBuf, String)> {
    let reference = folder.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_string(),
        Err(_) => revision.to_string(),
    };
    let snapshot = folder.join("snapshots").join(&commit);
    if !snapshot.is_dir() {
        bail!(
            "HF_HUB_OFFLINE is set and {} holds no snapshot of {name}@{revision}; run once with a network",
            folder.display()
        );
    }
    Ok((snapshot, format!("hf:{name}@{commit}")))
}

/// The snapshot of `ORG/NAME` at its main revision that the cache holds, where it is a model or an adapter; asks no network.
pub(super) fn cached(name: &str, hub: &Hub) -> Option<PathBuf> {
    if !name.contains('/') || check_name(name, name, "main").is_err() {
        return None;
    }
    let folder = cache_folder(name, hub);
    let (snapshot, _) = from_cache(&folder, name, "main").ok()?;
    ["config.json", "adapter_config.json"].iter().any(|file| snapshot.join(file).is_file()).then_some(snapshot)
}

/// The commit of a revision and its files.
fn list(hub: &Hub, name: &str, revision: &str) -> anyhow::Result<(String, Vec<Listed>)> {
    let kind = if is_data(name) { "" } else { "models/" };
    let url = format!("{}/api/{kind}{name}/revision/{}?blobs=true", hub.endpoint, revision.replace('/', "%2F"));
    let mut response = hub.get(&url, 0)?;
    check_status(&response, name, &url, hub)?;
    let body = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
    let parsed: Value = serde_json::from_slice(&body.with_context(|| format!("cannot read {url}"))?)
        .with_context(|| format!("{url} did not answer with JSON"))?;
    let commit = parsed["sha"].as_str().unwrap_or_default();
    if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_hexdigit()) {
        bail!("{url} names no commit");
    }
    let siblings = parsed["siblings"].as_array().with_context(|| format!("{url} lists no files"))?;
    let text = |value: &Value| value.as_str().map(str::to_string);
    let is_id = |id: &String| id.len() >= 16 && id.chars().all(|c| c.is_ascii_hexdigit());
    let listed = siblings.iter().filter_map(|file| {
        Some(Listed {
            path: text(&file["rfilename"])?,
            size: file["size"].as_u64(),
            sha256: text(&file["lfs"]["sha256"]).filter(is_id),
            git_id: text(&file["blobId"]).filter(is_id),
        })
    });
    Ok((commit.to_string(), listed.collect()))
}

fn check_status(response: &ureq::http::Response<ureq::Body>, name: &str, url: &str, hub: &Hub) -> anyhow::Result<()> {
    match response.status().as_u16() {
        200 | 206 => Ok(()),
        401 | 403 => {
            let token = if hub.token.is_some() { "the token in use has no access" } else { "set HF_TOKEN" };
            bail!(
                "{name} is gated, private or does not exist ({}): accept its licence at {}/{name} and {token}",
                response.status(),
                hub.endpoint
            )
        }
        404 => bail!("{name} has no such revision or file: {url} answered 404"),
        status => bail!("{url} answered {status}"),
    }
}

/// The files to download; refuses repositories without safetensors, or of data without files of rows, with the reason.
fn choose(name: &str, files: Vec<Listed>) -> anyhow::Result<Vec<Listed>> {
    if is_data(name) {
        let is_there = files.iter().any(|file| is_row_file(&file.path));
        let wanted: Vec<Listed> =
            files.into_iter().filter(|file| is_row_file(&file.path) || super::rows::is_about(&file.path)).collect();
        if !is_there {
            bail!(
                "hf:{name} holds no files of rows (.parquet, .jsonl, .json, .csv, .tsv, also .gz); where a script loads them, the hub's \
                 conversion is a revision: hf:{name}@refs/convert/parquet"
            );
        }
        return Ok(wanted);
    }
    let has = |ending: &str| files.iter().any(|file| file.path.ends_with(ending));
    let pickles = [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|ending| has(ending));
    let gguf = has(".gguf");
    let wanted: Vec<Listed> = files.into_iter().filter(|file| is_wanted(&file.path)).collect();
    if wanted.iter().any(|file| file.path.ends_with(".safetensors")) {
        return Ok(wanted);
    }
    if pickles {
        bail!(
            "hf:{name} holds its weights only as pickles, which can run any code when loaded, so they are refused; use a repository \
             with safetensors files (the hub's \"safetensors\" conversion pull request has a revision: hf:{name}@refs/pr/N), or convert \
             it where you trust it with save_pretrained(..., safe_serialization=True)"
        );
    }
    if gguf {
        bail!("hf:{name} holds GGUF files; download the one you want and pass its path");
    }
    bail!("hf:{name} holds no model*.safetensors")
}

/// Downloads one file into `blobs/` and links it into the snapshot.
fn download(hub: &Hub, name: &str, commit: &str, file: &Listed, folder: &Path, cancel: &Cancel) -> anyhow::Result<()> {
    let url = format!("{}/{name}/resolve/{commit}/{}", hub.endpoint, file.path);
    let blobs = folder.join("blobs");
    std::fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
    let fallback = digest::bytes(format!("{commit}/{}", file.path).as_bytes());
    let id = file.sha256.as_deref().or(file.git_id.as_deref()).unwrap_or(&fallback);
    let blob = blobs.join(id);
    if !blob.is_file() {
        let partial = blobs.join(format!("{id}.incomplete"));
        fill(hub, name, &url, file, &partial, cancel)?;
        check_content(&partial, file, &url)?;
        std::fs::rename(&partial, &blob).with_context(|| format!("cannot rename {}", partial.display()))?;
    }
    link(&blob, id, &folder.join("snapshots").join(commit), &file.path)
}

/// Fetches the bytes that `partial` lacks; a lost connection is continued from where it broke.
fn fill(hub: &Hub, name: &str, url: &str, file: &Listed, partial: &Path, cancel: &Cancel) -> anyhow::Result<()> {
    let progress = Progress::new(&file.path, file.size.unwrap_or(0), "bytes");
    let mut resumes = 0;
    loop {
        let have = std::fs::metadata(partial).map_or(0, |found| found.len());
        if file.size.is_some_and(|size| size == have && have > 0) {
            break;
        }
        let response = hub.get(url, have)?;
        if have > 0 && response.status().as_u16() == 416 {
            // Nothing is left to send, or the part is not of this file: the check that follows decides.
            break;
        }
        check_status(&response, name, url, hub)?;
        let resumed = response.status().as_u16() == 206;
        let broken = append(response, partial, resumed, &progress, cancel)?;
        let have = std::fs::metadata(partial).map_or(0, |found| found.len());
        if broken.is_none() && file.size.is_none_or(|size| have >= size) {
            break;
        }
        if resumes == MAX_RESUMES {
            let error = broken.unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into());
            return Err(error)
                .with_context(|| format!("{url} broke off {resumes} times; run again to continue where it stopped"));
        }
        resumes += 1;
        progress.message(&format!("connection lost, continuing ({resumes} of {MAX_RESUMES})"));
    }
    progress.finish();
    Ok(())
}

/// Appends a response to the partial file (or starts it over, when the server ignored the range). A broken connection is
/// returned; a disk that cannot be written fails.
fn append(
    response: ureq::http::Response<ureq::Body>,
    partial: &Path,
    resumed: bool,
    progress: &Progress,
    cancel: &Cancel,
) -> anyhow::Result<Option<std::io::Error>> {
    let mut out = OpenOptions::new();
    out.create(true).append(resumed).write(true).truncate(!resumed);
    let mut out: File = out.open(partial).with_context(|| format!("cannot open {}", partial.display()))?;
    let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut block = vec![0u8; 1 << 18];
    loop {
        cancel.check()?;
        match reader.read(&mut block) {
            Ok(0) => break,
            Ok(n_bytes) => {
                out.write_all(&block[..n_bytes]).with_context(|| format!("cannot write {}", partial.display()))?;
                progress.advance(n_bytes as u64);
            }
            Err(error) => return Ok(Some(error)),
        }
    }
    out.sync_all().with_context(|| format!("cannot sync {}", partial.display()))?;
    Ok(None)
}

/// Compares a finished download with what the hub listed; a wrong one is removed, so that the next try starts afresh.
fn check_content(partial: &Path, file: &Listed, url: &str) -> anyhow::Result<()> {
    let found = std::fs::metadata(partial).with_context(|| format!("cannot read {}", partial.display()))?.len();
    let problem = match (file.size, &file.sha256) {
        (Some(size), _) if size != found => Some(format!("has {found} bytes, the hub lists {size}")),
        (_, Some(expected)) => {
            let sha256 = digest::file(partial)?;
            (sha256 != *expected).then(|| format!("has sha256 {sha256}, the hub lists {expected}"))
        }
        _ => None,
    };
    match problem {
        None => Ok(()),
        Some(problem) => {
            let _ = std::fs::remove_file(partial);
            bail!("{url} {problem}; the download was removed, run again")
        }
    }
}

/// `snapshots/COMMIT/PATH` -> `../../blobs/ID`, as `huggingface_hub` lays it out.
fn link(blob: &Path, id: &str, snapshot: &Path, path: &str) -> anyhow::Result<()> {
    let target = snapshot.join(path);
    let parent = target.parent().unwrap_or(snapshot);
    std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let depth = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).count();
    let relative = format!("{}blobs/{id}", "../".repeat(depth + 1));
    let _ = std::fs::remove_file(&target);
    if std::os::unix::fs::symlink(&relative, &target).is_err() {
        // File systems without symbolic links get a copy, as in Python.
        std::fs::copy(blob, &target).with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
