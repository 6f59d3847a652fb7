//! What licences allow of the uses that a recipe states, by a table of the licences that data sets carry (SPDX names, their spellings
//! on the Hub, `A OR B`, `A AND B`). It sorts licences; it is no legal advice.
//!
//! A licence that is not in the table allows nothing that is asked: it is named, never guessed at by parts of its name.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// What the result is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Earning money with it.
    Commercial,
    /// Sharing what was made from the rows.
    Derivatives,
    /// Sharing it under terms other than the source's.
    OtherTerms,
    /// Use outside of research.
    BeyondResearch,
}

/// What one licence forbids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Terms {
    no_commerce: bool,
    no_derivatives: bool,
    share_alike: bool,
    research_only: bool,
}

const OPEN: [&str; 15] = [
    "mit",
    "apache-2.0",
    "apache",
    "bsd-2-clause",
    "bsd-3-clause",
    "isc",
    "unlicense",
    "cc0-1.0",
    "cc0",
    "pddl-1.0",
    "pddl",
    "public-domain",
    "odc-by-1.0",
    "odc-by",
    "cdla-permissive-2.0",
];
const SHARE_ALIKE: [&str; 12] = [
    "gpl-2.0",
    "gpl-3.0",
    "agpl-3.0",
    "lgpl-2.1",
    "lgpl-3.0",
    "gfdl-1.3",
    "odbl-1.0",
    "odbl",
    "cdla-sharing-1.0",
    "gpl",
    "agpl",
    "lgpl",
];

/// Words that say that nobody stated a licence, wherever they stand.
const UNSTATED: [&str; 10] = [
    "unknown",
    "unspecified",
    "unstated",
    "unlicensed",
    "unlicenced",
    "undisclosed",
    "undetermined",
    "unclear",
    "tbd",
    "todo",
];
/// What is said of a licence that somebody looked for, each behind `not` or `none`.
const NOT_FOUND: [&str; 10] =
    ["stated", "specified", "given", "known", "found", "provided", "disclosed", "determined", "declared", "mentioned"];
/// Texts that say as little, with the word `licence` or without it.
const NOTHING: [&str; 14] = [
    "",
    "none",
    "no",
    "null",
    "n a",
    "na",
    "nan",
    "other",
    "others",
    "missing",
    "not available",
    "not applicable",
    "to be determined",
    "without",
];

/// Whether the words say that nobody stated a licence, or where one may be looked for. A known name with a remark behind it, such as
/// `CC-BY-4.0 (annotators unknown)`, states one.
pub(crate) fn is_unstated(licence: &str) -> bool {
    let lower = licence.to_lowercase();
    if terms(lower.split(['(', ',', ';']).next().unwrap_or_default().trim()).is_some() {
        return false;
    }
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let is_licence = |word: &str| ["licence", "license", "licences", "licenses", "licensing"].contains(&word);
    let said: Vec<&str> = words.iter().copied().filter(|word| !is_licence(word)).collect();
    words.iter().any(|word| UNSTATED.contains(word))
        || words.windows(2).any(|two| {
            (["not", "none"].contains(&two[0]) && NOT_FOUND.contains(&two[1]))
                || (["no", "without"].contains(&two[0]) && is_licence(two[1]))
        })
        || ["see", "check", "ask"].iter().any(|verb| words.first() == Some(verb))
        || NOTHING.contains(&said.join(" ").as_str())
}

/// Whether the table knows the licence, of several each.
pub(crate) fn is_known(licence: &str) -> bool {
    let lower = licence.trim().to_lowercase();
    split_outside(&lower, " or ")
        .into_iter()
        .all(|way| in_each_way(way, &|one| terms(one).is_none().then_some(())).is_none())
}

/// Every use that a licence may forbid.
const USES: [Use; 4] = [Use::Commercial, Use::Derivatives, Use::OtherTerms, Use::BeyondResearch];

/// The first thing that `kept` forbids and `stated` does not, in words.
pub(crate) fn allows_more(stated: &str, kept: &str) -> Option<String> {
    if stated.trim().eq_ignore_ascii_case(kept.trim()) {
        return None;
    }
    // A name that is not in the table forbids every use that is asked, but is not known to forbid sharing.
    if forbids_sharing(kept) && !forbids_sharing(stated) {
        return Some("forbids sharing derivatives".into());
    }
    USES.into_iter().find_map(|asked| forbids(kept, &[asked]).filter(|_| forbids(stated, &[asked]).is_none()))
}

/// Whether each of the licences that `own` joins by AND is one of those that `stated` joins so.
pub(crate) fn is_part(own: &str, stated: &str) -> bool {
    let stated = joined(stated);
    joined(own).iter().all(|one| stated.contains(one))
}

/// The licences that an expression joins by AND, in one spelling; one of alternatives is a licence of its own.
fn joined(expression: &str) -> Vec<String> {
    let lower = expression.trim().to_lowercase();
    let parts = if split_outside(&lower, " or ").len() > 1 { vec![&*lower] } else { split_outside(&lower, " and ") };
    let bare = |part: &str| {
        let part = part.trim();
        let inner = part.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).filter(|inner| is_balanced(inner));
        inner.unwrap_or(part).trim().replace([' ', '_'], "-")
    };
    parts.into_iter().map(bare).collect()
}

/// The licences under which the rows of a stage's folder, or of a file in it, were taken in, as its manifest names them; those of a pulled set,
/// as its record does. None of any other path; one of these files that is there and cannot be read is an error.
pub(crate) fn kept_in(path: &Path) -> aloe_record::Result<BTreeSet<String>> {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let Some(folder) = folder.filter(|folder| folder.join("record.json").is_file()) else {
        return Ok(BTreeSet::new());
    };
    let read = |name: &str| match folder.join(name) {
        file if file.exists() => aloe_record::atomic::read_json::<Value>(&file),
        _ => Ok(Value::Null),
    };
    let (manifest, record) = (read("manifest.json")?, read("record.json")?);
    let stated = manifest["sources"].as_array().into_iter().flatten().map(|source| &source["licence"]);
    let pulled = std::iter::once(&record["results"]["licence"]).filter(|_| record["kind"] == "pull");
    let of_rows = manifest["licences"].as_object().into_iter().flatten().map(|(licence, _)| licence.clone());
    Ok(stated.chain(pulled).filter_map(|licence| licence.as_str().map(String::from)).chain(of_rows).collect())
}

/// The first stated use that the licence does not allow, in words; `None` when it allows all.
pub(crate) fn forbids(licence: &str, uses: &[Use]) -> Option<String> {
    if uses.is_empty() {
        return None;
    }
    in_each_way(&licence.trim().to_lowercase(), &|one| forbidden_by(one, uses))
}

/// Whether a licence is known to forbid sharing what was made from its rows. One that is not in the table is not judged.
pub fn forbids_sharing(licence: &str) -> bool {
    let is_forbidden = |one: &str| terms(one).is_some_and(|terms| terms.no_derivatives).then_some(());
    in_each_way(&licence.trim().to_lowercase(), &is_forbidden).is_some()
}

/// What forbids something in a licence expression (SPDX specification, annex D: `and` binds closer than `or`, brackets group): of `or` the first
/// reason where each side has one, of `and` the first there is.
fn in_each_way<T>(expression: &str, forbidden: &impl Fn(&str) -> Option<T>) -> Option<T> {
    let ways = split_outside(expression, " or ");
    if ways.len() > 1 {
        let found: Option<Vec<T>> = ways.into_iter().map(|way| in_each_way(way, forbidden)).collect();
        return found?.into_iter().next();
    }
    let parts = split_outside(expression, " and ");
    if parts.len() > 1 {
        return parts.into_iter().find_map(|part| in_each_way(part, forbidden));
    }
    let one = expression.trim();
    match one.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) if is_balanced(inner) => in_each_way(inner, forbidden),
        _ => forbidden(one),
    }
}

/// Whether each bracket is closed behind its opening.
fn is_balanced(text: &str) -> bool {
    let mut depth = 0i32;
    let is_open = text.chars().all(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth >= 0
    });
    is_open && depth == 0
}

/// Splits at a word that stands in no bracket.
fn split_outside<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for (at, _) in text.match_indices(word) {
        if at >= start && is_balanced(&text[start..at]) {
            parts.push(&text[start..at]);
            start = at + word.len();
        }
    }
    parts.push(&text[start..]);
    parts
}

fn forbidden_by(one: &str, uses: &[Use]) -> Option<String> {
    let Some(terms) = terms(one) else {
        return Some(
            "is not in the table of known licences, so that nothing can be said of it; give its SPDX name".into(),
        );
    };
    uses.iter().find_map(|asked| {
        let (is_forbidden, what) = match asked {
            Use::Commercial => (terms.no_commerce || terms.research_only, "forbids commercial use"),
            Use::Derivatives => (terms.no_derivatives, "forbids sharing derivatives"),
            Use::OtherTerms => (terms.share_alike, "asks that what is made from it carries the same licence"),
            Use::BeyondResearch => (terms.research_only, "is for research only"),
        };
        is_forbidden.then(|| what.to_owned())
    })
}

/// Of one name, perhaps with `, research only` behind it.
fn terms(name: &str) -> Option<Terms> {
    let (base, note) = name.split_once(',').map_or((name, ""), |(base, note)| (base, note.trim()));
    let research_only = match note {
        "" => false,
        "research only" | "academic only" | "academic use only" | "non-commercial" => true,
        _ => return None,
    };
    let base = base.trim().replace([' ', '_'], "-");
    let base = ["-or-later", "-only", "-international", "-license", "-licence", "-deed"]
        .iter()
        .fold(base.as_str(), |base, end| base.strip_suffix(end).unwrap_or(base));
    let found = if OPEN.contains(&base) {
        Terms::default()
    } else if SHARE_ALIKE.contains(&base) {
        Terms { share_alike: true, ..Terms::default() }
    } else if ["research", "research-use", "academic", "academic-use"].contains(&base) {
        Terms { research_only: true, ..Terms::default() }
    } else {
        creative_commons(base)?
    };
    Some(Terms { research_only: found.research_only || research_only, ..found })
}

/// `cc-by`, then `-nc`, `-nd`, `-sa`, then a version.
fn creative_commons(name: &str) -> Option<Terms> {
    let mut terms = Terms::default();
    for part in name.strip_prefix("cc-by")?.split('-').filter(|part| !part.is_empty()) {
        match part {
            "nc" => terms.no_commerce = true,
            "nd" => terms.no_derivatives = true,
            "sa" => terms.share_alike = true,
            "1.0" | "2.0" | "2.5" | "3.0" | "4.0" => {}
            _ => return None,
        }
    }
    Some(terms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_licence_forbids_what_its_text_forbids_and_one_that_is_not_known_everything() {
        use Use::{BeyondResearch, Commercial, Derivatives, OtherTerms};
        let all = [Commercial, Derivatives, OtherTerms, BeyondResearch];
        let cases: [(&str, &[Use]); 23] = [
            ("MIT", &[]),
            ("Apache-2.0", &[]),
            ("CC BY 4.0", &[]),
            ("cc0-1.0", &[]),
            ("CC BY-NC 4.0", &[Commercial]),
            ("cc-by-nc-nd-4.0", &[Commercial, Derivatives]),
            ("CC-BY-SA-3.0", &[OtherTerms]),
            ("CC BY-NC-SA 4.0", &[Commercial, OtherTerms]),
            ("GPL-3.0-or-later", &[OtherTerms]),
            ("Apache-2.0, research only", &[Commercial, BeyondResearch]),
            ("MIT OR CC-BY-NC-4.0", &[]),
            ("MIT AND CC-BY-NC-4.0", &[Commercial]),
            ("research only", &[Commercial, BeyondResearch]),
            ("(MIT OR Apache-2.0) AND CC-BY-NC-4.0", &[Commercial]),
            ("CC-BY-NC-4.0 AND (MIT OR Apache-2.0)", &[Commercial]),
            ("MIT OR (CC-BY-NC-4.0 AND CC-BY-SA-4.0)", &[]),
            ("(CC-BY-NC-4.0) OR (GPL-3.0 AND (CC-BY-NC-4.0 OR MIT))", &[]),
            ("((GPL-3.0))", &[OtherTerms]),
            // Brackets that do not close say nothing.
            ("(MIT", &all),
            ("(MIT OR Apache-2.0 AND CC-BY-NC-4.0", &all),
            // Names that hold a mark of another licence by chance.
            ("encyclopaedia-nc-terms", &all),
            ("synca-licence", &all),
            ("my own", &all),
        ];
        for (licence, forbidden) in cases {
            let found: Vec<Use> = all.into_iter().filter(|asked| forbids(licence, &[*asked]).is_some()).collect();
            assert_eq!(found, forbidden, "{licence}");
            assert_eq!(forbids(licence, &[]), None, "nothing was asked");
        }
    }

    #[test]
    fn words_that_state_nothing_are_no_licence() {
        for licence in [
            "",
            " ",
            "?",
            "-",
            "N/A",
            "none",
            "Unknown",
            "other",
            "TBD",
            "unknown license",
            "no licence",
            "license: unknown",
            "Unknown (scraped)",
            "not stated",
            "unlicenced",
            "see website",
            "License: other",
            "none stated",
            "licence not available",
        ] {
            assert!(is_unstated(licence), "{licence}");
        }
        for licence in [
            "mit",
            "CC BY 4.0",
            "research only",
            "my own",
            "Unlicense",
            "MIT License",
            "licence of the hospital, not for commerce",
            "for research, not available for commercial use",
            "CC-BY-4.0 (annotators unknown)",
            "mit; authors not stated",
        ] {
            assert!(!is_unstated(licence), "{licence}");
        }
    }

    #[test]
    fn a_licence_allows_more_than_another_that_forbids_something_it_does_not() {
        for (stated, kept) in [
            ("mit", "cc-by-nc-4.0"),
            ("mit", "my own"),
            ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
            ("mit or cc-by-nc-4.0", "cc-by-nc-4.0"),
            ("my own", "cc-by-nd-4.0"),
        ] {
            assert!(allows_more(stated, kept).is_some(), "{stated}, {kept}");
        }
        for (stated, kept) in [
            ("mit", "apache-2.0"),
            ("CC BY-NC 4.0", "cc-by-nc-4.0"),
            ("my own", "my own"),
            ("my own", "cc-by-nc-4.0"),
            ("cc-by-sa-4.0 AND cc-by-nc-4.0", "cc-by-nc-4.0"),
        ] {
            assert_eq!(allows_more(stated, kept), None, "{stated}, {kept}");
        }
    }

    #[test]
    fn a_licence_is_part_of_those_that_and_joins_and_of_no_alternatives() {
        for (own, stated) in [
            ("MIT", "cc-by-nc-4.0 AND mit"),
            ("CC BY-NC 4.0", "cc-by-nc-4.0 AND mit"),
            ("MIT AND isc", "isc AND cc-by-4.0 AND mit"),
            ("mit or isc", "(MIT OR isc) AND cc-by-4.0"),
        ] {
            assert!(is_part(own, stated), "{own}, {stated}");
        }
        for (own, stated) in [("mit", "cc-by-nc-4.0"), ("mit", "mit or isc"), ("mit", "mit and isc or cc-by-4.0")] {
            assert!(!is_part(own, stated), "{own}, {stated}");
        }
    }

    #[test]
    fn sharing_is_forbidden_where_each_known_way_forbids_it_and_an_unknown_licence_is_not_judged() {
        for licence in ["CC BY-ND 4.0", "cc-by-nc-nd-4.0", "mit and cc-by-nd-4.0"] {
            assert!(forbids_sharing(licence), "{licence}");
        }
        for licence in ["mit", "CC BY-NC 4.0", "mit or cc-by-nd-4.0", "my own", "research only", ""] {
            assert!(!forbids_sharing(licence), "{licence}");
        }
    }
}
