//! Medprompt's neighbours by the vectors of a server.

use super::server::{Reply, Server, text};
use super::{lines, read, starter};
use crate::{root, run};
use serde_json::{Value, json};

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
