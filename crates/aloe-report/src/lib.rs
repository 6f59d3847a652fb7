//! HTML pages that explain a stage's figures: tables, plots, text. One self-contained file without fonts or links to elsewhere,
//! readable air-gapped and on paper; without scripts, but for the list of samples of a page that has one.
//!
//! Reading order: `page` (what a page consists of), `table` (also for terminal and Markdown), `plot` (what is drawn), `scale` (axes
//! and their ticks), `svg` and `svg_eval` (how it is drawn), `metrics` (a training stage's `metrics.jsonl` as plots), `view` (a list of samples). Computes no result of its own.

mod error;
mod html;
mod metrics;
mod page;
mod plot;
mod scale;
mod svg;
mod svg_eval;
mod table;
mod view;

pub use error::Error;
pub use metrics::{Metrics, training_page};
pub use page::Page;
pub use plot::{
    Bar, BarPlot, GroupedBarPlot, GroupedRow, LinePlot, Measured, Point, PointSeries, ReliabilityPlot, Scaling, Series,
};
pub use table::{Align, Table};
pub use view::{
    AnswerText, Answered, Asked, Judged, OpenAnswerText, OpenQuestionText, QuestionText, SampleBrowser, Texts,
    VerdictText, VoteText, pack_rows,
};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
