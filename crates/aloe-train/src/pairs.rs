//! Encoded preference pairs, and their packed form with each prompt computed once for both answers.
//!
//! Refuses pairs without tokens and ids beyond the vocabulary; drops, counts and names what is too long or says nothing.

use crate::dpo::{DpoReport, DpoRow};
use crate::learner::{Targets, target_logps};
use crate::preference::PairLogps;
use crate::{Error, Result};
use aloe_model::{Branches, Decoder, PackedBatch};
use aloe_record::CounterRng;
use aloe_text::{EncodedPair, TextModel};

/// An encoded pair with its source.
#[derive(Clone, Debug)]
pub(crate) struct Example {
    pub(crate) source: String,
    pub(crate) ids: EncodedPair,
}

impl Example {
    pub(crate) fn n_tokens(&self) -> usize {
        self.ids.prompt_ids.len() + self.n_targets()
    }

    pub(crate) fn n_targets(&self) -> usize {
        self.ids.chosen_ids.len() + self.ids.rejected_ids.len()
    }

    fn longest(&self) -> usize {
        self.ids.prompt_ids.len() + self.ids.chosen_ids.len().max(self.ids.rejected_ids.len())
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
    if rows.is_empty() { Ok(()) } else { Err(Error::NonFinite { step: 0, what: what.into(), rows }) }
}

pub(crate) fn ids_of(pairs: &[&Example]) -> Vec<EncodedPair> {
    pairs.iter().map(|pair| pair.ids.clone()).collect()
}

pub(crate) fn encode(rows: &[DpoRow], text: &TextModel, vocab_size: usize) -> Result<Vec<Example>> {
    let encode = |row: &DpoRow| {
        let refused = |reason: String| Error::Data { what: row.source.clone(), reason };
        let ids = text.encode_pair(&row.pair).map_err(|error| refused(error.to_string()))?;
        if ids.prompt_ids.is_empty() || ids.chosen_ids.is_empty() || ids.rejected_ids.is_empty() {
            return Err(refused("the prompt or an answer has no token".into()));
        }
        let all = ids.prompt_ids.iter().chain(&ids.chosen_ids).chain(&ids.rejected_ids);
        if let Some(id) = all.into_iter().find(|&&id| id as usize >= vocab_size) {
            return Err(refused(format!("token id {id} is beyond the model's vocabulary of {vocab_size}")));
        }
        Ok(Example { source: row.source.clone(), ids })
    };
    rows.iter().map(encode).collect()
}

/// Takes a share of the pairs out, chosen by the seed, and keeps the order of both parts.
pub(crate) fn set_apart(pairs: &mut Vec<Example>, share: f64, seed: u64) -> Vec<Example> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    CounterRng::new(seed, "dpo-held-out", 0).shuffle(&mut order);
    order.truncate((pairs.len() as f64 * share) as usize);
    order.sort_unstable();
    let mut apart: Vec<Example> = order.iter().rev().map(|&at| pairs.remove(at)).collect();
    apart.reverse();
    apart
}

/// Drops, counts and names pairs that are too long or carry no preference.
pub(crate) fn keep_usable(pairs: &mut Vec<Example>, max_len: usize, report: &mut DpoReport) {
    pairs.retain(|pair| {
        let too_long = pair.longest() > max_len;
        let equal = pair.ids.chosen_ids == pair.ids.rejected_ids;
        report.n_too_long += usize::from(too_long);
        report.n_equal += usize::from(!too_long && equal);
        if (too_long || equal) && report.dropped.len() < 100 {
            report.dropped.push(pair.source.clone());
        }
        !too_long && !equal
    });
}
