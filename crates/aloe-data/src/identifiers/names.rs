//! Names by rule: behind a title (`Mrs. Okafor`) or a label (`Patient name: ..`). Words of the keep list alone are no name behind a title that
//! eponyms have or a label that tests have (`Dr. Parkinson`, `Name: Glasgow`), and nothing is before a word such as `syndrome`; `Dr. Emily Brown` and
//! `Patient name: Wilson` are names.

use super::{Found, IdentifierKind};
use regex::Regex;
use std::collections::HashSet;
use std::sync::LazyLock;

/// Eponyms, tests and drugs that labels and titles stand before, a word each; ours, not a copied list.
static KEEP: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let lines = include_str!("keep.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(str::split_whitespace).map(str::to_lowercase).collect()
});

/// Capitalised words that begin a sentence behind a title's full stop, and what stands behind labels without being a name.
const NO_NAME: &str = "The A An He She They It His Her Their This That These In On At Of To Is Was And Or But If When Patient Patients Unknown None \
    Not No Yes Male Female Address Phone Date Age Sex Gender Number Test Drug Disease Syndrome Hospital Clinic Ward Unit Department University";
static NO_NAME_WORDS: LazyLock<HashSet<&'static str>> = LazyLock::new(|| NO_NAME.split_whitespace().collect());

const WORD: &str = r"(?:(?:O['’]|D['’]|Mc|Mac|Al-|El-)?\p{Lu}\p{Ll}+(?:[-'’]\p{Lu}\p{Ll}+)?|\p{Lu}\.)";
const LINK: &str = r"(?:de la|de los|del|de|van der|van|von|bin|ibn|da|dos|di|le|la|y|i)";

static TITLED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!(
        r"\b(?:(?P<title>Mr|Mrs|Ms|Mx|Sr|Sra|Srta|Dr|Dra|Prof)\b\.?|(?P<whole>Miss|Don|Doña|Professor|Doctor))[ ](?P<name>{WORD}(?:[ ](?:{LINK}[ ])?{WORD}){{0,3}})"
    ))
    .expect("a fixed pattern")
});
static VERB_MISS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b(?:We|You|I|They|Will|Not|To|Never|May|Can)[ ]$").expect("a fixed pattern"));
static LABELLED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!(
        r"(?:\b(?i:(?:patient|client|full|first|last|family|mother|father|carer)(?:['’]s)?[ ]name|next[ ]of[ ]kin|emergency[ ]contact|referring[ ]physician|attending(?:[ ]physician)?|signed(?:[ ]by)?|nombre(?:[ ]y[ ]apellidos)?|apellidos|paciente|firmado)\b(?:[ ](?:is|es))?[:,]?[ ]|(?:^|[\n.;(][ ]*)(?:Name|NAME):[ ]|\b(?i:my[ ]name[ ]is|me[ ]llamo)[ ])(?P<name>{WORD}(?:[ ](?:{LINK}[ ])?{WORD}){{0,3}})"
    ))
    .expect("a fixed pattern")
});
/// Forms in capitals alone.
static CAPITALS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b(?:PATIENT|CLIENT|FULL|FIRST|LAST|FAMILY)(?:'S)? NAME:[ ]?(?P<name>\p{Lu}{2,}(?:['’-]\p{Lu}+)?(?:,?[ ]\p{Lu}{2,}(?:['’-]\p{Lu}+)?){0,3})")
        .expect("a fixed pattern")
});
/// Labels of forms in capitals that may follow a name or stand in its place.
const NO_CAPITALS: [&str; 14] =
    ["DOB", "MRN", "ID", "SEX", "AGE", "DATE", "MALE", "FEMALE", "UNKNOWN", "NONE", "NOT", "NHS", "SSN", "WARD"];
/// `Okafor, Ngozi` behind a label; within a sentence behind a label of a name alone, for others name what a person is.
static SECOND: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!(r"^,[ ](?P<name>{WORD})(?:[\n.;,)]|$|(?P<goes_on>[ ]\p{{Ll}}))")).expect("a fixed pattern")
});
/// What makes the words before it a thing, `Graves' disease` and `Parkinson's test`; `Mrs. Okafor's daughter` is hers.
static MEDICAL: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?i)^(?:['’]s?)?(?:[ ](?:disease|syndrome|sign|test|criteria|classification|score|scale|index|reflex|phenomenon|manoeuvre|maneuver|law|procedure|operation|stain|solution|lymphoma|sarcoma|coma|palsy|anaemia|anemia)\b)",
    )
    .expect("a fixed pattern")
});

/// Adds the names of `text`.
pub(super) fn find(text: &str, found: &mut Vec<Found>) {
    for words in CAPITALS.captures_iter(text).filter_map(|parts| parts.name("name")) {
        let mut end = 0;
        for word in words.as_str().split_inclusive(' ') {
            if NO_CAPITALS.contains(&word.trim_end_matches([' ', ','])) {
                break;
            }
            end += word.len();
        }
        let name = words.as_str()[..end].trim_end_matches([' ', ',']);
        if !name.is_empty() {
            found.push(Found { kind: IdentifierKind::Name, start: words.start(), end: words.start() + name.len() });
        }
    }
    for (pattern, is_label) in [(&*TITLED, false), (&*LABELLED, true)] {
        let mut from = 0;
        while let Some(parts) = pattern.captures_at(text, from) {
            let title = parts.name("title").or(parts.name("whole")).map_or("", |one| one.as_str());
            // In a heading `Will We Miss Cancers` is a verb.
            let is_verb = title == "Miss" && VERB_MISS.is_match(&text[..parts.get(0).map_or(0, |whole| whole.start())]);
            // Eponyms are doctors' names: `Dr. Parkinson` is a reference, `Mr. Parkinson` a patient.
            let (Some(whole), Some(words)) = (parts.get(0), parts.name("name")) else { break };
            let label = text[whole.start()..words.start()].to_lowercase();
            let is_weak = is_label
                && ["name: ", "paciente"]
                    .iter()
                    .any(|weak| label.trim_start_matches(['\n', '.', ';', '(', ' ']).starts_with(weak));
            let checks_keep = is_weak || matches!(title, "Dr" | "Dra" | "Prof" | "Professor" | "Doctor");
            let mut name = name(words.as_str(), checks_keep);
            let ends = name.match_indices(' ').map(|(at, _)| at).chain([name.len()]);
            let is_thing = ends.map(|at| words.start() + at).any(|at| MEDICAL.is_match(&text[at..]));
            if (is_weak || !is_label) && is_thing {
                name = "";
            }
            let is_of_name = ["name", "nombre", "apellidos"].iter().any(|word| label.contains(word));
            let second = SECOND.captures(&text[words.start() + name.len()..]);
            let is_medicine = |word: &str| KEEP.contains(&word.to_lowercase());
            let second =
                second.filter(|parts| parts.name("goes_on").is_none() || (is_of_name && !is_medicine(&parts["name"])));
            let second = second.and_then(|parts| parts.name("name"));
            let second = second
                .filter(|second| is_label && !is_weak && !name.is_empty() && !NO_NAME_WORDS.contains(second.as_str()));
            let name = &text[words.start()..words.start() + name.len() + second.map_or(0, |second| second.end())];
            // A label may follow at once, so the search goes on behind the name and not behind all words that looked like one.
            from = words.start() + name.len().max(1);
            while !text.is_char_boundary(from) {
                from += 1;
            }
            // An initial alone is no name.
            let is_long = name.chars().nth(1).is_some_and(char::is_lowercase) || name.chars().count() >= 3;
            if is_long && !is_verb {
                found.push(Found { kind: IdentifierKind::Name, start: words.start(), end: words.start() + name.len() });
            }
        }
    }
}

/// The part of `words` that is a name: up to the first word that is none; nothing when its first two words are of the keep list, or its only one.
fn name(words: &str, checks_keep: bool) -> &str {
    let is_kept = |word: &str| {
        checks_keep && word.split('-').any(|part| KEEP.contains(&part.trim_end_matches('.').to_lowercase()))
    };
    let (mut end, mut start) = (0, 0);
    if words.split(' ').take_while(|word| !NO_NAME_WORDS.contains(word)).take(2).all(is_kept) {
        return "";
    }
    for word in words.split(' ') {
        if NO_NAME_WORDS.contains(word) {
            break;
        }
        // A link such as `de` counts only with the name behind it.
        if word.starts_with(char::is_uppercase) {
            end = start + word.len();
        }
        start += word.len() + 1;
    }
    &words[..end]
}
