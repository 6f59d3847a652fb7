//! Ids and texts against transformers and tiktoken.

use crate::support::{golden, ids, llama3, qwen, resource, smollm2};
use aloe_text::{ChatTemplate, Error, Message, TextModel};
use serde_json::Value;

#[test]
fn llama3_ids_of_34_texts_and_of_the_cards_chat_equal_tiktokens() {
    let (Some(model), Some(path)) = (llama3(), resource("ALOE_DATA", "models/llama3-tokenizer/golden.json")) else {
        return;
    };
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let texts = golden["encode_no_special"].as_array().unwrap();
    assert_eq!(texts.len(), 34);
    for case in texts {
        let text = case["text"].as_str().unwrap();
        assert_eq!(model.tokenizer.encode_plain(text).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(model.tokenizer.decode(&ids(&case["ids"]), false).unwrap(), text);
    }
    let chat = golden.as_object().unwrap().iter().find(|(key, _)| key.contains("chat")).unwrap().1;
    let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).unwrap();
    let got = model.encode_prompt(&messages).unwrap();
    assert_eq!(got, ids(&chat["ids"]));
    assert_eq!(got.len(), 57);
}

#[test]
fn gguf_and_json_tokenizers_give_transformers_ids() {
    let golden = golden("tokenizers.json");
    for (name, model) in [("llama3", llama3()), ("smollm2", smollm2()), ("qwen2.5", qwen())] {
        let Some(model) = model else { continue };
        for case in golden[name].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            if name == "qwen2.5" && text.contains('\u{301}') {
                // Qwen's own tokenizer.json composes accents (NFC), which transformers forgets when it reads GGUF.
                let composed = text.replace("e\u{301}", "é");
                let tokenizer = &model.tokenizer;
                assert_eq!(tokenizer.encode_plain(text).unwrap(), tokenizer.encode_plain(&composed).unwrap());
                continue;
            }
            assert_eq!(model.tokenizer.encode_plain(text).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
            assert_eq!(model.tokenizer.encode_markup(text).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
        }
    }
}

#[test]
fn chats_render_and_tokenise_as_in_transformers() {
    let golden = golden("chat_templates.json");
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let model = match case["tokenizer"].as_str().unwrap() {
            "llama3" => llama3(),
            "smollm2" => smollm2(),
            _ => qwen(),
        };
        let Some(model) = model else { continue };
        let template = ChatTemplate::new(golden["templates"][name].as_str().unwrap(), name).unwrap();
        let model = model.with_chat_template(template);
        let chat: Vec<Message> =
            serde_json::from_value(golden["chats"][case["chat"].as_str().unwrap()].clone()).unwrap();
        let generate = case["add_generation_prompt"].as_bool().unwrap();
        let what = format!("{name}, {}, {generate}", case["chat"]);
        let got = model.render_text(&chat, generate);
        if case.get("error").is_some() {
            assert!(matches!(got, Err(Error::Template { .. })), "{what}: {got:?}");
            continue;
        }
        assert_eq!(got.unwrap(), case["text"].as_str().unwrap(), "{what}");
        if generate {
            assert_eq!(model.encode_prompt(&chat).unwrap(), ids(&case["ids"]), "{what}");
        }
        compared += 1;
    }
    println!("{compared} chats compared");
}

#[test]
fn golden_prompts_of_the_gguf_models_are_met() {
    let (Some(smollm2), Some(qwen)) = (smollm2(), qwen()) else { return };
    let folders = [("smollm2-135m-instruct-q4_1", smollm2), ("qwen2.5-coder-0.5b-instruct-q4_k_m", qwen)];
    for (folder, model) in folders {
        let Some(path) = resource("ALOE_DATA", &format!("models/{folder}/golden.json")) else { return };
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in golden.get("cases").unwrap_or(&golden).as_array().unwrap() {
            let text = case["prompt"].as_str().unwrap();
            assert_eq!(model.tokenizer.encode_markup(text).unwrap(), ids(&case["ids"]), "{text:?}");
        }
    }
}

#[test]
fn stories260k_gets_bos_and_byte_fallback() {
    let Some(dir) = resource("ALOE_DATA", "models/stories260K") else { return };
    let model = TextModel::open(&dir).unwrap();
    let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    for case in golden["tokenizer"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let got = model.encode_prompt_text(text).unwrap();
        assert_eq!(got, ids(&case["ids"]), "{text:?}");
        let mut stream = model.tokenizer.decode_stream(true);
        let mut streamed: String = got.iter().map(|&id| stream.step(id).unwrap()).collect();
        streamed.push_str(&stream.finish().unwrap());
        assert_eq!(streamed, text);
    }
    let error = model.encode_prompt(&[Message::user("hi")]).unwrap_err().to_string();
    assert!(error.contains("llama3, chatml, alpaca"), "{error}");
}

#[test]
fn berts_frame_and_ids_equal_transformers() {
    let Some(dir) = resource("ALOE_MODELS", "all-minilm-l6-v2") else { return };
    let tokenizer = aloe_text::Tokenizer::open(&dir).unwrap();
    for case in golden("tokenizers.json")["minilm"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode_framed(text).unwrap(), ids(&case["ids"]), "{text:?}");
    }
}

#[test]
fn streamed_text_equals_decoded_text() {
    let texts = golden("tokenizers.json");
    for (name, model) in [("llama3", llama3()), ("smollm2", smollm2()), ("qwen2.5", qwen())] {
        let Some(model) = model else { continue };
        for case in texts[name].as_array().unwrap() {
            let all = ids(&case["ids"]);
            let mut stream = model.tokenizer.decode_stream(false);
            let pieces: Vec<String> = all.iter().map(|&id| stream.step(id).unwrap()).collect();
            assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
            let streamed = pieces.concat() + &stream.finish().unwrap();
            assert_eq!(streamed, model.tokenizer.decode(&all, false).unwrap());
        }
        // Half of a hieroglyph, then a word, then nothing but halves: nothing is lost and nothing panics.
        let half = model.tokenizer.encode_plain("𓂀").unwrap()[0];
        let word = model.tokenizer.encode_plain(" word").unwrap()[0];
        let mut stream = model.tokenizer.decode_stream(false);
        let mut text: String = [half, word].iter().map(|&id| stream.step(id).unwrap()).collect();
        text.extend((0..100).map(|_| stream.step(half).unwrap()));
        text.push_str(&stream.finish().unwrap());
        assert!(text.contains(" word") && text.ends_with('\u{FFFD}'), "{text:?}");
    }
}
