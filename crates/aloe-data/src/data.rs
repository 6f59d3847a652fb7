//! The spine of a data stage: read, clean, take duplicates out, take overlaps out, mix, write with an account of every row.
//!
//! Writes into `out`: `train.jsonl` (`messages`, or `prompt`/`chosen`/`rejected`, with `id`, `source`, `licence`, `split`, `task`, `subject`, `made`, `question_id` and `style`), `hold_out.jsonl`,
//! `manifest.json`, `report.html`, `ledger.jsonl` (each row changed, dropped, held out or left out, and its rule), `duplicates.jsonl`, `overlaps.jsonl` and, when asked
//! for, `quarantine.jsonl`, `rendered.jsonl` and `rendered_hold_out.jsonl`, `unjudged.jsonl` (pairs without a judge's verdict) and
//! `scores.jsonl` (of quality). The same settings and files give the same bytes.

use crate::decontaminate::{HeldFile, Index, Overlap};
use crate::dedup::{self, Duplicate};
use crate::dialect::Dialect;
use crate::dialect::own_answers::SafeAnswers;
use crate::item::Alike;
use crate::manifest::{DataReport, SourceReport};
use crate::mixture::{self, Mixture};
use crate::review::{Reviewed, Verdicts};
use crate::rules::{self, Outcome};
use crate::steps::Steps;
use crate::synthesis::betrayal;
use crate::{
    Body, DataConfig, Error, Item, OutputKind, Problems, Quarantine, Result, RowError, page, parallel, red_team, scored,
};
use aloe_record::{Cancel, Progress, atomic, digest};
use aloe_text::{Message, Pair, Role};
use ledger::Entry;
use licences::licence_of;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// Bytes of rows, about: with what a stage takes beside them they stay within the 256 MiB that the check of a broken set may take.
const MOST_UNCHECKED: usize = 128 << 20;

/// Everything a run gathers on its way.
struct Run<'a> {
    config: &'a DataConfig,
    n_threads: usize,
    cancel: &'a Cancel,
    report: DataReport,
    items: Vec<Item>,
    /// What they say alike.
    alike: Alike,
    /// Whether rows are kept: without a quarantine not from the first broken one on, which ends the stage once all are counted, nor beyond
    /// `most_unchecked`.
    is_kept: bool,
    /// Bytes of rows that are kept, about, and how many may be before all rows of all sources are known to be sound.
    n_unchecked: usize,
    most_unchecked: usize,
    /// Of the file that is read.
    n_by_dialect: BTreeMap<Dialect, usize>,
    /// By source, once they are read.
    safe_answers: BTreeMap<usize, SafeAnswers>,
    ledger: Vec<Entry>,
    problems: Problems,
    quarantined: Vec<RowError>,
    /// A reader's verdicts on overlaps, and the overlaps.
    reviewed: Reviewed,
    /// Of a shard: rows are signed and forgotten.
    sink: Option<shard::Sink<'a>>,
    /// Files that models' answers were written to, with their digests.
    by_model: Vec<(&'static str, String)>,
}

/// As [`run_with`], without models.
pub fn run(
    config: &DataConfig,
    out: &Path,
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<DataReport> {
    run_with(config, Models::default(), out, n_threads, progress, cancel)
}

/// Runs the stage into the folder `out` on at most `n_threads` threads; their number changes no byte.
pub fn run_with(
    config: &DataConfig,
    models: Models,
    out: &Path,
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<DataReport> {
    config.check()?;
    let mut run = Run::new(config, n_threads, cancel);
    let mut steps = Steps::start();
    // What can be wrong about them is told before rows are read and models asked.
    let text = render::open(config)?;
    run.check_merged()?;
    if let Some(path) = &config.verdicts {
        run.reviewed = Reviewed::of(Verdicts::read(path)?);
    }
    run.read_sources(progress)?;
    steps.end("reading");
    let index = run.read_held_apart()?;
    steps.end("questions");
    run.stop_at_broken_rows()?;
    run.check_kinds()?;
    run.check_licences()?;
    run.take_identifiers()?;
    run.apply_rules()?;
    run.check_subjects()?;
    steps.end("cleaning");
    progress.set_total(2 * run.items.len() as u64);
    let mut duplicates = match &config.duplicates {
        Some(folder) => dedup::described(&run.items, &shard::read_merged(folder, &run)?, n_threads),
        None => dedup::find(&run.items, &config.dedup, n_threads, progress, cancel)?,
    };
    run.drop_rows(duplicates.iter().map(|found| (found.dropped_index, found.rule.to_owned())).collect());
    steps.end("duplicates");
    let mut overlaps = run.take_overlaps_out(&index, progress)?;
    steps.end("overlaps");
    overlaps.extend(run.drop_by_meaning(&index, models, out, progress)?);
    duplicates.extend(run.drop_semantic_duplicates(models, out, progress)?);
    run.drop_low_quality(models, out, progress)?;
    steps.end("models");
    run.count_clusters(&duplicates);
    run.add_variants();
    let mixture = mixture::mix(&run.items, config);
    run.add_templates(&mixture)?;
    run.count(&mixture)?;
    steps.end("mixing");
    run.render(text.as_ref(), out, &mixture)?;
    steps.end("rendering");
    run.write(out, &mixture, &duplicates, &overlaps)?;
    steps.end("writing");
    run.report.steps = steps.finish();
    Ok(run.report)
}

impl<'a> Run<'a> {
    fn new(config: &'a DataConfig, n_threads: usize, cancel: &'a Cancel) -> Run<'a> {
        let sources = config.sources.iter().map(|source| SourceReport {
            name: source.name.clone(),
            licence: source.licence.clone(),
            ..SourceReport::default()
        });
        let output = match config.output {
            OutputKind::Sft => "sft",
            OutputKind::Pairs => "pairs",
        };
        let report = DataReport {
            output: output.into(),
            seed: config.seed,
            sources: sources.collect(),
            ..DataReport::default()
        };
        let (items, ledger, quarantined) = (Vec::new(), Vec::new(), Vec::new());
        let (problems, by_model, sink, reviewed) = (Problems::default(), Vec::new(), None, Reviewed::default());
        let (n_by_dialect, safe_answers) = (BTreeMap::new(), BTreeMap::new());
        let most_unchecked = if config.quarantine.is_on() { usize::MAX } else { MOST_UNCHECKED };
        Run {
            config,
            n_threads,
            cancel,
            report,
            items,
            alike: Alike::default(),
            is_kept: true,
            n_unchecked: 0,
            most_unchecked,
            n_by_dialect,
            safe_answers,
            ledger,
            problems,
            quarantined,
            reviewed,
            sink,
            by_model,
        }
    }

    /// Broken evaluation questions count as broken rows do: without a quarantine they stop the run, with one they are named there, in
    /// the report and in a notice, for nothing was compared with them.
    fn read_held_apart(&mut self) -> Result<Index> {
        let questions = scored::questions(&self.config.scored)?;
        let files = HeldFile::all_of(&self.config.decontaminate, &self.config.asked, questions.keys())?;
        self.report.compared_with = scored::names(self.config);
        for file in &files {
            self.report.held_apart_files.insert(file.label.clone(), digest::file(&file.path)?);
        }
        let (problems, report, quarantined) = (&mut self.problems, &mut self.report, &mut self.quarantined);
        let index =
            Index::read(&files, questions, self.config.identifiers == crate::Identifiers::Mask, &mut |error| {
                problems.add(error.clone());
                report.n_held_apart_broken += 1;
                if self.config.quarantine.is_on() {
                    quarantined.push(error);
                }
                Ok(())
            })?;
        self.report.n_held_apart_questions = index.len();
        self.report.n_held_apart_too_common = index.n_too_common;
        self.report.held_apart_rows = index.n_by_file.clone();
        Ok(index)
    }

    fn stop_at_broken_rows(&mut self) -> Result<()> {
        if self.problems.total > 0 && !self.config.quarantine.is_on() {
            return Err(Error::Rows { problems: std::mem::take(&mut self.problems) });
        }
        self.report.broken = self.problems.clone();
        Ok(())
    }

    fn check_kinds(&self) -> Result<()> {
        for item in &self.items {
            let (found, fits) = match item.body {
                Body::Conversation(_) => ("conversation", self.config.output == OutputKind::Sft),
                Body::Pair(_) => ("preference", self.config.output == OutputKind::Pairs),
            };
            if !fits {
                let wanted = if self.config.output == OutputKind::Sft { "sft" } else { "pairs" };
                let name = self.config.sources[item.source].name.clone();
                return Err(Error::Kind { name, at: item.at.to_string(), found, wanted });
            }
        }
        Ok(())
    }

    fn apply_rules(&mut self) -> Result<()> {
        let mut items = std::mem::take(&mut self.items);
        let config = self.config;
        let outcomes = parallel::map_mut(self.n_threads, &mut items, |item| outcome(item, config));
        self.cancel.check()?;
        let mut outcomes = outcomes.into_iter();
        // In place: a second list of rows would double their memory.
        items.retain(|item| match outcomes.next() {
            Some(Outcome::Dropped(rule)) => {
                self.drop_one(item, rule);
                false
            }
            Some(Outcome::Kept(changed)) => {
                for rule in changed {
                    self.report.sources[item.source].count_change(rule);
                    self.enter(item, "changed", rule);
                }
                true
            }
            None => true,
        });
        self.items = items;
        Ok(())
    }

    fn enter(&mut self, item: &Item, action: &'static str, rule: impl Into<Cow<'static, str>>) {
        self.ledger.push(Entry::of(item, action, rule));
    }

    fn drop_one(&mut self, item: &Item, rule: impl Into<Cow<'static, str>>) {
        let rule = rule.into();
        self.report.sources[item.source].count_drop(&rule);
        self.enter(item, "dropped", rule);
    }

    /// `found` is in row order.
    fn drop_rows(&mut self, found: Vec<(usize, String)>) {
        let mut found = found.into_iter().peekable();
        let mut items = std::mem::take(&mut self.items);
        let mut index = 0;
        items.retain(|item| {
            let hit = found.next_if(|(row, _)| *row == index);
            index += 1;
            let stays = hit.is_none();
            if let Some((_, rule)) = hit {
                self.drop_one(item, rule);
            }
            stays
        });
        self.items = items;
    }

    fn add_variants(&mut self) {
        for source in 0..self.config.sources.len() {
            if self.config.sources[source].attack_styles {
                let own: Vec<Item> = self.items.iter().filter(|item| item.source == source).cloned().collect();
                let made = red_team::variants(&own, self.config.turn_tokens);
                self.report.sources[source].n_made += made.len();
                self.items.extend(made);
            }
        }
    }

    fn write(&mut self, out: &Path, mixture: &Mixture, duplicates: &[Duplicate], overlaps: &[Overlap]) -> Result<()> {
        let mut written = vec![("train.jsonl", self.rows(&out.join("train.jsonl"), &mixture.train)?)];
        if self.config.hold_out > 0.0 {
            written.push(("hold_out.jsonl", self.rows(&out.join("hold_out.jsonl"), &mixture.held_out)?));
        }
        written.push(("ledger.jsonl", self.write_ledger(&out.join("ledger.jsonl"), mixture)?));
        written.push(("duplicates.jsonl", lines(&out.join("duplicates.jsonl"), duplicates)?));
        written.push(("overlaps.jsonl", lines(&out.join("overlaps.jsonl"), overlaps)?));
        match &self.config.quarantine {
            Quarantine::InFolder(false) => {}
            Quarantine::InFolder(true) => {
                written.push(("quarantine.jsonl", self.write_quarantine(&out.join("quarantine.jsonl"))?));
            }
            Quarantine::File(path) => self.report.quarantine = Some((path.clone(), self.write_quarantine(path)?)),
        }
        written.append(&mut self.by_model);
        self.report.outputs.extend(written.into_iter().map(|(name, digest)| (name.to_owned(), digest)));
        let page = page::draw(&self.report, &self.items, &mixture.train, duplicates, overlaps);
        page.write(&out.join("report.html"))?;
        atomic::write_json(&out.join("manifest.json"), &self.report)?;
        Ok(())
    }

    fn rows(&self, path: &Path, indices: &[usize]) -> Result<String> {
        lines(path, indices.iter().map(|&row| self.line(&self.items[row])))
    }

    fn line<'b>(&'b self, item: &'b Item) -> Line<'b> {
        let or_none = |text: &'b Option<String>| text.as_deref().unwrap_or_default();
        let (source, id) = (self.config.sources[item.source].name.as_str(), item.id.as_str());
        let (task, subject, made) = (&*item.about.task, item.about.subject.as_str(), or_none(&item.rare().made));
        let (question_id, style) = (or_none(&item.rare().group), or_none(&item.rare().style));
        let (licence, split) = (licence_of(item, self.config), item.about.split.as_deref().unwrap_or_default());
        match &item.body {
            Body::Conversation(conversation) => {
                let messages = &conversation.messages;
                Line::Conversation { messages, source, id, licence, split, task, subject, made, question_id, style }
            }
            Body::Pair(pair) => {
                let Pair { prompt, chosen, rejected } = &**pair;
                Line::Pair {
                    prompt,
                    chosen,
                    rejected,
                    source,
                    id,
                    licence,
                    split,
                    task,
                    subject,
                    made,
                    question_id,
                    style,
                }
            }
        }
    }
}

/// A row as it is written. All rows have all columns, empty where nothing is known: readers that take the columns of the first rows for
/// those of all, as Hugging Face's do, fail on one that comes later.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Conversation {
        messages: &'a [Message],
        source: &'a str,
        id: &'a str,
        licence: &'a str,
        split: &'a str,
        task: &'a str,
        subject: &'a str,
        made: &'a str,
        question_id: &'a str,
        style: &'a str,
    },
    Pair {
        prompt: &'a [Message],
        chosen: &'a [Message],
        rejected: &'a [Message],
        source: &'a str,
        id: &'a str,
        licence: &'a str,
        split: &'a str,
        task: &'a str,
        subject: &'a str,
        made: &'a str,
        question_id: &'a str,
        style: &'a str,
    },
}

/// What the rules make of a row.
fn outcome(item: &mut Item, config: &DataConfig) -> Outcome {
    if item.rare().stage.is_some_and(|stage| config.stage.is_some_and(|wanted| wanted != stage)) {
        Outcome::Dropped("other_stage")
    } else if config.rules.held_out_style && red_team::is_held_out(item) {
        Outcome::Dropped("held_out_style")
    } else if config.rules.betraying && is_betraying(item) {
        Outcome::Dropped("betrays_answer")
    } else {
        match rules::apply(item, &config.rules) {
            Outcome::Kept(changed) => config.filters.dropped_by(item).map_or(Outcome::Kept(changed), Outcome::Dropped),
            dropped => dropped,
        }
    }
}

/// Whether a synthetic row reasons from an answer known beforehand.
fn is_betraying(item: &Item) -> bool {
    let betrays = |message: &&Message| message.role == Role::Assistant && betrayal(&message.content).is_some();
    item.rare().made.is_some() && item.messages().iter().any(betrays)
}

/// Writes JSON lines atomically; gives their digest.
pub(crate) fn lines<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<String> {
    let mut hasher = digest::Hasher::default();
    let mut text = Vec::new();
    atomic::write_with(path, |file| -> Result<()> {
        let mut flush = |text: &mut Vec<u8>| {
            hasher.update(text);
            let written = file.write_all(text);
            text.clear();
            written.map_err(aloe_record::Error::io("write", path))
        };
        for row in rows {
            serde_json::to_writer(&mut text, &row)
                .map_err(|error| aloe_record::Error::io("write", path)(error.into()))?;
            text.push(b'\n');
            if text.len() >= N_WRITTEN {
                flush(&mut text)?;
            }
        }
        Ok(flush(&mut text)?)
    })?;
    Ok(hasher.hex())
}

/// Bytes that are hashed and written together.
const N_WRITTEN: usize = 1 << 16;

mod by_model;
mod count;
mod identify;
mod ledger;
mod licences;
pub(crate) mod own_answers;
mod read;
mod render;
pub(crate) mod shard;
mod template;
mod verdict;

pub use by_model::Models;
pub(crate) use read::{id, with_raw};

#[cfg(test)]
mod tests;
