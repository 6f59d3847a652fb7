//! What `aloe plan --where` writes.

use super::chain::{cluster_file, digests_of_plan, plan};
use crate::{run, stories};
use std::path::Path;

/// Every file of the plan, read as bytes.
fn bytes_below(folder: &Path, found: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => bytes_below(&path, found),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
}

/// Words of a text that are absolute paths of a machine, but for the shell and the null device.
fn absolute_paths(text: &str) -> Vec<&str> {
    let words = text.split(|letter: char| letter.is_whitespace() || "\"'=(),;<>[]{}|&`".contains(letter));
    let is_path = |word: &&str| {
        let second = word.strip_prefix('/').and_then(|rest| rest.chars().next());
        second.is_some_and(|letter| letter.is_alphanumeric()) && !["/bin/bash", "/dev/null"].contains(word)
    };
    words.filter(is_path).collect()
}

#[test]
fn absolute_paths_are_told_from_other_words_with_a_slash() {
    let text = "#!/bin/bash\nexec x > /dev/null; cd \"$(dirname \"$a\")/../..\" and/or 1/2 s/^a//p http://x/y ./out/z\na = \"/opt/b\" --c=/d";
    assert_eq!(absolute_paths(text), ["/opt/b", "/d"]);
}

#[test]
fn the_same_recipe_gives_the_same_plan_byte_for_byte_and_no_absolute_path_outside_cluster_toml() {
    let Some(stories) = stories() else { return };
    for (place, trainer) in [("local", "aloe"), ("slurm", "trl"), ("slurm", "axolotl")] {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("elsewhere/two"));
        cluster_file(dir.path(), "[engines]\ntrl = \"/opt/trl\"\naxolotl = \"/opt/axolotl\"\n");
        let trainer = format!("trainer = \"{trainer}\"");
        let swaps = [("trainer = \"aloe\"", trainer.as_str()), ("warmup_steps = 1", "warmup_steps = 2")];
        for out in [&one, &two] {
            plan(dir.path(), &stories, out, place, &swaps);
        }
        assert_eq!(digests_of_plan(&one), digests_of_plan(&two), "{trainer}");
        let (mut files, mut n_texts) = (Vec::new(), 0);
        bytes_below(&one, &mut files);
        let here = dir.path().to_str().unwrap().as_bytes();
        for (path, bytes) in files {
            // Records say where they were made: host and paths.
            if path.ends_with("cluster.toml") || path.ends_with("record.json") {
                continue;
            }
            let names = |folder: &[u8]| bytes.windows(folder.len()).any(|window| window == folder);
            assert!(!names(here), "{} names {}", path.display(), dir.path().display());
            assert!(!names(stories.to_str().unwrap().as_bytes()), "{} names {}", path.display(), stories.display());
            let inside = path.strip_prefix(&one).unwrap();
            let is_planned = !inside.starts_with("out") && !inside.starts_with("files");
            if let (true, Ok(text)) = (is_planned, std::str::from_utf8(&bytes)) {
                n_texts += 1;
                assert_eq!(absolute_paths(text), [""; 0], "{}", path.display());
            }
        }
        // Five files of each of the eight stages, the plan and the recipe.
        assert!(n_texts >= 42, "{trainer}: {n_texts} texts were looked at");
        let stages: Vec<String> = std::fs::read_dir(one.join("stages"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(stages.len(), 8, "{stages:?}");
        for file in ["job.sbatch", "run.sh", "check.sh", "inputs.sha256", "env.lock"] {
            assert!(one.join("stages/10-sft-a").join(file).is_file(), "{file}");
        }
        let pinned = std::fs::read_to_string(one.join("stages/10-sft-a/env.lock")).unwrap();
        let datasets = pinned.lines().find_map(|line| line.strip_prefix("datasets=="));
        let of_ci = |engine: &str| {
            let path = format!("{}/../../.ci/engines-{engine}.txt", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().find_map(|line| line.strip_prefix("datasets==")).unwrap().trim().to_owned()
        };
        let expected = match trainer.as_str() {
            "trainer = \"trl\"" => Some(of_ci("trl")),
            "trainer = \"axolotl\"" => Some(of_ci("axolotl")),
            _ => None,
        };
        assert_eq!(datasets.map(str::trim), expected.as_deref(), "{pinned}");
    }
}

/// A Python that refuses all configurations, and one that takes them.
#[test]
fn what_an_engines_own_parser_refuses_is_refused_by_validate_with_its_last_words() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("engine/bin");
    std::fs::create_dir_all(&bin).unwrap();
    let python = bin.join("python");
    let site = format!("[engines]\ntrl = {:?}\n", dir.path().join("engine"));
    let cluster = cluster_file(dir.path(), &site);
    let out = dir.path().join("run");
    plan(dir.path(), &stories, &out, "local", &[("trainer = \"aloe\"", "trainer = \"trl\"")]);
    let recipe = dir.path().join("tiny.toml");
    let validate = |script: &str| {
        // By a child: a program that this process has open for writing cannot be run.
        let write = "printf '%s' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let written = std::process::Command::new("sh").args(["-c", write, "sh", script]).arg(&python).status();
        assert!(written.unwrap().success());
        let [recipe, cluster, out] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
        let (_, said, code) =
            run(&["plan", recipe, "--where", "local", "--cluster", cluster, "--out", out, "--validate"]);
        (said, code)
    };
    let (said, code) = validate("#!/bin/sh\nexit 0\n");
    assert_eq!(code, 0, "{said}");
    for stage in ["sft-a", "sft-b", "dpo"] {
        assert!(said.contains(&format!("{stage}: accepted by trl's own parser")), "{said}");
    }
    let (said, code) = validate("#!/bin/sh\necho 'no key learnin_rate' >&2\nexit 1\n");
    assert!(code == 2 && said.contains("stage \"sft-a\": no key learnin_rate"), "{said}");
}

#[test]
fn a_run_folder_is_refused_where_its_parts_do_not_go_together() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let recipe = crate::road::recipe(dir.path(), &stories);
    let cluster = cluster_file(dir.path(), "[stages.sft-z]\nnodes = 2\n");
    let out = dir.path().join("run");
    let plan = |more: &[&str]| {
        let mut arguments = vec!["plan", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()];
        arguments.extend(more);
        let (_, said, code) = run(&arguments);
        assert_eq!(code, 2, "{said}");
        said
    };
    assert!(plan(&["--where", "slurm"]).contains("--cluster cluster.toml"));
    let said = plan(&["--where", "slurm", "--cluster", cluster.to_str().unwrap()]);
    for part in [
        "stage \"dpo\" is trained by trl: cluster.toml names no environment",
        "[stages.sft-z] of cluster.toml is no stage",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!out.exists(), "a refused plan left a folder");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("thesis.txt"), "years").unwrap();
    let cluster = cluster_file(dir.path(), "");
    let said = plan(&["--where", "local", "--cluster", cluster.to_str().unwrap()]);
    assert!(said.contains("holds \"thesis.txt\" and is no run folder"), "{said}");
    let (_, said, code) = run(&["status", dir.path().to_str().unwrap()]);
    assert!(code == 2 && said.contains("is no run folder"), "{said}");
}

#[test]
fn a_recipe_that_was_changed_after_it_was_planned_is_not_run() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    plan(dir.path(), &stories, &out, "local", &[]);
    let recipe = out.join("recipe.toml");
    let text = std::fs::read_to_string(&recipe).unwrap();
    std::fs::write(&recipe, text.replace("seed = 3", "seed = 4")).unwrap();
    let (_, said, code) = run(&["run", out.to_str().unwrap()]);
    assert!(code == 2 && said.contains("recipe.toml is not the one that was planned"), "{said}");
}

/// Its job would refuse it, after days in a queue perhaps. The alignment waits for all before it.
#[test]
fn a_configuration_that_was_changed_after_it_was_planned_is_refused_before_anything_is_submitted() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    cluster_file(dir.path(), "[engines]\ntrl = \"/opt/trl\"\n");
    plan(dir.path(), &stories, &out, "local", &[("trainer = \"aloe\"", "trainer = \"trl\"")]);
    let config = out.join("stages/40-dpo/engine.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    for (to, part) in [
        ("learnin_rate: ", "unknown key learnin_rate; did you mean learning_rate?"),
        ("max_grad_norm: 9.0\nlearning_rate: ", "changed since it was planned; change the recipe, and plan anew"),
    ] {
        let changed = text.replacen("max_grad_norm: 1.0\n", "", 1).replacen("learning_rate: ", to, 1);
        std::fs::write(&config, changed).unwrap();
        let (_, said, code) = run(&["run", out.to_str().unwrap()]);
        assert!(code != 0 && said.contains("nothing was submitted") && said.contains(part), "{said}");
        assert!(said.contains("stages/40-dpo/engine.yaml: "), "{said}");
        let phases = super::chain::states(&out, None);
        assert!(phases.iter().all(|(_, phase)| phase == "planned"), "{phases:?}");
    }
}

#[test]
fn a_run_folder_that_holds_work_or_is_planned_from_itself_is_not_written_over() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    plan(dir.path(), &stories, &out, "local", &[]);
    let before = digests_of_plan(&out);
    let path = |name: &str| out.join(name).to_str().unwrap().to_owned();
    let again = |recipe: &str| {
        let cluster = path("cluster.toml");
        let arguments = ["plan", recipe, "--where", "local", "--cluster", &cluster, "--out", out.to_str().unwrap()];
        let (_, said, code) = run(&arguments);
        assert_eq!(code, 2, "{said}");
        said
    };
    let said = again(&path("recipe.toml"));
    assert!(said.contains("lies in the run folder that is to be written"), "{said}");
    assert_eq!(digests_of_plan(&out), before);
    // What `aloe resume` leaves of a stage whose submission is refused: planned, with work.
    std::fs::create_dir_all(out.join("work/sft-a/checkpoint-5")).unwrap();
    let said = again(dir.path().join("tiny.toml").to_str().unwrap());
    assert!(said.contains("holds work of stage") && said.contains("aloe resume"), "{said}");
    std::fs::remove_dir_all(out.join("work")).unwrap();
    assert_eq!(digests_of_plan(&out), before);
}

#[test]
fn a_foreign_trainer_without_checkpoints_is_refused_under_slurm() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let recipe = crate::road::recipe(dir.path(), &stories);
    let text = std::fs::read_to_string(&recipe).unwrap();
    std::fs::write(&recipe, text.replacen("checkpoint_every = 1", "checkpoint_every = 0", 1)).unwrap();
    let cluster = cluster_file(dir.path(), "[engines]\ntrl = \"/opt/trl\"\n");
    let out = dir.path().join("run");
    let [recipe, cluster, out] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["plan", recipe, "--where", "slurm", "--cluster", cluster, "--out", out]);
    assert!(code == 2 && said.contains("stage \"sft-a\": checkpoint_every = 0 with trl under Slurm"), "{said}");
    assert!(!said.contains("sft-b"), "{said}");
}

/// Links below models/ lead elsewhere at another site, and rows for TRL are ids of this tokenizer.
#[test]
fn a_model_of_the_site_is_held_to_the_tokenizer_that_rows_were_rendered_with() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let site = stories.display();
    cluster_file(dir.path(), &format!("[engines]\ntrl = \"/opt/trl\"\n[models]\n\"{site}\" = \"{site}\"\n"));
    plan(dir.path(), &stories, &out, "slurm", &[("trainer = \"aloe\"", "trainer = \"trl\"")]);
    let digest = aloe_record::digest::file(&stories.join("tokenizer.json")).unwrap();
    let stages = std::fs::read_dir(out.join("stages")).unwrap().map(|entry| entry.unwrap().path());
    let mut n_found = 0;
    for stage in stages.filter(|stage| stage.join("expected.json").is_file()) {
        let inputs = std::fs::read_to_string(stage.join("inputs.sha256")).unwrap();
        let is_held = |part: &str| {
            inputs
                .lines()
                .any(|line| line.starts_with(&digest) && line.contains(part) && line.ends_with("/tokenizer.json"))
        };
        assert!(is_held("  models/"), "{}: {inputs}", stage.display());
        let expected = std::fs::read_to_string(stage.join("expected.json")).unwrap();
        // The SFT stages start from a copy of it, the alignment from a merge that is not there yet.
        let is_copy = stage.to_string_lossy().contains("-sft-");
        assert_eq!((is_held("  out/base"), expected.contains(&digest)), (is_copy, is_copy), "{}", stage.display());
        n_found += 1;
    }
    assert_eq!(n_found, 3);
}
