//! Merge search: which numbers of a mergekit YAML give the merge that scores best. A loop over a scoring closure: this crate proposes
//! points, keeps what they scored and picks the best; merging, asking questions and telling noise from skill are the caller's.
//!
//! Reading order: `space` (knobs and their places in the YAML), `check` (values that no merge may take), `grid` and `cma` (which points, in
//! which order), `log` (a point that was
//! scored is not scored again), [`search`] (the loop). The same space, method, seed and scores give the same points in the same order,
//! whether or not scores come from the log: an interrupted search is replayed from its log.

mod check;
mod cma;
mod grid;
mod log;
mod places;
mod space;

pub use check::PointCheck;
pub use log::PointLog;
pub use space::{Knob, KnobRange, Space};

use aloe_record::{Cancel, Progress};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The most points, repeats included, where no number is given.
pub const DEFAULT_EVALUATIONS: usize = 100;

/// How points are proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proposer {
    /// Every combination of the knobs' values, the last knob fastest.
    Grid,
    /// CMA-ES (Hansen 2016, arXiv:1604.00772) in the box of the knobs' ranges.
    Cmaes,
}

/// How a space is searched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSettings {
    /// What proposes the points.
    pub method: Proposer,
    /// The most points asked for, repeats included. A larger grid is refused.
    #[serde(default = "default_evaluations")]
    pub evaluations: usize,
    /// CMA-ES: first standard deviation as a share of each knob's range; 0.3 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma: Option<f64>,
    /// CMA-ES: points per generation; 4 + floor(3 ln(knobs)) by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub population: Option<usize>,
    /// CMA-ES: seed of the proposals.
    #[serde(default)]
    pub seed: u64,
}

fn default_evaluations() -> usize {
    DEFAULT_EVALUATIONS
}

/// A scored point.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredPoint<T> {
    /// The knobs' values, in the order of the space.
    pub values: Vec<f64>,
    /// What is maximised.
    pub score: f64,
    /// What the scoring closure keeps beside the score.
    pub detail: T,
}

/// What became of a point.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<T> {
    /// Its score and what is kept beside it.
    Scored(f64, T),
    /// Why nothing can be merged with these values.
    Refused(String),
}

impl<T> From<(f64, T)> for Outcome<T> {
    fn from((score, detail): (f64, T)) -> Self {
        Self::Scored(score, detail)
    }
}

/// A point that nothing could be merged with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RefusedPoint {
    /// The knobs' values, in the order of the space.
    pub values: Vec<f64>,
    /// Why.
    pub reason: String,
}

/// What a refused point counts as: below every share of right answers, by more than the distance to the box costs.
const WORST: f64 = -1e6;

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Searched<T> {
    /// Every distinct point, in the order first asked for.
    pub points: Vec<ScoredPoint<T>>,
    /// Distinct points that could not be merged, in the order first asked for.
    pub refused: Vec<RefusedPoint>,
    /// How often a point was asked for, repeats included.
    pub n_asked: usize,
    /// Why the search ended, in words.
    pub ended: String,
}

impl<T> Searched<T> {
    /// The index of the highest score; of several the first. `None` only of an empty table.
    pub fn best(&self) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (index, point) in self.points.iter().enumerate() {
            if best.is_none_or(|best| point.score > self.points[best].score) {
                best = Some(index);
            }
        }
        best
    }

    /// The points that share the highest score.
    pub fn tied(&self) -> Vec<usize> {
        let Some(best) = self.best() else { return Vec::new() };
        (0..self.points.len()).filter(|&index| self.points[index].score == self.points[best].score).collect()
    }
}

/// Searches `space`. `score` gets a point's values and its YAML and is called once for each distinct point that `log` does not hold;
/// higher is better. A point that it refuses counts as worst and is not logged. `log` keys are made of `scope`, which must name everything but the YAML that decides a score.
pub fn search<T, E>(
    space: &Space,
    settings: &SearchSettings,
    (log, scope): (&mut PointLog<T>, &str),
    (progress, cancel): (&Progress, &Cancel),
    mut score: impl FnMut(&[f64], &str) -> Result<Outcome<T>, E>,
) -> Result<Searched<T>, E>
where
    T: Clone + Serialize + DeserializeOwned,
    E: From<crate::Error>,
{
    let mut found = Searched { points: Vec::new(), refused: Vec::new(), n_asked: 0, ended: String::new() };
    let mut ask = |values: &[f64]| -> Result<f64, E> {
        cancel.check().map_err(crate::Error::from)?;
        found.n_asked += 1;
        if let Some(known) = found.points.iter().find(|point| point.values == values) {
            progress.advance(1);
            return Ok(known.score);
        }
        if found.refused.iter().any(|point| point.values == values) {
            progress.advance(1);
            return Ok(WORST);
        }
        let (yaml, described) = (space.yaml(values), space.describe(values));
        progress.message(&described);
        let key = PointLog::<T>::key(scope, &yaml);
        let (score, detail) = match log.get(&key) {
            Some(known) => {
                progress.resume(1);
                known
            }
            None => {
                let scored = match score(values, &yaml)? {
                    Outcome::Scored(score, detail) => (score, detail),
                    Outcome::Refused(reason) => {
                        found.refused.push(RefusedPoint { values: values.to_vec(), reason });
                        progress.advance(1);
                        return Ok(WORST);
                    }
                };
                log.put(&key, &scored)?;
                progress.advance(1);
                scored
            }
        };
        found.points.push(ScoredPoint { values: values.to_vec(), score, detail });
        Ok(score)
    };
    let ended = match settings.method {
        Proposer::Grid => grid::run(space, &mut ask)?,
        Proposer::Cmaes => cma::run(space, settings, &mut ask)?,
    };
    found.ended = ended;
    Ok(found)
}

#[cfg(test)]
mod tests;
