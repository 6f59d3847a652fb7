//! `aloe bundle`: a run folder as one file, on a site that has nothing else.

use super::chain::{assert_all, assert_equals_plain_run, cluster_file, plan};
use crate::{root, run, stories};
use std::path::{Path, PathBuf};
use std::process::Command;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn copy_tree(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}

/// By the system's tar.
fn unpack(tar: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    assert!(Command::new("tar").arg("xf").arg(tar).current_dir(to).status().unwrap().success());
}

/// The unpacked program, in its folder, with no variable of ours and with a proxy that nobody listens at.
fn there(folder: &Path, arguments: &[&str]) -> (String, i32) {
    let mut command = Command::new("bin/aloe");
    command.args(arguments).current_dir(folder).env_clear().env("PATH", std::env::var("PATH").unwrap());
    command.env("HOME", folder.parent().unwrap());
    for name in ["http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env(name, "http://127.0.0.1:9");
    }
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).unwrap(), output.status.code().unwrap_or(-1))
}

fn pack(what: &Path, more: &[&str], out: &Path) -> (String, i32) {
    let (stdout, stderr, code) = run(&[&["bundle", text(what), "--out", text(out)][..], more].concat());
    (stdout + &stderr, code)
}

/// The tiny recipe's own files in `here`, where they can be taken away.
fn planned(here: &Path, stories: &Path) -> PathBuf {
    std::fs::create_dir(here).unwrap();
    let starter = root().join("starter").canonicalize().unwrap();
    copy_tree(stories, &here.join("stories"));
    copy_tree(&starter, &here.join("starter"));
    let out = here.join("run");
    plan(here, &here.join("stories"), &out, "local", &[(text(&starter), text(&here.join("starter")))]);
    out
}

#[test]
fn a_bundle_runs_by_its_own_program_where_all_that_it_was_made_from_is_gone() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("here");
    let planned = planned(&here, &stories);
    let (one, two) = (dir.path().join("one.tar"), dir.path().join("two.tar"));
    for out in [&one, &two] {
        let (said, code) = pack(&planned, &["--with-weights", "base"], out);
        assert!(code == 0 && said.contains("unpacks to tiny/"), "{said}");
    }
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap(), "the same run folder gave other bytes");
    std::fs::remove_dir_all(&here).unwrap();
    unpack(&one, &dir.path().join("there"));
    let folder = dir.path().join("there/tiny");
    let (said, code) = there(&folder, &["bundle", "--check", "."]);
    assert!(code == 0 && said.contains("every digest holds"), "{said}");
    let (said, code) = there(&folder, &["run", "."]);
    assert_eq!(code, 0, "{said}");
    assert_all(&folder, None, "done");
    assert_equals_plain_run(dir.path(), &stories, &folder);
    let program = std::fs::read_to_string(folder.join("state/card/local.log")).unwrap();
    assert!(!program.contains(text(&here)), "{program}");
    // What a run made is no finding; a changed script is.
    let (said, code) = there(&folder, &["bundle", "--check", "."]);
    assert_eq!(code, 0, "{said}");
    std::fs::write(folder.join("stages/10-sft-a/check.sh"), "exit 0\n").unwrap();
    let (said, code) = there(&folder, &["bundle", "--check", "."]);
    assert!(code == 1 && said.contains("stages/10-sft-a/check.sh: sha256 is"), "{said}");
    // The run has begun: it is no plan to pack any more.
    let (said, code) = pack(&folder, &[], &dir.path().join("three.tar"));
    assert!(code == 2 && said.contains("the run has begun"), "{said}");
}

#[test]
fn a_recipe_is_planned_and_packed_in_one_step_and_its_weights_are_asked_for_where_they_were_not_named() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let recipe = crate::road::recipe(dir.path(), &stories);
    let site = cluster_file(dir.path(), "[engines]\ntrl = \"/opt/trl\"\n");
    let out = dir.path().join("x.tar");
    let (said, code) = pack(&recipe, &[], &out);
    assert!(code == 2 && said.contains("--cluster cluster.toml of the site"), "{said}");
    let site_flags = ["--where", "slurm", "--cluster", text(&site)];
    let (said, code) = pack(&recipe, &[&site_flags[..], &["--with-weights", "bsae"]].concat(), &out);
    assert!(code == 2 && said.contains("no such weights; there are base"), "{said}");
    let (said, code) = pack(&recipe, &site_flags, &out);
    assert!(code == 0 && said.contains("--with-weights base packs it"), "{said}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    let (stdout, stderr, code) = run(&["bundle", "--check", text(&out)]);
    assert!(code == 0 && stderr.contains("the weights base were not packed"), "{stdout}{stderr}");
    unpack(&out, dir.path());
    let folder = dir.path().join("tiny");
    let readme = std::fs::read_to_string(folder.join("README.txt")).unwrap();
    for part in
        ["trl: /opt/trl", "sft-a: sft by trl", "base: mit", "rows, source general", "out/base/model.safetensors"]
    {
        assert!(readme.contains(part), "{part} is not in {readme}");
    }
    let (stdout, _, code) = run(&["bundle", "--check", text(&folder), "--json"]);
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, found["findings"].as_array().unwrap().len()), (1, 1), "{stdout}");
    let (said, code) = pack(&recipe, &site_flags, &dir.path().join("x.zip"));
    assert!(code == 2 && said.contains("NAME.tar"), "{said}");
}

#[test]
fn rows_that_may_not_be_shared_once_changed_are_not_packed() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let planned = dir.path().join("run");
    let licence = ("general.jsonl\", licence = \"mit\"", "general.jsonl\", licence = \"CC BY-NC-ND 4.0\"");
    plan(dir.path(), &stories, &planned, "local", &[licence]);
    let out = dir.path().join("x.tar");
    let (said, code) = pack(&planned, &[], &out);
    assert!(code == 2 && said.contains("source \"general\" is under CC BY-NC-ND 4.0"), "{said}");
    assert!(!out.exists());
}
