//! What the report, the card and the plots say, on models of known norms.

use super::*;
use aloe_model::Role;

const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// Every element of the base is 1; a model's differs from it by `change` in layer 0 and by twice that in layer 1, elsewhere not.
fn write_changed(dir: &Path, base: f32, change: f32) {
    let config = Config::from_json(&config_json(64, false)).unwrap();
    let mut writer = CheckpointWriter::create(dir, &config, Dtype::F32).unwrap();
    for spec in aloe_model::arch::tensors(&config) {
        let factor = if let Role::Layer(layer, _) = spec.role { (layer + 1) as f32 } else { 0.0 };
        writer.add(&spec.hf_name, &vec![base + factor * change; spec.n_elements()]).unwrap();
    }
    writer.finish(&[]).unwrap();
}

/// A base of ones, `a` with changes of 1/4 and 1/2, `b` with 1/16 and 1/8.
fn known() -> (tempfile::TempDir, MergeOptions) {
    let (dir, options) = models();
    for (name, change) in [("base", 0.0), ("a", 0.25), ("b", 0.0625)] {
        std::fs::remove_dir_all(dir.path().join(name)).unwrap();
        write_changed(&dir.path().join(name), 1.0, change);
    }
    (dir, options)
}

/// Layer 0 lists a first, layer 1 lists b first. The layers hold 18,432 of the 22,688 elements less 5 norms of 32: each layer has
/// 32 * 32 * 2 + 2 * 16 * 32 + 3 * 64 * 32 = 9,216 elements in matrices and 64 in norms. Over all of 22,688 elements:
/// `sqrt(9280 (c^2 + 4 c^2) / 22688)` times 1 for changes of c.
#[test]
fn figures_are_those_of_the_model_they_are_named_after_whatever_the_order_in_a_slice() {
    let (dir, options) = known();
    let out = dir.path().join("merged");
    let source = |name: &str, layer: usize, density: f64| {
        format!(
            "  - {{model: {name}, layer_range: [{layer}, {}], parameters: {{weight: 0.5, density: {density}}}}}\n",
            layer + 1
        )
    };
    let text = format!(
        "slices:\n- sources:\n{}{}{}- sources:\n{}{}{}merge_method: ties\nbase_model: base\ndtype: float32\n",
        source("base", 0, 1.0),
        source("a", 0, 0.5),
        source("b", 0, 1.0),
        source("base", 1, 1.0),
        source("b", 1, 1.0),
        source("a", 1, 0.5),
    );
    let report = run(&text, &out, &options).unwrap();
    assert_eq!(report.models, ["a", "b"]);
    for (found, change) in report.relative_norms.iter().zip([0.25f64, 0.0625]) {
        let expected = (9280.0 * 5.0 * change * change / 22_688.0).sqrt();
        assert!((found / expected - 1.0).abs() < 1e-6, "{:?}, expected {expected}", report.relative_norms);
    }
    assert!((report.kept_shares[0] - 0.5).abs() < 1e-3 && report.kept_shares[1] == 1.0, "{:?}", report.kept_shares);
    for tensor in report.tensors.iter().filter(|tensor| tensor.name.starts_with("model.layers.")) {
        assert!(tensor.norms[0] > 3.9 * tensor.norms[1] && tensor.n_kept[0] < tensor.n_kept[1], "{tensor:?}");
    }
    let config = parse(&text).unwrap();
    let planned = plan(&config, &options).unwrap();
    let tensor = planned.tensors.iter().find(|tensor| tensor.spec.hf_name == UP).unwrap();
    let written = report.tensors.iter().find(|tensor| tensor.name == UP).cloned();
    assert_eq!(merge_tensor(&config, &planned, tensor).unwrap().1, written);
    assert_eq!(tensor_digest(&config, &planned, tensor).unwrap().1, written);
}

/// A slice of other models keeps its figures with their names, and nothing is summed over different models.
#[test]
fn slices_of_different_models_name_whose_figures_they_hold() {
    let (dir, options) = known();
    let out = dir.path().join("merged");
    let slice = |name: &str, layer: usize| {
        format!(
            "- sources: [{{model: base, layer_range: [{layer}, {end}]}}, {{model: {name}, layer_range: [{layer}, {end}], parameters: {{weight: 1}}}}]\n",
            end = layer + 1
        )
    };
    let text =
        format!("slices:\n{}{}merge_method: ties\nbase_model: base\ndtype: float32\n", slice("a", 0), slice("b", 1));
    let report = run(&text, &out, &options).unwrap();
    assert!(report.relative_norms.is_empty(), "{:?}", report.relative_norms);
    let of = |name: &str| report.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    // 2,048 elements of 1/8.
    assert_eq!((&of(UP).models[..], &of(UP).norms[..]), (&["b".to_owned()][..], &[2048f64.sqrt() / 8.0][..]));
    assert_eq!(of("model.layers.0.mlp.up_proj.weight").models, ["a"]);
}

#[test]
fn a_base_of_zeros_has_no_relative_norms_and_its_report_reads_back() {
    let (dir, options) = known();
    std::fs::remove_dir_all(dir.path().join("base")).unwrap();
    write_changed(&dir.path().join("base"), 0.0, 0.0);
    let out = dir.path().join("merged");
    let report = run(&dare(""), &out, &options).unwrap();
    assert!(report.relative_norms.is_empty() && report.kept_shares.len() == 2);
    let written: MergeReport = atomic::read_json(&out.join("merge.json")).unwrap();
    assert_eq!((written.relative_norms, written.kept_shares.len()), (Vec::new(), 2));
    let readme = std::fs::read_to_string(out.join("model/README.md")).unwrap();
    assert!(readme.contains("The base is all zeros, so no change is relative to it"), "{readme}");
    assert!(!readme.contains("NaN") && !readme.contains("inf"), "{readme}");
}

#[test]
fn a_rescale_that_differs_by_tensor_is_called_mixed() {
    let (dir, options) = known();
    let out = dir.path().join("merged");
    let rescale = |rest: &str| run(&dare(rest), &out, &options).unwrap().rescale;
    assert_eq!(
        rescale("parameters: {rescale: [{filter: mlp, value: true}, {value: false}]}\n"),
        "mixed: none, density"
    );
    assert_eq!(
        rescale("parameters: {rescale_kind: [{filter: mlp, value: l1}, {value: density}]}\n"),
        "mixed: density, l1"
    );
    assert_eq!(rescale(""), "density");
    assert_eq!(rescale("parameters: {rescale: false}\n"), "none");
    let readme = std::fs::read_to_string(out.join("model/README.md")).unwrap();
    assert!(readme.contains("rescale `none`"), "{readme}");
    let task = format!("{MODELS_AB}merge_method: task_arithmetic\nparameters: {{rescale: true}}\ndtype: float32\n");
    assert_eq!(run(&task, &out, &options).unwrap().rescale, "none");
}

/// Seven kinds of matrices over two layers: a line each, in the plots of norms and of kept shares of either model and in that of agreement.
/// Of a the relative norm is 1/4 in layer 0 and 1/2 in layer 1, of b 1/16 and 1/8: where both axes begin at the same point, the rise of the
/// line is from half the height of the upper end, which stands at the top of the plot.
#[test]
fn plots_by_layer_hold_a_line_per_kind_through_the_norms_of_each_layer() {
    let (dir, options) = known();
    let out = dir.path().join("merged");
    let text = format!("{MODELS_AB}merge_method: task_arithmetic\ndtype: float32\n");
    let report = run(&text, &out, &options).unwrap();
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    let plots: Vec<&str> = page.split("<svg").skip(1).map(|part| part.split("</svg>").next().unwrap()).collect();
    let lines = |plot: &str| plot.matches("<polyline points=").count();
    assert_eq!(plots.iter().map(|plot| lines(plot)).collect::<Vec<_>>(), [7, 7, 7, 7, 7, 0]);
    for (model, plot, at_0, at_1) in [(0, plots[0], 0.25, 0.5), (1, plots[2], 0.0625, 0.125)] {
        let points = crate::report::norms_by_layer(&report, model);
        assert_eq!(points.series.len(), 7);
        for series in &points.series {
            assert_eq!(series.points, [(0.0, at_0), (1.0, at_1)], "{} of {}", series.name, report.models[model]);
        }
        // The drawn line: two points, the left one lower on the page (a larger y) than the right one.
        let drawn = plot.split("<polyline points=\"").nth(1).unwrap().split('"').next().unwrap();
        let ys: Vec<f64> = drawn.split(' ').map(|point| point.split_once(',').unwrap().1.parse().unwrap()).collect();
        assert!(ys.len() == 2 && ys[0] > ys[1] + 50.0, "{drawn}");
    }
}

/// Linear merges the base as a model like the others: a row that it alone trained is trained.
#[test]
fn a_row_that_the_base_alone_trained_is_not_called_untrained() {
    let (dir, options) = models();
    for model in ["base", "a", "b"] {
        let folder = dir.path().join(model);
        let config = Config::from_json(&config_json(64, false)).unwrap();
        let mut writer = CheckpointWriter::create(&folder, &config, Dtype::F32).unwrap();
        for spec in aloe_model::arch::tensors(&config) {
            let mut values = value(model, &spec.hf_name, spec.n_elements());
            if matches!(spec.role, Role::Embed | Role::Head) {
                let from = if model == "base" { 61 } else { 60 };
                values[from * 32..62 * 32].fill(1e-9);
            }
            writer.add(&spec.hf_name, &values).unwrap();
        }
        writer.finish(&[]).unwrap();
        put(&folder, "tokenizer.json", tokenizer_json(&["x"], &[(60, "<mine>"), (61, "<none>")]));
        put(&folder, "tokenizer_config.json", r#"{"chat_template": "<mine><none>"}"#);
    }
    let weights = "parameters: {weight: 0.3}";
    let linear = format!(
        "models: [{{model: base, {weights}}}, {{model: a, {weights}}}, {{model: b, {weights}}}]\nbase_model: base\nmerge_method: linear\n"
    );
    for text in [linear, dare("")] {
        let report = run(&text, &dir.path().join("merged"), &options).unwrap();
        let never: Vec<&String> = report.notes.iter().filter(|note| note.starts_with("no model trained")).collect();
        assert_eq!(never.len(), 2, "{:?}", report.notes);
        assert!(never.iter().all(|note| note.contains("<none> (id 61)") && !note.contains("<mine>")), "{never:?}");
    }
}

/// The embedding of 1,024 rows is four tiles long; slerp learns its norm before the first of them.
#[test]
fn figures_of_slerp_are_those_of_a_method_that_passes_once() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["base", "a"] {
        write_model(&dir.path().join(model), model, 1024, false, Dtype::F32);
    }
    let folders = ["base", "a"].map(|name| (name.to_owned(), dir.path().join(name)));
    let options = MergeOptions { folders: folders.into_iter().collect(), ..MergeOptions::default() };
    let figures = |method: &str, parameter: &str| {
        let text = format!(
            "models: [{{model: base}}, {{model: a}}]\nbase_model: base\nmerge_method: {method}\n\
             parameters: {{{parameter}}}\ndtype: float32\n"
        );
        run(&text, &dir.path().join(method), &options).unwrap().tensors
    };
    let (slerp, once) = (figures("slerp", "t: 0.4"), figures("task_arithmetic", "weight: 1"));
    assert!(once.iter().any(|tensor| tensor.n_elements == 32_768 && tensor.base_norm > 0.0));
    assert_eq!(slerp, once);
}
