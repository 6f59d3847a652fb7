//! Prints GFLOP/s, GB/s and the share of the machine's limit of the kernels: `cargo run --release -p aloe-tensor --example bench`.
//!
//! Arguments: `threads=2`, `cpu=avx2`, `rows=1,12` (of `narrow`), `documents=16x512` (of `train`), and parts to run (`one`, `few`, `many`, `formats`, `hot`, `narrow`, `attention`, `train`, `grads`; all when none is named). The machine may
//! be shared: each measurement is taken in turn with a probe (a plain read of the same bytes, or the product of one hot tile), and
//! the ratio of the medians is printed beside the rates.
#![expect(clippy::print_stdout, reason = "a bench reports by printing")]
#![expect(unsafe_code, reason = "the standard library does not tell a thread's processor time")]

use aloe_tensor::ops::{
    attention, attention_backward, attention_paged, attention_rounded, attention_rounded_backward, linear,
    linear_grad_input, linear_grad_weight, write_pages,
};
use aloe_tensor::reference::Heads;
use aloe_tensor::{
    AttentionInputs, AttentionPlan, BlockFormat, Device, Dtype, Isa, KvPage, Linear, PageWrite, PagedSequence,
    ReadProbe, Rounded, RoundedAttention, Tensor,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[global_allocator]
static HEAP: aloe_tensor::Heap = aloe_tensor::Heap;

fn filled(shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    Tensor::from_f32(shape, (0..n).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 504.0).collect())
}

/// Seconds this thread has had on a processor: on a shared machine the fair clock of a single-threaded run.
fn processor_s() -> f64 {
    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    const THREAD_PROCESSOR_TIME: i32 = 3;
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the C library's function writes the one struct it is given, laid out as on 64-bit Linux.
    unsafe { clock_gettime(THREAD_PROCESSOR_TIME, &mut time) };
    time.seconds as f64 + time.nanoseconds as f64 / 1e9
}

/// One thread is timed by its processor time, several by the wall's clock.
static ONE_THREAD: AtomicBool = AtomicBool::new(false);

/// Weights stay in the caches: what a kernel could do if memory were infinitely fast.
static HOT: AtomicBool = AtomicBool::new(false);

fn seconds(body: &mut dyn FnMut()) -> f64 {
    if ONE_THREAD.load(Ordering::Relaxed) {
        let start = processor_s();
        body();
        return processor_s() - start;
    }
    let start = Instant::now();
    body();
    start.elapsed().as_secs_f64()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Medians of probe and body, taken in turns.
fn interleaved(probe: &mut dyn FnMut(), body: &mut dyn FnMut()) -> (f64, f64) {
    let (mut probes, mut bodies) = (Vec::new(), Vec::new());
    probe();
    body();
    let start = Instant::now();
    while bodies.len() < 7 || (start.elapsed().as_secs_f64() < 0.4 && bodies.len() < 3000) {
        probes.push(seconds(probe));
        bodies.push(seconds(body));
    }
    (median(probes), median(bodies))
}

/// Enough layers that the caches hold none of them when its turn comes again.
fn layers(o: usize, k: usize, make: &dyn Fn(Tensor) -> Linear) -> Vec<Linear> {
    let first = make(filled(&[o, k]));
    let copies = if HOT.load(Ordering::Relaxed) { 1 } else { (160_usize << 20).div_ceil(first.nbytes()).clamp(1, 400) };
    (1..copies).map(|_| make(filled(&[o, k]))).chain([first]).collect()
}

/// One or few rows against weights in memory, beside a plain read of as many bytes.
fn few_rows(device: &Device, name: &str, (o, k): (usize, usize), counts: &[usize], make: &dyn Fn(Tensor) -> Linear) {
    let layers = layers(o, k, make);
    let bytes = layers[0].nbytes();
    let data = ReadProbe::new(device, bytes * layers.len());
    for &m in counts {
        let x = filled(&[m, k]);
        let (mut at, mut next) = (0, 0);
        let mut read = || {
            data.read_part(device, at * bytes, bytes);
            at = (at + 1) % layers.len();
        };
        let mut multiply = || {
            drop(linear(device, &x, &layers[next]));
            next = (next + 1) % layers.len();
        };
        let (probe, body) = interleaved(&mut read, &mut multiply);
        println!(
            "{name:9} {m:4} x {o} x {k}: {:7.1} GB/s, a plain read {:5.1}; share {:4.0} %; {:7.1} GFLOP/s",
            bytes as f64 / body / 1e9,
            bytes as f64 / probe / 1e9,
            100.0 * probe / body,
            2.0 * (m * o * k) as f64 / body / 1e9,
        );
    }
}

/// A product of bf16 whose rate is the processor's limit for bf16, and its operations.
fn hot_tile(device: &Device) -> (impl FnMut(), f64) {
    let (hot, x) = (Linear::new(filled(&[512, 512]).cast(Dtype::Bf16), None), filled(&[480, 512]));
    (move || drop(linear(device, &x, &hot)), 2.0 * (480 * 512 * 512) as f64)
}

/// Many rows, beside the bf16 product of a hot tile (its rate is the processor's limit for bf16).
fn many_rows(device: &Device, name: &str, (m, o, k): (usize, usize, usize), make: &dyn Fn(Tensor) -> Linear) {
    let (x, layer) = (filled(&[m, k]), make(filled(&[o, k])));
    let (mut hot, flop) = hot_tile(device);
    let (probe, body) = interleaved(&mut hot, &mut || drop(linear(device, &x, &layer)));
    let (limit, rate) = (flop / probe / 1e9, 2.0 * (m * o * k) as f64 / body / 1e9);
    println!(
        "{name:9} {m:4} x {o} x {k}: {rate:7.1} GFLOP/s, a hot bf16 tile {limit:6.1}; share {:4.0} %",
        100.0 * rate / limit
    );
}

/// bf16 in twelve bits a number beside plain bf16, in turns.
fn narrow(device: &Device, (o, k): (usize, usize), counts: &[usize]) {
    let copies = if HOT.load(Ordering::Relaxed) { 1 } else { (160_usize << 20).div_ceil(2 * o * k).clamp(1, 400) };
    let weight = normal(&[o, k]).cast(Dtype::Bf16);
    let all = |make: &dyn Fn() -> Linear| (0..copies).map(|_| make()).collect::<Vec<_>>();
    let plain = all(&|| Linear::new_on(device, weight.clone(), None));
    let narrow = all(&|| Linear::narrow_of(device, &weight, None));
    for &m in counts {
        let x = filled(&[m, k]);
        let turn = |layers: &[Linear], at: &mut usize| {
            drop(linear(device, &x, &layers[*at]));
            *at = (*at + 1) % layers.len();
        };
        let (mut at, mut narrow_at) = (0, 0);
        let (probe, body) = interleaved(&mut || turn(&plain, &mut at), &mut || turn(&narrow, &mut narrow_at));
        println!(
            "narrow ({}) {m:4} x {o} x {k}: {:8.1} us, plain {:8.1} us; plain takes {:4.2} times as long",
            narrow[0].is_narrow(),
            body * 1e6,
            probe * 1e6,
            probe / body
        );
    }
}

/// About normal numbers: sums of four uniform ones.
fn normal(shape: &[usize]) -> Tensor {
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let n = shape.iter().product();
    Tensor::from_f32(shape, (0..n).map(|_| 0.04 * (0..4).map(|_| uniform()).sum::<f32>()).collect())
}

/// A name, and how a weight becomes a layer.
type Format<'a> = (String, Box<dyn Fn(Tensor) -> Linear + 'a>);

fn formats(device: &Device) -> Vec<Format<'_>> {
    let mut all: Vec<Format> =
        vec![("bf16".into(), Box::new(|w: Tensor| Linear::new_on(device, w.cast(Dtype::Bf16), None)))];
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_0] {
        all.push((format.name().into(), Box::new(move |w: Tensor| quantized(device, &w, format))));
    }
    for format in [BlockFormat::Q4_1, BlockFormat::Q4_K, BlockFormat::Q6_K] {
        let make = move |w: Tensor| {
            let (o, k) = (w.shape()[0], w.shape()[1]);
            let row = vec![0x11u8; k / format.block_len() * format.block_bytes()];
            Linear::from_blocks(device, format, k, &vec![&row[..]; o], None)
        };
        all.push((format.name().into(), Box::new(make)));
    }
    all
}

fn grads(device: &Device, dtype: Dtype) {
    for (m, n, k) in [(1024, 1536, 576), (1024, 576, 1536)] {
        let (x, w) = (filled(&[m, k]), Linear::new_on(device, filled(&[n, k]).cast(dtype), None));
        let (dy, mut dw) = (filled(&[m, n]), Tensor::zeros(&[n, k], Dtype::F32));
        let flop = 2.0 * (m * n * k) as f64 / 1e9;
        let mut forward = || drop(linear(device, &x, &w));
        let (y, dx) = interleaved(&mut forward, &mut || drop(linear_grad_input(device, &dy, &w)));
        let (_, dw) = interleaved(&mut forward, &mut || linear_grad_weight(device, &dy, &x, dtype, &mut dw, None));
        println!(
            "{dtype:?} {m} x {n} x {k}: forward {:6.1} GFLOP/s, input's gradient {:6.1}, weight's {:6.1}",
            flop / y,
            flop / dx,
            flop / dw
        );
    }
}

fn attend(device: &Device, t: usize) {
    let (h, k, e) = (9, 3, 64);
    let (q, kv) = (filled(&[t, h, e]), filled(&[t, k, e]));
    let plan = AttentionPlan::causal(&[t]);
    // Two products forward and five backward over the lower triangle.
    let product = (t * t * h * e) as f64 / 1e9;
    let (o, lse) = attention(device, &q, &kv, &kv, &plan, 0.125);
    let mut packed = || drop(attention(device, &q, &kv, &kv, &plan, 0.125));
    let inputs = AttentionInputs { q: &q, k: &kv, v: &kv, o: &o, lse: &lse };
    let (forward, backward) =
        interleaved(&mut packed, &mut || drop(attention_backward(device, &q, &inputs, &plan, 0.125)));
    println!(
        "attention {t}, H=9 K=3 E=64: {:6.1} GFLOP/s, backward {:6.1}",
        2.0 * product / forward,
        5.0 * product / backward
    );
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut pages: Vec<KvPage> = (0..t.div_ceil(64)).map(|_| KvPage::new(dtype, k, e)).collect();
        let mut fill = || {
            let write = |(i, page)| PageWrite { page, at: 0, rows: i * 64..t.min(i * 64 + 64) };
            write_pages(device, &kv, &kv, pages.iter_mut().enumerate().map(write).collect());
        };
        let write = median((0..9).map(|_| seconds(&mut fill)).collect());
        let sequence = PagedSequence { queries: 0..t, pages: pages.iter().collect(), len_tokens: t };
        let (packed, paged) = interleaved(&mut packed, &mut || {
            drop(attention_paged(device, &q, std::slice::from_ref(&sequence), 0.125));
        });
        println!(
            "  pages {dtype:?}: {:6.1} GFLOP/s, {:4.2} of the packed kernel's time; writing the pages {:4.2} of it",
            2.0 * product / paged,
            paged / packed,
            write / packed
        );
        for rows in [1, 16] {
            let q = q.slice_rows(0, rows);
            let one = |row| PagedSequence { queries: row..row + 1, pages: pages.iter().collect(), len_tokens: t };
            let sequences: Vec<PagedSequence> = (0..rows).map(one).collect();
            let times =
                (0..200).map(|_| seconds(&mut || drop(attention_paged(device, &q, &sequences, 0.125)))).collect();
            println!("    {rows} decoding rows over all of them: {:8.1} us", median(times) * 1e6);
        }
    }
}

/// Attention as bf16 training has it, over documents packed side by side, beside a hot tile.
fn train_attention(device: &Device, n_documents: usize, t: usize) {
    let heads = Heads { h: 9, k: 3, e: 64 };
    let rows = |h: usize| Rounded::new(device, &normal(&[n_documents * t, h * heads.e]));
    let (q, k, v, dout) = (rows(heads.h), rows(heads.k), rows(heads.k), rows(heads.h));
    let plan = AttentionPlan::causal(&vec![t; n_documents]);
    // Two products forward and five backward over the lower triangle.
    let product = (n_documents * t * (t + 1) * heads.h * heads.e) as f64;
    let (mut hot, flop) = hot_tile(device);
    let (o, lse) = attention_rounded(device, [&q, &k, &v], heads, &plan, 0.125);
    let (probe, forward) =
        interleaved(&mut hot, &mut || drop(attention_rounded(device, [&q, &k, &v], heads, &plan, 0.125)));
    let inputs = RoundedAttention { q: &q, k: &k, v: &v, o: &o, lse: &lse, heads };
    let (probe2, backward) =
        interleaved(&mut hot, &mut || drop(attention_rounded_backward(device, &dout, &inputs, &plan, 0.125)));
    println!(
        "training attention {n_documents} x {t}, H=9 K=3 E=64: {:6.1} ms, {:3.0} % of a hot bf16 tile; backward {:6.1} ms, {:3.0} %",
        1e3 * forward,
        100.0 * (2.0 * product / forward) / (flop / probe),
        1e3 * backward,
        100.0 * (5.0 * product / backward) / (flop / probe2),
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.iter().find_map(|a| a.strip_prefix("threads=")?.parse().ok());
    let parts: Vec<&str> = args.iter().map(String::as_str).filter(|a| !a.contains('=')).collect();
    let wants = |part: &str| parts.is_empty() || parts.contains(&part);
    let isa = args.iter().find_map(|a| a.strip_prefix("cpu="));
    let isa =
        isa.map(|name| Isa::ALL.into_iter().find(|isa| isa.name() == name).expect("cpu= names an instruction set"));
    let device = Device::cpu_with(isa.unwrap_or_else(Isa::best), threads.unwrap_or(0));
    ONE_THREAD.store(device.threads() == 1, Ordering::Relaxed);
    HOT.store(parts.contains(&"hot"), Ordering::Relaxed);
    println!("{}", device.name());
    for (name, make) in formats(&device) {
        if !(wants("formats") || name == "bf16") {
            continue;
        }
        let sizes = |k: usize| !name.ends_with("_K") || k.is_multiple_of(256);
        if wants("few") {
            for shape in [(1536, 576), (576, 1536), (4096, 4096)].into_iter().filter(|s| sizes(s.1)) {
                few_rows(&device, &name, shape, &[1, 2, 4, 8, 16], &*make);
            }
        }
        if wants("one") {
            for shape in [(1536, 576), (576, 1536), (49152, 576), (4096, 4096), (14336, 4096), (4096, 14336)]
                .into_iter()
                .filter(|s| sizes(s.1))
            {
                few_rows(&device, &name, shape, &[1], &*make);
            }
        }
        if wants("many") {
            for shape in [(512, 1536, 576), (512, 576, 1536), (512, 4096, 4096), (512, 14336, 4096), (512, 4096, 14336)]
            {
                many_rows(&device, &name, shape, &*make);
            }
        }
    }
    if wants("narrow") {
        let counts = args.iter().find_map(|a| {
            Some(a.strip_prefix("rows=")?.split(',').map(|n| n.parse().expect("rows= lists numbers")).collect())
        });
        let counts: Vec<usize> = counts.unwrap_or_else(|| (1..=16).chain([20, 24, 32, 48, 64, 256, 512]).collect());
        for shape in [(1536, 576), (576, 1536), (49152, 576), (4096, 4096), (4096, 14336)] {
            narrow(&device, shape, &counts);
        }
    }
    if wants("attention") {
        [512, 2048].iter().for_each(|t| attend(&device, *t));
    }
    if wants("train") {
        let wanted = args.iter().find_map(|a| {
            let (n, t) = a.strip_prefix("documents=")?.split_once('x')?;
            Some(vec![(n.parse().expect("a number of documents"), t.parse().expect("tokens of a document"))])
        });
        let all = wanted.unwrap_or_else(|| vec![(1, 8192), (1, 2048), (16, 512), (20, 100)]);
        all.iter().for_each(|(n, t)| train_attention(&device, *n, *t));
    }
    if wants("grads") {
        [Dtype::Bf16, Dtype::F32].iter().for_each(|dtype| grads(&device, *dtype));
    }
}

fn quantized(device: &Device, weight: &Tensor, format: BlockFormat) -> Linear {
    let (values, k) = (weight.to_f32_vec(), weight.shape()[1]);
    let read = |row: usize, out: &mut [f32]| out.copy_from_slice(&values[row * k..(row + 1) * k]);
    Linear::quantize(device, [weight.shape()[0], k], &read, format, None)
}
