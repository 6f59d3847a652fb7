//! What is refused or named before and while merging: rows and ids of vocabularies, files of several documents, hidden NaN, memory,
//! template tokens.

use super::*;

fn tokenizers(dir: &Path, files: &[(&str, Vec<u8>)]) {
    files.iter().for_each(|(model, content)| put(&dir.join(model), "tokenizer.json", content));
}

/// Tokens `t0 .. t<n - 1>`.
fn words(n: usize) -> Vec<String> {
    (0..n).map(|id| format!("t{id}")).collect()
}

fn plain(n: usize, added: &[(usize, &str)]) -> Vec<u8> {
    let words = words(n);
    tokenizer_json(&words.iter().map(String::as_str).collect::<Vec<_>>(), added)
}

#[test]
fn a_row_by_number_past_the_embedding_is_refused_with_its_line() {
    let (dir, options) = models();
    tokenizers(dir.path(), &[("base", plain(60, &[])), ("a", plain(60, &[])), ("b", plain(60, &[]))]);
    let text = |id: usize| {
        dare(&format!(
            "tokenizer:\n  source: base\n  tokens:\n    <new>:\n      source: {{kind: model_token, model: a, token_id: {id}}}\n"
        ))
    };
    refused(&text(64), &options, dir.path(), "token_id 64 as the source of \"<new>\": the embedding of a has 64 rows");
    refused(&text(1_000_000), &options, dir.path(), "line 11");
    let out = dir.path().join("merged");
    run(&text(63), &out, &options).unwrap();
    let merged = Checkpoint::open(&out.join("model")).unwrap();
    assert_eq!(merged.config.vocab_size, 61);
}

/// The leader ends with token t50; in the vocabulary of `a` that token has id 2, and there are 30 rows.
#[test]
fn ids_of_the_config_follow_their_tokens_into_the_new_vocabulary() {
    let (dir, options) = models();
    let base = dir.path().join("base");
    let mut config = config_json(64, false);
    (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) = (json!(4), json!([50, 7]), json!(51));
    put(&base, "config.json", config.to_string());
    put(&base, "generation_config.json", r#"{"bos_token_id": 4, "eos_token_id": 50, "top_p": 0.5}"#);
    let mut own = words(30);
    own[2] = "t50".into();
    own[9] = "t2".into();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    tokenizers(dir.path(), &[("base", plain(64, &[])), ("a", tokenizer_json(&own, &[])), ("b", plain(64, &[]))]);
    let out = dir.path().join("merged");
    let report = run(&dare("tokenizer_source: a\n"), &out, &options).unwrap();
    let merged = Checkpoint::open(&out.join("model")).unwrap();
    assert_eq!(merged.config.vocab_size, 30);
    assert_eq!((merged.config.bos_token_id, &merged.config.eos_token_ids[..]), (Some(4), &[2, 7][..]));
    assert_eq!(merged.config.raw.get("pad_token_id"), Some(&json!(null)), "t51 is in no row: {:?}", report.notes);
    assert!(
        report.notes.iter().any(|note| note.starts_with("eos_token_id of config.json is [2,7]")),
        "{:?}",
        report.notes
    );
    // A vocabulary without the tokens at all: the ids are those of the model that it comes from.
    let foreign: Vec<String> = (0..30).map(|id| format!("x{id}")).collect();
    let foreign: Vec<&str> = foreign.iter().map(String::as_str).collect();
    put(&dir.path().join("a"), "tokenizer.json", tokenizer_json(&foreign, &[]));
    run(&dare("tokenizer_source: a\n"), &out, &options).unwrap();
    let merged = Checkpoint::open(&out.join("model")).unwrap();
    assert_eq!((merged.config.bos_token_id, &merged.config.eos_token_ids[..]), (Some(1), &[2][..]));
    // The union keeps the leader's ids, in both files.
    run(&dare("tokenizer_source: union\n"), &out, &options).unwrap();
    assert_eq!(Checkpoint::open(&out.join("model")).unwrap().config.eos_token_ids, [50, 7]);
    let generation: serde_json::Value = atomic::read_json(&out.join("model/generation_config.json")).unwrap();
    assert_eq!(generation, json!({"bos_token_id": 4, "eos_token_id": 50, "top_p": 0.5}));
}

/// A folder with a tokenizer alone: t20, t19, .. t1 and a token that no model has, whose row is zeros.
#[test]
fn the_tokenizer_of_a_model_that_is_not_merged_orders_the_rows() {
    let (dir, mut options) = models();
    tokenizers(dir.path(), &[("base", plain(64, &[])), ("a", plain(64, &[])), ("b", plain(64, &[]))]);
    let folder = dir.path().join("words");
    std::fs::create_dir(&folder).unwrap();
    let mut own: Vec<String> = words(21)[1..].iter().rev().cloned().collect();
    own.push("new".into());
    put(&folder, "tokenizer.json", tokenizer_json(&own.iter().map(String::as_str).collect::<Vec<_>>(), &[]));
    options.folders.insert("words".into(), folder);
    refused(&dare("tokenizer_source: nowhere\n"), &options, dir.path(), "there is no folder nowhere");
    let out = dir.path().join("merged");
    let text = dare("tokenizer_source: words\n");
    let report = run(&text, &out, &options).unwrap();
    assert_eq!(report.models, ["a", "b"]);
    assert!(!report.notes.iter().any(|note| note.starts_with("words")), "{:?}", report.notes);
    let embedding = |dir: &Path| Checkpoint::open(dir).unwrap().load_f32("model.embed_tokens.weight").unwrap();
    let merged = embedding(&out.join("model"));
    let base = embedding(&dir.path().join("base"));
    assert_eq!(merged.len(), 21 * 32);
    for row in 0..20 {
        // A change is at most 2^-9 and its rescale by 1/0.25 at most 2^-7; rows of the base differ by more.
        let from = 20 - row;
        let near = |at: usize| (merged[row * 32 + at] - base[from * 32 + at]).abs() < 2f32.powi(-6);
        assert!((0..32).all(near), "row {row}");
    }
    assert!(merged[20 * 32..].iter().all(|value| *value == 0.0));
    let written: serde_json::Value = atomic::read_json(&out.join("model/tokenizer.json")).unwrap();
    assert_eq!(written["model"]["vocab"]["t20"], 0);
    let table = plan(&parse(&text).unwrap(), &options).unwrap().table(&options);
    assert!(table.contains("tokenizer  words"), "{table}");
}

#[test]
fn every_nan_of_an_f32_input_is_named_in_every_dtype_and_method() {
    let (dir, options) = models();
    let weights = dir.path().join("a/model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    for payload in [0x7fff_ffffu32, 0xffff_ffff, 0x7f80_0001] {
        let mut bytes = whole.clone();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&payload.to_le_bytes());
        std::fs::write(&weights, bytes).unwrap();
        for dtype in ["bfloat16", "float16", "float32"] {
            for method in ["linear", "ties", "dare_ties", "model_stock", "sce", "nearswap", "slerp", "passthrough"] {
                let models = match method {
                    "passthrough" => "models: [{model: a}]\n",
                    "nearswap" | "slerp" => {
                        "models: [{model: base}, {model: a}]\nbase_model: base\nparameters: {t: 0.3}\n"
                    }
                    "linear" => "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n",
                    _ => MODELS_AB,
                };
                let text = format!("{models}merge_method: {method}\ndtype: {dtype}\n");
                let error = run(&text, &dir.path().join("merged"), &options).map(|_| ()).unwrap_err().to_string();
                assert!(error.contains("of model a: element") && error.contains("NaN"), "{payload:#x} {text}: {error}");
            }
        }
    }
}

#[test]
fn all_documents_are_checked_before_the_first_is_merged() {
    let (dir, options) = models();
    let half = "name: half\nmodels: [{model: a, parameters: {weight: 1, density: 0.5}}]\nbase_model: base\nmerge_method: dare_ties\n\
                dtype: float32\n---\n";
    let last =
        "models: [{model: half, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\nmerge_method: linear\n";
    let text = |last: &str| format!("{half}{last}");
    refused(&text(&last.replace("model: b", "model: gone")), &options, dir.path(), "there is no folder gone");
    let sliced =
        "slices: [{sources: [{model: half, layer_range: [0, 3], parameters: {weight: 1}}]}]\nmerge_method: linear\n";
    refused(&text(sliced), &options, dir.path(), "half, which has 2 layers");
    write_model(&dir.path().join("tied"), "a", 64, true, Dtype::F32);
    let mut others = options.clone();
    others.folders.insert("tied".into(), dir.path().join("tied"));
    refused(&text(&last.replace("model: b", "model: tied")), &others, dir.path(), "tie_word_embeddings");

    let planned = plan(&parse(&text(last)).unwrap(), &options).unwrap();
    let beside = planned.disk_bytes(&options) - 2 * 4 * 22_688;
    assert!((1..1 << 20).contains(&beside), "both results in float32 stand on the disk at once");
    let table = planned.table(&options);
    assert!(table.starts_with("document half\n  base   base") || table.contains("document half\n"), "{table}");
    assert!(table.contains("linear: 21 tensors") && table.contains("at the peak"), "{table}");
    let error = merge_tensor(&parse(&text(last)).unwrap(), &planned, &planned.tensors[3]).unwrap_err().to_string();
    assert!(
        error.contains("is made by an earlier document") && error.contains("merge half by itself first"),
        "{error}"
    );
}

#[test]
fn notes_and_figures_of_earlier_documents_stay_in_the_report() {
    let (dir, options) = models();
    let text = "name: half\nmodels: [{model: a, parameters: {weight: 1, density: 0.5}}]\nbase_model: base\nmerge_method: dare_ties\n\
                dtype: float32\n---\nmodels: [{model: half, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n\
                merge_method: linear\ndtype: float32\n";
    let out = dir.path().join("merged");
    let report = run(text, &out, &options).unwrap();
    assert_eq!(report.earlier.len(), 1);
    let earlier = &report.earlier[0];
    assert_eq!((earlier.name.as_deref(), &earlier.method[..], earlier.tensors.len()), (Some("half"), "dare_ties", 21));
    assert!((earlier.kept_shares[0] - 0.5).abs() < 0.02, "{:?}", earlier.kept_shares);
    assert!(report.notes.iter().any(|note| note.starts_with("half: rescale_kind is not given")), "{:?}", report.notes);
    let readme = std::fs::read_to_string(out.join("model/README.md")).unwrap();
    assert!(readme.contains("earlier document `half`") && readme.contains("| mlp.up_proj | 0.0"), "{readme}");
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("Earlier document half"));
}

#[test]
fn the_default_rescale_of_dare_is_named_where_it_matters() {
    let (dir, options) = models();
    let has_note = |text: &str| {
        let report = run(text, &dir.path().join("merged"), &options).unwrap();
        report.notes.iter().any(|note| note.contains("mergekit since then") && note.contains("rescale_kind: l1"))
    };
    assert!(has_note(&dare("")));
    assert!(!has_note(&dare("parameters: {rescale_kind: density}\n")), "said so");
    assert!(!has_note(&dare("parameters: {rescale: false}\n")), "nothing is rescaled");
    assert!(!has_note(&dare("").replace("density: 0.5", "density: 1").replace("density: 0.25", "density: 1")));
    assert!(!has_note(&dare("").replace("dare_ties", "ties")));
}

/// Token 60 is near zero in all models, 61 and 62 have one row, 63 was changed by `a` alone, 59 by none.
#[test]
fn rows_of_template_tokens_that_no_model_trained_are_named() {
    let (dir, options) = models();
    let names = ["<zero>", "<twin>", "<same>", "<mine>", "<kept>"];
    let added: Vec<(usize, &str)> = [60, 61, 62, 63, 59].into_iter().zip(names).collect();
    for model in ["base", "a", "b"] {
        let folder = dir.path().join(model);
        put(&folder, "tokenizer.json", plain(59, &added));
        put(&folder, "tokenizer_config.json", r#"{"chat_template": "<zero><twin><same><mine><kept>{{ x }}"}"#);
        let file = folder.join("model.safetensors");
        let opened = aloe_model::SafeTensorsFile::open(&file).unwrap();
        let mut edits = Vec::new();
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let whole = opened.bytes(name).unwrap();
            let start = std::fs::read(&file).unwrap().windows(whole.len()).position(|window| window == whole).unwrap();
            for row in 59..64usize {
                let scale = 2.0f32.powi(-5);
                let values = match row {
                    60 => vec![1e-6f32; 32],
                    61 | 62 => vec![scale; 32],
                    63 => noise(&format!("mine/{name}/{}", if model == "a" { "a" } else { "base" }), 32),
                    _ => noise("kept", 32).into_iter().map(|value| value * scale).collect(),
                };
                edits.push((start + row * 128, values));
            }
        }
        drop(opened);
        let mut bytes = std::fs::read(&file).unwrap();
        for (at, values) in edits {
            values
                .iter()
                .enumerate()
                .for_each(|(i, v)| bytes[at + 4 * i..at + 4 * i + 4].copy_from_slice(&v.to_le_bytes()));
        }
        std::fs::write(&file, bytes).unwrap();
    }
    let out = dir.path().join("merged");
    let report = run(&dare(""), &out, &options).unwrap();
    let note = |start: &str, tensor: &str| {
        report.notes.iter().find(|note| note.starts_with(start) && note.contains(tensor)).cloned().unwrap_or_default()
    };
    for tensor in ["model.embed_tokens.weight", "lm_head.weight"] {
        let never = note("no model trained the rows", tensor);
        for (token, is_named) in [("<zero> (id 60)", true), ("<twin> (id 61)", true), ("<same> (id 62)", true)] {
            assert_eq!(never.contains(token), is_named, "{never}");
        }
        assert!(!never.contains("<mine>") && !never.contains("<kept>"), "{never}");
        let same = note("no model changed the rows", tensor);
        assert!(same.contains("<kept> (id 59)") && !same.contains("<mine>") && !same.contains("<zero>"), "{same}");
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("no model trained the rows"));
    assert!(std::fs::read_to_string(out.join("model/README.md")).unwrap().contains("no model trained the rows"));
}

#[test]
fn a_union_drops_the_other_forms_of_the_vocabulary_and_names_models_without_a_tokenizer() {
    let (dir, options) = models();
    let base = dir.path().join("base");
    tokenizers(dir.path(), &[("base", plain(62, &[])), ("a", plain(62, &[(62, "<new>")]))]);
    for name in ["vocab.json", "merges.txt", "tokenizer.model"] {
        put(&base, name, "old");
    }
    let out = dir.path().join("merged");
    let report = run(&dare("tokenizer_source: union\n"), &out, &options).unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer.model"] {
        assert!(!out.join("model").join(name).exists(), "{name}");
    }
    assert!(report.notes.iter().any(|note| note.starts_with("vocab.json, merges.txt, tokenizer.model are left out")));
    assert!(report.notes.iter().any(|note| note.starts_with("b has no tokenizer.json: its rows are taken")));
    let unchanged = run(&dare("tokenizer_source: base\n"), &out, &options).unwrap();
    assert!(out.join("model/vocab.json").exists() && !unchanged.notes.iter().any(|note| note.contains("left out")));
}

#[test]
fn the_budget_counts_what_the_method_notes() {
    let (dir, options) = models();
    let needs = |text: &str| plan(&parse(text).unwrap(), &options).unwrap().memory_bytes(1);
    tokenizers(dir.path(), &[("base", plain(64, &[])), ("a", plain(64, &[])), ("b", plain(64, &[]))]);
    let size = std::fs::metadata(dir.path().join("a/tokenizer.json")).unwrap().len();
    // Two maps of 64 rows: four bytes per model, and one; all tokens are in all models, so there are no donors.
    let rows = 2 * 64 * (3 * 4 + 1);
    // Three open tokenizers of 64 tokens in place of two that are compared.
    let tokenizers = 3 * (3 * size + 640 * 64) - 2 * 2 * size;
    assert_eq!(needs(&dare("tokenizer_source: union\n")) - needs(&dare("")), tokenizers + rows);
    let stock = format!("{MODELS_AB}merge_method: model_stock\ndtype: float32\n");
    // What f64 takes beyond the f32 of three offsets, and in f64 three squares and three products.
    assert_eq!(needs(&stock) - needs(&dare("")), (3 + 2 * 6) * 4 * crate::tile::TILE as u64);
    // By rows: of the 64, three squares and three products of pieces and whole, and a place.
    let by_row = format!("{stock}parameters: {{filter_wise: true}}\n");
    assert_eq!(needs(&by_row) - needs(&stock), 64 * (2 * 6 * 8 + 4));
}

/// Thirty models whose embedding has 128,256 rows of two numbers: nothing of linear is kept per row.
#[test]
fn a_linear_merge_of_thirty_models_fits_the_default_budget() {
    let dir = tempfile::tempdir().unwrap();
    let mut json = config_json(128_256, true);
    (json["hidden_size"], json["head_dim"], json["num_attention_heads"]) = (json!(2), json!(2), json!(1));
    (json["num_key_value_heads"], json["intermediate_size"], json["num_hidden_layers"]) =
        (json!(1), json!(2), json!(1));
    let config = Config::from_json(&json).unwrap();
    let mut writer = CheckpointWriter::create(&dir.path().join("m"), &config, Dtype::Bf16).unwrap();
    for spec in aloe_model::arch::tensors(&config) {
        writer.add(&spec.hf_name, &vec![0.5; spec.n_elements()]).unwrap();
    }
    writer.finish(&[]).unwrap();
    let names: Vec<String> = (0..30).map(|at| format!("m{at}")).collect();
    let folders = names.iter().map(|name| (name.clone(), dir.path().join("m"))).collect();
    let options = MergeOptions { folders, ..MergeOptions::default() };
    let models: String = names.iter().map(|name| format!("- model: {name}\n")).collect();
    let text = format!("models:\n{models}merge_method: linear\nparameters: {{weight: 1}}\n");
    let needed = plan(&parse(&text).unwrap(), &options).unwrap().memory_bytes(1);
    assert!(needed < 100 << 20, "{needed}");
}

#[test]
fn what_cannot_be_merged_is_refused_with_one_message_and_nothing_is_left() {
    let (dir, options) = models();
    let whole = config_json(64, false);
    let a = dir.path().join("a");
    let good = dare("");
    let mut qwen = whole.clone();
    (qwen["model_type"], qwen["architectures"]) = (json!("mistral"), json!(["MistralForCausalLM"]));
    put(&a, "config.json", qwen.to_string());
    refused(&good, &options, dir.path(), "is of another architecture: model_type is mistral, that of base is llama");
    for (key, number, expected) in [
        ("intermediate_size", 48, "is of another architecture: intermediate_size is 48, that of base is 64"),
        ("num_hidden_layers", 1, "num_hidden_layers of b is 2, that of a is 1: use slices"),
        ("num_key_value_heads", 4, "is of another architecture: num_key_value_heads is 4, that of base is 2"),
    ] {
        let mut other = whole.clone();
        other[key] = json!(number);
        std::fs::remove_dir_all(&a).unwrap();
        let config = Config::from_json(&other).unwrap();
        let mut writer = CheckpointWriter::create(&a, &config, Dtype::F32).unwrap();
        for spec in aloe_model::arch::tensors(&config) {
            writer.add(&spec.hf_name, &value("a", &spec.hf_name, spec.n_elements())).unwrap();
        }
        writer.finish(&[]).unwrap();
        refused(&good, &options, dir.path(), expected);
    }
    std::fs::remove_dir_all(&a).unwrap();
    write_model(&a, "a", 64, false, Dtype::F32);

    refused(
        &good.replace("dare_ties", "dare_tie"),
        &options,
        dir.path(),
        "unknown merge_method dare_tie; this version has linear,",
    );
    for (density, epsilon) in [(0.9, 0.1), (0.1, 0.15), (0.1, 0.1)] {
        let della = good
            .replace("dare_ties", "della")
            .replace("density: 0.5", &format!("density: {density}, epsilon: {epsilon}"));
        let expected =
            format!("density {density} with epsilon {epsilon} for model.embed_tokens.weight: density - epsilon");
        refused(&della, &options, dir.path(), &expected);
    }

    let weights = a.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let renamed = String::from_utf8_lossy(&bytes[8..end]).replacen("layers.1.mlp.up_proj", "layers.1.mlp.up_pr0j", 1);
    let mut missing = bytes.clone();
    missing[8..end].copy_from_slice(renamed.as_bytes());
    std::fs::write(&weights, missing).unwrap();
    refused(&good, &options, dir.path(), "model.layers.1.mlp.up_proj.weight");
    std::fs::write(&weights, bytes).unwrap();

    tokenizers(dir.path(), &[("base", plain(64, &[])), ("b", plain(64, &[]))]);
    let unigram = json!({"model": {"type": "Unigram", "vocab": [["t0", -1.0]]}, "added_tokens": []});
    put(&a, "tokenizer.json", unigram.to_string());
    let union = dare("tokenizer_source: union\n");
    refused(
        &union,
        &options,
        dir.path(),
        "its tokenizer is of type BPE, another one of Unigram: they cannot be united",
    );
    std::fs::remove_file(a.join("tokenizer.json")).unwrap();

    let planned = plan(&parse(&good).unwrap(), &options).unwrap();
    assert!(planned.disk_bytes(&options) > 4 * 22_688);
    planned.check_disk(dir.path(), &options).unwrap();
}

#[test]
fn the_digest_of_one_tensor_is_that_of_its_bytes_in_the_file() {
    let (dir, mut options) = models();
    let out = dir.path().join("merged");
    for dtype in ["bfloat16", "float16", "float32"] {
        let text = dare(&format!("out_dtype: {dtype}\n"));
        run(&text, &out, &options).unwrap();
        let file = aloe_model::SafeTensorsFile::open(&out.join("model/model.safetensors")).unwrap();
        for threads in [1, 3] {
            options.threads = threads;
            let (config, name) = (parse(&text).unwrap(), "model.layers.1.mlp.up_proj.weight");
            let plan = plan(&config, &options).unwrap();
            let tensor = plan.tensors.iter().find(|tensor| tensor.spec.hf_name == name).unwrap();
            let (digest, stats) = tensor_digest(&config, &plan, tensor).unwrap();
            assert_eq!(digest, aloe_record::digest::bytes(file.bytes(name).unwrap()), "{dtype}");
            assert!(stats.unwrap().n_kept[0] > 0);
        }
    }
}
