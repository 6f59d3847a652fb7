//! Which questions are put in which styles: a fixed stratified sample, the same for every model with the same seed.
//!
//! Strata are topic x style; they are visited in a seeded order, one question from each a round, until enough prompts stand.
//! An injection prompt is always taken in both renderings, of the same question, so that these are paired.

use aloe_record::CounterRng;
use aloe_task::red_team::{RedTeamQuestion, RedTeamSplit, Rendering, Style};

/// One prompt of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedPrompt {
    /// Index into the questions.
    pub question: usize,
    /// The style.
    pub style: Style,
    /// How forged tokens are encoded.
    pub rendering: Rendering,
}

/// The sample: `n_prompts` prompts in all, plain and forged together, from questions of `split` only. Fewer where the questions run
/// out, or where one place is left and only injections, which take two, could fill it.
pub fn stratified(
    questions: &[RedTeamQuestion],
    split: RedTeamSplit,
    styles: &[Style],
    n_prompts: usize,
    seed: u64,
) -> Vec<PlannedPrompt> {
    let mut strata = strata(questions, split, styles, seed);
    let mut planned = Vec::new();
    loop {
        let n_before = planned.len();
        for (style, left) in &mut strata {
            let renderings = style.renderings();
            if planned.len() + renderings.len() > n_prompts {
                continue;
            }
            if let Some(question) = left.pop() {
                let prompts = renderings.iter();
                planned.extend(prompts.map(|&rendering| PlannedPrompt { question, style: *style, rendering }));
            }
        }
        if planned.len() == n_before {
            break;
        }
    }
    planned.sort_by_key(|prompt| (prompt.question, prompt.style, prompt.rendering));
    planned
}

/// Each stratum's style and its question indices, both in seeded order.
fn strata(questions: &[RedTeamQuestion], split: RedTeamSplit, styles: &[Style], seed: u64) -> Vec<(Style, Vec<usize>)> {
    let mut topics: Vec<&str> = questions.iter().map(|question| question.topic.as_str()).collect();
    topics.sort_unstable();
    topics.dedup();
    let mut strata = Vec::new();
    for (at, topic) in topics.iter().enumerate() {
        for &style in styles {
            let belongs = |q: &RedTeamQuestion| q.topic == *topic && q.split == split;
            let mut members: Vec<usize> = (0..questions.len()).filter(|&i| belongs(&questions[i])).collect();
            let purpose = format!("red-team/{}", style.name());
            CounterRng::new(seed, &purpose, at as u64).shuffle(&mut members);
            strata.push((style, members));
        }
    }
    strata.retain(|(_, members)| !members.is_empty());
    CounterRng::new(seed, "red-team/strata", 0).shuffle(&mut strata);
    strata
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn questions() -> Vec<RedTeamQuestion> {
        (0..42)
            .map(|i| RedTeamQuestion {
                id: format!("q{i}"),
                topic: format!("topic {}", i % 7),
                question: format!("question {i}?"),
                split: if i % 3 == 0 { RedTeamSplit::Train } else { RedTeamSplit::Test },
                source: String::new(),
            })
            .collect()
    }

    #[test]
    fn the_sample_covers_every_stratum_before_any_twice_and_repeats() {
        let questions = questions();
        let planned = stratified(&questions, RedTeamSplit::Test, &Style::ALL, 120, 5);
        assert_eq!(planned.len(), 120);
        assert_eq!(planned, stratified(&questions, RedTeamSplit::Test, &Style::ALL, 120, 5));
        assert_ne!(planned, stratified(&questions, RedTeamSplit::Test, &Style::ALL, 120, 6));
        let mut cells: BTreeMap<(&str, Style), usize> = BTreeMap::new();
        for prompt in planned.iter().filter(|prompt| prompt.rendering == Rendering::PlainText) {
            *cells.entry((&questions[prompt.question].topic, prompt.style)).or_default() += 1;
        }
        assert_eq!(cells.len(), 7 * 13);
        assert!(cells.values().all(|&n| n <= 2));
    }

    #[test]
    fn no_trained_question_is_sampled_and_renderings_of_an_injection_are_paired() {
        let questions = questions();
        let planned = stratified(&questions, RedTeamSplit::Test, &Style::ALL, 120, 5);
        assert!(planned.iter().all(|prompt| questions[prompt.question].split == RedTeamSplit::Test));
        let to_train_on = stratified(&questions, RedTeamSplit::Train, &Style::ALL, 120, 5);
        assert!(!to_train_on.is_empty());
        assert!(to_train_on.iter().all(|prompt| questions[prompt.question].split == RedTeamSplit::Train));
        for prompt in planned.iter().filter(|prompt| prompt.rendering == Rendering::ForgedTokens) {
            let twin = PlannedPrompt { rendering: Rendering::PlainText, ..prompt.clone() };
            assert!(planned.contains(&twin));
        }
    }

    /// An injection takes two places; the number asked for is met all the same, with plain and forged prompts together.
    #[test]
    fn the_number_of_prompts_is_the_total_of_plain_and_forged_ones_whatever_the_last_style() {
        let questions = questions();
        for n_prompts in [2, 3, 17, 90, 119, 120, 121] {
            for seed in 0..20 {
                assert_eq!(
                    stratified(&questions, RedTeamSplit::Test, &Style::ALL, n_prompts, seed).len(),
                    n_prompts,
                    "seed {seed}"
                );
            }
        }
        assert_eq!(stratified(&questions, RedTeamSplit::Test, &[Style::Injection1], 5, 0).len(), 4);
    }

    #[test]
    fn a_sample_larger_than_the_set_takes_everything_once() {
        let questions = questions();
        let planned = stratified(&questions, RedTeamSplit::Test, &Style::ALL, 100_000, 5);
        assert_eq!(planned.len(), 28 * 16);
    }
}
