//! From conversations to documents: encoded, set apart, cut where they are too long and that is asked for, checked, dropped.
//!
//! Refuses data of which nothing or everything is trained on and rows beyond the model's context; counts and names what it drops or
//! cuts. A long row is cut at turns: each piece is the system message and as many whole exchanges as fit, rendered anew, so that its
//! answers see the exchanges of their own piece and none before it. An exchange that is too long by itself is cut into windows of
//! `max_len` tokens; each but the first begins with half a row of what came before, as context that is not trained on. Either way
//! every answer's token is trained on once.

use crate::held_out::take_apart;
use crate::pack::{Document, PIECE};
use crate::sft::{LongRows, SftConfig, SftReport, SftRow};
use crate::{Error, Result};
use aloe_record::CounterRng;
use aloe_text::{Conversation, Encoded, Message, Role, TextModel};

/// How many rows were cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Rows that were cut.
    pub(crate) n_rows: usize,
    /// Those among them of which an exchange was cut.
    pub(crate) n_inside: usize,
    /// What they were cut into.
    pub(crate) n_pieces: usize,
}

impl Cut {
    pub(crate) fn add(&mut self, other: &Self) {
        self.n_rows += other.n_rows;
        self.n_inside += other.n_inside;
        self.n_pieces += other.n_pieces;
    }

    /// A line for the user; none when nothing was cut.
    pub(crate) fn notice(&self, max_len: usize) -> Option<String> {
        let Self { n_rows, n_inside, n_pieces } = self;
        (*n_rows > 0).then(|| {
            format!(
                "{n_rows} rows longer than max_len were cut into {n_pieces} pieces; each piece sees its own exchanges alone. In {n_inside} of \
                 them one exchange was too long by itself: its windows share {} tokens of context",
                max_len / 2
            )
        })
    }
}

/// The documents of `rows`, long ones cut where `config` says so.
pub(crate) fn encode(rows: &[SftRow], text: &TextModel, config: &SftConfig) -> Result<(Vec<Document>, Cut)> {
    let (mut documents, mut cut) = (Vec::with_capacity(rows.len()), Cut::default());
    for row in rows {
        let encoded = encode_messages(row, &row.conversation.messages, text)?;
        if config.long_rows == LongRows::Drop || encoded.ids.len() <= config.max_len || encoded.n_targets() == 0 {
            documents.push(Document::new(row, row.source.clone(), encoded));
            continue;
        }
        let (pieces, is_inside) = pieces(row, text, config.max_len)?;
        cut.add(&Cut { n_rows: 1, n_inside: usize::from(is_inside), n_pieces: pieces.len() });
        let name = |at: usize| format!("{}{PIECE}{})", row.source, at + 1);
        documents.extend(pieces.into_iter().enumerate().map(|(at, piece)| Document::new(row, name(at), piece)));
    }
    Ok((documents, cut))
}

/// The ids and loss mask of each row, or of its pieces, exactly as [`crate::sft()`] trains on them: what rows rendered elsewhere are held to.
pub fn trained_rows(rows: &[SftRow], text: &TextModel, config: &SftConfig) -> Result<Vec<Encoded>> {
    let (documents, _) = encode(rows, text, config)?;
    let trained = documents.into_iter().filter(|one| one.n_targets() > 0);
    Ok(trained.map(|one| Encoded { ids: one.ids, loss_mask: one.loss_mask }).collect())
}

fn encode_messages(row: &SftRow, messages: &[Message], text: &TextModel) -> Result<Encoded> {
    let encoded = text.encode_row(&Conversation { messages: messages.to_vec() }).and_then(|encoded| {
        // A row without a target is counted and dropped; one of targets alone has no prompt that was masked.
        if encoded.n_targets() > 0 {
            encoded.check_trained()?;
        }
        Ok(encoded)
    });
    encoded.map_err(|error| Error::Data { what: row.source.clone(), reason: error.to_string() })
}

/// Where answers without a letter stand: their rows train on the bare end of a turn.
pub(crate) fn empty_answers(rows: &[SftRow]) -> Vec<String> {
    let is_empty = |message: &Message| message.role == Role::Assistant && message.content.trim().is_empty();
    let found = rows.iter().filter(|row| row.conversation.messages.iter().any(is_empty));
    found.map(|row| row.source.clone()).collect()
}

/// The pieces of a long row, and whether an exchange had to be cut.
fn pieces(row: &SftRow, text: &TextModel, max_len: usize) -> Result<(Vec<Encoded>, bool)> {
    let messages = &row.conversation.messages;
    let n_head = messages.iter().take_while(|message| message.role == Role::System).count();
    let (head, rest) = messages.split_at(n_head);
    let ends = exchange_ends(rest);
    let (mut found, mut is_inside, mut from) = (Vec::new(), false, 0);
    let mut next = 0;
    while next < ends.len() {
        let upto = |end: usize| encode_messages(row, &[head, &rest[from..end]].concat(), text);
        let mut piece = upto(ends[next])?;
        next += 1;
        if piece.ids.len() > max_len {
            is_inside = true;
            found.extend(windows(&piece, max_len));
        } else {
            while next < ends.len() {
                let longer = upto(ends[next])?;
                if longer.ids.len() > max_len {
                    break;
                }
                (piece, next) = (longer, next + 1);
            }
            found.push(piece);
        }
        from = ends[next - 1];
    }
    Ok((found, is_inside))
}

/// Where each exchange ends: after the last assistant message before another role speaks, or the conversation is over. What follows
/// the last answer belongs to none.
fn exchange_ends(messages: &[Message]) -> Vec<usize> {
    let is_answer = |at: usize| messages.get(at).is_some_and(|message| message.role == Role::Assistant);
    (1..=messages.len()).filter(|&end| is_answer(end - 1) && !is_answer(end)).collect()
}

/// Windows of `max_len` tokens that have something to train on; each token is trained on in one of them.
fn windows(whole: &Encoded, max_len: usize) -> Vec<Encoded> {
    let (mut found, mut start, mut done) = (Vec::new(), 0, 0);
    while done < whole.ids.len() {
        let end = whole.ids.len().min(start + max_len);
        let loss_mask: Vec<bool> = (start..end).map(|at| at >= done && whole.loss_mask[at]).collect();
        if loss_mask.contains(&true) {
            found.push(Encoded { ids: whole.ids[start..end].to_vec(), loss_mask });
        }
        done = end;
        start = end - max_len / 2;
    }
    found
}

/// Refuses data in which no token or every token is trained on: a template without a working mask.
pub(crate) fn check_shares<'a>(documents: impl Iterator<Item = &'a Document>) -> Result<()> {
    let refuse = |reason: &str| Err(Error::Data { what: "training rows".into(), reason: reason.into() });
    let (mut n_documents, mut n_tokens, mut n_trained) = (0, 0, 0);
    for document in documents {
        n_documents += 1;
        n_tokens += document.ids.len();
        n_trained += document.loss_mask.iter().filter(|&&trained| trained).count();
    }
    if n_documents == 0 {
        refuse("there are none")
    } else if n_trained == 0 {
        refuse("0 % of the tokens are trained on; look at a row with show-mask")
    } else if n_trained == n_tokens {
        refuse("100 % of the tokens are trained on, prompts included; look at a row with show-mask")
    } else {
        Ok(())
    }
}

pub(crate) fn check_vocabulary<'a>(mut documents: impl Iterator<Item = &'a Document>, vocab_size: usize) -> Result<()> {
    let beyond = |document: &&Document| document.ids.iter().any(|&id| id as usize >= vocab_size);
    match documents.find(beyond) {
        None => Ok(()),
        Some(document) => Err(Error::Data {
            what: document.source.clone(),
            reason: format!("holds a token id beyond the model's vocabulary of {vocab_size}"),
        }),
    }
}

/// Refuses the longest row where it does not fit the model's context of `context_len` tokens.
pub(crate) fn check_context<'a>(documents: impl Iterator<Item = &'a Document>, context_len: usize) -> Result<()> {
    match documents.max_by_key(|document| document.ids.len()) {
        Some(longest) if longest.ids.len() > context_len => Err(Error::Data {
            what: longest.source.clone(),
            reason: format!(
                "has {} tokens, more than the model's context of {context_len}; set max_len = {context_len}: longer rows are then \
                 dropped, or cut with long_rows = \"split\"",
                longest.ids.len()
            ),
        }),
        _ => Ok(()),
    }
}

/// Takes a share of the rows out, chosen by the seed, and keeps the order of both parts.
pub(crate) fn set_apart(rows: &mut Vec<SftRow>, share: f64, seed: u64) -> Result<Vec<SftRow>> {
    take_apart(rows, share, CounterRng::new(seed, "sft-held-out", 0), "rows")
}

/// Drops, counts and names what is too long or has nothing to train on.
pub(crate) fn keep_usable(documents: &mut Vec<Document>, max_len: usize, report: &mut SftReport) {
    documents.retain(|document| {
        let empty = document.n_targets() == 0;
        let too_long = document.ids.len() > max_len && !empty;
        report.n_too_long += usize::from(too_long);
        report.n_without_target += usize::from(empty);
        if (too_long || empty) && report.dropped.len() < 100 {
            report.dropped.push(document.source.clone());
        }
        !too_long && !empty
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_end_after_their_last_answer_and_an_open_question_belongs_to_none() {
        let roles = |text: &str| -> Vec<Message> {
            text.chars().map(|role| if role == 'u' { Message::user("x") } else { Message::assistant("y") }).collect()
        };
        for (conversation, ends) in [
            ("ua", vec![2]),
            ("uaua", vec![2, 4]),
            ("uuaau", vec![4]),
            ("aua", vec![1, 3]),
            ("u", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(exchange_ends(&roles(conversation)), ends, "{conversation}");
        }
    }

    /// Prompt of 3, answer of 9, rows of 4: windows 0..4, 2..6, 4..8, 6..10, 8..12, each training on its last two but the first.
    #[test]
    fn windows_train_on_every_answer_token_once_with_half_a_row_before_it() {
        let whole = Encoded { ids: (0..12).collect(), loss_mask: (0..12).map(|at| at >= 3).collect() };
        let found = windows(&whole, 4);
        let trained = |piece: &Encoded| -> Vec<u32> {
            piece.ids.iter().zip(&piece.loss_mask).filter(|(_, trained)| **trained).map(|(id, _)| *id).collect()
        };
        let ids: Vec<Vec<u32>> = found.iter().map(|piece| piece.ids.clone()).collect();
        assert_eq!(ids, [0..4, 2..6, 4..8, 6..10, 8..12].map(|range| range.collect::<Vec<u32>>()));
        assert_eq!(
            found.iter().map(trained).collect::<Vec<_>>(),
            [vec![3], vec![4, 5], vec![6, 7], vec![8, 9], vec![10, 11]]
        );
        // A prompt that fills the first windows leaves those out; odd lengths train each token once too.
        let late = Encoded { ids: (0..23).collect(), loss_mask: (0..23).map(|at| at >= 13).collect() };
        for max_len in [2, 3, 5, 7, 22] {
            let found = windows(&late, max_len);
            assert_eq!(found.iter().flat_map(trained).collect::<Vec<_>>(), (13..23).collect::<Vec<_>>(), "{max_len}");
            assert!(found.iter().all(|piece| piece.ids.len() <= max_len && !piece.loss_mask[0]), "{max_len}");
        }
    }
}
