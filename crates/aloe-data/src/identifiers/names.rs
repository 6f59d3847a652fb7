//! Names by rule: behind a title (`Mrs. Okafor`) or a label (`Patient name: ..`). A word of the keep list is no name, unless a title
//! that no eponym has stands before it.

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

/// Adds the names of `text`.
pub(super) fn find(text: &str, found: &mut Vec<Found>) {
    for (pattern, is_label) in [(&*TITLED, false), (&*LABELLED, true)] {
        let mut from = 0;
        while let Some(parts) = pattern.captures_at(text, from) {
            let title = parts.name("title").or(parts.name("whole")).map_or("", |one| one.as_str());
            // In a heading `Will We Miss Cancers` is a verb.
            let is_verb = title == "Miss" && VERB_MISS.is_match(&text[..parts.get(0).map_or(0, |whole| whole.start())]);
            // Eponyms are doctors' names: `Dr. Parkinson` is a reference, `Mr. Parkinson` a patient.
            let checks_keep = is_label || matches!(title, "Dr" | "Dra" | "Prof" | "Professor" | "Doctor");
            let Some(words) = parts.name("name") else { break };
            let name = name(words.as_str(), checks_keep);
            // A label may follow at once, so the search goes on behind the name and not behind all words that looked like one.
            from = words.start() + name.len().max(1);
            while !text.is_char_boundary(from) {
                from += 1;
            }
            if name.len() >= 3 && !is_verb {
                found.push(Found { kind: IdentifierKind::Name, start: words.start(), end: words.start() + name.len() });
            }
        }
    }
}

/// The part of `words` that is a name: up to the first word that is none; nothing when its first two words hold one of the keep list.
fn name(words: &str, checks_keep: bool) -> &str {
    let is_kept = |word: &str| {
        checks_keep && word.split('-').any(|part| KEEP.contains(&part.trim_end_matches('.').to_lowercase()))
    };
    let (mut end, mut start) = (0, 0);
    for (index, word) in words.split(' ').enumerate() {
        if index < 2 && is_kept(word) {
            return "";
        }
        if NO_NAME_WORDS.contains(word) || is_kept(word) {
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
