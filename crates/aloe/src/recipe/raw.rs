//! A recipe as written: TOML to stages with their tables, every mistake with its line. Knows no kind of stage.
//!
//! [`Raw::read`] finds syntax errors, stages without kind or name, and names used twice. [`decode`] turns one stage's
//! remaining table into a typed configuration and reports all of its mistakes, not the first one.

use serde::de::DeserializeOwned;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// One mistake of a recipe and the line it is on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mistake {
    /// 1-based line.
    pub(crate) line: usize,
    /// What is wrong, with the key's name.
    pub(crate) text: String,
}

/// A recipe file cut into its stages.
pub(crate) struct Raw<'i> {
    /// The recipe's own settings, without the stages.
    pub(crate) head: Spanned<DeTable<'i>>,
    /// The stages in file order.
    pub(crate) stages: Vec<RawStage<'i>>,
}

/// One `[[stage]]` as written.
pub(crate) struct RawStage<'i> {
    /// 1-based line of the stage.
    pub(crate) line: usize,
    /// The keys as written.
    pub(crate) table: Spanned<DeTable<'i>>,
}

impl<'i> Raw<'i> {
    /// Parses `text`; the mistakes are those of the syntax and of keys other than the stages' own.
    pub(crate) fn read(text: &'i str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            mistakes.push(Mistake { line: line_of(text, error.span()), text: error.message().to_owned() });
        }
        if !errors.is_empty() {
            return None;
        }
        let span = document.span();
        let mut table = document.into_inner();
        let stages = table.remove("stage");
        let head = Spanned::new(span, table);
        let stages = match stages.map(Spanned::into_inner) {
            Some(DeValue::Array(items)) => stages_of(text, items, mistakes),
            Some(_) => {
                mistakes.push(Mistake { line: 1, text: "`stage` must be a list: write [[stage]]".to_owned() });
                Vec::new()
            }
            None => {
                mistakes.push(Mistake { line: 1, text: "no [[stage]] in the recipe".to_owned() });
                Vec::new()
            }
        };
        Some(Self { head, stages })
    }
}

impl<'i> RawStage<'i> {
    /// Takes the string under `key` out of the table.
    pub(crate) fn take_string(&mut self, text: &str, key: &str, mistakes: &mut Vec<Mistake>) -> Option<String> {
        let value = self.table.get_mut().remove(key)?;
        let span = value.span();
        match value.into_inner() {
            DeValue::String(found) => Some(found.into_owned()),
            _ => {
                mistakes.push(Mistake { line: line_of(text, Some(span)), text: format!("`{key}` must be a string") });
                None
            }
        }
    }

    /// Takes any value under `key` out of the table.
    pub(crate) fn take(&mut self, key: &str) -> Option<Spanned<DeValue<'i>>> {
        self.table.get_mut().remove(key)
    }
}

/// `table` as a `T` that denies unknown fields. Each key that does not fit is reported and left out, then the rest is
/// tried again, so that one call finds all mistakes.
pub(crate) fn decode<'i, T: DeserializeOwned>(
    text: &str,
    context: &str,
    mut table: Spanned<DeTable<'i>>,
    mistakes: &mut Vec<Mistake>,
) -> Option<T> {
    let mut found_any = false;
    loop {
        let whole = Spanned::new(table.span(), DeValue::Table(table.get_ref().clone()));
        let error = match T::deserialize(ValueDeserializer::from(whole)) {
            Ok(value) => return (!found_any).then_some(value),
            Err(error) => error,
        };
        found_any = true;
        let line = line_of(text, error.span().or(Some(table.span())));
        let removed = error.span().and_then(|span| remove_at(table.get_mut(), &span));
        let reason = error.message().trim();
        // The header of a table does not cover its keys, so the error's own words say where it is.
        let said = error.to_string();
        let place = said.trim_end().rsplit_once("\nin `").and_then(|(_, keys)| keys.strip_suffix('`'));
        let message = match removed.as_deref().or(place) {
            Some(key) if !reason.contains(&format!("`{key}`")) => format!("{context}: `{key}`: {reason}"),
            _ => format!("{context}: {reason}"),
        };
        mistakes.push(Mistake { line, text: message });
        removed?;
    }
}

/// Removes the innermost key whose name or value covers `span`, and returns its name.
fn remove_at(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let inside = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let hit = table.iter().find(|(key, value)| inside(key.span()) || inside(value.span()));
    let (key, name_hit) = hit.map(|(key, _)| (key.get_ref().to_string(), inside(key.span())))?;
    if !name_hit
        && let Some(value) = table.get_mut(key.as_str())
        && value.span() != *span
        && let DeValue::Table(inner) = value.get_mut()
        && let Some(removed) = remove_at(inner, span)
    {
        return Some(removed);
    }
    table.remove(key.as_str()).map(|_| key)
}

/// The 1-based line of a byte range.
pub(crate) fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let end = span.map_or(0, |span| span.start.min(text.len()));
    text.as_bytes()[..end].iter().filter(|&&byte| byte == b'\n').count() + 1
}

fn stages_of<'i>(text: &str, items: toml::de::DeArray<'i>, mistakes: &mut Vec<Mistake>) -> Vec<RawStage<'i>> {
    let mut stages = Vec::new();
    for item in items {
        let span = item.span();
        let line = line_of(text, Some(span.clone()));
        match item.into_inner() {
            DeValue::Table(table) => stages.push(RawStage { line, table: Spanned::new(span, table) }),
            _ => mistakes.push(Mistake { line, text: "each stage must be a table: write [[stage]]".to_owned() }),
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        #[allow(dead_code, reason = "only its type matters to the test")]
        lr: f64,
        #[allow(dead_code, reason = "only its type matters to the test")]
        steps: Option<u32>,
    }

    #[test]
    fn every_mistake_of_a_stage_is_found_in_one_call_with_its_line() {
        let text = "[[stage]]\nlr = \"fast\"\nstepz = 3\nsteps = -1\nseed = 4\n";
        let mut mistakes = Vec::new();
        let raw = Raw::read(text, &mut mistakes).unwrap();
        let stage = raw.stages.into_iter().next().unwrap();
        assert!(decode::<Example>(text, "stage x", stage.table, &mut mistakes).is_none());
        let lines: Vec<usize> = mistakes.iter().map(|mistake| mistake.line).collect();
        for line in [2, 3, 4, 5] {
            assert!(lines.contains(&line), "line {line} missing in {mistakes:?}");
        }
    }

    #[test]
    fn a_mistake_in_a_table_of_its_own_names_table_and_key() {
        #[derive(Debug, serde::Deserialize)]
        struct Outer {
            #[allow(dead_code, reason = "only its type matters to the test")]
            inner: Example,
        }
        for (line, words) in
            [("lr = \"fast\"", "`inner.lr`: "), ("lr = 1\nstepz = 3", "`inner`: unknown field `stepz`")]
        {
            let text = format!("[[stage]]\n[stage.inner]\n{line}\n");
            let mut mistakes = Vec::new();
            let stage = Raw::read(&text, &mut mistakes).unwrap().stages.into_iter().next().unwrap();
            assert!(decode::<Outer>(&text, "stage x", stage.table, &mut mistakes).is_none());
            assert!(mistakes[0].text.contains(words), "{mistakes:?}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let mut mistakes = Vec::new();
        assert!(Raw::read("a = 1\nb = \n", &mut mistakes).is_none());
        assert_eq!(mistakes[0].line, 2);
    }
}
