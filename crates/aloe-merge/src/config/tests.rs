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
    let expected = TensorParameters::Consensus {
        weights: vec![0.4, 0.6],
        densities: vec![0.53, 0.53],
        normalize: false,
        lambda: 1.0,
        rescale: Some(RescaleKind::Density),
    };
    assert_eq!(config.tensor_parameters("model.norm.weight", 0.0).unwrap(), expected);
}

#[test]
fn a_base_that_is_not_listed_is_added_last_and_needs_no_weight_in_ties() {
    let config = parse("models: [{model: a, parameters: {weight: 1}}]\nbase_model: b\nmerge_method: ties\n").unwrap();
    assert_eq!(config.base_name(), Some("b"));
    let TensorParameters::Consensus { normalize, rescale, densities, .. } = config.tensor_parameters("x", 0.0).unwrap()
    else {
        panic!("ties is a consensus method")
    };
    assert_eq!((normalize, rescale, densities), (true, None, vec![1.0]));
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
    let weights = |tensor: &str, t: f64| match config.tensor_parameters(tensor, t).unwrap() {
        TensorParameters::Linear { weights, normalize: true } => weights,
        other => panic!("{other:?}"),
    };
    assert_eq!(weights("model.layers.1.mlp.up_proj.weight", 0.5), [0.5, 0.25]);
    assert_eq!(weights("model.layers.1.self_attn.q_proj.weight", 0.5), [0.25, 0.25]);
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
        let TensorParameters::Consensus { weights, normalize, .. } = config.tensor_parameters("x", t).unwrap() else {
            panic!("consensus")
        };
        assert_eq!(weights, [expected], "t = {t}");
        assert_eq!(normalize, t < 1.0, "a flag is picked, not interpolated: t = {t}");
    }
}

#[test]
fn a_number_that_yaml_calls_text_is_still_a_number() {
    let config =
        parse("models: [{model: a, parameters: {weight: 5e-1}}]\nbase_model: b\nmerge_method: ties\n").unwrap();
    assert!(
        matches!(config.tensor_parameters("x", 0.0), Ok(TensorParameters::Consensus { weights, .. }) if weights == [0.5])
    );
}

#[test]
fn all_mistakes_are_listed_at_once_with_their_lines() {
    let text = "models:\n- model: a\n  parameters: {weight: 1, density: 2}\n- model: 7\n- model: c\n  weight: 1\n\
                merge_method: slerp\nbase_modle: x\ndtype: float16\nslices: []\ntokenizer_source: union\n";
    let found = mistakes(text);
    let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [3, 4, 6, 7, 8, 9, 10, 11], "{found:#?}");
    for (index, expected) in [
        "density must be a number above 0 and at most 1, found the integer 2",
        "found the integer 7; quote it",
        "unknown key weight of a model",
        "merge_method slerp of mergekit is not supported yet",
        "unknown key base_modle",
        "float16 is not supported",
        "slices",
        "union is not supported yet",
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
        ("density: 0", "above 0"),
        ("density: 2", "at most 1"),
        ("density: -0.1", "above 0"),
        ("density: .nan", "above 0"),
        ("density: [0.5, 1.5]", "at most 1"),
        ("density: [{filter: mlp, value: 0}]", "above 0"),
        ("density: []", "empty list"),
        ("density: 2024-04-18", "the date"),
        ("weight: .inf", "finite"),
        ("weight: yes", "the boolean true"),
        ("normalize: maybe", "true or false"),
        ("rescale_kind: l2", "density or l1"),
        ("rescale_kind: density", "no random sample"),
        ("gamma: 0.1", "unknown parameter gamma"),
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
    assert!(
        mistakes("models: [{model: a, parameters: {weight: 1, lambda: 2}}]\nbase_model: b\nmerge_method: ties\n")[0]
            .1
            .contains("global")
    );
    let linear = "models: [{model: a}]\nmerge_method: linear\nparameters: {weight: 1, density: 0.5, int8_mask: true}\n";
    assert_eq!(mistakes(linear), [(3, "density has no effect on merge_method linear".into())]);
    assert!(
        mistakes("models: [{model: a}, {model: a}]\nmerge_method: linear\nparameters: {weight: 1}\n")[0]
            .1
            .contains("already")
    );
    assert!(mistakes("").first().unwrap().1.contains("must be a mapping"));
    assert!(mistakes("models: [{model: x+y, parameters: {weight: 1}}]\nmerge_method: linear\n")[0].1.contains("LoRA"));
    let zero = parse(
        "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]\nmerge_method: linear\n",
    );
    assert!(zero.unwrap().tensor_parameters("x", 0.0).unwrap_err().text.contains("sum to zero"));
}

#[test]
fn the_base_may_carry_parameters_which_are_noted_as_without_effect() {
    let config = parse("models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 9}}]\nbase_model: b\nmerge_method: ties\n").unwrap();
    assert_eq!(config.notes, ["parameters of the base model b have no effect"]);
    assert!(
        matches!(config.tensor_parameters("x", 0.0), Ok(TensorParameters::Consensus { weights, .. }) if weights == [1.0])
    );
}
