//! Axes: from values to positions, and the round numbers that are written beside them.

/// How values are laid along an axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scaling {
    /// Equal steps are equal distances.
    #[default]
    Linear,
    /// Equal factors are equal distances; values of zero or less are left out.
    Log,
}

/// An axis over a range of values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    scaling: Scaling,
    low: f64,
    high: f64,
    /// Values that get a tick.
    pub(crate) ticks: Vec<f64>,
    step: f64,
}

impl Axis {
    /// An axis that covers all `values` that can be shown, with about `n_ticks` ticks.
    pub(crate) fn covering(values: impl Iterator<Item = f64>, scaling: Scaling, n_ticks: usize) -> Self {
        let shown = values.filter(|&value| Self::can_show(scaling, value));
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        match scaling {
            Scaling::Linear => Self::linear(low, high, n_ticks),
            Scaling::Log => Self::log(low, high),
        }
    }

    fn can_show(scaling: Scaling, value: f64) -> bool {
        value.is_finite() && (scaling == Scaling::Linear || value > 0.0)
    }

    fn linear(low: f64, high: f64, n_ticks: usize) -> Self {
        // A single value gets room around it.
        let margin = if high > low { 0.0 } else { (low.abs() * 0.1).max(0.5) };
        let (low, high) = (low - margin, high + margin);
        let step = round_step((high - low) / n_ticks.max(1) as f64);
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let ticks: Vec<f64> = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect();
        Self { scaling: Scaling::Linear, low: first * step, high: last * step, ticks, step }
    }

    fn log(low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().floor(), high.log10().ceil());
        let last = if last > first { last } else { first + 1.0 };
        // At most about eight decades get a label.
        let every = ((last - first) / 8.0).ceil().max(1.0);
        let ticks = (0..=((last - first) / every) as usize).map(|i| 10f64.powf(first + i as f64 * every)).collect();
        Self { scaling: Scaling::Log, low: 10f64.powf(first), high: 10f64.powf(last), ticks, step: 0.0 }
    }

    /// Where `value` lies, 0 at the low end and 1 at the high end; nothing if it cannot be shown.
    pub(crate) fn place(&self, value: f64) -> Option<f64> {
        if !Self::can_show(self.scaling, value) {
            return None;
        }
        Some(match self.scaling {
            Scaling::Linear => (value - self.low) / (self.high - self.low),
            Scaling::Log => (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10()),
        })
    }

    /// A tick's text: as many decimals as the steps need, powers of ten where numbers get long.
    pub(crate) fn label(&self, tick: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        if self.scaling == Scaling::Log || largest >= 1e6 || (largest < 1e-3 && largest > 0.0) {
            return short(tick);
        }
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        let text = format!("{tick:.decimals$}");
        // -0.0 is no number that readers expect.
        if text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') {
            text.trim_start_matches('-').to_owned()
        } else {
            text
        }
    }
}

fn short(value: f64) -> String {
    if value == 0.0 || (1e-2..1e6).contains(&value.abs()) {
        return format!("{}", (value * 1e6).round() / 1e6);
    }
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.')),
        None => text,
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let part = step / power;
    let rounded = if part <= 1.0 + 1e-9 {
        1.0
    } else if part <= 2.0 + 1e-9 {
        2.0
    } else if part <= 5.0 + 1e-9 {
        5.0
    } else {
        10.0
    };
    rounded * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], scaling: Scaling) -> Vec<String> {
        let axis = Axis::covering(values.iter().copied(), scaling, 5);
        axis.ticks.iter().map(|&tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers_around_the_values() {
        assert_eq!(labels(&[0.0, 10.0], Scaling::Linear), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(&[0.13, 0.87], Scaling::Linear), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[-0.3, 0.31], Scaling::Linear), ["-0.4", "-0.2", "0.0", "0.2", "0.4"]);
        assert_eq!(labels(&[3.0], Scaling::Linear), ["2.4", "2.6", "2.8", "3.0", "3.2", "3.4", "3.6"]);
        assert_eq!(labels(&[2e-7, 2e-5], Scaling::Log), ["1e-7", "1e-6", "1e-5", "1e-4"]);
        assert_eq!(labels(&[f64::NAN, f64::INFINITY], Scaling::Linear).first().map(String::as_str), Some("0"));
    }

    #[test]
    fn places_run_from_zero_to_one_and_leave_out_what_cannot_be_shown() {
        let linear = Axis::covering([0.0, 10.0].into_iter(), Scaling::Linear, 5);
        assert_eq!((linear.place(0.0), linear.place(5.0), linear.place(f64::NAN)), (Some(0.0), Some(0.5), None));
        let log = Axis::covering([1.0, 100.0].into_iter(), Scaling::Log, 5);
        assert_eq!((log.place(10.0), log.place(0.0), log.place(-1.0)), (Some(0.5), None, None));
    }
}
