//! Writes that the system refuses: every stage of the tiny recipe meets a limit on the size of a file (EFBIG, like a full disk,
//! but without the right to mount one). It must end with exit code 4, name the file, leave every finished folder as it was, and go
//! on to the same bytes once there is room. `oracles/fault_injection.py` fails every single call in turn. And rows that cannot be
//! read: the refusal of a large file takes the memory of a few rows.

use crate::road::{digests, recipe, run_recipe};
use crate::stories;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `aloe` with files limited to `blocks` of 512 bytes: exit code and standard error. The signal that would end the process is
/// ignored, so that the writes themselves fail.
pub(crate) fn run_limited(blocks: u64, args: &[&str]) -> (i32, String) {
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"", "sh", &blocks.to_string()])
        .arg(env!("CARGO_BIN_EXE_aloe"))
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.signal().is_none(), "ended by signal {:?}", output.status.signal());
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// One run that must fail on storage with a file of `out` in its message.
fn check_refused(blocks: u64, recipe: &Path, out: &Path, case: &str) {
    let (code, stderr) = run_limited(blocks, &["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(code, 4, "{case}: {stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains(out.to_str().unwrap()) && last.contains("File too large"), "{case}: {last}");
}

/// The digests of the files in the folders of `stages`.
fn of_stages<'a>(found: &'a BTreeMap<String, String>, stages: &[&str]) -> BTreeMap<&'a str, &'a str> {
    let is_in = |name: &str| stages.iter().any(|stage| name.split('/').next() == Some(stage));
    found.iter().filter(|(name, _)| is_in(name)).map(|(name, digest)| (name.as_str(), digest.as_str())).collect()
}

/// Sizes of the files of a folder and the folders in it, largest first.
fn sizes(folder: &Path) -> Vec<u64> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(sizes(&path)),
            path => found.push(path.metadata().unwrap().len()),
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

const STAGES: [&str; 11] =
    ["base", "rows", "pairs", "sft-a", "sft-b", "merge", "dpo", "before", "after", "attacks", "card"];

#[test]
fn a_write_that_fails_in_any_stage_ends_with_exit_code_4_and_harms_no_finished_stage() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &stories);
    let out = dir.path().join("out");
    run_recipe(&recipe, &out);
    let expected = digests(&out);
    let mut n_refused = 0;
    for stage in STAGES {
        let folder = out.join(stage);
        let sizes = sizes(&folder);
        let others: Vec<&str> = STAGES.into_iter().filter(|other| *other != stage).collect();
        std::fs::remove_dir_all(&folder).unwrap();
        // Half of the largest file fits; all of it but its last block fits.
        for blocks in [sizes[0] / 1024, (sizes[0] - 1) / 512] {
            check_refused(blocks, &recipe, &out, &format!("{stage} with {blocks} blocks"));
            assert!(!folder.exists(), "{stage} is there after a failed run");
            assert_eq!(of_stages(&digests(&out), &others), of_stages(&expected, &others), "{stage}");
            n_refused += 1;
        }
        run_recipe(&recipe, &out);
    }
    assert_eq!(digests(&out), expected, "after {n_refused} refused runs");
    check_refused(0, &recipe, &dir.path().join("nothing"), "where nothing fits");
}

#[test]
fn a_stage_made_anew_on_a_full_disk_leaves_the_earlier_one_whole_until_the_new_one_is() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &stories);
    let text = std::fs::read_to_string(&recipe).unwrap();
    let text = text.split("[[stage]]\nkind = \"merge\"").next().unwrap();
    std::fs::write(&recipe, text).unwrap();
    let (out, whole) = (dir.path().join("out"), dir.path().join("whole"));
    run_recipe(&recipe, &out);
    let earlier = digests(&out);

    std::fs::write(&recipe, text.replace("lr = 1e-3", "lr = 2e-3")).unwrap();
    run_recipe(&recipe, &whole);
    // A checkpoint's arrays do not fit; they fit, but the masters with their header do not.
    let array = weights_bytes(&stories);
    for blocks in [array / 512 - 1, array / 512 + 4] {
        check_refused(blocks, &recipe, &out, &format!("{blocks} blocks"));
        assert_eq!(of_stages(&digests(&out), &STAGES), of_stages(&earlier, &STAGES), "{blocks} blocks");
    }
    // The second of these runs left checkpoints, and the next goes on from them.
    assert!(std::fs::read_dir(out.join(".sft-a.partial/state")).unwrap().count() > 0);
    run_recipe(&recipe, &out);
    assert_eq!(digests(&out), digests(&whole));
}

/// Bytes of the weights alone: the file without its length field and header.
pub(crate) fn weights_bytes(stories: &Path) -> u64 {
    let bytes = std::fs::read(stories.join("model.safetensors")).unwrap();
    bytes.len() as u64 - 8 - u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// Runs `aloe` and watches the peak of its resident memory: exit code, standard error, bytes.
fn run_watched(args: &[&str]) -> (i32, String, u64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aloe"));
    let mut child = command.args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak_kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(peak_kib);
        std::thread::yield_now();
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap(), peak_kib * 1024)
}

/// A row of about 450 bytes whose words are its own.
fn row(at: usize) -> String {
    let words = |word: usize| format!("w{} ", at * 7919 % 9973 + word).repeat(30);
    format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{at} {}\"}}, {{\"role\": \"assistant\", \"content\": \"{}\"}}]}}",
        words(0),
        words(1)
    )
}

#[test]
fn broken_rows_of_a_large_file_are_refused_by_line_in_less_memory_than_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("rows.jsonl"), dir.path().join("out"));
    let bad = "{\"messages\": [{\"role\": \"user\", \"content\": }";
    let long = format!("{{\"messages\": \"{}\"}}", "x".repeat(64 << 20));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for at in 1..=100_000 {
        let line = match at {
            50_000 | 100_000 => bad.to_owned(),
            77_777 => long.clone(),
            _ => row(at),
        };
        writeln!(file, "{line}").unwrap();
    }
    file.into_inner().unwrap();
    let sources = format!("sources=[{{name=\"a\",path=\"{}\",licence=\"mit\"}}]", path.display());
    let out = out.to_str().unwrap();
    let (code, stderr, peak_bytes) = run_watched(&["data", "run", "--threads", "1", "--out", out, "--set", &sources]);
    println!("{} MiB for a file of {} MiB", peak_bytes >> 20, path.metadata().unwrap().len() >> 20);
    assert_eq!(code, 2, "{stderr}");
    for expected in [
        "3 broken rows",
        "rows.jsonl:50000:43: not JSON: expected value",
        "rows.jsonl:77777: the row is longer than 1 MiB",
        "rows.jsonl:100000:43: not JSON: expected value",
    ] {
        assert!(stderr.contains(expected), "{expected} is not in: {stderr}");
    }
    // The rows before the first broken one were kept until it came.
    assert!(peak_bytes > 0 && peak_bytes < 90 << 20, "{} MiB", peak_bytes >> 20);
    assert!(!Path::new(out).exists());
}
