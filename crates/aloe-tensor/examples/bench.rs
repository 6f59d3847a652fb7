//! Prints GFLOP/s of the matrix products and of attention on this machine: `cargo run --release -p aloe-tensor --example bench`.
//!
//! The shapes are those of SmolLM2-135M and of a 7B layer. Best of the repetitions: the machine may be shared.
#![expect(clippy::print_stdout, reason = "a bench reports by printing")]

use aloe_tensor::ops::{attention, attention_backward, linear, linear_grad_input, linear_grad_weight};
use aloe_tensor::{AttentionInputs, AttentionPlan, Device, Dtype, Linear, Tensor};
use std::time::Instant;

fn filled(shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    Tensor::from_f32(shape, (0..n).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 504.0).collect())
}

/// Seconds this thread has had on a processor: on a shared machine the fair clock of a single-threaded run.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn report(name: &str, flop: f64, mut body: impl FnMut()) {
    body();
    let start = Instant::now();
    let (mut best, mut runs, busy) = (f64::INFINITY, 0, processor_s());
    while runs < 3 || (start.elapsed().as_secs_f64() < 0.5 && runs < 2000) {
        let begin = Instant::now();
        body();
        best = best.min(begin.elapsed().as_secs_f64());
        runs += 1;
    }
    let busy = (processor_s() - busy) / runs as f64;
    let (wall, cpu) = (flop / best / 1e9, flop / busy / 1e9);
    println!(
        "{name:44} best {:9.3} ms {wall:7.1} GFLOP/s; caller's processor time {:9.3} ms {cpu:7.1}",
        best * 1e3,
        busy * 1e3
    );
}

fn products(device: &Device, dtype: Dtype) {
    for (m, n, k) in [
        (1024, 1536, 576),
        (1024, 576, 1536),
        (1024, 192, 576),
        (16, 49152, 576),
        (1, 49152, 576),
        (1, 1536, 576),
        (2048, 4096, 4096),
    ] {
        let (x, w) = (filled(&[m, k]), Linear::new_on(device, filled(&[n, k]).cast(dtype), None));
        let flop = 2.0 * (m * n * k) as f64;
        report(&format!("{dtype:?} linear {m} x {n} x {k}"), flop, || drop(linear(device, &x, &w)));
        if m > 16 {
            let dy = filled(&[m, n]);
            report("  gradient of the input", flop, || drop(linear_grad_input(device, &dy, &w)));
            let mut dw = Tensor::zeros(&[n, k], Dtype::F32);
            report("  gradient of the weight", flop, || linear_grad_weight(device, &dy, &x, dtype, &mut dw, None));
        }
    }
}

fn attend(device: &Device, t: usize) {
    let (h, k, e) = (9, 3, 64);
    let (q, kv) = (filled(&[t, h, e]), filled(&[t, k, e]));
    let plan = AttentionPlan::causal(&[t]);
    // Two products forward and five backward over the lower triangle.
    let product = (t * t * h * e) as f64;
    let (o, lse) = attention(device, &q, &kv, &kv, &plan, 0.125);
    report(&format!("attention {t}, H=9 K=3 E=64"), 2.0 * product, || {
        drop(attention(device, &q, &kv, &kv, &plan, 0.125))
    });
    let inputs = AttentionInputs { q: &q, k: &kv, v: &kv, o: &o, lse: &lse };
    report("  backward", 5.0 * product, || drop(attention_backward(device, &q, &inputs, &plan, 0.125)));
}

fn main() {
    let threads = std::env::args().find_map(|a| a.strip_prefix("threads=")?.parse().ok());
    let device = Device::cpu(threads.unwrap_or(0));
    println!("{}", device.name());
    attend(&device, 512);
    attend(&device, 2048);
    products(&device, Dtype::Bf16);
    products(&device, Dtype::F32);
}
