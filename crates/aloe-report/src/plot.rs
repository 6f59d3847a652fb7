//! What is drawn: lines over a common axis, bars with intervals, bars in groups, and shares against what was promised.

pub use crate::scale::Scaling;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points (x, y) in order of x; a y that is not finite breaks the line.
    pub points: Vec<(f64, f64)>,
}

/// Lines over a common axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinePlot {
    /// What the plot shows, in a sentence: it is also what a screen reader reads.
    pub title: String,
    /// Quantity and unit of x.
    pub x_label: String,
    /// Quantity and unit of y.
    pub y_label: String,
    /// How y is laid out.
    pub y_scaling: Scaling,
    /// The lines; colours and dashes repeat after eight.
    pub series: Vec<Series>,
}

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// An interval around the value, such as a 95 % confidence interval.
    pub interval: Option<(f64, f64)>,
}

/// Horizontal bars from zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BarPlot {
    /// What the plot shows, in a sentence.
    pub title: String,
    /// Quantity and unit of the values.
    pub x_label: String,
    /// The bars, top to bottom.
    pub bars: Vec<Bar>,
    /// A line across all bars, such as chance, with its name.
    pub reference: Option<(String, f64)>,
}

/// Horizontal bars from zero, several a row: tasks by runs, positions by what was chosen and what was right.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupedBarPlot {
    /// What the plot shows, in a sentence.
    pub title: String,
    /// Quantity and unit of the values.
    pub x_label: String,
    /// What the bars of a row are, for the legend; a single one has no legend.
    pub groups: Vec<String>,
    /// The rows, top to bottom.
    pub rows: Vec<GroupedRow>,
    /// What the rows' marks are.
    pub mark: Option<String>,
}

/// A value with an interval around it, where it has one.
pub type Measured = (f64, Option<(f64, f64)>);

/// A row of bars.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupedRow {
    /// Its name.
    pub name: String,
    /// A value with its interval by group; none where there is no such value.
    pub bars: Vec<Option<Measured>>,
    /// A line across the row, such as chance.
    pub mark: Option<f64>,
}

/// How often what was promised came true: points beside the diagonal on which both are equal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReliabilityPlot {
    /// What the plot shows, in a sentence.
    pub title: String,
    /// What was promised, in %.
    pub x_label: String,
    /// What came true, in %.
    pub y_label: String,
    /// The points of each run.
    pub series: Vec<PointSeries>,
}

/// Points of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PointSeries {
    /// Its name in the legend.
    pub name: String,
    /// The points.
    pub points: Vec<Point>,
}

/// A share with its interval at a place; larger where it rests on more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// What was promised, 0 to 100.
    pub x: f64,
    /// What came true, 0 to 100.
    pub y: f64,
    /// An interval around `y`.
    pub interval: (f64, f64),
    /// On how many it rests.
    pub n: usize,
}
