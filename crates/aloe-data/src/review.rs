//! Overlaps with evaluation questions, to be judged by a person: a page with both texts side by side, and a file of verdicts that the
//! next run honours. Most hits of such searches are shared phrasing (`peers.md` section 5), and only a reader can tell.
//!
//! A verdict names the row and the question; one that fits no hit of the next run is counted and told, not passed over.

use crate::{Error, Overlap, Result};
use aloe_record::atomic;
use aloe_report::{Align, Page, Table};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

/// What a reader says about a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It is the question; the row goes.
    Drop,
    /// It is not; the row stays.
    Keep,
}

/// A line of `verdicts.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    row: String,
    question_at: String,
    verdict: Verdict,
}

/// A line of `overlaps.jsonl`, as [`Overlap`] is written.
#[derive(Deserialize)]
struct Hit {
    row: String,
    question_at: String,
    question: String,
    row_text: String,
    test: String,
    shared: String,
    score: f64,
}

/// Verdicts by row and question.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    by_hit: BTreeMap<(String, String), Verdict>,
}

/// Verdicts and the hits of a run that they are asked about, by words and by meaning alike.
#[derive(Debug, Default)]
pub(crate) struct Reviewed {
    verdicts: Verdicts,
    /// Row and question of every hit.
    hits: BTreeSet<(String, String)>,
    dropped: BTreeSet<String>,
}

impl Reviewed {
    pub(crate) fn of(verdicts: Verdicts) -> Reviewed {
        Reviewed { verdicts, ..Reviewed::default() }
    }

    pub(crate) fn is_kept(&self, row: &str, question_at: &str) -> bool {
        self.verdicts.of(row, question_at) == Some(Verdict::Keep)
    }

    /// Whether the hit is a new one.
    pub(crate) fn add(&mut self, hit: &Overlap) -> bool {
        if !self.is_kept(&hit.row, &hit.question_at) {
            self.dropped.insert(hit.row.clone());
        }
        self.hits.insert((hit.row.clone(), hit.question_at.clone()))
    }

    /// Rows with a hit.
    pub(crate) fn n_rows(&self) -> usize {
        self.hits.iter().map(|(row, _)| row).collect::<BTreeSet<_>>().len()
    }

    /// Rows of which a verdict keeps every hit.
    pub(crate) fn n_kept(&self) -> usize {
        self.n_rows() - self.dropped.len()
    }

    /// Verdicts on hits that there were not.
    pub(crate) fn n_unused(&self) -> usize {
        self.verdicts.by_hit.keys().filter(|hit| !self.hits.contains(hit)).count()
    }
}

impl Verdicts {
    pub(crate) fn read(path: &Path) -> Result<Verdicts> {
        let lines: Vec<Line> = read_lines(path)?;
        let mut by_hit = BTreeMap::new();
        for (number, line) in lines.into_iter().enumerate() {
            let verdict = line.verdict;
            if by_hit.insert((line.row, line.question_at), verdict).is_some_and(|other| other != verdict) {
                let at = format!("{}:{}", path.display(), number + 1);
                return Err(Error::Verdicts { at, reason: "this hit has the other verdict above".into() });
            }
        }
        Ok(Verdicts { by_hit })
    }

    fn of(&self, row: &str, question_at: &str) -> Option<Verdict> {
        self.by_hit.get(&(row.to_owned(), question_at.to_owned())).copied()
    }
}

fn read_lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let one = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            // The message of serde_json may hold text of the line, which is a row's.
            let reason = format!("not a line of this file (column {})", error.column());
            Error::Verdicts { at: format!("{}:{}", path.display(), number + 1), reason }
        })
    };
    lines.map(one).collect()
}

/// Writes the page `review.html` and `verdicts.jsonl` for the hits of a finished data stage into `out`; gives their number. Verdicts
/// that are there already are kept, those on hits that this stage lacks behind the others.
pub fn review(folder: &Path, out: &Path) -> Result<usize> {
    let hits: Vec<Hit> = read_lines(&folder.join("overlaps.jsonl"))?;
    let path = out.join("verdicts.jsonl");
    let given = if path.exists() { Verdicts::read(&path)? } else { Verdicts::default() };
    std::fs::create_dir_all(out).map_err(Error::io("write", out))?;
    let verdict = |hit: &Hit| given.by_hit.get(&(hit.row.clone(), hit.question_at.clone())).copied();
    page(&hits, &verdict).write(&out.join("review.html"))?;
    atomic::write_with(&path, |file| {
        let own = hits.iter().map(|hit| (&hit.row, &hit.question_at, verdict(hit).unwrap_or(Verdict::Drop)));
        // Given before, and on no hit of this stage: another run may have it again.
        let is_hit: BTreeSet<(&str, &str)> =
            hits.iter().map(|hit| (hit.row.as_str(), hit.question_at.as_str())).collect();
        let others = given.by_hit.iter().filter(|((row, at), _)| !is_hit.contains(&(row.as_str(), at.as_str())));
        for (row, question_at, verdict) in own.chain(others.map(|((row, at), verdict)| (row, at, *verdict))) {
            let line = Line { row: row.clone(), question_at: question_at.clone(), verdict };
            let text = serde_json::to_string(&line).unwrap_or_default();
            writeln!(file, "{text}").map_err(aloe_record::Error::io("write", &path))?;
        }
        Ok::<(), Error>(())
    })?;
    Ok(hits.len())
}

fn page(hits: &[Hit], verdict: &dyn Fn(&Hit) -> Option<Verdict>) -> Page {
    let mut page = Page::new("Overlaps to review");
    page.paragraph(&format!(
        "{} rows were taken for evaluation questions. In verdicts.jsonl, beside this page, each stands with the verdict `drop`; write \
         `keep` where the row is not the question, and give the file to the next run as `verdicts`.",
        hits.len()
    ));
    for (number, hit) in hits.iter().enumerate() {
        let state = match verdict(hit) {
            Some(Verdict::Keep) => "keep",
            Some(Verdict::Drop) | None => "drop",
        };
        page.heading(&format!("{}. {} ({state})", number + 1, hit.row));
        page.paragraph(&format!("Found by {} with score {}: {}", hit.test, hit.score, hit.shared));
        let mut table = Table::new(&[("row", Align::Left), ("evaluation question", Align::Left)]);
        table.row(vec![hit.row_text.clone(), hit.question.clone()]);
        table.row(vec![hit.row.clone(), hit.question_at.clone()]);
        page.table(&table);
    }
    page
}
