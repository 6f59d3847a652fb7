//! What the servers that a stage asks list of their models: kept in the record, and asked again before a finished stage counts as
//! done. An address stays the same when other weights are served there.

use crate::stage::Inputs;
use aloe_record::{Cancel, Record, tell};
use serde_json::{Map, Value};

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

/// Notes what each server lists, after it was asked: one that has gone since is left out.
pub(crate) fn note(record: &mut Record, addresses: &[String], cancel: &Cancel) {
    let lists = |address: &String| Some((address.clone(), Value::from(aloe_engine::listed(address, cancel).ok()?)));
    let served: Map<String, Value> = addresses.iter().filter_map(lists).collect();
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
