//! Attention over pages: against the plain twin, against the packed kernel, and the laws of company, sharing and threads.

use super::*;
use crate::Rounded;
use crate::reference;
use crate::tensor::{bf16_from_f32, f32_from_bf16};
use crate::testing::{close, devices, normal, same_bits};
use std::sync::Arc;

const HEADS: [Heads; 8] = [
    Heads { h: 1, k: 1, e: 8 },
    Heads { h: 9, k: 3, e: 64 },
    Heads { h: 4, k: 2, e: 50 },
    Heads { h: 2, k: 2, e: 32 },
    Heads { h: 4, k: 1, e: 128 },
    Heads { h: 7, k: 1, e: 64 },
    Heads { h: 6, k: 1, e: 96 },
    Heads { h: 2, k: 1, e: 80 },
];

/// Pages of one sequence, filled from rows of k and v in pieces of the given sizes.
fn paged(dtype: Dtype, heads: Heads, k: &Tensor, v: &Tensor, pieces: &[usize]) -> Vec<Arc<KvPage>> {
    let width = heads.k * heads.e;
    let n = k.shape()[0];
    let mut pages: Vec<KvPage> =
        (0..n.div_ceil(KvPage::POSITIONS)).map(|_| KvPage::new(dtype, heads.k, heads.e)).collect();
    let (mut at, mut piece) = (0, 0);
    while at < n {
        let room = KvPage::POSITIONS - at % KvPage::POSITIONS;
        let take = pieces[piece % pieces.len()].min(room).min(n - at);
        let range = at * width..(at + take) * width;
        pages[at / 64].write(at % 64, &k.as_f32()[range.clone()], &v.as_f32()[range]);
        (at, piece) = (at + take, piece + 1);
    }
    pages.into_iter().map(Arc::new).collect()
}

fn refs(pages: &[Arc<KvPage>]) -> Vec<&KvPage> {
    pages.iter().map(Arc::as_ref).collect()
}

fn rounded(x: &Tensor) -> Tensor {
    Tensor::from_f32(x.shape(), x.as_f32().iter().map(|v| f32_from_bf16(bf16_from_f32(*v))).collect())
}

#[test]
fn f32_pages_give_the_bits_of_the_packed_kernel_and_bf16_pages_agree_with_the_plain_loops() {
    for device in devices() {
        for heads in HEADS {
            for t in [1, 2, 63, 64, 65, 150] {
                let what = format!("{device:?} {heads:?} {t} tokens");
                let (q, kv) = ([t, heads.h, heads.e], [t, heads.k, heads.e]);
                let (q, k, v) = (normal("q", &q), normal("k", &kv), normal("v", &kv));
                let plan = AttentionPlan::causal(&[t]);
                let run = |dtype| {
                    let pages = paged(dtype, heads, &k, &v, &[1, 5, 64]);
                    let sequence = PagedSequence { queries: 0..t, pages: refs(&pages), len_tokens: t };
                    attention_paged(&device, &q, &[sequence], 0.3)
                };
                let whole = attention(&device, &q, &k, &v, &plan, 0.3).0;
                same_bits(run(Dtype::F32).as_f32(), whole.as_f32(), &what);
                let (q, k, v) = (rounded(&q), rounded(&k), rounded(&v));
                let expected = reference::attention(q.as_f32(), k.as_f32(), v.as_f32(), heads, &plan, 0.3).0;
                // Weights are rounded to bf16, 2^-9 of each: the output, a mean of values up to 4, is off by less than 2^-8 of it.
                close(run(Dtype::Bf16).as_f32(), &expected, 1.6e-2, &what);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_company_and_with_a_shared_prefix() {
    for device in devices() {
        for heads in HEADS {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let (t, shared) = (200, 128);
                let what = format!("{device:?} {heads:?} {dtype:?}");
                let (q, kv) = ([t, heads.h, heads.e], [t, heads.k, heads.e]);
                let (q, k, v) = (normal("q", &q), normal("k", &kv), normal("v", &kv));
                let other = normal("k2", &kv);
                let pages = paged(dtype, heads, &k, &v, &[64]);
                // A branch shares two pages and differs in the third.
                let mut branch = paged(dtype, heads, &other, &v, &[3]);
                branch[..2].clone_from_slice(&pages[..2]);
                let one = |pages: &[Arc<KvPage>], from: usize, to: usize| {
                    let s = PagedSequence { queries: 0..to - from, pages: refs(pages), len_tokens: to };
                    attention_paged(&Device::cpu_with(device.isa(), 1), &q.slice_rows(from, to), &[s], 0.2)
                };
                let jobs = [
                    (&pages, 0, 40),
                    (&branch, shared, 170),
                    (&pages, 130, 131),
                    (&branch, 199, 200),
                    (&pages, 60, 199),
                ];
                let (mut rows, mut sequences) = (Vec::new(), Vec::new());
                for (pages, from, to) in jobs {
                    sequences.push(PagedSequence {
                        queries: rows.len()..rows.len() + to - from,
                        pages: refs(pages),
                        len_tokens: to,
                    });
                    rows.extend(from..to);
                }
                let all = attention_paged(&device, &q.gather_rows(&rows), &sequences, 0.2);
                let mut at = 0;
                for (pages, from, to) in jobs {
                    let alone = one(pages, from, to);
                    same_bits(alone.as_f32(), all.slice_rows(at, at + to - from).as_f32(), &what);
                    for row in [from, to - 1] {
                        let single = one(pages, row, row + 1);
                        same_bits(single.as_f32(), alone.slice_rows(row - from, row - from + 1).as_f32(), &what);
                    }
                    at += to - from;
                }
            }
        }
    }
}

#[test]
fn pages_written_on_the_device_equal_pages_written_one_by_one() {
    let (device, heads) = (Device::cpu(2), HEADS[2]);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let kv = [150, heads.k, heads.e];
        let (k, v, q) = (normal("k", &kv), normal("v", &kv), normal("q", &[150, heads.h, heads.e]));
        let one_by_one = paged(dtype, heads, &k, &v, &[1]);
        let mut pages: Vec<KvPage> = (0..3).map(|_| KvPage::new(dtype, heads.k, heads.e)).collect();
        let write = |(i, page)| PageWrite { page, at: 0, rows: i * 64..150.min(i * 64 + 64) };
        write_pages(&device, &k, &v, pages.iter_mut().enumerate().map(write).collect());
        let run = |pages: Vec<&KvPage>| {
            attention_paged(&device, &q, &[PagedSequence { queries: 0..150, pages, len_tokens: 150 }], 0.3)
        };
        same_bits(run(pages.iter().collect()).as_f32(), run(refs(&one_by_one)).as_f32(), "pages");
    }
}

/// A product rounds its rows; here attention has done so.
#[test]
fn a_rounded_output_is_the_output_rounded() {
    for device in devices() {
        for heads in HEADS {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let kv = [150, heads.k, heads.e];
                let (k, v, q) = (normal("k", &kv), normal("v", &kv), normal("q", &[145, heads.h, heads.e]));
                let pages = paged(dtype, heads, &k, &v, &[64]);
                // Rows 130 to 134 are of no sequence.
                let sequence = |queries, len_tokens| PagedSequence { queries, pages: refs(&pages), len_tokens };
                let sequences = [sequence(0..130, 150), sequence(135..145, 130)];
                let expected = Rounded::new(&device, &attention_paged(&device, &q, &sequences, 0.2)).to_tensor();
                let found = attention_paged_rounded(&device, &q, &sequences, 0.2).to_tensor();
                same_bits(found.as_f32(), expected.as_f32(), &format!("{device:?} {heads:?} {dtype:?}"));
                assert!(found.slice_rows(130, 135).as_f32().iter().all(|o| *o == 0.0));
                let none = attention_paged_rounded(&device, &q, &[], 0.2).to_tensor();
                assert!(none.shape() == [145, heads.h * heads.e] && none.as_f32().iter().all(|o| *o == 0.0));
            }
        }
    }
}

/// Queries alone take the steps of a softmax row by row, many over whole pages take them beside products.
#[test]
fn rows_over_whole_pages_have_the_bits_of_rows_alone() {
    for device in devices() {
        for heads in HEADS {
            let (t, from) = (330, 300);
            let kv = [t, heads.k, heads.e];
            let (k, v, q) = (normal("k", &kv), normal("v", &kv), normal("q", &[t - from, heads.h, heads.e]));
            let pages = paged(Dtype::Bf16, heads, &k, &v, &[64]);
            for scale in [0.3, 3.0, -0.3] {
                let run = |device: &Device, q: &Tensor, len_tokens| {
                    let queries = 0..q.shape()[0];
                    let sequence = PagedSequence { queries, pages: refs(&pages), len_tokens };
                    attention_paged(device, q, &[sequence], scale)
                };
                let all = run(&device, &q, t);
                for row in 0..t - from {
                    let alone = run(&Device::cpu_with(device.isa(), 1), &q.slice_rows(row, row + 1), from + row + 1);
                    let what = format!("{device:?} {heads:?} scale {scale}, row {row}");
                    same_bits(alone.as_f32(), all.slice_rows(row, row + 1).as_f32(), &what);
                }
            }
        }
    }
}
