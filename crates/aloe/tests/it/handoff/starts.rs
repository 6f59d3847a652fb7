//! What a foreign training of a merge starts from, as its plan says: the shape is that of the merge's base, the tokenizer the one it names.

use crate::{run, stories};
use std::path::Path;

const RECIPE: &str = r#"
name = "starts"
seed = 3
[[stage]]
kind = "merge"
name = "merged"
from = { base = "@STORIES@", words = "@WORDS@" }
yaml = """
merge_method: linear
base_model: base
models:
  - model: base
    parameters: { weight: 1.0 }
tokenizer_source: words
"""
[[stage]]
kind = "dpo"
name = "dpo"
trainer = "trl"
from = { model = "merged", data = "@PAIRS@" }
lr = 1e-5
max_len = 500
batch_size = 2
chat_template = "alpaca"
"#;

/// The tokenizer's model says that it has 64 positions and is of another family; the base has 512 and is a Llama.
#[test]
fn a_merge_with_the_tokenizer_of_another_model_is_trained_in_the_shape_of_its_base() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let words = dir.path().join("words");
    std::fs::create_dir(&words).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"] {
        std::fs::copy(stories.join(name), words.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(words.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["max_position_embeddings"], 512);
    config["max_position_embeddings"] = 64.into();
    std::fs::write(words.join("config.json"), config.to_string()).unwrap();
    let turn = |role: &str, text: &str| serde_json::json!([{"role": role, "content": text}]);
    let pair = |i: usize| serde_json::json!({"prompt": turn("user", &format!("{i} of them?")), "chosen": turn("assistant", "Once upon a time there was a girl. "), "rejected": turn("assistant", &"No. ".repeat(30))});
    let pairs = dir.path().join("pairs.jsonl");
    std::fs::write(&pairs, (0..8).map(|i| pair(i).to_string() + "\n").collect::<String>()).unwrap();
    let recipe = dir.path().join("recipe.toml");
    let of = |path: &Path| path.display().to_string();
    let text =
        RECIPE.replace("@STORIES@", &of(&stories)).replace("@WORDS@", &of(&words)).replace("@PAIRS@", &of(&pairs));
    std::fs::write(&recipe, text).unwrap();
    let cluster = super::chain::cluster_file(dir.path(), "[engines]\ntrl = \"/opt/trl\"\n");
    let out = dir.path().join("run");
    let [recipe, cluster, folder] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
    let plan = ["plan", recipe, "--where", "local", "--cluster", cluster, "--out", folder];
    let (_, said, code) = run(&plan);
    assert_eq!(code, 0, "{said}");
    // The rows are longer than the tokenizer's model is wide.
    let rows = std::fs::read_to_string(out.join("data/dpo/rendered.jsonl")).unwrap();
    let longest = rows.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let longest =
        longest.map(|row| row["prompt_ids"].as_array().unwrap().len() + row["rejected_ids"].as_array().unwrap().len());
    assert!(longest.max() > Some(64), "{rows}");
    // The adapter of an input leaves shape and tokenizer as they are.
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    std::fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    let plain = std::fs::read_to_string(recipe).unwrap();
    let inputs = format!("base = {:?}, lora = {:?}", of(&stories), of(&adapter));
    let adapted = plain.replace(&format!("base = {:?}", of(&stories)), &inputs).replace(": base\n", ": base+lora\n");
    assert_eq!(adapted.matches("base+lora").count(), 2, "{adapted}");
    std::fs::write(recipe, adapted).unwrap();
    let (_, said, code) = run(&plan);
    assert_eq!(code, 0, "{said}");
    assert_eq!(rows, std::fs::read_to_string(out.join("data/dpo/rendered.jsonl")).unwrap());
    std::fs::write(recipe, plain).unwrap();
    // A folder without a model in it has a tokenizer all the same.
    std::fs::remove_file(words.join("config.json")).unwrap();
    std::fs::remove_file(words.join("model.safetensors")).unwrap();
    let (_, said, code) = run(&plan);
    assert_eq!(code, 0, "{said}");
    assert_eq!(rows, std::fs::read_to_string(out.join("data/dpo/rendered.jsonl")).unwrap());
}
