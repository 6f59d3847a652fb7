//! Rows that overlap evaluation questions, found from the questions' own files, each with the evidence to judge it by.
//!
//! Four tests, on simplified text (see `simplify`) but for options, which keep their numbers:
//! - `options`: the row lists the same options in any order (three or more of them), and the two questions share at least two
//!   telling words and half of those of the shorter one (75 % where the options hold fewer than 6 words in all);
//! - `stem_and_options`: a question of at most 12 words and all of its options (three or more) stand in the row;
//! - `ngram_13`: a quarter of the question's (or its abstract's) runs of 13 words, five of them telling, stand in the row. One run
//!   alone is no evidence: clinical vignettes share whole sentences ("has smoked one pack of cigarettes daily for ...");
//! - `ngram_8`: 70 % of the question's runs of 8 words, three of them telling, stand in the row; or a user message, a paragraph or line of
//!   it (two words of it telling), or a multiple-choice row's stem is the whole question (4 words or more) with its numbers; or the whole question, of at most 24
//!   words of which three are telling, stands anywhere in a user message with its numbers.
//!
//! Telling words are those outside exam phrasing and normal findings. Runs that stand in more than two evaluation questions of
//! different wording are no evidence; questions that begin with the same 25 words share a passage and count as one. Rewording that keeps neither words nor options is found by `meaning`.

use crate::data::with_raw;
use crate::dialect::{self, Dialect};
use crate::held;
use crate::identifiers;
use crate::scored::Questions;
use crate::simplify::plain;
use crate::source;
use crate::{Error, Item, Result, RowError, parallel, simplify};
use aloe_record::{Cancel, Progress};
use aloe_task::Question;
use held_file::tested_pmids;
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;
use words::{Runs, Words};
use xxhash_rust::xxh64::xxh64;

mod held_file;
mod search;
mod words;

pub(crate) use held_file::{HeldFile, last_two, test_list};

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

static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\p{Nd}+(?:[.,]\p{Nd}+)*").expect("a fixed pattern"));

/// With its options a stem of so many words is looked for; alone, of [`LONGEST_STEM`], with so many telling ones.
const LONGEST_SHORT_STEM: usize = 12;
const LONGEST_STEM: usize = 24;
/// And of no fewer: a shorter one is the topic of many a question ("the lateral pterygoid muscle").
const SHORTEST_STEM: usize = 6;
const N_TELLING: usize = 3;

/// A paragraph, a line or a message of fewer words is taken for no whole question.
const SHORTEST_WHOLE: usize = 4;
/// Telling words of a paragraph, a line or a stem that is taken for a whole question.
const N_TELLING_PART: usize = 2;

/// Questions that begin with the same words, so many of them, share a passage.
const N_PASSAGE_WORDS: usize = 25;
/// Questions that share a passage at most; what begins more of them is an instruction.
const MOST_OF_A_PASSAGE: usize = 10;

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
    /// The question as written, with its options by letter.
    pub question: String,
    /// The row's message in which it was found.
    pub row_text: String,
    /// Why.
    #[serde(flatten)]
    pub evidence: Evidence,
}

/// An evaluation question, ready to compare.
struct Held {
    at: Box<str>,
    /// The number of the question of which this is the masked form; else its own.
    base: u32,
    n_runs_13: u32,
    n_runs_8: u32,
    /// Stem and options as written.
    asked: (Box<str>, Box<[String]>),
    stem: Box<str>,
    /// Plain and sorted, each on a line.
    options: Box<str>,
}

impl Held {
    fn options(&self) -> impl Iterator<Item = &str> {
        self.options.split('\n').filter(|option| !option.is_empty())
    }
}

/// The evaluation questions with their runs of words.
#[derive(Default)]
pub(crate) struct Index {
    held: Vec<Held>,
    /// Of them, masked forms of the question before.
    n_masked: usize,
    /// Of them, questions that words find only beside their options, or as all that a row asks.
    pub(crate) n_too_common: usize,
    /// Whether the rows' identifiers are masked: then questions are looked for in their masked form too.
    is_masked: bool,
    runs_13: Runs,
    runs_8: Runs,
    whole: Runs,
    /// Whole stems that are looked for inside texts.
    short: Runs,
    /// Lengths of the short stems (bit n: n words) that begin with these two words, or with this one and have no other.
    short_starts: HashMap<u64, u32>,
    by_options: Runs,
    /// File to questions taken from it.
    pub(crate) n_by_file: BTreeMap<String, usize>,
}

/// Whether a verdict keeps the row beside the question, both by name.
pub(crate) type IsKept<'a> = dyn Fn(&str, &str) -> bool + Sync + 'a;

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
    /// Reads every file, or takes its questions from `scored`; broken rows go to `broken`. With `is_masked` for rows whose identifiers were masked.
    pub(crate) fn read(
        files: &[HeldFile],
        mut scored: Questions,
        is_masked: bool,
        broken: &mut dyn FnMut(RowError) -> Result<()>,
    ) -> Result<Index> {
        let mut index = Index { is_masked, ..Index::default() };
        for file in files {
            match scored.remove(&file.path).filter(|_| file.is_scored) {
                Some(questions) => index.add_scored(file, &questions),
                None => index.read_file(file, broken)?,
            }
        }
        index.close();
        Ok(index)
    }

    /// Number of questions.
    pub(crate) fn len(&self) -> usize {
        self.held.len() - self.n_masked
    }

    fn read_file(&mut self, file: &HeldFile, broken: &mut dyn FnMut(RowError) -> Result<()>) -> Result<()> {
        let tested = tested_pmids(&file.path)?;
        let prefix = file.path.display().to_string();
        let (mut n_rows, mut n_taken, mut n_broken) = (0, 0, 0);
        // Train questions are there to be trained on; where a file that the settings name has no others, it was named for them.
        let (mut of_train, mut has_other_split) = (Vec::new(), false);
        source::read(&file.path, &mut |row| {
            n_rows += 1;
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    n_broken += 1;
                    return broken(error);
                }
            };
            let pmid = row.columns.get("_key").and_then(|key| key.as_str());
            if tested.as_ref().zip(pmid).is_some_and(|(tested, pmid)| !tested.contains(pmid)) {
                return Ok(());
            }
            let is_red_team = Dialect::detect(&row).is_ok_and(|dialect| dialect == Dialect::RedTeam);
            // A training row of an earlier stage names the split of the set that it came from, which says nothing of this file.
            let split = row.columns.get("split").filter(|_| is_red_team || !dialect::is_of_stage(&row));
            let said = split.and_then(|split| split.as_str());
            let is_train = said == Some("train");
            has_other_split |= if is_red_team { !is_train } else { said.is_some_and(|said| said != "train") };
            match held::texts(&row, n_rows) {
                Ok(texts) => {
                    let at = format!("{}{}", file.label, row.at.strip_prefix(&prefix).unwrap_or_default());
                    if is_train {
                        of_train.push((at, texts));
                    } else {
                        n_taken += 1;
                        self.add_row(&at, &texts);
                    }
                    Ok(())
                }
                Err(error) => {
                    n_broken += 1;
                    broken(with_raw(error, &row))
                }
            }
        })?;
        if !has_other_split && !file.is_asked {
            n_taken += of_train.len();
            of_train.iter().for_each(|(at, texts)| self.add_row(at, texts));
        }
        if n_taken == 0 && n_broken == 0 && !file.is_asked {
            let reason = if tested.is_some() { " by test_ground_truth.json beside it" } else { "" };
            return Err(Error::NoQuestions { path: file.path.clone(), n_rows, reason });
        }
        self.n_by_file.insert(file.label.clone(), n_taken);
        Ok(())
    }

    /// The questions of a row, each also as masking writes it where the training rows are masked.
    fn add_row(&mut self, at: &str, texts: &[held::Held]) {
        for text in texts {
            let number = self.add(at, text, None);
            if self.is_masked {
                self.add_masked(at, text, number);
            }
        }
    }

    fn add_scored(&mut self, file: &HeldFile, questions: &[(String, held::Held)]) {
        for (line, text) in questions {
            self.add_row(&format!("{}{line}", file.label), std::slice::from_ref(text));
        }
        self.n_by_file.insert(file.label.clone(), questions.len());
    }

    /// The question as masking writes it, where that changes it.
    fn add_masked(&mut self, at: &str, text: &held::Held, number: usize) {
        let masked = text.map(identifiers::masked);
        if masked != *text {
            self.n_masked += 1;
            self.add(at, &masked, Some(number));
        }
    }

    /// Gives the question's number.
    fn add(&mut self, at: &str, text: &held::Held, base: Option<usize>) -> usize {
        let number = self.held.len();
        let id = number as u32;
        let options = &text.options;
        let asked = (text.stem.as_str().into(), options.as_slice().into());
        let stem = simplify(&text.stem);
        let words = Words::of(&stem);
        let add_runs = |runs: &mut Runs, words: &Words<'_>, n: usize, least: usize| {
            let telling: BTreeSet<u64> =
                words.runs(n).filter(|&(at, _)| n_telling(words.run(at, n)) >= least).map(|(_, hash)| hash).collect();
            telling.iter().for_each(|hash| runs.add(*hash, id));
            telling.len() as u32
        };
        let mut n_runs_13 = add_runs(&mut self.runs_13, &words, 13, 5);
        if let Some(context) = &text.context {
            n_runs_13 = n_runs_13.max(add_runs(&mut self.runs_13, &Words::of(&simplify(context)), 13, 5));
        }
        let n_runs_8 = add_runs(&mut self.runs_8, &words, 8, 3);
        let n_words = words.len();
        if n_words >= SHORTEST_WHOLE {
            self.whole.add(words.whole_hash(), id);
        }
        let options = option_set(options);
        let with_options = options.len() >= 3 && (1..=LONGEST_SHORT_STEM).contains(&n_words);
        let alone = (SHORTEST_STEM..=LONGEST_STEM).contains(&n_words) && n_telling(&stem) >= N_TELLING;
        if with_options || alone {
            self.short.add(words.whole_hash(), id);
            *self.short_starts.entry(words.hash(0, n_words.min(2))).or_default() |= 1 << n_words;
        }
        let (n_options, options) = (options.len(), options.join("\n").into_boxed_str());
        if n_options >= 3 {
            self.by_options.add(hash(&options), id);
        }
        let is_findable = n_words >= SHORTEST_WHOLE && n_telling(&stem) >= N_TELLING_PART;
        self.n_too_common += usize::from(base.is_none() && !is_findable);
        let base = base.unwrap_or(number) as u32;
        self.held.push(Held { at: at.into(), base, n_runs_13, n_runs_8, asked, stem: stem.into(), options });
        number
    }

    /// All questions are there. Runs in more than two of different wording are phrasing and are forgotten; copies of one question count
    /// once.
    fn close(&mut self) {
        let held = &self.held;
        let is_rare = |ids: &[u32]| {
            let stem = |id: &u32| &*held[held[*id as usize].base as usize].stem;
            let base = |id: &u32| {
                let stem = stem(id);
                stem.match_indices(' ').nth(N_PASSAGE_WORDS - 1).map_or(stem, |(end, _)| &stem[..end])
            };
            let n_wordings = ids.iter().map(stem).collect::<HashSet<_>>().len();
            n_wordings <= 2
                || (n_wordings <= MOST_OF_A_PASSAGE && ids.iter().map(base).collect::<HashSet<_>>().len() <= 2)
        };
        self.runs_13.close(is_rare);
        self.runs_8.close(is_rare);
        for runs in [&mut self.short, &mut self.whole, &mut self.by_options] {
            runs.close(|_| true);
        }
    }

    /// Each question as written, with its options.
    pub(crate) fn held_texts(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.held.iter().map(|held| (&*held.asked.0, &*held.asked.1))
    }

    /// Question `id` as written, a line for each of its options.
    pub(crate) fn shown(&self, id: usize) -> String {
        let (stem, options) = &self.held[id].asked;
        let options = ('A'..).zip(options).map(|(letter, option)| format!("\n{letter}. {option}"));
        std::iter::once(stem.to_string()).chain(options).collect()
    }

    /// Where question `id` stands.
    pub(crate) fn at(&self, id: usize) -> &str {
        &self.held[id].at
    }

    /// The questions of an evaluation, whose numbers are their places, also in their masked form: whether the rows were masked, a file of
    /// rows does not say.
    pub(crate) fn of(questions: &[Question]) -> Index {
        let mut index = Index::default();
        let text = |question: &Question| held::Held {
            stem: question.stem.clone(),
            context: question.context.clone(),
            options: question.choices.clone(),
        };
        for question in questions {
            index.add(&last_two(&question.source), &text(question), None);
        }
        for (number, question) in questions.iter().enumerate() {
            index.add_masked(&last_two(&question.source), &text(question), number);
        }
        index.close();
        index
    }
}

pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// All overlaps, in row order, with the index of the row; a row has several where verdicts keep all but the last.
pub(crate) fn find(
    items: &[Item],
    index: &Index,
    is_kept: &IsKept<'_>,
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
        let overlaps = parallel::map(n_threads, rows, |item| index.overlaps(item, is_kept));
        let hits = overlaps.into_iter().enumerate();
        found.extend(hits.flat_map(|(at, hits)| hits.into_iter().map(move |hit| (block * N_BLOCK + at, hit))));
        progress.advance(rows.len() as u64);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
