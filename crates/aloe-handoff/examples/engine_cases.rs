//! Prints the configurations of `tests/engine_cases` as JSON, for `oracles/engine_trl.py`; `engine_cases axolotl` for `oracles/engine_axolotl.py`.

#[path = "../tests/engine_cases/mod.rs"]
mod engine_cases;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut found = serde_json::Map::new();
    let is_axolotl = std::env::args().nth(1).is_some_and(|engine| engine == "axolotl");
    let cases = if is_axolotl { engine_cases::axolotl_cases() } else { engine_cases::cases() };
    for (name, spec) in cases {
        found.insert(name, aloe_handoff::engine::config(&spec)?.into());
    }
    std::io::Write::write_all(&mut std::io::stdout(), serde_json::Value::Object(found).to_string().as_bytes())?;
    Ok(())
}
