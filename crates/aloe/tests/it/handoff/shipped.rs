//! The recipes of real size, planned for the sites that are shipped with them: the models are a tiny Llama with the real tokenizer, the rows
//! and questions made here; everything else is as shipped.

use crate::{root, run};
use std::path::{Path, PathBuf};

/// A checkpoint folder of one layer of 16 with the Llama 3 tokenizer; its weights are zeros.
fn tiny_llama(folder: &Path) -> Option<()> {
    let Ok(models) = std::env::var("ALOE_MODELS") else {
        assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
        eprintln!("not run: ALOE_MODELS is not set");
        return None;
    };
    std::fs::create_dir_all(folder).unwrap();
    std::fs::copy(Path::new(&models).join("llama3-tokenizer/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 128_256, "max_position_embeddings": 16_384,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 128_000,
        "eos_token_id": 128_009, "torch_dtype": "bfloat16",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let special = serde_json::json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"});
    std::fs::write(folder.join("tokenizer_config.json"), special.to_string()).unwrap();
    let layer = "model.layers.0";
    let shapes: [(String, Vec<u64>); 11] = [
        ("model.embed_tokens.weight".into(), vec![128_256, 16]),
        (format!("{layer}.self_attn.q_proj.weight"), vec![16, 16]),
        (format!("{layer}.self_attn.k_proj.weight"), vec![8, 16]),
        (format!("{layer}.self_attn.v_proj.weight"), vec![8, 16]),
        (format!("{layer}.self_attn.o_proj.weight"), vec![16, 16]),
        (format!("{layer}.mlp.gate_proj.weight"), vec![32, 16]),
        (format!("{layer}.mlp.up_proj.weight"), vec![32, 16]),
        (format!("{layer}.mlp.down_proj.weight"), vec![16, 32]),
        (format!("{layer}.input_layernorm.weight"), vec![16]),
        (format!("{layer}.post_attention_layernorm.weight"), vec![16]),
        ("model.norm.weight".into(), vec![16]),
    ];
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let begin = end;
        end += 2 * shape.iter().product::<u64>();
        let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]});
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end as usize, 0);
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    Some(())
}

/// 400 pairs that nobody takes for duplicates, enough for the steps of 128 of five chunks: each of words drawn by its number.
fn pairs(source: &str) -> String {
    const WORDS: [&str; 24] = [
        "renal", "acute", "fever", "rash", "nerve", "dose", "infant", "lesion", "biopsy", "anaemia", "tendon",
        "reflex", "plasma", "cornea", "suture", "hormone", "airway", "vessel", "enzyme", "septic", "graft", "spleen",
        "tremor", "oedema",
    ];
    let mut text = String::new();
    for at in 0..400 {
        let mut rng = aloe_record::CounterRng::new(5, source, at);
        let mut words = || {
            let drawn: Vec<&str> = (0..20).map(|_| WORDS[(rng.uniform_f64() * 24.0) as usize]).collect();
            drawn.join(" ")
        };
        let mut turn = |role: &str| serde_json::json!([{"role": role, "content": words()}]);
        let pair =
            serde_json::json!({"prompt": turn("user"), "chosen": turn("assistant"), "rejected": turn("assistant")});
        text.push_str(&format!("{pair}\n"));
    }
    text
}

/// The recipe beside data for each of its sources; its folder.
fn with_data(dir: &Path, name: &str) -> PathBuf {
    let starter = root().join("starter");
    let recipe = std::fs::read_to_string(root().join("recipes").join(format!("{name}.toml"))).unwrap();
    // The real files are not here, nor are the benchmarks that rows are compared with.
    let mut recipe = recipe.replace("kind = \"data\"\n", "kind = \"data\"\ndecontaminate = []\n");
    for (real, ours) in [
        ("dpo-mix-7k/data/train-00000-of-00001.parquet", "dpo-mix-7k.jsonl"),
        ("HelpSteer/train.jsonl.gz", "helpsteer.jsonl"),
        (", expect_rows = 6750", ""),
        (", expect_rows = 35331, rating_gap = 1", ""),
    ] {
        recipe = recipe.replace(real, ours);
    }
    let folder = dir.join("recipes");
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let copied = std::process::Command::new("cp").arg("-r").args([&starter, &dir.join("starter")]).status().unwrap();
    assert!(copied.success());
    let table: toml::Table = recipe.parse().unwrap();
    for stage in table["stage"].as_array().unwrap().iter().filter(|stage| stage["kind"].as_str() == Some("data")) {
        let is_pairs = stage.get("output").and_then(|output| output.as_str()) == Some("pairs");
        for source in stage["sources"].as_array().unwrap() {
            let file = folder.join(source["path"].as_str().unwrap());
            match is_pairs {
                true => std::fs::write(file, pairs(source["name"].as_str().unwrap())).unwrap(),
                false => drop(std::fs::copy(starter.join("sft/cot.jsonl"), file).unwrap()),
            }
        }
        for file in stage.get("decontaminate").and_then(|files| files.as_array()).into_iter().flatten() {
            std::fs::copy(starter.join("heldapart/heldapart.jsonl"), folder.join(file.as_str().unwrap())).unwrap();
        }
    }
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, recipe).unwrap();
    path
}

/// Plans the recipe for the shipped site; the run folder, and what was told.
fn planned(dir: &Path, name: &str, site: &str) -> Option<(PathBuf, String)> {
    tiny_llama(&dir.join("model"))?;
    let recipe = with_data(dir, name);
    let text = std::fs::read_to_string(root().join("recipes").join(site)).unwrap();
    let text: String = text
        .lines()
        .map(|line| match line.split_once(" = \"/gpfs/models/") {
            Some((source, _)) => format!("{source} = {:?}\n", dir.join("model")),
            None => format!("{line}\n"),
        })
        .collect();
    let cluster = dir.join("cluster.toml");
    std::fs::write(&cluster, text).unwrap();
    let out = dir.join("run");
    let [recipe, cluster, folder] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["plan", recipe, "--where", "slurm", "--cluster", cluster, "--out", folder]);
    assert_eq!(code, 0, "{said}");
    Some((out, said))
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The folder of a stage, whatever its number.
fn stage(run: &Path, name: &str) -> PathBuf {
    let entries = std::fs::read_dir(run.join("stages")).unwrap().flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| path.file_name().is_some_and(|found| found.to_string_lossy()[3..] == *name);
    let numbered = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().split_once('-').unwrap().1 == name;
    entries.into_iter().find(|path| is_it(path) || numbered(path)).unwrap_or_else(|| panic!("no stage {name}"))
}

#[test]
fn both_recipes_of_real_size_are_planned_whole_for_the_sites_shipped_with_them() {
    for (name, site, nodes, servers) in [
        ("llama3-aloe-8b", "cluster-4xh100.toml", 8, "--tensor-parallel-size 1 "),
        ("llama3-aloe-70b", "cluster-4xh100-70b.toml", 16, "--tensor-parallel-size 4 "),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let Some((out, said)) = planned(dir.path(), name, site) else { return };
        assert!(!said.contains("would stand idle"), "{said}");
        for training in ["sft", "dpo-1", "dpo-2"] {
            let folder = stage(&out, training);
            let config = read(folder.join("engine.yaml"));
            assert!(config.contains("activation_checkpointing: true"), "{name} {training}: {config}");
            let script = read(folder.join("job.sbatch"));
            assert!(script.contains(&format!("#SBATCH --nodes={nodes}\n")), "{name} {training}: {script}");
            assert!(script.contains("#SBATCH --gpus-per-node=4\n"), "{script}");
        }
        for asking in ["eval", "medprompt", "redteam"] {
            let script = read(stage(&out, asking).join("run.sh"));
            assert!(script.contains("with-servers --model out/dpo-2 "), "{name} {asking}: {script}");
        }
        let cluster: toml::Table = read(out.join("cluster.toml")).parse().unwrap();
        let command: Vec<&str> =
            cluster["serving"]["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let gpus = cluster["serving"]["gpus"].as_integer().unwrap();
        assert!(
            format!("{} ", command.join(" ").replace("{gpus}", &gpus.to_string())).contains(servers),
            "{command:?}"
        );
        for processors in ["merge", "card"] {
            assert!(!read(stage(&out, processors).join("job.sbatch")).contains("gpus-per-node"), "{name} {processors}");
        }
    }
}

/// What the recipe says of power is of a GPU, since hours are those of GPUs: 2,835 W a node of four.
#[test]
fn the_power_of_the_recipes_of_real_size_is_that_of_a_gpu() {
    for name in ["llama3-aloe-8b", "llama3-aloe-70b"] {
        let recipe: toml::Table = read(root().join("recipes").join(format!("{name}.toml"))).parse().unwrap();
        let stages = recipe["stage"].as_array().unwrap();
        let card = stages.iter().find(|stage| stage["kind"].as_str() == Some("card")).unwrap();
        assert_eq!(card["power"]["device_w"].as_float(), Some(2835.0 / 4.0), "{name}");
    }
}

#[test]
fn a_training_that_keeps_its_activations_is_refused_where_they_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let Some((out, _)) = planned(dir.path(), "llama3-aloe-8b", "cluster-4xh100.toml") else { return };
    let recipe = dir.path().join("recipes/llama3-aloe-8b.toml");
    let text = read(recipe.clone());
    let kept = text.replacen("recompute = true", "recompute = false", 1);
    assert_ne!(kept, text);
    std::fs::write(&recipe, kept).unwrap();
    let cluster = out.join("cluster.toml");
    let other = dir.path().join("other");
    let [recipe, cluster, other] = [&recipe, &cluster, &other].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["plan", recipe, "--where", "slurm", "--cluster", cluster, "--out", other]);
    let part = "GB of each GPU, which has 64; write recompute = true in the recipe, or ask for more nodes";
    assert!(code == 2 && said.contains("stage \"sft\" needs ") && said.contains(part), "{said}");
}
