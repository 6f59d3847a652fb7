//! `aloe serve`: a local model as an OpenAI-compatible server. Parses, opens, listens; `aloe-serve` answers.

use super::{is_served, open_engine};
use crate::cli::serve::ServeArgs;
use crate::cli::{Common, ModelArgs};
use crate::failure::Failure;
use crate::stage::name_of_model;
use aloe_record::Cancel;
use aloe_serve::{Error, Limits, ServeOptions, Server};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// The environment's variable with the key: a flag could be read by everyone on the machine.
const KEY_VARIABLE: &str = "ALOE_API_KEY";

/// Serves until a signal.
pub(crate) fn run(args: &ServeArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if is_served(&args.model) {
        return Err(Failure::usage("servers answer for it already; serve a folder or a .gguf file").into());
    }
    let key = match std::env::var(KEY_VARIABLE) {
        Ok(key) if !key.is_empty() => Some(key),
        Ok(_) | Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => {
            return Err(Failure::usage(format!("{KEY_VARIABLE} is not UTF-8")).into());
        }
    };
    // Before the weights are read: a port that is taken is known at once.
    let server = Server::bind(&args.host, args.port, key.as_deref()).map_err(usage)?;
    let engine = open_engine(&model_args(args), cancel)?;
    let path = Path::new(&args.model);
    let name = path.canonicalize().map_or_else(|_| name_of_model(path), |path| name_of_model(&path));
    let limits = Limits { max_requests: args.max_requests as usize, ..Limits::default() };
    let options = ServeOptions { name, key, limits };
    let mut said = Ok(());
    server.run(&engine, &options, cancel, |address| said = say(&options.name, address)).map_err(usage)?;
    said?;
    // SIGTERM is how a server is ended; Ctrl-C interrupts.
    if cancel.signal() == 2 { Err(aloe_record::Error::Cancelled.into()) } else { Ok(()) }
}

fn say(name: &str, address: SocketAddr) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{name} is served at http://{address}/v1")?;
    out.flush()
}

fn model_args(args: &ServeArgs) -> ModelArgs {
    ModelArgs {
        model: args.model.clone(),
        dtype: args.dtype,
        quantize: args.quantize,
        tokenizer: None,
        server_template: false,
        kv_budget: args.kv_budget,
        request_timeout: None,
        common: Common { seed: 0, threads: args.threads, json: false },
    }
}

fn usage(error: Error) -> anyhow::Error {
    match error {
        Error::Listen { .. } => Failure::usage(error.to_string()).into(),
        Error::Engine(error) => error.into(),
        Error::Stopped(_) => error.into(),
    }
}
