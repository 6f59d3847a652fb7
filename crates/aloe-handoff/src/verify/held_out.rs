//! Held-out evaluations that an engine made while it trained: as many as were planned, each with a finite loss over all held-out rows, and what
//! `patience` and `keep_best` must have done with them.

use super::log::{SESSIONS, STATE, number};
use super::{Expectation, Facts, Findings, HeldOut};
use aloe_train::DpoReport;
use serde_json::Value;
use std::path::Path;

/// What the stage's settings ask for.
struct Asked {
    eval_every: u64,
    patience: u64,
    keep_best: bool,
}

impl Asked {
    fn of(expected: &Expectation) -> Self {
        let config = &expected.stage.config;
        let number = |key: &str| config[key].as_u64().unwrap_or(0);
        Self {
            eval_every: number("eval_every"),
            patience: number("patience"),
            keep_best: config["keep_best"].as_bool().unwrap_or(false),
        }
    }
}

/// The step after which the training ends by its plan: the last, or that of the evaluation at which patience runs out.
pub(super) fn last_step(expected: &Expectation, history: &[Value]) -> u64 {
    let patience = Asked::of(expected).patience;
    if !expected.evaluates_held_out || patience == 0 {
        return expected.n_steps;
    }
    let (mut best, mut n_without) = (f64::INFINITY, 0);
    for entry in evaluations(history).filter(|entry| step(entry) > 0) {
        let loss = number(&entry["eval_loss"]);
        (best, n_without) = if loss < best { (loss, 0) } else { (best, n_without + 1) };
        if n_without >= patience {
            return step(entry);
        }
    }
    expected.n_steps
}

/// Checks the evaluations up to `last` and takes their figures over. `loaded` is the checkpoint whose weights the start script saw loaded at the end.
pub(super) fn check(
    findings: &mut Findings<'_>,
    facts: &mut Facts,
    expected: &Expectation,
    (state, loaded): (&Value, Option<&Value>),
    history: &[Value],
    last: u64,
) {
    let counts = &expected.stage.counts;
    if !expected.evaluates_held_out {
        return;
    }
    let asked = Asked::of(expected);
    let found: Vec<&Value> = evaluations(history).collect();
    let steps: Vec<u64> = found.iter().map(|entry| step(entry)).collect();
    let every = if asked.eval_every > 0 { asked.eval_every } else { last };
    let planned: Vec<u64> = (0..last).step_by(every.max(1) as usize).chain([last]).collect();
    if steps != planned {
        findings.add(STATE, "steps of held-out evaluations", format!("{planned:?}"), format!("{steps:?}"));
    }
    for entry in &found {
        let of = |key: &str| format!("{key} of step {}", entry["step"]);
        if !number(&entry["eval_loss"]).is_finite() {
            findings.add(STATE, of("eval_loss"), "a finite number", &entry["eval_loss"]);
        }
        let (key, n) = match expected.stage.kind.as_str() {
            "sft" => ("eval_targets", counts.n_held_out_targets),
            _ => ("eval_pairs", counts.n_held_out),
        };
        if entry[key].as_u64() != Some(n) {
            findings.add(STATE, of(key), n, &entry[key]);
        }
    }
    let trained = found.iter().copied().filter(|entry| step(entry) > 0);
    let best = trained.fold(None, |best: Option<&Value>, entry| match best {
        Some(best) if number(&entry["eval_loss"]).total_cmp(&number(&best["eval_loss"])).is_ge() => Some(best),
        _ => Some(entry),
    });
    if let Some(best) = best.filter(|_| asked.keep_best) {
        best_is_written(findings, step(best), state, expected.tells_loaded.then_some(loaded));
    }
    let exported = if asked.keep_best { best } else { found.last().copied() };
    facts.held_out = match (found.first(), exported) {
        (Some(&before), Some(after)) => Some(HeldOut {
            before: figures(before),
            after: figures(after),
            exported_step: step(after),
            last_step: last,
        }),
        _ => None,
    };
}

/// transformers goes by its state's word for the best step, and writes the last weights where that step's checkpoint is gone: the step, the
/// checkpoint that it stands for, and what was loaded must be one; `loaded` is `None` where no start script says it.
fn best_is_written(findings: &mut Findings<'_>, best: u64, state: &Value, loaded: Option<Option<&Value>>) {
    if state["best_global_step"].as_u64() != Some(best) {
        let what = "best_global_step, whose weights are written (keep_best)";
        return findings.add(STATE, what, best, &state["best_global_step"]);
    }
    let name = format!("checkpoint-{best}");
    let found = &state["best_model_checkpoint"];
    if found.as_str().and_then(|path| Path::new(path).file_name()) != Some(name.as_ref()) {
        findings.add(STATE, "best_model_checkpoint, whose weights are written (keep_best)", &name, found);
    }
    if let Some(loaded) = loaded
        && loaded.and_then(Value::as_str) != Some(&name)
    {
        let found = loaded.unwrap_or(&Value::Null);
        findings.add(SESSIONS, "best_loaded, the weights that were written (keep_best)", &name, found);
    }
}

fn evaluations(history: &[Value]) -> impl Iterator<Item = &Value> {
    history.iter().filter(|entry| entry.get("eval_loss").is_some())
}

fn step(entry: &Value) -> u64 {
    entry["step"].as_u64().unwrap_or(0)
}

/// The figures of one evaluation, without what transformers adds.
fn figures(entry: &Value) -> serde_json::Map<String, Value> {
    let own = entry.as_object().into_iter().flatten();
    own.filter_map(|(key, value)| Some((key.strip_prefix("eval_")?.to_owned(), value.clone()))).collect()
}

impl HeldOut {
    /// What our own trainer's record of such a stage says, under the same names.
    pub fn report(&self, kind: &str, n_held_out: u64) -> serde_json::Map<String, Value> {
        let mut said = serde_json::Map::new();
        let mut put = |name: &str, value: &Value| {
            if !value.is_null() {
                said.insert(name.to_owned(), value.clone());
            }
        };
        let of = |figures: &serde_json::Map<String, Value>, name: &str| figures.get(name).cloned().unwrap_or_default();
        if kind == "sft" {
            put("held_out_nll_before", &of(&self.before, "loss"));
            put("held_out_nll_after", &of(&self.after, "loss"));
            put("n_held_out_targets", &of(&self.after, "targets"));
        } else {
            for name in ["loss", "nll", "logp_accuracy"] {
                put(&format!("held_out_{name}_before"), &of(&self.before, name));
                put(&format!("held_out_{name}_after"), &of(&self.after, name));
            }
            for name in ["reward_accuracy", "margin", "margin_se"] {
                put(&format!("held_out_{name}_after"), &of(&self.after, name));
            }
            let numbers = [of(&self.after, "margin").as_f64(), of(&self.after, "margin_se").as_f64()];
            if let [Some(mean), Some(se)] = numbers {
                let interval = DpoReport::margin_interval(mean, se, n_held_out as usize);
                put("held_out_margin_interval_after", &serde_json::json!(interval));
            }
        }
        put("exported_step", &self.exported_step.into());
        said
    }

    /// What the user must be told of it, in our own trainer's words.
    pub fn notices(&self, n_steps: u64) -> Vec<String> {
        let mut notices = Vec::new();
        if self.last_step < n_steps {
            notices.push(format!(
                "stopped after step {}: the held-out evaluations did not get better any more (patience)",
                self.last_step
            ));
        }
        if self.exported_step != self.last_step {
            notices.push(format!(
                "the weights of step {} are written, which had the best held-out evaluation (keep_best)",
                self.exported_step
            ));
        }
        notices
    }
}
