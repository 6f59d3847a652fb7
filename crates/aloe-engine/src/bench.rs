//! How fast a local model works on this machine, beside what the machine could do at most.
//!
//! Each run of a work stands between probes, products of registers and a plain read of memory, because machines are shared and their
//! speed changes; medians count. The limit of a work is the time its products take at the probes' rates, or its bytes at the
//! probe's bandwidth, whichever is longer: no kernel of ours is its own measure. Prompts are random ids: no text is needed, and
//! no token ends an answer.

use crate::schedule::Manner;
use crate::{Continuation, Error, GenerateRequest, Local, Prompt, Result, Sampling, ScoreRequest};
use aloe_record::{Cancel, CounterRng, Progress};
use aloe_tensor::{Device, Dtype, Linear, ProductKind, ReadProbe, run_products};
use serde::Serialize;
use std::time::Instant;

/// Tokens of the prompt that decoding continues.
const DECODE_PROMPT: usize = 128;

/// Tokens that each stream draws, as many as the peers it is set beside are asked for.
const N_NEW: usize = 128;

/// One work, timed.
#[derive(Clone, Debug, Serialize)]
pub struct BenchRow {
    /// What was done.
    pub work: String,
    /// Tokens of a run: prompt tokens of a prefill or of scoring (as if each option were run on its own), drawn tokens else.
    pub n_tokens: u64,
    /// Median seconds of a run.
    pub seconds: f64,
    /// Tokens a second.
    pub tokens_per_s: f64,
    /// Tokens that went through the decoder in one run.
    pub n_computed_tokens: u64,
    /// Tokens a second if the products ran at the probe's rate and the bytes at its bandwidth, by the probes before and after a run.
    pub limit_tokens_per_s: f64,
    /// Median of the runs' shares, each of the limit beside that run: memory may change its speed from one run to the next.
    pub share_of_limit: f64,
    /// What the product probes beside this work give for its products, 10^9 operations a second: those of the weights' form, and of
    /// attention.
    pub gops: f64,
    /// The reading probe beside this work, 10^9 bytes a second.
    pub gb_per_s: f64,
}

/// All works of a model.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The model's name.
    pub model: String,
    /// The form of the weights: `bf16`, `f32`, `q8`, `q4` or `gguf`.
    pub dtype: String,
    /// Kernels and threads.
    pub device: String,
    /// Runs of each work; medians are reported.
    pub n_runs: usize,
    /// Seed of the prompts and of what is drawn.
    pub seed: u64,
    /// The works.
    pub rows: Vec<BenchRow>,
}

/// One run of a work.
struct Run {
    n_tokens: u64,
    n_computed_tokens: u64,
    seconds: f64,
    cost: Cost,
    limit: Rates,
}

impl Run {
    fn tokens_per_s(&self) -> f64 {
        self.n_tokens as f64 / self.seconds
    }

    fn limit_tokens_per_s(&self) -> f64 {
        let Rates { gops, gb_per_s } = &self.limit;
        self.n_tokens as f64 / self.cost.product_s(gops).max(self.cost.bytes / (gb_per_s * 1e9))
    }
}

/// The medians of at least one run.
fn row(work: &str, runs: &[Run]) -> BenchRow {
    let of = |figure: &dyn Fn(&Run) -> f64| median(runs.iter().map(figure).collect());
    let last = &runs[runs.len() - 1];
    BenchRow {
        work: work.to_owned(),
        n_tokens: last.n_tokens,
        seconds: of(&|run| run.seconds),
        tokens_per_s: of(&Run::tokens_per_s),
        n_computed_tokens: last.n_computed_tokens,
        limit_tokens_per_s: of(&Run::limit_tokens_per_s),
        share_of_limit: of(&|run| run.tokens_per_s() / run.limit_tokens_per_s()),
        gops: of(&|run| run.cost.ops.iter().sum::<f64>() / run.cost.product_s(&run.limit.gops) / 1e9),
        gb_per_s: of(&|run| run.limit.gb_per_s),
    }
}

/// Products and bytes of one run of a work.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Operations by kind of product, in the order of [`ProductKind::ALL`].
    ops: [f64; 3],
    bytes: f64,
}

impl Cost {
    /// Seconds of the products at rates of 10^9 operations a second.
    fn product_s(&self, gops: &[f64; 3]) -> f64 {
        self.ops.iter().zip(gops).map(|(ops, rate)| ops / (rate * 1e9)).sum()
    }
}

/// A work: what it costs at least, what comes before it and is not timed, and how it is done. Gives the tokens it did.
struct Work<'a> {
    name: String,
    cost: Box<dyn Fn(u64) -> Cost + 'a>,
    prepare: Box<dyn Fn() -> Result<()> + 'a>,
    run: Box<dyn Fn() -> Result<u64> + 'a>,
}

impl Local {
    /// Times prefill of 512 and 2,048 tokens (as far as the context goes), decoding alone and 16 at a time, and scoring.
    pub fn bench(&self, n_runs: usize, seed: u64, progress: &Progress, cancel: &Cancel) -> Result<BenchReport> {
        let probes = Probes::new(&self.decoder.device);
        let works = self.works(seed);
        progress.set_total((works.len() * n_runs) as u64);
        let mut rows = Vec::with_capacity(works.len());
        for work in works {
            let row = self.measure(&work, &probes, n_runs, progress, cancel)?;
            // With a large model the rest takes many minutes, and may be cut short.
            let share = 100.0 * row.share_of_limit;
            progress.message(&format!("{}: {:.1} tokens/s, {share:.0} % of the limit", row.work, row.tokens_per_s));
            rows.push(row);
        }
        let (model, dtype) = (self.identity.name.clone(), self.identity.dtype.clone());
        Ok(BenchReport { model, dtype, device: self.decoder.device.name(), n_runs, seed, rows })
    }

    fn measure(
        &self,
        work: &Work<'_>,
        probes: &Probes,
        n_runs: usize,
        progress: &Progress,
        cancel: &Cancel,
    ) -> Result<BenchRow> {
        (work.prepare)()?;
        (work.run)()?;
        let mut runs = Vec::with_capacity(n_runs);
        for _ in 0..n_runs.max(1) {
            cancel.check()?;
            self.free_prefixes(true);
            (work.prepare)()?;
            let before = probes.rates();
            let (n_before, start) = (self.counts().n_computed_tokens, Instant::now());
            let n_tokens = (work.run)()?;
            let seconds = start.elapsed().as_secs_f64();
            let n_computed_tokens = self.counts().n_computed_tokens - n_before;
            let limit = before.mean(probes.rates());
            runs.push(Run { n_tokens, n_computed_tokens, seconds, cost: (work.cost)(n_tokens), limit });
            progress.advance(1);
        }
        Ok(row(&work.name, &runs))
    }

    fn works(&self, seed: u64) -> Vec<Work<'_>> {
        let context = self.context_len();
        let mut works: Vec<Work<'_>> =
            [512, 2048].into_iter().filter(|&n| n < context).map(|n| self.prefill_work(n, seed)).collect();
        for (name, n, prompt_len) in
            [("decode, one stream after 128", 1, DECODE_PROMPT), ("decode, 16 streams after one 512", 16, 512)]
        {
            if prompt_len + N_NEW < context {
                works.push(self.decode_work(name, n, prompt_len, seed));
            }
        }
        if context > 700 {
            works.push(self.score_work(seed));
        }
        works
    }

    fn prefill_work(&self, n: usize, seed: u64) -> Work<'_> {
        let ids = self.random_ids(seed, "prefill", n);
        let run = move || {
            self.ask(GenerateRequest {
                id: "prefill".into(),
                prompt: Prompt::Ids(ids.clone()),
                n: 1,
                sampling: Sampling::greedy(1),
            })?;
            Ok(n as u64)
        };
        Work {
            name: format!("prefill, {n} tokens"),
            // A token sees half of the keys on average.
            cost: Box::new(move |_| self.cost(n, n / 2, 1, self.kv_bytes(n))),
            prepare: Box::new(|| Ok(())),
            run: Box::new(run),
        }
    }

    /// The prompt's keys and values are there before: of it only the last token is run, for the logits of the first drawn one.
    fn decode_work(&self, name: &str, n: usize, prompt_len: usize, seed: u64) -> Work<'_> {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::greedy(N_NEW) };
        let request = GenerateRequest {
            id: name.to_owned(),
            prompt: Prompt::Ids(self.random_ids(seed, name, prompt_len)),
            n,
            sampling,
        };
        let prompt_alone = GenerateRequest { n: 1, sampling: Sampling::greedy(1), ..request.clone() };
        let prepare = move || self.ask(prompt_alone.clone());
        let run = move || {
            let before = self.counts().n_drawn_tokens;
            self.ask(request.clone())?;
            Ok(self.counts().n_drawn_tokens - before)
        };
        // On average half of a stream's own tokens are there already; what the streams share is read once a pass.
        let cost = move |_| {
            let (n_seen, own) = (prompt_len + N_NEW / 2, self.kv_bytes(N_NEW / 2));
            self.cost(n, n_seen, n, self.kv_bytes(prompt_len) + n as f64 * own).times(N_NEW)
        };
        Work { name: name.to_owned(), cost: Box::new(cost), prepare: Box::new(prepare), run: Box::new(run) }
    }

    /// 16 questions of 100 tokens after 512 shared ones, each with 4 options of 5 tokens.
    fn score_work(&self, seed: u64) -> Work<'_> {
        let shared = self.random_ids(seed, "shots", 512);
        let request = |at: usize| ScoreRequest {
            id: at.to_string(),
            prompt: Prompt::Ids([&shared[..], &self.random_ids(seed, &format!("question {at}"), 100)].concat()),
            continuations: (0..4)
                .map(|o| Continuation::Ids(self.random_ids(seed, &format!("option {at} {o}"), 5)))
                .collect(),
        };
        let requests: Vec<ScoreRequest> = (0..16).map(request).collect();
        let run = move || {
            let before = self.counts().n_requested_tokens;
            self.score(&requests, &Progress::silent(), &Cancel::default())?;
            Ok(self.counts().n_requested_tokens - before)
        };
        let n_computed = 512 + 16 * (100 + 4 * 4);
        let cost = move |_| self.cost(n_computed, 512, 16 * (1 + 4 * 4), self.kv_bytes(512));
        let (name, prepare) = ("scoring, 16 x 4 options after 512".to_owned(), Box::new(|| Ok(())));
        Work { name, cost: Box::new(cost), prepare, run: Box::new(run) }
    }

    fn ask(&self, request: GenerateRequest) -> Result<()> {
        let entry = self.entry(&request, Manner { unstopped: true, ..Manner::default() })?;
        let results = self.run_entries(vec![entry], &Progress::silent(), &Cancel::default())?;
        match results.first().and_then(|result| result.completions.first()) {
            Some(_) => Ok(()),
            None => Err(Error::Request { id: "bench".into(), reason: "nothing was generated".into() }),
        }
    }

    /// One pass of `n` tokens, `n_heads` of which meet the vocabulary, each after `n_seen` others on average: two operations per
    /// weight and token, four per element of keys' heads and query. It reads all weights once, and `kv_bytes` of keys and values.
    fn cost(&self, n: usize, n_seen: usize, n_heads: usize, kv_bytes: f64) -> Cost {
        let (config, weights) = (&self.decoder.config, &self.decoder.weights);
        let mut ops = [0.0; 3];
        for (matrix, n_rows) in weights.layer_matrices().map(|matrix| (matrix, n)).chain([(&weights.head, n_heads)]) {
            ops[kind_of(matrix) as usize] += 2.0 * (n_rows * matrix.out_features() * matrix.in_features()) as f64;
        }
        let heads = config.num_attention_heads * config.head_dim;
        ops[dense_kind(self.decoder.dtype) as usize] += 4.0 * (config.num_hidden_layers * n * n_seen * heads) as f64;
        Cost { ops, bytes: weights.streamed_nbytes() as f64 + kv_bytes }
    }

    /// Bytes of the keys and values of `n` tokens, without the rest of a page.
    fn kv_bytes(&self, n: usize) -> f64 {
        let page = aloe_model::KvCache::PAGE;
        (n * aloe_model::KvCache::bytes_of(&self.decoder, page)) as f64 / page as f64
    }

    fn random_ids(&self, seed: u64, name: &str, n: usize) -> Vec<u32> {
        let mut rng = CounterRng::new(seed, &format!("bench/{name}"), 0);
        (0..n).map(|_| rng.below(self.decoder.config.vocab_size) as u32).collect()
    }
}

/// The most floating point operations a second of products in `dtype` on this device: the fastest of many runs in 0.2 s.
pub fn peak_flops(device: &Device, dtype: Dtype) -> f64 {
    let (start, mut best) = (Instant::now(), 0.0f64);
    while start.elapsed().as_secs_f64() < 0.2 {
        best = best.max(product_gops(device, dense_kind(dtype)));
    }
    best * 1e9
}

/// 10^9 operations a second of products of a kind, in registers.
fn product_gops(device: &Device, kind: ProductKind) -> f64 {
    let mut n_ops = 0.0;
    let seconds = fastest(10, || n_ops = run_products(device, kind, Probes::ROUNDS));
    n_ops / seconds / 1e9
}

impl Cost {
    /// The cost of `n` such passes.
    fn times(self, n: usize) -> Self {
        Self { ops: self.ops.map(|ops| n as f64 * ops), bytes: n as f64 * self.bytes }
    }
}

/// The products that a matrix is multiplied by: blocks meet rows that are rounded to bytes.
fn kind_of(matrix: &Linear) -> ProductKind {
    if matrix.block_format().is_some() { ProductKind::Int8 } else { dense_kind(matrix.dtype()) }
}

fn dense_kind(dtype: Dtype) -> ProductKind {
    match dtype {
        Dtype::F32 => ProductKind::F32,
        Dtype::Bf16 => ProductKind::Bf16,
    }
}

/// What the machine can do now.
struct Probes {
    device: Device,
    memory: ReadProbe,
}

impl Probes {
    const MEMORY_BYTES: usize = 256 << 20;

    /// Steps of a run of products: half a millisecond, long beside the waking of a thread.
    const ROUNDS: usize = 40_000;

    fn new(device: &Device) -> Self {
        Self { device: device.clone(), memory: ReadProbe::new(device, Self::MEMORY_BYTES) }
    }

    fn rates(&self) -> Rates {
        let seconds = fastest(3, || self.memory.read(&self.device));
        let gops = ProductKind::ALL.map(|kind| product_gops(&self.device, kind));
        Rates { gops, gb_per_s: self.memory.nbytes() as f64 / seconds / 1e9 }
    }
}

/// What the probes found: 10^9 operations a second by kind of product, in the order of [`ProductKind::ALL`], and 10^9 bytes read.
struct Rates {
    gops: [f64; 3],
    gb_per_s: f64,
}

impl Rates {
    fn mean(self, other: Self) -> Self {
        let gops = std::array::from_fn(|kind| (self.gops[kind] + other.gops[kind]) / 2.0);
        Self { gops, gb_per_s: (self.gb_per_s + other.gb_per_s) / 2.0 }
    }
}

fn fastest(n: usize, mut body: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..n {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{folder, open};
    use crate::{Engine, WeightFormat};

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }

    /// By hand: 100 tokens that read 80 GB and whose products are never the limit. Memory gave 40 GB/s beside two runs, 20 beside one
    /// and fell from 40 to 20 in the middle of one; each run took twice what reading alone takes.
    #[test]
    fn a_share_is_of_what_memory_gave_beside_its_own_run() {
        let rates = |gb_per_s| Rates { gops: [1e9; 3], gb_per_s };
        let cost = Cost { ops: [1.0; 3], bytes: 80e9 };
        let run = |seconds, before, after| {
            let limit = rates(before).mean(rates(after));
            Run { n_tokens: 100, n_computed_tokens: 101, seconds, cost, limit }
        };
        let runs = [run(4.0, 40.0, 40.0), run(4.0, 40.0, 40.0), run(16.0 / 3.0, 40.0, 20.0), run(8.0, 20.0, 20.0)];
        let found = row("reading", &runs);
        assert_eq!((found.n_tokens, found.n_computed_tokens, found.share_of_limit), (100, 101, 0.5));
        // The upper middle one of each.
        assert_eq!((found.seconds, found.tokens_per_s), (16.0 / 3.0, 25.0));
        assert_eq!((found.limit_tokens_per_s, found.gb_per_s), (50.0, 40.0));
    }

    /// By hand, stories260K: D 64, 5 layers of 64 x 8 x (2 x 8 + 2 x 4) + 3 x 64 x 172 = 45,312 elements, head 512 x 64; a stream of
    /// 128 after 128 sees 192 keys on average. Its 128 passes read the weights, of which widths of 172 are padded to 192, and 5 layers
    /// of 2 x 4 heads of 8 elements a key.
    #[test]
    fn the_cost_of_a_work_is_counted_by_hand_and_a_stream_draws_128_tokens_whatever_they_are() {
        let Some(folder) = folder() else { return };
        let check = |format: WeightFormat, at: [usize; 2], bytes_per_weight: f64, key_bytes: f64| {
            let Engine::Local(local) = open(&folder, format, 1, None) else { panic!("a folder") };
            let works = local.works(7);
            assert_eq!(works.len(), 1, "the context of 512 has room for one stream only");
            let cost = (works[0].cost)(0);
            let mut expected = [0.0; 3];
            expected[at[0]] += 128.0 * 2.0 * (5.0 * 45_312.0 + 512.0 * 64.0);
            expected[at[1]] += 128.0 * 4.0 * 5.0 * 192.0 * 64.0;
            assert_eq!(cost.ops, expected, "{format:?}");
            // The 8 elements of a key lie close, those of a value in 32 lanes.
            let (weights, by_hand) = (local.decoder.weights.streamed_nbytes() as f64, 259_328.0 * bytes_per_weight);
            assert!((by_hand..1.25 * by_hand).contains(&weights), "{format:?}: {weights} against {by_hand}");
            assert_eq!(cost.bytes / 128.0 - weights, 192.0 * 5.0 * 4.0 * (8.0 + 32.0) * key_bytes, "{format:?}");
            assert_eq!(local.bench(1, 7, &Progress::silent(), &Cancel::default()).unwrap().rows[0].n_tokens, 128);
            assert_ne!(local.random_ids(7, "x", 20), local.random_ids(8, "x", 20));
        };
        check(WeightFormat::Dense(Dtype::F32), [0, 0], 4.0, 4.0);
        // In twelve bits a number where products of bf16 are there.
        let bf16 = if aloe_tensor::Isa::best().pairs_bf16() { 1.5 } else { 2.0 };
        check(WeightFormat::Dense(Dtype::Bf16), [1, 1], bf16, 2.0);
        check(WeightFormat::Q8, [2, 1], 34.0 / 32.0, 2.0);
    }

    /// A share is a share of the machine: no kernel of ours is faster than the probe of its products, whatever else runs here.
    #[test]
    fn our_product_in_cache_does_not_beat_the_probe_of_its_kind() {
        let device = Device::cpu(1);
        let x = aloe_tensor::Tensor::from_f32(&[240, 512], vec![0.25; 240 * 512]);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let weight = aloe_tensor::Tensor::from_f32(&[512, 512], vec![0.5; 512 * 512]);
            let layer = Linear::new(weight.cast(dtype), None);
            let share = || {
                let seconds = fastest(20, || drop(aloe_tensor::ops::linear(&device, &x, &layer)));
                2.0 * (240 * 512 * 512) as f64 / seconds / 1e9 / product_gops(&device, kind_of(&layer))
            };
            // The better of three: both are the fastest of several runs, but the machine is shared.
            let shares = [share(), share(), share()];
            assert!(shares.iter().copied().fold(f64::INFINITY, f64::min) < 1.05, "{dtype:?}: {shares:?}");
        }
    }
}
