//! Files to rows with file and line: JSON lines, JSON arrays and objects of rows, CSV, Parquet, each but the last also gzipped.
//!
//! The format is found by content. A broken row is handed on as a [`RowError`] and reading goes on, except where the file's own
//! brackets are broken. Rows over 16 MiB and bytes that are not UTF-8 are broken rows; a file without rows is an error.

use crate::elements::{Elements, MAX_ROW_BYTES, Stop};
use crate::{Error, Result, RowError, strict};
use aloe_task::rows::Row;
use serde_json::{Map, Value};
use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What is read of a line: one byte more than a row may have.
const MAX_LINE_BYTES: u64 = MAX_ROW_BYTES as u64 + 1;

const TOO_LONG: &str = "the row is longer than 16 MiB";

/// A data file: where it is and what it is called in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataFile {
    pub(crate) path: PathBuf,
    pub(crate) label: String,
}

/// The data files of a source: the file itself, or all data files below a folder in the order of their names.
pub(crate) fn files(path: &Path) -> Result<Vec<DataFile>> {
    let label = |file: &Path| {
        let inside = file.strip_prefix(path).ok().filter(|rest| !rest.as_os_str().is_empty());
        inside.unwrap_or_else(|| Path::new(file.file_name().unwrap_or(file.as_os_str()))).to_string_lossy().into_owned()
    };
    let mut found = Vec::new();
    if path.is_dir() {
        collect(path, &mut found)?;
        found.sort();
        if found.is_empty() {
            return Err(Error::EmptyFile { path: path.to_path_buf() });
        }
    } else {
        found.push(path.to_path_buf());
    }
    Ok(found.into_iter().map(|file| DataFile { label: label(&file), path: file }).collect())
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let stem = name.strip_suffix(".gz").unwrap_or(&name);
        if path.is_dir() {
            collect(&path, found)?;
        } else if [".jsonl", ".json", ".csv", ".parquet"].iter().any(|end| stem.ends_with(end)) {
            found.push(path);
        }
    }
    Ok(())
}

/// What receives rows and broken rows, in file order.
pub(crate) type Each<'a> = &'a mut dyn FnMut(Result<Row, RowError>) -> Result<()>;

/// Reads `path`; gives the number of rows, broken ones included.
pub(crate) fn read(path: &Path, each: Each<'_>) -> Result<usize> {
    let mut n_rows = 0;
    let mut counted = |row: Result<Row, RowError>| {
        n_rows += 1;
        each(row)
    };
    dispatch(path, &mut counted)?;
    if n_rows == 0 { Err(Error::EmptyFile { path: path.to_path_buf() }) } else { Ok(n_rows) }
}

fn dispatch(path: &Path, each: Each<'_>) -> Result<()> {
    let mut magic = [0u8; 4];
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let n_magic = file.read(&mut magic).map_err(Error::io("read", path))?;
    if &magic[..n_magic] == b"PAR1" {
        return read_parquet(path, each);
    }
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut source: Box<dyn BufRead> = if magic[..2] == [0x1f, 0x8b] {
        Box::new(BufReader::with_capacity(1 << 18, flate2::read::MultiGzDecoder::new(BufReader::new(file))))
    } else {
        Box::new(BufReader::with_capacity(1 << 18, file))
    };
    let mut first = Vec::new();
    let mut n_blank = 0;
    while first[n_blank..].iter().all(|byte: &u8| byte.is_ascii_whitespace()) {
        n_blank = first.len();
        let n_bytes =
            source.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut first).map_err(Error::io("read", path))?;
        if n_bytes == 0 {
            return Ok(());
        }
    }
    let start = first.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&first).trim_ascii_start();
    let kind = start.first().copied();
    let whole_line = serde_json::from_slice::<serde::de::IgnoredAny>(start.trim_ascii_end());
    // An object of rows breaks its first line after a bracket or comma; a cut-off JSON line seldom does.
    let continues = whole_line.is_err_and(|error| error.is_eof())
        && matches!(start.trim_ascii_end().last(), Some(b'{' | b'[' | b','));
    let source: Box<dyn BufRead> = Box::new(Cursor::new(first).chain(source));
    match kind {
        Some(b'[') => read_elements(source, path, each),
        Some(b'{') if continues => read_elements(source, path, each),
        Some(b'{') => read_lines(source, path, each),
        _ if is_named(path, ".csv") => read_csv(source, path, each),
        _ => read_lines(source, path, each),
    }
}

pub(crate) fn is_named(path: &Path, end: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.strip_suffix(".gz").unwrap_or(&name).ends_with(end)
}

fn read_lines(mut source: Box<dyn BufRead>, path: &Path, each: Each<'_>) -> Result<()> {
    let mut line = Vec::new();
    for number in 1usize.. {
        line.clear();
        let n_bytes =
            source.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
        if n_bytes == 0 {
            return Ok(());
        }
        let at = format!("{}:{number}", path.display());
        if n_bytes > MAX_ROW_BYTES && line.last() != Some(&b'\n') {
            source.skip_until(b'\n').map_err(Error::io("read", path))?;
            each(Err(RowError::new(at, TOO_LONG)))?;
            continue;
        }
        // Without its end, so that what is missing at the end of a line is missing there and not on the next.
        let mut text = line.strip_suffix(b"\n").unwrap_or(&line);
        text = text.strip_suffix(b"\r").unwrap_or(text);
        if number == 1 {
            text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        }
        if !text.trim_ascii().is_empty() {
            each(parse(text, path, number, 1, at))?;
        }
    }
    Ok(())
}

/// Parses one row that begins at `line` and `column`.
fn parse(bytes: &[u8], path: &Path, line: usize, column: usize, at: String) -> Result<Row, RowError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let breaks = before.iter().filter(|&&byte| byte == b'\n').count();
        let last = before
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(before.len() + column - 1, |at| before.len() - at - 1);
        RowError {
            raw: Some(String::from_utf8_lossy(bytes).into_owned()),
            ..RowError::new(format!("{}:{}:{}", path.display(), line + breaks, last + 1), "not UTF-8")
        }
    })?;
    match strict::parse(text) {
        Ok(Value::Object(columns)) => Ok(Row { columns, at }),
        Ok(other) => Err(RowError {
            raw: Some(text.into()),
            ..RowError::new(at, format!("expected an object, found {}", kind(&other)))
        }),
        Err(error) => {
            let message = error.to_string();
            let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(head, _)| head);
            let column = if error.line() == 1 { error.column() + column - 1 } else { error.column() };
            let at = format!("{}:{}:{column}", path.display(), line + error.line().max(1) - 1);
            let reason = if error.is_data() { reason.to_owned() } else { format!("not JSON: {reason}") };
            Err(RowError { raw: Some(text.into()), ..RowError::new(at, reason) })
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn read_elements(source: Box<dyn BufRead>, path: &Path, each: Each<'_>) -> Result<()> {
    for element in Elements::new(source) {
        match element {
            Ok(element) if element.bytes.len() > MAX_ROW_BYTES => {
                let at = format!("{}:{}:{}", path.display(), element.line, element.column);
                each(Err(RowError::new(at, TOO_LONG)))?;
            }
            Ok(element) => {
                let at = format!("{}:{}", path.display(), element.line);
                let mut row = parse(&element.bytes, path, element.line, element.column, at);
                if let (Ok(row), Some(key)) = (&mut row, element.key) {
                    row.columns.insert("_key".into(), Value::String(key));
                }
                each(row)?;
            }
            Err(Stop::Io(error)) => return Err(Error::io("read", path)(error)),
            Err(Stop::Syntax(line, column, reason)) => {
                each(Err(RowError::new(format!("{}:{line}:{column}", path.display()), reason)))?;
            }
        }
    }
    Ok(())
}

fn read_csv(source: Box<dyn BufRead>, path: &Path, each: Each<'_>) -> Result<()> {
    let since_row = Rc::new(Cell::new(0));
    let metered = Metered { source, since_row: since_row.clone() };
    let mut reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(metered);
    let mut names: Option<Vec<String>> = None;
    let mut record = csv::ByteRecord::new();
    loop {
        let line = reader.position().line();
        since_row.set(0);
        match reader.read_byte_record(&mut record) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error) => return csv_stops(error, path, line, each),
        }
        let line = record.position().map_or(line, csv::Position::line);
        let at = format!("{}:{line}", path.display());
        let cells = cells(&record, names.as_deref(), &at);
        match (&names, cells) {
            (_, Err(error)) => each(Err(error))?,
            (None, Ok(cells))
                if is_named(path, "_test.csv") || is_named(path, "_dev.csv") || is_named(path, "_val.csv") =>
            {
                // MMLU's files have no header.
                names = Some(["input", "A", "B", "C", "D", "target"].map(String::from).to_vec());
                each(csv_row(names.as_deref().unwrap_or_default(), cells, at))?;
            }
            (None, Ok(cells)) => names = Some(cells),
            (Some(names), Ok(cells)) => each(csv_row(names, cells, at))?,
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
fn csv_stops(error: csv::Error, path: &Path, line: u64, each: Each<'_>) -> Result<()> {
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
            RowError::new(at, format!("column `{name}` is not UTF-8"))
        })?;
        cells.push(text.trim_start_matches('\u{feff}').to_owned());
    }
    Ok(cells)
}

fn csv_row(names: &[String], cells: Vec<String>, at: String) -> Result<Row, RowError> {
    if names.len() != cells.len() {
        return Err(RowError::new(at, format!("expected {} columns, found {}", names.len(), cells.len())));
    }
    let pairs = names.iter().cloned().zip(cells).filter(|(name, _)| !name.is_empty());
    Ok(Row { columns: pairs.map(|(name, cell)| (name, Value::String(cell))).collect::<Map<_, _>>(), at })
}

fn read_parquet(path: &Path, each: Each<'_>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match aloe_task::rows::read(folder, &name) {
        Ok(rows) => {
            for row in rows {
                let at = row.at.replacen(&name, &path.display().to_string(), 1);
                each(Ok(Row { at, ..row }))?;
            }
            Ok(())
        }
        Err(aloe_task::Error::Empty { .. }) => Ok(()),
        Err(error) => each(Err(RowError::new(path.display().to_string(), error.to_string()))),
    }
}

#[cfg(test)]
mod tests;
