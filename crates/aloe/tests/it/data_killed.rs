//! Data stages, shards and their merge killed with SIGKILL at several moments: what is left is never taken for finished, and the same
//! command ends with the bytes of an uninterrupted one.

use crate::road::digests;
use crate::{aloe, run};
use aloe_record::CounterRng;
use std::path::Path;

/// 6,000 rows with copies and near copies; every fifth row is a new one of its kind.
fn write_settings(dir: &Path) -> String {
    let row = |n: usize| {
        let fact = if n % 5 == 4 { n - 3 } else { n };
        let text = format!(
            "Fact {fact}: the {} of organ {fact} is measured in unit {}, at rest and at work.",
            fact * 7,
            fact * 13
        );
        serde_json::json!({"instruction": format!("Tell fact {fact}."), "output": text}).to_string() + "\n"
    };
    std::fs::write(dir.join("rows.jsonl"), (0..6000).map(row).collect::<String>()).unwrap();
    let path = dir.join("data.toml");
    let rows = dir.join("rows.jsonl");
    let text = format!(
        "hold_out = 0.1\n[[sources]]\nname = \"s\"\npath = \"{}\"\nlicence = \"MIT\"\nmax_rows = 2000\n",
        rows.display()
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Runs the command whole, then into another folder with kills at five moments, then once more there.
fn check(arguments: &[&str], dir: &Path, name: &str) {
    let (whole, killed) = (dir.join(format!("{name}-whole")), dir.join(format!("{name}-killed")));
    let args = |out: &Path| -> Vec<String> {
        let threads: &[&str] = if arguments.contains(&"--merge") { &[] } else { &["--threads", "1"] };
        let own = arguments.iter().chain(threads).chain(&["--out"]).map(|part| (*part).to_owned());
        own.chain([out.display().to_string()]).collect()
    };
    let ends = |out: &Path| {
        let arguments = args(out);
        let (_, stderr, code) = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(code, 0, "{name}: {stderr}");
    };
    let start = std::time::Instant::now();
    ends(&whole);
    let time = start.elapsed();
    let mut rng = CounterRng::new(3, "data-kills", name.len() as u64);
    for _ in 0..5 {
        let mut child = aloe().args(args(&killed)).spawn().unwrap();
        std::thread::sleep(time.mul_f64(rng.uniform_f64()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    ends(&killed);
    let expected = digests(&whole);
    assert!(!expected.is_empty());
    assert_eq!(digests(&killed), expected, "{name}");
}

#[test]
fn a_data_stage_a_shard_and_a_merge_killed_at_any_moment_end_with_the_bytes_of_uninterrupted_ones() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_settings(dir.path());
    check(&["data", "run", "--config", &config], dir.path(), "stage");
    check(&["data", "dedup", "--config", &config, "--shard", "1/2"], dir.path(), "one");
    check(&["data", "dedup", "--config", &config, "--shard", "2/2"], dir.path(), "other");
    let folder = |name: &str| dir.path().join(name).display().to_string();
    let (one, other) = (folder("one-killed"), folder("other-killed"));
    check(&["data", "dedup", "--merge", &one, &other], dir.path(), "merge");
}
