//! `aloe merge` as a user drives it: the plan as text and as JSON, one tensor, budgets that hold, models of the hub's cache, and kills in the middle.

use crate::{aloe, run};
use aloe_model::{CheckpointWriter, Config, SafeTensorsFile};
use aloe_tensor::Dtype;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Writes a Llama of one layer in bfloat16 with numbers of no meaning, other ones per `salt`.
fn write_model(dir: &Path, salt: u32, vocab_size: usize, hidden_size: usize) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size, "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        "rope_theta": 10000.0
    });
    let config = Config::from_json(&config).unwrap();
    let mut writer = CheckpointWriter::create(dir, &config, Dtype::Bf16).unwrap();
    for spec in aloe_model::arch::tensors(&config) {
        let value = |index: u32| {
            let base = index.wrapping_mul(0x9E37_79B9) >> 8;
            let change = if salt == 0 { 0 } else { index.wrapping_mul(0x85EB_CA6B ^ salt) >> 14 };
            (f64::from(base) + f64::from(change)) as f32 * 2.0f32.powi(-24) - 0.5
        };
        writer.add(&spec.hf_name, &(0..spec.n_elements() as u32).map(value).collect::<Vec<f32>>()).unwrap();
    }
    writer.finish(&[]).unwrap();
}

/// A folder with the models `base`, `a` and `b`, and a file that merges them by DARE-TIES.
pub(crate) fn dare(vocab_size: usize, hidden_size: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for (salt, name) in ["base", "a", "b"].into_iter().enumerate() {
        write_model(&dir.path().join(name), salt as u32, vocab_size, hidden_size);
    }
    let config = dir.path().join("merge.yml");
    std::fs::write(&config, document(dir.path(), &["a", "b"])).unwrap();
    (dir, config)
}

fn document(dir: &Path, models: &[&str]) -> String {
    let path = |name: &str| if name == "half" { name.to_owned() } else { dir.join(name).display().to_string() };
    let models: String = models
        .iter()
        .map(|name| format!("- {{model: {}, parameters: {{weight: 0.5, density: 0.5}}}}\n", path(name)))
        .collect();
    format!("merge_method: dare_ties\nbase_model: {}\nmodels:\n{models}dtype: bfloat16\n", path("base"))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The files of a merge but the record, whose seconds differ.
fn files(out: &Path) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = std::fs::read_dir(out)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name() != "record.json" && entry.path().is_file())
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), aloe_record::digest::file(&entry.path()).unwrap())
        })
        .collect();
    found.sort();
    found
}

/// Waits for the end while looking at the highest memory that the process has used, in bytes.
fn peak(mut child: Child) -> u64 {
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(1024 * kilobytes.unwrap_or(0));
        std::thread::yield_now();
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
fn a_merge_stays_below_its_memory_budget_and_any_budget_gives_the_same_bytes() {
    let (dir, config) = dare(128_256, 512);
    let mut first = None;
    let digest_of = |name: &str| aloe_record::digest::folder(&dir.path().join(name)).unwrap();
    let mut inputs = ["base", "a", "b"].map(digest_of);
    inputs.sort_unstable();
    for (budget, threads) in [(1024, "2"), (82, "2")] {
        let out = dir.path().join(format!("out-{budget}"));
        let arguments = ["--memory", &budget.to_string(), "--threads", threads].map(str::to_owned);
        let mut command = aloe();
        command.args(["merge", text(&config), text(&out)]).args(&arguments).stderr(Stdio::null()).stdout(Stdio::null());
        let peak = peak(command.spawn().unwrap());
        println!("budget {budget} MiB: peak {:.1} MiB", peak as f64 / f64::from(1 << 20));
        assert!(peak > 0 && peak < budget << 20, "{peak} bytes with a budget of {budget} MiB");
        let found = files(&out);
        assert_eq!(&found, first.get_or_insert_with(|| found.clone()), "budget {budget} MiB");
        // The models are older than three seconds sooner or later, and are then hashed while they are merged: to the same digests.
        let record: Value = serde_json::from_slice(&std::fs::read(out.join("record.json")).unwrap()).unwrap();
        let mut named: Vec<&str> =
            record["inputs"].as_object().unwrap().values().map(|v| v.as_str().unwrap()).collect();
        named.sort_unstable();
        assert_eq!(named, inputs, "budget {budget} MiB");
    }
    let (stdout, stderr, code) = run(&["merge", text(&config), "--check", "--memory", "82", "--threads", "2"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("with 1 threads, of a budget of 82 MiB"), "{stdout}");

    // One tensor of the embedding's size under the same budget.
    let mut command = aloe();
    command.args(["merge", text(&config), "--tensor", "model.embed_tokens.weight", "--memory", "82"]);
    let peak = peak(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    assert!(peak < 82 << 20, "--tensor took {peak} bytes");
}

#[test]
fn check_prints_the_plan_of_every_document_and_tensor_the_digest_of_the_written_bytes() {
    let (dir, config) = dare(300, 32);
    let out = dir.path().join("out");
    let (stdout, stderr, code) = run(&["merge", text(&config), text(&out), "--check"]);
    assert_eq!(code, 0, "{stderr}");
    for part in ["dare_ties: ", "at the peak", "disk: ", "weight 0.5, density 0.5", "rescale_kind is not given"] {
        assert!(stdout.contains(part), "{stdout} lacks {part}");
    }
    assert!(!out.exists());
    let (_, stderr, code) = run(&["merge", text(&config), text(&out)]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("rescale_kind is not given"), "{stderr}");
    let written = SafeTensorsFile::open(&out.join("model.safetensors")).unwrap();
    for name in ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"] {
        let (stdout, stderr, code) = run(&["merge", text(&config), "--tensor", name]);
        assert_eq!(code, 0, "{stderr}");
        let found: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(found["sha256"], aloe_record::digest::bytes(written.bytes(name).unwrap()), "{name}");
        assert_eq!(found["dtype"], "bfloat16");
    }

    let two = format!("name: half\n{}---\n{}", document(dir.path(), &["a"]), document(dir.path(), &["half", "b"]));
    std::fs::write(&config, &two).unwrap();
    let (stdout, stderr, code) = run(&["merge", text(&config), "--check"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("document half") && stdout.contains("earlier documents included"), "{stdout}");
    std::fs::write(&config, two.replace("\n- {model: half", "\n- {model: nobody/nothing}\n- {model: half")).unwrap();
    let (_, stderr, code) = run(&["merge", text(&config), "--check"]);
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn a_model_of_the_hub_is_taken_from_the_local_cache_or_named_with_its_line() {
    let (dir, config) = dare(300, 32);
    let home = dir.path().join("home");
    let folder = home.join("hub/models--org--tuned");
    std::fs::create_dir_all(folder.join("snapshots")).unwrap();
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    let yaml =
        std::fs::read_to_string(&config).unwrap().replace(&dir.path().join("a").display().to_string(), "org/tuned");
    let hub = dir.path().join("hub.yml");
    std::fs::write(&hub, &yaml).unwrap();
    let out = dir.path().join("out");
    let run = |arguments: &[&str]| {
        let output = aloe().env("HF_HOME", &home).env_remove("HF_HUB_CACHE").args(arguments).output().unwrap();
        (String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
    };
    for arguments in [vec!["merge", text(&hub), text(&out)], vec!["merge", text(&hub), "--check"]] {
        let (stderr, code) = run(&arguments);
        assert_eq!(code, 2, "{stderr}");
        assert!(
            stderr.contains("line 4: there is no folder org/tuned; pull it first (`aloe pull hf:org/tuned"),
            "{stderr}"
        );
    }
    assert!(!out.exists() && !aloe_record::atomic::sibling(&out).exists());
    std::fs::write(folder.join("refs/main"), "0123abcd").unwrap();
    std::fs::rename(dir.path().join("a"), folder.join("snapshots/0123abcd")).unwrap();
    let (stderr, code) = run(&["merge", text(&hub), text(&out)]);
    assert_eq!(code, 0, "{stderr}");
    assert!(std::fs::read_to_string(out.join("README.md")).unwrap().contains("- org/tuned"));

    // The same name in a recipe.
    let recipe = dir.path().join("recipe.toml");
    let stage = format!(
        "name = \"x\"\n[[stage]]\nkind = \"merge\"\nname = \"merge\"\nmaster = false\nyaml = \"\"\"\n{yaml}\"\"\"\n"
    );
    std::fs::write(&recipe, &stage).unwrap();
    let (stderr, code) = run(&["run", text(&recipe), "--out", text(&dir.path().join("run"))]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(weights(&dir.path().join("run/merge")), weights(&out));
    std::fs::write(&recipe, stage.replace("org/tuned", "org/other")).unwrap();
    let (stderr, code) = run(&["run", text(&recipe), "--out", text(&dir.path().join("other"))]);
    assert!(code == 2 && stderr.contains("pull it first (`aloe pull hf:org/other"), "{stderr}");
}

fn weights(folder: &Path) -> String {
    aloe_record::digest::file(&folder.join("model.safetensors")).unwrap()
}

/// Three levels of parameters: the model's own filter, then the file's; what no level has is the method's default. By hand.
#[test]
fn the_plan_as_json_tells_what_applies_to_every_tensor() {
    let (dir, config) = dare(300, 32);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let yaml = format!(
        "merge_method: ties\nbase_model: {}\nparameters: {{weight: 0.25, lambda: 0.5}}\nmodels:\n- model: {}\n  parameters:\n    \
         density: [{{filter: mlp, value: 0.75}}, {{value: 0.5}}]\n- model: {}\n  parameters: {{weight: 2}}\ndtype: float32\nout_dtype: bfloat16\n",
        path("base"),
        path("a"),
        path("b")
    );
    std::fs::write(&config, yaml).unwrap();
    let (stdout, stderr, code) = run(&["merge", text(&config), "--check", "--json", "--seed", "7"]);
    assert_eq!(code, 0, "{stderr}");
    let plan: Value = serde_json::from_str(&stdout).unwrap();
    let expected = json!(["ties", "float32", "bfloat16", 7, path("base")]);
    assert_eq!(
        json!([plan["method"], plan["dtype"], plan["out_dtype"], plan["seed"], plan["tokenizer_files"]]),
        expected
    );
    assert_eq!(plan["tokenizer"], Value::Null);
    let groups = plan["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{groups:#?}");
    let mut n_tensors = 0;
    for group in groups {
        let names = group["tensors"].as_array().unwrap();
        n_tensors += names.len();
        let is_mlp = names[0].as_str().unwrap().contains("mlp");
        assert!(names.iter().all(|name| name.as_str().unwrap().contains("mlp") == is_mlp), "{names:?}");
        assert_eq!(group["base_model"], path("base").as_str());
        let shared = &group["parameters"];
        assert_eq!(json!([shared["lambda"], shared["normalize"], shared["rescale"]]), json!([0.5, true, false]));
        let inputs = group["inputs"].as_array().unwrap();
        assert_eq!(
            inputs.iter().map(|input| &input["model"]).collect::<Vec<_>>(),
            [&path("a"), &path("b"), &path("base")]
        );
        assert!(inputs.iter().all(|input| input["tensors"] == group["tensors"]));
        let density = if is_mlp { 0.75 } else { 0.5 };
        assert_eq!(inputs[0]["parameters"], json!({"weight": 0.25, "density": density}));
        assert_eq!(inputs[1]["parameters"], json!({"weight": 2.0, "density": 1.0}));
        assert_eq!(inputs[2]["parameters"], json!({}), "the base, which the file names last");
    }
    assert_eq!(n_tensors, 11, "an embedding, nine tensors of the layer, a norm");
}

/// Bytes of weights that stand under a folder, as far as they were written.
fn written(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => written(&path),
            path if path.to_string_lossy().contains(".safetensors") => {
                path.metadata().map_or(0, |file| file.blocks() * 512)
            }
            _ => 0,
        })
        .sum()
}

/// Kills a merge when its partial folder is as far as `is_far_enough` wants it; whether it was still running.
fn kill_when(config: &Path, out: &Path, threads: &str, is_far_enough: impl Fn(&Path) -> bool) -> bool {
    let partial = aloe_record::atomic::sibling(out);
    let mut command = aloe();
    command.args(["merge", text(config), text(out), "--threads", threads]).stderr(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    while !(partial.exists() && is_far_enough(&partial)) && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let was_running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    was_running
}

#[test]
fn a_killed_merge_leaves_nothing_that_looks_finished_and_the_same_command_gives_the_same_bytes() {
    let (dir, one) = dare(40_000, 256);
    let two = dir.path().join("two.yml");
    let half = document(dir.path(), &["a"]);
    std::fs::write(&two, format!("name: half\n{half}---\n{}", document(dir.path(), &["half", "b"]))).unwrap();
    let size = 2 * 41_000 * 256;
    for (config, total) in [(&one, size), (&two, 2 * size)] {
        let whole = dir.path().join("whole");
        let (_, stderr, code) = run(&["merge", text(config), text(&whole)]);
        assert_eq!(code, 0, "{stderr}");
        let expected = files(&whole);
        let mut n_killed = 0;
        for (share, threads) in [(0.0, "1"), (0.2, "2"), (0.5, "1"), (0.8, "2")] {
            let out = dir.path().join("out");
            let bytes = (share * f64::from(total)) as u64;
            let was_running = kill_when(config, &out, threads, |partial| written(partial) >= bytes);
            if was_running {
                n_killed += 1;
                assert!(!out.exists(), "{share}: {out:?} stands although the merge was killed");
                assert!(!aloe_record::atomic::sibling(&out).join("record.json").exists(), "{share}");
            }
            let (_, stderr, code) = run(&["merge", text(config), text(&out)]);
            assert_eq!(code, 0, "{share}: {stderr}");
            assert_eq!(files(&out), expected, "{share}");
            std::fs::remove_dir_all(&out).unwrap();
        }
        assert!(n_killed >= 3, "only {n_killed} of 4 kills met a running merge");
        std::fs::remove_dir_all(&whole).unwrap();
    }
}

/// Killed while the last files are written and the folder gets its name: it stands whole or not at all. The weights are complete when
/// merge.json appears; between it and the end lie the record and the renaming.
#[test]
fn a_merge_killed_while_it_commits_stands_whole_or_not_at_all() {
    let (dir, config) = dare(4_000, 64);
    let whole = dir.path().join("whole");
    let (_, stderr, code) = run(&["merge", text(&config), text(&whole)]);
    assert_eq!(code, 0, "{stderr}");
    let expected = files(&whole);
    let out = dir.path().join("out");
    let mut n_killed = 0;
    for (at, last) in ["merge.json", "report.html", "record.json"].into_iter().cycle().take(9).enumerate() {
        let threads = if at % 2 == 0 { "2" } else { "1" };
        n_killed += usize::from(kill_when(&config, &out, threads, |partial| partial.join(last).exists()));
        if out.exists() {
            assert_eq!(files(&out), expected, "{last}");
            assert!(out.join("record.json").exists(), "{last}");
            std::fs::remove_dir_all(&out).unwrap();
        }
        let (_, stderr, code) = run(&["merge", text(&config), text(&out)]);
        assert_eq!(code, 0, "{last}: {stderr}");
        assert_eq!(files(&out), expected, "{last}");
        std::fs::remove_dir_all(&out).unwrap();
    }
    assert!(n_killed >= 1, "no kill met a running merge");
}

/// A tokenizer of so many tokens, and `more` of its own.
fn put_tokenizer(folder: &Path, n_tokens: usize, n_merges: usize, more: &str) {
    let mut vocabulary: serde_json::Map<String, Value> =
        (0..n_tokens - 1).map(|id| (format!("token number {id}"), json!(id))).collect();
    vocabulary.insert(more.to_owned(), json!(n_tokens - 1));
    let merges: Vec<String> = (0..n_merges).map(|rank| format!("piece{rank} end")).collect();
    let tokenizer =
        json!({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": merges}});
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// What `--check` says that two threads need is enough for two threads, whatever a method notes of the whole tensor.
#[test]
fn two_threads_stay_below_what_check_says_they_need_by_every_kind_of_method() {
    let (dir, _) = dare(64_000, 256);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let models = |own: &str| format!("models:\n- {{model: {}{own}}}\n- {{model: {}{own}}}\n", path("a"), path("b"));
    let weighted = models(", parameters: {weight: 0.5, density: 0.5}");
    for (method, text_of) in [
        ("ties", weighted.clone()),
        ("sce", format!("{}parameters: {{select_topk: 0.5}}\n", models(""))),
        ("model_stock", format!("{}parameters: {{filter_wise: true}}\n", models(""))),
        ("nuslerp", format!("{}parameters: {{weight: 0.5, nuslerp_flatten: false}}\n", models(""))),
        (
            "nuslerp",
            format!("{}parameters: {{weight: 0.5, nuslerp_flatten: false, nuslerp_row_wise: true}}\n", models("")),
        ),
        ("task_arithmetic", format!("{weighted}tokenizer_source: union\n")),
    ] {
        if text_of.contains("union") {
            ["base", "a", "b"].iter().for_each(|name| put_tokenizer(&dir.path().join(name), 64_000, 0, name));
        }
        let config = dir.path().join("merge.yml");
        let yaml = format!("{text_of}merge_method: {method}\nbase_model: {}\ndtype: bfloat16\n", path("base"));
        std::fs::write(&config, &yaml).unwrap();
        let (stdout, stderr, code) = run(&["merge", text(&config), "--check", "--json", "--threads", "2"]);
        assert_eq!(code, 0, "{stderr}");
        let plan: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(plan["threads"], 2, "{yaml}");
        let budget = plan["memory_bytes"].as_u64().unwrap().div_ceil(1 << 20);
        let out = dir.path().join("out");
        let mut command = aloe();
        command.args(["merge", text(&config), text(&out), "--threads", "2", "--memory", &budget.to_string()]);
        let peak = peak(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        println!("{method}: budget {budget} MiB, peak {:.1} MiB", peak as f64 / f64::from(1 << 20));
        assert!(peak > 0 && peak < budget << 20, "{peak} bytes with a budget of {budget} MiB: {yaml}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}

/// Tokenizers of the sizes of SmolLM2's and Llama 3's over small weights: united, and compared with each other; many models too.
#[test]
fn the_stated_need_covers_tokenizers_of_real_size() {
    for (n_tokens, n_merges) in [(49_152, 48_900), (128_256, 280_147)] {
        let (dir, _) = dare(n_tokens, 32);
        let path = |name: &str| dir.path().join(name).display().to_string();
        ["base", "a", "b"].iter().for_each(|name| put_tokenizer(&dir.path().join(name), n_tokens, n_merges, "last"));
        let copies: Vec<String> = (0..7).map(|copy| path(&format!("copy{copy}"))).collect();
        copies.iter().for_each(|copy| std::os::unix::fs::symlink(path("a"), copy).unwrap());
        let model = |path: &String| format!("- {{model: {path}, parameters: {{weight: 0.1}}}}\n");
        let two: String = [path("a"), path("b")].iter().map(model).collect();
        let nine: String = copies.iter().map(model).collect::<String>() + &two;
        for (models, choice) in [(&two, "tokenizer_source: union\n"), (&two, ""), (&nine, "chat_template: auto\n")] {
            let config = dir.path().join("merge.yml");
            let base = path("base");
            let yaml = format!(
                "models:\n{models}merge_method: task_arithmetic\nbase_model: {base}\ndtype: bfloat16\n{choice}"
            );
            std::fs::write(&config, &yaml).unwrap();
            let (stdout, stderr, code) = run(&["merge", text(&config), "--check", "--json", "--threads", "1"]);
            assert_eq!(code, 0, "{stderr}");
            let plan: Value = serde_json::from_str(&stdout).unwrap();
            let needed = plan["memory_bytes"].as_u64().unwrap();
            let out = dir.path().join("out");
            let mut command = aloe();
            command.args(["merge", text(&config), text(&out), "--threads", "1"]);
            let peak = peak(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
            println!("{n_tokens} tokens, {choice:?}: stated {} MiB, peak {} MiB", needed >> 20, peak >> 20);
            assert!(peak > 0 && peak < needed, "{peak} bytes, stated {needed}: {choice:?}");
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
}
