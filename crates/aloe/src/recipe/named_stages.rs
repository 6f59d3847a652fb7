//! Stages that stand in a path, `stage:NAME`: allowed in the `path` of a data stage's source alone, and for stages that make rows.

use super::checked::{Input, ROWS, Stage};
use super::raw::Mistake;
use super::stage_config::StageConfig;
use serde_json::Value;

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
