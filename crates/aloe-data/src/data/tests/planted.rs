//! Eighty kinds of broken rows planted among good ones, in every format and layout: each must be named by its own line (and
//! column, where its JSON or its bytes are broken) with its reason, and no good row may be lost.

use super::*;

/// A planted row: its bytes, its column (0: the message names the line alone), a part of the reason.
type Planted<'a> = (&'a [u8], usize, &'a str);

/// A file under construction, with what must be said about it.
struct Made {
    name: &'static str,
    bytes: Vec<u8>,
    expected: Vec<(String, String)>,
    n_good: usize,
}

impl Made {
    fn new(name: &'static str) -> Made {
        Made { name, bytes: Vec::new(), expected: Vec::new(), n_good: 0 }
    }

    fn line(&self) -> usize {
        1 + self.bytes.iter().filter(|&&byte| byte == b'\n').count()
    }

    fn text(mut self, text: &str, n_good: usize) -> Made {
        self.bytes.extend(text.as_bytes());
        self.n_good += n_good;
        self
    }

    fn broken(mut self, (bytes, column, reason): Planted<'_>, after: &str) -> Made {
        let column = if column == 0 { String::new() } else { format!(":{column}") };
        self.expected.push((format!("{}:{}{column}", self.name, self.line()), reason.to_owned()));
        self.bytes.extend(bytes);
        self.bytes.extend(after.as_bytes());
        self
    }

    /// JSON lines: one good row before each planted one, two after the last, an empty line and Windows line ends between.
    fn lines(name: &'static str, good: &dyn Fn(usize) -> String, planted: &[Planted<'_>]) -> Made {
        let mut made = Made::new(name);
        for (at, row) in planted.iter().enumerate() {
            made = made.text(&format!("{}{}", good(at), ["\n", "\r\n", "\n\n"][at % 3]), 1).broken(*row, "\n");
        }
        let n = planted.len();
        made.text(&format!("{}\n{}", good(n), good(n + 1)), 2)
    }
}

/// Words that make every good row another text, so that none is dropped as a duplicate.
fn words(at: usize) -> String {
    (0..12).map(|word| format!("w{} ", (at * 7919 + word * 104_729) % 9973)).collect()
}

fn messages() -> Made {
    let good = |at: usize| {
        json!({"messages": [{"role": "user", "content": words(at)}, {"role": "assistant", "content": words(at + 500)}]})
            .to_string()
    };
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(200), "]".repeat(200));
    let long = format!("{{\"messages\": \"{}\"}}", "x".repeat(17 << 20));
    let planted: &[Planted<'_>] = &[
        (b"not JSON at all", 2, "not JSON: expected ident"),
        (b"{\"messages\": [", 14, "not JSON: EOF while parsing"),
        (b"[1, 2]", 0, "expected an object, found a list"),
        (b"\"text\"", 0, "expected an object, found text"),
        (b"17", 0, "expected an object, found a number"),
        (b"null", 0, "expected an object, found null"),
        (b"true", 0, "expected an object, found true or false"),
        (b"{\"messages\": 1}{\"messages\": 1}", 16, "not JSON: trailing characters"),
        (b"{\"messages\": 1,}", 16, "not JSON: trailing comma"),
        (b"{'messages': 1}", 2, "not JSON: key must be a string"),
        (b"{messages: 1}", 2, "not JSON: key must be a string"),
        (b"{\"messages\" 1}", 13, "not JSON: expected `:`"),
        (b"{\"messages\": 1 \"x\": 2}", 16, "not JSON: expected `,` or `}`"),
        (b"{\"messages\": \"a\tb\"}", 16, "not JSON: control character"),
        (b"{\"messages\": \"\\q\"}", 16, "not JSON: invalid escape"),
        (b"{\"messages\": \"\\ud800\"}", 21, "not JSON: "),
        (b"{\"messages\": \"\\u00zz\"}", 20, "not JSON: invalid escape"),
        (b"{\"messages\": \"a\\u0000\"}", 22, "the text holds the character U+0000"),
        (b"{\"messages\": \"a\x00\"}", 16, "not JSON: control character"),
        (b"{\"messages\": \"\xff\"}", 15, "not UTF-8"),
        (b"{\"messages\": \"caf\xe9\"}", 18, "not UTF-8"),
        (b"{\"messages\": \"\xed\xa0\x80\"}", 15, "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", 1, "not UTF-8"),
        (b"{\"messages\": 1, \"messages\": 2}", 26, "a key stands twice"),
        (b"{\"messages\": [{\"role\": \"user\", \"role\": \"system\"}]}", 37, "a key stands twice"),
        (b"{\"messages\": NaN}", 14, "not JSON: expected value"),
        (b"{\"messages\": -Infinity}", 15, "not JSON: invalid number"),
        (b"{\"messages\": 007}", 15, "not JSON: invalid number"),
        (b"{\"messages\": 1e999}", 18, "not JSON: number out of range"),
        (b"{\"messages\": undefined}", 14, "not JSON: expected value"),
        (deep.as_bytes(), 140, "not JSON: recursion limit exceeded"),
        (long.as_bytes(), 0, "the row is longer than 1 MiB"),
        (b"{\"dialogue\": []}", 0, "column `messages`: expected a list of messages"),
        (b"{\"messages\": \"Q\"}", 0, "column `messages`: expected a list of messages"),
        (b"{\"messages\": []}", 0, "no message is the assistant's"),
        (b"{\"messages\": [\"Q\", \"A\"]}", 0, "expected messages with `role` or `from`"),
        (b"{\"messages\": [{\"content\": \"Q\"}]}", 0, "expected messages with `role` or `from`"),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": 5}]}",
            0,
            "expected messages with `content` or `value` as text",
        ),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": null}]}", 0, "expected messages with `content`"),
        (b"{\"messages\": [{\"role\": \"tool\", \"content\": \"Q\"}]}", 0, "speaker `tool` is neither"),
        (b"{\"messages\": [{\"role\": \"assistant\", \"content\": \"A\"}]}", 0, "message 1 (assistant) is out of turn"),
        (
            br#"{"messages": [{"role": "user", "content": "Q"}, {"role": "user", "content": "P"}]}"#,
            0,
            "message 2 (user) is out of turn",
        ),
        (
            br#"{"messages": [{"role": "user", "content": "Q"}, {"role": "system", "content": "S"}]}"#,
            0,
            "message 2 (system) is out of turn",
        ),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}]}", 0, "no message is the assistant's"),
    ];
    Made::lines("messages.jsonl", &good, planted)
}

fn instructions() -> Vec<Made> {
    let alpaca = |at: usize| json!({"instruction": words(at + 1000), "output": words(at + 1500)}).to_string();
    let sharegpt = |at: usize| {
        let (question, answer) = (words(at + 2000), words(at + 2500));
        json!({"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}).to_string()
    };
    let instances =
        |at: usize| json!({"instruction": words(at + 3000), "instances": [{"output": words(at + 3500)}]}).to_string();
    let safe =
        |at: usize| json!({"harmful_medical_request": words(at + 4000), "safe_response": words(at + 4500)}).to_string();
    vec![
        Made::lines(
            "alpaca.jsonl",
            &alpaca,
            &[
                (b"{\"instruction\": 3, \"output\": \"O\"}", 0, "column `instruction`: expected text, found a number"),
                (b"{\"instruction\": \"I\", \"output\": [\"O\"]}", 0, "column `output`: expected text"),
                (b"{\"instruction\": \"I\"}", 0, "column `output`: expected text, found no such column"),
                (
                    b"{\"instruction\": \"I\", \"input\": 4, \"output\": \"O\"}",
                    0,
                    "column `input`: expected text or null",
                ),
            ],
        ),
        Made::lines(
            "sharegpt.jsonl",
            &sharegpt,
            &[
                (b"{\"conversations\": [{\"from\": \"tool\", \"value\": \"Q\"}]}", 0, "speaker `tool` is neither"),
                (b"{\"conversations\": [{\"from\": \"human\"}]}", 0, "expected messages with `content` or `value`"),
                (b"{\"conversations\": {\"from\": \"human\"}}", 0, "column `conversations`: expected a list"),
            ],
        ),
        Made::lines(
            "instances.jsonl",
            &instances,
            &[(b"{\"instruction\": \"I\", \"instances\": []}", 0, "column `instances`: expected a list of objects")],
        ),
        Made::lines(
            "safe.jsonl",
            &safe,
            &[(
                b"{\"harmful_medical_request\": \"Q\", \"safe_response\": 1}",
                0,
                "column `safe_response`: expected text",
            )],
        ),
    ]
}

fn choices() -> Vec<Made> {
    let medmcqa = |at: usize| {
        json!({"id": at.to_string(), "question": words(at + 5000), "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 1,
            "exp": words(at + 5500)})
        .to_string()
    };
    let medqa = |at: usize| {
        json!({"question": words(at + 6000), "options": {"A": "w", "B": "x", "C": "y", "D": "z"}, "answer_idx": "B"})
            .to_string()
    };
    let pubmedqa = |at: usize| {
        json!({"QUESTION": words(at + 7000), "CONTEXTS": ["c"], "final_decision": "yes", "LONG_ANSWER": words(at + 7500)})
            .to_string()
    };
    let headqa = |at: usize| {
        json!({"name": "n", "qid": at, "qtext": words(at + 8000), "ra": 2,
            "answers": [{"aid": 1, "atext": "x"}, {"aid": 2, "atext": "y"}]})
        .to_string()
    };
    let careqa = |at: usize| {
        json!({"unique_id": at.to_string(), "question": words(at + 9000), "op1": "w", "op2": "x", "op3": "y", "op4": "z", "cop": 1})
            .to_string()
    };
    vec![
        Made::lines("medmcqa.jsonl", &medmcqa, &[
            (br#"{"id": "1", "question": "Q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 7}"#, 0, "7"),
            (br#"{"id": "1", "question": "Q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": -1}"#, 0, "key is not public"),
            (br#"{"id": "1", "question": "Q", "opa": "w", "opc": "y", "opd": "z", "cop": 1}"#, 0, "column `opb`: expected text"),
            (br#"{"id": "1", "question": "Q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": "B"}"#, 0, "column `cop`: expected a whole number"),
            (br#"{"id": "1", "question": " ", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 1}"#, 0, "the question text is empty"),
        ]),
        Made::lines("medqa.jsonl", &medqa, &[
            (br#"{"question": "Q", "options": {"A": "w", "B": "x"}, "answer_idx": "E"}"#, 0, "E"),
            (br#"{"question": "Q", "options": {"A": "w", "C": "x"}, "answer_idx": "A"}"#, 0, "column `options`: expected options by letter"),
            (br#"{"question": "Q", "options": ["w", "x"], "answer_idx": "A"}"#, 0, "column `options`: expected options by letter"),
            (br#"{"question": "Q", "options": {"A": "w", "B": "x"}, "answer_idx": "B", "answer": "w"}"#, 0, "`answer` and `answer_idx` disagree"),
            (br#"{"question": "Q", "options": {"A": "w"}, "answer_idx": "A"}"#, 0, "fewer than two options"),
        ]),
        Made::lines("pubmedqa.jsonl", &pubmedqa, &[
            (br#"{"QUESTION": "Q", "CONTEXTS": ["c"], "final_decision": "perhaps"}"#, 0, "expected yes, no or maybe"),
            (br#"{"QUESTION": "Q", "CONTEXTS": "c", "final_decision": "no"}"#, 0, "column `CONTEXTS`: expected a list of texts"),
        ]),
        Made::lines("headqa.jsonl", &headqa, &[
            (br#"{"name": "n", "qid": 1, "qtext": "Q", "ra": 7, "answers": [{"aid": 1, "atext": "x"}, {"aid": 2, "atext": "y"}]}"#, 0, "7"),
            (br#"{"name": "n", "qid": 1, "qtext": "Q", "ra": 1, "answers": [{"aid": 1}]}"#, 0, "column `answers`: expected a list of {aid, atext}"),
        ]),
        Made::lines("careqa.jsonl", &careqa, &[
            (br#"{"unique_id": "u", "question": "Q", "op1": "w", "op2": "x", "op3": "y", "op4": "z", "cop": 0}"#, 0, "0 (the first option is 1)"),
        ]),
    ]
}

fn other_formats() -> Vec<Made> {
    let cells = |at: usize| format!("\"{}\nsecond line\",w,x,y,z,B\n", words(at + 9500));
    let two = |at: usize| format!("{},{}\n", words(at + 10_000), words(at + 10_500));
    let element = |at: usize| json!({"instruction": words(at + 11_000), "output": words(at + 11_500)}).to_string();
    vec![
        Made::new("anatomy_test.csv")
            .text(&cells(0), 1)
            .broken((b"Q,w,x,y,z,E", 0, "answer key E is none of A, B, C, D"), "\n")
            .text(&cells(1), 1)
            .broken((b"Q,w,x,y,z", 0, "expected 6 columns, found 5"), "\n")
            .broken((b"Q,w,x\xe9,y,z,A", 0, "column `B` is not UTF-8"), "\n")
            .text(&cells(2), 1),
        Made::new("table.csv")
            .text("question,answer\n", 0)
            .text(&two(0), 1)
            .broken((b"Q,A,more", 0, "expected 2 columns, found 3"), "\n")
            .text(&two(1), 1)
            .broken((b"\"Q,A\nQ,A\nthe quote is never closed", 0, "not closed before the end of the file"), ""),
        Made::new("array.json")
            .text(&format!("[\n  {},\n  ", element(0)), 1)
            .broken((b"{\"instruction\": tru}", 22, "not JSON: expected ident"), ",\n")
            .text(&format!("  {},\n  ", element(1)), 1)
            .broken((b"17", 0, "expected an object, found a number"), ",\n  ")
            .broken((b"{\"instruction\": \"I\", \"instruction\": \"J\"}", 36, "stands twice"), ",\n")
            .text(&format!("  {}\n]\n", element(2)), 1)
            .broken((b"{}", 1, "text after the closing bracket"), "\n"),
        Made::new("cut.json")
            .text(&format!("[\n  {},\n", element(3)), 1)
            .broken((b"  {\"instruction\": \"I", 21, "the file ends inside a row"), ""),
    ]
}

fn pairs() -> Vec<Made> {
    let dpo =
        |at: usize| json!({"prompt": words(at), "chosen": words(at + 500), "rejected": words(at + 900)}).to_string();
    let hh = |at: usize| {
        let side = |answer: usize| format!("\n\nHuman: {}\n\nAssistant: {}", words(at + 1000), words(answer));
        json!({"chosen": side(at + 1500), "rejected": side(at + 1900)}).to_string()
    };
    let rated = |at: usize| {
        json!({"prompt": words(at / 2 + 3000), "response": words(at + 3500), "helpfulness": 4 * (at % 2), "correctness": 2,
            "coherence": 2, "complexity": 1, "verbosity": 1})
        .to_string()
    };
    vec![
        Made::lines("dpo.jsonl", &dpo, &[
            (br#"{"prompt": "Q", "rejected": "B"}"#, 0, "column `chosen`: expected text or messages"),
            (br#"{"prompt": "Q", "chosen": "G", "rejected": 5}"#, 0, "column `rejected`: expected text or messages"),
            (
                br#"{"prompt": "Q", "chosen": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "G"}], "rejected": "B"}"#,
                0,
                "`chosen` begins with another prompt",
            ),
            (br#"{"prompt": "Q", "chosen": [{"role": "user", "content": "G"}], "rejected": "B"}"#, 0, "`chosen` is not one assistant message"),
            (br#"{"prompt": [], "chosen": "G", "rejected": "B"}"#, 0, "the prompt does not end with a user message"),
        ]),
        Made::lines("hh.jsonl", &hh, &[
            (br#"{"chosen": "Human: Q", "rejected": "Human: Q"}"#, 0, "does not begin with a `Human:` or `Assistant:` turn"),
            (
                br#"{"chosen": "\n\nHuman: Q\n\nAssistant: G", "rejected": "\n\nHuman: P\n\nAssistant: B"}"#,
                0,
                "the two sides differ before their last message",
            ),
            (br#"{"chosen": "\n\nHuman: Q\n\nAssistant: G", "rejected": null}"#, 0, "column `rejected` does not begin"),
        ]),
        Made::lines("rated.jsonl", &rated, &[
            (
                br#"{"prompt": "P", "response": "R", "helpfulness": 9, "correctness": 2, "coherence": 2, "complexity": 1, "verbosity": 1}"#,
                0,
                "column `helpfulness`: expected 0 to 4, found another number",
            ),
            (
                br#"{"prompt": "P", "response": 1, "helpfulness": 2, "correctness": 2, "coherence": 2, "complexity": 1, "verbosity": 1}"#,
                0,
                "column `response`: expected text",
            ),
        ]),
    ]
}

/// Runs a stage over the files with and without a quarantine; gives the number of planted rows.
fn check_files(files: &[Made], output: &str) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    for file in files {
        std::fs::write(dir.path().join(file.name), &file.bytes).unwrap();
        sources.push(source(file.name, &dir.path().join(file.name)));
    }
    let prefix = format!("{}/", dir.path().display());
    let mut config = config(json!({"sources": sources, "output": output, "quarantine": true}));
    let (report, out) = check(&config);
    let report = report.unwrap();
    let found = read_lines(&out.path().join("quarantine.jsonl"));
    let found: Vec<(String, String)> = found
        .iter()
        .map(|row| (row["at"].as_str().unwrap().replace(&prefix, ""), row["reason"].as_str().unwrap().to_owned()))
        .collect();
    let expected: Vec<&(String, String)> = files.iter().flat_map(|file| &file.expected).collect();
    let differs = |(found, expected): (&(String, String), &&(String, String))| {
        let fits = found.0 == expected.0 && found.1.contains(&expected.1) && found.1.len() < 300;
        (!fits).then(|| format!("found {found:?}, expected {expected:?}"))
    };
    let wrong: Vec<String> = found.iter().zip(&expected).filter_map(differs).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(found.len(), expected.len(), "{:?}", found.last());
    for (file, report) in files.iter().zip(&report.sources) {
        assert_eq!(
            (report.n_read - report.n_broken, report.n_broken),
            (file.n_good, file.expected.len()),
            "{}",
            file.name
        );
    }
    let n_planted = files.iter().map(|file| file.expected.len()).sum();
    config.quarantine = crate::Quarantine::InFolder(false);
    let (refused, out) = check(&config);
    let Err(Error::Rows { problems }) = refused else { panic!("the rows were accepted") };
    assert_eq!(problems.total, n_planted);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    n_planted
}

#[test]
fn eighty_kinds_of_broken_rows_are_named_with_file_line_and_reason() {
    let files: Vec<Made> =
        [vec![messages()], instructions(), choices(), other_formats()].into_iter().flatten().collect();
    let n_planted = check_files(&files, "sft") + check_files(&pairs(), "pairs");
    println!("{n_planted} planted rows");
    assert!(n_planted >= 80, "{n_planted}");
}

#[test]
fn a_csv_row_that_never_ends_and_a_row_of_an_array_beyond_the_limit_are_refused_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(17 << 20);
    let element = json!({"instruction": "I", "output": "O"});
    for (name, text, expected) in [
        ("open.csv", format!("question,answer\nQ,A\n\"{long}{long}"), "open.csv:3: the row is longer than 1 MiB"),
        (
            "long.json",
            format!("[\n{element},\n {{\"instruction\": \"{long}\"}},\n{element}]"),
            "long.json:3:2: the row is longer",
        ),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let error = check(&config(json!({"sources": [source("s", &path)]}))).0.unwrap_err().to_string();
        assert!(error.starts_with("1 broken rows") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_gzipped_table_that_is_cut_off_is_an_error_and_not_an_endless_loop() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.csv.gz");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writeln!(packed, "question,answer").unwrap();
    for at in 0..2000 {
        writeln!(packed, "{},{}", words(at), words(at + 5000)).unwrap();
    }
    let whole = packed.finish().unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = check(&config(json!({"sources": [source("s", &path)]}))).0.unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains("rows.csv.gz"), "{error}");
}
