//! Which pool questions are nearest to a question; which are the question itself is told by `same`.
//!
//! With a sentence encoder: cosine of unit vectors of the question texts (no options, no context), as prompt_engine does.
//! Without one: BM25 (Robertson and Zaragoza 2009; k1 1.2, b 0.75) over lower-cased words, named "lexical" in results.
//! Ranking is exact; equal scores keep the pool's order. A cross-encoder may put the first of them in another order.

use crate::Result;
use crate::same::words;
use aloe_engine::Reranker;
use aloe_record::Cancel;
use std::collections::{BTreeMap, BTreeSet};

const K1: f64 = 1.2;
const B: f64 = 0.75;

/// A search over a fixed pool.
pub enum Search {
    /// Word statistics.
    Lexical(Bm25),
    /// Unit vectors of pool and questions, and the encoder's name.
    Embedded {
        /// The encoder.
        name: String,
        /// One vector a pool question.
        pool: Vec<Vec<f32>>,
        /// One vector a question.
        questions: Vec<Vec<f32>>,
    },
}

impl Search {
    /// Lexical search over `pool`'s texts.
    pub fn lexical(pool: &[String]) -> Self {
        Self::Lexical(Bm25::new(pool))
    }

    /// Search by embeddings.
    pub fn embedded(name: &str, pool: Vec<Vec<f32>>, questions: Vec<Vec<f32>>) -> Self {
        Self::Embedded { name: name.into(), pool, questions }
    }

    /// The name for results.
    pub fn name(&self) -> String {
        match self {
            Self::Lexical(_) => "lexical (BM25); no embedding model was given".into(),
            Self::Embedded { name, .. } => format!("cosine of {name}"),
        }
    }

    /// Pool places from nearest to farthest, for question `index` with text `text`.
    pub fn ranked(&self, index: usize, text: &str) -> Vec<usize> {
        let scores: Vec<f64> = match self {
            Self::Lexical(bm25) => bm25.scores(text),
            Self::Embedded { pool, questions, .. } => {
                pool.iter().map(|vector| dot(vector, &questions[index])).collect()
            }
        };
        let mut places: Vec<usize> = (0..scores.len()).collect();
        places.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        places
    }
}

/// The ranked places with the first of them, `n_seen`, in the order of `reranker`'s scores of their texts against `query`, and how many of
/// these texts it did not read whole; equal scores keep the search's order.
pub fn reranked(
    mut places: Vec<usize>,
    query: &str,
    text_of: impl Fn(usize) -> String,
    n_seen: usize,
    reranker: &Reranker,
    cancel: &Cancel,
) -> Result<(Vec<usize>, usize)> {
    let n = places.len().min(n_seen);
    let texts: Vec<String> = places[..n].iter().map(|&place| text_of(place)).collect();
    let scores = reranker.rerank(query, &texts, cancel)?;
    let n_cut = scores.iter().filter(|score| score.n_cut_tokens > 0).count();
    let scores = scores.iter().map(|score| score.score);
    let mut first: Vec<(usize, f32)> = places[..n].iter().copied().zip(scores).collect();
    first.sort_by(|a, b| b.1.total_cmp(&a.1));
    first.into_iter().enumerate().for_each(|(at, (place, _))| places[at] = place);
    Ok((places, n_cut))
}

/// The first `k` of the ranked places, nearest last, leaving out `excluded`.
pub fn nearest(ranked: Vec<usize>, excluded: &[usize], k: usize) -> Vec<usize> {
    let mut places: Vec<usize> = ranked.into_iter().filter(|place| !excluded.contains(place)).take(k).collect();
    places.reverse();
    places
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// Word statistics of a pool.
pub struct Bm25 {
    counts: Vec<BTreeMap<String, f64>>,
    lens: Vec<f64>,
    mean_len: f64,
    n_with: BTreeMap<String, f64>,
}

impl Bm25 {
    fn new(pool: &[String]) -> Self {
        let mut counts = Vec::new();
        let mut n_with: BTreeMap<String, f64> = BTreeMap::new();
        for text in pool {
            let mut count: BTreeMap<String, f64> = BTreeMap::new();
            for word in words(text) {
                *count.entry(word).or_default() += 1.0;
            }
            for word in count.keys() {
                *n_with.entry(word.clone()).or_default() += 1.0;
            }
            counts.push(count);
        }
        let lens: Vec<f64> = counts.iter().map(|count| count.values().sum()).collect();
        let mean_len = lens.iter().sum::<f64>() / lens.len().max(1) as f64;
        Self { counts, lens, mean_len, n_with }
    }

    fn scores(&self, text: &str) -> Vec<f64> {
        let query: BTreeSet<String> = words(text).collect();
        let n = self.counts.len() as f64;
        let score = |(count, len): (&BTreeMap<String, f64>, &f64)| {
            query
                .iter()
                .filter_map(|word| Some((count.get(word)?, self.n_with.get(word)?)))
                .map(|(tf, with)| {
                    let rarity = (1.0 + (n - with + 0.5) / (with + 0.5)).ln();
                    rarity * tf * (K1 + 1.0) / (tf + K1 * (1.0 - B + B * len / self.mean_len))
                })
                .sum()
        };
        self.counts.iter().zip(&self.lens).map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: pool of three one-word texts; the query shares one rare word with the second only.
    #[test]
    fn lexical_search_ranks_by_rare_shared_words_and_keeps_pool_order_on_ties() {
        let pool = ["the heart the lung", "the phrenic nerve", "the liver"].map(String::from);
        assert_eq!(Search::lexical(&pool).ranked(0, "phrenic palsy"), [1, 0, 2]);
        // idf("heart") = ln(1 + 2.5/1.5); tf 1, length 4, mean length 3: 2.2 / (1 + 1.2 (0.25 + 0.75 * 4/3)) = 0.88.
        let Search::Lexical(bm25) = Search::lexical(&pool) else { panic!("not lexical") };
        let expected = (1.0f64 + 2.5 / 1.5).ln() * 0.88;
        assert!((bm25.scores("heart")[0] - expected).abs() < 1e-12);
    }

    #[test]
    fn the_nearest_comes_last_and_what_is_excluded_is_left_out() {
        assert_eq!(nearest(vec![1, 2, 0], &[1], 2), [0, 2]);
        assert_eq!(nearest(vec![1, 2, 0], &[1], 1), [2]);
        assert_eq!(nearest(vec![1, 2, 0], &[], 2), [2, 1]);
    }

    /// The golden logits of the tiny cross-encoder (`oracles/tiny_encoders.py`): 0.53, 0.60, 1.20. Of ten places, the first four
    /// are seen, so the last six keep their order.
    #[test]
    fn a_reranker_orders_the_first_places_by_its_scores_and_leaves_the_others() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../aloe-model/tests/golden/tiny_bert");
        let reranker = Reranker::open(&folder, 1).unwrap();
        let texts = ["The phrenic nerve supplies the diaphragm.", "Metformin lowers blood glucose."];
        let text_of = |place: usize| texts.get(place).copied().unwrap_or("Fever.").to_owned();
        let query = "Which nerve supplies the diaphragm?";
        let found = reranked((0..10).collect(), query, text_of, 4, &reranker, &Cancel::default()).unwrap();
        assert_eq!(found, (vec![2, 3, 1, 0, 4, 5, 6, 7, 8, 9], 0));
    }

    #[test]
    fn embedded_search_ranks_by_cosine() {
        let pool = vec![vec![1.0, 0.0], vec![0.6, 0.8], vec![0.0, 1.0]];
        let search = Search::embedded("toy", pool, vec![vec![0.0, 1.0], vec![1.0, 0.0]]);
        assert_eq!(search.ranked(0, ""), [2, 1, 0]);
        assert_eq!(search.ranked(1, ""), [0, 1, 2]);
    }
}
