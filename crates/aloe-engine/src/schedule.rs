//! The running schedule of generation: continuous batching over a prefix tree.
//!
//! Prompts that are admitted together form one tree; what they share is computed once. Every (request, sample) is one sequence that
//! branches from its prompt's end. Each pass holds one row for every running sequence and, while there is room, further
//! nodes of the tree: sequences join as others end, and once a tree is run the next requests may be admitted. Keys and values stay
//! within the budget: prompts wait, prefixes kept for later are dropped, and the youngest sequences give up theirs and run their ids
//! again afterwards. Which sequences share a pass, and what was evicted, changes no bit of any of them.

use crate::sample::{draw_tokens, most_probable};
use crate::sequence::{Sequence, SequencePlan, StopRules};
use crate::tree::{ROOT, Tree};
use crate::walk::{Selection, Walk};
use crate::{Completion, Error, GenerateRequest, Local, Result, Sampling};
use aloe_model::{KvCache, Pass};
use aloe_record::CounterRng;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// The most prompt tokens that join one pass: running sequences wait no longer for their next token than that takes.
pub(crate) const PREFILL_TOKENS: usize = 512;

/// A request with its prompt's ids, ready to be run.
pub(crate) struct Entry {
    id: String,
    n: usize,
    sampling: Sampling,
    prompt: Vec<u32>,
    stops: StopRules,
    room: usize,
    /// Tokens told beside each drawn one.
    n_top: usize,
    /// Sample `i` is drawn as the only sample of the seed plus `i`, as servers count.
    counts_seeds: bool,
    answers: Vec<Option<Completion>>,
}

/// How a request is run beside what [`Sampling`] says of its samples.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// No id of the model's own ends an answer.
    pub(crate) unstopped: bool,
    /// Most probable tokens that are told beside each drawn one.
    pub(crate) n_top: usize,
    /// Sample `i` is drawn as the only sample of the seed plus `i`, as servers count.
    pub(crate) counts_seeds: bool,
}

impl Entry {
    /// `prompt` holds the ids of the request's prompt, checked.
    pub(crate) fn new(local: &Local, request: &GenerateRequest, prompt: Vec<u32>, manner: Manner) -> Self {
        let stop_ids = if manner.unstopped { Vec::new() } else { local.text.stop_ids() };
        Self {
            id: request.id.clone(),
            n: request.n,
            sampling: request.sampling.clone(),
            stops: StopRules::new(&request.sampling, &stop_ids),
            room: local.room(request, prompt.len()),
            n_top: manner.n_top,
            counts_seeds: manner.counts_seeds,
            answers: vec![None; request.n],
            prompt,
        }
    }

    /// The prompt's ids.
    pub(crate) fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The random stream of a sample.
    fn rng(&self, sample: usize) -> CounterRng {
        let purpose = format!("sample/{}", self.id);
        match self.counts_seeds {
            true => CounterRng::new(self.sampling.seed.wrapping_add(sample as u64), &purpose, 0),
            false => CounterRng::new(self.sampling.seed, &purpose, sample as u64),
        }
    }
}

/// A prompt that has been computed, with the logits after its last token `[V]`, and samples still to be started.
struct Root {
    key: usize,
    cache: KvCache,
    logits: Arc<Vec<f32>>,
    n_started: usize,
}

/// Requests under way, each known by a key: they are counted as they are admitted.
pub(crate) struct Schedule<'a> {
    local: &'a Local,
    entries: BTreeMap<usize, Entry>,
    n_admitted: usize,
    walk: Walk,
    /// Requests whose prompt ends with the node.
    ending: HashMap<usize, Vec<usize>>,
    roots: VecDeque<Root>,
    /// Oldest first.
    active: Vec<Sequence>,
    evicted: VecDeque<Sequence>,
    /// Requests whose samples are all there, and that were not taken yet.
    finished: Vec<usize>,
    /// Requests whose logits are not finite, where the others go on.
    failed: Vec<usize>,
    page_bytes: usize,
    /// Each request starts one of its samples in its turn; else all samples of the oldest start first, which share more.
    takes_turns: bool,
    /// Requests whose whole text is kept for a call that goes on from it.
    kept: HashSet<usize>,
}

impl<'a> Schedule<'a> {
    pub(crate) fn new(local: &'a Local) -> Self {
        Self {
            local,
            entries: BTreeMap::new(),
            n_admitted: 0,
            walk: Walk::new(Tree::new(), &local.kv_meter, Vec::new()),
            ending: HashMap::new(),
            roots: VecDeque::new(),
            active: Vec::new(),
            evicted: VecDeque::new(),
            finished: Vec::new(),
            failed: Vec::new(),
            page_bytes: KvCache::bytes_of(&local.decoder, 1),
            takes_turns: false,
            kept: HashSet::new(),
        }
    }

    /// As [`Schedule::new`], for requests that come one by one: none waits for all samples of another.
    pub(crate) fn taking_turns(local: &'a Local) -> Self {
        Self { takes_turns: true, ..Self::new(local) }
    }

    /// How many requests more may be admitted, so that their prompts are run beside what runs; 0 while prompts that were admitted earlier
    /// are still to be run.
    pub(crate) fn n_free(&self) -> usize {
        if self.walk.is_done() { self.local.max_batch.saturating_sub(self.roots.len()) } else { 0 }
    }

    /// Takes requests in and returns the key of the first; the others follow it. No prompt of an earlier call may be waiting.
    pub(crate) fn admit(&mut self, entries: Vec<Entry>) -> usize {
        assert!(self.walk.is_done(), "prompts admitted earlier are still to be run");
        let first = self.n_admitted;
        let mut tree = Tree::new();
        let mut ends = Vec::new();
        if let [only] = entries.as_slice() {
            self.kept.extend((only.n == 1).then_some(first));
        }
        self.ending.clear();
        for entry in entries {
            let key = self.n_admitted;
            self.n_admitted += 1;
            if entry.n == 0 {
                self.finished.push(key);
            } else {
                let end = tree.insert(ROOT, &entry.prompt);
                self.ending.entry(end).or_default().push(key);
                ends.push(end);
            }
            self.entries.insert(key, entry);
        }
        let needed = self.ending.keys().map(|&end| (end, tree.end(end) - 1)).collect();
        self.walk = self.local.walk(tree, PREFILL_TOKENS.min(self.local.pack_tokens), &ends, &needed);
        first
    }

    /// Ends a request that nobody waits for any more.
    pub(crate) fn drop_request(&mut self, key: usize) {
        self.entries.remove(&key);
        self.kept.remove(&key);
        self.finished.retain(|&finished| finished != key);
        self.roots.retain(|root| root.key != key);
        self.active.retain(|sequence| sequence.request != key);
        self.evicted.retain(|sequence| sequence.request != key);
        let n_before = self.ending.len();
        self.ending.retain(|_, keys| {
            keys.retain(|&ending| ending != key);
            !keys.is_empty()
        });
        if self.ending.len() < n_before {
            let ends: Vec<usize> = self.ending.keys().copied().collect();
            self.walk.keep_only(&ends);
        }
    }

    /// Takes a finished request out: its key, its prompt's ids and its answers in the order of the samples.
    pub(crate) fn take_finished(&mut self) -> Option<(usize, String, Vec<u32>, Vec<Completion>)> {
        let key = if self.finished.is_empty() { return None } else { self.finished.remove(0) };
        let entry = self.entries.remove(&key)?;
        Some((key, entry.id, entry.prompt, entry.answers.into_iter().flatten().collect()))
    }

    /// Requests that were ended since the last call because the model's logits for them are not finite.
    pub(crate) fn take_failed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.failed)
    }

    /// Ends requests whose logits are not finite: alone where requests come one by one, else the call.
    fn fail(&mut self, keys: Vec<usize>) -> Result<()> {
        if !self.takes_turns && !keys.is_empty() {
            return Err(Error::NonFinite);
        }
        keys.iter().for_each(|&key| self.drop_request(key));
        self.failed.extend(keys);
        Ok(())
    }

    /// The running samples.
    pub(crate) fn running(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.active.iter_mut()
    }

    /// Gives up the keys and values of everything that runs or waits, which is run again afterwards.
    pub(crate) fn give_way(&mut self) {
        self.walk.evict();
        self.roots.iter_mut().for_each(|root| root.cache.truncate(0));
        // What they share with each other was left to them when they were evicted.
        self.evicted.iter_mut().for_each(|sequence| sequence.cache.truncate(0));
        for mut sequence in self.active.drain(..).rev() {
            sequence.cache.truncate(0);
            self.local.count(|counts| counts.n_evictions += 1);
            self.evicted.push_front(sequence);
        }
    }

    pub(crate) fn is_unfinished(&self) -> bool {
        !self.walk.is_done() || !self.roots.is_empty() || !self.active.is_empty() || !self.evicted.is_empty()
    }

    /// One pass: a token for every running sequence, and what fits beside them of the prompts. `others` is asked to give up the keys and
    /// values it holds where they would not fit.
    pub(crate) fn step(&mut self, others: &mut dyn FnMut()) -> Result<()> {
        self.local.free_prefixes(false);
        self.resume();
        self.start()?;
        self.make_room(others);
        let selection = self.select(others)?;
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
    fn make_room(&mut self, others: &mut dyn FnMut()) {
        if self.is_over_budget() {
            self.local.free_prefixes(true);
            others();
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
            let entry = &self.entries[&root.key];
            let prompt = &entry.prompt;
            // A copy of the prompt's last page, or all of it when it was evicted; and a page to grow.
            let pages = root.cache.fork().n_new_pages(prompt.len() + 1 - root.cache.len()) + 1;
            let others = self.active.len() + started.len();
            let needed = (pages + 2 * started.len() + self.active.len()) * self.page_bytes;
            let used = self.local.kv_meter.bytes() + needed;
            if used > self.local.kv_budget_bytes && others > 0 {
                break;
            }
            let plan = SequencePlan {
                request: root.key,
                sample: root.n_started,
                prompt,
                sampling: &entry.sampling,
                stops: entry.stops.clone(),
                rng: entry.rng(root.n_started),
                room: entry.room,
                n_top: entry.n_top,
            };
            let stream = self.local.text.tokenizer.decode_stream(true);
            started.push((Sequence::new(plan, root.cache.fork(), stream), Arc::clone(&root.logits)));
            root.n_started += 1;
            if root.n_started == entry.n {
                self.roots.pop_front();
            } else if self.takes_turns {
                self.roots.rotate_left(1);
            }
        }
        let (mut started, logits): (Vec<Sequence>, Vec<Arc<Vec<f32>>>) = started.into_iter().unzip();
        let rows: Vec<&[f32]> = logits.iter().map(|row| row.as_slice()).collect();
        let failed = accept_rows(self.local, &mut started.iter_mut().collect::<Vec<_>>(), &rows)?;
        self.active.extend(started);
        self.fail(failed)
    }

    /// The prompts' next nodes, when a sequence could start from them and their keys and values fit.
    fn select(&mut self, others: &mut dyn FnMut()) -> Result<Selection> {
        let waiting: usize = match self.takes_turns {
            true => self.roots.len(),
            false => self.roots.iter().map(|root| self.entries[&root.key].n - root.n_started).sum(),
        };
        let n_running = self.active.len() + self.evicted.len() + waiting;
        let is_full = if self.takes_turns { waiting } else { n_running } >= self.local.max_batch;
        if !self.evicted.is_empty() || is_full {
            return Ok(Selection::default());
        }
        let ending = &self.ending;
        let (headroom, max_tokens) = (n_running * self.page_bytes, PREFILL_TOKENS.min(self.local.pack_tokens));
        let max_pages = self.local.layer_pages(self.free_bytes().saturating_sub(headroom));
        let mut selection = self.walk.select(max_tokens, max_pages, |node| ending.contains_key(&node));
        if selection.is_empty() && n_running == 0 {
            // What earlier calls left makes room before the budget is exceeded.
            self.local.free_prefixes(true);
            others();
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
        let failed = accept_rows(self.local, &mut ready, &rows)?;
        self.fail(failed)
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
            for key in self.ending.remove(&node).into_iter().flatten() {
                self.roots.push_back(Root { key, cache: cache.fork(), logits: Arc::clone(&logits), n_started: 0 });
            }
        }
    }

    /// Takes ended sequences out and returns how many.
    pub(crate) fn retire(&mut self) -> u64 {
        let (done, active): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.active).into_iter().partition(Sequence::is_done);
        self.active = active;
        let n_done = done.len() as u64;
        for sequence in done {
            let (key, sample) = (sequence.request, sequence.sample);
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let prompt_len = entry.prompt.len();
            let cache = self.kept.remove(&key).then(|| sequence.cache.fork());
            let completion = sequence.into_completion(prompt_len);
            if let (Some(cache), Some(drawn)) = (cache, &completion.ids) {
                self.local.keep_text([&entry.prompt[..], drawn].concat(), &cache);
            }
            let n_drawn = completion.ids.as_ref().map_or(0, Vec::len);
            self.local.count(|counts| {
                counts.n_drawn_tokens += n_drawn as u64;
                counts.n_requested_tokens += (prompt_len + n_drawn - 1) as u64;
            });
            entry.answers[sample] = Some(completion);
            if entry.answers.iter().all(Option::is_some) {
                self.finished.push(key);
            }
        }
        n_done
    }
}

/// Draws one token per sequence from its row of logits `[V]`, and returns the requests of those whose row is not finite.
fn accept_rows(local: &Local, sequences: &mut [&mut Sequence], rows: &[&[f32]]) -> Result<Vec<usize>> {
    let mut failed = Vec::new();
    let draws: Vec<_> = sequences.iter().zip(rows).map(|(sequence, row)| sequence.draw(row)).collect();
    let drawn = draw_tokens(&local.decoder.device, &draws);
    for ((sequence, row), token) in sequences.iter_mut().zip(rows).zip(drawn) {
        if !token.1.is_finite() {
            failed.push(sequence.request);
            continue;
        }
        if sequence.n_top() > 0 {
            sequence.note_tops(most_probable(&local.decoder.device, row, sequence.n_top()));
        }
        sequence.accept(token)?;
    }
    Ok(failed)
}
