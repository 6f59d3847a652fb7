//! Vocabularies as other tools read them: ids of a union, the tokens that end a text, borrowed rows, and what is said of them.

use super::*;
use aloe_text::Tokenizer;
use serde_json::Value;

fn words(n: usize) -> Vec<String> {
    (0..n).map(|id| format!("t{id}")).collect()
}

/// Tokens `t0 .. t<n - 1>` and added ones.
fn plain(n: usize, added: &[(usize, &str)]) -> Vec<u8> {
    let words = words(n);
    tokenizer_json(&words.iter().map(String::as_str).collect::<Vec<_>>(), added)
}

/// A whole file, as the `tokenizers` library reads it.
fn bpe(vocab: Value, merges: Value, added: &[(usize, &str)]) -> String {
    let entry = |(id, token): &(usize, &str)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    };
    let added: Vec<Value> = added.iter().map(entry).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
           "post_processor": null, "decoder": null, "model": {"type": "BPE", "vocab": vocab, "merges": merges}})
    .to_string()
}

/// Ids of a file: vocabulary, then added tokens over it.
fn ids_of_file(path: &Path) -> Vec<(String, u64)> {
    let json: Value = atomic::read_json(path).unwrap();
    let plain = json["model"]["vocab"].as_object().unwrap().iter();
    let plain = plain.map(|(token, id)| (token.clone(), id.as_u64().unwrap()));
    let added = json["added_tokens"].as_array().unwrap().iter();
    let added = added.map(|entry| (entry["content"].as_str().unwrap().to_owned(), entry["id"].as_u64().unwrap()));
    plain.chain(added).collect()
}

fn notes_of(text: &str, options: &MergeOptions) -> Vec<String> {
    plan(&parse(text).unwrap(), options).unwrap().notes
}

/// Llama 3's layout: the base's added tokens stand behind its vocabulary, so the other model's plain token comes behind them.
#[test]
fn the_ids_of_a_union_are_those_that_the_tokenizers_library_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = MergeOptions::default();
    for (name, n, json) in [
        ("base", 5, bpe(json!({"a": 0, "b": 1, "c": 2}), json!([]), &[(3, "<x>"), (4, "<y>")])),
        ("a", 6, bpe(json!({"a": 0, "b": 1, "c": 2, "ab": 3}), json!(["a b"]), &[(4, "<z>"), (5, "<x>")])),
    ] {
        write_model(&dir.path().join(name), name, n, true, Dtype::F32);
        put(&dir.path().join(name), "tokenizer.json", json);
        options.folders.insert(name.to_owned(), dir.path().join(name));
    }
    let text = "models: [{model: base, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]\nbase_model: base\n\
                merge_method: linear\ndtype: float32\ntokenizer_source: union\n";
    let out = dir.path().join("merged");
    let report = run(text, &out, &options).unwrap();
    let found = Tokenizer::open(&out.join("model")).unwrap();
    let ids = ids_of_file(&out.join("model/tokenizer.json"));
    assert!(ids.contains(&("<x>".into(), 3)) && ids.contains(&("ab".into(), 5)) && ids.contains(&("<z>".into(), 6)));
    for (token, id) in ids {
        assert_eq!(found.token_id(&token), Some(id as u32), "{token}");
    }
    assert_eq!(found.encode_markup("<x>cab<z>").unwrap(), [3, 2, 5, 6]);
    assert!(
        report.notes.iter().any(|note| note.starts_with("1 plain tokens of the union (\"ab\"")),
        "{:?}",
        report.notes
    );
}

#[test]
fn a_chosen_tokenizer_brings_the_tokens_that_end_its_texts() {
    let (dir, mut options) = models();
    let [base, a, b] = ["base", "a", "b"].map(|name| dir.path().join(name));
    [&base, &a, &b].into_iter().for_each(|folder| put(folder, "tokenizer.json", plain(64, &[])));
    put(&a, "tokenizer_config.json", r#"{"bos_token": {"content": "t3"}, "eos_token": "t7", "pad_token": null}"#);
    put(&a, "generation_config.json", r#"{"eos_token_id": 9, "top_p": 0.5}"#);
    let out = dir.path().join("merged");
    let report = run(&dare("tokenizer_source: a\n"), &out, &options).unwrap();
    let config = Checkpoint::open(&out.join("model")).unwrap().config;
    // Its own config.json says 2, which stays a way to end.
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(3), &[7, 2][..]));
    assert!(
        report.notes.iter().any(|note| note.starts_with("eos_token_id of config.json is [7,2]")),
        "{:?}",
        report.notes
    );
    let generation: Value = atomic::read_json(&out.join("model/generation_config.json")).unwrap();
    assert_eq!(generation, json!({"eos_token_id": [9, 7, 2], "top_p": 0.5}));
    // The base's tokenizer: its own ids.
    run(&dare("tokenizer_source: base\n"), &out, &options).unwrap();
    assert_eq!(Checkpoint::open(&out.join("model")).unwrap().config.eos_token_ids, [2]);
    // A folder with a tokenizer alone has no config.json whose ids could stay.
    let alone = dir.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    put(&alone, "tokenizer.json", plain(64, &[]));
    put(&alone, "tokenizer_config.json", r#"{"eos_token": "t5"}"#);
    options.folders.insert("alone".into(), alone);
    run(&dare("tokenizer_source: alone\n"), &out, &options).unwrap();
    assert_eq!(Checkpoint::open(&out.join("model")).unwrap().config.eos_token_ids, [5]);
}

const CHATML: &str = r#"{"eos_token": "<|im_end|>", "chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"}"#;

/// `a` alone has `<|im_end|>`, and nobody `<|im_start|>`.
fn chat() -> (tempfile::TempDir, MergeOptions) {
    let (dir, options) = models();
    put(&dir.path().join("base"), "tokenizer.json", plain(60, &[]));
    put(&dir.path().join("base"), "generation_config.json", r#"{"eos_token_id": 2}"#);
    put(&dir.path().join("b"), "tokenizer.json", plain(60, &[]));
    put(&dir.path().join("a"), "tokenizer.json", plain(60, &[(60, "<|im_end|>")]));
    put(&dir.path().join("a"), "tokenizer_config.json", CHATML);
    (dir, options)
}

#[test]
fn the_token_that_ends_the_chosen_template_s_answers_ends_a_text() {
    let (dir, options) = chat();
    let out = dir.path().join("merged");
    for template in ["auto", "chatml", "\"{% for m in messages %}{{ m.content }}\\n<|im_end|>{% endfor %}\""] {
        let text = dare(&format!("tokenizer_source: union\nchat_template: {template}\n"));
        let report = run(&text, &out, &options).unwrap();
        assert_eq!(Checkpoint::open(&out.join("model")).unwrap().config.eos_token_ids, [2, 60], "{template}");
        let generation: Value = atomic::read_json(&out.join("model/generation_config.json")).unwrap();
        assert_eq!(generation, json!({"eos_token_id": [2, 60]}), "{template}");
        let note = |start: &str| report.notes.iter().any(|note| note.starts_with(start));
        assert!(note("eos_token_id gets 60 (<|im_end|>) beside [2]"), "{:?}", report.notes);
        let lacks = note("the chat template writes <|im_start|>, which the result's vocabulary does not have");
        assert_eq!(lacks, !template.starts_with('"'), "{:?}", report.notes);
    }
    // Neither token is there, and the base's eos stays alone.
    let text = dare("tokenizer_source: base\nchat_template: chatml\n");
    let notes = notes_of(&text, &options);
    assert!(
        notes.iter().any(|note| note.starts_with("the chat template writes <|im_start|>, <|im_end|>,")),
        "{notes:?}"
    );
    assert!(!notes.iter().any(|note| note.starts_with("eos_token_id gets")), "{notes:?}");
}

#[test]
fn a_chosen_vocabulary_is_not_to_be_given_up_for_a_chat_template() {
    let (_dir, options) = chat();
    let hint = |settings: &str| {
        let notes = notes_of(&dare(settings), &options).into_iter();
        notes.filter(|note| note.starts_with("the tokenizer of base has no chat template")).collect::<Vec<_>>()
    };
    for settings in ["tokenizer_source: union\n", "tokenizer_source: base\n"] {
        let found = hint(settings);
        let [note] = &found[..] else { panic!("{settings}: {found:?}") };
        assert!(note.ends_with("`chat_template: auto` would take the one that most models have"), "{note}");
    }
    assert!(hint("tokenizer_source: union\nchat_template: auto\n").is_empty());
}

#[test]
fn a_row_that_the_base_borrows_is_not_said_to_be_unchanged() {
    let (_dir, options) = chat();
    let notes = notes_of(&dare("tokenizer_source: union\nchat_template: auto\n"), &options);
    assert!(!notes.iter().any(|note| note.starts_with("no model changed the rows")), "{notes:?}");
    let borrowed = |name: &str| {
        format!("{name} has no row for 1 token of the result (\"<|im_end|>\"), which it takes from other models")
    };
    assert!(notes.contains(&borrowed("base")) && notes.contains(&borrowed("b")), "{notes:?}");
}

#[test]
fn rows_that_no_model_of_their_slice_has_are_said_to_be_zeros() {
    let (dir, options) = chat();
    let text = "slices:\n- sources: [{model: base, layer_range: [0, 1]}]\n- sources: [{model: a, layer_range: [1, 2]}]\n\
                merge_method: passthrough\ndtype: float32\ntokenizer_source: union\n";
    let out = dir.path().join("merged");
    let report = run(text, &out, &options).unwrap();
    let expected = "no model of slice 1 has 1 token of the result (\"<|im_end|>\"): the embedding has zeros there";
    assert!(report.notes.iter().any(|note| note == expected), "{:?}", report.notes);
    assert!(!report.notes.iter().any(|note| note.contains("takes from other models")), "{:?}", report.notes);
    let embedding = Checkpoint::open(&out.join("model")).unwrap().load_f32("model.embed_tokens.weight").unwrap();
    assert!(embedding[60 * 32..].iter().all(|value| *value == 0.0));
}

#[test]
fn a_token_that_is_no_text_is_refused_with_its_line() {
    for key in ["123", "yes", "null", "1.5"] {
        let text = dare(&format!("tokenizer:\n  source: union\n  tokens:\n    {key}: {{source: a}}\n"));
        let error = parse(&text).unwrap_err().to_string();
        assert!(
            error.contains("line 10: a key of tokens must be a text, found ") && error.ends_with("quote it"),
            "{error}"
        );
        parse(&text.replace(&format!(" {key}:"), &format!(" \"{key}\":"))).unwrap();
    }
}

#[test]
fn a_template_that_does_not_compile_is_refused_with_its_line() {
    let error = parse(&dare("chat_template: \"{% for m in %}{{ m }}\"\n")).unwrap_err().to_string();
    assert!(error.contains("line 7: ") && error.contains("chat_template"), "{error}");
}

#[test]
fn settings_of_the_models_that_differ_are_named() {
    let (dir, options) = models();
    let mut config = config_json(64, false);
    (config["rms_norm_eps"], config["max_position_embeddings"]) = (json!(1e-6), json!(64));
    config["sliding_window"] = json!(4096);
    put(&dir.path().join("a"), "config.json", config.to_string());
    let notes = notes_of(&dare(""), &options);
    for expected in [
        "rms_norm_eps of a is 0.000001; the result gets that of base, 0.00001",
        "max_position_embeddings of a is 64; the result gets that of base, 128",
        "sliding_window of a is 4096; the result gets that of base, null",
    ] {
        assert!(notes.iter().any(|note| note == expected), "{expected} is not in {notes:?}");
    }
}

fn size_of(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { size_of(&path) } else { path.metadata().unwrap().len() }).sum()
}

/// The most that a merge was ever seen to write beyond its weights is counted, and not much more.
#[test]
fn what_the_disk_must_hold_covers_all_files_of_the_result() {
    let (dir, mut options) = models();
    let out = dir.path().join("merged");
    for master in [false, true] {
        options.write_master = master;
        for model in ["base", "a", "b"] {
            put(&dir.path().join(model), "tokenizer.json", plain(64, &[]));
        }
        put(&dir.path().join("base"), "tokenizer.model", vec![b'x'; 300_000]);
        run(&dare(""), &out, &options).unwrap();
        let written = size_of(&out);
        let counted = plan(&parse(&dare("")).unwrap(), &options).unwrap().disk_bytes(&options);
        assert!(counted >= written && counted < written + (1 << 20), "{counted} {written}");
    }
}

#[test]
fn documents_that_nothing_uses_are_named_and_not_merged() {
    let (dir, options) = models();
    let one = |name: &str, model: &str| {
        format!(
            "name: {name}\nmodels: [{{model: {model}, parameters: {{weight: 1}}}}]\nmerge_method: linear\ndtype: float32\n---\n"
        )
    };
    let text = format!(
        "{}{}{}{}",
        one("lost", "a"),
        one("more", "lost"),
        one("used", "b"),
        dare("").replace("model: b,", "model: used,")
    );
    let report = run(&text, &dir.path().join("merged"), &options).unwrap();
    let merged: Vec<_> = report.earlier.iter().filter_map(|earlier| earlier.name.as_deref()).collect();
    assert_eq!(merged, ["used"]);
    for name in ["lost", "more"] {
        let start = format!("the document {name} is not merged");
        assert!(report.notes.iter().any(|note| note.starts_with(&start)), "{:?}", report.notes);
    }
}

#[test]
fn slices_with_more_sources_at_the_end_are_said_to_differ_from_mergekit() {
    let (_dir, options) = models();
    let slices =
        ["{model: base, layer_range: [0, 1]}", "{model: base, layer_range: [1, 2]}, {model: a, layer_range: [1, 2]}"];
    let text = |order: [&str; 2]| {
        format!(
            "slices:\n- sources: [{}]\n- sources: [{}]\nmerge_method: linear\ndtype: float32\nparameters: {{weight: 1}}\n",
            order[0], order[1]
        )
    };
    let has = |order| {
        notes_of(&text(order), &options).iter().any(|note| note.starts_with("the first slice has 1 source and"))
    };
    assert!(
        has(slices)
            && !has([slices[1].replace("[1, 2]", "[0, 1]").as_str(), slices[0].replace("[0, 1]", "[1, 2]").as_str()])
    );
}

/// By hand: density 0.9 and epsilon 0.15 pass 1, density 0.3 and 0.15 stay between 0 and 1.
#[test]
fn a_grid_with_a_point_that_cannot_be_merged_is_refused_before_anything_is_merged() {
    use crate::search::{PointCheck, Proposer, SearchSettings, Space};
    let (_dir, options) = models();
    let yaml = dare("").replace("dare_ties", "della").replace("density: 0.5", "density: 0.5, epsilon: 0.15");
    let settings = SearchSettings { method: Proposer::Grid, evaluations: 9, sigma: None, population: None, seed: 0 };
    let space = |values: Value| {
        let knobs = json!({"models.0.parameters.density": {"values": values}});
        Space::new(&yaml, knobs.as_object().unwrap(), &settings).unwrap()
    };
    let check = |values: Value| {
        let space = space(values);
        PointCheck::new(options.clone()).all(&space.grid(), &space, &Cancel::default())
    };
    check(json!([0.3, 0.5, 0.8, 1])).unwrap();
    for order in [json!([0.3, 0.9]), json!([0.9, 0.3])] {
        let error = check(order).unwrap_err().to_string();
        assert!(error.starts_with("1 of the 2 points of the search cannot be merged:"), "{error}");
        assert!(error.contains("models.0.parameters.density 0.9: density 0.9 with epsilon 0.15"), "{error}");
    }
    let mut one = PointCheck::new(options.clone());
    let sum = |weight: &str| {
        format!(
            "models: [{{model: a, parameters: {{weight: 1}}}}, {{model: b, parameters: {{weight: {weight}}}}}]\nmerge_method: linear\n"
        )
    };
    assert_eq!(one.refusal(&sum("0.5")).unwrap(), None);
    let reason = one.refusal(&sum("-1")).unwrap().unwrap_or_default();
    assert!(reason.contains("sum to zero"), "{reason}");
    assert!(
        PointCheck::new(options)
            .refusal("models: [{model: nowhere, parameters: {weight: 1}}]\nmerge_method: linear\n")
            .is_err()
    );
}
