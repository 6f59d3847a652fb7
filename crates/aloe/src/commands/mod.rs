//! One file per subcommand, and what they share: opening a model, writing lines.

mod bench;
pub(crate) mod chat;
mod generate;
pub(crate) mod plan;
mod requests;
mod rows;
pub(crate) mod run;
mod score;
mod show_mask;
mod single;
pub(crate) mod stages;

use crate::cli::{Cli, Command, Common, ModelArgs};
use crate::failure::Failure;
use crate::weights;
use aloe_engine::{Engine, EngineOptions};
use aloe_record::{Cancel, atomic};
use aloe_text::TextModel;
use std::io::Write as _;
use std::path::Path;

/// Runs the command that was asked for.
pub(crate) fn dispatch(cli: Cli, cancel: &Cancel) -> anyhow::Result<()> {
    match cli.command {
        Command::Score(args) => score::run(&args, cancel),
        Command::Generate(args) => generate::run(&args, cancel),
        Command::Bench(args) => bench::run(&args, cancel),
        Command::Chat(args) => chat::run(&args, cancel),
        Command::ShowMask(args) => show_mask::run(&args),
        Command::Run(args) => run::run(&args, cancel),
        Command::Plan(args) => plan::run(&args),
        Command::Pull(args) => single::pull(&args, cancel),
        Command::Data(crate::cli::DataCommand::Run(args)) => single::stage("data", &args, cancel),
        Command::Sft(args) => single::stage("sft", &args, cancel),
        Command::Dpo(args) => single::stage("dpo", &args, cancel),
        Command::Merge(args) => single::merge(&args, cancel),
        Command::Eval(args) => single::eval(&args, cancel),
        Command::Redteam(args) => single::redteam(&args, cancel),
        Command::Card(args) => single::stage("card", &args, cancel),
    }
}

/// Threads to use: what was asked, or all cores.
pub(crate) fn threads_of(asked: usize) -> usize {
    if asked == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { asked }
}

/// Opens the model of a command line. A stage's folder stands for its `model/`.
pub(crate) fn open_engine(args: &ModelArgs) -> anyhow::Result<Engine> {
    if let Some(mistake) = weights::mistake(args.dtype, args.quantize, Some(&args.model)) {
        return Err(Failure::usage(format!("--{mistake}")).into());
    }
    let options = EngineOptions {
        format: weights::weight_format(args.dtype, args.quantize),
        threads: threads_of(args.common.threads),
        tokenizer: args.tokenizer.clone(),
        server_template: args.server_template,
        ..EngineOptions::default()
    };
    if args.model.starts_with("http") {
        return Ok(Engine::open(&args.model, &options)?);
    }
    let path = crate::stage::checked_model(Path::new(&args.model))?;
    Ok(Engine::open(&path.to_string_lossy(), &options)?)
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

/// Writes JSON lines to a file (atomically) or to standard output. With `--json` a file's name, its number of rows and the
/// seed are printed as JSON.
pub(crate) fn write_lines(
    out: Option<&Path>,
    common: &Common,
    rows: impl Iterator<Item = serde_json::Value>,
) -> anyhow::Result<()> {
    let mut text = String::new();
    let mut n_rows = 0;
    for row in rows {
        n_rows += 1;
        text.push_str(&serde_json::to_string(&row)?);
        text.push('\n');
    }
    match out {
        Some(path) => {
            atomic::write(path, text.as_bytes())?;
            if common.json {
                let said = serde_json::json!({"out": path, "n_rows": n_rows, "seed": common.seed});
                writeln!(std::io::stdout(), "{said}")?;
            }
            Ok(())
        }
        None => Ok(std::io::stdout().write_all(text.as_bytes())?),
    }
}
