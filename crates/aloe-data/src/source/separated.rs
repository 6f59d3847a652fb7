//! Rows of comma- and tab-separated files, with quoted line breaks, and the line that each begins on.
//!
//! Whether the first line is a header is found by content. Of a row that never ends, as behind an open quote, no more than
//! [`MAX_ROW_BYTES`] is read.

use super::{Each, TOO_LONG, is_named};
use crate::elements::MAX_ROW_BYTES;
use crate::{Error, Result, RowError};
use aloe_task::rows::{Row, shown_name};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::io::{BufRead, Read};
use std::path::Path;
use std::rc::Rc;

/// Reads comma- or, by the file's name, tab-separated rows.
pub(super) fn read(source: Box<dyn BufRead>, path: &Path, each: Each<'_>) -> Result<()> {
    let delimiter = if is_named(path, ".tsv") { b'\t' } else { b',' };
    let since_row = Rc::new(Cell::new(0));
    let metered = Metered { source, since_row: since_row.clone() };
    let mut reader =
        csv::ReaderBuilder::new().flexible(true).has_headers(false).delimiter(delimiter).from_reader(metered);
    let mut names: Option<Vec<String>> = None;
    let mut record = csv::ByteRecord::new();
    loop {
        let line = reader.position().line();
        since_row.set(0);
        match reader.read_byte_record(&mut record) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error) => return stops(error, path, line, each),
        }
        let line = record.position().map_or(line, csv::Position::line);
        let at = format!("{}:{line}", path.display());
        let cells = cells(&record, names.as_deref(), &at);
        match (&names, cells) {
            (_, Err(error)) => each(Err(error))?,
            (None, Ok(cells)) => match names_without_header(&cells) {
                Some(own) => {
                    each(row(&own, cells, at, &record))?;
                    names = Some(own);
                }
                None => names = Some(cells),
            },
            (Some(names), Ok(cells)) => each(row(names, cells, at, &record))?,
        }
    }
}

/// A reader over which a row of CSV that never ends, such as one with an unclosed quote, does not fill the memory.
struct Metered {
    source: Box<dyn BufRead>,
    /// Bytes read since the last row.
    since_row: Rc<Cell<usize>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.since_row.get() > MAX_ROW_BYTES {
            return Err(std::io::Error::other(TOO_LONG));
        }
        let n_bytes = self.source.read(buffer)?;
        self.since_row.set(self.since_row.get() + n_bytes);
        Ok(n_bytes)
    }
}

/// Rows cannot be told apart after a row that is too long, so reading ends there; other failures are the system's.
fn stops(error: csv::Error, path: &Path, line: u64, each: Each<'_>) -> Result<()> {
    match error.into_kind() {
        csv::ErrorKind::Io(error) if error.to_string() == TOO_LONG => {
            let reason = format!("{TOO_LONG} (is a quote left open?); the rest of the file is not read");
            each(Err(RowError::new(format!("{}:{line}", path.display()), reason)))
        }
        csv::ErrorKind::Io(error) => Err(Error::io("read", path)(error)),
        other => each(Err(RowError::new(format!("{}:{line}", path.display()), format!("not CSV: {other:?}")))),
    }
}

fn cells(record: &csv::ByteRecord, names: Option<&[String]>, at: &str) -> Result<Vec<String>, RowError> {
    let mut cells = Vec::with_capacity(record.len());
    for (index, cell) in record.iter().enumerate() {
        let text = std::str::from_utf8(cell).map_err(|_| {
            let name = names.and_then(|names| names.get(index)).map_or_else(|| format!("{}", index + 1), String::clone);
            RowError { raw: raw(record), ..RowError::new(at, format!("column `{}` is not UTF-8", shown_name(&name))) }
        })?;
        cells.push(text.trim_start_matches('\u{feff}').to_owned());
    }
    Ok(cells)
}

/// Names for a file whose first line is a row: MMLU's files, whose last cell is the key, and files whose first line holds a sentence,
/// which no header does. `None` where the first line is a header.
fn names_without_header(cells: &[String]) -> Option<Vec<String>> {
    const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
    if cells.len() == 6 && LETTERS.contains(&cells[5].trim()) && cells[1..5] != LETTERS {
        return Some(["input", "A", "B", "C", "D", "target"].map(String::from).to_vec());
    }
    let is_sentence = |cell: &String| cell.split_whitespace().count() > 6 || cell.contains('\n');
    cells.iter().any(is_sentence).then(|| (1..=cells.len()).map(|number| format!("column_{number}")).collect())
}

/// The record as CSV, for a quarantine.
fn raw(record: &csv::ByteRecord) -> Option<String> {
    let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
    writer.write_byte_record(record).ok()?;
    let bytes = writer.into_inner().ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
}

fn row(names: &[String], cells: Vec<String>, at: String, record: &csv::ByteRecord) -> Result<Row, RowError> {
    if names.len() != cells.len() {
        let error = RowError::new(at, format!("expected {} columns, found {}", names.len(), cells.len()));
        return Err(RowError { raw: raw(record), ..error });
    }
    let pairs = names.iter().cloned().zip(cells).filter(|(name, _)| !name.is_empty());
    Ok(Row { columns: pairs.map(|(name, cell)| (name, Value::String(cell))).collect::<Map<_, _>>(), at })
}
