//! Prints the configurations of `tests/engine_cases` as JSON, for `oracles/engine_trl.py`.

#[path = "../tests/engine_cases/mod.rs"]
mod engine_cases;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut found = serde_json::Map::new();
    for (name, spec) in engine_cases::cases() {
        found.insert(name, aloe_handoff::engine::config(&spec)?.into());
    }
    std::io::Write::write_all(&mut std::io::stdout(), serde_json::Value::Object(found).to_string().as_bytes())?;
    Ok(())
}
