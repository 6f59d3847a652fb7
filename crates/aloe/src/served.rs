//! What the servers that a stage asks list of their models: kept in the record, and asked again before a finished stage counts as
//! done. An address stays the same when other weights are served there.

use crate::failure::Failure;
use crate::leave;
use crate::stage::Inputs;
use aloe_record::{Cancel, Record, atomic, tell};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The entry of a record's inputs that holds what each address listed.
const ENTRY: &str = "served";

/// Settings that may name a server.
const KEYS: [&str; 2] = ["judge", "embedder"];

/// The servers of a stage.
pub(crate) fn addresses(inputs: &Inputs, used: &Value) -> Vec<String> {
    let paths = inputs.values().flatten().map(|path| path.to_string_lossy().into_owned());
    let settings = KEYS.iter().filter_map(|key| used[key].as_str().map(str::to_owned));
    let mut found: Vec<String> = paths.chain(settings).filter(|text| is_address(text)).collect();
    found.sort();
    found.dedup();
    found
}

fn is_address(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// An endpoint without its address: the model that is asked there. What is no endpoint stays as it is.
pub(crate) fn without_address(input: &mut Value) {
    match input {
        Value::String(text) if is_address(text) => {
            let model = text.split_once('#').map_or("", |(_, model)| model);
            *text = format!("endpoint #{model}");
        }
        Value::Array(inputs) => inputs.iter_mut().for_each(without_address),
        _ => {}
    }
}

/// The file in an unfinished stage's folder that holds where its servers listened, those of earlier sessions too.
pub(crate) const ASKED: &str = ".asked.json";

/// Where all sessions of a stage asked, by input.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct Asked(BTreeMap<String, BTreeSet<String>>);

impl Asked {
    /// Adds the `inputs` to those of earlier sessions in the folder `partial`. Refuses to go on with answers of a model at another address when
    /// nothing is kept by which the servers there could be told from those then asked.
    pub(crate) fn open(kind: &str, partial: &Path, inputs: &Inputs, addresses: &[String]) -> anyhow::Result<Self> {
        let path = partial.join(ASKED);
        let mut asked: Self = if path.exists() { atomic::read_json(&path)? } else { Self::default() };
        let given =
            inputs.iter().flat_map(|(name, paths)| paths.iter().map(move |path| (name, path.to_string_lossy())));
        for (name, address) in given.filter(|(_, address)| addresses.iter().any(|known| known == address)) {
            let earlier = asked.0.entry(name.clone()).or_default();
            let is_moved = !earlier.is_empty() && !earlier.contains(&*address);
            // Judges and embedders have a canary each, which is held against theirs.
            let has_answers = || leave::resume_point(kind, partial).is_some();
            if is_moved && name == "model" && !has_canary(partial) && has_answers() {
                let earlier: Vec<&str> = earlier.iter().map(String::as_str).collect();
                return Err(Failure::usage(no_canary(partial, &earlier.join(", "), &address)).into());
            }
            earlier.insert(address.into_owned());
        }
        if !asked.0.is_empty() {
            atomic::write_json(&path, &asked)?;
        }
        Ok(asked)
    }
}

/// Whether the log of answers in `partial` holds what the model's servers answered to known prompts.
fn has_canary(partial: &Path) -> bool {
    let log = std::fs::read(partial.join(".answers.log")).unwrap_or_default();
    let mut entries = log.split(|&byte| byte == b'\n').filter_map(|line| line.get(9..));
    entries.any(|json| json.starts_with(b"{\"canary\""))
}

fn no_canary(partial: &Path, earlier: &str, now: &str) -> String {
    format!(
        "{} holds answers of {earlier}, and now {now} is to be asked. The servers then asked took no known prompts, so that nothing tells whether \
         the same weights are served there. Name the same servers and the same command goes on; or remove that folder to start over",
        partial.display()
    )
}

/// Notes what each server lists, after it was asked: one that has gone since is left out, unless an earlier session asked it alone: then it
/// stands without a list.
pub(crate) fn note(record: &mut Record, addresses: &[String], asked: &Asked, cancel: &Cancel) {
    let lists = |address: &String| Some((address.clone(), Value::from(aloe_engine::listed(address, cancel).ok()?)));
    let earlier = asked.0.values().flatten().filter(|address| !addresses.contains(address));
    let earlier = earlier.map(|address| lists(address).unwrap_or_else(|| (address.clone(), Value::Null)));
    let served: Map<String, Value> = addresses.iter().filter_map(lists).chain(earlier).collect();
    if !served.is_empty() {
        record.inputs.insert(ENTRY.to_owned(), Value::Object(served));
    }
}

/// Whether a server now lists another model than the record holds. One that does not answer is told and believed: a finished
/// recipe needs no server.
pub(crate) fn is_other(record: &Record, addresses: &[String], cancel: &Cancel) -> anyhow::Result<bool> {
    for address in addresses {
        let Some(was) = record.inputs.get(ENTRY).and_then(|served| served[address].as_str()) else { continue };
        let found = aloe_engine::listed(address, cancel);
        cancel.check()?;
        match found {
            Ok(now) if now == was => {}
            Ok(now) => {
                tell(&format!("{address} now serves {now}, the finished stage asked {was}: it is made anew"));
                return Ok(true);
            }
            Err(error) => tell(&format!("{error}; the finished stage stands, it asked {was}")),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of the log: eight digits of a checksum, a blank and what is kept.
    #[test]
    fn answers_go_on_at_another_address_only_where_known_prompts_were_answered_or_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let open = |address: &str| {
            let inputs =
                Inputs::from([("model".to_owned(), vec![address.into()]), ("judge".to_owned(), vec!["d".into()])]);
            Asked::open("eval", dir.path(), &inputs, &addresses(&inputs, &Value::Null)).map(|asked| asked.0)
        };
        let log = |entries: &[&str]| {
            let lines: String = entries.iter().map(|entry| format!("00000000 {entry}\n")).collect();
            std::fs::write(dir.path().join(".answers.log"), lines).unwrap();
        };
        let (run, answered, canary) = ("{\"run\":\"x\"}", "{\"answered\":{}}", "{\"canary\":[]}");
        assert_eq!(open("http://a/v1#m").unwrap().len(), 1);
        log(&[run]);
        assert_eq!(open("http://b/v1#m").unwrap()["model"].len(), 2, "nothing is answered yet");
        log(&[run, answered]);
        assert_eq!(open("http://a/v1#m").unwrap()["model"].len(), 2, "it was asked before");
        let error = open("http://c/v1#m").unwrap_err();
        assert_eq!(crate::failure::exit_code(&error, 0), 2);
        let text = error.to_string();
        assert!(text.contains("http://a/v1#m, http://b/v1#m, and now http://c/v1#m is to be asked"), "{text}");
        log(&[run, canary, answered]);
        assert_eq!(open("http://c/v1#m").unwrap()["model"].len(), 3);
    }

    #[test]
    fn an_endpoint_without_its_address_is_its_model() {
        let check = |input: Value| {
            let mut input = input;
            without_address(&mut input);
            input
        };
        assert_eq!(check("http://a:1/v1,http://b:2/v1#m".into()), Value::from("endpoint #m"));
        assert_eq!(check("https://a/v1".into()), Value::from("endpoint #"));
        assert_eq!(check(vec!["http://a/v1#m", "0f"].into()), Value::from(vec!["endpoint #m", "0f"]));
        assert_eq!(check(Value::Null), Value::Null);
    }
}
