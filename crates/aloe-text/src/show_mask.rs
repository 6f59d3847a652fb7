//! The loss mask for a person's eyes: what is trained stands out. Control characters, and those that turn the direction of writing, are shown
//! escaped, because data is untrusted and a terminal obeys it.

use crate::{Encoded, Result, TextModel};

/// How trained text is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskStyle {
    /// Between `⟦` and `⟧`, for files and pipes.
    Plain,
    /// Bold green, the rest dim, for terminals.
    Ansi,
}

/// (trained, all) tokens.
pub fn mask_counts(encoded: &Encoded) -> (usize, usize) {
    (encoded.n_targets(), encoded.ids.len())
}

/// Text of the ids with trained tokens visible.
pub fn show_mask(model: &TextModel, encoded: &Encoded, style: MaskStyle) -> Result<String> {
    let (open, close, rest) = match style {
        MaskStyle::Plain => ("⟦", "⟧", ""),
        MaskStyle::Ansi => ("\u{1b}[0;1;32m", "\u{1b}[0m", "\u{1b}[2m"),
    };
    let mut out = rest.to_owned();
    let mut at = 0;
    let mut stream = model.tokenizer.decode_stream(false);
    while at < encoded.ids.len() {
        let trained = encoded.loss_mask[at];
        let run = encoded.loss_mask[at..].iter().take_while(|&&t| t == trained).count();
        if trained {
            out.push_str(open);
        }
        for &id in &encoded.ids[at..at + run] {
            escape(&stream.step(id)?, &mut out);
        }
        if trained {
            out.push_str(close);
            out.push_str(rest);
        }
        at += run;
    }
    escape(&stream.finish()?, &mut out);
    if style == MaskStyle::Ansi {
        out.push_str(close);
    }
    Ok(out)
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        if (c.is_control() && c != '\n' && c != '\t') || turns_writing(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
}

/// The marks, embeddings, overrides and isolates of Unicode's bidirectional algorithm (UAX 9, table 4): what follows them is shown in another
/// order than it is read by the model.
fn turns_writing(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
