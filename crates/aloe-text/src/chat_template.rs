//! A chat template: a Jinja program written by a stranger, run with fuel, without files, includes, clock or environment.
//!
//! Follows transformers 5.23 `apply_chat_template`: `trim_blocks` and `lstrip_blocks`, Python string methods, `tojson` as `json.dumps`,
//! `raise_exception`, `{% generation %}` accepted. `strftime_now` exists only when the caller gave a date; templates such as
//! Llama 3.1's then fall back to the date they name themselves, so that ids do not change overnight.

use crate::python_json::dumps;
use crate::tokenizer::special_text;
use crate::{Date, Error, Message, Result, Tokenizer};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value};
use serde_json::json;
use std::sync::Arc;

/// Names of the built-in templates.
pub const BUILTIN_TEMPLATES: [&str; 3] = ["llama3", "chatml", "alpaca"];

/// Bytes of a template at most.
const TEMPLATE_CAP: usize = 64 * 1024;
/// Fuel of one rendering at most: some 5,000 messages of a usual template, and below 0.2 s of an endless loop. minijinja counts
/// instructions and the bytes that strings grow by, so each byte of content brings fuel for being copied a few times.
const FUEL: u64 = 500_000;
const FUEL_PER_CONTENT_BYTE: u64 = 16;
/// Bytes of output beyond four times the contents at most.
const OUTPUT_CAP: usize = 1024 * 1024;
const RECURSION_LIMIT: usize = 50;

/// A compiled chat template; cloning shares it.
#[derive(Clone)]
pub struct ChatTemplate {
    origin: String,
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({}, {} bytes)", self.origin, self.source.len())
    }
}

impl ChatTemplate {
    /// Compiles a template; `origin` names it in messages.
    pub fn new(source: &str, origin: &str) -> Result<ChatTemplate> {
        if source.len() > TEMPLATE_CAP {
            return Err(Error::TemplateTooLarge { origin: origin.to_owned(), len: source.len(), cap: TEMPLATE_CAP });
        }
        let mut environment = environment();
        environment
            .add_template_owned("chat", without_generation_tags(source))
            .map_err(|e| template_error(origin, &e))?;
        Ok(ChatTemplate { origin: origin.to_owned(), source: source.into(), environment: Arc::new(environment) })
    }

    /// A built-in template by name: `llama3`, `chatml` or `alpaca`. `with_bos` makes the last two write the BOS token, which a
    /// tokenizer that adds BOS to raw text needs in chats too; `llama3` always writes it.
    pub fn builtin(name: &str, with_bos: bool) -> Result<ChatTemplate> {
        let source = match name {
            "llama3" => include_str!("templates/llama3.jinja"),
            "chatml" => include_str!("templates/chatml.jinja"),
            "alpaca" => include_str!("templates/alpaca.jinja"),
            _ => return Err(Error::UnknownTemplate { name: name.to_owned(), builtins: BUILTIN_TEMPLATES.join(", ") }),
        };
        let bos = if with_bos && name != "llama3" { "{{ bos_token }}" } else { "" };
        ChatTemplate::new(&format!("{bos}{}", source.trim_end()), &format!("built-in {name}"))
    }

    /// The template of a tokenizer's configuration: a string, or the entry `default` of a list of named ones.
    pub fn of_tokenizer(tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let source = match tokenizer.config().get("chat_template") {
            Some(serde_json::Value::String(text)) => text.as_str(),
            Some(serde_json::Value::Array(named)) => {
                let name = |entry: &&serde_json::Value| entry.get("name").and_then(|n| n.as_str()) == Some("default");
                let Some(text) = named.iter().find(name).and_then(|entry| entry.get("template")?.as_str()) else {
                    let message = "none of the named templates is called `default`".to_owned();
                    return Err(Error::Template { origin: tokenizer.origin().to_owned(), message });
                };
                text
            }
            _ => return Ok(None),
        };
        ChatTemplate::new(source, tokenizer.origin()).map(Some)
    }

    /// Where the template came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of messages given as (role, content), as transformers would render it.
    pub(crate) fn render(&self, messages: &[(&str, &str)], context: &Context<'_>) -> Result<String> {
        self.render_with(messages, context.tokenizer.config(), context.add_generation_prompt, context.date)
    }

    /// [`render`](Self::render) with the special tokens of a `tokenizer_config.json`.
    fn render_with(
        &self,
        messages: &[(&str, &str)],
        config: &serde_json::Map<String, serde_json::Value>,
        add_generation_prompt: bool,
        date: Option<Date>,
    ) -> Result<String> {
        let list: Vec<serde_json::Value> =
            messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
        let contents: usize = messages.iter().map(|(_, content)| content.len()).sum();
        let mut root = serde_json::Map::new();
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            if let Some(text) = special_text(config, key) {
                root.insert(key.to_owned(), json!(text));
            }
        }
        root.insert("messages".to_owned(), serde_json::Value::Array(list));
        root.insert("add_generation_prompt".to_owned(), json!(add_generation_prompt));
        root.insert("tools".to_owned(), serde_json::Value::Null);
        root.insert("documents".to_owned(), serde_json::Value::Null);
        let mut out = Capped { bytes: Vec::new(), cap: OUTPUT_CAP + 4 * contents };
        let root = Value::from(Serde(&root));
        let root = match date {
            None => root,
            Some(date) => {
                let now = Value::from_function(move |format: &str| date.strftime(format));
                minijinja::context! { strftime_now => now, ..root }
            }
        };
        let mut environment = Environment::clone(&self.environment);
        environment.set_fuel(Some(FUEL + FUEL_PER_CONTENT_BYTE * contents as u64));
        let template = environment.get_template("chat").map_err(|e| template_error(&self.origin, &e))?;
        template.render_captured_to(root, &mut out).map_err(|e| template_error(&self.origin, &e))?;
        String::from_utf8(out.bytes)
            .map_err(|_| Error::Template { origin: self.origin.clone(), message: "output is not UTF-8".to_owned() })
    }

    /// What [`render_text`](Self::render_text) gives, where there is the `tokenizer_config.json` and no need to open a tokenizer; with a
    /// date for templates that print today's.
    pub fn render_unopened(
        &self,
        messages: &[Message],
        tokenizer_config: &serde_json::Map<String, serde_json::Value>,
        add_generation_prompt: bool,
        date: Option<Date>,
    ) -> Result<String> {
        let messages: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        self.render_with(&messages, tokenizer_config, add_generation_prompt, date)
    }

    /// The text of whole messages, contents and all in one: for reading, not for ids.
    pub fn render_text(
        &self,
        messages: &[Message],
        tokenizer: &Tokenizer,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let messages: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        self.render(&messages, &Context { tokenizer, add_generation_prompt, date: None })
    }
}

/// What a rendering depends on beside the messages.
pub(crate) struct Context<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) add_generation_prompt: bool,
    pub(crate) date: Option<Date>,
}

struct Capped {
    bytes: Vec<u8>,
    cap: usize,
}

impl std::io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.cap {
            return Err(std::io::Error::other(format!("output exceeds {} bytes", self.cap)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("raised by the template: {message}")))
    });
    environment
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // The others of `json.dumps` change nothing that our templates can be given.
    let _: (Option<bool>, Option<Value>, Option<bool>) =
        (kwargs.get("ensure_ascii")?, kwargs.get("separators")?, kwargs.get("sort_keys")?);
    kwargs.assert_all_used()?;
    if indent.is_some_and(|width| width > 16) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: indent above 16"));
    }
    let value =
        serde_json::to_value(value).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(dumps(&value, indent))
}

/// `{% generation %}` marks assistant text for TRL. Our mask comes from the messages, so the tags become a block that always runs and
/// keeps their white-space signs.
fn without_generation_tags(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find("{%") {
        let (head, tail) = rest.split_at(at);
        // From behind the opening, so that the `%` of a broken `{%}` is not taken for a closing one too.
        let Some(end) = tail[2..].find("%}").map(|end| end + 2) else { break };
        out.push_str(head);
        let tag = &tail[2..end];
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&format!("{{%{}%}}", tag.replacen("generation", "if true", 1))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", tag.replacen("endgeneration", "endif", 1))),
            _ => out.push_str(&tail[..end + 2]),
        }
        rest = &tail[end + 2..];
    }
    out.push_str(rest);
    out
}

fn template_error(origin: &str, error: &minijinja::Error) -> Error {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    if message.contains("unknown function: strftime_now") {
        message.push_str("; the template asks for today's date: give one");
    }
    Error::Template { origin: origin.to_owned(), message }
}
