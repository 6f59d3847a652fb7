//! One hand-made row a layout, with the messages it must give.

use super::*;
use serde_json::json;

fn config() -> SourceConfig {
    serde_json::from_value(json!({"name": "s", "path": "x", "licence": "MIT"})).unwrap()
}

fn row(value: Value) -> Row {
    Row { columns: value.as_object().unwrap().clone(), at: "f.jsonl:3".into() }
}

/// The dialect found and the messages as `role: content` lines; sides of a pair after `+` and `-`.
fn check(value: Value) -> (Dialect, String) {
    let row = row(value);
    let dialect = Dialect::detect(&row).unwrap();
    let item = item(dialect, &row, 0, "s/f.jsonl:3".into(), &config()).unwrap();
    let lines = |messages: &[Message], mark: &str| -> Vec<String> {
        messages.iter().map(|message| format!("{mark}{}: {}", message.role.as_str(), message.content)).collect()
    };
    let shown = match &item.body {
        Body::Conversation(conversation) => lines(&conversation.messages, ""),
        Body::Pair(pair) => [lines(&pair.prompt, ""), lines(&pair.chosen, "+"), lines(&pair.rejected, "-")].concat(),
    };
    (dialect, shown.join(" / "))
}

fn refused(value: Value) -> String {
    let row = row(value);
    let dialect = Dialect::detect(&row).unwrap();
    item(dialect, &row, 0, String::new(), &config()).unwrap_err().to_string()
}

#[test]
fn instruction_layouts_become_conversations() {
    let cases = [
        (json!({"instruction": "I", "input": " x ", "output": "O"}), Dialect::Alpaca, "user: I\n\nx / assistant: O"),
        (json!({"instruction": "I", "input": "", "output": null}), Dialect::Alpaca, "user: I / assistant: "),
        (
            json!({"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}),
            Dialect::Sharegpt,
            "system: S / user: Q / assistant: A",
        ),
        (json!({"conversation": [{"input": "Q", "output": "A"}]}), Dialect::Sharegpt, "user: Q / assistant: A"),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}),
            Dialect::Messages,
            "user: Q / assistant: A",
        ),
        (
            json!({"system_prompt": "S", "question": "Q", "response": "A"}),
            Dialect::QuestionResponse,
            "system: S / user: Q / assistant: A",
        ),
        (
            json!({"question": "Q", "answer": "A", "question_type": "t", "document_source": "CDC"}),
            Dialect::Medquad,
            "user: Q / assistant: A",
        ),
        (
            json!({"instruction": "I", "instances": [{"input": "x", "output": "O"}]}),
            Dialect::Instances,
            "user: I\n\nx / assistant: O",
        ),
    ];
    for (value, dialect, messages) in cases {
        assert_eq!(check(value), (dialect, messages.to_owned()));
    }
}

#[test]
fn multiple_choice_rows_end_with_the_answer_line() {
    let medmcqa = json!({"id": "1", "question": "Q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 2, "exp": "Because.",
        "choice_type": "single", "subject_name": "Anatomy", "topic_name": null});
    let (dialect, text) = check(medmcqa);
    assert_eq!(dialect, Dialect::Medmcqa);
    assert_eq!(text, "user: Question: Q?\nA. w\nB. x\nC. y\nD. z / assistant: Because.\nAnswer: [C]");
    let medqa = json!({"question": "Q?", "answer": "x", "options": {"A": "w", "B": "x", "C": "y", "D": "z"}, "answer_idx": "B"});
    assert!(check(medqa).1.ends_with("assistant: Answer: [B]"));
    let pubmedqa = json!({"QUESTION": "Q?", "CONTEXTS": ["c1", "c2"], "final_decision": "no", "LONG_ANSWER": "L"});
    let (dialect, text) = check(pubmedqa);
    assert_eq!(dialect, Dialect::Pubmedqa);
    assert!(text.contains("c1\nc2") && text.ends_with("L\nAnswer: [B]"), "{text}");
}

#[test]
fn preference_layouts_share_one_prompt() {
    let user = json!({"role": "user", "content": "Q"});
    let answer = |text: &str| json!({"role": "assistant", "content": text});
    let expected = "user: Q / +assistant: G / -assistant: B";
    let cases = [
        (json!({"prompt": "Q", "chosen": "G", "rejected": "B"}), Dialect::Dpo),
        (json!({"prompt": [user], "chosen": [answer("G")], "rejected": [answer("B")]}), Dialect::Dpo),
        (json!({"prompt": "Q", "chosen": [user, answer("G")], "rejected": [user, answer("B")]}), Dialect::Dpo),
        (json!({"dataset": "d", "chosen": [user, answer("G")], "rejected": [user, answer("B")]}), Dialect::DpoMix),
        (
            json!({"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "G"},
                "rejected": {"from": "gpt", "value": "B"}}),
            Dialect::SharegptRanking,
        ),
        (
            json!({"chosen": "\n\nHuman: Q\n\nAssistant: G", "rejected": "\n\nHuman: Q\n\nAssistant: B"}),
            Dialect::HhRlhf,
        ),
    ];
    for (value, dialect) in cases {
        assert_eq!(check(value), (dialect, expected.to_owned()));
    }
}

#[test]
fn rows_that_do_not_fit_their_layout_are_refused_with_place_and_reason() {
    let differ = json!({"chosen": "\n\nHuman: Q\n\nAssistant: G", "rejected": "\n\nHuman: P\n\nAssistant: B"});
    assert_eq!(refused(differ), "f.jsonl:3: the two sides differ before their last message");
    let speaker = json!({"conversations": [{"from": "tool", "value": "Q"}]});
    assert_eq!(
        refused(speaker),
        "f.jsonl:3: speaker `tool` is neither system, user nor assistant; known names: system; user, human, prompter (all user); \
         assistant, gpt, chatgpt, bing, bard, model (all assistant)"
    );
    for name in ["doctor", "Patient"] {
        let clinic = json!({"messages": [{"role": "user", "content": "Q"}, {"role": name, "content": "A"}]});
        assert!(refused(clinic).contains(&format!("speaker `{}` is neither", name.to_lowercase())));
    }
    let number = json!({"instruction": 3, "output": "O"});
    assert!(refused(number).starts_with("f.jsonl:3: column `instruction`: expected text"));
    let turns = json!({"messages": [{"role": "assistant", "content": "A"}]});
    assert_eq!(refused(turns), "f.jsonl:3: message 1 (assistant) is out of turn");
}

#[test]
fn an_unknown_layout_is_named_with_its_columns_and_the_way_to_map_them() {
    let error = Dialect::detect(&row(json!({"frage": "Q", "antwort": "A"}))).unwrap_err().to_string();
    assert!(error.contains("frage, antwort") && error.contains("columns ="), "{error}");
    let ambiguous = row(json!({"question": "Q", "answer": "A", "response": "B"}));
    assert!(Dialect::detect(&ambiguous).is_err(), "two readings are no reading");
    let mut config = config();
    config.columns = [("prompt", "frage"), ("response", "antwort")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    let found = item(Dialect::Mapped, &row(json!({"frage": "Q", "antwort": "A"})), 0, String::new(), &config).unwrap();
    assert_eq!(found.messages()[1].content, "A");
}

#[test]
fn a_safe_answer_becomes_a_pair_only_when_openings_are_asked_for() {
    let value = json!({"harmful_medical_request": "Q", "safe_response": "S"});
    assert_eq!(check(value.clone()).1, "user: Q / assistant: S");
    let mut config = config();
    config.rejected_openings = true;
    let found = item(Dialect::MedSafetyBench, &row(value), 0, String::new(), &config).unwrap();
    assert!(matches!(found.body, Body::Pair(_)));
}
