//! Tokens per second and peak memory of training, prefill and decoding: `speed MODEL [f32|bf16|q8|q4|gguf] [tokens] [threads]`;
//! with 0 tokens nothing is trained, and the weights are held as for answers alone; weights in blocks never are trained.
//!
//! Beside wall time it prints processor time, which with one thread is comparable on a busy machine too.
//! Fixed input: ids by formula. For the dated figures in LOG.md; not part of the product.
#![expect(clippy::print_stdout, reason = "a measuring program prints")]

use aloe_model::testing::fill;
use aloe_model::{Decoder, Grads, Keep, KvCache, ModelSource, PackedBatch, Params, WeightFormat};
use aloe_tensor::{Device, Dtype, ops};
use std::path::Path;
use std::time::Instant;

fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Processor seconds of this process so far, in the kernel's ticks of 10 ms.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or("");
    after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
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
        let (start, mut cpu) = (Instant::now(), vec![cpu_s()]);
        let rows: Vec<usize> = batch.pieces.iter().flat_map(|piece| piece.start..piece.end - 1).collect();
        let targets: Vec<u32> = rows.iter().map(|&row| batch.ids[row + 1]).collect();
        let activations = decoder.forward_train(batch, Keep::All)?;
        let held_mb = activations.nbytes() >> 20;
        cpu.push(cpu_s());
        let found = decoder.token_logps(&activations.hidden, rows, targets);
        let dlogps = vec![-1.0 / found.logps.len() as f32; found.logps.len()];
        let dhidden = decoder.token_logps_backward(&activations.hidden, &found, &dlogps, &mut grads);
        cpu.push(cpu_s());
        decoder.backward(activations, &dhidden, &mut grads);
        cpu.push(cpu_s());
        decoder.refresh(&params);
        cpu.push(cpu_s());
        let rate = n as f64 / start.elapsed().as_secs_f64();
        let phases: Vec<String> = cpu.windows(2).map(|pair| format!("{:.2}", pair[1] - pair[0])).collect();
        println!(
            "train {round}: {rate:.0} tok/s; {:.0} tok per processor second (forward, head, backward, refresh: {} s); \
             activations {held_mb} MB, peak {} MB",
            n as f64 / (cpu[4] - cpu[0]),
            phases.join(", "),
            peak_mb()
        );
    }
    Ok(())
}

fn generate(decoder: &Decoder, b: usize) -> aloe_model::Result<()> {
    let prompt = ids("prompt", 512, decoder.config.vocab_size);
    let mut trunk = KvCache::new(decoder);
    let (start, cpu) = (Instant::now(), cpu_s());
    let logits = decoder.prefill(&[&prompt], &mut [&mut trunk])?;
    report("prefill 512", 512, start, cpu);
    let mut caches: Vec<KvCache> = (0..b).map(|_| trunk.fork()).collect();
    let mut next = vec![ops::argmax_rows(&decoder.device, &logits)[0]; b];
    let (start, cpu) = (Instant::now(), cpu_s());
    let steps = if b == 1 { 128 } else { 32 };
    for _ in 0..steps {
        let logits = decoder.decode_step(&next, &mut caches.iter_mut().collect::<Vec<_>>())?;
        next = ops::argmax_rows(&decoder.device, &logits);
    }
    report(&format!("decode batch {b}"), steps * b, start, cpu);
    Ok(())
}

fn report(what: &str, n: usize, start: Instant, cpu: f64) {
    let (wall, cpu) = (n as f64 / start.elapsed().as_secs_f64(), n as f64 / (cpu_s() - cpu));
    println!("{what}: {wall:.1} tok/s, {cpu:.1} tok per processor second");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: speed MODEL [f32|bf16|q8|q4|gguf] [tokens] [threads]")?;
    let format = match args.next().as_deref() {
        Some("f32") => WeightFormat::Dense(Dtype::F32),
        None | Some("bf16") => WeightFormat::Dense(Dtype::Bf16),
        Some("q8") => WeightFormat::Q8,
        Some("q4") => WeightFormat::Q4,
        Some("gguf") => WeightFormat::Stored,
        Some(other) => return Err(format!("no weight format is called {other}").into()),
    };
    let n = args.next().map_or(Ok(2048), |n| n.parse())?;
    let threads = args.next().map_or(Ok(0), |n| n.parse())?;
    let source = ModelSource::open(Path::new(&path))?;
    let open = if n > 0 { Decoder::open_as } else { Decoder::open_to_answer };
    let mut decoder = open(&source, format, &Device::cpu(threads))?;
    println!("{}, {}; loaded, {} MB", decoder.device.name(), format.name(), peak_mb());
    for b in [1, 16] {
        generate(&decoder, b)?;
    }
    if n > 0 && matches!(format, WeightFormat::Dense(_)) {
        train(&source, &mut decoder, n)?;
    }
    Ok(())
}
