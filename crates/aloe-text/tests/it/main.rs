//! Tests of aloe-text against golden files (`oracles/chat_templates.py`), the real Llama 3 tokenizer and GGUF models, hostile templates
//! and hostile text.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod gguf_files;
mod golden;
mod hostile;
mod masks;
mod support;
