//! Open answers in the card: words in common with the references, and what the judges and the labels say, in the words of the results.

use super::Evidence;
use super::training::shown;
use aloe_eval::open::report::OpenResults;
use serde_json::Value;

/// The results of a stage with open answers; none of any other stage.
pub(super) fn results(one: &Evidence) -> Option<String> {
    let found = one.record.results.get("open")?;
    // What a later version wrote otherwise is named, and no number is guessed.
    let Ok(results) = serde_json::from_value::<OpenResults>(found.clone()) else {
        return Some(format!("#### {}\n\nOpen answers, in a form that this version cannot read.\n\n", one.stage));
    };
    let setting = |key: &str| results.settings.get(key).map_or_else(|| "-".to_owned(), shown);
    let mut text = format!(
        "#### {}\n\nModel `{}`, open answers, protocol {}, dtype {}. ROUGE and BLEU are percentages with their standard errors, means over single \
         answers.\n\n| task | n | ROUGE-1 | ROUGE-2 | ROUGE-L | BLEU | comparability |\n|---|---|---|---|---|---|---|\n",
        one.stage,
        results.model.name,
        setting("protocol"),
        results.model.dtype
    );
    for task in &results.tasks {
        let cells = match &task.overlap {
            Some(means) => [means.rouge1, means.rouge2, means.rouge_l, means.bleu]
                .map(|mean| format!("{:.2} +- {:.2}", 100.0 * mean.value, 100.0 * mean.stderr)),
            None => ["-"; 4].map(str::to_owned),
        };
        let (name, comparability) = (&task.head.task, &task.head.comparability);
        text.push_str(&format!("| {name} | {} | {} | {comparability} |\n", task.n, cells.join(" | ")));
    }
    text.push('\n');
    for task in &results.tasks {
        for note in task.notes() {
            text.push_str(&format!("- {}: {note}.\n", task.head.task));
        }
    }
    if text.ends_with(".\n") {
        text.push('\n');
    }
    Some(text)
}

/// Whether a stage's record holds results of questions with options.
pub(super) fn has_choices(one: &Evidence) -> bool {
    one.record.results.get("eval").is_some_and(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A stage as `aloe eval --tasks starter_open --judge` writes it, with figures made up here.
    #[test]
    fn open_answers_stand_in_the_card_with_their_judges_and_a_broken_entry_is_named() {
        let share = |value: f64| json!({ "value": value, "stderr": 0.01, "interval": { "low": 0.25, "high": 0.5 } });
        let judge = json!({ "judge": "j", "accuracy": share(0.5), "n_unparsed": 1, "at_most": 0.55 });
        let panel = json!({ "n": 4, "n_judged": 4, "judges": [judge], "majority": share(0.5), "n_ties": 0, "full_agreement": share(0.5) });
        let means =
            json!({ "n": 4, "rouge1": share(0.125), "rouge2": share(0.0), "rougeL": share(0.125), "bleu": share(0.0) });
        let model = json!({ "name": "m", "weights": "", "text": "", "dtype": "f32", "path": "x" });
        let task = json!({ "task": "starter_open", "split": "test", "comparability": "not comparable: why", "n": 4, "n_empty": 0,
            "n_refused": 0, "n_cut": 2, "overlap": means, "panel": panel });
        let open = json!({ "model": model, "settings": { "protocol": "aloe" }, "answers_sha256": "", "judges": [], "tasks": [task] });
        let mut evidence = Evidence { stage: "open".into(), record: aloe_record::Record::default() };
        assert!(results(&evidence).is_none());
        evidence.record.results.insert("open".into(), open);
        let text = results(&evidence).unwrap();
        let row = "| starter_open | 4 | 12.50 +- 1.00 | 0.00 +- 1.00 | 12.50 +- 1.00 | 0.00 +- 1.00 | not comparable: why |\n";
        assert!(text.contains(row), "{text}");
        let said = "- starter_open: answers cut at the limit of tokens: 2.\n- starter_open: judge j: right 50.0 % (95 %: 25.0 to 50.0); no \
                    verdict on 1 of 4, which count as wrong.\n";
        assert!(text.contains(said), "{text}");
        evidence.record.results.insert("open".into(), json!({ "tasks": 7 }));
        assert!(results(&evidence).unwrap().contains("cannot read"));
    }
}
