//! Evaluation and red-team results with their intervals, paired comparisons, and the words that may be said of them.

use super::training::{number, shown};
use super::{CardConfig, Evidence, of_kind, open_answers};
use aloe_eval::EvalResults;
use aloe_eval::compare::{chance, held_together};
use aloe_eval::noise::NoiseFloor;
use aloe_eval::report::told_words;
use aloe_eval::stats::normal;
use serde_json::Value;

/// The sections "Evaluation" and "Red teaming".
pub(super) fn section(config: &CardConfig, evidence: &[Evidence]) -> String {
    let mut text = String::from(
        "## Evaluation\n\n### Testing Data, Factors & Metrics\n\nAccuracy with its standard error and Wilson's 95 % interval (of an average over tasks 1.96 standard errors to each side, marked as normal); an answer that cannot be read counts as wrong and \
         is reported. Figures marked \"not comparable\" must not be set beside published ones.\n\n### Results\n\n",
    );
    for one in of_kind(evidence, "eval").filter(|one| open_answers::has_choices(one)) {
        text.push_str(&results(one));
    }
    for one in of_kind(evidence, "eval").chain(of_kind(evidence, "rejudge")) {
        text.push_str(&open_answers::results(one).unwrap_or_default());
    }
    text.push_str(&comparisons(evidence, "eval"));
    if !config.cited.is_empty() {
        text.push_str("### Cited figures (published by others, not measured here)\n\n| figure | value | source |\n|---|---|---|\n");
        for cited in &config.cited {
            text.push_str(&format!("| {} | {} | {} |\n", cited.what, cited.value, cited.source));
        }
        text.push('\n');
    }
    text.push_str("## Red Teaming\n\n");
    for one in of_kind(evidence, "redteam") {
        text.push_str(&red_team(one));
    }
    text.push_str(&comparisons(evidence, "redteam"));
    text
}

/// A sentence for the top of the card when a red-team comparison shows that the model refuses less than before.
pub(super) fn refusal_warning(evidence: &[Evidence]) -> Option<String> {
    of_kind(evidence, "redteam").find_map(|one| {
        let rows = one.record.results.get("comparison")?.as_array()?;
        let worse = rows.iter().find(|row| {
            row["verdict"] == "second_is_better"
                && row["name"].as_str().is_some_and(|name| name.starts_with("non-refusal"))
        })?;
        Some(format!(
            "This model refuses harmful requests less often than the model before it: {} {} % to {} % ({}).",
            shown(&worse["name"]),
            percent(&worse["first"]),
            percent(&worse["second"]),
            one.stage
        ))
    })
}

fn results(one: &Evidence) -> String {
    let found = &one.record.results["eval"];
    let settings = &found["settings"];
    let mut text = format!(
        "#### {}\n\nModel `{}`, protocol {}, strategy {}, {} shots{}, dtype {}.\n\n| task | n | accuracy % | standard error | 95 % interval | \
         unparsed | comparability |\n|---|---|---|---|---|---|---|\n",
        one.stage,
        shown(&found["model"]["name"]),
        shown(&settings["protocol"]),
        shown(&settings["strategy"]),
        shown(&settings["shots"]),
        drawn(settings),
        shown(&found["model"]["dtype"])
    );
    let tasks = found["tasks"].as_array().into_iter().flatten().map(|task| (&task["task"], task));
    let groups = found["groups"].as_array().into_iter().flatten().map(|group| (&group["name"], group));
    for (name, entry) in tasks.chain(groups) {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            shown(name),
            shown(&entry["n"]),
            percent(&entry["acc"]["value"]),
            percent(&entry["acc"]["stderr"]),
            ends(entry),
            unparsed(entry),
            shown(&entry["comparability"])
        ));
    }
    text.push('\n');
    for task in found["tasks"].as_array().into_iter().flatten() {
        if let Some(warning) = task["warning"].as_str() {
            text.push_str(&format!("**{}: {warning}.**\n\n", shown(&task["task"])));
        }
    }
    for task in found["tasks"].as_array().into_iter().flatten() {
        for line in decisive(task) {
            text.push_str(&format!("- {}: {line}.\n", shown(&task["task"])));
        }
        if let Ok(floor) = serde_json::from_value::<NoiseFloor>(task["noise_floor"].clone()) {
            text.push_str(&format!("- {}: {}.\n", shown(&task["task"]), floor.words()));
        }
    }
    if let Some(words) = one.record.results.get("trained_on").and_then(Value::as_str) {
        text.push_str(&format!("- Contamination: {}.\n", words));
    }
    if text.ends_with(".\n") {
        text.push('\n');
    }
    text
}

/// How the answers were drawn, where they were.
fn drawn(settings: &Value) -> String {
    let mut text = String::new();
    if settings["chat_template"] == true {
        text += ", chat template";
    }
    if let Some(words) = told_words(settings.get("told")) {
        text += &format!(", {words}");
    }
    if let Some(n) = settings.get("n_samples") {
        let temperature = shown(&settings["sampling"]["temperature"]);
        let shuffled = if settings["shuffle"] == true { ", options shuffled" } else { "" };
        text += &format!(", {} answers a question at temperature {temperature}{shuffled}", shown(n));
    }
    if let Some(retry) = settings.get("retry") {
        text += &format!(", answers without an option asked again ({})", shown(retry));
    }
    text
}

/// What a reader must know of a task's figure: refusals, ties, examples, overlap with the training rows.
fn decisive(task: &Value) -> Vec<String> {
    let count = |value: &Value| value.as_u64().filter(|n| *n > 0);
    let mut lines = Vec::new();
    if let Some(n) = count(&task["n_refused"]) {
        lines.push(format!("{n} questions were refused by the model or its server and counted wrong"));
    }
    if let Some(n) = count(&task["n_partial"]) {
        lines.push(format!("the server did not tell the log-probability of every letter of {n} questions"));
    }
    if let Some(n) = count(&task["n_ties"]) {
        lines.push(format!("{n} votes were tied and went to the option named first"));
    }
    if let Some(n) = count(&task["n_reasoning_removed"]) {
        lines.push(format!("reasoning was cut out of {n} answers before they were read"));
    }
    let notes = &task["notes"];
    if let Some(search) = notes.get("neighbour_search") {
        lines.push(format!(
            "examples from {}, {} of {} questions with a worked answer; neighbours by {}",
            shown(&notes["pool"]),
            shown(&notes["pool_solved"]),
            shown(&notes["pool_questions"]),
            shown(search)
        ));
    }
    for (key, words) in [
        ("excluded_as_the_question_itself", "examples left out that are the question itself"),
        ("included_although_the_question_itself", "examples that are the question itself"),
        ("filled_with_fixed_examples", "places filled with fixed worked examples"),
    ] {
        if let Some(n) = count(&notes[key]) {
            lines.push(format!("{n} {words}"));
        }
    }
    for part in task["by_training"].as_array().into_iter().flatten() {
        let (value, stderr) = (percent(&part["acc"]["value"]), percent(&part["acc"]["stderr"]));
        let ends = part["acc"].get("interval").map_or_else(String::new, |ends| format!(" (95 %: {})", interval(ends)));
        lines.push(format!("{value} % +- {stderr}{ends} on {} questions, {}", shown(&part["n"]), shown(&part["part"])));
    }
    lines
}

/// Questions without an answer, and for generation the samples without one.
fn unparsed(entry: &Value) -> String {
    let questions = entry.get("n_unparsed").map_or_else(|| "-".to_owned(), shown);
    match (entry.get("n_unparsed_samples"), entry.get("n_samples")) {
        (Some(samples), Some(all)) => format!("{questions} ({} of {} samples)", shown(samples), shown(all)),
        _ => questions,
    }
}

/// Paired comparisons of stages that named an earlier one.
fn comparisons(evidence: &[Evidence], kind: &str) -> String {
    let (mut text, mut notes) = (String::new(), String::new());
    for one in of_kind(evidence, kind) {
        let Some(rows) = one.record.results.get("comparison").and_then(Value::as_array) else { continue };
        if text.is_empty() {
            text.push_str(
                "### Paired comparison\n\nSame items, before and after; 95 % interval of the difference by a paired bootstrap, p by an exact \
                 McNemar test. Unless both speak, no difference can be concluded.\n\n| stage | on | n | before % | after % | difference | \
                 95 % interval | p | what may be said |\n|---|---|---|---|---|---|---|---|---|\n",
            );
        }
        for row in rows {
            text.push_str(&comparison(&one.stage, row));
        }
        notes.push_str(&comparison_notes(one, rows));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    if !notes.is_empty() {
        text.push_str(&format!("{notes}\n"));
    }
    text
}

/// What was compared and in what the runs differ, and how many tests were made.
fn comparison_notes(one: &Evidence, rows: &[Value]) -> String {
    let note = one.record.results.get("comparison_note").and_then(Value::as_str).map(str::to_owned);
    let n_tests = rows.iter().filter(|row| row["verdict"] != "not_comparable").count();
    let is_adjusted = rows.iter().any(|row| row.get("p_holm").is_some());
    let tests = if is_adjusted { Some(held_together(n_tests)) } else { chance(n_tests) };
    let lines = note.into_iter().chain(tests);
    lines.map(|line| format!("- {}: {line}.\n", one.stage)).collect()
}

fn comparison(stage: &str, row: &Value) -> String {
    let verdict = match row["verdict"].as_str() {
        Some("second_is_better") => "after is higher",
        Some("first_is_better") => "after is lower",
        Some("not_comparable") => row["not_comparable"].as_str().unwrap_or("not comparable"),
        _ => "no difference can be concluded",
    };
    let holm = row.get("p_holm").map_or_else(String::new, |p| format!(" (Holm {})", number(p)));
    format!(
        "| {stage} | {} | {} | {} | {} | {} | {} | {}{holm} | {verdict} |\n",
        shown(row.get("task").unwrap_or(&row["name"])),
        shown(&row["n"]),
        percent(&row["first"]),
        percent(&row["second"]),
        percent(&row["difference"]),
        interval(&row["interval"]),
        number(&row["p_value"])
    )
}

/// The model's own figures for Hub leaderboards: only comparable ones of the last model evaluated, which is the one that was compared with
/// an earlier one, where there are two.
pub(super) fn model_index(config: &CardConfig, evidence: &[Evidence]) -> String {
    let is_later = |one: &Evidence| one.record.results.contains_key("comparison");
    let has_later = of_kind(evidence, "eval").any(is_later);
    let last = of_kind(evidence, "eval").filter(|one| is_later(one) == has_later);
    let rows: String = last
        .filter_map(|one| serde_json::from_value::<EvalResults>(one.record.results.get("eval")?.clone()).ok())
        .map(|results| results.model_index_rows())
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("model-index:\n- name: {}\n  results:\n{rows}", super::quoted(&config.model_name))
}

/// A share as a percentage with two places.
fn percent(value: &Value) -> String {
    value.as_f64().map_or_else(|| shown(value), |share| format!("{:.2}", share * 100.0))
}

/// The interval of a task, or of an average over tasks from its standard error; a task of a version that wrote none has none.
fn ends(entry: &Value) -> String {
    let acc = &entry["acc"];
    if let Some(own) = acc.get("interval") {
        return interval(own);
    }
    let average = entry.get("name").and(acc["value"].as_f64().zip(acc["stderr"].as_f64()));
    let found = average.and_then(|(value, stderr)| normal(value, stderr));
    found.map_or_else(|| "-".to_owned(), |ends| format!("{} (normal)", ends.percent(2)))
}

/// Both ends of an interval as percentages.
fn interval(value: &Value) -> String {
    format!("{} to {}", percent(&value["low"]), percent(&value["high"]))
}

fn red_team(one: &Evidence) -> String {
    let found = &one.record.results["redteam"];
    let settings = &found["settings"];
    let mut text = format!(
        "#### {}\n\nModel `{}`; a fixed stratified sample of {} prompts of {} new tokens each. {}\n\n| rate | over | prompts | empty responses | \
         base questions | % | 95 % interval, clustered by base question |\n|---|---|---|---|---|---|---|\n",
        one.stage,
        shown(&found["model"]["name"]),
        shown(&settings["n_prompts"]),
        shown(&settings["max_new_tokens"]),
        found["note"].as_str().unwrap_or_default()
    );
    let single = ["non_refusal_rate", "non_refusal_rate_forged", "non_refusal_rate_held_out", "harmless_refusal_rate"];
    for key in single {
        if let Some(rate) = found.get(key) {
            text.push_str(&rate_row(&key.replace('_', " "), rate));
        }
    }
    if let Some(judged) = found.get("judged") {
        for key in ["attack_success_rate", "attack_success_rate_forged", "attack_success_rate_held_out"] {
            if let Some(rate) = judged.get(key) {
                text.push_str(&rate_row("attack success rate (judge)", rate));
            }
        }
    }
    for key in ["by_style", "by_topic"] {
        for rate in found[key].as_array().into_iter().flatten() {
            text.push_str(&rate_row("non refusal rate", rate));
        }
    }
    match found.get("judged") {
        Some(judged) => text.push_str(&format!(
            "\nJudge `{}`: no verdict on {} of {} responses; {}. On {} labelled responses it calls {} % of the unsafe ones unsafe and \
             {} % of the safe ones.\n\n",
            shown(&judged["model"]["name"]),
            shown(&judged["n_unparsed"]),
            shown(&judged["n"]),
            UNPARSED,
            shown(&judged["error"]["n"]),
            percent(&judged["error"]["true_positive_rate"]),
            percent(&judged["error"]["false_positive_rate"])
        )),
        None => text.push_str("\nNo judge model was used, so no attack success rate is stated.\n\n"),
    }
    text
}

/// How responses without a verdict are counted.
const UNPARSED: &str =
    "attack success rates are over the responses with a verdict, and none is stated where more than 10 % have none";

fn rate_row(name: &str, rate: &Value) -> String {
    let held_out = if rate["held_out"].as_bool() == Some(true) { " (held out of training)" } else { "" };
    let bounds = rate.get("bounds").map_or_else(String::new, |bounds| {
        format!(" ({} if the {} without a verdict meant safe, unsafe)", interval(bounds), shown(&rate["n_unparsed"]))
    });
    let (value, ends) = match rate["not_stated"].as_str() {
        Some(why) => (format!("not stated: {why}"), "-".to_owned()),
        None => (percent(&rate["rate"]), interval(&rate["interval"])),
    };
    format!(
        "| {name} | {}{held_out} | {} | {} | {} | {value}{bounds} | {ends} |\n",
        shown(&rate["name"]),
        shown(&rate["n"]),
        shown(&rate["n_empty"]),
        shown(&rate["n_questions"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rate_stands_with_its_empty_responses_and_a_judged_one_with_its_bounds_or_why_there_is_none() {
        let ends = json!({ "low": 0.25, "high": 0.75 });
        let mut rate = json!({ "name": "all", "n": 20, "n_empty": 3, "n_questions": 9, "rate": 0.5, "interval": ends });
        assert_eq!(rate_row("r", &rate), "| r | all | 20 | 3 | 9 | 50.00 | 25.00 to 75.00 |\n");
        (rate["bounds"], rate["n_unparsed"]) = (json!({ "low": 0.45, "high": 0.55 }), json!(2));
        let bounds = "(45.00 to 55.00 if the 2 without a verdict meant safe, unsafe)";
        assert_eq!(rate_row("r", &rate), format!("| r | all | 20 | 3 | 9 | 50.00 {bounds} | 25.00 to 75.00 |\n"));
        rate["not_stated"] = json!("why");
        assert_eq!(rate_row("r", &rate), format!("| r | all | 20 | 3 | 9 | not stated: why {bounds} | - |\n"));
    }

    /// A local model's tasks have no floor, and no line.
    #[test]
    fn the_noise_floor_of_an_endpoint_stands_under_its_accuracies() {
        let floor = json!({ "n_questions": 20, "n_predictions_changed": 1, "n_requests": 100, "n_requests_changed": 7,
            "n_texts": 100, "n_texts_changed": 7 });
        let task =
            json!({ "task": "medqa", "n": 60, "acc": { "value": 0.5, "stderr": 0.1 }, "comparability": "comparable" });
        let mut noisy = task.clone();
        noisy["noise_floor"] = floor;
        let mut evidence = Evidence { stage: "cot".into(), record: aloe_record::Record::default() };
        let mut check = |task: &Value, expected: &str| {
            evidence.record.results.insert("eval".into(), json!({ "tasks": [task] }));
            let text = results(&evidence);
            assert!(text.ends_with(&format!("| comparable |\n\n{expected}")), "{text}");
        };
        check(&task, "");
        check(
            &noisy,
            "- medqa: noise floor: 100 requests sent twice (100 more answers): texts changed in 7 of 100 requests (7.0 %), predictions \
             in 1 of 20 questions (5.0 %).\n\n",
        );
    }

    /// By hand: 0.5 -+ 1.959964 * 0.01 is 48.04 to 51.96 %. Where all that is averaged is right the standard error is 0, and says nothing.
    #[test]
    fn averages_have_an_interval_and_questions_that_training_rows_hold_or_not_stand_apart_with_theirs() {
        let acc = json!({ "value": 0.5, "stderr": 0.01 });
        let average = |acc: &Value| json!({ "name": "multimedqa", "n": 9, "acc": acc, "comparability": "comparable" });
        let clean = json!({ "part": "clean: no training row holds the question", "n": 4,
            "acc": { "value": 0.25, "stderr": 0.125, "interval": { "low": 0.0456, "high": 0.6994 } } });
        let task =
            json!({ "task": "medqa", "n": 60, "acc": acc, "comparability": "comparable", "by_training": [clean] });
        let all_right = json!({ "value": 1.0, "stderr": 0.0 });
        let mut evidence = Evidence { stage: "after".into(), record: aloe_record::Record::default() };
        let found = json!({ "tasks": [task], "groups": [average(&acc), average(&all_right)] });
        evidence.record.results.insert("eval".into(), found);
        let text = results(&evidence);
        for line in [
            "| medqa | 60 | 50.00 | 1.00 | - | - | comparable |\n",
            "| multimedqa | 9 | 50.00 | 1.00 | 48.04 to 51.96 (normal) | - | comparable |\n",
            "| multimedqa | 9 | 100.00 | 0.00 | - | - | comparable |\n",
            "- medqa: 25.00 % +- 12.50 (95 %: 4.56 to 69.94) on 4 questions, clean: no training row holds the question.\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn next_letters_are_named_with_how_they_were_told_and_what_was_not_told() {
        let mut evidence = Evidence { stage: "letters".into(), record: aloe_record::Record::default() };
        let settings =
            json!({ "protocol": "aloe", "strategy": "next-letter", "shots": 0, "chat_template": true, "told": "chat" });
        let task = json!({ "task": "medqa", "n": 60, "n_partial": 3, "comparability": "comparable" });
        evidence.record.results.insert("eval".into(), json!({ "settings": settings, "tasks": [task] }));
        let text = results(&evidence);
        let told = "letters among the most probable next tokens that /v1/chat/completions names (server template)";
        assert!(text.contains(&format!("strategy next-letter, 0 shots, chat template, {told}, dtype")), "{text}");
        assert!(
            text.contains("- medqa: the server did not tell the log-probability of every letter of 3 questions.\n"),
            "{text}"
        );
    }

    #[test]
    fn a_comparison_that_cannot_be_made_says_so_and_the_number_of_tests_is_stated() {
        let mut row = json!({ "name": "x", "n": 9, "first": 0.5, "second": 0.5, "difference": 0.0, "p_value": 1.0,
            "interval": { "low": 0.0, "high": 0.0 }, "verdict": "no_difference_can_be_concluded" });
        let mut evidence = Evidence { stage: "after".into(), record: aloe_record::Record::default() };
        let rows = [row.clone(), row.clone()];
        evidence
            .record
            .results
            .insert("comparison_note".into(), json!("compared (the runs differ in dtype f32 and bf16)"));
        let notes = comparison_notes(&evidence, &rows);
        assert!(
            notes.starts_with("- after: compared (the runs differ in dtype f32 and bf16).\n- after: 2 tests were made")
        );
        (row["verdict"], row["not_comparable"]) =
            (json!("not_comparable"), json!("not comparable: 1 and 9 empty responses"));
        assert!(comparison("s", &row).ends_with("| not comparable: 1 and 9 empty responses |\n"));
        assert_eq!(comparison_notes(&evidence, &[rows[0].clone(), row]).lines().count(), 1, "one test needs no line");
        let mut adjusted = rows[0].clone();
        adjusted["p_holm"] = json!(0.5);
        assert!(comparison("s", &adjusted).contains("| 1.0000 (Holm 0.5000) |"), "{}", comparison("s", &adjusted));
        let notes = comparison_notes(&evidence, &[adjusted.clone(), adjusted]);
        assert!(notes.ends_with("verdicts hold for all of them together at the 0.05 level (Holm).\n"), "{notes}");
    }
}
