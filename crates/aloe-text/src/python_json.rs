//! `json.dumps(value, ensure_ascii=False)` of Python, which chat templates get as `tojson`. Serde's own writer leaves out the spaces
//! after `,` and `:`, and minijinja's filter escapes HTML; either would change the ids.

use serde_json::Value;

/// Writes `value` as Python would; `indent` as in Python's `indent=`.
pub(crate) fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write(value, indent, 0, &mut out);
    out
}

fn write(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    match value {
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(map) if map.is_empty() => out.push_str("{}"),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(i, indent, depth, out);
                write(item, indent, depth + 1, out);
            }
            close(']', indent, depth, out);
        }
        Value::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                separate(i, indent, depth, out);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write(item, indent, depth + 1, out);
            }
            close('}', indent, depth, out);
        }
        other => out.push_str(&other.to_string()),
    }
}

/// Python drops the space after the comma when it indents.
fn separate(i: usize, indent: Option<usize>, depth: usize, out: &mut String) {
    match indent {
        None if i > 0 => out.push_str(", "),
        None => {}
        Some(width) => {
            out.push_str(if i > 0 { ",\n" } else { "\n" });
            out.extend(std::iter::repeat_n(' ', width * (depth + 1)));
        }
    }
}

fn close(bracket: char, indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(width) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * depth));
    }
    out.push(bracket);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dumps_writes_what_python_writes() {
        // python3 -c "import json; print(json.dumps({'a':[1,2.5,None,True],'b':{'c':'é<\"'},'e':[]}, ensure_ascii=False))"
        let value = json!({"a": [1, 2.5, null, true], "b": {"c": "é<\""}, "e": []});
        assert_eq!(dumps(&value, None), r#"{"a": [1, 2.5, null, true], "b": {"c": "é<\""}, "e": []}"#);
        assert_eq!(dumps(&json!({"a": [1], "e": {}}), Some(2)), "{\n  \"a\": [\n    1\n  ],\n  \"e\": {}\n}");
    }
}
