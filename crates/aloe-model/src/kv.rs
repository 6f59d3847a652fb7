//! Keys and values of past tokens: shared frozen runs, a tail of one's own, and a meter of the memory in use.
//!
//! A cache is a list of frozen runs, which clones share, and a tail. Numbers are stored in f32 exactly as the full forward
//! computes them. The passes that read and fill caches are in `step`.

use crate::decoder::Decoder;
use aloe_tensor::KvSegment;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes held by all caches made with it, now and at most. A run shared by several caches counts once.
#[derive(Debug, Default)]
pub struct KvMeter {
    bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
}

impl KvMeter {
    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The most bytes held at one time.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        let now = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak_bytes.fetch_max(now, Ordering::Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Keys and values of a run of positions, per layer `[len, K, E]` f32 each.
#[derive(Debug)]
pub(crate) struct Run {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    len_tokens: usize,
    metered_bytes: usize,
    meter: Arc<KvMeter>,
}

impl Run {
    fn new(n_layers: usize, meter: &Arc<KvMeter>) -> Self {
        let layers = vec![(Vec::new(), Vec::new()); n_layers];
        Self { layers, len_tokens: 0, metered_bytes: 0, meter: Arc::clone(meter) }
    }

    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let (keys, values) = &mut self.layers[layer];
        keys.extend_from_slice(k);
        values.extend_from_slice(v);
        let bytes = 4 * (k.len() + v.len());
        self.metered_bytes += bytes;
        self.meter.add(bytes);
    }

    fn segment(&self, layer: usize) -> KvSegment<'_> {
        let (k, v) = &self.layers[layer];
        KvSegment { k, v }
    }
}

impl Clone for Run {
    fn clone(&self) -> Self {
        self.meter.add(self.metered_bytes);
        let (layers, meter) = (self.layers.clone(), Arc::clone(&self.meter));
        Self { layers, len_tokens: self.len_tokens, metered_bytes: self.metered_bytes, meter }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.meter.subtract(self.metered_bytes);
    }
}

/// One sequence's cache.
#[derive(Clone, Debug)]
pub struct KvCache {
    frozen: Vec<Arc<Run>>,
    tail: Run,
}

impl KvCache {
    /// Empty, on a meter of its own.
    pub fn new(decoder: &Decoder) -> Self {
        Self::metered(decoder, &Arc::new(KvMeter::default()))
    }

    /// Empty; what it and its forks hold is counted by `meter`.
    pub fn metered(decoder: &Decoder, meter: &Arc<KvMeter>) -> Self {
        Self { frozen: Vec::new(), tail: Run::new(decoder.config.num_hidden_layers, meter) }
    }

    /// Bytes of one position's keys and values in all layers.
    pub fn bytes_per_token(decoder: &Decoder) -> usize {
        let config = &decoder.config;
        config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.frozen.iter().map(|run| run.len_tokens).sum::<usize>() + self.tail.len_tokens
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
            let empty = Run::new(self.tail.layers.len(), &self.tail.meter);
            self.frozen.push(Arc::new(std::mem::replace(&mut self.tail, empty)));
        }
    }

    /// Forgets what no other cache shares; the beginning that others share stays. Running the forgotten tokens again gives
    /// the same bits.
    pub fn evict(&mut self) {
        self.tail = Run::new(self.tail.layers.len(), &self.tail.meter);
        while self.frozen.last().is_some_and(|run| Arc::strong_count(run) == 1) {
            self.frozen.pop();
        }
    }

    /// Bytes of the tail and of frozen runs, each shared run in equal shares: the sum over all branches is the memory in use.
    pub fn nbytes(&self) -> usize {
        self.frozen.iter().map(|run| run.metered_bytes / Arc::strong_count(run)).sum::<usize>()
            + self.tail.metered_bytes
    }

    /// Adds keys and values `[n, K, E]` of one layer; [`KvCache::grown`] follows once all layers have them.
    pub(crate) fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        self.tail.append(layer, k, v);
    }

    /// All layers got `n_tokens` more positions. Several at once are frozen, so that forks share them.
    pub(crate) fn grown(&mut self, n_tokens: usize) {
        self.tail.len_tokens += n_tokens;
        if n_tokens > 1 {
            self.freeze();
        }
    }

    /// The keys and values of one layer in order of position.
    pub(crate) fn segments(&self, layer: usize) -> Vec<KvSegment<'_>> {
        let runs = self.frozen.iter().map(Arc::as_ref).chain([&self.tail]);
        runs.map(|run| run.segment(layer)).filter(|segment| !segment.k.is_empty()).collect()
    }

    /// An empty cache on the same meter.
    pub(crate) fn sibling(&self) -> Self {
        Self { frozen: Vec::new(), tail: Run::new(self.tail.layers.len(), &self.tail.meter) }
    }

    /// As [`KvCache::grown`], and frozen even when it is one token.
    pub(crate) fn fill(&mut self, n_tokens: usize) {
        self.tail.len_tokens += n_tokens;
        self.freeze();
    }

    /// This cache with the frozen runs of `next` after it.
    pub(crate) fn followed_by(&self, next: Self) -> Self {
        let mut joined = self.clone();
        joined.freeze();
        joined.frozen.extend(next.frozen.iter().cloned());
        joined
    }
}
