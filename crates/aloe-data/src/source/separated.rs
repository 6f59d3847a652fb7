//! Rows of comma- and tab-separated files, with quoted line breaks, and the line that each begins on.
//!
//! Whether the first line is a header is found by content. Of a row that is too long, as behind an open quote, no more than
//! [`MAX_ROW_BYTES`] is kept; the rows behind its end are read.

use super::{Each, TOO_LONG, is_named};
use crate::elements::MAX_ROW_BYTES;
use crate::error::with_bytes;
use crate::{Error, Result, RowError};
use aloe_task::rows::{Row, shown_name};
use serde_json::{Map, Value};
use std::io::BufRead;
use std::path::Path;

/// Reads comma- or, by the file's name, tab-separated rows.
pub(super) fn read(source: Box<dyn BufRead + '_>, path: &Path, each: Each<'_>) -> Result<()> {
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
            End::OpenQuote => {
                let reason = "a quote that is opened in this row is not closed before the end of the file";
                return each(Err(RowError { raw: records.raw(), ..RowError::new(at, reason) }));
            }
            End::BehindQuote => {
                let reason = "text behind a closing quote (a quote inside a quoted cell is written twice)";
                each(Err(RowError { raw: records.raw(), ..RowError::new(at, reason) }))?;
                // The names as far as they can be read: the next row is none.
                let record = records.record();
                names = names
                    .or_else(|| Some(record.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect()));
                continue;
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
                None => match other_delimiter(&cells, delimiter) {
                    Some(reason) => return Err(Error::Unreadable { path: path.to_path_buf(), reason }),
                    None => names = Some(cells),
                },
            },
            (Some(names), Ok(cells)) => each(row(names, cells, at, &record))?,
        }
    }
}

/// Why a header of a single cell is none: it holds what parts cells in files that spreadsheets write in other countries, or under another
/// name.
fn other_delimiter(header: &[String], delimiter: u8) -> Option<String> {
    let [only] = header else { return None };
    let (own, kind) = if delimiter == b'\t' { ("tab", ".tsv") } else { ("comma", ".csv") };
    let others = [(b';', "semicolons"), (b'\t', "tabs"), (b'|', "bars"), (b',', "commas")];
    let is_there = |&&(byte, _): &&(u8, &str)| byte != delimiter && only.as_bytes().contains(&byte);
    let (_, found) = others.iter().find(is_there)?;
    Some(format!(
        "its first line has no {own} but {found}; the cells of a {kind} file are parted by {own}s alone: write it so, or name it rightly"
    ))
}

/// How a row ended.
enum End {
    Row,
    /// Of a row beyond [`MAX_ROW_BYTES`], which is read to its end and not kept.
    LongRow,
    FileInLongRow,
    /// With the file, inside a quoted cell: the rows behind the quote would be its text.
    OpenQuote,
    /// Well, but a cell goes on behind its closing quote.
    BehindQuote,
    /// There was no further row.
    File,
}

/// Where in a row a byte stands, by the rules of RFC 4180, section 2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    CellStart,
    Plain,
    Quoted,
    /// Behind a quote inside a quoted cell, which closes it unless another one follows.
    Quote,
}

/// Rows one at a time. The `csv` crate's own reader keeps a row however long it is, and takes what RFC 4180 has no rule for without a word, so its
/// core is driven here and watched.
struct Records<'a> {
    delimiter: u8,
    place: Place,
    /// A cell of the row went on behind its closing quote.
    is_behind_quote: bool,
    /// The line of the next byte, from 1.
    line: u64,
    /// The byte before was a return that ended a line: old spreadsheets end lines with it alone, Windows with a break behind it.
    is_behind_return: bool,
    /// The row as it stands in the file.
    raw: Vec<u8>,
    is_begun: bool,
    source: Box<dyn BufRead + 'a>,
    core: csv_core::Reader,
    text: Vec<u8>,
    n_text: usize,
    ends: Vec<usize>,
    n_ends: usize,
}

impl<'a> Records<'a> {
    fn new(source: Box<dyn BufRead + 'a>, delimiter: u8) -> Records<'a> {
        let core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        Records {
            delimiter,
            place: Place::CellStart,
            is_behind_quote: false,
            line: 1,
            is_behind_return: false,
            raw: Vec::new(),
            is_begun: false,
            source,
            core,
            text: vec![0; 1 << 12],
            n_text: 0,
            ends: vec![0; 64],
            n_ends: 0,
        }
    }

    /// Reads the next row; gives the line on which it begins and how it ended.
    fn next(&mut self) -> std::io::Result<(u64, End)> {
        (self.n_text, self.n_ends, self.place, self.is_behind_quote) = (0, 0, Place::CellStart, false);
        self.raw.clear();
        let mut line = None;
        let mut n_bytes = 0;
        loop {
            let input = self.source.fill_buf()?;
            let is_end = input.is_empty();
            let (state, n_in, n_out, n_ends) =
                self.core.read_record(input, &mut self.text[self.n_text..], &mut self.ends[self.n_ends..]);
            let is_mark = !self.is_begun && input.starts_with(BYTE_ORDER_MARK);
            let taken = &input[if is_mark { BYTE_ORDER_MARK.len().min(n_in) } else { 0 }..n_in];
            for byte in taken {
                if line.is_none() && !is_line_end(*byte) {
                    line = Some(self.line);
                }
                let is_return = *byte == b'\r' && self.place != Place::Quoted;
                self.line += u64::from(is_return || (*byte == b'\n' && !self.is_behind_return));
                self.is_behind_return = is_return;
                let next = after(self.place, *byte, self.delimiter);
                self.is_behind_quote |= self.place == Place::Quote && next == Place::Plain;
                self.place = next;
            }
            n_bytes += n_in;
            // One more for the end of the line.
            let is_long = n_bytes > MAX_ROW_BYTES + 1;
            if !is_long {
                self.raw.extend_from_slice(taken);
            }
            self.is_begun |= !is_end;
            self.source.consume(n_in);
            self.n_text += n_out;
            self.n_ends += n_ends;
            if is_long {
                (self.n_text, self.n_ends) = (0, 0);
            }
            let end = match state {
                csv_core::ReadRecordResult::InputEmpty => continue,
                csv_core::ReadRecordResult::OutputFull | csv_core::ReadRecordResult::OutputEndsFull if is_long => {
                    continue;
                }
                csv_core::ReadRecordResult::OutputFull => {
                    self.text.resize(2 * self.text.len(), 0);
                    continue;
                }
                csv_core::ReadRecordResult::OutputEndsFull => {
                    self.ends.resize(2 * self.ends.len(), 0);
                    continue;
                }
                csv_core::ReadRecordResult::Record if is_long && is_end => End::FileInLongRow,
                csv_core::ReadRecordResult::Record if is_long => End::LongRow,
                csv_core::ReadRecordResult::Record if self.place == Place::Quoted => End::OpenQuote,
                csv_core::ReadRecordResult::Record if self.is_behind_quote => End::BehindQuote,
                csv_core::ReadRecordResult::Record => End::Row,
                csv_core::ReadRecordResult::End => End::File,
            };
            return Ok((line.unwrap_or(self.line), end));
        }
    }

    /// The row as it stands in the file, for a quarantine.
    fn raw(&self) -> Option<String> {
        Some(with_bytes(&self.raw).trim_matches(['\r', '\n']).to_owned())
    }

    fn record(&self) -> csv::ByteRecord {
        let starts = std::iter::once(0).chain(self.ends[..self.n_ends].iter().copied());
        starts.zip(&self.ends[..self.n_ends]).map(|(start, &end)| &self.text[start..end]).collect()
    }
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// The place of the byte behind `byte`.
fn after(place: Place, byte: u8, delimiter: u8) -> Place {
    match (place, byte) {
        (Place::Quoted, b'"') => Place::Quote,
        (Place::CellStart | Place::Quote, b'"') | (Place::Quoted, _) => Place::Quoted,
        (_, byte) if byte == delimiter || is_line_end(byte) => Place::CellStart,
        _ => Place::Plain,
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
    Some(with_bytes(&bytes).trim_end_matches('\n').to_owned())
}

fn row(names: &[String], cells: Vec<String>, at: String, record: &csv::ByteRecord) -> Result<Row, RowError> {
    if names.len() != cells.len() {
        let error = RowError::new(at, format!("expected {} columns, found {}", names.len(), cells.len()));
        return Err(RowError { raw: raw(record), ..error });
    }
    let mut columns = Map::new();
    for (name, cell) in names.iter().zip(cells).filter(|(name, _)| !name.is_empty()) {
        if columns.insert(name.clone(), Value::String(cell)).is_some() {
            let error = RowError::new(at, format!("column `{}` stands twice in the header", shown_name(name)));
            return Err(RowError { raw: raw(record), ..error });
        }
    }
    Ok(Row { columns, at })
}
