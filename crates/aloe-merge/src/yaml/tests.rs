//! Golden values of PyYAML 6.0.3, written by `oracles/pyyaml_scalars.py`.

use super::*;
use serde_json::{Value as Json, json};

fn parse(text: &str) -> Result<Node, Mistake> {
    let mut documents = super::parse(text)?;
    // PyYAML's `safe_load` takes one document; mergekit-multi reads several.
    match documents.len() {
        1 => Ok(documents.remove(0)),
        _ => Err(Mistake { line: documents[1].line, text: "a second document".into() }),
    }
}

fn golden() -> Json {
    serde_json::from_str(include_str!("../../tests/golden/pyyaml.json")).unwrap()
}

fn shape(node: &Node) -> Json {
    match &node.value {
        Value::Scalar(scalar) => scalar_shape(scalar),
        Value::Sequence(items) => json!(["list", items.iter().map(shape).collect::<Vec<_>>()]),
        Value::Mapping(entries) => {
            json!(["mapping", entries.iter().map(|(key, value)| json!([shape(key), shape(value)])).collect::<Vec<_>>()])
        }
    }
}

fn scalar_shape(scalar: &Scalar) -> Json {
    match scalar {
        Scalar::Null => json!(["null", null]),
        Scalar::Bool(value) => json!(["bool", value]),
        Scalar::Int(value) => json!(["int", value]),
        Scalar::Float(value) => json!(["float", value]),
        Scalar::Text(text) => json!(["text", text]),
        Scalar::Date(_) => json!(["date", null]),
        Scalar::MergeKey => json!(["merge", null]),
        Scalar::ValueKey => json!(["value", null]),
    }
}

/// Python's `repr` of a float to the float itself, bit for bit.
fn same(ours: &Json, theirs: &Json) -> bool {
    match (ours, theirs) {
        (Json::Array(a), Json::Array(b))
            if a.first() == Some(&json!("float")) && b.first() == Some(&json!("float")) =>
        {
            let python: f64 = b[1].as_str().unwrap().parse().unwrap();
            match a[1].as_f64() {
                Some(ours) => ours.to_bits() == python.to_bits(),
                None => !python.is_finite(),
            }
        }
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => ours == theirs,
    }
}

#[test]
fn plain_scalars_have_the_type_and_value_that_pyyaml_gives_them() {
    let golden = golden();
    let cases = golden["scalars"].as_array().unwrap();
    assert!(cases.len() > 180);
    for case in cases {
        let text = case[0].as_str().unwrap();
        let ours = scalar::plain(text).map_or_else(|_| json!(["refused", null]), |scalar| scalar_shape(&scalar));
        // A date that does not exist fails in PyYAML when built; ours stays an unusable date.
        assert!(same(&ours, &case[1]), "{text:?}: ours {ours}, PyYAML {}", case[1]);
    }
}

#[test]
fn whole_documents_read_as_pyyaml_reads_them_and_bad_ones_are_refused_with_a_line() {
    for case in golden()["documents"].as_array().unwrap() {
        let text = case[0].as_str().unwrap();
        let ours = parse(text);
        if let Err(mistake) = &ours {
            assert!(mistake.line >= 1 && !mistake.text.is_empty());
        }
        // PyYAML's loader accepts a list that holds itself, and typed nulls as keys; a configuration cannot use the first.
        if text.contains("&a [*a]") {
            assert!(ours.is_err());
            continue;
        }
        let ours = ours.map_or_else(|_| json!(["refused", null]), |node| shape(&node));
        assert!(same(&ours, &case[1]), "{text:?}: ours {ours}, PyYAML {}", case[1]);
    }
}

#[test]
fn a_key_given_twice_is_refused_where_pyyaml_keeps_the_last() {
    let mistake = parse("a: 1\nb: 2\na: 3\n").unwrap_err();
    assert_eq!(mistake, Mistake { line: 3, text: "the text 'a' stands here and on line 1".into() });
}

#[test]
fn a_billion_laughs_are_refused_before_they_are_built() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let previous = format!("*a{}", level - 1);
        text += &format!("a{level}: &a{level} [{}]\n", vec![previous; 10].join(", "));
    }
    assert!(parse(&text).unwrap_err().text.contains("more than 100000 values"));
}

#[test]
fn nesting_beyond_64_levels_is_refused() {
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(parse(&format!("{}{}", "[".repeat(60), "]".repeat(60))).is_ok());
}
