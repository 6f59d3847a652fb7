//! Generation with a local model: continuous batching over a prefix tree.
//!
//! The prompts of a call form one tree; what they share is computed once. Every (request, sample) is one sequence that
//! branches from its prompt's end. Each pass holds one row for every running sequence and, while there is room, further
//! nodes of the tree: sequences join as others end. Keys and values stay within the budget: prompts wait, prefixes kept for
//! later are dropped, and the youngest sequences give up theirs and run their ids again afterwards. Which sequences share a
//! pass, and what was evicted, changes no bit of any of them.

use crate::engine::{Take, check_sampling, in_order};
use crate::sample::draw_tokens;
use crate::sequence::{Sequence, SequencePlan, StopRules};
use crate::tree::{ROOT, Tree};
use crate::walk::{Selection, Walk};
use crate::{Completion, Error, FinishReason, GenerateRequest, GenerateResult, Local, Result};
use aloe_model::{KvCache, Pass};
use aloe_record::{Cancel, Progress};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The most prompt tokens that join one pass: running sequences wait no longer for their next token than that takes.
const PREFILL_TOKENS: usize = 512;

/// A prompt that has been computed, with the logits after its last token `[V]`, and samples still to be started.
struct Root {
    request: usize,
    cache: KvCache,
    logits: Arc<Vec<f32>>,
    n_started: usize,
}

/// The state of one call of [`crate::Engine::generate`].
pub(crate) struct Schedule<'a> {
    local: &'a Local,
    requests: &'a [GenerateRequest],
    prompts: Vec<Vec<u32>>,
    walk: Walk,
    /// Requests whose prompt ends with the node.
    ending: HashMap<usize, Vec<usize>>,
    roots: VecDeque<Root>,
    /// Oldest first.
    active: Vec<Sequence>,
    evicted: VecDeque<Sequence>,
    answers: Vec<Vec<Option<Completion>>>,
    /// Requests whose samples are all there, and that were not handed over yet.
    finished: Vec<usize>,
    page_bytes: usize,
    /// The model's own ids that end an answer.
    stop_ids: Vec<u32>,
}

impl Local {
    /// See [`crate::Engine::generate`].
    pub(crate) fn generate(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<Vec<GenerateResult>> {
        let prompts = requests.iter().map(|request| self.checked_prompt(request)).collect::<Result<Vec<_>>>()?;
        Schedule::new(self, requests, prompts).finish(progress, cancel)
    }

    /// See [`crate::Engine::generate_into`].
    pub(crate) fn generate_into(
        &self,
        requests: &[GenerateRequest],
        progress: &Progress,
        cancel: &Cancel,
        take: &mut Take<GenerateResult>,
    ) -> Result<()> {
        let (mut places, mut good, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
        for (at, request) in requests.iter().enumerate() {
            match self.checked_prompt(request) {
                Ok(prompt) => {
                    places.push(at);
                    good.push(request.clone());
                    prompts.push(prompt);
                }
                Err(error) => {
                    if take(at, Err(error)).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Schedule::new(self, &good, prompts).finish_into(progress, cancel, &mut |at, result| take(places[at], result))
    }

    /// See [`crate::Engine::generate_streaming`].
    pub(crate) fn generate_streaming(
        &self,
        request: &GenerateRequest,
        cancel: &Cancel,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion> {
        let requests = [GenerateRequest { n: 1, ..request.clone() }];
        let prompts = vec![self.checked_prompt(&requests[0])?];
        let mut schedule = Schedule::new(self, &requests, prompts);
        let mut n_shown = 0;
        while schedule.is_unfinished() {
            cancel.check()?;
            schedule.step()?;
            if let Some(sequence) = schedule.active.first() {
                let settled = sequence.settled_text();
                on_text(&settled[n_shown..]);
                n_shown = settled.len();
            }
            schedule.retire();
        }
        let completion = schedule.result(0).completions.into_iter().next();
        let completion = completion
            .ok_or_else(|| Error::Request { id: request.id.clone(), reason: "no sample was asked for".to_owned() })?;
        on_text(completion.text.get(n_shown..).unwrap_or_default());
        Ok(completion)
    }

    /// The prompt's ids, with everything checked that could stop the request later.
    pub(crate) fn checked_prompt(&self, request: &GenerateRequest) -> Result<Vec<u32>> {
        check_sampling(request)?;
        let prompt = self.prompt_ids(&request.id, &request.prompt)?;
        let limit = self.context_len();
        if prompt.len() >= limit {
            return Err(Error::Request {
                id: request.id.clone(),
                reason: format!("the prompt's {} tokens fill the model's context of {limit}", prompt.len()),
            });
        }
        self.check_kv_budget(&request.id, prompt.len() + self.room(request, prompt.len()))?;
        Ok(prompt)
    }

    /// The most tokens a request may add, given its prompt and the model's context.
    fn room(&self, request: &GenerateRequest, prompt_len: usize) -> usize {
        request.sampling.max_new_tokens.min(self.context_len() - prompt_len)
    }
}

impl<'a> Schedule<'a> {
    fn new(local: &'a Local, requests: &'a [GenerateRequest], prompts: Vec<Vec<u32>>) -> Self {
        let mut tree = Tree::new();
        let mut ending: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut ends = Vec::new();
        for (at, prompt) in prompts.iter().enumerate().filter(|(at, _)| requests[*at].n > 0) {
            let end = tree.insert(ROOT, prompt);
            ending.entry(end).or_default().push(at);
            ends.push(end);
        }
        let needed = ending.keys().map(|&end| (end, tree.end(end) - 1)).collect();
        Self {
            local,
            requests,
            prompts,
            walk: local.walk(tree, PREFILL_TOKENS.min(local.pack_tokens), &ends, &needed),
            ending,
            roots: VecDeque::new(),
            active: Vec::new(),
            evicted: VecDeque::new(),
            answers: requests.iter().map(|request| vec![None; request.n]).collect(),
            finished: (0..requests.len()).filter(|&at| requests[at].n == 0).collect(),
            page_bytes: KvCache::bytes_of(&local.decoder, 1),
            stop_ids: local.text.stop_ids(),
        }
    }

    /// As [`Schedule::new`], but no id of the model's own ends an answer.
    pub(crate) fn unstopped(local: &'a Local, requests: &'a [GenerateRequest], prompts: Vec<Vec<u32>>) -> Self {
        Self { stop_ids: Vec::new(), ..Self::new(local, requests, prompts) }
    }

    pub(crate) fn finish(self, progress: &Progress, cancel: &Cancel) -> Result<Vec<GenerateResult>> {
        in_order(self.requests.len(), |take| self.finish_into(progress, cancel, take))
    }

    /// Hands each result over when its last sample is done.
    fn finish_into(mut self, progress: &Progress, cancel: &Cancel, take: &mut Take<GenerateResult>) -> Result<()> {
        loop {
            for at in std::mem::take(&mut self.finished) {
                if take(at, Ok(self.result(at))).is_break() {
                    return Ok(());
                }
            }
            if !self.is_unfinished() {
                return Ok(());
            }
            cancel.check()?;
            self.step()?;
            progress.advance(self.retire());
        }
    }

    fn is_unfinished(&self) -> bool {
        !self.walk.is_done() || !self.roots.is_empty() || !self.active.is_empty() || !self.evicted.is_empty()
    }

    /// One pass: a token for every running sequence, and what fits beside them of the prompts.
    fn step(&mut self) -> Result<()> {
        self.local.free_prefixes(false);
        self.resume();
        self.start()?;
        self.make_room();
        let selection = self.select()?;
        if selection.is_empty() && self.active.iter().all(Sequence::is_done) {
            return Ok(());
        }
        let pass = self.run(&selection)?;
        self.accept(&selection, &pass)?;
        self.plant(&selection, pass);
        Ok(())
    }

    /// Bytes that the next pass adds for the running sequences.
    fn growth_bytes(&self) -> usize {
        let running = self.active.iter().filter(|s| !s.is_done());
        running.map(|s| s.cache.n_new_pages(s.pending().len())).sum::<usize>() * self.page_bytes
    }

    /// Bytes of the budget that neither caches nor the next pass take.
    fn free_bytes(&self) -> usize {
        let used = self.local.kv_meter.bytes() + self.growth_bytes();
        self.local.kv_budget_bytes.saturating_sub(used)
    }

    fn is_over_budget(&self) -> bool {
        self.local.kv_meter.bytes() + self.growth_bytes() > self.local.kv_budget_bytes
    }

    /// Frees keys and values until the next pass fits: first those kept for sequences to come, then those of the youngest
    /// sequences. The oldest goes on; alone it fits, as was checked when it was taken.
    fn make_room(&mut self) {
        if self.is_over_budget() {
            self.local.free_prefixes(true);
            self.walk.evict();
            self.roots.iter_mut().for_each(|root| root.cache.evict());
        }
        while self.is_over_budget() && self.active.len() > 1 {
            let Some(mut sequence) = self.active.pop() else { break };
            sequence.cache.evict();
            self.local.count(|counts| counts.n_evictions += 1);
            self.evicted.push_front(sequence);
        }
        if self.is_over_budget() {
            // What waiting ones still share with each other.
            self.evicted.iter_mut().for_each(|sequence| sequence.cache.truncate(0));
            self.roots.iter_mut().for_each(|root| root.cache.truncate(0));
        }
    }

    /// Evicted sequences come back, in their order, where there is room for what they lost and a page to grow.
    fn resume(&mut self) {
        while self.active.len() < self.local.max_batch {
            let Some(sequence) = self.evicted.front() else { break };
            let needed =
                (sequence.cache.n_new_pages(sequence.pending().len()) + 1 + self.active.len()) * self.page_bytes;
            if needed > self.free_bytes() && !self.active.is_empty() {
                break;
            }
            self.active.extend(self.evicted.pop_front());
        }
    }

    /// Samples of computed prompts start while the batch and the memory have room; one always may.
    fn start(&mut self) -> Result<()> {
        let mut started = Vec::new();
        while self.evicted.is_empty() && self.active.len() + started.len() < self.local.max_batch {
            let Some(root) = self.roots.front_mut() else { break };
            let request = &self.requests[root.request];
            let prompt = &self.prompts[root.request];
            // A copy of the prompt's last page, or all of it when it was evicted; and a page to grow.
            let pages = root.cache.fork().n_new_pages(prompt.len() + 1 - root.cache.len()) + 1;
            let others = self.active.len() + started.len();
            let needed = (pages + 2 * started.len() + self.active.len()) * self.page_bytes;
            let used = self.local.kv_meter.bytes() + needed;
            if used > self.local.kv_budget_bytes && others > 0 {
                break;
            }
            let plan = SequencePlan {
                request: root.request,
                sample: root.n_started,
                prompt,
                stops: StopRules::new(&request.sampling, &self.stop_ids),
                room: self.local.room(request, prompt.len()),
            };
            let stream = self.local.text.tokenizer.decode_stream(true);
            started.push((Sequence::new(plan, request, root.cache.fork(), stream), Arc::clone(&root.logits)));
            root.n_started += 1;
            if root.n_started == request.n {
                self.roots.pop_front();
            }
        }
        let (mut started, logits): (Vec<Sequence>, Vec<Arc<Vec<f32>>>) = started.into_iter().unzip();
        let rows: Vec<&[f32]> = logits.iter().map(|row| row.as_slice()).collect();
        accept_rows(self.local, &mut started.iter_mut().collect::<Vec<_>>(), &rows)?;
        self.active.extend(started);
        Ok(())
    }

    /// The prompts' next nodes, when a sequence could start from them and their keys and values fit.
    fn select(&mut self) -> Result<Selection> {
        let waiting: usize = self.roots.iter().map(|root| self.requests[root.request].n - root.n_started).sum();
        let n_running = self.active.len() + self.evicted.len() + waiting;
        if !self.evicted.is_empty() || n_running >= self.local.max_batch {
            return Ok(Selection::default());
        }
        let ending = &self.ending;
        let (headroom, max_tokens) = (n_running * self.page_bytes, PREFILL_TOKENS.min(self.local.pack_tokens));
        let max_pages = self.local.layer_pages(self.free_bytes().saturating_sub(headroom));
        let mut selection = self.walk.select(max_tokens, max_pages, |node| ending.contains_key(&node));
        if selection.is_empty() && n_running == 0 {
            // What earlier calls left makes room before the budget is exceeded.
            self.local.free_prefixes(true);
            let max_pages = self.local.layer_pages(self.free_bytes());
            selection = self.walk.select(max_tokens, max_pages, |node| ending.contains_key(&node));
        }
        if selection.is_empty() && n_running == 0 {
            return self.local.select_alone(&mut self.walk, |node| ending.contains_key(&node));
        }
        Ok(selection)
    }

    fn run(&mut self, selection: &Selection) -> Result<Pass> {
        let pieces = self.walk.pieces(selection);
        // Of a pass nothing is wanted but the last token of a prompt and of each running sequence.
        let (mut end, mut wanted) = (0, Vec::new());
        for (piece, node) in pieces.iter().zip(&selection.nodes) {
            end += piece.ids.len();
            wanted.extend(self.ending.contains_key(node).then(|| end - 1));
        }
        let (mut texts, mut caches) = (Vec::new(), Vec::new());
        let mut n_left = self.local.pack_tokens;
        for sequence in self.active.iter_mut().filter(|s| !s.is_done()) {
            let pending = sequence.pending();
            let n = pending.len().min(n_left.max(1));
            n_left = n_left.saturating_sub(n);
            texts.push(pending[..n].to_vec());
            end += n;
            wanted.extend((n > 0).then(|| end - 1));
            caches.push(&mut sequence.cache);
        }
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        self.local.pass(&pieces, &texts, &mut caches, &wanted)
    }

    /// Draws the next token of every sequence whose ids have all been run.
    fn accept(&mut self, selection: &Selection, pass: &Pass) -> Result<()> {
        let running = self.active.iter_mut().filter(|s| !s.is_done()).zip(&pass.rows[selection.nodes.len()..]);
        let (mut ready, rows): (Vec<&mut Sequence>, Vec<usize>) =
            running.filter(|(s, _)| s.pending().is_empty()).map(|(s, rows)| (s, rows.end - 1)).unzip();
        if ready.is_empty() {
            return Ok(());
        }
        let logits = self.local.decoder.logits(&pass.hidden_of(&rows));
        let rows: Vec<&[f32]> = logits.as_f32().chunks(logits.shape()[1]).collect();
        accept_rows(self.local, &mut ready, &rows)
    }

    /// Prompts that ended in the pass become roots, in the order of the requests.
    fn plant(&mut self, selection: &Selection, mut pass: Pass) {
        let ending = &self.ending;
        let ends: HashMap<usize, usize> =
            selection.nodes.iter().zip(&pass.rows).map(|(&node, rows)| (node, rows.end - 1)).collect();
        let kept = std::mem::take(&mut pass.kept);
        let caches = self.walk.store(selection, kept, |node| ending.contains_key(&node));
        if caches.is_empty() {
            return;
        }
        let rows: Vec<usize> = caches.iter().map(|(node, _)| ends[node]).collect();
        let logits = self.local.decoder.logits(&pass.hidden_of(&rows));
        for ((node, cache), row) in caches.into_iter().zip(logits.as_f32().chunks(logits.shape()[1])) {
            let logits = Arc::new(row.to_vec());
            for request in self.ending.remove(&node).into_iter().flatten() {
                self.roots.push_back(Root { request, cache: cache.fork(), logits: Arc::clone(&logits), n_started: 0 });
            }
        }
    }

    /// Takes ended sequences out and returns how many.
    fn retire(&mut self) -> u64 {
        let (done, active): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.active).into_iter().partition(Sequence::is_done);
        self.active = active;
        let n_done = done.len() as u64;
        for sequence in done {
            let (at, sample) = (sequence.request, sequence.sample);
            let prompt_len = self.prompts[at].len();
            let cache = (self.requests.len() == 1 && sample == 0).then(|| sequence.cache.fork());
            let completion = sequence.into_completion(prompt_len);
            if let (Some(cache), Some(drawn)) = (cache, &completion.ids) {
                self.local.keep_text([&self.prompts[at][..], drawn].concat(), &cache);
            }
            let n_drawn = completion.ids.as_ref().map_or(0, Vec::len);
            self.local.count(|counts| {
                counts.n_drawn_tokens += n_drawn as u64;
                counts.n_requested_tokens += (prompt_len + n_drawn - 1) as u64;
            });
            self.answers[at][sample] = Some(completion);
            if self.answers[at].iter().all(Option::is_some) {
                self.finished.push(at);
            }
        }
        n_done
    }

    /// The result of a finished request, taken out.
    fn result(&mut self, at: usize) -> GenerateResult {
        GenerateResult {
            id: self.requests[at].id.clone(),
            prompt_ids: Some(std::mem::take(&mut self.prompts[at])),
            completions: std::mem::take(&mut self.answers[at]).into_iter().flatten().collect(),
        }
    }
}

/// Draws one token per sequence from its row of logits `[V]`.
fn accept_rows(local: &Local, sequences: &mut [&mut Sequence], rows: &[&[f32]]) -> Result<()> {
    let draws: Vec<_> = sequences.iter().zip(rows).map(|(sequence, row)| sequence.draw(row)).collect();
    let drawn = draw_tokens(&local.decoder.device, &draws);
    if drawn.iter().any(|(_, logp)| !logp.is_finite()) {
        return Err(Error::NonFinite);
    }
    sequences.iter_mut().zip(drawn).try_for_each(|(sequence, token)| sequence.accept(token))
}

/// Why a sequence that used up its room ended: its own limit, or the model's context.
pub(crate) fn full_reason(request: &GenerateRequest, room: usize) -> FinishReason {
    if room < request.sampling.max_new_tokens { FinishReason::Context } else { FinishReason::Length }
}
