//! Forward passes over caches: one pass takes pieces of a prefix tree and continuations of caches, side by side.
//!
//! A query's attention depends on its keys alone and every product is one chain per element, so a token gives the same bits
//! whatever else is in the pass, however its text was cut into pieces and wherever its prefix came from; in f32 they are the
//! bits of the full forward.

use crate::batch::check_ids;
use crate::decoder::Decoder;
use crate::kv::{Held, KvCache, PageSet, new_page};
use crate::{Error, Result};
use aloe_tensor::{Dtype, KvPage, Linear, PageWrite, PagedSequence, Tensor, lap, ops};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

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
    /// Whether a cache that ends with this piece is returned; a piece before it must be kept too. The keys and values of
    /// others are held for one layer at a time.
    pub keep: bool,
}

/// What one pass gives.
#[derive(Debug)]
pub struct Pass {
    /// Hidden states after the final norm `[N, D]`: the pieces' rows in order, then the caches' rows; of [`Decoder::run_for`] only those
    /// that were asked for.
    pub hidden: Tensor,
    /// The rows that `hidden` holds.
    pub hidden_rows: Vec<usize>,
    /// Rows of each piece, then of each cache.
    pub rows: Vec<Range<usize>>,
    /// For each piece its cache, where one was asked for.
    pub kept: Vec<Option<KvCache>>,
}

impl Pass {
    /// Hidden states `[R, D]` of rows that were asked for.
    pub fn hidden_of(&self, rows: &[usize]) -> Tensor {
        let place = |row| self.hidden_rows.binary_search(row).expect("a row that was asked for");
        self.hidden.gather_rows(&rows.iter().map(place).collect::<Vec<_>>())
    }
}

/// Where a piece stands.
struct Placed<'a> {
    piece: TreePiece<'a>,
    /// Position of its first token; its own pages begin with the one that holds it.
    start: usize,
    /// The cache its branch starts from.
    base: &'a KvCache,
    /// Pieces of this pass before it.
    depth: usize,
}

impl Placed<'_> {
    fn first_page(&self) -> usize {
        self.start / KvCache::PAGE
    }

    fn end(&self) -> usize {
        self.start + self.piece.ids.len()
    }

    fn n_own_pages(&self) -> usize {
        self.end().div_ceil(KvCache::PAGE) - self.first_page()
    }
}

/// Everything a pass knows before the first layer.
struct Layout<'a> {
    pieces: Vec<Placed<'a>>,
    rows: Vec<Range<usize>>,
    ids: Vec<u32>,
    positions: Vec<u32>,
}

impl Decoder {
    /// Runs the pieces of a tree, and `tokens[i]` after what `caches[i]` holds, in one pass. The caches grow by their tokens.
    pub fn run(&self, pieces: &[TreePiece<'_>], tokens: &[&[u32]], caches: &mut [&mut KvCache]) -> Result<Pass> {
        self.pass(pieces, tokens, caches, None)
    }

    /// [`Self::run`] for the hidden states of rows `wanted` alone, in rising order: rows are counted over the pieces and then the caches.
    /// Of the last layer nothing is computed for other rows but keys and values; the bits are those of all rows.
    pub fn run_for(
        &self,
        pieces: &[TreePiece<'_>],
        tokens: &[&[u32]],
        caches: &mut [&mut KvCache],
        wanted: &[usize],
    ) -> Result<Pass> {
        self.pass(pieces, tokens, caches, Some(wanted))
    }

    fn pass(
        &self,
        pieces: &[TreePiece<'_>],
        tokens: &[&[u32]],
        caches: &mut [&mut KvCache],
        wanted: Option<&[usize]>,
    ) -> Result<Pass> {
        let layout = self.layout(pieces, tokens, caches)?;
        let cache_rows = &layout.rows[pieces.len()..];
        for (cache, rows) in caches.iter_mut().zip(cache_rows) {
            cache.reserve(self, rows.len());
        }
        let held = layout.hold(self);
        let mut kept_pages: Vec<Vec<Vec<KvPage>>> = layout.pieces.iter().map(Layout::empty_sets).collect();
        let mut x = self.weights.embedding(&self.device, &layout.ids);
        let rotation = self.rope.rotation(&self.device, &layout.positions);
        lap("embedding");
        // With all rows wanted there is nothing to pick.
        let wanted = wanted.filter(|rows| rows.len() < layout.ids.len());
        for (i, layer) in self.weights.layers.iter().enumerate() {
            let wanted = wanted.filter(|_| i + 1 == self.weights.layers.len());
            self.expect_cache(&x, caches, i);
            let (q, k, v) = match wanted {
                Some(rows) => self.project_for(layer, &x, &rotation, rows),
                None => self.project(layer, &x, &rotation),
            };
            ops::write_pages(&self.device, &k, &v, cache_writes(caches, cache_rows, i));
            let own = layout.write_pieces(self, i, &k, &v);
            lap("pages");
            let in_tree = (0..pieces.len()).map(|at| layout.pages(&own, at, i));
            let in_caches = caches.iter().map(|cache| cache.pages().iter().map(|set| &set.layers[i]).collect());
            let ends = layout.pieces.iter().map(Placed::end);
            let lens = ends.chain(caches.iter().zip(cache_rows).map(|(cache, rows)| cache.len() + rows.len()));
            let whole = (layout.rows.iter().zip(in_tree.chain(in_caches)).zip(lens))
                .filter(|((rows, _), _)| !rows.is_empty())
                .map(|((rows, pages), len_tokens)| PagedSequence { queries: rows.clone(), pages, len_tokens });
            let sequences: Vec<PagedSequence<'_>> = match wanted {
                Some(rows) => picked(whole, rows),
                None => whole.collect(),
            };
            if let Some(rows) = wanted {
                x = x.gather_rows(rows);
            }
            let scale = self.attention_scale();
            if x.shape()[0] > FEW_STREAMS && rounds_its_input(&layer.o) {
                let o = ops::attention_paged_rounded(&self.device, &q, &sequences, scale);
                lap("attention");
                x = self.after_rounded_attention(layer, &o, x);
                keep_pages(own, &mut kept_pages);
                continue;
            }
            self.expect(&x, &[&layer.o]);
            let o = ops::attention_paged(&self.device, &q, &sequences, scale);
            lap("attention");
            x = match self.weights.layers.get(i + 1) {
                Some(next) => self.after_attention(layer, o, x, &[&next.q, &next.k, &next.v]),
                None => self.after_attention(layer, o, x, &[&self.weights.head]),
            };
            keep_pages(own, &mut kept_pages);
        }
        for (cache, rows) in caches.iter_mut().zip(cache_rows) {
            cache.grown(rows.len());
        }
        // From here on the caches count what is kept.
        drop(held);
        let kept = join(&layout.pieces, kept_pages);
        let hidden_rows = wanted.map_or_else(|| (0..layout.ids.len()).collect(), <[usize]>::to_vec);
        Ok(Pass { hidden: self.final_norm(&x).0, hidden_rows, rows: layout.rows, kept })
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
        let mut end = 0;
        let ends = prompts.iter().map(|ids| {
            end += ids.len();
            end - 1
        });
        Ok(self.logits(&self.run_for(&[], prompts, caches, &ends.collect::<Vec<_>>())?.hidden))
    }

    /// Adds one token to each cache; returns the logits that follow `[B, V]`.
    pub fn decode_step(&self, tokens: &[u32], caches: &mut [&mut KvCache]) -> Result<Tensor> {
        let one: Vec<&[u32]> = tokens.chunks(1).collect();
        Ok(self.logits(&self.extend(&one, caches)?))
    }

    /// Says that attention over the caches comes after the next product, when there are few rows; the first page is where it begins.
    fn expect_cache(&self, x: &Tensor, caches: &[&mut KvCache], layer: usize) {
        if let Some(set) = caches.first().and_then(|cache| cache.pages().first())
            && x.shape()[0] <= Self::FEW_ROWS
        {
            ops::expect_page(&self.device, &set.layers[layer]);
        }
    }

    fn layout<'a>(&self, pieces: &[TreePiece<'a>], tokens: &[&[u32]], caches: &[&mut KvCache]) -> Result<Layout<'a>> {
        assert_eq!(tokens.len(), caches.len(), "token lists against caches");
        let mut layout = Layout { pieces: Vec::new(), rows: Vec::new(), ids: Vec::new(), positions: Vec::new() };
        for (at, &piece) in pieces.iter().enumerate() {
            assert!(!piece.ids.is_empty(), "piece {at} has no tokens");
            let (start, base, depth) = match piece.after {
                After::Cache(cache) => (cache.len(), cache, 0),
                After::Piece(parent) => {
                    assert!(parent < at, "piece {at} after piece {parent}");
                    let before = &layout.pieces[parent];
                    assert!(before.piece.keep || !piece.keep, "piece {at} is kept, {parent} before it is not");
                    (before.end(), before.base, before.depth + 1)
                }
            };
            layout.pieces.push(Placed { piece, start, base, depth });
            self.add_rows(&mut layout, piece.ids, start)?;
        }
        for (ids, cache) in tokens.iter().zip(caches) {
            self.add_rows(&mut layout, ids, cache.len())?;
        }
        Ok(layout)
    }

    fn add_rows(&self, layout: &mut Layout<'_>, ids: &[u32], start: usize) -> Result<()> {
        check_ids(ids, self.config.vocab_size)?;
        let (len, context) = (start + ids.len(), self.config.max_position_embeddings);
        if len > context {
            return Err(Error::Input(format!("a text of {len} tokens does not fit the model's context of {context}")));
        }
        layout.rows.push(layout.ids.len()..layout.ids.len() + ids.len());
        layout.ids.extend_from_slice(ids);
        layout.positions.extend((start..len).map(|position| position as u32));
        Ok(())
    }
}

/// Rows of a pass up to which it is taken for one of decoding.
const FEW_STREAMS: usize = 48;

/// Whether a layer is plain bf16, so that its input may be rounded by who makes it.
fn rounds_its_input(layer: &Linear) -> bool {
    layer.dtype() == Dtype::Bf16 && layer.block_format().is_none() && layer.lora().is_none() && layer.bias().is_none()
}

/// A layer's pages to those of the layers before.
fn keep_pages(own: Vec<Vec<KvPage>>, kept: &mut [Vec<Vec<KvPage>>]) {
    for (own, sets) in own.into_iter().zip(kept) {
        sets.iter_mut().zip(own).for_each(|(set, page)| set.push(page));
    }
}

/// The sequences' queries among rows `wanted`, each run of neighbours a sequence of its own; queries are counted over `wanted`.
fn picked<'a>(sequences: impl Iterator<Item = PagedSequence<'a>>, wanted: &[usize]) -> Vec<PagedSequence<'a>> {
    assert!(wanted.is_sorted_by(|a, b| a < b), "rows that do not rise");
    let mut at = 0;
    let mut found = Vec::new();
    for PagedSequence { queries: rows, pages, len_tokens } in sequences {
        let n = wanted[at..].iter().take_while(|row| rows.contains(row)).count();
        for run in wanted[at..at + n].chunk_by(|a, b| a + 1 == *b) {
            let after_run = rows.end - 1 - run[run.len() - 1];
            let queries = at..at + run.len();
            found.push(PagedSequence { queries, pages: pages.clone(), len_tokens: len_tokens - after_run });
            at += run.len();
        }
    }
    assert_eq!(at, wanted.len(), "a row past the last");
    found
}

/// Where the rows of each cache go in one layer.
fn cache_writes<'a>(caches: &'a mut [&mut KvCache], rows: &[Range<usize>], layer: usize) -> Vec<PageWrite<'a>> {
    let mut writes = Vec::with_capacity(caches.len());
    for (cache, rows) in caches.iter_mut().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
        let start = cache.len();
        writes.extend(cache.reserved(layer).map(|(first, page)| page_write(page, first, start, rows)));
    }
    writes
}

/// The rows, beginning at position `start`, that fall into the page beginning at position `first`.
fn page_write<'a>(page: &'a mut KvPage, first: usize, start: usize, rows: &Range<usize>) -> PageWrite<'a> {
    let (from, to) = (first.max(start), (first + KvCache::PAGE).min(start + rows.len()));
    PageWrite { page, at: from - first, rows: rows.start + from - start..rows.start + to - start }
}

impl<'a> Layout<'a> {
    /// Counts the pages of the pass, on the meters of the caches its pieces stand after: of a piece that is kept all layers', of another
    /// one layer's, which the next one's take the place of.
    fn hold(&self, decoder: &Decoder) -> Vec<Held> {
        let page = new_page(decoder).nbytes();
        let bytes = |placed: &Placed<'_>| {
            let n_layers = if placed.piece.keep { decoder.config.num_hidden_layers } else { 1 };
            placed.n_own_pages() * n_layers * page
        };
        self.pieces.iter().map(|placed| placed.base.meter().hold(bytes(placed))).collect()
    }

    /// A place for the pages of each layer, for pieces that are kept.
    fn empty_sets(placed: &Placed<'_>) -> Vec<Vec<KvPage>> {
        let n_pages = placed.n_own_pages();
        if placed.piece.keep { vec![Vec::new(); n_pages] } else { Vec::new() }
    }

    /// The pieces' own pages of one layer: a part-filled page before a piece is copied, then its rows are written. Pieces
    /// deeper in the pass come later, as they copy what their parents wrote.
    fn write_pieces(&self, decoder: &Decoder, layer: usize, k: &Tensor, v: &Tensor) -> Vec<Vec<KvPage>> {
        let mut own: Vec<Vec<KvPage>> = self.pieces.iter().map(|_| Vec::new()).collect();
        let deepest = self.pieces.iter().map(|placed| placed.depth).max().unwrap_or(0);
        for depth in 0..=deepest {
            let level: Vec<usize> = (0..self.pieces.len()).filter(|&at| self.pieces[at].depth == depth).collect();
            let made: Vec<OnceLock<Vec<KvPage>>> = level.iter().map(|_| OnceLock::new()).collect();
            decoder.device.for_each(level.len(), &|i| {
                made[i].get_or_init(|| self.begun_pages(decoder, &own, level[i], layer));
            });
            for (at, pages) in level.into_iter().zip(made) {
                own[at] = pages.into_inner().expect("each piece of the level was begun");
            }
            let mut writes = Vec::new();
            for (at, pages) in own.iter_mut().enumerate().filter(|(at, _)| self.pieces[*at].depth == depth) {
                let placed = &self.pieces[at];
                let first = placed.first_page();
                writes.extend(
                    pages
                        .iter_mut()
                        .enumerate()
                        .map(|(i, page)| page_write(page, (first + i) * KvCache::PAGE, placed.start, &self.rows[at])),
                );
            }
            ops::write_pages(&decoder.device, k, v, writes);
        }
        own
    }

    /// Empty pages for piece `at` of one layer, the first with what stands before the piece.
    fn begun_pages(&self, decoder: &Decoder, own: &[Vec<KvPage>], at: usize, layer: usize) -> Vec<KvPage> {
        let placed = &self.pieces[at];
        let mut pages = Vec::with_capacity(placed.n_own_pages());
        if !placed.start.is_multiple_of(KvCache::PAGE) {
            pages.push(self.page_before(own, at, layer).clone());
        }
        pages.resize_with(placed.n_own_pages(), || new_page(decoder));
        pages
    }

    /// The part-filled page that piece `at` begins in, as what comes before the piece left it.
    fn page_before<'b>(&self, own: &'b [Vec<KvPage>], at: usize, layer: usize) -> &'b KvPage
    where
        'a: 'b,
    {
        let index = self.pieces[at].first_page();
        let mut after = self.pieces[at].piece.after;
        while let After::Piece(parent) = after {
            let first = self.pieces[parent].first_page();
            if index >= first {
                return &own[parent][index - first];
            }
            after = self.pieces[parent].piece.after;
        }
        &self.pieces[at].base.pages()[index].layers[layer]
    }

    /// All pages that piece `at` sees in one layer.
    fn pages<'b>(&self, own: &'b [Vec<KvPage>], at: usize, layer: usize) -> Vec<&'b KvPage>
    where
        'a: 'b,
    {
        let mut pages: Vec<&KvPage> = own[at].iter().rev().collect();
        let (mut first, mut after) = (self.pieces[at].first_page(), self.pieces[at].piece.after);
        while let After::Piece(parent) = after {
            let before = &self.pieces[parent];
            if before.first_page() < first {
                pages.extend(own[parent][..first - before.first_page()].iter().rev());
                first = before.first_page();
            }
            after = before.piece.after;
        }
        pages.extend(self.pieces[at].base.pages()[..first].iter().rev().map(|set| &set.layers[layer]));
        pages.reverse();
        pages
    }
}

/// The caches of the kept pieces, each after what it stands after.
fn join(pieces: &[Placed<'_>], pages: Vec<Vec<Vec<KvPage>>>) -> Vec<Option<KvCache>> {
    let mut kept: Vec<Option<KvCache>> = Vec::with_capacity(pieces.len());
    for (placed, sets) in pieces.iter().zip(pages) {
        let before = match placed.piece.after {
            After::Cache(cache) => Some(cache),
            After::Piece(parent) => kept[parent].as_ref(),
        };
        let cache = before.filter(|_| placed.piece.keep).map(|before| {
            let own = sets.into_iter().map(|layers| Arc::new(PageSet::new(layers, before.meter()))).collect();
            before.branch(placed.first_page(), own, placed.end())
        });
        kept.push(cache);
    }
    kept
}
