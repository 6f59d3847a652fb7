//! What transformers says about the same checkpoint, stored as JSON by `oracles/parity_fixture.py`:
//!
//! `{"format": "aloe-parity/1", "made_with": "transformers 5.23.0, ..", "cases": [..]}`, each case with `text` (a plain text, tokenised with
//! the special tokens that the tokenizer adds) or `messages` (rendered with the generation prompt), its `ids`, and `rows`: `position`,
//! `log_sum_exp` over the vocabulary, and some `ids` with their `logits`, the most probable first.

use super::paths::logp;
use super::{BF16, Check, F32_PEER, MARGIN, Subject, ids::difference};
use crate::failure::Failure;
use aloe_model::{Decoder, Keep, PackedBatch};
use aloe_tensor::Dtype;
use aloe_text::Message;
use serde::Deserialize;
use std::path::{Path, PathBuf};

const FORMAT: &str = "aloe-parity/1";

/// A stored fixture.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fixture {
    format: String,
    made_with: String,
    #[serde(default, rename = "model")]
    _model: String,
    cases: Vec<Case>,
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    text: Option<String>,
    messages: Option<Vec<Message>>,
    ids: Vec<u32>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    position: usize,
    log_sum_exp: f64,
    ids: Vec<u32>,
    logits: Vec<f64>,
}

impl Fixture {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let refuse = |reason: String| Failure::usage(format!("the fixture {}: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        let mut fixture: Self = serde_json::from_str(&text).map_err(|error| {
            refuse(format!("{error}; write one with `python oracles/parity_fixture.py MODEL FIXTURE`"))
        })?;
        if fixture.format != FORMAT {
            return Err(refuse(format!("format {:?} is not {FORMAT:?}", fixture.format)).into());
        }
        let is_whole = |case: &Case| {
            let rows = case
                .rows
                .iter()
                .all(|row| row.position < case.ids.len() && !row.ids.is_empty() && row.ids.len() == row.logits.len());
            rows && !case.rows.is_empty() && case.text.is_some() != case.messages.is_some()
        };
        if let Some(at) = fixture.cases.iter().position(|case| !is_whole(case)) {
            let needed = "needs one of text and messages, and rows within its ids, each with as many ids as logits";
            return Err(refuse(format!("case {at} {needed}")).into());
        }
        if fixture.cases.is_empty() {
            return Err(refuse("it has no case".to_owned()).into());
        }
        fixture.path = path.to_path_buf();
        Ok(fixture)
    }

    /// The ids of every case.
    pub(super) fn ids(&self, subject: &Subject) -> anyhow::Result<Vec<Check>> {
        let what = format!("ids: {}", self.made_with);
        let vocab_size = subject.source.config().vocab_size;
        let (mut n_values, mut found) = (0, None);
        for (at, case) in self.cases.iter().enumerate() {
            if let Some(id) =
                case.ids.iter().chain(case.rows.iter().flat_map(|row| &row.ids)).find(|&&id| id as usize >= vocab_size)
            {
                let text = format!(
                    "the fixture {} is of another model: id {id} in a vocabulary of {vocab_size}",
                    self.path.display()
                );
                return Err(Failure::usage(text).into());
            }
            let ids = match (&case.text, &case.messages) {
                (Some(text), _) => subject.text.encode_prompt_text(text)?,
                (None, Some(messages)) => subject.text.encode_prompt(messages)?,
                (None, None) => Vec::new(),
            };
            n_values += case.ids.len();
            found = found.or_else(|| difference(&ids, &case.ids).map(|place| format!("case {at}, {place}")));
        }
        Ok(vec![Check::equal(what, n_values, found)])
    }

    /// Log-probabilities of the stored tokens at the stored positions, over the stored ids.
    pub(super) fn logits(&self, decoder: &Decoder) -> anyhow::Result<Check> {
        let (mut pairs, mut differs) = (Vec::new(), None);
        for (at, case) in self.cases.iter().enumerate() {
            let activations = decoder.forward_train(PackedBatch::from_documents(&[&case.ids]), Keep::All)?;
            for row in &case.rows {
                let logits = decoder.logits(&activations.hidden.gather_rows(&[row.position]));
                let logits = logits.as_f32();
                let stored = row.ids.iter().zip(&row.logits);
                pairs.extend(stored.map(|(&id, logit)| (logp(logits, id), logit - row.log_sum_exp)));
                let lead = row.logits.first().zip(row.logits.get(1)).map_or(0.0, |(first, second)| first - second);
                let is_first = logits.iter().all(|&logit| logit <= logits[row.ids[0] as usize]);
                if lead > MARGIN && !is_first {
                    let place =
                        format!("case {at}, position {}: {} is not the most probable token", row.position, row.ids[0]);
                    differs = differs.or(Some(place));
                }
            }
        }
        let tolerance = if decoder.dtype == Dtype::F32 { F32_PEER } else { BF16 };
        let what = format!("log-probabilities: {}", self.made_with);
        Ok(Check::near(what, decoder.dtype, &pairs, tolerance).with_argmax(differs))
    }
}
