//! `aloe embed`: sentence embeddings of texts from a file, one JSON line a text.

use crate::cli::encoders::EmbedArgs;
use crate::commands::{Lines, or_interrupted, requests, tell_cut, threads_of, timeout_of};
use crate::failure::Failure;
use crate::stage::model_of;
use aloe_engine::{Embedder, EngineOptions};
use aloe_record::{Cancel, Progress};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;

/// One row of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    text: String,
}

/// Reads the texts, embeds them and writes the vectors.
pub(crate) fn run(args: &EmbedArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let (ids, texts): (Vec<String>, Vec<String>) =
        requests::read(&args.file.requests, |row: Row| Ok((row.id, row.text)))?.into_iter().unzip();
    let is_endpoint = args.model.starts_with("http");
    if args.request_timeout.is_some() && !is_endpoint {
        let mistake = "--request-timeout does not go with a local model, which has no server; leave it out";
        return Err(Failure::usage(mistake).into());
    }
    let options = EngineOptions {
        threads: threads_of(args.threads),
        request_timeout: timeout_of(args.request_timeout),
        cancel: cancel.clone(),
        ..EngineOptions::default()
    };
    let model = if is_endpoint { args.model.as_str().into() } else { model_of(Path::new(&args.model)) };
    let embedder = Embedder::open(&model.to_string_lossy(), &options)?;
    let progress = Progress::new("embed", texts.len() as u64, "texts");
    let found = or_interrupted(embedder.embed_each(&texts, &progress, cancel))?;
    progress.finish();
    let n_cut = found.iter().flatten().filter(|one| one.n_cut_tokens > 0).count();
    let answers = ids.iter().zip(found).map(|(id, one)| (id.as_str(), one.map(|one| (id, one)))).collect();
    let lines = Lines::of(answers, |(id, one)| {
        Ok(json!({"id": id, "embedding": one.vector, "n_tokens": one.n_tokens, "n_cut_tokens": one.n_cut_tokens}))
    })?;
    tell_cut(n_cut, texts.len());
    lines.write(args.file.out.as_deref(), args.file.json.then(|| json!({"n_cut": n_cut})))
}
