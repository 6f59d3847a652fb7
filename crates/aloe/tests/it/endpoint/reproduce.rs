//! `recipes/reproduce-alpha.toml` against a server that answers at the published rates, and at rates three points lower.

use super::read;
use super::server::{Asked, Reply, Server, prompt_ids};
use crate::{root, run, stories};
use aloe_task::wording::{ChatForm, choice_prompt};
use aloe_task::{Protocol, Split, Subject, Task};
use aloe_text::TextModel;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The leaderboard's fp32 row (aloe.md 7(b)).
fn published() -> Vec<(Task, f64)> {
    let mmlu = [68.15, 74.72, 77.08, 64.16, 79.0, 72.79];
    let subjects = Subject::ALL.into_iter().zip(mmlu).map(|(subject, rate)| (Task::Mmlu(subject), rate));
    [(Task::Medqa4, 62.45), (Task::Medmcqa, 58.76), (Task::Pubmedqa, 77.0)].into_iter().chain(subjects).collect()
}

/// Log-probability a token of each prompt with its option, by the ids of both: the first questions of each task are answered rightly, as
/// many as the rate says.
fn answers(data: &Path, text: &TextModel, lower: f64) -> HashMap<Vec<u32>, f64> {
    let mut found = HashMap::new();
    for (task, rate) in published() {
        let questions = task.load(data, Split::Test).unwrap();
        assert_eq!(Some(questions.len()), task.published_test_len());
        let n_right = ((rate - lower) / 100.0 * questions.len() as f64).round() as usize;
        for (at, question) in questions.iter().enumerate() {
            let prompt = choice_prompt(task, Protocol::LmEval, question, &[], ChatForm::default()).unwrap();
            let chosen = if at < n_right { question.key } else { (question.key + 1) % question.choices.len() };
            for (option, continuation) in prompt.continuations.iter().enumerate() {
                let (ids, after) = text.encode_joint(&prompt.shown.to_digest(), continuation).unwrap();
                // Options of several tokens compete by their sum.
                let logp = if option == chosen { -0.1 } else { -20.0 };
                found.insert([ids, after].concat(), logp);
            }
        }
    }
    found
}

fn reply(answers: &HashMap<Vec<u32>, f64>, asked: &Asked) -> Reply {
    let ids = prompt_ids(asked);
    let logp = answers.get(&ids).copied().unwrap_or(-1.5);
    let n = ids.len() + asked.body["max_tokens"].as_u64().unwrap_or(0) as usize;
    let mut logps = vec![json!(logp); n];
    logps[0] = Value::Null;
    let mut tops = vec![json!({ "best": logp + 0.5 }); n];
    tops[0] = Value::Null;
    let mut names: Vec<String> = ids.iter().map(|id| format!("token_id:{id}")).collect();
    names.resize(n, "new".to_owned());
    let logprobs = json!({"token_logprobs": logps, "top_logprobs": tops, "tokens": names});
    Reply::Json(
        json!({"model": "m", "choices": [{"text": "", "logprobs": logprobs}], "usage": {"prompt_tokens": ids.len()}}),
    )
}

/// Made-up questions in the sets' own files, as many as are published: an expectation is not judged on fewer.
fn made_up(data: &Path) {
    let write = |name: &str, text: String| {
        let path = data.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let lines = |n: usize, row: &dyn Fn(usize) -> Value| (0..n).map(|i| format!("{}\n", row(i))).collect::<String>();
    let medqa = |i: usize| {
        let letter = ["A", "B", "C", "D"][i % 4];
        json!({"question": format!("M {i}?"), "options": {"A": "w", "B": "x", "C": "y", "D": "z"}, "answer_idx": letter})
    };
    write("medqa/phrases_no_exclude_test.jsonl", lines(1273, &medqa));
    let medmcqa = |i: usize| json!({"id": format!("{i}"), "question": format!("C {i}?"), "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": i % 4});
    write("medmcqa/validation.jsonl", lines(4183, &medmcqa));
    let (mut rows, mut listed) = (serde_json::Map::new(), serde_json::Map::new());
    for i in 0..500 {
        let decision = ["yes", "no", "maybe"][i % 3];
        rows.insert(
            i.to_string(),
            json!({"QUESTION": format!("P {i}?"), "CONTEXTS": [format!("c {i}")], "final_decision": decision}),
        );
        listed.insert(i.to_string(), json!(decision));
    }
    write("pubmedqa/ori_pqal.json", Value::Object(rows).to_string());
    write("pubmedqa/test_ground_truth.json", Value::Object(listed).to_string());
    for subject in Subject::ALL {
        let n = Task::Mmlu(subject).published_test_len().unwrap();
        let name = subject.name();
        let row = |i: usize| format!("{name} {i}?,w,x,y,z,{}\n", ["A", "B", "C", "D"][i % 4]);
        write(&format!("mmlu/data/test/{name}_test.csv"), (0..n).map(row).collect());
    }
}

/// The recipe as it stands, with another address, tokenizer and data.
fn recipe(dir: &Path, data: &Path, server: &Server, stories: &Path, more: &str) -> PathBuf {
    let text = std::fs::read_to_string(root().join("recipes/reproduce-alpha.toml")).unwrap();
    let change = |text: String, from: &str, to: &str| {
        assert!(text.contains(from), "{from} is not in the recipe");
        text.replace(from, to)
    };
    let text = change(text, "http://127.0.0.1:8000/v1#HPAI-BSC/Llama3-Aloe-8B-Alpha", &server.model());
    let text = change(text, "models/llama3-aloe-8b-alpha\"\n", &format!("{}\"\n{more}", stories.display()));
    let text = change(text, "data = \"$ALOE_DATA\"", &format!("data = \"{}\"", data.display()));
    let text = change(text, "root = \"..\"", "root = \".\"");
    let path = dir.join("reproduce.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_published_rates_pass_and_rates_three_points_lower_fail_in_every_figure() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    made_up(&data);
    let text = TextModel::open(&stories).unwrap();
    for (lower, more, n_passed) in [(0.0, "", 4), (3.0, "", 0), (0.0, "limit = 100\n", 0)] {
        let answers = answers(&data, &text, lower);
        let server = Server::start(move |_, asked| reply(&answers, asked));
        let recipe = recipe(dir.path(), &data, &server, &stories, more);
        let out = dir.path().join(format!("out-{lower}-{}", more.len()));
        let (stdout, stderr, code) = run(&["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert_eq!(code, i32::from(n_passed == 0), "{lower} lower: {stdout}{stderr}");
        let results = read(&out.join("zero-shot/results.json"));
        let expected = results["expected"].as_array().unwrap();
        assert_eq!(expected.len(), 4);
        for one in expected {
            assert_eq!(one["passed"], json!(n_passed == 4), "{one}");
            assert_eq!(one.get("not_judged").is_some(), !more.is_empty(), "{one}");
        }
        assert_eq!(stderr.contains("what was expected did not come out"), n_passed == 0, "{stderr}");
        assert!(stdout.contains(&format!("{n_passed} of 4 expected")), "{stdout}");
    }
}
