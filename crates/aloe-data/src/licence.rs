//! What licences allow of the uses that a recipe states, by a table of the licences that data sets carry (SPDX names, their spellings
//! on the Hub, `A OR B`, `A AND B`). It sorts licences; it is no legal advice.
//!
//! A licence that is not in the table allows nothing that is asked: it is named, never guessed at by parts of its name.

use serde::{Deserialize, Serialize};

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

/// The first stated use that the licence does not allow, in words; `None` when it allows all.
pub(crate) fn forbids(licence: &str, uses: &[Use]) -> Option<String> {
    if uses.is_empty() {
        return None;
    }
    let lower = licence.trim().to_lowercase();
    let ways: Vec<Option<String>> =
        lower.split(" or ").map(|way| way.split(" and ").find_map(|one| forbidden_by(one, uses))).collect();
    if ways.iter().any(Option::is_none) { None } else { ways.into_iter().flatten().next() }
}

/// Whether a licence is known to forbid sharing what was made from its rows. One that is not in the table is not judged.
pub fn forbids_sharing(licence: &str) -> bool {
    let lower = licence.trim().to_lowercase();
    let is_forbidden = |one: &str| terms(one).is_some_and(|terms| terms.no_derivatives);
    lower.split(" or ").all(|way| way.split(" and ").any(is_forbidden))
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
    let base = base.trim().trim_matches(['(', ')']).replace([' ', '_'], "-");
    let base = base.trim_end_matches("-or-later").trim_end_matches("-only");
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
        let cases: [(&str, &[Use]); 16] = [
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
    fn sharing_is_forbidden_where_each_known_way_forbids_it_and_an_unknown_licence_is_not_judged() {
        for licence in ["CC BY-ND 4.0", "cc-by-nc-nd-4.0", "mit and cc-by-nd-4.0"] {
            assert!(forbids_sharing(licence), "{licence}");
        }
        for licence in ["mit", "CC BY-NC 4.0", "mit or cc-by-nd-4.0", "my own", "research only", ""] {
            assert!(!forbids_sharing(licence), "{licence}");
        }
    }
}
