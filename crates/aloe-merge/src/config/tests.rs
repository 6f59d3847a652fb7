//! Configurations as people publish them, and every way to get one wrong.

use super::*;

fn parse(text: &str) -> Result<MergeConfig> {
    MergeConfig::parse(text, Path::new("merge.yml"))
}

fn mistakes(text: &str) -> Vec<(usize, String)> {
    match parse(text) {
        Err(Error::Config { mistakes, .. }) => {
            mistakes.into_iter().map(|mistake| (mistake.line, mistake.text)).collect()
        }
        other => panic!("expected mistakes, found {other:?}"),
    }
}

/// The README example of mergekit at the time of the reference model.
const PUBLISHED: &str = "models:
  - model: base
    # No parameters necessary for base model
  - model: a
    parameters:
      density: 0.53
      weight: 0.4
  - model: b
    parameters:
      density: 0.53
      weight: 0.6
merge_method: dare_ties
base_model: base
parameters:
  int8_mask: true
dtype: bfloat16
";

#[test]
fn the_published_dare_ties_example_reads_as_mergekit_reads_it() {
    let config = parse(PUBLISHED).unwrap();
    assert_eq!((config.method, config.base, config.dtype), (Method::DareTies, Some(0), Some(MergeDtype::Bfloat16)));
    let found = resolve(&config, "model.norm.weight", 0.0);
    assert_eq!((weights(&found), densities(&found)), (vec![0.4, 0.6], vec![0.53, 0.53]));
    assert_eq!((found.flag(Parameter::Normalize), found.number(Parameter::Lambda)), (false, 1.0));
    assert_eq!(found.rescale(), Some(RescaleKind::Density));
}

fn resolve(config: &MergeConfig, tensor: &str, t: f64) -> TensorParameters {
    let names = vec![tensor.to_owned(); config.slices[0].sources.len()];
    config.tensor_parameters(0, tensor, &names, t).unwrap()
}

fn values(found: &TensorParameters, parameter: Parameter) -> Vec<f64> {
    let with = (0..found.inputs.len()).filter(|input| !found.inputs[*input].is_empty());
    with.map(|input| found.input(input, parameter)).collect()
}

fn weights(found: &TensorParameters) -> Vec<f64> {
    values(found, Parameter::Weight)
}

fn densities(found: &TensorParameters) -> Vec<f64> {
    values(found, Parameter::Density)
}

#[test]
fn a_base_that_is_not_listed_is_added_last_and_needs_no_weight_in_ties() {
    let config = parse("models: [{model: a, parameters: {weight: 1}}]\nbase_model: b\nmerge_method: ties\n").unwrap();
    assert_eq!((config.base_name(), config.slices[0].base), (Some("b"), Some(1)));
    let found = resolve(&config, "x", 0.0);
    assert_eq!((found.flag(Parameter::Normalize), found.rescale(), densities(&found)), (true, None, vec![1.0]));
}

#[test]
fn a_base_added_to_a_linear_merge_needs_a_weight_as_in_mergekit() {
    let text = "models: [{model: a, parameters: {weight: 1}}]\nbase_model: b\nmerge_method: linear\n";
    assert_eq!(mistakes(text), [(2, "model b has no weight: give `parameters: {weight: ...}`".into())]);
}

#[test]
fn the_models_own_value_goes_before_the_global_one_and_a_filter_without_a_match_falls_through() {
    let config = parse(
        "models:\n- model: a\n  parameters:\n    weight:\n    - filter: mlp\n      value: [0, 1]\n- model: b\n\
         parameters: {weight: 0.25}\nmerge_method: linear\n",
    )
    .unwrap();
    let weights = |tensor: &str, t: f64| weights(&resolve(&config, tensor, t));
    assert_eq!(weights("model.layers.1.mlp.up_proj.weight", 0.5), [0.5, 0.25]);
    assert_eq!(weights("model.layers.1.self_attn.q_proj.weight", 0.5), [0.25, 0.25]);
}

/// As in mergekit, where the empty text occurs in every tensor's name.
#[test]
fn an_empty_filter_matches_every_tensor() {
    let config = parse(
        "models:\n- model: a\n  parameters:\n    weight: [{filter: mlp, value: 0.5}, {filter: '', value: 0.3}, {value: 1}]\n\
         merge_method: linear\n",
    )
    .unwrap();
    let weights = |tensor: &str| weights(&resolve(&config, tensor, 0.0));
    assert_eq!((weights("lm_head.weight"), weights("model.layers.1.mlp.up_proj.weight")), (vec![0.3], vec![0.5]));
}

#[test]
fn a_wrong_value_is_one_mistake_and_not_said_to_be_missing_too() {
    for weight in ["one", ".nan", "[]", "[1, x]", "{filter: mlp}"] {
        let found =
            mistakes(&format!("models:\n- model: a\n  parameters: {{weight: {weight}}}\nmerge_method: linear\n"));
        assert_eq!(found.len(), 1, "{weight}: {found:?}");
        assert!(found[0].0 == 3 && found[0].1.contains("weight"), "{weight}: {found:?}");
    }
}

#[test]
fn a_quoted_word_for_a_condition_is_one_as_in_mergekit() {
    for (word, expected) in [("false", false), ("No", false), ("OFF", false), ("0", false), ("true", true), ("y", true)]
    {
        let text = format!(
            "models: [{{model: a, parameters: {{weight: 1}}}}]\nmerge_method: linear\nparameters: {{normalize: '{word}'}}\n"
        );
        assert_eq!(resolve(&parse(&text).unwrap(), "x", 0.0).flag(Parameter::Normalize), expected, "{word}");
    }
}

/// By hand: three values over five layers, t = 0, 1/4, 1/2, 3/4, 1, so that layer 1 lies half-way between the first two.
#[test]
fn a_gradient_is_interpolated_over_the_layers() {
    let config = parse(
        "models: [{model: a, parameters: {weight: [0, 1, 0.5]}}]\nbase_model: b\nmerge_method: ties\n\
         parameters: {normalize: [true, false]}\n",
    )
    .unwrap();
    for (t, expected) in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.75), (1.0, 0.5)] {
        let found = resolve(&config, "x", t);
        assert_eq!(weights(&found), [expected], "t = {t}");
        assert_eq!(found.flag(Parameter::Normalize), t < 1.0, "a flag is picked, not interpolated: t = {t}");
    }
}

#[test]
fn a_number_that_yaml_calls_text_is_still_a_number() {
    let config =
        parse("models: [{model: a, parameters: {weight: 5e-1}}]\nbase_model: b\nmerge_method: ties\n").unwrap();
    assert_eq!(weights(&resolve(&config, "x", 0.0)), [0.5]);
}

#[test]
fn all_mistakes_are_listed_at_once_with_their_lines() {
    let text = "models:\n- model: a\n  parameters: {weight: 1, density: 2}\n- model: 7\n- model: c\n  weight: 1\n\
                merge_method: arcee_fusion\nbase_modle: x\ndtype: float64\nslices: []\ntokenizer_source: base\n";
    let found = mistakes(text);
    let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [3, 4, 6, 7, 8, 9, 10, 11], "{found:#?}");
    for (index, expected) in [
        "density must be a number from 0 to 1, found the integer 2",
        "found the integer 7; quote it",
        "unknown key weight of a model; known are model, layer_range, parameters; write it under parameters",
        "merge_method arcee_fusion of mergekit is not supported",
        "unknown key base_modle",
        "float64 is not supported",
        "only one of models, slices and modules",
        "tokenizer_source base needs a base_model",
    ]
    .iter()
    .enumerate()
    {
        assert!(found[index].1.contains(expected), "{:?} lacks {expected:?}", found[index]);
    }
}

#[test]
fn values_outside_their_range_are_refused() {
    for (parameters, expected) in [
        ("density: 2", "from 0 to 1"),
        ("density: -0.1", "from 0 to 1"),
        ("density: .nan", "from 0 to 1"),
        ("density: [0.5, 1.5]", "from 0 to 1"),
        ("density: [{filter: mlp, value: -1}]", "from 0 to 1"),
        ("density: []", "empty list"),
        ("density: 2024-04-18", "the date"),
        ("weight: .inf", "finite"),
        ("weight: yes", "the boolean true"),
        ("normalize: maybe", "true or false"),
        ("rescale_kind: l2", "density or l1"),
        ("rescale_kind: density", "no random sample"),
        ("gama: 0.1", "unknown parameter gama"),
        ("lambda: {filter: mlp}", "without `value`"),
    ] {
        let text = format!(
            "models: [{{model: a, parameters: {{weight: 1}}}}]\nbase_model: b\nmerge_method: ties\nparameters: {{{parameters}}}\n"
        );
        let found = mistakes(&text);
        assert_eq!(found.len(), 1, "{parameters}: {found:?}");
        assert_eq!(found[0].0, 4);
        assert!(found[0].1.contains(expected), "{parameters}: {:?} lacks {expected:?}", found[0].1);
    }
}

#[test]
fn what_a_method_needs_or_ignores_is_said() {
    assert!(
        mistakes("models: [{model: a, parameters: {weight: 1}}]\nmerge_method: dare_ties\n")[0]
            .1
            .contains("base_model is missing")
    );
    assert!(mistakes("models: [{model: a}]\nbase_model: a\nmerge_method: ties\n")[0].1.contains("nothing to merge"));
    let notes = |text: &str| parse(text).unwrap().notes;
    let own = "models: [{model: a, parameters: {weight: 1, lambda: 2}}]\nbase_model: b\nmerge_method: ties\n";
    assert_eq!(notes(own), ["lambda of model a has no effect there; move it to the global parameters"]);
    let linear = "models: [{model: a}]\nmerge_method: linear\nparameters: {weight: 1, density: 0.5, int8_mask: true}\n";
    assert_eq!(notes(linear), ["density has no effect on merge_method linear"]);
    assert!(
        mistakes("models: [{model: a}, {model: a}]\nmerge_method: linear\nparameters: {weight: 1}\n")[0]
            .1
            .contains("already")
    );
    assert!(mistakes("").first().unwrap().1.contains("must be a mapping"));
    assert!(
        mistakes("models: [{model: a}, {model: b}]\nmerge_method: passthrough\n")[0]
            .1
            .contains("merges 1 models, found 2")
    );
    let slerp = "models: [{model: a}, {model: b}]\nbase_model: a\nmerge_method: slerp\n";
    assert!(mistakes(slerp)[0].1.contains("needs `parameters: {t: ...}`"));
    let with_adapter = parse("models: [{model: x+y, parameters: {weight: 1}}]\nmerge_method: linear\n").unwrap();
    assert_eq!(with_adapter.outside_models(), ["x", "y"]);
    let zero = parse(
        "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]\nmerge_method: linear\n",
    );
    assert!(
        zero.unwrap()
            .tensor_parameters(0, "x", &["x".into(), "x".into()], 0.0)
            .unwrap_err()
            .text
            .contains("sum to zero")
    );
}

#[test]
fn the_base_may_carry_parameters_which_are_noted_as_without_effect() {
    let config = parse("models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 9}}]\nbase_model: b\nmerge_method: ties\n").unwrap();
    assert_eq!(config.notes, ["parameters of the base model b have no effect"]);
    assert_eq!(weights(&resolve(&config, "x", 0.0)), [1.0]);
}

#[test]
fn slices_have_layers_parameters_and_a_base_of_their_own() {
    let config = parse(
        "slices:\n- sources:\n  - {model: a, layer_range: [0, 4], parameters: {weight: 0.3}}\n  - {model: b, layer_range: [2, 6]}\n\
         - sources:\n  - {model: a, layer_range: [4, 6]}\n  parameters: {weight: 5}\n  residual_weight: 1\n\
         merge_method: linear\nparameters: {weight: 2}\n",
    )
    .unwrap();
    let ranges: Vec<_> = config.slices[0].sources.iter().map(|source| source.layers).collect();
    assert_eq!(ranges, [Some((0, 4)), Some((2, 6))]);
    let first = config.tensor_parameters(0, "x", &["x".into(), "x".into()], 0.0).unwrap();
    let second = config.tensor_parameters(1, "x", &["x".into()], 0.0).unwrap();
    assert_eq!((weights(&first), weights(&second)), (vec![0.3, 2.0], vec![5.0]));
    assert_eq!(config.notes, ["residual_weight has no effect, in mergekit neither"]);
    for (text, expected) in [
        ("slices: [{sources: [{model: a, layer_range: [3, 3]}]}]", "END being one after"),
        ("slices: [{sources: [{model: a}]}]", "without `layer_range"),
        (
            "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]}]",
            "different numbers of layers",
        ),
        ("modules: {vision: {models: [{model: a}]}}", "unknown module vision"),
    ] {
        let found = mistakes(&format!("{text}\nmerge_method: linear\nparameters: {{weight: 1}}\n"));
        assert!(found.iter().any(|(_, text)| text.contains(expected)), "{found:?} lacks {expected:?}");
    }
    let absent = "slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}]\nbase_model: c\n\
                  merge_method: slerp\nparameters: {t: 0.5}\n";
    assert!(mistakes(absent)[0].1.contains("the base model c is none of the sources of this slice"));
}

#[test]
fn documents_that_use_each_other_are_put_in_order() {
    let text = "name: second\nmodels: [{model: first}, {model: x}]\nmerge_method: linear\nparameters: {weight: 1}\n---\n\
                name: first\nmodels: [{model: x}, {model: y}]\nmerge_method: linear\nparameters: {weight: 1}\n---\n\
                models: [{model: second}]\nmerge_method: passthrough\n";
    let config = parse(text).unwrap();
    let names: Vec<_> = config.earlier.iter().filter_map(|earlier| earlier.name.clone()).collect();
    assert_eq!((names, config.method), (vec!["first".to_owned(), "second".to_owned()], Method::Passthrough));
    assert_eq!(config.outside_models(), ["x", "y"]);
    let circle = text.replace("model: x}, {model: y}", "model: second}, {model: y}");
    assert!(mistakes(&circle)[0].1.contains("in a circle"));
    assert!(mistakes(&text.replace("name: second\n", ""))[0].1.contains("a second document without `name`"));
}

/// mergekit-multi takes such files and writes every merge.
#[test]
fn where_all_documents_have_names_the_one_that_no_other_uses_is_the_result() {
    let document = |name: &str, models: [&str; 2]| {
        let [a, b] = models;
        format!(
            "name: {name}\nmodels: [{{model: {a}}}, {{model: {b}}}]\nmerge_method: linear\nparameters: {{weight: 1}}\n"
        )
    };
    let named = |documents: [String; 3]| documents.join("---\n");
    let text =
        named([document("first", ["x", "y"]), document("last", ["second", "z"]), document("second", ["first", "x"])]);
    let config = parse(&text).unwrap();
    let names: Vec<_> = config.earlier.iter().filter_map(|earlier| earlier.name.as_deref()).collect();
    assert_eq!((config.name.as_deref(), &names[..]), (Some("last"), &["first", "second"][..]));
    assert_eq!(config.outside_models(), ["x", "y", "z"]);
    let two = named([document("last", ["z", "x"]), document("first", ["x", "y"]), document("second", ["first", "x"])]);
    let found = mistakes(&two);
    assert_eq!(found[0].0, 11, "{found:?}");
    assert!(found[0].1.contains("no other one uses last, second: leave out the `name`"), "{found:?}");
    assert!(found[0].1.ends_with("; if a document was meant by one of z, x, y, its name is misspelt"), "{found:?}");
    let circle = named([
        document("last", ["second", "z"]),
        document("first", ["last", "y"]),
        document("second", ["first", "x"]),
    ]);
    assert!(mistakes(&circle)[0].1.contains("in a circle"));
}

#[test]
fn a_revision_of_a_model_is_refused_by_name() {
    let found = mistakes("models: [{model: org/tuned@v2, parameters: {weight: 1}}]\nmerge_method: linear\n");
    assert!(found[0].1.starts_with("model org/tuned@v2: a revision after @ is not supported; pull it"), "{found:?}");
    let long =
        "models: [{model: {model: {path: org/tuned, revision: v2}}, parameters: {weight: 1}}]\nmerge_method: linear\n";
    assert!(mistakes(long)[0].1.contains("revision of a model is not supported"));
}

#[test]
fn tokens_may_have_sources_of_their_own() {
    let config = parse(
        "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\n\
         tokenizer:\n  source: union\n  pad_to_multiple_of: 64\n  tokens:\n    <x>: {source: a, force: true}\n\
         \x20   <y>: {source: {kind: zero}}\n    <z>: {source: {kind: model_token, model: b, token_id: 7}}\n",
    )
    .unwrap();
    let choice = config.tokenizer.unwrap();
    let rows: Vec<_> = choice.tokens.values().map(|rule| (rule.source.clone(), rule.force)).collect();
    assert_eq!(
        rows,
        [(Some(TokenRow::Same(0)), true), (Some(TokenRow::Zero), false), (Some(TokenRow::Id(1, 7)), false)]
    );
    assert_eq!((choice.source, choice.pad_to_multiple_of), (TokenizerSource::Union, Some(64)));
}

/// What mergekit-evolve writes, and conditions as Python takes them.
#[test]
fn numbers_are_flags_as_mergekit_takes_them() {
    let text = |value: &str| {
        format!(
            "models: [{{model: a, parameters: {{weight: 1}}}}]\nmerge_method: linear\nparameters: {{normalize: {value}, int8_mask: {value}}}\n"
        )
    };
    for (value, expected) in [("1.0", true), ("0.0", false), ("1", true), ("0", false), ("yes", true), ("off", false)] {
        let found = resolve(&parse(&text(value)).unwrap(), "x", 0.0);
        assert_eq!(found.flag(Parameter::Normalize), expected, "{value}");
    }
    for value in [".nan", "\"maybe\"", ".inf", "0.5", "2", "-2"] {
        assert!(mistakes(&text(value))[0].1.starts_with("normalize must be true or false"), "{value}");
    }
}

#[test]
fn a_key_that_only_holds_anchors_is_passed_over_and_a_misspelt_one_is_not() {
    let text = |key: &str, value: &str| {
        format!("{key}: {value}\nmodels: [{{model: a, parameters: {{weight: 1}}}}]\nmerge_method: linear\n")
    };
    let found = parse(
        "defaults: &d {density: 0.6, weight: 0.5}\nmodels: [{model: a, parameters: *d}]\nbase_model: b\nmerge_method: ties\n",
    )
    .unwrap();
    assert_eq!(densities(&resolve(&found, "x", 0.0)), [0.6]);
    assert!(found.notes[0].starts_with("the key defaults is passed over"), "{:?}", found.notes);
    for (key, value) in [("shared", "[&x 1, &y 2]"), ("x-paths", "{base: &p models/base}"), (".hidden", "&z 0.5")] {
        assert_eq!(parse(&text(key, value)).unwrap().notes.len(), 1, "{key}");
    }
    for (key, value) in [
        ("paramters", "&p {normalize: true}"),
        ("parameter", "&p {normalize: true}"),
        ("dtypes", "&p float32"),
        ("extra", "&p {dtype: float32}"),
        ("extra", "{weight: 1}"),
        ("extra", "1"),
    ] {
        let found = mistakes(&text(key, value));
        assert!(found[0].0 == 1 && found[0].1.starts_with(&format!("unknown key {key}")), "{found:?}");
    }
}

#[test]
fn what_mergekit_ignores_in_shared_files_is_taken_and_said_to_have_no_effect() {
    let text = "models:\n- {model: a, layer_range: [0, 4]}\n- {model: b}\nmerge_method: slerp\nbase_model: a\nparameters: {t: 0.5, embed_slerp: true}\n\
                random_seed: 7\n";
    let found = parse(text).unwrap();
    assert_eq!(found.slices[0].sources[0].layers, None);
    for start in
        ["layer_range of a under `models` has no effect", "embed_slerp has no effect", "random_seed has no effect"]
    {
        assert!(found.notes.iter().any(|note| note.starts_with(start)), "{:?}", found.notes);
    }
}
