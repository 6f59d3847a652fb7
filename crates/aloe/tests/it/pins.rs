//! What the engine answers is pinned for every form of weights, for sampling, and for every CPU path that this machine has: a change of
//! a kernel's arithmetic or of a step of the sampler is seen, and `ANSWERS_SINCE` (aloe-engine/src/cache.rs) is set. Otherwise an answer
//! cache mixes old bits and new ones under one key, and finished stages pass for those of this program.

use crate::{aloe, stories};
use aloe_tensor::Isa;
use serde_json::json;
use std::path::{Path, PathBuf};

/// One question to the engine: what it is called, the command, the model and the flags.
type Work = (&'static str, &'static str, Model, &'static [&'static str]);

/// The model asked: stories260K, or SmolLM2 in the blocks of its file.
#[derive(Clone, Copy)]
enum Model {
    Stories,
    Gguf,
}

const WORKS: [Work; 9] = [
    ("score f32", "score", Model::Stories, &["--dtype", "f32"]),
    ("score bf16", "score", Model::Stories, &["--dtype", "bf16"]),
    ("score q8", "score", Model::Stories, &["--quantize", "q8"]),
    ("score q4", "score", Model::Stories, &["--quantize", "q4"]),
    ("score gguf", "score", Model::Gguf, &[]),
    ("generate f32", "generate", Model::Stories, &["--dtype", "f32"]),
    ("generate bf16", "generate", Model::Stories, &["--dtype", "bf16"]),
    ("generate q4", "generate", Model::Stories, &["--quantize", "q4"]),
    ("generate gguf", "generate", Model::Gguf, &[]),
];

/// Where products are fused with their sums: three paths with the same bits.
const FUSED: [&str; 9] = [
    "018080c0c5050bad",
    "9980f4497510fc1b",
    "e3d3d18f300ea28c",
    "cc97fddeea6568fe",
    "13eda5b936614dc4",
    "3226f3b12f1dfd86",
    "7690fdc6379abdbe",
    "9946bc7fc4451bee",
    "9b304b00887f4b4b",
];

/// Tiles sum products of bf16, those of attention among them, in groups of sixteen pairs.
const TILES: [&str; 9] = [
    "018080c0c5050bad",
    "b27e1bdf747fa8ad",
    "c952b4c1dfebcf3a",
    "477bc1b18241c53b",
    "d88443ae43edf63a",
    "3226f3b12f1dfd86",
    "ca8b27ea76a5fdb7",
    "27293d856d757064",
    "7a683e050baf104a",
];

/// Plain Rust rounds each f32 product; those of bf16 are exact.
const PORTABLE: [&str; 9] = [
    "759a1bb76f66b7ef",
    "9980f4497510fc1b",
    "0efcfb0a2a59366e",
    "f74a6e8589fbe8b5",
    "75bbbdb22d2e6f9e",
    "02532ef8a0fd14f3",
    "7690fdc6379abdbe",
    "73975f572a8fc8ce",
    "b9607c93c1554f8a",
];

/// A digest of the lines written for each work, by CPU path.
const PINNED: [(&str, [&str; 9]); 5] =
    [("amx-bf16", TILES), ("avx512-bf16", FUSED), ("avx512", FUSED), ("avx2", FUSED), ("portable", PORTABLE)];

fn gguf() -> PathBuf {
    let models = std::env::var("ALOE_MODELS").expect("ALOE_MODELS is set where ALOE_DATA is");
    PathBuf::from(models).join("smollm2-135m-instruct-q4_1/model.gguf")
}

/// Prompts with a beginning in common, so that the tree is used, one a page long and one of more.
fn rows(command: &str) -> String {
    let sentence = "Once upon a time there was a little girl named Lily who liked to play in the park.";
    let prompts = [sentence.to_owned(), format!("{sentence} She saw"), sentence.repeat(3), "The dog".to_owned()];
    let row = |(at, prompt): (usize, String)| match command {
        "score" => {
            json!({"id": at.to_string(), "prompt": prompt, "continuations": [" a big dog.", " a ball", " happy"]})
        }
        _ => {
            let mut row = json!({"id": at.to_string(), "prompt": prompt, "n": 2, "max_new_tokens": 12, "seed": 5});
            let fields = [
                json!({"temperature": 0.9}),
                json!({"temperature": 0.9, "top_p": 0.8}),
                json!({"temperature": 1.3, "top_k": 20, "min_p": 0.02, "repetition_penalty": 1.2}),
                json!({"temperature": 0}),
            ];
            row.as_object_mut().unwrap().extend(fields[at].as_object().unwrap().clone());
            row
        }
    };
    prompts.into_iter().enumerate().map(|one| format!("{}\n", row(one))).collect()
}

fn digest(path: &str, stories: &Path, work: &Work, dir: &Path) -> String {
    let (_, command, model, flags) = work;
    let model = match model {
        Model::Stories => stories.to_path_buf(),
        Model::Gguf => gguf(),
    };
    let requests = dir.join(format!("{command}.jsonl"));
    std::fs::write(&requests, rows(command)).unwrap();
    let mut run = aloe();
    run.args([command, model.to_str().unwrap(), "--requests", requests.to_str().unwrap()]).args(*flags);
    let found = run.env("ALOE_CPU", path).output().unwrap();
    assert!(found.status.success(), "{path}: {}", String::from_utf8_lossy(&found.stderr));
    assert_eq!(found.stdout.iter().filter(|&&byte| byte == b'\n').count(), 4);
    aloe_record::digest::bytes(&found.stdout)[..16].to_owned()
}

#[test]
fn answers_that_changed_in_any_form_of_weights_on_any_cpu_path_say_so_in_answers_since() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut changed = String::new();
    for (path, pinned) in PINNED {
        if !Isa::ALL.into_iter().any(|isa| isa.name() == path && isa.available()) {
            eprintln!("not run: this machine has no {path}");
            continue;
        }
        let found = WORKS.each_ref().map(|work| digest(path, &stories, work, dir.path()));
        let works = WORKS.iter().zip(&found).zip(pinned).filter(|((_, found), pin)| *found != pin);
        let names: Vec<&str> = works.map(|((work, _), _)| work.0).collect();
        if !names.is_empty() {
            changed += &format!("// changed: {}\n    ({path:?}, {found:?}),\n", names.join(", "));
        }
    }
    assert!(
        changed.is_empty(),
        "answers changed. If that is meant, set ANSWERS_SINCE (aloe-engine/src/cache.rs) to the version being made, write the reason \
         into LOG.md, and pin:\n{changed}"
    );
}
