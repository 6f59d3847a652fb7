//! A run of generated answers as prompt_engine's output folder, so that its users' scripts read it: `MODEL/EMBEDDING or SC-COT/DATASET/
//! [SUBJECT/]ENSEMBLES/Kk/generations.json` and `evaluation.json` (its name bears the time there), in the form of its newest revision
//! (21e68bd). A sample without an answer has no entry there, as in its own files; ours stand in `samples.jsonl`.

use crate::report::EvalResults;
use crate::{AskedQuestion, Error, Result, Sample, Vote};
use aloe_record::atomic;
use aloe_task::datasets::prompt_engine;
use aloe_task::wording::prompt_engine::description;
use aloe_task::{ChoiceOrder, Question, Split, Task, letter};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Writes the folder of each task below `out`; the files written.
pub fn write(results: &EvalResults, samples: &[Sample], asked: &[AskedQuestion], out: &Path) -> Result<Vec<PathBuf>> {
    let questions: HashMap<(&str, &str), &AskedQuestion> =
        asked.iter().map(|question| ((question.task.as_str(), question.id.as_str()), question)).collect();
    let mut written = Vec::new();
    for task in &results.tasks {
        let of_task: Vec<&Sample> = samples.iter().filter(|sample| sample.task == task.task).collect();
        if of_task.iter().all(|sample| sample.votes.is_empty()) {
            let reason =
                format!("{}: prompt_engine's folder holds generated answers, and this run scored options", task.task);
            return Err(Error::Config(reason));
        }
        let folder = out.join(folder_of(results, &task.task));
        std::fs::create_dir_all(&folder).map_err(aloe_record::Error::io("create", &folder))?;
        let mut entries = Map::new();
        for sample in &of_task {
            let question = questions.get(&(sample.task.as_str(), sample.id.as_str())).ok_or_else(|| {
                Error::Unpaired(format!("{}/{} is in samples.jsonl and not in questions.jsonl", sample.task, sample.id))
            })?;
            entries.insert(sample.id.clone(), entry(question, sample));
        }
        for (name, value) in
            [("generations.json", Value::Object(entries)), ("evaluation.json", evaluation(&of_task, results))]
        {
            atomic::write_json(&folder.join(name), &value)?;
            written.push(folder.join(name));
        }
    }
    Ok(written)
}

/// `Tiny/SC-COT/medqa_4opt/5/3k`.
fn folder_of(results: &EvalResults, task: &str) -> PathBuf {
    let setting = |key: &str| results.settings.get(key).cloned().unwrap_or_default();
    let plain = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let how = match setting("strategy").as_str() {
        Some("medprompt") => plain(setting("embedder").as_str().unwrap_or("lexical")),
        _ => "SC-COT".to_owned(),
    };
    let known = Task::all().into_iter().find(|known| known.name() == task);
    let (dataset, subject) = match known {
        Some(Task::Mmlu(subject)) => ("mmlu".to_owned(), Some(subject.name())),
        Some(known) => {
            let file = prompt_engine::file(known, Split::Test);
            (file.and_then(|file| Some(file.split('/').next()?.to_owned())).unwrap_or_else(|| task.to_owned()), None)
        }
        None => (task.to_owned(), None),
    };
    let mut folder = PathBuf::from(plain(&results.model.name)).join(how).join(dataset);
    folder.extend(subject);
    let reranker = setting("reranker").as_str().map_or_else(String::new, |name| format!("_{}", plain(name)));
    folder.join(setting("n_samples").to_string()).join(format!("{}k{reranker}", setting("shots")))
}

fn entry(asked: &AskedQuestion, sample: &Sample) -> Value {
    let question = Question {
        id: asked.id.clone(),
        stem: asked.stem.clone(),
        context: asked.context.clone(),
        choices: asked.choices.clone(),
        key: asked.key,
        subject: asked.subject.clone(),
        explanation: None,
        source: String::new(),
    };
    let options: Map<String, Value> =
        question.choices.iter().enumerate().map(|(i, choice)| (letter(i).to_string(), json!(choice))).collect();
    let mut entry =
        json!({"question": question.stem, "correct_answer": letter(question.key).to_string(), "options": options});
    if let Some(context) = &question.context {
        entry["context"] = json!(context.split('\n').collect::<Vec<_>>());
    }
    let shots = sample.votes.first().map_or(&[][..], |vote| vote.shots.as_slice());
    entry["examples"] = shots.iter().map(|id| json!({ "id": id })).collect();
    let n_prompt = sample.prompt_ids.len();
    entry["generations"] = sample.votes.iter().filter_map(|vote| generation(&question, vote, n_prompt)).collect();
    entry
}

/// `None` for a sample without an answer.
fn generation(question: &Question, vote: &Vote, n_shared: usize) -> Option<Value> {
    let answer = vote.answer?;
    let order = ChoiceOrder::from_indices(vote.order.clone())?;
    let n_prompt = n_shared.max(vote.prompt_ids.len());
    let n_generated = vote.ids.as_ref().map_or(0, Vec::len);
    Some(json!({
        "description": description(question, &order), "response": vote.text,
        "original_answer": letter(order.shown(answer)).to_string(), "result": letter(answer).to_string(),
        "order": order.letters(), "retries": vote.n_retries + 1,
        "tokens": {"prompt": n_prompt, "generated": n_generated, "total": n_prompt + n_generated}, "metrics": null,
    }))
}

/// What its `evaluate` says of these answers.
fn evaluation(samples: &[&Sample], results: &EvalResults) -> Value {
    let mut found = figures(samples);
    found["config"] = json!({"config": {
        "ensembles": results.settings.get("n_samples"), "k": results.settings.get("shots"), "shuffle": results.settings.get("shuffle"),
        "embedding": results.settings.get("embedder"),
    }, "sampling_params": results.settings.get("sampling")});
    found
}

/// Counts as its `evaluate` has them: a question without a vote is wrong and names no option; `options` counts letters as shown.
pub fn figures(samples: &[&Sample]) -> Value {
    let n = samples.len();
    let mean = |sum: usize| sum as f64 / n.max(1) as f64;
    let n_right = samples.iter().filter(|sample| sample.correct).count();
    let different =
        |sample: &&Sample| sample.votes.iter().filter_map(|vote| vote.answer).collect::<BTreeSet<_>>().len();
    let ties = |is_right: bool| samples.iter().filter(|sample| sample.tie && sample.correct == is_right).count();
    let mut options: Map<String, Value> = Map::new();
    for vote in samples.iter().flat_map(|sample| &sample.votes) {
        let shown = vote.answer.and_then(|answer| vote.order.iter().position(|&original| original == answer));
        if let Some(position) = shown {
            let count = options.entry(letter(position).to_string()).or_insert(json!(0));
            *count = json!(count.as_u64().unwrap_or(0) + 1);
        }
    }
    json!({
        "count": n, "accuracy": mean(n_right),
        "no_parsed_answers": samples.iter().filter(|sample| sample.predicted.is_none()).count(),
        "mean_different_answers": mean(samples.iter().map(different).sum()),
        "draws": {"total": ties(true) + ties(false), "correct": ties(true), "incorrect": ties(false)}, "options": options,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vote::majority;

    fn place(letter: &Value) -> Option<usize> {
        letter.as_str().map(|letter| usize::from(letter.as_bytes()[0] - b'A'))
    }

    /// The golden vote lists of its `evaluate` (`oracles/prompt_engine.py`).
    #[test]
    fn the_figures_are_those_of_its_evaluate() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/prompt_engine_votes.json")).unwrap();
        let rows = golden["rows"].as_array().unwrap();
        for row in rows.iter().filter(|row| row.get("raises").is_none()) {
            let samples: Vec<Sample> = row["questions"].as_array().unwrap().iter().map(sample).collect();
            let found = figures(&samples.iter().collect::<Vec<_>>());
            for key in ["count", "no_parsed_answers", "draws", "options"] {
                assert_eq!(found[key], row[key], "{key}: {row}");
            }
            for key in ["accuracy", "mean_different_answers"] {
                let apart = found[key].as_f64().unwrap() - row[key].as_f64().unwrap();
                assert!(apart.abs() < 1e-12, "{key}: {row}");
            }
        }
    }

    /// A vote's option and the letter it was shown under; the others in any order.
    fn sample(question: &Value) -> Sample {
        let votes = question["votes"].as_array().into_iter().flatten();
        let pairs: Vec<(usize, usize)> =
            votes.map(|vote| (place(&vote[0]).unwrap(), place(&vote[1]).unwrap())).collect();
        let outcome = majority(&pairs.iter().map(|(answer, _)| Some(*answer)).collect::<Vec<_>>());
        let key = place(&question["gold"]).unwrap();
        let vote = |&(answer, shown): &(usize, usize)| {
            let mut order: Vec<usize> = (0..5).collect();
            order.swap(answer, shown);
            json!({"order": order, "shots": [], "text": "", "finish_reason": "stop", "answer": answer})
        };
        serde_json::from_value(json!({
            "task": "", "id": "", "index": 0, "subject": "", "n_choices": 5, "key": key, "predicted": outcome.answer,
            "correct": outcome.answer == Some(key), "prompt_sha256": "", "tie": outcome.tie,
            "votes": pairs.iter().map(vote).collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    /// Keys and kinds of its own files (`prompt_engine_run.json`, newest revision) but for what only its engine knows: the engine's
    /// metrics, the similarity of examples, lengths and times.
    #[test]
    fn an_entry_has_its_keys() {
        let asked = AskedQuestion {
            task: "medqa_4options".into(),
            id: "7".into(),
            stem: "Which?".into(),
            context: None,
            choices: ["w", "x", "y", "z"].map(String::from).to_vec(),
            key: 1,
            subject: String::new(),
        };
        let one = sample(&json!({"gold": "B", "votes": [["B", "A"]]}));
        let mut one = one;
        one.votes[0].order = vec![1, 0, 2, 3];
        one.votes[0].shots = vec!["e".into()];
        let entry = entry(&asked, &one);
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/prompt_engine_run.json")).unwrap();
        let run = golden["runs"].as_array().unwrap().iter().find(|run| run["revision"] == "21e68bd").unwrap();
        let files = run["files"].as_object().unwrap();
        let (_, paths) = files.iter().find(|(name, _)| name.ends_with("/generations.json")).unwrap();
        let skipped = ["/scores", "/metrics/"];
        for path in paths.as_array().unwrap().iter().map(|path| path.as_str().unwrap()) {
            let (path, kind) = path.rsplit_once(": ").unwrap();
            let Some(path) = path.strip_prefix("/*") else { continue };
            if path.is_empty() || skipped.iter().any(|part| path.contains(part)) {
                continue;
            }
            let value =
                entry.pointer(&path.replace("/*", "/0")).unwrap_or_else(|| panic!("{path} is missing: {entry}"));
            let is_kind = match kind {
                "str" => value.is_string(),
                "int" => value.is_u64(),
                "list" => value.is_array(),
                _ => value.is_object() || value.is_null(),
            };
            assert!(is_kind, "{path} is no {kind}: {value}");
        }
    }
}
