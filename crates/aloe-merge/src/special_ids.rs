//! The ids of the tokens that begin, end and pad a text, in the result's `config.json` and `generation_config.json`: they follow their
//! tokens into a chosen vocabulary. With the tokenizer of a model other than the leading one, they are those that its
//! `tokenizer_config.json` names: a chat model's ends an answer with another token than its base. Without a chosen vocabulary, ids
//! stay what they are.

use crate::Result;
use crate::inputs::PlannedModel;
use crate::vocabulary::Vocabulary;
use aloe_model::Config;
use serde_json::{Value, json};

/// Keys of both files.
const KEYS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Sets the ids of the leading model's configuration to those of the same tokens in the vocabulary. A token that it does not have is
/// replaced by that of the model whose tokenizer the result gets, or left out; a note says so.
pub(crate) fn in_config(
    out: &mut Config,
    vocabulary: &Vocabulary,
    models: &[PlannedModel],
    leader: usize,
    notes: &mut Vec<String>,
) -> Result<()> {
    let donor = &models[vocabulary.donor];
    let before = out.to_json();
    // A folder with a tokenizer alone may have no ids of its own; its configuration is then a copy of the leader's.
    let of_donor = match donor.beside.read("config.json")? {
        None if donor.gives_tokenizer_only() => Value::Null,
        _ => donor.config.to_json(),
    };
    let named = match vocabulary.donor == leader {
        true => [None; 3],
        false => named_ids(vocabulary, donor)?,
    };
    let mut after = [Value::Null, Value::Null, Value::Null];
    for ((key, after), named) in KEYS.into_iter().zip(&mut after).zip(named) {
        let asked = ids(&before[key]);
        let donors = || ids(&of_donor[key]).into_iter().filter(|id| (*id as usize) < vocabulary.n_rows);
        let moved: Vec<u32> = asked.iter().filter_map(|id| vocabulary.moved(*id)).collect();
        let found = match named {
            // A text may end in several ways, and begins in one.
            Some(id) if key == "eos_token_id" && moved.contains(&id) => moved,
            Some(id) if key == "eos_token_id" => with(donors().collect(), id),
            // A model without padding gets none.
            Some(_) if key == "pad_token_id" && asked.is_empty() => Vec::new(),
            Some(id) => vec![id],
            None if moved.is_empty() && !asked.is_empty() && vocabulary.donor != leader => donors().collect(),
            None => moved,
        };
        if found != asked {
            notes.push(format!(
                "{key} of config.json is {} in the result's vocabulary, and {} in that of {}",
                value(&found),
                value(&asked),
                models[leader].name
            ));
        }
        *after = value(&found);
    }
    out.bos_token_id = ids(&after[0]).first().copied();
    out.eos_token_ids = ids(&after[1]);
    for (key, after) in KEYS.into_iter().zip(after) {
        if out.raw.get(key).is_some_and(|value| !ids(value).is_empty()) {
            out.raw.insert(key.to_owned(), after);
        }
    }
    Ok(())
}

/// The ids of the tokens that the donor's `tokenizer_config.json` names, in the order of [`KEYS`].
fn named_ids(vocabulary: &Vocabulary, donor: &PlannedModel) -> Result<[Option<u32>; 3]> {
    let config: Value = donor.beside.read_json("tokenizer_config.json")?.unwrap_or_default();
    Ok(["bos_token", "eos_token", "pad_token"].map(|key| {
        let token = config[key].as_str().or_else(|| config[key]["content"].as_str())?;
        vocabulary.id(token).filter(|id| (*id as usize) < vocabulary.n_rows)
    }))
}

/// The ids with this one among them, in front where it is new.
fn with(ids: Vec<u32>, id: u32) -> Vec<u32> {
    match ids.contains(&id) {
        true => ids,
        false => [&[id], &ids[..]].concat(),
    }
}

/// Lists the ids that end a text in a `generation_config.json` that has ids of its own, beside those.
pub(crate) fn end_in_generation_config(files: &mut [(String, Vec<u8>)], eos_token_ids: &[u32]) -> Result<()> {
    change_generation_config(files, |config| {
        let own = ids(&config["eos_token_id"]);
        let all = eos_token_ids
            .iter()
            .fold(own.clone(), |all, id| if all.contains(id) { all } else { [&all[..], &[*id]].concat() });
        if !own.is_empty() && all != own {
            config["eos_token_id"] = value(&all);
        }
    })
}

/// The same in `generation_config.json`, which comes from the model whose tokenizer the result gets.
pub(crate) fn in_generation_config(
    files: &mut [(String, Vec<u8>)],
    vocabulary: &Vocabulary,
    leader: usize,
) -> Result<()> {
    change_generation_config(files, |config| {
        for key in KEYS {
            let asked = ids(&config[key]);
            if asked.is_empty() {
                continue;
            }
            let kept = |id: &u32| match vocabulary.donor == leader {
                true => vocabulary.moved(*id),
                false => Some(*id).filter(|id| (*id as usize) < vocabulary.n_rows),
            };
            let found: Vec<u32> = asked.iter().filter_map(kept).collect();
            if found != asked {
                config[key] = value(&found);
            }
        }
    })
}

/// Writes the file again where `change` changes it.
fn change_generation_config(files: &mut [(String, Vec<u8>)], change: impl FnOnce(&mut Value)) -> Result<()> {
    let Some((_, content)) = files.iter_mut().find(|(name, _)| name == "generation_config.json") else {
        return Ok(());
    };
    let json_error = |error: serde_json::Error| aloe_record::Error::Json {
        path: "generation_config.json".into(),
        reason: error.to_string(),
    };
    let mut config: Value = serde_json::from_slice(content).map_err(json_error)?;
    let before = config.clone();
    change(&mut config);
    if config != before {
        *content = serde_json::to_vec_pretty(&config).map_err(json_error)?;
        content.push(b'\n');
    }
    Ok(())
}

/// One id, a list of them, or none.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        single => one(single).into_iter().collect(),
    }
}

fn value(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [only] => json!(only),
        many => json!(many),
    }
}
