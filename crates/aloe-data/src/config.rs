//! The settings of a data stage, as written in a recipe, and their check. All mistakes are reported together.

use crate::check;
use crate::dialect::mapped;
use crate::of_stage::is_of_stage;
use crate::scored::Scored;
use crate::{Dialect, Error, Filters, Identifiers, Meaning, Quality, Result, Templates, Use, licence};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// `train.jsonl` of conversations.
    #[default]
    Sft,
    /// `train.jsonl` of preference pairs.
    Pairs,
}

/// Which chat template's turn tokens the injection styles forge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TurnTokenNames {
    /// `<|start_header_id|>`
    Llama3,
    /// `<|im_start|>`
    #[default]
    Chatml,
}

/// Where broken rows go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quarantine {
    /// To `quarantine.jsonl` in the stage's folder; or nowhere, and the stage stops at them.
    InFolder(bool),
    /// To this file: broken rows hold the text of rows, which may have to lie elsewhere than the result.
    File(PathBuf),
}

impl Default for Quarantine {
    fn default() -> Self {
        Self::InFolder(false)
    }
}

impl Quarantine {
    /// Whether the stage goes on past broken rows.
    pub fn is_on(&self) -> bool {
        *self != Self::InFolder(false)
    }
}

/// A data stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Where rows come from; the order decides which duplicate stays.
    pub sources: Vec<SourceConfig>,
    /// Conversations or pairs.
    #[serde(default)]
    pub output: OutputKind,
    /// Cleaning and dropping.
    #[serde(default)]
    pub rules: Rules,
    /// What is done about identifiers of persons, before all other rules. This is no de-identification.
    #[serde(default)]
    pub identifiers: Identifiers,
    /// Rows dropped by their length, language or repetition, after the rules; off by default.
    #[serde(default, skip_serializing_if = "Filters::is_off")]
    pub filters: Filters,
    /// Duplicates.
    #[serde(default)]
    pub dedup: Dedup,
    /// A folder that the merge step of `aloe data dedup` wrote for this stage, in place of a search for duplicates.
    #[serde(default)]
    pub duplicates: Option<PathBuf>,
    /// Files of evaluation questions that no row may overlap.
    #[serde(default)]
    pub decontaminate: Vec<PathBuf>,
    /// Evaluations whose questions no row may overlap either; a recipe gives its own. No part of what decides whether a finished stage
    /// stands: an evaluation that is added must not undo a training. The manifest names them, and the plan what it does not name.
    #[serde(skip)]
    pub scored: Vec<Scored>,
    /// Files of red-team questions, as `scored`.
    #[serde(skip)]
    pub asked: Vec<PathBuf>,
    /// A file of verdicts on the overlaps of an earlier run, see `aloe data review`: rows with the verdict `keep` stay.
    #[serde(default)]
    pub verdicts: Option<PathBuf>,
    /// How near in meaning to an evaluation question a row may be, by the input `embedder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<Meaning>,
    /// Rows dropped by the input `scorer`'s judgement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// Share of rows held apart, in `[0, 1)`; all rows of one question fall on the same side.
    #[serde(default)]
    pub hold_out: f64,
    /// Decides caps, shares, hold-out and order.
    #[serde(default)]
    pub seed: u64,
    /// Pairs only: keep rows of this stage (rows that name no stage stay).
    #[serde(default)]
    pub stage: Option<u64>,
    /// Write broken rows to a file and go on, instead of stopping.
    #[serde(default)]
    pub quarantine: Quarantine,
    /// The result is for commercial use: sources whose licence forbids that stop the run.
    #[serde(default)]
    pub commercial: bool,
    /// What the result is for: sources whose licence forbids one of these, or is not known, stop the run.
    #[serde(default, rename = "use")]
    pub stated_use: Vec<Use>,
    /// A model folder whose tokenizer and template count the tokens of the training rows.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// A built-in template (`llama3`, `chatml`, `alpaca`) for counting with a tokenizer that has none.
    #[serde(default)]
    pub template: Option<String>,
    /// Also write the rows' ids and labels by `tokenizer`, for other trainers.
    #[serde(default)]
    pub rendered: bool,
    /// Instruction templates before the questions.
    #[serde(default)]
    pub templates: Templates,
    /// For [`SourceConfig::attack_styles`].
    #[serde(default)]
    pub turn_tokens: TurnTokenNames,
}

/// One source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Unique; the first part of every row's id.
    pub name: String,
    /// A file, a folder whose data files are read in the order of their names, or the folder of a stage (synthesis, redteam, data), whose rows
    /// are read; in a recipe `stage:NAME` ([`Self::of_stage`]).
    pub path: PathBuf,
    /// As the publisher states it; `unknown` is refused.
    pub licence: String,
    /// The layout; found by content when absent.
    #[serde(default)]
    pub dialect: Option<Dialect>,
    /// Own columns by meaning: `prompt`, `response`, `rejected`, `system`; or of multiple-choice rows `question`, `options` (or `option_1`
    /// to `option_10`), one of `answer_letter`, `answer_index`, `answer_number`, `answer_text`, and `explanation`, `context`, `subject`.
    /// Sets the dialect.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// At most so many rows, drawn by the seed.
    #[serde(default)]
    pub max_rows: Option<usize>,
    /// Rows and broken rows that the files must hold in all; the stage refuses any other number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_rows: Option<usize>,
    /// Rated answers (HelpSteer): how many points of helpfulness the better side of a pair must lie above the worse; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating_gap: Option<u8>,
    /// How often each row appears: 2 twice, 0.5 half of the rows.
    #[serde(default = "one")]
    pub weight: f64,
    /// Sub-task named in the manifest; the layout's own when absent.
    #[serde(default)]
    pub task: Option<String>,
    /// Subject for rows that name none.
    #[serde(default)]
    pub subject: Option<String>,
    /// Split of the published set that the rows are of; where absent, what a row's column `split` or the file's name says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// A system message put before each conversation or prompt that has none.
    #[serde(default)]
    pub system: Option<String>,
    /// Pairs only: wrap each plain red-team question (a row with `question_id`) in every attack style that is not held out.
    #[serde(default)]
    pub attack_styles: bool,
    /// Pairs only: for layouts with a safe answer and no other, use a fixed compliant opening as the rejected side.
    #[serde(default)]
    pub rejected_openings: bool,
    /// Pairs of a red-team run's answers only: a file or folder of safe answers by `question_id` or by the question's text, which are the
    /// chosen sides before the model's own safe answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safe_answers: Option<PathBuf>,
}

/// Whether `path` may be written over: absent, empty, or JSON lines of broken rows.
fn is_quarantine(path: &Path) -> bool {
    use std::io::BufRead as _;
    let Ok(file) = std::fs::File::open(path) else { return !path.exists() };
    let mut first = String::new();
    match std::io::BufReader::new(file).read_line(&mut first) {
        Ok(0) => true,
        Ok(_) => serde_json::from_str::<serde_json::Value>(&first)
            .is_ok_and(|row| row.get("reason").is_some() && row.get("at").is_some()),
        Err(_) => false,
    }
}

fn one() -> f64 {
    1.0
}

impl SourceConfig {
    /// What is wrong with the stated licence of rows that an earlier stage took in under the licence `kept`, or that say so themselves: it must
    /// not allow more. Of one that says that nobody stated it, nothing is: to state it is what the source does.
    pub fn licence_mistake(&self, kept: &str) -> Option<String> {
        if licence::is_unstated(kept) {
            return None;
        }
        let reason = licence::allows_more(&self.licence, kept)?;
        // What a row says is text of a row, and shown where it is a licence that is known.
        let text = format!("(a text of {} characters)", kept.chars().count());
        let kept = if licence::is_known(kept) { kept } else { &text };
        Some(format!(
            "source `{}`: its rows carry the licence `{kept}`, which {reason}, and the stated licence `{}` does not say so; \
             state `{kept}`, or of several licences all, joined by AND",
            self.name, self.licence
        ))
    }

    /// The settings of rows that are only compared with.
    pub(crate) fn plain() -> SourceConfig {
        SourceConfig {
            name: String::new(),
            path: PathBuf::new(),
            licence: String::new(),
            dialect: None,
            columns: BTreeMap::new(),
            max_rows: None,
            expect_rows: None,
            rating_gap: None,
            weight: 1.0,
            task: None,
            subject: None,
            split: None,
            system: None,
            attack_styles: false,
            rejected_openings: false,
            safe_answers: None,
        }
    }
}

/// The named rules, each on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_excessive_bools, reason = "each rule is one switch of the recipe")]
pub struct Rules {
    /// Take out URLs, e-mail addresses, control characters and repeated spaces.
    pub clean: bool,
    /// Turn literal `\n` and `\t` of texts without a line break into breaks. Off: code rows hold them rightly.
    pub literal_breaks: bool,
    /// Drop rows whose question is on the list of Aloe-Beta's Table B5.
    pub drop_listed_questions: bool,
    /// Drop rows whose answer is on the list of Table B6.
    pub drop_listed_answers: bool,
    /// Reduce contentless explanations to the answer line (Table B7).
    pub contentless_mcqa: bool,
    /// Drop rows with an empty question or answer.
    pub drop_empty: bool,
    /// Take a user's last turn off a dialogue that nobody answered.
    pub unanswered_end: bool,
    /// Drop pairs whose two sides are the same.
    pub equal_sides: bool,
    /// Drop pairs whose published ratings put the chosen side below the rejected one. Not written where it is on, so that
    /// the settings of a stage from before it was a switch are the same; whether that stage stands is not for settings alone to say.
    #[serde(skip_serializing_if = "is_on")]
    pub chosen_rated_below_rejected: bool,
    /// Drop red-team rows in an attack style that is kept for evaluation.
    pub held_out_style: bool,
    /// Drop synthetic rows whose reasoning betrays that the answer was given beforehand.
    pub betraying: bool,
    /// Capitals and punctuation: texts in capitals alone to sentence case, curly quotes straight, repeated `!`, `?` and commas once,
    /// no space before a stop. Off: it also touches texts that mean it so.
    pub standardise: bool,
}

fn is_on(switch: &bool) -> bool {
    *switch
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            clean: true,
            literal_breaks: false,
            drop_listed_questions: true,
            drop_listed_answers: true,
            contentless_mcqa: true,
            drop_empty: true,
            unanswered_end: true,
            equal_sides: true,
            chosen_rated_below_rejected: true,
            held_out_style: true,
            betraying: true,
            standardise: false,
        }
    }
}

/// Which row of a cluster of duplicates stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The first, by the order of sources, files and lines.
    #[default]
    First,
    /// The one of the most characters; of equally long ones the first.
    Longest,
}

impl Keep {
    fn is_first(&self) -> bool {
        *self == Self::First
    }
}

/// Which duplicates go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dedup {
    /// Rows whose text is equal but for case and punctuation.
    pub exact: bool,
    /// Rows that share a MinHash bucket: 14 x 8 (threshold 0.72) for one question and answer, 11 x 9 (0.77) for dialogues.
    /// As in Datatrove, rows of five words or more that differ only in numbers count as duplicates.
    pub minhash: bool,
    /// Which row of duplicates stays.
    #[serde(skip_serializing_if = "Keep::is_first")]
    pub keep: Keep,
    /// Cosine from which on two rows are duplicates by the input `embedder`; not compared without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub semantic: Option<f64>,
}

impl Default for Dedup {
    fn default() -> Self {
        Dedup { exact: true, minhash: true, keep: Keep::First, semantic: None }
    }
}

impl DataConfig {
    /// Makes relative paths relative to `base`, the recipe's folder.
    pub fn resolve_paths(&mut self, base: &Path) {
        let quarantine = match &mut self.quarantine {
            Quarantine::File(path) => Some(path),
            Quarantine::InFolder(_) => None,
        };
        for path in self
            .sources
            .iter_mut()
            .flat_map(|source| std::iter::once(&mut source.path).chain(&mut source.safe_answers))
            .chain(&mut self.decontaminate)
            .chain(&mut self.tokenizer)
            .chain(&mut self.duplicates)
            .chain(&mut self.verdicts)
            .chain(quarantine)
            .chain(self.quality.iter_mut().filter_map(|quality| quality.tokenizer.as_mut()))
        {
            if path.is_relative() && !is_of_stage(path) {
                *path = base.join(&*path);
            }
        }
    }

    /// Every file and folder whose content decides the result, but for what stages make: sources, evaluation questions with the list of PubMedQA's test
    /// instances that stands beside them, and the tokenizer.
    pub fn files(&self) -> Vec<PathBuf> {
        let own = self.sources.iter().filter(|source| source.of_stage().is_none());
        let mut files: Vec<PathBuf> = own.map(|source| source.path.clone()).collect();
        files.extend(self.sources.iter().filter_map(|source| source.safe_answers.clone()));
        for path in &self.decontaminate {
            files.push(path.clone());
            files.extend(crate::decontaminate::test_list(path).filter(|list| list.exists()));
        }
        files.extend(self.tokenizer.clone());
        files.extend(self.duplicates.clone());
        files.extend(self.verdicts.clone());
        files.extend(self.quality.iter().filter_map(|quality| quality.tokenizer.clone()));
        files
    }

    fn uses(&self) -> Vec<Use> {
        let mut uses = self.stated_use.clone();
        uses.extend(self.commercial.then_some(Use::Commercial));
        uses
    }

    /// A quarantine file is written whole: it must be no file that is read, and nothing else than an earlier quarantine.
    fn check_quarantine(&self, mistakes: &mut Vec<String>) {
        let Quarantine::File(path) = &self.quarantine else { return };
        let own = aloe_record::atomic::real(path);
        if let Some(read) = self.files().into_iter().find(|read| own.starts_with(aloe_record::atomic::real(read))) {
            mistakes.push(format!(
                "`quarantine` {} is read by this stage ({}); name another file",
                path.display(),
                read.display()
            ));
        } else if !is_quarantine(path) {
            mistakes.push(format!(
                "`quarantine` {} is there and is no quarantine of this program; name another file",
                path.display()
            ));
        }
    }

    /// Checks everything that can be known without reading the rows.
    pub fn check(&self) -> Result<()> {
        let mut mistakes = Vec::new();
        self.check_quarantine(&mut mistakes);
        mistakes.extend(self.misplaced_stages());
        if self.sources.is_empty() {
            mistakes.push("`sources` is empty".to_owned());
        }
        if !(0.0..1.0).contains(&self.hold_out) {
            mistakes.push(format!("`hold_out` is {}; it must be at least 0 and below 1", self.hold_out));
        }
        let mut names = BTreeSet::new();
        for source in &self.sources {
            if !names.insert(source.name.as_str()) {
                mistakes.push(format!("two sources are named `{}`", source.name));
            }
            self.check_source(source, &mut mistakes);
        }
        if self.rendered && self.tokenizer.is_none() {
            mistakes.push(
                "`rendered` needs `tokenizer`, the model folder whose tokenizer and template make the ids".to_owned(),
            );
        }
        if self.template.is_some() && self.tokenizer.is_none() {
            mistakes.push(
                "`template` is for counting with `tokenizer`, which is not given; `templates` are another thing"
                    .to_owned(),
            );
        }
        if self.output == OutputKind::Pairs && self.templates.is_on() {
            mistakes.push("`templates` is for `output = \"sft\"`".to_owned());
        }
        mistakes.extend(self.templates.mistakes(&self.sources.iter().filter_map(|one| one.task.as_deref()).collect()));
        if self.output == OutputKind::Sft && self.stage.is_some() {
            mistakes.push("`stage` is for `output = \"pairs\"`".to_owned());
        }
        if let Some(cosine) = self.dedup.semantic.filter(|cosine| !(*cosine > 0.0 && *cosine <= 1.0)) {
            mistakes.push(format!("`dedup.semantic` is {cosine}; a cosine above 0 and at most 1 is meant"));
        }
        mistakes.extend(self.filters.mistakes());
        mistakes.extend(self.meaning.iter().flat_map(Meaning::mistakes));
        mistakes.extend(self.quality.iter().flat_map(Quality::mistakes));
        if self.output == OutputKind::Pairs && self.quality.is_some() {
            mistakes.push("`quality` scores conversations: leave it out with `output = \"pairs\"`".to_owned());
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config { mistakes }) }
    }

    /// What is wrong between the settings and the names of the stage's inputs. `compares` is whether there are evaluation questions, here
    /// or, as far as is known, in the recipe.
    pub fn input_mistakes(&self, inputs: &[&str], compares: bool) -> Vec<String> {
        let has = |name: &str| inputs.contains(&name);
        let mut mistakes = Vec::new();
        let mut refuse = |is_wrong: bool, text: &str| is_wrong.then(|| mistakes.push(text.to_owned()));
        refuse(self.meaning.is_some() && !has("embedder"), "`meaning` needs the input `embedder`");
        refuse(
            has("judge") && !has("embedder"),
            "the input `judge` is shown what the input `embedder` finds: add that",
        );
        refuse(
            has("embedder") && !compares && self.dedup.semantic.is_none(),
            "the input `embedder` needs questions to compare with (`decontaminate`), or `dedup.semantic`",
        );
        refuse(self.dedup.semantic.is_some() && !has("embedder"), "`dedup.semantic` needs the input `embedder`");
        refuse(self.meaning.is_some() && !compares, "`meaning` needs questions to compare with: `decontaminate`");
        refuse(self.quality.is_some() && !has("scorer"), "`quality` needs the input `scorer`");
        refuse(has("scorer") && self.quality.is_none(), "the input `scorer` is of no use without `quality = {}`");
        mistakes
    }

    fn check_source(&self, source: &SourceConfig, mistakes: &mut Vec<String>) {
        let name = &source.name;
        let mut mistake = |text: String| mistakes.push(format!("source `{name}`: {text}"));
        if name.is_empty() || name.contains(['/', ':', '#']) {
            mistake("`name` must not be empty nor hold `/`, `:` or `#`".into());
        }
        let stated = source.licence.trim().to_lowercase();
        if licence::is_unstated(&stated) {
            mistake("the licence is unknown; state it, for nobody may train on what nobody may use".into());
        }
        if let Some(reason) = licence::forbids(&stated, &self.uses()) {
            mistake(format!("licence `{}` {reason}; the recipe states the use", source.licence));
        }
        // A stage that is yet to run has no folder: the recipe asks for its licences.
        let kept = if source.of_stage().is_some() { Ok(BTreeSet::new()) } else { licence::kept_in(&source.path) };
        match kept {
            Ok(kept) => mistakes.extend(kept.iter().filter_map(|kept| source.licence_mistake(kept))),
            Err(error) => mistakes.push(format!("source `{name}`: the licences of its rows cannot be read: {error}")),
        }
        let mut mistake = |text: String| mistakes.push(format!("source `{name}`: {text}"));
        if !(source.weight > 0.0 && source.weight <= 100.0) {
            mistake(format!("`weight` is {}; it must be above 0 and at most 100", source.weight));
        }
        if source.rating_gap.is_some_and(|gap| !(1..=4).contains(&gap)) {
            mistake("`rating_gap` must be 1 to 4: ratings go from 0 to 4".into());
        }
        if let Some(dialect) = check::known_dialect(source) {
            let of = if source.dialect.is_some() { "`dialect`" } else { "`columns`" };
            source.ignored_by(dialect).for_each(|key| mistakes.push(source.ignored(key, dialect, of)));
        }
        let mut mistake = |text: String| mistakes.push(format!("source `{name}`: {text}"));
        mapped::mistakes(&source.columns).into_iter().for_each(&mut mistake);
        if !source.columns.is_empty() && source.dialect.is_some() {
            mistake("give either `dialect` or `columns`".into());
        }
        if self.output == OutputKind::Sft && (source.attack_styles || source.rejected_openings) {
            mistake("`attack_styles` and `rejected_openings` are for `output = \"pairs\"`".into());
        }
        if self.output == OutputKind::Sft && source.safe_answers.is_some() {
            mistake("`safe_answers` is for `output = \"pairs\"`".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, licence: &str) -> serde_json::Value {
        serde_json::json!({"name": name, "path": "x.jsonl", "licence": licence})
    }

    fn config(value: serde_json::Value) -> DataConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let config = config(serde_json::json!({
            "sources": [source("a", "MIT"), source("a", "unknown"), source("b", "CC BY-NC 4.0")],
            "commercial": true, "hold_out": 1.5
        }));
        let text = config.check().unwrap_err().to_string();
        for part in ["two sources are named `a`", "licence is unknown", "forbids commercial use", "`hold_out` is 1.5"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn the_tokenizer_and_the_list_of_test_instances_are_among_the_files_that_decide() {
        let dir = tempfile::tempdir().unwrap();
        let (questions, list) = (dir.path().join("ori_pqal.json"), dir.path().join("test_ground_truth.json"));
        let value =
            serde_json::json!({"sources": [source("a", "MIT")], "decontaminate": [questions], "tokenizer": "tok"});
        let files = || config(value.clone()).files();
        assert_eq!(files(), [PathBuf::from("x.jsonl"), questions.clone(), "tok".into()]);
        std::fs::write(&list, "{}").unwrap();
        assert_eq!(files(), [PathBuf::from("x.jsonl"), questions.clone(), list.clone(), "tok".into()]);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let value = serde_json::json!({"sources": [], "sede": 1});
        assert!(serde_json::from_value::<DataConfig>(value).is_err());
    }
}
