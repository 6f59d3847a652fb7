//! A data stage that asks models: a judge and two scorers are loopback servers whose rules are written here, and what they make of the rows
//! is counted again by hand. The embedder is all-MiniLM-L6-v2.

use super::lines;
use super::server::{Asked, Reply, Server, prompt_ids, text};
use crate::run;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A folder of the models, or `None` (said aloud) where they are not at hand.
pub(super) fn model(name: &str) -> Option<String> {
    match std::env::var("ALOE_MODELS") {
        Ok(models) => Some(PathBuf::from(models).join(name).display().to_string()),
        Err(_) => {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
            eprintln!("not run: ALOE_MODELS is not set");
            None
        }
    }
}

pub(super) fn write_lines(path: &Path, rows: &[Value]) {
    std::fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

pub(super) fn row(asked: &str, answer: &str) -> Value {
    json!({"instruction": asked, "output": answer})
}

/// Runs a recipe of one data stage over `rows`, with `more` settings.
pub(super) fn data(dir: &Path, rows: &[Value], more: &str) -> (String, String, i32) {
    write_lines(&dir.join("rows.jsonl"), rows);
    let recipe = dir.join("recipe.toml");
    let source = "sources = [{ name = \"s\", path = \"rows.jsonl\", licence = \"mit\" }]";
    let text = format!("name = \"x\"\n[[stage]]\nkind = \"data\"\nname = \"d\"\n{source}\n{more}\n");
    std::fs::write(&recipe, text).unwrap();
    let out = dir.join("out");
    run(&["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()])
}

const HELD: &str = "A boy of nine drinks a great deal, passes much urine and has lost weight although he eats well. Which hormone does he lack?";

/// One row says the same in other words, one is near in topic, one the judge says nothing about, one is far from all.
fn near_rows() -> Vec<Value> {
    vec![
        row(
            "A nine-year-old boy is thirsty, urinates often and loses weight despite a good appetite. Which hormone is missing?",
            "Insulin.",
        ),
        row("A boy of nine eats well and has gained weight. Which hormone makes him hungry?", "Ghrelin."),
        row(
            "Which hormone does a boy lack who drinks and passes urine in great amounts, with dilute urine?",
            "Vasopressin.",
        ),
        row("How is a plaster cast put on a broken arm?", "Layer by layer."),
    ]
}

#[test]
fn a_judges_word_decides_which_near_rows_go_and_silence_is_counted_and_named() {
    let Some(minilm) = model("all-minilm-l6-v2") else { return };
    let dir = tempfile::tempdir().unwrap();
    write_lines(&dir.path().join("held.jsonl"), &[json!({"question": HELD})]);
    let server = Server::start(|_, asked: &Asked| {
        let messages = asked.body["messages"].as_array().unwrap();
        let system = messages[0]["content"].as_str().unwrap();
        assert!(system.starts_with("I will now give you two questions.") && system.contains("'True'"), "{system}");
        let user = messages[1]["content"].as_str().unwrap();
        assert!(user.starts_with(&format!("part1: {{\n{HELD}\n}}\npart2: {{\n")) && user.ends_with("\n}"), "{user}");
        text(match user {
            _ if user.contains("despite a good appetite") => "True",
            _ if user.contains("makes him hungry") => "False",
            _ => "They are alike, I think.",
        })
    });
    let from = format!("from = {{ embedder = \"{minilm}\", judge = \"{}\" }}\n", server.model());
    let more = "decontaminate = [\"held.jsonl\"]\nmeaning = { threshold = 0.99, judge_from = 0.3, neighbours = 9, judge_attempts = 3 }";
    let (stdout, stderr, code) = data(dir.path(), &near_rows(), &format!("{from}{more}"));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let out = dir.path().join("out/d");
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(out.join("manifest.json")).unwrap()).unwrap();
    let meaning = &manifest["meaning"];
    for (name, n) in [("n_same", 1), ("n_different", 1), ("n_unjudged", 1), ("n_hits", 1), ("n_texts", 4)] {
        assert_eq!(meaning[name], n, "{name} of {meaning}");
    }
    assert_eq!(server.n_asked(), 1 + 1 + 3, "one reply each, and three tries at a verdict");
    assert_eq!(lines(&out.join("train.jsonl")).len(), 3);
    let overlaps = lines(&out.join("overlaps.jsonl"));
    assert_eq!(
        (overlaps.len(), &overlaps[0]["test"], &overlaps[0]["row"]),
        (1, &json!("judge"), &json!("s/rows.jsonl:1"))
    );
    let unjudged = lines(&out.join("unjudged.jsonl"));
    assert_eq!(unjudged.len(), 1);
    assert_eq!(
        (&unjudged[0]["row"], &unjudged[0]["reply"]),
        (&json!("s/rows.jsonl:3"), &json!("They are alike, I think."))
    );
    assert_eq!(unjudged[0]["is_dropped"], false);
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("gave no verdict on 1"));
}

#[test]
fn without_a_judge_the_threshold_decides_and_a_judge_without_an_embedder_is_refused() {
    let Some(minilm) = model("all-minilm-l6-v2") else { return };
    let dir = tempfile::tempdir().unwrap();
    write_lines(&dir.path().join("held.jsonl"), &[json!({"question": HELD})]);
    let more = format!(
        "from = {{ embedder = \"{minilm}\" }}\ndecontaminate = [\"held.jsonl\"]\nmeaning = {{ threshold = 0.87 }}"
    );
    let (stdout, stderr, code) = data(dir.path(), &near_rows(), &more);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let overlaps = lines(&dir.path().join("out/d/overlaps.jsonl"));
    let found: Vec<(&Value, &Value)> = overlaps.iter().map(|hit| (&hit["row"], &hit["test"])).collect();
    assert_eq!(found, [(&json!("s/rows.jsonl:1"), &json!("embedding"))], "{overlaps:?}");
    for (more, words) in [
        ("from = { judge = \"./m\" }", "the input `judge` is shown what the input `embedder` finds"),
        ("meaning = {}", "`meaning` needs the input `embedder`"),
        ("from = { embedder = \"./m\" }", "needs questions to compare with"),
        ("quality = {}", "`quality` needs the input `scorer`"),
        ("from = { scorer = \"./m\" }", "of no use without `quality = {}`"),
        ("quality = { drop_lowest = 1.0 }", "must be at least 0 and below 1"),
    ] {
        let (_, stderr, code) = data(dir.path(), &near_rows(), more);
        assert!(code == 2 && stderr.contains(words), "{more}: {stderr}");
    }
}

/// The answer of a server that scores: every token has log-probability -1 but the last, which `last` gives; `None` refuses.
pub(super) fn scores(asked: &Asked, last: impl Fn(&[u32]) -> Option<f64>) -> Reply {
    let ids = prompt_ids(asked);
    let Some(last) = last(&ids) else { return Reply::Status("400 Bad Request", "") };
    let mut logps = vec![Value::Null];
    logps.resize(ids.len() - 1, json!(-1.0));
    logps.push(json!(last));
    let tops: Vec<Value> =
        logps.iter().map(|logp| if logp.is_null() { Value::Null } else { json!({ "best": logp }) }).collect();
    let names: Vec<String> = ids.iter().map(|id| format!("token_id:{id}")).collect();
    let logprobs = json!({"token_logprobs": logps, "top_logprobs": tops, "tokens": names});
    Reply::Json(
        json!({"model": "m", "choices": [{"text": "", "logprobs": logprobs}], "usage": {"prompt_tokens": ids.len()}}),
    )
}

/// Complexity weighs digit k by k: 91/21. Quality weighs all alike, 3.5, but where the prompt is long puts 6 of 11 on the 5: (1 + 2 + 3 + 4 +
/// 5x6 + 6)/11 = 46/11. Evol by hand: 4.3333 x 3.5 = 15.1667 or 4.3333 x 4.1818 = 18.1212; a dialogue has the sum of its turns. A row that the
/// server refuses as too long has no score.
#[test]
fn quality_scores_are_those_of_known_log_probabilities_and_the_lowest_and_unscored_rows_go() {
    let Some(folder) = model("smollm2-135m-instruct-q4_1") else { return };
    let gguf = format!("{folder}/model.gguf");
    let engine = aloe_engine::Engine::open(&gguf, &aloe_engine::EngineOptions::default()).unwrap();
    let one = *engine.text().unwrap().encode_joint("##Complexity: ", "1").unwrap().1.last().unwrap();
    drop(engine);
    let digit = move |ids: &[u32]| (1..=6u32).find(|k| one + k - 1 == *ids.last().unwrap());
    let (long, too_long) = (150, 600);
    let complexity = Server::start(move |_, asked: &Asked| {
        scores(asked, |ids| (ids.len() < too_long).then(|| digit(ids).map_or(-1.0, |k| (f64::from(k) / 21.0).ln())))
    });
    let quality = Server::start(move |_, asked: &Asked| {
        scores(asked, |ids| {
            let weight = match digit(ids) {
                None => return Some(-1.0),
                Some(5) if ids.len() > long => 6.0 / 11.0,
                Some(_) if ids.len() > long => 1.0 / 11.0,
                Some(_) => 1.0 / 6.0,
            };
            (ids.len() < too_long).then(|| f64::ln(weight))
        })
    });
    let words = |n: usize| "The blood carries oxygen to all tissues. ".repeat(n);
    let turns = |asked: &str, answer: &str| {
        json!({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer},
            {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]})
    };
    let dir = tempfile::tempdir().unwrap();
    write_lines(&dir.path().join("talk.jsonl"), &[turns("And the lungs?", "They load it.")]);
    let rows =
        [row("What does blood do?", &words(1)), row("Tell me of blood.", &words(20)), row("Go on.", &words(100))];
    let from = format!("from = {{ scorer = [\"{}\", \"{}\"] }}", complexity.model(), quality.model());
    let talk = "{ name = \"t\", path = \"talk.jsonl\", licence = \"mit\" }";
    write_lines(&dir.path().join("rows.jsonl"), &rows);
    let recipe = dir.path().join("recipe.toml");
    let stage = format!(
        "name = \"x\"\n[[stage]]\nkind = \"data\"\nname = \"d\"\n{from}\nquality = {{ drop_lowest = 0.4, tokenizer = \"{gguf}\" }}\n\
         sources = [{{ name = \"s\", path = \"rows.jsonl\", licence = \"mit\" }}, {talk}]\n"
    );
    std::fs::write(&recipe, stage).unwrap();
    let out = dir.path().join("out");
    let (stdout, stderr, code) = run(&["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let found = lines(&out.join("d/scores.jsonl"));
    let (c, q, q_long) = (91.0 / 21.0, 3.5, 46.0 / 11.0);
    let expected: [(&str, Option<f64>, Option<&str>); 4] = [
        ("s/rows.jsonl:1", Some(c * q), Some("low_evol")),
        ("s/rows.jsonl:2", Some(c * q_long), None),
        ("s/rows.jsonl:3", None, Some("unscored")),
        ("t/talk.jsonl:1", Some(2.0 * c * q), None),
    ];
    assert_eq!(found.len(), expected.len());
    for (row, (id, evol, dropped)) in found.iter().zip(expected) {
        assert_eq!((&row["id"], row["dropped"].as_str()), (&json!(id), dropped), "{row}");
        let is_near = |evol: f64| row["evol"].as_f64().is_some_and(|found| (found - evol).abs() < 1e-9);
        assert!(evol.map_or(row["evol"].is_null(), is_near), "{row}");
    }
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(out.join("d/manifest.json")).unwrap()).unwrap();
    let quality = &manifest["quality"];
    assert_eq!((&quality["n_scored"], &quality["n_unscored"], &quality["n_low"]), (&json!(3), &json!(1), &json!(1)));
    assert_eq!(lines(&out.join("d/train.jsonl")).len(), 2);
    let sources = &manifest["sources"][0]["dropped"];
    assert_eq!((&sources["unscored"], &sources["low_evol"]), (&json!(1), &json!(1)));
}

#[test]
fn rows_that_say_the_same_in_other_words_are_duplicates_where_that_is_asked_for() {
    let Some(minilm) = model("all-minilm-l6-v2") else { return };
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        row("Where is insulin made?", "Insulin is made in the beta cells of the pancreas."),
        row("How is a plaster cast put on a broken arm?", "Layer by layer."),
        row("Where does the body make insulin?", "The pancreas makes insulin, in its beta cells."),
    ];
    let from = format!("from = {{ embedder = \"{minilm}\" }}");
    let (stdout, stderr, code) = data(dir.path(), &rows, &format!("{from}\ndedup = {{ semantic = 0.85 }}"));
    assert_eq!(code, 0, "{stdout}{stderr}");
    let found = lines(&dir.path().join("out/d/duplicates.jsonl"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["rule"], &found[0]["dropped"]), (&json!("semantic_duplicate"), &json!("s/rows.jsonl:3")));
    assert_eq!(found[0]["kept"], "s/rows.jsonl:1");
    assert!(stdout.contains("1 near duplicates"), "{stdout}");
    let (_, stderr, code) = data(dir.path(), &rows, "dedup = { semantic = 0.85 }");
    assert!(code == 2 && stderr.contains("`dedup.semantic` needs the input `embedder`"), "{stderr}");
}

/// Servers that repeat what they refuse: an embedder, then a judge, each with the row or the question in its answer.
#[test]
fn no_error_holds_the_text_of_a_row_that_a_server_repeats() {
    let dir = tempfile::tempdir().unwrap();
    write_lines(&dir.path().join("held.jsonl"), &[json!({"question": "Which organ of Ngozi Okafor makes insulin?"})]);
    let rows = [row("Where is insulin made in Zebulon Quartermain?", "In the pancreas.")];
    let judge = Server::start(|_, asked: &Asked| {
        let said = json!({"detail": [{"msg": "Input is not taken", "input": asked.body["messages"]}]});
        Reply::Refused(said.to_string())
    });
    let embedder = |refuses: bool| {
        Server::start(move |_, asked: &Asked| {
            let inputs = asked.body["input"].as_array().unwrap();
            if refuses && inputs.iter().any(|text| text.as_str().unwrap().contains("insulin")) {
                return Reply::Refused(format!("cannot embed: {}", asked.body["input"]));
            }
            let one = |(at, _): (usize, &Value)| json!({"index": at, "embedding": [1.0, 0.0]});
            Reply::Json(json!({"data": inputs.iter().enumerate().map(one).collect::<Vec<_>>()}))
        })
    };
    for (embedder, told) in [(embedder(true), "has no embedding"), (embedder(false), "Input is not taken")] {
        let from = format!("from = {{ embedder = \"{}\", judge = \"{}\" }}\n", embedder.model(), judge.model());
        let (stdout, stderr, code) = data(dir.path(), &rows, &format!("{from}decontaminate = [\"held.jsonl\"]"));
        assert!(code != 0 && stderr.contains(told) && stderr.contains("[..]"), "{code} {stderr}");
        for word in ["Zebulon", "Quartermain", "Ngozi", "Okafor", "insulin"] {
            assert!(!format!("{stdout}{stderr}").contains(word), "{word}: {stdout}{stderr}");
        }
    }
    // Its row and the question beside it are named by their places.
    let (_, stderr, _) = data(
        dir.path(),
        &rows,
        &format!(
            "from = {{ embedder = \"{}\", judge = \"{}\" }}\ndecontaminate = [\"held.jsonl\"]",
            embedder(false).model(),
            judge.model()
        ),
    );
    assert!(stderr.contains("s/rows.jsonl:1 beside ") && stderr.contains("held.jsonl:1: "), "{stderr}");
}
