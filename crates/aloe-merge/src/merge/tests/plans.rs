//! Plans against those of mergekit's own planner (`oracles/mergekit_plans.py`): which tensor of which model, with which parameters; and a file
//! of several documents against what mergekit-multi merges.

use super::golden::{distance, inputs};
use super::*;
use aloe_model::SafeTensorsFile;
use serde_json::Value;
use std::collections::BTreeMap;

/// Parameters as numbers; without what changes no number in mergekit and what is ours alone. An unset `scale` of mergekit's is a scale of one.
fn known(parameters: &Value) -> Vec<(String, f64)> {
    let number = |(name, value): (&String, &Value)| match value {
        Value::Bool(flag) => (name.clone(), f64::from(u8::from(*flag))),
        Value::Null => (name.clone(), 1.0),
        value => (name.clone(), value.as_f64().unwrap_or_else(|| panic!("{name} is {value}"))),
    };
    let has_effect = |(name, _): &(&String, &Value)| *name != "int8_mask" && *name != "rescale_kind";
    let mut found: Vec<_> = parameters.as_object().unwrap().iter().filter(has_effect).map(number).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// A model with one of its tensors and what applies to it.
type Input = (String, String, Vec<(String, f64)>);
/// The base, the parameters and the inputs of a tensor of the result.
type Planned = (Option<String>, Vec<(String, f64)>, Vec<Input>);

fn by_tensor(plan: &Value) -> BTreeMap<String, Planned> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut found = BTreeMap::new();
    for group in plan["groups"].as_array().unwrap() {
        for (at, name) in group["tensors"].as_array().unwrap().iter().enumerate() {
            let inputs = group["inputs"].as_array().unwrap().iter();
            let inputs: Vec<Input> = inputs
                .map(|input| (text(&input["model"]), text(&input["tensors"][at]), known(&input["parameters"])))
                .collect();
            let base = group["base_model"].as_str().map(str::to_owned);
            let before = found.insert(text(name), (base, known(&group["parameters"]), inputs));
            assert!(before.is_none(), "{name} twice");
        }
    }
    found
}

/// Equal names, numbers within 1e-9 relative.
fn same(ours: &[(String, f64)], theirs: &[(String, f64)]) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| a.0 == b.0 && close(a.1, b.1))
}

#[test]
fn twenty_seven_configurations_have_mergekits_plan_tensor_by_tensor() {
    let (_dir, options) = inputs();
    let plans: BTreeMap<String, Value> = atomic::read_json(Path::new(&format!("{GOLDEN}/plans.json"))).unwrap();
    let (mut n_tensors, mut n_parameters) = (0, 0);
    for (name, theirs) in &plans {
        let config = parse(theirs["yaml"].as_str().unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let ours = plan(&config, &options).unwrap_or_else(|error| panic!("{name}: {error}")).json(&config, &options);
        for key in ["method", "dtype", "out_dtype"].into_iter().filter(|key| !theirs[key].is_null()) {
            assert_eq!(ours[key], theirs[key], "{name}");
        }
        assert_eq!(ours["tokenizer"], theirs["tokenizer"], "{name}");
        let (ours, theirs) = (by_tensor(&ours), by_tensor(theirs));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, theirs) in &theirs {
            let ours = &ours[tensor];
            assert_eq!(ours.0, theirs.0, "{name}: {tensor}");
            assert!(same(&ours.1, &theirs.1), "{name}: {tensor}: {ours:?}, mergekit {theirs:?}");
            assert_eq!(ours.2.len(), theirs.2.len(), "{name}: {tensor}");
            for (ours, theirs) in ours.2.iter().zip(&theirs.2) {
                assert_eq!((&ours.0, &ours.1), (&theirs.0, &theirs.1), "{name}: {tensor}");
                assert!(same(&ours.2, &theirs.2), "{name}: {tensor}: {ours:?}, mergekit {theirs:?}");
                n_parameters += theirs.2.len();
            }
            n_parameters += theirs.1.len();
            n_tensors += 1;
        }
    }
    println!("{} plans, {n_tensors} tensors, {n_parameters} parameters", plans.len());
    assert_eq!(plans.len(), 27);
    assert!(n_tensors > 1000 && n_parameters > 3000, "{n_tensors} {n_parameters}");
}

/// A merge of a merge and a merge of both, by `mergekit-multi`.
#[test]
fn a_file_of_three_documents_gives_the_tensors_of_mergekit_multi() {
    let (dir, options) = inputs();
    let text = std::fs::read_to_string(format!("{GOLDEN}/multi.yml")).unwrap();
    let golden = SafeTensorsFile::open(Path::new(&format!("{GOLDEN}/multi.safetensors"))).unwrap();
    let out = dir.path().join("out");
    let report = run(&text, &out, &options).unwrap();
    let names: Vec<_> = report.earlier.iter().map(|report| report.name.clone().unwrap_or_default()).collect();
    assert_eq!(names, ["first", "second"]);
    let merged = Checkpoint::open(&out.join("model")).unwrap();
    for name in golden.names() {
        let far = distance(&merged.load_f32(name).unwrap(), &golden.load_f32(name).unwrap(), "float32");
        assert!(far <= 1.0, "{name}: {far:.2}");
    }
    assert_eq!(golden.names().len(), 3);
}
