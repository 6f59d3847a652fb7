//! What must not happen in this repository: an arrow between crates that DESIGN forbids, a file without a header or too
//! long to read, unsafe code outside the kernels, a golden file without the script that made it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crate -> crates it may name directly. `may use` is transitive, so each set is the closure.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let direct: [(&str, &[&str]); 14] = [
        ("aloe-record", &[]),
        ("aloe-report", &["aloe-record"]),
        ("aloe-tensor", &["aloe-record"]),
        ("aloe-text", &["aloe-record"]),
        ("aloe-model", &["aloe-tensor"]),
        ("aloe-engine", &["aloe-text", "aloe-model"]),
        ("aloe-task", &["aloe-text", "aloe-engine"]),
        ("aloe-data", &["aloe-task", "aloe-report"]),
        ("aloe-train", &["aloe-text", "aloe-model", "aloe-engine", "aloe-report"]),
        ("aloe-merge", &["aloe-text", "aloe-model", "aloe-report"]),
        ("aloe-handoff", &["aloe-text", "aloe-model", "aloe-engine", "aloe-train", "aloe-merge"]),
        ("aloe-eval", &["aloe-task", "aloe-data", "aloe-report"]),
        ("aloe-serve", &["aloe-text", "aloe-engine"]),
        ("aloe", &["aloe-data", "aloe-train", "aloe-merge", "aloe-eval", "aloe-report", "aloe-handoff", "aloe-serve"]),
    ];
    let mut closed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, uses) in direct {
        let mut all: BTreeSet<&str> = uses.iter().copied().collect();
        for used in uses {
            all.extend(closed.get(used).into_iter().flatten());
        }
        closed.insert(name, all);
    }
    closed
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root().join("crates"), "rs", &mut found);
    assert!(found.len() > 20, "the search for source files is broken");
    found.sort();
    found
}

fn lines_without_tests(text: &str) -> usize {
    text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).count()
}

#[test]
fn crates_name_only_crates_that_the_design_lets_them_use() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let may = allowed.get(name.as_str()).unwrap_or_else(|| panic!("crate {name} is not in the design's table"));
        let manifest = fs::read_to_string(entry.path().join("Cargo.toml")).unwrap();
        let normal = manifest.split("[dev-dependencies]").next().unwrap();
        for used in
            normal.lines().filter_map(|line| line.split(['.', ' ']).next()).filter(|key| key.starts_with("aloe-"))
        {
            if !may.contains(used) {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "forbidden arrows: {wrong:?}");
}

#[test]
fn every_source_file_says_what_it_is_and_stays_readable() {
    let mut wrong = Vec::new();
    let mut sizes = Vec::new();
    for path in rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let n_lines = lines_without_tests(&text);
        sizes.push(n_lines);
        let is_test = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
        if !text.starts_with("//!") {
            wrong.push(format!("{}: no header", path.display()));
        }
        if n_lines > 700 && !is_test {
            wrong.push(format!("{}: {n_lines} lines without tests, 700 at most", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    sizes.sort_unstable();
    let median = sizes[sizes.len() / 2];
    assert!(median <= 300, "the median file has {median} lines; about 250 is the aim");
}

#[test]
fn unsafe_code_stays_in_the_kernel_crate() {
    for path in rust_files() {
        let inside = path.components().any(|part| part.as_os_str() == "aloe-tensor");
        let text = fs::read_to_string(&path).unwrap();
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains(concat!("unsafe", " {")) || code.contains(concat!("unsafe", " fn"))
        });
        assert!(inside || !uses, "{} uses unsafe", path.display());
    }
}

#[test]
fn open_work_is_an_issue_and_not_a_remark() {
    for path in rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        for (at, line) in text.lines().enumerate() {
            let marked =
                [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")].iter().any(|word| line.contains(word));
            assert!(!marked || line.contains('#'), "{}:{}: {line}", path.display(), at + 1);
            assert!(!line.trim_start().starts_with(concat!("#[ig", "nore")), "{}:{}", path.display(), at + 1);
        }
    }
}

/// Scripts that write several golden files under computed names: (beginning of the names, script).
const FAMILIES: [(&str, &str); 6] = [
    ("lm_eval_", "lm_eval_parity.py"),
    ("prompt_engine_", "prompt_engine.py"),
    ("dare_ties_", "mergekit_parity.py"),
    ("linear_", "mergekit_parity.py"),
    ("ties_", "mergekit_parity.py"),
    ("tok_", "mergekit_methods.py"),
];

/// A golden file is trusted only with the script that made it: a script in oracles/ must name it or its family.
#[test]
fn every_golden_file_is_written_by_a_script_in_oracles() {
    let mut scripts = Vec::new();
    files(&root().join("oracles"), "py", &mut scripts);
    let texts: BTreeMap<String, String> = scripts
        .iter()
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap()))
        .collect();
    for entry in fs::read_dir(root().join("crates")).unwrap().flatten() {
        let Ok(golden) = fs::read_dir(entry.path().join("tests/golden")) else { continue };
        for file in golden.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let named = texts.values().any(|text| text.contains(&name));
            let family = FAMILIES.iter().any(|(start, script)| {
                name.starts_with(start)
                    && texts.get(*script).is_some_and(|text| text.contains(start.trim_end_matches('_')))
            });
            assert!(named || family, "{} is written by no script in oracles/", file.path().display());
            assert!(file.metadata().unwrap().len() < 400_000, "{name} is larger than 400 kB");
        }
    }
}

#[test]
fn every_row_of_the_starter_set_says_that_it_was_not_clinically_reviewed() {
    let mut found = Vec::new();
    files(&root().join("starter"), "jsonl", &mut found);
    assert!(found.len() >= 12, "{found:?}");
    for path in found {
        for (at, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            assert!(line.contains("not clinically reviewed"), "{}:{}", path.display(), at + 1);
        }
    }
}
