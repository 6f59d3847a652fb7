//! `aloe data run`: opens the models that the stage's inputs name, calls the spine, fills the record. And the pull of a data set.

use crate::commands::stages::{Opened, move_up, open_engine, tell};
use crate::commands::timeout_of;
use crate::recipe::checked::ROWS;
use crate::recipe::quarantines;
use crate::recipe::stage_config::PullConfig;
use crate::sources::rows;
use crate::stage::{Context, Inputs, single};
use aloe_data::{DataConfig, Models, Scorers};
use aloe_engine::{Embedder, Engine, EngineOptions};
use aloe_record::{Progress, Record};
use anyhow::Context as _;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Runs the stage into `folder`.
pub(super) fn run(
    config: &DataConfig,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let embedder = match inputs.get("embedder") {
        Some(_) => Some(open_embedder(single(inputs, "embedder", "data")?, context)?),
        None => None,
    };
    let judge = match inputs.get("judge") {
        Some(_) => Some(open(single(inputs, "judge", "data")?, &None, context)?),
        None => None,
    };
    let tokenizer = config.quality.as_ref().and_then(|quality| quality.tokenizer.clone());
    let scorers = inputs.get("scorer").map(Vec::as_slice).unwrap_or_default();
    let scorers: Vec<Engine> =
        scorers.iter().map(|scorer| open(scorer, &tokenizer, context)).collect::<anyhow::Result<_>>()?;
    let scorers = match scorers.as_slice() {
        [] => None,
        [both] => Some(Scorers { complexity: both, quality: both }),
        [complexity, quality, ..] => Some(Scorers { complexity, quality }),
    };
    let config = &config.with_stages(inputs.get(ROWS).map(Vec::as_slice).unwrap_or_default())?;
    let models = Models { embedder: embedder.as_ref(), judge: judge.as_ref(), scorers };
    let progress = Progress::new("data", 0, "rows");
    let report = aloe_data::run_with(config, models, folder, context.threads, &progress, &context.cancel)?;
    progress.finish();
    tell(&report.notices);
    record.result("summary", report.summary())?;
    if let Some((path, sha256)) = &report.quarantine {
        record.result(quarantines::RESULT, json!({"path": std::path::absolute(path)?, "sha256": sha256}))?;
    }
    record.result("data", &report)?;
    record.result("steps", &report.steps)?;
    Ok(())
}

/// A pull of a data set: its files as they are, counted.
pub(super) fn pull(
    config: &PullConfig,
    repository: &str,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let written = folder.join("rows");
    let pulled = rows::pull(repository, config.expect_rows, &written, &context.cancel)?;
    move_up(&written, folder)?;
    record.result("source", &config.source)?;
    record.result("licence", &config.licence)?;
    record.result("origin", &pulled.origin)?;
    record.result("files", &pulled.files)?;
    record.result("n_rows", pulled.n_rows)?;
    let checked = match pulled.expected {
        Some((n, who)) => format!("as {who} {n}"),
        None => "not compared with a number: none is known and no --expect-rows was given".to_owned(),
    };
    let n_broken: usize = pulled.files.values().map(|file| file.n_broken).sum();
    let n_files = pulled.files.len();
    let summary = format!(
        "{} train rows, {checked}; {n_files} files, {n_broken} broken rows, from {}",
        pulled.n_rows, pulled.origin
    );
    record.result("summary", summary)?;
    Ok(())
}

fn open_embedder(model: &Path, context: &Context) -> anyhow::Result<Embedder> {
    let options =
        EngineOptions { threads: context.threads, cancel: context.cancel.clone(), ..EngineOptions::default() };
    let opened = Embedder::open(&model.to_string_lossy(), &options);
    opened.with_context(|| format!("the embedder {} cannot be used", model.display()))
}

/// A judge or scorer. An endpoint is sent the tokens of `tokenizer` where that is given; otherwise its server renders the prompts.
fn open(model: &Path, tokenizer: &Option<PathBuf>, context: &Context) -> anyhow::Result<Engine> {
    let is_served = model.to_string_lossy().starts_with("http");
    let none = None;
    let opened = Opened {
        tokenizer: if is_served { tokenizer } else { &none },
        server_template: is_served && tokenizer.is_none(),
        quantize: None,
        answer_cache: &None,
        kv_budget: None,
        request_timeout: timeout_of(None),
        connections: None,
    };
    open_engine(model, opened, context)
}
