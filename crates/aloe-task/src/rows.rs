//! Rows of JSON, JSON lines, CSV and Parquet files (each also as `.gz` but Parquet), with the place they came from.
//!
//! Refuses lines over 64 MiB, bytes that are not UTF-8, rows that are not objects, a name that stands twice in an object (a row's, an
//! option's, a column's) or in a CSV header, of which all but the last would be lost, and empty files. A `.json` file may hold
//! an array, one object per line, or one object whose values are the rows (the key then becomes the column `_key`).

use crate::strict::parse_any_character as parse;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Under this name stand, in hexadecimal, the bytes of a Parquet column that are not UTF-8.
const NOT_UTF8: &str = "_not_utf8";

const MAX_LINE_BYTES: u64 = 64 << 20;

/// One row and where it stands.
#[derive(Clone, Debug)]
pub struct Row {
    /// Columns by name, in file order.
    pub columns: Map<String, Value>,
    /// `file:line` or `file#row`.
    pub at: String,
}

impl Row {
    /// The text of a column; numbers are not text.
    pub fn text(&self, column: &str) -> Result<String> {
        match self.columns.get(column) {
            Some(Value::String(text)) => Ok(text.clone()),
            other => Err(self.unexpected(column, "text", other)),
        }
    }

    /// The text of a column that may be absent or null.
    pub fn optional_text(&self, column: &str) -> Result<Option<String>> {
        match self.columns.get(column) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            other => Err(self.unexpected(column, "text or null", other)),
        }
    }

    /// A whole number, also when written as text or, as pandas writes a column with gaps, as `4.0`.
    pub fn integer(&self, column: &str) -> Result<i64> {
        let found = self.columns.get(column);
        // Beyond 2^53 a double does not tell whole numbers apart.
        let whole =
            |number: f64| (number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0).then_some(number as i64);
        match found {
            Some(Value::Number(number)) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
            Some(Value::String(text)) => {
                let text = text.trim();
                text.strip_suffix(".0").unwrap_or(text).parse().ok()
            }
            _ => None,
        }
        .ok_or_else(|| self.unexpected(column, "a whole number", found))
    }

    /// A list of texts.
    pub fn texts(&self, column: &str) -> Result<Vec<String>> {
        let found = self.columns.get(column);
        let list = found.and_then(Value::as_array).ok_or_else(|| self.unexpected(column, "a list of texts", found))?;
        list.iter()
            .map(|item| item.as_str().map(String::from))
            .collect::<Option<_>>()
            .ok_or_else(|| self.unexpected(column, "a list of texts", found))
    }

    /// Whether the column is there and not null.
    pub fn has(&self, column: &str) -> bool {
        self.columns.get(column).is_some_and(|value| !value.is_null())
    }

    /// The error for a column of another kind.
    pub fn unexpected(&self, column: &str, expected: &str, found: Option<&Value>) -> Error {
        let found = match found {
            None => {
                let names: Vec<String> = self.columns.keys().map(|name| shown_name(name)).take(12).collect();
                format!("no such column (the row has {})", names.join(", "))
            }
            Some(value) => shown(value),
        };
        Error::Column { at: self.at.clone(), column: column.into(), expected: expected.into(), found }
    }

    /// An error about the row as a whole.
    pub fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::Row { at: self.at.clone(), reason: reason.into() }
    }
}

/// What a value is, without saying it: rows are private, and errors stand in logs.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "true or false".into(),
        Value::Number(_) => "a number".into(),
        Value::String(text) => format!("text of {} characters", text.chars().count()),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(columns) if columns.contains_key(NOT_UTF8) => "bytes that are not UTF-8".into(),
        Value::Object(columns) => format!("an object of {} columns", columns.len()),
    }
}

/// A column's name, unless it looks like a row's text, as in a CSV file without its header: names have no spaces, at most 40
/// characters, and fewer than four digits in a row.
pub fn shown_name(name: &str) -> String {
    let is_plain = name.chars().all(|c| c.is_alphanumeric() || "_-./".contains(c)) && name.chars().count() <= 40;
    let n_digits = name.split(|c: char| !c.is_numeric()).map(str::len).max().unwrap_or(0);
    if is_plain && n_digits < 4 { name.to_owned() } else { format!("(a name of {} characters)", name.chars().count()) }
}

/// An answer key as written when it is one letter or digit, else its length.
pub fn shown_key(key: &str) -> String {
    let key = key.trim();
    match key.chars().count() {
        1 if key.is_ascii() => key.to_owned(),
        n => format!("(text of {n} characters)"),
    }
}

/// Reads all rows of `dir/relative`; the format follows from the name. CSV needs a header here, see [`read_csv_plain`].
pub fn read(dir: &Path, relative: &str) -> Result<Vec<Row>> {
    let path = dir.join(relative);
    let stem = relative.strip_suffix(".gz").unwrap_or(relative);
    let rows = if stem.ends_with(".parquet") {
        read_parquet(&path, relative)?
    } else if stem.ends_with(".csv") {
        read_csv(open(&path, relative)?, relative)?
    } else if stem.ends_with(".json") {
        let mut text = String::new();
        open(&path, relative)?.read_to_string(&mut text).map_err(io(relative))?;
        parse_json(&text, relative)?
    } else {
        read_lines(open(&path, relative)?, relative)?
    };
    if rows.is_empty() { Err(Error::Empty { path: relative.into() }) } else { Ok(rows) }
}

fn io(relative: &str) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: relative.into(), source }
}

fn open(path: &Path, relative: &str) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(io(relative))?;
    if relative.ends_with(".gz") {
        Ok(Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file))))
    } else {
        Ok(Box::new(BufReader::new(file)))
    }
}

fn object(value: Value, at: String) -> Result<Row> {
    match value {
        Value::Object(columns) => Ok(Row { columns, at }),
        other => Err(Error::Row { at, reason: format!("expected a JSON object, found {}", shown(&other)) }),
    }
}

fn read_lines(mut source: Box<dyn BufRead>, relative: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut line = Vec::new();
    for number in 1usize.. {
        line.clear();
        let n_bytes = source.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(io(relative))?;
        if n_bytes == 0 {
            break;
        }
        let at = format!("{relative}:{number}");
        if n_bytes as u64 == MAX_LINE_BYTES {
            return Err(Error::Row { at, reason: "the line is longer than 64 MiB".into() });
        }
        let text = std::str::from_utf8(&line).map_err(|error| Error::Row {
            at: format!("{at}:{}", error.valid_up_to() + 1),
            reason: "not UTF-8".into(),
        })?;
        if !text.trim().is_empty() {
            rows.push(parse_line(text, relative, number)?);
        }
    }
    Ok(rows)
}

fn parse_line(text: &str, relative: &str, number: usize) -> Result<Row> {
    // Without its end, so that what is missing at the end of a line is missing there and not at column 0 of the next.
    let text = text.trim_end_matches(['\n', '\r']);
    let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text };
    let value = parse(text).map_err(|error| Error::Row {
        at: format!("{relative}:{number}:{}", error.column()),
        reason: reason(&error, "not a JSON row"),
    })?;
    object(value, format!("{relative}:{number}"))
}

/// serde_json's message behind `what`, without its own line and column, which count from the row; of JSON that says a thing twice the
/// message alone.
fn reason(error: &serde_json::Error, what: &str) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(head, _)| head);
    match error.is_data() {
        true => format!("{text} (all but the last would be lost; rename or remove one)"),
        false => format!("{what}: {text}"),
    }
}

fn parse_json(text: &str, relative: &str) -> Result<Vec<Row>> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let value: Value = match parse(text) {
        Ok(value) => value,
        Err(_) if starts_with_a_row(text) => {
            let rows = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            return rows.map(|(index, line)| parse_line(line, relative, index + 1)).collect();
        }
        Err(error) => {
            return Err(Error::Row {
                at: format!("{relative}:{}:{}", error.line(), error.column()),
                reason: reason(&error, "not JSON"),
            });
        }
    };
    match value {
        Value::Array(items) => {
            items.into_iter().enumerate().map(|(i, item)| object(item, format!("{relative}#{}", i + 1))).collect()
        }
        Value::Object(columns) if !columns.values().all(Value::is_object) => {
            Ok(vec![Row { columns, at: format!("{relative}:1") }])
        }
        Value::Object(items) => items
            .into_iter()
            .map(|(key, item)| {
                let mut row = object(item, format!("{relative}#{key}"))?;
                row.columns.insert("_key".into(), Value::String(key));
                Ok(row)
            })
            .collect(),
        other => Err(Error::Row { at: relative.into(), reason: format!("expected rows, found {}", shown(&other)) }),
    }
}

/// Whether the first line that is not empty is a whole object, so that the file is lines of rows.
fn starts_with_a_row(text: &str) -> bool {
    let first = text.lines().find(|line| !line.trim().is_empty());
    first.is_some_and(|line| matches!(serde_json::from_str::<Value>(line), Ok(Value::Object(_))))
}

fn read_csv(source: Box<dyn BufRead>, relative: &str) -> Result<Vec<Row>> {
    let mut reader = csv::ReaderBuilder::new().from_reader(source);
    let header = reader.headers().map_err(|e| csv_error(&e, relative))?.clone();
    check_header(&header, relative)?;
    let names: Vec<String> = header.iter().map(String::from).collect();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| csv_error(&error, relative))?;
        let line = record.position().map_or(0, csv::Position::line);
        let columns = names.iter().cloned().zip(record.iter().map(|cell| Value::String(cell.into()))).collect();
        rows.push(Row { columns, at: format!("{relative}:{line}") });
    }
    Ok(rows)
}

/// Columns without a name, as pandas writes an index, may be several: nothing asks for them.
fn check_header(header: &csv::StringRecord, relative: &str) -> Result<()> {
    let mut seen = HashSet::new();
    match header.iter().filter(|name| !name.is_empty()).find(|name| !seen.insert(*name)) {
        None => Ok(()),
        Some(name) => Err(Error::Row {
            at: format!("{relative}:{}", header.position().map_or(1, csv::Position::line)),
            reason: format!("column `{}` stands twice in the header; rename or remove one", shown_name(name)),
        }),
    }
}

/// The records of a CSV file without header: cells and `file:line`. All records must have `n_columns` cells.
pub fn read_csv_plain(dir: &Path, relative: &str, n_columns: usize) -> Result<Vec<(Vec<String>, String)>> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(open(&dir.join(relative), relative)?);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| csv_error(&error, relative))?;
        let at = format!("{relative}:{}", record.position().map_or(0, csv::Position::line));
        if record.len() != n_columns {
            return Err(Error::Row { at, reason: format!("expected {n_columns} columns, found {}", record.len()) });
        }
        rows.push((record.iter().map(String::from).collect(), at));
    }
    if rows.is_empty() { Err(Error::Empty { path: relative.into() }) } else { Ok(rows) }
}

fn csv_error(error: &csv::Error, relative: &str) -> Error {
    let at = error.position().map_or_else(|| relative.to_string(), |place| format!("{relative}:{}", place.line()));
    Error::Row { at, reason: format!("not CSV: {error}") }
}

fn read_parquet(path: &Path, relative: &str) -> Result<Vec<Row>> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let broken =
        |at: String| move |error: parquet::errors::ParquetError| Error::Row { at, reason: parquet_reason(&error) };
    let file = File::open(path).map_err(io(relative))?;
    let reader = SerializedFileReader::new(file).map_err(broken(relative.into()))?;
    let mut rows = Vec::new();
    for (index, row) in reader.get_row_iter(None).map_err(broken(relative.into()))?.enumerate() {
        let at = format!("{relative}#{}", index + 1);
        let row = row.map_err(broken(at.clone()))?;
        rows.push(Row { columns: parquet_row(&row), at });
    }
    Ok(rows)
}

/// A number that may be an answer key, or the word for another one: a record number is private too.
pub fn shown_number(number: i64) -> String {
    if (-9..=99).contains(&number) { number.to_string() } else { "(a number beyond 99)".into() }
}

/// The library's reason, without the bytes that it quotes of a text that is not UTF-8.
pub fn parquet_reason(error: &parquet::errors::ParquetError) -> String {
    let text = error.to_string();
    let head = text.find("Bytes: ").map_or(text.as_str(), |at| &text[..at]);
    head.chars().take(200).collect::<String>().trim_end().to_owned()
}

/// A row of a Parquet file as columns.
pub fn parquet_row(row: &parquet::record::Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), parquet_field(field))).collect()
}

fn parquet_field(field: &parquet::record::Field) -> Value {
    use parquet::record::Field;
    match field {
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(value) => Value::from(value.as_str()),
        Field::Bytes(value) => match value.as_utf8() {
            Ok(text) => Value::from(text),
            // Not null, which would pass for an absent answer; a reader that wants this column names it.
            Err(_) => {
                let hex: String = value.data().iter().map(|byte| format!("{byte:02x}")).collect();
                Value::Object(Map::from_iter([(NOT_UTF8.to_owned(), Value::String(hex))]))
            }
        },
        Field::Group(row) => Value::Object(parquet_row(row)),
        Field::ListInternal(list) => list.elements().iter().map(parquet_field).collect(),
        Field::Null => Value::Null,
        other => Value::from(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, content: &str) -> Result<Vec<Row>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
        read(dir.path(), name)
    }

    #[test]
    fn a_row_that_is_not_json_is_refused_with_file_line_and_column() {
        let error = check("a.jsonl", "{\"a\": 1}\n\n{\"a\": x}\n").unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:3:7: not a JSON row"), "{error}");
        let error = check("a.jsonl", "{\"a\": 1}\n{\"a\":\n").unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:2:5: not a JSON row"), "cut off before the line's end: {error}");
        let error = check("a.jsonl", "[1]\n").unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:1: expected a JSON object"), "{error}");
    }

    /// pandas writes a column of whole numbers with a gap as `4.0`, in JSON and in CSV.
    #[test]
    fn a_whole_number_is_one_however_it_is_written_and_a_half_is_none() {
        let of = |value: &str| check("a.jsonl", &format!("{{\"n\": {value}}}\n")).unwrap()[0].integer("n").ok();
        for (value, expected) in [
            ("4", Some(4)),
            ("4.0", Some(4)),
            ("-1.0", Some(-1)),
            ("\" 4 \"", Some(4)),
            ("\"4.0\"", Some(4)),
            ("4.5", None),
            ("1e300", None),
            ("\"4.5\"", None),
            ("\".0\"", None),
            ("null", None),
        ] {
            assert_eq!(of(value), expected, "{value}");
        }
    }

    #[test]
    fn an_empty_file_is_refused_in_every_format() {
        for name in ["a.jsonl", "a.json"] {
            assert!(matches!(check(name, "\n"), Err(Error::Empty { .. })), "{name}");
        }
        assert!(matches!(check("a.csv", "x,y\n"), Err(Error::Empty { .. })));
        assert!(matches!(check("a.json", "[]"), Err(Error::Empty { .. })));
    }

    #[test]
    fn array_lines_and_dictionary_give_the_same_rows() {
        let array = check("a.json", "[\n{\"q\": \"x\"},\n{\"q\": \"y\"}]").unwrap();
        let lines = check("a.json", "{\"q\": \"x\"}\n{\"q\": \"y\"}\n").unwrap();
        let named = check("a.json", "{\n\"1\": {\"q\": \"x\"},\n\"2\": {\"q\": \"y\"}}").unwrap();
        for rows in [&array, &lines, &named] {
            assert_eq!(rows.iter().map(|row| row.text("q").unwrap()).collect::<Vec<_>>(), ["x", "y"]);
        }
        assert_eq!(array[1].at, "a.json#2");
        assert_eq!(lines[1].at, "a.json:2");
        assert_eq!(named[1].at, "a.json#2");
        assert_eq!(named[1].text("_key").unwrap(), "2");
        let one_line = check("a.json", "{\"1\": {\"q\": \"x\"}, \"2\": {\"q\": \"y\"}}").unwrap();
        assert_eq!((one_line.len(), one_line[1].at.as_str()), (2, "a.json#2"));
        let one_row = check("a.json", "{\"q\": \"x\", \"n\": {\"a\": 1}}\n").unwrap();
        assert_eq!((one_row.len(), one_row[0].text("q").unwrap().as_str()), (1, "x"));
    }

    /// A dictionary of rows, options by letter, a column, in each layout of JSON; and the first line of a CSV file.
    #[test]
    fn a_name_that_stands_twice_is_refused_with_its_place_in_every_format() {
        let refused = |name: &str, content: &str, expected: &str| {
            let error = check(name, content).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        let row = r#"{"q": "x", "o": {"A": "1"}}"#;
        let twice = |key: &str| format!("{{\"{key}\": {row},\n\"{key}\": {row},\n\"q2\": {row}}}");
        refused("a.json", &twice("q1"), "a.json:2:4: a key stands twice: q1 (all but the last would be lost");
        refused("a.json", &twice("12345678"), "a.json:2:10: a key stands twice: (a name of 8 characters)");
        refused("a.json", &twice("q1").replace('\n', ""), "a.json:1:39: a key stands twice: q1");
        let options = r#"{"q": "x", "o": {"A": "1", "A": "2"}}"#;
        refused("a.json", &format!("[{row},\n{options}]"), "a.json:2:30: a key stands twice: A");
        refused("a.json", &format!("{row}\n{options}\n"), "a.json:2:30: a key stands twice: A");
        refused("a.jsonl", &format!("{row}\n{options}\n"), "a.jsonl:2:30: a key stands twice: A");
        refused("a.jsonl", "{\"q\": 1, \"q\": 1}\n", "a.jsonl:1:12: a key stands twice: q");
        refused("a.csv", "q,a,k,a\nx,1,A,2\n", "a.csv:1: column `a` stands twice in the header; rename or remove one");
        assert_eq!(check("a.csv", "q,,\nx,0,0\n").unwrap()[0].text("q").unwrap(), "x");
    }

    #[test]
    fn csv_cells_keep_quotes_commas_and_line_breaks_and_lines_are_counted_in_the_file() {
        let rows = check("a.csv", "q,a\n\"one, \"\"two\"\"\nthree\",x\nfour,y\n").unwrap();
        assert_eq!(rows[0].text("q").unwrap(), "one, \"two\"\nthree");
        assert_eq!(rows[1].at, "a.csv:4");
        let error = check("a.csv", "q,a\nx\n").unwrap_err().to_string();
        assert!(error.starts_with("a.csv:2"), "{error}");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused_with_their_column() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.jsonl"), b"{\"a\": \"\xff\"}\n").unwrap();
        assert_eq!(read(dir.path(), "a.jsonl").unwrap_err().to_string(), "a.jsonl:1:8: not UTF-8");
    }
}
