//! The `aloe` binary: flags, recipes, sources, records and the card. It parses, opens, calls a stage's spine and writes
//! the record; the work is done in the crates below it.
//!
//! Reading order: `cli`, `commands`, `recipe`, `stage`, `card`.

mod card;
mod cli;
mod commands;
mod failure;
mod handoff;
mod input_digests;
mod known;
mod leave;
mod lineage;
mod outputs;
mod panics;
mod parity;
mod recipe;
mod replaced;
mod served;
mod sources;
mod stage;
mod weights;

use aloe_record::Cancel;
use aloe_tensor::Isa;
use clap::Parser as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Buffers in large pages, kept for the next operation.
#[global_allocator]
static HEAP: aloe_tensor::Heap = aloe_tensor::Heap;

fn main() -> ExitCode {
    panics::keep_text_out();
    let cli = cli::Cli::parse();
    let cancel = Cancel::default();
    if let Err(error) = watch_signals(&cancel) {
        report(&error);
        return ExitCode::from(1);
    }
    match choose_kernels().and_then(|()| commands::dispatch(cli, &cancel)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has read enough: `aloe plan recipe.toml | head`.
        Err(error) if failure::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(failure::exit_code(&error, cancel.signal()))
        }
    }
}

/// `ALOE_CPU` names the kernels of a lesser processor, to repeat a result that was made on one.
fn choose_kernels() -> anyhow::Result<()> {
    let Some(name) = std::env::var_os("ALOE_CPU").filter(|name| !name.is_empty()) else { return Ok(()) };
    if Isa::ALL.into_iter().find(|isa| *isa.name() == *name).is_some_and(Isa::choose) {
        return Ok(());
    }
    let usable: Vec<&str> = Isa::ALL.into_iter().filter(|isa| isa.available()).map(Isa::name).collect();
    let text = format!("ALOE_CPU={} is not one of this machine's: {}", name.to_string_lossy(), usable.join(", "));
    Err(failure::Failure::usage(text).into())
}

/// How long a further SIGTERM counts as the first: a scheduler that cancels a job signals all of its processes, and the job then those it
/// started.
const SAME_SIGNAL: Duration = Duration::from_secs(3);

/// Ctrl-C and SIGTERM ask for a stop at the next safe place; a second one ends the process at once.
fn watch_signals(cancel: &Cancel) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let cancel = cancel.clone();
    std::thread::spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in &mut signals {
            match first {
                Some(at) if signal == SIGTERM && at.elapsed() < SAME_SIGNAL => continue,
                Some(_) => std::process::exit(128 + signal),
                None => first = Some(Instant::now()),
            }
            cancel.request(usize::try_from(signal).unwrap_or(2));
        }
    });
    Ok(())
}

fn report(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    let is_interruption = matches!(failure::exit_code(error, 0), 130 | 143);
    aloe_record::tell(&format!("{}{text}", if is_interruption { "" } else { "error: " }));
}
