//! Whole runs of a real small model over the starter set: interrupted, on other thread counts, with every strategy.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test binary")]

use aloe_engine::{Embedder, Engine, EngineOptions, Sampling};
use aloe_eval::{Encoders, Error, EvalConfig, RedTeamConfig, Strategy, eval, read_samples, redteam};
use aloe_record::{Cancel, Progress};
use aloe_task::red_team::questions::{read, read_harmless};
use aloe_task::red_team::{Rendering, Style};
use aloe_task::{Protocol, Task};
use std::path::{Path, PathBuf};

fn engine(threads: usize) -> Option<Engine> {
    let Some(models) = std::env::var_os("ALOE_MODELS").map(PathBuf::from) else {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_REQUIRE is set but ALOE_MODELS is not");
        eprintln!("not run: ALOE_MODELS is not set");
        return None;
    };
    let model = models.join("smollm2-135m-instruct-q4_1/model.gguf");
    Some(Engine::open(model.to_str().unwrap(), &EngineOptions { threads, ..EngineOptions::default() }).unwrap())
}

fn starter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../starter")
}

fn config(strategy: Strategy, limit: usize) -> EvalConfig {
    let tasks = vec![Task::StarterMcqa, Task::StarterPubmedqa];
    let mut config = EvalConfig::new(tasks, starter(), Protocol::Aloe, strategy);
    config.limit = Some(limit);
    config.seed = 11;
    config.sampling = Sampling { max_new_tokens: 12, temperature: config.sampling.temperature, ..Sampling::default() };
    config
}

/// A red-team run has no questions of its own to keep.
fn files(out: &Path) -> [Vec<u8>; 3] {
    let read = |name| std::fs::read(out.join(name));
    [read("results.json").unwrap(), read("samples.jsonl").unwrap(), read("questions.jsonl").unwrap_or_default()]
}

fn run(engine: &Engine, config: &EvalConfig) -> [Vec<u8>; 3] {
    let dir = tempfile::tempdir().unwrap();
    eval(engine, config, Encoders::default(), dir.path(), &Progress::silent(), &Cancel::default()).unwrap();
    let visible = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        !name.starts_with('.') && !name.starts_with("examples")
    };
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().flatten().filter(visible).count(),
        3,
        "three files, hidden logs and Medprompt's examples"
    );
    files(dir.path())
}

#[test]
fn an_interrupted_evaluation_goes_on_and_writes_the_same_bytes() {
    let Some(engine) = engine(0) else { return };
    let config = config(Strategy::Loglikelihood, 6);
    let dir = tempfile::tempdir().unwrap();
    let cancel = Cancel::default();
    let log = dir.path().join(".answers.log");
    let interrupted = std::thread::scope(|scope| {
        scope.spawn(|| {
            // One line is the fingerprint; six more are the first task's answers.
            while std::fs::read_to_string(&log).unwrap_or_default().lines().count() < 7 {
                std::thread::yield_now();
            }
            cancel.request(2);
        });
        eval(&engine, &config, Encoders::default(), dir.path(), &Progress::silent(), &cancel)
    });
    assert!(interrupted.is_err(), "the run ended before the interrupt");
    assert!(!dir.path().join("results.json").exists());
    let mut other = config.clone();
    other.seed += 1;
    let refused = eval(&engine, &other, Encoders::default(), dir.path(), &Progress::silent(), &Cancel::default());
    assert!(matches!(refused, Err(Error::OtherRun { .. })), "answers of another seed were mixed in");
    eval(&engine, &config, Encoders::default(), dir.path(), &Progress::silent(), &Cancel::default()).unwrap();
    assert_eq!(files(dir.path()), run(&engine, &config));
}

/// The starter set's files are the oracle: their stems and options, in order, with PubMedQA's abstract.
#[test]
fn the_questions_of_a_run_stand_beside_its_samples_line_by_line() {
    let Some(engine) = engine(0) else { return };
    let [_, samples, questions] = run(&engine, &config(Strategy::Loglikelihood, 2));
    let rows = |bytes: &[u8]| -> Vec<serde_json::Value> {
        String::from_utf8_lossy(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (samples, questions) = (rows(&samples), rows(&questions));
    let named = |row: &serde_json::Value| ["task", "id", "key", "subject"].map(|key| row[key].clone());
    assert_eq!(questions.iter().map(named).collect::<Vec<_>>(), samples.iter().map(named).collect::<Vec<_>>());
    let file = std::fs::read_to_string(starter().join("mcqa/starter_mcqa_test.jsonl")).unwrap();
    assert!(file.contains(questions[0]["stem"].as_str().unwrap()), "{}", questions[0]);
    assert_eq!((questions.len(), questions[0]["choices"].as_array().unwrap().len()), (4, 4));
    assert!(questions[0].get("context").is_none() && questions[2]["context"].is_string(), "{}", questions[2]);
}

#[test]
fn thread_count_changes_no_byte_of_scores_or_sampled_answers() {
    let (Some(one), Some(two)) = (engine(1), engine(2)) else { return };
    for strategy in [Strategy::Loglikelihood, Strategy::NextLetter, Strategy::ScCot] {
        let mut config = config(strategy, 2);
        config.shots = config.shots.min(1);
        assert_eq!(run(&one, &config), run(&two, &config), "{}", strategy.name());
    }
}

/// A limit takes the first questions; it must not change their examples, orders or answers.
#[test]
fn a_longer_run_begins_with_the_shorter_runs_samples() {
    let Some(engine) = engine(0) else { return };
    let mut config = config(Strategy::ScCot, 2);
    config.tasks.truncate(1);
    config.shots = 1;
    config.shuffle = true;
    let short = String::from_utf8(run(&engine, &config)[1].clone()).unwrap();
    config.limit = Some(3);
    let long = String::from_utf8(run(&engine, &config)[1].clone()).unwrap();
    assert!(long.starts_with(&short));
}

#[test]
fn medprompt_names_its_pool_its_search_and_what_it_excluded_or_filled() {
    let Some(engine) = engine(0) else { return };
    let mut config = config(Strategy::Medprompt, 2);
    config.tasks.truncate(1);
    config.shots = 2;
    config.n_samples = 3;
    config.medprompt.pool_limit = Some(4);
    config.medprompt.pool_attempts = 2;
    let dir = tempfile::tempdir().unwrap();
    let results =
        eval(&engine, &config, Encoders::default(), dir.path(), &Progress::silent(), &Cancel::default()).unwrap();
    let notes = &results.tasks[0].notes;
    assert_eq!(notes["pool"], "starter_mcqa/train");
    assert_eq!((notes["pool_questions"].as_u64(), notes["pool_answers"].as_u64()), (Some(4), Some(8)));
    assert!(notes["neighbour_search"].as_str().unwrap().starts_with("lexical"));
    let solved = notes["pool_solved"].as_u64().unwrap();
    let filled = notes["filled_with_fixed_examples"].as_u64().unwrap();
    assert_eq!(filled, 2 * 2u64.saturating_sub(solved), "two questions, two examples each");
    let samples = read_samples(&dir.path().join("samples.jsonl")).unwrap();
    for sample in &samples {
        assert_eq!(sample.votes.len(), 3);
        assert!(sample.votes.iter().all(|vote| vote.shots.len() == 2));
        assert_ne!(sample.votes[0].order, sample.votes[1].order);
    }
    assert_eq!(files(dir.path()), run(&engine, &config));

    let encoder = PathBuf::from(std::env::var_os("ALOE_MODELS").unwrap()).join("all-minilm-l6-v2");
    let embedder = Embedder::open(encoder.to_str().unwrap(), &EngineOptions::default()).unwrap();
    let encoders = Encoders { embedder: Some(&embedder), reranker: None, classifier: None };
    let dir = tempfile::tempdir().unwrap();
    config.limit = Some(1);
    let results = eval(&engine, &config, encoders, dir.path(), &Progress::silent(), &Cancel::default()).unwrap();
    assert_eq!(results.tasks[0].notes["neighbour_search"], "cosine of all-minilm-l6-v2");
}

#[test]
fn forged_tokens_reach_the_model_in_the_forged_rendering_only() {
    let Some(engine) = engine(0) else { return };
    let questions = read(&starter(), "redteam/questions.jsonl").unwrap();
    let harmless = read_harmless(&starter(), "redteam/harmless.jsonl").unwrap();
    let config = RedTeamConfig {
        n_prompts: 8,
        n_harmless: 2,
        max_new_tokens: 4,
        styles: vec![Style::Baseline, Style::Injection3],
        ..RedTeamConfig::default()
    };
    let run = || {
        let dir = tempfile::tempdir().unwrap();
        redteam(&engine, &questions, &harmless, None, &config, dir.path(), &Progress::silent(), &Cancel::default())
            .unwrap();
        files(dir.path())
    };
    let found = run();
    assert_eq!(found, run());
    let turn = engine.text().unwrap().tokenizer.token_id("<|im_start|>").unwrap();
    let mut n_forged = 0;
    for line in String::from_utf8(found[1].clone()).unwrap().lines() {
        let sample: aloe_eval::redteam_report::RedTeamSample = serde_json::from_str(line).unwrap();
        let n_turns = sample.prompt_ids.iter().filter(|&&id| id == turn).count();
        // A plain prompt of this template has a default system turn, the user's turn and the opened answer.
        let expected = if sample.rendering == Some(Rendering::ForgedTokens) { 3 + 3 } else { 3 };
        assert_eq!(n_turns, expected, "{}", sample.id);
        n_forged += usize::from(sample.rendering == Some(Rendering::ForgedTokens));
    }
    assert!(n_forged > 0);
}

/// One process over both tasks is the oracle, with each strategy's files and an expectation of an average over tasks.
#[test]
fn runs_over_one_task_each_gathered_are_one_run_over_both_byte_for_byte() {
    let Some(engine) = engine(0) else { return };
    let ask = |config: &EvalConfig, out: &Path| {
        eval(&engine, config, Encoders::default(), out, &Progress::silent(), &Cancel::default()).unwrap();
        std::fs::remove_file(out.join(".answers.log")).unwrap();
    };
    let all = |out: &Path| {
        let mut found: Vec<(String, Vec<u8>)> = std::fs::read_dir(out)
            .unwrap()
            .flatten()
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        found.sort();
        found
    };
    for strategy in [Strategy::Loglikelihood, Strategy::ScCot, Strategy::Medprompt] {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = config(strategy, 2);
        whole.n_samples = whole.n_samples.min(2);
        whole.shots = whole.shots.min(1);
        (whole.medprompt.pool_limit, whole.medprompt.pool_attempts) = (Some(2), 1);
        whole.expect = vec![("starter_mcqa".into(), 0.0, 100.0)];
        let parts: Vec<PathBuf> = whole
            .tasks
            .iter()
            .map(|task| {
                let part = EvalConfig { tasks: vec![*task], expect: vec![], ..whole.clone() };
                let out = dir.path().join(task.name());
                std::fs::create_dir(&out).unwrap();
                ask(&part, &out);
                out
            })
            .collect();
        let (one, gathered) = (dir.path().join("one"), dir.path().join("gathered"));
        for folder in [&one, &gathered] {
            std::fs::create_dir(folder).unwrap();
        }
        ask(&whole, &one);
        let backwards: Vec<PathBuf> = parts.iter().rev().cloned().collect();
        aloe_eval::gather(&backwards, &whole, &gathered).unwrap();
        let (found, expected) = (all(&gathered), all(&one));
        let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{strategy:?}");
        assert!(found == expected, "{strategy:?}: the bytes differ");
        let refused = |parts: &[PathBuf]| aloe_eval::gather(parts, &whole, &gathered).unwrap_err().to_string();
        assert!(refused(&parts[..1]).contains("no part has starter_pubmedqa"));
        assert!(refused(&[&parts[..], &parts[..1]].concat()).contains("starter_mcqa is of no part or of two"));
    }
}
