//! Medprompt's neighbours by the vectors of a server.

use super::server::{Reply, Server, text};
use super::{lines, read, starter};
use crate::{root, run, stories};
use serde_json::{Value, json};
use std::path::Path;

/// Every test question lies beside the fourth question of the pool, all others of the pool at a right angle. The embedder is no input
/// of `results.json` but its name; its address stands in the record.
#[test]
fn the_examples_of_medprompt_are_found_by_the_vectors_of_an_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let rows = |name: &str| -> Vec<Value> { lines(&root().join("starter/mcqa").join(name)) };
    let near = rows("starter_mcqa_train.jsonl")[3].clone();
    let is_near = near["question"].as_str().unwrap().to_owned();
    let pool: Vec<String> =
        rows("starter_mcqa_train.jsonl").iter().map(|row| row["question"].as_str().unwrap().to_owned()).collect();
    let embedder = Server::start(move |_, asked| {
        let inputs = asked.body["input"].as_array().unwrap();
        let far = |text: &str| text != is_near && pool.iter().any(|known| known == text);
        let one = |(at, text): (usize, &Value)| {
            let vector = if far(text.as_str().unwrap()) { [0.0, 2.0] } else { [2.0, 0.0] };
            json!({"index": at, "embedding": vector})
        };
        Reply::Json(json!({"data": inputs.iter().enumerate().map(one).collect::<Vec<_>>()}))
    });
    // Whatever the options' order, some attempt answers it.
    let server = Server::start(|_, asked| {
        let n = asked.body["n"].as_u64().unwrap();
        super::server::texts(
            &(0..n).map(|at| format!("So.\nAnswer: [{}]", ["A", "B", "C", "D"][at as usize % 4])).collect::<Vec<_>>(),
        )
    });
    let out = dir.path().join("out");
    let address = format!("embedder={}", embedder.model());
    let args = ["eval", &server.model(), "--server-template", "--tasks", "starter_mcqa", "--strategy", "medprompt"];
    let starter = starter();
    let more = ["--shots", "1", "--limit", "3", "--data", &starter, "--out", out.to_str().unwrap(), "--set", &address];
    let (_, stderr, code) = run(&[&args[..], &more, &["--set", "pool_attempts=8"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let results = read(&out.join("results.json"));
    let notes = &results["tasks"][0]["notes"];
    assert_eq!(notes["neighbour_search"], "cosine of m, endpoint \"m\" \"weights\"");
    assert!(!results.to_string().contains("127.0.0.1"), "{results}");
    assert!(read(&out.join("record.json")).to_string().contains(&embedder.model()));
    for sample in lines(&out.join("samples.jsonl")) {
        let shots = sample["votes"][0]["shots"].to_string();
        assert!(shots.contains(near["id"].as_str().unwrap()), "{shots}");
    }
    // A server that cannot embed is refused by name before the model is asked anything.
    let n_asked = server.n_asked();
    let none = Server::start(|_, asked| match asked.path.as_str() {
        "/embeddings" => Reply::Status("501 Not Implemented", ""),
        _ => text("x"),
    });
    let address = format!("embedder={}", none.model());
    let out = dir.path().join("none");
    let more = ["--shots", "1", "--limit", "3", "--data", &starter, "--out", out.to_str().unwrap(), "--set", &address];
    let (_, stderr, code) = run(&[&args[..], &more].concat());
    assert!(code == 2 && stderr.contains("no embeddings on /v1/embeddings"), "{code} {stderr}");
    assert_eq!(server.n_asked(), n_asked);
}

/// What `aloe embed` or `aloe rerank` writes for rows.
fn asked_alone(command: &str, model: &Path, rows: &[Value]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let (requests, out) = (dir.path().join("r.jsonl"), dir.path().join("out.jsonl"));
    std::fs::write(&requests, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let args =
        [command, model.to_str().unwrap(), "--requests", requests.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (_, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    lines(&out)
}

/// The commands that embed and rerank alone say which examples a run must show: the four nearest by the last token of a causal model,
/// those put in order by a cross-encoder, the best of them last.
#[test]
fn a_causal_embedder_and_a_cross_encoder_choose_and_order_medprompts_examples() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cross_encoder = root().join("crates/aloe-model/tests/golden/tiny_bert");
    let rows = |name: &str| -> Vec<Value> { lines(&root().join("starter/mcqa").join(name)) };
    let (pool, tests) = (rows("starter_mcqa_train.jsonl"), rows("starter_mcqa_test.jsonl"));
    let text_row = |row: &Value| json!({"id": row["id"], "text": row["question"].as_str().unwrap()});
    let vectors = |rows: &[Value]| -> Vec<Vec<f64>> {
        let found = asked_alone("embed", &stories, &rows.iter().map(text_row).collect::<Vec<_>>());
        found.iter().map(|line| serde_json::from_value(line["embedding"].clone()).unwrap()).collect()
    };
    let (of_pool, of_tests) = (vectors(&pool), vectors(&tests[..2]));
    let nearest = |vector: &[f64]| -> Vec<usize> {
        let score = |at: usize| of_pool[at].iter().zip(vector).map(|(a, b)| a * b).sum::<f64>();
        let mut places: Vec<usize> = (0..pool.len()).collect();
        places.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        places
    };
    let reranked = |at: usize| -> Vec<usize> {
        let first = &nearest(&of_tests[at])[..4];
        let texts: Vec<&Value> = first.iter().map(|&place| &pool[place]["question"]).collect();
        let asked = json!({"id": "q", "query": tests[at]["question"], "texts": texts});
        let ranked = asked_alone("rerank", &cross_encoder, &[asked])[0]["ranked"].clone();
        serde_json::from_value::<Vec<usize>>(ranked).unwrap().into_iter().map(|place| first[place]).collect()
    };
    // It knows every answer: all of the pool is solved.
    let right: Vec<(String, String)> = pool
        .iter()
        .chain(&tests)
        .map(|row| {
            let option = ["opa", "opb", "opc", "opd"][row["cop"].as_u64().unwrap() as usize];
            [&row["question"], &row[option]].map(|text| text.as_str().unwrap().to_owned()).into()
        })
        .collect();
    let server = Server::start(move |_, asked| {
        let shown = asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
        let (_, option) = right.iter().find(|(question, _)| shown.contains(question.as_str())).unwrap();
        let line = shown.lines().rev().find(|line| line.trim_end().ends_with(option.as_str())).unwrap();
        let letter = line.chars().find(|c| "ABCD".contains(*c)).unwrap();
        let n = asked.body["n"].as_u64().unwrap_or(1);
        super::server::texts(&(0..n).map(|_| format!("So.\nAnswer: [{letter}]")).collect::<Vec<_>>())
    });
    let embedder = format!("embedder={}", stories.display());
    let reranker = format!("reranker={}", cross_encoder.display());
    let starter = starter();
    let asking = |name: &str, more: &[&str]| -> Vec<Vec<String>> {
        let out = dir.path().join(name);
        let args = ["eval", &server.model(), "--server-template", "--tasks", "starter_mcqa", "--strategy", "medprompt"];
        let set = ["--shots", "2", "--limit", "2", "--data", &starter, "--out", out.to_str().unwrap()];
        let encoder = ["--set", "pool_attempts=1", "--set", &embedder];
        let (_, stderr, code) = run(&[&args[..], &set, &encoder, more].concat());
        assert_eq!(code, 0, "{stderr}");
        let notes = read(&out.join("results.json"))["tasks"][0]["notes"].clone();
        assert_eq!(notes["pool_solved"], json!(pool.len()), "{notes}");
        let by = if more.is_empty() { "" } else { ", reranked by tiny_bert" };
        assert_eq!(notes["neighbour_search"], format!("cosine of stories260K{by}"));
        let shots = |sample: &Value| serde_json::from_value(sample["votes"][0]["shots"].clone()).unwrap();
        lines(&out.join("samples.jsonl")).iter().map(shots).collect()
    };
    let ids = |places: &[usize]| -> Vec<String> {
        places[..2].iter().rev().map(|&place| pool[place]["id"].as_str().unwrap().to_owned()).collect()
    };
    let by_cosine = asking("cosine", &[]);
    assert_eq!(by_cosine, [0, 1].map(|at| ids(&nearest(&of_tests[at]))));
    let by_both = asking("both", &["--set", &reranker, "--set", "rerank_factor=2"]);
    assert_eq!(by_both, [0, 1].map(|at| ids(&reranked(at))));
    assert_ne!(by_cosine, by_both, "the cross-encoder changes nothing here");
}

#[test]
fn an_embedder_or_reranker_of_another_architecture_is_refused_with_its_file_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, out) = (dir.path().join("rob"), dir.path().join("out"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.json"), "{\"model_type\": \"roberta\"}").unwrap();
    let (server, starter) = (Server::start(|_, _| text("Answer: [A]")), starter());
    let args = ["eval", &server.model(), "--server-template", "--tasks", "starter_mcqa", "--strategy", "medprompt"];
    let refused = |what: &str, settings: &[&str], known: &str| {
        let more = ["--data", &starter, "--out", out.to_str().unwrap()];
        let (_, stderr, code) = run(&[&args[..], &more, settings].concat());
        let named = format!("the {what} {} cannot be used", folder.display());
        let words = [named.as_str(), "rob/config.json: model_type", "roberta", known];
        assert!(code == 2 && words.iter().all(|word| stderr.contains(word)), "{code} {stderr}");
        assert!(server.n_asked() == 0 && !out.exists());
    };
    let embedder = format!("embedder={}", folder.display());
    refused("embedder", &["--set", &embedder], "an embedder is bert, llama, qwen2 or mistral");
    let encoder = root().join("crates/aloe-model/tests/golden/tiny_bert");
    let (encoder, reranker) = (format!("embedder={}", encoder.display()), format!("reranker={}", folder.display()));
    refused("reranker", &["--set", &encoder, "--set", &reranker], "a reranker is a BertForSequenceClassification");
}
