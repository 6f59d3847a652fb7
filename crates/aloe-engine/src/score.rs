//! Scoring given continuations with a local model: all requests of a call become one prefix tree, every distinct token
//! position is computed once, and only rows that predict a scored token meet the vocabulary, once each.

use crate::engine::{Take, in_order};
use crate::sample::{argmax, highest_ids};
use crate::tree::{ROOT, Tree};
use crate::walk::{Selection, Walk};
use crate::{Error, Local, Prompt, Result, ScoreRequest, ScoreResult, Scored};
use aloe_model::KvCache;
use aloe_record::{Cancel, Progress};
use aloe_tensor::Tensor;
use aloe_tensor::ops::distribution;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

/// Rows of logits held at once; `[LOGIT_ROWS, V]` f32.
const LOGIT_ROWS: usize = 64;

/// A request's ids, and where they stand in the tree.
pub(crate) struct Plan {
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
    /// Most probable tokens that are told beside each scored one.
    n_top: usize,
    /// The greedy token after a scored prompt is wanted too; its score is the last.
    wants_next: bool,
}

/// A token to be scored by a row.
struct Target {
    /// The row: a token of the node.
    offset: usize,
    /// `None` is the most probable one.
    id: Option<u32>,
    slot: usize,
}

/// What a row says of a token.
#[derive(Clone, Debug)]
pub(crate) struct Score {
    id: u32,
    logp: f64,
    /// Whether it was the most probable one.
    is_best: bool,
    tops: Vec<(u32, f64)>,
}

/// A prompt's own tokens from the second on, for a server.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredPrompt {
    /// The whole prompt.
    pub prompt_ids: Vec<u32>,
    /// Natural log-probability of each id from the second on, and then of `next`.
    pub logps: Vec<f64>,
    /// The most probable tokens at each of these places, where they were asked for, most probable first.
    pub tops: Vec<Vec<(u32, f64)>>,
    /// The most probable token after the prompt, where it was asked for.
    pub next: Option<u32>,
}

/// One call under way.
pub(crate) struct Scoring<'a> {
    local: &'a Local,
    plans: Vec<Option<Plan>>,
    walk: Walk,
    targets: Vec<Vec<Target>>,
    scores: Vec<Score>,
    /// Each score's request, and each request's scores that are still to come.
    owners: Vec<usize>,
    n_missing: Vec<usize>,
    n_tops: Vec<usize>,
    /// Requests whose scores are all there, and that were not handed over yet.
    finished: Vec<usize>,
    /// Requests with a row that is not finite: they are never finished.
    failed: Vec<usize>,
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

    /// The plan of a prompt whose own tokens are scored.
    pub(crate) fn plan_prompt(&self, id: &str, prompt: &Prompt, n_top: usize, wants_next: bool) -> Result<Plan> {
        let request = ScoreRequest { id: id.to_owned(), prompt: prompt.clone(), continuations: Vec::new() };
        Ok(Plan { n_top, wants_next, ..self.plan(&request)? })
    }

    fn plan(&self, request: &ScoreRequest) -> Result<Plan> {
        let (prompt_ids, continuations) = self.score_ids(request)?;
        let longest = continuations.iter().map(|ids| ids.len() - 1).max().unwrap_or(0);
        self.check_kv_budget(&request.id, prompt_ids.len() + longest)?;
        let scores_prompt = continuations.is_empty();
        let (prompt_end, ends, slots) = (ROOT, Vec::new(), 0..0);
        let (id, n_top, wants_next) = (request.id.clone(), 0, false);
        Ok(Plan { id, prompt_ids, continuations, scores_prompt, prompt_end, ends, slots, n_top, wants_next })
    }

    /// Hands each result over when its last token is scored.
    fn score_planned(
        &self,
        plans: Vec<Plan>,
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<ScoreResult>,
    ) -> Result<()> {
        let mut scoring = Scoring::new(self, plans, self.pack_tokens);
        loop {
            while let Some((at, plan, scores)) = scoring.take_finished() {
                progress.advance(1);
                if take(at, Ok(plan.collect(scores))).is_break() {
                    return Ok(());
                }
            }
            if scoring.is_done() {
                return Ok(());
            }
            cancel.check()?;
            scoring.step(self.pack_tokens, || true)?;
            if !scoring.take_failed().is_empty() {
                return Err(Error::NonFinite);
            }
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
        match self.scores_prompt {
            true => self.prompt_ids.len() - 1 + usize::from(self.wants_next),
            false => self.continuations.iter().map(Vec::len).sum(),
        }
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
        if self.wants_next {
            let last = tree.node(self.prompt_end).ids.len() - 1;
            targets[self.prompt_end].push(Target { offset: last, id: None, slot: self.slots.end - 1 });
        }
        for (ids, &end) in self.continuations.iter().zip(&self.ends) {
            let last = tree.node(self.prompt_end).ids.len() - 1;
            targets[self.prompt_end].push(Target { offset: last, id: Some(ids[0]), slot });
            aim_path(tree, &tree.path(self.prompt_end, end), &ids[1..], slot + 1, targets);
            slot += ids.len();
        }
    }

    fn collect(self, scores: Vec<Score>) -> ScoreResult {
        let pieces = if self.scores_prompt { vec![self.prompt_ids[1..].to_vec()] } else { self.continuations };
        let mut scores = scores.into_iter();
        let scored = |ids: Vec<u32>| {
            let (logps, greedy): (Vec<f64>, Vec<bool>) =
                scores.by_ref().take(ids.len()).map(|score| (score.logp, score.is_best)).unzip();
            Scored { ids, logps, is_greedy: greedy.iter().all(|&is| is) }
        };
        ScoreResult {
            id: self.id,
            continuations: pieces.into_iter().map(scored).collect(),
            prompt_ids: self.prompt_ids,
        }
    }

    /// The scores of a plan of [`Local::plan_prompt`].
    pub(crate) fn collect_prompt(self, scores: Vec<Score>) -> ScoredPrompt {
        let next = if self.wants_next { scores.last().map(|score| score.id) } else { None };
        let (logps, tops) = scores.into_iter().map(|score| (score.logp, score.tops)).unzip();
        ScoredPrompt { prompt_ids: self.prompt_ids, logps, tops, next }
    }
}

/// The rows of the path's nodes predict `ids` one by one; a last row too many predicts nothing.
fn aim_path(tree: &Tree, path: &[usize], ids: &[u32], first_slot: usize, targets: &mut [Vec<Target>]) {
    let rows = path.iter().flat_map(|&node| (0..tree.node(node).ids.len()).map(move |offset| (node, offset)));
    for ((node, offset), (i, &id)) in rows.zip(ids.iter().enumerate()) {
        targets[node].push(Target { offset, id: Some(id), slot: first_slot + i });
    }
}

impl<'a> Scoring<'a> {
    /// No piece of a text is longer than `max_node_tokens`.
    pub(crate) fn new(local: &'a Local, mut plans: Vec<Plan>, max_node_tokens: usize) -> Self {
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
        let walk = local.walk(tree, max_node_tokens, &ends, &needed);
        let mut targets: Vec<Vec<Target>> = (0..walk.tree.n_nodes()).map(|_| Vec::new()).collect();
        for plan in &plans {
            plan.aim(&walk.tree, &mut targets);
        }
        for targets in &mut targets {
            targets.sort_by_key(|target| target.offset);
        }
        local.count(|counts| counts.n_requested_tokens += plans.iter().map(Plan::n_requested).sum::<u64>());
        let n_missing: Vec<usize> = plans.iter().map(Plan::n_scores).collect();
        let owners = n_missing.iter().enumerate().flat_map(|(at, &n)| std::iter::repeat_n(at, n)).collect();
        let finished = (0..plans.len()).filter(|&at| n_missing[at] == 0).collect();
        let scores = vec![Score { id: 0, logp: f64::NAN, is_best: false, tops: Vec::new() }; n_slots];
        let n_tops = plans.iter().map(|plan| plan.n_top).collect();
        let plans = plans.into_iter().map(Some).collect();
        let failed = Vec::new();
        Self { local, plans, walk, targets, scores, owners, n_missing, n_tops, finished, failed }
    }

    /// Whether all is run; finished requests may be left to take.
    pub(crate) fn is_done(&self) -> bool {
        self.walk.is_done()
    }

    /// A finished request: its place among the plans, and its scores.
    pub(crate) fn take_finished(&mut self) -> Option<(usize, Plan, Vec<Score>)> {
        loop {
            let at = if self.finished.is_empty() { return None } else { self.finished.remove(0) };
            if let Some(plan) = self.plans[at].take() {
                let scores = self.scores[plan.slots.clone()].to_vec();
                return Some((at, plan, scores));
            }
        }
    }

    /// Requests that cannot be answered, since the last call: the model's logits on their way are not finite.
    pub(crate) fn take_failed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.failed)
    }

    /// Ends a request that nobody waits for any more.
    pub(crate) fn drop_request(&mut self, at: usize) {
        if self.plans[at].take().is_some() {
            let left = self.plans.iter().flatten();
            let ends: Vec<usize> = left.flat_map(|plan| plan.ends.iter().chain([&plan.prompt_end])).copied().collect();
            self.walk.keep_only(&ends);
        }
    }

    /// Gives up the keys and values that it holds; they are run again where they are needed.
    pub(crate) fn give_way(&mut self) {
        self.walk.evict();
    }

    /// Runs the next nodes, `max_tokens` or a single one's text, and scores what their rows predict. `make_room` is asked to free memory
    /// before a text that does not fit is run alone; where it says no, nothing is run.
    pub(crate) fn step(&mut self, max_tokens: usize, make_room: impl FnOnce() -> bool) -> Result<()> {
        let local = self.local;
        local.free_prefixes(false);
        let max_pages = local.layer_pages(local.kv_budget_bytes.saturating_sub(local.kv_meter.bytes()));
        let mut selection = self.walk.select(max_tokens, max_pages, |_| false);
        if selection.is_empty() && max_tokens < local.pack_tokens {
            // What comes before the next node was given up and is run again with it.
            selection = self.walk.select(local.pack_tokens, max_pages, |_| false);
        }
        if selection.is_empty() {
            self.walk.evict();
            let needed = KvCache::bytes_of(&local.decoder, self.walk.next_len());
            let is_over = || local.kv_meter.bytes() + needed > local.kv_budget_bytes;
            if is_over() {
                local.free_prefixes(true);
            }
            if is_over() && !make_room() {
                return Ok(());
            }
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
            let logits = self.local.decoder.logits(&hidden.slice_rows(rows.start, rows.end));
            let mut here = Vec::new();
            while let Some((row, target)) = targets.next_if(|(row, _)| *row < rows.end) {
                here.push((row - rows.start, target));
            }
            let read = self.read_rows(&logits, &here);
            let vocab_size = logits.shape()[1];
            for (row, target) in here {
                let (best, lse) = &read[row];
                // Rounded once, as a whole row of log-probabilities is, and as drawing a token gives it.
                let logp =
                    |id: u32| f64::from((f64::from(logits.as_f32()[row * vocab_size + id as usize]) - lse) as f32);
                let owner = self.owners[target.slot];
                let id = target.id.unwrap_or(best[0]);
                let tops = best.iter().take(self.n_tops[owner]).map(|&id| (id, logp(id))).collect();
                let score = Score { id, logp: logp(id), is_best: best[0] == id, tops };
                if !score.logp.is_finite() {
                    self.failed.push(owner);
                    continue;
                }
                self.scores[target.slot] = score;
                self.n_missing[owner] -= 1;
                if self.n_missing[owner] == 0 {
                    self.finished.push(owner);
                }
            }
        }
        Ok(())
    }

    /// Of each row of logits `[R, V]` the most probable ids, one or as many as a target of the row wants told, and what its
    /// log-probabilities are less by: read while the row is in the cache.
    fn read_rows(&self, logits: &Tensor, targets: &[(usize, Target)]) -> Vec<(Vec<u32>, f64)> {
        let (n_rows, vocab_size) = (logits.shape()[0], logits.shape()[1]);
        let mut n_best = vec![1; n_rows];
        for (row, target) in targets {
            n_best[*row] = self.n_tops[self.owners[target.slot]].max(n_best[*row]);
        }
        let read: Vec<OnceLock<(Vec<u32>, f64)>> = (0..n_rows).map(|_| OnceLock::new()).collect();
        let device = &self.local.decoder.device;
        device.for_each(n_rows, &|row| {
            let values = &logits.as_f32()[row * vocab_size..(row + 1) * vocab_size];
            read[row].get_or_init(|| {
                let best = if n_best[row] == 1 { vec![argmax(values)] } else { highest_ids(values, n_best[row]) };
                (best, distribution::log_sum_exp(device, values))
            });
        });
        read.into_iter().map(|read| read.into_inner().expect("each row was read")).collect()
    }
}
