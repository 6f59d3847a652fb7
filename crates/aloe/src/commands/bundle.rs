//! `aloe bundle`: a run folder, or a recipe planned for the purpose, as one file for a site without internet; and the check of what arrived.
//!
//! Rows whose licence is known to forbid sharing what is made from them are refused; all licences that records state stand in README.txt.

use crate::cli::bundle::BundleArgs;
use crate::failure::Failure;
use crate::handoff::write;
use crate::recipe::checked::Recipe;
use aloe_handoff::bundle::{self, Packing};
use aloe_handoff::plan::is_run_folder;
use aloe_record::{Cancel, atomic};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Packs, or checks.
pub(crate) fn run(args: &BundleArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let Some(out) = &args.out else { return check(args) };
    if out.extension().is_none_or(|extension| extension != "tar") {
        return Err(Failure::usage(format!("--out {}: a bundle is called NAME.tar", out.display())).into());
    }
    let out = std::path::absolute(out).with_context(|| format!("cannot resolve {}", out.display()))?;
    if is_run_folder(&args.what) {
        if args.place.is_some() || args.cluster.is_some() {
            let text = "--where and --cluster go with a recipe; a run folder was planned with its own";
            return Err(Failure::usage(text).into());
        }
        let run = args.what.canonicalize().with_context(|| format!("cannot resolve {}", args.what.display()))?;
        return pack(args, &run, &out);
    }
    if args.what.is_dir() {
        let text = format!("{} is no run folder (it has no run.json); write one with `aloe plan`", args.what.display());
        return Err(Failure::usage(text).into());
    }
    let recipe = Recipe::read(&args.what)?;
    let (Some(place), Some(cluster)) = (args.place.or(recipe.place), &args.cluster) else {
        let text = "a recipe is planned before it is packed: say --where slurm|local and --cluster cluster.toml of the site it goes to";
        return Err(Failure::usage(text).into());
    };
    let run = planned_beside(&out);
    atomic::remove_folder(&run)?;
    let packed = write::write(&args.what, cluster, &run, place, 0, cancel)
        .inspect(|planned| crate::commands::stages::tell(&planned.notices))
        .and_then(|_| pack(args, &run, &out));
    // The run folder is the current one.
    std::env::set_current_dir("/")?;
    atomic::remove_folder(&run)?;
    packed
}

/// Where a recipe's run folder stands while it is packed.
fn planned_beside(out: &Path) -> PathBuf {
    let name = out.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    out.with_file_name(format!(".{name}.run"))
}

fn pack(args: &BundleArgs, run: &Path, out: &Path) -> anyhow::Result<()> {
    let licences = licences(run)?;
    let aloe = std::env::current_exe().context("where is this program?")?;
    let packing = Packing { run, aloe: &aloe, weights: &args.with_weights, licences: &licences };
    let packed = bundle::pack(&packing, out)?;
    for left in &packed.left_out {
        aloe_record::tell(&format!(
            "note: not packed: {} ({} bytes); --with-weights {} packs it",
            left.path, left.n_bytes, left.name
        ));
    }
    let mut output = std::io::stdout();
    if args.json {
        let mut said = serde_json::to_value(&packed)?;
        said["out"] = json!(out);
        writeln!(output, "{}", serde_json::to_string_pretty(&said)?)?;
        return Ok(());
    }
    writeln!(
        output,
        "Written to {}: {} files, {:.1} MiB, unpacks to {}/\nsha256 {}",
        out.display(),
        packed.n_files,
        packed.n_bytes as f64 / f64::from(1 << 20),
        packed.name,
        packed.sha256
    )?;
    Ok(())
}

/// A line for each licence that the records of what was made beforehand state.
fn licences(run: &Path) -> anyhow::Result<Vec<String>> {
    let (mut lines, mut forbidden) = (BTreeSet::new(), Vec::new());
    for entry in std::fs::read_dir(run.join("out")).into_iter().flatten().flatten() {
        let stage = entry.file_name().to_string_lossy().into_owned();
        let read = |name: &str| -> anyhow::Result<Value> {
            let path = entry.path().join(name);
            Ok(if path.is_file() { atomic::read_json(&path)? } else { Value::Null })
        };
        if let Some(licence) = read("record.json")?["results"]["licence"].as_str() {
            lines.insert(format!("{stage}: {licence}"));
        }
        for source in read("manifest.json")?["sources"].as_array().into_iter().flatten() {
            let (name, licence) = (source["name"].as_str(), source["licence"].as_str());
            let (Some(name), Some(licence)) = (name, licence) else { continue };
            let n_rows = source["n_train"].as_u64().unwrap_or(0) + source["n_held_out"].as_u64().unwrap_or(0);
            lines.insert(format!("{stage}, source {name} ({n_rows} rows): {licence}"));
            if n_rows > 0 && aloe_data::forbids_sharing(licence) {
                forbidden.push(format!(
                    "stage {stage:?}: source {name:?} is under {licence}, which forbids sharing what was made from it; leave the source out, or \
                     move the run folder itself between machines of your own"
                ));
            }
        }
    }
    match forbidden.is_empty() {
        true => Ok(lines.into_iter().collect()),
        false => Err(aloe_handoff::Error::Bundle { mistakes: forbidden }.into()),
    }
}

fn check(args: &BundleArgs) -> anyhow::Result<()> {
    if !args.what.exists() {
        return Err(Failure::usage(format!("{} does not exist", args.what.display())).into());
    }
    let checked = bundle::check(&args.what)?;
    let mut output = std::io::stdout();
    if args.json {
        writeln!(output, "{}", serde_json::to_string_pretty(&checked)?)?;
    } else {
        for line in &checked.findings {
            writeln!(output, "{line}")?;
        }
        checked.notes.iter().for_each(|note| aloe_record::tell(&format!("note: {note}")));
    }
    let n = checked.findings.len();
    if n > 0 {
        let findings = if n == 1 { "1 finding".to_owned() } else { format!("{n} findings") };
        anyhow::bail!("{} is not what was packed: {findings}", args.what.display());
    }
    if !args.json {
        writeln!(output, "{}: {} files, every digest holds", args.what.display(), checked.n_good)?;
    }
    Ok(())
}
