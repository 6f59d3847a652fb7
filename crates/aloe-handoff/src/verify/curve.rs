//! What the plan itself says of a run's numbers: the learning rate of every step, and how far AdamW can have carried a weight with it.

use super::Expectation;
use aloe_train::{Decay, Schedule};
use serde_json::Value;

/// Learning rates as they were planned, and AdamW's settings.
pub(super) struct Curve {
    /// The rate of each step; the first is step 1.
    pub(super) rates: Vec<f64>,
    /// The highest.
    pub(super) peak: f64,
    betas: [f64; 2],
    weight_decay: f64,
    /// Steps of each piece that begins with new moments.
    pieces: Vec<u64>,
}

impl Curve {
    /// That of a stage; `None` where its settings name none.
    pub(super) fn of(expected: &Expectation) -> Option<Self> {
        let config = &expected.stage.config;
        let peak = config["lr"].as_f64()?;
        let decay: Decay = serde_json::from_value(config["schedule"].clone()).ok()?;
        let betas: [f64; 2] = serde_json::from_value(config["betas"].clone()).ok()?;
        let number = |key: &str| config[key].as_f64().unwrap_or(0.0);
        let warmup = match number("warmup_ratio") {
            share if share > 0.0 => (share * expected.n_steps as f64).ceil() as u64,
            _ => config["warmup_steps"].as_u64().unwrap_or(0),
        };
        let mut pieces: Vec<(u64, u64)> =
            expected.chunks.iter().map(|chunk| (chunk.n_steps, chunk.warmup_steps)).collect();
        if pieces.is_empty() {
            pieces.push((expected.n_steps, warmup));
        }
        let rates = pieces.iter().flat_map(|&(total_steps, warmup_steps)| {
            let schedule = Schedule { peak, warmup_steps, total_steps, decay, floor: number("lr_floor") };
            (0..total_steps).map(move |step| schedule.lr(step))
        });
        let rates = rates.collect();
        let pieces = pieces.into_iter().map(|(n_steps, _)| n_steps).collect();
        Some(Self { rates, peak, betas, weight_decay: number("weight_decay"), pieces })
    }

    /// The rate of a step, as it must be logged; transformers 5 logs the rate that the step's update was made with.
    pub(super) fn rate(&self, step: &Value) -> Option<f64> {
        let at = usize::try_from(step.as_u64()?).ok()?.checked_sub(1)?;
        self.rates.get(at).copied()
    }

    /// The farthest that AdamW can carry a weight whose magnitude is at most `largest` on the way.
    ///
    /// Its update of step t is rate * m / (sqrt(v) + eps), with m = (1-b1) sum b1^(t-i) g_i / (1-b1^t) and v likewise of g_i^2. By Cauchy and
    /// Schwarz |m| <= (1-b1)/(1-b1^t) * sqrt(sum (b1^2/b2)^k) * sqrt(sum b2^(t-i) g_i^2), so that |m|/sqrt(v) is at most
    /// (1-b1)/(1-b1^t) * sqrt((1-q^t)/(1-q)) * sqrt((1-b2^t)/(1-b2)) with q = b1^2/b2, whatever the gradients were. The decay moves it by
    /// rate * decay * |w| beside.
    pub(super) fn farthest(&self, largest: f64) -> f64 {
        let [b1, b2] = self.betas;
        let q = b1 * b1 / b2;
        let mut sum = 0.0;
        let mut rates = self.rates.iter();
        for &n_steps in &self.pieces {
            let (mut b1_t, mut b2_t, mut q_t, mut powers) = (1.0, 1.0, 1.0, 0.0);
            for &rate in rates.by_ref().take(n_steps as usize) {
                // sum of q^k for k below t, which is t where q is 1.
                powers += q_t;
                (b1_t, b2_t, q_t) = (b1_t * b1, b2_t * b2, q_t * q);
                let ratio = (1.0 - b1) / (1.0 - b1_t) * f64::sqrt(powers * (1.0 - b2_t) / (1.0 - b2));
                sum += rate * (ratio + self.weight_decay * largest);
            }
        }
        // Each step rounds the weight to f32.
        sum * 1.01 + self.rates.len() as f64 * largest * f64::from(f32::EPSILON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{Chunk, PlannedStage};
    use serde_json::json;

    fn expected(n_steps: u64, config: Value, chunks: &[(u64, u64)]) -> Expectation {
        let chunk = |&(n_steps, warmup_steps): &(u64, u64)| Chunk { n_steps, warmup_steps };
        let text = json!({"start": "", "n_steps": n_steps, "world_size": 1, "n_nodes": 1, "versions": {}, "stops_at_spikes": false,
            "loss_may_be_zero": false, "stage": serde_json::to_value(PlannedStage::default()).unwrap()});
        let mut expected: Expectation = serde_json::from_value(text).unwrap();
        expected.chunks = chunks.iter().map(chunk).collect();
        expected.stage.config = config;
        expected
    }

    fn config(schedule: &str) -> Value {
        json!({"lr": 1e-3, "schedule": schedule, "betas": [0.9, 0.999], "warmup_steps": 2, "warmup_ratio": 0.0, "lr_floor": 0.0, "weight_decay": 0.1})
    }

    #[test]
    fn the_rates_are_those_that_transformers_logs() {
        // TRL 1.16 with warmup_steps = 1 and three steps logged 0, 1e-3, 5e-4: (1 + cos(pi/2)) / 2 of the peak at half of the two steps.
        let mut one = config("cosine");
        one["warmup_steps"] = json!(1);
        let curve = Curve::of(&expected(3, one, &[])).unwrap();
        assert!(curve.rates.iter().zip([0.0, 1e-3, 5e-4]).all(|(found, logged)| (found - logged).abs() < 1e-15));
        assert_eq!((curve.rate(&json!(1)), curve.rate(&json!(4)), curve.rate(&json!(0))), (Some(0.0), None, None));
        // A share of 30 steps is rounded up: 0.05 * 30 = 1.5.
        let mut share = config("constant");
        share["warmup_ratio"] = json!(0.05);
        assert_eq!(Curve::of(&expected(30, share, &[])).unwrap().rates[..3], [0.0, 5e-4, 1e-3]);
        let chunks = Curve::of(&expected(5, config("linear"), &[(2, 1), (3, 0)])).unwrap();
        assert_eq!(chunks.rates, [0.0, 1e-3, 1e-3, 1e-3 * (1.0 - 1.0 / 3.0), 1e-3 * (1.0 - 2.0 / 3.0)]);
        assert!(Curve::of(&expected(5, Value::Null, &[])).is_none());
    }

    /// AdamW by its definition on gradients that make its steps as long as they can be: rising by b2/b1 each step.
    #[test]
    fn no_gradients_carry_a_weight_farther_than_the_bound_and_the_worst_come_near_it() {
        let n = 40;
        let curve = Curve::of(&expected(n, config("constant"), &[])).unwrap();
        let (b1, b2, eps, decay) = (0.9f64, 0.999f64, 1e-8, 0.1);
        let walked = |gradient: &dyn Fn(i32) -> f64| {
            let (mut w, mut m, mut v, mut largest) = (0.5f64, 0.0, 0.0, 0.5f64);
            for (at, rate) in curve.rates.iter().enumerate() {
                let (g, t) = (gradient(at as i32), at as i32 + 1);
                (m, v) = (b1 * m + (1.0 - b1) * g, b2 * v + (1.0 - b2) * g * g);
                w -= rate * (decay * w + m / (1.0 - b1.powi(t)) / (f64::sqrt(v / (1.0 - b2.powi(t))) + eps));
                largest = largest.max(w.abs());
            }
            ((w - 0.5).abs(), curve.farthest(largest))
        };
        let gradients: [&dyn Fn(i32) -> f64; 4] =
            [&|t| (b2 / b1).powi(t), &|_| 1.0, &|t| if t == 39 { 1.0 } else { 0.0 }, &|t| {
                f64::from((t * 7919) % 13) - 6.0
            }];
        for gradient in gradients {
            let (moved, bound) = walked(gradient);
            assert!(moved < bound, "{moved} {bound}");
        }
        let (moved, bound) = walked(gradients[0]);
        assert!(moved > 0.9 * bound, "{moved} {bound}");
    }
}
