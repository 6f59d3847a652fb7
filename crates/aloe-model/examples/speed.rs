//! Tokens per second and peak memory of training, prefill and decoding: `speed MODEL [f32|bf16] [tokens]`.
//!
//! Fixed input: ids by formula. For the dated figures in LOG.md; not part of the product.
#![expect(clippy::print_stdout, reason = "a measuring program prints")]

use aloe_model::testing::fill;
use aloe_model::{Decoder, Grads, KvCache, ModelSource, PackedBatch, Params};
use aloe_tensor::{Device, Dtype, ops};
use std::path::Path;
use std::time::Instant;

fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn ids(name: &str, n: usize, vocab: usize) -> Vec<u32> {
    fill(name, n).into_iter().map(|v| ((v + 1.0) * 0.5 * vocab as f32) as u32).collect()
}

fn train(source: &ModelSource, decoder: &mut Decoder, n: usize) -> aloe_model::Result<()> {
    let params = Params::load(source)?;
    let mut grads = Grads::zeros(&params.config);
    let documents: Vec<Vec<u32>> = (0..4).map(|i| ids(&format!("row {i}"), n / 4, params.config.vocab_size)).collect();
    for round in 0..4 {
        let batch = PackedBatch::from_documents(&documents.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let start = Instant::now();
        let rows: Vec<usize> = batch.pieces.iter().flat_map(|piece| piece.start..piece.end - 1).collect();
        let targets: Vec<u32> = rows.iter().map(|&row| batch.ids[row + 1]).collect();
        let activations = decoder.forward_train(batch)?;
        let (forward_s, held_mb) = (start.elapsed().as_secs_f64(), activations.nbytes() >> 20);
        let found = decoder.token_logps(&activations.hidden, rows, targets);
        let dlogps = vec![-1.0 / found.logps.len() as f32; found.logps.len()];
        let dhidden = decoder.token_logps_backward(&activations.hidden, &found, &dlogps, &mut grads);
        let head_s = start.elapsed().as_secs_f64() - forward_s;
        decoder.backward(activations, &dhidden, &mut grads);
        let backward_s = start.elapsed().as_secs_f64() - forward_s - head_s;
        decoder.refresh(&params);
        let all_s = start.elapsed().as_secs_f64();
        let rate = n as f64 / all_s;
        println!(
            "train {round}: {rate:.0} tok/s (forward {forward_s:.2} s, head {head_s:.2}, backward {backward_s:.2}, \
             refresh {:.2}); activations {held_mb} MB, peak {} MB",
            all_s - forward_s - head_s - backward_s,
            peak_mb()
        );
    }
    Ok(())
}

fn generate(decoder: &Decoder, b: usize) -> aloe_model::Result<()> {
    let prompt = ids("prompt", 512, decoder.config.vocab_size);
    let mut trunk = KvCache::new(decoder);
    let start = Instant::now();
    let logits = decoder.prefill(&[&prompt], &mut [&mut trunk])?;
    println!("prefill 512: {:.0} tok/s", 512.0 / start.elapsed().as_secs_f64());
    let mut caches: Vec<KvCache> = (0..b).map(|_| trunk.fork()).collect();
    let mut next = vec![ops::argmax_rows(&decoder.device, &logits)[0]; b];
    let start = Instant::now();
    for _ in 0..32 {
        let logits = decoder.decode_step(&next, &mut caches.iter_mut().collect::<Vec<_>>())?;
        next = ops::argmax_rows(&decoder.device, &logits);
    }
    println!("decode batch {b}: {:.0} tok/s", (32 * b) as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: speed MODEL [f32|bf16] [tokens]")?;
    let dtype = if args.next().as_deref() == Some("f32") { Dtype::F32 } else { Dtype::Bf16 };
    let n = args.next().map_or(Ok(2048), |n| n.parse())?;
    let source = ModelSource::open(Path::new(&path))?;
    let mut decoder = Decoder::open(&source, dtype, &Device::cpu(0))?;
    println!("{}, {dtype:?}; loaded, {} MB", decoder.device.name(), peak_mb());
    for b in [1, 16] {
        generate(&decoder, b)?;
    }
    train(&source, &mut decoder, n)?;
    Ok(())
}
