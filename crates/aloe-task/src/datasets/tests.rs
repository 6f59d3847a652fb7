//! Layouts by hand, and the real files where `ALOE_DATA` is set.

use crate::datasets::{careqa, headqa, medmcqa, medqa, pubmedqa};
use crate::rows::Row;
use crate::{Error, Question, Result, Split, Subject, Task};
use std::path::PathBuf;

fn row(json: &str) -> Row {
    let serde_json::Value::Object(columns) = serde_json::from_str(json).unwrap() else { panic!("not an object") };
    Row { columns, at: "f:7".into() }
}

fn data() -> Option<PathBuf> {
    let found = std::env::var_os("ALOE_DATA").map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_REQUIRE is set but ALOE_DATA is not");
        eprintln!("not run: ALOE_DATA is not set");
    }
    found
}

#[test]
fn medqa_reads_all_three_layouts_to_the_same_question() {
    let check = |json: &str| medqa::question(&row(json), 4, "x".into()).unwrap();
    let a =
        check(r#"{"question":"q","answer":"two","options":{"A":"one","B":"two","C":"3","D":"4"},"answer_idx":"B"}"#);
    let b = check(
        r#"{"question":"q","options":[{"key":"A","value":"one"},{"key":"B","value":"two"},{"key":"C","value":"3"},{"key":"D","value":"4"}],"answer_idx":"B"}"#,
    );
    let c = check(
        r#"{"id":1,"sent1":"q","sent2":"","ending0":"one","ending1":"two","ending2":"3","ending3":"4","label":1}"#,
    );
    assert_eq!(a, b);
    assert_eq!(a, c);
    assert_eq!((a.key, a.choices[1].as_str()), (1, "two"));
}

/// Files that pyarrow wrote in the Hub's columns (`oracles/parquet_layouts.py`).
#[test]
fn the_hubs_parquet_layouts_are_read_with_their_lists_and_keys() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet");
    let bone = ["Tibia", "Ulna", "Femur", "Radius"];
    let insulin = ["Pancreas", "Liver", "Spleen", "Kidney"];
    let check = |task: Task, folder: &str, ids: [&str; 2], subjects: [&str; 2], second: &[&str]| {
        let found = task.load(&golden.join(folder), Split::Test).unwrap();
        assert_eq!(found.len(), 2, "{}", task.name());
        assert_eq!((found[0].stem.as_str(), found[0].key), ("Which bone is in the thigh?", 2), "{}", task.name());
        assert_eq!(found[0].choices, bone, "{}", task.name());
        assert_eq!(
            (&found[1].choices[..], found[1].key),
            (&second.iter().map(|text| text.to_string()).collect::<Vec<_>>()[..], 0)
        );
        assert_eq!([&found[0].id, &found[1].id], ids, "{}", task.name());
        assert_eq!([&found[0].subject, &found[1].subject], subjects, "{}", task.name());
        assert!(found[1].source.ends_with("test-00000-of-00001.parquet#2"), "{}", found[1].source);
    };
    let five = [&insulin[..], &["Lung"]].concat();
    let medqa = ["medqa_4options_test_0", "medqa_4options_test_1"];
    check(Task::Medqa4, "lettered", medqa, ["step1", "step2&3"], &insulin);
    check(Task::Medqa4, "hf", medqa, ["", ""], &insulin);
    check(Task::CareqaEn, "", ["u-1", "u-2"], ["Medicine", "Biology"], &insulin);
    check(Task::HeadqaEn, "", ["Cuaderno_2016_1_M_7", "Cuaderno_2013_1_B_8"], ["medicine", "biology"], &five);
    let nerves = ["Phrenic", "Vagus", "Median", "Ulnar"];
    let mmlu = ["mmlu_anatomy_test_0", "mmlu_anatomy_test_1"];
    check(Task::Mmlu(Subject::Anatomy), "", mmlu, ["anatomy", "anatomy"], &nerves);
    check(Task::Mmlu(Subject::Anatomy), "lettered", mmlu, ["anatomy", "anatomy"], &nerves);
}

/// As above. Of the labelled rows, which are train and test, those that `test_ground_truth.json` lists are asked.
#[test]
fn pubmedqas_parquet_layouts_are_read_with_the_parts_of_their_abstracts() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet");
    let labelled = Task::Pubmedqa.load(&golden, Split::Test).unwrap();
    let source = Task::Pubmedqa.load(&golden.join("source"), Split::Test).unwrap();
    assert_eq!((labelled.len(), source.len()), (1, 2));
    assert_eq!([&labelled[0].id, &source[0].id, &source[1].id], ["12", "pubmedqa_0", "pubmedqa_1"]);
    assert_eq!((source[0].key, source[0].explanation.as_deref()), (0, None));
    for question in [&labelled[0], &source[1]] {
        assert_eq!(question.stem, "Does walking lower blood pressure?");
        assert_eq!(question.context.as_deref(), Some("Forty adults walked.\nSome had lower pressure."));
        assert_eq!((question.choices[question.key].as_str(), question.choices.len()), ("maybe", 3));
        assert_eq!(question.explanation.as_deref(), Some("It may."));
    }
}

#[test]
fn medqa_reads_the_rationale_that_mmedbench_and_other_copies_have_beside_the_question() {
    let check = |more: &str| {
        let json = format!(
            r#"{{"question":"q","options":{{"A":"one","B":"two","C":"3","D":"4"}},"answer_idx":"B","answer":"two","meta_info":"step1"{more}}}"#
        );
        medqa::question(&row(&json), 4, "x".into()).unwrap().explanation
    };
    assert_eq!(check(""), None);
    assert_eq!(check(r#","exp":null,"explanation":" ","rationale":["not text"]"#), None);
    assert_eq!(check(r#","exp":"third""#).as_deref(), Some("third"));
    assert_eq!(check(r#","exp":"third","rationale":"first","explanation":"second""#).as_deref(), Some("first"));
    assert_eq!(check(r#","exp":"third","explanation":"second""#).as_deref(), Some("second"));
}

fn refused(result: Result<Question>, part: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains("f:7") && message.contains(part), "{message}");
}

#[test]
fn an_answer_key_out_of_range_is_refused_in_every_layout() {
    let medqa = |json: &str| medqa::question(&row(json), 4, "x".into());
    refused(medqa(r#"{"question":"q","options":{"A":"1","B":"2","C":"3","D":"4"},"answer_idx":"E"}"#), "answer key E");
    refused(
        medqa(r#"{"sent1":"q","sent2":"","ending0":"1","ending1":"2","ending2":"3","ending3":"4","label":4}"#),
        "key 4",
    );
    refused(
        medqa(r#"{"sent1":"q","sent2":"","ending0":"1","ending1":"2","ending2":"3","ending3":"4","label":-1}"#),
        "-1",
    );
    let mcqa = |cop: i64, first: i64| {
        let json = format!(r#"{{"id":"1","question":"q","opa":"1","opb":"2","opc":"3","opd":"4","cop":{cop}}}"#);
        medmcqa::question(&row(&json), first)
    };
    refused(mcqa(4, 0), "answer key 4");
    refused(mcqa(0, 1), "answer key 0");
    refused(mcqa(5, 1), "answer key 5");
    refused(mcqa(-1, 0), "not public");
    assert_eq!(mcqa(1, 1).unwrap().key, 0);
    let careqa = |cop: i64| {
        let json = format!(r#"{{"unique_id":"1","question":"q","op1":"1","op2":"2","op3":"3","op4":"4","cop":{cop}}}"#);
        careqa::question(&row(&json))
    };
    refused(careqa(0), "answer key 0");
    assert_eq!(careqa(4).unwrap().key, 3);
    let headqa = r#"{"name":"n","qid":1,"qtext":"q","ra":3,"answers":[{"aid":1,"atext":"a"},{"aid":2,"atext":"b"}]}"#;
    refused(headqa::question(&row(headqa)), "answer key 3");
    let pubmedqa = r#"{"QUESTION":"q","CONTEXTS":["a"],"final_decision":"perhaps"}"#;
    refused(pubmedqa::question(&row(pubmedqa), 0), "column `final_decision`");
}

#[test]
fn an_answer_text_that_contradicts_its_letter_is_refused() {
    let json = r#"{"question":"q","answer":"1","options":{"A":"1","B":"2","C":"3","D":"4"},"answer_idx":"B"}"#;
    refused(medqa::question(&row(json), 4, "x".into()), "disagree");
}

#[test]
fn pubmedqa_reads_both_layouts_to_the_same_question() {
    let a = r#"{"_key":"17","QUESTION":"q","CONTEXTS":["a","b"],"LABELS":["X","Y"],"final_decision":"maybe","LONG_ANSWER":"l"}"#;
    let b =
        r#"{"pubid":17,"question":"q","context":{"contexts":["a","b"]},"long_answer":"l","final_decision":"maybe"}"#;
    let a = pubmedqa::question(&row(a), 0).unwrap();
    assert_eq!(a, pubmedqa::question(&row(b), 0).unwrap());
    assert_eq!((a.context.as_deref(), a.key), (Some("a\nb"), 2));
}

/// As the Hub has them: CareQA_es.json is a list, HEAD-QA's Spanish rows stand beside the English ones. Where both languages are there,
/// the task's own is read.
#[test]
fn the_spanish_sets_are_read_from_their_own_files_beside_the_english_ones() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let careqa = |stem: &str, last: &str| {
        format!(
            r#"[{{"exam_id": 26, "question": "{stem}", "op1": "a", "op2": "b", "op3": "c", "op4": "{last}", "cop": 4, "year": "2024", "category": "Medicina", "unique_id": "u-1"}}]"#
        )
    };
    write("careqa/CareQA_en.json", &careqa("Which bone is in the thigh?", "Femur"));
    write("careqa/CareQA_es.json", &careqa("¿Qué hueso está en el muslo?", "Fémur"));
    let headqa = |stem: &str| {
        format!(
            r#"{{"name": "Cuaderno_2016_1_B", "year": "2016", "category": "biology", "qid": 1, "qtext": "{stem}", "ra": 2, "image": "", "answers": [{{"aid": 1, "atext": "Fibronectina."}}, {{"aid": 2, "atext": "Colágeno."}}, {{"aid": 3, "atext": "Integrinas."}}, {{"aid": 4, "atext": "Queratina."}}, {{"aid": 5, "atext": "Elastina."}}]}}"#
        )
    };
    write("headqa/test_en.jsonl", &headqa("It forms fibres:"));
    for part in ["test", "validation", "train"] {
        write(&format!("headqa/{part}_es.jsonl"), &headqa(&format!("Forma fibras ({part}):")));
    }
    let found = Task::CareqaEs.load(dir.path(), Split::Test).unwrap();
    let one = &found[0];
    assert_eq!((found.len(), one.stem.as_str(), one.key), (1, "¿Qué hueso está en el muslo?", 3));
    assert_eq!((one.choices[3].as_str(), one.id.as_str(), one.subject.as_str()), ("Fémur", "u-1", "Medicina"));
    assert!(one.source.starts_with("careqa/CareQA_es.json"), "{}", one.source);
    assert!(matches!(Task::CareqaEs.load(dir.path(), Split::Train), Err(Error::NoSplit { .. })));
    for split in [Split::Test, Split::Validation, Split::Train] {
        let found = Task::HeadqaEs.load(dir.path(), split).unwrap();
        let one = &found[0];
        assert_eq!((one.stem.as_str(), one.key), (format!("Forma fibras ({}):", split.name()).as_str(), 1));
        assert_eq!((one.choices.len(), one.choices[1].as_str()), (5, "Colágeno."));
        assert_eq!((one.id.as_str(), one.subject.as_str()), ("Cuaderno_2016_1_B_1", "biology"));
    }
    std::fs::remove_file(dir.path().join("careqa/CareQA_es.json")).unwrap();
    let missing = Task::CareqaEs.load(dir.path(), Split::Test).unwrap_err().to_string();
    assert!(missing.contains("careqa_es") && missing.contains("careqa/CareQA_es.json"), "{missing}");
}

/// The two languages of a HEAD-QA file ask the same questions in the same order, with the same keys.
#[test]
fn headqas_spanish_questions_are_the_english_ones_in_spanish() {
    let Some(data) = data() else { return };
    let load = |task: Task| task.load(&data, Split::Test).unwrap();
    let (spanish, english) = (load(Task::HeadqaEs), load(Task::HeadqaEn));
    let bare = |questions: &[Question]| -> Vec<(String, usize, usize, String)> {
        let of = |one: &Question| (one.id.clone(), one.key, one.choices.len(), one.subject.clone());
        questions.iter().map(of).collect()
    };
    assert_eq!(bare(&spanish), bare(&english));
    let first = &spanish[0];
    assert_eq!(first.stem, "Forma fibras extracelulares con gran resistencia a la tensión:");
    assert_eq!((first.choices[first.key].as_str(), first.source.as_str()), ("Colágeno.", "headqa/test_es.jsonl:1"));
}

/// Row counts are those of the READMEs beside the files.
#[test]
fn the_real_files_load_whole_with_the_published_row_counts() {
    let Some(data) = data() else { return };
    let check = |task: Task, split, expected: usize| {
        let questions = task.load(&data, split).unwrap();
        assert_eq!(questions.len(), expected, "{} {}", task.name(), split.name());
        let mut ids: Vec<&str> = questions.iter().map(|question| question.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), expected, "{}: ids are not unique", task.name());
    };
    check(Task::Medqa4, Split::Test, 891);
    check(Task::Medqa4, Split::Validation, 1272);
    check(Task::Medqa4, Split::Train, 777);
    check(Task::Medqa5, Split::Test, 891);
    check(Task::Medmcqa, Split::Test, 2923);
    check(Task::Medmcqa, Split::Train, 9000);
    check(Task::Medmcqa, Split::Validation, 999);
    check(Task::Pubmedqa, Split::Test, 350);
    check(Task::Pubmedqa, Split::Train, 450);
    check(Task::Pubmedqa, Split::Validation, 50);
    for (subject, n_test, n_validation) in [
        (Subject::Anatomy, 95, 14),
        (Subject::ClinicalKnowledge, 173, 27),
        (Subject::CollegeBiology, 101, 16),
        (Subject::CollegeMedicine, 106, 20),
        (Subject::MedicalGenetics, 70, 11),
        (Subject::ProfessionalMedicine, 190, 31),
    ] {
        check(Task::Mmlu(subject), Split::Test, n_test);
        check(Task::Mmlu(subject), Split::Validation, n_validation);
        check(Task::Mmlu(subject), Split::Dev, 5);
    }
    check(Task::CareqaEn, Split::Test, 3935);
    check(Task::HeadqaEn, Split::Test, 2742);
    check(Task::HeadqaEs, Split::Test, 2742);
    assert!(matches!(Task::CareqaEn.load(&data, Split::Train), Err(Error::NoSplit { .. })));
}

/// The 0-based parquet file and the 1-based original lines hold the same questions.
#[test]
fn both_medmcqa_key_conventions_give_the_same_answers() {
    let Some(data) = data() else { return };
    let parquet = Task::Medmcqa.load(&data, Split::Test).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("medmcqa")).unwrap();
    std::fs::copy(data.join("medmcqa/dev.json"), dir.path().join("medmcqa/dev.json")).unwrap();
    let lines = Task::Medmcqa.load(dir.path(), Split::Test).unwrap();
    let bare =
        |question: &Question| (question.id.clone(), question.stem.clone(), question.choices.clone(), question.key);
    assert_eq!(parquet.iter().map(bare).collect::<Vec<_>>(), lines.iter().map(bare).collect::<Vec<_>>());
}

#[test]
fn the_public_red_team_files_load_and_xstest_halves_are_kept_apart() {
    use crate::red_team::questions::{read, read_harmless};
    let Some(data) = data() else { return };
    for (file, expected) in [
        ("red_team/advbench/harmful_behaviors.csv", 520),
        ("red_team/chen_et_al/harmful_prompts_filtered.csv", 1072),
        ("red_team/harmbench/harmbench_behaviors_text_standard.csv", 200),
        ("red_team/do_not_answer/malicious_uses.jsonl", 243),
        ("red_team/xstest/xstest_prompts.csv", 200),
        ("med_safety_bench/datasets/test/gpt4/med_safety_demonstrations_category_1.csv", 50),
    ] {
        assert_eq!(read(&data, file).unwrap().len(), expected, "{file}");
    }
    assert_eq!(read_harmless(&data, "red_team/xstest/xstest_prompts.csv").unwrap().len(), 250);
}

#[test]
fn the_starter_set_loads_in_every_split_over_all_six_subjects() {
    let starter = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../starter");
    let mut subjects = std::collections::BTreeSet::new();
    let mut n_questions = 0;
    for split in [Split::Train, Split::Validation, Split::Test] {
        let questions = Task::StarterMcqa.load(&starter, split).unwrap();
        n_questions += questions.len();
        subjects.extend(questions.into_iter().map(|question| question.subject));
    }
    for split in [Split::Train, Split::Test] {
        n_questions += Task::StarterPubmedqa.load(&starter, split).unwrap().len();
    }
    assert!(n_questions >= 120, "{n_questions}");
    assert_eq!(subjects.into_iter().collect::<Vec<_>>(), Subject::ALL.map(Subject::name));
}
