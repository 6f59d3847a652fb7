//! For `oracles/engine_trl.py` and `engine_axolotl.py`: `engine_run write RUN sft|dpo|chunks N_NODES [axolotl]` writes a tiny run folder and our own
//! trainer's metrics;
//! `engine_run verify RUN STAGE WORK OUT` checks what an engine left and imports it; `engine_run rows OUT TOKENIZER ROWS [TEMPLATE]`
//! encodes conversations.

#[path = "../tests/engine_run/mod.rs"]
mod engine_run;

use aloe_handoff::Trainer;
use aloe_handoff::engine::{self, Rows, RowsInput, Settings};
use aloe_handoff::verify::{self, Expectation};
use aloe_text::{Conversation, TextModel};
use aloe_train::{SftConfig, SftRow};
use engine_run::{Kind, train, write_run};
use serde_json::json;
use std::io::Write as _;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["write", run, kind, n_nodes, engine @ ..] => {
            let kind = Kind::ALL.into_iter().find(|known| known.name() == *kind).ok_or("no such kind")?;
            let trainer = if engine == ["axolotl"] { Trainer::Axolotl } else { Trainer::Trl };
            write_run(trainer, Path::new(run), kind, n_nodes.parse()?);
            train(Path::new(run), kind);
        }
        ["verify", run, stage, work, out] => verify(Path::new(run), stage, work, Path::new(out))?,
        ["rows", out, tokenizer, rows, template @ ..] => rows_of(out, Path::new(tokenizer), rows, template.first())?,
        _ => return Err("see the head of this file".into()),
    }
    Ok(())
}

fn verify(run: &Path, stage: &str, work: &str, out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut expected: Expectation = aloe_record::atomic::read_json(&run.join(stage).join("expected.json"))?;
    expected.start = run.join(&expected.start);
    let folder = run.join(work);
    let verdict = verify::check(&folder, &expected);
    let mut said = json!({"findings": verdict.findings.iter().map(ToString::to_string).collect::<Vec<_>>(), "facts": verdict.facts});
    if verdict.is_good() {
        verify::seal(&folder, verdict.facts.n_steps)?;
        let text = TextModel::open(&expected.start)?;
        said["import"] = serde_json::to_value(verify::import(&folder, &expected, &verdict, &text, out)?)?;
        let newest = verify::newest_checkpoint(&folder);
        said["newest"] = json!({"step": newest.found.map(|(_, step)| step), "passed_over": newest.passed_over});
    }
    std::io::stdout().write_all(said.to_string().as_bytes())?;
    Ok(())
}

/// One line a conversation: ids and labels, or why it is refused.
fn rows_of(out: &str, tokenizer: &Path, rows: &str, template: Option<&&str>) -> Result<(), Box<dyn std::error::Error>> {
    let mut text = if tokenizer.is_dir() {
        TextModel::open(tokenizer)?
    } else {
        TextModel::from_gguf(aloe_model::Gguf::open(tokenizer)?.metadata())?
    };
    if let Some(name) = template {
        text = text.with_template(name)?;
    }
    let folder = Path::new(out);
    std::fs::create_dir_all(folder)?;
    for file in text.files() {
        std::fs::write(folder.join(file.name), file.bytes)?;
    }
    let (mut lines, mut kept) = (String::new(), Vec::new());
    for line in std::fs::read_to_string(rows)?.lines() {
        let conversation: Conversation = serde_json::from_str(line)?;
        let said = match text.encode_conversation(&conversation) {
            Ok(encoded) => {
                let label = |(&id, &trained): (&u32, &bool)| if trained { i64::from(id) } else { -100 };
                let labels: Vec<i64> = encoded.ids.iter().zip(&encoded.loss_mask).map(label).collect();
                kept.push(SftRow { source: format!("{}", kept.len()), data_source: None, conversation });
                json!({"input_ids": encoded.ids, "labels": labels})
            }
            Err(error) => json!({"refused": error.to_string()}),
        };
        lines.push_str(&format!("{said}\n"));
    }
    std::fs::write(folder.join("ours.jsonl"), lines)?;
    // The message rows and the marked template, as a stage would get them.
    let config = json!({"model_type": "llama", "vocab_size": text.tokenizer.vocab_size(), "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 1_000_000, "tie_word_embeddings": true});
    let model = aloe_model::Config::from_json(&config)?;
    let settings =
        Settings::Sft(SftConfig { epochs: Some(1), max_len: 100_000, batch_size: 1, ..SftConfig::default() });
    let rows = Rows::Sft(kept, Vec::new());
    let input = RowsInput { trainer: Trainer::Axolotl, settings: &settings, text: &text, model: &model, rows };
    engine::render_rows(input, &folder.join("data"))?;
    Ok(())
}
