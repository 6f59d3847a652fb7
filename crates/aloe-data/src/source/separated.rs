//! Rows of comma- and tab-separated files, with quoted line breaks, and the line that each begins on.
//!
//! Whether the first line is a header is found by content. Of a row that is too long, as behind an open quote, no more than
//! [`MAX_ROW_BYTES`] is kept; the rows behind its end are read.

use super::{Each, TOO_LONG, is_named};
use crate::elements::MAX_ROW_BYTES;
use crate::{Error, Result, RowError};
use aloe_task::rows::{Row, shown_name};
use serde_json::{Map, Value};
use std::io::BufRead;
use std::path::Path;

/// Reads comma- or, by the file's name, tab-separated rows.
pub(super) fn read(source: Box<dyn BufRead>, path: &Path, each: Each<'_>) -> Result<()> {
    let delimiter = if is_named(path, ".tsv") { b'\t' } else { b',' };
    let mut records = Records::new(source, delimiter);
    let mut names: Option<Vec<String>> = None;
    loop {
        let (line, end) = records.next().map_err(Error::io("read", path))?;
        let at = format!("{}:{line}", path.display());
        let record = match end {
            End::File => return Ok(()),
            End::LongRow => {
                each(Err(RowError::new(at, TOO_LONG)))?;
                continue;
            }
            End::FileInLongRow => {
                let reason = format!("{TOO_LONG}; it goes on to the end of the file (is a quote left open?)");
                return each(Err(RowError::new(at, reason)));
            }
            End::Row => records.record(),
        };
        match (&names, cells(&record, names.as_deref(), &at)) {
            (None, Err(error)) => {
                // The names as far as they can be read: the next row is none.
                let lossy: Vec<String> = record.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect();
                names = Some(names_without_header(&lossy).unwrap_or(lossy));
                each(Err(error))?;
            }
            (Some(_), Err(error)) => each(Err(error))?,
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

/// How a row ended.
enum End {
    Row,
    /// Of a row beyond [`MAX_ROW_BYTES`], which is read to its end and not kept.
    LongRow,
    FileInLongRow,
    /// There was no further row.
    File,
}

/// Rows one at a time. The `csv` crate's own reader keeps a row however long it is, so its core is driven here.
struct Records {
    source: Box<dyn BufRead>,
    core: csv_core::Reader,
    text: Vec<u8>,
    n_text: usize,
    ends: Vec<usize>,
    n_ends: usize,
}

impl Records {
    fn new(source: Box<dyn BufRead>, delimiter: u8) -> Records {
        let core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        Records { source, core, text: vec![0; 1 << 12], n_text: 0, ends: vec![0; 64], n_ends: 0 }
    }

    /// Reads the next row; gives the line on which it begins and how it ended.
    fn next(&mut self) -> std::io::Result<(u64, End)> {
        let line = self.core.line();
        (self.n_text, self.n_ends) = (0, 0);
        let mut n_bytes = 0;
        loop {
            let input = self.source.fill_buf()?;
            let is_end = input.is_empty();
            let (state, n_in, n_out, n_ends) =
                self.core.read_record(input, &mut self.text[self.n_text..], &mut self.ends[self.n_ends..]);
            self.source.consume(n_in);
            n_bytes += n_in;
            self.n_text += n_out;
            self.n_ends += n_ends;
            // One more for the end of the line.
            let is_long = n_bytes > MAX_ROW_BYTES + 1;
            if is_long {
                (self.n_text, self.n_ends) = (0, 0);
            }
            match state {
                csv_core::ReadRecordResult::InputEmpty => {}
                csv_core::ReadRecordResult::OutputFull if is_long => {}
                csv_core::ReadRecordResult::OutputEndsFull if is_long => {}
                csv_core::ReadRecordResult::OutputFull => self.text.resize(2 * self.text.len(), 0),
                csv_core::ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                csv_core::ReadRecordResult::Record if is_long && is_end => return Ok((line, End::FileInLongRow)),
                csv_core::ReadRecordResult::Record if is_long => return Ok((line, End::LongRow)),
                csv_core::ReadRecordResult::Record => return Ok((line, End::Row)),
                csv_core::ReadRecordResult::End => return Ok((line, End::File)),
            }
        }
    }

    fn record(&self) -> csv::ByteRecord {
        let starts = std::iter::once(0).chain(self.ends[..self.n_ends].iter().copied());
        starts.zip(&self.ends[..self.n_ends]).map(|(start, &end)| &self.text[start..end]).collect()
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
