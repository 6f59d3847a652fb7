//! Every settable key of `aloe merge-search`, for `--help`; `keys` holds the others and the form of the list.

use super::keys::{self, Key};
use super::search_stage::MergeSearchStage;

pub(super) const SEARCH_STAGE: &[Key] = &[
    ("yaml", "mergekit's YAML; on the command line config = \"FILE\" instead"),
    ("space", "table of knobs, see below"),
    ("search", "table, see below"),
    ("eval", "table: what scores a merge, with the keys of `aloe eval`; split = \"validation\""),
    ("score_inputs", "score the unmerged inputs on the same questions too"),
    (
        "point_cache",
        "folder of scored points, which other searches of these models and questions find again; default none",
    ),
    ("note", "what is known of this search, kept in the record"),
    (
        "master",
        "write model/ and the f32 master/ that training starts from; false writes one folder (default of the command line)",
    ),
    ("memory", "memory budget of a merge in MiB; default 1024"),
];

pub(super) const SEARCH: &[Key] = &[
    ("method", "grid (every combination) or cmaes (CMA-ES within the ranges)"),
    ("evaluations", "the most points; a larger grid is refused, cmaes ends before the generation that would pass it"),
    ("sigma", "cmaes: first standard deviation as a share of each range, above 0 to 1; by default 0.3"),
    ("population", "cmaes: points per generation; by default 4 + 3 ln(knobs)"),
    ("seed", "cmaes: seed of the proposals; default the recipe's or --seed"),
];

const KNOB: &[Key] = &[
    ("from, to", "ends of the range, both reached"),
    ("steps", "grid: how many values from one end to the other"),
    ("values", "grid: the values themselves, in place of from, to and steps"),
    ("paths", "the places that the knob sets; by default the one its own name is. * stands for any step"),
];

/// A settings file for `aloe merge-search`.
pub(crate) const SEARCH_EXAMPLE: &str = r#"  config = "merge.yml"
  [space]
  "models.*.parameters.density" = { from = 0.3, to = 0.9, steps = 4 }
  models.0.parameters.weight = { values = [0.4, 0.6] }
  [search]
  method = "grid"
  [eval]
  tasks = ["medqa_4options"]
  data = "$ALOE_DATA"
  split = "validation"
"#;

/// The tables of a search by CMA-ES, which takes ranges without steps.
pub(crate) const CMAES_EXAMPLE: &str = r#"  [space]
  "models.*.parameters.density" = { from = 0.3, to = 0.9 }
  models.0.parameters.weight = { from = 0.2, to = 0.8 }
  [search]
  method = "cmaes"
  evaluations = 60
"#;

/// The keys of `aloe merge-search`, with an example.
pub(crate) fn merge_search() -> String {
    let required = r#"{"yaml": "", "space": {}, "search": {"method": "grid"}, "eval": {"tasks": [], "data": ""}}"#;
    let defaults = keys::minimal::<MergeSearchStage>(required);
    let search = keys::minimal::<aloe_merge::search::SearchSettings>(r#"{"method": "grid"}"#);
    let none = serde_json::json!({"from, to": null, "steps": null, "values": null, "paths": null});
    format!(
        "Settings: keys of the TOML file, of --set KEY=VALUE and of a recipe's stage\n{}\nspace: one entry a knob, named by the place of its number \
         in the YAML, which must stand there\n{}\nsearch\n{}\nExample of search.toml:\n{SEARCH_EXAMPLE}For cmaes in its place:\n{CMAES_EXAMPLE}\nExamples:\n  aloe merge-search search.toml runs/search\n  \
         aloe merge-search search.toml runs/search --set search.evaluations=200 --dtype bf16\n\nEach point is merged and asked here; a point's score is the \
         share of all questions that it answers right. A search on a reported set (MedQA test, MedMCQA validation, PubMedQA test, MMLU test, \
         CareQA) is refused. Stop it at any time; the same command goes on. So does one with more evaluations or a larger grid, after the end too: what is in points.log \
         is not asked again, and cmaes begins with the same points. Relative paths start at the current folder.\n\nWrites the best merge as a \
         Hugging Face folder with merge.json and report.html, search.json (every point with its standard error, and what may be said of the \
         best), search.html, points.log (the answers' marks) and record.json. A best that noise made is called that: exact McNemar tests against every other point and input, with \
         Holm's correction.",
        keys::list(SEARCH_STAGE, &defaults),
        keys::list(KNOB, &none),
        keys::list(SEARCH, &search),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_a_search_file_is_read_without_a_mistake() {
        let yaml = "merge_method: ties\nbase_model: base\nmodels:\n  - model: a\n    parameters: {density: 0.5, weight: 0.5}\n";
        let mut table: toml::Table = toml::from_str(&SEARCH_EXAMPLE.replace("$ALOE_DATA", "data")).unwrap();
        table.remove("config").unwrap();
        table.insert("yaml".into(), yaml.into());
        let n_points = |table: toml::Table| {
            let stage: MergeSearchStage = table.try_into().unwrap();
            let (space, _) = stage.checked().map_err(|mistakes| mistakes.join("\n")).unwrap();
            space.n_points(&stage.search)
        };
        assert_eq!(n_points(table.clone()), 8);
        table.extend(toml::from_str::<toml::Table>(CMAES_EXAMPLE).unwrap());
        assert!((40..=60).contains(&n_points(table)));
    }

    #[test]
    fn a_search_on_each_reported_set_is_refused_by_the_sets_name() {
        let stage = |task: &str, split: &str| -> Vec<String> {
            let yaml = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 0.5}\n";
            let stage = serde_json::json!({
                "yaml": yaml, "space": {"models.0.parameters.weight": {"values": [1]}}, "search": {"method": "grid"},
                "eval": {"tasks": [task], "data": "d", "split": split},
            });
            let stage: MergeSearchStage = serde_json::from_value(stage).unwrap();
            stage.checked().err().unwrap_or_default()
        };
        let sets = [
            ("medqa_4options", "MedQA's test set"),
            ("medqa_5options", "MedQA's test set"),
            ("medmcqa", "MedMCQA's published validation set"),
            ("pubmedqa", "PubMedQA's test set"),
            ("mmlu_anatomy", "MMLU's test set"),
            ("careqa_en", "CareQA"),
        ];
        for (task, words) in sets {
            let said = stage(task, "test").join("\n");
            assert!(said.contains(words) && said.contains("split = \"validation\""), "{said}");
            assert!(stage(task, "validation").is_empty());
        }
        assert_eq!(stage("mmlu_medical", "test").len(), 6, "every task of a group is named");
    }
}
