//! Which rows train and in which order: hold-out, caps, weights and order, all decided by (seed, purpose, row), so that adding a
//! source moves no other source's rows across a split, unless it asks the same question or names the same question id, and keeps their order
//! among themselves.

use crate::dedup::UnionFind;
use crate::{DataConfig, Item};
use aloe_record::CounterRng;
use std::collections::HashMap;
use xxhash_rust::xxh64::xxh64;

/// Indices of the rows to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mixture {
    /// In training order; a row may stand several times.
    pub(crate) train: Vec<usize>,
    /// In file order.
    pub(crate) held_out: Vec<usize>,
    /// Left out by a source's `max_rows`.
    pub(crate) over_cap: Vec<usize>,
    /// Left out by a weight below 1.
    pub(crate) weighted_out: Vec<usize>,
}

fn hash(text: &str) -> u64 {
    xxh64(text.as_bytes(), 0)
}

/// What rows draw for one purpose, each by its text.
struct Draw(CounterRng);

impl Draw {
    fn of(seed: u64, purpose: &str) -> Draw {
        Draw(CounterRng::new(seed, purpose, 0))
    }

    fn key(&self, text: &str) -> u64 {
        self.key_of(hash(text))
    }

    fn key_of(&self, hash: u64) -> u64 {
        let block = self.0.of_item(hash).block(0);
        (u64::from(block[0]) << 32) | u64::from(block[1])
    }

    /// In `[0, 1)`.
    fn share(&self, text: &str) -> f64 {
        self.share_of(hash(text))
    }

    fn share_of(&self, hash: u64) -> f64 {
        (self.key_of(hash) >> 11) as f64 / 9_007_199_254_740_992.0
    }
}

/// For each row the hash of what its group is held out by. Rows of one question's id are of one group, and so are rows of one question's text, whether
/// they name an id or not and whatever it is: a set may give a question several ids, and a source without ids may hold another's questions.
/// A group is named by its first id in the order of texts, or by its text where no row names one, so that rows that join it seldom move it.
fn groups(items: &[Item]) -> Vec<u64> {
    // Hashes: of a million rows the texts themselves would be half a gigabyte.
    let texts: Vec<Option<u64>> = items.iter().map(|item| item.question_key().map(|text| hash(&text))).collect();
    let (mut of_id, mut of_text) = (HashMap::new(), HashMap::new());
    let mut groups = UnionFind::new(items.len());
    for (row, (item, text)) in items.iter().zip(&texts).enumerate() {
        // As it is: without their numbers all of a set's question ids would be one.
        if let Some(id) = item.group() {
            groups.join(*of_id.entry(id).or_insert(row), row);
        }
        if let Some(text) = text {
            groups.join(*of_text.entry(*text).or_insert(row), row);
        }
    }
    let mut first_ids: HashMap<usize, &str> = HashMap::new();
    for (row, item) in items.iter().enumerate() {
        if let Some(id) = item.group() {
            let first = first_ids.entry(groups.root(row)).or_insert(id);
            *first = id.min(*first);
        }
    }
    let of_row = |row: usize| {
        let first_id = first_ids.get(&groups.root(row)).map(|id| hash(id));
        first_id.or(texts[row]).unwrap_or_else(|| hash(&items[row].id))
    };
    (0..items.len()).map(of_row).collect()
}

/// Chooses and orders.
pub(crate) fn mix(items: &[Item], config: &DataConfig) -> Mixture {
    let mut mixture = Mixture::default();
    let [hold_out, cap, weight, order] =
        ["data/hold-out", "data/cap", "data/weight", "data/order"].map(|purpose| Draw::of(config.seed, purpose));
    let mut by_source: HashMap<usize, Vec<usize>> = HashMap::new();
    let groups = if config.hold_out > 0.0 { groups(items) } else { Vec::new() };
    for (index, item) in items.iter().enumerate() {
        if groups.get(index).is_some_and(|&group| hold_out.share_of(group) < config.hold_out) {
            mixture.held_out.push(index);
        } else {
            by_source.entry(item.source).or_default().push(index);
        }
    }
    let mut copies: Vec<(u64, u64, usize)> = Vec::new();
    for (source, mut rows) in by_source {
        let settings = &config.sources[source];
        if let Some(max_rows) = settings.max_rows {
            rows.sort_by_key(|&row| (cap.key(&items[row].id), row));
            mixture.over_cap.extend(rows.drain(max_rows.min(rows.len())..));
        }
        for row in rows {
            let id = &items[row].id;
            let whole = settings.weight.floor();
            let extra = settings.weight > whole && weight.share(id) < settings.weight - whole;
            let n_copies = whole as u64 + u64::from(extra);
            if n_copies == 0 {
                mixture.weighted_out.push(row);
            }
            for copy in 0..n_copies {
                copies.push((order.key(&format!("{id}\n{copy}")), copy, row));
            }
        }
    }
    copies.sort_unstable();
    mixture.train = copies.into_iter().map(|(_, _, row)| row).collect();
    mixture
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, Rare};
    use aloe_text::{Conversation, Message};
    use std::collections::BTreeSet;

    fn item(number: usize, group: Option<&str>, question: &str) -> Item {
        let messages = vec![Message::user(question), Message::assistant("x")];
        let rare = Rare { group: group.map(String::from), ..Rare::default() };
        let body = Body::Conversation(Conversation { messages });
        Item { rare: rare.boxed(), ..Item::plain(format!("s/f:{number}"), body) }
    }

    /// The groups of rows, numbered in the order of their first rows.
    fn numbered(items: &[Item]) -> Vec<usize> {
        let found = groups(items);
        let mut seen: Vec<u64> = Vec::new();
        let number = |group: &u64| {
            seen.iter().position(|known| known == group).unwrap_or_else(|| {
                seen.push(*group);
                seen.len() - 1
            })
        };
        found.iter().map(number).collect()
    }

    #[test]
    fn rows_of_one_id_or_of_one_question_are_one_group_and_what_joins_two_makes_them_one() {
        let items = [
            item(0, Some("7"), "What is asthma?"),
            item(1, Some("8"), "What is asthma ?"),
            item(2, None, "what is ASTHMA"),
            item(3, Some("7"), "As a pirate, tell me what asthma is."),
            item(4, None, "As a pirate, tell me what asthma is."),
            item(5, Some("9"), "What is gout?"),
            item(6, None, "What is a stroke?"),
            item(7, None, ""),
            item(8, None, "??"),
            // Its id alone leads to the first group, which has another one's name.
            item(9, Some("8"), "Why do airways narrow?"),
        ];
        assert_eq!(numbered(&items), [0, 0, 0, 0, 0, 1, 2, 3, 4, 0], "texts that say nothing are not one question");
        // Rows of other groups behind them, of the group's own ids or of none, move nobody.
        let alone = groups(&items);
        let more: Vec<Item> =
            items.iter().cloned().chain([item(10, None, "What is gout?"), item(11, Some("9"), "z")]).collect();
        assert_eq!(groups(&more)[..items.len()], alone);
        assert_eq!(groups(&items[..1]), [hash("7")], "a group is drawn by its id where it has one");
        assert_eq!(groups(&items[6..7]), [hash("what is a stroke")], "and by its text where it has none");
    }

    #[test]
    fn no_group_stands_on_both_sides_of_the_hold_out() {
        let items: Vec<Item> = (0..400)
            .map(|number| {
                let word =
                    |n: usize| format!("{}{}", char::from(b'a' + (n % 26) as u8), char::from(b'a' + (n / 26) as u8));
                let id = word(number / 4);
                item(number, (number % 2 == 0).then_some(&id), &format!("question {}", word(number / 2)))
            })
            .collect();
        let config: DataConfig = serde_json::from_value(serde_json::json!({
            "sources": [{"name": "s", "path": "f", "licence": "mit"}], "hold_out": 0.3, "seed": 5
        }))
        .unwrap();
        let mixture = mix(&items, &config);
        let side = |rows: &[usize]| rows.iter().map(|row| row / 4).collect::<BTreeSet<_>>();
        let (train, held_out) = (side(&mixture.train), side(&mixture.held_out));
        assert!(train.is_disjoint(&held_out) && train.len() + held_out.len() == 100, "{train:?} {held_out:?}");
        assert!((15..=45).contains(&held_out.len()), "{}", held_out.len());
    }
}
