//! Keys and values of past tokens in pages of 64 positions that caches share, and a meter of the memory in use.
//!
//! Pages start at positions 0, 64, 128, ... whatever shares them. A branch shares all pages of its trunk; the first token that
//! falls into a part-filled page of others copies that page. Numbers have the decoder's type: in f32 a cached pass gives the
//! bits of the full forward, in bf16 keys, values, queries and softmax weights are rounded to bf16 for the products of
//! attention. The passes that read and fill caches are in `step`.

use crate::decoder::Decoder;
use aloe_tensor::KvPage;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes held by all caches made with it and by the passes that fill them, now and at most. A page shared by several caches counts once.
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

    /// Counts pages that no cache holds while they live.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        self.add(bytes);
        Held { bytes, meter: Arc::clone(self) }
    }

    fn add(&self, bytes: usize) {
        let now = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak_bytes.fetch_max(now, Ordering::Relaxed);
    }
}

/// Bytes counted until it is dropped.
pub(crate) struct Held {
    bytes: usize,
    meter: Arc<KvMeter>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One page for every layer.
#[derive(Debug)]
pub(crate) struct PageSet {
    pub(crate) layers: Vec<KvPage>,
    bytes: usize,
    meter: Arc<KvMeter>,
}

impl PageSet {
    pub(crate) fn new(layers: Vec<KvPage>, meter: &Arc<KvMeter>) -> Self {
        let bytes = layers.iter().map(KvPage::nbytes).sum();
        meter.add(bytes);
        Self { layers, bytes, meter: Arc::clone(meter) }
    }
}

impl Clone for PageSet {
    fn clone(&self) -> Self {
        Self::new(self.layers.clone(), &self.meter)
    }
}

impl Drop for PageSet {
    fn drop(&mut self) {
        self.meter.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One sequence's cache.
#[derive(Clone, Debug)]
pub struct KvCache {
    pages: Vec<Arc<PageSet>>,
    len_tokens: usize,
    meter: Arc<KvMeter>,
}

impl KvCache {
    /// Positions of a page.
    pub const PAGE: usize = KvPage::POSITIONS;

    /// Empty, on a meter of its own.
    pub fn new(_decoder: &Decoder) -> Self {
        Self::metered(&Arc::new(KvMeter::default()))
    }

    /// Empty; what it and its forks hold is counted by `meter`.
    pub fn metered(meter: &Arc<KvMeter>) -> Self {
        Self { pages: Vec::new(), len_tokens: 0, meter: Arc::clone(meter) }
    }

    /// Bytes of the pages that hold `n_tokens` positions of all layers.
    pub fn bytes_of(decoder: &Decoder, n_tokens: usize) -> usize {
        n_tokens.div_ceil(Self::PAGE) * decoder.config.num_hidden_layers * new_page(decoder).nbytes()
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len_tokens
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len_tokens == 0
    }

    /// A branch that goes on from here; it shares every page until it writes into one.
    pub fn fork(&self) -> Self {
        self.clone()
    }

    /// Forgets all but the first `len_tokens` tokens.
    pub fn truncate(&mut self, len_tokens: usize) {
        if len_tokens < self.len_tokens {
            self.pages.truncate(len_tokens.div_ceil(Self::PAGE));
            self.len_tokens = len_tokens;
        }
    }

    /// Forgets the pages that no other cache shares; the beginning that others share stays. Running the forgotten tokens
    /// again gives the same bits.
    pub fn evict(&mut self) {
        let shared = self.pages.iter().take_while(|page| Arc::strong_count(page) > 1).count();
        self.truncate(shared * Self::PAGE);
    }

    /// Pages that taking `n_tokens` more would add: new ones, and a copy of a part-filled page that others hold too.
    pub fn n_new_pages(&self, n_tokens: usize) -> usize {
        let copied = !self.len_tokens.is_multiple_of(Self::PAGE)
            && self.pages.last().is_some_and(|page| Arc::strong_count(page) > 1);
        let needed = (self.len_tokens + n_tokens).div_ceil(Self::PAGE);
        needed.saturating_sub(self.pages.len()) + usize::from(copied && n_tokens > 0)
    }

    /// Bytes of the pages, each shared one in equal shares: the sum over all branches is the memory in use.
    pub fn nbytes(&self) -> usize {
        self.pages.iter().map(|page| page.bytes / Arc::strong_count(page)).sum()
    }

    pub(crate) fn meter(&self) -> &Arc<KvMeter> {
        &self.meter
    }

    /// The pages, first to last; all but the last are full.
    pub(crate) fn pages(&self) -> &[Arc<PageSet>] {
        &self.pages
    }

    /// Makes room for `n_tokens` more, in pages that nobody else holds.
    pub(crate) fn reserve(&mut self, decoder: &Decoder, n_tokens: usize) {
        if n_tokens == 0 {
            return;
        }
        if !self.len_tokens.is_multiple_of(Self::PAGE) {
            let last = self.pages.last_mut().expect("a cache with tokens has a page");
            Arc::make_mut(last);
        }
        let needed = (self.len_tokens + n_tokens).div_ceil(Self::PAGE);
        while self.pages.len() < needed {
            let layers = (0..decoder.config.num_hidden_layers).map(|_| new_page(decoder)).collect();
            self.pages.push(Arc::new(PageSet::new(layers, &self.meter)));
        }
    }

    /// The reserved pages of one layer from the one that takes the next token on, with their first positions.
    pub(crate) fn reserved(&mut self, layer: usize) -> impl Iterator<Item = (usize, &mut KvPage)> {
        let first = self.len_tokens / Self::PAGE;
        self.pages.iter_mut().enumerate().skip(first).map(move |(at, set)| {
            let set = Arc::get_mut(set).expect("a reserved page has one holder");
            (at * Self::PAGE, &mut set.layers[layer])
        })
    }

    /// The reserved pages hold `n_tokens` more positions now.
    pub(crate) fn grown(&mut self, n_tokens: usize) {
        self.len_tokens += n_tokens;
    }

    /// The first `n_pages` pages of this cache, then `own`, holding `len_tokens` in all.
    pub(crate) fn branch(&self, n_pages: usize, own: Vec<Arc<PageSet>>, len_tokens: usize) -> Self {
        let pages = self.pages[..n_pages].iter().cloned().chain(own).collect();
        Self { pages, len_tokens, meter: Arc::clone(&self.meter) }
    }
}

/// An empty page of one layer.
pub(crate) fn new_page(decoder: &Decoder) -> KvPage {
    KvPage::new(decoder.dtype, decoder.config.num_key_value_heads, decoder.config.head_dim)
}
