//! From checked settings to a stage's spine: one function per kind that opens what the spine needs, calls it and fills
//! the record. `aloe run` and the subcommands both come through here.

use crate::commands::{
    data_stage, memory_of, merge_search, open, rows, synthesis, tell_cache, tell_evictions, timeout_of, trained,
};
use crate::failure::Failure;
use crate::input_digests::unread_files;
use crate::lineage;
use crate::recipe::eval_stage::EvalStage;
use crate::recipe::redteam_stage::RedteamStage;
use crate::recipe::stage_config::{MergeStage, PullConfig, StageConfig};
use crate::stage::{
    Context, Done, Inputs, Job, SERVED_BY, TaskFiles, checked_model, digest_of_model, execute, model_of, name_of_model,
    single,
};
use crate::weights::{self, Quantize};
use aloe_engine::announced::{self, SERVERS};
use aloe_engine::{Embedder, Engine, EngineOptions, Reranker};
use aloe_eval::compare::{check_comparable, compare_runs};
use aloe_eval::judge::Judge;
use aloe_eval::redteam_compare::{RedTeamRun, check_redteam_comparable, compare_redteam};
use aloe_eval::report::TaskResult;
use aloe_eval::{Encoders, EvalConfig, EvalResults};
use aloe_merge::{MergeConfig, MergeOptions};
use aloe_record::{Progress, Record};
use aloe_report::{Metrics, training_page};
use aloe_task::red_team::questions;
use aloe_tensor::Dtype;
use aloe_train::{DpoInputs, SftInputs};
use anyhow::Context as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs one stage into `out` unless it is done.
pub(crate) fn run(
    config: &StageConfig,
    name: &str,
    written: Value,
    inputs: &Inputs,
    out: &Path,
    context: &Context,
) -> anyhow::Result<Done> {
    let (extra_files, task_files) = (extra_files(config), task_files(config));
    let mut used = config.used()?;
    if let Some(command) = served_by(config, context)? {
        used[SERVED_BY] = command.into();
    }
    let job = Job { kind: config.kind(), name, written, used, inputs, extra_files, task_files, out };
    execute(context, &job, |folder, record| match config {
        StageConfig::Pull(config) => pull(config, folder, record, context),
        StageConfig::Data(config) => data_stage::run(config, inputs, folder, record, context),
        StageConfig::Sft(config) => sft(config, inputs, folder, record, context),
        StageConfig::Dpo(config) => dpo(config, inputs, folder, record, context),
        StageConfig::Merge(config) => merge(config, inputs, folder, record, context),
        StageConfig::MergeSearch(config) => merge_search::run(config, inputs, folder, record, context),
        StageConfig::Eval(config) if config.is_open() => open::eval(config, inputs, folder, record, context),
        StageConfig::Eval(config) => eval(config, inputs, folder, record, context),
        StageConfig::Rejudge(config) => open::rejudge(config, inputs, folder, record, context),
        StageConfig::Redteam(config) => redteam(config, inputs, folder, record, context),
        StageConfig::Synthesis(config) => synthesis::run(config, inputs, folder, record, context),
        StageConfig::Card(config) => crate::card::write(config, inputs, folder, record),
    })
}

/// How the servers were started that a stage asks in place of its model: their engine decides its results.
fn served_by(config: &StageConfig, context: &Context) -> anyhow::Result<Option<String>> {
    let Some(folder) = &context.servers else { return Ok(None) };
    if !matches!(config, StageConfig::Eval(_) | StageConfig::Redteam(_) | StageConfig::Synthesis(_)) {
        let text = format!("--servers is for stages that ask a model, and {} does not: leave it out", config.kind());
        return Err(Failure::usage(text).into());
    }
    let servers = announced::read(folder, None, None)?;
    Ok(servers.first().map(|server| server.command.join(" ")))
}

/// Files and folders beside the inputs that the settings name.
pub(crate) fn extra_files(config: &StageConfig) -> Vec<PathBuf> {
    match config {
        StageConfig::Data(config) => config.files(),
        StageConfig::Eval(config) => config.files(),
        StageConfig::Rejudge(config) => config.labels.iter().cloned().collect(),
        StageConfig::Redteam(config) => config.files(),
        StageConfig::Synthesis(config) => config.files(),
        StageConfig::Pull(config) if config.source.contains(':') => Vec::new(),
        StageConfig::Pull(config) => vec![PathBuf::from(&config.source)],
        StageConfig::Merge(config) => config.outside_models().into_iter().map(|(_, folder)| folder).collect(),
        StageConfig::MergeSearch(config) => config.files(),
        StageConfig::Sft(_) | StageConfig::Dpo(_) | StageConfig::Card(_) => Vec::new(),
    }
}

/// What each task of an evaluation reads, by its name.
pub(crate) fn task_files(config: &StageConfig) -> TaskFiles {
    match config {
        StageConfig::Eval(config) => config.task_files(),
        _ => TaskFiles::new(),
    }
}

fn pull(config: &PullConfig, folder: &Path, record: &mut Record, context: &Context) -> anyhow::Result<()> {
    if let Some(repository) = crate::sources::rows::repository(&config.source) {
        return data_stage::pull(config, repository, folder, record, context);
    }
    let written = folder.join("model");
    let pulled = crate::sources::pull(&config.source, &written, &context.cancel)?;
    move_up(&written, folder)?;
    record.result("source", &config.source)?;
    record.result("licence", &config.licence)?;
    record.result("origin", &pulled.origin)?;
    record.result("source_sha256", &pulled.sha256)?;
    record.result("n_parameters", pulled.n_parameters)?;
    let mut summary = format!("{:.1} M parameters from {}", pulled.n_parameters as f64 / 1e6, config.source);
    if let Some(types) = &pulled.gguf_types {
        summary.push_str(&format!(", weights {types}"));
    }
    if let Some(types) = &pulled.quantised_from {
        record.result("quantised_from", types)?;
    }
    record.result("summary", format!("{summary}, sha256 {}", pulled.sha256))?;
    Ok(())
}

/// Moves the files of `from` into `to` and removes `from`: the stage's folder is the Hugging Face folder itself.
pub(super) fn move_up(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(from).map_err(aloe_record::Error::io("list", from))? {
        let path = entry.map_err(aloe_record::Error::io("list", from))?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        std::fs::rename(&path, &target).map_err(aloe_record::Error::io("rename", &path))?;
    }
    Ok(std::fs::remove_dir(from).map_err(aloe_record::Error::io("remove", from))?)
}

fn sft(
    config: &aloe_train::SftConfig,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let rows = rows::conversations(single(inputs, "data", "sft")?)?;
    let start = single(inputs, "model", "sft")?.to_path_buf();
    let system_notice = rows::template_system(&rows.train, &start, config.chat_template.as_deref());
    let inputs = SftInputs { start, rows: rows.train, held_out: rows.held_out };
    let mut report = aloe_train::sft(config, inputs, folder, &train_context(context, "sft", "tokens", config.dtype))?;
    report.notices.extend(system_notice);
    tell(&report.notices);
    record.result("summary", trained::sft(&report))?;
    write_plots(folder, "sft")?;
    record.result("sft", &report)?;
    Ok(())
}

fn dpo(
    config: &aloe_train::DpoConfig,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let rows = rows::pairs(single(inputs, "data", "dpo")?)?;
    let start = single(inputs, "model", "dpo")?.to_path_buf();
    let inputs = DpoInputs { start, rows: rows.train, held_out: rows.held_out };
    let report = aloe_train::dpo(config, inputs, folder, &train_context(context, "dpo", "pairs", config.dtype))?;
    tell(&report.notices);
    record.result("summary", trained::dpo(&report))?;
    write_plots(folder, "dpo")?;
    record.result("dpo", &report)?;
    Ok(())
}

/// `report.html`: every logged number over the steps.
fn write_plots(folder: &Path, title: &str) -> anyhow::Result<()> {
    let metrics = Metrics::read(&folder.join("metrics.jsonl"))?;
    Ok(training_page(title, &metrics).write(&folder.join("report.html"))?)
}

/// What a stage found that the user must be told: dropped rows, damaged checkpoints, an export that loses the update.
pub(super) fn tell(notices: &[String]) {
    for notice in notices {
        aloe_record::tell(&format!("note: {notice}"));
    }
}

/// The limit is measured at the start of the stage: machines are shared, and their speed changes.
fn train_context(
    context: &Context,
    title: &str,
    unit: &'static str,
    dtype: aloe_train::TrainDtype,
) -> aloe_train::Context {
    let device = context.device();
    let dtype = match dtype {
        aloe_train::TrainDtype::F32 => Dtype::F32,
        aloe_train::TrainDtype::Bf16 => Dtype::Bf16,
    };
    aloe_train::Context {
        peak_flops: Some(aloe_engine::peak_flops(&device, dtype)),
        device,
        progress: Progress::new(title, 0, unit),
        cancel: context.cancel.clone(),
    }
}

fn merge(
    config: &MergeStage,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let parsed = MergeConfig::parse(&config.yaml, Path::new("recipe's merge"))?;
    let named = inputs.iter().filter_map(|(name, paths)| paths.first().map(|path| (name.clone(), path.clone())));
    let folders: BTreeMap<String, PathBuf> = named.chain(config.outside_models()).collect();
    let options = MergeOptions {
        seed: context.seed,
        threads: context.threads,
        memory: config.memory.map_or(aloe_merge::DEFAULT_MEMORY, |mebibytes| mebibytes << 20),
        write_master: config.master,
        hashed: true,
        hash_inputs: unread_files(folders.values().map(PathBuf::as_path)),
        folders,
        ..MergeOptions::default()
    };
    let progress = Progress::new("merge", 0, "values");
    let report = aloe_merge::merge(&parsed, folder, &options, &progress, &context.cancel)?;
    progress.finish();
    if !config.master {
        move_up(&folder.join("model"), folder)?;
    }
    tell(&report.notes);
    let shares: Vec<String> = report.kept_shares.iter().map(|share| format!("{share:.3}")).collect();
    record.result(
        "summary",
        format!(
            "{} of {} model{}{}{}",
            report.method,
            report.models.len(),
            if report.models.len() == 1 { "" } else { "s" },
            if shares.is_empty() { "" } else { ", kept shares " },
            shares.join(" ")
        ),
    )?;
    record.result("note", &config.note)?;
    record.result("merge", MergeSummary::from(&report))?;
    Ok(())
}

/// The merge's report without the figures per tensor, which stay in `merge.json`.
#[derive(serde::Serialize)]
pub(super) struct MergeSummary<'a> {
    method: &'a str,
    dtype: &'a str,
    rescale: &'a str,
    base: &'a Option<String>,
    models: &'a [String],
    n_parameters: u64,
    relative_norms: &'a [f64],
    kept_shares: &'a [f64],
    sign_agreement: Option<f64>,
    notes: &'a [String],
}

impl<'a> From<&'a aloe_merge::MergeReport> for MergeSummary<'a> {
    fn from(report: &'a aloe_merge::MergeReport) -> Self {
        Self {
            method: &report.method,
            dtype: &report.dtype,
            rescale: &report.rescale,
            base: &report.base,
            models: &report.models,
            n_parameters: report.n_parameters,
            relative_norms: &report.relative_norms,
            kept_shares: &report.kept_shares,
            sign_agreement: report.sign_agreement,
            notes: &report.notes,
        }
    }
}

/// Under this key stands what was expected of an evaluation and did not come out.
const UNMET: &str = "unmet";

/// What a finished stage was to show and did not; the results are kept, and the exit code is 1.
pub(crate) fn check_expected(name: &str, record: &Record) -> anyhow::Result<()> {
    let unmet = record.results.get(UNMET).and_then(|found| found.as_array()).cloned().unwrap_or_default();
    if unmet.is_empty() {
        return Ok(());
    }
    let lines: Vec<&str> = unmet.iter().filter_map(|line| line.as_str()).collect();
    anyhow::bail!("{name}: what was expected did not come out\n{}", lines.join("\n"))
}

fn eval(
    stage: &EvalStage,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let (config, compared) = Compared::of(stage, inputs)?;
    let opened = Opened {
        tokenizer: &stage.tokenizer,
        server_template: stage.server_template,
        quantize: stage.quantize,
        answer_cache: &stage.answer_cache,
        kv_budget: stage.kv_budget,
        request_timeout: timeout_of(stage.request_timeout),
        connections: stage.connections,
    };
    let model = single(inputs, "model", "eval")?;
    let encoder = match inputs.get("embedder") {
        Some(_) if !config.searches() => {
            let text = "the input `embedder` finds Medprompt's nearest examples, which this stage does not look for: leave it out";
            return Err(Failure::usage(text).into());
        }
        Some(_) => Some(single(inputs, "embedder", "eval")?),
        None => stage.embedder.as_deref(),
    };
    check_served(
        stage.request_timeout,
        stage.connections,
        [model].into_iter().chain(encoder).chain(stage.specialties.as_deref().map(Path::new)),
        context,
    )?;
    let options = EngineOptions {
        threads: context.threads,
        request_timeout: opened.request_timeout,
        cancel: context.cancel.clone(),
        ..EngineOptions::default()
    };
    let engine = open_engine(model, opened, context)?;
    let open_embedder = |model: &Path| {
        let opened = Embedder::open(&model.to_string_lossy(), &options);
        opened.with_context(|| format!("the embedder {} cannot be used", model.display()))
    };
    let embedder = encoder.map(open_embedder).transpose()?;
    let open_reranker = |path: &Path| {
        let opened = Reranker::open(path, context.threads);
        opened.with_context(|| format!("the reranker {} cannot be used", path.display()))
    };
    let reranker = stage.reranker.as_deref().map(open_reranker).transpose()?;
    let classifier =
        stage.specialties.as_deref().map(|address| open_classifier(address, stage, context)).transpose()?;
    let (embedder, reranker) = (embedder.as_ref(), reranker.as_ref());
    let encoders = Encoders { embedder, reranker, classifier: classifier.as_ref() };
    let progress = Progress::new("eval", 0, "questions");
    let results = aloe_eval::eval(&engine, &config, encoders, folder, &progress, &context.cancel)?;
    aloe_eval::view::keep_index(folder);
    compared.conclude(results, &config, folder, record)?;
    note_cache(&engine, &stage.answer_cache, record)?;
    note_memory(&engine, record)?;
    Ok(())
}

/// What an evaluation is held against: an earlier run, and what its model was trained on.
pub(super) struct Compared {
    earlier: Option<PathBuf>,
    lineage: lineage::Lineage,
}

impl Compared {
    /// The evaluator's settings, with the training rows that records lead to.
    pub(super) fn of(stage: &EvalStage, inputs: &Inputs) -> anyhow::Result<(EvalConfig, Self)> {
        let mut config = stage.checked().map_err(|mistakes| Failure::usage(mistakes.join("\n")))?;
        let earlier = inputs.get("compare").map(|_| single(inputs, "compare", "eval")).transpose()?;
        earlier.map(|folder| check_comparable(folder, &config)).transpose()?;
        let lineage = lineage::of(single(inputs, "model", "eval")?);
        config.is_training_partly_known = !lineage.missing.is_empty();
        for rows in &lineage.rows {
            let is_named = |path: &PathBuf| path.canonicalize().ok() == rows.canonicalize().ok();
            if !config.trained_on.iter().any(is_named) {
                config.trained_on.push(rows.clone());
            }
        }
        Ok((config, Self { earlier: earlier.map(Path::to_path_buf), lineage }))
    }

    /// Compares, and fills the record.
    pub(super) fn conclude(
        &self,
        results: EvalResults,
        config: &EvalConfig,
        folder: &Path,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        let mut parts: Vec<String> = results.tasks.iter().map(TaskResult::words).collect();
        let mut table = results.table();
        if let Some(earlier) = &self.earlier {
            let comparison = compare_runs(earlier, folder, config.seed)?;
            parts.push(format!("against {}: {}", name_of_model(earlier), comparison.summary()));
            table.push_str(&format!("\nagainst {}: {}", name_of_model(earlier), comparison.table()));
            record.result("comparison_note", &comparison.note)?;
            record.result("comparison", &comparison.rows)?;
        }
        record.result("table", table)?;
        record.result("eval", &results)?;
        let unmet: Vec<String> = results.expected.iter().filter(|one| !one.passed).map(|one| one.words()).collect();
        if !results.expected.is_empty() {
            parts.push(format!(
                "{} of {} expected accuracies came out",
                results.expected.len() - unmet.len(),
                results.expected.len()
            ));
            record.result(UNMET, unmet)?;
        }
        record.result("trained_on", self.lineage.words(config.trained_on.len()))?;
        record.result(lineage::TRAINED_ROWS, self.lineage.digests())?;
        record.result("summary", parts.join("; "))?;
        Ok(())
    }
}

/// The model that tells specialties; an endpoint's server renders its prompt.
fn open_classifier(address: &str, stage: &EvalStage, context: &Context) -> anyhow::Result<Engine> {
    let opened = Opened {
        tokenizer: &None,
        server_template: address.starts_with("http"),
        quantize: None,
        answer_cache: &stage.answer_cache,
        kv_budget: None,
        request_timeout: timeout_of(stage.request_timeout),
        connections: stage.connections,
    };
    let of_files = Context { dtype: None, servers: None, ..context.clone() };
    open_engine(Path::new(address), opened, &of_files)
}

fn redteam(
    stage: &RedteamStage,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let config = stage.checked().map_err(|mistakes| Failure::usage(mistakes.join("\n")))?;
    let (dir, file) = split(&stage.questions);
    let all = questions::read(dir, file)?;
    let asked: Vec<_> = all.into_iter().filter(|question| question.split == config.split).collect();
    let harmless = match &stage.harmless {
        Some(path) => questions::read_harmless(split(path).0, split(path).1)?,
        None => Vec::new(),
    };
    let labels = match &stage.judge_labels {
        Some(path) => questions::read_labels(split(path).0, split(path).1)?,
        None => Vec::new(),
    };
    let model = single(inputs, "model", "redteam")?;
    check_served(
        stage.request_timeout,
        None,
        [model].into_iter().chain(stage.judge.as_deref().map(Path::new)),
        context,
    )?;
    let judge_engine = stage.judge.as_deref().map(|address| open_judge(address, stage, context)).transpose()?;
    let judge = judge_engine.as_ref().map(|engine| Judge { engine, labels: &labels, prompt: stage.judge_prompt });
    judge.as_ref().map(Judge::check).transpose()?;
    let opened = Opened {
        tokenizer: &stage.tokenizer,
        server_template: stage.server_template,
        quantize: stage.quantize,
        answer_cache: &stage.answer_cache,
        kv_budget: stage.kv_budget,
        request_timeout: timeout_of(stage.request_timeout),
        connections: None,
    };
    let engine = open_engine(model, opened, context)?;
    let earlier = inputs.get("compare").map(|_| single(inputs, "compare", "redteam")).transpose()?;
    let before = earlier.map(RedTeamRun::read).transpose()?;
    if let Some(before) = &before {
        check_redteam_comparable(before, &engine, &asked, &harmless, &config)?;
    }
    let progress = Progress::new("redteam", 0, "answers");
    let results =
        aloe_eval::redteam(&engine, &asked, &harmless, judge.as_ref(), &config, folder, &progress, &context.cancel)?;
    let (mut table, mut summary) = (results.table(), results.summary());
    if let (Some(earlier), Some(before)) = (earlier, &before) {
        let comparison = compare_redteam(before, &RedTeamRun::read(folder)?, config.seed)?;
        table.push_str(&format!("\nagainst {}: {}", name_of_model(earlier), comparison.table()));
        summary.push_str(&format!("; against {}: {}", name_of_model(earlier), comparison.summary()));
        record.result("comparison_note", &comparison.compared)?;
        record.result("comparison", &comparison.rows)?;
    }
    record.result("table", table)?;
    record.result("redteam", &results)?;
    note_cache(&engine, &stage.answer_cache, record)?;
    note_memory(&engine, record)?;
    record.result("summary", summary)?;
    Ok(())
}

/// The judge model: its prompt is rendered here where its tokenizer is given, by the server otherwise.
fn open_judge(address: &str, stage: &RedteamStage, context: &Context) -> anyhow::Result<Engine> {
    let tokenizer = stage.judge_tokenizer.as_deref().map(model_of);
    let options = EngineOptions {
        server_template: tokenizer.is_none(),
        tokenizer,
        request_timeout: timeout_of(stage.request_timeout),
        cancel: context.cancel.clone(),
        ..EngineOptions::default()
    };
    Ok(Engine::open(address, &options)?)
}

/// A path as folder and file name, the form the readers name rows by.
pub(super) fn split(path: &Path) -> (&Path, &str) {
    let dir = path.parent().unwrap_or(Path::new(""));
    (dir, path.file_name().and_then(|name| name.to_str()).unwrap_or_default())
}

/// What a stage's settings say about opening its model: how an endpoint's prompts are rendered, and a folder's weights rounded.
pub(super) struct Opened<'a> {
    pub(super) tokenizer: &'a Option<PathBuf>,
    pub(super) server_template: bool,
    pub(super) quantize: Option<Quantize>,
    pub(super) answer_cache: &'a Option<PathBuf>,
    pub(super) kv_budget: Option<usize>,
    pub(super) request_timeout: Duration,
    pub(super) connections: Option<usize>,
}

/// Refuses a time-out or a number of connections where no server is asked.
pub(super) fn check_served<'a>(
    asked_s: Option<u64>,
    connections: Option<usize>,
    mut models: impl Iterator<Item = &'a Path>,
    context: &Context,
) -> anyhow::Result<()> {
    let is_served = context.servers.is_some() || models.any(|model| model.to_string_lossy().starts_with("http"));
    for (key, is_set) in [("request_timeout", asked_s.is_some()), ("connections", connections.is_some())] {
        if is_set && !is_served {
            let mistake = format!("{key} is for endpoints, and this stage asks none: leave it out");
            return Err(Failure::usage(mistake).into());
        }
    }
    Ok(())
}

/// The model of an input: a stage's folder, a folder, a file, or an endpoint; servers of a folder's model where the stage has some.
pub(super) fn open_engine(input: &Path, opened: Opened<'_>, context: &Context) -> anyhow::Result<Engine> {
    let text = input.to_string_lossy();
    if let Some(servers) = &context.servers {
        return open_servers(input, servers, opened, context);
    }
    if let Some(mistake) = weights::mistake(context.dtype, opened.quantize, Some(&text)) {
        return Err(Failure::usage(mistake).into());
    }
    if !text.starts_with("http") && (opened.tokenizer.is_some() || opened.server_template) {
        let text =
            format!("tokenizer and server_template are for endpoints; {text} has its own tokenizer: leave them out");
        return Err(Failure::usage(text).into());
    }
    if let (true, Some(_)) = (text.starts_with("http"), opened.kv_budget) {
        let mistake = format!("kv_budget: keys and values of the endpoint {text} are its server's; leave it out");
        return Err(Failure::usage(mistake).into());
    }
    let options = EngineOptions {
        format: weights::weight_format(context.dtype, opened.quantize),
        kv_budget_bytes: opened.kv_budget.map(|mebibytes| mebibytes << 20),
        threads: context.threads,
        tokenizer: opened.tokenizer.as_deref().map(model_of),
        server_template: opened.server_template,
        request_timeout: opened.request_timeout,
        connections: opened.connections.unwrap_or(EngineOptions::default().connections),
        cancel: context.cancel.clone(),
        ..EngineOptions::default()
    };
    let engine = if text.starts_with("http") {
        Engine::open(&text, &options)?
    } else {
        let mut engine = Engine::open(&checked_model(input)?.to_string_lossy(), &options)?;
        // `model` is the folder's name in every stage; the stage's own name tells them apart.
        engine.rename(&name_of_model(input));
        engine
    };
    Ok(match opened.answer_cache {
        Some(folder) => engine.with_answer_cache(folder)?,
        None => engine,
    })
}

/// The servers announced in the folder `servers`, which must hold the model of `input`; its own tokenizer renders what they are asked.
fn open_servers(input: &Path, servers: &Path, opened: Opened<'_>, context: &Context) -> anyhow::Result<Engine> {
    if input.to_string_lossy().starts_with("http") {
        let text =
            format!("--servers is for a model in a folder, and the stage asks {}: leave it out", input.display());
        return Err(Failure::usage(text).into());
    }
    let local = [
        ("quantize", opened.quantize.is_some()),
        ("kv_budget", opened.kv_budget.is_some()),
        ("tokenizer", opened.tokenizer.is_some()),
        ("server_template", opened.server_template),
    ];
    if let Some((key, _)) = local.into_iter().find(|(_, is_set)| *is_set) {
        let text = format!(
            "{key} does not go with servers of {}, which are started in the job: leave it out",
            input.display()
        );
        return Err(Failure::usage(text).into());
    }
    let options = EngineOptions {
        threads: context.threads,
        tokenizer: Some(checked_model(input)?),
        request_timeout: opened.request_timeout,
        connections: opened.connections.unwrap_or(EngineOptions::default().connections),
        model_sha256: Some(digest_of_model(input)?),
        cancel: context.cancel.clone(),
        ..EngineOptions::default()
    };
    let mut engine = Engine::open(&format!("{SERVERS}{}", servers.display()), &options)?;
    engine.rename(&name_of_model(input));
    Ok(match opened.answer_cache {
        Some(folder) => engine.with_answer_cache(folder)?,
        None => engine,
    })
}

/// What keys and values were allowed and took, into the record; the user is told when the budget cost time.
pub(super) fn note_memory(engine: &Engine, record: &mut Record) -> anyhow::Result<()> {
    tell_evictions(engine);
    memory_of(engine).map_or(Ok(()), |memory| Ok(record.result("memory", memory)?))
}

/// What the answer cache was asked and knew, into the record and to the user.
pub(super) fn note_cache(engine: &Engine, folder: &Option<PathBuf>, record: &mut Record) -> anyhow::Result<()> {
    if let (Some(counts), Some(folder)) = (engine.cache_counts(), folder) {
        tell_cache(&counts, folder);
        record.result("answer_cache", counts)?;
    }
    Ok(())
}
