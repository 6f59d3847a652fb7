//! A model's own answers as the rejected sides of preference pairs (self-generated rejections, as SPIN's: Chen et al. 2401.01335): each row with
//! a better side, a pair's chosen one or an instruction row's answer, is asked of the model, and what it says stands against that side.
//!
//! Rows are read by the layouts of data stages. The result has the columns of dpo-mix-7k, `chosen` and `rejected` as whole conversations, which
//! data stages read. Not kept: an answer that is empty, cut, the better side itself but for case and punctuation, or, of a multiple-choice
//! row, one that reaches the key. That a kept answer is worse is nobody's judgement, which the notices say.

use super::texts::{self, TextVerdict, TextsConfig, TextsReport, Wanted};
use crate::asking::log::Answered;
use crate::asking::{Item as Asked, Run};
use crate::check::dialect_of;
use crate::data::lines;
use crate::simplify::words_alone;
use crate::{Body, Error, Item, Problems, Result, RowError, SourceConfig, dialect, source};
use aloe_engine::{Engine, FinishReason, Prompt};
use aloe_record::{Cancel, Progress};
use aloe_task::extract::{Reading, extract};
use aloe_task::{Answer, AnswerRule, ChoiceOrder};
use aloe_text::{Message, Role};
use serde_json::{Value, json};
use std::path::Path;

/// How the pairs are labelled.
const MADE: &str = "self-generated rejection";

/// A row with its better side.
struct Better {
    prompt: Vec<Message>,
    chosen: Message,
    item: Item,
}

/// Writes the model's own answer to each row of the file or folder `rows` against the row's better side; `train.jsonl` holds the pairs.
pub fn rejections(
    engine: &Engine,
    rows: &Path,
    config: &TextsConfig,
    out: &Path,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<TextsReport> {
    config.check()?;
    let all = read(rows)?;
    let drawn: Vec<&Better> = texts::drawn(all.len(), config, "rejections").into_iter().map(|at| &all[at]).collect();
    let wanted: Vec<Wanted> = drawn
        .iter()
        .map(|better| Wanted {
            id: better.item.id.clone(),
            prompt: Prompt::Messages(better.prompt.clone()),
            content: content(better),
        })
        .collect();
    let judge = |place: usize, answered: &Answered| judge(drawn[place], answered);
    let notices = vec![
        "the rejected sides are the model's own answers; nobody has judged them worse than the chosen ones".to_owned(),
    ];
    let (items, report) =
        texts::make(Run { engine, progress, cancel }, "rejections", &wanted, config, out, &judge, notices)?;
    lines(&out.join("train.jsonl"), items.iter().zip(&drawn).filter_map(|(item, better)| row(item, better)))?;
    Ok(report)
}

/// Prompt and better side as one text, which tells whether a row is still the one that was asked.
fn content(better: &Better) -> String {
    let said = better.prompt.iter().chain([&better.chosen]);
    said.map(|message| format!("{}: {}", message.role.as_str(), message.content)).collect::<Vec<_>>().join("\n")
}

fn row(asked: &Asked, better: &Better) -> Option<Value> {
    let answered = asked.attempts.last().filter(|_| asked.is_done)?;
    let side = |last: Message| better.prompt.iter().cloned().chain([last]).collect::<Vec<_>>();
    let mut row = json!({
        "chosen": side(better.chosen.clone()), "rejected": side(Message::assistant(answered.text.trim())),
        "id": better.item.id, "made": MADE, "task": better.item.about.task, "subject": better.item.about.subject,
        "attempts": asked.attempts.len(),
    });
    // What splits and attack styles go by stays with the row, and under whose terms it is.
    let item = &better.item;
    for (key, value) in [
        ("question_id", item.group().map(Value::from)),
        ("style", item.style().map(Value::from)),
        ("stage", item.rare().stage.map(Value::from)),
        ("licence", item.about.licence.as_deref().map(Value::from)),
        ("split", item.about.split.as_deref().map(Value::from)),
    ] {
        if let Some(value) = value {
            row[key] = value;
        }
    }
    Some(row)
}

fn judge(better: &Better, answered: &Answered) -> TextVerdict {
    let is_cut = answered.finish_reason != FinishReason::Stop;
    let text = answered.text.trim();
    let reaches_key = || {
        better.item.question.as_ref().is_some_and(|question| {
            let order = ChoiceOrder::natural(question.choices.len());
            let reading = Reading { text, choices: &question.choices, order: &order, is_cut };
            extract(reading, AnswerRule::Aloe).answer == Answer::Choice(question.key)
        })
    };
    if text.is_empty() {
        TextVerdict::Empty
    } else if is_cut {
        TextVerdict::Cut
    } else if words_alone(text) == words_alone(&better.chosen.content) {
        TextVerdict::Same
    } else if reaches_key() {
        TextVerdict::Right
    } else {
        TextVerdict::Accepted
    }
}

/// Every row with a better side; broken ones stop the stage.
fn read(path: &Path) -> Result<Vec<Better>> {
    let (mut found, mut problems) = (Vec::new(), Problems::default());
    for file in source::files(path)? {
        let (mut known, mut index) = (None, 0);
        source::read(&file.path, &mut |row| {
            index += 1;
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    problems.add(error);
                    return Ok(());
                }
            };
            let dialect = dialect_of(&mut known, &row, &file)?;
            let id = crate::decontaminate::last_two(&row.at);
            match dialect::item(dialect, &row, index - 1, id, &SourceConfig::plain()).and_then(better) {
                Ok(better) => found.push(better),
                Err(error) => problems.add(error),
            }
            Ok(())
        })?;
    }
    if problems.total > 0 {
        return Err(Error::BrokenRows { problems });
    }
    if found.is_empty() { Err(Error::EmptyFile { path: path.to_owned() }) } else { Ok(found) }
}

/// A pair's prompt and chosen side; of a conversation the last answer and what stands before it.
fn better(item: Item) -> Result<Better, RowError> {
    let (prompt, chosen) = match &item.body {
        Body::Pair(pair) => (pair.prompt.clone(), pair.chosen.first().cloned()),
        Body::Conversation(conversation) => {
            let messages = &conversation.messages;
            let last = messages.iter().rposition(|message| message.role == Role::Assistant);
            let before = last.map(|last| messages[..last].to_vec()).unwrap_or_default();
            (before, last.map(|last| messages[last].clone()))
        }
    };
    match chosen.filter(|chosen| !chosen.content.trim().is_empty()) {
        Some(chosen) if prompt.last().is_some_and(|last| last.role == Role::User) => {
            Ok(Better { prompt, chosen, item })
        }
        _ => Err(RowError::new(item.at.to_string(), "the row has no question with a better answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Better>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn answered(text: &str, finish_reason: FinishReason) -> Answered {
        let (n_prompt_tokens, n_tokens) = (None, None);
        Answered { key: String::new(), number: 0, text: text.into(), finish_reason, n_prompt_tokens, n_tokens }
    }

    #[test]
    fn an_own_answer_is_kept_unless_it_is_empty_cut_the_better_side_or_right() {
        let rows = read_text(concat!(
            "{\"instruction\": \"What is gout?\", \"output\": \"Crystals of urate in 1 joint.\"}\n",
            "{\"instruction\": \"And what is rickets?\", \"output\": \"Soft bone.\"}\n"
        ))
        .unwrap();
        let check =
            |text: &str, reason, expected| assert_eq!(judge(&rows[0], &answered(text, reason)), expected, "{text}");
        check("A fever.", FinishReason::Stop, TextVerdict::Accepted);
        check("A fever of", FinishReason::Length, TextVerdict::Cut);
        check(" \n", FinishReason::Stop, TextVerdict::Empty);
        check("crystals of urate, in 1 joint!", FinishReason::Stop, TextVerdict::Same);
        check("Crystals of urate in 2 joint.", FinishReason::Stop, TextVerdict::Accepted);
        let question = read_text(
            "{\"id\": \"1\", \"question\": \"Which?\", \"opa\": \"Lung\", \"opb\": \"Skin\", \"opc\": \"Bone\", \"opd\": \"Eye\", \"cop\": 1, \"exp\": \"x\"}\n\
             {\"id\": \"2\", \"question\": \"Where?\", \"opa\": \"Lung\", \"opb\": \"Skin\", \"opc\": \"Bone\", \"opd\": \"Eye\", \"cop\": 0, \"exp\": \"x\"}\n",
        )
        .unwrap();
        let check = |text: &str| judge(&question[0], &answered(text, FinishReason::Stop));
        assert_eq!(
            (check("It itches.\nAnswer: B"), check("It aches.\nAnswer: C")),
            (TextVerdict::Right, TextVerdict::Accepted)
        );
    }

    #[test]
    fn a_pair_says_the_licence_and_split_of_the_row_it_is_made_of_and_a_data_stage_reads_them_back() {
        let from = json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "id": "a/f:1",
            "source": "a", "licence": "cc-by-nc-4.0", "split": "dev", "task": "qa", "subject": ""});
        let rows = read_text(&format!("{from}\n")).unwrap();
        let asked = Asked { is_done: true, attempts: vec![answered("B", FinishReason::Stop)], ..Asked::default() };
        let made = row(&asked, &rows[0]).unwrap();
        let again = read_text(&format!("{made}\n")).unwrap().remove(0).item;
        assert_eq!((again.about.licence.as_deref(), again.about.split.as_deref()), (Some("cc-by-nc-4.0"), Some("dev")));
    }

    #[test]
    fn the_better_side_is_the_chosen_one_or_the_last_answer_and_a_row_without_is_named() {
        let talk = "{\"messages\": [{\"role\": \"user\", \"content\": \"A\"}, {\"role\": \"assistant\", \"content\": \"B\"}, \
                    {\"role\": \"user\", \"content\": \"C\"}, {\"role\": \"assistant\", \"content\": \"D\"}]}\n";
        let rows = read_text(talk).unwrap();
        assert_eq!(
            (content(&rows[0]), rows[0].prompt.len()),
            ("user: A\nassistant: B\nuser: C\nassistant: D".to_owned(), 3)
        );
        let rows = read_text("{\"prompt\": \"Q\", \"chosen\": \"good\", \"rejected\": \"bad\"}\n").unwrap();
        assert_eq!(content(&rows[0]), "user: Q\nassistant: good");
        let error =
            read_text("{\"prompt\": \"Q\", \"chosen\": \" \", \"rejected\": \"bad\"}\n").err().unwrap().to_string();
        assert!(error.contains("rows.jsonl:1: the row has no question with a better answer"), "{error}");
    }
}
