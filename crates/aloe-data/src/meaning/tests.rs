//! Neighbours on vectors worked by hand, and leaks of published questions planted in five ways among hard negatives, with all-MiniLM-L6-v2.

use super::*;
use crate::Body;
use crate::decontaminate;
use crate::simplify;
use aloe_engine::EngineOptions;
use aloe_record::CounterRng;
use aloe_task::{Question, Split, Task};
use aloe_text::Conversation;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn item(id: usize, turns: &[&str]) -> Item {
    let messages = turns.iter().enumerate();
    let messages =
        messages.map(|(i, text)| if i % 2 == 0 { Message::user(*text) } else { Message::assistant(*text) }).collect();
    Item::plain(id.to_string(), Body::Conversation(Conversation { messages }))
}

/// Unit vectors at 0, 60 and 90 degrees: cosines 1, 0.5 and 0.
#[test]
fn pairs_are_those_at_the_floor_or_nearer_for_any_number_of_threads() {
    let at = |degrees: f32| {
        let (sin, cos) = degrees.to_radians().sin_cos();
        vec![cos, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, sin]
    };
    let (rows, held) = ([at(0.0), at(90.0), at(60.0)], [at(0.0), at(60.0)]);
    for n_threads in [1, 2, 3] {
        let found: Vec<(usize, usize, f64)> = pairs(&rows, &held, 0.4, n_threads);
        let told: Vec<(usize, usize, f64)> =
            found.into_iter().map(|(row, held, cosine)| (row, held, (cosine * 1e3).round() / 1e3)).collect();
        assert_eq!(told, [(0, 0, 1.0), (0, 1, 0.5), (1, 1, 0.866), (2, 0, 0.5), (2, 1, 1.0)]);
    }
}

#[test]
fn a_judge_sees_each_questions_nearest_rows_and_all_at_the_threshold() {
    let pair = |row: usize, held: usize, cosine: f64| Pair { row, text: row, held, cosine };
    let config = Meaning { threshold: 0.9, neighbours: 1, judge_from: 0.6, ..Meaning::default() };
    let near =
        vec![pair(0, 0, 0.7), pair(1, 0, 0.8), pair(2, 0, 0.95), pair(2, 1, 0.92), pair(3, 1, 0.91), pair(4, 2, 0.61)];
    let shown: Vec<(usize, usize)> = candidates(near, &config).iter().map(|pair| (pair.row, pair.held)).collect();
    assert_eq!(shown, [(2, 0), (2, 1), (3, 1), (4, 2)]);
}

#[test]
fn a_reply_is_true_or_false_alone_or_no_verdict() {
    for (reply, expected) in [
        ("True", Some(true)),
        (" 'False'.\n", Some(false)),
        ("true", None),
        ("True, since both ask the same", None),
        ("Yes", None),
        ("", None),
    ] {
        assert_eq!(verdict(reply), expected, "{reply:?}");
    }
}

#[test]
fn short_questions_are_compared_with_their_options_in_any_order_and_long_ones_without() {
    let short = item(0, &["Question: Which is true?\nB. Nine\nA. Eight", "A"]);
    assert_eq!(asked(&short), [(0, "Which is true? Eight, Nine".to_owned())]);
    let long = "In which of these many organs of the body is insulin made each day?";
    let dialogue = item(0, &[&format!("{long}\nA. Liver\nB. Pancreas"), "B", "Sure?", "Yes."]);
    assert_eq!(asked(&dialogue), [(0, long.to_owned()), (2, "Sure?".to_owned())]);
}

/// The folder that a variable names, or a note of what did not run.
fn folder(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "{variable} is not set, but ALOE_REQUIRE is");
        println!("did not run (no {variable}): rows compared by meaning");
    }
    found
}

/// A paraphrase near two held questions; a verdict sets one pair aside, then both.
#[test]
fn a_verdict_keeps_a_row_beside_the_question_it_names_and_not_beside_another() {
    let Some(models) = folder("ALOE_MODELS") else { return };
    let embedder =
        Embedder::open(models.join("all-minilm-l6-v2").to_str().unwrap(), &EngineOptions::default()).unwrap();
    let question = |stem: &str, at: &str| Question {
        id: at.into(),
        stem: stem.into(),
        context: None,
        choices: Vec::new(),
        key: 0,
        subject: String::new(),
        explanation: None,
        source: at.into(),
    };
    let index = Index::of(&[
        question("In which of the many organs of the human body is the hormone insulin made?", "f:1"),
        question("In which organ of the human body is most of the hormone insulin produced?", "f:2"),
    ]);
    let items = [
        item(7, &["Which organ of a human's body makes the hormone insulin all through life and in health?", "x"]),
        item(8, &["How long does a broken wrist of a child take to heal in a cast?", "x"]),
    ];
    let out = tempfile::tempdir().unwrap();
    let (progress, cancel) = (Progress::silent(), Cancel::default());
    let readers = Readers { embedder: &embedder, judge: None, seed: 0, n_threads: 1 };
    let config = Meaning { threshold: 0.7, ..Meaning::default() };
    let found = |kept: &[&str]| -> (Vec<String>, usize) {
        let is_kept = |row: &str, at: &str| row == "7" && kept.contains(&at);
        let found = find(&items, &index, &is_kept, readers, &config, out.path(), (&progress, &cancel)).unwrap();
        assert!(found.overlaps.iter().all(|(row, hit)| *row == 0 && hit.evidence.test == "embedding"));
        let mut at: Vec<String> = found.overlaps.into_iter().map(|(_, hit)| hit.question_at).collect();
        at.sort();
        (at, found.report.n_hits)
    };
    let (nearest, n_hits) = found(&[]);
    assert_eq!((nearest.len(), n_hits), (1, 1), "the nearest question alone is told");
    let other = if nearest[0] == "f:1" { "f:2" } else { "f:1" };
    assert_eq!(found(&[nearest[0].as_str()]), (vec!["f:1".to_owned(), "f:2".into()], 1), "the other one stays a hit");
    assert_eq!(found(&[nearest[0].as_str(), other]), (vec!["f:1".to_owned(), "f:2".into()], 0), "none is left");
}

/// The same question and answer behind two system messages, behind one of them again, and as a dialogue's beginning.
#[test]
fn rows_of_other_system_messages_and_dialogues_are_no_duplicates_in_meaning() {
    let Some(models) = folder("ALOE_MODELS") else { return };
    let embedder =
        Embedder::open(models.join("all-minilm-l6-v2").to_str().unwrap(), &EngineOptions::default()).unwrap();
    let behind = |id: usize, system: &str, turns: &[&str]| {
        let mut row = item(id, turns);
        if let Body::Conversation(conversation) = &mut row.body {
            conversation.messages.insert(0, Message::system(system));
        }
        row
    };
    let (adult, child) = ("The patient is an adult after an infarction.", "The patient is a child with influenza.");
    let asked = ["May I give aspirin to this patient?", "Yes, that is fine."];
    let again = ["May I give this patient aspirin?", "Yes, that is fine."];
    let more = [asked[0], asked[1], "Thank you.", "You are welcome."];
    let items = [behind(0, adult, &asked), behind(1, child, &asked), behind(2, adult, &again), behind(3, adult, &more)];
    let out = tempfile::tempdir().unwrap();
    let (progress, cancel) = (Progress::silent(), Cancel::default());
    let dedup = crate::Dedup::default();
    let found =
        crate::dedup_meaning::find(&items, &embedder, (0.8, &dedup), out.path(), 2, &progress, &cancel).unwrap().0;
    let dropped: Vec<(&str, &str)> = found.iter().map(|one| (one.dropped.as_str(), one.kept.as_str())).collect();
    assert_eq!(dropped, [("2", "0")]);
}

/// Words of exams for others, longest first; what is left keeps its order.
const REWORDED: [(&str, &str); 44] = [
    ("comes to the physician because of", "sees a doctor about"),
    ("is brought to the emergency department", "is taken to hospital"),
    ("presents to the emergency department", "arrives at the hospital"),
    ("comes to the emergency department", "arrives at the hospital"),
    ("presents to the clinic", "attends an outpatient visit"),
    ("comes to the clinic", "attends an outpatient visit"),
    ("Which of the following is the most likely diagnosis?", "What does this patient most probably have?"),
    ("Which of the following is the most appropriate", "What is the best"),
    ("Which of the following is the most likely", "What is most probably the"),
    ("Which of the following", "What"),
    ("Physical examination shows", "On examination there is"),
    ("physical examination reveals", "an examination finds"),
    ("Laboratory studies show", "Blood tests give"),
    ("past medical history is significant for", "earlier illnesses include"),
    ("medical history", "earlier illnesses"),
    ("shortness of breath", "dyspnoea"),
    ("blood pressure", "arterial pressure"),
    ("complaining of", "reporting"),
    ("complains of", "reports"),
    ("presents with", "has"),
    ("associated with", "linked to"),
    ("caused by", "due to"),
    ("characterized by", "marked by"),
    ("characteristic of", "typical of"),
    ("history of", "record of"),
    ("due to", "because of"),
    ("following", "below"),
    ("increased", "raised"),
    ("decreased", "lowered"),
    ("severe", "intense"),
    ("sudden", "abrupt"),
    ("fever", "high temperature"),
    ("vomiting", "throwing up"),
    ("reveals", "discloses"),
    ("shows", "displays"),
    ("seen in", "found in"),
    ("used in", "given for"),
    ("treatment", "therapy"),
    ("drug", "medicine"),
    ("patient", "person"),
    ("woman", "female"),
    ("man ", "male "),
    ("physician", "doctor"),
    ("most common", "most frequent"),
];

/// The stem in other words: the last sentence first, phrases replaced, ages written otherwise. By rule, and so nearer to its original than a
/// person's rewriting may be.
fn reworded(stem: &str) -> String {
    let mut sentences: Vec<&str> =
        stem.split_inclusive(['.', '?']).map(str::trim).filter(|text| !text.is_empty()).collect();
    if sentences.len() > 1 {
        sentences.rotate_right(1);
    }
    let mut text = sentences.join(" ");
    for (from, to) in REWORDED {
        text = text.replace(from, to);
    }
    text.replace("-year-old", " years old")
}

fn listed(question: &Question, order: [usize; 4]) -> String {
    let options = order.iter().zip('A'..).map(|(i, letter)| format!("\n{letter}. {}", question.choices[*i]));
    format!("{}{}", question.stem, options.collect::<String>())
}

const WAYS: [&str; 5] =
    ["verbatim", "reordered options", "paraphrased stem", "changed punctuation", "inside a dialogue"];

/// The leak of `question` in way `way`.
fn leak(id: usize, way: usize, question: &Question) -> Item {
    let natural = listed(question, [0, 1, 2, 3]);
    match way {
        0 => item(id, &[&natural, "Answer: A"]),
        1 => item(id, &[&listed(question, [2, 0, 3, 1]), "Answer: A"]),
        2 => item(id, &[&reworded(&question.stem), &question.choices[question.key]]),
        3 => item(id, &[&natural.replace([',', '.', '?', '-', ';', ':'], " ").to_uppercase(), "Answer: A"]),
        _ => item(id, &["Hello", "How can I help?", &format!("I could not answer this one: {natural}"), "Answer: A"]),
    }
}

/// The train questions that share the most words with each of `near`, none twice.
fn same_topic(near: &[&Question], train: &[Question], n: usize) -> Vec<Question> {
    let words = |question: &Question| -> BTreeSet<String> {
        simplify(&question.stem).split(' ').filter(|word| word.len() > 4).map(String::from).collect()
    };
    let train_words: Vec<BTreeSet<String>> = train.iter().map(words).collect();
    let (mut taken, mut found) = (BTreeSet::new(), Vec::new());
    for question in near.iter().cycle().take(10 * n) {
        let own = words(question);
        let share = |at: usize| {
            let common = train_words[at].intersection(&own).count();
            common as f64 / (train_words[at].len() + own.len() - common).max(1) as f64
        };
        let best = (0..train.len()).filter(|at| !taken.contains(at)).max_by(|a, b| share(*a).total_cmp(&share(*b)));
        if let Some(best) = best {
            taken.insert(best);
            found.push(train[best].clone());
        }
        if found.len() == n {
            break;
        }
    }
    found
}

/// 500 leaks of MedQA's dev and MedMCQA's validation questions, 100 in each of five ways, among 1,000 hard negatives: 800 train questions of
/// the same exams on the nearest topics by shared words, and 200 explanations of the very questions (text that a guideline would share). Bars
/// of the issue: recall 0.99 each, 0.8 of paraphrases, precision 0.95. Published train sets hold some validation questions themselves: they
/// count as false here.
#[test]
fn planted_leaks_are_found_in_five_ways_among_hard_negatives() {
    if std::env::var_os("ALOE_SLOW").is_none() {
        println!("did not run (no ALOE_SLOW): planted leaks");
        return;
    }
    let (Some(data), Some(models)) = (folder("ALOE_DATA"), folder("ALOE_MODELS")) else { return };
    let medqa = Task::Medqa4.load(&data, Split::Validation).unwrap();
    let medmcqa = Task::Medmcqa.load(&data, Split::Test).unwrap();
    let held: Vec<Question> = medqa.iter().chain(medmcqa.iter().take(1500)).cloned().collect();
    let index = Index::of(&held);
    let mut places: Vec<usize> = (0..held.len()).collect();
    CounterRng::new(7, "planted", 0).shuffle(&mut places);
    let leaked: Vec<&Question> = places.iter().take(500).map(|at| &held[*at]).collect();
    let mut items: Vec<Item> =
        leaked.iter().enumerate().map(|(number, question)| leak(number, number % 5, question)).collect();
    let mut others = same_topic(&leaked[..250], &Task::Medqa4.load(&data, Split::Train).unwrap(), 400);
    others.extend(same_topic(&leaked[250..], &medmcqa_train(&data), 400));
    for question in &others {
        items.push(item(items.len(), &[&listed(question, [0, 1, 2, 3]), "Answer: A"]));
    }
    let passages =
        medmcqa.iter().filter_map(|question| question.explanation.as_deref()).filter(|text| text.len() > 200);
    for passage in passages.take(200) {
        items.push(item(items.len(), &[&format!("Sum up this passage.\n{passage}"), "It says what it says."]));
    }
    assert_eq!(items.len(), 1500);

    let (progress, cancel) = (Progress::silent(), Cancel::default());
    let by_words = decontaminate::find(&items, &index, &|_, _| false, 2, &progress, &cancel).unwrap();
    let mut hit: Vec<Option<(&str, f64, String)>> = vec![None; items.len()];
    for (row, overlap) in &by_words {
        hit[*row] = Some((overlap.evidence.test, overlap.evidence.score, overlap.question.clone()));
    }
    let rest: Vec<usize> = (0..items.len()).filter(|row| hit[*row].is_none()).collect();
    let left: Vec<Item> = rest.iter().map(|row| items[*row].clone()).collect();
    let embedder =
        Embedder::open(models.join("all-minilm-l6-v2").to_str().unwrap(), &EngineOptions::default()).unwrap();
    let readers = Readers { embedder: &embedder, judge: None, seed: 0, n_threads: 2 };
    let out = tempfile::tempdir().unwrap();
    let low = Meaning { threshold: 0.6, ..Meaning::default() };
    let found = find(&left, &index, &|_, _| false, readers, &low, out.path(), (&progress, &cancel)).unwrap();
    for threshold in [0.7, 0.75, 0.8, 0.85, 0.9, 0.95] {
        let mut with = hit.clone();
        for (row, overlap) in found.overlaps.iter().filter(|(_, overlap)| overlap.evidence.score >= threshold) {
            with[rest[*row]] = Some(("embedding", overlap.evidence.score, overlap.question.clone()));
        }
        let recall: Vec<f64> = (0..5)
            .map(|way| (0..500).filter(|row| row % 5 == way && with[*row].is_some()).count() as f64 / 100.0)
            .collect();
        let n_true = (0..500).filter(|row| with[*row].is_some()).count();
        let false_hits: Vec<usize> = (500..1500).filter(|row| with[*row].is_some()).collect();
        let precision = n_true as f64 / (n_true + false_hits.len()) as f64;
        let told: Vec<String> = WAYS.iter().zip(&recall).map(|(way, recall)| format!("{way} {recall}")).collect();
        println!("threshold {threshold}: recall {}; precision {precision:.4}", told.join(", "));
        if threshold == Meaning::default().threshold {
            for row in &false_hits {
                println!("false: {:?}\n   of {:?}", items[*row].messages()[0].content, with[*row]);
            }
            assert!(
                recall.iter().enumerate().all(|(way, recall)| *recall >= if way == 2 { 0.8 } else { 0.99 }),
                "{told:?}"
            );
            assert!(precision >= 0.95, "{precision}");
        }
    }
    let by_words_alone = (0..500).filter(|row| row % 5 == 2 && hit[*row].is_some()).count();
    println!("paraphrases found by words alone: {by_words_alone} of 100; {} texts cut", found.report.n_cut);
}

fn medmcqa_train(data: &Path) -> Vec<Question> {
    Task::Medmcqa.load(data, Split::Train).unwrap()
}
