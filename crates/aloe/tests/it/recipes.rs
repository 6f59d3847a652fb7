//! Recipes: the shipped ones parse, and every mistake of a bad one is shown before anything runs.

use crate::{root, run};

fn mistakes(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.toml");
    std::fs::write(&path, text).unwrap();
    let out = dir.path().join("out");
    let (_, stderr, code) = run(&["run", path.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(code, 2, "{stderr}");
    assert!(!out.exists(), "a recipe with mistakes left files");
    stderr
}

#[test]
fn every_shipped_recipe_is_planned_without_a_mistake() {
    for name in ["quickstart", "llama3-aloe-8b", "smollm2-medical"] {
        if name == "smollm2-medical" && std::env::var("ALOE_DATA").is_err() {
            eprintln!("not run: ALOE_DATA is not set");
            continue;
        }
        let path = root().join("recipes").join(format!("{name}.toml"));
        let (stdout, stderr, code) = run(&["plan", path.to_str().unwrap()]);
        assert_eq!(code, 0, "{name}: {stderr}");
        assert!(stdout.contains("no mistakes") && stdout.contains("dpo-2"), "{stdout}");
    }
}

#[test]
fn three_mistakes_of_a_recipe_are_all_shown_with_their_lines() {
    let text = "name = \"x\"\n\n[[stage]]\nkind = \"sft\"\nname = \"a\"\nfrom = { model = \"nowhere\", data = \"d/\" }\nlr = \"fast\"\nepochz = 2\n";
    let stderr = mistakes(text);
    for (line, word) in [(6, "nowhere"), (7, "lr"), (8, "epochz")] {
        assert!(
            stderr.lines().any(|found| found.contains(&format!(":{line}:")) && found.contains(word)),
            "{word}: {stderr}"
        );
    }
}

#[test]
fn an_unknown_kind_a_reused_name_and_a_missing_input_are_named() {
    let text = "name = \"x\"\n[[stage]]\nkind = \"bake\"\nname = \"a\"\n[[stage]]\nkind = \"pull\"\nname = \"a\"\nsource = \"x.gguf\"\n\
                [[stage]]\nkind = \"eval\"\nname = \"e\"\ntasks = [\"medqa_4options\"]\ndata = \"d\"\n";
    let stderr = mistakes(text);
    assert!(stderr.contains("\"bake\"") && stderr.contains("two stages are called \"a\""), "{stderr}");
    assert!(stderr.contains("needs the input `model`"), "{stderr}");
}

#[test]
fn a_data_file_that_is_not_there_stops_the_run_before_its_first_stage() {
    let text = "name = \"x\"\n[[stage]]\nkind = \"pull\"\nname = \"base\"\nsource = \"x.gguf\"\n[[stage]]\nkind = \"data\"\nname = \"d\"\n\
                sources = [{ name = \"s\", path = \"nothing.jsonl\", licence = \"mit\" }]\n";
    let stderr = mistakes(text);
    assert!(stderr.contains("nothing.jsonl") && stderr.contains("nothing was run"), "{stderr}");
}

#[test]
fn an_unset_environment_variable_in_a_path_is_a_mistake_with_its_name() {
    let text = "name = \"x\"\n[[stage]]\nkind = \"pull\"\nname = \"base\"\nsource = \"$ALOE_NO_SUCH_VARIABLE/x\"\n";
    assert!(mistakes(text).contains("ALOE_NO_SUCH_VARIABLE"));
}
