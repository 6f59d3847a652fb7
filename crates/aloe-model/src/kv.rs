//! Keys and values of past tokens, and forward passes that continue them: prefill, decoding in batches, branching.
//!
//! A cache is a list of shared frozen parts and a tail of its own; a clone shares the frozen parts. Numbers are stored in f32
//! exactly as the full forward computes them, and a query's attention depends on its keys alone, so decoding with a cache gives
//! the bits of the full forward, whatever else is in the batch.

use crate::batch::check_ids;
use crate::decoder::Decoder;
use crate::{Error, Result};
use aloe_tensor::{CachedSequence, KvSegment, Tensor, ops};
use std::ops::Range;
use std::sync::Arc;

/// Keys and values of a run of positions, per layer `[len, K, E]` f32 each.
#[derive(Clone, Debug)]
struct Part {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    len_tokens: usize,
}

impl Part {
    fn new(n_layers: usize) -> Self {
        Self { layers: vec![(Vec::new(), Vec::new()); n_layers], len_tokens: 0 }
    }

    fn nbytes(&self) -> usize {
        self.layers.iter().map(|(k, v)| 4 * (k.len() + v.len())).sum()
    }
}

/// One sequence's cache.
#[derive(Clone, Debug)]
pub struct KvCache {
    frozen: Vec<Arc<Part>>,
    tail: Part,
}

impl KvCache {
    /// Empty.
    pub fn new(decoder: &Decoder) -> Self {
        Self { frozen: Vec::new(), tail: Part::new(decoder.config.num_hidden_layers) }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.frozen.iter().map(|part| part.len_tokens).sum::<usize>() + self.tail.len_tokens
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A branch that goes on from here. What was prefilled is shared; tokens decoded one by one since then are copied.
    pub fn fork(&self) -> Self {
        self.clone()
    }

    /// Makes everything held shareable, so that later forks copy nothing.
    pub fn freeze(&mut self) {
        if self.tail.len_tokens > 0 {
            let n_layers = self.tail.layers.len();
            self.frozen.push(Arc::new(std::mem::replace(&mut self.tail, Part::new(n_layers))));
        }
    }

    /// Bytes of the tail and of frozen parts, each shared part in equal shares: the sum over all branches is the memory in use.
    pub fn nbytes(&self) -> usize {
        self.frozen.iter().map(|part| part.nbytes() / Arc::strong_count(part)).sum::<usize>() + self.tail.nbytes()
    }

    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let (keys, values) = &mut self.tail.layers[layer];
        keys.extend_from_slice(k);
        values.extend_from_slice(v);
    }

    fn segments(&self, layer: usize) -> Vec<KvSegment<'_>> {
        let parts = self.frozen.iter().map(Arc::as_ref).chain([&self.tail]);
        parts
            .map(|part| KvSegment { k: &part.layers[layer].0, v: &part.layers[layer].1 })
            .filter(|segment| !segment.k.is_empty())
            .collect()
    }
}

impl Decoder {
    /// Runs `tokens[i]` after what `caches[i]` holds, all in one pass, and adds them to the caches: prefill of one or several
    /// prompts, continuation of a shared prefix, or a decoding step. Returns hidden states after the final norm `[N, D]`, the
    /// sequences' rows one after the other. Runs of several tokens are frozen, so that forks share them.
    pub fn extend(&self, tokens: &[&[u32]], caches: &mut [&mut KvCache]) -> Result<Tensor> {
        let rows = self.check_extension(tokens, caches)?;
        let ids: Vec<u32> = tokens.concat();
        let starts = caches.iter().map(|cache| cache.len() as u32);
        let positions: Vec<u32> =
            starts.zip(tokens).flat_map(|(start, ids)| (0..ids.len() as u32).map(move |i| start + i)).collect();
        let mut x = self.weights.embedding(&self.device, &ids);
        for (i, layer) in self.weights.layers.iter().enumerate() {
            let (q, k, v) = self.project(layer, &x, &positions);
            self.append_rows(i, &rows, (&k, &v), caches);
            let sequences: Vec<CachedSequence<'_>> = rows
                .iter()
                .zip(caches.iter())
                .filter(|(rows, _)| !rows.is_empty())
                .map(|(rows, cache)| CachedSequence { queries: rows.clone(), segments: cache.segments(i) })
                .collect();
            let scale = self.attention_scale();
            let o = ops::attention_cached(&self.device, &q, &sequences, self.config.num_key_value_heads, scale);
            x = self.after_attention(layer, o, x);
        }
        for (cache, rows) in caches.iter_mut().zip(&rows) {
            cache.tail.len_tokens += rows.len();
            if rows.len() > 1 {
                cache.freeze();
            }
        }
        Ok(self.final_norm(&x).0)
    }

    /// Prefills `prompts[i]` into `caches[i]`; returns the logits after each prompt's last token `[B, V]`.
    pub fn prefill(&self, prompts: &[&[u32]], caches: &mut [&mut KvCache]) -> Result<Tensor> {
        if let Some(i) = prompts.iter().position(|ids| ids.is_empty()) {
            return Err(Error::Input(format!("prompt {i} is empty, so there is nothing to continue")));
        }
        let hidden = self.extend(prompts, caches)?;
        let last = prompts.iter().scan(0, |end, ids| {
            *end += ids.len();
            Some(*end - 1)
        });
        Ok(self.logits(&hidden.gather_rows(&last.collect::<Vec<_>>())))
    }

    /// Adds one token to each cache; returns the logits that follow `[B, V]`.
    pub fn decode_step(&self, tokens: &[u32], caches: &mut [&mut KvCache]) -> Result<Tensor> {
        let one: Vec<&[u32]> = tokens.chunks(1).collect();
        Ok(self.logits(&self.extend(&one, caches)?))
    }

    fn check_extension(&self, tokens: &[&[u32]], caches: &[&mut KvCache]) -> Result<Vec<Range<usize>>> {
        assert_eq!(tokens.len(), caches.len(), "token lists against caches");
        let context = self.config.max_position_embeddings;
        let mut rows = Vec::with_capacity(tokens.len());
        let mut end = 0;
        for (ids, cache) in tokens.iter().zip(caches) {
            check_ids(ids, self.config.vocab_size)?;
            let len = cache.len() + ids.len();
            if len > context {
                return Err(Error::Input(format!(
                    "a text of {len} tokens does not fit the model's context of {context}"
                )));
            }
            rows.push(end..end + ids.len());
            end += ids.len();
        }
        Ok(rows)
    }

    fn append_rows(&self, layer: usize, rows: &[Range<usize>], kv: (&Tensor, &Tensor), caches: &mut [&mut KvCache]) {
        let width = self.config.num_key_value_heads * self.config.head_dim;
        let (k, v) = (kv.0.as_f32(), kv.1.as_f32());
        for (rows, cache) in rows.iter().zip(caches) {
            let range = rows.start * width..rows.end * width;
            cache.append(layer, &k[range.clone()], &v[range]);
        }
    }
}
