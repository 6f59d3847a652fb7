//! One file per subcommand, and what they share: opening a model, writing lines.

mod bench;
mod bundle;
pub(crate) mod chat;
mod compare;
mod data;
mod data_shards;
mod data_stage;
mod embed;
mod export;
mod generate;
mod jobs;
mod merge_search;
mod open;
mod parity;
pub(crate) mod plan;
mod requests;
mod rerank;
mod rescore;
pub(crate) mod rows;
pub(crate) mod run;
mod score;
mod serve;
mod settings;
pub(crate) mod shards;
mod show_mask;
mod single;
pub(crate) mod stages;
mod synthesis;
mod trained;
mod verify;
mod view;
mod with_servers;

use crate::cli::{Cli, Command, Common, FileArgs, ModelArgs};
use crate::failure::Failure;
use crate::weights;
use aloe_engine::announced::SERVERS;
use aloe_engine::{CacheCounts, Engine, EngineOptions};
use aloe_record::{Cancel, atomic};
use aloe_text::TextModel;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

/// Runs the command that was asked for.
pub(crate) fn dispatch(cli: Cli, cancel: &Cancel) -> anyhow::Result<()> {
    match cli.command {
        Command::Score(args) => score::run(&args, cancel),
        Command::Generate(args) => generate::run(&args, cancel),
        Command::Embed(args) => embed::run(&args, cancel),
        Command::Rerank(args) => rerank::run(&args, cancel),
        Command::Bench(args) => bench::run(&args, cancel),
        Command::Chat(args) => chat::run(&args, cancel),
        Command::Serve(args) => serve::run(&args, cancel),
        Command::ShowMask(args) => show_mask::run(&args),
        Command::Parity(args) => parity::run(&args, cancel),
        Command::Run(args) => run::run(&args, cancel),
        Command::Plan(args) => plan::run(&args, cancel),
        Command::Status(args) => jobs::status(&args),
        Command::Resume(args) => jobs::resume(&args, cancel),
        Command::Cancel(args) => jobs::cancel(&args),
        Command::Collect(args) => jobs::collect(&args),
        Command::Bundle(args) => bundle::run(&args, cancel),
        Command::Job(args) => jobs::job(&args, cancel),
        Command::WithServers(args) => with_servers::run(&args, cancel),
        Command::Pull(args) => single::pull(&args, cancel),
        Command::Data(command) => data::run(command, cancel),
        Command::Sft(args) => single::stage("sft", &args, cancel),
        Command::Dpo(args) => single::stage("dpo", &args, cancel),
        Command::Merge(args) => single::merge(&args, cancel),
        Command::MergeSearch(args) => single::merge_search(&args, cancel),
        Command::Eval(args) => single::eval(&args, cancel),
        Command::Rescore(args) => rescore::run(&args, cancel),
        Command::Export(args) => export::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Rejudge(args) => single::rejudge(&args, cancel),
        Command::Verify(args) => verify::run(&args, cancel),
        Command::View(args) => view::run(&args),
        Command::Redteam(args) => single::redteam(&args, cancel),
        Command::Synthesis(args) => single::synthesis(&args, cancel),
        Command::Card(args) => single::stage("card", &args, cancel),
    }
}

/// Threads to use: what was asked, or all cores.
pub(crate) fn threads_of(asked: usize) -> usize {
    if asked == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { asked }
}

/// Opens the model of a command line. A stage's folder stands for its `model/`.
pub(crate) fn open_engine(args: &ModelArgs, cancel: &Cancel) -> anyhow::Result<Engine> {
    if let Some(mistake) = weights::mistake(args.dtype, args.quantize, Some(&args.model)) {
        return Err(Failure::usage(format!("--{mistake}")).into());
    }
    if let Some(mistake) = misplaced(args) {
        return Err(Failure::usage(mistake).into());
    }
    let options = EngineOptions {
        format: weights::weight_format(args.dtype, args.quantize),
        threads: threads_of(args.common.threads),
        tokenizer: args.tokenizer.clone(),
        server_template: args.server_template,
        kv_budget_bytes: args.kv_budget.map(|mebibytes| mebibytes << 20),
        request_timeout: timeout_of(args.request_timeout),
        cancel: cancel.clone(),
        ..EngineOptions::default()
    };
    if is_served(&args.model) {
        return Ok(Engine::open(&args.model, &options)?);
    }
    let path = crate::stage::checked_model(Path::new(&args.model))?;
    Ok(Engine::open(&path.to_string_lossy(), &options)?)
}

/// Whether servers answer for the model: by their addresses, or by the folder of their announcements.
fn is_served(model: &str) -> bool {
    model.starts_with("http") || model.starts_with(SERVERS)
}

/// How long an answer of an endpoint is waited for: what was asked, or the engine's default.
pub(crate) fn timeout_of(asked_s: Option<u64>) -> Duration {
    asked_s.map_or(EngineOptions::default().request_timeout, Duration::from_secs)
}

/// A flag that has no meaning for the model: what it asks for would not happen.
fn misplaced(args: &ModelArgs) -> Option<String> {
    let (is_endpoint, whose) = match is_served(&args.model) {
        true => (true, "an endpoint, whose server decides that"),
        false => (false, "a local model, which has its own tokenizer and template and no server"),
    };
    let flags = [
        ("--dtype", args.dtype.is_some(), true),
        ("--kv-budget", args.kv_budget.is_some(), true),
        ("--tokenizer", args.tokenizer.is_some(), false),
        ("--server-template", args.server_template, false),
        ("--request-timeout", args.request_timeout.is_some(), false),
    ];
    let (flag, ..) = flags.into_iter().find(|&(_, is_given, is_local)| is_given && is_local == is_endpoint)?;
    Some(format!("{flag} does not go with {whose}; leave it out"))
}

/// [`open_engine`] with the cache of a request file's command before it, where one is named.
pub(crate) fn open_cached(args: &ModelArgs, file: &FileArgs, cancel: &Cancel) -> anyhow::Result<Engine> {
    let engine = open_engine(args, cancel)?;
    Ok(match &file.answer_cache {
        Some(folder) => engine.with_answer_cache(folder)?,
        None => engine,
    })
}

/// Tokenizer and template of a folder or a `.gguf` file.
pub(crate) fn open_text(path: &Path) -> anyhow::Result<TextModel> {
    let path = crate::stage::checked_model(path)?;
    let source = aloe_model::ModelSource::open(&path)?;
    Ok(match source.gguf_metadata() {
        Some(metadata) => TextModel::from_gguf(metadata)?,
        None => TextModel::open(&path)?,
    })
}

/// What an interruption of a command without stages means: its output is written whole at the end, or not at all.
pub(crate) fn or_interrupted<T>(result: aloe_engine::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| match error {
        aloe_engine::Error::Record(aloe_record::Error::Cancelled) => {
            anyhow::Error::from(error).context("interrupted; nothing was written, the same command starts over")
        }
        error => error.into(),
    })
}

/// Writes one JSON line a request, its answer or its error, to a file (atomically) or to standard output. With `--json` a file's
/// name, its numbers of rows and of errors, the seed, the memory and what the cache knew are printed as JSON.
pub(crate) fn write_answers<T>(
    file: &FileArgs,
    common: &Common,
    engine: &Engine,
    answers: Vec<(&str, aloe_engine::Result<T>)>,
    to_json: impl Fn(&T) -> serde_json::Result<Value>,
) -> anyhow::Result<()> {
    let lines = Lines::of(answers, to_json)?;
    tell_evictions(engine);
    if let (Some(counts), Some(folder)) = (engine.cache_counts(), &file.answer_cache) {
        tell_cache(&counts, folder);
    }
    let mut said = json!({"seed": common.seed});
    if let Some(counts) = engine.cache_counts() {
        said["answer_cache"] = serde_json::to_value(counts)?;
    }
    if let Some(memory) = memory_of(engine) {
        said["memory"] = memory;
    }
    lines.write(file.out.as_deref(), common.json.then_some(said))
}

/// The answers to a file of requests as JSON lines.
pub(crate) struct Lines {
    text: String,
    n_rows: usize,
    errors: Vec<String>,
    /// The error that decides the exit code.
    cause: Option<aloe_engine::Error>,
}

impl Lines {
    /// A line for each request: its answer, or its id and error.
    pub(crate) fn of<T>(
        answers: Vec<(&str, aloe_engine::Result<T>)>,
        to_json: impl Fn(&T) -> serde_json::Result<Value>,
    ) -> anyhow::Result<Self> {
        let mut lines = Self { text: String::new(), n_rows: answers.len(), errors: Vec::new(), cause: None };
        for (id, answer) in answers {
            let row = match answer {
                Ok(answer) => to_json(&answer)?,
                Err(error) => {
                    let said = error.to_string();
                    let reason = said.strip_prefix(&format!("request {id}: ")).unwrap_or(&said);
                    lines.errors.push(format!("request {id}: {reason}"));
                    let row = json!({"id": id, "error": reason});
                    // A fault of a server says more about the exit code than a request that is wrong.
                    if lines.cause.is_none() || !matches!(error, aloe_engine::Error::Request { .. }) {
                        lines.cause = Some(error);
                    }
                    row
                }
            };
            lines.text.push_str(&serde_json::to_string(&row)?);
            lines.text.push('\n');
        }
        Ok(lines)
    }

    /// Writes the lines, and `said` with the file's name and numbers to standard output. Requests without an answer are an error once
    /// all is written; where none has one, nothing is.
    pub(crate) fn write(self, out: Option<&Path>, said: Option<Value>) -> anyhow::Result<()> {
        let Self { text, n_rows, mut errors, cause } = self;
        let n_errors = errors.len();
        match out {
            _ if n_errors == n_rows => {}
            Some(path) => {
                atomic::write(path, text.as_bytes())?;
                if let Some(mut said) = said {
                    (said["out"], said["n_rows"], said["n_errors"]) = (json!(path), json!(n_rows), json!(n_errors));
                    writeln!(std::io::stdout(), "{said}")?;
                }
            }
            None => std::io::stdout().write_all(text.as_bytes())?,
        }
        let Some(cause) = cause else { return Ok(()) };
        errors.truncate(20);
        if n_errors > 20 {
            errors.push(format!("... and {} more", n_errors - 20));
        }
        let text = format!("{n_errors} of {n_rows} requests could not be answered\n{}", errors.join("\n"));
        Err(anyhow::Error::from(cause).context(text))
    }
}

/// Tells that texts were not read whole.
pub(crate) fn tell_cut(n_cut: usize, n_texts: usize) {
    if n_cut > 0 {
        let text = format!("{n_cut} of {n_texts} texts were longer than the model reads; their ends were cut off");
        aloe_record::tell(&format!("note: {text}"));
    }
}

/// What keys and values may take and took, in bytes, and how often running sequences lost theirs; `None` for an endpoint.
pub(crate) fn memory_of(engine: &Engine) -> Option<Value> {
    let counts = engine.counts()?;
    Some(json!({
        "kv_budget_bytes": counts.kv_budget_bytes, "peak_kv_bytes": counts.peak_kv_bytes, "n_evictions": counts.n_evictions,
    }))
}

/// Says on standard error when the memory budget cost time.
pub(crate) fn tell_evictions(engine: &Engine) {
    if let Some(counts) = engine.counts().filter(|counts| counts.n_evictions > 0) {
        let text = format!(
            "running answers gave up their keys and values {} times and ran their tokens again, to stay within {:.0} MiB; a larger \
             --kv-budget is faster, the answers are the same",
            counts.n_evictions,
            counts.kv_budget_bytes as f64 / 1_048_576.0
        );
        aloe_record::tell(&format!("note: {text}"));
    }
}

/// Says on standard error what an answer cache saved, and what of it was damaged.
pub(crate) fn tell_cache(counts: &CacheCounts, folder: &Path) {
    let CacheCounts { n_asked, n_hits, n_damaged } = counts;
    let damaged = if *n_damaged == 0 { String::new() } else { format!("; {n_damaged} damaged lines were passed over") };
    let text = format!("{n_hits} of {n_asked} requests were answered from {}{damaged}", folder.display());
    aloe_record::tell(&format!("note: {text}"));
}
