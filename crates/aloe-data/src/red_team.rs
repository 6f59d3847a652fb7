//! Stage-2 variants: each plain red-team pair wrapped in the attack styles that may be trained on. The sides stay as they are; the
//! id of the base question stays, so that a question and its variants fall on one side of every split.

use crate::{Body, Item, Rare, TurnTokenNames};
use aloe_task::red_team::{Style, TurnTokens};
use aloe_text::{Pair, Role};
use std::collections::HashSet;

/// The variants of all plain rows of `items` that name a question and stand for no style yet, in row and style order.
pub(crate) fn variants(items: &[Item], tokens: TurnTokenNames) -> Vec<Item> {
    let tokens = match tokens {
        TurnTokenNames::Llama3 => TurnTokens::Llama3,
        TurnTokenNames::Chatml => TurnTokens::ChatMl,
    };
    let there: HashSet<(&str, &str)> = items.iter().filter_map(|item| Some((item.group()?, item.style()?))).collect();
    let mut made = Vec::new();
    for item in items {
        let (Some(group), Body::Pair(pair)) = (item.group(), &item.body) else { continue };
        let is_plain = item.style().is_none_or(|style| style == Style::Baseline.name());
        let Some(question) = pair.prompt.last().filter(|message| message.role == Role::User).filter(|_| is_plain)
        else {
            continue;
        };
        for style in Style::ALL.into_iter().filter(|style| !style.is_held_out() && *style != Style::Baseline) {
            if there.contains(&(group, style.name())) {
                continue;
            }
            let mut prompt = pair.prompt[..pair.prompt.len() - 1].to_vec();
            prompt.extend(style.messages(&question.content, tokens));
            let pair = Pair { prompt, ..(**pair).clone() };
            let rare = Rare { style: Some(style.name().to_owned()), ..item.rare().clone() };
            made.push(Item {
                id: format!("{}/{}", item.id, style.name()),
                rare: rare.boxed(),
                body: Body::Pair(Box::new(pair)),
                ..item.clone()
            });
        }
    }
    made
}

/// Whether a row may be trained on: no held-out style.
pub(crate) fn is_held_out(item: &Item) -> bool {
    item.style().and_then(Style::parse).is_some_and(Style::is_held_out)
}
