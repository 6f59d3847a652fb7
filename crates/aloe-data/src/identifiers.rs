//! Identifiers of persons in health text: found by pattern and check digit, and masked by a word for their kind.
//!
//! This is no de-identification: names are found only by rule (a title, a label), and free text tells persons apart in ways no
//! pattern sees. What a kind finds is measured on made rows in the tests below. Text never leaves this file but in the row itself:
//! counts by kind are all that manifest and ledger hold.
//!
//! The costly mistake in medicine is to take out medicine: eponyms, tests, drugs, genes, laboratory values, codes and citations
//! (`peers.md` section 5). So numbers need their check digit or a label before them, a year alone is no date, and words of the
//! keep list (`identifiers/keep.txt`) are no names.

mod checks;
mod names;
mod numbers;

use crate::Item;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a stage does about identifiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identifiers {
    /// They are not looked for.
    #[default]
    Off,
    /// They are counted and stay.
    Report,
    /// They are replaced by their kind, such as `[DATE]`.
    Mask,
    /// Their rows are dropped.
    Drop,
}

/// What is looked for, in the order in which the first of two that overlap wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IdentifierKind {
    /// E-mail address.
    Email,
    /// International bank account number, ISO 13616: length by country and remainder 97.
    Iban,
    /// Payment card: known prefix and length, Luhn's check digit.
    PaymentCard,
    /// US social security number as the Social Security Administration assigns them: no area 000, 666, 900-999, no group 00, no serial 0000.
    UsSsn,
    /// Spanish DNI or NIE with its letter (number modulo 23).
    EsDni,
    /// UK NHS number, modulo 11.
    UkNhs,
    /// Telephone or fax number.
    Phone,
    /// Number behind a label such as `MRN`.
    RecordNumber,
    /// Day and month, with a year or a word such as `on` before it; a year alone is none.
    Date,
    /// Street with house number, postal code, post box.
    Address,
    /// Name behind a title or a label.
    Name,
}

impl IdentifierKind {
    /// As manifest and ledger write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Iban => "iban",
            Self::PaymentCard => "payment_card",
            Self::UsSsn => "us_ssn",
            Self::EsDni => "es_dni",
            Self::UkNhs => "uk_nhs",
            Self::Phone => "phone",
            Self::RecordNumber => "record_number",
            Self::Date => "date",
            Self::Address => "address",
            Self::Name => "name",
        }
    }

    fn mask(self) -> String {
        format!("[{}]", self.name().to_uppercase())
    }
}

/// One identifier: bytes `start..end` of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: IdentifierKind,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Identifiers of a row by kind.
pub(crate) type Counts = BTreeMap<&'static str, usize>;

/// All identifiers of a text, in order, none over another.
pub(crate) fn find(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
    if ["@", "at)", "at]", "AT)", "AT]", "At)", "At]"].iter().any(|sign| text.contains(sign)) {
        numbers::emails(text, &mut found);
    }
    if has_digit {
        numbers::find(text, &mut found);
    }
    names::find(text, &mut found);
    found.sort_by_key(|one| (one.kind, one.start));
    let mut kept: Vec<Found> = Vec::new();
    for one in found {
        if kept.iter().all(|other| one.end <= other.start || other.end <= one.start) {
            kept.push(one);
        }
    }
    kept.sort_by_key(|one| one.start);
    kept
}

/// `text` with its identifiers masked.
pub(crate) fn masked(text: &str) -> String {
    mask(text, &find(text))
}

fn mask(text: &str, found: &[Found]) -> String {
    let (mut masked, mut done) = (String::with_capacity(text.len()), 0);
    for one in found {
        masked.push_str(&text[done..one.start]);
        masked.push_str(&one.kind.mask());
        done = one.end;
    }
    masked.push_str(&text[done..]);
    masked
}

/// The identifiers of a row by kind; in mode `mask` they are replaced.
pub(crate) fn apply(item: &mut Item, mode: Identifiers) -> Counts {
    let mut counts = Counts::new();
    if mode == Identifiers::Off {
        return counts;
    }
    for message in item.messages_mut() {
        let found = find(&message.content);
        for one in &found {
            *counts.entry(one.kind.name()).or_default() += 1;
        }
        if mode == Identifiers::Mask && !found.is_empty() {
            message.content = mask(&message.content, &found);
        }
    }
    if mode == Identifiers::Mask {
        mask_question(item);
    }
    counts
}

/// The same texts again, as the question of the row's layout, by which it is compared; and its subject, which templates name.
fn mask_question(item: &mut Item) {
    let change = |text: &mut String| {
        let found = find(text);
        if !found.is_empty() {
            *text = mask(text, &found);
        }
    };
    if let Some(question) = &mut item.question {
        change(&mut question.stem);
        change(&mut question.subject);
        question.choices.iter_mut().for_each(change);
        question.context.iter_mut().chain(&mut question.explanation).for_each(change);
    }
    if let Some(rare) = &mut item.rare {
        rare.group.iter_mut().chain(&mut rare.style).chain(&mut rare.made).for_each(change);
    }
    // Rows say it together: only one that changes gets its own.
    let changed = |text: &str| Some(masked(text)).filter(|masked| masked != text);
    let subject = changed(&item.about.subject);
    // A layout's own name for its task holds nothing of the row.
    let task = if let Cow::Owned(task) = &item.about.task { changed(task) } else { None };
    if subject.is_some() || task.is_some() {
        let about = Arc::make_mut(&mut item.about);
        about.subject = subject.unwrap_or_else(|| std::mem::take(&mut about.subject));
        about.task = task.map_or_else(|| std::mem::take(&mut about.task), Cow::Owned);
    }
}

#[cfg(test)]
mod tests;
