//! A run folder as one file for a site without internet, and the check of what arrived there.
//!
//! `NAME.tar` holds `NAME/`: the run folder's own files, the program as `bin/aloe`, models of the site that were named in `weights/`, and
//! `SHA256SUMS`, `BUNDLE.json` and `README.txt`. What is unpacked is a run folder like any other: its `cluster.toml` names program and packed
//! models from its own place. Weights are packed only by their name; those left out stand in `BUNDLE.json` with place, size and digest.
//!
//! The same run folder, program and names give the same bytes: sorted, without times and owners. All that a stage needs is looked for before
//! anything is written. A run that has begun is not packed.
//!
//! Reading order: this file (the spine, and what is packed), `write` (the file), `readme`, `check` (the other end).

mod check;
mod readme;
mod write;

pub use check::{Checked, check};

use crate::cluster::Cluster;
use crate::plan::{PLAN, RunPlan, model_folder};
use crate::state::{self, Phase};
use crate::{Error, Result};
use aloe_record::digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What is packed.
#[derive(Clone, Copy, Debug)]
pub struct Packing<'a> {
    /// The run folder, absolute.
    pub run: &'a Path,
    /// The program.
    pub aloe: &'a Path,
    /// Weights to pack: names of stages in `out/`, of copies in `files/`, of models in `cluster.toml`.
    pub weights: &'a [String],
    /// Lines on what is under which licence.
    pub licences: &'a [String],
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Packed {
    /// The folder that unpacking makes.
    pub name: String,
    /// Files in it.
    pub n_files: usize,
    /// Bytes of the tar file.
    pub n_bytes: u64,
    /// Digest of the tar file.
    pub sha256: String,
    /// Weights that must be put in place on the other site.
    pub left_out: Vec<LeftOut>,
}

/// Weights that were not packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// The name that packs them.
    pub name: String,
    /// Where they must lie, relative to the unpacked folder.
    pub path: String,
    /// Their size.
    pub n_bytes: u64,
    /// Their digest.
    pub sha256: String,
}

/// `BUNDLE.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bundle {
    /// The layout's version: 1.
    version: u32,
    /// The run's name.
    name: String,
    /// The packed program's version.
    aloe: String,
    /// Digest of `cluster.toml` as packed: the only file that the other site changes.
    cluster_sha256: String,
    /// Weights that must be put in place.
    left_out: Vec<LeftOut>,
}

const BUNDLE: &str = "BUNDLE.json";
const SUMS: &str = "SHA256SUMS";
const README: &str = "README.txt";
const CLUSTER: &str = "cluster.toml";

/// Folders of a run folder that are packed. The others (`state`, `work`, `models`) come to be where it runs.
const FOLDERS: [&str; 4] = ["data", "files", "out", "stages"];

/// A file to pack.
#[derive(Clone, Debug)]
struct Item {
    /// Its place in the unpacked folder.
    path: String,
    from: PathBuf,
    n_bytes: u64,
    sha256: String,
}

/// Writes the bundle `out`.
pub fn pack(packing: &Packing<'_>, out: &Path) -> Result<Packed> {
    let run = packing.run;
    let plan = RunPlan::read(run)?;
    refuse_begun(run, &plan)?;
    let cluster_path = run.join(CLUSTER);
    let cluster = Cluster::read(&cluster_path)?;
    let mut found = Found::default();
    found.own_files(run)?;
    found.stages(run, &plan)?;
    found.models_of_recipe(run, &cluster)?;
    let mut left_out = found.leave_out(packing.weights);
    let moved = found.models(&cluster, packing.weights, run)?;
    found.unknown_names(packing.weights, &cluster, &left_out);
    found.file("bin/aloe".to_owned(), packing.aloe)?;
    found.refuse()?;
    left_out.sort_by(|one, other| one.path.cmp(&other.path));
    let text = std::fs::read_to_string(&cluster_path).map_err(aloe_record::Error::io("read", &cluster_path))?;
    let cluster_text = at_home(&text, &moved);
    let bundle = Bundle {
        version: 1,
        name: model_folder(&plan.name),
        aloe: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_sha256: digest::bytes(cluster_text.as_bytes()),
        left_out,
    };
    let readme = readme::text(&bundle, &plan, &cluster, &moved, packing);
    write::tar(&bundle, found.items, &cluster_text, &readme, out)
}

fn refuse_begun(run: &Path, plan: &RunPlan) -> Result<()> {
    for stage in &plan.stages {
        let phase = state::read(run, &stage.name)?.phase;
        if phase != Phase::Planned {
            let reason = format!(
                "the run has begun (stage {:?} is {}); a bundle is of a plan: write one with `aloe plan`",
                stage.name,
                phase.name()
            );
            return Err(Error::Folder { path: run.to_path_buf(), reason });
        }
    }
    Ok(())
}

/// Whether an input is there only when jobs have run: the links to the site's models, and what a planned stage makes.
fn is_of_a_job(input: &str, plan: &RunPlan) -> bool {
    let mut parts = input.split('/');
    match (parts.next(), parts.next()) {
        (Some("models"), _) => true,
        (Some("out"), Some(name)) => plan.stages.iter().any(|stage| stage.name == name),
        _ => false,
    }
}

/// What was found to pack, and what is wrong with it.
#[derive(Default)]
struct Found {
    items: Vec<Item>,
    mistakes: Vec<String>,
}

impl Found {
    fn file(&mut self, path: String, from: &Path) -> Result<()> {
        // SHA256SUMS has a line for each.
        if path.contains(['\n', '\r', '\\', char::REPLACEMENT_CHARACTER]) {
            self.mistakes.push(format!("{} has a name that does not go into a list of names", from.display()));
            return Ok(());
        }
        let n_bytes = from.metadata().map_err(aloe_record::Error::io("read", from))?.len();
        self.items.push(Item { path, from: from.to_path_buf(), n_bytes, sha256: digest::file(from)? });
        Ok(())
    }

    /// A file, or all files of a folder but what a writer that was cut off left behind.
    fn tree(&mut self, path: String, from: &Path) -> Result<()> {
        if !from.is_dir() {
            return self.file(path, from);
        }
        for entry in std::fs::read_dir(from).map_err(aloe_record::Error::io("list", from))? {
            let entry = entry.map_err(aloe_record::Error::io("list", from))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_left = name.starts_with('.') && (name.ends_with(".partial") || name.ends_with(".old"));
            if !is_left {
                self.tree(format!("{path}/{name}"), &entry.path())?;
            }
        }
        Ok(())
    }

    fn own_files(&mut self, run: &Path) -> Result<()> {
        for name in ["recipe.toml", PLAN] {
            self.file(name.to_owned(), &run.join(name))?;
        }
        for name in FOLDERS.into_iter().filter(|name| run.join(name).is_dir()) {
            self.tree(name.to_owned(), &run.join(name))?;
        }
        Ok(())
    }

    /// Each stage has its scripts, and each input that it names is there with the digest it was planned with.
    fn stages(&mut self, run: &Path, plan: &RunPlan) -> Result<()> {
        let known: BTreeMap<&str, &str> =
            self.items.iter().map(|item| (item.path.as_str(), item.sha256.as_str())).collect();
        let mut mistakes = BTreeSet::new();
        for stage in &plan.stages {
            let folder = stage.folder.to_string_lossy().into_owned();
            for script in ["job.sbatch", "run.sh", "check.sh", "inputs.sha256", "env.lock"] {
                let path = format!("{folder}/{script}");
                if !known.contains_key(path.as_str()) {
                    mistakes.insert(format!("stage {:?}: {path} is missing", stage.name));
                }
            }
            let path = run.join(&stage.folder).join("inputs.sha256");
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            for (digest, input) in text.lines().filter_map(|line| line.split_once("  ")) {
                match known.get(input) {
                    None if is_of_a_job(input, plan) => false,
                    None => mistakes.insert(format!("stage {:?}: its input {input} is missing", stage.name)),
                    Some(found) if *found != digest => {
                        mistakes.insert(format!("stage {:?}: its input {input} is not what was planned", stage.name))
                    }
                    Some(_) => false,
                };
            }
        }
        self.mistakes.extend(mistakes);
        Ok(())
    }

    /// Each `./models/NAME` of the recipe stands for a model that `cluster.toml` knows.
    fn models_of_recipe(&mut self, run: &Path, cluster: &Cluster) -> Result<()> {
        let path = run.join("recipe.toml");
        let text = std::fs::read_to_string(&path).map_err(aloe_record::Error::io("read", &path))?;
        let known: Vec<String> = cluster.models.keys().map(|name| model_folder(name)).collect();
        let mut missing = BTreeSet::new();
        for rest in text.split("\"./models/").skip(1) {
            let name = rest.split('"').next().unwrap_or_default();
            if !known.iter().any(|known| known == name) {
                missing.insert(format!("models/{name} is no model of cluster.toml: name it under [models]"));
            }
        }
        self.mistakes.extend(missing);
        Ok(())
    }

    /// Takes out the weights that were not named.
    fn leave_out(&mut self, named: &[String]) -> Vec<LeftOut> {
        let mut left_out = Vec::new();
        self.items.retain(|item| {
            let Some(names) = weights_names(&item.path) else { return true };
            if names.iter().any(|name| named.contains(name)) {
                return true;
            }
            let name = names.into_iter().next().unwrap_or_default();
            let Item { path, n_bytes, sha256, .. } = item.clone();
            left_out.push(LeftOut { name, path, n_bytes, sha256 });
            false
        });
        left_out
    }

    /// Models of the site that were named, as `weights/NAME`; returns where each lies then.
    fn models(&mut self, cluster: &Cluster, named: &[String], run: &Path) -> Result<BTreeMap<String, String>> {
        let mut moved = BTreeMap::new();
        for (name, folder) in &cluster.models {
            if !named.contains(name) {
                if folder.starts_with(run) {
                    self.mistakes.push(format!("the model {name:?} lies in this bundle: name it with --with-weights"));
                }
                continue;
            }
            if !folder.exists() {
                self.mistakes.push(format!("the model {name:?} is not at hand: there is no {}", folder.display()));
                continue;
            }
            let path = format!("weights/{}", model_folder(name));
            self.tree(path.clone(), folder)?;
            moved.insert(name.clone(), format!("./{path}"));
        }
        Ok(moved)
    }

    fn unknown_names(&mut self, named: &[String], cluster: &Cluster, left_out: &[LeftOut]) {
        let of_files = self.items.iter().filter_map(|item| weights_names(&item.path)).flatten();
        let known: BTreeSet<String> = of_files
            .chain(left_out.iter().map(|left| left.name.clone()))
            .chain(cluster.models.keys().cloned())
            .collect();
        for name in named.iter().filter(|name| !known.contains(*name)) {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let there =
                if known.is_empty() { "there are none".to_owned() } else { format!("there are {}", known.join(", ")) };
            self.mistakes.push(format!("--with-weights {name}: no such weights; {there}"));
        }
    }

    fn refuse(&self) -> Result<()> {
        match self.mistakes.is_empty() {
            true => Ok(()),
            false => Err(Error::Bundle { mistakes: self.mistakes.clone() }),
        }
    }
}

/// The names that pack the weights file `path`, the plainest first; `None` for what is no weights file.
fn weights_names(path: &str) -> Option<Vec<String>> {
    let extension = Path::new(path).extension()?.to_str()?.to_ascii_lowercase();
    if !["safetensors", "gguf"].contains(&extension.as_str()) {
        return None;
    }
    let mut parts = path.split('/');
    match (parts.next()?, parts.next()?) {
        ("out", stage) => Some(vec![stage.to_owned()]),
        // Copies are called `NN-NAME`.
        ("files", copy) => Some(match copy.split_once('-') {
            Some((_, name)) => vec![name.to_owned(), copy.to_owned()],
            None => vec![copy.to_owned()],
        }),
        _ => None,
    }
}

/// `cluster.toml` with the program and the packed models at their places in the unpacked folder, all else as it is written.
fn at_home(text: &str, moved: &BTreeMap<String, String>) -> String {
    use toml::de::{DeTable, DeValue};
    let mut swaps = Vec::new();
    if let Ok(document) = DeTable::parse(text) {
        for (key, value) in document.get_ref().iter() {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("aloe", _) => swaps.push((value.span(), "./bin/aloe")),
                ("models", DeValue::Table(models)) => {
                    for (name, value) in models {
                        swaps.extend(moved.get(name.get_ref().as_ref()).map(|to| (value.span(), to.as_str())));
                    }
                }
                _ => {}
            }
        }
    }
    let mut text = text.to_owned();
    swaps.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    for (span, to) in swaps {
        text.replace_range(span, &format!("\"{to}\""));
    }
    text
}

#[cfg(test)]
mod tests;
