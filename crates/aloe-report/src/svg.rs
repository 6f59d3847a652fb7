//! Plots as SVG: fixed positions with two decimals, so that equal figures give equal bytes. Lines differ in colour and dash, for prints
//! in grey and readers who see colours differently (palette: Okabe and Ito 2008).

use crate::html::escape;
use crate::plot::{BarPlot, LinePlot};
use crate::scale::{Axis, Scaling};
use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 78.0;
pub(crate) const RIGHT: f64 = 16.0;
pub(crate) const TOP: f64 = 14.0;
const PLOT_HEIGHT: f64 = 260.0;
pub(crate) const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#b8a900"];
const DASHES: [&str; 8] = ["", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3"];

/// The lines of `plot`.
pub(crate) fn lines(plot: &LinePlot) -> String {
    let points = || plot.series.iter().flat_map(|series| series.points.iter());
    let x = Axis::covering(points().filter(|(_, y)| y.is_finite()).map(|point| point.0), Scaling::Linear, 8);
    let y = Axis::covering(points().map(|point| point.1), plot.y_scaling, 5);
    let n_rows = plot.series.len().div_ceil(3);
    let height = TOP + PLOT_HEIGHT + 46.0 + 20.0 * n_rows as f64;
    let at_x = |place: f64| LEFT + place * (WIDTH - LEFT - RIGHT);
    let at_y = |place: f64| TOP + (1.0 - place) * PLOT_HEIGHT;
    let mut svg = open(&plot.title, WIDTH, height);
    svg += &grid_y(&y, &at_y);
    svg += &grid_x(&x, &at_x, TOP + PLOT_HEIGHT);
    svg += &axis_titles(&plot.x_label, &plot.y_label);
    for (index, series) in plot.series.iter().enumerate() {
        let place = |&(px, py): &(f64, f64)| Some((at_x(x.place(px)?), at_y(y.place(py)?)));
        let style = style(index);
        for run in series.points.iter().map(place).collect::<Vec<_>>().split(Option::is_none) {
            let run: Vec<(f64, f64)> = run.iter().flatten().copied().collect();
            svg += &polyline(&run, &style);
        }
        svg += &legend(index, &series.name, &style, TOP + PLOT_HEIGHT + 58.0);
    }
    svg + "</svg>\n"
}

/// The bars of `plot`.
pub(crate) fn bars(plot: &BarPlot) -> String {
    const LABELS: f64 = 210.0;
    const ROW: f64 = 24.0;
    let bounds =
        plot.bars.iter().flat_map(|bar| [Some(bar.value), bar.interval.map(|i| i.0), bar.interval.map(|i| i.1)]);
    let values = bounds.flatten().chain([0.0]).chain(plot.reference.as_ref().map(|reference| reference.1));
    let x = Axis::covering(values, Scaling::Linear, 6);
    let at_x = |place: f64| LABELS + place * (WIDTH - LABELS - RIGHT);
    let bottom = TOP + ROW * plot.bars.len() as f64;
    let mut svg = open(&plot.title, WIDTH, bottom + 62.0);
    svg += &grid_x(&x, &at_x, bottom);
    let _ = writeln!(
        svg,
        "<text x=\"{:.2}\" y=\"{:.2}\" class=\"m\">{}</text>",
        (LABELS + WIDTH - RIGHT) / 2.0,
        bottom + 36.0,
        escape(&plot.x_label)
    );
    for (index, bar) in plot.bars.iter().enumerate() {
        let middle = TOP + ROW * (index as f64 + 0.5);
        let name = shortened(&bar.name, 30);
        let _ = writeln!(
            svg,
            "<text x=\"{:.2}\" y=\"{:.2}\" class=\"e\">{}</text>",
            LABELS - 8.0,
            middle + 4.0,
            escape(&name)
        );
        let (Some(zero), Some(end)) = (x.place(0.0), x.place(bar.value)) else { continue };
        let (from, to) = (at_x(zero.min(end)), at_x(zero.max(end)));
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"14\" fill=\"{}\"><title>{}: {}</title></rect>",
            middle - 7.0,
            to - from,
            COLOURS[0],
            escape(&bar.name),
            bar.value
        );
        let interval = bar.interval.and_then(|(low, high)| Some((at_x(x.place(low)?), at_x(x.place(high)?))));
        if let Some((low, high)) = interval {
            let _ = writeln!(svg, "<path d=\"M{low:.2} {0:.2}v8m0 -4H{high:.2}m0 -4v8\" class=\"i\"/>", middle - 4.0);
        }
    }
    if let Some((name, place)) = plot.reference.as_ref().and_then(|(name, value)| Some((name, x.place(*value)?))) {
        let at = at_x(place);
        let _ = writeln!(svg, "<path d=\"M{at:.2} {TOP:.2}V{bottom:.2}\" class=\"r\"/>");
        let _ = writeln!(svg, "<text x=\"{at:.2}\" y=\"{:.2}\" class=\"m\">{}</text>", bottom + 54.0, escape(name));
    }
    svg + "</svg>\n"
}

/// The start of a drawing with its name for screen readers.
pub(crate) fn open(title: &str, width: f64, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\" aria-label=\"{title}\">\n<title>{title}</title>\n"
    )
}

fn grid_y(axis: &Axis, at_y: &dyn Fn(f64) -> f64) -> String {
    let mut svg = String::new();
    for &tick in &axis.ticks {
        let Some(place) = axis.place(tick) else { continue };
        let y = at_y(place);
        let _ = writeln!(svg, "<path d=\"M{LEFT:.2} {y:.2}H{:.2}\" class=\"g\"/>", WIDTH - RIGHT);
        let _ =
            writeln!(svg, "<text x=\"{:.2}\" y=\"{:.2}\" class=\"e\">{}</text>", LEFT - 6.0, y + 4.0, axis.label(tick));
    }
    svg
}

/// The lines and numbers of a lower axis.
pub(crate) fn grid_x(axis: &Axis, at_x: &dyn Fn(f64) -> f64, bottom: f64) -> String {
    let mut svg = String::new();
    for &tick in &axis.ticks {
        let Some(place) = axis.place(tick) else { continue };
        let x = at_x(place);
        let _ = writeln!(svg, "<path d=\"M{x:.2} {TOP:.2}V{bottom:.2}\" class=\"g\"/>");
        let _ = writeln!(svg, "<text x=\"{x:.2}\" y=\"{:.2}\" class=\"m\">{}</text>", bottom + 16.0, axis.label(tick));
    }
    svg
}

fn axis_titles(x_label: &str, y_label: &str) -> String {
    let (middle_x, middle_y) = ((LEFT + WIDTH - RIGHT) / 2.0, TOP + PLOT_HEIGHT / 2.0);
    format!(
        "<text x=\"{middle_x:.2}\" y=\"{:.2}\" class=\"m\">{}</text>\n<text transform=\"translate(14 {middle_y:.2}) rotate(-90)\" class=\"m\">{}</text>\n",
        TOP + PLOT_HEIGHT + 34.0,
        escape(x_label),
        escape(y_label)
    )
}

fn style(index: usize) -> String {
    let (colour, dash) = (COLOURS[index % COLOURS.len()], DASHES[index % DASHES.len()]);
    let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
    format!("stroke=\"{colour}\" fill=\"none\" stroke-width=\"1.8\"{dash}")
}

/// A run of points; a lonely point becomes a dot.
fn polyline(points: &[(f64, f64)], style: &str) -> String {
    match points {
        [] => String::new(),
        [(x, y)] => format!("<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"2.5\" {style}/>\n"),
        _ => {
            let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.2},{y:.2}")).collect();
            format!("<polyline points=\"{}\" {style}/>\n", points.join(" "))
        }
    }
}

/// Three entries a row.
fn legend(index: usize, name: &str, style: &str, top: f64) -> String {
    let (x, y) = (LEFT + 210.0 * (index % 3) as f64, top + 20.0 * (index / 3) as f64);
    format!(
        "<path d=\"M{x:.2} {y:.2}h26\" {style}/>\n<text x=\"{:.2}\" y=\"{:.2}\">{}</text>\n",
        x + 32.0,
        y + 4.0,
        escape(&shortened(name, 26))
    )
}

/// `text` cut to `n_chars`, the last of them an ellipsis.
pub(crate) fn shortened(text: &str, n_chars: usize) -> String {
    if text.chars().count() <= n_chars {
        text.to_owned()
    } else {
        text.chars().take(n_chars - 1).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Bar, Series};

    /// By hand: x 0..10 over 78..704, y 0..10 over 274..14, so that (5, 10) lies at (391, 14).
    #[test]
    fn points_stand_where_the_axes_say_and_a_nan_breaks_the_line() {
        let points = vec![(0.0, 0.0), (5.0, 10.0), (6.0, f64::NAN), (8.0, 5.0), (10.0, 5.0), (10.0, f64::INFINITY)];
        let plot = LinePlot { series: vec![Series { name: "loss".into(), points }], ..LinePlot::default() };
        let svg = lines(&plot);
        assert!(svg.contains("points=\"78.00,274.00 391.00,14.00\""), "{svg}");
        assert!(svg.contains("points=\"578.80,144.00 704.00,144.00\""), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn an_empty_plot_is_still_valid() {
        assert!(lines(&LinePlot::default()).ends_with("</svg>\n"));
        assert!(bars(&BarPlot::default()).ends_with("</svg>\n"));
    }

    /// Bars over 210..704; values 0..1: half a unit is 247 wide.
    #[test]
    fn bars_begin_at_zero_and_carry_their_intervals() {
        let bar = |value, interval| Bar { name: "a <b>".into(), value, interval };
        let svg = bars(&BarPlot {
            bars: vec![bar(0.5, Some((0.25, 0.75))), bar(1.0, None)],
            reference: Some(("chance".into(), 0.25)),
            ..BarPlot::default()
        });
        assert!(svg.contains("<rect x=\"210.00\" y=\"19.00\" width=\"247.00\""), "{svg}");
        assert!(svg.contains("M333.50 22.00v8m0 -4H580.50m0 -4v8"), "{svg}");
        assert!(svg.contains("a &lt;b&gt;: 0.5") && svg.contains("M333.50 14.00V62.00"), "{svg}");
    }
}
