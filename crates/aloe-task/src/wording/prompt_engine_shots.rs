//! Five worked examples for each kind of question, written by us and not clinically reviewed. They stand where
//! prompt_engine has promptbase's; the set is fixed, so that SC-CoT runs can be compared with each other.
//!
//! The yes/no/maybe examples show their options in different orders, as prompt_engine's do.

use super::CotShot;
use crate::{ChoiceOrder, Question};

struct Shot {
    stem: &'static str,
    context: Option<&'static str>,
    choices: [&'static str; 5],
    key: usize,
    order: [usize; 3],
    reasoning: &'static str,
}

/// The examples for questions like `question`; none for a number of options no protocol knows.
pub(super) fn for_question(question: &Question) -> Vec<CotShot> {
    match question.choices.len() {
        3 if question.is_yes_no_maybe() => YES_NO_MAYBE.iter().map(yes_no_maybe).collect(),
        n_choices @ (4 | 5) => LETTERED.iter().map(|shot| lettered(shot, n_choices)).collect(),
        _ => Vec::new(),
    }
}

fn lettered(shot: &Shot, n_choices: usize) -> CotShot {
    build(
        shot,
        shot.choices[..n_choices].iter().map(|text| text.to_string()).collect(),
        ChoiceOrder::natural(n_choices),
    )
}

fn yes_no_maybe(shot: &Shot) -> CotShot {
    let order = ChoiceOrder::from_indices(shot.order.to_vec()).expect("the written orders are permutations");
    build(shot, ["yes", "no", "maybe"].map(String::from).to_vec(), order)
}

fn build(shot: &Shot, choices: Vec<String>, order: ChoiceOrder) -> CotShot {
    let response = format!("{}\nAnswer: [{}]", shot.reasoning, super::letter(order.shown(shot.key)));
    let question = Question {
        id: "worked example".into(),
        stem: shot.stem.into(),
        context: shot.context.map(String::from),
        choices,
        key: shot.key,
        subject: String::new(),
        explanation: None,
        source: "aloe-task/wording/prompt_engine_shots.rs".into(),
    };
    CotShot { question, order, response }
}

/// The fifth option is shown in five-option sets only and is never right.
const LETTERED: [Shot; 5] = [
    Shot {
        stem: "Which vitamin is needed to carboxylate clotting factors II, VII, IX and X?",
        context: None,
        choices: ["Vitamin A", "Vitamin B12", "Vitamin C", "Vitamin K", "Vitamin E"],
        key: 3,
        order: [0, 1, 2],
        reasoning: "The question is about the cofactor of gamma-carboxylation in the liver. Reduced vitamin K drives the \
enzyme that carboxylates factors II, VII, IX and X; warfarin works by stopping its recycling. Vitamins A, B12 and C have no \
part in this step.",
    },
    Shot {
        stem: "A 24-year-old man has sudden chest pain and shortness of breath. Breath sounds are absent on the right and \
percussion there is hyperresonant. What is the most likely diagnosis?",
        context: None,
        choices: ["Lobar pneumonia", "Pneumothorax", "Pleural effusion", "Pulmonary oedema", "Bronchiectasis"],
        key: 1,
        order: [0, 1, 2],
        reasoning: "Absent breath sounds with a hyperresonant note mean air in the pleural space. Pneumonia and effusion make \
percussion dull, and pulmonary oedema gives crackles on both sides. Sudden onset in a young man fits pneumothorax.",
    },
    Shot {
        stem: "Two parents are both carriers of an autosomal recessive disease. What is the chance that their next child is \
affected?",
        context: None,
        choices: ["1 in 4", "1 in 2", "3 in 4", "1 in 8", "1 in 16"],
        key: 0,
        order: [0, 1, 2],
        reasoning: "Each carrier passes the altered allele on with probability one half. An affected child needs it from both \
parents: one half times one half is one quarter. Earlier children do not change this.",
    },
    Shot {
        stem: "Which nerve is most likely injured by a fracture of the middle of the humeral shaft?",
        context: None,
        choices: ["Axillary nerve", "Median nerve", "Radial nerve", "Ulnar nerve", "Musculocutaneous nerve"],
        key: 2,
        order: [0, 1, 2],
        reasoning: "The nerve that lies against the middle of the shaft is asked for. The radial nerve runs in the spiral \
groove there; its loss gives wrist drop. The axillary nerve winds round the surgical neck, the median and ulnar nerves are at \
risk near the elbow.",
    },
    Shot {
        stem: "A patient with type 2 diabetes has an estimated glomerular filtration rate of 20 mL/min. Which drug should be \
stopped because of the risk of lactic acidosis?",
        context: None,
        choices: ["Insulin glargine", "Metformin", "Linagliptin", "Atorvastatin", "Amlodipine"],
        key: 1,
        order: [0, 1, 2],
        reasoning: "The drug must be cleared by the kidney and raise lactate. Metformin is excreted unchanged in the urine and \
is contraindicated below 30 mL/min for this reason. Insulin and linagliptin can be continued, and atorvastatin is not linked \
to lactate.",
    },
];

const YES_NO_MAYBE: [Shot; 5] = [
    Shot {
        stem: "Does a reminder by text message improve attendance at outpatient visits?",
        context: Some(
            "Missed visits waste clinic time. We assigned 1,200 patients to a text reminder or to usual care.\nAttendance was \
88% with reminders and 79% without (difference 9 points, 95% CI 5 to 13).",
        ),
        choices: [""; 5],
        key: 0,
        order: [1, 0, 2],
        reasoning: "The abstract reports a randomised comparison of reminders with usual care. Attendance rose by nine points \
and the interval excludes zero, so the effect is clear.",
    },
    Shot {
        stem: "Is serum marker X useful for diagnosing appendicitis in children?",
        context: Some(
            "We measured marker X in 140 children with abdominal pain.\nMean values were 4.1 in those with appendicitis and \
4.0 in those without (P = 0.81). The area under the curve was 0.52.",
        ),
        choices: [""; 5],
        key: 1,
        order: [0, 1, 2],
        reasoning: "The abstract compares the marker between children with and without appendicitis. The means are alike and \
the area under the curve is near one half, which is chance. The marker does not help.",
    },
    Shot {
        stem: "Does early physiotherapy shorten hospital stay after hip replacement?",
        context: Some(
            "We compared stays of 60 patients before and 58 after a change to early physiotherapy.\nMedian stay fell from 6 to \
5 days (P = 0.07). In patients under 70 the fall was significant, in older ones it was not.",
        ),
        choices: [""; 5],
        key: 2,
        order: [2, 0, 1],
        reasoning: "The abstract shows a shorter stay that is not significant over all patients, in a before-and-after design. \
An effect appears in one subgroup only. The evidence points both ways.",
    },
    Shot {
        stem: "Can general practitioners read spirometry as reliably as lung specialists?",
        context: Some(
            "Forty practitioners and ten specialists read the same 100 spirometry tests after a one-day course.\nAgreement \
with the reference was 91% and 93% (kappa 0.84 and 0.86); the prespecified margin of equivalence was met.",
        ),
        choices: [""; 5],
        key: 0,
        order: [2, 1, 0],
        reasoning: "Both groups read the same tests. Their agreement with the reference differs by two points and equivalence \
was shown within a margin set before. So they can.",
    },
    Shot {
        stem: "Is body mass index related to healing time of wrist fractures?",
        context: Some(
            "Healing time was recorded in 310 adults with a distal radius fracture.\nThere was no correlation with body mass \
index (r = 0.02, P = 0.73), also after adjustment for age and smoking.",
        ),
        choices: [""; 5],
        key: 1,
        order: [1, 2, 0],
        reasoning: "The abstract looks for a relation of two measures. The correlation is near zero and stays so after \
adjustment, in a fair number of patients. No relation was found.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::{Reading, extract};
    use crate::{Answer, AnswerRule};

    #[test]
    fn every_worked_example_ends_in_its_own_gold_answer_under_both_rules() {
        let all = LETTERED.iter().flat_map(|shot| [lettered(shot, 4), lettered(shot, 5)]);
        for shot in all.chain(YES_NO_MAYBE.iter().map(yes_no_maybe)) {
            for rule in [AnswerRule::Aloe, AnswerRule::PromptEngine] {
                let (text, choices, order) = (shot.response.as_str(), &shot.question.choices[..], &shot.order);
                let answer = extract(Reading { text, choices, order, is_cut: false }, rule).answer;
                assert_eq!(answer, Answer::Choice(shot.question.key), "{}", shot.response);
            }
            assert!(shot.question.checked().is_ok());
        }
    }
}
