//! Writes the YAML that engines read: a mapping in the order given, in the form in which PyYAML (YAML 1.1) gives back the same values.
//!
//! The traps it minds: a float needs a point and a sign in its exponent (`2e-5` would be text), and words such as `no` or `1e3` need
//! quotes. Reading is `aloe_merge::yaml`, which is held against PyYAML.

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Null,
    Bool(bool),
    Int(u64),
    Float(f64),
    Text(String),
    List(Vec<Item>),
    Map(Vec<(&'static str, Item)>),
}

impl From<bool> for Item {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Item {
    fn from(value: u64) -> Self {
        Self::Int(value)
    }
}

impl From<usize> for Item {
    fn from(value: usize) -> Self {
        Self::Int(value as u64)
    }
}

impl From<f64> for Item {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Item {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Item {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

/// One line a key; lists and maps within are in flow form.
pub(super) fn emit(entries: &[(&'static str, Item)]) -> String {
    entries.iter().map(|(key, item)| format!("{key}: {}\n", flow(item))).collect()
}

fn flow(item: &Item) -> String {
    match item {
        Item::Null => "null".to_owned(),
        Item::Bool(value) => value.to_string(),
        Item::Int(value) => value.to_string(),
        Item::Float(value) => float(*value),
        Item::Text(value) => text(value),
        Item::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Item::Map(entries) => {
            let entries: Vec<String> = entries.iter().map(|(key, item)| format!("{key}: {}", flow(item))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// The shortest form that reads back as the same number: `0.1`, `2.0e-05` as `2.0e-5`.
fn float(value: f64) -> String {
    let shortest = format!("{value:?}");
    let Some((mantissa, exponent)) = shortest.split_once('e') else { return shortest };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with('-') { "" } else { "+" };
    format!("{mantissa}{point}e{sign}{exponent}")
}

/// Plain where nothing else can be read from it, otherwise as a JSON string, which YAML reads too.
fn text(value: &str) -> String {
    const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"];
    let starts = value.chars().next().is_some_and(|first| first.is_ascii_alphabetic());
    let is_plain = starts && value.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    if is_plain && !WORDS.contains(&value.to_ascii_lowercase().as_str()) {
        value.to_owned()
    } else {
        serde_json::Value::from(value).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PyYAML 6: `yaml.safe_load` of each right side gives the left one, of `2e-5` it gives text.
    #[test]
    fn numbers_and_words_are_written_so_that_yaml_1_1_reads_the_same() {
        let cases: [(Item, &str); 9] = [
            (Item::Float(2e-5), "2.0e-5"),
            (Item::Float(1.5e-7), "1.5e-7"),
            (Item::Float(1e300), "1.0e+300"),
            (Item::Float(1.0), "1.0"),
            ("no".into(), "\"no\""),
            ("none".into(), "\"none\""),
            ("data/sft/rendered.jsonl".into(), "data/sft/rendered.jsonl"),
            ("a: b".into(), "\"a: b\""),
            ("1e3".into(), "\"1e3\""),
        ];
        for (item, expected) in cases {
            assert_eq!(flow(&item), expected);
        }
        let nested = Item::Map(vec![("a", Item::List(vec![Item::Null, true.into()]))]);
        assert_eq!(emit(&[("k", nested)]), "k: {a: [null, true]}\n");
    }
}
