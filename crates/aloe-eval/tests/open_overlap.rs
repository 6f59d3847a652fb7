//! ROUGE and BLEU against the Python libraries' values (`oracles/open_overlap.py`).

use aloe_eval::open::overlap::overlap;
use serde_json::Value;

/// Both sum the same few f64 quotients; the order of the sums may differ in the last bits.
const TOLERANCE: f64 = 1e-12;

#[test]
fn rouge_and_bleu_are_those_of_rouge_score_and_evaluate() {
    let pairs: Vec<Value> = serde_json::from_str(include_str!("golden/open_overlap.json")).unwrap();
    assert_eq!(pairs.len(), 88);
    for pair in &pairs {
        let text = |key: &str| pair[key].as_str().unwrap();
        let found = overlap(text("answer"), text("reference"));
        let close = |name: &str, found: f64| {
            let expected = pair[name].as_f64().unwrap();
            assert!((found - expected).abs() < TOLERANCE, "{name}: {found} is not {expected} of {pair}");
        };
        close("rouge1", found.rouge1);
        close("rouge2", found.rouge2);
        close("rougeL", found.rouge_l);
        match found.bleu {
            Some(bleu) => close("bleu", bleu),
            None => assert!(pair["bleu"].is_null(), "no BLEU of {pair}"),
        }
    }
    // The harness's own functions on other pairs (`oracles/open_answers.py`).
    let golden: Value = serde_json::from_str(include_str!("golden/open_answers.json")).unwrap();
    let rows = golden["rows"].as_array().unwrap();
    assert!(rows.len() >= 30);
    for row in rows {
        let found = overlap(row["answer"].as_str().unwrap(), row["reference"].as_str().unwrap());
        for (name, found) in [("rouge1", found.rouge1), ("rouge2", found.rouge2), ("rougeL", found.rouge_l)] {
            // An empty answer or reference is no number to the harness, and 0 to us.
            let expected = row[name].as_f64().unwrap_or(0.0);
            assert!((found - expected).abs() < TOLERANCE, "{name}: {found}, {row}");
        }
        // It writes 1e-5 where BLEU is exactly 0.
        if let (Some(bleu), Some(expected)) = (found.bleu, row["bleu"].as_f64()) {
            assert!((bleu - expected).abs() < TOLERANCE || (bleu == 0.0 && expected == 1e-5), "{bleu}, {row}");
        }
    }
    let some = pairs.iter().filter(|pair| pair["bleu"].as_f64().is_some_and(|bleu| bleu > 0.0)).count();
    assert!(some > 20, "golden pairs with a BLEU above 0: {some}");
}
