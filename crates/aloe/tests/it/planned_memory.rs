//! The memory that a plan gives for training stages against the peaks that their runs then have: real stages of SmolLM2-135M, one step each.
//! `oracles/plan_memory.py` does the same for twelve settings.

use crate::{root, run};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Conversations for some 9,000 tokens: more than a step takes.
fn write_rows(path: &Path) {
    let text = std::fs::read_to_string(root().join("starter/sft/medical.jsonl")).unwrap();
    let rows = text.lines().map(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        let messages =
            json!([{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]);
        format!("{}\n", json!({ "messages": messages }))
    });
    std::fs::write(path, rows.collect::<String>()).unwrap();
}

fn recipe(dir: &Path, model: &Path) -> PathBuf {
    let mut text = format!(
        "name = \"memory\"\nseed = 7\ndtype = \"bf16\"\n[[stage]]\nkind = \"pull\"\nname = \"base\"\nsource = {model:?}\nlicence = \"apache-2.0\"\n"
    );
    for (name, settings) in CASES {
        text += &format!(
            "[[stage]]\nkind = \"sft\"\nname = \"{name}\"\nfrom = {{ model = \"base\", data = {:?} }}\nlr = 1e-5\nmax_steps = 1\n\
             batch_size = 1\ncheckpoint_every = 0\nheld_out_share = 0.0\n{settings}\n",
            dir.join("rows.jsonl")
        );
    }
    let path = dir.join("recipe.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// In the first the merged model is larger than the base in its place; in the second the largest matrix, on its way to the disk, is larger
/// than all activations.
const CASES: [(&str, &str); 2] = [
    ("over-8-bit-weights", "max_len = 1024\nlora = { rank = 16, base = \"q8\" }"),
    ("computed-again", "max_len = 512\nrecompute = true\nlora = { rank = 16 }"),
];

#[test]
fn planned_memory_of_lora_is_within_15_percent_of_what_its_run_then_takes() {
    let (Ok(models), true) = (std::env::var("ALOE_MODELS"), std::env::var_os("ALOE_SLOW").is_some()) else {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_MODELS or ALOE_SLOW is not set");
        eprintln!("not run: ALOE_MODELS or ALOE_SLOW is not set");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    write_rows(&dir.path().join("rows.jsonl"));
    let model = Path::new(&models).join("smollm2-135m-instruct-q4_1/model.gguf");
    let (recipe, out) = (recipe(dir.path(), &model), dir.path().join("out"));
    let [recipe, out_text] = [&recipe, &out].map(|path| path.to_str().unwrap());
    let stage = |name: &str| {
        let (_, stderr, code) = run(&["run", recipe, "--out", out_text, "--stage", name]);
        assert_eq!(code, 0, "{name}: {stderr}");
    };
    stage("base");
    for measure in [&[][..], &["--measure"]] {
        let (stdout, stderr, code) = run(&[&["plan", recipe, "--out", out_text, "--json"], measure].concat());
        assert_eq!(code, 0, "{stderr}");
        let plan: Value = serde_json::from_str(&stdout).unwrap();
        for (name, _) in CASES {
            if measure.is_empty() {
                stage(name);
            }
            let record: Value =
                serde_json::from_str(&std::fs::read_to_string(out.join(name).join("record.json")).unwrap()).unwrap();
            let row = plan["stages"].as_array().unwrap().iter().find(|row| row["stage"] == name).unwrap();
            let share = row["memory_bytes"].as_f64().unwrap() / record["peak_rss_bytes"].as_f64().unwrap();
            assert!((0.85..1.15).contains(&share), "{name} {measure:?}: {share} of the measured memory");
        }
    }
}
