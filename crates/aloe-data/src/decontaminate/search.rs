//! The four tests, in the order of their evidence: the first question that a row holds, or all of them, and why.

use super::words::{Runs, Words};
use super::{
    Evidence, Held, Index, IsKept, LONGEST_SHORT_STEM, LONGEST_STEM, N_TELLING, N_TELLING_PART, NUMBER, OPTION_LINE,
    Overlap, SHORTEST_STEM,
};
use super::{hash, n_telling, option_set, rounded, telling};
use crate::simplify::plain;
use crate::{Item, simplify};
use aloe_text::Role;
use std::collections::{BTreeMap, BTreeSet};

/// Paragraphs from the end of a text that are looked at as a question's beginning: the text is read anew for each.
const LAST_PARAGRAPHS: usize = 8;

/// Whether a question may be a hit.
type IsIn<'a> = dyn Fn(&u32) -> bool + 'a;

/// The digits of a text's numbers in order: points, commas and separators of thousands are what changed punctuation changes.
fn numbers(text: &str) -> Vec<String> {
    NUMBER.find_iter(text).map(|found| found.as_str().replace([',', '.'], "")).collect()
}

/// A question that a row holds.
struct Hit {
    /// Its number.
    question: usize,
    /// The number of the row's message that holds it.
    message: usize,
    evidence: Evidence,
}

impl Index {
    /// All overlaps of `item` up to the first that `is_kept`, asked with row and question, does not set aside.
    pub(super) fn overlaps(&self, item: &Item, is_kept: &IsKept<'_>) -> Vec<Overlap> {
        let mut found: Vec<Overlap> = Vec::new();
        loop {
            let is_out = |number: usize| found.iter().any(|overlap| *overlap.question_at == *self.held[number].at);
            let Some(overlap) = self.overlap(item, &is_out) else { return found };
            let goes_on = is_kept(&overlap.row, &overlap.question_at);
            found.push(overlap);
            if !goes_on {
                return found;
            }
        }
    }

    /// The first overlap of `item` with a question that is not `is_out`, if any.
    pub(crate) fn overlap(&self, item: &Item, is_out: &dyn Fn(usize) -> bool) -> Option<Overlap> {
        let hit = self.hit(item, is_out)?;
        let message = item.each_message().nth(hit.message);
        Some(Overlap {
            row: item.id.clone(),
            question_at: self.held[hit.question].at.to_string(),
            question: self.shown(hit.question),
            row_text: message.map(|message| message.content.clone()).unwrap_or_default(),
            evidence: hit.evidence,
        })
    }

    /// The first question that `item` holds and that is not `is_out`.
    fn hit(&self, item: &Item, is_out: &dyn Fn(usize) -> bool) -> Option<Hit> {
        let is_in = |id: &u32| !is_out(*id as usize);
        let messages = item.messages();
        let text = |at: usize| messages[at].content.as_str();
        let users: Vec<usize> = (0..messages.len()).filter(|at| messages[*at].role == Role::User).collect();
        let asked: Vec<&str> = users.iter().map(|at| text(*at)).collect();
        let first = users.first().copied().unwrap_or_default();
        let options = match &item.question {
            Some(question) => question.choices.clone(),
            // Three options take three lines; the pattern is slow and most questions have one.
            None if asked.iter().map(|text| text.matches('\n').count() + 1).sum::<usize>() < 3 => Vec::new(),
            None => OPTION_LINE.captures_iter(&asked.join("\n")).map(|found| found[1].to_owned()).collect(),
        };
        let hit = if options.is_empty() { None } else { self.same_options(&options, &asked, item, &is_in) };
        let n_listed = |at: &&usize| OPTION_LINE.find_iter(text(**at)).count();
        let hit = hit.map(|hit| (users.iter().rev().max_by_key(n_listed).copied().unwrap_or(first), hit));
        // Simplified once: it is most of the work.
        let simple: Vec<String> = messages.iter().map(|message| simplify(&message.content)).collect();
        let words: Vec<Words<'_>> = simple.iter().map(|text| Words::of(text)).collect();
        let whole = |at: usize| Some((at, self.whole_question(text(at), &words[at], &is_in)?));
        let hit = hit.or_else(|| users.iter().copied().find_map(whole));
        let parts = |at: usize| Some((at, self.part_of(text(at), &is_in)?));
        let hit = hit.or_else(|| users.iter().copied().find_map(parts));
        let stem = || Some((first, self.whole_part(&item.question.as_ref()?.stem, &is_in)?));
        let hit = hit.or_else(stem);
        let stems = |at: usize| Some((at, self.stem_and_options(text(at), &words[at], &is_in)?));
        let hit = hit.or_else(|| (0..messages.len()).find_map(stems));
        let runs = |at: usize| Some((at, self.shared_runs(&words[at], &is_in)?));
        let hit = hit.or_else(|| (0..messages.len()).find_map(runs));
        let inside = |at: usize| Some((at, self.stem_inside(text(at), &words[at], &is_in)?));
        let (message, (question, evidence)) = hit.or_else(|| users.iter().copied().find_map(inside))?;
        Some(Hit { question: question as usize, message, evidence })
    }

    /// All questions that `item` holds and why, by their numbers among those that [`Index::of`] was given, each once. The row is searched
    /// anew behind each: most hold none.
    pub(crate) fn trained(&self, item: &Item) -> Vec<(usize, Evidence)> {
        let mut found: Vec<(usize, Evidence)> = Vec::new();
        let base = |number: usize| self.held[number].base as usize;
        while let Some(hit) = self.hit(item, &|number| found.iter().any(|(known, _)| *known == base(number))) {
            found.push((base(hit.question), hit.evidence));
        }
        found
    }

    fn same_options(
        &self,
        options: &[String],
        asked: &[&str],
        item: &Item,
        is_in: &IsIn<'_>,
    ) -> Option<(u32, Evidence)> {
        let set = option_set(options);
        let ids = self.by_options.get(hash(&set.join("\n")));
        if ids.is_empty() {
            return None;
        }
        let stem = match &item.question {
            Some(question) => question.stem.clone(),
            None => OPTION_LINE.replace_all(&asked.join("\n"), "").into_owned(),
        };
        let stem = telling(&simplify(&stem));
        let n_words: usize = set.iter().map(|option| option.split(' ').count()).sum();
        let needed = if n_words < 6 { 0.75 } else { 0.5 };
        ids.iter().filter(|id| is_in(id)).find_map(|&id| {
            let held = &self.held[id as usize];
            let asked = telling(&held.stem);
            let common = asked.intersection(&stem).count();
            let score = common as f64 / asked.len().min(stem.len()).max(1) as f64;
            let shared = held.options.replace('\n', " | ");
            (common >= 2 && score >= needed).then(|| (id, Evidence { test: "options", shared, score: rounded(score) }))
        })
    }

    /// Word for word, and number for number, which simplified text has lost: 12 x 7 is not 9 x 3.
    fn whole_question(&self, text: &str, words: &Words<'_>, is_in: &IsIn<'_>) -> Option<(u32, Evidence)> {
        let ids = self.whole.get(words.whole_hash());
        if ids.is_empty() {
            return None;
        }
        let own = numbers(text);
        let id = *ids.iter().find(|id| is_in(id) && numbers(&self.held[**id as usize].asked.0) == own)?;
        Some((id, Evidence { test: "ngram_8", shared: words.run(0, words.len()).to_owned(), score: 1.0 }))
    }

    /// A question that is a paragraph or a line of the text, or all of it from a paragraph on: instructions stand before.
    fn part_of(&self, text: &str, is_in: &IsIn<'_>) -> Option<(u32, Evidence)> {
        if !text.contains('\n') {
            return None;
        }
        let paragraphs = text.rmatch_indices("\n\n").take(LAST_PARAGRAPHS).map(|(at, _)| text[at..].trim());
        let lines = text.split("\n\n").chain(text.lines()).chain(paragraphs);
        lines.filter(|part| part.len() < text.len()).find_map(|part| self.whole_part(part, is_in))
    }

    /// A part of a message that is a whole question, where it asks something: "Which of the following is true?" is a line of many.
    fn whole_part(&self, part: &str, is_in: &IsIn<'_>) -> Option<(u32, Evidence)> {
        let simple = simplify(part);
        let hit = self.whole_question(part, &Words::of(&simple), is_in)?;
        (n_telling(&simple) >= N_TELLING_PART).then_some(hit)
    }

    /// Numbers of words and places at which a short stem may begin: shorter stems first, then those that stand earlier.
    fn short_stems(&self, words: &Words<'_>, longest: usize) -> BTreeSet<(usize, usize)> {
        let mut candidates = BTreeSet::new();
        for (n, at, hash) in [1, 2].into_iter().flat_map(|n| words.runs(n).map(move |(at, hash)| (n, at, hash))) {
            let lengths = self.short_starts.get(&hash).copied().unwrap_or(0);
            let lengths = if n == 1 { lengths & 0b10 } else { lengths & !0b10 };
            let fits = |n_words: &usize| lengths >> n_words & 1 == 1 && at + n_words <= words.len();
            candidates.extend((1..=longest).filter(fits).map(|n_words| (n_words, at)));
        }
        candidates
    }

    /// A whole stem of enough telling words anywhere in the text, with all of its numbers.
    fn stem_inside(&self, text: &str, words: &Words<'_>, is_in: &IsIn<'_>) -> Option<(u32, Evidence)> {
        let own = std::cell::OnceCell::new();
        let has_numbers = |held: &Held| {
            let own = own.get_or_init(|| numbers(text));
            numbers(&held.asked.0).iter().all(|number| own.contains(number))
        };
        for (n_words, at) in self.short_stems(words, LONGEST_STEM) {
            let run = words.run(at, n_words);
            if n_words < SHORTEST_STEM || n_telling(run) < N_TELLING {
                continue;
            }
            let ids = self.short.get(words.hash(at, n_words)).iter();
            let found = ids.copied().find(|id| is_in(id) && has_numbers(&self.held[*id as usize]));
            if let Some(id) = found {
                return Some((id, Evidence { test: "ngram_8", shared: run.to_owned(), score: 1.0 }));
            }
        }
        None
    }

    fn stem_and_options(&self, text: &str, words: &Words<'_>, is_in: &IsIn<'_>) -> Option<(u32, Evidence)> {
        let plain_text = std::cell::OnceCell::new();
        let has_all = |held: &Held| {
            let plain_text = plain_text.get_or_init(|| format!(" {} ", plain(text)));
            held.options().all(|option| plain_text.contains(&format!(" {option} ")))
        };
        // A stem of one or two words is evidence only together with options that say something.
        let is_enough = |held: &Held, n_words: usize| {
            n_words >= 3 || held.options().map(|o| o.split(' ').count()).sum::<usize>() >= 6
        };
        for (n_words, at) in self.short_stems(words, LONGEST_SHORT_STEM) {
            let ids = self.short.get(words.hash(at, n_words)).iter();
            let found = ids
                .filter(|id| is_in(id))
                .map(|&id| (id, &self.held[id as usize]))
                .find(|(_, held)| held.options().nth(2).is_some() && is_enough(held, n_words) && has_all(held));
            if let Some((id, held)) = found {
                let shared = format!("{} | {}", held.stem, held.options.replace('\n', " | "));
                return Some((id, Evidence { test: "stem_and_options", shared, score: 1.0 }));
            }
        }
        None
    }

    fn shared_runs(&self, words: &Words<'_>, is_in: &IsIn<'_>) -> Option<(u32, Evidence)> {
        let long = self.most_runs("ngram_13", words, (&self.runs_13, 13), 0.25, |held| held.n_runs_13, is_in);
        long.or_else(|| self.most_runs("ngram_8", words, (&self.runs_8, 8), 0.7, |held| held.n_runs_8, is_in))
    }

    /// The first question of which at least the share `needed` of all its `n`-word runs stand among `words`.
    fn most_runs(
        &self,
        test: &'static str,
        words: &Words<'_>,
        (runs, n): (&Runs, usize),
        needed: f64,
        n_runs: fn(&Held) -> u32,
        is_in: &IsIn<'_>,
    ) -> Option<(u32, Evidence)> {
        let mut found: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
        for (at, hash) in words.runs(n) {
            for id in runs.get(hash).iter().filter(|id| is_in(id)) {
                found.entry(*id).or_default().insert(words.run(at, n));
            }
        }
        let scored = found.into_iter().map(|(id, runs)| {
            let score = runs.len() as f64 / f64::from(n_runs(&self.held[id as usize]).max(1));
            (id, score, runs)
        });
        let (id, score, runs) = scored.into_iter().find(|(_, score, _)| *score >= needed)?;
        let shared = runs.first().map(|run| (*run).to_owned()).unwrap_or_default();
        Some((id, Evidence { test, shared, score: rounded(score) }))
    }
}
