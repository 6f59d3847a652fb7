//! A merge that the disk has no room for: refused before it begins where that can be known, stopped with nothing that looks finished where it
//! cannot. A real disk is a tmpfs of a few kilobytes in a mount namespace of its own, which needs root or user namespaces; where
//! neither is there, the limit on the size of a file takes its place (EFBIG).

use crate::merging::{dare, text};
use std::path::Path;
use std::process::{Command, Output};

/// Runs `aloe merge` with a disk of so many kilobytes at `disk`; none where no disk can be mounted.
fn on_disk(kilobytes: u64, disk: &Path, config: &Path, out: &Path) -> Option<Output> {
    let script = "mount -t tmpfs -o size=\"$1\"k none \"$2\" || exit 99; shift 2; \"$@\"; code=$?; ls -A \"$(dirname \"$out\")\" >&2; exit $code";
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script, "sh", &kilobytes.to_string(), text(disk)])
        .arg(env!("CARGO_BIN_EXE_aloe"))
        .args(["merge", text(config), text(out)])
        .env("out", out)
        .env("ALOE_HOME", config.with_file_name("home"))
        .output();
    output.ok().filter(|output| !matches!(output.status.code(), Some(99 | 1)) || !output.stderr.starts_with(b"unshare"))
}

/// The message and what is left in the folder around `out`.
fn told(output: &Output) -> (String, Option<i32>) {
    (String::from_utf8(output.stderr.clone()).unwrap(), output.status.code())
}

#[test]
fn a_merge_onto_a_full_disk_ends_with_exit_code_4_names_the_folder_that_was_asked_for_and_leaves_nothing() {
    let (dir, config) = dare(4_000, 32);
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let out = disk.join("merged");
    // 138,336 parameters of two bytes are 276.7 kB; 200 kB are too few for them, 284 for them and what stands beside them: both are told before the start.
    let Some(small) = on_disk(200, &disk, &config, &out) else {
        assert!(
            std::env::var("ALOE_REQUIRE").is_err(),
            "no disk can be mounted here: unshare needs root or user namespaces"
        );
        println!("not run: no disk can be mounted here");
        return;
    };
    let (stderr, code) = told(&small);
    assert_eq!(code, Some(4), "{stderr}");
    let expected = format!("{} has 19", out.display());
    assert!(stderr.contains("the result needs 56") && stderr.contains(" kB and the disk of "), "{stderr}");
    assert!(stderr.contains(&expected) && stderr.contains(" kB free") && !stderr.contains(".partial"), "{stderr}");
    let (stderr, code) = told(&on_disk(284, &disk, &config, &out).unwrap());
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains(&format!("{} was not written: ", out.display())), "{stderr}");
    assert!(stderr.contains("the result needs 56"), "{stderr}");
    assert_eq!(stderr.lines().last().map(|line| line.contains("needs 56")), Some(true), "something is left: {stderr}");
    let (stderr, code) = told(&on_disk(4_000, &disk, &config, &out).unwrap());
    assert_eq!((code, stderr.lines().last()), (Some(0), Some("merged")), "{stderr}");
}

#[test]
fn a_merge_whose_file_cannot_grow_ends_with_exit_code_4_names_the_folder_that_was_asked_for_and_leaves_nothing() {
    let (dir, config) = dare(4_000, 32);
    let out = dir.path().join("merged");
    for blocks in [1, 100, 500] {
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"", "sh", &blocks.to_string()])
            .arg(env!("CARGO_BIN_EXE_aloe"))
            .args(["merge", text(&config), text(&out)])
            .output()
            .unwrap();
        let (stderr, code) = told(&output);
        assert_eq!(code, Some(4), "{blocks} blocks: {stderr}");
        assert!(stderr.contains(&format!("{} was not written: ", out.display())), "{stderr}");
        assert!(stderr.contains("File too large"), "{stderr}");
        assert!(!out.exists() && !aloe_record::atomic::sibling(&out).exists(), "{blocks} blocks");
    }
}
