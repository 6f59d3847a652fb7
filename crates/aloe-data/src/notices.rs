//! What the numbers of a data stage say that its user may not expect: a hold-out far from the share asked for, a source that lost much
//! of itself as near duplicates, rows that got no template. Sentences only; nothing is changed by them.

use crate::manifest::SourceReport;
use crate::{Account, DataConfig, DataReport, MeaningReport, QualityReport};
use aloe_engine::NextTold;
use std::collections::BTreeMap;

/// Held-out shares that differ from `hold_out` by more than this factor are told.
const HOLD_OUT_FACTOR: f64 = 2.0;
/// Near duplicates, as a share of a source's rows, above which the removal itself may be the mistake.
const MUCH_NEAR: f64 = 0.3;

/// All notices, without a final stop.
pub(crate) fn find(config: &DataConfig, report: &DataReport) -> Vec<String> {
    let mut found: Vec<String> = report.sources.iter().flat_map(copies).collect();
    found.extend(report.sources.iter().filter_map(|one| equally_rated(&one.name, one.n_equal_rating)));
    found.extend(hold_out(config.hold_out, &report.account));
    found.extend(report.sources.iter().filter(|one| !one.skipped_files.is_empty()).map(|one| {
        let names = one.skipped_files.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        format!("source `{}`: {} files of its folder are not read: {names}", one.name, one.skipped_files.len())
    }));
    let folders = config.sources.iter().zip(&report.sources).filter(|(wanted, _)| wanted.path.is_dir());
    found.extend(folders.filter_map(|(_, one)| of_other_splits(&one.name, one.files.keys())));
    found.extend(
        config
            .sources
            .iter()
            .zip(&report.sources)
            .filter(|(wanted, _)| wanted.attack_styles)
            .filter_map(|(_, one)| unwrapped(&one.name, one.n_made, one.account.n_train + one.account.n_held_out)),
    );
    found.extend(report.sources.iter().filter_map(|one| without_template(&one.name, &one.without_template)));
    found.extend(report.quality.iter().flat_map(told));
    found.extend(unread(report.n_held_apart_broken));
    found.extend(report.meaning.as_ref().and_then(unjudged));
    found.extend(too_common(report));
    found.extend(report.sources.iter().filter_map(unread_columns));
    let n_unused = report.n_verdicts_unused;
    found.extend((n_unused > 0).then(|| {
        format!(
            "{n_unused} verdicts are on hits that this run did not have: their rows or questions have moved or are gone"
        )
    }));
    found
}

fn told(quality: &QualityReport) -> Vec<String> {
    let scorers =
        [(&quality.complexity_scorer, quality.complexity_told), (&quality.quality_scorer, quality.quality_told)];
    let mut found = Vec::new();
    for (name, told) in scorers {
        let as_message = match told {
            Some(NextTold::Completions) => "",
            Some(NextTold::Chat) => {
                ", behind the server's own template, which is another prompt than the one that DEITA's scorers are trained on"
            }
            Some(NextTold::Scored) | None => continue,
        };
        found.push(format!(
            "scorer {name}: its server gives no log-probabilities of prompts (or no `tokenizer` is named), so the six digits are read among the \
             most probable first tokens{as_message}; {} prompts lacked some of the six",
            quality.n_partial
        ));
    }
    found.dedup();
    found
}

/// Words of file names that say that a file is there to be scored on.
const SCORED_SPLITS: [&str; 7] = ["test", "dev", "validation", "valid", "val", "eval", "heldout"];

/// A folder is read whole, with the splits that its set keeps for scoring.
fn of_other_splits<'a>(name: &str, files: impl Iterator<Item = &'a String>) -> Option<String> {
    let says = |file: &&String| {
        let lower = file.to_lowercase();
        lower.split(|c: char| !c.is_alphanumeric()).any(|word| SCORED_SPLITS.contains(&word))
    };
    let found: Vec<&str> = files.filter(says).map(String::as_str).collect();
    (!found.is_empty()).then(|| {
        format!(
            "source `{name}`: {} files of its folder are trained on though their names say that they are for scoring: {}. Name the files to \
             train on one by one",
            found.len(),
            found.iter().take(5).copied().collect::<Vec<_>>().join(", ")
        )
    })
}

fn equally_rated(name: &str, n_pairs: usize) -> Option<String> {
    (n_pairs > 0).then(|| {
        format!("source `{name}`: {n_pairs} pairs have the same rating on both sides; that their chosen side is the better one, their set does not say")
    })
}

fn unread(n_broken: usize) -> Option<String> {
    (n_broken > 0).then(|| {
        format!(
            "{n_broken} evaluation rows are broken and no training row was compared with them: what they ask may stand in train.jsonl. \
             quarantine.jsonl names each"
        )
    })
}

/// A judge that speaks otherwise than it was asked to leaves the decision to the threshold.
fn unjudged(meaning: &MeaningReport) -> Option<String> {
    let n_pairs = meaning.n_same + meaning.n_different + meaning.n_unjudged;
    (meaning.n_unjudged > 0).then(|| {
        format!(
            "judge {}: on {} of {n_pairs} pairs of a row and an evaluation question it said neither True nor False, so `meaning.threshold` decided. \
             unjudged.jsonl names each with its reply",
            meaning.judge, meaning.n_unjudged
        )
    })
}

fn too_common(report: &DataReport) -> Option<String> {
    let (n, n_all) = (report.n_held_apart_too_common, report.n_held_apart_questions);
    (n > 0 && report.meaning.is_none()).then(|| {
        format!(
            "{n} of {n_all} evaluation questions have fewer than four words, or than two telling ones: words find them in a row that lists \
             their options, and may miss them in one that does not; the input `embedder` compares by meaning"
        )
    })
}

fn unread_columns(source: &SourceReport) -> Option<String> {
    let names: Vec<&str> = source.unused_sentences.iter().take(5).map(String::as_str).collect();
    (!names.is_empty()).then(|| {
        format!(
            "source `{}`: columns that hold sentences, or licences that the table does not know, and that its layout does not read: {}; nobody \
             trains on them, and no licence of theirs counts. `columns` maps columns of other names",
            source.name,
            names.join(", ")
        )
    })
}

fn unwrapped(name: &str, n_made: usize, n_rows: usize) -> Option<String> {
    (n_made == 0 && n_rows > 0).then(|| {
        format!(
            "source `{name}`: `attack_styles` wrapped none of its {n_rows} rows, as none is a plain red-team question: a row with `question_id`, \
             or a row of MedSafetyBench, that stands for no style yet"
        )
    })
}

fn without_template(name: &str, by_task: &BTreeMap<String, usize>) -> Option<String> {
    let tasks: Vec<String> = by_task.iter().map(|(task, n)| format!("{n} of task `{task}`")).collect();
    (!tasks.is_empty()).then(|| {
        format!(
            "source `{name}`: rows without a template, as no sub-task has their task's name: {}. `task` of a source names its sub-task",
            tasks.join(", ")
        )
    })
}

/// A sentence for each way in which much of a source was taken for copies, with the key that keeps it.
fn copies(source: &SourceReport) -> Vec<String> {
    let of = |rule: &str, found: &str, remedy: &str| {
        let n_dropped = source.dropped.get(rule).copied().unwrap_or(0);
        let share = n_dropped as f64 / source.n_read.max(1) as f64;
        (share > MUCH_NEAR).then(|| {
            format!(
                "source `{}`: {n_dropped} of {} rows ({:.1} %) were dropped as {found}; duplicates.jsonl names each with the row that stayed. \
                 {remedy}",
                source.name,
                source.n_read,
                100.0 * share
            )
        })
    };
    let near = of(
        "near_duplicate",
        "near duplicates of others",
        "Rows made from one template look alike to MinHash: `dedup = { minhash = false }` keeps them",
    );
    let semantic = of(
        "semantic_duplicate",
        "meaning the same as others",
        "Rows on one topic look alike to an embedder: a higher cosine for `dedup.semantic`, or none, keeps them",
    );
    near.into_iter().chain(semantic).collect()
}

fn hold_out(wanted: f64, account: &Account) -> Option<String> {
    if wanted <= 0.0 {
        return None;
    }
    let n_written = account.n_held_out + account.n_train;
    let share = account.n_held_out as f64 / n_written.max(1) as f64;
    if share <= wanted * HOLD_OUT_FACTOR && share >= wanted / HOLD_OUT_FACTOR {
        return None;
    }
    let cause = if account.n_over_cap + account.n_weighted_out + account.n_repeated > 0 {
        "it is drawn before `max_rows` and `weight`, which change the training rows alone"
    } else {
        "each question is drawn for itself, with all its rows, and few questions follow the share badly; another `seed` draws others"
    };
    let found = match account.n_held_out {
        0 => format!("`hold_out` = {wanted} held out none of {n_written} rows"),
        n => {
            format!("`hold_out` = {wanted}, but {n} of {n_written} rows written ({:.1} %) are held out", 100.0 * share)
        }
    };
    Some(format!("{found}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MeaningReport;

    #[test]
    fn a_hold_out_within_a_factor_of_two_is_not_told_and_one_beyond_or_empty_is() {
        let account = |n_held_out, n_train| Account { n_held_out, n_train, ..Account::default() };
        assert_eq!(hold_out(0.0, &account(0, 10)), None);
        assert_eq!(hold_out(0.1, &account(10, 90)), None);
        assert_eq!(hold_out(0.1, &account(20, 80)), None);
        assert_eq!(hold_out(0.1, &account(5, 95)), None);
        let capped = Account { n_over_cap: 400, ..account(50, 100) };
        let text = hold_out(0.1, &capped).unwrap();
        assert!(text.contains("50 of 150 rows written (33.3 %)") && text.contains("before `max_rows`"), "{text}");
        let text = hold_out(0.1, &account(0, 9)).unwrap();
        assert!(text.contains("held out none of 9 rows") && text.contains("seed"), "{text}");
    }

    #[test]
    fn attack_styles_that_wrap_no_row_are_told_with_the_column_that_is_missing() {
        assert_eq!((unwrapped("s", 1, 3), unwrapped("s", 0, 0)), (None, None));
        let text = unwrapped("s", 0, 3).unwrap();
        assert!(
            text.contains("none of its 3 rows") && text.contains("`question_id`") && text.contains("`s`"),
            "{text}"
        );
    }

    #[test]
    fn pairs_that_a_judge_gave_no_verdict_on_are_told_with_their_number() {
        let meaning = |n_unjudged| MeaningReport {
            judge: "m".into(),
            n_same: 1,
            n_different: 2,
            n_unjudged,
            ..MeaningReport::default()
        };
        let report = |n_unjudged| DataReport { meaning: Some(meaning(n_unjudged)), ..DataReport::default() };
        let told = |n_unjudged| find(&DataConfig::default(), &report(n_unjudged)).join("; ");
        assert_eq!(told(0), "");
        let text = told(4);
        assert!(text.contains("judge m: on 4 of 7 pairs") && text.contains("unjudged.jsonl"), "{text}");
    }

    #[test]
    fn rows_of_a_task_that_no_template_is_for_are_told_with_their_task() {
        assert_eq!(without_template("s", &BTreeMap::new()), None);
        let text = without_template("s", &BTreeMap::from([("chat".into(), 3), ("summary".into(), 1)])).unwrap();
        assert!(text.contains("3 of task `chat`, 1 of task `summary`") && text.contains("`s`"), "{text}");
    }

    #[test]
    fn questions_that_words_may_miss_are_told_unless_they_are_compared_by_meaning() {
        let report = |n| DataReport { n_held_apart_questions: 40, n_held_apart_too_common: n, ..DataReport::default() };
        assert_eq!(too_common(&report(0)), None);
        let text = too_common(&report(3)).unwrap();
        assert!(text.starts_with("3 of 40 evaluation questions") && text.contains("`embedder`"), "{text}");
        assert_eq!(too_common(&DataReport { meaning: Some(MeaningReport::default()), ..report(3) }), None);
    }

    #[test]
    fn columns_with_sentences_that_nothing_reads_are_told_and_those_with_words_are_not() {
        let mut source = SourceReport { name: "s".into(), ..SourceReport::default() };
        source.count_unused(BTreeMap::from([("id".into(), false)]));
        assert_eq!(unread_columns(&source), None);
        source.count_unused(BTreeMap::from([("id".into(), false), ("rationale".into(), true)]));
        let text = unread_columns(&source).unwrap();
        assert!(text.contains("`s`") && text.contains("not read: rationale;"), "{text}");
    }

    #[test]
    fn files_of_a_folder_whose_names_say_that_they_are_for_scoring_are_told() {
        let files =
            ["train.jsonl", "latest.jsonl", "data/Test-00000-of-00001.parquet", "us_dev.jsonl"].map(String::from);
        let text = of_other_splits("s", files.iter()).unwrap();
        assert!(text.contains("2 files") && text.contains("data/Test-00000-of-00001.parquet, us_dev.jsonl"), "{text}");
        assert_eq!(of_other_splits("s", files[..2].iter()), None);
    }

    #[test]
    fn copies_above_thirty_percent_are_told_with_the_key_that_keeps_them_near_ones_and_semantic_ones_apart() {
        let source = |rule: &str, n_dropped: usize| SourceReport {
            name: "s".into(),
            n_read: 10,
            dropped: BTreeMap::from([(rule.to_owned(), n_dropped)]),
            ..SourceReport::default()
        };
        assert!(copies(&source("near_duplicate", 3)).is_empty());
        let text = copies(&source("near_duplicate", 4)).concat();
        assert!(text.contains("4 of 10 rows (40.0 %)") && text.contains("dedup = { minhash = false }"), "{text}");
        let text = copies(&source("semantic_duplicate", 4)).concat();
        assert!(text.contains("4 of 10 rows (40.0 %)") && text.contains("dedup.semantic"), "{text}");
        assert!(!text.contains("minhash"), "{text}");
    }
}
