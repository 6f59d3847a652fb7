//! `aloe show-mask`: one training row with the trained tokens visible, by the code that training itself uses.

use crate::cli::ShowMaskArgs;
use crate::commands::open_text;
use crate::commands::rows::{is_blank, text_of};
use crate::failure::Failure;
use aloe_text::{Conversation, MaskStyle, show_mask};
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

/// Encodes the row and prints it.
pub(crate) fn run(args: &ShowMaskArgs) -> anyhow::Result<()> {
    let text = open_text(&args.model)?;
    let text = match &args.chat_template {
        Some(name) => text.with_template(name)?,
        None => text,
    };
    let file = rows_file(&args.data)?;
    let line = nth_line(&file, args.row)?;
    let conversation: Conversation = serde_json::from_str(&line).map_err(|error| {
        let hint = "show-mask shows rows with `messages`, as `aloe data run` writes them for sft";
        Failure::usage(format!("{}:{}: {error}; {hint}", file.display(), args.row + 1))
    })?;
    let encoded = text.encode_conversation(&conversation)?;
    let mut out = std::io::stdout();
    if args.json {
        let tokens: Vec<String> =
            encoded.ids.iter().map(|&id| text.tokenizer.decode(&[id], false)).collect::<Result<_, _>>()?;
        let value = serde_json::json!({"ids": encoded.ids, "tokens": tokens, "loss_mask": encoded.loss_mask});
        writeln!(out, "{value}")?;
        return Ok(());
    }
    let style = if out.is_terminal() { MaskStyle::Ansi } else { MaskStyle::Plain };
    writeln!(out, "{}", show_mask(&text, &encoded, style)?)?;
    Ok(())
}

/// The file of rows: the one given, or a data stage's `train.jsonl`.
fn rows_file(data: &Path) -> anyhow::Result<PathBuf> {
    let inside = data.join("train.jsonl");
    if data.is_dir() && !inside.exists() {
        let text = format!("{} holds no train.jsonl; give a file, or the folder of a data stage", data.display());
        return Err(Failure::usage(text).into());
    }
    Ok(if data.is_dir() { inside } else { data.to_path_buf() })
}

/// Row `at` of a file, counted from 0; the file is read no further.
fn nth_line(file: &Path, at: usize) -> anyhow::Result<String> {
    let cannot = |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", file.display()));
    let mut reader = std::io::BufReader::new(std::fs::File::open(file).map_err(cannot)?);
    // Blank lines at the end are no rows; of one between rows the text is refused.
    let (mut n_rows, mut found) = (0, None);
    for number in 0.. {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line).map_err(cannot)? == 0 {
            break;
        }
        let is_row = !is_blank(&line);
        n_rows = if is_row { number + 1 } else { n_rows };
        found = if number == at { Some(line) } else { found };
        if let Some(line) = found.as_ref().filter(|_| is_row) {
            return Ok(text_of(line, file, at)?.trim_end_matches(['\r', '\n']).to_owned());
        }
    }
    Err(Failure::usage(format!("{} has {n_rows} rows, counted from 0; there is no row {at}", file.display())).into())
}
