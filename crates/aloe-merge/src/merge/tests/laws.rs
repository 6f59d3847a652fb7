//! What must hold whatever the numbers: order, the base with itself, density 1, thousands of elements against theory.

use super::*;
use crate::config::RescaleKind;

fn merged(text: &str, dir: &Path, options: &MergeOptions) -> Vec<(String, Vec<f32>)> {
    let out = dir.join("merged");
    run(text, &out, options).unwrap_or_else(|error| panic!("{text}: {error}"));
    load(&out.join("model"))
}

fn with_third() -> (tempfile::TempDir, MergeOptions) {
    let (dir, mut options) = models();
    write_model(&dir.path().join("c"), "c", 64, false, Dtype::F32);
    options.folders.insert("c".into(), dir.path().join("c"));
    (dir, options)
}

fn close(a: &[(String, Vec<f32>)], b: &[(String, Vec<f32>)], what: &str) {
    for ((name, a), (_, b)) in a.iter().zip(b) {
        let size = b.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() / (b.len() as f64).sqrt();
        for (at, (a, b)) in a.iter().zip(b).enumerate() {
            assert!(f64::from((a - b).abs()) <= 1e-6 * size, "{what}: {name}[{at}] {a} {b}");
        }
    }
}

#[test]
fn the_order_of_models_does_not_matter() {
    let (dir, options) = with_third();
    let model = |name: &str, weight: f64, density: f64| {
        format!("- {{model: {name}, parameters: {{weight: {weight}, density: {density}}}}}\n")
    };
    let [a, b, c] = [model("a", 0.4, 0.5), model("b", 0.6, 0.5), model("c", 0.3, 0.25)];
    for method in [
        "linear",
        "karcher",
        "multislerp",
        "model_stock",
        "sce",
        "task_arithmetic",
        "ties",
        "dare_linear",
        "dare_ties",
        "breadcrumbs",
        "breadcrumbs_ties",
        "della",
        "della_linear",
    ] {
        let base = if matches!(method, "linear" | "karcher") { "" } else { "base_model: base\n" };
        let rest = if method == "sce" { "parameters: {select_topk: 0.5}\n" } else { "" };
        let text = |order: [&String; 3]| {
            let order = order.map(String::as_str).concat();
            format!("models:\n{order}merge_method: {method}\n{base}{rest}dtype: float32\n")
        };
        let first = merged(&text([&a, &b, &c]), dir.path(), &options);
        for order in [[&b, &a, &c], [&c, &b, &a]] {
            close(&merged(&text(order), dir.path(), &options), &first, method);
        }
    }
}

/// Two merges of one file: `half` is DARE of a at density 1/2, then DARE of half at 1/2. Independent masks keep a quarter of the change,
/// each kept one times 4; one shared mask would keep half, each times 4, twice the change on average.
#[test]
fn dare_of_a_dare_result_stays_unbiased() {
    let (dir, options) = models();
    let dare = |model: &str| {
        format!(
            "models: [{{model: {model}, parameters: {{weight: 1, density: 0.5}}}}]\nbase_model: base\nmerge_method: dare_linear\n\
             dtype: float32\n"
        )
    };
    let found = merged(&format!("name: half\n{}---\n{}", dare("a"), dare("half")), dir.path(), &options);
    let (mut n, mut kept, mut product, mut square) = (0, 0, 0.0, 0.0);
    for (name, merged) in found {
        let (base, a) = (value("base", &name, merged.len()), value("a", &name, merged.len()));
        for at in 0..merged.len() {
            let change = f64::from(a[at]) - f64::from(base[at]);
            let after = f64::from(merged[at]) - f64::from(base[at]);
            if change.abs() > 1e-4 {
                n += 1;
                kept += usize::from(after.abs() > 1e-5);
                product += after * change;
                square += change * change;
            }
        }
    }
    let share = kept as f64 / n as f64;
    assert!((share - 0.25).abs() < 5.0 * (0.25 * 0.75 / n as f64).sqrt(), "{share} of {n}");
    // Each term is 4 c^2 with probability 1/4: the ratio has mean 1 and variance 3 sum c^4 / (sum c^2)^2, below 6 / n for these changes.
    assert!((product / square - 1.0).abs() < 5.0 * (6.0 / n as f64).sqrt(), "{}", product / square);
}

#[test]
fn a_mask_belongs_to_the_models_name_and_the_document() {
    let keys = [(None, "a"), (None, "b"), (Some("half"), "a"), (Some("half/a"), ""), (None, "half/a")]
        .map(|(document, model)| crate::mask_key(document, model));
    for (at, key) in keys.iter().enumerate() {
        assert!(!keys[..at].contains(key), "{key}");
    }
    // The first model of each document: one is kept where the other is dropped as often as chance has it.
    let masks = [&keys[0], &keys[2]].map(|key| crate::dare_mask(7, "t", key, 0.5, 0..10_000));
    let both = masks[0].iter().zip(&masks[1]).filter(|(a, b)| **a && **b).count() as f64 / 1e4;
    assert!((both - 0.25).abs() < 5.0 * (0.25f64 * 0.75 / 1e4).sqrt(), "{both}");
}

#[test]
fn the_base_with_itself_gives_the_base_at_any_density_by_every_method_over_a_base() {
    let (dir, mut options) = models();
    options.folders.insert("twin".into(), dir.path().join("base"));
    let expected = load(&dir.path().join("base"));
    for method in [
        "ties",
        "dare_ties",
        "dare_linear",
        "della",
        "della_linear",
        "breadcrumbs",
        "breadcrumbs_ties",
        "sce",
        "task_arithmetic",
    ] {
        for density in [0.2, 0.5, 0.8] {
            let own = if matches!(method, "sce" | "task_arithmetic") {
                "weight: 1".to_owned()
            } else {
                format!("weight: 1, density: {density}")
            };
            let select =
                if method == "sce" { format!("parameters: {{select_topk: {density}}}\n") } else { String::new() };
            let text = format!(
                "models: [{{model: twin, parameters: {{{own}}}}}]\nbase_model: base\nmerge_method: {method}\n{select}dtype: float32\n"
            );
            assert_eq!(merged(&text, dir.path(), &options), expected, "{method} at density {density}");
        }
    }
}

#[test]
fn dare_of_density_one_is_ties_or_task_arithmetic() {
    let (dir, options) = models();
    let text = |method: &str, rest: &str| {
        format!(
            "models:\n- {{model: a, parameters: {{weight: 0.4, density: 1}}}}\n- {{model: b, parameters: {{weight: 0.6, density: 1}}}}\n\
             base_model: base\nmerge_method: {method}\ndtype: float32\n{rest}"
        )
    };
    let normalized = "parameters: {normalize: true}\n";
    for (dare, other, rest) in [("dare_ties", "ties", normalized), ("dare_linear", "task_arithmetic", "")] {
        let expected = merged(&text(other, rest), dir.path(), &options);
        assert_eq!(merged(&text(dare, rest), dir.path(), &options), expected, "{dare}");
        assert_ne!(expected, load(&dir.path().join("base")));
    }
}

/// 100 tensors of a million elements with change c: kept with probability p, then c / p, so mean c and variance c^2 (1 - p) / p.
#[test]
fn over_a_hundred_million_elements_dare_keeps_and_scales_as_in_theory_within_four_sigma() {
    if std::env::var("ALOE_SLOW").is_err() {
        eprintln!("not run: ALOE_SLOW is not set");
        return;
    }
    let (n, n_tensors, density, change) = (1_000_000usize, 100u32, 0.3f64, 0.5f32);
    let bytes = |value: f32| value.to_le_bytes().repeat(n);
    let sources = [bytes(0.0), bytes(change)].map(|bytes| crate::Source::in_memory(FileDtype::F32, bytes));
    let method = crate::config::Method::DareLinear;
    use crate::config::{Parameter, ParameterValue as Value};
    let parameters = crate::config::TensorParameters {
        shared: vec![
            (Parameter::Normalize, Value::Flag(false)),
            (Parameter::Lambda, Value::Number(1.0)),
            (Parameter::Rescale, Value::Flag(true)),
            (Parameter::RescaleKind, Value::Kind(RescaleKind::Density)),
        ],
        inputs: vec![
            vec![],
            vec![(Parameter::Weight, Value::Number(1.0)), (Parameter::Density, Value::Number(density))],
        ],
    };
    let (mut kept, mut sum, mut squares) = (0u64, 0.0f64, 0.0f64);
    for tensor in 0..n_tensors {
        let group = Group {
            name: format!("model.layers.{tensor}.mlp.up_proj.weight"),
            shape: vec![n],
            dtype: MergeDtype::Float32,
            sources: sources.to_vec(),
            base: Some(0),
            reference: Some(0),
            parameters: parameters.clone(),
            seed: 42,
            mask_keys: ["base", "tuned"].map(|name| crate::mask_key(None, name)).to_vec(),
            threads: 2,
        };
        let (out, stats) = merge_group(method, &group).unwrap();
        kept += stats.unwrap().n_kept[0];
        for value in out {
            sum += f64::from(value);
            squares += f64::from(value).powi(2);
        }
    }
    let total = f64::from(n_tensors) * n as f64;
    let rate = kept as f64 / total;
    assert!((rate - density).abs() < 4.0 * (density * (1.0 - density) / total).sqrt(), "rate {rate}");
    let c = f64::from(change);
    let (mean, variance) = (sum / total, c * c * (1.0 - density) / density);
    // The f32 quotient c / p is off by at most half a unit of its last place, 6e-8 relative.
    assert!((mean - c).abs() < 4.0 * (variance / total).sqrt() + 1e-7 * c, "mean {mean}");
    // The sample variance of a two-valued variable has variance (mu_4 - sigma^4) / n; mu_4 = sigma^4 (1 - 3 p q) / (p q).
    let pq = density * (1.0 - density);
    let sigma = ((variance.powi(2) * ((1.0 - 3.0 * pq) / pq - 1.0)) / total).sqrt();
    let found = squares / total - mean * mean;
    assert!((found - variance).abs() < 4.0 * sigma + 1e-6 * variance, "variance {found}, expected {variance}");
}

/// What a configuration with one model at density 0 gives is what it gives without that model, by whatever sample or trim; SCE that selects
/// nothing gives the base. A density that no sparsification reads changes nothing.
#[test]
fn a_density_of_zero_leaves_a_model_out_of_a_merge_but_has_no_effect_on_task_arithmetic() {
    let (dir, options) = models();
    let merged = |text: &str| {
        let out = dir.path().join("merged");
        run(text, &out, &options).unwrap_or_else(|error| panic!("{text}: {error}"));
        load(&out.join("model"))
    };
    let file = |method: &str, first: &str| {
        format!(
            "merge_method: {method}\nbase_model: base\nparameters: {{normalize: false}}\nmodels:\n{first}- model: b\n  parameters: \
             {{weight: 0.5, density: 1}}\ndtype: float32\n"
        )
    };
    let dropped = "- model: a\n  parameters: {weight: 0.4, density: 0}\n";
    for method in ["ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear"] {
        assert!(merged(&file(method, dropped)) == merged(&file(method, "")), "{method}");
    }
    // mergekit sparsifies by a method of sparsification alone, of which task_arithmetic has none.
    let whole = dropped.replace("density: 0", "density: 1");
    assert!(merged(&file("task_arithmetic", dropped)) == merged(&file("task_arithmetic", &whole)));
    let table = plan(&parse(&file("task_arithmetic", dropped)).unwrap(), &options).unwrap().table(&options);
    assert!(table.contains("note: density has no effect: task_arithmetic merges every change whole"), "{table}");
    let sce = "merge_method: sce\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {select_topk: 0}\ndtype: float32\n";
    assert!(merged(sce) == load(&options.folders["base"]));
}

/// More pieces than the queue holds, for a place that is too small: the writer's error is told, not that the workers were stopped.
#[test]
fn a_write_that_fails_behind_the_queue_is_the_error_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::from_json(&config_json(64, true)).unwrap();
    let mut writer = CheckpointWriter::create_in(&dir.path().join("model"), &config, Dtype::Bf16).unwrap();
    let slots = [writer.slot("model.norm.weight").unwrap()];
    let ranges: Vec<std::ops::Range<usize>> = (0..64).map(|at| 8 * at..8 * at + 8).collect();
    for threads in [1, 2] {
        let jobs = ranges.chunks(1).collect();
        let merged = |tiles: &[std::ops::Range<usize>]| Ok((tiles[0].start, vec![Arc::new(vec![0u8; 16])], vec![None]));
        let error = write_all(&slots, threads, jobs, merged).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains("do not fit")), "{error:?}");
    }
}
