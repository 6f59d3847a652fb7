//! The result's tokenizer encodes like its sources: real tokenizers under `ALOE_MODELS`, with tokens added as fine-tunes add them.

use super::*;
use aloe_text::Tokenizer;

/// The tokenizers of SmolLM2 and Llama 3 as JSON, or nothing (said aloud) where they are not at hand.
fn real() -> Vec<(&'static str, serde_json::Value)> {
    let Ok(models) = std::env::var("ALOE_MODELS") else {
        assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
        eprintln!("not run: ALOE_MODELS is not set");
        return Vec::new();
    };
    let models = PathBuf::from(models);
    let gguf = aloe_model::ModelSource::open(&models.join("smollm2-135m-instruct-q4_1/model.gguf")).unwrap();
    let smol = Tokenizer::from_gguf(gguf.gguf_metadata().unwrap()).unwrap();
    let llama = std::fs::read(models.join("llama3-tokenizer/tokenizer.json")).unwrap();
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap();
    vec![("smollm2", json(smol.json())), ("llama3", json(&llama))]
}

/// Highest id and one.
fn n_ids(tokenizer: &serde_json::Value) -> usize {
    let plain = tokenizer["model"]["vocab"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64);
    let added = tokenizer["added_tokens"].as_array().unwrap().iter().filter_map(|entry| entry["id"].as_u64());
    plain.chain(added).max().unwrap() as usize + 1
}

fn with_added(tokenizer: &serde_json::Value, tokens: &[&str]) -> serde_json::Value {
    let mut tokenizer = tokenizer.clone();
    for token in tokens {
        let id = n_ids(&tokenizer);
        let entry = json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(entry);
    }
    tokenizer
}

/// A small model with this tokenizer.
fn model(dir: &Path, name: &str, tokenizer: &serde_json::Value, options: &mut MergeOptions) {
    let folder = dir.join(name);
    write_model(&folder, name, n_ids(tokenizer), true, Dtype::Bf16);
    put(&folder, "tokenizer.json", tokenizer.to_string());
    options.folders.insert(name.to_owned(), folder);
}

const TEXTS: [&str; 6] = [
    "The quick brown fox jumps over 12345 lazy dogs.",
    "  leading spaces, tabs\tand\n\nnew lines",
    "Grüße, 東京, 🦊🦊 and naïve café",
    "def f(x):\n    return x ** 2  # squared",
    "im_start <|im_en d|> user",
    "",
];

fn check_same(found: &Tokenizer, expected: &Tokenizer, texts: &[&str], what: &str) {
    for text in texts {
        assert_eq!(found.encode_markup(text).unwrap(), expected.encode_markup(text).unwrap(), "{what}: {text:?}");
    }
}

#[test]
fn a_union_of_real_tokenizers_encodes_like_each_of_its_sources() {
    for (name, base) in real() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = MergeOptions { memory: 4 << 30, threads: 2, ..MergeOptions::default() };
        let tuned = with_added(&base, &["<|im_begin|>", "<|im_stop|>", "<|tool|>"]);
        model(dir.path(), "base", &base, &mut options);
        model(dir.path(), "a", &tuned, &mut options);
        let text = "models: [{model: base, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]\nbase_model: base\n\
                    merge_method: linear\ndtype: bfloat16\ntokenizer_source: union\n";
        let out = dir.path().join("merged");
        run(text, &out, &options).unwrap();
        let [found, of_base, of_tuned] = [out.join("model"), dir.path().join("base"), dir.path().join("a")]
            .map(|dir| Tokenizer::open(&dir).unwrap());
        check_same(&found, &of_base, &TEXTS, name);
        check_same(&found, &of_tuned, &TEXTS, name);
        let marked = ["<|im_begin|>user\nhi there<|im_stop|>\n<|tool|>x", "a<|im_stop|>b <|tool|> c"];
        check_same(&found, &of_tuned, &marked, name);
        assert!(found.encode_markup(marked[0]).unwrap().contains(&(n_ids(&base) as u32)), "{name}");
        assert_eq!(Checkpoint::open(&out.join("model")).unwrap().config.vocab_size, n_ids(&tuned));
    }
}

/// `Ġzqxjk` is learned by the tuned model's BPE alone. In the union it is a piece of a word after a space, as there; mergekit would make an
/// added token of it, which ` zqxjk` never matches and `Ġzqxjk` in a text does.
#[test]
fn plain_tokens_of_a_union_stay_pieces_of_words_unlike_mergekit() {
    for (name, base) in real() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = MergeOptions { memory: 4 << 30, ..MergeOptions::default() };
        model(dir.path(), "base", &base, &mut options);
        let of_base = Tokenizer::open(&dir.path().join("base")).unwrap();
        let pieces = of_base.encode_markup(" zqxjk").unwrap();
        let mut pieces = pieces.into_iter().map(|id| of_base.token(id).unwrap());
        let (mut tuned, mut word) = (base.clone(), pieces.next().unwrap());
        for piece in pieces {
            let id = n_ids(&tuned);
            let merges = tuned["model"]["merges"].as_array_mut().unwrap();
            merges.push(if merges[0].is_string() { json!(format!("{word} {piece}")) } else { json!([word, piece]) });
            word.push_str(&piece);
            assert!(tuned["model"]["vocab"].get(&word).is_none(), "{name} has {word}");
            tuned["model"]["vocab"][&word] = json!(id);
        }
        assert_eq!(word, "Ġzqxjk");
        // As a trainer saves it: the library numbers added tokens that the vocabulary lacks from its size on.
        for entry in base["added_tokens"].as_array().unwrap() {
            tuned["model"]["vocab"][entry["content"].as_str().unwrap()] = entry["id"].clone();
        }
        model(dir.path(), "a", &tuned, &mut options);
        let text = "models: [{model: base, parameters: {weight: 1}}, {model: a, parameters: {weight: 1}}]\nbase_model: base\n\
                    merge_method: linear\ndtype: bfloat16\ntokenizer_source: union\n";
        let out = dir.path().join("merged");
        run(text, &out, &options).unwrap();
        let [found, of_base, of_tuned] = [out.join("model"), dir.path().join("base"), dir.path().join("a")]
            .map(|dir| Tokenizer::open(&dir).unwrap());
        check_same(&found, &of_base, &TEXTS, name);
        let words = ["a zqxjk b", "zqxjk", "xzqxjkz", "Ġzqxjk is no space"];
        let id = found.token_id("Ġzqxjk").unwrap();
        for word in words {
            let (found, expected) = (found.encode_markup(word).unwrap(), of_tuned.encode_markup(word).unwrap());
            let text = |tokenizer: &Tokenizer, ids: &[u32]| -> Vec<String> {
                ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect()
            };
            assert_eq!(
                text(&Tokenizer::open(&out.join("model")).unwrap(), &found),
                text(&of_tuned, &expected),
                "{name}: {word}"
            );
            assert_eq!(found.contains(&id), word == "a zqxjk b", "{name}: {word}");
        }
    }
}
