//! Keys and values of recent prefixes, kept from one call to the next: an evaluation asks in chunks, and the shots before its
//! questions need not be run again for each.
//!
//! What a call's requests share is kept, and the whole text of a call with one request (a chat's next turn goes on from it). Kept
//! pages count against the memory budget and are the first to go, least recently used first: they take half of it at most, and none
//! once less than half is free. A later call gets the same bits whether its prefix was kept or is run again.

use crate::Local;
use crate::tree::{ROOT, Tree};
use crate::walk::Walk;
use aloe_model::KvCache;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most texts kept.
const MAX_TEXTS: usize = 32;

/// Fewer tokens are not worth a branch of the tree.
const MIN_TOKENS: usize = 16;

/// A text's ids and its keys and values.
struct Kept {
    ids: Vec<u32>,
    cache: KvCache,
}

/// What is kept, least recently used first.
pub(crate) struct Prefixes {
    kept: Vec<Kept>,
    max_bytes: usize,
}

/// Shared by a model and the walks of its calls.
pub(crate) type SharedPrefixes = Arc<Mutex<Prefixes>>;

pub(crate) fn lock(prefixes: &SharedPrefixes) -> MutexGuard<'_, Prefixes> {
    prefixes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Prefixes {
    pub(crate) fn new(kv_budget_bytes: usize) -> Self {
        Self { kept: Vec::new(), max_bytes: kv_budget_bytes / 2 }
    }

    /// Keeps a text in place of those it goes on from; a longer one that begins with it stands for it.
    pub(crate) fn insert(&mut self, ids: Vec<u32>, cache: KvCache) {
        assert_eq!(ids.len(), cache.len(), "ids against tokens held");
        if let Some(at) = self.kept.iter().position(|kept| kept.ids.starts_with(&ids)) {
            self.kept[at..].rotate_left(1);
            return;
        }
        self.kept.retain(|kept| !ids.starts_with(&kept.ids));
        self.kept.push(Kept { ids, cache });
        while self.kept.len() > MAX_TEXTS || self.nbytes() > self.max_bytes {
            self.evict_oldest();
        }
    }

    /// Drops the text not used for longest; whether there was one.
    pub(crate) fn evict_oldest(&mut self) -> bool {
        let found = !self.kept.is_empty();
        self.kept.drain(..usize::from(found));
        found
    }

    fn nbytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.cache.nbytes()).sum()
    }

    /// Nodes of the tree whose text is kept, with their caches. The tree is split where a kept text leaves it, and before the
    /// first position of a node whose row is `needed`.
    fn give(&mut self, tree: &mut Tree, needed: &HashMap<usize, usize>) -> Vec<(usize, KvCache)> {
        let (mut given, mut unused, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for kept in self.kept.drain(..) {
            let len = tree.len_common(&kept.ids, needed);
            if len < MIN_TOKENS {
                unused.push(kept);
                continue;
            }
            let mut cache = kept.cache.fork();
            cache.truncate(len);
            given.push((tree.insert(ROOT, &kept.ids[..len]), cache));
            used.push(kept);
        }
        self.kept = unused.into_iter().chain(used).collect();
        given
    }
}

impl Local {
    /// A walk over the tree of a call. `ends` are the nodes that end the requests' prompts; `needed` says of a node from which
    /// position on its rows are wanted, so that they must be run.
    pub(crate) fn walk(
        &self,
        mut tree: Tree,
        max_node_tokens: usize,
        ends: &[usize],
        needed: &HashMap<usize, usize>,
    ) -> Walk {
        let given = lock(&self.prefixes).give(&mut tree, needed);
        tree.limit_nodes(max_node_tokens);
        let offers = offers(&tree, ends);
        Walk::new(tree, &self.kv_meter, given).offering(offers, &self.prefixes)
    }

    /// Lets kept prefixes go while less than half of the budget is free, or all of them.
    pub(crate) fn free_prefixes(&self, all: bool) {
        let mut prefixes = lock(&self.prefixes);
        while (all || self.kv_meter.bytes() > self.kv_budget_bytes / 2) && prefixes.evict_oldest() {}
    }

    /// Keeps the text of a call with one request.
    pub(crate) fn keep_text(&self, mut ids: Vec<u32>, cache: &KvCache) {
        ids.truncate(cache.len());
        if ids.len() >= KvCache::PAGE && ids.len() == cache.len() {
            lock(&self.prefixes).insert(ids, cache.fork());
        }
    }
}

/// The nodes worth keeping: those that two requests share, a page or more beyond the last such one, and of each branch the deepest,
/// as it holds those before it. Of a call with one request its prompt's end.
fn offers(tree: &Tree, ends: &[usize]) -> HashSet<usize> {
    if let &[only] = ends {
        return HashSet::from_iter((tree.end(only) >= KvCache::PAGE).then_some(only));
    }
    let mut n_requests = vec![0_usize; tree.n_nodes()];
    for &end in ends {
        for node in tree.path(ROOT, end) {
            n_requests[node] += 1;
        }
    }
    // Where the last node worth keeping on the way to each node ends, and which one it is.
    let mut last = vec![(0_usize, ROOT); tree.n_nodes()];
    let mut found = HashSet::new();
    for node in tree.depth_first() {
        let (end, before) = last[tree.node(node).parent];
        let is_worth = n_requests[node] >= 2 && tree.end(node) >= end + KvCache::PAGE;
        last[node] = if is_worth { (tree.end(node), node) } else { (end, before) };
        if is_worth {
            found.remove(&before);
            found.insert(node);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 shared ids, then two groups of two requests that share 70 and 10 more.
    #[test]
    fn the_deepest_nodes_that_requests_share_are_kept_unless_they_add_less_than_a_page() {
        let ids = |from: u32, n: u32| (from..from + n).collect::<Vec<u32>>();
        let mut tree = Tree::new();
        let mut text = |parts: &[(u32, u32)]| {
            let ids: Vec<u32> = parts.iter().flat_map(|&(from, n)| ids(from, n)).collect();
            tree.insert(ROOT, &ids)
        };
        let first = [text(&[(0, 100), (200, 70), (300, 5)]), text(&[(0, 100), (200, 70), (400, 5)])];
        let second = [text(&[(0, 100), (500, 10), (600, 90)]), text(&[(0, 100), (500, 10), (700, 90)])];
        let lengths = |ends: &[usize]| {
            let mut lengths: Vec<usize> = offers(&tree, ends).into_iter().map(|node| tree.end(node)).collect();
            lengths.sort_unstable();
            lengths
        };
        assert_eq!(lengths(&[first, second].concat()), [170]);
        assert_eq!(lengths(&second), [100], "10 more are less than a page");
        assert_eq!(lengths(&[first[0], second[0]]), [100]);
        assert_eq!(lengths(&second[..1]), [200], "the only request's whole text");
        assert_eq!(lengths(&[]), [0; 0]);
    }
}
