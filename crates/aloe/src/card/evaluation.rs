//! Evaluation and red-team results with their intervals, paired comparisons, and the words that may be said of them.

use super::training::{number, shown};
use super::{CardConfig, Evidence, of_kind};
use serde_json::Value;

/// The sections "Evaluation" and "Red teaming".
pub(super) fn section(config: &CardConfig, evidence: &[Evidence]) -> String {
    let mut text = String::from(
        "## Evaluation\n\n### Testing Data, Factors & Metrics\n\nAccuracy with its standard error; an answer that cannot be read counts as wrong and \
         is reported. Figures marked \"not comparable\" must not be set beside published ones.\n\n### Results\n\n",
    );
    for one in of_kind(evidence, "eval") {
        text.push_str(&results(one));
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
        "#### {}\n\nModel `{}`, protocol {}, strategy {}, {} shots, dtype {}.\n\n| task | n | accuracy % | standard error | unparsed | \
         comparability |\n|---|---|---|---|---|---|\n",
        one.stage,
        shown(&found["model"]["name"]),
        shown(&settings["protocol"]),
        shown(&settings["strategy"]),
        shown(&settings["shots"]),
        shown(&found["model"]["dtype"])
    );
    let tasks = found["tasks"].as_array().into_iter().flatten().map(|task| (&task["task"], task));
    let groups = found["groups"].as_array().into_iter().flatten().map(|group| (&group["name"], group));
    for (name, entry) in tasks.chain(groups) {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            shown(name),
            shown(&entry["n"]),
            percent(&entry["acc"]["value"]),
            percent(&entry["acc"]["stderr"]),
            unparsed(entry),
            shown(&entry["comparability"])
        ));
    }
    text.push('\n');
    text
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
    let mut text = String::new();
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
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn comparison(stage: &str, row: &Value) -> String {
    let verdict = match row["verdict"].as_str() {
        Some("second_is_better") => "after is higher",
        Some("first_is_better") => "after is lower",
        _ => "no difference can be concluded",
    };
    format!(
        "| {stage} | {} | {} | {} | {} | {} | {} to {} | {} | {verdict} |\n",
        shown(row.get("task").unwrap_or(&row["name"])),
        shown(&row["n"]),
        percent(&row["first"]),
        percent(&row["second"]),
        percent(&row["difference"]),
        percent(&row["interval"]["low"]),
        percent(&row["interval"]["high"]),
        number(&row["p_value"])
    )
}

/// The model's own figures for Hub leaderboards: only comparable ones of the last model evaluated.
pub(super) fn model_index(config: &CardConfig, evidence: &[Evidence]) -> String {
    let mut rows = String::new();
    for one in of_kind(evidence, "eval").filter(|one| one.record.results.contains_key("comparison")) {
        for task in one.record.results["eval"]["tasks"].as_array().into_iter().flatten() {
            if task["comparability"].as_str() == Some("comparable") {
                rows.push_str(&format!(
                    "  - task:\n      type: multiple-choice\n    dataset:\n      name: {}\n      type: {}\n    metrics:\n    - type: accuracy\n      \
                     value: {}\n      name: {}\n",
                    super::quoted(&shown(&task["task"])),
                    super::quoted(&shown(&task["task"])),
                    percent(&task["acc"]["value"]),
                    super::quoted(&format!("accuracy ({})", one.stage))
                ));
            }
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    format!("model-index:\n- name: {}\n  results:\n{rows}", super::quoted(&config.model_name))
}

/// A share as a percentage with two places.
fn percent(value: &Value) -> String {
    value.as_f64().map_or_else(|| shown(value), |share| format!("{:.2}", share * 100.0))
}

fn red_team(one: &Evidence) -> String {
    let found = &one.record.results["redteam"];
    let settings = &found["settings"];
    let mut text = format!(
        "#### {}\n\nModel `{}`; a fixed stratified sample of {} prompts of {} new tokens each. {}\n\n| rate | over | prompts | base questions | \
         % | 95 % interval, clustered by base question |\n|---|---|---|---|---|---|\n",
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
        text.push_str(&rate_row("attack success rate (judge)", &judged["attack_success_rate"]));
    }
    for key in ["by_style", "by_topic"] {
        for rate in found[key].as_array().into_iter().flatten() {
            text.push_str(&rate_row("non refusal rate", rate));
        }
    }
    match found.get("judged") {
        Some(judged) => text.push_str(&format!(
            "\nJudge `{}`: on {} labelled responses it calls {} % of the unsafe ones unsafe and {} % of the safe ones.\n\n",
            shown(&judged["model"]["name"]),
            shown(&judged["error"]["n"]),
            percent(&judged["error"]["true_positive_rate"]),
            percent(&judged["error"]["false_positive_rate"])
        )),
        None => text.push_str("\nNo judge model was used, so no attack success rate is stated.\n\n"),
    }
    text
}

fn rate_row(name: &str, rate: &Value) -> String {
    let held_out = if rate["held_out"].as_bool() == Some(true) { " (held out of training)" } else { "" };
    format!(
        "| {name} | {}{held_out} | {} | {} | {} | {} to {} |\n",
        shown(&rate["name"]),
        shown(&rate["n"]),
        shown(&rate["n_questions"]),
        percent(&rate["rate"]),
        percent(&rate["interval"]["low"]),
        percent(&rate["interval"]["high"])
    )
}
