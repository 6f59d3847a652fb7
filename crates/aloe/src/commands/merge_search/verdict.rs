//! What the scores of a search allow to say: ties, the best against every other point and input on the same questions, and how many
//! of them it cannot be told from.
//!
//! The best of many noisy scores is always someone's. Each comparison is an exact McNemar test over the questions that only one of the
//! two has right; Holm's correction is over all comparisons of the search. Even so the best score itself is biased upward, since it
//! was picked by being high: that is said, and only a set that the search has not seen can take it away.

use super::Answers;
use aloe_eval::EvalConfig;
use aloe_eval::compare::ALPHA;
use aloe_eval::metrics::Estimate;
use aloe_eval::stats::{clustered_mean, holm, mcnemar_exact};
use aloe_merge::search::{Searched, Space};
use aloe_report::{Align, Table};
use serde::Serialize;

/// A model on the questions of the search.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// `point 3`, from 1, or an input's name.
    pub(super) name: String,
    /// Share of right answers.
    pub(super) acc: Estimate,
    /// The best point against it; none for the best itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) best_against: Option<Against>,
}

/// The best point against another model, question by question.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Against {
    /// Accuracy of the best less that of the other.
    pub(super) difference: f64,
    /// Paired standard error of the difference.
    pub(super) stderr: f64,
    /// Questions that only the best has right.
    pub(super) n_only_best: usize,
    /// Questions that only the other has right.
    pub(super) n_only_other: usize,
    /// Two-sided exact McNemar test.
    pub(super) p_value: f64,
    /// After Holm's correction over all comparisons of the search.
    pub(super) p_holm: f64,
}

impl Against {
    /// Whether the two can be told apart.
    pub(super) fn differs(&self) -> bool {
        self.p_holm < ALPHA
    }

    fn words(&self) -> String {
        format!(
            "{:+.2} % +- {:.2} (paired), p {:.4}, {:.4} by Holm",
            100.0 * self.difference,
            100.0 * self.stderr,
            self.p_value,
            self.p_holm
        )
    }
}

/// What may be said.
pub(super) struct Verdict {
    /// Index of the point that is written.
    pub(super) best: usize,
    /// Points that share its score, itself included.
    pub(super) tied: Vec<usize>,
    /// The points in the order asked.
    pub(super) points: Vec<Row>,
    /// The unmerged inputs.
    pub(super) inputs: Vec<Row>,
    /// The sentences.
    pub(super) words: Vec<String>,
}

impl Verdict {
    /// Compares the best point with all others; a search has at least one point.
    pub(super) fn of(space: &Space, found: &Searched<Answers>, unmerged: &[(String, Answers)]) -> Self {
        let best = found.best().unwrap_or(0);
        let answers = &found.points[best].detail;
        let mut points: Vec<Row> = found
            .points
            .iter()
            .enumerate()
            .map(|(at, point)| row(format!("point {}", at + 1), &point.detail, answers, at == best))
            .collect();
        let mut inputs: Vec<Row> =
            unmerged.iter().map(|(name, other)| row(name.clone(), other, answers, false)).collect();
        let mut against: Vec<&mut Against> =
            points.iter_mut().chain(&mut inputs).filter_map(|row| row.best_against.as_mut()).collect();
        let adjusted = holm(&against.iter().map(|one| one.p_value).collect::<Vec<_>>());
        against.iter_mut().zip(adjusted).for_each(|(one, p_holm)| one.p_holm = p_holm);
        let mut verdict = Self { best, tied: found.tied(), points, inputs, words: Vec::new() };
        verdict.words = verdict.sentences(space, found);
        verdict
    }

    fn sentences(&self, space: &Space, found: &Searched<Answers>) -> Vec<String> {
        let acc = self.points[self.best].acc;
        let (value, stderr) = (100.0 * acc.value, 100.0 * acc.stderr);
        let n = found.points[self.best].detail.n();
        let described = space.describe(&found.points[self.best].values);
        let mut words = Vec::new();
        words.push(match self.tied.len() {
            1 => format!("Best: point {} ({described}), {value:.2} % +- {stderr:.2} of {n} questions.", self.best + 1),
            n_tied => {
                let names: Vec<String> = self.tied.iter().map(|at| (at + 1).to_string()).collect();
                format!(
                    "A tie: {n_tied} points have {value:.2} % +- {stderr:.2} of {n} questions (points {}). The first of them, point {} \
                     ({described}), is written.",
                    names.join(", "),
                    self.best + 1
                )
            }
        });
        words.extend(self.not_above_an_input().map(|text| format!("{text}.")));
        let n_others = self.points.len() - 1;
        let n_tests = n_others + self.inputs.len();
        if n_tests > 0 {
            words.push(format!(
                "{} ({n_tests} exact McNemar tests on the same questions, {ALPHA} level, Holm's correction).",
                self.told_apart()
            ));
        }
        if let Some(second) = self.runner_up() {
            let against = second.best_against.as_ref().map(Against::words).unwrap_or_default();
            words.push(format!("Against the runner-up, {}: {against}.", second.name));
        }
        for input in &self.inputs {
            let against = input.best_against.as_ref().map(Against::words).unwrap_or_default();
            words.push(format!("Against unmerged {}: {against}.", input.name));
        }
        if let Some(first) = found.refused.first() {
            words.push(format!(
                "{} proposed point{} cannot be merged and counted as worst; the first, {}: {}.",
                found.refused.len(),
                if found.refused.len() == 1 { "" } else { "s" },
                space.describe(&first.values),
                first.reason
            ));
        }
        if n_others > 0 {
            words.push(format!(
                "The best of {} scores on the same questions is biased upward: report this merge on a set that the search has not seen.",
                self.points.len()
            ));
        }
        words
    }

    /// From how many of the others the best can be told.
    fn told_apart(&self) -> String {
        let same =
            |rows: &[Row]| rows.iter().filter_map(|row| row.best_against.as_ref()).filter(|one| !one.differs()).count();
        let (n_points, n_inputs) = (self.points.len() - 1, self.inputs.len());
        let parts: Vec<String> =
            [(same(&self.points), n_points, "other points"), (same(&self.inputs), n_inputs, "unmerged inputs")]
                .into_iter()
                .filter(|(_, n, _)| *n > 0)
                .map(|(same, n, what)| format!("{same} of the {n} {what}"))
                .collect();
        match same(&self.points) + same(&self.inputs) {
            0 => "Distinguishable from every other point and unmerged input".to_owned(),
            _ => format!("Not distinguishable from {}", parts.join(" and ")),
        }
    }

    /// The best of the unmerged inputs, where no merge scored above it.
    fn not_above_an_input(&self) -> Option<String> {
        let best = self.inputs.iter().reduce(|best, row| if row.acc.value > best.acc.value { row } else { best })?;
        let is_above = self.points[self.best].acc.value > best.acc.value;
        (!is_above)
            .then(|| format!("No merge scored above the unmerged {} ({:.2} %)", best.name, 100.0 * best.acc.value))
    }

    /// The second of the points by score; of several the first asked.
    fn runner_up(&self) -> Option<&Row> {
        let others = self.points.iter().enumerate().filter(|(at, _)| *at != self.best).map(|(_, row)| row);
        others.reduce(|second, row| if row.acc.value > second.acc.value { row } else { second })
    }

    /// One line.
    pub(super) fn summary(&self, space: &Space, found: &Searched<Answers>, config: &EvalConfig) -> String {
        let acc = self.points[self.best].acc;
        let tasks: Vec<String> = config.tasks.iter().map(|task| task.name()).collect();
        let head = match self.tied.len() {
            1 => format!("best of {} points", self.points.len()),
            n_tied => format!("a tie of {n_tied} of {} points, the first", self.points.len()),
        };
        let told = self.told_apart();
        let after = |text: &str| format!("; {}{}", text[..1].to_lowercase(), &text[1..]);
        let told = if self.points.len() + self.inputs.len() > 1 { after(&told) } else { String::new() };
        let not_above = self.not_above_an_input().map_or_else(String::new, |text| after(&text));
        format!(
            "{head}: {}: {:.2} % +- {:.2} ({}, {} split, {} questions){not_above}{told}",
            space.describe(&found.points[self.best].values),
            100.0 * acc.value,
            100.0 * acc.stderr,
            tasks.join(", "),
            config.split.name(),
            found.points[self.best].detail.n()
        )
    }

    /// Points by score, of equal ones the first asked first, then the inputs.
    pub(super) fn table(&self, space: &Space, found: &Searched<Answers>) -> Table {
        let mut columns = vec![("model", Align::Left)];
        columns.extend(space.knobs.iter().map(|knob| (knob.name.as_str(), Align::Right)));
        let tasks = &found.points[self.best].detail.tasks;
        if tasks.len() > 1 {
            columns.extend(tasks.iter().map(|share| (share.task.as_str(), Align::Right)));
        }
        columns.extend(
            ["acc %", "stderr", "95 % interval", "best minus it", "paired stderr", "p", "p (Holm)"]
                .map(|name| (name, Align::Right)),
        );
        columns.push(("", Align::Left));
        let mut table = Table::new(&columns);
        let mut order: Vec<usize> = (0..self.points.len()).collect();
        order.sort_by(|&a, &b| self.points[b].acc.value.total_cmp(&self.points[a].acc.value));
        for at in order {
            let point = &found.points[at];
            let words = match (&self.points[at].best_against, self.tied.contains(&at)) {
                (None, _) if self.tied.len() > 1 => "tied for best, written",
                (None, _) => "best",
                (Some(_), true) => "tied for best",
                (Some(against), _) if against.differs() => "lower",
                _ => "not distinguishable",
            };
            let values = point.values.iter().map(f64::to_string).collect();
            table.row(cells(&self.points[at], values, &point.detail, words));
        }
        for refused in &found.refused {
            let mut row = vec!["refused".to_owned()];
            row.extend(refused.values.iter().map(f64::to_string));
            row.resize(columns.len() - 1, "-".to_owned());
            row.push("cannot be merged".to_owned());
            table.row(row);
        }
        table
    }

    /// The unmerged inputs.
    pub(super) fn input_table(&self) -> Table {
        let names = ["acc %", "stderr", "95 % interval", "best minus it", "paired stderr", "p", "p (Holm)"];
        let mut columns = vec![("input", Align::Left)];
        columns.extend(names.map(|name| (name, Align::Right)));
        columns.push(("", Align::Left));
        let mut table = Table::new(&columns);
        for input in &self.inputs {
            let words = match &input.best_against {
                Some(against) if against.differs() && against.difference > 0.0 => "lower",
                Some(against) if against.differs() => "higher",
                _ => "not distinguishable",
            };
            table.row(figures(input, vec![input.name.clone()], words));
        }
        table
    }
}

fn cells(row: &Row, values: Vec<String>, answers: &Answers, words: &str) -> Vec<String> {
    let mut cells = vec![row.name.clone()];
    cells.extend(values);
    if answers.tasks.len() > 1 {
        cells.extend(answers.tasks.iter().map(|share| format!("{:.2}", 100.0 * share.n_right as f64 / share.n as f64)));
    }
    figures(row, cells, words)
}

fn figures(row: &Row, mut cells: Vec<String>, words: &str) -> Vec<String> {
    cells.push(format!("{:.2}", 100.0 * row.acc.value));
    cells.push(format!("{:.2}", 100.0 * row.acc.stderr));
    cells.push(row.acc.interval.map_or_else(String::new, |interval| interval.percent(1)));
    match &row.best_against {
        Some(one) => cells.extend([
            format!("{:+.2}", 100.0 * one.difference),
            format!("{:.2}", 100.0 * one.stderr),
            format!("{:.4}", one.p_value),
            format!("{:.4}", one.p_holm),
        ]),
        None => cells.extend(["-", "-", "-", "-"].map(String::from)),
    }
    cells.push(words.to_owned());
    cells
}

fn row(name: String, answers: &Answers, best: &Answers, is_best: bool) -> Row {
    Row {
        name,
        acc: Estimate::share(answers.n_right(), answers.n()),
        best_against: (!is_best).then(|| against(&best.right, &answers.right)),
    }
}

/// Compares outcomes, a digit a question.
fn against(best: &str, other: &str) -> Against {
    let pairs = || best.bytes().zip(other.bytes());
    let differences: Vec<(f64, f64)> = pairs().map(|(a, b)| (f64::from(a) - f64::from(b), 1.0)).collect();
    let (difference, stderr) = clustered_mean(&differences);
    let n_only_best = pairs().filter(|(a, b)| a > b).count();
    let n_only_other = pairs().filter(|(a, b)| a < b).count();
    let p_value = mcnemar_exact(n_only_best, n_only_other);
    Against {
        difference,
        stderr: if stderr.is_finite() { stderr } else { 0.0 },
        n_only_best,
        n_only_other,
        p_value,
        p_holm: p_value,
    }
}

#[cfg(test)]
mod tests;
