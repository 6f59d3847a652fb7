//! A tree's nodes, handed to the decoder batch by batch, and the caches of the nodes whose branches are still to come.
//!
//! Nodes go in depth-first order, so what is kept is the path to the next node. Kept caches may be dropped at any time: a node
//! whose beginning is gone gets it computed again, with the same bits.

use crate::Result;
use crate::prefixes::{SharedPrefixes, lock};
use crate::tree::{Node, ROOT, Tree};
use aloe_model::{After, KvCache, KvMeter, TreePiece};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A tree under way.
pub(crate) struct Walk {
    pub(crate) tree: Tree,
    order: Vec<usize>,
    /// Place in the order after the last node below a node.
    subtree_end: Vec<usize>,
    next: usize,
    kept: HashMap<usize, KvCache>,
    empty: KvCache,
    /// Nodes whose caches are handed to later calls, and where.
    offers: HashSet<usize>,
    prefixes: Option<SharedPrefixes>,
}

/// A number of pages of one layer, and how many of them a page of all layers is.
#[derive(Clone, Copy)]
pub(crate) struct LayerPages {
    pub(crate) n: usize,
    pub(crate) n_layers: usize,
}

/// The nodes of one pass, parents first.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) nodes: Vec<usize>,
    /// Whether the node's cache is needed after the pass.
    keep: Vec<bool>,
    /// When only one node is run: the last tokens of the text up to it, which hold all of its own, and what comes before them.
    whole: Option<(Vec<u32>, KvCache)>,
}

impl Selection {
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl Walk {
    /// Starts before the first node; the caches of `given` nodes, which end no text, are there already.
    pub(crate) fn new(tree: Tree, meter: &Arc<KvMeter>, given: Vec<(usize, KvCache)>) -> Self {
        let mut kept = HashMap::new();
        for (node, cache) in given {
            for before in tree.path(ROOT, node) {
                let mut cache = cache.fork();
                cache.truncate(tree.end(before));
                kept.insert(before, cache);
            }
        }
        let nodes = tree.depth_first();
        let order: Vec<usize> = nodes.iter().copied().filter(|node| !kept.contains_key(node)).collect();
        let mut subtree_end = vec![0; tree.n_nodes()];
        let mut place = order.len();
        for &node in nodes.iter().rev() {
            let below = tree.children(node).iter().map(|&child| subtree_end[child]).max();
            subtree_end[node] = below.unwrap_or(place);
            place -= usize::from(!kept.contains_key(&node));
        }
        let (empty, offers) = (KvCache::metered(meter), HashSet::new());
        Self { tree, order, subtree_end, next: 0, kept, empty, offers, prefixes: None }
    }

    /// The caches of `offers` go to `prefixes` once they are there.
    pub(crate) fn offering(self, offers: HashSet<usize>, prefixes: &SharedPrefixes) -> Self {
        Self { offers, prefixes: Some(Arc::clone(prefixes)), ..self }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.next == self.order.len()
    }

    /// Tokens of the text up to the end of the next node; 0 after the last.
    pub(crate) fn next_len(&self) -> usize {
        self.order.get(self.next).map_or(0, |&node| self.tree.end(node))
    }

    /// The next nodes, as many as fit: `max_tokens` to be run, and pages of one layer to be held. `held` nodes are kept beyond their
    /// branches.
    pub(crate) fn select(
        &mut self,
        max_tokens: usize,
        max_pages: LayerPages,
        held: impl Fn(usize) -> bool,
    ) -> Selection {
        let held = |node| held(node) || self.offers.contains(&node);
        let mut nodes = Vec::new();
        let (mut n_tokens, mut n_pages) = (0, 0);
        while let Some(&node) = self.order.get(self.next) {
            let missing = self.missing(node, &nodes);
            n_tokens += missing.iter().map(|&node| self.tree.node(node).ids.len()).sum::<usize>();
            n_pages += missing.iter().map(|&node| self.n_pages(node, max_pages.n_layers, &held)).sum::<usize>();
            if n_tokens > max_tokens || n_pages > max_pages.n {
                break;
            }
            nodes.extend(missing);
            self.next += 1;
        }
        let mut keep: Vec<bool> = nodes.iter().map(|&node| self.subtree_end[node] > self.next || held(node)).collect();
        let places: HashMap<usize, usize> = nodes.iter().enumerate().map(|(at, &node)| (node, at)).collect();
        for at in (0..nodes.len()).rev().filter(|&at| at > 0) {
            if let (true, Some(&before)) = (keep[at], places.get(&self.tree.node(nodes[at]).parent)) {
                keep[before] = true;
            }
        }
        Selection { nodes, keep, whole: None }
    }

    /// The next node, whatever its size, with all before it, so that nothing but its own pages is held. `run` is given what of the text
    /// comes before its last `max_tokens`, in pieces of no more, to be added to a cache.
    pub(crate) fn select_alone(
        &mut self,
        max_tokens: usize,
        held: impl Fn(usize) -> bool,
        mut run: impl FnMut(&[u32], &mut KvCache) -> Result<()>,
    ) -> Result<Selection> {
        let Some(&node) = self.order.get(self.next) else { return Ok(Selection::default()) };
        self.next += 1;
        self.kept.clear();
        let mut ids = self.ids(node);
        // Whole pages come before, so that none is copied.
        let n_before = ids.len().saturating_sub(max_tokens).next_multiple_of(KvCache::PAGE);
        let n_before = n_before.min(self.tree.node(node).start) / KvCache::PAGE * KvCache::PAGE;
        let last = ids.split_off(n_before);
        let mut before = self.empty.fork();
        ids.chunks(max_tokens).try_for_each(|piece| run(piece, &mut before))?;
        let keep = self.subtree_end[node] > self.next || held(node);
        Ok(Selection { nodes: vec![node], keep: vec![keep], whole: Some((last, before)) })
    }

    /// The text that ends with the node.
    fn ids(&self, node: usize) -> Vec<u32> {
        self.tree.path(ROOT, node).iter().flat_map(|&node| &self.tree.node(node).ids).copied().collect()
    }

    /// The most pages a node adds to what is held, of all layers; when nothing follows it, of one layer at a time.
    fn n_pages(&self, node: usize, n_layers: usize, held: &impl Fn(usize) -> bool) -> usize {
        let is_last = self.tree.children(node).is_empty() && !held(node);
        let n_pages = self.tree.end(node).div_ceil(KvCache::PAGE) - self.tree.node(node).start / KvCache::PAGE;
        if is_last { n_pages } else { n_pages * n_layers }
    }

    /// The pieces of a pass over the selection.
    pub(crate) fn pieces<'a>(&'a self, selection: &'a Selection) -> Vec<TreePiece<'a>> {
        if let Some((ids, before)) = &selection.whole {
            return vec![TreePiece { ids, after: After::Cache(before), keep: selection.keep[0] }];
        }
        let places: HashMap<usize, usize> = selection.nodes.iter().enumerate().map(|(at, &node)| (node, at)).collect();
        let piece = |(&node, &keep): (&usize, &bool)| {
            let Node { ids, parent, .. } = self.tree.node(node);
            let after = match places.get(parent) {
                Some(&place) => After::Piece(place),
                None => After::Cache(self.kept.get(parent).unwrap_or(&self.empty)),
            };
            TreePiece { ids, after, keep }
        };
        selection.nodes.iter().zip(&selection.keep).map(piece).collect()
    }

    /// Takes the caches of a pass over; those of `held` nodes are also returned.
    pub(crate) fn store(
        &mut self,
        selection: &Selection,
        caches: Vec<Option<KvCache>>,
        held: impl Fn(usize) -> bool,
    ) -> Vec<(usize, KvCache)> {
        let mut returned = Vec::new();
        for (&node, cache) in selection.nodes.iter().zip(caches) {
            let Some(cache) = cache else { continue };
            if held(node) {
                returned.push((node, cache.fork()));
            }
            if let Some(prefixes) = self.prefixes.as_ref().filter(|_| self.offers.contains(&node)) {
                lock(prefixes).insert(self.ids(node), cache.fork());
            }
            self.kept.insert(node, cache);
        }
        let (next, subtree_end) = (self.next, &self.subtree_end);
        self.kept.retain(|&node, _| subtree_end[node] > next);
        returned
    }

    /// Leaves out what is still to come of texts that do not end at one of `ends`: nobody waits for them any more.
    pub(crate) fn keep_only(&mut self, ends: &[usize]) {
        let wanted: HashSet<usize> = ends.iter().flat_map(|&end| self.tree.path(ROOT, end)).collect();
        let rest = self.order.split_off(self.next);
        self.order.extend(rest.into_iter().filter(|node| wanted.contains(node)));
        let places: HashMap<usize, usize> = self.order.iter().enumerate().map(|(at, &node)| (node, at + 1)).collect();
        for node in self.tree.depth_first().into_iter().rev() {
            let below = self.tree.children(node).iter().map(|&child| self.subtree_end[child]).max().unwrap_or(0);
            self.subtree_end[node] = below.max(places.get(&node).copied().unwrap_or(0));
        }
        let (next, subtree_end) = (self.next, &self.subtree_end);
        self.kept.retain(|&node, _| subtree_end[node] > next);
    }

    /// Drops what is kept.
    pub(crate) fn evict(&mut self) {
        self.kept.clear();
    }

    /// The node, after those before it that are neither kept nor selected.
    fn missing(&self, node: usize, selected: &[usize]) -> Vec<usize> {
        let mut missing = vec![node];
        let mut parent = self.tree.node(node).parent;
        while parent != ROOT && !self.kept.contains_key(&parent) && !selected.contains(&parent) {
            missing.push(parent);
            parent = self.tree.node(parent).parent;
        }
        missing.reverse();
        missing
    }
}
