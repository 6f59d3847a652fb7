//! A run folder of two stages packed, unpacked by the system's tar, and broken in the ways of a copy between sites.

use super::*;
use crate::plan::{Resources, StagePlan, Trainer, Where};
use aloe_record::atomic;
use std::process::Command;

const SITE: &str =
    "# our site\nname = \"x\"\naloe = \"/opt/aloe\" # on the nodes\n[models]\n\"hf:a/b\" = \"@MODEL@\"\n";

/// A run folder whose stage `a` reads the model `base` made beforehand, a copied file and a model of the site.
fn run_folder(dir: &Path) -> PathBuf {
    let run = dir.join("run");
    let put = |path: &str, text: &str| atomic::write(&run.join(path), text.as_bytes()).unwrap();
    atomic::write(&dir.join("site/b/model.safetensors"), b"weights of the site").unwrap();
    atomic::write(&dir.join("aloe"), b"the program").unwrap();
    let recipe = "[[stage]]\nfrom = { model = \"./models/hf-a-b\" }\n";
    put("recipe.toml", recipe);
    put("cluster.toml", &SITE.replace("@MODEL@", dir.join("site/b").to_str().unwrap()));
    put("out/base/model.safetensors", "weights");
    put("out/base/config.json", "{}");
    put("files/01-questions.jsonl", "questions");
    put("files/02-judge.gguf", "a judge");
    put("work/a/left", "never packed");
    put("out/.rows.partial/half", "never packed");
    put("out/base/.gitattributes", "x");
    let inputs =
        ["out/base/model.safetensors", "out/base/config.json", "out/base/.gitattributes", "files/01-questions.jsonl"];
    let mut digests: std::collections::BTreeMap<String, String> =
        inputs.map(|path| (path.to_owned(), digest::file(&run.join(path)).unwrap())).into();
    // Of the site's model and of a stage before, which are there when its job begins.
    for path in ["models/hf-a-b/tokenizer.json", "out/a/tokenizer.json"] {
        digests.insert(path.to_owned(), digest::bytes(b"of the site"));
    }
    for script in ["job.sbatch", "run.sh", "check.sh", "env.lock"] {
        put(&format!("stages/10-a/{script}"), script);
    }
    put("stages/10-a/inputs.sha256", &crate::sbatch::inputs_file(&digests));
    let stage = StagePlan {
        name: "a".into(),
        kind: "merge".into(),
        folder: "stages/10-a".into(),
        after: vec![],
        trainer: Trainer::Aloe,
        resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 60 },
    };
    let recipe_sha256 = digest::bytes(recipe.as_bytes());
    let plan = RunPlan { version: 1, name: "tiny run".into(), place: Where::Local, recipe_sha256, stages: vec![stage] };
    atomic::write_json(&run.join(PLAN), &plan).unwrap();
    run
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn pack_into(dir: &Path, run: &Path, weights: &[&str], out: &str) -> Result<Packed> {
    let (weights, licences) = (names(weights), names(&["base: mit"]));
    let packing = Packing { run, aloe: &dir.join("aloe"), weights: &weights, licences: &licences };
    pack(&packing, &dir.join(out))
}

fn refused(dir: &Path, run: &Path, weights: &[&str]) -> String {
    let refused = pack_into(dir, run, weights, "refused.tar").unwrap_err().to_string();
    assert!(!dir.join("refused.tar").exists() && !dir.join(".refused.tar.partial").exists());
    refused
}

/// By the system's tar, into `dir/there`.
fn unpack(dir: &Path, tar: &str) -> PathBuf {
    let there = dir.join("there");
    std::fs::create_dir_all(&there).unwrap();
    let status = Command::new("tar").arg("xf").arg(dir.join(tar)).current_dir(&there).status().unwrap();
    assert!(status.success());
    there.join("tiny-run")
}

fn findings(path: &Path) -> Vec<String> {
    check(path).unwrap().findings
}

#[test]
fn what_is_unpacked_is_the_run_folder_with_its_program_and_every_digest_holds_by_us_and_by_sha256sum() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_folder(dir.path());
    let packed = pack_into(dir.path(), &run, &["base", "judge.gguf", "hf:a/b"], "x.tar").unwrap();
    assert_eq!((packed.name.as_str(), packed.left_out.len()), ("tiny-run", 0));
    assert_eq!(packed.sha256, digest::file(&dir.path().join("x.tar")).unwrap());
    assert_eq!(packed.n_bytes, dir.path().join("x.tar").metadata().unwrap().len());
    let in_file = check(&dir.path().join("x.tar")).unwrap();
    assert_eq!((in_file.findings.len(), in_file.n_good), (0, packed.n_files - 1), "{in_file:?}");
    let there = unpack(dir.path(), "x.tar");
    let sums = Command::new("sha256sum").args(["--check", "--quiet", "--strict", SUMS]).current_dir(&there).status();
    assert!(sums.unwrap().success());
    assert_eq!(check(&there).unwrap(), in_file);
    for path in ["out/base/model.safetensors", "files/01-questions.jsonl", "stages/10-a/run.sh", "run.json"] {
        assert_eq!(std::fs::read(there.join(path)).unwrap(), std::fs::read(run.join(path)).unwrap(), "{path}");
    }
    assert!(!there.join("work").exists() && !there.join("out/.rows.partial").exists());
    // The site's file is kept but for what the bundle brings, and says where that lies.
    let text = std::fs::read_to_string(there.join("cluster.toml")).unwrap();
    let expected =
        "# our site\nname = \"x\"\naloe = \"./bin/aloe\" # on the nodes\n[models]\n\"hf:a/b\" = \"./weights/hf-a-b\"\n";
    assert_eq!(text, expected);
    let cluster = Cluster::read(&there.join("cluster.toml")).unwrap();
    assert_eq!(std::fs::read(&cluster.aloe).unwrap(), b"the program");
    let weights = cluster.models["hf:a/b"].join("model.safetensors");
    assert_eq!(std::fs::read(weights).unwrap(), b"weights of the site");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(cluster.aloe.metadata().unwrap().permissions().mode() & 0o111, 0o111);
    RunPlan::read(&there).unwrap();
}

#[test]
fn the_same_run_gives_the_same_bytes_whatever_its_place_its_files_times_and_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_folder(dir.path());
    let first = pack_into(dir.path(), &run, &["base"], "x.tar").unwrap();
    let copy = dir.path().join("copy");
    assert!(Command::new("cp").arg("-r").args([&run, &copy]).status().unwrap().success());
    let aged = Command::new("find").arg(&copy).args(["-exec", "touch", "-d", "2001-02-03", "{}", ";"]).status();
    assert!(aged.unwrap().success());
    assert_eq!(pack_into(dir.path(), &copy, &["base"], "other name.tar").unwrap(), first);
    let (one, two) = (dir.path().join("x.tar"), dir.path().join("other name.tar"));
    let listed = String::from_utf8(Command::new("tar").arg("tf").arg(&one).output().unwrap().stdout).unwrap();
    assert!(listed.lines().skip(4).is_sorted(), "{listed}");
    assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
}

#[test]
fn weights_are_packed_by_name_only_and_those_left_out_are_asked_for_until_they_are_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_folder(dir.path());
    let packed = pack_into(dir.path(), &run, &[], "x.tar").unwrap();
    let left: Vec<(&str, &str)> = packed.left_out.iter().map(|left| (left.name.as_str(), left.path.as_str())).collect();
    assert_eq!(left, [("judge.gguf", "files/02-judge.gguf"), ("base", "out/base/model.safetensors")]);
    let there = unpack(dir.path(), "x.tar");
    let readme = std::fs::read_to_string(there.join(README)).unwrap();
    for part in ["out/base/model.safetensors  7 bytes", "base: mit", "hf:a/b: /", "bin/aloe bundle --check ."] {
        assert!(readme.contains(part), "{part} is not in {readme}");
    }
    let asked = findings(&there);
    assert!(
        asked.len() == 2 && asked[1].contains("the weights base were not packed; put them there (7 bytes"),
        "{asked:?}"
    );
    std::fs::copy(run.join("files/02-judge.gguf"), there.join("files/02-judge.gguf")).unwrap();
    std::fs::write(there.join("out/base/model.safetensors"), "WEIGHTS").unwrap();
    let other = findings(&there);
    assert!(other.len() == 1 && other[0].starts_with("out/base/model.safetensors: sha256 is "), "{other:?}");
    std::fs::copy(run.join("out/base/model.safetensors"), there.join("out/base/model.safetensors")).unwrap();
    assert_eq!(findings(&there), [""; 0]);
}

#[test]
fn a_changed_a_missing_and_a_strange_file_are_each_found_and_what_a_run_makes_and_a_changed_cluster_toml_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_folder(dir.path());
    pack_into(dir.path(), &run, &["base", "judge.gguf"], "x.tar").unwrap();
    let there = unpack(dir.path(), "x.tar");
    for made in ["state/a/events.log", "work/a/engine.log", "out/a/record.json"] {
        atomic::write(&there.join(made), b"x").unwrap();
    }
    std::fs::write(there.join("cluster.toml"), "name = \"theirs\"\naloe = \"/theirs\"\n").unwrap();
    let checked = check(&there).unwrap();
    assert_eq!((checked.findings.len(), checked.notes.len()), (0, 1), "{checked:?}");
    std::fs::write(there.join("stages/10-a/run.sh"), "rm -rf /").unwrap();
    std::fs::remove_file(there.join("files/01-questions.jsonl")).unwrap();
    std::fs::write(there.join("bin/other"), "x").unwrap();
    let found = findings(&there);
    let starts = ["files/01-questions.jsonl: is missing", "stages/10-a/run.sh: sha256 is", "bin/other: was not packed"];
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().zip(starts).all(|(found, start)| found.starts_with(start)), "{found:?}");
    // In the file: a bit of a file's content, and an end that is cut off.
    let tar = dir.path().join("x.tar");
    let bytes = std::fs::read(&tar).unwrap();
    let mut changed = bytes.clone();
    let content = bytes.windows(b"a judge".len()).position(|window| window == b"a judge").unwrap();
    changed[content] ^= 1;
    std::fs::write(&tar, changed).unwrap();
    let found = findings(&tar);
    assert!(found.len() == 1 && found[0].starts_with("files/02-judge.gguf: sha256 is"), "{found:?}");
    std::fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
    let cut = check(&tar);
    assert!(cut.is_err() || !cut.unwrap().findings.is_empty());
    std::fs::write(&tar, "no tar").unwrap();
    assert!(check(&tar).is_err());
}

#[test]
fn all_that_a_stage_needs_and_is_not_there_is_named_at_once_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_folder(dir.path());
    std::fs::remove_file(run.join("stages/10-a/check.sh")).unwrap();
    std::fs::remove_file(run.join("files/01-questions.jsonl")).unwrap();
    std::fs::write(run.join("out/base/config.json"), "{ }").unwrap();
    std::fs::write(run.join("cluster.toml"), "name = \"x\"\naloe = \"/opt/aloe\"\n").unwrap();
    let said = refused(dir.path(), &run, &["bse"]);
    for part in [
        "nothing was packed: 5 mistakes",
        "stage \"a\": stages/10-a/check.sh is missing",
        "stage \"a\": its input files/01-questions.jsonl is missing",
        "stage \"a\": its input out/base/config.json is not what was planned",
        "models/hf-a-b is no model of cluster.toml",
        "--with-weights bse: no such weights; there are base, judge.gguf",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn a_run_that_has_begun_and_a_model_that_is_not_at_hand_are_not_packed() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_folder(dir.path());
    std::fs::remove_dir_all(dir.path().join("site")).unwrap();
    let said = refused(dir.path(), &run, &["hf:a/b"]);
    assert!(said.contains("the model \"hf:a/b\" is not at hand: there is no /"), "{said}");
    let event = state::Event::Submitting { name: "x".into() };
    state::update(&run, "a", |_| Ok(Some(event))).unwrap();
    let said = refused(dir.path(), &run, &[]);
    assert!(said.contains("the run has begun (stage \"a\" is submitting)"), "{said}");
}

#[test]
fn lists_that_lead_out_of_the_bundle_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_folder(dir.path());
    pack_into(dir.path(), &run, &["base", "judge.gguf"], "x.tar").unwrap();
    let there = unpack(dir.path(), "x.tar");
    let path = there.join(SUMS);
    let text = std::fs::read_to_string(&path).unwrap();
    for out in ["/etc/passwd", "../x", "data/../../x"] {
        std::fs::write(&path, format!("{text}{}  {out}\n", "0".repeat(64))).unwrap();
        assert!(check(&there).unwrap_err().to_string().contains("leads out of the bundle"), "{out}");
    }
}
