//! How fast a local model works on this machine, beside what the machine could do at most.
//!
//! Each work is timed in turn with two probes, a product of matrices that stay in the cache and a plain read of memory, because
//! machines are shared and their speed changes; medians count. The limit of a work is the time its products take at the probe's
//! rate, or its bytes at the probe's bandwidth, whichever is longer. Prompts are random ids: no text is needed.

use crate::{Continuation, Error, GenerateRequest, Local, Prompt, Result, Sampling, ScoreRequest};
use aloe_record::{Cancel, CounterRng, Progress};
use aloe_tensor::{BlockFormat, Device, Dtype, Linear, ReadProbe, Tensor, ops};
use serde::Serialize;
use std::time::Instant;

/// Tokens of the prompt that decoding continues.
const DECODE_PROMPT: usize = 128;

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
    /// Tokens a second if the products ran at the probe's rate and the bytes at its bandwidth.
    pub limit_tokens_per_s: f64,
    /// `tokens_per_s / limit_tokens_per_s`.
    pub share_of_limit: f64,
    /// The product probe beside this work, 10^9 floating point operations a second.
    pub gflops: f64,
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
    /// The works.
    pub rows: Vec<BenchRow>,
}

/// Products and bytes of one run of a work.
#[derive(Clone, Copy, Default)]
struct Cost {
    flops: f64,
    bytes: f64,
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
    pub fn bench(&self, n_runs: usize, progress: &Progress, cancel: &Cancel) -> Result<BenchReport> {
        let probes = Probes::new(&self.decoder.device, &self.decoder.weights.layers[0].down, self.decoder.dtype);
        let works = self.works();
        progress.set_total((works.len() * n_runs) as u64);
        let mut rows = Vec::with_capacity(works.len());
        for work in works {
            rows.push(self.measure(&work, &probes, n_runs, progress, cancel)?);
        }
        let (model, dtype) = (self.identity.name.clone(), self.identity.dtype.clone());
        Ok(BenchReport { model, dtype, device: self.decoder.device.name(), n_runs, rows })
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
        let (mut seconds, mut gflops, mut gb_per_s) = (Vec::new(), Vec::new(), Vec::new());
        let (mut n_tokens, mut n_computed) = (0, 0);
        for _ in 0..n_runs.max(1) {
            cancel.check()?;
            gflops.push(probes.gflops());
            gb_per_s.push(probes.gb_per_s());
            self.free_prefixes(true);
            (work.prepare)()?;
            let before = self.counts().n_computed_tokens;
            let start = Instant::now();
            n_tokens = (work.run)()?;
            seconds.push(start.elapsed().as_secs_f64());
            n_computed = self.counts().n_computed_tokens - before;
            progress.advance(1);
        }
        let (seconds, gflops, gb_per_s) = (median(seconds), median(gflops), median(gb_per_s));
        let cost = (work.cost)(n_tokens);
        let at_least_s = (cost.flops / (gflops * 1e9)).max(cost.bytes / (gb_per_s * 1e9));
        let (tokens_per_s, limit_tokens_per_s) = (n_tokens as f64 / seconds, n_tokens as f64 / at_least_s);
        Ok(BenchRow {
            work: work.name.clone(),
            n_tokens,
            seconds,
            tokens_per_s,
            n_computed_tokens: n_computed,
            limit_tokens_per_s,
            share_of_limit: tokens_per_s / limit_tokens_per_s,
            gflops,
            gb_per_s,
        })
    }

    fn works(&self) -> Vec<Work<'_>> {
        let context = self.context_len();
        let mut works: Vec<Work<'_>> =
            [512, 2048].into_iter().filter(|&n| n < context).map(|n| self.prefill_work(n)).collect();
        for (name, n, prompt_len, n_new) in
            [("decode, one stream after 128", 1, DECODE_PROMPT, 64), ("decode, 16 streams after one 512", 16, 512, 64)]
        {
            if prompt_len + n_new < context {
                works.push(self.decode_work(name, n, prompt_len, n_new));
            }
        }
        if context > 700 {
            works.push(self.score_work());
        }
        works
    }

    fn prefill_work(&self, n: usize) -> Work<'_> {
        let ids = self.random_ids("prefill", n);
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
            cost: Box::new(move |_| self.cost(n, n, 1, 1)),
            prepare: Box::new(|| Ok(())),
            run: Box::new(run),
        }
    }

    /// The prompt's keys and values are there before: of it only the last token is run, for the logits of the first drawn one.
    fn decode_work(&self, name: &str, n: usize, prompt_len: usize, n_new: usize) -> Work<'_> {
        let sampling = Sampling { temperature: 1.0, seed: 1, ..Sampling::greedy(n_new) };
        let request = GenerateRequest {
            id: name.to_owned(),
            prompt: Prompt::Ids(self.random_ids(name, prompt_len)),
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
        let cost = move |n_tokens: u64| self.cost(n, prompt_len, n, (n_tokens as usize).div_ceil(n));
        Work { name: name.to_owned(), cost: Box::new(cost), prepare: Box::new(prepare), run: Box::new(run) }
    }

    /// 16 questions of 100 tokens after 512 shared ones, each with 4 options of 5 tokens.
    fn score_work(&self) -> Work<'_> {
        let shared = self.random_ids("shots", 512);
        let request = |at: usize| ScoreRequest {
            id: at.to_string(),
            prompt: Prompt::Ids([&shared[..], &self.random_ids(&format!("question {at}"), 100)].concat()),
            continuations: (0..4).map(|o| Continuation::Ids(self.random_ids(&format!("option {at} {o}"), 5))).collect(),
        };
        let requests: Vec<ScoreRequest> = (0..16).map(request).collect();
        let run = move || {
            let before = self.counts().n_requested_tokens;
            self.score(&requests, &Progress::silent(), &Cancel::default())?;
            Ok(self.counts().n_requested_tokens - before)
        };
        let n_computed = 512 + 16 * (100 + 4 * 4);
        let cost = move |_| self.cost(n_computed, 512, 16 * (1 + 4 * 4), 1);
        let (name, prepare) = ("scoring, 16 x 4 options after 512".to_owned(), Box::new(|| Ok(())));
        Work { name, cost: Box::new(cost), prepare, run: Box::new(run) }
    }

    fn ask(&self, request: GenerateRequest) -> Result<()> {
        let results = self.generate(&[request], &Progress::silent(), &Cancel::default())?;
        match results.first().and_then(|result| result.completions.first()) {
            Some(_) => Ok(()),
            None => Err(Error::Request { id: "bench".into(), reason: "nothing was generated".into() }),
        }
    }

    /// `n_passes` passes of `n` tokens, `n_heads` of which meet the vocabulary, each after about `n_keys` others: two operations
    /// per weight and token, four per element of keys' heads and query; every pass reads all weights and the keys once.
    fn cost(&self, n: usize, n_keys: usize, n_heads: usize, n_passes: usize) -> Cost {
        let config = &self.decoder.config;
        let (d, f, e) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (h, k) = (config.num_attention_heads, config.num_key_value_heads);
        let per_layer = d * e * (2 * h + 2 * k) + 3 * d * f;
        // A prefill's token sees half of the keys on average.
        let seen = if n == n_keys { n_keys / 2 } else { n_keys };
        let layers = 2 * n * per_layer + 4 * n * seen * h * e;
        let flops = (config.num_hidden_layers * layers + 2 * n_heads * d * config.vocab_size) as f64;
        let cached = aloe_model::KvCache::bytes_of(&self.decoder, n_keys);
        let bytes = (self.decoder.weights.nbytes() + cached) as f64;
        Cost { flops: flops * n_passes as f64, bytes: bytes * n_passes as f64 }
    }

    fn random_ids(&self, name: &str, n: usize) -> Vec<u32> {
        let mut rng = CounterRng::new(0, &format!("bench/{name}"), 0);
        (0..n).map(|_| rng.below(self.decoder.config.vocab_size) as u32).collect()
    }
}

/// The most floating point operations a second of a matrix product in `dtype` on this device: the fastest of many in 0.2 s.
pub fn peak_flops(device: &Device, dtype: Dtype) -> f64 {
    let (n, k, o) = Probes::SHAPE;
    let layer = Linear::new(Tensor::from_f32(&[o, k], vec![0.5; o * k]).cast(dtype), None);
    let x = Tensor::from_f32(&[n, k], vec![0.25; n * k]);
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < 0.2 {
        best = best.min(fastest(5, || drop(ops::linear(device, &x, &layer))));
    }
    2.0 * (n * k * o) as f64 / best
}

/// What the machine can do now.
struct Probes {
    device: Device,
    x: Tensor,
    layer: Linear,
    memory: ReadProbe,
}

impl Probes {
    /// 240 x 512 x 512: panels and rows stay in the second-level caches.
    const SHAPE: (usize, usize, usize) = (240, 512, 512);
    const MEMORY_BYTES: usize = 256 << 20;

    /// The product is of the form of the model's layers.
    fn new(device: &Device, like: &Linear, dtype: Dtype) -> Self {
        let (n, k, o) = Self::SHAPE;
        let weight = Tensor::from_f32(&[o, k], vec![0.5; o * k]);
        let read = |_: usize, row: &mut [f32]| row.fill(0.5);
        let layer = match like.block_format() {
            None => Linear::new(weight.cast(dtype), None),
            Some(BlockFormat::Q8_0) => Linear::quantize(device, [o, k], &read, BlockFormat::Q8_0, None),
            Some(_) => Linear::quantize(device, [o, k], &read, BlockFormat::Q4_0, None),
        };
        let x = Tensor::from_f32(&[n, k], vec![0.25; n * k]);
        Self { device: device.clone(), x, layer, memory: ReadProbe::new(device, Self::MEMORY_BYTES) }
    }

    fn gflops(&self) -> f64 {
        let (n, k, o) = Self::SHAPE;
        let seconds = fastest(20, || drop(ops::linear(&self.device, &self.x, &self.layer)));
        2.0 * (n * k * o) as f64 / seconds / 1e9
    }

    fn gb_per_s(&self) -> f64 {
        let seconds = fastest(3, || self.memory.read(&self.device));
        self.memory.nbytes() as f64 / seconds / 1e9
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

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
