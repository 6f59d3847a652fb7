//! Servers that announce themselves by files: the model argument `servers:DIR`. Whoever starts servers inside a job writes one file for
//! each, once it has answered the canary ([`try_out`]); whoever asks them reads the files ([`read`]).
//!
//! An announcement of other weights or of another job is refused, since its answers would be counted as this model's. One whose process has
//! gone is told and left out; with none left nothing is opened. An address alone could not be told from that of another job's server
//! which got the same port later.

use super::listing;
use crate::http::{Client, Outcome};
use crate::{Call, Engine, EngineOptions, Error, Result};
use aloe_record::{Cancel, atomic};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a model argument begins with whose servers are found by their files.
pub const SERVERS: &str = "servers:";

/// The variable that holds the id of the job that this process belongs to.
pub const JOB_VARIABLE: &str = "ALOE_JOB";

/// How long a server may take to list its models while it is tried out.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one answer to the canary is waited for while a server is tried out.
const CANARY_TIMEOUT: Duration = Duration::from_secs(120);

/// One server, as its file `REPLICA.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Where it listens.
    pub host: String,
    /// Where it listens.
    pub port: u16,
    /// The model's name in its list.
    pub model: String,
    /// Digest of the folder that it loaded.
    pub model_sha256: String,
    /// The job that it was started in.
    pub job: String,
    /// The machine, by its kernel's name.
    pub node: String,
    /// Its process on that machine, the leader of its group.
    pub pid: u32,
    /// When that process started, in clock ticks since the machine did (proc(5), field 22 of `stat`).
    pub started: u64,
    /// How it was started, with `{model}` and the like unfilled: what engine answers.
    pub command: Vec<String>,
}

impl Announcement {
    /// `http://HOST:PORT/v1`.
    pub fn base(&self) -> String {
        format!("http://{}:{}/v1", self.host, self.port)
    }
}

/// When the process `pid` of this machine started, in clock ticks since the machine did; `None` where there is none.
pub fn start_of_process(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state follows it as field 3, the start is field 22.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let is_gone = matches!(fields.first(), Some(&"Z" | &"X") | None);
    fields.get(19)?.parse().ok().filter(|_| !is_gone)
}

/// This machine, by its kernel's name.
pub fn node_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

/// The servers announced in `folder` whose processes live, in the order of their files' names. They must have loaded the weights of
/// digest `model_sha256` and be of the job `job`, where these are known, and of one model and command among themselves.
pub fn read(folder: &Path, model_sha256: Option<&str>, job: Option<&str>) -> Result<Vec<Announcement>> {
    let wrong = |reason: String| Error::Open { model: format!("{SERVERS}{}", folder.display()), reason };
    let mut found: Vec<(PathBuf, Announcement)> = Vec::new();
    for path in files(folder).map_err(|error| wrong(format!("the folder cannot be listed: {error}")))? {
        let one: Announcement = atomic::read_json(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(wanted) = model_sha256.filter(|wanted| *wanted != one.model_sha256) {
            return Err(wrong(format!(
                "{name} announces other weights: its digest is {}, the model's is {wanted}; start servers of this model",
                one.model_sha256
            )));
        }
        if let Some(wanted) = job.filter(|wanted| *wanted != one.job) {
            return Err(wrong(format!(
                "{name} is of job {}, this is job {wanted}; start servers in this job",
                one.job
            )));
        }
        if let Some((_, first)) = found.first()
            && (&first.model_sha256, &first.model, &first.command) != (&one.model_sha256, &one.model, &one.command)
        {
            return Err(wrong(format!("{name} announces another model or command than the file before it")));
        }
        match stale(&one) {
            Some(reason) => aloe_record::tell(&format!("note: {}: {reason}; it is left out", path.display())),
            None => found.push((path, one)),
        }
    }
    if found.is_empty() {
        return Err(wrong("no living server is announced there; `aloe with-servers` starts them".to_owned()));
    }
    Ok(found.into_iter().map(|(_, one)| one).collect())
}

/// The announcements' files, sorted.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|extension| extension == "json") && !is_hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Why a server cannot be the one that was announced.
fn stale(one: &Announcement) -> Option<String> {
    let here = node_name();
    if one.node != here {
        let is_loopback = one.host == "localhost" || one.host.starts_with("127.");
        return is_loopback.then(|| format!("its server listens on {} of {}, this is {here}", one.host, one.node));
    }
    match start_of_process(one.pid) {
        Some(started) if started == one.started => None,
        _ => Some(format!("its process {} has ended", one.pid)),
    }
}

/// The address of announced servers in the form of [`Engine::open`].
pub(super) fn address(servers: &[Announcement]) -> String {
    let bases: Vec<String> = servers.iter().map(Announcement::base).collect();
    format!("{}#{}", bases.join(","), servers.first().map_or("", |first| &first.model))
}

/// Whether the server at `base` lists the model in `folder`, by that path or by `name`, and answers the canary, sent as ids of the
/// folder's own tokenizer, sanely: then the model's name in its list. `None` while it does not answer yet.
pub fn try_out(base: &str, folder: &Path, name: &str, cancel: &Cancel) -> Result<Option<String>> {
    let client = Client::new(base, 1, CANARY_TIMEOUT);
    let listing = match client.get("/models", LIST_TIMEOUT) {
        Outcome::Json(listing) => listing,
        Outcome::Lost(_) | Outcome::Broken(_) | Outcome::Busy { .. } => return Ok(None),
        Outcome::Refused(reason) | Outcome::Final(reason) => return Err(client.error(reason)),
    };
    let model = model_in(&listing, folder, name).map_err(|reason| client.error(reason))?;
    let options = EngineOptions {
        tokenizer: Some(folder.to_path_buf()),
        request_timeout: CANARY_TIMEOUT,
        connections: 1,
        cancel: cancel.clone(),
        ..EngineOptions::default()
    };
    let engine = Engine::open(&format!("{base}#{model}"), &options)?;
    let fault = match engine.canary(Call::Generate, cancel)? {
        Some(answers) => answers.fault(),
        None => Some("it does not take prompts as token ids".to_owned()),
    };
    match fault {
        Some(reason) => Err(client.error(reason)),
        None => Ok(Some(model)),
    }
}

/// The model's name in a list: the folder's path, or `name` where the list does not say that it was loaded from elsewhere.
fn model_in(listing: &Value, folder: &Path, name: &str) -> std::result::Result<String, String> {
    let folder = folder.to_string_lossy();
    let models = listing["data"].as_array().cloned().unwrap_or_default();
    for model in &models {
        let Some(id) = model["id"].as_str() else { continue };
        let is_from_elsewhere = model["root"].as_str().is_some_and(|root| root != folder && root != id);
        if id == folder || (id == name && !is_from_elsewhere) {
            return Ok(id.to_owned());
        }
    }
    let served: Vec<String> =
        models.iter().filter_map(|model| model["id"].as_str()).map(|id| listing::describe(listing, id)).collect();
    let served = if served.is_empty() { "nothing that it names".to_owned() } else { served.join(", ") };
    Err(format!("it serves {served}, and not the model {folder} (also taken: the name {name})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn living() -> Announcement {
        let pid = std::process::id();
        Announcement {
            host: "127.0.0.1".into(),
            port: 8000,
            model: "/m".into(),
            model_sha256: "ab".into(),
            job: "7".into(),
            node: node_name(),
            pid,
            started: start_of_process(pid).unwrap(),
            command: vec!["serve".into(), "{model}".into()],
        }
    }

    fn write(folder: &Path, name: &str, one: &Announcement) {
        atomic::write_json(&folder.join(name), one).unwrap();
    }

    #[test]
    fn all_living_servers_of_the_job_and_model_are_taken_and_make_one_address() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "2.json", &Announcement { port: 8002, ..living() });
        write(dir.path(), "1.json", &living());
        write(dir.path(), ".3.json", &Announcement { job: "8".into(), ..living() });
        std::fs::write(dir.path().join("1.log"), "loading").unwrap();
        let servers = read(dir.path(), Some("ab"), Some("7")).unwrap();
        assert_eq!(address(&servers), "http://127.0.0.1:8000/v1,http://127.0.0.1:8002/v1#/m");
    }

    #[test]
    fn an_announcement_of_other_weights_of_another_job_or_of_another_model_than_its_neighbours_is_refused() {
        let check = |changed: Announcement, words: &str| {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), "1.json", &living());
            write(dir.path(), "2.json", &changed);
            let refused = read(dir.path(), Some("ab"), Some("7")).unwrap_err().to_string();
            assert!(refused.contains("2.json") && refused.contains(words), "{refused}");
        };
        check(Announcement { model_sha256: "cd".into(), ..living() }, "its digest is cd, the model's is ab");
        check(Announcement { job: "6".into(), ..living() }, "is of job 6, this is job 7");
        check(Announcement { model: "/n".into(), ..living() }, "another model or command");
        check(Announcement { command: vec!["other".into()], ..living() }, "another model or command");
    }

    /// A process' number may be another one's later, so its start decides.
    #[test]
    fn a_server_whose_process_is_gone_or_on_another_machines_loopback_is_left_out_and_with_none_left_nothing_is_opened()
    {
        let left_out = [
            Announcement { started: living().started + 1, ..living() },
            Announcement { pid: u32::MAX, ..living() },
            Announcement { node: "elsewhere".into(), ..living() },
        ];
        for changed in left_out {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), "1.json", &changed);
            let refused = read(dir.path(), None, None).unwrap_err().to_string();
            assert!(refused.contains("no living server"), "{refused}");
            write(dir.path(), "2.json", &Announcement { port: 8002, ..living() });
            assert_eq!(read(dir.path(), None, None).unwrap()[0].port, 8002);
        }
    }

    #[test]
    fn the_model_is_known_by_its_folder_or_by_its_name_where_it_was_not_loaded_from_elsewhere() {
        let list = |id: &str, root: Value| json!({"data": [{"id": "other", "root": "/o"}, {"id": id, "root": root}]});
        let of = |listing: &Value| model_in(listing, Path::new("/m/model"), "merge");
        assert_eq!(of(&list("/m/model", Value::Null)).unwrap(), "/m/model");
        assert_eq!(of(&list("merge", json!("/m/model"))).unwrap(), "merge");
        assert_eq!(of(&list("merge", Value::Null)).unwrap(), "merge");
        let refused = of(&list("merge", json!("/n/model"))).unwrap_err();
        assert!(refused.contains("it serves \"other\" \"/o\", \"merge\" \"/n/model\""), "{refused}");
        assert!(of(&json!({})).unwrap_err().contains("nothing that it names"));
    }
}
