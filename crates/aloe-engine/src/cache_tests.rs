//! A damaged log, byte by byte: each flip costs answers at most and never gives a wrong one.

use crate::{Engine, EngineOptions, Prompt, ScoreRequest};
use aloe_record::{Cancel, Progress};
use std::path::{Path, PathBuf};

fn ask(model: &Path, cache: &Path) -> (Vec<crate::ScoreResult>, u64) {
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let engine = Engine::open(model.to_str().unwrap(), &options).unwrap().with_answer_cache(cache).unwrap();
    let one = |ids: &[u32]| ScoreRequest { id: "q".into(), prompt: Prompt::Ids(ids.to_vec()), continuations: vec![] };
    let requests = [one(&[1, 403, 407]), one(&[1, 350, 407])];
    let results = engine.score(&requests, &Progress::silent(), &Cancel::default()).unwrap();
    (results, engine.cache_counts().unwrap().n_hits)
}

#[test]
fn no_flipped_byte_of_a_cache_gives_a_wrong_answer() {
    let Ok(data) = std::env::var("ALOE_DATA") else {
        assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_DATA is not set");
        eprintln!("not run: ALOE_DATA is not set");
        return;
    };
    let model = PathBuf::from(data).join("models/stories260K");
    let dir = tempfile::tempdir().unwrap();
    let (expected, _) = ask(&model, dir.path());
    let log = dir.path().join("answers.log");
    let whole = std::fs::read(&log).unwrap();
    assert_eq!(ask(&model, dir.path()), (expected.clone(), 2));
    for at in (0..whole.len()).step_by(5) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&log, &bytes).unwrap();
        let (found, n_hits) = ask(&model, dir.path());
        assert!(found == expected && n_hits < 2, "byte {at}: {n_hits} hits");
    }
}
