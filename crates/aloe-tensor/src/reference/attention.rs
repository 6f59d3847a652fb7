//! Plain twin of attention: all scores of one query at once, in f64.

use crate::AttentionPlan;

/// Heads and sizes: query heads H, key/value heads K, head size E.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub h: usize,
    /// Key/value heads.
    pub k: usize,
    /// Head size.
    pub e: usize,
}

/// Indices of the keys that query `i` of a block sees, in order.
fn visible(plan: &AttentionPlan, block: usize, i: usize) -> Vec<usize> {
    let block = &plan.blocks[block];
    let all: Vec<usize> = block.keys.iter().cloned().flatten().collect();
    let n = if plan.causal { all.len() - block.queries.len() + i + 1 } else { all.len() };
    all[..n].to_vec()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

/// `softmax(scale q k^T) v` per head: o `[N, H, E]` and the log-sum-exp of the scaled scores `[N, H]`.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: Heads,
    plan: &AttentionPlan,
    scale: f32,
) -> (Vec<f32>, Vec<f32>) {
    let Heads { h, k: kv, e } = heads;
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / e]);
    for b in 0..plan.blocks.len() {
        for (i, n) in plan.blocks[b].queries.clone().enumerate() {
            let keys = visible(plan, b, i);
            for head in 0..h {
                let at = |j: usize| (j * kv + head / (h / kv)) * e;
                let row = (n * h + head) * e;
                let scores: Vec<f64> =
                    keys.iter().map(|&j| scale as f64 * dot(&q[row..row + e], &k[at(j)..at(j) + e])).collect();
                let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                lse[n * h + head] = (max + sum.ln()) as f32;
                for x in 0..e {
                    let value = |(&j, s): (&usize, &f64)| (s - max).exp() / sum * v[at(j) + x] as f64;
                    o[row + x] = keys.iter().zip(&scores).map(value).sum::<f64>() as f32;
                }
            }
        }
    }
    (o, lse)
}

/// Gradients dq, dk, dv of [`attention`], from the probabilities (Dao et al. 2022, appendix B.2).
pub fn attention_backward(
    dout: &[f32],
    (q, k, v): (&[f32], &[f32], &[f32]),
    heads: Heads,
    plan: &AttentionPlan,
    scale: f32,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let Heads { h, k: kv, e } = heads;
    let (mut dq, mut dk, mut dv) = (vec![0.0f64; q.len()], vec![0.0f64; k.len()], vec![0.0f64; v.len()]);
    for b in 0..plan.blocks.len() {
        for (i, n) in plan.blocks[b].queries.clone().enumerate() {
            let keys = visible(plan, b, i);
            for head in 0..h {
                let at = |j: usize| (j * kv + head / (h / kv)) * e;
                let row = (n * h + head) * e;
                let score = |&j: &usize| scale as f64 * dot(&q[row..row + e], &k[at(j)..at(j) + e]);
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
                let dp: Vec<f64> = keys.iter().map(|&j| dot(&dout[row..row + e], &v[at(j)..at(j) + e])).collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for (m, &j) in keys.iter().enumerate() {
                    let ds = p[m] * (dp[m] - delta) * scale as f64;
                    for x in 0..e {
                        dq[row + x] += ds * k[at(j) + x] as f64;
                        dk[at(j) + x] += ds * q[row + x] as f64;
                        dv[at(j) + x] += p[m] * dout[row + x] as f64;
                    }
                }
            }
        }
    }
    let narrow = |x: Vec<f64>| x.into_iter().map(|v| v as f32).collect();
    (narrow(dq), narrow(dk), narrow(dv))
}
