//! What is drawn: lines over a common axis, and bars with intervals.

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
