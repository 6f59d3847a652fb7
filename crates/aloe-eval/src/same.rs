//! Which pool questions are the test question itself: the same text but for case and punctuation, or nearly the same words in question
//! and options, whatever their order.

use aloe_task::Question;
use std::collections::{BTreeSet, HashMap};

/// Lower-cased runs of letters and digits.
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// Whether `pool` is the test question itself: the same question text but for case and punctuation, or a word-set overlap of
/// question and options (whatever their order) of at least `jaccard`.
pub fn same_question(pool: &Question, test: &Question, jaccard: f64) -> bool {
    if words(&pool.stem).eq(words(&test.stem)) {
        return true;
    }
    let (a, b) = (word_set(pool), word_set(test));
    let shared = a.intersection(&b).count();
    overlaps(shared, a.len(), b.len(), jaccard)
}

fn word_set(question: &Question) -> BTreeSet<String> {
    words(&question.stem).chain(question.choices.iter().flat_map(|choice| words(choice))).collect()
}

fn overlaps(shared: usize, n_a: usize, n_b: usize, jaccard: f64) -> bool {
    shared as f64 >= jaccard * (n_a + n_b - shared).max(1) as f64
}

/// The words of a pool, so that the question itself is found without looking at every pool question.
pub struct SameQuestions {
    jaccard: f64,
    /// Number of each word: rarer words have lower ones.
    ranks: HashMap<String, u32>,
    /// Sorted word numbers of each pool question.
    sets: Vec<Vec<u32>>,
    /// Pool questions that have a word among their rarest.
    with: HashMap<u32, Vec<u32>>,
    /// Pool questions by their question text.
    stems: HashMap<String, Vec<u32>>,
}

impl SameQuestions {
    /// Of `pool`; `jaccard` is above 0.
    pub fn of(pool: &[&Question], jaccard: f64) -> Self {
        let sets: Vec<BTreeSet<String>> = pool.iter().map(|question| word_set(question)).collect();
        let mut n_with: HashMap<&str, u32> = HashMap::new();
        sets.iter().flatten().for_each(|word| *n_with.entry(word).or_default() += 1);
        let mut by_rarity: Vec<(u32, &str)> = n_with.into_iter().map(|(word, n)| (n, word)).collect();
        by_rarity.sort_unstable();
        let ranks: HashMap<String, u32> =
            (0u32..).zip(by_rarity).map(|(rank, (_, word))| (word.to_owned(), rank)).collect();
        let mut found = Self { jaccard, ranks, sets: Vec::new(), with: HashMap::new(), stems: HashMap::new() };
        for (place, (question, set)) in (0u32..).zip(pool.iter().zip(&sets)) {
            let mut numbers: Vec<u32> = set.iter().map(|word| found.ranks[word]).collect();
            numbers.sort_unstable();
            for &word in &numbers[..n_rarest(numbers.len(), jaccard)] {
                found.with.entry(word).or_default().push(place);
            }
            found.sets.push(numbers);
            found.stems.entry(stem_key(question)).or_default().push(place);
        }
        found
    }

    /// Places of the pool questions that are `test` itself, in order.
    pub fn places(&self, test: &Question) -> Vec<usize> {
        let set = word_set(test);
        let n_words = set.len();
        let mut known: Vec<u32> = set.iter().filter_map(|word| self.ranks.get(word).copied()).collect();
        known.sort_unstable();
        let mut places: BTreeSet<u32> = self.stems.get(&stem_key(test)).into_iter().flatten().copied().collect();
        // Two sets that overlap so far share one of the rarest words of either; words that no pool question has come first of all.
        let n_unknown = n_words - known.len();
        let n_looked_at = n_rarest(n_words, self.jaccard).saturating_sub(n_unknown).min(known.len());
        let candidates = known[..n_looked_at].iter().filter_map(|word| self.with.get(word)).flatten();
        for &place in candidates.collect::<BTreeSet<_>>() {
            let pool = &self.sets[place as usize];
            if overlaps(n_shared(pool, &known), pool.len(), n_words, self.jaccard) {
                places.insert(place);
            }
        }
        places.into_iter().map(|place| place as usize).collect()
    }
}

fn stem_key(question: &Question) -> String {
    words(&question.stem).collect::<Vec<_>>().join(" ")
}

/// Of a set of `n` words, so many of the rarest hold one that every set with this overlap shares: to share at least jaccard * n words, no
/// more than n - jaccard * n may be missing.
fn n_rarest(n: usize, jaccard: f64) -> usize {
    let must_share = (jaccard * n as f64 - 1e-9).ceil().max(1.0) as usize;
    (n + 1).saturating_sub(must_share).min(n)
}

fn n_shared(a: &[u32], b: &[u32]) -> usize {
    let (mut i, mut j, mut n) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, n) = (i + 1, j + 1, n + 1),
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_record::CounterRng;

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

    /// Made questions of 4 to 12 words of 30, near copies among them: the index finds what the plain definition finds.
    #[test]
    fn the_index_finds_what_comparing_every_pair_finds() {
        let made = |item: u64| {
            let mut rng = CounterRng::new(5, "same", item / 3);
            let n = 4 + rng.below(9);
            let mut words: Vec<String> = (0..n).map(|_| format!("w{}", rng.below(30))).collect();
            let mut rng = CounterRng::new(6, "same", item);
            if !item.is_multiple_of(3) {
                let place = rng.below(n);
                words[place] = format!("x{}", rng.below(5));
            }
            question(&words[2..].join(" "), [&words[0], &words[1], "", ""])
        };
        let pool: Vec<Question> = (0..400).map(made).collect();
        let pool: Vec<&Question> = pool.iter().collect();
        for jaccard in [0.5, 0.8, 1.0] {
            let index = SameQuestions::of(&pool, jaccard);
            let mut n_found = 0;
            for test in (300..700).map(made) {
                let expected: Vec<usize> =
                    (0..pool.len()).filter(|&place| same_question(pool[place], &test, jaccard)).collect();
                n_found += expected.len();
                assert_eq!(index.places(&test), expected, "{jaccard} {}", test.stem);
            }
            assert!(n_found > 100, "{n_found} pairs say little");
        }
    }
}
