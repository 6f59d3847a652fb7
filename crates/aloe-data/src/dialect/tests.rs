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

/// The published layouts of MedQA beside its own lines: the Hub's `-hf` columns, bigbio's source and its `bigbio_qa`.
#[test]
fn every_published_layout_of_medqa_gives_the_same_question() {
    let options = ["Gout", "Scurvy", "Rickets", "Mumps"];
    let own = json!({"question": "Which?", "options": {"A": "Gout", "B": "Scurvy", "C": "Rickets", "D": "Mumps"}, "answer_idx": "C", "answer": "Rickets", "meta_info": "step1"});
    let hf = json!({"id": "1", "sent1": "Which?", "sent2": "", "ending0": "Gout", "ending1": "Scurvy", "ending2": "Rickets", "ending3": "Mumps", "label": 2});
    let listed: Vec<Value> =
        "ABCD".chars().zip(options).map(|(key, value)| json!({"key": key, "value": value})).collect();
    let source =
        json!({"meta_info": "step1", "question": "Which?", "answer_idx": "C", "answer": "Rickets", "options": listed});
    let bigbio = json!({"id": "1", "question_id": "1", "document_id": "d", "question": "Which?", "type": "multiple_choice", "choices": options,
        "context": "", "answer": ["Rickets"]});
    let (_, expected) = check(own);
    assert!(expected.ends_with("/ assistant: Answer: [C]"), "{expected}");
    for (row, dialect) in [(hf, Dialect::Medqa), (source, Dialect::Medqa), (bigbio.clone(), Dialect::BigbioQa)] {
        assert_eq!(check(row), (dialect, expected.clone()));
    }
    // Five options as a list, and an answer that is none of the choices.
    let five: Vec<Value> = "ABCDE".chars().map(|key| json!({"key": key, "value": format!("option {key}")})).collect();
    let row = json!({"question": "Which?", "answer_idx": "E", "options": five});
    assert!(check(row).1.ends_with("Answer: [E]"));
    let mut other = bigbio;
    other["answer"] = json!(["Plague"]);
    assert!(refused(other).ends_with("the answer's text stands among the options 0 times"));
}

#[test]
fn pairs_of_ultrafeedback_and_orca_are_read_and_attacks_without_a_safe_answer_are_not_trained_on() {
    let shared = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "G"}]);
    let worse = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]);
    for (row, dialect, expected) in [
        (
            json!({"prompt": "Q", "prompt_id": "x", "chosen": shared, "rejected": worse, "messages": shared, "score_chosen": 8.0, "score_rejected": 3.0}),
            Dialect::Dpo,
            "user: Q / +assistant: G / -assistant: B",
        ),
        (
            json!({"source": "s", "instruction": "Q", "chosen_response": "G", "rejected_response": "B", "chosen_avg_rating": 4.5}),
            Dialect::QuestionPairs,
            "user: Q / +assistant: G / -assistant: B",
        ),
        (
            json!({"system": "S", "question": "Q", "chosen": "G", "rejected": "B"}),
            Dialect::QuestionPairs,
            "system: S / user: Q / +assistant: G / -assistant: B",
        ),
    ] {
        assert_eq!(check(row), (dialect, expected.to_owned()));
    }
    let attack =
        json!({"behavior": "b", "source": "advbench", "jailbreak_instruction": "j", "instruction_with_behavior": "i"});
    let attempt = json!({"min_harmlessness_score_transcript": 0.1, "num_params": "52B", "model_type": "rlhf", "transcript": "\n\nHuman: Q\n\nAssistant: A",
        "rating": 2.0, "task_description": "t", "tags": null});
    for row in [attack, attempt] {
        assert!(refused(row).ends_with("a red-team question without answers is not a training row"));
    }
}

fn mapped_as(columns: Value, row: Value) -> Result<String, String> {
    let config: SourceConfig =
        serde_json::from_value(json!({"name": "s", "path": "x", "licence": "MIT", "columns": columns})).unwrap();
    let mistakes = mapped::mistakes(&config.columns);
    if !mistakes.is_empty() {
        return Err(mistakes.join("; "));
    }
    let row = Row { columns: row.as_object().unwrap().clone(), at: "f.jsonl:3".into() };
    let item = item(Dialect::Mapped, &row, 0, String::new(), &config).map_err(|error| error.to_string())?;
    let question = item.question.clone().unwrap();
    Ok(format!(
        "{} {} {} {}",
        item.about.task,
        item.about.subject,
        question.choices.join("|"),
        item.messages()[1].content
    ))
}

#[test]
fn own_columns_of_multiple_choice_rows_say_how_the_answer_is_written() {
    let row = json!({"q": "Which?", "list": ["w", "x", "y"], "json": "[\"w\", \"x\", \"y\"]", "a": "w", "b": "x", "letter": "b", "zero": 1, "one": "2",
        "said": "x", "why": "Because.", "field": "Anatomy"});
    let expected = Ok("mcqa Anatomy w|x|y Because.\nAnswer: [B]".to_owned());
    for (options, way, answer) in [
        ("list", "answer_letter", "letter"),
        ("json", "answer_index", "zero"),
        ("list", "answer_number", "one"),
        ("list", "answer_text", "said"),
    ] {
        let columns =
            json!({"question": "q", "options": options, way: answer, "explanation": "why", "subject": "field"});
        assert_eq!(mapped_as(columns, row.clone()), expected, "{way}");
    }
    let two = json!({"question": "q", "option_1": "a", "option_2": "b", "answer_index": "zero"});
    assert_eq!(mapped_as(two, row.clone()), Ok("mcqa  w|x Answer: [B]".to_owned()));
    for (columns, expected) in [
        (json!({"question": "q", "options": "list"}), "needs one of answer_letter"),
        (json!({"question": "q", "answer_text": "said"}), "needs either `options`"),
        (json!({"question": "q", "options": "list", "answer": "letter"}), "maps `answer`"),
        (json!({"prompt": "q"}), "needs `prompt` and `response`, or `question`"),
        (json!({"question": "q", "options": "list", "answer_number": "zero2"}), "no such column"),
        (json!({"question": "q", "options": "list", "answer_letter": "said2"}), "answer key"),
    ] {
        let mut row = row.clone();
        row["said2"] = "the second".into();
        let error = mapped_as(columns, row).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_worked_solution_says_its_sub_task_and_subject_and_other_rows_with_such_columns_do_not() {
    let made = |more: Value| {
        let mut value =
            json!({"question": "Q", "response": "R\nAnswer: A", "subject": "Cardiology", "task": "mcqa_cot"});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let row = row(value);
        let item = item(Dialect::detect(&row).unwrap(), &row, 0, String::new(), &config()).unwrap();
        (item.about.task.to_string(), item.about.subject.clone(), item.rare().made.clone())
    };
    let how = Some("self-generated".into());
    assert_eq!(made(json!({"made": "self-generated"})), ("mcqa_cot".into(), "Cardiology".into(), how));
    assert_eq!(made(json!({})), ("qa".into(), String::new(), None));
}

#[test]
fn a_preference_pair_keeps_its_input_and_is_refused_with_earlier_turns() {
    let pair = |more: Value| {
        let mut value = json!({"instruction": "Sum up the note", "input": "NOTE", "chosen": "c", "rejected": "r"});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let (_, shown) = check(pair(json!({"history": []})));
    assert_eq!(shown, "user: Sum up the note\n\nNOTE / +assistant: c / -assistant: r");
    assert!(refused(pair(json!({"history": [["a", "b"]]}))).contains("`history` holds earlier turns"));
}

#[test]
fn columns_that_carry_meaning_are_read_and_those_that_cannot_be_are_refused_by_name() {
    let messages = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]);
    let cases = [
        (json!({"question": "Q", "context": "C", "answer": "A"}), "user: C\n\nQ / assistant: A"),
        (json!({"question": "Q", "context": ["C", "D"], "response": "A"}), "user: C\nD\n\nQ / assistant: A"),
        (json!({"system": "S", "question": "Q", "response": "A"}), "system: S / user: Q / assistant: A"),
        (json!({"system": "S", "messages": messages}), "system: S / user: Q / assistant: A"),
        (json!({"system": "", "tools": [], "messages": messages}), "user: Q / assistant: A"),
        (
            json!({"instruction": "And then?", "input": "", "output": "A", "history": [["P", "B"], ["R", "C"]]}),
            "user: P / assistant: B / user: R / assistant: C / user: And then? / assistant: A",
        ),
        (json!({"instruction": "I", "input": "", "output": "A", "history": []}), "user: I / assistant: A"),
    ];
    for (value, expected) in cases {
        assert_eq!(check(value).1, expected);
    }
    for (value, expected) in [
        (json!({"tools": "[f]", "messages": messages}), "column `tools` holds definitions of tools"),
        (json!({"tools": [{"name": "f"}], "conversations": messages}), "column `tools` holds definitions of tools"),
        (json!({"instruction": "I", "output": "A", "history": ["P"]}), "column `history`: expected a list of"),
        (json!({"question": "Q", "answer": "A", "history": [["P", "B"]]}), "column `history` holds earlier turns"),
        (json!({"question": "Q", "answer": "A", "context": {"a": 1}}), "column `context`: expected text"),
    ] {
        let error = refused(value);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn every_instance_of_an_instruction_is_a_row() {
    let value = json!({"instruction": "I", "instances": [{"input": "x", "output": "1"}, {"input": "y", "output": "2"}, {"input": "", "output": "3"}]});
    let (first, others) = items(Dialect::Instances, &row(value), 0, "s/f:3".into(), &config()).unwrap();
    let shown: Vec<_> = std::iter::once(&first)
        .chain(&others)
        .map(|item| (item.id.as_str(), item.messages()[0].content.as_str(), item.messages()[1].content.as_str()))
        .collect();
    assert_eq!(shown, [("s/f:3", "I\n\nx", "1"), ("s/f:3/2", "I\n\ny", "2"), ("s/f:3/3", "I", "3")]);
}

#[test]
fn a_question_with_options_is_multiple_choice_and_one_whose_answer_may_be_two_is_refused() {
    let expected = "user: Question: Q?\nA. w\nB. x\nC. y / assistant: Answer: [B]";
    let lettered = json!({"A": "w", "B": "x", "C": "y"});
    for value in [
        json!({"question": "Q?", "choices": ["w", "x", "y"], "answer": "x"}),
        json!({"question": "Q?", "options": ["w", "x", "y"], "answer": "B"}),
        json!({"question": "Q?", "options": lettered, "answer": "(b)"}),
        json!({"question": "Q?", "A": "w", "B": "x", "C": "y", "D": "", "answer": "B"}),
        json!({"question": "Q?", "options": "[\"w\", \"x\", \"y\"]", "answer": "x"}),
    ] {
        assert_eq!(check(value), (Dialect::Choices, expected.to_owned()));
    }
    for (value, expected) in [
        (json!({"question": "Q?", "choices": ["w", "x"], "answer": 1}), "may count from 0 or from 1"),
        (json!({"question": "Q?", "choices": ["w", "x"], "answer": "z"}), "stands among the options 0 times"),
        (
            json!({"question": "Q?", "choices": ["B", "A", "C"], "answer": "A"}),
            "the letter of one option and the text of another",
        ),
        (json!({"question": "Q?", "options": "w or x", "answer": "x"}), "column `options`: expected a list of options"),
    ] {
        let error = refused(value);
        assert!(error.contains(expected), "{error}");
    }
    let open = json!({"question": "Q?", "options": [], "answer": "x"});
    assert_eq!(check(open).0, Dialect::QuestionResponse, "without options it is an open question");
}

/// What OpenAI's fine-tuning format, axolotl and agents' logs write beside a message's text.
#[test]
fn a_message_that_must_not_be_trained_on_or_is_more_than_its_text_is_refused() {
    let messages = |asked: Value, said: Value| {
        let part = |role: &str, more: Value| {
            let mut message = json!({"role": role, "content": "x"});
            message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            message
        };
        json!({"messages": [part("user", asked), part("assistant", said)]})
    };
    for said in [
        json!({"weight": 0}),
        json!({"weight": 0.0}),
        json!({"train": false}),
        json!({"trainable": 0}),
        json!({"masked": true}),
        json!({"weight": "0"}),
        json!({"tool_calls": [{"id": "x"}]}),
        json!({"function_call": {"name": "x"}}),
    ] {
        let name = said.as_object().unwrap().keys().next().unwrap().clone();
        let error = refused(messages(json!({}), said));
        assert!(error.starts_with("f.jsonl:3: column `messages`") && error.contains(&format!("`{name}`")), "{error}");
    }
    for (asked, said) in [
        (json!({"weight": 0, "train": false, "name": "y"}), json!({"weight": 1, "train": true, "masked": false})),
        (json!({}), json!({"tool_calls": [], "function_call": null, "weight": null})),
    ] {
        assert_eq!(check(messages(asked, said)).1, "user: x / assistant: x");
    }
}
