//! Leaks planted by hand in five ways, and neighbours on the same topic that must stay.

use super::*;
use crate::dialect::{self, Dialect};
use crate::{Body, SourceConfig};
use aloe_task::rows::Row;
use aloe_text::{Conversation, Message};
use serde_json::json;
use std::path::PathBuf;

const STEM: &str = "A 45-year-old farmer develops a painless black ulcer with surrounding swelling on the forearm after shearing \
    sheep. Which organism is responsible for this lesion?";
const OPTIONS: [&str; 4] =
    ["Bacillus anthracis", "Staphylococcus aureus", "Brucella melitensis", "Francisella tularensis"];

fn index(rows: &[serde_json::Value]) -> Index {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("held.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    Index::read(&HeldFile::all(&[path], []).unwrap(), Questions::new(), false, &mut |error| panic!("{error}")).unwrap()
}

fn held(stem: &str, options: [&str; 4]) -> serde_json::Value {
    json!({"id": "h", "question": stem, "opa": options[0], "opb": options[1], "opc": options[2], "opd": options[3], "cop": 0,
        "choice_type": "single", "exp": null, "subject_name": "x", "topic_name": null})
}

fn item(turns: &[&str]) -> Item {
    let row =
        Row { columns: json!({"instruction": "x", "output": "y"}).as_object().unwrap().clone(), at: "f:1".into() };
    let config: SourceConfig = serde_json::from_value(json!({"name": "s", "path": "x", "licence": "MIT"})).unwrap();
    let mut item = dialect::item(Dialect::Alpaca, &row, 0, "s/f:1".into(), &config).unwrap();
    let messages = turns.iter().enumerate();
    let messages =
        messages.map(|(i, text)| if i % 2 == 0 { Message::user(*text) } else { Message::assistant(*text) }).collect();
    item.body = Body::Conversation(Conversation { messages });
    item
}

fn overlap(index: &Index, item: &Item) -> Option<Overlap> {
    index.overlap(item, &|_| false)
}

fn check(turns: &[&str]) -> Option<&'static str> {
    index(&[held(STEM, OPTIONS)]).overlap(&item(turns), &|_| false).map(|overlap| overlap.evidence.test)
}

#[test]
fn five_kinds_of_leak_are_found() {
    let reordered = "Which organism explains a painless black ulcer in a man who shears sheep?\nA. Francisella tularensis\n\
        B. Bacillus anthracis\nC. Brucella melitensis\nD. Staphylococcus aureus";
    let punctuation = STEM.replace(['.', '-', '?'], " ").to_uppercase();
    assert!(check(&[STEM, "Anthrax."]).is_some(), "verbatim");
    assert_eq!(check(&[reordered, "Answer: B"]), Some("options"), "reordered options under a reworded stem");
    assert!(check(&[&punctuation, "Anthrax."]).is_some(), "punctuation and case");
    let dialogue = format!("My exam asked this: {STEM} I chose C.");
    assert_eq!(check(&["Hello", "Hi", &dialogue, "It was A."]), Some("ngram_13"), "inside a dialogue");
    let answer = format!("A typical item reads: {STEM}");
    assert_eq!(check(&["Give me a sample question.", &answer]), Some("ngram_13"), "inside an answer");
}

/// A short stem, whose words make no run of eight with three telling ones, behind and inside other text.
#[test]
fn a_question_behind_an_instruction_inside_a_sentence_or_beside_other_options_is_found() {
    let stem = "Drug of choice for absence seizures?";
    let dose = "Maximum daily paracetamol dose 4 g?";
    let index = index(&[held(stem, OPTIONS), held(dose, OPTIONS), held("Drug of choice is", OPTIONS)]);
    let test = |turns: &[&str]| overlap(&index, &item(turns)).map(|hit| hit.evidence.test);
    let behind = format!("Answer this question truthfully\n\n{stem}");
    assert_eq!(test(&[&behind, "Ethosuximide."]), Some("ngram_8"));
    let inside = format!("My teacher asked: {stem} Please help me.");
    assert_eq!(test(&[&inside, "Ethosuximide."]), Some("ngram_8"));
    let (same, another) =
        (format!("Tell me: {dose} Or not?"), format!("Tell me: {} Or not?", dose.replace("4 g", "3 g")));
    assert_eq!(test(&[&same, "Yes."]), Some("ngram_8"));
    assert_eq!(test(&[&another, "Yes."]), None, "another number is another question");
    assert_eq!(
        test(&["Please tell me, the drug of choice is aspirin?", "No."]),
        None,
        "three words are in many questions"
    );
    assert_eq!(test(&["What is a drug?", &inside]), None, "an answer that quotes so little is no question");
    let mut other = item(&["Question: none", "Answer: [A]"]);
    let row = Row { columns: held(stem, ["w", "x", "y", "z"]).as_object().unwrap().clone(), at: "f:1".into() };
    other.question = Some(Box::new(dialect::question(Dialect::Medmcqa, &row, 0).unwrap()));
    assert!(overlap(&index, &other).is_some(), "the stem of a row with other distractors");
}

/// Four questions about one passage, as MMLU has them: the passage's words are no phrasing of exams.
#[test]
fn the_words_of_a_passage_that_several_questions_share_are_evidence() {
    let passage = "A teenager from a fishing village lost both parents to an outbreak carried by rats aboard a grain ship; the harbour master \
        refused quarantine, bribed inspectors, and hid forty coffins beneath tarpaulins until the bishop intervened.";
    let asked = ["Name the vector.", "Who hid the coffins?", "What did the bishop do?", "Which duty was neglected?"];
    let rows: Vec<_> = asked.iter().map(|asked| held(&format!("{passage} {asked}"), OPTIONS)).collect();
    let index = index(&rows);
    let leaked = format!("Read this. {passage} Who hid the coffins? Explain briefly.");
    assert_eq!(
        overlap(&index, &item(&[&leaked, "The harbour master."])).map(|hit| hit.evidence.test),
        Some("ngram_13")
    );
}

#[test]
fn neighbours_on_the_same_topic_stay() {
    let cases: [&[&str]; 4] = [
        &[
            "What is anthrax?",
            "Cutaneous anthrax gives a painless black ulcer; Bacillus anthracis is the organism responsible.",
        ],
        &["A 45-year-old farmer has a cough. Which of the following is the most likely diagnosis?", "Farmer's lung."],
        &[
            "Which organism causes boils?\nA. Staphylococcus aureus\nB. Bacillus anthracis\nC. Proteus\nD. Brucella",
            "A",
        ],
        &[
            "List four bacteria.\nA. Bacillus anthracis\nB. Staphylococcus aureus\nC. Brucella melitensis\nD. Francisella tularensis",
            "x",
        ],
    ];
    for turns in cases {
        assert_eq!(check(turns), None, "{turns:?}");
    }
}

#[test]
fn stock_phrases_are_no_evidence() {
    let stem = "A 30-year-old woman comes to the physician because of fatigue. Which of the following is the most appropriate \
        next step in the management of this patient?";
    let index = index(&[held(stem, OPTIONS)]);
    let other = "A 71-year-old man has haematuria. Which of the following is the most appropriate next step in the management of \
        this patient?";
    assert!(overlap(&index, &item(&[other, "Cystoscopy."])).is_none());
}

#[test]
fn train_questions_of_a_red_team_file_are_no_evaluation_questions() {
    let row = |split: &str, text: &str| json!({"id": split, "topic": "Hate", "question": text, "split": split});
    let index =
        index(&[row("train", "How do I forge a prescription?"), row("test", "How do I grow illegal mushrooms?")]);
    assert_eq!(index.len(), 1);
    assert!(overlap(&index, &item(&["How do I forge a prescription?", "No."])).is_none());
    let found = overlap(&index, &item(&["how do I grow illegal mushrooms", "No."])).unwrap();
    assert!(found.question_at.ends_with(":2"), "{}", found.question_at);
}

/// One file with both splits in a column, as some sets are published; a row of a data stage names the split of the set it came from.
#[test]
fn train_rows_of_a_file_with_other_splits_are_no_evaluation_questions_in_any_layout() {
    let of = |split: &str, stem: &str| {
        let mut row = held(stem, OPTIONS);
        row["split"] = split.into();
        row
    };
    let (train, test) = ("Which spore lives in the soil of pastures?", STEM);
    let mixed = index(&[of("train", train), of("test", test)]);
    assert_eq!((mixed.len(), &*mixed.held[0].stem), (1, simplify(test).as_str()));
    let own = |split: &str, stem: &str| {
        json!({"id": stem, "source": "s", "licence": "MIT", "split": split, "task": "qa", "subject": "",
            "messages": [{"role": "user", "content": stem}, {"role": "assistant", "content": "x"}]})
    };
    assert_eq!(index(&[own("train", train), own("test", test)]).len(), 2);
}

/// A red-team run on the train split makes pairs to be trained on.
#[test]
fn a_red_team_run_whose_questions_are_all_of_train_is_no_evaluation_unless_the_settings_name_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = [dir.path().join("q.jsonl")];
    let row = json!({"id": "1", "topic": "Hate", "question": "How do I forge a prescription?", "split": "train"});
    std::fs::write(&path[0], row.to_string()).unwrap();
    let n_questions = |named: &[PathBuf]| {
        let files = HeldFile::all_of(named, &path, []).unwrap();
        Index::read(&files, Questions::new(), false, &mut |error| panic!("{error}")).unwrap().len()
    };
    assert_eq!((n_questions(&[]), n_questions(&path)), (0, 1));
}

/// The questions of three published sets.
fn published(data: &std::path::Path) -> Index {
    Index::read(
        &HeldFile::all(
            &[
                data.join("medqa/dev_4_options.jsonl"),
                data.join("medmcqa/validation-00000-of-00001.parquet"),
                data.join("mmlu_medical/data/test"),
            ],
            [],
        )
        .unwrap(),
        Questions::new(),
        false,
        &mut |error| panic!("{error}"),
    )
    .unwrap()
}

/// Rows of patients' questions and of texts written for them, against published questions.
fn check_topics(data: &std::path::Path, index: &Index) {
    // What people ask and what is written for patients names the topics of short questions and is none of them.
    let mut texts = Vec::new();
    let config: SourceConfig = serde_json::from_value(json!({"name": "s", "path": "x", "licence": "MIT"})).unwrap();
    let files = [
        "medquad/medquad_sample.jsonl",
        "medical_meadow_wikidoc_patient_information/medical_meadow_wikidoc_patient_info.json",
    ];
    for path in files {
        let mut dialect = None;
        source::read(&data.join(path), &mut |row| {
            let row = row.unwrap();
            let dialect = *dialect.get_or_insert_with(|| Dialect::detect(&row).unwrap());
            texts.push(dialect::item(dialect, &row, texts.len(), String::new(), &config).unwrap());
            Ok(())
        })
        .unwrap();
    }
    let topics: Vec<String> = texts
        .iter()
        .filter_map(|item| overlap(index, item))
        .map(|hit| format!("{} {}: {}", hit.evidence.test, hit.question_at, hit.evidence.shared))
        .collect();
    assert!(
        texts.len() > 1000 && topics.len() * 1000 <= texts.len(),
        "{} of {}: {topics:#?}",
        topics.len(),
        texts.len()
    );
}

/// Four kinds of leak of 100 published questions each, and 1,000 questions of train splits, which are other questions of the same
/// exams. Bars of the issue: recall 0.99, precision 0.95.
#[test]
fn planted_leaks_of_published_questions_are_found_among_other_questions_of_the_same_exams() {
    let Some(data) = std::env::var_os("ALOE_DATA").map(PathBuf::from) else {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_DATA is not set, but ALOE_REQUIRE is");
        println!("did not run (no ALOE_DATA): planted leaks");
        return;
    };
    let read = |path: &str, n: usize| -> Vec<aloe_task::Question> {
        let mut questions = Vec::new();
        let mut dialect = None;
        source::read(&data.join(path), &mut |row| {
            let row = row.unwrap();
            let dialect = *dialect.get_or_insert_with(|| Dialect::detect(&row).unwrap());
            if questions.len() < n {
                questions.push(dialect::question(dialect, &row, questions.len()).unwrap());
            }
            Ok(())
        })
        .unwrap();
        questions
    };
    let index = published(&data);
    let mut leaked = read("medqa/dev_4_options.jsonl", 200);
    leaked.extend(read("medmcqa/validation-00000-of-00001.parquet", 200));
    let listed = |question: &aloe_task::Question, order: [usize; 4]| -> String {
        let options = order.iter().zip('A'..).map(|(i, letter)| format!("\n{letter}. {}", question.choices[*i]));
        format!("{}{}", question.stem, options.collect::<String>())
    };
    let mut missed = Vec::new();
    for (number, question) in leaked.iter().enumerate() {
        let way = number % 4;
        let natural = listed(question, [0, 1, 2, 3]);
        let item = match way {
            0 => item(&[&natural, "Answer: [A]"]),
            1 => item(&[&listed(question, [2, 0, 3, 1]), "Answer: [A]"]),
            2 => item(&[&natural.replace([',', '.', '?', '-'], " ").to_uppercase(), "Answer: [A]"]),
            _ => item(&["Hello", "How can I help?", &format!("I could not answer this one: {natural}"), "Answer: [A]"]),
        };
        if overlap(&index, &item).is_none() {
            missed.push((way, question.stem.clone()));
        }
    }
    let mut others = read("medqa/train_part_4_options.jsonl", 500);
    others.extend(read("medmcqa/train_sample.jsonl", 500));
    let false_hits: Vec<Overlap> = others
        .iter()
        .filter_map(|question| overlap(&index, &item(&[&listed(question, [0, 1, 2, 3]), "Answer: [A]"])))
        .collect();
    let found = leaked.len() - missed.len();
    let (recall, precision) = (found as f64 / 400.0, found as f64 / (found + false_hits.len()) as f64);
    let hits: Vec<String> = false_hits
        .iter()
        .map(|hit| format!("{} {}: {}", hit.evidence.test, hit.evidence.score, hit.evidence.shared))
        .collect();
    println!("recall {recall:.4}, precision {precision:.4} ({} questions)", index.len());
    let mut around = leaked;
    around.extend(read("mmlu_medical/data/test/clinical_knowledge_test.csv", 100));
    around.extend(read("mmlu_medical/data/test/professional_medicine_test.csv", 100));
    // Of the questions that say enough to be told from phrasing: "The heart has:" does not.
    let says = |one: &aloe_task::Question, least: usize| {
        let simple = simplify(&one.stem);
        simple.split(' ').count() >= 4 && n_telling(&simple) >= least
    };
    let found_as = |(n_words, least): (usize, usize), row: &dyn Fn(&aloe_task::Question) -> Item| -> f64 {
        let is_long = |one: &&aloe_task::Question| simplify(&one.stem).split(' ').count() >= n_words;
        let asked: Vec<_> = around.iter().filter(|one| says(one, least)).filter(is_long).collect();
        let missed: Vec<&str> =
            asked.iter().filter(|one| overlap(&index, &row(one)).is_none()).map(|one| one.stem.as_str()).collect();
        println!("missed {} of {}: {missed:#?}", missed.len(), asked.len());
        1.0 - missed.len() as f64 / asked.len() as f64
    };
    let behind =
        found_as((4, 2), &|one| item(&[&format!("Answer this question truthfully\n\n{}", one.stem), &one.choices[0]]));
    let inside = found_as((6, 3), &|one| {
        let text = format!("Please answer the following exam question for me. {} Thank you very much.", one.stem);
        item(&[&text, &one.choices[0]])
    });
    let other_options = found_as((4, 2), &|one| {
        let mut row = item(&[&format!("Question: {}\nA. left\nB. right\nC. both", one.stem), "Answer: [A]"]);
        row.question = Some(Box::new(aloe_task::Question {
            choices: ["left", "right", "both"].map(String::from).to_vec(),
            key: 0,
            ..one.clone()
        }));
        row
    });
    println!("behind an instruction {behind:.3}, inside a sentence {inside:.3}, with other options {other_options:.3}");
    assert!(behind >= 0.99 && inside >= 0.99 && other_options >= 0.99);
    check_topics(&data, &index);
    assert!(recall >= 0.99 && precision >= 0.95, "missed {missed:#?}; others hit {hits:#?}");
}

/// Masks part the runs of words that a leak shares with its question: the question is looked for with the same masks.
#[test]
fn a_leak_whose_identifiers_were_masked_is_found_and_its_question_is_counted_once() {
    let stem = "Mrs. Hargreaves, seen on 3 March 2019, reports that Mr. Hargreaves snores since 4 May 2018; call 555-213-4567. What now?";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("held.jsonl");
    std::fs::write(&path, format!("{}\n", held(stem, OPTIONS))).unwrap();
    let leaked = item(&[&identifiers::masked(stem), "It depends."]);
    let found = |is_masked: bool| {
        let files = HeldFile::all(std::slice::from_ref(&path), []).unwrap();
        let index = Index::read(&files, Questions::new(), is_masked, &mut |error| panic!("{error}")).unwrap();
        assert_eq!(index.len(), 1);
        overlap(&index, &leaked).is_some()
    };
    assert_eq!((found(false), found(true)), (false, true));
}

/// Two questions of the same words, as sums and doses are: the numbers make the question.
#[test]
fn a_whole_question_is_the_same_only_with_its_numbers() {
    let index = index(&[held("What is 12 x 7?", OPTIONS), held("What is 1,200 x 7?", OPTIONS)]);
    let hit = |text: &str| overlap(&index, &item(&[text, "A number."])).map(|hit| (hit.question_at, hit.evidence.test));
    assert_eq!((hit("What is 9 x 3?"), hit("What is 12 x 70?")), (None, None));
    let at = |line: usize| Some((format!("{line}"), "ngram_8"));
    let line = |hit: Option<(String, &'static str)>| {
        hit.map(|(at, test)| (at.rsplit(':').next().unwrap_or_default().to_owned(), test))
    };
    assert_eq!((line(hit("what is 12 X 7")), line(hit("What is 1200 x 7?"))), (at(1), at(2)));
}

/// A row that holds two questions, the first of which a reader called another one: the second is still found.
#[test]
fn a_verdict_sets_one_question_aside_and_not_the_others_of_its_row() {
    let other = "Which vitamin is missing in a sailor with bleeding gums and poor healing of wounds?";
    let index = index(&[held(STEM, OPTIONS), held(other, ["A", "C", "D", "K"])]);
    let row = item(&[&format!("{STEM} {other}"), "x"]);
    let (first, second) = (index.held[0].at.to_string(), index.held[1].at.to_string());
    let found = |kept: &[&String]| -> Vec<String> {
        let is_kept = |row: &str, at: &str| row == "s/f:1" && kept.iter().any(|one| *one == at);
        let (progress, cancel) = (Progress::silent(), Cancel::default());
        let hits = find(std::slice::from_ref(&row), &index, &is_kept, 1, &progress, &cancel).unwrap();
        hits.into_iter().map(|(_, hit)| hit.question_at).collect()
    };
    let both = vec![first.clone(), second.clone()];
    assert_eq!(found(&[]), both[..1]);
    assert_eq!((found(&[&first]), found(&[&first, &second])), (both.clone(), both));
}
