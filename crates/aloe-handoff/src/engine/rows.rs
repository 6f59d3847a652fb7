//! A stage's rows for a foreign trainer: rendered by our tokenizer, template and mask, packed and ordered as our own trainer would.
//!
//! Into `data/NAME/` go `rendered.jsonl` (ids, which the configurations use), `held_out.jsonl` (those of held-out rows, where there are
//! any), `messages.jsonl` (the rows that are trained on as messages, for other tools) and `template.jinja` (with `{% generation %}` marks where the template is of a known form and renders these rows alike).
//! Both engines get whole steps: packed rows of all epochs in order, each epoch's last step filled up with rows that train nothing.

use super::template::marked;
use super::{Error, Settings};
use crate::plan::Trainer;
use crate::verify::Counts;
use aloe_model::Config;
use aloe_record::atomic;
use aloe_text::{EncodedPair, Message, TextModel};
use aloe_train::{DpoBatches, DpoConfig, DpoInputs, DpoRow, PackedRow, SftBatches, SftConfig, SftInputs, SftRow};
use serde_json::{Value, json};
use std::io::{BufWriter, Write};
use std::path::Path;

/// The file of ids that an engine trains on.
pub const ROWS: &str = "rendered.jsonl";

/// The file of ids that it evaluates while it trains, in the same form; only where rows are held out.
pub const HELD_OUT: &str = "held_out.jsonl";

/// The rows of a data stage.
#[derive(Clone, Debug)]
pub enum Rows {
    /// Conversations: to train on, and held out.
    Sft(Vec<SftRow>, Vec<SftRow>),
    /// Pairs: to train on, and held out.
    Dpo(Vec<DpoRow>, Vec<DpoRow>),
}

/// What rows are rendered from. The model itself need not exist yet: its tokenizer, template and configuration are those of the
/// model it is made from.
#[derive(Clone, Debug)]
pub struct RowsInput<'a> {
    /// Who is to read them.
    pub trainer: Trainer,
    /// Our settings; the kind must be that of the rows.
    pub settings: &'a Settings,
    /// Tokenizer and template, that of `chat_template` where the settings name one.
    pub text: &'a TextModel,
    /// Vocabulary and context length.
    pub model: &'a Config,
    /// The rows.
    pub rows: Rows,
}

/// What was rendered.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// Optimizer steps: `n_steps` of the stage's [`super::TrainSpec`].
    pub n_steps: u64,
    /// Optimizer steps of each chunk of pairs: `chunk_steps` of that spec. None where they are not cut.
    pub chunk_steps: Vec<u64>,
    /// Rows and tokens of an epoch: `counts` of that spec.
    pub counts: Counts,
    /// Names of the files written.
    pub files: Vec<String>,
    /// What the user must be told.
    pub notices: Vec<String>,
}

/// Writes `data/NAME/` (`folder` on disk).
pub fn render_rows(input: RowsInput<'_>, folder: &Path) -> Result<Rendered, Error> {
    std::fs::create_dir_all(folder).map_err(aloe_record::Error::io("create", folder))?;
    let RowsInput { trainer, settings, text, model, rows } = input;
    match (settings, rows) {
        (Settings::Sft(config), Rows::Sft(rows, held_out)) => {
            let inputs = SftInputs { start: "".into(), rows, held_out };
            sft(trainer, config, SftBatches::prepare(config, inputs, text, model)?, text, folder)
        }
        (Settings::Dpo(config), Rows::Dpo(rows, held_out)) => {
            let inputs = DpoInputs { start: "".into(), rows, held_out };
            dpo(trainer, config, &DpoBatches::prepare(config, inputs, text, model)?, text, folder)
        }
        (settings, _) => {
            let kind = if matches!(settings, Settings::Sft(_)) { "conversations" } else { "pairs" };
            Err(Error::Settings { mistakes: vec![format!("data: the stage needs {kind}")] })
        }
    }
}

fn sft(
    trainer: Trainer,
    config: &SftConfig,
    mut batches: SftBatches,
    text: &TextModel,
    folder: &Path,
) -> Result<Rendered, Error> {
    lines(&folder.join(ROWS), |write| {
        (0..batches.n_steps).try_for_each(|step| {
            let rows = batches.batch(step);
            let fillers = std::iter::repeat_n(filler(&rows), config.batch_size - rows.len());
            rows.iter().cloned().chain(fillers).try_for_each(|row| write(&packed_row(trainer, &row)))
        })
    })?;
    held_out(folder, batches.held_out().iter().map(|row| packed_row(trainer, row)))?;
    lines(&folder.join("messages.jsonl"), |write| batches.conversations().try_for_each(|row| write(&json!(row))))?;
    let chats: Vec<&[Message]> = batches.conversations().map(|row| row.messages.as_slice()).collect();
    let report = &batches.report;
    let mut notices = report.notices.clone();
    notices.extend(template(text, &chats, folder)?);
    Ok(Rendered {
        n_steps: batches.n_steps,
        chunk_steps: Vec::new(),
        counts: Counts {
            n_rows: report.n_rows as u64,
            n_tokens: report.n_tokens,
            n_targets: report.n_targets,
            n_held_out: report.n_held_out as u64,
            n_held_out_targets: report.n_held_out_targets as u64,
        },
        files: files(folder),
        notices,
    })
}

fn dpo(
    trainer: Trainer,
    config: &DpoConfig,
    batches: &DpoBatches,
    text: &TextModel,
    folder: &Path,
) -> Result<Rendered, Error> {
    lines(&folder.join(ROWS), |write| {
        (0..batches.n_steps)
            .try_for_each(|step| batches.batch(step).into_iter().try_for_each(|pair| write(&pair_row(pair))))
    })?;
    held_out(folder, batches.held_out().map(pair_row))?;
    lines(&folder.join("messages.jsonl"), |write| batches.pairs().try_for_each(|pair| write(&json!(pair))))?;
    let chats: Vec<Vec<Message>> = batches.pairs().map(|pair| [&pair.prompt[..], &pair.chosen].concat()).collect();
    let chats: Vec<&[Message]> = chats.iter().map(Vec::as_slice).collect();
    let report = &batches.report;
    let mut notices = report.notices.clone();
    if batches.n_left_out > 0 {
        notices.push(format!(
            "{} of {} pairs of each {} do not fill a step of batch_size = {} and are left out of it: {} makes whole steps alone (the local \
             trainer would make a short one)",
            batches.n_left_out,
            report.n_pairs,
            if config.chunks > 1 { "pass over all chunks" } else { "epoch" },
            config.batch_size,
            trainer.name()
        ));
    }
    notices.extend(template(text, &chats, folder)?);
    Ok(Rendered {
        n_steps: batches.n_steps,
        chunk_steps: if config.chunks > 1 { batches.chunk_steps.clone() } else { Vec::new() },
        counts: Counts {
            n_rows: report.n_pairs as u64,
            n_tokens: report.n_tokens,
            n_targets: report.n_targets,
            n_held_out: report.n_held_out as u64,
            n_held_out_targets: 0,
        },
        files: files(folder),
        notices,
    })
}

fn files(folder: &Path) -> Vec<String> {
    let names = [ROWS, HELD_OUT, "messages.jsonl", "template.jinja"];
    names.into_iter().filter(|name| folder.join(name).is_file()).map(str::to_owned).collect()
}

/// Writes the held-out rows; without any there is no such file, also where an earlier plan left one.
fn held_out(folder: &Path, rows: impl Iterator<Item = Value>) -> Result<(), Error> {
    let (path, mut rows) = (folder.join(HELD_OUT), rows.peekable());
    if rows.peek().is_some() {
        return lines(&path, |write| rows.try_for_each(|row| write(&row)));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(aloe_record::Error::io("remove", &path)(error).into())
        }
        _ => Ok(()),
    }
}

fn pair_row(pair: &EncodedPair) -> Value {
    json!({"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids})
}

/// Writes `template.jinja`; a sentence where it could not be marked.
fn template(text: &TextModel, chats: &[&[Message]], folder: &Path) -> Result<Option<String>, Error> {
    let found = marked(text, chats)?;
    atomic::write(&folder.join("template.jinja"), found.source.as_bytes())?;
    Ok((!found.is_marked).then(|| {
        "template.jinja has no generation marks: its form is not a known one. rendered.jsonl carries the loss mask"
            .to_owned()
    }))
}

/// Tokens that are no target have the label -100.
fn labels(row: &PackedRow) -> Vec<i64> {
    let label = |(&id, &is_target): (&u32, &bool)| if is_target { i64::from(id) } else { -100 };
    row.ids.iter().zip(&row.is_target).map(label).collect()
}

/// TRL's collator makes positions of the documents' lengths; axolotl's takes positions, and no mask: where they begin again at 0
/// transformers keeps the documents apart.
fn packed_row(trainer: Trainer, row: &PackedRow) -> Value {
    match trainer {
        Trainer::Axolotl => {
            let positions: Vec<usize> = row.lens.iter().flat_map(|&len| 0..len).collect();
            json!({"input_ids": row.ids, "labels": labels(row), "position_ids": positions})
        }
        _ => json!({"input_ids": row.ids, "labels": labels(row), "seq_lengths": row.lens}),
    }
}

/// A row of two tokens that trains nothing and changes no mean: it fills up the last step of an epoch.
fn filler(rows: &[PackedRow]) -> PackedRow {
    let id = rows.first().and_then(|row| row.ids.first()).copied().unwrap_or(0);
    PackedRow { ids: vec![id; 2], is_target: vec![false; 2], lens: vec![2] }
}

type WriteLine<'a> = &'a mut dyn FnMut(&Value) -> Result<(), Error>;

fn lines(path: &Path, fill: impl FnOnce(WriteLine<'_>) -> Result<(), Error>) -> Result<(), Error> {
    atomic::write_with(path, |out: &mut BufWriter<std::fs::File>| {
        fill(&mut |row| Ok(writeln!(out, "{row}").map_err(aloe_record::Error::io("write", path))?))
    })
}
