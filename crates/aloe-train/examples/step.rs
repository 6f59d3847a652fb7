//! Seconds, tokens a second, share of the processor's limit and peak memory of a full training step:
//! `step MODEL [dtype=bf16] [rows=2] [tokens=512] [threads=0] [warmup=2] [steps=5] [recompute] [lora=RANK [base=q8]] [json]`.
//!
//! MODEL is a checkpoint folder or GGUF file; of a folder with nothing but a config.json the weights are made by formula. Input: random
//! tokens, all but the first of each row trained on. The limit is that of `aloe bench`: products of registers, the fastest of 10 runs
//! before and after the steps. With `lora` all seven matrices of each layer get updates beside frozen weights, held in
//! dtype or in 8-bit blocks; frozen weights have no gradient, so a third less work is counted. For the dated figures in LOG.md and
//! `oracles/training_peers.py`.
#![expect(clippy::print_stdout, reason = "a measuring program prints")]

use aloe_model::testing::formula_params;
use aloe_model::{Config, Keep, ModelSource, Params};
use aloe_tensor::{Device, ProductKind, run_products};
use aloe_train::{LoraBase, LoraConfig, StepWork, TrainDtype, time_lora_steps, time_steps};
use std::path::Path;
use std::time::Instant;

#[global_allocator]
static HEAP: aloe_tensor::Heap = aloe_tensor::Heap;

fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// 10^9 operations a second of products in registers.
fn limit_gflops(device: &Device, kind: ProductKind) -> f64 {
    let once = |_| {
        let start = Instant::now();
        let n_ops = run_products(device, kind, 1 << 16);
        n_ops / start.elapsed().as_secs_f64()
    };
    (0..10).map(once).fold(0.0, f64::max) / 1e9
}

fn params(path: &Path) -> Result<Params, Box<dyn std::error::Error>> {
    if path.is_dir() && !path.join("model.safetensors").exists() && !path.join("model.safetensors.index.json").exists()
    {
        let text = std::fs::read_to_string(path.join("config.json"))?;
        let config = Config::from_json(&serde_json::from_str(&text)?)?;
        return Ok(formula_params(&config, 1));
    }
    Ok(Params::load(&ModelSource::open(path)?)?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = args.first().ok_or("usage: step MODEL [dtype=bf16] [rows=2] [tokens=512] [recompute] [json]")?;
    let value = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str, default: usize| value(name).map_or(Ok(default), str::parse);
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let dtype = if value("dtype") == Some("f32") { TrainDtype::F32 } else { TrainDtype::Bf16 };
    let work = StepWork {
        dtype,
        keep: if has("recompute") { Keep::Inputs } else { Keep::All },
        rows: number("rows", 2)?,
        tokens: number("tokens", 512)?,
        warmup: number("warmup", 2)?,
        steps: number("steps", 5)?,
    };
    let device = Device::cpu(number("threads", 0)?);
    let lora = match value("lora") {
        Some(rank) => {
            let rank = rank.parse()?;
            let base = if value("base") == Some("q8") { LoraBase::Q8 } else { LoraBase::Dense };
            Some(LoraConfig { rank, alpha: 2.0 * rank as f64, base, ..LoraConfig::default() })
        }
        None => None,
    };
    let operands = if dtype == TrainDtype::F32 { ProductKind::F32 } else { ProductKind::Bf16 };
    let before = limit_gflops(&device, operands);
    let (flop, found) = match lora {
        Some(lora) => {
            let source = ModelSource::open(Path::new(path))?;
            (work.flop(source.config()) * 2.0 / 3.0, time_lora_steps(&source, &lora, &work, &device)?)
        }
        None => {
            let params = params(Path::new(path))?;
            (work.flop(&params.config), time_steps(params, &work, &device)?)
        }
    };
    let limit = before.max(limit_gflops(&device, operands));
    let seconds = median(found.seconds.clone());
    let share = flop / seconds / 1e9 / limit;
    if has("json") {
        println!(
            "{{\"seconds\": {seconds}, \"share\": {share}, \"limit_gflops\": {limit}, \"peak_mb\": {}}}",
            peak_mb()
        );
        return Ok(());
    }
    println!(
        "{dtype:?} {} x {}, {}: {seconds:.3} s a step, {:.0} tok/s, {:.0} GFLOP/s, {:.0} % of a limit of {limit:.0}; peak {} MB",
        work.rows,
        work.tokens,
        device.name(),
        (work.rows * work.tokens) as f64 / seconds,
        flop / seconds / 1e9,
        100.0 * share,
        peak_mb()
    );
    println!("losses {:?}", found.losses);
    let total: f64 = found.parts.iter().map(|(_, seconds)| seconds).sum();
    for (part, seconds) in &found.parts {
        println!("  {part:<24} {:8.1} ms {:5.1} %", 1e3 * seconds, 100.0 * seconds / total);
    }
    Ok(())
}
