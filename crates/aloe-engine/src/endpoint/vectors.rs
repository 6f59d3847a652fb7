//! What an answer of `/v1/embeddings` must hold to be believed: one vector a text, told apart by `index`, all of one length, of finite
//! numbers that are not all zero. Vectors are brought to unit length here; nothing else is mended.

use aloe_model::unit;
use serde_json::Value;

/// The `n` vectors in the order of the texts, each of `dim` numbers where that is known.
pub(super) fn read(answer: &Value, n: usize, dim: Option<usize>) -> Result<Vec<Vec<f32>>, String> {
    let data = answer["data"].as_array().map(Vec::as_slice).ok_or("`data` is absent")?;
    if data.len() != n {
        let vectors = if n == 1 { "vector" } else { "vectors" };
        return Err(format!("asked for {n} {vectors}, got {}", data.len()));
    }
    let mut placed: Vec<Option<Vec<f32>>> = vec![None; n];
    let mut len = dim;
    for (at, entry) in data.iter().enumerate() {
        let index = match entry["index"].as_u64() {
            Some(index) if index < n as u64 => index as usize,
            None if n == 1 && entry["index"].is_null() => 0,
            _ => return Err(format!("vector {at} has the index {}", entry["index"])),
        };
        let vector = vector(&entry["embedding"]).map_err(|reason| format!("vector {at} {reason}"))?;
        match len {
            Some(len) if len != vector.len() => {
                return Err(format!("vector {at} has {} numbers where others have {len}", vector.len()));
            }
            _ => len = Some(vector.len()),
        }
        if placed[index].replace(vector).is_some() {
            return Err(format!("two vectors have the index {index}"));
        }
    }
    Ok(placed.into_iter().flatten().collect())
}

/// A list of finite numbers, at unit length.
fn vector(list: &Value) -> Result<Vec<f32>, String> {
    let list = list.as_array().filter(|list| !list.is_empty());
    let list = list.ok_or("is no list of numbers; a server that pools (llama-server --pooling mean) gives one")?;
    let number = |(at, value): (usize, &Value)| {
        // Beyond f32 a number is as good as infinite.
        let number = value.as_f64().filter(|number| (*number as f32).is_finite());
        number.ok_or_else(|| format!("has {value} for its number {at}"))
    };
    let numbers = list.iter().enumerate().map(number).collect::<Result<Vec<f64>, String>>()?;
    if numbers.iter().all(|number| *number == 0.0) {
        return Err("is all zeros".to_owned());
    }
    Ok(unit(&numbers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(vectors: &[(u64, Value)]) -> Value {
        json!({"data": vectors.iter().map(|(index, vector)| json!({"index": index, "embedding": vector})).collect::<Vec<_>>()})
    }

    /// 3-4-5 triangles.
    #[test]
    fn vectors_come_at_unit_length_in_the_order_of_their_index() {
        let two = answer(&[(1, json!([0.0, -2.0])), (0, json!([3.0, 4.0]))]);
        assert_eq!(read(&two, 2, Some(2)).unwrap(), [[0.6, 0.8], [0.0, -1.0]]);
        assert_eq!(read(&json!({"data": [{"embedding": [5]}]}), 1, None).unwrap(), [[1.0]]);
    }

    #[test]
    fn an_answer_that_is_short_ragged_zero_or_not_finite_is_refused() {
        let good = || json!([0.5, 0.5]);
        let check = |answer: Value, words: &str| {
            let error = read(&answer, 2, None).unwrap_err();
            assert!(error.contains(words), "{error} for {words}");
        };
        check(json!({"error": "x"}), "`data` is absent");
        check(answer(&[(0, good())]), "asked for 2 vectors, got 1");
        check(answer(&[(0, good()), (1, good()), (2, good())]), "got 3");
        check(answer(&[(0, good()), (0, good())]), "two vectors have the index 0");
        check(answer(&[(0, good()), (2, good())]), "has the index 2");
        check(json!({"data": [{"embedding": good()}, {"embedding": good()}]}), "vector 0 has the index null");
        check(answer(&[(0, good()), (1, json!([0.5]))]), "vector 1 has 1 numbers where others have 2");
        check(answer(&[(0, good()), (1, json!([0.0, 0.0]))]), "vector 1 is all zeros");
        check(answer(&[(0, good()), (1, json!([]))]), "no list of numbers");
        check(answer(&[(0, good()), (1, json!("AACAPw=="))]), "no list of numbers");
        check(answer(&[(0, good()), (1, json!([[0.1, 0.2], [0.1, 0.2]]))]), "has [0.1,0.2] for its number 0");
        for bad in [json!(null), json!("NaN"), json!(1e300)] {
            check(answer(&[(0, good()), (1, json!([0.5, bad]))]), "for its number 1");
        }
        assert!(read(&answer(&[(0, good())]), 1, Some(3)).unwrap_err().contains("2 numbers where others have 3"));
    }
}
