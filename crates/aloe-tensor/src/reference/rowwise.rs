//! Plain twins of the operations that work row by row, and of the optimizer.

/// `x / sqrt(mean(x^2) + eps) * w` over rows of `w.len()`; returns y and 1/sqrt(..) per row. Source: Zhang & Sennrich 2019, as LlamaRMSNorm.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let d = w.len();
    let (mut y, mut rstd) = (Vec::new(), Vec::new());
    for row in x.chunks(d) {
        let mean: f64 = row.iter().map(|&v| (v as f64) * (v as f64)).sum::<f64>() / d as f64;
        let r = 1.0 / (mean + eps as f64).sqrt();
        y.extend(row.iter().zip(w).map(|(&v, &w)| (v as f64 * r * w as f64) as f32));
        rstd.push(r as f32);
    }
    (y, rstd)
}

/// Gradient of [`rms_norm`]: dx, and dw to be added. `dx = r (dy w - x r^2 mean(dy w x))`.
pub fn rms_norm_backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let d = w.len();
    let (mut dx, mut dw) = (Vec::new(), vec![0.0f64; d]);
    for ((dy, x), &r) in dy.chunks(d).zip(x.chunks(d)).zip(rstd) {
        let r = r as f64;
        let dot: f64 = (0..d).map(|i| dy[i] as f64 * w[i] as f64 * x[i] as f64).sum::<f64>() / d as f64;
        for i in 0..d {
            dx.push((r * (dy[i] as f64 * w[i] as f64 - x[i] as f64 * r * r * dot)) as f32);
            dw[i] += dy[i] as f64 * x[i] as f64 * r;
        }
    }
    (dx, dw.into_iter().map(|v| v as f32).collect())
}

/// `(x - mean) / sqrt(var + eps) * w + b`, variance with 1/d.
pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32) -> Vec<f32> {
    let d = w.len();
    let mut y = Vec::new();
    for row in x.chunks(d) {
        let mean = row.iter().map(|&v| v as f64).sum::<f64>() / d as f64;
        let var = row.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / d as f64;
        let r = 1.0 / (var + eps as f64).sqrt();
        y.extend((0..d).map(|i| ((row[i] as f64 - mean) * r * w[i] as f64 + b[i] as f64) as f32));
    }
    y
}

/// Rotates each head's pairs `(i, i + E/2)` by `position * inv_freq[i]`; `sign` -1 is the inverse. x is `[N, H, E]`.
pub fn rope(x: &mut [f32], heads: usize, positions: &[u32], inv_freq: &[f32], sign: f64) {
    let half = inv_freq.len();
    for (n, &position) in positions.iter().enumerate() {
        for h in 0..heads {
            let row = &mut x[(n * heads + h) * 2 * half..][..2 * half];
            for i in 0..half {
                // The angle is the f32 product, as in transformers.
                let angle = (position as f32 * inv_freq[i]) as f64 * sign;
                let (a, b) = (row[i] as f64, row[i + half] as f64);
                row[i] = (a * angle.cos() - b * angle.sin()) as f32;
                row[i + half] = (b * angle.cos() + a * angle.sin()) as f32;
            }
        }
    }
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(&g, &u)| (g as f64 / (1.0 + (-g as f64).exp()) * u as f64) as f32).collect()
}

/// Gradient of [`swiglu`] with respect to gate and up.
pub fn swiglu_backward(dh: &[f32], gate: &[f32], up: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let one = |((&dh, &g), &u): ((&f32, &f32), &f32)| {
        let (dh, g, u) = (dh as f64, g as f64, u as f64);
        let s = 1.0 / (1.0 + (-g).exp());
        ((dh * u * s * (1.0 + g * (1.0 - s))) as f32, (dh * g * s) as f32)
    };
    dh.iter().zip(gate).zip(up).map(one).unzip()
}

/// `x/2 (1 + erf(x / sqrt 2))`, erf by its Taylor series or, far out, its continued fraction, in f64.
pub fn gelu(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| (0.5 * x as f64 * (1.0 + erf(x as f64 / std::f64::consts::SQRT_2))) as f32).collect()
}

/// The error function to about 1e-15.
pub fn erf(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let a = x.abs();
    let mut f = 0.0;
    for k in (1..=60).rev() {
        f = (k as f64 / 2.0) / (a + f);
    }
    let erfc = (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + f);
    (1.0 - erfc).copysign(x)
}

/// Log-softmax of each row of width `v`.
pub fn log_softmax(logits: &[f32], v: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in logits.chunks(v) {
        let lse = log_sum_exp(row);
        out.extend(row.iter().map(|&l| (l as f64 - lse) as f32));
    }
    out
}

/// `ln(sum(exp(row)))`.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().cloned().fold(f32::NEG_INFINITY, f32::max) as f64;
    max + row.iter().map(|&l| (l as f64 - max).exp()).sum::<f64>().ln()
}

/// One AdamW step in f64 as PyTorch states it (Loshchilov & Hutter 2019, algorithm 2): decay `p *= 1 - lr wd`, then
/// `p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
pub fn adamw(state: (&mut [f32], &mut [f32], &mut [f32]), grad: &[f32], o: &crate::AdamW) {
    let (param, m, v) = state;
    let (b1, b2) = (o.beta1 as f64, o.beta2 as f64);
    let (c1, c2) = (1.0 - b1.powi(o.step as i32), 1.0 - b2.powi(o.step as i32));
    for i in 0..param.len() {
        let g = grad[i] as f64 * o.grad_scale as f64;
        let mean = b1 * m[i] as f64 + (1.0 - b1) * g;
        let square = b2 * v[i] as f64 + (1.0 - b2) * g * g;
        let decayed = param[i] as f64 * (1.0 - o.lr as f64 * o.weight_decay as f64);
        param[i] = (decayed - o.lr as f64 / c1 * mean / (square.sqrt() / c2.sqrt() + o.eps as f64)) as f32;
        (m[i], v[i]) = (mean as f32, square as f32);
    }
}
