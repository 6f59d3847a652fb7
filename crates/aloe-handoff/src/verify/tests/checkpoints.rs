//! Which checkpoint training goes on from.

use super::*;

#[test]
fn training_goes_on_from_the_newest_checkpoint_that_is_whole_and_tells_why_not_from_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = |step: u64| {
        let folder = dir.path().join(format!("checkpoint-{step}"));
        std::fs::create_dir(&folder).unwrap();
        for name in ["model.safetensors", "optimizer.pt", "trainer_state.json"] {
            std::fs::write(folder.join(name), format!("{name} {step}")).unwrap();
        }
        folder
    };
    assert_eq!(newest_checkpoint(dir.path()), NewestCheckpoint::default());
    for step in [5, 20, 100, 110, 120] {
        seal(&checkpoint(step), step).unwrap();
    }
    let unfinished = checkpoint(130);
    std::fs::write(dir.path().join("checkpoint-120/optimizer.pt"), "optimizer.pt 119").unwrap();
    std::fs::remove_file(dir.path().join("checkpoint-110/optimizer.pt")).unwrap();
    let newest = newest_checkpoint(dir.path());
    assert_eq!(newest.found, Some((dir.path().join("checkpoint-100"), 100)));
    assert_eq!(newest.passed_over.len(), 3, "{newest:?}");
    assert!(
        newest.passed_over[0].contains("no MANIFEST.json")
            && newest.passed_over[0].contains(unfinished.to_str().unwrap())
    );
    assert!(
        newest.passed_over[1].contains("optimizer.pt has") && newest.passed_over[2].contains("optimizer.pt is missing")
    );
}

#[test]
fn a_checkpoint_of_another_step_or_other_inputs_or_without_an_optimizer_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = |step: u64, manifest_of: u64, inputs: &str, names: &[&str]| {
        let folder = dir.path().join(format!("checkpoint-{step}"));
        std::fs::create_dir(&folder).unwrap();
        let mut files = serde_json::Map::new();
        for name in names {
            std::fs::write(folder.join(name), name).unwrap();
            let sha256 = aloe_record::digest::bytes(name.as_bytes());
            files.insert((*name).to_owned(), json!({"size": name.len(), "sha256": sha256}));
        }
        let manifest = json!({"step": manifest_of, "inputs": inputs, "files": files});
        std::fs::write(folder.join("MANIFEST.json"), manifest.to_string()).unwrap();
    };
    let whole = ["model.safetensors", "optimizer.bin", "trainer_state.json"];
    checkpoint(10, 10, "ours", &whole);
    checkpoint(20, 20, "ours", &[]);
    checkpoint(30, 30, "ours", &["model.safetensors", "trainer_state.json"]);
    checkpoint(40, 30, "ours", &whole);
    checkpoint(50, 50, "of another recipe", &whole);
    let ours = TrainedWith { digest: "ours".into(), of_plan: None };
    let newest = newest_checkpoint_of(dir.path(), Some(&ours));
    assert_eq!(newest.found, Some((dir.path().join("checkpoint-10"), 10)));
    let reasons = ["other rows or settings", "of step 30", "names no optimizer", "names no weights"];
    assert_eq!(newest.passed_over.len(), reasons.len(), "{newest:?}");
    for (found, reason) in newest.passed_over.iter().zip(reasons) {
        assert!(found.contains(reason), "{found} does not say {reason}");
    }
    assert_eq!(newest_checkpoint(dir.path()).found, Some((dir.path().join("checkpoint-50"), 50)));
    // Where a job rendered the rows, an earlier version noted the plan alone, or nothing.
    checkpoint(60, 60, "the plan", &whole);
    checkpoint(70, 70, "", &whole);
    let untold = dir.path().join("checkpoint-70/MANIFEST.json");
    let text = std::fs::read_to_string(&untold).unwrap();
    std::fs::write(&untold, text.replace(r#""inputs":"""#, r#""inputs":null"#)).unwrap();
    let rendered = TrainedWith { of_plan: Some("the plan".into()), ..ours.clone() };
    let newest = newest_checkpoint_of(dir.path(), Some(&rendered));
    assert_eq!(newest.found, Some((dir.path().join("checkpoint-10"), 10)));
    for (found, step) in newest.passed_over.iter().zip([70, 60]) {
        let said = format!("checkpoint-{step}: an earlier version of aloe saved it without a note of the rows");
        assert!(found.contains(&said), "{found}");
    }
    assert!(newest.passed_over[2].contains("other rows or settings"), "{newest:?}");
    // Where the plan has the rows, a checkpoint in its folder is of them.
    assert_eq!(newest_checkpoint_of(dir.path(), Some(&ours)).found, Some((dir.path().join("checkpoint-70"), 70)));
}
