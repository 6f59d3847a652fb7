//! Embeds the lines of standard input by a folder or an endpoint and prints one JSON list a line: what
//! `oracles/llama_embeddings.py` compares. `embed MODEL < texts`.

use aloe_engine::{Embedder, EngineOptions, Result};
use aloe_record::{Cancel, Progress};
use std::io::{BufRead as _, Write as _};

fn main() -> Result<()> {
    let model = std::env::args().nth(1).unwrap_or_default();
    let texts: Vec<String> = std::io::stdin().lock().lines().map_while(std::io::Result::ok).collect();
    let embedder = Embedder::open(&model, &EngineOptions::default())?;
    let vectors = embedder.embed(&texts, &Progress::silent(), &Cancel::default())?;
    let mut out = std::io::stdout().lock();
    for one in vectors {
        let numbers: Vec<String> = one.vector.iter().map(f32::to_string).collect();
        if writeln!(out, "[{}]", numbers.join(",")).is_err() {
            break;
        }
    }
    Ok(())
}
