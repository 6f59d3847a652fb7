//! The other end of a bundle: every digest of its file, or of the folder it was unpacked to, before and after a run.
//!
//! `cluster.toml` is the site's and only told of when it was changed. What a run makes (`state`, `work`, `models`, further folders in `out`) is
//! no part of it.

use super::{BUNDLE, Bundle, CLUSTER, LeftOut, SUMS};
use crate::{Error, Result};
use aloe_record::digest::{self, Hasher};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// What is wrong, a line each.
    pub findings: Vec<String>,
    /// What one may want to know.
    pub notes: Vec<String>,
    /// Files whose digests hold.
    pub n_good: usize,
}

/// Folders in which nothing else may lie.
const WHOLE: [&str; 5] = ["bin", "data", "files", "stages", "weights"];

/// Checks a bundle's file or folder.
pub fn check(path: &Path) -> Result<Checked> {
    if path.is_dir() { folder(path) } else { file(path) }
}

/// What a bundle says of itself.
struct Stated {
    bundle: Bundle,
    sums: BTreeMap<String, String>,
}

fn stated(path: &Path, bundle: &str, sums: &str) -> Result<Stated> {
    let wrong = |reason: String| Error::Folder { path: path.to_path_buf(), reason };
    let bundle: Bundle = serde_json::from_str(bundle).map_err(|error| wrong(format!("{BUNDLE}: {error}")))?;
    if bundle.version != 1 {
        return Err(wrong(format!("{BUNDLE} has version {}, of another program; this one reads 1", bundle.version)));
    }
    let is_inside = |path: &str| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let mut found = BTreeMap::new();
    for line in sums.lines() {
        let (digest, path) =
            line.split_once("  ").ok_or_else(|| wrong(format!("{SUMS}: {line:?} is no line of it")))?;
        if !is_inside(path) {
            return Err(wrong(format!("{SUMS} leads out of the bundle: {path:?}")));
        }
        found.insert(path.to_owned(), digest.to_owned());
    }
    if let Some(left) = bundle.left_out.iter().find(|left| !is_inside(&left.path)) {
        return Err(wrong(format!("{BUNDLE} leads out of the bundle: {:?}", left.path)));
    }
    Ok(Stated { bundle, sums: found })
}

impl Checked {
    /// Holds one file to its digest.
    fn hold(&mut self, path: &str, expected: &str, found: Option<&str>) {
        match found {
            Some(found) if found == expected => self.n_good += 1,
            Some(found) => self.findings.push(format!("{path}: sha256 is {found}, packed was {expected}")),
            None => self.findings.push(format!("{path}: is missing")),
        }
    }

    fn cluster(&mut self, stated: &Stated, found: Option<&str>) {
        match found {
            Some(found) if found == stated.bundle.cluster_sha256 => self.n_good += 1,
            Some(_) => self.notes.push(format!("{CLUSTER} was changed for this site")),
            None => self.findings.push(format!("{CLUSTER}: is missing")),
        }
    }
}

fn folder(root: &Path) -> Result<Checked> {
    let read = |name: &str| -> Result<String> {
        let path = root.join(name);
        match path.is_file() {
            true => Ok(std::fs::read_to_string(&path).map_err(aloe_record::Error::io("read", &path))?),
            false => {
                let reason = format!("there is no {name}; an unpacked bundle has one");
                Err(Error::Folder { path: root.to_path_buf(), reason })
            }
        }
    };
    let stated = stated(root, &read(BUNDLE)?, &read(SUMS)?)?;
    let mut checked = Checked::default();
    let of = |path: &str| -> Result<Option<String>> {
        let path = root.join(path);
        if path.is_file() { Ok(Some(digest::file(&path)?)) } else { Ok(None) }
    };
    for (path, expected) in &stated.sums {
        checked.hold(path, expected, of(path)?.as_deref());
    }
    checked.cluster(&stated, of(CLUSTER)?.as_deref());
    for LeftOut { path, sha256, n_bytes, name } in &stated.bundle.left_out {
        match of(path)? {
            Some(found) => checked.hold(path, sha256, Some(&found)),
            None => checked.findings.push(format!(
                "{path}: the weights {name} were not packed; put them there ({n_bytes} bytes, sha256 {sha256})"
            )),
        }
    }
    let is_known =
        |path: &str| stated.sums.contains_key(path) || stated.bundle.left_out.iter().any(|left| left.path == path);
    for name in WHOLE {
        let mut found = Vec::new();
        files(&root.join(name), name, &mut found)?;
        let strangers = found.into_iter().filter(|path| !is_known(path));
        checked.findings.extend(strangers.map(|path| format!("{path}: was not packed")));
    }
    Ok(checked)
}

/// Paths of all files below, but for those that begin with a dot.
fn files(folder: &Path, path: &str, found: &mut Vec<String>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(aloe_record::Error::io("list", folder))? {
        let entry = entry.map_err(aloe_record::Error::io("list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{path}/{name}");
        match entry.path().is_dir() {
            true => files(&entry.path(), &path, found)?,
            false if name.starts_with('.') => {}
            false => found.push(path),
        }
    }
    found.sort();
    Ok(())
}

fn file(path: &Path) -> Result<Checked> {
    let broken = |error: std::io::Error| aloe_record::Error::io("read", path)(error);
    let no_bundle = |reason: &str| Error::Folder { path: path.to_path_buf(), reason: reason.to_owned() };
    let source = File::open(path).map_err(aloe_record::Error::io("open", path))?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, source));
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    let mut tops = std::collections::BTreeSet::new();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(|error| no_bundle(&format!("is no whole tar file: {error}")))?;
        if entry.header().entry_type().is_dir() {
            continue;
        }
        let whole = entry.path().map_err(broken)?.to_string_lossy().into_owned();
        let Some((top, inner)) = whole.split_once('/') else {
            return Err(no_bundle(&format!("is no bundle: it holds {whole:?} beside its folder")));
        };
        tops.insert(top.to_owned());
        let (mut hasher, mut kept) = (Hasher::default(), Vec::new());
        let mut block = vec![0u8; 1 << 18];
        loop {
            let read = entry.read(&mut block).map_err(|error| no_bundle(&format!("is no whole tar file: {error}")))?;
            if read == 0 {
                break;
            }
            hasher.update(&block[..read]);
            if [BUNDLE, SUMS].contains(&inner) {
                kept.extend_from_slice(&block[..read]);
            }
        }
        if [BUNDLE, SUMS].contains(&inner) {
            texts.insert(inner.to_owned(), String::from_utf8_lossy(&kept).into_owned());
        }
        found.insert(inner.to_owned(), hasher.hex());
    }
    let (Some(bundle), Some(sums)) = (texts.get(BUNDLE), texts.get(SUMS)) else {
        return Err(no_bundle(&format!("is no bundle: it holds no {BUNDLE} and {SUMS}")));
    };
    let stated = stated(path, bundle, sums)?;
    let mut checked = Checked::default();
    for (path, expected) in &stated.sums {
        checked.hold(path, expected, found.get(path).map(String::as_str));
    }
    checked.cluster(&stated, found.get(CLUSTER).map(String::as_str));
    let strangers =
        found.keys().filter(|path| !stated.sums.contains_key(*path) && ![SUMS, CLUSTER].contains(&path.as_str()));
    checked.findings.extend(strangers.map(|path| format!("{path}: was not packed")));
    if tops.len() != 1 {
        checked.findings.push(format!("it unpacks to {} folders", tops.len()));
    }
    let left_out = stated.bundle.left_out.iter();
    checked.notes.extend(left_out.map(|left| format!("{}: the weights {} were not packed", left.path, left.name)));
    Ok(checked)
}
