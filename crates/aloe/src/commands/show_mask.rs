//! `aloe show-mask`: one training row with the trained tokens visible, by the code that training itself uses.

use crate::cli::ShowMaskArgs;
use crate::commands::open_text;
use crate::failure::Failure;
use aloe_text::{Conversation, MaskStyle, show_mask};
use std::io::{IsTerminal as _, Write as _};

/// Encodes the row and prints it.
pub(crate) fn run(args: &ShowMaskArgs) -> anyhow::Result<()> {
    let text = open_text(&args.model)?;
    let content = std::fs::read_to_string(&args.data)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", args.data.display())))?;
    let line = content.lines().nth(args.row).ok_or_else(|| {
        Failure::usage(format!("{} has {} rows, no row {}", args.data.display(), content.lines().count(), args.row))
    })?;
    let conversation: Conversation = serde_json::from_str(line)
        .map_err(|error| Failure::usage(format!("{}:{}: {error}", args.data.display(), args.row + 1)))?;
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
