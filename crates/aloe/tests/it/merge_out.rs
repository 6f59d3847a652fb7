//! Where `aloe merge` writes: a user's files are never replaced, an input never overwritten, links stay links, and any name of a folder goes.

use crate::merging::{dare, text};
use crate::{aloe, run};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Every file of a folder with its bytes, hidden ones included.
fn all(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
        match entry.is_dir() {
            true => found.extend(all(&entry)),
            false => found.push((entry.clone(), std::fs::read(&entry).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_repeated_merge_never_deletes_files_that_it_did_not_write() {
    let (dir, config) = dare(300, 32);
    let out = dir.path().join("out");
    let merge = |more: &[&str]| run(&[&["merge", text(&config), text(&out)], more].concat());
    let (_, stderr, code) = merge(&[]);
    assert_eq!(code, 0, "{stderr}");
    for name in ["notes.txt", ".git/config", "adapter.bin", "results/scores.csv"] {
        let path = out.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "years of work").unwrap();
        let before = all(&out);
        let shown = name.split('/').next().unwrap();
        for more in [&["--seed", "7"][..], &["--seed", "7", "--check"]] {
            // A merge that replaces nothing may leave hidden files; the plan does not know whether it will.
            if name.starts_with('.') && more.contains(&"--check") {
                continue;
            }
            let (_, stderr, code) = merge(more);
            assert_eq!(code, 2, "{name}: {stderr}");
            assert!(
                stderr.contains(&format!("did not write: {shown}")) && stderr.contains("Move them elsewhere"),
                "{stderr}"
            );
            assert!(all(&out) == before, "{name}: the old result was touched");
        }
        match name.contains('/') {
            true => std::fs::remove_dir_all(path.parent().unwrap()).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }
    // Its own files may be edited: the merge is made anew.
    std::fs::write(out.join("README.md"), "edited").unwrap();
    let (_, stderr, code) = merge(&["--seed", "7"]);
    assert_eq!(code, 0, "{stderr}");
    assert_ne!(std::fs::read_to_string(out.join("README.md")).unwrap(), "edited");
    assert!(!dir.path().join(".out.partial").exists() && !dir.path().join(".out.old").exists());
}

#[test]
fn an_empty_folder_is_written_like_none_and_every_seed_of_64_bits_goes() {
    let (dir, config) = dare(300, 32);
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let seed = u64::MAX.to_string();
    let merge = |seed: &str| run(&["merge", text(&config), text(&out), "--seed", seed]);
    let (_, stderr, code) = merge(&seed);
    assert_eq!(code, 0, "{stderr}");
    assert!(!stderr.contains("changed"), "nothing stood there: {stderr}");
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("record.json")).unwrap()).unwrap();
    assert_eq!(record["seed"], u64::MAX);
    let (stdout, stderr, code) = merge(&seed);
    assert!(code == 0 && stdout.contains("was done already"), "{stdout}{stderr}");
    let first = std::fs::read(out.join("model.safetensors")).unwrap();
    let (_, stderr, code) = merge("9223372036854775808");
    assert!(code == 0 && stderr.contains("settings, inputs or outputs changed"), "{stderr}");
    assert!(std::fs::read(out.join("model.safetensors")).unwrap() != first, "another seed, other masks");
    let (_, stderr, code) = merge("18446744073709551616");
    assert!(code == 2 && stderr.contains("--seed"), "{stderr}");
}

#[test]
fn a_result_is_not_written_over_around_or_into_an_input() {
    let (dir, config) = dare(300, 32);
    let merge = |config: &Path, out: &Path, relation: &str| {
        for more in [&[][..], &["--check"]] {
            let (_, stderr, code) = run(&[&["merge", text(config), text(out)], more].concat());
            assert_eq!(code, 2, "{relation}: {stderr}");
            assert!(stderr.contains(&format!("{} {relation} the input", out.display())), "{stderr}");
        }
    };
    // An earlier result as the input of the next merge is where nothing else would refuse it.
    let first = dir.path().join("first");
    let (_, stderr, code) = run(&["merge", text(&config), text(&first)]);
    assert_eq!(code, 0, "{stderr}");
    let yaml = std::fs::read_to_string(&config).unwrap();
    let second = dir.path().join("second.yml");
    std::fs::write(&second, yaml.replace(text(&dir.path().join("a")), text(&first))).unwrap();
    let before = all(dir.path());
    merge(&second, &first, "is");
    merge(&second, &first.join("again/out"), "lies inside");
    merge(&config, dir.path(), "holds");
    merge(&config, &dir.path().join("a"), "is");
    assert!(all(dir.path()) == before);
}

#[test]
fn a_link_as_the_folder_to_write_stays_a_link_and_any_folder_name_goes() {
    let (dir, config) = dare(300, 32);
    let (link, scratch) = (dir.path().join("link"), dir.path().join("scratch/out"));
    std::os::unix::fs::symlink("scratch/out", &link).unwrap();
    for seed in ["1", "2"] {
        let (stdout, stderr, code) = run(&["merge", text(&config), text(&link), "--seed", seed]);
        assert_eq!(code, 0, "{stderr}");
        assert!(link.is_symlink() && scratch.join("model.safetensors").is_file(), "{stdout}");
        let record: Value = serde_json::from_slice(&std::fs::read(scratch.join("record.json")).unwrap()).unwrap();
        assert_eq!(record["seed"].to_string(), seed);
    }
    for name in ["My Model", "a+b", "m@1", "\u{e9}", "Llama-3.1_8B"] {
        let out = dir.path().join("named").join(name);
        let (_, stderr, code) = run(&["merge", text(&config), text(&out)]);
        assert_eq!(code, 0, "{name}: {stderr}");
        let record: Value = serde_json::from_slice(&std::fs::read(out.join("record.json")).unwrap()).unwrap();
        assert_eq!(record["name"], name);
        let (stdout, stderr, code) = run(&["merge", text(&config), text(&out)]);
        assert!(code == 0 && stdout.contains("(was done already)"), "{name}: {stdout} {stderr}");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("named")).unwrap().count(), 5);
}

#[test]
fn the_record_names_the_inputs_as_the_yaml_does_and_the_way_a_path_is_written_changes_no_byte() {
    let (dir, _) = dare(300, 32);
    let merge = |a: &str, out: &str| {
        let yaml = format!(
            "models: [{{model: {a}, parameters: {{weight: 0.6, density: 0.5}}}}, {{model: b, parameters: {{weight: 0.4, density: 0.5}}}}]\n\
             base_model: base\nmerge_method: dare_ties\ndtype: bfloat16\n"
        );
        std::fs::write(dir.path().join("m.yml"), yaml).unwrap();
        let done = aloe().current_dir(dir.path()).args(["merge", "m.yml", out]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let record: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join(out).join("record.json")).unwrap()).unwrap();
        let mut names: Vec<&String> = record["inputs"].as_object().unwrap().keys().collect();
        names.sort();
        let mut expected = [a, "b", "base"].map(str::to_owned);
        expected.sort();
        assert_eq!(names, expected.iter().collect::<Vec<_>>());
        assert_eq!(record["inputs"][a], aloe_record::digest::folder(&dir.path().join("a")).unwrap());
        std::fs::read(dir.path().join(out).join("model.safetensors")).unwrap()
    };
    let first = merge("a", "out-1");
    let absolute = format!("{}/", dir.path().join("a").display());
    for (a, out) in [("./a", "out-2"), (&absolute, "out-3"), ("b/../a", "out-4")] {
        assert!(merge(a, out) == first, "{a}");
    }
}
