//! Scoring given continuations with a local model: all requests of a call become one prefix tree, every distinct token
//! position is computed once, and only rows that predict a scored token meet the vocabulary, once each.

use crate::engine::{Take, in_order};
use crate::sample::argmax;
use crate::tree::{ROOT, Tree};
use crate::walk::{Selection, Walk};
use crate::{Error, Local, Result, ScoreRequest, ScoreResult, Scored};
use aloe_record::{Cancel, Progress};
use aloe_tensor::{Tensor, ops};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

/// Rows of logits held at once; `[LOGIT_ROWS, V]` f32.
const LOGIT_ROWS: usize = 64;

/// A request's ids, and where they stand in the tree.
struct Plan {
    id: String,
    prompt_ids: Vec<u32>,
    continuations: Vec<Vec<u32>>,
    /// No continuation was asked for: the prompt's own tokens are scored, from the second on.
    scores_prompt: bool,
    /// The node that ends the prompt, and per continuation the one that ends all but its last token, which predicts nothing.
    prompt_end: usize,
    ends: Vec<usize>,
    /// The request's scores among all.
    slots: Range<usize>,
}

/// A token to be scored by a row.
struct Target {
    /// The row: a token of the node.
    offset: usize,
    id: u32,
    slot: usize,
}

/// A token's log-probability, and whether it was the most probable one.
type Score = (f64, bool);

/// One call under way.
struct Scoring<'a> {
    local: &'a Local,
    walk: Walk,
    targets: Vec<Vec<Target>>,
    scores: Vec<Score>,
    /// Each score's request, and each request's scores that are still to come.
    owners: Vec<usize>,
    n_missing: Vec<usize>,
    /// Requests whose scores are all there, and that were not handed over yet.
    finished: Vec<usize>,
}

impl Local {
    /// See [`crate::Engine::score`].
    pub(crate) fn score(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<ScoreResult>> {
        let plans = self.score_plans(requests).into_iter().collect::<Result<Vec<_>>>()?;
        in_order(requests.len(), |take| self.score_planned(plans, progress, cancel, take))
    }

    /// See [`crate::Engine::score_into`].
    pub(crate) fn score_into(
        &self,
        requests: &[ScoreRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<ScoreResult>,
    ) -> Result<()> {
        let (mut places, mut plans) = (Vec::new(), Vec::new());
        for (at, plan) in self.score_plans(requests).into_iter().enumerate() {
            match plan {
                Ok(plan) => {
                    places.push(at);
                    plans.push(plan);
                }
                Err(error) => {
                    if take(at, Err(error)).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        self.score_planned(plans, progress, cancel, &mut |at, result| take(places[at], result))
    }

    /// The ids of all requests; tokenising long prompts is worth all threads.
    fn score_plans(&self, requests: &[ScoreRequest]) -> Vec<Result<Plan>> {
        let plans: Vec<OnceLock<Result<Plan>>> = requests.iter().map(|_| OnceLock::new()).collect();
        self.decoder.device.for_each(requests.len(), &|at| {
            plans[at].get_or_init(|| self.plan(&requests[at]));
        });
        plans.into_iter().map(|plan| plan.into_inner().expect("each request was planned")).collect()
    }

    fn plan(&self, request: &ScoreRequest) -> Result<Plan> {
        let (prompt_ids, continuations) = self.score_ids(request)?;
        let longest = continuations.iter().map(|ids| ids.len() - 1).max().unwrap_or(0);
        self.check_kv_budget(&request.id, prompt_ids.len() + longest)?;
        let scores_prompt = continuations.is_empty();
        let (prompt_end, ends, slots) = (ROOT, Vec::new(), 0..0);
        Ok(Plan { id: request.id.clone(), prompt_ids, continuations, scores_prompt, prompt_end, ends, slots })
    }

    /// Hands each result over when its last token is scored.
    fn score_planned(
        &self,
        mut plans: Vec<Plan>,
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<ScoreResult>,
    ) -> Result<()> {
        let mut tree = Tree::new();
        let mut n_slots = 0;
        for plan in &mut plans {
            plan.enter(&mut tree);
            let n = plan.n_scores();
            plan.slots = n_slots..n_slots + n;
            n_slots += n;
        }
        let ends: Vec<usize> = plans.iter().map(|plan| plan.prompt_end).collect();
        let mut needed = HashMap::new();
        for (node, position) in plans.iter().flat_map(|plan| plan.needed(&tree)) {
            needed.entry(node).and_modify(|first: &mut usize| *first = position.min(*first)).or_insert(position);
        }
        let walk = self.walk(tree, self.pack_tokens, &ends, &needed);
        let mut targets: Vec<Vec<Target>> = (0..walk.tree.n_nodes()).map(|_| Vec::new()).collect();
        for plan in &plans {
            plan.aim(&walk.tree, &mut targets);
        }
        for targets in &mut targets {
            targets.sort_by_key(|target| target.offset);
        }
        self.count(|counts| counts.n_requested_tokens += plans.iter().map(Plan::n_requested).sum::<u64>());
        let n_missing: Vec<usize> = plans.iter().map(Plan::n_scores).collect();
        let owners = n_missing.iter().enumerate().flat_map(|(at, &n)| std::iter::repeat_n(at, n)).collect();
        let finished = (0..plans.len()).filter(|&at| n_missing[at] == 0).collect();
        let scores = vec![(f64::NAN, false); n_slots];
        let mut scoring = Scoring { local: self, walk, targets, scores, owners, n_missing, finished };
        let mut plans: Vec<Option<Plan>> = plans.into_iter().map(Some).collect();
        loop {
            for at in std::mem::take(&mut scoring.finished) {
                progress.advance(1);
                let plan = plans[at].take().expect("a request is finished once");
                if take(at, Ok(plan.collect(&scoring.scores))).is_break() {
                    return Ok(());
                }
            }
            if scoring.walk.is_done() {
                return Ok(());
            }
            cancel.check()?;
            scoring.step()?;
        }
    }
}

impl Plan {
    fn enter(&mut self, tree: &mut Tree) {
        self.prompt_end = tree.insert(ROOT, &self.prompt_ids);
        self.ends = self.continuations.iter().map(|ids| tree.insert(self.prompt_end, &ids[..ids.len() - 1])).collect();
    }

    /// Nodes of the prompt that have rows which predict something, with the first such position.
    fn needed(&self, tree: &Tree) -> Vec<(usize, usize)> {
        if self.scores_prompt {
            return tree.path(ROOT, self.prompt_end).iter().map(|&node| (node, tree.node(node).start)).collect();
        }
        vec![(self.prompt_end, tree.end(self.prompt_end) - 1)]
    }

    fn n_scores(&self) -> usize {
        if self.scores_prompt { self.prompt_ids.len() - 1 } else { self.continuations.iter().map(Vec::len).sum() }
    }

    /// Tokens that a forward pass per continuation would compute.
    fn n_requested(&self) -> u64 {
        let n = |ids: &Vec<u32>| self.prompt_ids.len() + ids.len() - 1;
        (if self.scores_prompt { self.prompt_ids.len() } else { self.continuations.iter().map(n).sum() }) as u64
    }

    /// Notes at each row what it predicts.
    fn aim(&self, tree: &Tree, targets: &mut [Vec<Target>]) {
        let mut slot = self.slots.start;
        if self.scores_prompt {
            aim_path(tree, &tree.path(ROOT, self.prompt_end), &self.prompt_ids[1..], slot, targets);
        }
        for (ids, &end) in self.continuations.iter().zip(&self.ends) {
            let last = tree.node(self.prompt_end).ids.len() - 1;
            targets[self.prompt_end].push(Target { offset: last, id: ids[0], slot });
            aim_path(tree, &tree.path(self.prompt_end, end), &ids[1..], slot + 1, targets);
            slot += ids.len();
        }
    }

    fn collect(self, scores: &[Score]) -> ScoreResult {
        let pieces = if self.scores_prompt { vec![self.prompt_ids[1..].to_vec()] } else { self.continuations };
        let mut scores = scores[self.slots].iter().copied();
        let scored = |ids: Vec<u32>| {
            let (logps, greedy): (Vec<f64>, Vec<bool>) = scores.by_ref().take(ids.len()).unzip();
            Scored { ids, logps, is_greedy: greedy.iter().all(|&is| is) }
        };
        ScoreResult {
            id: self.id,
            continuations: pieces.into_iter().map(scored).collect(),
            prompt_ids: self.prompt_ids,
        }
    }
}

/// The rows of the path's nodes predict `ids` one by one; a last row too many predicts nothing.
fn aim_path(tree: &Tree, path: &[usize], ids: &[u32], first_slot: usize, targets: &mut [Vec<Target>]) {
    let rows = path.iter().flat_map(|&node| (0..tree.node(node).ids.len()).map(move |offset| (node, offset)));
    for ((node, offset), (i, &id)) in rows.zip(ids.iter().enumerate()) {
        targets[node].push(Target { offset, id, slot: first_slot + i });
    }
}

impl Scoring<'_> {
    /// Runs the next nodes and scores what their rows predict.
    fn step(&mut self) -> Result<()> {
        let local = self.local;
        local.free_prefixes(false);
        let max_pages = local.layer_pages(local.kv_budget_bytes.saturating_sub(local.kv_meter.bytes()));
        let mut selection = self.walk.select(local.pack_tokens, max_pages, |_| false);
        if selection.is_empty() {
            local.free_prefixes(true);
            selection = local.select_alone(&mut self.walk, |_| false)?;
        }
        let (wanted, targets) = self.wanted(&selection);
        let pass = local.pass(&self.walk.pieces(&selection), &[], &mut [], &wanted)?;
        self.walk.store(&selection, pass.kept, |_| false);
        self.score_rows(&pass.hidden, targets)
    }

    /// The rows of a pass that predict something, and what they predict, by their place among these rows.
    fn wanted(&mut self, selection: &Selection) -> (Vec<usize>, Vec<(usize, Target)>) {
        let (mut wanted, mut targets) = (Vec::new(), Vec::new());
        let pieces = self.walk.pieces(selection);
        let ends = pieces.iter().scan(0, |end, piece| {
            *end += piece.ids.len();
            Some(*end)
        });
        for (&node, end) in selection.nodes.iter().zip(ends) {
            for target in std::mem::take(&mut self.targets[node]) {
                // A node's rows are the last of its piece: the text before it may have been run along.
                let row = end - self.walk.tree.node(node).ids.len() + target.offset;
                if wanted.last() != Some(&row) {
                    wanted.push(row);
                }
                targets.push((wanted.len() - 1, target));
            }
        }
        (wanted, targets)
    }

    /// Scores the targets of rows of `hidden` `[R, D]`.
    fn score_rows(&mut self, hidden: &Tensor, targets: Vec<(usize, Target)>) -> Result<()> {
        let n_rows = hidden.shape()[0];
        let mut targets = targets.into_iter().peekable();
        for from in (0..n_rows).step_by(LOGIT_ROWS) {
            let rows = from..(from + LOGIT_ROWS).min(n_rows);
            let mut logits = self.local.decoder.logits(&hidden.slice_rows(rows.start, rows.end));
            let vocab_size = logits.shape()[1];
            let device = &self.local.decoder.device;
            let best: Vec<OnceLock<u32>> = rows.clone().map(|_| OnceLock::new()).collect();
            device.for_each(rows.len(), &|row| {
                best[row].get_or_init(|| argmax(&logits.as_f32()[row * vocab_size..(row + 1) * vocab_size]));
            });
            ops::log_softmax_rows(device, &mut logits);
            while let Some((row, target)) = targets.next_if(|(row, _)| *row < rows.end) {
                let row = row - rows.start;
                let logp = f64::from(logits.as_f32()[row * vocab_size + target.id as usize]);
                if !logp.is_finite() {
                    return Err(Error::NonFinite);
                }
                self.scores[target.slot] = (logp, best[row].get() == Some(&target.id));
                let owner = self.owners[target.slot];
                self.n_missing[owner] -= 1;
                if self.n_missing[owner] == 0 {
                    self.finished.push(owner);
                }
            }
        }
        Ok(())
    }
}
