//! The sentence encoder against transformers.

use crate::{floats, golden, ids, largest_difference, outside};
use aloe_model::{BertEncoder, BertReranker, Pooling};
use aloe_tensor::Device;
use std::path::{Path, PathBuf};

#[test]
fn minilm_embeddings_equal_transformers_with_mean_pooling() {
    let Some(dir) = outside("ALOE_MODELS", "all-minilm-l6-v2") else { return };
    let encoder = BertEncoder::open(&dir, &Device::cpu(2)).unwrap_or_else(|e| panic!("{e}"));
    let golden = golden("minilm.json");
    let cases = golden["cases"].as_array().expect("cases");
    let inputs: Vec<Vec<u32>> = cases.iter().map(|case| ids(&case["ids"])).collect();
    let together = encoder.embed(&crate::slices(&inputs)).unwrap_or_else(|e| panic!("{e}"));
    for ((case, found), input) in cases.iter().zip(&together).zip(&inputs) {
        let worst = largest_difference(found.iter().map(|v| f64::from(*v)), floats(&case["embedding"]));
        assert!(worst < 1e-4, "{}: {worst}", case["text"]);
        let alone = encoder.embed(&[input]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(&alone[0], found, "batch mates change nothing");
    }
    assert_eq!(encoder.max_len_tokens, 256);
    assert!(encoder.embed(&[&[]]).is_err() && encoder.embed(&[&vec![5; 257]]).is_err());
}

fn tiny_bert() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_bert")
}

#[test]
fn cls_pooling_is_read_from_the_folder_and_equals_transformers() {
    let encoder = BertEncoder::open(&tiny_bert(), &Device::cpu(2)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(encoder.pooling, Pooling::Cls);
    let golden = golden("tiny_encoders.json");
    let cases = golden["singles"].as_array().expect("singles");
    let inputs: Vec<Vec<u32>> = cases.iter().map(|case| ids(&case["ids"])).collect();
    let found = encoder.embed(&crate::slices(&inputs)).unwrap_or_else(|e| panic!("{e}"));
    for (case, found) in cases.iter().zip(&found) {
        let worst = largest_difference(found.iter().map(|v| f64::from(*v)), floats(&case["embedding"]));
        assert!(worst < 1e-5, "{}: {worst}", case["text"]);
    }
}

#[test]
fn pair_scores_of_a_cross_encoder_equal_transformers() {
    let reranker = BertReranker::open(&tiny_bert(), &Device::cpu(2)).unwrap_or_else(|e| panic!("{e}"));
    let golden = golden("tiny_encoders.json");
    let cases = golden["pairs"].as_array().expect("pairs");
    let column = |name: &str| cases.iter().map(|case| ids(&case[name])).collect::<Vec<Vec<u32>>>();
    let (inputs, types) = (column("ids"), column("types"));
    let found = reranker.score(&crate::slices(&inputs), &crate::slices(&types)).unwrap_or_else(|e| panic!("{e}"));
    for (case, found) in cases.iter().zip(found) {
        let expected = case["logit"].as_f64().expect("logit");
        assert!((f64::from(found) - expected).abs() < 1e-4, "{}: {found} {expected}", case["text"]);
    }
    let zeros: Vec<Vec<u32>> = types.iter().map(|types| vec![0; types.len()]).collect();
    let other = reranker.score(&crate::slices(&inputs), &crate::slices(&zeros)).unwrap_or_else(|e| panic!("{e}"));
    assert!((f64::from(other[0]) - cases[0]["logit"].as_f64().expect("logit")).abs() > 1e-3, "types are passed over");
}

/// Neither folder has weights, so a refusal that names them looked for them first.
#[test]
fn a_reranker_of_another_architecture_is_refused_with_file_key_and_what_is_supported() {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let path = dir.path().join("config.json");
    for (config, found) in [
        (
            r#"{"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"]}"#,
            "model_type: \"roberta\"",
        ),
        ("{}", "model_type: \"\""),
        (r#"{"model_type": "bert", "architectures": ["BertModel"]}"#, "architectures: \"BertModel\""),
    ] {
        std::fs::write(&path, config).unwrap_or_else(|e| panic!("{e}"));
        let error = BertReranker::open(dir.path(), &Device::cpu(1)).err().expect("refused").to_string();
        let known = "a reranker is a BertForSequenceClassification (model_type \"bert\") with one label";
        assert_eq!(error, format!("{}: {found} is not supported; {known}", path.display()));
    }
}

#[test]
fn poolings_that_are_not_implemented_and_more_labels_than_one_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).unwrap_or_else(|e| panic!("{e}"));
        std::fs::write(path, text).unwrap_or_else(|e| panic!("{e}"));
    };
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(tiny_bert().join(name), dir.path().join(name)).unwrap_or_else(|e| panic!("{e}"));
    }
    let open = || BertEncoder::open(dir.path(), &Device::cpu(1)).map(|encoder| encoder.pooling);
    for (config, words) in [
        (r#"{"pooling_mode_max_tokens": true, "pooling_mode_cls_token": false}"#, "pooling_mode_max_tokens"),
        (r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#, " + "),
        (r#"{"pooling_mode": "weightedmean"}"#, "weightedmean"),
        (r#"{"pooling_mode_lasttoken": true}"#, "causal"),
    ] {
        write("1_Pooling/config.json", config);
        let error = open().expect_err("refused").to_string();
        assert!(error.contains(words) && error.contains("implemented"), "{error}");
    }
    write("1_Pooling/config.json", r#"{"pooling_mode": "mean", "include_prompt": true}"#);
    assert_eq!(open().unwrap_or_else(|e| panic!("{e}")), Pooling::Mean);
    let config = std::fs::read_to_string(tiny_bert().join("config.json")).unwrap_or_else(|e| panic!("{e}"));
    write("config.json", &config.replace("\"0\": \"LABEL_0\"", "\"0\": \"no\", \"1\": \"yes\""));
    let error = BertReranker::open(dir.path(), &Device::cpu(1)).err().expect("refused").to_string();
    assert!(error.contains("has 2 labels"), "{error}");
}
