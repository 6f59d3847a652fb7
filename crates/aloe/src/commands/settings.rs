//! `--set KEY=VALUE`: one setting of a stage, over what its file says. The value is TOML, or else a text; the key is a name, or a table and a
//! name in it. Whether the stage knows the key is checked later, with the file's own.

use crate::failure::Failure;
use toml::{Table, Value};

/// Adds each `KEY=VALUE`, KEY being `name` or `table.name`; a value that is no TOML is taken as a string.
pub(crate) fn set_all(entry: &mut Table, settings: &[String]) -> anyhow::Result<()> {
    for setting in settings {
        let (key, value) =
            setting.split_once('=').ok_or_else(|| Failure::usage(format!("--set {setting}: write --set KEY=VALUE")))?;
        let parsed =
            toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
        let parsed = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
        let Some((outer, name)) = key.trim().split_once('.') else {
            entry.insert(key.trim().to_owned(), parsed);
            continue;
        };
        match entry.entry(outer).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(table) => set_path(table, unquoted(name), parsed),
            _ => return Err(Failure::usage(format!("--set {setting}: {outer} was set to a value, not a table")).into()),
        };
    }
    Ok(())
}

/// A key as TOML reads it: `"models.*.parameters.density"` is a name with stars and points in it.
fn unquoted(key: &str) -> &str {
    let inside = ['"', '\''].iter().find_map(|quote| key.strip_prefix(*quote)?.strip_suffix(*quote));
    inside.unwrap_or(key)
}

/// Replaces what the file gives under this name, written as one key or as a path of tables; adds it where there is nothing.
fn set_path(table: &mut Table, name: &str, value: Value) {
    if !table.contains_key(name)
        && let Some((last, outer)) = name.split('.').collect::<Vec<_>>().split_last()
    {
        let inner = outer.iter().try_fold(&mut *table, |table, step| table.get_mut(*step)?.as_table_mut());
        if let Some(known) = inner.and_then(|table| table.get_mut(*last)) {
            *known = value;
            return;
        }
    }
    table.insert(name.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_replaces_what_the_file_has_under_its_name_however_it_is_written() {
        let file = "[space]\n\"models.*.parameters.density\" = { from = 0.1, to = 0.2 }\nmodels.0.parameters.weight = { from = 0.3, to = 0.4 }\n";
        let mut entry: Table = toml::from_str(file).unwrap();
        let asked = [
            "space.\"models.*.parameters.density\"={ values = [1] }",
            "space.models.0.parameters.weight={ values = [2] }",
            "space.'parameters.lambda'={ values = [3] }",
            "eval.limit=4",
        ];
        set_all(&mut entry, &asked.map(String::from)).unwrap();
        let expected = "[space]\n\"models.*.parameters.density\" = { values = [1] }\nmodels.0.parameters.weight = { values = [2] }\n\
                        \"parameters.lambda\" = { values = [3] }\n[eval]\nlimit = 4\n";
        assert_eq!(entry, toml::from_str::<Table>(expected).unwrap());
    }
}
