//! A chat template with `{% generation %}` marks around what the model says, as TRL's `assistant_only_loss` needs it.
//!
//! Marks cannot be put into any Jinja program. The known forms (ChatML, Llama 3, Alpaca) are tried, with the text that the model's own
//! template puts before chats without a system message, and one is taken only where it renders every given chat to the same text.

use super::Error;
use aloe_text::{ChatTemplate, Message, TextModel};

const FORMS: [&str; 3] = [
    include_str!("templates/chatml.jinja"),
    include_str!("templates/llama3.jinja"),
    include_str!("templates/alpaca.jinja"),
];

/// A template's text, and whether it is marked.
pub(super) struct Marked {
    pub(super) source: String,
    pub(super) is_marked: bool,
}

/// The marked form that renders `chats` as the template of `text` does, or that template itself.
pub(super) fn marked(text: &TextModel, chats: &[&[Message]]) -> Result<Marked, Error> {
    let own = own_source(text);
    if own.contains("{% generation %}") || own.contains("{%- generation") {
        return Ok(Marked { source: own, is_marked: true });
    }
    for form in FORMS {
        let form = form.trim_end();
        for source in candidates(text, form) {
            let candidate = text.with_chat_template(ChatTemplate::new(&source, "template.jinja")?);
            let is_same = |chat: &&[Message]| match (text.render_text(chat, false), candidate.render_text(chat, false))
            {
                (Ok(expected), Ok(found)) => expected == found,
                _ => false,
            };
            if !chats.is_empty() && chats.iter().all(is_same) {
                return Ok(Marked { source, is_marked: true });
            }
        }
    }
    Ok(Marked { source: own, is_marked: false })
}

/// The template as it stands in the tokenizer's configuration that we write.
fn own_source(text: &TextModel) -> String {
    let files = text.files();
    let config = files.iter().find(|file| file.name == "tokenizer_config.json");
    let config = config.and_then(|file| serde_json::from_slice::<serde_json::Value>(&file.bytes).ok());
    config.and_then(|config| config["chat_template"].as_str().map(str::to_owned)).unwrap_or_default()
}

/// The form itself, and with what the template writes first when a chat has no system message.
fn candidates(text: &TextModel, form: &str) -> Vec<String> {
    let mut found = vec![form.to_owned()];
    let question = [Message::user("a-question")];
    let Ok(bare) = text.render_text(&question, false) else { return found };
    let Ok(template) = ChatTemplate::new(form, "template.jinja") else { return found };
    let Ok(plain) = text.with_chat_template(template).render_text(&question, false) else { return found };
    if let Some(before) = bare.strip_suffix(plain.as_str()).filter(|before| !before.is_empty()) {
        let before = serde_json::Value::from(before).to_string();
        found.push(format!("{{% if messages[0]['role'] != 'system' %}}{{{{ {before} }}}}{{% endif %}}{form}"));
        found.push(format!("{{{{ {before} }}}}{form}"));
    }
    found
}
