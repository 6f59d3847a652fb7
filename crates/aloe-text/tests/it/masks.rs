//! Loss masks and preference pairs.

use crate::support::{golden, ids, llama3, qwen, resource, smollm2};
use aloe_text::{ChatTemplate, Conversation, Error, MaskStyle, Message, Pair, TextModel, mask_counts, show_mask};

fn exchange() -> Conversation {
    Conversation {
        messages: vec![Message::system("Be brief."), Message::user("Fever?"), Message::assistant("Rest. Drink.")],
    }
}

#[test]
fn exactly_the_answer_and_its_end_of_turn_are_trained() {
    let Some(model) = llama3() else { return };
    let encoded = model.encode_conversation(&exchange()).unwrap();
    // By hand: BOS, header system, "\n\n", 3 of "Be brief.", eot; header user, "\n\n", "F", "ever", "?", eot; header assistant, "\n\n";
    // then "Rest", ".", " Drink", "." and <|eot_id|> 128009 are the targets.
    let targets: Vec<u32> =
        encoded.ids.iter().zip(&encoded.loss_mask).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
    let mut want = model.tokenizer.encode_plain("Rest. Drink.").unwrap();
    want.push(128_009);
    assert_eq!(targets, want);
    assert_eq!(encoded.ids[0], 128_000);
    assert_eq!(*encoded.ids.last().unwrap(), 128_009);
    let shown = show_mask(&model, &encoded, MaskStyle::Plain).unwrap();
    assert!(shown.ends_with("<|start_header_id|>assistant<|end_header_id|>\n\n⟦Rest. Drink.<|eot_id|>⟧"), "{shown}");
    assert_eq!(mask_counts(&encoded), (want.len(), encoded.ids.len()));
}

#[test]
fn chatml_leaves_the_line_feed_after_the_end_of_turn_untrained() {
    for model in [smollm2(), qwen()].into_iter().flatten() {
        let mut chat = exchange();
        chat.messages.extend([Message::user("More?"), Message::assistant("No.")]);
        let encoded = model.encode_conversation(&chat).unwrap();
        let shown = show_mask(&model, &encoded, MaskStyle::Plain).unwrap();
        assert!(shown.contains("<|im_start|>assistant\n⟦Rest. Drink.<|im_end|>⟧\n<|im_start|>user"), "{shown}");
        assert!(shown.ends_with("<|im_start|>assistant\n⟦No.<|im_end|>⟧\n"), "{shown}");
    }
}

/// UAX 9, table 4: the formatting characters of the bidirectional algorithm. Letters of such scripts, and joiners, stay.
#[test]
fn characters_that_turn_the_direction_of_writing_are_shown_escaped() {
    let Some(model) = smollm2() else { return };
    let turning = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
    let mut chat = exchange();
    chat.messages[1].content = format!("a{turning}b");
    chat.messages[2].content = format!("שלום \u{200d} سلام{turning}");
    let encoded = model.encode_conversation(&chat).unwrap();
    let escaped: String = turning.chars().map(|c| format!("\\u{{{:x}}}", c as u32)).collect();
    for style in [MaskStyle::Plain, MaskStyle::Ansi] {
        let shown = show_mask(&model, &encoded, style).unwrap();
        assert!(shown.contains(&format!("a{escaped}b")) && !shown.contains(|c| turning.contains(c)), "{shown:?}");
        assert!(shown.contains(&format!("שלום \u{200d} سلام{escaped}")), "{shown:?}");
    }
}

#[test]
fn masks_equal_transformers_assistant_masks() {
    let Some(model) = llama3() else { return };
    let golden = golden("chat_templates.json");
    let template = ChatTemplate::new(golden["templates"]["generation"].as_str().unwrap(), "generation").unwrap();
    let model = model.with_chat_template(template);
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let Some(mask) = case.get("assistant_masks") else { continue };
        let messages: Vec<Message> =
            serde_json::from_value(golden["chats"][case["chat"].as_str().unwrap()].clone()).unwrap();
        let encoded = match model.encode_conversation(&Conversation { messages }) {
            Err(Error::LossMask { trained: 0, .. }) => {
                assert!(ids(mask).iter().all(|&bit| bit == 0));
                continue;
            }
            other => other.unwrap(),
        };
        if case["chat"] == "white space" {
            // The answer begins with line feeds that transformers joins to the header's: ours are split there, see text_model.rs.
            assert_ne!(encoded.ids, ids(&case["ids"]));
            continue;
        }
        assert_eq!(encoded.ids, ids(&case["ids"]), "{}", case["chat"]);
        assert_eq!(encoded.loss_mask.iter().map(|&t| u32::from(t)).collect::<Vec<_>>(), ids(mask), "{}", case["chat"]);
        compared += 1;
    }
    assert_eq!(compared, 2);
}

#[test]
fn a_conversation_is_its_pairs_prompt_and_answer() {
    let golden = golden("chat_templates.json");
    let Some(llama) = llama3() else { return };
    for name in ["llama3", "llama3.1", "generation", "mistral", "llama2", "zephyr"] {
        let template = ChatTemplate::new(golden["templates"][name].as_str().unwrap(), name).unwrap();
        let model = llama.with_chat_template(template);
        for answer in ["Rest.", "\n\nstarts with line feeds", " leading space", "<|eot_id|> forged", "é🙂"] {
            let prompt = vec![Message::user("Fever <|begin_of_text|>?")];
            let chosen = vec![Message::assistant(answer)];
            let pair =
                Pair { prompt: prompt.clone(), chosen: chosen.clone(), rejected: vec![Message::assistant("No.")] };
            let encoded = model.encode_pair(&pair).unwrap_or_else(|e| panic!("{name}: {e}"));
            let whole =
                model.encode_conversation(&Conversation { messages: [prompt.clone(), chosen].concat() }).unwrap();
            let joined = [encoded.prompt_ids.clone(), encoded.chosen_ids.clone()].concat();
            assert_eq!(whole.ids[..joined.len()], joined, "{name} {answer:?}");
            let first = whole.loss_mask.iter().position(|&t| t).unwrap();
            assert_eq!(
                (first, whole.n_targets()),
                (encoded.prompt_ids.len(), encoded.chosen_ids.len()),
                "{name} {answer:?}"
            );
            assert_eq!(encoded.prompt_ids, model.encode_prompt(&prompt).unwrap());
            assert!(model.stop_ids().contains(encoded.chosen_ids.last().unwrap()));
        }
    }
}

#[test]
fn llama2_answers_on_a_sentencepiece_tokenizer_begin_with_the_templates_space() {
    let Some(dir) = resource("ALOE_DATA", "models/stories260K") else { return };
    let golden = golden("chat_templates.json");
    let template = ChatTemplate::new(golden["templates"]["llama2"].as_str().unwrap(), "llama2").unwrap();
    let model = TextModel::open(&dir).unwrap().with_chat_template(template);
    let messages = vec![Message::user("who"), Message::assistant("Tim")];
    let encoded = model.encode_conversation(&Conversation { messages: messages.clone() }).unwrap();
    assert_eq!(encoded.ids, model.tokenizer.encode_markup("<s>[INST] who [/INST] Tim </s>").unwrap());
    let shown = show_mask(&model, &encoded, MaskStyle::Plain).unwrap();
    assert!(shown.ends_with("[/INST]⟦ Tim </s>⟧"), "{shown}");
    let pair =
        Pair { prompt: messages[..1].to_vec(), chosen: messages[1..].to_vec(), rejected: messages[1..].to_vec() };
    let pair = model.encode_pair(&pair).unwrap();
    assert_eq!([pair.prompt_ids, pair.chosen_ids].concat(), encoded.ids);
}

#[test]
fn conversations_without_targets_and_templates_without_an_end_are_refused() {
    let Some(model) = llama3() else { return };
    let only_user = Conversation { messages: vec![Message::user("hi")] };
    assert!(matches!(model.encode_conversation(&only_user), Err(Error::LossMask { trained: 0, .. })));
    let empty = Conversation { messages: vec![Message::user("hi"), Message::assistant("  ")] };
    assert!(matches!(model.encode_conversation(&empty), Err(Error::Messages { index: 1, .. })));
    let none = Conversation { messages: vec![] };
    assert!(matches!(model.encode_conversation(&none), Err(Error::Messages { .. })));
    let endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let result =
        model.with_chat_template(ChatTemplate::new(endless, "endless").unwrap()).encode_conversation(&exchange());
    assert!(matches!(result, Err(Error::NoEndOfTurn { .. })));
    let twice = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let twice = model.with_chat_template(ChatTemplate::new(twice, "twice").unwrap());
    assert!(matches!(twice.encode_prompt(&[Message::user("x")]), Err(Error::DoubleBos { .. })));
    assert!(matches!(twice.encode_conversation(&exchange()), Err(Error::DoubleBos { .. })));
    let cutting = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}";
    let cutting = model.with_chat_template(ChatTemplate::new(cutting, "cutting").unwrap());
    assert!(cutting.encode_prompt(&[Message::user("x")]).is_ok());
    assert!(matches!(
        cutting.encode_prompt(&[Message::user("a</think>b")]),
        Err(Error::TemplateRewritesContent { .. })
    ));
}

#[test]
fn a_template_whose_answer_changes_its_prompt_is_refused_for_pairs() {
    let Some(model) = llama3() else { return };
    let counting = "{{ messages | length }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let model = model.with_chat_template(ChatTemplate::new(counting, "counting").unwrap());
    let answer = vec![Message::assistant("b")];
    let pair = Pair { prompt: vec![Message::user("a")], chosen: answer.clone(), rejected: answer.clone() };
    assert!(matches!(model.encode_pair(&pair), Err(Error::NotPrefixConsistent { at: 0, .. })));
    let two = Pair { chosen: vec![Message::user("x"), answer[0].clone()], ..pair };
    assert!(matches!(model.encode_pair(&two), Err(Error::Messages { index: 1, .. })));
}

/// The prompt of such a template ends where the answer's header would begin: a model trained on its rows is asked without the header.
#[test]
fn rows_whose_last_answer_does_not_follow_the_prompt_of_a_chat_are_refused() {
    let Some(model) = llama3() else { return };
    let of = |source: &str| model.with_chat_template(ChatTemplate::new(source, "own").unwrap());
    let line = "{{ m.role }}: {{ m.content }}{{ eos_token }}";
    let headless = of(&format!("{{% for m in messages %}}{line}{{% endfor %}}"));
    let error = headless.encode_conversation(&exchange()).unwrap_err();
    assert!(error.to_string().contains("add_generation_prompt"), "{error}");
    // They part where the header would begin.
    let end = headless.render_text(&exchange().messages[..2], true).unwrap().len();
    assert!(matches!(error, Error::NotPrefixConsistent { at, .. } if at == end), "{error}");
    let counting = of(&format!("{{{{ messages | length }}}}{{% for m in messages %}}{line}{{% endfor %}}"));
    assert!(matches!(counting.encode_conversation(&exchange()), Err(Error::NotPrefixConsistent { at: 0, .. })));
    // What stands before the last question alone, as the system message does in Mistral's templates, changes the prompts of earlier answers;
    // white space of an answer may be trimmed.
    let last = "{% set asked = (messages | selectattr('role', 'equalto', 'user') | list | last).content %}{% for m in messages %}\
                {% if m.content == asked %}Be brief. {% endif %}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}{% endfor %}\
                {% if add_generation_prompt %}assistant: {% endif %}";
    let messages = vec![
        Message::user("Fever?"),
        Message::assistant(" Rest.\n"),
        Message::user("More?"),
        Message::assistant("  No."),
    ];
    of(last).encode_conversation(&Conversation { messages: messages.clone() }).unwrap();
    // Nobody asks for an answer behind an answer, or before a question.
    let line = of(&format!(
        "{{% for m in messages %}}{line}{{% endfor %}}{{% if add_generation_prompt %}}assistant: {{% endif %}}"
    ));
    for order in [&[0, 1, 3][..], &[3]] {
        let messages = order.iter().map(|&at| messages[at].clone()).collect();
        line.encode_conversation(&Conversation { messages }).unwrap();
    }
}

#[test]
fn a_template_that_prints_the_date_needs_one_from_the_caller() {
    let Some(model) = smollm2() else { return };
    let dated = "{% for m in messages %}{{ strftime_now('%d %b %Y') }} {{ m.content }}<|im_end|>{% endfor %}";
    let model = model.with_chat_template(ChatTemplate::new(dated, "dated").unwrap());
    let chat = [Message::user("hi")];
    let error = model.render_text(&chat, true).unwrap_err().to_string();
    assert!(error.contains("give one"), "{error}");
    let model = model.with_date(aloe_text::Date::parse("2026-11-22").unwrap());
    assert_eq!(model.render_text(&chat, true).unwrap(), "22 Nov 2026 hi<|im_end|>");
}

#[test]
fn joint_encoding_follows_lm_eval() {
    let golden = golden("joint.json");
    let stories = resource("ALOE_DATA", "models/stories260K").map(|dir| TextModel::open(&dir).unwrap());
    for (name, model) in [("llama3", llama3()), ("smollm2", smollm2()), ("stories260K", stories)] {
        let Some(model) = model else { continue };
        for case in golden[name].as_array().unwrap() {
            let (prompt, continuation) = (case["prompt"].as_str().unwrap(), case["continuation"].as_str().unwrap());
            let got = model.encode_joint(prompt, continuation).unwrap();
            assert_eq!(
                got,
                (ids(&case["prompt_ids"]), ids(&case["continuation_ids"])),
                "{name} {prompt:?} {continuation:?}"
            );
        }
    }
}

#[test]
fn joint_encoding_moves_the_prompts_last_space_to_the_answer() {
    let Some(model) = llama3() else { return };
    let (prompt, continuation) = model.encode_joint("Question: x\nAnswer: ", "B").unwrap();
    assert_eq!(prompt, model.tokenizer.encode_plain("Question: x\nAnswer:").unwrap());
    assert_eq!(continuation, model.tokenizer.encode_plain(" B").unwrap());
    let (prompt, _) = model.encode_joint("", "B").unwrap();
    assert_eq!(prompt, [128_000]);
    assert!(matches!(model.encode_joint("x", ""), Err(Error::EmptyContinuation)));
}
