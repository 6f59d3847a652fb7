//! Tokens of the rows that are written, by the recipe's tokenizer and template: counted by source, task and licence, and, where asked
//! for, written as ids and labels for other trainers. What is written is what `aloe sft` and `aloe dpo` train on: both call the same
//! functions of `aloe-text`. Rows longer than a training stage's `max_len` are written whole: dropping or splitting them is that stage's.

use super::Run;
use super::licences::licence_of;
use crate::mixture::Mixture;
use crate::{Body, DataConfig, Error, Item, Result, parallel};
use aloe_record::{atomic, digest};
use aloe_text::{Conversation, Message, TextModel};
use serde_json::json;
use std::io::Write as _;
use std::path::Path;

/// Rows whose ids are in memory at a time.
const N_BLOCK: usize = 4096;

/// A row's ids.
struct Rendered {
    /// With the template; of a pair the prompt counts twice.
    n_tokens: usize,
    /// That the loss sees.
    n_targets: usize,
    /// The line of `rendered.jsonl`, where it is asked for.
    line: Option<Vec<u8>>,
}

/// The recipe's tokenizer with its template, which has rendered an exchange, behind a system message where it wants one: what it cannot do
/// for any row it is refused for here.
pub(super) fn open(config: &DataConfig) -> Result<Option<TextModel>> {
    let Some(folder) = &config.tokenizer else { return Ok(None) };
    let opened = TextModel::open(folder).and_then(|text| match &config.template {
        Some(name) => text.with_template(name),
        None => Ok(text),
    });
    let tried = opened.and_then(|text| {
        let exchange = vec![Message::user("Hi"), Message::assistant("Yes")];
        let behind_system = [vec![Message::system("Be kind.")], exchange.clone()].concat();
        let encode = |messages| text.encode_conversation(&Conversation { messages });
        encode(exchange).or_else(|error| encode(behind_system).map_err(|_| error))?;
        Ok(text)
    });
    Ok(Some(tried.map_err(|source| Error::Text { at: folder.display().to_string(), source })?))
}

impl Run<'_> {
    /// Counts tokens by `text`, and writes `rendered.jsonl` and `rendered_hold_out.jsonl` where `rendered` is set.
    pub(super) fn render(&mut self, text: Option<&TextModel>, out: &Path, mixture: &Mixture) -> Result<()> {
        let Some(text) = text else { return Ok(()) };
        self.render_rows(text, &mixture.train, out, "rendered.jsonl", true)?;
        if self.config.rendered && self.config.hold_out > 0.0 {
            self.render_rows(text, &mixture.held_out, out, "rendered_hold_out.jsonl", false)?;
        }
        Ok(())
    }

    fn render_rows(&mut self, text: &TextModel, rows: &[usize], out: &Path, name: &str, counts: bool) -> Result<()> {
        if !self.config.rendered {
            return self.each_rendered(text, rows, counts, &mut |_| Ok(()));
        }
        let path = out.join(name);
        let mut hasher = digest::Hasher::default();
        atomic::write_with(&path, |file| {
            self.each_rendered(text, rows, counts, &mut |line| {
                hasher.update(line);
                Ok(file.write_all(line).map_err(aloe_record::Error::io("write", &path))?)
            })
        })?;
        self.report.outputs.insert(name.to_owned(), hasher.hex());
        Ok(())
    }

    fn each_rendered(
        &mut self,
        text: &TextModel,
        rows: &[usize],
        counts: bool,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        for block in rows.chunks(N_BLOCK) {
            self.cancel.check()?;
            let (items, config) = (&self.items, self.config);
            let rendered = parallel::map(self.n_threads, block, |&row| {
                let source = &config.sources[items[row].source].name;
                let made = render(text, &items[row], config.rendered.then_some(source.as_str()));
                made.map_err(|source| Error::Text { at: items[row].at.to_string(), source })
            });
            for (&row, rendered) in block.iter().zip(rendered) {
                let rendered = rendered?;
                if counts {
                    self.count_row(row, &rendered);
                }
                if let Some(line) = &rendered.line {
                    each(line)?;
                }
            }
        }
        Ok(())
    }

    fn count_row(&mut self, row: usize, rendered: &Rendered) {
        let item = &self.items[row];
        let doubling = rendered.n_tokens.checked_ilog2().map_or(0, |log| 1usize << log);
        *self.report.rows_by_tokens.entry(if doubling < 32 { 0 } else { doubling }).or_default() += 1;
        let source = &mut self.report.sources[item.source];
        *source.n_tokens.get_or_insert(0) += rendered.n_tokens;
        *source.n_target_tokens.get_or_insert(0) += rendered.n_targets;
        *self.report.tokens_by_task.entry(item.about.task.to_string()).or_default() += rendered.n_tokens;
        *self.report.tokens_by_licence.entry(licence_of(item, self.config).to_owned()).or_default() +=
            rendered.n_tokens;
    }
}

/// `source` is the name of the row's source, when a line is wanted.
fn render(text: &TextModel, item: &Item, source: Option<&str>) -> aloe_text::Result<Rendered> {
    let line = |value: serde_json::Value| {
        let mut bytes = value.to_string().into_bytes();
        bytes.push(b'\n');
        bytes
    };
    match &item.body {
        Body::Conversation(conversation) => {
            let encoded = text.encode_conversation(conversation)?;
            // -100 is what PyTorch's cross-entropy ignores.
            let label = |(&id, &trained): (&u32, &bool)| if trained { i64::from(id) } else { -100 };
            let line = source.map(|source| {
                let labels: Vec<i64> = encoded.ids.iter().zip(&encoded.loss_mask).map(label).collect();
                line(json!({"id": item.id, "source": source, "input_ids": encoded.ids, "labels": labels}))
            });
            Ok(Rendered { n_tokens: encoded.ids.len(), n_targets: encoded.n_targets(), line })
        }
        Body::Pair(pair) => {
            let encoded = text.encode_pair(pair)?;
            let n_targets = encoded.chosen_ids.len() + encoded.rejected_ids.len();
            let line = source.map(|source| {
                line(json!({
                    "id": item.id, "source": source, "prompt_ids": encoded.prompt_ids, "chosen_ids": encoded.chosen_ids,
                    "rejected_ids": encoded.rejected_ids,
                }))
            });
            Ok(Rendered { n_tokens: 2 * encoded.prompt_ids.len() + n_targets, n_targets, line })
        }
    }
}
