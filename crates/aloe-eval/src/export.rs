//! An evaluation in the forms of other tools: lm-evaluation-harness's results JSON, the Hub's `.eval_results` YAML and `model-index`, CSV, LaTeX
//! and Markdown tables. Numbers are those of `results.json`; only the intervals of averages are made here, from their standard errors.

use crate::metrics::Estimate;
use crate::parts::Part;
use crate::report::{COMPARABLE, EvalResults, TaskResult, told_words};
use crate::stats::{Interval, wilson};
use aloe_task::{AnswerRule, Subject, Task};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// What the text is and what was left out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// The file's text.
    pub text: String,
    /// Tasks whose figure is not comparable with published ones, with the reason: the Hub's forms leave them out.
    pub left_out: Vec<(String, String)>,
}

impl EvalResults {
    fn setting(&self, key: &str) -> String {
        match self.settings.get(key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    fn n_shots(&self) -> u64 {
        self.settings.get("shots").and_then(Value::as_u64).unwrap_or(0)
    }

    /// How the answers were got, in words: `lm-eval, loglikelihood, 5 shots`.
    fn setup(&self) -> String {
        let chat = self.chat();
        let system = if self.setting("system").is_empty() { "" } else { ", own system prompt" };
        let told = told_words(self.settings.get("told")).map_or_else(String::new, |words| format!(", {words}"));
        let (protocol, strategy) = (self.setting("protocol"), self.setting("strategy"));
        let again = self.rescored().map_or_else(String::new, |words| format!(", {words}"));
        format!("{protocol}, {strategy}, {} shots{chat}{system}{told}{again}", self.n_shots())
    }

    /// Of a run that was scored again: by which rule its answers are read, in words.
    fn rescored(&self) -> Option<String> {
        let rule = match AnswerRule::deserialize(self.settings.get("rescored")?.get("rule")?).ok()? {
            AnswerRule::Aloe => "aloe",
            AnswerRule::PromptEngine => "prompt-engine",
        };
        Some(format!("answers read again by the rule of {rule}"))
    }

    /// `words`, and in brackets that the answers were read again, where they were.
    fn with_rescored(&self, words: &str) -> String {
        self.rescored().map_or_else(|| words.to_owned(), |again| format!("{words} ({again})"))
    }

    fn chat(&self) -> &'static str {
        if self.setting("chat_template") == "true" { ", chat template" } else { "" }
    }

    /// The strategy; of next letters with the prompt that they follow and who told them.
    fn strategy_as_told(&self) -> String {
        let strategy = self.setting("strategy");
        match told_words(self.settings.get("told")) {
            None => strategy,
            Some(words) => format!("{strategy}{}, {words}", self.chat()),
        }
    }

    /// The harness's results JSON (0.4.13). The filter's name, `none` for its own scoring, says here how answers were got.
    pub fn to_lm_eval(&self, model: &str, started_unix_s: u64) -> Exported {
        let filter = match self.setting("strategy").as_str() {
            "loglikelihood" => "none".to_owned(),
            other => other.to_owned(),
        };
        let by_task = |of: &dyn Fn(&TaskResult) -> Value| -> Map<String, Value> {
            self.tasks.iter().map(|task| (task.task.clone(), of(task))).collect()
        };
        let metric = |name: &str, estimate: Estimate, to: &mut Map<String, Value>| {
            to.insert(format!("{name},{filter}"), json!(estimate.value));
            to.insert(format!("{name}_stderr,{filter}"), json!(estimate.stderr));
        };
        let mut results = by_task(&|task| {
            let mut found = Map::from_iter([("alias".to_owned(), json!(task.task))]);
            metric("acc", task.counts.acc, &mut found);
            if let Some(acc_norm) = task.counts.acc_norm {
                metric("acc_norm", acc_norm, &mut found);
            }
            Value::Object(found)
        });
        let mut groups = Map::new();
        let mut members = Map::new();
        for one in &self.groups {
            let name = one.group.name.split(' ').next().unwrap_or_default();
            let Some(name) = ["multimedqa", "mmlu_medical"].into_iter().find(|known| *known == name) else { continue };
            let mut found = Map::from_iter([("alias".to_owned(), json!(name))]);
            metric("acc", one.group.acc, &mut found);
            groups.insert(name.into(), Value::Object(found.clone()));
            results.insert(name.into(), Value::Object(found));
            members.insert(name.into(), json!(one.group.tasks));
        }
        let higher = by_task(&|task| {
            let norm = task.counts.acc_norm.map(|_| ("acc_norm".to_owned(), json!(true)));
            Value::Object(norm.into_iter().chain([("acc".to_owned(), json!(true))]).collect())
        });
        // A part in `results` would pass for a task; `metadata` is the task's own, and the harness's readers leave it alone.
        let config = |task: &TaskResult| {
            let mut metadata = json!({"version": task.version});
            let parts: Vec<&Part> = task.apart().collect();
            if !parts.is_empty() {
                metadata["parts"] = json!(parts);
            }
            json!({"task": task.task, "num_fewshot": self.n_shots(), "metadata": metadata})
        };
        let text = json!({
            "results": results, "groups": groups, "group_subtasks": members, "configs": by_task(&config),
            "versions": by_task(&|task| json!(task.version)), "n-shot": by_task(&|_| json!(self.n_shots())),
            "higher_is_better": higher,
            "n-samples": by_task(&|task| json!({"original": task.n_whole.max(task.counts.n), "effective": task.counts.n})),
            "config": {
                "model": "aloe", "model_args": {"pretrained": model, "dtype": self.model.dtype}, "model_dtype": self.model.dtype,
                "limit": self.settings.get("limit"), "random_seed": self.settings.get("seed"),
                "protocol": self.with_rescored(&self.setting("protocol_version")), "strategy": self.strategy_as_told(),
            },
            "date": started_unix_s, "model_source": "aloe", "model_name": model,
            "model_name_sanitized": model.replace('/', "__"), "system_instruction": self.settings.get("system"),
            "fewshot_as_multiturn": self.setting("chat_template") == "true",
        });
        Exported { text: format!("{text:#}\n"), left_out: Vec::new() }
    }

    fn comparable(&self) -> (Vec<&TaskResult>, Vec<(String, String)>) {
        let (kept, left_out): (Vec<&TaskResult>, Vec<&TaskResult>) =
            self.tasks.iter().partition(|task| task.comparability == COMPARABLE);
        (kept, left_out.into_iter().map(|task| (task.task.clone(), task.comparability.clone())).collect())
    }

    /// Entries for the Hub's `.eval_results/*.yaml`; values in percent.
    pub fn to_eval_results(&self, date: &str) -> Exported {
        let (kept, left_out) = self.comparable();
        let mut text = String::new();
        for task in kept {
            let Some(hub) = hub_set(&task.task) else { continue };
            let notes =
                format!("accuracy in %, standard error {:.2}; {}", 100.0 * task.counts.acc.stderr, self.setup());
            let _ = writeln!(text, "- dataset:\n    id: {}\n    task_id: {}", hub.id, task.task);
            let _ = writeln!(
                text,
                "  value: {:.2}\n  date: {}\n  notes: {}",
                100.0 * task.counts.acc.value,
                quoted(date),
                quoted(&notes)
            );
        }
        Exported { text, left_out }
    }

    /// `model-index` for a card's front matter.
    pub fn to_model_index(&self, model: &str) -> Exported {
        let (rows, left_out) = (self.model_index_rows(), self.comparable().1);
        let text =
            if rows.is_empty() { rows } else { format!("model-index:\n- name: {}\n  results:\n{rows}", quoted(model)) };
        Exported { text, left_out }
    }

    /// The entries under `results` of a `model-index`: comparable figures of sets that the Hub has.
    pub fn model_index_rows(&self) -> String {
        let mut text = String::new();
        for task in self.comparable().0 {
            let Some(hub) = hub_set(&task.task) else { continue };
            let (id, config, split) = (hub.id, hub.config, hub.split);
            let metric =
                format!("accuracy in %, standard error {:.2} ({})", 100.0 * task.counts.acc.stderr, self.setup());
            let _ = write!(
                text,
                "  - task:\n      type: question-answering\n      name: Multiple choice\n    dataset:\n      type: {id}\n      name: {}\n      \
                 config: {config}\n      split: {split}\n    metrics:\n    - type: accuracy\n      name: {}\n      value: {:.2}\n",
                task.task,
                quoted(&metric),
                100.0 * task.counts.acc.value,
            );
        }
        text
    }

    /// One row a task and group, then one a part of a task's questions that training rows or example pool hold, or do not; shares from 0
    /// to 1.
    pub fn to_csv(&self) -> Exported {
        let mut text = String::from(
            "name,version,split,n,acc,acc_stderr,low,high,acc_norm,acc_norm_stderr,unparsed,refused,chance,ece,brier,protocol,strategy,shots,\
             comparability,interval_kind\n",
        );
        let protocol = cell(&self.with_rescored(&self.setting("protocol")));
        let setup = format!("{protocol},{},{}", cell(&self.strategy_as_told()), self.n_shots());
        for task in &self.tasks {
            let counts = &task.counts;
            let norm = counts.acc_norm.map_or_else(|| ",".to_owned(), |one| format!("{},{}", one.value, one.stderr));
            let sure =
                task.calibration.as_ref().map_or_else(|| ",".to_owned(), |one| format!("{},{}", one.ece, one.brier));
            let _ = writeln!(
                text,
                "{},{},{},{},{},{norm},{},{},{},{sure},{setup},{},{}",
                task.task,
                cell(&task.version),
                task.split.name(),
                counts.n,
                estimate_cells(counts.acc, counts.acc.interval),
                counts.n_unparsed,
                counts.n_refused,
                counts.chance,
                cell(&task.comparability),
                kind(counts.acc, counts.n),
            );
        }
        for one in &self.groups {
            let (group, interval) = (&one.group, one.group.acc.normal_interval());
            let (name, acc, why) = (cell(&group.name), estimate_cells(group.acc, interval), cell(&one.comparability));
            let kind = interval.map_or("", |_| "normal");
            let _ = writeln!(text, "{name},,,{},{acc},,,,,,,,{setup},{why},{kind}", group.n);
        }
        for (task, part) in self.parts() {
            let interval = part.acc.interval_of(part.n);
            let acc = estimate_cells(part.acc, Some(interval));
            let (name, version, split) = (cell(&part.name(&task.task)), cell(&task.version), task.split.name());
            let why = cell(&format!("not comparable: a part of the questions of {}: {}", task.task, part.part));
            let kind = kind(Estimate { interval: Some(interval), ..part.acc }, part.n);
            let _ = writeln!(text, "{name},{version},{split},{},{acc},,,,,,,,{setup},{why},{kind}", part.n);
        }
        Exported { text, left_out: Vec::new() }
    }

    /// The parts of each task's questions that stand apart.
    fn parts(&self) -> impl Iterator<Item = (&TaskResult, &Part)> {
        self.tasks.iter().flat_map(|task| task.apart().map(move |part| (task, part)))
    }

    /// Tasks, each with the parts of its questions that stand apart, and groups.
    fn rows(&self) -> Vec<Row> {
        let of_task = |task: &TaskResult| {
            let (acc, is_comparable) = (task.counts.acc, task.comparability == COMPARABLE);
            let interval = acc.interval.map_or_else(String::new, |one| one.percent(2));
            let whole = Row { name: task.task.clone(), n: task.counts.n, acc, interval, is_comparable };
            let part = |part: &Part| Row {
                name: part.name(&task.task),
                n: part.n,
                acc: part.acc,
                interval: part.acc.interval_of(part.n).percent(2),
                is_comparable: false,
            };
            [whole].into_iter().chain(task.apart().map(part)).collect::<Vec<_>>()
        };
        let groups = self.groups.iter().map(|one| Row {
            name: one.group.name.clone(),
            n: one.group.n,
            acc: one.group.acc,
            interval: one.group.acc.normal_words(),
            is_comparable: one.comparability == COMPARABLE,
        });
        self.tasks.iter().flat_map(of_task).chain(groups).collect()
    }

    /// A table with notes on what is not comparable.
    pub fn to_markdown(&self) -> Exported {
        let mut text = String::from("| Task | n | Accuracy, % | 95 % interval |\n|---|---:|---:|---:|\n");
        for Row { name, n, acc, interval, is_comparable } in self.rows() {
            let mark = if is_comparable { "" } else { "\\*" };
            let _ = writeln!(
                text,
                "| {name}{mark} | {n} | {:.2} ± {:.2} | {interval} |",
                100.0 * acc.value,
                100.0 * acc.stderr
            );
        }
        let _ = writeln!(text, "\n{}.{}", self.setup(), self.notes("\\*"));
        Exported { text, left_out: Vec::new() }
    }

    /// A table for a paper (needs the booktabs package).
    pub fn to_latex(&self) -> Exported {
        let mut text = String::from(
            "\\begin{tabular}{lrrr}\n\\toprule\nTask & $n$ & Accuracy, \\% & 95\\,\\% interval \\\\\n\\midrule\n",
        );
        for Row { name, n, acc, interval, is_comparable } in self.rows() {
            let (name, mark) = (latex(&name), if is_comparable { "" } else { "$^{*}$" });
            let (value, stderr, interval) = (100.0 * acc.value, 100.0 * acc.stderr, interval.replace(" to ", "--"));
            let _ = writeln!(text, "{name}{mark} & {n} & ${value:.2} \\pm {stderr:.2}$ & {interval} \\\\");
        }
        text += "\\bottomrule\n\\end{tabular}\n";
        let _ = writeln!(text, "% {}.{}", self.setup(), self.notes("*"));
        Exported { text, left_out: Vec::new() }
    }

    fn notes(&self, mark: &str) -> String {
        let mut reasons: Vec<String> = self
            .tasks
            .iter()
            .filter(|task| task.comparability != COMPARABLE)
            .map(|task| format!("{}: {}", task.task, task.comparability))
            .collect();
        let parts: BTreeSet<&str> = self.parts().map(|(_, part)| part.part.as_str()).collect();
        if !parts.is_empty() {
            let parts = parts.into_iter().collect::<Vec<_>>().join("; ");
            reasons.push(format!("a part of a task's questions: not comparable ({parts})"));
        }
        if reasons.is_empty() { String::new() } else { format!(" {mark} {}.", reasons.join("; ")) }
    }
}

/// A row of a table that is read by people.
struct Row {
    name: String,
    n: usize,
    acc: Estimate,
    /// In percent, and of an average with what it is made from.
    interval: String,
    is_comparable: bool,
}

/// Value, standard error, and the interval where there is one.
fn estimate_cells(acc: Estimate, interval: Option<Interval>) -> String {
    let interval = interval.map_or_else(|| ",".to_owned(), |one| format!("{},{}", one.low, one.high));
    format!("{},{},{interval}", acc.value, acc.stderr)
}

/// What the interval of a share of `n` questions is: Wilson's, or that of questions in clusters.
fn kind(acc: Estimate, n: usize) -> &'static str {
    let plain = wilson(acc.value, n as f64);
    // A file's numbers may differ in their last digit.
    let is_plain = |one: Interval| (one.low - plain.low).abs() < 1e-9 && (one.high - plain.high).abs() < 1e-9;
    match acc.interval {
        None => "",
        Some(one) if is_plain(one) => "wilson",
        Some(_) => "clustered",
    }
}

/// A CSV cell: quoted where it must be.
fn cell(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// A YAML text: JSON's quoting is YAML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn latex(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '_' | '%' | '&' | '#' | '$' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out += "\\textbackslash{}",
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            _ => out.push(c),
        }
    }
    out
}

/// Where the Hub has a set.
struct HubSet {
    id: &'static str,
    config: String,
    split: &'static str,
}

/// The data set that lm-evaluation-harness reads for a task; `None` for a set that is not on the Hub.
fn hub_set(name: &str) -> Option<HubSet> {
    let task = Task::all().into_iter().find(|task| task.name() == name)?;
    let (id, config, split) = match task {
        Task::Medqa4 => ("GBaker/MedQA-USMLE-4-options-hf", "default".to_owned(), "test"),
        Task::Medqa5 => ("bigbio/med_qa", "med_qa_en_source".to_owned(), "test"),
        Task::Medmcqa => ("openlifescienceai/medmcqa", "default".to_owned(), "validation"),
        Task::Pubmedqa => ("bigbio/pubmed_qa", "pubmed_qa_labeled_fold0_source".to_owned(), "test"),
        Task::Mmlu(subject) => ("cais/mmlu", Subject::name(subject).to_owned(), "test"),
        Task::CareqaEn => ("HPAI-BSC/CareQA", "CareQA_en".to_owned(), "test"),
        Task::CareqaEs => ("HPAI-BSC/CareQA", "CareQA_es".to_owned(), "test"),
        Task::HeadqaEn => ("EleutherAI/headqa", "en".to_owned(), "test"),
        Task::HeadqaEs => ("EleutherAI/headqa", "es".to_owned(), "test"),
        Task::StarterMcqa | Task::StarterPubmedqa | Task::Own(_) => return None,
    };
    Some(HubSet { id, config, split })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MedQA whole, by the harness's protocol; the starter set beside it.
    fn results() -> EvalResults {
        let acc = json!({"value": 0.25, "stderr": 0.0125, "interval": {"low": 0.225, "high": 0.275}});
        let task = |name: &str, n: usize, comparability: &str| {
            json!({
                "task": name, "version": "1", "split": "test", "comparability": comparability, "n": n, "n_whole": n, "acc": acc,
                "acc_norm": acc, "n_unparsed": 0, "chance": 0.25, "majority_key": 0.3, "chosen_positions": [], "key_positions": [],
            })
        };
        serde_json::from_value(json!({
            "model": {"name": "m", "weights": "", "text": "", "dtype": "f32", "path": ""},
            "settings": {"protocol": "lm-eval", "protocol_version": "x", "strategy": "loglikelihood", "shots": 5, "limit": null, "seed": 0,
                         "chat_template": false},
            "tasks": [task("medqa_4options", 1273, COMPARABLE), task("starter_mcqa", 60, "not comparable: starter, \"words\"")],
            "groups": [],
        }))
        .unwrap()
    }

    #[test]
    fn the_harness_form_has_its_keys_and_exact_numbers() {
        let json: Value = serde_json::from_str(&results().to_lm_eval("me/m", 7).text).unwrap();
        let medqa = &json["results"]["medqa_4options"];
        assert_eq!(
            (&medqa["acc,none"], &medqa["acc_stderr,none"], &medqa["acc_norm,none"]),
            (&json!(0.25), &json!(0.0125), &json!(0.25))
        );
        assert_eq!(json["n-samples"]["medqa_4options"], json!({"original": 1273, "effective": 1273}));
        assert_eq!((&json["n-shot"]["medqa_4options"], &json["model_name_sanitized"]), (&json!(5), &json!("me__m")));
    }

    #[test]
    fn the_hubs_forms_hold_comparable_figures_only_and_say_what_is_left_out() {
        let found = results().to_eval_results("2026-11-28T00:00:00Z");
        assert!(found.text.starts_with(
            "- dataset:\n    id: GBaker/MedQA-USMLE-4-options-hf\n    task_id: medqa_4options\n  value: 25.00\n"
        ));
        assert_eq!(found.text.matches("- dataset:").count(), 1);
        assert_eq!(found.left_out[0].0, "starter_mcqa");
        let index = results().to_model_index("me/m").text;
        assert!(index.contains("type: GBaker/MedQA-USMLE-4-options-hf") && !index.contains("starter"), "{index}");
    }

    #[test]
    fn csv_and_the_harness_form_say_of_next_letters_which_prompt_they_follow_and_who_told_them() {
        let strategy = |told: &str, chat_template: bool| {
            let mut results = results();
            let more = json!({"strategy": "next-letter", "told": told, "chat_template": chat_template});
            results.settings.extend(more.as_object().unwrap().clone());
            let csv = results.to_csv().text;
            let row = csv.lines().nth(1).unwrap().to_owned();
            let said = row.split_once("lm-eval,").unwrap().1.rsplit_once(",5,").unwrap().0.to_owned();
            let json: Value = serde_json::from_str(&results.to_lm_eval("me/m", 7).text).unwrap();
            assert_eq!(json["config"]["strategy"], said.trim_matches('"'));
            said
        };
        let among = "letters among the most probable next tokens that";
        let ours = format!("{among} /v1/completions names");
        assert_eq!(strategy("scored", false), "\"next-letter, each letter scored\"");
        assert_eq!(strategy("completions", false), format!("\"next-letter, {ours}\""));
        assert_eq!(strategy("completions", true), format!("\"next-letter, chat template, {ours}\""));
        let theirs = format!("{among} /v1/chat/completions names (server template)");
        assert_eq!(strategy("chat", true), format!("\"next-letter, chat template, {theirs}\""));
    }

    /// By hand: 0.5 -+ 1.959964 * 0.01 is 0.480400 to 0.519600. Wilson's interval of 0 of 10 ends at 0.277533 (stats.rs), that of 2 of 2
    /// starts at 2 / (2 + 3.841459) = 0.342380, which a file of an earlier version does not hold.
    #[test]
    fn averages_have_intervals_and_clean_and_dirty_questions_stand_apart_in_tables_and_not_on_the_hub() {
        let mut results = results();
        let group = json!({"name": "multimedqa (size-weighted)", "acc": {"value": 0.5, "stderr": 0.01}, "n": 7045, "tasks": [],
            "comparability": COMPARABLE});
        let all_right = json!({"name": "mean", "acc": {"value": 1.0, "stderr": 0.0}, "n": 6, "tasks": [], "comparability": COMPARABLE});
        results.groups = vec![serde_json::from_value(group).unwrap(), serde_json::from_value(all_right).unwrap()];
        let clean = json!({"part": "clean: no training row holds the question", "n": 10,
            "acc": {"value": 0.0, "stderr": 0.0, "interval": {"low": 0.0, "high": 0.2775327998628892}}});
        let dirty = json!({"part": "dirty: a training row holds it", "n": 2, "acc": {"value": 1.0, "stderr": 0.0}});
        let parts = [clean, dirty].map(|part| serde_json::from_value::<Part>(part).unwrap());
        results.tasks[0].by_training = parts.to_vec();

        let csv = results.to_csv().text;
        let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
        let cell = |row: usize, name: &str| rows[row][rows[0].iter().position(|one| *one == name).unwrap()];
        let names: Vec<&str> = (1..rows.len()).map(|row| cell(row, "name")).collect();
        let apart = ["medqa_4options (clean)", "medqa_4options (dirty)"];
        assert_eq!(names[..4], ["medqa_4options", "starter_mcqa", "multimedqa (size-weighted)", "mean"], "{csv}");
        assert_eq!(names[4..], apart, "tasks and averages stand where they stood");
        for (row, expected, kind) in [
            (1, [0.225, 0.275], "clustered"),
            (3, [0.480400, 0.519600], "normal"),
            (5, [0.0, 0.277533], "wilson"),
            (6, [0.342380, 1.0], "wilson"),
        ] {
            let ends = ["low", "high"].map(|name| cell(row, name).parse::<f64>().unwrap());
            assert!(ends.iter().zip(expected).all(|(end, one)| (end - one).abs() < 1e-6), "{row}: {ends:?}");
            assert_eq!((cell(row, "interval_kind"), rows[row].len()), (kind, rows[0].len()), "{csv}");
        }
        assert_eq!((cell(4, "low"), cell(4, "high"), cell(4, "interval_kind")), ("", "", ""), "{csv}");
        let why =
            "not comparable: a part of the questions of medqa_4options: clean: no training row holds the question";
        assert_eq!((cell(5, "comparability"), cell(5, "n"), cell(5, "shots")), (why, "10", "5"));

        let markdown = results.to_markdown().text;
        let table = "| medqa_4options (clean)\\* | 10 | 0.00 ± 0.00 | 0.00 to 27.75 |\n| medqa_4options (dirty)\\* | 2 | 100.00 ± 0.00 \
                     | 34.24 to 100.00 |\n| starter_mcqa";
        assert!(markdown.contains(table), "{markdown}");
        let average = "| multimedqa (size-weighted) | 7045 | 50.00 ± 1.00 | 48.04 to 51.96 (normal) |\n| mean | 6 | 100.00 ± 0.00 |  |\n";
        assert!(markdown.contains(average), "{markdown}");
        let note = "; a part of a task's questions: not comparable (clean: no training row holds the question; dirty: a training row holds it).";
        assert!(markdown.ends_with(&format!("{note}\n")), "{markdown}");
        assert!(
            results
                .to_latex()
                .text
                .contains("medqa\\_4options (clean)$^{*}$ & 10 & $0.00 \\pm 0.00$ & 0.00--27.75 \\\\")
        );

        let json: Value = serde_json::from_str(&results.to_lm_eval("me/m", 7).text).unwrap();
        let metadata = &json["configs"]["medqa_4options"]["metadata"];
        assert_eq!((&metadata["parts"][0]["n"], &metadata["version"]), (&json!(10), &json!("1")));
        assert!(json["configs"]["starter_mcqa"]["metadata"].get("parts").is_none());
        assert_eq!(json["results"].as_object().unwrap().len(), 3, "two tasks and an average: a part is no task");
        for hub in [results.to_eval_results("2026"), results.to_model_index("me/m")] {
            assert!(hub.text.contains("25.00") && !hub.text.contains("clean"), "{}", hub.text);
        }
    }

    #[test]
    fn figures_of_answers_that_were_read_again_say_by_which_rule_in_every_form() {
        let mut again = results();
        again.settings.insert("rescored".into(), json!({"rule": "prompt_engine", "samples_sha256": "0"}));
        let words = "answers read again by the rule of prompt-engine";
        let rows = [
            again.to_markdown().text,
            again.to_latex().text,
            again.to_eval_results("").text,
            again.to_model_index("me/m").text,
        ];
        for text in rows {
            assert!(text.contains(&format!("lm-eval, loglikelihood, 5 shots, {words}")), "{text}");
        }
        assert!(
            again.to_csv().text.contains(&format!(",lm-eval ({words}),loglikelihood,5,")),
            "{}",
            again.to_csv().text
        );
        let json: Value = serde_json::from_str(&again.to_lm_eval("me/m", 7).text).unwrap();
        assert_eq!(json["config"]["protocol"], format!("x ({words})"));
        assert!(!results().to_markdown().text.contains("read again"));
    }

    #[test]
    fn tables_quote_what_their_form_would_misread() {
        let csv = results().to_csv().text;
        assert!(csv.contains("starter_mcqa,1,test,60,0.25,0.0125,0.225,0.275,0.25,0.0125,0,0,0.25,,,lm-eval,loglikelihood,5,\"not comparable: starter, \"\"words\"\"\",clustered\n"), "{csv}");
        let n_cells = csv.lines().next().unwrap().split(',').count();
        assert_eq!(csv.lines().nth(1).unwrap().split(',').count(), n_cells);
        assert!(results().to_latex().text.contains("medqa\\_4options & 1273 & $25.00 \\pm 1.25$ & 22.50--27.50 \\\\"));
        let markdown = results().to_markdown().text;
        assert!(markdown.contains("| starter_mcqa\\* | 60 | 25.00 ± 1.25 | 22.50 to 27.50 |"), "{markdown}");
        assert!(markdown.contains("lm-eval, loglikelihood, 5 shots. \\* starter_mcqa: not comparable"), "{markdown}");
    }
}
