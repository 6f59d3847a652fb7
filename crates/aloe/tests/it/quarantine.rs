//! Broken rows that a user sends to a file of their own: they are not lost, whatever runs beside or after.

use crate::run;
use std::path::Path;

/// One good row and one broken row.
fn rows(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, "{\"instruction\": \"Q\", \"output\": \"A\"}\n{\"instruction\": \"Q\", \"output\": 5}\n")
        .unwrap();
    path.display().to_string()
}

#[test]
fn a_file_of_broken_rows_in_the_folder_that_is_replaced_is_refused_and_a_lost_one_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows(dir.path(), "rows.jsonl");
    let sources = format!("sources=[{{ name = \"s\", path = {rows:?}, licence = \"mit\" }}]");
    let out = dir.path().join("out");
    let data = |file: &Path| {
        let [out, file] = [&out, file].map(|path| path.to_str().unwrap());
        run(&["data", "run", "--set", &sources, "--quarantine", file, "--out", out])
    };
    let (_, stderr, code) = data(&out.join("broken.jsonl"));
    assert!(code == 2 && stderr.contains("lies in the folder of stage \"out\""), "{code} {stderr}");
    assert!(!out.exists());
    let apart = dir.path().join("broken.jsonl");
    let (stdout, stderr, code) = data(&apart);
    assert!(code == 0 && stdout.contains("1 quarantined; compared with no evaluation question"), "{stdout}{stderr}");
    let written = std::fs::read_to_string(&apart).unwrap();
    let (stdout, _, code) = data(&apart);
    assert!(code == 0 && stdout.contains("was done already"), "{stdout}");
    std::fs::remove_file(&apart).unwrap();
    let (stdout, stderr, code) = data(&apart);
    assert!(code == 0 && !stdout.contains("was done already"), "{stdout}{stderr}");
    assert_eq!(std::fs::read_to_string(&apart).unwrap(), written);
}
