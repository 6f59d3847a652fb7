//! Held-out evaluations: how many there must be, of what, and what patience and the best of them decide.

use super::*;

/// A folder of `n_steps` steps with these evaluations (step, loss as Python writes it, tokens), 6 held-out rows of 90 predicted tokens, and the best
/// step's checkpoint loaded.
fn checked(config: Value, evaluations: &[(u64, &str, u64)], n_steps: u64, best: Value) -> Verdict {
    let name = best.as_u64().map(|step| format!("checkpoint-{step}"));
    let path = name.as_ref().map(|name| format!("work/sft/{name}"));
    checked_with(config, evaluations, n_steps, (best, json!(path), json!(name)))
}

/// The same with what the state says of the best step and of its checkpoint, and what was loaded.
fn checked_with(
    config: Value,
    evaluations: &[(u64, &str, u64)],
    n_steps: u64,
    (best, best_path, loaded): (Value, Value, Value),
) -> Verdict {
    checked_by(config, evaluations, n_steps, (best, best_path, loaded), true)
}

/// The same, by a plan whose start script does or does not say what it loads.
fn checked_by(
    config: Value,
    evaluations: &[(u64, &str, u64)],
    n_steps: u64,
    (best, best_path, loaded): (Value, Value, Value),
    tells_loaded: bool,
) -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = start(Tiny::Llama, &dir.path().join("start"));
    (expected.evaluates_held_out, expected.tells_loaded) = (true, tells_loaded);
    let counts = Counts { n_held_out: 6, n_held_out_targets: 90, ..Counts::default() };
    expected.stage = PlannedStage { kind: "sft".to_owned(), config, counts, ..PlannedStage::default() };
    let mut made = Folder::good(Tiny::Llama);
    made.steps.truncate(n_steps as usize);
    made.log.truncate(n_steps as usize);
    (made.global_step, made.sessions) = (n_steps, vec![begin(0), end(n_steps)]);
    made.sessions[1]["best_loaded"] = loaded;
    let folder = dir.path().join("work");
    made.write(&folder);
    let entry = |(step, loss, n): &(u64, &str, u64)| {
        format!(r#"{{"step": {step}, "eval_loss": {loss}, "eval_targets": {n}, "epoch": 0.1}},"#)
    };
    let entries: String = evaluations.iter().map(entry).collect();
    let path = folder.join("trainer_state.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let with =
        format!(r#""best_global_step": {best}, "best_model_checkpoint": {best_path}, "log_history": [{entries}"#);
    std::fs::write(&path, text.replacen(r#""log_history": ["#, &with, 1)).unwrap();
    check(&folder, &expected)
}

fn asks(eval_every: u64, patience: u64, keep_best: bool) -> Value {
    json!({"eval_every": eval_every, "patience": patience, "keep_best": keep_best})
}

const FOUR: [(u64, &str, u64); 5] =
    [(0, "2.5", 90), (20, "2.0", 90), (40, "1.5", 90), (60, "1.7", 90), (80, "1.75", 90)];

#[test]
fn figures_before_and_after_are_those_of_the_start_and_of_the_weights_that_are_written() {
    for (keep_best, after, exported) in [(false, 1.75, 80), (true, 1.5, 40)] {
        let verdict = checked(asks(20, 0, keep_best), &FOUR, 80, json!(40));
        assert!(verdict.is_good(), "{:#?}", verdict.findings);
        let held_out = verdict.facts.held_out.unwrap();
        let said = held_out.report("sft", 6);
        let expected = [("held_out_nll_before", 2.5), ("held_out_nll_after", after), ("n_held_out_targets", 90.0)];
        for (name, value) in expected {
            assert_eq!(said[name].as_f64(), Some(value), "{name}: {said:?}");
        }
        assert_eq!((held_out.exported_step, held_out.last_step), (exported, 80));
        assert_eq!(held_out.notices(80).len(), usize::from(keep_best));
    }
    // Asked for no number of steps: before and after.
    let two = [FOUR[0], FOUR[4]];
    assert_eq!(checked(asks(0, 0, false), &two, 80, Value::Null).findings, []);
}

/// 1.7 and 1.75 are no better than 1.5: patience 2 ends the training at step 80 of itself, patience 1 at step 60.
#[test]
fn patience_ends_a_training_where_the_log_says_so_and_nowhere_else() {
    let verdict = checked(asks(20, 1, false), &FOUR[..4], 60, Value::Null);
    assert!(verdict.is_good(), "{:#?}", verdict.findings);
    let notices = verdict.facts.held_out.unwrap().notices(80);
    assert!(notices.len() == 1 && notices[0].starts_with("stopped after step 60"), "{notices:?}");
    // Too early, too late, and without having been asked for.
    for (patience, n_steps, n_evaluations) in [(1, 40, 3), (1, 80, 5), (2, 60, 4), (0, 60, 4)] {
        let findings = checked(asks(20, patience, false), &FOUR[..n_evaluations], n_steps, Value::Null).findings;
        let named = findings.iter().any(|one| one.what == "global_step");
        assert!(named, "patience {patience}, {n_steps} steps: {findings:#?}");
    }
}

#[test]
fn a_missing_evaluation_one_of_fewer_rows_no_number_and_other_weights_than_the_best_are_found() {
    let with = |at: usize, entry: (u64, &'static str, u64)| {
        let mut all = FOUR;
        all[at] = entry;
        all
    };
    type Case<'a> = (&'a [(u64, &'a str, u64)], Value, &'a str);
    let cases: [Case<'_>; 6] = [
        (&FOUR[1..], json!(40), "steps of held-out evaluations"),
        (&FOUR[..4], json!(40), "steps of held-out evaluations"),
        (&with(2, (40, "1.5", 89)), json!(40), "eval_targets of step 40"),
        (&with(3, (60, "NaN", 90)), json!(40), "eval_loss of step 60"),
        (&FOUR, json!(80), "best_global_step, whose weights are written (keep_best)"),
        (&FOUR, Value::Null, "best_global_step, whose weights are written (keep_best)"),
    ];
    for (evaluations, best, what) in cases {
        let findings = checked(asks(20, 0, true), evaluations, 80, best).findings;
        assert!(findings.len() == 1 && findings[0].what == what, "{what}: {findings:#?}");
    }
}

/// The best of `FOUR` is step 40. transformers forgets a checkpoint that is gone, says so in its log, and exports the last weights.
#[test]
fn the_best_step_alone_does_not_vouch_for_the_weights_that_were_loaded() {
    let with = |path: Value, loaded: Value| {
        let found = checked_with(asks(20, 0, true), &FOUR, 80, (json!(40), path, loaded)).findings;
        found.into_iter().map(|one| format!("{}: {}", one.file, one.what)).collect::<Vec<_>>()
    };
    let (best, other) = (json!("checkpoint-40"), json!("checkpoint-80"));
    let of_path = "trainer_state.json: best_model_checkpoint, whose weights are written (keep_best)";
    let of_weights = "sessions.jsonl: best_loaded, the weights that were written (keep_best)";
    assert_eq!(with(json!("work/sft/checkpoint-40"), best.clone()), [""; 0]);
    // As another site's absolute path, too.
    assert_eq!(with(json!("/elsewhere/work/sft/checkpoint-40"), best.clone()), [""; 0]);
    for path in [Value::Null, json!("work/sft/checkpoint-80"), json!("work/sft/checkpoint-400"), json!("")] {
        assert_eq!(with(path.clone(), best.clone()), [of_path], "{path}");
    }
    for loaded in [Value::Null, other, json!("checkpoint-4"), json!(40)] {
        assert_eq!(with(json!("work/sft/checkpoint-40"), loaded.clone()), [of_weights], "{loaded}");
    }
    assert_eq!(with(Value::Null, Value::Null), [of_path, of_weights]);
    // By a plan of an earlier version nobody says it.
    let of_earlier = |path: &str| {
        let said = (json!(40), json!(path), Value::Null);
        checked_by(asks(20, 0, true), &FOUR, 80, said, false).findings.len()
    };
    assert_eq!((of_earlier("work/sft/checkpoint-40"), of_earlier("work/sft/checkpoint-80")), (0, 1));
    // Not asked for: what is loaded is not looked at.
    let nothing = (Value::Null, Value::Null, Value::Null);
    assert_eq!(checked_with(asks(20, 0, false), &FOUR, 80, nothing).findings, []);
}
