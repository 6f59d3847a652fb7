//! Training data, procedure and hyperparameters, as the records of the data, sft, merge and dpo stages tell them.

use super::{Evidence, of_kind};
use serde_json::Value;

/// The section "Training Details".
pub(super) fn section(evidence: &[Evidence]) -> String {
    let mut text = String::from("## Training Details\n\n### Weights It Starts From\n\n");
    text.push_str(&pulled(evidence));
    text.push_str("### Training Data\n\n");
    text.push_str(&data(evidence));
    text.push_str("### Training Procedure\n\n");
    for one in evidence {
        match one.record.kind.as_str() {
            "sft" | "dpo" if one.record.results.contains_key("handoff") => text.push_str(&handed_off(one)),
            "sft" => text.push_str(&sft(one)),
            "merge" | "merge-search" => text.push_str(&merge(one)),
            "dpo" => text.push_str(&dpo(one)),
            _ => {}
        }
    }
    text.push_str("#### Speeds, Sizes, Times\n\n| stage | kind | seconds | peak MiB |\n|---|---|---|---|\n");
    for one in evidence {
        let record = &one.record;
        let peak_mib = record.peak_rss_bytes >> 20;
        text.push_str(&format!("| {} | {} | {:.1} | {peak_mib} |\n", one.stage, record.kind, record.elapsed_s));
    }
    text.push('\n');
    text
}

/// Where fetched weights come from, bit for bit: a card that names only the model hides that they were 4-bit.
fn pulled(evidence: &[Evidence]) -> String {
    let line = |one: &Evidence| {
        let found = &one.record.results;
        let from_blocks = match found.get("quantised_from").and_then(Value::as_str) {
            Some(types) => format!("; dequantised from {types}"),
            None => String::new(),
        };
        let field = |name: &str| found.get(name).map_or_else(|| "not recorded".to_owned(), shown);
        format!(
            "- {}: `{}` ({}), sha256 `{}`, licence {}{from_blocks}\n",
            one.stage,
            field("source"),
            field("origin"),
            field("source_sha256"),
            field("licence")
        )
    };
    // A pull of a data set has files, no parameters; the data stages that read it name it.
    let models = of_kind(evidence, "pull").filter(|one| one.record.results.contains_key("n_parameters"));
    let lines: String = models.map(line).collect();
    if lines.is_empty() { "Not fetched by a recorded stage.\n\n".to_owned() } else { lines + "\n" }
}

fn data(evidence: &[Evidence]) -> String {
    let mut text = String::from(
        "| stage | source | licence | read | dropped | held out | train |\n|---|---|---|---|---|---|---|\n",
    );
    for one in of_kind(evidence, "data") {
        for source in one.record.results["data"]["sources"].as_array().into_iter().flatten() {
            let dropped: u64 =
                source["dropped"].as_object().into_iter().flat_map(|map| map.values()).filter_map(Value::as_u64).sum();
            text.push_str(&format!(
                "| {} | {} | {} | {} | {dropped} | {} | {} |\n",
                one.stage,
                shown(&source["name"]),
                shown(&source["licence"]),
                shown(&source["n_read"]),
                shown(&source["n_held_out"]),
                shown(&source["n_train"])
            ));
        }
    }
    text.push_str("\nRows dropped for overlapping an evaluation question, by stage: ");
    let overlaps: Vec<String> = of_kind(evidence, "data")
        .map(|one| format!("{} {}", one.stage, shown(&one.record.results["data"]["n_overlaps"])))
        .collect();
    text.push_str(&overlaps.join(", "));
    text.push_str(".\n\n");
    text
}

fn sft(one: &Evidence) -> String {
    let (used, report) = (&one.record.config_used, &one.record.results["sft"]);
    format!(
        "#### {}: supervised fine-tuning\n\n{}\n\nRows {}, trained tokens {} of {}, steps {}; loss {} -> {} (first and last tenth); held-out \
         negative log-likelihood a token {} -> {} over {} tokens{}.{}{}{}\n\n",
        one.stage,
        hyperparameters(used),
        shown(&report["n_rows"]),
        shown(&report["n_targets"]),
        shown(&report["n_tokens"]),
        shown(&report["n_steps"]),
        number(&report["loss_first_tenth"]),
        number(&report["loss_last_tenth"]),
        with_error(&report["held_out_nll_before"], &report["held_out_nll_se_before"]),
        with_error(&report["held_out_nll_after"], &report["held_out_nll_se_after"]),
        shown(&report["n_held_out_targets"]),
        change(&report["held_out_nll_change"]),
        by_source(report),
        notices(report),
        export(report)
    )
}

/// A stage that another program trained: what its own log and the check say.
fn handed_off(one: &Evidence) -> String {
    let (used, report) = (&one.record.config_used, &one.record.results["handoff"]);
    let versions = report["versions"].as_object().into_iter().flatten();
    let versions: Vec<String> = versions.map(|(name, version)| format!("{name} {}", shown(version))).collect();
    let devices: Vec<String> = report["devices"].as_array().into_iter().flatten().map(shown).collect();
    let what = if one.record.kind == "sft" { "supervised fine-tuning" } else { "direct preference optimisation" };
    let gpus = one.record.results.get("job").map_or_else(String::new, |job| {
        format!(
            " Its job had {} GPUs for {} s: {} GPU-hours.",
            shown(&job["n_gpus"]),
            number(&job["worked_s"]),
            number(&job["gpu_hours"])
        )
    });
    format!(
        "#### {}: {what} by {}\n\n{}\n\nSteps {}; loss {} -> {} (first and last tenth), by {} processes on {} machines ({}) in {} sessions. \
         Versions: {}. The result was checked before it was used: steps, finite losses and gradients, every weight.{}{gpus}{}\n\n",
        one.stage,
        shown(&report["engine"]),
        hyperparameters(used),
        shown(&report["n_steps"]),
        number(&report["loss_first_tenth"]),
        number(&report["loss_last_tenth"]),
        shown(&report["world_size"]),
        shown(&report["n_hosts"]),
        devices.join(", "),
        shown(&report["n_sessions"]),
        versions.join(", "),
        held_out(&one.record.kind, &one.record.results[one.record.kind.as_str()]),
        export(report)
    )
}

/// Held-out figures of such a stage, where it had any.
fn held_out(kind: &str, report: &Value) -> String {
    let n = report["n_held_out"].as_u64().unwrap_or(0);
    match (kind, n) {
        (_, 0) => String::new(),
        ("sft", _) => format!(
            " Held-out negative log-likelihood a token {} -> {} over {} tokens.",
            number(&report["held_out_nll_before"]),
            number(&report["held_out_nll_after"]),
            shown(&report["n_held_out_targets"])
        ),
        _ => format!(
            " Held-out pairs {n}: loss {} -> {}, share whose chosen answer is more probable {} -> {}, reward margin {}.",
            number(&report["held_out_loss_before"]),
            number(&report["held_out_loss_after"]),
            number(&report["held_out_logp_accuracy_before"]),
            number(&report["held_out_logp_accuracy_after"]),
            margin(
                &report["held_out_margin_after"],
                &report["held_out_margin_se_after"],
                &report["held_out_margin_interval_after"]
            )
        ),
    }
}

/// Each data source's part, where the record tells them apart.
fn by_source(report: &Value) -> String {
    let line = |(source, of): (&String, &Value)| {
        format!(
            "{source} (rows {}, trained tokens {}, rows held out {}): loss {} -> {}, held-out {} -> {}{}",
            shown(&of["n_rows"]),
            shown(&of["n_targets"]),
            shown(&of["n_held_out"]),
            number(&of["loss_first_tenth"]),
            number(&of["loss_last_tenth"]),
            with_error(&of["held_out_nll_before"], &of["held_out_nll_se_before"]),
            with_error(&of["held_out_nll_after"], &of["held_out_nll_se_after"]),
            change(&of["held_out_nll_change"])
        )
    };
    let lines: Vec<String> = report["by_source"].as_object().into_iter().flatten().map(line).collect();
    if lines.is_empty() { String::new() } else { format!(" By data source: {}.", lines.join("; ")) }
}

fn dpo(one: &Evidence) -> String {
    let (used, report) = (&one.record.config_used, &one.record.results["dpo"]);
    format!(
        "#### {}: direct preference optimisation\n\n{}\n\nPairs {}, steps {}; loss {} -> {}; held-out pairs {}: share whose chosen answer is more \
         probable {} -> {}{}, share with the higher reward on the chosen answer {} after training, reward margin {}, negative log-likelihood of a \
         chosen token {} -> {}{}.{}{}\n\n{}",
        one.stage,
        hyperparameters(used),
        shown(&report["n_pairs"]),
        shown(&report["n_steps"]),
        number(&report["loss_first_tenth"]),
        number(&report["loss_last_tenth"]),
        shown(&report["n_held_out"]),
        with_error(&report["held_out_logp_accuracy_before"], &report["held_out_logp_accuracy_se_before"]),
        with_error(&report["held_out_logp_accuracy_after"], &report["held_out_logp_accuracy_se_after"]),
        change(&report["held_out_logp_accuracy_change"]) + &exact(&report["held_out_logp_accuracy_change_p"]),
        margin(
            &report["held_out_reward_accuracy_after"],
            &report["held_out_reward_accuracy_se_after"],
            &report["held_out_reward_accuracy_interval_after"]
        ) + &exact(&report["held_out_reward_accuracy_p_after"]),
        margin(
            &report["held_out_margin_after"],
            &report["held_out_margin_se_after"],
            &report["held_out_margin_interval_after"]
        ),
        with_error(&report["held_out_nll_before"], &report["held_out_nll_se_before"]),
        with_error(&report["held_out_nll_after"], &report["held_out_nll_se_after"]),
        change(&report["held_out_nll_change"]),
        notices(report),
        export(report),
        by_pair_source(report)
    )
}

/// A number with its standard error, where there is one.
fn with_error(value: &Value, standard_error: &Value) -> String {
    match standard_error {
        Value::Null => number(value),
        error => format!("{} (standard error {})", number(value), number(error)),
    }
}

/// A paired difference after a pair of numbers: `, change -0.8310 (standard error 0.0250, 95 % interval -0.8800 to -0.7820)`.
fn change(estimate: &Value) -> String {
    match estimate {
        Value::Null => String::new(),
        found => format!(", change {}", margin(&found["mean"], &found["se"], &found["interval"])),
    }
}

/// The p value of an exact test, where there is one.
fn exact(p: &Value) -> String {
    if p.is_null() { String::new() } else { format!(", exact test p {}", number(p)) }
}

/// A mean with its standard error and interval.
fn margin(mean: &Value, standard_error: &Value, interval: &Value) -> String {
    match interval.as_array().map(Vec::as_slice) {
        Some([low, high]) => format!(
            "{} (standard error {}, 95 % interval {} to {})",
            number(mean),
            number(standard_error),
            number(low),
            number(high)
        ),
        _ => number(mean),
    }
}

/// A share with its interval.
fn interval(share: &Value, interval: &Value) -> String {
    match interval.as_array().map(Vec::as_slice) {
        Some([low, high]) => format!("{} (95 % interval {} to {})", number(share), number(low), number(high)),
        _ => number(share),
    }
}

/// The preference figures of each source, where there is more than one.
fn by_pair_source(report: &Value) -> String {
    let sources = report["by_source"].as_array().map(Vec::as_slice).unwrap_or_default();
    if sources.len() < 2 {
        return String::new();
    }
    let mut text = String::from(
        "| source | pairs | margin in training | held out | more probable before | after | higher reward after | reward margin after | chosen NLL before | after |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for source in sources {
        let held_out = &source["held_out"];
        let cells = if held_out.is_null() {
            "- | - | - | - | - | -".to_owned()
        } else {
            format!(
                "{} | {}{}{} | {} | {} | {} | {}{}",
                number(&held_out["logp_accuracy_before"]),
                number(&held_out["logp_accuracy_after"]),
                change(&held_out["logp_accuracy_change"]),
                exact(&held_out["logp_accuracy_change_p"]),
                interval(&held_out["reward_accuracy_after"], &held_out["reward_accuracy_interval_after"]),
                margin(&held_out["margin_after"], &held_out["margin_se_after"], &held_out["margin_interval_after"]),
                number(&held_out["nll_before"]),
                number(&held_out["nll_after"]),
                change(&held_out["nll_change"])
            )
        };
        text.push_str(&format!(
            "| {} | {} | {} | {} | {cells} |\n",
            shown(&source["source"]),
            shown(&source["n_pairs"]),
            number(&source["margin_last_tenth"]),
            shown(&source["n_held_out"])
        ));
    }
    text + "\n"
}

fn merge(one: &Evidence) -> String {
    let report = &one.record.results["merge"];
    let list = |value: &Value| {
        let items: Vec<String> = value.as_array().into_iter().flatten().map(number).collect();
        items.join(", ")
    };
    let note =
        one.record.results.get("note").and_then(Value::as_str).map_or_else(String::new, |note| format!(" {note}"));
    // A search records the YAML of its best point, and what may be said of it.
    let yaml = one.record.results.get("yaml").and_then(Value::as_str).or(one.record.config_used["yaml"].as_str());
    let words = one.record.results.get("search").and_then(|search| search["verdict"].as_array());
    let words: Vec<&str> = words.into_iter().flatten().filter_map(Value::as_str).collect();
    let search = if words.is_empty() { String::new() } else { format!(" Chosen by a search. {}", words.join(" ")) };
    format!(
        "#### {}: merging\n\nMethod {}, base {}, models {}; rescale {}; computed in {}. Norm of each task vector over the base's: {}; share kept: {}; \
         agreement in sign: {}.{note}{search}\n\n```yaml\n{}\n```\n\n",
        one.stage,
        shown(&report["method"]),
        shown(&report["base"]),
        report["models"].as_array().map_or_else(String::new, |names| names
            .iter()
            .map(shown)
            .collect::<Vec<_>>()
            .join(", ")),
        shown(&report["rescale"]),
        shown(&report["dtype"]),
        list(&report["relative_norms"]),
        list(&report["kept_shares"]),
        number(&report["sign_agreement"]),
        yaml.unwrap_or_default().trim_end()
    )
}

/// What the stage told its user: dropped rows above all.
fn notices(report: &Value) -> String {
    let notices: Vec<&str> = report["notices"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if notices.is_empty() { String::new() } else { format!(" Notices: {}.", notices.join("; ")) }
}

/// What the bf16 export kept of the update, when the record tells.
fn export(report: &Value) -> String {
    let export = &report["export"];
    match export.as_object() {
        Some(map) if !map.is_empty() => {
            let parts: Vec<String> = map
                .iter()
                .filter(|(_, value)| value.is_number())
                .map(|(key, value)| format!("{key} {}", number(value)))
                .collect();
            format!(" The bf16 export: {}.{}", parts.join(", "), lora(report))
        }
        _ => String::new(),
    }
}

/// What LoRA trained and what merging its updates changed.
fn lora(report: &Value) -> String {
    let lora = &report["lora"];
    if lora.is_null() {
        return String::new();
    }
    format!(
        " LoRA trained {} weights beside a frozen {} model of {}; the merged bf16 model's logits differ from those of base and adapter by \
         {} in the mean and {} at most (mean size {}, {} positions).",
        shown(&lora["n_trained"]),
        shown(&lora["base"]),
        shown(&lora["n_model"]),
        number(&lora["logit_difference_mean"]),
        number(&lora["logit_difference_max"]),
        number(&lora["logit_size_mean"]),
        shown(&lora["n_positions"])
    )
}

fn hyperparameters(used: &Value) -> String {
    let pairs: Vec<String> = used
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| format!("`{key}` {}", shown(value)))
        .collect();
    pairs.join(", ")
}

/// A value without quotes; "not recorded" where there is none.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not recorded".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A number with four significant places; "not recorded" where there is none.
pub(super) fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(found) if value.is_f64() && found != 0.0 && found.abs() < 1e-3 => format!("{found:.3e}"),
        Some(found) if value.is_f64() => format!("{found:.4}"),
        _ => shown(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_margin_is_printed_with_its_error_and_interval_and_by_source_where_there_are_several() {
        let held_out = json!({"logp_accuracy_before": 0.5, "logp_accuracy_after": 0.625, "reward_accuracy_after": 0.75,
            "reward_accuracy_interval_after": [0.4093, 0.9285], "logp_accuracy_change_p": 1.0,
            "logp_accuracy_change": {"mean": 0.125, "se": 0.125, "interval": [-0.1706, 0.4206]}, "nll_before": 2.5, "nll_after": 2.25,
            "margin_after": 0.25, "margin_se_after": 0.125, "margin_interval_after": [-0.01, 0.51]});
        let source = |name: &str, held_out: &Value| json!({"source": name, "n_pairs": 40, "n_held_out": 8, "margin_last_tenth": 0.5, "held_out": held_out});
        let text = by_pair_source(&json!({"by_source": [source("hh", &held_out), source("own", &Value::Null)]}));
        assert!(text.contains(
            "| hh | 40 | 0.5000 | 8 | 0.5000 | 0.6250, change 0.1250 (standard error 0.1250, 95 % interval -0.1706 to 0.4206), exact test p 1.0000 | \
             0.7500 (95 % interval 0.4093 to 0.9285) | 0.2500 (standard error 0.1250, 95 % interval -0.0100 to 0.5100) | 2.5000 | 2.2500 |"
        ));
        assert!(text.contains("| own | 40 | 0.5000 | 8 | - | - | - | - | - | - |"), "{text}");
        assert_eq!(by_pair_source(&json!({"by_source": [source("hh", &held_out)]})), "");
        assert_eq!(margin(&Value::Null, &Value::Null, &Value::Null), "not recorded");
    }

    #[test]
    fn held_out_figures_are_printed_with_their_errors_and_what_changed() {
        let of = json!({"n_rows": 3, "n_targets": 9, "n_held_out": 2, "loss_first_tenth": 2.0, "loss_last_tenth": 1.0,
            "held_out_nll_before": 2.5, "held_out_nll_after": 2.75, "held_out_nll_se_before": 0.125, "held_out_nll_se_after": 0.25,
            "held_out_nll_change": {"mean": 0.25, "se": 0.0625, "interval": [-0.5441, 1.0441]}});
        assert_eq!(
            by_source(&json!({"by_source": {"general": of}})),
            " By data source: general (rows 3, trained tokens 9, rows held out 2): loss 2.0000 -> 1.0000, held-out 2.5000 (standard error 0.1250) -> \
             2.7500 (standard error 0.2500), change 0.2500 (standard error 0.0625, 95 % interval -0.5441 to 1.0441)."
        );
        // A record of an earlier program has no errors.
        assert_eq!(with_error(&json!(2.5), &Value::Null) + &change(&Value::Null) + &exact(&Value::Null), "2.5000");
    }
}
