//! `aloe chat`: a conversation with streaming answers, or one prompt. The defaults are the reference card's.

use crate::cli::ChatArgs;
use crate::commands::open_engine;
use crate::failure::Failure;
use aloe_engine::{Completion, Engine, Error, GenerateRequest, Prompt, Sampling};
use aloe_record::Cancel;
use aloe_text::{Message, Role};
use std::io::{BufRead as _, IsTerminal as _, Write as _};

/// The system prompt of the Llama3-Aloe-8B-Alpha model card, as published.
pub(crate) const CARD_SYSTEM_PROMPT: &str = "You are an expert medical assistant named Aloe, developed by the High \
Performance Artificial Intelligence Group at Barcelona Supercomputing Center(BSC). You are to be a helpful, respectful, \
and honest assistant.";

const NOTICE: &str =
    "For research only: not for clinical practice, diagnosis or healthcare advice. Answers can be wrong.";

/// Talks until end of input, or answers `--prompt`.
#[allow(clippy::print_stderr, reason = "the prompt mark belongs to the terminal, not to the answer")]
pub(crate) fn run(args: &ChatArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if let Some(mistake) = sampling(args).mistakes().into_iter().next() {
        return Err(Failure::usage(mistake).into());
    }
    if args.model.common.json && args.prompt.is_none() {
        let text = "--json prints the answer to one prompt; give --prompt TEXT too, or leave --json out to talk";
        return Err(Failure::usage(text).into());
    }
    let engine = open_engine(&args.model, cancel)?;
    aloe_record::tell(NOTICE);
    let mut messages = Vec::new();
    if !args.system.is_empty() {
        messages.push(Message { role: Role::System, content: args.system.clone() });
    }
    if let Some(prompt) = &args.prompt {
        messages.push(Message { role: Role::User, content: prompt.clone() });
        let completion = answer(&engine, args, &messages, 0, cancel)?;
        if args.model.common.json {
            print_line(&serde_json::to_string(&completion)?)?;
        }
        return Ok(());
    }
    let is_terminal = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock().lines();
    for turn in 0.. {
        if is_terminal {
            eprint!("\n> ");
        }
        let Some(line) = lines.next().transpose()? else { break };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message { role: Role::User, content: line });
        let completion = answer(&engine, args, &messages, turn, cancel)?;
        messages.push(Message { role: Role::Assistant, content: completion.text.trim().to_owned() });
    }
    Ok(())
}

fn sampling(args: &ChatArgs) -> Sampling {
    Sampling {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.model.common.seed,
        stop: args.stop.clone(),
        ..Sampling::default()
    }
}

fn answer(
    engine: &Engine,
    args: &ChatArgs,
    messages: &[Message],
    turn: usize,
    cancel: &Cancel,
) -> anyhow::Result<Completion> {
    let prompt = Prompt::Messages(messages.to_vec());
    let request = GenerateRequest { id: format!("chat/{turn}"), prompt, n: 1, sampling: sampling(args) };
    let shows = !args.model.common.json;
    let mut out = std::io::stdout();
    let mut failed = None;
    let completion = engine.generate_streaming(&request, cancel, &mut |piece| {
        if shows && failed.is_none() {
            failed = out.write_all(piece.as_bytes()).and_then(|()| out.flush()).err();
        }
    });
    let completion = completion.map_err(without_id)?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if shows {
        print_line("")?;
    }
    Ok(completion)
}

/// An error in the words of someone at a keyboard: the request's id is ours, nobody typed it.
fn without_id(error: Error) -> anyhow::Error {
    match error {
        Error::Request { reason, .. } => Failure::usage(reason).into(),
        Error::Answer { url, reason, .. } => Error::Endpoint { url, reason }.into(),
        error => error.into(),
    }
}

fn print_line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_names_the_request_that_nobody_typed() {
        let (id, url) = ("chat/0".to_owned(), "http://localhost/v1".to_owned());
        let reason = "the answer holds no text".to_owned();
        let request = Error::Request { id: id.clone(), reason: "the prompt is too long".to_owned() };
        assert_eq!(without_id(request).to_string(), "the prompt is too long");
        let endpoint = without_id(Error::Answer { url, id, reason }).to_string();
        assert_eq!(endpoint, "endpoint http://localhost/v1: the answer holds no text");
    }
}
