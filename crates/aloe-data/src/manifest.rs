//! The account of a data stage: every row read is kept, dropped by a named rule, held out, over a cap or broken, and the sum is right.

use crate::{Item, MeaningReport, Problems, QualityReport, Step};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// One source: what it is, what became of its rows, what it brings to the training rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// As stated in the recipe.
    pub licence: String,
    /// File to SHA-256.
    pub files: BTreeMap<String, String>,
    /// Files of its folder that no reader is for.
    pub skipped_files: Vec<String>,
    /// The layouts found, a row count each.
    pub dialects: BTreeMap<String, usize>,
    /// Columns of the files' rows that say something and that their layout does not read.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unused_columns: BTreeSet<String>,
    /// Those of them that hold a sentence in some row, for the notice.
    #[serde(skip)]
    pub unused_sentences: BTreeSet<String>,
    /// Rows in the files, broken ones included.
    pub n_read: usize,
    /// Rows that could not be read.
    pub n_broken: usize,
    /// Rows built from others: attack variants, and the second and further instances of an instruction.
    pub n_made: usize,
    /// Pairs whose two sides have the same rating, in columns of their set.
    #[serde(default, skip_serializing_if = "is_none")]
    pub n_equal_rating: usize,
    /// What became of each row.
    pub account: Account,
    /// Kind of identifier to how many were found in the rows read; empty when they were not looked for.
    pub identifiers: BTreeMap<String, usize>,
    /// Rows with an identifier.
    pub n_with_identifiers: usize,
    /// Template, as `sub-task/number`, to the rows written with it, each once; rows of other tasks have none.
    pub templates: BTreeMap<String, usize>,
    /// Task to the rows written, each once, that templates were asked for and that have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub without_template: BTreeMap<String, usize>,
    /// Rule to rows changed.
    pub changed: BTreeMap<String, usize>,
    /// Rule to rows dropped.
    pub dropped: BTreeMap<String, usize>,
    /// Rows held out.
    pub n_held_out: usize,
    /// Rows written for training, copies by weight counted.
    pub n_train: usize,
    /// Sub-task to training rows.
    pub tasks: BTreeMap<String, usize>,
    /// Subject to training rows.
    pub subjects: BTreeMap<String, usize>,
    /// How synthetic rows say they came about to training rows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub synthetic: BTreeMap<String, usize>,
    /// Characters of the training rows.
    pub n_chars: usize,
    /// Tokens of the training rows with their template, when the recipe names a tokenizer; of pairs the prompt counts twice.
    pub n_tokens: Option<usize>,
    /// Tokens that the loss sees.
    pub n_target_tokens: Option<usize>,
}

impl SourceReport {
    pub(crate) fn count_change(&mut self, rule: &str) {
        *self.changed.entry(rule.to_owned()).or_default() += 1;
    }

    pub(crate) fn count_drop(&mut self, rule: &str) {
        *self.dropped.entry(rule.to_owned()).or_default() += 1;
    }

    /// `columns` by name, and whether a row holds a sentence there.
    pub(crate) fn count_unused(&mut self, columns: BTreeMap<String, bool>) {
        for (name, is_sentence) in columns {
            self.unused_sentences.extend(is_sentence.then(|| name.clone()));
            self.unused_columns.insert(name);
        }
    }

    /// The sums by reason, from the counts above and the rows that the mixture left out.
    pub(crate) fn settle(&mut self, left: LeftOut) {
        let of = |test: fn(&str) -> bool| self.dropped.iter().filter(|(rule, _)| test(rule)).map(|(_, n)| n).sum();
        self.account = Account {
            n_read: self.n_read,
            n_made: self.n_made,
            n_repeated: left.n_repeated,
            n_train: self.n_train,
            n_held_out: self.n_held_out,
            n_overlap: of(|rule| rule.starts_with(OVERLAP)),
            n_exact_duplicate: of(|rule| rule == EXACT),
            n_near_duplicate: of(|rule| rule == NEAR || rule == SEMANTIC),
            n_rules: of(|rule| !rule.starts_with(OVERLAP) && rule != EXACT && rule != NEAR && rule != SEMANTIC),
            n_over_cap: left.n_over_cap,
            n_weighted_out: left.n_weighted_out,
            n_quarantined: self.n_broken,
        };
        assert!(self.account.adds_up(), "{}: {}", self.name, self.account);
    }

    pub(crate) fn count_train(&mut self, item: &Item) {
        self.n_train += 1;
        self.n_chars += item.n_chars();
        *self.tasks.entry(item.about.task.to_string()).or_default() += 1;
        if !item.about.subject.is_empty() {
            *self.subjects.entry(item.about.subject.clone()).or_default() += 1;
        }
        if let Some(made) = &item.rare().made {
            *self.synthetic.entry(made.clone()).or_default() += 1;
        }
    }

    /// Rows dropped by all rules.
    pub fn n_dropped(&self) -> usize {
        self.dropped.values().sum()
    }
}

fn is_none(n: &usize) -> bool {
    *n == 0
}

const OVERLAP: &str = "overlap_";
const EXACT: &str = "exact_duplicate";
const NEAR: &str = "near_duplicate";
const SEMANTIC: &str = crate::dedup_meaning::RULE;

/// What the mixture did to a source's rows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LeftOut {
    pub(crate) n_repeated: usize,
    pub(crate) n_over_cap: usize,
    pub(crate) n_weighted_out: usize,
}

/// Where every row went, in rows: read + made + repeated = training + held out + dropped + left out + quarantined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// In the files.
    pub n_read: usize,
    /// Built from others: attack variants.
    pub n_made: usize,
    /// Copies beyond the first, by a weight above 1.
    pub n_repeated: usize,
    /// Written for training, copies counted.
    pub n_train: usize,
    /// Written to `hold_out.jsonl`.
    pub n_held_out: usize,
    /// Dropped: overlap an evaluation question.
    pub n_overlap: usize,
    /// Dropped: equal to an earlier row but for case and punctuation.
    pub n_exact_duplicate: usize,
    /// Dropped: share a MinHash bucket with an earlier row, or its meaning.
    pub n_near_duplicate: usize,
    /// Dropped by cleaning rules, by `stage`, or as a part of another row.
    pub n_rules: usize,
    /// Left out by `max_rows`.
    pub n_over_cap: usize,
    /// Left out by a weight below 1.
    pub n_weighted_out: usize,
    /// Broken rows, in `quarantine.jsonl`.
    pub n_quarantined: usize,
}

impl Account {
    /// Dropped for any reason.
    pub fn n_dropped(&self) -> usize {
        self.n_overlap + self.n_exact_duplicate + self.n_near_duplicate + self.n_rules
    }

    /// Whether no row is missing and none counted twice.
    pub fn adds_up(&self) -> bool {
        let left_out = self.n_over_cap + self.n_weighted_out + self.n_quarantined;
        self.n_read + self.n_made + self.n_repeated == self.n_train + self.n_held_out + self.n_dropped() + left_out
    }

    fn add(mut self, other: &Self) -> Self {
        for (sum, n_rows) in [
            (&mut self.n_read, other.n_read),
            (&mut self.n_made, other.n_made),
            (&mut self.n_repeated, other.n_repeated),
            (&mut self.n_train, other.n_train),
            (&mut self.n_held_out, other.n_held_out),
            (&mut self.n_overlap, other.n_overlap),
            (&mut self.n_exact_duplicate, other.n_exact_duplicate),
            (&mut self.n_near_duplicate, other.n_near_duplicate),
            (&mut self.n_rules, other.n_rules),
            (&mut self.n_over_cap, other.n_over_cap),
            (&mut self.n_weighted_out, other.n_weighted_out),
            (&mut self.n_quarantined, other.n_quarantined),
        ] {
            *sum += n_rows;
        }
        self
    }
}

impl Account {
    /// [`Account`] in words; `overlaps` are those of rows with evaluation questions.
    fn words(&self, overlaps: &str) -> String {
        let term = |n_rows: usize, what: &str| if n_rows > 0 { format!(" + {n_rows} {what}") } else { String::new() };
        let (exact, near) = (self.n_exact_duplicate, self.n_near_duplicate);
        [
            format!("{} rows read", self.n_read),
            term(self.n_made, "made"),
            term(self.n_repeated, "repeated by weight"),
            format!(" = {} for training + {} held out + {} dropped", self.n_train, self.n_held_out, self.n_dropped()),
            format!(" ({overlaps}{exact} exact duplicates, {near} near duplicates, {} by rules)", self.n_rules),
            term(self.n_over_cap, "over max_rows"),
            term(self.n_weighted_out, "left out by weight"),
            term(self.n_quarantined, "quarantined"),
        ]
        .concat()
    }
}

/// `127 rows read = 116 for training + 0 held out + 11 dropped (3 overlap evaluation, ..)`; other terms where there are such rows.
impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words(&format!("{} overlap evaluation, ", self.n_overlap)))
    }
}

/// The whole account; `manifest.json` holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DataReport {
    /// `sft` or `pairs`.
    pub output: String,
    /// The seed.
    pub seed: u64,
    /// In the recipe's order.
    pub sources: Vec<SourceReport>,
    /// What became of each row, over all sources.
    pub account: Account,
    /// What the user must be told, a sentence each.
    pub notices: Vec<String>,
    /// Evaluation questions that rows were compared with.
    pub n_held_apart_questions: usize,
    /// Of them, those of fewer than four words, or of fewer than two telling ones: words alone find them only beside their options.
    #[serde(skip_serializing_if = "is_none")]
    pub n_held_apart_too_common: usize,
    /// Evaluations of the recipe whose questions these are, by split and task; files that the settings name come beside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub compared_with: Vec<String>,
    /// File of evaluation questions to SHA-256.
    pub held_apart_files: BTreeMap<String, String>,
    /// File of evaluation questions to the rows taken from it.
    pub held_apart_rows: BTreeMap<String, usize>,
    /// Evaluation rows that could not be read, in `quarantine.jsonl`: no row was compared with them.
    pub n_held_apart_broken: usize,
    /// Rows that overlapped one.
    pub n_overlaps: usize,
    /// Of those, rows that a reader's verdict kept.
    pub n_overlaps_kept: usize,
    /// Verdicts on hits that this run did not have.
    pub n_verdicts_unused: usize,
    /// What came of comparing by meaning, where an embedder was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meaning: Option<MeaningReport>,
    /// Texts whose end the embedder did not read while duplicates by meaning were looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_cut_in_dedup: Option<usize>,
    /// What came of the quality scores, where a scorer was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<QualityReport>,
    /// Rows in `train.jsonl`.
    pub n_train: usize,
    /// Rows in `hold_out.jsonl`.
    pub n_held_out: usize,
    /// Licence to training rows.
    pub licences: BTreeMap<String, usize>,
    /// Sub-task to training rows.
    pub tasks: BTreeMap<String, usize>,
    /// Training rows by length in tokens, where they are counted: the least length of each doubling to rows; 0 is below 32.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rows_by_tokens: BTreeMap<usize, usize>,
    /// Rows of a cluster of duplicates, the one that stays among them, to the number of such clusters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub duplicate_clusters: BTreeMap<usize, usize>,
    /// Sub-task to tokens of the training rows, counted as those of a source.
    pub tokens_by_task: BTreeMap<String, usize>,
    /// Licence to tokens of the training rows.
    pub tokens_by_licence: BTreeMap<String, usize>,
    /// Broken rows, when a quarantine let the run go on.
    pub broken: Problems,
    /// File to SHA-256.
    pub outputs: BTreeMap<String, String>,
    /// The file of broken rows that the settings name, and its SHA-256; no part of the manifest, as it lies elsewhere.
    #[serde(skip)]
    pub quarantine: Option<(PathBuf, String)>,
    /// What each step took; no part of the manifest.
    #[serde(skip)]
    pub steps: Vec<Step>,
}

impl DataReport {
    /// The account in words. Where there was no evaluation question, it says so in place of how many rows overlap one.
    pub fn summary(&self) -> String {
        match self.n_held_apart_questions {
            0 => format!("{}; compared with no evaluation question", self.account.words("")),
            _ => self.account.to_string(),
        }
    }

    /// Sums the sources' accounts, which must be settled.
    pub(crate) fn settle(&mut self) {
        self.account = self.sources.iter().fold(Account::default(), |sum, source| sum.add(&source.account));
    }

    /// Rule to rows dropped, over all sources.
    pub fn dropped(&self) -> BTreeMap<String, usize> {
        let mut total = BTreeMap::new();
        for (rule, n_rows) in self.sources.iter().flat_map(|source| &source.dropped) {
            *total.entry(rule.clone()).or_default() += n_rows;
        }
        total
    }
}
