//! What must not change a bit: caches, batch mates, threads, branches, packing.

use aloe_model::testing::{Tiny, fill, tiny_random};
use aloe_model::{Branches, Decoder, Keep, KvCache, PackedBatch};
use aloe_tensor::{Device, Dtype, Tensor};

pub(crate) fn decoder(kind: Tiny, dtype: Dtype, threads: usize) -> Decoder {
    Decoder::from_params(&tiny_random(kind, 7), dtype, &Device::cpu(threads))
}

pub(crate) fn text(name: &str, n: usize) -> Vec<u32> {
    fill(name, n).into_iter().map(|v| ((v + 1.0) * 32.0) as u32).collect()
}

pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    x.as_f32().iter().map(|v| v.to_bits()).collect()
}

/// Hidden states of one text in one pass without a cache: what every cache is held against, in f32 and bf16.
pub(crate) fn full_hidden(decoder: &Decoder, ids: &[u32]) -> Tensor {
    decoder.hidden(&PackedBatch::from_documents(&[ids])).expect("the text fits")
}

fn full_logits(decoder: &Decoder, ids: &[u32]) -> Tensor {
    decoder.logits(&full_hidden(decoder, ids))
}

/// Runs the check for both families, both types and one and two threads.
pub(crate) fn everywhere(check: impl Fn(&Decoder)) {
    for kind in [Tiny::Llama, Tiny::Qwen2] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for threads in [1, 2] {
                check(&decoder(kind, dtype, threads));
            }
        }
    }
}

#[test]
fn decoding_with_a_cache_equals_the_full_forward_bit_for_bit() {
    everywhere(|decoder| {
        let ids = text("cache", 63);
        let full = full_logits(decoder, &ids);
        let mut cache = KvCache::new(decoder);
        let prefill = decoder.prefill(&[&ids[..20]], &mut [&mut cache]).expect("the prompt fits");
        assert_eq!(bits(&prefill), bits(&full.slice_rows(19, 20)));
        for t in 20..ids.len() {
            let step = decoder.decode_step(&ids[t..=t], &mut [&mut cache]).expect("the text fits");
            assert_eq!(bits(&step), bits(&full.slice_rows(t, t + 1)), "token {t}");
        }
        assert_eq!(cache.len(), ids.len());
    });
}

#[test]
fn batch_mates_change_nothing() {
    everywhere(|decoder| {
        let texts: Vec<Vec<u32>> = (0..17).map(|i| text(&format!("mate {i}"), 3 + 2 * i)).collect();
        let mut caches: Vec<KvCache> = texts.iter().map(|_| KvCache::new(decoder)).collect();
        let prompts: Vec<&[u32]> = texts.iter().map(|ids| &ids[..ids.len() - 1]).collect();
        let next: Vec<u32> = texts.iter().map(|ids| ids[ids.len() - 1]).collect();
        let mut all: Vec<&mut KvCache> = caches.iter_mut().collect();
        let after_prompt = decoder.prefill(&prompts, &mut all).expect("the prompts fit");
        let after_next = decoder.decode_step(&next, &mut all).expect("the texts fit");
        for (i, ids) in texts.iter().enumerate() {
            let alone = full_logits(decoder, ids);
            let n = ids.len();
            assert_eq!(bits(&after_prompt.slice_rows(i, i + 1)), bits(&alone.slice_rows(n - 2, n - 1)), "prompt {i}");
            assert_eq!(bits(&after_next.slice_rows(i, i + 1)), bits(&alone.slice_rows(n - 1, n)), "step {i}");
        }
        let packed = PackedBatch::from_documents(&crate::slices(&texts));
        let hidden = decoder.hidden(&packed).expect("the texts fit");
        for (ids, rows) in texts.iter().zip(&packed.pieces) {
            let alone = decoder.hidden(&PackedBatch::from_documents(&[ids])).expect("the text fits");
            assert_eq!(bits(&hidden.slice_rows(rows.start, rows.end)), bits(&alone));
        }
    });
}

#[test]
fn threads_and_clones_change_nothing() {
    for kind in [Tiny::Llama, Tiny::Qwen2] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let ids = text("threads", 64);
            let packed = PackedBatch::from_documents(&[&ids]);
            let run = |threads| {
                let decoder = decoder(kind, dtype, threads);
                (bits(&full_hidden(&decoder, &ids)), bits(&decoder.hidden(&packed).expect("the text fits")))
            };
            let one = run(1);
            for threads in [2, 3] {
                assert_eq!(one, run(threads), "{kind:?} {dtype:?} {threads}");
            }
        }
    }
}

#[test]
fn a_fork_equals_a_sequence_decoded_alone() {
    everywhere(|decoder| {
        let prefix = text("prefix", 30);
        let mut trunk = KvCache::new(decoder);
        decoder.prefill(&[&prefix[..29]], &mut [&mut trunk]).expect("the prompt fits");
        decoder.decode_step(&prefix[29..], &mut [&mut trunk]).expect("the text fits");
        let mut forks: Vec<KvCache> = (0..3).map(|_| trunk.fork()).collect();
        let tails: Vec<Vec<u32>> = (0..3).map(|i| text(&format!("branch {i}"), 12)).collect();
        for t in 0..12 {
            let tokens: Vec<u32> = tails.iter().map(|tail| tail[t]).collect();
            let mut all: Vec<&mut KvCache> = forks.iter_mut().collect();
            let logits = decoder.decode_step(&tokens, &mut all).expect("the texts fit");
            for (i, tail) in tails.iter().enumerate() {
                let ids = [&prefix[..], &tail[..=t]].concat();
                let n = ids.len();
                let alone = full_logits(decoder, &ids).slice_rows(n - 1, n);
                assert_eq!(bits(&logits.slice_rows(i, i + 1)), bits(&alone), "branch {i}, token {t}");
            }
        }
        assert_eq!(trunk.len(), 30, "branches leave the trunk alone");
    });
}

#[test]
fn forks_share_the_memory_of_what_was_prefilled() {
    let decoder = decoder(Tiny::Llama, Dtype::F32, 1);
    let mut trunk = KvCache::new(&decoder);
    decoder.prefill(&[&text("memory", 40)], &mut [&mut trunk]).expect("the prompt fits");
    // 2 layers x one page of 64 positions x 2 heads x (16 elements of a key + 16 of a value, padded to 32) x 4 bytes.
    assert_eq!(trunk.nbytes(), 2 * 64 * 2 * (16 + 32) * 4);
    let forks: Vec<KvCache> = (0..3).map(|_| trunk.fork()).collect();
    let all = trunk.nbytes() + forks.iter().map(KvCache::nbytes).sum::<usize>();
    assert_eq!(all, 2 * 64 * 2 * (16 + 32) * 4);
}

#[test]
fn continuing_a_prefilled_prefix_equals_one_forward_over_all() {
    everywhere(|decoder| {
        let ids = text("continued", 50);
        let full = full_hidden(decoder, &ids);
        let mut cache = KvCache::new(decoder);
        let mut rows = Vec::new();
        for part in [&ids[..17], &ids[17..18], &ids[18..18], &ids[18..41], &ids[41..]] {
            rows.extend(bits(&decoder.extend(&[part], &mut [&mut cache]).expect("the text fits")));
        }
        assert_eq!(rows, bits(&full));
    });
}

#[test]
fn shared_prefix_log_probabilities_equal_separate_documents() {
    everywhere(|decoder| {
        let prefix = text("shared", 21);
        let tails: Vec<Vec<u32>> = (0..4).map(|i| text(&format!("option {i}"), 1 + 5 * i)).collect();
        let batch = PackedBatch::from_branches(&[
            Branches { prefix: &[9, 9, 9], continuations: vec![&[1, 2]] },
            Branches { prefix: &prefix, continuations: crate::slices(&tails) },
        ]);
        let hidden = decoder.hidden(&batch).expect("the batch fits");
        let last = batch.pieces[2].end - 1;
        for (tail, piece) in tails.iter().zip(&batch.pieces[3..]) {
            let rows: Vec<usize> = std::iter::once(last).chain(piece.start..piece.end - 1).collect();
            let packed = decoder.token_logps(&hidden, rows, tail.clone()).logps;
            let ids = [&prefix[..], tail].concat();
            let alone = decoder.hidden(&PackedBatch::from_documents(&[&ids])).expect("the text fits");
            let alone = decoder.token_logps(&alone, (20..ids.len() - 1).collect(), tail.clone()).logps;
            assert_eq!(packed, alone);
        }
        let activations = decoder.forward_train(batch, Keep::All).expect("the batch fits");
        assert_eq!(bits(&activations.hidden), bits(&hidden), "training runs the same forward");
    });
}

#[test]
fn token_log_probabilities_equal_the_log_softmax_of_the_logits() {
    everywhere(|decoder| {
        let ids = text("softmax", 20);
        let hidden = decoder.hidden(&PackedBatch::from_documents(&[&ids])).expect("the text fits");
        let logits = decoder.logits(&hidden);
        let found = decoder.token_logps(&hidden, (0..19).collect(), ids[1..].to_vec());
        for t in 0..19 {
            let row: Vec<f64> = logits.as_f32()[t * 64..(t + 1) * 64].iter().map(|v| f64::from(*v)).collect();
            let max = row.iter().copied().fold(f64::MIN, f64::max);
            let lse = max + row.iter().map(|v| (v - max).exp()).sum::<f64>().ln();
            assert!((f64::from(found.logps[t]) - (row[ids[t + 1] as usize] - lse)).abs() < 1e-5);
            assert_eq!(row[found.argmax[t] as usize], max);
        }
    });
}

#[test]
fn texts_beyond_the_context_and_unknown_ids_are_refused() {
    let decoder = decoder(Tiny::Llama, Dtype::F32, 1);
    let ids = text("long", 65);
    let refused = "a text of 65 tokens does not fit the model's context of 64";
    let mut cache = KvCache::new(&decoder);
    let found = decoder.extend(&[&ids], &mut [&mut cache]).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(found, Err(refused.to_string()));
    let found = decoder.hidden(&PackedBatch::from_documents(&[&ids])).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(found, Err(refused.to_string()));
    assert!(decoder.decode_step(&[64], &mut [&mut cache]).is_err(), "id 64 of a vocabulary of 64");
    assert!(cache.is_empty(), "a refused pass leaves the cache as it was");
}
