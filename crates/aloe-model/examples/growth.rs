//! How time and memory grow with the length of the prompt, the number of streams and the streams alive: `growth MODEL [threads]`.
//!
//! Each figure is the fastest of some runs, since other work on the machine only ever adds time. Prompts are ids by formula. For the
//! dated table in LOG.md; not part of the product.
#![expect(clippy::print_stdout, reason = "a measuring program prints")]

use aloe_model::testing::fill;
use aloe_model::{Decoder, KvCache, ModelSource, WeightFormat};
use aloe_tensor::{Device, Dtype, ops};
use std::path::Path;
use std::time::Instant;

const RUNS: usize = 5;

fn ids(n: usize, vocab: usize) -> Vec<u32> {
    fill("prompt", n).into_iter().map(|v| ((v + 1.0) * 0.5 * vocab as f32) as u32).collect()
}

/// Resident memory now.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn fastest(runs: usize, mut body: impl FnMut() -> aloe_model::Result<()>) -> aloe_model::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        body()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Seconds of one step of `caches`, which grow by a token each time.
fn step(decoder: &Decoder, caches: &mut [KvCache]) -> aloe_model::Result<f64> {
    let mut next = vec![1; caches.len()];
    fastest(4 * RUNS, || {
        let logits = decoder.decode_step(&next, &mut caches.iter_mut().collect::<Vec<_>>())?;
        next = ops::argmax_rows(&decoder.device, &logits);
        Ok(())
    })
}

fn by_length(decoder: &Decoder) -> aloe_model::Result<()> {
    println!("| prompt | prefill, microseconds a token | then one step, ms | cache, MiB |\n|---|---|---|---|");
    let longest = decoder.config.max_position_embeddings;
    for n in [128, 256, 512, 1024, 2048, 4096, 8192].into_iter().filter(|&n| n <= longest) {
        let n = n.min(longest - 4 * RUNS);
        let prompt = ids(n, decoder.config.vocab_size);
        let mut cache = KvCache::new(decoder);
        let seconds = fastest(RUNS, || {
            cache = KvCache::new(decoder);
            decoder.prefill(&[&prompt], &mut [&mut cache]).map(drop)
        })?;
        let mib = KvCache::bytes_of(decoder, n) as f64 / 1_048_576.0;
        let step_ms = step(decoder, std::slice::from_mut(&mut cache))? * 1e3;
        println!("| {n} | {:.0} | {step_ms:.2} | {mib:.1} |", seconds / n as f64 * 1e6);
    }
    Ok(())
}

fn by_streams(decoder: &Decoder) -> aloe_model::Result<()> {
    println!(
        "\n| streams of one prompt of 512 | a step, ms | tokens/s | streams of their own prompts of 512: a step, ms | tokens/s | resident, MiB |"
    );
    println!("|---|---|---|---|---|---|");
    let prompt = ids(512, decoder.config.vocab_size);
    for b in [1, 2, 4, 8, 16, 32, 64] {
        let mut trunk = KvCache::new(decoder);
        decoder.prefill(&[&prompt], &mut [&mut trunk])?;
        let mut shared: Vec<KvCache> = (0..b).map(|_| trunk.fork()).collect();
        let together = step(decoder, &mut shared)?;
        drop((shared, trunk));
        let mut own: Vec<KvCache> = (0..b).map(|_| KvCache::new(decoder)).collect();
        for cache in &mut own {
            decoder.prefill(&[&prompt], &mut [cache])?;
        }
        let apart = step(decoder, &mut own)?;
        let rate = |seconds: f64| b as f64 / seconds;
        println!(
            "| {b} | {:.2} | {:.0} | {:.2} | {:.0} | {:.0} |",
            together * 1e3,
            rate(together),
            apart * 1e3,
            rate(apart),
            resident_mib()
        );
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: growth MODEL [threads]")?;
    let threads = args.next().map_or(Ok(0), |n| n.parse())?;
    let (source, format) = (ModelSource::open(Path::new(&path))?, WeightFormat::Dense(Dtype::Bf16));
    let decoder = Decoder::open_to_answer(&source, format, &Device::cpu(threads))?;
    println!("{}; loaded, {:.0} MiB\n", decoder.device.name(), resident_mib());
    by_length(&decoder)?;
    by_streams(&decoder)?;
    Ok(())
}
