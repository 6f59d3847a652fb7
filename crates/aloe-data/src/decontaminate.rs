//! Rows that overlap evaluation questions, found from the questions' own files, each with the evidence to judge it by.
//!
//! Four tests, on simplified text (see `simplify`) but for options, which keep their numbers:
//! - `options`: the row lists the same options in any order (three or more of them), and the two questions share at least two
//!   telling words and half of those of the shorter one (75 % where the options hold fewer than 6 words in all);
//! - `stem_and_options`: a question of at most 12 words and all of its options (three or more) stand in the row;
//! - `ngram_13`: a quarter of the question's (or its abstract's) runs of 13 words, five of them telling, stand in the row. One run
//!   alone is no evidence: clinical vignettes share whole sentences ("has smoked one pack of cigarettes daily for ...");
//! - `ngram_8`: 70 % of the question's runs of 8 words, three of them telling, stand in the row; or a user message is the whole
//!   question (4 words or more).
//!
//! Telling words are those outside exam phrasing and normal findings. Runs that stand in more than two evaluation questions of
//! different wording are no evidence. Rewording that keeps neither words nor options is found by `meaning`.

use crate::data::with_raw;
use crate::dialect::Dialect;
use crate::held;
use crate::identifiers;
use crate::simplify::plain;
use crate::source::{self, DataFile};
use crate::{Item, Result, RowError, parallel, simplify};
use aloe_record::{Cancel, Progress};
use aloe_task::Question;
use aloe_text::Role;
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use words::{Runs, Words};
use xxhash_rust::xxh64::xxh64;

mod words;

/// Words of exam phrasing, of units and of normal findings.
const STOCK_WORDS: &str = "a an the of in on at to for with without by from and or is are was be been being has have had this that \
    these which what who when where why how following most least likely best next step appropriate initial management \
    treatment diagnosis cause causes patient patients year years old man woman boy girl child his her he she it its they as \
    not except true false statement statements about regarding all none above one correct incorrect would should could will \
    can may does do did 0 shows show showing physical examination laboratory studies findings given brought comes presents \
    physician doctor primary care provider emergency department office clinic because history past medical significant no \
    there temperature blood pressure pulse respirations respiratory rate min minute mm hg mmhg normal limits within s c f dl mg \
    g l ml u meq mm0 mm3 ul µl μl hour hours day days week weeks month months ago for last her him their underlying mechanism \
    etiology symptoms condition additional also vital signs oxygen saturation air room hemoglobin hematocrit leukocyte platelet \
    count serum sodium potassium chloride bicarbonate urea nitrogen creatinine glucose calcium esr hb wbc million gravida para \
    gestation breaths beats up any other otherwise well reports denies states complains takes current medications include \
    father mother parents healthy appears acute distress abdomen lungs heart auscultation clear soft nontender bmi kg m0 m2 \
    weight height percentile further evaluation therapy response develop development increased decreased risk prevented \
    explanation finding question linked image number";

static STOCK: LazyLock<HashSet<&'static str>> = LazyLock::new(|| STOCK_WORDS.split_whitespace().collect());
pub(crate) static OPTION_LINE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?m)^\s*\(?(?:[A-Ja-j]|\d{1,2})[.):]\s+(.+?)\s*$").expect("a fixed pattern"));

const LONGEST_SHORT_STEM: usize = 12;

/// Rows between two looks at the stop request.
const N_BLOCK: usize = 1 << 13;

/// Why a row was taken for an evaluation question.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Evidence {
    /// `options`, `stem_and_options`, `ngram_13` or `ngram_8`; by meaning `embedding` or `judge`.
    pub test: &'static str,
    /// The words or options both share.
    pub shared: String,
    /// Share of the question's runs found; for `options` the share of telling words; by meaning the cosine; else 1.
    pub score: f64,
}

/// One hit.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Overlap {
    /// Id of the row.
    pub row: String,
    /// Where the evaluation question stands: folder, file and line.
    pub question_at: String,
    /// The question's words.
    pub question: String,
    /// The row's first user message.
    pub row_text: String,
    /// Why.
    #[serde(flatten)]
    pub evidence: Evidence,
}

/// The last two parts of a path: enough to find the file, and the same wherever the data lies.
pub(crate) fn last_two(path: &str) -> String {
    let mut parts: Vec<&str> = path.rsplit('/').take(2).collect();
    parts.reverse();
    parts.join("/")
}

/// An evaluation question, ready to compare.
struct Held {
    at: String,
    /// Stem and options as written.
    asked: (String, Vec<String>),
    stem: String,
    telling: BTreeSet<String>,
    options: Vec<String>,
    n_runs_13: usize,
    n_runs_8: usize,
}

/// The evaluation questions with their runs of words.
#[derive(Default)]
pub(crate) struct Index {
    held: Vec<Held>,
    /// Of them, masked forms of the question before.
    n_masked: usize,
    /// Whether the rows' identifiers are masked: then questions are looked for in their masked form too.
    is_masked: bool,
    runs_13: Runs,
    runs_8: Runs,
    whole: HashMap<u64, u32>,
    /// Whole stems of at most 12 words.
    short: Runs,
    /// Lengths of the short stems (bit n: n words) that begin with these two words, or with this one and have no other.
    short_starts: HashMap<u64, u16>,
    by_options: HashMap<u64, Vec<u32>>,
    /// File to questions taken from it.
    pub(crate) n_by_file: BTreeMap<String, usize>,
}

fn hash(text: &str) -> u64 {
    xxh64(text.as_bytes(), 0)
}

fn n_telling(run: &str) -> usize {
    run.split(' ').filter(|word| !STOCK.contains(word)).count()
}

fn option_set(options: &[String]) -> Vec<String> {
    let mut options: Vec<String> =
        options.iter().map(|option| plain(option)).filter(|option| !option.is_empty()).collect();
    options.sort();
    options.dedup();
    options
}

/// The words that are not exam phrasing.
pub(crate) fn telling(text: &str) -> BTreeSet<String> {
    text.split(' ').filter(|word| !word.is_empty() && !STOCK.contains(word)).map(String::from).collect()
}

impl Index {
    /// Reads every file; broken rows go to `broken`. With `is_masked` for rows whose identifiers were masked.
    pub(crate) fn read(
        paths: &[PathBuf],
        is_masked: bool,
        broken: &mut dyn FnMut(RowError) -> Result<()>,
    ) -> Result<Index> {
        let mut index = Index { is_masked, ..Index::default() };
        for path in paths {
            for file in source::files(path)? {
                index.read_file(&file, broken)?;
            }
        }
        index.close();
        Ok(index)
    }

    /// Number of questions.
    pub(crate) fn len(&self) -> usize {
        self.held.len() - self.n_masked
    }

    fn read_file(&mut self, file: &DataFile, broken: &mut dyn FnMut(RowError) -> Result<()>) -> Result<()> {
        let tested = tested_pmids(&file.path)?;
        let (mut n_rows, mut n_taken) = (0, 0);
        source::read(&file.path, &mut |row| {
            n_rows += 1;
            let row = match row {
                Ok(row) => row,
                Err(error) => return broken(error),
            };
            let pmid = row.columns.get("_key").and_then(|key| key.as_str());
            let is_other = tested.as_ref().zip(pmid).is_some_and(|(tested, pmid)| !tested.contains(pmid));
            // Train questions of a red-team file are there to be trained on.
            let is_train = row.columns.get("split").and_then(|split| split.as_str()) == Some("train");
            if is_other || (is_train && !Dialect::detect(&row).is_ok_and(Dialect::is_mcqa)) {
                return Ok(());
            }
            match held::texts(&row, n_rows) {
                Ok(texts) => {
                    n_taken += 1;
                    for text in texts {
                        self.add(&row.at, &text.stem, text.context.as_deref(), &text.options);
                        let masked = text.map(identifiers::masked);
                        if self.is_masked && masked != text {
                            self.n_masked += 1;
                            self.add(&row.at, &masked.stem, masked.context.as_deref(), &masked.options);
                        }
                    }
                    Ok(())
                }
                Err(error) => broken(with_raw(error, &row)),
            }
        })?;
        *self.n_by_file.entry(last_two(&file.path.display().to_string())).or_default() += n_taken;
        Ok(())
    }

    fn add(&mut self, at: &str, stem: &str, context: Option<&str>, options: &[String]) {
        let id = self.held.len() as u32;
        let asked = (stem.to_owned(), options.to_vec());
        let stem = simplify(stem);
        let words = Words::of(&stem);
        let add_runs = |runs: &mut Runs, words: &Words<'_>, n: usize, least: usize| {
            let telling: BTreeSet<u64> =
                words.runs(n).filter(|&(at, _)| n_telling(words.run(at, n)) >= least).map(|(_, hash)| hash).collect();
            for &hash in &telling {
                runs.entry(hash).push(id);
            }
            telling.len()
        };
        let mut n_runs_13 = add_runs(&mut self.runs_13, &words, 13, 5);
        if let Some(context) = context {
            n_runs_13 = n_runs_13.max(add_runs(&mut self.runs_13, &Words::of(&simplify(context)), 13, 5));
        }
        let n_runs_8 = add_runs(&mut self.runs_8, &words, 8, 3);
        let n_words = words.len();
        if n_words >= 4 {
            self.whole.insert(words.whole_hash(), id);
        }
        let options = option_set(options);
        if options.len() >= 3 {
            if (1..=LONGEST_SHORT_STEM).contains(&n_words) {
                self.short.entry(words.whole_hash()).push(id);
                *self.short_starts.entry(words.hash(0, n_words.min(2))).or_default() |= 1 << n_words;
            }
            self.by_options.entry(hash(&options.join("\n"))).or_default().push(id);
        }
        self.held.push(Held { at: last_two(at), asked, telling: telling(&stem), stem, options, n_runs_13, n_runs_8 });
    }

    /// All questions are there. Runs in more than two of different wording are phrasing and are forgotten; copies of one question count
    /// once.
    fn close(&mut self) {
        let held = &self.held;
        let is_rare = |ids: &mut Vec<u32>| {
            ids.dedup();
            ids.len() <= 2 || ids.iter().map(|id| held[*id as usize].stem.as_str()).collect::<HashSet<_>>().len() <= 2
        };
        self.runs_13.close(is_rare);
        self.runs_8.close(is_rare);
        self.short.close(|_| true);
    }

    /// Each question as written, with its options.
    pub(crate) fn held_texts(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.held.iter().map(|held| (held.asked.0.as_str(), held.asked.1.as_slice()))
    }

    /// Where question `id` stands.
    pub(crate) fn at(&self, id: usize) -> &str {
        &self.held[id].at
    }

    /// The questions of an evaluation, whose numbers are their places.
    pub(crate) fn of(questions: &[Question]) -> Index {
        let mut index = Index::default();
        for question in questions {
            index.add(&question.source, &question.stem, question.context.as_deref(), &question.choices);
        }
        index.close();
        index
    }

    /// The first overlap of `item`, if any.
    pub(crate) fn overlap(&self, item: &Item) -> Option<Overlap> {
        let (at, evidence) = self.hit(item)?;
        let held = &self.held[at];
        let asked = item.messages().into_iter().find(|message| message.role == Role::User);
        Some(Overlap {
            row: item.id.clone(),
            question_at: held.at.clone(),
            question: held.stem.clone(),
            row_text: asked.map(|message| message.content.clone()).unwrap_or_default(),
            evidence,
        })
    }

    /// The number of the first question that `item` holds, and why it was taken for it.
    pub(crate) fn hit(&self, item: &Item) -> Option<(usize, Evidence)> {
        let messages = item.messages();
        let asked: Vec<&str> = messages
            .iter()
            .filter(|message| message.role == Role::User)
            .map(|message| message.content.as_str())
            .collect();
        let options = match &item.question {
            Some(question) => question.choices.clone(),
            // Three options take three lines; the pattern is slow and most questions have one.
            None if asked.iter().map(|text| text.matches('\n').count() + 1).sum::<usize>() < 3 => Vec::new(),
            None => OPTION_LINE.captures_iter(&asked.join("\n")).map(|found| found[1].to_owned()).collect(),
        };
        let hit = if options.is_empty() { None } else { self.same_options(&options, &asked, item) };
        // Simplified once: it is most of the work.
        let simple: Vec<String> = messages.iter().map(|message| simplify(&message.content)).collect();
        let words: Vec<Words<'_>> = simple.iter().map(|text| Words::of(text)).collect();
        let texts = || messages.iter().zip(&words);
        let mut asked = texts().filter(|(message, _)| message.role == Role::User);
        let hit = hit.or_else(|| asked.find_map(|(_, words)| self.whole_question(words)));
        let hit = hit.or_else(|| texts().find_map(|(message, words)| self.stem_and_options(&message.content, words)));
        let hit = hit.or_else(|| words.iter().find_map(|words| self.shared_runs(words)));
        hit.map(|(id, evidence)| (id as usize, evidence))
    }

    fn same_options(&self, options: &[String], asked: &[&str], item: &Item) -> Option<(u32, Evidence)> {
        let set = option_set(options);
        let ids = self.by_options.get(&hash(&set.join("\n")))?;
        let stem = match &item.question {
            Some(question) => question.stem.clone(),
            None => OPTION_LINE.replace_all(&asked.join("\n"), "").into_owned(),
        };
        let stem = telling(&simplify(&stem));
        let n_words: usize = set.iter().map(|option| option.split(' ').count()).sum();
        let needed = if n_words < 6 { 0.75 } else { 0.5 };
        ids.iter().find_map(|&id| {
            let held = &self.held[id as usize];
            let common = held.telling.intersection(&stem).count();
            let score = common as f64 / held.telling.len().min(stem.len()).max(1) as f64;
            let shared = held.options.join(" | ");
            (common >= 2 && score >= needed).then(|| (id, Evidence { test: "options", shared, score: rounded(score) }))
        })
    }

    fn whole_question(&self, words: &Words<'_>) -> Option<(u32, Evidence)> {
        let id = *self.whole.get(&words.whole_hash())?;
        Some((id, Evidence { test: "ngram_8", shared: words.run(0, words.len()).to_owned(), score: 1.0 }))
    }

    fn stem_and_options(&self, text: &str, words: &Words<'_>) -> Option<(u32, Evidence)> {
        let plain_text = std::cell::OnceCell::new();
        let has_all = |held: &Held| {
            let plain_text = plain_text.get_or_init(|| format!(" {} ", plain(text)));
            held.options.iter().all(|option| plain_text.contains(&format!(" {option} ")))
        };
        // A stem of one or two words is evidence only together with options that say something.
        let is_enough = |held: &Held, n_words: usize| {
            n_words >= 3 || held.options.iter().map(|o| o.split(' ').count()).sum::<usize>() >= 6
        };
        // Shorter stems first, then those that stand earlier.
        let mut candidates = BTreeSet::new();
        for (n, at, hash) in [1, 2].into_iter().flat_map(|n| words.runs(n).map(move |(at, hash)| (n, at, hash))) {
            let lengths = self.short_starts.get(&hash).copied().unwrap_or(0);
            let lengths = if n == 1 { lengths & 0b10 } else { lengths & !0b10 };
            let fits = |n_words: &usize| lengths >> n_words & 1 == 1 && at + n_words <= words.len();
            candidates.extend((1..=LONGEST_SHORT_STEM).filter(fits).map(|n_words| (n_words, at)));
        }
        for (n_words, at) in candidates {
            let ids = self.short.get(words.hash(at, n_words)).iter();
            let found = ids
                .map(|&id| (id, &self.held[id as usize]))
                .find(|(_, held)| is_enough(held, n_words) && has_all(held));
            if let Some((id, held)) = found {
                let shared = format!("{} | {}", held.stem, held.options.join(" | "));
                return Some((id, Evidence { test: "stem_and_options", shared, score: 1.0 }));
            }
        }
        None
    }

    fn shared_runs(&self, words: &Words<'_>) -> Option<(u32, Evidence)> {
        let long = self.most_runs("ngram_13", words, &self.runs_13, 13, 0.25, |held| held.n_runs_13);
        long.or_else(|| self.most_runs("ngram_8", words, &self.runs_8, 8, 0.7, |held| held.n_runs_8))
    }

    /// The first question of which at least the share `needed` of all its `n`-word runs stand among `words`.
    fn most_runs(
        &self,
        test: &'static str,
        words: &Words<'_>,
        runs: &Runs,
        n: usize,
        needed: f64,
        n_runs: fn(&Held) -> usize,
    ) -> Option<(u32, Evidence)> {
        let mut found: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
        for (at, hash) in words.runs(n) {
            for id in runs.get(hash) {
                found.entry(*id).or_default().insert(words.run(at, n));
            }
        }
        let scored = found.into_iter().map(|(id, runs)| {
            let score = runs.len() as f64 / n_runs(&self.held[id as usize]).max(1) as f64;
            (id, score, runs)
        });
        let (id, score, runs) = scored.into_iter().find(|(_, score, _)| *score >= needed)?;
        let shared = runs.first().map(|run| (*run).to_owned()).unwrap_or_default();
        Some((id, Evidence { test, shared, score: rounded(score) }))
    }
}

/// Where the list of test instances of `path` would stand: PubMedQA keeps train and test instances in one file, and the test ones are
/// those of `test_ground_truth.json` beside it.
pub(crate) fn test_list(path: &Path) -> Option<PathBuf> {
    (file_name(path) == "ori_pqal.json").then(|| path.with_file_name(source::TEST_LIST))
}

fn tested_pmids(path: &Path) -> Result<Option<HashSet<String>>> {
    let Some(list) = test_list(path).filter(|list| list.exists()) else { return Ok(None) };
    let by_pmid: HashMap<String, String> = aloe_record::atomic::read_json(&list)?;
    Ok(Some(by_pmid.into_keys().collect()))
}

pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// All overlaps, in row order, with the index of the row.
pub(crate) fn find(
    items: &[Item],
    index: &Index,
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<(usize, Overlap)>> {
    let mut found = Vec::new();
    if index.len() == 0 {
        progress.advance(items.len() as u64);
        return Ok(found);
    }
    for (block, rows) in items.chunks(N_BLOCK).enumerate() {
        cancel.check()?;
        let overlaps = parallel::map(n_threads, rows, |item| index.overlap(item));
        let hits = overlaps.into_iter().enumerate().filter_map(|(at, hit)| Some((block * N_BLOCK + at, hit?)));
        found.extend(hits);
        progress.advance(rows.len() as u64);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
