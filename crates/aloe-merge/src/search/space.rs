//! The space of a search: knobs, each a range and the places in the YAML that it sets. Checked whole; every mistake is found before
//! anything is merged.
//!
//! A knob sets numeric parameters of mergekit's that stand in the file: the text is changed at that number and nowhere else. What is not
//! written there (a default) is not found: write it into the file first. `*` stands for one step of a path, so that one knob can set
//! the same parameter of all models.

use super::places::{Place, places};
use super::{Proposer, SearchSettings, cma, grid};
use crate::config::{MergeConfig, Parameter, Range as Values};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::ops::Range;
use std::path::Path;

/// A number that is searched over.
#[derive(Clone, Debug, PartialEq)]
pub struct Knob {
    /// Its name in tables.
    pub name: String,
    /// The paths it sets, as written, `*` included.
    pub paths: Vec<String>,
    /// Its values.
    pub range: KnobRange,
}

/// The values a knob may take.
#[derive(Clone, Debug, PartialEq)]
pub enum KnobRange {
    /// These, in order.
    Values(Vec<f64>),
    /// Every number between two.
    Between(f64, f64),
}

impl KnobRange {
    /// The values of a grid; the ends of a range between two.
    pub fn values(&self) -> Vec<f64> {
        match self {
            Self::Values(values) => values.clone(),
            Self::Between(from, to) => vec![*from, *to],
        }
    }

    /// The lowest and the highest value.
    pub fn ends(&self) -> (f64, f64) {
        let values = self.values();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        (low, values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    }
}

/// A knob as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    paths: Option<Vec<String>>,
    from: Option<f64>,
    to: Option<f64>,
    steps: Option<usize>,
    values: Option<Vec<f64>>,
}

/// Knobs and the YAML that they set.
#[derive(Clone, Debug)]
pub struct Space {
    /// The knobs, in the order written.
    pub knobs: Vec<Knob>,
    text: String,
    /// Bytes of the text and the knob that sets them, in the order of the text.
    edits: Vec<(Range<usize>, usize)>,
}

impl Space {
    /// Reads the knobs of `written` (from a table `[space]`), finds their places in `yaml` and checks all values.
    pub fn new(yaml: &str, written: &Map<String, Value>, settings: &SearchSettings) -> Result<Self, Vec<String>> {
        MergeConfig::parse(yaml, Path::new("yaml")).map_err(|error| vec![error.to_string()])?;
        let mut mistakes = Vec::new();
        let mut found = Vec::new();
        flatten("", written, &mut found);
        if found.is_empty() {
            mistakes.push("space is empty: name at least one parameter to search over".to_owned());
        }
        let mut space = Self { knobs: Vec::new(), text: yaml.to_owned(), edits: Vec::new() };
        let all = places(yaml);
        for (name, table) in found {
            match knob(&name, table, settings.method) {
                Ok(knob) => space.add(knob, &all, settings.method, &mut mistakes),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        space.edits.sort_by_key(|(bytes, _)| bytes.start);
        if mistakes.is_empty() {
            space.check(settings, &mut mistakes);
        }
        if mistakes.is_empty() { Ok(space) } else { Err(mistakes) }
    }

    /// The YAML with a point's values in their places.
    pub fn yaml(&self, point: &[f64]) -> String {
        let mut text = self.text.clone();
        for (bytes, knob) in self.edits.iter().rev() {
            text.replace_range(bytes.clone(), &number(point[*knob]));
        }
        text
    }

    /// A point in words.
    pub fn describe(&self, point: &[f64]) -> String {
        let named = self.knobs.iter().zip(point).map(|(knob, value)| format!("{} {value}", knob.name));
        named.collect::<Vec<_>>().join(", ")
    }

    /// How many points will be asked for, at most.
    pub fn n_points(&self, settings: &SearchSettings) -> usize {
        match settings.method {
            Proposer::Grid => self.grid_len().unwrap_or(usize::MAX),
            Proposer::Cmaes => cma::n_points(settings, self.knobs.len()),
        }
    }

    /// Where CMA-ES starts: at the file's own values where they lie in the range, in its middle otherwise.
    pub(super) fn start(&self) -> Vec<f64> {
        let own = |knob: usize| {
            let (bytes, _) = self.edits.iter().find(|(_, of)| *of == knob)?;
            self.text[bytes.clone()].trim_matches(['"', '\'']).parse::<f64>().ok()
        };
        let of = |(index, knob): (usize, &Knob)| {
            let (from, to) = knob.range.ends();
            own(index).filter(|value| (from..=to).contains(value)).unwrap_or(from + 0.5 * (to - from))
        };
        self.knobs.iter().enumerate().map(of).collect()
    }

    fn grid_len(&self) -> Option<usize> {
        self.knobs.iter().try_fold(1usize, |product, knob| product.checked_mul(knob.range.values().len()))
    }

    /// Finds the places of a knob's paths.
    fn add(&mut self, knob: Knob, all: &[(Vec<String>, Place)], method: Proposer, mistakes: &mut Vec<String>) {
        let index = self.knobs.len();
        for path in &knob.paths {
            let pattern: Vec<&str> = path.split('.').collect();
            let hits: Vec<_> = all.iter().filter(|(found, _)| matches(&pattern, found)).collect();
            if hits.is_empty() {
                mistakes.push(unknown_path(path, all));
            }
            for (found, place) in hits {
                match settable(found, place, &self.text, method) {
                    Ok(bytes) if self.edits.iter().any(|(taken, _)| *taken == bytes) => {
                        mistakes.push(format!("space: {} is set twice", found.join(".")));
                    }
                    Ok(bytes) => self.edits.push((bytes, index)),
                    Err(reason) => mistakes.push(format!("space: {}: {reason}", found.join("."))),
                }
            }
        }
        self.knobs.push(knob);
    }

    /// The size of the search, and every value by mergekit's own rules.
    fn check(&self, settings: &SearchSettings, mistakes: &mut Vec<String>) {
        match settings.method {
            Proposer::Grid => {
                if settings.sigma.is_some() || settings.population.is_some() {
                    mistakes.push("search: sigma and population are for cmaes; leave them out".into());
                }
                match self.grid_len() {
                    Some(n_points) if n_points <= settings.evaluations => {}
                    Some(n_points) => mistakes.push(format!(
                        "space: the grid has {n_points} points and search.evaluations allows {}: fewer steps, or more evaluations",
                        settings.evaluations
                    )),
                    None => mistakes.push("space: the grid has more points than can be counted".into()),
                }
            }
            Proposer::Cmaes => {
                let population = cma::population(settings, self.knobs.len());
                if population < 2 {
                    mistakes.push("search.population must be at least 2".into());
                } else if settings.evaluations < population {
                    mistakes.push(format!(
                        "search.evaluations is {}, and one generation of cmaes takes {population}",
                        settings.evaluations
                    ));
                }
                if settings.sigma.is_some_and(|sigma| !(sigma > 0.0 && sigma <= 1.0)) {
                    mistakes.push("search.sigma must be above 0 and at most 1: it is a share of each range".into());
                }
            }
        }
        if !mistakes.is_empty() {
            return;
        }
        // A parameter's rule looks at its own value alone, so each knob's values are checked with the others at their first.
        let first: Vec<f64> = self.knobs.iter().map(|knob| knob.range.values()[0]).collect();
        for (index, knob) in self.knobs.iter().enumerate() {
            for value in knob.range.values() {
                let mut point = first.clone();
                point[index] = value;
                if let Err(error) = MergeConfig::parse(&self.yaml(&point), Path::new("yaml")) {
                    mistakes.push(format!("space: {} = {value}: {error}", knob.name));
                }
            }
        }
    }

    /// Every point of the grid.
    pub fn grid(&self) -> Vec<Vec<f64>> {
        grid::points(self)
    }
}

/// TOML's unquoted `models.0.parameters.density` is a table in a table: names are put together again.
fn flatten<'a>(prefix: &str, table: &'a Map<String, Value>, found: &mut Vec<(String, &'a Value)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(inner) if !inner.is_empty() && inner.values().all(Value::is_object) => {
                flatten(&name, inner, found);
            }
            _ => found.push((name, value)),
        }
    }
}

fn knob(name: &str, table: &Value, method: Proposer) -> Result<Knob, String> {
    let wrong = |reason: String| format!("space: {name}: {reason}");
    let written: Written = Written::deserialize(table).map_err(|error| wrong(error.to_string()))?;
    let range = range(&written, method).map_err(wrong)?;
    let paths = written.paths.unwrap_or_else(|| vec![name.to_owned()]);
    if paths.is_empty() {
        return Err(wrong("paths is empty".into()));
    }
    Ok(Knob { name: name.to_owned(), paths, range })
}

fn range(written: &Written, method: Proposer) -> Result<KnobRange, String> {
    let ends = match (&written.values, written.from, written.to, written.steps) {
        (Some(values), None, None, None) if method == Proposer::Grid => return listed(values.clone()),
        (Some(_), ..) if method == Proposer::Cmaes => {
            return Err("values is for a grid; cmaes takes from and to".into());
        }
        (Some(_), ..) => return Err("values stands alone: leave from, to and steps out".into()),
        (None, Some(from), Some(to), _) => (from, to),
        _ => return Err("from and to are needed, or values".into()),
    };
    let (from, to) = ends;
    if !(from.is_finite() && to.is_finite() && from < to) {
        return Err(format!("from {from} to {to} is an empty range"));
    }
    match (method, written.steps) {
        (Proposer::Cmaes, None) => Ok(KnobRange::Between(from, to)),
        (Proposer::Cmaes, Some(_)) => Err("steps is for a grid; cmaes takes any number between from and to".into()),
        (Proposer::Grid, Some(steps)) if steps >= 2 => {
            // Twelve decimals at most: 0.3 and two steps of 0.2 are 0.7, not 0.7000000000000001.
            let value = |step: usize| from + (to - from) * step as f64 / (steps - 1) as f64;
            listed(
                (0..steps)
                    .map(|step| format!("{:.12e}", value(step)).parse().unwrap_or_else(|_| value(step)))
                    .collect(),
            )
        }
        (Proposer::Grid, _) => Err("a grid needs steps, at least 2 (both ends count)".into()),
    }
}

fn listed(values: Vec<f64>) -> Result<KnobRange, String> {
    let is_twice = |(index, value): (usize, &f64)| values[..index].contains(value);
    if values.is_empty() {
        return Err("values is empty".into());
    }
    if values.iter().enumerate().any(is_twice) {
        return Err("a value stands there twice".into());
    }
    Ok(KnobRange::Values(values))
}

fn matches(pattern: &[&str], path: &[String]) -> bool {
    pattern.len() == path.len() && pattern.iter().zip(path).all(|(step, found)| *step == "*" || step == found)
}

/// The parameter that a path is of: the step after `parameters`.
fn parameter(path: &[String]) -> Option<Parameter> {
    let at = path.iter().position(|step| step == "parameters")?;
    Parameter::of_name(path.get(at + 1)?)
}

/// The bytes of the number at a place.
fn settable(path: &[String], place: &Place, text: &str, method: Proposer) -> Result<Range<usize>, String> {
    let Some(parameter) = parameter(path) else {
        return Err("is no parameter: a path leads through `parameters` to one of mergekit's".into());
    };
    match parameter.range() {
        Values::Flag | Values::Kind => return Err(format!("{} is not a number", parameter.name())),
        Values::Count if method == Proposer::Cmaes => {
            return Err(format!("{} is a whole number, which cmaes cannot search: use a grid", parameter.name()));
        }
        _ => {}
    }
    match place {
        Place::Scalar(bytes) if text[bytes.clone()].trim_matches(['"', '\'']).parse::<f64>().is_ok() => {
            Ok(bytes.clone())
        }
        Place::Scalar(bytes) => Err(format!("{:?} is not a number", &text[bytes.clone()])),
        Place::Collection => Err(format!("is a list or a table; name one number in it, such as {}.0", path.join("."))),
        Place::Alias => Err("is an alias (*); name the place of its anchor (&) instead".into()),
    }
}

fn unknown_path(path: &str, all: &[(Vec<String>, Place)]) -> String {
    let is_number = |found: &Vec<String>| {
        parameter(found).is_some_and(|parameter| !matches!(parameter.range(), Values::Flag | Values::Kind))
    };
    let known = all.iter().filter(|(found, place)| matches!(place, Place::Scalar(_)) && is_number(found));
    let known: Vec<String> = known.take(12).map(|(found, _)| found.join(".")).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    format!("space: the YAML has no {path}; a default must be written there to be searched. Numbers there are: {known}")
}

/// A number in YAML 1.1: no exponent, since PyYAML reads `1e-8` as text.
fn number(value: f64) -> String {
    format!("{value}")
}
