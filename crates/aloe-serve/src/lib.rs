//! A local model as an OpenAI-compatible server: `/v1/completions`, `/v1/chat/completions`, `/v1/embeddings`,
//! `/v1/models` and `/health`.
//!
//! Reading order: `server` (the accept loop and its limits), `app` (routes, key, bodies), `fields` (what a request may hold: a field
//! that is not known, or cannot be honoured, is refused by name), `sampling`, `completions`, `chat` and `embeddings` (a request to jobs for the
//! engine's queue, and what is told of them to an answer), `asking` (jobs and the ear for them), `names` (tokens as texts), `events` (answers
//! as server-sent events), `refusal`, `reader` (a client that does not read).
//!
//! An answer is the engine's own, to the bit, whatever else is served at the time. What a user wrote never becomes a control token;
//! whoever wants one sends ids. Nothing that is asked or answered is written anywhere.

mod app;
mod asking;
mod chat;
mod completions;
mod embeddings;
mod events;
mod fields;
mod names;
mod reader;
mod refusal;
mod sampling;
mod server;

pub use server::{Error, Limits, ServeOptions, Server};
