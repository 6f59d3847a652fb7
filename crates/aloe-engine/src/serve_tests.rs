//! The worker of a server: requests that come, run together and are given up at any time, against each of them asked alone.

use crate::tests::{BF16, F32, folder, open, page_bytes};
use crate::{
    Ask, Engine, FinishReason, Gained, GenerateRequest, Job, NotTaken, Prompt, Queue, SERVED_ID, Sampling,
    ScoreRequest, Told,
};
use aloe_model::WeightFormat;
use aloe_record::{Cancel, CounterRng, Progress};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Prompts of three stems, so that many begin alike.
fn prompt(rng: &mut CounterRng) -> Vec<u32> {
    let mut ids = vec![1];
    let stem = rng.below(3) as u32;
    ids.extend((0..20 + 60 * stem).map(|at| 3 + (at * 7 + stem * 31) % 400));
    ids.extend((0..1 + rng.below(90)).map(|_| 3 + rng.below(500) as u32));
    ids
}

fn ask(rng: &mut CounterRng) -> Ask {
    let prompt = Prompt::Ids(prompt(rng));
    if rng.below(6) == 0 {
        return Ask::Embed { prompt };
    }
    if rng.below(3) == 0 {
        return Ask::Score { prompt, n_top: rng.below(4), wants_next: rng.below(2) == 0 };
    }
    let sampling = Sampling {
        max_new_tokens: 1 + rng.below(40),
        temperature: [0.0, 0.8][rng.below(2)],
        seed: rng.below(1000) as u64,
        ..Sampling::default()
    };
    let (n, n_top, ignores_eos) = (1 + rng.below(3), rng.below(3), rng.below(2) == 0);
    Ask::Generate { prompt, n, sampling: sampling.into(), ignores_eos, n_top, streams: rng.below(2) == 0 }
}

/// All that was told of a job.
#[derive(Default)]
struct Heard {
    told: Vec<Told>,
    n_due: usize,
}

/// Runs a worker beside `submit` until everything that was submitted is told.
fn serving(engine: &Engine, queue: &Queue, submit: impl FnOnce()) {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| engine.serve(queue, &Cancel::default()).unwrap());
        submit();
        queue.close();
        worker.join().unwrap();
    });
}

/// The gained parts of each sample, put together, with its end.
fn answers(told: &[Told], n: usize) -> Vec<(Gained, FinishReason)> {
    let mut whole = vec![(Gained::default(), None); n];
    for one in told {
        let (sample, gained) = match one {
            Told::Grew { sample, gained } | Told::Ended { sample, gained, .. } => (*sample, gained),
            other => panic!("{other:?}"),
        };
        whole[sample].0.ids.extend(&gained.ids);
        whole[sample].0.logps.extend(&gained.logps);
        whole[sample].0.tops.extend(gained.tops.clone());
        whole[sample].0.text.push_str(&gained.text);
        if let Told::Ended { finish_reason, .. } = one {
            whole[sample].1 = Some(*finish_reason);
        }
    }
    whole.into_iter().map(|(gained, finish)| (gained, finish.unwrap())).collect()
}

/// Holds what was told against the blocking calls, which know neither streams nor most probable tokens.
fn check(engine: &Engine, ask: &Ask, told: &[Told]) {
    let (progress, cancel) = (Progress::silent(), Cancel::default());
    match ask {
        Ask::Embed { .. } => {
            let [Told::Embedded { vector, n_tokens }] = told else { panic!("{told:?}") };
            let Engine::Local(local) = engine else { panic!("a folder is a local model") };
            assert_eq!(Some((vector.clone(), *n_tokens)), local.served_embedding(ask, || true).unwrap());
        }
        Ask::Score { prompt, n_top, wants_next } => {
            let [Told::Scored(found)] = told else { panic!("{told:?}") };
            let request = ScoreRequest { id: "x".into(), prompt: prompt.clone(), continuations: Vec::new() };
            let expected = engine.score(&[request], &progress, &cancel).unwrap().remove(0).continuations.remove(0);
            assert_eq!(found.logps[..expected.logps.len()], expected.logps);
            for (tops, (id, logp)) in found.tops.iter().zip(found.prompt_ids[1..].iter().zip(&found.logps)) {
                assert_eq!(tops.len(), *n_top);
                assert!(tops.is_sorted_by(|a, b| a.1 >= b.1), "{tops:?}");
                assert!(tops.iter().all(|top| top.0 != *id || top.1 == *logp), "{tops:?}");
            }
            assert_eq!(found.next.is_some(), *wants_next);
            if let Some(next) = found.next {
                let (prompt, sampling) = (prompt.clone(), Sampling::greedy(1));
                let request = GenerateRequest { id: "x".into(), prompt, n: 1, sampling };
                let drawn = engine.generate(&[request], &progress, &cancel).unwrap().remove(0).completions.remove(0);
                let logp = found.logps.last().map(|logp| *logp as f32);
                assert_eq!((drawn.ids, drawn.logps), (Some(vec![next]), logp.map(|logp| vec![logp])));
            }
        }
        Ask::Generate { prompt, n, sampling, ignores_eos, n_top, .. } => {
            for (sample, (gained, finish)) in answers(told, *n).into_iter().enumerate() {
                assert!(gained.tops.iter().all(|tops| tops.len() == *n_top));
                if *ignores_eos {
                    assert_eq!(finish, FinishReason::Length);
                    continue;
                }
                let sampling = Sampling { seed: sampling.seed + sample as u64, ..Sampling::clone(sampling) };
                let request = GenerateRequest { id: SERVED_ID.into(), prompt: prompt.clone(), n: 1, sampling };
                let expected = engine.generate(&[request], &progress, &cancel).unwrap().remove(0).completions.remove(0);
                let found = (Some(gained.ids), Some(gained.logps), gained.text, finish);
                assert_eq!(found, (expected.ids, expected.logps, expected.text, expected.finish_reason));
            }
        }
    }
}

/// 60 requests in groups, into a batch of four and little memory; every fourth is given up when a number of things were told.
#[test]
fn requests_that_come_and_go_are_answered_as_if_each_were_alone() {
    let Some(folder) = folder() else { return };
    let cases = [(F32, None, 2048), (BF16, Some(600_000), 64), (F32, Some(1_100_000), 32), (F32, Some(1_150_000), 64)];
    for (case, (format, budget, pack_tokens)) in cases.into_iter().enumerate() {
        let engine = open_packing(&folder, format, budget, pack_tokens);
        let queue = Queue::new(1000);
        let mut rng = CounterRng::new(case as u64, "serve-test", 0);
        let asks: Vec<Ask> = (0..60).map(|_| ask(&mut rng)).collect();
        let heard: Vec<Arc<Mutex<Heard>>> = asks.iter().map(|_| Arc::default()).collect();
        let mut given_up = Vec::new();
        serving(&engine, &queue, || {
            for (at, ask) in asks.iter().enumerate() {
                let cancel = Cancel::default();
                let patience = if rng.below(4) == 0 { rng.below(6) } else { usize::MAX };
                given_up.push(patience != usize::MAX);
                let n_due = if let Ask::Generate { n, .. } = ask { *n } else { 1 };
                let (to, ended) = (Arc::clone(&heard[at]), cancel.clone());
                to.lock().unwrap().n_due = n_due;
                if patience == 0 {
                    cancel.request(1);
                }
                let tell = Box::new(move |told: Told| {
                    let mut heard = to.lock().unwrap();
                    heard.n_due -= usize::from(!matches!(told, Told::Grew { .. }));
                    heard.told.push(told);
                    if heard.told.len() == patience {
                        ended.request(1);
                    }
                });
                queue.submit(vec![Job { ask: ask.clone(), cancel, tell }]).unwrap();
                // Some come while others run: wait for a few to end.
                while rng.below(3) == 0 && queue.n_held() > 3 {
                    std::thread::yield_now();
                }
            }
        });
        assert_eq!(queue.n_held(), 0);
        let alone = open(&folder, format, 1, None);
        for ((ask, heard), given_up) in asks.iter().zip(&heard).zip(given_up) {
            let heard = heard.lock().unwrap();
            assert!(given_up || heard.n_due == 0, "case {case}: {ask:?} has no end: {:?}", heard.told);
            if heard.n_due == 0 {
                check(&alone, ask, &heard.told);
            }
        }
        let counts = engine.counts().unwrap();
        assert!(counts.peak_kv_bytes <= counts.kv_budget_bytes, "{counts:?}");
        assert_eq!(counts.n_evictions > 0, budget.is_some(), "{counts:?}");
    }
}

/// Two threads, and so many tokens to a pass at most.
fn open_packing(folder: &Path, format: WeightFormat, budget: Option<usize>, pack_tokens: usize) -> Engine {
    let mut engine = open(folder, format, 2, budget);
    let Engine::Local(local) = &mut engine else { panic!("a folder is a local model") };
    local.pack_tokens = pack_tokens;
    engine
}

/// Ids of a text that shares nothing with another one's.
fn text(first: u32, n: u32) -> Vec<u32> {
    (0..n).map(|at| 3 + (at * 5 + first) % 500).collect()
}

/// A job whose name is noted whenever something is told of it.
fn noted(name: &'static str, ask: Ask, order: &Arc<Mutex<Vec<&'static str>>>) -> Job {
    let order = Arc::clone(order);
    let tell = Box::new(move |told: Told| {
        assert!(!matches!(told, Told::Failed { .. }), "{told:?}");
        order.lock().unwrap().push(name);
    });
    Job { ask, cancel: Cancel::default(), tell }
}

fn generate(prompt: Vec<u32>, n: usize, n_new: usize) -> Ask {
    let (prompt, sampling) = (Prompt::Ids(prompt), Sampling::greedy(n_new).into());
    Ask::Generate { prompt, n, sampling, ignores_eos: true, n_top: 0, streams: false }
}

/// Memory for seven pages, and texts of four: one answer, and scorings or embeddings without end beside it. It takes several passes to
/// come back each time that it gives way, and still ends long before them; and they do not wait for all answers either.
#[test]
fn two_sides_that_do_not_fit_together_both_get_on() {
    let Some(folder) = folder() else { return };
    let page_bytes = page_bytes(&open(&folder, F32, 1, None)) as usize;
    for embeds in [false, true] {
        let engine = open_packing(&folder, F32, Some(7 * page_bytes), 64);
        let (queue, order) = (Queue::new(999), Arc::default());
        let mut jobs: Vec<Job> =
            (0..4).map(|at| noted("answer", generate(text(499 - at, 200), 1, 40), &order)).collect();
        jobs.extend((0..80).map(|at| {
            let prompt = Prompt::Ids(text(at, 240));
            let ask = if embeds { Ask::Embed { prompt } } else { Ask::Score { prompt, n_top: 0, wants_next: false } };
            noted("other", ask, &order)
        }));
        queue.submit(jobs).unwrap();
        serving(&engine, &queue, || ());
        let order = order.lock().unwrap();
        let places: Vec<usize> = (0..order.len()).filter(|&at| order[at] == "answer").collect();
        assert!(order.len() == 84 && places[3] < 40, "answers came at {places:?} (embeddings: {embeds})");
        assert!(order[..places[3]].contains(&"other"), "answers came at {places:?} (embeddings: {embeds})");
        let counts = engine.counts().unwrap();
        assert!(counts.peak_kv_bytes <= counts.kv_budget_bytes, "{counts:?}");
    }
}

/// Four samples share their prompt's pages. Most are evicted for want of memory, and what they shared is given up too when an embedding
/// needs it.
#[test]
fn an_embedding_beside_evicted_samples_of_one_prompt_keeps_to_the_budget() {
    let Some(folder) = folder() else { return };
    let page_bytes = page_bytes(&open(&folder, F32, 1, None)) as usize;
    let engine = open(&folder, F32, 1, Some(8 * page_bytes));
    let (queue, order) = (Arc::new(Queue::new(99)), Arc::default());
    let mut streamed = generate(text(1, 255), 4, 150);
    if let Ask::Generate { streams, .. } = &mut streamed {
        *streams = true;
    }
    let mut job = noted("answers", streamed, &order);
    let (to, told, mut n_told) = (Arc::clone(&queue), Arc::clone(&order), 0);
    job.tell = Box::new(move |_| {
        n_told += 1;
        // By then two samples have outgrown the memory and one is evicted; it shares the prompt with the one that goes on.
        if n_told == 150 {
            let _ = to.submit(vec![noted("embedding", Ask::Embed { prompt: Prompt::Ids(text(9, 500)) }, &told)]);
        }
    });
    queue.submit(vec![job]).unwrap();
    serving(&engine, &queue, || {
        while order.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
    });
    let counts = engine.counts().unwrap();
    assert!(counts.n_evictions > 0 && counts.peak_kv_bytes <= counts.kv_budget_bytes, "{counts:?}");
}

/// Four requests of many samples leave no room for others. Those that wait behind them and are given up take no places.
#[test]
fn what_waits_and_is_given_up_takes_no_place_while_the_batch_is_full() {
    let Some(folder) = folder() else { return };
    let engine = open(&folder, F32, 1, None);
    let (queue, order) = (Arc::new(Queue::new(20)), Arc::default());
    let mut jobs: Vec<Job> = (0..4).map(|at| noted("long", generate(vec![1, 5 + at], 10, 20), &order)).collect();
    let cancel = Cancel::default();
    for at in 0..16 {
        let ask = match at % 3 {
            0 => generate(vec![1, 99], 1, 5),
            1 => Ask::Score { prompt: Prompt::Ids(vec![1, 9, 5]), n_top: 0, wants_next: false },
            _ => generate(vec![1, 98], 2, 5),
        };
        jobs.push(Job { cancel: cancel.clone(), ..noted("gone", ask, &order) });
    }
    let (asked, found) = (Arc::clone(&queue), Arc::new(Mutex::new(Vec::new())));
    let held = Arc::clone(&found);
    jobs[0].tell = Box::new(move |_| {
        held.lock().unwrap().push(asked.n_held());
        cancel.request(1);
    });
    queue.submit(jobs).unwrap();
    serving(&engine, &queue, || ());
    let found = found.lock().unwrap();
    assert!(found[0] > 4 && found[2..].iter().all(|&n| n <= 4), "{found:?}");
}

/// 40 samples of 100 tokens in a batch of four, and a short request after them: it starts when the next sample would.
#[test]
fn a_request_does_not_wait_for_all_samples_of_another() {
    let Some(folder) = folder() else { return };
    let engine = open(&folder, F32, 1, None);
    let (queue, order) = (Queue::new(9), Arc::new(Mutex::new(Vec::new())));
    let job = |name: &'static str, n: usize, max_new_tokens: usize| {
        let (prompt, sampling) = (Prompt::Ids(vec![1, 5, 9]), Sampling::greedy(max_new_tokens).into());
        let ask = Ask::Generate { prompt, n, sampling, ignores_eos: true, n_top: 0, streams: false };
        let order = Arc::clone(&order);
        Job { ask, cancel: Cancel::default(), tell: Box::new(move |_| order.lock().unwrap().push(name)) }
    };
    queue.submit(vec![job("long", 40, 100), job("short", 1, 5)]).unwrap();
    serving(&engine, &queue, || ());
    let order = order.lock().unwrap();
    let at = order.iter().position(|name| *name == "short").unwrap();
    assert!(order.len() == 41 && at < 4, "{at} answers came first");
}

/// A prompt of 400 tokens is run in pieces; given up before the first, none of it is run, and the prompts before and behind it are.
#[test]
fn the_rest_of_a_prompt_that_is_given_up_is_not_run() {
    let Some(folder) = folder() else { return };
    let mut engine = open(&folder, F32, 1, None);
    let Engine::Local(local) = &mut engine else { panic!("a folder is a local model") };
    local.pack_tokens = 64;
    let ids = |from: u32, n: u32| -> Vec<u32> { (0..n).map(|at| 3 + (at * 5 + from) % 500).collect() };
    let cancel = Cancel::default();
    let (told, count) =
        (Arc::new(Mutex::new(Vec::new())), |engine: &Engine| engine.counts().unwrap().n_computed_tokens);
    let queue = Queue::new(9);
    let score = |from, n| Ask::Score { prompt: Prompt::Ids(ids(from, n)), n_top: 0, wants_next: false };
    let short = {
        let cancel = cancel.clone();
        let told = Arc::clone(&told);
        // The shorter one is told first and ends the longer one.
        Box::new(move |one: Told| {
            told.lock().unwrap().push(one);
            cancel.request(1);
        })
    };
    let long = Job { ask: score(7, 400), cancel: cancel.clone(), tell: Box::new(|told| panic!("{told:?}")) };
    let behind = {
        let told = Arc::clone(&told);
        Box::new(move |one: Told| told.lock().unwrap().push(one))
    };
    let behind = Job { ask: score(20, 60), cancel: Cancel::default(), tell: behind };
    queue.submit(vec![Job { ask: score(0, 60), cancel: Cancel::default(), tell: short }, long, behind]).unwrap();
    serving(&engine, &queue, || ());
    assert_eq!(told.lock().unwrap().len(), 2);
    assert!(count(&engine) < 200, "{} tokens were run", count(&engine));
}

/// Of two answers of 150 tokens one is given up at its third token: it takes no part in the passes that the other goes on with.
#[test]
fn an_answer_that_is_given_up_ends_at_the_next_token_beside_one_that_goes_on() {
    let Some(folder) = folder() else { return };
    let engine = open(&folder, F32, 1, None);
    let queue = Queue::new(9);
    let job = |first: u32, patience: usize| {
        let (prompt, sampling) = (Prompt::Ids(vec![1, first]), Sampling::greedy(150).into());
        let ask = Ask::Generate { prompt, n: 1, sampling, ignores_eos: true, n_top: 0, streams: true };
        let cancel = Cancel::default();
        let (ended, mut n_told) = (cancel.clone(), 0);
        let tell = Box::new(move |_| {
            n_told += 1;
            if n_told == patience {
                ended.request(1);
            }
        });
        Job { ask, cancel, tell }
    };
    queue.submit(vec![job(5, 3), job(9, usize::MAX)]).unwrap();
    serving(&engine, &queue, || ());
    let counts = engine.counts().unwrap();
    assert!((150..170).contains(&counts.n_computed_tokens), "{counts:?}");
}

#[test]
fn a_request_that_cannot_be_answered_is_told_so_and_the_others_go_on() {
    let Some(folder) = folder() else { return };
    let engine = open(&folder, F32, 1, None);
    let queue = Queue::new(9);
    let told = Arc::new(Mutex::new(Vec::new()));
    let job = |number: usize, prompt: Vec<u32>| {
        let told = Arc::clone(&told);
        let (prompt, sampling) = (Prompt::Ids(prompt), Sampling::greedy(3).into());
        let ask = Ask::Generate { prompt, n: 1, sampling, ignores_eos: true, n_top: 0, streams: false };
        Job { ask, cancel: Cancel::default(), tell: Box::new(move |one| told.lock().unwrap().push((number, one))) }
    };
    let score = |number: usize, prompt: Vec<u32>| {
        let ask = Ask::Score { prompt: Prompt::Ids(prompt), n_top: 0, wants_next: false };
        Job { ask, ..job(number, Vec::new()) }
    };
    queue
        .submit(vec![
            job(0, vec![1, 9000]),
            job(1, vec![1, 5]),
            job(2, vec![5; 600]),
            score(3, vec![]),
            score(4, vec![1, 5]),
        ])
        .unwrap();
    serving(&engine, &queue, || ());
    let mut told = std::mem::take(&mut *told.lock().unwrap());
    told.sort_by_key(|(number, _)| *number);
    assert_eq!(told.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    for (number, one) in told {
        match (number, one) {
            (0 | 2 | 3, Told::Failed { is_request: true, reason }) => assert!(!reason.contains(SERVED_ID), "{reason}"),
            (1, Told::Ended { gained, .. }) => assert_eq!(gained.ids.len(), 3),
            (4, Told::Scored(scored)) => assert_eq!(scored.logps.len(), 1),
            (number, other) => panic!("{number}: {other:?}"),
        }
    }
    let closed = queue.submit(vec![job(5, vec![1])]);
    assert_eq!(closed, Err(NotTaken::Closed));
}

/// A copy of the model with an output matrix of its own, and a token whose embedding is no number: texts with it have no logits.
fn with_a_broken_token(folder: &Path, token: usize, to: &Path) {
    std::fs::copy(folder.join("tokenizer.json"), to.join("tokenizer.json")).unwrap();
    std::fs::copy(folder.join("tokenizer_config.json"), to.join("tokenizer_config.json")).unwrap();
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let untied = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    assert_ne!(untied, config);
    std::fs::write(to.join("config.json"), untied).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let mut data = bytes[start..].to_vec();
    let mut own = header["model.embed_tokens.weight"].clone();
    let offset = |at: usize| own["data_offsets"][at].as_u64().unwrap() as usize;
    let (from, end, row) = (offset(0), offset(1), 64 * 4);
    let embeddings = data[from..end].to_vec();
    own["data_offsets"] = serde_json::json!([data.len(), data.len() + embeddings.len()]);
    header["lm_head.weight"] = own;
    data.extend(embeddings);
    data[from + token * row..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut header = header.to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let whole = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(to.join("model.safetensors"), whole).unwrap();
}

/// Of each kind one request with the broken token, and one without it in the same passes.
#[test]
fn a_request_whose_logits_are_not_finite_fails_alone() {
    let Some(folder) = folder() else { return };
    let broken = tempfile::tempdir().unwrap();
    with_a_broken_token(&folder, 300, broken.path());
    let (engine, queue) = (open(broken.path(), F32, 1, None), Queue::new(99));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let mut asks = Vec::new();
    for odd in [5, 300] {
        let prompt = Prompt::Ids(vec![1, 7, odd, 9]);
        asks.push(generate(vec![1, 7, odd, 9], 3, 10));
        asks.push(Ask::Score { prompt: prompt.clone(), n_top: 1, wants_next: true });
        asks.push(Ask::Embed { prompt });
    }
    let job = |(at, ask): (usize, &Ask)| {
        let heard = Arc::clone(&heard);
        let tell = Box::new(move |told: Told| heard.lock().unwrap().push((at, told)));
        Job { ask: ask.clone(), cancel: Cancel::default(), tell }
    };
    queue.submit(asks.iter().enumerate().map(job).collect()).unwrap();
    serving(&engine, &queue, || ());
    for (at, ask) in asks.iter().enumerate() {
        let heard = heard.lock().unwrap();
        let told: Vec<Told> = heard.iter().filter(|(to, _)| *to == at).map(|(_, told)| told.clone()).collect();
        if at < 3 {
            check(&engine, ask, &told);
        } else {
            let [Told::Failed { is_request: false, reason }] = told.as_slice() else { panic!("{told:?}") };
            assert!(reason.contains("not finite"), "{reason}");
        }
    }
    assert_eq!(queue.n_held(), 0);
}
