//! mergekit's named chat templates in our words: each renders every conversation to the text that mergekit's renders, whatever the settings of
//! the Jinja environment (mergekit's own rely on `trim_blocks`).
//!
//! Source: mergekit 0.1.5, `_data/chat_templates/`; compared by `oracles/mergekit_templates.py`. They differ from aloe's built-in templates:
//! none but `llama3` and `mistral` writes BOS, and `llama3` writes a line break after each message, which Meta's does not.
//!
//! Refuses `exaone`: rendered as transformers does, mergekit's writes its own indentation between the messages.

/// Names and templates.
const TEMPLATES: [(&str, &str); 4] = [
    ("llama3", include_str!("templates/llama3.jinja")),
    ("chatml", include_str!("templates/chatml.jinja")),
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
];

/// The template of a name.
pub(crate) fn named(name: &str) -> Option<&'static str> {
    TEMPLATES.iter().find(|row| row.0 == name).map(|row| row.1.trim_end())
}

/// Why a text of the configuration is no template's name.
pub(crate) fn unknown(name: &str) -> String {
    let names = TEMPLATES.map(|row| row.0).join(", ");
    match name {
        "exaone" => {
            "chat_template exaone of mergekit is not supported: rendered by transformers it writes its own indentation \
             between the messages; give the Jinja text of the model's own template"
                .into()
        }
        _ => format!("unknown chat_template {name}; use auto, {names} or the Jinja text itself"),
    }
}

/// What a user of this template may not expect.
pub(crate) fn note(name: &str) -> Option<String> {
    (name == "llama3").then(|| {
        "chat_template llama3 is mergekit's: it writes a line break after each <|eot_id|>, where Meta's template has none; \
         tokenizer_source of an instruct model, or the Jinja text, gives Meta's"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_text::{ChatTemplate, Message, Role, Tokenizer};
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Deserialize)]
    struct Case {
        messages: Vec<(Role, String)>,
        add_generation_prompt: bool,
        /// None where mergekit's template refuses.
        text: Option<String>,
    }

    /// A tokenizer whose texts begin with `<s>` and end with `</s>`.
    fn tokenizer(dir: &std::path::Path) -> Tokenizer {
        let json = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 1}, "merges": []}}"#;
        std::fs::write(dir.join("tokenizer.json"), json).unwrap();
        std::fs::write(dir.join("tokenizer_config.json"), r#"{"bos_token": "<s>", "eos_token": "</s>"}"#).unwrap();
        Tokenizer::open(dir).unwrap()
    }

    #[test]
    fn named_templates_render_every_conversation_as_mergekit_s_do() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer(dir.path());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/templates.json");
        let golden: BTreeMap<String, Vec<Case>> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut n_texts = 0;
        for (name, cases) in golden.iter().filter(|(name, _)| *name != "exaone") {
            let template = ChatTemplate::new(named(name).unwrap(), name).unwrap();
            for case in cases {
                let messages: Vec<Message> =
                    case.messages.iter().map(|(role, content)| Message::new(*role, content.clone())).collect();
                let found = template.render_text(&messages, &tokenizer, case.add_generation_prompt);
                assert_eq!(found.ok(), case.text, "{name} {:?} {}", case.messages, case.add_generation_prompt);
                n_texts += 1;
            }
        }
        assert_eq!((golden.len(), n_texts), (5, 80));
        assert!(golden["exaone"][0].text.as_ref().is_some_and(|text| text.starts_with("        [|system|]")));
        assert!(named("exaone").is_none() && unknown("exaone").contains("not supported"));
    }
}
