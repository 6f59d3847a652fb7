//! Scores of texts against a query by a BERT-type cross-encoder, which reads both together.

use crate::Result;
use crate::embed::name_of;
use crate::local::available_threads;
use aloe_model::BertReranker;
use aloe_record::Cancel;
use aloe_tensor::Device;
use aloe_text::Tokenizer;
use std::path::Path;

/// One text's score against a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankScore {
    /// The logit; higher answers the query better.
    pub score: f32,
    /// Tokens at the ends of query and text that were not read.
    pub n_cut_tokens: usize,
}

/// Query and text as the model reads them.
struct Pair {
    ids: Vec<u32>,
    types: Vec<u32>,
    n_cut: usize,
}

/// A cross-encoder with its tokenizer.
pub struct Reranker {
    model: BertReranker,
    tokenizer: Tokenizer,
    name: String,
}

impl Reranker {
    /// Opens a folder with `config.json`, `model.safetensors` and `tokenizer.json` of a `BertForSequenceClassification` with one
    /// label.
    pub fn open(folder: &Path, threads: usize) -> Result<Self> {
        let device = Device::cpu(if threads == 0 { available_threads() } else { threads });
        let (model, tokenizer) = (BertReranker::open(folder, &device)?, Tokenizer::open(folder)?);
        Ok(Self { model, tokenizer, name: name_of(folder) })
    }

    /// The folder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One logit per text; higher answers the query better. A pair that is too long loses tokens from the longer side first, as
    /// in transformers (`longest_first`), and that is told.
    pub fn rerank(&self, query: &str, texts: &[String], cancel: &Cancel) -> Result<Vec<RankScore>> {
        let mut scores = Vec::with_capacity(texts.len());
        for chunk in texts.chunks(16) {
            cancel.check()?;
            let pairs: Vec<_> = chunk.iter().map(|text| self.pair(query, text)).collect::<Result<_>>()?;
            let ids: Vec<&[u32]> = pairs.iter().map(|pair| pair.ids.as_slice()).collect();
            let types: Vec<&[u32]> = pairs.iter().map(|pair| pair.types.as_slice()).collect();
            let logits = self.model.score(&ids, &types)?;
            let score = |(score, pair): (f32, &Pair)| RankScore { score, n_cut_tokens: pair.n_cut };
            scores.extend(logits.into_iter().zip(&pairs).map(score));
        }
        Ok(scores)
    }

    /// `[CLS] query [SEP] text [SEP]` and its token types.
    fn pair(&self, query: &str, text: &str) -> Result<Pair> {
        let (before, frame) = (self.tokenizer.with_bos(Vec::new()), self.tokenizer.encode_framed("")?);
        let after = &frame[before.len()..];
        let (mut first, mut second) = (self.tokenizer.encode_plain(query)?, self.tokenizer.encode_plain(text)?);
        let room = self.model.max_len_tokens().saturating_sub(before.len() + 2 * after.len());
        let (n_first, n_second) = kept(first.len(), second.len(), room);
        let n_cut = first.len() + second.len() - n_first - n_second;
        first.truncate(n_first);
        second.truncate(n_second);
        let mut ids = [before.as_slice(), &first, after].concat();
        let mut types = vec![0; ids.len()];
        ids.extend(second.iter().chain(after));
        types.resize(ids.len(), 1);
        Ok(Pair { ids, types, n_cut })
    }
}

/// How many tokens two texts keep of `room`: the shorter whole where it takes no more than half, else half each, the odd one to
/// the longer, or to the second of equals.
fn kept(n_first: usize, n_second: usize, room: usize) -> (usize, usize) {
    if n_first + n_second <= room {
        return (n_first, n_second);
    }
    let shorter = n_first.min(n_second).min(room / 2);
    if n_first > n_second { (room - shorter, shorter) } else { (shorter, room - shorter) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Golden: transformers' tokenizer and `BertForSequenceClassification` (`oracles/tiny_encoders.py`); the last pair is cut.
    #[test]
    fn texts_are_scored_against_a_query_as_by_transformers_and_a_long_pair_is_cut_as_there() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../aloe-model/tests/golden/tiny_bert");
        let reranker = Reranker::open(&folder, 2).unwrap();
        let golden: Value =
            serde_json::from_str(include_str!("../../aloe-model/tests/golden/tiny_encoders.json")).unwrap();
        let (query, pairs) = (golden["query"].as_str().unwrap(), golden["pairs"].as_array().unwrap());
        let texts: Vec<String> = pairs.iter().map(|pair| pair["text"].as_str().unwrap().to_owned()).collect();
        for (pair, text) in pairs.iter().zip(&texts) {
            let Pair { ids, types, .. } = reranker.pair(query, text).unwrap();
            assert_eq!(
                (serde_json::json!(ids), serde_json::json!(types)),
                (pair["ids"].clone(), pair["types"].clone())
            );
        }
        let scores = reranker.rerank(query, &texts, &Cancel::default()).unwrap();
        for (pair, RankScore { score, .. }) in pairs.iter().zip(&scores) {
            assert!((f64::from(*score) - pair["logit"].as_f64().unwrap()).abs() < 1e-4, "{pair} {score}");
        }
        let n_cut: Vec<bool> = scores.iter().map(|score| score.n_cut_tokens > 0).collect();
        let (last, others) = n_cut.split_last().unwrap();
        assert!(*last && !others.contains(&true), "the last pair is cut: {n_cut:?}");
        assert_eq!(reranker.name(), "tiny_bert");
    }

    /// By hand: of 10, (3, 20) keeps 3 and 7; (20, 3) 7 and 3; (20, 20) 5 and 5; of 11, (20, 20) 5 and 6, (21, 20) 6 and 5.
    #[test]
    fn the_longer_of_two_texts_is_cut_first() {
        assert_eq!([kept(3, 20, 10), kept(20, 3, 10), kept(20, 20, 10)], [(3, 7), (7, 3), (5, 5)]);
        assert_eq!([kept(20, 20, 11), kept(21, 20, 11), kept(4, 6, 10)], [(5, 6), (6, 5), (4, 6)]);
    }
}
