//! Each question's medical specialty, told by a model: one of the 35 fields of HPAI-BSC/medical-fields (`medical_fields_35_v2`), by its
//! protocol: reasoning that ends in `The category is: X`, the last one counts, temperature 0.7, top_k 50, top_p 0.9, 500 tokens. The prompt's
//! words are ours.

use crate::strategy::handed;
use crate::{Result, Sample};
use aloe_engine::{Engine, GenerateRequest, Prompt, Sampling};
use aloe_record::{Cancel, Progress};
use aloe_task::Question;
use aloe_text::Message;

/// The fields, and no other answer.
pub const FIELDS: [&str; 35] = [
    "Cardiology",
    "Hematology",
    "Oncology",
    "Endocrinology",
    "Respiratory",
    "Allergy",
    "Dermatology",
    "Nephrology",
    "Gastroenterology",
    "Rheumatology",
    "Otorhinolaryngology",
    "Anesthesiology",
    "Biochemistry",
    "Pharmacology",
    "Psychiatry",
    "Microbiology",
    "Physiology",
    "Pathology",
    "Obstetrics",
    "Gynecology",
    "Surgery",
    "Emergency",
    "Orthopedics",
    "Neurology",
    "Urology",
    "Anatomy",
    "Genetics",
    "Radiology",
    "Ophthalmology",
    "Odontology",
    "Pediatrics",
    "Geriatrics",
    "Nursing",
    "Chemistry",
    "Psychology",
];

/// What stands for a question that the model puts into no field.
pub const NO_FIELD: &str = "None";

/// Worked examples of our own.
const SHOTS: [(&str, &str); 3] = [
    (
        "Which valve is most often affected by rheumatic fever?",
        "Rheumatic fever damages heart valves, and diseases of the heart belong to Cardiology. The category is: Cardiology",
    ),
    (
        "Which enzyme limits the rate of glycolysis?",
        "Glycolysis is a metabolic pathway, and its enzymes are a matter of Biochemistry. The category is: Biochemistry",
    ),
    (
        "How many days of leave may a resident take in a year?",
        "This is about employment and not about a field of medicine. The category is: None",
    ),
];

fn messages(question: &Question) -> Vec<Message> {
    let system = format!(
        "You sort medical exam questions by specialty. The specialties are: {}. Say in a sentence or two what the question is about and \
         which specialty that belongs to. If none fits, the category is None. End with \"The category is: X\", where X is one word from \
         that list.",
        FIELDS.join(", ")
    );
    let shots = SHOTS.iter().flat_map(|(asked, said)| [Message::user(*asked), Message::assistant(*said)]);
    [Message::system(system)].into_iter().chain(shots).chain([Message::user(question.stem.trim())]).collect()
}

/// The last category that a reply names; [`NO_FIELD`] where it names none of the fields.
pub fn read(reply: &str) -> &'static str {
    const MARK: &str = "The category is: ";
    let word = reply.rmatch_indices(MARK).next().map(|(at, mark)| {
        let tail = &reply[at + mark.len()..];
        tail.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default()
    });
    word.and_then(|word| FIELDS.into_iter().find(|field| *field == word)).unwrap_or(NO_FIELD)
}

/// Asks `engine` for the field of each question that `samples` has none of yet; `take` is given each place with its field as it comes. A
/// question that is refused has no field.
pub(crate) fn classify(
    engine: &Engine,
    task: &str,
    questions: &[Question],
    samples: &[Sample],
    seed: u64,
    cancel: &Cancel,
    mut take: impl FnMut(usize, &'static str) -> Result<()>,
) -> Result<()> {
    let missing: Vec<usize> = (0..questions.len()).filter(|&at| samples[at].specialty.is_empty()).collect();
    let sampling =
        Sampling { temperature: 0.7, top_k: 50, top_p: 0.9, max_new_tokens: 500, seed, ..Sampling::default() };
    let request = |&at: &usize| GenerateRequest {
        id: format!("specialty/{task}/{}", questions[at].id),
        prompt: Prompt::Messages(messages(&questions[at])),
        n: 1,
        sampling: sampling.clone(),
    };
    let requests: Vec<GenerateRequest> = missing.iter().map(request).collect();
    handed(
        |take| engine.generate_into(&requests, &Progress::silent(), cancel, take),
        |at, answered| match answered.ok().and_then(|result| result.completions.into_iter().next()) {
            Some(completion) => take(missing[at], read(&completion.text)),
            None => Ok(()),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_category_counts_and_only_a_known_field_is_one() {
        assert_eq!(read("It is the heart. The category is: Cardiology."), "Cardiology");
        assert_eq!(read("The category is: Oncology? No. The category is: Hematology"), "Hematology");
        assert_eq!(read("The category is: None"), NO_FIELD);
        assert_eq!(read("The category is: Cardio"), NO_FIELD);
        assert_eq!(read("cardiology"), NO_FIELD);
    }
}
