//! One checkpoint's log-probabilities by every way through the program: the training forward pass, several rows packed into one, scoring,
//! and decoding over a cache, as generation does.

use super::{BF16, Check, EXACT, F32_SUMS, MARGIN, Subject, Tolerance};
use aloe_engine::{Completion, Continuation, Engine, GenerateRequest, Prompt, Sampling, ScoreRequest};
use aloe_model::{Decoder, Keep, KvCache, PackedBatch};
use aloe_record::Progress;
use aloe_tensor::Dtype;

/// Log-probabilities of the next token at every position but the last, and the logits they come from.
pub(super) struct Reference {
    ids: Vec<u32>,
    /// `[N, V]`, row by row.
    logits: Vec<f32>,
    vocab_size: usize,
}

impl Reference {
    /// The training forward pass over one text.
    fn of(decoder: &Decoder, ids: &[u32]) -> anyhow::Result<Self> {
        let activations = decoder.forward_train(PackedBatch::from_documents(&[ids]), Keep::All)?;
        let logits = decoder.logits(&activations.hidden).as_f32().to_vec();
        Ok(Self { ids: ids.to_vec(), logits, vocab_size: decoder.config.vocab_size })
    }

    fn row(&self, at: usize) -> &[f32] {
        &self.logits[at * self.vocab_size..][..self.vocab_size]
    }

    fn logp(&self, at: usize) -> f64 {
        logp(self.row(at), self.ids[at + 1])
    }
}

/// Natural log-probability of a token under a row of logits, in f64.
pub(super) fn logp(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    f64::from(logits[id as usize] - max) - sum.ln()
}

/// The most probable token and its lead over the second, in nats.
fn leader(logits: &[f32]) -> (usize, f64) {
    let (mut best, mut second) = ((0, f32::NEG_INFINITY), f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            (best, second) = ((id, logit), best.1);
        } else {
            second = second.max(logit);
        }
    }
    (best.0, f64::from(best.1 - second))
}

/// What scoring may differ by, which sums in another precision.
fn of_sums(dtype: Dtype) -> Tolerance {
    if dtype == Dtype::F32 { F32_SUMS } else { BF16 }
}

pub(super) fn checks(subject: &Subject, decoder: &Decoder) -> anyhow::Result<Vec<Check>> {
    let samples = subject.samples()?;
    let references = samples.iter().map(|ids| Reference::of(decoder, ids)).collect::<anyhow::Result<Vec<_>>>()?;
    let engine = subject.engine(decoder.dtype)?;
    Ok(vec![
        packed(decoder, &references)?,
        cached(decoder, &references)?,
        scored(&engine, decoder.dtype, &references, subject)?,
        generated(&engine, decoder, &references, subject)?,
    ])
}

/// All texts side by side in one pass, as training packs them: bit for bit in both types.
fn packed(decoder: &Decoder, references: &[Reference]) -> anyhow::Result<Check> {
    let documents: Vec<&[u32]> = references.iter().map(|reference| reference.ids.as_slice()).collect();
    let batch = PackedBatch::from_documents(&documents);
    let pieces = batch.pieces.clone();
    let activations = decoder.forward_train(batch, Keep::All)?;
    let mut pairs = Vec::new();
    for (piece, reference) in pieces.iter().zip(references) {
        let rows: Vec<usize> = piece.clone().collect();
        let logits = decoder.logits(&activations.hidden.gather_rows(&rows));
        compare(logits.as_f32(), reference, 0, &mut pairs);
    }
    Ok(Check::near("logits: rows packed together and alone", decoder.dtype, &pairs, EXACT))
}

/// Half of a text at once and the rest token by token, over a cache of keys and values.
fn cached(decoder: &Decoder, references: &[Reference]) -> anyhow::Result<Check> {
    let (mut pairs, mut differs) = (Vec::new(), None);
    for reference in references {
        let (head, tail) = reference.ids.split_at(reference.ids.len().div_ceil(2));
        let mut cache = KvCache::new(decoder);
        let hidden = decoder.extend(&[head], &mut [&mut cache])?;
        compare(decoder.logits(&hidden).as_f32(), reference, 0, &mut pairs);
        for (at, id) in tail.iter().enumerate() {
            let hidden = decoder.extend(&[std::slice::from_ref(id)], &mut [&mut cache])?;
            let logits = decoder.logits(&hidden);
            compare(logits.as_f32(), reference, head.len() + at, &mut pairs);
            let (expected, lead) = leader(reference.row(head.len() + at));
            let found = leader(logits.as_f32()).0;
            if lead > MARGIN && found != expected {
                differs = differs
                    .or_else(|| Some(format!("token {}: most probable is {found}, not {expected}", head.len() + at)));
            }
        }
    }
    let what = "logits: decoding over a cache and training";
    Ok(Check::near(what, decoder.dtype, &pairs, EXACT).with_argmax(differs))
}

/// Pairs (found, reference): every logit in f32, where they are the same bits; in bf16 the log-probability of each next token.
fn compare(logits: &[f32], reference: &Reference, first: usize, pairs: &mut Vec<(f64, f64)>) {
    for (at, row) in logits.chunks_exact(reference.vocab_size).enumerate().map(|(at, row)| (first + at, row)) {
        let expected = reference.row(at);
        // One value stands for an equal row, so that tables of 128,000 words do not become a list of pairs.
        if row == expected {
            pairs.push((f64::from(row[0]), f64::from(expected[0])));
        } else {
            // The last row predicts no token of the text; any stands for it.
            let id = reference.ids.get(at + 1).copied().unwrap_or(0);
            pairs.push((logp(row, id), logp(expected, id)));
        }
    }
}

/// The engine's scores of each text's tokens after the first.
fn scored(engine: &Engine, dtype: Dtype, references: &[Reference], subject: &Subject) -> anyhow::Result<Check> {
    let request = |(at, reference): (usize, &Reference)| ScoreRequest {
        id: at.to_string(),
        prompt: Prompt::Ids(reference.ids[..1].to_vec()),
        continuations: vec![Continuation::Ids(reference.ids[1..].to_vec())],
    };
    let requests: Vec<ScoreRequest> = references.iter().enumerate().map(request).collect();
    let results = engine.score(&requests, &Progress::silent(), &subject.cancel)?;
    let mut pairs = Vec::new();
    for (result, reference) in results.iter().zip(references) {
        let logps = result.continuations.iter().flat_map(|scored| &scored.logps);
        pairs.extend(logps.enumerate().map(|(at, &logp)| (logp, reference.logp(at))));
    }
    Ok(Check::near("log-probabilities: scoring and training", dtype, &pairs, of_sums(dtype)))
}

/// Greedy answers of the engine, whose log-probabilities are held against a training pass over prompt and answer.
fn generated(engine: &Engine, decoder: &Decoder, references: &[Reference], subject: &Subject) -> anyhow::Result<Check> {
    let prompts: Vec<&[u32]> =
        references.iter().map(|reference| &reference.ids[..reference.ids.len().div_ceil(2)]).collect();
    let request = |(at, prompt): (usize, &&[u32])| GenerateRequest {
        id: at.to_string(),
        prompt: Prompt::Ids(prompt.to_vec()),
        n: 1,
        sampling: Sampling::greedy(16),
    };
    let requests: Vec<GenerateRequest> = prompts.iter().enumerate().map(request).collect();
    let results = engine.generate(&requests, &Progress::silent(), &subject.cancel)?;
    let (mut pairs, mut differs) = (Vec::new(), None);
    for (prompt, result) in prompts.iter().zip(&results) {
        let Some(Completion { ids: Some(ids), logps: Some(logps), .. }) = result.completions.first() else { continue };
        let whole = Reference::of(decoder, &[*prompt, ids].concat())?;
        for (at, (&id, &found)) in ids.iter().zip(logps).enumerate() {
            let place = prompt.len() - 1 + at;
            pairs.push((f64::from(found), whole.logp(place)));
            let (expected, lead) = leader(whole.row(place));
            if lead > MARGIN && expected != id as usize {
                differs = differs.or_else(|| Some(format!("drawn token {at}: {id}, not {expected}")));
            }
        }
    }
    let what = "log-probabilities: greedy generation and training";
    Ok(Check::near(what, decoder.dtype, &pairs, of_sums(decoder.dtype)).with_argmax(differs))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits 0, ln 3 and ln 4: probabilities 1/8, 3/8 and 4/8.
    #[test]
    fn log_probabilities_and_leads_are_as_worked_by_hand() {
        let logits = [0.0, 3.0f32.ln(), 4.0f32.ln()];
        assert!((logp(&logits, 1) - (3.0f64 / 8.0).ln()).abs() < 1e-7);
        let (id, lead) = leader(&logits);
        assert!(id == 2 && (lead - (4.0f64 / 3.0).ln()).abs() < 1e-7);
    }
}
