//! A recipe as used: typed settings per stage, inputs resolved, every mistake found before any work starts.
//!
//! Relative paths start at the recipe's `root` (a folder relative to the recipe file; default: the recipe's own).
//! `$NAME/...` at the start of a string is replaced by the environment variable.

use super::named_stages::{freer, misplaced, rowless, rows_of_stages};
use super::raw::{Mistake, Raw, RawStage, decode, line_of};
use super::stage_config::StageConfig;
use super::{compared, quarantines};
use crate::cli::MAX_THREADS;
use crate::failure::Failure;
use crate::weights::{self, DtypeName};
use aloe_handoff::{Trainer, Where};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A recipe without mistakes.
pub(crate) struct Recipe {
    /// Name; the default output folder is `runs/NAME`.
    pub(crate) name: String,
    /// Seed of all stages.
    pub(crate) seed: u64,
    /// Threads; 0 is all cores.
    pub(crate) threads: usize,
    /// Type of weights and matrix inputs while computing, where the recipe names one.
    pub(crate) dtype: Option<DtypeName>,
    /// Where stages run, where the recipe says it.
    pub(crate) place: Option<Where>,
    /// Who trains, where the recipe says it for all stages.
    pub(crate) trainer: Option<Trainer>,
    /// Folder that relative paths start from.
    pub(crate) root: PathBuf,
    /// The stages in file order, which is an order of the graph.
    pub(crate) stages: Vec<Stage>,
}

/// One checked stage.
pub(crate) struct Stage {
    /// Name of the entry and of the folder.
    pub(crate) name: String,
    /// 1-based line of the entry.
    pub(crate) line: usize,
    /// Inputs: name to what it is.
    pub(crate) from: Vec<(String, Vec<Input>)>,
    /// Typed settings.
    pub(crate) config: StageConfig,
    /// Who trains it, where the stage says it itself.
    pub(crate) trainer: Option<Trainer>,
    /// The entry as written.
    pub(crate) written: Value,
    /// What the author expects of data that is not at hand, for the plan.
    pub(crate) expect: Expect,
}

/// An input of a stage.
#[derive(Clone)]
pub(crate) enum Input {
    /// Output of the stage at this index.
    Stage(usize),
    /// A path or address outside the recipe.
    Path(PathBuf),
}

/// Sizes that cannot be measured before the data is there; used by the plan only.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expect {
    /// Rows or pairs or questions.
    pub(crate) rows: Option<u64>,
    /// Training tokens of one epoch.
    pub(crate) tokens: Option<u64>,
    /// Parameters of the model, where it cannot be read yet.
    pub(crate) parameters: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    name: String,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    threads: usize,
    dtype: Option<DtypeName>,
    root: Option<String>,
    #[serde(rename = "where")]
    place: Option<Where>,
    trainer: Option<Trainer>,
    /// A sentence on what the recipe is; for readers, and printed by the plan.
    #[serde(default, rename = "about")]
    _about: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FromValue {
    One(String),
    Many(Vec<String>),
}

impl Recipe {
    /// Reads and checks a recipe file; the error lists every mistake with its line.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("cannot read the recipe {}: {error}", path.display())))?;
        Self::parse(path, &text)
    }

    /// Checks the text of a recipe; `path` is for messages and for relative paths.
    pub(crate) fn parse(path: &Path, text: &str) -> anyhow::Result<Self> {
        let mut mistakes = Vec::new();
        let recipe = check(path, text, &mut mistakes);
        mistakes.sort();
        mistakes.dedup();
        gather_unset(&mut mistakes);
        match recipe {
            Some(recipe) if mistakes.is_empty() => Ok(recipe),
            _ => Err(Failure::usage(shown(path, &mistakes)).into()),
        }
    }

    /// Gives `seed` to every stage that names none of its own.
    pub(crate) fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
        for stage in &mut self.stages {
            stage.config.inherit(&stage.written, seed, self.dtype.unwrap_or_default());
        }
    }

    /// The index of the stage called `name`.
    pub(crate) fn position(&self, name: &str) -> anyhow::Result<usize> {
        self.stages.iter().position(|stage| stage.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
            Failure::usage(format!("the recipe has no stage {name:?}; it has {}", names.join(", "))).into()
        })
    }
}

/// The input of a data stage that its sources name.
pub(crate) const ROWS: &str = "rows";

/// How the mistake about an unset variable begins.
const UNSET: &str = "the environment variable ";

/// One mistake for each unset variable, on the first line that names it, with the number of places and what to type.
fn gather_unset(mistakes: &mut Vec<Mistake>) {
    let all = std::mem::take(mistakes);
    let n_places = |text: &str| all.iter().filter(|mistake| mistake.text == text).count();
    for mistake in &all {
        let Some(rest) = mistake.text.strip_prefix(UNSET) else {
            mistakes.push(mistake.clone());
            continue;
        };
        let name = rest.split(' ').next().unwrap_or_default();
        if !mistakes.iter().any(|seen| seen.text.starts_with(&mistake.text)) {
            let places = match n_places(&mistake.text) {
                1 => String::new(),
                n => format!(" ({n} lines name it)"),
            };
            let text = format!("{}{places}; set it, for example: export {name}=/path/to/folder", mistake.text);
            mistakes.push(Mistake { line: mistake.line, text });
        }
    }
}

/// The path of a recipe that was made of flags and settings: nobody sees its text, so its lines and the name of its only stage say nothing.
pub(crate) const COMMAND_LINE: &str = "command line";

/// All mistakes of a recipe, each with its line.
pub(crate) fn shown(path: &Path, mistakes: &[Mistake]) -> String {
    let is_made = path == Path::new(COMMAND_LINE);
    let place = if is_made { "settings" } else { "recipe" };
    let noun = if mistakes.len() == 1 { "mistake" } else { "mistakes" };
    let line = |mistake: &Mistake| match mistake.text.strip_prefix("stage \"").and_then(|text| text.split_once("\": "))
    {
        Some((_, text)) if is_made => format!("  {text}"),
        None if is_made => format!("  {}", mistake.text),
        _ => format!("  {}:{}: {}", path.display(), mistake.line, mistake.text),
    };
    let lines: Vec<String> = mistakes.iter().map(line).collect();
    format!("{} {noun} in the {place}; nothing was run\n{}", mistakes.len(), lines.join("\n"))
}

fn check(path: &Path, text: &str, mistakes: &mut Vec<Mistake>) -> Option<Recipe> {
    let raw = Raw::read(text, mistakes)?;
    let head: Option<Head> = decode(text, "recipe", raw.head, mistakes);
    if let Some(head) = head.as_ref().filter(|head| head.threads > MAX_THREADS) {
        let text = format!("recipe: `threads` must be at most {MAX_THREADS}, found {}", head.threads);
        mistakes.push(Mistake { line: 1, text });
    }
    let (mut stages, mut lines): (Vec<Stage>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut all_names: Vec<String> = Vec::new();
    let mut complete = head.is_some();
    for mut raw_stage in raw.stages {
        let written = to_json(raw_stage.table.get_ref());
        expand_table(text, raw_stage.table.get_mut(), mistakes);
        let line = raw_stage.line;
        match check_stage(text, raw_stage, written, &all_names, mistakes) {
            (name, Some(stage)) => {
                let found = rowless(&stage, &stages).into_iter().chain(misplaced(&stage, &all_names));
                for text in found.chain(freer(&stage, &stages)) {
                    mistakes.push(Mistake { line, text });
                }
                all_names.push(name);
                stages.push(stage);
                lines.push(line);
            }
            (name, None) => {
                complete = false;
                all_names.push(name);
            }
        }
        let name = all_names.last().cloned().unwrap_or_default();
        if all_names.iter().filter(|known| **known == name).count() > 1 {
            mistakes.push(Mistake { line, text: format!("two stages are called {name:?}") });
        }
    }
    let head = head.filter(|_| complete)?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    mistakes.extend(compared::compare(&mut stages).into_iter().map(|(at, text)| Mistake { line: lines[at], text }));
    let root = head.root.as_deref().map_or_else(|| folder.to_path_buf(), |root| folder.join(root));
    let shared = quarantines::shared(&stages, &root).into_iter();
    mistakes.extend(shared.map(|(at, text)| Mistake { line: lines[at], text }));
    for (stage, line) in stages.iter().zip(lines) {
        let model = stage.from.iter().find_map(|(key, inputs)| match inputs.as_slice() {
            [Input::Path(path)] if key == "model" => path.to_str(),
            _ => None,
        });
        let mistake = weights::mistake(head.dtype, stage.config.quantize(), model);
        mistakes.extend(mistake.map(|text| Mistake { line, text: format!("stage {:?}: {text}", stage.name) }));
    }
    let Head { name, seed, threads, dtype, place, trainer, .. } = head;
    let mut recipe = Recipe { name, seed, threads, dtype, place, trainer, root, stages };
    recipe.set_seed(seed);
    Some(recipe)
}

/// Whether a stage's name, which becomes a folder, may hold this letter.
pub(crate) fn is_of_stage_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "-_.".contains(letter)
}

/// What is wrong with a stage's name. One that begins with a dot is a hidden file's, a folder of this program's own work, or no folder's of its
/// own (`.`, `..`).
fn name_mistake(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("stage name \"\" becomes a folder; give the stage a name".to_owned());
    }
    let mistake = match (name.chars().all(is_of_stage_name), name.starts_with('.')) {
        (false, _) => "use letters, digits, `-`, `_` and `.`",
        (true, true) => "begin it with a letter, a digit, `-` or `_`",
        (true, false) => return None,
    };
    Some(format!("stage name {name:?} becomes a folder; {mistake}"))
}

/// The stage's name (for later references) and the stage, if it has no mistakes.
fn check_stage(
    text: &str,
    mut raw: RawStage<'_>,
    written: Value,
    earlier: &[String],
    mistakes: &mut Vec<Mistake>,
) -> (String, Option<Stage>) {
    let n_before = mistakes.len();
    let line = raw.line;
    let name = raw.take_string(text, "name", mistakes);
    mistakes.extend(match &name {
        None => Some(Mistake { line, text: "a stage without `name`".to_owned() }),
        Some(name) => name_mistake(name).map(|text| Mistake { line, text }),
    });
    let name = name.unwrap_or_default();
    let kind = raw.take_string(text, "kind", mistakes);
    let context = format!("stage {name:?}");
    let from = take_from(text, &mut raw, earlier, &context, mistakes);
    let expect = match raw.take("expect") {
        Some(value) => as_table(text, value, "expect", mistakes)
            .and_then(|table| decode::<Expect>(text, &context, table, mistakes))
            .unwrap_or_default(),
        None => Expect::default(),
    };
    let trainer = take_trainer(text, &mut raw, kind.as_deref(), &context, mistakes);
    let config = match kind.as_deref() {
        Some(kind) => decode_kind(text, kind, &context, raw, mistakes),
        None => {
            mistakes.push(Mistake { line, text: format!("{context} has no `kind`") });
            None
        }
    };
    let config = config.map(|mut config| {
        if let StageConfig::Merge(merge) = &mut config {
            merge.inputs = from.iter().map(|(key, _)| key.clone()).collect();
        }
        if let StageConfig::MergeSearch(search) = &mut config {
            search.inputs = from.iter().map(|(key, _)| key.clone()).collect();
        }
        config
    });
    if let Some(config) = &config {
        for mistake in config.mistakes().into_iter().chain(config.input_mistakes(&from, &written)) {
            mistakes.push(Mistake { line, text: format!("{context}: {mistake}") });
        }
        for required in config.required_inputs() {
            if !from.iter().any(|(key, _)| key == required) {
                let text =
                    format!("{context} needs the input `{required}`: from = {{ {required} = \"STAGE or PATH\" }}");
                mistakes.push(Mistake { line, text });
            }
        }
    }
    if let Some(config) = &config
        && let Some(optional) = config.optional_inputs()
    {
        let known = |key: &str| config.required_inputs().contains(&key) || optional.contains(&key);
        for (key, _) in from.iter().filter(|(key, _)| !known(key)) {
            let names: Vec<&str> = config.required_inputs().iter().chain(optional).copied().collect();
            let takes = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let text = format!("{context}: a stage of kind {:?} has no input `{key}`; it takes {takes}", config.kind());
            mistakes.push(Mistake { line, text });
        }
    }
    let mut from = from;
    if let Some(StageConfig::Data(data)) = &config {
        rows_of_stages(data, earlier, &context, line, &mut from, mistakes);
    }
    let stage = config.filter(|_| mistakes.len() == n_before).map(|config| Stage {
        name: name.clone(),
        line,
        from,
        config,
        trainer,
        written,
        expect,
    });
    (name, stage)
}

/// `trainer` of a training stage; another kind has no such key, and its own settings' reader says so.
fn take_trainer(
    text: &str,
    raw: &mut RawStage<'_>,
    kind: Option<&str>,
    context: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<Trainer> {
    if !matches!(kind, Some("sft" | "dpo")) {
        return None;
    }
    let line = raw.line;
    let name = raw.take_string(text, "trainer", mistakes)?;
    let known = [Trainer::Aloe, Trainer::Trl, Trainer::Axolotl];
    let found = known.into_iter().find(|trainer| trainer.name() == name);
    if found.is_none() {
        let text = format!("{context}: no trainer is called {name:?}; there are aloe, trl, axolotl");
        mistakes.push(Mistake { line, text });
    }
    found
}

fn decode_kind<'i>(
    text: &str,
    kind: &str,
    context: &str,
    raw: RawStage<'i>,
    mistakes: &mut Vec<Mistake>,
) -> Option<StageConfig> {
    let line = raw.line;
    let table = raw.table;
    match kind {
        "pull" => decode(text, context, table, mistakes).map(StageConfig::Pull),
        "data" => decode(text, context, table, mistakes).map(StageConfig::Data),
        "sft" => decode(text, context, table, mistakes).map(StageConfig::Sft),
        "dpo" => decode(text, context, table, mistakes).map(StageConfig::Dpo),
        "merge" => decode(text, context, table, mistakes).map(StageConfig::Merge),
        "merge-search" => {
            decode(text, context, table, mistakes).map(|search| StageConfig::MergeSearch(Box::new(search)))
        }
        "eval" => decode(text, context, table, mistakes).map(StageConfig::Eval),
        "rejudge" => decode(text, context, table, mistakes).map(StageConfig::Rejudge),
        "redteam" => decode(text, context, table, mistakes).map(StageConfig::Redteam),
        "synthesis" => decode(text, context, table, mistakes).map(|made| StageConfig::Synthesis(Box::new(made))),
        "card" => decode(text, context, table, mistakes).map(StageConfig::Card),
        other => {
            let text = format!(
                "{context}: no kind of stage is called {other:?}; kinds are pull, data, synthesis, sft, dpo, merge, merge-search, eval, \
                 rejudge, redteam, card"
            );
            mistakes.push(Mistake { line, text });
            None
        }
    }
}

fn take_from(
    text: &str,
    raw: &mut RawStage<'_>,
    earlier: &[String],
    context: &str,
    mistakes: &mut Vec<Mistake>,
) -> Vec<(String, Vec<Input>)> {
    let Some(value) = raw.take("from") else { return Vec::new() };
    let Some(table) = as_table(text, value, "from", mistakes) else { return Vec::new() };
    let mut inputs = Vec::new();
    for (key, value) in table.into_inner() {
        let line = line_of(text, Some(value.span()));
        let parsed = FromValue::deserialize(toml::de::ValueDeserializer::from(value));
        let given = match parsed {
            Ok(FromValue::One(one)) => vec![one],
            Ok(FromValue::Many(many)) => many,
            Err(_) => {
                let text =
                    format!("{context}: from.{} must be a stage's name, a path, or a list of them", key.get_ref());
                mistakes.push(Mistake { line, text });
                continue;
            }
        };
        let mut resolved = Vec::new();
        for name in given {
            match earlier.iter().position(|known| *known == name) {
                Some(at) => resolved.push(Input::Stage(at)),
                None if name.contains('/') || name.ends_with(".gguf") => resolved.push(Input::Path(name.into())),
                None => {
                    let text = format!(
                        "{context}: from.{} names {name:?}, which is no earlier stage (and no path: a path has a `/`)",
                        key.get_ref()
                    );
                    mistakes.push(Mistake { line, text });
                }
            }
        }
        inputs.push((key.get_ref().to_string(), resolved));
    }
    inputs
}

fn as_table<'i>(
    text: &str,
    value: Spanned<DeValue<'i>>,
    key: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<Spanned<DeTable<'i>>> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(Spanned::new(span, table)),
        _ => {
            let line = line_of(text, Some(span));
            mistakes.push(Mistake { line, text: format!("`{key}` must be a table") });
            None
        }
    }
}

/// Replaces a leading `$NAME` in every string of the table; an unset variable is a mistake.
fn expand_table(text: &str, table: &mut DeTable<'_>, mistakes: &mut Vec<Mistake>) {
    for (_, value) in table.iter_mut() {
        expand(text, value, mistakes);
    }
}

fn expand(text: &str, value: &mut Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) {
    let line = line_of(text, Some(value.span()));
    match value.get_mut() {
        DeValue::String(found) if found.starts_with('$') => {
            let end = found[1..].find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            let name = &found[1..end.map_or(found.len(), |end| end + 1)];
            match std::env::var(name) {
                Ok(replacement) => {
                    let expanded = format!("{replacement}{}", &found[1 + name.len()..]);
                    *found = std::borrow::Cow::Owned(expanded);
                }
                Err(_) => mistakes.push(Mistake { line, text: format!("{UNSET}{name} is not set") }),
            }
        }
        DeValue::Array(items) => {
            for item in items.iter_mut() {
                expand(text, item, mistakes);
            }
        }
        DeValue::Table(inner) => expand_table(text, inner, mistakes),
        _ => {}
    }
}

fn to_json(table: &DeTable<'_>) -> Value {
    let whole = Spanned::new(0..0, DeValue::Table(table.clone()));
    toml::Value::deserialize(toml::de::ValueDeserializer::from(whole))
        .ok()
        .and_then(|value| serde_json::to_value(value).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_folder_of_its_own_is_a_mistake_with_its_line() {
        let parse = |name: &str| {
            let text = format!("name = \"x\"\n\n[[stage]]\nkind = \"pull\"\nname = \"{name}\"\nsource = \"hf:a/b\"\n");
            Recipe::parse(Path::new("r.toml"), &text).map(|_| ()).map_err(|error| error.to_string())
        };
        for name in ["", ".", "..", "...", ".hidden", "a/b", "../a", "a\\u0000b", "a b"] {
            let refused = parse(name).unwrap_err();
            let shown = name.replace("\\u0000", "\\0");
            assert!(refused.starts_with("1 mistake"), "{name:?}: {refused}");
            let expected = format!("r.toml:3: stage name \"{shown}\" becomes a folder; ");
            assert!(refused.contains(&expected), "{name:?}: {refused}");
        }
        for name in ["a", "a.b", "dpo-1", "_x", "7"] {
            parse(name).unwrap();
        }
    }

    #[test]
    fn an_input_that_a_stage_does_not_take_is_a_mistake_that_names_those_it_takes() {
        let text = "name = \"x\"\n[[stage]]\nkind = \"eval\"\nname = \"e\"\nfrom = { model = \"./m\", comapre = \"./n\" }\n\
                    tasks = [\"starter_mcqa\"]\ndata = \"starter\"\n";
        let refused = Recipe::parse(Path::new("r.toml"), text).err().unwrap().to_string();
        let expected =
            "r.toml:2: stage \"e\": a stage of kind \"eval\" has no input `comapre`; it takes model, compare, embedder";
        assert!(refused.contains(expected), "{refused}");
        let right = Recipe::parse(Path::new("r.toml"), &text.replace("comapre", "compare"));
        assert!(right.is_ok(), "{}", right.err().unwrap());
    }
}
