//! Questions with known answers, by which a change of weights behind an address is told. A list of models names what a server
//! loaded, and a server that comes back after an outage may name the same and hold something else.
//!
//! The same questions are put to each server at the start, when it comes back and after its answers (`watch` says when). Where the
//! server gives the log-probabilities of a prompt, those of one prompt are held against the first ones; else the most probable
//! continuations of three prompts; of an embedding server one vector. Kernels and batches move log-probabilities a little, so answers
//! count as the same within the distance that two implementations of the same weights keep. Weights that lie closer are not told
//! apart.

use super::answer::{NO_TEXT, TextOf, chatted, choices, completed};
use super::prompt_logps::Form;
use super::vectors;
use crate::Result;
use aloe_text::{Message, Role, TextModel};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Log-probabilities of one token by two servers with the same weights differ by less than this, in nat: measured between
/// vLLM in bf16 and f32 are 0.18, between bf16 and f32 of one implementation 0.30.
const SAME_MAX_NAT: f64 = 0.5;

/// And their mean absolute difference over the tokens by less than this: measured are 0.05 and 0.075.
const SAME_MEAN_NAT: f64 = 0.1;

/// The least cosine of two embeddings of one text by the same weights; bf16 and 8-bit weights keep above 0.999.
const SAME_COSINE: f64 = 0.99;

/// The seed of every question drawn here, which changes nothing in a greedy answer and tells a server's owner what asked.
pub(super) const SEED: u32 = 20_261_128;

/// The prompt whose log-probabilities are asked for.
const SCORED: &str = "The patient has a fever and a cough. A chest x-ray shows consolidation of the right lower lobe, and sputum culture \
                      grows Streptococcus pneumoniae. She is treated with amoxicillin for seven days and feels well.";

/// The prompts that are continued, and how far.
const DRAWN: [&str; 3] = [
    "The patient has a fever and a cough. The most likely diagnosis is",
    "Metformin lowers blood glucose because it",
    "Once upon a time there was a doctor who",
];
const MAX_TOKENS: usize = 8;

/// Questions put to a server, always all of them.
pub(super) struct Canary {
    pub(super) questions: Vec<Question>,
}

/// One of them.
pub(super) struct Question {
    pub(super) path: &'static str,
    pub(super) body: Value,
    read: Read,
}

/// What is read from the answer.
enum Read {
    /// The log-probabilities of the prompt.
    Prompt { form: Form, ids: Vec<u32>, words: Vec<Option<String>> },
    /// A continuation, with its log-probabilities where the server tells them.
    Drawn { text_of: TextOf },
    /// An embedding.
    Vector,
}

/// A server's answer to one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// Log-probabilities of the prompt from its second token on.
    Prompt(Vec<f64>),
    /// A text, and (token, log-probability) where told.
    Drawn(String, Vec<(String, f64)>),
    /// A unit vector.
    Vector(Vec<f32>),
}

/// An endpoint's first answers to the canary, to be kept beside its answers: whoever goes on with those holds the server against them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryAnswers(pub(super) Vec<Answer>);

impl CanaryAnswers {
    /// How far the answers `now` lie from these, in words, where that is farther than those of the same weights do.
    pub fn difference(&self, now: &Self) -> Option<String> {
        difference(&self.0, &now.0)
    }

    /// What no working model answers: no text to any of the questions, or a log-probability that is none.
    pub(super) fn fault(&self) -> Option<String> {
        let texts =
            || self.0.iter().filter_map(|answer| if let Answer::Drawn(text, _) = answer { Some(text) } else { None });
        if texts().count() > 0 && texts().all(|text| text.trim().is_empty()) {
            return Some("its greedy answers to all of the known prompts are empty".to_owned());
        }
        let logps = self.0.iter().flat_map(|answer| match answer {
            Answer::Prompt(logps) => logps.clone(),
            Answer::Drawn(_, logps) => logps.iter().map(|(_, logp)| *logp).collect(),
            Answer::Vector(_) => Vec::new(),
        });
        // Rounding may leave one a hair above 0.
        let wrong = logps.into_iter().find(|logp| !logp.is_finite() || *logp > 1e-3);
        wrong.map(|logp| format!("it answers known prompts with a log-probability of {logp}"))
    }
}

impl Canary {
    /// The log-probabilities of one prompt; also the probe for what a server can do.
    pub(super) fn scored(model: &str, form: Form, text: &TextModel) -> Result<Self> {
        let ids = text.encode_prompt_text(SCORED)?;
        let words = ids.iter().map(|&id| text.tokenizer.token(id)).collect();
        let mut body = form.body(model, &ids);
        body["seed"] = json!(SEED);
        Ok(Self::of(vec![Question { path: "/completions", body, read: Read::Prompt { form, ids, words } }]))
    }

    /// Greedy continuations of three prompts, by our token ids.
    pub(super) fn drawn(model: &str, text: &TextModel, with_logprobs: bool) -> Result<Self> {
        let one = |prompt: &str| -> Result<Question> {
            let mut body = greedy(model);
            body["prompt"] = json!(text.encode_prompt_text(prompt)?);
            if with_logprobs {
                body["logprobs"] = json!(1);
            }
            Ok(Question { path: "/completions", body, read: Read::Drawn { text_of: completed } })
        };
        Ok(Self::of(DRAWN.iter().map(|prompt| one(prompt)).collect::<Result<_>>()?))
    }

    /// As `drawn`, by chat messages that the server renders.
    pub(super) fn chat(model: &str, with_logprobs: bool) -> Self {
        let one = |prompt: &&str| {
            let mut body = greedy(model);
            body["messages"] = json!([Message { role: Role::User, content: (*prompt).to_owned() }]);
            if with_logprobs {
                body["logprobs"] = json!(true);
            }
            Question { path: "/chat/completions", body, read: Read::Drawn { text_of: chatted } }
        };
        Self::of(DRAWN.iter().map(one).collect())
    }

    /// The embedding of one text.
    pub(super) fn vector(model: &str) -> Self {
        let body = json!({"model": model, "input": [SCORED], "encoding_format": "float"});
        Self::of(vec![Question { path: "/embeddings", body, read: Read::Vector }])
    }

    fn of(questions: Vec<Question>) -> Self {
        Self { questions }
    }
}

fn greedy(model: &str) -> Value {
    json!({"model": model, "n": 1, "max_tokens": MAX_TOKENS, "temperature": 0.0, "seed": SEED})
}

impl Question {
    /// The answer, or what is wrong with it.
    pub(super) fn read(&self, answer: &Value) -> Result<Answer, String> {
        match &self.read {
            Read::Prompt { form, ids, words } => {
                let word = |id| ids.iter().position(|&known| known == id).and_then(|at| words[at].clone());
                let scored = form.read(answer, ids, word)?;
                Ok(Answer::Prompt(scored.into_iter().map(|(logp, _)| logp).collect()))
            }
            Read::Drawn { text_of } => {
                let choice = &choices(answer, 1)?[0];
                // A model that reasons says nothing else in so few tokens: what tells it from another stands there.
                let said = text_of(choice).ok_or(NO_TEXT)?;
                Ok(Answer::Drawn(said.reasoning.to_owned() + said.text, drawn_logps(&choice["logprobs"])))
            }
            Read::Vector => {
                let mut vectors = vectors::read(answer, 1, None)?;
                Ok(Answer::Vector(vectors.swap_remove(0)))
            }
        }
    }
}

/// Tokens with their log-probabilities: OpenAI's completions have two lists (vLLM), its chat one of objects (llama-server in both).
fn drawn_logps(logprobs: &Value) -> Vec<(String, f64)> {
    let pair = |token: &Value, logp: &Value| Some((token.as_str()?.to_owned(), logp.as_f64()?));
    let found: Option<Vec<_>> = match (&logprobs["content"], &logprobs["tokens"], &logprobs["token_logprobs"]) {
        (Value::Array(content), _, _) => content.iter().map(|one| pair(&one["token"], &one["logprob"])).collect(),
        (_, Value::Array(tokens), Value::Array(logps)) => tokens.iter().zip(logps).map(|(a, b)| pair(a, b)).collect(),
        _ => None,
    };
    found.unwrap_or_default()
}

/// How far the answers `now` lie from the `first` ones where that is farther than the same weights do.
pub(super) fn difference(first: &[Answer], now: &[Answer]) -> Option<String> {
    let (mut differences, mut n_other_texts, mut least_cosine) = (Vec::new(), 0, 1.0f64);
    for pair in first.iter().zip(now) {
        match pair {
            (Answer::Prompt(a), Answer::Prompt(b)) if a.len() == b.len() => {
                differences.extend(a.iter().zip(b).map(|(a, b)| (a - b).abs()));
            }
            (Answer::Drawn(text, a), Answer::Drawn(other, b)) => {
                n_other_texts += usize::from(text != other && !part_at_a_tie(a, b));
                differences.extend(until_they_part(a, b));
            }
            (Answer::Vector(a), Answer::Vector(b)) if a.len() == b.len() => {
                let cosine = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                least_cosine = least_cosine.min(cosine);
            }
            _ => return Some("answers of another kind or length".to_owned()),
        }
    }
    let max = differences.iter().copied().fold(0.0, f64::max);
    let mean = differences.iter().sum::<f64>() / (differences.len() as f64).max(1.0);
    if max > SAME_MAX_NAT || mean > SAME_MEAN_NAT {
        let what = format!("log-probabilities of one prompt differ by up to {max:.2} nat (mean {mean:.2})");
        return Some(what);
    }
    if 2 * n_other_texts > first.len() {
        return Some(format!("{n_other_texts} of {} greedy answers differ", first.len()));
    }
    let is_far = least_cosine < SAME_COSINE;
    is_far.then(|| format!("embeddings of one text have a cosine of {least_cosine:.3}"))
}

/// The differences of greedy log-probabilities up to the first token that is another one. The most probable of each distribution are
/// compared there too: they move no more than the distribution does, whichever token wins a tie.
fn until_they_part<'a>(a: &'a [(String, f64)], b: &'a [(String, f64)]) -> impl Iterator<Item = f64> + 'a {
    let n_same = a.iter().zip(b).take_while(|(a, b)| a.0 == b.0).count();
    a.iter().zip(b).take(n_same + 1).map(|(a, b)| (a.1 - b.1).abs())
}

/// Whether two greedy answers that begin alike part at a token where either could have been the most probable: then the texts after it say nothing
/// of the weights. A server that computes others' requests in the same batch rounds otherwise, and one of little confidence meets such a tie in most
/// of its answers. Of two tokens that tie, rounding makes now the one and now the other the most probable, of nearly the same log-probability.
fn part_at_a_tie(a: &[(String, f64)], b: &[(String, f64)]) -> bool {
    // What the one token left of its distribution, moved as far as the same weights move it, is room enough for the other.
    let has_room = |most: f64, other: f64| other.exp() <= (1.0 - most.exp()) * SAME_MAX_NAT.exp();
    let is_near = |a: f64, b: f64| (a - b).abs() <= SAME_MEAN_NAT;
    let parting = a.iter().zip(b).enumerate().find(|(_, (a, b))| a.0 != b.0);
    parting.is_some_and(|(at, (a, b))| at > 0 && is_near(a.1, b.1) && has_room(a.1, b.1) && has_room(b.1, a.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand. Of 4 tokens: one by 0.45, mean 0.1125; one by 0.35, mean 0.0875; one by 0.51.
    #[test]
    fn log_probabilities_count_as_the_same_within_half_a_nat_and_a_tenth_in_the_mean() {
        let first = [Answer::Prompt(vec![-1.0; 4])];
        let check = |at: f64| difference(&first, &[Answer::Prompt(vec![-1.0, at, -1.0, -1.0])]);
        assert_eq!(check(-1.35), None);
        assert_eq!(check(-1.45).unwrap(), "log-probabilities of one prompt differ by up to 0.45 nat (mean 0.11)");
        assert!(check(-0.49).unwrap().contains("0.51 nat"));
        assert!(difference(&first, &[Answer::Vector(vec![1.0])]).is_some());
    }

    #[test]
    fn one_of_three_greedy_texts_may_differ_and_tokens_after_a_tie_are_not_compared() {
        let text = |text: &str, logps: &[(&str, f64)]| {
            Answer::Drawn(text.into(), logps.iter().map(|&(token, logp)| (token.to_owned(), logp)).collect())
        };
        let first = [text("a", &[]), text("b", &[]), text("c", &[])];
        assert_eq!(difference(&first, &[text("a", &[]), text("x", &[]), text("c", &[])]), None);
        let two = difference(&first, &[text("y", &[]), text("x", &[]), text("c", &[])]);
        assert_eq!(two.unwrap(), "2 of 3 greedy answers differ");
        // A tie of -0.70 and -0.71, after which another text follows: 0.01 in the mean of two, whatever comes later.
        let (one, other) =
            ([("the", -0.1), ("flu", -0.70), (".", -0.1)], [("the", -0.1), ("cold", -0.71), ("!", -3.0)]);
        let whole = [text("a", &[]), text("the flu.", &one), text("c", &[])];
        assert_eq!(difference(&whole, &[text("a", &[]), text("the cold!", &other), text("c", &[])]), None);
        let far = [text("a", &[]), text("the flu.", &[("the", -0.9)]), text("c", &[])];
        assert!(difference(&whole, &far).unwrap().contains("0.80 nat"));
    }

    /// By hand: of 0.5 a half is left, which moved by half a nat is 0.82, room for another 0.5; of 0.9 a tenth is left, room for 0.16. Where no
    /// log-probabilities are told, and where one text ends earlier, a text counts as another one.
    #[test]
    fn texts_that_part_at_a_tie_are_not_other_texts_and_those_that_part_elsewhere_are() {
        let texts = |token: &str, logp: f64| {
            let one = |at: usize| {
                let logps = vec![("so".to_owned(), -0.2), (token.to_owned(), logp)];
                Answer::Drawn(format!("so {token} {at}"), logps)
            };
            (0..3).map(one).collect::<Vec<_>>()
        };
        let (half, most) = (0.5f64.ln(), 0.9f64.ln());
        assert_eq!(difference(&texts("flu", half), &texts("cold", half - 0.02)), None);
        assert_eq!(difference(&texts("flu", -2.0), &texts("cold", -2.05)), None);
        let other = Some("3 of 3 greedy answers differ".to_owned());
        assert_eq!(difference(&texts("flu", most), &texts("cold", most)), other);
        // Their mean over two tokens is within a tenth, but rounding does not do that to a tie.
        assert_eq!(difference(&texts("flu", -1.0), &texts("cold", -1.15)), other);
        let at_once = |text: &str| vec![Answer::Drawn(text.to_owned(), vec![(text.to_owned(), half)]); 3];
        assert_eq!(difference(&at_once("flu"), &at_once("cold")), other);
        assert_eq!(difference(&texts("flu", half), &texts("flu", half)), None);
        let untold = |text: &str| vec![Answer::Drawn(text.to_owned(), Vec::new()); 3];
        assert_eq!(difference(&untold("flu"), &untold("cold")), other);
        let shorter = |logps: usize| {
            let logps = vec![("flu".to_owned(), half); logps];
            vec![Answer::Drawn(format!("flu {}", logps.len()), logps); 3]
        };
        assert_eq!(difference(&shorter(2), &shorter(1)), other);
    }

    #[test]
    fn a_server_that_tells_reasoning_apart_is_told_from_another_by_it() {
        let read = |reasoning: &str| {
            let message = json!({"content": null, "reasoning_content": reasoning});
            let answer = json!({"choices": [{"index": 0, "message": message, "finish_reason": "length"}]});
            Canary::chat("m", false).questions.iter().map(|one| one.read(&answer).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(difference(&read("Okay, so"), &read("Okay, so")), None);
        assert_eq!(difference(&read("Okay, so"), &read("The user")).unwrap(), "3 of 3 greedy answers differ");
        assert_eq!(CanaryAnswers(read("Okay, so")).fault(), None);
    }

    #[test]
    fn an_answer_without_any_text_or_with_a_log_probability_that_is_none_is_a_fault() {
        let of = |answers: &[(&str, f64)]| {
            let drawn = |(text, logp): &(&str, f64)| Answer::Drawn((*text).into(), vec![("a".into(), *logp)]);
            CanaryAnswers(answers.iter().map(drawn).collect()).fault()
        };
        assert_eq!(of(&[("", -1.0), (" yes", 0.0)]), None);
        assert!(of(&[("", -1.0), (" \n", -1.0)]).unwrap().contains("empty"));
        assert!(of(&[("yes", -1.0), ("no", 0.5)]).unwrap().contains("0.5"));
        assert!(of(&[("yes", f64::NAN)]).unwrap().contains("NaN"));
    }

    /// Unit vectors: (0.6, 0.8) and (0.8, 0.6) have the cosine 0.96.
    #[test]
    fn embeddings_count_as_the_same_by_their_cosine() {
        let vector = |a: f32, b: f32| [Answer::Vector(vec![a, b])];
        assert_eq!(difference(&vector(0.6, 0.8), &vector(0.6, 0.8)), None);
        assert_eq!(
            difference(&vector(0.6, 0.8), &vector(0.8, 0.6)).unwrap(),
            "embeddings of one text have a cosine of 0.960"
        );
    }
}
