//! Learning rates and weights that the planned schedule and AdamW do not allow.

use super::*;

/// A folder of 80 steps with a warm-up of 4 to a constant rate of 8e-5, each changed by one of `makes`, and what is found in it.
fn found_of(makes: &[&dyn Fn(&mut Folder)]) -> Vec<Vec<Finding>> {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = start(Tiny::Llama, &dir.path().join("start"));
    expected.stage.config = json!({"lr": 8e-5, "schedule": "constant", "betas": [0.9, 0.999], "warmup_steps": 4, "warmup_ratio": 0.0,
        "lr_floor": 0.0, "weight_decay": 0.01});
    let found = |(at, make): (usize, &&dyn Fn(&mut Folder))| {
        let mut made = Folder::good(Tiny::Llama);
        made.steps.iter_mut().for_each(|step| step.3 = 8e-5 * ((step.0 - 1) as f64 / 4.0).min(1.0));
        make(&mut made);
        let folder = dir.path().join(at.to_string());
        made.write(&folder);
        check(&folder, &expected).findings
    };
    makes.iter().enumerate().map(found).collect()
}

#[test]
fn another_learning_rate_than_planned_is_found_in_every_step_or_in_one() {
    let times = |factor: f64| move |f: &mut Folder| f.steps.iter_mut().for_each(|step| step.3 *= factor);
    let found = found_of(&[&|_| {}, &times(10.0), &times(0.0), &times(1.001), &|f| f.steps[60].3 = 0.0]);
    assert_eq!(found[0], []);
    // The first step of a warm-up has the rate 0.
    for findings in &found[1..4] {
        assert!(findings.len() == 1 && findings[0].what == "learning_rate of step 2", "{findings:#?}");
        assert!(findings[0].found.contains("and 78 more steps"), "{findings:#?}");
    }
    assert!(found[4].len() == 1 && found[4][0].what == "learning_rate of step 61", "{:#?}", found[4]);
}

/// 80 steps carry a weight by some 0.03 at most, whatever the gradients; the made folder is 0.001 away from its start.
#[test]
fn a_weight_that_no_update_reaches_is_found_by_its_tensor() {
    let found = found_of(&[&|f| f.tensor("1.mlp.up").values[7] += 0.1, &|f| {
        f.tensors.iter_mut().for_each(|tensor| tensor.values.reverse())
    }]);
    let far = &found[0];
    assert!(far.len() == 1 && far[0].what.contains("layers.1.mlp.up_proj"), "{far:#?}");
    assert!(far[0].found.starts_with("a weight 1.01e-1 away"), "{far:#?}");
    // Weights of the right shape and of another training.
    assert!(found[1].len() > 10, "{:#?}", found[1]);
}

/// The rate rises again at step 61, where the second chunk begins; without one there the optimizer was lost.
#[test]
fn a_learning_rate_rises_again_where_a_chunk_begins_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let expected = start(Tiny::Llama, &dir.path().join("start"));
    let mut folder = Folder::good(Tiny::Llama);
    folder.restart(60);
    folder.write(&dir.path().join("work"));
    let chunks = |steps: &[u64]| {
        let chunks = steps.iter().map(|&n_steps| Chunk { n_steps, warmup_steps: 0 }).collect();
        check(&dir.path().join("work"), &Expectation { chunks, ..expected.clone() }).findings
    };
    assert_eq!(chunks(&[60, 20]), []);
    assert_eq!(chunks(&[30, 30, 20]), []);
    for wrong in [&[][..], &[58, 22], &[61, 19], &[20, 60]] {
        let findings = chunks(wrong);
        assert!(findings.len() == 1 && findings[0].what == "learning_rate of step 61", "{wrong:?}: {findings:?}");
    }
}
