//! A pass over pieces of a prefix tree gives the bits of separate documents, and the meter counts what is held.

use crate::laws::{bits, decoder, everywhere, full_hidden, text};
use aloe_model::testing::Tiny;
use aloe_model::{After, Decoder, KvCache, KvMeter, Pass, TreePiece};
use aloe_tensor::{Dtype, Tensor};
use std::sync::Arc;

fn alone(decoder: &Decoder, ids: &[u32], last: usize) -> Vec<u32> {
    let hidden = full_hidden(decoder, ids);
    bits(&hidden.slice_rows(ids.len() - last, ids.len()))
}

fn rows(hidden: &Tensor, rows: &std::ops::Range<usize>) -> Vec<u32> {
    bits(&hidden.slice_rows(rows.start, rows.end))
}

/// Header 0..20; two questions after it; two options after the first question; a decoding sequence beside them.
#[test]
fn pieces_of_a_tree_equal_separate_documents_in_one_pass_or_over_kept_caches() {
    everywhere(|decoder| {
        let (header, question, other) = (text("header", 20), text("question", 9), text("other", 14));
        let (a, b) = (text("a", 3), text("b", 1));
        let empty = KvCache::new(decoder);
        let mut stranger = KvCache::new(decoder);
        decoder.extend(&[&text("stranger", 30)], &mut [&mut stranger]).expect("the text fits");
        let piece = |ids, after, keep| TreePiece { ids, after, keep };
        let first = [
            piece(&header[..], After::Cache(&empty), true),
            piece(&question, After::Piece(0), true),
            piece(&a, After::Piece(1), false),
        ];
        let pass = decoder.run(&first, &[&[7]], &mut [&mut stranger]).expect("the pieces fit");
        let (with_question, with_other) = ([&header[..], &question].concat(), [&header[..], &other].concat());
        assert_eq!(rows(&pass.hidden, &pass.rows[0]), alone(decoder, &header, 20));
        assert_eq!(rows(&pass.hidden, &pass.rows[1]), alone(decoder, &with_question, 9));
        assert_eq!(rows(&pass.hidden, &pass.rows[2]), alone(decoder, &[&with_question[..], &a].concat(), 3));
        assert_eq!(rows(&pass.hidden, &pass.rows[3]), alone(decoder, &[&text("stranger", 30)[..], &[7]].concat(), 1));
        assert!(pass.kept[2].is_none() && stranger.len() == 31);

        let kept: Vec<&KvCache> = pass.kept.iter().flatten().collect();
        assert_eq!(kept.iter().map(|cache| cache.len()).collect::<Vec<_>>(), [20, 29]);
        let later = [
            piece(&b[..], After::Cache(kept[1]), false),
            piece(&other, After::Cache(kept[0]), false),
            piece(&b, After::Piece(1), false),
        ];
        let pass = decoder.run(&later, &[], &mut []).expect("the pieces fit");
        assert_eq!(rows(&pass.hidden, &pass.rows[0]), alone(decoder, &[&with_question[..], &b].concat(), 1));
        assert_eq!(rows(&pass.hidden, &pass.rows[1]), alone(decoder, &with_other, 14));
        assert_eq!(rows(&pass.hidden, &pass.rows[2]), alone(decoder, &[&with_other[..], &b].concat(), 1));
    });
}

/// Tiny contexts hold one page, so this decoder's is stretched to 300: branches leave in the middle of pages, at their edges,
/// and pieces cross several.
#[test]
fn pieces_that_cross_pages_equal_separate_documents() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for threads in [1, 2] {
            let mut decoder = decoder(Tiny::Llama, dtype, threads);
            decoder.config.max_position_embeddings = 300;
            let lens = [50, 14, 100, 64, 3, 70];
            let texts: Vec<Vec<u32>> = lens.iter().enumerate().map(|(i, &n)| text(&format!("piece {i}"), n)).collect();
            let parents = [None, Some(0), Some(1), Some(1), Some(3), Some(0)];
            let empty = KvCache::new(&decoder);
            for keep in [true, false] {
                let after = |parent: Option<usize>| parent.map_or(After::Cache(&empty), After::Piece);
                let pieces: Vec<TreePiece<'_>> = texts
                    .iter()
                    .zip(parents)
                    .map(|(ids, parent)| TreePiece { ids, after: after(parent), keep })
                    .collect();
                let pass = decoder.run(&pieces, &[], &mut []).expect("the pieces fit");
                rows_asked_for_are_those_of_all(&decoder, &pieces, &pass);
                for at in 0..pieces.len() {
                    let mut whole = texts[at].clone();
                    let mut parent = parents[at];
                    while let Some(before) = parent {
                        whole.splice(0..0, texts[before].iter().copied());
                        parent = parents[before];
                    }
                    let found = rows(&pass.hidden, &pass.rows[at]);
                    assert_eq!(found, alone(&decoder, &whole, texts[at].len()), "{dtype:?} piece {at}");
                    if let Some(cache) = &pass.kept[at] {
                        let mut branch = cache.fork();
                        let hidden = decoder.extend(&[&[5]], &mut [&mut branch]).expect("the text fits");
                        assert_eq!(bits(&hidden), alone(&decoder, &[&whole[..], &[5]].concat(), 1), "after piece {at}");
                    }
                }
            }
        }
    }
}

/// No row, the last one, single ones with runs of two between them: the same hidden states, and caches that go on with the same bits.
fn rows_asked_for_are_those_of_all(decoder: &Decoder, pieces: &[TreePiece<'_>], all: &Pass) {
    let n = all.hidden.shape()[0];
    let scattered = (0..n).filter(|row| matches!(row % 7, 1 | 4 | 5)).collect();
    for wanted in [vec![], vec![n - 1], scattered] {
        let some = decoder.run_for(pieces, &[], &mut [], &wanted).expect("the pieces fit");
        assert_eq!(bits(&some.hidden), bits(&all.hidden.gather_rows(&wanted)), "rows {wanted:?}");
        assert_eq!(bits(&some.hidden_of(&wanted)), bits(&all.hidden_of(&wanted)), "rows {wanted:?}");
        for (one, other) in some.kept.iter().zip(&all.kept) {
            let after = |cache: &Option<KvCache>| {
                let mut branch = cache.as_ref()?.fork();
                Some(bits(&decoder.extend(&[&[5]], &mut [&mut branch]).expect("the text fits")))
            };
            assert_eq!(after(one), after(other), "rows {wanted:?}");
        }
    }
}

#[test]
fn an_evicted_or_truncated_cache_that_runs_its_tokens_again_gives_the_same_bits() {
    let mut decoder = decoder(Tiny::Qwen2, Dtype::Bf16, 2);
    decoder.config.max_position_embeddings = 200;
    let ids = text("evicted", 150);
    let mut trunk = KvCache::new(&decoder);
    decoder.extend(&[&ids[..80]], &mut [&mut trunk]).expect("the text fits");
    let mut branch = trunk.fork();
    decoder.extend(&[&ids[80..149]], &mut [&mut branch]).expect("the text fits");
    decoder.extend(&[&ids[149..]], &mut [&mut branch]).expect("the text fits");
    let mut shorter = branch.fork();
    shorter.truncate(100);
    let hidden = decoder.extend(&[&ids[100..]], &mut [&mut shorter]).expect("the text fits");
    assert_eq!(bits(&hidden), alone(&decoder, &ids, 50));
    drop(shorter);
    branch.evict();
    assert_eq!(branch.len(), 64, "the full page that the trunk shares stays");
    let hidden = decoder.extend(&[&ids[64..]], &mut [&mut branch]).expect("the text fits");
    assert_eq!(bits(&hidden), alone(&decoder, &ids, 86));
    drop(trunk);
    branch.evict();
    assert!(branch.is_empty());
}

/// A page of both layers: 2 x 64 positions x 2 heads x (16 + 32, a value padded to 32) x 4 bytes = 49,152 bytes.
#[test]
fn the_meter_counts_a_shared_page_once_and_forgets_what_is_dropped() {
    let mut decoder = decoder(Tiny::Llama, Dtype::F32, 1);
    decoder.config.max_position_embeddings = 200;
    let page = 49_152;
    assert_eq!((KvCache::bytes_of(&decoder, 64), KvCache::bytes_of(&decoder, 65)), (page, 2 * page));
    let meter = Arc::new(KvMeter::default());
    let mut trunk = KvCache::metered(&meter);
    decoder.extend(&[&text("trunk", 70)], &mut [&mut trunk]).expect("the text fits");
    let mut forks: Vec<KvCache> = (0..3).map(|_| trunk.fork()).collect();
    assert_eq!(meter.bytes(), 2 * page);
    let mut all: Vec<&mut KvCache> = forks.iter_mut().collect();
    decoder.extend(&[&[1], &[2, 3], &[4]], &mut all).expect("the texts fit");
    assert_eq!(meter.bytes(), 5 * page, "each branch copies the part-filled page");
    drop(trunk);
    assert_eq!(meter.bytes(), 4 * page, "the forks still hold the first page");
    drop(forks);
    assert_eq!((meter.bytes(), meter.peak_bytes()), (0, 5 * page));
}
