//! A table with one source and three forms: HTML, Markdown, and aligned text for the terminal.

use crate::html::escape;

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of text under a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        Self { columns: columns.iter().map(|(name, align)| ((*name).to_owned(), *align)).collect(), rows: Vec::new() }
    }

    /// Adds a row; it must have a cell per column.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a row of {cells:?} under {:?}", self.columns);
        self.rows.push(cells);
    }

    /// Whether no row was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// As an HTML `<table>`.
    pub fn html(&self) -> String {
        let cell = |tag: &str, attributes: &str, text: &str, align: Align| {
            let class = if align == Align::Right { " class=\"n\"" } else { "" };
            format!("<{tag}{attributes}{class}>{}</{tag}>", escape(text))
        };
        let head: String =
            self.columns.iter().map(|(name, align)| cell("th", " scope=\"col\"", name, *align)).collect();
        let row = |cells: &Vec<String>| {
            let cells: String =
                cells.iter().zip(&self.columns).map(|(text, (_, align))| cell("td", "", text, *align)).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(row).collect();
        format!("<div class=\"wide\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n")
    }

    /// As a Markdown table; pipes and line ends in cells are escaped.
    pub fn markdown(&self) -> String {
        let clean = |text: &str| escape_markdown(text);
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut out = line(self.columns.iter().map(|(name, _)| clean(name)).collect());
        let rule = |align: Align| if align == Align::Right { "---:".to_owned() } else { "---".to_owned() };
        out += &line(self.columns.iter().map(|(_, align)| rule(*align)).collect());
        self.rows.iter().for_each(|cells| out += &line(cells.iter().map(|text| clean(text)).collect()));
        out
    }

    /// As aligned text for a terminal, columns two spaces apart, without trailing spaces.
    pub fn text(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].0.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).zip(&self.columns).map(|((text, &width), (_, align))| {
                let spaces = " ".repeat(width - text.chars().count());
                if *align == Align::Right { format!("{spaces}{text}") } else { format!("{text}{spaces}") }
            });
            format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
        };
        let head: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
        let rows: String = self.rows.iter().map(|cells| line(cells)).collect();
        format!("{}{}{rows}", line(&head), line(&rule))
    }
}

fn escape_markdown(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = Table::new(&[("task", Align::Left), ("acc", Align::Right)]);
        table.row(vec!["medqa".into(), "31.2".into()]);
        table.row(vec!["a|b <i>".into(), "5".into()]);
        table
    }

    #[test]
    fn terminal_columns_line_up() {
        assert_eq!(example().text(), "task      acc\n-------  ----\nmedqa    31.2\na|b <i>     5\n");
    }

    #[test]
    fn markdown_cells_cannot_break_the_table() {
        assert_eq!(example().markdown(), "| task | acc |\n| --- | ---: |\n| medqa | 31.2 |\n| a\\|b &lt;i> | 5 |\n");
    }

    #[test]
    fn html_cells_are_text_and_numbers_stand_right() {
        let html = example().html();
        assert!(html.contains("<td>a|b &lt;i&gt;</td><td class=\"n\">5</td>"), "{html}");
    }
}
