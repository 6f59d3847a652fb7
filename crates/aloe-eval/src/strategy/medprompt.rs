//! Medprompt (Nori et al. 2023, 2311.16452; promptbase and prompt_engine): examples near the question, with worked answers
//! the model wrote itself and got right, most similar last; options shuffled in each sample; majority vote.
//!
//! Unlike prompt_engine, a pool question that is the test question itself is excluded and counted, unless inclusion is asked for. Where
//! fewer than `shots` pool questions are solved, fixed worked examples stand before the found ones, and are counted. Examples may come from
//! a file instead, and may be drawn or fixed instead of searched (the paper's ablations).
//!
//! Under `prompt-engine` it follows that program in four more things: the pool is the validation split; the pool is solved with as many
//! fixed examples as questions get, where we take three at most; one answer to a pool question is drawn once, not for each test question;
//! a reranker reads an example's question with its options.

use super::generate::{Plan, Shots, Voted, ask, collect};
use super::{TaskRun, item, retry};
use crate::answers::{AnswerLog, Solved};
use crate::neighbors::{self, Search};
use crate::same::SameQuestions;
use crate::{Error, Neighbours, Result, Retry};
use aloe_record::{CounterRng, Progress};
use aloe_task::wording::{fixed_shots, prompt_engine};
use aloe_task::worked::{self, Made, Worked};
use aloe_task::{ChoiceOrder, CotShot, Protocol, Question};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

/// Refuses, before anything is asked, a pool that cannot be read, that lacks fixed worked examples to be solved with, or that is too small for
/// the examples of a question even if all of it is solved.
pub(crate) fn check(run: &TaskRun) -> Result<()> {
    let (source, questions) = load_pool(run)?;
    super::check_fixed(run, &questions, n_pool_shots(run))?;
    let n_missing = run.config.shots.saturating_sub(questions.len());
    for question in run.questions {
        let found = fixed_shots(run.config.protocol, question, n_missing);
        found.map_err(|error| too_few(run, &source, questions.len(), None, &error))?;
    }
    Ok(())
}

/// Why a question does not get its examples, and what helps. `had` is, once the pool is solved, how many of its `n_pool` questions have a
/// worked answer and how many of these are the question itself.
fn too_few(run: &TaskRun, source: &str, n_pool: usize, had: Option<(usize, usize)>, error: &impl Display) -> Error {
    let solved = had.map_or_else(String::new, |(n, n_same)| match n_same {
        0 => format!(", {n} of them with a worked answer"),
        _ => format!(", {n} of them with a worked answer, of which {n_same} the question itself"),
    });
    let mut remedies = vec!["fewer shots"];
    if run.config.examples.is_some() {
        remedies.push("a file with more examples");
    } else {
        remedies.extend(run.config.medprompt.pool_limit.map(|_| "a larger pool_limit"));
        remedies.extend(had.filter(|(n, _)| *n < n_pool).map(|_| "more pool_attempts"));
    }
    Error::Config(format!(
        "{}: {} shots are asked for, and the example pool, {source}, has {n_pool} questions{solved}; fixed worked examples cannot fill the rest \
         ({error}). Take {}",
        run.task.name(),
        run.config.shots,
        remedies.join(" or ")
    ))
}

/// Questions with worked answers.
struct Pool {
    /// Where they are from.
    source: String,
    questions: Vec<Question>,
    /// In the order of `questions`.
    solved: Vec<Solved>,
    n_refused: usize,
}

/// Solves the pool or reads it from a file, then finds each question's neighbours among the solved ones. The examples go to
/// `examples.json`, or `examples_TASK.json` where there are several tasks.
pub(crate) fn prepare(run: &TaskRun, log: &mut AnswerLog, out: &Path) -> Result<Plan> {
    let pool = match &run.config.examples {
        Some(path) => from_file(run, path)?,
        None => {
            let (source, questions) = load_pool(run)?;
            let (solved, n_refused) = solve(run, &questions, log)?;
            Pool { source, questions, solved, n_refused }
        }
    };
    if run.config.examples.is_none() {
        // Of an interrupted run over one task.
        let _ = std::fs::remove_file(out.join("examples.json"));
        let several = run.config.tasks.len() > 1;
        let name = if several { format!("examples_{}.json", run.task.name()) } else { "examples.json".to_owned() };
        let entries = pool.questions.iter().zip(&pool.solved).map(|(question, solved)| worked::Entry {
            question,
            n_attempts: solved.n_attempts,
            right: &solved.right,
        });
        worked::write(&out.join(name), entries)?;
    }
    let examples: Vec<(&Question, &Solved)> =
        pool.questions.iter().zip(&pool.solved).filter(|(_, solved)| !solved.right.is_empty()).collect();
    let questions: Vec<&Question> = examples.iter().map(|(example, _)| *example).collect();
    let mut counts = Counts::default();
    let chooser = Chooser { run, pool: &pool, search: search(run, &questions, &mut counts)?, examples: &examples };
    let held = Held::of(run, &pool);
    let (mut shots, mut n_same) = (Vec::new(), Vec::new());
    for index in 0..run.questions.len() {
        run.cancel.check()?;
        let (n_in_pool, same) = held.places(&run.questions[index]);
        n_same.push(n_in_pool);
        shots.push(chooser.shots_of(index, &same, &mut counts)?);
    }
    let notes = notes(run, &pool, &chooser, &counts);
    let shots = Shots::PerQuestion(shots);
    Ok(Plan { shots, n_samples: run.config.n_samples, shuffle: run.config.shuffle, n_same: Some(n_same), notes })
}

/// Which pool questions are a test question itself: all of them, since the model was shown, or could have been shown, the question by
/// whether the pool holds it and not by whether it was solved; and of these the solved ones, which are left out as examples.
struct Held {
    same: SameQuestions,
    /// The place among the examples of each pool question; none of one that was not solved.
    examples: Vec<Option<usize>>,
}

impl Held {
    fn of(run: &TaskRun, pool: &Pool) -> Self {
        let questions: Vec<&Question> = pool.questions.iter().collect();
        let mut n_examples = 0;
        let place = |solved: &Solved| {
            (!solved.right.is_empty()).then(|| {
                n_examples += 1;
                n_examples - 1
            })
        };
        let examples = pool.solved.iter().map(place).collect();
        Self { same: SameQuestions::of(&questions, run.config.medprompt.same_question_jaccard), examples }
    }

    /// How many pool questions are `test` itself, and the places of those among the examples, in order.
    fn places(&self, test: &Question) -> (usize, Vec<usize>) {
        let same = self.same.places(test);
        (same.len(), same.iter().filter_map(|&place| self.examples[place]).collect())
    }
}

#[derive(Default)]
struct Counts {
    excluded: usize,
    included: usize,
    filled: usize,
    /// Texts that an encoder did not read whole, each time it was given one.
    cut: usize,
}

fn notes(run: &TaskRun, pool: &Pool, chooser: &Chooser, counts: &Counts) -> Map<String, Value> {
    let n_tried: usize = pool.solved.iter().map(|one| one.n_attempts).sum();
    let right = || pool.solved.iter().flat_map(|one| &one.right);
    let mut made: BTreeMap<&str, usize> = BTreeMap::new();
    right().for_each(|one| *made.entry(one.made.words()).or_default() += 1);
    let reranker = run.encoders.reranker.map_or_else(String::new, |one| format!(", reranked by {}", one.name()));
    let search = match run.config.medprompt.neighbours {
        Neighbours::Nearest => chooser.search.as_ref().map_or_else(String::new, Search::name) + &reranker,
        Neighbours::Random => "none: drawn at random (ablation)".to_owned(),
        Neighbours::Static => "none: the pool's first (ablation)".to_owned(),
    };
    let notes = json!({
        "pool": pool.source, "pool_questions": pool.questions.len(), "pool_solved": chooser.examples.len(),
        "pool_answers": n_tried, "pool_answers_right": right().count(), "pool_answers_made": made,
        "neighbour_search": search, "excluded_as_the_question_itself": counts.excluded,
        "filled_with_fixed_examples": counts.filled,
    });
    let mut notes = if let Value::Object(map) = notes { map } else { Map::new() };
    let more = [
        ("included_although_the_question_itself", counts.included),
        ("pool_refused", pool.n_refused),
        ("texts_cut_by_encoders", counts.cut),
    ];
    more.into_iter().filter(|(_, n)| *n > 0).for_each(|(name, n)| {
        notes.insert(name.into(), n.into());
    });
    notes
}

fn from_file(run: &TaskRun, path: &Path) -> Result<Pool> {
    let (mut questions, mut solved) = (Vec::new(), Vec::new());
    for (index, (question, n_attempts, right)) in worked::read(path)?.into_iter().enumerate() {
        let (task, id) = (run.task.name(), question.id.clone());
        solved.push(Solved { task, index, id, n_attempts, right });
        questions.push(question);
    }
    let source = format!("a file with sha256 {}", worked::file_digest(path)?);
    Ok(Pool { source, questions, solved, n_refused: 0 })
}

/// The pool ([`crate::EvalConfig::pool_of`]). Never a reported set.
fn load_pool(run: &TaskRun) -> Result<(String, Vec<Question>)> {
    let (task, split) = run.config.pool_of(run.task);
    if (task, split) == (run.task, run.config.split) {
        let reason = format!(
            "medprompt takes its examples from {}'s {} split, which is under evaluation",
            task.name(),
            split.name()
        );
        return Err(Error::Config(reason));
    }
    let mut pool = task.load(&run.config.data_dir, split)?;
    if let Some(limit) = run.config.medprompt.pool_limit
        && limit < pool.len()
    {
        let mut indices: Vec<usize> = (0..pool.len()).collect();
        CounterRng::new(run.config.seed, "medprompt-pool", item(run.task, "")).shuffle(&mut indices);
        indices.truncate(limit);
        indices.sort_unstable();
        pool = indices.into_iter().map(|index| pool[index].clone()).collect();
    }
    Ok((format!("{}/{}", task.name(), split.name()), pool))
}

/// Fixed worked examples while the pool is solved: ours are three at most, which solves as well and costs less.
fn n_pool_shots(run: &TaskRun) -> usize {
    if run.config.protocol == Protocol::PromptEngine { run.config.shots } else { run.config.shots.min(3) }
}

/// Attempts at every pool question with the fixed worked examples and shuffled options; right ones are kept. And how many questions
/// the model or its server refused.
fn solve(run: &TaskRun, pool: &[Question], log: &mut AnswerLog) -> Result<(Vec<Solved>, usize)> {
    let mut solved = log.solved_of(run.task, pool)?;
    let n = run.config.medprompt.pool_attempts;
    let missing: Vec<usize> = (0..pool.len()).filter(|&at| solved[at].is_none()).collect();
    let mut n_solved = pool.len() - missing.len();
    run.progress.grow(pool.len() as u64);
    run.progress.resume(n_solved as u64);
    for window in missing.chunks((run.engine.window_requests() / n).max(1)) {
        run.cancel.check()?;
        let asked = window.iter().map(|&index| {
            let question = &pool[index];
            let shots = fixed_shots(run.config.protocol, question, n_pool_shots(run))?;
            ask(run, question, &shots, n, true, &format!("pool/{}/{}", run.task.name(), question.id))
        });
        let asked = asked.collect::<Result<Vec<_>>>()?;
        let take = &mut |at: usize, voted: Voted| {
            run.progress.message(&format!("{}: worked examples {n_solved} of {}", run.task.name(), pool.len()));
            // A refused question is kept too, as one without attempts: asked again, it would change the pool under answered questions.
            let one = solved_by(run, window[at], &pool[window[at]], &voted);
            log.append_solved(&pool[window[at]], &one)?;
            run.progress.advance(1);
            n_solved += 1;
            solved[window[at]] = Some(one);
            Ok(())
        };
        let collected = match run.config.retry {
            Retry::None => collect(run, &asked, take),
            Retry::PromptEngine => retry::collect(run, &asked, retry::POOL_PASSES, take),
        };
        log.sync(true)?;
        let places = || super::places(format!("pool/{}", run.task.name()), pool);
        collected.map_err(|error| error.at_question(places()))?;
        run.engine.forget_answers()?;
    }
    run.progress.message(&run.task.name());
    let solved: Vec<Solved> = solved.into_iter().flatten().collect();
    let n_refused = solved.iter().filter(|one| one.n_attempts == 0).count();
    Ok((solved, n_refused))
}

/// The attempts at a pool question that reached its key; a question that was refused has none.
fn solved_by(run: &TaskRun, index: usize, question: &Question, voted: &Voted) -> Solved {
    let votes = voted.as_ref().map_or(&[][..], |(votes, _)| votes.as_slice());
    let right = votes.iter().filter(|vote| vote.answer == Some(question.key));
    let worked = |vote: &crate::Vote| Worked {
        order: vote.order.clone(),
        text: vote.text.trim().to_owned(),
        n_tokens: vote.ids.as_ref().map(|ids| (vote.prompt_ids.len(), ids.len())),
        made: Made::SelfGenerated,
    };
    Solved {
        task: run.task.name(),
        index,
        id: question.id.clone(),
        n_attempts: votes.len(),
        right: right.map(worked).collect(),
    }
}

/// `None` where examples are not searched for.
fn search(run: &TaskRun, pool: &[&Question], counts: &mut Counts) -> Result<Option<Search>> {
    if run.config.medprompt.neighbours != Neighbours::Nearest {
        return Ok(None);
    }
    let pool: Vec<String> = pool.iter().map(|question| question.stem.clone()).collect();
    let Some(embedder) = run.encoders.embedder else {
        return Ok(Some(Search::lexical(&pool)));
    };
    let questions: Vec<String> = run.questions.iter().map(|question| question.stem.clone()).collect();
    let mut embed = |texts: &[String]| -> Result<Vec<Vec<f32>>> {
        let found = embedder.embed(texts, &Progress::silent(), run.cancel)?;
        counts.cut += found.iter().filter(|one| one.n_cut_tokens > 0).count();
        Ok(found.into_iter().map(|one| one.vector).collect())
    };
    Ok(Some(Search::embedded(embedder.name(), embed(&pool)?, embed(&questions)?)))
}

/// Chooses each question's examples.
struct Chooser<'a> {
    run: &'a TaskRun<'a>,
    pool: &'a Pool,
    search: Option<Search>,
    examples: &'a [(&'a Question, &'a Solved)],
}

impl Chooser<'_> {
    /// The examples of question `index`: fixed ones first where too few are found, then the pool's, the nearest last. `same` are the
    /// places of the question itself.
    fn shots_of(&self, index: usize, same: &[usize], counts: &mut Counts) -> Result<Vec<CotShot>> {
        let (run, settings) = (self.run, &self.run.config.medprompt);
        let (question, k) = (&run.questions[index], run.config.shots);
        let excluded: &[usize] = if settings.include_same { &[] } else { same };
        let chosen = neighbors::nearest(self.ranked(index, counts)?, excluded, k);
        counts.excluded += excluded.len();
        counts.included += chosen.iter().filter(|place| same.contains(place)).count();
        counts.filled += k - chosen.len();
        let (had, pool) = ((self.examples.len(), excluded.len()), self.pool);
        let fixed = fixed_shots(run.config.protocol, question, k - chosen.len());
        let mut shots = fixed.map_err(|e| too_few(run, &pool.source, pool.questions.len(), Some(had), &e))?;
        for place in chosen {
            shots.push(self.shot(question, place)?);
        }
        Ok(shots)
    }

    /// Places in the order in which they are wanted.
    fn ranked(&self, index: usize, counts: &mut Counts) -> Result<Vec<usize>> {
        let (run, settings) = (self.run, &self.run.config.medprompt);
        let question = &run.questions[index];
        let mut ranked = match (&self.search, settings.neighbours) {
            (Some(search), _) => search.ranked(index, &question.stem),
            (None, Neighbours::Random) => {
                let mut places: Vec<usize> = (0..self.examples.len()).collect();
                CounterRng::new(run.config.seed, "medprompt-random", item(run.task, &question.id)).shuffle(&mut places);
                places
            }
            (None, _) => (0..self.examples.len()).collect(),
        };
        if let (Some(reranker), Some(_)) = (run.encoders.reranker, &self.search) {
            let with_options = run.config.protocol == Protocol::PromptEngine;
            let text_of = |place: usize| self.text_of(place, with_options);
            let n_seen = settings.rerank_factor * run.config.shots;
            let (reranked, n_cut) = neighbors::reranked(ranked, &question.stem, text_of, n_seen, reranker, run.cancel)?;
            ranked = reranked;
            counts.cut += n_cut;
        }
        Ok(ranked)
    }

    /// What a reranker reads of an example.
    fn text_of(&self, place: usize, with_options: bool) -> String {
        let (example, solved) = self.examples[place];
        let order = solved.right.first().and_then(|one| ChoiceOrder::from_indices(one.order.clone()));
        match order.filter(|_| with_options) {
            Some(order) => prompt_engine::description(example, &order),
            None => example.stem.clone(),
        }
    }

    /// One of the right answers to a pool question, drawn for this test question; under `prompt-engine` the same for all.
    fn shot(&self, question: &Question, place: usize) -> Result<CotShot> {
        let (example, solved) = self.examples[place];
        let run = self.run;
        let drawn_for = if run.config.protocol == Protocol::PromptEngine { "" } else { question.id.as_str() };
        let id = format!("{drawn_for}/{}", example.id);
        let drawn = CounterRng::new(run.config.seed, "medprompt-answer", item(run.task, &id)).below(solved.right.len());
        let worked = &solved.right[drawn];
        let order = ChoiceOrder::from_indices(worked.order.clone())
            .ok_or_else(|| Error::Answer { id, reason: "the stored option order is no permutation".into() })?;
        Ok(CotShot { question: example.clone(), order, response: worked.text.clone() })
    }
}
