//! Forward passes over caches: one pass takes pieces of a prefix tree and continuations of caches, side by side.
//!
//! A query's attention depends on its keys alone and every product is one chain per element, so a token gives the bits of the
//! full forward, whatever else is in the pass, however its text was cut into pieces and wherever its prefix came from.

use crate::batch::check_ids;
use crate::decoder::Decoder;
use crate::kv::KvCache;
use crate::{Error, Result};
use aloe_tensor::{CachedSequence, KvSegment, Tensor, ops};
use std::ops::Range;

/// What a piece of a tree stands after.
#[derive(Clone, Copy, Debug)]
pub enum After<'a> {
    /// What a cache holds; the cache stays as it is.
    Cache(&'a KvCache),
    /// An earlier piece of the same pass, by its index.
    Piece(usize),
}

/// A run of tokens in a prefix tree.
#[derive(Clone, Copy, Debug)]
pub struct TreePiece<'a> {
    /// The tokens, not empty.
    pub ids: &'a [u32],
    /// What comes before them.
    pub after: After<'a>,
    /// Whether a cache that ends with this piece is returned.
    pub keep: bool,
}

/// What one pass gives.
#[derive(Debug)]
pub struct Pass {
    /// Hidden states after the final norm `[N, D]`: the pieces' rows in order, then the caches' rows.
    pub hidden: Tensor,
    /// Rows of each piece, then of each cache.
    pub rows: Vec<Range<usize>>,
    /// For each piece its cache, where one was asked for.
    pub kept: Vec<Option<KvCache>>,
}

/// Everything a pass knows before the first layer.
struct Layout<'a> {
    pieces: &'a [TreePiece<'a>],
    rows: Vec<Range<usize>>,
    ids: Vec<u32>,
    positions: Vec<u32>,
}

impl Decoder {
    /// Runs the pieces of a tree, and `tokens[i]` after what `caches[i]` holds, in one pass. The caches grow by their tokens;
    /// runs of several tokens are frozen, so that forks share them.
    pub fn run(&self, pieces: &[TreePiece<'_>], tokens: &[&[u32]], caches: &mut [&mut KvCache]) -> Result<Pass> {
        let layout = self.layout(pieces, tokens, caches)?;
        let mut own: Vec<Option<KvCache>> = pieces.iter().map(|piece| own_cache(pieces, piece)).collect();
        let mut x = self.weights.embedding(&self.device, &layout.ids);
        for (i, layer) in self.weights.layers.iter().enumerate() {
            let (q, k, v) = self.project(layer, &x, &layout.positions);
            let width = k.shape()[1] * k.shape()[2];
            let part = |rows: &Range<usize>| KvSegment {
                k: &k.as_f32()[rows.start * width..rows.end * width],
                v: &v.as_f32()[rows.start * width..rows.end * width],
            };
            let (piece_rows, cache_rows) = layout.rows.split_at(pieces.len());
            for (cache, rows) in own.iter_mut().zip(piece_rows) {
                if let Some(cache) = cache {
                    cache.append(i, part(rows).k, part(rows).v);
                }
            }
            for (cache, rows) in caches.iter_mut().zip(cache_rows) {
                cache.append(i, part(rows).k, part(rows).v);
            }
            let in_tree = (0..pieces.len()).map(|at| layout.segments(at, i, &part));
            let in_caches = caches.iter().map(|cache| cache.segments(i));
            let sequences: Vec<CachedSequence<'_>> = layout
                .rows
                .iter()
                .zip(in_tree.chain(in_caches))
                .filter(|(rows, _)| !rows.is_empty())
                .map(|(rows, segments)| CachedSequence { queries: rows.clone(), segments })
                .collect();
            let scale = self.attention_scale();
            let o = ops::attention_cached(&self.device, &q, &sequences, self.config.num_key_value_heads, scale);
            x = self.after_attention(layer, o, x);
        }
        for (cache, rows) in caches.iter_mut().zip(&layout.rows[pieces.len()..]) {
            cache.grown(rows.len());
        }
        let kept = join(pieces, own);
        Ok(Pass { hidden: self.final_norm(&x).0, rows: layout.rows, kept })
    }

    /// Runs `tokens[i]` after what `caches[i]` holds, all in one pass, and adds them to the caches: prefill of one or several
    /// prompts, continuation of a shared prefix, or a decoding step. Returns hidden states after the final norm `[N, D]`, the
    /// sequences' rows one after the other.
    pub fn extend(&self, tokens: &[&[u32]], caches: &mut [&mut KvCache]) -> Result<Tensor> {
        Ok(self.run(&[], tokens, caches)?.hidden)
    }

    /// Prefills `prompts[i]` into `caches[i]`; returns the logits after each prompt's last token `[B, V]`.
    pub fn prefill(&self, prompts: &[&[u32]], caches: &mut [&mut KvCache]) -> Result<Tensor> {
        if let Some(i) = prompts.iter().position(|ids| ids.is_empty()) {
            return Err(Error::Input(format!("prompt {i} is empty, so there is nothing to continue")));
        }
        let pass = self.run(&[], prompts, caches)?;
        let last: Vec<usize> = pass.rows.iter().map(|rows| rows.end - 1).collect();
        Ok(self.logits(&pass.hidden.gather_rows(&last)))
    }

    /// Adds one token to each cache; returns the logits that follow `[B, V]`.
    pub fn decode_step(&self, tokens: &[u32], caches: &mut [&mut KvCache]) -> Result<Tensor> {
        let one: Vec<&[u32]> = tokens.chunks(1).collect();
        Ok(self.logits(&self.extend(&one, caches)?))
    }

    fn layout<'a>(
        &self,
        pieces: &'a [TreePiece<'a>],
        tokens: &[&[u32]],
        caches: &[&mut KvCache],
    ) -> Result<Layout<'a>> {
        assert_eq!(tokens.len(), caches.len(), "token lists against caches");
        let mut starts: Vec<usize> = Vec::with_capacity(pieces.len() + caches.len());
        for (at, piece) in pieces.iter().enumerate() {
            assert!(!piece.ids.is_empty(), "piece {at} has no tokens");
            starts.push(match piece.after {
                After::Cache(cache) => cache.len(),
                After::Piece(parent) => {
                    assert!(parent < at, "piece {at} after piece {parent}");
                    starts[parent] + pieces[parent].ids.len()
                }
            });
        }
        starts.extend(caches.iter().map(|cache| cache.len()));
        let texts = || pieces.iter().map(|piece| piece.ids).chain(tokens.iter().copied());
        let mut layout = Layout { pieces, rows: Vec::new(), ids: Vec::new(), positions: Vec::new() };
        for (ids, start) in texts().zip(starts) {
            self.check_extension(ids, start)?;
            layout.rows.push(layout.ids.len()..layout.ids.len() + ids.len());
            layout.ids.extend_from_slice(ids);
            layout.positions.extend((start..start + ids.len()).map(|position| position as u32));
        }
        Ok(layout)
    }

    fn check_extension(&self, ids: &[u32], start: usize) -> Result<()> {
        check_ids(ids, self.config.vocab_size)?;
        let (len, context) = (start + ids.len(), self.config.max_position_embeddings);
        if len > context {
            return Err(Error::Input(format!("a text of {len} tokens does not fit the model's context of {context}")));
        }
        Ok(())
    }
}

impl<'a> Layout<'a> {
    /// Keys and values that piece `at` sees in one layer: the cache its branch starts from, the pieces before it, its own.
    fn segments<'b>(
        &self,
        at: usize,
        layer: usize,
        part: &impl Fn(&Range<usize>) -> KvSegment<'b>,
    ) -> Vec<KvSegment<'b>>
    where
        'a: 'b,
    {
        let mut chain = vec![at];
        let mut after = self.pieces[at].after;
        while let After::Piece(parent) = after {
            chain.push(parent);
            after = self.pieces[parent].after;
        }
        let mut segments = match after {
            After::Cache(cache) => cache.segments(layer),
            After::Piece(_) => Vec::new(),
        };
        segments.extend(chain.into_iter().rev().map(|piece| part(&self.rows[piece])));
        segments
    }
}

/// An empty cache that will take the piece's own keys and values, when it is to be kept.
fn own_cache(pieces: &[TreePiece<'_>], piece: &TreePiece<'_>) -> Option<KvCache> {
    let mut after = piece.after;
    while let After::Piece(parent) = after {
        after = pieces[parent].after;
    }
    match after {
        After::Cache(cache) if piece.keep => Some(cache.sibling()),
        _ => None,
    }
}

/// The kept runs of the pieces, each put after the cache of what it stands after. A kept piece's parents must be kept too.
fn join(pieces: &[TreePiece<'_>], own: Vec<Option<KvCache>>) -> Vec<Option<KvCache>> {
    let mut kept: Vec<Option<KvCache>> = Vec::with_capacity(pieces.len());
    for (piece, own) in pieces.iter().zip(own) {
        let cache = own.map(|mut own| {
            own.fill(piece.ids.len());
            match piece.after {
                After::Cache(cache) => cache.followed_by(own),
                After::Piece(parent) => {
                    kept[parent].as_ref().expect("a kept piece stands after a kept piece").followed_by(own)
                }
            }
        });
        kept.push(cache);
    }
    kept
}
