//! Tokenizer and chat template together: messages to ids, loss masks and preference pairs. The one type other crates hold.
//!
//! Control tokens are recognised in the template's own text only. Between two of them, template text and contents are tokenised as one
//! text, so that the ids equal Hugging Face's `apply_chat_template(tokenize=True)` whenever no content spells a control token.
//! One exception: a token that would lie across the start of an answer is split there, because at that place the prompt of a chat ends;
//! it happens when an answer begins with white space that the header's last token would swallow.
//!
//! BOS comes from the template alone, as in transformers and vLLM; the built-in templates write it when the tokenizer adds it to raw
//! text. Two BOS at the start are an error.

use crate::added::Found;
use crate::chat_template::Context;
use crate::gguf::TokenizerFiles;
use crate::plain::Place;
use crate::provenance::{Content, Rendered, render};
use crate::{
    BUILTIN_TEMPLATES, ChatTemplate, Conversation, Date, Encoded, EncodedPair, Error, Message, Pair, Result, Role,
    Tokenizer,
};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::path::Path;

/// Tokenizer and chat template of a model; cloning shares both.
#[derive(Clone, Debug)]
pub struct TextModel {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, if the model has one.
    pub template: Option<ChatTemplate>,
    date: Option<Date>,
    turn: Option<Turn>,
}

/// How the template frames an answer.
#[derive(Clone, Debug)]
struct Turn {
    /// White space between the generation prompt and the answer: a space for Llama 2, nothing for most.
    gap: String,
    /// The end-of-turn token.
    end: Option<u32>,
}

/// A file for an output folder.
#[derive(Clone, Debug)]
pub struct TextFile {
    /// File name.
    pub name: String,
    /// Its contents.
    pub bytes: Vec<u8>,
}

type TokenAt = (u32, Range<usize>);

impl TextModel {
    /// Opens a model folder.
    pub fn open(dir: &Path) -> Result<TextModel> {
        TextModel::from_files(TokenizerFiles::read(dir)?)
    }

    /// From GGUF metadata.
    pub fn from_gguf(metadata: &Map<String, Value>) -> Result<TextModel> {
        TextModel::from_files(crate::gguf::tokenizer_from_gguf(metadata)?)
    }

    /// From file contents already read.
    pub fn from_files(files: TokenizerFiles) -> Result<TextModel> {
        let tokenizer = Tokenizer::from_files(files)?;
        let template = ChatTemplate::of_tokenizer(&tokenizer)?;
        let mut model = TextModel { tokenizer, template, date: None, turn: None };
        // A template may refuse the probe (one that wants a system message, say): it can still render prompts.
        model.turn = model.probe().ok();
        Ok(model)
    }

    /// The same tokenizer with another template: a built-in name or the path of a .jinja file. Refused when the template has no
    /// end-of-turn token in this vocabulary.
    pub fn with_template(&self, name: &str) -> Result<TextModel> {
        let template = if name.ends_with(".jinja") {
            let path = Path::new(name);
            let source =
                std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
            ChatTemplate::new(&source, name)?
        } else {
            ChatTemplate::builtin(name, self.tokenizer.adds_bos())?
        };
        let model = self.with_chat_template(template);
        if model.end_of_turn().is_none() {
            _ = model.probe()?;
            return Err(Error::NoEndOfTurn { origin: model.origin(), message: 1 });
        }
        Ok(model)
    }

    /// The same tokenizer with a compiled template. One without an end-of-turn token in this vocabulary can render prompts, and is
    /// refused when it shall be trained on.
    pub fn with_chat_template(&self, template: ChatTemplate) -> TextModel {
        let mut model = TextModel { template: Some(template), turn: None, ..self.clone() };
        model.turn = model.probe().ok();
        model
    }

    /// The same with a date for templates that print today's. Without it `strftime_now` does not exist.
    pub fn with_date(&self, date: Date) -> TextModel {
        TextModel { date: Some(date), ..self.clone() }
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| Error::NoTemplate {
            origin: self.tokenizer.origin().to_owned(),
            builtins: BUILTIN_TEMPLATES.join(", "),
        })
    }

    pub(crate) fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered> {
        let context = Context { tokenizer: &self.tokenizer, add_generation_prompt, date: self.date };
        render(self.template()?, messages, &context)
    }

    /// The rendered text of a chat, for reading and for tools that tokenise themselves.
    pub fn render_text(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        Ok(self.render(messages, add_generation_prompt)?.text)
    }

    /// Renders one exchange to see how the template frames an answer.
    fn probe(&self) -> Result<Turn> {
        let chat = [Message::user("Hi"), Message::assistant("Yes")];
        let prompt = self.render(&chat[..1], true)?;
        let whole = self.render(&chat, false)?;
        let Some(answer) = whole.contents.iter().find(|content| content.message == 1) else {
            return Ok(Turn { gap: String::new(), end: None });
        };
        let between = whole.text.strip_prefix(&prompt.text).and_then(|rest| {
            let length = answer.range.start.checked_sub(whole.text.len() - rest.len())?;
            rest.get(..length)
        });
        let gap = between.filter(|gap| gap.trim().is_empty()).unwrap_or_default().to_owned();
        let end = self.control(&whole, 0..whole.text.len()).into_iter().find(|f| f.range.start >= answer.range.end);
        Ok(Turn { gap, end: end.map(|found| found.id) })
    }

    /// Prompt of a chat with its generation prompt.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let rendered = self.render(messages, true)?;
        let ids = self.tokenise_fast(&rendered)?;
        self.check_bos(&ids)?;
        Ok(ids)
    }

    /// As `encode_prompt`, but without white space at either end of the rendering, and in ChatML where the model's own template refuses the
    /// chat: prompt_engine's prompts. The contents' white space within is kept.
    pub fn encode_prompt_stripped(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let mut rendered = match self.render(messages, true) {
            Err(Error::Template { .. } | Error::NoTemplate { .. }) => {
                let chatml = self.with_chat_template(ChatTemplate::builtin("chatml", self.tokenizer.adds_bos())?);
                chatml.render(messages, true)?
            }
            rendered => rendered?,
        };
        rendered.strip();
        self.tokenise_fast(&rendered)
    }

    /// Whether `encode_prompt_stripped` renders `messages` in ChatML for want of a template that takes them.
    pub fn falls_back_to_chatml(&self, messages: &[Message]) -> bool {
        matches!(self.render(messages, true), Err(Error::Template { .. } | Error::NoTemplate { .. }))
    }

    /// As `encode_prompt`, but contents that spell control tokens become control tokens: what a careless server would do. For red-team
    /// work only.
    pub fn encode_prompt_forged(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.tokenizer.encode_markup(&self.render(messages, true)?.text)
    }

    /// Raw text as plain text, with BOS where the tokenizer adds it.
    pub fn encode_prompt_text(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.with_bos(self.tokenizer.encode_plain(text)?))
    }

    /// A conversation with its loss mask: assistant contents and their end-of-turn tokens are targets, nothing else. White space that the
    /// template puts between generation prompt and answer, or between answer and end of turn, is part of the answer. Refused when the last
    /// answer to a user does not stand where the prompt of a chat ends.
    pub fn encode_conversation(&self, conversation: &Conversation) -> Result<Encoded> {
        let encoded = self.encode_row(conversation)?;
        encoded.check_trained()?;
        Ok(encoded)
    }

    /// [`encode_conversation`](Self::encode_conversation) of a row that may have nothing to train on, for callers that count such rows.
    pub fn encode_row(&self, conversation: &Conversation) -> Result<Encoded> {
        let messages = &conversation.messages;
        let rendered = self.render(messages, false)?;
        let targets = self.target_ranges(&rendered, messages)?;
        self.check_prompt(&rendered, messages, &targets)?;
        let cuts: Vec<usize> = targets.iter().map(|range| range.start).collect();
        let tokens = self.tokenise(&rendered, 0..rendered.text.len(), &cuts)?;
        let trained = |at: usize| targets.iter().any(|range| range.contains(&at));
        let (ids, loss_mask) = tokens.into_iter().map(|(id, range)| (id, trained(range.start))).unzip();
        let encoded = Encoded { ids, loss_mask };
        self.check_bos(&encoded.ids)?;
        Ok(encoded)
    }

    /// Refuses a row whose last answer to a user is not preceded by the prompt that a chat would send there, white space before the answer
    /// apart. Earlier answers are not held to it: templates write the last exchange in ways of their own (Mistral's system message).
    fn check_prompt(&self, rendered: &Rendered, messages: &[Message], targets: &[Range<usize>]) -> Result<()> {
        let is_reply =
            |at: &usize| *at > 0 && messages[*at].role == Role::Assistant && messages[at - 1].role == Role::User;
        let Some(at) = (0..messages.len()).rfind(is_reply) else { return Ok(()) };
        let n_before = messages[..at].iter().filter(|message| message.role == Role::Assistant).count();
        let before = &rendered.text[..targets[n_before].start];
        let context = Context { tokenizer: &self.tokenizer, add_generation_prompt: true, date: self.date };
        let plain: Vec<_> = messages[..at].iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let prompt = self.template()?.render(&plain, &context)?;
        match before.strip_prefix(prompt.as_str()) {
            Some(between) if between.trim().is_empty() => Ok(()),
            _ => Err(self.other_prompt(before, &prompt)),
        }
    }

    fn other_prompt(&self, before: &str, prompt: &str) -> Error {
        let same = before.bytes().zip(prompt.bytes()).take_while(|(a, b)| a == b).count();
        Error::NotPrefixConsistent { origin: self.origin(), at: same }
    }

    /// A preference pair. The prompt is what `encode_prompt` gives; an answer is what follows it, up to its end-of-turn token.
    pub fn encode_pair(&self, pair: &Pair) -> Result<EncodedPair> {
        let prompt = self.render(&pair.prompt, true)?;
        let prompt_ids = self.tokenise_fast(&prompt)?;
        self.check_bos(&prompt_ids)?;
        Ok(EncodedPair {
            chosen_ids: self.encode_answer(&prompt, &pair.prompt, &pair.chosen)?,
            rejected_ids: self.encode_answer(&prompt, &pair.prompt, &pair.rejected)?,
            prompt_ids,
        })
    }

    fn encode_answer(&self, prompt: &Rendered, before: &[Message], answer: &[Message]) -> Result<Vec<u32>> {
        let index = before.len();
        if answer.len() != 1 || answer[0].role != Role::Assistant {
            let message = format!("an answer is one assistant message, found {} messages", answer.len());
            return Err(Error::Messages { index, message });
        }
        let messages = [before, answer].concat();
        let whole = self.render(&messages, false)?;
        let targets = self.target_ranges(&whole, &messages)?;
        let range = targets.last().ok_or(Error::LossMask { trained: 0, total: 0 })?.clone();
        if !whole.text.starts_with(&prompt.text) || range.start != prompt.text.len() {
            return Err(self.other_prompt(&whole.text[..range.start], &prompt.text));
        }
        Ok(self.tokenise(&whole, range, &[])?.into_iter().map(|(id, _)| id).collect())
    }

    /// Bytes of each assistant turn from the end of its generation prompt to the end of its end-of-turn token.
    fn target_ranges(&self, rendered: &Rendered, messages: &[Message]) -> Result<Vec<Range<usize>>> {
        let turn = match &self.turn {
            Some(turn) => turn.clone(),
            None => self.probe()?,
        };
        let control = self.control(rendered, 0..rendered.text.len());
        let mut targets = Vec::new();
        for (index, message) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
            let mut places = rendered.contents.iter().enumerate().filter(|(_, content)| content.message == index);
            let (Some((at, content)), None) = (places.next(), places.next()) else {
                let what = if message.content.trim().is_empty() {
                    "empty"
                } else {
                    "left out or repeated by the chat template"
                };
                return Err(Error::Messages { index, message: format!("assistant message is {what}") });
            };
            let next = rendered.contents.get(at + 1).map_or(usize::MAX, |next| next.range.start);
            let end = control
                .iter()
                .find(|found| {
                    found.range.start >= content.range.end && found.range.start < next && Some(found.id) == turn.end
                })
                .ok_or_else(|| Error::NoEndOfTurn { origin: self.origin(), message: index })?;
            targets.push(answer_start(rendered, content, &turn.gap)..end.range.end);
        }
        Ok(targets)
    }

    fn origin(&self) -> String {
        self.template.as_ref().map_or(self.tokenizer.origin(), ChatTemplate::origin).to_owned()
    }

    pub(crate) fn check_bos(&self, ids: &[u32]) -> Result<()> {
        match self.tokenizer.bos() {
            Some(bos) if ids.starts_with(&[bos, bos]) => Err(Error::DoubleBos {
                bos: self.tokenizer.bos_token().unwrap_or_default().to_owned(),
                origin: self.origin(),
            }),
            _ => Ok(()),
        }
    }

    /// Control tokens of the template's own text inside `span`.
    fn control(&self, rendered: &Rendered, span: Range<usize>) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        let mut at = span.start;
        for content in rendered.contents.iter().map(|content| &content.range) {
            if at < content.start.min(span.end) {
                found.extend(self.tokenizer.added().find(&rendered.text, at..content.start.min(span.end)));
            }
            at = at.max(content.end);
        }
        if at < span.end {
            found.extend(self.tokenizer.added().find(&rendered.text, at..span.end));
        }
        found
    }

    /// The whole rendering, without byte ranges.
    pub(crate) fn tokenise_fast(&self, rendered: &Rendered) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut at = 0;
        let place = |at: usize| if at == 0 { Place::Start } else { Place::AfterToken };
        for found in self.control(rendered, 0..rendered.text.len()) {
            if at < found.range.start {
                ids.extend(self.tokenizer.plain().encode(&rendered.text[at..found.range.start], place(at))?);
            }
            ids.push(found.id);
            at = found.range.end;
        }
        if at < rendered.text.len() {
            ids.extend(self.tokenizer.plain().encode(&rendered.text[at..], place(at))?);
        }
        Ok(ids)
    }

    /// Tokens of `span` with their bytes in the rendering; no token lies across one of `cuts`.
    fn tokenise(&self, rendered: &Rendered, span: Range<usize>, cuts: &[usize]) -> Result<Vec<TokenAt>> {
        let all = self.control(rendered, 0..rendered.text.len());
        let mut tokens = Vec::new();
        let mut at = span.start;
        let mut place = match span.start {
            0 => Place::Start,
            start if all.iter().any(|found| found.range.end == start) => Place::AfterToken,
            _ => Place::Middle,
        };
        for found in self.control(rendered, span.clone()) {
            self.tokenise_text(&rendered.text, at..found.range.start, place, cuts, &mut tokens)?;
            tokens.push((found.id, found.range.clone()));
            (at, place) = (found.range.end, Place::AfterToken);
        }
        self.tokenise_text(&rendered.text, at..span.end, place, cuts, &mut tokens)?;
        Ok(tokens)
    }

    fn tokenise_text(
        &self,
        text: &str,
        range: Range<usize>,
        place: Place,
        cuts: &[usize],
        tokens: &mut Vec<TokenAt>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let (mut from, mut place) = (range.start, place);
        loop {
            let piece = self.tokenizer.plain().encode_with_ranges(&text[from..range.end], place)?;
            let across = |cut: &usize| piece.iter().any(|(_, r)| from + r.start < *cut && *cut < from + r.end);
            let Some(cut) = cuts.iter().copied().filter(|cut| *cut > from && *cut < range.end).find(across) else {
                tokens.extend(piece.into_iter().map(|(id, r)| (id, from + r.start..from + r.end)));
                return Ok(());
            };
            let head = self.tokenizer.plain().encode_with_ranges(&text[from..cut], place)?;
            tokens.extend(head.into_iter().map(|(id, r)| (id, from + r.start..from + r.end)));
            (from, place) = (cut, Place::Middle);
        }
    }

    /// Ids that end an answer: EOS ids and the template's end-of-turn token, sorted.
    pub fn stop_ids(&self) -> Vec<u32> {
        let mut ids = self.tokenizer.eos_ids().to_vec();
        ids.extend(self.end_of_turn());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The template's end-of-turn token.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.turn.as_ref().and_then(|turn| turn.end)
    }

    /// Refuses a template known to write no end-of-turn token after an answer, before any row is rendered: a model trained with it could
    /// never learn to stop. A template that the probe cannot render is judged by its rows.
    pub fn check_end_of_turn(&self) -> Result<()> {
        match (&self.template, &self.turn) {
            (None, _) => self.template().map(|_| ()),
            (Some(_), Some(Turn { end: None, .. })) => Err(Error::NoEndOfTurn { origin: self.origin(), message: 1 }),
            (Some(_), _) => Ok(()),
        }
    }

    /// What an output folder needs so that transformers loads the same tokenizer and template.
    pub fn files(&self) -> Vec<TextFile> {
        let mut config = self.tokenizer.config().clone();
        config.remove("auto_map");
        // The generic class reads tokenizer.json as it stands; named classes of transformers 5 rebuild the pipeline by their own rules.
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        if let Some(template) = &self.template {
            config.insert("chat_template".to_owned(), json!(template.source()));
        }
        let mut special = Map::new();
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            if let Some(text) = crate::tokenizer::special_text(&config, key) {
                config.insert(key.to_owned(), json!(text));
                special.insert(key.to_owned(), json!(text));
            }
        }
        let pretty = |map: Map<String, Value>| format!("{:#}\n", Value::Object(map)).into_bytes();
        vec![
            TextFile { name: "tokenizer.json".to_owned(), bytes: self.tokenizer.json().to_vec() },
            TextFile { name: "tokenizer_config.json".to_owned(), bytes: pretty(config) },
            TextFile { name: "special_tokens_map.json".to_owned(), bytes: pretty(special) },
        ]
    }

    /// SHA-256 over `files()`, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut hasher = aloe_record::digest::Hasher::default();
        for file in self.files() {
            hasher.field(file.name.as_bytes());
            hasher.field(&file.bytes);
        }
        hasher.hex()
    }
}

/// Where an answer starts: at its content, or at the white space before it that the generation prompt leaves to the model.
fn answer_start(rendered: &Rendered, content: &Content, gap: &str) -> usize {
    let start = content.range.start;
    if rendered.text[..start].ends_with(gap) { start - gap.len() } else { start }
}
