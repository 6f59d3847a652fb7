//! Against prompt_engine's own code of two revisions (5fd13a6 and 21e68bd), run by `oracles/prompt_engine.py`: what its parser reads, and
//! its prompts string by string.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test binary")]

use aloe_record::digest;
use aloe_task::extract::{Reading, extract};
use aloe_task::open::{OpenQuestion, OpenTask};
use aloe_task::wording::CotShot;
use aloe_task::wording::open::{OpenPrompt, prompt};
use aloe_task::wording::prompt_engine::{description, messages, system};
use aloe_task::{Answer, AnswerRule, ChoiceOrder, Protocol, Question, Split, Task, worked};
use aloe_text::{Message, Role};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn data() -> Option<PathBuf> {
    let data = std::env::var_os("ALOE_DATA").map(PathBuf::from);
    if data.is_none() {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_REQUIRE is set but ALOE_DATA is not");
        eprintln!("not run: ALOE_DATA is not set");
    }
    data
}

/// The first 16 hex digits.
fn digest(text: &str) -> String {
    digest::bytes(text.as_bytes())[..16].to_owned()
}

fn order_of(letters: &str) -> ChoiceOrder {
    ChoiceOrder::from_indices(letters.bytes().map(|letter| usize::from(letter - b'A')).collect()).unwrap()
}

/// `None` for a generation that it does not read.
fn expected(row: &Value) -> Option<usize> {
    row["answer"].as_str().map(|letter| usize::from(letter.as_bytes()[0] - b'A'))
}

fn read(row: &Value, rule: AnswerRule) -> Option<usize> {
    let order = order_of(row["order"].as_str().unwrap());
    let choices: Vec<String> = (0..order.len()).map(|i| format!("option number {i}")).collect();
    let text = row["text"].as_str().unwrap();
    match extract(Reading { text, choices: &choices, order: &order, is_cut: false }, rule).answer {
        Answer::Choice(index) => Some(index),
        Answer::Unparsed => None,
    }
}

#[test]
fn its_parser_is_reproduced_on_every_odd_generation() {
    let golden = golden("prompt_engine_parse.json");
    let rows = golden["rows"].as_array().unwrap();
    assert!(rows.len() >= 60, "{}", rows.len());
    for row in rows {
        assert_eq!(read(row, AnswerRule::PromptEngine), expected(row), "{row}");
    }
}

/// Where the two rules differ, what ours reads, by hand from the texts: what stands right behind the last marker, by position, without
/// reasoning and without a question that the model made up. `None` is unread.
const OURS: [(&str, Option<usize>); 29] = [
    ("no bracket", Some(1)),
    ("round brackets", Some(1)),
    ("two behind the marker in text order", Some(0)),
    ("two behind the marker shuffled the other way", Some(3)),
    ("all four", Some(1)),
    ("all five", Some(4)),
    ("bracket before, none behind", Some(2)),
    ("bracket before, nothing behind the marker", None),
    ("bracket before, marker without space at the end", None),
    ("marker with a tab", Some(1)),
    ("marker with a no-break space", Some(1)),
    ("marker inside a line", Some(1)),
    ("marker in bold", Some(1)),
    ("marker in lower case", Some(1)),
    ("marker in capitals", Some(1)),
    ("final answer", Some(1)),
    ("indented marker", Some(1)),
    ("a new question follows", Some(1)),
    ("marker and text below", Some(1)),
    ("thought with a marker, answer without", Some(2)),
    ("thought without end", None),
    ("thought without end and with a marker", None),
    ("only the end of a thought", Some(2)),
    ("carriage return alone", Some(1)),
    ("line separator", Some(1)),
    ("vertical tab before the marker", Some(1)),
    ("unit separator behind", None),
    ("next line character behind", None),
    ("ideographic space behind", None),
];

#[test]
fn our_rule_reads_by_position_where_it_reads_by_the_order_of_options() {
    let golden = golden("prompt_engine_parse.json");
    for row in golden["rows"].as_array().unwrap() {
        let ours =
            OURS.iter().find(|(name, _)| row["name"] == *name).map_or_else(|| expected(row), |(_, answer)| *answer);
        assert_eq!(read(row, AnswerRule::Aloe), ours, "{row}");
    }
    assert!(OURS.iter().all(|(name, _)| golden["rows"].as_array().unwrap().iter().any(|row| row["name"] == *name)));
}

#[test]
fn its_prompts_equal_ours_string_by_string_on_fifty_items_of_each_set() {
    let Some(data) = data() else { return };
    let golden = golden("prompt_engine_prompts.json");
    let mut n_items = 0;
    for set in golden["sets"].as_array().unwrap() {
        let name = set["task"].as_str().unwrap();
        let questions = Task::parse(name).unwrap()[0].load(&data, Split::Test).unwrap();
        let rows = set["rows"].as_array().unwrap();
        assert!(rows.len() >= 50, "{name}");
        for row in rows {
            let question = &questions[row[0].as_u64().unwrap() as usize];
            let order = order_of(row[1].as_str().unwrap());
            assert_eq!(digest(system(question).unwrap()), set["system"].as_str().unwrap(), "{name}");
            let text = description(question, &order);
            assert_eq!(digest(&text), row[2].as_str().unwrap(), "{name} {}:\n{text}", question.id);
            let talk = conversation(&questions, row[0].as_u64().unwrap() as usize, &order);
            assert_eq!(digest(&talk), row[3].as_str().unwrap(), "{name} {}:\n{talk}", question.id);
            n_items += 1;
        }
    }
    assert!(n_items >= 550, "{n_items}");
}

/// The whole conversation with the five questions that follow as examples, out of a database as the oracle has it: of each a wrong answer
/// and a right one, written in an order of its own where the place is odd.
fn conversation(questions: &[Question], index: usize, order: &ChoiceOrder) -> String {
    let letters = "ABCDE";
    let mut database = serde_json::Map::new();
    for place in (1..=5).map(|step| (index + step) % questions.len()) {
        let question = &questions[place];
        let n = question.choices.len();
        let options: serde_json::Map<String, Value> =
            letters.chars().zip(&question.choices).map(|(letter, text)| (letter.to_string(), json!(text))).collect();
        let key = |at: usize| letters[at % n..=at % n].to_owned();
        let mut right =
            json!({ "result": key(question.key), "response": format!("  Because of {place}.\nAnswer: [A] \n") });
        if place % 2 == 1 {
            right["order"] = json!((0..n).map(|at| key(place + at)).collect::<String>());
        }
        let wrong = json!({ "result": key(question.key + 1), "response": "Wrong." });
        let mut entry = json!({ "question": question.stem, "correct_answer": key(question.key), "options": options });
        if let Some(context) = &question.context {
            entry["context"] = json!(context.split('\n').collect::<Vec<_>>());
        }
        entry["generations"] = json!([wrong, right]);
        database.insert(place.to_string(), entry);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("generations.json");
    std::fs::write(&path, Value::Object(database).to_string()).unwrap();
    let shots: Vec<CotShot> = worked::read(&path)
        .unwrap()
        .into_iter()
        .map(|(question, n_attempts, right)| {
            assert_eq!((n_attempts, right.len()), (2, 1));
            let order = ChoiceOrder::from_indices(right[0].order.clone()).unwrap();
            CotShot { question, order, response: right[0].text.clone() }
        })
        .collect();
    joined(&messages(&questions[index], order, &shots).unwrap())
}

/// As the oracle joins a conversation.
fn joined(messages: &[Message]) -> String {
    let role = |message: &Message| match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let turns = messages.iter().map(|message| format!("{}\u{1f}{}", role(message), message.content));
    turns.collect::<Vec<_>>().join("\u{1e}")
}

#[test]
fn its_conversations_on_openmedqa_equal_ours_string_by_string_on_fifty_items() {
    let Some(data) = data() else { return };
    let questions: Vec<OpenQuestion> = OpenTask::Openmedqa.load(&data).unwrap();
    let golden = golden("prompt_engine_prompts.json");
    let rows = golden["open"].as_array().unwrap();
    assert!(rows.len() >= 50, "{}", rows.len());
    for row in rows {
        let question = &questions[row[0].as_u64().unwrap() as usize];
        let OpenPrompt::Messages(messages) = prompt(Protocol::PromptEngine, question) else { panic!("plain text") };
        let talk = joined(&messages);
        assert_eq!(digest(&talk), row[1].as_str().unwrap(), "{}:\n{talk}", question.id);
    }
}
