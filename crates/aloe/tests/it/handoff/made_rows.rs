//! Red-teaming and synthesis on servers of their jobs, and training on rows that a job made: synthesis, data and SFT in one chain. What the
//! GPUs of a job cost stands in its record and in the card.

use crate::road::digests;
use crate::{root, run, stories};
use aloe_record::Record;
use std::path::{Path, PathBuf};

/// Turns by name, for a model that brings no template: the prompts of stories260K are long.
const TEMPLATE: &str = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

/// stories260K with a template and room for long prompts.
fn model(dir: &Path, stories: &Path) -> PathBuf {
    let folder = dir.join("model");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(stories.join(name), folder.join(name)).unwrap();
    }
    for (name, key, value) in [
        ("config.json", "max_position_embeddings", serde_json::json!(4096)),
        ("tokenizer_config.json", "chat_template", serde_json::json!(TEMPLATE)),
    ] {
        let text = std::fs::read_to_string(stories.join(name)).unwrap();
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        file[key] = value;
        std::fs::write(folder.join(name), file.to_string()).unwrap();
    }
    folder
}

const MADE: &str = r#"
[[stage]]
kind = "redteam"
name = "attacks"
from = { model = "@MODEL@" }
questions = "@STARTER@/redteam/questions.jsonl"
harmless = "@STARTER@/redteam/harmless.jsonl"
styles = ["baseline", "instruct", "json"]
n_prompts = 24
n_harmless = 6
max_new_tokens = 32

[[stage]]
kind = "synthesis"
name = "cot"
from = { model = "@MODEL@" }
data = "@STARTER@"
tasks = ["starter_mcqa"]
limit = 12
shots = 1
attempts = 4
blind = false
max_new_tokens = 64
"#;

const TRAINED: &str = r#"
[[stage]]
kind = "data"
name = "rows"
sources = [{ name = "cot", path = "@ROWS@", licence = "mit" }]

[[stage]]
kind = "sft"
name = "sft"
trainer = "@TRAINER@"
from = { model = "@MODEL@", data = "rows" }
lr = 1e-3
epochs = 1
max_len = 2048
batch_size = 1
"#;

const CARD: &str = r#"
[[stage]]
kind = "card"
name = "card"
model_name = "tiny"
base_model = "stories260K"
developed_by = "a test"
contact = "nobody"
licence = "mit"
languages = ["en"]
power = { device_w = 700.0, intensity_kg_per_kwh = 0.158, intensity_source = "a test" }
[stage.from]
model = "sft"
records = ["attacks", "cot", "rows", "sft"]
"#;

/// Plans these stages for servers with a GPU each; the run folder and what was told.
fn planned(dir: &Path, name: &str, model: &Path, stages: &[&str], swaps: &[(&str, &str)]) -> (PathBuf, String) {
    let starter = root().join("starter").canonicalize().unwrap();
    let mut text = format!("name = \"made\"\nseed = 3\ndtype = \"f32\"\n{}", stages.concat());
    let (model, starter) = (model.display().to_string(), starter.display().to_string());
    for (mark, value) in [("@MODEL@", model.as_str()), ("@STARTER@", &starter)].iter().chain(swaps) {
        text = text.replace(mark, value);
    }
    let recipe = dir.join(format!("{name}.toml"));
    std::fs::write(&recipe, text).unwrap();
    let seen = dir.join("seen");
    std::fs::create_dir_all(&seen).unwrap();
    let mock = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/handoff/mock_server.py");
    let cluster = dir.join("cluster.toml");
    let text = format!(
        "name = \"here\"\naloe = \"{}\"\n[engines]\ntrl = \"/opt/trl\"\n[node]\ngpus = 4\ngpu_watts = 700\n[resources.default]\nnodes = 1\n\
         gpus_per_node = 0\ncpus_per_node = 2\ntime = 600\n[resources.redteam]\ngpus_per_node = 2\n[resources.synthesis]\ngpus_per_node = 2\n\
         [serving]\ncommand = [\"python3\", {mock:?}, \"{{port}}\", \"{{model}}\", {seen:?}, \"heavy\"]\nreplicas = 2\ngpus = 1\nready = 60\n",
        env!("CARGO_BIN_EXE_aloe")
    );
    std::fs::write(&cluster, text).unwrap();
    let out = dir.join(name);
    let [recipe, cluster, folder] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["plan", recipe, "--where", "local", "--cluster", cluster, "--out", folder]);
    assert_eq!(code, 0, "{said}");
    (out, said)
}

/// The rows as an engine reads them, its configuration, and what its work must be.
fn of_engine(run: &Path, stage: &str) -> Vec<String> {
    let mut found: Vec<String> =
        digests(&run.join("data/sft")).into_iter().map(|(name, digest)| format!("{name} {digest}")).collect();
    for name in ["engine.yaml", "engine.py", "expected.json"] {
        found.push(std::fs::read_to_string(run.join("stages").join(stage).join(name)).unwrap());
    }
    found
}

#[test]
fn synthesis_on_servers_makes_the_rows_that_a_later_job_trains_on_and_the_gpus_are_counted() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), &stories);
    let own = [("@ROWS@", "stage:cot"), ("@TRAINER@", "aloe")];
    let (out, _) = planned(dir.path(), "own", &model, &[MADE, TRAINED, CARD], &own);
    assert!(!out.join("out").exists(), "data that a job makes was made while planning");
    for (stage, name) in [("10-attacks", "attacks"), ("20-cot", "cot")] {
        let script = std::fs::read_to_string(out.join("stages").join(stage).join("run.sh")).unwrap();
        assert!(
            script.contains(&format!("with-servers --model ./files/01-model --servers work/{name}/servers")),
            "{script}"
        );
    }
    let (_, said, code) = run(&["run", out.to_str().unwrap()]);
    let log = |name: &str| std::fs::read_to_string(out.join("state").join(name).join("local.log")).unwrap_or_default();
    assert_eq!(code, 0, "{said}\n{}\n{}\n{}", log("attacks"), log("cot"), log("rows"));
    let record = |name: &str| Record::read(&out.join("out").join(name)).unwrap();
    let asked: Vec<u64> = std::fs::read_dir(dir.path().join("seen"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".asked"))
        .map(|entry| entry.metadata().unwrap().len())
        .collect();
    assert_eq!(asked.len(), 4, "two servers of each stage were asked: {asked:?}");
    // 12 questions, up to 4 attempts each.
    let n_attacks = std::fs::read_to_string(out.join("out/attacks/samples.jsonl")).unwrap().lines().count();
    assert!(n_attacks >= 24, "{n_attacks}");
    let n_rows = std::fs::read_to_string(out.join("out/cot/train.jsonl")).unwrap().lines().count();
    assert!((4..=12).contains(&n_rows), "{n_rows} of 12 questions were solved");
    let trained = std::fs::read_to_string(out.join("out/rows/train.jsonl")).unwrap().lines().count();
    assert_eq!(trained, n_rows);
    assert_eq!(record("sft").results["sft"]["n_rows"].as_u64(), Some(n_rows as u64));
    // Servers load for two seconds, in which two GPUs are billed.
    for name in ["attacks", "cot"] {
        let job = &record(name).results["job"];
        let (worked_s, hours) = (job["worked_s"].as_f64().unwrap(), job["gpu_hours"].as_f64().unwrap());
        assert!(worked_s >= 1.0 && (hours - 2.0 * worked_s / 3600.0).abs() < 1e-12, "{name}: {job}");
        assert_eq!((&job["n_gpus"], &job["gpu_watts"]), (&2.into(), &700.0.into()), "{name}");
    }
    assert_eq!(record("sft").results["job"]["gpu_hours"].as_f64(), Some(0.0));
    let card = std::fs::read_to_string(out.join("out/card/README.md")).unwrap();
    for name in ["attacks", "cot"] {
        assert!(card.contains(&format!("| GPUs of the job of {name}, at the power that the site states |")), "{card}");
    }
    assert!(!card.contains("GPUs of the job of sft"), "{card}");
    rendered_in_the_job_as_beforehand(dir.path(), &model, &out);
}

/// TRL's rows and configuration, written by the job of a training whose rows a job made, are those of a plan that has the rows beforehand.
fn rendered_in_the_job_as_beforehand(dir: &Path, model: &Path, made: &Path) {
    let (later, said) =
        planned(dir, "later", model, &[MADE, TRAINED], &[("@ROWS@", "stage:cot"), ("@TRAINER@", "trl")]);
    assert!(said.contains("the rows of sft are made by a job: its own job renders them"), "{said}");
    let script = std::fs::read_to_string(later.join("stages/40-sft/run.sh")).unwrap();
    let (before, engine) = script.split_once("\n\"$ALOE\" job . sft --render\n").unwrap_or_else(|| panic!("{script}"));
    assert!(before.contains("sha256sum") && engine.contains("torchrun"), "{script}");
    assert!(!later.join("stages/40-sft/engine.yaml").exists());
    let copied = std::process::Command::new("cp").arg("-r").args([made.join("out"), later.join("out")]).status();
    assert!(copied.unwrap().success());
    let job = |checkpoint: &str| {
        let arguments = ["job", later.to_str().unwrap(), "sft", "--render"];
        let output = crate::aloe().args(arguments).env("ALOE_RESUME", checkpoint).output().unwrap();
        (String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
    };
    let render = |is_known: bool| {
        let is_first = !later.join("stages/40-sft/rendered.sha256").exists();
        let (said, code) = job(if is_first { "" } else { "work/sft/checkpoint-1" });
        assert_eq!(code, 0, "{said}");
        assert_eq!(said.contains("the rows of sft are those of an earlier session"), is_known, "{said}");
        of_engine(&later, "40-sft")
    };
    let rendered = render(false);
    let file = made.join("out/cot/train.jsonl");
    let swaps = [("@ROWS@", file.to_str().unwrap()), ("@TRAINER@", "trl")];
    let (beforehand, _) = planned(dir, "beforehand", model, &[TRAINED], &swaps);
    assert_eq!(rendered, of_engine(&beforehand, "10-sft"));
    assert_eq!(rendered, render(true), "a requeued job has the same");
    let list = later.join("stages/40-sft/rendered.sha256");
    let of_rows = || std::fs::read_to_string(&list).unwrap();
    let known = of_rows();
    let named: Vec<&str> = known.lines().map(|line| &line[66..]).collect();
    assert_eq!(named, ["data/sft/rendered.jsonl", "stages/40-sft/engine.yaml"]);
    let seal = later.join("work/sft/MANIFEST.json");
    std::fs::create_dir_all(seal.parent().unwrap()).unwrap();
    std::fs::write(&seal, "{}").unwrap();
    std::fs::write(later.join("data/sft/rendered.jsonl"), "").unwrap();
    assert_eq!(rendered, render(false), "a damaged file is made again");
    // Another version's start script, and the list that it went by, which is what its checkpoints are known by.
    let script = later.join("stages/40-sft/engine.py");
    std::fs::write(&script, "import other").unwrap();
    let longer = format!("{known}{}  stages/40-sft/engine.py\n", aloe_record::digest::file(&script).unwrap());
    std::fs::write(&list, &longer).unwrap();
    assert_eq!(rendered, render(false), "the start script is this version's again");
    assert!(of_rows() == longer && seal.exists(), "the rows are the same: {}", of_rows());
    // A version that noted nothing.
    std::fs::remove_file(&list).unwrap();
    let (said, code) = job("work/sft/checkpoint-1");
    assert!(
        code == 2 && said.contains("an earlier version of aloe saved work/sft/checkpoint-1 without a note"),
        "{said}"
    );
    assert!(of_rows() == known && !seal.exists(), "{}", of_rows());
    assert_eq!(rendered, render(true));
    std::fs::write(&seal, "{}").unwrap();
    other_rows(&later, &job, &list);
    taken_over_with_its_own_rows_alone(&later);
}

/// The data stage is made again with a row less: neither a checkpoint of the others is gone on with nor a finished model of theirs taken over.
fn other_rows(later: &Path, job: &dyn Fn(&str) -> (String, i32), list: &Path) {
    let of_rows = || std::fs::read_to_string(list).unwrap();
    let known = of_rows();
    one_row_less(later);
    let (said, code) = job("work/sft/checkpoint-1");
    // In as many steps, so that the configuration is the same.
    let others = "data/sft/rendered.jsonl of sft are others than those that work/sft/checkpoint-1";
    assert!(code == 2 && said.contains(others) && said.contains("sft was trained with other rows"), "{said}");
    assert!(known != of_rows() && !later.join("work/sft/MANIFEST.json").exists());
    assert_eq!(job("").1, 0);
    let expected = std::fs::read_to_string(later.join("stages/40-sft/expected.json")).unwrap();
    let digest = aloe_record::digest::file(&later.join("data/sft/rendered.jsonl")).unwrap();
    assert!(expected.contains(&format!("\"rows_sha256\": \"{digest}\"")) && of_rows().contains(&digest), "{expected}");
}

/// By hand, after the data were made anew and before the stage's job rendered their rows.
fn taken_over_with_its_own_rows_alone(later: &Path) {
    let by_hand = || {
        let arguments = ["run", "recipe.toml", "--stage", "sft", "--out", "out"];
        let output = crate::aloe().args(arguments).current_dir(later).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let is_nothing_there = "work/sft is not what was planned";
    assert!(by_hand().contains(is_nothing_there), "{}", by_hand());
    one_row_less(later);
    let said = by_hand();
    assert!(
        said.contains("was made anew since the job of sft rendered its rows") && !said.contains(is_nothing_there),
        "{said}"
    );
    let config = later.join("files/01-model/tokenizer_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "\n").unwrap();
    assert!(by_hand().contains("tokenizer_config.json is not what sft was planned with"), "{}", by_hand());
}

/// Takes the last row out of the data stage's results.
fn one_row_less(run: &Path) {
    let rows = run.join("out/rows");
    let text = std::fs::read_to_string(rows.join("train.jsonl")).unwrap();
    let fewer = text.trim_end().rsplit_once('\n').unwrap().0.to_owned() + "\n";
    std::fs::write(rows.join("train.jsonl"), &fewer).unwrap();
    let record = std::fs::read_to_string(rows.join("record.json")).unwrap();
    let digest = |text: &str| aloe_record::digest::bytes(text.as_bytes());
    assert!(record.contains(&digest(&text)), "{record}");
    std::fs::write(rows.join("record.json"), record.replace(&digest(&text), &digest(&fewer))).unwrap();
}

#[test]
fn what_an_engine_cannot_do_is_refused_though_its_rows_are_not_there_yet() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), &stories);
    let starter = root().join("starter").canonicalize().unwrap();
    let text = format!("name = \"made\"\nseed = 3\n{MADE}{TRAINED}lora = {{ rank = 4, train_embeddings = true }}\n")
        .replace("@MODEL@", model.to_str().unwrap())
        .replace("@STARTER@", starter.to_str().unwrap())
        .replace("@ROWS@", "stage:cot")
        .replace("@TRAINER@", "trl");
    let recipe = dir.path().join("r.toml");
    std::fs::write(&recipe, text).unwrap();
    let cluster = super::chain::cluster_file(dir.path(), "[engines]\ntrl = \"/opt/trl\"\n");
    let out = dir.path().join("run");
    let [recipe, cluster, out] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["plan", recipe, "--where", "slurm", "--cluster", cluster, "--out", out]);
    assert!(code != 0 && said.contains("lora.train_embeddings: a stage handed to TRL trains updates alone"), "{said}");
}
