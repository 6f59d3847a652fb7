//! The part of a page that lets a reader look at single samples: filters, a list, one sample's texts. Where in the walk: `aloe-eval`
//! hands over samples one by one; `Page::write_with_samples` puts this part at the page's end.
//!
//! Made for 200,000 samples: what is filtered by stands as columns of small integers, the texts as blocks that the browser unpacks when
//! one is opened. The list is drawn before the blocks are read. Needs JavaScript, which the rest of a page does not; nothing is fetched
//! (the page's Content-Security-Policy forbids it), and texts never become markup. Computes no result of its own.

mod blocks;
mod pack;

use blocks::{Blocks, element};
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
    /// The question's texts, where they are at hand.
    pub text: Option<QuestionText<'a>>,
}

/// A question's texts.
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
#[derive(Clone, Debug, Default)]
pub struct Answered<'a> {
    /// The predicted option; none when no answer could be read.
    pub predicted: Option<usize>,
    /// Whether that is right.
    pub is_right: bool,
    /// Whether two options shared the most votes.
    pub is_tie: bool,
    /// Why the question was refused.
    pub refused: Option<&'a str>,
    /// SHA-256 of the prompt.
    pub prompt_sha256: &'a str,
    /// Summed log-probability by option, in nat; empty for generated answers.
    pub logps: Vec<f64>,
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

/// Samples of one run, or of two over the same questions, packed for a page.
#[derive(Debug, Default)]
pub struct SampleBrowser {
    run_names: Vec<String>,
    ids: Vec<String>,
    tasks: Names,
    subjects: Names,
    task: Vec<u16>,
    subject: Vec<u32>,
    n_choices: Vec<u8>,
    key: Vec<u8>,
    runs: Vec<RunColumns>,
    questions: Blocks,
    has_questions: bool,
    is_shuffled: bool,
}

/// A run's columns.
#[derive(Debug, Default)]
struct RunColumns {
    predicted: Vec<u8>,
    flags: Vec<u8>,
    n_votes: Vec<u16>,
    n_agree: Vec<u16>,
    /// One bit a shown position that an answer chose.
    shown: Vec<u32>,
    texts: Blocks,
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

impl SampleBrowser {
    /// For the run or the two runs of these names; the second is compared with the first.
    pub fn new(run_names: &[&str]) -> Self {
        assert!((1..=2).contains(&run_names.len()), "one run or two, not {}", run_names.len());
        Self {
            run_names: run_names.iter().map(|&name| name.to_owned()).collect(),
            runs: run_names.iter().map(|_| RunColumns::default()).collect(),
            ..Self::default()
        }
    }

    /// Adds a sample with what each run made of it; `None` where a run does not hold it.
    pub fn push(&mut self, asked: &Asked<'_>, answers: &[Option<&Answered<'_>>]) {
        assert_eq!(answers.len(), self.runs.len(), "one answer a run");
        self.ids.push(asked.id.to_owned());
        self.task.push(u16::try_from(self.tasks.place(asked.task)).unwrap_or(u16::MAX));
        self.subject.push(u32::try_from(self.subjects.place(asked.subject)).unwrap_or(u32::MAX));
        self.n_choices.push(small(asked.n_choices));
        self.key.push(small(asked.key));
        self.has_questions |= asked.text.is_some();
        self.questions.push(&asked.text);
        for (run, answered) in self.runs.iter_mut().zip(answers) {
            run.push(*answered);
            let mut votes = answered.iter().flat_map(|one| &one.votes);
            self.is_shuffled |= votes.any(|vote| !vote.order.is_sorted());
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
    pub(crate) fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        let (meta, packed) = self.packed_columns();
        out.write_all(SKELETON.as_bytes())?;
        writeln!(out, "<script type=\"application/json\" id=\"meta\">{}</script>", pack::json(&meta))?;
        out.write_all(element("columns", &packed).as_bytes())?;
        writeln!(out, "<script>{SCRIPT}</script>")?;
        for (name, blocks) in self.blocks() {
            blocks.elements(name).try_for_each(|one| out.write_all(one.as_bytes()))?;
        }
        Ok(())
    }

    fn blocks(&self) -> Vec<(&'static str, &Blocks)> {
        let questions = self.has_questions.then_some(("q", &self.questions));
        questions.into_iter().chain(["a", "b"].into_iter().zip(self.runs.iter().map(|run| &run.texts))).collect()
    }

    /// What the script must know, and the columns with the ids after them, the widest first, so that each is aligned.
    fn packed_columns(&mut self) -> (serde_json::Value, Vec<u8>) {
        self.questions.close();
        self.runs.iter_mut().for_each(|run| run.texts.close());
        let mut columns: Vec<Column> = vec![
            ("subject".into(), "u32", self.subject.iter().flat_map(|one| one.to_le_bytes()).collect()),
            ("task".into(), "u16", self.task.iter().flat_map(|one| one.to_le_bytes()).collect()),
            ("n_choices".into(), "u8", self.n_choices.clone()),
            ("key".into(), "u8", self.key.clone()),
        ];
        ["a", "b"].into_iter().zip(&self.runs).for_each(|(letter, run)| columns.extend(run.columns(letter)));
        columns.sort_by_key(|(_, kind, _)| ["u32", "u16", "u8"].iter().position(|one| one == kind));
        let mut bytes = Vec::new();
        let mut listed = Vec::new();
        for (name, kind, column) in columns {
            listed.push(json!({ "name": name, "kind": kind, "offset": bytes.len() }));
            bytes.extend(column);
        }
        let ids_offset = bytes.len();
        bytes.extend(serde_json::to_vec(&self.ids).unwrap_or_default());
        let starts: serde_json::Map<String, serde_json::Value> =
            self.blocks().into_iter().map(|(name, blocks)| (name.to_owned(), json!(blocks.starts))).collect();
        let meta = json!({
            "n": self.len(), "runs": self.run_names, "tasks": self.tasks.names, "subjects": self.subjects.names,
            "most_choices": self.n_choices.iter().max().unwrap_or(&0), "is_shuffled": self.is_shuffled,
            "columns": listed, "ids_offset": ids_offset, "blocks": starts,
        });
        (meta, pack::deflate(&bytes))
    }
}

impl RunColumns {
    fn push(&mut self, answered: Option<&Answered<'_>>) {
        let Some(one) = answered else {
            self.predicted.push(NONE);
            self.flags.push(ABSENT);
            self.n_votes.push(0);
            self.n_agree.push(0);
            self.shown.push(0);
            self.texts.push(&());
            return;
        };
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        self.predicted.push(one.predicted.map_or(NONE, small));
        self.flags.push(flag(one.is_right, RIGHT) | flag(one.is_tie, TIE) | flag(one.refused.is_some(), REFUSED));
        let n_agree = one.votes.iter().filter(|vote| vote.answer.is_some() && vote.answer == one.predicted).count();
        self.n_votes.push(u16::try_from(one.votes.len()).unwrap_or(u16::MAX));
        self.n_agree.push(u16::try_from(n_agree).unwrap_or(u16::MAX));
        self.shown.push(one.votes.iter().filter_map(shown_at).fold(0, |bits, place| bits | 1u32.unbounded_shl(place)));
        self.texts.push(&json!({
            "refused": one.refused, "prompt_sha256": one.prompt_sha256, "logps": one.logps, "votes": one.votes,
        }));
    }

    fn columns(&self, letter: &str) -> [Column; 5] {
        let named = |name: &str| format!("{letter}_{name}");
        let wide = |column: &[u16]| column.iter().flat_map(|one| one.to_le_bytes()).collect();
        [
            (named("shown"), "u32", self.shown.iter().flat_map(|one| one.to_le_bytes()).collect()),
            (named("n_votes"), "u16", wide(&self.n_votes)),
            (named("n_agree"), "u16", wide(&self.n_agree)),
            (named("predicted"), "u8", self.predicted.clone()),
            (named("flags"), "u8", self.flags.clone()),
        ]
    }
}

/// Where the chosen option was shown.
fn shown_at(vote: &VoteText<'_>) -> Option<u32> {
    let answer = vote.answer?;
    vote.order.iter().position(|&original| original == answer).and_then(|place| u32::try_from(place).ok())
}

/// An option as a byte; 255 is [`NONE`].
fn small(option: usize) -> u8 {
    u8::try_from(option).unwrap_or(NONE - 1).min(NONE - 1)
}

#[cfg(test)]
mod tests;
