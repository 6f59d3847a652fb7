//! `aloe rerank`: scores of texts against a query by a cross-encoder, one JSON line a query.

use crate::cli::encoders::RerankArgs;
use crate::commands::{Lines, or_interrupted, requests, tell_cut, threads_of};
use crate::stage::model_of;
use aloe_engine::{RankScore, Reranker};
use aloe_record::{Cancel, Progress};
use serde::Deserialize;
use serde_json::{Value, json};

/// One row of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    query: String,
    texts: Vec<String>,
}

/// What became of a row: itself and the scores of its texts, in their order.
type Ranked<'a> = aloe_engine::Result<(&'a Row, Vec<RankScore>)>;

/// Reads the queries, scores their texts and writes scores and ranks.
pub(crate) fn run(args: &RerankArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let rows: Vec<Row> = requests::read(&args.file.requests, |row: Row| match row.texts.is_empty() {
        true => Err("`texts` is empty, so there is nothing to rank".to_owned()),
        false => Ok(row),
    })?;
    let reranker = Reranker::open(&model_of(&args.model), threads_of(args.threads))?;
    let progress = Progress::new("rerank", rows.len() as u64, "queries");
    let mut answers: Vec<(&str, Ranked<'_>)> = Vec::with_capacity(rows.len());
    for row in &rows {
        let scores = or_interrupted(reranker.rerank(&row.query, &row.texts, cancel))?;
        progress.advance(1);
        answers.push((row.id.as_str(), Ok((row, scores))));
    }
    progress.finish();
    let all = || answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).flat_map(|(_, scores)| scores);
    let (n_cut, n_texts) = (all().filter(|one| one.n_cut_tokens > 0).count(), all().count());
    let lines = Lines::of(answers, |(row, scores)| Ok(to_json(&row.id, scores)))?;
    tell_cut(n_cut, n_texts);
    lines.write(args.file.out.as_deref(), args.file.json.then(|| json!({"n_cut": n_cut})))
}

/// Equal scores keep the order of the texts.
fn to_json(id: &str, scores: &[RankScore]) -> Value {
    let mut ranked: Vec<usize> = (0..scores.len()).collect();
    ranked.sort_by(|&a, &b| scores[b].score.total_cmp(&scores[a].score));
    let column = |of: &dyn Fn(&RankScore) -> Value| scores.iter().map(of).collect::<Vec<Value>>();
    json!({
        "id": id, "scores": column(&|one| json!(one.score)), "ranked": ranked,
        "n_cut_tokens": column(&|one| json!(one.n_cut_tokens)),
    })
}
