//! Rows that a data stage wrote, as another one reads them: what each says of itself beside its text, and of which split of its published
//! set a row of any other file is.

use super::{is_of_stage, optional};
use crate::{RowError, SourceConfig, licence};
use aloe_task::rows::{Row, shown_name};
use serde_json::Value;
use std::sync::Arc;

/// What stands beside the text in a line that a data stage wrote; all of it is text, empty where nothing is known.
pub(crate) const COLUMNS: [&str; 6] = ["id", "source", "licence", "split", "task", "subject"];

/// Words of file names that name the split of a published set.
const SPLITS: [&str; 9] = ["train", "training", "test", "dev", "validation", "valid", "val", "eval", "heldout"];

/// Whether a data stage wrote the row.
pub(crate) fn is(row: &Row) -> bool {
    let is_text = |name: &&str| row.columns.get(*name).is_some_and(Value::is_string);
    let has = |names: &[&str]| names.iter().all(|name| row.columns.contains_key(*name));
    COLUMNS.iter().all(is_text) && (has(&["messages"]) || has(&["prompt", "chosen", "rejected"]))
}

/// The column in which the row says its licence: a data stage's line and a synthetic row that under which an earlier stage took them in, a row
/// of a set that joins several its own, where that is a licence that is known. Of other rows the source's is.
pub(super) fn licence_column(row: &Row) -> Option<&'static str> {
    let is_licence = |name: &&str| row.columns.get(*name).and_then(Value::as_str).is_some_and(licence::is_known);
    if is_of_stage(row) { Some("licence") } else { ["licence", "license"].into_iter().find(is_licence) }
}

/// What stands there.
pub(super) fn licence(row: &Row) -> Result<Option<Arc<str>>, RowError> {
    let said = licence_column(row).map(|name| optional(row, name)).transpose()?.flatten();
    Ok(said.map(|text| text.trim().into()))
}

/// The published split: as the source says, else as the row's column `split` does where that is a word, else the one that the file's name
/// names. A stage's `train.jsonl` says nothing of the sets that its rows came from.
pub(super) fn split(row: &Row, config: &SourceConfig) -> Option<Arc<str>> {
    if let Some(stated) = &config.split {
        return Some(stated.as_str().into());
    }
    let said = row.columns.get("split").and_then(Value::as_str).map(str::trim);
    match said.filter(|text| !text.is_empty() && shown_name(text) == **text) {
        Some(said) => Some(said.into()),
        None if is_of_stage(row) => None,
        None => named(row.at.rsplit('/').next().unwrap_or_default()).map(Arc::from),
    }
}

/// The only split that a file's name holds as a word.
fn named(file: &str) -> Option<&'static str> {
    let mut only = None;
    for word in file.split(|c: char| !c.is_alphanumeric()) {
        let found = SPLITS.iter().find(|split| word.eq_ignore_ascii_case(split));
        if found.is_some() && only.is_some_and(|before| Some(before) != found) {
            return None;
        }
        only = only.or(found);
    }
    only.copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: Value) -> SourceConfig {
        let mut all = json!({"name": "s", "path": "x", "licence": "MIT"});
        all.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn row(value: Value, at: &str) -> Row {
        Row { columns: value.as_object().unwrap().clone(), at: at.into() }
    }

    #[test]
    fn a_rows_split_is_what_its_source_its_column_or_the_only_split_in_its_files_name_says() {
        let of = |value: Value, at: &str, more: Value| split(&row(value, at), &config(more));
        let found = |value: Value, at: &str| of(value, at, json!({})).as_deref().map(str::to_owned);
        assert_eq!(found(json!({}), "/test/a/train-00000-of-00001.parquet#7").as_deref(), Some("train"));
        assert_eq!(found(json!({}), "US_dev.jsonl:3").as_deref(), Some("dev"));
        assert_eq!(found(json!({}), "train_and_test.jsonl:3"), None);
        assert_eq!(found(json!({}), "latest/trainees.jsonl:3"), None);
        assert_eq!(found(json!({"split": "validation"}), "train.jsonl:3").as_deref(), Some("validation"));
        assert_eq!(
            found(json!({"split": "a text of several words"}), "rows.jsonl:3"),
            None,
            "text of rows is no split"
        );
        let stated = of(json!({"split": "test"}), "dev.jsonl:1", json!({"split": "train"}));
        assert_eq!(stated.as_deref(), Some("train"));
    }

    #[test]
    fn a_line_of_a_data_stage_says_its_own_licence_and_split_and_of_other_rows_those_that_are_known_count() {
        let own = |split: &str| {
            let value = json!({"messages": [], "source": "a", "id": "a/f:1", "task": "mcqa", "subject": "", "licence": "cc-by-4.0",
                "split": split});
            row(value, "one/train.jsonl:1")
        };
        assert_eq!(licence(&own("dev")).unwrap().as_deref(), Some("cc-by-4.0"));
        assert_eq!(split(&own("dev"), &config(json!({}))).as_deref(), Some("dev"));
        assert_eq!(split(&own(""), &config(json!({}))), None);
        let other =
            |name: &str, said: Value| licence(&row(json!({"messages": [], name: said}), "train.jsonl:1")).unwrap();
        for name in ["licence", "license"] {
            assert_eq!(other(name, json!(" CC BY-NC 4.0 ")).as_deref(), Some("CC BY-NC 4.0"));
            for said in
                [json!("unknown"), json!(""), json!("see https://example.org"), json!(7), json!(["mit"]), json!(null)]
            {
                assert_eq!(other(name, said.clone()), None, "{said}");
            }
        }
    }
}
