//! Instruction templates: a sentence before a row's question, drawn by the row's id, with the subject in its slot (Aloe-Beta, appendix
//! B.1: 16 sub-tasks and two groups for chains of thought). The wording is ours (`templates/built_in.txt`), or the recipe's.
//!
//! Refuses a template without its slot, a sub-task that no row can have, and a row without a subject: nothing is guessed.

use crate::{Body, Item};
use aloe_record::CounterRng;
use aloe_text::Role;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use xxhash_rust::xxh64::xxh64;

/// What the subject takes the place of.
pub(crate) const SLOT: &str = "<<DATASET SUBJECT>>";

/// Templates as a recipe names them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Templates {
    /// The built-in ones, or none.
    BuiltIn(bool),
    /// Lists by sub-task, each in place of the built-in list of that name.
    Own(BTreeMap<String, Vec<String>>),
}

impl Default for Templates {
    fn default() -> Self {
        Self::BuiltIn(false)
    }
}

static BUILT_IN: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    let mut lists: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in include_str!("templates/built_in.txt").lines().filter(|line| !line.is_empty()) {
        if let Some(head) = line.strip_prefix('[') {
            head.trim_end_matches(']').clone_into(&mut name);
        } else if !line.starts_with('#') {
            lists.entry(name.clone()).or_default().push(line.to_owned());
        }
    }
    lists
});

impl Templates {
    /// Whether rows get a template at all.
    pub(crate) fn is_on(&self) -> bool {
        *self != Self::BuiltIn(false)
    }

    /// The recipe's lists over the built-in ones.
    pub(crate) fn lists(&self) -> BTreeMap<String, Vec<String>> {
        let mut lists = BUILT_IN.clone();
        if let Self::Own(own) = self {
            lists.extend(own.clone());
        }
        lists
    }

    /// What cannot be meant. `tasks` are those that the recipe's sources name.
    pub(crate) fn mistakes(&self, tasks: &BTreeSet<&str>) -> Vec<String> {
        let mut mistakes = Vec::new();
        let Self::Own(own) = self else { return mistakes };
        for (task, list) in own {
            if !BUILT_IN.contains_key(task) && !tasks.contains(task.as_str()) {
                let known: Vec<&str> = BUILT_IN.keys().map(String::as_str).collect();
                mistakes.push(format!(
                    "`templates` has a list for `{task}`, which is no built-in sub-task and no source's `task`; built in are {}",
                    known.join(", ")
                ));
            }
            if list.is_empty() {
                mistakes.push(format!("`templates.{task}` is empty"));
            }
            for (index, template) in list.iter().enumerate() {
                let n_slots = template.matches(SLOT).count();
                if n_slots != 1 {
                    mistakes.push(format!(
                        "template {} of `templates.{task}` holds the slot {SLOT} {n_slots} times; it must hold it once",
                        index + 1
                    ));
                }
            }
        }
        mistakes
    }
}

/// The sub-task whose templates fit a row: the source's `task` where it has a list, else what the layout says.
pub(crate) fn sub_task<'a>(item: &Item, lists: &'a BTreeMap<String, Vec<String>>) -> Option<(&'a str, &'a [String])> {
    let name = match item.about.task.as_ref() {
        task if lists.contains_key(task) && task != "mcqa" => task,
        "qa" => "medical_qa",
        "mcqa" if explains(item) => "mcqa_with_explanation",
        "mcqa" => "mcqa",
        _ => return None,
    };
    lists.get_key_value(name).map(|(name, list)| (name.as_str(), list.as_slice()))
}

/// Whether the answer says more than its last line, the letter.
fn explains(item: &Item) -> bool {
    let answer = item.messages().into_iter().rfind(|message| message.role == Role::Assistant);
    answer.is_some_and(|answer| answer.content.trim().contains('\n'))
}

/// Whether the first question begins with one of the templates about the row's subject, as an earlier stage writes it.
pub(crate) fn has_one(item: &Item, list: &[String]) -> bool {
    let asked = item.each_message().find(|message| message.role == Role::User);
    asked.is_some_and(|asked| {
        list.iter().any(|template| asked.content.starts_with(&template.replace(SLOT, &item.about.subject)))
    })
}

/// Puts a template before the first question; gives its id, `sub-task/number`.
pub(crate) fn apply(item: &mut Item, task: &str, list: &[String], seed: u64) -> String {
    let index = CounterRng::new(seed, "data/template", xxh64(item.id.as_bytes(), 0)).below(list.len());
    let text = list[index].replace(SLOT, &item.about.subject);
    if let Body::Conversation(conversation) = &mut item.body
        && let Some(asked) = conversation.messages.iter_mut().find(|message| message.role == Role::User)
    {
        asked.content = format!("{text}\n\n{}", asked.content);
    }
    format!("{task}/{}", index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of Aloe-Beta's appendix B.1: 16 sub-tasks of 10 or 5, 110 in all, and two groups of 10.
    #[test]
    fn there_are_110_templates_of_16_sub_tasks_and_20_for_chains_of_thought_each_with_one_slot() {
        let (cot, plain): (Vec<_>, Vec<_>) = BUILT_IN.iter().partition(|(name, _)| name.ends_with("_cot"));
        let n_of = |lists: &[(&String, &Vec<String>)]| lists.iter().map(|(_, list)| list.len()).sum::<usize>();
        assert_eq!((plain.len(), n_of(&plain), cot.len(), n_of(&cot)), (16, 110, 2, 20));
        assert!(plain.iter().all(|(_, list)| matches!(list.len(), 5 | 10)));
        let all: BTreeSet<&String> = BUILT_IN.values().flatten().collect();
        assert_eq!(all.len(), 130, "no template stands twice");
        assert!(all.iter().all(|template| template.matches(SLOT).count() == 1));
    }

    #[test]
    fn a_template_without_its_slot_an_empty_list_and_a_list_that_no_row_can_have_are_refused() {
        let own = |task: &str, list: &[&str]| {
            Templates::Own(BTreeMap::from([(task.to_owned(), list.iter().map(ToString::to_string).collect())]))
        };
        let tasks = BTreeSet::from(["own_task"]);
        let of = |templates: &Templates| templates.mistakes(&tasks).join("; ");
        let good = format!("About {SLOT}:");
        assert_eq!(of(&own("own_task", &[&good])), "");
        assert_eq!(of(&own("medical_qa", &[&good])), "");
        assert!(
            of(&own("medical_qa", &[&good, "About it:"]))
                .starts_with("template 2 of `templates.medical_qa` holds the slot")
        );
        assert!(of(&own("medical_qa", &[&format!("{SLOT} {SLOT}")])).contains("2 times"));
        assert!(of(&own("medical_qa", &[])).contains("is empty"));
        assert!(of(&own("medicalqa", &[&good])).contains("no built-in sub-task"));
    }
}
