//! A pass over pieces of a prefix tree gives the bits of separate documents, and the meter counts what is held.

use crate::laws::{bits, decoder, everywhere, text};
use aloe_model::testing::Tiny;
use aloe_model::{After, Decoder, KvCache, KvMeter, PackedBatch, TreePiece};
use aloe_tensor::{Dtype, Tensor};
use std::sync::Arc;

fn alone(decoder: &Decoder, ids: &[u32], last: usize) -> Vec<u32> {
    let hidden = decoder.hidden(&PackedBatch::from_documents(&[ids])).expect("the text fits");
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

#[test]
fn an_evicted_cache_that_runs_its_tokens_again_gives_the_same_bits() {
    everywhere(|decoder| {
        let ids = text("evicted", 40);
        let mut trunk = KvCache::new(decoder);
        decoder.extend(&[&ids[..16]], &mut [&mut trunk]).expect("the text fits");
        let mut branch = trunk.fork();
        decoder.extend(&[&ids[16..30]], &mut [&mut branch]).expect("the text fits");
        decoder.extend(&[&ids[30..31]], &mut [&mut branch]).expect("the text fits");
        branch.evict();
        assert_eq!(branch.len(), 16, "what the trunk shares stays");
        let hidden = decoder.extend(&[&ids[16..]], &mut [&mut branch]).expect("the text fits");
        assert_eq!(bits(&hidden), alone(decoder, &ids, 24));
        drop(trunk);
        branch.evict();
        assert!(branch.is_empty());
    });
}

/// 2 layers x (K and V) x 2 heads x 16 x 4 bytes = 512 bytes a token.
#[test]
fn the_meter_counts_a_shared_run_once_and_forgets_what_is_dropped() {
    let decoder = decoder(Tiny::Llama, Dtype::F32, 1);
    assert_eq!(KvCache::bytes_per_token(&decoder), 512);
    let meter = Arc::new(KvMeter::default());
    let mut trunk = KvCache::metered(&decoder, &meter);
    decoder.extend(&[&text("trunk", 10)], &mut [&mut trunk]).expect("the text fits");
    let mut forks: Vec<KvCache> = (0..3).map(|_| trunk.fork()).collect();
    assert_eq!(meter.bytes(), 10 * 512);
    let mut all: Vec<&mut KvCache> = forks.iter_mut().collect();
    decoder.extend(&[&[1], &[2, 3], &[4]], &mut all).expect("the texts fit");
    assert_eq!(meter.bytes(), 14 * 512);
    let copied = forks[0].fork();
    assert_eq!(meter.bytes(), 15 * 512, "a tail of single tokens is copied");
    drop((trunk, copied));
    assert_eq!(meter.bytes(), 14 * 512, "the forks still hold the trunk");
    drop(forks);
    assert_eq!((meter.bytes(), meter.peak_bytes()), (0, 15 * 512));
}
