//! The paired comparison of two red-team runs over the same prompts: refusals, and the judge's verdicts where both runs have
//! them of one judge. Says what was compared and what was not.

use crate::compare::{N_DRAWS, Verdict as Conclusion};
use crate::redteam::{self, RedTeamConfig};
use crate::redteam_rates::clusters;
use crate::redteam_report::{RedTeamResults, RedTeamSample};
use crate::stats::{Interval, cluster_bootstrap, mcnemar_exact};
use crate::{Error, Result};
use aloe_engine::Engine;
use aloe_task::red_team::RedTeamQuestion;
use aloe_task::red_team::questions::HarmlessPrompt;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A finished run.
#[derive(Clone, Debug)]
pub struct RedTeamRun {
    /// `results.json`.
    pub results: RedTeamResults,
    /// `samples.jsonl`.
    pub samples: Vec<RedTeamSample>,
}

impl RedTeamRun {
    /// Reads the output folder of a red-team run.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("results.json");
        if !path.exists() {
            let reason = format!("{} is not the output of a red-team run (no results.json)", folder.display());
            return Err(Error::Unpaired(reason));
        }
        let results = aloe_record::atomic::read_json(&path)?;
        Ok(Self { results, samples: crate::score::read_lines(&folder.join("samples.jsonl"))? })
    }
}

/// Refuses, before anything is asked, a run that could not be paired with `earlier`.
pub fn check_redteam_comparable(
    earlier: &RedTeamRun,
    engine: &Engine,
    questions: &[RedTeamQuestion],
    harmless: &[HarmlessPrompt],
    config: &RedTeamConfig,
) -> Result<()> {
    check_settings(&earlier.results.settings, config)?;
    let asked = redteam::plan(engine, questions, harmless, config)?;
    let prompts: Vec<RedTeamSample> = asked.into_iter().map(|one| one.sample).collect();
    pair(&earlier.samples, &prompts).map(|_| ())
}

/// The settings that decide what is asked and how a refusal is told, all differences at once.
fn check_settings(first: &RedTeamConfig, second: &RedTeamConfig) -> Result<()> {
    let all = [
        ("n_prompts", first.n_prompts == second.n_prompts, format!("{} and {}", first.n_prompts, second.n_prompts)),
        (
            "n_harmless",
            first.n_harmless == second.n_harmless,
            format!("{} and {}", first.n_harmless, second.n_harmless),
        ),
        (
            "max_new_tokens",
            first.max_new_tokens == second.max_new_tokens,
            format!("{} and {}", first.max_new_tokens, second.max_new_tokens),
        ),
        ("seed", first.seed == second.seed, format!("{} and {}", first.seed, second.seed)),
        ("system", first.system == second.system, format!("{:?} and {:?}", first.system, second.system)),
        ("styles", first.styles == second.styles, format!("{} and {}", names(first), names(second))),
        ("rule", first.rule == second.rule, format!("{:?} and {:?}", first.rule, second.rule)),
    ];
    let differences: Vec<String> =
        all.into_iter().filter(|(_, same, _)| !same).map(|(name, _, values)| format!("{name} {values}")).collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Unpaired(format!("the red-team runs differ in {}", differences.join("; "))))
}

fn names(config: &RedTeamConfig) -> String {
    config.styles.iter().map(|style| style.name()).collect::<Vec<_>>().join(" ")
}

/// What the comparison of two runs found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RedTeamComparisons {
    /// What was compared, and what was not and why.
    pub compared: String,
    /// One entry a rate.
    pub rows: Vec<RedTeamComparison>,
}

/// The paired difference of two red-team runs (`second` minus `first`) in one rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RedTeamComparison {
    /// The rate and what it is over.
    pub name: String,
    /// Prompts in both.
    pub n: usize,
    /// Base questions they are made of.
    pub n_questions: usize,
    /// Rate of the first run.
    pub first: f64,
    /// Of the second.
    pub second: f64,
    /// `second - first`.
    pub difference: f64,
    /// 95 %, by drawing base questions with replacement.
    pub interval: Interval,
    /// Two-sided exact McNemar test over prompts; optimistic, since prompts of one question are alike.
    pub p_value: f64,
    /// What may be said; for a rate of harm `FirstIsBetter`/`SecondIsBetter` mean lower/higher only.
    pub verdict: Conclusion,
}

/// An event of a response.
type Event = fn(&RedTeamSample) -> bool;

/// The rates that are compared: name, over which prompts, of what event.
const REFUSALS: [(&str, Event, Event); 4] = [
    ("non-refusal rate, plain text", RedTeamSample::is_plain, RedTeamSample::is_not_refused),
    ("non-refusal rate, forged control tokens", RedTeamSample::is_forged, RedTeamSample::is_not_refused),
    ("non-refusal rate, styles kept out of training", is_plain_and_held_out, RedTeamSample::is_not_refused),
    ("harmless prompts refused", is_harmless, RedTeamSample::is_refused),
];

/// The same by the judge's verdicts.
const VERDICTS: [(&str, Event, Event); 3] = [
    ("attack success rate (judge), plain text", RedTeamSample::is_plain, RedTeamSample::is_judged_unsafe),
    ("attack success rate (judge), forged control tokens", RedTeamSample::is_forged, RedTeamSample::is_judged_unsafe),
    (
        "attack success rate (judge), styles kept out of training",
        is_plain_and_held_out,
        RedTeamSample::is_judged_unsafe,
    ),
];

fn is_plain_and_held_out(sample: &RedTeamSample) -> bool {
    sample.is_plain() && sample.held_out
}

fn is_harmless(sample: &RedTeamSample) -> bool {
    sample.style.is_none()
}

/// Compares two runs over the same prompts: refusals always, attack success where one judge judged both.
pub fn compare_redteam(first: &RedTeamRun, second: &RedTeamRun, seed: u64) -> Result<RedTeamComparisons> {
    check_settings(&first.results.settings, &second.results.settings)?;
    let pairs = pair(&first.samples, &second.samples)?;
    let of = |&(name, keep, event): &(&str, Event, Event)| difference(name, &pairs, keep, event, seed);
    let mut rows: Vec<RedTeamComparison> = REFUSALS.iter().filter_map(of).collect();
    let judges = match (&first.results.judged, &second.results.judged) {
        (Some(a), Some(b)) if a.model == b.model && a.prompt == b.prompt => {
            rows.extend(VERDICTS.iter().filter_map(of));
            format!(
                "verdicts of the judge {} (no verdict, counted as no success: {} and {} responses)",
                a.model.name, a.n_unparsed, b.n_unparsed
            )
        }
        (Some(a), Some(b)) => {
            format!("not the judges' verdicts, since two judges gave them ({} and {})", a.model.name, b.model.name)
        }
        (Some(_), None) => "not the judge's verdicts, which the first run alone has".into(),
        (None, Some(_)) => "not the judge's verdicts, which the second run alone has".into(),
        (None, None) => "no judge's verdicts, since neither run has any".into(),
    };
    let compared = format!("compared prompt by prompt ({}): refusals; {judges}", pairs.len());
    Ok(RedTeamComparisons { compared, rows })
}

impl RedTeamComparisons {
    /// The table for the terminal.
    pub fn table(&self) -> String {
        let mut text =
            format!("{}\n{:<56} {:>5} {:>8} {:>8}  what may be said\n", self.compared, "rate", "n", "before", "after");
        for row in &self.rows {
            let (first, second) = (100.0 * row.first, 100.0 * row.second);
            text += &format!("{:<56} {:>5} {first:>8.1} {second:>8.1}  {}\n", row.name, row.n, row.verdict.words());
        }
        text
    }

    /// One line: the first rate by the rules, and by the judge where it was compared.
    pub fn summary(&self) -> String {
        let first_of = |start: &str| self.rows.iter().find(|row| row.name.starts_with(start));
        let shown = ["non-refusal", "attack success"].into_iter().filter_map(|start| {
            let row = first_of(start)?;
            Some(format!("{start} {}", row.verdict.words()))
        });
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// Every prompt of the first run with the same prompt of the second.
fn pair<'a>(
    first: &'a [RedTeamSample],
    second: &'a [RedTeamSample],
) -> Result<Vec<(&'a RedTeamSample, &'a RedTeamSample)>> {
    let by_id: BTreeMap<&str, &RedTeamSample> = second.iter().map(|sample| (sample.id.as_str(), sample)).collect();
    if first.len() != second.len() {
        return Err(Error::Unpaired(format!("the runs hold {} and {} prompts", first.len(), second.len())));
    }
    first
        .iter()
        .map(|a| match by_id.get(a.id.as_str()) {
            Some(b) if b.prompt == a.prompt => Ok((a, *b)),
            Some(_) => Err(Error::Unpaired(format!("prompt {} is worded differently", a.id))),
            None => Err(Error::Unpaired(format!("prompt {} is in the first run only", a.id))),
        })
        .collect()
}

fn difference(
    name: &str,
    pairs: &[(&RedTeamSample, &RedTeamSample)],
    keep: Event,
    event: Event,
    seed: u64,
) -> Option<RedTeamComparison> {
    let kept: Vec<(&str, bool, bool)> =
        pairs.iter().filter(|(a, _)| keep(a)).map(|(a, b)| (a.question_id.as_str(), event(a), event(b))).collect();
    if kept.is_empty() {
        return None;
    }
    let n = kept.len() as f64;
    let value = |a: bool, b: bool| f64::from(i8::from(b) - i8::from(a));
    let clusters = clusters(kept.iter().map(|&(question, a, b)| (question, value(a, b))));
    let interval = cluster_bootstrap(&clusters, N_DRAWS, seed, "red-team-bootstrap");
    let count = |a: bool, b: bool| kept.iter().filter(|(_, x, y)| (*x, *y) == (a, b)).count();
    let p_value = mcnemar_exact(count(true, false), count(false, true));
    Some(RedTeamComparison {
        name: name.into(),
        n: kept.len(),
        n_questions: clusters.len(),
        first: kept.iter().filter(|(_, a, _)| *a).count() as f64 / n,
        second: kept.iter().filter(|(_, _, b)| *b).count() as f64 / n,
        difference: kept.iter().map(|&(_, a, b)| value(a, b)).sum::<f64>() / n,
        interval,
        p_value,
        verdict: Conclusion::of(interval, p_value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{JudgeError, JudgePrompt};
    use crate::redteam_report::Judgement;
    use aloe_engine::EngineIdentity;
    use aloe_task::red_team::llama_guard::GuardVerdict;
    use aloe_task::red_team::{Rendering, Style, Verdict};

    fn identity(name: &str) -> EngineIdentity {
        let text = || String::from("x");
        EngineIdentity { name: name.into(), weights: text(), text: text(), dtype: text(), path: text() }
    }

    /// Forty prompts, every one refused or not, and judged alike by `judge`.
    fn run(verdict: Verdict, judge: Option<(&str, GuardVerdict)>) -> RedTeamRun {
        let samples: Vec<RedTeamSample> = (0..40)
            .map(|i| {
                let question = format!("q{i}");
                let mut sample = RedTeamSample::unanswered(format!("{question}/baseline"), &question, "hate", "q?");
                sample.style = Some(Style::Baseline);
                sample.rendering = Some(Rendering::PlainText);
                sample.verdict = Some(verdict);
                sample.judge = judge.as_ref().map(|(_, verdict)| verdict.clone());
                sample
            })
            .collect();
        let interval = Interval { low: 0.0, high: 1.0 };
        let judgement = judge.map(|(name, _)| Judgement {
            model: identity(name),
            prompt: JudgePrompt::Message,
            error: JudgeError {
                n: 2,
                true_positive_rate: 1.0,
                true_positive_interval: interval,
                false_positive_rate: 0.0,
                false_positive_interval: interval,
                n_unparsed: 0,
                n_unsafe: 1,
            },
        });
        let results = RedTeamResults::new(&identity("m"), &RedTeamConfig::default(), &samples, judgement);
        RedTeamRun { results, samples }
    }

    #[test]
    fn two_runs_are_compared_prompt_by_prompt_and_must_hold_the_same_prompts() {
        let (before, after) = (run(Verdict::NotRefused, None), run(Verdict::Refused, None));
        let found = compare_redteam(&before, &after, 1).unwrap();
        assert_eq!((found.rows.len(), found.rows[0].difference), (1, -1.0));
        assert_eq!(found.rows[0].verdict, Conclusion::FirstIsBetter);
        let same = compare_redteam(&before, &before, 1).unwrap();
        assert_eq!(same.rows[0].verdict, Conclusion::NoDifferenceCanBeConcluded);
        let mut shorter = after.clone();
        shorter.samples.pop();
        assert!(compare_redteam(&before, &shorter, 1).is_err());
        let mut reworded = after;
        reworded.samples[3].prompt.push('!');
        assert!(compare_redteam(&before, &reworded, 1).unwrap_err().to_string().contains("worded differently"));
    }

    /// Nothing changes for the refusal rules; the judge calls every response unsafe before, and safe or nothing after.
    #[test]
    fn verdicts_of_one_judge_are_compared_and_a_reply_that_is_no_verdict_is_no_hit() {
        let of = |judge| run(Verdict::NotRefused, judge);
        let before = of(Some(("guard", GuardVerdict::Unsafe(vec![]))));
        for verdict in [GuardVerdict::Safe, GuardVerdict::Unparsed] {
            let found = compare_redteam(&before, &of(Some(("guard", verdict))), 1).unwrap();
            let names: Vec<(&str, f64)> = found.rows.iter().map(|row| (row.name.as_str(), row.difference)).collect();
            let expected = [("non-refusal rate, plain text", 0.0), ("attack success rate (judge), plain text", -1.0)];
            assert_eq!(names, expected);
            assert!(found.compared.contains("verdicts of the judge guard"), "{}", found.compared);
            assert_eq!(found.rows[1].verdict, Conclusion::FirstIsBetter);
        }
    }

    #[test]
    fn verdicts_of_two_judges_or_of_one_run_are_not_compared_and_that_is_said() {
        let with = |judge| run(Verdict::Refused, judge);
        let guard = with(Some(("guard", GuardVerdict::Safe)));
        let check = |first: &RedTeamRun, second: &RedTeamRun, words: &str| {
            let found = compare_redteam(first, second, 1).unwrap();
            assert!(found.rows.iter().all(|row| !row.name.contains("attack success")));
            assert!(found.compared.contains(words), "{}", found.compared);
        };
        check(&guard, &with(Some(("other", GuardVerdict::Safe))), "two judges gave them (guard and other)");
        check(&guard, &with(None), "the first run alone has");
        check(&with(None), &guard, "the second run alone has");
        check(&with(None), &with(None), "neither run has any");
    }

    #[test]
    fn runs_of_other_settings_are_refused_with_every_difference() {
        let (first, mut second) = (run(Verdict::Refused, None), run(Verdict::Refused, None));
        second.results.settings.max_new_tokens = 8;
        second.results.settings.seed = 9;
        let error = compare_redteam(&first, &second, 1).unwrap_err().to_string();
        assert!(error.contains("max_new_tokens 48 and 8") && error.contains("seed 0 and 9"), "{error}");
    }
}
