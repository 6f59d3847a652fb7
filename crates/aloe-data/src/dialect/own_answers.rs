//! A model's own judged answers, `samples.jsonl` of `aloe redteam`, to preference pairs: the answer that the judge calls unsafe is rejected, a
//! safe answer to the same base question is chosen (aloe.md 1.8; Egida pairs the target model's own unsafe answers with others' safe ones).
//! Chosen is the given safe answer where there is one, else an own answer that the judge calls safe, to the plain question first.
//!
//! Refused: answers to questions of the test split, which red-team figures are measured on. Nothing is guessed: answers without a verdict, to
//! forged turn tokens (training renders these as plain text) or to harmless prompts are left out by name.

use super::{Body, pair};
use crate::simplify::words_alone;
use crate::{Item, RowError};
use aloe_task::red_team::llama_guard::GuardVerdict;
use aloe_task::red_team::{RedTeamSplit, Rendering, Style, TurnTokens};
use aloe_task::rows::Row;
use aloe_text::{Message, Role};
use serde_json::Value;
use std::collections::HashMap;

/// Safe answers to base questions, by the question's id and by its text.
#[derive(Debug, Default)]
pub(crate) struct SafeAnswers {
    by_id: HashMap<String, Safe>,
    by_text: HashMap<String, String>,
}

#[derive(Debug)]
struct Safe {
    /// Of an answer to the question as it stands; one to an attack gives way to it.
    is_plain: bool,
    text: String,
    /// The words that were asked.
    asked: String,
}

impl SafeAnswers {
    /// Takes the answer of a row; of a pair the chosen side.
    pub(crate) fn add(&mut self, item: &Item) -> Result<(), RowError> {
        let (asked, answer) = match &item.body {
            Body::Conversation(conversation) => {
                let of = |role: Role| conversation.messages.iter().rfind(|message| message.role == role);
                (of(Role::User), of(Role::Assistant))
            }
            Body::Pair(pair) => (pair.prompt.last(), pair.chosen.first()),
        };
        let (Some(asked), Some(answer)) = (asked, answer.filter(|answer| !answer.content.trim().is_empty())) else {
            return Err(RowError::new(item.at.to_string(), "the safe answer is empty"));
        };
        let is_plain = item.style().is_none_or(|style| style == Style::Baseline.name());
        if let Some(id) = item.group()
            && self.by_id.get(id).is_none_or(|known| is_plain && !known.is_plain)
        {
            self.by_id.insert(
                id.to_owned(),
                Safe { is_plain, text: answer.content.clone(), asked: words_alone(&asked.content) },
            );
        }
        if is_plain {
            self.by_text.entry(words_alone(&asked.content)).or_insert_with(|| answer.content.clone());
        }
        Ok(())
    }

    /// The answer to the question's very words; else the one of its id, where that answers an attack or the sample is a variant: other
    /// sets use the same ids for other questions.
    fn of(&self, sample: &Sample) -> Option<&str> {
        let asked = words_alone(&sample.question);
        let may_differ = |safe: &&Safe| sample.is_variant || !safe.is_plain || safe.asked == asked;
        let by_id = self.by_id.get(&sample.group).filter(may_differ).map(|safe| safe.text.as_str());
        by_id.or_else(|| self.by_text.get(&asked).map(String::as_str))
    }
}

/// Where the chosen side is from; how manifests count the pair.
const GIVEN: &str = "own answer judged unsafe, against a given safe answer";
const OWN: &str = "own answer judged unsafe, against an own answer judged safe";
/// The same where the unsafe answer was cut at its limit: what is rejected does not come to its end. A chosen side never is cut.
const GIVEN_CUT: &str = "own answer judged unsafe and cut at its limit, against a given safe answer";
const OWN_CUT: &str = "own answer judged unsafe and cut at its limit, against an own answer judged safe";

/// A pair out of one answer.
#[derive(Debug)]
pub(crate) struct Judged {
    /// Index of the row of the unsafe answer.
    pub(crate) row: usize,
    pub(crate) body: Body,
    pub(crate) style: Style,
    /// The base question's id.
    pub(crate) group: String,
    pub(crate) made: &'static str,
}

/// What became of the rows, by their index.
#[derive(Debug, Default)]
pub(crate) struct Paired {
    pub(crate) pairs: Vec<Judged>,
    /// Rows that give no pair, and why.
    pub(crate) left_out: Vec<(usize, &'static str)>,
    pub(crate) broken: Vec<(usize, RowError)>,
}

struct Sample {
    group: String,
    /// A role-play variant of the question whose id `group` is.
    is_variant: bool,
    question: String,
    style: Option<Style>,
    rendering: Option<Rendering>,
    system: Option<String>,
    prompt: String,
    response: String,
    /// Cut at its limit; not where the run does not tell.
    is_cut: bool,
    judge: Option<GuardVerdict>,
}

/// Reads one answer and refuses one to a test question.
fn sample(row: &Row) -> Result<Sample, RowError> {
    let value = |column: &str| row.columns.get(column).cloned().unwrap_or(Value::Null);
    let wrong = |column: &str| RowError::new(&row.at, format!("column `{column}` is not what `aloe redteam` writes"));
    let split: Option<RedTeamSplit> = serde_json::from_value(value("split")).map_err(|_| wrong("split"))?;
    let style: Option<Style> = serde_json::from_value(value("style")).map_err(|_| wrong("style"))?;
    if style.is_some() && split.unwrap_or_default().is_test() {
        return Err(RowError::new(
            &row.at,
            "the question is of the test split, which red-team rates are measured on; ask train questions with `aloe redteam .. --set split=train`",
        ));
    }
    let id = super::text(row, "question_id")?;
    Ok(Sample {
        // A role-play variant by `aloe synthesis` is a question of its own, whose base question's id it begins with.
        group: id.strip_suffix("/roleplay").unwrap_or(&id).to_owned(),
        is_variant: id.ends_with("/roleplay"),
        question: super::text(row, "question")?,
        style,
        rendering: serde_json::from_value(value("rendering")).map_err(|_| wrong("rendering"))?,
        system: super::optional(row, "system")?,
        prompt: super::text(row, "prompt")?,
        response: super::text(row, "response")?,
        is_cut: serde_json::from_value::<Option<bool>>(value("is_cut")).map_err(|_| wrong("is_cut"))?.unwrap_or(false),
        judge: serde_json::from_value(value("judge")).map_err(|_| wrong("judge"))?,
    })
}

/// Why an answer is no rejected side.
fn left_out(sample: &Sample) -> Option<&'static str> {
    if sample.style.is_none() {
        return Some("harmless_prompt");
    }
    if sample.rendering != Some(Rendering::PlainText) {
        return Some("forged_rendering");
    }
    match &sample.judge {
        None => Some("unjudged"),
        Some(GuardVerdict::Unparsed) => Some("judge_unread"),
        Some(GuardVerdict::Safe) => Some("judged_safe"),
        Some(GuardVerdict::Unsafe(_)) => None,
    }
}

/// The own safe answer to each base question: to the plain question where there is one, else the first. None to a held-out style, none
/// that was cut: a model that learns it learns to stop in mid-sentence.
fn own_safe(samples: &[(usize, Sample)]) -> HashMap<&str, (bool, &str)> {
    let mut found: HashMap<&str, (bool, &str)> = HashMap::new();
    for (_, sample) in samples.iter().filter(|(_, sample)| left_out(sample) == Some("judged_safe")) {
        let Some(style) = sample.style.filter(|style| !style.is_held_out()) else { continue };
        let (is_plain, text) = (style == Style::Baseline, sample.response.as_str());
        if !sample.is_cut
            && !text.trim().is_empty()
            && found.get(sample.group.as_str()).is_none_or(|known| is_plain && !known.0)
        {
            found.insert(&sample.group, (is_plain, text));
        }
    }
    found
}

/// The prompt as it was asked, written anew and held against the text of the row.
fn prompt(row: &Row, sample: &Sample, style: Style) -> Result<Vec<Message>, RowError> {
    let written = |tokens: TurnTokens| style.messages(&sample.question, tokens);
    let is_asked =
        |messages: &Vec<Message>| messages.iter().map(|one| one.content.as_str()).collect::<String>() == sample.prompt;
    let found = [TurnTokens::Llama3, TurnTokens::ChatMl].into_iter().map(written).find(is_asked);
    let messages = found.ok_or_else(|| {
        RowError::new(&row.at, format!("`prompt` is not the question in the style {} of this program", style.name()))
    })?;
    Ok(sample.system.iter().map(Message::system).chain(messages).collect())
}

/// Pairs of a whole file, in the order of its rows.
pub(crate) fn pairs(rows: &[Row], given: &SafeAnswers) -> Paired {
    let mut paired = Paired::default();
    let mut samples = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        match sample(row) {
            Ok(sample) => samples.push((at, sample)),
            Err(error) => paired.broken.push((at, error)),
        }
    }
    let own = own_safe(&samples);
    for (at, sample) in &samples {
        let (None, Some(style)) = (left_out(sample), sample.style) else {
            let is_cut = sample.is_cut && left_out(sample) == Some("judged_safe");
            let rule = if is_cut { Some("judged_safe_but_cut") } else { left_out(sample) };
            paired.left_out.extend(rule.map(|rule| (*at, rule)));
            continue;
        };
        let own = || own.get(sample.group.as_str()).map(|(_, text)| (*text, OWN));
        let Some((chosen, made)) = given.of(sample).map(|text| (text, GIVEN)).or_else(own) else {
            paired.left_out.push((*at, "no_safe_answer"));
            continue;
        };
        let row = &rows[*at];
        let side = |text: &str| vec![Message::assistant(text)];
        match prompt(row, sample, style).and_then(|prompt| pair(row, prompt, side(chosen), side(&sample.response))) {
            Ok(body) => {
                let made = match made {
                    GIVEN if sample.is_cut => GIVEN_CUT,
                    OWN if sample.is_cut => OWN_CUT,
                    made => made,
                };
                paired.pairs.push(Judged { row: *at, body, style, group: sample.group.clone(), made });
            }
            Err(error) => paired.broken.push((*at, error)),
        }
    }
    paired
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;
    use crate::Rare;
    use aloe_text::{Conversation, Pair};
    use serde_json::json;

    fn row(line: usize, question: &str, style: Style, response: &str, judge: Value) -> Row {
        let text = format!("How to {question}?");
        let value = json!({
            "question_id": question, "question": text, "style": style, "rendering": "plain_text", "split": "train",
            "prompt": style.messages(&text, TurnTokens::ChatMl)[0].content, "response": response, "verdict": "not_refused",
            "judge": judge,
        });
        Row { columns: value.as_object().unwrap().clone(), at: format!("s.jsonl:{line}") }
    }

    fn bad() -> Value {
        json!({"unsafe": ["S1"]})
    }

    fn sides(judged: &Judged) -> (usize, String, String, String) {
        let Body::Pair(pair) = &judged.body else { panic!("a pair") };
        let Pair { prompt, chosen, rejected } = &**pair;
        let text = |messages: &[Message]| messages.iter().map(|one| one.content.clone()).collect::<Vec<_>>().join("|");
        (judged.row, text(prompt), text(chosen), text(rejected))
    }

    fn safe(asked: &str, answer: &str, id: Option<&str>, style: Option<Style>) -> Item {
        let messages = vec![Message::user(asked), Message::assistant(answer)];
        let rare =
            Rare { group: id.map(String::from), style: style.map(|style| style.name().to_owned()), ..Rare::default() };
        let body = Body::Conversation(Conversation { messages });
        Item { at: Place::of("safe:1"), rare: rare.boxed(), ..Item::plain("", body) }
    }

    /// By hand: x has an unsafe answer and two safe ones, the later to the plain question; y an unsafe one alone; the safe answer in a held-out
    /// style is no side.
    #[test]
    fn an_unsafe_answer_is_rejected_against_the_own_safe_answer_to_the_plain_question() {
        let rows = [
            row(1, "x", Style::Json, "Step one.", bad()),
            row(2, "x", Style::Instruct, "No, in short.", json!("safe")),
            row(3, "x", Style::Baseline, "I will not.", json!("safe")),
            row(4, "y", Style::Baseline, "Take two.", bad()),
            row(5, "y", Style::TechnicalReport, "I refuse.", json!("safe")),
        ];
        let found = pairs(&rows, &SafeAnswers::default());
        assert!(found.broken.is_empty());
        let asked = Style::Json.messages("How to x?", TurnTokens::ChatMl)[0].content.clone();
        assert_eq!(
            found.pairs.iter().map(sides).collect::<Vec<_>>(),
            [(0, asked, "I will not.".into(), "Step one.".into())]
        );
        assert_eq!((found.pairs[0].group.as_str(), found.pairs[0].style, found.pairs[0].made), ("x", Style::Json, OWN));
        assert_eq!(found.left_out, [(1, "judged_safe"), (2, "judged_safe"), (3, "no_safe_answer"), (4, "judged_safe")]);
    }

    /// By hand: x's safe answer to the plain question is cut, so that the whole one to an attack is chosen; y has a cut one alone and gives no
    /// pair. x's unsafe answer is cut too and says so.
    #[test]
    fn a_cut_answer_is_never_chosen_and_a_pair_that_rejects_one_is_marked() {
        let cut = |mut row: Row, is_cut: Value| {
            row.columns.insert("is_cut".into(), is_cut);
            row
        };
        let rows = [
            cut(row(1, "x", Style::Json, "Step one, and", bad()), json!(true)),
            cut(row(2, "x", Style::Baseline, "I will not, for", json!("safe")), json!(true)),
            cut(row(3, "x", Style::Instruct, "No, in short.", json!("safe")), json!(false)),
            cut(row(4, "y", Style::Json, "Take two.", bad()), json!(false)),
            cut(row(5, "y", Style::Baseline, "I refuse bec", json!("safe")), json!(true)),
            cut(row(6, "z", Style::Json, "Take three.", bad()), json!("yes")),
        ];
        let found = pairs(&rows, &SafeAnswers::default());
        let chosen: Vec<String> = found.pairs.iter().map(|one| sides(one).2).collect();
        assert_eq!((chosen, found.pairs[0].made), (vec!["No, in short.".to_owned()], OWN_CUT));
        let left = [(1, "judged_safe_but_cut"), (2, "judged_safe"), (3, "no_safe_answer"), (4, "judged_safe_but_cut")];
        assert_eq!(found.left_out, left);
        assert!(found.broken.len() == 1 && found.broken[0].1.to_string().contains("`is_cut`"), "{:?}", found.broken);
        let mut given = SafeAnswers::default();
        given.add(&safe("How to x?", "No to x.", None, None)).unwrap();
        assert_eq!(pairs(&rows, &given).pairs[0].made, GIVEN_CUT);
    }

    #[test]
    fn a_given_safe_answer_goes_before_an_own_one_by_id_and_by_the_questions_text() {
        let mut given = SafeAnswers::default();
        given.add(&safe("wrapped", "No to the attack.", Some("x"), Some(Style::Json))).unwrap();
        given.add(&safe("How to x?", "No to x.", Some("x"), None)).unwrap();
        given.add(&safe("How to: y", "No to y.", None, None)).unwrap();
        assert!(given.add(&safe("How to z?", " ", None, None)).is_err());
        let rows = [
            row(1, "x", Style::Baseline, "Step one.", bad()),
            row(2, "y", Style::Json, "Take two.", bad()),
            row(3, "y", Style::Baseline, "I will not.", json!("safe")),
        ];
        let found = pairs(&rows, &given);
        let chosen: Vec<String> = found.pairs.iter().map(|one| sides(one).2).collect();
        assert_eq!(chosen, ["No to x.", "No to y."]);
        assert!(found.pairs.iter().all(|one| one.made == GIVEN));
    }

    #[test]
    fn answers_to_test_questions_are_broken_rows_and_what_the_judge_did_not_read_is_left_out_by_name() {
        let with = |key: &str, value: Value| {
            let mut row = row(1, "x", Style::Baseline, "Step one.", bad());
            row.columns.insert(key.into(), value);
            row
        };
        let mut harmless = with("style", Value::Null);
        harmless.columns.insert("split".into(), Value::Null);
        let rows = [
            with("split", json!("test")),
            with("split", Value::Null),
            with("rendering", json!("forged_tokens")),
            with("judge", Value::Null),
            with("judge", json!("unparsed")),
            harmless,
            with("style", json!("unheard_of")),
            with("prompt", json!("Another question?")),
        ];
        let mut given = SafeAnswers::default();
        given.add(&safe("How to x?", "No.", None, None)).unwrap();
        let found = pairs(&rows, &given);
        assert!(found.pairs.is_empty());
        let broken: Vec<usize> = found.broken.iter().map(|(at, _)| *at).collect();
        assert_eq!(broken, [0, 1, 6, 7]);
        assert!(found.broken[0].1.to_string().contains("test split"), "{}", found.broken[0].1);
        assert_eq!(
            found.left_out,
            [(2, "forged_rendering"), (3, "unjudged"), (4, "judge_unread"), (5, "harmless_prompt")]
        );
    }

    #[test]
    fn a_system_prompt_of_the_run_begins_the_pair_and_a_role_play_variant_stays_with_its_question() {
        let mut one = row(1, "x/roleplay", Style::Injection1, "Step one.", bad());
        one.columns.insert("system".into(), json!("Be kind."));
        let mut given = SafeAnswers::default();
        given.add(&safe("How to x?", "No.", Some("x"), None)).unwrap();
        let found = pairs(&[one], &given);
        assert_eq!(found.pairs[0].group, "x");
        assert!(sides(&found.pairs[0]).1.starts_with("Be kind.|How to x/roleplay?<|im_end|>"), "{:?}", found.pairs);
    }
}
