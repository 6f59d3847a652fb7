//! Which pool questions are nearest to a question, and which are the question itself.
//!
//! With a sentence encoder: cosine of unit vectors of the question texts (no options, no context), as prompt_engine does.
//! Without one: BM25 (Robertson and Zaragoza 2009; k1 1.2, b 0.75) over lower-cased words, named "lexical" in results.
//! Ranking is exact; equal scores keep the pool's order. A cross-encoder may put the first of them in another order.

use crate::Result;
use aloe_engine::Reranker;
use aloe_record::Cancel;
use aloe_task::Question;
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

/// How many of the ranked pool questions a reranker sees, per neighbour that is wanted.
const SEEN_PER_NEIGHBOUR: usize = 4;

/// The ranked places with the first of them, four for each of `k` neighbours, in the order of `reranker`'s scores of their texts
/// against `query`, and how many of these texts it did not read whole; equal scores keep the search's order.
pub fn reranked(
    mut places: Vec<usize>,
    query: &str,
    pool: &[&Question],
    k: usize,
    reranker: &Reranker,
    cancel: &Cancel,
) -> Result<(Vec<usize>, usize)> {
    let n = places.len().min(SEEN_PER_NEIGHBOUR * k);
    let texts: Vec<String> = places[..n].iter().map(|&place| pool[place].stem.clone()).collect();
    let scores = reranker.rerank(query, &texts, cancel)?;
    let n_cut = scores.iter().filter(|score| score.n_cut_tokens > 0).count();
    let scores = scores.iter().map(|score| score.score);
    let mut first: Vec<(usize, f32)> = places[..n].iter().copied().zip(scores).collect();
    first.sort_by(|a, b| b.1.total_cmp(&a.1));
    first.into_iter().enumerate().for_each(|(at, (place, _))| places[at] = place);
    Ok((places, n_cut))
}

/// The first `k` of the ranked pool questions, nearest last, leaving out those that are the question itself; and how many were
/// left out.
pub fn nearest(ranked: Vec<usize>, test: &Question, pool: &[&Question], k: usize, jaccard: f64) -> (Vec<usize>, usize) {
    let mut places = Vec::new();
    let mut n_excluded = 0;
    for place in ranked {
        if places.len() == k {
            break;
        }
        if same_question(pool[place], test, jaccard) {
            n_excluded += 1;
        } else {
            places.push(place);
        }
    }
    places.reverse();
    (places, n_excluded)
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

/// Lower-cased runs of letters and digits.
fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// Whether `pool` is the test question itself: the same question text but for case and punctuation, or a word-set overlap of
/// question and options (whatever their order) of at least `jaccard`.
pub fn same_question(pool: &Question, test: &Question, jaccard: f64) -> bool {
    words(&pool.stem).eq(words(&test.stem)) || word_overlap(pool, test) >= jaccard
}

fn word_set(question: &Question) -> BTreeSet<String> {
    words(&question.stem).chain(question.choices.iter().flat_map(|choice| words(choice))).collect()
}

fn word_overlap(a: &Question, b: &Question) -> f64 {
    let (a, b) = (word_set(a), word_set(b));
    let shared = a.intersection(&b).count();
    shared as f64 / (a.len() + b.len() - shared).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(stem: &str, choices: [&str; 4]) -> Question {
        Question {
            id: String::new(),
            stem: stem.into(),
            context: None,
            choices: choices.map(String::from).to_vec(),
            key: 0,
            subject: String::new(),
            explanation: None,
            source: String::new(),
        }
    }

    #[test]
    fn a_test_question_in_the_pool_is_recognised_when_reworded_or_reordered() {
        let test = question("Which nerve supplies the diaphragm?", ["Phrenic", "Vagus", "Ulnar", "Median"]);
        let check = |stem: &str, choices, expected| {
            assert_eq!(same_question(&question(stem, choices), &test, 0.8), expected, "{stem}");
        };
        check("which nerve supplies the DIAPHRAGM", ["Vagus", "Median", "Ulnar", "Phrenic"], true);
        check("Which nerve supplies the diaphragm?", ["x", "y", "z", "w"], true);
        // 9 words of 9 + 1: 0.9.
        check("Which one nerve supplies the diaphragm?", ["Vagus", "Median", "Ulnar", "Phrenic"], true);
        check("Which nerve supplies the deltoid?", ["Axillary", "Vagus", "Ulnar", "Median"], false);
    }

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
    fn the_nearest_comes_last_and_the_question_itself_is_left_out_and_counted() {
        let nerve = ["Phrenic", "Vagus", "Ulnar", "Median"];
        let test = question("Which nerve supplies the diaphragm?", nerve);
        let pool = [
            question("Which organ makes insulin?", ["Liver", "Pancreas", "Spleen", "Lung"]),
            question("Which nerve supplies the diaphragm", ["Median", "Ulnar", "Vagus", "Phrenic"]),
            question("Which nerve supplies the deltoid muscle?", ["Axillary", "Radial", "Ulnar", "Median"]),
        ];
        let texts: Vec<String> = pool.iter().map(|q| q.stem.clone()).collect();
        let pool: Vec<&Question> = pool.iter().collect();
        let ranked = || Search::lexical(&texts).ranked(0, &test.stem);
        assert_eq!(nearest(ranked(), &test, &pool, 2, 0.8), (vec![0, 2], 1));
        assert_eq!(nearest(ranked(), &test, &pool, 1, 0.8), (vec![2], 1));
    }

    /// The golden logits of the tiny cross-encoder (`oracles/tiny_encoders.py`): 0.53, 0.60, 1.20. Of ten places, the first four
    /// are seen for one neighbour, so the last six keep their order.
    #[test]
    fn a_reranker_orders_the_first_places_by_its_scores_and_leaves_the_others() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../aloe-model/tests/golden/tiny_bert");
        let reranker = Reranker::open(&folder, 1).unwrap();
        let no_choice = ["", "", "", ""];
        let texts = ["The phrenic nerve supplies the diaphragm.", "Metformin lowers blood glucose.", "Fever."];
        let mut pool: Vec<Question> = texts.iter().map(|text| question(text, no_choice)).collect();
        pool.extend((0..7).map(|_| question("Fever.", no_choice)));
        let pool: Vec<&Question> = pool.iter().collect();
        let query = "Which nerve supplies the diaphragm?";
        let found = reranked((0..10).collect(), query, &pool, 1, &reranker, &Cancel::default()).unwrap();
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
