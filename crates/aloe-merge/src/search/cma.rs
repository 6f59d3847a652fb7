//! CMA-ES over the box of the knobs' ranges, by the crate `cmaes` (Hansen's tutorial, arXiv:1604.00772, with negative weights).
//!
//! The distribution lives in coordinates in which each range is 0 to 1. A proposal outside the box is scored at the nearest point of
//! the box and pays the squared distance to it, so that the mean comes back. Values are rounded to a thousandth of the range's power
//! of ten: a YAML that can be read, and repeats that are not merged again.
//!
//! A score is the share of right answers to a few hundred questions: many proposals score alike, and their order is then the order of
//! proposal. What ends a search is the number of evaluations, or one of the library's own conditions, which is named.

use super::{KnobRange, SearchSettings, Space};
use cmaes::{CMAESOptions, DVector, Mode};

/// First standard deviation where none is given, as a share of the range.
const SIGMA: f64 = 0.3;

/// Points per generation where no number is given.
pub(super) fn population(settings: &SearchSettings, n_knobs: usize) -> usize {
    settings.population.unwrap_or(4 + (3.0 * (n_knobs as f64).ln()).floor() as usize)
}

/// Points that will be asked for: whole generations.
pub(super) fn n_points(settings: &SearchSettings, n_knobs: usize) -> usize {
    let population = population(settings, n_knobs);
    settings.evaluations / population * population
}

/// Asks for the points of `evaluations / population` generations, or fewer where the search has converged.
pub(super) fn run<E>(
    space: &Space,
    settings: &SearchSettings,
    ask: &mut impl FnMut(&[f64]) -> Result<f64, E>,
) -> Result<String, E> {
    let n_knobs = space.knobs.len();
    let population = population(settings, n_knobs);
    let mut failed: Option<E> = None;
    let reasons = {
        let objective = |unit: &DVector<f64>| {
            let inside: Vec<f64> = unit.iter().map(|at| at.clamp(0.0, 1.0)).collect();
            let penalty: f64 = unit.iter().zip(&inside).map(|(at, inside)| (at - inside).powi(2)).sum();
            let values: Vec<f64> = space.knobs.iter().zip(&inside).map(|(knob, unit)| at(&knob.range, *unit)).collect();
            match ask(&values) {
                Ok(score) => score - penalty,
                // The library ends at the first value that is not a number and asks for no further one.
                Err(error) => {
                    failed = Some(error);
                    f64::NAN
                }
            }
        };
        let start: Vec<f64> =
            space.knobs.iter().zip(space.start()).map(|(knob, value)| unit(&knob.range, value)).collect();
        let options = CMAESOptions::new(start, settings.sigma.unwrap_or(SIGMA))
            .mode(Mode::Maximize)
            .population_size(population)
            .max_generations(settings.evaluations / population)
            .seed(settings.seed);
        // Every option was checked by `Space::check`.
        let mut state = options.build(objective).unwrap_or_else(|error| panic!("CMA-ES options: {error:?}"));
        state.run().reasons
    };
    if let Some(error) = failed {
        return Err(error);
    }
    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    Ok(format!("CMA-ES with {population} points a generation ended by {}", reasons.join(", ")))
}

/// The value at a place of the range, 0 to 1, rounded to a thousandth of the range's power of ten.
fn at(range: &KnobRange, unit: f64) -> f64 {
    let (from, to) = range.ends();
    let places = (3.0 - (to - from).log10().floor()).max(0.0) as usize;
    let value = from + unit * (to - from);
    let rounded: f64 = format!("{value:.places$}").parse().unwrap_or(value);
    rounded.clamp(from, to)
}

/// The place of a value in the range.
fn unit(range: &KnobRange, value: f64) -> f64 {
    let (from, to) = range.ends();
    (value - from) / (to - from)
}
