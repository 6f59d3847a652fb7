//! Files to rows with file and line: JSON lines, JSON arrays and objects of rows, CSV, TSV, lines of text, Parquet, each but the last
//! also gzipped.
//!
//! The format is found by content; only a file named as CSV, TSV or text has to be JSON to its first line's end to be read as such. A broken row is handed on as a [`RowError`] and reading goes on, except where the file's own
//! brackets are broken. Rows over 1 MiB and bytes that are not UTF-8 are broken rows; a file without rows, and one of which none can be
//! read, is an error.

mod batches;
mod opened;
mod parquet;
mod separated;

pub(crate) use batches::{n_bytes, read_on};
pub(crate) use opened::Source;

use crate::data::own_answers::stage_rows;
use crate::elements::{Elements, MAX_ROW_BYTES, Stop, WRAPPERS};
use crate::error::with_bytes;
use crate::{Error, Result, RowError};
use aloe_task::rows::Row;
use aloe_task::strict;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Cursor, Read as _};
use std::path::{Path, PathBuf};

/// What is read of a line: one byte more than a row may have.
const MAX_LINE_BYTES: u64 = MAX_ROW_BYTES as u64 + 1;

const TOO_LONG: &str = "the row is longer than 1 MiB; it stays in its file alone";

const UTF16: &str =
    "the file is UTF-16, not UTF-8, and none of it is read; convert it, as with `iconv -f UTF-16 -t UTF-8`";

/// A data file: where it is and what it is called in ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataFile {
    pub(crate) path: PathBuf,
    pub(crate) label: String,
}

/// The data files of a source: the file itself, the rows of a stage's folder, or all data files below another folder in the order of their
/// names.
pub(crate) fn files(path: &Path) -> Result<Vec<DataFile>> {
    let label = |file: &Path| {
        let inside = file.strip_prefix(path).ok().filter(|rest| !rest.as_os_str().is_empty());
        inside.unwrap_or_else(|| Path::new(file.file_name().unwrap_or(file.as_os_str()))).to_string_lossy().into_owned()
    };
    let mut found = Vec::new();
    if let Some(rows) = stage_rows(path) {
        found.push(path.join(rows));
    } else if path.is_dir() {
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

/// Endings of files that hold rows.
const ENDINGS: [&str; 6] = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"];

/// The files of a folder that are not read although they may hold rows; documents and lists that belong to a set are none.
pub(crate) fn skipped(path: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    if path.is_dir() && stage_rows(path).is_none() {
        walk(path, &mut all)?;
        all.sort();
        let read: Vec<PathBuf> = files(path)?.into_iter().map(|file| file.path).collect();
        all.retain(|file| !read.contains(file) && !is_document(file));
    }
    Ok(all.iter().map(|file| file.strip_prefix(path).unwrap_or(file).to_string_lossy().into_owned()).collect())
}

fn is_document(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let starts = ["licen", "readme", "notice", "sha256sums", "citation", "changelog", "."];
    name.ends_with(".md")
        || [TEST_LIST, "record.json"].contains(&name.as_str())
        || starts.iter().any(|start| name.starts_with(start))
}

/// PubMedQA's list of test instances, which is no file of rows.
pub(crate) const TEST_LIST: &str = "test_ground_truth.json";

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.is_dir() { walk(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// The files with rows below `folder`; text files, a row a line, only where there are no others.
fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut all = Vec::new();
    walk(folder, &mut all)?;
    all.retain(|path| !is_document(path));
    let of = |endings: &[&str]| -> Vec<PathBuf> {
        all.iter().filter(|path| endings.iter().any(|end| is_named(path, end))).cloned().collect()
    };
    *found = of(&ENDINGS);
    if found.is_empty() {
        *found = of(&[".txt"]);
    }
    Ok(())
}

/// What receives rows and broken rows, in file order.
pub(crate) type Each<'a> = &'a mut dyn FnMut(Result<Row, RowError>) -> Result<()>;

/// Reads `path`; gives the number of rows, broken ones included.
pub(crate) fn read(path: &Path, each: Each<'_>) -> Result<usize> {
    let mut n_rows = 0;
    dispatch(&Source::open(path)?, &mut |found| {
        n_rows += 1;
        each(match found {
            Found::Row(row) => row,
            Found::Line(number, line) => parse_line(path, number, line),
        })
    })?;
    if n_rows == 0 { Err(Error::EmptyFile { path: path.to_path_buf() }) } else { Ok(n_rows) }
}

/// Rows of a file, broken ones included, and the broken ones among them; whether they are rows of a known layout is not asked.
pub fn count_rows(path: &Path) -> Result<(usize, usize)> {
    let mut n_broken = 0;
    let n_rows = read(path, &mut |row| {
        n_broken += usize::from(row.is_err());
        Ok(())
    })?;
    Ok((n_rows, n_broken))
}

/// What a file's reader finds: a row, or a whole line of JSON with its number, which anybody may parse.
enum Found<'a> {
    Row(Result<Row, RowError>),
    Line(usize, &'a [u8]),
}

fn parse_line(path: &Path, number: usize, line: &[u8]) -> Result<Row, RowError> {
    let path_shown = path.to_string_lossy();
    let mut at = String::with_capacity(path_shown.len() + 8);
    at.push_str(&path_shown);
    let _ = write!(at, ":{number}");
    parse(line, path, number, 1, at)
}

fn dispatch(opened: &Source, each_found: &mut dyn FnMut(Found<'_>) -> Result<()>) -> Result<()> {
    let each: Each<'_> = &mut |row| each_found(Found::Row(row));
    let (path, magic) = (opened.path(), opened.magic()?);
    if &magic == b"PAR1" {
        return parquet::read(path, each);
    }
    let mut source: Box<dyn BufRead + '_> = if magic[..2] == [0x1f, 0x8b] {
        Box::new(BufReader::with_capacity(1 << 18, flate2::read::MultiGzDecoder::new(BufReader::new(opened))))
    } else {
        Box::new(BufReader::with_capacity(1 << 18, opened))
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
    if matches!(first[..], [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..]) {
        return Err(Error::Unreadable { path: path.to_path_buf(), reason: UTF16.to_owned() });
    }
    let start = first.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&first).trim_ascii_start();
    let is_cut = first.len() as u64 == MAX_LINE_BYTES;
    let is_other = [".csv", ".tsv", ".txt"].iter().any(|end| is_named(path, end)) && !begins_json(start, is_cut);
    let kind = start.first().copied().filter(|_| !is_other);
    let is_dict = kind == Some(b'{') && is_object_of_rows(start, is_cut);
    // One whole line is an object of rows only when nothing follows it.
    let mut after = Vec::new();
    if is_dict && first.last() == Some(&b'\n') {
        while after.trim_ascii().is_empty() {
            let n_bytes =
                source.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut after).map_err(Error::io("read", path))?;
            if n_bytes == 0 {
                break;
            }
        }
    }
    let whole_line = serde_json::from_slice::<serde::de::IgnoredAny>(start.trim_ascii_end());
    // An object of rows breaks its first line after a bracket or comma; a cut-off JSON line seldom does.
    let continues = whole_line.is_err_and(|error| error.is_eof())
        && matches!(start.trim_ascii_end().last(), Some(b'{' | b'[' | b','));
    let is_dict = is_dict && after.trim_ascii().is_empty();
    let source: Box<dyn BufRead + '_> = Box::new(Cursor::new(first).chain(Cursor::new(after)).chain(source));
    match kind {
        Some(b'[') => read_elements(source, path, each),
        Some(b'{') if continues || is_dict => read_elements(source, path, each),
        Some(b'{') => read_lines(source, path, each_found),
        _ if is_named(path, ".csv") || is_named(path, ".tsv") => separated::read(source, path, each),
        _ if is_named(path, ".txt") => read_texts(source, path, each),
        _ => read_lines(source, path, each_found),
    }
}

/// Whether the first line of a file whose name says otherwise is JSON all the same: whole, or broken off where JSON may be. Texts begin
/// with `[sighs]` and formulas with `[Na+]`.
fn begins_json(line: &[u8], is_cut: bool) -> bool {
    let inside = line.get(1..).unwrap_or_default().trim_ascii_start();
    let begins = match line.first() {
        Some(b'{') => inside.is_empty() || inside.starts_with(b"\""),
        Some(b'[') => inside.is_empty() || inside.starts_with(b"{"),
        _ => false,
    };
    let whole = serde_json::from_slice::<serde::de::IgnoredAny>(line.trim_ascii_end());
    begins && (is_cut || whole.map_or_else(|error| error.is_eof(), |_| true))
}

/// Columns that rows are known to have; an object with one of them as a key is a row, not an object of rows.
const ROW_KEYS: [&str; 16] = [
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "conversations",
    "conversation",
    "question",
    "options",
    "answer",
    "response",
    "instruction",
    "input",
    "output",
    "context",
    "text",
    "meta",
];

/// Whether a line is an object whose values are all objects under keys that no row has: `json.dump` writes a dictionary of rows on one
/// line. Of a line cut off at the longest row only the first key is looked at.
fn is_object_of_rows(line: &[u8], is_cut: bool) -> bool {
    let is_key = |key: &str| !ROW_KEYS.contains(&key);
    let is_wrapper = |key: &str| WRAPPERS.contains(&key);
    if is_cut {
        let head = String::from_utf8_lossy(&line[..line.len().min(4096)]);
        if WRAPPERS
            .iter()
            .any(|key| head.contains(&format!("\"{key}\": [{{")) || head.contains(&format!("\"{key}\":[{{")))
        {
            return true;
        }
        let text = String::from_utf8_lossy(&line[1..line.len().min(4096)]).into_owned();
        let mut parts = text.trim_start().splitn(3, '"').skip(1);
        let (key, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        return is_key(key)
            && rest.trim_start().strip_prefix(':').is_some_and(|value| value.trim_start().starts_with('{'));
    }
    match serde_json::from_slice::<Map<String, Value>>(line.trim_ascii_end()) {
        Ok(columns) => {
            let is_list = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_object));
            let wraps = columns.iter().filter(|(key, value)| is_wrapper(key) && is_list(value)).count() == 1;
            let are_rows = columns.iter().all(|(key, value)| is_key(key) && value.is_object());
            !columns.is_empty() && (are_rows || (wraps && !columns.keys().any(|key| ROW_KEYS.contains(&key.as_str()))))
        }
        Err(_) => false,
    }
}

pub(crate) fn is_named(path: &Path, end: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.strip_suffix(".gz").unwrap_or(&name).ends_with(end)
}

/// What stops the reading of lines: of a packed file that was cut off or damaged with the line that it stops in; what the system says, as it is.
fn stopped(error: std::io::Error, path: &Path, number: usize) -> Error {
    if error.raw_os_error().is_some() {
        return Error::io("read", path)(error);
    }
    let text = format!("{error}, in line {number}; nothing from there on can be read");
    Error::io("read", path)(std::io::Error::new(error.kind(), text))
}

fn read_lines(
    mut source: Box<dyn BufRead + '_>,
    path: &Path,
    each: &mut dyn FnMut(Found<'_>) -> Result<()>,
) -> Result<()> {
    let mut line = Vec::new();
    for number in 1usize.. {
        line.clear();
        let n_bytes = source
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| stopped(error, path, number))?;
        if n_bytes == 0 {
            return Ok(());
        }
        if n_bytes > MAX_ROW_BYTES && line.last() != Some(&b'\n') {
            source.skip_until(b'\n').map_err(|error| stopped(error, path, number))?;
            let at = format!("{}:{number}", path.display());
            each(Found::Row(Err(RowError::new(at, TOO_LONG))))?;
            continue;
        }
        // Without its end, so that what is missing at the end of a line is missing there and not on the next.
        let mut text = line.strip_suffix(b"\n").unwrap_or(&line);
        text = text.strip_suffix(b"\r").unwrap_or(text);
        if number == 1 {
            text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
        }
        if !text.trim_ascii().is_empty() {
            each(Found::Line(number, text))?;
        }
    }
    Ok(())
}

/// One text a line, in the column `text`.
fn read_texts(mut source: Box<dyn BufRead + '_>, path: &Path, each: Each<'_>) -> Result<()> {
    let mut line = Vec::new();
    for number in 1usize.. {
        line.clear();
        let n_bytes = source
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| stopped(error, path, number))?;
        if n_bytes == 0 {
            return Ok(());
        }
        let at = format!("{}:{number}", path.display());
        if n_bytes > MAX_ROW_BYTES && line.last() != Some(&b'\n') {
            source.skip_until(b'\n').map_err(|error| stopped(error, path, number))?;
            each(Err(RowError::new(at, TOO_LONG)))?;
            continue;
        }
        let bytes = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line).trim_ascii();
        match std::str::from_utf8(bytes) {
            Ok("") => {}
            Ok(text) => each(Ok(Row { columns: Map::from_iter([("text".to_owned(), text.into())]), at }))?,
            Err(error) => {
                let at = format!("{at}:{}", error.valid_up_to() + 1);
                let raw = Some(with_bytes(bytes));
                each(Err(RowError { raw, ..RowError::new(at, "not UTF-8") }))?;
            }
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
            raw: Some(with_bytes(bytes)),
            ..RowError::new(format!("{}:{}:{}", path.display(), line + breaks, last + 1), "not UTF-8")
        }
    })?;
    match strict::parse(text) {
        Ok(Value::Object(columns)) => Ok(Row { columns, at }),
        Ok(other) => Err(RowError {
            raw: Some(text.into()),
            ..RowError::new(at, format!("{NO_OBJECT}, found {}", kind(&other)))
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

const NO_OBJECT: &str = "expected an object";

const ONE_OBJECT: &str =
    "one object over several lines is no file of rows; write each row on one line, as with `jq -c .`, or all in a list";

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

/// Texts and numbers beside a wrapper's list are columns of all its rows; where no list follows they are no rows.
fn read_elements(source: Box<dyn BufRead + '_>, path: &Path, each: Each<'_>) -> Result<()> {
    let mut shared = Map::new();
    let mut pending = Vec::new();
    let (mut has_list, mut has_row) = (false, false);
    // Beside a text under a row's own column everything is a column: this is one row and no file of rows.
    let mut is_one = false;
    let mut last_line = 0;
    for element in Elements::new(source) {
        match element {
            Ok(element) if element.bytes.len() > MAX_ROW_BYTES => {
                let at = format!("{}:{}:{}", path.display(), element.line, element.column);
                each(Err(RowError::new(at, TOO_LONG)))?;
            }
            Ok(element) => {
                // `json.dump` writes all rows on one line: from its second on the line alone names none of them.
                let column = if element.line == last_line { format!(":{}", element.column) } else { String::new() };
                last_line = element.line;
                let at = format!("{}:{}{column}", path.display(), element.line);
                let row = parse(&element.bytes, path, element.line, element.column, at);
                match (row, element.key) {
                    (Err(error), Some(key)) if error.reason.starts_with(NO_OBJECT) => {
                        is_one |= !has_list && ROW_KEYS.contains(&key.as_str());
                        shared.insert(key, serde_json::from_slice(&element.bytes).unwrap_or(Value::Null));
                        // Beside a list of rows, before or after it, such values describe the file.
                        pending.extend((!has_list).then_some(error));
                    }
                    (Ok(row), Some(key)) if is_one && !has_list && !has_row => {
                        shared.insert(key, Value::Object(row.columns));
                    }
                    (Ok(mut row), Some(key)) => {
                        has_row = true;
                        row.columns.insert("_key".into(), Value::String(key));
                        each(Ok(row))?;
                    }
                    (Ok(mut row), None) => {
                        (has_list, has_row) = (true, true);
                        pending.clear();
                        for (name, value) in &shared {
                            row.columns.entry(name.clone()).or_insert_with(|| value.clone());
                        }
                        each(Ok(row))?;
                    }
                    (Err(error), _) => each(Err(error))?,
                }
            }
            Err(Stop::Io(error)) => return Err(Error::io("read", path)(error)),
            Err(Stop::Syntax(line, column, reason)) => {
                each(Err(RowError::new(format!("{}:{line}:{column}", path.display()), reason)))?;
            }
        }
    }
    match pending.first() {
        Some(first) if !has_row => {
            let raw = serde_json::to_string(&shared).ok();
            each(Err(RowError { raw, ..RowError::new(&first.at, ONE_OBJECT) }))
        }
        _ => pending.into_iter().try_for_each(|error| each(Err(error))),
    }
}

#[cfg(test)]
mod tests;
