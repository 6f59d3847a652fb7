//! HTML pages that explain a stage's figures: tables, plots, text. One self-contained file without scripts, fonts or links to
//! elsewhere, readable air-gapped and on paper.
//!
//! Reading order: `page` (what a page consists of), `table` (also for terminal and Markdown), `plot` (what is drawn), `scale` (axes
//! and their ticks), `svg` (how it is drawn), `metrics` (a training stage's `metrics.jsonl` as plots). Computes no result of its own.

mod error;
mod html;
mod metrics;
mod page;
mod plot;
mod scale;
mod svg;
mod table;

pub use error::Error;
pub use metrics::{Metrics, training_page};
pub use page::Page;
pub use plot::{Bar, BarPlot, LinePlot, Scaling, Series};
pub use table::{Align, Table};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
