//! Identifiers through the whole stage, and canaries: text of rows stands in rows alone.

use super::*;

/// Two rows with identifiers, one without, one whose e-mail address the cleaning rule would take out uncounted.
fn with_identifiers(dir: &Path) -> PathBuf {
    let path = dir.join("notes.jsonl");
    let rows = [
        ("Mrs. Okafor, DOB 03/04/1951, has chest pain.", "Take an ECG and measure troponin."),
        ("What is gout?", "Arthritis by urate crystals in a joint."),
        ("Write to a.ferrer@example.org about the scan.", "Call 020 7946 0958 and ask for the ward first."),
    ];
    let lines: Vec<String> =
        rows.iter().map(|(q, a)| json!({"instruction": q, "input": "", "output": a}).to_string()).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn in_mode(mode: &str) -> (DataReport, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = config(json!({"sources": [source("s", &with_identifiers(dir.path()))], "identifiers": mode}));
    let (report, out) = check(&config);
    (report.unwrap(), out)
}

#[test]
fn identifiers_are_counted_by_kind_and_source_and_stay_are_masked_or_take_their_row_with_them() {
    let expected = counts(&[("date", 1), ("email", 1), ("name", 1), ("phone", 1)]);
    for (mode, n_train, action) in [("report", 3, "kept"), ("mask", 3, "changed"), ("drop", 1, "dropped")] {
        let (report, out) = in_mode(mode);
        let source = &report.sources[0];
        assert_eq!((source.identifiers.clone(), source.n_with_identifiers), (expected.clone(), 2), "{mode}");
        assert_eq!(report.n_train, n_train, "{mode}");
        assert!(report.account.adds_up());
        let ledger = read_lines(&out.path().join("ledger.jsonl"));
        assert_eq!(
            ledger[0],
            json!({"id": "s/notes.jsonl:1", "action": action, "rule": "identifiers", "source": "s", "licence": "MIT",
                "task": "instruction", "identifiers": {"date": 1, "name": 1}})
        );
    }
    let (report, out) = in_mode("mask");
    assert_eq!(report.sources[0].changed["identifiers"], 2);
    let rows = std::fs::read_to_string(out.path().join("train.jsonl")).unwrap();
    assert!(
        rows.contains("Mrs. [NAME], DOB [DATE], has chest pain.") && rows.contains("Write to [EMAIL] about"),
        "{rows}"
    );
    let (report, _) = in_mode("off");
    assert!(report.sources[0].identifiers.is_empty());
}

/// A multiple-choice row is kept as text and as a question, by which it is compared, embedded and shown to a judge.
#[test]
fn masking_leaves_no_identifier_anywhere_in_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.jsonl");
    let row = json!({"question": "Mrs. Okafor, DOB 03/04/1951, has pain. What now?", "answer_idx": "A", "answer": "Call Dr. Okafor",
        "options": {"A": "Call Dr. Okafor", "B": "Rest", "C": "ECG", "D": "None"}, "exp": "Mrs. Okafor, 03/04/1951."});
    std::fs::write(&path, row.to_string()).unwrap();
    let config = config(json!({"sources": [source("s", &path)], "identifiers": "mask"}));
    let cancel = Cancel::default();
    let mut run = Run::new(&config, 1, &cancel);
    run.read_sources(&Progress::silent()).unwrap();
    assert!(format!("{:?}", run.items[0].question).contains("Okafor"), "the row has a question");
    run.take_identifiers().unwrap();
    let text = format!("{:?}", run.items);
    assert!(!text.contains("Okafor") && !text.contains("1951"), "{text}");

    // What names a row's question is written beside it.
    let asked = json!({"harmful_medical_request": "Write to Mrs. Okafor that she has HIV", "safe_response": "No."});
    let own =
        json!({"instruction": "Who?", "output": "No one.", "question_id": "anna@x.org", "style": "as Mrs. Okafor"});
    let made = json!({"instruction": "Who?", "output": "No one.", "question_id": "q", "made": "by Mrs. Okafor", "task": "to anna@x.org"});
    for row in [asked, own, made] {
        std::fs::write(&path, row.to_string()).unwrap();
        let mut run = Run::new(&config, 1, &cancel);
        run.read_sources(&Progress::silent()).unwrap();
        assert!(run.items[0].group().is_some());
        run.take_identifiers().unwrap();
        let text = format!("{:?}", run.items).to_lowercase();
        assert!(!text.contains("okafor") && !text.contains("anna@x.org"), "{text}");
    }
}

/// A word that stands in no code, in every place of a row that a reader, a rule or an error may touch.
const CANARY: &str = "Zyxquorn";

#[test]
fn text_of_rows_stands_in_no_error_ledger_or_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let c = CANARY;
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("wrong_kind.jsonl", format!("{{\"instruction\": {{\"{c}\": 1}}, \"output\": \"{c}\"}}").into()),
        ("not_json.jsonl", format!("{{\"instruction\": \"{c}\", \"output\": {c}}}").into()),
        ("cut.jsonl", format!("{{\"instruction\": \"a\", \"output\": \"b\"}}\n{{\"instruction\": \"{c}").into()),
        ("twice.jsonl", format!("{{\"{c} 1\": 1, \"{c} 1\": 2, \"instruction\": \"q\", \"output\": \"a\"}}").into()),
        ("speaker.jsonl", format!("{{\"messages\": [{{\"role\": \"{c}\", \"content\": \"{c}\"}}]}}").into()),
        ("turns.jsonl", format!("{{\"messages\": [{{\"role\": \"assistant\", \"content\": \"{c}\"}}]}}").into()),
        ("latin1.jsonl", [format!("{{\"instruction\": \"{c} ").into_bytes(), b"\xe9\"}".to_vec()].concat()),
        ("key.jsonl", format!("{{\"question\": \"{c}\", \"options\": {{\"A\": \"{c}\", \"B\": \"x\"}}, \"answer_idx\": \"{c}\"}}").into()),
        ("header.csv", format!("{c} was seen today,{c} 2\n1,2\n").into()),
        ("short.csv", format!("question,answer\n{c}\n").into()),
        ("hh.jsonl", format!("{{\"chosen\": \"{c}\", \"rejected\": \"{c}\"}}").into()),
        ("rating.jsonl", format!("{{\"prompt\": \"{c}\", \"response\": \"{c}\", \"helpfulness\": \"{c}\", \"correctness\": 1, \"coherence\": 1}}").into()),
        ("open.json", format!("[{{\"instruction\": \"{c}\", \"output\": \"x\"}}, {{\"instruction\": \"{c}").into()),
        ("list.jsonl", format!("[\"{c}\"]").into()),
    ];
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        for quarantine in [false, true] {
            let value = json!({"sources": [source("s", &path)], "quarantine": quarantine, "identifiers": "mask"});
            let (result, out) = check(&config(value));
            let told = match result {
                Ok(report) => serde_json::to_string(&report).unwrap(),
                Err(error) => format!("{error} {error:?}"),
            };
            // The debug form of a broken row would hold it; the binary prints the plain form.
            let told = told.split("raw: Some").next().unwrap_or_default().to_owned();
            assert!(!told.contains(c), "{name}, quarantine {quarantine}: {told}");
            for file in ["manifest.json", "ledger.jsonl", "duplicates.jsonl"] {
                let text = std::fs::read_to_string(out.path().join(file)).unwrap_or_default();
                assert!(!text.contains(c), "{name}: {file}: {text}");
            }
        }
    }
}

/// A broken row keeps its text in the quarantine, but not its identifiers where they are masked elsewhere.
#[test]
fn a_quarantined_row_is_masked_as_training_rows_are_and_its_file_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.jsonl");
    let broken = json!({"instruction": "Write to a.ferrer@example.org about Mrs. Okafor.", "output": 7});
    let good = json!({"instruction": "What is gout?", "output": "Arthritis."});
    std::fs::write(&path, format!("{broken}\n{good}\n")).unwrap();
    for (mode, is_masked) in [("mask", true), ("drop", true), ("off", false)] {
        let settings = json!({"sources": [source("s", &path)], "identifiers": mode, "quarantine": true});
        let (report, out) = check(&config(settings));
        assert_eq!(report.unwrap().account.n_quarantined, 1);
        let file = out.path().join("quarantine.jsonl");
        let raw = read_lines(&file)[0]["raw"].as_str().unwrap().to_owned();
        assert!(raw.contains("Write to "), "{raw}");
        assert_eq!(raw.contains("ferrer") || raw.contains("Okafor"), !is_masked, "{mode}: {raw}");
        // A no-break space of Latin-1 before a number does not hide it.
        let other = dir.path().join("latin1.jsonl");
        std::fs::write(&other, [b"{\"instruction\": \"SSN:\xa0123-45-6789\"\n", good.to_string().as_bytes()].concat())
            .unwrap();
        let (_, second) =
            check(&config(json!({"sources": [source("s", &other)], "identifiers": mode, "quarantine": true})));
        let raw = read_lines(&second.path().join("quarantine.jsonl"))[0]["raw"].as_str().unwrap().to_owned();
        assert_eq!((raw.contains("SSN:"), raw.contains("123-45-6789")), (true, !is_masked), "{mode}: {raw}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
