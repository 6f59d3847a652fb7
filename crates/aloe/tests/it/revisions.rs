//! What a stage writes is pinned, so that a change of results is seen and `results_since` (aloe/src/stage.rs) is set for its kind:
//! otherwise a finished stage of the older program would pass for one of this program.

use crate::{aloe, root, stories};
use std::collections::BTreeMap;
use std::path::Path;

/// The CPU path on which the digests below were taken, and which every processor of the last ten years has; on another one the bits may
/// differ.
const PATH: &str = "avx2";

/// Digest of each stage's files (what bears times and the card aside) on the tiny recipe, in f32 and bf16.
const PINNED: [(&str, &str, &str); 9] = [
    ("base", "08c0bfcc28c3169e", "08c0bfcc28c3169e"),
    ("rows", "b417b05f8f0089c1", "b417b05f8f0089c1"),
    ("pairs", "ca4279f6543f62fd", "ca4279f6543f62fd"),
    ("sft-a", "330adfe50427bc3b", "746f0b0b7d81c3a3"),
    ("sft-b", "fb8f30e8508d0ea1", "461adad2ff87b816"),
    ("merge", "52df5e0f8b9b2763", "c87f8ccd7cff1939"),
    ("dpo", "321ace0e62e368d6", "ca9a0163d383baca"),
    ("after", "848c1758c00845e2", "ae82b6b82d08b912"),
    ("attacks", "b36d5174b656a5af", "4f30bd6972031bf1"),
];

/// One digest over the names and contents of a stage's files.
fn digest(stage: &Path) -> String {
    let mut files = BTreeMap::new();
    let mut folders = vec![stage.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if aloe_record::digest::bears_time(&entry.file_name().to_string_lossy()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(stage).unwrap().to_string_lossy().into_owned();
                // Reports name the files they read; where this checkout lies is no result.
                let bytes = std::fs::read(&path).unwrap();
                let bytes = String::from_utf8(bytes).map_or_else(
                    |error| error.into_bytes(),
                    |text| text.replace(root().canonicalize().unwrap().to_str().unwrap(), "ROOT").into_bytes(),
                );
                files.insert(name, aloe_record::digest::bytes(&bytes));
            }
        }
    }
    aloe_record::digest::bytes(format!("{files:?}").as_bytes())[..16].to_owned()
}

/// `None` where the processor lacks the path.
fn digests(dir: &Path, stories: &Path, dtype: &str) -> Option<Vec<String>> {
    let starter = root().join("starter").canonicalize().unwrap();
    let text = include_str!("tiny.toml")
        .replace("@STORIES@", &stories.display().to_string())
        .replace("@STARTER@", &starter.display().to_string())
        .replace("dtype = \"f32\"", &format!("dtype = \"{dtype}\""));
    let recipe = dir.join(format!("{dtype}.toml"));
    std::fs::write(&recipe, text).unwrap();
    let out = dir.join(dtype);
    let arguments = ["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let found = aloe().env("ALOE_CPU", PATH).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&found.stderr);
    if stderr.contains("is not one of this machine's") {
        return None;
    }
    assert!(found.status.success(), "{stderr}");
    Some(PINNED.iter().map(|(stage, _, _)| digest(&out.join(stage))).collect())
}

#[test]
fn a_stage_whose_results_changed_says_so_in_results_since() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (Some(f32), Some(bf16)) = (digests(dir.path(), &stories, "f32"), digests(dir.path(), &stories, "bf16")) else {
        eprintln!("not run: this processor lacks the CPU path {PATH}");
        return;
    };
    let found: Vec<(&str, &str, &str)> =
        PINNED.iter().zip(&f32).zip(&bf16).map(|((pin, f32), bf16)| (pin.0, f32.as_str(), bf16.as_str())).collect();
    let lines: String = found.iter().map(|pin| format!("    {pin:?},\n")).collect();
    assert!(
        found == PINNED,
        "results changed. If that is meant, set `results_since` of the kinds concerned in aloe/src/stage.rs to the version being made, \
         write the reason into LOG.md, and pin:\n{lines}"
    );
}
