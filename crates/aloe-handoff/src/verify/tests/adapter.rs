//! Adapters that come back, as PEFT writes them: planted faults by file and name, and what is taken over.

use super::*;
use aloe_model::{LoraAdapter, ModelSource};
use aloe_text::TextModel;

/// Rank 4 beside two matrices of each of two layers, scaled by 8 / 4.
const TARGETS: [&str; 2] = ["self_attn.q_proj", "mlp.down_proj"];

struct Adapter {
    folder: Folder,
    settings: Value,
}

impl Adapter {
    /// Names and shapes by PEFT's rule: A `[r, K]`, B `[O, r]`.
    fn good() -> Self {
        let config = tiny_config(Tiny::Llama);
        let q_rows = config.num_attention_heads * config.head_dim;
        let sizes = [(q_rows, config.hidden_size), (config.hidden_size, config.intermediate_size)];
        let mut tensors = Vec::new();
        for layer in 0..config.num_hidden_layers {
            for (target, (rows, columns)) in TARGETS.iter().zip(sizes) {
                for (factor, shape) in [("lora_A", vec![4, columns]), ("lora_B", vec![rows, 4])] {
                    let name = format!("base_model.model.model.layers.{layer}.{target}.{factor}.weight");
                    let values = fill(&name, shape.iter().product());
                    tensors.push(Tensor { name, shape, dtype: "F32", values });
                }
            }
        }
        let settings = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["down_proj", "q_proj"],
            "bias": "none", "use_rslora": false, "use_dora": false, "alpha_pattern": {}, "rank_pattern": {}, "modules_to_save": null});
        Self { folder: Folder { tensors, ..Folder::good(Tiny::Llama) }, settings }
    }

    fn write(&self, folder: &Path) {
        self.folder.write(folder);
        std::fs::rename(folder.join("model.safetensors"), folder.join("adapter_model.safetensors")).unwrap();
        std::fs::remove_file(folder.join("config.json")).unwrap();
        std::fs::write(folder.join("adapter_config.json"), self.settings.to_string()).unwrap();
    }
}

fn expectation(dir: &Path) -> Expectation {
    let mut expected = start(Tiny::Llama, &dir.join("start"));
    expected.stage.config = json!({"seed": 7, "lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "down_proj"]}});
    expected
}

#[test]
fn faults_of_an_adapter_are_found_by_file_and_name_and_a_good_one_passes() {
    type Make = fn(&mut Adapter, &LoraConfig, &ModelSource);
    fn unmoved(adapter: &mut Adapter, lora: &LoraConfig, start: &ModelSource) {
        let begun = lora.shape().start(start, 7).unwrap();
        adapter.folder.tensor("0.mlp.down_proj.lora_A").values = begun.tensors()[2].as_f32().to_vec();
    }
    let cases: [(&str, Make, &str, &str); 11] = [
        (
            "a NaN",
            |a, _, _| a.folder.tensor("1.self_attn.q_proj.lora_B").values[3] = f32::NAN,
            "adapter_model",
            "layers.1.self_attn.q_proj.lora_B",
        ),
        (
            "a wrong shape",
            |a, _, _| a.folder.tensor("0.mlp.down_proj.lora_A").shape.reverse(),
            "adapter_model",
            "layers.0.mlp.down_proj.lora_A",
        ),
        (
            "no A",
            |a, _, _| a.folder.tensors.retain(|t| !t.name.contains("1.mlp.down_proj.lora_A")),
            "adapter_model",
            "layers.1.mlp.down_proj.lora_A",
        ),
        (
            "no B",
            |a, _, _| a.folder.tensors.retain(|t| !t.name.contains("0.self_attn.q_proj.lora_B")),
            "adapter_model",
            "layers.0.self_attn.q_proj.lora_B",
        ),
        (
            "an extra tensor",
            |a, _, _| a.folder.tensor("0.self_attn.q_proj.lora_B").name = "base_model.model.lm_head.weight".into(),
            "adapter_model",
            "lm_head",
        ),
        (
            "bf16",
            |a, _, _| a.folder.tensor("0.self_attn.q_proj.lora_B").dtype = "BF16",
            "adapter_model",
            "layers.0.self_attn.q_proj.lora_B",
        ),
        (
            "B did not move",
            |a, _, _| a.folder.tensor("1.mlp.down_proj.lora_B").values.fill(0.0),
            "adapter_model",
            "layers.1.mlp.down_proj.lora_B",
        ),
        ("A did not move", unmoved, "adapter_model", "layers.0.mlp.down_proj.lora_A"),
        ("another scale", |a, _, _| a.settings["lora_alpha"] = 16.into(), "adapter_config.json", "lora_alpha"),
        (
            "other targets",
            |a, _, _| a.settings["target_modules"] = json!(["q_proj"]),
            "adapter_config.json",
            "target_modules",
        ),
        ("rslora", |a, _, _| a.settings["use_rslora"] = true.into(), "adapter_config.json", "use_rslora"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let expected = expectation(dir.path());
    let (lora, source) = (expected.lora().unwrap(), ModelSource::open(&expected.start).unwrap());
    let findings = |adapter: &Adapter, expected: &Expectation, name: &str| {
        let folder = dir.path().join(name);
        adapter.write(&folder);
        check(&folder, expected).findings
    };
    assert_eq!(findings(&Adapter::good(), &expected, "good"), []);
    for (name, make, file, what) in cases {
        let mut adapter = Adapter::good();
        make(&mut adapter, &lora, &source);
        let found = findings(&adapter, &expected, name);
        let is_named = |one: &&Finding| one.file.contains(file) && one.what.contains(what);
        assert!(found.iter().any(|one| is_named(&one)), "{name}: {found:#?}");
        let most = if name == "an extra tensor" { 2 } else { 1 };
        assert!(found.len() <= most, "{name}: {found:#?}");
    }
    // The log of one step, in which A's gradient is zero.
    let mut adapter = Adapter::good();
    unmoved(&mut adapter, &lora, &source);
    let one_step = Expectation { n_steps: 1, ..expected.clone() };
    let found = findings(&adapter, &one_step, "one step");
    assert!(!found.iter().any(|one| one.file.contains("adapter")), "{found:#?}");
}

#[test]
fn an_adapter_is_taken_over_as_it_came_and_merged_into_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let expected = expectation(dir.path());
    let (work, out) = (dir.path().join("work"), dir.path().join("out"));
    let mut adapter = Adapter::good();
    adapter.write(&work);
    // One that the tokenizers library takes, too.
    let mut whole = tokenizer();
    for key in ["single_word", "lstrip", "rstrip", "normalized"] {
        whole["added_tokens"][0][key] = false.into();
    }
    whole["added_tokens"][0]["special"] = true.into();
    for folder in [&work, &expected.start] {
        std::fs::write(folder.join("tokenizer.json"), whole.to_string()).unwrap();
    }
    let verdict = check(&work, &expected);
    assert!(verdict.is_good() && verdict.facts.n_tensors == 8 && verdict.facts.moved > 0.0, "{verdict:#?}");
    let text = TextModel::open(&expected.start).unwrap();
    std::fs::create_dir(&out).unwrap();
    let report = import(&work, &expected, &verdict, &text, &out).unwrap();
    assert!((report.export.update_norm / report.export.start_norm - verdict.facts.moved).abs() < 1e-6, "{report:?}");
    // One element worked out: W + 8 / 4 * sum over r of B[3, r] A[r, 5].
    let (a, b) = ("0.self_attn.q_proj.lora_A", "0.self_attn.q_proj.lora_B");
    let columns = tiny_config(Tiny::Llama).hidden_size;
    let (a, b) = (adapter.folder.tensor(a).values.clone(), adapter.folder.tensor(b).values.clone());
    let update: f32 = (0..4).map(|r| b[3 * 4 + r] * a[r * columns + 5]).sum();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let at = |folder: &Path| ModelSource::open(folder).unwrap().load_f32(name).unwrap()[3 * columns + 5];
    let (before, after) = (at(&expected.start), at(&out.join("master")));
    assert!((after - before - 2.0 * update).abs() < 1e-6 && update.abs() > 1e-4, "{before} {after} {update}");
    // What a merge opens as `model+adapter`.
    let taken = LoraAdapter::open(&out.join("adapter")).unwrap();
    taken.check(&arch::tensors(&tiny_config(Tiny::Llama))).unwrap();
    assert_eq!(taken.base_digest(), Some(ModelSource::open(&expected.start).unwrap().digest().unwrap().as_str()));
}
