//! From figures to plots: accuracy by task and run, calibration, how the votes fell, which positions were chosen.

use super::figures::{Calibration, agreement, calibration, positions};
use super::{Run, by_task, labelled};
use crate::stats::{Interval, wilson};
use aloe_report::{GroupedBarPlot, GroupedRow, Page, Point, PointSeries, ReliabilityPlot};

/// Adds all plots that the runs have something for, with what they leave out.
pub(super) fn add(page: &mut Page, runs: &[(&str, &Run)]) {
    let calibrations: Vec<(String, Option<Calibration>)> =
        runs.iter().map(|(letter, run)| (labelled(letter, run, runs.len()), calibration(&run.samples))).collect();
    page.heading("Plots");
    page.side_by_side(|page| {
        page.grouped_bar_plot(&accuracy(runs));
        if calibrations.iter().any(|(_, found)| found.is_some()) {
            page.reliability_plot(&reliability(&calibrations));
        }
        for (letter, run) in runs {
            let name = labelled(letter, run, runs.len());
            if let Some(plot) = votes(run, &name) {
                page.grouped_bar_plot(&plot);
            }
            if let Some(plot) = chosen(run, &name) {
                page.grouped_bar_plot(&plot);
            }
        }
    });
}

fn scaled(interval: Interval) -> (f64, f64) {
    (100.0 * interval.low, 100.0 * interval.high)
}

fn accuracy(runs: &[(&str, &Run)]) -> GroupedBarPlot {
    let row = |(task, of_runs): (&str, Vec<(&str, &super::TaskRow)>)| {
        let bar = |(letter, _): &(&str, &Run)| {
            let counts = &of_runs.iter().find(|(known, _)| known == letter)?.1.counts;
            Some((100.0 * counts.acc.value, Some(scaled(counts.acc.interval_of(counts.n)))))
        };
        GroupedRow {
            name: task.to_owned(),
            bars: runs.iter().map(bar).collect(),
            mark: of_runs.first().map(|(_, row)| 100.0 * row.counts.chance),
        }
    };
    GroupedBarPlot {
        title: "Right answers by task, with 95 % intervals".into(),
        x_label: "% right".into(),
        groups: runs.iter().map(|(letter, run)| labelled(letter, run, runs.len())).collect(),
        rows: by_task(runs).into_iter().map(row).collect(),
        mark: Some("guessing".into()),
    }
}

fn reliability(calibrations: &[(String, Option<Calibration>)]) -> ReliabilityPlot {
    let point = |bin: &super::Bin| Point {
        x: 100.0 * bin.confidence,
        y: 100.0 * bin.right,
        interval: scaled(bin.interval),
        n: bin.n,
    };
    let series = |(name, found): &(String, Option<Calibration>)| PointSeries {
        name: name.clone(),
        points: found.iter().flat_map(|found| found.bins.iter().map(point)).collect(),
    };
    let error = |(name, found): &(String, Option<Calibration>)| {
        let found = found.as_ref()?;
        let name = if calibrations.len() > 1 { format!("{name} ") } else { String::new() };
        Some(format!("{name}{:.1} points over {} answers", 100.0 * found.error, found.n))
    };
    let errors: Vec<String> = calibrations.iter().filter_map(error).collect();
    ReliabilityPlot {
        title: format!(
            "Calibration: right answers by confidence, in bins of ten points; expected calibration error {}",
            errors.join(", ")
        ),
        x_label: "confidence: the answer's probability or share of votes, %".into(),
        y_label: "% right".into(),
        series: calibrations.iter().map(series).collect(),
    }
}

fn votes(run: &Run, name: &str) -> Option<GroupedBarPlot> {
    let found = agreement(&run.samples)?;
    let share = |n: usize| Some((100.0 * n as f64 / found.n as f64, None));
    let row = |(name, right, wrong): &(String, usize, usize)| GroupedRow {
        name: name.clone(),
        bars: vec![share(*right), share(*wrong)],
        mark: None,
    };
    Some(GroupedBarPlot {
        title: format!(
            "Vote agreement of {name}: questions by how many votes went to the answer, unparsed ones counted as votes"
        ),
        x_label: format!("% of {} questions", found.n),
        groups: vec!["right".into(), "wrong".into()],
        rows: found.bars.iter().map(row).collect(),
        mark: None,
    })
}

fn chosen(run: &Run, name: &str) -> Option<GroupedBarPlot> {
    let found = positions(run.tasks.iter().map(|row| &row.counts));
    let (n_chosen, n_keys) = found.iter().fold((0, 0), |(a, b), (chosen, key)| (a + chosen, b + key));
    if n_chosen == 0 || n_keys == 0 {
        return None;
    }
    let share = |n: usize, of: usize| n as f64 / of as f64;
    let row = |(place, &(chosen, key)): (usize, &(usize, usize))| GroupedRow {
        name: letter(place),
        bars: vec![
            Some((100.0 * share(chosen, n_chosen), Some(scaled(wilson(share(chosen, n_chosen), n_chosen as f64))))),
            Some((100.0 * share(key, n_keys), None)),
        ],
        mark: None,
    };
    Some(GroupedBarPlot {
        title: format!("Position bias of {name}: how often each position, as shown, was chosen and held the key"),
        x_label: format!("% of {n_chosen} parsed answers, and of {n_keys} keys"),
        groups: vec!["chosen".into(), "key".into()],
        rows: found.iter().enumerate().map(row).collect(),
        mark: None,
    })
}

fn letter(place: usize) -> String {
    let letter = u8::try_from(place).ok().filter(|&place| place < 26).map(|place| char::from(b'A' + place));
    letter.map_or_else(|| (place + 1).to_string(), String::from)
}
