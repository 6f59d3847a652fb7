//! Spaces that must be refused, points in order, and searches whose optimum is known in closed form.

use super::*;
use crate::Error;
use serde_json::{Map, Value, json};
use std::path::Path;

const YAML: &str = "# two fine-tunes\nmerge_method: dare_ties\nbase_model: base\nmodels:\n  - model: a\n    parameters: {density: 0.5, weight: 0.5}   # of a\n  \
                    - model: b\n    parameters:\n      density: [0.25, 0.75]\n      weight: \"0.5\"\nparameters:\n  lambda: 1\n  normalize: true\ndtype: float32\n";

fn settings(method: Proposer, evaluations: usize) -> SearchSettings {
    SearchSettings { method, evaluations, sigma: None, population: None, seed: 3 }
}

fn table(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn refused(yaml: &str, space: Value, settings: &SearchSettings) -> String {
    let Err(mistakes) = Space::new(yaml, &table(space), settings) else { panic!("the space is taken") };
    mistakes.join("\n")
}

/// A fresh log per search; what was scored is counted.
fn run(
    space: &Space,
    settings: &SearchSettings,
    log: &Path,
    score: impl Fn(&[f64]) -> f64,
) -> (Searched<u32>, Vec<Vec<f64>>) {
    let mut asked = Vec::new();
    let mut log = PointLog::<u32>::open(log).unwrap();
    let known = (&Progress::silent(), &Cancel::default());
    let found = search(space, settings, (&mut log, "scope"), known, |values, _| {
        asked.push(values.to_vec());
        Ok::<_, Error>(Outcome::Scored(score(values), asked.len() as u32))
    });
    (found.unwrap(), asked)
}

#[test]
fn a_knob_changes_its_numbers_and_not_another_byte_of_the_yaml() {
    let space = json!({
        "models.*.parameters.weight": {"from": 0.1, "to": 0.9, "steps": 3},
        "first": {"paths": ["models.0.parameters.density", "models.1.parameters.density.1"], "values": [0.4, 1]},
        "parameters": {"lambda": {"values": [0.5]}},
    });
    let space = Space::new(YAML, &table(space), &settings(Proposer::Grid, 9)).unwrap();
    let names: Vec<&str> = space.knobs.iter().map(|knob| knob.name.as_str()).collect();
    assert_eq!(names, ["models.*.parameters.weight", "first", "parameters.lambda"]);
    let expected = YAML
        .replace("{density: 0.5, weight: 0.5}", "{density: 1, weight: 0.9}")
        .replace("[0.25, 0.75]", "[0.25, 1]")
        .replace("\"0.5\"", "0.9")
        .replace("lambda: 1", "lambda: 0.5");
    assert_eq!(space.yaml(&[0.9, 1.0, 0.5]), expected);
    // By hand: three weights times two densities, the last knob fastest.
    let grid = [[0.1, 0.4, 0.5], [0.1, 1.0, 0.5], [0.5, 0.4, 0.5], [0.5, 1.0, 0.5], [0.9, 0.4, 0.5], [0.9, 1.0, 0.5]];
    assert_eq!(space.grid(), grid);
    // The file's own 0.5 and 0.5; its lambda 1 lies outside of the range, whose middle is 0.5.
    assert_eq!(space.start(), [0.5, 0.5, 0.5]);
}

#[test]
fn every_way_a_space_can_be_wrong_is_one_clear_mistake() {
    let grid = settings(Proposer::Grid, 4);
    let one = |path: &str, range: Value| json!({ path: range });
    let both = json!({"from": 0.2, "to": 0.8, "steps": 2});
    let cases = [
        (one("models.0.parameters.densty", both.clone()), "has no models.0.parameters.densty"),
        (one("models.0.parameters.densty", both.clone()), "models.0.parameters.density, models.0.parameters.weight"),
        (one("models.2.parameters.density", both.clone()), "has no models.2"),
        (one("parameters.normalize", both.clone()), "normalize is not a number"),
        (one("merge_method", both.clone()), "is no parameter"),
        (one("models.1.parameters.density", both.clone()), "name one number in it"),
        (one("parameters.lambda", json!({"from": 0.8, "to": 0.2, "steps": 2})), "empty range"),
        (one("parameters.lambda", json!({"from": 0.5, "to": 0.5, "steps": 2})), "empty range"),
        (one("parameters.lambda", json!({"from": 0.2, "to": 0.8})), "needs steps"),
        (one("parameters.lambda", json!({"from": 0.2, "to": 0.8, "steps": 1})), "at least 2"),
        (
            one("parameters.lambda", json!({"from": 0.2, "to": 0.8, "steps": 5})),
            "5 points and search.evaluations allows 4",
        ),
        (one("parameters.lambda", json!({"values": []})), "values is empty"),
        (one("parameters.lambda", json!({"values": [1, 1]})), "twice"),
        (one("parameters.lambda", json!({"values": [1], "from": 0})), "stands alone"),
        (one("parameters.lambda", json!({"values": ["x"]})), "expected f64"),
        (one("parameters.lambda", json!({"form": 1})), "unknown field `form`"),
        (one("models.0.parameters.density", json!({"values": [0.5, 1.5]})), "from 0 to 1"),
        (
            json!({"a": {"paths": ["parameters.lambda"], "values": [1]}, "parameters.lambda": {"values": [2]}}),
            "set twice",
        ),
        (json!({}), "space is empty"),
    ];
    for (space, words) in cases {
        let said = refused(YAML, space, &grid);
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    let cma = settings(Proposer::Cmaes, 3);
    for (space, words) in [
        (one("parameters.lambda", both.clone()), "steps is for a grid"),
        (one("parameters.lambda", json!({"values": [1]})), "values is for a grid"),
        (one("parameters.lambda", json!({"from": 0, "to": 1})), "one generation of cmaes takes 4"),
    ] {
        let said = refused(YAML, space, &cma);
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    let aliased = YAML.replace("density: 0.5", "density: &d 0.5").replace("[0.25, 0.75]", "*d");
    let said = refused(&aliased, one("models.1.parameters.density", both), &grid);
    assert!(said.contains("alias"), "{said}");
    assert!(refused("models: [", json!({}), &grid).contains("yaml"), "a file that cannot be read is said to be that");
}

#[test]
fn paths_of_several_documents_begin_with_their_names() {
    let text = "name: first\nmerge_method: linear\nmodels:\n  - model: \u{e4}\n    parameters: {weight: 1}\n---\nmerge_method: linear\nmodels:\n  \
                - model: first\n    parameters: {weight: 2}\n";
    let space =
        json!({"first.models.0.parameters.weight": {"values": [3]}, "models.0.parameters.weight": {"values": [4]}});
    let space = Space::new(text, &table(space), &settings(Proposer::Grid, 1)).unwrap();
    assert_eq!(space.yaml(&[3.0, 4.0]), text.replace("weight: 1", "weight: 3").replace("weight: 2", "weight: 4"));
}

#[test]
fn a_grid_scores_every_point_once_in_order_and_the_first_of_the_best_wins() {
    let dir = tempfile::tempdir().unwrap();
    let space =
        json!({"models.*.parameters.weight": {"values": [0.25, 0.5, 1]}, "parameters.lambda": {"values": [1, 2]}});
    let settings = settings(Proposer::Grid, 6);
    let space = Space::new(YAML, &table(space), &settings).unwrap();
    let (found, asked) = run(&space, &settings, &dir.path().join("log"), |values| (values[0] * values[1]).min(1.0));
    assert_eq!(asked, space.grid());
    // By hand: 0.25, 0.5, 0.5, 1, 1, 1 (2 cut to 1).
    assert_eq!(found.points.iter().map(|point| point.score).collect::<Vec<_>>(), [0.25, 0.5, 0.5, 1.0, 1.0, 1.0]);
    assert_eq!((found.best(), found.tied()), (Some(3), vec![3, 4, 5]));
}

const BOX: [(&str, f64, f64); 2] = [("models.*.parameters.weight", 0.0, 2.0), ("parameters.lambda", -1.0, 3.0)];

fn box_space(settings: &SearchSettings) -> Space {
    let knobs: Map<String, Value> =
        BOX.iter().map(|(path, from, to)| ((*path).to_owned(), json!({"from": from, "to": to}))).collect();
    Space::new(YAML, &knobs, settings).unwrap()
}

/// The optimum of -(w - 1.3)^2 - 10 (l - 0.2)^2 - (w - 1.3)(l - 0.2) is (1.3, 0.2), its value 0: the quadratic form is definite.
fn bowl(values: &[f64]) -> f64 {
    let (w, l) = (values[0] - 1.3, values[1] - 0.2);
    -(w * w + 10.0 * l * l + w * l)
}

#[test]
fn cma_es_finds_the_optimum_of_a_bowl_and_the_corner_of_a_slope() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(Proposer::Cmaes, 240);
    let space = box_space(&settings);
    let (found, _) = run(&space, &settings, &dir.path().join("bowl"), bowl);
    let best = &found.points[found.best().unwrap()];
    assert!((best.values[0] - 1.3).abs() < 0.05 && (best.values[1] - 0.2).abs() < 0.05, "{best:?}, {}", found.ended);
    assert!(found.n_asked <= 240);
    for point in &found.points {
        for ((_, from, to), value) in BOX.iter().zip(&point.values) {
            assert!((*from..=*to).contains(value), "{point:?} is outside of the box");
        }
    }
    // w - l is largest at (2, -1), where two sides of the box meet.
    let (found, _) = run(&space, &settings, &dir.path().join("slope"), |values| values[0] - values[1]);
    assert_eq!(found.points[found.best().unwrap()].values, [2.0, -1.0], "{}", found.ended);
}

#[test]
fn cma_es_is_decided_by_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(Proposer::Cmaes, 60);
    let space = box_space(&settings);
    let (first, _) = run(&space, &settings, &dir.path().join("a"), bowl);
    let (second, _) = run(&space, &settings, &dir.path().join("b"), bowl);
    assert_eq!(first, second);
    let other = SearchSettings { seed: 4, ..settings };
    let (third, _) = run(&space, &other, &dir.path().join("c"), bowl);
    assert_ne!(first.points, third.points);
}

/// A search that is cut after any number of scores and started again scores each point once in all and finds the same table.
#[test]
fn a_search_cut_anywhere_and_started_again_scores_no_point_twice_and_finds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for method in [Proposer::Grid, Proposer::Cmaes] {
        let settings = settings(method, 30);
        let space = match method {
            Proposer::Cmaes => box_space(&settings),
            Proposer::Grid => {
                let knobs = json!({"models.*.parameters.weight": {"from": 0, "to": 2, "steps": 6}, "parameters.lambda": {"from": 0, "to": 1, "steps": 5}});
                Space::new(YAML, &table(knobs), &settings).unwrap()
            }
        };
        let (whole, all) = run(&space, &settings, &dir.path().join(format!("{method:?}")), bowl);
        for cut in [0, 1, 7, all.len() - 1] {
            let path = dir.path().join(format!("{method:?}-{cut}"));
            let mut scored = Vec::new();
            for limit in [cut, usize::MAX] {
                let mut log = PointLog::<u32>::open(&path).unwrap();
                let n_before = scored.len();
                let quiet = (&Progress::silent(), &Cancel::default());
                let found = search(&space, &settings, (&mut log, "scope"), quiet, |values, _| {
                    if scored.len() - n_before == limit {
                        return Err(Error::from(aloe_record::Error::Cancelled));
                    }
                    scored.push(values.to_vec());
                    Ok(Outcome::Scored(bowl(values), scored.len() as u32))
                });
                assert_eq!(found.is_ok(), limit > cut);
                if let Ok(found) = found {
                    assert_eq!(found, whole, "cut at {cut}");
                }
            }
            assert_eq!(scored, all, "cut at {cut}");
        }
        let (_, again) = run(&space, &settings, &dir.path().join(format!("{method:?}")), bowl);
        assert!(again.is_empty(), "a finished search is not scored again");
    }
}

/// More evaluations, or more steps: the points of the shorter search stand among those of the longer one, of CMA-ES at its beginning, and are
/// taken from what the shorter one wrote.
#[test]
fn a_longer_search_asks_for_what_a_shorter_one_did_not_score() {
    let dir = tempfile::tempdir().unwrap();
    for method in [Proposer::Grid, Proposer::Cmaes] {
        let made = |n: usize| {
            let settings = settings(method, n * n);
            let knobs = json!({"models.*.parameters.weight": {"from": 0, "to": 2, "steps": n}, "parameters.lambda": {"from": 0, "to": 1, "steps": n}});
            let space = match method {
                Proposer::Cmaes => box_space(&settings),
                Proposer::Grid => Space::new(YAML, &table(knobs), &settings).unwrap(),
            };
            (settings, space)
        };
        let path = |name: &str| dir.path().join(format!("{method:?}-{name}"));
        let (settings, space) = made(5);
        let (short, first) = run(&space, &settings, &path("short"), bowl);
        let keys: Vec<String> =
            short.points.iter().map(|point| PointLog::<u32>::key("scope", &space.yaml(&point.values))).collect();
        PointLog::<u32>::open(&path("short")).unwrap().write(&keys, &path("written")).unwrap();
        assert_eq!(std::fs::read(path("written")).unwrap(), std::fs::read(path("short")).unwrap());
        let (settings, space) = made(9);
        let (alone, all) = run(&space, &settings, &path("alone"), bowl);
        PointLog::<u32>::open(&path("long")).unwrap().take_over(&path("written")).unwrap();
        let (long, rest) = run(&space, &settings, &path("long"), bowl);
        let values = |found: &Searched<u32>| found.points.iter().map(|point| point.values.clone()).collect::<Vec<_>>();
        assert_eq!(values(&long), values(&alone));
        if method == Proposer::Cmaes {
            assert_eq!(all[..first.len()], first, "the first points are the same");
        }
        assert_eq!(rest, all.iter().filter(|point| !first.contains(point)).cloned().collect::<Vec<_>>());
        assert_eq!(rest.len(), all.len() - first.len());
    }
}

#[test]
fn scores_under_another_scope_are_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = PointLog::<u32>::open(&dir.path().join("log")).unwrap();
    log.put(&PointLog::<u32>::key("one", "yaml"), &(0.5, 1)).unwrap();
    assert_eq!(log.get(&PointLog::<u32>::key("one", "yaml")), Some((0.5, 1)));
    assert_eq!(log.get(&PointLog::<u32>::key("other", "yaml")), None);
    assert_eq!(log.get(&PointLog::<u32>::key("oney", "aml")), None);
}

/// Weights above 1.5 are refused; the bowl's optimum (1.3, 0.2) lies below, and so does the start, 0.5.
#[test]
fn cma_es_counts_a_refused_point_as_worst_and_still_finds_the_optimum() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(Proposer::Cmaes, 240);
    let space = box_space(&settings);
    let mut log = PointLog::<u32>::open(&dir.path().join("log")).unwrap();
    let found =
        search(&space, &settings, (&mut log, "scope"), (&Progress::silent(), &Cancel::default()), |values, _| {
            Ok::<_, Error>(match values[0] > 1.5 {
                true => Outcome::Refused("too heavy".into()),
                false => Outcome::Scored(bowl(values), 0),
            })
        });
    let found = found.unwrap();
    let best = &found.points[found.best().unwrap()];
    assert!((best.values[0] - 1.3).abs() < 0.05 && (best.values[1] - 0.2).abs() < 0.05, "{best:?}, {}", found.ended);
    assert!(
        !found.refused.is_empty()
            && found.refused.iter().all(|point| point.values[0] > 1.5 && point.reason == "too heavy")
    );
    assert!(found.points.iter().all(|point| point.values[0] <= 1.5));
}
