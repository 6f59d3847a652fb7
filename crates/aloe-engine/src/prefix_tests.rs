//! Prefixes kept from one call to the next: fewer tokens are run, and no bit of any answer depends on it.

use crate::tests::{BF16, F32, FORMATS, folder, open, page_bytes};
use crate::{Continuation, Engine, GenerateRequest, Prompt, Sampling, ScoreRequest};
use aloe_record::{Cancel, CounterRng, Progress};

fn ids(name: &str, n: usize) -> Vec<u32> {
    let mut rng = CounterRng::new(0, name, 0);
    (0..n).map(|_| 3 + rng.below(500) as u32).collect()
}

/// A question after the shots, with four options.
fn question(shots: &[u32], name: &str, n: usize) -> ScoreRequest {
    let option = |at: u32| Continuation::Ids(vec![10 + at, 20 + at, 30]);
    let prompt = Prompt::Ids([shots, &ids(name, n)].concat());
    ScoreRequest { id: name.into(), prompt, continuations: (0..4).map(option).collect() }
}

fn score(engine: &Engine, requests: &[ScoreRequest]) -> Vec<crate::ScoreResult> {
    engine.score(requests, &Progress::silent(), &Cancel::default()).unwrap()
}

fn generate(engine: &Engine, requests: &[GenerateRequest]) -> Vec<crate::GenerateResult> {
    engine.generate(requests, &Progress::silent(), &Cancel::default()).unwrap()
}

/// By hand: 300 shots, then per question 20 tokens and 4 options of which the last token is not run: 28. A chunk of two after shots
/// that are there runs 56; a single question after them 28, and what its text shares with it is not run again for an answer.
#[test]
fn shots_of_an_earlier_call_are_not_run_again_and_the_scores_have_the_same_bits() {
    let Some(folder) = folder() else { return };
    let shots = ids("shots", 300);
    let chunk = |at: usize| [question(&shots, &format!("a{at}"), 20), question(&shots, &format!("b{at}"), 20)];
    for format in FORMATS {
        let engine = open(&folder, format, 2, None);
        let mut n_before = 0;
        for (at, n_computed) in [(0, 300 + 56), (1, 56), (2, 56)] {
            let fresh = open(&folder, format, 1, None);
            assert_eq!(score(&engine, &chunk(at)), score(&fresh, &chunk(at)));
            let n_now = engine.counts().unwrap().n_computed_tokens;
            assert_eq!((n_now - n_before, fresh.counts().unwrap().n_computed_tokens), (n_computed, 356));
            n_before = n_now;
        }
        assert_eq!(score(&engine, &chunk(0)[..1]), score(&open(&folder, format, 1, None), &chunk(0)[..1]));
        assert_eq!(engine.counts().unwrap().n_computed_tokens - n_before, 28);
        let sampling = Sampling { temperature: 0.8, ..Sampling::greedy(9) };
        let answer = [GenerateRequest { id: "g".into(), prompt: chunk(0)[0].prompt.clone(), n: 3, sampling }];
        let n_before = engine.counts().unwrap().n_computed_tokens;
        assert_eq!(generate(&engine, &answer), generate(&open(&folder, format, 1, None), &answer));
        // The prompt's last token, whose logits were not kept, and 8 of 9 drawn ones of three samples.
        assert_eq!(engine.counts().unwrap().n_computed_tokens - n_before, 1 + 3 * 8);
    }
}

/// Where the rows of a prompt are asked for, they are run, kept or not.
#[test]
fn a_prompt_scored_itself_is_run_whole_after_a_call_that_kept_it() {
    let Some(folder) = folder() else { return };
    let shots = ids("shots", 200);
    let engine = open(&folder, F32, 2, None);
    score(&engine, &[question(&shots, "a", 20), question(&shots, "b", 20)]);
    let itself = ScoreRequest { continuations: Vec::new(), ..question(&shots, "a", 20) };
    let mixed = [question(&shots, "c", 20), itself, question(&shots, "d", 20)];
    assert_eq!(score(&engine, &mixed), score(&open(&folder, F32, 1, None), &mixed));
}

#[test]
fn the_next_turn_of_a_conversation_runs_only_what_is_new() {
    let Some(folder) = folder() else { return };
    let (engine, silent) = (open(&folder, BF16, 2, None), Cancel::default());
    let turn = |ids: Vec<u32>| GenerateRequest {
        id: "chat".into(),
        prompt: Prompt::Ids(ids),
        n: 1,
        sampling: Sampling::greedy(40),
    };
    let mut text = ids("first", 90);
    for at in 0..3 {
        let n_before = engine.counts().unwrap().n_computed_tokens;
        let found = engine.generate_streaming(&turn(text.clone()), &silent, &mut |_| {}).unwrap();
        let fresh = open(&folder, BF16, 1, None);
        assert_eq!(found, fresh.generate_streaming(&turn(text.clone()), &silent, &mut |_| {}).unwrap());
        let drawn = found.ids.unwrap();
        let n_new = if at == 0 { 90 } else { 1 + 7 };
        // The last token drawn was never run: it is new in the next turn.
        assert_eq!(engine.counts().unwrap().n_computed_tokens - n_before, (n_new + drawn.len() - 1) as u64);
        text.extend(drawn);
        text.extend(ids(&format!("turn {at}"), 7));
    }
}

/// Calls of all sorts in a row against an engine opened for each, in budgets from what the longest text needs (nothing can be kept)
/// to plenty. The longest text has 300 tokens: 5 pages.
#[test]
fn any_row_of_calls_gives_the_bits_of_engines_that_kept_nothing_in_any_budget() {
    let Some(folder) = folder() else { return };
    let trunks = [ids("x", 130), ids("y", 70), [ids("x", 65), ids("z", 100)].concat()];
    let wide = open(&folder, BF16, 2, None);
    let mut fewer = false;
    for (case, pages) in [5, 6, 9, 14, 40, 40].into_iter().enumerate() {
        let budget = pages * page_bytes(&wide);
        let engine = open(&folder, BF16, 2, Some(budget as usize));
        let mut rng = CounterRng::new(case as u64, "prefix-test", 0);
        let mut n_fresh = 0;
        for call in 0..6 {
            let fresh = open(&folder, BF16, 1, Some(budget as usize));
            let n = 1 + rng.below(4);
            let mut next = |at: usize| {
                let trunk = &trunks[rng.below(3)];
                let mut asked = question(trunk, &format!("{case} {call} {at}"), 1 + rng.below(80));
                asked.continuations.truncate(rng.below(5));
                asked
            };
            let asked: Vec<ScoreRequest> = (0..n).map(&mut next).collect();
            if call % 2 == 0 {
                assert_eq!(score(&engine, &asked), score(&fresh, &asked), "case {case}, call {call}");
            } else {
                let sampling = Sampling { temperature: 0.9, seed: 3, ..Sampling::greedy(30) };
                let ask = |asked: ScoreRequest| GenerateRequest {
                    id: asked.id,
                    prompt: asked.prompt,
                    n: 2,
                    sampling: sampling.clone(),
                };
                let asked: Vec<GenerateRequest> = asked.into_iter().map(ask).collect();
                assert_eq!(generate(&engine, &asked), generate(&fresh, &asked), "case {case}, call {call}");
            }
            n_fresh += fresh.counts().unwrap().n_computed_tokens;
        }
        let counts = engine.counts().unwrap();
        assert!(counts.peak_kv_bytes <= budget, "{counts:?} of {budget}");
        fewer |= pages == 40 && counts.n_computed_tokens < n_fresh;
    }
    assert!(fewer, "nothing was kept");
}
