//! The engine's log against the plan: `sessions.jsonl` and `log.jsonl` of our start script, `trainer_state.json` of transformers.
//!
//! Python writes NaN as a bare word, which is no JSON; it is read here as the text "NaN", so that such a file is judged and not refused.

use super::curve::Curve;
use super::{Expectation, Facts, Findings, PlannedStage, held_out};
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) const SESSIONS: &str = "sessions.jsonl";
const LOG: &str = "log.jsonl";
pub(super) const STATE: &str = "trainer_state.json";
/// So many losses of different rows that are one number were not computed.
const LEAST_LOSSES: usize = 8;
/// Findings of one kind that are listed one by one; the rest are counted.
const LISTED: usize = 5;

pub(super) fn check(findings: &mut Findings<'_>, facts: &mut Facts, expected: &Expectation, curve: Option<&Curve>) {
    let state = read(findings, STATE).and_then(|text| parsed(findings, STATE, &text));
    let history = state.as_ref().and_then(|state| state["log_history"].as_array().cloned()).unwrap_or_default();
    let last = held_out::last_step(expected, &history);
    let loaded = sessions(findings, facts, expected, last);
    let Some(state) = state else { return };
    let done = state["global_step"].as_u64().unwrap_or(0);
    facts.n_steps = done;
    if done != last {
        findings.add(STATE, "global_step", last, done);
    }
    held_out::check(findings, facts, expected, (&state, loaded.as_ref()), &history, last);
    let steps: Vec<&Value> = history.iter().filter(|entry| entry.get("loss").is_some()).collect();
    numbers(findings, &steps, expected);
    order(findings, &steps, last);
    match curve {
        Some(curve) => rates(findings, &steps, curve),
        None => falls_once(findings, &steps, expected),
    }
    spikes(findings, &steps, expected);
    agree(findings, &steps);
    facts.losses = steps.iter().map(|entry| number(&entry["loss"])).collect();
}

/// World size, machines, versions and the end of every session; gives the checkpoint that the last one loaded at its end.
fn sessions(findings: &mut Findings<'_>, facts: &mut Facts, expected: &Expectation, last_step: u64) -> Option<Value> {
    let text = read(findings, SESSIONS)?;
    let entries: Vec<Value> = text.lines().filter_map(|line| parsed(findings, SESSIONS, line)).collect();
    let begun: Vec<&Value> = entries.iter().filter(|entry| entry["event"] == "begin").collect();
    if begun.is_empty() {
        findings.add(SESSIONS, "begin", "at least one session", "none");
    }
    // What earlier sessions trained was thrown away where a later one began at the start.
    let first = begun.iter().rposition(|session| session["step"].as_u64() == Some(0)).unwrap_or(0);
    for (at, session) in begun.iter().enumerate() {
        let what = |key: &str| format!("{key} of session {}", at + 1);
        for (key, planned) in [("world_size", expected.world_size), ("n_hosts", expected.n_nodes)] {
            if session[key].as_u64() != Some(u64::from(planned)) {
                findings.add(SESSIONS, what(key), planned, &session[key]);
            }
        }
        if session["max_steps"].as_u64() != Some(expected.n_steps) {
            findings.add(SESSIONS, what("max_steps"), expected.n_steps, &session["max_steps"]);
        }
        if let Some(rows) = expected.rows_sha256.as_ref().filter(|_| at >= first)
            && session["rows_sha256"].as_str() != Some(rows.as_str())
        {
            let found = session["rows_sha256"].as_str().unwrap_or("none");
            findings.add(SESSIONS, what("rows_sha256"), rows, found);
        }
        let is_named = |devices: &Vec<Value>| !devices.is_empty() && devices.iter().all(Value::is_string);
        if !session["devices"].as_array().is_some_and(is_named) {
            findings.add(SESSIONS, what("devices"), "their names", &session["devices"]);
        }
        for (package, version) in &expected.versions {
            if session["versions"][package].as_str() != Some(version) {
                findings.add(SESSIONS, what(package), version, &session["versions"][package]);
            }
        }
    }
    let last = entries.last();
    if last.is_none_or(|entry| entry["event"] != "end" || entry["step"].as_u64() != Some(last_step)) {
        let found =
            last.map_or_else(|| "nothing".to_owned(), |entry| format!("{} at step {}", entry["event"], entry["step"]));
        findings.add(SESSIONS, "last event", format!("end at step {last_step}"), found);
    }
    durations(findings, &entries);
    if let Some(session) = begun.last() {
        let whole = |key: &str| session[key].as_u64().and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
        (facts.world_size, facts.n_hosts, facts.n_sessions) = (whole("world_size"), whole("n_hosts"), begun.len());
        let devices = session["devices"].as_array().into_iter().flatten();
        facts.devices = devices.filter_map(|device| device.as_str().map(str::to_owned)).collect();
        let versions = session["versions"].as_object().into_iter().flatten();
        facts.versions =
            versions.filter_map(|(name, version)| Some((name.clone(), version.as_str()?.to_owned()))).collect();
    }
    facts.seconds = entries.iter().filter_map(|entry| entry["seconds"].as_f64()).sum();
    entries.last().map(|entry| entry["best_loaded"].clone())
}

/// A session lasted no longer than the clock says between its beginning and its end: what it cost is told by it.
fn durations(findings: &mut Findings<'_>, entries: &[Value]) {
    /// The clock may be set while it lasts.
    const SET_S: f64 = 60.0;
    let mut begun_s = f64::NAN;
    for entry in entries {
        let at_s = entry["unix_s"].as_f64().unwrap_or(f64::NAN);
        if entry["event"] == "begin" {
            begun_s = at_s;
            continue;
        }
        let most_s = at_s - begun_s + SET_S;
        let is_so = entry["seconds"].as_f64().is_some_and(|seconds| (0.0..=most_s).contains(&seconds));
        if !is_so {
            let what =
                format!("seconds of the {} at step {}", entry["event"].as_str().unwrap_or("entry"), entry["step"]);
            findings.add(SESSIONS, what, format!("at most {most_s:.0}, by unix_s"), &entry["seconds"]);
        }
    }
}

/// Losses and gradient norms must be finite, and a loss of exactly 0 is a hidden NaN.
fn numbers(findings: &mut Findings<'_>, steps: &[&Value], expected: &Expectation) {
    for key in ["loss", "grad_norm"] {
        let bad: Vec<&&Value> = steps.iter().filter(|entry| !number(&entry[key]).is_finite()).collect();
        listed(findings, &bad, key, "a finite number");
    }
    if !expected.loss_may_be_zero {
        let zero: Vec<&&Value> = steps.iter().filter(|entry| number(&entry["loss"]) == 0.0).collect();
        listed(findings, &zero, "loss", "above 0 (a NaN that the engine hides is logged as 0)");
        if !steps.is_empty() && steps.iter().all(|entry| number(&entry["grad_norm"]) == 0.0) {
            findings.add(STATE, "grad_norm", "above 0 in some step", format!("0 in all {}", steps.len()));
        }
    }
    // No two batches of rows have one loss, nor have pairs once the weights have moved.
    let of_first = steps.first().map_or(f64::NAN, |entry| number(&entry["loss"]));
    let is_one = steps.len() >= LEAST_LOSSES && steps.iter().all(|entry| number(&entry["loss"]) == of_first);
    if is_one && of_first != 0.0 && !is_of_equal_models(of_first, &expected.stage) {
        findings.add(STATE, "loss", "another one of other rows", format!("{of_first} in all {} steps", steps.len()));
    }
}

/// Whether the loss of pairs is that of a model and a reference with the same weights, as it stays at a tiny rate: ln 2 for the logistic
/// losses, 1 for hinge and APO-zero, 1 / (4 beta^2) for IPO.
fn is_of_equal_models(loss: f64, stage: &PlannedStage) -> bool {
    let beta = stage.config["beta"].as_f64().unwrap_or(f64::NAN);
    let of_equal = [std::f64::consts::LN_2, 1.0, 0.25 / (beta * beta)];
    // The engines log four digits.
    stage.kind == "dpo" && of_equal.iter().any(|equal| (loss - equal).abs() <= 1e-3 * equal)
}

fn listed(findings: &mut Findings<'_>, bad: &[&&Value], key: &str, expected: &str) {
    for entry in bad.iter().take(LISTED) {
        findings.add(STATE, format!("{key} of step {}", entry["step"]), expected, &entry[key]);
    }
    if bad.len() > LISTED {
        findings.add(STATE, key, expected, format!("{} more steps like it", bad.len() - LISTED));
    }
}

/// Each step once, from 1 to the last.
fn order(findings: &mut Findings<'_>, steps: &[&Value], last: u64) {
    let found: Vec<u64> = steps.iter().map(|entry| entry["step"].as_u64().unwrap_or(0)).collect();
    if let Some((at, step)) = found.iter().enumerate().find(|&(at, &step)| step != at as u64 + 1) {
        findings.add(
            STATE,
            format!("entry {} of log_history", at + 1),
            format!("step {}", at + 1),
            format!("step {step}"),
        );
    } else if found.len() as u64 != last {
        findings.add(STATE, "logged steps", last, found.len());
    }
}

/// Every step was made with the rate that was planned for it; the first other one is told, and how many there are.
fn rates(findings: &mut Findings<'_>, steps: &[&Value], curve: &Curve) {
    let is_other = |entry: &&&Value| {
        let planned = curve.rate(&entry["step"]);
        // Of a step that was not planned the order tells.
        planned.is_some_and(|planned| {
            let away = (number(&entry["learning_rate"]) - planned).abs();
            away.is_nan() || away > 1e-6 * curve.peak
        })
    };
    let others: Vec<&&Value> = steps.iter().filter(is_other).collect();
    let Some(first) = others.first() else { return };
    let planned = curve.rate(&first["step"]).unwrap_or_default();
    let more = if others.len() > 1 { format!(", and {} more steps like it", others.len() - 1) } else { String::new() };
    let what = format!("learning_rate of step {}", first["step"]);
    findings.add(STATE, what, format!("{planned:e}, as planned"), format!("{}{more}", first["learning_rate"]));
}

/// A learning rate that has fallen rises again with the next chunk alone: a run that lost its optimizer starts its schedule afresh.
fn falls_once(findings: &mut Findings<'_>, steps: &[&Value], expected: &Expectation) {
    let (mut has_fallen, mut last) = (false, f64::NAN);
    let mut chunks = expected.chunks.iter();
    let mut first_of_next = chunks.next().map_or(u64::MAX, |chunk| chunk.n_steps + 1);
    for entry in steps {
        if entry["step"].as_u64() == Some(first_of_next) {
            (has_fallen, last) = (false, f64::NAN);
            first_of_next += chunks.next().map_or(0, |chunk| chunk.n_steps);
        }
        let rate = number(&entry["learning_rate"]);
        if !rate.is_finite() {
            return findings.add(
                STATE,
                format!("learning_rate of step {}", entry["step"]),
                "a number",
                &entry["learning_rate"],
            );
        }
        if has_fallen && rate > last {
            let what = format!("learning_rate of step {}", entry["step"]);
            return findings.add(STATE, what, format!("at most {last:e}, as before"), format!("{rate:e}"));
        }
        has_fallen |= rate < last;
        last = rate;
    }
}

/// The rule of our own trainer, applied afterwards.
fn spikes(findings: &mut Findings<'_>, steps: &[&Value], expected: &Expectation) {
    let values = steps.iter().map(|entry| (number(&entry["loss"]), number(&entry["grad_norm"])));
    if let Some((at, spike)) = aloe_train::first_spike(values).filter(|_| expected.stops_at_spikes) {
        let what = format!("{} of step {}", spike.what, at + 1);
        let most = format!(
            "at most {:.4}, six sigma above the steps before (planned with on_spike = \"keep\" it may)",
            spike.limit
        );
        findings.add(STATE, what, most, spike.value);
    }
}

/// The start script and transformers wrote down the same losses.
fn agree(findings: &mut Findings<'_>, steps: &[&Value]) {
    let Some(text) = read(findings, LOG) else { return };
    let mut logged = BTreeMap::new();
    for line in text.lines() {
        let Some(entry) = parsed(findings, LOG, line) else { return };
        if let (Some(step), Some(_)) = (entry["step"].as_u64(), entry.get("loss")) {
            // A resumed run logs the steps since its checkpoint again: the last word counts.
            logged.insert(step, number(&entry["loss"]));
        }
    }
    for entry in steps {
        let (step, loss) = (entry["step"].as_u64().unwrap_or(0), number(&entry["loss"]));
        match logged.get(&step) {
            Some(&own) if own == loss || (own.is_nan() && loss.is_nan()) => {}
            found => {
                let found = found.map_or_else(|| "nothing".to_owned(), f64::to_string);
                return findings.add(LOG, format!("loss of step {step}"), format!("{loss}, as in {STATE}"), found);
            }
        }
    }
}

/// A number, or a text that spells one.
pub(super) fn number(value: &Value) -> f64 {
    match value {
        Value::String(text) => text.trim().parse().unwrap_or(f64::NAN),
        value => value.as_f64().unwrap_or(f64::NAN),
    }
}

fn read(findings: &mut Findings<'_>, name: &str) -> Option<String> {
    let read = std::fs::read_to_string(findings.folder.join(name));
    read.map_err(|error| findings.add(name, "file", "there", error)).ok()
}

fn parsed(findings: &mut Findings<'_>, name: &str, text: &str) -> Option<Value> {
    serde_json::from_str(&quoted(text)).map_err(|error| findings.add(name, "text", "JSON", error)).ok()
}

/// Bare `NaN`, `Infinity` and `-Infinity` outside texts become texts.
fn quoted(text: &str) -> String {
    let (mut out, mut rest, mut in_text) = (String::with_capacity(text.len()), text, false);
    while let Some(first) = rest.chars().next() {
        let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| !in_text && rest.starts_with(word));
        if let Some(word) = word {
            out.push_str(&format!("\"{word}\""));
            rest = &rest[word.len()..];
            continue;
        }
        let escaped = in_text && first == '\\';
        in_text ^= first == '"';
        let n = first.len_utf8() + if escaped { rest[1..].chars().next().map_or(0, char::len_utf8) } else { 0 };
        out.push_str(&rest[..n]);
        rest = &rest[n..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pythons_bare_nan_is_read_as_text_and_texts_stay_as_they_are() {
        let text = quoted(r#"{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN \" NaN", "Infinity": 1}"#);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value, json!({"a": "NaN", "b": ["-Infinity", "Infinity"], "c": "NaN \" NaN", "Infinity": 1}));
        assert!(number(&value["a"]).is_nan() && number(&value["b"][0]) == f64::NEG_INFINITY);
    }

    #[test]
    fn the_loss_of_two_equal_models_may_stay_where_pairs_are_trained_on_and_no_other() {
        let is_equal = |loss, kind: &str, config| {
            is_of_equal_models(loss, &PlannedStage { kind: kind.to_owned(), config, ..PlannedStage::default() })
        };
        assert!(is_equal(0.6934, "dpo", json!({"beta": 0.1})) && is_equal(1.0, "dpo", Value::Null));
        assert!(is_equal(25.0, "dpo", json!({"beta": 0.1})) && !is_equal(25.0, "dpo", json!({"beta": 0.2})));
        assert!(!is_equal(2.5, "dpo", json!({"beta": 0.1})) && !is_equal(f64::NAN, "dpo", Value::Null));
        assert!(!is_equal(0.6934, "sft", Value::Null));
    }
}
