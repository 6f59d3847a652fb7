//! Duplicates by meaning: rows whose sentence embeddings lie at a cosine or nearer, joined by union-find; the first row of a cluster stays,
//! or the longest. What
//! MinHash leaves alone, since it shares no run of words. Every pair is compared, so the rows are at most [`MAX_ROWS`].
//!
//! What is embedded is the text that duplicates are judged by (question and answer; dialogues with their speakers). An embedder reads the
//! beginning of long texts only: rows that differ later than that are told apart by nothing here, so their number is counted.
//! Rows of other system messages are never joined, nor a dialogue with a single exchange, as little as by words.

use crate::dedup::{Duplicate, UnionFind, stays};
use crate::meaning::cosine;
use crate::minhash::jaccard;
use crate::page::N_SHOWN;
use crate::{Dedup, Error, Item, Result, parallel, simplify, vectors};
use aloe_engine::Embedder;
use aloe_record::{Cancel, Progress};
use std::path::Path;

/// Pairs grow with the square: 50,000 rows have 1.25e9.
pub(crate) const MAX_ROWS: usize = 50_000;

/// The rule's name.
pub(crate) const RULE: &str = "semantic_duplicate";

/// Rows that another one covers, in order, and how many texts the embedder cut. Embeddings are logged in `out`.
pub(crate) fn find(
    items: &[Item],
    embedder: &Embedder,
    (threshold, dedup): (f64, &Dedup),
    out: &Path,
    n_threads: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<(Vec<Duplicate>, usize)> {
    progress.message("duplicates by meaning");
    progress.grow(items.len() as u64);
    let texts: Vec<String> = items.iter().map(Item::dedup_text).collect();
    let embedded = vectors::embed(embedder, &texts, out, progress, cancel)?;
    let n_cut = embedded.iter().filter(|one| one.n_cut_tokens > 0).count();
    let vectors: Vec<Vec<f32>> = embedded.into_iter().map(|one| one.vector).collect();
    cancel.check()?;
    let kinds: Vec<(bool, Option<&str>)> = items.iter().map(|item| (item.is_dialogue(), item.system())).collect();
    let roots = near(&vectors, &kinds, threshold, n_threads);
    let kept = stays(&roots, dedup.keep, |row| texts[row].chars().count());
    let dropped = kept.into_iter().enumerate().filter(|(row, kept)| row != kept);
    let found = dropped.enumerate().map(|(at, (dropped, kept))| Duplicate {
        dropped_index: dropped,
        dropped: items[dropped].id.clone(),
        kept: items[kept].id.clone(),
        rule: RULE,
        jaccard: (jaccard(&simplify(&texts[dropped]), &simplify(&texts[kept])) * 1e4).round() / 1e4,
        texts: if at < N_SHOWN { (texts[dropped].clone(), texts[kept].clone()) } else { Default::default() },
    });
    Ok((found.collect(), n_cut))
}

/// Refuses more rows than can be compared, before any is embedded.
pub(crate) fn check_number(n_rows: usize) -> Result<()> {
    if n_rows <= MAX_ROWS {
        return Ok(());
    }
    let text = format!("`dedup.semantic` compares all pairs of at most {MAX_ROWS} rows, and there are {n_rows}");
    Err(Error::Config { mistakes: vec![text] })
}

/// For each row the first of its cluster; rows of different `kinds` are never joined.
fn near<K: PartialEq + Sync>(vectors: &[Vec<f32>], kinds: &[K], threshold: f64, n_threads: usize) -> Vec<usize> {
    let numbered: Vec<(usize, &Vec<f32>)> = vectors.iter().enumerate().collect();
    let earlier = |&(row, vector): &(usize, &Vec<f32>)| -> Vec<usize> {
        let is_near = |&other: &usize| kinds[row] == kinds[other] && cosine(vector, &vectors[other]) >= threshold;
        (0..row).filter(is_near).collect()
    };
    let mut clusters = UnionFind::new(vectors.len());
    for (row, others) in parallel::map(n_threads, &numbered, earlier).into_iter().enumerate() {
        others.into_iter().for_each(|other| clusters.join(other, row));
    }
    (0..vectors.len()).map(|row| clusters.root(row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit vectors at 0, 90, 20, 100 and 35 degrees; 20 degrees are a cosine of 0.94, 15 of 0.966, 35 of 0.819.
    #[test]
    fn near_rows_join_the_first_of_their_cluster_through_others_for_any_number_of_threads() {
        let at = |degrees: f32| vec![degrees.to_radians().cos(), degrees.to_radians().sin()];
        let vectors: Vec<Vec<f32>> = [0.0, 90.0, 20.0, 100.0, 35.0].map(at).to_vec();
        for n_threads in [1, 2, 5] {
            assert_eq!(near(&vectors, &[(); 5], 0.93, n_threads), [0, 1, 0, 1, 0]);
            assert_eq!(near(&vectors, &[(); 5], 0.95, n_threads), [0, 1, 2, 1, 2]);
            assert_eq!(near(&vectors, &[(); 5], 0.99, n_threads), [0, 1, 2, 3, 4]);
        }
    }

    /// As above, but the third row is of another kind: the fifth lies 35 degrees from the first then, and nothing joins them.
    #[test]
    fn rows_of_different_kinds_are_not_joined_nor_others_through_them() {
        let at = |degrees: f32| vec![degrees.to_radians().cos(), degrees.to_radians().sin()];
        let vectors: Vec<Vec<f32>> = [0.0, 90.0, 20.0, 100.0, 35.0].map(at).to_vec();
        let adult = Some("The patient is an adult.");
        let kinds = [adult, adult, Some("The patient is a child."), adult, adult];
        assert_eq!(near(&vectors, &kinds, 0.93, 2), [0, 1, 2, 1, 4]);
    }

    #[test]
    fn more_rows_than_can_be_compared_are_refused_with_their_number() {
        assert!(check_number(MAX_ROWS).is_ok());
        assert!(
            check_number(MAX_ROWS + 1).unwrap_err().to_string().contains("at most 50000 rows, and there are 50001")
        );
    }
}
