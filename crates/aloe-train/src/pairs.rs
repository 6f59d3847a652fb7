//! Encoded preference pairs, and their packed form with each prompt computed once for both answers.
//!
//! Refuses pairs of another form and ids beyond the vocabulary, each by file and line; drops, counts and names what is too long or
//! says nothing, after taking whole oldest turns out of a prompt where the settings ask for it.

use crate::dpo::DpoRow;
use crate::dpo_report::DpoReport;
use crate::held_out::take_apart;
use crate::learner::{Targets, target_logps};
use crate::preference::PairLogps;
use crate::{Error, Result};
use aloe_model::{Branches, Decoder, PackedBatch};
use aloe_record::CounterRng;
use aloe_text::{EncodedPair, Message, Pair, Role, TextModel};
use serde::{Deserialize, Serialize};

/// An encoded pair with its source.
#[derive(Clone, Debug)]
pub(crate) struct Example {
    pub(crate) source: String,
    /// The data source, by which results are also told apart.
    pub(crate) set: String,
    pub(crate) ids: EncodedPair,
    /// Oldest turns that were taken out of the prompt to make the pair fit.
    pub(crate) n_turns_removed: usize,
}

impl Example {
    pub(crate) fn n_tokens(&self) -> usize {
        self.ids.prompt_ids.len() + self.n_targets()
    }

    pub(crate) fn n_targets(&self) -> usize {
        self.ids.chosen_ids.len() + self.ids.rejected_ids.len()
    }
}

/// Pairs side by side, each prompt once, with the rows that predict the chosen answer and then the rejected one.
pub(crate) fn packed(pairs: &[&Example]) -> (PackedBatch, Targets) {
    let groups: Vec<Branches<'_>> = pairs
        .iter()
        .map(|pair| Branches {
            prefix: &pair.ids.prompt_ids,
            continuations: vec![&pair.ids.chosen_ids, &pair.ids.rejected_ids],
        })
        .collect();
    let batch = PackedBatch::from_branches(&groups);
    let mut targets = Targets::default();
    for (pair, pieces) in pairs.iter().zip(batch.pieces.chunks_exact(3)) {
        for (answer, rows) in [(&pair.ids.chosen_ids, &pieces[1]), (&pair.ids.rejected_ids, &pieces[2])] {
            for (at, &id) in answer.iter().enumerate() {
                targets.push(if at == 0 { pieces[0].end - 1 } else { rows.start + at - 1 }, id);
            }
        }
    }
    (batch, targets)
}

/// Each pair's sums, in f64, of log-probabilities in the order of [`packed`].
pub(crate) fn summed(pairs: &[&Example], logps: &[f32]) -> Vec<PairLogps> {
    let mut rest = logps;
    let mut take = |n: usize| {
        let (own, others) = rest.split_at(n);
        rest = others;
        own.iter().map(|&logp| f64::from(logp)).sum::<f64>()
    };
    pairs
        .iter()
        .map(|pair| PairLogps { chosen: take(pair.ids.chosen_ids.len()), rejected: take(pair.ids.rejected_ids.len()) })
        .collect()
}

pub(crate) fn logps_of(decoder: &Decoder, pairs: &[&Example]) -> Result<Vec<PairLogps>> {
    let (batch, targets) = packed(pairs);
    Ok(summed(pairs, &target_logps(decoder, &batch, targets)?))
}

pub(crate) fn refuse_non_finite(pairs: &[&Example], logps: &[PairLogps], what: &str) -> Result<()> {
    let bad = |logps: &PairLogps| !logps.chosen.is_finite() || !logps.rejected.is_finite();
    let found = pairs.iter().zip(logps).filter(|(_, logps)| bad(logps));
    let rows: Vec<String> = found.map(|(pair, _)| pair.source.clone()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    Err(Error::NonFinite { step: 0, what: what.into(), rows, goes_on: String::new() })
}

/// What becomes of a pair that is longer than `max_len`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncate {
    /// It is dropped and counted.
    #[default]
    Off,
    /// Whole oldest turns are taken out of its prompt until it fits: the system message and the last turn stay, and the rest is
    /// rendered again by the chat template. Where the last turn alone does not fit, the pair is dropped and counted.
    Prompt,
}

/// Which ids a stage accepts.
pub(crate) struct Limits {
    pub(crate) max_len: usize,
    pub(crate) truncate: Truncate,
    pub(crate) vocab_size: usize,
}

/// All pairs as ids; the rows that cannot be used are named together, the first ten with their reasons.
pub(crate) fn encode(rows: &[DpoRow], text: &TextModel, limits: &Limits) -> Result<Vec<Example>> {
    const SHOWN: usize = 10;
    let mut examples = Vec::with_capacity(rows.len());
    let mut refused = Vec::new();
    for row in rows {
        match encode_row(row, text, limits) {
            Ok(example) => examples.push(example),
            Err(reason) => refused.push((&row.source, reason)),
        }
    }
    match refused.as_slice() {
        [] => Ok(examples),
        [(source, reason)] => Err(Error::Data { what: (*source).clone(), reason: reason.clone() }),
        many => {
            let mut reason = format!("{} of {} cannot be used", many.len(), rows.len());
            many.iter().take(SHOWN).for_each(|(source, why)| reason.push_str(&format!("\n  {source}: {why}")));
            if many.len() > SHOWN {
                reason.push_str(&format!("\n  and {} more", many.len() - SHOWN));
            }
            Err(Error::Data { what: "preference pairs".into(), reason })
        }
    }
}

fn encode_row(row: &DpoRow, text: &TextModel, limits: &Limits) -> Result<Example, String> {
    check_form(&row.pair)?;
    let words = |error: aloe_text::Error| error.to_string();
    let whole = text.encode_pair(&row.pair).map_err(words)?;
    let (ids, n_turns_removed) = match limits.truncate {
        Truncate::Prompt if longest(&whole) > limits.max_len => {
            shortened(&row.pair, text, limits.max_len).map_err(words)?.unwrap_or((whole, 0))
        }
        _ => (whole, 0),
    };
    if ids.prompt_ids.is_empty() || ids.chosen_ids.is_empty() || ids.rejected_ids.is_empty() {
        return Err("the prompt or an answer has no token".into());
    }
    let all = ids.prompt_ids.iter().chain(&ids.chosen_ids).chain(&ids.rejected_ids);
    if let Some(id) = all.into_iter().find(|&&id| id as usize >= limits.vocab_size) {
        return Err(format!("token id {id} is beyond the model's vocabulary of {}", limits.vocab_size));
    }
    Ok(Example { source: row.source.clone(), set: row.set.clone(), ids, n_turns_removed })
}

/// Refuses what no chat is: a prompt that does not end with the person, a side that is not one answer.
fn check_form(pair: &Pair) -> Result<(), String> {
    match pair.prompt.last() {
        None => return Err("`prompt` has no message".into()),
        Some(last) if last.role != Role::User => {
            return Err(format!("`prompt` must end with a user message, it ends with one of {}", last.role.as_str()));
        }
        Some(_) => {}
    }
    for (name, answer) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
        match answer.as_slice() {
            [] => return Err(format!("`{name}` has no message")),
            [one] if one.role != Role::Assistant => {
                return Err(format!("`{name}` is a message of {}, not of assistant", one.role.as_str()));
            }
            [one] if one.content.trim().is_empty() => return Err(format!("`{name}` is an empty answer")),
            [_] => {}
            many if many.starts_with(&pair.prompt) => {
                return Err(format!("`{name}` repeats the prompt; `aloe data run` takes it off"));
            }
            many => {
                return Err(format!(
                    "`{name}` has {} messages where one answer is expected: turns before the answer belong to \
                     `prompt`, which is the same for both answers; `aloe data run` cuts whole conversations so",
                    many.len()
                ));
            }
        }
    }
    Ok(())
}

/// The pair without as few oldest turns as make it fit, and their number; `None` where even the last turn does not fit.
fn shortened(pair: &Pair, text: &TextModel, max_len: usize) -> aloe_text::Result<Option<(EncodedPair, usize)>> {
    let n_system = pair.prompt.iter().take_while(|message| message.role == Role::System).count();
    let turns = turn_starts(&pair.prompt, n_system);
    for (n_removed, &first) in turns.iter().enumerate().skip(1) {
        let prompt = [&pair.prompt[..n_system], &pair.prompt[first..]].concat();
        let ids = text.encode_pair(&Pair { prompt, ..pair.clone() })?;
        if longest(&ids) <= max_len {
            return Ok(Some((ids, n_removed)));
        }
    }
    Ok(None)
}

/// Where turns begin after the system messages: at each user message that does not follow another one.
fn turn_starts(messages: &[Message], n_system: usize) -> Vec<usize> {
    let begins =
        |&at: &usize| at == n_system || (messages[at].role == Role::User && messages[at - 1].role != Role::User);
    (n_system..messages.len()).filter(begins).collect()
}

/// Tokens of the prompt with the longer answer.
fn longest(ids: &EncodedPair) -> usize {
    ids.prompt_ids.len() + ids.chosen_ids.len().max(ids.rejected_ids.len())
}

/// Refuses a pair beyond the positions the model knows: `max_len` alone does not keep it out.
pub(crate) fn refuse_beyond_context<'a>(
    mut pairs: impl Iterator<Item = &'a Example>,
    context: usize,
    max_len: usize,
) -> Result<()> {
    match pairs.find(|pair| longest(&pair.ids) > context) {
        None => Ok(()),
        Some(pair) => Err(Error::Data {
            what: pair.source.clone(),
            reason: format!(
                "{} tokens of prompt and answer do not fit the model's context of {context}; max_len = {max_len} lets \
                 them in: set it to {context} or less, and longer pairs are dropped and counted",
                longest(&pair.ids)
            ),
        }),
    }
}

/// Takes a share of the pairs out, chosen by the seed, and keeps the order of both parts.
pub(crate) fn set_apart(pairs: &mut Vec<Example>, share: f64, seed: u64) -> Result<Vec<Example>> {
    take_apart(pairs, share, CounterRng::new(seed, "dpo-held-out", 0), "pairs")
}

/// Drops, counts and names pairs that are too long or carry no preference; counts those that were shortened.
pub(crate) fn keep_usable(pairs: &mut Vec<Example>, max_len: usize, report: &mut DpoReport) {
    pairs.retain(|pair| {
        let too_long = longest(&pair.ids) > max_len;
        let equal = pair.ids.chosen_ids == pair.ids.rejected_ids;
        report.n_too_long += usize::from(too_long);
        report.n_prompt_too_long += usize::from(pair.ids.prompt_ids.len() >= max_len);
        report.n_equal += usize::from(!too_long && equal);
        if (too_long || equal) && report.dropped.len() < 100 {
            report.dropped.push(pair.source.clone());
        }
        if !too_long && equal && report.equal.len() < 100 {
            report.equal.push(pair.source.clone());
        }
        let is_kept = !too_long && !equal;
        if is_kept && pair.n_turns_removed > 0 {
            report.n_shortened += 1;
            report.n_turns_removed += pair.n_turns_removed;
        }
        is_kept
    });
}
