//! What files of mergekit's users hold beside the plain case: slices of the base alone, new tokens in an order of their own, tokens past the
//! embedding, templates that print the date; and that a model's path as written changes no mask.

use super::*;
use serde_json::Value;

/// Tokens `t0 .. t<n - 1>` and added ones.
fn plain(n: usize, added: &[(usize, &str)]) -> Vec<u8> {
    let words: Vec<String> = (0..n).map(|id| format!("t{id}")).collect();
    tokenizer_json(&words.iter().map(String::as_str).collect::<Vec<_>>(), added)
}

/// The ids of a result's tokenizer, vocabulary and added tokens.
fn ids(out: &Path) -> std::collections::BTreeMap<String, u64> {
    let json: Value = atomic::read_json(&out.join("model/tokenizer.json")).unwrap();
    let plain = json["model"]["vocab"].as_object().unwrap().iter();
    let plain = plain.map(|(token, id)| (token.clone(), id.as_u64().unwrap()));
    let added = json["added_tokens"].as_array().unwrap().iter();
    let added = added.map(|entry| (entry["content"].as_str().unwrap().to_owned(), entry["id"].as_u64().unwrap()));
    plain.chain(added).collect()
}

fn has_note(report: &MergeReport, start: &str) -> bool {
    report.notes.iter().any(|note| note.starts_with(start))
}

#[test]
fn a_slice_of_the_base_alone_is_the_base_by_every_method_of_task_vectors() {
    let (dir, options) = models();
    let text = |method: &str, parameters: &str| {
        format!(
            "slices:\n- sources: [{{model: base, layer_range: [0, 1]}}]\n- sources: [{{model: base, layer_range: [1, 2]}}, \
             {{model: a, layer_range: [1, 2], parameters: {{{parameters}}}}}]\nmerge_method: {method}\nbase_model: base\ndtype: float32\n\
             parameters: {{t: 0.5}}\n"
        )
    };
    let base = load(&dir.path().join("base"));
    for (method, parameters) in [
        ("ties", "weight: 1, density: 0.5"),
        ("dare_ties", "weight: 1, density: 0.5"),
        ("della_linear", "weight: 1, density: 0.5"),
        ("breadcrumbs", "weight: 1, density: 0.5"),
        ("task_arithmetic", "weight: 1"),
        ("sce", "weight: 1"),
        ("slerp", "t: 0.5"),
    ] {
        let out = dir.path().join(method);
        let report = run(&text(method, parameters), &out, &options).unwrap();
        assert!(has_note(&report, "slice 1 has the base model alone"), "{method}: {:?}", report.notes);
        for ((name, merged), (_, of_base)) in load(&out.join("model")).into_iter().zip(&base) {
            let is_of_base = name.contains("embed_tokens") || name.contains("layers.0.");
            assert_eq!(merged == *of_base, is_of_base, "{method}: {name}");
        }
    }
    // With nothing else in any slice there is nothing to merge.
    let alone = "slices:\n- sources: [{model: base, layer_range: [0, 2]}]\nmerge_method: ties\nbase_model: base\n";
    refused(alone, &options, dir.path(), "no model besides the base: there is nothing to merge");
}

#[test]
fn new_tokens_get_their_ids_in_the_order_of_the_file() {
    let (dir, options) = models();
    ["base", "a", "b"].iter().for_each(|name| put(&dir.path().join(name), "tokenizer.json", plain(64, &[])));
    let text = dare(
        "tokenizer:\n  source: base\n  tokens:\n    <zeta>: {source: {kind: model_token, model: a, token_id: 10}}\n    \
         <alpha>: {source: {kind: model_token, model: a, token_id: 20}}\n    <mid>: {source: {kind: zero}}\n",
    );
    let out = dir.path().join("merged");
    run(&text, &out, &options).unwrap();
    let found = ids(&out);
    assert_eq!(["<zeta>", "<alpha>", "<mid>"].map(|token| found[token]), [64, 65, 66]);
}

/// 64 rows; `<past>` has id 64 and `<far>` 70.
#[test]
fn tokens_past_the_embedding_are_named_and_the_result_has_none() {
    let (dir, options) = models();
    let base = dir.path().join("base");
    ["base", "a", "b"].iter().for_each(|name| put(&dir.path().join(name), "tokenizer.json", plain(60, &[])));
    let with_past = plain(60, &[(61, "<in>"), (64, "<past>"), (70, "<far>")]);
    let config = r#"{"pad_token": "<past>", "eos_token": "t2", "additional_special_tokens": ["<in>", "<far>"],
                     "added_tokens_decoder": {"61": {"content": "<in>"}, "64": {"content": "<past>"}, "70": {"content": "<far>"}}}"#;
    let expected = json!({"eos_token": "t2", "additional_special_tokens": ["<in>"],
                          "added_tokens_decoder": {"61": {"content": "<in>"}}});
    let out = dir.path().join("merged");
    for (owner, choices) in [
        ("base", &["", "tokenizer_source: base\n", "tokenizer_source: union\n"][..]),
        ("a", &["tokenizer_source: a\n", "tokenizer_source: union\n"]),
    ] {
        let folder = dir.path().join(owner);
        put(&folder, "tokenizer.json", &with_past);
        put(&folder, "tokenizer_config.json", config);
        put(&folder, "special_tokens_map.json", r#"{"pad_token": {"content": "<past>"}}"#);
        for choice in choices {
            let report = run(&dare(choice), &out, &options).unwrap();
            let note = format!(
                "the tokenizer of {owner} has 2 tokens past the 64 rows of its embedding: \"<past>\" with id 64, \"<far>\" with id 70;"
            );
            assert!(has_note(&report, &note), "{owner}, {choice}: {:?}", report.notes);
            let found = ids(&out);
            let n_rows = Checkpoint::open(&out.join("model")).unwrap().config.vocab_size as u64;
            assert!(found.values().all(|id| *id < n_rows), "{owner}, {choice}: {found:?}");
            assert!(found.contains_key("<in>") && !found.contains_key("<past>") && !found.contains_key("<far>"));
            if owner == "base" || choice.ends_with("a\n") {
                let read = |name: &str| atomic::read_json::<Value>(&out.join("model").join(name)).unwrap();
                assert_eq!(read("tokenizer_config.json"), expected, "{owner}, {choice}");
                assert_eq!(read("special_tokens_map.json"), json!({}), "{owner}, {choice}");
            }
        }
        put(&folder, "tokenizer.json", plain(60, &[]));
        ["tokenizer_config.json", "special_tokens_map.json"]
            .iter()
            .for_each(|name| std::fs::remove_file(folder.join(name)).unwrap());
    }
    // With a row for each id there is nothing to say.
    put(&base, "tokenizer.json", plain(60, &[(61, "<in>")]));
    let report = run(&dare(""), &out, &options).unwrap();
    assert!(!report.notes.iter().any(|note| note.contains("past the")), "{:?}", report.notes);
}

/// Llama 3.1's templates print today's date; some do not ask whether they can.
#[test]
fn the_end_of_a_template_that_prints_the_date_ends_a_text() {
    let (dir, options) = models();
    ["base", "a", "b"]
        .iter()
        .for_each(|name| put(&dir.path().join(name), "tokenizer.json", plain(60, &[(60, "<|eot_id|>")])));
    let template = "{% set today = strftime_now('%d %b %Y') %}{{ today }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}";
    let out = dir.path().join("merged");
    let report = run(&dare(&format!("chat_template: \"{template}\"\n")), &out, &options).unwrap();
    assert_eq!(Checkpoint::open(&out.join("model")).unwrap().config.eos_token_ids, [2, 60]);
    assert!(has_note(&report, "eos_token_id gets 60 (<|eot_id|>)"), "{:?}", report.notes);
}

#[test]
fn the_way_a_models_path_is_written_changes_no_mask() {
    let (dir, options) = models();
    let m = dir.path().join("m");
    std::fs::create_dir(&m).unwrap();
    for name in ["base", "a", "b"] {
        std::fs::rename(dir.path().join(name), m.join(name)).unwrap();
    }
    let options = MergeOptions { folders: [("org/a".to_owned(), m.join("a"))].into(), ..options };
    let base = m.display();
    let merged = |a: &str| {
        let text = format!(
            "models: [{{model: {a}, parameters: {{weight: 0.4, density: 0.5}}}}, {{model: {base}/b, parameters: {{weight: 0.6, density: 0.25}}}}]\n\
             base_model: {base}/base\nmerge_method: dare_ties\ndtype: float32\n"
        );
        run(&text, &dir.path().join("merged"), &options).unwrap();
        let readme = std::fs::read_to_string(dir.path().join("merged/model/README.md")).unwrap();
        assert!(
            readme.contains("a model's name, which is the last component of its path (of a stage's `model`, `master` or `adapter` the stage; more where two models share it): `a`, `b`."),
            "{readme}"
        );
        load(&dir.path().join("merged/model"))
    };
    let first = merged(&format!("{base}/a"));
    for a in [format!("{base}/a/"), format!("{base}/./a"), format!("{base}//a"), "org/a".into()] {
        assert!(merged(&a) == first, "{a}");
    }
    let masks = |names: &[&str]| crate::mask_names(names);
    assert_eq!(masks(&["m/a", "./x/b/", "base"]), ["a", "b", "base"]);
    assert_eq!(masks(&["x/a", "y/a", "m/b"]), ["x/a", "y/a", "b"]);
    assert_eq!(masks(&["a", "m/a"]), ["a", "m/a"]);
    assert_eq!(masks(&["m/base+x/tone", "m/base+y/tone", "m/base"]), ["m/base+x/tone", "m/base+y/tone", "base"]);
    assert_eq!(masks(&["m/base+loras/tone", "./m/base"]), ["base+tone", "base"]);
    // Nothing but the writing tells these apart.
    assert_eq!(masks(&["m/a", "./m/a", "/"]), ["./m/a", "././m/a", "/"]);
    assert_eq!(masks(&["r/a/model", "r/a/master"]), ["a/model", "a/master"]);
    // What stages call all their models says nothing.
    assert_eq!(masks(&["r/a/model", "r/b/master/", "base", "model"]), ["a", "b", "base", "model"]);
    assert_eq!(masks(&["r/a/model", "s/a/model", "a"]), ["r/a", "s/a", "a"]);
    assert_eq!(masks(&["base+r/tone/model"]), ["base+tone"]);
    assert_eq!(masks(&["base+r/tone/adapter"]), ["base+tone"]);
    // Nor does the way to a folder: these tests run in crates/aloe-merge.
    assert_eq!(masks(&["r/b/../a/model", "../../m/b"]), ["a", "b"]);
    assert_eq!(masks(&["src/..", ".."]), ["aloe-merge", "crates"]);
}

/// Any models of a list that was made to have short names equal longer ones, in either order.
#[test]
fn no_two_models_of_a_merge_share_a_mask() {
    let all =
        ["q/model", "q/master", "q/model/model", "model", "q", "a/q", "./a/q", "a/q+x/adapter", "q+x", "a/q/model+y/x"];
    for subset in 0..1u32 << all.len() {
        let mut names: Vec<&str> =
            all.iter().enumerate().filter(|(at, _)| (subset >> at) & 1 == 1).map(|(_, name)| *name).collect();
        let found = crate::mask_names(&names);
        for (at, name) in found.iter().enumerate() {
            assert!(!found[..at].contains(name), "{names:?} have {found:?}");
        }
        names.reverse();
        let mut backwards = crate::mask_names(&names);
        backwards.reverse();
        assert_eq!(backwards, found, "{names:?}");
    }
}

/// Elements of the first model alone are kept or not by its mask: two merges of one seed keep others where the models are others.
#[test]
fn models_of_two_stages_have_masks_of_their_own_within_a_merge_and_across_merges() {
    let (dir, options) = models();
    for stage in ["one", "two"] {
        let folder = dir.path().join(stage).join("model");
        std::fs::create_dir_all(&folder).unwrap();
        for entry in std::fs::read_dir(dir.path().join("a")).unwrap().flatten() {
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    let root = dir.path().display();
    let merged = |stages: &[&str]| {
        let models: String = stages
            .iter()
            .map(|stage| format!("- {{model: {root}/{stage}/model, parameters: {{weight: 0.5, density: 0.5}}}}\n"))
            .collect();
        let text = format!("models:\n{models}base_model: base\nmerge_method: dare_linear\ndtype: float32\n");
        run(&text, &dir.path().join("merged"), &options).unwrap();
        load(&dir.path().join("merged/model"))
    };
    let (one, two, both) = (merged(&["one"]), merged(&["two"]), merged(&["one", "two"]));
    let base = load(&dir.path().join("base"));
    let (mut n, mut n_shared, mut n_kept) = (0, 0, [0, 0]);
    for (tensor, (name, base)) in base.iter().enumerate() {
        let tuned = value("a", name, base.len());
        let [one, two, both] = [&one, &two, &both].map(|merged| &merged[tensor].1);
        for (at, base) in base.iter().enumerate() {
            if tuned[at] == *base {
                continue;
            }
            let kept = [one, two].map(|merged| merged[at] != *base);
            n += 1;
            n_shared += usize::from(kept[0] == kept[1]);
            (0..2).for_each(|model| n_kept[model] += usize::from(kept[model]));
            // One changed element kept by both counts twice, by one once: masks in a merge of both are those of the merges alone.
            let sum = (one[at] - *base) + (two[at] - *base);
            assert!((both[at] - *base - sum).abs() < 1e-7, "{name} {at}");
        }
    }
    // Independent masks agree on half of the elements, within five standard deviations; one shared mask agrees on all.
    let within = |count: usize| (count as f64 - 0.5 * n as f64).abs() < 2.5 * (n as f64).sqrt();
    assert!(n > 5000 && within(n_shared) && within(n_kept[0]) && within(n_kept[1]), "{n_shared} and {n_kept:?} of {n}");
}

#[test]
fn the_plan_names_the_layers_in_which_each_kind_of_tensor_stands() {
    let (_dir, options) = models();
    // Attention of layer 0 and feed-forward of layer 1 have one value, the others another.
    let text = "models: [{model: base}, {model: a}]\nbase_model: base\nmerge_method: slerp\ndtype: float32\n\
                parameters: {t: [{filter: self_attn, value: [0, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.25}]}\n";
    let table = plan(&parse(text).unwrap(), &options).unwrap().table(&options);
    let attention = "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj, self_attn.o_proj";
    let forward = "mlp.gate_proj, mlp.up_proj, mlp.down_proj";
    for (line, t) in [
        (format!("4 tensors of layer 0 ({attention}), "), "t 0\n"),
        (format!("3 tensors of layer 1 ({forward}), "), "t 0\n"),
        (format!("4 tensors of layer 1 ({attention}), "), "t 1\n"),
        (format!("3 tensors of layer 0 ({forward}), "), "t 1\n"),
        ("3 tensors outside the layers (embed_tokens, norm, lm_head), ".into(), "t 0.25\n"),
        ("4 tensors of layers 0 to 1 (input_layernorm, post_attention_layernorm), ".into(), "t 0.25\n"),
    ] {
        let found = table.split_inclusive('\n').find(|found| found.starts_with(&line));
        assert!(found.is_some_and(|found| found.ends_with(t)), "{line:?} is not in {table}");
    }
}

#[test]
fn a_refused_configuration_or_adapter_says_whose_it_is_and_what_to_do() {
    let (dir, mut options) = models();
    let a = dir.path().join("a");
    let mut config = config_json(64, false);
    config["model_type"] = json!("gpt2");
    put(&a, "config.json", config.to_string());
    refused(&dare(""), &options, dir.path(), "model a: config: model_type: \"gpt2\" is not supported");

    let adapter = dir.path().join("tone");
    std::fs::create_dir(&adapter).unwrap();
    put(
        &adapter,
        "adapter_config.json",
        r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["lm_head"], "bias": "none"}"#,
    );
    let name = "base_model.model.model.embed_tokens.lora_embedding_A";
    let header = json!({ name: {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]} }).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
    put(&adapter, "adapter_model.safetensors", bytes);
    options.folders.insert("tone".into(), adapter);
    let text = dare("").replace("model: a", "model: b+tone").replace("{model: b,", "{model: base,");
    let out = dir.path().join("merged");
    let error = run(&text, &out, &options).unwrap_err().to_string();
    assert!(
        error.contains("embed_tokens.lora_embedding_A: this part of LoRA on the embedding or the head is not supported; merge the adapter"),
        "{error}"
    );
}
