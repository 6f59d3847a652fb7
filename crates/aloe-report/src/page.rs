//! A page: headings, paragraphs, tables, plots and quoted text in the order they were added.

use crate::html::escape;
use crate::plot::{BarPlot, GroupedBarPlot, LinePlot, ReliabilityPlot};
use crate::table::Table;
use crate::view::SampleBrowser;
use crate::{svg, svg_eval};
use std::io::Write as _;
use std::path::Path;

/// Colours follow the reader's setting, and a print gets black on white.
const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1b1b;--paper:#fff;--faint:#ddd;--soft:#666}\
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#16181b;--faint:#3a3d42;--soft:#a0a0a0}}\
@media print{:root{--ink:#000;--paper:#fff;--faint:#bbb;--soft:#444}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:62rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2rem}h3{font-size:1.05rem}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.92rem}th,td{padding:.25rem .7rem;border-bottom:1px solid var(--faint);text-align:left}\
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}pre{overflow-x:auto;border:1px solid var(--faint);padding:.7rem;font-size:.85rem}\
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:0 1.5rem}a{color:inherit}figure{margin:1rem 0}figcaption{font-size:.92rem;color:var(--soft)}svg{width:100%;height:auto;max-width:45rem}\
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .m{text-anchor:middle}svg .e{text-anchor:end}\
svg .g{stroke:var(--faint);stroke-width:1}svg .i{stroke:var(--ink);stroke-width:1.4;fill:none}svg .r{stroke:var(--ink);stroke-dasharray:4 3}";

/// An HTML page under construction.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// An empty page with a title.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new() }
    }

    /// A section.
    pub fn heading(&mut self, text: &str) {
        self.body += &format!("<h2>{}</h2>\n", escape(text));
    }

    /// A part of a section.
    pub fn subheading(&mut self, text: &str) {
        self.body += &format!("<h3>{}</h3>\n", escape(text));
    }

    /// Running text.
    pub fn paragraph(&mut self, text: &str) {
        self.body += &format!("<p>{}</p>\n", escape(text));
    }

    /// A list of short texts; nothing if there are none.
    pub fn list<'a>(&mut self, items: impl IntoIterator<Item = &'a str>) {
        let items: String = items.into_iter().map(|item| format!("<li>{}</li>\n", escape(item))).collect();
        if !items.is_empty() {
            self.body += &format!("<ul>\n{items}</ul>\n");
        }
    }

    /// Text as it is: a configuration, a prompt, an answer.
    pub fn verbatim(&mut self, text: &str) {
        self.body += &format!("<pre>{}</pre>\n", escape(text));
    }

    /// A table.
    pub fn table(&mut self, table: &Table) {
        self.body += &table.html();
    }

    /// Lines; the title becomes the caption.
    pub fn line_plot(&mut self, plot: &LinePlot) {
        self.figure(&svg::lines(plot), &plot.title);
    }

    /// Bars; the title becomes the caption.
    pub fn bar_plot(&mut self, plot: &BarPlot) {
        self.figure(&svg::bars(plot), &plot.title);
    }

    /// Bars in groups; the title becomes the caption.
    pub fn grouped_bar_plot(&mut self, plot: &GroupedBarPlot) {
        self.figure(&svg_eval::grouped_bars(plot), &plot.title);
    }

    /// Shares against what was promised; the title becomes the caption.
    pub fn reliability_plot(&mut self, plot: &ReliabilityPlot) {
        self.figure(&svg_eval::reliability(plot), &plot.title);
    }

    /// What `fill` adds stands side by side where the screen is wide enough.
    pub fn side_by_side(&mut self, fill: impl FnOnce(&mut Self)) {
        self.body += "<div class=\"side\">\n";
        fill(self);
        self.body += "</div>\n";
    }

    /// What `fill` adds is hidden until `summary` is clicked on.
    pub fn folded(&mut self, summary: &str, fill: impl FnOnce(&mut Self)) {
        self.body += &format!("<details>\n<summary>{}</summary>\n", escape(summary));
        fill(self);
        self.body += "</details>\n";
    }

    /// A link to the list of samples at the page's end.
    pub fn link_to_samples(&mut self, text: &str) {
        self.body += &format!("<p><a href=\"#samples\">{}</a></p>\n", escape(text));
    }

    fn figure(&mut self, svg: &str, caption: &str) {
        self.body += &format!("<figure>\n{svg}<figcaption>{}</figcaption>\n</figure>\n", escape(caption));
    }

    /// The whole page.
    pub fn html(&self) -> String {
        format!("{}</body>\n</html>\n", self.open(""))
    }

    /// The page up to the end of its body, with `more` in its head.
    fn open(&self, more: &str) -> String {
        let title = escape(&self.title);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
             {more}<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{}",
            self.body
        )
    }

    /// Writes the page, atomically.
    pub fn write(&self, path: &Path) -> aloe_record::Result<()> {
        aloe_record::atomic::write(path, self.html().as_bytes())
    }

    /// Writes the page with a list of samples at its end, atomically. Such a page has a script, and forbids itself the network.
    pub fn write_with_samples(&self, path: &Path, samples: &SampleBrowser<'_>) -> aloe_record::Result<()> {
        aloe_record::atomic::write_with(path, |out| {
            let write = |out: &mut std::io::BufWriter<std::fs::File>| {
                out.write_all(self.open(&SampleBrowser::head(STYLE)).as_bytes())?;
                samples.write(out)?;
                out.write_all(b"</body>\n</html>\n")
            };
            write(out).map_err(aloe_record::Error::io("write", path))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Align;

    #[test]
    fn everything_stands_in_order_and_no_text_becomes_markup() {
        let mut page = Page::new("a <b>");
        page.heading("h & h");
        page.paragraph("<script>alert(1)</script>");
        page.list(["one", "<two>"]);
        page.list([]);
        page.verbatim("  x < y\n");
        page.folded("s < t", |page| page.paragraph("inner"));
        let mut table = Table::new(&[("n", Align::Right)]);
        table.row(vec!["1".into()]);
        page.table(&table);
        page.line_plot(&LinePlot { title: "t\"".into(), ..LinePlot::default() });
        let html = page.html();
        assert!(!html.contains("<script") && !html.contains("http://") | html.contains("www.w3.org"), "{html}");
        let order = [
            "a &lt;b&gt;</h1>",
            "h &amp; h</h2>",
            "&lt;script&gt;",
            "<li>&lt;two&gt;</li>",
            "<pre>  x &lt; y\n</pre>",
            "<details>\n<summary>s &lt; t</summary>\n<p>inner</p>\n</details>\n",
            "<table>",
            "<svg",
            "t&quot;</figcaption>",
        ];
        let places: Vec<usize> =
            order.iter().map(|part| html.find(part).unwrap_or_else(|| panic!("{part} is missing"))).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(html.matches("<ul>").count(), 1);
        assert_eq!(html, page.html());
    }
}
