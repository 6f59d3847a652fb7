//! Medprompt (Nori et al. 2023, 2311.16452; promptbase and prompt_engine): examples near the question, with worked answers
//! the model wrote itself and got right, most similar last; options shuffled in each sample; majority vote.
//!
//! Unlike prompt_engine, a pool question that is the test question itself is excluded and counted. Where fewer than `shots`
//! pool questions are solved, fixed worked examples stand before the found ones, and are counted.

use super::generate::{Plan, Shots, Voted, ask, collect};
use super::{TaskRun, WINDOW_REQUESTS, item};
use crate::answers::{AnswerLog, Solved};
use crate::neighbors::{self, Search};
use crate::{Error, Result};
use aloe_record::{CounterRng, Progress};
use aloe_task::wording::fixed_shots;
use aloe_task::{ChoiceOrder, CotShot, Question, Split, Task};
use serde_json::{Map, Value, json};

/// Solves the pool, then finds each question's neighbours among the solved ones.
pub(crate) fn prepare(run: &TaskRun, log: &mut AnswerLog) -> Result<Plan> {
    let (source, pool) = load_pool(run)?;
    let (solved, n_refused) = solve(run, &pool, log)?;
    let examples: Vec<(&Question, &Solved)> =
        pool.iter().zip(&solved).filter(|(_, solved)| !solved.right.is_empty()).collect();
    let mut counts = Counts::default();
    let search = search(run, &examples, &mut counts)?;
    let shots = (0..run.questions.len()).map(|index| shots_of(run, index, &examples, &search, &mut counts));
    let shots = Shots::PerQuestion(shots.collect::<Result<_>>()?);
    let n_tried: usize = pool.len() * run.config.medprompt.pool_attempts;
    let n_right: usize = solved.iter().map(|one| one.right.len()).sum();
    let reranker = run.encoders.reranker.map_or_else(String::new, |one| format!(", reranked by {}", one.name()));
    let search_name = search.name() + &reranker;
    let notes = json!({
        "pool": source, "pool_questions": pool.len(), "pool_solved": examples.len(),
        "pool_answers": n_tried, "pool_answers_right": n_right, "neighbour_search": search_name,
        "excluded_as_the_question_itself": counts.excluded, "filled_with_fixed_examples": counts.filled,
    });
    let mut notes = if let Value::Object(map) = notes { map } else { Map::new() };
    if n_refused > 0 {
        notes.insert("pool_refused".into(), n_refused.into());
    }
    if counts.cut > 0 {
        notes.insert("texts_cut_by_encoders".into(), counts.cut.into());
    }
    Ok(Plan { shots, n_samples: run.config.n_samples, shuffle: run.config.shuffle, notes })
}

#[derive(Default)]
struct Counts {
    excluded: usize,
    filled: usize,
    /// Texts that an encoder did not read whole, each time it was given one.
    cut: usize,
}

/// The pool: the task's own train questions; MMLU's validation questions; MedMCQA's train questions for CareQA, which has
/// only a test set (so did prompt_engine). Never a reported set.
fn load_pool(run: &TaskRun) -> Result<(String, Vec<Question>)> {
    let (task, split) = match run.task {
        Task::Mmlu(_) => (run.task, Split::Validation),
        Task::CareqaEn => (Task::Medmcqa, Split::Train),
        task => (task, Split::Train),
    };
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

/// Attempts at every pool question with the fixed worked examples and shuffled options; right ones are kept. And how many questions
/// the model or its server refused.
fn solve(run: &TaskRun, pool: &[Question], log: &mut AnswerLog) -> Result<(Vec<Solved>, usize)> {
    let mut solved = log.solved_of(run.task, pool)?;
    let n = run.config.medprompt.pool_attempts;
    let missing: Vec<usize> = (0..pool.len()).filter(|&at| solved[at].is_none()).collect();
    let (mut n_solved, mut n_refused) = (pool.len() - missing.len(), 0);
    run.progress.grow(pool.len() as u64);
    run.progress.resume(n_solved as u64);
    for window in missing.chunks((WINDOW_REQUESTS * run.engine.n_servers() / n).max(1)) {
        run.cancel.check()?;
        let asked = window.iter().map(|&index| {
            let (question, k) = (&pool[index], run.config.shots.min(3));
            let shots = fixed_shots(run.config.protocol, question, k)?;
            ask(run, question, &shots, n, true, &format!("pool/{}/{}", run.task.name(), question.id))
        });
        let asked = asked.collect::<Result<Vec<_>>>()?;
        let collected = collect(run, &asked, &mut |at, voted| {
            run.progress.message(&format!("{}: worked examples {n_solved} of {}", run.task.name(), pool.len()));
            let one = solved_by(run, window[at], &pool[window[at]], &voted);
            match voted {
                Ok(_) => log.append_solved(&one)?,
                Err(_) => n_refused += 1,
            }
            run.progress.advance(1);
            n_solved += 1;
            solved[window[at]] = Some(one);
            Ok(())
        });
        log.sync(true)?;
        collected?;
    }
    run.progress.message(&run.task.name());
    Ok((solved.into_iter().flatten().collect(), n_refused))
}

/// The attempts at a pool question that reached its key; a question that was refused has none.
fn solved_by(run: &TaskRun, index: usize, question: &Question, voted: &Voted) -> Solved {
    let votes = voted.as_ref().map_or(&[][..], |(votes, _)| votes.as_slice());
    let right = votes.iter().filter(|vote| vote.answer == Some(question.key));
    Solved {
        task: run.task.name(),
        index,
        id: question.id.clone(),
        right: right.map(|vote| (vote.order.clone(), vote.text.clone())).collect(),
    }
}

fn search(run: &TaskRun, examples: &[(&Question, &Solved)], counts: &mut Counts) -> Result<Search> {
    let pool: Vec<String> = examples.iter().map(|(question, _)| question.stem.clone()).collect();
    let Some(embedder) = run.encoders.embedder else {
        return Ok(Search::lexical(&pool));
    };
    let questions: Vec<String> = run.questions.iter().map(|question| question.stem.clone()).collect();
    let mut embed = |texts: &[String]| -> Result<Vec<Vec<f32>>> {
        let found = embedder.embed(texts, &Progress::silent(), run.cancel)?;
        counts.cut += found.iter().filter(|one| one.n_cut_tokens > 0).count();
        Ok(found.into_iter().map(|one| one.vector).collect())
    };
    Ok(Search::embedded(embedder.name(), embed(&pool)?, embed(&questions)?))
}

/// The examples of question `index`: fixed ones first where too few are found, then neighbours, the nearest last.
fn shots_of(
    run: &TaskRun,
    index: usize,
    examples: &[(&Question, &Solved)],
    search: &Search,
    counts: &mut Counts,
) -> Result<Vec<CotShot>> {
    let question = &run.questions[index];
    let k = run.config.shots;
    let jaccard = run.config.medprompt.same_question_jaccard;
    let pool: Vec<&Question> = examples.iter().map(|(example, _)| *example).collect();
    let mut ranked = search.ranked(index, &question.stem);
    if let Some(reranker) = run.encoders.reranker {
        let (reranked, n_cut) = neighbors::reranked(ranked, &question.stem, &pool, k, reranker, run.cancel)?;
        ranked = reranked;
        counts.cut += n_cut;
    }
    let (nearest, n_excluded) = neighbors::nearest(ranked, question, &pool, k, jaccard);
    counts.excluded += n_excluded;
    counts.filled += k - nearest.len();
    let mut shots = fixed_shots(run.config.protocol, question, k - nearest.len())?;
    for place in nearest {
        shots.push(shot(run, question, examples[place])?);
    }
    Ok(shots)
}

/// One of the right answers to a pool question, drawn for this test question.
fn shot(run: &TaskRun, question: &Question, (example, solved): (&Question, &Solved)) -> Result<CotShot> {
    let id = format!("{}/{}", question.id, example.id);
    let drawn = CounterRng::new(run.config.seed, "medprompt-answer", item(run.task, &id)).below(solved.right.len());
    let (order, text) = &solved.right[drawn];
    let order = ChoiceOrder::from_indices(order.clone())
        .ok_or_else(|| Error::Answer { id, reason: "the stored option order is no permutation".into() })?;
    Ok(CotShot { question: example.clone(), order, response: text.trim().to_string() })
}
