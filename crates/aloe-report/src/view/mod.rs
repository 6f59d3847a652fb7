//! The part of a page that lets a reader look at single samples: filters, a list, one sample's texts. Where in the walk: `aloe-eval`
//! hands over samples one by one; `Page::write_with_samples` puts this part at the page's end.
//!
//! Made for 200,000 samples: what is filtered by stands as columns of small integers, the texts as blocks that the browser unpacks when
//! one is opened. Whoever makes a page packs the blocks (`pack_rows`), and may keep them for the next one. The list is drawn before the blocks are read. Needs JavaScript, which the rest of a page does not; nothing is fetched
//! (the page's Content-Security-Policy forbids it), and texts never become markup. Computes no result of its own.

mod blocks;
mod open;
mod pack;

pub use blocks::{Texts, pack_rows};
pub use open::{OpenAnswerText, OpenQuestionText, VerdictText};

use blocks::element;
use serde::Serialize;
use serde_json::json;
use std::collections::HashMap;
use std::io::{self, Write};

const SCRIPT: &str = include_str!("view.js");
const STYLE: &str = include_str!("view.css");
const SKELETON: &str = include_str!("view.html");

/// No predicted option; as in view.js.
const NONE: u8 = 255;
/// Flags of an answer; as in view.js.
const RIGHT: u8 = 1;
const TIE: u8 = 2;
const REFUSED: u8 = 4;
const ABSENT: u8 = 8;
const SPLIT: u8 = 16;
const SILENT: u8 = 32;
const UNJUDGED: u8 = 64;

/// The row of a question or answer that has no texts; as in view.js.
const NO_ROW: u32 = u32::MAX;

/// What a sample is found by.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The task's name.
    pub task: &'a str,
    /// The question's id.
    pub id: &'a str,
    /// Subject or category, or nothing.
    pub subject: &'a str,
    /// Number of options.
    pub n_choices: usize,
    /// The right option.
    pub key: usize,
    /// The row of its texts among the questions', where they are at hand.
    pub row: Option<usize>,
}

/// A question's texts: a row of the questions'.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct QuestionText<'a> {
    /// The question.
    pub stem: &'a str,
    /// What it is about: an abstract.
    pub context: Option<&'a str>,
    /// The options.
    pub choices: &'a [String],
}

/// What one run made of a question.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    /// The predicted option; none when no answer could be read.
    pub predicted: Option<usize>,
    /// Whether that is right.
    pub is_right: bool,
    /// Whether two options shared the most votes, or as many judges are for an answer as against it.
    pub is_tie: bool,
    /// Whether the question was refused.
    pub is_refused: bool,
    /// Generated answers; of an open question its judges.
    pub n_votes: usize,
    /// Those of them that name the predicted option, or call the answer right.
    pub n_agree: usize,
    /// One bit a shown position that an answer chose, the first position's the lowest.
    pub shown: u32,
    /// Whether options were shown in another order than the source's.
    pub is_shuffled: bool,
    /// What judges made of an answer in free text; none of options.
    pub judged: Option<Judged>,
    /// The row of its texts among the run's.
    pub row: usize,
}

/// What judges made of an answer in free text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    /// Whether none was asked, so that the answer is neither right nor wrong.
    pub is_unjudged: bool,
    /// Whether one calls it right and another wrong.
    pub is_split: bool,
    /// Whether one gave no verdict.
    pub lacks_verdict: bool,
}

/// The texts of what one run made of a question: a row of the run's.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AnswerText<'a> {
    /// Why the question was refused.
    pub refused: Option<&'a str>,
    /// SHA-256 of the prompt.
    pub prompt_sha256: &'a str,
    /// Summed log-probability by option, in nat, none of a letter that is not told; empty for generated answers.
    pub logps: Vec<Option<f64>>,
    /// The generated answers.
    pub votes: Vec<VoteText<'a>>,
}

/// One generated answer.
#[derive(Clone, Debug, Serialize)]
pub struct VoteText<'a> {
    /// Original option by shown position.
    pub order: &'a [usize],
    /// The option read from the text.
    pub answer: Option<usize>,
    /// The text.
    pub text: &'a str,
    /// Why it ended.
    pub finish_reason: &'a str,
    /// Its log-probability in nat, where known.
    pub logp: Option<f64>,
    /// Ids of the examples shown before.
    pub shots: &'a [String],
    /// Whether a reasoning block was cut out before reading.
    pub reasoning_removed: bool,
}

/// Samples of one run, or of several over the same questions, packed for a page.
#[derive(Debug)]
pub struct SampleBrowser<'a> {
    ids: Vec<&'a str>,
    tasks: Names,
    subjects: Names,
    task: Vec<u16>,
    subject: Vec<u32>,
    n_choices: Vec<u8>,
    key: Vec<u8>,
    question_row: Vec<u32>,
    runs: Vec<RunColumns<'a>>,
    questions: Option<&'a Texts>,
    is_shuffled: bool,
    is_open: bool,
}

/// A run's columns.
#[derive(Debug)]
struct RunColumns<'a> {
    name: &'a str,
    predicted: Vec<u8>,
    flags: Vec<u8>,
    n_votes: Vec<u16>,
    n_agree: Vec<u16>,
    shown: Vec<u32>,
    row: Vec<u32>,
    texts: &'a Texts,
}

/// Distinct names in the order of their first appearance.
#[derive(Debug, Default)]
struct Names {
    names: Vec<String>,
    places: HashMap<String, usize>,
}

impl Names {
    fn place(&mut self, name: &str) -> usize {
        if let Some(&place) = self.places.get(name) {
            return place;
        }
        self.names.push(name.to_owned());
        self.places.insert(name.to_owned(), self.names.len() - 1);
        self.names.len() - 1
    }
}

/// A column's name, type and bytes.
type Column = (String, &'static str, Vec<u8>);

/// The texts of a kind as the page names them, with the blocks that it holds.
type Blocks<'a> = (String, Vec<(u32, &'a [u8])>, usize);

impl<'a> SampleBrowser<'a> {
    /// For runs with their names and texts, the others to be compared with the first.
    pub fn new(runs: &[(&'a str, &'a Texts)], questions: Option<&'a Texts>) -> Self {
        assert!(!runs.is_empty(), "no run");
        let columns = |&(name, texts): &(&'a str, &'a Texts)| RunColumns {
            name,
            predicted: Vec::new(),
            flags: Vec::new(),
            n_votes: Vec::new(),
            n_agree: Vec::new(),
            shown: Vec::new(),
            row: Vec::new(),
            texts,
        };
        Self {
            ids: Vec::new(),
            tasks: Names::default(),
            subjects: Names::default(),
            task: Vec::new(),
            subject: Vec::new(),
            n_choices: Vec::new(),
            key: Vec::new(),
            question_row: Vec::new(),
            runs: runs.iter().map(columns).collect(),
            questions,
            is_shuffled: false,
            is_open: false,
        }
    }

    /// Adds a sample with what each run made of it; `None` where a run does not hold it.
    pub fn push(&mut self, asked: &Asked<'a>, answers: &[Option<Answered>]) {
        assert_eq!(answers.len(), self.runs.len(), "one answer a run");
        self.ids.push(asked.id);
        self.task.push(u16::try_from(self.tasks.place(asked.task)).unwrap_or(u16::MAX));
        self.subject.push(u32::try_from(self.subjects.place(asked.subject)).unwrap_or(u32::MAX));
        self.n_choices.push(small(asked.n_choices));
        self.key.push(small(asked.key));
        self.question_row.push(asked.row.map_or(NO_ROW, row_number));
        for (run, answered) in self.runs.iter_mut().zip(answers) {
            run.push(*answered);
            self.is_shuffled |= answered.is_some_and(|one| one.is_shuffled);
            self.is_open |= answered.is_some_and(|one| one.judged.is_some());
        }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The `<style>` and the policy that the page's head needs: nothing is loaded, this script alone runs.
    pub(crate) fn head(page_style: &str) -> String {
        let (script, styles) = (pack::csp_hash(SCRIPT), [page_style, STYLE].map(pack::csp_hash).join(" "));
        format!(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; base-uri 'none'; form-action 'none'; \
             script-src {script}; style-src {styles}\">\n<style>{STYLE}</style>\n"
        )
    }

    /// Writes the part: what the list needs, the script, then the texts.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let blocks = self.blocks();
        let (meta, packed) = self.packed_columns(&blocks);
        out.write_all(SKELETON.as_bytes())?;
        writeln!(out, "<script type=\"application/json\" id=\"meta\">{}</script>", pack::json(&meta))?;
        out.write_all(element("columns", &packed).as_bytes())?;
        writeln!(out, "<script>{SCRIPT}</script>")?;
        for (kind, blocks, _) in &blocks {
            for (at, (_, packed)) in blocks.iter().enumerate() {
                out.write_all(element(&format!("{kind}-{at}"), packed).as_bytes())?;
            }
        }
        Ok(())
    }

    fn blocks(&self) -> Vec<Blocks<'a>> {
        let rows = |rows: &[u32]| rows.iter().copied().filter(|&row| row != NO_ROW).collect::<Vec<_>>().into_iter();
        let questions =
            self.questions.map(|texts| ("q".to_owned(), texts.used(rows(&self.question_row)), texts.n_rows()));
        let runs = self.runs.iter().enumerate();
        let runs = runs.map(|(at, run)| (format!("r{at}"), run.texts.used(rows(&run.row)), run.texts.n_rows()));
        questions.into_iter().chain(runs).collect()
    }

    /// What the script must know, and the columns with the ids after them, the widest first, so that each is aligned.
    fn packed_columns(&self, blocks: &[Blocks<'_>]) -> (serde_json::Value, Vec<u8>) {
        let mut columns: Vec<Column> = vec![
            ("subject".into(), "u32", wide(&self.subject)),
            ("q_row".into(), "u32", wide(&self.question_row)),
            ("task".into(), "u16", self.task.iter().flat_map(|one| one.to_le_bytes()).collect()),
            ("n_choices".into(), "u8", self.n_choices.clone()),
            ("key".into(), "u8", self.key.clone()),
        ];
        self.runs.iter().enumerate().for_each(|(at, run)| columns.extend(run.columns(at)));
        columns.sort_by_key(|(_, kind, _)| ["u32", "u16", "u8"].iter().position(|one| one == kind));
        let mut bytes = Vec::new();
        let mut listed = Vec::new();
        for (name, kind, column) in columns {
            listed.push(json!({ "name": name, "kind": kind, "offset": bytes.len() }));
            bytes.extend(column);
        }
        let ids_offset = bytes.len();
        bytes.extend(serde_json::to_vec(&self.ids).unwrap_or_default());
        let told = |(kind, blocks, n_rows): &Blocks<'_>| {
            let starts: Vec<u32> = blocks.iter().map(|(start, _)| *start).collect();
            (kind.clone(), json!({ "starts": starts, "n_rows": n_rows }))
        };
        let told: serde_json::Map<String, serde_json::Value> = blocks.iter().map(told).collect();
        let meta = json!({
            "n": self.len(), "runs": self.runs.iter().map(|run| run.name).collect::<Vec<_>>(),
            "tasks": self.tasks.names, "subjects": self.subjects.names,
            "most_choices": self.n_choices.iter().max().unwrap_or(&0), "is_shuffled": self.is_shuffled, "is_open": self.is_open,
            "columns": listed, "ids_offset": ids_offset, "blocks": told,
        });
        (meta, pack::deflate(&bytes))
    }
}

impl RunColumns<'_> {
    fn push(&mut self, answered: Option<Answered>) {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let absent = flag(answered.is_none(), ABSENT);
        let one = answered.unwrap_or_default();
        self.predicted.push(one.predicted.map_or(NONE, small));
        let judged = one.judged.unwrap_or_default();
        let by_judges = flag(judged.is_split, SPLIT) | flag(judged.lacks_verdict, SILENT);
        let flags = absent | flag(one.is_right, RIGHT) | flag(one.is_tie, TIE) | flag(one.is_refused, REFUSED);
        self.flags.push(flags | by_judges | flag(judged.is_unjudged, UNJUDGED));
        self.n_votes.push(u16::try_from(one.n_votes).unwrap_or(u16::MAX));
        self.n_agree.push(u16::try_from(one.n_agree).unwrap_or(u16::MAX));
        self.shown.push(one.shown);
        self.row.push(answered.map_or(NO_ROW, |one| row_number(one.row)));
    }

    fn columns(&self, at: usize) -> [Column; 6] {
        let named = |name: &str| format!("r{at}_{name}");
        let short = |column: &[u16]| column.iter().flat_map(|one| one.to_le_bytes()).collect();
        [
            (named("shown"), "u32", wide(&self.shown)),
            (named("row"), "u32", wide(&self.row)),
            (named("n_votes"), "u16", short(&self.n_votes)),
            (named("n_agree"), "u16", short(&self.n_agree)),
            (named("predicted"), "u8", self.predicted.clone()),
            (named("flags"), "u8", self.flags.clone()),
        ]
    }
}

fn wide(column: &[u32]) -> Vec<u8> {
    column.iter().flat_map(|one| one.to_le_bytes()).collect()
}

fn row_number(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(NO_ROW)
}

/// An option as a byte; 255 is [`NONE`].
fn small(option: usize) -> u8 {
    u8::try_from(option).unwrap_or(NONE - 1).min(NONE - 1)
}

#[cfg(test)]
mod tests;
