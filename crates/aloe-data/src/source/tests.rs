//! Rows and broken rows of made files, their places counted by hand.

use super::*;

fn check(name: &str, content: &[u8]) -> (Vec<Row>, Vec<RowError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    let (mut rows, mut broken) = (Vec::new(), Vec::new());
    let prefix = format!("{}/", dir.path().display());
    read(&path, &mut |row| {
        match row {
            Ok(row) => rows.push(Row { at: row.at.replace(&prefix, ""), ..row }),
            Err(error) => broken.push(RowError { at: error.at.replace(&prefix, ""), ..error }),
        }
        Ok(())
    })
    .unwrap();
    (rows, broken)
}

fn places(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.at.as_str()).collect()
}

#[test]
fn a_broken_line_is_named_with_line_and_column_and_the_rest_is_read() {
    let (rows, broken) = check("a.jsonl", b"{\"a\":\"1\"}\n\n{\"a\": x}\n[1]\n{\"a\":\"\xff\"}\n{\"a\":\"2\"}");
    assert_eq!(places(&rows), ["a.jsonl:1", "a.jsonl:6"]);
    let shown: Vec<String> = broken.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "a.jsonl:3:7: not JSON: expected value",
            "a.jsonl:4: expected an object, found a list",
            "a.jsonl:5:7: not UTF-8"
        ]
    );
}

#[test]
fn rows_of_an_array_carry_their_lines_and_one_broken_row_does_not_hide_the_next() {
    let text = b"[\n {\"a\": \"x}]\\\"\"},\n {\"a\": tru},\n  {\n   \"a\": \"y\",\n   \"b\": [1, {}]\n  }\n]\n";
    let (rows, broken) = check("a.json", text);
    assert_eq!(places(&rows), ["a.json:2", "a.json:4"]);
    assert_eq!(rows[0].text("a").unwrap(), "x}]\"");
    assert_eq!(broken.len(), 1);
    assert!(broken[0].at.starts_with("a.json:3:"), "{}", broken[0]);
}

#[test]
fn an_object_of_rows_gives_its_keys() {
    let (rows, broken) = check("a.json", b"{\n \"k1\": {\"a\": \"x\"},\n \"k2\": {\"a\": \"y\"}\n}");
    assert!(broken.is_empty());
    assert_eq!(places(&rows), ["a.json:2", "a.json:3"]);
    assert_eq!(rows[1].text("_key").unwrap(), "k2");
}

#[test]
fn a_file_cut_off_inside_a_row_says_so_and_keeps_the_rows_before() {
    let (rows, broken) = check("a.json", b"[\n{\"a\": \"x\"},\n{\"a\": \"y");
    assert_eq!(rows.len(), 1);
    assert_eq!(broken[0].to_string(), "a.json:3:9: the file ends inside a row");
}

#[test]
fn csv_keeps_quoted_breaks_and_counts_lines_of_the_file() {
    let (rows, broken) = check("a.csv", b",q,a\n0,\"one, \"\"two\"\"\nthree\",x\n1,short\n2,four,y\n");
    assert_eq!(places(&rows), ["a.csv:2", "a.csv:5"]);
    assert_eq!(rows[0].text("q").unwrap(), "one, \"two\"\nthree");
    assert!(!rows[0].has(""), "the unnamed index column is left out");
    assert_eq!(broken[0].to_string(), "a.csv:4: expected 3 columns, found 2");
}

#[test]
fn gzip_is_found_by_content() {
    use std::io::Write as _;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(b"{\"a\":\"1\"}\n{\"a\":\"2\"}\n").unwrap();
    let (rows, _) = check("plain-name.jsonl", &packed.finish().unwrap());
    assert_eq!(rows.len(), 2);
}

#[test]
fn a_file_without_rows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", "q,a\n"), ("b.jsonl", "")] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let result = read(&path, &mut |_| Ok(()));
        assert!(matches!(result, Err(Error::EmptyFile { .. })), "{name}: {result:?}");
    }
}
