//! The model card: a Hugging Face README.md rendered from records. A number that no record holds cannot appear in it;
//! published figures of others enter as `cited`, with their source and "not measured here".
//!
//! Reading order: this file (settings, spine, front matter), `sections` (the fixed parts), `training`, `evaluation`,
//! `carbon`, `risk`.

pub(crate) mod carbon;
mod evaluation;
mod open_answers;
mod risk;
mod sections;
mod training;

use crate::failure::Failure;
use crate::stage::Inputs;
use aloe_record::{Record, atomic};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the author states; everything measured comes from records.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CardConfig {
    /// The model's name, also the id in the code examples.
    pub(crate) model_name: String,
    /// The base model's name and, where it has one, its Hub id.
    pub(crate) base_model: String,
    /// Who made it.
    pub(crate) developed_by: String,
    /// Where to write to.
    pub(crate) contact: String,
    /// Licence of the result as a Hub identifier.
    pub(crate) licence: String,
    /// Further licences that the result carries, such as the base model's.
    #[serde(default)]
    pub(crate) also_licensed: Vec<String>,
    /// Language codes.
    pub(crate) languages: Vec<String>,
    /// Power and grid, for the carbon estimate.
    pub(crate) power: carbon::Power,
    /// Published figures of others.
    #[serde(default)]
    pub(crate) cited: Vec<Cited>,
    /// A warning printed at the top.
    #[serde(default)]
    pub(crate) warning: Option<String>,
}

/// A figure that somebody else published.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cited {
    /// What it is a figure of.
    pub(crate) what: String,
    /// The figure as published.
    pub(crate) value: String,
    /// Where it was published.
    pub(crate) source: String,
}

/// A record and the name of its stage's folder.
pub(crate) struct Evidence {
    pub(crate) stage: String,
    pub(crate) record: Record,
}

/// The folders whose records a card tells: the input `records`, else the model's own where a stage made it.
fn told(inputs: &Inputs) -> &[PathBuf] {
    let of = |key: &str| inputs.get(key).map_or(&[][..], Vec::as_slice);
    match of("records") {
        [] if of("model").iter().all(|model| model.join("record.json").is_file()) => of("model"),
        records => records,
    }
}

/// Renders `README.md` into `folder` from the records of the inputs `model` and `records`.
pub(crate) fn write(config: &CardConfig, inputs: &Inputs, folder: &Path, record: &mut Record) -> anyhow::Result<()> {
    let mut evidence = Vec::new();
    for path in told(inputs) {
        let found = Record::read(path).with_context(|| format!("{} has no readable record.json", path.display()))?;
        if found.kind == "rescore" {
            let path = path.display();
            let text = format!(
                "{path} is the output of `aloe rescore`; a card tells what stages measured: name the evaluation itself"
            );
            return Err(Failure::usage(text).into());
        }
        let stage = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        evidence.push(Evidence { stage, record: found });
    }
    let text = render(config, &evidence);
    atomic::write(&folder.join("README.md"), text.as_bytes())?;
    record.result("n_records", evidence.len())?;
    record.result("summary", format!("model card from {} records", evidence.len()))?;
    Ok(())
}

/// The whole card.
pub(crate) fn render(config: &CardConfig, evidence: &[Evidence]) -> String {
    let mut text = front_matter(config, evidence);
    text.push_str(&format!("\n# {}\n\n", config.model_name));
    if let Some(warning) = &config.warning {
        text.push_str(&format!("> **{warning}**\n\n"));
    }
    if let Some(warning) = evaluation::refusal_warning(evidence) {
        text.push_str(&format!("> **{warning}**\n\n"));
    }
    text.push_str(&sections::details(config));
    text.push_str(sections::USES);
    text.push_str(&sections::risks());
    text.push_str(&sections::get_started(config));
    text.push_str(&training::section(evidence));
    text.push_str(&evaluation::section(config, evidence));
    text.push_str(&environment(config, evidence));
    text.push_str(&sections::technical(evidence));
    text.push_str(&sections::closing(config));
    text
}

/// Records of one kind, in the order given.
pub(crate) fn of_kind<'a>(evidence: &'a [Evidence], kind: &'a str) -> impl Iterator<Item = &'a Evidence> {
    evidence.iter().filter(move |one| one.record.kind == kind)
}

/// Licences named by the data stages' records, and by the base model's.
pub(crate) fn licences(evidence: &[Evidence]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for one in evidence {
        if let Some(licence) = one.record.results.get("licence").and_then(Value::as_str) {
            found.insert(licence.to_owned());
        }
        let sources = one.record.results.get("data").and_then(|data| data["sources"].as_array());
        for source in sources.into_iter().flatten() {
            found.extend(source["licence"].as_str().map(str::to_owned));
        }
    }
    found
}

fn front_matter(config: &CardConfig, evidence: &[Evidence]) -> String {
    let mut text = format!("---\nlicense: {}\nlanguage:\n", config.licence);
    for language in &config.languages {
        text.push_str(&format!("- {language}\n"));
    }
    text.push_str("library_name: transformers\npipeline_tag: text-generation\nmetrics:\n- accuracy\ntags:\n- biology\n- medical\n");
    text.push_str(&format!("base_model: {}\n", quoted(&config.base_model)));
    let datasets: BTreeSet<String> = of_kind(evidence, "data")
        .flat_map(|one| one.record.results["data"]["sources"].as_array().cloned().unwrap_or_default())
        .filter_map(|source| source["name"].as_str().map(str::to_owned))
        .collect();
    if !datasets.is_empty() {
        // The sources' names in the recipe; `datasets:` is for Hub ids only, which the recipe does not promise.
        let names: Vec<String> = datasets.iter().map(|name| quoted(name)).collect();
        text.push_str(&format!("training_sources: [{}]\n", names.join(", ")));
    }
    text.push_str(&evaluation::model_index(config, evidence));
    text.push_str("---\n");
    text
}

/// A YAML string in double quotes.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Hours of a stage's devices: those that another program trained on, the GPUs of its job, or this machine.
fn device_hours(record: &aloe_record::Record) -> f64 {
    let of = |key: &str, hours: &str| record.results.get(key).and_then(|value| value[hours].as_f64());
    let of_job = of("job", "gpu_hours").filter(|hours| *hours > 0.0);
    of("handoff", "device_hours").or(of_job).unwrap_or(record.elapsed_s / 3600.0)
}

fn environment(config: &CardConfig, evidence: &[Evidence]) -> String {
    let hours = evidence.iter().map(|one| device_hours(&one.record)).sum::<f64>();
    let mut text = format!(
        "## Environmental Impact\n\nDevice-hours computed (a device is a GPU, or a machine that computed without one), by the records of {} stages: {hours:.4}. The three formulas of the reference \
         system, each with its terms; the first two assume hardware that was not used here and are shown for comparison.\n\n\
         | formula | terms | kg CO2eq |\n|---|---|---|\n",
        evidence.len()
    );
    for estimate in [carbon::alpha_card(hours), carbon::beta_node(hours), carbon::generic(hours, &config.power)] {
        text.push_str(&format!("| {} | {} | {:.6} |\n", estimate.name, estimate.terms, estimate.kg));
    }
    for one in evidence {
        let job = one.record.results.get("job");
        if let Some(estimate) = job.and_then(|job| carbon::gpu_job(&one.stage, job, &config.power)) {
            text.push_str(&format!("| {} | {} | {:.6} |\n", estimate.name, estimate.terms, estimate.kg));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_without_named_records_tells_its_models_own() {
        let dir = tempfile::tempdir().unwrap();
        let (stage, folder) = (dir.path().join("stage"), dir.path().join("folder"));
        [&stage, &folder].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        std::fs::write(stage.join("record.json"), "{}").unwrap();
        let of = |model: &PathBuf, records: &[PathBuf]| {
            let inputs = [("model", vec![model.clone()]), ("records", records.to_vec())];
            told(&inputs.map(|(key, paths)| (key.to_owned(), paths)).into()).to_vec()
        };
        assert_eq!(of(&stage, &[]), std::slice::from_ref(&stage));
        let named = std::slice::from_ref(&folder);
        assert_eq!(of(&stage, named), named);
        assert!(of(&folder, &[]).is_empty(), "no stage made it");
    }
}
