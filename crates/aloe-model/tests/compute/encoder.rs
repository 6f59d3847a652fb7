//! The sentence encoder against transformers.

use crate::{floats, golden, ids, largest_difference, outside};
use aloe_model::BertEncoder;
use aloe_tensor::Device;

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
