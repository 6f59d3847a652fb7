//! The learning rate of each step: warm-up, then cosine, linear or constant, with a floor.
//!
//! Equal to `get_cosine_schedule_with_warmup`, `get_linear_schedule_with_warmup` and `get_constant_schedule_with_warmup`
//! of transformers (with a floor: `get_cosine_with_min_lr_schedule_with_warmup`). Like there, the first of `w` warm-up
//! steps has rate 0 and step `w` is the first with the full rate.

use serde::{Deserialize, Serialize};

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine from the peak to the floor.
    #[default]
    Cosine,
    /// A straight line from the peak to the floor.
    Linear,
    /// Stays at the peak.
    Constant,
}

/// A learning-rate curve over `total_steps`.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// Steps of the linear rise from 0.
    pub warmup_steps: u64,
    /// All steps, the warm-up included.
    pub total_steps: u64,
    /// The curve after the warm-up.
    pub decay: Decay,
    /// The lowest rate after the warm-up, as a share of the peak.
    pub floor: f64,
}

impl Schedule {
    /// The rate of the optimizer step `step`, counted from 0.
    pub fn lr(&self, step: u64) -> f64 {
        self.peak * self.factor(step)
    }

    /// Why no step has a rate above 0, where that is so: the only step of a schedule is the first of its warm-up.
    pub(crate) fn mistake(&self) -> Option<String> {
        (self.total_steps == 1 && self.warmup_steps > 0).then(|| {
            format!(
                "the warm-up ({} steps) leaves nothing to train: its first step has rate 0, as in transformers, and the schedule has no other; set \
                 warmup_steps and warmup_ratio to 0, or make more steps (of each chunk): more epochs, or a smaller batch_size",
                self.warmup_steps
            )
        })
    }

    /// A line on a warm-up that the schedule does not outlast.
    pub(crate) fn notice(&self) -> Option<String> {
        let Self { peak, warmup_steps, total_steps, .. } = self;
        (warmup_steps >= total_steps).then(|| {
            let highest = self.lr(total_steps.saturating_sub(1));
            format!(
                "the warm-up of {warmup_steps} steps does not end within the {total_steps} of the schedule: the highest rate is {highest:e}, lr = \
                 {peak:e} is never reached"
            )
        })
    }

    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let length = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / length).min(1.0);
        let curve = match self.decay {
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Linear => 1.0 - progress,
            Decay::Constant => 1.0,
        };
        curve * (1.0 - self.floor) + self.floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/golden/schedules.json` is written by `oracles/schedules.py` with transformers.
    #[test]
    fn every_curve_equals_transformers_at_every_step() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../tests/golden/schedules.json")).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let schedule = Schedule {
                peak: case["peak"].as_f64().unwrap(),
                warmup_steps: case["warmup_steps"].as_u64().unwrap(),
                total_steps: case["total_steps"].as_u64().unwrap(),
                decay: serde_json::from_value(case["decay"].clone()).unwrap(),
                floor: case["floor"].as_f64().unwrap(),
            };
            for (step, expected) in case["lr"].as_array().unwrap().iter().enumerate() {
                let expected = expected.as_f64().unwrap();
                let found = schedule.lr(step as u64);
                assert!((found - expected).abs() <= 1e-12 * schedule.peak, "{case}: step {step}: {found}");
            }
        }
    }

    #[test]
    fn warm_up_begins_at_zero_and_a_floor_is_where_the_cosine_ends() {
        let schedule = Schedule { peak: 2.0, warmup_steps: 4, total_steps: 12, decay: Decay::Cosine, floor: 0.1 };
        // Step 8 is half-way through the cosine: 2 * (0.5 * 0.9 + 0.1) = 1.1.
        let expected = [(0, 0.0), (1, 0.5), (4, 2.0), (8, 1.1), (12, 0.2), (99, 0.2)];
        for (step, lr) in expected {
            assert!((schedule.lr(step) - lr).abs() < 1e-12, "step {step}: {}", schedule.lr(step));
        }
    }
}
