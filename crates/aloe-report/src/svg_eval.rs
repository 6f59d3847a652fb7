//! The plots of an evaluation as SVG: bars in groups, and shares against what was promised. Half as wide as the others: two stand side
//! by side. Colours and helpers are those of `svg`.

use crate::html::escape;
use crate::plot::{GroupedBarPlot, GroupedRow, Point, ReliabilityPlot};
use crate::scale::{Axis, Scaling};
use crate::svg::{COLOURS, RIGHT, TOP, grid_x, open, shortened};
use std::fmt::Write as _;

const WIDTH: f64 = 480.0;
const BAR: f64 = 13.0;
const BETWEEN_ROWS: f64 = 11.0;
/// The side of the reliability diagram.
const SIDE: f64 = 300.0;

/// The bars of `plot`.
pub(crate) fn grouped_bars(plot: &GroupedBarPlot) -> String {
    let labels = label_width(plot);
    let bars = || plot.rows.iter().flat_map(|row| row.bars.iter().flatten());
    let ends =
        bars().flat_map(|(value, interval)| [Some(*value), interval.map(|one| one.0), interval.map(|one| one.1)]);
    let marks = plot.rows.iter().filter_map(|row| row.mark);
    let x = Axis::covering(ends.flatten().chain(marks).chain([0.0]), Scaling::Linear, 5);
    let at_x = |place: f64| labels + place * (WIDTH - labels - RIGHT);
    let row_height = BAR * plot.groups.len().max(1) as f64 + BETWEEN_ROWS;
    let bottom = TOP + row_height * plot.rows.len() as f64;
    let mut entries: Vec<(String, &str)> = Vec::new();
    if plot.groups.len() > 1 {
        entries.extend(plot.groups.iter().enumerate().map(|(at, name)| (swatch(at), name.as_str())));
    }
    entries.extend(plot.mark.iter().map(|name| ("<path d=\"M0 0h18\" class=\"r\"/>".to_owned(), name.as_str())));
    let mut svg = open(&plot.title, WIDTH, bottom + 44.0 + 18.0 * entries.len() as f64);
    svg += &grid_x(&x, &at_x, bottom);
    svg += &text((labels + WIDTH - RIGHT) / 2.0, bottom + 34.0, "m", &plot.x_label);
    for (index, row) in plot.rows.iter().enumerate() {
        let top = TOP + row_height * index as f64 + BETWEEN_ROWS / 2.0;
        svg += &grouped_row(row, plot, top, &|value| x.place(value).map(at_x));
        let name = shortened(&row.name, (labels / 6.4) as usize);
        svg += &text(labels - 8.0, top + (row_height - BETWEEN_ROWS) / 2.0 + 4.0, "e", &name);
    }
    svg + &legend(&entries, labels, bottom + 54.0) + "</svg>\n"
}

/// Room for the longest name, within bounds.
fn label_width(plot: &GroupedBarPlot) -> f64 {
    let longest = plot.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    (16.0 + 7.0 * longest as f64).clamp(40.0, 190.0)
}

fn grouped_row(row: &GroupedRow, plot: &GroupedBarPlot, top: f64, at_x: &dyn Fn(f64) -> Option<f64>) -> String {
    let mut svg = String::new();
    for (group, bar) in row.bars.iter().enumerate() {
        let Some((value, interval)) = bar else { continue };
        let (Some(zero), Some(end)) = (at_x(0.0), at_x(*value)) else { continue };
        let y = top + BAR * group as f64;
        let said =
            plot.groups.get(group).filter(|_| plot.groups.len() > 1).map_or(String::new(), |name| format!(", {name}"));
        let _ = writeln!(
            svg,
            "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\" fill=\"{}\"><title>{}{}: {:.2}</title></rect>",
            zero.min(end),
            y + 1.0,
            (end - zero).abs(),
            BAR - 2.0,
            COLOURS[group % COLOURS.len()],
            escape(&row.name),
            escape(&said),
            value
        );
        if let Some((low, high)) = interval.and_then(|(low, high)| Some((at_x(low)?, at_x(high)?))) {
            let _ = writeln!(
                svg,
                "<path d=\"M{low:.2} {0:.2}v6m0 -3H{high:.2}m0 -3v6\" class=\"i\"/>",
                y + BAR / 2.0 - 3.0
            );
        }
    }
    if let Some(at) = row.mark.and_then(at_x) {
        let height = BAR * plot.groups.len().max(1) as f64;
        let _ = writeln!(svg, "<path d=\"M{at:.2} {:.2}v{:.2}\" class=\"r\"/>", top - 3.0, height + 6.0);
    }
    svg
}

/// The points of `plot` over 0 to 100 % both ways.
pub(crate) fn reliability(plot: &ReliabilityPlot) -> String {
    const LEFT: f64 = 62.0;
    let axis = Axis::covering([0.0, 100.0].into_iter(), Scaling::Linear, 5);
    let at_x = |place: f64| LEFT + place * SIDE;
    let at_y = |place: f64| TOP + (1.0 - place) * SIDE;
    let bottom = TOP + SIDE;
    let mut entries = vec![("<path d=\"M0 0h18\" class=\"r\"/>".to_owned(), "as often right as promised")];
    if plot.series.len() > 1 {
        entries.extend(plot.series.iter().enumerate().map(|(at, series)| (swatch(at), series.name.as_str())));
    }
    let mut svg = open(&plot.title, WIDTH, bottom + 44.0 + 18.0 * entries.len() as f64);
    svg += &grid_x(&axis, &at_x, bottom);
    for &tick in &axis.ticks {
        let y = at_y(axis.place(tick).unwrap_or(0.0));
        let _ = writeln!(svg, "<path d=\"M{LEFT:.2} {y:.2}h{SIDE:.2}\" class=\"g\"/>");
        svg += &text(LEFT - 6.0, y + 4.0, "e", &axis.label(tick));
    }
    svg += &text(LEFT + SIDE / 2.0, bottom + 34.0, "m", &plot.x_label);
    let _ = writeln!(
        svg,
        "<text transform=\"translate(14 {:.2}) rotate(-90)\" class=\"m\">{}</text>",
        TOP + SIDE / 2.0,
        escape(&plot.y_label)
    );
    let _ = writeln!(svg, "<path d=\"M{LEFT:.2} {bottom:.2}L{:.2} {TOP:.2}\" class=\"r\"/>", LEFT + SIDE);
    let most = plot.series.iter().flat_map(|series| series.points.iter().map(|point| point.n)).max().unwrap_or(1);
    for (index, series) in plot.series.iter().enumerate() {
        for point in &series.points {
            svg += &dot(point, &series.name, index, most, &|v| axis.place(v).map(at_x), &|v| axis.place(v).map(at_y));
        }
    }
    svg + &legend(&entries, LEFT, bottom + 54.0) + "</svg>\n"
}

type Place<'a> = &'a dyn Fn(f64) -> Option<f64>;

/// A point whose area grows with what it rests on.
fn dot(point: &Point, name: &str, index: usize, most: usize, at_x: Place<'_>, at_y: Place<'_>) -> String {
    let Point { x, y, interval: (low, high), n } = *point;
    let (Some(cx), Some(cy), Some(from), Some(to)) = (at_x(x), at_y(y), at_y(low), at_y(high)) else {
        return String::new();
    };
    let radius = 2.5 + 5.5 * (n as f64 / most.max(1) as f64).sqrt();
    let colour = COLOURS[index % COLOURS.len()];
    format!(
        "<path d=\"M{:.2} {from:.2}h6m-3 0V{to:.2}m-3 0h6\" class=\"i\"/>\n<circle cx=\"{cx:.2}\" cy=\"{cy:.2}\" r=\"{radius:.2}\" \
         fill=\"{colour}\"><title>{}: {y:.1} % right at {x:.1} % ({n} questions)</title></circle>\n",
        cx - 3.0,
        escape(name)
    )
}

fn swatch(index: usize) -> String {
    format!("<rect x=\"0\" y=\"-5\" width=\"18\" height=\"10\" fill=\"{}\"/>", COLOURS[index % COLOURS.len()])
}

/// One entry a line: run names are long.
fn legend(entries: &[(String, &str)], x: f64, top: f64) -> String {
    let entry = |(at, (drawn, name)): (usize, &(String, &str))| {
        let y = top + 18.0 * at as f64;
        let name = text(26.0, 4.0, "", &shortened(name, ((WIDTH - x - 30.0) / 6.4) as usize));
        format!("<g transform=\"translate({x:.2} {y:.2})\">{drawn}{name}</g>\n")
    };
    entries.iter().enumerate().map(entry).collect()
}

fn text(x: f64, y: f64, class: &str, said: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<text x=\"{x:.2}\" y=\"{y:.2}\"{class}>{}</text>\n", escape(said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::PointSeries;

    /// By hand: one-letter names take 40; bars over 40..464, values 0..100 with chance 25: half is 212 wide, chance lies at 146.
    #[test]
    fn bars_of_a_row_lie_under_each_other_with_their_intervals_and_the_rows_mark() {
        let row = GroupedRow {
            name: "<t>".into(),
            bars: vec![Some((50.0, Some((25.0, 75.0)))), None, Some((100.0, None))],
            mark: Some(25.0),
        };
        let groups = ["a", "b", "c"].map(str::to_owned).to_vec();
        let plot = GroupedBarPlot { groups, rows: vec![row], mark: Some("chance".into()), ..GroupedBarPlot::default() };
        let svg = grouped_bars(&plot);
        assert!(svg.contains("<rect x=\"40.00\" y=\"20.50\" width=\"212.00\" height=\"11.00\""), "{svg}");
        assert!(svg.contains("M146.00 23.00v6m0 -3H358.00m0 -3v6"), "{svg}");
        assert!(
            svg.contains("<rect x=\"40.00\" y=\"46.50\" width=\"424.00\""),
            "the third, under the second's gap: {svg}"
        );
        assert!(svg.contains("M146.00 16.50v45.00") && svg.contains(">chance</text>"), "{svg}");
        assert!(svg.contains("&lt;t&gt;, a: 50.00") && !svg.contains("<t>"), "{svg}");
    }

    /// By hand: (50, 75) lies at (62 + 150, 14 + 75); the largest point has radius 8, one that rests on a quarter 2.5 + 5.5 / 2.
    #[test]
    fn points_lie_where_the_axes_say_and_their_area_tells_what_they_rest_on() {
        let point = |x, n| Point { x, y: 75.0, interval: (60.0, 90.0), n };
        let series = vec![PointSeries { name: "a".into(), points: vec![point(50.0, 40), point(100.0, 10)] }];
        let svg = reliability(&ReliabilityPlot { series, ..ReliabilityPlot::default() });
        assert!(svg.contains("<circle cx=\"212.00\" cy=\"89.00\" r=\"8.00\""), "{svg}");
        assert!(svg.contains("<circle cx=\"362.00\" cy=\"89.00\" r=\"5.25\""), "{svg}");
        assert!(svg.contains("M209.00 134.00h6m-3 0V44.00m-3 0h6"), "{svg}");
    }

    #[test]
    fn empty_plots_are_still_valid() {
        assert!(grouped_bars(&GroupedBarPlot::default()).ends_with("</svg>\n"));
        assert!(reliability(&ReliabilityPlot::default()).ends_with("</svg>\n"));
    }
}
