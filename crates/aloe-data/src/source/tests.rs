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

/// Why no row of a file is read.
fn refused(name: &str, content: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    read(&path, &mut |row| panic!("a row of it: {row:?}")).unwrap_err().to_string()
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

/// What the csv crate reads of these without a word: two rows of the first, altered cells of the others.
#[test]
fn a_quote_that_is_not_closed_and_text_behind_a_closed_one_make_a_broken_row() {
    let (rows, broken) = check("a.csv", b"q,a\nq1,a1\nq2,\"a2 never closed\nq3,a3\nq4,a4");
    assert_eq!(places(&rows), ["a.csv:2"]);
    assert_eq!(broken.len(), 1);
    assert!(
        broken[0].to_string().starts_with("a.csv:3: a quote that is opened in this row is not closed"),
        "{}",
        broken[0]
    );
    assert_eq!(broken[0].raw.as_deref(), Some("q2,\"a2 never closed\nq3,a3\nq4,a4"));
    let text = b"q,a\n\"x\"y,1\n\"he said \"no\" to it\",2\n\"well, \"\"so\"\"\",3\n5\' 10\" tall,4\n\"\",5\n";
    let (rows, broken) = check("a.csv", text);
    assert_eq!(places(&rows), ["a.csv:4", "a.csv:5", "a.csv:6"]);
    assert_eq!(rows[0].columns["q"], "well, \"so\"");
    assert_eq!(rows[1].columns["q"], "5\' 10\" tall");
    let raws: Vec<_> = broken.iter().map(|error| error.raw.as_deref().unwrap()).collect();
    assert_eq!(raws, ["\"x\"y,1", "\"he said \"no\" to it\",2"]);
}

#[test]
fn lines_of_csv_are_those_of_the_file_behind_windows_line_ends_and_blank_lines() {
    let text = b"\xef\xbb\xbf\"q, one\",a\r\n\r\nq1,\"two\r\nlines\"\r\n\r\n\r\nshort\r\nq3,a3\r\n";
    let (rows, broken) = check("a.csv", text);
    assert_eq!(places(&rows), ["a.csv:3", "a.csv:8"]);
    assert_eq!(rows[0].columns["q, one"], "q1");
    assert_eq!(broken[0].to_string(), "a.csv:7: expected 2 columns, found 1");
}

#[test]
fn a_column_that_stands_twice_in_a_header_breaks_its_rows_and_columns_without_a_name_do_not() {
    let (rows, broken) = check("a.csv", b"q,a,q\none,two,three\n");
    assert!(rows.is_empty());
    assert_eq!(broken[0].to_string(), "a.csv:2: column `q` stands twice in the header");
    assert_eq!(check("a.csv", b",q,\n1,one,2\n").0.len(), 1);
}

/// Lines end with a return alone, as old spreadsheets write them; inside a quote it is text.
#[test]
fn lines_of_csv_that_end_with_a_return_alone_are_counted_one_by_one() {
    let (rows, broken) = check("a.csv", b"a,b\r1,2\r\r\"x\ry\",3\r4,5");
    assert!(broken.is_empty());
    assert_eq!(places(&rows), ["a.csv:2", "a.csv:4", "a.csv:5"]);
    assert_eq!(rows[1].text("a").unwrap(), "x\ry");
}

#[test]
fn a_table_whose_cells_are_parted_otherwise_than_its_name_says_is_refused_with_what_parts_them() {
    assert!(refused("a.csv", b"question;answer\nA?;b\n").contains("no comma but semicolons"));
    assert!(refused("a.csv", b"question\tanswer\nA?\tb\n").contains("no comma but tabs"));
    assert!(refused("a.tsv", b"question,answer\nA?,b\n").contains("no tab but commas"));
    assert_eq!(check("a.csv", b"text\nA; b\n").0.len(), 1, "one column is a table too");
}

#[test]
fn csv_keeps_quoted_breaks_and_counts_lines_of_the_file() {
    let (rows, broken) = check("a.csv", b",q,a\n0,\"one, \"\"two\"\"\nthree\",x\n1,short\n2,four,y\n");
    assert_eq!(places(&rows), ["a.csv:2", "a.csv:5"]);
    assert_eq!(rows[0].text("q").unwrap(), "one, \"two\"\nthree");
    assert!(!rows[0].has(""), "the unnamed index column is left out");
    assert_eq!(broken[0].to_string(), "a.csv:4: expected 3 columns, found 2");
    assert_eq!(broken[0].raw.as_deref(), Some("1,short"), "a quarantine loses nothing");
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

#[test]
fn a_file_without_a_header_is_known_by_its_first_line_and_not_by_its_name() {
    let mmlu = b"\"What, then?\",w,x,y,z,C\nNext?,w,x,y,z,A\n";
    for name in ["anatomy_test.csv", "anatomy.csv"] {
        let (rows, _) = check(name, mmlu);
        assert_eq!((rows.len(), rows[0].text("target").unwrap()), (2, "C".to_owned()), "{name}");
    }
    let (rows, _) = check("own_test.csv", b"question,A,B,C,D,answer\nQ?,w,x,y,z,C\n");
    assert_eq!((rows.len(), rows[0].text("answer").unwrap()), (1, "C".to_owned()));
    let (rows, _) =
        check("util_test.csv", b"I built a sandcastle with my small nephew.,I built one.\nI slept.,I woke.\n");
    assert_eq!((rows.len(), rows[1].text("column_2").unwrap()), (2, "I woke.".to_owned()));
}

#[test]
fn tab_separated_rows_newline_delimited_rows_and_lines_of_text_are_read() {
    let (rows, _) = check("a.tsv", b"q\ta\none, two\tx\n");
    assert_eq!(rows[0].text("q").unwrap(), "one, two");
    assert_eq!(check("a.ndjson", b"{\"a\":\"1\"}\n{\"a\":\"2\"}\n").0.len(), 2);
    let (rows, broken) = check("a.txt", b"first line\n\nthird\n\xff\n");
    assert_eq!((places(&rows), rows[1].text("text").unwrap()), (vec!["a.txt:1", "a.txt:3"], "third".to_owned()));
    assert_eq!(broken[0].to_string(), "a.txt:4:1: not UTF-8");
}

#[test]
fn an_object_of_rows_on_one_line_is_told_from_a_row() {
    for end in ["", "\n", "\n\n "] {
        let (rows, broken) =
            check("a.json", format!("{{\"k1\": {{\"a\": \"x\"}}, \"k2\": {{\"a\": \"y\"}}}}{end}").as_bytes());
        assert!(broken.is_empty());
        assert_eq!(rows.iter().map(|row| row.text("_key").unwrap()).collect::<Vec<_>>(), ["k1", "k2"], "{end:?}");
    }
    let pair = br#"{"prompt": {"content": "q"}, "chosen": {"content": "g"}, "rejected": {"content": "b"}}"#;
    assert_eq!(check("a.jsonl", pair).0.len(), 1, "a row of objects");
    let lines = b"{\"x\": {\"a\": 1}}\n{\"x\": {\"a\": 2}}\n";
    assert!(check("a.jsonl", lines).0.iter().all(|row| row.has("x")), "lines are rows");
}

#[test]
fn a_text_or_table_that_begins_with_a_bracket_is_read_by_its_name_and_json_under_such_a_name_as_json() {
    let (rows, broken) = check("a.txt", b"[sighs] Hello\n{\"quoted\"} text\n");
    assert_eq!((rows.len(), rows[0].text("text").unwrap(), broken.len()), (2, "[sighs] Hello".to_owned(), 0));
    let (rows, broken) = check("chemistry_test.csv", b"[Na+] is,w,x,y,z,A\n{x} is,w,x,y,z,B\n");
    assert_eq!((rows.len(), rows[1].text("input").unwrap(), broken.len()), (2, "{x} is".to_owned(), 0));
    let (rows, _) = check("a.tsv", b"{q}\ta\none\tx\n");
    assert_eq!((rows.len(), rows[0].text("{q}").unwrap()), (1, "one".to_owned()));
    for json in [
        "{\"a\": \"x\"}\n{\"a\": \"y\"}\n",
        "[\n{\"a\": \"x\"},\n{\"a\": \"y\"}]",
        "[{\"a\": \"x\"},\n {\"a\": \"y\"}]",
    ] {
        for name in ["a.txt", "a.csv"] {
            let (rows, _) = check(name, json.as_bytes());
            assert_eq!((rows.len(), rows[1].text("a").unwrap()), (2, "y".to_owned()), "{name}: {json}");
        }
    }
}

#[test]
fn the_rows_behind_a_table_row_that_is_too_long_are_read() {
    let long = "x".repeat(1_200_000);
    let text = format!("q,a\n1,one\n2,\"{long}\n{long}\"\n3,three\n4,{long}\n5,{}\n6,six\n", "y".repeat((1 << 20) - 2));
    let (rows, broken) = check("a.csv", text.as_bytes());
    assert_eq!(places(&rows), ["a.csv:2", "a.csv:5", "a.csv:7", "a.csv:8"]);
    assert_eq!(rows.iter().map(|row| row.text("q").unwrap()).collect::<Vec<_>>(), ["1", "3", "5", "6"]);
    let told: Vec<String> = broken.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [3, 6].map(|line| format!("a.csv:{line}: the row is longer than 1 MiB; it stays in its file alone"))
    );
    let open = format!("q,a\n1,one\n2,\"open\n{}", "3,three\n".repeat(200_000));
    let (rows, broken) = check("a.csv", open.as_bytes());
    assert_eq!((rows.len(), broken.len()), (1, 1));
    assert!(
        broken[0].to_string().contains("a.csv:3: ") && broken[0].reason.contains("is a quote left open?"),
        "{}",
        broken[0]
    );
}

/// Latin-1 in the names of columns; the row below is a row, not names.
#[test]
fn a_header_that_is_not_utf8_is_told_and_the_next_row_is_no_header() {
    let (rows, broken) = check("a.csv", b"question,r\xe9ponse,answer\nQ1,x,one\nQ2,y,two\n");
    assert_eq!(places(&rows), ["a.csv:2", "a.csv:3"]);
    assert_eq!((rows[0].text("question").unwrap(), rows[1].text("answer").unwrap()), ("Q1".into(), "two".to_owned()));
    assert_eq!(broken.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a.csv:1: column `2` is not UTF-8"]);
    let (rows, broken) = check("mmlu_test.csv", b"Caf\xe9 is,w,x,y,z,A\nNext is,w,x,y,z,B\n");
    assert_eq!((rows.len(), broken.len(), rows[0].text("target").unwrap()), (1, 1, "B".to_owned()));
}

#[test]
fn files_of_a_folder_that_are_not_read_are_named_and_documents_are_not() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.ndjson", "b.tsv", "LICENSE.txt", "README.md", "notes.txt", "c.xlsx", "test_ground_truth.json"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    let labels: Vec<String> = files(dir.path()).unwrap().into_iter().map(|file| file.label).collect();
    assert_eq!(
        (labels, skipped(dir.path()).unwrap()),
        (vec!["a.ndjson".into(), "b.tsv".into()], vec!["c.xlsx".to_owned(), "notes.txt".to_owned()])
    );
    let texts = tempfile::tempdir().unwrap();
    std::fs::write(texts.path().join("a.txt"), "x").unwrap();
    assert_eq!(files(texts.path()).unwrap().len(), 1, "text files where there are no others");
}

/// A Parquet file of one column of texts, a row group for each list; `codec` packs it.
fn write_parquet(path: &Path, kind: &str, groups: &[&[&[u8]]], codec: ::parquet::basic::Compression) {
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let schema = format!("message rows {{ REQUIRED BYTE_ARRAY a{kind}; }}");
    let schema = std::sync::Arc::new(::parquet::schema::parser::parse_message_type(&schema).unwrap());
    let properties = WriterProperties::builder().set_compression(codec).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, std::sync::Arc::new(properties)).unwrap();
    for group in groups {
        let mut rows = writer.next_row_group().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = group.iter().map(|value| ByteArray::from(value.to_vec())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn parquet_is_read_however_it_is_packed_and_refused_by_its_name_where_that_is_not_known() {
    use ::parquet::basic::Compression;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let texts: Vec<String> = (0..200).map(|number| format!("text {number} of many alike")).collect();
    let values: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ] {
        write_parquet(&path, " (UTF8)", &[&values], codec);
        let mut found = Vec::new();
        read(&path, &mut |row| {
            found.push(row.unwrap().text("a").unwrap());
            Ok(())
        })
        .unwrap();
        assert_eq!(found, texts, "{codec}");
    }
    // The codec stands behind the column's path in the footer: field 4, 0 for none; 6 is LZO's 3 as Thrift writes it.
    write_parquet(&path, " (UTF8)", &[&values], Compression::UNCOMPRESSED);
    let mut bytes = std::fs::read(&path).unwrap();
    let name = b"\x19\x18\x01a\x15\x00";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + name.len() - 1] = 6;
    assert!(refused("a.parquet", &bytes).contains("a.parquet: its columns are packed with LZO"));
    assert!(refused("a.parquet", b"PAR1 and no more").contains("a.parquet: not Parquet"));
}

/// A Parquet file of two row groups; byte strings that are not UTF-8 in a column of text, and in one of bytes.
#[test]
fn a_parquet_row_that_is_not_utf8_is_named_by_its_number_and_the_next_row_group_is_read() {
    let write = |path: &Path, kind: &str, groups: &[&[&[u8]]]| {
        write_parquet(path, kind, groups, ::parquet::basic::Compression::UNCOMPRESSED);
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let read_all = || {
        let (mut rows, mut broken) = (Vec::new(), Vec::new());
        read(&path, &mut |row| {
            match row {
                Ok(row) => rows.push(row),
                Err(error) => broken.push(error.to_string().replace(&format!("{}/", dir.path().display()), "")),
            }
            Ok(())
        })
        .unwrap();
        (rows, broken)
    };
    write(&path, " (UTF8)", &[&[b"one", b"two \xff", b"three"], &[b"four"]]);
    let (rows, broken) = read_all();
    assert_eq!(rows.iter().map(|row| row.text("a").unwrap()).collect::<Vec<_>>(), ["one", "four"]);
    assert!(rows[1].at.ends_with("a.parquet#4"));
    assert!(
        broken[0].starts_with("a.parquet#2: not Parquet") && !broken[0].contains("116"),
        "no bytes of the row: {broken:?}"
    );
    assert_eq!(broken[1], "a.parquet#3: not read: row 2 before it in its row group is broken");
    write(&path, "", &[&[b"one", b"two \xff"]]);
    let (rows, broken) = read_all();
    assert!(broken.is_empty());
    let error = rows[1].text("a").unwrap_err().to_string();
    assert!(
        error.ends_with("column `a`: expected text, found bytes that are not UTF-8"),
        "not null in silence: {error}"
    );
}

/// Chen et al.'s files: one object with the attack's name and all rows in a list, written with and without line breaks.
#[test]
fn a_list_of_rows_inside_one_object_is_read_with_the_columns_beside_it() {
    let broken_lines = b"{\n \"method\": \"aim\",\n \"harmful_behaviors\": [\n  {\"behavior\": \"x\"},\n  {\"behavior\": tru},\n  {\"behavior\": \"y\", \"method\": \"own\"}\n ]\n}\n";
    let (rows, broken) = check("a.json", broken_lines);
    let of = |row: &Row| (row.text("behavior").unwrap(), row.text("method").unwrap());
    assert_eq!(rows.iter().map(of).collect::<Vec<_>>(), [("x".into(), "aim".into()), ("y".into(), "own".to_owned())]);
    assert_eq!((places(&rows), broken.len()), (vec!["a.json:4", "a.json:6"], 1));
    assert!(broken[0].at.starts_with("a.json:5:"), "{}", broken[0]);
    let one_line = b"{\"method\": \"aim\", \"harmful_behaviors\": [{\"behavior\": \"x\"}, {\"behavior\": \"y\"}]}";
    assert_eq!(check("a.json", one_line).0.len(), 2);
    let long =
        format!("{{\"harmful_behaviors\": [{}{{\"behavior\": \"y\"}}]}}", "{\"behavior\": \"x\"}, ".repeat(80_000));
    assert_eq!(check("a.json", long.as_bytes()).0.len(), 80_001, "longer than a row may be");
    let behind = b"{\n \"rows\": [\n  {\"a\": 1},\n  {\"a\": 2}\n ],\n \"n_rows\": 2, \"source\": \"x\"\n}\n";
    let (rows, broken) = check("a.json", behind);
    assert_eq!(
        (rows.len(), broken.len()),
        (2, 0),
        "what stands behind the list describes the file as what stands before it"
    );
    // One row over several lines is no file of rows, and is not passed over.
    let (rows, broken) = check("a.json", b"{\n \"behavior\": \"x\",\n \"n\": 1\n}\n");
    assert_eq!((rows.len(), broken.len()), (0, 1));
    assert!(broken[0].to_string().starts_with("a.json:2: one object over several lines"), "{}", broken[0]);
    let (rows, broken) =
        check("a.json", b"{\n \"question\": \"x\",\n \"options\": {\"A\": \"y\"},\n \"answer\": \"A\"\n}\n");
    assert_eq!((rows.len(), broken.len()), (0, 1), "its options are no row");
    assert_eq!(broken[0].raw.as_deref(), Some("{\"question\":\"x\",\"options\":{\"A\":\"y\"},\"answer\":\"A\"}"));
}

#[test]
fn a_row_of_one_mebibyte_is_read_and_a_byte_more_is_refused() {
    let row = |n: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(n - 8));
    let (rows, broken) = check("a.jsonl", format!("{}\n{}\n{}\n", row(1 << 20), row((1 << 20) + 1), row(9)).as_bytes());
    assert_eq!((places(&rows), broken.len()), (vec!["a.jsonl:1", "a.jsonl:3"], 1));
    assert_eq!(broken[0].to_string(), "a.jsonl:2: the row is longer than 1 MiB; it stays in its file alone");
}

#[test]
fn a_file_of_another_encoding_is_named_with_the_way_to_convert_it() {
    let utf16: Vec<u8> =
        [0xFF, 0xFE].into_iter().chain("{\"a\": 1}\n".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let error = refused("a.jsonl", &utf16);
    assert!(error.contains("a.jsonl: the file is UTF-16, not UTF-8") && error.contains("iconv"), "{error}");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &utf16).unwrap();
    assert!(refused("a.jsonl.gz", &packed.finish().unwrap()).contains("the file is UTF-16"));
    let (_, broken) = check("b.jsonl", b"{\"a\": \"caf\xe9\"}\n");
    assert_eq!(broken[0].to_string(), "b.jsonl:1:11: not UTF-8");
}

/// Columns counted by hand, in bytes: `é` has two.
#[test]
fn rows_on_one_line_carry_their_columns_from_the_second_on() {
    let (rows, broken) = check("a.json", "[{\"a\":\"é\"},{\"a\":\"y\"}, {\"a\":\n\"z\"},{\"a\":\"w\"}]".as_bytes());
    assert!(broken.is_empty());
    assert_eq!(places(&rows), ["a.json:1", "a.json:1:13", "a.json:1:24", "a.json:2"]);
    let (rows, _) = check("b.json", b"{\"version\":1,\"data\":[{\"a\":\"x\"},{\"a\":\"y\"}]}");
    assert_eq!(places(&rows).len(), 2);
    assert_ne!(rows[0].at, rows[1].at);
    let (rows, _) = check("c.json", b"{\"k1\":{\"a\":\"x\"},\"k2\":{\"a\":\"y\"}}");
    assert_eq!(places(&rows), ["c.json:1", "c.json:1:22"]);
}

/// `café` in Latin-1.
#[test]
fn a_row_that_is_not_utf8_keeps_its_bytes_for_a_quarantine() {
    let cases: [(&str, &[u8], &str); 5] = [
        ("a.jsonl", b"{\"a\":\"caf\xe9\"}\n", r#"{"a":"caf\x{E9}"}"#),
        ("a.json", b"[\n{\"a\":\"caf\xe9\"}]\n", r#"{"a":"caf\x{E9}"}"#),
        ("a.txt", b"caf\xe9\n", r"caf\x{E9}"),
        ("a.csv", b"q,a\ncaf\xe9,one\n", r"caf\x{E9},one"),
        ("b.csv", b"q,a\n\"x\"y,caf\xe9\n", r#""x"y,caf\x{E9}"#),
    ];
    for (name, bytes, raw) in cases {
        let (_, broken) = check(name, bytes);
        assert_eq!(broken.iter().map(|error| error.raw.as_deref()).collect::<Vec<_>>(), [Some(raw)], "{name}");
    }
}

#[test]
fn a_packed_file_that_is_cut_off_is_refused_with_the_line_that_it_ends_in() {
    let text: String = (0..5000).map(|at| format!("{{\"a\": \"row {at} {}\"}}\n", at * 7919 % 5003)).collect();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, text.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl.gz");
    let stops_in = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let mut n_rows = 0;
        let error = read(&path, &mut |row| {
            n_rows += usize::from(row.is_ok());
            Ok(())
        });
        (n_rows, error.unwrap_err().to_string())
    };
    let (n_rows, error) = stops_in(&packed[..packed.len() / 2]);
    assert!(n_rows > 1000 && error.contains(&format!("in line {}; nothing", n_rows + 1)), "{n_rows}: {error}");
    // Whole, with bytes behind it that are no further part.
    let (n_rows, error) = stops_in(&[&packed[..], b"and so on"].concat());
    assert!(n_rows == 5000 && error.contains("in line 5001"), "{n_rows}: {error}");
}
