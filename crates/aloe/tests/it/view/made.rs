//! Made-up runs of any length, in the files that an evaluation writes.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Tasks of a made-up run.
pub(crate) const TASKS: [&str; 3] = ["medqa_4options", "pubmedqa", "careqa_en"];
/// Words of made-up texts.
const WORDS: [&str; 16] = [
    "fever", "patient", "with", "insulin", "renal", "the", "of", "chronic", "artery", "dose", "therapy", "left",
    "presents", "because", "cardiac", "Answer",
];

/// A made-up sample, as the tests count it.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) task: &'static str,
    pub(crate) id: String,
    pub(crate) subject: String,
    pub(crate) key: usize,
    pub(crate) predicted: Option<usize>,
    pub(crate) tie: bool,
    pub(crate) refused: Option<String>,
    /// Order shown, text, answer; none for a run of log-likelihoods.
    pub(crate) votes: Vec<(Vec<usize>, String, Option<usize>)>,
    pub(crate) stem: String,
    pub(crate) choices: Vec<String>,
}

impl Made {
    pub(crate) fn is_right(&self) -> bool {
        self.predicted == Some(self.key)
    }
}

/// What a made-up classifier says a question is about: one of 14 fields.
pub(crate) fn field(made: &Made) -> String {
    format!("field {}", made.stem.len() % 14)
}

/// Whether made-up training rows hold the question.
pub(crate) fn is_dirty(made: &Made) -> bool {
    made.key == 3
}

/// The questions of each name, as `results.json` has the parts of a task; the interval is made up, and stands on a page as it stands here.
fn parts(samples: &[&Made], name_of: &dyn Fn(&Made) -> String) -> Value {
    let names: BTreeSet<String> = samples.iter().map(|one| name_of(one)).collect();
    let part = |name: &String| {
        let of_part: Vec<&&Made> = samples.iter().filter(|one| name_of(one) == *name).collect();
        let value = of_part.iter().filter(|one| one.is_right()).count() as f64 / of_part.len() as f64;
        let acc =
            json!({ "value": value, "stderr": 0.01, "interval": { "low": value / 2.0, "high": value / 2.0 + 0.5 } });
        json!({ "part": name, "n": of_part.len(), "acc": acc })
    };
    names.iter().map(part).collect()
}

/// A counter's next value, mixed (Steele et al. 2014, splitmix64's finaliser).
pub(crate) fn mixed(at: usize, salt: usize) -> usize {
    let mut z = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(salt as u64 * 0x1234_5678_9abc_def1);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize >> 1
}

fn text(at: usize, salt: usize, n_words: usize) -> String {
    let word = |word: usize| WORDS[mixed(at * 64 + word, salt) % WORDS.len()];
    (0..n_words).map(word).collect::<Vec<_>>().join(" ")
}

/// Sample `at` of a run: some are unparsed, some refused, some tied; `salt` tells runs apart, the questions are the same in all.
pub(crate) fn made(at: usize, n_votes: usize, salt: usize) -> Made {
    let predicted = (mixed(at, salt + 1) % 4 + mixed(at, salt + 2) % 2) % 5;
    let refused = mixed(at, salt + 3).is_multiple_of(29);
    let predicted = (predicted < 4 && !refused).then_some(predicted);
    let vote = |vote: usize| {
        let mut order = vec![0, 1, 2, 3];
        order.rotate_left(mixed(at * 8 + vote, salt) % 4);
        let answer =
            if vote == 0 { predicted } else { predicted.filter(|_| !mixed(at * 8 + vote, 5).is_multiple_of(3)) };
        (order, text(at, salt + vote, 60), answer)
    };
    Made {
        task: TASKS[at % 3],
        id: format!("q-{:05}", mixed(at, 0) % 100_000 * 1000 + at % 1000),
        subject: ["", "cardiology", "renal"][at % 7 % 3].into(),
        key: mixed(at, 77) % 4,
        predicted,
        tie: n_votes > 1 && predicted.is_some() && mixed(at, salt + 4).is_multiple_of(11),
        refused: refused.then(|| "longer than the context".into()),
        votes: if refused { Vec::new() } else { (0..n_votes).map(vote).collect() },
        stem: text(at, 1000, 40),
        choices: (0..4).map(|choice| text(at, 2000 + choice, 3)).collect(),
    }
}

/// `n` samples.
pub(crate) fn all(n: usize, n_votes: usize, salt: usize) -> Vec<Made> {
    (0..n).map(|at| made(at, n_votes, salt)).collect()
}

/// A line of `samples.jsonl`.
pub(crate) fn sample(made: &Made, index: usize) -> Value {
    let mut row = json!({
        "task": made.task, "id": made.id, "index": index, "subject": made.subject, "n_choices": made.choices.len(), "key": made.key,
        "predicted": made.predicted, "correct": made.is_right(), "prompt_sha256": "0".repeat(64), "tie": made.tie,
    });
    if made.votes.is_empty() && made.refused.is_none() {
        let logp = |option| if made.predicted == Some(option) { -0.5 } else { -1.5 - option as f64 };
        row["choices"] =
            (0..4).map(|option| json!({ "ids": [7], "logps": [logp(option)], "logp": logp(option) })).collect();
    }
    if let Some(reason) = &made.refused {
        row["refused"] = json!(reason);
    }
    let vote = |(order, text, answer): &(Vec<usize>, String, Option<usize>)| json!({ "order": order, "shots": ["worked example"], "text": text, "finish_reason": "stop", "answer": answer, "logp": -12.5 });
    if !made.votes.is_empty() {
        row["votes"] = made.votes.iter().map(vote).collect();
    }
    row
}

/// A line of `questions.jsonl`.
pub(crate) fn question(made: &Made) -> Value {
    let context = (made.task == "pubmedqa").then_some("An abstract.");
    json!({ "task": made.task, "id": made.id, "stem": made.stem, "context": context, "choices": made.choices, "key": made.key,
        "subject": made.subject })
}

/// Writes JSON lines.
pub(crate) fn write_lines(path: &Path, rows: impl Iterator<Item = Value>) {
    let mut out = BufWriter::new(File::create(path).unwrap());
    rows.for_each(|row| writeln!(out, "{row}").unwrap());
}

/// A finished run's folder.
pub(crate) fn run(dir: &Path, name: &str, samples: &[Made]) -> PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    let task = |task: &&str| {
        let of_task: Vec<&Made> = samples.iter().filter(|one| one.task == *task).collect();
        let n = of_task.len().max(1);
        let acc = of_task.iter().filter(|one| one.is_right()).count() as f64 / n as f64;
        let places = |place: &dyn Fn(&Made) -> Option<usize>| {
            (0..4).map(|at| of_task.iter().filter(|one| place(one) == Some(at)).count()).collect::<Vec<_>>()
        };
        json!({
            "task": task, "split": "test", "comparability": "not comparable: made up", "n": n, "chance": 0.25, "majority_key": 0.25,
            "acc": { "value": acc, "stderr": (acc * (1.0 - acc) / n as f64).sqrt() },
            "n_unparsed": of_task.iter().filter(|one| one.predicted.is_none() && one.refused.is_none()).count(),
            "by_subject": parts(&of_task, &|one| one.subject.clone()), "by_specialty": parts(&of_task, &field),
            "by_training": parts(&of_task, &|one| (if is_dirty(one) { "dirty: held" } else { "clean: not held" }).to_owned()),
            "chosen_positions": places(&|one| one.predicted), "key_positions": places(&|one| Some(one.key)),
        })
    };
    let results = json!({
        "model": { "name": name, "weights": "0", "text": "1", "dtype": "f32", "path": "none" },
        "settings": { "strategy": if samples[0].votes.is_empty() { "loglikelihood" } else { "sc-cot" }, "seed": 0 },
        "tasks": TASKS.iter().map(task).collect::<Vec<_>>(), "groups": [],
    });
    std::fs::write(folder.join("results.json"), results.to_string()).unwrap();
    write_lines(&folder.join("samples.jsonl"), samples.iter().enumerate().map(|(at, one)| sample(one, at)));
    write_lines(&folder.join("questions.jsonl"), samples.iter().map(question));
    folder
}
