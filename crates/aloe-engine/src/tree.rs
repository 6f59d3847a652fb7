//! All texts of one call as one tree of token ids: what two texts share at their beginning is one node, computed once.
//!
//! A node is a run of ids; texts end at the end of a node. Nodes are visited parents first and one branch after the other, so
//! that the keys and values held for later are those of one path. Which texts share a tree changes no bit of any result.

use std::collections::HashMap;

/// The node that stands before all texts and has no tokens.
pub(crate) const ROOT: usize = 0;

/// A run of ids that no text leaves or enters in between.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// The ids.
    pub(crate) ids: Vec<u32>,
    /// The node before it; the root is its own parent.
    pub(crate) parent: usize,
    /// Position of the first id.
    pub(crate) start: usize,
    children: Vec<usize>,
}

/// A radix tree over token ids.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    by_first: HashMap<(usize, u32), usize>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node::default()], by_first: HashMap::new() }
    }

    pub(crate) fn node(&self, node: usize) -> &Node {
        &self.nodes[node]
    }

    pub(crate) fn n_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Tokens of the text that ends with the node.
    pub(crate) fn end(&self, node: usize) -> usize {
        self.nodes[node].start + self.nodes[node].ids.len()
    }

    /// Distinct token positions.
    #[cfg(test)]
    pub(crate) fn n_tokens(&self) -> usize {
        self.nodes.iter().map(|node| node.ids.len()).sum()
    }

    /// Adds a text that goes on from the end of `from`; returns the node it ends with. That node's number stays when later
    /// texts split it.
    pub(crate) fn insert(&mut self, from: usize, ids: &[u32]) -> usize {
        let (mut at, mut rest) = (from, ids);
        while let Some(&first) = rest.first() {
            let Some(&child) = self.by_first.get(&(at, first)) else {
                return self.leaf(at, rest);
            };
            let common = self.nodes[child].ids.iter().zip(rest).take_while(|(a, b)| a == b).count();
            at = if common < self.nodes[child].ids.len() { self.split(child, common) } else { child };
            rest = &rest[common..];
        }
        at
    }

    /// How many tokens of a text the tree holds, up to a node's first position whose row is `needed`.
    pub(crate) fn len_common(&self, ids: &[u32], needed: &HashMap<usize, usize>) -> usize {
        let (mut at, mut len) = (ROOT, 0);
        while let Some(&child) = ids.get(len).and_then(|&first| self.by_first.get(&(at, first))) {
            let node = &self.nodes[child];
            let common = node.ids.iter().zip(&ids[len..]).take_while(|(a, b)| a == b).count();
            let limit = needed.get(&child).map_or(common, |&position| common.min(position - node.start));
            len += limit;
            if limit < node.ids.len() {
                break;
            }
            at = child;
        }
        len
    }

    /// Cuts nodes so that none is longer than `limit` tokens.
    pub(crate) fn limit_nodes(&mut self, limit: usize) {
        for node in 1..self.nodes.len() {
            while self.nodes[node].ids.len() > limit {
                self.split(node, limit);
            }
        }
    }

    /// All nodes but the root: parents before children, a branch before its next sibling, siblings as they were added.
    pub(crate) fn depth_first(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut stack: Vec<usize> = self.nodes[ROOT].children.iter().rev().copied().collect();
        while let Some(node) = stack.pop() {
            order.push(node);
            stack.extend(self.nodes[node].children.iter().rev());
        }
        order
    }

    /// The nodes from below `from` down to `to`, in the order of the text.
    pub(crate) fn path(&self, from: usize, to: usize) -> Vec<usize> {
        let mut path = Vec::new();
        let mut at = to;
        while at != from {
            assert!(at != ROOT, "node {to} does not stand below node {from}");
            path.push(at);
            at = self.nodes[at].parent;
        }
        path.reverse();
        path
    }

    pub(crate) fn children(&self, node: usize) -> &[usize] {
        &self.nodes[node].children
    }

    fn leaf(&mut self, parent: usize, ids: &[u32]) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Node { ids: ids.to_vec(), parent, start: self.end(parent), children: Vec::new() });
        self.nodes[parent].children.push(node);
        self.by_first.insert((parent, ids[0]), node);
        node
    }

    /// Makes the first `len` ids of a node a node of their own, before it; returns the new one.
    fn split(&mut self, node: usize, len: usize) -> usize {
        let upper = self.nodes.len();
        let (parent, start) = (self.nodes[node].parent, self.nodes[node].start);
        let rest = self.nodes[node].ids.split_off(len);
        let ids = std::mem::replace(&mut self.nodes[node].ids, rest);
        let place = self.nodes[parent].children.iter().position(|&child| child == node);
        self.nodes[parent].children[place.expect("a node is a child of its parent")] = upper;
        self.by_first.insert((parent, ids[0]), upper);
        self.by_first.insert((upper, self.nodes[node].ids[0]), node);
        self.nodes[node].parent = upper;
        self.nodes[node].start = start + len;
        self.nodes.push(Node { ids, parent, start, children: vec![node] });
        upper
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_record::CounterRng;

    fn text(tree: &Tree, node: usize) -> Vec<u32> {
        tree.path(ROOT, node).iter().flat_map(|&node| tree.node(node).ids.clone()).collect()
    }

    /// 1 2 3 4, then 1 2 5 (splits after 2), then 1 2 (ends at the split), then 9.
    #[test]
    fn texts_share_the_nodes_of_their_common_beginning() {
        let mut tree = Tree::new();
        let a = tree.insert(ROOT, &[1, 2, 3, 4]);
        let b = tree.insert(ROOT, &[1, 2, 5]);
        let c = tree.insert(ROOT, &[1, 2]);
        let d = tree.insert(a, &[6]);
        let e = tree.insert(ROOT, &[9]);
        assert_eq!(tree.n_tokens(), 7);
        assert_eq!(text(&tree, a), [1, 2, 3, 4]);
        assert_eq!((tree.node(a).parent, tree.node(b).parent), (c, c));
        assert_eq!((tree.node(a).start, tree.end(a), tree.end(d)), (2, 4, 5));
        assert_eq!(tree.depth_first(), [c, a, d, b, e]);
        assert_eq!(tree.insert(c, &[3, 4, 6]), d);
    }

    /// The oracle is a set of all prefixes: its size is the number of distinct token positions.
    #[test]
    fn a_tree_holds_each_distinct_prefix_once_and_gives_every_text_back() {
        for case in 0..200 {
            let mut rng = CounterRng::new(case, "tree-test", 0);
            let mut tree = Tree::new();
            let mut prefixes = std::collections::BTreeSet::new();
            let mut texts = Vec::new();
            for _ in 0..1 + rng.below(12) {
                let ids: Vec<u32> = (0..1 + rng.below(9)).map(|_| rng.below(3) as u32).collect();
                prefixes.extend((1..=ids.len()).map(|n| ids[..n].to_vec()));
                texts.push((tree.insert(ROOT, &ids), ids));
            }
            assert_eq!(tree.n_tokens(), prefixes.len());
            tree.limit_nodes(2);
            assert_eq!(tree.n_tokens(), prefixes.len());
            let order = tree.depth_first();
            assert_eq!(order.len(), tree.n_nodes() - 1);
            for (place, &node) in order.iter().enumerate() {
                let parent = tree.node(node).parent;
                assert!(tree.node(node).ids.len() <= 2 && tree.node(node).start == tree.end(parent));
                assert!(parent == ROOT || order[..place].contains(&parent));
            }
            for (node, ids) in texts {
                assert_eq!(text(&tree, node), ids);
            }
        }
    }
}
