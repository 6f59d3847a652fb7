//! Stages that stand in a path, `stage:NAME`: allowed in the `path` of a data stage's source alone, and for stages that make rows.

use super::checked::{Input, ROWS, Stage};
use super::raw::Mistake;
use super::stage_config::StageConfig;
use serde_json::Value;
use std::collections::BTreeSet;

/// The stages whose rows a data stage reads are inputs of it like others: `rows`.
pub(super) fn rows_of_stages(
    data: &aloe_data::DataConfig,
    earlier: &[String],
    context: &str,
    line: usize,
    from: &mut Vec<(String, Vec<Input>)>,
    mistakes: &mut Vec<Mistake>,
) {
    let mut inputs = Vec::new();
    for name in data.stages() {
        match earlier.iter().position(|known| known == name) {
            Some(at) => inputs.push(Input::Stage(at)),
            None => {
                let text = format!("{context}: a source's path names stage {name:?}, which is no earlier stage");
                mistakes.push(Mistake { line, text });
            }
        }
    }
    if !inputs.is_empty() {
        from.push((ROWS.to_owned(), inputs));
    }
}

/// The stages that a data stage's sources name and that make no rows. Stages with mistakes of their own are not among `earlier`.
pub(super) fn rowless(stage: &Stage, earlier: &[Stage]) -> Vec<String> {
    let StageConfig::Data(data) = &stage.config else { return Vec::new() };
    let named = data.stages().into_iter().filter_map(|name| earlier.iter().find(|known| known.name == name));
    let named = named.filter(|named| !named.config.makes_rows());
    let say = |named: &Stage| {
        let (name, kind) = (&named.name, named.config.kind());
        format!(
            "stage {:?}: a source's path names stage {name:?}, which is of kind {kind} and makes no rows; stages of kind data, synthesis and redteam do, and a pull of a data set",
            stage.name
        )
    };
    named.map(say).collect()
}

/// Sources whose stated licence allows more than one under which an earlier stage took their rows in.
pub(super) fn freer(stage: &Stage, earlier: &[Stage]) -> Vec<String> {
    let StageConfig::Data(data) = &stage.config else { return Vec::new() };
    let mut found = Vec::new();
    for source in &data.sources {
        let Some((name, _)) = source.of_stage() else { continue };
        for kept in licences_of(name, earlier) {
            let mistake = source.licence_mistake(&kept);
            found.extend(mistake.map(|text| format!("stage {:?}: {text}", stage.name)));
        }
    }
    found
}

/// The licences of the rows that a stage makes, those of the stages behind it included.
fn licences_of(name: &str, stages: &[Stage]) -> BTreeSet<String> {
    let Some(at) = stages.iter().position(|stage| stage.name == name) else { return BTreeSet::new() };
    let mut found = BTreeSet::new();
    match &stages[at].config {
        StageConfig::Pull(config) => found.extend(config.licence.clone()),
        StageConfig::Data(data) => {
            for source in &data.sources {
                found.insert(source.licence.clone());
                let behind = source.of_stage().map(|(behind, _)| licences_of(behind, &stages[..at]));
                found.extend(behind.unwrap_or_default());
            }
        }
        _ => {}
    }
    found
}

/// Settings of other kinds of stages that name an earlier stage as a data stage's sources do.
pub(super) fn misplaced(stage: &Stage, earlier: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let is_named = |text: &str| {
        let named = text.strip_prefix("stage:").map(|named| named.split('/').next().unwrap_or(named));
        named.is_some_and(|named| earlier.iter().any(|known| known == named))
    };
    let mut left: Vec<(String, &Value)> = vec![(String::new(), &stage.written)];
    while let Some((key, value)) = left.pop() {
        let under = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        match value {
            Value::String(text) if is_named(text) => found.push(format!(
                "stage {:?}: `{key}` is {text:?}: only the `path` of a data stage's source may name a stage so; inputs stand in `from`",
                stage.name
            )),
            Value::Array(values) => left.extend(values.iter().map(|value| (key.clone(), value))),
            Value::Object(table) => left.extend(table.iter().map(|(name, value)| (under(name), value))),
            _ => {}
        }
    }
    found.retain(|_| stage.config.kind() != "data");
    found
}

#[cfg(test)]
mod tests {
    use super::super::checked::Recipe;
    use std::path::Path;

    fn refused(stages: &str) -> String {
        let text = format!("name = \"x\"\n{stages}");
        Recipe::parse(Path::new("recipe.toml"), &text).map(|_| ()).unwrap_err().to_string()
    }

    const PULL: &str = "[[stage]]\nkind = \"pull\"\nname = \"base\"\nsource = \"hf:a/b\"\n";

    fn data(name: &str, path: &str) -> String {
        format!(
            "[[stage]]\nkind = \"data\"\nname = \"{name}\"\nsources = [{{ name = \"g\", path = \"{path}\", licence = \"mit\" }}]\n"
        )
    }

    #[test]
    fn a_stage_that_makes_no_rows_is_refused_as_a_source_before_anything_runs() {
        let sft = "[[stage]]\nkind = \"sft\"\nname = \"sft\"\nfrom = { model = \"base\", data = \"rows\" }\nepochs = 1\nlr = 1e-3\n";
        let text = format!(
            "{PULL}{}{sft}{}{}",
            data("rows", "g.jsonl"),
            data("again", "stage:sft"),
            data("fine", "stage:rows/hold_out.jsonl")
        );
        let refused = refused(&text);
        let told = "recipe.toml:16: stage \"again\": a source's path names stage \"sft\", which is of kind sft and makes no rows";
        assert!(refused.starts_with("1 mistake") && refused.contains(told), "{refused}");
    }

    #[test]
    fn a_licence_that_allows_more_than_that_of_a_stage_behind_is_refused_before_anything_runs() {
        let of = |name: &str, path: &str, licence: &str| data(name, path).replace("\"mit\"", &format!("{licence:?}"));
        let one = of("one", "g.jsonl", "cc-by-nc-4.0");
        let refused = refused(&format!("{PULL}{one}{}", of("two", "stage:one", "mit")));
        let told = "stage \"two\": source `g`: its rows carry the licence `cc-by-nc-4.0`, which forbids commercial use";
        assert!(refused.contains(told), "{refused}");
        // Nor does a stage in between free them; the licence itself, or a stricter one, may be stated.
        let chain = |last: &str| {
            let middle = of("two", "stage:one", "cc-by-nc-sa-4.0");
            format!("name = \"x\"\n{PULL}{one}{middle}{}", of("three", "stage:two/hold_out.jsonl", last))
        };
        let parse = |text: &str| Recipe::parse(Path::new("recipe.toml"), text).map(|_| ());
        assert!(parse(&chain("mit")).unwrap_err().to_string().contains("2 mistakes"));
        assert!(parse(&chain("cc-by-nc-4.0")).unwrap_err().to_string().contains("`cc-by-nc-sa-4.0`"));
        parse(&chain("cc-by-nc-sa-4.0")).unwrap();
    }

    #[test]
    fn a_stage_in_another_path_is_refused_by_the_keys_name() {
        let eval = "[[stage]]\nkind = \"eval\"\nname = \"eval\"\nfrom = { model = \"base\" }\ntasks = [\"starter_mcqa\"]\ndata = \"stage:rows\"\n";
        let safe = data("more", "g.jsonl")
            .replace("licence", "safe_answers = \"stage:rows\", licence")
            .replace("kind", "output = \"pairs\"\nkind");
        let refused = refused(&format!("{PULL}{}{eval}{safe}", data("rows", "g.jsonl")));
        for told in
            ["stage \"eval\": `data` is \"stage:rows\": only", "source `g`: `safe_answers` is \"stage:rows\": only"]
        {
            assert!(refused.contains(told), "{told}: {refused}");
        }
    }
}
