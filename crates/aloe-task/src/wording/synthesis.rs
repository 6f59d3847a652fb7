//! The wording of synthetic reasoning for training (aloe.md 1.4): a three-part solution of a question, written by a model that is told the
//! answer and the reference explanation (`gold`) or that must find it (`self`), and the question put to a second reader who sees the
//! solution without its answer. The reference's own prompts are figures that are not public; these are ours, with the published structure:
//! what is asked, each option in turn, the final choice; of PubMedQA the summary, the reasoning, the verdict. The last line is the published
//! `Answer: X`, of PubMedQA `Answer: yes`.

use super::{Protocol, aloe, fixed_shots, letter, message};
use crate::{ChoiceOrder, Question};
use aloe_text::{Message, Role};

/// Another wording is another result: raise it with each change here.
pub const SYNTHESIS_PROMPT_VERSION: u32 = 1;

/// As many worked examples as there are of each kind.
pub const MAX_SYNTHESIS_SHOTS: usize = 3;

/// What the writer of a solution is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// The right option, and the set's explanation where it has one.
    Gold,
    /// Nothing but the question.
    #[serde(rename = "self")]
    Nothing,
}

const GIVEN: &str = " You are also given the right answer, and where there is one a reference explanation to draw on. Write as if you had \
found the answer yourself: never say that an answer or an explanation was given.";

const LETTERED: &str = "Write the solution in three parts with an empty line between them. First say in your own words what is asked and \
which findings matter; do not copy the question. Then take every option in its order, one line each, and say why it fits or does not fit. \
Then sum up and come to the final choice. The last line is \"Answer: X\", where X is the letter of the right option; write nothing after it.";

const YES_NO_MAYBE: &str = "Write the solution in three parts with an empty line between them. First sum up the abstract and the question in \
your own words; do not copy them. Then reason from the findings to what they say about the question. Then come to a verdict. The last line is \
\"Answer: yes\", \"Answer: no\" or \"Answer: maybe\"; write nothing after it.";

const BLIND: &str = "You are given a medical exam question and a student's reasoning about it. Say which answer the reasoning leads to, whether \
or not you agree with it. Reply with one line of the form";

/// The conversation that asks for a solution, after `n_shots` worked examples ([`MAX_SYNTHESIS_SHOTS`] at most).
pub fn messages(question: &Question, told: Told, n_shots: usize) -> Vec<Message> {
    let (task, form) = match question.is_yes_no_maybe() {
        true => ("You write worked solutions to questions about medical abstracts.", YES_NO_MAYBE),
        false => ("You write worked solutions to medical exam questions.", LETTERED),
    };
    let given = if told == Told::Gold { GIVEN } else { "" };
    let mut messages = vec![message(Role::System, format!("{task}{given} {form}"))];
    let has_explanation = explanation(question).is_some();
    for (shot, solution) in shots(question).into_iter().take(n_shots) {
        let shot = if has_explanation { shot } else { Question { explanation: None, ..shot } };
        messages.push(message(Role::User, asked(&shot, told)));
        messages.push(message(Role::Assistant, solution));
    }
    messages.push(message(Role::User, asked(question, told)));
    messages
}

/// The conversation that asks a reader which answer `reasoning` leads to.
pub fn blind_messages(question: &Question, reasoning: &str) -> Vec<Message> {
    let forms = match question.is_yes_no_maybe() {
        true => "\"Answer: yes\", \"Answer: no\" or \"Answer: maybe\".",
        false => "\"Answer: X\", where X is the letter of an option.",
    };
    let user = format!("{}\n\nReasoning:\n{}\n\nWhich answer does it lead to?", shown(question), reasoning.trim());
    vec![message(Role::System, format!("{BLIND} {forms}")), message(Role::User, user)]
}

/// The question as a training row shows it: with its options, of PubMedQA without.
pub fn shown(question: &Question) -> String {
    let natural = ChoiceOrder::natural(question.choices.len());
    match question.is_yes_no_maybe() {
        true => aloe::head(question).trim_end().to_owned(),
        false => aloe::description(question, &natural),
    }
}

/// The published last line.
pub fn answer_line(question: &Question) -> String {
    match question.is_yes_no_maybe() {
        true => format!("Answer: {}", question.choices[question.key]),
        false => format!("Answer: {}", letter(question.key)),
    }
}

/// The set's explanation, where it says something.
pub fn explanation(question: &Question) -> Option<&str> {
    question.explanation.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

fn asked(question: &Question, told: Told) -> String {
    let mut text = shown(question);
    if told == Told::Gold {
        let right = question.choices[question.key].trim();
        text += &match question.is_yes_no_maybe() {
            true => format!("\n\nRight answer: {right}"),
            false => format!("\n\nRight answer: {}. {right}", letter(question.key)),
        };
        if let Some(explanation) = explanation(question) {
            text += &format!("\nReference explanation: {explanation}");
        }
    }
    text
}

/// A worked solution to one of the fixed worked examples, by its number there.
struct Solution {
    number: usize,
    asks: &'static str,
    /// On each option, the fifth for questions with five.
    options: [&'static str; 5],
    concludes: &'static str,
}

/// Worked examples of the kind of `question`: the fixed ones' questions, with the fixed answer as reference explanation, and a solution in
/// three parts.
fn shots(question: &Question) -> Vec<(Question, String)> {
    let solutions = if question.is_yes_no_maybe() { &READ } else { &SOLVED };
    let n_choices = if question.choices.len() == 5 { 5 } else { 4 };
    let mut like = question.clone();
    if !question.is_yes_no_maybe() {
        like.choices = vec!["x".to_owned(); n_choices];
    }
    let fixed = fixed_shots(Protocol::Aloe, &like, 5).expect("there are five fixed worked examples of each kind");
    solutions.iter().map(|solution| solved(fixed[solution.number].clone(), solution)).collect()
}

fn solved(shot: super::CotShot, solution: &Solution) -> (Question, String) {
    let reasoning = shot.response.rsplit_once("\nAnswer:").map_or(shot.response.as_str(), |(before, _)| before);
    let question = Question { explanation: Some(reasoning.to_owned()), ..shot.question };
    let middle: Vec<String> = match question.is_yes_no_maybe() {
        true => vec![solution.options[0].to_owned()],
        false => question
            .choices
            .iter()
            .zip(solution.options)
            .enumerate()
            .map(|(at, (choice, why))| format!("{}. {choice}: {why}", letter(at)))
            .collect(),
    };
    let parts = [solution.asks, &middle.join("\n"), solution.concludes];
    let text = format!("{}\n{}", parts.join("\n\n"), answer_line(&question));
    (question, text)
}

const SOLVED: [Solution; MAX_SYNTHESIS_SHOTS] = [
    Solution {
        number: 0,
        asks: "Four clotting factors made in the liver need a carboxyl group added before they can bind calcium. The question is which \
vitamin that reaction depends on.",
        options: [
            "it serves vision, epithelia and growth; the liver stores it, but clotting factors are made without it.",
            "it is a cofactor of methionine synthase and of methylmalonyl-CoA mutase; lack of it gives anaemia and neuropathy, not bleeding.",
            "it hydroxylates proline and lysine in collagen; lack of it makes vessels fragile, while the factors stay normal.",
            "its reduced form drives gamma-carboxylation of factors II, VII, IX and X, and warfarin acts by stopping its recycling.",
            "it protects membranes from oxidation; in large doses it even disturbs clotting.",
        ],
        concludes: "Only one of these vitamins takes part in gamma-carboxylation, and a drug that blocks its recycling prolongs the \
prothrombin time. That is vitamin K.",
    },
    Solution {
        number: 1,
        asks: "A young man is suddenly in pain and short of breath. Two signs on the right decide: no breath sounds, and a note that is \
more resonant than normal. What fills the chest there?",
        options: [
            "consolidated lung sounds dull and carries bronchial breathing, usually with fever and cough.",
            "air between lung and chest wall keeps sounds from the ear and makes the note hyperresonant; it comes on suddenly in young men.",
            "fluid also takes the breath sounds away, but the note over it is stony dull.",
            "fluid in the alveoli gives crackles on both sides and comes with heart disease or injury of the lung.",
            "widened bronchi give a long history of sputum and coarse crackles, no sudden silence of one side.",
        ],
        concludes: "Absent sounds leave air or fluid in the pleural space, and the resonant note leaves air alone. A pneumothorax explains \
both signs and the sudden onset.",
    },
    Solution {
        number: 3,
        asks: "The shaft of the humerus is broken in its middle, and the nerve that lies against the bone just there is looked for.",
        options: [
            "it winds round the surgical neck, well above this fracture.",
            "it runs with the brachial artery on the inner side and is in danger above the elbow.",
            "it lies in the spiral groove on the back of the shaft, against the bone; its loss gives wrist drop.",
            "it passes behind the medial epicondyle and is hurt at the elbow.",
            "it goes through the coracobrachialis and then between muscles, away from the bone.",
        ],
        concludes: "At mid-shaft only the nerve in the spiral groove touches the bone, so the fracture most likely hurts the radial nerve.",
    },
];

const READ: [Solution; MAX_SYNTHESIS_SHOTS] = [
    Solution {
        number: 0,
        asks: "Some 1,200 outpatients either got a text message before their visit or got nothing new, and the share who came was counted. \
The question is whether the messages help people to turn up.",
        options: [
            "Patients were assigned to the two groups, so other differences between them are unlikely to explain the result. Nine more of a \
hundred came with a reminder, and the interval from 5 to 13 does not reach zero: chance alone would hardly give that.",
            "",
            "",
            "",
            "",
        ],
        concludes: "The study is a comparison of assigned groups with a clear difference in one direction, so reminders improve attendance.",
    },
    Solution {
        number: 1,
        asks: "In 140 children with pain in the abdomen a blood marker was measured, to see whether it tells those with appendicitis from \
the others.",
        options: [
            "A useful marker must differ between the two groups. Here the averages are almost the same, and the difference is well within \
chance. The area under the curve of 0.52 says the same in another way: a coin would sort the children nearly as well.",
            "",
            "",
            "",
            "",
        ],
        concludes: "Neither figure gives the marker any power to tell the groups apart, so it is of no use here.",
    },
    Solution {
        number: 2,
        asks: "Patients with a new hip were compared before and after a ward began physiotherapy early; the question is whether that \
shortens their stay.",
        options: [
            "The typical stay became a day shorter, which over all patients may still be chance. Younger patients gained for certain, older \
ones did not. And since the groups come from different times, other changes on the ward may lie behind it.",
            "",
            "",
            "",
            "",
        ],
        concludes: "The finding points to a benefit in some patients but is not sure over all, and the design leaves room for doubt. No firm \
answer is possible.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::{Reading, reasoned};

    fn question(choices: &[&str], explanation: Option<&str>) -> Question {
        Question {
            id: "q".into(),
            stem: "Which nerve is cut?".into(),
            context: None,
            choices: choices.iter().map(|text| (*text).to_owned()).collect(),
            key: 1,
            subject: String::new(),
            explanation: explanation.map(String::from),
            source: String::new(),
        }
    }

    fn told(question: &Question, told: Told) -> String {
        messages(question, told, 3).into_iter().map(|message| message.content).collect::<Vec<_>>().join("\n---\n")
    }

    #[test]
    fn the_right_answer_and_the_explanation_are_told_in_gold_mode_alone_and_only_where_there_are_some() {
        let with = question(&["Ulnar", "Median"], Some(" It lies in the middle. "));
        let gold = told(&with, Told::Gold);
        assert!(gold.ends_with("\n\nRight answer: B. Median\nReference explanation: It lies in the middle."), "{gold}");
        assert!(told(&with, Told::Nothing).ends_with("A. Ulnar\nB. Median"));
        assert!(!told(&with, Told::Nothing).contains("Right answer") && !told(&with, Told::Nothing).contains("given"));
        let without = told(&question(&["Ulnar", "Median"], Some("  ")), Told::Gold);
        assert!(without.contains("Right answer: B. Median") && !without.contains("Reference explanation"), "{without}");
    }

    /// The parser is the judge: every worked solution must be read as what it must say, for each number of options.
    #[test]
    fn every_worked_solution_ends_in_its_own_key_and_discusses_every_option() {
        let yes_no_maybe = question(&["yes", "no", "maybe"], Some("x"));
        for asked in [question(&["x"; 4], None), question(&["x"; 5], None), question(&["x"; 7], None), yes_no_maybe] {
            let shots = shots(&asked);
            assert_eq!(shots.len(), MAX_SYNTHESIS_SHOTS);
            for (shot, text) in shots {
                let order = ChoiceOrder::natural(shot.choices.len());
                let reading = Reading { text: &text, choices: &shot.choices, order: &order, is_cut: false };
                let (answer, reasoning) = reasoned(reading).unwrap();
                assert_eq!(answer, shot.key, "{text}");
                assert_eq!(text, format!("{reasoning}\n{}", answer_line(&shot)));
                assert_eq!(reasoning.split("\n\n").count(), 3, "{text}");
                let is_lettered = !shot.is_yes_no_maybe();
                let end = reasoning.rsplit("\n\n").next().unwrap_or_default().to_lowercase();
                assert!(!is_lettered || end.contains(&shot.choices[shot.key].to_lowercase()), "{text}");
                assert!(shot.choices.iter().all(|choice| !is_lettered || reasoning.contains(choice)), "{text}");
            }
        }
    }
}
